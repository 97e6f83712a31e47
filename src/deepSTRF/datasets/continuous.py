"""Continuous signals on the bins of a dataset: EEG, ECoG, LFP, calcium, membrane potential.

Sample k of a signal stands at ``start_s + k / fs``, and the value of a bin is the mean over its stretch of
time. Each presentation is cut from the original times: nothing is resampled first and rounded afterwards. A
signal that is faster than the bins passes a low-pass of zero phase before (``antialias``), which sees as much
after a bin as before it; one that is slower is interpolated along straight lines.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._text import printable
from deepSTRF._validation import check_choice, check_flag, first_names
from deepSTRF.datasets.recording import RESPONSE_KINDS
from deepSTRF.datasets.responses import ClipResponses
from deepSTRF.datasets.session import Session, Signal
from deepSTRF.datasets.sounds import exact_bin, exact_rate
from deepSTRF.datasets.trials import Presented, finish, presented
from deepSTRF.dsp.binning import PASS_SHARE, bin_edges, held_means, linear_means, lowpass_reach, lowpass_taps

__all__ = ["SignalReader", "fill_from_signal"]

Floats = npt.NDArray[np.float64]

#: Times that differ by less are the same.
TOLERANCE_S = Fraction(1, 1_000_000)
#: A presentation that begins this close to a sample (in samples) begins with it: the rounding of a clock.
_ON_A_SAMPLE = Fraction(1, 10_000)
#: Values of a signal that are in memory at once.
_VALUES = 1 << 22
#: The low-pass is made at so many samples per bin or more, so that lines between them are no error.
_FINE = 8
#: Bins that are made at once.
_BINS = 1 << 16


class SignalReader:
    """Bins of a signal from any time on, read piece by piece.

    ``bins(onset_s, start, stop)`` is (channels, stop - start) float64 of the bins from ``onset_s`` on: NaN
    where a bin touches what was not recorded, a bad span, or a sample that is NaN. Those samples are
    interpolated before the low-pass, so that an artefact does not ring into good bins.
    """

    def __init__(
        self, signal: Signal, fs: Fraction, bin_s: Fraction, *, antialias: bool = True, name: str = "signal"
    ) -> None:
        self.data, self.fs, self.name, self.antialias = signal.data, fs, name, antialias
        self.start = Fraction(float(signal.start_s))
        self.channels = [str(channel) for channel in signal.channels]
        bad = {str(channel) for channel in signal.bad_channels}
        self.good = np.array([channel not in bad for channel in self.channels])
        self.is_row = len(self.data.shape) == 1
        self.n_samples = int(self.data.shape[-1])
        self.spans = np.asarray(signal.bad_s, dtype=np.float64).reshape(-1, 2)
        if np.isnan(self.spans).any() or (self.spans[:, 1] < self.spans[:, 0]).any():
            raise ValueError(f"bad_s of {name}: each row is a start and a later end in s, got {self.spans}")
        places = [math.ceil((Fraction(at) - TOLERANCE_S - self.start) * fs) for at in self.spans.ravel()]
        #: First and last + 1 sample in each bad span; where it holds none, the next one twice.
        self.bad = np.array(places, dtype=np.int64).reshape(-1, 2)
        self.n_bad = self.n_outside = 0  # values of bins that touch bad samples, bins outside
        self.set_bin(bin_s)

    def set_bin(self, bin_s: Fraction) -> None:
        """Set the width of the bins."""
        self.bin_s, self.step = bin_s, self.fs * bin_s
        filters = self.antialias and self.step > 1
        self.up = max(1, math.ceil(_FINE / self.step)) if filters else 1  # of the low-pass, per sample
        fine = lowpass_reach(self.step * self.up) if filters else 0
        self.taps = lowpass_taps(self.step * self.up, self.up) if fine else None
        self.reach, self.shift = -(-fine // self.up), -(-fine // self.up) * self.up - fine

    def end_s(self) -> float:
        """End of the recording in s."""
        return float(self.start + self.n_samples / self.fs)

    def bins(self, onset_s: float, start: int, stop: int) -> Floats:
        """Means (channels, stop - start) over the bins ``start`` to ``stop`` from ``onset_s`` on."""
        first = (Fraction(float(onset_s)) - self.start) * self.fs
        if abs(first - round(first)) < _ON_A_SAMPLE:
            first = Fraction(round(first))
        out = np.full((len(self.channels), stop - start), np.nan)
        room = max(_VALUES // (len(self.channels) * self.up) - 6 * self.reach, 4 * self.reach, 1)
        size = max(1, min(_BINS, int(room / self.step)))
        for low in range(start, stop, size):
            high = min(low + size, stop)
            self._piece(first, low, high, out[:, low - start : high - start])
        begin = Fraction(float(onset_s)) + start * self.bin_s
        end = begin + (stop - start) * self.bin_s
        reached = (self.spans[:, 1] > float(begin)) & (self.spans[:, 0] < float(end))
        for span in self.spans[reached].tolist():
            low_edge = (Fraction(span[0]) + TOLERANCE_S - begin) / self.bin_s
            high_edge = (Fraction(span[1]) - TOLERANCE_S - begin) / self.bin_s
            if high_edge > low_edge:
                hole = out[self.good, max(0, math.floor(low_edge)) : max(0, math.ceil(high_edge))]
                self.n_bad += int((~np.isnan(hole)).sum())
                out[:, max(0, math.floor(low_edge)) : max(0, math.ceil(high_edge))] = np.nan
        return out

    def _piece(self, first: Fraction, start: int, stop: int, out: Floats) -> None:
        """Fill the bins ``start`` to ``stop``."""
        base, edges = bin_edges(first, self.step, start, stop)
        low, high = base, base + math.ceil(edges[-1]) + 1  # samples that the means are of
        a, b = max(0, low - 3 * self.reach), min(self.n_samples, high + 3 * self.reach)
        if b <= a:
            self.n_outside += stop - start
            return
        values = np.asarray(self.data[a:b] if self.is_row else self.data[:, a:b], dtype=np.float64)
        values = np.array(values.reshape(len(self.channels), b - a))
        bad = np.isnan(values)
        if np.isinf(values).any():
            row, at = (int(i) for i in np.argwhere(np.isinf(values))[0])
            time = float(self.start + (a + at) / self.fs)
            raise ValueError(
                f"{self.name}: channel {self.channels[row]!r} is infinite at {time:g} s; NaN is for what was "
                "not recorded"
            )
        for begin, end in self.bad[(self.bad[:, 1] > a) & (self.bad[:, 0] < b)].tolist():
            bad[:, max(0, begin - a) : max(0, end - a)] = True
        _interpolate(values, bad, 2 * self.reach)
        # what is before and after the recording: odd reflection, so that levels and slopes go on
        if self.taps is None:
            wanted = (low, high)
        else:
            wanted = (low - self.reach, high + self.reach)
        before, after = max(0, a - wanted[0]), max(0, wanted[1] - b)
        if before or after:
            values = _extended(values, before, after)
        begin = a - before
        values = values[:, wanted[0] - begin : wanted[1] - begin]
        if self.taps is not None:
            from scipy.signal import oaconvolve  # when needed: it takes its time to import

            fine = np.zeros((len(values), (values.shape[1] - 1) * self.up + 1))
            fine[:, :: self.up] = values
            fine = oaconvolve(fine, self.taps[None], mode="valid", axes=1)
            values = fine[:, self.shift : self.shift + (high - low - 1) * self.up + 1]
            out[:] = linear_means(values, edges * self.up)
        else:
            out[:] = (linear_means if self.step < 1 else held_means)(values, edges)
        touched, outside = self._touched(bad, edges, base - a)
        self.n_bad += int(touched[self.good][:, ~outside].sum())
        out[touched] = np.nan
        out[:, outside] = np.nan
        self.n_outside += int(outside.sum())

    def _touched(
        self, bad: npt.NDArray[np.bool_], edges: Floats, shift: int
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(channels, bins) that hold a part of a bad sample, and (bins,) that lie outside the recording.

        ``shift``: sample from which edges count, as a column of ``bad``. A sample stands for the stretch up
        to the next one; where lines are drawn to it, slower than bins, for those on both sides.
        """
        slack = min(float(TOLERANCE_S * self.fs), 0.25)
        n = bad.shape[1]
        before = np.zeros((bad.shape[0], n + 1), dtype=np.int64)
        np.cumsum(bad, axis=1, out=before[:, 1:])
        first = shift + np.floor(edges[:-1] + slack).astype(np.int64)
        last = shift + np.ceil(edges[1:] - slack).astype(np.int64)  # one after the last stretch
        if self.step < 1:
            last = np.where(last < n, last + 1, last)  # the sample that the line ends at
        inside = (first >= 0) & (last <= n)
        low, high = np.clip(first, 0, n), np.clip(last, 0, n)
        return before[:, high] > before[:, low], ~inside


def _interpolate(values: Floats, bad: npt.NDArray[np.bool_], longest: int) -> None:
    """Replace bad values: along a line between good ones, in runs of more than ``longest`` by the nearest."""
    for row in np.flatnonzero(bad.any(axis=1)):
        good = np.flatnonzero(~bad[row])
        if not good.size:
            values[row] = 0.0
            continue
        hole = np.flatnonzero(bad[row])
        values[row, hole] = np.interp(hole, good, values[row, good])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], bad[row], [False]]).astype(np.int8)))
        for begin, end in edges.reshape(-1, 2).tolist():
            if end - begin > longest and begin > 0 and end < values.shape[1]:
                middle = (begin + end) // 2
                values[row, begin:middle] = values[row, begin - 1]
                values[row, middle:end] = values[row, end]


def _extended(values: Floats, before: int, after: int) -> Floats:
    """Values with odd reflections at both ends, of what there is; a single value is held."""
    if values.shape[1] == 1:
        return np.repeat(values, before + 1 + after, axis=1)
    return np.pad(values, ((0, 0), (before, after)), mode="reflect", reflect_type="odd")


def filter_facts(readers: Sequence[SignalReader]) -> dict[str, Any]:
    """Facts on how signals came onto the bins, for `describe`."""
    reader = max(readers, key=lambda one: one.reach / one.fs)
    if reader.reach:
        edge = 0.5 / float(reader.bin_s)
        ahead = 1000.0 * float(reader.reach / reader.fs)
        text = (
            f"low-pass of zero phase (passes 0 to {PASS_SHARE * edge:.4g} Hz, stops from {edge:.4g} Hz), "
            f"which looks {ahead:.4g} ms ahead, then the mean over each bin"
        )
    elif reader.step < 1:
        text = (
            f"straight lines between samples ({float(reader.fs):.6g} Hz), which look up to one sample ahead"
        )
    else:
        text = "mean of the samples in each bin, without a low-pass"
    return {"signal_filter": text}


# ---- sessions with a signal


def fill_from_signal(
    ds: Any,
    sessions: Sequence[Session],
    *,
    dt_ms: Any,
    audio_fs: Any = None,
    channel: int | str | None = None,
    pre_ms: float = 0.0,
    post_ms: float = 0.0,
    clip: str = "sound",
    by_condition: bool = False,
    level: str = "raw",
    on_missing_sound: str = "skip",
    on_overlap: str = "keep",
    on_equal_sounds: str = "merge",
    on_blank: str = "skip",
    on_same_channel: str = "separate",
    session_names: bool = False,
    antialias: bool = True,
    response_kind: str = "trace",
    features: Sequence[str] = (),
    spectrogram: Mapping[str, Any] | None = None,
) -> None:
    """Put sessions with signals into an empty `AudioNeuralDataset`, which is not validated here.

    A channel that several sessions have is a neuron of each, "session/channel" (``on_same_channel=
    "separate"``; all channels with ``session_names``), or one neuron with the repeats of all ("join").
    """
    check_choice("on_same_channel", on_same_channel, ("separate", "join"))
    check_choice("response_kind", response_kind, ("trace", "rate"))
    check_flag("antialias", antialias)
    check_flag("session_names", session_names)
    bin_s = exact_bin(dt_ms) / 1000
    readers, spanned = [], []
    for session in sessions:
        if session.signal is None:
            raise ValueError(f"session {session.name!r} holds no signal; from_trials takes spikes")
        _check_signal(session.signal, session.name)
        rate = exact_rate(session.signal.fs, f"the rate of the signal of {session.name!r}")
        reader = SignalReader(session.signal, rate, bin_s, antialias=antialias, name=session.name)
        readers.append(reader)
        span = session.span_s or (float(reader.start), reader.end_s())
        spanned.append(dataclasses.replace(session, span_s=span))
    names = _unit_names(sessions, on_same_channel, session_names)
    found = presented(
        ds, spanned, dt_ms=dt_ms, audio_fs=audio_fs, channel=channel, pre_ms=pre_ms, post_ms=post_ms,
        clip=clip, by_condition=by_condition, level=level, on_missing_sound=on_missing_sound,
        on_overlap=on_overlap, on_equal_sounds=on_equal_sounds, on_blank=on_blank, features=features,
        spectrogram=spectrogram,
    )  # fmt: skip
    for reader in readers:
        reader.set_bin(found.choices.bin_s)
    units = {name: index for index, name in enumerate(dict.fromkeys(n for row in names for n in row))}
    places = [np.array([units[name] for name in row]) for row in names]
    responses = [_read_clip(found, k, readers, places) for k in range(len(found.clips))]
    if response_kind == "rate" and any(np.nanmin(np.asarray(one.data), initial=0.0) < 0 for one in responses):
        ringing = " (the low-pass rings: antialias=False does not)" if any(r.reach for r in readers) else ""
        raise ValueError(
            f"response_kind='rate' is for signals that are never negative, and there are negative values"
            f"{ringing}; response_kind='trace' takes any"
        )
    ds.response_kind, ds.response_unit = response_kind, _unit_of(sessions)
    ds.facts |= filter_facts(readers)
    _note_signals(found, readers)
    finish(ds, found, responses, _unit_meta(sessions, names))


def _check_signal(signal: Signal, name: str) -> None:
    """Shape (channels, T) or (T,), one name per channel, all different; bad channels among them."""
    shape = tuple(getattr(signal.data, "shape", ()))
    channels = [str(channel) for channel in signal.channels]
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"the signal of {name!r} is (channels, T) or (T,) and not empty, got {shape}")
    rows = 1 if len(shape) == 1 else shape[0]
    if rows != len(channels):
        turned = ": is it (T, channels)? Then pass signal.T" if shape[-1] == len(channels) else ""
        raise ValueError(
            f"the signal of {name!r} is {shape} and there are {len(channels)} names of channels{turned}"
        )
    twice = [channel for channel, count in Counter(channels).items() if count > 1]
    if twice:
        raise ValueError(
            f"channels of {name!r}: {first_names(twice)} stands for several; name each differently"
        )
    unknown = [str(bad) for bad in signal.bad_channels if str(bad) not in channels]
    if unknown:
        raise ValueError(
            f"bad_channels of {name!r}: {first_names(unknown)} is none of {first_names(channels)}"
        )


def _unit_names(sessions: Sequence[Session], on_same_channel: str, session_names: bool) -> list[list[str]]:
    """Names of the neurons that the channels of each session are."""
    channels = [[str(c) for c in s.signal.channels] for s in sessions if s.signal is not None]
    counted = Counter(channel for row in channels for channel in row)
    shared = on_same_channel == "separate" and max(counted.values()) > 1
    if not (shared or session_names):
        return channels
    labels = [session.name for session in sessions]
    if len(set(labels)) < len(labels) and on_same_channel == "separate":
        labels = [f"{label}#{index + 1}" for index, label in enumerate(labels)]
    return [[f"{label}/{channel}" for channel in row] for label, row in zip(labels, channels, strict=True)]


def _unit_of(sessions: Sequence[Session]) -> str | None:
    units = {session.signal.unit for session in sessions if session.signal is not None}
    if len(units) > 1:
        raise ValueError(f"sessions have signals in different units, {sorted(units)}; bring them to one")
    unit = units.pop()
    return None if unit == RESPONSE_KINDS["trace"] else unit


def _unit_meta(sessions: Sequence[Session], names: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    meta: dict[str, dict[str, Any]] = {}
    for session, row in zip(sessions, names, strict=True):
        signal = session.signal
        for name, channel in zip(row, signal.channels if signal else (), strict=True):
            given = dict(session.unit_meta.get(str(channel), {}))
            if name != str(channel):
                given = {"channel": str(channel), "session": session.name, **given}
            meta[name] = {"cell_id": name, **{k: v for k, v in given.items() if k != "cell_id"}}
    return meta


def _read_clip(
    found: Presented, index: int, readers: Sequence[SignalReader], places: Sequence[npt.NDArray[np.int64]]
) -> ClipResponses:
    """All repeats of all channels of one clip; a repeat without a value is none."""
    shown = found.clips[index].shown
    total = int(found.shown[shown[0][0]].bins[shown[0][1]])
    n_rows = sum(len(places[i]) for i, _ in shown)
    data = np.empty((n_rows, total), dtype=np.float32)
    unit, kept = np.empty(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=bool)
    row = 0
    for i, k in shown:
        part = found.shown[i]
        stop = row + len(places[i])
        for low in range(0, total, _BINS):
            high = min(low + _BINS, total)
            data[row:stop, low:high] = readers[i].bins(float(part.start[k]), low, high)
        data[row:stop, int(part.own[k]) :] = np.nan
        unit[row:stop] = places[i]
        kept[row:stop] = readers[i].good & ~np.isnan(data[row:stop]).all(axis=1)
        row = stop
    if not np.isfinite(np.fmax.reduce(np.abs(data), axis=None, initial=0.0)):
        raise ValueError("the signal reaches beyond the range of float32; bring it to another unit")
    order = np.flatnonzero(kept)[np.argsort(unit[kept], kind="stable")]
    if len(order) < n_rows or (np.diff(order) < 0).any():
        data = data[order]
    heard, counts = np.unique(unit[order], return_counts=True)
    missing = bool(np.isnan(data).any())
    return ClipResponses(data, heard, np.cumsum(counts) - counts, counts.astype(np.int64), missing)


def _note_signals(found: Presented, readers: Sequence[SignalReader]) -> None:
    """Note what of the signals is missing or interpolated."""
    for session, reader in zip(found.sessions, readers, strict=True):
        signal, name = session.signal, printable(session.name)
        if signal is None:
            continue
        if len(signal.bad_channels):
            text = f"{name}: {first_names([printable(str(bad)) for bad in signal.bad_channels])}"
            found.notes.add("bad channels", text, len(signal.bad_channels))
        if reader.n_bad:
            text = f"{name}: {reader.n_bad} values of bins touch bad spans or samples that are NaN"
            found.notes.add("artefacts", text, reader.n_bad)
        if reader.n_outside:
            text = f"{name}: {reader.n_outside} bins are outside of it"
            found.notes.add("bins outside the recording", text, reader.n_outside)
        if reader.step < 1:
            text = f"{name}: {float(reader.fs):.6g} Hz to bins of {float(reader.bin_s * 1000):g} ms"
            found.notes.add("interpolated signal", text)
