"""Hop, frames, windows and triangles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.dsp import samples_per_bin
from deepSTRF.dsp.filters import (  # inner: parts of the front-ends
    WINDOWS,
    causal_frames,
    symmetric_window,
    triangle_corners,
    triangular_filterbank,
)


@pytest.mark.parametrize(
    ("audio_fs", "dt_ms", "hop"),
    [
        (48000, 5.0, 240),
        (16000, 5, 80),
        (48828.125, 4.99712, 244),
        (44100, 10.0, 441),
        (44000, 5.0, 220),
        (8000, 0.125, 1),
    ],
)
def test_whole_hops(audio_fs: float, dt_ms: float, hop: int) -> None:
    result = samples_per_bin(audio_fs, dt_ms)
    assert result == hop
    assert type(result) is int


@pytest.mark.parametrize(
    ("audio_fs", "dt_ms", "message"),
    [
        (44100, 5.0, r"220\.5 samples.*multiple of 200 Hz, e\.g\. 44000 or 44200 Hz.*10 ms"),
        (100, 5.0, r"0\.5 samples.*200 Hz"),
        (48828.125, 5.0, r"244\.140625 samples"),
        (0, 5.0, "audio_fs"),
        (48000, -1.0, "bin width"),
        (float("nan"), 5.0, "audio_fs"),
    ],
)
def test_broken_hops(audio_fs: float, dt_ms: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samples_per_bin(audio_fs, dt_ms)


def test_frames_end_where_their_bin_ends() -> None:
    x = torch.arange(1.0, 13.0).reshape(1, 12)
    frames = causal_frames(x, frame_length=6, hop=3)
    assert frames.shape == (1, 4, 6)
    for t in range(4):
        assert frames[0, t, -1] == 3 * (t + 1)
    assert frames[0, 0].tolist() == [0, 0, 0, 1, 2, 3]
    torch.testing.assert_close(causal_frames(torch.nn.functional.pad(x, (3, 0)), 6, 3, padded=True), frames)
    with pytest.raises(ValueError, match="frame_length"):
        causal_frames(x, 2, 3)


@pytest.mark.parametrize("name", sorted(WINDOWS))
@pytest.mark.parametrize("length", [1, 2, 5, 480])
def test_windows_equal_numpy(name: str, length: int) -> None:
    ours = symmetric_window(name, length)
    reference = {"hann": np.hanning, "hamming": np.hamming, "boxcar": np.ones}[name](length)
    np.testing.assert_allclose(ours.numpy(), reference, atol=1e-14)
    assert ours.dtype == torch.float64


def test_illegal_windows() -> None:
    with pytest.raises(ValueError, match="'hann'"):
        symmetric_window("kaiser", 5)
    with pytest.raises(ValueError, match="at least 1"):
        symmetric_window("hann", 0)


def test_mel_bank_agrees_with_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    corners = triangle_corners(20, 100.0, 7000.0, "slaney", "feet")
    bins = torch.arange(257, dtype=torch.float64) * (16000 / 512)
    ours = triangular_filterbank(corners, bins, norm="slaney").T.numpy()
    theirs = librosa.filters.mel(sr=16000, n_fft=512, n_mels=20, fmin=100.0, fmax=7000.0, dtype=np.float64)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_triangles_on_a_log_axis_are_the_documented_bank() -> None:
    """max(0, 1 - |(log10 f - log10 fmin) / d - i|), each row divided by its sum (spec: the authors' bank)."""
    n, f_min, f_max = 34, 500.0, 500.0 * 2**5.5
    bins = np.arange(977) * 48828.125 / 1952
    step = (np.log10(f_max) - np.log10(f_min)) / (n - 1)
    position = np.full_like(bins, -np.inf)
    position[1:] = (np.log10(bins[1:]) - np.log10(f_min)) / step
    reference = np.stack([np.maximum(0, 1 - np.abs(position - i)) for i in range(n)], axis=1)
    corners = triangle_corners(n, f_min, f_max, "log", "centres")
    ours = triangular_filterbank(corners, torch.from_numpy(bins), axis="log", norm="sum").numpy()
    np.testing.assert_allclose(ours, reference / reference.sum(0), atol=1e-10)


def test_empty_filters_are_zeros_not_nan() -> None:
    corners = triangle_corners(40, 100.0, 200.0, "htk", "feet")
    bins = torch.arange(5, dtype=torch.float64) * 100.0
    for norm in (None, "sum", "slaney"):
        bank = triangular_filterbank(corners, bins, norm=norm)
        assert bool(torch.isfinite(bank).all())
        assert bool((bank.sum(0) == 0).any())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0.0, 8000.0, "log", "feet"), "ascend"),
        ((10, 900.0, 100.0, "htk", "feet"), "ascend"),
        ((10, 100.0, 900.0, "htk", "middle"), "edges"),
        ((1, 100.0, 900.0, "htk", "centres"), "at least 2"),
        ((10, 100.0, 900.0, "hz", "feet"), "frequency scale"),
    ],
)
def test_illegal_corners(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triangle_corners(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm"):
        triangular_filterbank(triangle_corners(3, 1.0, 2.0, "htk", "feet"), torch.ones(3), norm="max")
