"""Banded ridge: a penalty per feature, fields kept apart in models, figures and reports."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import ConvNet2D, Linear, StateNet
from deepSTRF.plots import plot_feature_fields
from deepSTRF.report import explain_run, write_report
from deepSTRF.training import Fitter, make_loaders, score_model

Array = npt.NDArray[np.float64]
ROWS = {"spectrogram": 4, "onsets": 1, "pupil": 2}
HERTZ = {"spectrogram": np.array([500.0, 1000.0, 2000.0, 4000.0])}
NEURONS, DT = 3, 10.0


def explicit(features: Array, lags: range) -> Array:
    """Rows (T, L F), lag by lag; zeros outside the clip."""
    n_bins = features.shape[1]
    rows = np.zeros((n_bins, len(lags), len(features)))
    for t, (place, lag) in itertools.product(range(n_bins), enumerate(lags)):
        if 0 <= t - lag < n_bins:
            rows[t, place] = features[:, t - lag]
    return rows.reshape(n_bins, -1)


def recording(names: list[str] | None = None, n_clips: int = 6, n_bins: int = 150, seed: int = 0) -> Any:
    """A strong onset response, weak and noisy everything else: features want penalties of their own."""
    rng = np.random.default_rng(seed)
    stims, responses = [], []
    for _ in range(n_clips):
        parts = {name: rng.normal(size=(rows, n_bins)) for name, rows in ROWS.items()}
        parts["onsets"] = (rng.random((1, n_bins)) < 0.1).astype(float)
        drive = np.convolve(parts["onsets"][0], [0, 1.0, 2.0, 1.0])[:n_bins] + 0.1 * np.roll(
            parts["spectrogram"][1], 2
        )
        responses.append(drive + rng.normal(size=(NEURONS, 3, n_bins)))
        stims.append({name: parts[name] for name in names or ROWS})
    responses[0][1, :, 20:31] = np.nan
    responses[1][1] = np.nan
    hertz = HERTZ if names is None or "spectrogram" in names else None
    return AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=DT, frequencies_hz=hertz, response_kind="trace", check_alignment=False
    )


def parts_of(ds: Any) -> tuple[Any, Any]:
    return ds.select(clips=[0, 1, 2, 3]), ds.select(clips=[4, 5])


def of_rows(values: dict[str, float], ds: Any) -> Array:
    return np.concatenate([np.full(rows, values[name]) for name, rows in ds.features.items()])


def textbook(
    ds: Any, neuron: int, lags: range, lambdas: dict[str, float], alpha: float = 1.0
) -> tuple[Array, float]:
    """scikit-learn on columns divided by the root of their penalty; weights (F, L), the oldest lag first."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a development extra")
    sizes = np.tile(1.0 / np.sqrt(of_rows(lambdas, ds)), len(lags))
    x, y = [], []
    for clip in range(len(ds)):
        response = np.asarray(ds.response_block(clip)[neuron].double()).mean(0)
        kept = ~np.isnan(response)
        x.append(explicit(np.asarray(ds.stims[clip][0].double()), lags)[kept])
        y.append(response[kept])
    theirs = linear_model.Ridge(alpha=alpha, solver="svd").fit(np.concatenate(x) * sizes, np.concatenate(y))
    return (theirs.coef_ * sizes).reshape(len(lags), -1)[::-1].T, float(theirs.intercept_)


# ------------------------------ the estimate


@pytest.mark.parametrize("lags_ms", [(0, 50), (-30, 40), (-100, 900)])  # the last has fewer bins than weights
def test_one_penalty_per_feature_is_ridge_on_rescaled_columns(lags_ms: tuple[float, float]) -> None:
    ds = recording(n_clips=3)
    lambdas = {"spectrogram": 300.0, "onsets": 0.5, "pupil": 4000.0}
    fit = fit_ridge(ds, lags_ms=lags_ms, lambdas=lambdas, standardize=False)
    assert sorted(fit.forms) == (["dual"] if lags_ms[1] == 900 else ["primal"])
    for neuron in range(NEURONS):
        wanted, bias = textbook(ds, neuron, fit.lags, lambdas)
        np.testing.assert_allclose(fit.weight[neuron, 0], wanted, atol=1e-8 * np.abs(wanted).max(), rtol=0)
        assert fit.bias[neuron].item() == pytest.approx(bias, abs=1e-8)
    assert {name: values.tolist() for name, values in fit.feature_lambdas.items()} == {
        name: pytest.approx([value] * NEURONS, rel=1e-12) for name, value in lambdas.items()
    }
    assert fit.lambdas.tolist() == pytest.approx([np.exp(np.mean(np.log(list(lambdas.values()))))] * NEURONS)


def test_the_grid_is_every_combination_and_each_neuron_takes_its_best() -> None:
    train, validation = parts_of(recording())
    grid = {"spectrogram": [10.0, 1000.0], "onsets": [0.1, 10.0, 1000.0], "pupil": [100.0]}
    fit = fit_ridge(train, validation, n_lags=5, lambdas=grid, standardize=False, score="cc")
    tried = [tuple(fit.feature_grid[name][k].item() for name in ROWS) for k in range(6)]
    wanted = set(itertools.product(*(grid[name] for name in ROWS)))
    assert {tuple(round(one, 6) for one in row) for row in tried} == wanted
    scores = np.zeros((6, NEURONS))
    for k, row in enumerate(tried):
        lambdas = dict(zip(ROWS, row, strict=True))
        for neuron in range(NEURONS):
            weight, bias = textbook(train, neuron, fit.lags, lambdas)
            flat = weight[:, ::-1].T.reshape(-1)
            pairs = [
                (
                    explicit(np.asarray(validation.stims[clip][0].double()), fit.lags) @ flat + bias,
                    np.asarray(validation.response_block(clip)[neuron].double()).mean(0),
                )
                for clip in range(2)
            ]
            scores[k, neuron] = np.corrcoef(*(np.concatenate(side) for side in zip(*pairs, strict=True)))[
                0, 1
            ]
    np.testing.assert_allclose(fit.scores["cc"], scores, atol=1e-5)
    best = scores.argmax(0)
    for neuron in range(NEURONS):
        chosen = dict(zip(ROWS, tried[best[neuron]], strict=True))
        for name in ROWS:
            assert fit.feature_lambdas[name][neuron].item() == pytest.approx(chosen[name], rel=1e-12)
        weight, bias = textbook(train, neuron, fit.lags, chosen)
        np.testing.assert_allclose(fit.weight[neuron, 0], weight, atol=1e-8 * np.abs(weight).max(), rtol=0)
        assert fit.bias[neuron].item() == pytest.approx(bias, abs=1e-8)
    shared = fit_ridge(
        train, validation, n_lags=5, lambdas=grid, standardize=False, score="cc", per_neuron=False
    )
    at = int(scores.mean(1).argmax())
    assert shared.feature_lambdas["onsets"].tolist() == pytest.approx([tried[at][1]] * NEURONS)


def test_one_feature_alone_is_ordinary_ridge() -> None:
    train, validation = parts_of(recording(["spectrogram"]))
    plain = fit_ridge(train, validation, n_lags=5, lambdas=[1.0, 10.0, 100.0])
    named = fit_ridge(train, validation, n_lags=5, lambdas={"spectrogram": [1.0, 10.0, 100.0]})
    searched = fit_ridge(train, validation, n_lags=5, lambdas=[1.0, 10.0, 100.0], banded=True)
    for other in (named, searched):
        assert torch.equal(plain.weight, other.weight)
        assert torch.equal(plain.lambdas, other.lambdas)
        assert torch.equal(plain.scores["cc"], other.scores["cc"])
        assert torch.equal(other.feature_lambdas["spectrogram"], other.lambdas)
        assert other.feature_grid == {}


def test_equal_penalties_are_ordinary_ridge() -> None:
    ds = recording()
    plain = fit_ridge(ds, n_lags=5, lambdas=20.0)
    equal = fit_ridge(ds, n_lags=5, lambdas=dict.fromkeys(ROWS, 20.0))
    assert torch.equal(plain.weight, equal.weight)
    assert {name: values.tolist() for name, values in plain.feature_lambdas.items()} == dict.fromkeys(
        ROWS, [20.0] * NEURONS
    )


def test_the_search_is_bounded_repeatable_and_no_worse() -> None:
    two = recording(["spectrogram", "onsets"])
    for ds, n_ratios in ((two, 13), (recording(), 1 + 2 * 3 + 24)):
        train, validation = parts_of(ds)
        plain = fit_ridge(train, validation, n_lags=8)
        found = fit_ridge(train, validation, n_lags=8, banded=True)
        again = fit_ridge(train, validation, n_lags=8, banded=True)
        assert torch.equal(found.weight, again.weight)
        assert len(found.grid) == 12 * n_ratios
        # those of ordinary ridge are among them
        equal = torch.stack(list(found.feature_grid.values())).log().std(0) < 1e-9
        assert int(equal.sum()) == 12
        torch.testing.assert_close(found.scores["cc"][equal], plain.scores["cc"])
        best = [fit.scores["cc_norm"].nan_to_num(nan=-1).amax(0).mean() for fit in (plain, found)]
        assert best[1] >= best[0] - 1e-9
        typical = torch.stack([values.log() for values in found.feature_grid.values()]).mean(0).exp()
        torch.testing.assert_close(found.grid, typical)
        assert found.feature_lambdas["onsets"].mean() < found.feature_lambdas["spectrogram"].mean()
        assert "one per neuron and feature (spectrogram" in found.facts()["lambda"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lambdas": {"spectrogram": [1.0], "onsets": [1.0]}}, ValueError, "for each of them"),
        ({"lambdas": {"spectrogram": 1.0, "onsets": 1.0, "pupils": 1.0}}, ValueError, "pupils"),
        ({"lambdas": dict.fromkeys(ROWS, 1.0), "banded": True}, ValueError, "leave it out"),
        ({"lambdas": dict.fromkeys(ROWS, -1.0)}, ValueError, "above 0"),
        ({"lambdas": dict.fromkeys(ROWS, "a")}, TypeError, "lambdas"),
        (
            {"lambdas": dict.fromkeys(ROWS, np.linspace(1, 9, 8).tolist())},
            ValueError,
            "different ratios.*one factor",
        ),
        (
            {"lambdas": dict.fromkeys(ROWS, np.geomspace(1, 9, 40).tolist())},
            ValueError,
            "64,000 combinations",
        ),
    ],
)
def test_bad_penalties(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fit_ridge(*parts_of(recording()), n_lags=3, **options)


def test_features_without_names_are_told_how_to_get_them() -> None:
    ds = AudioNeuralDataset.from_arrays(
        [np.ones((3, 50))], [np.ones((2, 2, 50))], dt_ms=DT, check_alignment=False
    )
    for options in ({"banded": True}, {"lambdas": {"spectrogram": 1.0}}):
        with pytest.raises(ValueError, match="recording of named features"):
            fit_ridge(ds, n_lags=3, **options)  # type: ignore[arg-type]
    assert fit_ridge(ds.select(), n_lags=3, lambdas=1.0).feature_lambdas == {}


# ------------------------------ kept apart


def test_fields_by_feature_survive_saving(tmp_path: Path) -> None:
    ds = recording()
    fit = fit_ridge(ds, lags_ms=(-30, 40), lambdas=20.0)
    assert fit.feature_weights("onsets").shape == (NEURONS, 1, 1, 8)
    assert torch.equal(torch.cat([fit.feature_weights(name) for name in ROWS], dim=2), fit.weight)
    fit.model.save_pretrained(tmp_path / "model")
    model: Any = NeuralModel.from_pretrained(tmp_path / "model")
    for folded in (False, True):
        whole = model.STRFs(folded=folded)
        parts = [model.STRFs(folded=folded, feature=name) for name in ROWS]
        assert [part.shape[1] for part in parts] == list(ROWS.values())
        assert torch.equal(torch.cat(parts, dim=1), whole)
    with pytest.raises(KeyError, match="has spectrogram, onsets, pupil"):
        model.STRFs(feature="pitch")
    with pytest.raises(KeyError, match="names no features"):
        Linear(7, 3).STRFs(feature="onsets")
    with pytest.raises(ValueError, match="features"):
        model.predict(ds.select(features=["onsets", "spectrogram", "pupil"]))


def test_figures_have_a_panel_per_feature() -> None:
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(5, 7, 8))
    figure, drawn = plot_feature_fields(
        fields,
        ROWS,
        [f"neuron {k}" for k in range(5)],
        DT,
        ncols=3,
        frequencies_hz=HERTZ,
        first_lag=-3,
        unit="sd",
    )
    assert len(drawn) == 5
    assert [list(panels) for panels in drawn] == [list(ROWS)] * 5
    assert sum(ax.get_visible() for ax in figure.axes) == 15
    for field, panels in zip(fields, drawn, strict=True):
        assert {ax.get_xlim() for ax in panels.values()} == {(50.0, -30.0)}
        np.testing.assert_array_equal(panels["spectrogram"].images[0].get_array(), field[:4])
        np.testing.assert_array_equal(panels["pupil"].images[0].get_array(), field[5:])
        assert not panels["onsets"].images
        curve = panels["onsets"].lines[1]
        np.testing.assert_array_equal(curve.get_ydata(), field[4])
        np.testing.assert_allclose(curve.get_xdata(), 45.0 - 10.0 * np.arange(8))
        assert panels["onsets"].lines[2].get_xdata()[0] == 0.0
    first = drawn[0]
    assert [first[name].get_ylabel() for name in ROWS] == ["frequency (kHz)", "per SD", "row"]
    figure.canvas.draw()
    with pytest.raises(ValueError, match="all 7 rows"):
        plot_feature_fields(fields, {"spectrogram": 6})


def test_reports_show_features_apart(tmp_path: Path) -> None:
    recording().save(tmp_path / "mine.npz")
    options = {"lags_ms": [-30, 40], "lambdas": {name: [10.0, 100.0] for name in ROWS}}
    config = ExperimentConfig(
        dataset=str(tmp_path / "mine.npz"), split="4/1/1", model="ridge", model_options=options
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert run.facts["features"] == ROWS
    assert run.facts["feature_frequencies"] == {"spectrogram": HERTZ["spectrogram"].tolist()}
    found = explain_run(run, [0], progress=False)
    skipped = dict(found.skipped)
    assert "several features" in skipped["tuning"]
    assert "confidence bands" not in skipped
    page = write_report(run).read_text()
    for text in (
        "Each feature of the stimulus has a panel",
        "of the features of the stimulus, spectrogram is shown".capitalize(),
        "spectrogram (4), onsets (1), pupil (2)",
    ):
        assert text in page, text


# ------------------------------ networks on joined features


@pytest.mark.parametrize(
    "build",
    [
        lambda F: ConvNet2D(F, c_hidden=3, n_hidden=4, kernel_size=(3, 3), out_neurons=NEURONS),
        lambda F: StateNet(F, hidden_channels=3, kernel_size=4, stride=2, out_neurons=NEURONS),
    ],
)
def test_networks_train_on_joined_features(build: Any) -> None:
    torch.manual_seed(0)
    train, validation = parts_of(recording())
    model = build(train.F)
    history = Fitter(
        model, *make_loaders(train, validation, batch_size=2, seed=0), max_epochs=3, progress=False
    ).fit()
    assert np.isfinite([row["train_loss"] for row in history]).all()
    assert model.fitted_on.feature_sizes() == ROWS
    assert model.STRF_gradmap().shape[:3] == (NEURONS, 1, sum(ROWS.values()))
    assert np.isfinite(score_model(model, validation).mean("cc").mean)
