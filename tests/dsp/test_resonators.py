"""Ringing filters from carried states, against convolution with their impulse response."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from deepSTRF.dsp import gammatone_taps
from deepSTRF.dsp.gammatone import (  # inner: parts of the front-ends
    gammatone_length,
    gammatone_resonators,
    slaney_centers,
    slaney_impulse_responses,
    slaney_resonators,
)
from deepSTRF.dsp.resonators import (  # inner: parts of the front-ends
    ResonatorBank,
    filter_resonators,
    pooled_resonators,
    resonator_bank,
)

FS = 8000.0
CENTERS = torch.tensor([120.0, 700.0, 3900.0], dtype=torch.float64)


def convolved(sound: np.ndarray, taps: torch.Tensor) -> np.ndarray:
    """(F, samples)."""
    return np.stack([np.convolve(sound, row)[: len(sound)] for row in taps.numpy()])


def filtered(sound: torch.Tensor, bank: ResonatorBank, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    """(B, F, samples) of sound (B, samples), cut at some samples."""
    n_channels, n_states, _ = bank.ringing.shape
    state, parts = sound.new_zeros(len(sound), n_channels, n_states), []
    for start, stop in itertools.pairwise((0, *cuts, sound.shape[-1])):
        outputs, state = filter_resonators(sound[:, start:stop], bank.to(sound.dtype), state)
        assert outputs.shape[:3] == (n_channels, len(sound), (stop - start) // outputs.shape[-1])
        parts.append(outputs.flatten(2).transpose(0, 1))
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("order", [1, 2, 4, 5])
@pytest.mark.parametrize("hop", [1, 7, 40])
@pytest.mark.parametrize("n_bins", [1, 3, 40])
def test_agrees_with_convolution(order: int, hop: int, n_bins: int) -> None:
    sound = torch.randn(2, n_bins * hop, dtype=torch.float64)
    bank = resonator_bank(*gammatone_resonators(CENTERS, FS, 1500, order), hop)
    taps = gammatone_taps(CENTERS, FS, 1600, order).real
    out = filtered(sound, bank)
    for clip in range(2):
        np.testing.assert_allclose(out[clip].numpy(), convolved(sound[clip].numpy(), taps), atol=1e-10)
    single = filtered(sound.float(), bank)
    assert single.dtype == torch.float32
    assert float((single - out).abs().max()) <= 2e-6 * float(out.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_cut_gives_the_same_numbers(dtype: torch.dtype) -> None:
    bank = resonator_bank(*gammatone_resonators(CENTERS, FS, 1500), 40)
    sound = torch.randn(3, 40 * 400, dtype=dtype)
    whole = filtered(sound, bank)
    bound = 1e-6 if dtype == torch.float32 else 1e-14
    for cuts in ((40,), tuple(range(40, 4000, 40)), (1200, 1240, 8000)):
        assert float((filtered(sound, bank, cuts) - whole).abs().max()) < bound * float(whole.abs().max())


def test_any_polynomial_times_an_oscillation() -> None:
    pole = torch.tensor([0.9 * np.exp(0.3j), 0.8 + 0j])
    level = torch.randn(2, 3, dtype=torch.complex128)
    t = torch.arange(300)
    age = -t * pole.abs().log().unsqueeze(-1)
    taps = (sum(level[:, k, None] * age**k for k in range(3)) * pole.unsqueeze(-1) ** t).real
    sound = torch.randn(1, 300, dtype=torch.float64)
    np.testing.assert_allclose(
        filtered(sound, resonator_bank(pole, level, 20))[0].numpy(),
        convolved(sound[0].numpy(), taps),
        atol=1e-10,
    )


@pytest.mark.parametrize("fs", [16000.0, 48000.0])
def test_slaneys_cascade_is_one(fs: float) -> None:
    centers = slaney_centers(300.0, fs / 2, 5)
    n_taps = max(gammatone_length(centers, fs, tail=1e-12))
    pole, level = slaney_resonators(centers, fs, n_taps)
    t = torch.arange(n_taps)
    age = -t * pole.abs().log().unsqueeze(-1)
    taps = (sum(level[:, k, None] * age**k for k in range(4)) * torch.exp(pole.log().unsqueeze(-1) * t)).real
    expected = slaney_impulse_responses(centers, fs, n_taps)
    torch.testing.assert_close(taps, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_bins", [1, 2, 30])
def test_the_future_is_invisible_in_every_bin(n_bins: int) -> None:
    bank = resonator_bank(*gammatone_resonators(CENTERS, FS, 1500), 40)
    audio = torch.randn(1, n_bins * 40, dtype=torch.float64)
    for last in {0, n_bins // 2, n_bins - 1}:
        end = (last + 1) * 40
        probe = audio.clone().requires_grad_()
        out = filtered(probe, bank)
        (gradient,) = torch.autograd.grad(out[..., :end].sum(), probe)
        assert bool((gradient[:, end:] == 0).all())
        assert bool((gradient[:, : end - 1] != 0).all())
        changed = audio.clone()
        changed[:, end:] = 1e200
        assert torch.equal(filtered(changed, bank)[..., :end], out[..., :end])


def test_gradients_to_the_sound_and_the_states() -> None:
    bank = resonator_bank(torch.tensor([0.6 + 0.3j]), torch.ones(1, 2) + 0j, 4)
    for n_bins in (1, 12):
        inputs = torch.randn(1, n_bins * 4, dtype=torch.float64), torch.randn(1, 1, 4, dtype=torch.float64)
        inputs = tuple(value.requires_grad_() for value in inputs)
        assert torch.autograd.gradcheck(lambda x, s: filter_resonators(x, bank, s), inputs)


@pytest.mark.parametrize("detector", ["halfwave", "square"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("n_bins", [1, 2, 100])
def test_pooling_weighs_samples_by_their_age(detector: str, flat: bool, n_bins: int) -> None:
    hop, n_pooled = 20, 3
    bank = resonator_bank(*gammatone_resonators(CENTERS, FS, 1500), hop)
    windows = torch.rand(3, 1 if flat else hop, n_pooled, dtype=torch.float64)
    sound = torch.randn(2, n_bins * hop, dtype=torch.float64)
    silence = torch.zeros(2, 3, 8, dtype=torch.float64)
    pooled, _ = pooled_resonators(sound, bank, windows, silence, detector)
    assert pooled.shape == (2, 3, n_bins + n_pooled - 1)
    out = filtered(sound, bank).numpy()
    level = np.maximum(out, 0) if detector == "halfwave" else out**2
    by_age = windows.expand(3, hop, n_pooled).flip(1).transpose(1, 2).reshape(3, -1).numpy()
    for clip, channel in np.ndindex(2, 3):
        smooth = np.convolve(level[clip, channel], by_age[channel])
        # frame t: the window that ends with its last sample
        np.testing.assert_allclose(
            pooled[clip, channel], smooth[hop - 1 :: hop][: pooled.shape[-1]], atol=1e-12
        )


def test_silence_ends_without_subnormal_numbers() -> None:
    bank = resonator_bank(*gammatone_resonators(CENTERS, FS, 1500), 40).to(torch.float32)
    state = torch.zeros(1, 3, 8)
    _, state = filter_resonators(torch.randn(1, 40), bank, state)
    for _ in range(200):
        out, state = filter_resonators(torch.zeros(1, 40), bank, state)
        assert bool(((state == 0) | (state.abs() > 1e-31)).all())
    assert not state.any()
    assert not out.any()
