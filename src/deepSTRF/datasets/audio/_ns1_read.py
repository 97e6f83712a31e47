"""Reading the files of the public NS1 recording."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF.datasets.audio.ns1_files import (
    NS1_DNET_FILES,
    NS1_DNET_REPO,
    NS1_DRC_SOUNDS,
    NS1_METADATA,
    NS1_NAT_SOUNDS,
    NS1_OSF_PAGE,
    NS1_RAW_LEN_MS,
    NS1_SPIKE_DIR_NAME,
    NS1_WAV_DIR_NAME,
    NS1_WAV_FILENAMES,
    NS1_WAV_NATIVE_FS,
)
from deepSTRF.datasets.cache import cached_arrays, fingerprint_files

#: What scipy raises on files that are truncated, overwritten or something else than MATLAB files.
MAT_DAMAGE = (
    OSError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError,
    NotImplementedError, zlib.error, struct.error,
)  # fmt: skip
#: Field of the metadata file -> key of nrn_meta and its type.
_METADATA_FIELDS: dict[str, tuple[str, type]] = {
    "depth": ("depth_um", int),
    "NoiseRatio": ("noise_ratio", float),
    "singleN": ("single_n", int),
    "singleT": ("single_t", str),
    "NrOfElectrodes": ("n_electrodes", int),
    "ElectrodeNumber": ("electrode_number", int),
}
#: Rate that the sound files' headers carry (the true one, cut to an integer).
_HEADER_RATE = 48828


def mend(root: Path) -> str:
    """Return the sentence that says how to get missing files."""
    return f"get it with NS1Dataset(path={str(root)!r}, download=True), or by hand from {NS1_OSF_PAGE}"


def damaged(path: Path, root: Path, why: object) -> ValueError:
    """Return the error for a file that is there but cannot be read."""
    return ValueError(f"{path} is damaged ({why}); delete it, then {mend(root)}")


def read_metadata(root: Path, *, cache: bool = True) -> list[dict[str, Any]]:
    """Return one dictionary per neuron: ``file`` (relative spike file) and the ``nrn_meta`` keys.

    Raises
    ------
    FileNotFoundError
        When ``root`` is not an NS1 folder.
    ValueError
        When the metadata file is damaged.
    """
    path = root / NS1_METADATA
    if not path.is_file():
        inside = root / "NS1" / NS1_METADATA
        hint = f"did you mean path={str(inside.parent)!r}?" if inside.is_file() else mend(root)
        raise FileNotFoundError(f"{root} holds no NS1 recording: {path} is missing; {hint}")
    # cached although it is small: without it a second load would import scipy, which takes longer than the
    # load
    stored = cached_arrays(
        "NS1",
        "units",
        {"files": fingerprint_files(root, [NS1_METADATA])},
        lambda: {"json": np.array(json.dumps(_parse_metadata(path, root)))},
        enabled=cache,
    )
    neurons: list[dict[str, Any]] = json.loads(str(stored["json"]))
    return neurons


def _parse_metadata(path: Path, root: Path) -> list[dict[str, Any]]:
    neurons = []
    try:
        for entry in load_mat(path)["neuron"][0]:
            file = str(entry["path"].item())
            facts = {key: kind(entry[field].item()) for field, (key, kind) in _METADATA_FIELDS.items()}
            neurons.append({"file": file, "cell_id": file[:-4], "area": "A1", **facts})
    except MAT_DAMAGE as error:
        raise damaged(path, root, error) from error
    if not neurons:
        raise damaged(path, root, "it names no neuron")
    return neurons


def resolve_spike_file(root: Path, file: str) -> str | None:
    """Return the spike file that is there, relative to the spike folder: itself, ``..._1.mat`` or None."""
    folder = root / NS1_SPIKE_DIR_NAME
    for candidate in (file, file.removesuffix(".mat") + "_1.mat"):
        if (folder / candidate).is_file():
            return candidate
    return None


def read_spikes(path: Path, root: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Read one spike file.

    Returns
    -------
    times : float64 ndarray (n,)
        Spike times in ms from sound onset: entry by entry (32 of them), repeat by repeat.
    counts : int32 ndarray (32, 20)
        Number of spikes of each entry and repeat, -1 where a repeat does not exist.

    Raises
    ------
    ValueError
        When the file is damaged or has another structure.
    """
    entries = NS1_NAT_SOUNDS + NS1_DRC_SOUNDS
    times: list[npt.NDArray[np.float64]] = []
    counts: list[list[int]] = []
    try:
        blocks = load_mat(path)["data"]["set"][0, 0]["repeats"][0]
        if len(blocks) != entries:
            raise ValueError(f"it holds {len(blocks)} sounds instead of {entries}")
        for block in blocks:
            repeats = [np.asarray(one, dtype=np.float64).ravel() for one in block["t"][0]]
            counts.append([len(one) for one in repeats])
            times += repeats
    except MAT_DAMAGE as error:
        raise damaged(path, root, error) from error
    flat = np.concatenate(times) if times else np.empty(0)
    if not np.isfinite(flat).all():
        raise damaged(path, root, "a spike time is not a finite number")
    table = np.full((entries, max(map(len, counts))), -1, dtype=np.int32)
    for row, lengths in zip(table, counts, strict=True):
        row[: len(lengths)] = lengths
    if (table < 0).all(axis=1).any():
        raise damaged(path, root, "a sound has no repeat")
    return flat, table


def read_waveforms(root: Path) -> list[npt.NDArray[np.float32]]:
    """Return the 20 sounds as stored: mono float32 at `NS1_WAV_NATIVE_FS`, peaks up to 14, not normalised.

    Raises
    ------
    FileNotFoundError
        When a sound file is missing.
    ValueError
        When one is damaged, not mono, shorter than the analysed part, or of another rate.
    """
    import soundfile

    shortest = round(NS1_RAW_LEN_MS / 1000 * NS1_WAV_NATIVE_FS)
    sounds = []
    for name in wav_paths():
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(f"the sound file {path} is missing; {mend(root)}")
        try:
            with open(path, "rb") as handle:
                samples, rate = soundfile.read(handle, dtype="float32")
        except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
            raise damaged(path, root, error) from error
        if rate != _HEADER_RATE or samples.ndim != 1:
            raise damaged(path, root, f"it is not mono at {_HEADER_RATE} Hz: {samples.shape} at {rate} Hz")
        if len(samples) < shortest or not np.isfinite(samples).all():
            raise damaged(path, root, f"{len(samples)} samples, at least {shortest} finite ones are needed")
        sounds.append(samples)
    return sounds


def wav_paths() -> list[str]:
    """Return the sound files in clip order, relative to the recording's folder."""
    return [f"{NS1_WAV_DIR_NAME}/{name}" for name in NS1_WAV_FILENAMES]


def read_shipped_spectrogram(root: Path) -> npt.NDArray[np.float32]:
    """Return the authors' cochleagram X_nfht as (20, 34, 999) float32.

    Raises
    ------
    FileNotFoundError
        When ``test_data_5ms.mat`` is missing.
    ValueError
        When it is damaged or of another shape.
    """
    path = root / NS1_DNET_FILES[0]
    if not path.is_file():
        source = f"https://github.com/{NS1_DNET_REPO}"
        raise FileNotFoundError(
            f"the authors' cochleagram {path} is missing (source: {source}); get it with "
            f"NS1Dataset(path={str(root)!r}, spectrogram='shipped', download=True), "
            "or use spectrogram='recomputed'"
        )
    try:
        stored = np.asarray(load_mat(path, ["X_nfht"])["X_nfht"], dtype=np.float32)
    except MAT_DAMAGE as error:
        raise damaged(path, root, error) from error
    legal = (NS1_NAT_SOUNDS, 34, 1, 999)
    if stored.shape != legal or not np.isfinite(stored).all():
        raise damaged(path, root, f"X_nfht is {stored.shape}, expected {legal} finite numbers")
    return np.ascontiguousarray(stored[:, :, 0, :])


def load_mat(path: Path, names: list[str] | None = None) -> dict[str, Any]:
    """Return the variables of a MATLAB file. A damaged one raises one of `MAT_DAMAGE`."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: dict[str, Any] = loadmat(path, variable_names=names)
    except MatReadError as error:
        raise ValueError(str(error)) from error
    return content
