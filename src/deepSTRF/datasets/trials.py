"""Sessions with spike times to a dataset: clips, repeats and counts on exact half-open bins.

A clip is a sound with the silence asked for before and after it; its repeats are the presentations of the
sound, in the order of their onsets. Spikes are counted in `deepSTRF.datasets.counting`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepSTRF._text import printable
from deepSTRF._validation import check_choice, check_flag, check_memory, check_positive_int, first_names
from deepSTRF.datasets import alignment
from deepSTRF.datasets.clocks import (
    check_lengths,
    check_seconds,
    check_whole,
    duration_drift,
    far_apart,
    silent_ends,
)
from deepSTRF.datasets.counting import TOLERANCE_S, Plan, Shown, count_spikes, note_odd, row_names
from deepSTRF.datasets.download import cache_dir
from deepSTRF.datasets.features import ComputedFeatures, StimulusFeatures
from deepSTRF.datasets.from_arrays import DEFAULT_BANDS, LEVELS, set_level
from deepSTRF.datasets.recording import LoadReport, Stimulus, StimulusList
from deepSTRF.datasets.responses import ClipResponses, ResponseStorage
from deepSTRF.datasets.session import Session, sound_hash
from deepSTRF.datasets.sounds import (
    bins_of,
    choose_rate,
    exact_bin,
    exact_rate,
    find_name,
    mono,
    natural,
    place,
    resampled,
    whole_bins,
)
from deepSTRF.datasets.stored import Scratch

__all__ = ["Presented", "dataset_of", "fill_from_sessions", "finish", "presented"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

#: Counts beyond this size go to temporary files, unless all is to stay in memory.
MEMORY_BYTES = 1 << 28
#: Of so many spikes at least this share is in clips, where sounds are not rare.
_FEW_SPIKES, _SHARE_INSIDE = 20, 0.01
#: Stimuli that are none, where no sound has that name.
BLANKS = {"", "blank", "silence", "silent", "catch", "none", "no stimulus", "nostim", "no_stim", "spont"}


# ---- what is noted


class _Notes:
    """Findings by topic, so that a report has one note per topic however many sessions there are."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[str, int]]] = {}

    def add(self, topic: str, text: str, count: int = 1) -> None:
        if count:
            self.found.setdefault(topic, []).append((text, count))

    def write(self, report: LoadReport) -> None:
        for topic, entries in self.found.items():
            texts = [text for text, _ in entries]
            more = f"; and {len(texts) - 5} more" if len(texts) > 5 else ""
            report.note(topic, "; ".join(texts[:5]) + more, sum(count for _, count in entries))


# ---- the engine


@dataclass(eq=False)
class _Clip:
    """One clip of the dataset: a stimulus (and condition) with its presentations."""

    name: str
    meta: dict[str, Any]
    content: _Content | None  # None: silence
    shown: list[tuple[int, int]] = field(default_factory=list)  # session, place in its presentations
    n_bins: int = 0  # of the sound, without silence before and after

    def by_session(self) -> dict[int, list[int]]:
        """Its presentations in each session."""
        shown: dict[int, list[int]] = {}
        for i, k in self.shown:
            shown.setdefault(i, []).append(k)
        return shown


@dataclass(eq=False)
class _Content:
    """What was presented: a sound at the dataset's rate, or features on its bins."""

    digest: str
    values: npt.NDArray[np.float32]  # of a sound
    n_bins: int
    duration_s: Fraction
    names: list[str] = field(default_factory=list)
    features: StimulusFeatures | None = None  # in place of values


@dataclass(frozen=True)
class _Choices:
    dt: Fraction
    n_before: int
    n_after: int
    clip: str
    by_condition: bool
    on_missing_sound: str
    on_overlap: str
    on_equal_sounds: str
    on_partly_observed: str
    on_blank: str
    channel: int | str | None
    words: tuple[str, ...]
    spectrogram: Mapping[str, Any]

    @property
    def bin_s(self) -> Fraction:
        return self.dt / 1000


@dataclass(eq=False)
class Presented:
    """Clips of sessions with their presentations, for which responses are to be read."""

    sessions: Sequence[Session]
    shown: list[Shown]  # one per session
    clips: list[_Clip]
    choices: _Choices
    notes: _Notes
    level: str


def presented(
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
    on_partly_observed: str = "missing",
    on_blank: str = "skip",
    features: Sequence[str] = (),
    spectrogram: Mapping[str, Any] | None = None,
) -> Presented:
    """Which stimulus was presented when; rate and bin of the dataset are set.

    ``features`` are words of features that are computed from the sounds (`deepSTRF.datasets.features`), the
    stimuli in place of waveforms; ``spectrogram`` holds arguments of their spectrogram.
    """
    _check_choices(
        by_condition=by_condition, clip=clip, level=level, on_missing_sound=on_missing_sound,
        on_overlap=on_overlap, on_equal_sounds=on_equal_sounds, on_partly_observed=on_partly_observed,
        on_blank=on_blank,
    )  # fmt: skip
    if not sessions:
        raise ValueError("there is no session to make a dataset of")
    notes = _Notes()
    for session in sessions:
        ds.load_report.kept += session.report.kept
        ds.load_report.skipped += session.report.skipped
        ds.load_report.notes += session.report.notes
    dt = exact_bin(dt_ms)
    for session in sessions:
        stored = float(session.facts.get("bin_ms") or dt)
        per_bin = float(dt) / stored
        if round(per_bin) < 1 or abs(per_bin - round(per_bin)) > 1e-6 * per_bin:
            raise ValueError(
                f"{session.name} holds counts in bins of {stored:g} ms, so dt_ms is a whole multiple of it; "
                f"got {float(dt):g}"
            )
    choices = _Choices(
        dt, whole_bins("pre_ms", pre_ms, dt), whole_bins("post_ms", post_ms, dt), clip, by_condition,
        on_missing_sound, on_overlap, on_equal_sounds, on_partly_observed, on_blank, channel, tuple(features),
        dict(spectrogram or {}),
    )  # fmt: skip
    shown = [_presentations(session, i, sessions, choices, ds.load_report, notes)
             for i, session in enumerate(sessions)]  # fmt: skip
    contents, choices = _contents(ds, shown, choices, audio_fs, notes)
    clips = _clips(shown, contents, choices, notes)
    _set_windows(shown, clips, choices, ds.load_report, notes)
    clips = [one for one in clips if one.shown]
    if not clips:
        raise ValueError(_nothing_left(ds.load_report, notes))
    return Presented(sessions, shown, clips, choices, notes, level)


def fill_from_sessions(
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
    on_empty_unit: str = "keep",
    on_partly_observed: str = "missing",
    on_blank: str = "skip",
    features: Sequence[str] = (),
    spectrogram: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> None:
    """Put sessions with spikes into an empty `AudioNeuralDataset`, which is not validated here.

    ``features`` are words of features that stand for waveforms, see `presented`; with a ``cache`` (see
    `dataset_of`) counts and stimuli go to temporary files, one clip at a time.
    """
    check_choice("on_empty_unit", on_empty_unit, CHOICES["on_empty_unit"])
    for session in sessions:
        if session.spikes is None:
            raise ValueError(f"session {session.name!r} holds a signal, not spikes; use from_continuous")
    found = presented(
        ds, sessions, dt_ms=dt_ms, audio_fs=audio_fs, channel=channel, pre_ms=pre_ms, post_ms=post_ms,
        clip=clip, by_condition=by_condition, level=level, on_missing_sound=on_missing_sound,
        on_overlap=on_overlap, on_equal_sounds=on_equal_sounds, on_partly_observed=on_partly_observed,
        on_blank=on_blank, features=features, spectrogram=spectrogram,
    )  # fmt: skip
    units = _units(sessions, on_empty_unit, ds.load_report, found.notes)
    for i, part in enumerate(found.shown):
        _note_clocks(part, found.clips, i, found.choices, found.notes)
    asked, note = found.choices, found.notes.add
    keep = asked.on_partly_observed == "keep"
    plans = [Plan(part, units, asked.bin_s, note, n_before=asked.n_before, keep_partly=keep)
             for part in found.shown]  # fmt: skip
    shown = [one.by_session() for one in found.clips]
    around = asked.n_before + asked.n_after
    size = sum((around + one.n_bins) * sum(len(k) for k in places.values())
               for places, one in zip(shown, found.clips, strict=True)) * len(units)  # fmt: skip
    scratch = None
    if cache is not None and (cache != "auto" or size > MEMORY_BYTES):
        scratch = Scratch(cache_dir("recordings"))
    responses = []
    for places, one in zip(shown, found.clips, strict=True):
        counted = count_spikes(places, around + one.n_bins, plans)
        responses.append(counted if scratch is None else counted.stored_in(scratch.put(counted.rows())))
    named = [(one.name, places) for one, places in zip(found.clips, shown, strict=True)]
    note_odd(named, responses, plans, units, note)
    ds.response_kind = "counts"
    finish(ds, found, responses, {unit: _unit_meta(unit, sessions) for unit in units})
    if scratch is not None:
        ds._stims = StimulusList(
            [Stimulus(scratch.put(one.values.numpy())) for one in ds._stims.stimuli], ds._stims.transforms
        )


def finish(
    ds: Any, found: Presented, responses: Sequence[ClipResponses], units: Mapping[str, dict[str, Any]]
) -> None:
    """Put clips, their responses and the metadata of units by name into a dataset."""
    clips, sessions, choices, notes = found.clips, found.sessions, found.choices, found.notes
    for one, heard in zip(clips, responses, strict=True):
        if not heard.heard.size:
            ds.load_report.skip(one.name, "no unit was observed during its presentations")
    kept = [k for k, given in enumerate(responses) if given.heard.size]
    if not kept:
        raise ValueError(_nothing_left(ds.load_report, notes))
    ds.stims = [torch.from_numpy(_stimulus(clips[k], ds, choices, notes)) for k in kept]
    if ds.features:
        ds._update_bands()
    dt = choices.dt
    ds._storage = ResponseStorage([responses[k] for k in kept], len(units))
    ds.N_neurons = len(units)
    ds.stim_meta = [clips[k].meta for k in kept]
    ds.nrn_meta = list(units.values())
    if choices.n_before or choices.n_after:
        ds.facts |= {"pre_ms": float(choices.n_before * dt), "post_ms": float(choices.n_after * dt)}
    for session in sessions:
        ds.facts |= session.facts
    ds.level, ds.level_factor = "raw", 1.0
    if ds.return_waveform:
        ds.level, ds.level_factor = found.level, set_level(ds._stims.raw(), found.level)
    elif found.level != "raw":
        raise ValueError(f"level={found.level!r} is for waveforms; these stimuli are features")
    ds.load_report.kept += units
    notes.write(ds.load_report)


#: Legal words of each choice, the default first.
CHOICES = {
    "clip": ("sound", "offset"),
    "level": LEVELS,
    "on_missing_sound": ("skip", "error"),
    "on_overlap": ("keep", "skip", "error"),
    "on_equal_sounds": ("merge", "keep", "error"),
    "on_empty_unit": ("keep", "drop", "error"),
    "on_partly_observed": ("missing", "keep"),
    "on_blank": ("skip", "silence", "error"),
}


def _check_choices(*, by_condition: bool, **given: str) -> None:
    for name, value in given.items():
        check_choice(name, value, CHOICES[name])
    check_flag("by_condition", by_condition)


def dataset_of(
    kind: Any,
    sessions: Sequence[Session],
    *,
    dt_ms: Any,
    name: str | None = None,
    species: str | None = None,
    hearing_range_hz: tuple[float, float] | None = None,
    F: int | None = None,
    check_alignment: bool = True,
    cache: str | os.PathLike[str] | None = "auto",
    fill: Callable[..., None] = fill_from_sessions,
    **choices: Any,
) -> Any:
    """Dataset of sessions, of class ``kind``; ``choices`` are those of ``fill``, the engine for spikes.

    ``cache``: None keeps all in memory, "auto" uses temporary files where counts exceed `MEMORY_BYTES`, a
    path is the folder that the recording is written to.
    """
    ds = kind._blank(float(dt_ms) if isinstance(dt_ms, Fraction) else dt_ms)
    if F is not None:
        ds.F = check_positive_int("F", F)
    ds.hearing_range_hz = hearing_range_hz
    ds.species = species or next((one.species for one in sessions if one.species), None)
    ds.name = name or "+".join(dict.fromkeys(one.name for one in sessions))
    more = {"cache": cache} if fill is fill_from_sessions else {}
    fill(ds, sessions, dt_ms=dt_ms, **more, **choices)
    ds.validate()
    if check_alignment:
        alignment.check_alignment(ds, warn_unclear=False)
    return ds if cache in (None, "auto") else ds.mapped(cache)


def _nothing_left(report: LoadReport, notes: _Notes) -> str:
    reasons = [f"{name}: {reason}" for name, reason in report.skipped[:4]]
    reasons += [f"{topic}: {entries[0][0]}" for topic, entries in list(notes.found.items())[:4]]
    text = f"no presentation of a sound is left ({printable('; '.join(reasons)) or 'the trials are empty'})"
    named = "; where names differ, sounds={<name in the trials>: <file>, ...} says which sound each is"
    return text + (named if "trials without sound" in notes.found else "")


# ---- presentations


def _presentations(
    session: Session,
    index: int,
    sessions: Sequence[Session],
    choices: _Choices,
    report: LoadReport,
    notes: _Notes,
) -> Shown:
    """The trials of a session whose stimulus is there, by onset; what is left out is noted."""
    trials = session.trials
    label = session.name if len(sessions) == 1 else f"{session.name} (session {index + 1})"
    onset = np.asarray(trials.onset_s, dtype=np.float64).reshape(-1)
    offset = np.full(len(onset), np.nan) if trials.offset_s is None else np.asarray(trials.offset_s, float)
    if not len(trials) == len(onset) == len(offset):
        raise ValueError(f"{label}: {len(trials)} stimuli, {len(onset)} onsets, {len(offset)} offsets")
    if np.isinf(onset).any() or np.isinf(offset).any():
        raise ValueError(f"{label}: an onset or offset is infinite")
    wrong = np.flatnonzero(offset < onset)
    if wrong.size:
        raise ValueError(
            f"{label}: trial {wrong[0]} ends at {offset[wrong[0]]:g} s, before its onset at "
            f"{onset[wrong[0]]:g} s"
        )
    if choices.by_condition and trials.condition is None:
        raise ValueError("by_condition=True needs a column of conditions: columns={'condition': '...'}")
    known = list(session.sounds) or list(dict.fromkeys(n for f in session.features.values() for n in f))
    places = {name: find_name(name, known, "stimulus") for name in dict.fromkeys(map(str, trials.stimulus))}
    kept, names, missing, blank, timeless = [], [], Counter[str](), [], []
    seen: dict[tuple[str, str, float], int] = {}
    twice = []
    for row in np.argsort(onset, kind="stable").tolist():
        name, place = str(trials.stimulus[row]), places[str(trials.stimulus[row])]
        if np.isnan(onset[row]):
            timeless.append(row)
            continue
        if place is None and name.strip().casefold() in BLANKS:
            blank.append(row)
            if choices.on_blank != "silence":
                continue
            place = ""
        if place is None:
            missing[name] += 1
            report.skip(f"{label}, trial {row}", f"there is no sound {name!r}")
            continue
        condition = str(trials.condition[row]) if choices.by_condition and trials.condition else ""
        if seen and (place, condition, onset[row]) in seen:
            twice.append(row)
            continue
        seen[place, condition, onset[row]] = row
        kept.append(row)
        names.append(place)
    _note_left_out(label, known, names, missing, blank, timeless, twice, choices, report, notes)
    rows = np.array(kept, dtype=np.int64)
    conditions = [str(trials.condition[r]) if trials.condition is not None else "" for r in kept]
    return Shown(session, label, rows, onset[rows], known, (offset - onset)[rows], names, conditions)


def _note_left_out(
    label: str,
    known: Sequence[str],
    names: Sequence[str],
    missing: Counter[str],
    blank: Sequence[int],
    timeless: Sequence[int],
    twice: Sequence[int],
    choices: _Choices,
    report: LoadReport,
    notes: _Notes,
) -> None:
    if missing:
        text = f"{label}: {sum(missing.values())} trials of {_listed(missing)}"
        if choices.on_missing_sound == "error":
            raise ValueError(
                f"trials without sound: {text}; sounds are {_listed(known)}; give the sounds, or leave "
                "those trials out with on_missing_sound='skip'"
            )
        notes.add("trials without sound", text, sum(missing.values()))
    unused = [name for name in known if name not in set(names)]
    if unused:
        notes.add("sounds without trials", f"{label}: {_listed(unused)}", len(unused))
    if blank and choices.on_blank == "error":
        raise ValueError(f"{label}: trial {blank[0]} has no stimulus; on_blank='skip' or 'silence' takes it")
    if blank:
        done = "one silent clip" if choices.on_blank == "silence" else "left out"
        notes.add("blank trials", f"{label}: {len(blank)}, {done}", len(blank))
    for rows, topic, why in (
        (timeless, "trials without onset", "has no onset"),
        (twice, "duplicate trials", "is listed twice with one onset"),
    ):
        for row in rows:
            report.skip(f"{label}, trial {row}", f"it {why}")
        if rows:
            notes.add(topic, f"{label}: {row_names(rows)}", len(rows))


def _listed(names: Any) -> str:
    return first_names([printable(str(name), longest=60) for name in names])


# ---- stimuli


def _contents(
    ds: Any, shown: Sequence[Shown], choices: _Choices, audio_fs: Any, notes: _Notes
) -> tuple[dict[tuple[int, str], _Content], _Choices]:
    """What was presented, by session and name: each sound read once; sets rate and bin of the dataset."""
    used = [(i, name) for i, part in enumerate(shown) for name in part.known if name in set(part.name)]
    kinds = {bool(part.session.sounds) for part in shown}
    if len(kinds) > 1:
        raise ValueError("some sessions have sounds and others features; make one dataset of each")
    order = {tuple(part.session.features) for part in shown}
    if len(order) > 1:
        raise ValueError(f"sessions have different features: {' and '.join(map(str, sorted(order)))}")
    if kinds == {False} or choices.words or order != {()}:
        return _features(ds, shown, used, choices, audio_fs, notes), choices
    rates = [exact_rate(shown[i].session.sounds[name].fs, f"the rate of {name!r}") for i, name in used]
    if not rates:
        raise ValueError(_nothing_left(ds.load_report, notes))
    rate, dt, _ = choose_rate(rates, choices.dt, audio_fs)
    if dt != choices.dt:
        text = f"{float(choices.dt):.10g} ms became {float(dt):.10g} ms, whole samples at {_hertz(rate)} Hz"
        notes.add("bin width", text)
        choices = _Choices(**{**choices.__dict__, "dt": dt})
    ds.dt, ds.return_waveform, ds.F = float(dt), True, ds.F or DEFAULT_BANDS
    ds.audio_fs = int(rate) if rate.denominator == 1 else float(rate)
    for (i, _), fs in zip(used, rates, strict=True):
        shown[i].sample_s = max(shown[i].sample_s, float(1 / fs))
    seconds = sum(
        (shown[i].session.sounds[n].n_samples or 0) / fs for (i, n), fs in zip(used, rates, strict=True)
    )
    check_memory(float(4 * rate * seconds), f"sounds of {float(seconds):.0f} s at audio_fs={_hertz(rate)} Hz")
    by_sound: dict[int, _Content] = {}
    by_digest: dict[str, _Content] = {}
    contents, stereo, changed = {}, [], Counter[Fraction]()
    for (i, name), fs in zip(used, rates, strict=True):
        sound = shown[i].session.sounds[name]
        if id(sound) not in by_sound:
            raw = sound.read()
            if np.ndim(raw) == 2 and np.shape(raw)[1] > 1:
                stereo.append(name)
            samples = mono(raw, choices.channel, name)
            digest = sound_hash(samples, fs)
            if digest not in by_digest:
                values = resampled(samples, fs, rate)
                n_bins = bins_of(len(samples), fs, dt)
                by_digest[digest] = _Content(digest, values, n_bins, Fraction(len(samples)) / fs)
                changed[fs] += fs != rate
            by_sound[id(sound)] = by_digest[digest]
        contents[i, name] = by_sound[id(sound)]
        if name not in contents[i, name].names:
            contents[i, name].names.append(name)
    if stereo:
        chosen = "their mean" if choices.channel == "mean" else f"channel {choices.channel}"
        notes.add("stereo sounds", f"{chosen} of {_listed(stereo)}", len(stereo))
    for fs, count in changed.items():
        notes.add("resampled sounds", f"{count} from {_hertz(fs)} to {_hertz(rate)} Hz", count)
    return contents, choices


def _hertz(rate: Fraction) -> str:
    return f"{float(rate):.12g}"


def _features(
    ds: Any,
    shown: Sequence[Shown],
    used: Sequence[tuple[int, str]],
    choices: _Choices,
    audio_fs: Any,
    notes: _Notes,
) -> dict[tuple[int, str], _Content]:
    """Named features on the bins of the dataset: those that are given, after those computed from sounds."""
    if audio_fs is not None:
        raise ValueError("audio_fs is the rate of waveforms, and these stimuli are features")
    given = any(part.session.features for part in shown)
    if given and (choices.n_before or choices.n_after or choices.clip == "offset"):
        raise ValueError(
            "pre_ms, post_ms and clip='offset' are for sounds, whose silence is zeros; what features are "
            "outside their stimulus is unknown: give features that are as long as the clips"
        )
    sounding = any(part.session.sounds for part in shown)
    words = choices.words or (("spectrogram",) if sounding else ())
    if words and not sounding:
        raise ValueError(f"features={list(words)} are computed from sounds, and there are none")
    ds.dt = float(choices.dt)
    computed = ComputedFeatures(words, choices.dt, choices.spectrogram)
    contents: dict[tuple[int, str], _Content] = {}
    by_digest: dict[str, _Content] = {}
    for i, name in used:
        made = StimulusFeatures(shown[i].session, name, computed, choices.channel, notes.add)
        one = _Content(made.digest, np.empty(0, np.float32), made.n_bins, made.duration_s, features=made)
        one = contents[i, name] = by_digest.setdefault(one.digest, one)
        if name not in one.names:
            one.names.append(name)
    return contents


def _clips(
    shown: Sequence[Shown],
    contents: Mapping[tuple[int, str], _Content],
    choices: _Choices,
    notes: _Notes,
) -> list[_Clip]:
    """Presentations grouped by what was presented, in the order of the sounds."""
    equal = {c.digest: c.names for c in contents.values() if len(c.names) > 1}
    if equal:
        text = "; ".join(" = ".join(map(printable, names)) for names in list(equal.values())[:5])
        if choices.on_equal_sounds == "error":
            raise ValueError(
                f"equal sounds under two names: {text}; on_equal_sounds='merge' joins their repeats, 'keep' "
                "keeps clips of each name"
            )
        done = "repeats joined" if choices.on_equal_sounds == "merge" else "kept apart"
        notes.add("equal sounds under two names", f"{text} ({done})", len(equal))
    digests: dict[str, dict[str, None]] = {}
    for (_, name), one in contents.items():
        digests.setdefault(name, {})[one.digest] = None
    ambiguous = [name for name, found in digests.items() if len(found) > 1]
    if ambiguous:
        notes.add("same name, different sounds", _listed(ambiguous), len(ambiguous))
    clips: dict[tuple[Any, ...], _Clip] = {}
    order = [(i, name) for i, name in contents] + [(i, "") for i in range(len(shown))]
    for i, name in order:
        part, content = shown[i], contents.get((i, name)) if name else None
        rows = [k for k, found in enumerate(part.name) if found == name]
        asked = [part.condition[k] if choices.by_condition else "" for k in rows]
        for condition in sorted(set(asked), key=natural):
            identity = name if choices.on_equal_sounds == "keep" else ""
            key = (content and content.digest, identity, condition)
            if key not in clips:
                title = name if name not in ambiguous else f"{part.session.name}/{name}"
                clips[key] = _new_clip(title or "silence", condition, content, part.session, name)
            clip = clips[key]
            if content is not None and choices.on_equal_sounds == "merge" and content.names[0] != name:
                clip.meta.setdefault("other_names", [])
                if name not in clip.meta["other_names"] and name != clip.name:
                    clip.meta["other_names"].append(name)
            clip.shown += [(i, k) for k, found in zip(rows, asked, strict=True) if found == condition]
    for clip in clips.values():
        clip.shown.sort()  # by session and onset, under whatever name
    return _with_unique_names(list(clips.values()))


def _new_clip(title: str, condition: str, content: _Content | None, session: Session, name: str) -> _Clip:
    meta = {"name": title, **session.stim_meta.get(name, {})}
    meta["name"] = f"{title} ({condition})" if condition else title
    if condition:
        meta |= {"stimulus": title, "condition": condition}
    if content is not None:
        meta["source_sha256"] = content.digest
    return _Clip(meta["name"], meta, content)


def _with_unique_names(clips: list[_Clip]) -> list[_Clip]:
    taken: Counter[str] = Counter()
    for clip in clips:
        taken[clip.name] += 1
        if taken[clip.name] > 1:
            clip.name = clip.meta["name"] = f"{clip.name} #{taken[clip.name]}"
    return clips


def _stimulus(clip: _Clip, ds: Any, choices: _Choices, notes: _Notes) -> npt.NDArray[np.float32]:
    """(1, T_audio) or (1, F, T) of a clip, with silence before and after."""
    hop = ds.samples_per_bin
    before, total = choices.n_before * hop, (choices.n_before + clip.n_bins + choices.n_after) * hop
    if clip.content is None:
        if not ds.return_waveform:
            raise ValueError("on_blank='silence' is for sounds; what features are in silence is unknown")
        return np.zeros((1, total), dtype=np.float32)
    if clip.content.features is not None:
        return clip.content.features.put(ds, choices.n_before, total)[None]
    values = clip.content.values
    lost = before + values.shape[-1] - total
    if lost > 0:
        notes.add("sounds cut to whole bins", f"{printable(clip.name)} by {lost} samples")
    return place(values, before, total)[None]


# ---- windows


def _set_windows(
    shown: Sequence[Shown], clips: list[_Clip], choices: _Choices, report: LoadReport, notes: _Notes
) -> None:
    """Length of every clip and window of every presentation; overlapping ones are noted or left out."""
    bin_s = float(choices.bin_s)
    for part in shown:
        n = len(part.onset)
        part.start = part.onset - choices.n_before * bin_s
        part.bins, part.own = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for clip in clips:
        lengths = np.array([shown[i].length_s[k] for i, k in clip.shown])
        own = np.floor((lengths + TOLERANCE_S) / bin_s)
        if clip.content is None:
            if np.isnan(own).any():
                raise ValueError(
                    "on_blank='silence' needs the length of blank trials: give an offset or duration"
                )
            clip.n_bins = int(own.max())
        elif choices.clip == "offset":
            own = np.where(np.isnan(own), clip.content.n_bins, own)
            clip.n_bins = int(own.max())
        else:
            own, clip.n_bins = np.full(len(lengths), clip.content.n_bins), clip.content.n_bins
            short = lengths < float(clip.content.duration_s) - bin_s
            if short.any():
                text = f"{printable(clip.name)}: {int(short.sum())} by the table's offsets"
                notes.add("trials shorter than their sound", text, int(short.sum()))
        total = choices.n_before + clip.n_bins + choices.n_after
        if total < 1:
            raise ValueError(f"clip {clip.name!r} is shorter than one bin of {float(choices.dt):g} ms")
        ragged = int((own < clip.n_bins).sum())
        if ragged:
            text = f"{printable(clip.name)}: {ragged} end before the longest, and are missing from there on"
            notes.add("trials of different lengths", text, ragged)
        for (i, k), bins in zip(clip.shown, own.tolist(), strict=True):
            shown[i].bins[k] = total
            shown[i].own[k] = total if bins >= clip.n_bins else choices.n_before + int(bins)
    gone = {(i, k) for i, part in enumerate(shown) for k in _overlapping(part, choices, report, notes)}
    if gone:
        for clip in clips:
            clip.shown = [place for place in clip.shown if place not in gone]
    for i, part in enumerate(shown):
        _note_span(part, [k for k in range(len(part.onset)) if (i, k) not in gone], choices, notes)


def _overlapping(part: Shown, choices: _Choices, report: LoadReport, notes: _Notes) -> list[int]:
    """Presentations whose window overlaps another one of the session, where those are to be left out."""
    if len(part.onset) < 2:
        return []
    end = part.start + part.bins * float(choices.bin_s)
    reach = np.maximum.accumulate(end)[:-1]
    later = np.flatnonzero(part.start[1:] < reach - TOLERANCE_S) + 1
    if not later.size:
        return []
    sound_end = end - choices.n_after * float(choices.bin_s)
    both = {
        int(k) for b in later.tolist() for k in [b, *np.flatnonzero(end[:b] > part.start[b] + TOLERANCE_S)]
    }
    sounding = int((part.onset[later] < np.maximum.accumulate(sound_end)[later - 1] - TOLERANCE_S).sum())
    rows = sorted(part.trial[list(both)].tolist())
    what = "sounds overlap" if sounding else "only silence before and after (pre_ms, post_ms) overlaps"
    text = f"{part.label}: {row_names(rows)} ({what})"
    if choices.on_overlap == "error":
        raise ValueError(
            f"overlapping trials: {text}; on_overlap='keep' takes spikes into each, 'skip' leaves both out"
        )
    done = "left out" if choices.on_overlap == "skip" else "spikes are in each"
    notes.add("overlapping trials", f"{text}, {done}", len(both))
    if choices.on_overlap == "keep":
        return []
    for row in rows:
        report.skip(f"{part.label}, trial {row}", "it overlaps another one")
    return sorted(both)


def _note_span(part: Shown, kept: Sequence[int], choices: _Choices, notes: _Notes) -> None:
    """Note presentations that the recording does not hold whole."""
    span = part.session.span_s
    if span is None or not kept:
        return
    at = np.array(kept)
    start, end = part.start[at], part.start[at] + part.bins[at] * float(choices.bin_s)
    cut = (start < span[0] - TOLERANCE_S) | (end > span[1] + TOLERANCE_S)
    if cut.any():
        rows = part.trial[at[cut]].tolist()
        text = f"{part.label}, recorded {span[0]:g} to {span[1]:g} s: {row_names(rows)}"
        notes.add("trials cut by the recording's end", text, int(cut.sum()))


# ---- units


def _note_clocks(part: Shown, clips: Sequence[_Clip], index: int, choices: _Choices, notes: _Notes) -> None:
    """Note, or refuse, trials that seem to be on another clock than sounds or spikes."""
    trains = [np.asarray(times) for times in (part.session.spikes or {}).values()]
    end = part.start + part.bins * float(choices.bin_s)
    check_seconds(trains, float(end.max(initial=0.0)))
    if "bin_ms" not in part.session.facts:
        check_whole(trains)
    duration = np.zeros(len(part.onset))
    for clip in clips:
        for i, k in clip.shown:
            if i == index and clip.content is not None:
                duration[k] = float(clip.content.duration_s)
    check_lengths(part.length_s, duration)
    apart = far_apart(part.onset, end)
    if apart is not None:
        inside = sum(int((np.searchsorted(t, end) - np.searchsorted(t, part.start)).sum()) for t in trains)
        total = sum(map(len, trains))
        known = part.session.span_s is not None or part.session.observed
        if total >= _FEW_SPIKES and inside < _SHARE_INSIDE * total and not known:
            raise ValueError(
                f"{part.label}: {apart}; {inside} of {total} spikes are in clips. If sounds are that rare, "
                "span_s=(start, end) of the recording says so"
            )
        notes.add("trials far apart", f"{part.label}: {apart}")
    table = np.concatenate([part.onset, part.onset + part.length_s])
    drift = duration_drift(part.length_s, duration, table, part.sample_s)
    noted = any(topic == "clock drift" for topic, _, _ in part.session.report.notes)
    if drift is not None and not noted:
        notes.add("clock drift", f"{part.label}: {drift}, not corrected")
    session = part.session
    if session.span_s is not None or session.observed:
        return
    out, expected = silent_ends(part.start, end, trains)
    if not out.size:
        return
    text = (
        f"{part.label}: no unit has a spike in {len(out)} of {len(part.onset)} trials, before the first "
        f"or after the last of all, where {expected:.0f} were expected; are the onsets on another clock? "
        "triggers=<times of trial pulses on the clock of the spikes> matches them; span_s=(start, end) says "
        "what was recorded"
    )
    if len(out) == len(part.onset):
        raise ValueError(text)
    notes.add("clock offset", text)


def _units(
    sessions: Sequence[Session], on_empty_unit: str, report: LoadReport, notes: _Notes
) -> dict[str, int]:
    """Index of every unit, in the order of first appearance."""
    total: dict[str, int] = {}
    for session in sessions:
        for unit, times in (session.spikes or {}).items():
            total[unit] = total.get(unit, 0) + len(times)
    empty = [unit for unit, count in total.items() if count == 0]
    if empty:
        if on_empty_unit == "error":
            raise ValueError(
                f"units without spikes: {_listed(empty)}; on_empty_unit='drop' leaves them out, 'keep' "
                "keeps them"
            )
        done = "left out" if on_empty_unit == "drop" else "kept"
        notes.add("units without spikes", f"{_listed(empty)} ({done})", len(empty))
    if on_empty_unit == "drop":
        for unit in empty:
            report.skip(unit, "it has no spikes")
            del total[unit]
    if not total:
        raise ValueError("there is no unit")
    return {unit: index for index, unit in enumerate(total)}


def _unit_meta(unit: str, sessions: Sequence[Session]) -> dict[str, Any]:
    meta: dict[str, Any] = {"cell_id": unit}
    for session in sessions:
        if session.spikes is not None and unit in session.spikes:
            meta = {**session.unit_meta.get(unit, {}), **meta}
    return {"cell_id": unit, **{key: value for key, value in meta.items() if key != "cell_id"}}
