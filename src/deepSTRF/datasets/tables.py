"""Tables of a laboratory: columns of any container, found by their usual names, with units of time.

Dictionaries of columns, lists of rows, pandas, polars and pyarrow tables, numpy structured arrays and NWB
tables are recognised by what they offer, so none of those packages is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._text import printable
from deepSTRF.datasets.session import Trials

__all__ = [
    "UNITS",
    "column_for",
    "columns_of",
    "is_table",
    "seconds_of",
    "text_of",
    "trials_of",
    "unit_of",
]

Floats = npt.NDArray[np.float64]

#: Usual names of columns, per role, in lower case with "_"; those of times may end in a unit.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "stimulus": (
        "stimulus", "stim", "stimulus_name", "stim_name", "stimulus_id", "stim_id", "stimulus_file",
        "stim_file", "stimuli", "stimulus_filename", "sound", "sound_name", "sound_file", "sound_id", "wav",
        "wav_file", "wavfile", "audio", "audio_file", "audio_name", "song", "filename", "file_name", "file",
    ),
    "onset": (
        "onset", "stimulus_onset", "stim_onset", "sound_onset", "onset_time", "stimulus_onset_time",
        "stim_onset_time", "onsets", "start", "start_time", "stimulus_start", "stim_start", "sound_start",
        "stimulus_start_time", "stim_start_time", "stimulus_time", "stim_time",
    ),
    "offset": (
        "offset", "stimulus_offset", "stim_offset", "sound_offset", "offset_time", "stimulus_offset_time",
        "stim_offset_time", "offsets", "stop", "stop_time", "end", "end_time", "stimulus_stop", "stim_stop",
        "sound_stop", "stimulus_end", "stim_end", "sound_end",
    ),
    "duration": ("duration", "stimulus_duration", "stim_duration", "sound_duration", "length"),
    "condition": ("condition", "conditions", "cond", "stimulus_condition", "stim_condition", "context"),
    "unit": (
        "unit", "unit_id", "units", "unit_name", "cluster", "cluster_id", "cell", "cell_id", "neuron",
        "neuron_id", "unit_ids", "spike_clusters",
    ),
    "trial": (
        "trial", "trials", "trial_id", "trial_nr", "trial_number", "trial_index", "repeat", "rep",
        "repetition", "presentation", "sweep",
    ),
    "start": ("start", "start_time", "begin", "from"),
    "stop": ("stop", "stop_time", "end", "end_time", "until", "to"),
    "time": ("time", "times", "spike_time", "spike_times", "spiketime", "spiketimes", "t", "timestamp",
             "timestamps"),
}  # fmt: skip
#: Seconds in a unit of time at the end of a column's name.
UNITS = {
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
    "ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "usec": 1e-6, "microseconds": 1e-6,
}  # fmt: skip
#: Texts of a cell that holds nothing.
NOTHING = {"", "nan", "none", "null", "<na>", "nat"}


def is_table(values: Any) -> bool:
    """Whether something is a table of some package, a structured array, or a list of rows."""
    if isinstance(values, np.ndarray):
        return values.dtype.names is not None
    if hasattr(values, "to_dataframe") or hasattr(values, "to_pydict"):
        return True
    if hasattr(values, "columns") and (hasattr(values, "to_numpy") or hasattr(values, "to_dict")):
        return True
    rows = values if isinstance(values, (list, tuple)) else ()
    return bool(rows) and all(isinstance(row, Mapping) for row in rows)


def columns_of(table: Any, what: str) -> dict[str, Any]:
    """The columns of a table by name, each a list or 1-D array of equal length."""
    if hasattr(table, "to_dataframe"):
        table = table.to_dataframe()
    columns: dict[str, Any]
    if isinstance(table, Mapping):
        columns = {str(key): value for key, value in table.items()}
    elif isinstance(table, np.ndarray) and table.dtype.names is not None:
        columns = {name: table[name] for name in table.dtype.names}
    elif hasattr(table, "to_pydict"):
        columns = {str(key): value for key, value in table.to_pydict().items()}
    elif hasattr(table, "columns") and hasattr(table, "__getitem__"):
        names = list(table.columns)
        if len(set(map(str, names))) < len(names):
            raise ValueError(f"{what}: two columns have one name: {', '.join(map(str, names))}")
        columns = {str(name): table[name] for name in names}
    elif isinstance(table, Sequence) and not isinstance(table, str) and all(
        isinstance(row, Mapping) for row in table
    ):  # fmt: skip
        names = list(dict.fromkeys(key for row in table for key in row))
        columns = {str(name): [row.get(name) for row in table] for name in names}
    else:
        raise TypeError(
            f"{what} is a table: a dictionary of columns, a list of dictionaries, or a pandas, pyarrow or "
            f"numpy structured table; got {type(table).__name__}"
        )
    lengths = {}
    for name, values in columns.items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise TypeError(f"{what}: column {name!r} is a list or array with one entry per row")
        if hasattr(values, "to_numpy"):
            columns[name] = values.to_numpy()
        elif hasattr(values, "detach"):
            columns[name] = values.detach().cpu().numpy()
        lengths[name] = len(columns[name])
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{what}: columns have different lengths: {shown}")
    return columns


def _plain(name: str) -> tuple[str, str | None]:
    """A column's name in lower case with "_", without its unit of time; and the unit."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub("[\u00b5\u03bc]s", "us", name.strip()))
    words = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    stem, _, last = words.rpartition("_")
    return (stem, last) if stem and last in UNITS else (words, None)


def unit_of(name: str) -> str | None:
    """The unit of time at the end of a column's name."""
    return _plain(name)[1]


def column_for(
    role: str, found: Mapping[str, Any], columns: Mapping[str, str] | None, what: str, *, needed: bool = True
) -> str | None:
    """The column of a role: the one that is named for it, the one of its usual names, or None.

    Raises ValueError when there is none and it is needed, or when several would do.
    """
    listed = ", ".join(repr(printable(name, longest=40)) for name in found) or "no columns"
    if columns and role in columns:
        if columns[role] not in found:
            raise ValueError(f"{what}: columns={{{role!r}: {columns[role]!r}}}, but it has {listed}")
        return columns[role]
    plain = {name: _plain(name)[0] for name in found}
    for exact in (role,):
        hits = [name for name, word in plain.items() if word == exact]
        if len(hits) == 1:
            return hits[0]
    hits = [name for name, word in plain.items() if word in SYNONYMS[role]]
    if len(hits) > 1:
        choices = " or ".join(f"columns={{{role!r}: {name!r}}}" for name in hits[:4])
        raise ValueError(
            f"{what}: several columns may be the {role}: {', '.join(hits)}; say which: {choices}"
        )
    if not hits and needed:
        raise ValueError(
            f"{what}: no column is named {role!r} or a usual synonym; it has {listed}; say which one it is: "
            f"columns={{{role!r}: '...'}}"
        )
    return hits[0] if hits else None


def text_of(value: Any) -> str:
    """A cell as text: whole floats without ".0", bytes decoded; "" for what holds nothing."""
    if isinstance(value, (bytes, np.bytes_)):
        value = bytes(value).decode("utf-8", errors="replace")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1:
        return text_of(value[0])
    text = str(value).strip()
    return "" if text.casefold() in NOTHING - {"none"} else text


def seconds_of(values: Any, name: str, what: str) -> Floats:
    """A column of times as float64 seconds, by the unit in its name; what holds nothing is NaN."""
    array = np.asarray(values)
    if array.dtype.kind == "m":
        seconds = array.astype("timedelta64[ns]").astype(np.float64) / 1e9
        return np.where(np.isnat(array), np.nan, seconds)
    try:
        if array.dtype.kind not in "biuf":
            cells = [text_of(value) for value in array.ravel()]
            array = np.array([float(cell) if cell else np.nan for cell in cells])
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: column {name!r} holds times as numbers; {error}") from None
    unit = _plain(name)[1]
    if unit is not None and UNITS[unit] != 1.0:
        numbers = numbers / round(1.0 / UNITS[unit])  # 3070 ms is 3.07 s to the last bit
    return numbers.reshape(-1)


def trials_of(table: Any, columns: Mapping[str, str] | None = None) -> Trials:
    """Presentations of a table: stimulus, onset in s (``onset_ms``: ms), and offset or duration, condition.

    Columns are found by their usual names; ``columns={"stimulus": "file"}`` names others. Further columns are
    kept as ``meta``.
    """
    if isinstance(table, Trials):
        return table
    what = "trials"
    if isinstance(table, str) or hasattr(table, "__fspath__"):
        raise TypeError(
            f"trials is a table in memory, got the path {str(table)!r}; read it first (pandas.read_csv), or "
            "use deepSTRF.datasets.open_recording(folder)"
        )
    found = columns_of(table, what)
    unknown = set(columns or ()) - {"stimulus", "onset", "offset", "duration", "condition", "unit", "time"}
    if unknown:
        raise ValueError(
            f"columns maps 'stimulus', 'onset', 'offset', 'duration' or 'condition', got {unknown}"
        )
    roles = {
        role: column_for(role, found, columns, what, needed=role in ("stimulus", "onset"))
        for role in ("stimulus", "onset", "offset", "duration", "condition")
    }

    def times(role: str) -> Floats | None:
        name = roles[role]
        return None if name is None else seconds_of(found[name], name, what)

    onset, offset, duration = times("onset"), times("offset"), times("duration")
    if onset is None or roles["stimulus"] is None:
        raise ValueError("trials needs the columns stimulus and onset")
    if offset is None and duration is not None:
        offset = onset + duration
    condition = None if roles["condition"] is None else [text_of(v) for v in found[roles["condition"]]]
    meta = {name: list(values) for name, values in found.items() if name not in roles.values()}
    return Trials([text_of(v) for v in found[roles["stimulus"]]], onset, offset, condition, meta)
