"""Noise ceilings: the best correlation with the PSTH that any model could reach on these repeats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._bootstrap import CeilingBootstrap
from ._ceiling_sums import SplitCeiling
from ._groups import RepeatGroups, gram
from ._masking import repeat_validity
from ._moments import keep_where
from ._pairs import PairBlock
from ._repeats import clip_target
from ._splits import N_SPLITS, spearman_brown, split_moments
from ._totals import RepeatTotals
from ._validation import (
    check_bootstrap,
    check_centring,
    check_choice,
    check_mask,
    check_n_splits,
    check_responses,
    check_rows,
)

__all__ = ["Ceiling", "ceiling", "compute_CCmax", "compute_TTRC"]

METHODS = ("power", "split")
N_BOOTSTRAP = 500  # percentile bounds of a 95 % interval to about a tenth of its width


def compute_CCmax(responses: Tensor, n_splits: int = N_SPLITS, seed: int = 0) -> Tensor:
    """Half-split ceiling of every series: how well the mean of all repeats could be predicted.

    The repeats are split at random into halves, the half-PSTHs correlated, the correlations averaged over
    splits and extrapolated from a half to all R repeats (Spearman-Brown). With an odd number every split
    leaves out another repeat. When there are at most ``n_splits`` distinct splits all of them are used; more
    are never formed.

    Parameters
    ----------
    responses : Tensor, shape (B, R, T)
        B series of R repeats, NaN where nothing was recorded.
    n_splits : int
        Number of splits; 126 is all there are of ten repeats.
    seed : int
        Seed of the random splits (a generator of its own).

    Returns
    -------
    Tensor, shape (B,)
        Ceiling in (0, 1]; 1 for a single repeat (nothing is known), NaN where halves don't correlate
        positively.

    Raises
    ------
    ValueError
        When ``responses`` is not (B, R, T) or ``n_splits`` is below 1.

    References
    ----------
    Hsu, Borst and Theunissen (2004), 10.1088/0954-898X_15_2_002.

    Examples
    --------
    >>> import torch
    >>> repeats = torch.rand(1, 1, 50, generator=torch.manual_seed(0)).expand(1, 6, 50)
    >>> compute_CCmax(repeats)
    tensor([1.], dtype=torch.float64)
    """
    check_rows(responses)
    check_n_splits(n_splits)
    samples, valid = repeat_validity(responses.unsqueeze(1), None)
    recorded = None if valid is None else valid[:, 0]
    moments = split_moments(RepeatGroups.of(samples[:, 0], recorded), n_splits, seed)
    return torch.where(
        _number_of_repeats(responses, recorded) == 1,
        1.0,
        spearman_brown(moments.reliability(), moments.ratio),
    )


def _number_of_repeats(responses: Tensor, recorded: Tensor | None) -> Tensor:
    if recorded is None:
        return torch.full((len(responses),), responses.shape[1], device=responses.device)
    return recorded.any(2).sum(1)


def compute_TTRC(responses: Tensor) -> Tensor:
    """Trial-to-trial correlation: the mean correlation between pairs of distinct repeats.

    Repeats recorded in different bins are compared on their common bins. A repeat without any variance (a
    silent trial) shares nothing with the others: its pairs count as 0.

    Parameters
    ----------
    responses : Tensor, shape (B, R, T)
        B series of R repeats, NaN where nothing was recorded.

    Returns
    -------
    Tensor, shape (B,)
        Mean correlation; 1 for a single repeat (nothing is known), NaN when all repeats are constant.

    Raises
    ------
    ValueError
        When ``responses`` is not (B, R, T).

    References
    ----------
    Pennington and David (2023), 10.1371/journal.pcbi.1011110.

    Examples
    --------
    >>> import torch
    >>> compute_TTRC(torch.tensor([[[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [2.0, 1.0, 0.0]]]))
    tensor([-0.3333], dtype=torch.float64)
    """
    check_rows(responses)
    samples, valid = repeat_validity(responses.unsqueeze(1), None)
    if valid is None:
        covariance, _, count = gram(samples[:, 0], None)
        variance = covariance.diagonal(dim1=1, dim2=2).unsqueeze(2).expand_as(covariance)
        distinct = ~torch.eye(responses.shape[1], dtype=torch.bool, device=responses.device)
        pairs = distinct & (count > 1)[:, None, None]
    else:
        block = PairBlock.of(samples[:, 0], valid[:, 0])
        covariance, variance, pairs = block.covariance(), block.variance(), block.pairs
    root = variance.clamp(min=0).sqrt()
    product = root * root.mT
    varies = product > 0
    correlation = torch.where(varies, covariance / torch.where(varies, product, 1.0), 0.0)
    mean = torch.where(pairs, correlation, 0.0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    known = keep_where((varies & pairs).any(2).any(1), mean)
    return torch.where(_number_of_repeats(responses, None if valid is None else valid[:, 0]) == 1, 1.0, known)


@dataclass(frozen=True)
class Ceiling:
    """A noise ceiling per neuron with its bootstrap interval.

    Parameters
    ----------
    value : Tensor, shape (N,)
        Ceiling on the correlation with the PSTH of all repeats; NaN where there is no positive signal power,
        or no bin was recorded twice.
    low, high : Tensor, shape (N,)
        Bounds of the interval; NaN without a bootstrap.
    method, centring, resample : str
        How it was computed.
    confidence : float
        Coverage of the interval.
    n_bootstrap : int
        Number of resamples; 0 for no interval.

    Examples
    --------
    >>> import torch
    >>> nothing = torch.tensor([torch.nan])
    >>> Ceiling(torch.tensor([0.8]), nothing, nothing, "power", "concat", "both", 0.95, 0).value
    tensor([0.8000])
    """

    value: Tensor
    low: Tensor
    high: Tensor
    method: str
    centring: str
    resample: str
    confidence: float
    n_bootstrap: int


def ceiling(
    responses: Tensor,
    mask: Tensor | None = None,
    *,
    method: str = "power",
    centring: str = "concat",
    n_bootstrap: int = N_BOOTSTRAP,
    resample: str = "both",
    confidence: float = 0.95,
    n_splits: int = N_SPLITS,
    seed: int = 0,
) -> Ceiling:
    """Noise ceiling per neuron, with a bootstrap interval.

    ``method="power"``: ``sqrt(SP / Var(psth))``, the ceiling that `normalized_corrcoef` divides by.
    ``"split"``: random half-splits with Spearman-Brown (`compute_CCmax`). On concatenated clips both
    estimate the same quantity. With ``centring="clip"`` the half-split ceiling is by definition a mean over
    clips, each with its own ceiling, and differs from that of pooled powers when clips differ in reliability.

    The interval holds percentiles over resamples, computed from the covariances between repeats. Repeats are
    drawn with replacement within each clip, and only distinct original repeats are paired, so that copies are
    not taken for signal; clips are drawn with replacement. A resample without positive signal power counts as
    ceiling 0. With two or three repeats, or few clips, there is little to resample and the interval is too
    narrow; resampling both errs on the wide side.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        Single repeats, one clip per batch entry, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    method : {"power", "split"}
        Which estimate.
    centring : {"concat", "clip"}
        On the concatenated clips, or around each clip's own mean.
    n_bootstrap : int
        Number of resamples; 0 leaves the interval out.
    resample : {"both", "repeats", "clips"}
        What is drawn with replacement.
    confidence : float
        Coverage of the interval.
    n_splits : int
        Number of half-splits ("split" only).
    seed : int
        Seed of splits and resamples (generators of their own).

    Returns
    -------
    Ceiling
        Values and bounds, shape (N,) each.

    Raises
    ------
    ValueError
        When a shape or an option is wrong.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Schoppe et al. (2016), 10.3389/fncom.2016.00010.
    Hsu, Borst and Theunissen (2004), 10.1088/0954-898X_15_2_002.
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, 10.1007/978-1-4899-4541-9.

    Examples
    --------
    >>> import torch
    >>> generator = torch.manual_seed(0)
    >>> signal = torch.randn(4, 1, 1, 300)
    >>> found = ceiling(signal + torch.randn(4, 1, 8, 300))  # true ceiling sqrt(1 / (1 + 1 / 8)) = 0.943
    >>> round(found.value.item(), 2), bool(found.low < 0.943 < found.high)
    (0.94, True)
    """
    check_responses(responses)
    check_mask(mask, responses)
    check_choice("method", method, METHODS)
    check_centring(centring)
    check_n_splits(n_splits)
    check_bootstrap(n_bootstrap, confidence, resample)
    samples, valid = repeat_validity(responses.detach(), mask)
    parts = clip_target(responses.detach(), mask).parts.unflatten(*responses.shape[:2])
    value = RepeatTotals.of(parts).ceiling(centring)
    low = high = torch.full_like(value, torch.nan)
    splits = SplitCeiling(centring, n_splits, seed) if method == "split" else None
    bootstrap = None
    if n_bootstrap:
        average = method == "split" and centring == "clip"
        bootstrap = CeilingBootstrap(len(samples), n_bootstrap, resample, centring, seed, average)
    for clip in range(len(samples) if splits or bootstrap else 0):
        groups = RepeatGroups.of(samples[clip], None if valid is None else valid[clip])
        if splits:
            splits.add(groups)
        if bootstrap:
            bootstrap.add(groups, parts.clip(clip))
    if splits:
        value = splits.value()
    if bootstrap:
        low, high = bootstrap.interval(confidence)
    return Ceiling(value, low, high, method, centring, resample, confidence, n_bootstrap)
