"""The loss of a fit: what may be assumed about a loss function, and its mean over a pass.

``train_loss`` and ``val_loss`` are the same quantity: the mean over neurons of each neuron's mean loss over
all its valid bins of the pass, as if the pass were one long recording. (A mean of batch means would weigh a
short clip like a long one.)
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LossMeter", "LossTraits", "loss_traits", "mean_over_neurons"]


@dataclass(frozen=True)
class LossTraits:
    """What a fit may assume about a loss function.

    Attributes
    ----------
    accepts_psth : bool
        The loss gives the same value on a PSTH (B, N, 1, T) as on the repeats (B, N, R, T) behind it, so the
        PSTH is computed once and kept.
    per_neuron : bool
        ``reduction="none"`` gives one value per neuron, (N,).
    counts_repeats : bool
        A neuron's loss is a mean over bins and repeats, not over bins.

    Examples
    --------
    >>> LossTraits(accepts_psth=True, per_neuron=True, counts_repeats=False).per_neuron
    True
    """

    accepts_psth: bool
    per_neuron: bool
    counts_repeats: bool


def loss_traits(loss_fn: Callable[..., Tensor]) -> LossTraits:
    """Read a loss function's traits from its attributes and arguments.

    The losses of `deepSTRF.metrics` carry the attribute ``accepts_psth`` and take ``reduction``. A function
    of your own is called as ``loss_fn(pred, responses)`` and returns a scalar or one value per neuron (N,);
    set ``my_loss.accepts_psth = True`` on it when the PSTH is all it needs.

    Examples
    --------
    >>> def my_loss(pred, responses):
    ...     return (pred - responses).square().mean()
    >>> loss_traits(my_loss)
    LossTraits(accepts_psth=False, per_neuron=False, counts_repeats=False)
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(pred, responses), got {type(loss_fn).__name__}")
    base: Any = loss_fn
    keywords: dict[str, Any] = {}
    while isinstance(base, functools.partial):
        keywords = {**base.keywords, **keywords}
        base = base.func
    declared = getattr(loss_fn, "accepts_psth", getattr(base, "accepts_psth", None))
    by_repeats = keywords.get("weighting", "bins") == "repeats"
    # With its constant term a likelihood is a function of single repeats, not of their mean.
    needs_repeats = by_repeats or bool(keywords.get("full"))
    takes_reduction = "reduction" in _parameter_names(base) and "reduction" not in keywords
    return LossTraits(
        accepts_psth=bool(declared) and not needs_repeats,
        # Only the losses that declare themselves are known to give (N,): torch's own give one value per bin.
        per_neuron=declared is not None and takes_reduction,
        counts_repeats=by_repeats,
    )


def _parameter_names(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-ins have no signature
        return set()


def mean_over_neurons(loss: Tensor, weights: Tensor) -> Tensor:
    """Return the scalar to differentiate: the mean over the neurons that have data in this batch.

    Shapes: loss (N,); weights (N,).

    Examples
    --------
    >>> import torch
    >>> mean_over_neurons(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([10.0, 10.0, 0.0]))
    tensor(2.)
    """
    if loss.dim() == 0:
        return loss
    if loss.shape != weights.shape:
        raise ValueError(
            f"the loss must be a scalar or one value per neuron ({weights.numel()},), got "
            f"{tuple(loss.shape)}; reduce it in loss_fn or compute_loss"
        )
    heard = weights > 0
    return torch.where(heard, loss, 0.0).sum() / heard.sum().clamp(min=1)


class LossMeter:
    """Sum a loss over the batches of a pass, on the device, without waiting for it.

    Examples
    --------
    >>> import torch
    >>> meter = LossMeter()
    >>> meter.add(torch.tensor([1.0, 5.0]), torch.tensor([100.0, 0.0]))
    >>> meter.add(torch.tensor([4.0, 2.0]), torch.tensor([50.0, 50.0]))
    >>> meter.result()
    2.0
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, loss: Tensor, weights: Tensor) -> None:
        """Add a batch: its loss, () or (N,), and each neuron's number of valid bins (N,)."""
        # Sums in double precision, which Apple's devices lack.
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        loss, weights = loss.detach().to(exact), weights.to(exact)
        weight = weights if loss.dim() else weights.sum()
        part = torch.where(weight > 0, loss * weight, 0.0)
        self._total = part if self._total is None else self._total + part
        self._weight = weight if self._weight is None else self._weight + weight

    def result(self) -> float:
        """Return the pass's loss; NaN when no neuron had data."""
        if self._total is None or self._weight is None:
            return math.nan
        heard = self._weight > 0
        if not bool(heard.any()):
            return math.nan
        return float((self._total[heard] / self._weight[heard]).mean())
