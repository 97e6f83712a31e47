"""Many models of one architecture in one pass: their states stacked along a leading axis of models, M.

`ModelStack` runs all of them as one function (``torch.func``), `StackedAdamW` steps each by its own gradient,
and `StackedScores` scores each by its own neurons. Every number of a model is that of the model alone, but
for the order of sums.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import AdamW, Optimizer

from deepSTRF.metrics._statistics import ClipPowers, PooledPowers, RepeatSummary
from deepSTRF.metrics.score_statistics import PredictionMoments, ScoreStatistics
from deepSTRF.models.base import NeuralModel
from deepSTRF.registry import METRICS
from deepSTRF.training.data import Batch

__all__ = [
    "ModelStack",
    "StackedAdamW",
    "StackedLoss",
    "StackedScores",
    "adamw_only",
    "fails_when_stacked",
    "tensors_of",
    "why_not_stacked",
]

#: Relative difference between a stack and its models, beyond which it is no stack of them.
TRIAL_TOLERANCE = 1e-3
#: Calls of which each must move random numbers or counters before that is the model's doing: other threads of
#: a process (of a Dask worker, say) draw random numbers now and then.
TRIALS = 8
#: Most rows (models times neurons) that are scored against copies of the responses.
MOST_ROWS = 2048


class _Called(nn.Module):
    """A module that calls one method of another."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(self.model, self.method)(x)
        return y


class ModelStack:
    """Parameters and buffers of M models of one architecture.

    ``rows`` are the tensors of each (`tensors_of`). ``weights`` (M, P) are the trainable parameters of each,
    one behind the other; ``fixed`` everything else by name, (M, ...). ``base`` is one of the models: the
    code, settings and training flags of all.
    """

    def __init__(self, base: nn.Module, rows: Sequence[Mapping[str, Tensor]]) -> None:
        self.base = base
        trained = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
        self.shapes = {name: rows[0][name].shape for name in trained}
        self.weights = torch.stack([torch.cat([row[name].flatten() for name in trained]) for row in rows])
        self.fixed = {
            name: torch.stack([row[name] for row in rows]) for name in rows[0] if name not in self.shapes
        }

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def spans(self) -> dict[str, slice]:
        """Columns of ``weights`` that hold each parameter."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            found[name] = slice(start, start + shape.numel())
            start += shape.numel()
        return found

    def take(self, rows: Tensor) -> ModelStack:
        """A stack of some of the models, with copies of their states."""
        part = copy.copy(self)
        part.weights = self.weights.index_select(0, rows)
        part.fixed = {name: value.index_select(0, rows) for name, value in self.fixed.items()}
        return part

    def put(self, rows: Tensor, other: ModelStack) -> None:
        """Replace the states of some models."""
        self.weights[rows] = other.weights
        for name, value in other.fixed.items():
            self.fixed[name][rows] = value

    def leaves(self) -> dict[str, Tensor]:
        """Parameters by name, (M, ...), to be differentiated."""
        return {
            name: self.weights[:, span].view(-1, *self.shapes[name]).detach().requires_grad_()
            for name, span in self.spans.items()
        }

    def predict(self, batches: Sequence[Batch], parameters: Mapping[str, Tensor]) -> Tensor:
        """Predictions (M, B, N, 1, T) for one batch, or for one of each model, of one shape.

        In the mode of ``base``; buffers move as they would.
        """
        first, shared = batches[0], len(batches) == 1
        inputs = first.inputs if shared else torch.stack([batch.inputs for batch in batches])
        method = "respond" if first.is_spectrogram else "forward"
        pred = self.run(inputs, parameters, method, shared=shared)
        return pred[..., first.skip :] if first.skip else pred

    def run(
        self,
        inputs: Tensor,
        parameters: Mapping[str, Tensor],
        method: str = "forward",
        *,
        shared: bool = True,
    ) -> Tensor:
        """Outputs (M, B, N, 1, T) for inputs (B, ...) that all models share, or (M, B, ...) of each."""
        called = _Called(self.base, method)

        def one(trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
            state = {f"model.{name}": value for name, value in {**trained, **fixed}.items()}
            y: Tensor = functional_call(called, state, (x,))
            return y

        pred: Tensor = vmap(one, in_dims=(0, 0, None if shared else 0))(dict(parameters), self.fixed, inputs)
        return pred

    def load(self, row: int, model: nn.Module) -> nn.Module:
        """Give a model of the same architecture the state of one row."""
        values = {name: value[row].clone() for name, value in self.fixed.items()}
        for name, span in self.spans.items():
            values[name] = self.weights[row, span].view(self.shapes[name]).clone()
        held = tensors_of(model, clone=False)
        with torch.no_grad():
            for name, value in values.items():
                if name in held:
                    held[name].copy_(value)
                else:  # a buffer that was None before a fit measured it
                    owner, _, last = name.rpartition(".")
                    setattr(model.get_submodule(owner), last, value)
        return model


def tensors_of(model: nn.Module, *, clone: bool = True) -> dict[str, Tensor]:
    """All parameters and buffers by name, also those that a ``state_dict`` leaves out."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() if clone else value for name, value in found.items()}


def why_not_stacked(model: nn.Module) -> str:
    """Why models of this architecture cannot be run as one function; empty where nothing is known."""
    name = type(model).__name__
    for part in model.modules():
        if isinstance(part, nn.RNNBase):
            return (
                f"{name} holds a {type(part).__name__}, which torch.func cannot run for many models at once"
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            return f"{name} has dropout, whose draws would not be those of separate fits"
    if getattr(model, "own_loss", None) is not None:
        return f"{name} is trained on its own loss"
    detach = getattr(type(model), "detach", None)
    if detach is not None and detach is not NeuralModel.detach:
        return f"{name} keeps a state between clips"
    return ""


def fails_when_stacked(stack: ModelStack, batch: Batch) -> str:
    """Why a stack does not do what its models do alone, found by trying with two of them; else empty."""
    rows = torch.tensor([0, len(stack) - 1])
    pair = stack.take(rows)
    name = type(stack.base).__name__
    for _ in range(TRIALS):
        before = _counts(stack.base)
        try:
            together = pair.predict([batch], pair.leaves()).detach()
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            return f"torch.func cannot run {name} for many models at once ({str(error).splitlines()[0]:.200})"
        if _counts(stack.base) == before:
            break
    else:
        return f"{name} draws random numbers or counts its calls, which separate fits do each for itself"
    for place, row in enumerate(rows.tolist()):
        model = stack.load(row, copy.deepcopy(stack.base))
        with torch.no_grad():
            alone = (model.respond if batch.is_spectrogram else model)(batch.inputs)  # type: ignore[operator]
        alone = alone[..., batch.skip :]
        size = float(alone.abs().amax()) or 1.0
        if not bool((together[place] - alone).abs().amax() <= TRIAL_TOLERANCE * size):
            return f"{name} predicts something else when many models are run at once"
    return ""


def _counts(model: nn.Module) -> tuple[Any, ...]:
    """What a call moves that is no tensor: random numbers of Python and NumPy, numbers that modules hold.

    torch.func itself refuses the random numbers of PyTorch.
    """
    _, _, *places = np.random.get_state()  # noqa: NPY002 - the global generator is what users draw from
    held = [
        [(name, value) for name, value in vars(part).items() if isinstance(value, int | float)]
        for part in model.modules()
    ]
    return random.getstate(), places, held


# ---- optimizer


def adamw_only(optimizer: Optimizer) -> str:
    """Why an optimizer cannot be stepped for many models at once; empty for a plain AdamW."""
    if type(optimizer) is not AdamW:
        return f"its optimizer is {type(optimizer).__name__}, and only AdamW steps many models at once"
    odd = [key for key in ("amsgrad", "maximize") if any(group[key] for group in optimizer.param_groups)]
    return f"AdamW({odd[0]}=True) does not step many models at once" if odd else ""


class StackedAdamW:
    """AdamW (doi 10.48550/arXiv.1711.05101) for M models, each with its own moments and number of steps."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, stack: ModelStack) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        columns = stack.weights.shape[1]
        #: Group of parameters of each column; -1: of none, which nothing trains.
        self.group = torch.full((columns,), -1)
        settings = torch.zeros(4, columns, dtype=torch.float64)
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                span = stack.spans.get(names.get(id(parameter), ""))
                if span is not None:
                    self.group[span] = number
                    values = [*group["betas"], group["eps"], group["weight_decay"]]
                    settings[:, span] = torch.tensor([float(v) for v in values], dtype=torch.float64)[:, None]
        self.beta1, self.beta2, self.eps, self.decay = (row.unsqueeze(0) for row in settings)
        self.steps = torch.zeros(len(stack), 1, dtype=torch.float64)
        self.first, self.second = torch.zeros_like(stack.weights), torch.zeros_like(stack.weights)

    def take(self, rows: Tensor) -> StackedAdamW:
        """The state of some models."""
        part = copy.copy(self)
        for name in ("steps", "first", "second"):
            setattr(part, name, getattr(self, name).index_select(0, rows))
        return part

    def put(self, rows: Tensor, other: StackedAdamW) -> None:
        """Replace the state of some models."""
        for name in ("steps", "first", "second"):
            getattr(self, name)[rows] = getattr(other, name)

    def step(self, weights: Tensor, gradient: Tensor, rates: Tensor, unused: Tensor) -> None:
        """Step weights (M, P) in place; ``rates`` (M, number of groups), ``unused`` bool (P,) stay."""
        still = unused | (self.group < 0)
        kind = weights.dtype
        rate = rates.index_select(1, self.group.clamp(min=0))
        rate = torch.where(still, 0.0, rate)
        self.steps += 1
        root = (1 - self.beta2**self.steps).sqrt()
        size = rate / (1 - self.beta1**self.steps)
        beta1, beta2 = self.beta1.to(kind), self.beta2.to(kind)
        weights.mul_((1 - rate * self.decay).to(kind))
        self.first.lerp_(gradient, (1 - beta1).expand_as(gradient))
        self.second.mul_(beta2).addcmul_(gradient * (1 - beta2), gradient)
        denominator = (self.second.sqrt() / root.to(kind)).add_(self.eps.to(kind))
        weights.addcmul_(self.first / denominator, size.to(kind), value=-1.0)


# ---- loss and scores of a pass


class StackedLoss:
    """Mean loss of a pass for M models of N neurons."""

    def __init__(self, n_models: int, n_neurons: int) -> None:
        self._total, self._weight = torch.zeros(2, n_models, n_neurons, dtype=torch.float64)

    def add(self, loss: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Add losses and valid bins (m, N) of some models."""
        weights = weights.double()
        part = torch.where(weights > 0, loss.detach().double() * weights, 0.0)
        self._total.index_add_(0, rows, part)
        self._weight.index_add_(0, rows, weights)

    def result(self) -> Tensor:
        """Mean over neurons with data (M,); NaN for a model without."""
        return torch.where(self._weight > 0, self._total / self._weight, torch.nan).nanmean(1)


class StackedScores:
    """Correlations of M models, each with N of the neurons of one recording.

    ``outputs`` (M, N) are the neurons of each model. What the responses alone determine is kept per clip.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs
        self._alone = outputs.shape[1] == 1
        self._clips: dict[Hashable, RepeatSummary] = {}
        self._records: dict[Hashable, PredictionMoments] = {}
        self._waiting: dict[Hashable, Tensor] = {}  # predictions that come model by model
        self._tiled: dict[tuple[Hashable, int], RepeatSummary] = {}
        self._pooled: tuple[tuple[Hashable, ...], ClipPowers, PooledPowers] | None = None

    def take(self, rows: Tensor) -> StackedScores:
        """The scores of some models."""
        part = StackedScores(self.outputs[rows])
        part._clips = self._clips
        if self._alone:  # the neurons of the models that are left, in their order
            neurons, part.outputs = part.outputs[:, 0], torch.arange(len(rows)).unsqueeze(1)
            part._clips = {key: clip.take(neurons) for key, clip in self._clips.items()}
        return part

    def begin(self) -> None:
        """Forget the predictions of the pass before."""
        self._records, self._waiting = {}, {}

    def prepare(self, batch: Batch, neurons: Tensor | None) -> None:
        """Summarise the responses of new clips; ``neurons`` of the recording that are left, None is all."""
        for item, key in enumerate(batch.keys):
            if key not in self._clips:
                hidden = batch.contexts[item] if batch.contexts else 0
                responses = batch.responses(item)[..., hidden:]
                responses = responses if neurons is None else responses.index_select(0, neurons)
                self._clips[key] = RepeatSummary.of(responses.unsqueeze(0), None)
                self._pooled = None

    def add(self, batch: Batch, pred: Tensor, rows: Tensor) -> None:
        """Take in predictions (m, B, N, 1, T) of some models for the clips of a batch."""
        for item, key in enumerate(batch.keys):
            hidden = batch.contexts[item] if batch.contexts else 0
            values = pred.detach()[:, item, :, 0, hidden : hidden + self._clips[key].deviation.shape[1]]
            if len(rows) == len(self.outputs):
                self._records[key] = self._moments(key, values)
                continue
            if key not in self._waiting:
                self._waiting[key] = values.new_zeros(*self.outputs.shape, values.shape[-1])
            self._waiting[key][rows] = values

    def _moments(self, key: Hashable, values: Tensor) -> PredictionMoments:
        """Moments (M * N,) of predictions (M, N, T) of all models for a clip."""
        clip, (n_models, n_neurons, _) = self._clips[key], values.shape
        if self._alone:
            return PredictionMoments.of(values[:, 0], clip)
        if values.shape[:2].numel() > MOST_ROWS:
            each = [PredictionMoments.of(one, clip) for one in values]
            return each[0].map(lambda *parts: torch.cat(parts), *each[1:])
        if (key, n_models) not in self._tiled:
            self._tiled[key, n_models] = clip.take(torch.arange(n_neurons).repeat(n_models))
        return PredictionMoments.of(values.flatten(0, 1), self._tiled[key, n_models])

    def result(self) -> dict[str, Tensor]:
        """Scores (M, N) by name, as a fit computes them after every epoch."""
        self._records.update({key: self._moments(key, values) for key, values in self._waiting.items()})
        keys = tuple(sorted(self._records, key=str))
        records = [self._records[key] for key in keys]
        prediction = records[0].map(lambda *values: torch.stack(values), *records[1:])
        if self._pooled is None or self._pooled[0] != keys:
            clips = ClipPowers.cat([self._clips[key].powers.unflatten(1, -1) for key in keys])
            if not self._alone:
                copies = len(self.outputs)
                clips = clips.map(lambda value: value.repeat(1, copies, *[1] * (value.dim() - 2)))
            self._pooled = (keys, clips, PooledPowers.of(clips))
        statistics = ScoreStatistics(prediction, self._pooled[1], self._pooled[2])
        return {
            name: metric.compute(statistics).view(self.outputs.shape)
            for name, metric in METRICS.items()
            if metric.per_epoch
        }
