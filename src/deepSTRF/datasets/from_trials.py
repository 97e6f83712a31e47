"""``from_trials``: a dataset of sounds, a table of trials and spike times.

Spike times of any container become a session, which `deepSTRF.datasets.trials` cuts and counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deepSTRF._validation import as_numbers, check_choice, checked_but, first_names
from deepSTRF.datasets.clocks import DRIFT_CHOICES, on_recording_clock
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Session
from deepSTRF.datasets.sounds import find_name, natural, sounds_of
from deepSTRF.datasets.tables import column_for, columns_of, is_table, seconds_of, text_of, trials_of
from deepSTRF.datasets.trials import dataset_of

__all__ = ["FromTrials"]

Floats = npt.NDArray[np.float64]


class FromTrials:
    """The constructor ``from_trials`` of audio datasets."""

    @classmethod
    @checked_but("sounds", "trials", "spikes", "dt_ms", "audio_fs", "pre_ms", "post_ms", "F")
    def from_trials(
        cls,
        sounds: Any,
        trials: Any,
        spikes: Any,
        dt_ms: float,
        audio_fs: float | None = None,
        *,
        sounds_fs: Any = None,
        channel: int | str | None = None,
        unit_ids: Any = None,
        observed: Any = None,
        span_s: Any = None,
        triggers: Any = None,
        pre_ms: float = 0.0,
        post_ms: float = 0.0,
        clip: str = "sound",
        by_condition: bool = False,
        unit_meta: Any = None,
        stim_meta: Any = None,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        species: str | None = None,
        hearing_range_hz: tuple[float, float] | None = None,
        F: int | None = None,
        features: Sequence[str] = (),
        spectrogram: Mapping[str, Any] | None = None,
        level: str = "raw",
        on_missing_sound: str = "skip",
        on_overlap: str = "keep",
        on_equal_sounds: str = "merge",
        on_empty_unit: str = "keep",
        on_partly_observed: str = "missing",
        on_blank: str = "skip",
        on_drift: str = "correct",
        check_alignment: bool = True,
        cache: str | os.PathLike[str] | None = "auto",
    ) -> Self:
        """Audio dataset of sounds, a table of trials and spike times: repeats found, counts on exact bins.

        Bin k of a repeat holds the spikes from ``onset - pre_ms + k * dt_ms`` up to the next edge (one less
        than a microsecond below an edge belongs to the bin that begins there). A clip is as long as its
        sound, in whole bins, with silence before and after it where asked for. Everything left out, changed
        or odd is in ``load_report``; ``load_report.count("overlapping trials")`` reads it by topic.

        Parameters
        ----------
        sounds : path or mapping
            A folder of sound files (WAV, FLAC, MP3, OGG, AIFF; named by their stems, with sub-folder where
            stems repeat), or a mapping from name to file, to samples (T_audio,) or (T_audio, channels), or to
            (samples, rate). Integers are divided by their full scale, nothing else changes levels.
        trials : table
            One row per presentation: ``stimulus`` (name of the sound; suffix, folder and letter case may
            differ where that is unambiguous), ``onset`` in s, and where known ``offset`` or ``duration`` and
            ``condition``; usual synonyms are found, a column ``onset_ms`` is in ms. A dictionary of columns,
            list of dictionaries, or pandas, polars, pyarrow or numpy table.
        spikes : mapping, array or table
            Mapping from unit to spike times in s, in any order; or one array with ``unit_ids``; or a table
            with the columns unit and time.
        dt_ms : float or Fraction
            Bin width in ms; a float that rounds a fraction such as 50/3 is taken as that.
        audio_fs : float, optional
            Rate in Hz that sounds are resampled to, exactly. None: the highest of the sounds if it has a
            whole number of samples per bin, else the next above it that has.
        sounds_fs : float or mapping, optional
            Rate of sounds that are given as samples, or rates by name; None takes ``audio_fs``, and notes it.
        channel : int or "mean", optional
            Channel of sounds with several, which are refused without.
        unit_ids : array, optional
            The unit of each spike.
        observed : mapping or array (k, 2), optional
            Intervals in s in which a unit (or all) was observed. Bins outside are missing (NaN), not zero;
            repeats without an observed bin are not there for that unit.
        span_s : (float, float), optional
            Start and end of the recording: when a unit that ``observed`` does not list was observed.
        triggers : array, optional
            Times in s, on the clock of the spikes, of a pulse at the onset of each trial, where the table's
            onsets are on another clock. Pulses may be missing or too many.
        pre_ms, post_ms : float
            Silence before and after each sound that belongs to the clip, in whole bins: zeros of the
            waveform, with the spikes that were recorded there.
        clip : {"sound", "offset"}
            What gives the length of a clip: its sound, or the longest ``offset - onset`` of its trials, of
            which shorter ones are missing from their end on.
        by_condition : bool
            Make a clip of each sound and condition; repeats are joined otherwise.
        unit_meta, stim_meta : mapping or table, optional
            Metadata by unit and by name of sound.
        columns : mapping, optional
            Columns by role, ``{"stimulus": "file", "onset": "t0"}``, where they have other names.
        features : sequence of str
            Features that are computed from the sounds and are the stimuli in place of waveforms:
            "spectrogram", "envelope", "onsets".
        spectrogram : mapping, optional
            Arguments of the front-end of the spectrogram.
        name, species, hearing_range_hz, F, level, check_alignment
            As in ``from_arrays``.
        on_missing_sound : {"skip", "error"}
            Trials whose sound is not there.
        on_overlap : {"keep", "skip", "error"}
            Trials whose clips overlap: spikes in each of them, both left out, or an error.
        on_equal_sounds : {"merge", "keep", "error"}
            Equal sounds under two names: one clip with all repeats, or a clip of each name.
        on_empty_unit : {"keep", "drop", "error"}
            Units without any spike.
        on_partly_observed : {"missing", "keep"}
            Bins that were observed in part: missing, or with the spikes that are there.
        on_blank : {"skip", "silence", "error"}
            Trials without stimulus: left out, or a clip of silence of the trial's length.
        on_drift : {"correct", "ignore", "error"}
            A drift between ``triggers`` and onsets.
        cache : path or "auto", optional
            A folder: counts and stimuli are written there clip by clip and stay there, see `mapped`;
            ``NeuralDataset.load(folder)`` opens it again. "auto": recordings with more than 256 MB of counts
            are kept in temporary files. None: all in memory.

        Returns
        -------
        AudioNeuralDataset
            The dataset: clips in the order of the sounds, neurons in that of the units, repeats by onset.

        Raises
        ------
        TypeError, ValueError
            When something is not as described, times seem to be in another unit, a choice is needed, or no
            trial is left; the text names what it was and the call that helps.
        FileNotFoundError, DamagedFileError
            When a sound file is not there, or damaged.

        Examples
        --------
        >>> import numpy as np
        >>> from deepSTRF.datasets.audio import AudioNeuralDataset
        >>> sounds = {"a": np.sin(np.arange(8000) * 0.05), "b": np.cos(np.arange(4800) * 0.3)}
        >>> trials = {"stimulus": ["a", "b", "a", "c"], "onset": [1.0, 2.0, 3.0, 4.0]}
        >>> spikes = {"u1": [1.0, 1.499, 1.5, 2.105, 3.07], "u2": [2.2, 3.1]}
        >>> ds = AudioNeuralDataset.from_trials(sounds, trials, spikes, dt_ms=10.0, sounds_fs=16000)
        >>> [tuple(row.shape) for row in ds.responses[0]]                # 2 repeats of 0.5 s
        [(2, 50), (2, 50)]
        >>> ds.responses[0][0].nonzero().tolist()                        # 3.07 s is 70 ms after its onset
        [[0, 0], [0, 49], [1, 7]]
        >>> ds.load_report.count("trials without sound")
        1
        """
        plain = _plain_samples(sounds) if sounds_fs is None and audio_fs is not None else []
        rates = dict.fromkeys(plain, audio_fs) if plain else sounds_fs
        session = session_of(
            sounds, trials, spikes, sounds_fs=rates, unit_ids=unit_ids, observed=observed, span_s=span_s,
            triggers=triggers, on_drift=on_drift, unit_meta=unit_meta, stim_meta=stim_meta, columns=columns,
            name=name, species=species,
        )  # fmt: skip
        if plain:
            text = f"{len(plain)} given as samples are taken at audio_fs={audio_fs:g} Hz; sounds_fs= tells it"
            session.report.note("rate of sounds", text, len(plain))
        made: Self = dataset_of(
            cls, [session], dt_ms=dt_ms, audio_fs=audio_fs, channel=channel, pre_ms=pre_ms, post_ms=post_ms,
            clip=clip, by_condition=by_condition, name=name, hearing_range_hz=hearing_range_hz, F=F,
            features=features, spectrogram=spectrogram, level=level, on_missing_sound=on_missing_sound,
            on_overlap=on_overlap, on_equal_sounds=on_equal_sounds, on_empty_unit=on_empty_unit,
            on_partly_observed=on_partly_observed, on_blank=on_blank, check_alignment=check_alignment,
            cache=cache,
        )  # fmt: skip
        return made


def _plain_samples(sounds: Any) -> list[Any]:
    """Keys of the sounds that are arrays without a rate."""
    if not isinstance(sounds, Mapping):
        return []
    return [key for key, value in sounds.items() if hasattr(value, "dtype") or isinstance(value, list)]


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
            by_unit = _grouped(seconds_of(cells, time, "spikes"), table[unit])
    elif unit_ids is None:
        raise TypeError(
            "spikes is a dictionary from unit to times in s, one array of times with unit_ids=<the unit of "
            f"each spike>, or a table with the columns unit and time; got {type(given).__name__}; one unit "
            "alone is spikes={'unit': times}"
        )
    else:
        times = _numbers(given, "spikes")
        ids = unit_ids.detach().cpu().numpy() if hasattr(unit_ids, "detach") else np.asarray(unit_ids)
        if ids.size != len(times):
            raise ValueError(
                f"unit_ids has {ids.size} entries for {len(times)} spikes; it is the unit of each"
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


def _grouped(times: Floats, units: Any) -> dict[str, Floats]:
    """Times by unit, units in natural order."""
    ids = np.asarray(units).reshape(-1)
    if ids.dtype.kind not in "iuUS":
        ids = np.array([text_of(unit) for unit in ids.tolist()], dtype=str)
    kinds, index = np.unique(ids, return_inverse=True)
    order = np.argsort(index, kind="stable")
    pieces = np.split(times[order], np.cumsum(np.bincount(index, minlength=len(kinds)))[:-1])
    found: dict[str, list[Floats]] = {}
    for kind, piece in zip(kinds, pieces, strict=True):
        found.setdefault(text_of(kind), []).append(piece)
    if "" in found:
        raise ValueError(f"spikes: {sum(map(len, found['']))} spikes have no unit")
    return {unit: np.concatenate(found[unit]) for unit in sorted(found, key=natural)}


def _numbers(given: Any, what: str) -> Floats:
    """Times of any container as float64; what is masked or None is NaN."""
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(np.float64), np.nan)
    try:
        return as_numbers(given, what).reshape(-1)
    except ValueError:
        cells = (
            list(given) if hasattr(given, "__iter__") and not isinstance(given, (str, Mapping)) else [None]
        )
        if not all(cell is None or isinstance(cell, Real) for cell in cells) or cells == [None]:
            raise
        return np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)


def _ascending(given: Any, unit: str, report: LoadReport) -> Floats:
    """Spike times of a unit as ascending float64; entries that are NaN are noted."""
    times = _numbers(given, f"the spike times of unit {unit!r}")
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
    triggers: Any = None,
    on_drift: str = "correct",
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
    check_choice("on_drift", on_drift, DRIFT_CHOICES)
    if triggers is not None:
        table = on_recording_clock(table, triggers, on_drift, report)
    if span_s is not None:
        span = as_numbers(span_s, "span_s").reshape(-1)
        if len(span) != 2 or not span[0] < span[1]:
            raise ValueError(f"span_s is (start, end) of the recording in s, got {span_s!r}")
        span_s = (float(span[0]), float(span[1]))
    waves = sounds_of(sounds, sounds_fs)
    about_units = _meta_of(unit_meta, "unit", "unit_meta", columns)
    about_sounds = {
        find_name(stimulus, waves, "stim_meta") or stimulus: row
        for stimulus, row in _meta_of(stim_meta, "stimulus", "stim_meta", columns).items()
    }
    for what, rows, known in (("unit_meta", about_units, trains), ("stim_meta", about_sounds, waves)):
        unknown = [key for key in rows if key not in known]
        if unknown:
            report.note("metadata of nothing that is there", f"{what}: {first_names(unknown)}", len(unknown))
    return Session(
        trials=table,
        sounds=waves,
        spikes=trains,
        observed=_observed_of(observed, trains),
        span_s=span_s,
        unit_meta=about_units,
        stim_meta=about_sounds,
        name="recording" if name is None else name,
        species=species,
        report=report,
    )


def _observed_of(given: Any, trains: Mapping[str, Floats]) -> dict[str, Floats]:
    """Intervals in which each unit was observed: of a mapping, or one table (k, 2) for all units."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {unit: _intervals(given, "observed") for unit in trains}
    found = {text_of(unit): value for unit, value in given.items()}
    unknown = [unit for unit in found if unit not in trains]
    if unknown:
        raise ValueError(
            f"observed names {first_names(list(unknown))}, spikes has {first_names(list(trains))}"
        )
    return {unit: _intervals(value, f"observed[{unit!r}]") for unit, value in found.items()}


def _intervals(given: Any, what: str) -> Floats:
    """Intervals (k, 2) of a table, or of one pair."""
    table = as_numbers(given, what)
    if table.size and table.shape[-1:] != (2,):
        raise ValueError(f"{what} holds intervals (start, end) in s, (k, 2), got shape {table.shape}")
    return table.reshape(-1, 2)


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
