"""Cross-validation of ridge STRFs: all folds and penalties from sums that the folds share.

`fit_ridge_folds` chooses the penalty of each fold by its inner folds and fits it to all training clips. Other
options (lags, front-ends) are candidates around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepSTRF.baselines import RidgeFit, fit_ridge_folds
from deepSTRF.baselines.linear_fit import chosen_by
from deepSTRF.baselines.ridge_folds import fit_nested
from deepSTRF.crossval.engine import (
    CORRELATIONS,
    WORST,
    FoldResult,
    Job,
    Tried,
    check_judged,
    comparable,
    failure,
    finished,
    predicted,
    read_fold,
)
from deepSTRF.crossval.estimators import Candidate
from deepSTRF.crossval.plan import ALL_BUT_ONE
from deepSTRF.datasets import ClipSplit
from deepSTRF.training.evaluation import Column

__all__ = ["has_shared_sums", "ridge_folds", "with_shared_sums"]

PENALTY = "lambdas"


def has_shared_sums(job: Job) -> bool:
    """Whether inner folds choose among penalties of ridge, and nothing else is fitted.

    Then all penalties come from one decomposition, and, unless blocks need gaps, all folds from shared sums.
    """
    ds = job.plan.recording
    return (
        job.inner is not None
        and job.refit is not False
        and job.score in CORRELATIONS
        and len(job.seeds) == 1
        and all(isinstance(one.options.get(PENALTY, 1.0), int | float) for one in job.candidates)
        and all(one.estimator.ridge_options(ds) is not None for one in job.candidates)
    )


def with_shared_sums(job: Job) -> Job:
    """The same job with the penalties of each candidate in one, where the folds can be solved together."""
    if not has_shared_sums(job):
        return job
    groups: dict[str, tuple[Candidate, list[float]]] = {}
    for one in job.candidates:
        rest = {key: value for key, value in one.options.items() if key != PENALTY}
        _, values = groups.setdefault(repr(rest), (Candidate(one.estimator, rest), []))
        if PENALTY in one.options:
            values.append(float(one.options[PENALTY]))
    return replace(job, candidates=tuple(_with_penalties(job, *group) for group in groups.values()))


def _with_penalties(job: Job, candidate: Candidate, values: list[float]) -> Candidate:
    """Penalties that are a choice of the folds are one for all neurons, unless asked otherwise."""
    if not values:
        return candidate
    options = candidate.estimator.ridge_options(job.plan.recording) or {}
    changed = {PENALTY: sorted(values), "per_neuron": options.get("per_neuron", False)}
    return Candidate(candidate.estimator.changed(changed), candidate.options)


def ridge_folds(job: Job) -> Iterator[FoldResult]:
    """Solve the folds that are not in the folder yet."""
    missing = []
    for number in range(len(job.plan.splits)):
        done = read_fold(job, number)
        if done is None:
            missing.append(number)
        else:
            yield done
    if not missing:
        return
    try:
        fits = _fitted(job, missing)
    except ValueError:  # of a fold that cannot be fitted: the others can
        for number in missing:
            yield _alone(job, number)
        return
    for number, own in zip(missing, fits, strict=True):
        yield _finished(job, number, own)


def _fitted(job: Job, numbers: Sequence[int]) -> list[tuple[RidgeFit, ...]]:
    """Fits of all candidates, fold by fold."""
    ds, splits = job.plan.recording, [job.plan.splits[number] for number in numbers]
    fits = []
    for one in job.candidates:
        options = {**(one.estimator.ridge_options(ds) or {}), "score": job.score}
        if not job.plan.blocks and (job.inner == ALL_BUT_ONE or job.seed == 0):  # as it draws inner folds
            group = job.plan.group
            fits.append(fit_ridge_folds(ds, splits, inner=job.inner, group=group, **options))
        else:
            fits.append([_fit_views(job, split, options) for split in splits])
    return list(zip(*fits, strict=True))


def _alone(job: Job, number: int) -> FoldResult:
    try:
        return _finished(job, number, _fitted(job, [number])[0])
    except ValueError as error:
        return failure(number, error)


def _finished(job: Job, number: int, fits: Sequence[RidgeFit]) -> FoldResult:
    """Fits of a fold made its result, or what keeps them from being compared."""
    try:
        result = _result(job, number, fits)
    except ValueError as error:
        return failure(number, error)
    return finished(job, result)


def _fit_views(job: Job, split: ClipSplit, options: Mapping[str, Any]) -> RidgeFit:
    """A fold by itself, with gaps around what is held out."""
    plan = job.plan
    pairs = (
        (plan.view(train, (*val, *split.test)), plan.view(val, split.test))
        for train, val in plan.inner(split, job.inner, job.seed)
    )
    return fit_nested(plan.view([*split.train, *split.val], split.test), pairs, **options)


def _result(job: Job, number: int, fits: Sequence[RidgeFit]) -> FoldResult:
    """The best candidate of a fold, by the best of its penalties."""
    scores, fallback = (
        np.concatenate([fit.scores[name].double().numpy() for fit in fits]) for name in (job.score, "cc")
    )
    columns, means = comparable(scores, fallback, job.score)
    check_judged(means)
    ends = np.cumsum([len(fit.grid) for fit in fits])
    places = [range(end - len(fit.grid), end) for fit, end in zip(fits, ends, strict=True)]
    best = [_best(columns[place], means[place], fit) for place, fit in zip(places, fits, strict=True)]
    chosen = _place_of_best(np.array(best))
    fit = fits[chosen]
    tried = [
        Tried(group, columns[row], float(means[row]),
              group == chosen and row == places[group][_place_of_best(means[places[group]])],
              more={PENALTY: float(value)}, label=_label(job, group, index, float(value)))
        for group, place in enumerate(places)
        for index, (row, value) in enumerate(zip(place, fits[group].grid, strict=True))
    ]  # fmt: skip
    rates = predicted(job, [fit.model], job.plan.splits[number])
    return FoldResult(number, chosen, tuple(tried), more=_penalties(fit), rates=rates, models=(fit.model,))


def _place_of_best(means: Column) -> int:
    return int(np.nan_to_num(means, nan=-np.inf).argmax())


def _best(columns: Column, means: Column, fit: RidgeFit) -> float:
    """Mean score of a fit inside a fold, at the penalties that it chose."""
    if not fit.per_neuron:
        return float(np.max(means))
    known = ~np.isnan(columns).all(0)
    judged = np.nan_to_num(columns[:, known], nan=WORST).clip(min=WORST)
    return float(judged.max(0).mean()) if judged.size else float("nan")


def _label(job: Job, group: int, index: int, value: float) -> str:
    """A penalty by its value where it was given, else by its place: each fold has its own default ones."""
    candidate = job.candidates[group]
    options = candidate.estimator.ridge_options(job.plan.recording) or {}
    text = f"{PENALTY}[{index}]" if options.get(PENALTY) is None else f"{PENALTY}={value:g}"
    return f"{candidate.label}, {text}" if candidate.options else text


def _penalties(fit: RidgeFit) -> dict[str, Any]:
    """Penalties that a fold chose: one, or one per neuron, or per neuron and feature."""
    if fit.feature_grid or fit.per_neuron:
        return chosen_by(fit)
    return {PENALTY: float(fit.shared_lambda)}
