"""LinearNonlinear: Linear with a learned output nonlinearity, names of public checkpoints, its STRF."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepSTRF.models import ParametricSigmoid, ParametricSoftplus
from deepSTRF.models.audio import Linear, LinearNonlinear


def test_is_linear_with_a_softplus() -> None:
    torch.manual_seed(0)
    model = LinearNonlinear(6, 4, 3).eval()
    linear = Linear(6, 4, 3).eval()
    state = model.state_dict()
    linear.load_state_dict({name: value for name, value in state.items() if "activation" not in name})
    x = torch.randn(2, 1, 6, 30)
    beta = nn.functional.softplus(state["readout.activation._raw_beta"]).view(1, 3, 1, 1)
    baseline = nn.functional.softplus(state["readout.activation._raw_b"]).view(1, 3, 1, 1)
    drive = linear(x)
    expected = nn.functional.softplus(beta * drive) / beta + baseline
    torch.testing.assert_close(model(x), expected)


def test_names_of_public_checkpoints() -> None:
    assert set(LinearNonlinear(34, 9, 5).state_dict()) == set(Linear(34, 9, 5).state_dict()) | {
        "readout.activation._raw_beta",
        "readout.activation._raw_b",
    }


def test_the_strf_is_that_of_the_drive() -> None:
    model = LinearNonlinear(6, 4, 3).eval()
    weight = model.STRF_weight()
    assert torch.equal(weight, model.readout.strf.kernel.weight.detach()[:, 0])
    # at silence the gradient is the kernel times the slope of the softplus at the bias
    drive = model.readout.gain() * model.readout.strf.kernel.bias.detach()
    slope = torch.sigmoid(model.readout.activation.beta.detach() * drive)
    expected = slope.view(3, 1, 1) * model.STRF_weight(folded=True)
    torch.testing.assert_close(model.STRF_gradmap()[:, 0], expected)


def test_output_activation() -> None:
    assert isinstance(LinearNonlinear(6, 4, 3).readout.activation, ParametricSoftplus)
    sigmoid = ParametricSigmoid(3)
    assert LinearNonlinear(6, 4, 3, sigmoid).readout.activation is sigmoid
    with pytest.raises(TypeError, match="activation"):
        LinearNonlinear(6, 4, 3, 1.0)


def test_the_drive_starts_within_the_knee_of_the_softplus() -> None:
    model = LinearNonlinear(34, 9, 119)
    rate = model(torch.randn(4, 1, 34, 200)).detach()  # train mode: the drive is normalised
    assert torch.allclose(model.readout.bn.weight, 1 / model.readout.activation.beta)
    assert 0.1 < float(rate.mean()) < 0.3  # a start near 1 spike per bin ends in silence, see the model
    assert float(rate.std()) < 0.2
    other = LinearNonlinear(34, 9, 3, output_activation=ParametricSigmoid(3))
    assert torch.equal(other.readout.bn.weight, torch.ones(3))
