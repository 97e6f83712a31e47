"""Linear recursions whose coefficient changes with time, and their exact gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["linear_scan"]

#: Steps per block on accelerators, where the launch of each small operation costs more than its arithmetic.
BLOCK_SIZE = 32


def linear_scan(x: Tensor, coefficient: Tensor, initial: Tensor | None = None) -> Tensor:
    """Solve ``y[t] = a[t] * y[t - 1] + x[t]`` along axis 1.

    For a coefficient that does not change with time, `first_order_recursion` is faster. Here the steps are
    taken one by one on a CPU, and in blocks (all blocks at once, then their ends) elsewhere; nothing is
    divided and no logarithm taken, so coefficients of zero are exact and nothing overflows. The gradient is
    the same recursion run backwards in time: it keeps ``a`` and ``y`` and no graph of T steps.

    Parameters
    ----------
    x : Tensor
        (B, T, ...) input, T at least 1.
    coefficient : Tensor
        ``a``, of the shape of ``x``; magnitudes up to 1 for a stable recursion.
    initial : Tensor, optional
        (B, ...) ``y[-1]``; zero when left out.

    Returns
    -------
    Tensor
        (B, T, ...); its last frame is the ``initial`` of the next chunk.

    Raises
    ------
    ValueError
        When the shapes disagree or there is no time step.

    References
    ----------
    Blelloch 1990, "Prefix sums and their applications", CMU-CS-90-190; Martin & Cundy 2018, doi
    10.48550/arXiv.1709.04057 (the gradient).

    Examples
    --------
    >>> linear_scan(torch.ones(1, 4), torch.tensor([[0.5, 0.5, 0.0, 1.0]]))
    tensor([[1.0000, 1.5000, 1.0000, 2.0000]])
    """
    if x.ndim < 2 or x.shape[1] == 0 or x.shape != coefficient.shape:
        raise ValueError(
            "x and coefficient need one shape (B, T, ...) with at least one time step, got "
            f"{tuple(x.shape)} and {tuple(coefficient.shape)}"
        )
    start = torch.zeros_like(x[:, 0]) if initial is None else initial
    if start.shape != x[:, 0].shape:
        raise ValueError(f"initial must be {tuple(x[:, 0].shape)}, got {tuple(start.shape)}")
    if x.shape[1] == 1:  # a stream of single frames
        return x + coefficient * start.unsqueeze(1)
    if torch.compiler.is_compiling():  # a compiler derives the gradient itself, and writes loops out
        return _solve_in_blocks(x, coefficient, start)
    return _Scan.apply(x, coefficient, start)  # type: ignore[no-any-return, no-untyped-call]


class _Scan(torch.autograd.Function):
    """``y[t] = a[t] y[t - 1] + x[t]``; its gradient is `_AdjointScan`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor, start: Tensor) -> Tensor:
        return (_solve if x.device.type == "cpu" else _solve_in_blocks)(x, a, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, start, y = ctx.saved_tensors
        adjoint: Tensor = _AdjointScan.apply(grad, a)  # type: ignore[no-untyped-call]
        before = torch.cat([start.unsqueeze(1), y[:, :-1]], dim=1)
        return adjoint, adjoint * before, adjoint[:, 0] * a[:, 0]


class _AdjointScan(torch.autograd.Function):
    """``g[t] = a[t + 1] g[t + 1] + x[t]`` from the last frame backwards; its gradient is `_Scan`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, a: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return _solve_backwards(x, a)
        later = torch.cat([torch.zeros_like(a[:, :1]), a.flip(1)[:, :-1]], dim=1)
        return _solve_in_blocks(x.flip(1), later, torch.zeros_like(x[:, 0])).flip(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, g = ctx.saved_tensors
        adjoint: Tensor = _Scan.apply(grad, a, torch.zeros_like(grad[:, 0]))  # type: ignore[no-untyped-call]
        before = torch.cat([torch.zeros_like(grad[:, :1]), adjoint[:, :-1]], dim=1)
        return adjoint, before * g


def _solve(x: Tensor, a: Tensor, start: Tensor) -> Tensor:
    """One step after the other."""
    y, frames = start, []
    for x_now, a_now in zip(x.unbind(1), a.unbind(1), strict=True):
        y = torch.addcmul(x_now, a_now, y)
        frames.append(y)
    return torch.stack(frames, dim=1)


def _solve_backwards(x: Tensor, a: Tensor) -> Tensor:
    """``g[t] = a[t + 1] g[t + 1] + x[t]``, one step after the other."""
    inputs, factors = x.unbind(1), a.unbind(1)
    g, frames = inputs[-1], [inputs[-1]]
    for t in range(len(inputs) - 2, -1, -1):
        g = torch.addcmul(inputs[t], factors[t + 1], g)
        frames.append(g)
    return torch.stack(frames[::-1], dim=1)


def _solve_in_blocks(x: Tensor, a: Tensor, start: Tensor) -> Tensor:
    """All blocks from zero at once, then their ends one after the other, then what each block inherits."""
    n_steps = x.shape[1]
    if n_steps <= BLOCK_SIZE:
        return _solve(x, a, start)
    n_blocks = -(-n_steps // BLOCK_SIZE)
    missing = n_blocks * BLOCK_SIZE - n_steps
    if missing:  # zeros after the end change nothing before it
        filler = x.new_zeros(x.shape[0], missing, *x.shape[2:])
        x, a = torch.cat([x, filler], dim=1), torch.cat([a, filler], dim=1)
    rows = (x.shape[0] * n_blocks, BLOCK_SIZE, *x.shape[2:])
    blocks = (x.shape[0], n_blocks, *rows[1:])
    x, a = x.reshape(rows), a.reshape(rows)
    local = _solve(x, a, torch.zeros_like(x[:, 0])).reshape(blocks)
    fading = a.cumprod(dim=1).reshape(blocks)
    ends = _solve(local[:, :, -1], fading[:, :, -1], start)
    before = torch.cat([start.unsqueeze(1), ends[:, :-1]], dim=1).unsqueeze(2)
    return torch.addcmul(local, fading, before).flatten(1, 2)[:, :n_steps]
