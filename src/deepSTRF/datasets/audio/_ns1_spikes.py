"""NS1 spike trains: parsed once into a cache, binned on loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF.datasets.audio import _ns1_read
from deepSTRF.datasets.audio.ns1_files import NS1_NAT_SOUNDS, NS1_SPIKE_DIR_NAME
from deepSTRF.datasets.cache import Arrays, cached_arrays, fingerprint_files
from deepSTRF.datasets.report import LoadReport
from deepSTRF.datasets.spikes import bin_spikes

__all__ = ["ON_BAD_FILE", "SpikeTrains", "load_spikes"]

#: What to do with a neuron whose spike file is missing or damaged.
ON_BAD_FILE = ("error", "skip")
#: Sets of sounds: entries of each spike file.
_SETS = {"natural": slice(0, NS1_NAT_SOUNDS), "drc": slice(NS1_NAT_SOUNDS, None)}


@dataclass(frozen=True, eq=False)
class SpikeTrains:
    """Spike times of one set of sounds for all kept neurons.

    Attributes
    ----------
    neurons : list of dict
        ``nrn_meta`` of the kept neurons, in metadata order.
    report : LoadReport
        Neurons kept and skipped.
    times : float64 ndarray
        Times in ms, sound by sound, neuron by neuron, repeat by repeat.
    counts : int32 ndarray (S, N, R)
        Spikes of each, -1 where a repeat does not exist.
    """

    neurons: list[dict[str, Any]]
    report: LoadReport
    times: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int32]

    def binned(self, n_bins: int, dt_ms: float, binning: str) -> list[Any]:
        """Return per sound an (N, R, T) block of counts, or a list of (R_n, T) where repeats differ."""
        blocks: list[Any] = []
        first = 0
        for counts in self.counts:
            there = counts >= 0
            lengths = np.where(there, counts, 0).ravel()
            last = first + int(lengths.sum())
            rows = np.repeat(np.arange(lengths.size), lengths)
            binned = bin_spikes(self.times[first:last], rows, lengths.size, n_bins, dt_ms, binning)
            block = binned.reshape(*counts.shape, n_bins)
            ragged = not there.all()
            blocks.append([rows[kept] for rows, kept in zip(block, there, strict=True)] if ragged else block)
            first = last
        return blocks


def load_spikes(root: Path, sounds: str, *, on_bad_file: str = "error", cache: bool = True) -> SpikeTrains:
    """Return the spike trains of one set of sounds, ``"natural"`` or ``"drc"``.

    Parameters
    ----------
    root : Path
        Folder of the recording.
    sounds : {"natural", "drc"}
        Which sounds.
    on_bad_file : {"error", "skip"}
        A missing or damaged spike file stops the load, or its neuron is left out and reported.
    cache : bool
        Use and fill the cache of parsed files.

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is no NS1 recording, or a spike file is missing or damaged and may not be skipped.
    """
    neurons = _ns1_read.read_metadata(root, cache=cache)
    report = LoadReport()
    found: list[dict[str, Any]] = []
    missing: list[str] = []
    for neuron in neurons:
        resolved = _ns1_read.resolve_spike_file(root, neuron["file"])
        if resolved is None:
            missing.append(neuron["file"])
            report.skip(neuron["cell_id"], f"its spike file {neuron['file']} is missing")
        else:
            found.append({**neuron, "file": resolved})
    if missing and on_bad_file == "error":
        folder = root / NS1_SPIKE_DIR_NAME
        more = f" and {len(missing) - 1} more spike files are" if len(missing) > 1 else " is"
        raise FileNotFoundError(
            f"{folder / missing[0]}{more} missing; {_ns1_read.mend(root)}; "
            "on_bad_file='skip' loads the others"
        )
    if not found:
        raise FileNotFoundError(
            f"{root} holds none of the {len(neurons)} spike files; {_ns1_read.mend(root)}"
        )
    stored = _parsed(root, [neuron["file"] for neuron in found], sounds, on_bad_file, cache)
    faults = dict(zip(stored["bad"].tolist(), stored["faults"].tolist(), strict=True))
    kept = []
    for index, neuron in enumerate(found):
        if index in faults:
            report.skip(neuron["cell_id"], faults[index])
            continue
        report.keep(neuron["cell_id"])
        kept.append({key: value for key, value in neuron.items() if key != "file"})
    return SpikeTrains(kept, report, stored[f"{sounds}_times"], stored[f"{sounds}_counts"])


def _parsed(root: Path, files: list[str], sounds: str, on_bad_file: str, cache: bool) -> Arrays:
    folder = root / NS1_SPIKE_DIR_NAME
    return cached_arrays(
        "NS1",
        "spikes",
        {"files": fingerprint_files(folder, files), "on_bad_file": on_bad_file},
        lambda: _parse(root, files, on_bad_file),
        members=["bad", "faults", f"{sounds}_times", f"{sounds}_counts"],
        enabled=cache,
    )


def _parse(root: Path, files: list[str], on_bad_file: str) -> Arrays:
    """Read every spike file and sort the times by sound, neuron, repeat."""
    bad: list[int] = []
    faults: list[str] = []
    units: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]] = []
    for index, file in enumerate(files):
        try:
            units.append(_ns1_read.read_spikes(root / NS1_SPIKE_DIR_NAME / file, root))
        except ValueError as error:
            if on_bad_file == "error":
                raise
            bad.append(index)
            faults.append(str(error))
    if not units:
        raise ValueError(
            f"none of the {len(files)} spike files under {root} can be read; {_ns1_read.mend(root)}"
        )
    arrays: Arrays = {"bad": np.array(bad, dtype=np.int64), "faults": np.array(faults, dtype=np.str_)}
    repeats = max(counts.shape[1] for _, counts in units)
    table = np.full((len(units[0][1]), len(units), repeats), -1, dtype=np.int32)
    ends = []
    for unit, (_, counts) in enumerate(units):
        table[:, unit, : counts.shape[1]] = counts
        ends.append(np.concatenate([[0], np.cumsum(np.maximum(counts, 0).sum(axis=1))]))
    for name, entries in _SETS.items():
        counts = table[entries]
        used = int(np.flatnonzero((counts >= 0).any(axis=(0, 1)))[-1]) + 1
        pieces = [
            times[end[entry] : end[entry + 1]]
            for entry in range(*entries.indices(len(table)))
            for (times, _), end in zip(units, ends, strict=True)
        ]
        arrays[f"{name}_times"] = np.concatenate(pieces)
        arrays[f"{name}_counts"] = np.ascontiguousarray(counts[:, :, :used])
    return arrays
