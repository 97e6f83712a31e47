"""STRFs under Gaussian priors of smoothness and locality, whose scales maximise the evidence.

The weights of a neuron are ``w ~ N(0, c K)`` and its PSTH is ``y = X w + noise`` of variance ``s2``, so the
evidence ``p(y | c, s2, K)`` is a normal density. With ``K = B B'`` and the eigenvalues ``d`` and eigenvectors
``U`` of ``B' X'X B``, and ``g = c / s2``,

    -2 log p = n log(2 pi s2) + sum log(1 + g d) + (y'y - g sum (U'B'X'y)^2 / (1 + g d)) / s2,

where the best ``s2`` is known for every ``g``. So one decomposition per pair of length scales serves all
neurons that were recorded in the same bins, with a search along ``g`` alone. ``K`` is a Kronecker product of
a factor for lags and one for bands; directions in which it is negligible are left out.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from deepSTRF._validation import (
    FloatArray,
    as_numbers,
    check_choice,
    checked,
    checked_but,
    first_names,
)
from deepSTRF.baselines.lagged import cross_products, lagged_gram
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
from deepSTRF.baselines.parallel import each_on_one_thread
from deepSTRF.baselines.ridge import validation_scores
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS

__all__ = ["EvidenceFit", "fit_evidence"]

#: Length scales from half a bin, where neighbours are all but independent, each larger by half an octave.
SHORTEST_SCALE, SCALE_STEP = 0.5, math.sqrt(2.0)
#: Every so many steps of the grid of length scales is looked at first.
COARSE = 4
#: Directions of the prior in lags, or in bands, below this share of the largest are left out.
NEGLIGIBLE = 1e-10
#: Signal to noise ``g`` times the mean eigenvalue: powers of 10 that are tried, and sections between two.
SIGNAL_DECADES, N_SIGNALS, N_SECTIONS = (-7.0, 7.0), 57, 30
#: Least variance of the noise, as a share of that of the response.
LEAST_NOISE = 1e-12
#: Directions of a local prior whose signal is below this share of the noise are left out in the search (about
#: 0.03 nats on NS1), and in the estimate (0.0001).
LEAST_SIGNAL_IN_SEARCH, LEAST_SIGNAL = 1e-3, 1e-7
#: The search for a local prior ends where a step gains less (nats), or after so many. Units of its variables
#: are by their curvature at the start, from differences of this step; the least curvature that is assumed.
SEARCH, DIFFERENCE, LEAST_CURVATURE = {"ftol": 1e-2, "maxiter": 60}, 1e-3, 1e-2
#: Its narrowest envelope and shortest scale, in bins or bands.
NARROWEST = 0.3
PRIORS = ("smooth", "smooth+local")


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class EvidenceFit(LinearFit):
    """An estimate under the prior of highest evidence, with its uncertainty.

    Attributes
    ----------
    model, weight, bias, untrained, drive_mean, drive_variance, seconds
        As in `LinearFit`; ``weight`` is the mean of the posterior.
    weight_std : Tensor, shape (N, C, F, T)
        Standard deviation of the posterior of each weight, given the scales and the envelope: too small where
        there are too few data to know those.
    prior : {"smooth", "smooth+local"}
        Kind of prior.
    log_evidence : Tensor, shape (N,)
        Log evidence in nats above that of a neuron that does not respond to the stimulus.
    noise_variance, prior_variance : Tensor, shape (N,)
        Variance of the noise of the PSTH, and of each weight before any data (where the envelope is 1).
    time_scale, frequency_scale : Tensor, shape (N,)
        Length scales of the prior in ms and in bands.
    envelope : Tensor, shape (N, 4)
        Of a local prior its centre and width in lags (ms), and its centre and width in bands; infinite widths
        where locality did not raise the evidence, and for the prior "smooth".
    scores : dict of str to Tensor, shape (1, N)
        Scores on validation clips, which choose nothing here; empty without.
    untuned : tuple of str
        Neurons for which no prior has more evidence than no response at all: the STRF is zero.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=6)
    >>> fit = fit_evidence(ds, n_lags=8)
    >>> fit.weight_std.shape == fit.weight.shape, bool((fit.log_evidence > 0).all())
    (True, True)
    """

    weight_std: Tensor
    prior: str
    log_evidence: Tensor
    noise_variance: Tensor
    prior_variance: Tensor
    time_scale: Tensor
    frequency_scale: Tensor
    envelope: Tensor
    untuned: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        local = int(torch.isfinite(self.envelope[:, 1]).sum())
        also = f", local in {local} of {len(self.bias)} neurons" if self.prior == "smooth+local" else ""
        time_scale, frequency_scale = (
            f"median {float(values.median()):.3g}, {float(values.min()):.3g} to {float(values.max()):.3g}"
            for values in (self.time_scale, self.frequency_scale)
        )
        return {
            **super().facts(),
            "method": "mean of the posterior under a Gaussian prior, independent noise of equal variance in "
            "each bin of the mean over repeats, flat prior of the intercept",
            "prior": f"{self.prior}, one per neuron, by the evidence of the training clips{also}",
            "length_scales": f"time {time_scale} ms; frequency {frequency_scale} bands",
        }

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = super().notes()
        if self.untuned:
            notes.append(
                (
                    "info",
                    f"No evidence of a response to the stimulus, STRF zero: {first_names(self.untuned)}.",
                )
            )
        return notes


@SOLVERS.register("evidence")
@without_validation(lambda options: True)
@checked_but("time_scales_ms", "frequency_scales")
def fit_evidence(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    prior: str = "smooth",
    n_lags: int | None = None,
    lags_ms: Sequence[float] | None = None,
    time_scales_ms: Sequence[float] | float | None = None,
    frequency_scales: Sequence[float] | float | None = None,
    prefiltering: nn.Module | Mapping[str, Any] | None = None,
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> EvidenceFit:
    """STRFs with automatic smoothness, and locality, by the evidence: no validation clips are needed.

    "smooth" is automatic smoothness determination: the prior covariance of two weights falls with the squares
    of their distances in time and in frequency, over length scales that maximise the probability of the
    training responses, for each neuron with its own signal and noise variances. "smooth+local" multiplies it
    by a Gaussian envelope in time and frequency, found the same way, outside of which weights are small.

    Parameters
    ----------
    train : DatasetLike
        Clips that fit and choose: all that are not kept for testing.
    validation : DatasetLike, optional
        Clips of other sounds that are only scored, in ``scores``.
    prior : {"smooth", "smooth+local"}
        Kind of prior.
    n_lags, lags_ms : optional
        Length of the STRFs in bins, or their first and last lag in ms, as in `fit_ridge`.
    time_scales_ms, frequency_scales : float or sequence of float, optional
        Length scales to choose from, in ms and in bands, 0 or more (0: neighbours are independent). None
        takes 0.5 bins or bands and more, half an octave apart, up to the size of the STRF.
    prefiltering, wav2spec, standardize, warmup_ms, max_bytes : optional
        As in `fit_ridge`.

    Returns
    -------
    EvidenceFit
        Mean and standard deviation of the posterior, and the prior of each neuron.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, recordings that differ or share a sound, no responses to fit, or a local prior
        for stimuli of several features.

    Notes
    -----
    Noise is taken as independent from bin to bin: smoothed responses, and noise that lasts over bins, make
    ``weight_std`` too small and length scales too short. Different features and channels are independent.
    Length scales are climbed to from a coarse grid; signal and noise variance are optimised continuously, and
    so are all scales of a local prior, per neuron, from the smooth estimate uphill, until a step gains less
    than 0.001 nats. That costs about 0.2 s of a processor per neuron with 510 weights, 1.5 s with 1,360.

    References
    ----------
    Sahani & Linden 2003, "Evidence optimization techniques for estimating stimulus-response functions", NIPS
    15; Park & Pillow 2011, doi 10.1371/journal.pcbi.1002219.

    Examples
    --------
    >>> from deepSTRF.baselines import fit_ridge
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=6, n_repeats=6)
    >>> train, validation = ds.select(clips=[0, 1, 2, 3]), ds.select(clips=[4, 5])
    >>> by_evidence = fit_evidence(train, validation, n_lags=9)
    >>> by_validation = fit_ridge(train, validation, n_lags=9)
    >>> bool(by_evidence.scores["cc"].mean() > by_validation.scores["cc"].max(0).values.mean() - 0.05)
    True
    """
    started = time.monotonic()
    check_choice("prior", prior, PRIORS)
    ready = prepare(
        train, validation, n_lags=n_lags, lags_ms=lags_ms, prefiltering=prefiltering, wav2spec=wav2spec,
        standardize=standardize, warmup_ms=warmup_ms, max_bytes=max_bytes,
    )  # fmt: skip
    if prior == "smooth+local" and len(ready.features) > 1:
        raise ValueError(
            f"prior='smooth+local' has one envelope over bands, and the stimuli have {len(ready.features)} "
            "features; take prior='smooth'"
        )
    grids = (
        _length_scales("time_scales_ms", time_scales_ms, len(ready.lags), float(train.dt)),
        _length_scales("frequency_scales", frequency_scales, max(ready.blocks()), 1.0),
    )
    found = _Found.of(ready)
    trained = torch.zeros(len(ready.names), dtype=torch.bool)
    for sums in _group_sums(ready):
        trained[sums.neurons] = True
        found.means[sums.neurons] = sums.mean
        _climb(sums, ready, grids, found)
        if prior == "smooth+local":
            search = functools.partial(_localize, sums, ready=ready, found=found)
            for _ in each_on_one_thread(search, range(len(sums.neurons))):
                pass
    strfs, deviations = (strfs_of(values, ready.model.F) for values in (found.weights, found.deviations))
    write_estimate(ready.model, strfs, found.biases)
    scores = validation_scores(ready, found.weights, found.biases)
    lost, quiet = ~trained, trained & (found.evidence <= 0)
    bin_ms = float(train.dt)
    return EvidenceFit(
        model=ready.model.eval(),
        weight=strfs,
        bias=found.biases,
        scores=scores,
        untrained=ready.named(lost),
        drive_mean=found.means,
        drive_variance=found.variances,
        seconds=time.monotonic() - started,
        weight_std=deviations,
        prior=prior,
        log_evidence=found.evidence.clamp(min=0.0),
        noise_variance=found.noise,
        prior_variance=found.prior,
        time_scale=found.scales[:, 0] * bin_ms,
        frequency_scale=found.scales[:, 1],
        envelope=found.envelope * torch.tensor([bin_ms, bin_ms, 1.0, 1.0], dtype=torch.float64),
        untuned=ready.named(quiet),
    )


def _length_scales(name: str, given: Any, size: int, unit: float) -> list[float]:
    """Length scales to choose from, in bins or bands, ascending."""
    if given is None:
        steps = max(0, math.ceil(math.log(max(size, 1) / SHORTEST_SCALE, SCALE_STEP))) if size > 1 else 0
        return [SHORTEST_SCALE * SCALE_STEP**step for step in range(steps + 1)]
    found = as_numbers(given, name).ravel()
    if not len(found) or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"{name} must be finite numbers of at least 0, at least one, got {found.tolist()}")
    return sorted({value / unit for value in found.tolist()})


# ---- Sums of the data, and what is found


@dataclass(frozen=True)
class _Sums:
    """Sums of one group over its bins, centred: Gram matrix (L, L, D, D), products (P, n), squares (n,)."""

    neurons: Tensor
    n_bins: int
    gram: Tensor
    products: Tensor
    squares: Tensor
    centre: Tensor
    mean: Tensor


def _group_sums(ready: LinearProblem) -> Iterator[_Sums]:
    """Sums of each group of neurons, one at a time: each holds a matrix of its own."""
    clips, lags = ready.clips, ready.lags
    xy, sums = cross_products(clips, lags)
    squares = torch.zeros_like(sums)
    for clip in range(len(clips)):
        squares += clips.psth(clip).nan_to_num(nan=0.0).square().sum(1)
    for group in ready.groups:
        n_bins = group.n_bins(clips.lengths)
        if n_bins < FEWEST_BINS:
            continue
        gram, columns = lagged_gram(clips, group, lags, max_bytes=ready.max_bytes)
        centre, total = columns / n_bins, sums[group.neurons]
        gram.addr_(columns, centre, alpha=-1.0)
        yield _Sums(
            group.neurons,
            n_bins,
            gram.view(len(lags), -1, len(lags), len(columns) // len(lags)).transpose(1, 2).contiguous(),
            xy[:, group.neurons] - torch.outer(centre, total),
            (squares[group.neurons] - total.square() / n_bins).clamp(min=0.0),
            centre,
            total / n_bins,
        )


@dataclass(frozen=True)
class _Found:
    """The best so far of all N neurons: estimates, their uncertainty, and the prior they came from."""

    weights: Tensor  # (N, L, D)
    deviations: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    evidence: Tensor
    noise: Tensor
    prior: Tensor
    scales: Tensor  # (N, 2), in bins and bands
    envelope: Tensor  # (N, 4), in bins and bands

    @classmethod
    def of(cls, ready: LinearProblem) -> _Found:
        n, lags, features = len(ready.names), len(ready.lags), int(ready.clips.features(0).shape[0])

        def new(*shape: int) -> Tensor:
            return torch.zeros(n, *shape, dtype=torch.float64)

        envelope = torch.tensor([0.0, math.inf, 0.0, math.inf], dtype=torch.float64).repeat(n, 1)
        weights, deviations = new(lags, features), new(lags, features)
        biases, variances, means, noise, prior = (new() for _ in range(5))
        nothing = torch.full((n,), -1.0, dtype=torch.float64)  # less than any prior has
        return cls(weights, deviations, biases, variances, means, nothing, noise, prior, new(2), envelope)


@dataclass(frozen=True)
class _Solution:
    """Evidence of one prior for n neurons, and what estimates need: see the formula of the module."""

    basis: Tensor  # (L, l) and (D, d) factors of K
    basis_bands: Tensor
    sizes: Tensor
    directions: Tensor
    shares: Tensor  # (r, n): U' B' X' y
    evidence: Tensor  # (n,), above that of no response
    ratio: Tensor
    noise: Tensor

    def estimates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and standard deviations (n, L, D), and summed squares of the predictions (n,)."""
        shrunk = self.ratio / (1.0 + self.sizes.unsqueeze(1) * self.ratio)
        mean = self.shares * shrunk
        whole = torch.kron(self.basis, self.basis_bands) @ self.directions
        shape = (len(self.basis), len(self.basis_bands))
        spread = (whole.square() @ (self.noise * shrunk)).sqrt()
        squares = (self.sizes.unsqueeze(1) * mean.square()).sum(0)
        return (whole @ mean).T.unflatten(1, shape), spread.T.unflatten(1, shape), squares  # type: ignore[no-untyped-call]


def _solve(sums: _Sums, in_time: Tensor, in_bands: Tensor, neurons: Tensor) -> _Solution:
    """Evidence of the prior whose factors are (L, l) and (D, d), for some neurons of a group."""
    whole = _in_time(_in_bands(sums.gram, in_bands), in_time)
    products = sums.products[:, neurons].T.reshape(-1, len(in_time), len(in_bands))
    reduced = (in_time.T @ (products @ in_bands)).flatten(1).T
    sizes, directions = torch.linalg.eigh(0.5 * (whole + whole.T))
    sizes = sizes.clamp(min=0.0)
    shares = directions.T @ reduced
    ratio, evidence, noise = _best_ratio(sizes, shares.square(), sums.squares[neurons], sums.n_bins - 1)
    return _Solution(in_time, in_bands, sizes, directions, shares, evidence, ratio, noise)


def _in_bands(gram: Tensor, in_bands: Tensor) -> Tensor:
    """Gram matrix (L, L, D, D) of lags and bands as that (L, L, d, d) of directions in bands."""
    return in_bands.T @ (gram @ in_bands)


def _in_time(gram: Tensor, in_time: Tensor) -> Tensor:
    """Gram matrix (L, L, d, d) of lags and directions as that (l d, l d) of directions."""
    n_lags, l = in_time.shape  # noqa: E741
    half = (in_time.T @ gram.view(n_lags, -1)).view(l, n_lags, -1)
    whole = (in_time.T @ half).view(l, l, *gram.shape[2:]).transpose(1, 2)
    return whole.reshape(l * gram.shape[2], -1)


def _best_ratio(sizes: Tensor, squared: Tensor, total: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best signal to noise (n,) of each neuron, its evidence above that of no response, noise variance.

    ``squared`` are the squares of `_Solution.shares`, ``total`` (n,) those of the centred PSTHs.
    """
    silent = total <= torch.finfo(torch.float64).tiny
    total = torch.where(silent, 1.0, total)

    def noise_of(explained: Tensor) -> Tensor:
        return (total - explained).clamp(min=LEAST_NOISE * total) / n

    def evidence_of(noise: Tensor, volume: Tensor) -> Tensor:
        return -0.5 * (n * (noise * n / total).log() + volume)

    def at(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        grown = sizes.unsqueeze(1) * (ratio := 10.0**log_ratio)
        noise = noise_of((squared * (ratio / (1.0 + grown))).sum(0))
        return evidence_of(noise, torch.log1p(grown).sum(0)), noise

    tried = torch.linspace(*SIGNAL_DECADES, N_SIGNALS, dtype=torch.float64)
    tried -= math.log10(float(sizes.mean()) or 1.0)
    grown = sizes * (10.0**tried).unsqueeze(1)
    explained = ((10.0**tried).unsqueeze(1) / (1.0 + grown)) @ squared
    best = evidence_of(noise_of(explained), torch.log1p(grown).sum(1, keepdim=True)).argmax(0)
    low, high = tried[best] - (tried[1] - tried[0]), tried[best] + (tried[1] - tried[0])
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(N_SECTIONS):
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        left = at(inner)[0] > at(outer)[0]
        low, high = torch.where(left, low, inner), torch.where(left, outer, high)
    log_ratio = 0.5 * (low + high)
    evidence, noise = at(log_ratio)
    flat = silent | (evidence <= 0)
    noise = torch.where(silent, 0.0, torch.where(flat, total / n, noise))
    return torch.where(flat, 0.0, 10.0**log_ratio), torch.where(flat, 0.0, evidence), noise


def _keep(found: _Found, sums: _Sums, solution: _Solution | _Local, places: Tensor, scales: Tensor) -> None:
    """Write the estimates of ``places`` of a group, which are those of a solution."""
    neurons = sums.neurons[places]
    weights, deviations, squares = solution.estimates()
    found.weights[neurons], found.deviations[neurons] = weights, deviations
    found.biases[neurons] = sums.mean[places] - weights.flatten(1) @ sums.centre
    found.variances[neurons] = squares / sums.n_bins
    found.evidence[neurons] = solution.evidence
    found.noise[neurons] = solution.noise
    found.prior[neurons] = solution.noise * solution.ratio
    found.scales[neurons] = scales


# ---- Smoothness


def _smooth_covariance(size: int, scale: float) -> Tensor:
    """Prior covariance (size, size) of neighbours: ``exp(-distance^2 / (2 scale^2))``."""
    places = torch.arange(size, dtype=torch.float64)
    if not scale:
        return torch.eye(size, dtype=torch.float64)
    return (-0.5 * ((places.unsqueeze(1) - places) / scale).square()).exp()


def _factor(covariance: Tensor, negligible: float) -> Tensor:
    """``B`` (size, rank) with ``B B'`` the covariance but for directions of a negligible share."""
    sizes, directions = torch.linalg.eigh(covariance)
    kept = sizes > negligible * sizes[-1]
    factor: Tensor = directions[:, kept] * sizes[kept].sqrt()
    return factor


def _climb(sums: _Sums, ready: LinearProblem, grids: tuple[list[float], list[float]], found: _Found) -> None:
    """Choose each neuron's pair of length scales: the best of a coarse grid, then uphill step by step.

    What a neuron chooses does not depend on the others: it sees the coarse grid and the pairs around its own.
    """
    coarse = [sorted({*range(COARSE // 2, len(grid), COARSE), len(grid) // 2}) for grid in grids]
    known: dict[tuple[int, int], list[float]] = {}
    at: list[tuple[int, int]] = []
    near = [set(itertools.product(*coarse))] * len(sums.neurons)
    everyone = torch.arange(len(sums.neurons))

    def evidence_of(points: tuple[int, int]) -> list[float]:
        return _smooth(sums, ready, grids, points, everyone).evidence.tolist()

    while True:
        new = sorted(set().union(*near) - set(known))
        known.update(zip(new, each_on_one_thread(evidence_of, new), strict=True))
        # of equal evidence the first
        best = [max(sorted(seen), key=lambda p, n=n: known[p][n]) for n, seen in enumerate(near)]  # type: ignore[misc]
        if best == at:
            break
        at = best
        near = [
            {(a + i, b + j) for i in (-1, 0, 1) for j in (-1, 0, 1)
             if 0 <= a + i < len(grids[0]) and 0 <= b + j < len(grids[1])}
            for a, b in at
        ]  # fmt: skip

    def keep(points: tuple[int, int]) -> None:
        places = torch.tensor([place for place, one in enumerate(at) if one == points])
        scales = torch.tensor([grids[0][points[0]], grids[1][points[1]]], dtype=torch.float64)
        _keep(found, sums, _smooth(sums, ready, grids, points, places), places, scales)

    for _ in each_on_one_thread(keep, sorted(set(at))):
        pass


def _smooth(
    sums: _Sums,
    ready: LinearProblem,
    grids: tuple[list[float], list[float]],
    points: tuple[int, int],
    places: Tensor,
) -> _Solution:
    """Solution of one pair of length scales for some neurons of a group."""
    in_time = _factor(_smooth_covariance(len(ready.lags), grids[0][points[0]]), NEGLIGIBLE)
    scale = grids[1][points[1]]
    blocks = [_factor(_smooth_covariance(size, scale), NEGLIGIBLE) for size in ready.blocks()]
    return _solve(sums, in_time, torch.block_diag(*blocks), places)  # type: ignore[no-untyped-call]


# ---- Locality


def _localize(sums: _Sums, place: int, ready: LinearProblem, found: _Found) -> None:
    """Search envelope and scales of one neuron's local prior; keep it where its evidence is higher.

    Each variable is in the unit in which the curvature of the evidence is 1 at the start.
    """
    neuron, sizes = int(sums.neurons[place]), (len(ready.lags), int(ready.model.F))
    if float(found.evidence[neuron]) <= 0:
        return
    start, middle = _start_of(found, neuron, sizes)
    priors = _LocalPriors(middle, sizes, int(ready.model.C_in))
    loss = functools.partial(_local_loss, sums, place, priors)
    steps = DIFFERENCE * np.array([1.0, *(s for v in start[[2, 5]] for s in (math.sqrt(v), v, 1.0))])
    at_start = loss(start)[1]
    change = np.array([(loss(start + step)[1] - at_start) @ step for step in np.diag(steps)])
    unit = 1.0 / np.sqrt(np.maximum(np.abs(change) / steps**2, LEAST_CURVATURE))

    def in_units(values: FloatArray) -> tuple[float, FloatArray]:
        value, slope = loss(values * unit)
        return value, slope * unit

    bounds, inside = priors.limits(start[0])
    centred = {"type": "ineq", "fun": lambda values: inside @ (values * unit), "jac": lambda _: inside * unit}
    best = unit * minimize(
        in_units, start / unit, jac=True, method="SLSQP", bounds=bounds / unit[:, None],
        constraints=[centred], options=SEARCH,
    ).x  # fmt: skip
    ratio, envelope, in_time, in_bands = priors.at(torch.from_numpy(best))
    solution = _Local.of(sums, place, float(ratio), in_time, in_bands, LEAST_SIGNAL)
    if float(solution.evidence) > float(found.evidence[neuron]):
        _keep(found, sums, solution, torch.tensor([place]), torch.from_numpy(np.exp(best[[3, 6]])))
        found.envelope[neuron] = envelope
        found.envelope[neuron, 0] += ready.lags.start


@dataclass(frozen=True)
class _LocalPriors:
    """Priors of smoothness in a Gaussian envelope of the variance, by 7 variables.

    The log of signal to noise at ``middle`` (lag, band), and per axis slope and negative curvature of the log
    of the variance there, and the log of the length scale. In these the evidence is nearly quadratic; in
    centre and width of the envelope it is flat where that is wide.
    """

    middle: tuple[float, float]
    sizes: tuple[int, int]
    n_channels: int

    def at(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Signal to noise where the envelope is 1, its centres and widths, covariances of lags and bands."""
        log_ratio, covariances, envelope = values[0], [], []
        for size, middle, (slope, curvature, log_scale) in zip(
            self.sizes, self.middle, values[1:].view(2, 3), strict=True
        ):
            log_ratio = log_ratio + 0.5 * slope.square() / curvature
            envelope += [middle + slope / curvature, curvature**-0.5]
            places = torch.arange(size, dtype=torch.float64)
            outside = (
                -0.25 * curvature * (places - envelope[-2]).square()
            )  # of the standard deviation, its log
            between = (places.unsqueeze(1) - places) / log_scale.exp()
            covariances.append((outside.unsqueeze(1) + outside - 0.5 * between.square()).exp())
        in_bands = torch.block_diag(*[covariances[1]] * self.n_channels)  # type: ignore[no-untyped-call]
        return log_ratio.exp(), torch.stack(envelope), covariances[0], in_bands

    def limits(self, log_ratio: float) -> tuple[FloatArray, FloatArray]:
        """Bounds (7, 2) of the variables, and rows (4, 7) whose products with them are positive.

        Those keep the centre of the envelope among the lags and bands, or one beside them.
        """
        bounds, inside = [(log_ratio - 12.0, log_ratio + 12.0)], np.zeros((4, 7))
        for axis, (size, middle) in enumerate(zip(self.sizes, self.middle, strict=True)):
            widest = 4.0 * size
            bounds += [(-math.inf, math.inf), (widest**-2, NARROWEST**-2)]
            bounds += [(math.log(NARROWEST), math.log(widest))]
            inside[2 * axis : 2 * axis + 2, 3 * axis + 1 : 3 * axis + 3] = [
                [1.0, middle + 1.0], [-1.0, size - middle]
            ]  # fmt: skip
        return np.array(bounds), inside


@dataclass(frozen=True)
class _Local:
    """Evidence of a local prior for one neuron, and what estimates and slopes need.

    With ``C = B B'`` in units of the noise variance, ``W = (I + B'G B)^-1``, ``m = W B'X'y`` and ``q = y'y -
    m'B'X'y``, the evidence is ``-(n log q - log det W)/2``. B holds the columns ``kept`` of the Kronecker
    product of the factors of lags and of bands: those whose signal exceeds a share of the noise.
    """

    basis: Tensor  # (L, l) and (D, d) factors of C
    basis_bands: Tensor
    kept: Tensor  # (r,)
    root: Tensor  # (r, r): Cholesky factor of I + B'G B
    mean: Tensor  # (r,): m
    squares: Tensor  # (1,): of the predictions
    evidence: Tensor  # (1,), above that of no response
    noise: Tensor
    ratio: float

    @classmethod
    def of(
        cls, sums: _Sums, place: int, ratio: float, in_time: Tensor, in_bands: Tensor, least: float
    ) -> _Local:
        """Evidence of a prior whose covariances are (L, L) and (D, D)."""
        basis, basis_bands = _factor(ratio * in_time, NEGLIGIBLE), _factor(in_bands, NEGLIGIBLE)
        gram = _in_bands(sums.gram, basis_bands)
        pairs = (basis.unsqueeze(1) * basis.unsqueeze(0)).flatten(0, 1)  # (L L, l)
        signal = pairs.T @ gram.diagonal(dim1=2, dim2=3).flatten(0, 1)  # (l, d): diagonal of B'G B
        signal = torch.where(signal >= min(least, float(signal.max())), signal, 0.0)
        used, used_bands = (signal.any(axis).nonzero().squeeze(1) for axis in (1, 0))
        basis, basis_bands = basis[:, used], basis_bands[:, used_bands]
        if len(used_bands) < signal.shape[1]:
            gram = gram.index_select(2, used_bands).index_select(3, used_bands)
        kept = signal[used][:, used_bands].flatten().nonzero().squeeze(1)
        whole = _in_time(gram, basis)
        if len(kept) < len(whole):
            whole = whole.index_select(0, kept).index_select(1, kept)
        whole.diagonal().add_(1.0)
        root = torch.linalg.cholesky(whole)
        products = sums.products[:, place].view(len(basis), -1)
        products = (basis.T @ products @ basis_bands).flatten()[kept]
        mean = torch.cholesky_solve(products.unsqueeze(1), root).squeeze(1)
        n, total, explained = sums.n_bins - 1, sums.squares[place], products @ mean
        left = torch.maximum(total - explained, LEAST_NOISE * total)
        evidence = -0.5 * n * (left / total).log() - root.diagonal().log().sum()
        squares = explained - mean.square().sum()
        values = (squares.view(1), evidence.view(1), (left / n).view(1))
        return cls(basis, basis_bands, kept, root, mean, *values, ratio)

    def estimates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and standard deviations (1, L, D), and summed squares of the predictions (1,)."""
        shape = (1, len(self.basis), len(self.basis_bands))
        whole = torch.kron(self.basis, self.basis_bands)[:, self.kept]
        spread = torch.linalg.solve_triangular(self.root, whole.T, upper=False).square().sum(0)
        return (whole @ self.mean).view(shape), (self.noise * spread).sqrt().view(shape), self.squares

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Slopes (L, L) and (D, D) of the evidence along the two factors of C, within what B spans.

        Along ``B dA B'`` it is ``tr(R dA)/2``, with ``R = W - I + m m'/s2`` and s2 the variance of the noise.
        """
        inner = torch.cholesky_inverse(self.root)
        inner.diagonal().sub_(1.0)
        inner.addr_(self.mean, self.mean, alpha=1.0 / float(self.noise))
        shape = (self.basis.shape[1], self.basis_bands.shape[1])
        if len(self.kept) < shape[0] * shape[1]:
            whole = inner.new_zeros(shape[0] * shape[1], shape[0] * shape[1])
            whole[self.kept[:, None], self.kept] = inner
            inner = whole
        inner = inner.view(*shape, *shape)
        inverse, inverse_bands = (
            basis / basis.square().sum(0) for basis in (self.basis, self.basis_bands)
        )  # orthogonal columns
        return (
            0.5 * inverse @ inner.diagonal(dim1=1, dim2=3).sum(-1) @ inverse.T,
            0.5 * inverse_bands @ inner.diagonal(dim1=0, dim2=2).sum(-1) @ inverse_bands.T,
        )


def _local_loss(
    sums: _Sums, place: int, priors: _LocalPriors, values: FloatArray
) -> tuple[float, FloatArray]:
    """Negative evidence of a local prior and its slope."""
    x = torch.from_numpy(values).requires_grad_()
    ratio, _, in_time, in_bands = priors.at(x)
    found = _Local.of(
        sums, place, float(ratio.detach()), in_time.detach(), in_bands.detach(), LEAST_SIGNAL_IN_SEARCH
    )
    slope_time, slope_bands = found.slopes()
    change = (slope_time * ratio * in_time).sum() + (slope_bands * in_bands).sum()
    (slope,) = torch.autograd.grad(change, x)
    return -float(found.evidence), -slope.numpy()


def _start_of(found: _Found, neuron: int, sizes: tuple[int, int]) -> tuple[FloatArray, tuple[float, float]]:
    """Where the search begins: signal to noise, spread and scales of the smooth estimate; and its centre."""
    energy = found.weights[neuron].unflatten(1, (-1, sizes[1])).square().sum(1).square().numpy()  # type: ignore[no-untyped-call]
    start, middle = [math.log(float(found.prior[neuron] / found.noise[neuron]))], []
    for axis, size in enumerate(sizes):
        share = energy.sum(1 - axis) / energy.sum()
        places = np.arange(size)
        middle.append(float(share @ places))
        spread = math.sqrt(float(share @ (places - middle[-1]) ** 2))
        scale = min(max(float(found.scales[neuron, axis]), 2.0 * NARROWEST), 4.0 * size)
        start += [0.0, max(2.0 * spread, 1.0) ** -2, math.log(scale)]
    return np.array(start), (middle[0], middle[1])
