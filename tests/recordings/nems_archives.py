"""NEMS archives in the documented layout, made by the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

#: The small session of all format tests: unit -> spike times in s.
MINI_SPIKES = {
    "u7": [0.995, 1.000, 1.0149, 1.499, 1.500, 2.105, 3.070, 3.255, 4.2999],
    "u3": [1.250],
}
MINI_EPOCHS = [("STIM_A", 1.0, 1.5), ("STIM_B", 2.0, 2.3), ("STIM_A", 3.0, 3.5), ("STIM_B", 4.0, 4.3)]
MINI_EPOCHS += [("STIM_A", 5.0, 5.5), ("REFERENCE", 6.0, 6.5), ("TRIAL", 0.0, 7.0)]
MINI_TILES = {
    "STIM_A": np.arange(100.0).reshape(2, 50),
    "STIM_B": 7.0 + np.arange(60.0).reshape(2, 30),
}


def h5_bytes(arrays: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as opened:
        for name, values in arrays.items():
            opened[name] = np.asarray(values)
    return content.getvalue()


def csv_bytes(values: Any) -> bytes:
    """(T, channels) as text."""
    content = io.BytesIO()
    np.savetxt(content, np.asarray(values), delimiter=",", fmt="%.17g")
    return content.getvalue()


def epoch_bytes(epochs: Any, columns: tuple[str, ...] = ("name", "start", "end")) -> bytes:
    """Table of epochs with its columns in some order; "" is an unnamed index."""
    lines = [",".join(columns)]
    for row, (name, start, end) in enumerate(epochs):
        cells = {"name": name, "start": repr(start), "end": repr(end), "": str(row)}
        lines.append(",".join(cells[column] for column in columns))
    return ("\n".join(lines) + "\n").encode()


def signal(
    folder: str, name: str, kind: str, chans: list[str], fs: float, data: bytes, suffix: str, epochs: bytes,
    **facts: Any,
) -> dict[str, bytes]:  # fmt: skip
    about = {"name": name, "chans": chans, "fs": fs, "meta": {}, "recording": folder, **facts}
    if kind:
        about["signal_type"] = f"<class 'nems.signal.{kind}'>"
    base = f"{folder}/{name}"
    return {
        f"{base}.json": json.dumps(about).encode(),
        f"{base}{suffix}": data,
        f"{base}.epoch.csv": epochs,
    }


def site(
    folder: str, spikes: Mapping[str, Any], tiles: Mapping[str, Any] | None, epochs: Any, fs: float = 100,
    columns: tuple[str, ...] = ("name", "start", "end"), meta: Mapping[str, Any] | None = None,
    segments: Any = None,
) -> dict[str, bytes]:  # fmt: skip
    """Members of a recording with spike times, and tiles of its stimuli."""
    table = epoch_bytes(epochs, columns)
    about = {} if segments is None else {"segments": segments}
    members = {f"{folder}/meta.json": json.dumps({"rasterfs": fs, **(meta or {})}).encode()}
    members |= signal(
        folder, "resp", "PointProcess", list(spikes), fs, h5_bytes(spikes), ".h5", table, **about
    )
    if tiles is not None:
        chans = [str(row) for row in range(len(next(iter(tiles.values()))))]
        members |= signal(folder, "stim", "TiledSignal", chans, fs, h5_bytes(tiles), ".h5", table)
    return members


def pack(path: Path, members: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def unpack(folder: Path, members: Mapping[str, bytes]) -> Path:
    for name, content in members.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder
