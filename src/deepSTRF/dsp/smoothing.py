"""Smoothing of responses with a Hanning window of unit gain that copes with missing bins and edges.

The kernel has ``K`` bins, ``K`` the odd number nearest to ``window_ms / dt_ms``, and the shape of
``numpy.hanning(K)`` (whose two end points are zero), divided by its sum. For the 21 ms of the literature:

=====  ==  ================  ==========================================  =====================
dt_ms  K   non-zero weights  weights                                     gain before dividing
=====  ==  ================  ==========================================  =====================
1      21  19                Hanning, 20 ms from zero to zero            10
2      11  9                 Hanning, 20 ms from zero to zero            5
5      5   3                 1/4, 1/2, 1/4                               2
10     3   3                 0.072, 0.856, 0.072 (see below)             1
=====  ==  ================  ==========================================  =====================

Two differences from the published practice. The gain is one at every bin width, so a smoothed response keeps
its unit (spikes per bin) and its mean; the un-normalised kernel multiplied counts by the last column. And
where ``numpy.hanning(K)`` has a single non-zero point although the window is longer than a bin, it would
smooth nothing; there the kernel is the three-bin one with the variance of a Hann window of ``window_ms``,
which continues the wider kernels without a jump. A window of at most one bin leaves the data as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepSTRF._validation import checked_but

__all__ = ["hanning_smooth", "hanning_window"]

#: Standard deviation of a Hann window in units of its full width: sqrt(1/12 - 1/(2 pi^2)).
_HANN_STANDARD_DEVIATION = math.sqrt(1.0 / 12.0 - 1.0 / (2.0 * math.pi**2))


@checked_but("window_ms", "dt_ms")
def hanning_smooth(x: Tensor, window_ms: float, dt_ms: float) -> Tensor:
    """Smooth the last axis with a Hanning window of unit gain; NaN bins are ignored and stay NaN.

    Every output bin is the weighted mean of the bins under the window that exist: weights are renormalised at
    the two edges and around missing bins, so a constant stays that constant everywhere and no bin is pulled
    towards zero. The kernel is symmetric: it looks as far ahead as back. It is meant for responses (targets),
    never for stimuli or predictions.

    Parameters
    ----------
    x : Tensor, shape (..., T)
        Responses in any unit, NaN where a bin is missing; integers become float32.
    window_ms : float
        Length of the window in ms; 21 in the literature. At most one bin leaves the data as they are.
    dt_ms : float
        Bin width in ms.

    Returns
    -------
    Tensor, shape (..., T)
        Smoothed copy, in the unit of ``x``.

    Raises
    ------
    TypeError
        When ``x`` is not a tensor.
    ValueError
        When a width is not a positive number.

    References
    ----------
    Hsu, Borst & Theunissen 2004, 10.1088/0954-898X_15_2_002.

    Examples
    --------
    >>> hanning_smooth(torch.tensor([0.0, 0.0, 4.0, 0.0, 0.0]), window_ms=21.0, dt_ms=5.0)
    tensor([0., 1., 2., 1., 0.])
    >>> hanning_smooth(torch.tensor([3.0, float("nan"), 3.0]), window_ms=21.0, dt_ms=5.0)
    tensor([3., nan, 3.])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch tensor (..., T), got {type(x).__name__}; use torch.as_tensor(x)")
    if not x.is_floating_point():
        x = x.to(torch.float32)
    weights = hanning_window(window_ms, dt_ms, dtype=torch.float64).tolist()
    if len(weights) == 1 or x.numel() == 0:
        return x.clone()
    if not bool(torch.isnan(x.detach().sum())):  # one quick pass; NaN anywhere makes the sum NaN
        there = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        return _filtered(x, weights).div_(_filtered(there, weights))
    missing = torch.isnan(x)
    weight_there = _filtered((~missing).to(x.dtype), weights)
    smooth = _filtered(torch.where(missing, 0.0, x), weights) / weight_there
    return torch.where(missing, torch.nan, smooth)


def hanning_window(window_ms: float, dt_ms: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Non-zero weights (K,) of a Hanning window, which sum to one."""
    for name, value in (("window_ms", window_ms), ("dt_ms", dt_ms)):
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number of milliseconds, got {value!r}")
    bins = window_ms / dt_ms
    if bins <= 1.0:
        return torch.ones(1, dtype=dtype)
    length = 2 * math.ceil(bins / 2.0) - 1  # the nearest odd number; of two as near, the smaller
    if length <= 3:
        side = 0.5 * (_HANN_STANDARD_DEVIATION * bins) ** 2
        return torch.tensor([side, 1.0 - 2.0 * side, side], dtype=torch.float64).to(dtype)
    half = (length - 1) // 2  # zero at this distance from the centre
    distance = torch.arange(1 - half, half, dtype=torch.float64)
    weights = 0.5 + 0.5 * torch.cos(math.pi * distance / half)
    return (weights / weights.sum()).to(dtype)


def _filtered(x: Tensor, weights: list[float]) -> Tensor:
    """Zero-padded 'same' correlation over the last axis with a symmetric kernel, as shifted sums."""
    half, n_bins = len(weights) // 2, x.shape[-1]
    out = x * weights[half]
    for shift in range(1, min(half, n_bins - 1) + 1):
        weight = weights[half + shift]
        out[..., shift:].add_(x[..., :-shift], alpha=weight)
        out[..., :-shift].add_(x[..., shift:], alpha=weight)
    return out
