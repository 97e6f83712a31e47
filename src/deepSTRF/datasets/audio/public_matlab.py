"""Readers of public recordings in MATLAB files (traces and units) and in files of MNE."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, naming_damage
from deepSTRF.datasets.audio.eeg import MneFormat
from deepSTRF.datasets.audio.matlab import elements, read_variables
from deepSTRF.datasets.audio.public_layouts import Reading, length_s
from deepSTRF.datasets.session import Floats, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import natural

__all__ = ["fif_subjects", "mat_traces", "mat_units"]

_REMEDY = "get the file again"


def _structs(value: Any) -> list[dict[str, Any]]:
    """The structs of a struct or struct array."""
    return [one for one in elements(value) if isinstance(one, dict)]


def _dig(tree: Any, name: str) -> Any:
    """The field of a name that is nearest to the top of nested structs."""
    level = _structs(tree)
    while level:
        for struct in level:
            if name in struct:
                return struct[name]
        level = [inner for struct in level for value in struct.values() for inner in _structs(value)]
    raise ValueError(f"it has no field {name!r}")


def _vector(value: Any) -> Floats:
    return np.asarray(value, dtype=np.float64).reshape(-1)


def _scalar(value: Any, what: str) -> float:
    values = _vector(value)
    if values.size != 1 or not np.isfinite(values).all():
        raise ValueError(f"{what} is {values[:5]}, not one number")
    return float(values[0])


def _text(value: Any) -> str:
    found = elements(value)
    return str(found[0]).strip() if len(found) == 1 and isinstance(found[0], str) else ""


# ---- traces of the membrane potential: a file per recording, sounds in MATLAB files

_SESSIONS = {"wehr": re.compile(r"\d{8}-mw-\d+"), "asari": re.compile(r"\d{8}-ha\d+-\d+")}
#: Types of triggers that are natural sounds, as they are written, without blanks.
_NATURAL, _MISSPELT = {"naturalsound", "natural", "nauralsound"}, "nauralsound"
#: A membrane potential beyond this is an artefact.
_ARTEFACT_MV = 150.0
#: Length of the ramps with which the segments of a sequence are joined.
_RAMP_S = 0.005


def mat_traces(reading: Reading, *, excluded: Mapping[int, str], of: int) -> Iterator[Session]:
    """One cell per folder of a session, one trace per file, with triggers in 1-based samples."""
    experimenter = reading.options["experimenter"]
    if experimenter not in _SESSIONS:
        raise ValueError(f"experimenter is one of {', '.join(map(repr, _SESSIONS))}, got {experimenter!r}")
    files: dict[str, list[Path]] = {}
    for path in reading.files():
        if path.suffix == ".mat" and _SESSIONS[experimenter].fullmatch(path.parent.name):
            files.setdefault(path.parent.name, []).append(path)
    if not files:
        raise reading.missing(f"a recording of {experimenter} (<date>-.../*.mat)")
    library = _Library(reading, experimenter)
    for index, cell in enumerate(sorted(files, key=natural)):
        is_numbered = experimenter == "wehr" and len(files) == of  # numbers count all cells
        if is_numbered and index in excluded and reading.options["exclude_unresponsive"]:
            reading.note("cells left out", f"{cell} (number {index}): {excluded[index]}")
            continue
        for path in files[cell]:
            with naming_damage(path, _REMEDY):
                session = _trace(reading, path, cell, library)
            if session is not None and reading.units_of(session):
                yield session


def _trace(reading: Reading, path: Path, cell: str, library: _Library) -> Session | None:
    tree = read_variables(path)
    response = _structs(_dig(tree, "response"))[0]
    meta = {"cell_id": cell, "session": cell, "area": "A1"}
    if library.experimenter == "asari":
        recording = _structs(_dig(tree, "recording"))[0]
        kind = _text(recording.get("type"))
        if "whole" not in kind.casefold():
            reading.note("recordings that are no whole-cell traces", f"{path.name}: {kind or 'not stated'}")
            return None
        meta["area"] = "A1" if "cortex" in _text(recording.get("site")).casefold() else "MGB"
    rate = _scalar(response["sf"], "response.sf")
    trace = _vector(response["trace"]) * _scalar(response["scale"], "response.scale")
    artefact = np.abs(trace) > _ARTEFACT_MV
    reading.note(f"samples beyond {_ARTEFACT_MV:g} mV", path.name, int(artefact.sum()))
    trace[artefact] = np.nan
    names, onsets = [], []
    sounds: dict[str, Sound] = {}
    for trigger in _structs(_dig(tree, "triggers")):
        kind = _text(trigger.get("type")).casefold().replace(" ", "")
        if kind not in _NATURAL:
            reading.note("triggers of other kinds", kind or "not stated")
            continue
        reading.note("fixes", f"{path.name}: trigger type {_MISSPELT!r}", int(kind == _MISSPELT))
        name, sound = library.sound_of(trigger)
        if sound is None:
            reading.note("trials without sound", f"{path.name}: {name}")
            continue
        sample = _scalar(trigger["time"], "triggers.time")
        if not 1 <= sample <= trace.size:
            raise ValueError(f"a trigger is at sample {sample:g} of {trace.size}")
        names.append(name)
        onsets.append((sample - 1.0) / rate)  # MATLAB counts from 1
        sounds[name] = sound
    if not names:
        reading.note("files without natural sounds", path.name)
        return None
    return Session(
        trials=Trials(names, np.array(onsets)),
        sounds=sounds,
        signal=Signal(trace[None], rate, [cell], unit="mV"),
        unit_meta={cell: meta},
        stim_meta={name: {"name": name} for name in names},
        span_s=(0.0, trace.size / rate),
        name=path.stem,
    )


class _Library:
    """Sounds of one experimenter: MATLAB files that triggers name."""

    def __init__(self, reading: Reading, experimenter: str) -> None:
        self.reading, self.experimenter = reading, experimenter
        own = reading.folder(experimenter)
        self.files: dict[str, Path] = {}
        for path in reading.files():
            parts = [part.casefold() for part in path.parts]
            if path.suffix == ".mat" and "stimuli" in parts and (own is None or path.is_relative_to(own)):
                self.files["/".join(parts[-2:])] = path
        self.described: dict[str, Path] | None = None
        self.sequences: dict[tuple[str, ...], Sound] = {}

    def sound_of(self, trigger: Mapping[str, Any]) -> tuple[str, Sound | None]:
        """Name and sound of a trigger."""
        param = (_structs(trigger.get("param")) or [{}])[0]
        text = _text(param.get("description"))
        if self.experimenter == "asari":
            return self._sequence(text, param)
        key = _key(_text(trigger.get("file")))
        path = self.files.get(key)
        if path is None and text:
            path = self._by_description().get(text)
        if path is None:
            return key or text or "a trigger without file", None
        sound = self.reading.made(path, lambda: self._sound(path))
        stated = param.get("duration")
        if stated is not None and abs(_scalar(stated, "duration") / 1000.0 - length_s(sound)) > 0.002:
            self.reading.note("sounds of another length than stated", path.name)
        return "/".join(path.with_suffix("").parts[-2:]), sound

    def _by_description(self) -> dict[str, Path]:
        if self.described is None:
            self.described = {}
            for path in self.files.values():
                with naming_damage(path, _REMEDY):
                    text = _text(_dig(read_variables(path, ["stimulus"]), "description"))
                self.described.setdefault(text, path)
        return self.described

    def _sound(self, path: Path) -> Sound:
        samples, rate = _stimulus(path)
        return Sound(lambda: _stimulus(path)[0], rate, samples.size, str(path))

    def _sequence(self, text: str, param: Mapping[str, Any]) -> tuple[str, Sound | None]:
        """A sequence of segments: 'Sequence N: 2 1 3', 1-based numbers of the files in ``param.stimulus``."""
        listed = [_key(_text(struct.get("file"))) for struct in _structs(param.get("stimulus"))]
        numbers = [int(word) for word in re.findall(r"\d+", text.partition(":")[2])]
        if not numbers or not all(1 <= number <= len(listed) for number in numbers):
            raise ValueError(f"the sequence {text!r} does not number {len(listed)} files from 1")
        files = tuple(listed[number - 1] for number in numbers)
        name = "+".join(file.removesuffix(".mat") for file in files)
        paths = [self.files.get(file) for file in files]
        if files not in self.sequences and None not in paths:
            segments = [self.reading.made(p, lambda p=p: self._sound(p)) for p in paths if p is not None]  # type: ignore[misc]
            self.sequences[files] = _joined(segments, name)
        return name, self.sequences.get(files)


def _key(file: str) -> str:
    """The last two parts of a path, with slashes of any system, in lower case: 'fragments/3.mat'."""
    return "/".join(re.split(r"[\\/]", file.strip().casefold())[-2:])


def _stimulus(path: Path) -> tuple[Floats, float]:
    with naming_damage(path, _REMEDY):
        stimulus = _structs(read_variables(path, ["stimulus"])["stimulus"])[0]
        samples = _vector(stimulus["samples"] if "samples" in stimulus else stimulus["sample"])
        return samples, _scalar(_dig(stimulus["param"], "sf"), "stimulus.param.sf")


def _joined(segments: Sequence[Sound], name: str) -> Sound:
    """Segments one after the other, each with ramps at its ends."""
    rate = segments[0].fs
    if any(segment.fs != rate for segment in segments):
        raise ValueError(f"the segments of {name} have different rates")

    def read() -> npt.NDArray[Any]:
        parts = []
        for segment in segments:
            samples = np.array(segment.read(), dtype=np.float64)
            n_ramp = min(round(_RAMP_S * float(rate)), samples.size // 2)
            ramp = np.sin(0.5 * np.pi * (np.arange(n_ramp) + 0.5) / max(1, n_ramp)) ** 2
            samples[:n_ramp] *= ramp
            samples[samples.size - n_ramp :] *= ramp[::-1]
            parts.append(samples)
        return np.concatenate(parts)

    return Sound(read, rate, sum(segment.n_samples or 0 for segment in segments), name)


# ---- spike times per unit, stimuli by code

_UNIT = re.compile(
    r"(?P<animal>[A-Za-z])_(?P<session>.+)_Ch(?P<channel>\d+)(?P<suffix>p|s2|ps2)?_MUspk?\.mat"
)
_SETS = {"timit": "timitStimcode", "calls": "mVocStimcode"}
_CORE = {"A1", "R"}


def mat_units(
    reading: Reading, *, test: Mapping[str, Sequence[int]], areas: Mapping[str, str]
) -> Iterator[Session]:
    """A file per channel with spike times and trials in s of the recording; sessions are folders."""
    chosen = reading.options["stimuli"]
    if chosen not in _SETS:
        raise ValueError(f"stimuli is one of {', '.join(map(repr, _SETS))}, got {chosen!r}")
    area_of = {session: area for area, sessions in areas.items() for session in sessions.split()}
    files: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in reading.files():
        match = _UNIT.fullmatch(path.name)
        if match is None:
            continue
        session = path.parent.name
        area = area_of.get(session)
        meta = {
            "cell_id": f"{match['animal']}_{session}_Ch{match['channel']}{match['suffix'] or ''}",
            "animal": match["animal"], "session": session, "site": session, "area": area,
            "field": None if area is None else "core" if area in _CORE else "non-primary",
        }  # fmt: skip
        if reading.unit(meta):
            files.setdefault(session, []).append((path, meta))
    if not files and not reading.seen:
        raise reading.missing("a file sessions/<yymmdd>/*_Ch*_MUspk.mat")
    sounds = _sentences(reading) if chosen == "timit" else _calls(reading)
    for session, units in files.items():
        yield from _unit_session(reading, session, units, sounds, _SETS[chosen], set(test[chosen]))


def _unit_session(
    reading: Reading,
    session: str,
    units: Sequence[tuple[Path, dict[str, Any]]],
    sounds: Mapping[int, Sound],
    field: str,
    test: set[int],
) -> Iterator[Session]:
    """Units of one folder; those with the same table of trials share a session."""
    groups: dict[bytes, tuple[Floats, Floats, dict[str, Floats], dict[str, dict[str, Any]]]] = {}
    for path, meta in units:
        with naming_damage(path, _REMEDY):
            tree = read_variables(path, ["spike", "trial"])
            trial = _structs(tree["trial"])
            onsets = np.concatenate([_vector(one["stimon"]) for one in trial])
            codes = np.concatenate([_vector(one[field]) for one in trial])
            times = np.concatenate([_vector(one["spktimes"]) for one in _structs(tree["spike"])])
            if len(onsets) != len(codes):
                raise ValueError(f"it has {len(onsets)} onsets and {len(codes)} codes")
            if not np.isfinite(times).all():
                raise ValueError("a spike time is no finite number")
            key = onsets.tobytes() + codes.tobytes()
        group = groups.setdefault(key, (onsets, codes, {}, {}))
        group[2][meta["cell_id"]], group[3][meta["cell_id"]] = np.sort(times), meta
    for onsets, codes, spikes, metas in groups.values():
        rows = np.flatnonzero(codes > 0)  # 0 is a trial of another set
        missing = {int(code) for code in codes[rows]} - set(sounds)
        if missing:
            reading.note("trials without sound", f"{session}: codes {sorted(missing)[:5]}", len(missing))
        rows = np.array([row for row in rows if int(codes[row]) in sounds], dtype=np.int64)
        if not rows.size:
            reading.note("sessions without these stimuli", session)
            continue
        names = [f"{int(codes[row]):03d}" for row in rows]
        shown = {name: sounds[int(name)] for name in dict.fromkeys(names)}
        made = Session(
            trials=Trials(names, onsets[rows]),
            sounds=shown,
            spikes=spikes,
            unit_meta=metas,
            stim_meta={
                name: {"name": name, "code": int(name), "split": "test" if int(name) in test else "train"}
                for name in shown
            },
            name=session,
        )
        _leave_out_dead_trials(reading, made)
        yield made


def _leave_out_dead_trials(reading: Reading, session: Session) -> None:
    """Presentations without a spike on any of several channels were not recorded."""
    spikes = session.spikes or {}
    if len(spikes) < 2:
        return
    every = np.sort(np.concatenate(list(spikes.values())))
    starts = np.asarray(session.trials.onset_s)
    ends = starts + np.array([length_s(session.sounds[name]) for name in session.trials.stimulus])
    dead = np.searchsorted(every, starts) == np.searchsorted(every, ends)
    if dead.any() and not dead.all():
        reading.note("presentations without a spike on any channel", session.name, int(dead.sum()))
        kept = np.flatnonzero(~dead).tolist()
        session.trials = Trials([session.trials.stimulus[k] for k in kept], starts[kept])
        session.sounds = {name: session.sounds[name] for name in dict.fromkeys(session.trials.stimulus)}


def _sentences(reading: Reading) -> dict[int, Sound]:
    """Sentences by their 1-based code, without the silence at their ends."""
    path = reading.file("out_sentence_details_timit_all_loudness.mat")
    if path is None:
        raise reading.missing("stimuli/out_sentence_details_timit_all_loudness.mat")
    sounds = {}
    with naming_damage(path, _REMEDY):
        for code, entry in enumerate(_structs(read_variables(path, ["sentdet"])["sentdet"]), start=1):
            rate = _scalar(entry["soundf"], "soundf")
            before, after = _vector(entry["befaft"])
            samples = _vector(entry["sound"])
            cut = samples[round(before * rate) : samples.size - round(after * rate)]
            sounds[code] = Sound(lambda cut=cut: cut, rate, cut.size, f"{path.name}: {code}")  # type: ignore[misc]
    return sounds


def _calls(reading: Reading) -> dict[int, Sound]:
    """Calls by code, cut out of one long file; of slots of different lengths the shortest counts."""
    path, wav = reading.file("SqMoPhys_MVOCStimcodes.mat"), reading.file("MonkVocs_15Blocks.wav")
    if path is None or wav is None:
        raise reading.missing("stimuli/SqMoPhys_MVOCStimcodes.mat and stimuli/MonkVocs_15Blocks.wav")
    with naming_damage(path, _REMEDY):
        tree = read_variables(path)
        codes, onsets = _vector(_dig(tree, "mVocsStimCodes")), _vector(_dig(tree, "mVocsStimOnTimes"))
        if len(codes) != len(onsets) or (np.diff(onsets) <= 0).any():
            raise ValueError(f"it has {len(codes)} codes and {len(onsets)} onsets, which must ascend")
    whole = reading.sound(wav)
    rate = float(whole.fs)
    edges = np.append(onsets, (whole.n_samples or 0) / rate)
    slots: dict[int, list[tuple[float, float]]] = {}
    for code, start, end in zip(codes, edges[:-1], edges[1:], strict=True):
        if code > 0:
            slots.setdefault(int(code), []).append((float(start), float(end - start)))
    uneven = [code for code, found in slots.items() if np.ptp([length for _, length in found]) > 1e-3]
    reading.note("calls in slots of different lengths", "the shortest counts", len(uneven))
    samples = np.asarray(whole.read(), dtype=np.float32)
    samples = samples[:, 0] if samples.ndim == 2 else samples  # the second channel is no sound
    sounds = {}
    for code, found in slots.items():
        first = round(found[0][0] * rate)
        piece = samples[first : first + int(min(length for _, length in found) * rate + 1e-6)]
        if not piece.size:
            raise DamagedFileError(f"{wav} ends before call {code} at {found[0][0]:g} s; {_REMEDY}")
        sounds[code] = Sound(lambda piece=piece: piece, whole.fs, piece.size, f"{wav.name}: {code}")  # type: ignore[misc]
    return sounds


# ---- EEG: a FIF file per subject, sounds by the text of annotations

_SUBJECT = re.compile(r"(?P<subject>S\d+)_.*-raw\.fif")
_NO_EEG = {"veog", "heog", "aux5", "aud", "aux"}


def fif_subjects(reading: Reading) -> Iterator[Session]:
    """One file per subject; each channel of each subject is a neuron."""
    paths = [path for path in reading.files() if _SUBJECT.fullmatch(path.name)]
    if not paths:
        raise reading.missing("a file eeg/S<nn>/S<nn>_alice-raw.fif")
    place = reading.need_folder("stimuli")
    waves = {
        path.stem: path for path in reading.files() if path.suffix.lower() == ".wav" and path.parent == place
    }
    names = "|".join(map(re.escape, waves))
    for path in paths:
        match = _SUBJECT.fullmatch(path.name)
        subject = match["subject"] if match else path.stem
        if not reading.unit({"cell_id": subject, "animal": subject, "area": reading.record.area}):
            continue
        for session in MneFormat(path).sessions(
            onsets="annotations", sounds=str(place), match=rf"\s*({names})\s*"
        ):
            if len(session.trials):
                yield _subject(reading, session, subject, waves)
            else:
                reading.note("subjects without segments", subject)


def _subject(reading: Reading, session: Session, subject: str, waves: Mapping[str, Path]) -> Session:
    """A session whose channels have the names of neurons, with the sounds that all subjects share."""
    shown = list(dict.fromkeys(session.trials.stimulus))
    missing = sorted(set(waves) - set(shown), key=natural)
    if missing:
        reading.note("segments that a subject lacks", f"{subject}: {', '.join(missing)}", len(missing))
    signal = session.signal
    if signal is None:
        raise ValueError(f"{subject} holds no signal")
    units = {channel: f"{subject}-{channel}" for channel in signal.channels}
    others = [channel for channel in units if channel.casefold() in _NO_EEG]
    reading.note("channels that are no EEG", f"{subject}: {', '.join(others)}", len(others))
    bads = [units[channel] for channel in {*signal.bad_channels, *others} if channel in units]
    session.signal = dataclasses.replace(signal, channels=list(units.values()), bad_channels=bads)
    session.unit_meta = {
        unit: {
            **session.unit_meta.get(channel, {}),
            "cell_id": unit,
            "animal": subject,
            "channel": channel,
            "area": reading.record.area,
        }
        for channel, unit in units.items()
    }
    session.sounds = {name: reading.sound(waves[name]) for name in shown}
    session.stim_meta = {name: {"name": name} for name in shown}
    session.name = subject
    return session
