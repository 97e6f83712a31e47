"""Content of a report as plain values, its sections, and the bands and lags in which maps are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import checked
from deepSTRF.experiments.examples import WEIGHTS, ModelFields, NeuronExample, Raster
from deepSTRF.experiments.run_folder import ScoreRow
from deepSTRF.interpret import WaveformField
from deepSTRF.interpret.front_ends import FrontEndResponse
from deepSTRF.report.explanation import Explanation

#: Lags are drawn as far back as this share of the squared weights of nearly all maps lies,
ENERGY, MAPS = 0.99, 0.9
#: with a margin,
MARGIN = 1.25
#: and only where the window becomes at least this many times shorter.
WORTH_IT = 2.0
#: What gradient maps are taken around, by whether the model standardises its input.
NULL_STIMULI = {
    False: "0 in every band: silence only where spectrograms are 0 in silence, as logarithmic ones are not",
    True: "the mean of each band over the training sounds, not silence",
}
#: The unit of receptive fields in titles and captions.
UNITS = {"sd": "per standard deviation of each band", "raw": "per unit of the spectrogram"}


@dataclass(frozen=True)
class FrontEndParts:
    """Class name and measured channels of a front-end; ``initial`` is None when nothing in it was learned."""

    name: str
    learned: FrontEndResponse
    initial: FrontEndResponse | None


@checked
@dataclass(frozen=True)
class ReportParts:
    """Content of a report. Only ``title`` is required; sections without content are left out.

    Attributes
    ----------
    title, subtitle : str
        Heading, and the line below it.
    headline : sequence of (value, label)
        The few numbers in large type.
    score_rows : sequence of ScoreRow
        Score table.
    seeds : sequence of int
        Seeds of ``per_seed`` in the score rows.
    protocol : sequence of (label, value)
        The protocol card.
    notes : sequence of (level, text)
        Warnings and remarks; level is "warning" or "info".
    columns : mapping of str to array (N,)
        Test scores per neuron, the mean over seeds.
    neurons : sequence of str
        Names of the N neurons.
    main_score : str
        The column by which neurons are ranked.
    ceiling_interval : array (N, 2), optional
        Confidence interval of the noise ceiling.
    curves : sequence of mappings
        One per seed: train_loss, val_loss, ... as series over epochs.
    best_epoch : int, optional
        0-based epoch of the kept weights, one seed only.
    examples : sequence of NeuronExample
        Best, median and worst neuron.
    recording : mapping
        What the load of the recording kept, skipped and noted, and the lags of its responses.
    rasters : sequence of Raster
        Repeats of neurons over the range of scores.
    strfs : array (N, F, T), optional
        Receptive fields.
    strf_kind : str
        Kind of the receptive fields: "STRF weights" or "gradient maps".
    null_stimulus : str
        What gradient maps are taken around.
    first_lag : int
        Lag of the last frame of the receptive fields in bins; below 0 it lies after the response.
    features, feature_frequencies : mapping of str to int, mapping of str to array
        Named features of the stimuli, with their numbers of rows and, where known, their frequencies in Hz.
    strf_unit : str
        "sd" for receptive fields per standard deviation of each band of the training sounds, else "raw".
    left_out : str
        Bands without variance in the training sounds, by name.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    latent : bool
        Whether the rows of spectrograms and receptive fields are channels of a learned output, not bands.
    dt_ms : float, optional
        Bin width in ms.
    response_unit : str
        Label of response axes, such as "spikes per bin" or "response (uV)".
    command, config : str
        Command and configuration that repeat the run.
    versions : sequence of (name, version)
        Software and machine.
    explanation : Explanation, optional
        Results of `explain_run`.
    front_end : FrontEndParts, optional
        Channels of the front-end, before and after learning.
    waveform_field : (NeuronExample, WaveformField), optional
        An example neuron and its receptive field in the waveform.

    Examples
    --------
    >>> ReportParts("Linear on NS1", neurons=["a", "b"]).n_neurons
    2
    """

    title: str
    subtitle: str = ""
    headline: Sequence[tuple[str, str]] = ()
    score_rows: Sequence[ScoreRow] = ()
    seeds: Sequence[int] = ()
    protocol: Sequence[tuple[str, str]] = ()
    notes: Sequence[tuple[str, str]] = ()
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    neurons: Sequence[str] = ()
    main_score: str = "cc_norm"
    ceiling_interval: NDArray[np.float64] | None = None
    curves: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    examples: Sequence[NeuronExample] = ()
    recording: Mapping[str, Any] = field(default_factory=dict)
    rasters: Sequence[Raster] = ()
    strfs: NDArray[np.float64] | None = None
    strf_kind: str = WEIGHTS
    null_stimulus: str = NULL_STIMULI[False]
    first_lag: int = 0
    features: Mapping[str, int] = field(default_factory=dict)
    feature_frequencies: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    strf_unit: str = "raw"
    left_out: str = ""
    frequencies_hz: NDArray[np.float64] | None = None
    latent: bool = False
    dt_ms: float | None = None
    response_unit: str = "response"
    command: str = ""
    config: str = ""
    versions: Sequence[tuple[str, str]] = ()
    explanation: Explanation | None = None
    front_end: FrontEndParts | None = None
    waveform_field: tuple[NeuronExample, WaveformField] | None = None

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return len(self.neurons)

    def main_feature(self) -> tuple[str, slice]:
        """Return name and rows of the feature with the most rows, which examples show; "" is all rows."""
        if not self.features:
            return "", slice(None)
        name = max(self.features, key=lambda one: self.features[one])
        first = sum(self.features[one] for one in list(self.features)[: list(self.features).index(name)])
        return name, slice(first, first + self.features[name])

    @property
    def band_label(self) -> str:
        """Label of the rows of spectrograms without frequencies."""
        return "channel" if self.latent else "frequency band"

    def ranked(self) -> NDArray[np.intp]:
        """Return the neurons that have a main score, best first."""
        scores = np.asarray(self.columns.get(self.main_score, ()), dtype=np.float64)
        valid = np.flatnonzero(np.isfinite(scores))
        return valid[np.argsort(-scores[valid], kind="stable")]


@checked
@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes
    ----------
    anchor : str
        Its id, for links.
    title : str
        Its heading.
    body : str
        Its HTML. Text from a recording or a user must be escaped in it, as templates do.
    lead : str
        Explanation under the heading.

    Examples
    --------
    >>> Section("notes", "Notes", "<p>None.</p>").title
    'Notes'
    """

    anchor: str
    title: str
    body: str
    lead: str = ""


class Bands:
    """Bands ordered from low to high frequency: those of a learned front-end may be in any order."""

    def __init__(self, frequencies_hz: Sequence[float] | None) -> None:
        hertz = None if frequencies_hz is None else np.asarray(frequencies_hz, dtype=np.float64)
        self.order: NDArray[np.intp] | None = None if hertz is None else np.argsort(hertz, kind="stable")
        self.frequencies_hz: NDArray[np.float64] | None = None if hertz is None else hertz[self.order]

    def sorted(self, values: NDArray[Any], axis: int) -> NDArray[Any]:
        """Return an array with its bands from low to high."""
        if self.order is None or values.shape[axis] != len(self.order):
            return values
        return np.take(values, self.order, axis=axis)

    def of_fields(self, fields: ModelFields | None) -> ModelFields | None:
        """Return receptive fields (N, F, T) with their bands from low to high."""
        if fields is None:
            return None
        place = {} if self.order is None else {int(old): new for new, old in enumerate(self.order)}
        left_out = tuple(sorted(place.get(band, band) for band in fields.left_out))
        return replace(fields, maps=self.sorted(fields.maps, axis=1), left_out=left_out)

    def named(self, bands: Sequence[int]) -> str:
        """Return bands, counted from low to high, by their frequencies, or by their numbers."""
        if self.frequencies_hz is None:
            return ", ".join(str(band) for band in bands)
        return ", ".join(f"{self.frequencies_hz[band] / 1000:.3g} kHz" for band in bands)

    def of_example(self, example: NeuronExample) -> NeuronExample:
        """Return an example neuron with its bands from low to high."""
        strf = None if example.strf is None else self.sorted(example.strf, axis=0)
        return replace(example, stim=self.sorted(example.stim, axis=0), strf=strf)


def shown_lags(maps: Any) -> int:
    """Number of most recent lags of receptive fields (K, F, T) to draw: long windows may be mostly empty."""
    energy = np.asarray(maps, dtype=np.float64) ** 2
    n_lags = int(energy.shape[-1])
    summed = np.cumsum(energy.sum(axis=1)[:, ::-1], axis=1)
    nonzero = summed[:, -1] > 0
    if not nonzero.any():
        return n_lags
    needed = (summed[nonzero] < ENERGY * summed[nonzero, -1:]).sum(axis=1) + 1
    enough = math.ceil(MARGIN * float(np.quantile(needed, MAPS)))
    return enough if WORTH_IT * enough <= n_lags else n_lags
