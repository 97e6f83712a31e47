"""Reading and writing NWB 2.x files: units or a continuous series, a table of presentations, and sounds.

What a file cannot say by itself are hints; what it says without doubt is used and named in the report. Only
what is needed is read: spike times of the kept units, and each sound when it is asked for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deepSTRF._files import naming_damage
from deepSTRF._text import printable
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.hdf5 import Hdf5File, is_hdf5
from deepSTRF.datasets.nwb_layout import (
    REMEDY,
    HDF5Signal,
    Series,
    Table,
    name_of,
    open_nwb,
    regular_rate,
    series_in,
    series_of,
    text_at,
)
from deepSTRF.datasets.nwb_stimuli import (
    BLANKS,
    SAME_START_S,
    Piece,
    folder_at,
    pieces_of,
    sounds_by_rule,
    sounds_played,
)
from deepSTRF.datasets.nwb_writing import read_record, session_of_record, write_nwb
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import SOUND_SUFFIXES, find_name
from deepSTRF.registry import FORMATS

__all__ = ["NWB"]

Floats = npt.NDArray[np.float64]

#: Columns that a table of presentations has in any case, or that say nothing about the sound.
_NOT_A_NAME = frozenset({"start_time", "stop_time", "tags", "timeseries", "id"})
#: What a column of names, of onsets, of ends and of quality is called.
_NAME_WORDS = re.compile(r"stim|sound|audio|song|wav|file|token|vocal|call", re.IGNORECASE)
_ONSET_WORDS = re.compile(
    r"(^|_)((stim\w*|sound|tone|audio|song|playback|cue)_?(on|onset|start|begin|time)|onset)(_?(time|times|s|sec))?$",
    re.IGNORECASE,
)
_OFFSET_WORDS = re.compile(
    r"(^|_)((stim\w*|sound|tone|audio|song|playback)_?(off|offset|stop|end)|offset)(_?(time|times|s|sec))?$",
    re.IGNORECASE,
)
_QUALITY = (
    "quality",
    "label",
    "unit_quality",
    "group",
    "cluster_group",
    "ks_label",
    "kslabel",
    "classification",
)
_AREAS = ("location", "area", "brain_area", "brain_region", "region")
#: Onsets that differ by less than this are one.
_SAME_TIME_S = 1e-6
#: Single precision resolves time to this; below, spike times are worth a note.
_COARSE_S = 1e-5
#: So many names are shown in a finding.
_SHOWN = 8


@FORMATS.register("nwb")
class NWB(Format):
    """NWB 2.x in HDF5: a table of units, or a time series; a table of intervals; sounds within or beside.

    Files that `write_recording` wrote come back equal without a hint.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".nwb",)
    writes: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._known: dict[str, Any] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A file named .nwb, HDF5 that says it is NWB, or a Zarr folder of NWB, which is refused by name."""
        if path.is_dir():
            return _is_zarr(path) and ".nwb" in path.name.lower()
        if path.suffix.lower() == ".nwb":
            return True
        if not is_hdf5(path):
            return False
        with open_nwb(path) as file:
            return file.attribute(file.root, "nwb_version") is not None

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """Tables, columns, series and units in the file, and what must be told."""
        with self._opened() as file:
            told = {key: value for key, value in hints.items() if value is not None}
            if not told and (record := read_record(file)) is not None:
                return Findings([f"written by deepSTRF: {printable(record.get('name', ''))}"])
            return _Overview(file, _Scan(file, self._known), told).findings()

    def sessions(  # type: ignore[override]  # hints by name
        self,
        *,
        intervals: str | None = None,
        stimulus: str | None = None,
        onset: str | None = None,
        offset: str | None = None,
        condition: str | None = None,
        blank: Sequence[str] | None = None,
        sounds: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        units: str | None = None,
        unit_name: str | None = None,
        quality: str | None = None,
        labels: Sequence[str] | None = None,
        signal: str | None = None,
    ) -> list[Session]:
        """The session in the file.

        Parameters
        ----------
        intervals : str
            Table of presentations, such as "trials"; "presentation" takes the series in
            stimulus/presentation in place of a table.
        stimulus : str
            Column that names the sound of each presentation.
        onset : str
            Column of the sounds' onsets in s; "start_time" where trials begin with the sound, and
            "start_time+delay" adds two columns.
        offset : str
            Column of the sounds' ends in s, where they are cut out of one long series.
        condition : str
            Column of conditions.
        blank : list of str
            Names in the column ``stimulus`` that stand for no sound.
        sounds : str, path or mapping
            "templates" or "presentation": series in the file; a path in the file; "templates by number": the
            column ``stimulus`` counts them from 0; or a folder of sound files; or sounds by name.
        units : str
            Path of the table of units, where there are several.
        unit_name : str
            Column that names units, in place of their ids.
        quality : str
            Column of labels, for ``labels``.
        labels : list of str
            Labels of the units to keep, such as "good"; all where it is left out.
        signal : str
            Path of a time series to take in place of units.
        """
        given = {key: value for key, value in locals().items() if key != "self" and value is not None}
        with self._opened() as file:
            if not given and (record := read_record(file)) is not None:
                return [session_of_record(file, record)]
            overview = _Overview.settled(file, _Scan(file, self._known), given)
            return [_session(overview)]

    @classmethod
    def write(cls, session: Session, path: Path) -> None:
        """Write a session; see `deepSTRF.datasets.nwb_writing.write_nwb`."""
        write_nwb(session, path)

    def _opened(self) -> Hdf5File:
        if self.path.is_dir():
            raise ValueError(
                f"{self.path} is a folder; NWB is read from HDF5 files only. A Zarr store becomes one "
                "with hdmf-zarr: NWBZarrIO(path, 'r') as source, NWBHDF5IO('copy.nwb', 'w') as io: "
                "io.export(source)"
            )
        return open_nwb(self.path)


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in (".zgroup", ".zattrs", "zarr.json", ".zmetadata"))


# ---- what is in a file


class _Scan:
    """Tables and series of an open file; what is known from an earlier look is taken over."""

    def __init__(self, file: Hdf5File, known: dict[str, Any]) -> None:
        with naming_damage(file.path, REMEDY):
            if file.attribute(file.root, "nwb_version") is None:
                raise ValueError("it is HDF5 without the attribute nwb_version of NWB 2.x")
        if not known:
            known.update(_found_in(file))
        self.continuous = known["continuous"]
        self.templates, self.presented = known["templates"], known["presentation"]
        self.tables = {path: Table(file, file.find(path)) for path in known["tables"]}
        self.unit_tables = {path: Table(file, file.find(path)) for path in known["units"]}


def _found_in(file: Hdf5File) -> dict[str, Any]:
    """Paths of tables, and series, in the places that NWB has for them."""
    found: dict[str, Any] = {"tables": [], "units": [], "continuous": {}}
    for name in ("templates", "presentation"):
        found[name] = series_in(file, f"stimulus/{name}")
    groups = [
        (path, group)
        for top in ("units", "intervals", "processing", "acquisition", "analysis")
        for start in [file.find(top)]
        for path, group in (file.walk(start) if hasattr(start, "keys") else ())
    ]
    shown = file.find("stimulus/presentation")
    if shown is not None and hasattr(shown, "keys"):
        others = [name for name in shown if name not in found["presentation"]]
        groups += [(f"stimulus/presentation/{name}", file.find(name, shown)) for name in others]
    for path, group in groups:
        plain = path.strip("/")
        if not hasattr(group, "keys"):
            continue
        for column, kind in (("start_time", "tables"), ("spike_times", "units")):
            if file.find(column, group) is not None:
                found[kind].append(plain)
        one = series_of(file, plain, group) if file.find("data", group) is not None else None
        if one is not None and 1 <= len(one.shape) <= 2 and not one.external:
            found["continuous"][plain] = one
    return found


@dataclass
class _Overview:
    """What a file holds, as far as it is needed to propose hints; made anew when hints were told."""

    file: Hdf5File
    scan: _Scan
    told: Mapping[str, Any]
    hints: dict[str, list[tuple[Any, str]]] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.templates, self.presented = self.scan.templates, self.scan.presented
        self.tables, self.unit_tables = self.scan.tables, self.scan.unit_tables
        self.continuous = self.scan.continuous
        self._choose_units()
        self._choose_intervals()
        self._choose_sounds()
        self._choose_columns()

    @classmethod
    def settled(cls, file: Hdf5File, scan: _Scan, given: Mapping[str, Any]) -> _Overview:
        """The overview with every hint that is told or beyond doubt. Raises MissingHintError for others."""
        told = dict(given)
        while True:
            overview = cls(file, scan, told)
            more = {
                key: found[0][0]
                for key, found in overview.hints.items()
                if key not in told and len(found) == 1 and key not in overview.needed
            }
            if not more:
                break
            told.update(more)
        if overview.needed:
            findings = overview.findings()
            words = [
                f"{key} ("
                + ("; ".join(f"{value!r}: {why}" for value, why in findings.hints.get(key, ())) or "...")
                + ")"
                for key in overview.needed
            ]
            raise MissingHintError(
                f"{file.path} is NWB, and must be told: {', '.join(words)}. Found: "
                f"{'; '.join(findings.found)}"
            )
        return overview

    # ---- choosing

    def _choose_units(self) -> None:
        units, signal = self.told.get("units"), self.told.get("signal")
        self.units: Table | None = None
        self.signal: Series | None = None
        if units is not None and signal is not None:
            raise ValueError(f"{self.file.path}: units= and signal= are one or the other; leave out one")
        if signal is not None:
            self.signal = _named(signal, self.continuous, "time series", self.file)
            return
        tables = self.unit_tables
        if units is not None:
            self.units = _named(units, tables, "table of units", self.file)
        elif "units" in tables and len(tables) == 1:
            self.units = tables["units"]
        elif tables:
            self._ask("units", [(path, f"{table.n} units") for path, table in tables.items()])
        elif self.continuous:
            self._ask(
                "signal",
                [(path, f"{one.kind} {one.shape}") for path, one in self.continuous.items()],
            )
        else:
            raise ValueError(
                f"{self.file.path} holds neither units with spike times nor a continuous time series"
            )
        if self.units is not None and "labels" in self.told and "quality" not in self.told:
            found = [(name, _example(self.units, name)) for name in _quality_columns(self.units)]
            if not found:
                raise ValueError(
                    f"{self.file.path}: labels={self.told['labels']!r}, and units have no column that may "
                    f"hold labels (quality=<column> names another); they have {', '.join(self.units.columns)}"
                )
            self._ask("quality", found)

    def _ask(self, hint: str, candidates: list[tuple[Any, str]]) -> None:
        """Propose values for a hint; it is needed unless there is exactly one."""
        self.hints[hint] = candidates
        if len(candidates) != 1:
            self.needed.append(hint)

    def _choose_intervals(self) -> None:
        told = self.told.get("intervals")
        self.table: Table | None = None
        tables = {path: one for path, one in self.tables.items() if not path.endswith("invalid_times")}
        if told == "presentation" and "presentation" not in tables:
            return
        if told is not None:
            self.table = _named(told, self.tables, "table of intervals", self.file)
            return
        ranked = sorted(tables, key=lambda path: (path.endswith("epochs"), "stim" not in path, path))
        main = [path for path in ranked if not path.endswith("/epochs")] or ranked
        if main:
            self._ask("intervals", [(path, _columns_in_words(tables[path])) for path in main])
            self.table = tables[main[0]] if len(main) == 1 else None
        elif self.presented:
            self._ask(
                "intervals", [("presentation", f"{len(self.presented)} series in stimulus/presentation")]
            )
        else:
            raise ValueError(
                f"{self.file.path} holds no table with start_time and no series in "
                "stimulus/presentation, so when sounds were played is not known; write it as a table of "
                "intervals (NWBFile.add_trial), or give spikes and trials to AudioNeuralDataset.from_trials"
            )

    def _choose_sounds(self) -> None:
        told = self.told.get("sounds")
        self.sound_names: list[str] = []
        if isinstance(told, Mapping):
            self.sound_names = [str(name) for name in told]
        elif told is not None:
            self.sound_names = _names_of_rule(self, os.fspath(told))
        elif self.templates or self.presented:
            self.sound_names = [*self.templates, *self.presented]
            rules = [
                (rule, f"{len(found)} series: {_listed(found)}")
                for rule, found in (("templates", self.templates), ("presentation", self.presented))
                if found
            ]
            both = self.sound_names
            self.sound_names = list(self.templates)
            enough = any(self._share(column) == 1.0 for column in self._name_columns())
            self.sound_names = self.sound_names if enough else both
            is_sure = enough or (self.templates and _only_indices(self.presented))
            self._ask("sounds", rules[:1] if is_sure else rules)
        else:
            self._choose_folder()

    def _choose_folder(self) -> None:
        """A folder of sounds beside the file: taken where it has every sound that a column names."""
        root = Path(os.path.realpath(self.file.path)).parent
        near = {str(one): names for one in _folders(root) if (names := _sound_stems(one))}
        whole = {}
        for folder, names in near.items():
            self.sound_names = names
            if any(self._share(column) == 1.0 for column in self._name_columns()):
                whole[folder] = names
        self.sound_names = next(iter(whole.values())) if len(whole) == 1 else []
        found = whole if len(whole) == 1 else near
        self._ask(
            "sounds", [(folder, f"beside the file, {len(n)} sound files") for folder, n in found.items()]
        )
        if len(whole) != 1 and "sounds" not in self.needed:
            self.needed.append("sounds")

    def _name_columns(self) -> list[str]:
        """Columns that may name the sound of each row."""
        return [
            name
            for name in (self.table.columns if self.table is not None else ())
            if name not in _NOT_A_NAME
            and self.table is not None
            and (self.table.is_text(name) or self.table.is_integer(name))
        ]

    def _choose_columns(self) -> None:
        if self.table is None:
            return
        if "stimulus" not in self.told:
            columns = self._name_columns()
            shares = {name: self._share(name) for name in columns}
            whole = [name for name in columns if shares[name] == 1.0]
            named = [name for name in columns if _NAME_WORDS.search(name) and self.table.is_text(name)]
            best = whole if len(whole) == 1 else named if len(named) == 1 and not whole else []
            ranked = sorted(columns, key=lambda name: (-shares[name], name not in named))
            self._ask("stimulus", [(name, _example(self.table, name)) for name in best or ranked])
            if not columns:
                raise ValueError(
                    f"{self.file.path}: {self.table.path} has no column of texts or integers that names the "
                    f"sound of each row; it has {', '.join(self.table.columns)}"
                )
        for hint, words, usual in (
            ("onset", _ONSET_WORDS, "start_time"),
            ("offset", _OFFSET_WORDS, "stop_time"),
        ):
            if hint in self.told or (hint == "offset" and not self._cuts()):
                continue
            others = [
                name
                for name in self.table.columns
                if name != usual
                and words.search(name)
                and self.table.is_number(name)
                and not self._is_same(name, usual)
            ]
            if others:
                found = [(name, self._against(name, usual)) for name in others]
                self._ask(
                    hint, [*found, (usual, "begin of the row" if hint == "onset" else "end of the row")]
                )

    def _cuts(self) -> bool:
        """Whether sounds are cut out of a longer series, so that their ends are needed."""
        return self.told.get("sounds") == "presentation" and not self._by_name()

    def _by_name(self) -> bool:
        names = [name for name in self.presented.values() if name.kind != "IndexSeries"]
        return (
            bool(names)
            and self.table is not None
            and "stimulus" in self.told
            and (self._share(self.told["stimulus"]) == 1.0)
        )

    def _share(self, column: str) -> float:
        """Share of the names in a column, blanks left out, that are names of sounds; 0 without sounds."""
        if self.table is None or not self.sound_names:
            return 0.0
        names = {name_of(value) for value in self.table.column(column)}
        there = set(self.sound_names)
        names = {name for name in names if name.casefold() not in BLANKS or name in there}
        known = [name for name in names if name in there or _found(name, self.sound_names) is not None]
        return len(known) / len(names) if names else 0.0

    def _is_same(self, name: str, usual: str) -> bool:
        if self.table is None or usual not in self.table:
            return False
        a, b = self.table.numbers(name), self.table.numbers(usual)
        return bool(np.all((np.abs(a - b) < _SAME_TIME_S) | (np.isnan(a) & np.isnan(b))))

    def _against(self, name: str, usual: str) -> str:
        """How a column of times lies against the usual one."""
        if self.table is None:
            return ""
        a, b = self.table.numbers(name), self.table.numbers(usual)
        shift = a - b
        if not np.isfinite(shift).any():
            return "without values"
        middle = float(np.nanmedian(shift))
        text = f"{middle:+.6g} s from {usual}, between {np.nanmin(shift):+.6g} and {np.nanmax(shift):+.6g}"
        stop = self.table.numbers("stop_time") if "stop_time" in self.table else a
        inside = (a >= b - _SAME_TIME_S) & (a <= np.where(np.isnan(stop), np.inf, stop))
        if usual == "start_time" and not inside[np.isfinite(a)].any():
            text += f"; outside of the rows: where it counts from {usual}, tell '{usual}+{name}'"
        return text

    # ---- in words

    def findings(self) -> Findings:
        """All that was found, in lines, with the proposals."""
        file = self.file
        lines = [f"NWB {file.attribute(file.root, 'nwb_version')}"]
        for path, table in self.unit_tables.items():
            quality = [f"{name} ({_example(table, name)})" for name in _quality_columns(table)]
            extra = [*quality, *(["observation intervals"] if table.is_ragged("obs_intervals") else [])]
            lines.append(
                f"{path}: {table.n} units: {_listed(table.ids())}" + "".join(f"; {one}" for one in extra)
            )
        lines += [f"{path}: {_columns_in_words(table)}" for path, table in self.tables.items()]
        for where, found in (
            ("stimulus/templates", self.templates),
            ("stimulus/presentation", self.presented),
        ):
            if found:
                words = _listed(map(_series_in_words, found.values()))
                lines.append(f"{where}: {len(found)} series: {words}")
        lines += [f"{path}: {_series_in_words(one)}" for path, one in self.continuous.items()]
        if self.table is not None and "stimulus" in self.told:
            counts = Counter(name_of(value) for value in self.table.column(self.told["stimulus"]))
            blanks = [f"{name!r} ({n})" for name, n in counts.items() if name.casefold() in BLANKS]
            lines += [f"may stand for no sound: {', '.join(blanks)}"] if blanks else []
        return Findings([printable(line, longest=400) for line in lines], self.hints, self.needed)


def _named(name: str, known: Mapping[str, Any], what: str, file: Hdf5File) -> Any:
    """What stands at a path, or has its last part, once."""
    plain = name.strip("/")
    hits = [path for path in known if path == plain] or [path for path in known if path.endswith("/" + plain)]
    if len(hits) != 1:
        listed = ", ".join(map(repr, hits or known)) or "none"
        problem = f"several are called {name!r}" if hits else f"no {what} is called {name!r}"
        raise ValueError(f"{file.path}: {problem}; the file has {listed}")
    return known[hits[0]]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError:
        return []


def _sound_stems(folder: Path) -> list[str]:
    """Names of the sound files in a folder, without what follows the last dot."""
    try:
        return [Path(name).stem for name in os.listdir(folder) if name.lower().endswith(SOUND_SUFFIXES)]
    except OSError:
        return []


def _names_of_rule(overview: _Overview, rule: str) -> list[str]:
    """Names of the sounds of a rule, as far as they are known without reading."""
    if rule == "templates":
        return list(overview.templates)
    if rule == "templates by number":
        return [str(number) for number in range(len(overview.templates))]
    if rule == "presentation":
        return list(overview.presented)
    found = overview.file.find(rule)
    if found is not None:
        return [name for name, item in overview.file.members(found) if hasattr(item, "keys")]
    folder = folder_at(overview.file, rule)
    return (
        [p.stem for p in folder.rglob("*") if p.suffix.lower() in SOUND_SUFFIXES] if folder.is_dir() else []
    )


def _found(name: str, known: Sequence[str]) -> str | None:
    try:
        return find_name(name, known, "stimulus")
    except ValueError:  # several would do
        return None


def _only_indices(found: Mapping[str, Series]) -> bool:
    return all(one.kind == "IndexSeries" for one in found.values())


def _quality_columns(table: Table) -> list[str]:
    return [
        name
        for name in table.columns
        if name.lower() in _QUALITY and (table.is_text(name) or table.is_integer(name))
    ]


def _listed(names: Any) -> str:
    words = [printable(name, longest=60) for name in names]
    return ", ".join(words[:_SHOWN]) + (f", and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def _example(table: Table, name: str) -> str:
    """The values of a column with their numbers."""
    counts = Counter(name_of(value) for value in table.column(name))
    words = [f"{printable(value, longest=40)!r} {n}" for value, n in counts.most_common(_SHOWN)]
    return ", ".join(words) + (f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")


def _columns_in_words(table: Table) -> str:
    return f"{table.n} rows with {_listed(table.columns)}"


def _series_in_words(one: Series) -> str:
    if one.external:
        return f"{one.name} (in {_listed(one.external)})"
    rate = f"{one.rate:g} Hz" if one.rate else "time stamps"
    return f"{one.name} ({one.kind} {'x'.join(map(str, one.shape))}, {rate})"


# ---- the session


def _session(overview: _Overview) -> Session:
    """Everything that the settled hints name."""
    file, told = overview.file, overview.told
    report = LoadReport()
    trials, sounds = _trials_and_sounds(overview, report)
    facts = {
        "source": file.path.name,
        **{
            key: value
            for key in (
                "identifier",
                "session_description",
                "session_start_time",
                "timestamps_reference_time",
            )
            if (value := printable(text_at(file, key), longest=500))
        },
    }
    species = text_at(file, "general/subject/species") or None
    session = Session(trials, sounds, name=file.path.stem, species=species, facts=facts, report=report)
    if overview.signal is not None:
        _fill_signal(session, file, overview.signal)
    elif overview.units is not None:
        _fill_units(session, file, overview.units, told)
        session.span_s = _span(overview.continuous, session)
    _mark_invalid(session, overview)
    return session


def _trials_and_sounds(overview: _Overview, report: LoadReport) -> tuple[Trials, dict[str, Sound]]:
    pieces = pieces_of(overview.file, overview.templates, overview.presented, overview.told.get("sounds"))
    if overview.table is None:
        pieces = sorted(pieces, key=lambda piece: piece.start_s)
        onsets = np.array([piece.start_s for piece in pieces], dtype=np.float64)
        return Trials([piece.name for piece in pieces], onsets), {
            piece.name: piece.sound(overview.file) for piece in pieces
        }
    table, told = overview.table, overview.told
    names = [name_of(value) for value in table.column(told["stimulus"])]
    onset = _times(table, told.get("onset", "start_time"))
    _check_onsets(overview, onset)
    wanted = told.get("offset") or ("stop_time" if overview._cuts() and "stop_time" in table else None)
    offset = None if wanted is None else _times(table, wanted)
    sounds = _sounds(overview, pieces, names, onset, offset, report)
    blank = told.get("blank")
    blank = [blank] if isinstance(blank, str) else blank
    silent = (
        set(map(name_of, blank))
        if blank is not None
        else {name for name in names if name.casefold() in BLANKS and _found(name, list(sounds)) is None}
    )
    n_blank = sum(name in silent for name in names)
    if n_blank:
        report.note("blank names", ", ".join(f"{name!r}" for name in sorted(silent)), n_blank)
    condition = told.get("condition")
    meta = {
        name: table.column(name)
        for name in table.columns
        if name not in _NOT_A_NAME and (table.is_text(name) or table.is_number(name))
    }
    return Trials(
        ["" if name in silent else name for name in names],
        onset,
        # the ends that cut sounds are those of the sounds
        offset if told.get("offset") and not overview._cuts() else None,
        None if condition is None else [name_of(value) for value in table.column(condition)],
        meta,
    ), sounds


def _sounds(
    overview: _Overview,
    pieces: list[Piece],
    names: list[str],
    onset: Floats,
    offset: Floats | None,
    report: LoadReport,
) -> dict[str, Sound]:
    """The sounds by the rule that was told, by name."""
    rule = overview.told["sounds"]
    played = isinstance(rule, str) and (
        rule == "presentation" or rule.strip("/").startswith("stimulus/presentation/")
    )
    if rule == "presentation" and overview._by_name():
        return {piece.name: piece.sound(overview.file) for piece in pieces}
    if played:
        return sounds_played(overview.file, pieces, names, onset, offset, report)
    return sounds_by_rule(overview.file, overview.templates, rule)


def _check_onsets(overview: _Overview, onset: Floats) -> None:
    """Refuse onsets of which none lies in its row: they count from its begin, or are no seconds."""
    table, name = overview.table, overview.told.get("onset", "start_time")
    if table is None or name == "start_time" or "start_time" not in table:
        return
    begin = table.numbers("start_time")
    end = table.numbers("stop_time") if "stop_time" in table else np.full(table.n, np.nan)
    known = np.isfinite(onset) & np.isfinite(begin)
    inside = (onset >= begin - _SAME_TIME_S) & (onset <= np.where(np.isnan(end), np.inf, end) + _SAME_TIME_S)
    if known.any() and not inside[known].any():
        raise ValueError(
            f"{overview.file.path}: no onset in the column {name!r} of {table.path} lies within its row "
            f"({_spread(onset[known])}; start_time {_spread(begin[known])} s); where it counts from there, "
            f"tell onset='start_time+{name}'; where it is in other units than s, tell another column"
        )


def _spread(values: Floats) -> str:
    return f"{values.min():g} to {values.max():g}"


def _times(table: Table, words: str) -> Floats:
    """A column of times, or the sum of several: "start_time+delay"."""
    names = [words] if words in table else [name.strip() for name in words.split("+")]
    total: Floats = np.sum([table.numbers(name) for name in names], axis=0, dtype=np.float64)
    return total


# ---- units


def _fill_units(session: Session, file: Hdf5File, table: Table, told: Mapping[str, Any]) -> None:
    """Spike times, observation intervals and metadata of the units to keep."""
    report = session.report
    if "spike_times" not in table:
        raise ValueError(f"{file.path}: {table.path} has no spike times")
    names = [name_of(v) for v in table.column(told["unit_name"])] if "unit_name" in told else table.ids()
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise ValueError(
            f"{file.path}: {table.path} has several units called {_listed(repeated)}; name them by another "
            f"column, unit_name=<one of {', '.join(table.columns)}>"
        )
    rows = _kept(file, table, told, names, report)
    if not table.is_ragged("spike_times"):
        raise file.damage(f"{table.path}/spike_times has no spike_times_index")
    spikes: dict[str, Floats] = {}
    for row, times in zip(rows, table.ragged("spike_times", rows, "f"), strict=True):
        spikes[names[row]] = _checked_times(file, times, names[row], report)
    session.spikes = spikes
    meta = _unit_meta(file, table, told.get("quality"))
    animal = text_at(file, "general/subject/subject_id")
    session.unit_meta = {
        names[row]: {**meta[row], "cell_id": names[row], **({"animal": animal} if animal else {})}
        for row in rows
    }
    if table.is_ragged("obs_intervals"):
        found = table.ragged("obs_intervals", rows)
        session.observed = dict(_observed(file, [names[row] for row in rows], found, spikes, report))


def _kept(
    file: Hdf5File, table: Table, told: Mapping[str, Any], names: Sequence[str], report: LoadReport
) -> list[int]:
    """Rows of the units whose label is to be kept."""
    if "labels" not in told:
        return list(range(table.n))
    wanted = (
        [told["labels"]] if isinstance(told["labels"], str) else [name_of(value) for value in told["labels"]]
    )
    held = [name_of(value) for value in table.column(told["quality"])]
    unknown = [label for label in wanted if label not in held]
    if unknown and not set(wanted) & set(held):
        raise ValueError(
            f"{file.path}: no unit is labelled {_listed(wanted)} in {told['quality']!r}; found "
            f"{_example(table, told['quality'])}"
        )
    for name, label in zip(names, held, strict=True):
        if label not in wanted:
            report.skip(f"unit {name}", f"{told['quality']} is {label!r}, kept are {', '.join(wanted)}")
    excluded = sum(label not in wanted for label in held)
    if excluded:
        report.note("unit excluded", f"{excluded} of {len(held)} units by {told['quality']}", excluded)
    return [row for row, label in enumerate(held) if label in wanted]


def _checked_times(file: Hdf5File, times: npt.NDArray[Any], unit: str, report: LoadReport) -> Floats:
    """Ascending spike times in float64."""
    if times.ndim != 1 or not np.isfinite(times).all():
        raise file.damage(
            f"the spike times of unit {unit!r} have the shape {times.shape}, or hold NaN or infinity"
        )
    found = times.astype(np.float64)
    if times.dtype.itemsize < 8 and found.size and np.spacing(np.abs(times).max()) > _COARSE_S:
        report.note(
            "spike times in single precision", f"unit {unit}: to {np.spacing(np.abs(times).max()):.2g} s"
        )
    if (np.diff(found) < 0).any():
        report.note("unsorted spike times", f"unit {unit}")
        found.sort()
    return found


def _observed(
    file: Hdf5File,
    names: Sequence[str],
    found: Sequence[npt.NDArray[Any]],
    spikes: Mapping[str, Floats],
    report: LoadReport,
) -> Iterator[tuple[str, Floats]]:
    """Intervals in which units were observed; without any, a unit with spikes was observed throughout."""
    for name, spans in zip(names, found, strict=True):
        if (
            spans.ndim != 2
            or spans.shape[1] != 2
            or not np.isfinite(spans).all()
            or (spans[:, 1] < spans[:, 0]).any()
        ):
            raise file.damage(f"the observation intervals of unit {name!r} are no pairs of begin and end")
        if len(spans) or not spikes[name].size:
            yield name, spans.astype(np.float64)
        else:
            report.note(
                "units without observation intervals", f"unit {name} has spikes: taken as observed throughout"
            )


def _unit_meta(file: Hdf5File, table: Table, quality: str | None) -> list[dict[str, Any]]:
    """Metadata of each row: columns of texts and numbers, area and electrode."""
    rows: list[dict[str, Any]] = [{} for _ in range(table.n)]
    for name in table.columns:
        if table.is_text(name) or table.is_number(name):
            for row, value in zip(rows, table.column(name), strict=True):
                if value == value:  # NaN: not known
                    row[name] = value
    found = quality or next(iter(_quality_columns(table)), None)
    area = next((name for name in _AREAS if name in table and table.is_text(name)), None)
    for key, column in (("quality", found), ("area", area)):
        for row in rows if column is not None else ():
            if column in row:
                row[key] = name_of(row[column])
    electrodes = file.find("general/extracellular_ephys/electrodes")
    if "electrodes" in table and electrodes is not None and hasattr(electrodes, "keys"):
        of_array = Table(file, electrodes)
        places = (
            of_array.column("location") if "location" in of_array and of_array.is_text("location") else []
        )
        ids = of_array.ids()
        for row, index in zip(rows, table.ragged("electrodes", range(table.n), "iu"), strict=True):
            if index.size and not 0 <= int(index.min()) <= int(index.max()) < of_array.n:
                raise file.damage(f"{table.path}/electrodes counts beyond the {of_array.n} electrodes")
            areas = list(dict.fromkeys(name_of(places[int(i)]) for i in index)) if places else []
            if any(areas):
                row["area"] = "/".join(one for one in areas if one)
            if index.size == 1:
                row["electrode"] = ids[int(index[0])]
    return rows


def _span(series: Mapping[str, Series], session: Session) -> tuple[float, float] | None:
    """Begin and end of the recording by its raw traces, where everything else lies within them."""
    found = [one for path, one in series.items() if path.startswith("acquisition/")]
    raw = [one for one in found if one.kind == "ElectricalSeries" and one.rate]
    if not raw:
        return None
    begin, end = min(one.start_s for one in raw), max(one.end_s for one in raw)
    times = [session.trials.onset_s, *(session.spikes or {}).values()]
    within = all(((t >= begin - SAME_START_S) & (t <= end + SAME_START_S)).all() for t in times)
    return (begin, end) if within else None  # a stub of the raw data says nothing about its length


def _mark_invalid(session: Session, overview: _Overview) -> None:
    """Take the times that the file calls invalid out of what was observed."""
    table = next((one for path, one in overview.tables.items() if path.endswith("invalid_times")), None)
    if table is None or not table.n:
        return
    spans = np.stack([table.numbers("start_time"), table.numbers("stop_time")], axis=1)
    spans = spans[np.isfinite(spans).all(axis=1)]
    session.report.note(
        "invalid times", f"{len(spans)} intervals of {table.path} count as not observed", len(spans)
    )
    if session.signal is not None:
        session.signal = Signal(
            **{**vars(session.signal), "bad_s": np.concatenate([session.signal.bad_s, spans])}
        )
        return
    observed = dict(session.observed)
    for name in session.spikes or {}:
        whole = np.array([session.span_s or (-np.inf, np.inf)])
        observed[name] = _without(observed.get(name, whole), spans)
    session.observed = observed


def _without(spans: Floats, holes: Floats) -> Floats:
    """Intervals without the parts that lie in holes."""
    parts = [tuple(span) for span in spans]
    for begin, end in holes:
        cut = []
        for a, b in parts:
            cut += (
                [(a, b)] if end <= a or begin >= b else [(x, y) for x, y in ((a, begin), (end, b)) if y > x]
            )
        parts = cut
    return np.array(parts, dtype=np.float64).reshape(-1, 2)


# ---- continuous signals


def _fill_signal(session: Session, file: Hdf5File, series: Series) -> None:
    """A time series as the signal of a session; its channels have the names of their electrodes."""
    n = int(np.prod(series.shape[1:], dtype=np.int64))
    names, areas = [str(k) for k in range(n)], [""] * n
    region = file.find(f"{series.path}/electrodes")
    electrodes = file.find("general/extracellular_ephys/electrodes")
    if region is not None and electrodes is not None and hasattr(electrodes, "keys"):
        of_array = Table(file, electrodes)
        index = file.values(region).reshape(-1)
        if (
            index.dtype.kind not in "iu"
            or len(index) != n
            or not (n == 0 or 0 <= int(index.min()) <= int(index.max()) < of_array.n)
        ):
            raise file.damage(f"{series.path}/electrodes names no {n} of the {of_array.n} electrodes")
        ids = of_array.ids()
        for column in ("channel_name", "label", "electrode_name", "name"):
            if column in of_array and of_array.is_text(column):
                texts = [name_of(value) for value in of_array.column(column)]
                ids = texts if all(texts) and len(set(texts)) == len(texts) else ids
        names = [ids[int(i)] for i in index]
        if "location" in of_array and of_array.is_text("location"):
            areas = [name_of(of_array.column("location")[int(i)]) for i in index]
    factors = file.find(f"{series.path}/channel_conversion")
    scale = None if factors is None else file.values(factors).astype(np.float64).reshape(-1)
    if scale is not None and (len(scale) != n or not np.isfinite(scale).all()):
        raise file.damage(f"{series.path}/channel_conversion is not one number for each of {n} channels")
    rate = regular_rate(file, series)
    data = HDF5Signal(file.path, series, scale)
    session.signal = Signal(data, rate, names, series.start_s, series.unit or "arbitrary units")
    session.unit_meta = {
        name: {"cell_id": name, **({"area": area} if area else {})}
        for name, area in zip(names, areas, strict=True)
    }
    session.facts["signal"] = series.path
