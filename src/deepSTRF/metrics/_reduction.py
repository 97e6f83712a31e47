"""From one number per neuron to what the caller asked for; neurons without a number are skipped."""

from __future__ import annotations

import torch
from torch import Tensor


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
