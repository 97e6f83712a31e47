"""Complex Gabor filters: a Gaussian envelope on a complex carrier."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepSTRF.dsp.stagger import zero_subnormal_taps

__all__ = ["gabor_taps", "gaussian_mass"]


def gabor_taps(center: Tensor, sigma: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of ``exp(-offset^2 / (2 sigma^2)) exp(j center offset)``, unnormalised.

    Parameters
    ----------
    center : Tensor
        Centre frequency in radians per sample.
    sigma : Tensor
        Standard deviation of the envelope in samples. The passband's standard deviation is ``1 / sigma``.
    offset : Tensor
        Samples from the middle of the envelope; whole numbers or not. All three broadcast.

    Returns
    -------
    real, imaginary : Tensor
        Taps; those too small to matter are exactly zero.

    References
    ----------
    Zeghidour et al. 2021, doi 10.48550/arXiv.2101.08596.

    Examples
    --------
    >>> real, imaginary = gabor_taps(torch.tensor(math.pi), torch.tensor(1.0), torch.tensor([0.0, 1.0]))
    >>> real
    tensor([ 1.0000, -0.6065])
    """
    envelope = zero_subnormal_taps(torch.exp(-0.5 * (offset / sigma).square()))
    phase = center * offset
    return envelope * phase.cos(), envelope * phase.sin()


def gaussian_mass(sigma: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return the sum of ``exp(-n^2 / (2 sigma^2))`` over ``-before <= n <= after``, in closed form.

    Parameters
    ----------
    sigma : Tensor
        Standard deviation in samples, at least about 1 (the relative error is ``2 exp(-2 (pi sigma)^2)``).
    before, after : Tensor
        Samples on either side of the middle.

    Returns
    -------
    Tensor
        The sum: the gain of a Gabor filter for a complex tone at its centre.

    Examples
    --------
    >>> round(float(gaussian_mass(torch.tensor(10.0), torch.tensor(40), torch.tensor(40))), 3)
    25.065
    """
    # each sample stands for half a sample on either side of it
    scale = 1.0 / (math.sqrt(2.0) * sigma)
    sides = torch.erf((before + 0.5) * scale) + torch.erf((after + 0.5) * scale)
    return math.sqrt(math.pi / 2.0) * sigma * sides
