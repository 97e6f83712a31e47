"""What a fit measures in one pass over the clips: the loss that it minimises and the scores that it follows.

`choose_objective` decides what a model is trained on, for every kind of fit. ``train_loss`` and ``val_loss``
are the same quantity: the mean over neurons of each neuron's mean loss over all its valid bins of the pass,
as if the pass were one long recording. (A mean of batch means would weigh a short clip like a long one.)
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepSTRF._files import json_safe
from deepSTRF._validation import checked
from deepSTRF.datasets.responses import ROUNDING
from deepSTRF.metrics import corrcoef, fve, mse_loss, normalized_corrcoef
from deepSTRF.registry import LOSSES, METRICS

__all__ = [
    "LossMeter",
    "LossTraits",
    "MeanScore",
    "Metric",
    "adds_up_over_rows",
    "check_batch_domains",
    "check_objective",
    "choose_objective",
    "history_rows",
    "loss_domains",
    "loss_traits",
    "mean_over_neurons",
    "mean_score",
    "mode_of",
    "monitor_mode",
    "objective_conflict",
    "owns_loss",
    "pack_history",
    "summarise",
    "unpack_history",
]

#: A loss: (pred (B,N,1,T), responses (B,N,1 or R,T)) -> a scalar, or one value per neuron (N,).
Loss = Callable[..., Tensor]
#: A metric of the user's: (pred (B,N,1,T), responses (B,N,R,T)) -> one value per neuron (N,), or a scalar.
Metric = Callable[[Tensor, Tensor], Tensor]


# ---- the loss


def owns_loss(model: nn.Module) -> bool:
    """Whether a model is trained on a loss of its own (`NeuralModel.own_loss`)."""
    return getattr(model, "own_loss", None) is not None


def choose_objective(model: nn.Module, loss_fn: Loss | None, objective: str = "auto") -> Loss:
    """Return the model's own loss (unless ``objective="loss_fn"``), else ``loss_fn``, else `mse_loss`.

    Raises ValueError where ``loss_fn`` is given beside a loss of the model's own.
    """
    if objective not in ("auto", "loss_fn"):
        raise ValueError(f"objective must be 'auto' or 'loss_fn', got {objective!r}")
    if objective == "auto" and owns_loss(model):
        if loss_fn is not None:
            raise ValueError(
                f"loss_fn={getattr(loss_fn, '__name__', loss_fn)}: {type(model).__name__} is trained on its "
                "own loss (model.loss), so leave loss_fn out; objective='loss_fn' trains it on yours"
            )
        return model.loss  # type: ignore[return-value]
    return mse_loss if loss_fn is None else loss_fn


def loss_domains(loss_fn: Loss) -> tuple[str, str]:
    """Ranges that a loss needs of predictions and of responses; "real" where it declares none.

    They are its attributes ``prediction_domain`` ("real", "non-negative" or "positive") and
    ``response_domain`` (those, or "counts"). With ``log_input=True`` predictions are logarithms.
    """
    base, keywords = _unwrapped(loss_fn)
    prediction = str(getattr(loss_fn, "prediction_domain", getattr(base, "prediction_domain", "real")))
    response = str(getattr(loss_fn, "response_domain", getattr(base, "response_domain", "real")))
    return ("real" if keywords.get("log_input") else prediction), response


def objective_conflict(model: nn.Module | None, loss_fn: Loss, *datasets: Any) -> tuple[str, str] | None:
    """Return why a loss does not suit a model's output or responses, and what to do; None where it does.

    What is "unknown" (`NeuralModel.prediction_domain`), and data without ``response_kind``, pass: a fit looks
    at its batches (`DomainGuard`).
    """
    needs, takes = loss_domains(loss_fn)
    domain = getattr(model, "prediction_domain", "unknown")
    name, what = _loss_name(loss_fn), f"the output of {type(model).__name__}"
    if needs != "real" and domain == "real":
        return f"{name} needs predictions that are never negative, and {what} may be negative", (
            "build the model with a positive output, such as output_activation='softplus', or use mse_loss, "
            f"or predict log rates: functools.partial({name}, log_input=True)"
        )
    if domain == "non-negative" and _unwrapped(loss_fn)[1].get("log_input"):
        return (
            f"{name} with log_input=True needs log rates, and {what} is never negative: no rate is below 1",
            ("leave log_input out, or build the model with output_activation='identity'"),
        )
    for dataset in datasets:
        kind, unit = getattr(dataset, "response_kind", None), getattr(dataset, "response_unit", None)
        what = f"those of {getattr(dataset, 'name', 'the recording')} are {kind!r} in {unit!r}"
        if takes == "counts" and kind not in (None, "counts"):
            cure = "load the recording with smooth=False, without smoothing or normalising responses"
            if getattr(dataset, "recorded_kind", kind) != "counts":
                cure = f"use a model without a loss of its own, with {_losses_of_traces()}"
            return f"{name} needs responses that are spike counts, and {what}", cure
        forbidden = takes == "non-negative" and kind == "trace"
        if forbidden or (takes == "positive" and kind == "trace" and _has_negative(dataset)):
            return f"{name} needs responses that are never negative, and {what}", (
                f"use {_losses_of_traces()}, or responses that are not z-scored; a trace that is never "
                "negative may be stated as response_kind='rate'"
            )
    return None


def check_objective(model: nn.Module | None, loss_fn: Loss, *datasets: Any) -> None:
    """Raise ValueError where a loss does not suit a model's output or the responses."""
    conflict = objective_conflict(model, loss_fn, *datasets)
    if conflict is not None:
        raise ValueError(": ".join(conflict))


def check_batch_domains(loss_fn: Loss, pred: Tensor, targets: Tensor) -> None:
    """Raise ValueError for predictions (B, N, 1, T) or targets (B, N, R, T) outside the ranges of a loss."""
    needs, takes = loss_domains(loss_fn)
    valid = ~targets.isnan().all(2, keepdim=True)
    name = _loss_name(loss_fn)
    if needs != "real" and is_negative(torch.where(valid, pred.detach(), 0.0)):
        raise ValueError(
            f"{name} needs predictions that are never negative, and the model's are in places: end it in a "
            f"softplus, use mse_loss, or predict log rates: functools.partial({name}, log_input=True)"
        )
    if takes != "real" and is_negative(targets):
        raise ValueError(
            f"{name} needs responses that are never negative, and those of the loader are in places: use "
            "mse_loss for traces such as LFP, dF/F or z-scores"
        )


def is_negative(values: Tensor) -> bool:
    """Whether values, NaN left out, are negative by more than rounding of what cannot be."""
    low, high = torch.nan_to_num(values.detach(), nan=0.0).aminmax()
    return float(low) < -ROUNDING * max(float(high), -float(low))


def _losses_of_traces() -> str:
    """Names of the losses that take responses of any sign."""
    legal = [_loss_name(loss) for _, loss in LOSSES.items() if loss_domains(loss)[1] == "real"]
    return " or ".join(legal)


def _has_negative(dataset: Any) -> bool:
    return any(is_negative(dataset.response_block(clip)) for clip in range(len(dataset)))


def _loss_name(loss_fn: Loss) -> str:
    base, _ = _unwrapped(loss_fn)
    return str(getattr(getattr(base, "__self__", None), "own_loss", None) or getattr(base, "__name__", base))


def _unwrapped(loss_fn: Loss) -> tuple[Any, dict[str, Any]]:
    """The function inside of partials, and the keywords that they set."""
    base: Any = loss_fn
    keywords: dict[str, Any] = {}
    while isinstance(base, functools.partial):
        keywords = {**base.keywords, **keywords}
        base = base.func
    return base, keywords


@dataclass(frozen=True)
class LossTraits:
    """What a fit may assume about a loss function."""

    accepts_psth: bool  # same value on a PSTH (B, N, 1, T) as on the repeats behind it: it is computed once
    per_neuron: bool  # ``reduction="none"`` gives one value per neuron, (N,)
    counts_repeats: bool  # a neuron's loss is a mean over bins and repeats, not over bins
    unit_degree: int | None = None  # power of the responses' unit with which it grows; None: not known
    log_input: bool = False  # predictions are logarithms of rates


def loss_traits(loss_fn: Loss) -> LossTraits:
    """Read a loss function's traits from its attributes and arguments.

    A function of your own is called as ``loss_fn(pred, responses)`` and returns a scalar or (N,); set
    ``my_loss.accepts_psth = True`` on it when the PSTH is all it needs, and ``my_loss.unit_degree`` when it
    compares both in one unit.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(pred, responses), got {type(loss_fn).__name__}")
    base, keywords = _unwrapped(loss_fn)
    try:
        parameters = set(inspect.signature(base).parameters)
    except (TypeError, ValueError):  # some built-ins have no signature
        parameters = set()
    declared = getattr(loss_fn, "accepts_psth", getattr(base, "accepts_psth", None))
    by_repeats = keywords.get("weighting", "bins") == "repeats"
    # With its constant term a likelihood is a function of single repeats, not of their mean.
    needs_repeats = by_repeats or bool(keywords.get("full"))
    return LossTraits(
        accepts_psth=bool(declared) and not needs_repeats,
        # Only the losses that declare themselves are known to give (N,): torch's own give one value per bin.
        per_neuron=declared is not None and "reduction" in parameters and "reduction" not in keywords,
        counts_repeats=by_repeats,
        unit_degree=getattr(loss_fn, "unit_degree", getattr(base, "unit_degree", None)),
        log_input=bool(keywords.get("log_input")),
    )


def adds_up_over_rows(loss_fn: Loss) -> bool:
    """Whether a neuron's loss is the mean of its losses on single clips, weighed by their valid values.

    Recorded pairs of a clip and a neuron are then all that it needs. Known of our losses alone.
    """
    base, keywords = _unwrapped(loss_fn)
    ours = any(base is loss for _, loss in LOSSES.items()) and base.__module__.startswith("deepSTRF.")
    scalars = all(isinstance(value, bool | int | float | str) for value in keywords.values())
    return ours and scalars and "reduction" not in keywords and keywords.get("zeros") != "exclude"


def mean_over_neurons(loss: Tensor, weights: Tensor) -> Tensor:
    """Mean of a loss, () or (N,), over the neurons with data: valid bins ``weights`` (N,) above 0."""
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
    """Mean loss of a pass, summed on the device without waiting for it."""

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

    def part(self) -> tuple[Tensor, Tensor] | None:
        """What another process needs to `merge`: sums of losses and weights, on the CPU."""
        if self._total is None or self._weight is None:
            return None
        return self._total.cpu(), self._weight.cpu()

    def merge(self, part: tuple[Tensor, Tensor] | None) -> None:
        """Add what another meter has seen."""
        if part is None:
            return
        if self._total is None or self._weight is None:
            self._total, self._weight = part
        else:
            total, weight = (value.to(self._total.device) for value in part)
            self._total, self._weight = self._total + total, self._weight + weight

    @property
    def empty(self) -> bool:
        """Whether there was no batch."""
        return self._total is None

    def result(self) -> float:
        """Return the pass's loss; NaN when no neuron had data."""
        if self._total is None or self._weight is None:
            return math.nan
        heard = self._weight > 0
        if not bool(heard.any()):
            return math.nan
        return float((self._total[heard] / self._weight[heard]).mean())


# ---- the scores


class MeanScore(NamedTuple):
    """A mean over neurons and what it rests on.

    Attributes
    ----------
    mean : float
        Mean of the values that are numbers; NaN when there is none.
    n : int
        How many values the mean holds.
    n_nan : int
        How many were NaN and left out.

    Examples
    --------
    >>> str(MeanScore(0.5, 3, 1))
    '0.5000 (n=3, 1 NaN)'
    """

    mean: float
    n: int
    n_nan: int

    def __str__(self) -> str:
        missing = f", {self.n_nan} NaN" if self.n_nan else ""
        return f"{self.mean:.4f} (n={self.n}{missing})"


@checked
def mean_score(value: float | Tensor) -> MeanScore:
    """Return the mean over neurons of a score, leaving NaN out and counting it.

    Parameters
    ----------
    value : float or Tensor, shape (N,)
        One value per neuron, or a single number.

    Returns
    -------
    MeanScore
        Mean, number of values in it, number of NaN left out.

    Examples
    --------
    >>> import torch
    >>> mean_score(torch.tensor([0.25, float("nan"), 0.75]))
    MeanScore(mean=0.5, n=2, n_nan=1)
    """
    if not isinstance(value, Tensor):
        number = float(value)
        return MeanScore(number, 0, 1) if math.isnan(number) else MeanScore(number, 1, 0)
    flat = value.detach().flatten().double()
    numbers = flat[~flat.isnan()]
    mean = float(numbers.mean()) if numbers.numel() else math.nan
    return MeanScore(mean, numbers.numel(), flat.numel() - numbers.numel())


#: Words in the name of a user's metric that stand for an error.
ERROR_WORDS = re.compile(r"(^|_)(loss|error|err|mse|rmse|mae|nll|deviance|distance)($|_)", re.IGNORECASE)


def monitor_mode(monitor: str, mode: str | None, metrics: Mapping[str, Metric] | None = None) -> str:
    """Return "min" or "max", the direction in which a monitored key of an epoch gets better.

    Losses get smaller; registered metrics and functions with an attribute ``higher_is_better`` state theirs.
    A ``mode`` that contradicts is a ValueError. Other functions of the user's own go by ``mode``, else up.
    """
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode must be 'max' or 'min', or None to follow the monitored score, got {mode!r}")
    name = re.sub("^(train|val)_", "", str(monitor))
    up = _gets_larger(name, (metrics or {}).get(name))
    if up is None and mode is None and ERROR_WORDS.search(name):
        raise ValueError(
            f"monitor={monitor!r}: is a smaller {name!r} better, as its name says? State mode='min' or "
            "mode='max', or set higher_is_better = False on the function"
        )
    natural = "max" if up is None or up else "min"
    if mode is not None and up is not None and mode != natural:
        better = "larger" if up else "smaller"
        raise ValueError(
            f"mode={mode!r} contradicts monitor={monitor!r}, which is better when it is {better}: the worst "
            f"epoch would be kept; leave mode out"
        )
    return mode or natural


def mode_of(arguments: Mapping[str, Any]) -> str:
    """Return the direction of a fit with these arguments of `Fitter`."""
    monitor = str(arguments.get("monitor", "val_cc_norm"))
    return monitor_mode(monitor, arguments.get("mode"), arguments.get("val_metrics"))


def _gets_larger(name: str, metric: Metric | None) -> bool | None:
    """Whether a larger score is better; None where nothing says so."""
    base: Any = metric
    while isinstance(base, functools.partial):
        base = base.func
    stated = getattr(metric, "higher_is_better", getattr(base, "higher_is_better", None))
    if stated is not None:
        return bool(stated)
    torch_loss = getattr(base, "__module__", "") == "torch.nn.functional" and "loss" in base.__name__
    if name == "loss" or torch_loss or isinstance(base, nn.modules.loss._Loss):
        return False
    if any(base is loss for _, loss in LOSSES.items()):
        return False
    if base in (corrcoef, normalized_corrcoef, fve):
        return True
    return bool(METRICS.get(name).higher_is_better) if name in METRICS else None


# ---- records of epochs: rows of means, compact storage, values that JSON can hold

#: Quantiles that stand for a vector over neurons where a single line must do.
SUMMARY_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def summarise(value: float | Tensor) -> Any:
    """Return a score for JSON: a vector over neurons as its mean, number of values and quantiles."""
    if not isinstance(value, Tensor):
        return json_safe(value)
    if value.dim() == 0:
        return json_safe(float(value))
    score = mean_score(value)
    numbers = value.detach().flatten().double()
    numbers = numbers[~numbers.isnan()]
    summary: dict[str, Any] = {"mean": score.mean, "n_valid": score.n}
    for name, quantile in SUMMARY_QUANTILES.items():
        summary[name] = float(numbers.quantile(quantile)) if score.n else None
    return json_safe(summary)


@checked
def history_rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a fit's history with every per-neuron vector replaced by its mean: rows for a CSV or a plot.

    Parameters
    ----------
    history : list of dict
        What ``Fitter.fit`` returned.

    Returns
    -------
    list of dict
        One flat dictionary of numbers per epoch; a vector ``k`` with NaN in it also gives ``k_n_nan``.

    Examples
    --------
    >>> import torch
    >>> history_rows([{"epoch": 0, "val_cc": torch.tensor([0.25, 0.75, float("nan")])}])
    [{'epoch': 0, 'val_cc': 0.5, 'val_cc_n_nan': 1}]
    """
    rows = []
    for record in history:
        row: dict[str, Any] = {}
        for key, value in record.items():
            if not isinstance(value, Tensor):
                row[key] = value
                continue
            score = mean_score(value)
            row[key] = score.mean
            if score.n_nan:
                row[f"{key}_n_nan"] = score.n_nan
        rows.append(row)
    return rows


def pack_history(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a history as one entry per key, tensors of equal shape stacked: quick to save each epoch."""
    keys = list(history[0]) if history else []
    if any(list(record) != keys for record in history):
        return {"records": [dict(record) for record in history]}
    columns: dict[str, Any] = {}
    for key in keys:
        values = [record[key] for record in history]
        alike = all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values)
        columns[key] = torch.stack(values) if alike else values
    return {"columns": columns, "n": len(history)}


def unpack_history(packed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the list of epoch records from `pack_history`'s form."""
    if "records" in packed:
        return [dict(record) for record in packed["records"]]
    columns, rows = packed["columns"], range(int(packed["n"]))
    # A row of a stacked tensor is a view: clone() keeps only its own numbers alive.
    return [
        {
            key: column[row].clone() if isinstance(column[row], Tensor) else column[row]
            for key, column in columns.items()
        }
        for row in rows
    ]
