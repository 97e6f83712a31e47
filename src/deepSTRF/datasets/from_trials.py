"""What ``from_trials`` is given, as a session: spike times of any container, observed spans, metadata.

Spike times in ms or in samples are refused where the trials show it; all times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._validation import as_numbers, first_names
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Session, Trials
from deepSTRF.datasets.sounds import natural, sounds_of
from deepSTRF.datasets.tables import column_for, columns_of, is_table, seconds_of, text_of
from deepSTRF.datasets.trials import trials_of

__all__ = ["session_of"]

Floats = npt.NDArray[np.float64]

#: Spans of spikes and trials of one session are alike within these factors.
_ALIKE = (0.3, 5.0)
#: Spike times of at least so many times the last onset, all whole, are numbers of samples.
_SAMPLES = 5000.0


def spikes_of(
    given: Any, unit_ids: Any, columns: Mapping[str, str] | None, report: LoadReport
) -> dict[str, Floats]:
    """Ascending spike times in s by unit, of a mapping, of one array with the unit of each, or of a table."""
    by_unit: dict[str, Any]
    if isinstance(given, Mapping) and unit_ids is None and not _has_columns(given, columns):
        by_unit = {}
        for unit, times in given.items():
            name = text_of(unit)
            if name in by_unit:
                raise ValueError(f"spikes: two units have the name {name!r}")
            by_unit[name] = times
    elif unit_ids is None and (isinstance(given, Mapping) or is_table(given)):
        table = columns_of(given, "spikes")
        unit, time = (column_for(role, table, columns, "spikes") for role in ("unit", "time"))
        if unit is None or time is None:
            raise ValueError("spikes needs the columns unit and time")
        cells = table[time]
        if any(np.ndim(cell) == 1 for cell in cells):  # one row per unit
            by_unit = {}
            for name, times in zip(map(text_of, table[unit]), cells, strict=True):
                by_unit[name] = np.concatenate(
                    [by_unit.get(name, np.empty(0)), seconds_of(times, time, "spikes")]
                )
        else:
            by_unit = _grouped(seconds_of(cells, time, "spikes"), [text_of(v) for v in table[unit]])
    elif unit_ids is None:
        raise TypeError(
            "spikes is a dictionary from unit to times in s, one array of times with unit_ids=<the unit of "
            f"each spike>, or a table with the columns unit and time; got {type(given).__name__}; one unit "
            "alone is spikes={'unit': times}"
        )
    else:
        ids = [text_of(unit) for unit in np.asarray(unit_ids).reshape(-1).tolist()]
        times = as_numbers(given, "spikes").reshape(-1)
        if len(ids) != len(times):
            raise ValueError(
                f"unit_ids has {len(ids)} entries for {len(times)} spikes; it is the unit of each"
            )
        by_unit = _grouped(times, ids)
    return {unit: _ascending(times, unit, report) for unit, times in by_unit.items()}


def _has_columns(table: Mapping[Any, Any], columns: Mapping[str, str] | None) -> bool:
    """Whether a mapping is a table of spikes and not one from unit to times."""
    names = {str(name): None for name in table}
    try:
        found = [column_for(role, names, columns, "spikes", needed=False) for role in ("unit", "time")]
    except ValueError:
        return False
    return None not in found


def _grouped(times: Floats, units: Sequence[str]) -> dict[str, Floats]:
    names, index = np.unique(np.array(units, dtype=object), return_inverse=True)
    order = np.argsort(index, kind="stable")
    pieces = np.split(times[order], np.cumsum(np.bincount(index, minlength=len(names)))[:-1])
    found = dict(zip(names.tolist(), pieces, strict=True))
    return {unit: found[unit] for unit in sorted(found, key=natural)}


def _ascending(given: Any, unit: str, report: LoadReport) -> Floats:
    """Spike times of a unit as ascending float64; entries that are NaN are noted."""
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(np.float64), np.nan)
    try:
        times = as_numbers(given, f"the spike times of unit {unit!r}").reshape(-1)
    except ValueError:
        cells = list(given) if hasattr(given, "__iter__") and not isinstance(given, (str, Mapping)) else None
        if cells is None or any(np.ndim(cell) or isinstance(cell, str) for cell in cells):
            raise
        times = np.array([np.nan if cell is None else float(cell) for cell in cells])
    there = times[~np.isnan(times)]
    if len(there) < len(times):
        report.note(
            "spikes without a time", f"unit {unit}: {len(times) - len(there)}", len(times) - len(there)
        )
    if np.isinf(there).any():
        raise ValueError(f"spikes of unit {unit!r}: a time is infinite")
    if (np.diff(there) < 0).any():
        report.note("unsorted spikes", f"unit {unit}, sorted")
        there = np.sort(there)
    return there


def session_of(
    sounds: Any,
    trials: Any,
    spikes: Any,
    *,
    sounds_fs: Any = None,
    unit_ids: Any = None,
    observed: Any = None,
    span_s: Any = None,
    unit_meta: Any = None,
    stim_meta: Any = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    species: str | None = None,
) -> Session:
    """A session of what ``from_trials`` is given."""
    report = LoadReport()
    trains = spikes_of(spikes, unit_ids, columns, report)
    table = trials_of(trials, columns)
    if span_s is not None:
        span = as_numbers(span_s, "span_s").reshape(-1)
        if len(span) != 2 or not span[0] < span[1]:
            raise ValueError(f"span_s is (start, end) of the recording in s, got {span_s!r}")
        span_s = (float(span[0]), float(span[1]))
    _check_seconds(trains, table)
    return Session(
        trials=table,
        sounds=sounds_of(sounds, sounds_fs),
        spikes=trains,
        observed=_observed_of(observed, trains),
        span_s=span_s,
        unit_meta=_meta_of(unit_meta, "unit", "unit_meta", columns),
        stim_meta=_meta_of(stim_meta, "stimulus", "stim_meta", columns),
        name="recording" if name is None else name,
        species=species,
        report=report,
    )


def _observed_of(given: Any, trains: Mapping[str, Floats]) -> dict[str, Floats]:
    """Intervals in which each unit was observed: of a mapping, or one table (k, 2) for all units."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {unit: as_numbers(given, "observed").reshape(-1, 2) for unit in trains}
    found = {text_of(unit): value for unit, value in given.items()}
    unknown = [unit for unit in found if unit not in trains]
    if unknown:
        raise ValueError(
            f"observed names {first_names(list(unknown))}, spikes has {first_names(list(trains))}"
        )
    return {unit: as_numbers(value, f"observed[{unit!r}]").reshape(-1, 2) for unit, value in found.items()}


def _meta_of(
    given: Any, role: str, what: str, columns: Mapping[str, str] | None
) -> dict[str, dict[str, Any]]:
    """Metadata by name: of a mapping from name to dictionary, or of a table with a column of names."""
    if given is None:
        return {}
    if isinstance(given, Mapping) and all(isinstance(row, Mapping) for row in given.values()):
        return {text_of(name): dict(row) for name, row in given.items()}
    table = columns_of(given, what)
    key = column_for(role, table, columns, what)
    rows: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(map(text_of, table[key or ""])):
        if name in rows:
            raise ValueError(f"{what}: {name!r} has two rows")
        rows[name] = {c: _plain_value(values[at]) for c, values in table.items() if c != key}
    return rows


def _plain_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _check_seconds(trains: Mapping[str, Floats], trials: Trials) -> None:
    """Refuse spike times or onsets that are milliseconds or samples by all appearance."""
    last_spike = max((float(times[-1]) for times in trains.values() if times.size), default=0.0)
    last_trial = float(np.nanmax(trials.onset_s, initial=0.0))
    if trials.offset_s is not None:
        last_trial = float(np.nanmax([last_trial, *np.asarray(trials.offset_s)]))
    if last_spike <= 0 or last_trial <= 0:
        return
    ratio = last_spike / last_trial
    if 1000 * _ALIKE[0] < ratio < 1000 * _ALIKE[1]:
        raise ValueError(
            f"the last spike is at {last_spike:g} s, the last trial at {last_trial:g}: are the spikes in ms? "
            "Times are seconds; pass {unit: times / 1000} (a table: name its column time_ms)"
        )
    if 1 / 1000 / _ALIKE[1] < ratio < 1 / 1000 / _ALIKE[0]:
        raise ValueError(
            f"the last spike is at {last_spike:g} s, the last trial at {last_trial:g}: are the onsets in ms? "
            "Times are seconds; divide them by 1000, or name the column onset_ms"
        )
    whole = all((times == np.rint(times)).all() for times in trains.values())
    if ratio > _SAMPLES and whole:
        raise ValueError(
            f"the last spike is at {last_spike:g}, the last trial at {last_trial:g} s, and spike times are "
            "whole numbers: are they samples? Times are seconds; divide them by the sample rate"
        )
