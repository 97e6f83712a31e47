"""Ridge in closed form: scikit-learn, explicit designs, missing data, choices, experiments, starts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge, start_from_ridge

# inner names: the Gram matrix and the gain before a softplus are checked against explicit forms
from deepSTRF.baselines.lagged import ClipFeatures, group_neurons, lagged_gram
from deepSTRF.baselines.start import _before_activation, fit_start  # inner: tested by itself
from deepSTRF.datasets import concat_neural_datasets
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.build import check_choices  # inner: tested by itself
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear, LinearNonlinear
from deepSTRF.training import score_model

LAGS = 4


def design(features, n_lags=LAGS):
    """Rows (T, F * L) in the order of a weight (F, L) with the newest frame last; zeros before the clip."""
    bands, frames = features.shape
    rows = np.zeros((frames, bands, n_lags))
    for t in range(frames):
        for j in range(n_lags):
            when = t - (n_lags - 1) + j
            if when >= 0:
                rows[t, :, j] = features[:, when]
    return rows.reshape(frames, -1)


def psth(ds, clip, neuron):
    response = np.asarray(ds.responses[clip][neuron], dtype=np.float64)
    if response.shape == (1, 1) and np.isnan(response).all():
        return np.full(ds.stims[clip].shape[-1], np.nan)
    return np.array(
        [bin_[~np.isnan(bin_)].mean() if (~np.isnan(bin_)).any() else np.nan for bin_ in response.T]
    )


def rows_of(ds, neuron, n_lags=LAGS, skip=0):
    """Design and responses of one neuron over the bins it has."""
    x, y = [], []
    for clip in range(len(ds)):
        stim = np.asarray(ds.stims[clip][0], dtype=np.float64)
        response = psth(ds, clip, neuron)
        response[:skip] = np.nan
        keep = ~np.isnan(response)
        x.append(design(stim, n_lags)[keep])
        y.append(response[keep])
    return np.concatenate(x), np.concatenate(y)


def textbook(x, y, lam):
    """Weights and intercept by the normal equations of the centred problem."""
    xc, yc = x - x.mean(0), y - y.mean()
    w = np.linalg.solve(xc.T @ xc + lam * np.eye(x.shape[1]), xc.T @ yc)
    return w, y.mean() - x.mean(0) @ w


def holes(kit, seed=0):
    """A recording with everything that can be missing."""
    whole = kit.spectrogram_recording(kit.RAGGED, seed=seed)
    rng = np.random.default_rng(seed)
    responses = []
    for clip in range(len(whole)):
        entry = [whole.responses[clip][n].double().numpy() for n in range(4)]
        entry[1][:, 10:14] = np.nan  # bins nobody recorded of this neuron
        entry[2][2:, 5:] = np.nan  # repeats that ended early
        entry[3] = None if clip in (1, 2) else entry[3]  # clips not heard
        if clip == 0:
            entry[0][rng.random(entry[0].shape) < 0.7] = np.nan
        responses.append(entry)
    return AudioNeuralDataset.from_arrays(
        [np.asarray(stim) for stim in whole.stims], responses, dt_ms=whole.dt, check_alignment=False
    )


def recorded(stims, responses):
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)


# ------------------------------ the estimate


@pytest.mark.parametrize("n_lags", [LAGS, 60])  # more bins than weights, and fewer
def test_agrees_with_scikit_learn(kit, n_lags):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a development extra")
    ds = kit.spectrogram_recording(kit.RAGGED)
    fit = fit_ridge(ds, n_lags=n_lags, lambdas=3.7, standardize=False)
    assert fit.forms == ({"primal": 1} if n_lags == LAGS else {"dual": 1})
    for neuron in range(4):
        x, y = rows_of(ds, neuron, n_lags)
        theirs = linear_model.Ridge(alpha=3.7, solver="svd").fit(x, y)
        scale = np.abs(theirs.coef_).max()
        np.testing.assert_allclose(fit.weight[neuron].flatten(), theirs.coef_, atol=1e-8 * scale, rtol=0)
        assert fit.bias[neuron].item() == pytest.approx(theirs.intercept_, abs=1e-8)


@pytest.mark.parametrize("n_lags", [LAGS, 60])
@pytest.mark.parametrize("max_bytes", [2**28, 6_000])
def test_missing_data_are_those_of_an_explicit_design(kit, n_lags, max_bytes):
    ds = holes(kit)
    fit = fit_ridge(ds, n_lags=n_lags, lambdas=2.0, standardize=False, max_bytes=max_bytes)
    assert sum(fit.forms.values()) >= 3
    for neuron in range(4):
        w, b = textbook(*rows_of(ds, neuron, n_lags), 2.0)
        np.testing.assert_allclose(fit.weight[neuron].flatten(), w, atol=1e-9)
        assert fit.bias[neuron].item() == pytest.approx(b, abs=1e-9)


def test_large_offsets_and_tiny_scales(kit):
    ds = kit.spectrogram_recording()
    moved = AudioNeuralDataset.from_arrays(
        [np.asarray(stim[0]) * 1e-3 + 1.0 for stim in ds.stims],
        [np.stack([np.asarray(r) for r in ds.responses[clip]]) for clip in range(len(ds))],
        dt_ms=ds.dt,
    )
    fit = fit_ridge(moved, n_lags=LAGS, lambdas=1e-4, standardize=False)
    w, _ = textbook(*rows_of(moved, 0), 1e-4)
    np.testing.assert_allclose(fit.weight[0].flatten(), w, atol=1e-7 * np.abs(w).max())


def test_gram_matrix_of_clips_shorter_than_the_window(kit):
    ds = kit.spectrogram_recording((3, 7, 1, 5))
    clips = ClipFeatures(Linear(kit.BANDS, 6, 4), ds)
    gram, sums = lagged_gram(clips, group_neurons(clips)[0], range(6), max_bytes=2**20)
    x = np.concatenate([design(np.asarray(stim[0], dtype=np.float64), 6) for stim in ds.stims])
    order = x.reshape(len(x), kit.BANDS, 6)[:, :, ::-1].transpose(0, 2, 1).reshape(len(x), -1)
    np.testing.assert_allclose(gram, order.T @ order, atol=1e-12)
    np.testing.assert_allclose(sums, order.sum(0), atol=1e-12)


def test_neurons_with_the_same_bins_share_a_decomposition(kit):
    ds = holes(kit)
    twice = ds.select(neurons=[0, 1, 2, 3, 3, 1])
    groups = group_neurons(ClipFeatures(Linear(kit.BANDS, 2, 6), twice))
    assert [1, 5] in [group.neurons.tolist() for group in groups]
    assert [3, 4] in [group.neurons.tolist() for group in groups]


def test_repeats_do_not_weigh(kit):
    ds = kit.spectrogram_recording()
    responses = [np.stack([np.asarray(r) for r in ds.responses[clip]]) for clip in range(len(ds))]
    doubled = [np.concatenate([r, r], axis=1) if clip < 3 else r for clip, r in enumerate(responses)]
    stims = [np.asarray(stim) for stim in ds.stims]
    one, two = (fit_ridge(recorded(stims, r), n_lags=LAGS, lambdas=1.0).weight for r in (responses, doubled))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_onset_left_out_still_counts_as_history(kit):
    ds = kit.spectrogram_recording()
    fit = fit_ridge(ds, n_lags=LAGS, lambdas=1.0, standardize=False, warmup_ms=15.0)
    w, b = textbook(*rows_of(ds, 2, skip=3), 1.0)
    np.testing.assert_allclose(fit.weight[2].flatten(), w, atol=1e-9)
    assert fit.bias[2].item() == pytest.approx(b, abs=1e-9)


# ------------------------------ the model


def test_the_model_is_the_estimate(kit):
    ds = kit.spectrogram_recording(kit.RAGGED)
    fit = fit_ridge(ds, n_lags=LAGS, lambdas=1.0)
    assert type(fit.model) is Linear
    assert fit.model.readout.norm == "none"
    rates = fit.model.predict(ds)
    standardized = fit.model.standardizer(ds.stims[1][None])[0, 0].double().numpy()
    expected = design(standardized) @ fit.weight.flatten(1).numpy().T + fit.bias.numpy()
    np.testing.assert_allclose(rates[1].numpy().T, expected, atol=1e-5)
    drive = torch.cat(rates, dim=1).double()
    torch.testing.assert_close(drive.mean(1), fit.drive_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drive.var(1, correction=0), fit.drive_variance, rtol=1e-3, atol=1e-6)


def test_dual_form_knows_the_variance_of_its_prediction(kit):
    ds = kit.spectrogram_recording()
    fit = fit_ridge(ds, n_lags=80, lambdas=5.0)
    assert fit.forms == {"dual": 1}
    drive = torch.cat(fit.model.predict(ds), dim=1).double()
    torch.testing.assert_close(drive.var(1, correction=0), fit.drive_variance, rtol=1e-3, atol=1e-6)


def test_saves_streams_and_explains(kit, tmp_path):
    ds = kit.spectrogram_recording()
    model = fit_ridge(ds, n_lags=LAGS, lambdas=1.0).model
    loaded = NeuralModel.from_pretrained(model.save_pretrained(tmp_path))
    x = ds.stims[0][None]
    assert torch.equal(loaded(x), model(x))
    state, pieces = model.init_state(1), []
    for piece in x.split(7, dim=-1):
        y, state = model.step(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), model(x))
    torch.testing.assert_close(model.STRF_gradmap()[:, 0], model.STRFs(folded=True))


def test_front_end_and_prefilter_come_first(kit):
    sounds = kit.waveform_recording(kit.RAGGED)
    front_end = kit.PowerBands()
    fit = fit_ridge(
        sounds,
        n_lags=3,
        lambdas=1.0,
        wav2spec=front_end,
        prefiltering={"prefiltering": "adaptrans", "dt": 5.0, "min_freq": 500, "max_freq": 8000},
        standardize=True,
    )
    assert fit.weight.shape == (4, 2, kit.BANDS, 3)
    model = fit.model
    with torch.no_grad():
        bands = model.standardizer(front_end(sounds.stims[0][None]))
        x = model.prefiltering(bands)[0].double().numpy()
    expected = fit.bias.numpy()[:, None] + sum(
        fit.weight[:, c].flatten(1).numpy() @ design(x[c], 3).T for c in range(2)
    )
    np.testing.assert_allclose(model.predict(sounds)[0].numpy(), expected, atol=1e-4)


# ------------------------------ the choice


def test_penalties_are_chosen_by_the_packages_own_scores(kit):
    ds = kit.spectrogram_recording(kit.RAGGED)
    train, val = ds.select(clips=[0, 1, 2, 3]), ds.select(clips=[4, 5])
    grid = [0.1, 10.0, 1000.0]
    fit = fit_ridge(train, val, n_lags=LAGS, lambdas=[1000.0, 0.1, 10.0])
    assert fit.grid.tolist() == grid
    for row, lam in enumerate(grid):
        table = score_model(fit_ridge(train, n_lags=LAGS, lambdas=lam).model, val, n_bootstrap=0).columns
        for name in ("cc", "cc_norm"):
            np.testing.assert_allclose(fit.scores[name][row], table[name], atol=1e-5)
    best = fit.scores["cc_norm"].argmax(0)
    assert fit.lambdas.tolist() == [grid[index] for index in best]
    shared = fit_ridge(train, val, n_lags=LAGS, lambdas=grid, per_neuron=False)
    assert set(shared.lambdas.tolist()) == {shared.shared_lambda}
    assert shared.shared_lambda == grid[int(fit.scores["cc_norm"].mean(1).argmax())]


def test_neurons_without_data_are_named(kit):
    whole = kit.spectrogram_recording()
    responses = [[whole.responses[clip][n].numpy() for n in range(4)] for clip in range(6)]
    for clip in range(6):
        responses[clip][1 if clip >= 4 else 2] = None  # 1 not heard in validation, 2 not in training
    ds = AudioNeuralDataset.from_arrays(
        [np.asarray(stim) for stim in whole.stims], responses, dt_ms=5.0, check_alignment=False
    )
    fit = fit_ridge(ds.select(clips=[0, 1, 2, 3]), ds.select(clips=[4, 5]), n_lags=LAGS)
    assert fit.unvalidated == ("neuron001", "neuron002")
    assert fit.untrained == ("neuron002",)
    assert fit.lambdas[1] == fit.shared_lambda
    assert torch.isfinite(fit.weight).all()
    assert (fit.weight[2] == 0).all()
    texts = " ".join(text for _, text in fit.notes())
    assert "neuron001" in texts
    assert "No training data, STRF zero: neuron002" in texts


def test_single_repeats_are_judged_by_the_plain_correlation(kit):
    ds = kit.spectrogram_recording(repeats=1)
    fit = fit_ridge(ds.select(clips=[0, 1, 2, 3]), ds.select(clips=[4, 5]), n_lags=LAGS)
    assert torch.equal(fit.scores["cc"], fit.scores["cc_norm"])
    assert not fit.unvalidated


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lambdas": None}, ValueError, "without validation clips nothing can choose"),
        ({"lambdas": [1.0, 2.0]}, ValueError, "without validation clips"),
        ({"lambdas": 0.0}, ValueError, "lambdas must be finite numbers above 0"),
        ({"lambdas": "many"}, TypeError, "lambdas must be a number or a list of numbers, got 'many'"),
        ({"lambdas": []}, ValueError, "lambdas must be finite numbers above 0, at least one"),
        ({"lambdas": math.nan}, ValueError, "lambdas must be finite"),
        ({"n_lags": 0}, ValueError, "n_lags must be at least 1"),
        ({"score": "r2"}, ValueError, "score must be one of 'cc_norm', 'cc'"),
        ({"per_neuron": 1}, TypeError, "per_neuron must be True or False"),
        ({"warmup_ms": -1.0}, ValueError, "warmup_ms"),
    ],
)
def test_bad_arguments(kit, options, error, text):
    with pytest.raises(error, match=text):
        fit_ridge(kit.spectrogram_recording(), **{"n_lags": LAGS, "lambdas": 1.0, **options})


def test_bad_recordings(kit):
    ds = kit.spectrogram_recording()
    with pytest.raises(ValueError, match="train has no clips"):
        fit_ridge(ds.select(clips=[]), n_lags=LAGS, lambdas=1.0)
    with pytest.raises(ValueError, match="train has no neurons"):
        fit_ridge(ds.select(neurons=[]), n_lags=LAGS, lambdas=1.0)
    with pytest.raises(ValueError, match="validation has no clips"):
        fit_ridge(ds, ds.select(clips=[]), n_lags=LAGS)
    with pytest.raises(ValueError, match="train has 4 neurons and validation 2"):
        fit_ridge(ds, ds.select(neurons=[0, 1]), n_lags=LAGS)
    with pytest.raises(ValueError, match="the same neurons in another order"):
        fit_ridge(ds, ds.select(neurons=[1, 0, 2, 3]), n_lags=LAGS)
    with pytest.raises(ValueError, match=rf"{len(ds)} of {len(ds)} validation clips.*one role"):
        fit_ridge(ds, ds, n_lags=LAGS)
    with pytest.raises(ValueError, match=r"1 of 2 validation clips.*clip 1 of validation is clip 2 of train"):
        fit_ridge(ds.select(clips=[0, 1, 3]), ds.select(clips=[2, 3]), n_lags=LAGS)
    with pytest.raises(ValueError, match=r"no neuron has responses to fit.*warmup_ms=1e"):
        fit_ridge(ds, n_lags=LAGS, lambdas=1.0, warmup_ms=1e7)
    with pytest.raises(ValueError, match="waveforms: pass a front-end"):
        fit_ridge(kit.waveform_recording(), n_lags=LAGS, lambdas=1.0)


# ------------------------------ in an experiment


@pytest.mark.parametrize(
    ("options", "standardize", "stated"),
    [({}, False, True), ({}, True, True), ({"standardize": False}, False, False)],
)
def test_the_configuration_of_a_run_says_what_the_fit_did(tmp_path, options, standardize, stated):
    config = ExperimentConfig(
        model="ridge", model_options={"n_lags": 4, **options}, dataset_options=SMALL, standardize=standardize
    )
    run = run_experiment(config, tmp_path, progress=False)
    assert (run.load_model().standardizer is not None) is stated
    assert run.config.standardize is stated
    assert f"standardize = {str(stated).lower()}" in (tmp_path / "config.toml").read_text()
    for again in (config, run.config):  # the finished run, not another one
        assert run_experiment(again, tmp_path, progress=False).facts == run.facts
    text = (tmp_path / "config.toml").read_text()  # a run of before left the default unsaid
    (tmp_path / "config.toml").write_text(text.replace("standardize = true", "standardize = false"))
    (tmp_path / "manifest.json").unlink()  # and had no manifest
    facts = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**facts, "format": 1}))
    with pytest.warns(UserWarning, match="of an earlier version of deepSTRF and holds no checksums"):
        assert run_experiment(config, tmp_path, progress=False).facts["notes"] == run.facts["notes"]


SMALL = {"n_neurons": 3, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}


def test_an_experiment_in_closed_form(tmp_path):
    from deepSTRF.report import write_report

    config = ExperimentConfig(model="ridge", model_options={"n_lags": 8}, dataset_options=SMALL)
    said: list[str] = []
    run = run_experiment(config, tmp_path / "run", progress=False, log=said.append)
    assert "Solving ridge, without epochs" in said
    card = dict(run.protocol)
    assert "closed form" in card["Fit: method"]
    assert "Fit: lambdas chosen" in card
    assert not any("epochs" in label for label in card)
    assert run.histories == {0: []}
    model = run.load_model()
    assert (type(model), model.T, model.readout.norm) == (Linear, 8, "none")
    assert ExperimentConfig.from_toml_text(run.config.to_toml()) == run.config
    assert "Linear" in write_report(run).read_text(encoding="utf-8")


def test_an_experiment_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"has no option 'n_lag'; it takes n_lags.*Did you mean 'n_lags'"):
        check_choices(ExperimentConfig(model="ridge", model_options={"n_lag": 8}))
    with pytest.raises(ValueError, match="without epochs, for the squared error"):
        check_choices(ExperimentConfig(model="ridge", loss="poisson"))
    with pytest.raises(ValueError, match=r"unknown model 'ridg'.*Linear fits: .*'ridge'"):
        check_choices(ExperimentConfig(model="ridg"))


# ------------------------------ starting from it


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kernel", [None, {"kernel": "separable", "rank": 5}])
@pytest.mark.parametrize("standardize", [True, False])
def test_kernels_that_can_hold_it_start_at_the_estimate(norm, kernel, standardize):
    ds = SyntheticDataset(**SMALL)
    fit = fit_ridge(ds, n_lags=5, lambdas=20.0)
    model = Linear(ds.F, 5, 3, kernel=kernel, norm=norm, standardize=standardize)
    ours = start_from_ridge(model, fit).eval().predict(ds)[0]
    theirs = fit.model.predict(ds)[0]
    # without standardisation a clip begins from zeros instead of from the mean level
    torch.testing.assert_close(ours[:, 4:], theirs[:, 4:], rtol=1e-3, atol=1e-4)


def test_a_small_kernel_starts_near_the_estimate_and_in_its_unit():
    ds = SyntheticDataset(n_neurons=3, n_clips=6, n_repeats=20)
    fit = fit_ridge(ds, n_lags=12, lambdas=2000.0)
    target = torch.cat(fit.model.predict(ds), dim=1)
    for kernel in ({"kernel": "separable", "rank": 2}, {"kernel": "parametric", "num_gaussians": 6}):
        model = start_from_ridge(Linear(ds.F, 12, 3, kernel=kernel, standardize=True), fit, ds).eval()
        rates = torch.cat(model.predict(ds), dim=1)
        assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(rates, target, strict=True)) > 0.8
        torch.testing.assert_close(rates.mean(1), target.mean(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kernel", [None, {"kernel": "separable", "rank": 9}])
def test_a_softplus_starts_at_the_mean_and_slope_of_the_estimate(norm, kernel):
    ds = SyntheticDataset(n_neurons=6, n_clips=12, n_repeats=10, seed=3)
    fit = fit_ridge(ds, n_lags=9, lambdas=300.0)
    psth = torch.cat([ds.response_block(clip).mean(1) for clip in range(len(ds))], dim=1)
    linear = torch.cat(fit.model.predict(ds), dim=1)
    model = start_from_ridge(LinearNonlinear(ds.F, 9, 6, kernel=kernel, norm=norm, standardize=True), fit, ds)
    rates = torch.cat(model.eval().predict(ds), dim=1)
    torch.testing.assert_close(rates.mean(1), psth.mean(1), rtol=0.15, atol=0.0)
    slope = ((rates - rates.mean(1, keepdim=True)) * (linear - linear.mean(1, keepdim=True))).mean(1)
    torch.testing.assert_close(slope / linear.var(1), torch.ones(6), rtol=0.0, atol=0.25)
    # a drive put there as it is began at twice the error of the linear model, and above all responses
    assert ((rates - psth) ** 2).mean() < 1.1 * ((linear - psth) ** 2).mean()
    # what the drive is taken for: with a normal one the mean and the slope are exact
    noise = torch.randn(2**18, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain, offset = _before_activation(model, fit)
    drive = fit.drive_variance.sqrt() * noise
    output = model.readout.activation.double()(offset + gain * drive).detach()
    torch.testing.assert_close(output.mean(0), fit.drive_mean, rtol=0.02, atol=0.0)
    torch.testing.assert_close(
        (output * drive).mean(0) / fit.drive_variance, torch.ones(6).double(), rtol=0.05, atol=0
    )


def test_a_softplus_leaves_neurons_alone_that_it_cannot_reach():
    ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=5)
    blocks = [ds.response_block(clip).numpy().copy() for clip in range(4)]
    for block in blocks:
        block[0] = 0.0  # silent
        block[1] = 0.0
        block[1, 0, ::50] = 1.0  # a mean below the baseline that a softplus starts with
    quiet = AudioNeuralDataset.from_arrays(list(ds.stims), blocks, dt_ms=ds.dt, check_alignment=False)
    fit = fit_ridge(quiet, n_lags=5, lambdas=100.0)
    model = start_from_ridge(LinearNonlinear(ds.F, 5, 3, standardize=True), fit, quiet).eval()
    rates = torch.cat(model.predict(quiet), dim=1)
    assert torch.isfinite(rates).all()
    assert float(rates[1].mean()) == pytest.approx(float(fit.drive_mean[1]), rel=0.1)


def test_starts_that_cannot_be():
    ds = SyntheticDataset(**SMALL)
    fit = fit_ridge(ds, n_lags=5, lambdas=20.0)
    with pytest.raises(ValueError, match="fit it with n_lags=6"):
        start_from_ridge(Linear(ds.F, 6, 3), fit)
    raw = fit_ridge(ds, n_lags=5, lambdas=20.0, standardize=False)
    with pytest.raises(ValueError, match="fit_standardization"):
        start_from_ridge(Linear(ds.F, 5, 3, standardize=True), raw)
    pair = torch.nn.Sequential(torch.nn.Conv2d(1, 3, (ds.F, 1)), torch.nn.Conv2d(3, 3, (1, 5), groups=3))
    with pytest.raises(TypeError, match="cannot start from an estimate"):
        start_from_ridge(Linear(ds.F, 5, 3, kernel=pair), fit)


def test_an_experiment_starts_from_ridge(tmp_path):
    options = {"temporal_window_size": 6, "kernel": {"kernel": "separable"}}
    config = ExperimentConfig(dataset_options=SMALL, model_options=options, start="ridge", epochs=1)
    assert "--start ridge" in config.command()
    assert ExperimentConfig.from_toml_text(config.to_toml()) == config
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert dict(run.protocol)["Fit: start"] == "ridge"
    with pytest.raises(ValueError, match="start must be one of default, ridge"):
        ExperimentConfig(start="rigde")
    with pytest.raises(TypeError, match="start='ridge' is for models of one STRF per neuron"):
        fit_start(torch.nn.Linear(2, 2), None, None)


# ------------------------------ on the real recording


@pytest.mark.ns1
@pytest.mark.slow
def test_a_longer_window_explains_more_on_ns1(ns1_dir):
    from deepSTRF.datasets import parse_split
    from deepSTRF.datasets.audio import NS1Dataset

    ds = NS1Dataset(ns1_dir)
    train, val, test = parse_split(ds, "14/3/3").apply(ds)
    short, long = (
        score_model(fit_ridge(train, val, n_lags=n).model, test, n_bootstrap=0).mean("cc_norm").mean
        for n in (9, 40)
    )
    assert short > 0.51
    assert long > 0.65


# ------------------------------ joined recordings


@pytest.mark.parametrize("shared_sounds", [True, False])
def test_joined_recordings_keep_the_penalties_and_estimates_of_each(shared_sounds):
    rng = np.random.default_rng(0)

    def recording(stims, seed, n_neurons):
        noise = np.random.default_rng(seed)
        blocks = [noise.poisson(1 + np.abs(s[:n_neurons, None]), size=(n_neurons, 4, 80)) for s in stims]
        return recorded(stims, blocks)

    sounds = [rng.normal(size=(5, 80)) for _ in range(6)]
    others = sounds if shared_sounds else [3.0 * rng.normal(size=(5, 80)) for _ in range(6)]
    parts = [recording(sounds, 1, 2), recording(others[:4], 2, 1)]
    joined = concat_neural_datasets(parts, names=["left", "right"])
    valid = [recording([rng.normal(size=(5, 80))], 3, 2), recording([rng.normal(size=(5, 80))], 4, 1)]
    fit = fit_ridge(
        joined, concat_neural_datasets(valid, names=["left", "right"]), n_lags=3, standardize=False
    )
    first = 0
    for part, validation in zip(parts, valid, strict=True):
        alone = fit_ridge(part, validation, n_lags=3, standardize=False)
        neurons = slice(first, first := first + part.N_neurons)
        frames = np.concatenate([np.asarray(stim[0]) for stim in part.stims], axis=1)
        unit = frames.var(axis=1).mean() * frames.shape[1]  # of the frames that this recording played
        np.testing.assert_allclose(alone.grid, 10.0 ** np.linspace(-3.0, 1.4, 12) * unit, rtol=1e-6)
        np.testing.assert_allclose(fit.lambdas[neurons], alone.lambdas, rtol=1e-9)
        for one, neuron in enumerate(range(neurons.start, neurons.stop)):
            w, b = textbook(*rows_of(part, one, 3), float(fit.lambdas[neuron]))
            np.testing.assert_allclose(fit.weight[neuron].flatten(), w, atol=1e-9)
            assert fit.bias[neuron].item() == pytest.approx(b, abs=1e-9)
