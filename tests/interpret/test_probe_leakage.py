"""A sound that a neuron does not answer has no index: spectral leakage and rounding are no denominators.

The neuron hears one band through a linear model without compression, so at its own frequency every index is
known: no suppression, masking, adaptation or direction; the envelope ``1 - cos`` has vector strength 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.interpret.probes import (
    am_responses,
    click_responses,
    forward_masking,
    level_step_responses,
    noise_responses,
    oddball_responses,
    sweep_responses,
    two_tone_responses,
)
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import make_wav2spec

FS, BANDS, BAND = 16000, 12, 9
FAR_HZ = 600.0


def neuron(weight: float = 1.0, silent_band: float = 0.0) -> Linear:
    mel = make_wav2spec("mel", FS, 5.0, n_filters=BANDS, compression="none", win_ms=10.0)
    model = Linear(BANDS, 3, 1, wav2spec=mel, norm="none").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.readout.strf.kernel.weight[0, 0, BAND, -1] = weight
        model.readout.strf.kernel.weight[0, 0, 0, -1] = silent_band
    return model


def best_hz() -> float:
    return float(neuron().wav2spec.frequencies_hz[BAND])


#: Probe -> (call at a frequency, what it gives, its value at the neuron's own frequency).
INDICES: dict[str, tuple[Callable[[Any, float], Any], str, float]] = {
    "two tones": (lambda m, hz: two_tone_responses(m, hz, [FAR_HZ, 700.0]), "suppression", 0.0),
    "two tones, peak": (
        lambda m, hz: two_tone_responses(m, hz, [FAR_HZ, 700.0], measure="peak"), "suppression", 0.0,
    ),
    "a quiet probe": (
        lambda m, hz: two_tone_responses(m, hz, [FAR_HZ, 700.0], probe_level_db=-60.0, second_level_db=-70.0),
        "suppression", 0.0,
    ),
    "masking": (lambda m, hz: forward_masking(m, hz, [20.0, 80.0]), "recovery", 1.0),
    "oddball": (
        lambda m, hz: oddball_responses(m, hz, apart_octaves=0.1, n_tones=20), "common_ssa_index", 0.0,
    ),
    "steps of level": (
        lambda m, hz: level_step_responses(m, tone_hz=hz, hold_ms=100.0), "adaptation_index", 0.0,
    ),
    "modulation": (lambda m, hz: am_responses(m, [4.0, 8.0], carrier_hz=hz), "vector_strength", 0.5),
    "noise": (
        lambda m, hz: noise_responses(m, [-60.0, -30.0], band_hz=(hz / 1.2, hz * 1.2)), "monotonicity", 1.0,
    ),
    "sweeps": (
        lambda m, hz: sweep_responses(m, [10.0], range_hz=(hz / 1.5, hz * 1.5)), "direction_index", 0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("probe", "index", "value"), INDICES.values(), ids=INDICES)
def test_indices_far_from_a_neuron_are_unknown_and_at_it_right(
    probe: Callable[[Any, float], Any], index: str, value: float
) -> None:
    assert np.isnan(getattr(probe(neuron(), FAR_HZ), index)).all()
    np.testing.assert_allclose(getattr(probe(neuron(), best_hz()), index), value, atol=0.03)
    # the unit of the rates is of no consequence
    np.testing.assert_allclose(getattr(probe(neuron(1e-6), best_hz()), index), value, atol=0.03)


def test_the_best_response_need_not_be_among_the_sounds() -> None:
    """All tones given lie far away: compared with each other, leakage would look like an answer."""
    far = two_tone_responses(neuron(), FAR_HZ, [650.0, 700.0])
    assert float(far.second_alone.max()) < 1e-3 * float(
        two_tone_responses(neuron(), best_hz(), [650.0]).probe_alone[0]
    )
    assert np.isnan(far.suppression).all()
    assert np.isnan(far.most_khz).all()


def test_a_neuron_that_sounds_suppress_has_no_indices_of_excitation() -> None:
    """It rises by leakage (or not at all): a thousandth of its fall."""
    model = neuron(-1.0, silent_band=1e-4)
    heard = noise_responses(model, [-60.0, -30.0])
    assert np.isnan([heard.monotonicity, heard.best_level_db, heard.onset_index, heard.offset_index]).all()
    clicks = click_responses(model)
    assert np.isnan(clicks.rebound).all()
    assert np.isfinite(click_responses(neuron()).rebound).all()
