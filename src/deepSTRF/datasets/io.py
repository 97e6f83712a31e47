"""A dataset as one file: own recordings, or a view worth keeping, as ``.npz`` without pickles."""

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
from torch import Tensor

from deepSTRF.datasets.dataset import LoadReport, NeuralDataset
from deepSTRF.datasets.responses import ClipResponses, ResponseStorage, Stimulus, StimulusList
from deepSTRF.datasets.transforms import ResponseNormalization, StimulusStandardization

__all__ = ["load_dataset", "save_dataset"]

#: Version of the layout inside the file.
_FORMAT = 1
_AUDIO = ("F", "audio_fs", "return_waveform", "hearing_range_hz", "species")

Arrays = dict[str, npt.NDArray[Any]]


def save_dataset(ds: NeuralDataset, path: str | os.PathLike[str]) -> Path:
    """Write what a dataset or view shows: stimuli, recorded responses, metadata, transforms.

    Responses are written as recorded together with smoothing and normalisation, so nothing is lost by saving
    a smoothed view. The file appears under its name only when it is complete; a full disk or a killed process
    leaves an older file of that name as it was.

    Parameters
    ----------
    ds : NeuralDataset
        What to keep. Metadata must be numbers, strings, booleans, None, and lists or dictionaries of those.
    path : str or path-like
        File to write; it ends in ``.npz``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TypeError
        When metadata hold something else; the text names it.
    ValueError
        When the name does not end in ``.npz``.
    FileNotFoundError
        When the folder does not exist.
    OSError
        When the disk is full or the folder is read-only; the message says that nothing was changed.

    Examples
    --------
    >>> import tempfile
    >>> ds = NeuralDataset.from_arrays([torch.rand(4, 9)], [[[0] * 9, None]], dt_ms=5.0, name="mine")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load_dataset(save_dataset(ds, f"{folder}/mine.npz"))
    >>> again
    NeuralDataset('mine', N_neurons=2, n_clips=1, dt_ms=5)
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(
            f"a dataset is saved as .npz, got {path.name!r}; call save({str(path.with_suffix('.npz'))!r})"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    arrays: Arrays = {"header": np.frombuffer(_to_json(_header(ds)), dtype=np.uint8)}
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


def _write_whole(path: Path, arrays: Arrays) -> None:
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


def _header(ds: NeuralDataset) -> dict[str, Any]:
    header: dict[str, Any] = {
        "format": _FORMAT,
        "kind": "audio" if hasattr(ds, "audio_fs") else "base",
        "dt_ms": ds.dt,
        "name": ds.name,
        "path": ds.path,
        "n_neurons": ds.N_neurons,
        "stim_meta": ds.stim_meta,
        "nrn_meta": ds.nrn_meta,
        "smoothing_ms": ds.smoothing_ms,
        "facts": {**_facts_of_class(ds), **ds.facts},
        "kept": ds.load_report.kept,
        "skipped": ds.load_report.skipped,
    }
    for key in _AUDIO:
        header[key] = getattr(ds, key, None)
    return header


def _facts_of_class(ds: NeuralDataset) -> dict[str, Any]:
    """What the loader's own class adds to ``describe()``: the class that reads the file does not know it."""
    from deepSTRF.datasets.dataset import AudioNeuralDataset

    known = AudioNeuralDataset if isinstance(ds, AudioNeuralDataset) else NeuralDataset
    plain = known.describe(ds)
    return {key: value for key, value in ds.describe().items() if key not in plain}


def _to_json(header: dict[str, Any]) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, (np.generic, torch.Tensor)) and np.ndim(value) == 0:
            return value.item()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(
            "metadata to save are numbers, strings, lists and dictionaries, "
            f"got {type(value).__name__}: {value!r:.80}"
        )

    return json.dumps(header, default=plain).encode()


def _transform_arrays(ds: NeuralDataset) -> Arrays:
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


def load_dataset(path: str | os.PathLike[str], kind: type[NeuralDataset] = NeuralDataset) -> NeuralDataset:
    """Read a dataset that `save_dataset` wrote.

    Parameters
    ----------
    path : str or path-like
        The ``.npz`` file.
    kind : type
        Class wanted; a file of sounds always comes back as an `AudioNeuralDataset`.

    Returns
    -------
    NeuralDataset
        The dataset, with transforms as they were. It is a root of its own: ``I`` and ``S_sel`` are None.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is no dataset, is damaged, or is from a newer version.
    TypeError
        When a file without sounds is asked for as an audio dataset.

    Examples
    --------
    >>> load_dataset("no_such_file.npz")
    Traceback (most recent call last):
        ...
    FileNotFoundError: there is no dataset file no_such_file.npz; NeuralDataset.save(path) writes one
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no dataset file {path}; NeuralDataset.save(path) writes one")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        header = json.loads(arrays["header"].tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is no dataset file or is damaged ({error}); copy or save it again"
        ) from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"{path} has the layout of another version of deepSTRF; install a newer deepSTRF")
    ds = _blank_of(header, kind)
    _fill(ds, header, arrays)
    ds.validate()
    return ds


def _blank_of(header: dict[str, Any], kind: type[NeuralDataset]) -> NeuralDataset:
    from deepSTRF.datasets.dataset import AudioNeuralDataset

    wants_audio = issubclass(kind, AudioNeuralDataset)
    if header["kind"] != "audio":
        if wants_audio:
            raise TypeError(
                f"this file holds no sounds; read it with NeuralDataset.load, not {kind.__name__}.load"
            )
        return NeuralDataset._blank(header["dt_ms"])
    ds = AudioNeuralDataset._blank(header["dt_ms"])
    for key in _AUDIO:
        setattr(ds, key, header[key])
    if ds.hearing_range_hz is not None:
        low, high = ds.hearing_range_hz
        ds.hearing_range_hz = (low, high)
    return ds


def _fill(ds: NeuralDataset, header: dict[str, Any], arrays: Arrays) -> None:
    ds.name, ds.path, ds.facts = header["name"], header["path"], header["facts"]
    ds.N_neurons, ds.smoothing_ms = header["n_neurons"], header["smoothing_ms"]
    ds.stim_meta, ds.nrn_meta = header["stim_meta"], header["nrn_meta"]
    ds.load_report = LoadReport(header["kept"], [(name, reason) for name, reason in header["skipped"]])
    clips = []
    for clip in range(len(ds.stim_meta)):
        rows, counts = arrays[f"rows_{clip}"], arrays[f"counts_{clip}"]
        missing = bool((rows == np.iinfo(rows.dtype).min).any()) if rows.dtype.kind == "i" else True
        starts = np.cumsum(counts) - counts
        clips.append(ClipResponses(rows, arrays[f"heard_{clip}"], starts, counts, missing))
    ds._storage = ResponseStorage(clips, ds.N_neurons)
    fitted: list[StimulusStandardization] = []
    while f"standardization_{len(fitted)}_mean" in arrays:
        fitted.append(_standardization(arrays, len(fitted)))
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
            _tensor(arrays["normalization_scale"]),
            _tensor(arrays["normalization_offset"]),
            tuple(arrays["normalization_clips"].tolist()),
        )
    if "frequencies_hz" in arrays:
        ds.frequencies_hz = arrays["frequencies_hz"]  # type: ignore[attr-defined]


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(values)


def _standardization(arrays: Arrays, index: int) -> StimulusStandardization:
    mean, std = (_tensor(arrays[f"standardization_{index}_{part}"]) for part in ("mean", "std"))
    clips = tuple(arrays[f"standardization_{index}_clips"].tolist())
    return StimulusStandardization(mean, std, mean.ndim > 0, clips)
