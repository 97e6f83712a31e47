"""What NWB 2.x files are made of: tables with columns and ragged columns, and time series, read by h5py.

Plain HDF5 rather than pynwb: values are read piece by piece, extensions (ndx-sound) need not be installed,
and objects that a reader does not know do no harm. The layout is that of the NWB schema and of hdmf-common;
no index, shape or time in a file is believed before it was checked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, naming_damage
from deepSTRF._optional import require
from deepSTRF._text import printable
from deepSTRF.datasets.hdf5 import Hdf5File
from deepSTRF.datasets.sounds import natural

__all__ = [
    "MOST_CHANNELS",
    "REMEDY",
    "HDF5Samples",
    "HDF5Signal",
    "Series",
    "Table",
    "name_of",
    "open_nwb",
    "series_in",
    "series_of",
    "text_at",
]

Floats = npt.NDArray[np.float64]
REMEDY = "write the NWB file again, or copy it from where it is whole"
#: Time stamps that are read at a time, and how far they may be from regular ones, in samples.
_BLOCK, _IRREGULAR = 1 << 20, 0.5
#: A rate from time stamps that is this close to a multiple of 1/64 Hz (relative) is one.
_SAME_RATE = 1e-7
#: A sound with fewer rows than this, and fewer than columns, holds its channels first.
MOST_CHANNELS = 64


def open_nwb(path: Path) -> Hdf5File:
    """The file, to be opened in a ``with`` block."""
    return Hdf5File(path, REMEDY)


def series_in(file: Hdf5File, path: str) -> dict[str, Series]:
    """The time series in a group by name, in natural order."""
    group = file.find(path)
    if group is None or not hasattr(group, "keys"):
        return {}
    with naming_damage(file.path, REMEDY):
        names = sorted(group, key=natural)
    found = {name: series_of(file, f"{path.rstrip('/')}/{name}", file.find(name, group)) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def name_of(value: Any) -> str:
    """A cell as a name: text without blanks at its ends, 3 for 3.0, "" for NaN."""
    if isinstance(value, (bytes, np.bytes_)):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, (float, np.floating)):
        value = float(value)
        if value != value:
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value).strip()


def text_at(file: Hdf5File, path: str) -> str:
    """The text of a scalar data set, or "" where there is none."""
    found = file.find(path)
    if found is None or not hasattr(found, "dtype") or found.size != 1:
        return ""
    return file.texts(found)[0]


class Table:
    """A table (DynamicTable): ids, columns and ragged columns, each read when it is asked for."""

    def __init__(self, file: Hdf5File, group: Any) -> None:
        self.file, self.group, self.path = file, group, str(group.name)
        members = dict(file.members(group))
        columns = {name: item for name, item in members.items() if hasattr(item, "dtype") and name != "id"}
        stated = file.attribute(group, "colnames")
        order = (
            [str(name) for name in np.atleast_1d(stated)] if stated is not None and np.size(stated) else []
        )
        inner = {
            name for name in columns if name.endswith("_index") and name.removesuffix("_index") in columns
        }
        names = [
            *(name for name in order if name in columns),
            *(name for name in columns if name not in order),
        ]
        self.columns = [name for name in dict.fromkeys(names) if name not in inner]
        self._data = columns
        if "id" in members and hasattr(members["id"], "shape") and len(members["id"].shape or ()) == 1:
            self.n = int(members["id"].shape[0])
        else:
            first = next((name for name in self.columns if not self.is_ragged(name)), None)
            if first is None:
                raise file.damage(f"the table {printable(self.path)} has no ids and no columns")
            self.n = int((columns[first].shape or (0,))[0])

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def is_ragged(self, name: str) -> bool:
        """Whether a row of a column holds any number of values."""
        return f"{name}_index" in self._data

    def is_text(self, name: str) -> bool:
        """Whether a column holds one text per row."""
        dtype = self._data[name].dtype
        return self._is_plain(name) and (
            dtype.kind == "S" or require("h5py", "formats").check_string_dtype(dtype) is not None
        )

    def is_number(self, name: str) -> bool:
        """Whether a column holds one number per row."""
        return self._is_plain(name) and self._data[name].dtype.kind in "iufb"

    def is_integer(self, name: str) -> bool:
        """Whether a column holds one integer per row."""
        return self._is_plain(name) and self._data[name].dtype.kind in "iu"

    def _is_plain(self, name: str) -> bool:
        return not self.is_ragged(name) and len(self._data[name].shape or ()) == 1

    def ids(self) -> list[str]:
        """Names of the rows: their ids, which need not be their numbers."""
        found = self.file.find("id", self.group)
        if found is None:
            return [str(row) for row in range(self.n)]
        return [name_of(value) for value in self._of_rows(found, "id")]

    def column(self, name: str) -> list[Any]:
        """One text or number per row."""
        if name not in self._data:
            raise ValueError(
                f"the table {printable(self.path)} has no column {name!r}; it has "
                f"{', '.join(repr(printable(one, longest=60)) for one in self.columns) or 'none'}"
            )
        dataset = self._data[name]
        if self.is_ragged(name) or len(dataset.shape or ()) != 1:
            raise ValueError(f"the column {name!r} of {printable(self.path)} does not hold one value per row")
        if self.is_text(name):
            found = self.file.texts(dataset)
            self._check_rows(len(found), name)
            return found
        values = self._of_rows(dataset, name)
        choices = self.file.find(f"{name}_elements", self.group)
        if choices is not None and values.dtype.kind in "iu":  # EnumData: numbers of texts
            words = self.file.texts(choices)
            if values.size and (values.min() < 0 or values.max() >= len(words)):
                raise self.file.damage(f"{self.path}/{name} counts beyond its {len(words)} elements")
            return [words[int(value)] for value in values]
        return list(values.tolist())

    def numbers(self, name: str) -> Floats:
        """One number per row, float64."""
        if name in self._data and not self.is_number(name):
            raise self.file.damage(
                f"{printable(self.path)}/{printable(name)} does not hold one number per row"
            )
        return np.asarray(self.column(name), dtype=np.float64)

    def _of_rows(self, dataset: Any, name: str) -> npt.NDArray[Any]:
        self._check_rows(int((dataset.shape or (0,))[0]), name)
        values = self.file.values(dataset)
        if values.dtype.kind not in "iufb":
            raise self.file.damage(f"{self.path}/{name} holds {values.dtype}, no numbers or texts")
        return values

    def _check_rows(self, found: int, name: str) -> None:
        if found != self.n:
            raise self.file.damage(f"{self.path}/{name} has {found} entries for {self.n} rows")

    def ends(self, name: str) -> npt.NDArray[np.int64]:
        """Where the values of each row of a ragged column end, checked against the values that are there."""
        stored = self._of_rows(self._data[f"{name}_index"], f"{name}_index")
        where = f"{self.path}/{name}_index"
        if stored.dtype.kind not in "iu":
            raise self.file.damage(f"{where} holds {stored.dtype}, no positions")
        length = int((self._data[name].shape or (0,))[0])
        if stored.size and (int(stored.max()) > length or int(stored.min()) < 0):
            raise self.file.damage(
                f"{where} reaches from {stored.min()} to {stored.max()}, and {name} has {length:,} values"
            )
        ends = stored.astype(np.int64)  # index columns are unsigned and as narrow as the file's length allows
        if (np.diff(ends) < 0).any():
            raise self.file.damage(f"{where} does not ascend")
        if length != (int(ends[-1]) if ends.size else 0):
            raise self.file.damage(
                f"{where} ends at {ends[-1] if ends.size else 0}, and {name} has {length:,} values"
            )
        return ends

    def ragged(self, name: str, rows: Sequence[int], kinds: str = "fiu") -> list[npt.NDArray[Any]]:
        """The values of some rows of a ragged column; nothing of the other rows is read."""
        dataset = self._data[name]
        if dataset.dtype.kind not in kinds:
            raise self.file.damage(f"{self.path}/{name} holds {dataset.dtype}, which are no such numbers")
        ends = self.ends(name)
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        return [self.file.values(dataset, int(begins[row]), int(ends[row])) for row in rows]


# ---- time series


@dataclass(frozen=True, eq=False)
class Series:
    """A time series: where its values are, when they were taken, and how they become values in its unit."""

    name: str
    path: str  #: by which it is reached, through links
    place: str  #: where it is, the same for all links to it
    kind: str  #: neurodata type
    shape: tuple[int, ...]
    rate: float | None  #: None where there are time stamps only
    start_s: float
    unit: str
    conversion: float
    offset: float
    is_integer: bool
    external: tuple[str, ...] = ()  #: sound files in place of data

    @property
    def end_s(self) -> float:
        """End of the last sample, where there is a rate."""
        return self.start_s + (self.shape[0] / self.rate if self.rate and self.shape else 0.0)


def series_of(file: Hdf5File, path: str, group: Any = None) -> Series | None:
    """The time series at a path; None for what is none. Values are not read."""
    group = file.find(path) if group is None else group
    if group is None or not hasattr(group, "keys"):
        return None
    data = file.find("data", group)
    files = file.find("external_file", group)
    if files is None and (data is None or not hasattr(data, "dtype")):
        return None
    path = "/" + path.strip("/")
    with naming_damage(file.path, REMEDY):
        external = tuple(file.texts(files)) if files is not None else ()
        attributes: dict[str, Any] = {}
        for key, default in (("conversion", 1.0), ("offset", 0.0), ("unit", "")):
            found = None if data is None else file.attribute(data, key)
            attributes[key] = default if found is None else found
        factor, shift = float(attributes["conversion"]), float(attributes["offset"])
        if not (np.isfinite(factor) and np.isfinite(shift)):
            raise ValueError(f"{path}/data has the conversion {factor} and the offset {shift}")
        rate, start = _clock(file, group)
    return Series(
        name=path.rsplit("/", 1)[-1],
        path=path,
        place=f"{group.file.filename}:{group.name}",
        kind=str(file.attribute(group, "neurodata_type") or ""),
        shape=tuple(data.shape or ()) if data is not None else (),
        rate=rate,
        start_s=start,
        unit=str(attributes["unit"]),
        conversion=factor,
        offset=shift,
        is_integer=data is not None and data.dtype.kind in "iu",
        external=external,
    )


def _clock(file: Hdf5File, group: Any) -> tuple[float | None, float]:
    """Rate and start of a series; the rate is None where its samples have time stamps."""
    start = file.find("starting_time", group)
    if start is not None:
        rate = file.attribute(start, "rate")
        first = float(file.values(start))
        if rate is not None and np.isfinite(float(rate)) and float(rate) > 0 and np.isfinite(first):
            return float(rate), first
        raise ValueError(f"{group.name}/starting_time is {first} at a rate of {rate} Hz")
    stamps = file.find("timestamps", group)
    if stamps is None or not (stamps.shape or (0,))[0]:
        return None, 0.0
    return None, float(file.values(stamps, 0, 1)[0])


def regular_rate(file: Hdf5File, series: Series) -> float:
    """The rate in Hz of a series: the stated one, or that of time stamps which are regular.

    Raises ValueError where they are not, with the place of the first gap.
    """
    if series.rate is not None:
        return series.rate
    stamps = file.find(f"{series.path}/timestamps")
    n = 0 if stamps is None else int((stamps.shape or (0,))[0])
    if stamps is None or n < 2:
        raise ValueError(f"{series.path} has neither a rate nor time stamps")
    first, last = float(file.values(stamps, 0, 1)[0]), float(file.values(stamps, n - 1, n)[0])
    rate = (n - 1) / (last - first) if last > first else np.nan
    nice = round(rate * 64) / 64 if np.isfinite(rate) else np.nan
    rate = nice if abs(nice - rate) <= _SAME_RATE * rate else rate
    for begin in range(0, n, _BLOCK):
        block = file.values(stamps, begin, begin + _BLOCK).astype(np.float64)
        away = np.abs((block - first) * rate - np.arange(begin, begin + len(block)))
        if not (away <= _IRREGULAR).all():
            at = begin + int(np.flatnonzero(~(away <= _IRREGULAR))[0])
            raise ValueError(
                f"the time stamps of {series.path} are not regular: sample {at} of {n:,} is "
                f"{away[at - begin]:.3g} samples off at {rate:g} Hz, so there is a gap before it or "
                "the clock drifts; resample the series to a fixed rate first"
            )
    return float(rate)


def scaled(values: npt.NDArray[Any], series: Series, *, sound: bool) -> npt.NDArray[Any]:
    """Stored values in the unit of a series; integers of a sound without a conversion by their full scale."""
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{series.path}/data holds {values.dtype}, no numbers")
    if series.conversion != 1.0 or series.offset != 0.0:
        return values.astype(np.float64) * series.conversion + series.offset
    if sound and values.dtype.kind in "iu":
        half = 2.0 ** (8 * values.dtype.itemsize - 1)
        return values.astype(np.float64) / half - (1.0 if values.dtype.kind == "u" else 0.0)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


@dataclass(frozen=True, eq=False)
class HDF5Samples:
    """Samples of a sound in a file, read when it is called: all of a series, some of its rows, or one row."""

    path: Path
    series: Series
    begin: int | None = None
    end: int | None = None
    row: int | None = None  #: of a series that holds one sound per row

    def __call__(self) -> npt.NDArray[Any]:
        """Samples (T_audio,) or (T_audio, channels) in the unit of the series."""
        with open_nwb(self.path) as file:
            data = file.find(f"{self.series.path}/data")
            if data is None:
                raise file.damage(f"{self.series.path}/data is not there any more")
            with naming_damage(self.path, REMEDY):
                if self.row is not None:
                    return scaled(file.values(data, self.row, self.row + 1)[0], self.series, sound=True)
                values = scaled(file.values(data, self.begin, self.end), self.series, sound=True)
                if values.ndim == 2 and channels_first(values.shape):
                    values = values.T
                return values


def channels_first(shape: Sequence[int]) -> bool:
    """Whether a sound holds its channels in rows, against the schema."""
    return len(shape) == 2 and 0 < shape[0] <= MOST_CHANNELS and shape[0] * MOST_CHANNELS < shape[1]


@dataclass(frozen=True, eq=False)
class HDF5Signal:
    """A continuous series as (channels, T), of which ``[:, a:b]`` reads a piece."""

    path: Path
    series: Series
    factors: Floats | None = None  #: (channels,) further conversion of each channel

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and samples."""
        return (int(np.prod(self.series.shape[1:], dtype=np.int64)), int(self.series.shape[0]))

    ndim = 2
    dtype = np.dtype(np.float64)

    def __getitem__(self, key: Any) -> Floats:
        """``[rows, begin:end]`` in the unit of the series."""
        rows, times = key if isinstance(key, tuple) else (key, slice(None))
        begin, end, step = times.indices(self.shape[1])
        if step != 1:
            raise IndexError("a stored signal is read in pieces [rows, begin:end]")
        with open_nwb(self.path) as file:
            data = file.find(f"{self.series.path}/data")
            if data is None:
                raise file.damage(f"{self.series.path}/data is not there any more")
            with naming_damage(self.path, REMEDY):
                values = scaled(file.values(data, begin, end), self.series, sound=False)
        piece = values.reshape(len(values), -1).T.astype(np.float64)
        if self.factors is not None:
            piece *= self.factors[:, None]
        found: Floats = piece[rows]
        return found


def beside(path: Path, name: str) -> Path:
    """The path of a file that an NWB file names; only what lies in its own folder is read."""
    folder = Path(os.path.realpath(path)).parent
    target = Path(os.path.realpath(folder / name))
    if not target.is_relative_to(folder) or os.path.isabs(name):
        raise DamagedFileError(
            f"{path} names the file {printable(name, longest=200)!r}, outside its own folder, which is not "
            "read: copy it beside the NWB file and name it relative to that, or give the folder of sounds, "
            "sounds=..."
        )
    return target
