"""Spikes of presentations on exact half-open bins, and what of them was observed.

Bin k of a presentation holds the spikes from ``onset - pre + k * dt`` up to the next edge; a spike less than
a microsecond below an edge belongs to the bin that begins there. Bins in which a unit was not observed are
missing, not zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._text import printable
from deepSTRF._validation import first_names
from deepSTRF.datasets.responses import COUNT_TYPES, ClipResponses
from deepSTRF.datasets.session import Session

__all__ = ["TOLERANCE_S", "Plan", "Shown", "count_spikes", "note_odd", "row_names"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Note = Callable[[str, str, int], None]

#: A spike this close below an edge (s) belongs to the bin that begins there: 3.07 s - 3.0 s is 0.07 s.
TOLERANCE_S = 1e-6
#: Quotients this close to a whole number are decided in exact fractions.
_GUARD_BINS = 1e-7
#: Spikes that are counted at once.
_SPIKES = 1 << 22
#: So many spikes expected in trials without any are no chance.
_ODD = 30.0


def row_names(rows: Any) -> str:
    """Rows of a table of trials, in words."""
    return "trials " + first_names([str(row) for row in rows]) if len(rows) > 1 else f"trial {rows[0]}"


@dataclass(eq=False)
class Shown:
    """The presentations of one session that are used, by onset; windows begin at ``start``."""

    session: Session
    label: str
    trial: Index  # row in the table
    onset: Floats
    known: list[str]  # stimuli of the session
    length_s: Floats  # offset - onset, NaN where unknown
    name: list[str]  # of the sound, "" for a blank
    condition: list[str]
    sample_s: float = 0.0  # longest sample of its sounds
    start: Floats = field(default_factory=lambda: np.empty(0))
    bins: Index = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # of the clip
    own: Index = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # bins until it ended


def joined(intervals: npt.ArrayLike, what: str) -> Floats:
    """Intervals (k, 2) by start, those that touch joined."""
    table = np.asarray(intervals, dtype=np.float64).reshape(-1, 2)
    if np.isnan(table).any() or (table[:, 1] < table[:, 0]).any():
        raise ValueError(f"{what}: an interval has a start and a later end in s")
    table = table[np.argsort(table[:, 0], kind="stable")]
    out: list[list[float]] = []
    for start, end in table.tolist():
        if out and start <= out[-1][1] + TOLERANCE_S:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([start, end])
    return np.array(out).reshape(-1, 2)


class Plan:
    """Where the spikes of each unit of a session are for each presentation, and what was observed of it."""

    def __init__(
        self,
        part: Shown,
        units: Mapping[str, int],
        bin_s: Fraction,
        note: Note,
        *,
        n_before: int = 0,
        keep_partly: bool = False,
    ) -> None:
        self.part, self.bin_s = part, bin_s
        self.n_before, self.keep_partly = n_before, keep_partly
        self.times: dict[int, Floats] = {}
        self.first: dict[int, Index] = {}
        self.stop: dict[int, Index] = {}
        self.seen: dict[int, Index] = {}  # 0 nothing, 1 a part, 2 all bins
        self.intervals: dict[int, Floats | None] = {}
        self.end = part.start + part.bins * float(bin_s)
        outside = inside = unobserved = edges = 0
        windows = joined(np.stack([part.start, self.end], axis=1), part.label)
        for unit, given in (part.session.spikes or {}).items():
            if unit not in units:
                continue
            at, times = units[unit], np.asarray(given, dtype=np.float64).reshape(-1)
            if not np.isfinite(times).all():
                raise ValueError(f"{part.label}, unit {unit!r}: a spike time is no finite number")
            if times.size and (np.diff(times) < 0).any():
                note("unsorted spikes", f"{part.label}: unit {unit}, sorted", 1)
                times = np.sort(times)
            self.times[at] = times
            self.first[at] = np.searchsorted(times, part.start - 2 * TOLERANCE_S)
            self.stop[at] = np.searchsorted(times, self.end)
            span = None if part.session.span_s is None else [part.session.span_s]
            known = part.session.observed.get(unit, span)
            self.intervals[at] = None if known is None else joined(known, f"{part.label}, unit {unit!r}")
            self.seen[at] = self._observed(self.intervals[at])
            held = _inside(times, windows)
            inside, outside = inside + held, outside + len(times) - held
            near = np.unique(np.concatenate([part.start, self.end]))
            reach = TOLERANCE_S * (1 + 1e-4)
            edges += int((np.searchsorted(times, near + reach) - np.searchsorted(times, near - reach)).sum())
            if known is not None:
                unobserved += len(times) - _inside(times, self.intervals[at])
        note("spikes outside trials", f"{part.label}: {outside} of {outside + inside}", outside)
        note("spikes at trial edges", f"{part.label}: {edges} within 1 us", edges)
        note("spikes outside observation", f"{part.label}: {unobserved}", unobserved)

    def note_silence(
        self, name: str, unit: int, times: Floats, groups: Sequence[Sequence[int]], note: Note
    ) -> None:
        """Note a unit whose spikes are all outside of trials, or that is silent in the first or last ones."""
        part = self.part
        length = float((self.end - part.start).sum())
        counts = (self.stop[unit] - self.first[unit]).astype(np.float64)
        if len(times) > 1 and counts.sum() == 0 and times[-1] > times[0]:
            expected = len(times) * min(1.0, length / float(times[-1] - times[0]))
            if expected > _ODD:
                note("spikes dropped", f"unit {name}: all {len(times)} are outside of its trials", 1)
        there = np.flatnonzero(
            (self.seen[unit] > 0) & np.isin(np.arange(len(counts)), np.concatenate(groups))
        )
        alive = there[counts[there] > 0]
        if not alive.size:
            return
        for run in (there[there < alive[0]], there[there > alive[-1]]):
            silent, expected = set(run.tolist()), 0.0
            for group in groups if silent else ():
                lost = [k for k in group if k in silent]
                others = [counts[k] for k in group if k not in silent and self.seen[unit][k]]
                expected += len(lost) * float(np.mean(others)) if lost and others else 0.0
            if expected > _ODD:
                rows = part.trial[run].tolist()
                text = f"unit {name}: {row_names(rows)} without a spike, {expected:.0f} were expected"
                note("silent trials", text, len(rows))

    def _observed(self, intervals: Floats | None) -> Index:
        """Of each presentation: 0 no bin, 1 some bins, 2 all bins observed."""
        part = self.part
        whole = (part.own >= part.bins).astype(np.int64)
        state = 2 * whole
        if intervals is not None:
            ends = np.full(len(state), -np.inf)
            if len(intervals):
                at = np.searchsorted(intervals[:, 0], part.start + TOLERANCE_S, side="right") - 1
                ends = np.where(at >= 0, intervals[np.maximum(at, 0), 1], -np.inf)
            state[self.end > ends + TOLERANCE_S] = 0
        for k in np.flatnonzero(state == 0).tolist():
            state[k] = int(self.mask(k, intervals).any())
        return state

    def mask(self, k: int, intervals: Floats | None) -> npt.NDArray[np.bool_]:
        """(T,) whether each bin of presentation k was observed."""
        bins, start, bin_s = int(self.part.bins[k]), self.part.start[k], float(self.bin_s)
        there = np.zeros(bins, dtype=bool)
        if intervals is None:
            there[:] = True
        else:
            slack = TOLERANCE_S / bin_s
            partly = self.keep_partly
            near = intervals[(intervals[:, 1] > start) & (intervals[:, 0] < self.end[k])]
            for low, high in ((near - start) / bin_s).tolist():
                a = np.floor(low + slack) if partly else np.ceil(low - slack)
                b = np.ceil(high - slack) if partly else np.floor(high + slack)
                there[max(0, int(a)) : max(0, int(b))] = True
        there[int(self.part.own[k]) :] = False
        return there


def _inside(times: Floats, windows: Floats | None) -> int:
    """Number of times in intervals that do not overlap."""
    if windows is None:
        return len(times)
    first = np.searchsorted(times, windows[:, 0] - TOLERANCE_S)
    return int((np.searchsorted(times, windows[:, 1] - TOLERANCE_S) - first).clip(0).sum())


@dataclass(eq=False)
class _Row:
    """One repeat of one unit: its spikes are ``times[first:stop]``."""

    plan: Plan
    unit: int
    k: int


def _rows(shown: Mapping[int, list[int]], plans: Sequence[Plan]) -> tuple[list[_Row], Index, Index]:
    """The repeats with an observed bin of each unit; neurons that have any, and their numbers of repeats."""
    by_unit: dict[int, list[_Row]] = {}
    for i, places in shown.items():
        for unit, seen in plans[i].seen.items():
            rows = [_Row(plans[i], unit, k) for k in places if seen[k]]
            if rows:
                by_unit.setdefault(unit, []).extend(rows)
    heard = sorted(by_unit)
    rows = [row for unit in heard for row in by_unit[unit]]
    counts = np.array([len(by_unit[unit]) for unit in heard], dtype=np.int64)
    return rows, np.array(heard, dtype=np.int64), counts


def count_spikes(shown: Mapping[int, list[int]], n_bins: int, plans: Sequence[Plan]) -> ClipResponses:
    """Counts of all units in all bins of a clip."""
    rows, heard, counts = _rows(shown, plans)
    partly = [j for j, row in enumerate(rows) if row.plan.seen[row.unit][row.k] == 1]
    spikes = [int(row.plan.stop[row.unit][row.k] - row.plan.first[row.unit][row.k]) for row in rows]
    most, small = max(spikes, default=0), np.iinfo(np.int8).max
    if most > small:
        most = max((int(n.max(initial=0)) for _, n in _cells(rows, spikes, n_bins)), default=0)
    kind: Any = next((kind for kind in COUNT_TYPES if most <= np.iinfo(kind).max), np.float32)
    data = np.zeros((len(rows), n_bins), dtype=kind)
    flat = data.reshape(-1)
    for cells, numbers in _cells(rows, spikes, n_bins):
        flat[cells] = numbers
    missing: Any = np.nan if kind is np.float32 else np.iinfo(kind).min
    for j in partly:
        row = rows[j]
        data[j, ~row.plan.mask(row.k, row.plan.intervals[row.unit])] = missing
    return ClipResponses(data, heard, np.cumsum(counts) - counts, counts, bool(partly))


def _cells(rows: Sequence[_Row], spikes: Sequence[int], n_bins: int) -> Iterator[tuple[Index, Index]]:
    """Cells of the (rows, T) table that hold spikes, ascending, and how many; some rows at a time."""
    start = 0
    while start < len(rows):
        stop, load = start, 0
        while stop < len(rows) and (stop == start or load + spikes[stop] <= _SPIKES):
            load += spikes[stop]
            stop += 1
        some, plan = rows[start:stop], rows[start].plan
        times = [r.plan.times[r.unit][r.plan.first[r.unit][r.k] : r.plan.stop[r.unit][r.k]] for r in some]
        lengths = np.array(spikes[start:stop], dtype=np.int64)
        onset = np.repeat(np.array([r.plan.part.onset[r.k] for r in some]), lengths)
        index = bin_index(np.concatenate([*times, np.empty(0)]), onset, plan.bin_s) + plan.n_before
        inside = (index >= 0) & (index < n_bins)
        cells = (np.repeat(np.arange(start, stop), lengths) * n_bins + index)[inside]
        first = np.flatnonzero(np.diff(cells, prepend=-1))
        yield cells[first], np.diff(first, append=len(cells))
        start = stop


def bin_index(times: Floats, onset: Floats, bin_s: Fraction) -> Index:
    """Bin of each time after its onset, ``floor((t - onset + 1 us) / dt)`` as exact fractions give it."""
    quotient = (times - onset + TOLERANCE_S) / float(bin_s)
    index = np.floor(quotient).astype(np.int64)
    doubtful = np.flatnonzero(np.abs(quotient - np.rint(quotient)) < _GUARD_BINS)
    tolerance = Fraction(1, 1_000_000)
    for j in doubtful.tolist():
        exact = (Fraction(times[j]) - Fraction(onset[j]) + tolerance) / bin_s
        index[j] = exact.numerator // exact.denominator
    return index


def note_odd(
    clips: Sequence[tuple[str, Mapping[int, list[int]]]],
    responses: Sequence[ClipResponses],
    plans: Sequence[Plan],
    units: Mapping[str, int],
    note: Note,
) -> None:
    """Note units that lost all spikes, fell silent, or have other numbers of repeats than most."""
    names = list(units)
    uneven = []
    for (clip, _), counted in zip(clips, responses, strict=True):
        usual = Counter(counted.counts.tolist())
        if not usual:
            continue
        mode = max(usual, key=lambda n: (usual[n], n))
        for unit, n in zip(counted.heard.tolist(), counted.counts.tolist(), strict=True):
            if n != mode:
                uneven.append(f"unit {names[unit]}, {printable(clip)}: {n} for {mode}")
    if uneven:
        note("uneven repeats", first_names(uneven), len(uneven))
    groups: list[list[list[int]]] = [[] for _ in plans]
    for _, shown in clips:
        for i, places in shown.items():
            groups[i].append(places)
    for plan, group in zip(plans, groups, strict=True):
        for unit, times in plan.times.items():
            plan.note_silence(names[unit], unit, times, group, note)
