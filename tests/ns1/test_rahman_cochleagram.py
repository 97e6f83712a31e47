"""The cochleagram against a plain transcription of the authors' recipe, its frames, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import get_window

from deepSTRF.dsp import rahman_cochleagram, rahman_frequencies, resample_exact

FS = 48828.125
NOISE = torch.from_numpy(np.random.default_rng(0).standard_normal(20_000))


def transcription(audio: np.ndarray, fs: float) -> np.ndarray:
    """The MATLAB code, loop by loop: spectrogram(x, 2L, L, 8L), log triangles with unit sum, ln."""
    length = round(0.005 * fs)
    window, n_fft = 2 * length, 8 * length
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    frames = (len(audio) - length) // length
    hz = np.arange(n_fft // 2 + 1) * fs / n_fft
    step = (math.log10(500 * 2**5.5) - math.log10(500)) / 33
    bank = np.zeros((34, len(hz)))
    for band in range(34):
        for k in range(1, len(hz)):
            bank[band, k] = max(0.0, 1.0 - abs((math.log10(hz[k]) - math.log10(500)) / step - band))
        bank[band] /= bank[band].sum()
    out = np.zeros((34, frames))
    for k in range(frames):
        out[:, k] = bank @ np.abs(np.fft.rfft(audio[k * length : k * length + window] * hamming, n_fft))
    return np.log(np.maximum(out, 1e-4))


@pytest.mark.parametrize("fs", [FS, 48000.0])
def test_it_is_the_authors_recipe(fs):
    expected = transcription(NOISE.numpy(), fs)
    np.testing.assert_allclose(rahman_cochleagram(NOISE, fs).numpy(), expected, rtol=1e-10, atol=1e-10)


def test_a_clip_of_the_recording_has_999_frames():
    for n_samples in (244_140, 244_141):
        assert rahman_cochleagram(torch.zeros(n_samples), FS).shape == (34, 999)


def test_centres_are_sixths_of_octaves():
    expected = 500.0 * 2.0 ** (np.arange(34) / 6)
    np.testing.assert_allclose(rahman_frequencies().numpy(), expected, rtol=1e-12)


def test_native_frames_look_one_bin_ahead_and_causal_ones_do_not():
    click = torch.zeros(4880)
    click[10 * 244 + 100] = 1.0  # inside bin 10
    floor = math.log(1e-4)
    native = (rahman_cochleagram(click, FS) > floor).any(0).nonzero().flatten().tolist()
    causal = (rahman_cochleagram(click, FS, alignment="causal") > floor).any(0).nonzero().flatten().tolist()
    assert (native, causal) == ([9, 10], [10, 11])


def same_frames(one, other):
    """Equal but for rounding: FFTs of another number of frames may take another path on another processor."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # log amplitudes of size 1 to 10


def test_native_frame_k_is_causal_frame_k_plus_1():
    native, causal = rahman_cochleagram(NOISE, FS), rahman_cochleagram(NOISE, FS, alignment="causal")
    same_frames(native, causal[:, 1 : 1 + native.shape[1]])
    longer = torch.cat([NOISE, torch.full((5000,), 1e6)])
    same_frames(rahman_cochleagram(longer, FS, alignment="causal")[:, : causal.shape[1]], causal)


@pytest.mark.parametrize(
    ("dt_ms", "n_bins"), [(2.5, 1998), (10.0, 499), (4.0, 1248), (1.0, 4995), (25.0, 199)]
)
@pytest.mark.parametrize("alignment", ["native", "causal"])
def test_exact_frames_stay_on_the_bins_for_five_seconds(dt_ms, n_bins, alignment):
    clip = torch.zeros(244_140)
    last = n_bins - 1
    clip[round((last + 0.5) * dt_ms / 1000 * FS)] = 1.0  # a click in the middle of the last bin
    frames = rahman_cochleagram(clip, FS, dt_ms, grid="exact", alignment=alignment, n_bins=n_bins)
    assert frames.shape == (34, n_bins)
    heard = (frames > math.log(1e-4)).any(0).nonzero().flatten().tolist()
    assert heard == ([last - 1, last] if alignment == "native" else [last])


def test_the_authors_frames_drift_as_documented():
    """At the end of a clip the authors' frames start 2.87 ms early."""
    clip = torch.zeros(244_140)
    clip[round(990.3 * 0.005 * FS)] = (
        1.0  # in the first half of bin 990: their frame 990 has it as bin 990.87
    )
    heard = (rahman_cochleagram(clip, FS) > math.log(1e-4)).any(0).nonzero().flatten().tolist()
    assert heard == [989, 990]
    clip = clip.roll(round(0.3 * 0.005 * FS))
    assert (rahman_cochleagram(clip, FS) > math.log(1e-4)).any(0).nonzero().flatten().tolist() == [990, 991]


def test_levels_are_natural_logarithms_with_a_floor():
    quiet, loud = rahman_cochleagram(NOISE, FS), rahman_cochleagram(10 * NOISE, FS)
    torch.testing.assert_close(loud, quiet + math.log(10.0))
    assert (rahman_cochleagram(torch.zeros(2000), FS) == torch.tensor(math.log(1e-4))).all()
    assert (rahman_cochleagram(torch.zeros(2000), FS, log_floor=1e-2) == torch.tensor(math.log(1e-2))).all()


def test_batches_and_dtypes():
    batch = torch.stack([NOISE, -2 * NOISE]).reshape(2, 1, -1)
    out = rahman_cochleagram(batch, FS)
    assert out.shape == (2, 1, 34, 80)
    same_frames(out[0, 0], rahman_cochleagram(NOISE, FS))
    single = rahman_cochleagram(NOISE.float(), FS)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), out[0, 0], rtol=1e-5, atol=1e-5)


def test_blocks_of_frames_change_nothing(monkeypatch):
    whole = rahman_cochleagram(NOISE, FS)
    monkeypatch.setattr("deepSTRF.dsp.cochleagram.FRAMES_PER_BLOCK", 7)
    torch.testing.assert_close(rahman_cochleagram(NOISE, FS), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alignment": "x"}, "alignment is one of"),
        ({"grid": "x"}, "grid is one of"),
        ({"dt_ms": 0.0}, "dt_ms must be positive"),
        ({"dt_ms": math.nan}, "dt_ms must be positive"),
        ({"dt_ms": 500.0}, "shorter than one window"),
        ({"n_bins": 0}, "n_bins"),
        ({"f_max": 30_000.0}, "Nyquist frequency"),
        ({"f_min": 20.0, "f_max": 200.0}, "has no FFT bin"),
        ({"n_filters": 1}, "at least 2"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        rahman_cochleagram(NOISE, FS, **options)


def test_bad_audio():
    with pytest.raises(TypeError, match="floating point"):
        rahman_cochleagram(torch.zeros(1000, dtype=torch.int16), FS)


def test_the_window_is_the_symmetric_one():
    np.testing.assert_allclose(
        torch.hamming_window(488, periodic=False, dtype=torch.float64).numpy(),
        get_window("hamming", 488, fftbins=False),
        atol=1e-12,
    )


@pytest.mark.ns1
def test_correlations_on_the_real_sounds(load_ns1):
    """spec frontends.md 1.2: 0.945 at lag 0 and 0.982 one bin later, against the causal form at 48 kHz."""
    native, waves = load_ns1(), load_ns1(return_waveform=True)
    same, later = [], []
    for spec, wave in zip(native.stims, waves.stims, strict=True):
        causal = rahman_cochleagram(wave[0], 48000, alignment="causal", n_bins=999)
        same.append(np.corrcoef(spec[0].ravel(), causal.ravel())[0, 1])
        later.append(np.corrcoef(spec[0, :, :-1].ravel(), causal[:, 1:].ravel())[0, 1])
    assert np.mean(same) == pytest.approx(0.945, abs=0.001)
    assert np.mean(later) == pytest.approx(0.982, abs=0.001)
    decibels = 10 / math.log(10) * min(float(spec.min()) for spec in native.stims)
    assert decibels == pytest.approx(-30.9, abs=0.05)


def test_resampling_and_cochleagram_commute_below_the_old_limit():
    tone = torch.sin(2 * math.pi * 3000.0 / FS * torch.arange(40_000, dtype=torch.float64))
    there = rahman_cochleagram(resample_exact(tone, FS, 48000), 48000.0, grid="exact")[:, 2:-2]
    here = rahman_cochleagram(tone, FS, grid="exact")[:, 2 : 2 + there.shape[1]]
    band = int((rahman_frequencies() - 3000.0).abs().argmin())
    assert float((there[band, :100] - here[band, :100]).abs().max()) < 0.02
