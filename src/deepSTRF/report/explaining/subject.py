"""What is explained, and why a part of an explanation may not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.report.bands import Bands
from deepSTRF.report.bars import Begin, silent
from deepSTRF.report.explaining.excerpts import Excerpt
from deepSTRF.report.rendering import short_name
from deepSTRF.training.experiment_config import ExperimentConfig
from deepSTRF.training.files import npz_bytes, write_atomically
from deepSTRF.training.receptive_fields import ModelFields

__all__ = ["Skipped", "Subject"]

FloatArray = NDArray[np.float64]


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
    deepSTRF.report.explaining.subject.Skipped: it needs the recording
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
