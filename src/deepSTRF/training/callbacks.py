"""Measuring a model's input standardisation on the training clips, when nobody has done so before the fit."""

from __future__ import annotations

import copy
import functools
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from deepSTRF.training.data import Batch, BatchSource, DirectSource
from deepSTRF.training.history import mean_score

__all__ = [
    "BestWeights",
    "EarlyStopping",
    "FitDisplay",
    "FitDivergedError",
    "PerNeuronBest",
    "StepGuard",
    "check_monitor",
    "epoch_line",
    "fit_standardizer",
    "is_wanted",
    "likely_cause",
    "open_display",
    "per_neuron_tensors",
    "warn_of_untrained",
]


# ------------------------------------------------------------------------------
# Early stopping: which epoch was best, and when to give up waiting for a better one.


class EarlyStopping:
    """Follow one score over the epochs: is it a new best, and has it stood still for too long?

    An epoch is a new best when it beats the best so far by more than ``min_delta``. After ``patience`` epochs
    in a row without a new best, `exhausted` is True; a score that never changes thus ends after ``patience +
    1`` epochs.

    Examples
    --------
    >>> stopping = EarlyStopping(mode="max", patience=2)
    >>> [stopping.update(epoch, score) for epoch, score in enumerate([0.1, 0.3, 0.3, 0.2])]
    [True, True, False, False]
    >>> stopping.exhausted, stopping.best_epoch
    (True, 1)
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
        improved = self._better(score)
        if improved:
            self.best_score, self.best_epoch, self.waited = score, epoch, 0
        else:
            self.waited += 1
        return improved

    def _better(self, score: float) -> bool:
        if self.best_score is None:
            return True
        gain = score - self.best_score if self.mode == "max" else self.best_score - score
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs to go on counting."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.waited = int(state["waited"])


# ------------------------------------------------------------------------------
# Keeping the best weights in memory, for the whole model and, on request, for each neuron.


class BestWeights:
    """A copy of a model's state on the CPU that can be put back at any time.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(1, 1)
    >>> best = BestWeights(layer)
    >>> before = layer.weight.item()
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(float("nan"))
    >>> best.restore(layer)
    >>> layer.weight.item() == before
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self.state: dict[str, Any] = {}
        self.take(model)

    def take(self, model: nn.Module) -> None:
        """Copy the model's present state."""
        self.state = {
            name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in model.state_dict().items()
        }

    def restore(self, model: nn.Module) -> None:
        """Put the copied state back."""
        model.load_state_dict(self.state)


def per_neuron_tensors(readout: nn.Module, n_neurons: int) -> list[str]:
    """Return the names of the readout's parameters and buffers whose first axis is the neuron.

    Known for `STRFReadout` and `LinearReadout`. A readout of your own declares it with a method
    ``per_neuron_parameters()`` that returns the names as in ``readout.state_dict()``; shapes alone decide
    nothing, since a hidden layer may happen to be as wide as the population.

    Examples
    --------
    >>> from deepSTRF.models.readouts import LinearReadout
    >>> per_neuron_tensors(LinearReadout(in_features=4, out_neurons=3, hidden=3), 3)
    ['fc.2.weight', 'fc.2.bias']
    """
    state = readout.state_dict()
    names = _declared(readout, state)
    for name in names:
        if name not in state or state[name].dim() < 1 or state[name].shape[0] != n_neurons:
            shape = tuple(state[name].shape) if name in state else "no such tensor"
            raise ValueError(
                f"track_per_cell_best: {type(readout).__name__} declares {name!r} per neuron, but it is "
                f"{shape}; the first axis must have the {n_neurons} neurons"
            )
    return names


def _declared(readout: nn.Module, state: dict[str, Any]) -> list[str]:
    from deepSTRF.models.readouts import LinearReadout, STRFReadout

    declare = getattr(readout, "per_neuron_parameters", None)
    if callable(declare):
        return list(declare())
    if isinstance(readout, STRFReadout):
        # One STRF, one normalisation and one output nonlinearity per neuron; only BN's counter is shared.
        return [name for name in state if not name.endswith("num_batches_tracked")]
    if isinstance(readout, LinearReadout):
        last = "fc.2." if isinstance(readout.fc, nn.Sequential) else "fc."
        return [name for name in state if name.startswith((last, "activation."))]
    raise ValueError(
        f"track_per_cell_best: it is not known which tensors of {type(readout).__name__} belong to single "
        "neurons; give it a method per_neuron_parameters() that returns their names as in "
        "readout.state_dict()"
    )


class PerNeuronBest:
    """Each neuron's own best slice of the readout.

    The training itself is unchanged; on an epoch where neuron n scores better than ever, its slices of the
    readout are copied. Laid over the best epoch's weights at the end, every neuron is read out as at its own
    best epoch. The validation score of each neuron is then at least that of the best epoch only where nothing
    before the readout is trained; with shared features it is a heuristic.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(n_frequency_bands=4, temporal_window_size=2, out_neurons=3)
    >>> keeper = PerNeuronBest(model, mode="max")
    >>> keeper.update(model, torch.tensor([0.1, 0.2, float("nan")]))
    tensor([ True,  True, False])
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
        self._best = torch.full((n_neurons,), -torch.inf, dtype=torch.float64)
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

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs to go on."""
        return {"best": self._best, "slices": self._slices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._best = state["best"]
        self._slices = dict(state["slices"])


# ------------------------------------------------------------------------------
# What a running fit shows: a bar on a terminal, a call per epoch for a user's function, or nothing.


class FitDisplay(Protocol):
    """Where the records of a fit's epochs go while it runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, record: dict[str, Any], best_epoch: int | None, best_score: float | None) -> None:
        """Take the record of one finished epoch."""
        ...


def epoch_line(record: dict[str, Any], monitor: str) -> str:
    """Return one line about an epoch: its losses and the monitored score, with the count of NaN neurons.

    Examples
    --------
    >>> import torch
    >>> epoch_line({"epoch": 3, "train_loss": 0.5, "val_cc": torch.tensor([0.25, float("nan")])}, "val_cc")
    'epoch 3  train_loss 0.5000  val_cc 0.2500 (1 of 2 NaN)'
    """
    parts = [f"epoch {record['epoch']}"]
    for key in dict.fromkeys(("train_loss", "val_loss", monitor)):
        if key in record:
            score = mean_score(record[key])
            missing = f" ({score.n_nan} of {score.n + score.n_nan} NaN)" if score.n_nan else ""
            parts.append(f"{key} {score.mean:.4f}{missing}")
    return "  ".join(parts)


class _CallDisplay:
    """Hands each record to a user's function, or to nobody."""

    def __init__(self, log_fn: Callable[[dict[str, Any]], Any] | None) -> None:
        self._log_fn = log_fn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        return None

    def show(self, record: dict[str, Any], best_epoch: int | None, best_score: float | None) -> None:
        """Call the user's function with the record."""
        if self._log_fn is not None:
            self._log_fn(record)


class _BarDisplay(_CallDisplay):
    """A rich progress bar on stderr, with the score of the epoch and the best one beside it."""

    def __init__(self, log_fn: Callable[[dict[str, Any]], Any] | None, max_epochs: int, monitor: str) -> None:
        super().__init__(log_fn)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._monitor = monitor
        self._bar = Progress(
            TextColumn("fitting"),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=max_epochs)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._bar.stop()

    def show(self, record: dict[str, Any], best_epoch: int | None, best_score: float | None) -> None:
        """Move the bar and show the epoch's numbers."""
        super().show(record, best_epoch, best_score)
        # short enough for 80 columns; the losses are in the history
        line = f"{self._monitor} {mean_score(record[self._monitor]).mean:.3f}"
        if best_score is not None:
            line += f" (best {best_score:.3f})"
        self._bar.update(self._task, completed=record["epoch"] + 1, description=line)


def open_display(
    progress: bool | Literal["auto"],
    log_fn: Callable[[dict[str, Any]], Any] | None,
    *,
    max_epochs: int,
    monitor: str,
) -> FitDisplay:
    """Return the display a fit should use.

    Examples
    --------
    >>> seen = []
    >>> with open_display("auto", seen.append, max_epochs=2, monitor="val_loss") as display:
    ...     display.show({"epoch": 0, "val_loss": 1.0}, 0, 1.0)
    >>> seen
    [{'epoch': 0, 'val_loss': 1.0}]
    """
    wanted = is_wanted(progress) and not (progress == "auto" and log_fn is not None)
    return _BarDisplay(log_fn, max_epochs, monitor) if wanted else _CallDisplay(log_fn)


def is_wanted(progress: bool | Literal["auto"]) -> bool:
    """Say whether to draw a bar: as told, or where stderr is a terminal.

    Examples
    --------
    >>> is_wanted(False)
    False
    """
    if progress not in (True, False, "auto"):
        raise ValueError(f"progress must be True, False or 'auto', got {progress!r}")
    return sys.stderr.isatty() if progress == "auto" else bool(progress)


# ------------------------------------------------------------------------------
# Errors a fit can end with: numbers that stopped being numbers, files of another fit, or broken ones.


class FitDivergedError(ArithmeticError):
    """The loss, a gradient or the monitored score is no longer a finite number.

    An ``ArithmeticError`` and not a ``ValueError``: no argument was wrong in itself, the computation broke
    down on the way. The weights of the best epoch before the break are back in the model when this is raised,
    and ``fitter.history`` holds the epochs that were completed.

    Parameters
    ----------
    message : str
        What happened, where, and the likely cause.
    epoch : int
        Epoch in which it happened, counted from 0.
    batch : int, optional
        Batch within that epoch, counted from 0; None when the epoch's score is what broke.
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


# ------------------------------------------------------------------------------
# Stopping at the first number that is none, and saying where it came from.


#: What mends parameters that nothing trains, where the model knows no better (``model.untrained_advice``).
UNTRAINED = "use them in forward, or freeze them with requires_grad_(False)"
LOWER_RATE = "lower the learning rate (a tenth of it, say)"
#: Advice to callers of `Fitter`.
LEFT = (
    "The best weights so far are back in the model, the epochs so far in fitter.history; "
    "Fitter(grad_clip=1.0) limits the gradients"
)


def warn_of_untrained(model: nn.Module, reached: set[str]) -> None:
    """Warn of parameters that were to be fitted and that no step reached: they stay as they were built.

    Examples
    --------
    >>> warn_of_untrained(nn.Linear(1, 1), {"weight", "bias"})
    """
    lost = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in reached
    ]
    if lost:
        advice = getattr(model, "untrained_advice", UNTRAINED)
        warnings.warn(
            f"no gradient reached {', '.join(lost)} of {type(model).__name__} in a whole epoch: this fit "
            f"leaves them as they were built. {advice[0].upper()}{advice[1:]}",
            UserWarning,
            stacklevel=4,  # where fit() was called
        )


class StepGuard:
    """Watch the loss and the gradient norm of every step for NaN and infinities.

    On the CPU a bad number stops the fit before the optimiser uses it. On a GPU reading a number would make
    the processor wait at each step, so the steps of an epoch are examined together at its end.

    Examples
    --------
    >>> guard = StepGuard(nn.Linear(1, 1), epoch=0, at_once=True)
    >>> batch = Batch(torch.zeros(1, 1, 4, 9), False, torch.zeros(1, 2, 1, 9), torch.ones(2), (5,), (9,), 0,
    ...               lambda i: None)
    >>> guard.watch(torch.tensor(0.5), batch, torch.zeros(1, 2, 1, 9), "loss")
    """

    def __init__(self, model: nn.Module, epoch: int, *, at_once: bool) -> None:
        self._model = model
        self._epoch = epoch
        self._at_once = at_once
        self._seen: list[tuple[Tensor, str, int, tuple[Hashable, ...]]] = []
        self.batch = 0

    def watch(self, value: Tensor, batch: Batch, pred: Tensor, what: str) -> None:
        """Take a scalar (a loss, a gradient norm) of the present step."""
        if not self._at_once:
            self._seen.append((value.detach(), what, self.batch, batch.keys))
        elif not bool(torch.isfinite(value)):
            raise self._error(what, value, self.batch, batch.keys, likely_cause(self._model, batch, pred))

    def finish(self) -> None:
        """Examine what was not examined yet, at the end of the epoch."""
        if not self._seen:
            return
        finite = torch.isfinite(torch.stack([value.float() for value, *_ in self._seen])).tolist()
        for ok, (value, what, batch, keys) in zip(finite, self._seen, strict=True):
            if not ok:
                raise self._error(what, value, batch, keys, likely_cause(self._model))
        self._seen.clear()

    def _error(
        self, what: str, value: Tensor, batch: int, keys: tuple[Hashable, ...], cause: str
    ) -> FitDivergedError:
        clips = tuple(key for key in keys if isinstance(key, int))
        where = f"epoch {self._epoch}, batch {batch}" + (f" (clip {_listed(clips)})" if clips else "")
        text = f"the {what} became {float(value.detach())} in {where}: {cause}"
        return FitDivergedError(text, epoch=self._epoch, batch=batch, clips=clips or None, advice=LEFT)


def _listed(clips: tuple[int, ...]) -> str:
    return ", ".join(str(clip) for clip in clips)


def likely_cause(model: nn.Module, batch: Batch | None = None, pred: Tensor | None = None) -> str:
    """Return one sentence on the most likely reason why a step's loss or gradient is not finite.

    Shapes: pred (B, N, 1, T).

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(float("inf"))
    >>> likely_cause(layer)
    "the parameter 'weight' is no longer finite: lower the learning rate (a tenth of it, say)"
    """
    if batch is not None and not bool(torch.isfinite(batch.inputs).all()):
        what = "front-end's output for this clip" if batch.is_spectrogram else "stimulus of this clip"
        return (
            f"the {what} holds NaN or infinite values: mend the stimulus, or leave the clip out with "
            "dataset.select"
        )
    if batch is not None and not bool((batch.weights > 0).any()):
        return "no neuron has a single recorded bin in this batch (all responses are NaN): leave the clip out"
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the parameter {name!r} is no longer finite: {LOWER_RATE}"
    if batch is not None and bool(torch.isinf(batch.targets).any()):
        return "the responses of this clip hold infinite values: mend them, or mark them missing with NaN"
    if pred is not None and not bool(torch.isfinite(pred).all()):
        return f"the model's output overflows although its parameters are finite: {LOWER_RATE}"
    if pred is not None and bool((pred <= 0).any()):
        return (
            "the prediction is finite but zero or negative in places, where a likelihood takes its logarithm "
            "or a square root has no slope: give the model a positive output_activation, or use mse_loss"
        )
    return f"every input is finite, so the loss or its gradient itself overflowed: {LOWER_RATE}"


def check_monitor(key: str, value: float | Tensor, epoch: int, record: dict[str, Any]) -> float:
    """Return the monitored score as one number, or stop the fit when there is none.

    Neurons whose score is NaN are left out of the mean; their number is in the epoch's line.

    Shapes: value (N,).

    Examples
    --------
    >>> check_monitor("val_cc", torch.tensor([0.5, float("nan")]), 0, {})
    0.5
    """
    score = mean_score(value)
    if torch.isfinite(torch.tensor(score.mean)):
        return score.mean
    losses = [mean_score(record[name]).mean for name in ("train_loss", "val_loss") if name in record]
    if not all(torch.isfinite(torch.tensor(loss)) for loss in losses):
        cause = f"the loss is not finite either: {LOWER_RATE}"
    elif "cc_norm" in key:
        cause = (
            "no neuron has a noise-corrected correlation on these clips. Either the prediction is constant "
            "(the output activation is saturated, or the learning rate too high), or no neuron has a "
            "positive signal power (silent neurons, a single short clip): monitor='val_cc' or 'val_loss' "
            "(mode='min') needs no repeats"
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


def fit_standardizer(model: nn.Module, source: BatchSource, loader: DataLoader[Any]) -> bool:
    """Measure the model's input standardisation on the training stimuli, if it has one that is not fitted.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import Fitter, make_loaders
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> train, val = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]))
    >>> model = Linear(ds.F, 3, 2, standardize=True)
    >>> history = Fitter(model, train, val, max_epochs=1, progress=False).fit()
    >>> model.standardizer.fitted
    True
    """
    standardizer = getattr(model, "standardizer", None)
    if not isinstance(standardizer, nn.Module) or getattr(standardizer, "fitted", True):
        return False
    model.fit_standardization(_training_stimuli(source, loader))  # type: ignore[operator]
    return True


def _training_stimuli(source: BatchSource, loader: DataLoader[Any]) -> Iterator[Tensor]:
    if isinstance(source, DirectSource):
        for clip in source.clips.one_pass():
            yield source.clips.dataset.stims[clip]
        return
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            "the model has standardize=True and the training data can only be iterated; measure the "
            "standardisation before the fit with model.fit_standardization(stimuli)"
        )
    for item in range(len(dataset)):
        yield dataset[item]["stims"]
