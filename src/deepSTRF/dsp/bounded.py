"""Smooth maps from free parameters to legal values, so that no learned value can stick at a bound."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bounded_shift", "mel_distance", "shift_in_mel"]


def bounded_shift(free: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """Map any number to a shift between ``-lower`` and ``upper``: itself near zero, smooth everywhere.

    ``u / sqrt(1 + (u / limit)^2)`` with the limit of the side that ``u`` lies on. The slope at 0 is 1, the
    second derivative is continuous, and the slope far out falls as a power, never to zero: unlike a clamp or
    a sigmoid the map has no dead end for an optimiser.

    Parameters
    ----------
    free : Tensor
        Unbounded parameter.
    lower, upper : Tensor or float
        Largest shift down and up, both above 0; they broadcast.

    Returns
    -------
    Tensor
        Shift, strictly inside the limits up to rounding.

    Examples
    --------
    >>> bounded_shift(torch.tensor([-1000.0, 0.0, 0.1, 1000.0]), 1.0, 2.0)
    tensor([-1.0000,  0.0000,  0.0999,  2.0000])
    """
    down = torch.as_tensor(lower, dtype=free.dtype, device=free.device)
    up = torch.as_tensor(upper, dtype=free.dtype, device=free.device)
    limit = torch.where(free > 0, up, down)
    return free / torch.sqrt(1.0 + (free / limit).square())


#: Corner of the HTK mel scale (see `deepSTRF.dsp.Hz_to_mel`).
_MEL_CORNER_HZ = 700.0


def mel_distance(start_hz: Tensor, stop_hz: Tensor | float) -> Tensor:
    """Return how far two frequencies are apart on the mel scale, in natural-log units of ``700 + f``.

    Parameters
    ----------
    start_hz, stop_hz : Tensor
        Hertz.

    Returns
    -------
    Tensor
        ``ln((700 + stop) / (700 + start))``: mel divided by 1127.

    Examples
    --------
    >>> distance = mel_distance(torch.tensor(500.0), 1000.0)
    >>> round(float(shift_in_mel(torch.tensor(500.0), distance)), 2)
    1000.0
    """
    return torch.log((_MEL_CORNER_HZ + stop_hz) / (_MEL_CORNER_HZ + start_hz))


def shift_in_mel(start_hz: Tensor, distance: Tensor) -> Tensor:
    """Move frequencies along the mel scale.

    Parameters
    ----------
    start_hz : Tensor
        Hertz.
    distance : Tensor
        As `mel_distance` returns it; zero gives back ``start_hz`` to the last digit.

    Returns
    -------
    Tensor
        Hertz.

    Examples
    --------
    >>> shift_in_mel(torch.tensor(60.0), torch.tensor(0.0))
    tensor(60.)
    """
    return start_hz + (_MEL_CORNER_HZ + start_hz) * torch.expm1(distance)
