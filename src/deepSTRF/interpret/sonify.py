"""Sonification of receptive fields and spectrogram patterns, and 16-bit WAV files of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from deepSTRF._files import write_atomically
from deepSTRF._validation import (
    FloatArray,
    as_numbers,
    ascending_frequencies,
    check_choice,
    check_positive_number,
    check_share,
    checked,
)

#: Peak of every file as a share of full scale: loud enough, and far from startling in headphones.
LISTENING_PEAK = 0.5
#: Silence before and after: players tend to cut off the first milliseconds of a file.
SILENCE_MS = 150.0
#: Rates outside of these are typing errors: telephones need 8 kHz, no recorder has 1 MHz.
LOWEST_FS, HIGHEST_FS = 1000, 1_000_000
#: Logarithms beyond this are no logarithms of amplitudes: 50 is 434 dB.
LOUDEST_LN = 50.0
#: Carriers inside one band: enough that a band sounds like noise, few enough to stay cheap.
CARRIERS_PER_BAND = 8


@checked
def write_wav(
    path: str | Path,
    sound: Any,
    audio_fs: float,
    *,
    peak: float = LISTENING_PEAK,
    silence_ms: float = SILENCE_MS,
) -> Path:
    """Write a sound as a 16-bit mono WAV file, at a comfortable peak and with silence around it.

    Parameters
    ----------
    path : str or Path
        File; its folder must exist.
    sound : Tensor or array (T_audio,)
        Samples in any unit.
    audio_fs : float
        Samples per second, rounded to whole hertz as the format requires.
    peak : float
        Largest absolute sample as a share of full scale, above 0 and at most 1.
    silence_ms : float
        Silence before and after.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError, FileNotFoundError
        For a sound that is no series of finite samples, a number out of range, another ending than ``.wav``,
        or a folder that does not exist.

    Examples
    --------
    >>> import tempfile, soundfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = write_wav(Path(folder) / "a.wav", np.sin(np.arange(1600) * 0.3), 16000)
    ...     samples, rate = soundfile.read(file)
    >>> rate, len(samples), round(float(samples.max()), 3)
    (16000, 6400, 0.5)
    """
    import soundfile

    samples = as_numbers(sound, "sound")
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError(f"sound must be a series of finite samples (T_audio,), got shape {samples.shape}")
    check_share("peak", peak)
    if not silence_ms >= 0:
        raise ValueError(f"silence_ms must be 0 or more, got {silence_ms!r}")
    rate = round(check_positive_number("audio_fs", audio_fs))
    largest = float(np.abs(samples).max())
    if not LOWEST_FS <= rate <= HIGHEST_FS:
        raise ValueError(f"audio_fs must lie between {LOWEST_FS} and {HIGHEST_FS} hertz, got {audio_fs!r}")
    file = Path(path)
    if file.suffix.lower() not in ("", ".wav"):
        raise ValueError(f"path must end in .wav, which is what is written; got {file.name!r}")
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"lies in the folder {file.parent}, which does not exist"
        raise FileNotFoundError(f"{file} {what}; make the folder first and name a file in it")
    silence = np.zeros(round(silence_ms * rate / 1000.0))
    loud = samples * (peak / largest) if largest > 0 else samples
    content, samples = io.BytesIO(), np.concatenate([silence, loud, silence])
    soundfile.write(content, samples, rate, subtype="PCM_16", format="WAV")
    write_atomically(file, content.getvalue())
    return file


@checked
def sonify_spectrogram(
    spectrogram: Any,
    frequencies_hz: Any,
    dt_ms: float,
    audio_fs: float,
    *,
    scale: str = "amplitude",
    seed: int = 0,
) -> FloatArray:
    """Return a sound whose bands follow a spectrogram: noise carriers under the given envelopes.

    A spectrogram has no phases, so this is one of many sounds; a front-end or cochleagram turns it into
    something close to the given one, blurred by its own filters.

    Parameters
    ----------
    spectrogram : Tensor or array (F, T)
        Envelopes.
    frequencies_hz : array (F,)
        Centre of each band, ascending; bands above half of ``audio_fs`` are left out.
    dt_ms : float
        Bin in ms.
    audio_fs : float
        Samples per second.
    scale : {"amplitude", "ln"}
        What the values are: root-mean-square amplitudes, negative ones counting as 0; or their natural
        logarithm (add the floor of a cochleagram that was measured from it).
    seed : int
        Phases of the carriers.

    Returns
    -------
    array (T * dt_ms * audio_fs / 1000,)
        Samples; the root mean square of each band is its envelope.

    Examples
    --------
    >>> sound = sonify_spectrogram(np.ones((2, 20)), [500.0, 1000.0], dt_ms=5.0, audio_fs=8000)
    >>> sound.shape
    (800,)
    """
    image, hertz = _checked_image(spectrogram, frequencies_hz)
    check_choice("scale", scale, ("amplitude", "ln"))
    rate = check_positive_number("audio_fs", audio_fs)
    hop = check_positive_number("dt_ms", dt_ms) * rate / 1000.0
    if scale == "ln" and image.max() > LOUDEST_LN:
        raise ValueError(
            f"with scale='ln' values are natural logarithms of amplitudes, got up to {image.max():g}; "
            "subtract an offset, or give amplitudes with scale='amplitude'"
        )
    envelope = np.maximum(image, 0.0) if scale == "amplitude" else np.exp(image)
    seconds = np.arange(round(image.shape[1] * hop)) / rate
    middles = (np.arange(image.shape[1]) + 0.5) * hop / rate
    edges = _band_edges(hertz)
    rng = np.random.default_rng(seed)
    sound = np.zeros(seconds.size)
    for band in range(len(hertz)):
        low, high = edges[band], min(edges[band + 1], 0.5 * rate)
        phases = rng.uniform(0.0, 2.0 * np.pi, CARRIERS_PER_BAND)
        # drawn before any band is left out: same seed, same phases
        places = rng.uniform(size=CARRIERS_PER_BAND)
        if low >= high or not envelope[band].any():
            continue
        tones = low * (high / low) ** ((np.arange(CARRIERS_PER_BAND) + places) / CARRIERS_PER_BAND)
        carrier = np.zeros(seconds.size)
        for tone, phase in zip(tones, phases, strict=True):
            carrier += np.sin(2.0 * np.pi * tone * seconds + phase)
        sound += np.interp(seconds, middles, envelope[band]) * carrier * np.sqrt(2.0 / CARRIERS_PER_BAND)
    return sound


@checked
def sonify_strf(
    strf: Any, frequencies_hz: Any, dt_ms: float, audio_fs: float, *, sign: str = "excitatory", seed: int = 0
) -> FloatArray:
    """Return one STRF as a sound: the excitatory (or the suppressive) part of the map as envelopes.

    Parameters
    ----------
    strf : Tensor or array (F, T)
        One STRF, the current frame last: the sound begins with the oldest frame.
    frequencies_hz, dt_ms, audio_fs : array, float, float
        See `sonify_spectrogram`.
    sign : {"excitatory", "suppressive"}
        Part of the map.
    seed : int
        See `sonify_spectrogram`.

    Returns
    -------
    array (T_audio,)
        Samples, at most as loud as a map whose peak is 1.

    Examples
    --------
    >>> sonify_strf([[0.0, 1.0], [-1.0, 0.0]], [500.0, 1000.0], dt_ms=5.0, audio_fs=8000).shape
    (80,)
    """
    check_choice("sign", sign, ("excitatory", "suppressive"))
    image, _ = _checked_image(strf, frequencies_hz)
    peak = float(np.abs(image).max()) or 1.0
    part = image / peak if sign == "excitatory" else -image / peak
    return sonify_spectrogram(part, frequencies_hz, dt_ms, audio_fs, seed=seed)


def _checked_image(spectrogram: Any, frequencies_hz: Any) -> tuple[FloatArray, FloatArray]:
    """A pattern (F, T) and its bands (F,)."""
    image = as_numbers(spectrogram, "the pattern")
    if image.ndim != 2 or image.size == 0 or not np.isfinite(image).all():
        raise ValueError(f"the pattern must be finite and (F, T), got shape {image.shape}; take one neuron")
    return image, ascending_frequencies(frequencies_hz, len(image))


def _band_edges(hertz: FloatArray) -> FloatArray:
    """Edges (F + 1,) half way between neighbours on a log axis; one band alone is a third of an octave."""
    octaves = np.log2(hertz)
    if len(hertz) == 1:
        return np.asarray(hertz[0] * 2.0 ** np.array([-1 / 6, 1 / 6]), dtype=np.float64)
    middle = 0.5 * (octaves[1:] + octaves[:-1])
    first, last = 2 * octaves[0] - middle[0], 2 * octaves[-1] - middle[-1]
    return np.asarray(2.0 ** np.concatenate([[first], middle, [last]]), dtype=np.float64)
