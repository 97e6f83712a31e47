"""Linear recursions in time, solved exactly and in parallel, and the leaky means built from them.

`first_order_recursion` solves ``y[t] = a y[t - 1] + x[t]`` with one coefficient, `linear_scan` with one that
changes in time (its gradient: Martin & Cundy 2018, doi 10.48550/arXiv.1709.04057). `leaky_mean` is the
running mean of adaptation, with the time constants of Willmore et al. (2016, doi
10.1523/JNEUROSCI.2441-15.2016).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF._validation import checked, outside_level
from deepSTRF.dsp.scales import Frequencies, elementwise

__all__ = [
    "TAU_DOMAIN_HZ",
    "a_to_tau",
    "exponential_moving_average",
    "first_order_recursion",
    "freq_to_tau",
    "leaky_mean",
    "leaky_mean_state",
    "linear_scan",
    "split_non_finite",
    "stagger_rows",
    "tau_to_a",
    "zero_subnormal_taps",
]

#: Frames solved by one triangular product; 16 to 64 cost about the same for 1,000 frames of 34 bands.
BLOCK_SIZE = 32
#: Steps per block on accelerators, where the launch of each small operation costs more than its arithmetic.
SCAN_BLOCK_SIZE = 32
#: Time constant of adaptation in ms at 1 Hz, and its slope per decade (Willmore et al. 2016).
_TAU_AT_1_HZ, _TAU_SLOPE = 500.0, 105.0
#: Frequencies for which `freq_to_tau` follows the published line, 363 to 17 ms; the line itself has no ends
#: and falls below zero at 57.8 kHz. A choice: from the lowest audible sounds to the top of a ferret's
#: hearing.
TAU_DOMAIN_HZ = (20.0, 40_000.0)


def first_order_recursion(
    x: Tensor, coefficient: Tensor | float, initial: Tensor | None = None, *, block_size: int = BLOCK_SIZE
) -> tuple[Tensor, Tensor]:
    """Solve ``y[t] = a * y[t - 1] + x[t]`` along the last axis.

    Blocks of ``block_size`` steps are solved by one lower-triangular product, and the states between blocks
    by the same recursion one level up: no loop over time, no truncation, no overflow. As in the loop, a value
    that is not finite spoils its own step and later ones. ``x`` (..., T) real or complex; ``coefficient`` and
    ``initial`` (``y[-1]``) broadcast against ``x.shape[:-1]``. Returns y (..., T) and its last value, the
    ``initial`` of the next chunk.
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
    x, spoiled = split_non_finite(x)
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
    y = y.flatten(-2)[..., :n_steps] + spoiled.cumsum(-1)
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
    """``m[t] = a m[t - 1] + (1 - a) x[t]`` along the last axis, ``a = exp(-dt / tau)``; m and its last."""
    a = torch.as_tensor(
        coefficient, dtype=None if isinstance(coefficient, Tensor) else x.dtype, device=x.device
    )
    return first_order_recursion((1 - a).unsqueeze(-1) * x, a, initial)


@checked
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
    """``y[t] = a[t] y[t - 1] + x[t]``, one step after the other."""
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
    if n_steps <= SCAN_BLOCK_SIZE:
        return _solve(x, a, start)
    n_blocks = -(-n_steps // SCAN_BLOCK_SIZE)
    missing = n_blocks * SCAN_BLOCK_SIZE - n_steps
    if missing:  # zeros after the end change nothing before it
        filler = x.new_zeros(x.shape[0], missing, *x.shape[2:])
        x, a = torch.cat([x, filler], dim=1), torch.cat([a, filler], dim=1)
    rows = (x.shape[0] * n_blocks, SCAN_BLOCK_SIZE, *x.shape[2:])
    blocks = (x.shape[0], n_blocks, *rows[1:])
    x, a = x.reshape(rows), a.reshape(rows)
    local = _solve(x, a, torch.zeros_like(x[:, 0])).reshape(blocks)
    fading = a.cumprod(dim=1).reshape(blocks)
    ends = _solve(local[:, :, -1], fading[:, :, -1], start)
    before = torch.cat([start.unsqueeze(1), ends[:, :-1]], dim=1).unsqueeze(2)
    return torch.addcmul(local, fading, before).flatten(1, 2)[:, :n_steps]


def freq_to_tau(frequency: Frequencies) -> Frequencies:
    """``500 - 105 log10(Hz)`` ms (Willmore et al. 2016); outside the domain, that of its nearer end."""
    low, high = TAU_DOMAIN_HZ
    values = np.asarray(_plain(frequency))
    if not bool((values > 0).all()):
        raise ValueError(f"frequency must be above 0 Hz, got {float(values.min())}")
    if values.size and (values.min() < low or values.max() > high):
        warnings.warn(
            f"time constants of adaptation are known between {low:g} and {high:g} Hz; frequencies from "
            f"{values.min():g} to {values.max():g} Hz were given, and those outside get the time "
            "constant of the nearer end",
            UserWarning,
            stacklevel=outside_level(),
        )
    return elementwise(frequency, lambda f, xp: _TAU_AT_1_HZ - _TAU_SLOPE * xp.log10(xp.clip(f, low, high)))


def tau_to_a(tau: Frequencies, dt: float = 1.0) -> Frequencies:
    """Share of itself that a leaky mean with time constant ``tau`` keeps in one bin: ``exp(-dt / tau)``."""
    values = np.asarray(_plain(tau))
    if not bool((values > 0).all()):
        raise ValueError(f"tau must be above 0 ms, got {float(values.min()):g}")
    return elementwise(tau, lambda t, xp: xp.exp(-dt / t))


def a_to_tau(a: Frequencies, dt: float = 1.0) -> Frequencies:
    """Time constant of a leaky mean that keeps the share ``a`` of itself in one bin: ``-dt / ln(a)``."""
    values = np.asarray(_plain(a))
    if not bool(((values > 0) & (values < 1)).all()):
        raise ValueError(
            f"a must be above 0 and below 1, got {float(values.min()):g} to {float(values.max()):g}; "
            "tau_to_a(tau_ms, dt) gives decay factors"
        )
    return elementwise(a, lambda factor, xp: -dt / xp.log(factor))


def leaky_mean_state(
    batch: int,
    shape: tuple[int, ...],
    mean_shape: tuple[int, ...] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """State of `leaky_mean` before the first frame, for inputs (B, *shape, T).

    ``"origin"``: the first frame; ``"mean"``: the mean as a deviation from it, of shape (B, *mean_shape)
    where several coefficients meet one input; ``"started"``: whether there was a first frame.
    """
    return {
        "origin": torch.zeros(batch, *shape, device=device, dtype=dtype),
        "mean": torch.zeros(batch, *(mean_shape or shape), device=device, dtype=dtype),
        "started": torch.zeros(batch, *(1 for _ in shape), device=device, dtype=torch.bool),
    }


def leaky_mean(
    x: Tensor, coefficient: Tensor, weight: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Average along the last axis as if the first frame had lasted for ever before: ``m[-1] = x[0]``.

    ``m[t] = a m[t - 1] + (1 - a) x[t]``, with ``weight = 1 - a`` given apart because a caller may have it to
    more digits. Returns the origin ``x[0]`` (B, ..., 1), ``x - origin`` (B, ..., T), ``m - origin`` (B, ...,
    T + 1) from the value before ``x`` on, and the next state. As deviations, small changes keep their digits.
    """
    origin = torch.where(state["started"], state["origin"], x[..., 0]).unsqueeze(-1)
    deviation = x - origin
    after, last = first_order_recursion(weight.unsqueeze(-1) * deviation, coefficient, state["mean"])
    mean = torch.cat([state["mean"].unsqueeze(-1), after], dim=-1)
    following = {"origin": origin[..., 0], "mean": last, "started": torch.ones_like(state["started"])}
    return origin, deviation, mean, following


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


# ---- Tools of the fast convolutions


def stagger_rows(rows: Tensor, step: int) -> Tensor:
    """Shift row ``r`` of (..., R, L) right by ``r * step``, zeros in the gaps: (..., R, L + (R - 1) * step).

    Turns copies of one filter into a Toeplitz matrix, and overlapping pieces of a sum into rows to add.
    """
    if rows.ndim < 2 or step < 0:
        raise ValueError(f"rows need two axes and step >= 0, got shape {tuple(rows.shape)} and step {step}")
    *lead, n_rows, length = rows.shape
    width = length + (n_rows - 1) * step
    # rows padded to width + step, joined and cut every `width` values: each row starts `step` later
    flat = functional.pad(rows, (0, n_rows * step)).reshape(*lead, n_rows * (width + step))
    return flat[..., : n_rows * width].reshape(*lead, n_rows, width)


def split_non_finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` with zeros where it is not finite, and the rest: 0, or what is not finite.

    Products with a triangle of zeros need it: 0 * NaN is NaN, and a bad frame would reach the frames before.
    The rest, summed up from its frame on, goes back into the result.
    """
    clean = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    return clean, x.detach() - clean.detach()


def zero_subnormal_taps(taps: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Set taps to zero whose products with ordinary samples would be subnormal numbers.

    Processors handle subnormal numbers up to a hundred times slower; a Gaussian or exponential tail is full
    of them. The threshold is the smallest normal number over the machine epsilon (1e-31 in float32).
    """
    info = torch.finfo(precision or taps.dtype)
    # exact zeros stay as they are: they cost nothing and keep their gradient
    negligible = (taps.abs() < info.tiny / info.eps) & (taps != 0)
    return torch.where(negligible, torch.zeros_like(taps), taps)
