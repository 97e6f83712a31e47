"""Slaney's gammatone cascade, as the gammatone-gram of the Auditory Toolbox and its ports use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepSTRF.dsp.gammatone import gammatone_length
from deepSTRF.dsp.recursion import first_order_recursion

__all__ = ["slaney_centers", "slaney_impulse_responses", "slaney_length", "slaney_resonators"]

# Glasberg & Moore's bandwidth in Slaney's form: f / q + minimum (Slaney 1993, Apple Technical Report 35)
_EAR_Q, _MIN_BANDWIDTH_HZ, _B_FACTOR = 9.26449, 24.7, 1.019
#: The two pairs of zeros of the cascade (Slaney 1993).
_ZEROS = (
    math.sqrt(3.0 + 2.0**1.5),
    -math.sqrt(3.0 + 2.0**1.5),
    math.sqrt(3.0 - 2.0**1.5),
    -math.sqrt(3.0 - 2.0**1.5),
)


def slaney_centers(f_min: float, f_max: float, n: int) -> Tensor:
    """Return centre frequencies spaced by bandwidth, from ``f_min`` up to one step below ``f_max``.

    Parameters
    ----------
    f_min, f_max : float
        Hertz.
    n : int
        Number of centres.

    Returns
    -------
    Tensor
        (n,) float64 hertz, ascending.

    References
    ----------
    Slaney 1993, Apple Technical Report 35.

    Examples
    --------
    >>> [round(f) for f in slaney_centers(1000.0, 8000.0, 4).tolist()]
    [1000, 1748, 2951, 4887]
    """
    corner = _EAR_Q * _MIN_BANDWIDTH_HZ
    step = torch.arange(n, 0, -1, dtype=torch.float64) / n
    return (f_max + corner) * torch.exp(step * math.log((f_min + corner) / (f_max + corner))) - corner


def slaney_length(center_hz: Tensor, audio_fs: float, tail: float = 1e-12) -> list[int]:
    """Return how many samples of each impulse response hold all but ``tail`` of its energy.

    Parameters
    ----------
    center_hz : Tensor
        (F,) hertz.
    audio_fs : float
        Audio rate in hertz.
    tail : float
        Energy that may be cut off: 1e-12 is an amplitude of 1e-6.

    Returns
    -------
    list of int
        Taps per channel.

    Examples
    --------
    >>> slaney_length(torch.tensor([1000.0]), 48000)
    [1242]
    """
    return gammatone_length(center_hz, audio_fs, tail=tail)


def slaney_impulse_responses(center_hz: Tensor, audio_fs: float, n_taps: int) -> Tensor:
    """Return impulse responses of the four-section cascade, scaled to gain 1 at the centre frequency.

    Parameters
    ----------
    center_hz : Tensor
        (F,) hertz.
    audio_fs : float
        Audio rate in hertz.
    n_taps : int
        Length K in samples.

    Returns
    -------
    Tensor
        (F, K) float64, by age: the first tap meets the newest sample.

    References
    ----------
    Slaney 1993, Apple Technical Report 35.

    Examples
    --------
    >>> slaney_impulse_responses(torch.tensor([1000.0]), audio_fs=16000, n_taps=500).shape
    torch.Size([1, 500])
    """
    pole = _pole(center_hz, audio_fs)
    angle, decay = pole.angle(), -pole.abs().log()
    signal = torch.zeros(len(pole), n_taps, dtype=torch.complex128)
    signal[:, 0] = 1.0
    gain = torch.ones_like(pole)
    turn = torch.polar(torch.ones_like(angle), -angle)  # z^-1 at the centre frequency
    for zero in _ZEROS:
        # the two complex poles of a section, then its numerator T - T exp(-decay) k z^-1
        signal, _ = first_order_recursion(signal, pole)
        signal, _ = first_order_recursion(signal, pole.conj())
        tap = -torch.exp(-decay) * (angle.cos() + zero * angle.sin())
        delayed = torch.nn.functional.pad(signal[:, :-1], (1, 0))
        signal = signal + tap.unsqueeze(-1) * delayed
        gain = gain * (1.0 + tap * turn) / ((1.0 - pole * turn) * (1.0 - pole.conj() * turn))
    return signal.real / gain.abs().unsqueeze(-1)


def slaney_resonators(center_hz: Tensor, audio_fs: float, n_taps: int) -> tuple[Tensor, Tensor]:
    """Return the cascade as poles and coefficients for `deepSTRF.dsp.resonators`.

    The four sections share their pole, so their response is a cubic polynomial times an oscillation. Its
    coefficients are fitted to the response, exactly up to rounding.

    Parameters
    ----------
    center_hz : Tensor
        (F,) hertz.
    audio_fs : float
        Audio rate in hertz.
    n_taps : int
        Samples of the response to fit; most of it should lie within.

    Returns
    -------
    pole : Tensor
        (F,) complex128.
    coefficients : Tensor
        (F, 4) complex128.

    Examples
    --------
    >>> pole, coefficients = slaney_resonators(torch.tensor([1000.0]), audio_fs=16000, n_taps=500)
    >>> age = -torch.arange(9) * pole.abs().log()
    >>> taps = sum(coefficients[0, k] * age**k for k in range(4)) * pole ** torch.arange(9)
    >>> bool(torch.allclose(taps.real, slaney_impulse_responses(torch.tensor([1000.0]), 16000, 9)[0]))
    True
    """
    pole, n_poles = _pole(center_hz, audio_fs), len(_ZEROS)
    time = torch.arange(n_taps, dtype=torch.float64)
    age = -time * pole.abs().log().unsqueeze(-1)
    powers = torch.stack([age**k for k in range(n_poles)], dim=-1)
    basis = powers * torch.polar((-age).exp(), pole.angle().unsqueeze(-1) * time).unsqueeze(-1)
    columns = torch.cat([basis.real, -basis.imag], dim=-1)
    response = slaney_impulse_responses(center_hz, audio_fs, n_taps).unsqueeze(-1)
    # by plain QR: the pivoting default's last bits depend on where its workspace lies, and a model that is
    # built again must be the same model
    solution = torch.linalg.lstsq(columns, response, driver="gels").solution
    real, imaginary = solution.squeeze(-1).split(n_poles, dim=-1)
    return pole, torch.complex(real.contiguous(), imaginary.contiguous())


def _pole(center_hz: Tensor, audio_fs: float) -> Tensor:
    """Return the pole (F,), complex128, that all four sections share with its conjugate."""
    center = center_hz.to("cpu", torch.float64)
    decay = 2.0 * math.pi * _B_FACTOR * (center / _EAR_Q + _MIN_BANDWIDTH_HZ) / float(audio_fs)
    return torch.polar(torch.exp(-decay), 2.0 * math.pi * center / float(audio_fs))
