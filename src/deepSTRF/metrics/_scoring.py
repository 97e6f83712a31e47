"""From one prediction per clip to correlations: shared by the one-shot metrics and by `ScoreTracker`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ._masking import accumulator_dtype, resolve_target
from ._moments import PairMoments, centre, is_constant, keep_where
from ._repeats import ClipParts, ClipTarget
from ._totals import RepeatTotals, is_reliable


@dataclass(frozen=True)
class PredictionMoments:
    """Moments of a prediction against one or more clips; fields share a shape, (K,) or (S, N).

    ``count``, ``pred_mean``, ``psth_mean``, ``pred_square``, ``psth_square``, ``product``: over all bins that
    count, centred on the clip. ``pair_mean``, ``variance``, ``covariance``: over the bins and pairs of
    repeats that the signal power is estimated on, so that numerator and denominator share their samples.
    """

    count: Tensor
    pred_mean: Tensor
    psth_mean: Tensor
    pred_square: Tensor
    psth_square: Tensor
    product: Tensor
    pair_mean: Tensor
    variance: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, target: ClipTarget, pred: Tensor) -> Self:
        """Moments of a (K, T) prediction against K rows."""
        values = pred.to(accumulator_dtype(pred.device))
        mean, deviation = centre(values, target.valid, target.count)
        square = (deviation * deviation).sum(-1)
        product = (deviation * target.deviation).sum(-1)
        freedom = (target.count - 1).clamp(min=1)
        pair_mean, variance, covariance = mean, square / freedom, product / freedom
        if target.ragged is not None and target.pairs is not None:
            rows = target.ragged
            row_mean, row_variance, row_covariance = target.pairs.moments(values.index_select(0, rows))
            pair_mean = pair_mean.index_copy(0, rows, row_mean)
            variance = variance.index_copy(0, rows, row_variance)
            covariance = covariance.index_copy(0, rows, row_covariance)
        return cls(
            target.count, mean, target.mean, square, target.square, product, pair_mean, variance, covariance
        )

    def unflatten(self, *lead: int) -> Self:
        """Split the first axis into the given axes."""
        return type(self)(
            **{field.name: getattr(self, field.name).unflatten(0, lead) for field in fields(self)}
        )

    @classmethod
    def stack(cls, records: list[Self]) -> Self:
        """Records of (N,) each as one of (S, N)."""
        return cls(
            **{
                field.name: torch.stack([getattr(record, field.name) for record in records])
                for field in fields(cls)
            }
        )

    def pooled(self) -> PairMoments:
        """Moments on the concatenated clips, all bins that count."""
        return PairMoments(
            self.count, self.pred_mean, self.psth_mean, self.pred_square, self.psth_square, self.product
        ).pool(0)

    def correlation(self, centring: str) -> Tensor:
        """Raw correlation (N,) on the concatenated clips, or around each clip's means ("clip")."""
        pooled = self.pooled()
        if centring != "clip":
            return pooled.correlation()
        weight = self.count / (self.count - 1).clamp(min=1)  # clips weigh as their bins
        sums = [(weight * square).sum(0) for square in (self.pred_square, self.psth_square, self.product)]
        return PairMoments(pooled.count, pooled.mean_x, pooled.mean_y, *sums).correlation()


def clip_series(pred: Tensor, gt: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return prediction, PSTH and validity as (B, N, T), in accumulator precision, without gradient."""
    dtype = accumulator_dtype(gt.device)
    target = resolve_target(gt.detach().to(dtype), mask)
    valid = None if target.valid is None else target.valid[:, :, 0]
    return pred.detach().to(dtype)[:, :, 0], target.psth[:, :, 0], valid


def total_squared_error(pred: Tensor, psth: Tensor, valid: Tensor | None) -> Tensor:
    """Sum of squared differences over bins and clips, (N,)."""
    error = pred - psth
    if valid is not None:
        error = torch.where(valid, error, torch.zeros_like(error))
    return (error * error).sum((0, -1))


def squared_error(pooled: PairMoments) -> Tensor:
    """Sum of squared differences from pooled moments, (N,)."""
    gap = pooled.mean_x - pooled.mean_y
    return (pooled.xx + pooled.yy - 2 * pooled.xy).clamp(min=0) + pooled.count * gap * gap


def explained_variance(error: Tensor, pooled_square: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """One minus the squared error over the variance of the PSTH; NaN where that is constant or too short."""
    varies = ~is_constant(pooled_square, mean, count) & (count > 1)
    return keep_where(varies, 1 - error / torch.where(varies, pooled_square, torch.ones_like(error)))


def noise_corrected(
    moments: PredictionMoments, parts: ClipParts, totals: RepeatTotals, centring: str
) -> Tensor:
    """Schoppe's normalised correlation from (S, N) moments and parts; the raw one where no bin was repeated.

    ``totals`` are those of ``parts``, which an epoch does not change.
    """
    signal, noise = totals.powers(centring)
    raw = moments.pooled()
    if centring == "published":
        freedom = (raw.count - 1).clamp(min=1)
        square, variance, covariance, count = raw.xx, raw.xx / freedom, raw.xy / freedom, raw.count
    elif centring == "clip":
        weight = torch.where(parts.n_bins > 1, parts.n_bins, torch.zeros_like(parts.n_bins))
        count = weight.sum(0)
        square = (weight * moments.variance).sum(0)
        variance = square / count.clamp(min=1)
        covariance = (weight * moments.covariance).sum(0) / count.clamp(min=1)
    else:
        bins = parts.n_bins
        within = (bins - 1).clamp(min=0)
        unused = torch.zeros_like(bins)
        pair_mean = torch.where(bins > 0, moments.pair_mean, unused)
        pooled = PairMoments(
            bins, pair_mean, parts.mean, within * moments.variance, unused, within * moments.covariance
        ).pool(0)
        freedom = (pooled.count - 1).clamp(min=1)
        square, variance, covariance, count = (
            pooled.xx,
            pooled.xx / freedom,
            pooled.xy / freedom,
            pooled.count,
        )
    usable = is_reliable(signal, noise) & ~is_constant(square, raw.mean_x, count)
    root = variance.sqrt() * torch.where(usable, signal, torch.ones_like(signal)).sqrt()
    corrected = keep_where(usable, covariance / torch.where(usable, root, torch.ones_like(root)))
    return torch.where(totals.bins == 0, raw.correlation(), corrected)
