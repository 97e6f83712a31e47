"""Evidence of Gaussian priors against the dense normal density, posteriors, and what a prior recovers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from deepSTRF.baselines import evidence, fit_evidence, fit_ridge
from deepSTRF.baselines.evidence import _LocalPriors  # inner: against the formula
from deepSTRF.datasets.audio import AudioNeuralDataset

BANDS, LAGS = 6, 5


def shifted(stim, n_lags):
    """(F, L, T), newest frame last, zeros before the clip."""
    out = np.zeros((len(stim), n_lags, stim.shape[1]))
    for place in range(n_lags):
        lag = n_lags - 1 - place
        out[:, place, lag:] = stim[:, : stim.shape[1] - lag]
    return out


def recording(fields, noise, n_clips=3, length=60, seed=0):
    rng = np.random.default_rng(seed)
    stims = [rng.normal(size=(fields.shape[1], length)) for _ in range(n_clips)]
    responses = []
    for stim in stims:
        drive = np.einsum("nfk,fkt->nt", fields, shifted(stim, fields.shape[2]))
        responses.append(drive[:, None] + noise * rng.normal(size=(len(fields), 1, length)) + 2.0)
    return AudioNeuralDataset.from_arrays(
        stims, responses, 10.0, response_kind="trace", check_alignment=False
    )


def smooth_fields(n_neurons, in_time, in_bands, bands=BANDS, n_lags=LAGS, seed=0):
    """Draws of the prior: smooth in time (bins) and in bands."""
    rng = np.random.default_rng(seed)
    roots = [
        np.linalg.cholesky(squared_exponential(n, s) + 1e-9 * np.eye(n))
        for n, s in ((bands, in_bands), (n_lags, in_time))
    ]
    return np.stack([roots[0] @ rng.normal(size=(bands, n_lags)) @ roots[1].T for _ in range(n_neurons)])


def squared_exponential(size, scale):
    places = np.arange(size)
    return np.exp(-0.5 * ((places[:, None] - places) / scale) ** 2)


def dense(ds, neuron, n_lags=LAGS):
    """Design (T, F L) and response, in an orthonormal basis of what is orthogonal to the constant."""
    x = np.concatenate(
        [shifted(np.asarray(s[0], float), n_lags).reshape(-1, s.shape[-1]).T for s in ds.stims]
    )
    y = np.concatenate([ds.response_block(c)[neuron].double().mean(0).numpy() for c in range(len(ds))])
    basis = np.linalg.qr(np.column_stack([np.ones(len(y)), np.eye(len(y))[:, 1:]]))[0][:, 1:]
    return basis.T @ x, basis.T @ y


def log_evidence(x, y, covariance, noise):
    total = x @ covariance @ x.T + noise * np.eye(len(y))
    return multivariate_normal(np.zeros(len(y)), total).logpdf(y)


def null_evidence(y):
    return multivariate_normal(np.zeros(len(y)), np.eye(len(y)) * (y @ y) / len(y)).logpdf(y)


def test_evidence_and_posterior_are_those_of_the_dense_formula():
    ds = recording(smooth_fields(2, 1.0, 2.0), noise=3.0)
    fit = fit_evidence(ds, n_lags=LAGS, standardize=False)
    for neuron in range(2):
        x, y = dense(ds, neuron)
        in_time, in_bands = fit.time_scale[neuron].item() / 10.0, fit.frequency_scale[neuron].item()
        kernel = np.kron(squared_exponential(BANDS, in_bands), squared_exponential(LAGS, in_time))
        c, noise = fit.prior_variance[neuron].item(), fit.noise_variance[neuron].item()
        found = log_evidence(x, y, c * kernel, noise)
        assert fit.log_evidence[neuron].item() == pytest.approx(found - null_evidence(y), abs=1e-5)
        # a maximum: every variance off by a tenth, and every neighbour on the grid of scales, is less likely
        for by in (0.9, 1.1):
            assert log_evidence(x, y, c * by * kernel, noise) < found
            assert log_evidence(x, y, c * kernel, noise * by) < found
        for in_time_by, in_bands_by in ((2**0.5, 1), (2**-0.5, 1), (1, 2**0.5), (1, 2**-0.5)):
            if in_time * in_time_by > 0.49 and in_bands * in_bands_by > 0.49:
                k = np.kron(
                    squared_exponential(BANDS, in_bands * in_bands_by),
                    squared_exponential(LAGS, in_time * in_time_by),
                )
                other = max(log_evidence(x, y, c * b * k, noise) for b in np.geomspace(0.3, 3, 9))
                assert other < found + 0.05
        # the posterior, by the covariance of data and weights
        gain = c * kernel @ x.T @ np.linalg.inv(c * x @ kernel @ x.T + noise * np.eye(len(y)))
        np.testing.assert_allclose(fit.weight[neuron].flatten(), gain @ y, atol=1e-6)
        spread = np.sqrt(np.diag(c * kernel - gain @ x @ (c * kernel)))
        np.testing.assert_allclose(fit.weight_std[neuron].flatten(), spread, atol=1e-5)


def local_recording():
    field = np.zeros((1, 16, 12))
    field[0, 9:12, 5:8] = smooth_fields(1, 1.5, 1.5, 3, 3)[0] + 1.0
    return field, recording(field, noise=4.0, n_clips=4)


def local_kernel(envelope, scales):
    """Prior covariance of a field of 16 bands and 12 lags of 10 ms, newest lag last, of variance 1."""
    centre_ms, width_ms, centre, width = envelope
    places, bands = np.arange(12)[::-1] * 10.0, np.arange(16)
    e = np.kron(
        np.exp(-0.25 * ((bands - centre) / width) ** 2),
        np.exp(-0.25 * ((places - centre_ms) / width_ms) ** 2),
    )
    kernel = np.kron(squared_exponential(16, scales[1]), squared_exponential(12, scales[0] / 10.0))
    return e[:, None] * kernel * e


def test_local_evidence_is_that_of_the_dense_formula_and_higher():
    field, ds = local_recording()
    smooth, local = (
        fit_evidence(ds, prior=p, n_lags=12, standardize=False) for p in ("smooth", "smooth+local")
    )
    assert local.log_evidence[0] > smooth.log_evidence[0] + 3
    centre_ms, _, centre, _ = envelope = local.envelope[0].tolist()
    assert 30 < centre_ms < 80  # lags 4 to 6 of 10 ms
    assert 8 < centre < 12
    kernel = local_kernel(envelope, (local.time_scale[0].item(), local.frequency_scale[0].item()))
    c, noise = local.prior_variance[0].item(), local.noise_variance[0].item()
    x, y = dense(ds, 0, 12)
    found = log_evidence(x, y, c * kernel, noise)
    assert local.log_evidence[0].item() == pytest.approx(found - null_evidence(y), abs=1e-4)
    error = [float((one.weight[0, 0] - torch.from_numpy(field[0])).norm()) for one in (local, smooth)]
    assert error[0] < 0.8 * error[1]
    # the posterior, by the covariance of data and weights
    gain = c * kernel @ x.T @ np.linalg.inv(c * x @ kernel @ x.T + noise * np.eye(len(y)))
    np.testing.assert_allclose(local.weight[0].flatten(), gain @ y, atol=1e-5)
    spread = np.sqrt(np.diag(c * kernel - gain @ x @ (c * kernel)))
    np.testing.assert_allclose(local.weight_std[0].flatten(), spread, atol=1e-4)


def test_local_prior_is_that_of_highest_evidence():
    """No step of another optimiser, on the dense formula, gains more than a tenth of a nat."""
    _, ds = local_recording()
    fit = fit_evidence(ds, prior="smooth+local", n_lags=12, standardize=False)
    x, y = dense(ds, 0, 12)

    def loss(v):
        kernel = local_kernel((v[0], np.exp(v[1]), v[2], np.exp(v[3])), np.exp(v[4:6]))
        return -log_evidence(x, y, np.exp(v[6]) * kernel, np.exp(v[7]))

    e = fit.envelope[0].numpy()
    scales = (fit.time_scale, fit.frequency_scale, fit.prior_variance, fit.noise_variance)
    at = np.array([e[0], np.log(e[1]), e[2], np.log(e[3]), *(float(one[0].log()) for one in scales)])
    best = minimize(loss, at, method="Nelder-Mead", options={"maxfev": 200}).fun
    assert best > loss(at) - 0.1


@pytest.mark.parametrize("rough", [False, True])
def test_slopes_of_the_local_evidence_are_those_of_finite_differences(rough, monkeypatch):
    """With directions of little signal, and without: they are left out of the search."""
    _, ds = local_recording()
    inner, calls = evidence._local_loss, []
    monkeypatch.setattr(evidence, "_local_loss", lambda *a: calls.append(a) or inner(*a))
    fit_evidence(ds, prior="smooth+local", n_lags=12, standardize=False)
    sums, place, priors, start = calls[0]
    start = start + (np.array([0, 0.02, 0.01, -1.0, 0.02, 0.01, -1.0]) if rough else 0)

    def loss(values):
        return inner(sums, place, priors, values)

    by_hand = [(loss(start + h)[0] - loss(start - h)[0]) / 2e-4 for h in 1e-4 * np.eye(7)]
    np.testing.assert_allclose(loss(start)[1], by_hand, atol=0.05, rtol=0.02)


def test_covariances_of_a_local_prior():
    """The log of the variance has slope and curvature as given at the middle, here lag 1.5 and band 2."""
    values = torch.tensor([-1.0, 0.4, 0.25, 0.3, -0.6, 0.5, -0.1], dtype=torch.float64)
    ratio, envelope, in_time, in_bands = _LocalPriors((1.5, 2.0), (5, 3), 2).at(values)
    np.testing.assert_allclose(envelope, [1.5 + 0.4 / 0.25, 2.0, 2.0 - 0.6 / 0.5, 2.0**0.5], atol=1e-12)
    for size, covariance, (centre, width), scale in (
        (5, in_time, envelope[:2].tolist(), np.exp(0.3)),
        (3, in_bands[:3, :3], envelope[2:].tolist(), np.exp(-0.1)),
    ):
        e = np.exp(-0.25 * ((np.arange(size) - centre) / width) ** 2)
        np.testing.assert_allclose(covariance, e[:, None] * squared_exponential(size, scale) * e, atol=1e-12)
    d = np.arange(5) - 1.5
    variance = -1.0 + 0.4 * d - 0.5 * 0.25 * d**2  # in lags, its log at band 2
    at_band_2 = np.log((ratio * in_time.diagonal() * in_bands[2, 2]).numpy())
    np.testing.assert_allclose(at_band_2, variance, atol=1e-12)
    assert in_bands.shape == (6, 6)
    assert (in_bands[:3, 3:] == 0).all()
    assert (in_bands[:3, :3] == in_bands[3:, 3:]).all()


def test_error_bars_hold_the_truth():
    """Fields drawn from the prior: 68% within one standard deviation of the posterior, 95% within two."""
    fields = smooth_fields(40, 1.4, 2.0, 10, 8, seed=1)
    fit = fit_evidence(recording(fields, noise=5.0, n_clips=4), n_lags=8, standardize=False)
    z = ((fit.weight[:, 0] - torch.from_numpy(fields)) / fit.weight_std[:, 0]).abs()
    assert 0.6 < float((z < 1).double().mean()) < 0.75
    assert 0.9 < float((z < 2).double().mean()) < 0.98


def test_scales_are_found():
    for in_time, in_bands in ((0.5, 4.0), (3.0, 0.5)):
        fit = fit_evidence(recording(smooth_fields(8, in_time, in_bands, 14, 14), 2.0, 4, 250), n_lags=14)
        assert 0.6 * in_time <= float(fit.time_scale.median()) / 10.0 <= 1.6 * in_time
        assert 0.6 * in_bands <= float(fit.frequency_scale.median()) <= 1.6 * in_bands


def test_predicts_better_than_ridge_where_fields_are_smooth():
    fields = smooth_fields(10, 2.0, 3.0, 14, 12, seed=2)
    ds = recording(fields, noise=15.0, n_clips=8, length=200)
    train, validation = ds.select(clips=range(4)), ds.select(clips=range(4, 8))
    by_evidence, ridge = fit_evidence(train, n_lags=12), fit_ridge(train, validation, n_lags=12)
    errors = [(one.weight[:, 0] - torch.from_numpy(fields)).norm() for one in (by_evidence, ridge)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("prior", ["smooth", "smooth+local"])
def test_neurons_side_by_side_are_those_one_by_one(prior):
    ds = recording(smooth_fields(5, 1.0, 2.0), noise=3.0)
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            found.append(fit_evidence(ds, n_lags=LAGS, prior=prior))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0].weight, found[1].weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[0].log_evidence, found[1].log_evidence, rtol=1e-8, atol=1e-6)


def test_noise_has_no_evidence():
    fit = fit_evidence(recording(np.zeros((30, BANDS, LAGS)), 1.0, 4, 200), prior="smooth+local", n_lags=LAGS)
    assert len(fit.untuned) > 5
    assert fit.log_evidence.max() < 8
    assert fit.drive_variance.max() < 0.05
    assert any("No evidence of a response" in text for _, text in fit.notes())
    assert bool((fit.weight[fit.log_evidence == 0] == 0).all())


def test_given_scales_are_the_only_ones():
    ds = recording(smooth_fields(2, 1.0, 2.0), noise=3.0)
    fit = fit_evidence(ds, n_lags=LAGS, time_scales_ms=[0.0], frequency_scales=[0, 3])
    assert fit.time_scale.tolist() == [0.0, 0.0]
    assert set(fit.frequency_scale.tolist()) <= {0.0, 3.0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prior": "flat"}, "prior must be one of 'smooth', 'smooth[+]local'"),
        ({"time_scales_ms": []}, "time_scales_ms must be finite numbers of at least 0"),
        ({"frequency_scales": [-1.0]}, "frequency_scales must be finite numbers of at least 0"),
    ],
)
def test_bad_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        fit_evidence(recording(np.zeros((1, 2, 2)), 1.0), **{"n_lags": 2, **options})


def test_a_local_prior_is_for_one_feature():
    rng = np.random.default_rng(0)
    stims = [{"a": rng.normal(size=(3, 40)), "b": rng.normal(size=(1, 40))} for _ in range(2)]
    responses = [rng.normal(size=(1, 1, 40)) for _ in range(2)]
    ds = AudioNeuralDataset.from_arrays(stims, responses, 5.0, response_kind="trace", check_alignment=False)
    with pytest.raises(ValueError, match="2 features; take prior='smooth'"):
        fit_evidence(ds, prior="smooth+local", n_lags=3)
