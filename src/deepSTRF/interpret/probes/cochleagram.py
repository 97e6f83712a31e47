"""How a recording turned its sounds into spectrograms, as a function for new sounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.datasets.audio.ns1_files import NS1_WAV_NATIVE_FS
from deepSTRF.dsp.cochleagram import FFT_LENGTH_FACTOR, RAHMAN_LOG_FLOOR, rahman_cochleagram
from deepSTRF.dsp.framing import samples_per_bin
from deepSTRF.dsp.triangular import triangular_filterbank
from deepSTRF.models._checks import check_positive_number

__all__ = ["dataset_cochleagram", "plain_cochleagram"]


def dataset_cochleagram(dataset: Any) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return the function that made a recording's spectrograms, and the audio rate it takes.

    Parameters
    ----------
    dataset : AudioNeuralDataset
        NS1 or a synthetic recording, in spectrogram mode, or a selection of one.

    Returns
    -------
    callable, float
        Maps sounds (B, T_audio) to (B, F, T), one frame per bin; and samples per second. Frames of a native
        NS1 cochleagram look one bin ahead, as the recording's own do.

    Raises
    ------
    ValueError
        When the recording does not say how its spectrograms were made.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.2)
    >>> cochleagram, audio_fs = dataset_cochleagram(ds)
    >>> cochleagram(torch.zeros(2, 800)).shape, audio_fs
    (torch.Size([2, 24, 10]), 16000.0)
    """
    facts = getattr(dataset, "facts", None) or {}
    hertz = getattr(dataset, "frequencies_hz", None)
    made, alignment = facts.get("spectrogram"), facts.get("alignment")
    above_floor = made == "cochleagram above its floor"
    if hertz is None or alignment is None or not (above_floor or made in ("recomputed", "shipped")):
        raise ValueError(
            f"the dataset {getattr(dataset, 'name', '?')!r} does not say how its spectrograms were made: "
            "give Listener(model, cochleagram=..., audio_fs=..., dt_ms=dataset.dt) a function from sounds "
            "(B, T_audio) to spectrograms (B, F, T)"
        )
    audio_fs = float(facts["made_at_hz"]) if above_floor else float(NS1_WAV_NATIVE_FS)
    options = {
        "dt_ms": float(dataset.dt), "alignment": alignment, "n_filters": len(hertz),
        "f_min": float(hertz[0]), "f_max": float(hertz[-1]),
    }  # fmt: skip
    floor = math.log(RAHMAN_LOG_FLOOR) if above_floor else 0.0
    return functools.partial(_cochleagram, audio_fs=audio_fs, floor=floor, options=options), audio_fs


def plain_cochleagram(
    frequencies_hz: Any, audio_fs: float, dt_ms: float, *, floor: float = RAHMAN_LOG_FLOOR
) -> Callable[[Tensor], Tensor]:
    """Return a causal cochleagram with any bands, for models whose spectrograms nobody can make again.

    Windows of two bins (the current and the one before), Fourier amplitudes under triangles between
    neighbouring bands, ``ln(max(x, floor)) - ln(floor)``: 0 in silence. What a model answers then depends on
    how near this is to what it was fitted on, in shape and in scale.

    Parameters
    ----------
    frequencies_hz : array (F,)
        Centres of at least two bands, ascending.
    audio_fs : float
        Samples per second; a bin must be a whole number of samples.
    dt_ms : float
        Bin in ms.
    floor : float
        Amplitude that counts as silence.

    Returns
    -------
    callable
        Maps sounds (B, T_audio) to (B, F, T).

    Raises
    ------
    ValueError
        For bands that do not ascend or lie too close for windows of this length.

    Examples
    --------
    >>> hear = plain_cochleagram([500.0, 1000.0, 2000.0], 16000, 5.0)
    >>> hear(torch.zeros(1, 800)).shape
    torch.Size([1, 3, 10])
    """
    hertz = torch.tensor(np.asarray(frequencies_hz, dtype=np.float64).tolist(), dtype=torch.float64)
    hop = samples_per_bin(audio_fs, dt_ms)
    check_positive_number("floor", floor)
    if hertz.ndim != 1 or len(hertz) < 2 or not bool((hertz.diff() > 0).all()) or not float(hertz[0]) > 0:
        raise ValueError(
            f"frequencies_hz must be two or more ascending positive numbers, got {frequencies_hz!r}"
        )
    if float(hertz[-1]) >= 0.5 * audio_fs:
        raise ValueError(
            f"frequencies_hz must lie below {0.5 * audio_fs:g} Hz, half of audio_fs, got {float(hertz[-1]):g}"
        )
    corners = torch.cat([hertz[:1] ** 2 / hertz[1:2], hertz, hertz[-1:] ** 2 / hertz[-2:-1]])
    n_fft = FFT_LENGTH_FACTOR * 2 * hop
    bank = triangular_filterbank(
        corners, torch.arange(n_fft // 2 + 1) * (audio_fs / n_fft), axis="log", norm="sum"
    )
    empty = (bank.sum(0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"the band at {float(hertz[empty[0]]):.0f} Hz holds no Fourier bin: windows of {2 * dt_ms:g} ms "
            f"resolve {audio_fs / n_fft:.1f} Hz, up to {audio_fs / 2:g} Hz"
        )
    return functools.partial(_plain, bank=bank, hop=hop, floor=floor)


def _plain(sounds: Tensor, bank: Tensor, hop: int, floor: float) -> Tensor:
    frames = torch.nn.functional.pad(sounds.double(), (hop, 0)).unfold(-1, 2 * hop, hop)
    taper = torch.hann_window(2 * hop, dtype=torch.float64)
    amplitude: Tensor = torch.fft.rfft(frames * taper, n=2 * (len(bank) - 1)).abs() @ bank
    return (amplitude.clamp_min(floor).log() - math.log(floor)).transpose(-1, -2)


def _cochleagram(sounds: Tensor, audio_fs: float, floor: float, options: dict[str, Any]) -> Tensor:
    hop = round(audio_fs * options["dt_ms"] / 1000.0)
    return rahman_cochleagram(sounds, audio_fs, n_bins=sounds.shape[-1] // hop, **options) - floor
