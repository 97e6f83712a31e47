"""Ridge STRFs of all folds of a cross-validation, with penalties chosen inside each fold.

Nested choice (Varma & Simon 2006, doi 10.1186/1471-2105-7-91): the penalty of a fold is chosen by folds
inside its training clips, and the fit to all of them takes it. The test clips of a fold never choose.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from deepSTRF._validation import checked_but
from deepSTRF.baselines.ridge import (
    RidgeFit,
    RidgeOptions,
    RidgeTask,
    fit_ridge,
    track_predictions,
    tracked_scores,
)
from deepSTRF.datasets import ClipSplit, NeuralDataset, k_fold, leave_one_clip_out
from deepSTRF.metrics import ScoreTracker

__all__ = ["fit_ridge_folds"]

#: Inner folds of single clips.
LEAVE_ONE_OUT = "leave-one-clip-out"


@checked_but("splits", "inner", "options")
def fit_ridge_folds(
    ds: NeuralDataset, splits: Sequence[ClipSplit], *, inner: int | str | None = None, **options: Any
) -> list[RidgeFit]:
    """Ridge STRFs of every fold of a cross-validation, exact, from sums that all folds share.

    Each fit equals that of `fit_ridge` to the training clips of its fold, to rounding: bands are standardised
    on those clips alone.

    Parameters
    ----------
    ds : NeuralDataset
        Recording that the splits were made of.
    splits : sequence of ClipSplit
        Folds, from `leave_one_clip_out`, `k_fold`, `index_split` and so on.
    inner : int or "leave-one-clip-out", optional
        Number of inner folds that choose the penalty, or one for each clip (nested cross-validation): a
        fold's training and validation clips together are then its training clips, every one of them is
        predicted by a fit that did not see it, and these predictions are scored as one. The estimate is
        that of all of them. None leaves the choice to the validation clips of each split.
    **options
        As in `fit_ridge`: ``n_lags``, ``lags_ms``, ``lambdas``, ``banded``, ``per_neuron``, ``score``,
        ``prefiltering``, ``wav2spec``, ``standardize``, ``warmup_ms``, ``max_bytes``. The penalties of
        ``lambdas=None`` are relative to the Gram matrix of each fit's own training clips.

    Returns
    -------
    list of RidgeFit
        One per split; with ``inner`` its ``scores`` are those of the inner folds.

    Raises
    ------
    TypeError, ValueError
        As `fit_ridge`, for splits of other sounds, and where neither ``inner`` nor validation clips can
        choose among penalties.

    References
    ----------
    Varma & Simon 2006, doi 10.1186/1471-2105-7-91.

    Examples
    --------
    >>> from deepSTRF.datasets import leave_one_clip_out
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> splits = leave_one_clip_out(ds, n_val=0)
    >>> fits = fit_ridge_folds(ds, splits, inner="leave-one-clip-out", n_lags=12)
    >>> len(fits), fits[0].scores["cc_norm"].shape
    (4, torch.Size([12, 3]))
    """
    folds = list(splits)
    for split in folds:
        if not isinstance(split, ClipSplit):
            raise TypeError(f"splits must hold ClipSplits, got {type(split).__name__}: k_fold(ds, 5)")
    fits = []
    for split in folds:
        train, validation, _ = split.apply(ds)
        if inner is None:
            fits.append(fit_ridge(train, validation if len(validation) else None, **options))
        else:
            training = ds.select(clips=sorted((*split.train, *split.val)))
            fits.append(_fit_nested(training, inner_splits(training, inner), RidgeOptions(**options)))
    return fits


def inner_splits(training: NeuralDataset, inner: int | str) -> list[ClipSplit]:
    """Folds inside some training clips."""
    if inner == LEAVE_ONE_OUT:
        return leave_one_clip_out(training, n_val=0)
    if isinstance(inner, bool) or not isinstance(inner, int):
        raise TypeError(f"inner must be a number of folds, {LEAVE_ONE_OUT!r} or None, got {inner!r}")
    return k_fold(training, inner, n_val=0)


def _fit_nested(training: NeuralDataset, folds: list[ClipSplit], options: RidgeOptions) -> RidgeFit:
    started = time.monotonic()
    final = RidgeTask.of(training, None, options, validated=True)
    trackers = [ScoreTracker(max_bytes=0) for one in final.penalties for _ in one.lambdas]
    for number, fold in enumerate(folds):
        train, _, test = fold.apply(training)
        task = RidgeTask.of(train, test, options)
        first, heard = 0, task.ready.heard
        for one in task.penalties:
            estimates, last = task.problem.solve(one), first + len(one.lambdas)
            if heard is not None:
                name = f"{number} "
                lags, max_bytes = task.ready.lags, options.max_bytes
                track_predictions(trackers[first:last], name, estimates, heard, lags, max_bytes)
            first = last
    return final.finish(tracked_scores(trackers), final.problem.solve(final.penalties[-1]), started)
