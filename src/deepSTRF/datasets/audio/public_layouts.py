"""Readers of the layouts that public recordings are published in: each yields sessions.

What the readers share is `Reading`: the files below a folder, which units and stimuli are wanted, sounds that
are read once, and a tally of what was found. They differ in where spikes, stimuli and trials are, nothing
else; cutting and binning are the work of the engines behind `Session`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, check_regular, naming_damage, read_json, read_text
from deepSTRF._text import read_csv
from deepSTRF._validation import first_names
from deepSTRF.datasets.audio.nems import NemsFormat
from deepSTRF.datasets.audio.public_table import PublicRecording
from deepSTRF.datasets.hdf5 import Hdf5File
from deepSTRF.datasets.session import Floats, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import natural, sounds_of

__all__ = ["Reading", "aligned", "hdf5_units", "json_units", "nat4", "nems_sites", "text_lines"]

#: Folders below the root in which files are looked for, and the most files of a recording.
_DEPTH, _MOST_FILES = 8, 2_000_000
#: A time this close below an edge (s) is at it, as the engine of the counts has it.
_EDGE_S = 1e-6
#: Texts that stand for nothing in tables (a region "None" is a text of one recording, and stays).
_NOTHING = {"", "n/a", "na", "nan"}
_REMEDY = "get the file again"
_SHOWN = 5


# ---- what the readers share


@dataclass(eq=False)
class Reading:
    """One load of a public recording: its files, what is wanted of it, and what was found."""

    record: PublicRecording
    root: Path
    area: frozenset[str] | None = None
    quality: frozenset[str] | None = None
    only: frozenset[str] | None = None
    stimuli: frozenset[str] | None = None
    waveform: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    found: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    seen: dict[str, set[str]] = field(default_factory=dict)
    _places: tuple[list[Path], list[Path]] | None = None
    _sounds: dict[Path, Sound] = field(default_factory=dict)

    # ---- files

    def files(self) -> list[Path]:
        """Files below the root, in natural order; links to folders are not followed."""
        return self._walked()[0]

    def _walked(self) -> tuple[list[Path], list[Path]]:
        if self._places is None:
            files: list[Path] = []
            folders: list[Path] = [self.root]
            for at, inner, names in os.walk(self.root):
                place = Path(at)
                deep = len(place.relative_to(self.root).parts) >= _DEPTH
                inner[:] = [] if deep else sorted(n for n in inner if n[0] != "." and n != "__MACOSX")
                folders += [place / name for name in inner]
                files += [place / name for name in names if name[0] != "."]
                if len(files) > _MOST_FILES:
                    raise ValueError(
                        f"{self.root} holds more than {_MOST_FILES:,} files; name a folder in it"
                    )
            key: Callable[[Path], Any] = lambda path: natural(path.relative_to(self.root).as_posix())  # noqa: E731
            self._places = sorted(files, key=key), sorted(folders, key=lambda p: (len(p.parts), str(p)))
        return self._places

    def folder(self, name: str) -> Path | None:
        """The folder of a name that is nearest to the root; the root itself may have it."""
        for place in self._walked()[1]:
            if place.name.casefold() == name.casefold():
                return place
        return None

    def need_folder(self, name: str) -> Path:
        """As `folder`, or the error for files that are not there."""
        place = self.folder(name)
        if place is None:
            raise self.missing(f"a folder {name!r}")
        return place

    def file(self, name: str) -> Path | None:
        """The file of a name that is nearest to the root."""
        hits = [path for path in self.files() if path.name.casefold() == name.casefold()]
        return min(hits, key=lambda path: (len(path.parts), str(path))) if hits else None

    def missing(self, what: str) -> FileNotFoundError:
        """The error for files that are not there."""
        known = first_names([file.name for file in self.record.files])
        fetch = (
            f"get {known} by hand from {self.record.page}, put them there and call"
            if self.record.host == "by hand"
            else "get it with"
        )
        return FileNotFoundError(
            f"{self.root} holds no {self.record.title}: there is not {what}; {fetch} "
            f"load_public({self.record.key!r}, root={str(self.root)!r}, download=True), or unpack the files "
            f"of {self.record.page} there"
        )

    def table(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV file of the recording."""
        path = self.file(name)
        if path is None:
            raise self.missing(f"the table {name}")
        with naming_damage(path, _REMEDY):
            rows = read_csv(read_text(path, _REMEDY))
            if not rows:
                raise ValueError("it has no row")
        return rows

    # ---- what is wanted

    def unit(self, meta: Mapping[str, Any]) -> bool:
        """Whether a unit is wanted, by its metadata; what is not is counted."""
        for name, wanted in (("area", self.area), ("quality", self.quality)):
            value = meta.get(name)
            self.seen.setdefault(name, set()).add(str(value))
            if wanted is not None and str(value) not in wanted:
                self.note(f"units of another {name}", f"{value}")
                return False
        names = {str(meta[key]) for key in ("cell_id", "site", "animal", "session") if meta.get(key)}
        self.seen.setdefault("only", set()).update(names - {str(meta.get("cell_id"))})
        return self.only is None or bool(names & self.only)

    def stimulus(self, kind: Any) -> bool:
        """Whether a class of stimuli is wanted."""
        self.seen.setdefault("stimuli", set()).add(str(kind))
        return self.stimuli is None or str(kind) in self.stimuli

    def units_of(self, session: Session) -> bool:
        """Leave out the units of a session that are not wanted; whether any is left."""
        kept = [unit for unit, meta in session.unit_meta.items() if self.unit(meta)]
        session.unit_meta = {unit: session.unit_meta[unit] for unit in kept}
        if session.spikes is not None:
            session.spikes = {unit: session.spikes[unit] for unit in kept if unit in session.spikes}
            return bool(session.spikes)
        if session.signal is not None and len(kept) < len(session.signal.channels):
            rows = [i for i, channel in enumerate(session.signal.channels) if channel in set(kept)]
            names = [session.signal.channels[i] for i in rows]
            session.signal = Signal(
                session.signal.data[rows],
                session.signal.fs,
                names,
                session.signal.start_s,
                session.signal.unit,
            )
        return bool(kept)

    # ---- what was found

    def note(self, topic: str, text: str, count: int = 1) -> None:
        """Note something; notes of one topic become one of the report."""
        if count:
            self.found.setdefault(topic, []).append((text, count))

    def notes(self) -> list[tuple[str, str, int]]:
        """One note per topic."""
        made = []
        for topic, entries in self.found.items():
            texts = list(dict.fromkeys(text for text, _ in entries))
            more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
            made.append((topic, "; ".join(texts[:_SHOWN]) + more, sum(count for _, count in entries)))
        return made

    # ---- sounds

    def sound(self, path: Path) -> Sound:
        """A sound file, one object for all units that heard it."""
        if path not in self._sounds:
            self._sounds[path] = sounds_of({path.stem: path})[path.stem]
        return self._sounds[path]

    def made(self, path: Path, make: Callable[[], Sound]) -> Sound:
        """A sound that is made of a file, once."""
        if path not in self._sounds:
            self._sounds[path] = make()
        return self._sounds[path]


def in_silence(sound: Sound, before_s: float, total_s: float) -> Sound:
    """A sound with zeros before it and behind it, for clips that hold silence."""
    n_total, first = round(total_s * float(sound.fs)), round(before_s * float(sound.fs))

    def read() -> npt.NDArray[Any]:
        samples = sound.read()
        padded = np.zeros((n_total, *samples.shape[1:]))
        part = samples[: max(0, n_total - first)]
        padded[first : first + len(part)] = part
        return padded

    return Sound(read, sound.fs, n_total, sound.source)


def length_s(sound: Sound) -> float:
    """Length in s of a sound, of one sample more: the last bin of a sound may lack a sample."""
    n_samples = sound.n_samples if sound.n_samples is not None else len(sound.read())
    return float((n_samples + 1) / Fraction(sound.fs))


def aligned(
    reading: Reading,
    unit: str,
    trials: Sequence[tuple[str, npt.ArrayLike, tuple[float, float]]],
    sounds: Mapping[str, Sound],
    **rest: Any,
) -> Session:
    """Session of one unit: (stimulus, spike times in s from its onset, window in which they were looked for).

    Spikes outside of the sound are left out and counted. An empty array is a silent trial.
    """
    names, onsets, spikes, observed = [], [], [], []
    ends = {name: float((sound.n_samples or 0) / Fraction(sound.fs)) for name, sound in sounds.items()}
    clock = 0.0
    n_before = n_inside = n_after = n_silent = 0
    for stimulus, times, (start, end) in trials:
        onset = float(math.ceil(clock - start) + 1.0)  # whole seconds: bin edges stay what they were
        found = np.sort(np.asarray(times, dtype=np.float64).reshape(-1))
        if not np.isfinite(found).all():
            raise DamagedFileError(
                f"{rest.get('name', unit)}: a spike time of {stimulus!r} is no finite number"
            )
        first, last = np.searchsorted(found, [-_EDGE_S, ends[stimulus] - _EDGE_S])
        inside = found[first:last]
        inside = inside[(inside >= start - _EDGE_S) & (inside < end)]
        n_before, n_inside = n_before + int(first), n_inside + inside.size
        n_after, n_silent = n_after + found.size - int(last), n_silent + (found.size == 0)
        names.append(stimulus)
        onsets.append(onset)
        spikes.append(onset + inside)
        observed.append((onset + start, onset + end))
        clock = onset + end
    for topic, count in (
        ("spikes before the sound", n_before), ("spikes in the sound", n_inside),
        ("spikes after the sound", n_after), ("silent trials", n_silent),
    ):  # fmt: skip
        reading.note(topic, unit, count)
    return Session(
        trials=Trials(names, np.array(onsets)),
        spikes={unit: np.concatenate([*spikes, np.empty(0)])},
        observed={unit: np.array(observed).reshape(-1, 2)},
        sounds=sounds,
        **rest,
    )


def plain(value: Any) -> Any:
    """A cell of a table: a number where it is one, None for what stands for nothing."""
    text = str(value).strip()
    if text.casefold() in _NOTHING:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else None


# ---- NEMS archives, one per site


def nems_sites(
    reading: Reading,
    *,
    within: str,
    split: str,
    cells: str | None = None,
    silence_s: float = 0.0,
) -> Iterator[Session]:
    """One archive per site below a folder; ``cells`` is a table of metadata by cell id."""
    known: dict[str, dict[str, Any]] | None = None
    if cells is not None:
        rows = reading.table(cells)
        key = next((name for name in ("cellid", "cell_id") if rows and name in rows[0]), None)
        if key is None:
            raise DamagedFileError(f"{reading.file(cells)} has no column 'cellid'; {_REMEDY}")
        known = {row[key]: {name: plain(value) for name, value in row.items() if name} for row in rows}
    waves = _by_name(reading, "wav") if reading.waveform else {}
    seen: dict[str, str] = {}
    for path in _site_archives(reading, within):
        for session in NemsFormat(path).sessions(silence="keep"):
            session.unit_meta = {unit: _cell(reading, unit, known) for unit in session.unit_meta}
            if not reading.units_of(session):
                continue
            content = _content(session)
            if content in seen:
                session_report = f"the cells and spikes of {seen[content]}"
                reading.note("duplicate archives", f"{path.name} holds {session_report}")
                continue
            seen[content] = path.name
            _split_by_rule(session, split)
            if reading.waveform:
                _use_waves(reading, session, waves, silence_s)
            yield session


def _site_archives(reading: Reading, within: str) -> list[Path]:
    outer = {file.name.casefold() for file in reading.record.files}
    archives = [p for p in reading.files() if p.suffix == ".tgz" and p.name.casefold() not in outer]
    inside = [p for p in archives if within.casefold() in {part.casefold() for part in p.parent.parts}]
    if not inside:
        inside = [path for path in archives if path.parent == reading.root]
    if not inside:
        raise reading.missing(f"an archive of a site ({within}/<site>_<hash>.tgz)")
    return inside


def _cell(reading: Reading, unit: str, known: Mapping[str, dict[str, Any]] | None) -> dict[str, Any]:
    site = unit.split("-")[0]
    meta: dict[str, Any] = {"cell_id": unit, "site": site, "animal": site[:3], "area": reading.record.area}
    if known is not None:
        row = known.get(unit, {})
        if not row:
            reading.note("cells in no list", unit)
        meta |= {key: value for key, value in row.items() if key not in ("cellid", "siteid", "")}
        meta["area"] = row.get("area")
        good = row.get("goodpred")
        if good is not None:
            meta["quality"] = "goodpred" if str(good).casefold() in ("true", "1.0", "1") else "not goodpred"
    return meta


def _content(session: Session) -> str:
    """Hash of unit ids and spike times."""
    digest = hashlib.sha256()
    for unit, times in sorted((session.spikes or {}).items()):
        digest.update(f"{unit}:{len(times)}:".encode() + np.ascontiguousarray(times).tobytes())
    return digest.hexdigest()


def _split_by_rule(session: Session, rule: str) -> None:
    """Test stimuli of one session: those with the most repeats, or those with names that begin with 00."""
    counts: dict[str, int] = {}
    for name in session.trials.stimulus:
        counts[name] = counts.get(name, 0) + 1
    most = max(counts.values())
    for name, count in counts.items():
        is_test = name.startswith("00") if rule == "prefix" else count == most > min(counts.values())
        row = {"name": name, "stimulus": name, "split": "test" if is_test else "train"}
        session.stim_meta = {**session.stim_meta, name: {**session.stim_meta.get(name, {}), **row}}


def _by_name(reading: Reading, folder: str) -> dict[str, list[Path]]:
    """Sound files below a folder by their stem, in lower case."""
    place = reading.need_folder(folder)
    found: dict[str, list[Path]] = {}
    for path in reading.files():
        if path.suffix.lower() == ".wav" and path.is_relative_to(place):
            found.setdefault(path.stem.casefold(), []).append(path)
    return found


def _wave(reading: Reading, waves: Mapping[str, list[Path]], name: str) -> Sound | None:
    stem = re.sub(r"\.wav$", "", name, flags=re.IGNORECASE).casefold()
    hits = waves.get(stem, [])
    if len(hits) > 1:
        raise ValueError(f"{reading.root}: the sound {name!r} may be {first_names([str(p) for p in hits])}")
    return reading.sound(hits[0]) if hits else None


def _use_waves(
    reading: Reading, session: Session, waves: Mapping[str, list[Path]], silence_s: float | None
) -> None:
    """Sounds in place of the features of a session, in clips of the same length."""
    (features,) = session.features.values()
    sounds = {}
    for name, feature in features.items():
        sound = _wave(reading, waves, name)
        if sound is None:
            reading.note("stimuli without a sound file", name)
            continue
        before = session.stim_meta.get(name, {}).get("silence_s", 0.0) if silence_s is None else silence_s
        total = feature.values.shape[1] / float(feature.fs or 1.0)
        sounds[name] = in_silence(sound, float(before), total)
    session.sounds, session.features = sounds, {}


# ---- NAT4: a population archive, and one archive per site

_CELL_ID = re.compile(r"([A-Za-z]+\d+[A-Za-z]*)-(\d+)-(\d+)")
NAT4_RESPONSES = ("counts", "population")


def _canonical(cell: str) -> tuple[str, int, int] | str:
    """(site, electrode, unit) of a cell id, in which electrodes may be padded with zeros or not."""
    match = _CELL_ID.fullmatch(cell)
    return cell if match is None else (match[1].casefold(), int(match[2]), int(match[3]))


def nat4(reading: Reading, *, area: str) -> Iterator[Session]:
    """Counts of the archives of sites with the stimuli of the population archive, or its responses."""
    path = reading.file(f"{area}_NAT4_ozgf.fs100.ch18.tgz")
    if path is None:
        raise reading.missing(f"{area}_NAT4_ozgf.fs100.ch18.tgz")
    auditory: dict[str, bool | None] = {}
    for row in reading.table(f"{area}_pred_correlation.csv"):
        flag = row.get("sig_auditory", "").strip().casefold()
        auditory[row.get("cellid", "")] = flag in ("true", "1", "1.0") if flag else None
    names = {_canonical(cell): cell for cell in auditory}
    responses = reading.options["responses"]
    shown = "resp" if responses == "population" else "stim"
    (population,) = NemsFormat(path).sessions(response=shown, stimulus="stim", silence="keep")
    _split_by_rule(population, "prefix")
    if reading.waveform:
        _use_waves(reading, population, _by_name(reading, "wav"), None)
    if responses == "population":
        population.unit_meta = {cell: _nat4_cell(cell, area, auditory) for cell in population.unit_meta}
        if reading.units_of(population):
            yield population
        return
    folder = reading.need_folder(f"{area}_single_sites")
    archives = [p for p in reading.files() if p.suffix == ".tgz" and p.is_relative_to(folder)]
    if not archives:
        raise reading.missing(f"an archive of a site in {area}_single_sites")
    for site in archives:
        for session in NemsFormat(site).sessions(silence="keep"):
            spikes = {}
            for cell, times in (session.spikes or {}).items():
                name = names.get(_canonical(cell), cell)
                reading.note("cell ids rewritten", f"{cell} is {name}", int(name != cell))
                spikes[name] = times
            session.spikes = spikes
            session.unit_meta = {cell: _nat4_cell(cell, area, auditory) for cell in spikes}
            session.stim_meta = population.stim_meta
            session.sounds, session.features = population.sounds, population.features
            if reading.units_of(session):
                yield session


def _nat4_cell(cell: str, area: str, auditory: Mapping[str, bool | None]) -> dict[str, Any]:
    site, flag = cell.split("-")[0], auditory.get(cell)
    quality = None if flag is None else "auditory" if flag else "not auditory"
    return {
        "cell_id": cell, "site": site, "animal": site[:3], "area": area, "auditory": flag, "quality": quality,
    }  # fmt: skip


# ---- text: one line per trial

_HEX32 = re.compile(r"[0-9A-Fa-f]{32}")


def text_lines(
    reading: Reading, *, cells: Mapping[str, str | None], regions: str | None = None
) -> Iterator[Session]:
    """A folder per cell and class; ``stimN`` names a sound, ``spikeN`` has one line of times in ms per "
    "trial."""
    areas = {} if regions is None else {row["cell"]: row["region"] for row in _regions(reading, regions)}
    waves: dict[str, Path] = {}
    stims = reading.need_folder("all_stims")
    for path in reading.files():
        if path.suffix.lower() == ".wav" and path.is_relative_to(stims):
            waves[path.name.casefold()] = path
    places = {name: reading.folder(name) for name in cells}
    if not any(places.values()):
        raise reading.missing(f"a folder {' or '.join(map(repr, cells))}")
    checked: set[Path] = set()
    for name, place in places.items():
        if place is None:
            reading.note("folders that are not there", name)
            continue
        for cell in sorted((p for p in place.iterdir() if p.is_dir()), key=lambda p: natural(p.name)):
            parts = cell.name.split("_")
            meta = {
                "cell_id": cell.name, "animal": parts[0], "area": cells[name] or areas.get(cell.name),
                "rig": parts[-1] if parts[-1] in ("A", "B") else None,
            }  # fmt: skip
            if not reading.unit(meta):
                continue
            session = _text_cell(reading, cell, meta, waves, checked)
            if session is not None:
                yield session


def _regions(reading: Reading, name: str) -> list[dict[str, str]]:
    rows = reading.table(name)
    if rows and not {"cell", "region"} <= set(rows[0]):
        raise DamagedFileError(f"{reading.file(name)} has the columns {list(rows[0])}, not cell and region")
    return rows


def _text_cell(
    reading: Reading, cell: Path, meta: dict[str, Any], waves: Mapping[str, Path], checked: set[Path]
) -> Session | None:
    trials, sounds, stim_meta = [], {}, {}
    for kind in sorted(p for p in cell.iterdir() if p.is_dir()):
        if not reading.stimulus(kind.name):
            continue
        numbers = [p.name.removeprefix("stim") for p in kind.glob("stim*") if p.name[4:].isdecimal()]
        for number in sorted(numbers, key=int):
            wav = read_text(kind / f"stim{number}", _REMEDY).strip()
            wav = re.split(r"[\\/]", wav)[-1]
            spikes = kind / f"spike{number}"
            if not spikes.is_file():
                reading.note("stimuli without spike file", f"{cell.name}/{kind.name}/stim{number}")
                continue
            path = waves.get(wav.casefold()) or waves.get(f"{wav}.wav".casefold())
            if path is None:
                reading.note("trials without sound", f"{cell.name}: {wav}")
                continue
            _check_md5(reading, path, checked)
            sounds[path.stem] = reading.sound(path)
            stim_meta[path.stem] = {"name": path.stem, "class": kind.name}
            window = (0.0, length_s(sounds[path.stem]))
            trials += [(path.stem, times, window) for times in _lines_of_times(reading, spikes)]
    if not trials:
        reading.note("units without trials", cell.name)
        return None
    unit = str(meta["cell_id"])
    return aligned(reading, unit, trials, sounds, stim_meta=stim_meta, unit_meta={unit: meta}, name=unit)


def _lines_of_times(reading: Reading, path: Path) -> list[Floats]:
    """Times in s of each line, an empty line being a trial without spikes."""
    lines = re.split(r"\r\n|\n|\r", read_text(path, _REMEDY))
    if lines[-1].strip() == "":
        lines.pop()  # what follows the last line's end is no trial
    if not lines:
        reading.note("empty spike files", str(path.relative_to(reading.root)))
    trials = []
    for number, line in enumerate(lines, start=1):
        with naming_damage(f"{path}, line {number}", _REMEDY):
            trials.append(np.array([float(word) for word in line.split()]) / 1000.0)
    return trials


def _check_md5(reading: Reading, path: Path, checked: set[Path]) -> None:
    """Note a sound whose name is an MD5 of other content."""
    if path in checked or not _HEX32.fullmatch(path.stem):
        return
    checked.add(path)
    check_regular(path)
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    reading.note("sound files that are not what their name says", path.name, int(found != path.stem.lower()))


# ---- HDF5: one file per unit

_UNIT_FILE = re.compile(r"Site(?P<site>\d+)_.*?e(?P<electrode>\d+)_s(?P<sort>\d+)(?P<sub>_ss\d+)?\.h5")
_NO_SPIKES = -999.0


def hdf5_units(reading: Reading) -> Iterator[Session]:
    """A file per unit: groups by class, number of stimulus and number of trial."""
    paths = [path for path in reading.files() if path.suffix == ".h5"]
    if not paths:
        raise reading.missing("a file <animal>/Site*_e*_s*.h5")
    for path in paths:
        animal = path.parent.name
        match = _UNIT_FILE.fullmatch(path.name)
        if match is None:
            reading.note("files that are no unit", path.name)
            continue
        with Hdf5File(path, _REMEDY) as opened:
            kind = str(opened.attribute(opened.root, "sortType") or "").strip()
            reading.note("fixes", f"{path.name}: sortType 'singl' is 'single'", int(kind == "singl"))
            meta = {
                "cell_id": f"{animal}_{path.stem}", "animal": animal, "sex": animal[-1:],
                "site": f"{animal}_Site{match['site']}", "electrode": int(match["electrode"]), "area": None,
                "quality": "single" if kind == "singl" else kind or None,
                "split_sort": match["sub"] is not None,
            }  # fmt: skip
            if reading.unit(meta):
                session = _hdf5_unit(reading, opened, meta, path.parent / "wavfiles")
                if session is not None:
                    yield session


def _hdf5_unit(reading: Reading, opened: Hdf5File, meta: dict[str, Any], wavs: Path) -> Session | None:
    unit = str(meta["cell_id"])
    trials, sounds, stim_meta = [], {}, {}
    for protocol, classes in opened.members(opened.root):
        if protocol in ("class_info", "extra_info") or not hasattr(classes, "keys"):
            continue
        for number, stimulus in _by_number(opened.members(classes)):
            kind = str(opened.attribute(stimulus, "stim_type") or protocol)
            if not reading.stimulus(kind):
                continue
            path = wavs / f"stim{number}.wav"
            if not path.is_file():
                reading.note("trials without sound", f"{unit}: {path.name}")
                continue
            sound = reading.sound(path)
            stated = opened.attribute(stimulus, "stim_duration")
            if stated is not None and abs(float(np.ravel(stated)[0]) - length_s(sound)) > 0.001:
                reading.note("sounds of another length than stated", f"{meta['animal']}: {path.name}")
            name = str(opened.attribute(stimulus, "stim_md5") or f"{meta['animal']}_stim{number}")
            sounds[name] = sound
            stim_meta[name] = {"name": name, "class": kind, "file": f"{meta['animal']}/{path.name}"}
            for trial, group in _by_number(opened.members(stimulus)):
                data = opened.find("spike_times", group)
                if data is None:
                    reading.note("trials without data", f"{unit}: stimulus {number}, trial {trial}")
                    continue
                times = opened.values(data).astype(np.float64).reshape(-1)
                times = times[times != _NO_SPIKES] if times.size == 1 else times
                trials.append((name, times, (0.0, length_s(sound))))
    if not trials:
        reading.note("units without trials", unit)
        return None
    return aligned(reading, unit, trials, sounds, stim_meta=stim_meta, unit_meta={unit: meta}, name=unit)


def _by_number(members: Iterable[tuple[str, Any]]) -> list[tuple[int, Any]]:
    """Groups whose names are numbers, as numbers: 2 before 10."""
    found = [(int(name), item) for name, item in members if name.isdecimal() and hasattr(item, "keys")]
    return sorted(found, key=lambda entry: entry[0])


# ---- JSON: one file per unit

_CONDITIONS = {
    "continuous", "gap1", "gap2", "noise1", "noise2", "gapnoise1", "gapnoise2", "continuousnoise1",
    "continuousnoise2",
}  # fmt: skip
_VARIANT = re.compile(r"(?P<motif>.+?)_(?P<kind>C|G|N|GB|CB|GM|CM)(?:_.*)?")
_UNIT_NAME = re.compile(r"(?P<bird>.+?)_(?P<pen>[^_]+)_(?P<site>[^_]+)_c(?P<cluster>[^_.]+)")


def motif_of(stimulus: str) -> str:
    """The motif that a stimulus is a variant of."""
    start, _, last = stimulus.rpartition("_")
    if last in _CONDITIONS:
        return start
    match = _VARIANT.fullmatch(stimulus.removeprefix("ep_"))
    return stimulus if match is None else match["motif"]


def json_units(reading: Reading, *, experiments: Mapping[str, Sequence[str]]) -> Iterator[Session]:
    """A JSON file per unit, in one of two forms that its ``$schema`` tells apart."""
    experiment = reading.options["experiment"]
    if experiment not in experiments:
        raise ValueError(f"experiment is one of {', '.join(map(repr, experiments))}, got {experiment!r}")
    *folders, stimuli = experiments[experiment]
    places = [place for place in map(reading.folder, folders) if place is not None]
    if not places:
        raise reading.missing(f"a folder {' or '.join(map(repr, folders))}")
    waves = _by_name(reading, stimuli)
    areas = reading.table("recordings.csv") if reading.file("recordings.csv") is not None else []
    for place in places:
        for path in reading.files():
            if path.parent != place or path.suffix not in (".json", ".pprox"):
                continue
            tree = read_json(path, _REMEDY)
            if not isinstance(tree, dict) or not isinstance(tree.get("pprox"), list):
                raise DamagedFileError(f"{path} holds no list 'pprox'; {_REMEDY}")
            meta = _json_meta(path, tree, areas)
            if reading.unit(meta):
                yield from _json_unit(reading, path, tree, meta, waves)


def _json_meta(path: Path, tree: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    match = _UNIT_NAME.fullmatch(path.stem)
    bird = str(tree.get("bird") or (match["bird"] if match else path.stem.split("_")[0]))
    meta: dict[str, Any] = {"cell_id": path.stem, "animal": bird, "area": plain(tree.get("location", ""))}
    meta["hemisphere"] = plain(tree.get("hemisphere", ""))
    if match is not None:
        meta["site"] = f"{match['bird']}_{match['pen']}_{match['site']}"
        named = {meta["site"], f"{match['pen']}_{match['site']}", match["site"]}
        found = [r for r in rows if r.get("site") in named and r.get("bird") in (bird, match["bird"])]
        if meta["area"] is None and len({row.get("area") for row in found}) == 1:
            meta["area"] = plain(found[0].get("area", ""))
            meta["hemisphere"] = meta["hemisphere"] or plain(found[0].get("hemisphere", ""))
    return meta


def _json_unit(
    reading: Reading,
    path: Path,
    tree: Mapping[str, Any],
    meta: dict[str, Any],
    waves: Mapping[str, list[Path]],
) -> Iterator[Session]:
    schema = str(tree.get("$schema", ""))
    read = _stimtrial if "stimtrial" in schema else _pprox if "pprox" in schema else None
    if read is None:
        raise DamagedFileError(f"{path} has the $schema {schema!r:.80}, known are pprox and stimtrial")
    unit = str(meta["cell_id"])
    trials, sounds, stim_meta = [], {}, {}
    for number, entry in enumerate(tree["pprox"]):
        with naming_damage(f"{path}, trial {number}", _REMEDY):
            name, times, window = read(entry)
        sound = _wave(reading, waves, name)
        if sound is None:
            reading.note("trials without sound", f"{unit}: {name}")
            continue
        motif = motif_of(name)
        if not reading.stimulus(name) and not (reading.stimuli is not None and motif in reading.stimuli):
            continue
        sounds[name] = sound
        stim_meta[name] = {"name": name, "motif": motif}
        trials.append((name, times, window or (0.0, length_s(sound))))
    if trials:
        yield aligned(reading, unit, trials, sounds, stim_meta=stim_meta, unit_meta={unit: meta}, name=unit)
    else:
        reading.note("units without trials", unit)


def _pprox(entry: Mapping[str, Any]) -> tuple[str, Floats, tuple[float, float] | None]:
    """Legacy form: ms from the start of the trial, the sound at ``stim_on``."""
    name = str(entry["stimulus"])
    if entry.get("condition"):
        name = f"{name}_{entry['condition']}"
    times = np.asarray(entry["event"], dtype=np.float64).reshape(-1)
    return name, (times - float(entry["stim_on"])) / 1000.0, None


def _stimtrial(entry: Mapping[str, Any]) -> tuple[str, Floats, tuple[float, float] | None]:
    """s from the entry's offset; the sound begins at ``stimulus.interval[0]``."""
    stimulus = entry["stimulus"]
    interval = stimulus.get("interval")
    onset = float(interval[0] if interval is not None else stimulus["stimulus_begin"])
    times = np.asarray(entry["events"], dtype=np.float64).reshape(-1) - onset
    trial = entry.get("interval")
    window = None if trial is None else (float(trial[0]) - onset, float(trial[1]) - onset)
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"the trial lasts from {window[0] + onset} to {window[1] + onset} s")
    return str(stimulus["name"]), times, window
