"""Random half-splits of repeats: the moments of both halves for every split, without forming the halves.

With the centred repeats Z (R, T) and half-PSTHs ``a @ Z`` and ``b @ Z``, variances and covariances of the
halves are quadratic forms of ``Z @ Z.T``. One (rows, R * R) @ (R * R, 3 * splits) product serves every split
of every neuron and clip, so 126 splits cost less than reading the data once. Repeats that were recorded in
different bins have no such matrix; their halves are formed, a few rows at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ._blocks import BYTES_PER_VALUE
from ._groups import RepeatGroups
from ._masking import accumulator_dtype
from ._moments import PairMoments, is_constant, keep_where

RAGGED_BLOCK_BYTES = 64 * 2**20
DESIGN_BYTES = 16 * 2**20
NEGLIGIBLE_HALF = (
    1e-13  # of a repeat's variance: what is left of a half whose repeats cancel to rounding error
)
# Number of splits by default: all there are of ten repeats, C(10, 5) / 2, and the published choice for more.
N_SPLITS = 126


@dataclass(frozen=True)
class HalfSplits:
    """Splits of R repeats into two halves.

    ``first`` and ``second`` (S, R) weights, 1 / h on the h repeats of the half; ``n_used`` how many of the S
    splits enter an average (a whole number of rounds through the distinct ones); ``ratio`` R / h, by how much
    the full set is longer than a half.
    """

    first: Tensor
    second: Tensor
    n_used: int
    ratio: float


def half_splits(n_repeats: int, n_splits: int, seed: int) -> HalfSplits:
    """Draw splits of ``n_repeats`` into halves; with an odd number every split leaves another repeat out.

    When there are no more than ``n_splits`` distinct ones all are used, each as often as the others; else
    they are drawn at random from a generator of their own. At most ``n_splits`` are ever formed.
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
    """Ceiling on the correlation with the mean of all repeats, from the correlation between two halves.

    The reliability of ``ratio`` times as many repeats is ``ratio * r / (1 + (ratio - 1) * r)``; its square
    root bounds the correlation of any prediction with their mean. NaN where the halves don't correlate
    positively.
    """
    positive = torch.where(reliability > 0, reliability, torch.ones_like(reliability))
    return keep_where(reliability > 0, (ratio * positive / (1 + (ratio - 1) * positive)).sqrt())


@dataclass(frozen=True)
class SplitMoments:
    """Moments of the two halves, fields of ``halves`` (K, S); ``n_used`` and ``ratio`` (K,)."""

    halves: PairMoments
    n_used: Tensor
    ratio: Tensor

    def reliability(self) -> Tensor:
        """Mean correlation between halves, (K,); a constant half shares nothing with the other: 0.

        NaN where all repeats are constant, or there are fewer than two bins.
        """
        return mean_half_correlation(self.halves, self.n_used)


def mean_half_correlation(halves: PairMoments, n_used: Tensor) -> Tensor:
    """Average the (K, S) correlations over the first ``n_used`` (K,) splits."""
    correlation = halves.correlation()
    varies = ~is_constant(halves.xx, halves.mean_x, halves.count) | ~is_constant(
        halves.yy, halves.mean_y, halves.count
    )
    poisoned = torch.isnan(halves.xy)
    correlation = torch.where(torch.isnan(correlation) & (halves.count > 1) & ~poisoned, 0.0, correlation)
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
        moments = _gram_moments(group.product, group.mean, group.count, splits)
        if group.ragged is not None and group.samples is not None:
            formed = _formed_moments(group.responses[group.ragged], group.samples[group.ragged], splits)
            for column, values in zip(moments, formed, strict=True):
                column[group.ragged] = values
        for column, values in zip(table, moments, strict=True):
            column[group.rows] = values
    return SplitMoments(PairMoments(*table), n_used, ratio)


def _gram_moments(product: Tensor, mean: Tensor, count: Tensor, splits: HalfSplits) -> list[Tensor]:
    """Moments of both halves as quadratic forms of the sums of products."""
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
