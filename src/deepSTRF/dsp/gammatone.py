"""Gammatone filters, designed in float64: impulse responses, exact recursions, and Slaney's cascade.

The gammatone ``t^(order - 1) exp(-2 pi b t) cos(2 pi f t)`` models the auditory filter (Patterson et al.
1992) with bandwidth after Glasberg & Moore (1990, doi 10.1016/0378-5955(90)90170-T). Slaney's four-section
cascade (1993, Apple Technical Report 35) is the form of the Auditory Toolbox and its gammatonegram. Both are
given as taps and as poles with coefficients for `deepSTRF.dsp.filterbank.resonator_matrices`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.dsp.recursion import first_order_recursion
from deepSTRF.dsp.scales import ERB_bandwidth

__all__ = [
    "gammatone_bandwidth",
    "gammatone_length",
    "gammatone_resonators",
    "gammatone_taps",
    "recursive_gammatone",
    "slaney_centers",
    "slaney_impulse_responses",
    "slaney_resonators",
]

#: Bandwidth in equivalent rectangular bandwidths, and order, of the auditory filter (Patterson et al. 1992).
B_FACTOR, ORDER = 1.019, 4
#: The Fourier grid on which a filter's gain is read is this many times longer than the filter.
_GAIN_GRID = 8
#: Glasberg & Moore's bandwidth in Slaney's form: f / q + minimum.
_EAR_Q, _MIN_BANDWIDTH_HZ = 9.26449, 24.7
#: The two pairs of zeros of Slaney's cascade.
_ZEROS = (
    math.sqrt(3.0 + 2.0**1.5),
    -math.sqrt(3.0 + 2.0**1.5),
    math.sqrt(3.0 - 2.0**1.5),
    -math.sqrt(3.0 - 2.0**1.5),
)


def gammatone_bandwidth(center_hz: Tensor, b_factor: float = B_FACTOR) -> Tensor:
    """``b_factor`` times the ERB in Hz, (F,); envelopes peak ``(order - 1) / (2 pi b)`` s after a click."""
    return b_factor * ERB_bandwidth(center_hz)


def gammatone_length(
    center_hz: Tensor, audio_fs: float, order: int = ORDER, b_factor: float = B_FACTOR, tail: float = 1e-8
) -> list[int]:
    """Samples of each impulse response that hold all but ``tail`` of its energy, one number per channel."""

    def energy_left(x: float) -> float:
        # after time t a Poisson sum with x = 4 pi b t: exp(-x) sum_k x^k / k!, k < 2 order - 1
        return math.exp(-x) * math.fsum(x**k / math.factorial(k) for k in range(2 * order - 1))

    low, high = 0.0, 1.0
    while energy_left(high) > tail:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if energy_left(middle) > tail else (low, middle)
    seconds = high / (4.0 * math.pi * gammatone_bandwidth(center_hz.double(), b_factor))
    return [int(samples) + 1 for samples in (seconds * float(audio_fs)).ceil().tolist()]


@checked
def gammatone_taps(
    center_hz: Tensor, audio_fs: float, n_taps: int, order: int = ORDER, b_factor: float = B_FACTOR
) -> Tensor:
    """Return causal complex gammatone impulse responses whose real part has unit peak gain.

    ``t^(order - 1) exp(-2 pi b t) exp(2 pi j f t)``, sampled from ``t = 0``: the real part is the gammatone,
    the magnitude its envelope.

    Parameters
    ----------
    center_hz : Tensor
        (F,) centre frequencies in hertz.
    audio_fs : float
        Audio rate in hertz.
    n_taps : int
        Length K in samples.
    order : int
        Filter order, at least 1.
    b_factor : float
        As in `gammatone_bandwidth`.

    Returns
    -------
    Tensor
        (F, K) complex128, by age: the first tap meets the newest sample.

    References
    ----------
    Patterson et al. 1992, "Complex sounds and auditory images"; Glasberg & Moore 1990, doi
    10.1016/0378-5955(90)90170-T.

    Examples
    --------
    >>> taps = gammatone_taps(torch.tensor([1000.0]), audio_fs=16000, n_taps=800)
    >>> int(taps.abs().argmax())  # 3 / (2 pi 135.2 Hz) is 56.5 samples
    57
    """
    center = center_hz.to("cpu", torch.float64).unsqueeze(-1)
    seconds = torch.arange(n_taps, dtype=torch.float64) / float(audio_fs)
    decay = 2.0 * math.pi * gammatone_bandwidth(center, b_factor)
    # scaled so that the envelope peaks near 1 whatever the order
    peak = (order - 1) / decay
    envelope = (seconds / peak) ** (order - 1) if order > 1 else torch.ones_like(seconds)
    envelope = envelope * torch.exp(-decay * (seconds - (peak if order > 1 else 0.0)))
    taps = torch.polar(envelope, 2.0 * math.pi * center * seconds)
    return taps / _peak_gain(taps.real).unsqueeze(-1)


def gammatone_resonators(
    center_hz: Tensor, audio_fs: float, n_taps: int, order: int = ORDER, b_factor: float = B_FACTOR
) -> tuple[Tensor, Tensor]:
    """Poles (F,) and coefficients (F, order), complex128, of `gammatone_taps`; ``n_taps`` at least 2."""
    center = center_hz.to("cpu", torch.float64)
    decay = 2.0 * math.pi * gammatone_bandwidth(center, b_factor)
    pole = torch.exp((2j * math.pi * center - decay) / float(audio_fs))
    second = gammatone_taps(center, audio_fs, n_taps, order, b_factor)[:, 1]
    coefficients = torch.zeros(len(center), order, dtype=torch.complex128)
    coefficients[:, -1] = second / pole * (float(audio_fs) / decay) ** (order - 1)
    return pole, coefficients


def _peak_gain(taps: Tensor) -> Tensor:
    """Largest gain of real filters (F, K): the peak of a fine spectrum, refined by a parabola."""
    length = 2 ** math.ceil(math.log2(_GAIN_GRID * taps.shape[-1]))
    level = torch.fft.rfft(taps, n=length).abs().clamp_min(torch.finfo(taps.dtype).tiny).log()
    top = level.argmax(-1, keepdim=True)
    inner = top.clamp(1, level.shape[-1] - 2)
    before, at, after = (level.gather(-1, inner + step) for step in (-1, 0, 1))
    curvature = (2.0 * at - before - after).clamp_min(torch.finfo(taps.dtype).tiny)
    refined = at + (after - before).square() / (8.0 * curvature)
    # at the ends of the axis the largest value stands
    return torch.where(inner == top, refined, level.gather(-1, top)).squeeze(-1).exp()


@checked
def recursive_gammatone(
    x: Tensor,
    center_hz: Tensor,
    audio_fs: float,
    order: int = ORDER,
    b_factor: float = B_FACTOR,
    state: dict[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Filter with endless gammatones: ``order`` equal complex poles, exact to the last digit.

    It needs no kernel and carries its state, so it suits streams and very low frequencies; it agrees with
    `gammatone_taps` up to what those cut off.

    Parameters
    ----------
    x : Tensor
        (B, 1, T_audio) waveform.
    center_hz : Tensor
        (F,) centre frequencies in hertz.
    audio_fs : float
        Audio rate in hertz.
    order : int
        Filter order, at least 1.
    b_factor : float
        As in `gammatone_bandwidth`.
    state : dict, optional
        What the previous chunk returned; silence when left out.

    Returns
    -------
    filtered : Tensor
        (B, F, T_audio) complex: the real part is the gammatone output, the magnitude its envelope.
    state : dict
        ``"poles"`` (order, B, F) and ``"recent"`` (B, F, order - 1), both complex.

    References
    ----------
    Slaney 1993, Apple Technical Report 35; Holdsworth et al. 1988 (the complex one-pole cascade).

    Examples
    --------
    >>> click = torch.zeros(1, 1, 400, dtype=torch.float64)
    >>> click[..., 0] = 1.0
    >>> center = torch.tensor([1000.0])
    >>> filtered, _ = recursive_gammatone(click, center, audio_fs=16000)
    >>> bool(torch.allclose(filtered[0], gammatone_taps(center, 16000, 2000)[:, :400], atol=1e-9))
    True
    """
    center = center_hz.to("cpu", torch.float64)
    length = gammatone_length(center, audio_fs, order, b_factor, tail=1e-15)
    scale = gammatone_taps(center, audio_fs, max(2, *length), order, b_factor)
    pole = torch.exp(
        (2j * math.pi * center - 2.0 * math.pi * gammatone_bandwidth(center, b_factor)) / float(audio_fs)
    )
    # sampled t^(order - 1) p^t is p * (Eulerian polynomial in p / z) / (1 - p / z)^order, times a constant
    numerator = _eulerian(order - 1).unsqueeze(-1) * pole ** torch.arange(order).unsqueeze(-1)
    constant = scale[:, 1] / pole
    kind = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    numerator, pole = (constant * numerator).to(x.device, kind), pole.to(x.device, kind)
    if state is None:
        shape = (x.shape[0], len(center))
        state = {
            "poles": torch.zeros(order, *shape, dtype=kind, device=x.device),
            "recent": torch.zeros(*shape, order - 1, dtype=kind, device=x.device),
        }
    signal = x.to(kind).expand(-1, len(center), -1)
    poles = []
    for before in state["poles"]:
        signal, last = first_order_recursion(signal, pole, before)
        poles.append(last)
    joined = torch.cat([state["recent"], signal], dim=-1)
    size = signal.shape[-1]
    output = sum(
        (
            numerator[k].unsqueeze(-1) * joined[..., order - 1 - k : order - 1 - k + size]
            for k in range(order)
        ),
        start=torch.zeros_like(signal),
    )
    return output, {"poles": torch.stack(poles), "recent": joined[..., size:]}


def _eulerian(degree: int) -> Tensor:
    """Return the taps (degree + 1,) of the numerator of ``sum t^degree p^t z^-t``, in powers of ``p / z``."""
    if degree == 0:
        return torch.ones(1, dtype=torch.float64)
    row = [1.0]
    for n in range(2, degree + 1):
        padded = [0.0, *row, 0.0]
        row = [(k + 1) * padded[k + 1] + (n - k) * padded[k] for k in range(n)]
    return torch.tensor([0.0, *row], dtype=torch.float64)


def slaney_centers(f_min: float, f_max: float, n: int) -> Tensor:
    """``n`` ascending centre frequencies spaced by bandwidth, from ``f_min`` to one step below ``f_max``."""
    corner = _EAR_Q * _MIN_BANDWIDTH_HZ
    step = torch.arange(n, 0, -1, dtype=torch.float64) / n
    return (f_max + corner) * torch.exp(step * math.log((f_min + corner) / (f_max + corner))) - corner


def slaney_impulse_responses(center_hz: Tensor, audio_fs: float, n_taps: int) -> Tensor:
    """Impulse responses (F, n_taps) of the four-section cascade, scaled to gain 1 at the centre frequency."""
    pole = _slaney_pole(center_hz, audio_fs)
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
    """Poles (F,) and coefficients (F, 4), complex128, of the cascade.

    The four sections share their pole, so their response is a cubic polynomial times an oscillation. Its
    coefficients are fitted to ``n_taps`` samples of the response, exactly up to rounding.
    """
    pole, n_poles = _slaney_pole(center_hz, audio_fs), len(_ZEROS)
    time = torch.arange(n_taps, dtype=torch.float64)
    age = -time * pole.abs().log().unsqueeze(-1)
    powers = torch.stack([age**k for k in range(n_poles)], dim=-1)
    basis = powers * torch.polar((-age).exp(), pole.angle().unsqueeze(-1) * time).unsqueeze(-1)
    columns = torch.cat([basis.real, -basis.imag], dim=-1)
    response = slaney_impulse_responses(center_hz, audio_fs, n_taps).unsqueeze(-1)
    # by plain QR: the pivoting default's last bits depend on where its workspace is, and a model that is
    # built again must be the same model
    solution = torch.linalg.lstsq(columns, response, driver="gels").solution
    real, imaginary = solution.squeeze(-1).split(n_poles, dim=-1)
    return pole, torch.complex(real.contiguous(), imaginary.contiguous())


def _slaney_pole(center_hz: Tensor, audio_fs: float) -> Tensor:
    """Pole (F,), complex128, that all four sections share with its conjugate."""
    center = center_hz.to("cpu", torch.float64)
    decay = 2.0 * math.pi * B_FACTOR * (center / _EAR_Q + _MIN_BANDWIDTH_HZ) / float(audio_fs)
    return torch.polar(torch.exp(-decay), 2.0 * math.pi * center / float(audio_fs))
