"""Natural-like sounds from random numbers: modulated noise, voices, sweeps, tone pips, sequences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["SOUND_KINDS", "make_sound"]

Samples = npt.NDArray[np.float64]

#: Lowest frequency with energy, and the highest as a fraction of the sampling rate.
LOWEST_HZ = 300.0
HIGHEST_FRACTION = 0.45
#: Raised-cosine onset and offset of tones and syllables.
RAMP_S = 0.005
#: Root mean square of a sound before its level is drawn from -9 .. +3 dB; peaks stay below 1.
RMS = 0.1
LEVEL_RANGE_DB = (-9.0, 3.0)
#: Bands of independent modulation in the noise, and the range of modulation rates (of natural sounds,
#: Singh & Theunissen 2003, 10.1121/1.1624067).
NOISE_BANDS = 6
MODULATION_HZ = (2.0, 25.0)
MOST_HARMONICS = 30


def make_sound(kind: str, n_samples: int, audio_fs: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Make one sound.

    Parameters
    ----------
    kind : str
        One of `SOUND_KINDS`: "modulated_noise", "harmonic_stack", "chirps", "tone_pips" or "sequence" (pieces
        of the others with silences between them).
    n_samples : int
        Length in samples.
    audio_fs : int
        Sampling rate in Hz.
    rng : numpy.random.Generator
        Source of randomness; its state decides the sound.

    Returns
    -------
    float32 ndarray (n_samples,)
        Samples below 1 in absolute value.

    Raises
    ------
    ValueError
        When ``kind`` is unknown.

    Examples
    --------
    >>> sound = make_sound("chirps", 1600, 16000, np.random.default_rng(0))
    >>> sound.shape, bool(np.abs(sound).max() < 1)
    ((1600,), True)
    """
    if kind not in SOUND_KINDS:
        raise ValueError(f"kind is one of {', '.join(map(repr, SOUND_KINDS))}, got {kind!r}")
    sound = _MAKERS[kind](n_samples, audio_fs, rng)
    level = 10.0 ** (rng.uniform(*LEVEL_RANGE_DB) / 20.0)
    return _at_level(sound, RMS * level).astype(np.float32)


def _at_level(sound: Samples, rms: float) -> Samples:
    """Scale to a root mean square, or less where the peak would reach 1."""
    size = math.sqrt(float(np.mean(sound**2)))
    if size == 0.0:
        return sound
    scaled = sound * (rms / size)
    return scaled * min(1.0, 0.99 / float(np.abs(scaled).max()))


def _random_frequency(
    audio_fs: int, rng: np.random.Generator, size: int | None = None
) -> npt.NDArray[np.float64]:
    """Draw frequencies evenly on a log axis."""
    low, high = math.log(LOWEST_HZ), math.log(HIGHEST_FRACTION * audio_fs)
    return np.exp(rng.uniform(low, high, size=size))


def _slow_curve(n_samples: int, audio_fs: int, rate_hz: float, rng: np.random.Generator) -> Samples:
    """A smooth random curve of unit variance with about ``rate_hz`` knots a second."""
    knots = max(4, math.ceil(n_samples / audio_fs * rate_hz) + 2)
    values = rng.standard_normal(knots)
    position = np.linspace(0.0, knots - 1.001, n_samples)
    left = position.astype(np.int64)
    mix = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return values[left] * (1.0 - mix) + values[left + 1] * mix


def _ramped(sound: Samples, audio_fs: int) -> Samples:
    """Fade a piece in and out."""
    ramp = min(round(RAMP_S * audio_fs), len(sound) // 2)
    if ramp:
        edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
        sound[:ramp] *= edge
        sound[-ramp:] *= edge[::-1]
    return sound


def _modulated_noise(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Samples:
    """Pink noise whose bands wax and wane independently."""
    n_fft = 1 << max(1, math.ceil(math.log2(max(n_samples, 2))))  # a round length: the FFT of a prime is slow
    spectrum = rng.standard_normal((2, n_fft // 2 + 1)).T @ np.array([1.0, 1.0j])
    hz = np.arange(n_fft // 2 + 1) * (audio_fs / n_fft)
    spectrum = np.where(hz >= LOWEST_HZ, spectrum / np.sqrt(np.maximum(hz, LOWEST_HZ)), 0.0)
    edges = np.geomspace(LOWEST_HZ, HIGHEST_FRACTION * audio_fs, NOISE_BANDS + 1)
    sound = np.zeros(n_samples)
    for low, high in itertools.pairwise(edges):
        band = np.fft.irfft(np.where((hz >= low) & (hz < high), spectrum, 0.0), n_fft)[:n_samples]
        sound += band * np.exp(1.2 * _slow_curve(n_samples, audio_fs, rng.uniform(*MODULATION_HZ), rng))
    return sound


def _harmonic_stack(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Samples:
    """A voice: harmonics of a gliding fundamental under two formants, in syllables."""
    pitch = rng.uniform(120.0, 500.0) * np.exp2(0.35 * _slow_curve(n_samples, audio_fs, 3.0, rng))
    rotation = np.exp(2.0j * np.pi * np.cumsum(pitch) / audio_fs)
    formants = np.sort(_random_frequency(audio_fs, rng, 2))
    top = HIGHEST_FRACTION * audio_fs
    sound, turned = np.zeros(n_samples), np.ones(n_samples, dtype=np.complex128)
    for harmonic in range(1, min(MOST_HARMONICS, int(top / pitch.min())) + 1):
        hz = harmonic * float(pitch.mean())
        weight = sum(math.exp(-0.5 * (math.log2(hz / formant) / 0.6) ** 2) for formant in formants) + 0.05
        turned *= rotation  # the phase of this harmonic, without a sine per harmonic
        start = np.exp(2.0j * np.pi * rng.random())
        sound += np.where(harmonic * pitch < top, weight, 0.0) * (turned * start).imag
    syllables = np.exp(1.2 * _slow_curve(n_samples, audio_fs, rng.uniform(4.0, 10.0), rng))
    return sound * syllables


def _chirps(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Samples:
    """Overlapping sweeps, up and down, exponential in frequency."""
    sound = np.zeros(n_samples)
    for _ in range(max(1, round(n_samples / audio_fs * 8.0))):
        length = min(n_samples, round(rng.uniform(0.05, 0.3) * audio_fs))
        start = int(rng.integers(0, max(1, n_samples - length)))
        first, last = _random_frequency(audio_fs, rng, 2)
        hz = first * (last / first) ** (np.arange(length) / max(length, 1))
        sweep = np.sin(2.0 * np.pi * np.cumsum(hz) / audio_fs)
        sound[start : start + length] += 10.0 ** (rng.uniform(-20.0, 0.0) / 20.0) * _ramped(sweep, audio_fs)
    return sound


def _tone_pips(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Samples:
    """Short tones with sharp onsets, at random times, frequencies and levels."""
    sound = np.zeros(n_samples)
    for _ in range(max(1, round(n_samples / audio_fs * 20.0))):
        length = min(n_samples, round(rng.uniform(0.02, 0.1) * audio_fs))
        start = int(rng.integers(0, max(1, n_samples - length)))
        tone = np.sin(2.0 * np.pi * float(_random_frequency(audio_fs, rng)) / audio_fs * np.arange(length))
        sound[start : start + length] += 10.0 ** (rng.uniform(-30.0, 0.0) / 20.0) * _ramped(tone, audio_fs)
    return sound


def _sequence(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Samples:
    """Pieces of the other kinds at different levels, with silences between them."""
    sound = np.zeros(n_samples)
    position = 0
    while position < n_samples:
        length = min(n_samples - position, round(rng.uniform(0.1, 0.4) * audio_fs))
        maker = _PIECES[int(rng.integers(len(_PIECES)))]
        piece = _at_level(
            _ramped(maker(max(length, 1), audio_fs, rng), audio_fs), 10.0 ** rng.uniform(-1.0, 0.0)
        )
        sound[position : position + length] = piece[:length]
        position += length + round(rng.uniform(0.05, 0.2) * audio_fs)
    return sound


_PIECES: tuple[Callable[[int, int, np.random.Generator], Samples], ...] = (
    _modulated_noise, _harmonic_stack, _chirps, _tone_pips,
)  # fmt: skip
_MAKERS: dict[str, Callable[[int, int, np.random.Generator], Samples]] = {
    "modulated_noise": _modulated_noise,
    "harmonic_stack": _harmonic_stack,
    "chirps": _chirps,
    "tone_pips": _tone_pips,
    "sequence": _sequence,
}
#: Names of the sounds, in the order in which clips take them.
SOUND_KINDS = tuple(_MAKERS)
