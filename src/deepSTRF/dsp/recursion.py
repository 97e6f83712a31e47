"""Adaptation to the recent level: a leaky mean that starts at the first frame, and its time constants."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.scales import Frequencies, _apply

__all__ = [
    "TAU_DOMAIN_HZ",
    "a_to_tau",
    "exponential_moving_average",
    "first_order_recursion",
    "freq_to_tau",
    "leaky_mean",
    "leaky_mean_state",
    "linear_scan",
    "stagger_rows",
    "tau_to_a",
    "zero_subnormal_taps",
]

# ------------------------------------------------------------------------------
# Two small tools that the fast convolutions share: staggered rows and the removal of subnormal taps.


def stagger_rows(rows: Tensor, step: int) -> Tensor:
    """Shift row ``r`` to the right by ``r * step`` and fill the gaps with zeros.

    This turns copies of one filter into a Toeplitz matrix, and overlapping pieces of a sum into rows that can
    be added. It is one padding and one view: cheap, exact and differentiable to any order.

    Parameters
    ----------
    rows : Tensor
        (..., R, L).
    step : int
        Columns between successive rows, at least 0.

    Returns
    -------
    Tensor
        (..., R, L + (R - 1) * step).

    Raises
    ------
    ValueError
        When ``step`` is negative or ``rows`` has fewer than two axes.

    Examples
    --------
    >>> stagger_rows(torch.tensor([[1, 2], [3, 4], [5, 6]]), step=1)
    tensor([[1, 2, 0, 0],
            [0, 3, 4, 0],
            [0, 0, 5, 6]])
    """
    if rows.ndim < 2 or step < 0:
        raise ValueError(f"rows need two axes and step >= 0, got shape {tuple(rows.shape)} and step {step}")
    *lead, n_rows, length = rows.shape
    width = length + (n_rows - 1) * step
    # rows padded to width + step, laid end to end and cut every `width` values: each row starts `step` later
    flat = functional.pad(rows, (0, n_rows * step)).reshape(*lead, n_rows * (width + step))
    return flat[..., : n_rows * width].reshape(*lead, n_rows, width)


def zero_subnormal_taps(taps: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Set taps to zero whose products with ordinary samples would be subnormal numbers.

    Processors handle subnormal numbers up to a hundred times slower; a Gaussian or exponential tail is full
    of them. The threshold is the smallest normal number over the machine epsilon (1e-31 in float32).

    Parameters
    ----------
    taps : Tensor
        Filter taps or powers of a coefficient, any shape, real or complex.
    precision : torch.dtype, optional
        Precision in which they will be used; that of ``taps`` when left out.

    Returns
    -------
    Tensor
        Same shape; the gradient of a zeroed tap is zero.

    Examples
    --------
    >>> zero_subnormal_taps(torch.tensor([1.0, 1e-35]))
    tensor([1., 0.])
    """
    info = torch.finfo(precision or taps.dtype)
    # exact zeros stay as they are: they cost nothing and keep their gradient
    negligible = (taps.abs() < info.tiny / info.eps) & (taps != 0)
    return torch.where(negligible, torch.zeros_like(taps), taps)


# ------------------------------------------------------------------------------
# First-order recursions (leaky integrators) in blocks: exact, parallel, with the state carried.


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


# ------------------------------------------------------------------------------
# Linear recursions whose coefficient changes with time, and their exact gradient.


#: Steps per block on accelerators, where the launch of each small operation costs more than its arithmetic.
SCAN_BLOCK_SIZE = 32


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


# ------------------------------------------------------------------------------

# Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016: time constant in ms against log10 of the frequency
_TAU_AT_1_HZ, _TAU_SLOPE = 500.0, 105.0
#: Frequencies for which `freq_to_tau` follows the published line, 363 to 17 ms; the line itself has no ends
#: and falls below zero at 57.8 kHz. A choice: from the lowest audible sounds to the top of a ferret's
#: hearing.
TAU_DOMAIN_HZ = (20.0, 40_000.0)


def freq_to_tau(frequency: Frequencies) -> Frequencies:
    """Return the time constant of adaptation at a frequency: ``500 - 105 log10(f)`` ms.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Hertz, above 0. Outside `TAU_DOMAIN_HZ` the time constant is that of the domain's nearer end, and a
        warning says so.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Milliseconds; same kind and shape as the input.

    Raises
    ------
    ValueError
        For a frequency that is not above 0.

    References
    ----------
    Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016.

    Examples
    --------
    >>> round(freq_to_tau(500.0), 2), round(freq_to_tau(20_000.0), 2)
    (216.61, 48.39)
    """
    low, high = TAU_DOMAIN_HZ
    values = np.asarray(_plain(frequency))
    if not bool((values > 0).all()):
        raise ValueError(f"frequency must be above 0 Hz, got {float(values.min())}")
    if values.size and (values.min() < low or values.max() > high):
        warnings.warn(
            f"time constants of adaptation are known between {low:g} and {high:g} Hz; frequencies from "
            f"{values.min():g} to {values.max():g} Hz were asked for, and those outside get the time "
            "constant of the nearer end",
            UserWarning,
            stacklevel=2,
        )
    return _apply(frequency, lambda f, xp: _TAU_AT_1_HZ - _TAU_SLOPE * xp.log10(xp.clip(f, low, high)))


def tau_to_a(tau: Frequencies, dt: float = 1.0) -> Frequencies:
    """Return what a leaky mean with time constant ``tau`` keeps of itself in one bin: ``exp(-dt / tau)``.

    Parameters
    ----------
    tau : float, numpy.ndarray or Tensor
        Time constant in ms.
    dt : float
        Bin width in ms.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Between 0 and 1; same kind and shape as ``tau``.

    Raises
    ------
    ValueError
        For a time constant that is not above 0.

    Examples
    --------
    >>> round(tau_to_a(216.61, dt=5.0), 5)
    0.97718
    """
    values = np.asarray(_plain(tau))
    if not bool((values > 0).all()):
        raise ValueError(f"tau must be above 0 ms, got {float(values.min()):g}")
    return _apply(tau, lambda t, xp: xp.exp(-dt / t))


def a_to_tau(a: Frequencies, dt: float = 1.0) -> Frequencies:
    """Return the time constant of a leaky mean that keeps ``a`` of itself in one bin: ``-dt / ln(a)``.

    Parameters
    ----------
    a : float, numpy.ndarray or Tensor
        Decay factor per bin, between 0 and 1.
    dt : float
        Bin width in ms.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Milliseconds; same kind and shape as ``a``.

    Raises
    ------
    ValueError
        For a factor that is not between 0 and 1.

    Examples
    --------
    >>> round(a_to_tau(tau_to_a(80.0, dt=5.0), dt=5.0), 9)
    80.0
    """
    values = np.asarray(_plain(a))
    if not bool(((values > 0) & (values < 1)).all()):
        raise ValueError(
            f"a must be above 0 and below 1, got {float(values.min()):g} to {float(values.max()):g}; "
            "tau_to_a(tau_ms, dt) gives decay factors"
        )
    return _apply(a, lambda factor, xp: -dt / xp.log(factor))


def leaky_mean_state(
    batch: int,
    shape: tuple[int, ...],
    mean_shape: tuple[int, ...] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Return the state of `leaky_mean` before the first frame.

    Parameters
    ----------
    batch : int
        Number of parallel streams, B.
    shape : tuple of int
        Shape of one frame of the input, without the batch.
    mean_shape : tuple of int, optional
        Shape of one frame of the mean where several coefficients meet one input; None is ``shape``.
    device, dtype : optional
        Where and how.

    Returns
    -------
    dict
        ``"origin"`` (B, *shape): the first frame; ``"mean"`` (B, *mean_shape): the mean as a deviation from
        it; ``"started"`` (B, 1, ...): whether there was a first frame.

    Examples
    --------
    >>> leaky_mean_state(2, (34,))["started"].shape
    torch.Size([2, 1])
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

    ``m[t] = a m[t - 1] + (1 - a) x[t]``. This is the infinitely long exponential kernel over an input whose
    first frame is repeated to the left. Everything is returned as the deviation from that frame: a constant
    input then has a mean that is exact, and small changes on a large level keep their digits.

    Parameters
    ----------
    x : Tensor
        (B, ..., T), T at least 1.
    coefficient : Tensor
        ``a``, broadcast against ``x.shape[:-1]``.
    weight : Tensor
        ``1 - a``, given apart because a caller may know it to more digits.
    state : dict
        From `leaky_mean_state` or the previous chunk.

    Returns
    -------
    origin : Tensor
        (B, ..., 1) the first frame of the stream.
    deviation : Tensor
        (B, ..., T) ``x - origin``.
    mean : Tensor
        (B, ..., T + 1) ``m - origin``, from the value before the first frame of ``x`` to that of the last.
    state : dict
        To be handed to the next chunk.

    Examples
    --------
    >>> x, a = torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor(0.5)
    >>> origin, _, mean, _ = leaky_mean(x, a, 1 - a, leaky_mean_state(1, ()))
    >>> (origin + mean).tolist()
    [[1.0, 1.0, 2.0, 2.5]]
    """
    origin = torch.where(state["started"], state["origin"], x[..., 0]).unsqueeze(-1)
    deviation = x - origin
    after, last = first_order_recursion(weight.unsqueeze(-1) * deviation, coefficient, state["mean"])
    mean = torch.cat([state["mean"].unsqueeze(-1), after], dim=-1)
    following = {"origin": origin[..., 0], "mean": last, "started": torch.ones_like(state["started"])}
    return origin, deviation, mean, following


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
