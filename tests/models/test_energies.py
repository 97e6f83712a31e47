"""PCEN is fed energies: levels that may be negative are refused in words, on every road to it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF.dsp import pcen
from deepSTRF.models.audio import DNet, Linear, StateNet
from deepSTRF.models.wav2spec import PCEN, make_wav2spec
from deepSTRF.registry import WAV2SPEC

BANDS = 8
PREFILTERS = {"dictionary": lambda: {"prefiltering": "pcen", "dt": 5.0}, "module": lambda: PCEN(BANDS, 5.0),
              "first of several": lambda: nn.Sequential(PCEN(BANDS, 5.0), nn.ReLU())}  # fmt: skip
#: Front-ends with the option that makes their levels signed, and the one that does not.
SIGNED = [
    ("sincnet", {"activation": "none"}, {"activation": "logabs"}),
    ("sincnet", {"activation": "symlog"}, {"activation": "symlog", "envelope": True}),
    ("mel", {}, {"compression": "none"}),
    ("mel", {"log_offset": 1e-3}, {"compression": "log1p"}),
    ("gammatone", {}, {"compression": "cuberoot"}),
    ("gammatonegram", {"compression": "log"}, {}),
    ("leaf", {"compression": "log"}, {}),
]


def front_end(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return make_wav2spec(name, 8000, 5.0, n_filters=BANDS, f_max=4000.0, **options)


@pytest.mark.parametrize("prefilter", PREFILTERS.values(), ids=PREFILTERS)
@pytest.mark.parametrize(("name", "signed", "energies"), SIGNED)
def test_front_ends_of_either_sign_are_refused_when_a_model_is_built(
    prefilter: Any, name: str, signed: dict[str, Any], energies: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"{WAV2SPEC.get(name).__name__}.*energies, which are not negative"):
        Linear(BANDS, 3, 2, wav2spec=front_end(name, signed), prefiltering=prefilter())
    model = Linear(BANDS, 3, 2, wav2spec=front_end(name, energies), prefiltering=prefilter()).eval()
    assert bool(model(torch.randn(1, 1, 800)).isfinite().all())


@pytest.mark.parametrize("name", sorted(WAV2SPEC))
def test_what_a_front_end_says_of_its_sign_is_true(name: str) -> None:
    own = [{}] + [options for kind, *both in SIGNED if kind == name for options in both]
    for options in own:
        bank = front_end(name, options)
        with torch.no_grad():
            heard = [bank(0.01 * torch.randn(1, 1, 2000)), bank(torch.zeros(1, 1, 2000))]
        lowest = float(torch.cat(heard, -1).min())
        assert (lowest < 0) == bank.has_negative_levels, (options, lowest)


@pytest.mark.parametrize("cls", [Linear, DNet, StateNet])
def test_log_spectrograms_are_refused_when_they_arrive(cls: type) -> None:
    model = cls(n_frequency_bands=34, out_neurons=2, prefiltering={"prefiltering": "pcen", "dt": 5.0}).eval()
    levels = torch.rand(1, 1, 34, 50).clamp_min(1e-4).log()
    lowest = re.escape(f"{float(levels.min()):g}")
    for call in (model, model.train(), lambda x: model.eval().step(x, model.init_state(1))):
        with pytest.raises(
            ValueError, match=rf"PCEN needs energies, which are not negative.*{lowest}.*exp\(\)"
        ):
            call(levels)
    assert bool(model.eval()(levels.exp()).isfinite().all())


def test_a_single_negative_value_is_enough_and_zero_is_legal() -> None:
    energy = torch.zeros(1, 2, 5)
    assert torch.equal(pcen(energy, 0.04, 0.96, 2.0, 0.5)[0], energy)
    energy[0, 1, 3] = -1e-3
    with pytest.raises(ValueError, match=r"the lowest level given is -0\.001"):
        pcen(energy, 0.04, 0.96, 2.0, 0.5)
    with pytest.raises(ValueError, match="energies"):
        PCEN(2, 5.0)(energy.unsqueeze(1))
    # a value that is no number is no level: it spoils its own frame and later ones
    energy[0, 1, 3] = torch.nan
    assert pcen(energy, 0.04, 0.96, 2.0, 0.5)[0].isfinite().sum() == 5 + 3


def test_transforms_and_compilers_pass() -> None:
    """Where values cannot be looked at nothing is, and the result stays."""
    gain, energy = PCEN(BANDS, 5.0), torch.rand(3, 1, BANDS, 20)
    expected = gain(energy)
    torch.testing.assert_close(torch.func.vmap(lambda x: gain(x[None])[0])(energy), expected)
    slope = torch.func.grad(lambda x: gain(x).sum())(energy)
    (want,) = torch.autograd.grad(gain(energy.requires_grad_()).sum(), energy)
    torch.testing.assert_close(slope, want)
    compiled = torch.compile(gain, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(energy.detach()), expected)
