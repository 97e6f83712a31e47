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
from deepSTRF.baselines.ridge import validation_scores
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS

__all__ = ["EvidenceFit", "fit_evidence"]

#: Length scales from half a bin, where neighbours are all but independent, each larger by half an octave.
SHORTEST_SCALE, SCALE_STEP = 0.5, math.sqrt(2.0)
#: Every so many steps of the grid of length scales is looked at first.
COARSE = 4
#: Directions of the prior below this share of the largest are left out, and in the search for a local prior.
NEGLIGIBLE, NEGLIGIBLE_IN_SEARCH = 1e-10, 1e-4
#: Signal to noise ``g`` times the mean eigenvalue: powers of 10 that are tried, and sections between two.
SIGNAL_DECADES, N_SIGNALS, N_SECTIONS = (-7.0, 7.0), 57, 30
#: Least variance of the noise, as a share of that of the response.
LEAST_NOISE = 1e-12
#: The search for a local prior, and its narrowest envelope and shortest scale, in bins or bands.
SEARCH, NARROWEST = {"maxiter": 30, "ftol": 1e-7}, 0.3
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
        Standard deviation of the posterior of each weight.
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
    so are all scales of a local prior, per neuron, from the smooth estimate uphill.

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
            for place in range(len(sums.neurons)):
                _localize(sums, place, ready, found)
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
    """Sums of one group over its bins, centred: Gram matrix (L, D, L, D), products (P, n), squares (n,)."""

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
            gram.view(len(lags), -1, len(lags), len(columns) // len(lags)),
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
    n_lags, n_features = len(in_time), len(in_bands)
    l, d = in_time.shape[1], in_bands.shape[1]  # noqa: E741
    half = (in_time.T @ sums.gram.reshape(n_lags, -1)).view(l, n_features, -1)
    half = (in_bands.T @ half).view(l * d, n_lags, n_features) @ in_bands
    whole = (in_time.T @ half).view(l * d, l * d)
    products = sums.products[:, neurons].T.reshape(-1, n_lags, n_features)
    reduced = (in_time.T @ (products @ in_bands)).flatten(1).T
    sizes, directions = torch.linalg.eigh(0.5 * (whole + whole.T))
    sizes = sizes.clamp(min=0.0)
    shares = directions.T @ reduced
    ratio, evidence, noise = _best_ratio(sizes, shares.square(), sums.squares[neurons], sums.n_bins - 1)
    return _Solution(in_time, in_bands, sizes, directions, shares, evidence, ratio, noise)


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


def _keep(found: _Found, sums: _Sums, solution: _Solution, places: Tensor, scales: Tensor) -> None:
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
    while True:
        for points in sorted(set().union(*near) - set(known)):
            known[points] = _smooth(sums, ready, grids, points, everyone).evidence.tolist()
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
    for points in sorted(set(at)):
        places = torch.tensor([place for place, one in enumerate(at) if one == points])
        scales = torch.tensor([grids[0][points[0]], grids[1][points[1]]], dtype=torch.float64)
        _keep(found, sums, _smooth(sums, ready, grids, points, places), places, scales)


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

    The search is over the log of signal to noise, and ``[centre, log width, log scale]`` in lags, in bands.
    """
    neuron, sizes = int(sums.neurons[place]), (len(ready.lags), int(ready.model.F))
    if float(found.evidence[neuron]) <= 0:
        return
    start = _start_of(found, neuron, sizes)
    bounds = [(start[0] - 12.0, start[0] + 12.0)]
    for size in sizes:
        wide = (math.log(NARROWEST), math.log(4.0 * size))
        bounds += [(-1.0, float(size)), wide, wide]
    loss = functools.partial(_local_loss, sums, place, sizes, int(ready.model.C_in))
    start = np.clip(start, *np.array(bounds).T)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=SEARCH).x
    in_time, in_bands = _local_covariances(torch.from_numpy(best), sizes, int(ready.model.C_in))
    places = torch.tensor([place])
    solution = _solve(sums, _factor(in_time, NEGLIGIBLE), _factor(in_bands, NEGLIGIBLE), places)
    if bool(solution.evidence > found.evidence[neuron]):
        _keep(found, sums, solution, places, torch.from_numpy(np.exp(best[[3, 6]])))
        centre, width = ready.lags.start + best[1], math.exp(best[2])
        found.envelope[neuron] = torch.tensor([centre, width, best[4], math.exp(best[5])])


def _local_covariances(values: Tensor, sizes: tuple[int, int], n_channels: int) -> tuple[Tensor, Tensor]:
    """Covariances of lags and of bands: a smooth prior in a Gaussian envelope of the prior variance."""
    found = []
    for size, (centre, log_width, log_scale) in zip(sizes, values[1:].view(2, 3), strict=True):
        places = torch.arange(size, dtype=torch.float64)
        distance = (places - centre) / log_width.exp()
        between = (places.unsqueeze(1) - places) / log_scale.exp()
        envelope = -0.25 * distance.square()  # of the standard deviation, its log
        found.append((envelope.unsqueeze(1) + envelope - 0.5 * between.square()).exp())
    return found[0], torch.block_diag(*[found[1]] * n_channels)  # type: ignore[no-untyped-call]


def _local_loss(
    sums: _Sums, place: int, sizes: tuple[int, int], n_channels: int, values: FloatArray
) -> tuple[float, FloatArray]:
    """Negative evidence of a local prior and its gradient.

    With ``C = B B'`` in units of the noise variance, ``S = G - G C (I + G C)^-1 G``, ``a = X'y - G C (I + G
    C)^-1 X'y`` and ``q = y'y - (X'y)' C (I + G C)^-1 X'y``, the evidence is ``-(n log q + log det(I + B'G
    B))/2`` and changes by ``(n/q a' dC a - tr(S dC))/2``.
    """
    x = torch.from_numpy(values).requires_grad_()
    in_time, in_bands = _local_covariances(x, sizes, n_channels)
    in_time = x[0].exp() * in_time
    b_time, b_bands = (_factor(one.detach(), NEGLIGIBLE_IN_SEARCH) for one in (in_time, in_bands))
    (n_lags, n_time), (n_features, n_bands) = b_time.shape, b_bands.shape
    by_bands = sums.gram @ b_bands  # (L, D, L, d)
    whole = (b_time.T @ by_bands).reshape(n_lags * n_features, -1)  # G B, (P, l d)
    inner = (b_time.T @ whole.view(n_lags, -1)).view(n_time, n_features, -1)
    inner = (b_bands.T @ inner).reshape(n_time * n_bands, -1)  # B' G B
    products = sums.products[:, place].view(n_lags, n_features)
    reduced = (b_time.T @ products @ b_bands).view(-1, 1)
    root = torch.linalg.cholesky(inner + torch.eye(len(inner), dtype=inner.dtype))
    half = torch.linalg.solve_triangular(root, whole.T, upper=False)  # (r, P): S = G - half' half
    shares = torch.linalg.solve_triangular(root, reduced, upper=False)
    n, total = sums.n_bins - 1, float(sums.squares[place])
    left = max(total - float(shares.square().sum()), LEAST_NOISE * total)
    evidence = -0.5 * n * math.log(left / total) - float(root.diagonal().log().sum())
    rest = products - (shares.T @ half).view(n_lags, n_features)  # a
    parts = half.view(-1, n_lags, n_features)
    of_time, of_bands = (parts @ b_bands).transpose(0, 1).flatten(1), (b_time.T @ parts).flatten(0, 1)
    slope_time = n / left * rest @ in_bands.detach() @ rest.T + of_time @ of_time.T
    slope_time = slope_time - torch.einsum("ifjd,fd->ij", by_bands, b_bands)
    slope_bands = n / left * rest.T @ in_time.detach() @ rest + of_bands.T @ of_bands
    slope_bands = slope_bands - torch.einsum("ifjg,ij->fg", sums.gram, in_time.detach())
    change = 0.5 * ((slope_time * in_time).sum() + (slope_bands * in_bands).sum())
    (slope,) = torch.autograd.grad(change, x)
    return -evidence, -slope.numpy()


def _start_of(found: _Found, neuron: int, sizes: tuple[int, int]) -> FloatArray:
    """Where the search begins: signal to noise, centre, spread and scales of the smooth estimate."""
    energy = found.weights[neuron].unflatten(1, (-1, sizes[1])).square().sum(1).square().numpy()  # type: ignore[no-untyped-call]
    start = [math.log(float(found.prior[neuron] / found.noise[neuron]))]
    for axis, size in enumerate(sizes):
        share = energy.sum(1 - axis) / energy.sum()
        places = np.arange(size)
        centre = float(share @ places)
        spread = math.sqrt(float(share @ (places - centre) ** 2))
        scale = max(float(found.scales[neuron, axis]), 2.0 * NARROWEST)
        start += [centre, math.log(max(2.0 * spread, 1.0)), math.log(scale)]
    return np.array(start)
