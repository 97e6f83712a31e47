"""A dataset as one ``.npz`` file without pickles: stimuli, responses as recorded, metadata and transforms.

Responses are written as recorded together with smoothing and normalisation, so nothing is lost by saving a
smoothed view. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from deepSTRF.datasets.recording import LoadReport, Recording, Stimulus, StimulusList
from deepSTRF.datasets.responses import ClipResponses, ResponseStorage
from deepSTRF.datasets.transforms import ResponseNormalization, StimulusStandardization

__all__ = ["advice_on", "read_file", "restore", "write_file"]

#: Version of the layout inside the file.
_FORMAT = 1
#: Attributes of audio datasets that go into the header.
_AUDIO = ("F", "audio_fs", "return_waveform", "hearing_range_hz", "species", "level", "level_factor")

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
    "Make a dataset of its arrays: AudioNeuralDataset.from_arrays(stims, responses, dt_ms, audio_fs=...) "
    "(deepSTRF.datasets.bin_spikes counts spike times), then ds.save('mine.npz'), and use that file"
)

Header = dict[str, Any]
Arrays = dict[str, npt.NDArray[Any]]


def write_file(ds: Recording, path: str | os.PathLike[str], facts: dict[str, Any]) -> Path:
    """Write what a dataset or view shows, with ``facts`` for ``describe``, and return the path."""
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(
            f"a dataset is saved as .npz, got {path.name!r}; call save({str(path.with_suffix('.npz'))!r})"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    header = json.dumps(_header(ds, facts), default=_plain).encode()
    arrays: Arrays = {"header": np.frombuffer(header, dtype=np.uint8)}
    for clip, stimulus in enumerate(ds._stims.raw()):
        arrays[f"stim_{clip}"] = stimulus.detach().cpu().numpy()
        responses = ds.response_storage.clips[clip]
        arrays[f"rows_{clip}"] = responses.rows()
        arrays[f"heard_{clip}"] = responses.heard
        arrays[f"counts_{clip}"] = responses.counts
    if getattr(ds, "frequencies_hz", None) is not None:
        arrays["frequencies_hz"] = np.asarray(ds.frequencies_hz)  # type: ignore[attr-defined]
    arrays.update(_transform_arrays(ds))
    _write_whole(path, arrays)
    return path


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
        **{key: getattr(ds, key, None) for key in _AUDIO},
    }


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
        arrays[f"standardization_{index}_clips"] = np.array(transform.stim_indices, dtype=np.int64)
    return arrays


def _write_whole(path: Path, arrays: Arrays) -> None:
    """Write beside the file, then rename: a full disk leaves an older file of that name as it was."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb") as file:
            np.savez_compressed(file, **cast("dict[str, Any]", arrays))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {path} ({reason}); nothing was changed there") from error
    finally:
        partial.unlink(missing_ok=True)


def advice_on(path: str | os.PathLike[str]) -> str | None:
    """How to make a dataset of a file of another kind, known by its suffix; None for others."""
    reader = _READERS.get(Path(path).suffix.lower())
    return None if reader is None else f"{Path(path).name} is no file of ds.save: {reader}. {_THEN}"


def read_file(path: str | os.PathLike[str]) -> tuple[Header, Arrays]:
    """Header and arrays of a file that `write_file` wrote."""
    path = Path(path).expanduser()
    if not path.is_file():
        advice = advice_on(path) or "NeuralDataset.save(path) writes one"
        raise FileNotFoundError(f"there is no dataset file {path}; {advice}")
    if not zipfile.is_zipfile(path) and (other := advice_on(path)):
        raise ValueError(other)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if "header" not in archive.files:
                held = ", ".join(archive.files[:8]) or "nothing"
                raise ValueError(f"it holds the arrays {held}, not those of ds.save. {_THEN}")
            arrays = {key: archive[key] for key in archive.files}
        header = json.loads(arrays["header"].tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = "neither numpy's zip nor complete" if "allow_pickle" in str(error) else error
        raise ValueError(f"{path} is no dataset file or is damaged ({why}); copy or save it again") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"{path} has the layout of another version of deepSTRF; install a newer deepSTRF")
    return header, arrays


def restore(ds: Recording, header: Header, arrays: Arrays) -> None:
    """Put what a file holds into an empty recording, which is not validated here."""
    ds.name, ds.path, ds.facts = header["name"], header["path"], header["facts"]
    ds.N_neurons, ds.smoothing_ms = header["n_neurons"], header["smoothing_ms"]
    ds.stim_meta, ds.nrn_meta = header["stim_meta"], header["nrn_meta"]
    ds.response_kind, ds.response_unit = header.get("response_kind"), header.get("response_unit")
    ds.load_report = LoadReport(header["kept"], [(name, reason) for name, reason in header["skipped"]])
    if header["kind"] == "audio":
        for key in _AUDIO[:-2] + tuple(key for key in _AUDIO[-2:] if key in header):  # older files: no level
            setattr(ds, key, tuple(header[key]) if isinstance(header[key], list) else header[key])
    if "frequencies_hz" in arrays:
        ds.frequencies_hz = arrays["frequencies_hz"]  # type: ignore[attr-defined]
    clips = []
    for clip in range(len(ds.stim_meta)):
        rows, counts = arrays[f"rows_{clip}"], arrays[f"counts_{clip}"]
        missing = bool((rows == np.iinfo(rows.dtype).min).any()) if rows.dtype.kind == "i" else True
        starts = np.cumsum(counts) - counts
        clips.append(ClipResponses(rows, arrays[f"heard_{clip}"], starts, counts, missing))
    ds._storage = ResponseStorage(clips, ds.N_neurons)
    _restore_transforms(ds, arrays)


def _restore_transforms(ds: Recording, arrays: Arrays) -> None:
    fitted: list[StimulusStandardization] = []
    while (part := f"standardization_{len(fitted)}") + "_mean" in arrays:
        mean, std = torch.from_numpy(arrays[f"{part}_mean"]), torch.from_numpy(arrays[f"{part}_std"])
        clips = tuple(arrays[f"{part}_clips"].tolist())
        fitted.append(StimulusStandardization(mean, std, mean.ndim > 0, clips))
    which = arrays["standardization_of"].tolist()
    stimuli = [Stimulus(torch.from_numpy(arrays[f"stim_{clip}"])) for clip in range(len(which))]
    ds._stims = StimulusList(stimuli, [None if index < 0 else fitted[index] for index in which])
    if len(fitted) == 1:
        ds.stim_normalization = fitted[0].record()
    elif fitted:
        ds.stim_normalization = {"datasets": [transform.record() for transform in fitted]}
    if "normalization_scale" in arrays:
        ds._normalization = ResponseNormalization(
            str(arrays["normalization_method"]),
            torch.from_numpy(arrays["normalization_scale"]),
            torch.from_numpy(arrays["normalization_offset"]),
            tuple(arrays["normalization_clips"].tolist()),
        )
