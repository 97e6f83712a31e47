"""Scores of one pass over the data: streamed where the metrics allow it, concatenated where they do not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from deepSTRF.metrics import ScoreTracker
from deepSTRF.training.batches import Batch

__all__ = ["CallableScores", "Metric", "PassScores", "StreamedScores", "concatenate_padded", "make_scores"]

#: A metric of the user's: (pred (B,N,1,T), responses (B,N,R,T)) -> one value per neuron (N,), or a scalar.
Metric = Callable[[Tensor, Tensor], Tensor]


class PassScores(Protocol):
    """What collects predictions during a pass and scores them at its end."""

    names: tuple[str, ...]

    def begin(self) -> None:
        """Forget the pass before."""
        ...

    def add(self, batch: Batch, pred: Tensor) -> None:
        """Take the predictions (B, N, 1, T) of a batch."""
        ...

    def result(self) -> dict[str, float | Tensor]:
        """Score the pass."""
        ...


def make_scores(metrics: Mapping[str, Metric] | None, *, stable: bool) -> PassScores:
    """Return the collector for a set of metrics.

    Parameters
    ----------
    metrics : mapping or None
        Name to function; None gives the default scores ``cc`` and ``cc_norm`` (centring on the concatenated
        clips).
    stable : bool
        Clips have the same key in every pass, so what depends on the responses alone is computed once.

    Returns
    -------
    PassScores
        The collector.

    Raises
    ------
    TypeError
        When a metric is not callable.

    Examples
    --------
    >>> make_scores(None, stable=True).names
    ('cc', 'cc_norm')
    """
    if metrics is None:
        return StreamedScores(stable=stable)
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(
                f"val_metrics[{name!r}] must be callable as metric(pred, responses), got {metric!r}"
            )
    return CallableScores(metrics, stable=stable)


class StreamedScores:
    """Correlation and noise-corrected correlation, accumulated batch by batch.

    Parameters
    ----------
    stable : bool
        As in `make_scores`.

    Examples
    --------
    >>> StreamedScores(stable=False).names
    ('cc', 'cc_norm')
    """

    names: tuple[str, ...] = ("cc", "cc_norm")

    def __init__(self, *, stable: bool) -> None:
        self._stable = stable
        self._tracker = ScoreTracker(centring="concat")
        self._prepared: set[Hashable] = set()

    def begin(self) -> None:
        """Forget the pass before, but not what the responses alone determine."""
        if self._stable:
            self._tracker.reset()
        else:
            self._tracker = ScoreTracker(centring="concat")
            self._prepared = set()

    def add(self, batch: Batch, pred: Tensor) -> None:
        """Take the predictions (B, N, 1, T) of a batch."""
        for item, key in enumerate(batch.keys):
            if key not in self._prepared:
                self._tracker.prepare(key, batch.responses(item))
                self._prepared.add(key)
        self._tracker.update(list(batch.keys), pred.detach())

    def result(self) -> dict[str, float | Tensor]:
        """Return ``cc`` and ``cc_norm``, (N,) on the CPU."""
        return {
            name: value.detach().cpu()
            for name, value in self._tracker.compute().items()
            if name in self.names
        }


class CallableScores:
    """A user's own metrics, called once per pass on all predictions and responses, concatenated.

    Shorter clips are padded on the right, predictions with zeros and responses with NaN; clips come in the
    order of their keys, so a shuffled pass gives the same numbers.

    Parameters
    ----------
    metrics : mapping
        Name to ``metric(pred (B,N,1,T), responses (B,N,R,T))``.
    stable : bool
        As in `make_scores`: the concatenated responses are kept between passes.

    Examples
    --------
    >>> bias = lambda pred, responses: (pred - responses).mean(dim=(0, 2, 3))
    >>> scores = CallableScores({"bias": bias}, stable=False)
    >>> scores.begin()
    >>> nothing = torch.zeros(1)
    >>> batch = Batch(nothing, False, nothing, nothing, (0,), (3,), 0, lambda item: torch.ones(2, 1, 3))
    >>> scores.add(batch, torch.zeros(1, 2, 1, 3))
    >>> scores.result()
    {'bias': tensor([-1., -1.])}
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

    def add(self, batch: Batch, pred: Tensor) -> None:
        """Take the predictions (B, N, 1, T) of a batch."""
        for item, (key, length) in enumerate(zip(batch.keys, batch.lengths, strict=True)):
            # A default argument binds this batch and item, not the loop's last ones.
            self._items.append(
                (key, pred[item, :, :, :length].detach(), lambda b=batch, i=item: b.responses(i))  # type: ignore[misc]
            )

    def result(self) -> dict[str, float | Tensor]:
        """Call every metric on the concatenated pass; vectors come back on the CPU, scalars as numbers."""
        order = sorted(
            range(len(self._items)), key=lambda i: (str(type(self._items[i][0])), self._items[i][0], i)
        )
        keys = tuple(self._items[i][0] for i in order)
        if self._kept is None or self._kept[0] != keys:
            blocks = [self._items[i][2]() for i in order]
            self._kept = (keys, concatenate_padded(blocks, float("nan")))
        responses = self._kept[1]
        pred = concatenate_padded([self._items[i][1] for i in order], 0.0)
        responses = responses.to(pred.device)
        if not self._stable:
            self._kept = None
        scores: dict[str, float | Tensor] = {}
        with torch.no_grad():
            for name, metric in self._metrics.items():
                value = metric(pred, responses)
                scalar = not isinstance(value, Tensor) or value.dim() == 0
                scores[name] = float(value) if scalar else value.detach().cpu()
        return scores


def concatenate_padded(blocks: list[Tensor], value: float) -> Tensor:
    """Stack (N, R, T) blocks of unequal R and T to (B, N, R_max, T_max), padding on the right.

    Parameters
    ----------
    blocks : list of Tensor, each (N, R, T)
        One per clip.
    value : float
        What fills the rest.

    Returns
    -------
    Tensor, shape (B, N, R_max, T_max)
        The stack.

    Raises
    ------
    ValueError
        When the list is empty.

    Examples
    --------
    >>> concatenate_padded([torch.ones(1, 1, 2), torch.ones(1, 2, 1)], 0.0).shape
    torch.Size([2, 1, 2, 2])
    """
    if not blocks:
        raise ValueError("nothing to score: the loader was empty (no clips selected?)")
    shape = [max(block.shape[axis] for block in blocks) for axis in range(3)]
    if all(list(block.shape) == shape for block in blocks):
        return torch.stack(blocks)
    out = blocks[0].new_full((len(blocks), *shape), value)
    for item, block in enumerate(blocks):
        out[item, : block.shape[0], : block.shape[1], : block.shape[2]] = block
    return out
