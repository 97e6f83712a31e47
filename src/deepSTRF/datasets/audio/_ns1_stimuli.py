"""NS1 sounds as models see them: resampled waveforms or cochleagrams, made once and cached."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepSTRF.datasets.audio import _ns1_read
from deepSTRF.datasets.audio.ns1_files import NS1_DNET_FILES, NS1_WAV_NATIVE_FS
from deepSTRF.datasets.cache import Arrays, cached_arrays, fingerprint_files
from deepSTRF.dsp.cochleagram import rahman_cochleagram
from deepSTRF.dsp.resample import rate_ratio, resample_exact

__all__ = ["SPECTROGRAMS", "Stimuli", "choose_spectrogram", "load_spectrograms", "load_waveforms"]

#: "shipped": the authors' X_nfht; "recomputed": their recipe applied to the sound files; "auto": see below.
SPECTROGRAMS = ("auto", "shipped", "recomputed")
#: The only bin of the shipped spectrogram, and the one at which the recomputed one takes the authors' frame
#: grid.
SHIPPED_DT_MS = 5.0
_SOUND_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Stimuli:
    """Stimuli of the 20 clips.

    Attributes
    ----------
    values : float32 ndarray
        (20, 1, F, T) spectrograms or (20, 1, T_audio) waveforms.
    source_sha256 : list of str
        Hash of each sound file; empty when the sound files are not there.
    facts : dict
        What was done, for reports.
    """

    values: npt.NDArray[np.float32]
    source_sha256: list[str]
    facts: dict[str, Any]


def choose_spectrogram(root: Path, spectrogram: str, alignment: str, dt_ms: float) -> str:
    """Return "shipped" or "recomputed" for the requested kind.

    Raises
    ------
    ValueError
        When "shipped" is asked for in a form that was never computed.
    """
    fits = dt_ms == SHIPPED_DT_MS and alignment == "native"
    if spectrogram == "shipped" and not fits:
        raise ValueError(
            f"the shipped spectrogram has bins of {SHIPPED_DT_MS:g} ms in native alignment only, asked for "
            f"dt_ms={dt_ms:g}, alignment={alignment!r}; use spectrogram='recomputed'"
        )
    if spectrogram == "auto":
        present = (root / NS1_DNET_FILES[0]).is_file()
        return "shipped" if present and fits else "recomputed"
    return spectrogram


def load_spectrograms(
    root: Path, kind: str, alignment: str, dt_ms: float, n_bins: int, *, cache: bool = True
) -> Stimuli:
    """Return the cochleagrams of the 20 sounds; ``kind`` is "shipped" or "recomputed"."""
    facts: dict[str, Any] = {
        "spectrogram": kind,
        "alignment": alignment,
        "look_ahead_ms": dt_ms if alignment == "native" else 0.0,
    }
    if kind == "shipped":
        values = _ns1_read.read_shipped_spectrogram(root)[:, None, :, :n_bins]
        there = all((root / name).is_file() for name in _ns1_read.wav_paths())
        return Stimuli(values, _hashes(root) if there else [], facts)
    grid = "authors" if dt_ms == SHIPPED_DT_MS else "exact"
    options = {"dt_ms": dt_ms, "alignment": alignment, "grid": grid, "n_bins": n_bins}

    def build() -> Arrays:
        sounds = _ns1_read.read_waveforms(root)
        frames = [
            rahman_cochleagram(torch.from_numpy(sound), float(NS1_WAV_NATIVE_FS), **options).numpy()  # type: ignore[arg-type]
            for sound in sounds
        ]
        return {"values": np.stack(frames), "sha256": np.array(_hashes(root))}

    stored = cached_arrays(
        "NS1", "cochleagram", {**options, "files": _fingerprint(root)}, build, enabled=cache
    )
    return Stimuli(stored["values"][:, None], stored["sha256"].tolist(), {**facts, "frame_grid": grid})


def load_waveforms(root: Path, audio_fs: int, n_samples: int, *, cache: bool = True) -> Stimuli:
    """Return the first ``n_samples`` of the 20 sounds, resampled by the exact ratio to ``audio_fs``."""
    ratio = rate_ratio(NS1_WAV_NATIVE_FS, audio_fs)
    length = math.floor(_SOUND_SECONDS * audio_fs)

    def build() -> Arrays:
        sounds = _ns1_read.read_waveforms(root)
        resampled = [
            resample_exact(torch.from_numpy(sound), NS1_WAV_NATIVE_FS, audio_fs, length).numpy()
            for sound in sounds
        ]
        return {"values": np.stack(resampled), "sha256": np.array(_hashes(root))}

    depends_on = {"audio_fs": audio_fs, "files": _fingerprint(root)}
    stored = cached_arrays("NS1", f"waveform-{audio_fs}", depends_on, build, enabled=cache)
    how = f"{float(NS1_WAV_NATIVE_FS):.3f} Hz by {ratio.numerator}/{ratio.denominator}, linear phase"
    facts = {"resampling": how}
    return Stimuli(stored["values"][:, None, :n_samples], stored["sha256"].tolist(), facts)


def _fingerprint(root: Path) -> str:
    """Return the fingerprint of the sound files, or say which one is missing."""
    try:
        return fingerprint_files(root, _ns1_read.wav_paths())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the sound file {error.filename} is missing; {_ns1_read.mend(root)}"
        ) from error


def _hashes(root: Path) -> list[str]:
    """Return the SHA-256 of each sound file."""
    return [hashlib.sha256((root / name).read_bytes()).hexdigest() for name in _ns1_read.wav_paths()]
