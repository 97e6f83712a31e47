"""Clocks: onsets of a stimulus computer matched with trigger pulses, and signs of clocks that differ.

Onsets and pulses are two series of times of the same events. Offset and drift between their clocks are
unknown, pulses may be missing and others may be there: alignments that fit the intervals are followed over
the whole session, and the one that leaves fewest unmatched is taken where no other comes near it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepSTRF._validation import as_numbers, first_names
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Trials

__all__ = [
    "DRIFT_CHOICES",
    "check_lengths",
    "check_seconds",
    "check_whole",
    "duration_drift",
    "far_apart",
    "on_recording_clock",
    "silent_ends",
]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

#: What is done about a drift between onsets and triggers.
DRIFT_CHOICES = ("correct", "ignore", "error")
#: Two clocks of a laboratory differ by less than this (quartz: 0.0001).
MOST_DRIFT = 2e-3
#: A pulse is this close to its event (s), or a tenth of the usual interval if that is less, within bounds.
_JITTER_S = (1e-3, 10e-3)
#: Onsets whose neighbourhoods seed alignments, neighbours on each side, and best seeds of each.
_ANCHORS, _NEIGHBOURS, _SEEDS = 8, 15, 5
#: An alignment with events unmatched on both sides needs every other to match less than this share of it.
_CLEARLY = 0.8
#: An alignment that matches less than this share of its neighbourhood is not followed.
_HOPELESS = 0.4
#: A line through fewer matches says nothing of drift.
_FEWEST = 4
#: A drift is one from 1 ppm and 50 us over the session on, when it is so many standard errors.
_LEAST_DRIFT, _LEAST_SHIFT_S, _SIGNIFICANT = 1e-6, 50e-6, 5.0
#: Clocks less apart than this (s) are one: what triggers and onsets differ by is a delay.
_SAME_CLOCK_S = 1e-3
#: Durations tell drift where the longest is so many times the shortest; from that much on it is no drift.
_LONGER, _TOO_MUCH = 1.2, 1e-3
#: Steps (s) that tables round times to.
_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
#: Spans of spikes and trials of one session are alike within these factors.
_ALIKE = (0.3, 5.0)
#: Spike times of at least so many times the last trial, all whole, are numbers of samples.
_SAMPLES = 5000.0
#: So many spike times that are all whole numbers are no seconds.
_WHOLE = 50
#: Trials that last so many times as long as their sounds, within 5%, are in another unit.
_PER_SECOND = {1e3: "ms", 1e6: "us"}
#: So many clips between two trials: either sounds are rare, or onsets are no seconds.
_FAR_APART = 300.0
#: So many trials cannot begin within one clip.
_AT_ONCE = 100.0
#: So many spikes expected in a stretch without any are no chance.
_SURELY = 20.0


@dataclass(eq=False)
class _Match:
    """A line ``trigger = mean_y + slope * (onset - mean_x)`` with the pairs that it matches."""

    slope: float
    mean_x: float
    mean_y: float
    onset: Index
    trigger: Index
    error: float  # standard error of the slope, NaN where unknown

    def __call__(self, x: Floats) -> Floats:
        return self.mean_y + self.slope * (x - self.mean_x)


def on_recording_clock(trials: Trials, triggers: object, on_drift: str, report: LoadReport) -> Trials:
    """Trials whose onsets are moved to the clock of the trigger pulses; what was found is noted.

    A trial begins at its pulse; one without a pulse begins where the line through the others puts it.
    ``on_drift``: "correct", "ignore" (one offset for all) or "error".
    """
    pulses = np.unique(as_numbers(triggers, "triggers").reshape(-1))
    onset = np.asarray(trials.onset_s, dtype=np.float64)
    if not np.isfinite(pulses).all() or not pulses.size:
        raise ValueError("triggers are the times in s of the trigger pulses, finite and at least one")
    events = np.unique(onset[~np.isnan(onset)])
    if not events.size:
        return trials
    match = _best(events, pulses)
    shift = float(np.median(pulses[match.trigger] - events[match.onset]))
    span = float(events[-1] - events[0])
    drift = match.slope - 1.0
    is_drift = abs(drift) >= _LEAST_DRIFT and abs(drift) * span >= _LEAST_SHIFT_S
    is_drift = is_drift and abs(drift) > _SIGNIFICANT * match.error
    if is_drift:
        text = f"{drift * 1e6:.1f} ppm over {span:.0f} s"
        if on_drift == "error":
            raise ValueError(
                f"clock drift: {text}; on_drift='correct' corrects it, 'ignore' takes one offset"
            )
        report.note("clock drift", f"{text}, {'corrected' if on_drift == 'correct' else 'not corrected'}")
    first = float(match(events[:1])[0] - events[0])
    if abs(first if is_drift else shift) > _SAME_CLOCK_S:
        report.note("clock offset", f"{first:.6f} s at the first trial, corrected")
    placed = events + shift if on_drift == "ignore" else match(events)
    if on_drift != "ignore":
        placed[match.onset] = pulses[match.trigger]
    lost = np.setdiff1d(np.arange(len(events)), match.onset)
    if lost.size:
        rows = np.flatnonzero(np.isin(onset, events[lost]))
        names = first_names([str(row) for row in rows])
        report.note("dropped triggers", f"trials {names}, placed by the others", len(rows))
    if len(pulses) > len(match.trigger):
        extra = np.setdiff1d(np.arange(len(pulses)), match.trigger)
        times = first_names([f"{pulses[j]:.3f}" for j in extra])
        report.note("extra triggers", f"at {times} s, left out", len(extra))
    moved = np.full(len(onset), np.nan)
    there = ~np.isnan(onset)
    moved[there] = placed[np.searchsorted(events, onset[there])]
    offset = None if trials.offset_s is None else moved + (np.asarray(trials.offset_s) - onset)
    return Trials(trials.stimulus, moved, offset, trials.condition, trials.meta)


def _best(x: Floats, y: Floats) -> _Match:
    """The alignment of two ascending series that matches most; ValueError when it is not clear."""
    if len(x) == len(y) == 1:
        return _Match(1.0, float(x[0]), float(y[0]), np.array([0]), np.array([0]), np.nan)
    usual = np.median(np.concatenate([np.diff(x), np.diff(y)]))
    jitter = float(np.clip(0.1 * usual, *_JITTER_S))
    found: list[_Match] = []
    known: set[tuple[int, int]] = set()
    for i, j in _seeds(x, y, jitter):
        match = None if (i, j) in known else _followed(x, y, i, j, jitter)
        if match is not None:
            found.append(match)
            known.update(zip(match.onset.tolist(), match.trigger.tolist(), strict=True))
    advice = "check that the triggers are of these trials and all times are seconds"
    if not found:
        raise ValueError(f"triggers: no alignment of {len(y)} pulses fits {len(x)} trials; {advice}")
    found.sort(key=lambda m: (-len(m.onset), m.error if m.error == m.error else 0.0))
    best = found[0]
    matched, least = len(best.onset), min(len(x), len(y))
    if matched < 2 or matched < 0.5 * len(x):
        raise ValueError(f"triggers: at most {matched} of {len(x)} trials have a pulse that fits; {advice}")
    middle = x[len(x) // 2 : len(x) // 2 + 1]
    others = [len(m.onset) for m in found if abs(float((m(middle) - best(middle))[0])) > 2 * jitter]
    second = max(others, default=0)
    if second >= matched or (matched < least and second > _CLEARLY * matched):
        raise ValueError(
            f"triggers: ambiguous, two alignments match {matched} and {second} of {len(x)} trials with "
            f"{len(y)} pulses; leave out pulses that are of no trial, or give the onsets on the recording's "
            "clock without triggers"
        )
    return best


def _seeds(x: Floats, y: Floats, jitter: float) -> list[tuple[int, int]]:
    """Pairs of an onset and a pulse whose neighbours fit best, and pairs at both ends."""
    n, m = len(x), len(y)
    ends = range(min(3, n, m))
    seeds = [(i, j) for i in ends for j in ends] + [(n - 1 - i, m - 1 - j) for i in ends for j in ends]
    for i in np.unique(np.linspace(0, n - 1, min(n, _ANCHORS)).astype(int)).tolist():
        near = x[max(0, i - _NEIGHBOURS) : i + _NEIGHBOURS + 1] - x[i]
        expected = y[:, None] + near
        at = np.clip(np.searchsorted(y, expected), 1, max(1, m - 1))
        gap = np.minimum(np.abs(expected - y[at - 1]), np.abs(expected - y[np.minimum(at, m - 1)]))
        score = (gap <= jitter + MOST_DRIFT * np.abs(near)).sum(axis=1)
        seeds += [(i, j) for j in np.argsort(-score, kind="stable")[:_SEEDS].tolist()]
    return list(dict.fromkeys(seeds))


def _followed(x: Floats, y: Floats, i: int, j: int, jitter: float) -> _Match | None:
    """The alignment that maps onset i to pulse j, followed outwards; None where clocks would not fit."""
    match = _Match(1.0, float(x[i]), float(y[j]), np.array([i]), np.array([j]), np.nan)
    reach = max(abs(x[min(len(x) - 1, i + 1)] - x[i]), abs(x[i] - x[max(0, i - 1)]))
    while True:
        low, high = np.searchsorted(x, [x[i] - reach, x[i] + reach + 1e-9])
        # until some matches hold the slope, it may be off by the largest drift
        loose = MOST_DRIFT * reach if len(match.onset) < 2 * _FEWEST else jitter
        pairs = _paired(x[low:high], y, match, jitter + min(loose, 5 * jitter))
        if len(pairs[0]):
            match = _line(x, y, pairs[0] + int(low), pairs[1])
        if abs(match.slope - 1.0) > MOST_DRIFT or len(pairs[0]) < _HOPELESS * (high - low) - _FEWEST:
            return None
        if low == 0 and high == len(x):
            break
        reach *= 2.0
    for _ in range(2):
        # other pulses come near lost ones: no farther than the others are from the line
        spread = 1.4826 * float(np.median(np.abs(match(x[match.onset]) - y[match.trigger])))
        close = min(jitter, max(8.0 * spread, _JITTER_S[0])) if len(match.onset) >= 2 * _FEWEST else jitter
        pairs = _paired(x, y, match, close)
        if not len(pairs[0]):
            return None
        match = _line(x, y, *pairs)
    return match if abs(match.slope - 1.0) <= MOST_DRIFT else None


def _paired(x: Floats, y: Floats, match: _Match, tolerance: float) -> tuple[Index, Index]:
    """Onsets and pulses that are nearest to each other under a line, within a tolerance."""
    expected = match(x)
    at = np.clip(np.searchsorted(y, expected), 1, max(1, len(y) - 1))
    right = np.minimum(at, len(y) - 1)
    nearest = np.where(np.abs(y[at - 1] - expected) <= np.abs(y[right] - expected), at - 1, right)
    gap = np.abs(y[nearest] - expected)
    order = np.lexsort((gap, nearest))
    order = order[gap[order] <= tolerance]
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(nearest[order]) > 0  # of several onsets near one pulse the nearest
    chosen = np.sort(order[first])
    return chosen, nearest[chosen]


def _line(x: Floats, y: Floats, onset: Index, trigger: Index) -> _Match:
    """Line through matched pairs: least squares without what is far from it by the median residual."""
    a, b = x[onset], y[trigger]
    keep = np.ones(len(a), dtype=bool)
    slope, mean_x, mean_y, error = 1.0, float(np.mean(a)), 0.0, np.nan
    mean_y = mean_x + float(np.median(b - a))
    if len(a) >= _FEWEST:
        for _ in range(3):
            mean_x, mean_y = float(a[keep].mean()), float(b[keep].mean())
            dx, dy = a - mean_x, b - mean_y
            power = float((dx[keep] ** 2).sum())
            slope = float((dx[keep] * dy[keep]).sum() / power)
            rest = np.abs(dy - slope * dx)
            scale = 1.4826 * float(np.median(rest))
            error = float(np.sqrt((rest[keep] ** 2).sum() / max(1, keep.sum() - 2) / power))
            keep = rest <= max(4.0 * scale, 1e-6)
            if keep.sum() < _FEWEST:
                break
    return _Match(slope, mean_x, mean_y, onset, trigger, error)


# ---- signs of other clocks


def check_seconds(spikes: list[Floats], last_event: float) -> None:
    """Refuse spike times or onsets that are milliseconds or samples by all appearance.

    ``last_event`` is the end of the last presentation.
    """
    last_spike = max((float(times[-1]) for times in spikes if len(times)), default=0.0)
    if last_spike <= 0 or last_event <= 0:
        return
    ratio = last_spike / last_event
    seen = f"the last spike is at {last_spike:g} s, the end of the last trial at {last_event:g} s"
    if 1000 * _ALIKE[0] < ratio < 1000 * _ALIKE[1]:
        raise ValueError(
            f"{seen}: are the spikes in ms? Times are seconds; pass spikes={{unit: times / 1000}} (in a "
            "table, name the column time_ms)"
        )
    if 1 / 1000 / _ALIKE[1] < ratio < 1 / 1000 / _ALIKE[0]:
        raise ValueError(
            f"{seen}: are the onsets in ms? Times are seconds; divide them by 1000 (in a table, name the "
            "column onset_ms)"
        )
    if ratio > _SAMPLES and all((times == np.rint(times)).all() for times in spikes):
        raise ValueError(
            f"{seen}, and spike times are whole numbers: are they samples? Times are seconds; divide them by "
            "the sample rate"
        )


def check_whole(spikes: list[Floats]) -> None:
    """Refuse spike times that are all whole numbers: samples, ms, or counts in place of times."""
    if sum(map(len, spikes)) < _WHOLE or not all((times == np.rint(times)).all() for times in spikes):
        return
    raise ValueError(
        f"all {sum(map(len, spikes))} spike times are whole numbers: are they samples, ms, or counts per "
        "bin? Times are seconds; divide samples by their rate, ms by 1000 (in a table, name the column "
        "time_ms, and that of the trials onset_ms); counts go to from_arrays"
    )


def check_lengths(lengths_s: Floats, durations_s: Floats) -> None:
    """Refuse trials that last 1000 or a million times as long as their sounds."""
    there = np.isfinite(lengths_s) & (durations_s > 0)
    if not there.any():
        return
    ratio = float(np.median(lengths_s[there] / durations_s[there]))
    for scale, unit in _PER_SECOND.items():
        if abs(ratio / scale - 1.0) < 0.05:
            raise ValueError(
                f"trials last {ratio:.0f} times as long as their sounds by the table's offsets or durations: "
                f"are they in {unit}? Times are seconds; name the column with its unit, such as "
                f"onset_{unit}, offset_{unit} or duration_{unit}, or divide by {scale:.0f}"
            )


def far_apart(onset_s: Floats, end_s: Floats) -> str | None:
    """A word on onsets that are so far apart, for the length of clips, that they may be no seconds.

    ValueError where they are so close that they cannot be.
    """
    steps, clip = np.diff(np.sort(onset_s)), float(np.median(end_s - onset_s)) if len(onset_s) else 0.0
    if len(steps) < 2 or not clip:
        return None
    if 0 < np.median(steps) * _AT_ONCE < clip:
        raise ValueError(
            f"onsets are {np.median(steps):g} s apart and clips last {clip:g} s: are the onsets in s, and "
            "taken for ms? The unit is that of the column's name, or of the hint (time_unit, onset_unit)"
        )
    if np.median(steps) < _FAR_APART * clip:
        return None
    return (
        f"onsets are {np.median(steps):g} s apart and clips last {clip:g} s; are times in ms? They are "
        "seconds (in a table, name columns onset_ms and time_ms)"
    )


def duration_drift(lengths_s: Floats, durations_s: Floats, times: Floats, sample_s: float) -> str | None:
    """What ``offset - onset`` of trials says of the clocks of sounds and table; None where it says nothing.

    Durations have to differ, so that a fixed delay is no drift; ``times`` are those of the table, whose step
    bounds what it can show, as a sample of the sounds does.
    """
    there = np.isfinite(lengths_s) & (durations_s > 0)
    x, y = durations_s[there], (lengths_s - durations_s)[there]
    if len(x) < _FEWEST or x.max() < _LONGER * x.min():
        return None
    far = np.abs(y - np.median(y))
    near = far <= max(5 * 1.4826 * float(np.median(far)), _TOO_MUCH * float(x.max()))
    x, y = x[near], y[near]
    power = float(((x - x.mean()) ** 2).sum())
    if len(x) < _FEWEST or power == 0.0:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / power)
    rest = y - y.mean() - slope * (x - x.mean())
    error = float(np.sqrt((rest**2).sum() / (len(x) - 2) / power))
    known = times[np.isfinite(times)]
    step = next((s for s in _STEPS if np.abs(known / s - np.rint(known / s)).max() < 1e-3), 0.0)
    shown = abs(slope) * float(np.ptp(x))
    if not _LEAST_DRIFT < abs(slope) < _TOO_MUCH or abs(slope) < _SIGNIFICANT * error:
        return None
    if shown < max(2 * step, 2 * sample_s, 2e-6) or np.median(np.abs(y)) > 2 * _TOO_MUCH * x.max():
        return None
    return f"{slope * 1e6:.1f} ppm between the durations of trials and sounds"


def silent_ends(start_s: Floats, end_s: Floats, spikes: list[Floats]) -> tuple[Index, float]:
    """Trials before the first or after the last spike of all units, where that is no chance; else none.

    Also how many spikes were expected in them.
    """
    trains = [times for times in spikes if len(times)]
    total = sum(map(len, trains))
    nothing: Index = np.empty(0, dtype=np.int64)
    if total < 2 or not len(start_s):
        return nothing, 0.0
    first, last = min(float(t[0]) for t in trains), max(float(t[-1]) for t in trains)
    out = np.flatnonzero((end_s <= first) | (start_s >= last))
    if last <= first or not out.size:
        return nothing, 0.0
    expected = total / (last - first) * float((end_s - start_s)[out].sum())
    return (out, expected) if expected > _SURELY else (nothing, expected)
