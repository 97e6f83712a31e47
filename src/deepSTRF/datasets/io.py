"""A dataset in files without pickles: stimuli, responses as recorded, metadata and transforms.

One ``.npz`` file holds it compressed and is read whole. A folder holds an array per clip, which is read piece
by piece when it is needed: for recordings that are longer than memory.

Responses are written as recorded together with smoothing and normalisation, so nothing is lost by saving a
smoothed view. A file appears under its name only when it is complete, and carries its size and SHA-256 (see
`deepSTRF._files`). What is read is checked like what `from_arrays` is given: no header, index or shape in a
file is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepSTRF._files import (
    Artefact,
    DamagedFileError,
    check_regular,
    load_npz,
    load_sealed_npz,
    naming_damage,
    npz_bytes,
    read_folder,
    replace_folder,
    warn_unsealed,
    write_sealed_zip,
)
from deepSTRF._validation import check_memory
from deepSTRF.datasets.from_arrays import LEVELS
from deepSTRF.datasets.recording import LoadReport, Recording, Stimulus, StimulusList, check_metadata
from deepSTRF.datasets.responses import ClipResponses, ResponseStorage, stored_responses
from deepSTRF.datasets.stored import FileArray, npy_pieces, open_npy, row_pieces
from deepSTRF.datasets.transforms import METHODS, ResponseNormalization, StimulusStandardization

__all__ = [
    "REMEDY",
    "check_header",
    "open_mapped",
    "read_file",
    "read_mapped",
    "restore",
    "without_clips",
    "write_file",
    "write_mapped",
]

#: Version of the layout inside the file; files of version 1 carry no checksums.
_FORMAT, _UNSEALED_FORMAT = 2, 1
#: What a sealed file says it is.
_KIND = "dataset"
#: What to do with a damaged file.
REMEDY = "copy or save it again"
#: Attributes of audio datasets that go into the header.
_AUDIO = ("F", "audio_fs", "return_waveform", "hearing_range_hz", "species", "level", "level_factor")

#: Types of the values in a header; those of `_AUDIO` where the file is one of sounds.
_TYPES: dict[str, tuple[type, ...]] = {
    "dt_ms": (int, float), "name": (str,), "path": (str,), "n_neurons": (int,), "stim_meta": (list,),
    "nrn_meta": (list,), "smoothing_ms": (int, float, NoneType), "response_kind": (str, NoneType),
    "response_unit": (str, NoneType), "facts": (dict,), "kept": (list,), "skipped": (list,),
    "notes": (list,), "features": (dict,),
    "F": (int,), "audio_fs": (int, float, NoneType), "return_waveform": (bool,),
    "hearing_range_hz": (list, NoneType), "species": (str, NoneType), "level": (str,),
    "level_factor": (int, float),
}  # fmt: skip
#: Values that the first files did not have yet.
_LATER = ("notes", "features", "response_kind", "response_unit", "level", "level_factor")

#: What to do with a file of another kind, by suffix.
_SOUNDS = "soundfile.read(path) gives its samples; a dataset also needs responses"
_TABLE = "numpy.loadtxt or pandas.read_csv reads it"
_READERS = {
    ".nwb": "pynwb reads it (NWBHDF5IO(path).read(): units.spike_times, intervals, stimulus)",
    ".mat": "scipy.io.loadmat reads it, h5py where it is of version 7.3",
    ".h5": "h5py reads it",
    ".hdf5": "h5py reads it",
    ".npy": "numpy.load reads it",
    ".pkl": "pickle reads it, if you trust its source",
    ".nc": "xarray reads it",
    ".parquet": "pandas.read_parquet reads it",
    ".edf": "mne.io.read_raw_edf reads it",
    **dict.fromkeys((".txt", ".csv", ".tsv", ".dat"), _TABLE),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"), _SOUNDS),
}
_THEN = (
    "deepSTRF.datasets.open_recording(path, dt_ms=...) or deepstrf import makes datasets of recordings in "
    "many formats. Of arrays: AudioNeuralDataset.from_arrays(stims, responses, dt_ms, audio_fs=...) "
    "(deepSTRF.datasets.bin_spikes counts spike times), then ds.save('mine.npz'), and use that file"
)

Header = dict[str, Any]
Arrays = dict[str, npt.NDArray[Any]]

#: Kind of a folder, and the files in it beside ``stim_0.npy``, ``rows_0.npy``, ...
_FOLDER_KIND, _HEADER, _INDEX = "recording", "header.json", "index.npz"


def write_file(ds: Recording, path: str | os.PathLike[str], facts: dict[str, Any]) -> Path:
    """Write what a dataset or view shows, with ``facts`` for ``describe``, and return the path."""
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(
            f"a dataset is saved as .npz, got {path.name!r}; call save({str(path.with_suffix('.npz'))!r})"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    n_bytes = sum(clip.data.nbytes for clip in ds.response_storage.clips)
    check_memory(
        2 * n_bytes, f"{path} is written in memory; ds.mapped(folder) writes a folder clip by clip. The file"
    )
    header = _header_text(_header(ds, facts)).encode()
    arrays: Arrays = {"header": np.frombuffer(header, dtype=np.uint8)}
    for clip, stimulus in enumerate(ds._stims.raw()):
        arrays[f"stim_{clip}"] = stimulus.detach().cpu().numpy()
        responses = ds.response_storage.clips[clip]
        arrays[f"rows_{clip}"] = responses.rows()
    arrays.update(_index_arrays(ds))
    try:
        write_sealed_zip(path, npz_bytes(arrays), _KIND)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {path} ({reason}); nothing was changed there") from error
    return path


def _index_arrays(ds: Recording) -> Arrays:
    """Neurons and repeats of each clip, frequencies and transforms."""
    arrays: Arrays = {}
    for clip, responses in enumerate(ds.response_storage.clips):
        arrays[f"heard_{clip}"] = responses.heard
        arrays[f"counts_{clip}"] = responses.counts
    return {**arrays, **_small_arrays(ds)}


def write_mapped(ds: Recording, folder: Path | None, facts: dict[str, Any], cache: Path) -> Path:
    """Write a recording as a folder, clip by clip, unless the cache holds it; return its folder.

    ``folder`` None: an entry of ``cache`` that is named by its content.
    """
    header = _header_text(_header(ds, facts)).encode()
    index = npz_bytes(_index_arrays(ds))
    if folder is None:
        key = hashlib.sha256(header)
        for clip in range(len(ds)):
            key.update(ds.clip_fingerprint(clip).encode())
        for name, array in _index_arrays(ds).items():
            key.update(name.encode() + array.tobytes())
        folder = cache / key.hexdigest()[:20]
        with contextlib.suppress(OSError, ValueError):
            entry = read_folder(folder, _FOLDER_KIND, REMEDY)
            if entry.files is not None:
                for name in entry.files:
                    entry.path(name)
                return folder
    replace_folder(folder, _folder_files(ds, header, index), _FOLDER_KIND)
    return folder


def _folder_files(
    ds: Recording, header: bytes, index: bytes
) -> Iterator[tuple[str, bytes | Iterator[bytes]]]:
    yield _HEADER, header
    yield _INDEX, index
    for clip, responses in enumerate(ds.response_storage.clips):
        held = ds._stims.stimuli[clip].held
        stimulus = held if isinstance(held, FileArray) else held.detach().cpu().numpy()
        yield f"stim_{clip}.npy", npy_pieces(tuple(stimulus.shape), stimulus.dtype, row_pieces(stimulus))
        yield f"rows_{clip}.npy", npy_pieces(*responses.encoded())


def open_mapped(ds: Recording, folder: Path) -> tuple[list[Stimulus], list[ClipResponses]]:
    """Stimuli and responses of a recording, read from the folder that `write_mapped` has made of it."""
    stimuli, clips = [], []
    for clip, responses in enumerate(ds.response_storage.clips):
        stimuli.append(Stimulus(open_npy(folder / f"stim_{clip}.npy")))
        stimuli[-1]._digest = ds._stims.stimuli[clip].fingerprint()
        clips.append(responses.stored_in(open_npy(folder / f"rows_{clip}.npy")))
    return stimuli, clips


def read_mapped(folder: Path) -> tuple[Header, Arrays]:
    """Header and arrays of a folder that `write_mapped` wrote, all verified; those of clips stay in it."""
    entry: Artefact = read_folder(folder, _FOLDER_KIND, REMEDY)
    if entry.files is None:
        raise FileNotFoundError(
            f"{folder} holds no recording (no manifest.json); ds.mapped(folder) makes one"
        )
    header = entry.json(_HEADER)
    with naming_damage(folder / _HEADER, REMEDY):
        if header["format"] != _FORMAT:
            raise ValueError("it is of another version of deepSTRF; install a newer deepSTRF")
        check_header(header)
    with naming_damage(folder / _INDEX, REMEDY):
        arrays: Arrays = load_npz(entry.read(_INDEX))
    for clip in range(len(header["stim_meta"])):
        for part in ("stim", "rows"):
            arrays[f"{part}_{clip}"] = open_npy(entry.path(f"{part}_{clip}.npy"))  # type: ignore[assignment]
    return header, arrays


def without_clips(ds: Recording, facts: dict[str, Any]) -> tuple[Header, Arrays]:
    """What a file holds beside stimuli and responses: the header as JSON gives it back, and small arrays."""
    header: Header = json.loads(_header_text(_header(ds, facts)))
    return header, _small_arrays(ds)


def _small_arrays(ds: Recording) -> Arrays:
    """Frequencies and transforms."""
    arrays = _transform_arrays(ds)
    if getattr(ds, "frequencies_hz", None) is not None:
        arrays["frequencies_hz"] = np.asarray(ds.frequencies_hz)  # type: ignore[attr-defined]
    for index, name in enumerate(ds.features):
        if name in getattr(ds, "feature_frequencies", ()):
            arrays[f"feature_frequencies_{index}"] = ds.feature_frequencies[name]  # type: ignore[attr-defined]
    return arrays


def _header(ds: Recording, facts: dict[str, Any]) -> Header:
    return {
        "format": _FORMAT,
        "kind": "audio" if hasattr(ds, "audio_fs") else "base",
        "dt_ms": ds.dt,
        "name": ds.name,
        "path": ds.path,
        "n_neurons": ds.N_neurons,
        "stim_meta": ds.stim_meta,
        "nrn_meta": ds.nrn_meta,
        "smoothing_ms": ds.smoothing_ms,
        "response_kind": ds.recorded_kind,
        "response_unit": ds._stated_unit,
        "facts": facts,
        "kept": ds.load_report.kept,
        "skipped": ds.load_report.skipped,
        "notes": ds.load_report.notes,
        "features": ds.features,
        **{key: getattr(ds, key, None) for key in _AUDIO},
    }


def _header_text(header: Header) -> str:
    """The header as JSON; errors name the entry of the metadata that a file cannot hold."""
    for name, value in header.items():
        rows = enumerate(value) if name in ("stim_meta", "nrn_meta") else [(None, value)]
        for index, row in rows:
            where = name if index is None else f"{name}[{index}]"
            _check_keys(row, where)
            try:
                json.dumps(row, default=_plain)
            except TypeError as error:
                raise TypeError(f"{where} cannot be saved: {error}") from error
    text = json.dumps(header, default=_plain)
    try:
        check_header(json.loads(text))
    except ValueError as error:
        raise ValueError(f"this dataset cannot be saved: {error}; correct that attribute first") from error
    return text


def _check_keys(value: Any, where: str) -> None:
    """Refuse keys that JSON would turn into other ones."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) and (type(key) is not int or str(key) in value):
                raise TypeError(f"{where} cannot be saved: its key {key!r} is no text; rename it")
            _check_keys(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if isinstance(item, (Mapping, list, tuple)):
                _check_keys(item, f"{where}[{index}]")


def _plain(value: Any) -> Any:
    """A metadata value as JSON knows it."""
    if isinstance(value, (np.generic, torch.Tensor)) and np.ndim(value) == 0:
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        "metadata to save are numbers, strings, lists and dictionaries, "
        f"got {type(value).__name__}: {value!r:.80}"
    )


def _transform_arrays(ds: Recording) -> Arrays:
    arrays: Arrays = {}
    if ds._normalization is not None:
        arrays["normalization_scale"] = ds._normalization.scale.numpy()
        arrays["normalization_offset"] = ds._normalization.offset.numpy()
        arrays["normalization_clips"] = np.array(ds._normalization.stim_indices, dtype=np.int64)
        arrays["normalization_method"] = np.array(ds._normalization.method)
    fitted = {id(t): t for t in ds._stims.transforms if t is not None}
    order = list(fitted)
    arrays["standardization_of"] = np.array(
        [-1 if t is None else order.index(id(t)) for t in ds._stims.transforms], dtype=np.int64
    )
    for index, transform in enumerate(fitted.values()):
        arrays[f"standardization_{index}_mean"] = transform.mean.numpy()
        arrays[f"standardization_{index}_std"] = transform.std.numpy()
        if transform.mean.ndim and not transform.per_band:
            arrays[f"standardization_{index}_per_band"] = np.array(False)
        arrays[f"standardization_{index}_clips"] = np.array(transform.stim_indices, dtype=np.int64)
    return arrays


def _advice_on(path: str | os.PathLike[str]) -> str | None:
    """How to make a dataset of a file of another kind, known by its suffix; None for others."""
    reader = _READERS.get(Path(path).suffix.lower())
    return None if reader is None else f"{Path(path).name} is no file of ds.save: {reader}. {_THEN}"


def read_file(path: str | os.PathLike[str]) -> tuple[Header, Arrays]:
    """Header and arrays of a file that `write_file` wrote, after its seal and the header were checked."""
    path = Path(path).expanduser()
    if not path.exists() or path.is_dir():
        advice = _advice_on(path) or "NeuralDataset.save(path) writes one"
        raise FileNotFoundError(f"there is no dataset file {path}; {advice}")
    check_regular(path)
    if not zipfile.is_zipfile(path):
        raise DamagedFileError(_advice_on(path) or _no_dataset(path, "it is no complete zip file"))
    try:
        arrays, sealed = load_sealed_npz(path, _KIND, REMEDY)
        if "header" not in arrays:
            held = ", ".join(list(arrays)[:8]) or "nothing"
            raise ValueError(f"it holds the arrays {held}, not those of ds.save. {_THEN}")
        header = json.loads(arrays.pop("header").tobytes())
    except DamagedFileError:
        raise
    except Exception as error:  # of damaged bytes, parsers raise every class
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise DamagedFileError(_no_dataset(path, str(error) or type(error).__name__)) from error
    with naming_damage(path, REMEDY):
        version = header["format"]
        if version not in (_UNSEALED_FORMAT, _FORMAT):
            raise DamagedFileError(
                f"{path} has the layout of another version of deepSTRF; install a newer deepSTRF"
            )
        if not sealed and version != _UNSEALED_FORMAT:
            raise ValueError("it has lost its checksum")
        check_header(header)
    if not sealed:
        warn_unsealed(path, "ds.save(...) adds them")
    return header, arrays


def _no_dataset(path: Path, why: object) -> str:
    return f"{path} is no dataset file or is damaged ({why}); {REMEDY}"


def check_header(header: Any) -> None:
    """Raise ValueError unless a header has the entries, types and ranges that `_header` writes."""
    kind = header["kind"]
    if kind not in ("audio", "base"):
        raise ValueError(f"kind is {kind!r}")
    for key, types in _TYPES.items():
        if (key in _AUDIO and kind != "audio") or (key in _LATER and key not in header):
            continue
        if type(header[key]) not in types:
            raise ValueError(f"{key} is {header[key]!r:.80}, of type {type(header[key]).__name__}")
    for key in ("name", "facts"):  # paths, also in the report on files, may hold bytes that are no text
        check_metadata(header[key], key)
    words = [*header["kept"], *(word for name, reason in header["skipped"] for word in (name, reason))]
    if any(not isinstance(word, str) for word in words):
        raise ValueError("kept or skipped holds what is no text")
    for note in header.get("notes", ()):
        if type(note) is not list or [type(part) for part in note] != [str, str, int]:
            raise ValueError(f"notes holds {note!r:.80}, which is no topic, text and count")
    if kind == "base":
        return
    edges = header["hearing_range_hz"]
    if edges is not None and (len(edges) != 2 or any(type(edge) not in (int, float) for edge in edges)):
        raise ValueError(f"hearing_range_hz is {edges!r:.80}")
    if header.get("level", "raw") not in LEVELS:
        raise ValueError(f"level is {header['level']!r:.80}")
    for key in ("audio_fs", "level_factor"):
        value = header.get(key)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{key} is {value!r:.80}")
    if (header["audio_fs"] is None) is header["return_waveform"]:
        raise ValueError("audio_fs and return_waveform contradict each other")


def restore(ds: Recording, header: Header, arrays: Arrays) -> None:
    """Put what a file holds into an empty recording, which is not validated here."""
    ds.name, ds.path, ds.facts = header["name"], header["path"], header["facts"]
    ds.N_neurons, ds.smoothing_ms = header["n_neurons"], header["smoothing_ms"]
    ds.stim_meta, ds.nrn_meta = header["stim_meta"], header["nrn_meta"]
    ds.features = header.get("features", {})
    ds.response_kind, ds.response_unit = header.get("response_kind"), header.get("response_unit")
    skipped = [(name, reason) for name, reason in header["skipped"]]
    notes = [(topic, text, count) for topic, text, count in header.get("notes", ())]
    ds.load_report = LoadReport(header["kept"], skipped, notes)
    if header["kind"] == "audio":
        for key in _AUDIO[:-2] + tuple(key for key in _AUDIO[-2:] if key in header):  # older files: no level
            setattr(ds, key, tuple(header[key]) if isinstance(header[key], list) else header[key])
    if "frequencies_hz" in arrays:
        ds.frequencies_hz = arrays.pop("frequencies_hz")  # type: ignore[attr-defined]
        _check_numbers(ds.frequencies_hz, "frequencies_hz")  # type: ignore[attr-defined]
    for index, feature in enumerate(ds.features):
        if (key := f"feature_frequencies_{index}") in arrays:
            _check_numbers(arrays[key], key)
            ds.feature_frequencies[feature] = arrays.pop(key)  # type: ignore[attr-defined]
    clips, stimuli = [], []
    for clip in range(len(ds.stim_meta)):
        held: Any = arrays.pop(f"stim_{clip}")
        stimuli.append(Stimulus(held if isinstance(held, FileArray) else torch.from_numpy(held)))
        if len(stimuli[-1].shape) < 2:
            raise ValueError(f"clip {clip}: a stimulus has axes (..., T)")
        rows, heard, counts = (arrays.pop(f"{part}_{clip}") for part in ("rows", "heard", "counts"))
        responses = stored_responses(rows, heard, counts, ds.N_neurons, f"clip {clip}")
        clips.append(replace(responses, context=_context(ds, clip)))
    ds._storage = ResponseStorage(clips, ds.N_neurons)
    _restore_transforms(ds, stimuli, arrays)
    if arrays:
        raise ValueError(f"it holds the arrays {', '.join(list(arrays)[:8])}, which belong to nothing")


def _context(ds: Recording, clip: int) -> int:
    """Context bins of a clip that is a window, as its metadata say."""
    row = ds.stim_meta[clip] if isinstance(ds.stim_meta[clip], dict) else {}
    length = row.get("context_ms", 0.0) if "window_of" in row else 0.0
    if not isinstance(length, (int, float)) or not 0 <= length < math.inf:
        raise ValueError(f"stim_meta[{clip}]['context_ms'] is {length!r:.80}")
    return round(length / ds.dt)


def _check_numbers(values: npt.NDArray[Any], what: str, *, positive: bool = False) -> None:
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(f"{what} holds other values than finite numbers")
    if positive and not (values > 0).all():
        raise ValueError(f"{what} holds values of at most 0")


def _indices(values: npt.NDArray[Any], what: str, low: int, high: int | None = None) -> list[int]:
    """A one-dimensional array of indices as a list, in range."""
    if values.dtype != np.int64 or values.ndim != 1:
        raise ValueError(f"{what} is {values.dtype} of shape {values.shape}")
    chosen: list[int] = values.tolist()
    if chosen and (min(chosen) < low or (high is not None and max(chosen) >= high)):
        raise ValueError(f"{what} reaches from {min(chosen)} to {max(chosen)}")
    return chosen


def _restore_transforms(ds: Recording, stimuli: list[Stimulus], arrays: Arrays) -> None:
    fitted: list[StimulusStandardization] = []
    while (part := f"standardization_{len(fitted)}") + "_mean" in arrays:
        mean, std = arrays.pop(f"{part}_mean"), arrays.pop(f"{part}_std")
        _check_numbers(mean, f"{part}_mean")
        _check_numbers(std, f"{part}_std", positive=True)
        clips = tuple(_indices(arrays.pop(f"{part}_clips"), f"{part}_clips", 0))
        if mean.shape != std.shape or {mean.dtype, std.dtype} != {np.dtype(np.float32)}:
            raise ValueError(f"{part} has a mean of shape {mean.shape} and a std of shape {std.shape}")
        tensors = torch.from_numpy(mean), torch.from_numpy(std)
        per_band = bool(arrays.pop(f"{part}_per_band", mean.ndim > 0))
        fitted.append(StimulusStandardization(*tensors, per_band, clips))
    which = _indices(arrays.pop("standardization_of"), "standardization_of", -1, len(fitted))
    if len(which) != len(stimuli):
        raise ValueError(f"standardization_of has {len(which)} entries for {len(stimuli)} clips")
    for clip, (index, stimulus) in enumerate(zip(which, stimuli, strict=True)):
        if index >= 0 and fitted[index].mean.shape not in ((), (stimulus.shape[-2], 1)):
            raise ValueError(f"clip {clip} is standardised with statistics of other bands")
    ds._stims = StimulusList(stimuli, [None if index < 0 else fitted[index] for index in which])
    if len(fitted) == 1:
        ds.stim_normalization = fitted[0].record()
    elif fitted:
        ds.stim_normalization = {"datasets": [transform.record() for transform in fitted]}
    if "normalization_scale" in arrays:
        scale, offset, clips_used, method = (
            arrays.pop(f"normalization_{part}") for part in ("scale", "offset", "clips", "method")
        )
        _check_numbers(scale, "normalization_scale", positive=True)
        _check_numbers(offset, "normalization_offset")
        shapes = {scale.shape, offset.shape}
        if shapes != {(ds.N_neurons,)} or {scale.dtype, offset.dtype} != {np.dtype(np.float32)}:
            raise ValueError(f"the normalisation has the shapes {shapes} for {ds.N_neurons} neurons")
        parts = (part for c in ds._storage.clips for part in row_pieces(c.data))
        largest = max((np.fmax.reduce(np.abs(part), axis=None, initial=0) for part in parts), default=0)
        largest = float(largest) + float(np.abs(offset).max(initial=0))
        if largest > np.finfo(np.float32).max * float(scale.min(initial=1)):
            raise ValueError("the normalisation makes responses infinite")
        if method.dtype.kind != "U" or method.ndim != 0 or str(method) not in METHODS:
            raise ValueError(f"the normalisation has the method {method!r:.80}")
        ds._normalization = ResponseNormalization(
            str(method), torch.from_numpy(scale), torch.from_numpy(offset),
            tuple(_indices(clips_used, "normalization_clips", 0)),
        )  # fmt: skip
