"""Checks of the data contract, each with the clip and neuron it is about and the call that mends it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from deepSTRF.datasets.audio.base import AudioNeuralDataset
    from deepSTRF.datasets.base import NeuralDataset

#: Largest distance of audio_fs * dt / 1000 from an integer that still counts as one (float rounding of dt).
HOP_TOLERANCE = 1e-6


def check_bin_width(dt_ms: Any) -> float:
    """Return ``dt_ms`` as a float; ValueError or TypeError when it is no positive number."""
    value = dt_ms.item() if isinstance(dt_ms, (np.generic, Tensor)) and np.ndim(dt_ms) == 0 else dt_ms
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"dt_ms is a number of milliseconds, got {type(dt_ms).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"dt_ms is a positive number of milliseconds, got {value!r}")
    return float(value)


def plain_integer(value: Any) -> Any:
    """A numpy or torch integer as a Python one; anything else as it is."""
    if isinstance(value, (np.integer, Tensor)) and np.ndim(value) == 0:
        return value.item()
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_stimulus(values: Tensor, where: str) -> None:
    """Refuse a stimulus that is no float32 tensor, is empty, or holds NaN or infinity."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{where}: a stimulus is a torch tensor, got {type(values).__name__}")
    if values.dtype != torch.float32:
        raise TypeError(f"{where}: a stimulus is float32, got {values.dtype}; convert it with .float()")
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(f"{where}: a stimulus has axes (..., T) and is not empty, got {tuple(values.shape)}")
    if np.isfinite(values.detach().cpu().numpy()).all():  # numpy: torch's threads cost more than the check
        return
    bad = ~torch.isfinite(values)
    first = tuple(int(i) for i in bad.nonzero()[0])
    raise ValueError(
        f"{where}: {int(bad.sum())} of {values.numel()} values are NaN or infinite, the first at {first}; "
        "stimuli must be finite: repair them, or leave the clip out"
    )


def check_dataset(ds: NeuralDataset) -> None:
    """Check everything the base contract promises."""
    check_bin_width(ds.dt)
    n_clips = len(ds.stim_meta)
    if len(ds.stims) != n_clips or len(ds.response_storage) != n_clips:
        raise ValueError(
            f"stims ({len(ds.stims)}), responses ({len(ds.response_storage)}) and stim_meta ({n_clips}) "
            "need one entry per clip"
        )
    if not _is_count(ds.N_neurons) or ds.N_neurons < 0:
        raise TypeError(f"N_neurons is a non-negative integer, got {ds.N_neurons!r}")
    if len(ds.nrn_meta) != ds.N_neurons:
        raise ValueError(f"nrn_meta has {len(ds.nrn_meta)} entries, N_neurons is {ds.N_neurons}")
    if ds.response_storage.n_neurons != ds.N_neurons:
        raise ValueError(
            f"responses hold {ds.response_storage.n_neurons} neurons per clip, N_neurons is {ds.N_neurons}; "
            "give every clip one entry per neuron (None where it was not recorded)"
        )
    _check_metadata(ds.stim_meta, "stim_meta")
    _check_metadata(ds.nrn_meta, "nrn_meta")
    for clip, stimulus in enumerate(ds.stims):
        check_stimulus(stimulus, f"clip {clip}")


def _check_metadata(meta: Sequence[Any], name: str) -> None:
    for index, row in enumerate(meta):
        if not isinstance(row, dict):
            raise TypeError(f"{name}[{index}] is a dictionary, got {type(row).__name__}")


def check_time(ds: NeuralDataset) -> None:
    """Stimulus and responses of every clip must cover the same number of bins."""
    for clip, responses in enumerate(ds.response_storage.clips):
        bins = ds.stimulus_bins(clip)
        if responses.heard.size and responses.n_bins != bins:
            reaching = responses.first_reaching(bins) if responses.n_bins > bins else None
            neuron = int(responses.heard[0]) if reaching is None else reaching
            raise ValueError(
                f"clip {clip}: the stimulus has {bins} bins of {ds.dt:g} ms, the neural responses (neuron "
                f"{neuron}) have {responses.n_bins}; cut both to the same length, e.g. with "
                "from_arrays(..., on_length_mismatch='trim')"
            )


def check_audio(ds: AudioNeuralDataset) -> None:
    """Check what audio datasets promise besides."""
    if not _is_count(ds.F) or ds.F < 1:
        raise TypeError(f"F is the number of frequency bands, a positive integer, got {ds.F!r}")
    if ds.hearing_range_hz is not None:
        low, high = ds.hearing_range_hz
        if not 0 < low < high:
            raise ValueError(f"hearing_range_hz needs 0 < low < high, got {ds.hearing_range_hz}")
    if ds.frequencies_hz is not None and tuple(ds.frequencies_hz.shape) != (ds.F,):
        raise ValueError(f"frequencies_hz has shape {tuple(ds.frequencies_hz.shape)}, F is {ds.F}")
    if ds.return_waveform:
        check_grid(ds)
        return
    for clip, stimulus in enumerate(ds.stims):
        if stimulus.ndim != 3 or stimulus.shape[-2] != ds.F:
            raise ValueError(f"clip {clip}: a spectrogram is (1, F={ds.F}, T), got {tuple(stimulus.shape)}")


def check_hop(audio_fs: Any, dt_ms: float) -> int:
    """Return the samples per bin; ValueError when it is no integer."""
    if not _is_count(audio_fs) or audio_fs < 1:
        raise TypeError(f"audio_fs is a sample rate in Hz, a positive integer, got {audio_fs!r}")
    samples = audio_fs * dt_ms / 1000.0
    hop = round(float(samples))
    if hop < 1 or abs(samples - hop) > HOP_TOLERANCE:
        near = max(1, hop) * 1000.0 / dt_ms
        raise ValueError(
            f"audio_fs={audio_fs} Hz gives {samples:g} samples per bin of {dt_ms:g} ms, which is not an "
            f"integer number of samples; resample the audio, e.g. to {near:g} Hz, or choose another bin width"
        )
    return hop


def check_grid(ds: AudioNeuralDataset) -> None:
    """The grid lock of waveform mode: mono, a whole number of bins, as long as the responses."""
    hop = check_hop(ds.audio_fs, ds.dt)
    for clip, stimulus in enumerate(ds.stims):
        if stimulus.ndim != 2 or stimulus.shape[0] != 1:
            raise ValueError(f"clip {clip}: a waveform is (1, T_audio), mono, got {tuple(stimulus.shape)}")
        if stimulus.shape[-1] % hop:
            raise ValueError(
                f"clip {clip}: {stimulus.shape[-1]} samples are no multiple of the {hop} samples of one bin; "
                f"crop to {stimulus.shape[-1] // hop * hop} samples or pad with zeros"
            )
