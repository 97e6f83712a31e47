"""Parts of clips as clips: pieces with gaps, which split a long recording, and windows with context."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from deepSTRF._validation import checked_but
from deepSTRF.datasets.recording import Recording, StimulusList
from deepSTRF.datasets.responses import ResponseStorage

__all__ = ["cut_pieces", "stretches", "windows"]

DatasetT = TypeVar("DatasetT", bound=Recording)


@checked_but("length_s", "hop_s", "context_ms")
def windows(ds: DatasetT, length_s: float, hop_s: float | None = None, context_ms: float = 0.0) -> DatasetT:
    """Dataset of the windows of long clips, each with a stretch before it that is heard and not scored.

    Windows are what a recording of hours is fitted in: a batch of them fits into memory, and a model starts
    each with its past. In the ``context_ms`` before a window the stimulus is there and the responses are NaN
    (`NeuralDataset.context_bins`), so that losses, metrics, ridge and statistics of the stimuli leave it out.
    With a context at least as long as the memory of the model, fits in closed form, predictions and scores
    (centred on the concatenated clips) are those of the whole recording. Data are shared, never copied.

    No context reaches into another part of a split: windows of one clip, or of equal sounds, stay on one side
    in `random_split`, `k_fold` and `leave_one_clip_out`, and `index_split` refuses roles whose windows
    overlap, context included. To split one long clip, cut it first, with a gap: ``windows(ds.cut(600e3,
    gap_ms=500.0), length_s=10.0)``; or make the windows of each view that a split has made.

    Parameters
    ----------
    ds : NeuralDataset
        Recording or view, mapped or in memory; standardised, smoothed and normalised as it may be.
    length_s : float
        Length of a window in s, without its context, rounded to whole bins.
    hop_s : float, optional
        Time from one window to the next in s, at most the length. None is the length: every bin is scored
        exactly once. The last window of a clip ends with it and may be shorter, so no bin is lost.
    context_ms : float
        Length of the context in ms, rounded to whole bins. At the start of a clip there is less of it.

    Returns
    -------
    NeuralDataset
        An `AudioNeuralDataset` where ``ds`` is one. ``stim_meta`` holds that of the clip and, beside it,
        "window_of" (hash of the clip's sound), "cut_from" (its name or index), "start_ms" (where the scored
        part begins), "context_ms" and "source_sha256".

    Raises
    ------
    TypeError, ValueError
        When a length is no number, a window is shorter than a bin, the hop is longer than a window (bins
        would be lost: ``ds.cut(..., gap_ms=...)`` leaves some out), or these are windows already.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.datasets import NeuralDataset
    >>> minute = NeuralDataset.from_arrays([torch.rand(4, 6000)], [torch.ones(2, 6000)], dt_ms=10.0)
    >>> parts = windows(minute, length_s=25.0, context_ms=200.0)
    >>> [parts.n_bins(clip) for clip in range(3)], [parts.context_bins(clip) for clip in range(3)]
    ([2500, 2520, 1020], [0, 20, 20])
    >>> int(parts.response_block(1).isnan().sum()), tuple(parts.stims[1].shape)
    (40, (1, 4, 2520))
    """
    length, context = _bins(ds, "length_s", length_s, 1000.0), _bins(ds, "context_ms", context_ms, 1.0)
    hop = length if hop_s is None else _bins(ds, "hop_s", hop_s, 1000.0)
    if length < 1 or hop < 1:
        raise ValueError(
            f"length_s={length_s!r} and hop_s={hop_s!r} are seconds of at least one bin of {ds.dt:g} ms"
        )
    if hop > length:
        raise ValueError(
            f"hop_s={hop_s!r} is longer than length_s={length_s!r}: bins between windows would be lost. "
            "ds.cut(length_ms, gap_ms=...) leaves gaps"
        )
    if any(ds.context_bins(clip) for clip in range(len(ds))):
        raise ValueError("these are windows already: make others from the recording they were made of")
    result = _blank_like(ds, {"window_ms": length * ds.dt, "context_ms": context * ds.dt})
    stimuli, transforms, responses, per_bin = [], [], [], ds.samples_per_bin
    for clip, row in enumerate(ds.stim_meta):
        total, sound = ds.n_bins(clip), ds.source_fingerprint(clip)
        last = max(0, -(-(total - length) // hop)) * hop  # the first window that reaches the end
        for start in range(0, last + 1, hop):
            stop, before = min(start + length, total), min(context, start)
            place = {
                "window_of": sound,
                "cut_from": row.get("cut_from", str(row.get("name", clip))),
                "start_ms": float(row.get("start_ms", 0.0)) + start * ds.dt,
                "context_ms": before * ds.dt,
                "source_sha256": _piece_hash(sound, start, stop, ds.dt, before),
            }
            result.stim_meta.append({**row, **place})
            stimuli.append(ds._stims.stimuli[clip].cropped((start - before) * per_bin, stop * per_bin))
            transforms.append(ds._stims.transforms[clip])
            responses.append(ds._storage.clips[clip].window(start - before, stop, before))
    result._stims = StimulusList(stimuli, transforms)
    result._storage = ResponseStorage(responses, ds.N_neurons)
    result._inferred_kind = ds.recorded_kind
    return result


def cut_pieces(ds: DatasetT, length_ms: float, gap_ms: float) -> DatasetT:
    """Dataset of the pieces of clips; see `NeuralDataset.cut`."""
    if ds.stim_normalization is not None or ds._normalization is not None:
        raise ValueError("cut first, then standardise or normalise with the training pieces: ds.cut(...)")
    n_bins, gap = _bins(ds, "length_ms", length_ms, 1.0), _bins(ds, "gap_ms", gap_ms, 1.0)
    if n_bins < 1:
        raise ValueError(f"length_ms={length_ms!r} is less than one bin of {ds.dt:g} ms")
    result = _blank_like(ds, {"cut_ms": n_bins * ds.dt, "cut_gap_ms": gap * ds.dt})
    stimuli, responses, per_bin = [], [], ds.samples_per_bin
    for clip, row in enumerate(ds.stim_meta):
        source, total = str(row.get("name", clip)), ds.n_bins(clip)
        for start in range(0, total, n_bins + gap):
            stop = min(start + n_bins, total)
            if 2 * (stop - start) < n_bins:
                result.load_report.skip(source, f"its last {total - start} bins are too short for a piece")
                continue
            place = {"cut_from": source, "start_ms": start * ds.dt}
            sha = _piece_hash(ds.source_fingerprint(clip), start, stop, ds.dt)
            result.stim_meta.append({**row, **place, "source_sha256": sha})
            stimuli.append(ds._stims.stimuli[clip].cropped(start * per_bin, stop * per_bin))
            responses.append(ds._storage.clips[clip].cropped(stop, start, copy=False))
    if not stimuli:
        raise ValueError(f"no clip holds half of length_ms={length_ms:g}; cut shorter pieces")
    result._stims = StimulusList(stimuli, [None] * len(stimuli))
    result._storage = ResponseStorage(responses, ds.N_neurons)
    result.validate()
    result._inferred_kind = ds._inferred_kind  # also where gaps hold the only negative values
    return result


def stretches(ds: DatasetT, parts: Sequence[tuple[int, int, int]], **facts: Sequence[Any]) -> DatasetT:
    """Dataset of stretches (clip, first bin, bin after the last) of clips; data are shared, never copied.

    Transforms of stimuli and responses stay; smoothing ends at the ends of a stretch, so that nothing of what
    lies beyond them enters. ``facts`` are one value per stretch for its ``stim_meta``.
    """
    result = _blank_like(ds, {})
    stimuli, transforms, responses, per_bin = [], [], [], ds.samples_per_bin
    for place, (clip, start, stop) in enumerate(parts):
        row = ds.stim_meta[clip]
        own = {
            "cut_from": row.get("cut_from", str(row.get("name", clip))),
            "start_ms": float(row.get("start_ms", 0.0)) + start * ds.dt,
            "source_sha256": _piece_hash(ds.source_fingerprint(clip), start, stop, ds.dt),
        }
        result.stim_meta.append({**row, **own, **{key: values[place] for key, values in facts.items()}})
        stimuli.append(ds._stims.stimuli[clip].cropped(start * per_bin, stop * per_bin))
        transforms.append(ds._stims.transforms[clip])
        responses.append(ds._storage.clips[clip].cropped(stop, start, copy=False))
    result._stims = StimulusList(stimuli, transforms)
    result._storage = ResponseStorage(responses, ds.N_neurons)
    result._inferred_kind = ds.recorded_kind
    return result


def _piece_hash(sound: str, start: int, stop: int, dt_ms: float, context: int = 0) -> str:
    """Hash that stands for a stretch of a sound."""
    text = f"{sound}:{start}:{stop}:{dt_ms!r}" + (f":{context}" if context else "")
    return hashlib.sha256(text.encode()).hexdigest()


def _blank_like(ds: DatasetT, facts: dict[str, Any]) -> DatasetT:
    """A dataset with the attributes of another one, of the package's own class, and without clips."""
    kind: Any = next(base for base in type(ds).__mro__ if base.__module__ == "deepSTRF.datasets.dataset")
    result: DatasetT = kind._blank(ds.dt)
    result.__dict__.update({key: ds.__dict__[key] for key in result.__dict__ if key in ds.__dict__})
    source: Any = ds
    plain = kind.describe(ds)  # what a loader's own class adds is unknown to the class of the pieces
    result.facts = {key: value for key, value in source.describe().items() if key not in plain}
    result.facts |= ds.facts | facts
    result.features = dict(ds.features)
    result.load_report = copy.deepcopy(ds.load_report)
    result.S_sel, result.nrn_meta, result.stim_meta = None, [dict(row) for row in ds.nrn_meta], []
    return result


def _bins(ds: Recording, name: str, length: Any, unit_ms: float) -> int:
    """A length in whole bins."""
    unit = "seconds" if unit_ms == 1000.0 else "milliseconds"
    if isinstance(length, bool) or not isinstance(length, (int, float, np.number)):
        raise TypeError(f"{name} is a number of {unit}, got {type(length).__name__}")
    if not (math.isfinite(length) and length >= 0):
        raise ValueError(f"{name} is a number of {unit} of at least 0, got {length!r}")
    return round(float(length) * unit_ms / ds.dt)
