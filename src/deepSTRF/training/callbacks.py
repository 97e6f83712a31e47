"""Callbacks: what watches a fit, keeps its best weights, stops it, and shows how it goes.

`Fitter` runs the loop and calls every callback at fixed points (the hooks of `Callback`). The arguments of
`Fitter` (``patience``, ``ckpt_path``, ``progress``, ...) build the callbacks of this file; a user's own
callbacks are called after them. The state of a fit on disk is a callback of its own (`resume`).
"""

from __future__ import annotations

import copy
import functools
import math
import os
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from deepSTRF._files import check_target, save_or_warn, save_tensors
from deepSTRF._text import printable
from deepSTRF._validation import outside_level
from deepSTRF.metrics._statistics import centre, is_complete, row_blocks
from deepSTRF.training.data import (
    Batch,
    BatchSource,
    ClipLoader,
    read_loader,
    recording_behind,
)
from deepSTRF.training.objective import (
    Loss,
    LossTraits,
    check_batch_domains,
    check_objective,
    loss_domains,
    mean_score,
)
from deepSTRF.training.parallel import OneProcess

__all__ = [
    "BestWeights",
    "Callback",
    "DomainGuard",
    "EarlyStopping",
    "FitDivergedError",
    "FitterLike",
    "LastWeights",
    "LogFunction",
    "NonFiniteGuard",
    "PerNeuronBest",
    "ProgressBar",
    "Standardization",
    "UntrainedParameters",
    "check_batch",
    "check_callbacks",
    "check_monitor",
    "cpu_state",
    "learns_spectrogram",
    "likely_cause",
    "measure_bands",
    "per_neuron_tensors",
    "psth_moments",
    "shows_progress",
    "start_from",
]


class FitterLike(Protocol):
    """Attributes of a `Fitter` that callbacks use."""

    model: nn.Module
    device: torch.device
    optimizer: Optimizer
    scheduler: Any
    scaler: GradScaler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    train_source: BatchSource
    val_source: BatchSource
    loss_fn: Callable[..., Tensor]
    max_epochs: int
    monitor: str
    mode: str
    precision: str
    grad_clip: float | None
    warmup_ms: float
    seed: int | None
    history: list[dict[str, Any]]
    callbacks: list[Callback]
    stopping: EarlyStopping
    best_weights: BestWeights
    per_neuron: PerNeuronBest | None
    should_stop: bool
    loss_factor: float
    traits: LossTraits
    processes: OneProcess

    @property
    def best_epoch(self) -> int | None:
        """Epoch with the best monitored score."""
        ...

    @property
    def best_score(self) -> float | None:
        """The monitored score of that epoch."""
        ...

    def on_epoch_end(self, epoch: int, record: dict[str, Any]) -> None:
        """Hook of a subclass."""
        ...


class Callback:
    """Base class of what watches a fit; a subclass overrides the hooks that it needs.

    The order of calls is `on_fit_start`, `load_state_dict` where the fit resumes, then in each epoch
    `on_epoch_start`, for every training batch `on_batch_start`, `on_loss`, `on_gradient` and `on_batch_end`,
    then `on_train_pass_end` and, after the validation pass, `on_epoch_end`; at last `on_fit_end`, also when
    the fit was interrupted or has failed.

    The fitter's own callbacks (early stopping, best weights, ...) are called before a user's, so that in
    `on_epoch_end` the best epoch is known and in `on_fit_end` the best weights are back in the model. Setting
    ``fitter.should_stop = True`` ends the fit before its next epoch.

    Notes
    -----
    Arguments of the hooks:

    fitter : Fitter
        With its ``model``, ``optimizer``, ``history``, ``best_epoch``, ``best_score`` and ``device``.
    epoch : int
        Number of the epoch, from 0.
    batch : Batch
        ``inputs``, ``targets`` (B, N, R, T), ``keys`` of the clips, ``extras`` that the loader gave.
    prediction : Tensor, shape (B, N, 1, T)
        Output of the model for the batch, without the warm-up.
    loss : Tensor
        In `on_loss` the scalar that is differentiated, in `on_batch_end` a scalar or (N,), detached.
    norm : Tensor, shape ()
        Norm of the whole gradient before clipping.
    record : dict
        Losses and scores of the epoch, the last entry of ``fitter.history``. What a callback adds appears in
        the history, in log functions and in loggers; with a ``state_path`` numbers, text and tensors are kept
        as they are, anything else as text.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import Fitter, make_loaders
    >>> class LearningRate(Callback):
    ...     def on_epoch_end(self, fitter, epoch, record):
    ...         record["lr"] = fitter.optimizer.param_groups[0]["lr"]
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> train, val = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]))
    >>> fitter = Fitter(Linear(ds.F, 3, 2), train, val, max_epochs=2, callbacks=[LearningRate()])
    >>> [record["lr"] for record in fitter.fit()]
    [0.001, 0.001]
    """

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Prepare for a fit; a second call of ``fit`` on the same fitter starts anew."""

    def on_epoch_start(self, fitter: FitterLike, epoch: int) -> None:
        """Before an epoch, which ``fitter.should_stop = True`` prevents."""

    def on_batch_start(self, fitter: FitterLike, batch: Batch) -> Batch:
        """Return the training batch to use, the given one or ``dataclasses.replace(batch, inputs=...)``.

        Its tensors may be the clips kept in memory: make new ones rather than writing into them. Metrics of
        training compare with the responses of the clips in ``batch.keys``, whatever the targets.
        """
        return batch

    def on_loss(self, fitter: FitterLike, batch: Batch, prediction: Tensor, loss: Tensor) -> None:
        """For each training batch, before its gradient is computed."""

    def on_gradient(self, fitter: FitterLike, batch: Batch, prediction: Tensor, norm: Tensor) -> None:
        """For each training batch, with the (clipped) gradients, before the step of the optimizer."""

    def on_batch_end(self, fitter: FitterLike, batch: Batch, prediction: Tensor, loss: Tensor) -> None:
        """For each training batch, after the step of the optimizer."""

    def on_train_pass_end(self, fitter: FitterLike, epoch: int) -> None:
        """After the last training batch of an epoch, before the validation pass."""

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """With the record of a finished epoch, to which it may add."""

    def on_fit_end(self, fitter: FitterLike) -> None:
        """Release what `on_fit_start` took; called however the fit ended."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the callback needs to go on in a resumed fit.

        Tensors, numbers, text, None, lists, tuples and dictionaries; empty where there is nothing.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, after `on_fit_start`."""

    def describe(self) -> str:
        """Return what of it the weights of the fit depend on; empty for what only watches.

        The state of a fit (``state_path``) is resumed by a fit whose callbacks say the same.
        """
        return ""


def check_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks of one fit, or raise TypeError for anything else."""
    if callable(callbacks) or isinstance(callbacks, Callback):
        raise TypeError(
            "callbacks must be a list of Callback instances, such as [MyCallback()], or a function of the "
            f"seed that returns one, got {callbacks!r}"
        )
    for position, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks[{position}] must be an instance of a subclass of deepSTRF.training.Callback, "
                f"got {callback!r}"
            )
    return list(callbacks)


def check_batch(callback: Callback, batch: Any) -> Batch:
    """Return a batch that a callback has made, or raise TypeError for anything else."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"{type(callback).__name__}.on_batch_start must return the batch, or one made with "
            f"dataclasses.replace(batch, inputs=...), got {type(batch).__name__}"
        )
    return batch


# ---- stopping, best weights


class EarlyStopping(Callback):
    """Early stopping on the monitored score.

    An epoch is a new best when it beats the best by more than ``min_delta``; ``patience`` epochs in a row
    without one end the fit.
    """

    def __init__(self, mode: str = "max", patience: int = 10, min_delta: float = 0.0) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, got {patience}")
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ValueError(f"min_delta must be a finite number >= 0, got {min_delta}")
        self.mode = mode
        self.patience = int(patience)
        self.min_delta = float(min_delta)
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        """True when ``patience`` epochs in a row brought nothing better."""
        return self.waited >= self.patience

    def update(self, epoch: int, score: float) -> bool:
        """Take the score of an epoch; return True when it is the new best."""
        best = self.best_score
        gain = math.inf if best is None else (score - best if self.mode == "max" else best - score)
        if gain > self.min_delta:
            self.best_score, self.best_epoch, self.waited = score, epoch, 0
            return True
        self.waited += 1
        return False

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Forget the fit before."""
        self.best_score, self.best_epoch, self.waited = None, None, 0

    def on_epoch_start(self, fitter: FitterLike, epoch: int) -> None:
        """End the fit when nothing got better for too long."""
        fitter.should_stop |= self.exhausted

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Compare the monitored score with the best one."""
        self.update(epoch, mean_score(record[fitter.monitor]).mean)

    def state_dict(self) -> dict[str, Any]:
        """Best score, its epoch, and the epochs waited since."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        score, epoch = state["best_score"], state["best_epoch"]
        if not isinstance(score, float | int | None) or not isinstance(epoch, int | None):
            raise TypeError(f"the best epoch is {epoch!r:.80} with the score {score!r:.80}")
        self.best_score, self.best_epoch, self.waited = score, epoch, int(state["waited"])


def cpu_state(model: nn.Module) -> dict[str, Any]:
    """Return a copy of a model's ``state_dict`` on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


class BestWeights(Callback):
    """Best weights: a copy in memory, and on disk where a path is given, put back when the fit ends."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None:
            check_target(path)
        self.path = path
        self.state: dict[str, Any] = {}
        self._unwritten = False

    def keep(self, model: nn.Module) -> None:
        """Take the model's present state for the best, and write the checkpoint."""
        self.state = cpu_state(model)
        self._unwritten = self.path is not None
        self._write()

    def _write(self) -> None:
        path = self.path
        if path is not None and self._unwritten:
            self._unwritten = not save_or_warn("ckpt_path", path, lambda: save_tensors(path, self.state))

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Before the first epoch the initial weights are the best."""
        self.state, self._unwritten = cpu_state(fitter.model), False

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Keep the weights of a new best epoch."""
        if fitter.best_epoch == epoch:
            self.keep(fitter.model)

    def on_fit_end(self, fitter: FitterLike) -> None:
        """Put the best weights back; write what a full disk refused before."""
        fitter.model.load_state_dict(self.state)
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """The best weights so far."""
        return {"weights": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the best weights of the earlier run."""
        shapes, ours = ({name: getattr(value, "shape", None) for name, value in tree.items()}
                        for tree in (state["weights"], self.state))  # fmt: skip
        if shapes != ours:
            names = [name for name in {**ours, **shapes} if shapes.get(name) != ours.get(name)]
            raise ValueError(f"the best weights have other names or shapes than the model: {names[:5]}")
        self.state = state["weights"]


class LastWeights(Callback):
    """A fit that nothing validates ends with the weights of its last epoch."""

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Keep this epoch's weights, whatever its score."""
        fitter.best_weights.keep(fitter.model)


def per_neuron_tensors(readout: nn.Module, n_neurons: int) -> list[str]:
    """Return the names of the readout's parameters and buffers whose first axis is the neuron.

    Known for `STRFReadout` and `LinearReadout`; another readout declares them, as in its ``state_dict()``,
    with a method ``per_neuron_parameters()``, since a hidden layer may happen to be as wide as the
    population.
    """
    from deepSTRF.models.readouts import LinearReadout, STRFReadout

    state = readout.state_dict()
    declare = getattr(readout, "per_neuron_parameters", None)
    if callable(declare):
        names = list(declare())
    elif isinstance(readout, STRFReadout):
        # One STRF, one normalisation and one output nonlinearity per neuron; only BN's counter is shared.
        names = [name for name in state if not name.endswith("num_batches_tracked")]
    elif isinstance(readout, LinearReadout):
        last = "fc.2." if isinstance(readout.fc, nn.Sequential) else "fc."
        names = [name for name in state if name.startswith((last, "activation."))]
    else:
        raise ValueError(  # noqa: TRY004 - the readout given does not suit the option
            f"track_per_cell_best: it is not known which tensors of {type(readout).__name__} belong to "
            "single neurons; give it a method per_neuron_parameters() that returns their names as in "
            "readout.state_dict()"
        )
    for name in names:
        if name not in state or state[name].dim() < 1 or state[name].shape[0] != n_neurons:
            shape = tuple(state[name].shape) if name in state else "no such tensor"
            raise ValueError(
                f"track_per_cell_best: {type(readout).__name__} declares {name!r} per neuron, but it is "
                f"{shape}; the first axis must have the {n_neurons} neurons"
            )
    return names


class PerNeuronBest(Callback):
    """Each neuron's own best slice of the readout.

    Where neuron n scores better than ever, its slices are copied; at the end they replace those of the best
    epoch. Its validation score is then at least that of the best epoch only where nothing before the readout
    is trained.
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        readout = getattr(model, "readout", None)
        n_neurons = getattr(model, "O", None)
        if not isinstance(readout, nn.Module) or not isinstance(n_neurons, int):
            raise ValueError(  # noqa: TRY004 - the model given does not suit the option
                "track_per_cell_best needs a model with a readout and the number of neurons O (a "
                f"NeuralModel), got {type(model).__name__}"
            )
        self._sign = 1.0 if mode == "max" else -1.0
        self._names = per_neuron_tensors(readout, n_neurons)
        self._n_neurons = n_neurons
        self._reset(model)

    def _reset(self, model: nn.Module) -> None:
        self._best = torch.full((self._n_neurons,), -torch.inf, dtype=torch.float64)
        self._slices = {name: value.cpu() for name, value in self._readout_state(model).items()}

    def _readout_state(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.readout.state_dict()  # type: ignore[union-attr]
        return {name: state[name].detach().clone() for name in self._names}

    def update(self, model: nn.Module, scores: Tensor | float) -> Tensor:
        """Copy the slices of the neurons that improved; returns which did (N,). NaN is no improvement."""
        got = tuple(scores.shape) if isinstance(scores, Tensor) else "a single number"
        if not isinstance(scores, Tensor) or scores.shape != self._best.shape:
            raise ValueError(
                f"track_per_cell_best needs a per-cell monitor with one score per neuron "
                f"({self._best.numel()},), got {got}; monitor 'val_cc' or 'val_cc_norm'"
            )
        signed = self._sign * scores.detach().cpu().double()
        better = signed > self._best  # False for NaN
        self._best = torch.where(better, signed, self._best)
        if bool(better.any()):
            for name, value in self._readout_state(model).items():
                self._slices[name][better] = value.cpu()[better]
        return better

    def overlay(self, model: nn.Module) -> None:
        """Write each neuron's best slices into the readout; neurons that never scored keep the model's."""
        scored = self._best > -torch.inf
        state = model.readout.state_dict(keep_vars=True)  # type: ignore[union-attr]
        with torch.no_grad():
            for name in self._names:
                state[name][scored] = self._slices[name][scored].to(state[name])

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Forget the fit before."""
        self._reset(fitter.model)

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Copy what improved in this epoch."""
        self.update(fitter.model, record[fitter.monitor])

    def on_fit_end(self, fitter: FitterLike) -> None:
        """Lay the best slices over the best weights, which are back in the model, and keep the result."""
        self.overlay(fitter.model)
        if fitter.best_epoch is not None:
            fitter.best_weights.keep(fitter.model)

    def state_dict(self) -> dict[str, Any]:
        """Best score and best slices of every neuron."""
        return {"best": self._best, "slices": self._slices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the best slices of the earlier run."""
        self._best = state["best"]
        self._slices = dict(state["slices"])


# ---- before the first step, and after it


class Standardization(Callback):
    """Statistics of the bands on the training clips: standard deviations, and an unfitted standardisation."""

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Measure them; a standardisation that was fitted before is left alone."""
        model: Any = fitter.model
        standardizer = getattr(model, "standardizer", None)
        if isinstance(standardizer, nn.Module) and not getattr(standardizer, "fitted", True):
            source = fitter.train_source
            if hasattr(model, "measure_bands"):
                model.measure_bands(source.stimuli(), source.spectrograms())
            else:
                model.fit_standardization(source.stimuli())
        elif not learns_spectrogram(model):
            measure_bands(model, fitter.train_source)


def learns_spectrogram(model: nn.Module) -> bool:
    """Whether a fit changes a model's spectrograms, so that its bands are measured when it ends."""
    front_end = getattr(model, "wav2spec", None)
    return front_end is not None and any(p.requires_grad for p in front_end.parameters())


def measure_bands(model: nn.Module, source: BatchSource) -> None:
    """Measure the deviations of a model's bands; unknown where the clips cannot be read one by one."""
    if hasattr(model, "measure_bands"):
        try:
            model.measure_bands(source.stimuli(), source.spectrograms())  # type: ignore[operator]
        except (ValueError, TypeError, LookupError, AttributeError):
            model.band_std = None  # type: ignore[assignment]


class OutputStart(Callback):
    """Start of the output at each neuron's scale and offset on the training clips, and the unit of the loss.

    Losses whose predictions are in the unit of the responses state with which power of it they grow
    (``unit_degree``). The loss that is minimised is divided by that power of the responses' size: the
    optimizer's own small numbers, the learning rate of plain gradient descent and the limit of the gradient
    then do not depend on the unit. An optimizer whose weight decay is part of the gradient (SGD, RAdam; not
    AdamW) weighs the loss against the weights: there all is left in the unit of the responses.
    """

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Measure the PSTHs of the training clips; an output that was started before is left alone."""
        fitter.loss_factor = 1.0
        degree = fitter.traits.unit_degree
        if degree is None or _decays_through_the_gradient(fitter.optimizer):
            return
        recording, _ = recording_behind(fitter.train_loader)
        moments = psth_moments(fitter.train_source.psths(), getattr(recording, "N_neurons", None))
        if moments is not None:
            fitter.loss_factor = start_from(fitter.model, fitter.traits, *moments)


def start_from(
    model: Any, traits: LossTraits, mean: Tensor, deviation: Tensor, lowest: Tensor, highest: Tensor
) -> float:
    """Start a model's output, unless it was started before; returns the factor of the loss."""
    varies, factor = deviation > 0, 1.0
    if traits.unit_degree and bool(varies.any()):
        size = float(deviation[varies].square().mean().sqrt())
        factor = 2.0 ** round(-traits.unit_degree * math.log2(size))  # exact in binary numbers
    stage, readout = getattr(model, "output_scale", None), getattr(model, "readout", None)
    if stage is None or stage.started or stage.out_neurons != len(mean):
        return factor  # of another number of neurons: the first prediction says so
    if not isinstance(readout, nn.Module):
        return factor
    trained = [parameter.requires_grad for parameter in readout.parameters()]
    if trained and not any(trained):
        return factor  # frozen as it is
    statistics = mean, deviation, lowest, highest
    if traits.log_input:  # the same of log rates, to first order around the mean
        rate = torch.where(mean > 0, mean, 1.0)
        spread = (deviation / rate).clamp(max=1.0)
        statistics = rate.log(), spread, rate.log() - spread, rate.log() + spread
    model.start_output(*statistics)
    return factor


def _decays_through_the_gradient(optimizer: Optimizer) -> bool:
    """Whether weight decay is added to the gradient, and not to the step."""
    return any(
        group.get("weight_decay", 0) and not group.get("decoupled_weight_decay", False)
        for group in optimizer.param_groups
    )


#: PSTHs of short clips are measured together up to so many values.
VALUES_AT_ONCE = 1 << 18


def psth_moments(
    psths: Iterable[tuple[Tensor, Tensor | None]], n_neurons: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Mean, deviation, minimum and maximum (N,) of PSTHs (H, 1, T) over valid bins; None without a clip.

    Each comes with the neurons of its rows (H,), None where they are all.
    """
    sums: _RowSums | None = None
    for rows, neurons in _one_after_the_other(psths):
        if sums is None:
            sums = _RowSums(len(rows) if neurons is None or n_neurons is None else n_neurons)
        sums.add(rows.detach().cpu(), torch.arange(len(rows)) if neurons is None else neurons.cpu())
    return None if sums is None else sums.result()


def _one_after_the_other(
    psths: Iterable[tuple[Tensor, Tensor | None]],
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows (H, T) of PSTHs, those of a few clips with all neurons joined, and the neurons of the rows."""
    held: list[Tensor] = []
    n_values = 0
    for psth, neurons in psths:
        if neurons is not None:
            yield psth[:, 0], neurons
            continue
        held.append(psth[:, 0])
        n_values += psth.numel()
        if n_values >= VALUES_AT_ONCE:
            yield (held[0] if len(held) == 1 else torch.cat(held, dim=1)), None
            held, n_values = [], 0
    if held:
        yield torch.cat(held, dim=1), None


class _RowSums:
    """Running sums, least and largest values of rows (H, T), of as many of N neurons."""

    def __init__(self, n_neurons: int) -> None:
        self.around = torch.full((n_neurons,), torch.nan, dtype=torch.float64)
        self.count, self.total, self.squares = torch.zeros(3, n_neurons, dtype=torch.float64)
        self.lowest = torch.full((n_neurons,), torch.inf, dtype=torch.float64)
        self.highest = -self.lowest

    def add(self, rows: Tensor, neurons: Tensor) -> None:
        """Add rows, NaN where nothing was recorded."""
        for piece in row_blocks(rows.unsqueeze(1)):
            given, own = rows[piece], neurons[piece]
            valid = None if is_complete(given) else ~given.isnan()
            count = given.new_full((len(given),), given.shape[1], dtype=torch.float64)
            lowest = highest = given
            if valid is not None:
                count = valid.sum(1).double()
                lowest, highest = (torch.where(valid, given, end) for end in (torch.inf, -torch.inf))
            # squares of responses far from zero would cancel: around the mean of each row, and the means
            # around that of one of a neuron's rows
            mean, deviation = centre(given.double(), valid, count)
            new = self.around[own].isnan() & (count > 0)
            self.around[own[new]] = mean[new]
            shift = torch.where(count > 0, mean - self.around[own], 0.0)
            self.count.index_add_(0, own, count)
            self.total.index_add_(0, own, count * shift)
            squares = torch.linalg.vector_norm(deviation, dim=1).square() + count * shift.square()
            self.squares.index_add_(0, own, squares)
            self.lowest.scatter_reduce_(0, own, lowest.amin(1).double(), "amin")
            self.highest.scatter_reduce_(0, own, highest.amax(1).double(), "amax")

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, deviation, minimum and maximum (N,)."""
        shift = self.total / self.count
        # a neuron that never varies has a variance of rounding noise only
        variance = (self.squares / self.count - shift.square()).clamp(min=0)
        spread = torch.where(self.highest > self.lowest, variance.sqrt(), 0.0)
        return self.around.nan_to_num() + shift, spread, self.lowest, self.highest


#: Advice on parameters that nothing trains, where the model has none of its own (``untrained_advice``).
UNTRAINED = "use them in forward, or freeze them with requires_grad_(False)"


class UntrainedParameters(Callback):
    """Warning about trainable parameters that no gradient reached in the first epoch."""

    def __init__(self) -> None:
        self._reached: set[str] = set()
        self._first = False

    def on_epoch_start(self, fitter: FitterLike, epoch: int) -> None:
        """Look at the first epoch only; later ones would give the same."""
        self._reached, self._first = set(), epoch == 0

    def on_gradient(self, fitter: FitterLike, batch: Batch, prediction: Tensor, norm: Tensor) -> None:
        """Note which parameters have a gradient."""
        if self._first:
            self._reached |= {name for name, p in fitter.model.named_parameters() if p.grad is not None}

    def on_train_pass_end(self, fitter: FitterLike, epoch: int) -> None:
        """Warn of the others."""
        lost = [
            name
            for name, parameter in fitter.model.named_parameters()
            if self._first and parameter.requires_grad and name not in self._reached
        ]
        if lost:
            advice = getattr(fitter.model, "untrained_advice", UNTRAINED)
            warnings.warn(
                f"no gradient reached {', '.join(lost)} of {type(fitter.model).__name__} in a whole epoch: "
                f"this fit leaves them as they were built. {advice[0].upper()}{advice[1:]}",
                UserWarning,
                stacklevel=outside_level(),  # where fit() was called
            )


# ---- non-finite numbers


class DomainGuard(Callback):
    """Refusal of responses and predictions outside the ranges that the loss needs.

    Recordings by their kind before the fit, anything else by its batches: the first one, then (where reading
    does not stall the device) every one. ``loss_fn=None`` guards nothing.
    """

    def __init__(self, loss_fn: Loss | None) -> None:
        self._loss_fn = loss_fn
        self._guards = loss_fn is not None and loss_domains(loss_fn) != ("real", "real")
        self._first = True

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Look at the kind of both recordings."""
        self._first = True
        if self._loss_fn is not None and self._guards:
            found = [read_loader(loader) for loader in (fitter.train_loader, fitter.val_loader)]
            check_objective(
                None, self._loss_fn, *(one.dataset for one in found if isinstance(one, ClipLoader))
            )

    def on_loss(self, fitter: FitterLike, batch: Batch, prediction: Tensor, loss: Tensor) -> None:
        """Look at a batch."""
        if self._loss_fn is not None and self._guards and (self._first or fitter.device.type == "cpu"):
            check_batch_domains(self._loss_fn, prediction, batch.targets)
        self._first = False


class FitDivergedError(ArithmeticError):
    """The loss, a gradient or the monitored score is no longer a finite number.

    An ``ArithmeticError`` and not a ``ValueError``: no argument was wrong in itself, the computation
    failed on the way. The weights of the best epoch before that are back in the model when this is raised,
    and ``fitter.history`` holds the epochs that were completed.

    Parameters
    ----------
    message : str
        What happened, where, and the likely cause.
    epoch : int
        Epoch in which it happened, counted from 0.
    batch : int, optional
        Batch within that epoch, counted from 0; None when the epoch's score is not finite.
    clips : tuple of int, optional
        Clips of that batch (indices into the loader's data set), where known.
    advice : str
        What else a caller of `Fitter` can use or do; ``summary`` is the message without it.
    """

    def __init__(
        self,
        message: str,
        *,
        epoch: int,
        batch: int | None = None,
        clips: tuple[int, ...] | None = None,
        advice: str = "",
    ) -> None:
        super().__init__(f"{message}. {advice}" if advice else message)
        self.summary = message
        self.epoch = epoch
        self.batch = batch
        self.clips = clips

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild with the keywords: fits that run in other processes send their errors pickled."""
        rebuild = functools.partial(type(self), epoch=self.epoch, batch=self.batch, clips=self.clips)
        return rebuild, self.args, self.__dict__


#: Advice where a step of the optimizer was too large.
LOWER_RATE = "lower the learning rate (a tenth of it, say)"
#: Advice to callers of `Fitter`.
LEFT = (
    "The best weights so far are back in the model, the epochs so far in fitter.history; "
    "Fitter(grad_clip=1.0) limits the gradients"
)


class NonFiniteGuard(Callback):
    """Guard against NaN and infinity in the loss and the gradient norm of every step.

    On the CPU before the optimizer uses them; on a GPU, where reading would stall each step, at the epoch's
    end.
    """

    def __init__(self) -> None:
        self._epoch = self._batch = 0
        self._seen: list[tuple[Tensor, str, int, tuple[Hashable, ...]]] = []

    def on_epoch_start(self, fitter: FitterLike, epoch: int) -> None:
        """Count the batches from 0."""
        self._epoch, self._batch, self._seen = epoch, 0, []

    def on_loss(self, fitter: FitterLike, batch: Batch, prediction: Tensor, loss: Tensor) -> None:
        """Watch the loss."""
        self._watch(fitter, loss, batch, prediction, "loss")

    def on_gradient(self, fitter: FitterLike, batch: Batch, prediction: Tensor, norm: Tensor) -> None:
        """Watch the norm of the gradient; scaled gradients may overflow, the scaler skips such steps."""
        if not fitter.scaler.is_enabled():
            self._watch(fitter, norm, batch, prediction, "gradient norm")

    def on_batch_end(self, fitter: FitterLike, batch: Batch, prediction: Tensor, loss: Tensor) -> None:
        """Count the batch."""
        self._batch += 1

    def on_train_pass_end(self, fitter: FitterLike, epoch: int) -> None:
        """Examine what was not examined yet."""
        if self._seen:
            finite = torch.isfinite(torch.stack([value.float() for value, *_ in self._seen])).tolist()
            for ok, (value, what, batch, keys) in zip(finite, self._seen, strict=True):
                if not ok:
                    raise self._error(what, value, batch, keys, likely_cause(fitter.model))

    def _watch(self, fitter: FitterLike, value: Tensor, batch: Batch, pred: Tensor, what: str) -> None:
        if fitter.device.type != "cpu":
            self._seen.append((value.detach(), what, self._batch, batch.keys))
        elif not bool(torch.isfinite(value)):
            cause = likely_cause(fitter.model, batch, pred)
            raise self._error(what, value, self._batch, batch.keys, cause)

    def _error(
        self, what: str, value: Tensor, batch: int, keys: tuple[Hashable, ...], cause: str
    ) -> FitDivergedError:
        clips = tuple(key for key in keys if isinstance(key, int))
        where = f"epoch {self._epoch}, batch {batch}"
        if clips:
            where += f" (clip {', '.join(map(str, clips))})"
        text = f"the {what} became {float(value.detach())} in {where}: {cause}"
        return FitDivergedError(text, epoch=self._epoch, batch=batch, clips=clips or None, advice=LEFT)


def likely_cause(model: nn.Module, batch: Batch | None = None, pred: Tensor | None = None) -> str:
    """Return one sentence on the most likely reason why a step's loss or gradient is not finite."""
    if batch is not None and not bool(torch.isfinite(batch.inputs).all()):
        what = "front-end's output for this clip" if batch.is_spectrogram else "stimulus of this clip"
        return (
            f"the {what} holds NaN or infinite values: correct the stimulus, or leave the clip out with "
            "dataset.select"
        )
    if batch is not None and not bool((batch.weights > 0).any()):
        return "no neuron has a single recorded bin in this batch (all responses are NaN): leave the clip out"
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the parameter {name!r} is no longer finite: {LOWER_RATE}"
    if batch is not None and bool(torch.isinf(batch.targets).any()):
        return "the responses of this clip hold infinite values: correct them, or mark them missing with NaN"
    if pred is not None and not bool(torch.isfinite(pred).all()):
        return f"the model's output overflows although its parameters are finite: {LOWER_RATE}"
    if pred is not None and float(pred.detach().abs().max()) > torch.finfo(pred.dtype).max ** 0.5:
        return f"the model's output is so large that its square overflows: {LOWER_RATE}"
    if pred is not None and bool((pred <= 0).any()):
        return (
            "the prediction is finite but zero or negative in places, where a likelihood takes its logarithm "
            "or a square root has no slope: give the model a positive output_activation, or use mse_loss"
        )
    return f"every input is finite, so the loss or its gradient itself overflowed: {LOWER_RATE}"


def check_monitor(key: str, value: float | Tensor, epoch: int, record: dict[str, Any]) -> float:
    """Return a score, () or (N,), as the mean of neurons that have one; `FitDivergedError` where none has."""
    score = mean_score(value)
    if math.isfinite(score.mean):
        return score.mean
    losses = [mean_score(record[name]).mean for name in ("train_loss", "val_loss") if name in record]
    if not all(math.isfinite(loss) for loss in losses):
        cause = f"the loss is not finite either: {LOWER_RATE}"
    elif "cc_norm" in key:
        cause = (
            "no neuron has a noise-corrected correlation on these clips. Either the prediction is constant "
            "(the output activation is saturated, or the learning rate too high), or no neuron has a "
            "positive signal power (silent neurons, a single short clip): monitor='val_cc' or 'val_loss' "
            "needs no repeats"
        )
    else:
        cause = (
            "the prediction or the responses are constant for every neuron (saturated output activation, "
            "learning rate too high, silent neurons), or the loader holds no valid bins"
        )
    n = score.n + score.n_nan
    raise FitDivergedError(
        f"the monitored score {key} is {score.mean} for all {n} value(s) in epoch {epoch}: {cause}",
        epoch=epoch,
        advice=LEFT,
    )


# ---- what a user can see


class LogFunction(Callback):
    """A user's function, called with the record of each epoch."""

    def __init__(self, log_fn: Callable[[dict[str, Any]], Any]) -> None:
        self._log_fn = log_fn

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Call the function."""
        self._log_fn(record)


class ProgressBar(Callback):
    """Progress bar on stderr, with the score of the epoch and the best one beside it."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Draw the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("fitting"),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=fitter.max_epochs)
        self._bar.start()

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Move the bar and show the epoch's score, short enough for 80 columns."""
        line = f"{printable(fitter.monitor)} {mean_score(record[fitter.monitor]).mean:.3f}"
        if fitter.best_score is not None:
            line += f" (best {fitter.best_score:.3f})"
        self._bar.update(self._task, completed=epoch + 1, description=line)

    def on_fit_end(self, fitter: FitterLike) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def shows_progress(progress: bool | Literal["auto"]) -> bool:
    """Whether a progress bar is drawn: as given, or for "auto" where stderr is a terminal."""
    if progress not in (True, False, "auto"):
        raise ValueError(f"progress must be True, False or 'auto', got {progress!r}")
    return sys.stderr.isatty() if progress == "auto" else bool(progress)
