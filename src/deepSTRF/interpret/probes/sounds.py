"""Sounds of a hearing laboratory as sample arrays: tones, clicks, noise, sweeps; levels and ramps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["RAMP_MS", "amplitude_of", "click", "noise", "ramped", "sweep", "tone"]

FloatArray = NDArray[np.float64]

#: Raised-cosine onset and offset of tones and noise: short, yet without audible splatter.
RAMP_MS = 5.0


def amplitude_of(level_db: float) -> float:
    """Return the root mean square of a level in dB re 1: 0 dB is a root mean square of 1.

    Parameters
    ----------
    level_db : float
        Level.

    Returns
    -------
    float
        Root mean square.

    Examples
    --------
    >>> amplitude_of(-20.0)
    0.1
    """
    return float(10.0 ** (level_db / 20.0))


def ramped(sound: FloatArray, audio_fs: float, ramp_ms: float = RAMP_MS) -> FloatArray:
    """Return a sound with a raised-cosine onset and offset, at most half its length each.

    Parameters
    ----------
    sound : array (..., T_audio)
        Samples.
    audio_fs : float
        Samples per second.
    ramp_ms : float
        Length of each ramp.

    Returns
    -------
    array (..., T_audio)
        A new array.

    Examples
    --------
    >>> ramped(np.ones(4), 1000.0, ramp_ms=2.0).round(3)
    array([0.146, 0.854, 0.854, 0.146])
    """
    length = min(round(ramp_ms * audio_fs / 1000.0), sound.shape[-1] // 2)
    shaped = np.array(sound, dtype=np.float64)
    if length:
        edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
        shaped[..., :length] *= edge
        shaped[..., -length:] *= edge[::-1]
    return shaped


def tone(hertz: float, n_samples: int, audio_fs: float, level_db: float = 0.0) -> FloatArray:
    """Return a pure tone with ramps; its level is the root mean square of the plateau.

    Parameters
    ----------
    hertz : float
        Frequency.
    n_samples : int
        Length.
    audio_fs : float
        Samples per second.
    level_db : float
        dB re a root mean square of 1.

    Returns
    -------
    array (n_samples,)
        Samples.

    Examples
    --------
    >>> round(float(np.std(tone(1000.0, 16000, 16000.0, level_db=-20.0))), 3)
    0.1
    """
    wave = np.sin(2.0 * np.pi * hertz * np.arange(n_samples) / audio_fs)
    return ramped(math.sqrt(2.0) * amplitude_of(level_db) * wave, audio_fs)


def click(n_samples: int, level_db: float = 0.0, width: int = 1) -> FloatArray:
    """Return a click at the first sample; its level is that of its peak, 0 dB is a peak of 1.

    Parameters
    ----------
    n_samples : int
        Length.
    level_db : float
        dB re a peak of 1.
    width : int
        Samples of the click.

    Returns
    -------
    array (n_samples,)
        Samples.

    Examples
    --------
    >>> click(4, level_db=0.0)
    array([1., 0., 0., 0.])
    """
    sound = np.zeros(n_samples)
    sound[:width] = amplitude_of(level_db)
    return sound


def noise(
    n_samples: int,
    audio_fs: float,
    level_db: float = 0.0,
    *,
    band_hz: tuple[float, float] | None = None,
    seed: int = 0,
    ramp_ms: float = RAMP_MS,
) -> FloatArray:
    """Return Gaussian noise with ramps, white or within a band.

    Parameters
    ----------
    n_samples : int
        Length.
    audio_fs : float
        Samples per second.
    level_db : float
        Root mean square before the ramps, dB re 1.
    band_hz : (float, float), optional
        Edges of the band; outside it the spectrum is zero.
    seed : int
        Which noise.
    ramp_ms : float
        Length of each ramp.

    Returns
    -------
    array (n_samples,)
        Samples.

    Examples
    --------
    >>> round(float(np.std(noise(16000, 16000.0, level_db=-20.0, ramp_ms=0.0))), 3)
    0.1
    """
    sound = np.random.default_rng(seed).standard_normal(n_samples)
    if band_hz is not None:
        spectrum = np.fft.rfft(sound)
        hertz = np.fft.rfftfreq(n_samples, 1.0 / audio_fs)
        spectrum[(hertz < band_hz[0]) | (hertz > band_hz[1])] = 0.0
        sound = np.fft.irfft(spectrum, n_samples)
    size = float(np.sqrt(np.mean(sound**2))) or 1.0
    return ramped(sound * (amplitude_of(level_db) / size), audio_fs, ramp_ms)


def sweep(
    first_hz: float, last_hz: float, n_samples: int, audio_fs: float, level_db: float = 0.0
) -> FloatArray:
    """Return a sweep that is exponential in frequency, with ramps.

    Parameters
    ----------
    first_hz, last_hz : float
        Where it starts and ends.
    n_samples : int
        Length.
    audio_fs : float
        Samples per second.
    level_db : float
        Root mean square of the plateau, dB re 1.

    Returns
    -------
    array (n_samples,)
        Samples.

    Examples
    --------
    >>> sweep(500.0, 2000.0, 800, 16000.0).shape
    (800,)
    """
    hertz = first_hz * (last_hz / first_hz) ** (np.arange(n_samples) / max(n_samples - 1, 1))
    phase = 2.0 * np.pi * np.cumsum(hertz) / audio_fs
    return ramped(math.sqrt(2.0) * amplitude_of(level_db) * np.sin(phase), audio_fs)
