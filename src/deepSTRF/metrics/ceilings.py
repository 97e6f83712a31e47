"""Noise ceilings: the best correlation with the PSTH that any model could reach on these repeats.

``"power"``: ``sqrt(SP / Var(psth))`` from the signal power (Schoppe et al. 2016, 10.3389/fncom.2016.00010).
``"split"``: the correlation rho between the PSTHs of random halves of the repeats, extrapolated to all
repeats by Spearman-Brown, ``sqrt(k rho / (1 + (k - 1) rho))`` (Hsu et al. 2004, 10.1088/0954-898X_15_2_002).
Intervals come from a bootstrap over repeats and clips.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deepSTRF._moved import earlier_keywords
from deepSTRF._validation import check_choice, check_n_splits, checked
from deepSTRF.metrics._statistics import (
    BYTES_PER_VALUE,
    ClipPowers,
    PairMoments,
    PooledPowers,
    RepeatPairs,
    RepeatProducts,
    RepeatSummary,
    accumulator_dtype,
    by_clip,
    check_centring,
    check_responses,
    check_tensor,
    is_constant,
    keep_where,
    row_blocks,
    valid_samples,
)
from deepSTRF.metrics.stacks import STACK_BYTES

__all__ = ["ceiling", "compute_CCmax", "compute_TTRC"]

METHODS = ("power", "split")
RESAMPLED = ("both", "repeats", "clips")
#: Half-splits by default: all there are of ten repeats, C(10, 5) / 2, and the published choice for more.
N_SPLITS = 126
N_BOOTSTRAP = 500  # percentile bounds of a 95 % interval to about a tenth of its width
SEED_STRIDE = 1_000_003  # a prime: the seeds of different clips don't meet
RAGGED_BLOCK_BYTES = 64 * 2**20
DESIGN_BYTES = 16 * 2**20
#: Of a repeat's variance: what is left of a half whose repeats cancel to rounding error.
NEGLIGIBLE_HALF = 1e-13


def check_bootstrap(n_bootstrap: int, confidence: float, resample: str) -> None:
    """Raise unless the options of a bootstrap make sense."""
    if n_bootstrap < 0:
        raise ValueError(f"n_bootstrap is a whole number >= 0 (0: no interval), got {n_bootstrap!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence!r}; the default is 0.95")
    check_choice("resample", resample, RESAMPLED)


@dataclass(frozen=True)
class Ceiling:
    """A noise ceiling per neuron with its bootstrap interval.

    Attributes
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
    """

    value: Tensor
    low: Tensor
    high: Tensor
    method: str
    centring: str
    resample: str
    confidence: float
    n_bootstrap: int


@checked
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
    check_responses(responses, mask)
    check_choice("method", method, METHODS)
    check_centring(centring)
    check_n_splits(n_splits)
    check_bootstrap(n_bootstrap, confidence, resample)
    responses = responses.detach()
    valid = valid_samples(responses, mask)
    clips = RepeatSummary.of(responses, mask).powers.unflatten(*responses.shape[:2])
    value = PooledPowers.of(clips).ceiling(centring)
    low = high = torch.full_like(value, torch.nan)
    splits = SplitCeiling(centring, n_splits, seed) if method == "split" else None
    bootstrap = None
    if n_bootstrap:
        average = method == "split" and centring == "clip"
        bootstrap = CeilingBootstrap(len(responses), n_bootstrap, resample, centring, seed, average)
    for some in clip_slices(responses) if splits or bootstrap else ():
        groups = RepeatGroups.of(responses[some], None if valid is None else valid[some])
        if splits:
            splits.add(groups)
        if bootstrap:
            numbers = range(len(responses))[some]
            bootstrap.add(groups, clips.map(lambda values, chosen=some: values[chosen]), numbers)
    if splits:
        value = splits.value()
    if bootstrap:
        low, high = bootstrap.interval(confidence)
    return Ceiling(value, low, high, method, centring, resample, confidence, n_bootstrap)


@earlier_keywords
@checked
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
    valid, n_repeats = _checked_rows(responses)
    check_n_splits(n_splits)
    rows = RepeatGroups.of(responses.unsqueeze(0), None if valid is None else valid.unsqueeze(0))
    moments = split_moments(rows, n_splits, seed)
    ceilings = spearman_brown(mean_half_correlation(moments.halves, moments.n_used), moments.ratio)
    return torch.where(n_repeats == 1, 1.0, ceilings)


@checked
def compute_TTRC(responses: Tensor) -> Tensor:
    """Trial-to-trial correlation: the mean correlation between pairs of distinct repeats.

    Repeats recorded in different bins are compared on their common bins. A repeat without any variance (a
    silent trial) has no correlation with the others: its pairs count as 0.

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
    valid, n_repeats = _checked_rows(responses)
    if valid is None:
        products = gram(responses, None)
        covariance, count = products.product, products.count
        variance = covariance.diagonal(dim1=1, dim2=2).unsqueeze(2).expand_as(covariance)
        distinct = ~torch.eye(responses.shape[1], dtype=torch.bool, device=responses.device)
        usable = distinct & (count > 1)[:, None, None]
    else:
        pairs = RepeatPairs.of(responses, valid)
        covariance, variance, usable = pairs.covariance(), pairs.variance(), pairs.usable
    root = variance.clamp(min=0).sqrt()
    product = root * root.mT
    varies = product > 0
    correlation = torch.where(varies, covariance / torch.where(varies, product, 1.0), 0.0)
    mean = torch.where(usable, correlation, 0.0).sum((1, 2)) / usable.sum((1, 2)).clamp(min=1)
    known = keep_where((varies & usable).any(2).any(1), mean)
    return torch.where(n_repeats == 1, 1.0, known)


def _checked_rows(responses: Tensor) -> tuple[Tensor | None, Tensor]:
    """Check (B, R, T) responses; return the samples that count, None when all do, and the repeats (B,)."""
    check_tensor("responses", responses)
    if responses.ndim != 3:
        raise ValueError(
            f"responses has shape (B, R, T): B series of R repeats and T bins; got shape "
            f"{tuple(responses.shape)}. For (B, N, R, T) use ceiling or normalized_corrcoef"
        )
    valid = valid_samples(responses.unsqueeze(1), None)
    if valid is None:
        return None, torch.full((len(responses),), responses.shape[1], device=responses.device)
    return valid[:, 0], valid[:, 0].any(2).sum(1)


# ---- Rows of clips grouped by how many repeats they hold, with the products of their repeats
# Half-splits, their bootstrap and the trial-to-trial correlation all are functions of the (R, R) matrix of
# products of centred repeats, which costs one pass over the data.


@dataclass(frozen=True)
class RepeatGroup:
    """Rows with R repeats each; repeats without data in a row are removed.

    ``rows`` which of the K; ``responses`` (k, R, T) and ``samples`` bool (k, R, T), None when all count;
    ``products`` of the k. ``ragged`` are those of the k whose repeats differ in their bins: for them the
    products mean nothing.
    """

    rows: Tensor | slice
    responses: Tensor
    samples: Tensor | None
    products: RepeatProducts
    ragged: Tensor | None

    @property
    def n_repeats(self) -> int:
        """Repeats of each row."""
        return self.responses.shape[1]


@dataclass(frozen=True)
class RepeatGroups:
    """All rows (b, n) of B clips of N neurons that hold two repeats or more, in groups."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    groups: list[RepeatGroup]

    @property
    def n_rows(self) -> int:
        """B times N."""
        return self.shape[0] * self.shape[1]

    @classmethod
    def of(cls, clips: Tensor, valid: Tensor | None, products: RepeatProducts | None = None) -> RepeatGroups:
        """Group (B, N, R, T) responses; ``valid`` bool, alike, are the samples that count, None: all.

        ``products`` (K,) of all rows may be known, where every sample counts.
        """
        groups = []
        rows, row_mask = clips.flatten(0, 1), None if valid is None else valid.flatten(0, 1)
        for index, responses, samples in _by_number_of_repeats(rows, row_mask):
            if samples is None:
                known = gram(responses, None) if products is None else products
                groups.append(RepeatGroup(index, responses, None, known, None))
                continue
            bins = samples.any(1)
            ragged = (samples.sum((1, 2)) != bins.sum(1) * samples.shape[1]).nonzero().squeeze(1)
            found = gram(responses, bins)
            groups.append(RepeatGroup(index, responses, samples, found, ragged if len(ragged) else None))
        return cls((clips.shape[0], clips.shape[1]), accumulator_dtype(rows.device), rows.device, groups)


def clip_slices(responses: Tensor) -> list[slice]:
    """Cut the first axis of (B, N, R, T) responses into pieces of a few MB."""
    size = max(1, STACK_BYTES // max(1, responses[:1].numel() * responses.element_size()))
    return [slice(start, start + size) for start in range(0, len(responses), size)]


def _by_number_of_repeats(
    rows: Tensor, valid: Tensor | None
) -> Iterator[tuple[Tensor | slice, Tensor, Tensor | None]]:
    """Group rows with the same number of repeats, and remove the repeats without data."""
    if valid is None:
        if rows.shape[1] > 1:
            yield slice(None), rows, None
        return
    recorded = valid.any(2)
    order = (~recorded).to(torch.uint8).argsort(dim=1, stable=True)
    for number in torch.unique(recorded.sum(1)).tolist():
        if number < 2:
            continue
        group = (recorded.sum(1) == number).nonzero().squeeze(1)
        index = order[group, :number].unsqueeze(2).expand(-1, -1, rows.shape[2])
        yield group, rows[group].gather(1, index), valid[group].gather(1, index)


def gram(responses: Tensor, bins: Tensor | None) -> RepeatProducts:
    """Products of the repeats of (K, R, T) rows; ``bins`` bool (K, T): in which they were recorded."""
    dtype = accumulator_dtype(responses.device)
    found = []
    for piece in row_blocks(responses):
        values = responses[piece].to(dtype, copy=True)
        n_bins = values.shape[2]
        if bins is None:
            count = torch.full((len(values),), n_bins, dtype=dtype, device=values.device)
            mean = values.mean(2)
            centred = values.sub_(mean.unsqueeze(2))
        else:
            chosen = bins[piece].unsqueeze(1)
            count = chosen.sum((1, 2)).to(dtype)
            zero = torch.zeros((), dtype=dtype, device=values.device)
            mean = torch.where(chosen, values, zero).sum(2) / count.clamp(min=1).unsqueeze(1)
            centred = torch.where(chosen, values - mean.unsqueeze(2), zero)
        found.append(RepeatProducts.of_centred(centred, mean, count))
    return found[0].map(lambda *values: torch.cat(values), *found[1:])


# ---- Half-split ceilings: the moments of both halves for every split, without forming the halves
# With the centred repeats Z (R, T) and half-PSTHs ``a @ Z`` and ``b @ Z``, variances and covariances of the
# halves are quadratic forms of ``Z @ Z.T``. One (rows, R * R) @ (R * R, 3 * splits) product serves every
# split of every neuron and clip, so 126 splits cost less than reading the data once. Repeats that were
# recorded in different bins have no such matrix; their halves are formed, a few rows at a time.


class SplitCeiling:
    """Half-split ceiling of N neurons; clips come a few at a time and are not kept.

    ``centring="clip"``: a ceiling per clip, then their mean, weighing as the clips' bins; clips whose halves
    don't correlate positively are left out. ``"concat"``: the halves of all clips are concatenated, split by
    split. Products of repeats are summed over clips first, so that splits cost the same for any number of
    clips; only halves of repeats that differ in their bins are formed clip by clip.
    """

    def __init__(self, centring: str, n_splits: int, seed: int) -> None:
        self.centring = centring
        self.n_splits = n_splits
        self.seed = seed
        self._halves: PairMoments | None = None  # of ragged rows
        self._products: dict[int, RepeatProducts] = {}  # by number of repeats
        self._n_used: Tensor | None = None
        self._sums: list[Tensor] = []

    def add(self, groups: RepeatGroups) -> None:
        """Take in the repeats of some clips."""
        if self.centring == "concat":
            blank = torch.zeros(groups.n_rows, dtype=groups.dtype, device=groups.device)
            self._count(blank, 1.0, self.n_splits, groups.shape)
            for group in groups.groups:
                self._concatenate(group, groups)
            return
        moments = split_moments(groups, self.n_splits, self.seed)
        clip_ceiling = spearman_brown(mean_half_correlation(moments.halves, moments.n_used), moments.ratio)
        # A NaN sample that a mask calls valid has to show; an unreliable clip is left out.
        undefined = torch.isnan(moments.halves.xy).any(1)
        weight = torch.where(torch.isnan(clip_ceiling) & ~undefined, 0.0, moments.halves.count.mean(1))
        weighted = torch.where(weight > 0, weight * clip_ceiling, 0.0)
        self._accumulate([by_clip(values, groups.shape).sum(0) for values in (weight, weighted)])

    def _concatenate(self, group: RepeatGroup, groups: RepeatGroups) -> None:
        """Add the repeats of a group of rows to those of their neurons."""
        splits = half_splits(group.n_repeats, self.n_splits, self.seed)
        products = group.products
        if group.ragged is not None and group.samples is not None:
            ragged = group.ragged
            products = products.map(lambda values: values.index_fill(0, ragged, 0.0))
            formed = PairMoments(*_formed_moments(group.responses[ragged], group.samples[ragged], splits))
            rows = torch.arange(groups.n_rows, device=ragged.device)[group.rows][ragged]
            halves = formed.map(lambda values: _in_rows(values, rows, groups)).pool(0)
            self._halves = halves if self._halves is None else self._halves.merge(halves)
            bins = products.count.index_copy(0, ragged, formed.count.mean(1))
        else:
            bins = products.count
        placed = products.map(lambda values: _in_rows(values, group.rows, groups)).pool()
        known = self._products.get(group.n_repeats)
        if known is not None:
            placed = known.map(lambda *values: torch.stack(values), placed).pool()
        self._products[group.n_repeats] = placed
        self._count(_in_rows(bins, group.rows, groups).flatten(), splits.ratio, splits.n_used, groups.shape)

    def _count(self, bins: Tensor, ratio: float, n_used: int, shape: tuple[int, int]) -> None:
        """Add bins (K,) of rows with one number of repeats, of which ``n_used`` splits count."""
        total = by_clip(bins, shape).sum(0)
        used = torch.where(total > 0, n_used, self.n_splits)
        self._n_used = used if self._n_used is None else torch.minimum(self._n_used, used)
        self._accumulate([total, total * ratio])

    def _accumulate(self, values: list[Tensor]) -> None:
        self._sums = (
            [old + new for old, new in zip(self._sums, values, strict=True)] if self._sums else values
        )

    def value(self) -> Tensor:
        """The ceiling, (N,); NaN where there is none."""
        weight, weighted = self._sums
        mean = keep_where(weight > 0, weighted / torch.where(weight > 0, weight, 1.0))
        if self._n_used is None:
            return mean
        halves = [] if self._halves is None else [self._halves]
        for n_repeats, products in self._products.items():
            splits = half_splits(n_repeats, self.n_splits, self.seed)
            halves.append(PairMoments(*_gram_moments(products, splits)))
        if not halves:
            return torch.full_like(mean, torch.nan)
        together = halves[0]
        for one in halves[1:]:
            together = together.merge(one)
        return spearman_brown(mean_half_correlation(together, self._n_used), mean)


def _in_rows(values: Tensor, rows: Tensor | slice, groups: RepeatGroups) -> Tensor:
    """Place values of some rows among the rows of all clips, (B, N, ...), zero elsewhere."""
    if isinstance(rows, Tensor):
        blank = values.new_zeros((groups.n_rows, *values.shape[1:]))
        values = blank.index_copy_(0, rows, values)
    return by_clip(values, groups.shape)


def half_split_ceiling(
    responses: Tensor, valid: Tensor | None, centring: str, n_splits: int, seed: int
) -> Tensor:
    """Half-split ceiling (N,) of (B, N, R, T) responses."""
    sums = SplitCeiling(centring, n_splits, seed)
    for some in clip_slices(responses):
        sums.add(RepeatGroups.of(responses[some], None if valid is None else valid[some]))
    return sums.value()


class HalfSplits(NamedTuple):
    """Splits of R repeats into two halves."""

    first: Tensor  # (S, R) weights, 1 / h on the h repeats of the half
    second: Tensor  # (S, R)
    n_used: int  # splits that enter an average: a whole number of rounds through the distinct ones
    ratio: float  # R / h, by how much the full set is longer than a half


def half_splits(n_repeats: int, n_splits: int, seed: int) -> HalfSplits:
    """Draw at most ``n_splits`` splits into halves; with an odd number every split leaves another repeat out.

    When there are no more distinct ones all are used, each as often as the others.
    """
    half = n_repeats // 2
    left_out = n_repeats % 2
    n_distinct = (n_repeats if left_out else 1) * math.comb(2 * half, half) // 2
    if n_distinct <= n_splits:
        distinct = torch.tensor(list(_all_orders(n_repeats, half)))
        order = distinct[torch.arange(n_splits) % n_distinct]
        n_used = n_splits - n_splits % n_distinct
    else:
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(n_splits, n_repeats, generator=generator, dtype=torch.float64).argsort(1)
        n_used = n_splits
    first = torch.zeros(n_splits, n_repeats, dtype=torch.float64)
    second = first.clone()
    first.scatter_(1, order[:, :half], 1 / half)
    second.scatter_(1, order[:, half : 2 * half], 1 / half)
    return HalfSplits(first, second, n_used, n_repeats / half)


def _all_orders(n_repeats: int, half: int) -> Iterator[list[int]]:
    """Every distinct split, as first half then second half."""
    for dropped in range(n_repeats) if n_repeats % 2 else [None]:
        kept = [repeat for repeat in range(n_repeats) if repeat != dropped]
        for rest in itertools.combinations(kept[1:], half - 1):
            first = [kept[0], *rest]
            yield first + [repeat for repeat in kept if repeat not in first]


def spearman_brown(reliability: Tensor, ratio: Tensor | float) -> Tensor:
    """Ceiling on the correlation with the mean of all repeats, from the correlation r between two halves.

    The square root of the reliability ``ratio * r / (1 + (ratio - 1) * r)``; NaN unless r is positive.
    """
    positive = torch.where(reliability > 0, reliability, torch.ones_like(reliability))
    return keep_where(reliability > 0, (ratio * positive / (1 + (ratio - 1) * positive)).sqrt())


class SplitMoments(NamedTuple):
    """Moments of the two halves, fields of ``halves`` (K, S); ``n_used`` and ``ratio`` (K,)."""

    halves: PairMoments
    n_used: Tensor
    ratio: Tensor


def mean_half_correlation(halves: PairMoments, n_used: Tensor) -> Tensor:
    """Mean correlation between halves over the first ``n_used`` (K,) of S splits, (K,); constant: 0.

    NaN where all repeats are constant, or there are fewer than two bins.
    """
    correlation = halves.correlation()
    varies = ~is_constant(halves.xx, halves.mean_x, halves.count) | ~is_constant(
        halves.yy, halves.mean_y, halves.count
    )
    undefined = torch.isnan(halves.xy)
    correlation = torch.where(torch.isnan(correlation) & (halves.count > 1) & ~undefined, 0.0, correlation)
    used = torch.arange(correlation.shape[1], device=n_used.device) < n_used.unsqueeze(1)
    known = used & (halves.count > 1)
    total = torch.where(known, correlation, 0.0).sum(1)
    return keep_where((varies & known).any(1), total / known.sum(1).clamp(min=1))


def split_moments(groups: RepeatGroups, n_splits: int, seed: int) -> SplitMoments:
    """Moments of half-PSTHs for K rows; rows with fewer than two repeats get a count of 0."""
    blank = torch.zeros(groups.n_rows, n_splits, dtype=groups.dtype, device=groups.device)
    table = [blank.clone() for _ in range(6)]
    n_used = torch.full((groups.n_rows,), n_splits, device=groups.device)
    ratio = torch.full_like(blank[:, 0], 2.0)
    for group in groups.groups:
        splits = half_splits(group.responses.shape[1], n_splits, seed)
        n_used[group.rows], ratio[group.rows] = splits.n_used, splits.ratio
        moments = _gram_moments(group.products, splits)
        if group.ragged is not None and group.samples is not None:
            formed = _formed_moments(group.responses[group.ragged], group.samples[group.ragged], splits)
            for column, values in zip(moments, formed, strict=True):
                column[group.ragged] = values
        for column, values in zip(table, moments, strict=True):
            column[group.rows] = values
    return SplitMoments(PairMoments(*table), n_used, ratio)


def _gram_moments(products: RepeatProducts, splits: HalfSplits) -> list[Tensor]:
    """Moments of both halves as quadratic forms of the sums of products."""
    product, mean, count = products.product, products.mean, products.count
    first = splits.first.to(device=product.device, dtype=product.dtype)
    second = splits.second.to(device=product.device, dtype=product.dtype)
    flat = product.flatten(1)
    n_splits, size = len(first), max(1, DESIGN_BYTES // (first.shape[1] ** 2 * BYTES_PER_VALUE))
    forms = []
    for left, right in ((first, first), (second, second), (first, second)):
        columns = [
            flat @ (left[start : start + size, :, None] * right[start : start + size, None]).flatten(1).mT
            for start in range(0, n_splits, size)
        ]
        forms.append(torch.cat(columns, dim=1))
    xx, yy, xy = forms
    floor = NEGLIGIBLE_HALF * product.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    xx, yy = torch.where(xx <= floor, 0.0, xx), torch.where(yy <= floor, 0.0, yy)
    return [count.unsqueeze(1).repeat(1, n_splits), mean @ first.mT, mean @ second.mT, xx, yy, xy]


def _formed_moments(responses: Tensor, samples: Tensor, splits: HalfSplits) -> list[Tensor]:
    """Moments of both halves from the half-PSTHs themselves, on the bins that both halves hold."""
    dtype = accumulator_dtype(responses.device)
    zero = torch.zeros((), dtype=dtype, device=responses.device)
    first, second = splits.first.to(zero) > 0, splits.second.to(zero) > 0
    n_splits, n_bins = len(first), responses.shape[2]
    size = max(1, RAGGED_BLOCK_BYTES // max(1, 8 * n_splits * n_bins * BYTES_PER_VALUE))
    columns: list[list[Tensor]] = [[] for _ in range(6)]
    for start in range(0, len(responses), size):
        mask = samples[start : start + size]
        level = torch.where(mask, responses[start : start + size].to(dtype), zero)
        ones = mask.to(dtype)
        offset = level.sum((1, 2), keepdim=True) / ones.sum((1, 2), keepdim=True).clamp(min=1)
        values = torch.where(mask, responses[start : start + size].to(dtype) - offset, zero)
        halves = []
        for half in (first.to(dtype), second.to(dtype)):
            number = half @ ones
            halves.append(((half @ values) / number.clamp(min=1) + offset, number > 0))
        (one, in_one), (two, in_two) = halves
        moments = PairMoments.of(one, two, in_one & in_two)
        for column, values_of in zip(columns, vars(moments).values(), strict=True):
            column.append(values_of)
    return [torch.cat(column) for column in columns]


# ---- Bootstrap of the noise ceiling over repeats and clips, clip by clip and for all neurons at once
# A resampled set of repeats is a vector of counts c. Signal and noise power of the resample are means over
# pairs of distinct *original* repeats, weighted by ``c_r * c_s``: a repeat drawn twice is never paired with
# itself, which would pass its noise off as signal. Such means are linear in the matrices over pairs, so one
# product serves all resamples of all neurons.


def pair_matrices(group: RepeatGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance of pairs of repeats, half the variance of their difference, whether usable: (K, R, R)."""
    product, count = group.products.product, group.products.count
    covariance = product / (count - 1).clamp(min=1)[:, None, None]
    variance = covariance.diagonal(dim1=1, dim2=2)
    noise = (variance.unsqueeze(1) + variance.unsqueeze(2)) / 2 - covariance
    distinct = ~torch.eye(product.shape[1], dtype=torch.bool, device=product.device)
    usable = distinct & (count > 1)[:, None, None]
    if group.ragged is not None and group.samples is not None:
        pairs = RepeatPairs.of(group.responses[group.ragged], group.samples[group.ragged])
        covariance[group.ragged], noise[group.ragged] = pairs.covariance_and_noise()
        usable[group.ragged] = pairs.usable
    return covariance, noise, usable


class CeilingBootstrap:
    """Resampled ceilings of N neurons, accumulated over clips.

    ``resample``: "repeats" draws repeats with replacement within each clip, "clips" draws clips, "both" does
    both. All neurons share the draws, as they shared the trials. ``average_clips`` takes the ceiling clip by
    clip and averages (the half-split ceiling with ``centring="clip"``) instead of pooling the powers first.
    """

    def __init__(
        self,
        n_clips: int,
        n_bootstrap: int,
        resample: str,
        centring: str,
        seed: int,
        average_clips: bool = False,
    ) -> None:
        self.n_bootstrap = n_bootstrap
        self.resample = resample
        self.centring = centring
        self.seed = seed
        self.average_clips = average_clips
        weights = torch.ones(n_bootstrap, n_clips, dtype=torch.float64)
        if resample in ("clips", "both"):
            weights = self._draw(n_clips, torch.Generator().manual_seed(seed))
        self._weights = weights
        self._reference: Tensor | None = None
        self._sums: list[Tensor] = []

    def _draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Counts (n_bootstrap, number) of draws with replacement."""
        draws = torch.randint(number, (self.n_bootstrap, number), generator=generator)
        counts = torch.zeros(self.n_bootstrap, number, dtype=torch.float64)
        return counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))

    def _counts(self, n_repeats: int, clips: Sequence[int], like: Tensor) -> Tensor:
        """Counts of repeats (B, n_bootstrap, R) for some clips; all 1 when repeats are not resampled."""
        if self.resample == "clips":
            return like.new_ones(()).expand(len(clips), 1, n_repeats)
        seeds = (self.seed + SEED_STRIDE * (1 + clip) + n_repeats for clip in clips)
        draws = [self._draw(n_repeats, torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(draws).to(like)

    def add(self, groups: RepeatGroups, powers: ClipPowers, clips: Sequence[int]) -> None:
        """Take in clips ``clips``: their groups of repeats and their powers (B, N)."""
        self._remember_reference(powers)
        n_clips, n_neurons = groups.shape
        blank = torch.zeros(n_clips, self.n_bootstrap, n_neurons, dtype=groups.dtype, device=groups.device)
        table = [blank.clone() for _ in range(6)]
        for group in groups.groups:
            matrices, means = pair_matrices(group), self._repeat_means(powers, group)
            counts = self._counts(group.n_repeats, clips, means)
            if isinstance(group.rows, slice):
                split = [by_clip(values, groups.shape) for values in (*matrices, means)]
                for column, values in zip(table, self._group(counts, *split), strict=True):
                    column += values
                continue
            clip_of, neuron_of = group.rows // n_neurons, group.rows % n_neurons
            for clip in torch.unique(clip_of).tolist():
                here = clip_of == clip
                split = [values[here].unsqueeze(0) for values in (*matrices, means)]
                found = self._group(counts[clip : clip + 1], *split)
                for column, values in zip(table, found, strict=True):
                    column[clip][:, neuron_of[here]] = values[0].expand(self.n_bootstrap, -1)
        known, signal, noise, mean, product, spread = table
        weight = self._weights[:, list(clips)].mT.to(known).unsqueeze(2) * known
        bins, repeats = powers.n_bins.unsqueeze(1), powers.n_repeats.clamp(min=1).unsqueeze(1)
        if self.centring != "concat":
            factor = torch.where(bins > 1, bins, torch.zeros_like(bins)) * weight
            sums = [factor, factor * signal, factor * noise / repeats]
            if self.average_clips:
                reliable = factor * (signal > 0)
                sums = [factor, reliable, reliable * _share(signal, noise / repeats).sqrt()]
        else:
            factor, inner = bins * weight, (bins - 1).clamp(min=0) * weight
            sums = [
                factor,
                inner * signal + factor * product,
                inner * noise / repeats + factor * spread,
                factor * mean,
                factor * factor * (mean * mean - product),
                factor * factor * spread,
            ]
        sums = [values.sum(0) for values in sums]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums

    def _remember_reference(self, powers: ClipPowers) -> None:
        """Measure clip means from the first one a neuron has, so that an offset costs no digits."""
        known = powers.n_bins > 0
        at = known.to(torch.uint8).argmax(0, keepdim=True)
        first = keep_where(known.any(0), powers.mean.gather(0, at).squeeze(0))
        self._reference = (
            first
            if self._reference is None
            else torch.where(torch.isnan(self._reference), first, self._reference)
        )

    def _repeat_means(self, powers: ClipPowers, group: RepeatGroup) -> Tensor:
        """Means of the repeats in a group, (k, R), relative to the reference.

        For repeats that differ in their bins: the PSTH's mean plus what the repeat deviates on its own bins.
        """
        mean, clip_mean = group.products.mean, powers.mean.flatten()
        reference = torch.zeros_like(clip_mean)
        if self._reference is not None:
            reference = self._reference.expand_as(powers.mean).flatten()
        if group.ragged is not None and group.samples is not None:
            samples = group.samples[group.ragged].to(mean)
            values = torch.where(group.samples[group.ragged], group.responses[group.ragged].to(mean), 0.0)
            psth = values.sum(1, keepdim=True) / samples.sum(1, keepdim=True).clamp(min=1)
            deviation = ((values - psth) * samples).sum(2) / samples.sum(2).clamp(min=1)
            mean = mean.index_copy(
                0, group.ragged, clip_mean[group.rows][group.ragged].unsqueeze(1) + deviation
            )
        return mean - torch.nan_to_num(reference[group.rows]).unsqueeze(1)

    def _group(
        self, counts: Tensor, covariance: Tensor, noise: Tensor, usable: Tensor, means: Tensor
    ) -> list[Tensor]:
        """Resampled quantities of rows (B, k) with one number of repeats, each (B, n_bootstrap or 1, k)."""
        design = (counts.unsqueeze(3) * counts.unsqueeze(2)).flatten(2)
        weight = design @ usable.to(means).flatten(2).mT
        safe = torch.where(weight > 0, weight, torch.ones_like(weight))

        def average(values: Tensor) -> Tensor:
            return design @ torch.where(usable, values, 0.0).flatten(2).mT / safe

        product = means.unsqueeze(2) * means.unsqueeze(3)
        gap = (means.unsqueeze(2) - means.unsqueeze(3)).square() / (2 * means.shape[2])
        # over pairs, as the product: a reference common to all means then leaves no trace in the ceiling
        mean = average((means.unsqueeze(2) + means.unsqueeze(3)) / 2)
        known = (weight > 0).to(means)
        return [known, average(covariance), average(noise), mean, average(product), average(gap)]

    def ceilings(self) -> Tensor:
        """Resampled ceilings (n_bootstrap, N): 0 where a resample has no signal, NaN where it has no data."""
        if self.centring != "concat":
            bins, signal, noise = self._sums
            if self.average_clips:
                weight, total = self._sums[1:]
                ceiling = torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0)
                return keep_where(bins > 0, ceiling)
        else:
            bins, signal, noise, level, level_noise, spread = self._sums
            total = bins.clamp(min=1)
            signal = signal - (level * level - level_noise) / total
            noise = noise - spread / total
        return keep_where(bins > 0, _share(signal, noise).sqrt())

    def interval(self, confidence: float) -> tuple[Tensor, Tensor]:
        """Lower and upper percentile bound, (N,) each."""
        ceilings = self.ceilings()
        tail = (1 - confidence) / 2
        bounds = torch.nanquantile(ceilings, torch.tensor([tail, 1 - tail]).to(ceilings), dim=0)
        return bounds[0], bounds[1]


def _share(signal: Tensor, noise: Tensor) -> Tensor:
    """Share of the signal in the variance of the PSTH; 0 without positive signal."""
    positive = signal > 0
    share = signal / torch.where(positive, signal + noise.clamp(min=0), torch.ones_like(signal))
    return torch.where(positive, share, torch.zeros_like(share))
