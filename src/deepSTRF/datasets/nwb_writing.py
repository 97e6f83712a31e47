"""A session as an NWB file of standard parts, with what is needed to read it back equal.

Units, trials, sounds, features and signals stand where NWB has them, so any NWB software can use the file.
What NWB has no word for (exact rates, metadata of any type, views) is a JSON text in ``/scratch``, sealed
with its SHA-256; arrays carry checksums of HDF5.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import check_target, naming_damage, write_atomically
from deepSTRF._optional import require
from deepSTRF.datasets.hdf5 import SIGNATURE, Hdf5File
from deepSTRF.datasets.nwb_layout import REMEDY, HDF5Samples, HDF5Signal, Table, series_of
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Feature, Session, Signal, Sound, Trials

__all__ = ["read_record", "session_of_record", "write_nwb"]

Array = npt.NDArray[Any]

#: Where the record is, and its version.
_RECORD, _FORMAT = "deepSTRF_session", 1
#: Start of sessions that state none, so that a file does not depend on when it is written.
_NO_TIME = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
#: Names that NWB allows for objects.
_PLAIN_NAME = re.compile(r"[^/:.\s][^/:]{0,99}")
#: Columns of units and of trials that NWB defines.
_TAKEN = frozenset({
    "id", "spike_times", "obs_intervals", "electrodes", "electrode_group", "waveform_mean", "waveform_sd",
    "waveforms", "start_time", "stop_time", "tags", "timeseries", "stimulus", "condition", "resolution",
    "sampling_rate", "waveform_rate", "waveform_unit", "colnames", "description", "columns", "name",
})  # fmt: skip


def write_nwb(session: Session, path: str | os.PathLike[str]) -> Path:
    """Write a session as an NWB file, whole or not at all, and return the path.

    Raises TypeError or ValueError for metadata that JSON cannot hold, OSError where nothing can be written.
    """
    path = Path(path)
    check_target(path, SIGNATURE)
    pynwb = require("pynwb", extra="formats")
    names = _names(session)
    text = _record(session, names)
    nwb = pynwb.NWBFile(
        session_description=_text(session.name) or "recording",
        identifier=hashlib.sha256(text.encode()).hexdigest(),
        session_start_time=_NO_TIME,
        file_create_date=_NO_TIME,
        subject=pynwb.file.Subject(subject_id="unknown", species=_text(session.species))
        if session.species
        else None,
    )
    _add_units(pynwb, nwb, session)
    _add_trials(pynwb, nwb, session)
    for stimulus, sound in session.sounds.items():
        nwb.add_stimulus_template(
            pynwb.TimeSeries(
                name=names["sounds", stimulus],
                description=f"sound {stimulus}",
                data=_checksummed(_exact_float32(np.asarray(sound.read()))),
                unit="arbitrary units",
                rate=float(sound.fs),
                starting_time=0.0,
            )
        )
    _add_features(pynwb, nwb, session, names)
    if session.signal is not None:
        _add_signal(pynwb, nwb, session.signal)
    nwb.add_scratch(text, name=_RECORD, description="what deepSTRF needs to read this file back equal")
    h5py = require("h5py", extra="formats")
    # in memory: of a disk that is full, HDF5 would not let go of a half written file
    with (
        h5py.File(path.name, "w", driver="core", backing_store=False) as file,
        pynwb.NWBHDF5IO(file=file, mode="w") as io,
    ):
        io.write(nwb)
        file.flush()
        content = file.id.get_file_image()
    write_atomically(path, content)
    return path


def _checksummed(values: Array) -> Any:
    """An array that HDF5 stores with a checksum per chunk."""
    from hdmf.backends.hdf5 import H5DataIO  # with pynwb

    return H5DataIO(values, fletcher32=True) if values.size else values


def _exact_float32(values: Array) -> Array:
    """Samples in single precision where they are the same numbers in it."""
    small = values.astype(np.float32)
    return small if np.array_equal(small.astype(np.float64), values) else values.astype(np.float64)


def _names(session: Session) -> dict[tuple[str, str], str]:
    """Object names of sounds and features: their own where NWB allows them, else numbered."""
    made: dict[tuple[str, str], str] = {}
    keys = [("sounds", name) for name in session.sounds]
    keys += [(f"feature {feature}", name) for feature, values in session.features.items() for name in values]
    taken: set[str] = set()
    for number, (kind, name) in enumerate(keys):
        own = name if kind == "sounds" else f"{kind.removeprefix('feature ')} {name}"
        fits = _PLAIN_NAME.fullmatch(own) is not None and own.isprintable() and own not in taken
        made[kind, name] = own if fits else f"{kind.split()[0]}_{number:05d}"
        taken.add(made[kind, name])
    return made


def _record(session: Session, names: Mapping[tuple[str, str], str]) -> str:
    """What the standard parts do not hold, as sealed JSON text."""
    signal = session.signal
    tree = {
        "name": session.name,
        "species": session.species,
        "facts": session.facts,
        "exact": session.exact,
        "span_s": session.span_s,
        "unit_meta": session.unit_meta,
        "stim_meta": session.stim_meta,
        "report": [session.report.kept, session.report.skipped, session.report.notes],
        "units": None if session.spikes is None else list(session.spikes),
        "observed": {name: len(spans) for name, spans in session.observed.items()},
        "trials": {
            "stimulus": list(session.trials.stimulus),
            "condition": None if session.trials.condition is None else list(session.trials.condition),
            "offset": session.trials.offset_s is not None,
            "meta": session.trials.meta,
        },
        "sounds": [
            {
                "name": name,
                "object": names["sounds", name],
                "fs": str(Fraction(sound.fs)),
                "is_float": _is_float(sound.fs),
            }
            for name, sound in session.sounds.items()
        ],
        "features": [
            {
                "feature": feature,
                "name": name,
                "object": names[f"feature {feature}", name],
                "fs": None if one.fs is None else str(Fraction(one.fs)),
                "is_float": _is_float(one.fs),
                "frequencies_hz": None
                if one.frequencies_hz is None
                else np.asarray(one.frequencies_hz).tolist(),
            }
            for feature, values in session.features.items()
            for name, one in values.items()
        ],
        "signal": None
        if signal is None
        else {
            "channels": list(signal.channels),
            "bad_channels": list(signal.bad_channels),
            "fs": str(Fraction(signal.fs)),
            "is_float": _is_float(signal.fs),
            "start_s": signal.start_s,
            "unit": signal.unit,
            "n_bad": len(signal.bad_s),
        },
    }
    try:
        text = json.dumps({"deepSTRF": _FORMAT, **tree}, default=_plain)
    except TypeError as error:
        raise TypeError(f"session {session.name!r} cannot be written as NWB: {error}") from error
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "session": text})


def _is_float(rate: Any) -> bool:
    return not isinstance(rate, Fraction)


def _plain(value: Any) -> Any:
    """A metadata value as JSON knows it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(
        f"metadata are numbers, texts, lists and dictionaries, got {type(value).__name__}: {value!r:.80}"
    )


# ---- the parts


def _column(name: str, values: Any, description: str) -> Any:
    from hdmf.common import VectorData

    return VectorData(name=name, description=description, data=values)


def _indexed(name: str, parts: Sequence[Array], description: str, shape: tuple[int, ...] = (0,)) -> list[Any]:
    """A ragged column: the values of all rows one after the other, and where each row ends."""
    from hdmf.common import VectorIndex

    ends = np.cumsum([len(part) for part in parts], dtype=np.uint64) if parts else np.empty(0, np.uint64)
    values = _column(name, _checksummed(np.concatenate([np.empty(shape), *parts])), description)
    return [values, VectorIndex(name=f"{name}_index", data=ends, target=values)]


def _add_units(pynwb: Any, nwb: Any, session: Session) -> None:
    if session.spikes is None:
        return
    names = list(session.spikes)
    columns = _indexed(
        "spike_times", [np.asarray(t, np.float64) for t in session.spikes.values()], "spike times in s"
    )
    if session.observed:
        empty = np.empty((0, 2))
        spans = [np.asarray(session.observed.get(name, empty), np.float64).reshape(-1, 2) for name in names]
        columns += _indexed("obs_intervals", spans, "intervals in s in which the unit was observed", (0, 2))
    columns.append(_column("unit_name", names, "name of the unit"))
    columns += _free_columns([session.unit_meta.get(name, {}) for name in names], {"unit_name"})
    nwb.units = pynwb.misc.Units(
        name="units", description="units with spike times in s", id=list(range(len(names))), columns=columns
    )


def _free_columns(rows: Sequence[Mapping[str, Any]], taken: Iterable[str]) -> list[Any]:
    """Metadata that are texts throughout, or numbers, as columns for other readers."""
    found = []
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        plain = (
            isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w{0,60}", name) and not name.endswith("_index")
        )
        if not plain or name in _TAKEN or name in taken:
            continue
        if all(isinstance(value, str) for value in values):
            found.append(_column(name, [_text(str(value)) for value in values], name))
        elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            found.append(_column(name, np.array(values, dtype=np.float64), name))
    return found


def _text(value: str) -> str:
    """A text without null characters, which HDF5 does not hold; the record keeps it as it is."""
    return value.replace("\0", "\\0")


def _add_trials(pynwb: Any, nwb: Any, session: Session) -> None:
    trials = session.trials
    onset = np.asarray(trials.onset_s, dtype=np.float64)
    if trials.offset_s is not None:
        ends = np.asarray(trials.offset_s, dtype=np.float64)
    else:
        lengths = {
            name: sound.n_samples / float(sound.fs)
            for name, sound in session.sounds.items()
            if sound.n_samples is not None
        }
        ends = onset + np.array([lengths.get(name, np.nan) for name in trials.stimulus], dtype=np.float64)
    columns = [
        _column("start_time", _checksummed(onset), "onset of the sound in s"),
        _column("stop_time", _checksummed(ends), "end of the sound in s"),
        _column("stimulus", list(trials.stimulus), "sound that was played; empty: none"),
    ]
    if trials.condition is not None:
        columns.append(_column("condition", list(trials.condition), "condition"))
    rows = [dict(zip(trials.meta, values, strict=True)) for values in zip(*trials.meta.values(), strict=True)]
    columns += _free_columns(rows, ()) if len(rows) == len(onset) else []
    nwb.trials = pynwb.epoch.TimeIntervals(
        name="trials", description="presentations of sounds", id=list(range(len(onset))), columns=columns
    )


def _add_features(pynwb: Any, nwb: Any, session: Session, names: Mapping[tuple[str, str], str]) -> None:
    if not any(session.features.values()):
        return
    module = nwb.create_processing_module("stimulus_features", "features of the sounds, (time, rows)")
    bin_ms = session.exact.get("header", {}).get("dt_ms") if isinstance(session.exact, dict) else None
    for feature, values in session.features.items():
        for name, one in values.items():
            rate = float(one.fs) if one.fs is not None else 1000.0 / bin_ms if bin_ms else 1.0
            module.add(
                pynwb.TimeSeries(
                    name=names[f"feature {feature}", name],
                    description=f"{feature} of {name}",
                    data=_checksummed(np.ascontiguousarray(np.moveaxis(np.asarray(one.values), -1, 0))),
                    unit="arbitrary units",
                    rate=rate,
                    starting_time=0.0,
                )
            )


def _add_signal(pynwb: Any, nwb: Any, signal: Signal) -> None:
    data = np.asarray(signal.data[:, 0 : signal.data.shape[1]])
    nwb.add_acquisition(
        pynwb.TimeSeries(
            name="signal",
            description="continuous signal, (time, channels): " + ", ".join(signal.channels)[:1000],
            data=_checksummed(np.ascontiguousarray(data.T)),
            unit=signal.unit,
            rate=float(signal.fs),
            starting_time=float(signal.start_s),
        )
    )
    if len(signal.bad_s):
        spans = np.asarray(signal.bad_s, dtype=np.float64)
        columns = [
            _column("start_time", spans[:, 0], "begin in s"),
            _column("stop_time", spans[:, 1], "end in s"),
        ]
        nwb.invalid_times = pynwb.epoch.TimeIntervals(
            name="invalid_times",
            description="times without usable data",
            id=list(range(len(spans))),
            columns=columns,
        )


# ---- reading back


def read_record(file: Hdf5File) -> dict[str, Any] | None:
    """The record that `write_nwb` put into a file; None where there is none."""
    dataset = file.find(f"scratch/{_RECORD}")
    if dataset is None:
        return None
    with naming_damage(file.path, REMEDY):
        sealed = json.loads(file.texts(dataset)[0])
        text = sealed["session"]
        if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
            raise ValueError("the record of its session was changed since it was written")
        record: dict[str, Any] = json.loads(text)
        if record["deepSTRF"] != _FORMAT:
            raise ValueError(f"format {record['deepSTRF']!r}: install a newer deepSTRF")
    return record


def session_of_record(file: Hdf5File, record: Mapping[str, Any]) -> Session:
    """The session that `write_nwb` was given."""
    with naming_damage(file.path, REMEDY):
        trials = Table(file, _there(file, "intervals/trials"))
        stimulus, stated = [str(name) for name in record["trials"]["stimulus"]], record["trials"]
        if trials.n != len(stimulus):
            raise ValueError(f"{trials.n} trials, {len(stimulus)} were written")
        kept, skipped, notes = record["report"]
        session = Session(
            Trials(
                stimulus,
                trials.numbers("start_time"),
                trials.numbers("stop_time") if stated["offset"] else None,
                stated["condition"],
                stated["meta"],
            ),
            {row["name"]: _sound(file, row) for row in record["sounds"]},
            span_s=None
            if record["span_s"] is None
            else (float(record["span_s"][0]), float(record["span_s"][1])),
            unit_meta=record["unit_meta"],
            stim_meta=record["stim_meta"],
            name=record["name"],
            species=record["species"],
            facts=record["facts"],
            exact=record["exact"],
            report=LoadReport(list(kept), [tuple(one) for one in skipped], [tuple(one) for one in notes]),
        )
        features: dict[str, dict[str, Feature]] = {}
        for row in record["features"]:
            values = file.values(_there(file, f"processing/stimulus_features/{row['object']}/data"))
            hertz = row["frequencies_hz"]
            features.setdefault(row["feature"], {})[row["name"]] = Feature(
                np.ascontiguousarray(np.moveaxis(values, 0, -1)),
                _rate(row),
                None if hertz is None else np.asarray(hertz, dtype=np.float64),
            )
        session.features = features
        if record["units"] is not None:
            _read_units(file, session, record)
        if record["signal"] is not None:
            session.signal = _read_signal(file, record["signal"])
    return session


def _there(file: Hdf5File, path: str) -> Any:
    found = file.find(path)
    if found is None:
        raise ValueError(f"{path} is missing")
    return found


def _rate(row: Mapping[str, Any]) -> float | Fraction | None:
    if row["fs"] is None:
        return None
    rate = Fraction(row["fs"])
    return float(rate) if row["is_float"] else rate


def _sound(file: Hdf5File, row: Mapping[str, Any]) -> Sound:
    series = series_of(file, f"stimulus/templates/{row['object']}")
    rate = _rate(row)
    if series is None or rate is None or not series.shape:
        raise ValueError(f"the sound {row['name']!r} has no samples or no rate")
    return Sound(HDF5Samples(file.path, series), rate, series.shape[0], f"{file.path}:{series.path}")


def _read_units(file: Hdf5File, session: Session, record: Mapping[str, Any]) -> None:
    table = Table(file, _there(file, "units"))
    names = [str(name) for name in record["units"]]
    if table.n != len(names):
        raise ValueError(f"{table.n} units, {len(names)} were written")
    session.spikes = dict(zip(names, table.ragged("spike_times", range(table.n), "f"), strict=True))
    if record["observed"]:
        spans = dict(zip(names, table.ragged("obs_intervals", range(table.n), "f"), strict=True))
        if any(len(spans[name]) != n for name, n in record["observed"].items()):
            raise ValueError("other observation intervals than were written")
        session.observed = {name: spans[name].reshape(-1, 2) for name in record["observed"]}


def _read_signal(file: Hdf5File, row: Mapping[str, Any]) -> Signal:
    series = series_of(file, "acquisition/signal")
    rate = _rate(row)
    if series is None or rate is None or len(series.shape) != 2:
        raise ValueError("the signal has no values or no rate")
    bad = np.empty((0, 2))
    if row["n_bad"]:
        table = Table(file, _there(file, "intervals/invalid_times"))
        bad = np.stack([table.numbers("start_time"), table.numbers("stop_time")], axis=1)
    return Signal(
        HDF5Signal(file.path, series),
        rate,
        list(row["channels"]),
        float(row["start_s"]),
        row["unit"],
        bad,
        list(row["bad_channels"]),
    )
