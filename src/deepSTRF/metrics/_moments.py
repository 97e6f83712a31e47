"""Means, variances and covariances that survive large offsets, tiny scales, masks and merging.

Every sum of squares is taken around the chunk's own mean (two passes) in float64, and chunks are merged by
the update of Chan, Golub and LeVeque (1983, 10.1080/00031305.1983.10483115). Whether a series is constant is
judged against the rounding error of its own mean, so the verdict does not depend on the unit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ._masking import accumulator_dtype

# A series counts as constant when its standard deviation is below this many roundings of its mean: the error
# of a pairwise sum grows with the logarithm of its length, 64 covers any recording.
ROUNDINGS_OF_A_MEAN = 64.0


@dataclass(frozen=True)
class PairMoments:
    """First and second moments of two series x and y over the bins that count; all fields have one shape.

    ``count`` bins, means, centred sums of squares ``xx``, ``yy`` and of products ``xy``. Where ``count`` is 0
    everything is 0.
    """

    count: Tensor
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, valid: Tensor | None = None) -> Self:
        """Moments over the last axis of two (..., T) series, where ``valid`` is True (None: everywhere)."""
        dtype = accumulator_dtype(x.device)
        x, y = x.to(dtype), y.to(dtype)
        count = bin_count(x, valid)
        mean_x, deviation_x = centre(x, valid, count)
        mean_y, deviation_y = centre(y, valid, count)
        return cls(
            count,
            mean_x,
            mean_y,
            (deviation_x * deviation_x).sum(-1),
            (deviation_y * deviation_y).sum(-1),
            (deviation_x * deviation_y).sum(-1),
        )

    def merge(self, other: Self) -> Self:
        """Moments of both chunks together."""
        stacked = [
            torch.stack([getattr(self, field.name), getattr(other, field.name)]) for field in fields(self)
        ]
        return type(self)(*stacked).pool(0)

    def pool(self, axis: int = 0) -> Self:
        """Moments of all chunks along one axis together."""
        count, mean_x = pooled_mean(self.count, self.mean_x, axis)
        _, mean_y = pooled_mean(self.count, self.mean_y, axis)
        gap_x = torch.where(self.count > 0, self.mean_x - mean_x.unsqueeze(axis), 0.0)
        gap_y = torch.where(self.count > 0, self.mean_y - mean_y.unsqueeze(axis), 0.0)
        return type(self)(
            count,
            mean_x,
            mean_y,
            (self.xx + self.count * gap_x * gap_x).sum(axis),
            (self.yy + self.count * gap_y * gap_y).sum(axis),
            (self.xy + self.count * gap_x * gap_y).sum(axis),
        )

    def correlation(self) -> Tensor:
        """Pearson correlation; NaN with fewer than two bins or when a series is constant."""
        varies = ~is_constant(self.xx, self.mean_x, self.count) & ~is_constant(
            self.yy, self.mean_y, self.count
        )
        root = self.xx.sqrt() * self.yy.sqrt()  # of the roots: the product of two tiny sums may underflow
        return keep_where(varies & (self.count > 1), (self.xy / root).clamp(-1.0, 1.0))


def bin_count(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the number of bins that count along the last axis, in the dtype of ``x``."""
    if valid is None:
        return torch.full(x.shape[:-1], x.shape[-1], dtype=x.dtype, device=x.device)
    return valid.expand(x.shape).sum(-1).to(x.dtype)


def centre(x: Tensor, valid: Tensor | None, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the bins that count and the deviations from it, zero at the others."""
    if valid is None:
        if x.shape[-1] == 0:
            return torch.zeros_like(count), x
        mean = x.mean(-1)
        return mean, x - mean.unsqueeze(-1)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    mean = torch.where(valid, x, zero).sum(-1) / count.clamp(min=1)
    return mean, torch.where(valid, x - mean.unsqueeze(-1), zero)


def pooled_mean(count: Tensor, mean: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the total count and the count-weighted mean along one axis, without losing digits to an offset.

    Means are averaged relative to one of them; empty chunks have no say (their mean may be anything finite).
    """
    total = count.sum(axis)
    if count.shape[axis] == 0:
        return total, torch.zeros_like(total)
    anchor = mean.gather(axis, count.argmax(axis, keepdim=True))
    gap = torch.where(count > 0, mean - anchor, 0.0)
    return total, anchor.squeeze(axis) + (count * gap).sum(axis) / total.clamp(min=1)


def is_constant(sum_of_squares: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Return where a centred sum of squares is no larger than the rounding error of the mean explains."""
    rounding = ROUNDINGS_OF_A_MEAN * torch.finfo(mean.dtype).eps * mean.abs()
    return sum_of_squares.sqrt() <= count.sqrt() * rounding


def keep_where(condition: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` where the condition holds and NaN elsewhere."""
    return torch.where(condition, values, torch.full_like(values, torch.nan))
