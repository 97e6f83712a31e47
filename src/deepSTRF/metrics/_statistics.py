"""From one prediction per clip to correlations: shared by the one-shot metrics and by `ScoreTracker`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepSTRF.metrics._arguments import accumulator_dtype, repeat_validity, resolve_target

# ------------------------------------------------------------------------------
# Means, variances and covariances that survive large offsets, tiny scales, masks and merging.
#
# Every sum of squares is taken around the chunk's own mean (two passes) in float64, and chunks are merged by
# the update of Chan, Golub and LeVeque (1983, 10.1080/00031305.1983.10483115). Whether a series is constant
# is judged against the rounding error of its own mean, so the verdict does not depend on the unit.


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


# ------------------------------------------------------------------------------
# Cutting (K, R, T) rows into blocks that stay inside a core's cache, or inside a GPU's memory.


# Everything done per block is bound by memory traffic. On one core 2 MiB of float64 stay in the cache (half
# the time of 32 MiB). With several threads every operation ends at a barrier, dear when the machine is
# shared: fewer, longer operations then are up to three times faster.
CPU_BLOCK_BYTES = 2 * 2**20
THREADED_BLOCK_BYTES = 32 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20
BYTES_PER_VALUE = 8


def row_blocks(rows: Tensor) -> list[slice]:
    """Slices over the first axis, at least one (possibly empty) slice."""
    limit = CPU_BLOCK_BYTES if torch.get_num_threads() == 1 else THREADED_BLOCK_BYTES
    if rows.device.type != "cpu":
        limit = DEVICE_BLOCK_BYTES
    size = max(1, limit // max(1, rows.shape[1] * rows.shape[2] * BYTES_PER_VALUE))
    return [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]


# ------------------------------------------------------------------------------
# Covariances between pairs of distinct repeats on the bins both hold: the path for ragged repeats.
#
# A block is (K, R, T): K rows, each one neuron in one clip. All pairs of all rows come from a few batched
# matrix products with the masks, so repeats may end early, start late or have gaps, each in its own way.


MIN_COMMON_BINS = 2  # a covariance needs two bins


@dataclass(frozen=True)
class PairBlock:
    """The repeats of K rows as factors of matrix products.

    ``values`` (K, R, T) deviations from ``offset`` (K, R), the mean of each repeat, taken off first so that
    no product cancels; ``valid`` (K, R, T) as 0 and 1; ``common`` (K, R, R) bins two repeats share; ``sums``
    (K, R, R) sum of repeat r over the bins it shares with s; ``pairs`` (K, R, R) bool, True for two distinct
    repeats that share enough bins.
    """

    values: Tensor
    valid: Tensor
    offset: Tensor
    common: Tensor
    sums: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, responses: Tensor, mask: Tensor) -> Self:
        """Prepare (K, R, T) responses with the bool (K, R, T) of the samples that count."""
        valid = mask.to(accumulator_dtype(responses.device))
        zero = torch.zeros((), dtype=valid.dtype, device=valid.device)
        values = torch.where(mask, responses.to(valid.dtype), zero)
        offset = values.sum(-1) / valid.sum(-1).clamp(min=1)
        values = torch.where(mask, values - offset.unsqueeze(-1), zero)
        common = valid @ valid.mT
        distinct = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        return cls(values, valid, offset, common, values @ valid.mT, distinct & (common >= MIN_COMMON_BINS))

    def _centred(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Turn sums of products over common bins into unbiased covariances, zero where there is no pair."""
        centred = products - left * right / self.common.clamp(min=1)
        return torch.where(self.pairs, centred / (self.common - 1).clamp(min=1), torch.zeros_like(products))

    def covariance(self) -> Tensor:
        """(K, R, R) covariance of two repeats on their common bins; their mean is the signal power."""
        return self._centred(self.values @ self.values.mT, self.sums, self.sums.mT)

    def variance(self) -> Tensor:
        """(K, R, R) variance of repeat r on the bins it shares with s; exactly 0 for a constant one."""
        variance = self._centred(self.values.square() @ self.valid.mT, self.sums, self.sums).clamp(min=0)
        flat = is_constant(variance, self.offset.unsqueeze(-1), torch.ones_like(variance))
        return torch.where(flat, torch.zeros_like(variance), variance)

    def covariance_and_noise(self) -> tuple[Tensor, Tensor]:
        """(K, R, R) covariance, and half the variance of the difference, whose mean is the noise power."""
        covariance, variance = self.covariance(), self.variance()
        return covariance, (variance + variance.mT) / 2 - covariance

    def mean(self, matrix: Tensor) -> Tensor:
        """Mean over pairs of distinct repeats, (K,); 0 for a row without any pair."""
        return (matrix * self.pairs).sum((-2, -1)) / self.pairs.sum((-2, -1)).clamp(min=1)

    def weights(self) -> PairWeights:
        """What is needed to average a prediction's moments over the same pairs."""
        chosen = self.pairs.to(self.values.dtype)
        share = chosen / chosen.sum((-2, -1), keepdim=True).clamp(min=1)
        share = share / (self.common - 1).clamp(min=1)
        partners = share @ self.valid
        return PairWeights(
            mask=self.valid.bool(),
            square=(partners * self.valid).sum(1),
            product=(partners * self.values).sum(1),
            squared_sum=share / self.common.clamp(min=1),
            summed_product=share * self.sums.mT / self.common.clamp(min=1),
        )


@dataclass(frozen=True)
class PairWeights:
    """Variance and covariance of a prediction, averaged over pairs of repeats like the signal power.

    The mean over pairs of ``sum p**2 - (sum p)**2 / n`` over common bins, each over ``n - 1``, is a weighted
    sum of ``p**2`` (``square`` (K, T)) minus one of squared sums (``squared_sum`` (K, R, R)); the covariance
    with the repeats likewise (``product``, ``summed_product``). ``mask`` bool (K, R, T) is all that is kept
    per repeat.
    """

    mask: Tensor
    square: Tensor
    product: Tensor
    squared_sum: Tensor
    summed_product: Tensor

    @classmethod
    def cat(cls, records: list[Self]) -> Self:
        """Join the rows of several blocks."""
        return cls(
            **{
                field.name: torch.cat([getattr(record, field.name) for record in records])
                for field in fields(cls)
            }
        )

    def moments(self, pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of a (K, T) prediction over bins with two repeats; its variance; covariance with the repeats.

        On the same pairs and bins as the signal power: a noiseless perfect prediction has variance,
        covariance and signal power equal, whatever is missing.
        """
        zero = torch.zeros((), dtype=pred.dtype, device=pred.device)
        repeats = self.mask.sum(1)
        bins = repeats > 1
        mean = torch.where(bins, pred, zero).sum(-1) / bins.sum(-1).clamp(min=1)
        centred = torch.where(repeats > 0, pred - mean.unsqueeze(-1), zero)
        valid = self.mask.to(pred.dtype)
        sums = (centred.unsqueeze(1) * valid) @ valid.mT
        variance = (self.square * centred * centred).sum(-1) - (self.squared_sum * sums * sums).sum((-2, -1))
        covariance = (self.product * centred).sum(-1) - (self.summed_product * sums).sum((-2, -1))
        return mean, variance.clamp(min=0), covariance


# ------------------------------------------------------------------------------
# Signal and noise of repeated responses, clip by clip: one pass over the data, in blocks that fit the cache.
#
# With R repeats of T bins the mean covariance over pairs of distinct repeats follows from two sums of squares
# (Sahani and Linden 2003; Schoppe et al. 2016), without any pair being formed:
#
#     TP = mean over r of Var_t(y_r),   SP = (R Var_t(psth) - TP) / (R - 1),   NP = TP - SP.
#
# That holds whenever the repeats that were recorded were recorded in the same bins. Rows for which they were
# not ("ragged") go through `_pairs`.


@dataclass(frozen=True)
class ClipParts:
    """What clips contribute to signal and noise power; fields are (..., N) but ``drift`` (..., N, R).

    Only bins with at least two repeats take part. ``n_bins`` of those; ``n_repeats`` the mean number of
    repeats in them; ``mean`` of the PSTH there; ``signal`` and ``noise`` power within the clip; ``drift``,
    per repeat, the deviation of the clip mean from the PSTH's, over sqrt(R (R - 1)): its squares add up to
    the noise variance of the clip mean.
    """

    n_bins: Tensor
    n_repeats: Tensor
    mean: Tensor
    signal: Tensor
    noise: Tensor
    drift: Tensor

    @classmethod
    def cat(cls, records: list[Self]) -> Self:
        """Join records along their first axis; repeats that some lack are filled with zeros."""
        n_repeats = max(record.drift.shape[-1] for record in records)
        joined = {
            field.name: torch.cat([getattr(record, field.name) for record in records])
            for field in fields(cls)
            if field.name != "drift"
        }
        drift = [
            torch.nn.functional.pad(record.drift, (0, n_repeats - record.drift.shape[-1]))
            for record in records
        ]
        return cls(**joined, drift=torch.cat(drift))

    def unflatten(self, *lead: int) -> Self:
        """Split the first axis into the given axes."""
        return type(self)(
            **{field.name: getattr(self, field.name).unflatten(0, lead) for field in fields(self)}
        )

    def clip(self, index: int) -> Self:
        """Parts (N,) of one of S clips."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True)
class ClipTarget:
    """Responses boiled down to what scoring a prediction needs; K rows, each one neuron in one clip.

    ``deviation`` (K, T) PSTH minus its mean, zero at bins that don't count; ``valid`` bool (K, T), None when
    all count; ``count``, ``mean``, ``square`` (K,): bins that count, mean of the PSTH, its centred sum of
    squares; ``parts`` (K,) see `ClipParts`; ``ragged`` the rows of ``pairs``, in which repeats differ in
    their bins.
    """

    deviation: Tensor
    valid: Tensor | None
    count: Tensor
    mean: Tensor
    square: Tensor
    parts: ClipParts
    ragged: Tensor | None
    pairs: PairWeights | None


@dataclass(frozen=True)
class _Block:
    """The same for one block of rows; ``ragged`` is a bool (K,)."""

    deviation: Tensor
    valid: Tensor
    count: Tensor
    mean: Tensor
    square: Tensor
    parts: ClipParts
    ragged: Tensor
    pairs: PairWeights | None


def clip_target(responses: Tensor, mask: Tensor | None) -> ClipTarget:
    """Boil (B, N, R, T) responses down, rows in the order (b, n)."""
    samples, valid = repeat_validity(responses, mask)
    rows = samples.flatten(0, 1)
    row_mask = None if valid is None else valid.flatten(0, 1)
    blocks = [
        _block(rows[piece], None if row_mask is None else row_mask[piece]) for piece in row_blocks(rows)
    ]
    deviation, count, mean, square, ragged = (
        torch.cat([getattr(block, name) for block in blocks])
        for name in ("deviation", "count", "mean", "square", "ragged")
    )
    parts = ClipParts.cat([block.parts for block in blocks])
    if row_mask is None:
        return ClipTarget(deviation, None, count, mean, square, parts, None, None)
    bins = torch.cat([block.valid for block in blocks])
    ragged_rows = ragged.nonzero().squeeze(1)
    weights = [block.pairs for block in blocks if block.pairs is not None]
    pairs = PairWeights.cat(weights) if weights else None
    index = ragged_rows if weights else None
    return ClipTarget(deviation, None if bool(bins.all()) else bins, count, mean, square, parts, index, pairs)


def _block(responses: Tensor, valid: Tensor | None) -> _Block:
    values = responses.to(accumulator_dtype(responses.device), copy=True)
    if valid is None and responses.shape[2]:
        return _dense_block(values)
    everywhere = torch.ones_like(values, dtype=torch.bool)
    return _masked_block(values, everywhere if valid is None else valid)


def _dense_block(values: Tensor) -> _Block:
    """A block in which every sample counts; ``values`` are overwritten."""
    n_rows, n_repeats, n_bins = values.shape
    psth = values.mean(1)
    repeat_mean = values.mean(2)
    mean = repeat_mean.mean(1)
    deviation = psth - mean.unsqueeze(1)
    square = deviation.square().sum(1)
    repeat_square = torch.linalg.vector_norm(values.sub_(repeat_mean.unsqueeze(2)), dim=(1, 2)).square()
    count = torch.full_like(mean, n_bins)
    repeats = torch.full_like(mean, n_repeats)
    signal, noise = _powers(square, repeat_square, repeats, count, repeat_mean)
    pairable = n_repeats > 1
    drift = (repeat_mean - mean.unsqueeze(1)) / max(1.0, n_repeats * (n_repeats - 1)) ** 0.5
    parts = ClipParts(
        n_bins=count * pairable,
        n_repeats=repeats * pairable,
        mean=mean if pairable else torch.zeros_like(mean),
        signal=signal,
        noise=noise,
        drift=drift if pairable else torch.zeros_like(drift),
    )
    everywhere = torch.ones((n_rows, n_bins), dtype=torch.bool, device=values.device)
    rectangular = torch.zeros_like(mean, dtype=torch.bool)
    return _Block(deviation, everywhere, count, mean, square, parts, rectangular, None)


def _powers(
    square: Tensor, repeat_square: Tensor, repeats: Tensor, count: Tensor, repeat_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Signal and noise power from the sums of squares of the PSTH and of the repeats; 0 with one repeat."""
    flat = is_constant(repeat_square, repeat_mean.abs().amax(1), repeats * count)
    zero = torch.zeros_like(square)
    square, repeat_square = torch.where(flat, zero, square), torch.where(flat, zero, repeat_square)
    freedom = (repeats - 1).clamp(min=1) * (count - 1).clamp(min=1)
    signal = (repeats * square - repeat_square / repeats.clamp(min=1)) / freedom
    noise = (repeat_square - repeats * square).clamp(min=0) / freedom
    pairable = repeats > 1
    return torch.where(pairable, signal, zero), torch.where(pairable, noise, zero)


def _masked_block(values: Tensor, valid: Tensor) -> _Block:
    """A block in which some samples don't count."""
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    repeats_per_bin = valid.sum(1).to(values.dtype)
    psth = torch.where(valid, values, zero).sum(1) / repeats_per_bin.clamp(min=1)
    bins = repeats_per_bin > 0
    count, mean, deviation = _centred_psth(psth, bins)
    square = deviation.square().sum(1)

    bins_per_repeat = valid.sum(2).to(values.dtype)
    repeat_mean = torch.where(valid, values, zero).sum(2) / bins_per_repeat.clamp(min=1)
    repeat_square = torch.where(valid, values - repeat_mean.unsqueeze(2), zero).square().sum((1, 2))
    repeats = (bins_per_repeat > 0).sum(1).to(values.dtype)
    signal, noise = _powers(square, repeat_square, repeats, count, repeat_mean)

    pairable = repeats_per_bin > 1
    pair_count, pair_mean, _ = _centred_psth(psth, pairable)
    ragged = (bins_per_repeat.sum(1) != repeats * count) & (pair_count > 0)
    weights = None
    if bool(ragged.any()):
        block = PairBlock.of(values[ragged], valid[ragged])
        covariance, difference = block.covariance_and_noise()
        signal[ragged], noise[ragged] = block.mean(covariance), block.mean(difference).clamp(min=0)
        pair_count[ragged] = torch.where(block.pairs.any((1, 2)), pair_count[ragged], zero)
        weights = block.weights()

    weight = torch.where(pairable, (repeats_per_bin * (repeats_per_bin - 1)).clamp(min=1).rsqrt(), zero)
    residual = torch.where(valid, values - psth.unsqueeze(1), zero) * weight.unsqueeze(1)
    usable = pair_count > 0
    parts = ClipParts(
        n_bins=pair_count,
        n_repeats=torch.where(usable, (repeats_per_bin * pairable).sum(1) / pair_count.clamp(min=1), zero),
        mean=torch.where(usable, pair_mean, zero),
        signal=torch.where(usable, signal, zero),
        noise=torch.where(usable, noise, zero),
        drift=torch.where(usable.unsqueeze(1), residual.sum(2) / pair_count.clamp(min=1).unsqueeze(1), zero),
    )
    return _Block(deviation, bins, count, mean, square, parts, ragged, weights)


def _centred_psth(psth: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of bins, mean over them, and the deviation from it (zero elsewhere)."""
    zero = torch.zeros((), dtype=psth.dtype, device=psth.device)
    count = bins.sum(1).to(psth.dtype)
    mean = torch.where(bins, psth, zero).sum(1) / count.clamp(min=1)
    return count, mean, torch.where(bins, psth - mean.unsqueeze(1), zero)


# ------------------------------------------------------------------------------
# Pooling clips: signal and noise power under each centring, in any order and grouping of clips.


# Powers are differences of sums in float64; below this fraction of the total they are rounding error.
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class RepeatTotals:
    """Sums over clips, one value per neuron (N,), ``drift*`` (N, R).

    ``between`` moments of the clip means, each weighing as its bins; ``within_*`` powers times (bins - 1);
    ``clip_*`` powers times bins, over the ``clip_bins`` of clips with two bins or more; ``*_psth_noise`` the
    noise left in the PSTH (noise power over repeats), summed alike; ``spread*`` the noise that clip means
    carry; ``drift*`` what of it all clips of a repeat share.
    """

    between: PairMoments
    clip_bins: Tensor
    clip_signal: Tensor
    clip_noise: Tensor
    within_signal: Tensor
    within_noise: Tensor
    clip_psth_noise: Tensor
    within_psth_noise: Tensor
    spread: Tensor
    spread_noise: Tensor
    drift: Tensor
    drift_noise: Tensor

    @classmethod
    def of(cls, parts: ClipParts) -> Self:
        """Pool the parts of S clips, fields (S, N)."""
        bins, repeats = parts.n_bins, parts.n_repeats
        nothing = torch.zeros_like(bins)
        weight = torch.where(bins > 1, bins, nothing)
        freedom = (bins - 1).clamp(min=0)
        psth_noise = parts.noise / repeats.clamp(min=1)
        squared_drift = parts.drift.square().sum(-1)
        return cls(
            between=PairMoments(bins, parts.mean, nothing, nothing, nothing, nothing).pool(0),
            clip_bins=weight.sum(0),
            clip_signal=(weight * parts.signal).sum(0),
            clip_noise=(weight * parts.noise).sum(0),
            within_signal=(freedom * parts.signal).sum(0),
            within_noise=(freedom * parts.noise).sum(0),
            clip_psth_noise=(weight * psth_noise).sum(0),
            within_psth_noise=(freedom * psth_noise).sum(0),
            spread=(bins * squared_drift).sum(0),
            spread_noise=(bins * repeats * squared_drift).sum(0),
            drift=(bins.unsqueeze(-1) * parts.drift).sum(0),
            drift_noise=((bins * repeats.sqrt()).unsqueeze(-1) * parts.drift).sum(0),
        )

    def merge(self, other: Self) -> Self:
        """Totals of both sets of clips."""
        n_repeats = max(self.drift.shape[-1], other.drift.shape[-1])
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in (
                "clip_bins",
                "clip_signal",
                "clip_noise",
                "within_signal",
                "within_noise",
                "clip_psth_noise",
                "within_psth_noise",
                "spread",
                "spread_noise",
            )
        }
        for name in ("drift", "drift_noise"):
            mine, theirs = getattr(self, name), getattr(other, name)
            sums[name] = pad(mine, (0, n_repeats - mine.shape[-1])) + pad(
                theirs, (0, n_repeats - theirs.shape[-1])
            )
        return type(self)(between=self.between.merge(other.between), **sums)

    @property
    def bins(self) -> Tensor:
        """Bins with at least two repeats, (N,)."""
        return self.between.count

    def powers(self, centring: str) -> tuple[Tensor, Tensor]:
        """Signal and noise power (N,), NaN without a clip to estimate them on.

        "clip" (and "published"): bin-weighted mean of the clips' own. "concat": on the concatenated clips;
        what the clip means owe to noise is taken off, from the pairs of distinct repeats as within a clip.
        """
        if centring != "concat":
            known = self.clip_bins > 0
            bins = self.clip_bins.clamp(min=1)
            return keep_where(known, self.clip_signal / bins), keep_where(known, self.clip_noise / bins)
        bins = self.bins.clamp(min=1)
        freedom = (bins - 1).clamp(min=1)
        mean_noise = self.spread - self.drift.square().sum(-1) / bins
        signal = (self.within_signal + self.between.xx - mean_noise) / freedom
        drift_noise = (self.spread_noise - self.drift_noise.square().sum(-1) / bins).clamp(min=0)
        noise = (self.within_noise + drift_noise) / freedom
        known = self.bins > 1
        return keep_where(known, signal), keep_where(known, noise)

    def ceiling(self, centring: str) -> Tensor:
        """Square root of the signal's share in the variance of the PSTH, (N,); NaN without signal."""
        signal, noise = self.powers(centring)
        if centring == "concat":
            within = self.within_signal + self.within_psth_noise
            variance = (within + self.between.xx) / (self.bins - 1).clamp(min=1)
        else:
            variance = (self.clip_signal + self.clip_psth_noise) / self.clip_bins.clamp(min=1)
        reliable = is_reliable(signal, noise)
        share = signal / torch.where(reliable, variance, torch.ones_like(variance))
        return keep_where(reliable, share.clamp(min=0).sqrt())


def repeat_totals(responses: Tensor, mask: Tensor | None) -> RepeatTotals:
    """Pool the clips of a (B, N, R, T) tensor."""
    target = clip_target(responses, mask)
    return RepeatTotals.of(target.parts.unflatten(responses.shape[0], responses.shape[1]))


def signal_to_noise(signal: Tensor, noise: Tensor) -> Tensor:
    """Ratio of the powers: infinite without noise, NaN without any variance at all."""
    total = signal.abs() + noise
    noiseless = noise <= NEGLIGIBLE * total
    ratio = signal / torch.where(noiseless, torch.ones_like(noise), noise)
    limit = torch.where(signal > 0, torch.full_like(ratio, torch.inf), torch.full_like(ratio, torch.nan))
    return torch.where(noiseless, limit, ratio)


def is_reliable(signal: Tensor, noise: Tensor) -> Tensor:
    """Return where the signal power is positive beyond rounding error."""
    return signal > NEGLIGIBLE * (signal.abs() + noise)


# ------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------
# Scores from statistics.


@dataclass(frozen=True)
class ScoreStatistics:
    """All that the scores of a model need to know about its predictions and the responses.

    Parameters
    ----------
    moments : PredictionMoments, fields (S, N)
        Moments of the predictions against S clips of N neurons.
    parts : ClipParts, fields (S, N)
        Signal and noise power of those clips.
    totals : RepeatTotals, fields (N,)
        The same, pooled over clips.
    centring : {"concat", "clip", "published"}
        How ``cc_norm`` is centred.
    reliability : mapping of str to Tensor, shape (N,)
        Columns of `neuron_quality` (``snr``, ``ccmax``, ...); empty where only the predictions are scored.

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

    moments: PredictionMoments
    parts: ClipParts
    totals: RepeatTotals
    centring: str = "concat"
    reliability: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def pooled(self) -> PairMoments:
        """Moments of predictions and PSTHs on the concatenated clips, fields (N,)."""
        return self.moments.pooled()

    @cached_property
    def error(self) -> Tensor:
        """Sum of squared differences from the PSTH, (N,)."""
        return squared_error(self.pooled)

    def cc_norm(self, centring: str) -> Tensor:
        """Noise-corrected correlation, (N,); the raw one where no bin was repeated."""
        return noise_corrected(self.moments, self.parts, self.totals, centring)
