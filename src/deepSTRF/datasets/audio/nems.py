"""NEMS recording archives: one .tgz (or folder) with signals, their descriptions and a table of epochs.

Members are read one by one and never unpacked. Signals are rasters (text, or HDF5 in newer archives), spike
times per channel, or one array per epoch name. Edges of epochs are put on the grid of the archive's rate by
rounding half to even, as NEMS does: a spike at t is then in bin ``floor(t*fs) - round(start*fs)``.
"""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import io
import itertools
import json
import math
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, naming_damage
from deepSTRF._text import check_name
from deepSTRF._validation import check_choice
from deepSTRF.datasets.file_tree import FileTree, is_archive
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.hdf5 import Hdf5File
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Feature, Floats, Session, Signal, Trials
from deepSTRF.registry import FORMATS

__all__ = ["SILENCES", "SPLITS", "NemsFormat", "hdf5_arrays"]

#: "keep" leaves the silence around a sound in its clip; "drop" begins and ends where the sound does.
SILENCES = ("keep", "drop")
#: "occurrences": names with the most presentations are the test (NEMS's own rule; where all are presented
#: equally often, the last fifth by name); "prefix": names that start with 00 are the test.
SPLITS = ("none", "occurrences", "prefix")
_BEFORE, _AFTER = "PreStimSilence", "PostStimSilence"
_REMEDY = "get the archive again"
#: So many members are looked at to recognise an archive.
_LOOKED_AT = 200
#: Two times that differ by less (in samples) are the same.
_SAME = 1e-3
_TEST_SHARE = 0.2
_VIEW = re.compile(r"(?:.*\.)?(\d\d)\.[^.]+")
#: Epoch, start and end of a clip, start of its epoch, silence before the sound, in s.
Clip = tuple[str, float, float, float, float]


# ---- signals


def hdf5_arrays(where: str, content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Arrays of numbers in the bytes of an HDF5 file, by name; the name of a tile may hold slashes."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    with Hdf5File(where, _REMEDY, content) as opened:
        for _, group in opened.walk(opened.root):
            for name, entry in opened.members(group):
                if not hasattr(entry, "keys") and entry.dtype.kind in "biuf":
                    arrays[f"{group.name}/{name}".strip("/")] = opened.values(entry)
    return arrays


@dataclass(eq=False)
class _Stored:
    """One signal: its description, its data as bytes and its epochs."""

    path: str
    member: str  # its data, "" where there are none
    facts: Mapping[str, Any]
    epochs: list[tuple[str, float, float]]
    data: bytes | None = None

    @property
    def is_hdf5(self) -> bool:
        return self.member.endswith(".h5")

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def kind(self) -> str:
        """ "points", "tiles" or "raster"."""
        text = str(self.facts.get("signal_type", ""))
        return "points" if "PointProcess" in text else "tiles" if "Tiled" in text else "raster"

    @property
    def fs(self) -> float:
        return float(self.facts["fs"])

    @property
    def chans(self) -> list[str]:
        return [str(channel) for channel in self.facts["chans"]]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        if self.data is None or not self.is_hdf5:
            raise DamagedFileError(f"{self.path} is described as HDF5 and has none; {_REMEDY}")
        return hdf5_arrays(f"{self.path}.h5", self.data)

    def raster(self) -> Floats:
        """(channels, T) values."""
        if self.data is None:
            raise DamagedFileError(f"{self.path} has a description and no data; {_REMEDY}")
        with naming_damage(self.path, _REMEDY):
            if self.is_hdf5:
                arrays = self.arrays()
                key = "raster" if "raster" in arrays else next(iter(arrays)) if len(arrays) == 1 else ""
                if not key:
                    raise ValueError(f"its HDF5 holds {sorted(arrays)[:5]} and no 'raster'")
                values = np.atleast_2d(arrays[key].astype(np.float64))
            else:
                values = _numbers(self.data).T
            if values.shape[0] != len(self.chans):
                raise ValueError(f"{values.shape[0]} channels of data for {len(self.chans)} in 'chans'")
        return np.ascontiguousarray(values)


def _numbers(text: bytes) -> Floats:
    """(T, channels) of CSV without a header; empty cells are NaN."""
    text = text.strip(b"\r\n")
    if not text:
        raise ValueError("it is empty")
    if re.search(rb",[,\r\n]|\n,", text) or text.startswith(b",") or text.endswith(b","):
        text = re.sub(rb"(?m)(?:(?<=,)|^)(?=,|\r?$)", b"nan", text)
    return np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2, dtype=np.float64)


def _epochs(text: bytes, where: str) -> list[tuple[str, float, float]]:
    """(name, start, end) in s, in the order of their start; columns in any order."""
    with naming_damage(where, _REMEDY):
        rows = csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline=""))
        if not {"name", "start", "end"} <= set(rows.fieldnames or ()):
            raise ValueError(f"its columns are {rows.fieldnames}, needed are name, start and end")
        found = [(str(row["name"]), float(row["start"]), float(row["end"])) for row in rows]
        for name, start, end in found:
            check_name("an epoch", name)
            if not (math.isfinite(start) and math.isfinite(end) and end >= start):
                raise ValueError(f"the epoch {name!r} lasts from {start} to {end} s")
    return sorted(found, key=lambda epoch: epoch[1])


@dataclass(eq=False)
class _Archive:
    """One recording of an archive."""

    name: str
    meta: dict[str, Any] = field(default_factory=dict)
    signals: dict[str, _Stored] = field(default_factory=dict)
    n_views: int = 0


def _archives(path: Path) -> list[_Archive]:
    """The recordings in an archive or folder, one per folder with signals."""
    with contextlib.closing(FileTree(path)) as tree:
        members: dict[str, bytes | None] = {}
        for name in tree.names:
            wanted = name.endswith((".json", ".epoch.csv"))
            members[name] = tree.read(name) if wanted else None
        places = {name: tree.where(name) for name in tree.names}
    found: dict[str, _Archive] = {}
    views: list[tuple[int, _Archive, _Stored]] = []
    for name in sorted(members):
        inside = PurePosixPath(name)
        if inside.suffix != ".json":
            continue
        where = places[name]
        with naming_damage(where, _REMEDY):
            facts = json.loads((members[name] or b"").decode("utf-8"))
            facts = dict(facts)
        folder = str(inside.parent)
        around = PurePosixPath(where).parent.name
        label = around if around != path.name else path.name.split(".")[0]
        archive = found.setdefault(folder, _Archive(label))
        if "chans" not in facts:
            archive.meta |= facts
            continue
        with naming_damage(where, _REMEDY):
            fs, chans = float(facts.get("fs", math.nan)), facts["chans"]
            if not (math.isfinite(fs) and fs > 0) or not isinstance(chans, list) or not chans:
                raise ValueError(f"its rate is {facts.get('fs')!r} and its channels {chans!r:.80}")
            if len({str(channel) for channel in chans}) != len(chans):
                raise ValueError("two of its channels have one name")
        base = name.removesuffix(".json")
        facts.setdefault("name", base.rpartition("/")[2].rpartition(".")[2])
        data = next((f"{base}{end}" for end in (".h5", ".csv") if f"{base}{end}" in members), "")
        table = members.get(f"{base}.epoch.csv")
        epochs = [] if table is None else _epochs(table, places[f"{base}.epoch.csv"])
        signal = _Stored(where.removesuffix(".json"), data, facts, epochs)
        view = _VIEW.fullmatch(base.rpartition("/")[2])
        if view is not None:
            views.append((int(view[1]), archive, signal))
        else:
            archive.signals[signal.name] = signal
    for _, archive, signal in sorted(views, key=lambda one: one[0]):  # the first view where nothing else is
        archive.signals.setdefault(signal.name, signal)
        archive.n_views += 1
    for archive in found.values():  # one table is enough for all signals
        tables = [signal.epochs for signal in archive.signals.values() if signal.epochs]
        for signal in archive.signals.values():
            signal.epochs = signal.epochs or (tables[0] if tables else [])
    kept = [archive for archive in found.values() if archive.signals]
    if not kept:
        raise DamagedFileError(
            f"{path} holds no signal of a NEMS recording (a .json with 'chans'); {_REMEDY}"
        )
    return kept


def _load(path: Path, signals: Iterable[_Stored]) -> None:
    """Read the data of signals."""
    with contextlib.closing(FileTree(path)) as tree:
        for signal in signals:
            if signal.member:
                signal.data = tree.read(signal.member)


# ---- the format


@FORMATS.register("nems")
class NemsFormat(Format):
    """NEMS recording archive: signals with epochs, as .tgz or folder."""

    suffixes: ClassVar[tuple[str, ...]] = (".tgz", ".tar.gz", ".tar")
    reads_trees: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder or archive holds tables of epochs; of an archive, the first members are seen."""
        if path.is_dir():
            return any(path.glob("*.epoch.csv")) or any(path.glob("*/*.epoch.csv"))
        if not is_archive(path):
            return False
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                return any(name.endswith(".epoch.csv") for name in packed.namelist())
        with tarfile.open(path, mode="r:*") as opened:
            names = (member.name for member in itertools.islice(opened, _LOOKED_AT))
            return any(name.endswith(".epoch.csv") for name in names)

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """Signals with their kind, rate and channels, names of epochs, and what is to be told."""
        lines, proposals, needed = [], {}, []
        for archive in _archives(self.path):
            lines += [
                f"{archive.name}: signal {signal.name!r}, {signal.kind}, {signal.fs:g} Hz, "
                f"{len(signal.chans)} channels: {', '.join(signal.chans[:5])}"
                for signal in archive.signals.values()
            ]
            response, stimulus = _roles(archive, hints.get("response"), hints.get("stimulus"))
            if response is None:
                needed.append("response")
                continue
            epochs = archive.signals[response].epochs
            counts = _counts(epochs, str(hints.get("epochs", "STIM_")))
            lines.append(f"{archive.name}: {len(counts)} stimuli, {sum(counts.values())} presentations")
            proposals["response"] = [(response, "the signal called so, or the only one with spike times")]
            if stimulus is not None:
                proposals["stimulus"] = [(stimulus, "the signal called so, or the only one in tiles")]
            if any(name == _BEFORE for name, _, _ in epochs):
                proposals["silence"] = [(word, f"there are {_BEFORE} epochs") for word in SILENCES]
                if hints.get("silence") is None:
                    needed.append("silence")
        proposals["split"] = [("occurrences", "NEMS's own rule"), ("prefix", "names that start with 00")]
        return Findings(lines, proposals, tuple(dict.fromkeys(needed)))

    def sessions(  # type: ignore[override]  # the hints of this format
        self,
        *,
        stimulus: str | None = None,
        response: str | None = None,
        epochs: str = "STIM_",
        silence: str | None = None,
        split: str = "none",
        unit: str | None = None,
    ) -> list[Session]:
        """One session per recording in the archive.

        Parameters
        ----------
        stimulus : str, optional
            Signal that is the stimulus; by default "stim", or the only one in tiles. An archive without one
            gives sessions without stimuli.
        response : str, optional
            Signal of the responses; by default "resp", or the only one with spike times.
        epochs : str
            Start of the names of the epochs that are presentations, left out of the stimuli's names.
        silence : {"keep", "drop"}, optional
            Whether clips hold the silence that the archive marks before and after a sound. Must be told
            where there is any.
        split : {"none", "occurrences", "prefix"}
            What says which stimuli are the test.
        unit : str, optional
            Unit of responses that are no spike times: "spikes per bin" makes spikes of whole numbers, "spikes
            per s" of multiples of the rate. By default whole numbers that are not negative are spikes, and
            others "arbitrary units".
        """
        check_choice("silence", silence, (None, *SILENCES))
        check_choice("split", split, SPLITS)
        made = []
        for archive in _archives(self.path):
            reader = _Reader(archive, self.path, epochs, silence, split, unit)
            made.append(reader.session(response, stimulus))
        return made


def _roles(archive: _Archive, response: Any, stimulus: Any) -> tuple[str | None, str | None]:
    """Signals of the responses and of the stimulus, None where it is not clear which."""
    signals = archive.signals
    for name, told in (("response", response), ("stimulus", stimulus)):
        if told is not None and told not in signals:
            raise MissingHintError(f"{name}={told!r} is no signal; there are {', '.join(map(repr, signals))}")
    if response is None:
        points = [name for name, signal in signals.items() if signal.kind == "points"]
        response = "resp" if "resp" in signals else points[0] if len(points) == 1 else None
    if stimulus is None:
        tiles = [name for name, signal in signals.items() if signal.kind == "tiles"]
        stimulus = "stim" if "stim" in signals else tiles[0] if len(tiles) == 1 else None
    return response, stimulus


def _is_presentation(name: str, pattern: str) -> bool:
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return name.startswith(pattern)


def _counts(epochs: list[tuple[str, float, float]], pattern: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, _, _ in epochs:
        if _is_presentation(name, pattern):
            counts[name] = counts.get(name, 0) + 1
    return counts


@dataclass(eq=False)
class _Reader:
    """What makes a session of one recording."""

    archive: _Archive
    path: Path
    pattern: str
    silence: str | None
    split: str
    unit: str | None
    report: LoadReport = field(default_factory=LoadReport)

    def session(self, response: str | None, stimulus: str | None) -> Session:
        chosen, shown = _roles(self.archive, response, stimulus)
        names = ", ".join(map(repr, self.archive.signals))
        if chosen is None:
            raise MissingHintError(
                f"{self.path}: which signal is the response? Tell response=; it has {names}"
            )
        resp = self.archive.signals[chosen]
        _load(self.path, [self.archive.signals[name] for name in (chosen, shown) if name is not None])
        if self.archive.n_views:
            self.report.note("views", "the first of several views of a signal is read", self.archive.n_views)
        counts = _counts(resp.epochs, self.pattern)
        if not counts:
            kinds = ", ".join(sorted({name.split("_")[0] for name, _, _ in resp.epochs})[:10])
            raise MissingHintError(
                f"{self.path}: no epoch's name starts with {self.pattern!r}; tell epochs=, there are {kinds}"
            )
        clips = self._clips(resp)
        session = Session(
            trials=Trials(
                [self._plain(name) for name, *_ in clips],
                np.array([start for _, start, *_ in clips]),
            ),
            name=self.archive.name,
            report=self.report,
            facts={
                "epoch_edges": f"rounded half to even on {resp.fs:g} Hz",
                "silence": self.silence or "none",
            },
        )
        self._responses(session, resp)
        if shown is not None:
            session.features = {shown: self._stimuli(self.archive.signals[shown], clips)}
        session.unit_meta = {channel: {"cell_id": channel} for channel in resp.chans}
        session.stim_meta = self._stim_meta(counts, clips)
        return session

    def _plain(self, epoch: str) -> str:
        return epoch if any(sign in self.pattern for sign in "*?[") else epoch.removeprefix(self.pattern)

    # ---- presentations

    def _clips(self, resp: _Stored) -> list[Clip]:
        """The presentations on the grid."""
        fs = resp.fs
        silences = [epoch for epoch in resp.epochs if epoch[0] in (_BEFORE, _AFTER)]
        by_edge = {
            (name, round((start if name == _BEFORE else end) * fs)): (start, end)
            for name, start, end in silences
        }
        clips, n_silent = [], 0
        for name, start, end in resp.epochs:
            if not _is_presentation(name, self.pattern):
                continue
            first, last = round(start * fs), round(end * fs)  # Python rounds half to even
            edges = [first, last]
            before, after = by_edge.get((_BEFORE, first)), by_edge.get((_AFTER, last))
            n_silent += before is not None or after is not None
            if self.silence == "drop":
                if before is not None and round(before[1] * fs) <= last:
                    edges[0] = round(before[1] * fs)
                if after is not None and round(after[0] * fs) >= edges[0]:
                    edges[1] = round(after[0] * fs)
            if edges[1] <= edges[0]:
                self.report.note("empty presentations", f"{name} at {start:g} s", 1)
                continue
            silence = max(0, round(before[1] * fs) - first) if before is not None else 0
            clips.append((name, edges[0] / fs, edges[1] / fs, first / fs, silence / fs))
        if n_silent and self.silence is None:
            raise MissingHintError(
                f"{self.path}: {n_silent} presentations are marked with silence before or after the sound; "
                "tell silence='keep' (clips hold it) or silence='drop'"
            )
        return clips

    def _stim_meta(self, counts: Mapping[str, int], clips: list[Clip]) -> dict[str, dict[str, Any]]:
        before = {name: silence for name, _, _, _, silence in reversed(clips)}
        tests: set[str] = set()
        if self.split == "prefix":
            tests = {name for name in counts if self._plain(name).startswith("00")}
        elif self.split == "occurrences":
            most = max(counts.values())
            if most > min(counts.values()):
                tests = {name for name, count in counts.items() if count == most}
            else:
                order = sorted(counts)
                tests = set(order[math.ceil((1 - _TEST_SHARE) * len(order) - 1e-9) :])
        meta: dict[str, dict[str, Any]] = {}
        for name in counts:
            row: dict[str, Any] = {"name": self._plain(name)}
            if self.split != "none":
                row["split"] = "test" if name in tests else "train"
            if before.get(name):
                row["silence_s"] = before[name]  # before the sound: in the clip, or dropped
            meta[row["name"]] = row
        return meta

    # ---- responses

    def _responses(self, session: Session, resp: _Stored) -> None:
        fs, last = resp.fs, max((end for _, _, end in resp.epochs), default=0.0)
        if resp.kind == "points":
            session.spikes = self._spikes(resp)
            n_rows = round(fs * last)
        elif resp.kind == "tiles":
            raise MissingHintError(f"{self.path}: {resp.name!r} holds stimuli in tiles; tell response=")
        else:
            values = resp.raster()
            n_rows = values.shape[1]
            known = values[np.isfinite(values)]
            whole = bool((known >= 0).all() and (known == np.floor(known)).all()) and known.size > 0
            per_second = whole and fs > 1 and bool((known % fs == 0).all()) and bool(known.any())
            if self.unit is None and per_second:
                raise MissingHintError(
                    f"{self.path}: the responses are multiples of the rate, {fs:g} Hz; tell unit='spikes "
                    f"per s', "
                    "or unit='spikes per bin' if they are counts"
                )
            if self.unit == "spikes per bin" and not whole:
                raise ValueError(
                    f"{self.path}: unit='spikes per bin', and the responses hold values that are no counts; "
                    "tell another unit"
                )
            if self.unit == "spikes per s" and per_second:
                self._count(session, resp, values / fs)
            elif self.unit == "spikes per bin" or (self.unit is None and whole):
                self._count(session, resp, values)
            else:
                session.signal = Signal(values, fs, resp.chans, unit=self.unit or "arbitrary units")
        session.span_s = (0.0, n_rows / fs)
        spans = self._segments(resp, n_rows)
        if spans is not None:
            session.observed = {
                channel: _overlap(session.observed[channel], spans) if channel in session.observed else spans
                for channel in resp.chans
            }

    def _spikes(self, resp: _Stored) -> dict[str, Floats]:
        arrays = resp.arrays()
        spikes = {}
        for channel in resp.chans:  # the order of the file is another
            if channel not in arrays:
                raise DamagedFileError(f"{resp.path}.h5 has no spike times of {channel!r}; {_REMEDY}")
            times = arrays.pop(channel).astype(np.float64).reshape(-1)
            early = times < 0
            if early.any():
                self.report.note("negative spike times", f"{channel}: dropped", int(early.sum()))
            if not np.isfinite(times).all():
                raise DamagedFileError(f"{resp.path}.h5: a spike time of {channel!r} is no finite number")
            spikes[channel] = np.sort(times[~early])
        if arrays:
            self.report.note("arrays without a channel", ", ".join(sorted(arrays)[:5]), len(arrays))
        return spikes

    def _count(self, session: Session, resp: _Stored, values: Floats) -> None:
        """Counts as spikes in the middle of their bins, and stretches of NaN as not observed."""
        spikes, observed = {}, {}
        for channel, row in zip(resp.chans, values, strict=True):
            known = np.isfinite(row)
            rows = np.repeat(np.arange(row.size), np.where(known, row, 0).astype(np.int64))
            spikes[channel] = (rows + 0.5) / resp.fs
            if not known.all():
                edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
                observed[channel] = edges.reshape(-1, 2) / resp.fs
        session.spikes, session.observed = spikes, observed
        self.report.note("counts per bin", f"whole numbers at {resp.fs:g} Hz are read as spikes", 1)

    def _segments(self, resp: _Stored, n_rows: int) -> Floats | None:
        """Recorded stretches in s where they are not everything; they are stated in samples or in s."""
        stated = resp.facts.get("segments")
        if not stated:
            return None
        with naming_damage(resp.path, _REMEDY):
            spans = np.asarray(stated, dtype=np.float64).reshape(-1, 2)
            if not np.isfinite(spans).all() or (spans[:, 1] < spans[:, 0]).any():
                raise ValueError(f"its segments are {stated!r:.80}")
        end = float(spans.max(initial=0.0))
        in_samples = abs(end - n_rows) <= abs(end * resp.fs - n_rows)
        spans = spans / resp.fs if in_samples else spans
        spans = spans[np.argsort(spans[:, 0])]
        gaps = np.diff(np.concatenate([[0.0], spans.reshape(-1), [n_rows / resp.fs]]))[::2]
        return None if (gaps * resp.fs <= 1.0 + _SAME).all() else spans

    # ---- stimuli

    def _stimuli(self, stim: _Stored, clips: list[Clip]) -> dict[str, Feature]:
        if stim.kind == "points":
            raise MissingHintError(f"{self.path}: {stim.name!r} holds spike times; tell stimulus=")
        tiles = stim.arrays() if stim.kind == "tiles" else None
        raster = stim.raster() if tiles is None else None
        found: dict[str, Feature] = {}
        for clip in clips:
            name, start, end, *_ = clip
            plain = self._plain(name)
            if plain in found and tiles is not None:
                continue
            n_frames = round(end * stim.fs) - round(start * stim.fs)
            if tiles is not None:
                values = self._tile(stim, tiles, clip, n_frames)
            else:
                values = raster[:, round(start * stim.fs) : round(end * stim.fs)]  # type: ignore[index]
                n_frames = min(n_frames, raster.shape[1])  # type: ignore[union-attr]
            if not np.isfinite(values).all() or values.shape[1] < n_frames - 1 or not values.size:
                self.report.skip(name, f"its stimulus at {start:g} s is not there, cut or not finite")
            elif plain not in found:
                found[plain] = Feature(values.astype(np.float64), stim.fs)
            elif not _same(found[plain].values, values):
                self.report.note("same name, different sounds", f"{name} at {start:g} s; the first is used")
        return found

    def _tile(
        self,
        stim: _Stored,
        tiles: dict[str, npt.NDArray[Any]],
        clip: Clip,
        n_frames: int,
    ) -> npt.NDArray[Any]:
        """Frames of one presentation in its tile, which holds the silence around the sound or does not."""
        name, start, _, epoch, _ = clip
        if name not in tiles:
            return np.empty((len(stim.chans), 0))
        values = np.atleast_2d(tiles[name])
        if values.ndim != 2 or values.shape[0] != len(stim.chans):
            raise DamagedFileError(
                f"{stim.path}: the tile {name!r} is {values.shape}, not {len(stim.chans)} channels x T"
            )
        if abs(values.shape[1] - n_frames) <= 1:  # epochs that begin off the grid round to one frame more
            return values
        first = round((start - epoch) * stim.fs)
        return values[:, first : first + n_frames]


def _same(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    """Whether two stretches are equal but for a last frame that rounding adds."""
    n_frames = min(first.shape[1], second.shape[1])
    return abs(first.shape[1] - second.shape[1]) <= 1 and np.array_equal(
        first[:, :n_frames], second[:, :n_frames]
    )


def _overlap(first: Floats, second: Floats) -> Floats:
    """Intersection of two lists of intervals."""
    both = [(max(a, c), min(b, d)) for a, b in first for c, d in second if min(b, d) > max(a, c)]
    return np.array(both, dtype=np.float64).reshape(-1, 2)
