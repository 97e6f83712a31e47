"""The level of sounds: integers, references, what front-ends expect, and the warning outside of it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import NeuralDataset, concat_neural_datasets
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import PCEN, WaveformFrontEnd, make_wav2spec
from deepSTRF.training import Fitter, make_loaders, score_model, validate_model

FS, HOP, DT = 16000, 80, 5.0


def sounds_of(seed=0, rms=0.1, n_clips=4, n_bins=200):
    rng = np.random.default_rng(seed)
    slow = 1.0 + 0.9 * np.sin(np.arange(n_bins * HOP) / 900)
    sounds = [rng.normal(size=n_bins * HOP) * slow for _ in range(n_clips)]
    counts = [rng.poisson(slow[::HOP], size=(2, 5, n_bins)) for _ in range(n_clips)]
    scale = rms / np.sqrt(np.mean(np.square(sounds)))
    return [scale * (1 + clip) / 2 * sound for clip, sound in enumerate(sounds)], counts


def recording(sounds, counts, **options):
    return AudioNeuralDataset.from_arrays(sounds, counts, DT, FS, check_alignment=False, **options)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda s: np.round(s * 32768).astype("int16"), lambda s: np.round(s * 32768) / 32768),
        (lambda s: np.round(s * 2**23).astype("int32") << 8, lambda s: np.round(s * 2**23) / 2**23),
        (lambda s: np.round(s * 32768 + 32768).astype("uint16"), lambda s: np.round(s * 32768) / 32768),
        (
            lambda s: torch.from_numpy(np.round(s * 32768).astype("int16")),
            lambda s: np.round(s * 32768) / 32768,
        ),
        (lambda s: 14.0 * s.astype("float32"), lambda s: 14.0 * s),  # floats are never scaled
    ],
)
def test_integers_are_samples_of_a_file_and_floats_stay(make, expected):
    sounds, counts = sounds_of(rms=0.03)
    ds = recording([make(sound) for sound in sounds], counts)
    for stim, sound in zip(ds.stims, sounds, strict=True):
        np.testing.assert_allclose(stim[0], expected(sound), atol=1e-7)
    assert (ds.level, ds.level_factor) == ("raw", 1.0)


def test_eight_bits_are_offset_binary_and_named():
    sounds, counts = sounds_of(rms=0.03)
    with pytest.warns(UserWarning, match="8 bits"):
        ds = recording([np.round(128 + sound * 127).astype("uint8") for sound in sounds], counts)
    np.testing.assert_allclose(ds.stims[0][0], np.round(sounds[0] * 127) / 128, atol=1e-7)


@pytest.mark.parametrize("gain", [1e-5, 0.1, 1.0, 3e4])
@pytest.mark.parametrize("level", ["rms", "peak"])
def test_one_factor_for_the_whole_recording(gain, level, tmp_path):
    sounds, counts = sounds_of()
    ds = recording([gain * sound for sound in sounds], counts, level=level)
    joined = np.concatenate(sounds)
    reference = np.sqrt(np.mean(joined**2)) if level == "rms" else np.abs(joined).max()
    for stim, sound in zip(ds.stims, sounds, strict=True):
        np.testing.assert_allclose(stim[0], sound / reference, atol=1e-6)
    assert ds.level_factor == pytest.approx(1 / (gain * reference), rel=1e-5)
    again = NeuralDataset.load(ds.select(clips=[2, 1]).save(tmp_path / "recording.npz"))
    halves = [ds.select(clips=[2]), ds.select(clips=[1])]
    for other in (ds.select(clips=[2, 1]), again, concat_neural_datasets(halves, names=["a", "b"])):
        assert (other.level, other.level_factor) == (level, ds.level_factor)
        assert torch.equal(other.stims[0], ds.stims[2])
    assert again.describe()["level"] == level
    with pytest.raises(ValueError, match="level mismatch"):
        ds + recording(sounds, counts)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"level": "loud"}, "level"),
        ({"level": "rms", "sounds": [np.zeros(400)]}, "silent"),
        ({"level": "pascal", "sounds": [np.ones(400, "int16")]}, "calibration"),
        ({"sounds": [np.ones(400, "int64")]}, "int64 is no sample format"),
        ({"sounds": [np.ones(400, bool)]}, "bool is no sample format"),
    ],
)
def test_levels_that_cannot_be(options, text):
    options = dict(options)
    sounds = options.pop("sounds", [np.ones(400)])
    with pytest.raises(ValueError, match=text):
        recording(sounds, [np.ones((1, 2, 5))], **options)
    with pytest.raises(ValueError, match="spectrograms"):
        AudioNeuralDataset.from_arrays([np.ones((3, 5))], [np.ones((1, 2, 5))], DT, level="rms")


CASES = [
    ("mel", {}, None),
    ("mel", {"compression": "log1p"}, None),
    ("gammatone", {}, None),
    ("gammatone", {"compression": "pcen"}, None),
    ("gammatonegram", {}, None),
    ("sincnet", {}, None),
    ("sincnet", {"envelope": True}, None),
    ("leaf", {}, None),
    ("mel", {"compression": "none"}, "pcen"),
]


@pytest.mark.parametrize(("kind", "options", "prefilter"), CASES)
@pytest.mark.parametrize("level", ["rms", "peak"])
def test_scores_do_not_depend_on_the_level_where_the_front_end_is_told(kind, options, prefilter, level):
    whole = SyntheticDataset(n_neurons=3, n_clips=8, n_repeats=6, return_waveform=True)
    blocks = [whole.response_block(clip).numpy() for clip in range(8)]
    scores = []
    for gain in (1.0, 0.1, 10.0):
        ds = recording([gain * stim[0].numpy() for stim in whole.stims], blocks, level=level)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = fit_ridge(
                ds.select(clips=range(5)), ds.select(clips=[5, 6]), n_lags=6, lambdas=[30.0, 300.0, 3000.0],
                wav2spec=make_wav2spec(kind, FS, DT, n_filters=12, **options),
                prefiltering=PCEN(12, DT) if prefilter else None, standardize=not prefilter,
            )  # fmt: skip
        scores.append(score_model(fit.model, ds.select(clips=[7]), n_bootstrap=0).columns["cc"])
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("mel", {}, (0.01, math.inf)),
        ("mel", {"log_floor": 1e-6}, (1e-4, math.inf)),
        ("mel", {"magnitude": "power"}, (0.01, math.inf)),
        ("mel", {"compression": "cubic"}, None),
        ("gammatone", {}, (0.01, math.inf)),
        ("gammatone", {"compression": "pcen"}, (0.01, math.inf)),
        ("gammatone", {"compression": "none"}, None),
        ("gammatonegram", {}, (0.01, 100.0)),
        ("sincnet", {}, (0.01, 100.0)),
        ("sincnet", {"activation": "none"}, None),
        ("leaf", {}, (0.01, math.inf)),
        ("leaf", {"compression": "log"}, (0.01, math.inf)),
    ],
)
def test_front_ends_state_the_level_they_expect(kind, options, expected):
    front_end = make_wav2spec(kind, FS, DT, n_filters=8, **options)
    assert front_end.expected_level == (expected and pytest.approx(expected))
    assert WaveformFrontEnd(FS, 8, DT).expected_level is None  # a front-end of the user's own


@pytest.mark.parametrize("kind", ["mel", "gammatone", "sincnet", "leaf", "gammatonegram"])
@pytest.mark.parametrize("rms", [1e-5, 2e-4, 5e-3])
def test_quiet_recordings_are_named_by_validation_and_fits(kind, rms):
    ds = recording(*sounds_of(rms=rms))
    train, validation = ds.select(clips=[0, 1]), ds.select(clips=[2])
    model = Linear(16, 5, 2, wav2spec=make_wav2spec(kind, FS, DT, n_filters=16))
    with pytest.warns(UserWarning, match=r"rms of the sounds is .*made for a level of 0.01.*level='rms'"):
        validate_model(model, ds)
    with pytest.warns(UserWarning, match="made for a level") as said:
        Fitter(model, *make_loaders(train, validation, seed=0), max_epochs=2, progress=False).fit()
    assert len(said) == 1
    with pytest.warns(UserWarning, match="made for a level") as said:
        fit_ridge(train, validation, n_lags=3, wav2spec=make_wav2spec(kind, FS, DT, n_filters=16))
    assert len(said) == 1


def test_a_gain_control_behind_a_linear_front_end_has_a_range_too():
    front_end = make_wav2spec("mel", FS, DT, n_filters=16, compression="none")
    model = Linear(16, 5, 2, wav2spec=front_end, prefiltering=PCEN(16, DT))
    with pytest.warns(UserWarning, match="made for a level of 0.01 or more"):
        validate_model(model, recording(*sounds_of(rms=1e-3)))
    plain = Linear(16, 5, 2, wav2spec=front_end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_model(plain, recording(*sounds_of(rms=1e-3)))


def test_samples_of_a_file_as_floats_are_too_loud_for_a_logarithm_of_one_plus():
    ds = recording(*sounds_of(rms=3000.0))
    with pytest.warns(UserWarning, match=r"rms of the sounds is .*0.01 to 100"):
        validate_model(Linear(16, 5, 2, wav2spec=make_wav2spec("sincnet", FS, DT, n_filters=16)), ds)


def test_a_third_on_the_floor_is_named_with_its_share_and_silence_is_not():
    sounds, counts = sounds_of(rms=0.2)
    for sound in sounds:
        sound[:8000] = 0.0  # half of every clip: silence belongs on the floor
    model = Linear(16, 5, 2, wav2spec=make_wav2spec("gammatone", FS, DT, n_filters=16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_model(model, recording(sounds, counts))
    tone = 0.1 * np.sin(2 * np.pi * 4000.0 * np.arange(16000) / FS)
    with pytest.warns(UserWarning, match=r"\d\d% of the spectrogram .* lies on its floor.*bands in which"):
        validate_model(model, recording([tone] * 2, counts[:2]))
    # a floor that was raised is a choice
    raised = Linear(16, 5, 2, wav2spec=make_wav2spec("mel", FS, DT, n_filters=16, log_floor=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_model(raised, recording(sounds, counts))


def test_pascal_is_named_in_decibels():
    ds = recording(*sounds_of(rms=1e-3), level="pascal")
    rms = float(torch.cat([stim[0, 0:] for stim in ds.stims], dim=-1).double().square().mean().sqrt())
    level = round(20 * math.log10(rms / 20e-6))
    with pytest.warns(UserWarning, match=rf"Pa \({level} dB SPL\)"):
        validate_model(Linear(16, 5, 2, wav2spec=make_wav2spec("mel", FS, DT, n_filters=16)), ds)


@pytest.mark.ns1
def test_no_false_alarm_on_the_recordings_here(ns1_dir):
    from deepSTRF.datasets.audio import NS1Dataset
    from deepSTRF.training.validate import check_level  # inner: without the rest of the trial

    sets = [SyntheticDataset(return_waveform=True), NS1Dataset(path=ns1_dir, return_waveform=True)]
    for ds in sets:
        for kind in ("mel", "gammatone", "sincnet", "leaf", "gammatonegram"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check_level(
                    Linear(34, 5, 2, wav2spec=make_wav2spec(kind, ds.audio_fs, ds.dt, n_filters=34)), ds
                )
