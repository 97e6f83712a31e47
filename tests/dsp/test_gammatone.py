"""Gammatone filters against scipy and against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import signal

from deepSTRF.dsp import gammatone_taps, recursive_gammatone
from deepSTRF.dsp.gammatone import (  # inner: parts of the front-ends
    gammatone_bandwidth,
    gammatone_length,
    slaney_centers,
    slaney_impulse_responses,
)

FS = 48000
CENTERS = torch.tensor([60.0, 500.0, 1842.0, 5653.0, 22627.0], dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 4, 5])
def test_envelope_peaks_where_theory_says(order: int) -> None:
    taps = gammatone_taps(CENTERS, FS, 6000, order)
    expected = (order - 1) / (2 * math.pi * gammatone_bandwidth(CENTERS)) * FS
    assert bool(((taps.abs().argmax(-1) - expected).abs() <= 0.5 + 1e-9).all())


def test_documented_click_latencies() -> None:
    delays = gammatone_taps(CENTERS[1:], FS, 3000).abs().argmax(-1) / FS * 1000
    np.testing.assert_allclose(delays.numpy(), [5.96, 2.10, 0.74, 0.19], atol=0.02)


def test_unit_peak_gain() -> None:
    for center in CENTERS:
        taps = gammatone_taps(center[None], FS, 6000).real.numpy()[0]
        gain = np.abs(np.fft.rfft(taps, 2**20)).max()
        assert gain == pytest.approx(1.0, abs=1e-5)


def test_shape_is_that_of_scipy() -> None:
    for center in (500.0, 2000.0, 8000.0):
        reference, _ = signal.gammatone(center, "fir", numtaps=700, fs=FS)
        ours = gammatone_taps(torch.tensor([center]), FS, 700).real.numpy()[0]
        correlation = np.corrcoef(reference, ours)[0, 1]
        assert correlation > 0.9999


@pytest.mark.parametrize(("order", "tail"), [(4, 1e-8), (4, 1e-4), (2, 1e-6)])
def test_length_keeps_the_promised_energy(order: int, tail: float) -> None:
    lengths = gammatone_length(CENTERS[:4], FS, order, tail=tail)
    for center, length in zip(CENTERS[:4], lengths, strict=True):
        power = gammatone_taps(center[None], FS, 4 * length, order)[0].abs().square()
        assert float(power[length:].sum() / power.sum()) == pytest.approx(tail, rel=0.1)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_recursive_form_is_exact(order: int) -> None:
    x = torch.randn(2, 1, 900, dtype=torch.float64)
    center = torch.tensor([120.0, 2000.0], dtype=torch.float64)
    filtered, _ = recursive_gammatone(x, center, 8000.0, order)
    taps = gammatone_taps(center, 8000.0, 6000, order)
    for clip in range(2):
        for band in range(2):
            expected = np.convolve(x[clip, 0].numpy(), taps[band].numpy())[:900]
            # the peak gain of an order 1 filter, whose spectrum is pointed, is read off to 1e-6 only
            atol = 1e-6 if order == 1 else 1e-11
            np.testing.assert_allclose(filtered[clip, band].numpy(), expected, atol=atol)


def test_recursive_form_streams() -> None:
    x = torch.randn(1, 1, 500, dtype=torch.float64)
    whole, _ = recursive_gammatone(x, CENTERS[1:3], FS)
    state, pieces = None, []
    for chunk in x.split([1, 2, 197, 300], -1):
        piece, state = recursive_gammatone(chunk, CENTERS[1:3], FS, state=state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=0, atol=1e-13)
    single, _ = recursive_gammatone(x.float(), CENTERS[1:3], FS)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(single.to(torch.complex128), whole, rtol=0, atol=1e-5)


def scipy_cascade(center: float, fs: float, x: np.ndarray) -> np.ndarray:
    """Slaney's four second-order sections with scipy in float64, from the coefficients of the report."""
    period = 1 / fs
    decay = 1.019 * 2 * np.pi * (center / 9.26449 + 24.7)
    angle = 2 * np.pi * center * period
    e = np.exp(-decay * period)
    plus, minus = np.sqrt(3 + 2**1.5), np.sqrt(3 - 2**1.5)
    factors = [np.cos(angle) + zero * np.sin(angle) for zero in (plus, -plus, minus, -minus)]
    v, g = np.exp(2j * angle), np.exp(1j * angle - decay * period)
    gain = np.abs(np.prod([v - g * k for k in factors]) * (period / e / (-e + 1 + v * (1 - 1 / e))) ** 4)
    for factor in factors:
        x = signal.lfilter([period, -period * e * factor, 0], [1, -2 * np.cos(angle) * e, e**2], x)
    return x / gain


@pytest.mark.parametrize("fs", [16000.0, 48000.0])
def test_slaney_cascade(fs: float) -> None:
    centers = slaney_centers(300.0, fs / 2, 8)
    x = np.random.default_rng(0).standard_normal(3000)
    for center, length in zip(centers.tolist(), gammatone_length(centers, fs, tail=1e-12), strict=True):
        taps = slaney_impulse_responses(torch.tensor([center], dtype=torch.float64), fs, length)[0].numpy()
        expected = scipy_cascade(center, fs, x)
        error = np.abs(np.convolve(x, taps)[:3000] - expected).max() / np.abs(expected).max()
        assert error < 1e-5


def test_slaney_centers() -> None:
    corner = 9.26449 * 24.7
    centers = slaney_centers(1000.0, 8000.0, 50)
    assert centers[0].item() == pytest.approx(1000.0)
    assert bool((centers.diff() > 0).all())
    ratio = (centers[1:] + corner) / (centers[:-1] + corner)
    assert ((8000.0 + corner) / (centers[-1] + corner)).item() == pytest.approx(ratio[0].item())
    torch.testing.assert_close(ratio, ratio[0].expand(49))
