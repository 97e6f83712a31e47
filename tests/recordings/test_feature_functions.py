"""Features of sounds against plain loops: envelope, onsets, impulses, spectrograms of the front-ends."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepSTRF.datasets import envelope, onsets, spectrogram, word_onsets
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models.wav2spec import Gammatonegram


def rms_loop(sound: npt.NDArray[Any], fs: Fraction, bin_s: Fraction, n_bins: int) -> list[float]:
    """Root mean square per bin, a sample counting for its share of the bin."""
    found = []
    for k in range(n_bins):
        low, high = k * bin_s * fs, (k + 1) * bin_s * fs
        total = 0.0
        for j in range(math.floor(low), min(math.ceil(high), len(sound))):
            share = min(Fraction(j + 1), high) - max(Fraction(j), low)
            total += float(share) * float(sound[j]) ** 2
        found.append(math.sqrt(total / float(high - low)))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("fs", "dt"),
    [
        (16000, Fraction(10)),
        (44100, Fraction(125, 8)),
        (24414.0625, Fraction(1000, 128)),
        (22050, Fraction(5)),
    ],
)
def test_envelope_is_the_rms_of_each_bin(fs: float, dt: Fraction, dtype: Any) -> None:
    sound = np.random.default_rng(1).normal(size=round(fs * 0.3)).astype(dtype)
    found = envelope(sound, fs, float(dt))
    n_bins = found.shape[1]
    assert n_bins * dt / 1000 <= Fraction(len(sound) + 1) / Fraction(fs) < (n_bins + 1) * dt / 1000 + 1
    rate = Fraction(fs)
    np.testing.assert_allclose(found[0], rms_loop(sound, rate, dt / 1000, n_bins), rtol=1e-10)


def test_envelope_reads_integers_by_their_full_scale_and_one_channel() -> None:
    loud = np.full(160, 16384, dtype=np.int16)
    assert envelope(loud, 16000, 10.0).tolist() == [[0.5]]
    assert envelope(torch.full((160,), 0.25), 16000, 10.0).tolist() == [[0.25]]
    with pytest.raises(ValueError, match="2 channels"):
        envelope(np.zeros((160, 2)), 16000, 10.0)
    with pytest.raises(ValueError, match="no numbers"):
        envelope(np.full(160, np.nan), 16000, 10.0)


def test_onsets_are_causal_increments() -> None:
    levels = np.abs(np.random.default_rng(2).normal(size=(3, 40)))
    expected = np.zeros_like(levels)
    for band in range(3):
        for t in range(40):
            before = levels[band, t - 1] if t else 0.0
            expected[band, t] = max(levels[band, t] - before, 0.0)
    np.testing.assert_array_equal(onsets(levels), expected)
    assert onsets(levels, before=None)[:, 0].tolist() == [0.0, 0.0, 0.0]
    changed = levels.copy()
    changed[:, 20:] = 1e6
    np.testing.assert_array_equal(onsets(changed)[:, :20], expected[:, :20])
    with pytest.raises(ValueError, match="\\(F, T\\)"):
        onsets(np.zeros((2, 3, 4)))


def test_word_onsets_are_impulses_on_exact_bins() -> None:
    times = np.array([0.07, 3.07 - 3.0, 0.5, 0.999])  # the second is 0.0699999...
    found = word_onsets(times, 100, 10.0)
    assert found.shape == (1, 100)
    assert {int(k): found[0, k] for k in np.flatnonzero(found)} == {7: 2.0, 50: 1.0, 99: 1.0}
    surprisal = word_onsets([0.0, 1 / 64], 4, 15.625, values=[2.5, 0.5])
    assert surprisal.tolist() == [[2.5, 0.5, 0.0, 0.0]]
    for wrong in ([1.0], [-0.01], [np.nan]):
        with pytest.raises(ValueError, match="times_s"):
            word_onsets(wrong, 100, 10.0)
    with pytest.raises(ValueError, match="values has 1"):
        word_onsets([0.1, 0.2], 100, 10.0, values=[1.0])


def test_spectrogram_is_that_of_the_front_end() -> None:
    sound = np.random.default_rng(3).normal(size=8000)
    found = spectrogram(sound, 16000, 10.0, n_filters=12, f_min=200.0)
    front_end = Gammatonegram(audio_fs=16000, n_filters=12, hop_ms=10.0, f_min=200.0)
    expected = front_end(torch.from_numpy(sound).float()[None, None])[0, 0]
    np.testing.assert_array_equal(found, expected.double().numpy())
    resampled = spectrogram(sound, 16000, 1000 / 128, n_filters=12, f_min=200.0, f_max=6000.0)
    assert resampled.shape == (12, 64)
    with pytest.raises((KeyError, ValueError), match="gammatonegram"):
        spectrogram(sound, 16000, 10.0, wav2spec="cochlea")
    with pytest.raises(TypeError, match="hop_ms"):
        spectrogram(sound, 16000, 10.0, hop_ms=5.0)


def test_from_trials_computes_features_of_its_sounds() -> None:
    rng = np.random.default_rng(4)
    sounds = {"a": rng.normal(size=8000), "b": rng.normal(size=4800)}
    trials = {"stimulus": ["a", "b", "a"], "onset": [1.0, 2.0, 3.0]}
    spikes = {"u1": np.arange(1.0, 4.0, 0.013)}
    given: dict[str, Any] = {"dt_ms": 10.0, "sounds_fs": 16000, "check_alignment": False}
    plain = AudioNeuralDataset.from_trials(sounds, trials, spikes, **given)
    options = {"n_filters": 9, "f_min": 200.0}
    ds = AudioNeuralDataset.from_trials(
        sounds, trials, spikes, features=("spectrogram", "onsets", "envelope"), spectrogram=options, **given
    )
    assert ds.features == {"spectrogram": 9, "onsets": 1, "envelope": 1}
    for clip, name in enumerate("ab"):
        level = envelope(sounds[name], 16000, 10.0)
        np.testing.assert_allclose(ds.stims[clip][0, 10:], level, rtol=1e-6)
        np.testing.assert_allclose(ds.stims[clip][0, 9:10], onsets(level), rtol=1e-6)
        bands = spectrogram(sounds[name], 16000, 10.0, **options)
        np.testing.assert_allclose(ds.stims[clip][0, :9], bands, rtol=1e-5, atol=1e-6)
        assert ds.source_fingerprint(clip) == plain.source_fingerprint(clip)
        assert torch.equal(ds.response_block(clip), plain.response_block(clip))
    wide = AudioNeuralDataset.from_trials(
        sounds, trials, spikes, features=("envelope",), pre_ms=50.0, post_ms=30.0, **given
    )
    assert wide.stims[0].shape == (1, 1, 58)
    np.testing.assert_array_equal(wide.stims[0][0, 0, :5], 0.0)
    np.testing.assert_array_equal(wide.stims[0][0, 0, 5:55], ds.stims[0][0, 10])
    with pytest.raises(ValueError, match="'spectrogram', 'envelope'"):
        AudioNeuralDataset.from_trials(sounds, trials, spikes, features=("pitch",), **given)
