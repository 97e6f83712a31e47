"""Decoders against mTRFpy, explicit designs, missing responses and single trials."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_decoder
from deepSTRF.crossval import cross_validate, score_null
from deepSTRF.datasets import single_trials
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models import NeuralModel
from deepSTRF.models.wav2spec import make_wav2spec

N, BANDS, DT = 4, 3, 10.0


def single(values):
    """Values as datasets store them."""
    return values.astype(np.float32).astype(float)


def recording(lengths=(80, 60, 90, 70, 75), repeats=2, missing=(), seed=0, features=False):
    """Bands that neurons follow after 1 to 3 bins."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(N, BANDS, 3))
    stims, responses = [], []
    for clip, length in enumerate(lengths):
        stim = single(rng.normal(size=(BANDS, length)))
        padded = np.pad(stim, ((0, 0), (3, 0)))
        drive = sum(mix[:, :, k] @ padded[:, 2 - k : 2 - k + length] for k in range(3))
        entry = list(single(drive[:, None] + rng.normal(size=(N, repeats, length))))
        for where, neuron in missing:
            if where == clip:
                entry[neuron] = None
        stims.append({"low": stim[:2], "edge": stim[2:]} if features else stim)
        responses.append(entry)
    return AudioNeuralDataset.from_arrays(stims, responses, DT, response_kind="trace", check_alignment=False)


def arrays(ds):
    """Responses (T, N) and stimuli (T, F) per clip."""
    responses = [ds.response_block(c).double().mean(1).T.numpy() for c in range(len(ds))]
    return responses, [np.asarray(s[0], dtype=float).T for s in ds.stims]


def late(response, delays):
    """Design (T, N L): responses some bins later, zeros after the end."""
    columns = []
    for delay in delays:
        moved = np.zeros_like(response)
        if delay >= 0:
            moved[: max(len(response) - delay, 0)] = response[delay:]
        else:
            moved[-delay:] = response[:delay]
        columns.append(moved)
    return np.stack(columns, axis=2).reshape(len(response), -1)


@pytest.mark.parametrize("ends", [(0, 50), (-20, 40), (20, 60)])
def test_agrees_with_mtrf(ends):
    mtrf = pytest.importorskip("mtrf", reason="mTRFpy is a development extra")
    ds, r = recording(), 0.4
    train, test = ds.select(clips=[0, 1, 2]), ds.select(clips=[3, 4])
    responses, stimuli = arrays(train)
    theirs = mtrf.TRF(direction=-1)
    theirs.train(stimuli, responses, 100, ends[0] / 1000, ends[1] / 1000, r)
    fit = fit_decoder(train, lags_ms=ends, lambdas=r * 100 * len(train), standardize=False)
    # theirs (n, lag, F), the longest delay first
    expected = theirs.weights.transpose(2, 0, 1)[..., ::-1] / 100
    np.testing.assert_allclose(fit.weight[:, 0], expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.bias, np.ravel(theirs.bias) / 100, rtol=0, atol=1e-8)
    predicted = theirs.predict(stimulus=None, response=arrays(test)[0])
    predicted = predicted[0] if isinstance(predicted, tuple) else predicted
    for ours, one in zip(fit.predict(test), predicted, strict=True):
        np.testing.assert_allclose(ours.T, one, rtol=0, atol=1e-8)


@pytest.mark.parametrize("lags_ms", [(0, 30), (0, 900)])  # more bins than weights, and fewer
def test_is_ridge_on_an_explicit_design(lags_ms):
    ds = recording()
    fit = fit_decoder(ds, lags_ms=lags_ms, lambdas=5.0)
    responses, stimuli = arrays(ds)
    whole = np.concatenate(responses)
    mean, std = whole.mean(0), whole.std(0)
    x = np.concatenate([late((one - mean) / std, range(lags_ms[1] // 10 + 1)) for one in responses])
    y = np.concatenate(stimuli)
    xc, yc = x - x.mean(0), y - y.mean(0)
    w = np.linalg.solve(xc.T @ xc + 5.0 * np.eye(x.shape[1]), xc.T @ yc)
    np.testing.assert_allclose(fit.weight[:, 0].flatten(1).T, w, atol=1e-8)
    np.testing.assert_allclose(fit.bias, y.mean(0) - x.mean(0) @ w, atol=1e-8)
    found = torch.cat(fit.predict(ds), dim=1)
    np.testing.assert_allclose(found.T, x @ w + fit.bias.numpy(), atol=1e-8)
    np.testing.assert_allclose(fit.drive_variance, found.var(1, correction=0), rtol=1e-6)


def test_score_is_the_correlation_and_chooses_the_penalty():
    ds = recording()
    train, validation, test = (ds.select(clips=c) for c in ([0, 1, 2], [3], [4]))
    grid = [0.1, 100.0, 1e5]
    fit = fit_decoder(train, validation, lags_ms=(0, 30), lambdas=grid)
    for row, lam in enumerate(grid):
        one = fit_decoder(train, lags_ms=(0, 30), lambdas=lam)
        expected = [
            np.corrcoef(one.predict(validation)[0][f], validation.stims[0][0, f])[0, 1] for f in range(BANDS)
        ]
        np.testing.assert_allclose(fit.scores["cc"][row], expected, atol=1e-9)
        np.testing.assert_allclose(one.score(validation), expected, atol=1e-9)
    assert fit.lambdas.tolist() == [grid[int(k)] for k in fit.scores["cc"].argmax(0)]
    assert (fit.score(test) > 0.5).all()
    shared = fit_decoder(train, validation, lags_ms=(0, 30), lambdas=grid, per_row=False)
    assert len(set(shared.lambdas.tolist())) == 1


def test_sound_is_in_the_responses_after_it():
    ds = recording()
    parts = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    after, before = (fit_decoder(*parts, lags_ms=lags) for lags in ((0, 50), (-60, -10)))
    assert after.score(ds.select(clips=[4])).min() > 0.5
    assert before.score(ds.select(clips=[4])).abs().max() < 0.4


def test_the_model_is_the_decoder(tmp_path):
    ds = recording()
    fit = fit_decoder(ds, lags_ms=(0, 40), lambdas=10.0)
    x = ds.response_block(1).mean(1)[None, None].float()
    torch.testing.assert_close(fit.model(x)[0, :, 0].double(), fit.predict(ds)[1], rtol=1e-4, atol=1e-4)
    again = NeuralModel.from_pretrained(fit.model.save_pretrained(tmp_path))
    assert torch.equal(again(x), fit.model(x))
    assert fit.model.lookahead_frames == 4


def test_a_group_by_places_or_names_and_any_order_of_neurons():
    ds = recording()
    some = fit_decoder(ds, lags_ms=(0, 30), lambdas=10.0, neurons=[2, 0])
    named = fit_decoder(ds, lags_ms=(0, 30), lambdas=10.0, neurons=["neuron002", "neuron000"])
    assert some.neurons == named.neurons == ("neuron002", "neuron000")
    assert torch.equal(some.weight, named.weight)
    view = fit_decoder(ds.select(neurons=[2, 0]), lags_ms=(0, 30), lambdas=10.0)
    torch.testing.assert_close(view.weight, some.weight)
    for ours, one in zip(some.predict(ds.select(neurons=[3, 0, 2])), some.predict(ds), strict=True):
        assert torch.equal(ours, one)
    with pytest.raises(ValueError, match=r"1 neurons of the decoder are not in this recording: neuron002"):
        some.predict(ds.select(neurons=[0, 1]))


def test_features_of_the_stimulus():
    ds = recording(features=True)
    whole = fit_decoder(ds, lags_ms=(0, 30), lambdas=10.0)
    edge = fit_decoder(ds, lags_ms=(0, 30), lambdas=10.0, target="edge")
    torch.testing.assert_close(edge.weight[0], whole.weight[2])
    assert edge.score(ds).shape == (1,)
    with pytest.raises(KeyError, match="the recording has low, edge"):
        fit_decoder(ds, lambdas=1.0, target="pitch")
    with pytest.raises(KeyError, match="the recording names none"):
        fit_decoder(recording(), lambdas=1.0, target="pitch")


def test_missing_neurons_are_named_or_left_out():
    ds = recording(missing=[(1, 2)])
    with pytest.raises(ValueError, match=r"clip 1: 1 of 4 neurons lack responses: neuron002.*missing='skip'"):
        fit_decoder(ds, lags_ms=(0, 30), lambdas=10.0)
    fit = fit_decoder(ds, lags_ms=(0, 30), lambdas=10.0, missing="skip", standardize=False)
    without = fit_decoder(
        recording().select(clips=[0, 2, 3, 4]), lags_ms=(0, 30), lambdas=10.0, standardize=False
    )
    torch.testing.assert_close(fit.weight, without.weight)
    assert bool(fit.predict(ds)[1].isnan().all())
    assert bool(torch.isfinite(fit.predict(ds)[0]).all())
    assert bool(torch.isfinite(fit.score(ds)).all())


def test_missing_bins_take_the_windows_that_hold_them():
    whole = recording()
    responses = [whole.response_block(c).double().numpy() for c in range(5)]
    responses[0][1, :, 20:23] = np.nan
    ds = AudioNeuralDataset.from_arrays(
        [np.asarray(s) for s in whole.stims], responses, DT, response_kind="trace", check_alignment=False
    )
    fit = fit_decoder(ds, lags_ms=(10, 30), lambdas=10.0, missing="skip")
    lost = fit.predict(ds)[0].isnan().all(0).nonzero().flatten().tolist()
    assert lost == list(range(17, 22))  # bins whose responses 1 to 3 bins later are not all there
    x, y = arrays(ds)
    mean, std = np.nanmean(np.concatenate(x), 0), np.nanstd(np.concatenate(x), 0)
    designs = [late(np.nan_to_num((one - mean) / std), [1, 2, 3]) for one in x]
    keep = np.concatenate([~np.isin(np.arange(len(one)), lost if c == 0 else []) for c, one in enumerate(x)])
    design, target = np.concatenate(designs)[keep], np.concatenate(y)[keep]
    xc, yc = design - design.mean(0), target - target.mean(0)
    w = np.linalg.solve(xc.T @ xc + 10.0 * np.eye(xc.shape[1]), xc.T @ yc)
    np.testing.assert_allclose(fit.weight[:, 0].flatten(1).T, w, atol=1e-8)


def test_single_trials():
    trials = single_trials(recording(), history=None)
    assert len(trials) == 10
    train, test = trials.select(clips=range(6)), trials.select(clips=range(6, 10))
    fit = fit_decoder(train, lags_ms=(0, 30), lambdas=10.0)
    assert [tuple(one.shape) for one in fit.predict(test)] == [(3, 70), (3, 70), (3, 75), (3, 75)]
    assert (fit.score(test) > 0.4).all()


def test_bands_of_a_front_end():
    rng = np.random.default_rng(0)
    sounds = [rng.normal(size=16000) for _ in range(3)]
    responses = [np.abs(s.reshape(100, 160)).mean(1)[None, None].repeat(2, 0) for s in sounds]
    ds = AudioNeuralDataset.from_arrays(
        sounds, responses, DT, audio_fs=16000, response_kind="trace", check_alignment=False
    )
    mel = make_wav2spec("mel", audio_fs=16000, dt_ms=DT, n_filters=8)
    fit = fit_decoder(
        ds.select(clips=[0, 1]), ds.select(clips=[2]), lags_ms=(0, 20), wav2spec=mel, neurons=0, warmup_ms=30
    )
    assert fit.weight.shape == (8, 1, 1, 3)
    assert fit.score(ds).shape == (8,)


def test_scale_of_responses_and_sound_does_not_matter():
    ds = recording()
    fit = fit_decoder(ds.select(clips=[0, 1, 2]), ds.select(clips=[3, 4]), lags_ms=(0, 30))
    other = AudioNeuralDataset.from_arrays(
        [np.asarray(s) * 8.0 for s in ds.stims],
        [ds.response_block(c).numpy() * 1024.0 for c in range(5)], DT,
        response_kind="trace", check_alignment=False,
    )  # fmt: skip
    again = fit_decoder(other.select(clips=[0, 1, 2]), other.select(clips=[3, 4]), lags_ms=(0, 30))
    torch.testing.assert_close(again.weight, 8.0 * fit.weight, rtol=1e-9, atol=1e-9)


def test_a_neuron_that_never_fires():
    ds = recording()
    responses = [ds.response_block(c).numpy().copy() for c in range(5)]
    for one in responses:
        one[1] = 0.0
    silent = AudioNeuralDataset.from_arrays(
        [np.asarray(s) for s in ds.stims], responses, DT, response_kind="trace", check_alignment=False
    )
    fit = fit_decoder(silent, lags_ms=(0, 30), lambdas=10.0)
    assert fit.weight[:, 0, 1].abs().max() < 1e-12
    assert torch.isfinite(fit.weight).all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lambdas": None}, ValueError, "without validation clips nothing can choose"),
        ({"lambdas": -1.0}, ValueError, "above 0"),
        ({"lags_ms": (0, 33)}, ValueError, "no whole bins"),
        ({"neurons": [9]}, IndexError, "there is no neuron 9: the recording has 4"),
        ({"neurons": []}, ValueError, "at least one neuron"),
        ({"neurons": [0, 0]}, ValueError, "names a neuron twice"),
        ({"neurons": ["nobody"]}, KeyError, "no neuron 'nobody'"),
        ({"missing": "ignore"}, ValueError, "missing must be one of 'error', 'skip'"),
        ({"warmup_ms": 1e6}, ValueError, "no bin has both"),
    ],
)
def test_bad_arguments(options, error, text):
    with pytest.raises(error, match=text):
        fit_decoder(recording(), **{"lags_ms": (0, 30), "lambdas": 1.0, **options})


@pytest.mark.parametrize("length", [80, 81, 99])
def test_a_reconstruction_that_never_varies_has_no_correlation(length):
    """Its mean differs from its value by rounding: no correlation of 1e-16, but NaN."""
    rng = np.random.default_rng(0)
    stims = [np.concatenate([np.full((1, length), 0.1), rng.normal(size=(1, length))]) for _ in range(4)]
    stims[3][0] = rng.normal(size=length)  # varies in the validation clip alone
    responses = [rng.normal(size=(2, 1, length)) for _ in range(4)]
    ds = AudioNeuralDataset.from_arrays(stims, responses, DT, response_kind="trace", check_alignment=False)
    fit = fit_decoder(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), lags_ms=(0, 30), lambdas=[1.0, 1e3])
    assert bool(fit.scores["cc"][:, 0].isnan().all())
    assert fit.unvalidated == ("row 0",)
    assert fit.score(ds.select(clips=[3])).isnan().tolist() == [True, False]


def test_folds_of_the_turned_recording_are_those_of_decoders():
    """The recipe of docs/linear-models.md: each clip as `fit_decoder` of the other clips reconstructs it."""
    ds = recording()
    responses, sounds = arrays(ds)
    turned = AudioNeuralDataset.from_arrays(
        [one.T for one in responses], [one.T[:, None] for one in sounds], DT,
        response_kind="trace", check_alignment=False,
        stim_meta=[{"source_sha256": ds.source_fingerprint(clip)} for clip in range(len(ds))],
    )  # fmt: skip
    options = {"lags_ms": (-50, 0), "lambdas": 20.0}
    cv = cross_validate("ridge", turned, options=options, n_bootstrap=0)
    for split in cv.folds:
        train = ds.select(clips=sorted({*split.train, *split.val}))
        fit = fit_decoder(train, lags_ms=(0, 50), lambdas=20.0)
        for clip in split.test:
            expected = fit.predict(ds.select(clips=[clip]))[0].numpy()
            np.testing.assert_allclose(cv.predictions[clip], expected, atol=1e-5 * np.abs(expected).max())
    assert score_null(cv.predictions, turned, score="cc", n_null=99).mean_p == 0.01
