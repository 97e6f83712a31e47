"""What a laboratory has before anything is cut or binned: sounds, presentations, and spikes or signals.

Readers of file formats make a `Session`; ``AudioNeuralDataset.from_trials`` and ``from_continuous`` make one
of what they are given. `deepSTRF.datasets.trials` and `deepSTRF.datasets.continuous` cut sessions into clips
and bins. All times are seconds on the clock of the recording, float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF.datasets.recording import LoadReport

__all__ = ["Feature", "Pieces", "Session", "Signal", "Sound", "Trials", "sound_hash"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound that is read when it is needed.

    ``read`` returns float samples (T_audio,) or (T_audio, channels) as the file holds them: floats
    unchanged, integers divided by their full scale. ``fs`` is the true rate in Hz; a float is taken at its
    binary value. ``source`` says where it is from, for messages.
    """

    read: Callable[[], npt.NDArray[Any]]
    fs: float | Fraction
    n_samples: int | None = None  # where it is known without reading
    source: str = ""

    def content_hash(self) -> str:
        """SHA-256 (hex) of rate, shape and samples in float64: equal sounds in any container are equal."""
        return sound_hash(self.read(), self.fs)


def sound_hash(samples: npt.NDArray[Any], fs: float | Fraction) -> str:
    """SHA-256 (hex) of rate, shape and float64 samples of a sound that was read."""
    values = np.ascontiguousarray(samples, dtype="<f8")
    digest = hashlib.sha256(f"{Fraction(fs)}:{values.shape}:".encode())
    digest.update(values.data if values.size else b"")
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Feature:
    """A named feature of one stimulus: (F, T) values at ``fs`` frames per second from its onset.

    ``fs`` None: the frames are the bins of the dataset. ``frequencies_hz`` (F,) where rows are bands.
    """

    values: npt.NDArray[Any]
    fs: float | Fraction | None = None
    frequencies_hz: Floats | None = None


@dataclass(frozen=True, eq=False)
class Trials:
    """Presentations in the order of their table: one row per trial.

    ``stimulus`` names the sound or the features ("" is a blank), ``onset_s`` is its onset, ``offset_s`` its
    end (NaN: as long as the sound). ``condition`` is free text. ``meta`` holds further columns.
    """

    stimulus: Sequence[str]
    onset_s: Floats
    offset_s: Floats | None = None
    condition: Sequence[str] | None = None
    meta: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stimulus)


@dataclass(frozen=True, eq=False)
class Signal:
    """A continuous recording: (channels, T) at ``fs`` Hz, row 0 of time at ``start_s``.

    ``data`` is an array, a memory map, or anything that ``data[:, a:b]`` reads a piece of. NaN is "not
    recorded"; so are the spans ``bad_s`` (k, 2), of all channels, and ``bad_channels``.
    """

    data: Any
    fs: float | Fraction
    channels: Sequence[str]
    start_s: float = 0.0
    unit: str = "arbitrary units"
    bad_s: Floats = field(default_factory=lambda: np.empty((0, 2)))
    bad_channels: Sequence[str] = ()


class Pieces:
    """Data of a `Signal` that was stored in pieces (first sample, (channels, T) values); NaN between them."""

    def __init__(self, pieces: Sequence[tuple[int, Floats]], n_channels: int, length: int) -> None:
        self.pieces, self.shape = list(pieces), (n_channels, length)
        self.dtype, self.ndim = np.dtype(np.float64), 2

    def __getitem__(self, key: Any) -> Floats:
        """``[rows, a:b]``: a stretch of time."""
        rows, columns = key
        begin, end, step = columns.indices(self.shape[1])
        out = np.full((self.shape[0], max(0, end - begin)), np.nan)
        for at, block in self.pieces:
            low, high = max(begin, at), min(end, at + block.shape[1])
            if low < high:
                out[:, low - begin : high - begin] = block[:, low - at : high - at]
        found: Floats = out[:, ::step][rows]
        return found


@dataclass(eq=False)
class Session:
    """One recording session: trials, stimuli by name, and spike times or a signal.

    Attributes
    ----------
    trials : Trials
        Presentations. Data that were stored relative to each onset are placed one after the other on a clock
        of their own (`Session.aligned`).
    sounds : mapping of str to Sound
        Waveforms by stimulus name; empty where stimuli are features only.
    features : mapping of str to mapping of str to Feature
        ``features[feature][stimulus]``.
    spikes : mapping of str to float64 array (n,), or None
        Ascending spike times in s of each unit. A unit without spikes has an empty array.
    signal : Signal or None
        In place of spikes.
    observed : mapping of str to float64 array (k, 2)
        Intervals in s in which a unit was observed; outside nothing is known (NaN), which is not "no spike".
        A unit that is not listed was observed during ``span_s``, or throughout where that is None.
    span_s : (float, float) or None
        Start and end of the recording.
    unit_meta, stim_meta : mapping of str to dict
        Metadata by unit (or channel) and by stimulus name. ``stim_meta[...]["split"]`` may hold "train",
        "validation" or "test" where the data come with a split.
    name, species : str
        Name in reports; whose neurons these are.
    facts : dict
        Facts for `describe`: source, DOI, licence, ... "bin_ms" is the width of the bins where spikes were
        stored as counts and stand in the middle of them: only multiples of it are bins of a dataset.
    exact : dict
        What a dataset that was written by us needs to come back equal (bin width, kind, unit, views, ...).
    report : LoadReport
        What the reader of the files kept, skipped and noted.
    """

    trials: Trials
    sounds: Mapping[str, Sound] = field(default_factory=dict)
    features: Mapping[str, Mapping[str, Feature]] = field(default_factory=dict)
    spikes: Mapping[str, Floats] | None = None
    signal: Signal | None = None
    observed: Mapping[str, Floats] = field(default_factory=dict)
    span_s: tuple[float, float] | None = None
    unit_meta: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    stim_meta: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    name: str = "recording"
    species: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)

    @classmethod
    def aligned(
        cls,
        unit: str,
        times_s: Mapping[str, Sequence[npt.ArrayLike]],
        window_s: Mapping[str, tuple[float, float]],
        **rest: Any,
    ) -> Session:
        """Session of one unit whose spike times are stored per trial, relative to the onset of the sound.

        ``times_s[stimulus]`` holds one array of times per repeat; an empty array is a silent repeat.
        ``window_s[stimulus]`` is the stretch (start, end) around the onset in which spikes were looked for;
        times outside it are dropped and noted.
        """
        names, onsets, spikes, observed = [], [], [], []
        clock, outside = 0.0, 0
        report = rest.setdefault("report", LoadReport())
        for stimulus, repeats in times_s.items():
            start, end = window_s[stimulus]
            for times in repeats:
                onset = float(np.ceil(clock - start) + 1.0)  # whole seconds: k * dt stays what it was
                found = np.sort(np.asarray(times, dtype=np.float64).reshape(-1))
                inside = (found >= start) & (found < end)
                outside += int((~inside).sum())
                names.append(stimulus)
                onsets.append(onset)
                spikes.append(onset + found[inside])
                observed.append((onset + start, onset + end))
                clock = onset + end
        if outside:
            report.note("spikes outside their trial", f"unit {unit}: {outside} spikes", outside)
        return cls(
            trials=Trials(names, np.array(onsets)),
            spikes={unit: np.concatenate([*spikes, np.empty(0)])},
            observed={unit: np.array(observed).reshape(-1, 2)},
            span_s=(0.0, clock + 1.0),
            **rest,
        )
