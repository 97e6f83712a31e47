"""Ridge STRFs in closed form: of all neurons and for all penalties, the penalty chosen on validation clips.

Each neuron's weights minimise the squared error of its PSTH plus ``lambda`` times the squared weights; see
`deepSTRF.baselines.lagged` for the solution and Machens, Wehr & Zador 2004 (doi
10.1523/JNEUROSCI.4445-03.2004) for ridge regression of STRFs.

With one penalty per feature (banded ridge, Nunez-Elizalde, Huth & Gallant 2019, doi
10.1016/j.neuroimage.2019.04.012) the weights of feature f cost ``lambda_f``: that is ridge on the rows
``X_f / sqrt(r_f)`` with one penalty ``lambda``, ``lambda_f = lambda r_f``. So one decomposition per vector of
ratios ``r`` serves all ``lambda``, neurons and repeats.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    as_numbers,
    check_choice,
    check_flag,
    check_not_empty,
    checked,
    checked_but,
    first_names,
)
from deepSTRF.baselines.lagged import (
    ClipFeatures,
    NeuronGroup,
    cross_products,
    lagged_rows,
    row_chunks,
    solve_group,
)
from deepSTRF.baselines.linear_fit import (
    FEWEST_BINS,
    MAX_BYTES,
    LinearFit,
    LinearProblem,
    prepare,
    strfs_of,
    write_estimate,
)
from deepSTRF.metrics import ScoreTracker
from deepSTRF.models.fitted_on import band_moments
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS

__all__ = [
    "SCORES",
    "RidgeFit",
    "RidgeOptions",
    "RidgeTask",
    "choose_per_neuron",
    "default_lambdas",
    "fit_ridge",
    "given_lambdas",
    "track_predictions",
    "tracked_scores",
    "validation_scores",
]

#: Penalties tried, in units of the mean eigenvalue of the features' Gram matrix: from hardly any shrinkage to
#: far too much for recordings of minutes to hours.
RELATIVE_LAMBDAS = tuple(10.0**exponent for exponent in torch.linspace(-3.0, 1.4, 12).tolist())
#: Ratios of penalties that ``banded=True`` tries: of two features 13, half a decade apart; of more features
#: points of a Sobol sequence in the same range, after the equal ones and those with one feature apart.
RATIO_DECADES, STEPS_PER_DECADE, SOBOL_RATIOS = 3.0, 2, 24
#: Most combinations that a grid of penalties may hold, and most ratios: each is a decomposition of its own.
MOST_COMBINATIONS, MOST_RATIOS = 20_000, 400
#: Digits by which the logarithms of two ratios are the same.
RATIO_DIGITS = 10
#: Scores by which a penalty can be chosen.
SCORES = ("cc_norm", "cc")


@checked
@dataclass(frozen=True, kw_only=True)
class RidgeFit(LinearFit):
    """A ridge estimate and how it was chosen.

    Attributes
    ----------
    model : Linear
        An ordinary `Linear` with ``norm="none"``, in single precision: it predicts, streams and saves.
    weight : Tensor, shape (N, C, F, T)
        STRFs in double precision, newest frame last, on standardised bands where the model standardises.
    bias : Tensor, shape (N,)
        Intercepts in double precision.
    lambdas : Tensor, shape (N,)
        Penalty of each neuron; of one penalty per feature their geometric mean.
    grid : Tensor, shape (n_lambdas,)
        Penalties tried, ascending; of neuron n ``grid * lambda_scale[n]``. Of penalties per feature their
        geometric means, in the order in which they were tried.
    lambda_scale : Tensor, shape (N,)
        1, except for ``lambdas=None`` where neurons heard different clips: mean eigenvalue of the Gram matrix
        over the clips that a neuron heard, relative to the mean over neurons.
    scores : dict of str to Tensor, shape (n_lambdas, N)
        Validation ``cc_norm`` and ``cc`` for each penalty; empty without validation clips.
    shared_lambda : float
        The penalty with the best mean validation score.
    per_neuron : bool
        Whether each neuron has its own.
    unvalidated, untrained : tuple of str
        Neurons without a validation score, which got the shared penalty; neurons without training bins, whose
        STRF is zero.
    drive_mean, drive_variance : Tensor, shape (N,)
        Mean and variance of the prediction over the training bins.
    forms : dict of str to int
        How many groups of neurons were solved in the "primal" and in the "dual" form.
    seconds : float
        Time the fit took.
    feature_lambdas : dict of str to Tensor, shape (N,)
        Penalty of each neuron for each feature of the recording; empty where features have no names.
    feature_grid : dict of str to Tensor, shape (n_lambdas,)
        Penalties tried for each feature, in the order of ``grid``; empty unless there is one per feature.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> fit = fit_ridge(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=12)
    >>> fit.model.STRFs().shape, fit.lambdas.shape, fit.scores["cc_norm"].shape
    (torch.Size([3, 24, 12]), torch.Size([3]), torch.Size([12, 3]))
    """

    lambdas: Tensor
    grid: Tensor
    lambda_scale: Tensor
    shared_lambda: float
    per_neuron: bool
    forms: dict[str, int] = field(default_factory=dict)
    feature_lambdas: dict[str, Tensor] = field(default_factory=dict)
    feature_grid: dict[str, Tensor] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        low_tried, high_tried = float(self.grid.min()), float(self.grid.max())
        low, middle, high = (float(self.lambdas.quantile(q)) for q in (0.0, 0.5, 1.0))
        chosen = f"{low:g}" if low == high else f"median {middle:.3g}, {low:.3g} to {high:.3g}"
        whose = "one per neuron" if self.per_neuron else "one for all neurons"
        best = "best validation score" if self.scores else "given"
        if self.feature_grid:
            ends = (
                f"{name} {float(values.min()):.3g} to {float(values.max()):.3g}"
                for name, values in self.feature_grid.items()
            )
            whose = f"{whose} and feature ({'; '.join(ends)})"
        return {
            **super().facts(),
            "method": "ridge regression in closed form: squared error of the mean over repeats, each bin "
            "weighing the same, unpenalised intercept, zero history at each clip's start",
            "lambda": f"{whose}, {best} of {len(self.grid)} from {low_tried:.3g} to {high_tried:.3g}"
            if len(self.grid) > 1
            else f"{float(self.grid[0]):g} (given)",
            "lambdas_chosen": chosen,
        }

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = []
        if self.unvalidated:
            notes.append(("info", f"No validation score, shared lambda: {first_names(self.unvalidated)}."))
        notes += super().notes()
        for name, tried in (self.feature_grid or {"": self.grid}).items():
            edges = torch.stack([tried.min(), tried.max()]).unsqueeze(1) * self.lambda_scale
            chosen = self.feature_lambdas[name] if name else self.lambdas
            edge = int((chosen == edges).any(0).sum())
            if self.scores and bool(tried.min() < tried.max()) and 2 * edge > len(chosen):
                whose = f" for {name}" if name else ""
                text = f"{edge} neurons chose a lambda{whose} at an edge of the grid; give a wider one."
                notes.append(("warning", text))
        return notes


@SOLVERS.register("ridge")
@checked_but("lambdas")
def fit_ridge(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    n_lags: int | None = None,
    lags_ms: Sequence[float] | None = None,
    lambdas: Sequence[float] | float | Mapping[str, Sequence[float] | float] | None = None,
    banded: bool = False,
    per_neuron: bool = True,
    score: str = "cc_norm",
    prefiltering: nn.Module | Mapping[str, Any] | None = None,
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> RidgeFit:
    """Ridge STRFs in closed form: exact, for all neurons and penalties at once.

    Each neuron's weights minimise ``sum of (PSTH - prediction)^2 + lambda * sum of weights^2`` over its
    training bins. The intercept is not penalised, the past before a clip is zero (the mean level where bands
    are standardised), and each bin of the PSTH weighs the same however many repeats it holds. Missing data
    need no care: neurons that were recorded in the same bins share one eigendecomposition.

    Parameters
    ----------
    train : DatasetLike
        Training clips.
    validation : DatasetLike, optional
        Clips of other sounds, which choose the penalty; needed unless ``lambdas`` is a single number.
    n_lags : int, optional
        Length of the STRFs in bins, the current one included; None is 40, or the number of ``lags_ms``.
    lags_ms : (float, float), optional
        First and last lag in ms, both included, in place of ``n_lags``; whole bins, to a hundredth. Below 0
        they are stimulus after the response: ``(-100, 400)`` reaches from 100 ms after it to 400 ms before
        it. After the end of a clip are zeros, as before its start. Such a model is not causal.
    lambdas : float, sequence of float, or mapping of str to these, optional
        Penalties, above 0; the unit is that of the sum of squared features, as scikit-learn's ``alpha``. None
        takes 12 from 0.001 to 25 times the mean eigenvalue of the Gram matrix over the clips that a neuron
        heard, so that joining recordings does not change the penalties of their neurons. A mapping names the
        penalties of each feature of the recording: every combination is tried (banded ridge).
    banded : bool
        Whether each feature has a penalty of its own, found among fixed ratios (up to 1 to 1,000) of those
        that ``lambdas`` gives: 13 ratios of two features; of more, all equal, each one apart, and 24 spread
        over the range.
    per_neuron : bool
        Whether each neuron takes the penalty that is best for it, or all the one that is best on average.
    score : {"cc_norm", "cc"}
        What is best; a neuron without ``cc_norm`` goes by its ``cc``.
    prefiltering, wav2spec : optional
        As in `Linear`; applied as they are, nothing in them is learned.
    standardize : bool
        Whether each band is z-scored on the training clips (kept in the model).
    warmup_ms : float
        Onset of each clip that is left out of fit and scores.
    max_bytes : int
        Most bytes of the design matrix held at once.

    Returns
    -------
    RidgeFit
        The model and how it was chosen.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, recordings that differ in neurons, bins or bands, a sound in both of them, or
        no responses to fit.

    References
    ----------
    Hoerl & Kennard 1970, doi 10.1080/00401706.1970.10488634; for STRFs Machens, Wehr & Zador 2004, doi
    10.1523/JNEUROSCI.4445-03.2004.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> train, validation = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    >>> fit = fit_ridge(train, validation, n_lags=12)
    >>> [tuple(rates.shape) for rates in fit.model.predict(validation)]
    [(3, 400)]
    """
    started = time.monotonic()
    options = RidgeOptions(
        n_lags, lags_ms, lambdas, banded, per_neuron, score, prefiltering, wav2spec, standardize, warmup_ms,
        max_bytes,
    )  # fmt: skip
    task = RidgeTask.of(train, validation, options)
    estimates, scores = _try_all(task.problem, task.penalties, task.ready.heard)
    return task.finish(scores, estimates, started)


@dataclass(frozen=True)
class RidgeOptions:
    """Arguments of `fit_ridge` beside the recordings; those of `prepare` are checked there."""

    n_lags: int | None = None
    lags_ms: Sequence[float] | None = None
    lambdas: Any = None
    banded: bool = False
    per_neuron: bool = True
    score: str = "cc_norm"
    prefiltering: nn.Module | Mapping[str, Any] | None = None
    wav2spec: nn.Module | None = None
    standardize: bool = True
    warmup_ms: float = 0.0
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        check_flag("banded", self.banded)
        check_flag("per_neuron", self.per_neuron)
        check_choice("score", self.score, SCORES)


@dataclass(frozen=True)
class RidgeTask:
    """A recording made ready, what is to be solved of it, and the penalties to try."""

    options: RidgeOptions
    ready: LinearProblem
    problem: _Problem
    penalties: list[_Penalties]

    @classmethod
    def of(
        cls,
        train: DatasetLike,
        validation: DatasetLike | None,
        options: RidgeOptions,
        *,
        validated: bool = False,
    ) -> Self:
        """Prepare a fit; ``validated`` where scores that choose the penalty come from elsewhere."""
        features = {} if options.wav2spec is not None else dict(getattr(train, "features", None) or {})
        given = _given_penalties(options.lambdas, options.banded, features)
        check_not_empty("train", train)
        if not validated:
            _check_choice(validation, None if given is None else sum(len(one.lambdas) for one in given))
        ready = prepare(
            train,
            validation,
            n_lags=options.n_lags,
            lags_ms=options.lags_ms,
            prefiltering=options.prefiltering,
            wav2spec=options.wav2spec,
            standardize=options.standardize,
            warmup_ms=options.warmup_ms,
            max_bytes=options.max_bytes,
        )
        scale = torch.ones(ready.clips.n_neurons, dtype=torch.float64)
        if given is None:
            grid, scale = default_lambdas(ready.clips, ready.groups)
            several = _ratios(len(features)) if options.banded else [None]
            given = [_Penalties(grid, ratios) for ratios in several]
        rows = list(features.values())
        problem = _Problem(ready.clips, ready.groups, rows, scale, ready.lags, options.max_bytes)
        return cls(options, ready, problem, given)

    def finish(self, scores: dict[str, Tensor], last: _Estimates, started: float) -> RidgeFit:
        """Choose by scores (n_lambdas, N), and put the estimate into the model; ``last`` as in `pick`."""
        model, penalties, scale = self.ready.model, self.penalties, self.problem.scale
        names, features = self.ready.names, self.ready.features
        index, shared, unscored = choose_per_neuron(
            scores, self.options.score, self.options.per_neuron, len(names)
        )
        kept = self.problem.pick(penalties, index, last)
        grid = torch.cat([one.typical() for one in penalties])
        strfs = strfs_of(kept.weights, model.F)
        write_estimate(model, strfs, kept.biases)
        apart = any(one.ratios is not None for one in penalties)
        tried = {name: torch.cat([one.of(f) for one in penalties]) for f, name in enumerate(features)}
        return RidgeFit(
            model=model.eval(),
            weight=strfs,
            bias=kept.biases,
            lambdas=grid[index] * scale,
            grid=grid,
            lambda_scale=scale,
            scores=scores,
            shared_lambda=float(grid[shared]),
            per_neuron=self.options.per_neuron,
            unvalidated=tuple(name for name, lacks in zip(names, unscored.tolist(), strict=True) if lacks),
            untrained=tuple(names[neuron] for neuron in last.untrained),
            drive_mean=kept.means,
            drive_variance=kept.variances,
            forms=last.forms,
            seconds=time.monotonic() - started,
            feature_lambdas={name: values[index] * scale for name, values in tried.items()},
            feature_grid=tried if apart else {},
        )


# ---- Arguments


@dataclass(frozen=True)
class _Penalties:
    """Penalties that are solved together: ``lambdas`` (k,), for feature f times ``ratios[f]``."""

    lambdas: Tensor
    ratios: Tensor | None = None

    def of(self, feature: int) -> Tensor:
        """Return the penalties (k,) of one feature."""
        return self.lambdas if self.ratios is None else self.lambdas * self.ratios[feature]

    def typical(self) -> Tensor:
        """Return their geometric means (k,) over features."""
        return self.lambdas if self.ratios is None else self.lambdas * self.ratios.log().mean().exp()


def _given_penalties(lambdas: Any, banded: bool, features: Mapping[str, int]) -> list[_Penalties] | None:
    """Penalties that a user gives, by their ratios; None are the default ones."""
    named = isinstance(lambdas, Mapping)
    if (named or banded) and not features:
        raise ValueError(
            "one penalty per feature needs a recording of named features, without a front-end: give stimuli "
            "as {'spectrogram': (F, T), 'onsets': (1, T)}; its ds.features then lists them"
        )
    if named and banded:
        raise ValueError(
            "banded=True finds the ratios of penalties that the mapping in lambdas gives; leave it out"
        )
    if not named:
        grid = None if lambdas is None else given_lambdas(lambdas)
        return (
            None
            if grid is None
            else [_Penalties(grid, r) for r in (_ratios(len(features)) if banded else [None])]
        )
    if set(lambdas) != set(features):
        raise ValueError(
            f"lambdas names the features {sorted(map(str, lambdas))}, the recording has {list(features)}: "
            "give penalties for each of them"
        )
    grids = [given_lambdas(lambdas[name]).tolist() for name in features]
    if len(grids) == 1:
        return [_Penalties(torch.tensor(grids[0], dtype=torch.float64))]
    if math.prod(len(grid) for grid in grids) > MOST_COMBINATIONS:
        raise ValueError(
            f"lambdas holds {math.prod(len(grid) for grid in grids):,} combinations of penalties, more than "
            f"{MOST_COMBINATIONS:,}; give fewer of each, or banded=True"
        )
    by_ratio: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
    for combination in itertools.product(*grids):
        key = tuple(round(math.log(one / combination[0]), RATIO_DIGITS) for one in combination)
        by_ratio.setdefault(key, []).append(combination)
    if len(by_ratio) > MOST_RATIOS:
        raise ValueError(
            f"lambdas holds {len(by_ratio)} different ratios of penalties, each a decomposition of its own, "
            f"more than {MOST_RATIOS}; space all of them by one factor, give fewer, or banded=True"
        )
    return [
        _Penalties(
            torch.tensor([one[0] for one in same], dtype=torch.float64),
            torch.tensor(same[0], dtype=torch.float64) / same[0][0],
        )
        for same in by_ratio.values()
    ]


def _ratios(n_features: int) -> list[Tensor | None]:
    """Vectors of ratios (n_features,) that ``banded=True`` tries, each of geometric mean 1."""
    if n_features == 1:
        return [None]
    half = RATIO_DECADES / 2
    if n_features == 2:
        apart = torch.linspace(
            -half, half, 2 * int(RATIO_DECADES * STEPS_PER_DECADE) + 1, dtype=torch.float64
        )
        logs = torch.stack([-apart, apart], dim=1)
    else:
        alone = torch.eye(n_features, dtype=torch.float64) * half
        engine = torch.quasirandom.SobolEngine(n_features)  # type: ignore[no-untyped-call]
        spread = engine.draw(2 + SOBOL_RATIOS)[2:].double()  # the first two points are equal ratios
        logs = torch.cat([torch.zeros(1, n_features), alone, -alone, (2 * spread - 1) * half])
        logs = logs - logs.mean(1, keepdim=True)
    return list(10.0**logs)


def given_lambdas(lambdas: Sequence[float] | float) -> Tensor:
    """Return penalties as an ascending float64 tensor without duplicates."""
    try:
        values = torch.from_numpy(as_numbers(lambdas, "lambdas")).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lambdas must be a number or a list of numbers, got {lambdas!r}") from error
    if not len(values) or not bool(torch.isfinite(values).all()) or bool((values <= 0).any()):
        raise ValueError(f"lambdas must be finite numbers above 0, at least one, got {values.tolist()}")
    return torch.tensor(sorted(set(values.tolist())), dtype=torch.float64)


def _check_choice(validation: DatasetLike | None, n_lambdas: int | None) -> None:
    """Raise ValueError unless there is something to choose the penalty by."""
    if validation is None and n_lambdas != 1:
        raise ValueError(
            "without validation clips nothing can choose among penalties: pass "
            "fit_ridge(train, validation, ...), or one penalty (lambdas=100.0)"
        )


# ---- Estimates of every penalty, and the choice among them


def default_lambdas(clips: ClipFeatures, groups: list[NeuronGroup]) -> tuple[Tensor, Tensor]:
    """Penalties for the average neuron, and each neuron's own relative to them (N,).

    The unit is the mean eigenvalue of the Gram matrix, bins times mean feature variance, over the clips that
    a neuron heard: clips of other recordings, joined to its own, do not weigh.
    """
    units = torch.full((clips.n_neurons,), torch.nan, dtype=torch.float64)
    known: dict[tuple[int, ...], float] = {}
    for group in groups:
        heard = tuple(i for i, mask in enumerate(group.masks) if mask is None or bool(mask.any()))
        if heard and heard not in known:
            known[heard] = _total_variance(clips, heard) or 1.0
        units[group.neurons] = known.get(heard, torch.nan)
    # one unit is kept to the last bit
    common = (
        units.nanmean()
        if len(known) > 1
        else torch.tensor(next(iter(known.values()), 1.0), dtype=torch.float64)
    )
    grid = torch.tensor(RELATIVE_LAMBDAS, dtype=torch.float64) * float(common)
    return grid, (units / float(common)).nan_to_num(nan=1.0)


def _total_variance(clips: ClipFeatures, heard: Sequence[int]) -> float:
    """Mean variance of the features over all frames of some clips, times the number of frames."""
    n_frames: int = sum(clips.own(clip).stop - clips.own(clip).start for clip in heard)
    parts = (clips.features(clip)[:, clips.own(clip)] for clip in heard)
    n_features = clips.features(heard[0]).shape[0]
    if 8 * n_frames * n_features > MAX_BYTES:  # not all frames at once
        return float(band_moments(parts, n_features)[1].square().mean()) * n_frames
    return float(torch.cat(list(parts), dim=1).var(dim=1, correction=0).mean()) * n_frames


@dataclass(frozen=True)
class _Estimates:
    """Estimates of all N neurons for every penalty: (n_lambdas, N, ...); double precision."""

    weights: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    untrained: list[int]
    forms: dict[str, int]


@dataclass(frozen=True)
class _Problem:
    """A recording to fit: features and PSTHs, neurons by their bins, rows of each named feature, lags."""

    clips: ClipFeatures
    groups: list[NeuronGroup]
    feature_rows: list[int]
    scale: Tensor
    lags: range
    max_bytes: int

    def solve(self, penalties: _Penalties, neurons: Tensor | None = None) -> _Estimates:
        """Solve group by group; neurons of too few bins keep zeros. ``neurons`` leaves others out."""
        clips, lags, grid = self.clips, self.lags, penalties.lambdas
        n_neurons, n_features = clips.n_neurons, clips.features(0).shape[0]
        sizes = None  # of the rows
        if penalties.ratios is not None:
            by_band = torch.repeat_interleave(penalties.ratios.rsqrt(), torch.tensor(self.feature_rows))
            sizes = by_band.repeat(n_features // len(by_band))
            clips = clips.scaled(sizes)
        weights = torch.zeros(len(grid), n_neurons, len(lags), n_features, dtype=torch.float64)
        biases, variances = (torch.zeros(len(grid), n_neurons, dtype=torch.float64) for _ in range(2))
        means = torch.zeros(n_neurons, dtype=torch.float64)
        untrained: list[int] = []
        forms: dict[str, int] = {}
        cross = cross_products(clips, lags)
        for group in self.groups:
            members = group.neurons
            if group.n_bins(clips.lengths) < FEWEST_BINS:
                untrained += members.tolist()
                continue
            if neurons is not None and not bool(torch.isin(members, neurons).any()):
                continue
            lambdas = grid * self.scale[members[0]]
            one = solve_group(clips, group, cross, lags, lambdas, max_bytes=self.max_bytes)
            weights[:, members] = one.weights if sizes is None else one.weights * sizes
            biases[:, members] = one.biases
            variances[:, members], means[members] = one.variances, one.means
            forms[one.form] = forms.get(one.form, 0) + 1
        return _Estimates(weights, biases, variances, means, sorted(untrained), forms)

    def pick(self, penalties: list[_Penalties], index: Tensor, last: _Estimates) -> _Estimates:
        """Each neuron's estimate at its penalty, (N, ...); ``index`` (N,) counts over all penalties.

        ``last`` are the estimates of the last penalties; others that a neuron chose are solved again, which
        holds the memory of one vector of ratios.
        """
        neurons, first = torch.arange(len(index)), 0
        weights, biases, variances = (
            torch.empty_like(values[0]) for values in (last.weights, last.biases, last.variances)
        )
        for one in penalties:
            chosen = neurons[(index >= first) & (index < first + len(one.lambdas))]
            if len(chosen):
                found = last if one is penalties[-1] else self.solve(one, chosen)
                at = index[chosen] - first
                weights[chosen] = found.weights[at, chosen]
                biases[chosen] = found.biases[at, chosen]
                variances[chosen] = found.variances[at, chosen]
            first += len(one.lambdas)
        return _Estimates(weights, biases, variances, last.means, last.untrained, last.forms)


def _try_all(
    problem: _Problem, penalties: list[_Penalties], heard: ClipFeatures | None
) -> tuple[_Estimates, dict[str, Tensor]]:
    """Estimates of the last penalties, and the validation scores (n_lambdas, N) of all."""
    found: list[dict[str, Tensor]] = []
    for one in penalties:
        estimates = problem.solve(one)
        if heard is not None:
            found.append(validation_scores(estimates, heard, problem.lags, problem.max_bytes))
    return estimates, {name: torch.cat([part[name] for part in found]) for name in (SCORES if found else ())}


def validation_scores(
    estimates: _Estimates, clips: ClipFeatures, lags: range, max_bytes: int
) -> dict[str, Tensor]:
    """Scores (n_lambdas, N) of every penalty on the validation clips, which are read once."""
    trackers = [ScoreTracker(max_bytes=0) for _ in estimates.weights]  # nothing is kept of a clip
    track_predictions(trackers, "", estimates, clips, lags, max_bytes)
    return tracked_scores(trackers)


def tracked_scores(trackers: Sequence[ScoreTracker]) -> dict[str, Tensor]:
    """Scores (n_lambdas, N) of the predictions of each penalty."""
    found = [tracker.compute() for tracker in trackers]
    return {name: torch.stack([one[name] for one in found]) for name in SCORES}


def track_predictions(
    trackers: Sequence[ScoreTracker], name: str, estimates: _Estimates, clips: ClipFeatures, lags: range,
    max_bytes: int,
) -> None:  # fmt: skip
    """Add the predictions of every penalty on some clips, each read once; ``name`` marks them."""
    for clip in range(len(clips)):
        scored, key = clips.scored(clip), f"{name}{clip}"
        if scored.start == scored.stop and len(clips) > 1:
            continue
        trackers[0].prepare(key, clips.responses(clip))
        for tracker in trackers[1:]:
            tracker.adopt(key, trackers[0])
        features, flat = clips.features(clip), estimates.weights.flatten(2)
        chunks = list(row_chunks(torch.arange(clips.lengths[clip]), flat.shape[2], max_bytes))
        only = lagged_rows(features, chunks[0], lags) if len(chunks) == 1 else None
        for tracker, weights, biases in zip(trackers, flat, estimates.biases, strict=True):
            parts = [
                weights @ (lagged_rows(features, bins, lags) if only is None else only).T for bins in chunks
            ]
            rates = torch.cat(parts, dim=1) + biases.unsqueeze(1)
            tracker.update([key], rates[None, :, None, scored])


def choose_per_neuron(
    scores: dict[str, Tensor], score: str, per_neuron: bool, n_neurons: int
) -> tuple[Tensor, int, Tensor]:
    """Index of each neuron's penalty (N,), of the best one on average, and neurons without a score (N,)."""
    if not scores:
        return torch.zeros(n_neurons, dtype=torch.long), 0, torch.zeros(n_neurons, dtype=torch.bool)
    wanted = scores[score]
    values = torch.where(wanted.isnan().all(0), scores["cc"], wanted)
    unscored = values.isnan().all(0)
    # a prediction that never varies has no correlation: the worst there can be
    ranked = values.nan_to_num(nan=-torch.inf)
    judged = ranked[:, ~unscored].clamp(min=-1.0)
    shared = int(judged.mean(1).argmax()) if judged.numel() else len(values) // 2
    index = torch.full((n_neurons,), shared)
    if per_neuron:
        index = torch.where(unscored, index, ranked.argmax(0))
    return index, shared, unscored
