"""Windowed-sinc band-pass filters and their quadrature partners."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sinc_bandpass"]


def sinc_bandpass(low: Tensor, high: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return an ideal band-pass filter and its Hilbert partner at some offsets from its middle, unwindowed.

    The filter is ``(sin(2 pi high n) - sin(2 pi low n)) / (pi n)``, its partner ``(cos(2 pi low n) - cos(2 pi
    high n)) / (pi n)``; together they make the analytic signal of the band, whose magnitude is the envelope
    of the sound in it. Both have gain 1 in the band.

    Parameters
    ----------
    low, high : Tensor
        Band edges in cycles per sample, between 0 and 0.5.
    offset : Tensor
        Samples from the middle of the filter. All three broadcast.

    Returns
    -------
    real, imaginary : Tensor
        Taps. Their derivative with respect to an edge is a plain cosine or sine, without a singularity.

    References
    ----------
    Ravanelli & Bengio 2018, doi 10.1109/SLT.2018.8639585.

    Examples
    --------
    >>> real, imaginary = sinc_bandpass(torch.tensor(0.1), torch.tensor(0.2), torch.tensor([-1.0, 0.0, 1.0]))
    >>> real, imaginary
    (tensor([0.1156, 0.2000, 0.1156]), tensor([-0.1592,  0.0000,  0.1592]))
    """
    middle = offset == 0
    # n = 0 is handled apart: its limit is twice the bandwidth, and dividing by 1 there keeps the gradient
    # finite
    scale = torch.where(middle, torch.zeros_like(offset), 1.0 / (math.pi * torch.where(middle, 1.0, offset)))
    low_phase, high_phase = 2.0 * math.pi * low * offset, 2.0 * math.pi * high * offset
    real = (high_phase.sin() - low_phase.sin()) * scale + torch.where(middle, 2.0 * (high - low), 0.0)
    imaginary = (low_phase.cos() - high_phase.cos()) * scale
    return real, imaginary
