"""Tikhonov STRFs in closed form: weights whose neighbours in time and frequency differ cost.

The penalty ``w' M w`` is a quadratic form of the weights and of their first differences along lags and along
bands, so the estimate is ``(X'X + lambda M)^-1 X'Y``: one Cholesky factor per penalty serves all neurons that
were recorded in the same bins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    as_numbers,
    check_choice,
    check_flag,
    check_non_negative,
    check_not_empty,
    checked,
    checked_but,
    first_names,
)
from deepSTRF.baselines.heldout import SCORES, HeldOut, PooledScores
from deepSTRF.baselines.lagged import cross_products, lagged_gram
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
from deepSTRF.baselines.ridge import (
    BYTES_PER_WEIGHT,
    choose_per_neuron,
    default_lambdas,
    given_lambdas,
)
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS

__all__ = ["TikhonovFit", "fit_tikhonov"]

#: Weights of the differences that are tried along each axis: ridge, and smooth over about 1 and 3 bins.
SMOOTHNESS = (0.0, 1.0, 10.0)


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class TikhonovFit(LinearFit):
    """A Tikhonov estimate and how it was chosen.

    Attributes
    ----------
    model, weight, bias, untrained, drive_mean, drive_variance, seconds
        As in `LinearFit`.
    lambdas : Tensor, shape (N,)
        Penalty of each neuron.
    smooth_time, smooth_frequency : Tensor, shape (N,)
        What the squared differences along lags and bands weigh in it, beside ``shrinkage``.
    shrinkage : float
        What the squared weights themselves weigh.
    choices : Tensor, shape (n_choices, 3)
        Everything that was tried: penalty (of neuron n times ``lambda_scale[n]``), smoothness in time, in
        frequency.
    lambda_scale : Tensor, shape (N,)
        As in `RidgeFit`.
    scores : dict of str to Tensor, shape (n_choices, N)
        Validation ``cc_norm`` and ``cc`` of each choice; empty without validation clips.
    per_neuron : bool
        Whether each neuron has its own.
    unvalidated : tuple of str
        Neurons without a validation score, which got the choice that is best on average.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> fit = fit_tikhonov(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=8, smooth_time=[0, 3])
    >>> fit.choices.shape, fit.scores["cc_norm"].shape, fit.smooth_time.shape
    (torch.Size([72, 3]), torch.Size([72, 3]), torch.Size([3]))
    """

    lambdas: Tensor
    smooth_time: Tensor
    smooth_frequency: Tensor
    shrinkage: float
    choices: Tensor
    lambda_scale: Tensor
    per_neuron: bool

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        tried, chosen = self.choices, (self.lambdas, self.smooth_time, self.smooth_frequency)
        whose = "one per neuron" if self.per_neuron else "one for all neurons"
        how = f"best validation score of {len(tried)}" if self.scores else "given"
        ranges = [
            f"{name} {float(found.min()):.3g} to {float(found.max()):.3g} "
            f"(tried {float(values.min()):.3g} to {float(values.max()):.3g})"
            for name, found, values in zip(
                ("lambda", "smooth_time", "smooth_frequency"), chosen, tried.T, strict=True
            )
        ]
        return {
            **super().facts(),
            "method": "Tikhonov regression in closed form: squared error of the mean over repeats plus "
            f"lambda times ({self.shrinkage:g} of the squared weights + smooth_time of their squared "
            "differences along lags + smooth_frequency of those along bands), unpenalised intercept",
            "penalty": f"{whose}, {how}",
            "penalties_chosen": "; ".join(ranges),
        }

    def choice(self, neuron: int) -> dict[str, Any]:
        """Return penalty and smoothness of one neuron as options of `fit_tikhonov`."""
        names = ("lambdas", "smooth_time", "smooth_frequency")
        return {name: float(getattr(self, name)[neuron]) for name in names}

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = super().notes()
        if self.unvalidated:
            notes.append(("info", f"No validation score, shared penalty: {first_names(self.unvalidated)}."))
        return notes + self._edge_notes(self.lambdas, self.choices[:, 0], self.lambda_scale)


@SOLVERS.register("tikhonov")
@without_validation(
    lambda options: all(
        is_one_number(options.get(name)) for name in ("lambdas", "smooth_time", "smooth_frequency")
    )
)
@checked_but("lambdas", "smooth_time", "smooth_frequency")
def fit_tikhonov(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    n_lags: int | None = None,
    lags_ms: Sequence[float] | None = None,
    lambdas: Sequence[float] | float | None = None,
    smooth_time: Sequence[float] | float = SMOOTHNESS,
    smooth_frequency: Sequence[float] | float = SMOOTHNESS,
    shrinkage: float = 1.0,
    per_neuron: bool = True,
    score: str = "cc_norm",
    prefiltering: nn.Module | Mapping[str, Any] | None = None,
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> TikhonovFit:
    """Tikhonov STRFs in closed form: ridge that also penalises jumps in time and frequency.

    Each neuron's weights minimise its squared error plus ``lambda`` times the sum of ``shrinkage`` of the
    squared weights, ``smooth_time`` of the squared differences between neighbouring lags, and
    ``smooth_frequency`` of those between neighbouring bands. With both 0 and a shrinkage of 1 that is
    `fit_ridge`. Differences do not cross from one named feature, or channel of a prefilter, to the next.

    Parameters
    ----------
    train, validation : DatasetLike
        Training clips, and clips of other sounds, which choose among the penalties; these are needed unless
        there is only one.
    n_lags, lags_ms : optional
        Length of the STRFs in bins, or their first and last lag in ms, as in `fit_ridge`.
    lambdas : float or sequence of float, optional
        Penalties, above 0, in the unit of the sum of squared features; None takes the 12 of `fit_ridge`.
    smooth_time, smooth_frequency : float or sequence of float
        What squared differences weigh, 0 or more; of several every combination is tried. 1 smooths over about
        one bin, 10 over about three, ``n**2`` over n.
    shrinkage : float
        What the squared weights weigh, 0 or more.
    per_neuron : bool
        Whether each neuron takes what is best for it, or all what is best on average.
    score : {"cc_norm", "cc"}
        What is best; a neuron without ``cc_norm`` goes by its ``cc``.
    prefiltering, wav2spec, standardize, warmup_ms, max_bytes : optional
        As in `fit_ridge`.

    Returns
    -------
    TikhonovFit
        The model and how it was chosen.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, recordings that differ or share a sound, no responses to fit, or a penalty that
        leaves weights undetermined.

    Notes
    -----
    Always solved by weights: it holds a square matrix of F times n_lags rows, whose factor is the cost.
    mTRFpy's ``method="tikhonov"`` of one band is ``shrinkage=0, smooth_time=0.5, smooth_frequency=0``.

    References
    ----------
    Tikhonov regularisation of STRFs: Crosse et al. 2016, doi 10.3389/fnhum.2016.00604.

    Examples
    --------
    >>> from deepSTRF.baselines import fit_ridge
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> rough = fit_ridge(ds, n_lags=8, lambdas=100.0).weight
    >>> same = fit_tikhonov(ds, n_lags=8, lambdas=100.0, smooth_time=0, smooth_frequency=0).weight
    >>> smooth = fit_tikhonov(ds, n_lags=8, lambdas=100.0, smooth_time=9, smooth_frequency=9).weight
    >>> bool((rough - same).abs().max() < 1e-9), bool(smooth.diff().norm() < rough.diff().norm())
    (True, True)
    """
    started = time.monotonic()
    check_flag("per_neuron", per_neuron)
    check_choice("score", score, SCORES)
    check_non_negative("shrinkage", shrinkage)
    check_not_empty("train", train)
    grid = None if lambdas is None else given_lambdas(lambdas)
    smoothness = list(
        itertools.product(
            _given_smoothness("smooth_time", smooth_time),
            _given_smoothness("smooth_frequency", smooth_frequency),
        )
    )
    if not shrinkage and (0.0, 0.0) in smoothness:
        raise ValueError(
            "shrinkage=0 and no smoothness in time and frequency penalise nothing: give shrinkage=1.0, or "
            "smooth_time or smooth_frequency above 0"
        )
    if validation is None and (grid is None or len(grid) * len(smoothness) > 1):
        raise ValueError(
            "without validation clips nothing can choose among penalties: pass fit_tikhonov(train, "
            "validation, ...), or one number each (lambdas=100.0, smooth_time=1.0, smooth_frequency=1.0)"
        )
    ready = prepare(
        train, validation, n_lags=n_lags, lags_ms=lags_ms, prefiltering=prefiltering, wav2spec=wav2spec,
        standardize=standardize, warmup_ms=warmup_ms, max_bytes=max_bytes,
    )  # fmt: skip
    scale = torch.ones(len(ready.names), dtype=torch.float64)
    if grid is None:
        grid, scale = default_lambdas(ready.clips, ready.groups)
    problem = _Problem(ready, grid, scale, smoothness, float(shrinkage))
    scores = {} if ready.heard is None else problem.scores()
    index, _, unscored = choose_per_neuron(scores, score, per_neuron, len(ready.names))
    weights, biases, variances, means, untrained = problem.pick(index)
    strfs = strfs_of(weights, ready.model.F)
    write_estimate(ready.model, strfs, biases)
    choices = torch.tensor(
        [(lam, *smooth) for smooth in smoothness for lam in grid.tolist()], dtype=torch.float64
    )
    return TikhonovFit(
        model=ready.model.eval(),
        weight=strfs,
        bias=biases,
        scores=scores,
        unvalidated=ready.named(unscored),
        untrained=tuple(ready.names[neuron] for neuron in untrained),
        drive_mean=means,
        drive_variance=variances,
        seconds=time.monotonic() - started,
        lambdas=choices[index, 0] * scale,
        smooth_time=choices[index, 1],
        smooth_frequency=choices[index, 2],
        shrinkage=float(shrinkage),
        choices=choices,
        lambda_scale=scale,
        per_neuron=per_neuron,
    )


def _given_smoothness(name: str, values: Any) -> list[float]:
    """Return weights of squared differences, ascending and without duplicates."""
    found = torch.from_numpy(as_numbers(values, name)).flatten()
    if not len(found) or not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        raise ValueError(f"{name} must be finite numbers of at least 0, at least one, got {found.tolist()}")
    return sorted(set(found.tolist()))


@dataclass(frozen=True)
class _Sums:
    """Sums over the bins of n neurons: centred Gram matrix (P, P), products (P, n), means (P,) and (n,)."""

    neurons: Tensor
    n_bins: int
    gram: Tensor
    products: Tensor
    centre: Tensor
    means: Tensor


@dataclass(frozen=True)
class _Problem:
    """A recording, the penalties of its neurons, and the pairs of smoothness in time and frequency."""

    ready: LinearProblem
    grid: Tensor
    scale: Tensor
    smoothness: list[tuple[float, float]]
    shrinkage: float

    def scores(self) -> dict[str, Tensor]:
        """Validation scores (n_choices, N) of everything."""
        ready, n_lambdas = self.ready, len(self.grid)
        if ready.heard is None:
            return {}
        heard = HeldOut(ready.heard, ready.lags, ready.max_bytes)
        pooled = PooledScores(n_lambdas * len(self.smoothness), len(self.scale))
        pooled.include(heard)
        known = torch.zeros(len(self.scale), dtype=torch.bool)
        for sums in self._sums():
            known[sums.neurons] = True
            lambdas = (self.grid * self.scale[sums.neurons[0]]).tolist()
            for place, pair in enumerate(self.smoothness):
                penalty = self._penalty(pair)
                weights = torch.stack([_solve(sums, penalty, lam).T for lam in lambdas])
                self._add(pooled, heard, place, weights, sums.means - weights @ sums.centre, sums.neurons)
        lost = (~known).nonzero().squeeze(1)
        for place in range(len(self.smoothness)) if len(lost) else ():
            shape = (n_lambdas, len(lost), len(ready.lags) * ready.clips.n_features)
            weights = torch.zeros(shape, dtype=torch.float64)
            self._add(pooled, heard, place, weights, weights[..., 0], lost)
        return pooled.compute()

    def _add(
        self,
        pooled: PooledScores,
        heard: HeldOut,
        place: int,
        weights: Tensor,
        biases: Tensor,
        neurons: Tensor,
    ) -> None:
        """Score estimates of all lambdas at one smoothness, a few neurons at a time."""
        choices = slice(place * len(self.grid), (place + 1) * len(self.grid))
        size = max(1, self.ready.max_bytes // (BYTES_PER_WEIGHT * len(self.grid) * weights.shape[2]))
        for some in torch.split(torch.arange(len(neurons)), size):
            pooled.add(heard, weights[:, some], biases[:, some], neurons[some], choices)

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Weights (N, L, D), biases, variances and means (N,) at each neuron's choice; who has no data."""
        n_lambdas, n_neurons, n_lags = len(self.grid), len(index), len(self.ready.lags)
        weights = torch.zeros(n_neurons, n_lags * self.ready.clips.n_features, dtype=torch.float64)
        biases, variances, means = torch.zeros(3, n_neurons, dtype=torch.float64)
        known = torch.zeros(n_neurons, dtype=torch.bool)
        for sums in self._sums():
            means[sums.neurons], known[sums.neurons] = sums.means, True
            chosen = index[sums.neurons]
            for choice in sorted(set(chosen.tolist())):
                own = (chosen == choice).nonzero().squeeze(1)
                neurons = sums.neurons[own]
                lam = float(self.grid[choice % n_lambdas] * self.scale[neurons[0]])
                found = _solve(sums, self._penalty(self.smoothness[choice // n_lambdas]), lam, own)
                weights[neurons] = found.T
                biases[neurons] = sums.means[own] - sums.centre @ found
                variances[neurons] = (found * (sums.gram @ found)).sum(0) / sums.n_bins
        by_lag = weights.unflatten(1, (n_lags, -1))  # type: ignore[no-untyped-call]
        return by_lag, biases, variances, means, (~known).nonzero().squeeze(1).tolist()

    def _sums(self) -> Iterator[_Sums]:
        """Sums of each group of neurons, one at a time: each holds a matrix of its own."""
        clips, lags = self.ready.clips, self.ready.lags
        xy, sums = cross_products(clips, lags)
        for group in self.ready.groups:
            n_bins = group.n_bins(clips.lengths)
            if n_bins >= FEWEST_BINS:
                gram, columns = lagged_gram(clips, group, lags, max_bytes=self.ready.max_bytes)
                centre = columns / n_bins
                gram.addr_(columns, centre, alpha=-1.0)
                total = sums[group.neurons]
                products = xy[:, group.neurons] - torch.outer(centre, total)
                yield _Sums(group.neurons, n_bins, gram, products, centre, total / n_bins)

    def _penalty(self, pair: tuple[float, float]) -> Tensor:
        return _penalty(len(self.ready.lags), self.ready.blocks(), self.shrinkage, *pair)


def _solve(sums: _Sums, penalty: Tensor, lam: float, members: Tensor | None = None) -> Tensor:
    """Weights (P, n) of the neurons of a group, or of some of them, at one penalty matrix (P, P)."""
    factor, failed = torch.linalg.cholesky_ex(torch.add(sums.gram, penalty, alpha=lam))
    if int(failed):
        raise ValueError(
            "the training clips do not determine the weights that differences alone leave free; "
            "give shrinkage above 0"
        )
    products = sums.products if members is None else sums.products[:, members]
    return torch.cholesky_solve(products, factor)


def _penalty(n_lags: int, blocks: list[int], shrinkage: float, in_time: float, in_frequency: float) -> Tensor:
    """Matrix M (P, P) of the penalty ``w' M w``, for weights in the order (lag, feature)."""
    along_bands = torch.block_diag(*[_differences(size) for size in blocks])  # type: ignore[no-untyped-call]
    penalty = shrinkage * torch.eye(n_lags * len(along_bands), dtype=torch.float64)
    penalty += in_time * torch.kron(_differences(n_lags), torch.eye(len(along_bands), dtype=torch.float64))
    return penalty + in_frequency * torch.kron(torch.eye(n_lags, dtype=torch.float64), along_bands)


def _differences(size: int) -> Tensor:
    """Matrix (size, size) of the sum of squared first differences."""
    steps = torch.eye(size, dtype=torch.float64).diff(dim=0)
    return steps.T @ steps
