"""Gradient ascent on a sphere, many stimuli at once, without a step size to choose."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: A step turns the stimulus by at most this angle, towards its gradient; it is halved until the response
#: rises, so many times, and then the search for this stimulus ends.
LARGEST_TURN, HALVINGS = 0.5 * math.pi, 14


def ascend(
    responses: Callable[[Tensor], Tensor], x: Tensor, wanted: list[int], radius: float, n_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn each stimulus towards its gradient until nothing raises its response.

    Returns stimuli, their responses, those of the starts, steps that raised it, whether it ended by itself.
    """
    values, slopes = values_and_slopes(responses, x, wanted)
    first = values.clone()
    steps = torch.zeros(len(wanted), dtype=torch.long, device=x.device)
    active = torch.ones(len(wanted), dtype=torch.bool, device=x.device)
    largest = torch.full_like(values, LARGEST_TURN)
    # within this angle of the gradient a stimulus has arrived: what is left to gain is below the rounding
    arrived = math.sqrt(torch.finfo(x.dtype).eps)
    for _ in range(n_steps):
        unit = x / radius
        aside = slopes - _dot(slopes, unit) * unit
        size = norms(aside)
        # the angle to the gradient: for a linear response the maximum lies there exactly
        angle = torch.atan2(size, _dot(slopes, unit)).flatten(1)[:, 0]
        active &= angle > arrived
        if not bool(active.any()):
            break
        direction = aside / torch.where(size > 0, size, torch.ones_like(size))
        turn = torch.minimum(angle, largest)
        better = torch.zeros_like(active)
        for _ in range(HALVINGS):
            theta = _like(turn, x)
            candidate = radius * (torch.cos(theta) * unit + torch.sin(theta) * direction)
            with torch.no_grad():
                reached = responses(candidate)[range(len(wanted)), wanted]
            rises = active & ~better & (reached > values)
            x = torch.where(_like(rises, x), candidate, x)
            better |= rises
            if bool((better | ~active).all()):
                break
            turn = torch.where(better, turn, 0.5 * turn)
        active &= better
        steps += better
        largest = torch.clamp(2.0 * turn, max=LARGEST_TURN)
        values, slopes = values_and_slopes(responses, x, wanted)
    return x, values, first, steps, ~active


def values_and_slopes(
    responses: Callable[[Tensor], Tensor], x: Tensor, wanted: list[int]
) -> tuple[Tensor, Tensor]:
    """Response (K,) of each neuron to its own stimulus, and the gradient (K, ...)."""
    x = x.detach().requires_grad_()
    own = responses(x)[range(len(wanted)), wanted]
    (slopes,) = torch.autograd.grad(own.sum(), x)
    return own.detach(), torch.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _like((a * b).flatten(1).sum(1), a)


def norms(x: Tensor) -> Tensor:
    return _like(x.flatten(1).norm(dim=1), x)


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))
