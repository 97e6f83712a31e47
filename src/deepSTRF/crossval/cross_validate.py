"""Cross-validation of any estimator, with choices made inside the training clips of each fold (nested).

In every fold the candidates are fitted to inner folds of its training clips and compared there; the chosen
one is fitted anew to all training clips and predicts the test clips, which nothing before has seen.
"""

from __future__ import annotations

import math
import os
import pickle
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._files import json_safe, read_json
from deepSTRF._validation import (
    check_choice,
    check_flag,
    check_non_negative,
    checked_but,
    first_names,
    outside_level,
)
from deepSTRF.crossval.estimators import Candidate, Fitted, candidates_of, median_epochs
from deepSTRF.crossval.folder import claim_folder, folds_bar, save_fit, settled
from deepSTRF.crossval.plan import FoldPlan, check_inner, fit_name, plan_of, predict_view
from deepSTRF.crossval.predict import RUN, FoldFits, is_complete
from deepSTRF.crossval.result import CrossValidation, InnerScores
from deepSTRF.datasets import ClipSplit, NeuralDataset
from deepSTRF.metrics import ScoreTracker
from deepSTRF.metrics.scores import metric_named
from deepSTRF.models.fitted_on import check_response_unit
from deepSTRF.training.callbacks import FitDivergedError
from deepSTRF.training.evaluation import N_BOOTSTRAP, Column, ScoreTable, score_predictions

__all__ = ["cross_validate"]

#: Scores by which candidates can be compared.
SCORES = ("cc_norm", "cc", "fve", "mse")
CORRELATIONS, FALLBACK = ("cc_norm", "cc"), "cc"
#: The worst correlation; that of a prediction which never varies.
WORST = -1.0
#: File of a saved fit with what was said of it.
METADATA = "metadata.json"


@checked_but("estimator", "folds", "choices", "inner")
def cross_validate(
    estimator: Any,
    ds: NeuralDataset,
    folds: Any = "leave-one-clip-out",
    *,
    options: Mapping[str, Any] | None = None,
    choices: Any = None,
    inner: int | float | str | None = None,
    refit: bool | None = None,
    score: str = "cc_norm",
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    warmup_ms: float | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    n_jobs: int = 1,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    modules: Mapping[str, type] | None = None,
    progress: bool | Literal["auto"] = "auto",
) -> CrossValidation:
    """Cross-validation: every clip is predicted by a fit that never saw it, and every choice is made inside.

    Each fold divides its training and validation clips into inner folds (``inner``). Every candidate is
    fitted in each of them and predicts what it left out; the candidate with the best mean score over neurons,
    all inner folds pooled, is chosen. It is then fitted to all training clips (``refit``) and predicts the
    test clips, which took no part in fits or choice.

    Parameters
    ----------
    estimator : ExperimentConfig, str, callable or None
        An `ExperimentConfig` (its dataset, split and run folder play no part), the name of a solver in closed
        form such as "ridge", or a function ``f(train, validation)`` that returns a model, or an object with a
        ``.model`` (a `Fitter` after ``fit()``, what `fit_ridge` returns); a function with an argument
        ``seed`` is given it. None where ``choices`` names estimators.
    ds : NeuralDataset
        The recording.
    folds : int, str or list of ClipSplit
        "leave-one-clip-out"; a number k of folds; "group:KEY", one fold per value of a key of ``stim_meta``
        (speaker, scene), or "group:KEY:5"; "blocked:5:500", blocks of every clip for continuous recordings,
        where 500 ms next to a test block are left out of the fit; or splits (`k_fold`, `index_split`). The
        same sound never stands on both sides.
    options : mapping, optional
        Options of the solver, arguments of the function, or fields (and options of the model) of the
        configuration, the same in all folds.
    choices : mapping or list, optional
        What each fold chooses from: a mapping of options to lists of values, all combinations of which are
        tried; or a list of mappings of options, of estimators, or of ("name", estimator) pairs.
    inner : int, float, str or None
        How the choice is validated inside a fold: a number of inner folds, "leave-one-clip-out", or a share
        of the clips, such as 0.2. None takes the validation clips of each fold, which string folds have
        (about 15 percent of the clips, or the next fold of k).
    refit : bool, optional
        Fit the chosen candidate anew to all training and validation clips: networks for the median of the
        best epochs inside the fold, a function with ``validation=None`` (and ``epochs``, where it takes them
        and its fits had a ``best_epoch``). None does so for networks of a configuration and for a solver with
        one given penalty. False keeps the fit to the training clips, stopped by the validation clips.
    score : {"cc_norm", "cc", "fve", "mse"}
        By which candidates are compared; a neuron without ``cc_norm`` goes by its ``cc``.
    seed : int
        Seed of the folds and inner folds, and of the fits unless ``seeds`` are given.
    seeds : sequence of int, optional
        Fit the chosen candidate once per seed and average the predictions; candidates are compared with the
        first. None takes those of the configuration, else ``seed``.
    warmup_ms : float, optional
        Onset of every clip that is left out of the scores; None is that of the estimator.
    n_bootstrap : int
        Resamples behind the interval of the noise ceiling.
    n_jobs : int
        Folds at a time, each in a process of its own; -1 is one per core.
    out : path, optional
        Folder for the fits, as of `fit_folds`: an interrupted call goes on there, `FoldFits` reads it, and
        `predict_folds`, `score_folds` and `dstrf_folds` work on it. Holds ``cross-validation.json`` and
        ``cross-validation.csv`` as well.
    overwrite : bool
        Fit all anew where a run with other settings lies in that folder.
    modules : mapping of str to type, optional
        Your own classes in saved models, as in ``NeuralModel.from_pretrained``.
    progress : bool or 'auto'
        Bar over the folds on stderr; 'auto' draws it on a terminal.

    Returns
    -------
    CrossValidation
        Predictions, scores, choices, models.

    Raises
    ------
    ValueError, TypeError
        For illegal arguments, choices that nothing validates, or a folder with a run of other settings. When
        every fold fails, the error of the first.

    Warns
    -----
    RuntimeWarning
        When some folds fail: the others stay, ``failed`` holds the tracebacks, and their clips have no
        prediction.

    References
    ----------
    Varma & Simon 2006, doi 10.1186/1471-2105-7-91, on the bias of choices that are not nested.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=3, clip_seconds=0.5)
    >>> cv = cross_validate("ridge", ds, options={"n_lags": 8}, choices={"lambdas": [10.0, 1000.0]}, inner=3)
    >>> [tuple(rates.shape) for rates in cv.predictions], len(cv.chosen)
    ([(2, 100), (2, 100), (2, 100), (2, 100)], 4)
    """
    check_choice("score", score, SCORES)
    if refit is not None:
        check_flag("refit", refit)
    candidates = candidates_of(estimator, options, choices)
    plan = plan_of(ds, folds, seed)
    job = _Job(
        plan, tuple(candidates), check_inner(inner), refit, score, seed,
        _seeds_of(candidates, seed, seeds), _warmup_of(candidates, warmup_ms),
    )  # fmt: skip
    _check_inner_folds(job)
    fits, found = _run_all(job, n_jobs, out, overwrite, modules, progress)
    facts = {
        "estimator": estimator_label(candidates),
        "folds": folds if isinstance(folds, str | int) else f"{len(plan.splits)} given",
        "inner": inner,
        "refit": refit,
        "score": score,
        "seed": seed,
        "seeds": list(job.seeds),
        "n_candidates": len(candidates),
        "n_clips": len(ds),
        "recording": ds.content_fingerprint(),
    }
    cv = _collect(job, found, fits, facts, n_bootstrap)
    if fits is not None:
        cv.to_json(fits.folder / "cross-validation.json")
        cv.to_csv(fits.folder / "cross-validation.csv")
    return cv


def estimator_label(candidates: Sequence[Candidate]) -> str:
    """Name of the estimator, or of those that are chosen from."""
    return first_names(list(dict.fromkeys(one.estimator.name for one in candidates)))


# ---- arguments


@dataclass(frozen=True)
class _Job:
    """All that a worker process needs for a fold."""

    plan: FoldPlan
    candidates: tuple[Candidate, ...]
    inner: int | float | str | None
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


def _seeds_of(candidates: Sequence[Candidate], seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    if seeds is None:
        stated = {one.estimator.seeds or (seed,) for one in candidates if one.estimator.seeds is not None}
        if len(stated) > 1:
            raise ValueError("choices: these candidates state different seeds; give seeds=(0, 1, ...)")
        return next(iter(stated), (seed,))
    found = tuple(int(one) for one in seeds)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be one or more different whole numbers, got {list(seeds)}")
    return found


def _warmup_of(candidates: Sequence[Candidate], warmup_ms: float | None) -> float:
    if warmup_ms is not None:
        return check_non_negative("warmup_ms", warmup_ms)
    stated = {float(one.estimator.warmup_ms) for one in candidates}
    if len(stated) > 1:
        raise ValueError(
            f"choices: these candidates leave out different onsets ({sorted(stated)} ms), so say what is "
            "scored: warmup_ms=..."
        )
    return next(iter(stated))


def _check_inner_folds(job: _Job) -> None:
    """Raise an error where inner folds are asked for in vain, are missing, or cannot be made."""
    if job.inner is not None and not job.chooses:
        raise ValueError(
            f"inner={job.inner!r} has nothing to choose: give choices={{option: values}}; a function or "
            "solver by itself is fitted once per fold, with the validation clips of the fold"
        )
    for number, split in enumerate(job.plan.splits):
        if not job.plan.inner(split, job.inner, job.seed) and len(job.candidates) > 1:
            raise ValueError(
                f"fold {number} has no validation clips, so nothing can choose among {len(job.candidates)} "
                "candidates: give inner=4 (inner folds of the training clips), 'leave-one-clip-out' or a "
                "share such as 0.2"
            )


# ---- all folds


@dataclass(frozen=True)
class _Tried:
    """A candidate inside a fold: its scores (N,), and the epochs that its fits chose."""

    scores: Column
    mean: float
    epochs: int | None


@dataclass(frozen=True)
class _FoldResult:
    """What came of a fold; of one that failed, why."""

    number: int
    chosen: int = 0
    tried: tuple[_Tried, ...] = ()
    epochs: int | None = None
    rates: tuple[Tensor, ...] = ()
    models: tuple[Any, ...] = ()
    traceback: str = ""
    error: Exception | None = None


def _run_all(
    job: _Job,
    n_jobs: int,
    out: str | os.PathLike[str] | None,
    overwrite: bool,
    modules: Mapping[str, type] | None,
    progress: bool | Literal["auto"],
) -> tuple[FoldFits | None, list[_FoldResult]]:
    if out is None:
        return None, _fit_all(job, n_jobs, progress)
    if any("window_of" in row for row in job.plan.parts.stim_meta):
        raise ValueError("these are windows, which no folder of fits can tell apart: leave out out=")
    folder = Path(out)
    manifest = job.plan.manifest(job.seeds)
    before = claim_folder(folder, manifest, _facts_of(job), overwrite)
    fits = FoldFits(folder, modules=modules)
    job = replace(job, folder=folder, run=fits.manifest.facts.get(RUN), modules=modules)
    with settled(fits, before):
        return fits, _fit_all(job, n_jobs, progress)


def _facts_of(job: _Job) -> dict[str, Any]:
    """What must agree for fits of two runs to belong together."""
    return {
        "candidates": [f"{one.estimator.describe()} {dict(one.options)!r}" for one in job.candidates],
        "inner": str(job.inner),
        "refit": str(job.refit),
        "score": job.score,
        "seed": str(job.seed),
        "warmup_ms": str(job.warmup_ms),
        "roles": [split.hash for split in job.plan.splits],
        "gap": str(job.plan.gap),
        "recording": job.plan.recording.content_fingerprint(),
    }


def _fit_all(job: _Job, n_jobs: int, progress: bool | Literal["auto"]) -> list[_FoldResult]:
    total = len(job.plan.splits)
    found: list[_FoldResult] = []
    with folds_bar(progress, total, 0) as advance:
        for one in _in_processes(job, n_jobs):
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


def _in_processes(job: _Job, n_jobs: int) -> Iterator[_FoldResult]:
    total = len(job.plan.splits)
    if n_jobs == 1 or total < 2:
        yield from (_fold(job, number) for number in range(total))
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    yield from parallel(delayed(_fold)(job, number) for number in range(total))


# ---- one fold


def _fold(job: _Job, number: int) -> _FoldResult:
    """Read or fit a fold; one that fails leaves the others."""
    try:
        done = None if job.folder is None else _read_fold(job, job.folder, number)
        return _fit_fold(job, number) if done is None else done
    except Exception as error:  # noqa: BLE001  (reported with its traceback)
        return _FoldResult(number, traceback=traceback.format_exc(), error=_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or its text where it does not travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (any)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _fit_fold(job: _Job, number: int) -> _FoldResult:
    plan, split = job.plan, job.plan.splits[number]
    inner = plan.inner(split, job.inner, job.seed) if job.chooses else []
    tried, chosen, first = _choose(job, split, inner)
    best = job.candidates[chosen]
    # one inner fold is the fold's own division into training and validation clips
    train, val = inner[0] if len(inner) == 1 else (split.train, split.val)
    models: list[Any] = []
    epochs: int | None = tried[chosen].epochs if tried else None
    for seed in job.seeds:
        if job.refits(best):
            fitted = best.estimator.refit(plan.view([*split.train, *split.val], split.test), first, seed)
        elif len(inner) == 1 and seed == job.seeds[0]:
            fitted = first[0]
        else:
            views = plan.view(train, (*val, *split.test)), plan.view(val, split.test) if val else None
            fitted = best.estimator.fit_views(*views, seed)
            epochs = fitted.epochs if seed == job.seeds[0] else epochs
        models.append(fitted.model.eval() if isinstance(fitted.model, nn.Module) else fitted.model)
    result = _FoldResult(number, chosen, tuple(tried), epochs, _predicted(job, models, split), tuple(models))
    if job.folder is not None:
        _save_fold(job, job.folder, result)
        return replace(result, models=())
    return result


def _predicted(job: _Job, models: Sequence[Any], split: ClipSplit) -> tuple[Tensor, ...]:
    """Predictions (N, T) of the test parts, averaged over the models."""
    each = [job.plan.predict(model, split.test) for model in models]
    return tuple(torch.stack(rates).mean(0) for rates in zip(*each, strict=True))


def _choose(
    job: _Job, split: ClipSplit, inner: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> tuple[list[_Tried], int, list[Fitted]]:
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
    scores, means = _comparable(np.stack([one[0] for one in columns]), np.stack([one[1] for one in columns]),
                                job.score)  # fmt: skip
    if np.isnan(means).all() and len(means) > 1:
        raise ValueError(
            "no neuron has a score on the validation clips inside the fold: nothing chooses; give fewer "
            "inner folds, or another score"
        )
    higher = metric_named(job.score).higher_is_better
    ranked = np.nan_to_num(means if higher else -means, nan=-np.inf)
    chosen = int(ranked.argmax())
    tried = [
        _Tried(one, float(mean), median_epochs(own))
        for one, mean, candidate, own in zip(scores, means, job.candidates, fits, strict=True)
    ]
    return tried, chosen, fits[chosen]


def _inner_scores(job: _Job, fits: Sequence[Fitted], views: Sequence[NeuralDataset]) -> tuple[Column, Column]:
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


def _comparable(scores: Column, fallback: Column, score: str) -> tuple[Column, Column]:
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


# ---- the folder of a run


def _save_fold(job: _Job, folder: Path, result: _FoldResult) -> None:
    """Save the fits of a fold, each with what the fold chose."""
    split = job.plan.splits[result.number]
    tried = [{"scores": one.scores.tolist(), "mean": one.mean, "epochs": one.epochs} for one in result.tried]
    facts = {
        "fold": split.name,
        "test": list(split.test),
        "chosen": result.chosen,
        "options": json_safe(
            {key: str(value) for key, value in job.candidates[result.chosen].options.items()}
        ),
        "epochs": result.epochs,
        "tried": json_safe(tried),
    }
    for seed, name, model in zip(job.seeds, job.names(result.number), result.models, strict=True):
        if not hasattr(model, "save_pretrained"):
            raise TypeError(
                f"the estimator returned a {type(model).__name__}; fits are saved with save_pretrained, "
                "which a NeuralModel has: leave out out=, or return one"
            )
        save_fit(model, folder / name, {**facts, "seed": seed}, job.run)


def _read_fold(job: _Job, folder: Path, number: int) -> _FoldResult | None:
    """A fold whose fits are all there; None where one is missing."""
    names = job.names(number)
    if not all(is_complete(folder / name, job.run) for name in names):
        return None
    fits = FoldFits(folder, modules=job.modules)
    facts = read_json(folder / names[0] / METADATA, "delete its folder to fit it anew")
    tried = tuple(
        _Tried(np.array(one["scores"], dtype=float), _number(one["mean"]), one["epochs"])
        for one in facts["tried"]
    )
    rates = _predicted(job, [fits.model(name) for name in names], job.plan.splits[number])
    return _FoldResult(number, int(facts["chosen"]), tried, facts["epochs"], rates)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# ---- the result


def _collect(
    job: _Job, found: Sequence[_FoldResult], fits: FoldFits | None, facts: dict[str, Any], n_bootstrap: int
) -> CrossValidation:
    """Put the folds together and score them."""
    plan = job.plan
    done = [one for one in found if one.error is None]
    rates = _pooled(plan, done)
    tested = [part for part, one in enumerate(rates) if one is not None]
    predictions = plan.joined(
        [_nothing(plan.parts, part) if one is None else one for part, one in enumerate(rates)]
    )
    if fits is None:
        models = [list(one.models) for one in found]
    else:
        models = [[fits.model(name) for name in job.names(one.number)] if one.error is None else []
                  for one in found]  # fmt: skip
    shown = next(model for own in models for model in own)
    if isinstance(shown, nn.Module):
        check_response_unit(shown, plan.recording)
    scores = _scored(job, plan.recording, predictions, n_bootstrap) if len(tested) == len(rates) else _scored(
        job, plan.parts.select(clips=tested), [rates[part] for part in tested], n_bootstrap
    )  # fmt: skip
    by_fold: list[ScoreTable | None] = [None] * len(found)
    for one in done:
        view = plan.parts.select(clips=list(plan.splits[one.number].test))
        by_fold[one.number] = _scored(job, view, one.rates, 0)
    return CrossValidation(
        folds=plan.splits,
        predictions=predictions,
        scores=scores,
        fold_scores=by_fold,
        chosen=[_chosen(job, one) for one in found],
        candidates=[row for one in done for row in _rows(job, one)],
        models=models,
        failed={one.number: one.traceback for one in found if one.error is not None},
        facts={
            **facts,
            "n_predicted": len(tested),
            "n_parts": len(rates),
            "parts": "blocks" if plan.blocks else "clips",
            "warmup_ms": job.warmup_ms,
        },
        fits=fits,
    )


def _pooled(plan: FoldPlan, done: Sequence[_FoldResult]) -> list[Tensor | None]:
    """Predictions of every part: the mean over the folds that tested it; None where none did."""
    each: list[list[Tensor]] = [[] for _ in range(len(plan.parts))]
    for one in done:
        for part, rates in zip(plan.splits[one.number].test, one.rates, strict=True):
            each[part].append(rates)
    return [torch.stack(rates).mean(0) if rates else None for rates in each]


def _nothing(parts: NeuralDataset, part: int) -> Tensor:
    return torch.full((parts.N_neurons, parts.n_bins(part)), torch.nan)


def _scored(job: _Job, view: NeuralDataset, rates: Sequence[Any], n_bootstrap: int) -> ScoreTable:
    return score_predictions(rates.__getitem__, view, n_bootstrap=n_bootstrap, warmup_ms=job.warmup_ms)


def _chosen(job: _Job, one: _FoldResult) -> dict[str, Any]:
    """Options that a fold chose, and the epochs where they were chosen too."""
    if one.error is not None:
        return {}
    epochs = {} if one.epochs is None else {"epochs": one.epochs}
    return {**job.candidates[one.chosen].options, **epochs}


def _rows(job: _Job, one: _FoldResult) -> list[InnerScores]:
    return [
        InnerScores(one.number, candidate.label, candidate.options, tried.scores, tried.mean,
                    place == one.chosen, tried.epochs)
        for place, (candidate, tried) in enumerate(zip(job.candidates, one.tried, strict=bool(one.tried)))
    ]  # fmt: skip
