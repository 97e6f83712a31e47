"""Resampling by the exact ratio, against signals whose samples at the new rate are known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from deepSTRF.dsp import resample_exact
from deepSTRF.dsp.resample import rate_ratio  # inner: the ratio that resample_exact takes

FS = 48828.125


def sine(hz: float, fs: float, n: int, dtype=torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.sin(2 * np.pi * hz / fs * np.arange(n))).to(dtype)


@pytest.mark.parametrize(
    ("hz", "tolerance"), [(1000.0, 1e-8), (10_000.0, 1e-6), (15_000.0, 5e-6), (20_000.0, 2e-4)]
)
@pytest.mark.parametrize("end", ["start", "five seconds later"])
def test_every_sample_lies_where_the_exact_ratio_puts_it(hz, tolerance, end):
    out = resample_exact(sine(hz, FS, 244_140), FS, 48000)
    assert out.shape == (240_000,)
    here = slice(3000, 6000) if end == "start" else slice(-6000, -3000)
    error = (out - sine(hz, 48000, 240_000))[here].abs().max()
    assert float(error) < tolerance


def test_the_rate_in_the_file_header_would_be_wrong():
    """48828 instead of 48828.125 shifts the last second by 12 us: two radians per 1 / (2 pi 13 kHz)."""
    right, wrong = (resample_exact(sine(15_000.0, FS, 244_140), rate, 48000, 239_760) for rate in (FS, 48828))
    assert float((right - wrong)[-6000:-3000].abs().max()) > 0.5


def test_a_chirp():
    seconds, n = 1.0, 48_000
    old, new = np.arange(48_829) / FS, np.arange(n) / 48000
    phase = lambda t: 2 * np.pi * (200 * t + (15_000 - 200) / 2 / seconds * t**2)  # noqa: E731
    out = resample_exact(torch.from_numpy(np.sin(phase(old))), FS, 48000, n)
    assert np.abs(out.numpy() - np.sin(phase(new)))[2000:-2000].max() < 1e-4


def test_a_click_rings_for_less_than_3_ms_before_itself():
    click = torch.zeros(20_000, dtype=torch.float64)
    click[10_000] = 1.0
    out = resample_exact(click, FS, 48000)
    before = (10_000 / FS - torch.arange(len(out)) / 48000) * 1000
    energy = out.square()
    assert float(energy[before > 3.0].sum()) < 1e-20
    assert float(energy[before > 0.25].sum() / energy.sum()) < 0.003


def test_levels_are_kept_and_peaks_not_clipped():
    out = resample_exact(14.0 * sine(500.0, FS, 20_000, torch.float32), FS, 48000)
    assert out.dtype == torch.float32
    assert float(out[2000:-2000].abs().max()) == pytest.approx(14.0, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "length"), [(16_000, 80_000), (24_000, 120_000), (96_000, 479_999), (44_100, 220_500)]
)
def test_lengths(rate, length):
    assert resample_exact(torch.zeros(244_140), FS, rate).shape == (length,)


def test_lengths_on_request():
    tone = sine(1000.0, FS, 5000)
    assert torch.equal(resample_exact(tone, FS, 48000, 100), resample_exact(tone, FS, 48000)[:100])
    longer = resample_exact(tone, FS, 48000, 6000)
    assert (longer[4916 + 64 :] == 0).all()
    assert torch.equal(longer[:4915], resample_exact(tone, FS, 48000)[:4915])


def test_batches_dtypes_and_equal_rates():
    batch = torch.stack([sine(500.0, FS, 4000), sine(900.0, FS, 4000)])[:, None]
    out = resample_exact(batch, FS, 16_000)
    assert out.shape[:2] == (2, 1)
    assert torch.equal(out[1, 0], resample_exact(batch[1, 0], FS, 16_000))
    assert resample_exact(batch.half(), FS, 16_000).dtype == torch.float16
    same = resample_exact(batch, FS, FS)
    assert torch.equal(same, batch)
    assert same.data_ptr() != batch.data_ptr()


def test_ratios_are_exact():
    assert rate_ratio(FS, 48000) == Fraction(3072, 3125)
    assert rate_ratio(Fraction(50_000_000, 2048), 48000) == Fraction(6144, 3125)
    assert rate_ratio(44_100, 48_000) == Fraction(160, 147)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.zeros(5, dtype=torch.int16), FS, 48000), TypeError, "int16"),
        (([0.0], FS, 48000), TypeError, "list"),
        ((torch.zeros(0), FS, 48000), ValueError, "no samples"),
        ((torch.tensor(1.0), FS, 48000), ValueError, "no samples"),
        ((torch.zeros(5), 0, 48000), ValueError, "rate_in"),
        ((torch.zeros(5), FS, float("inf")), ValueError, "rate_out"),
        ((torch.zeros(5), 44100.1, 48000), ValueError, "no exact small terms"),
        ((torch.zeros(5), FS, 48000, 0), ValueError, "n_out"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        resample_exact(*arguments)
