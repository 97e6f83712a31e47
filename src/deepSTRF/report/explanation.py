"""The results of ``deepstrf explain`` as files in a run folder: ``explain.json``, tables, arrays, sounds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import json_safe, write_atomically
from deepSTRF._text import read_csv
from deepSTRF.experiments.run_folder import EXPLAIN
from deepSTRF.report.rendering import short_name

FORMAT = 1
FACTS = "explain.json"
TABLES = ("tuning", "nonlinearity", "probes")
ARRAYS = ("fields", "confidence", "modulation", "dstrf", "probes")
MOVIE = "dstrf.gif"
#: Sounds are named after their kind and the neuron's index.
SOUNDS = ("field-*.wav", "strf-*.wav")


@dataclass(frozen=True)
class Explanation:
    """Tables, arrays, sounds and a movie that explain a fitted model; parts that were skipped are absent.

    Attributes
    ----------
    folder : Path. ``explain`` in the run folder.
    facts : dict. Neurons chosen (``neurons``, ``names``), ``seed``, ``unit`` of receptive fields, the clip
        and excerpt, and ``skipped``: pairs of a part and the reason.
    tables : mapping of str to list of dict. Rows of ``tuning`` (all neurons), ``nonlinearity`` and ``probes``
        (those chosen), cells as text.
    arrays : mapping of str to (mapping of str to array). ``fields``, ``confidence``, ``modulation``,
        ``dstrf`` and ``probes``.
    sounds : list of (str, Path). Label and WAV file.
    movie : Path or None. The movie of the dynamic STRFs.
    """

    folder: Path
    facts: Mapping[str, Any]
    tables: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    sounds: list[tuple[str, Path]] = field(default_factory=list)
    movie: Path | None = None

    @property
    def names(self) -> list[str]:
        """Names of the neurons chosen."""
        return [str(name) for name in self.facts.get("names", [])]

    @property
    def labels(self) -> list[str]:
        """Short names for panels and legends: a long name becomes the neuron's number."""
        pairs = zip(self.names, self.facts.get("neurons", []), strict=True)
        return [short_name(name, int(index)) for name, index in pairs]

    @property
    def of_seed(self) -> str:
        """A sentence that names the seed, where it is not the one of the rest of the report."""
        seed, best = self.facts.get("seed"), self.facts.get("best_seed")
        if best in (None, seed):
            return ""
        return f" This is the model of seed {seed}; receptive fields are of seed {best}."

    @property
    def unit(self) -> str:
        """Unit of receptive fields: "sd" (per standard deviation of each band) or "raw"."""
        return str(self.facts.get("unit", "raw"))

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Parts that were left out, and the reasons."""
        return [(str(part), str(reason)) for part, reason in self.facts.get("skipped", [])]

    @classmethod
    def load(cls, run_folder: str | Path) -> Explanation | None:
        """Read the explanation in a run folder; None when there is none, or an incomplete one.

        Raises ValueError when a file is damaged; the text names it.
        """
        folder = Path(run_folder) / EXPLAIN
        path = folder / FACTS
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            tables = {name: _read_table(folder / f"{name}.csv") for name in TABLES}
            arrays = {name: _read_arrays(folder / f"{name}.npz") for name in ARRAYS}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{folder} is damaged ({error}); write it again with: "
                f"deepstrf explain {run_folder} --overwrite"
            ) from error
        sounds = [(str(label), folder / str(name)) for name, label in facts.get("sounds", [])]
        movie = folder / MOVIE
        return cls(
            folder,
            facts,
            {name: rows for name, rows in tables.items() if rows},
            {name: found for name, found in arrays.items() if found},
            [(label, file) for label, file in sounds if file.is_file()],
            movie if movie.is_file() else None,
        )

    @staticmethod
    def clear(run_folder: str | Path) -> None:
        """Remove an earlier explanation from a run folder; files of the user's own stay."""
        folder = Path(run_folder) / EXPLAIN
        names = [FACTS, *(f"{name}.csv" for name in TABLES), *(f"{name}.npz" for name in ARRAYS), MOVIE]
        for path in [*(folder / name for name in names), *(p for kind in SOUNDS for p in folder.glob(kind))]:
            path.unlink(missing_ok=True)

    @staticmethod
    def seal(run_folder: str | Path, facts: Mapping[str, Any]) -> None:
        """Write the facts, last: their presence means that the explanation is complete."""
        content = json.dumps(json_safe({"format": FORMAT, **facts}), indent=1) + "\n"
        write_atomically(Path(run_folder) / EXPLAIN / FACTS, content.encode())


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    return read_csv(path.read_bytes().decode())


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
