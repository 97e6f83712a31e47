"""Boosted STRFs: coordinate steps of fixed size from zero, stopped early on validation clips.

In every step one weight of each neuron moves by ``delta`` up or down, the one that lowers the squared error
of the training bins most. With the Gram matrix ``G`` and the products ``r = X'y - G w``, a step ``s`` of
weight p changes the error by ``-2 s r_p + s^2 G_pp`` and ``r`` by ``-s G_p``: no step passes over the data,
and all neurons that were recorded in the same bins step together. The error of the validation clips follows
from their own Gram matrix in the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    check_non_negative,
    check_not_empty,
    check_positive_int,
    check_positive_number,
    checked,
    first_names,
)
from deepSTRF.baselines.lagged import (
    ClipFeatures,
    NeuronGroup,
    cross_products,
    group_neurons,
    lagged_gram,
)
from deepSTRF.baselines.linear_fit import (
    FEWEST_BINS,
    MAX_BYTES,
    LinearFit,
    LinearProblem,
    prepare,
    strfs_of,
    without_validation,
    write_estimate,
)
from deepSTRF.baselines.ridge import validation_scores
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS

__all__ = ["BoostingFit", "fit_boosting"]

#: Steps without a lower validation error after which a neuron stops, and most steps.
PATIENCE, MOST_STEPS = 100, 20_000


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class BoostingFit(LinearFit):
    """A boosted estimate and where each neuron stopped.

    Attributes
    ----------
    model, weight, bias, untrained, drive_mean, drive_variance, seconds
        As in `LinearFit`; most of ``weight`` is exactly zero.
    n_steps : Tensor of int, shape (N,)
        Steps of each neuron's estimate.
    validation_error : Tensor, shape (N,)
        Squared error of the estimate on the validation clips over that of the mean training response; NaN
        where there are none. 1 or more: nothing was learned that carries over.
    delta, min_delta : float
        First and smallest step.
    scores : dict of str to Tensor, shape (1, N)
        Validation ``cc_norm`` and ``cc`` of the estimate; empty without validation clips.
    unvalidated : tuple of str
        Neurons without validation bins, which took as many steps as the median neuron.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> fit = fit_boosting(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=8)
    >>> bool((fit.n_steps > 0).all()), fit.n_nonzero.shape
    (True, torch.Size([3]))
    """

    n_steps: Tensor
    validation_error: Tensor
    delta: float
    min_delta: float

    @property
    def n_nonzero(self) -> Tensor:
        """Number of weights of each neuron that are not zero, (N,)."""
        return (self.weight != 0).flatten(1).sum(1)

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        steps, used = self.n_steps.double(), self.n_nonzero.double()
        stop = (
            "lowest squared error on the validation clips, per neuron"
            if self.scores
            else "given number of steps"
        )
        return {
            **super().facts(),
            "method": "boosting: coordinate steps that lower the squared error of the mean over repeats "
            f"most, of {self.delta:g} to {self.min_delta:g} standard deviations",
            "stop": stop,
            "steps": f"median {float(steps.median()):g}, {float(steps.min()):g} to {float(steps.max()):g}",
            "weights_not_zero": f"median {float(used.median()):g}, {float(used.min()):g} to "
            f"{float(used.max()):g} of {self.weight[0].numel()}",
        }

    def choice(self, neuron: int) -> dict[str, Any]:
        """Return the number of steps of one neuron as an option of `fit_boosting`."""
        return {"n_steps": max(1, int(self.n_steps[neuron]))}

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = super().notes()
        if self.unvalidated:
            notes.append(
                ("info", f"No validation bins, median number of steps: {first_names(self.unvalidated)}.")
            )
        silent = int((self.n_steps == 0).sum()) - len(self.untrained)
        if silent > 0:
            notes.append(
                ("info", f"{silent} neurons have an STRF of zeros: no step lowered the validation error.")
            )
        capped = int((self.n_steps >= MOST_STEPS).sum())
        if capped:
            text = f"{capped} neurons took all {MOST_STEPS:,} steps that are allowed; give a larger delta."
            notes.append(("warning", text))
        return notes


@SOLVERS.register("boosting")
@without_validation(lambda options: options.get("n_steps") is not None)
@checked
def fit_boosting(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    n_lags: int | None = None,
    lags_ms: Sequence[float] | None = None,
    delta: float = 0.005,
    min_delta: float | None = None,
    basis_ms: float = 0.0,
    patience: int = PATIENCE,
    n_steps: int | None = None,
    prefiltering: nn.Module | Mapping[str, Any] | None = None,
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> BoostingFit:
    """Boosted STRFs: sparse, by coordinate steps, with early stopping per neuron on validation clips.

    From an STRF of zeros, each step changes the one weight by ``delta`` that lowers the squared error of the
    training clips most. A neuron stops when no step lowers it any more, or when its error on the validation
    clips has not fallen for ``patience`` steps; its estimate is that of the lowest validation error.

    Parameters
    ----------
    train : DatasetLike
        Training clips.
    validation : DatasetLike, optional
        Clips of other sounds, which stop each neuron; needed unless ``n_steps`` is given.
    n_lags, lags_ms : optional
        Length of the STRFs in bins, or their first and last lag in ms, as in `fit_ridge`.
    delta : float
        Step, in standard deviations of the PSTH per standard deviation of the band, over the training bins.
    min_delta : float, optional
        Where no step lowers the training error any more, ``delta`` is halved while it stays at least this
        large; None is ``delta``: no halving.
    basis_ms : float
        Length of a Hamming window that a step adds, along lags, in place of a single weight; 0 is one bin.
    patience : int
        Steps without a lower validation error after which a neuron stops.
    n_steps : int, optional
        Take so many steps, whatever the validation error.
    prefiltering, wav2spec, standardize, warmup_ms, max_bytes : optional
        As in `fit_ridge`.

    Returns
    -------
    BoostingFit
        The model and where each neuron stopped.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, recordings that differ or share a sound, no responses to fit, or nothing that
        stops the steps.

    Notes
    -----
    It holds two square matrices of F times n_lags rows, of training and validation clips. A neuron takes at
    most 20,000 steps.

    References
    ----------
    David, Mesgarani & Shamma 2007, doi 10.1080/09548980701609235; with ``min_delta`` and ``basis_ms`` as in
    Brodbeck et al. 2023 (Eelbrain), doi 10.7554/eLife.85012.

    Examples
    --------
    >>> import numpy as np
    >>> from deepSTRF.datasets.audio import AudioNeuralDataset
    >>> rng = np.random.default_rng(0)
    >>> stims = [rng.normal(size=(6, 500)) for _ in range(4)]
    >>> late = lambda row, lag: np.concatenate([np.zeros(lag), row[:-lag]])
    >>> responses = [(2.0 * late(x[1], 2) - late(x[4], 3))[None, None] for x in stims]
    >>> ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, response_kind="trace",
    ...                                     check_alignment=False)
    >>> fit = fit_boosting(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=5)
    >>> [tuple(place) for place in fit.weight[0, 0].nonzero().tolist()]     # band, and frame: lags 2 and 3
    [(1, 2), (4, 1)]
    """
    started = time.monotonic()
    check_positive_number("delta", delta)
    smallest = delta if min_delta is None else check_positive_number("min_delta", min_delta)
    if smallest > delta:
        raise ValueError(f"min_delta={min_delta:g} must be at most delta={delta:g}")
    check_non_negative("basis_ms", basis_ms)
    check_positive_int("patience", patience)
    if n_steps is not None:
        check_positive_int("n_steps", n_steps, most=MOST_STEPS)
    check_not_empty("train", train)
    if validation is None and n_steps is None:
        raise ValueError(
            "without validation clips nothing stops the steps: pass fit_boosting(train, validation, ...), "
            "or n_steps=200"
        )
    ready = prepare(
        train, validation, n_lags=n_lags, lags_ms=lags_ms, prefiltering=prefiltering, wav2spec=wav2spec,
        standardize=standardize, warmup_ms=warmup_ms, max_bytes=max_bytes,
    )  # fmt: skip
    basis = _basis(len(ready.lags), basis_ms / float(train.dt))
    found = _boost_all(ready, basis, _Rule(float(delta), float(smallest), patience, n_steps))
    strfs = strfs_of(found.weights, ready.model.F)
    write_estimate(ready.model, strfs, found.biases)
    scores = validation_scores(ready, found.weights, found.biases)

    return BoostingFit(
        model=ready.model.eval(),
        weight=strfs,
        bias=found.biases,
        scores=scores,
        unvalidated=ready.named(found.trained & ~found.validated) if validation is not None else (),
        untrained=ready.named(~found.trained),
        drive_mean=found.means,
        drive_variance=found.variances,
        seconds=time.monotonic() - started,
        n_steps=found.n_steps,
        validation_error=found.errors,
        delta=float(delta),
        min_delta=float(smallest),
    )


def _basis(n_lags: int, length: float) -> Tensor:
    """Matrix (L, L): column k is what a step at lag k adds, a Hamming window of a length in bins."""
    half = int(length / 2)
    if not half:
        return torch.eye(n_lags, dtype=torch.float64)
    window = torch.from_numpy(np.hamming(2 * half + 1))
    distance = torch.arange(n_lags).unsqueeze(1) - torch.arange(n_lags)
    inside = distance.abs() <= half
    return torch.where(inside, window[(distance + half).clamp(0, 2 * half)], 0.0)


@dataclass(frozen=True)
class _Rule:
    """How far a step goes, and what stops the steps."""

    delta: float
    min_delta: float
    patience: int
    n_steps: int | None


@dataclass(frozen=True)
class _Found:
    """Estimates of all N neurons."""

    weights: Tensor  # (N, L, D)
    biases: Tensor
    means: Tensor
    variances: Tensor
    n_steps: Tensor
    errors: Tensor
    trained: Tensor
    validated: Tensor


# ---- Sums of the data, in units in which a step is the same for every weight


@dataclass(frozen=True)
class _Sums:
    """Gram matrix (P, P) and products (P, n) of standardised features and PSTHs, per bin, and their scales.

    ``squares`` (n,) is the mean square of the standardised PSTH: the error of an STRF of zeros.
    """

    gram: Tensor
    products: Tensor
    squares: Tensor


@dataclass(frozen=True)
class _Scale:
    """Means and standard deviations of features (P,) and PSTHs (n,) over the training bins."""

    centre: Tensor
    mean: Tensor
    feature: Tensor
    response: Tensor


def _squares(clips: ClipFeatures) -> Tensor:
    """Sums of squares (N,) of the PSTHs."""
    total = torch.zeros(clips.n_neurons, dtype=torch.float64)
    for clip in range(len(clips)):
        total += clips.psth(clip).nan_to_num(nan=0.0).square().sum(1)
    return total


class _Moments:
    """Sums over the bins of each group of neurons of one set of clips."""

    def __init__(self, clips: ClipFeatures, groups: list[NeuronGroup], ready: LinearProblem) -> None:
        self.clips, self.groups, self.ready = clips, groups, ready
        self.cross, self.sums = cross_products(clips, ready.lags)
        self.squares = _squares(clips)
        self._grams: dict[int, tuple[Tensor, Tensor]] = {}

    def raw(self, group: int) -> tuple[Tensor, Tensor, int]:
        """Gram matrix, sums of the features and number of bins of a group; the last matrix is kept."""
        if group not in self._grams:
            lags, limit = self.ready.lags, self.ready.max_bytes
            self._grams = {group: lagged_gram(self.clips, self.groups[group], lags, max_bytes=limit)}
        return (*self._grams[group], self.groups[group].n_bins(self.clips.lengths))

    def scaled(self, group: int, neurons: Tensor, scale: _Scale, basis: Tensor) -> _Sums:
        """Sums of a group's neurons, less the means of training, over the standard deviations of training."""
        gram, columns, n_bins = self.raw(group)
        total = self.sums[neurons]
        mixed = torch.outer(columns, scale.centre)
        gram = gram - mixed - mixed.T + n_bins * torch.outer(scale.centre, scale.centre)
        products = (
            self.cross[:, neurons]
            - torch.outer(scale.centre, total)
            - torch.outer(columns - n_bins * scale.centre, scale.mean)
        )
        squares = self.squares[neurons] - 2.0 * scale.mean * total + n_bins * scale.mean.square()
        gram /= scale.feature * scale.feature.unsqueeze(1) * n_bins
        products /= scale.feature.unsqueeze(1) * scale.response * n_bins
        if not torch.equal(basis, torch.eye(len(basis), dtype=basis.dtype)):
            spread = torch.kron(basis, torch.eye(len(gram) // len(basis), dtype=basis.dtype))
            gram, products = spread.T @ gram @ spread, spread.T @ products
        return _Sums(gram, products, squares.clamp(min=0.0) / (scale.response.square() * n_bins))


def _scale_of(moments: _Moments, group: int, neurons: Tensor) -> _Scale:
    """Scales of the training bins; what does not vary never gets a weight."""
    gram, columns, n_bins = moments.raw(group)
    centre, mean = columns / n_bins, moments.sums[neurons] / n_bins
    variance = gram.diagonal() / n_bins - centre.square()
    flat = variance <= 1e-12 * (gram.diagonal() / n_bins)
    feature = torch.where(flat, math.inf, variance.clamp(min=0.0).sqrt())
    power = moments.squares[neurons] / n_bins
    spread = power - mean.square()
    response = torch.where(spread <= 1e-12 * power, math.inf, spread.clamp(min=0.0).sqrt())
    return _Scale(centre, mean, feature, response)


# ---- Steps


def _boost_all(ready: LinearProblem, basis: Tensor, rule: _Rule) -> _Found:
    """Boost the neurons of every pair of a training and a validation group together."""
    n, n_lags = len(ready.names), len(ready.lags)
    n_features = int(ready.clips.features(0).shape[0])

    def new(*shape: int) -> Tensor:
        return torch.zeros(n, *shape, dtype=torch.float64)

    flags = torch.zeros(2, n, dtype=torch.bool)
    steps = torch.zeros(n, dtype=torch.long)
    errors = torch.full((n,), math.nan, dtype=torch.float64)
    found = _Found(new(n_lags, n_features), new(), new(), new(), steps, errors, flags[0], flags[1])
    train = _Moments(ready.clips, ready.groups, ready)
    heard = None if ready.heard is None else _Moments(ready.heard, group_neurons(ready.heard), ready)
    waiting: list[tuple[int, Tensor]] = []
    for place, group in enumerate(ready.groups):
        if group.n_bins(ready.clips.lengths) < FEWEST_BINS:
            continue
        found.trained[group.neurons] = True
        left = group.neurons
        for other, judge in enumerate([] if heard is None else heard.groups):
            both = left[torch.isin(left, judge.neurons)]
            if heard is not None and len(both) and judge.n_bins(heard.clips.lengths) >= FEWEST_BINS:
                scale = _scale_of(train, place, both)
                judged = heard.scaled(other, both, scale, basis)
                _boost(train.scaled(place, both, scale, basis), judged, scale, both, rule, basis, found)
                found.validated[both] = True
                left = left[~torch.isin(left, both)]
        if len(left):
            waiting.append((place, left))
    typical = int(found.n_steps[found.validated].median()) if bool(found.validated.any()) else 0
    for place, neurons in waiting:
        scale = _scale_of(train, place, neurons)
        fixed = _Rule(rule.delta, rule.min_delta, rule.patience, rule.n_steps or max(typical, 1))
        _boost(train.scaled(place, neurons, scale, basis), None, scale, neurons, fixed, basis, found)
    return found


def _boost(
    train: _Sums, judge: _Sums | None, scale: _Scale, neurons: Tensor, rule: _Rule, basis: Tensor,
    found: _Found,
) -> None:  # fmt: skip
    """Boost n neurons together, and write their estimates."""
    n, n_weights = len(neurons), len(train.gram)
    power = train.gram.diagonal().contiguous()
    judging = judge is not None and rule.n_steps is None
    best, best_step = torch.zeros(n, n_weights, dtype=torch.float64), torch.zeros(n, dtype=torch.long)
    error = torch.full((n,), math.nan) if judge is None else judge.squares.clone()
    lowest, start = error.clone(), error.clone()
    # of the neurons that go on, `alive`: weights, what is left of the products, and the same of validation
    alive, weights, left = torch.arange(n), best.clone(), train.products.T.contiguous()
    judged = None if judge is None else judge.products.T.contiguous()
    delta = torch.full((n,), rule.delta, dtype=torch.float64)
    steps, since = torch.zeros(2, n, dtype=torch.long)
    stopped = torch.zeros(n, dtype=torch.bool)
    while len(alive):
        rows = torch.arange(len(alive))
        value, place = (2.0 * left.abs() - delta.unsqueeze(1) * power).max(1)  # of a step, over delta
        useful = value > 0
        going = useful & ~stopped
        move = torch.where(going, delta * left[rows, place].sign(), 0.0)
        delta = torch.where(useful, delta, 0.5 * delta)
        if judged is not None and judge is not None:
            change = move * (move * judge.gram.diagonal()[place] - 2.0 * judged[rows, place])
            judged -= move.unsqueeze(1) * judge.gram[place]
            error[alive] += change
        weights[rows, place] += move
        left -= move.unsqueeze(1) * train.gram[place]
        steps += going
        better = going & (error[alive] < lowest[alive]) if judging else going
        chosen = alive[better]
        best[chosen], best_step[chosen], lowest[chosen] = weights[better], steps[better], error[chosen]
        since = torch.where(better, 0, since + going)
        stopped |= delta < rule.min_delta
        stopped |= steps >= (rule.n_steps or MOST_STEPS)
        if judging:
            stopped |= since >= rule.patience
        if 4 * int(stopped.sum()) >= len(alive):  # the others go on alone
            kept = ~stopped
            alive, weights, left, delta = alive[kept], weights[kept], left[kept], delta[kept]
            steps, since, stopped = steps[kept], since[kept], stopped[kept]
            judged = None if judged is None else judged[kept]
    size = (best @ train.gram * best).sum(1)
    found.n_steps[neurons] = best_step
    if judge is not None:
        found.errors[neurons] = lowest / start
    spread = torch.kron(basis, torch.eye(n_weights // len(basis), dtype=basis.dtype))
    unit = torch.where(torch.isinf(scale.response), 0.0, scale.response).unsqueeze(1)
    final = best @ spread.T * unit / scale.feature
    found.weights[neurons] = final.unflatten(1, (len(basis), -1))  # type: ignore[no-untyped-call]
    found.means[neurons] = scale.mean
    found.biases[neurons] = scale.mean - final @ scale.centre
    found.variances[neurons] = size * unit.squeeze(1).square()
