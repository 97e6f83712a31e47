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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from deepSTRF.baselines.heldout import SCORES, HeldOut, PooledScores
from deepSTRF.baselines.lagged import (
    ClipFeatures,
    NeuronGroup,
)
from deepSTRF.baselines.linear_fit import (
    FEWEST_BINS,
    MAX_BYTES,
    LinearFit,
    LinearProblem,
    is_one_number,
    prepare,
    strfs_of,
    without_validation,
    write_estimate,
)
from deepSTRF.baselines.solution import Problem
from deepSTRF.models.fitted_on import band_moments
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS

__all__ = [
    "SCORES",
    "Penalties",
    "RidgeFit",
    "RidgeOptions",
    "RidgeSearch",
    "check_choosable",
    "choose_per_neuron",
    "default_lambdas",
    "features_of",
    "fit_prepared",
    "fit_ridge",
    "given_lambdas",
    "given_penalties",
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
#: Bytes that an estimate holds while it is scored, per weight: itself, and what it is transformed to.
BYTES_PER_WEIGHT = 8 * 8


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
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

    def choice(self, neuron: int) -> dict[str, Any]:
        """Return the penalties of one neuron as options of `fit_ridge`."""
        if not self.feature_grid:
            return {"lambdas": float(self.lambdas[neuron])}
        return {
            "lambdas": {name: float(one[neuron]) for name, one in self.feature_lambdas.items()},
            "banded": False,
        }

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = []
        if self.unvalidated:
            notes.append(("info", f"No validation score, shared lambda: {first_names(self.unvalidated)}."))
        notes += super().notes()
        for name, tried in (self.feature_grid or {"": self.grid}).items():
            chosen = self.feature_lambdas[name] if name else self.lambdas
            notes += self._edge_notes(chosen, tried, self.lambda_scale, f" for {name}" if name else "")
        return notes


@SOLVERS.register("ridge")
@without_validation(lambda options: is_one_number(options.get("lambdas")) and not options.get("banded"))
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
    given = given_penalties(options, features_of(train, wav2spec))
    check_not_empty("train", train)
    check_choosable(given, validation is not None, "fit_ridge(train, validation, ...)")
    ready = prepare(
        train,
        validation,
        n_lags=n_lags,
        lags_ms=lags_ms,
        prefiltering=prefiltering,
        wav2spec=wav2spec,
        standardize=standardize,
        warmup_ms=warmup_ms,
        max_bytes=max_bytes,
    )
    return fit_prepared(ready, options, given, started)


def features_of(recording: Any, wav2spec: nn.Module | None) -> dict[str, int]:
    """Rows of each named feature of a recording; none behind a front-end."""
    return {} if wav2spec is not None else dict(getattr(recording, "features", None) or {})


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


def fit_prepared(
    ready: LinearProblem,
    options: RidgeOptions,
    given: list[Penalties] | None,
    started: float,
    scores: dict[str, Tensor] | None = None,
) -> RidgeFit:
    """Fit to a prepared recording; the penalty is chosen on its validation clips, or by given ``scores``."""
    search = RidgeSearch(ready.clips, ready.groups, list(ready.features.values()), ready.lags, options, given)
    heard = None if ready.heard is None else HeldOut(ready.heard, ready.lags, options.max_bytes)
    found = search.try_all(heard) if scores is None else scores
    model, penalties, scale, names = ready.model, search.penalties, search.scale, ready.names
    index, shared, unscored = choose_per_neuron(found, options.score, options.per_neuron, len(names))
    kept = search.pick(index)
    grid = torch.cat([one.typical() for one in penalties])
    strfs = strfs_of(kept.weights.unflatten(1, (len(ready.lags), -1)), model.F)  # type: ignore[no-untyped-call]
    write_estimate(model, strfs, kept.biases)
    apart = any(one.ratios is not None for one in penalties)
    tried = {name: torch.cat([one.of(f) for one in penalties]) for f, name in enumerate(ready.features)}
    return RidgeFit(
        model=model.eval(),
        weight=strfs,
        bias=kept.biases,
        lambdas=grid[index] * scale,
        grid=grid,
        lambda_scale=scale,
        scores=found,
        shared_lambda=float(grid[shared]),
        per_neuron=options.per_neuron,
        unvalidated=tuple(name for name, lacks in zip(names, unscored.tolist(), strict=True) if lacks),
        untrained=tuple(names[neuron] for neuron in search.untrained),
        drive_mean=kept.means,
        drive_variance=kept.variances,
        forms=search.forms(),
        seconds=time.monotonic() - started,
        feature_lambdas={name: values[index] * scale for name, values in tried.items()},
        feature_grid=tried if apart else {},
    )


# ---- Arguments


@dataclass(frozen=True)
class Penalties:
    """Penalties that are solved together: ``lambdas`` (k,), for feature f times ``ratios[f]``."""

    lambdas: Tensor
    ratios: Tensor | None = None

    def of(self, feature: int) -> Tensor:
        """Return the penalties (k,) of one feature."""
        return self.lambdas if self.ratios is None else self.lambdas * self.ratios[feature]

    def typical(self) -> Tensor:
        """Return their geometric means (k,) over features."""
        return self.lambdas if self.ratios is None else self.lambdas * self.ratios.log().mean().exp()


def given_penalties(options: RidgeOptions, features: Mapping[str, int]) -> list[Penalties] | None:
    """Penalties that a user gives for a recording of some features, by their ratios; None: default ones."""
    lambdas, banded = options.lambdas, options.banded
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
            else [Penalties(grid, r) for r in (_ratios(len(features)) if banded else [None])]
        )
    if set(lambdas) != set(features):
        raise ValueError(
            f"lambdas names the features {sorted(map(str, lambdas))}, the recording has {list(features)}: "
            "give penalties for each of them"
        )
    grids = [given_lambdas(lambdas[name]).tolist() for name in features]
    if len(grids) == 1:
        return [Penalties(torch.tensor(grids[0], dtype=torch.float64))]
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
        Penalties(
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


def check_choosable(given: Sequence[Penalties] | None, validated: bool, call: str) -> None:
    """Raise ValueError unless there is one penalty, or something to choose it by, as in ``call``."""
    if not validated and (given is None or sum(len(one.lambdas) for one in given) != 1):
        raise ValueError(
            f"without validation clips nothing can choose among penalties: pass {call}, or one penalty "
            "(lambdas=100.0)"
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
class _Kept:
    """Estimates of all N neurons at one penalty each, of place ``at`` (N,), -1 for none; double precision."""

    weights: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    at: Tensor

    @classmethod
    def zeros(cls, n_neurons: int, n_weights: int) -> Self:
        weights = torch.zeros(n_neurons, n_weights, dtype=torch.float64)
        biases, variances, means = torch.zeros(3, n_neurons, dtype=torch.float64)
        return cls(weights, biases, variances, means, torch.full((n_neurons,), -1))

    def keep(
        self, neurons: Tensor, places: Tensor, weights: Tensor, biases: Tensor, variances: Tensor
    ) -> None:
        """Keep estimates (n, P) and (n,) of some neurons."""
        self.weights[neurons], self.biases[neurons], self.variances[neurons] = weights, biases, variances
        self.at[neurons] = places


class RidgeSearch:
    """Estimates of every penalty: features and PSTHs, neurons by their bins, rows of each named feature."""

    def __init__(
        self,
        clips: ClipFeatures,
        groups: list[NeuronGroup],
        feature_rows: list[int],
        lags: range,
        options: RidgeOptions,
        given: list[Penalties] | None,
    ) -> None:
        self.groups, self.options, self._feature_rows = groups, options, feature_rows
        self.scale = torch.ones(clips.n_neurons, dtype=torch.float64)
        if given is None:
            grid, self.scale = default_lambdas(clips, groups)
            several = _ratios(len(feature_rows)) if options.banded else [None]
            given = [Penalties(grid, ratios) for ratios in several]
        self.penalties = given
        single = len(given) == 1 and len(given[0].lambdas) == 1
        self._problem = Problem(
            clips, groups, lags, options.max_bytes, keep_sums=len(given) > 1, single=single
        )
        self._solved = [
            number for number, group in enumerate(groups) if group.n_bins(clips.lengths) >= FEWEST_BINS
        ]
        self.untrained = sorted(
            neuron
            for number, group in enumerate(groups)
            if number not in self._solved
            for neuron in group.neurons.tolist()
        )
        self._kept = _Kept.zeros(clips.n_neurons, self._problem.n_weights)

    def forms(self) -> dict[str, int]:
        """Groups of neurons that were solved in each form."""
        return dict(Counter(self._problem.form(number) for number in self._solved))

    def _rescale(self, ratios: Tensor | None) -> Tensor | None:
        """Features divided by the roots of penalties' ratios; returns the factor (P,) of the weights."""
        if ratios is None:
            self._problem.rescale(None)
            return None
        by_band = torch.repeat_interleave(ratios.rsqrt(), torch.tensor(self._feature_rows))
        n_features = self._problem.clips.n_features
        sizes = by_band.repeat(n_features // len(by_band))
        self._problem.rescale(sizes)
        return sizes.repeat(len(self._problem.lags))

    def _solve(
        self, number: int, lambdas: Tensor, members: Tensor, sizes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (k, n, P), biases and variances (k, n) of some members of a group."""
        group = self.groups[number]
        found = self._problem.solve(number, lambdas * self.scale[group.neurons[0]], members)
        weights = found.weights if sizes is None else found.weights * sizes
        return weights, found.biases, found.squares / group.n_bins(self._problem.clips.lengths)

    def _blocks(self, number: int, n_lambdas: int) -> tuple[Tensor, ...]:
        """Members of a group in blocks whose estimates of all penalties stay within bounds."""
        size = self.options.max_bytes // (BYTES_PER_WEIGHT * n_lambdas * self._problem.n_weights)
        return tuple(torch.split(torch.arange(len(self.groups[number].neurons)), max(1, size)))

    def estimates(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Estimates of all penalties, block by block: places of penalties, neurons, and `_solve`."""
        first = 0
        for one in self.penalties:
            sizes, places = self._rescale(one.ratios), slice(first, first + len(one.lambdas))
            for number in self._solved:
                for members in self._blocks(number, len(one.lambdas)):
                    neurons = self.groups[number].neurons[members]
                    yield (places, neurons, *self._solve(number, one.lambdas, members, sizes))
            if self.untrained:
                neurons = torch.tensor(self.untrained)
                weights = torch.zeros(len(one.lambdas), len(neurons), self._problem.n_weights)
                nothing = torch.zeros(2, len(one.lambdas), len(neurons), dtype=torch.float64)
                yield (places, neurons, weights.double(), *nothing)
            first = places.stop

    @property
    def n_penalties(self) -> int:
        """Penalties, or combinations of them, that are tried."""
        return sum(len(one.lambdas) for one in self.penalties)

    def add_scores(self, pools: Sequence[tuple[HeldOut, PooledScores]]) -> None:
        """Predict some clips, and add the predictions to the scores that go with them."""
        for clips, pooled in pools:
            pooled.include(clips)
        for places, neurons, weights, biases, _ in self.estimates():
            for clips, pooled in pools:
                pooled.add(clips, weights, biases, neurons, places)

    def try_all(self, heard: HeldOut | None) -> dict[str, Tensor]:
        """Validation scores (n_penalties, N); each neuron's best estimate is kept."""
        if heard is None:
            if self.n_penalties == 1:
                for _, neurons, weights, biases, variances in self.estimates():
                    self._kept.keep(neurons, torch.zeros_like(neurons), weights[0], biases[0], variances[0])
            return {}
        pooled = PooledScores(self.n_penalties, len(self.scale))
        pooled.include(heard)
        best = torch.full_like(self.scale, -torch.inf)
        for places, neurons, weights, biases, variances in self.estimates():
            pooled.add(heard, weights, biases, neurons, places)
            if self.options.per_neuron:
                found = pooled.compute(neurons, places)
                ranked = _ranked(found, self.options.score)[0].nan_to_num(nan=-torch.inf)
                score, at = ranked.max(0)
                better = score > best[neurons]
                own, mine = better.nonzero().squeeze(1), at[better]
                chosen = neurons[better]
                best[chosen] = score[better]
                parts = (values[mine, own] for values in (weights, biases, variances))
                self._kept.keep(chosen, mine + places.start, *parts)
        return pooled.compute()

    def pick(self, index: Tensor) -> _Kept:
        """Each neuron's estimate at its penalty; ``index`` (N,) counts over all penalties."""
        first = 0
        for one in self.penalties:
            for number in self._solved:
                members = self.groups[number].neurons
                at = index[members] - first
                wanted = (at >= 0) & (at < len(one.lambdas)) & (self._kept.at[members] != index[members])
                if not bool(wanted.any()):
                    continue
                sizes = self._rescale(one.ratios)
                for place in sorted(set(at[wanted].tolist())):
                    own = (wanted & (at == place)).nonzero().squeeze(1)
                    found = self._solve(number, one.lambdas[place : place + 1], own, sizes)
                    self._kept.keep(members[own], index[members[own]], *(values[0] for values in found))
            first += len(one.lambdas)
        for number in self._solved:
            members = self.groups[number].neurons
            self._kept.means[members] = self._problem.means(number)
        return self._kept


def validation_scores(ready: LinearProblem, weights: Tensor, biases: Tensor) -> dict[str, Tensor]:
    """Scores (1, N) of weights (N, L, D) and biases (N,) on the validation clips; none without any."""
    if ready.heard is None:
        return {}
    heard = HeldOut(ready.heard, ready.lags, ready.max_bytes)
    pooled = PooledScores(1, len(biases))
    pooled.include(heard)
    size = max(1, ready.max_bytes // (BYTES_PER_WEIGHT * weights[0].numel()))
    for neurons in torch.split(torch.arange(len(biases)), size):
        pooled.add(heard, weights[neurons].flatten(1)[None], biases[neurons][None], neurons)
    return pooled.compute()


def _ranked(scores: dict[str, Tensor], score: str) -> tuple[Tensor, Tensor]:
    """Scores by which penalties are compared (n_penalties, N), and neurons without any (N,)."""
    wanted = scores[score]
    values = torch.where(wanted.isnan().all(0), scores["cc"], wanted)
    return values, values.isnan().all(0)


def choose_per_neuron(
    scores: dict[str, Tensor], score: str, per_neuron: bool, n_neurons: int
) -> tuple[Tensor, int, Tensor]:
    """Index of each neuron's penalty (N,), of the best one on average, and neurons without a score (N,)."""
    if not scores:
        return torch.zeros(n_neurons, dtype=torch.long), 0, torch.zeros(n_neurons, dtype=torch.bool)
    values, unscored = _ranked(scores, score)
    # a prediction that never varies has no correlation: the worst there can be
    ranked = values.nan_to_num(nan=-torch.inf)
    judged = ranked[:, ~unscored].clamp(min=-1.0)
    shared = int(judged.mean(1).argmax()) if judged.numel() else len(values) // 2
    index = torch.full((n_neurons,), shared)
    if per_neuron:
        index = torch.where(unscored, index, ranked.argmax(0))
    return index, shared, unscored
