"""Scores of a pass over the clips: predictions are taken batch by batch and scored at its end.

The registered metrics need second moments only. A row is one neuron in one clip; of each row its responses
leave a few numbers, once, and each prediction three more per pass. Nothing that grows with the number of bins
is kept, and nothing at all of pairs that were never recorded where batches leave them out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from deepSTRF.metrics import psth
from deepSTRF.metrics._statistics import (
    ClipPowers,
    PairMoments,
    PooledPowers,
    RepeatSummary,
    is_complete,
)
from deepSTRF.metrics.score_statistics import PredictionMoments, ScoreStatistics, moments_against
from deepSTRF.registry import METRICS
from deepSTRF.training.data import Batch, cat_padded, stack_padded
from deepSTRF.training.objective import Metric

__all__ = ["CallableScores", "PassScores", "StreamedScores", "make_scores"]

#: Bytes of what is kept of rows whose repeats differ in their bins; beyond it they are read again each pass.
RAGGED_BYTES = 1 << 28
#: Columns of `_Rows.table`.
COUNT, MEAN, SQUARE, PAIR_BINS = range(4)
#: Rows that a table begins with.
FIRST_ROWS = 1024


class PassScores(Protocol):
    """What collects predictions during a pass and scores them at its end."""

    names: tuple[str, ...]

    def begin(self) -> None:
        """Forget the pass before."""
        ...

    def add(self, batch: Batch, pred: Tensor, *, as_given: bool = True) -> None:
        """Take the predictions (B, N, 1, T) of a batch; ``as_given``: its targets are those of its clips."""
        ...

    def part(self) -> Any:
        """What another process needs to `merge`, on the CPU."""
        ...

    def merge(self, part: Any) -> None:
        """Take in the predictions of another process."""
        ...

    def result(self) -> dict[str, float | Tensor]:
        """Score the pass: a CPU tensor (N,) per neuron, or a number."""
        ...


def make_scores(metrics: Mapping[str, Metric] | None, *, stable: bool) -> PassScores:
    """Return the collector for a set of metrics; ``stable`` where a clip has the same key in every pass."""
    if metrics is None:
        return StreamedScores(stable=stable)
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(
                f"val_metrics[{name!r}] must be callable as metric(pred, responses), got {metric!r}"
            )
    return CallableScores(metrics, stable=stable)


class _Table:
    """Columns (W, K) appended in blocks; small tensors kept between large ones leave holes in the heap."""

    def __init__(self) -> None:
        self.size, self._held = 0, torch.empty(0, 0)

    @property
    def columns(self) -> Tensor:
        """(W, K) what was appended, as it lies in the table."""
        return self._held[:, : self.size]

    def append(self, block: Tensor) -> None:
        """Append columns (W, k); where some are longer than others, those end with zeros."""
        stop = self.size + block.shape[1]
        length, room = self._held.shape
        if stop > room or len(block) > length:
            room = room if stop <= room else max(stop, 2 * room, FIRST_ROWS)
            larger = block.new_zeros(max(length, len(block)), room)
            larger[:length, : self.size] = self.columns
            self._held = larger
        self._held[: len(block), self.size : stop] = block
        self.size = stop

    def clear(self) -> None:
        """Forget the columns; later ones, as long, take their place."""
        self.size = 0


class _Rows:
    """What the responses alone determine: one column per neuron in a clip, in order of arrival."""

    def __init__(self) -> None:
        self.table, self.neurons, self.drift = _Table(), _Table(), _Table()
        #: Rows of a clip whose repeats differ in their bins: their places in the clip, and their weights.
        self.ragged: dict[Hashable, RepeatSummary | None] = {}

    def add(self, summary: RepeatSummary, neurons: Tensor) -> None:
        """Append rows, each of one of the ``neurons``."""
        powers = summary.powers
        known = [summary.count, summary.mean, summary.square, powers.n_bins]
        known += [powers.n_repeats, powers.mean, powers.signal, powers.noise]
        self.table.append(torch.stack(known))
        self.neurons.append(neurons.unsqueeze(0))
        self.drift.append(powers.drift.T)


class StreamedScores:
    """The registered metrics that are computed per epoch, from moments of every recorded row."""

    def __init__(self, *, stable: bool) -> None:
        self.names = tuple(name for name, metric in METRICS.items() if metric.per_epoch)
        self._stable = stable
        self._merged: list[_Part] = []  # of other processes
        self._forget()

    def _forget(self) -> None:
        self._n_neurons = self._ragged_bytes = 0
        self._rows: _Rows | None = None
        self._known: dict[Hashable, tuple[int, int]] = {}  # first row of a clip, number of its rows
        # of the batches of a pass: places in `_rows` and (3, rows) of the predictions; what replaces some of
        # these: places in the pass and (3, places)
        self._places, self._moments = _Table(), _Table()
        self._replaced: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Forget the pass before, but not what the responses alone determine."""
        self._merged = []
        if not self._stable:
            self._forget()
        self._places.clear()
        self._moments.clear()
        self._replaced = []

    def add(self, batch: Batch, pred: Tensor, *, as_given: bool = True) -> None:
        """Take the predictions (B, N, 1, T) of a batch, or those (1, P, 1, T) of its pairs.

        ``as_given``: its targets are still those of its clips.
        """
        pred = pred.detach()
        if self._rows is None:
            self._rows = _Rows()
            self._n_neurons = pred.shape[1] if batch.pairs is None else batch.pairs.n_neurons
        new = {key: item for item, key in enumerate(batch.keys) if key not in self._known}
        if new:
            self._prepare(batch, new, self._rows)
        if as_given:
            target = batch.targets
        else:
            target = stack_padded([batch.responses(item) for item in range(len(batch.keys))], math.nan)
        rows, y = pred[..., : target.shape[-1]].flatten(0, 2), psth(target).flatten(0, 2)
        spans = torch.tensor([self._known[key] for key in batch.keys])
        first = torch.cumsum(spans[:, 1], 0) - spans[:, 1]
        index = (spans[:, 0] - first).repeat_interleave(spans[:, 1]) + torch.arange(len(rows))
        index = index.to(rows.device)
        count, mean = (self._rows.table.columns[of].index_select(0, index) for of in (COUNT, MEAN))
        start = self._places.size
        self._places.append(index.unsqueeze(0))
        self._moments.append(_moments(rows, y, count, mean))
        at, values = self._of_ragged(batch, rows, first.tolist(), self._rows)
        if at is not None and values is not None:
            self._replaced.append((start + at, values))

    def _prepare(self, batch: Batch, new: Mapping[Hashable, int], rows: _Rows) -> None:
        """Summarise the responses of clips that were not seen before, all at once."""
        blocks = [batch.responses(item) for item in new.values()]
        if len(blocks) == 1 and batch.contexts:
            blocks = [blocks[0][..., batch.contexts[next(iter(new.values()))] :]]
        responses, lengths = _stacked(blocks) if batch.pairs is None else (cat_padded(blocks, math.nan), None)
        summary = RepeatSummary.of(responses, None, lengths=lengths)
        if batch.pairs is None:
            neurons = torch.arange(self._n_neurons, device=responses.device).repeat(len(blocks))
        else:
            chosen = [batch.pairs.neurons[batch.pairs.items == item] for item in new.values()]
            neurons = torch.cat(chosen)
        start = rows.table.size
        rows.add(summary, neurons)
        for key, block in zip(new, blocks, strict=True):
            self._known[key] = (start, block.shape[0])
            start += block.shape[0]
        if summary.ragged is not None:
            self._keep_ragged(list(new), summary, rows)

    def _keep_ragged(self, keys: list[Hashable], summary: RepeatSummary, rows: _Rows) -> None:
        """Keep the weights of rows whose repeats differ in their bins, clip by clip, while there is room."""
        if summary.ragged is None or summary.weights is None:
            return
        base = self._known[keys[0]][0]
        for key in keys:
            start, count = self._known[key]
            place = summary.ragged - (start - base)
            own = ((place >= 0) & (place < count)).nonzero().squeeze(1)
            if not len(own):
                continue
            weights = summary.weights.map(lambda values, own=own: values[own])
            kept = _only_ragged(summary, place[own], weights)
            fits = self._ragged_bytes + kept.n_bytes <= RAGGED_BYTES
            self._ragged_bytes += kept.n_bytes * fits
            rows.ragged[key] = kept if fits else None

    def _of_ragged(
        self, batch: Batch, rows: Tensor, first: list[int], known: _Rows
    ) -> tuple[Tensor | None, Tensor | None]:
        """Rows of a batch whose repeats differ in their bins, and mean, variance and covariance of theirs."""
        places, values = [], []
        for item, key in enumerate(batch.keys):
            if key not in known.ragged:
                continue
            kept = known.ragged[key]
            if kept is None:  # no room: as it was when the clip was first seen
                kept = RepeatSummary.of(batch.responses(item).unsqueeze(0), None)
            if kept.ragged is None or kept.weights is None:
                continue
            at = first[item] + kept.ragged
            width = kept.weights.mask.shape[-1]
            pred = rows.index_select(0, at).to(kept.weights.square.dtype)
            if pred.shape[-1] < width:  # it was summarised beside longer clips
                pred = torch.nn.functional.pad(pred, (0, width - pred.shape[-1]))
            places.append(at)
            values.append(torch.stack(kept.weights.moments(pred[..., :width])))
        if not places:
            return None, None
        return torch.cat(places), torch.cat(values, dim=1)

    def part(self) -> _Part | None:
        """Rows of the pass, their moments and those of their predictions; None without any."""
        own = self._own_part()
        return own and _Part(own.n_neurons, *(values.cpu() for values in own[1:]))

    def merge(self, part: _Part | None) -> None:
        """Add the rows of another process."""
        if part is not None:
            self._merged.append(part)

    def result(self) -> dict[str, float | Tensor]:
        """Return the scores, (N,) on the CPU."""
        statistics = self._statistics()
        return {
            name: metric.compute(statistics).detach().cpu()
            for name, metric in METRICS.items()
            if metric.per_epoch
        }

    def _own_part(self) -> _Part | None:
        if not self._places.size or self._rows is None:
            return None
        index = self._places.columns[0]
        mean, square, product = self._moments.columns
        table = self._rows.table.columns.index_select(1, index)
        freedom = (table[COUNT] - 1).clamp(min=1)
        pair_mean, variance, covariance = mean.clone(), square / freedom, product / freedom
        for at, values in self._replaced:
            pair_mean[at], variance[at], covariance[at] = values
        moments = torch.stack([mean, square, product, pair_mean, variance, covariance])
        neurons = self._rows.neurons.columns[0].index_select(0, index)
        drift = self._rows.drift.columns.index_select(1, index)
        return _Part(self._n_neurons, neurons, table, drift.T, moments)

    def _statistics(self) -> ScoreStatistics:
        own = self._own_part()
        parts = [*([] if own is None else [own]), *self._merged]
        if not parts:
            raise ValueError("nothing to score: the loader was empty (no clips selected?)")
        place = parts[0].table.device
        neurons = torch.cat([part.neurons.to(place) for part in parts])
        table = torch.cat([part.table.to(place) for part in parts], dim=1)
        drift = cat_padded([part.drift.to(place).unsqueeze(1) for part in parts], 0.0)[0, :, 0]
        moments = torch.cat([part.moments.to(place) for part in parts], dim=1)
        mean, square, product, pair_mean, variance, covariance = moments
        bins, repeats, pair_mean_y, signal, noise = table[PAIR_BINS:]
        raw = PairMoments(table[COUNT], mean, table[MEAN], square, table[SQUARE], product)
        grid = _Grid(neurons, parts[0].n_neurons)
        clips = ClipPowers(bins, repeats, pair_mean_y, signal, noise, drift).map(grid)
        prediction = PredictionMoments(raw, pair_mean, variance, covariance).map(grid)
        return ScoreStatistics(prediction, clips, PooledPowers.of(clips), "concat")


class _Part(NamedTuple):
    """Rows of a pass: their neurons (K,), columns of `_Rows` and moments of the predictions (6, K)."""

    n_neurons: int
    neurons: Tensor
    table: Tensor
    drift: Tensor
    moments: Tensor


class _Grid:
    """Rows (K, ...) as (S, N, ...): entry s holds the s-th row of every neuron, zeros where it has fewer."""

    def __init__(self, neurons: Tensor, n_neurons: int) -> None:
        self._n_neurons, self._place = n_neurons, None
        complete = torch.arange(n_neurons, device=neurons.device).repeat(len(neurons) // max(1, n_neurons))
        if torch.equal(neurons, complete):  # every clip has every neuron: nothing is to be moved
            return
        order = neurons.argsort(stable=True)
        counts = torch.bincount(neurons, minlength=n_neurons)
        first = torch.cumsum(counts, 0) - counts
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - first[neurons[order]]
        self._place, self._depth = rank * n_neurons + neurons, int(counts.max())

    def __call__(self, values: Tensor) -> Tensor:
        if self._place is None:
            return values.reshape(-1, self._n_neurons, *values.shape[1:])
        grid = values.new_zeros(self._depth * self._n_neurons, *values.shape[1:])
        return grid.index_copy(0, self._place, values).reshape(-1, self._n_neurons, *values.shape[1:])


def _moments(pred: Tensor, psth: Tensor, count: Tensor, average: Tensor) -> Tensor:
    """Mean, centred squares and products with the PSTH (3, K) of predictions (K, T) over valid bins.

    ``count``, ``average`` (K,): number of valid bins and mean of the PSTH.
    """

    def centred(rows: slice) -> tuple[Tensor, Tensor | None]:
        y = psth[rows]
        valid = None if is_complete(y) else ~y.isnan()
        deviation = y.to(count.dtype) - average[rows].unsqueeze(-1)
        return (deviation if valid is None else torch.where(valid, deviation, 0.0)), valid

    return moments_against(pred, count, centred)


def _stacked(blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Responses (B, N, R, T), padded with zeros where none is missing, with lengths (B,); else with NaN."""
    lengths = [block.shape[-1] for block in blocks]
    if len(set(lengths)) > 1 and len({block.shape[:-1] for block in blocks}) == 1:
        responses = stack_padded(blocks, 0.0)
        if is_complete(responses):
            return responses, torch.tensor(lengths)
    return stack_padded(blocks, math.nan), None


def _only_ragged(summary: RepeatSummary, places: Tensor, weights: object) -> RepeatSummary:
    """The rows of a summary whose repeats differ in their bins, without anything else."""
    nothing = summary.deviation.new_empty(0, 0)
    return RepeatSummary(nothing, None, nothing, nothing, nothing, summary.powers, places, weights)  # type: ignore[arg-type]


class CallableScores:
    """A user's own metrics, called once per pass on all clips in the order of their keys.

    Shorter clips are padded on the right, predictions with zeros and responses with NaN.
    """

    def __init__(self, metrics: Mapping[str, Metric], *, stable: bool) -> None:
        self._metrics = dict(metrics)
        self.names: tuple[str, ...] = tuple(self._metrics)
        self._stable = stable
        self._items: list[tuple[Hashable, Tensor, Callable[[], Tensor]]] = []
        self._kept: tuple[tuple[Hashable, ...], Tensor] | None = None

    def begin(self) -> None:
        """Forget the predictions of the pass before."""
        self._items = []

    def add(self, batch: Batch, pred: Tensor, *, as_given: bool = True) -> None:
        """Take the predictions (B, N, 1, T) of a batch."""
        for item, (key, length) in enumerate(zip(batch.keys, batch.lengths, strict=True)):
            responses = functools.partial(batch.responses, item)
            self._items.append((key, pred[item, :, :, :length].detach(), responses))

    def part(self) -> list[tuple[Hashable, Tensor, Tensor]]:
        """Predictions and responses of the pass."""
        return [(key, pred.cpu(), responses().cpu()) for key, pred, responses in self._items]

    def merge(self, part: list[tuple[Hashable, Tensor, Tensor]]) -> None:
        """Add the clips of another process."""
        for key, pred, responses in part:
            place = self._items[0][1].device if self._items else pred.device
            self._items.append((key, pred.to(place), functools.partial(responses.to, place)))

    def result(self) -> dict[str, float | Tensor]:
        """Call every metric on the concatenated pass; vectors come back on the CPU, scalars as numbers."""
        order = sorted(
            range(len(self._items)), key=lambda i: (str(type(self._items[i][0])), self._items[i][0], i)
        )
        keys = tuple(self._items[i][0] for i in order)
        if not keys:
            raise ValueError("nothing to score: the loader was empty (no clips selected?)")
        if self._kept is None or self._kept[0] != keys:
            self._kept = (keys, stack_padded([self._items[i][2]() for i in order], math.nan))
        pred = stack_padded([self._items[i][1] for i in order], 0.0)
        responses = self._kept[1].to(pred.device)
        if not self._stable:
            self._kept = None
        scores: dict[str, float | Tensor] = {}
        with torch.no_grad():
            for name, metric in self._metrics.items():
                value = metric(pred, responses)
                scalar = not isinstance(value, Tensor) or value.dim() == 0
                scores[name] = float(value) if scalar else value.detach().cpu()
        return scores
