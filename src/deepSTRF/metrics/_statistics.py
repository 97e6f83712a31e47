"""Sufficient statistics of predictions and repeated responses, shared by one-shot and streamed metrics.

`PairMoments`: means, variances and covariance of two series. `RepeatSummary`: PSTH, signal power and noise
power of single clips; `PooledPowers`: the powers of all clips. Bins that do not count are left out everywhere
(`valid_samples`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepSTRF._validation import check_choice, checked

__all__ = ["psth"]

REDUCTIONS = ("none", "mean", "median", "sum")
CENTRINGS = ("concat", "clip", "published")

# ---- Arguments: shapes, masks, PSTHs, and the reduction over neurons


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless ``reduction`` is a summary of the neuron axis."""
    check_choice("reduction", reduction, REDUCTIONS)


def check_centring(centring: str, *, published: bool = False) -> None:
    """Raise ValueError unless ``centring`` is legal here; "published" only where it has a meaning."""
    check_choice("centring", centring, CENTRINGS if published else CENTRINGS[:2])


def check_tensor(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a real-valued tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} holds real numbers, got dtype {value.dtype}; convert it with .float()")


def check_responses(responses: Tensor, mask: Tensor | None, reduction: str = "none") -> None:
    """Raise unless ``responses`` is a (B, N, R, T) tensor of numbers that ``mask`` fits."""
    check_tensor("responses", responses)
    if responses.ndim != 4:
        raise ValueError(
            f"responses has shape (B, N, R, T), got shape {tuple(responses.shape)}; "
            "add the missing axes with unsqueeze (one clip: responses.unsqueeze(0))"
        )
    check_mask(mask, responses)
    check_reduction(reduction)


def check_clip(responses: Tensor) -> None:
    """Raise unless ``responses`` is the (N, R, T) tensor of one clip."""
    check_tensor("responses", responses)
    if responses.ndim != 3:
        raise ValueError(
            f"responses of one clip has shape (N, R, T), got shape {tuple(responses.shape)}; "
            "dataset.response_block(clip) returns it"
        )


def check_pair(
    pred: Tensor, target: Tensor, mask: Tensor | None, reduction: str = "none", target_name: str = "gt"
) -> None:
    """Raise unless ``pred`` (B, N, 1, T), ``target`` (B, N, R, T) and ``mask`` fit each other."""
    check_tensor("pred", pred)
    check_tensor(target_name, target)
    shapes = f"got shapes {tuple(pred.shape)} and {tuple(target.shape)}"
    if pred.ndim != 4 or target.ndim != 4:
        raise ValueError(f"pred has shape (B, N, 1, T) and {target_name} shape (B, N, R, T); {shapes}")
    if pred.shape[2] != 1:
        raise ValueError(
            f"the R-axis (axis 2) of pred has size 1: pred has shape (B, N, 1, T), got shape "
            f"{tuple(pred.shape)}; a model predicts one rate, not one per repeat"
        )
    if pred.shape[:2] != target.shape[:2] or pred.shape[3] != target.shape[3]:
        raise ValueError(
            f"pred and {target_name} agree in shape on B, N and T; {shapes}. A T that differs usually means "
            "another hop than the dataset's bin width"
        )
    check_mask(mask, target)
    check_reduction(reduction)


def check_mask(mask: Tensor | None, responses: Tensor) -> None:
    """Raise unless ``mask`` is None or a bool tensor that expands to (B, N, 1, T) or to (B, N, R, T)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask is a bool tensor (True = use this bin), got {kind}; convert it with .bool()")
    n_batch, n_neurons, n_repeats, n_bins = responses.shape
    repeats = mask.shape[-2] if mask.ndim > 1 else 1
    if n_repeats > 1 and repeats not in (1, n_repeats):
        repeats = n_repeats  # does not expand, which is the error below
    shape = (n_batch, n_neurons, repeats, n_bins)
    try:
        expanded = mask.expand(shape).shape
    except RuntimeError:
        expanded = torch.Size()
    if expanded != shape:
        raise ValueError(
            f"mask expands to the shape (B, N, 1, T) = {(n_batch, n_neurons, 1, n_bins)} or (B, N, R, T) = "
            f"{tuple(responses.shape)}; got shape {tuple(mask.shape)}. The 'valid_mask' of neural_collate "
            "fits as it is"
        )


def reduce_neurons(values: Tensor, reduction: str) -> Tensor:
    """Summarise (N,) values, skipping NaN: "none" (N,), "mean", "median" (as in NumPy) or "sum" ()."""
    if reduction == "none":
        return values
    if reduction == "mean":
        return torch.nanmean(values)
    if reduction == "median":
        return torch.nanquantile(values, 0.5)
    return torch.nansum(values)


def by_clip(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Split the first axis of rows (B * N, ...) into clips and neurons."""
    return values.reshape(*shape, *values.shape[1:])


def keep_where(condition: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` where the condition holds and NaN elsewhere."""
    return torch.where(condition, values, torch.full_like(values, torch.nan))


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that have no float64 (Apple's mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_complete(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, where one sum finds it out cheaply: in eager mode on the CPU.

    On a GPU the answer would stall the queue, in a compiled graph break it, and in both the masked form is
    cheap. False means "use the masked form", which is always right.
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return False
    return bool(torch.isfinite(values.detach().sum()))


@checked
def psth(responses: Tensor) -> Tensor:
    """Average over repeats: the peri-stimulus time histogram.

    Bins in which a repeat is NaN average the other repeats; a bin without any repeat is NaN.

    Parameters
    ----------
    responses : Tensor, shape (..., R, T)
        Responses in any unit (spikes per bin), NaN where nothing was recorded.

    Returns
    -------
    Tensor, shape (..., 1, T)
        The mean over the repeat axis, in the dtype of ``responses``.

    Raises
    ------
    ValueError
        When there are fewer than two axes.

    Examples
    --------
    >>> import torch
    >>> psth(torch.tensor([[0.0, 2.0, 1.0], [2.0, torch.nan, 1.0]]))
    tensor([[1., 2., 1.]])
    """
    if responses.ndim < 2:
        raise ValueError(f"responses has shape (..., R, T), got shape {tuple(responses.shape)}")
    if not responses.is_floating_point():
        responses = responses.to(torch.get_default_dtype())
    if responses.shape[-2] == 1:
        return responses
    average = responses.mean(-2, keepdim=True)
    if is_complete(average):
        return average
    valid = ~torch.isnan(responses)
    total = torch.where(valid, responses, torch.zeros_like(responses)).sum(-2, keepdim=True)
    return total / valid.sum(-2, keepdim=True)


def mean_over_repeats(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the PSTH (K, T) of (K, R, T) rows, summed in ``dtype`` without a copy of them; NaN: no data."""
    average = rows.mean(1, dtype=dtype)
    if is_complete(average):
        return average
    few = torch.uint8 if rows.shape[1] < 256 else torch.int32  # a sum of bytes is quick
    missing = torch.isnan(rows).view(torch.uint8).sum(1, dtype=few)
    return rows.nansum(1, dtype=dtype) / (rows.shape[1] - missing.to(dtype))


class Target(NamedTuple):
    """What a prediction is compared with."""

    psth: Tensor  # (B, N, 1, T)
    valid: Tensor | None  # bool (B, N, 1, T), None when every bin counts
    repeats: Tensor | None  # (B, N, 1, T) repeats behind each bin, None when the same number everywhere


def resolve_target(gt: Tensor, mask: Tensor | None, *, count_repeats: bool = False) -> Target:
    """Average (B, N, R, T) responses to a PSTH and find the bins that count.

    A mask (with an R axis: of single repeats) replaces the rule "not NaN"; a valid bin without data shows as
    NaN.
    """
    n_batch, n_neurons, n_repeats, n_bins = gt.shape
    if mask is None:
        target = psth(gt)
        valid = None if is_complete(target) else ~torch.isnan(target)
        repeats = None
        if count_repeats and n_repeats > 1 and not is_complete(gt):
            repeats = (~torch.isnan(gt)).sum(2, keepdim=True)
        return Target(target, valid, repeats)
    if mask.ndim > 1 and mask.shape[-2] > 1:
        if n_repeats > 1:
            chosen = mask.expand(n_batch, n_neurons, n_repeats, n_bins)
            count = chosen.sum(2, keepdim=True)
            total = torch.where(chosen, gt, torch.zeros_like(gt)).sum(2, keepdim=True)
            average = total / count.clamp(min=1)
        else:  # the mask of the repeats behind a PSTH computed earlier
            count = mask.expand(n_batch, n_neurons, mask.shape[-2], n_bins).sum(2, keepdim=True)
            average = gt
        return Target(average, count > 0, count if count_repeats else None)
    repeats = (~torch.isnan(gt)).sum(2, keepdim=True) if count_repeats and n_repeats > 1 else None
    return Target(psth(gt), mask.expand(n_batch, n_neurons, 1, n_bins), repeats)


def valid_samples(responses: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return the bool (B, N, R, T) of samples that count, None when all do.

    A mask with an R axis picks samples. One without picks bins, less the repeats that were not recorded
    there; a bin in which none was is kept as NaN so that the mistake shows.
    """
    if mask is None:
        return None if is_complete(responses) else ~torch.isnan(responses)
    if mask.ndim > 1 and mask.shape[-2] > 1:
        if responses.shape[2] > 1:
            return mask.expand(responses.shape)
        mask = mask.any(-2, keepdim=True)  # a mask of repeats that were averaged before: any of them
    recorded = ~torch.isnan(responses)
    bins = mask.expand(*responses.shape[:2], 1, responses.shape[3])
    return bins & (recorded | ~recorded.any(2, keepdim=True))


# ---- Moments of two series that survive large offsets, tiny scales, masks and merging
# Every sum of squares is taken around the chunk's own mean (two passes) in float64, and chunks are merged by
# the update of Chan, Golub and LeVeque (1983, 10.1080/00031305.1983.10483115). Whether a series is constant
# is judged against the rounding error of its own mean, so the verdict does not depend on the unit.


# A series counts as constant when its standard deviation is below this many roundings of its mean: the error
# of a pairwise sum grows with the logarithm of its length, 64 covers any recording.
ROUNDINGS_OF_A_MEAN = 64.0


class Fields:
    """A dataclass of tensors, or of other such dataclasses, that functions apply to field by field."""

    def map(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """Return ``function(field, *fields of the others)`` for every field."""
        columns: Any = zip(*(vars(item).values() for item in (self, *others)), strict=True)
        return type(self)(
            *(
                first.map(function, *rest) if isinstance(first, Fields) else function(first, *rest)
                for first, *rest in columns
            )
        )

    def unflatten(self, *lead: int) -> Self:
        """Split the first axis of every field into the given axes."""
        return self.map(lambda values: values.unflatten(0, lead))


@dataclass(frozen=True)
class PairMoments(Fields):
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
        if valid is None:
            count = torch.full(x.shape[:-1], x.shape[-1], dtype=x.dtype, device=x.device)
        else:
            count = valid.expand(x.shape).sum(-1).to(x.dtype)
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

    def pool(self, axis: int = 0, weights: Tensor | None = None) -> Self:
        """Moments of all chunks along one axis together; along the first as often as ``weights`` (B, S) say.

        Sums are taken about the mean of all chunks: the weights cost no digits where the means are large.
        """
        if weights is not None:
            return self._weighted(weights)
        count = self.count.sum(axis)
        mean_x, mean_y = (pooled_mean(self.count, mean, axis) for mean in (self.mean_x, self.mean_y))
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

    def _weighted(self, weights: Tensor) -> Self:
        anchor_x, anchor_y = (pooled_mean(self.count, mean, 0) for mean in (self.mean_x, self.mean_y))
        gap_x = torch.where(self.count > 0, self.mean_x - anchor_x, 0.0)
        gap_y = torch.where(self.count > 0, self.mean_y - anchor_y, 0.0)
        count = weigh(self.count, weights)
        safe = torch.where(count > 0, count, torch.ones_like(count))
        mean_x, mean_y = (weigh(self.count * gap, weights) / safe for gap in (gap_x, gap_y))
        return type(self)(
            count,
            anchor_x + mean_x,
            anchor_y + mean_y,
            (weigh(self.xx + self.count * gap_x * gap_x, weights) - count * mean_x * mean_x).clamp(min=0),
            (weigh(self.yy + self.count * gap_y * gap_y, weights) - count * mean_y * mean_y).clamp(min=0),
            weigh(self.xy + self.count * gap_x * gap_y, weights) - count * mean_x * mean_y,
        )

    def merge(self, other: Self) -> Self:
        """Moments of both chunks together."""
        return self.map(lambda mine, theirs: torch.stack([mine, theirs]), other).pool(0)

    def correlation(self) -> Tensor:
        """Pearson correlation ``xy / sqrt(xx yy)``; NaN with fewer than two bins or a constant side."""
        varies = ~is_constant(self.xx, self.mean_x, self.count) & ~is_constant(
            self.yy, self.mean_y, self.count
        )
        root = self.xx.sqrt() * self.yy.sqrt()  # of the roots: the product of two tiny sums may underflow
        return keep_where(varies & (self.count > 1), (self.xy / root).clamp(-1.0, 1.0))

    def explained_variance(self, error: Tensor) -> Tensor:
        """``1 - error / yy`` for the sum of squared errors; NaN with fewer than two bins or a constant y."""
        varies = ~is_constant(self.yy, self.mean_y, self.count) & (self.count > 1)
        return keep_where(varies, 1 - error / torch.where(varies, self.yy, torch.ones_like(error)))


def weigh(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over S clips (S, N, ...) -> (N, ...); with ``weights`` (B, S) of each row of them, (B, N, ...)."""
    return values.sum(0) if weights is None else torch.tensordot(weights.to(values), values, 1)


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


def pooled_mean(count: Tensor, mean: Tensor, axis: int) -> Tensor:
    """Count-weighted mean along one axis, relative to one of the means so that an offset costs no digits."""
    total = count.sum(axis)
    if count.shape[axis] == 0:
        return torch.zeros_like(total)
    anchor = mean.gather(axis, count.argmax(axis, keepdim=True))
    gap = torch.where(count > 0, mean - anchor, 0.0)
    return anchor.squeeze(axis) + (count * gap).sum(axis) / total.clamp(min=1)


def is_constant(sum_of_squares: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Return where a centred sum of squares is no larger than the rounding error of the mean explains."""
    rounding = ROUNDINGS_OF_A_MEAN * torch.finfo(mean.dtype).eps * mean.abs()
    return sum_of_squares.sqrt() <= count.sqrt() * rounding


def pooled_moments(pred: Tensor, gt: Tensor, mask: Tensor | None) -> tuple[PairMoments, Tensor]:
    """Compare a prediction with the PSTH: pooled moments and sum of squared differences, each (N,).

    Repeats are averaged in float64, a few rows at a time: float32 would lose the digits behind an offset.
    """
    dtype = accumulator_dtype(gt.device)
    shape = gt.shape[:2]
    rates, rows = pred.detach()[:, :, 0].flatten(0, 1), gt.detach().flatten(0, 1)
    if mask is not None:
        repeats = mask.shape[-2] if mask.ndim > 1 else 1
        mask = mask.expand(*shape, repeats, gt.shape[3]).flatten(0, 1)
    moments, errors = [], []
    for piece in row_blocks(rows):
        samples = None if mask is None else mask[piece].unsqueeze(0)
        rate = rates[piece].to(dtype)
        if samples is None:
            average = mean_over_repeats(rows[piece], dtype)
            valid = None if is_complete(average) else ~torch.isnan(average)
        else:
            target = resolve_target(rows[piece].to(dtype).unsqueeze(0), samples)
            average, valid = target.psth[0, :, 0], None if target.valid is None else target.valid[0, :, 0]
        moments.append(PairMoments.of(rate, average, valid))
        error = rate - average
        if valid is not None:
            error = torch.where(valid, error, torch.zeros_like(error))
        errors.append(error.square().sum(-1))
    first, *others = moments
    pairs = first.map(lambda *values: torch.cat(values), *others).unflatten(*shape)
    return pairs.pool(0), by_clip(torch.cat(errors), (shape[0], shape[1])).sum(0)


# ---- Signal and noise power of repeated responses, clip by clip: one pass over the data, in blocks of rows
# With R repeats of T bins the mean covariance over pairs of distinct repeats follows from two sums of squares
# (Sahani and Linden 2003; Schoppe et al. 2016), without any pair being formed:
#
#     TP = mean over r of Var_t(y_r),   SP = (R Var_t(psth) - TP) / (R - 1),   NP = TP - SP.
#
# That holds whenever the repeats that were recorded were recorded in the same bins. Rows for which they were
# not ("ragged") go through `RepeatPairs`.

# Everything done per block is bound by memory traffic. On one core 2 MiB of float64 stay in the cache (half
# the time of 32 MiB). With several threads every operation ends at a barrier, dear when the machine is
# shared, so that fewer, longer operations are faster: up to 16 MiB. The C library takes blocks of 32 MiB from
# the system anew each time, whose first touch then costs more than all arithmetic.
CPU_BLOCK_BYTES = 2 * 2**20
THREADED_BLOCK_BYTES = 16 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20
BYTES_PER_VALUE = 8

MIN_COMMON_BINS = 2  # a covariance needs two bins


def row_blocks(rows: Tensor) -> list[slice]:
    """Cut the first axis of (K, R, T) rows into blocks that fit a cache: at least one, possibly empty."""
    limit = CPU_BLOCK_BYTES if torch.get_num_threads() == 1 else THREADED_BLOCK_BYTES
    if rows.device.type != "cpu":
        limit = DEVICE_BLOCK_BYTES
    size = max(1, limit // max(1, rows.shape[1] * rows.shape[2] * BYTES_PER_VALUE))
    return [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]


@dataclass(frozen=True)
class ClipPowers(Fields):
    """What clips contribute to signal and noise power, from the bins with at least two repeats.

    Fields are (..., N) but ``drift`` (..., N, R): per repeat the deviation of the clip mean from the PSTH's,
    over sqrt(R (R - 1)), whose squares add up to the noise variance of the clip mean.
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
        if len(records) == 1:
            return records[0]
        widths = {record.drift.shape[-1] for record in records}
        if len(widths) > 1:
            missing = (max(widths) - record.drift.shape[-1] for record in records)
            records = [
                replace(record, drift=pad(record.drift, (0, width)))
                for record, width in zip(records, missing, strict=True)
            ]
        return records[0].map(lambda *values: torch.cat(values), *records[1:])


@dataclass(frozen=True)
class RepeatProducts(Fields):
    """Sums of products of centred repeats, (..., R, R), their means (..., R) and the number of bins (...)."""

    product: Tensor
    mean: Tensor
    count: Tensor

    @classmethod
    def of_centred(cls, centred: Tensor, mean: Tensor, count: Tensor) -> Self:
        """Of (K, R, T) repeats less their means (K, R); constant repeats come out exactly 0."""
        product = centred @ centred.mT
        flat = is_constant(product.diagonal(dim1=1, dim2=2), mean, count.unsqueeze(1))
        if not is_complete(product) or bool(flat.any()):
            product = torch.where(flat.unsqueeze(1) | flat.unsqueeze(2), 0.0, product)
        return cls(product, mean, count)

    def pool(self) -> Self:
        """The same of all clips one after the other, fields (B, N, ...) -> (N, ...)."""
        counts = self.count.unsqueeze(-1).expand_as(self.mean)
        mean = pooled_mean(counts, self.mean, 0)
        gap = torch.where(counts > 0, self.mean - mean, 0.0)
        weighted = (self.count.unsqueeze(-1) * gap).permute(1, 2, 0)
        return type(self)(self.product.sum(0) + weighted @ gap.transpose(0, 1), mean, self.count.sum(0))


@dataclass(frozen=True)
class RepeatSummary:
    """What scoring a prediction needs of the responses; K rows, each one neuron in one clip.

    ``deviation`` (K, T) PSTH minus its mean, zero at bins that don't count; ``valid`` bool (K, T), None when
    all count; ``count``, ``mean``, ``square`` (K,): bins that count, mean of the PSTH, its centred sum of
    squares; ``powers`` (K,); ``ragged`` the rows of ``weights``, in which repeats differ in their bins.
    ``repeats``: products of repeats, where every sample counts and they were asked for.
    """

    deviation: Tensor
    valid: Tensor | None
    count: Tensor
    mean: Tensor
    square: Tensor
    powers: ClipPowers
    ragged: Tensor | None = None
    weights: PairWeights | None = None
    repeats: RepeatProducts | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of what grows with the number of bins."""
        weights = [] if self.weights is None else list(vars(self.weights).values())
        held = [self.deviation, *([] if self.valid is None else [self.valid]), *weights]
        return sum(part.numel() * part.element_size() for part in held)

    def without_bins(self) -> Self:
        """The same without what grows with the number of bins: enough to pool, not to score against."""
        return replace(self, deviation=self.deviation[:, :0].clone(), valid=None, ragged=None, weights=None)

    def take(self, rows: Tensor) -> Self:
        """The summary of some of the K rows, in the order of their indices, each at most once."""
        ragged, weights = self.ragged, self.weights
        if ragged is not None and weights is not None:
            place = torch.full((len(self.count),), -1, device=rows.device)
            place[ragged] = torch.arange(len(ragged), device=rows.device)
            among = place[rows]
            ragged, kept = (among >= 0).nonzero().squeeze(1), among[among >= 0]
            weights = weights.map(lambda values: values.index_select(0, kept))
        return type(self)(
            self.deviation.index_select(0, rows),
            None if self.valid is None else self.valid.index_select(0, rows),
            self.count[rows],
            self.mean[rows],
            self.square[rows],
            self.powers.map(lambda values: values.index_select(0, rows)),
            ragged,
            weights,
        )

    @classmethod
    def of(
        cls,
        responses: Tensor,
        mask: Tensor | None,
        *,
        single: bool = False,
        products: bool = False,
        lengths: Tensor | None = None,
    ) -> Self:
        """Summarise (B, N, R, T) responses, rows in the order (b, n).

        ``single``: keep the deviations of float32 responses as float32, in half the memory. ``products`` of
        repeats, where every sample counts. ``lengths`` (B,): every sample of a clip counts up to its length,
        and the rest is zeros; there is no mask then.
        """
        valid = None if lengths is not None else valid_samples(responses, mask)
        rows = responses.flatten(0, 1)
        pieces = row_blocks(rows)
        row_mask = None if valid is None else valid.flatten(0, 1)
        dtype = accumulator_dtype(rows.device)
        kept = torch.float32 if single and rows.dtype != torch.float64 else dtype
        deviation = rows.new_empty((len(rows), rows.shape[2]), dtype=kept) if len(pieces) > 1 else None
        blocks = []
        own = None if lengths is None else lengths.repeat_interleave(responses.shape[1]).to(dtype)
        for piece in pieces:
            if own is None:
                block = cls._block(rows[piece], None if row_mask is None else row_mask[piece], products)
            else:
                block = cls._of_complete(rows[piece].to(dtype, copy=True), products, own[piece])
            if deviation is not None:
                deviation[piece] = block.deviation
                block = replace(block, deviation=block.deviation[:, :0])
            blocks.append(block)
        if deviation is None:
            deviation = blocks[0].deviation.to(kept)
        count, mean, square = (
            torch.cat([getattr(block, name) for block in blocks]) for name in ("count", "mean", "square")
        )
        powers = ClipPowers.cat([block.powers for block in blocks])
        if valid is None:
            repeats = [block.repeats for block in blocks if block.repeats is not None]
            together = repeats[0].map(lambda *values: torch.cat(values), *repeats[1:]) if repeats else None
            within = [block.valid for block in blocks if block.valid is not None]
            bins = torch.cat(within) if within else None
            return cls(deviation, bins, count, mean, square, powers, repeats=together)
        bins = torch.cat([block.valid for block in blocks if block.valid is not None])
        ragged = [
            block.ragged + piece.start
            for block, piece in zip(blocks, pieces, strict=True)
            if block.ragged is not None
        ]
        weights = [block.weights for block in blocks if block.weights is not None]
        return cls(
            deviation,
            None if bool(bins.all()) else bins,
            count,
            mean,
            square,
            powers,
            torch.cat(ragged) if ragged else None,
            weights[0].map(lambda *values: torch.cat(values), *weights[1:]) if weights else None,
        )

    @classmethod
    def join(cls, summaries: list[Self]) -> Self:
        """Rows of several clips of one length, none of them ragged, to score predictions against."""
        first = summaries[0]
        if len(summaries) == 1:
            return first
        deviation, count, mean, square = (
            torch.cat([getattr(one, name) for one in summaries])
            for name in ("deviation", "count", "mean", "square")
        )
        valid = None
        if any(one.valid is not None for one in summaries):
            whole = torch.ones_like(first.deviation, dtype=torch.bool)
            valid = torch.cat([whole if one.valid is None else one.valid for one in summaries])
        return cls(deviation, valid, count, mean, square, first.powers)

    def split(self, n_clips: int) -> list[Self]:
        """One summary per clip, of rows none of which is ragged."""
        size = len(self.count) // n_clips
        fields = [self.deviation, self.count, self.mean, self.square, *vars(self.powers).values()]
        parts = zip(*(torch.split(values, size) for values in fields), strict=True)
        valid = [None] * n_clips if self.valid is None else torch.split(self.valid, size)
        return [
            type(self)(deviation.clone(), bins, count, mean, square, ClipPowers(*powers))
            for (deviation, count, mean, square, *powers), bins in zip(parts, valid, strict=True)
        ]

    @classmethod
    def _block(cls, responses: Tensor, valid: Tensor | None, products: bool = False) -> Self:
        values = responses.to(accumulator_dtype(responses.device), copy=True)
        if valid is None and responses.shape[2]:
            return cls._of_complete(values, products)
        return cls._of_masked(values, torch.ones_like(values, dtype=torch.bool) if valid is None else valid)

    @classmethod
    def _of_complete(cls, values: Tensor, products: bool, lengths: Tensor | None = None) -> Self:
        """Rows in which every sample up to the ``lengths`` counts; ``values`` (K, R, T) are overwritten."""
        _, n_repeats, n_bins = values.shape
        within = None
        if lengths is None:
            repeat_mean = values.mean(2)
            count = torch.full_like(repeat_mean[:, 0], n_bins)
        else:
            repeat_mean, count = values.sum(2) / lengths.unsqueeze(1), lengths
            within = torch.arange(n_bins, device=values.device) < lengths.unsqueeze(1)
        mean = repeat_mean.mean(1)
        residual = values.sub_(repeat_mean.unsqueeze(2))
        if within is not None:
            residual.masked_fill_(~within.unsqueeze(1), 0.0)
        if n_repeats == 1:  # no pair of repeats, no powers
            deviation, nothing = residual[:, 0], torch.zeros_like(mean)
            square = torch.linalg.vector_norm(deviation, dim=1).square()
            powers = ClipPowers(nothing, nothing, nothing, nothing, nothing, nothing.unsqueeze(1))
            return cls(deviation, within, count, mean, square, powers)
        deviation, gram = residual.mean(1), None
        square = deviation.square().sum(1)
        if products:
            gram = RepeatProducts.of_centred(residual, repeat_mean, count)
            repeat_square = gram.product.diagonal(dim1=1, dim2=2).sum(1)
        else:
            repeat_square = torch.linalg.vector_norm(residual, dim=(1, 2)).square()
        repeats = torch.full_like(mean, n_repeats)
        signal, noise = _powers(square, repeat_square, repeats, count, repeat_mean)
        drift = (repeat_mean - mean.unsqueeze(1)) / (n_repeats * (n_repeats - 1)) ** 0.5
        powers = ClipPowers(count, repeats, mean, signal, noise, drift)
        return cls(deviation, within, count, mean, square, powers, repeats=gram)

    @classmethod
    def _of_masked(cls, values: Tensor, valid: Tensor) -> Self:
        """Rows (K, R, T) in which some samples don't count."""
        zero = torch.zeros((), dtype=values.dtype, device=values.device)
        repeats_per_bin = valid.sum(1).to(values.dtype)
        average = torch.where(valid, values, zero).sum(1) / repeats_per_bin.clamp(min=1)
        bins = repeats_per_bin > 0
        count = bins.sum(1).to(values.dtype)
        mean, deviation = centre(average, bins, count)
        square = deviation.square().sum(1)

        bins_per_repeat = valid.sum(2).to(values.dtype)
        repeat_mean = torch.where(valid, values, zero).sum(2) / bins_per_repeat.clamp(min=1)
        repeat_square = torch.where(valid, values - repeat_mean.unsqueeze(2), zero).square().sum((1, 2))
        repeats = (bins_per_repeat > 0).sum(1).to(values.dtype)
        signal, noise = _powers(square, repeat_square, repeats, count, repeat_mean)

        pairable = repeats_per_bin > 1
        pair_count = pairable.sum(1).to(values.dtype)
        pair_mean = torch.where(pairable, average, zero).sum(1) / pair_count.clamp(min=1)
        ragged = (bins_per_repeat.sum(1) != repeats * count) & (pair_count > 0)
        weights = None
        if bool(ragged.any()):
            pairs = RepeatPairs.of(values[ragged], valid[ragged])
            covariance, difference = pairs.covariance_and_noise()
            signal[ragged], noise[ragged] = pairs.mean(covariance), pairs.mean(difference).clamp(min=0)
            pair_count[ragged] = torch.where(pairs.usable.any((1, 2)), pair_count[ragged], zero)
            weights = pairs.weights()

        scale = torch.where(pairable, (repeats_per_bin * (repeats_per_bin - 1)).clamp(min=1).rsqrt(), zero)
        residual = torch.where(valid, values - average.unsqueeze(1), zero) * scale.unsqueeze(1)
        usable = pair_count > 0
        powers = ClipPowers(
            n_bins=pair_count,
            n_repeats=torch.where(
                usable, (repeats_per_bin * pairable).sum(1) / pair_count.clamp(min=1), zero
            ),
            mean=torch.where(usable, pair_mean, zero),
            signal=torch.where(usable, signal, zero),
            noise=torch.where(usable, noise, zero),
            drift=torch.where(
                usable.unsqueeze(1), residual.sum(2) / pair_count.clamp(min=1).unsqueeze(1), zero
            ),
        )
        rows = None if weights is None else ragged.nonzero().squeeze(1)
        return cls(deviation, bins, count, mean, square, powers, rows, weights)


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


@dataclass(frozen=True)
class RepeatPairs:
    """Covariances between pairs of distinct repeats on the bins that both hold: the path of ragged repeats.

    All pairs of K rows come from a few batched matrix products with the masks. ``values`` (K, R, T)
    deviations from ``offset`` (K, R), the mean of each repeat, taken off first so that no product cancels;
    ``valid`` (K, R, T) as 0 and 1; ``common`` (K, R, R) bins that two repeats share; ``sums`` (K, R, R) sum
    of repeat r over the bins it shares with s; ``usable`` (K, R, R) bool, two distinct repeats that share
    enough bins.
    """

    values: Tensor
    valid: Tensor
    offset: Tensor
    common: Tensor
    sums: Tensor
    usable: Tensor

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
        return torch.where(self.usable, centred / (self.common - 1).clamp(min=1), torch.zeros_like(products))

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
        return (matrix * self.usable).sum((-2, -1)) / self.usable.sum((-2, -1)).clamp(min=1)

    def weights(self) -> PairWeights:
        """Weights that average a prediction's moments over the same pairs."""
        chosen = self.usable.to(self.values.dtype)
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
class PairWeights(Fields):
    """Variance and covariance of a prediction, averaged over pairs of repeats like the signal power.

    The mean over pairs of ``(sum p**2 - (sum p)**2 / n) / (n - 1)`` on common bins is a weighted sum of
    ``p**2`` (``square`` (K, T)) minus one of squared sums (``squared_sum`` (K, R, R)); the covariance with
    the repeats likewise (``product``, ``summed_product``). ``mask`` bool (K, R, T).
    """

    mask: Tensor
    square: Tensor
    product: Tensor
    squared_sum: Tensor
    summed_product: Tensor

    def moments(self, pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of a (K, T) prediction over bins with two repeats; its variance; covariance with the repeats.

        On the pairs and bins of the signal power: all three powers are equal for a noiseless perfect
        prediction.
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


# ---- Signal and noise power of all clips, under each centring, in any order and grouping of clips

# Powers are differences of sums in float64; below this fraction of the total they are rounding error.
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class PooledPowers(Fields):
    """Sums over clips, one value per neuron (N,), ``drift*`` (N, R); of resampled clips (B, N), (B, N, R).

    ``between`` moments of the clip means, each weighing as its bins; ``within_*`` powers times (bins - 1);
    ``clip_*`` powers times bins, over the ``clip_bins`` of clips with two bins or more; ``*_psth_noise`` the
    noise left in the PSTH (noise power over repeats), summed alike; ``spread*`` the noise that clip means
    contain; ``drift*`` what of it all clips of a repeat share.
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
    def of(cls, clips: ClipPowers, weights: Tensor | None = None) -> Self:
        """Pool S clips, fields (S, N), each as often as ``weights`` (B, S) say."""
        bins, repeats = clips.n_bins, clips.n_repeats
        nothing = torch.zeros_like(bins)
        weight = torch.where(bins > 1, bins, nothing)
        freedom = (bins - 1).clamp(min=0)
        psth_noise = clips.noise / repeats.clamp(min=1)
        squared_drift = clips.drift.square().sum(-1)
        return cls(
            between=PairMoments(bins, clips.mean, nothing, nothing, nothing, nothing).pool(0, weights),
            clip_bins=weigh(weight, weights),
            clip_signal=weigh(weight * clips.signal, weights),
            clip_noise=weigh(weight * clips.noise, weights),
            within_signal=weigh(freedom * clips.signal, weights),
            within_noise=weigh(freedom * clips.noise, weights),
            clip_psth_noise=weigh(weight * psth_noise, weights),
            within_psth_noise=weigh(freedom * psth_noise, weights),
            spread=weigh(bins * squared_drift, weights),
            spread_noise=weigh(bins * repeats * squared_drift, weights),
            drift=weigh(bins.unsqueeze(-1) * clips.drift, weights),
            drift_noise=weigh((bins * repeats.sqrt()).unsqueeze(-1) * clips.drift, weights),
        )

    @classmethod
    def of_responses(cls, responses: Tensor, mask: Tensor | None) -> Self:
        """Pool the clips of a (B, N, R, T) tensor."""
        powers = RepeatSummary.of(responses.detach(), mask, single=True).powers
        return cls.of(powers.unflatten(*responses.shape[:2]))

    def merge(self, other: Self) -> Self:
        """Pool two sets of clips; repeats that one of them lacks count as zero drift."""

        def add(mine: Tensor, theirs: Tensor) -> Tensor:
            if mine.ndim == 1:
                return mine + theirs
            width = max(mine.shape[-1], theirs.shape[-1])
            return pad(mine, (0, width - mine.shape[-1])) + pad(theirs, (0, width - theirs.shape[-1]))

        return replace(self.map(add, other), between=self.between.merge(other.between))

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
        """Noise ceiling ``sqrt(SP / Var(psth))``, (N,); NaN without signal."""
        signal, noise = self.powers(centring)
        if centring == "concat":
            within = self.within_signal + self.within_psth_noise
            variance = (within + self.between.xx) / (self.bins - 1).clamp(min=1)
        else:
            variance = (self.clip_signal + self.clip_psth_noise) / self.clip_bins.clamp(min=1)
        reliable = is_reliable(signal, noise)
        share = signal / torch.where(reliable, variance, torch.ones_like(variance))
        return keep_where(reliable, share.clamp(min=0).sqrt())


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
