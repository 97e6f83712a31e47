"""Synthesis of probe sounds as sample arrays (T_audio,): tones, clicks, noise, sweeps; levels and ramps.

Levels are in dB re a root mean square of 1 (of clicks: re a peak of 1).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from deepSTRF._validation import FloatArray

#: Raised-cosine onset and offset of tones and noise: short, yet without audible splatter.
RAMP_MS = 5.0
#: Ramps inside a sound, at gaps, steps of level and cuts: short, as what they mark.
EDGE_MS = 1.0
#: Patches of noise: half an octave high, of levels that differ by as much as those of natural sounds do.
PATCHES_PER_OCTAVE, PATCH_RANGE_DB = 2, 30.0


def amplitude_of(level_db: float) -> float:
    """Return the root mean square of a level in dB re 1: 0 dB is a root mean square of 1."""
    return float(10.0 ** (level_db / 20.0))


def ramped(sound: FloatArray, audio_fs: float, ramp_ms: float = RAMP_MS) -> FloatArray:
    """Return a sound (..., T_audio) with a raised-cosine onset and offset, at most half its length each."""
    length = min(round(ramp_ms * audio_fs / 1000.0), sound.shape[-1] // 2)
    shaped = np.array(sound, dtype=np.float64)
    if length:
        edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
        shaped[..., :length] *= edge
        shaped[..., -length:] *= edge[::-1]
    return shaped


def tone(hertz: float, n_samples: int, audio_fs: float, level_db: float = 0.0) -> FloatArray:
    """Return a pure tone with ramps; its level is the root mean square of the plateau."""
    wave = np.sin(2.0 * np.pi * hertz * np.arange(n_samples) / audio_fs)
    return ramped(math.sqrt(2.0) * amplitude_of(level_db) * wave, audio_fs)


def click(n_samples: int, level_db: float = 0.0, width: int = 1) -> FloatArray:
    """Return a click at the first sample; its level is that of its peak, 0 dB is a peak of 1."""
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
    """Return Gaussian noise with ramps, white or within a band."""
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
    """Return a sweep that is exponential in frequency, with ramps."""
    hertz = first_hz * (last_hz / first_hz) ** (np.arange(n_samples) / max(n_samples - 1, 1))
    phase = 2.0 * np.pi * np.cumsum(hertz) / audio_fs
    return ramped(math.sqrt(2.0) * amplitude_of(level_db) * np.sin(phase), audio_fs)


def stepped(carrier: FloatArray, levels_db: FloatArray, audio_fs: float) -> FloatArray:
    """Return a carrier whose level steps: equal parts, one per level (P,), with a short ramp at each step."""
    length = carrier.size // len(levels_db)
    sizes = np.array([amplitude_of(float(level)) for level in levels_db])
    gain = np.repeat(sizes, length)
    edge = min(round(EDGE_MS * audio_fs / 1000.0), length)
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / max(edge, 1))
    for part in range(1, len(sizes)):
        at = part * length
        gain[at : at + edge] = sizes[part - 1] + rise * (sizes[part] - sizes[part - 1])
    return np.asarray(carrier * gain)


def patchwork_noise(
    n_samples: int,
    audio_fs: float,
    range_hz: tuple[float, float],
    patch_samples: int,
    level_db: float = 0.0,
    *,
    seed: int = 0,
) -> FloatArray:
    """Return noise in patches of time and frequency, each with a level of its own."""
    low, high = range_hz
    bands: list[tuple[float, float] | None] = [None]
    if low < high:
        edges = np.geomspace(low, high, max(1, round(PATCHES_PER_OCTAVE * math.log2(high / low))) + 1)
        bands = [(float(first), float(last)) for first, last in itertools.pairwise(edges)]
    rng = np.random.default_rng(seed)
    sound = np.zeros(n_samples)
    for band in bands:
        carrier = noise(n_samples, audio_fs, band_hz=band, seed=int(rng.integers(2**31)), ramp_ms=0.0)
        levels = rng.uniform(-PATCH_RANGE_DB, 0.0, math.ceil(n_samples / patch_samples))
        sound += carrier * np.repeat(10.0 ** (levels / 20.0), patch_samples)[:n_samples]
    return np.asarray(sound * (amplitude_of(level_db) / (float(np.sqrt(np.mean(sound**2))) or 1.0)))
