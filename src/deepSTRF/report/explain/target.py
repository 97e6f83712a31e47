"""The model that is explained, the test clips it is explained on, and the files it is explained in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import npz_bytes, write_atomically
from deepSTRF._validation import FloatArray
from deepSTRF.experiments.config import ExperimentConfig
from deepSTRF.experiments.examples import ModelFields
from deepSTRF.report.parts import Bands
from deepSTRF.report.rendering import short_name

#: Begins a step: takes its title and number of pieces, returns a function that counts pieces done.
Begin: TypeAlias = Callable[[str, int], Callable[[int], None]]

#: Longest part of a clip that is used.
LONGEST_S = 5.0
#: Statistics use at most so many clips and seconds, to limit their cost.
MOST_CLIPS, MOST_S = 5, 15.0
#: Parts of clips hold at least so many bins, however long a bin is.
FEWEST_BINS = 10


class Skipped(Exception):  # noqa: N818  (not an error)
    """An analysis does not apply to this model or recording; the text is the reason."""


@dataclass(frozen=True)
class Excerpt:
    """Bins ``start`` to ``stop`` of a test clip, with its whole stimulus.

    ``psth`` (T, K) holds the responses of the chosen neurons to the whole clip, the mean over repeats; NaN
    where nothing was recorded.
    """

    clip: int
    name: str
    stim: Any
    psth: FloatArray
    start: int
    stop: int


def no_progress(title: str, total: int) -> Callable[[int], None]:
    """Begin a step without a display."""
    return lambda done: None


@dataclass(frozen=True)
class Target:
    """A fitted model, the neurons that are explained, and the data and folder for it."""

    model: Any
    fields: ModelFields | None = None  # receptive fields of all neurons
    neurons: Sequence[int] = ()  # those chosen
    names: Sequence[str] = ()  # of those chosen
    all_names: Sequence[str] = ()
    dt_ms: float = 1.0
    bands: Bands = field(default_factory=lambda: Bands(None))  # files hold them from low to high
    excerpt: Excerpt | None = None  # for the dynamic STRFs; None without the recording
    others: Sequence[Excerpt] = ()  # more test clips, for statistics
    dataset: Any = None  # the test clips
    views: Sequence[Any] = ()  # clips to train, validate and test
    config: ExperimentConfig | None = None
    unit: str = "raw"  # of receptive fields and dynamic STRFs
    missing: str = "it needs the recording"  # why there is no recording
    notes: Sequence[str] = ()  # on the recording
    folder: Path = Path()  # of the files
    begin: Begin = no_progress  # begins a step of the progress display

    @property
    def frequencies_hz(self) -> FloatArray | None:
        """Frequencies (F,) of the bands in Hz, ascending, where they are known."""
        return self.bands.frequencies_hz

    @property
    def labels(self) -> list[str]:
        """Short names for titles."""
        return [short_name(name, neuron) for name, neuron in zip(self.names, self.neurons, strict=True)]

    @property
    def takes_waveform(self) -> bool:
        """Whether the model has a front-end, so that its input is a waveform."""
        return hasattr(getattr(self.model, "wav2spec", None), "hop")

    def needs_fields(self) -> ModelFields:
        """Return the receptive fields, or skip the analysis."""
        if self.fields is None:
            raise Skipped("the model has no STRF weights and no finite gradient")
        return self.fields

    def needs_frequencies(self) -> FloatArray:
        """Return the frequencies of the bands, or skip the analysis."""
        if self.frequencies_hz is None and getattr(self.views[0] if self.views else None, "features", None):
            raise Skipped(
                "the stimuli are several features; take those that have frequencies: strf_tuning(model.STRFs("
                "feature='spectrogram'), dataset.feature_frequencies['spectrogram'], dataset.dt)"
            )
        if self.frequencies_hz is None:
            raise Skipped("neither recording nor front-end states the frequencies of the bands")
        if (np.diff(self.frequencies_hz) <= 0).any():
            raise Skipped("two bands of this front-end have the same frequency")
        return self.frequencies_hz

    def varying(self) -> NDArray[np.bool_]:
        """Return which bands (F,) of the receptive fields varied in the training sounds."""
        fields = self.needs_fields()
        varies = np.ones(fields.maps.shape[1], dtype=bool)
        varies[list(fields.left_out)] = False
        return varies if varies.any() else ~varies

    def needs_excerpt(self) -> Excerpt:
        """Return the excerpt, or skip the analysis."""
        if self.excerpt is None:
            raise Skipped(self.missing)
        return self.excerpt

    def write(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays to one file of the folder."""
        write_atomically(self.folder / f"{name}.npz", npz_bytes(arrays))


def choose_excerpts(dataset: Any, neurons: Sequence[int]) -> list[Excerpt]:
    """Test clips on which responses vary most, each neuron in units of its own largest variance."""
    psths = [_psth(dataset, clip, neurons) for clip in range(len(dataset))]
    spread = np.stack([np.nan_to_num(psth).var(axis=0) for psth in psths])
    recorded = np.stack([np.isfinite(psth).any(axis=0) for psth in psths])
    if not recorded.any():
        raise ValueError("none of the chosen neurons has a response to a test clip; choose others (neurons=)")
    largest = spread.max(axis=0)
    share = np.where(recorded, spread / np.where(largest > 0, largest, 1.0), -1.0).mean(axis=1)
    ranked = [int(clip) for clip in np.argsort(-share, kind="stable") if recorded[clip].any()]
    chosen: list[Excerpt] = []
    for clip in ranked[:MOST_CLIPS]:
        part = strongest_part(np.nan_to_num(psths[clip]).mean(axis=1), part_length(LONGEST_S, dataset.dt))
        meta = dataset.stim_meta[clip]
        name = str(meta.get("name", meta.get("stim_id", clip)))
        start, stop, _ = part.indices(len(psths[clip]))
        chosen.append(Excerpt(clip, name, dataset.stims[clip], psths[clip], start, stop))
        if sum(one.stop - one.start for one in chosen) * dataset.dt > 1000.0 * MOST_S * (1.0 + 1e-9):
            return chosen[: max(1, len(chosen) - 1)]
    return chosen


def part_length(seconds: float, dt_ms: float) -> int:
    """Bins of a part of a clip."""
    return max(FEWEST_BINS, round(1000.0 * seconds / dt_ms))


def strongest_part(series: FloatArray, length: int) -> slice:
    """Part of a series (T,), at most of the given length, in which its mean is largest."""
    values = np.nan_to_num(np.asarray(series, dtype=np.float64))
    if values.size <= length:
        return slice(0, values.size)
    summed = np.concatenate([[0.0], np.cumsum(values)])
    start = int((summed[length:] - summed[:-length]).argmax())
    return slice(start, start + length)


def _psth(dataset: Any, clip: int, neurons: Sequence[int]) -> FloatArray:
    """Mean (T, K) over the recorded repeats; NaN where there is none."""
    block = np.asarray(dataset.response_block(clip)[list(neurons)], dtype=np.float64)
    finite = np.isfinite(block)
    count = finite.sum(axis=1)
    total = np.where(finite, block, 0.0).sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan).T)
