"""DNet: its formula, leaky hidden and output units, names of public checkpoints, receptive fields."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepSTRF.models.audio import DNet, NetworkReceptiveField


def leak(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """(B, C, T) by a loop; before the clip its first frame lasts for ever."""
    alpha = 1 / (1 + d**2)
    frames, y = [], x[..., 0]
    for frame in x.unbind(-1):
        y = (1 - alpha) * y + alpha * frame
        frames.append(y)
    return torch.stack(frames, -1)


@pytest.mark.parametrize("output_decay", [False, True])
def test_formula(output_decay: bool) -> None:
    model = DNet(6, 4, n_hidden=5, out_neurons=3, output_decay=output_decay).double().eval()
    same = NetworkReceptiveField(6, 4, n_hidden=5, out_neurons=3).double().eval()
    same.core[0].load_state_dict(model.core[0].state_dict())
    x = torch.randn(2, 1, 6, 80, dtype=torch.float64)
    w = model.state_dict()
    hidden = leak(same.core[:2](x).sigmoid().squeeze(2), w["core.3.d"])
    drive = torch.einsum("nh,bht->bnt", w["readout.fc.weight"], hidden) + w["readout.fc.bias"].view(1, -1, 1)
    if output_decay:
        drive = leak(drive, w["readout.decay.d"])
    torch.testing.assert_close(model(x).squeeze(2), drive)


def test_names_of_public_checkpoints() -> None:
    names = {
        "core.0.kernel.weight", "core.0.kernel.bias", "core.1.ln.weight", "core.1.ln.bias", "core.3.d",
        "readout.fc.weight", "readout.fc.bias",
        "output_scale.scale", "output_scale.offset", "output_scale._started",
    }  # fmt: skip
    assert set(DNet().state_dict()) == names
    assert set(DNet(output_decay=True).state_dict()) == names | {"readout.decay.d"}
    assert DNet(n_hidden=7).state_dict()["core.3.d"].shape == (7,)


def test_receptive_fields_and_memory() -> None:
    model = DNet(6, 4, n_hidden=5, out_neurons=3)
    assert torch.equal(model.STRFs(2), model.core[0].kernel.weight.detach()[2, 0])
    assert model.receptive_field is None
    assert (model.H, model.T) == (5, 4)
    assert isinstance(model.readout.activation, nn.Identity)
    assert DNet(34, 9, 20, 3.0, False, 2).core[3].decay_input is False


def test_a_slow_unit_keeps_its_unit_gain() -> None:
    """The published kernel, cut at 14 frames, lost half the gain of a unit with tau = 20."""
    model = DNet(6, 4, n_hidden=5, out_neurons=3).requires_grad_(False)
    model.core[3].d.fill_(19**0.5)
    steady = torch.full((1, 5, 1, 30), 0.7)
    assert torch.equal(model.core[3](steady), steady)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="init_tau"):
        DNet(init_tau=1.0)
    with pytest.raises(TypeError, match="output_decay"):
        DNet(output_decay=1)
    with pytest.raises(ValueError, match="n_hidden of at least 2"):
        DNet(n_hidden=1)
