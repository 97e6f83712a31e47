"""Predictions beside the responses of clips: the statistics from which every score of a model follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.metrics._statistics import (
    ClipPowers,
    Fields,
    PairMoments,
    PooledPowers,
    RepeatSummary,
    accumulator_dtype,
    centre,
    is_constant,
    is_reliable,
    keep_where,
    row_blocks,
    weigh,
)

__all__ = ["ScoreStatistics"]


def moments_against(
    pred: Tensor, count: Tensor, target: Callable[[slice], tuple[Tensor, Tensor | None]]
) -> Tensor:
    """Mean, centred squares and products with the target (3, K) of predictions (K, T), over ``count`` bins.

    ``target`` gives some rows of centred PSTHs, zero in bins that do not count, and which do (None: all).
    """
    found = count.new_empty(3, len(pred))
    for piece in row_blocks(pred.unsqueeze(1)):  # whole clips of float64 leave holes in the heap
        centred, valid = target(piece)
        found[0, piece], deviation = centre(pred[piece].to(found.dtype), valid, count[piece])
        found[2, piece] = (deviation * centred).sum(-1)
        found[1, piece] = deviation.square_().sum(-1)
    return found


@dataclass(frozen=True)
class PredictionMoments(Fields):
    """Moments of a prediction against one or more clips; fields share a shape, (K,) or (S, N).

    ``raw``: of prediction x and PSTH y over all bins that count, centred on the clip. ``pair_mean``,
    ``variance``, ``covariance``: over the bins and pairs of repeats that the signal power is estimated on, so
    that numerator and denominator share their samples.
    """

    raw: PairMoments
    pair_mean: Tensor
    variance: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, pred: Tensor, responses: RepeatSummary) -> Self:
        """Moments of a (K, T) prediction against K rows."""
        dtype = accumulator_dtype(pred.device)
        mean, square, product = moments_against(
            pred,
            responses.count,
            lambda rows: (
                responses.deviation[rows],
                None if responses.valid is None else responses.valid[rows],
            ),
        )
        raw = PairMoments(responses.count, mean, responses.mean, square, responses.square, product)
        freedom = (responses.count - 1).clamp(min=1)
        pair_mean, variance, covariance = mean, square / freedom, product / freedom
        if responses.ragged is not None and responses.weights is not None:
            rows = responses.ragged
            row_mean, row_variance, row_covariance = responses.weights.moments(
                pred.index_select(0, rows).to(dtype)
            )
            pair_mean = pair_mean.index_copy(0, rows, row_mean)
            variance = variance.index_copy(0, rows, row_variance)
            covariance = covariance.index_copy(0, rows, row_covariance)
        return cls(raw, pair_mean, variance, covariance)


@checked
@dataclass(frozen=True)
class ScoreStatistics:
    """Sufficient statistics of the scores of a model: its predictions beside the responses.

    Scores are functions of sums over clips. `resampled` weighs the clips in these sums: bootstrap, jackknife
    and permutations of clips cost one matrix product per statistic, whatever the number of bins.

    Parameters
    ----------
    prediction : PredictionMoments, fields (S, N)
        Moments of the predictions against S clips of N neurons.
    clips : ClipPowers, fields (S, N)
        Signal and noise power of those clips.
    powers : PooledPowers, fields (N,)
        The same, pooled over clips.
    centring : {"concat", "clip", "published"}
        How the noise-corrected correlation of a score table is centred.
    reliability : mapping of str to Tensor, shape (N,)
        Columns of `neuron_quality` (``snr``, ``ccmax``, ...); empty where only the predictions are scored.
    weights : Tensor, shape (B, S), optional
        How often each clip counts in each of B resamples; see `resampled`.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.metrics import ScoreTracker
    >>> responses = torch.rand(3, 5, 60, generator=torch.manual_seed(0))
    >>> tracker = ScoreTracker()
    >>> tracker.prepare(0, responses)
    >>> tracker.update([0], responses.mean(1).reshape(1, 3, 1, 60))
    >>> tracker.statistics().pooled.correlation().round(decimals=6)
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    prediction: PredictionMoments
    clips: ClipPowers
    powers: PooledPowers
    centring: str = "concat"
    reliability: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    @classmethod
    @checked
    def of(cls, pred: Tensor, responses: Tensor, mask: Tensor | None) -> Self:
        """Statistics of (B, N, 1, T) predictions and (B, N, R, T) responses, one clip per batch entry."""
        rows = RepeatSummary.of(responses.detach(), mask)
        prediction = PredictionMoments.of(pred.detach()[:, :, 0].flatten(0, 1), rows)
        clips = rows.powers.unflatten(*pred.shape[:2])
        return cls(prediction.unflatten(*pred.shape[:2]), clips, PooledPowers.of(clips))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Statistics of the clips of all parts, one part after the other.

        Of two models on the same S clips: weights (B, 2 S) of 0 and 1 then choose per clip whose predictions
        count, which is a paired permutation test.
        """
        first, *others = parts
        prediction = first.prediction.map(
            lambda *values: torch.cat(values), *(other.prediction for other in others)
        )
        clips = ClipPowers.cat([part.clips for part in parts])
        return cls(prediction, clips, PooledPowers.of(clips), first.centring)

    @checked
    def resampled(self, weights: Tensor) -> Self:
        """Statistics of B resamples of the clips; every score is then (B, N) in place of (N,).

        Parameters
        ----------
        weights : Tensor, shape (B, S)
            How often each of the S clips is drawn: counts of a bootstrap, ``1 - eye(S)`` for a jackknife.
            Weights that are no whole numbers are legal where they add up to about S.

        Returns
        -------
        ScoreStatistics
            Each row as the statistics of a recording in which the clips come as often as drawn.

        Raises
        ------
        ValueError
            When ``weights`` has another shape.

        Examples
        --------
        >>> import torch
        >>> responses = torch.rand(4, 3, 5, 60, generator=torch.manual_seed(0))
        >>> of_clips = ScoreStatistics.of(responses.mean(2, keepdim=True).sqrt(), responses, None)
        >>> jackknife = of_clips.resampled(1 - torch.eye(4)).correlation()
        >>> jackknife.shape, bool((jackknife > 0.99).all())
        (torch.Size([4, 3]), True)
        """
        n_clips = len(self.clips.n_bins)
        if weights.ndim != 2 or weights.shape[1] != n_clips:
            raise ValueError(
                f"weights has one row per resample and one column per clip, (B, {n_clips}), got "
                f"{tuple(weights.shape)}"
            )
        weights = weights.to(self.clips.n_bins)
        return replace(self, powers=PooledPowers.of(self.clips, weights), weights=weights)

    @cached_property
    def pooled(self) -> PairMoments:
        """Moments of predictions x and PSTHs y on the concatenated clips, fields (N,)."""
        return self.prediction.raw.pool(0, self.weights)

    @cached_property
    def error(self) -> Tensor:
        """Sum of squared differences from the PSTH over the concatenated clips, (N,)."""
        pooled = self.pooled
        gap = pooled.mean_x - pooled.mean_y
        return (pooled.xx + pooled.yy - 2 * pooled.xy).clamp(min=0) + pooled.count * gap * gap

    @property
    def single_repeat(self) -> Tensor:
        """Neurons without a bin that was recorded twice, bool (N,): their correlation cannot be corrected."""
        return self.powers.bins == 0

    def correlation(self, centring: str = "concat") -> Tensor:
        """Raw correlation (N,) on the concatenated clips, or around each clip's means ("clip")."""
        if centring != "clip":
            return self.pooled.correlation()
        raw = self.prediction.raw
        weight = raw.count / (raw.count - 1).clamp(min=1)  # clips weigh as their bins
        sums = (weigh(weight * products, self.weights) for products in (raw.xx, raw.yy, raw.xy))
        return PairMoments(self.pooled.count, self.pooled.mean_x, self.pooled.mean_y, *sums).correlation()

    def cc_norm(self, centring: str = "concat") -> Tensor:
        """Noise-corrected correlation ``Cov(pred, psth) / sqrt(Var(pred) SP)``, (N,); Schoppe et al. (2016).

        Variance, covariance and signal power SP are taken over the bins with two repeats. Neurons without
        such bins get the raw correlation.
        """
        signal_power, noise_power = self.powers.powers(centring)
        squares, products, freedom, count = self._sums(centring)
        var, cov = squares / freedom, products / freedom
        cc_norm = cov / (var.sqrt() * signal_power.sqrt())  # of the roots: tiny products may underflow
        defined = is_reliable(signal_power, noise_power) & ~is_constant(squares, self.pooled.mean_x, count)
        return torch.where(self.single_repeat, self.pooled.correlation(), keep_where(defined, cc_norm))

    def repeated(self) -> PairMoments:
        """Moments of prediction and PSTH over all bins with two repeats, those of the signal power."""
        prediction, bins = self.prediction, self.clips.n_bins
        within, unused = (bins - 1).clamp(min=0), torch.zeros_like(bins)
        return PairMoments(
            bins,
            torch.where(bins > 0, prediction.pair_mean, unused),
            self.clips.mean,
            within * prediction.variance,
            unused,
            within * prediction.covariance,
        ).pool(0, self.weights)

    def _sums(self, centring: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centred squares of the prediction, products with the PSTH, degrees of freedom, bins; each (N,)."""
        prediction, bins = self.prediction, self.clips.n_bins
        unused = torch.zeros_like(bins)
        if centring == "clip":
            weight = torch.where(bins > 1, bins, unused)
            count, squares, products = (
                weigh(values, self.weights)
                for values in (weight, weight * prediction.variance, weight * prediction.covariance)
            )
            return squares, products, count.clamp(min=1), count
        pooled = self.repeated() if centring == "concat" else self.pooled
        return pooled.xx, pooled.xy, (pooled.count - 1).clamp(min=1), pooled.count
