"""Framing of audio into neural bins, analysis windows, and filter shapes: triangular, Gabor, sinc.

Frames end where their bin ends, so nothing depends on later sound; the hop must be a whole number of samples.
Windows after Harris 1978 (doi 10.1109/PROC.1978.10837), Gabor filters as in LEAF (Zeghidour et al. 2021, doi
10.48550/arXiv.2101.08596), sinc filters as in SincNet (Ravanelli & Bengio 2018, doi
10.1109/SLT.2018.8639585).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF._validation import checked
from deepSTRF.dsp.recursion import zero_subnormal_taps
from deepSTRF.dsp.scales import frequency_scale

__all__ = [
    "WINDOWS",
    "LongTermSpectrum",
    "causal_frames",
    "gabor_taps",
    "gaussian_mass",
    "samples_per_bin",
    "sinc_bandpass",
    "symmetric_window",
    "triangle_corners",
    "triangular_filterbank",
]

#: A hop this close to an integer (relative) is one: rates such as 48828.125 Hz are exact, bin widths such as
#: 33.3333 ms carry the rounding of a number of six digits (18 ms per hour at most).
_HOP_TOLERANCE = 5e-6
#: Fewest hertz that are a rate of sounds: below, kHz were given.
_LOWEST_RATE = 400.0
#: Cosine-sum windows ``a0 - a1 cos(2 pi n / (L - 1))`` by name: (a0, a1).
WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"hann": (0.5, 0.5), "hamming": (0.54, 0.46), "boxcar": (1.0, 0.0)}
)


@checked
def samples_per_bin(audio_fs: float, dt_ms: float) -> int:
    """Return the number of audio samples in one bin, which must be whole.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    dt_ms : float
        Bin width (hop) in milliseconds.

    Returns
    -------
    int
        ``audio_fs * dt_ms / 1000``.

    Raises
    ------
    ValueError
        When a rate or width is not positive, or when the hop is no whole number: rounding it would let sound
        and spikes drift apart (2.3 ms per second for 44.1 kHz at 5 ms). The text names legal rates.

    Examples
    --------
    >>> samples_per_bin(48000, 5.0)
    240
    >>> samples_per_bin(44100, 5.0)
    Traceback (most recent call last):
        ...
    ValueError: audio_fs=44100 Hz at 5 ms per bin gives 220.5 samples per bin, which must be a whole number.
    Resample the audio to a multiple of 200 Hz, e.g. 44000 or 44200 Hz (deepSTRF.dsp.resample_exact(sound,
    44100, 44000)), or choose another bin width, e.g. 10 ms
    """
    for name, value in (("audio_fs", audio_fs), ("the bin width in ms", dt_ms)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    audio_fs, dt_ms = float(audio_fs), float(dt_ms)
    exact = audio_fs * dt_ms / 1000.0
    hop = round(exact)
    if hop >= 1 and abs(exact - hop) <= _HOP_TOLERANCE * hop:
        return hop
    raise ValueError(
        f"audio_fs={audio_fs:.10g} Hz at {dt_ms:.10g} ms per bin gives {exact:.10g} samples per bin, which "
        f"must be a whole number. {_advice_on_rates(audio_fs, dt_ms, exact)}"
    )


def _advice_on_rates(audio_fs: float, dt_ms: float, exact: float) -> str:
    """Whole rates and bin widths near the given ones that make the hop a whole number."""
    unit = f" (audio_fs is in hertz: are {audio_fs:g} kHz meant?)" if audio_fs < _LOWEST_RATE else ""
    if exact < 1.0 and dt_ms < 1.0:
        unit += f" (bins are in milliseconds: are {dt_ms:g} seconds, dt_ms={1000 * dt_ms:g}, meant?)"
    low, step = math.floor(exact), 1000.0 / dt_ms  # hertz per sample in a bin

    def legal(hops: range) -> int | None:
        rates = ((hop, round(hop * step)) for hop in hops if hop >= 1)
        return next((r for hop, r in rates if abs(r / step - hop) <= _HOP_TOLERANCE * hop), None)

    rates = [r for r in (legal(range(low, low // 2, -1)), legal(range(low + 1, 2 * low + 2))) if r]
    # the smallest multiple of this bin width that makes the hop whole at this rate, or the nearest width
    factor = Fraction(exact).limit_denominator(1000).denominator
    width = dt_ms * factor if factor <= 20 else max(1, round(exact)) * 1000.0 / audio_fs
    if not rates:
        return f"Choose another bin width, e.g. {width:.10g} ms{unit}"
    whole = f"a multiple of {step:g} Hz, e.g. " if abs(step - round(step)) < 1e-9 else ""
    nearest = min(rates, key=lambda r: abs(r - audio_fs))
    return (
        f"Resample the audio to {whole}{' or '.join(map(str, rates))} Hz (deepSTRF.dsp.resample_exact(sound, "
        f"{audio_fs:.10g}, {nearest})), or choose another bin width, e.g. {width:.10g} ms{unit}"
    )


def causal_frames(x: Tensor, frame_length: int, hop: int, *, padded: bool = False) -> Tensor:
    """Cut a waveform (..., T_audio) into overlapping frames (..., T, frame_length), without a copy.

    Frame ``t`` holds samples ``[(t + 1) * hop - frame_length, (t + 1) * hop)``, zero before the start.
    """
    if frame_length < hop:
        raise ValueError(f"frame_length must be at least the hop ({hop} samples), got {frame_length}")
    if not padded:
        x = functional.pad(x, (frame_length - hop, 0))
    return x.unfold(-1, frame_length, hop)


def symmetric_window(name: str, length: int) -> Tensor:
    """Symmetric window of `WINDOWS`, (length,) float64: its first and last values are equal."""
    if name not in WINDOWS:
        raise ValueError(f"unknown window {name!r}; legal names: {', '.join(map(repr, WINDOWS))}")
    if length < 1:
        raise ValueError(f"the length of a window must be at least 1, got {length}")
    if length == 1:
        return torch.ones(1, dtype=torch.float64)
    constant, cosine = WINDOWS[name]
    phase = 2.0 * math.pi / (length - 1) * torch.arange(length, dtype=torch.float64)
    return constant - cosine * torch.cos(phase)


def triangle_corners(n_filters: int, f_min: float, f_max: float, scale: str, edges: str) -> Tensor:
    """Corners (F + 2,) in hertz of overlapping triangles: filter ``m`` rises from corner ``m`` to ``m + 1``.

    They are equally spaced on ``scale`` (see `frequency_scale`). With ``edges="feet"``, ``f_min`` and
    ``f_max`` are the outer feet of the first and last triangle, with ``"centres"`` their peaks.
    """
    spacing = frequency_scale(scale)
    if edges == "feet":
        corners = spacing.points(f_min, f_max, n_filters + 2)
    elif edges != "centres":
        raise ValueError(f"edges must be 'feet' or 'centres', got {edges!r}")
    elif n_filters < 2:
        raise ValueError("edges='centres' needs at least 2 filters; use edges='feet' for one")
    else:
        first, last = spacing.from_hz(torch.tensor([f_min, f_max], dtype=torch.float64)).tolist()
        step = (last - first) / (n_filters - 1)
        positions = torch.linspace(first - step, last + step, n_filters + 2, dtype=torch.float64)
        corners = spacing.to_hz(positions)
        corners[1], corners[-2] = f_min, f_max
    if not bool(torch.isfinite(corners).all()) or not bool((corners[1:] > corners[:-1]).all()):
        raise ValueError(
            f"{n_filters} filters from f_min={f_min:g} to f_max={f_max:g} Hz do not ascend on the scale "
            f"{scale!r}; give 0 <= f_min < f_max (above 0 on the 'log' scale)"
        )
    return corners


def triangular_filterbank(
    corners: Tensor, bin_frequencies: Tensor, *, axis: str = "linear", norm: str | None = None
) -> Tensor:
    """Weights (n_bins, F) of triangles with the given corners (F + 2,) at the bins of a Fourier transform.

    The slopes are straight lines on the scale ``axis``. ``norm`` None: peak 1; ``"sum"``: the weights of a
    filter sum to 1; ``"slaney"``: unit area in hertz. A filter that holds no bin is a column of zeros.
    """
    if norm not in (None, "sum", "slaney"):
        raise ValueError(f"norm must be None, 'sum' or 'slaney', got {norm!r}")
    to_axis = frequency_scale(axis).from_hz
    corner = to_axis(corners.double())
    position = to_axis(bin_frequencies.double()).unsqueeze(1)
    rising = (position - corner[:-2]) / (corner[1:-1] - corner[:-2])
    falling = (corner[2:] - position) / (corner[2:] - corner[1:-1])
    bank = torch.minimum(rising, falling).clamp_min(0.0)
    if norm == "sum":
        bank = bank / bank.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    elif norm == "slaney":
        bank = bank * (2.0 / (corners[2:] - corners[:-2]).double())
    return bank


def gabor_taps(center: Tensor, sigma: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of ``exp(-offset^2 / (2 sigma^2)) exp(j center offset)``; the three broadcast.

    ``center`` in radians per sample; ``sigma`` in samples, the standard deviation of the passband is
    ``1 / sigma``. Taps too small to matter are exactly zero.
    """
    envelope = zero_subnormal_taps(torch.exp(-0.5 * (offset / sigma).square()))
    phase = center * offset
    return envelope * phase.cos(), envelope * phase.sin()


def gaussian_mass(sigma: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Sum of ``exp(-n^2 / (2 sigma^2))`` over ``-before <= n <= after``, in closed form.

    The gain of a Gabor filter for a complex tone at its centre; relative error ``2 exp(-2 (pi sigma)^2)``.
    """
    # each sample stands for half a sample on either side of it
    scale = 1.0 / (math.sqrt(2.0) * sigma)
    sides = torch.erf((before + 0.5) * scale) + torch.erf((after + 0.5) * scale)
    return math.sqrt(math.pi / 2.0) * sigma * sides


@checked
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


#: Third-octave levels this far below the loudest are empty: the noise floor of 16-bit files lies lower.
_EMPTY_DB = 60.0
#: Window of a long-term spectrum, and the steps in which its third-octave levels are read.
_SPECTRUM_MS, _STEPS_PER_OCTAVE = 32.0, 24


class LongTermSpectrum:
    """Long-term power spectrum of sounds, added one by one, and the range of frequencies that holds power."""

    def __init__(self, audio_fs: float) -> None:
        self.audio_fs = float(audio_fs)
        self.n = 2 ** max(5, round(math.log2(self.audio_fs * _SPECTRUM_MS / 1000.0)))
        self._power = torch.zeros(self.n // 2 + 1, dtype=torch.float64)

    def add(self, sound: Tensor) -> None:
        """Add a sound (..., T_audio), in windows that do not overlap; the rest at its end is left out."""
        samples = sound.detach().cpu().double().flatten()
        if len(samples) < self.n:
            samples = functional.pad(samples, (0, self.n - len(samples)))
        frames = samples.unfold(0, self.n, self.n) * symmetric_window("hann", self.n).double()
        self._power += (torch.fft.rfft(frames).abs() ** 2).sum(0)

    def occupied(self) -> tuple[float, float] | None:
        """Lowest and highest frequency with power, in hertz; None for silence.

        Third-octave levels count that lie less than 60 dB below the loudest.
        """
        step = self.audio_fs / self.n
        lowest, half = 4.0 * step, 2.0 ** (1.0 / 6.0)
        n_steps = int(math.log2(0.5 * self.audio_fs / lowest) * _STEPS_PER_OCTAVE)
        centres = lowest * 2.0 ** (torch.arange(n_steps + 1, dtype=torch.float64) / _STEPS_PER_OCTAVE)
        summed = functional.pad(self._power.cumsum(0), (1, 0))
        first, last = ((centres * edge / step).round().long() for edge in (1.0 / half, half))
        levels = summed[last.clamp(max=len(self._power) - 1) + 1] - summed[first]
        loud = (levels > levels.max() * 10.0 ** (-_EMPTY_DB / 10.0)).nonzero().flatten()
        if not len(loud):
            return None
        # a third of an octave reaches over the edge of what it holds; at the ends of the axis nothing is cut
        low = 0.0 if loud[0] == 0 else float(centres[loud[0]]) * half
        high = 0.5 * self.audio_fs if loud[-1] == n_steps else float(centres[loud[-1]]) / half
        return low, high
