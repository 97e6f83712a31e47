"""NetworkReceptiveField: its formula, names of public checkpoints, hidden receptive fields, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.models import ParametricSoftplus
from deepSTRF.models.audio import NetworkReceptiveField


def test_formula() -> None:
    model = NetworkReceptiveField(6, 4, n_hidden=5, out_neurons=3).double().eval()
    x = torch.randn(2, 1, 6, 30, dtype=torch.float64)
    w = model.state_dict()
    hidden = functional.conv2d(
        functional.pad(x, (3, 0)), w["core.0.kernel.weight"], w["core.0.kernel.bias"]
    ).squeeze(2)
    mean, spread = hidden.mean(1, keepdim=True), hidden.var(1, unbiased=False, keepdim=True)
    hidden = (hidden - mean) / (spread + 1e-5).sqrt()
    hidden = hidden * w["core.1.ln.weight"].view(1, -1, 1) + w["core.1.ln.bias"].view(1, -1, 1)
    drive = torch.einsum("nh,bht->bnt", w["readout.fc.weight"], hidden.tanh())
    drive = drive + w["readout.fc.bias"].view(1, -1, 1)
    beta = functional.softplus(w["readout.activation._raw_beta"]).view(1, -1, 1)
    rate = functional.softplus(beta * drive) / beta
    rate = rate + functional.softplus(w["readout.activation._raw_b"]).view(1, -1, 1)
    torch.testing.assert_close(model(x).squeeze(2), rate)


def test_names_of_public_checkpoints() -> None:
    assert set(NetworkReceptiveField().state_dict()) == {
        "core.0.kernel.weight", "core.0.kernel.bias", "core.1.ln.weight", "core.1.ln.bias",
        "readout.fc.weight", "readout.fc.bias", "readout.activation._raw_beta", "readout.activation._raw_b",
        "output_scale.scale", "output_scale.offset", "output_scale._started",
    }  # fmt: skip


def test_hidden_receptive_fields() -> None:
    model = NetworkReceptiveField(6, 4, n_hidden=5, out_neurons=3)
    weight = model.core[0].kernel.weight.detach()
    assert (model.H, model.T, model.F, model.O) == (5, 4, 6, 3)
    assert model.STRFs().shape == (6, 4)
    assert torch.equal(model.STRFs(), weight[0, 0])
    assert torch.equal(model.STRFs(-1, "on"), weight[4, 0])
    assert torch.equal(model.STRFs(hidden_idx=None), weight[:, 0])
    assert not hasattr(model, "STRF_weight")  # that is a field per neuron
    for beyond in (5, -6):
        with pytest.raises(IndexError, match="below 5"):
            model.STRFs(beyond)
    with pytest.raises(ValueError, match="polarity"):
        model.STRFs(0, "OFF")


def test_polarity_behind_a_prefilter() -> None:
    model = NetworkReceptiveField(6, 4, 5, 3, prefiltering={"prefiltering": "AdapTrans", "dt": 5.0})
    weight = model.core[0].kernel.weight.detach()
    assert torch.equal(model.STRFs(2, "ON"), weight[2, 0])
    assert torch.equal(model.STRFs(2, "OFF"), weight[2, 1])
    with pytest.raises(ValueError, match="polarity"):
        model.STRFs(2, "both")


def test_folded_is_on_the_raw_spectrogram() -> None:
    model = NetworkReceptiveField(6, 4, 5, 3, norm="none", standardize=True).eval()
    model.fit_standardization([5 + torch.arange(1.0, 7.0).view(6, 1) * torch.randn(1, 6, 500)])
    x = torch.randn(1, 1, 6, 40)
    respond = nn.Sequential(model.standardizer, model.core[0])
    linear_part = respond(x) - respond(torch.zeros_like(x))
    folded = functional.conv2d(x, model.STRFs(None, folded=True).unsqueeze(1))
    torch.testing.assert_close(folded, linear_part[..., 3:], atol=1e-5, rtol=1e-4)
    behind = NetworkReceptiveField(
        6, 4, 5, 3, standardize=True, prefiltering={"type": "AdapTrans", "dt": 5.0}
    )
    with pytest.raises(ValueError, match="prefilter"):
        behind.STRFs(folded=True)


def test_kernel_slot() -> None:
    model = NetworkReceptiveField(6, 4, 5, 3, kernel={"kernel": "separable"})
    assert model.STRFs().shape == (6, 4)
    assert model(torch.randn(2, 1, 6, 20)).shape == (2, 3, 1, 20)


def test_output_activation() -> None:
    assert isinstance(NetworkReceptiveField().readout.activation, ParametricSoftplus)
    relu = nn.ReLU()
    assert NetworkReceptiveField(output_activation=relu).readout.activation is relu


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"n_hidden of at least 2.*norm='none'"):
        NetworkReceptiveField(n_hidden=1)
    assert NetworkReceptiveField(n_hidden=1, norm="none")(torch.randn(1, 1, 34, 5)).shape == (1, 1, 1, 5)
    with pytest.raises(ValueError, match="n_hidden"):
        NetworkReceptiveField(n_hidden=0)
    with pytest.raises(ValueError, match="'layer', 'none'"):
        NetworkReceptiveField(norm="batch")
    with pytest.raises(ValueError, match="temporal_window_size"):
        NetworkReceptiveField(temporal_window_size=0)
