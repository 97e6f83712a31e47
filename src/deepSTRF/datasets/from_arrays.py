"""Arrays to a dataset: conversion, default metadata, and the comparison of lengths, for ``from_arrays``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepSTRF.datasets.recording import Recording
from deepSTRF.datasets.responses import ResponseStorage, as_array, check_outer, pack_responses

__all__ = ["as_spectrogram", "as_waveform", "fill"]

_TRIM = "from_arrays(..., on_length_mismatch='trim') cuts both to the shorter"


def as_spectrogram(values: Any, where: str) -> Tensor:
    """(1, F, T) float32 copy of (F, T) or (1, F, T); arrays of higher rank (videos) keep their shape."""
    stimulus = _as_float32(values, where)
    if stimulus.ndim < 2:
        raise ValueError(
            f"stimulus of {where}: a spectrogram is (F, T) or (1, F, T), got shape {tuple(stimulus.shape)}; "
            "for waveforms use AudioNeuralDataset.from_arrays(..., audio_fs=<sample rate in Hz>)"
        )
    return stimulus[None] if stimulus.ndim == 2 else stimulus


def as_waveform(values: Any, where: str) -> Tensor:
    """(1, T_audio) float32 copy of (T_audio,) or (1, T_audio)."""
    stimulus = _as_float32(values, where)
    return stimulus[None] if stimulus.ndim == 1 else stimulus


def _as_float32(values: Any, where: str) -> Tensor:
    return torch.from_numpy(as_array(values, f"stimulus of {where}").astype("float32"))


def fill(
    ds: Recording,
    stims: Sequence[Any],
    responses: Sequence[Any],
    as_stimulus: Callable[[Any, str], Tensor],
    *,
    stim_meta: Sequence[dict[str, Any]] | None,
    nrn_meta: Sequence[dict[str, Any]] | None,
    name: str | None,
    on_length_mismatch: str,
) -> None:
    """Put arrays and metadata into an empty recording, which is not validated here."""
    if on_length_mismatch not in ("error", "trim"):
        raise ValueError(f"on_length_mismatch is 'error' or 'trim', got {on_length_mismatch!r}")
    check_outer(responses)
    if len(stims) != len(responses) or len(stims) == 0:
        raise ValueError(
            "stims and responses need one entry per clip and at least one clip, "
            f"got {len(stims)} and {len(responses)}"
        )
    storage = pack_responses(responses, None if nrn_meta is None else len(nrn_meta), copy=True)
    stimuli = [as_stimulus(values, f"clip {clip}") for clip, values in enumerate(stims)]
    ds.N_neurons = storage.n_neurons
    ds.stim_meta = _metadata(stim_meta, len(stimuli), "stim_meta", "name", "clip")
    ds.nrn_meta = _metadata(nrn_meta, storage.n_neurons, "nrn_meta", "cell_id", "neuron")
    if name is not None:
        ds.name = name
    ds.load_report.kept += [str(row.get("cell_id", row.get("name", n))) for n, row in enumerate(ds.nrn_meta)]
    clips = list(storage.clips)
    for clip, stimulus in enumerate(stimuli):
        n_bins = _common_bins(ds, clip, stimulus, storage, trim=on_length_mismatch == "trim")
        if n_bins is not None:
            stimuli[clip] = stimulus[..., : n_bins * ds.samples_per_bin].clone()
            clips[clip] = clips[clip].cropped(n_bins)
    ds.stims = stimuli
    ds._storage = ResponseStorage(clips, storage.n_neurons)


def _metadata(
    given: Sequence[dict[str, Any]] | None, count: int, what: str, key: str, word: str
) -> list[dict[str, Any]]:
    if given is None:
        return [{key: f"{word}{index:03d}"} for index in range(count)]
    if len(given) != count:
        raise ValueError(f"{what} has {len(given)} entries for {count} {word}s; give one dictionary each")
    return [dict(row) for row in given]


def _common_bins(
    ds: Recording, clip: int, stimulus: Tensor, storage: ResponseStorage, *, trim: bool
) -> int | None:
    """Bins to cut a clip to (trailing bins without a value always go), None when both fit; reports it."""
    responses, per_bin = storage.clips[clip], ds.samples_per_bin
    bins, rest = divmod(stimulus.shape[-1], per_bin)
    recorded = responses.n_bins if responses.heard.size else bins
    reaching = responses.first_reaching(bins) if recorded > bins else None
    if not trim and rest:
        raise ValueError(
            f"clip {clip}: {stimulus.shape[-1]} samples are no multiple of the {per_bin} samples of one "
            f"bin; crop to {bins * per_bin}, or {_TRIM} (and to whole bins)"
        )
    if not trim and reaching is not None:
        turned = stimulus.ndim == 3 and stimulus.shape[-2] == recorded
        hint = "a spectrogram is (F, T): is it transposed?" if turned else f"if both start together, {_TRIM}"
        raise ValueError(
            f"clip {clip}: the neural responses ({recorded} bins of {ds.dt:g} ms, neuron {reaching}) are "
            f"longer than the stimulus ({bins} bins); {hint}"
        )
    if not trim and recorded < bins:
        raise ValueError(
            f"clip {clip}: the neural responses ({recorded} bins of {ds.dt:g} ms) are shorter than the "
            f"stimulus ({bins} bins); if both start together, {_TRIM}, or pad the responses with NaN"
        )
    if recorded == bins and not rest:
        return None
    common = min(recorded, bins)
    samples = stimulus.shape[-1] - common * per_bin
    unit = "frames" if per_bin == 1 else "samples"
    cut = [f"the last {samples} {unit} of its stimulus"] if samples else []
    cut += [f"the last {recorded - bins} bins of its responses"] if reaching is not None else []
    if cut:
        ds.load_report.skip(f"clip {clip}", f"{' and '.join(cut)} cut by on_length_mismatch='trim'")
    return common
