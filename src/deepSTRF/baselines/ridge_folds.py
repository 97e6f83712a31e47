"""Ridge STRFs of all folds of a cross-validation, with penalties chosen inside each fold.

Nested choice (Varma & Simon 2006, doi 10.1186/1471-2105-7-91): the penalty of a fold is chosen by folds
inside its training clips, and the fit to all of them takes it. The test clips of a fold never choose.

What a fit needs of a clip are sums over its bins. They are made once and added up for every set of training
clips; nothing is subtracted, so no digit is lost. The bands of each set are standardised by a change of these
sums: a lagged feature ``(x - m) / s`` is a linear function of the lagged feature x and of a feature that is 1
inside the clip and, as the past before it, 0 outside. Folds that train on the same clips share a solution:
in leave-one-clip-out within leave-one-clip-out each set is needed twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_non_negative, check_not_empty, check_positive_int, checked_but
from deepSTRF.baselines.heldout import HeldOut, PooledScores
from deepSTRF.baselines.lagged import ClipFeatures, group_neurons, measure_bands
from deepSTRF.baselines.linear_fit import (
    LinearProblem,
    check_recordings,
    check_responses_to_fit,
    empty_model,
    lags_of,
    prepare,
)
from deepSTRF.baselines.parallel import each_on_one_thread
from deepSTRF.baselines.ridge import (
    RidgeFit,
    RidgeOptions,
    RidgeSearch,
    check_choosable,
    features_of,
    fit_prepared,
    fit_ridge,
    given_penalties,
)
from deepSTRF.datasets import ClipSplit, NeuralDataset, k_fold, leave_one_clip_out
from deepSTRF.models.audio.linear import Linear
from deepSTRF.models.fitted_on import RELATIVE_NOISE, remember_fit
from deepSTRF.training.evaluation import neuron_names
from deepSTRF.training.validate import check_level

__all__ = ["fit_nested", "fit_ridge_folds"]

#: Inner folds of single clips.
LEAVE_ONE_OUT = "leave-one-clip-out"


@checked_but("splits", "inner", "options")
def fit_ridge_folds(
    ds: NeuralDataset,
    splits: Sequence[ClipSplit],
    *,
    inner: int | str | None = None,
    group: str | None = None,
    **options: Any,
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
    group : str, optional
        Key of ``stim_meta``; inner folds keep clips with the same value together, as in `k_fold`.
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

    Notes
    -----
    A prefilter behind a standardisation is no linear function of sums: such folds are fitted one by one.

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
        split.apply(ds)
    settings = _options(options)
    check_not_empty("ds", ds)
    plans = [_plan(ds, split, inner, group) for split in folds]
    given = given_penalties(settings, features_of(ds, settings.wav2spec))
    for plan in plans:
        check_choosable(given, bool(plan.val or plan.inner), "inner=4 (folds inside the training clips)")
    if settings.prefiltering is not None and settings.standardize:
        return _one_by_one(ds, plans, options)
    shared = _Shared(ds, settings, _blocks(len(ds), plans))
    choices = _nested_scores(shared, plans)
    numbers = range(len(plans))
    return list(each_on_one_thread(lambda number: shared.fit(plans[number], choices.get(number)), numbers))


def _options(options: dict[str, Any]) -> RidgeOptions:
    """Arguments of `fit_ridge`, checked as it does."""
    try:
        settings = RidgeOptions(**options)
    except TypeError as error:
        legal = ", ".join(RidgeOptions.__dataclass_fields__)
        unknown = [name for name in options if name not in RidgeOptions.__dataclass_fields__]
        if not unknown:
            raise
        raise TypeError(f"fit_ridge_folds has no option {unknown[0]!r}; it has {legal}") from error
    if settings.n_lags is not None:
        check_positive_int("n_lags", settings.n_lags)
    check_non_negative("warmup_ms", settings.warmup_ms)
    check_positive_int("max_bytes", settings.max_bytes)
    return settings


# ---- Folds inside folds


@dataclass(frozen=True)
class _Plan:
    """Training and validation clips of a fold; of inner folds, the clips they train on and predict."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    inner: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def _plan(ds: NeuralDataset, split: ClipSplit, inner: int | str | None, group: str | None) -> _Plan:
    if inner is None:
        return _Plan(split.train, split.val, ())
    if inner != LEAVE_ONE_OUT and (isinstance(inner, bool) or not isinstance(inner, int)):
        raise TypeError(f"inner must be a number of folds, {LEAVE_ONE_OUT!r} or None, got {inner!r}")
    clips = tuple(sorted((*split.train, *split.val)))
    view = ds.select(clips=clips)
    if isinstance(inner, int):
        parts = k_fold(view, inner, n_val=0, group=group)
    else:
        parts = leave_one_clip_out(view, n_val=0, group=group)
    pairs = [
        (tuple(sorted(clips[place] for place in part.train)), tuple(clips[place] for place in part.test))
        for part in parts
    ]
    return _Plan(clips, (), tuple(pairs))


def _blocks(n_clips: int, plans: Sequence[_Plan]) -> list[list[int]]:
    """Clips that are in the same sets of every fold."""
    roles: list[list[int]] = [[] for _ in range(n_clips)]
    sets = dict.fromkeys(
        clips for plan in plans for pair in ((plan.train, plan.val), *plan.inner) for clips in pair
    )
    for number, clips in enumerate(sets):
        for clip in clips:
            roles[clip].append(number)
    together: dict[tuple[int, ...], list[int]] = {}
    for clip, found in enumerate(roles):
        together.setdefault(tuple(found), []).append(clip)
    return list(together.values())


def _one_by_one(ds: NeuralDataset, plans: Sequence[_Plan], options: dict[str, Any]) -> list[RidgeFit]:
    """Fit each fold for itself."""
    fits = []
    for plan in plans:
        train = ds.select(clips=plan.train)
        if plan.inner:
            pairs = ((ds.select(clips=clips), ds.select(clips=heard)) for clips, heard in plan.inner)
            fits.append(fit_nested(train, pairs, **options))
        else:
            fits.append(fit_ridge(train, ds.select(clips=plan.val) if plan.val else None, **options))
    return fits


def fit_nested(
    train: NeuralDataset, pairs: Iterable[tuple[NeuralDataset, NeuralDataset]], **options: Any
) -> RidgeFit:
    """One fold: the penalty chosen on what the inner (training, validation) views leave out, pooled."""
    started, settings = time.monotonic(), _options(options)
    given = given_penalties(settings, features_of(train, settings.wav2spec))
    pooled: PooledScores | None = None
    for inside, heard in pairs:
        ready = _prepare(inside, heard, settings)
        rows = list(ready.features.values())
        search = RidgeSearch(ready.clips, ready.groups, rows, ready.lags, settings, given)
        pooled = PooledScores(search.n_penalties, train.N_neurons) if pooled is None else pooled
        if ready.heard is not None:
            search.add_scores([(HeldOut(ready.heard, ready.lags, settings.max_bytes), pooled)])
    scores = {} if pooled is None else pooled.compute()
    return fit_prepared(_prepare(train, None, settings), settings, given, started, scores)


def _prepare(train: NeuralDataset, validation: NeuralDataset | None, settings: RidgeOptions) -> LinearProblem:
    return prepare(
        train,
        validation,
        n_lags=settings.n_lags,
        lags_ms=settings.lags_ms,
        prefiltering=settings.prefiltering,
        wav2spec=settings.wav2spec,
        standardize=settings.standardize,
        warmup_ms=settings.warmup_ms,
        max_bytes=settings.max_bytes,
    )


def _nested_scores(shared: _Shared, plans: Sequence[_Plan]) -> dict[int, dict[str, Tensor]]:
    """Scores (n_penalties, N) of the inner folds of each fold that has some."""
    wanted: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for number, plan in enumerate(plans):
        for train, heard in plan.inner:
            wanted.setdefault(train, []).append((number, heard))

    def scores_of(train: tuple[int, ...]) -> list[PooledScores]:
        level = shared.moments(train)
        search = shared.search(shared.part(train, level))
        pools = []
        for _, heard in wanted[train]:
            held_out = HeldOut(shared.part(heard, level), shared.lags, shared.options.max_bytes)
            pools.append((held_out, PooledScores(search.n_penalties, shared.ds.N_neurons)))
        search.add_scores(pools)
        return [one for _, one in pools]

    pooled: dict[int, PooledScores] = {}
    for train, found in zip(wanted, each_on_one_thread(scores_of, list(wanted)), strict=True):
        for (number, _), one in zip(wanted[train], found, strict=True):
            if number in pooled:
                pooled[number].merge(one)
            else:
                pooled[number] = one
    return {number: one.compute() for number, one in pooled.items()}


# ---- Sums of a recording that folds share


class _Shared:
    """Features of a recording, and sums over the bins of its clips."""

    def __init__(self, ds: NeuralDataset, options: RidgeOptions, blocks: list[list[int]]) -> None:
        self.ds, self.options = ds, options
        self.lags = lags_of(options.n_lags, options.lags_ms, float(ds.dt))
        self.features = features_of(ds, options.wav2spec)
        self.given = given_penalties(options, self.features)
        plain = empty_model(ds, self.lags, options.prefiltering, options.wav2spec, standardize=False)
        check_level(plain, ds)
        self._clips = ClipFeatures(plain, ds, options.warmup_ms, self.lags)
        self._levels = self._measure() if options.standardize else {}
        self._clips = self._clips.sharing(blocks, *self.moments(tuple(range(len(ds)))))

    def _measure(self) -> dict[int, tuple[int, Tensor, Tensor]]:
        """Frames, mean and sum of squared deviations (D,) of each clip, its onset included."""
        found: dict[int, tuple[int, Tensor, Tensor]] = {}
        for clip in range(len(self.ds)):
            part = self._clips.part([clip])
            frames = torch.cat([part.raw(piece)[:, part.own(piece)] for piece in range(len(part))], dim=1)
            values = frames.double()
            mean = values.mean(1)
            found[clip] = values.shape[1], mean, (values - mean.unsqueeze(1)).square().sum(1)
        return found

    def moments(self, clips: tuple[int, ...]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Mean and divisor (D,) of the bands over some clips, as `BandStandardizer` measures them."""
        if not self._levels:
            return None, None
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for clip in clips:
            n, clip_mean, clip_squares = self._levels[clip]
            if not n:
                continue
            shift = clip_mean - mean
            squares = squares + clip_squares + shift**2 * (count * n / (count + n))
            mean = mean + shift * (n / (count + n))
            count += n
        std = (squares / count).sqrt()
        return mean, torch.where(std <= RELATIVE_NOISE * mean.abs(), 1.0, std)

    def part(self, clips: tuple[int, ...], level: tuple[Tensor, Tensor] | tuple[None, None]) -> ClipFeatures:
        """Features of some clips, standardised to a level."""
        return self._clips.part(clips, *level)

    def search(self, part: ClipFeatures) -> RidgeSearch:
        """Search over the penalties of some training clips."""
        groups = group_neurons(part)
        return RidgeSearch(part, groups, list(self.features.values()), self.lags, self.options, self.given)

    def fit(self, plan: _Plan, scores: dict[str, Tensor] | None) -> RidgeFit:
        """Fit a fold, its penalty chosen by given scores or on its validation clips."""
        started, options = time.monotonic(), self.options
        train = self.ds.select(clips=plan.train)
        validation = self.ds.select(clips=plan.val) if plan.val else None
        check_recordings(train, validation)
        model = empty_model(train, self.lags, options.prefiltering, options.wav2spec, options.standardize)
        remember_fit(model, train, validation)
        check_level(model, train)
        self._measure_bands(model, train, plan.train)
        level = self.moments(plan.train)
        clips = self.part(plan.train, level)
        groups = group_neurons(clips)
        check_responses_to_fit(clips, groups, options.warmup_ms)
        heard = self.part(plan.val, level) if plan.val else None
        names = neuron_names(train.nrn_meta)
        ready = LinearProblem(model, clips, groups, heard, self.lags, names, self.features, options.max_bytes)
        return fit_prepared(ready, options, self.given, started, scores)

    def _measure_bands(self, model: Linear, train: NeuralDataset, clips: Sequence[int]) -> None:
        """Measure the bands of a model, by spectrograms that are there where a front-end made them."""
        parts = [self._clips.part([clip]) for clip in clips]
        whole = all(len(part) == 1 and part.own(0) == slice(0, part.lengths[0]) for part in parts)
        if (
            isinstance(model.wav2spec, nn.Identity)
            or not isinstance(model.prefiltering, nn.Identity)
            or not whole
        ):
            measure_bands(model, train)
        else:
            model.measure_bands(train.stims, (part.raw(0)[None, None] for part in parts))
