"""Cross-validation with nested choices: against scikit-learn by hand, and test clips that nothing saw."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from deepSTRF.baselines import fit_ridge
from deepSTRF.crossval import CrossValidation, FoldFits, cross_validate, predict_folds, score_folds
from deepSTRF.crossval.cross_validate import _penalty_notes
from deepSTRF.datasets import NeuralDataset, index_split, k_fold, leave_one_clip_out
from deepSTRF.experiments import ExperimentConfig
from deepSTRF.models.audio import Linear
from deepSTRF.plots import plot_cross_validation
from deepSTRF.registry import SOLVERS
from deepSTRF.training import FitDivergedError, Fitter, make_loaders, score_model

BANDS, LAGS = 3, 4
LAMBDAS = [0.1, 30.0, 3000.0]


def recording(
    lengths: tuple[int, ...] = (60, 45, 70, 52, 60, 66), neurons: int = 2, seed: int = 0, noise: float = 1.0
) -> NeuralDataset:
    """Ragged clips of noise, linear neurons, ragged repeats, by speaker and scene."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((neurons, BANDS, LAGS))
    stims, responses = [], []
    for length in lengths:
        x = rng.standard_normal((BANDS, length)).astype(np.float32)
        padded = np.pad(x, ((0, 0), (LAGS - 1, 0)))
        drive = sum(kernel[:, :, k] @ padded[:, LAGS - 1 - k :][:, :length] for k in range(LAGS))
        stims.append(x)
        responses.append(
            [
                drive[n] + noise * 3 * rng.standard_normal((2 + (n + length) % 3, length))
                for n in range(neurons)
            ]
        )
    meta = [{"name": f"s{clip}", "speaker": "abc"[clip % 3]} for clip in range(len(lengths))]
    return NeuralDataset.from_arrays(stims, responses, 5.0, stim_meta=meta, check_alignment=False)


def with_other_responses(ds: NeuralDataset, clips: Any, bins: slice = slice(None)) -> NeuralDataset:
    """The same recording with other responses to some clips."""
    rng = np.random.default_rng(1)
    responses = []
    for clip in range(len(ds)):
        rows = []
        for n in range(ds.N_neurons):
            row = ds.responses[clip][n].double().numpy().copy()
            if clip in clips:
                row[:, bins] = 2 * row[:, bins] + rng.standard_normal(row[:, bins].shape[1])
            rows.append(row)
        responses.append(rows)
    stims = [ds.stims[clip][0].numpy() for clip in range(len(ds))]
    return NeuralDataset.from_arrays(
        stims, responses, 5.0, stim_meta=[dict(row) for row in ds.stim_meta], check_alignment=False
    )


def design(ds: NeuralDataset, clip: int) -> np.ndarray:
    x = ds.stims[clip][0].double().numpy()
    padded = np.pad(x, ((0, 0), (LAGS - 1, 0)))
    return np.concatenate([padded[:, LAGS - 1 - k :][:, : x.shape[1]] for k in range(LAGS)]).T


def psth(ds: NeuralDataset, clip: int) -> np.ndarray:
    return np.stack([np.nanmean(ds.responses[clip][n].double().numpy(), axis=0) for n in range(ds.N_neurons)])


RIDGE: dict[str, Any] = {"n_lags": LAGS, "standardize": False}


def by_hand(ds: NeuralDataset, folds: Any, inner: Any) -> tuple[list[float], list[np.ndarray]]:
    """Nested choice of one penalty by the mean correlation, with scikit-learn."""
    chosen, predicted = [], [np.zeros(0)] * len(ds)
    for split in folds:
        rest = sorted({*split.train, *split.val})
        view = ds.select(clips=rest)
        pairs = [([rest[i] for i in s.train], [rest[i] for i in s.test]) for s in inner(view)]
        means = []
        for penalty in LAMBDAS:
            pred, real = [], []
            for train, val in pairs:
                y = np.concatenate([psth(ds, c) for c in train], axis=1).T
                model = Ridge(alpha=penalty).fit(np.concatenate([design(ds, c) for c in train]), y)
                pred += [model.predict(design(ds, c)) for c in val]
                real += [psth(ds, c).T for c in val]
            p, r = np.concatenate(pred), np.concatenate(real)
            means.append(np.mean([np.corrcoef(p[:, n], r[:, n])[0, 1] for n in range(ds.N_neurons)]))
        best = LAMBDAS[int(np.argmax(means))]
        chosen.append(best)
        model = Ridge(alpha=best).fit(np.concatenate([design(ds, c) for c in rest]),
                                      np.concatenate([psth(ds, c) for c in rest], axis=1).T)  # fmt: skip
        for clip in split.test:
            predicted[clip] = model.predict(design(ds, clip)).T
    return chosen, predicted


@pytest.mark.parametrize(
    ("folds", "splits", "inner", "inner_splits"),
    [
        ("leave-one-clip-out", leave_one_clip_out, 3, lambda v: k_fold(v, 3, n_val=0)),
        (3, lambda ds: k_fold(ds, 3), "leave-one-clip-out", lambda v: leave_one_clip_out(v, n_val=0)),
        ("group:speaker", lambda ds: leave_one_clip_out(ds, group="speaker"), "leave-one-clip-out",
         lambda v: leave_one_clip_out(v, n_val=0, group="speaker")),
    ],
)  # fmt: skip
def test_nested_choice_equals_scikit_learn_by_hand(folds, splits, inner, inner_splits) -> None:
    ds = recording()
    cv = cross_validate(
        "ridge",
        ds,
        folds,
        options=RIDGE,
        choices={"lambdas": LAMBDAS},
        inner=inner,
        score="cc",
        n_bootstrap=0,
    )
    chosen, predicted = by_hand(ds, splits(ds), inner_splits)
    assert [one["lambdas"] for one in cv.chosen] == chosen
    for mine, theirs in zip(cv.predictions, predicted, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=2e-5, rtol=1e-4)
    pooled = [np.concatenate(many, axis=1) for many in ([p.numpy() for p in cv.predictions],
                                                        [psth(ds, c) for c in range(len(ds))])]  # fmt: skip
    for neuron in range(ds.N_neurons):
        expected = np.corrcoef(pooled[0][neuron], pooled[1][neuron])[0, 1]
        assert cv.scores["cc"][neuron] == pytest.approx(expected, abs=1e-5)


def test_one_penalty_per_neuron_is_chosen_inside() -> None:
    ds = recording(neurons=3)
    cv = cross_validate(
        "ridge",
        ds,
        options={**RIDGE, "lambdas": LAMBDAS},
        inner="leave-one-clip-out",
        score="cc",
        n_bootstrap=0,
    )
    for number, split in enumerate(leave_one_clip_out(ds)):
        rest = sorted({*split.train, *split.val})
        scores = np.zeros((len(LAMBDAS), 3))
        for i, penalty in enumerate(LAMBDAS):
            pred = []
            for val in rest:
                train = [c for c in rest if c != val]
                y = np.concatenate([psth(ds, c) for c in train], axis=1).T
                model = Ridge(alpha=penalty).fit(np.concatenate([design(ds, c) for c in train]), y)
                pred.append(model.predict(design(ds, val)))
            p, r = np.concatenate(pred), np.concatenate([psth(ds, c) for c in rest], axis=1).T
            scores[i] = [np.corrcoef(p[:, n], r[:, n])[0, 1] for n in range(3)]
        best = np.array(LAMBDAS)[scores.argmax(0)]
        np.testing.assert_allclose(cv.chosen[number]["lambdas"], best)
        inside = [one for one in cv.candidates if one.fold == number]
        np.testing.assert_allclose(np.stack([one.scores for one in inside]), scores, atol=1e-5)
        y = np.concatenate([psth(ds, c) for c in rest], axis=1).T
        x = np.concatenate([design(ds, c) for c in rest])
        for n in range(3):
            hand = Ridge(alpha=best[n]).fit(x, y[:, n]).predict(design(ds, number))
            np.testing.assert_allclose(cv.predictions[number][n], hand, atol=2e-5, rtol=1e-4)


def test_shared_sums_give_what_single_fits_give() -> None:
    """Penalties and lags as choices, against a plain function, for which each fit is made anew."""
    ds = recording()
    choices = {"n_lags": [2, LAGS], "lambdas": [300.0, 0.1, 30.0]}
    options: dict[str, Any] = {"choices": choices, "inner": 3, "n_bootstrap": 0}
    one = cross_validate("ridge", ds, 3, options={"standardize": True}, **options)
    two = cross_validate(functools.partial(fit_ridge, standardize=True), ds, 3, refit=True, **options)
    assert one.chosen == two.chosen
    for a, b in zip(one.predictions, two.predictions, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    means = [
        {(o.fold, o.options["n_lags"], o.options["lambdas"]): o.mean for o in cv.candidates}
        for cv in (one, two)
    ]
    assert means[0].keys() == means[1].keys()
    assert len(means[0]) == 18
    for key, value in means[0].items():
        assert value == pytest.approx(means[1][key], abs=1e-5)
    assert [sum(o.chosen for o in cv.candidates) for cv in (one, two)] == [3, 3]


@pytest.mark.parametrize("folds", ["group:speaker", "blocked:3:15"])
def test_one_penalty_per_neuron_inside_groups_and_blocks(folds: str) -> None:
    """Each neuron for itself through the general way of choosing."""
    ds = recording(neurons=2)
    options: dict[str, Any] = {"inner": 2, "n_bootstrap": 0, "score": "cc"}
    both = cross_validate("ridge", ds, folds, options={**RIDGE, "lambdas": LAMBDAS}, **options)
    for neuron in range(2):
        view = ds.select(neurons=[neuron])
        fit = functools.partial(fit_ridge, **RIDGE)
        one = cross_validate(fit, view, folds, choices={"lambdas": LAMBDAS}, refit=True, **options)
        chosen = [float(fold["lambdas"][neuron]) for fold in both.chosen]
        assert chosen == pytest.approx([fold["lambdas"] for fold in one.chosen])
        for a, b in zip(both.predictions, one.predictions, strict=True):
            torch.testing.assert_close(a[neuron], b[0], atol=1e-5, rtol=1e-4)


def test_ridge_of_a_configuration_and_of_a_folder(tmp_path: Path) -> None:
    ds = recording()
    options: dict[str, Any] = {"inner": 2, "n_bootstrap": 0}
    one = cross_validate("ridge", ds, 3, options={"n_lags": LAGS}, out=tmp_path, **options)
    again = cross_validate("ridge", ds, 3, options={"n_lags": LAGS}, out=tmp_path, **options)
    config = ExperimentConfig(model="ridge", model_options={"n_lags": LAGS}, standardize=True)
    two = cross_validate(config, ds, 3, **options)
    for a, b, c in zip(one.predictions, again.predictions, two.predictions, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert one.to_json() == again.to_json()
    assert one.to_csv() == again.to_csv()
    np.testing.assert_array_equal(one.chosen[1]["lambdas"], again.chosen[1]["lambdas"])
    rows = [row for row in one.table() if row["fold"] == "1"]
    assert f",{one.chosen[1]['lambdas'][0]}" in one.to_csv()
    assert len(rows) == 2


def weights(cv: CrossValidation, fold: int) -> list[torch.Tensor]:
    return [value for model in cv.models[fold] for value in model.state_dict().values()]


NETWORK = ExperimentConfig(
    model="linear", model_options={"temporal_window_size": LAGS}, epochs=3, learning_rate=0.03
)
FOLDS = ["leave-one-clip-out", 3, "group:speaker", "blocked:3:15"]


@pytest.mark.parametrize("folds", FOLDS)
@pytest.mark.parametrize("what", ["ridge", "network", "function"])
def test_responses_to_test_clips_change_neither_choice_nor_model(folds: Any, what: str) -> None:
    lengths = (40, 44, 38, 36, 40, 42) if folds == "group:speaker" else (90, 72, 80)
    ds = recording(lengths, noise=0.2)
    options: dict[str, Any] = {"n_bootstrap": 0, "inner": 2}
    if what == "ridge":
        given: Any = "ridge"
        options |= {"options": RIDGE, "choices": {"lambdas": LAMBDAS}}
    elif what == "network":
        given, options["choices"] = NETWORK, {"learning_rate": [0.03, 0.001]}
    else:
        given = functools.partial(fit_ridge, **RIDGE)
        options |= {"choices": {"lambdas": LAMBDAS}, "refit": True}
    cv = cross_validate(given, ds, folds, **options)
    for fold in (0, len(cv) - 1):
        if str(folds).startswith("blocked"):
            changed = ds
            for part in cv.folds[fold].test:
                clip, number = divmod(part, 3)
                ends = np.linspace(0, ds.n_bins(clip), 4).round().astype(int)
                changed = with_other_responses(changed, [clip], slice(ends[number], ends[number + 1]))
        else:
            changed = with_other_responses(ds, cv.folds[fold].test)
        other = cross_validate(given, changed, folds, **options)
        assert other.chosen[fold] == cv.chosen[fold]
        assert all(torch.equal(a, b) for a, b in zip(weights(cv, fold), weights(other, fold), strict=True))
        for mine, theirs in zip(cv.candidates, other.candidates, strict=True):
            if mine.fold == fold:
                assert mine.mean == theirs.mean
        some = next(f for f in range(len(cv)) if f != fold)
        assert any(
            not torch.equal(a, b) for a, b in zip(weights(cv, some), weights(other, some), strict=True)
        )


def test_blocks_leave_a_gap_out_and_predict_every_bin() -> None:
    ds = recording((200,))
    seen = []

    def fit(train, validation, seed):
        seen.append((
            [(train.stim_meta[i]["start_ms"] / 5, train.n_bins(i)) for i in range(len(train))],
            None if validation is None else
            [(validation.stim_meta[i]["start_ms"] / 5, validation.n_bins(i)) for i in range(len(validation))],
        ))  # fmt: skip
        return fit_ridge(train, None, n_lags=LAGS, lambdas=10.0, standardize=False)

    cv = cross_validate(fit, ds, "blocked:4:25", n_bootstrap=0)
    assert [tuple(rates.shape) for rates in cv.predictions] == [(2, 200)]
    assert seen[0] == ([(105, 95)], [(55, 45)])  # test 0-50, validation 50-100 less a gap of 5 bins
    assert seen[1] == ([(0, 45), (155, 45)], [(105, 45)])
    seen.clear()
    cv = cross_validate(fit, ds, "blocked:4:25", n_bootstrap=0, refit=True)
    assert seen[1] == ([(0, 45), (105, 95)], None)
    # the prediction of a block knows the stimulus before it
    (model,) = cv.models[1]
    assert torch.equal(cv.predictions[0][:, 50:100], model.predict(ds)[0][:, 50:100])
    # the stretches are clips: no history at their starts
    rows = [design(ds.cut(225.0), 0)[:45], design(ds.cut(525.0), 1)]
    y = psth(ds, 0)[:, [*range(45), *range(105, 200)]].T
    hand = Ridge(alpha=10.0).fit(np.concatenate(rows), y)
    np.testing.assert_allclose(cv.predictions[0][:, 50:100], hand.predict(design(ds, 0))[50:100].T, atol=2e-5)


def test_the_same_sound_never_stands_on_both_sides() -> None:
    ds = recording()
    order = [0, 1, 2, 3, 4, 5, 0, 3]
    twice = ds.select(clips=[0, 1, 2, 3, 4, 5])
    both = NeuralDataset.from_arrays(
        [twice.stims[i][0].numpy() for i in order],
        [[twice.responses[i][n].double().numpy() for n in range(2)] for i in order],
        5.0, check_alignment=False,
    )  # fmt: skip
    cv = cross_validate("ridge", both, options={**RIDGE, "lambdas": 10.0}, n_bootstrap=0)
    assert len(cv) == 6
    assert cv.folds[0].test == (0, 6)
    assert torch.equal(cv.predictions[0], cv.predictions[6])
    for split in cv.folds:
        sounds = [
            {both.source_fingerprint(i) for i in part} for part in (split.train + split.val, split.test)
        ]
        assert not sounds[0] & sounds[1]


def test_a_function_that_runs_a_fitter_and_its_seed_and_epochs() -> None:
    ds, calls = recording(), []

    def fit(train, validation, *, seed, epochs=4, rate=0.03):
        calls.append((len(train), None if validation is None else len(validation), seed, epochs, rate))
        model = Linear(BANDS, LAGS, 2, norm="none")
        held = train.select(clips=[0]) if validation is None else validation
        fitter = Fitter(model, *make_loaders(train, held, seed=seed), max_epochs=epochs, progress=False,
                        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=rate))  # fmt: skip
        fitter.fit()
        return fitter

    cv = cross_validate(
        fit, ds, 3, choices={"rate": [0.03, 1e-5]}, inner=2, refit=True, seed=5, n_bootstrap=0
    )
    assert len(calls) == 3 * (2 * 2 + 1)
    inner, last = calls[:4], calls[4]
    assert {one[:3] for one in inner} == {(2, 2, 5)}
    assert last[:3] == (4, None, 5)
    best = [one.epochs for one in cv.candidates if one.fold == 0 and one.chosen]
    assert last[3] == best[0] == cv.chosen[0]["epochs"]
    assert last[4] == cv.chosen[0]["rate"] == 0.03
    again = cross_validate(
        fit, ds, 3, choices={"rate": [0.03, 1e-5]}, inner=2, refit=True, seed=5, n_bootstrap=0
    )
    assert all(torch.equal(a, b) for a, b in zip(cv.predictions, again.predictions, strict=True))


def test_without_refit_the_fit_is_that_of_an_experiment_by_hand() -> None:
    """Training clips fit, validation clips stop, the model stays: one fit per fold, seed by seed."""
    ds = recording()
    cv = cross_validate(NETWORK, ds, 3, refit=False, seeds=(0, 3), n_bootstrap=0)
    from deepSTRF.experiments.run import fit_once

    for number, split in enumerate(k_fold(ds, 3)):
        train, val, test = split.apply(ds)
        models = [fit_once(NETWORK, seed, train, val).model for seed in (0, 3)]
        for mine, theirs in zip(cv.models[number], models, strict=True):
            for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
                assert torch.equal(a, b)
        mean = [torch.stack(pair).mean(0) for pair in zip(*(m.predict(test) for m in models), strict=True)]
        for clip, rates in zip(split.test, mean, strict=True):
            assert torch.equal(cv.predictions[clip], rates)
        single = cross_validate(NETWORK, ds, [split], refit=False, n_bootstrap=0)
        table = score_model(single.models[0][0], test, n_bootstrap=0)
        np.testing.assert_allclose(single.fold_scores[0]["cc"], table["cc"], atol=1e-12)


def test_the_median_of_the_best_epochs_refits_a_network() -> None:
    ds = recording()
    cv = cross_validate(NETWORK, ds, 3, inner=3, n_bootstrap=0)
    from deepSTRF.experiments.run import fit_once

    split = cv.folds[1]
    rest = sorted(split.train + split.val)
    best = []
    for one in k_fold(ds.select(clips=rest), 3, n_val=0):
        train, val = ([rest[i] for i in part] for part in (one.train, one.test))
        best.append(fit_once(NETWORK, 0, ds.select(clips=train), ds.select(clips=val)).best_epoch + 1)
    assert cv.chosen[1] == {"epochs": round(float(np.median(best)))}
    assert cv.models[1][0].fitted_on.validation_sounds == ()


def test_estimators_of_different_kinds_by_name() -> None:
    ds = recording()
    cv = cross_validate(
        None, ds, 3, inner=2, n_bootstrap=0, refit=False,
        choices=[("flat", lambda train, val: Flat(train)), ("ridge", functools.partial(fit_ridge, **RIDGE)),
                 ("network", NETWORK)],
    )  # fmt: skip
    assert {one["estimator"] for one in cv.chosen} <= {"ridge", "network"}
    flat = [one for one in cv.candidates if one.candidate == "flat"]
    assert all(one.mean < 0 and not one.chosen for one in flat)


class Flat:
    """A model of no class of ours: the mean response."""

    def __init__(self, train: NeuralDataset) -> None:
        blocks = [train.response_block(i) for i in range(len(train))]
        self.mean = torch.cat([b.nanmean(1) for b in blocks], dim=1).nanmean(1)

    def predict(self, ds: NeuralDataset) -> list[Any]:
        return [self.mean[:, None].expand(-1, ds.n_bins(clip)).numpy() for clip in range(len(ds))]


def test_penalties_far_apart_are_noted() -> None:
    """A fold that shrinks its predictions to nothing lowers the score over all folds, not that of a fold."""
    ds = recording()
    shrunk = ds.stims[0]

    def ridge(train: Any, validation: Any) -> Any:
        heavy = any(torch.equal(stim, shrunk) for stim in train.stims)
        return fit_ridge(train, lambdas=1e5 if heavy else 1.0, **RIDGE)

    cv = cross_validate(ridge, ds, 2)
    assert np.mean(cv.scores["cc"]) < min(np.mean(table["cc"]) for table in cv.fold_scores) - 0.05
    one, other = {"lambdas": np.array([1.0, 1.0])}, {"lambdas": np.array([50.0, 1e3])}
    assert _penalty_notes([one, one]) == _penalty_notes([{"lambdas": 1.0}, {}]) == []
    (note,) = _penalty_notes([one, {}, other])
    assert note.startswith("penalties of 1 of 2 neurons differ by more than 100 times between folds")
    assert "Note: penalties of" in str(replace(cv, facts={**cv.facts, "notes": [note]}))


def test_options_are_those_of_every_estimator_of_a_list() -> None:
    ds = recording()
    listed = cross_validate(
        None, ds, 3, options={"n_lags": 2}, choices=[("r", "ridge"), ("e", "evidence")], inner=2
    )
    assert {models[0].T for models in listed.models} == {2}
    alone = cross_validate(None, ds, 3, options=RIDGE | {"lambdas": 3.0}, choices=[("r", "ridge")])
    same = cross_validate("ridge", ds, 3, options=RIDGE | {"lambdas": 3.0})
    for mine, theirs in zip(alone.predictions, same.predictions, strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(ValueError, match="solver 'evidence' has no option 'lambdas'"):
        cross_validate(None, ds, 3, options={"lambdas": 3.0}, choices=["ridge", "evidence"], inner=2)


def test_inner_folds_of_too_few_clips_name_the_fold() -> None:
    ds = recording().select(clips=[0, 1])
    with pytest.raises(ValueError, match="k=2 folds need at least 2 clips, the dataset has 1") as caught:
        cross_validate("ridge", ds, options=RIDGE, inner="leave-one-clip-out")
    assert caught.value.__notes__ == [
        "so inner='leave-one-clip-out' cannot divide the training clips of fold 0"
    ]


def test_a_candidate_that_diverges_is_not_chosen() -> None:
    ds = recording(noise=0.2)
    cv = cross_validate(NETWORK, ds, 2, choices={"learning_rate": [1e30, 0.03]}, inner=2, n_bootstrap=0)
    assert [one["learning_rate"] for one in cv.chosen] == [0.03, 0.03]
    assert [one.epochs for one in cv.candidates if one.options["learning_rate"] == 1e30] == [None, None]
    with pytest.raises(FitDivergedError):
        cross_validate(NETWORK, ds, 2, choices={"learning_rate": [1e30, 1e31]}, inner=2)


def test_jobs_give_the_same_numbers(tmp_path: Path) -> None:
    ds = recording()
    options: dict[str, Any] = {"inner": 2, "choices": {"learning_rate": [0.03, 0.001]}, "n_bootstrap": 0}
    one, two = (cross_validate(NETWORK, ds, 3, n_jobs=jobs, **options) for jobs in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.predictions, two.predictions, strict=True))
    assert one.to_json() == two.to_json()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_fold_that_fails_leaves_the_others(jobs: int) -> None:
    ds = recording()
    with pytest.warns(RuntimeWarning, match=r"1 of 6 folds failed.*no such fold"):
        cv = cross_validate(Failing(ds.source_fingerprint(2)), ds, n_jobs=jobs, n_bootstrap=0)
    assert list(cv.failed) == [2]
    assert "Traceback" in cv.failed[2]
    assert "no such fold" in str(cv)
    assert [bool(rates.isnan().all()) for rates in cv.predictions] == [i == 2 for i in range(6)]
    whole = cross_validate(Failing(""), ds, n_bootstrap=0)
    kept = [i for i in range(6) if i != 2]
    for clip in kept:
        assert torch.equal(cv.predictions[clip], whole.predictions[clip])
    pooled = torch.cat([cv.predictions[i] for i in kept], 1).numpy()
    real = np.concatenate([psth(ds, i) for i in kept], axis=1)
    assert cv.scores["cc"][0] == pytest.approx(np.corrcoef(pooled[0], real[0])[0, 1], abs=1e-6)
    assert cv.fold_scores[2] is None
    json.loads(cv.to_json())


class Failing:
    """Fails where a sound is not among the training and validation clips."""

    def __init__(self, sound: str) -> None:
        self.sound = sound

    def __call__(self, train: NeuralDataset, validation: NeuralDataset) -> Any:
        heard = {v.source_fingerprint(i) for v in (train, validation) for i in range(len(v))}
        if self.sound and self.sound not in heard:
            raise RuntimeError("no such fold")
        return fit_ridge(train, None, lambdas=10.0, **RIDGE)


def test_when_every_fold_fails_the_first_error_is_raised() -> None:
    def broken(train, validation):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        cross_validate(broken, recording(), 3)
    assert "All 3 folds failed" in raised.value.__notes__[0]


def test_a_folder_is_continued_and_read_by_the_calls_of_folds(tmp_path: Path) -> None:
    ds, made = recording(), []

    def fit(train, validation, lambdas):
        made.append(lambdas)
        return fit_ridge(train, None, lambdas=lambdas, **RIDGE)

    options: dict[str, Any] = {"choices": {"lambdas": LAMBDAS}, "inner": 2, "refit": True, "n_bootstrap": 0}
    whole = cross_validate(fit, ds, 3, **options)
    per_fold = len(made) // 3
    fails = [per_fold + 2]

    def interrupted(train, validation, lambdas):
        if fails and len(made) == fails[0]:
            raise KeyboardInterrupt
        return fit(train, validation, lambdas)

    made.clear()
    with pytest.raises(KeyboardInterrupt):
        cross_validate(interrupted, ds, 3, out=tmp_path / "a", **options)
    fails.clear()
    made.clear()
    cv = cross_validate(interrupted, ds, 3, out=tmp_path / "a", **options)
    assert len(made) == 2 * per_fold  # the first fold was there
    made.clear()
    again = cross_validate(interrupted, ds, 3, out=tmp_path / "a", **options)
    assert made == []
    assert again.to_json() == cv.to_json()
    assert cv.chosen == whole.chosen
    for a, b, c in zip(cv.predictions, again.predictions, whole.predictions, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    fits = FoldFits(tmp_path / "a")
    view = ds.select(clips=[4, 1])
    for clip, rates in zip([4, 1], predict_folds(fits, view), strict=True):
        assert torch.equal(rates, cv.predictions[clip])
    np.testing.assert_allclose(score_folds(fits, ds, n_bootstrap=0)["cc"], cv.scores["cc"])
    stored = json.loads((tmp_path / "a" / "cross-validation.json").read_text())
    assert [one["chosen"]["lambdas"] for one in stored["folds"]] == [one["lambdas"] for one in cv.chosen]
    with pytest.raises(ValueError, match="score: 'cc_norm' there, 'cc' now"):
        cross_validate(interrupted, ds, 3, out=tmp_path / "a", score="cc", **options)
    with pytest.raises(ValueError, match="candidates:"):  # another function
        cross_validate(fit, ds, 3, out=tmp_path / "a", **options)
    changed = with_other_responses(ds, [1])
    with pytest.raises(ValueError, match="recording:"):
        cross_validate(interrupted, changed, 3, out=tmp_path / "a", **options)


def test_seeds_are_averaged_also_from_the_folder(tmp_path: Path) -> None:
    ds = recording()
    cv = cross_validate(NETWORK, ds, 3, seeds=(0, 1), out=tmp_path, n_bootstrap=0)
    assert sorted(p for p in os.listdir(tmp_path) if p.startswith("model-00"))[:2] == [
        "model-000-seed0",
        "model-000-seed1",
    ]
    for clip, rates in enumerate(predict_folds(FoldFits(tmp_path), ds)):
        assert torch.equal(rates, cv.predictions[clip])
    assert len(cv.models[0]) == 2


def test_the_result_as_table_text_and_figure(tmp_path: Path) -> None:
    ds = recording()
    cv = cross_validate("ridge", ds, 3, options=RIDGE, choices={"lambdas": LAMBDAS}, inner=2, n_bootstrap=0)
    rows = cv.table()
    assert [(row["fold"], row["n_test"]) for row in rows] == [("all", 6)] * 2 + [
        (str(fold), 2) for fold in range(3) for _ in range(2)
    ]
    assert rows[2]["chosen_lambdas"] == cv.chosen[0]["lambdas"]
    assert rows[0]["cc"] == cv.scores["cc"][0]
    text = cv.to_csv(tmp_path / "cv.csv")
    assert (tmp_path / "cv.csv").read_text() == text
    lines = text.splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[1].startswith(f"all,6,neuron000,{cv.scores['cc_norm'][0]},")
    stored = json.loads(cv.to_json(tmp_path / "cv.json"))
    assert [fold["test"] for fold in stored["folds"]] == [list(split.test) for split in cv.folds]
    assert len(stored["candidates"]) == 9
    assert "lambdas=" in str(cv)
    arrays = cv.arrays()
    assert arrays["candidates"].shape == (3, 3)
    figure, axes = plot_cross_validation(**arrays)
    assert len(axes) == 3
    figure.savefig(tmp_path / "cv.png")
    assert (
        len(plot_cross_validation(**cross_validate("ridge", ds, 3, options=RIDGE, n_bootstrap=0).arrays())[1])
        == 2
    )


def test_missing_pairs_one_neuron_single_repeats() -> None:
    rng = np.random.default_rng(0)
    stims = [rng.standard_normal((BANDS, 40)) for _ in range(5)]
    missing = np.full((1, 1), np.nan)
    responses = [
        [rng.standard_normal((1, 40)) if (clip + n) % 4 else missing for n in range(2)] for clip in range(5)
    ]
    ds = NeuralDataset.from_arrays(stims, responses, 5.0, check_alignment=False)
    cv = cross_validate("ridge", ds, options=RIDGE, choices={"lambdas": LAMBDAS}, inner=2, n_bootstrap=0)
    assert all(bool(torch.isfinite(rates).all()) for rates in cv.predictions)
    heard = [i for i in range(5) if i % 4]
    real = np.concatenate([np.asarray(responses[i][0][0]) for i in heard])
    mine = torch.cat([cv.predictions[i][0] for i in heard]).numpy()
    assert cv.scores["cc"][0] == pytest.approx(np.corrcoef(mine, real)[0, 1], abs=1e-5)
    one = cross_validate("ridge", recording(neurons=1), 2, options={**RIDGE, "lambdas": 3.0}, n_bootstrap=0)
    assert one.predictions[0].shape == (1, 60)


def test_splits_that_test_some_clips_or_some_twice() -> None:
    ds = recording()
    some = [index_split(ds, [0, 1], [2], [3]), index_split(ds, [4, 5], [2], [3])]
    cv = cross_validate("ridge", ds, some, options=RIDGE, n_bootstrap=0)
    assert [bool(rates.isnan().any()) for rates in cv.predictions] == [True, True, True, False, True, True]
    mean = torch.stack([models[0].predict(ds, clips=[3])[0] for models in cv.models]).mean(0)
    assert torch.equal(cv.predictions[3], mean)
    assert "1 of 6 clips predicted" in str(cv)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"folds": "bygroup"}, ValueError, "folds='bygroup' is unknown"),
        ({"folds": 2.5}, TypeError, "folds is a number of folds"),
        ({"folds": 99}, ValueError, "k=99"),
        ({"folds": []}, ValueError, "empty list"),
        ({"folds": [1, 2]}, TypeError, r"folds\[0\] must be a ClipSplit"),
        ({"folds": "group:nobody"}, KeyError, "'nobody'"),
        ({"folds": "blocked:1:5"}, ValueError, "at least 2"),
        ({"folds": "blocked:20:100"}, ValueError, "fewer blocks or a shorter gap"),
        ({"estimator": "lasso"}, ValueError, "estimator='lasso' is no solver"),
        ({"estimator": 3}, TypeError, "estimator must be"),
        ({"estimator": lambda train: None}, TypeError, "f\\(train, validation\\)"),
        ({"estimator": None}, TypeError, "estimator is None"),
        ({"options": {"lag": 3}}, ValueError, "no option 'lag'"),
        ({"choices": {"lambdas": []}}, ValueError, r"choices\['lambdas'\] is empty"),
        ({"choices": {"lambdas": 3.0}}, TypeError, r"choices\['lambdas'\] must be a list"),
        ({"choices": {"lambda": [3.0]}}, ValueError, "no option 'lambda'"),
        ({"choices": []}, ValueError, "choices is an empty list"),
        ({"choices": 3}, TypeError, "choices must map"),
        ({"choices": {"lambdas": [1.0, 1.0]}}, ValueError, "twice"),
        ({"inner": 1}, ValueError, "inner must be"),
        ({"inner": 1.5}, ValueError, "inner must be"),
        ({"inner": "share"}, ValueError, "inner must be"),
        ({"choices": {"lambdas": [1.0, 2.0]}, "inner": 20}, ValueError, "k=20"),
        ({"choices": {"lambdas": [1.0, 2.0]}, "folds": 2}, ValueError, "no validation clips"),
        ({"score": "r2"}, ValueError, "score"),
        ({"refit": "yes"}, (TypeError, ValueError), "refit"),
        ({"seeds": []}, ValueError, "seeds"),
        ({"estimator": NETWORK, "options": {"learning_rat": 1.0}}, ValueError, "learning_rat"),
        ({"estimator": NETWORK, "options": {"split": "3/1/2"}}, ValueError, "split"),
    ],
)  # fmt: skip
def test_mistakes_name_their_argument(arguments: dict[str, Any], error: Any, text: str) -> None:
    given: dict[str, Any] = {"estimator": "ridge", "folds": 3, **arguments}
    with pytest.raises(error, match=text):
        cross_validate(given.pop("estimator"), recording(), **given)


def test_inner_folds_without_a_choice_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to choose"):
        cross_validate(Failing(""), recording(), 3, inner=2)
    with pytest.raises(ValueError, match=r"ds\.normalized"):
        cross_validate(ExperimentConfig(normalize_responses="max"), recording(), 3)


def test_fits_of_another_seed_are_those_of_another_run(tmp_path: Path) -> None:
    ds = recording()

    def fit(train: Any, validation: Any, seed: int) -> Any:
        return fit_ridge(train, n_lags=3, lambdas=10.0 ** (1 + 3 * seed))

    one = cross_validate(fit, ds, 2, seeds=(0,), out=tmp_path)
    assert torch.equal(
        cross_validate(fit, ds, 2, seeds=(0,), out=tmp_path).predictions[0], one.predictions[0]
    )
    with pytest.raises(ValueError, match="seeds"):
        cross_validate(fit, ds, 2, seeds=(1,), out=tmp_path)


def test_what_encloses_a_function_counts_among_its_settings(tmp_path: Path) -> None:
    ds = recording()

    def ridge(penalty: float) -> Any:
        return lambda train, validation: fit_ridge(train, n_lags=3, lambdas=penalty)

    def with_default(penalty: float) -> Any:
        def fit(train: Any, validation: Any, lambdas: float = penalty) -> Any:
            return fit_ridge(train, n_lags=3, lambdas=lambdas)

        return fit

    for number, make in enumerate((ridge, with_default)):
        cross_validate(make(10.0), ds, 2, out=tmp_path / str(number))
        cross_validate(make(10.0), ds, 2, out=tmp_path / str(number))
        with pytest.raises(ValueError, match="candidates"):
            cross_validate(make(1e4), ds, 2, out=tmp_path / str(number))


def uneven(responding: Sequence[int]) -> Any:
    """A recording of one neuron that responds in some of six clips, without data in the others."""
    rng = np.random.default_rng(3)
    sounds = [rng.normal(size=(3, 80)) for _ in range(6)]
    responses = [
        [sound[:1] + rng.normal(size=(2, 80)) if clip in responding else np.full((1, 1), np.nan)]
        for clip, sound in enumerate(sounds)
    ]
    return NeuralDataset.from_arrays(
        sounds, responses, dt_ms=5.0, response_kind="trace", check_alignment=False
    )


def test_a_fold_of_ridge_that_cannot_be_fitted_leaves_the_others() -> None:
    ds = uneven([0, 1, 2])
    splits = [index_split(ds, [0, 1, 3, 4], [], [2], name="a"), index_split(ds, [3, 4, 5], [], [0], name="b")]
    for inner in (2, "leave-one-clip-out"):
        with pytest.warns(RuntimeWarning, match="1 of 2 folds failed"):
            cv = cross_validate("ridge", ds, splits, options={"n_lags": 3, "lambdas": 5.0}, inner=inner)
        assert list(cv.failed) == [1]
        assert "no neuron has responses" in cv.failed[1]
        alone = cross_validate("ridge", ds, splits[:1], options={"n_lags": 3, "lambdas": 5.0}, inner=inner)
        assert torch.allclose(cv.predictions[2], alone.predictions[2])


def test_penalties_of_silent_neurons_have_nothing_to_be_chosen_by() -> None:
    ds = recording()
    silent = NeuralDataset.from_arrays(
        [np.asarray(sound[0]) for sound in ds.stims],
        [np.zeros((1, 2, ds.n_bins(clip))) for clip in range(len(ds))],
        dt_ms=ds.dt,
    )
    for folds in (3, "leave-one-clip-out"):
        with pytest.raises(ValueError, match="no neuron has a score on the validation clips"):
            cross_validate(
                "ridge", silent, folds, options={"n_lags": 3}, choices={"lambdas": [1.0, 9.0]}, inner=2
            )


def test_a_row_holds_what_was_chosen_for_its_neuron() -> None:
    ds = recording()
    cv = cross_validate("ridge", ds, 3, options=RIDGE, inner=2)
    rows = [row for row in cv.table() if row["fold"] == "1"]
    assert [row["chosen_lambdas"] for row in rows] == cv.chosen[1]["lambdas"].tolist()


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("evidence", {}),
        ("boosting", {"n_steps": 15}),
        ("tikhonov", {"lambdas": 20.0, "smooth_time": 1.0, "smooth_frequency": 0.0}),
        ("ridge", {"lambdas": [20.0]}),
    ],
)
def test_a_solver_without_a_choice_is_fitted_to_all_clips_of_the_fold(
    solver: str, options: dict[str, Any]
) -> None:
    ds, options = recording(), {"n_lags": 3, **options}
    fits: list[Any] = [
        cross_validate(solver, ds, 3, options=options, n_bootstrap=0),
        cross_validate(ExperimentConfig(model=solver, model_options=options), ds, 3, n_bootstrap=0),
    ]
    for cv in fits:
        split = cv.folds[0]
        fit = SOLVERS.get(solver)(ds.select(clips=sorted({*split.train, *split.val})), **options)
        own = fit.model.predict(ds.select(clips=split.test))
        for clip, rates in zip(split.test, own, strict=True):
            torch.testing.assert_close(cv.predictions[clip], rates, rtol=1e-4, atol=1e-5)
        assert cv.chosen == [{}] * 3


@pytest.mark.parametrize(
    ("solver", "options", "chosen"),
    [
        ("boosting", {}, ["n_steps"]),
        ("tikhonov", {"lambdas": 20.0}, ["lambdas", "smooth_time", "smooth_frequency"]),
        ("ridge", {}, ["lambdas"]),
    ],
)
def test_what_a_solver_chooses_by_validation_clips_is_returned(
    solver: str, options: dict[str, Any], chosen: list[str]
) -> None:
    ds, options = recording(), {"n_lags": 3, **options}
    cv = cross_validate(solver, ds, 3, options=options, n_bootstrap=0)
    assert [list(one) for one in cv.chosen] == [chosen] * 3
    split = cv.folds[0]
    fit: Any = SOLVERS.get(solver)(ds.select(clips=split.train), ds.select(clips=split.val), **options)
    for neuron in range(ds.N_neurons):
        own = {name: values[neuron] for name, values in cv.chosen[0].items()}
        assert own == pytest.approx(fit.choice(neuron))
    with pytest.raises(ValueError, match=f"fold 0 has no validation clips, by which {solver} chooses"):
        cross_validate(solver, ds, 2, options=options)
    assert cross_validate(solver, ds, 2, options=options, inner=0.34).chosen[0]
