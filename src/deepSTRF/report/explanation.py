"""The results of ``deepstrf explain``: an artefact in the folder of a run, with tables, arrays and sounds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deepSTRF._files import (
    MANIFEST,
    Artefact,
    check_place,
    damaged,
    load_npz,
    naming_damage,
    read_bytes,
    read_folder,
    warn_unsealed,
)
from deepSTRF._text import read_csv
from deepSTRF.experiments.run_folder import EXPLAIN, EXPLANATION, Run
from deepSTRF.report.rendering import short_name

#: Of the first format, explanations had no manifest.
FORMAT = 2
FACTS = "explain.json"
TABLES = ("tuning", "nonlinearity", "probes")
ARRAYS = ("fields", "confidence", "modulation", "dstrf", "probes")
MOVIE = "dstrf.gif"
#: Sounds are named after their kind and the neuron's index.
SOUND = re.compile(r"(field|strf)-\d+\.wav")


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
    def load(cls, run_folder: str | os.PathLike[str]) -> Explanation | None:
        """Read the explanation in a run folder, each file verified; None when there is none.

        Raises `DamagedFileError` when a file is damaged; the text names it. An explanation of an earlier
        version, which holds no checksums, loads with a warning.
        """
        folder = Path(run_folder) / EXPLAIN
        remedy = f"write it again with: deepstrf explain {run_folder} --overwrite"
        files = read_folder(folder, EXPLANATION, remedy)
        if files.files is None and not os.path.lexists(folder / FACTS):
            return None
        files.check_there()
        facts = files.json(FACTS)
        with naming_damage(folder / FACTS, remedy):
            _check_facts(facts)
        if files.files is None:
            if facts["format"] != 1:
                raise damaged(folder / MANIFEST, "the file is missing", remedy)
            warn_unsealed(folder, remedy)
        tables = {name: _read_table(files, f"{name}.csv") for name in TABLES}
        arrays = {name: _read_arrays(files, f"{name}.npz") for name in ARRAYS}
        sounds = [(str(label), _sound(files, str(name))) for name, label in facts.get("sounds", ())]
        return cls(
            folder,
            facts,
            {name: rows for name, rows in tables.items() if rows},
            {name: found for name, found in arrays.items() if found},
            sounds,
            files.path(MOVIE) if files.has(MOVIE) else None,
        )

    def explains(self, run: Run) -> bool:
        """Whether it is of the model that the run holds now, as far as is known."""
        model, seed = self.facts.get("model"), self.facts.get("seed")
        if model is None:
            return True
        return seed in run.scores.seeds and model == run.model_fingerprint(
            None if seed == run.best_seed else seed
        )

    @staticmethod
    def check_folder(run: Run) -> None:
        """Raise FileExistsError unless the folder of explanations of a run is free, or holds one."""
        check_place(run.path, f"{EXPLAIN}/{FACTS}")
        folder = run.path / EXPLAIN
        if folder.is_dir() and not any((folder / name).is_file() for name in (MANIFEST, FACTS)):
            names = [path.name for path in folder.iterdir() if not path.name.startswith(".deepSTRF-")]
            if names:
                raise FileExistsError(
                    f"{folder} holds files that are no explanation ({', '.join(sorted(names)[:3])}); move "
                    "them elsewhere first"
                )


def _check_facts(facts: Any) -> None:
    """Raise ValueError for facts of another shape."""
    if not isinstance(facts, dict) or facts["format"] not in (1, FORMAT):
        raise ValueError("it is of another format; install a newer deepSTRF")
    for name, kind in (("neurons", int), ("names", str)):
        if not all(isinstance(one, kind) for one in facts[name]):
            raise ValueError(f"{name} is {str(facts[name])[:40]!r}")
    if len(facts["neurons"]) != len(facts["names"]):
        raise ValueError("it has another number of names than of neurons")
    if not all(isinstance(text, str) for text in facts.get("notes", ())):
        raise ValueError(f"notes is {str(facts['notes'])[:40]!r}")
    for name in ("sounds", "skipped"):
        for pair in facts.get(name, ()):
            if len(pair) != 2 or not all(isinstance(one, str) for one in pair):
                raise ValueError(f"{str(pair)[:40]!r} in {name} is no pair of texts")


def _sound(files: Artefact, name: str) -> Path:
    """A sound of an explanation: a file of it, under a name that only its own sounds have."""
    if not SOUND.fullmatch(name) or (files.folder / name).is_symlink() or not files.has(name):
        raise damaged(files.folder / FACTS, f"its sound {name[:80]!r} is no file of it", files.remedy)
    return files.path(name)


def _read_table(files: Artefact, name: str) -> list[dict[str, str]]:
    if not files.has(name):
        return []
    with naming_damage(files.folder / name, files.remedy):
        return read_csv(files.text(name))


def _read_arrays(files: Artefact, name: str) -> dict[str, NDArray[Any]]:
    if not files.has(name):
        return {}
    with naming_damage(files.folder / name, files.remedy):
        return load_npz(read_bytes(files.path(name)))
