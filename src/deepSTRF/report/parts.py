"""What a report shows, as plain values: the border between gathering a run's results and drawing them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.experiments.examples import WEIGHTS, ModelFields, NeuronExample
from deepSTRF.experiments.run_folder import ScoreRow

__all__ = [
    "Bands",
    "NeuronExample",
    "Note",
    "ReportParts",
    "ScoreRow",
    "Section",
    "shown_lags",
]

# ------------------------------------------------------------------------------
# How many lags of a receptive field to draw: recurrent models have long windows, mostly empty.


#: Lags are drawn as far back as this share of the squared weights of nearly all maps lies.
ENERGY, MAPS = 0.99, 0.9
#: And a little further, so that one sees that it ends there.
MARGIN = 1.25
#: Only a window that is mostly empty is cut; below this gain it stays whole.
WORTH_IT = 2.0


def shown_lags(maps: Any) -> int:
    """Return how many of the most recent lags of some receptive fields are worth drawing.

    Shapes: maps (K, F, T).

    Examples
    --------
    >>> field = np.zeros((1, 4, 60)); field[..., -6:] = 1.0
    >>> shown_lags(field), shown_lags(np.ones((1, 4, 9)))
    (8, 9)
    """
    energy = np.asarray(maps, dtype=np.float64) ** 2
    n_lags = int(energy.shape[-1])
    summed = np.cumsum(energy.sum(axis=1)[:, ::-1], axis=1)
    alive = summed[:, -1] > 0
    if not alive.any():
        return n_lags
    needed = (summed[alive] < ENERGY * summed[alive, -1:]).sum(axis=1) + 1
    enough = math.ceil(MARGIN * float(np.quantile(needed, MAPS)))
    return enough if WORTH_IT * enough <= n_lags else n_lags


# ------------------------------------------------------------------------------
# The order of bands in pictures and tables: a learned front-end's channels may have changed places.


class Bands:
    """Bands from low to high, whatever their order in the model.

    Examples
    --------
    >>> bands = Bands([500.0, 2000.0, 1000.0])
    >>> bands.frequencies_hz.tolist(), bands.sorted(np.array([[5, 20, 10]]), axis=1).tolist()
    ([500.0, 1000.0, 2000.0], [[5, 10, 20]])
    """

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
        """Return receptive fields with their bands from low to high.

        Shapes: fields (N, F, T).
        """
        return None if fields is None else replace(fields, maps=self.sorted(fields.maps, axis=1))

    def of_example(self, example: NeuronExample) -> NeuronExample:
        """Return an example neuron with its bands from low to high."""
        strf = None if example.strf is None else self.sorted(example.strf, axis=0)
        return replace(example, stim=self.sorted(example.stim, axis=0), strf=strf)


# ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """Something the reader must know: level "warning" or "info", and a sentence.

    Examples
    --------
    >>> Note("info", "2 neurons have no score.").level
    'info'
    """

    level: str
    text: str


@dataclass(frozen=True)
class ReportParts:
    """Everything on the page. Only ``title`` is needed; a section whose parts are missing is left out.

    Attributes
    ----------
    title, subtitle : str
        Heading, and the line below it.
    headline : sequence of (value, label)
        The few numbers in large type.
    score_rows : sequence of ScoreRow
        Score table.
    seeds : sequence of int
        Seeds behind ``per_seed`` of the score rows.
    protocol : sequence of (label, value)
        The protocol card.
    notes : sequence of Note
        Warnings and remarks.
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
    strfs : array (N, F, T), optional
        Receptive fields.
    strf_kind : str
        What they are, for titles: "STRF weights" or "gradient maps".
    frequencies_hz : array (F,), optional
        Centre frequencies.
    latent : bool
        Whether the rows of spectrograms and receptive fields are channels of a learned output, not bands.
    dt_ms : float, optional
        Bin width.
    response_unit : str
        Label of response axes.
    command, config : str
        How to run it again.
    versions : sequence of (name, version)
        Software and machine.
    extras : mapping
        Parts of sections that other modules add.

    Examples
    --------
    >>> ReportParts("Linear on NS1").n_neurons
    0
    """

    title: str
    subtitle: str = ""
    headline: Sequence[tuple[str, str]] = ()
    score_rows: Sequence[ScoreRow] = ()
    seeds: Sequence[int] = ()
    protocol: Sequence[tuple[str, str]] = ()
    notes: Sequence[Note] = ()
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    neurons: Sequence[str] = ()
    main_score: str = "cc_norm"
    ceiling_interval: NDArray[np.float64] | None = None
    curves: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    examples: Sequence[NeuronExample] = ()
    strfs: NDArray[np.float64] | None = None
    strf_kind: str = WEIGHTS
    frequencies_hz: NDArray[np.float64] | None = None
    latent: bool = False
    dt_ms: float | None = None
    response_unit: str = "response"
    command: str = ""
    config: str = ""
    versions: Sequence[tuple[str, str]] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_neurons(self) -> int:
        """How many neurons the page is about."""
        return len(self.neurons)

    @property
    def band_label(self) -> str:
        """What the rows of spectrograms are called where they have no frequencies."""
        return "channel" if self.latent else "frequency band"

    def ranked(self) -> NDArray[np.intp]:
        """Return the neurons that have a main score, best first."""
        scores = np.asarray(self.columns.get(self.main_score, ()), dtype=np.float64)
        valid = np.flatnonzero(np.isfinite(scores))
        return valid[np.argsort(-scores[valid], kind="stable")]


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
        Its HTML; whoever makes it has escaped what came from outside (templates do).
    lead : str
        A sentence under the heading that says how to read it.

    Examples
    --------
    >>> Section("notes", "Notes", "<p>None.</p>").title
    'Notes'
    """

    anchor: str
    title: str
    body: str
    lead: str = ""
