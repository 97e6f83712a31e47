"""What is explained, and why a part of an explanation may not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import npz_bytes, write_atomically
from deepSTRF.experiments.config import ExperimentConfig
from deepSTRF.experiments.examples import ModelFields
from deepSTRF.report.parts import Bands
from deepSTRF.report.rendering import Begin, short_name, silent

__all__ = ["Excerpt", "Skipped", "Subject", "choose_excerpts", "strongest_stretch"]

# ------------------------------------------------------------------------------
# Which stretch of which test clip is looked at: the one to which the chosen neurons respond most.


FloatArray = NDArray[np.float64]

#: Longer clips are looked at in part.
LONGEST_S = 5.0
#: Statistics rest on several clips: so many, and together so long, that they stay cheap.
MOST_CLIPS, MOST_S = 5, 15.0


@dataclass(frozen=True)
class Excerpt:
    """One clip, and the bins of it that are looked at.

    Attributes
    ----------
    clip : int
        Index among the test clips.
    name : str
        Its name.
    stim : Tensor
        The whole stimulus.
    psth : array (T, K)
        Responses of the chosen neurons to the whole clip, repeats averaged; NaN where nothing was recorded.
    start, stop : int
        First bin, and the one after the last.

    Examples
    --------
    >>> Excerpt(0, "a", None, np.zeros((5, 1)), 1, 4).stop
    4
    """

    clip: int
    name: str
    stim: Any
    psth: FloatArray
    start: int
    stop: int


def choose_excerpts(dataset: Any, neurons: Sequence[int]) -> list[Excerpt]:
    """Return the clips on which responses vary most, each neuron in units of its own largest variance.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=8, n_repeats=2, clip_seconds=4.0)
    >>> len(choose_excerpts(ds, [1]))
    3
    """
    psths = [_psth(dataset, clip, neurons) for clip in range(len(dataset))]
    spread = np.stack([np.nan_to_num(psth).var(axis=0) for psth in psths])
    heard = np.stack([np.isfinite(psth).any(axis=0) for psth in psths])
    if not heard.any():
        raise ValueError("none of the chosen neurons heard any test clip; choose others with neurons=")
    largest = spread.max(axis=0)
    share = np.where(heard, spread / np.where(largest > 0, largest, 1.0), -1.0).mean(axis=1)
    ranked = [int(clip) for clip in np.argsort(-share, kind="stable") if heard[clip].any()]
    chosen: list[Excerpt] = []
    for clip in ranked[:MOST_CLIPS]:
        chosen.append(_excerpt(dataset, clip, psths[clip]))
        if sum(one.stop - one.start for one in chosen) * dataset.dt > 1000.0 * MOST_S * (1.0 + 1e-9):
            return chosen[: max(1, len(chosen) - 1)]
    return chosen


def _excerpt(dataset: Any, clip: int, psth: FloatArray) -> Excerpt:
    part = strongest_stretch(np.nan_to_num(psth).mean(axis=1), round(1000 * LONGEST_S / dataset.dt))
    meta = dataset.stim_meta[clip]
    name = str(meta.get("name", meta.get("stim_id", clip)))
    return Excerpt(clip, name, dataset.stims[clip], psth, *part.indices(len(psth))[:2])


def strongest_stretch(series: FloatArray, length: int) -> slice:
    """Return the stretch of a series in which it is largest in the mean.

    Shapes: series (T,).

    Examples
    --------
    >>> strongest_stretch(np.array([0.0, 0.0, 1.0, 3.0, 0.0]), 2)
    slice(2, 4, None)
    """
    values = np.nan_to_num(np.asarray(series, dtype=np.float64))
    if values.size <= length:
        return slice(0, values.size)
    summed = np.concatenate([[0.0], np.cumsum(values)])
    start = int((summed[length:] - summed[:-length]).argmax())
    return slice(start, start + length)


def _psth(dataset: Any, clip: int, neurons: Sequence[int]) -> FloatArray:
    """(T, K) mean over the repeats that were recorded; NaN where there is none."""
    block = np.asarray(dataset.response_block(clip)[list(neurons)], dtype=np.float64)
    finite = np.isfinite(block)
    count = finite.sum(axis=1)
    total = np.where(finite, block, 0.0).sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan).T)


# ------------------------------------------------------------------------------


class Skipped(Exception):  # noqa: N818  (not an error: a part that says why it does not apply)
    """A part does not apply to this model or recording; the text says why.

    Examples
    --------
    >>> str(Skipped("the bands have no frequencies"))
    'the bands have no frequencies'
    """


@dataclass(frozen=True)
class Subject:
    """What is explained, and with what.

    Attributes
    ----------
    model : AudioEncodingModel
        The fitted model.
    fields : ModelFields or None
        Receptive fields of all neurons.
    neurons, names : list
        Indices of the neurons chosen, and what they are called.
    all_names : list of str
        Names of all neurons.
    dt_ms : float
        Bin in ms.
    bands : Bands
        Bands of the model's spectrogram, and their order from low to high, in which everything is written.
    excerpt : Excerpt or None
        The stretch of sound that is looked at; None without the recording.
    others : sequence of Excerpt
        More of the test clips, for statistics.
    dataset : NeuralDataset or None
        The test clips.
    views : sequence of NeuralDataset
        Clips to train, validate and test.
    config : ExperimentConfig or None
        How the model was fitted.
    missing : str
        Why there is no recording.
    folder : Path
        Where files go.
    begin : callable
        Begins a bar.

    Examples
    --------
    >>> Subject(model=None).needs_excerpt()
    Traceback (most recent call last):
        ...
    deepSTRF.report.explain.target.Skipped: it needs the recording
    """

    model: Any
    fields: ModelFields | None = None
    neurons: Sequence[int] = ()
    names: Sequence[str] = ()
    all_names: Sequence[str] = ()
    dt_ms: float = 1.0
    bands: Bands = field(default_factory=lambda: Bands(None))
    excerpt: Excerpt | None = None
    others: Sequence[Excerpt] = ()
    dataset: Any = None
    views: Sequence[Any] = ()
    config: ExperimentConfig | None = None
    missing: str = "it needs the recording"
    folder: Path = Path()
    begin: Begin = silent

    def needs_fields(self) -> ModelFields:
        """Return the receptive fields, or skip the part."""
        if self.fields is None:
            raise Skipped("the model has no STRF weights and no finite gradient")
        return self.fields

    @property
    def frequencies_hz(self) -> FloatArray | None:
        """Frequencies (F,) of the bands in Hz, ascending, where they are known."""
        return self.bands.frequencies_hz

    def needs_frequencies(self) -> FloatArray:
        """Return the frequencies of the bands, or skip the part."""
        if self.frequencies_hz is None:
            raise Skipped("neither recording nor front-end say which frequencies the bands have")
        if (np.diff(self.frequencies_hz) <= 0).any():
            raise Skipped("two bands of this front-end have the same frequency")
        return self.frequencies_hz

    def needs_excerpt(self) -> Excerpt:
        """Return the stretch of sound, or skip the part."""
        if self.excerpt is None:
            raise Skipped(self.missing)
        return self.excerpt

    @property
    def labels(self) -> list[str]:
        """Short names for titles."""
        return [short_name(name, neuron) for name, neuron in zip(self.names, self.neurons, strict=True)]

    def hears_samples(self) -> bool:
        """Return whether the model has a front-end, so that it can be played sounds as they are."""
        return hasattr(getattr(self.model, "wav2spec", None), "hop")

    def write(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays to one file of the folder."""
        write_atomically(self.folder / f"{name}.npz", npz_bytes(arrays))
