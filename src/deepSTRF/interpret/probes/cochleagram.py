"""How a recording turned its sounds into spectrograms, as a function for new sounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepSTRF.datasets.audio.ns1_files import NS1_WAV_NATIVE_FS
from deepSTRF.dsp.cochleagram import RAHMAN_LOG_FLOOR, rahman_cochleagram

__all__ = ["dataset_cochleagram"]


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
    >>> import torch
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


def _cochleagram(sounds: Tensor, audio_fs: float, floor: float, options: dict[str, Any]) -> Tensor:
    hop = round(audio_fs * options["dt_ms"] / 1000.0)
    return rahman_cochleagram(sounds, audio_fs, n_bins=sounds.shape[-1] // hop, **options) - floor
