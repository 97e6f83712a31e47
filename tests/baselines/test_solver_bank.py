"""Every registered linear fit, on recordings with everything that can be missing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.baselines import LinearFit
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.models.audio import Linear
from deepSTRF.registry import SOLVERS
from deepSTRF.report import write_report

BANDS, LAGS, LENGTHS = 4, 3, (90, 60, 120, 75, 80, 70)
SOLVER = pytest.mark.parametrize("solver", SOLVERS.names())


def recording(
    *,
    sound: float = 1.0,
    level: float = 0.0,
    unit: float = 1.0,
    order: tuple[int, ...] | None = None,
    lengths: tuple[int, ...] = LENGTHS,
) -> AudioNeuralDataset:
    """Four neurons: one whole, one without some bins, one with ragged repeats, one that missed two clips."""
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(4, BANDS, LAGS))
    stims, responses = [], []
    for clip, length in enumerate(lengths):
        stim = rng.normal(size=(BANDS, length))
        padded = np.pad(stim, ((0, 0), (LAGS - 1, 0)))
        drive = sum(fields[:, :, k] @ padded[:, k : k + length] for k in range(LAGS))
        entry: list[Any] = list(drive[:, None] + 0.7 * rng.normal(size=(4, 3, length)) + 2.0)
        entry[1][:, 10:14] = np.nan
        entry[2][1:, 20:] = np.nan
        if clip in (1, 5) and len(lengths) > 2:
            entry[3] = None
        stims.append(stim * sound + level)
        responses.append([None if one is None else one * unit for one in entry])
    if order is not None:
        stims, responses = [stims[k] for k in order], [responses[k] for k in order]
    return AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=5.0, response_kind="trace", check_alignment=False
    )


def fitted(solver: str, ds: AudioNeuralDataset | None = None, **options: Any) -> LinearFit:
    ds = recording() if ds is None else ds
    train, validation = ds.select(clips=range(len(ds) - 2)), ds.select(clips=[len(ds) - 2, len(ds) - 1])
    return SOLVERS.get(solver)(train, validation, **{"n_lags": LAGS, **options})  # type: ignore[no-any-return]


@SOLVER
def test_the_model_is_the_estimate(solver: str) -> None:
    ds, fit = recording(), fitted(solver)
    assert isinstance(fit, LinearFit)
    assert type(fit.model) is Linear
    assert fit.model.readout.norm == "none"
    assert fit.weight.shape == (4, 1, BANDS, LAGS)
    assert fit.weight.dtype == fit.bias.dtype == torch.float64
    assert not fit.untrained
    x = fit.model.standardizer(ds.stims[2][None])[0, 0].double()
    x = torch.nn.functional.pad(x, (LAGS - 1, 0))
    expected = sum(fit.weight[:, 0, :, k] @ x[:, k : k + LENGTHS[2]] for k in range(LAGS))
    torch.testing.assert_close(
        fit.model.predict(ds)[2].double(), expected + fit.bias[:, None], atol=1e-5, rtol=1e-5
    )


@SOLVER
def test_the_text_of_a_fit_is_short(solver: str) -> None:
    fit = fitted(solver)
    first, *others = repr(fit).splitlines()
    assert first == f"{type(fit).__name__}: weight (4, 1, {BANDS}, {LAGS})"
    assert 1 <= len(others) <= 6
    assert "tensor(" not in repr(fit)
    for _, text in fit.notes():
        assert text in repr(fit)


@pytest.mark.parametrize("solver", ["ridge", "tikhonov"])
def test_neurons_without_a_score_did_not_choose_an_edge(solver: str) -> None:
    ds = recording()
    views = ds.select(clips=[0, 2, 3, 4]), ds.select(clips=[1, 5])  # nobody heard neuron 3 in these
    fit = SOLVERS.get(solver)(*views, n_lags=LAGS, lambdas=[1e6, 1e7])
    assert any(text.startswith("3 of 3 neurons chose a lambda at an edge") for _, text in fit.notes())


@SOLVER
def test_moments_of_the_prediction(solver: str) -> None:
    ds, fit = recording(), fitted(solver)
    rates = fit.model.predict(ds)
    heard = [
        torch.cat([rates[c][n][~ds.response_block(c)[n].isnan().all(0)] for c in range(4)]).double()
        for n in range(4)
    ]
    torch.testing.assert_close(fit.drive_mean, torch.stack([x.mean() for x in heard]), rtol=1e-4, atol=1e-4)
    variance = torch.stack([x.var(correction=0) for x in heard])
    torch.testing.assert_close(fit.drive_variance, variance, rtol=1e-3, atol=1e-5)


@SOLVER
def test_learns_what_is_there(solver: str) -> None:
    assert (fitted(solver).scores["cc"].max(0).values > 0.6).all()


@SOLVER
def test_units_level_and_order_do_not_matter(solver: str) -> None:
    fit = fitted(solver)
    for factor in (1e-3, 1e4):
        other = fitted(solver, recording(unit=factor))
        torch.testing.assert_close(other.weight / factor, fit.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.bias / factor, fit.bias, rtol=1e-4, atol=1e-5)
    louder = fitted(solver, recording(sound=30.0, level=-7.0))
    torch.testing.assert_close(louder.weight, fit.weight, rtol=1e-4, atol=1e-5)
    moved = fitted(solver, recording(order=(3, 0, 2, 1, 5, 4)))
    torch.testing.assert_close(moved.weight, fit.weight, rtol=1e-6, atol=1e-8)


@SOLVER
def test_a_neuron_does_not_depend_on_its_company(solver: str) -> None:
    ds, fit = recording(), fitted(solver, standardize=False)
    train, validation = ds.select(clips=range(4)), ds.select(clips=[4, 5])
    for neuron in range(4):
        alone = SOLVERS.get(solver)(
            train.select(neurons=[neuron]),
            validation.select(neurons=[neuron]),
            n_lags=LAGS,
            standardize=False,
        )
        torch.testing.assert_close(alone.weight[0], fit.weight[neuron], rtol=1e-6, atol=1e-8)


@SOLVER
def test_one_neuron_and_one_clip(solver: str) -> None:
    ds = recording(lengths=(90, 60)).select(neurons=[1])
    fit = SOLVERS.get(solver)(ds.select(clips=[0]), ds.select(clips=[1]), n_lags=LAGS)
    assert fit.weight.shape == (1, 1, BANDS, LAGS)
    assert torch.isfinite(fit.weight).all()


@SOLVER
def test_missing_and_silent_neurons(solver: str) -> None:
    whole = recording()
    responses = [[whole.response_block(c)[n].numpy() for n in range(4)] for c in range(6)]
    for clip in range(6):
        responses[clip][0] = np.full((1, LENGTHS[clip]), 3.5)  # never varies
        responses[clip][3] = None if clip < 4 else responses[clip][2]  # not in training
        if clip >= 4:
            responses[clip][1] = None  # not in validation
    ds = AudioNeuralDataset.from_arrays(
        [np.asarray(x) for x in whole.stims],
        responses,
        dt_ms=5.0,
        response_kind="trace",
        check_alignment=False,
    )
    fit = fitted(solver, ds)
    assert fit.untrained == ("neuron003",)
    assert torch.isfinite(fit.weight).all()
    assert (fit.weight[3] == 0).all()
    assert fit.weight[0].abs().max() < 1e-9
    assert fit.bias[0].item() == pytest.approx(3.5)
    assert fit.weight[1].abs().max() > 0.01
    assert any("neuron003" in text for _, text in fit.notes())


@SOLVER
def test_lags_into_the_future_and_prefilters(solver: str) -> None:
    fit = fitted(solver, n_lags=None, lags_ms=(-5, 10))
    assert fit.lags == range(-1, 3)
    assert fit.facts()["lags"] == "-5 to 10 ms before the response"
    assert fit.model.lookahead_frames == 1
    adapted = {"prefiltering": "adaptrans", "dt": 5.0, "min_freq": 500, "max_freq": 8000}
    assert fitted(solver, prefiltering=adapted).weight.shape == (4, 2, BANDS, LAGS)


@SOLVER
def test_features_have_weights_of_their_own(solver: str) -> None:
    whole = recording()
    stims = [{"spectrogram": np.asarray(x[0]), "onset": np.asarray(x[0, :1] > 1)} for x in whole.stims]
    responses = [[whole.response_block(c)[n].numpy() for n in range(2)] for c in range(6)]
    ds = AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=5.0, response_kind="trace", check_alignment=False
    )
    assert fitted(solver, ds).feature_weights("onset").shape == (2, 1, 1, LAGS)


@SOLVER
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_lags": 0}, ValueError, "n_lags must be at least 1"),
        ({"warmup_ms": -1.0}, ValueError, "warmup_ms"),
        ({"warmup_ms": 1e7}, ValueError, r"no neuron has responses to fit.*warmup_ms=1e"),
        ({"lags_ms": (10, -10), "n_lags": None}, ValueError, "lags_ms must be"),
        ({"standardize": "yes"}, TypeError, "standardize"),
    ],
)
def test_bad_arguments(solver: str, options: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        fitted(solver, **options)


@SOLVER
def test_bad_recordings(solver: str) -> None:
    ds, fit = recording(), SOLVERS.get(solver)
    with pytest.raises(ValueError, match="train has no clips"):
        fit(ds.select(clips=[]), ds, n_lags=LAGS)
    with pytest.raises(ValueError, match="train has 4 neurons and validation 2"):
        fit(ds, ds.select(neurons=[0, 1]), n_lags=LAGS)
    with pytest.raises(ValueError, match=r"1 of 2 validation clips.*one role"):
        fit(ds.select(clips=[0, 1, 3]), ds.select(clips=[2, 3]), n_lags=LAGS)


@SOLVER
def test_an_experiment_and_its_report(solver: str, tmp_path: Any) -> None:
    config = ExperimentConfig(
        model=solver,
        model_options={"n_lags": 4},
        dataset_options={"n_neurons": 2, "n_clips": 5, "n_repeats": 3},
    )
    run = run_experiment(config, tmp_path, progress=False)
    assert type(run.load_model()) is Linear
    assert run.config.standardize
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=3)
    facts = SOLVERS.get(solver)(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=4).facts()
    assert facts["method"] in json.dumps(protocol, ensure_ascii=False)
    assert facts["method"][:30] in write_report(run).read_text(encoding="utf-8")
