"""Boosting against a loop over the data, and the support of sparse fields."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_boosting
from deepSTRF.datasets.audio import AudioNeuralDataset

BANDS, LAGS = 5, 4


def shifted(stim, n_lags=LAGS):
    """(F, L, T), newest frame last, zeros before the clip."""
    out = np.zeros((len(stim), n_lags, stim.shape[1]))
    for place in range(n_lags):
        lag = n_lags - 1 - place
        out[:, place, lag:] = stim[:, : stim.shape[1] - lag]
    return out


def sparse_recording(field, noise, n_clips=6, length=600, seed=0, mix=0.0):
    """Responses of neurons with fields (N, F, L) to noise, whose neighbouring bands share ``mix``."""
    rng = np.random.default_rng(seed)
    n_neurons, bands, n_lags = field.shape
    stims, responses = [], []
    for _ in range(n_clips):
        stim = rng.normal(size=(bands, length))
        stim[1:] += mix * stim[:-1]
        drive = np.einsum("nfk,fkt->nt", field, shifted(stim, n_lags))
        responses.append(drive[:, None] + noise * rng.normal(size=(n_neurons, 1, length)) + 3.0)
        stims.append(stim)
    return AudioNeuralDataset.from_arrays(stims, responses, 5.0, response_kind="trace", check_alignment=False)


def sparse_fields(n_neurons, n_nonzero, bands=20, n_lags=15, seed=0):
    rng = np.random.default_rng(seed)
    fields = np.zeros((n_neurons, bands * n_lags))
    for field in fields:
        places = rng.choice(bands * n_lags, n_nonzero, replace=False)
        field[places] = rng.choice([-1.0, 1.0], n_nonzero) * rng.uniform(0.5, 1.0, n_nonzero)
    return fields.reshape(n_neurons, bands, n_lags)


def by_the_data(train, validation, delta, patience, min_delta=None):
    """Boost one neuron by passes over the data: every step of every weight is tried, the best is taken."""
    smallest = delta if min_delta is None else min_delta

    def rows(ds):
        x = np.concatenate([shifted(np.asarray(s[0], float)).reshape(BANDS * LAGS, -1).T for s in ds.stims])
        y = np.concatenate([ds.response_block(c)[0].double().mean(0).numpy() for c in range(len(ds))])
        return x, y

    (x, y), (xv, yv) = rows(train), rows(validation)
    mx, sx, my, sy = x.mean(0), x.std(0), y.mean(), y.std()
    x, xv, y, yv = (x - mx) / sx, (xv - mx) / sx, (y - my) / sy, (yv - my) / sy
    w, best, lowest, since, taken, at = np.zeros(x.shape[1]), np.zeros(x.shape[1]), (yv**2).mean(), 0, 0, 0
    while since < patience:
        error = ((y - x @ w) ** 2).mean()
        tried = [
            (((y - x @ (w + s * np.eye(len(w))[p])) ** 2).mean(), p, s)
            for p in range(len(w))
            for s in (delta, -delta)
        ]
        found, p, s = min(tried)
        if found >= error:
            delta /= 2
            if delta < smallest:
                break
            continue
        w[p] += s
        taken += 1
        now = ((yv - xv @ w) ** 2).mean()
        since += 1
        if now < lowest:
            lowest, best, since, at = now, w.copy(), 0, taken
    return (best * sy / sx).reshape(BANDS, LAGS), at, lowest / (yv**2).mean()


@pytest.mark.parametrize("min_delta", [None, 0.02])
def test_every_step_is_that_of_a_loop_over_the_data(min_delta):
    field = np.random.default_rng(2).normal(size=(1, BANDS, LAGS))
    ds = sparse_recording(field, noise=2.0, n_clips=3, length=80)
    train, validation = ds.select(clips=[0, 1]), ds.select(clips=[2])
    weight, n_steps, error = by_the_data(train, validation, 0.05, 10, min_delta)
    fit = fit_boosting(
        train, validation, n_lags=LAGS, delta=0.05, patience=10, min_delta=min_delta, standardize=False
    )
    np.testing.assert_allclose(fit.weight[0, 0], weight, atol=1e-9)
    assert fit.n_steps.tolist() == [n_steps]
    assert fit.validation_error[0].item() == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_finds_the_exact_support_at_high_signal_to_noise(mix):
    fields = sparse_fields(6, 8)
    ds = sparse_recording(fields, noise=0.05, mix=mix)
    fit = fit_boosting(ds.select(clips=range(4)), ds.select(clips=[4, 5]), n_lags=15, standardize=False)
    assert torch.equal(fit.weight[:, 0] != 0, torch.from_numpy(fields != 0))
    np.testing.assert_allclose(fit.weight[:, 0], fields, atol=0.03)


def test_precision_and_recall_at_low_signal_to_noise():
    """Noise of 2.5 times the standard deviation of the drive: most of what is there, some that is not."""
    fields = sparse_fields(6, 8)
    ds = sparse_recording(fields, noise=2.5 * np.sqrt(8 * 0.58))
    fit = fit_boosting(ds.select(clips=range(4)), ds.select(clips=[4, 5]), n_lags=15, delta=0.01)
    found, there = fit.weight[:, 0].numpy() != 0, fields != 0
    recall, precision = (found & there).sum() / there.sum(), (found & there).sum() / found.sum()
    assert recall > 0.9
    assert precision > 0.2
    big = np.abs(fit.weight[:, 0].numpy()) > 0.25
    assert (big & there).sum() / big.sum() > 0.8


def test_a_basis_makes_smooth_fields():
    t = np.arange(12)
    field = np.zeros((1, 4, 12))
    field[0, 2] = np.exp(-(((t - 7) / 2.0) ** 2))
    ds = sparse_recording(field, noise=3.0)
    parts = ds.select(clips=range(4)), ds.select(clips=[4, 5])
    rough, smooth = (fit_boosting(*parts, n_lags=12, basis_ms=ms) for ms in (0.0, 30.0))
    errors = [float((one.weight[0, 0] - torch.from_numpy(field[0])).norm()) for one in (smooth, rough)]
    assert errors[0] < errors[1]
    assert smooth.scores["cc"][0, 0] > rough.scores["cc"][0, 0]


def test_a_fixed_number_of_steps_needs_no_validation():
    ds = sparse_recording(sparse_fields(2, 3), noise=1.0)
    fit = fit_boosting(ds, n_lags=15, n_steps=7, delta=0.1)
    assert fit.n_steps.tolist() == [7, 7]
    assert (fit.n_nonzero <= 7).all()
    assert fit.scores == {}


def test_noise_alone_stays_silent_or_nearly():
    ds = sparse_recording(np.zeros((20, 6, 5)), noise=1.0)
    fit = fit_boosting(ds.select(clips=range(4)), ds.select(clips=[4, 5]), n_lags=5)
    assert (fit.validation_error > 0.99).all()
    assert fit.drive_variance.max() < 0.01
    assert any("no step lowered" in text for _, text in fit.notes())


def test_neurons_without_validation_take_the_typical_number_of_steps():
    whole = sparse_recording(sparse_fields(3, 3), noise=1.0)
    responses = [[whole.response_block(c)[n].numpy() for n in range(3)] for c in range(6)]
    responses[5][1] = None
    ds = AudioNeuralDataset.from_arrays(
        [np.asarray(s) for s in whole.stims], responses, 5.0, response_kind="trace", check_alignment=False
    )
    fit = fit_boosting(ds.select(clips=range(5)), ds.select(clips=[5]), n_lags=15)
    assert fit.unvalidated == ("neuron001",)
    assert fit.n_steps[1] in fit.n_steps[[0, 2]]
    assert bool(fit.validation_error[1].isnan())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"delta": 0.0}, ValueError, "delta"),
        ({"min_delta": 0.1}, ValueError, "min_delta=0.1 must be at most delta=0.005"),
        ({"patience": 0}, ValueError, "patience"),
        ({"basis_ms": -1.0}, ValueError, "basis_ms"),
        ({"n_steps": None}, ValueError, "nothing stops the steps"),
        ({"n_steps": 0}, ValueError, "n_steps must be at least 1"),
    ],
)
def test_bad_arguments(options, error, text):
    ds = sparse_recording(np.zeros((1, 2, 2)), 1.0, n_clips=2, length=30)
    with pytest.raises(error, match=text):
        fit_boosting(ds, **{"n_lags": 2, "n_steps": 5, **options})


def test_neurons_that_took_all_steps_there_are_are_noted(monkeypatch):
    monkeypatch.setattr("deepSTRF.baselines.boosting.MOST_STEPS", 30)
    ds = sparse_recording(sparse_fields(3, 4), noise=0.1)
    views = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    short = fit_boosting(*views, n_lags=15, delta=0.001)
    assert short.n_steps.tolist() == [30] * 3
    assert any(level == "warning" and "3 neurons took all 30 steps" in text for level, text in short.notes())
    assert not any("steps" in text for _, text in fit_boosting(*views, n_lags=15, delta=0.5).notes())
