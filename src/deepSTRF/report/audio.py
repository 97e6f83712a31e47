"""Sounds as data URIs: short, in the page itself, made for listening rather than for measuring."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.sonify import LISTENING_PEAK, SILENCE_MS

__all__ = ["LISTENING_PEAK", "SILENCE_S", "wav_data_uri"]

#: Silence before and after, that of written files.
SILENCE_S = SILENCE_MS / 1000.0


def wav_data_uri(sound: NDArray[Any], audio_fs: float) -> str:
    """Return a sound as a WAV data URI (16 bit, mono), scaled to a comfortable peak, with silence around it.

    Parameters
    ----------
    sound : array (T_audio,)
        Samples in any unit.
    audio_fs : float
        Samples per second; it is rounded to whole hertz, as the format asks.

    Returns
    -------
    str
        ``data:audio/wav;base64,...``

    Raises
    ------
    ValueError
        For a sound that is no series of finite samples, or a rate that is not positive.

    Examples
    --------
    >>> wav_data_uri(np.sin(np.arange(800) * 0.3), 16000)[:22]
    'data:audio/wav;base64,'
    """
    samples = np.asarray(sound, dtype=np.float64)
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError(f"sound must be a series of finite samples (T_audio,), got shape {samples.shape}")
    if not audio_fs > 0:
        raise ValueError(f"audio_fs must be a positive number of hertz, got {audio_fs!r}")
    peak = float(np.abs(samples).max())
    scaled = samples * (LISTENING_PEAK * np.iinfo(np.int16).max / peak) if peak > 0 else samples
    silence = np.zeros(round(SILENCE_S * audio_fs))
    content = np.concatenate([silence, scaled, silence]).round().astype("<i2").tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(round(audio_fs))
        file.writeframes(content)
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
