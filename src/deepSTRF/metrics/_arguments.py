"""Which bins count: PSTHs, masks and repeats per bin, shared by losses and metrics."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

# ------------------------------------------------------------------------------
# Checks of what callers hand to a metric: before any arithmetic, with a text that mends the call.


Reduction = Literal["none", "mean", "median", "sum"]
Centring = Literal["concat", "clip", "published"]
Weighting = Literal["bins", "repeats"]
Resample = Literal["both", "repeats", "clips"]

N_AXES = 4  # (B, N, R, T)


def shape_text(tensor: Tensor) -> str:
    """Return the shape of a tensor the way error texts print it."""
    return str(tuple(tensor.shape))


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of the legal words."""
    if value not in legal:
        words = ", ".join(repr(word) for word in legal)
        raise ValueError(f"{name} is one of {words}; got {value!r}")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless ``reduction`` names a way to summarise the neuron axis."""
    check_choice("reduction", reduction, get_args(Reduction))


def check_weighting(weighting: str) -> None:
    """Raise ValueError unless ``weighting`` names a way to weigh the bins of a loss."""
    check_choice("weighting", weighting, get_args(Weighting))


def check_centring(centring: str, *, published: bool = False) -> None:
    """Raise ValueError unless ``centring`` is legal here; ``published`` only where it has a meaning."""
    legal = get_args(Centring) if published else ("concat", "clip")
    check_choice("centring", centring, legal)


def check_tensor(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a real-valued tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} holds real numbers, got dtype {value.dtype}; convert it with .float()")


def check_responses(responses: Tensor, name: str = "responses") -> None:
    """Raise unless ``responses`` is a (B, N, R, T) tensor of numbers."""
    check_tensor(name, responses)
    if responses.ndim != N_AXES:
        raise ValueError(
            f"{name} has shape (B, N, R, T), got shape {shape_text(responses)}; "
            "add the missing axes with unsqueeze (one clip: responses.unsqueeze(0))"
        )


def check_clip(responses: Tensor, name: str = "responses") -> None:
    """Raise unless ``responses`` is the (N, R, T) tensor of one clip."""
    check_tensor(name, responses)
    if responses.ndim != N_AXES - 1:
        raise ValueError(
            f"{name} of one clip has shape (N, R, T), got shape {shape_text(responses)}; "
            "dataset.response_block(clip) returns it"
        )


def check_pair(pred: Tensor, target: Tensor, target_name: str = "gt") -> None:
    """Raise unless ``pred`` is (B, N, 1, T) and ``target`` (B, N, R, T) with the same B, N and T."""
    check_tensor("pred", pred)
    check_tensor(target_name, target)
    if pred.ndim != N_AXES or target.ndim != N_AXES:
        raise ValueError(
            f"pred has shape (B, N, 1, T) and {target_name} shape (B, N, R, T); "
            f"got shapes {shape_text(pred)} and {shape_text(target)}"
        )
    if pred.shape[2] != 1:
        raise ValueError(
            f"the R-axis (axis 2) of pred has size 1: pred has shape (B, N, 1, T), got shape "
            f"{shape_text(pred)}; a model predicts one rate, not one per repeat"
        )
    if pred.shape[:2] != target.shape[:2] or pred.shape[3] != target.shape[3]:
        raise ValueError(
            f"pred and {target_name} agree in shape on B, N and T; got shapes {shape_text(pred)} and "
            f"{shape_text(target)}. A T that differs usually means another hop than the dataset's bin width"
        )


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
        repeats = n_repeats  # will not expand: the error below says so
    shape = (n_batch, n_neurons, repeats, n_bins)
    try:
        expanded = mask.expand(shape).shape
    except RuntimeError:
        expanded = torch.Size()
    if expanded != shape:
        raise ValueError(
            f"mask expands to the shape (B, N, 1, T) = {(n_batch, n_neurons, 1, n_bins)} or (B, N, R, T) = "
            f"{tuple(responses.shape)}; got shape {shape_text(mask)}. The 'valid_mask' of neural_collate "
            "fits as it is"
        )


def check_n_splits(n_splits: int) -> None:
    """Raise ValueError unless at least one half-split is asked for."""
    if n_splits < 1:
        raise ValueError(f"n_splits is a whole number >= 1, got {n_splits!r}; the default is 126")


def check_eps(eps: float) -> None:
    """Raise ValueError unless the rate floor is positive."""
    if not eps > 0:
        raise ValueError(f"eps is a rate > 0 (spikes per bin), got {eps!r}; the default is 1e-8")


def check_rows(responses: Tensor) -> None:
    """Raise unless ``responses`` is (B, R, T)."""
    check_tensor("responses", responses)
    if responses.ndim != 3:
        raise ValueError(
            f"responses has shape (B, R, T): B series of R repeats and T bins; got shape "
            f"{shape_text(responses)}. For (B, N, R, T) use ceiling or normalized_corrcoef"
        )


def check_bootstrap(n_bootstrap: int, confidence: float, resample: str) -> None:
    """Raise unless the options of a bootstrap make sense."""
    if n_bootstrap < 0:
        raise ValueError(f"n_bootstrap is a whole number >= 0 (0: no interval), got {n_bootstrap!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence!r}; the default is 0.95")
    check_choice("resample", resample, get_args(Resample))


def check_bin_width(dt_ms: float) -> None:
    """Raise ValueError unless the bin width is positive."""
    if not dt_ms > 0:
        raise ValueError(f"dt_ms is the bin width in milliseconds, > 0, got {dt_ms!r}; dataset.dt holds it")


def check_segment(segment_bins: int | None, shortest: int) -> None:
    """Raise ValueError when a given segment is too short."""
    if segment_bins is not None and segment_bins < shortest:
        raise ValueError(f"segment_bins is a whole number >= {shortest}, got {segment_bins!r}")


def check_no_nan(pred: Tensor, psth: Tensor, valid: Tensor | None) -> None:
    """Raise ValueError when a bin that counts holds NaN."""
    missing = torch.isnan(pred) | torch.isnan(psth)
    if valid is not None:
        missing = missing & valid
    if bool(missing.any()):
        raise ValueError(
            f"{int(missing.sum())} bins hold NaN, and a spectrum cannot skip bins; pass "
            "mask=~torch.isnan(gt) to use only the segments without gaps"
        )


# ------------------------------------------------------------------------------
# From one number per neuron to what the caller asked for; neurons without a number are skipped.


def reduce_neurons(values: Tensor, reduction: str) -> Tensor:
    """Summarise (N,) values, skipping NaN: "none" (N,), "mean", "median" or "sum" ().

    The median of an even number of neurons is the mean of the middle two, as in NumPy.
    """
    if reduction == "none":
        return values
    if reduction == "mean":
        return torch.nanmean(values)
    if reduction == "median":
        return torch.nanquantile(values, 0.5)
    return torch.nansum(values)


def reduce_losses(losses: Tensor, has_data: Tensor, reduction: str) -> Tensor:
    """Summarise (N,) losses over the neurons with data.

    Unlike `reduce_neurons` a NaN of a neuron that has data is kept: a model that diverged must show. The
    gradient towards a neuron without data is exactly zero.
    """
    nan = torch.full_like(losses, torch.nan)
    if reduction == "none":
        return torch.where(has_data, losses, nan)
    if reduction == "median":
        return torch.nanquantile(torch.where(has_data, losses, nan), 0.5)
    total = torch.where(has_data, losses, torch.zeros_like(losses)).sum()
    return total if reduction == "sum" else total / has_data.sum()


# ------------------------------------------------------------------------------


class Target(NamedTuple):
    """What a prediction is compared with.

    ``psth`` (B, N, 1, T); ``valid`` bool (B, N, 1, T) or None when every bin counts; ``repeats`` (B, N, 1, T)
    repeats behind each bin, or None when that is the same number everywhere.
    """

    psth: Tensor
    valid: Tensor | None
    repeats: Tensor | None


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that have no float64 (Apple's mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_complete(values: Tensor) -> bool:
    """Return whether we can tell cheaply that no value is NaN or infinite.

    One sum instead of an elementwise comparison, which on CPU costs ten times as much. Only asked in eager
    mode on the CPU: on a GPU the answer would stall the queue, in a compiled graph it would break the graph,
    and in both the masked form is cheap. False therefore means "use the masked form", which is always right.
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return False
    return bool(torch.isfinite(values.detach().sum()))


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
    if is_complete(responses):
        return responses.mean(-2, keepdim=True)
    valid = ~torch.isnan(responses)
    total = torch.where(valid, responses, torch.zeros_like(responses)).sum(-2, keepdim=True)
    return total / valid.sum(-2, keepdim=True)


def is_full_mask(mask: Tensor, n_repeats: int) -> bool:
    """Return whether the mask tells repeats apart (its R axis has the size of the responses' R axis)."""
    return mask.ndim > 1 and mask.shape[-2] > 1 and n_repeats > 1


def resolve_target(gt: Tensor, mask: Tensor | None, *, count_repeats: bool = False) -> Target:
    """Collapse (B, N, R, T) responses to a PSTH and say which bins count.

    A given mask replaces the rule "not NaN": a bin it calls valid although nothing was recorded there shows
    as NaN. A mask with an R axis picks single repeats.
    """
    n_batch, n_neurons, n_repeats, n_bins = gt.shape
    if mask is None:
        target = psth(gt)
        valid = None if is_complete(target) else ~torch.isnan(target)
        repeats = None
        if count_repeats and n_repeats > 1 and not is_complete(gt):
            repeats = (~torch.isnan(gt)).sum(2, keepdim=True)
        return Target(target, valid, repeats)
    if is_full_mask(mask, n_repeats):
        chosen = mask.expand(n_batch, n_neurons, n_repeats, n_bins)
        count = chosen.sum(2, keepdim=True)
        total = torch.where(chosen, gt, torch.zeros_like(gt)).sum(2, keepdim=True)
        return Target(total / count.clamp(min=1), count > 0, count if count_repeats else None)
    repeats = None
    if mask.ndim > 1 and mask.shape[-2] > 1:  # the mask of the repeats behind a PSTH computed earlier
        count = mask.expand(n_batch, n_neurons, mask.shape[-2], n_bins).sum(2, keepdim=True)
        return Target(gt, count > 0, count if count_repeats else None)
    valid = mask.expand(n_batch, n_neurons, 1, n_bins)
    if count_repeats and n_repeats > 1:
        repeats = (~torch.isnan(gt)).sum(2, keepdim=True)
    return Target(psth(gt), valid, repeats)


def repeat_validity(responses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return responses and the bool (B, N, R, T) of usable samples, None when all are.

    A mask without an R axis picks bins; in those, repeats that were not recorded are left out, and a bin in
    which no repeat was recorded is kept as NaN so that the mistake shows. A mask with an R axis picks
    samples.
    """
    if mask is None:
        complete = is_complete(responses)
        return responses, None if complete else ~torch.isnan(responses)
    shape = responses.shape
    if is_full_mask(mask, shape[2]):
        return responses, mask.expand(shape)
    if mask.ndim > 1 and mask.shape[-2] > 1:  # a mask of repeats that were averaged before: any of them
        mask = mask.any(-2, keepdim=True)
    bins = mask.expand(shape[0], shape[1], 1, shape[3])
    recorded = ~torch.isnan(responses)
    empty = ~recorded.any(2, keepdim=True)
    return responses, bins & (recorded | empty)
