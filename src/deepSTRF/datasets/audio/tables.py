"""Tables and text files of spikes beside sound files: the shapes that laboratories keep, without a container.

Long tables (one row per spike) with times of the session or of the trial, tables of counts (rows are bins,
columns units), and text files with one line of spike times per trial. A trial without spikes has no row in a
long table, so that the number of repeats comes from a table of trials or is told, never from the rows.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deepSTRF._files import DamagedFileError
from deepSTRF._text import printable
from deepSTRF._validation import check_choice
from deepSTRF.datasets.audio.folder import TIME_UNITS, named_sounds, spikes_by_unit
from deepSTRF.datasets.file_tree import FileTree, is_archive
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Floats, Session, Sound, Trials
from deepSTRF.datasets.sounds import SOUND_SUFFIXES, natural, without_suffix
from deepSTRF.datasets.table_files import TABLE_SUFFIXES, Table, ids_of, read_table
from deepSTRF.registry import FORMATS

__all__ = ["TablesFormat", "session_of_trials"]

SHAPES = ("long", "counts", "lines")
ZEROS = ("session", "onset")
_TEXT_SUFFIXES = (".txt", ".dat", ".spikes", "")
#: Files about the recording, not of it.
_ABOUT = re.compile(r"(readme|licen[cs]e|changelog|copying|notes?)(\.\w+)?", re.IGNORECASE)
#: Share of spikes that must suit a reading of the times for it to be proposed without doubt.
_MOST = 0.9
#: Ratio of the latest spike to the longest sound that is likely.
_LIKELY = (0.02, 50.0)
_NAMES_SHOWN = 6

Times = dict[str, dict[str, list[Floats | None]]]


@FORMATS.register("tables")
class TablesFormat(Format):
    """Tables (CSV, Parquet) or text files of spikes beside sound files, in a folder or archive."""

    general: ClassVar[bool] = True
    reads_trees: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there are sound files, and tables or text files beside them."""
        if not (path.is_dir() or is_archive(path)):
            return False
        with closing(FileTree(path)) as tree:
            return bool(_sound_names(tree)) and bool(_table_names(tree) or _text_names(tree))

    @functools.cached_property
    def tree(self) -> FileTree:
        """The files; open until nobody holds sounds of them, which are read later."""
        return FileTree(self.path)

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """The tables, their columns and the sounds; units and zero of times with evidence."""
        return _Finder(self.tree, hints).findings()

    def sessions(  # type: ignore[override]  # the hints of this format
        self,
        *,
        spikes: str | None = None,
        trials: str | None = None,
        sounds: str | None = None,
        links: str | None = None,
        units: str | None = None,
        shape: str | None = None,
        columns: Mapping[str, str] | None = None,
        time_unit: str | None = None,
        sample_rate: float | None = None,
        time_zero: str | None = None,
        repeats: int | None = None,
        window_ms: Sequence[float] | None = None,
        bin_ms: float | None = None,
        first_bin_ms: float = 0.0,
        skip_lines: int = 0,
        sounds_fs: float | None = None,
    ) -> list[Session]:
        """The recording.

        Parameters
        ----------
        spikes : str
            The table of spikes; or, for one file per unit, stimulus or trial, a pattern of names such as
            "unit{unit}_spike{stimulus}.txt" with the parts {unit}, {stimulus}, {trial} and any others.
        trials : str, optional
            The table of presentations: stimulus, onset and, where spikes name it, trial.
        sounds : str, optional
            Folder of the sound files, or a pattern such as "stim{stimulus}.wav".
        links : str, optional
            Pattern of text files that hold the name of the sound file, such as "{unit}/stim{stimulus}".
        units : str, optional
            Table of metadata of the units.
        shape : {"long", "counts", "lines"}
            One row per spike; rows of counts per bin and columns of units; or one line of times per trial.
        columns : mapping, optional
            Names of columns by role: unit, time, stimulus, trial, onset, offset, condition.
        time_unit : {"s", "ms", "us", "samples"}
            Unit of times, where columns do not end in it (time_ms).
        sample_rate : float, optional
            Samples per second of times in samples.
        time_zero : {"session", "onset"}
            Whether spike times count from the start of the session or from the onset of their trial.
        repeats : int, optional
            Number of presentations of every stimulus, where no table of trials says it.
        window_ms : (float, float), optional
            Stretch around the onset in which spikes of a trial were looked for; outside nothing is known.
        bin_ms : float
            Width of the bins of counts.
        first_bin_ms : float
            Start of the first bin of counts, from the onset.
        skip_lines : int
            Lines before the first trial in text files.
        sounds_fs : float, optional
            True rate of the sounds in Hz, where their headers round it (24414.0625).
        """
        for name, value, legal in (
            ("shape", shape, (*SHAPES, None)),
            ("time_unit", time_unit, (*TIME_UNITS, "samples", None)),
            ("time_zero", time_zero, (*ZEROS, None)),
        ):
            check_choice(name, value, legal)
        told: dict[str, Any] = {
            "spikes": spikes, "trials": trials, "sounds": sounds, "links": links, "units": units,
            "shape": shape, "columns": columns, "time_unit": time_unit, "sample_rate": sample_rate,
            "time_zero": time_zero, "repeats": repeats, "window_ms": window_ms, "bin_ms": bin_ms,
            "first_bin_ms": first_bin_ms, "skip_lines": skip_lines, "sounds_fs": sounds_fs,
        }  # fmt: skip
        return [
            _Reader(self.tree, {key: value for key, value in told.items() if value is not None}).session()
        ]


# ---- files


def _sound_names(tree: FileTree) -> list[str]:
    return [name for name in tree.names if name.lower().endswith(SOUND_SUFFIXES)]


def _table_names(tree: FileTree) -> list[str]:
    return [name for name in tree.names if name.lower().endswith(TABLE_SUFFIXES)]


def _text_names(tree: FileTree) -> list[str]:
    return [
        name for name in tree.names
        if Path(name).suffix.lower() in _TEXT_SUFFIXES and not _ABOUT.fullmatch(Path(name).name)
    ]  # fmt: skip


def _matches(tree: FileTree, pattern: str) -> list[tuple[str, dict[str, str]]]:
    """Files that a pattern with {parts} names, and their parts."""
    seen: set[str] = set()

    def part(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+?)"

    pieces = re.split(r"(\{[A-Za-z_]\w*\})", pattern)
    regex = re.compile(
        "".join(re.sub(r"\{(\w+)\}", part, p) if p.startswith("{") else re.escape(p) for p in pieces)
    )
    found = [(name, hit.groupdict()) for name in tree.names if (hit := regex.fullmatch(name))]
    if not found:
        shown = ", ".join(tree.names[:_NAMES_SHOWN])
        raise ValueError(f"{tree.root} holds no file named like {pattern!r}; it holds {shown}, ...")
    return found


def _stimulus_files(tree: FileTree, pattern: str | None) -> dict[str, str]:
    """Sound files by the name of their stimulus."""
    if pattern is not None and "{" in pattern:
        return {parts.get("stimulus", name): name for name, parts in _matches(tree, pattern)}
    names = _sound_names(tree)
    if pattern is not None:
        names = [name for name in names if name.startswith(pattern.rstrip("/") + "/")]
        if not names:
            raise ValueError(f"{tree.root} holds no sound files in {pattern!r}")
    return {name: name for name in names}


def _ends(words: Sequence[str]) -> tuple[str, str]:
    """What all words begin and end with, without the digits of a number between."""
    first, last = min(words), max(words)
    prefix = first[
        : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    ]
    turned = [word[::-1] for word in words]
    first, last = min(turned), max(turned)
    suffix = first[
        : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    ][::-1]
    prefix, suffix = prefix.rstrip("0123456789"), suffix.lstrip("0123456789")
    shortest = min(map(len, words))
    return (prefix, suffix) if len(prefix) + len(suffix) < shortest else (prefix[: max(0, shortest - 1)], "")


def propose_patterns(sounds: Sequence[str], texts: Sequence[str]) -> tuple[str, str] | None:
    """Patterns of the names of sounds and of text files that share the names of stimuli, or None."""
    if len(sounds) < 2 or len(texts) < 2 or len({Path(name).suffix for name in (*sounds,)}) > 1:
        return None
    stems = [name[: len(name) - len(Path(name).suffix)] for name in sounds]
    start, end = _ends(stems)
    ids = sorted({stem[len(start) : len(stem) - len(end)] for stem in stems}, key=len, reverse=True)
    rests = set()
    for name in texts:
        suffix = Path(name).suffix
        stem = name[: len(name) - len(suffix)]
        hit = next(
            (
                i
                for i in ids
                if i and stem.endswith(i) and not (i[0].isdigit() and stem[: -len(i)][-1:].isdigit())
            ),
            None,
        )
        if hit is None:
            return None
        rests.add((stem[: -len(hit)], suffix))
    if len({suffix for _, suffix in rests}) > 1:
        return None
    suffix = next(iter(rests))[1]
    heads = [head for head, _ in rests]
    pattern = heads[0]
    if len(heads) > 1:
        before, after = _ends(heads)
        pattern = f"{before}{{unit}}{after}"
    return f"{start}{{stimulus}}{end}{Path(sounds[0]).suffix}", f"{pattern}{{stimulus}}{suffix}"


def read_lines(text: str, where: str, skip: int) -> list[Floats | None]:
    """One array of numbers per line: an empty line is a trial without spikes, a line of nan is no trial."""
    lines = text.splitlines()[skip:]
    commas = "," in text
    decimal = commas and "." not in text and any(re.search(r"\S[ \t;]+\S", line) for line in lines)
    found: list[Floats | None] = []
    for number, line in enumerate(lines, start=skip + 1):
        words = re.split(r"[\s;]+" if decimal else r"[\s;,]+", line.strip(" \t;,\r\f\v"))
        try:
            values = np.array([float(word.replace(",", ".")) for word in words if word], dtype=np.float64)
        except ValueError:
            shown = printable(line, longest=60)
            raise DamagedFileError(
                f"{where}: line {number} holds {shown!r}, which are no spike times"
            ) from None
        if commas and not decimal and "." not in text and (np.diff(values) < 0).any():
            raise DamagedFileError(f"{where}: line {number}: is the comma a decimal sign? Write points")
        if np.isinf(values).any() or (np.isnan(values).any() and not np.isnan(values).all()):
            raise DamagedFileError(f"{where}: line {number} holds values that are no times")
        found.append(None if values.size and np.isnan(values).all() else values)
    return found


# ---- what is there


class _Finder:
    """What a folder of tables holds, and which hints are missing."""

    def __init__(self, tree: FileTree, told: Mapping[str, Any]) -> None:
        self.tree, self.given, self.told = tree, dict(told), dict(told)  # given, and with what is proposed
        self.hints: dict[str, list[tuple[Any, str]]] = {}
        self.needed: list[str] = []
        self.found: list[str] = []

    def findings(self) -> Findings:
        """All of it."""
        sounds = _sound_names(self.tree)
        self.found.append(f"{len(sounds)} sound files: {', '.join(sounds[:_NAMES_SHOWN])}")
        tables: dict[str, Table] = {}
        for name in _table_names(self.tree)[:50]:
            tables[name] = table = read_table(self.tree, name)
            self.found.append(f"{name}: {len(table)} rows, columns {', '.join(table.columns)} ({table.how})")
        self._spikes(tables, sounds)
        spikes = self.told.get("spikes")
        if spikes is not None:
            read = {"lines": self._lines, "counts": self._counts, "long": self._long}
            read[self.told.get("shape") or _shape(str(spikes))](tables)
        open_hints = {key: value for key, value in self.hints.items() if key not in self.given}
        return Findings(self.found, open_hints, self.needed)

    def _spikes(self, tables: Mapping[str, Table], sounds: Sequence[str]) -> None:
        if "spikes" in self.told:
            return
        roles = self.told.get("columns")
        long = [
            name
            for name, table in tables.items()
            if _has(table, roles, "unit") and _has(table, roles, "time")
        ]
        if long:
            self.hints["spikes"] = [(name, "columns of units and times") for name in long]
        else:
            texts = _text_names(self.tree)
            proposed = propose_patterns(sounds, texts)
            if proposed is not None:
                self.found.append(f"{len(texts)} text files: {', '.join(texts[:_NAMES_SHOWN])}")
                self.hints["spikes"] = [(proposed[1], "names of text files that end in those of sounds")]
                if "sounds" not in self.told:
                    self.hints["sounds"] = [(proposed[0], "names of sounds")]
        if len(self.hints.get("spikes", ())) != 1:
            self.needed.append("spikes")
        else:
            self.told["spikes"] = self.hints["spikes"][0][0]

    def _unit_of_time(self, latest: float, in_name: str | None) -> None:
        """Propose the unit by a column's name, else ask with the evidence of the sounds."""
        if "time_unit" in self.told or in_name is not None:
            return
        longest = max(
            (_seconds(self.tree.sound(name)) for name in _sound_names(self.tree)[:200]), default=0.0
        )
        scales: dict[str, float] = {"s": 1.0, "ms": 1e3, "us": 1e6}
        if self.told.get("sample_rate"):
            scales["samples"] = float(self.told["sample_rate"])
        why = f"latest spike {latest:g}, longest sound {longest:.3g} s"
        likely = [(unit, why) for unit, scale in scales.items()
                  if longest and _LIKELY[0] < latest / scale / longest < _LIKELY[1]]  # fmt: skip
        likely.sort(key=lambda one: abs(math.log(max(latest, 1e-9) / scales[one[0]] / longest)))
        self.hints["time_unit"] = likely
        self.needed.append("time_unit")

    def _lines(self, tables: Mapping[str, Table]) -> None:
        files = _matches(self.tree, self.told["spikes"])
        skip = int(self.told.get("skip_lines", 0))
        name = files[0][0]
        lines = read_lines(self.tree.text(name), self.tree.where(name), skip)
        times = np.concatenate([*(one for one in lines if one is not None), np.zeros(1)])
        for more, _ in files[1:20]:
            rest = read_lines(self.tree.text(more), self.tree.where(more), skip)
            times = np.concatenate([times, *(one for one in rest if one is not None)])
        self.found.append(f"{len(files)} files like {self.told['spikes']}; {name} has {len(lines)} lines")
        self._unit_of_time(float(np.abs(times).max()), None)

    def _counts(self, tables: Mapping[str, Table]) -> None:
        if "bin_ms" not in self.told:
            self.needed.append("bin_ms")

    def _long(self, tables: Mapping[str, Table]) -> None:
        roles = self.told.get("columns")
        table = tables.get(self.told["spikes"]) or read_table(self.tree, self.told["spikes"])
        if "trials" not in self.told:
            able = [name for name, one in tables.items()
                    if name != self.told["spikes"] and _has(one, roles, "stimulus")
                    and (_has(one, roles, "onset") or _has(one, roles, "trial"))]  # fmt: skip
            self.hints["trials"] = [(name, "columns of stimuli and onsets or trials") for name in able]
            if len(able) == 1:
                self.told["trials"] = able[0]
            elif len(able) > 1:
                self.needed.append("trials")
        time = str(table.column("time", roles))
        latest = float(np.nanmax(np.abs(table.numbers(time)), initial=0.0))
        self._unit_of_time(latest, table.unit(time))
        own = _has(table, roles, "trial")
        if "trials" not in self.told and len(self.hints.get("trials", ())) < 2:
            if not (own and _has(table, roles, "stimulus")):
                self.needed.append("trials")
            elif "repeats" not in self.told:
                seen = len(set(table.texts(str(table.column("trial", roles)))))
                self.found.append(f"trials with spikes: {seen}; a trial without spikes has no row")
                self.needed.append("repeats")
        elif "trials" in self.told and "time_zero" not in self.told and own:
            self._zero(table, tables.get(self.told["trials"]) or read_table(self.tree, self.told["trials"]))

    def _zero(self, table: Table, trials: Table) -> None:
        """Whether times count from the session or from the onset, by what suits the trials."""
        roles, unit = self.told.get("columns"), self.told.get("time_unit")
        onset = trials.column("onset", roles, needed=False)
        if onset is None or trials.column("trial", roles, needed=False) is None:
            return
        if unit is None and table.unit(str(table.column("time", roles))) is None:
            return  # the unit comes first
        rate = self.told.get("sample_rate")
        onsets = _times(trials, onset, unit, rate)
        times = _times(table, str(table.column("time", roles)), unit, rate)
        rows = {trial: k for k, trial in enumerate(ids_of(trials.texts(str(trials.column("trial", roles)))))}
        at = np.array(
            [rows.get(trial, -1) for trial in ids_of(table.texts(str(table.column("trial", roles))))]
        )
        if not len(at) or (at < 0).all():
            return
        gap = float(np.median(np.diff(np.sort(onsets)))) if len(onsets) > 1 else 1.0
        own = onsets[at[at >= 0]]
        after = times[at >= 0] - own
        session = float(np.mean((after > -gap) & (after < 2 * gap)))
        relative = float(np.mean((after + own > -gap) & (after + own < 2 * gap)))
        why = {
            "session": f"{session:.0%} of spikes lie near their trial",
            "onset": f"{relative:.0%} lie near an onset",
        }
        if session >= _MOST > relative:
            self.hints["time_zero"] = [("session", why["session"])]
        elif relative >= _MOST > session:
            self.hints["time_zero"] = [("onset", why["onset"])]
        else:
            self.hints["time_zero"] = [(zero, why[zero]) for zero in ZEROS]
            self.needed.append("time_zero")


def _shape(spikes: str) -> str:
    """The shape of what is named so."""
    if not spikes.lower().endswith(TABLE_SUFFIXES):
        return "lines"
    return "counts" if "{" in spikes else "long"


def _has(table: Table, roles: Mapping[str, str] | None, role: str) -> bool:
    try:
        return table.column(role, roles, needed=False) is not None
    except ValueError:
        return role not in (roles or {})  # several could be it


def _seconds(sound: Sound) -> float:
    return float((sound.n_samples or 0) / sound.fs)


def _times(table: Table, name: str, unit: str | None, rate: float | None) -> Floats:
    """A column of times in s, by the unit in its name or the one that was told."""
    own = table.unit(name) or unit
    if own is None:
        raise MissingHintError(f"{table.where}: the unit of {name!r} must be told: time_unit='s', 'ms', ...")
    return np.asarray(table.numbers(name) / _per_second(own, rate), dtype=np.float64)


def _per_second(unit: str, rate: float | None) -> float:
    if unit != "samples":
        return TIME_UNITS[unit]
    if rate is None:
        raise MissingHintError("times in samples need sample_rate=<samples per second>")
    return float(rate)


# ---- reading


class _Reader:
    """One recording in tables, all hints being told."""

    def __init__(self, tree: FileTree, told: Mapping[str, Any]) -> None:
        self.tree, self.told = tree, told
        self.roles = told.get("columns")
        self.report = LoadReport()
        self.unit_meta: dict[str, dict[str, Any]] = {}
        self.stim_meta: dict[str, dict[str, Any]] = {}

    def session(self) -> Session:
        """The session."""
        spikes = self.told.get("spikes")
        if spikes is None:
            raise MissingHintError(
                f"{self.tree.root}: the table or text files of spikes must be told: spikes='...'"
            )
        read = {"lines": self._lines, "counts": self._counts, "long": self._long}
        made = read[self.told.get("shape") or _shape(spikes)]()
        if "units" in self.told:
            self._read_units(read_table(self.tree, self.told["units"]))
        names = list(made.spikes or {})
        made.unit_meta = {unit: self.unit_meta.get(unit, {}) for unit in names}
        made.stim_meta = self.stim_meta
        made.name, made.report = self.tree.root.name.split(".")[0], self.report
        return made

    def _read_units(self, table: Table) -> None:
        key = str(table.column("unit", self.roles))
        for row, unit in enumerate(ids_of(table.texts(key))):
            self.unit_meta.setdefault(unit, {}).update(
                {name: table.texts(name)[row] for name in table.columns if name != key}
            )

    def _sounds(self, wanted: Sequence[str]) -> dict[str, Sound]:
        files = _stimulus_files(self.tree, self.told.get("sounds"))
        return named_sounds(self.tree, files, self.told.get("sounds_fs"), wanted)

    def _aligned(self, times: Times, facts: Mapping[str, Any] | None = None) -> Session:
        stimuli = sorted({name for by in times.values() for name in by}, key=natural)
        sounds = self._sounds(stimuli)
        window = self.told.get("window_ms")
        made = session_of_trials(
            times, {name: _seconds(sounds[name]) for name in stimuli if name in sounds},
            None if window is None else (float(window[0]) / 1000.0, float(window[1]) / 1000.0), self.report,
        )  # fmt: skip
        made.sounds, made.facts = sounds, dict(facts or {})
        return made

    def _linked(self, stimulus: str, parts: Mapping[str, str]) -> str:
        """The sound that a text file names for a stimulus."""
        name = str(self.told["links"])
        for key, value in parts.items():
            name = name.replace("{" + key + "}", value)
        hit = (
            name
            if name in self.tree
            else next((n for n in self.tree.names if n.startswith(name + ".")), None)
        )
        if hit is None:
            raise ValueError(f"{self.tree.root} holds no file {name}, which names a sound (of {stimulus})")
        return without_suffix(self.tree.text(hit, 10_000).strip())

    def _lines(self) -> Session:
        times: Times = {}
        scale = None
        for name, parts in _matches(self.tree, self.told["spikes"]):
            if "time_unit" not in self.told:
                raise MissingHintError(
                    f"{self.tree.where(name)}: the unit of times must be told: time_unit='ms'"
                )
            scale = scale or _per_second(self.told["time_unit"], self.told.get("sample_rate"))
            unit, stimulus = parts.get("unit", "unit"), parts.get("stimulus", "stimulus")
            if "links" in self.told:
                stimulus = self._linked(stimulus, parts)
            lines = read_lines(
                self.tree.text(name), self.tree.where(name), int(self.told.get("skip_lines", 0))
            )
            if not lines:
                self.report.note("files without trials", name)
                continue
            rows = times.setdefault(unit, {}).setdefault(stimulus, [])
            rows += [None if one is None else one / scale for one in lines]
            for key, value in parts.items():
                if key not in ("unit", "stimulus", "trial"):
                    self._note_part(unit, stimulus, key, value)
        return self._aligned(times)

    def _note_part(self, unit: str, stimulus: str, key: str, value: str) -> None:
        """A further part of a name, as metadata of the unit and of the stimulus where it never changes."""
        for meta, owner in ((self.unit_meta, unit), (self.stim_meta, stimulus)):
            row = meta.setdefault(owner, {})
            row[key] = value if row.get(key, value) == value else None

    def _counts(self) -> Session:
        bin_s = float(self.told["bin_ms"]) / 1000.0 if "bin_ms" in self.told else 0.0
        if not bin_s > 0:
            raise MissingHintError(
                f"{self.tree.root}: the width of the bins of counts must be told: bin_ms=10.0"
            )
        first = float(self.told.get("first_bin_ms", 0.0)) / 1000.0
        times: Times = {}
        end = 0.0
        for name, parts in _matches(self.tree, self.told["spikes"]):
            table = read_table(self.tree, name)
            clock = table.column("time", self.roles, needed=False)
            end = max(end, first + len(table) * bin_s)
            for unit in (column for column in table.columns if column != clock):
                counts = table.numbers(unit)
                rows = times.setdefault(ids_of([unit])[0], {}).setdefault(
                    parts.get("stimulus", "stimulus"), []
                )
                if np.isnan(counts).all():
                    rows.append(None)
                    continue
                if not (counts >= 0).all() or (counts != np.round(counts)).any():
                    raise ValueError(
                        f"{table.where}: column {unit!r} holds no counts (whole numbers from 0 in every "
                        "bin); signals are read from the folder layout (signal.npy)"
                    )
                bins = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
                rows.append(np.asarray(first + (bins + 0.5) * bin_s, dtype=np.float64))
        if "window_ms" not in self.told:
            self.told = {**self.told, "window_ms": (first * 1000.0, end * 1000.0)}
        return self._aligned(times, {"bin_ms": bin_s * 1000.0})

    def _long(self) -> Session:
        table = read_table(self.tree, self.told["spikes"])
        unit_time, rate = self.told.get("time_unit"), self.told.get("sample_rate")
        ids = ids_of(table.texts(str(table.column("unit", self.roles))))
        seconds = _times(table, str(table.column("time", self.roles)), unit_time, rate)
        trial = table.column("trial", self.roles, needed=False)
        if not np.isfinite(seconds).all():
            row = int(np.flatnonzero(~np.isfinite(seconds))[0]) + 1 + table.has_header
            raise ValueError(f"{table.where}: row {row} has no time; remove the row")
        if "trials" not in self.told:
            return self._by_rows(table, ids, seconds, trial)
        trials = read_table(self.tree, self.told["trials"])
        stimuli = ids_of(trials.texts(str(trials.column("stimulus", self.roles))))
        zero = self.told.get("time_zero") or ("session" if trial is None else None)
        if zero is None:
            raise MissingHintError(f"{table.where}: time_zero='session' or 'onset' must be told")
        if zero == "session":
            roles = {role: trials.column(role, self.roles, needed=role == "onset")
                     for role in ("onset", "offset", "condition")}  # fmt: skip
            condition, offset = roles["condition"], roles["offset"]
            return Session(
                Trials(
                    stimuli, _times(trials, str(roles["onset"]), unit_time, rate),
                    None if offset is None else _times(trials, offset, unit_time, rate),
                    None if condition is None else trials.texts(condition),
                ),
                sounds=self._sounds([name for name in stimuli if name]),
                spikes=spikes_by_unit(ids, seconds),
            )  # fmt: skip
        if trial is None:
            raise ValueError(f"{table.where}: times from the onset need a column of trials")
        numbers = ids_of(trials.texts(str(trials.column("trial", self.roles))))
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"{trials.where}: a trial has two rows; trials need names of their own")
        place = {number: k for k, number in enumerate(numbers)}
        own = ids_of(table.texts(trial))
        lost = [one for one in own if one not in place]
        if lost:
            raise ValueError(
                f"{table.where}: trial {lost[0]!r} of {len(lost)} spikes is not in {trials.where}"
            )
        at = np.array([place[one] for one in own], dtype=np.int64)
        times: Times = {}
        for unit in sorted(set(ids), key=natural):
            mine = np.array([one == unit for one in ids], dtype=bool)
            rows = times.setdefault(unit, {})
            for k, stimulus in enumerate(stimuli):
                if stimulus:
                    rows.setdefault(stimulus, []).append(seconds[mine & (at == k)])
        if "" in stimuli:
            self.report.note(
                "blank trials", f"{stimuli.count('')} trials without a stimulus", stimuli.count("")
            )
        return self._aligned(times)

    def _by_rows(self, table: Table, ids: Sequence[str], seconds: Floats, trial: str | None) -> Session:
        """Trials of a long table whose number was told."""
        stimulus = table.column("stimulus", self.roles, needed=False)
        repeats = self.told.get("repeats")
        if stimulus is None or trial is None or repeats is None:
            raise MissingHintError(
                f"{table.where}: a trial without spikes has no row, so the number of repeats is not known; "
                "name a table of trials (trials='trials.csv'), or with columns of stimulus and trial tell "
                "repeats=<number of presentations of every stimulus>"
            )
        stimuli, trials = ids_of(table.texts(stimulus)), ids_of(table.texts(trial))
        place: dict[tuple[str, str], int] = {}
        for name in set(stimuli):
            seen = sorted({t for s, t in zip(stimuli, trials, strict=True) if s == name}, key=natural)
            if len(seen) > repeats:
                raise ValueError(
                    f"{table.where}: stimulus {name!r} has {len(seen)} trials with spikes, repeats={repeats}"
                )
            place |= {(name, t): k for k, t in enumerate(seen)}
        units = sorted(set(ids), key=natural)
        times: Times = {unit: {s: [np.empty(0)] * repeats for s in set(stimuli)} for unit in units}
        rows: dict[tuple[str, str, int], list[float]] = {}
        for unit, name, t, time in zip(ids, stimuli, trials, seconds.tolist(), strict=True):
            rows.setdefault((unit, name, place[name, t]), []).append(time)
        for (unit, name, k), found in rows.items():
            times[unit][name][k] = np.array(found)
        silent = sum(
            all(not one.size for one in r if one is not None) for by in times.values() for r in by.values()
        )
        if silent:
            self.report.note(
                "pairs without spikes", f"{silent} pairs of unit and stimulus are taken as silent", silent
            )
        return self._aligned(times)


def session_of_trials(
    times: Times,
    durations_s: Mapping[str, float],
    window_s: tuple[float, float] | None,
    report: LoadReport,
) -> Session:
    """Session of units with spike times per trial, from the onset: ``times[unit][stimulus][repeat]``.

    None is a trial that a unit was not recorded in. Repeats of one number are the same presentation for all
    units. Without a window it reaches from the earliest to the latest spike of all, and over the sound.
    """
    arrays = [
        one for by in times.values() for rows in by.values() for one in rows if one is not None and one.size
    ]
    low = min([0.0, *(float(one.min()) for one in arrays)])
    high = max([0.0, *(float(one.max()) for one in arrays)])
    stimuli = sorted({name for by in times.values() for name in by}, key=natural)
    names: list[str] = []
    onsets: list[float] = []
    spikes: dict[str, list[Floats]] = {unit: [] for unit in times}
    observed: dict[str, list[tuple[float, float]]] = {unit: [] for unit in times}
    clock, before, after, outside = 0.0, 0, 0, 0
    for stimulus in stimuli:
        length = durations_s.get(stimulus, 0.0)
        start, end = window_s or (
            math.floor(low * 1000.0) / 1000.0,
            max(length, math.floor(high * 1000.0 + 1.0) / 1000.0),
        )
        for repeat in range(max(len(by.get(stimulus, ())) for by in times.values())):
            onset = float(np.ceil(clock - start) + 1.0)  # whole seconds: k * dt stays what it was
            names.append(stimulus)
            onsets.append(onset)
            clock = onset + max(end, length)
            for unit, by in times.items():
                rows = by.get(stimulus, [])
                one = rows[repeat] if repeat < len(rows) else None
                if one is None:
                    continue
                inside = (one >= start) & (one < end)
                outside += int((~inside).sum())
                before += int((one < 0).sum())
                after += int((one >= length).sum()) if length else 0
                spikes[unit].append(onset + np.sort(one[inside]))
                observed[unit].append((onset + start, onset + end))
    for topic, count in (("spikes before the sound", before), ("spikes after the sound's end", after),
                         ("spikes outside their trial", outside)):  # fmt: skip
        if count:
            report.note(topic, f"{count} spikes", count)
    if window_s is None and arrays:
        report.note(
            "window of the trials",
            f"{low:.3f} to {high:.3f} s from the onset, by the spikes; window_ms= states it",
        )
    return Session(
        Trials(names, np.array(onsets)),
        spikes={unit: np.concatenate([*found, np.empty(0)]) for unit, found in spikes.items()},
        observed={unit: np.array(found).reshape(-1, 2) for unit, found in observed.items()},
        span_s=(0.0, clock + 1.0),
        report=report,
    )
