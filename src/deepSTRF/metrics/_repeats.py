"""Signal and noise of repeated responses, clip by clip: one pass over the data, in blocks that fit the cache.

With R repeats of T bins the mean covariance over pairs of distinct repeats follows from two sums of squares
(Sahani and Linden 2003; Schoppe et al. 2016), without any pair being formed:

    TP = mean over r of Var_t(y_r),   SP = (R Var_t(psth) - TP) / (R - 1),   NP = TP - SP.

That holds whenever the repeats that were recorded were recorded in the same bins. Rows for which they were
not ("ragged") go through `_pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ._blocks import row_blocks
from ._masking import accumulator_dtype, repeat_validity
from ._moments import is_constant
from ._pairs import PairBlock, PairWeights


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
