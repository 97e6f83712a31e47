"""Scores of a fitted model against a recording and its noise ceiling, one row per neuron.

A mean over neurons is given with the number of neurons in it and the number left out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepSTRF._files import csv_of, json_of
from deepSTRF._validation import check_non_negative, check_not_empty, checked, checked_but
from deepSTRF.metrics import ScoreStatistics, neuron_quality
from deepSTRF.metrics._statistics import (
    ClipPowers,
    PooledPowers,
    RepeatSummary,
    check_centring,
    check_clip,
)
from deepSTRF.metrics.quality import NeuronQuality, QualitySums
from deepSTRF.metrics.score_statistics import PredictionMoments
from deepSTRF.metrics.scores import metric_named, score_columns
from deepSTRF.metrics.stacks import stacks
from deepSTRF.models.configurable import placement
from deepSTRF.models.fitted_on import check_response_unit, n_trained_on
from deepSTRF.models.prediction import predict_clips, predict_pieces
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.objective import MeanScore
from deepSTRF.training.validate import check_prediction

__all__ = ["ScoreTable", "clip_statistics", "neuron_names", "scale_note", "score_model", "score_predictions"]

Column = npt.NDArray[np.float64]

#: Resamples behind the ceiling's interval: enough for its second digit.
N_BOOTSTRAP = 200
#: Values of the stimuli of clips that are predicted before they are scored (16 MB), and of those that go
#: through the model at once: less than one clip of NS1 as a waveform holds.
WINDOW_VALUES, TOGETHER = 1 << 22, 1 << 17
#: Correlation of a prediction that has something of the response's shape, and the share of the response's
#: variance that a wrong scale and offset cost, from which they are said.
GOOD_CC, COSTLY_SCALE = 0.2, 1.0


@checked
@dataclass(frozen=True)
class ScoreTable:
    """Scores per neuron; a neuron without a score has NaN there, and the table says why.

    Attributes
    ----------
    neurons : tuple of str
        Names of the N neurons, all different.
    columns : mapping of str to array (N,)
        The scores by name.
    reasons : tuple of str
        Per neuron why a value is missing; empty where none is.
    facts : dict
        How the table was made (centring, clips, onset left out, smoothing, bin), the unit of the responses,
        ``recording``: the fingerprint of what was scored (``dataset.content_fingerprint()``), of a model's
        scores ``trained_on``: how many clips hold sounds that took part in its fit, and ``notes``: sentences,
        one where predictions have another scale or offset than the responses.

    Raises
    ------
    ValueError
        When a column has another length.

    Examples
    --------
    >>> table = ScoreTable(("a", "b"), {"cc": np.array([0.5, np.nan])}, ("", "silent"))
    >>> table.mean("cc")
    MeanScore(mean=0.5, n=1, n_nan=1)
    >>> print(table.to_csv())
    neuron,cc,reason
    a,0.5,
    b,,silent
    <BLANKLINE>
    """

    neurons: tuple[str, ...]
    columns: Mapping[str, Column]
    reasons: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if column.shape != (len(self.neurons),):
                raise ValueError(f"column {name!r} must be ({len(self.neurons)},), got {column.shape}")
        if self.reasons and len(self.reasons) != len(self.neurons):
            raise ValueError(f"reasons must name {len(self.neurons)} neurons, got {len(self.reasons)}")

    def __len__(self) -> int:
        return len(self.neurons)

    def __getitem__(self, name: str) -> Column:
        if name not in self.columns:
            raise KeyError(f"no score {name!r}; this table has {', '.join(self.columns)}")
        return self.columns[name]

    @checked
    def mean(self, name: str) -> MeanScore:
        """Return mean, number of neurons in it and number of NaN neurons left out."""
        values = self[name]
        numbers = values[~np.isnan(values)]
        mean = float(numbers.mean()) if numbers.size else math.nan
        return MeanScore(mean, int(numbers.size), int(values.size - numbers.size))

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return one row per score: name, label, mean, median, lower and upper decile, n, n_nan."""
        rows = []
        for name, values in self.columns.items():
            numbers = values[~np.isnan(values)]
            deciles = np.quantile(numbers, [0.1, 0.5, 0.9]).tolist() if numbers.size else [math.nan] * 3
            mean, n, n_nan = self.mean(name)
            rows.append(
                {
                    "score": name,
                    "label": metric_named(name).label,
                    "mean": mean,
                    "median": deciles[1],
                    "p10": deciles[0],
                    "p90": deciles[2],
                    "n": n,
                    "n_nan": n_nan,
                }
            )
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per neuron."""
        reasons = self.reasons or ("",) * len(self)
        return [
            {
                "neuron": neuron,
                **{name: float(column[index]) for name, column in self.columns.items()},
                "reason": reasons[index],
            }
            for index, neuron in enumerate(self.neurons)
        ]

    @checked
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the table as CSV, and write it when a path is given; a missing score is an empty cell."""
        return csv_of(self.rows(), path, ["neuron", *self.columns, "reason"])

    @checked
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return facts, summary and rows as JSON, and write it when a path is given; NaN is null."""
        content = {"facts": self.facts, "summary": self.summary_rows(), "neurons": self.rows()}
        return json_of(content, path)

    def __str__(self) -> str:
        lines = [f"{'score':<20}{'mean':>9}{'median':>9}{'p10':>9}{'p90':>9}{'n':>6}{'NaN':>5}"]
        for row in self.summary_rows():
            numbers = "".join(f"{row[key]:>9.4g}" for key in ("mean", "median", "p10", "p90"))
            lines.append(f"{row['score']:<20}{numbers}{row['n']:>6}{row['n_nan']:>5}")
        return "\n".join(lines)


def neuron_names(metadata: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return one name per neuron, all different: the recording's own where it has them, else the index."""
    names: dict[str, None] = {}
    for index, meta in enumerate(metadata):
        name = str(meta.get("cell_id", meta.get("name", index)))
        while name in names:  # a recording may itself name a neuron "a (2)"
            name = f"{name} ({index})"
        names[name] = None
    return tuple(names)


@checked_but("model")
def score_model(
    model: nn.Module,
    dataset: DatasetLike,
    *,
    centring: str = "concat",
    n_bootstrap: int = N_BOOTSTRAP,
    warmup_ms: float = 0.0,
    device: str | torch.device | None = None,
) -> ScoreTable:
    """Score a model on the clips of a data set (usually the test view), neuron by neuron.

    Clips are read a few MB at a time, so memory does not grow with the recording. The published form of the
    noise-corrected correlation stands beside ours, so that numbers printed elsewhere can be compared.

    Parameters
    ----------
    model : nn.Module
        A fitted model.
    dataset : DatasetLike
        Clips to score; ``split.apply(dataset)[2]`` gives the test view. Neurons of a fitted model are matched
        by name: the rows of the table are those of the dataset.
    centring : {"concat", "clip", "published"}
        Of ``cc_norm``.
    n_bootstrap : int
        Resamples behind the interval of the noise ceiling; 0 leaves the interval out.
    warmup_ms : float
        Onset of every clip that is left out, as in the fit.
    device : str or torch.device, optional
        Where to run the model; None is where it is. The model returns to its place.

    Returns
    -------
    ScoreTable
        One column per registered metric: cc_norm, cc_norm_published, cc, fve, mse, ccmax, ccmax_low,
        ccmax_high, snr.

    Raises
    ------
    ModelRuleError
        When the prediction does not fit the recording.
    ValueError
        When ``centring`` is unknown, the warm-up covers a whole clip, or the dataset is of other neurons,
        bins, bands or another unit than the model was fitted on.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    >>> table = score_model(Linear(ds.F, 9, 3).eval(), ds, n_bootstrap=0)
    >>> len(table), table.mean("cc_norm").n + table.mean("cc_norm").n_nan
    (3, 3)
    """
    home, _ = placement(model)
    check_response_unit(model, dataset)
    try:
        if device is not None:
            model.to(device)

        def in_pieces(clip: int, pieces: Pieces) -> Iterable[Tensor]:
            return predict_pieces(model, dataset, clip, pieces)

        predictions = Predictions(lambda clips: _in_windows(model, dataset, clips), in_pieces)
        table = _score(predictions, dataset, centring, n_bootstrap, warmup_ms)
        table.facts["trained_on"] = n_trained_on(model, dataset)
        return table
    finally:
        model.to(home)


@checked
def score_predictions(
    predict: Callable[[int], Tensor],
    dataset: DatasetLike,
    *,
    centring: str = "concat",
    n_bootstrap: int = N_BOOTSTRAP,
    warmup_ms: float = 0.0,
) -> ScoreTable:
    """Score predictions of any origin (another tool, a file) on the clips of a data set.

    Parameters
    ----------
    predict : callable
        ``predict(clip)`` returns the predicted responses (N, T) to a clip, in the unit of the responses.
    dataset : DatasetLike
        Clips to score.
    centring : {"concat", "clip", "published"}
        Of ``cc_norm``.
    n_bootstrap : int
        Resamples behind the interval of the noise ceiling.
    warmup_ms : float
        Onset of every clip that is left out.

    Returns
    -------
    ScoreTable
        As of `score_model`.

    Raises
    ------
    ModelRuleError
        When a prediction does not fit the recording.
    ValueError
        When ``centring`` is unknown, or the warm-up covers a whole clip.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    >>> oracle = score_predictions(lambda clip: ds.true_rates[clip], ds, n_bootstrap=0)
    >>> bool(oracle.mean("cc_norm").mean > 0.9)
    True
    """

    def cut(clip: int, pieces: Pieces) -> Iterable[Tensor]:
        whole = predict(clip)
        return (whole[:, start:stop] for start, stop in pieces)

    predictions = Predictions(lambda clips: map(predict, clips), cut)
    return _score(predictions, dataset, centring, n_bootstrap, warmup_ms)


#: Bins (start, stop) of the pieces of a clip.
Pieces = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Predictions:
    """Where predictions come from: (N, T) of whole clips in their order, or of the pieces of one clip."""

    of_clips: Callable[[Sequence[int]], Iterable[Tensor]]
    of_pieces: Callable[[int, Pieces], Iterable[Tensor]]


def _in_windows(model: nn.Module, dataset: DatasetLike, clips: Sequence[int]) -> Iterator[Tensor]:
    """Predictions of a model, of some clips together so that those of one length meet."""
    window: list[int] = []
    values = 0
    for clip in clips:
        window.append(clip)
        values += dataset.stims[clip].numel()
        if values > WINDOW_VALUES:
            yield from predict_clips(model, dataset, clips=window, together=TOGETHER)
            window, values = [], 0
    if window:
        yield from predict_clips(model, dataset, clips=window, together=TOGETHER)


def _score(
    predictions: Predictions, dataset: DatasetLike, centring: str, n_bootstrap: int, warmup_ms: float
) -> ScoreTable:
    """Scores of predictions, in one pass over the responses; very long clips come in pieces, in two."""
    check_centring(centring, published=True)
    skip = math.ceil(check_non_negative("warmup_ms", warmup_ms) / dataset.dt - 1e-9)
    scored = _WithoutOnset(dataset, skip)
    in_pieces = centring == "concat" and bool(getattr(dataset, "in_pieces", False))
    of_quality = "clip" if centring == "published" else centring
    if in_pieces:
        statistics = _statistics(_pieces(predictions, dataset, skip), centring, None)
        quality = neuron_quality(scored, centring=of_quality, n_bootstrap=n_bootstrap)
    else:
        check_not_empty("dataset", dataset)
        sums = QualitySums(len(dataset), of_quality, n_bootstrap=n_bootstrap)
        statistics = _statistics(_clips(predictions, scored), centring, sums)
        quality = sums.table(scored)
    statistics = replace(statistics, reliability=vars(quality))
    columns = {name: np.asarray(values.double().cpu()) for name, values in score_columns(statistics).items()}
    reasons = _reasons(quality, columns)
    names = neuron_names(dataset.nrn_meta)
    notes = [note] if (note := scale_note(columns, names)) else []
    if in_pieces:
        columns["cc_norm_published"] = np.full(len(names), np.nan)
        notes.append("Very long clips were scored piece by piece: cc_norm_published needs them whole.")
    facts = {
        "notes": notes,
        "response_unit": getattr(dataset, "response_unit", None),
        "recording": content() if (content := getattr(dataset, "content_fingerprint", None)) else None,
        "centring": centring,
        "n_clips": len(dataset),
        "warmup_ms": float(warmup_ms),
        "dt_ms": float(dataset.dt),
        "smoothing_ms": quality.smoothing_ms,
        "n_bootstrap": n_bootstrap,
        "confidence": quality.confidence,
    }
    return ScoreTable(names, columns, reasons, facts)


def clip_statistics(
    predictions: Sequence[Tensor], dataset: DatasetLike, *, centring: str = "concat", warmup_ms: float = 0.0
) -> ScoreStatistics:
    """Statistics of predictions (N, T), one per clip, from which the scores of any resample of clips follow.

    The clips are those of the data set: ``clip_statistics(predictions, ds).resampled(weights).cc_norm()``.
    """
    if len(predictions) != len(dataset):
        raise ValueError(
            f"predictions holds one tensor (N, T) per clip, {len(dataset)} of them, got {len(predictions)}"
        )
    check_centring(centring, published=True)
    skip = math.ceil(check_non_negative("warmup_ms", warmup_ms) / dataset.dt - 1e-9)
    given = Predictions(lambda clips: predictions, lambda clip, pieces: ())
    return _statistics(_clips(given, _WithoutOnset(dataset, skip)), centring, None)


#: Number of a clip (of a piece: with its first bin), its responses (N, R, T) and their prediction (N, T).
Scored = Iterator[tuple[Any, tuple[Tensor, Tensor]]]


def _clips(predictions: Predictions, scored: _WithoutOnset) -> Scored:
    """Whole clips without their onset."""
    clips = range(len(scored))
    for clip, rates in zip(clips, predictions.of_clips(clips), strict=True):
        responses = scored.response_block(clip)
        yield clip, (responses, _fitting(rates, responses, scored.skip))


def _pieces(predictions: Predictions, dataset: Any, skip: int) -> Scored:
    """Pieces of long clips, without the onset of each clip."""
    for clip in range(len(dataset)):
        pieces = dataset.pieces(clip)
        if len(pieces) == 1:
            responses = _WithoutOnset(dataset, skip).response_block(clip)
            yield (clip, 0), (responses, _fitting(next(iter(predictions.of_clips([clip]))), responses, skip))
            continue
        for (start, stop), rates in zip(pieces, predictions.of_pieces(clip, pieces), strict=True):
            hidden = max(0, skip - start)
            if stop - start > hidden:
                responses = dataset.response_block(clip, start + hidden, stop)
                yield (clip, start), (responses, _fitting(rates, responses, hidden))


def _fitting(rates: Tensor, responses: Tensor, hidden: int) -> Tensor:
    """Check a prediction (N, T) against responses that lack its first bins, and cut those off."""
    check_clip(responses)
    neurons, _, bins = responses.shape
    if (
        not isinstance(rates, Tensor)
        or rates.shape != (neurons, bins + hidden)
        or not rates.dtype.is_floating_point
    ):
        check_prediction(rates[None, :, None, :], batch=1, neurons=neurons, bins=bins + hidden)
    return rates[:, hidden:]


def _statistics(clips: Scored, centring: str, quality: QualitySums | None) -> ScoreStatistics:
    """Statistics of all clips in their order; ``quality`` is given their responses too."""
    keys: list[Any] = []
    records, powers = [], []
    for numbers, (responses, rates), lengths in stacks(clips):
        summary = RepeatSummary.of(responses, None, products=quality is not None, lengths=lengths)
        if quality is not None:
            quality.add(numbers, responses, summary)
        shape = responses.shape[:2]
        records.append(PredictionMoments.of(rates.detach().flatten(0, 1), summary).unflatten(*shape))
        powers.append(summary.powers.unflatten(*shape))
        keys += numbers
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))

    def arranged(*values: Tensor) -> Tensor:
        return torch.cat(values).index_select(0, order.to(values[0].device))

    prediction = records[0].map(arranged, *records[1:])
    of_clips = ClipPowers.cat(powers).map(lambda values: arranged(values))
    return ScoreStatistics(prediction, of_clips, PooledPowers.of(of_clips), centring)


def scale_note(columns: Mapping[str, Column], neurons: Sequence[str]) -> str | None:
    """Return a note on predictions of the right shape in another scale or offset; None where there is none.

    A gain and an offset raise ``fve`` to ``cc**2`` and change no correlation. What their lack costs is said
    from `COSTLY_SCALE` on, of neurons whose ``cc`` is at least `GOOD_CC`.
    """
    cc, fve = columns.get("cc"), columns.get("fve")
    if cc is None or fve is None:
        return None
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero((cc >= GOOD_CC) & (cc**2 - fve > COSTLY_SCALE))
    if not wrong.size:
        return None
    worst = int(wrong[np.argmin(fve[wrong])])
    return (
        f"{wrong.size} of {cc.size} neurons: the predictions have another scale or offset than the responses "
        f"(fve is {fve[worst]:.2g} while cc is {cc[worst]:.2f} for {neurons[worst]}). cc and cc_norm do not "
        f"depend on either; fve and mse do (said where cc >= {GOOD_CC:g} and cc**2 - fve > {COSTLY_SCALE:g})."
    )


class _WithoutOnset:
    """A data set whose responses lack the first bins of each clip, as `neuron_quality` reads it."""

    def __init__(self, dataset: DatasetLike, skip: int) -> None:
        self._dataset = dataset
        self.skip = skip
        self.dt = dataset.dt

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def response_block(self, clip: int, *, neurons: slice | None = None) -> Tensor:
        """(N, R, T) without the onset."""
        some = {} if neurons is None else {"neurons": neurons}
        block = self._dataset.response_block(clip, **some)
        if block.shape[-1] <= self.skip:
            raise ValueError(
                f"warmup_ms covers {self.skip} bins, but clip {clip} has only {block.shape[-1]}: nothing is "
                "left to score; pass a shorter warmup_ms, or leave the clip out with dataset.select"
            )
        return block[..., self.skip :]


def _reasons(quality: NeuronQuality, columns: Mapping[str, Column]) -> tuple[str, ...]:
    """Why a value is missing, per neuron (one recorded once is scored by the plain correlation)."""
    once = (quality.n_repeats_max == 1).tolist()
    flat = np.isnan(columns["fve"])  # no variance of the response to explain
    return tuple(
        "silent: the response never varies" if once[index] and flat[index] else reason
        for index, reason in enumerate(quality.reasons)
    )
