"""Tikhonov STRFs against least squares on an augmented design, mTRFpy and ridge."""

from __future__ import annotations

import importlib
import weakref

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge, fit_tikhonov
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.training import score_model

BANDS, LAGS = 5, 4


def recording(features=None, seed=0, lengths=(70, 50, 90, 60)):
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(3, BANDS, LAGS))
    stims, responses = [], []
    for length in lengths:
        stim = rng.normal(size=(BANDS, length))
        drive = np.einsum("nfk,fkt->nt", field, shifted(stim))
        entry = drive[:, None] + rng.normal(size=(3, 2, length)) + 1.0
        entry[1, :, 5:9] = np.nan
        stims.append(stim if features is None else {name: stim[rows] for name, rows in features.items()})
        responses.append(entry)
    return AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=10.0, response_kind="trace", check_alignment=False
    )


def shifted(stim, n_lags=LAGS):
    """(F, L, T), newest frame last, zeros before the clip."""
    out = np.zeros((len(stim), n_lags, stim.shape[1]))
    for place in range(n_lags):
        lag = n_lags - 1 - place
        out[:, place, lag:] = stim[:, : stim.shape[1] - lag]
    return out


def augmented(ds, neuron, lam, in_time, in_bands, shrinkage=1.0, blocks=((0, BANDS),)):
    """Weights (F, L) and intercept by least squares with one row per penalised quantity."""
    x = [shifted(np.asarray(s[0], dtype=float)).reshape(BANDS * LAGS, -1).T for s in ds.stims]
    y = [ds.response_block(c)[neuron].double().nanmean(0).numpy() for c in range(len(ds))]
    x, y = np.concatenate(x), np.concatenate(y)
    keep = ~np.isnan(y)
    x, y = x[keep], y[keep]
    rows = [np.sqrt(lam * shrinkage) * np.eye(BANDS * LAGS)]
    place = np.arange(BANDS * LAGS).reshape(BANDS, LAGS)
    for weight, pairs in (
        (in_time, [(place[f, t], place[f, t + 1]) for f in range(BANDS) for t in range(LAGS - 1)]),
        (
            in_bands,
            [(place[f, t], place[f + 1, t]) for a, b in blocks for f in range(a, b - 1) for t in range(LAGS)],
        ),
    ):
        for a, b in pairs:
            row = np.zeros((1, BANDS * LAGS))
            row[0, a], row[0, b] = -np.sqrt(lam * weight), np.sqrt(lam * weight)
            rows.append(row)
    penalty = np.concatenate(rows)
    design = np.block([[x, np.ones((len(x), 1))], [penalty, np.zeros((len(penalty), 1))]])
    w = np.linalg.lstsq(design, np.concatenate([y, np.zeros(len(penalty))]), rcond=None)[0]
    return w[:-1].reshape(BANDS, LAGS), w[-1]


@pytest.mark.parametrize(
    ("in_time", "in_bands", "shrinkage"), [(3.0, 0.0, 1.0), (0.0, 7.0, 1.0), (2.0, 5.0, 0.1), (1.0, 1.0, 0.0)]
)
def test_is_least_squares_with_a_row_per_difference(in_time, in_bands, shrinkage):
    ds = recording()
    fit = fit_tikhonov(
        ds, n_lags=LAGS, lambdas=4.0, smooth_time=in_time, smooth_frequency=in_bands, shrinkage=shrinkage,
        standardize=False,
    )  # fmt: skip
    for neuron in range(3):
        w, b = augmented(ds, neuron, 4.0, in_time, in_bands, shrinkage)
        np.testing.assert_allclose(fit.weight[neuron, 0], w, atol=1e-9)
        assert fit.bias[neuron].item() == pytest.approx(b, abs=1e-9)


def test_agrees_with_mtrf():
    mtrf = pytest.importorskip("mtrf", reason="mTRFpy is a development extra")
    rng = np.random.default_rng(1)
    single = np.float32  # as datasets store them
    stimuli = [(rng.normal(size=(200, 1)).cumsum(0) * 0.1).astype(single).astype(float) for _ in range(3)]
    drives = [np.convolve(s[:, 0], [0.5, 1.0, 0.2])[:200, None] for s in stimuli]
    responses = [(d + rng.normal(size=(200, 1))).astype(single).astype(float) for d in drives]
    theirs = mtrf.TRF(direction=1, method="tikhonov")
    theirs.train(stimuli, responses, 100, 0.0, 0.06, 0.3)
    ds = AudioNeuralDataset.from_arrays(
        [s.T for s in stimuli], [r.T[:, None] for r in responses], 10.0, response_kind="trace",
        check_alignment=False,
    )  # fmt: skip
    n_lags = theirs.weights.shape[1]
    fit = fit_tikhonov(
        ds, n_lags=n_lags, lambdas=0.3 * 100 * 3, shrinkage=0.0, smooth_time=0.5, smooth_frequency=0.0,
        standardize=False,
    )  # fmt: skip
    np.testing.assert_allclose(fit.weight[0, 0, 0].flip(0), theirs.weights[0, :, 0] / 100, rtol=0, atol=1e-8)
    assert fit.bias[0].item() == pytest.approx(float(np.ravel(theirs.bias)[0]) / 100, abs=1e-8)


def test_without_differences_it_is_ridge():
    ds = recording()
    parts = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    ridge = fit_ridge(*parts, n_lags=LAGS)
    fit = fit_tikhonov(*parts, n_lags=LAGS, smooth_time=0, smooth_frequency=0)
    torch.testing.assert_close(fit.weight, ridge.weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(fit.lambdas, ridge.lambdas)
    torch.testing.assert_close(fit.scores["cc_norm"], ridge.scores["cc_norm"], rtol=0, atol=1e-9)


def test_differences_do_not_cross_features():
    rows = {"low": slice(0, 3), "high": slice(3, 5)}
    ds = recording(rows)
    fit = fit_tikhonov(
        ds, n_lags=LAGS, lambdas=4.0, smooth_time=1.0, smooth_frequency=50.0, standardize=False
    )
    w, _ = augmented(ds, 0, 4.0, 1.0, 50.0, blocks=((0, 3), (3, 5)))
    np.testing.assert_allclose(fit.weight[0, 0], w, atol=1e-9)


def test_every_combination_is_scored_and_the_best_taken():
    ds = recording()
    train, validation = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    options = {"lambdas": [1.0, 100.0], "smooth_time": [0.0, 4.0], "smooth_frequency": [2.0]}
    fit = fit_tikhonov(train, validation, n_lags=LAGS, **options)
    assert fit.choices.tolist() == [[1.0, 0.0, 2.0], [100.0, 0.0, 2.0], [1.0, 4.0, 2.0], [100.0, 4.0, 2.0]]
    for row, (lam, in_time, in_bands) in enumerate(fit.choices.tolist()):
        one = fit_tikhonov(train, n_lags=LAGS, lambdas=lam, smooth_time=in_time, smooth_frequency=in_bands)
        table = score_model(one.model, validation, n_bootstrap=0).columns
        np.testing.assert_allclose(fit.scores["cc_norm"][row], table["cc_norm"], atol=1e-5)
        for neuron in range(3):
            if int(fit.scores["cc_norm"][:, neuron].argmax()) == row:
                torch.testing.assert_close(fit.weight[neuron], one.weight[neuron])
                assert (fit.lambdas[neuron], fit.smooth_time[neuron]) == (lam, in_time)
    shared = fit_tikhonov(train, validation, n_lags=LAGS, per_neuron=False, **options)
    assert len(set(shared.lambdas.tolist())) == 1


def test_smoothness_helps_a_smooth_field():
    """A field smooth in time and frequency, little noisy data: the right prior predicts better than ridge."""
    rng = np.random.default_rng(3)
    t, f = np.meshgrid(np.arange(12), np.arange(16))
    field = np.exp(-(((t - 7) / 2.5) ** 2) - ((f - 8) / 3) ** 2)
    stims = [rng.normal(size=(16, 400)) for _ in range(4)]
    responses = [
        (np.einsum("fk,fkt->t", field, shifted(s, 12)) + 6 * rng.normal(size=(1, 2, 400))) for s in stims
    ]
    ds = AudioNeuralDataset.from_arrays(stims, responses, 5.0, response_kind="trace", check_alignment=False)
    parts = ds.select(clips=[0, 1]), ds.select(clips=[2, 3])
    smooth, plain = fit_tikhonov(*parts, n_lags=12), fit_ridge(*parts, n_lags=12)
    error = [float((one.weight[0, 0] - torch.tensor(field)).norm()) for one in (smooth, plain)]
    assert error[0] < 0.6 * error[1]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"smooth_time": -1.0}, ValueError, "smooth_time must be finite numbers of at least 0"),
        ({"smooth_frequency": []}, ValueError, "smooth_frequency must be finite numbers"),
        ({"smooth_time": "much"}, (TypeError, ValueError), "smooth_time"),
        ({"shrinkage": -1.0}, ValueError, "shrinkage"),
        ({"shrinkage": 0.0, "smooth_time": 0.0, "smooth_frequency": 0.0}, ValueError, "penalise nothing"),
        ({"smooth_time": [1.0, 2.0]}, ValueError, "without validation clips nothing can choose"),
        ({"lambdas": None}, ValueError, "without validation clips"),
        ({"lambdas": 0.0}, ValueError, "above 0"),
    ],
)
def test_bad_arguments(options, error, text):
    given = {"n_lags": LAGS, "lambdas": 1.0, "smooth_time": 1.0, "smooth_frequency": 1.0, **options}
    with pytest.raises(error, match=text):
        fit_tikhonov(recording(), **given)


def test_weights_that_nothing_determines():
    stims = [np.zeros((2, 40)) for _ in range(2)]
    responses = [np.random.default_rng(k).normal(size=(1, 1, 40)) for k in range(2)]
    ds = AudioNeuralDataset.from_arrays(stims, responses, 5.0, response_kind="trace", check_alignment=False)
    with pytest.raises(ValueError, match="give shrinkage above 0"):
        fit_tikhonov(ds, n_lags=3, lambdas=1.0, shrinkage=0.0, smooth_time=1.0, smooth_frequency=1.0)


@pytest.mark.parametrize("solver", ["tikhonov", "evidence"])
def test_matrices_of_neurons_with_bins_of_their_own_are_not_held_together(monkeypatch, solver):
    """As many matrices as neurons are 30 GB at 2,000 neurons of 1,360 weights."""
    rng = np.random.default_rng(0)
    stims = [rng.normal(size=(BANDS, 60)) for _ in range(3)]
    responses = [rng.normal(size=(8, 1, 60)) for _ in stims]
    for neuron in range(8):
        responses[0][neuron, :, neuron : neuron + 3] = np.nan
    ds = AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=10.0, response_kind="trace", check_alignment=False
    )
    module = importlib.import_module(f"deepSTRF.baselines.{solver}")
    real, made, most = module.lagged_gram, [], 0

    def watched(*args, **kwargs):
        nonlocal most
        most = max(most, sum(one() is not None for one in made))
        found = real(*args, **kwargs)
        made.append(weakref.ref(found[0].untyped_storage()))
        return found

    monkeypatch.setattr(module, "lagged_gram", watched)
    fit = getattr(module, f"fit_{solver}")(ds.select(clips=[0, 1]), ds.select(clips=[2]), n_lags=LAGS)
    assert len(made) >= 8
    assert most <= 1
    assert bool(torch.isfinite(fit.weight).all())
