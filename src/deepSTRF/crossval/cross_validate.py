"""Cross-validation of any estimator, with choices made inside the training clips of each fold (nested).

In every fold the candidates are fitted to inner folds of its training clips and compared there; the chosen
one is fitted anew to all training clips and predicts the test clips, which nothing before has seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    check_choice,
    check_flag,
    check_non_negative,
    checked_but,
    first_names,
)
from deepSTRF.crossval.engine import FoldResult, Job, fit_all
from deepSTRF.crossval.estimators import Candidate, candidates_of
from deepSTRF.crossval.folder import claim_folder, settled
from deepSTRF.crossval.plan import FoldPlan, check_inner, plan_of
from deepSTRF.crossval.predict import RUN, FoldFits
from deepSTRF.crossval.result import CrossValidation, InnerScores
from deepSTRF.crossval.ridge_engine import has_shared_sums, ridge_folds, with_shared_sums
from deepSTRF.datasets import NeuralDataset
from deepSTRF.models.fitted_on import check_response_unit
from deepSTRF.training.evaluation import N_BOOTSTRAP, ScoreTable, score_predictions

__all__ = ["cross_validate"]

#: Option whose values say how far predictions are shrunk, and the ratio of two beyond which that is noted: on
#: NS1 it costs 0.04 of the correlation.
PENALTY, MOST_APART = "lambdas", 100.0
#: Scores by which candidates can be compared.
SCORES = ("cc_norm", "cc", "fve", "mse")


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
        configuration, the same in all folds and for all estimators of ``choices``.
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
        and its fits had a ``best_epoch``). None does so for networks of a configuration, and for solvers for
        which validation clips choose nothing (one given penalty; evidence). False keeps the fit to the
        training clips, stopped by the validation clips.
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
    plan, how = plan_of(ds, folds, seed), check_inner(inner)
    if isinstance(how, float):
        plan, how = plan.divided(how, seed), None
    job = Job(
        plan, tuple(candidates), how, refit, score, seed,
        _seeds_of(candidates, seed, seeds), _warmup_of(candidates, warmup_ms),
    )  # fmt: skip
    job = with_shared_sums(job)
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


def _check_inner_folds(job: Job) -> None:
    """Raise an error where inner folds are asked for in vain, are missing, or cannot be made."""
    if job.inner is not None and not job.chooses and not has_shared_sums(job):
        raise ValueError(
            f"inner={job.inner!r} has nothing to choose: give choices={{option: values}}; a function or "
            "solver by itself is fitted once per fold, with the validation clips of the fold"
        )
    needing = [one.label for one in job.candidates if one.estimator.needs_validation]
    for number, split in enumerate(job.plan.splits):
        if needing and not split.val and job.refit is None and not has_shared_sums(job):
            raise ValueError(
                f"fold {number} has no validation clips, by which {first_names(needing)} chooses options: "
                "give inner=0.2 (a share of the training clips), folds that have some (3 or more), or one "
                "number for each option that is chosen"
            )
        try:
            inner = job.plan.inner(split, job.inner, job.seed)
        except ValueError as error:
            error.add_note(f"so inner={job.inner!r} cannot divide the training clips of fold {number}")
            raise
        if not inner and len(job.candidates) > 1:
            raise ValueError(
                f"fold {number} has no validation clips, so nothing can choose among {len(job.candidates)} "
                "candidates: give inner=4 (inner folds of the training clips), 'leave-one-clip-out' or a "
                "share such as 0.2"
            )


# ---- all folds


def _run_all(
    job: Job,
    n_jobs: int,
    out: str | os.PathLike[str] | None,
    overwrite: bool,
    modules: Mapping[str, type] | None,
    progress: bool | Literal["auto"],
) -> tuple[FoldFits | None, list[FoldResult]]:
    solve = ridge_folds if has_shared_sums(job) else None
    if out is None:
        return None, fit_all(job, n_jobs, progress, solve)
    if any("window_of" in row for row in job.plan.parts.stim_meta):
        raise ValueError("these are windows, which no folder of fits can tell apart: leave out out=")
    folder = Path(out)
    manifest = job.plan.manifest(job.seeds)
    before = claim_folder(folder, manifest, _facts_of(job), overwrite)
    fits = FoldFits(folder, modules=modules)
    job = replace(job, folder=folder, run=fits.manifest.facts.get(RUN), modules=modules)
    with settled(fits, before):
        return fits, fit_all(job, n_jobs, progress, solve)


def _facts_of(job: Job) -> dict[str, Any]:
    """What must agree for fits of two runs to belong together."""
    return {
        "candidates": [f"{one.estimator.describe()} {dict(one.options)!r}" for one in job.candidates],
        "inner": str(job.inner),
        "refit": str(job.refit),
        "score": job.score,
        "seed": str(job.seed),
        "seeds": list(job.seeds),
        "warmup_ms": str(job.warmup_ms),
        "roles": [split.hash for split in job.plan.splits],
        "gap": str(job.plan.gap),
        "recording": job.plan.recording.content_fingerprint(),
    }


# ---- the result


def _collect(
    job: Job, found: Sequence[FoldResult], fits: FoldFits | None, facts: dict[str, Any], n_bootstrap: int
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
    chosen = [_chosen(job, one) for one in found]
    return CrossValidation(
        folds=plan.splits,
        predictions=predictions,
        scores=scores,
        fold_scores=by_fold,
        chosen=chosen,
        candidates=[row for one in done for row in _rows(job, one)],
        models=models,
        failed={one.number: one.traceback for one in found if one.error is not None},
        facts={
            **facts,
            "n_predicted": len(tested),
            "n_parts": len(rates),
            "parts": "blocks" if plan.blocks else "clips",
            "warmup_ms": job.warmup_ms,
            "notes": _penalty_notes(chosen),
        },
        fits=fits,
    )


def _pooled(plan: FoldPlan, done: Sequence[FoldResult]) -> list[Tensor | None]:
    """Predictions of every part: the mean over the folds that tested it; None where none did."""
    each: list[list[Tensor]] = [[] for _ in range(len(plan.parts))]
    for one in done:
        for part, rates in zip(plan.splits[one.number].test, one.rates, strict=True):
            each[part].append(rates)
    return [torch.stack(rates).mean(0) if rates else None for rates in each]


def _nothing(parts: NeuralDataset, part: int) -> Tensor:
    return torch.full((parts.N_neurons, parts.n_bins(part)), torch.nan)


def _scored(job: Job, view: NeuralDataset, rates: Sequence[Any], n_bootstrap: int) -> ScoreTable:
    return score_predictions(rates.__getitem__, view, n_bootstrap=n_bootstrap, warmup_ms=job.warmup_ms)


def _chosen(job: Job, one: FoldResult) -> dict[str, Any]:
    """Options that a fold chose, and the epochs where they were chosen too."""
    if one.error is not None:
        return {}
    epochs = {} if one.epochs is None else {"epochs": one.epochs}
    return {**job.candidates[one.chosen].options, **one.more, **epochs}


def _penalty_notes(chosen: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to know where the folds shrink a neuron's predictions by very different amounts."""
    penalties = [np.ravel(one[PENALTY]) for one in chosen if isinstance(one.get(PENALTY), float | np.ndarray)]
    if len(penalties) < 2 or len({len(one) for one in penalties}) > 1:
        return []
    apart = np.ptp(np.log(penalties), axis=0) > math.log(MOST_APART)
    if not apart.any():
        return []
    whose = f"of {apart.sum()} of {len(apart)} neurons " if len(apart) > 1 else ""
    return [
        f"penalties {whose}differ by more than {MOST_APART:g} times between folds: their predictions differ "
        "in scale, which lowers scores of all clips; inner='leave-one-clip-out' chooses by more clips"
    ]


def _rows(job: Job, one: FoldResult) -> list[InnerScores]:
    found = []
    for tried in one.tried:
        candidate = job.candidates[tried.candidate]
        label, options = tried.label or candidate.label, {**candidate.options, **tried.more}
        found.append(
            InnerScores(one.number, label, options, tried.scores, tried.mean, tried.chosen, tried.epochs)
        )
    return found
