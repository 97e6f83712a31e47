"""What all training losses share: one target, one way to skip bins, one way to average."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ._masking import Target, repeat_validity, resolve_target
from ._reduction import reduce_losses
from ._validation import check_mask, check_pair, check_reduction, check_weighting

LossFunction = TypeVar("LossFunction", bound=Callable[..., Tensor])

TIME_AND_BATCH = (0, 2, 3)
RATE_FLOOR = 1e-8  # spikes per bin; one spike in 100 million bins, below any rate a recording can resolve


def accepts_psth(loss: LossFunction) -> LossFunction:
    """Mark a loss that gives the same value on a PSTH computed beforehand (with default arguments)."""
    loss.accepts_psth = True  # type: ignore[attr-defined]
    return loss


def checked_target(pred: Tensor, gt: Tensor, mask: Tensor | None, reduction: str, weighting: str) -> Target:
    """Validate the arguments every loss shares and collapse ``gt`` to its PSTH."""
    check_pair(pred, gt)
    check_mask(mask, gt)
    check_reduction(reduction)
    check_weighting(weighting)
    return resolve_target(gt, mask, count_repeats=weighting == "repeats")


def at_least_float32(pred: Tensor) -> Tensor:
    """Raise half precision to float32 (sums over a thousand bins need it); leave the rest."""
    return pred.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred


def keep_valid(values: Tensor, target: Target, fill: float = 0.0) -> Tensor:
    """Replace what does not count by ``fill``; gradients there become exactly zero."""
    if target.valid is None:
        return values
    return torch.where(target.valid, values, torch.full((), fill, dtype=values.dtype, device=values.device))


def mean_over_bins(elementwise: Tensor, target: Target, weighting: str, reduction: str) -> Tensor:
    """Average (B, N, 1, T) values, zero where they don't count, per neuron and then over neurons."""
    if target.valid is None and target.repeats is None:  # nothing is missing
        if reduction == "mean":
            return elementwise.mean()
        per_neuron = elementwise.mean(TIME_AND_BATCH)
        return reduce_losses(per_neuron, torch.ones_like(per_neuron, dtype=torch.bool), reduction)
    if weighting == "repeats" and target.repeats is not None:
        weights = keep_valid(target.repeats.to(elementwise.dtype), target)
        elementwise = elementwise * weights
        weight = weights.sum(TIME_AND_BATCH)
    else:
        valid = torch.ones_like(elementwise, dtype=torch.bool) if target.valid is None else target.valid
        weight = valid.sum(TIME_AND_BATCH).to(elementwise.dtype)
    has_data = weight > 0
    per_neuron = elementwise.sum(TIME_AND_BATCH) / torch.where(has_data, weight, torch.ones_like(weight))
    return reduce_losses(per_neuron, has_data, reduction)


def check_rates(pred: Tensor, target: Target) -> None:
    """Raise ValueError when a rate that counts is negative."""
    if bool((keep_valid(pred.detach(), target) < 0).any()):
        raise ValueError(
            "pred holds negative values where the loss counts, and a rate cannot be negative; end the model "
            "in a non-negative activation (softplus), or let it predict log rates and pass log_input=True"
        )


def check_parameter(name: str, value: float | Tensor, n_neurons: int, full: bool) -> None:
    """Raise unless a dispersion or shape is positive, scalar or (N,), and used with ``full`` if learned."""
    if not isinstance(value, Tensor):
        if not value > 0:
            raise ValueError(f"{name} is a number > 0, got {value!r}")
        return
    if value.numel() != 1 and tuple(value.shape) != (n_neurons,):
        raise ValueError(
            f"{name} is a scalar or has shape (N,) = ({n_neurons},), got shape {tuple(value.shape)}"
        )
    if value.requires_grad and not full:
        raise ValueError(
            f"{name} requires a gradient, but without full=True the loss leaves out terms that depend on it; "
            "pass full=True together with single repeats"
        )
    if not torch.compiler.is_compiling() and value.device.type == "cpu" and not bool((value > 0).all()):
        raise ValueError(f"{name} is > 0 for every neuron; map a free parameter through softplus or exp")


def per_neuron(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a parameter as a (1, N or 1, 1, 1) tensor beside ``like``."""
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return tensor.reshape(1, -1, 1, 1)


def mean_over_repeats(values: Tensor, gt: Tensor, mask: Tensor | None, target: Target) -> Tensor:
    """Average a function of single repeats over the repeats that count: (B, N, R, T) to (B, N, 1, T)."""
    valid = repeat_validity(gt, mask)[1]
    if valid is None:
        return keep_valid(values.mean(2, keepdim=True), target)
    total = torch.where(valid, values, torch.zeros_like(values)).sum(2, keepdim=True)
    return keep_valid(total / valid.sum(2, keepdim=True).clamp(min=1), target)
