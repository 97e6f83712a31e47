"""EEG, iEEG and MEG that MNE reads: FIF, BrainVision, EDF and BDF files, `Raw` and `Epochs` objects.

Times are seconds from the first sample that is there: MNE's annotations count from the start of the
acquisition, which a cropped file no longer holds. Nothing is resampled here.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, check_regular, read_text
from deepSTRF._optional import require
from deepSTRF._text import printable
from deepSTRF._validation import check_choice, first_names
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Pieces, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import exact_rate, find_name, mono, resampled, sounds_of
from deepSTRF.datasets.tables import column_for, columns_of, seconds_of, text_of
from deepSTRF.registry import FORMATS

__all__ = ["MneFormat"]

Floats = npt.NDArray[np.float64]

_REMEDY = "copy it again with all its files, or export it again"
_SOURCES = ("annotations", "events", "stim", "audio")
#: First bytes of the formats: a FIF file's first tag, BrainVision headers, EDF and BDF.
_FIF = b"\x00\x00\x00\x64\x00\x00\x00\x1f"
_BRAINVISION = (b"Brain Vision Data Exchange Header File", b"BrainVision Data Exchange Header File")
_EDF, _BDF = b"0       ", b"\xffBIOSEMI"
#: Columns of tables of events that name the stimulus, the most telling first.
_STIMULUS_COLUMNS = ("stim_file", "stimulus", "trial_type", "value")
#: Onsets this close to a sample (in samples) are that sample: files keep times with few digits.
_ON_A_SAMPLE = 0.1
#: A sound is found in a channel at this correlation, and looked for so far from its onset (s).
_FOUND, _MOST_LAG_S = 0.4, 0.5
#: Time in s between epochs.
_GAP_S = 2
#: Types of channels in BIDS tables, as MNE calls them.
_BIDS_TYPES = {kind: kind.lower() for kind in ("EEG", "ECOG", "SEEG", "DBS", "EOG", "ECG", "EMG", "MISC")}
_BIDS_TYPES |= {"VEOG": "eog", "HEOG": "eog", "TRIG": "stim", "AUDIO": "misc", "OTHER": "misc", "REF": "misc"}
#: Types of channels that are recorded from the brain, and their unit in MNE.
_UNITS = {"eeg": "V", "ecog": "V", "seeg": "V", "dbs": "V", "mag": "T", "grad": "T/m", "csd": "V/m^2"}
_UNITS |= {"hbo": "M", "hbr": "M", "fnirs_cw_amplitude": "V", "fnirs_od": "1"}


# ---- the format


@FORMATS.register("mne")
class MneFormat(Format):
    """EEG, iEEG and MEG that MNE reads: FIF, BrainVision, EDF, BDF; or its objects in place of a path."""

    suffixes = (".fif", ".vhdr", ".edf", ".bdf")
    path: Any  # or an object

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By the first bytes; a compressed FIF file by its name."""
        return path.is_file() and bool(_kind(path))

    @classmethod
    def takes_object(cls, value: Any) -> bool:
        """`mne.io.Raw` and `mne.Epochs`."""
        return type(value).__module__.split(".")[0] == "mne" and hasattr(value, "get_channel_types")

    def _data(self) -> Any:
        """The file, open, or the object that stands in its place."""
        if not isinstance(self.path, Path):
            return self.path
        with _naming_file(self.path):
            return _opened(self.path)

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """Rate, channels, annotations and filters; annotations and other channels are sources of onsets."""
        data = self._data()
        with _naming_file(self.path):
            found = _described(data)
            sources = _sources(data)
        needed = []
        if not _is_epochs(data):
            needed = [key for key in ("onsets",) if hints.get(key) is None]
            beside = isinstance(self.path, Path) and _beside(self.path, "events") is not None
            wants = {"events": None if beside else "events", "audio": "audio_channel"}
            hint = wants.get(str(hints.get("onsets")))
            needed += [hint] if hint is not None and hints.get(hint) is None else []
        if hints.get("sounds") is None:
            needed.append("sounds")
        return Findings(found, {"onsets": sources} if "onsets" in needed and sources else {}, needed)

    def sessions(  # type: ignore[override]  # the hints of this format
        self,
        *,
        onsets: str | None = None,
        sounds: Any = None,
        sounds_fs: float | None = None,
        events: Any = None,
        stimulus_column: str | None = None,
        stim_channel: str | None = None,
        audio_channel: str | None = None,
        match: str | None = None,
        names: str | Mapping[str, str] | None = None,
        picks: str | Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        delay_s: float | str = 0.0,
    ) -> list[Session]:
        """The recording as one session: trials, sounds and the signal of the chosen channels.

        Parameters
        ----------
        onsets : str
            Where the onsets of sounds are: "annotations" of the file, a table of "events", a "stim" channel,
            or an "audio" channel, in which each sound is looked for. Epochs bring their own.
        sounds : str or dict
            Folder of the sounds, beside the file or from here; or files or samples by name.
        sounds_fs : float
            Rate in Hz of sounds that are samples.
        events : str or table
            Table of events (CSV, or BIDS events.tsv, which is found beside the file) with onsets in s from
            the first sample of the file.
        stimulus_column : str
            Column of that table, or of the metadata of epochs, that names the stimulus.
        stim_channel : str
            Name of the stim channel; default the only one.
        audio_channel : str
            Name of a channel that recorded the sound. With other onsets, the lag of the sound is measured in
            it and reported; delay_s="audio" corrects it.
        match : str
            Regular expression of the annotations or codes that are stimuli; its first group, where it has
            one, is the stimulus: "Stimulus/S +(\\d+)".
        names : str or dict
            Name of the sound by stimulus, or a text with {} in its place: "segment_{}".
        picks : str or list of str
            Type of the channels ("eeg", "ecog", "seeg", "mag", ...) or their names; default "eeg". Eye, stim,
            audio and other channels are left out.
        exclude : list of str
            Channels to leave out.
        delay_s : float or "audio"
            Time in s from an onset to its sound: of the sound card, measured with a microphone; or "audio".
        """
        hints = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        data = self._data()
        is_file = isinstance(self.path, Path)
        where = str(self.path) if is_file else f"the {type(data).__name__}"
        if sounds is None or (onsets is None and not _is_epochs(data)):
            found = self.look(hints)
            raise MissingHintError(
                f"{where} must be told: {', '.join(found.needed)}. Found: {'; '.join(found.found)}"
            )
        folder = self.path.parent if is_file else Path()
        if is_file and onsets == "events" and events is None:
            hints["events"] = _beside(self.path, "events")
        for hint in ("sounds", "events"):
            if isinstance(hints[hint], (str, os.PathLike)):
                beside = folder / hints[hint]
                hints[hint] = beside if beside.exists() else Path(hints[hint]).expanduser()
        hints["sounds"] = sounds_of(hints["sounds"], hints.pop("sounds_fs"))
        name = self.path.name.split(".")[0] if is_file else "recording"
        return [_session(data, name=name, where=where, **hints)]


# ---- opening


def _kind(path: Path) -> str:
    """'fif', 'brainvision', 'edf', 'bdf' or ''."""
    check_regular(path)
    with open(path, "rb") as stream:
        start = stream.read(64)
    if start.startswith(_FIF) or (start[:2] == b"\x1f\x8b" and path.name.lower().endswith(".fif.gz")):
        return "fif"
    if start.removeprefix(b"\xef\xbb\xbf").startswith(_BRAINVISION):
        return "brainvision"
    if start.startswith(_EDF) and path.suffix.lower() != ".bdf":
        return "edf"
    return "bdf" if start.startswith(_BDF) else ""


def _is_epochs(data: Any) -> bool:
    return hasattr(data, "events") and hasattr(data, "drop_log")


def _opened(path: Path) -> Any:
    """The `Raw` or `Epochs` of a file; what MNE warns of is kept as ``deepstrf_notes``."""
    mne, kind = require("mne", extra="eeg"), _kind(path)
    if kind == "brainvision":
        _check_brainvision(path)
    # its level of logging stays as it is, and what it logs is not printed
    with warnings.catch_warnings(record=True) as caught, mne.utils.catch_logging():
        warnings.simplefilter("always")
        if kind == "fif":
            data = _fif(mne, path)
        else:
            readers = {"brainvision": "read_raw_brainvision", "edf": "read_raw_edf", "bdf": "read_raw_bdf"}
            if kind not in readers:
                raise DamagedFileError(f"{path} is no FIF, BrainVision, EDF or BDF file, by its first bytes")
            data = getattr(mne.io, readers[kind])(path, preload=False, verbose="warning")
    texts = [" ".join(str(one.message).split()) for one in caught if one.category is RuntimeWarning]
    data.deepstrf_notes = [text for text in dict.fromkeys(texts) if "naming conventions" not in text]
    folder = path.resolve().parent
    for name in getattr(data, "filenames", ()) or ():
        if name is not None and Path(name).resolve().parent != folder and not Path(name).is_symlink():
            raise DamagedFileError(f"{path} leads to {name}, outside of its folder; {_REMEDY}")
    _take_bids_channels(data, path)
    return data


def _beside(path: Path, kind: str) -> Path | None:
    """The BIDS table beside a recording: ``sub-01_task-story_channels.tsv`` of ``..._eeg.edf``."""
    stem, mark, _ = path.name.split(".")[0].rpartition("_")
    table = path.with_name(f"{stem}_{kind}.tsv")
    return table if mark and table.is_file() else None


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table with tabs, semicolons or commas."""
    text = read_text(path)
    first = text.split("\n", 1)[0]
    mark = "\t" if "\t" in first else ";" if ";" in first else ","
    return list(csv.DictReader(io.StringIO(text), delimiter=mark))


def _take_bids_channels(data: Any, path: Path) -> None:
    """Types and bad channels of a BIDS channels.tsv, which know more than the file itself."""
    table = _beside(path, "channels")
    if table is None:
        return
    rows = {text_of(row.get("name")): row for row in _rows(table)}
    types = {name: _BIDS_TYPES.get(text_of(row.get("type")).upper()) for name, row in rows.items()}
    known = {name: kind for name, kind in types.items() if kind is not None and name in data.ch_names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units that change with the type
        data.set_channel_types(known, verbose="error")
    bads = [n for n in data.ch_names if text_of(rows.get(n, {}).get("status")).casefold() == "bad"]
    data.info["bads"] = list(dict.fromkeys([*data.info["bads"], *bads]))
    data.deepstrf_notes.append(f"channel types and bad channels are those of {table.name} too")


def _fif(mne: Any, path: Path) -> Any:
    """A FIF file with continuous data, or with epochs."""
    try:
        return mne.io.read_raw_fif(path, preload=False, verbose="warning")
    except ValueError as error:
        if "No raw data" not in str(error):
            raise
        return mne.read_epochs(path, preload=True, verbose="warning")


def _check_brainvision(path: Path) -> None:
    """Refuse a header whose files are not beside it."""
    check_regular(path, limit=16_000_000)
    text = path.read_bytes().decode("utf-8", errors="replace")
    for key in ("DataFile", "MarkerFile"):
        found = re.search(rf"^\s*{key}\s*=\s*(.*?)\s*$", text, re.MULTILINE)
        if found is None:
            continue
        name = found.group(1).replace("$b", path.stem)
        if name and (re.search(r"[\\/:\0]", name) or name in (".", "..")):
            raise DamagedFileError(
                f"{path}: its {key} {printable(name)!r} lies outside of its folder; the three files of a "
                "recording lie beside each other, by their names in the header"
            )
        if name and not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path}: its {key} {printable(name)!r} is not there; files that were renamed need the new "
                "names in the header"
            )


@contextlib.contextmanager
def _naming_file(path: Path | str) -> Iterator[None]:
    """Turn what MNE raises of damaged files into a `DamagedFileError`."""
    try:
        yield
    except (ImportError, DamagedFileError, MissingHintError):
        raise
    except Exception as error:  # parsers of damaged bytes raise anything
        if (isinstance(error, OSError) and error.filename is not None) or isinstance(
            error, FileNotFoundError
        ):
            raise
        reason = " ".join(printable(f"{type(error).__name__}: {error}", longest=300).split())
        raise DamagedFileError(f"{path} is damaged, or not as MNE reads it ({reason}); {_REMEDY}") from error


# ---- what is there


def _described(data: Any) -> list[str]:
    """Lines on rate, channels, annotations, filters and events."""
    info, types = data.info, Counter(data.get_channel_types())
    lines = [
        f"{'epochs' if _is_epochs(data) else 'continuous'}, {info['sfreq']:g} Hz, "
        + ", ".join(f"{n} {kind}" for kind, n in types.items()),
        f"filters: {info['highpass']:g} to {info['lowpass']:g} Hz",
    ]
    if info["bads"]:
        lines.append(f"bad channels: {first_names(list(info['bads']))}")
    if _is_epochs(data):
        counts = Counter(_event_names(data))
        lines.append(f"{len(data)} epochs from {data.tmin:g} to {data.tmax:g} s")
        lines.append("events: " + first_names([f"{name} ({n})" for name, n in counts.items()]))
        if data.metadata is not None:
            lines.append(f"metadata: {first_names([str(c) for c in data.metadata.columns])}")
        return lines
    cut = f", {data.first_time:g} s after the start of the acquisition" if data.first_samp else ""
    lines.append(f"{data.n_times / info['sfreq']:.6g} s{cut}")
    counts = Counter(map(str, data.annotations.description))
    if counts:
        lines.append("annotations: " + first_names([f"{name} ({n})" for name, n in counts.items()]))
    return [*lines, *(f"note of MNE: {text}" for text in getattr(data, "deepstrf_notes", ()))]


def _sources(data: Any) -> list[tuple[Any, str]]:
    if _is_epochs(data):
        return []
    texts = [str(text) for text in data.annotations.description if not _is_bad(str(text))]
    found: list[tuple[Any, str]] = []
    if texts:
        found.append(("annotations", f"{len(texts)} of them: {first_names(list(dict.fromkeys(texts)))}"))
    stim = [
        name for name, kind in zip(data.ch_names, data.get_channel_types(), strict=True) if kind == "stim"
    ]
    if stim:
        found.append(("stim", f"stim channels {first_names(stim)}"))
    return [*found, ("events", "a table, with events="), ("audio", "with audio_channel=")]


def _is_bad(description: str) -> bool:
    return description.upper().startswith(("BAD", "EDGE"))


def _event_names(data: Any) -> list[str]:
    """Name of the event of each epoch, its number where it has none."""
    names = {int(code): str(name) for name, code in data.event_id.items()}
    return [names.get(int(code), str(int(code))) for code in data.events[:, 2]]


# ---- the session


@dataclass
class _Onsets:
    """Presentations as the file tells them: times in s from the first sample, and what they are called."""

    times: Floats
    called: list[str]
    meta: dict[str, list[Any]] = field(default_factory=dict)


def _session(
    data: Any,
    *,
    name: str,
    where: str,
    sounds: Mapping[str, Sound],
    onsets: str | None = None,
    events: Any = None,
    stimulus_column: str | None = None,
    stim_channel: str | None = None,
    audio_channel: str | None = None,
    match: str | None = None,
    names: str | Mapping[str, str] | None = None,
    picks: str | Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    delay_s: float | str = 0.0,
) -> Session:
    report = LoadReport()
    for text in getattr(data, "deepstrf_notes", ()):
        report.note("note of MNE", text)
    channels = _channels(data, picks, exclude, where, report)
    if _is_epochs(data):
        found, signal = _epochs(data, channels, stimulus_column)
    else:
        check_choice("onsets", onsets, _SOURCES)
        if onsets == "annotations":
            found = _annotated(data)
        elif onsets == "events":
            found = _tabled(events, stimulus_column, where)
        elif onsets == "stim":
            found = _stim(data, stim_channel, where)
        else:
            found = _heard(data, sounds, audio_channel, where)
        signal = _continuous(data, channels, where)
    if not _is_epochs(data) and onsets == "audio":
        stimuli = found.called
    else:
        found, stimuli = _named(found, match, names, report)
    times = found.times
    if not _is_epochs(data) and audio_channel is not None and onsets != "audio":
        lags = _lags(data, times, stimuli, sounds, audio_channel, where, report)
        if delay_s == "audio":
            times, delay_s = times + lags, 0.0
    if isinstance(delay_s, str):
        raise ValueError(  # noqa: TRY004  ('audio' is legal elsewhere)
            f"delay_s is a number of seconds, or 'audio' with the audio_channel of continuous data whose "
            f"onsets are from elsewhere; got {delay_s!r}"
        )
    info = data.info
    rate = float(info["sfreq"])
    facts: dict[str, Any] = {"recorded_hz": rate, "highpass_hz": float(info["highpass"] or 0.0)}
    facts |= {"lowpass_hz": float(info["lowpass"] or rate / 2), "onset_delay_s": float(delay_s)}
    return Session(
        trials=Trials(stimuli, times + float(delay_s), meta=found.meta),
        sounds=sounds,
        signal=signal,
        unit_meta=_positions(data, channels),
        name=name,
        facts=facts,
        report=report,
    )


def _channels(
    data: Any, picks: str | Sequence[str] | None, exclude: Sequence[str], where: str, report: LoadReport
) -> list[int]:
    """Places of the channels that are neurons of the dataset."""
    types = dict(zip(data.ch_names, data.get_channel_types(), strict=True))
    if picks is None or (isinstance(picks, str) and picks not in types):
        kind = picks or "eeg"
        chosen = [name for name, found in types.items() if found == kind]
        if not chosen:
            counts = first_names([f"{kind} ({n})" for kind, n in Counter(types.values()).items()])
            raise ValueError(f"{where}: it has no channels of the type {kind!r} but {counts}; give picks=")
    else:
        chosen = [picks] if isinstance(picks, str) else [str(name) for name in picks]
    unknown = [name for name in [*chosen, *exclude] if name not in types]
    if unknown:
        raise ValueError(
            f"{where}: there is no channel {first_names(unknown)}; there are {first_names(list(types))}"
        )
    chosen = [name for name in chosen if name not in exclude]
    units = {_UNITS.get(types[name], "other") for name in chosen}
    if len(units) != 1:
        raise ValueError(
            f"{where}: picks are of {len(units)} units ({', '.join(sorted(units))}); choose one type"
        )
    left = [f"{name} ({kind})" for name, kind in types.items() if name not in chosen]
    if left:
        report.note("channels left out", first_names(left), len(left))
    bads = [name for name in data.info["bads"] if name in chosen]
    if bads:
        report.note("bad channels", first_names(bads), len(bads))
    return [data.ch_names.index(name) for name in chosen]


def _unit(data: Any, channels: Sequence[int]) -> str:
    kinds = {data.get_channel_types()[k] for k in channels}
    return _UNITS.get(kinds.pop(), "arbitrary units")


def _positions(data: Any, channels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Type and position in m of each channel, where the file has one."""
    types, out = data.get_channel_types(), {}
    for k in channels:
        place = np.asarray(data.info["chs"][k]["loc"][:3], dtype=np.float64)
        out[data.ch_names[k]] = {"channel_type": types[k]}
        if np.isfinite(place).all() and place.any():
            out[data.ch_names[k]]["position_m"] = [float(v) for v in place]
    return out


def _exact(rate: float) -> Fraction:
    return exact_rate(float(rate), "the rate of the recording")


def _continuous(data: Any, channels: Sequence[int], where: str) -> Signal:
    """The signal of continuous data, read piece by piece; BAD spans of all channels and of some."""
    rate, names = float(data.info["sfreq"]), [data.ch_names[k] for k in channels]
    spans, own = [], []
    for one in data.annotations:
        if str(one["description"]).upper().startswith("BAD"):
            begin = float(one["onset"]) - _origin(data)
            edges = _on_samples(np.array([begin, begin + float(one["duration"])]), rate)
            span = (float(edges[0]), float(edges[1]))
            if one.get("ch_names"):
                own += [(names.index(c), *span) for c in one["ch_names"] if c in names]
            else:
                spans.append(span)
    lazy = _RawData(data, list(channels), own, where)
    bads = [name for name in data.info["bads"] if name in names]
    bad_s = np.array(spans, dtype=np.float64).reshape(-1, 2)
    return Signal(lazy, _exact(rate), names, 0.0, _unit(data, channels), bad_s, bads)


class _RawData:
    """Values of an `mne.io.Raw` as ``[:, a:b]`` reads them."""

    def __init__(
        self, raw: Any, picks: list[int], own: Sequence[tuple[int, float, float]], where: str
    ) -> None:
        self.raw, self.picks, self.where = raw, picks, where
        self.shape, self.dtype, self.ndim = (len(picks), int(raw.n_times)), np.dtype(np.float64), 2
        rate = float(raw.info["sfreq"])
        self.own = [(row, math.floor(a * rate + 1e-6), math.ceil(b * rate - 1e-6)) for row, a, b in own]

    def __getitem__(self, key: Any) -> Floats:
        rows, columns = key
        begin, end, step = columns.indices(self.shape[1])
        if begin >= end:
            nothing: Floats = np.empty((len(self.picks), 0))[rows]
            return nothing
        with _naming_file(self.where):
            values = np.asarray(self.raw.get_data(self.picks, begin, end, verbose="error"), dtype=np.float64)
        for row, low, high in self.own:
            values[row, max(0, low - begin) : max(0, high - begin)] = np.nan
        found: Floats = values[:, ::step][rows]
        return found


def _epochs(data: Any, channels: Sequence[int], stimulus_column: str | None) -> tuple[_Onsets, Signal]:
    """Epochs one after the other on one clock, with gaps; their number in the recording is kept."""
    rate = _exact(data.info["sfreq"])
    values = data.get_data(picks=list(channels), verbose="error")
    before = -round(float(data.tmin) * float(rate))  # rows before the onset; tmin and tmax are both included
    gap = math.ceil(_GAP_S * rate)
    pieces, times = [], []
    for k, block in enumerate(values):
        at = gap + k * (values.shape[2] + gap)
        pieces.append((at, np.asarray(block, dtype=np.float64)))
        times.append(float((at + before) / rate))
    length = (len(pieces) + 1) * gap + len(pieces) * values.shape[2]
    names = [data.ch_names[k] for k in channels]
    meta: dict[str, list[Any]] = {"trial": [int(k) for k in data.selection]}
    called = _event_names(data)
    if data.metadata is not None:
        meta |= {str(key): list(data.metadata[key]) for key in data.metadata.columns if str(key) != "trial"}
    if stimulus_column is not None:
        if stimulus_column not in meta:
            raise ValueError(f"stimulus_column: the epochs' metadata are {first_names(list(meta))}")
        called = [text_of(value) for value in meta[stimulus_column]]
    bads = [name for name in data.info["bads"] if name in names]
    signal = Signal(
        Pieces(pieces, len(names), length), rate, names, 0.0, _unit(data, channels), bad_channels=bads
    )
    return _Onsets(np.array(times, dtype=np.float64), called, meta), signal


# ---- onsets


def _origin(data: Any) -> float:
    """What annotations count from, in s from the first sample: the start of the acquisition, before it."""
    return float(data.first_time)


def _on_samples(times: Floats, rate: float) -> Floats:
    """Times that miss a sample by their rounding in the file are that sample."""
    rows = np.round(times * rate)
    return np.where(np.abs(times * rate - rows) < _ON_A_SAMPLE, rows / rate, times)


def _annotated(data: Any) -> _Onsets:
    kept = [one for one in data.annotations if not _is_bad(str(one["description"]))]
    times = np.array([float(one["onset"]) for one in kept], dtype=np.float64) - _origin(data)
    return _Onsets(_on_samples(times, float(data.info["sfreq"])), [str(one["description"]) for one in kept])


def _tabled(events: Any, stimulus_column: str | None, where: str) -> _Onsets:
    """Onsets of a table: a BIDS events.tsv, a CSV file, or a table in memory."""
    if events is None:
        raise MissingHintError(f"{where} must be told: events, the table with the onsets")
    what = f"events of {where}"
    if isinstance(events, (str, os.PathLike)):
        what, events = str(events), _rows(Path(events))
        if not events:
            raise ValueError(f"{what} holds no event")
    columns = columns_of(events, what)
    onset = column_for("onset", columns, None, what)
    if stimulus_column is not None and stimulus_column not in columns:
        raise ValueError(f"{what} has no column {stimulus_column!r} but {first_names(list(columns))}")
    column = stimulus_column or next((c for c in _STIMULUS_COLUMNS if c in columns), None)
    column = column or column_for("stimulus", columns, {}, what)
    called = ["" if text in ("n/a", "N/A") else text for text in map(text_of, columns[str(column)])]
    times = seconds_of(columns[str(onset)], str(onset), what)
    kept = [k for k, text in enumerate(called) if text]
    meta = {
        key: [text_of(values[k]) for k in kept]
        for key, values in columns.items()
        if key not in (onset, column)
    }
    return _Onsets(times[kept], [called[k] for k in kept], meta)


def _stim(data: Any, channel: str | None, where: str) -> _Onsets:
    """Onsets of the codes of a stim channel."""
    mne = require("mne", extra="eeg")
    types = dict(zip(data.ch_names, data.get_channel_types(), strict=True))
    stim = [name for name, kind in types.items() if kind == "stim"]
    if channel is None and len(stim) != 1:
        raise MissingHintError(f"{where} must be told: stim_channel; there are {first_names(stim) or 'none'}")
    if channel is not None and channel not in types:
        raise ValueError(f"{where}: there is no channel {channel!r}; there are {first_names(list(types))}")
    with _naming_file(where):
        found = mne.find_events(
            data, channel or stim[0], shortest_event=1, initial_event=True, verbose="error"
        )
    times = (found[:, 0] - data.first_samp) / float(data.info["sfreq"])
    return _Onsets(times.astype(np.float64), [str(int(code)) for code in found[:, 2]])


def _named(
    found: _Onsets, match: str | None, names: str | Mapping[str, str] | None, report: LoadReport
) -> tuple[_Onsets, list[str]]:
    """The presentations that are stimuli, and the names of their sounds."""
    try:
        expression = re.compile("(.*)" if match is None else match, re.DOTALL)
    except re.error as error:
        raise ValueError(f"match={match!r} is no regular expression: {error}") from None
    kept, called, other = [], [], Counter[str]()
    if isinstance(names, Mapping):
        names = {text_of(event): name for event, name in names.items()}  # codes may be numbers
    for k, text in enumerate(found.called):
        hit = expression.fullmatch(text)
        word: str | None = None if hit is None else hit.group(1 if expression.groups else 0) or ""
        if word is not None and isinstance(names, Mapping):
            word = names.get(word, names.get(text))
        elif word is not None and names is not None:
            word = str(names).replace("{}", word)
        if word is None:
            other[text] += 1
            continue
        kept.append(k)
        called.append(str(word))
    if other:
        shown = first_names([f"{name} ({n})" for name, n in other.items()])
        if not kept:
            raise ValueError(f"no event is a stimulus by match= and names=; the events are {shown}")
        report.note("events that are no stimuli", shown, sum(other.values()))
    meta = {key: [values[k] for k in kept] for key, values in found.meta.items()}
    return _Onsets(found.times[kept], found.called, meta), called


# ---- sounds in an audio channel


def _channel(data: Any, name: str | None, where: str) -> Floats:
    if name is None:
        raise MissingHintError(f"{where} must be told: audio_channel, the channel that recorded the sound")
    if name not in data.ch_names:
        raise ValueError(
            f"{where}: there is no channel {name!r}; there are {first_names(list(data.ch_names))}"
        )
    with _naming_file(where):
        return np.asarray(data.get_data([data.ch_names.index(name)], verbose="error")[0], dtype=np.float64)


def _matcher(channel: Floats, rate: float) -> Callable[[Sound, str], tuple[Floats, int]]:
    """Correlation of a sound with the channel from each sample on: of waveforms or envelopes, the higher."""
    envelope = np.abs(channel - channel.mean())

    def correlations(sound: Sound, name: str) -> tuple[Floats, int]:
        samples = mono(sound.read(), "mean", name).astype(np.float64)
        best: Floats = np.zeros(0)
        length = 0
        for values, template in ((channel, samples), (envelope, np.abs(samples - samples.mean()))):
            wave = resampled(template, Fraction(sound.fs), _exact(rate)).astype(np.float64)
            found = _correlation(values, wave)
            if not best.size or found.max(initial=0.0) > best.max(initial=0.0):
                best, length = found, len(wave)
        return best, length

    return correlations


def _correlation(values: Floats, wave: Floats) -> Floats:
    """Pearson correlation of a template with each stretch of its length."""
    n = len(wave)
    if n < 2 or n > len(values):
        return np.zeros(0)
    wave = wave - wave.mean()
    values = values - values.mean()
    import scipy.signal  # slow to import, and few recordings need it

    product = scipy.signal.correlate(values, wave, mode="valid", method="fft")
    one, two = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values, values**2))
    spread = (two[n:] - two[:-n]) - (one[n:] - one[:-n]) ** 2 / n
    floor = 1e-12 * max(float(two[-1]), 1e-300)
    return np.where(spread > floor, product / np.sqrt(np.maximum(spread, floor) * (wave**2).sum()), 0.0)


def _heard(data: Any, sounds: Mapping[str, Sound], channel: str | None, where: str) -> _Onsets:
    """Every place in the audio channel at which one of the sounds is heard, by time."""
    rate = float(data.info["sfreq"])
    match = _matcher(_channel(data, channel, where), rate)
    places: list[tuple[float, int, int, str]] = []
    for name, sound in sounds.items():
        found, length = match(sound, name)
        while found.size and found.max() >= _FOUND:
            at = int(found.argmax())
            places.append((float(found[at]), at, length, name))
            found[max(0, at - length + 1) : at + length] = 0.0
    kept: list[tuple[int, int, str]] = []
    for _, at, length, name in sorted(places, reverse=True):
        if all(at + length <= low or at >= low + span for low, span, _ in kept):
            kept.append((at, length, name))
    if not kept:
        raise ValueError(f"{where}: none of the {len(sounds)} sounds is heard in the channel {channel!r}")
    kept.sort()
    return _Onsets(np.array([at / rate for at, _, _ in kept]), [name for _, _, name in kept])


def _lags(
    data: Any,
    times: Floats,
    stimuli: Sequence[str],
    sounds: Mapping[str, Sound],
    channel: str,
    where: str,
    report: LoadReport,
) -> Floats:
    """Time from each onset to its sound in the audio channel, in s; the median where it is not heard."""
    rate = float(data.info["sfreq"])
    match = _matcher(_channel(data, channel, where), rate)
    known: dict[str, Floats] = {}
    lags = np.full(len(times), np.nan)
    for k, (time, name) in enumerate(zip(times, stimuli, strict=True)):
        place = find_name(name, sounds, "stimulus")
        if place is None or np.isnan(time):
            continue
        if place not in known:
            known[place] = match(sounds[place], place)[0]
        low = max(0, round((time - _MOST_LAG_S) * rate))
        part = known[place][low : max(0, round((time + _MOST_LAG_S) * rate) + 1)]
        if part.size and part.max() >= _FOUND:
            lags[k] = (low + int(part.argmax())) / rate - time
    heard = lags[~np.isnan(lags)]
    if not heard.size:
        report.note(
            "sound not heard", f"no sound is heard near its onset in the channel {channel!r}", len(times)
        )
        return np.zeros(len(times))
    report.note(
        "sound lag",
        f"{1000 * np.median(heard):.4g} ms from the onsets to the sounds in {channel!r} ({heard.size} of "
        f"{len(times)}; {1000 * heard.min():.4g} to {1000 * heard.max():.4g} ms, to {1000 / rate:.3g} ms)",
        int(heard.size),
    )
    return np.where(np.isnan(lags), np.median(heard), lags)
