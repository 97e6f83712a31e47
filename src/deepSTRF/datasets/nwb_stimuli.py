"""Sounds in an NWB file: templates by name, and what was presented when.

A presentation is a series of its own that begins with a trial, a part of one long series, or an entry of an
index series into templates.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF.datasets.formats import MissingHintError
from deepSTRF.datasets.hdf5 import Hdf5File
from deepSTRF.datasets.nwb_layout import (
    MOST_CHANNELS,
    HDF5Samples,
    Series,
    beside,
    channels_first,
    regular_rate,
    series_in,
    series_of,
)
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Sound
from deepSTRF.datasets.sounds import sounds_of

__all__ = ["BLANKS", "SAME_START_S", "Piece", "folder_at", "pieces_of", "sounds_by_rule", "sounds_played"]

Floats = npt.NDArray[np.float64]

#: Names of a presentation without a sound, where no sound is called so.
BLANKS = frozenset({"", "0", "blank", "none", "nan", "null", "silence", "silent", "no_stimulus", "nostim"})
#: A series begins with a trial when it does within this.
SAME_START_S = 1e-3


@dataclass(frozen=True, eq=False)
class Piece:
    """A sound as it was presented: all of a series, some of its rows, or one row, and when it began."""

    name: str
    series: Series
    start_s: float
    begin: int | None = None
    end: int | None = None
    row: int | None = None
    long: bool = False  #: holds more than one presentation

    def sound(self, file: Hdf5File) -> Sound:
        """The sound, read when it is needed."""
        series = self.series
        source = f"{file.path}:{series.path}"
        if series.external:
            if len(series.external) > 1:
                raise ValueError(f"{source} names {len(series.external)} files, and a sound is in one")
            path = beside(file.path, series.external[0])
            return next(iter(sounds_of({self.name: path}).values()))
        n = series.shape[0] if series.shape else 0
        if self.row is not None or channels_first(series.shape):
            n = series.shape[1]
        elif self.begin is not None and self.end is not None:
            n = self.end - self.begin
        if not 1 <= len(series.shape) <= 2 or not n:
            raise ValueError(f"{source} has the shape {series.shape}; a sound is (T,) or (T, channels)")
        rate = regular_rate(file, series)
        return Sound(HDF5Samples(file.path, series, self.begin, self.end, self.row), rate, n, source)


def pieces_of(
    file: Hdf5File, templates: Mapping[str, Series], presented: Mapping[str, Series], rule: Any
) -> list[Piece]:
    """What stimulus/presentation says was played, with the entries of its index series."""
    series = list(presented.values())
    if isinstance(rule, str) and rule.strip("/").startswith("stimulus/presentation/"):
        series = [one for one in series if one.path.strip("/") == rule.strip("/")]
    pieces: list[Piece] = []
    for one in series:
        if one.kind == "IndexSeries":
            pieces += _indexed(file, templates, one)
        else:
            pieces.append(Piece(one.name, one, one.start_s, long=len(series) == 1))
    return pieces


def _indexed(file: Hdf5File, templates: Mapping[str, Series], one: Series) -> list[Piece]:
    """The presentations of an index series: numbers of templates, of rows of one, or one template again."""
    data = file.find(f"{one.path}/data")
    index = file.values(data).reshape(-1)
    if index.dtype.kind not in "iu":
        raise file.damage(f"{one.path}/data holds {index.dtype}, no numbers of templates")
    stamps = file.find(f"{one.path}/timestamps")
    if stamps is not None:
        times = file.values(stamps).astype(np.float64).reshape(-1)
    elif one.rate is not None:
        times = one.start_s + np.arange(len(index)) / one.rate
    else:
        times = np.empty(0)
    if len(times) != len(index) or not np.isfinite(times).all():
        raise file.damage(f"{one.path} has {len(index)} numbers and {np.isfinite(times).sum()} times")
    target = series_of(file, f"{one.path}/indexed_timeseries")
    names = list(templates)
    highest = int(index.max()) if index.size else 0
    if index.size and int(index.min()) < 0:
        raise file.damage(f"{one.path}/data counts from {index.min()}")
    own_name = "" if target is None else target.place.rsplit("/", 1)[-1]
    rows = target is not None and len(target.shape) == 2 and target.shape[1] > MOST_CHANNELS
    if target is not None and rows and highest < target.shape[0]:
        return [
            Piece(f"{own_name}[{number}]", target, float(time), row=int(number))
            for number, time in zip(index.tolist(), times, strict=True)
        ]
    if target is not None and highest == 0:
        known = next((name for name, found in templates.items() if found.place == target.place), own_name)
        return [Piece(known, target, float(time)) for time in times]
    if highest >= len(names):
        raise file.damage(f"{one.path}/data counts up to {highest}, and there are {len(names)} templates")
    return [
        Piece(names[number], templates[names[number]], float(time))
        for number, time in zip(index.tolist(), times, strict=True)
    ]


def sounds_by_rule(
    file: Hdf5File, templates: Mapping[str, Series], rule: str | os.PathLike[str] | Mapping[str, Any]
) -> dict[str, Sound]:
    """The sounds of a rule by name, other than those that are found by when they were played."""
    if isinstance(rule, Mapping):
        return sounds_of(rule)
    rule = os.fspath(rule)
    if rule in ("templates", "templates by number"):
        found = {name: Piece(name, one, 0.0).sound(file) for name, one in templates.items()}
        if not found:
            raise ValueError(f"{file.path} has no series in stimulus/templates")
        return found if rule == "templates" else {str(k): sound for k, sound in enumerate(found.values())}
    if file.find(rule) is not None:
        return {name: Piece(name, one, 0.0).sound(file) for name, one in series_in(file, rule).items()}
    return sounds_of(folder_at(file, rule))


def folder_at(file: Hdf5File, rule: str) -> Path:
    """A folder of sounds as it was told, or relative to the folder of the file."""
    told = Path(rule).expanduser()
    near = file.path.parent / rule
    return near if near.is_dir() and not told.exists() else told


def sounds_played(
    file: Hdf5File,
    pieces: Sequence[Piece],
    names: Sequence[str],
    onset: Floats,
    offset: Floats | None,
    report: LoadReport,
) -> dict[str, Sound]:
    """The sound of each name as it was first played; later ones are compared with it."""
    sounds: dict[str, Sound] = {}
    different: Counter[str] = Counter()
    for row, name in enumerate(names):
        if not np.isfinite(onset[row]):
            continue
        end = np.nan if offset is None else float(offset[row])
        piece = _played_at(file, pieces, float(onset[row]), end)
        if piece is None:
            continue
        sound = piece.sound(file)
        if name not in sounds:
            if name.casefold() not in BLANKS:
                sounds[name] = sound
            continue
        first, again = sounds[name].read(), sound.read()
        n = min(len(first), len(again))
        if abs(len(first) - len(again)) > 1 or not np.array_equal(first[:n], again[:n]):
            different[name] += 1
    for name, n in different.items():
        text = f"{name!r}: {n} later presentations are other samples than the first, which is used"
        report.note("same name, different sounds", text, n)
    return sounds


def _played_at(file: Hdf5File, pieces: Sequence[Piece], onset: float, end: float) -> Piece | None:
    """What was played at an onset: the series that begins there, or a part of a longer one; or nothing."""
    begins = [piece for piece in pieces if abs(piece.start_s - onset) <= SAME_START_S]
    if begins and not begins[0].long:
        return begins[0]
    for piece in pieces:
        rate = regular_rate(file, piece.series)
        begin = round((onset - piece.start_s) * rate)
        n = piece.series.shape[0] if piece.series.shape else 0
        if 0 <= begin < n and piece.row is None:
            if not np.isfinite(end):
                raise MissingHintError(
                    f"{file.path}: {piece.series.path} is one series of several sounds, so the end of each "
                    "is needed; tell offset=<column>"
                )
            last = min(n, begin + round((end - onset) * rate))
            return Piece(piece.name, piece.series, onset, begin, last) if last > begin else None
    return None
