"""Any dataset as a session of trials, and back to an equal dataset.

The trials follow each other on a clock that is made up, clip after clip and repeat after repeat, with at
least a second between them. Counts become as many spike times inside their bin, rates and traces a signal
with one row of time per bin, and bins without a value time in which nothing was observed. What sessions have
no word for (views, kinds, order, the report) is in `Session.exact`, which any file can hold as JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import naming_damage
from deepSTRF.datasets import io
from deepSTRF.datasets.dataset import AudioNeuralDataset, NeuralDataset
from deepSTRF.datasets.responses import ClipResponses
from deepSTRF.datasets.session import Feature, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import without_suffix

__all__ = ["dataset_of_session", "session_of_dataset"]

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]

_FORMAT = 1
#: Time between trials in ms.
_GAP_MS = 1000.0
#: Counts of more spikes than bins, beyond this number, are stored as a signal, which then takes less.
_MANY_SPIKES = 100_000
#: Name of the feature where features have no names.
_UNNAMED = "stimulus"
#: Characters of the names of files, and their number.
_NO_FILE, _LONGEST = re.compile(r"[^\w.-]"), 80
_REMEDY = "write the recording again"


def session_of_dataset(ds: NeuralDataset) -> Session:
    """A dataset or view as a session that `dataset_of_session` gives back equal.

    Raises TypeError or ValueError for metadata that no file can hold, as ``ds.save`` does.
    """
    known = AudioNeuralDataset if isinstance(ds, AudioNeuralDataset) else NeuralDataset
    plain = known.describe(ds)  # what a loader's own class adds is unknown to the class that reads
    added = {key: value for key, value in ds.describe().items() if key not in plain}
    header, arrays = io.without_clips(ds, {**added, **ds.facts})
    stimuli = _unique([str(row.get("name", "")) for row in ds.stim_meta], "clip")
    units = _unique([str(row.get("cell_id", row.get("name", ""))) for row in ds.nrn_meta], "unit")
    clips = ds.response_storage.clips
    rows = [clip.rows() for clip in clips]
    as_spikes = ds.recorded_kind == "counts" and (
        sum(_n_spikes(one) for one in rows) <= max(_MANY_SPIKES, sum(one.size for one in rows))
    )
    plan = _Plan.of(
        stimuli, [ds.n_bins(i) for i in range(len(ds))], [max(1, c.max_repeats) for c in clips], ds.dt
    )
    sounds, features = _stimuli(ds, stimuli)
    session = Session(
        trials=Trials(plan.stimulus, plan.seconds(plan.starts), plan.seconds(plan.ends)),
        sounds=sounds,
        features=features,
        span_s=(0.0, plan.end * ds.dt / 1000.0),
        unit_meta={unit: dict(row) for unit, row in zip(units, header["nrn_meta"], strict=True)},
        stim_meta={name: dict(row) for name, row in zip(stimuli, header["stim_meta"], strict=True)},
        name=ds.name,
        species=header.get("species"),
        facts=dict(header["facts"]),
        report=ds.load_report,
    )
    if as_spikes:
        session.spikes, session.observed = _spikes(ds, units, clips, rows, plan)
    else:
        session.signal = _signal(ds, units, clips, plan)
    session.exact = {
        "format": _FORMAT,
        "header": header,
        "units": units,
        "clips": [
            {
                "name": name,
                "shape": list(ds._stims.stimuli[i].values.shape[:-1]),
                "heard": clips[i].heard.tolist(),
                "repeats": clips[i].counts.tolist(),
                "dtype": rows[i].dtype.name,
                "bins": plan.bins[i],
                "width": int(rows[i].shape[1]),  # 0 where nothing was recorded
            }
            for i, name in enumerate(stimuli)
        ],
        "features": list(features),
        "arrays": {
            key: {"dtype": value.dtype.str, "shape": list(value.shape), "values": value.reshape(-1).tolist()}
            for key, value in arrays.items()
        },
    }
    return session


def _unique(names: Sequence[str], word: str) -> list[str]:
    """Names that files can have, each once whatever their letter case; numbered where they are not."""
    made: list[str] = []
    taken: set[str] = set()
    for index, name in enumerate(names):
        plain = _NO_FILE.sub("_", without_suffix(name)).strip("._-")[:_LONGEST] or f"{word}{index:03d}"
        number = 2
        choice = plain
        while choice.casefold() in taken:
            choice, number = f"{plain}_{number}", number + 1
        taken.add(choice.casefold())
        made.append(choice)
    return made


def _n_spikes(rows: Array) -> float:
    values = rows.astype(np.float64)
    if rows.dtype.kind == "i":
        return float(values[rows != np.iinfo(rows.dtype).min].sum())
    return float(np.nansum(values))


class _Plan:
    """Trials in bins of the made-up clock: stimulus, clip, repeat, first bin and end of each."""

    def __init__(
        self, stimuli: Sequence[str], bins: Sequence[int], repeats: Sequence[int], starts: Index, dt: float
    ) -> None:
        self.bins, self.dt = list(bins), dt
        self.clip = np.repeat(np.arange(len(stimuli)), repeats)
        self.repeat = np.concatenate([np.arange(r) for r in repeats] or [np.empty(0, int)]).astype(np.int64)
        self.stimulus = [stimuli[i] for i in self.clip.tolist()]
        self.starts = starts
        self.ends = starts + np.asarray(bins, dtype=np.int64)[self.clip]
        self.end = int(self.ends[-1] if len(self.ends) else 0) + _gap(dt)

    @classmethod
    def of(cls, stimuli: Sequence[str], bins: Sequence[int], repeats: Sequence[int], dt: float) -> _Plan:
        """Trials one after the other."""
        lengths = np.repeat(np.asarray(bins, dtype=np.int64), repeats) + _gap(dt)
        return cls(stimuli, bins, repeats, np.cumsum(lengths) - lengths + _gap(dt), dt)

    def each(self) -> list[tuple[int, int, int, int]]:
        """First bin, end, clip and repeat of every trial."""
        columns = (self.starts, self.ends, self.clip, self.repeat)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def seconds(self, bins: Index) -> npt.NDArray[np.float64]:
        """Times of bins in s."""
        return np.asarray(bins * self.dt / 1000.0, dtype=np.float64)


def _gap(dt_ms: float) -> int:
    return max(1, math.ceil(_GAP_MS / dt_ms))


def _stimuli(
    ds: NeuralDataset, names: Sequence[str]
) -> tuple[dict[str, Sound], dict[str, dict[str, Feature]]]:
    """Waveforms as sounds, anything else as features by name."""
    raw = [values.detach().cpu().numpy() for values in ds._stims.raw()]
    if isinstance(ds, AudioNeuralDataset) and ds.return_waveform and ds.audio_fs is not None:
        fs = ds.audio_fs
        return {name: _as_sound(name, v.reshape(-1), fs) for name, v in zip(names, raw, strict=True)}, {}
    heights: Mapping[str, int] = getattr(ds, "features", {}) or {}
    parts: list[tuple[str, int | None]] = [*heights.items()] or [(_UNNAMED, None)]
    frequencies = getattr(ds, "feature_frequencies", {}) or {}
    if not heights and getattr(ds, "frequencies_hz", None) is not None:
        frequencies = {_UNNAMED: ds.frequencies_hz}  # type: ignore[attr-defined]
    keys = _unique([key for key, _ in parts], "feature")
    features: dict[str, dict[str, Feature]] = {key: {} for key in keys}
    for name, values in zip(names, raw, strict=True):
        rows, first = values.reshape(-1, values.shape[-1]), 0
        for key, (feature, height) in zip(keys, parts, strict=True):
            last = len(rows) if height is None else first + height
            features[key][name] = Feature(rows[first:last], None, frequencies.get(feature))
            first = last
    return {}, features


def _as_sound(name: str, samples: Array, fs: float) -> Sound:
    return Sound(lambda: samples, fs, int(samples.size), f"clip {name}")


def _spikes(
    ds: NeuralDataset,
    units: Sequence[str],
    clips: Sequence[ClipResponses],
    rows: Sequence[Array],
    plan: _Plan,
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """Spike times of every unit, and what was observed of those that were not observed throughout."""
    times: list[list[Array]] = [[] for _ in units]
    spans: list[list[list[int]]] = [[] for _ in units]
    before = 0  # end of the trial before
    for start, end, clip, repeat in plan.each():
        there = clips[clip]
        first = np.cumsum(there.counts) - there.counts
        for unit in np.flatnonzero(there.counts > repeat):
            row = rows[clip][first[unit] + repeat]
            missing = np.isnan(row) if row.dtype.kind == "f" else row == np.iinfo(row.dtype).min
            counts = np.where(missing, 0, row).astype(np.int64)
            bins = np.repeat(np.arange(len(row)), counts)
            if bins.size:
                place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts[counts > 0]])
                times[there.heard[unit]].append((start + bins + 0.25 + 0.5 * place) * ds.dt / 1000.0)
            known = spans[there.heard[unit]]
            for a, b in _runs(~missing):
                if known and a == 0 and known[-1][1] == before:  # observed between the trials as well
                    known[-1][1] = int(start) + b
                else:
                    known.append([int(start) + a, int(start) + b])
        before = int(end)
    whole = [[int(plan.starts[0]), int(plan.ends[-1])]] if len(plan.starts) else []
    spikes = {u: np.concatenate([*t, np.empty(0)]) for u, t in zip(units, times, strict=True)}
    observed = {
        u: plan.seconds(np.array(s, dtype=np.int64).reshape(-1, 2))
        for u, s in zip(units, spans, strict=True)
        if s != whole
    }
    return spikes, observed


def _runs(there: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _signal(ds: NeuralDataset, units: Sequence[str], clips: Sequence[ClipResponses], plan: _Plan) -> Signal:
    """Responses as channels of a signal with one row of time per bin."""
    data = np.full((len(units), plan.end), np.nan, dtype=np.float32)
    for start, _, clip, repeat in plan.each():
        there = clips[clip]
        has = there.counts > repeat
        values = there.values()[has, repeat] if has.any() else np.empty((0, plan.bins[clip]), np.float32)
        data[there.heard[has], start : start + plan.bins[clip]] = values
    return Signal(data, 1000.0 / ds.dt, list(units), 0.0, ds.recorded_unit)


# ---- back


def dataset_of_session(session: Session, source: str | Path) -> NeuralDataset:
    """The dataset that `session_of_dataset` was given; `DamagedFileError` where the session was changed."""
    with naming_damage(source, _REMEDY):
        exact = session.exact
        if exact["format"] != _FORMAT:
            raise ValueError(f"format {exact['format']!r}: install a newer deepSTRF")
        header, clips, units = dict(exact["header"]), exact["clips"], exact["units"]
        io.check_header(header)
        if len(clips) != len(header["stim_meta"]) or len(units) != header["n_neurons"]:
            raise ValueError(f"it lists {len(clips)} clips and {len(units)} units, and holds others")
        arrays: dict[str, Array] = {
            key: np.array(one["values"], dtype=np.dtype(one["dtype"])).reshape(one["shape"])
            for key, one in exact["arrays"].items()
        }
        if any(value.dtype.hasobject for value in arrays.values()):
            raise ValueError("its arrays hold Python objects")
        for index, clip in enumerate(clips):
            arrays[f"stim_{index}"] = _stimulus(session, clip, exact["features"])
            arrays[f"heard_{index}"] = np.array(clip["heard"], dtype=np.int64)
            arrays[f"counts_{index}"] = np.array(clip["repeats"], dtype=np.int64)
        plan = _read_plan(session, clips, header["dt_ms"])
        rows = (
            _rows_of_signal(session, clips, units, plan)
            if session.signal is not None
            else (_rows_of_spikes(session, clips, units, plan))
        )
        arrays.update({f"rows_{index}": one for index, one in enumerate(rows)})
        kind = AudioNeuralDataset if header["kind"] == "audio" else NeuralDataset
        ds = kind._blank(header["dt_ms"])
        io.restore(ds, header, arrays)
        ds.validate()
    return ds


def _stimulus(session: Session, clip: Mapping[str, Any], features: Sequence[str]) -> Array:
    if session.sounds:
        values = np.asarray(session.sounds[clip["name"]].read())[None]
    else:
        values = np.concatenate([np.asarray(session.features[key][clip["name"]].values) for key in features])
    return np.ascontiguousarray(values, dtype=np.float32).reshape(*clip["shape"], -1)


def _read_plan(session: Session, clips: Sequence[Mapping[str, Any]], dt_ms: float) -> _Plan:
    """The trials of the session, which must be those that were written."""
    names = [str(clip["name"]) for clip in clips]
    repeats = [max([1, *clip["repeats"]]) for clip in clips]
    starts = np.rint(np.asarray(session.trials.onset_s) * 1000.0 / dt_ms).astype(np.int64)
    if len(starts) != sum(repeats):
        raise ValueError(f"it has {len(starts)} trials, and {sum(repeats)} were written")
    plan = _Plan(names, [int(clip["bins"]) for clip in clips], repeats, starts, dt_ms)
    if list(session.trials.stimulus) != plan.stimulus or bool((plan.starts[1:] < plan.ends[:-1]).any()):
        raise ValueError("its trials are others than those that were written")
    return plan


def _rows_of_spikes(
    session: Session, clips: Sequence[Mapping[str, Any]], units: Sequence[str], plan: _Plan
) -> list[Array]:
    rows = _empty_rows(clips, np.float64)
    spikes = session.spikes or {}
    if set(spikes) != set(units):
        raise ValueError(f"it has {len(spikes)} units of spikes, and {len(units)} others were written")
    at = _row_index(clips, len(units), plan)
    for number, unit in enumerate(units):
        bins = np.floor(np.asarray(spikes[unit], dtype=np.float64) * 1000.0 / plan.dt).astype(np.int64)
        trial = np.searchsorted(plan.starts, bins, side="right") - 1
        row = at[number][trial]
        if bins.size and (trial.min() < 0 or (bins >= plan.ends[trial]).any() or row.min() < 0):
            raise ValueError(f"unit {unit} has spikes outside of its trials")
        for clip in np.unique(plan.clip[trial]):
            chosen = plan.clip[trial] == clip
            np.add.at(rows[clip], (row[chosen], bins[chosen] - plan.starts[trial[chosen]]), 1)
        if unit in session.observed:
            spans = (
                np.rint(np.asarray(session.observed[unit]) * 1000.0 / plan.dt).astype(np.int64).reshape(-1, 2)
            )
            for k in np.flatnonzero(at[number] >= 0):
                start, end = plan.starts[k], plan.ends[k]
                known = np.zeros(end - start, dtype=bool)
                for a, b in spans[(spans[:, 1] > start) & (spans[:, 0] < end)]:
                    known[max(0, a - start) : b - start] = True
                rows[plan.clip[k]][at[number][k], ~known] = np.nan
    return [_coded(one, clip["dtype"]) for one, clip in zip(rows, clips, strict=True)]


def _rows_of_signal(
    session: Session, clips: Sequence[Mapping[str, Any]], units: Sequence[str], plan: _Plan
) -> list[Array]:
    signal = session.signal
    if signal is None or sorted(signal.channels) != sorted(units):
        raise ValueError(f"it has other channels than the {len(units)} that were written")
    rows, at = _empty_rows(clips, np.float32), _row_index(clips, len(units), plan)
    order = [list(signal.channels).index(unit) for unit in units]
    if int(signal.data.shape[1]) < int(max(plan.ends, default=0)):
        raise ValueError("its signal is shorter than its trials")
    for k, (start, end) in enumerate(zip(plan.starts, plan.ends, strict=True)):
        heard = np.flatnonzero(at[:, k] >= 0)
        if heard.size:
            values = np.asarray(signal.data[:, start:end], dtype=np.float32)[[order[n] for n in heard]]
            rows[plan.clip[k]][at[heard, k]] = values
    return [_coded(one, clip["dtype"]) for one, clip in zip(rows, clips, strict=True)]


def _empty_rows(clips: Sequence[Mapping[str, Any]], dtype: Any) -> list[Array]:
    return [np.zeros((int(sum(clip["repeats"])), int(clip["width"])), dtype=dtype) for clip in clips]


def _row_index(clips: Sequence[Mapping[str, Any]], n_units: int, plan: _Plan) -> Index:
    """(units, trials) row of each unit in each trial, -1 where it has none."""
    at = np.full((n_units, len(plan.starts)), -1, dtype=np.int64)
    for index, clip in enumerate(clips):
        trials = np.flatnonzero(plan.clip == index)
        first = 0
        for unit, repeats in zip(clip["heard"], clip["repeats"], strict=True):
            at[unit, trials[:repeats]] = first + np.arange(repeats)
            first += repeats
    return at


def _coded(rows: Array, dtype: str) -> Array:
    """Rows in the type that they were stored in; ValueError for values that it does not hold."""
    if dtype not in ("int8", "int16", "float32"):
        raise ValueError(f"responses are stored as {dtype!r}")
    if dtype == "float32":
        return rows.astype(np.float32)
    lowest = np.iinfo(dtype).min
    coded = np.where(np.isnan(rows), lowest, rows)
    if coded.size and (coded.max() > np.iinfo(dtype).max or (coded != np.round(coded)).any()):
        raise ValueError(f"its counts are no {dtype}")
    return coded.astype(dtype)
