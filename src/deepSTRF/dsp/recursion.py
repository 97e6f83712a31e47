"""First-order recursions (leaky integrators) in blocks: exact, parallel, with the state carried."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.stagger import stagger_rows, zero_subnormal_taps

__all__ = ["exponential_moving_average", "first_order_recursion"]

#: Frames solved by one triangular product; 16 to 64 cost about the same for 1,000 frames of 34 bands.
BLOCK_SIZE = 32


def first_order_recursion(
    x: Tensor, coefficient: Tensor | float, initial: Tensor | None = None, *, block_size: int = BLOCK_SIZE
) -> tuple[Tensor, Tensor]:
    """Solve ``y[t] = a * y[t - 1] + x[t]`` along the last axis.

    Blocks of ``block_size`` steps are solved by one lower-triangular product, and the states between blocks
    by the same recursion one level up: no loop over time, no truncation, no overflow, and a state that can be
    carried from chunk to chunk.

    Parameters
    ----------
    x : Tensor
        (..., T) input, real or complex, T at least 1.
    coefficient : Tensor or float
        ``a``, broadcast against ``x.shape[:-1]``: one for all, or one per band. ``abs(a) <= 1`` for a stable
        recursion.
    initial : Tensor, optional
        ``y[-1]``, broadcast against ``x.shape[:-1]``; zero when left out.
    block_size : int
        Steps per block, at least 2. It changes the speed, not the result.

    Returns
    -------
    y : Tensor
        (..., T).
    final : Tensor
        (...,) ``y[T - 1]``: the ``initial`` of the next chunk.

    Raises
    ------
    ValueError
        When ``x`` has no time step or the block is shorter than 2.

    Examples
    --------
    >>> y, state = first_order_recursion(torch.ones(4), 0.5)
    >>> y
    tensor([1.0000, 1.5000, 1.7500, 1.8750])
    >>> first_order_recursion(torch.ones(1), 0.5, state)[0]
    tensor([1.9375])
    """
    if x.ndim == 0 or x.shape[-1] == 0 or block_size < 2:
        raise ValueError(
            "x needs at least one time step and block_size at least 2, got shape "
            f"{tuple(x.shape)} and {block_size}"
        )
    a = torch.as_tensor(
        coefficient, dtype=None if isinstance(coefficient, Tensor) else x.dtype, device=x.device
    )
    start = x.new_zeros(()) if initial is None else initial
    if x.shape[-1] == 1:  # a stream of single frames
        y = x + (a * start).unsqueeze(-1)
        return y, y[..., 0]
    n_steps, block = x.shape[-1], min(block_size, x.shape[-1])
    n_blocks = -(-n_steps // block)
    # zeros after the end change nothing before it
    blocks = functional.pad(x, (0, n_blocks * block - n_steps)).reshape(*x.shape[:-1], n_blocks, block)
    powers = _powers(a, block)
    # row j of the triangle holds a^0, a^1, ... from column j on: what step j adds to itself and all later
    # ones
    triangle = stagger_rows(powers.unsqueeze(-2).expand(*powers.shape[:-1], block, block), 1)[..., :block]
    local = blocks @ triangle
    if n_blocks == 1:
        before = torch.broadcast_to(start, x.shape[:-1]).unsqueeze(-1)
    else:
        ends, _ = first_order_recursion(
            local[..., :-1, -1], a * powers[..., -1], start, block_size=block_size
        )
        before = torch.cat([torch.broadcast_to(start, x.shape[:-1]).unsqueeze(-1), ends], dim=-1)
    y = local + before.unsqueeze(-1) * (a.unsqueeze(-1) * powers).unsqueeze(-2)
    y = y.flatten(-2)[..., :n_steps]
    return y, y[..., -1]


def _powers(a: Tensor, count: int) -> Tensor:
    """Return (..., count) powers 0, 1, ... of ``a``, without subnormal numbers."""
    if a.is_complex():  # complex powers of zero are undefined, products are not
        factors = torch.cat(
            [torch.ones_like(a).unsqueeze(-1), a.unsqueeze(-1).expand(*a.shape, count - 1)], dim=-1
        )
        return zero_subnormal_taps(factors.cumprod(-1))
    return zero_subnormal_taps(a.unsqueeze(-1) ** torch.arange(count, dtype=a.dtype, device=a.device))


def exponential_moving_average(
    x: Tensor, coefficient: Tensor | float, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Smooth along the last axis: ``m[t] = a * m[t - 1] + (1 - a) * x[t]``.

    Parameters
    ----------
    x : Tensor
        (..., T).
    coefficient : Tensor or float
        ``a``, between 0 (no memory) and 1, broadcast against ``x.shape[:-1]``; ``exp(-dt / tau)`` for a time
        constant ``tau``.
    initial : Tensor, optional
        ``m[-1]``; zero when left out.

    Returns
    -------
    m : Tensor
        (..., T).
    final : Tensor
        (...,) the last value, to be carried on.

    Examples
    --------
    >>> exponential_moving_average(torch.ones(3), 0.5)[0]
    tensor([0.5000, 0.7500, 0.8750])
    """
    a = torch.as_tensor(
        coefficient, dtype=None if isinstance(coefficient, Tensor) else x.dtype, device=x.device
    )
    return first_order_recursion((1 - a).unsqueeze(-1) * x, a, initial)
