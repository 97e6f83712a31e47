"""The folder layout: sounds, tables of trials and spikes (or a signal), and a ``recording.toml``.

    sounds/A.wav                 any sound files; names are the stimuli of the trials
    features/FEATURE/A.npy       in place of sounds, or beside them: (F, T) values per bin
    trials.csv                   stimulus, onset, and where known offset, condition, further columns
    spikes.csv | spikes.parquet  unit, time;  or  signal.npy (channels, T)
    units.csv                    optional: unit, and any metadata (area, quality, ...)
    observed.csv                 optional: unit, start, stop of what was observed
    recording.toml               optional: hints and facts

Times are seconds of the recording unless a column's name or ``time_unit`` says otherwise. What deepSTRF
writes here also holds ``exact.json``, by which a dataset comes back equal, and a manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tomli_w

from deepSTRF._files import (
    MANIFEST,
    DamagedFileError,
    json_safe,
    load_npy,
    naming_damage,
    read_folder,
    read_json,
    replace_folder,
    sealed_json,
)
from deepSTRF._text import csv_table
from deepSTRF._validation import check_choice
from deepSTRF.datasets.file_tree import FileTree, is_archive
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.session import Feature, Floats, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import SOUND_SUFFIXES, find_name, natural
from deepSTRF.datasets.table_files import TABLE_SUFFIXES, Table, ids_of, read_table
from deepSTRF.registry import FORMATS

__all__ = ["TIME_UNITS", "FolderFormat", "seconds"]

#: Units of time: how many are a second.
TIME_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000}
_KIND = "recording"
_EXACT, _SIGNAL = "exact.json", "signal.npy"
_REMEDY = "delete exact.json to read the folder by its tables, or write it again"


def seconds(table: Table, name: str, unit: str | None) -> Floats:
    """A column of times in s: by the unit in its name, else by ``unit``."""
    return np.asarray(table.numbers(name) / TIME_UNITS[table.unit(name) or unit or "s"], dtype=np.float64)


@FORMATS.register("folder")
class FolderFormat(Format):
    """Folder (or zip or tar archive of one) with sounds, trials, and spikes or a signal."""

    writes: ClassVar[bool] = True
    reads_trees: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there are trials, spikes or a signal, and sounds or features."""
        if not (path.is_dir() or is_archive(path)):
            return False
        with closing(FileTree(path)) as tree:
            stimuli = any(name.startswith(("sounds/", "features/")) for name in tree.names)
            responses = _SIGNAL in tree or _table_name(tree, "spikes") is not None
            return stimuli and responses and _table_name(tree, "trials") is not None

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """Members, units and trials; only a signal needs its rate."""
        with closing(FileTree(self.path)) as tree:
            sounds = [name for name in tree.names if name.startswith("sounds/")]
            features = sorted({name.split("/")[1] for name in tree.names if name.startswith("features/")})
            found = [f"{len(sounds)} sound files"] if sounds else []
            found += [f"features: {', '.join(features)}"] if features else []
            trials = _table(tree, "trials")
            if trials is not None:
                found.append(f"trials: {len(trials)} rows, columns {', '.join(trials.columns)}")
            needed = []
            if _SIGNAL in tree:
                found.append(f"a signal in {_SIGNAL}")
                if _EXACT not in tree and hints.get("signal_fs") is None:
                    needed.append("signal_fs")
            return Findings(found, {}, needed)

    def sessions(  # type: ignore[override]  # the hints of this format
        self,
        *,
        time_unit: str = "s",
        columns: Mapping[str, str] | None = None,
        sounds_fs: float | None = None,
        signal_fs: float | None = None,
        signal_unit: str = "arbitrary units",
        signal_start_s: float = 0.0,
        channels: Sequence[str] | None = None,
        span_s: Sequence[float] | None = None,
        name: str | None = None,
        species: str | None = None,
    ) -> list[Session]:
        """The recording.

        Parameters
        ----------
        time_unit : {"s", "ms", "us"}
            Unit of times in tables whose columns do not end in one (onset_ms).
        columns : mapping, optional
            Names of columns by role: stimulus, onset, offset, condition, unit, time, start, stop.
        sounds_fs : float, optional
            True rate of the sounds in Hz, where their headers round it (24414.0625).
        signal_fs : float, optional
            Rate of signal.npy in Hz.
        signal_unit : str
            Unit of its values, such as "uV".
        signal_start_s : float
            Time of its first sample in s.
        channels : sequence of str, optional
            Names of its channels; those of units.csv, else numbers.
        span_s : (float, float), optional
            Start and end of the recording in s; what lies outside was not observed.
        name, species : str, optional
            Name in reports; whose neurons these are.
        """
        check_choice("time_unit", time_unit, list(TIME_UNITS))
        if self.path.is_dir() and (self.path / MANIFEST).exists():
            read_folder(self.path, _KIND, _REMEDY)  # finishes a write that was interrupted
        tree = FileTree(self.path)  # stays open for sounds, which are read later
        trials = _trials(tree, columns, time_unit)
        units, unit_meta = _units(tree, columns)
        session = Session(
            trials,
            sounds=_sounds(tree, sounds_fs, trials.stimulus),
            features=_features(tree),
            observed=_observed(tree, columns, time_unit),
            span_s=None if span_s is None else (float(span_s[0]), float(span_s[1])),
            unit_meta=unit_meta,
            name=name or self.path.name.split(".")[0],
            species=species,
        )
        if _SIGNAL in tree:
            session.signal = self._signal(tree, signal_fs, signal_unit, signal_start_s, channels or units)
        else:
            session.spikes = _spikes(tree, columns, time_unit, units)
        _check_observed(session, tree)
        if _EXACT in tree:
            session.exact = _exact(tree)
        return [session]

    def _signal(
        self, tree: FileTree, fs: float | None, unit: str, start_s: float, channels: Sequence[str]
    ) -> Signal:
        where = tree.where(_SIGNAL)
        if fs is None and _EXACT not in tree:
            raise MissingHintError(f"{where} must be told its rate in Hz: signal_fs=1000.0")
        with naming_damage(where, "save it again with numpy.save"):
            data: npt.NDArray[Any] = np.load(tree.local(_SIGNAL), mmap_mode="r", allow_pickle=False)
        if not tree.root.is_dir():
            data = np.array(data)  # the copy of the member goes when the archive is closed
        data = data[None] if data.ndim == 1 else data
        names = [str(channel) for channel in channels] or [str(n) for n in range(len(data))]
        if data.ndim != 2 or data.dtype.kind not in "fiu" or len(names) != len(data):
            raise DamagedFileError(
                f"{where} is {data.dtype} of shape {data.shape}; a signal is (channels, T) numbers, and "
                f"there are {len(names)} channels"
            )
        return Signal(data, 1.0 if fs is None else fs, names, float(start_s), unit)

    @classmethod
    def write(cls, session: Session, path: Path) -> None:
        """Write the folder, whole or not at all."""
        replace_folder(path, _with_seal(_files_of(session), session.exact), _KIND)


# ---- reading


def _table_name(tree: FileTree, stem: str) -> str | None:
    found = [stem + suffix for suffix in TABLE_SUFFIXES if stem + suffix in tree]
    if len(found) > 1:
        raise ValueError(f"{tree.root} holds {' and '.join(found)}; remove one")
    return found[0] if found else None


def _table(tree: FileTree, stem: str) -> Table | None:
    name = _table_name(tree, stem)
    return None if name is None else read_table(tree, name)


def _needed(tree: FileTree, stem: str) -> Table:
    table = _table(tree, stem)
    if table is None:
        raise FileNotFoundError(f"{tree.root} holds no {stem}.csv")
    return table


def _trials(tree: FileTree, told: Mapping[str, str] | None, unit: str) -> Trials:
    table = _needed(tree, "trials")
    roles = {role: table.column(role, told, needed=role in ("stimulus", "onset"))
             for role in ("stimulus", "onset", "offset", "condition")}  # fmt: skip
    onset = seconds(table, str(roles["onset"]), unit)
    if not np.isfinite(onset).all():
        row = int(np.flatnonzero(~np.isfinite(onset))[0]) + 1 + table.has_header
        raise ValueError(f"{table.where}: row {row} has no onset; remove the row, or fill it in")
    condition, offset = roles["condition"], roles["offset"]
    return Trials(
        ids_of(table.texts(str(roles["stimulus"]))),
        onset,
        None if offset is None else seconds(table, offset, unit),
        None if condition is None else table.texts(condition),
        {name: table.texts(name) for name in table.columns if name not in roles.values()},
    )


def _units(tree: FileTree, told: Mapping[str, str] | None) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Units in the order of units.csv, with its other columns as metadata."""
    table = _table(tree, "units")
    if table is None:
        return [], {}
    key = str(table.column("unit", told))
    units = ids_of(table.texts(key))
    if len(set(units)) < len(units):
        raise ValueError(f"{table.where} lists a unit twice")
    others = {name: table.texts(name) for name in table.columns if name != key}
    return units, {
        unit: {"cell_id": unit} | {name: cells[row] for name, cells in others.items()}
        for row, unit in enumerate(units)
    }


def _spikes(
    tree: FileTree, told: Mapping[str, str] | None, unit: str, units: Sequence[str]
) -> dict[str, Floats]:
    table = _needed(tree, "spikes")
    ids = ids_of(table.texts(str(table.column("unit", told))))
    times = seconds(table, str(table.column("time", told)), unit)
    if not np.isfinite(times).all():
        row = int(np.flatnonzero(~np.isfinite(times))[0]) + 1 + table.has_header
        raise ValueError(f"{table.where}: row {row} has no time; remove the row")
    return spikes_by_unit(ids, times, units)


def spikes_by_unit(ids: Sequence[str], times: Floats, units: Sequence[str] = ()) -> dict[str, Floats]:
    """Ascending times of each unit: those that are listed, then others in natural order."""
    names, index = np.unique(np.array(ids, dtype=object).astype(str), return_inverse=True)
    order = np.lexsort((times, index))
    edges = np.searchsorted(index[order], np.arange(len(names) + 1))
    found = {str(name): times[order[edges[k] : edges[k + 1]]] for k, name in enumerate(names)}
    listed = list(units) + [name for name in sorted(found, key=natural) if name not in set(units)]
    return {name: found.get(name, np.empty(0)) for name in listed}


def _observed(tree: FileTree, told: Mapping[str, str] | None, unit: str) -> dict[str, Floats]:
    """Intervals by unit; a row without times says that a unit was never observed."""
    table = _table(tree, "observed")
    if table is None:
        return {}
    ids = ids_of(table.texts(str(table.column("unit", told))))
    spans = np.stack(
        [seconds(table, str(table.column(role, told)), unit) for role in ("start", "stop")], axis=1
    )
    missing = np.isnan(spans)
    if (missing.any(axis=1) != missing.all(axis=1)).any() or (spans[:, 0] > spans[:, 1]).any():
        raise ValueError(
            f"{table.where}: a row needs start and stop, in this order (neither: never observed)"
        )
    found: dict[str, list[Any]] = {}
    for name, span in zip(ids, spans, strict=True):
        found.setdefault(name, [])
        if not np.isnan(span[0]):
            found[name].append(span)
    return {
        name: np.array(sorted(rows, key=tuple), dtype=np.float64).reshape(-1, 2)
        for name, rows in found.items()
    }


def _check_observed(session: Session, tree: FileTree) -> None:
    names = (
        session.spikes if session.spikes is not None else session.signal.channels if session.signal else ()
    )
    wrong = [unit for unit in (*session.observed, *session.unit_meta) if unit not in names]
    if wrong and session.spikes is None:
        raise ValueError(
            f"{tree.root}: unit {wrong[0]!r} of observed.csv or units.csv is no channel of the signal"
        )
    if wrong and session.spikes is not None:
        session.spikes = {**session.spikes, **{unit: np.empty(0) for unit in dict.fromkeys(wrong)}}


def _sounds(tree: FileTree, rate: float | None, wanted: Sequence[str]) -> dict[str, Sound]:
    """Sounds by the names that trials use, then those that no trial names."""
    files = {name.removeprefix("sounds/"): name for name in tree.names
             if name.startswith("sounds/") and name.lower().endswith(SOUND_SUFFIXES)}  # fmt: skip
    return named_sounds(tree, files, rate, wanted)


def named_sounds(
    tree: FileTree, files: Mapping[str, str], rate: float | None, wanted: Sequence[str]
) -> dict[str, Sound]:
    """Sound files by the names that trials use for them, whatever folder, suffix and case."""
    fs = None if rate is None else Fraction(rate)
    found: dict[str, Sound] = {}
    used: dict[str, Sound] = {}
    for name in dict.fromkeys(wanted):
        hit = find_name(name, files, "stimulus") if name else None
        if hit is not None:
            used[hit] = used.get(hit) or tree.sound(files[hit], fs)
            found[name] = used[hit]
    for key in files:
        if key not in used:
            found[_free(Path(key).stem, found)] = tree.sound(files[key], fs)
    return found


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, choice = 2, name
    while choice in taken:
        number, choice = number + 1, f"{name} ({number})"
    return choice


def _features(tree: FileTree) -> dict[str, dict[str, Feature]]:
    features: dict[str, dict[str, Feature]] = {}
    for name in tree.names:
        parts = name.split("/")
        if parts[0] == "features" and len(parts) == 3 and name.endswith(".npy"):
            values = load_npy(tree.local(name))
            values = values[None] if values.ndim == 1 else values
            if values.ndim != 2 or values.dtype.kind not in "fiu":
                raise DamagedFileError(
                    f"{tree.where(name)} is {values.dtype} of shape {values.shape}, not (F, T)"
                )
            features.setdefault(parts[1], {})[parts[2].removesuffix(".npy")] = Feature(values)
    return features


def _exact(tree: FileTree) -> dict[str, Any]:
    """What a dataset that we wrote needs to come back equal, after every file was compared with its hash."""
    held = read_json(tree.local(_EXACT), _REMEDY, sealed=True)
    with naming_damage(tree.where(_EXACT), _REMEDY):
        exact: dict[str, Any] = dict(held["exact"])
        for name, sha256 in held["files"].items():
            if name not in tree or hashlib.sha256(tree.read(name)).hexdigest() != sha256:
                what = "was changed since it was written" if name in tree else "is missing"
                raise DamagedFileError(f"{tree.where(name)} {what}; {_REMEDY}")
    return exact


# ---- writing


def _with_seal(files: Iterator[tuple[str, bytes]], exact: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The files, and last what `_exact` reads."""
    hashes = {}
    for name, content in files:
        hashes[name] = hashlib.sha256(content).hexdigest()
        yield name, content
    if exact:
        yield _EXACT, sealed_json({"files": hashes, "exact": exact})


def _files_of(session: Session) -> Iterator[tuple[str, bytes]]:
    rates = {float(sound.fs) for sound in session.sounds.values()}
    for name, sound in session.sounds.items():
        yield f"sounds/{name}.wav", wav_bytes(np.asarray(sound.read(), dtype=np.float32), float(sound.fs))
    for feature, stimuli in session.features.items():
        for name, one in stimuli.items():
            yield f"features/{feature}/{name}.npy", _npy_bytes(np.asarray(one.values))
    trials = session.trials
    offset = trials.offset_s if trials.offset_s is not None else [float("nan")] * len(trials)
    condition = trials.condition or [""] * len(trials)
    rows = zip(trials.stimulus, _plain(trials.onset_s), _plain(offset), condition, strict=True)
    yield "trials.csv", csv_table([("stimulus", "onset", "offset", "condition"), *rows]).encode()
    units = list(
        session.spikes if session.spikes is not None else session.signal.channels if session.signal else ()
    )
    keys = list(
        dict.fromkeys(
            key for meta in session.unit_meta.values() for key in meta if key not in ("cell_id", "unit")
        )
    )
    yield (
        "units.csv",
        csv_table(
            [
                ("unit", *keys),
                *(
                    (unit, *(_cell(session.unit_meta.get(unit, {}).get(key)) for key in keys))
                    for unit in units
                ),
            ]
        ).encode(),
    )
    facts: dict[str, Any] = {"format": "folder", "name": session.name, "time_unit": "s"}
    facts |= {"species": session.species} if session.species else {}
    facts |= {"span_s": list(session.span_s)} if session.span_s else {}
    if len(rates) == 1 and not next(iter(rates)).is_integer():
        facts["sounds_fs"] = next(iter(rates))
    if session.signal is not None:
        yield _SIGNAL, _npy_bytes(np.asarray(session.signal.data))
        facts |= {"signal_fs": float(session.signal.fs), "signal_unit": session.signal.unit}
        facts |= {"signal_start_s": session.signal.start_s, "channels": list(session.signal.channels)}
    else:
        lines = ["unit,time\n"]
        for unit, times in (session.spikes or {}).items():
            cell = csv_table([(unit,)]).rstrip("\n")
            lines += [f"{cell},{time!r}\n" for time in np.asarray(times, dtype=np.float64).tolist()]
        yield "spikes.csv", "".join(lines).encode()
    if session.observed:
        spans = [(unit, *span) for unit, rows in session.observed.items()
                 for span in ([_plain(one) for one in rows] or [["", ""]])]  # fmt: skip
        yield "observed.csv", csv_table([("unit", "start", "stop"), *spans]).encode()
    kept = json.loads(json.dumps(json_safe(session.facts)))
    facts |= {"facts": _without_none(kept)} if kept else {}
    yield "recording.toml", tomli_w.dumps(facts).encode()


def _plain(values: Any) -> list[Any]:
    """Numbers as Python's, NaN as an empty cell."""
    return ["" if value != value else value for value in np.asarray(values, dtype=np.float64).tolist()]


def _cell(value: Any) -> Any:
    """A value of metadata in a table; texts without null characters, which no table holds."""
    if isinstance(value, str):
        return value.replace("\0", "\\0")
    return value if isinstance(value, int | float) or value is None else json.dumps(json_safe(value))


def _without_none(value: Any) -> Any:
    """What TOML holds of a tree of JSON."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value if one is not None] if isinstance(value, list) else value


def _npy_bytes(values: npt.NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(values), allow_pickle=False)
    return out.getvalue()


def wav_bytes(samples: npt.NDArray[np.float32], fs: float) -> bytes:
    """A WAV file of 32-bit floats, which keeps every bit and every peak; a rate is rounded to whole Hz."""
    import soundfile

    out = io.BytesIO()
    large = samples.nbytes > (1 << 32) - (1 << 20)
    soundfile.write(out, samples, round(fs), format="RF64" if large else "WAV", subtype="FLOAT")
    return out.getvalue()
