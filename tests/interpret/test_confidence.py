"""Bands of linear STRFs, durations and sounds: against formulas written here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from scipy import stats

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import (
    WaveformField,
    rf_duration_ms,
    sonify_spectrogram,
    sonify_strf,
    strf_confidence,
    waveform_fields,
    write_wav,
)
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram

FS = 16000


def clips_of_one_bin(values, missing=()):
    """A recording whose 'STRF' below is a mean over clips: (clip, neuron) values, one bin each."""
    stims = [torch.ones(1, 2) for _ in values]
    responses = [
        [None if (clip, n) in missing else [[value, value]] for n, value in enumerate(row)]
        for clip, row in enumerate(values)
    ]
    return NeuralDataset.from_arrays(stims, responses, dt_ms=5.0)


def mean_over_clips(dataset):
    blocks = torch.stack([dataset.response_block(clip)[:, 0, 0] for clip in range(len(dataset))])
    return blocks.nanmean(0).nan_to_num(0.0)[:, None, None]


VALUES = np.array([[1, 5], [2, 1], [6, 2], [3, 9], [8, 4]])


def test_jackknife_of_a_mean_is_the_standard_error_of_the_mean():
    found = strf_confidence(clips_of_one_bin(VALUES), mean_over_clips)
    expected = VALUES.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.standard_error[:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.estimate[:, 0, 0], VALUES.mean(0), rtol=1e-6)
    reach = stats.t.ppf(0.975, 4) * expected
    np.testing.assert_allclose(found.low[:, 0, 0], VALUES.mean(0) - reach, rtol=1e-6)
    np.testing.assert_allclose(found.high[:, 0, 0], VALUES.mean(0) + reach, rtol=1e-6)
    assert found.n_fits == 6
    assert found.n_clips.tolist() == [5, 5]
    np.testing.assert_array_equal(found.significant, found.low > 0)


def test_clips_that_were_not_heard_do_not_count():
    missing = {(0, 1), (3, 1)}
    found = strf_confidence(clips_of_one_bin(VALUES, missing), mean_over_clips, neurons=[-1])
    kept = VALUES[[1, 2, 4], 1]
    assert found.n_clips.tolist() == [3]
    assert found.neurons == [1]
    np.testing.assert_allclose(found.standard_error.item(), kept.std(ddof=1) / np.sqrt(3), rtol=1e-6)
    alone = strf_confidence(
        clips_of_one_bin(VALUES, {(c, 1) for c in range(4)}),
        mean_over_clips,
        method="bootstrap",
        n_bootstrap=9,
    )
    assert np.isnan(alone.standard_error[1]).all()
    assert np.isfinite(alone.standard_error[0]).all()
    assert not alone.significant[1].any()


def test_bootstrap_is_the_spread_of_drawn_means():
    found = strf_confidence(clips_of_one_bin(VALUES), mean_over_clips, method="bootstrap", n_bootstrap=400)
    np.testing.assert_allclose(found.standard_error[:, 0, 0], VALUES.std(0, ddof=1) / np.sqrt(5), rtol=0.12)
    rng = np.random.default_rng(0)
    means = np.stack([VALUES[rng.integers(5, size=5)].mean(0) for _ in range(400)])
    tail = 100 * stats.norm.cdf(
        np.sqrt(5 / 4) * stats.t.ppf(0.025, 4)
    )  # Hesterberg 2015, expanded percentile
    np.testing.assert_allclose(found.low[:, 0, 0], np.percentile(means, tail, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.high[:, 0, 0], np.percentile(means, 100 - tail, axis=0), rtol=1e-6)


@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
@pytest.mark.parametrize("n_clips", [6, 14])
def test_a_band_of_95_percent_holds_the_truth_in_95_of_100_cases(method, n_clips):
    """A thousand neurons whose truth is 0: of plain percentiles 87 and 91 % would."""
    values = np.random.default_rng(n_clips).normal(size=(n_clips, 1000))
    found = strf_confidence(clips_of_one_bin(values), mean_over_clips, method=method, n_bootstrap=500)
    assert 1 - found.significant.mean() == pytest.approx(0.95, abs=0.03)
    spread = np.sqrt((found.standard_error**2).mean()) * np.sqrt(n_clips)
    assert spread == pytest.approx(1.0, abs=0.04)


def test_ridge_bands_hold_the_ridge_estimate_of_new_data():
    def record(seed):
        return SyntheticDataset(n_neurons=1, n_clips=6, n_repeats=4, clip_seconds=0.6, seed=seed)

    fit = lambda ds: fit_ridge(ds, n_lags=3, lambdas=300.0, standardize=False)  # noqa: E731
    found = strf_confidence(record(0), fit)
    np.testing.assert_allclose(found.estimate, fit(record(0)).model.STRF_gradmap()[:, 0].numpy(), atol=1e-7)
    assert (found.standard_error > 0).all()
    assert found.low.shape == (1, 24, 3)
    assert np.abs(found.z).max() > 2


def test_illegal_requests():
    ds = clips_of_one_bin(VALUES)
    with pytest.raises(TypeError, match="fit_ridge"):
        strf_confidence(ds, "ridge")
    with pytest.raises(ValueError, match="method"):
        strf_confidence(ds, mean_over_clips, method="delete")
    with pytest.raises(ValueError, match="level"):
        strf_confidence(ds, mean_over_clips, level=95)
    with pytest.raises(TypeError, match="level must be a number"):
        strf_confidence(ds, mean_over_clips, level="95")
    with pytest.raises(TypeError, match="NeuralDataset"):
        strf_confidence([1, 2, 3], mean_over_clips)
    with pytest.raises(ValueError, match="at least 2: one draw"):
        strf_confidence(ds, mean_over_clips, method="bootstrap", n_bootstrap=1)
    with pytest.raises(ValueError, match="at least 2 clips"):
        strf_confidence(ds.select(clips=[0]), mean_over_clips)
    with pytest.raises(ValueError, match=r"\(2, F, T\)"):
        strf_confidence(ds, lambda _: np.zeros((3, 4)))
    with pytest.raises(IndexError, match="neuron 7"):
        strf_confidence(ds, mean_over_clips, neurons=7)


# ---------------------------------------------------------------------- durations


def test_duration_of_gradient_maps_counts_whole_frames():
    maps = torch.zeros(3, 1, 4, 6)
    maps[0, 0, 2, -2], maps[0, 0, 1, -1] = -1.0, 1.0
    maps[1, 0, 0, 0], maps[1, 0, 0, -1] = 0.005, 1.0
    assert rf_duration_ms(maps, dt_ms=5.0).tolist() == [10.0, 5.0, 0.0]
    assert rf_duration_ms(maps, dt_ms=5.0, mass=1.0).tolist() == [10.0, 30.0, 0.0]
    assert rf_duration_ms(maps[:, 0], dt_ms=5.0).tolist() == [10.0, 5.0, 0.0]
    assert float(rf_duration_ms(maps[0, 0], dt_ms=5.0)) == 10.0
    for wrong in ({}, {"audio_fs": FS, "dt_ms": 5.0}, {"dt_ms": 0.0}):
        with pytest.raises(ValueError, match="ms"):
            rf_duration_ms(maps, **wrong)
    with pytest.raises(ValueError, match="F, T"):
        rf_duration_ms(np.ones(4), dt_ms=5.0)
    for field, rate in ((np.full((2, 3), np.nan), {"dt_ms": 5.0}), ([0.0, np.nan], {"audio_fs": FS})):
        with pytest.raises(ValueError, match="not finite"):
            rf_duration_ms(field, **rate)


def test_a_linear_model_remembers_its_window():
    model = Linear(6, 4, 2, norm="none")
    assert rf_duration_ms(model.STRF_gradmap(9), dt_ms=5.0, mass=1.0).tolist() == [20.0, 20.0]


# ---------------------------------------------------------------------- sounds


def test_fields_of_listed_neurons_become_playable_files(tmp_path):
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=6)
    model = Linear(6, 4, 3, wav2spec=mel).eval()
    fields = waveform_fields(model, 0.1 * torch.randn(1, 8000), [-1, 0])
    assert [field.neuron for field in fields] == [2, 0]
    file = fields[0].write_wav(tmp_path / "rf.wav", silence_ms=100.0)
    samples, rate = soundfile.read(file)
    assert rate == FS
    assert len(samples) == len(fields[0].gradmap) + 2 * 1600
    inner = samples[1600:-1600]
    assert np.abs(inner).max() == pytest.approx(0.5, abs=1e-4)
    assert np.corrcoef(inner, fields[0].gradmap)[0, 1] > 0.9999
    assert not samples[:1600].any()


def test_silence_and_nonsense(tmp_path):
    assert not soundfile.read(write_wav(tmp_path / "a.wav", np.zeros(9), FS))[0].any()
    for wrong in ({"sound": np.zeros((2, 3))}, {"sound": [np.nan]}, {"peak": 2.0}, {"silence_ms": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            write_wav(**{"path": tmp_path / "b.wav", "sound": np.ones(3), "audio_fs": FS, **wrong})
    for rate in (0.3, 1e9):
        with pytest.raises(ValueError, match="between 1000"):
            write_wav(tmp_path / "b.wav", np.ones(3), rate)
    with pytest.raises(ValueError, match=r"\.wav"):
        write_wav(tmp_path / "b.mp3", np.ones(3), FS)
    for place in (tmp_path / "no" / "b.wav", tmp_path):
        with pytest.raises(FileNotFoundError, match="folder"):
            write_wav(place, np.ones(3), FS)
    with pytest.raises(ValueError, match="logarithms"):
        sonify_spectrogram(np.full((2, 4), 800.0), [500.0, 1000.0], 5.0, FS, scale="ln")
    with pytest.raises(ValueError, match="ascending"):
        sonify_spectrogram(np.ones((2, 4)), [500.0, np.nan], 5.0, FS)
    field = WaveformField(0, np.ones(3), np.ones(3), 16000.0, 1.0, 0)
    assert field.write_wav(tmp_path / "c.wav").is_file()


@pytest.mark.parametrize("scale", ["amplitude", "ln"])
def test_a_sonified_pattern_has_its_bands_and_its_times(scale):
    hertz = 500.0 * 2.0 ** np.arange(4)
    pattern = np.zeros((4, 60))
    pattern[2, 20:40] = 0.3
    sound = sonify_spectrogram(
        np.log(pattern + 1e-9) if scale == "ln" else pattern, hertz, 5.0, FS, scale=scale
    )
    assert sound.shape == (4800,)
    inside = sound[1700:3100]
    assert np.sqrt((inside**2).mean()) == pytest.approx(0.3, rel=0.25)
    assert np.abs(sound[:1500]).max() < 1e-6
    power = np.abs(np.fft.rfft(inside)) ** 2
    heard = np.fft.rfftfreq(inside.size, 1 / FS)
    assert power[(heard > 1400) & (heard < 2850)].sum() > 0.98 * power.sum()


def test_suppression_is_heard_by_itself():
    strf = np.zeros((2, 20))
    strf[0, 5:10], strf[1, 10:15] = 2.0, -1.0
    up = sonify_strf(strf, [500.0, 2000.0], 5.0, FS)
    down = sonify_strf(strf, [500.0, 2000.0], 5.0, FS, sign="suppressive")
    assert np.abs(up[1100:]).max() < 1e-9
    assert np.abs(down[:700]).max() < 1e-9
    assert up.std() > down.std() > 0
    with pytest.raises(ValueError, match="ascending"):
        sonify_strf(strf, [2000.0, 500.0], 5.0, FS)
    assert SimpleNamespace(x=sonify_strf(np.zeros((2, 4)), [500.0, 9000.0], 5.0, FS)).x.std() == 0
