"""Arrays to a dataset: layouts that recordings come in, default metadata, lengths, for ``from_arrays``.

Time is the last axis of arrays. Tables (pandas, rows are time bins), labelled arrays (xarray), sparse and
masked arrays and MATLAB cells are recognised by what they offer, so none of those packages is needed. What
could be read in two ways is refused with the call that settles it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF._text import check_name, printable
from deepSTRF._validation import check_choice, check_non_negative, outside_level
from deepSTRF.datasets.recording import Recording, check_metadata
from deepSTRF.datasets.responses import (
    Array,
    ClipResponses,
    ResponseStorage,
    as_array,
    check_outer,
    pack_responses,
)

__all__ = [
    "DEFAULT_BANDS",
    "LEVELS",
    "as_spectrogram",
    "as_waveform",
    "check_sound_level",
    "fill",
    "from_full_scale",
    "given_frequencies",
    "set_level",
]

#: Bands a front-end makes of a waveform by default: the width of the NS1 cochleagram.
DEFAULT_BANDS = 34
#: A baseline that differs from whole bins by no more than this share of a bin is one.
_WHOLE_BIN = 1e-6
#: An excess of the responses that may be a baseline before the stimulus.
_BASELINE_MS = (20.0, 5000.0)
_TRIM = "from_arrays(..., on_length_mismatch='trim') cuts both to the shorter"
#: Levels of sounds: as they came, rms or peak of the recording 1, or sound pressure in pascal.
LEVELS = ("raw", "rms", "peak", "pascal")
#: Names of dimensions of a labelled array, per axis of ours.
_DIMENSIONS = {
    "neuron": ("neuron", "neurons", "unit", "units", "cell", "cells", "cell_id", "unit_id", "neuroid", "n"),
    "repeat": ("repeat", "repeats", "trial", "trials", "repetition", "presentation", "r"),
    "frequency": ("frequency", "frequencies", "freq", "band", "bands", "frequency_hz", "mel", "f"),
    "time": ("time", "times", "t", "bin", "bins", "time_bin", "frame", "frames", "sample", "samples"),
}
#: Lengths that differ by less than this share are one length cut differently, not another axis.
_SAME_LENGTH = 0.25


# ---- other containers


def _is_number(value: Any) -> bool:
    return np.isscalar(value) or getattr(value, "ndim", None) == 0


def _is_table(values: Any) -> bool:
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def _is_labelled(values: Any) -> bool:
    return hasattr(values, "dims") and hasattr(values, "transpose") and hasattr(values, "coords")


def _axes(values: Any, axes: Sequence[str], what: str) -> list[str]:
    """Which of our axes each dimension of a labelled array is."""
    found = [next((a for a in axes if str(d).lower() in _DIMENSIONS[a]), "") for d in values.dims]
    if "" in found or len(set(found)) != len(found) or "time" not in found:
        raise ValueError(
            f"{what}: dimensions {tuple(values.dims)} are not known; name them {', '.join(map(repr, axes))} "
            "with .rename(...), or pass .values in that order"
        )
    return found


def _unwrapped(values: Any) -> Any:
    """Sparse, masked and object arrays as plain arrays; a MATLAB cell as a list."""
    if hasattr(values, "toarray"):
        return values.toarray()
    if isinstance(values, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(values), np.nan, values.data)
    if not isinstance(values, np.ndarray) or values.dtype != object:
        return values
    if all(value is None or _is_number(value) for value in values.flat):
        try:
            return values.astype(np.float64)  # numbers that a table or JSON kept as objects, None as NaN
        except (TypeError, ValueError):
            return values
    if values.size == max(values.shape):  # a row or a column of cells
        return list(values.flat)
    return [_unwrapped(row) for row in values]


def _sole(values: Any) -> Any:
    """The content of a 1 x 1 cell, anything else as it is."""
    values = _unwrapped(values)
    while isinstance(values, list) and len(values) == 1 and isinstance(values[0], np.ndarray):
        values = _unwrapped(values[0])
    return values


# ---- stimuli


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
    """(1, T_audio) float32 copy of (T_audio,), (1, T_audio) or the column (T_audio, 1); integers in +-1."""
    stimulus = _as_float32(values, where, full_scale=True)
    if stimulus.ndim == 2 and stimulus.shape[1] == 1:
        stimulus = stimulus.T
    if stimulus.ndim == 2 and stimulus.shape[0] > 1:
        axis = int(stimulus.shape[1] < stimulus.shape[0])
        one = "sound[:, 0]" if axis else "sound[0]"
        raise ValueError(
            f"stimulus of {where}: a waveform is (1, T_audio), mono, got {tuple(stimulus.shape)}; mix its "
            f"{stimulus.shape[axis]} channels with sound.mean(axis={axis}), or take one with {one}"
        )
    return stimulus[None] if stimulus.ndim == 1 else stimulus


def joined_features(
    stims: Sequence[Any], clips: Sequence[str], *, trim: bool = False
) -> tuple[list[Tensor], dict[str, int]]:
    """Stimuli (1, F, T) of mappings {feature: (F, T) or (T,)}, and the rows of each feature in order."""
    order: dict[str, int] = {}
    stimuli = []
    for given, where in zip(stims, clips, strict=True):
        if not isinstance(given, Mapping) or not given:
            raise TypeError(f"stimulus of {where}: named features are a mapping from names to arrays")
        if order and set(given) != set(order):
            raise ValueError(
                f"stimulus of {where}: it has the features {_named(given)}, earlier clips {_named(order)}; "
                "give every clip the same ones"
            )
        parts = _features(given, where)
        lengths = {name: int(part.shape[-1]) for name, part in parts.items()}
        shortest = min(lengths.values())
        if len(set(lengths.values())) > 1 and not trim:
            text = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise ValueError(f"stimulus of {where}: its features differ in length (bins: {text}); {_TRIM}")
        for name in order or given:
            rows = int(parts[name].shape[-2])
            if rows != order.setdefault(name, rows):
                raise ValueError(
                    f"stimulus of {where}: feature {name!r} has {rows} rows, earlier clips {order[name]}"
                )
        stimuli.append(torch.cat([parts[name][..., :shortest] for name in order], dim=-2))
    return stimuli, order


def _named(features: Iterable[Any]) -> str:
    return ", ".join(f"{printable(str(name))!r}" for name in features)


def _features(given: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Every feature of one clip as (1, F, T), checked."""
    parts = {}
    for name, values in given.items():
        what = f"{where}, feature {printable(str(name))!r}"
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"stimulus of {where}: a feature's name is a text, got {name!r:.80}")
        check_name("features", name)
        array = _as_float32(values, what)
        if array.ndim == 0 or array.numel() == 0:
            raise ValueError(
                f"stimulus of {what}: it is (F, T) or (T,) and not empty, got {tuple(array.shape)}"
            )
        parts[name] = array[None] if array.ndim == 1 else array
    lengths = [part.shape[-1] for part in parts.values()]
    for name, part in parts.items():
        what = f"stimulus of {where}, feature {printable(name)!r}"
        if part.ndim == 2 and part.shape[1] == 1 and part.shape[0] in lengths:
            part = part.T  # a column, as of MATLAB
        part = part[None] if part.ndim == 2 else part
        if part.ndim != 3 or part.shape[0] != 1:
            raise ValueError(f"{what}: a feature is (F, T) or (T,), got {tuple(part.shape)}")
        if len(set(lengths)) > 1 and lengths.count(part.shape[-1]) == 1 and part.shape[-2] in lengths:
            raise ValueError(
                f"{what}: {tuple(part.shape[-2:])} seems to be transposed: time is the last axis; pass its .T"
            )
        if not bool(torch.isfinite(part).all()):
            bad = int((~torch.isfinite(part)).sum())
            raise ValueError(
                f"{what}: {bad} of {part.numel()} values are NaN or infinite; stimuli must be finite: repair "
                "them, or leave the clip out"
            )
        parts[name] = part
    return parts


def given_frequencies(features: Mapping[str, int], frequencies_hz: Any) -> dict[str, Any]:
    """Centre frequencies by feature, of a mapping or of the array of the one feature that has bands."""
    if frequencies_hz is None:
        return {}
    if not isinstance(frequencies_hz, Mapping):
        size = int(np.size(frequencies_hz))
        fitting = [name for name, rows in features.items() if rows == size]
        name = "spectrogram" if "spectrogram" in features else fitting[0] if len(fitting) == 1 else None
        if name is None:
            raise ValueError(
                f"frequencies_hz holds {size} frequencies, the features {_named(features)} have "
                f"{list(features.values())} rows: which is it? Pass frequencies_hz={{feature: frequencies}}"
            )
        frequencies_hz = {name: frequencies_hz}
    unknown = [name for name in frequencies_hz if name not in features]
    if unknown:
        raise ValueError(f"frequencies_hz names {_named(unknown)}; the features are {_named(features)}")
    return {name: np.asarray(hertz, dtype=np.float64) for name, hertz in frequencies_hz.items()}


def _as_float32(values: Any, where: str, *, full_scale: bool = False) -> Tensor:
    what = f"stimulus of {where}"
    if isinstance(values, Mapping):
        raise TypeError(f"{what}: named features are for spectrograms, not for waveforms (audio_fs=...)")
    if _is_table(values):
        values = values.to_numpy().T
    elif _is_labelled(values):
        axes = _axes(values, ("frequency", "time"), what)
        values = np.moveaxis(np.asarray(values.values), axes.index("time"), -1)
    array = as_array(_sole(values), what)
    if full_scale and array.dtype.kind in "iub":
        array = from_full_scale(array, what)
    return torch.from_numpy(array.astype("float32"))


def from_full_scale(samples: Array, what: str) -> Array:
    """Samples of a sound file as float64 in +-1: signed by their full scale, unsigned around its middle."""
    bits = 8 * samples.dtype.itemsize
    if bits > 32 or samples.dtype.kind == "b":
        raise ValueError(
            f"{what}: {samples.dtype} is no sample format of sounds, so that its full scale is unknown; pass "
            "the integers of the file (int16, int32 with 24 bits shifted to the top, uint8), or floats"
        )
    half = 2.0 ** (bits - 1)
    return samples.astype(np.float64) / half - (1.0 if samples.dtype.kind == "u" else 0.0)


def set_level(stimuli: Sequence[Tensor], level: str) -> float:
    """Multiply all waveforms in place by one factor, which brings the recording to a level; return it."""
    if level in ("raw", "pascal"):
        return 1.0
    values = [stimulus.double() for stimulus in stimuli]
    if level == "peak":
        reference = max(float(v.abs().max()) for v in values)
    else:
        total = sum(float(v.square().sum()) for v in values)
        reference = (total / sum(v.numel() for v in values)) ** 0.5
    if not 0.0 < reference < float("inf"):
        raise ValueError(f"level={level!r} needs sounds that are not silent; all samples are 0")
    for stimulus, v in zip(stimuli, values, strict=True):
        stimulus.copy_(v / reference)
    return 1.0 / reference


def check_sound_level(stims: Sequence[Any], level: Any, *, is_waveform: bool) -> None:
    """Raise ValueError for an unknown level, one of spectrograms, or integers in pascal; warn of 8 bits."""
    check_choice("level", level, LEVELS)
    if level != "raw" and not is_waveform:
        raise ValueError(f"level={level!r} is for waveforms (audio_fs=...); these stimuli are spectrograms")
    stims = list(stims.values()) if isinstance(stims, Mapping) else stims
    kinds = [str(getattr(stim, "dtype", "")).replace("torch.", "") for stim in stims]
    integers = [kind for kind in kinds if kind.startswith(("int", "uint"))]
    if is_waveform and {"int8", "uint8"} & set(integers):
        warnings.warn(
            "sounds of 8 bits have a level range of 48 dB: what was quieter is silence or noise, which "
            "front-ends with a logarithm show as large; take the recording with more bits where there is one",
            UserWarning,
            stacklevel=outside_level(),
        )
    if level == "pascal" and integers:
        raise ValueError(
            f"level='pascal' is for sounds in pascal, got {integers[0]} samples; multiply them by their "
            "calibration first"
        )


# ---- responses


class _Names:
    """Neurons by name: those of the metadata, else in the order in which clips name them."""

    def __init__(self, nrn_meta: Sequence[dict[str, Any]] | None) -> None:
        self.fixed = nrn_meta is not None
        rows = [row for row in nrn_meta or () if isinstance(row, Mapping)]
        names = [str(row.get("cell_id", row.get("name", n))) for n, row in enumerate(rows)]
        self.index = {name: n for n, name in enumerate(names)}
        self.twice = len(self.index) < len(names)

    def find(self, name: str, where: str) -> int:
        """Index of a neuron; a new one when there are no metadata."""
        if name not in self.index and not self.fixed:
            self.index[name] = len(self.index)
        if name not in self.index or self.twice:
            problem = "has equal cell_ids" if self.twice else f"names {', '.join(list(self.index)[:8])}"
            raise ValueError(f"{where}: neuron {name!r} cannot be found: nrn_meta {problem}")
        return self.index[name]


def _clip_entry(entry: Any, n_bins: int, names: _Names, where: str) -> Any:
    """One clip's responses as a numeric array, a list by neuron, or a dictionary by index."""
    if _is_table(entry):  # rows are bins, columns neurons
        columns = [str(column) for column in entry.columns]
        if len(set(columns)) < len(columns):
            raise ValueError(f"{where}: two columns of the table have one name; columns are neurons")
        if len(entry) != n_bins and len(columns) == n_bins:
            raise ValueError(
                f"{where}: a table has one row per bin and one column per neuron, this one seems to be "
                f"transposed ({len(entry)} rows, {n_bins} bins); pass table.T"
            )
        values = _unwrapped(entry.to_numpy())
        if list(entry.columns) == list(range(len(columns))):
            return values.T  # unnamed
        entry = {column: values[:, at] for at, column in enumerate(columns)}
    elif _is_labelled(entry):
        entry = _labelled(entry, f"responses of {where}")
    if isinstance(entry, Mapping):
        return _by_index(entry, n_bins, names, where)
    entry = _unwrapped(entry)
    if isinstance(entry, (list, tuple)):
        if entry and all(map(_is_number, entry)):
            return as_array(entry, f"responses of {where}")  # one row of numbers
        return [_neuron_entry(one, n_bins, f"{where}, neuron {n}") for n, one in enumerate(entry)]
    return as_array(entry, f"responses of {where}")


def _labelled(entry: Any, what: str) -> Any:
    """(N, R, T) or (N, T) of a labelled array, by name where its neurons have names."""
    axes = _axes(entry, ("neuron", "repeat", "time"), what)
    order = [axes.index(axis) for axis in ("neuron", "repeat", "time") if axis in axes]
    values = np.asarray(entry.values).transpose(order)
    if "neuron" not in axes:
        return values.reshape(1, -1, values.shape[-1])
    dimension = entry.dims[axes.index("neuron")]
    labels = list(np.asarray(entry.coords[dimension])) if dimension in entry.coords else []
    if any(isinstance(label, str) for label in labels):
        return {str(label): row for label, row in zip(labels, values, strict=True)}
    return values


def _by_index(entry: Mapping[Any, Any], n_bins: int, names: _Names, where: str) -> dict[int, Any]:
    """A dictionary by neuron name or index as one by index."""
    found = {}
    for key, value in entry.items():
        if not isinstance(key, (str, int, np.integer)) or isinstance(key, bool):
            raise TypeError(
                f"{where}: responses by neuron have the neuron's name or index as key, got {key!r}"
            )
        index = names.find(key, where) if isinstance(key, str) else int(key)
        if index in found:
            raise ValueError(f"{where}: neuron {index} has two entries; use names or indices, not both")
        found[index] = _neuron_entry(value, n_bins, f"{where}, neuron {key}")
    return found


def _neuron_entry(entry: Any, n_bins: int, where: str) -> Any:
    """One neuron's responses to a clip: (R, T), (T,), a list of repeats, or None."""
    if entry is None:
        return None
    if _is_table(entry):
        entry = entry.to_numpy().T
    elif _is_labelled(entry):
        axes = _axes(entry, ("repeat", "time"), where)
        entry = np.moveaxis(np.asarray(entry.values), axes.index("time"), -1)
    entry = _sole(entry)
    if isinstance(entry, (list, tuple)) and entry and not all(map(_is_number, entry)):
        rows = [as_array(_sole(row), f"{where}, repeat {r}") for r, row in enumerate(entry)]
        rows = [row.reshape(-1) if row.size == max(row.shape, default=0) else row for row in rows]
        if all(row.ndim == 1 for row in rows):
            return rows if len({row.size for row in rows}) > 1 else np.array(rows)
    array = as_array(entry, where)
    if array.size == 0:
        return None
    return array.T if array.ndim == 2 and array.shape[1] == 1 and n_bins > 1 else array


def _arrays(entry: Any) -> list[Array]:
    """The arrays in one clip's entry."""
    if isinstance(entry, np.ndarray):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    parts = (one if isinstance(one, list) else [one] for one in values if one is not None)
    return [part for some in parts for part in some if part.ndim]


def _recorded_bins(values: Array) -> int:
    """Length of the last axis without what is NaN throughout at its end."""
    if values.dtype.kind != "f":
        return int(values.shape[-1])
    there = np.flatnonzero(~np.isnan(values).all(axis=tuple(range(values.ndim - 1))))
    return int(there[-1]) + 1 if there.size else 0


def _check_time_is_last(stimulus: Tensor, n_bins: int, entry: Any, clip: int, dt_ms: float) -> None:
    """Refuse arrays whose time axis is not the last one, where lengths say so."""

    def is_close(length: int) -> bool:
        return abs(length - n_bins) <= _SAME_LENGTH * n_bins

    arrays = [values for values in _arrays(entry) if values.size]
    longest = max((values.shape[-1] for values in arrays), default=n_bins)
    if is_close(longest) or is_close(max(map(_recorded_bins, arrays))):
        return
    frames = int(stimulus.shape[-2]) if stimulus.ndim == 3 else 0  # what T would be in a transposed stimulus
    for shape in dict.fromkeys(values.shape for values in arrays):
        axis = next((a for a, length in enumerate(shape[:-1]) if n_bins > 1 and length == n_bins), None)
        if axis is not None:
            turned = "responses.T" if len(shape) == 2 else f"np.moveaxis(responses, {axis}, -1)"
            raise ValueError(
                f"clip {clip}: responses of shape {shape} seem to be transposed: axis {axis} has the "
                f"{n_bins} bins of the stimulus, and time is the last axis; pass {turned}"
            )
        if frames > 1 and frames == shape[-1]:
            relation = "longer" if frames > n_bins else "shorter"
            raise ValueError(
                f"clip {clip}: the neural responses ({frames} bins of {dt_ms:g} ms) are {relation} than the "
                f"stimulus ({n_bins} bins); a spectrogram is (F, T): is it transposed? Then pass stim.T"
            )
        if frames > max(n_bins, shape[-1]) and frames in shape[:-1]:
            raise ValueError(
                f"clip {clip}: stimulus {tuple(stimulus.shape[-2:])} and responses {shape} seem to be "
                "transposed: time is the last axis; pass stim.T and responses.T"
            )


def _with_neurons(entries: list[Any], n_known: int | None) -> list[Any]:
    """Entries with (A, T) arrays read as A neurons, or as A repeats where other clips hold one neuron."""
    entries = [e[None] if isinstance(e, np.ndarray) and e.ndim == 1 else e for e in entries]
    flat = [clip for clip, entry in enumerate(entries) if _is_flat(entry)]
    others = [len(e) for clip, e in enumerate(entries) if clip not in flat and not isinstance(e, dict)]
    expected = n_known if n_known is not None else others[0] if others else None
    rows = [len(entries[clip]) for clip in flat]
    if others and set(others) == {1}:
        for clip in flat:
            entries[clip] = [entries[clip]]
    elif len({*rows, expected or rows[0]} if rows else ()) > 1:
        counts = f"{', '.join(map(str, dict.fromkeys(rows)))} rows" + ("" if len(rows) == 1 else " per clip")
        raise ValueError(
            f"responses of two axes, (N, T), have {counts}"
            + (f"; other clips or nrn_meta say {expected} neurons" if expected is not None else "")
            + ". Give every clip one row per neuron (NaN or None where it was not recorded); repeats of one "
            "neuron are responses[None], (1, R, T)"
        )
    return entries


def _is_flat(entry: Any) -> bool:
    """Whether an entry is (A, T) or (T,), or a list of rows (T,): neurons, or repeats of one neuron."""
    if isinstance(entry, list):
        return bool(entry) and all(isinstance(one, np.ndarray) and one.ndim == 1 for one in entry)
    return isinstance(entry, np.ndarray) and entry.ndim < 3


def _outer(values: Any, n_clips: int | None, what: str) -> Any:
    """A list of clips of a MATLAB cell; refuses one table where a list of clips is needed."""
    if _is_table(values) or _is_labelled(values):
        raise TypeError(f"{what} is a list with one entry per clip; for one clip pass [{what}]")
    if isinstance(values, np.ndarray) and values.dtype == object and values.ndim > 1:
        is_one_clip = n_clips == 1 and values.shape[0] == 1 and values.size > 1
        return list(values) if is_one_clip else _unwrapped(values)
    return values


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
    pre_ms: float,
) -> int:
    """Put arrays and metadata into an empty recording, which is not validated here.

    Returns the number of bins that the responses to every clip were longer than its stimulus, 0 if any fits.
    """
    if on_length_mismatch not in ("error", "trim"):
        raise ValueError(f"on_length_mismatch is 'error' or 'trim', got {on_length_mismatch!r}")
    if isinstance(stims, Mapping) and isinstance(responses, Mapping) and set(stims) == set(responses):
        stim_meta = [{"name": str(key)} for key in stims] if stim_meta is None else stim_meta
        stims, responses = list(stims.values()), [responses[key] for key in stims]  # clips by name
    if isinstance(stims, Mapping):
        raise TypeError(
            "stims is a list with one entry per clip, and features of a clip are a mapping in it; for one "
            "clip pass [stims] and [responses], for clips by name mappings with the same names"
        )
    stims = _outer(stims, None, "stims")
    responses = _outer(responses, len(stims), "responses")
    check_outer(responses)
    if len(stims) != len(responses) or len(stims) == 0:
        one = as_stimulus is as_waveform and len(stims) > 0 and _is_number(stims[0])
        one = one or (len(getattr(stims, "shape", ())) == 2 and len(responses) == 1)
        raise ValueError(
            "stims and responses need one entry per clip and at least one clip, "
            f"got {len(stims)} and {len(responses)}"
            + ("; for one clip pass [stims] and [responses]" if one else "")
        )
    if any(isinstance(values, Mapping) for values in stims) and as_stimulus is as_spectrogram:
        where = [f"clip {clip}" for clip in range(len(stims))]
        stimuli, ds.features = joined_features(stims, where, trim=on_length_mismatch == "trim")
    else:
        stimuli = [as_stimulus(values, f"clip {clip}") for clip, values in enumerate(stims)]
    n_before = _bins_before(pre_ms, ds.dt)
    storage, names = _pack(ds, stimuli, responses, nrn_meta, n_before)
    ds.N_neurons = storage.n_neurons
    if nrn_meta is None and names:
        nrn_meta = [{"cell_id": neuron} for neuron in names]
    ds.stim_meta = _metadata(stim_meta, len(stimuli), "stim_meta", "name", "clip")
    ds.nrn_meta = _metadata(nrn_meta, storage.n_neurons, "nrn_meta", "cell_id", "neuron")
    if name is not None:
        ds.name = name
    ds.load_report.kept += [str(row.get("cell_id", row.get("name", n))) for n, row in enumerate(ds.nrn_meta)]
    clips = [
        _without_baseline(ds, clip, responses, n_before, stimuli[clip].shape[-1] // ds.samples_per_bin)
        for clip, responses in enumerate(storage.clips)
    ]
    excess = []
    for clip, stimulus in enumerate(stimuli):
        bins = stimulus.shape[-1] // ds.samples_per_bin
        if clips[clip].heard.size:
            excess.append(0 if clips[clip].first_reaching(bins) is None else clips[clip].n_bins - bins)
        n_bins = _common_bins(ds, clip, stimulus, clips[clip], trim=on_length_mismatch == "trim")
        if n_bins is not None:
            stimuli[clip] = stimulus[..., : n_bins * ds.samples_per_bin].clone()
            clips[clip] = clips[clip].cropped(n_bins)
    ds.stims = stimuli
    ds._storage = ResponseStorage(clips, storage.n_neurons)
    return max(0, min(excess, default=0))


def _bins_before(pre_ms: Any, dt_ms: float) -> int:
    """Bins of a baseline, which must be whole."""
    length = check_non_negative("pre_ms", pre_ms)
    bins = round(length / dt_ms)
    if abs(length / dt_ms - bins) > _WHOLE_BIN:
        raise ValueError(
            f"pre_ms={length:g} is {length / dt_ms:g} bins of {dt_ms:g} ms, and must be whole bins; bin the "
            "responses so that a bin begins where the stimulus does"
        )
    return bins


def _without_baseline(
    ds: Recording, clip: int, responses: ClipResponses, n_before: int, n_bins: int
) -> ClipResponses:
    """Responses from the beginning of the stimulus on, and no further than its end; reports what it cuts."""
    if n_before == 0 or not responses.heard.size:
        return responses
    recorded = responses.n_bins
    if recorded < n_before + n_bins:
        raise ValueError(
            f"clip {clip}: with a baseline of pre_ms={n_before * ds.dt:g} ({n_before} bins) the neural "
            f"responses ({recorded} bins) would end before the stimulus ({n_bins} bins); where they are as "
            "long as the stimulus, they hold no baseline or the stimulus holds it too"
        )
    after = recorded - n_before - n_bins
    tail = f" and the {after} bins after the stimulus" if after else ""
    ds.load_report.skip(f"clip {clip}", f"the {n_before} bins before the stimulus{tail} cut by pre_ms")
    return responses.cropped(n_before + n_bins, n_before)


def _pack(
    ds: Recording,
    stimuli: Sequence[Tensor],
    responses: Sequence[Any],
    nrn_meta: Sequence[dict[str, Any]] | None,
    n_before: int,
) -> tuple[ResponseStorage, list[str]]:
    """Packed responses, and the names of their neurons where the clips give names."""
    names = _Names(nrn_meta)
    entries = []
    for clip, (stimulus, given) in enumerate(zip(stimuli, responses, strict=True)):
        n_bins = n_before + stimulus.shape[-1] // ds.samples_per_bin
        entries.append(_clip_entry(given, n_bins, names, f"clip {clip}"))
        _check_time_is_last(stimulus, n_bins, entries[-1], clip, ds.dt)
    named = [] if names.fixed else list(names.index)
    n_known = len(nrn_meta) if nrn_meta is not None else len(named) or None
    return pack_responses(_with_neurons(entries, n_known), n_known, copy=True), named


def _metadata(
    given: Sequence[dict[str, Any]] | None, count: int, what: str, key: str, word: str
) -> list[dict[str, Any]]:
    if given is None:
        return [{key: f"{word}{index:03d}"} for index in range(count)]
    if len(given) != count:
        raise ValueError(f"{what} has {len(given)} entries for {count} {word}s; give one dictionary each")
    for index, row in enumerate(given):
        if not isinstance(row, Mapping):
            raise TypeError(f"{what}[{index}] is a dictionary, got {type(row).__name__}")
        check_metadata(row, f"{what}[{index}]")
    return [dict(row) for row in given]


def _common_bins(
    ds: Recording, clip: int, stimulus: Tensor, responses: ClipResponses, *, trim: bool
) -> int | None:
    """Bins to cut a clip to (trailing bins without a value always go), None when both fit; reports it."""
    per_bin = ds.samples_per_bin
    bins, rest = divmod(stimulus.shape[-1], per_bin)
    recorded = responses.n_bins if responses.heard.size else bins
    reaching = responses.first_reaching(bins) if recorded > bins else None
    if recorded != bins and _are_times(responses):
        raise ValueError(
            f"clip {clip}: the responses look like spike times (they ascend in every repeat, and there are "
            f"{recorded} for {bins} bins); count spikes first: deepSTRF.datasets.bin_spikes(times_ms, "
            f"n_bins={bins}, dt_ms={ds.dt:g}) with one list of times per repeat gives (R, T)"
        )
    if not trim and rest:
        raise ValueError(
            f"clip {clip}: {stimulus.shape[-1]} samples are no multiple of the {per_bin} samples of one "
            f"bin; crop to {bins * per_bin}, or {_TRIM} (and to whole bins)"
        )
    if not trim and reaching is not None:
        longer, hint = (recorded - bins) * ds.dt, f"if both start together, {_TRIM}"
        if _BASELINE_MS[0] <= longer <= _BASELINE_MS[1]:
            hint = (
                f"if they begin before it, with a baseline of {longer:g} ms (or a shorter one, and time "
                f"after the stimulus), pass from_arrays(..., pre_ms={longer:g}); only if both start "
                f"together, {_TRIM}"
            )
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


def _are_times(responses: ClipResponses) -> bool:
    """Whether every row of two or more values ascends strictly, and one holds at least three."""
    rows = [row[~np.isnan(row)] for block in responses.values() for row in block]
    rows = [row for row in rows if row.size > 1]
    return any(row.size > 2 for row in rows) and all(bool((np.diff(row) > 0).all()) for row in rows)
