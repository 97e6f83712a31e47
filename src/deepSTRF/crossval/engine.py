"""The fits of each fold of a cross-validation: candidates compared inside, the chosen one fitted, saved."""

from __future__ import annotations

import math
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._files import json_safe, read_json
from deepSTRF._validation import outside_level
from deepSTRF.crossval.estimators import Candidate, Fitted, median_epochs
from deepSTRF.crossval.folder import folds_bar, save_fit
from deepSTRF.crossval.plan import FoldPlan, fit_name, predict_view
from deepSTRF.crossval.predict import FoldFits, is_complete
from deepSTRF.datasets import ClipSplit, NeuralDataset
from deepSTRF.metrics import ScoreTracker
from deepSTRF.metrics.scores import metric_named
from deepSTRF.training.callbacks import FitDivergedError
from deepSTRF.training.evaluation import Column

__all__ = ["FoldResult", "Job", "Tried", "check_judged", "comparable", "failure", "finished", "fit_all"]

CORRELATIONS, FALLBACK = ("cc_norm", "cc"), "cc"
#: The worst correlation; that of a prediction which never varies.
WORST = -1.0
#: File of a saved fit with what was said of it.
METADATA = "metadata.json"


@dataclass(frozen=True)
class Job:
    """All that a worker process needs for a fold."""

    plan: FoldPlan
    candidates: tuple[Candidate, ...]
    inner: int | str | None
    refit: bool | None
    score: str
    seed: int
    seeds: tuple[int, ...]
    warmup_ms: float
    folder: Path | None = None
    run: str | None = None
    modules: Mapping[str, type] | None = None

    def refits(self, candidate: Candidate) -> bool:
        """Whether a candidate is fitted anew to all training clips."""
        return candidate.estimator.refits if self.refit is None else self.refit

    @property
    def chooses(self) -> bool:
        """Whether the inner folds choose something."""
        several = len(self.candidates) > 1
        return several or any(self.refits(one) and one.estimator.chooses_epochs for one in self.candidates)

    def names(self, number: int) -> list[str]:
        """Names of the fits of a fold."""
        return [fit_name(number, seed, self.seeds) for seed in self.seeds]


@dataclass(frozen=True)
class Tried:
    """A candidate inside a fold: its scores (N,), and the epochs that its fits chose.

    ``more`` are options that the candidate itself tried, such as the penalties of a solver.
    """

    candidate: int
    scores: Column
    mean: float
    chosen: bool
    epochs: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class FoldResult:
    """What came of a fold; of one that failed, why."""

    number: int
    chosen: int = 0
    tried: tuple[Tried, ...] = ()
    epochs: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[Tensor, ...] = ()
    models: tuple[Any, ...] = ()
    traceback: str = ""
    error: Exception | None = None


def fit_all(
    job: Job,
    n_jobs: int,
    progress: bool | Literal["auto"],
    solve: Callable[[Job], Iterator[FoldResult]] | None,
) -> list[FoldResult]:
    """Fit, or read, every fold: one by one, or as ``solve`` does for all of them together."""
    total = len(job.plan.splits)
    found: list[FoldResult] = []
    with folds_bar(progress, total, 0) as advance:
        for one in _in_processes(job, n_jobs) if solve is None else solve(job):
            found.append(one)
            advance()
    found.sort(key=lambda one: one.number)
    failed = [one for one in found if one.error is not None]
    if len(failed) == total:
        error = failed[0].error or RuntimeError(failed[0].traceback)
        error.add_note(f"All {total} folds failed; this is the error of fold {failed[0].number}")
        raise error
    if failed:
        what = f"{len(failed)} of {total} folds failed; the others stay, and cv.failed holds the tracebacks"
        warnings.warn(
            f"{what}. Fold {failed[0].number}: {failed[0].traceback.strip().splitlines()[-1]}",
            RuntimeWarning, stacklevel=outside_level(),
        )  # fmt: skip
    return found


def _in_processes(job: Job, n_jobs: int) -> Iterator[FoldResult]:
    total = len(job.plan.splits)
    if n_jobs == 1 or total < 2:
        yield from (_fold(job, number) for number in range(total))
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    yield from parallel(delayed(_fold)(job, number) for number in range(total))


# ---- one fold


def _fold(job: Job, number: int) -> FoldResult:
    """Read or fit a fold; one that fails leaves the others."""
    try:
        done = read_fold(job, number)
        return _fit_fold(job, number) if done is None else done
    except Exception as error:  # noqa: BLE001  (reported with its traceback)
        return failure(number, error)


def failure(number: int, error: Exception) -> FoldResult:
    """A fold that failed, with the traceback."""
    text = "".join(traceback.format_exception(error))
    return FoldResult(number, traceback=text, error=_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or its text where it does not travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (any)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _fit_fold(job: Job, number: int) -> FoldResult:
    plan, split = job.plan, job.plan.splits[number]
    inner = plan.inner(split, job.inner, job.seed) if job.chooses else []
    tried, chosen, first = _choose(job, split, inner)
    best = job.candidates[chosen]
    # one inner fold is the fold's own division into training and validation clips
    train, val = inner[0] if len(inner) == 1 else (split.train, split.val)
    models: list[Any] = []
    epochs: int | None = tried[chosen].epochs if tried else None
    more: Mapping[str, Any] = {}
    for seed in job.seeds:
        if job.refits(best):
            fitted = best.estimator.refit(plan.view([*split.train, *split.val], split.test), first, seed)
        elif len(inner) == 1 and seed == job.seeds[0]:
            fitted = first[0]
        else:
            views = plan.view(train, (*val, *split.test)), plan.view(val, split.test) if val else None
            fitted = best.estimator.fit_views(*views, seed)
            epochs = fitted.epochs if seed == job.seeds[0] else epochs
        more = more or fitted.chosen
        models.append(fitted.model.eval() if isinstance(fitted.model, nn.Module) else fitted.model)
    rates = predicted(job, models, split)
    return finished(job, FoldResult(number, chosen, tuple(tried), epochs, more, rates, tuple(models)))


def finished(job: Job, result: FoldResult) -> FoldResult:
    """Save a fold where there is a folder; its models are then read from there."""
    if job.folder is None:
        return result
    _save_fold(job, job.folder, result)
    return replace(result, models=())


def predicted(job: Job, models: Sequence[Any], split: ClipSplit) -> tuple[Tensor, ...]:
    """Predictions (N, T) of the test parts, averaged over the models."""
    each = [job.plan.predict(model, split.test) for model in models]
    return tuple(torch.stack(rates).mean(0) for rates in zip(*each, strict=True))


def _choose(
    job: Job, split: ClipSplit, inner: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> tuple[list[Tried], int, list[Fitted]]:
    """Scores of all candidates inside a fold, the best one, and its fits there."""
    if not inner:
        return [], 0, []
    plan = job.plan
    views = [(plan.view(train, (*val, *split.test)), plan.view(val, split.test)) for train, val in inner]
    columns: list[tuple[Column, Column]] = []
    fits: list[list[Fitted]] = []
    diverged: FitDivergedError | None = None
    for candidate in job.candidates:
        try:
            own = [candidate.estimator.fit_views(train, val, job.seeds[0]) for train, val in views]
            columns.append(_inner_scores(job, own, [val for _, val in views]))
        except FitDivergedError as error:  # a learning rate that is too high is a choice like others
            own, diverged = [], error
            missing = np.full(plan.parts.N_neurons, np.nan)
            columns.append((missing, missing))
        fits.append(own)
    if diverged is not None and not any(fits):
        raise diverged
    scores, means = comparable(np.stack([one[0] for one in columns]), np.stack([one[1] for one in columns]),
                                job.score)  # fmt: skip
    check_judged(means)
    higher = metric_named(job.score).higher_is_better
    ranked = np.nan_to_num(means if higher else -means, nan=-np.inf)
    chosen = int(ranked.argmax())
    tried = [
        Tried(place, one, float(mean), place == chosen, median_epochs(own))
        for place, (one, mean, own) in enumerate(zip(scores, means, fits, strict=True))
    ]
    return tried, chosen, fits[chosen]


def _inner_scores(job: Job, fits: Sequence[Fitted], views: Sequence[NeuralDataset]) -> tuple[Column, Column]:
    """Score and cc (N,) of a candidate on all validation parts inside a fold together."""
    tracker = ScoreTracker(max_bytes=0)  # nothing is kept of a clip
    skip = math.ceil(job.warmup_ms / job.plan.recording.dt - 1e-9)
    for number, (fitted, val) in enumerate(zip(fits, views, strict=True)):
        for clip, rates in enumerate(predict_view(fitted.model, val)):
            block = val.response_block(clip)[..., skip:]
            if block.shape[-1]:
                tracker.prepare((number, clip), block)
                tracker.update([(number, clip)], rates[None, :, None, skip:])
    statistics = tracker.statistics()
    found = [metric_named(name).compute(statistics) for name in (job.score, FALLBACK)]
    return np.asarray(found[0].double()), np.asarray(found[1].double())


def comparable(scores: Column, fallback: Column, score: str) -> tuple[Column, Column]:
    """Scores (n_candidates, N) with a neuron's cc where it never has a ``cc_norm``; their means over neurons.

    The means are over the same neurons: a candidate without a score where another has one is the worst there.
    """
    if score == "cc_norm":
        scores = np.where(np.isnan(scores).all(0), fallback, scores)
    known = ~np.isnan(scores).all(0)
    judged = scores[:, known]
    if score in CORRELATIONS:  # the ratio to a small ceiling has no lower limit
        judged = np.nan_to_num(judged, nan=WORST).clip(min=WORST)
    means = judged.mean(1) if judged.size else np.full(len(scores), np.nan)
    return scores, means


def check_judged(means: Column) -> None:
    """Raise ValueError where no neuron has a score by which several candidates could be compared."""
    if np.isnan(means).all() and len(means) > 1:
        raise ValueError(
            "no neuron has a score on the validation clips inside the fold: nothing chooses; give fewer "
            "inner folds, another score, or neurons that respond"
        )


# ---- the folder of a run


def _save_fold(job: Job, folder: Path, result: FoldResult) -> None:
    """Save the fits of a fold, each with what the fold chose."""
    split = job.plan.splits[result.number]
    facts = {
        "fold": split.name,
        "test": list(split.test),
        "chosen": result.chosen,
        "candidate": job.candidates[result.chosen].label,
        "epochs": result.epochs,
        "more": _as_lists(result.more),
        "tried": [
            {**vars(one), "scores": one.scores.tolist(), "more": _as_lists(one.more)} for one in result.tried
        ],
    }
    for seed, name, model in zip(job.seeds, job.names(result.number), result.models, strict=True):
        if not hasattr(model, "save_pretrained"):
            raise TypeError(
                f"the estimator returned a {type(model).__name__}; fits are saved with save_pretrained, "
                "which a NeuralModel has: leave out out=, or return one"
            )
        save_fit(model, folder / name, {**json_safe(facts), "seed": seed}, job.run)


def read_fold(job: Job, number: int) -> FoldResult | None:
    """A fold whose fits are all in the folder; None where one is missing, or there is no folder."""
    folder, names = job.folder, job.names(number)
    if folder is None or not all(is_complete(folder / name, job.run) for name in names):
        return None
    fits = FoldFits(folder, modules=job.modules)
    facts = read_json(folder / names[0] / METADATA, "delete its folder to fit it anew")
    tried = [
        Tried(
            one["candidate"],
            np.array(one["scores"], dtype=float),
            math.nan if one["mean"] is None else float(one["mean"]),
            one["chosen"],
            one["epochs"],
            _as_arrays(one["more"]),
            one["label"],
        )
        for one in facts["tried"]
    ]
    rates = predicted(job, [fits.model(name) for name in names], job.plan.splits[number])
    more = _as_arrays(facts["more"])
    return FoldResult(number, int(facts["chosen"]), tuple(tried), facts["epochs"], more, rates)


def _as_lists(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in options.items()}


def _as_arrays(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: np.array(value, dtype=float) if isinstance(value, list) else value
        for key, value in options.items()
    }
