"""Hop-aligned framing: how audio samples meet neural bins."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor
from torch.nn import functional

__all__ = ["causal_frames", "samples_per_bin"]

#: A hop this close to an integer (relative) is one: rates such as 48828.125 Hz are exact, bin widths such as
#: 4.99712 ms carry the rounding of a decimal number.
_HOP_TOLERANCE = 1e-6


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
    Resample the audio to a multiple of 200 Hz, e.g. 44000 or 44200 Hz, or choose another bin width, e.g. 10
    ms
    """
    for name, value in (("audio_fs", audio_fs), ("the bin width in ms", dt_ms)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    exact = float(audio_fs) * float(dt_ms) / 1000.0
    hop = round(exact)
    if hop >= 1 and abs(exact - hop) <= _HOP_TOLERANCE * hop:
        return hop
    raise ValueError(_illegal_hop(float(audio_fs), float(dt_ms), exact))


def _illegal_hop(audio_fs: float, dt_ms: float, exact: float) -> str:
    step = 1000.0 / dt_ms  # hertz per sample in a bin
    below, above = max(1, math.floor(exact)) * step, (math.floor(exact) + 1) * step
    rates = f"{below:.10g} or {above:.10g} Hz" if below < above else f"{above:.10g} Hz"
    # the smallest multiple of this bin width that makes the hop whole at this rate
    factor = Fraction(exact).limit_denominator(1000).denominator
    width = f", or choose another bin width, e.g. {dt_ms * factor:.10g} ms" if factor <= 20 else ""
    return (
        f"audio_fs={audio_fs:.10g} Hz at {dt_ms:.10g} ms per bin gives {exact:.10g} samples per bin, which "
        f"must be a whole number. Resample the audio to a multiple of {step:.10g} Hz, e.g. {rates}{width}"
    )


def causal_frames(x: Tensor, frame_length: int, hop: int, *, padded: bool = False) -> Tensor:
    """Cut a waveform into overlapping frames that end where their bin ends.

    Frame ``t`` holds the samples ``[(t + 1) * hop - frame_length, (t + 1) * hop)``; those before the start
    are zero. The result is a view of the padded waveform: it costs no copy.

    Parameters
    ----------
    x : Tensor
        (..., T_audio) waveform, T_audio a multiple of ``hop``.
    frame_length : int
        Samples per frame, at least ``hop``.
    hop : int
        Samples per bin.
    padded : bool
        Whether ``x`` already starts with ``frame_length - hop`` samples of the past.

    Returns
    -------
    Tensor
        (..., T, frame_length).

    Raises
    ------
    ValueError
        When the frame is shorter than the hop.

    Examples
    --------
    >>> import torch
    >>> causal_frames(torch.arange(1.0, 7.0), frame_length=4, hop=2)
    tensor([[0., 0., 1., 2.],
            [1., 2., 3., 4.],
            [3., 4., 5., 6.]])
    """
    if frame_length < hop:
        raise ValueError(f"frame_length must be at least the hop ({hop} samples), got {frame_length}")
    if not padded:
        x = functional.pad(x, (frame_length - hop, 0))
    return x.unfold(-1, frame_length, hop)
