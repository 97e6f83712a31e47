"""Which bins count: PSTHs, masks and repeats per bin, shared by losses and metrics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

N_AXES = 4


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
