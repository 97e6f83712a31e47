"""Stopping at the first number that is none, and saying where it came from."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF.training.batches import Batch
from deepSTRF.training.errors import FitDivergedError
from deepSTRF.training.history import mean_score

__all__ = ["StepGuard", "check_monitor", "likely_cause", "warn_of_untrained"]

#: What mends parameters that nothing trains, where the model knows no better (``model.untrained_advice``).
UNTRAINED = "use them in forward, or freeze them with requires_grad_(False)"
LOWER_RATE = "lower the learning rate (a tenth of it, say) or pass grad_clip=1.0"


def warn_of_untrained(model: nn.Module, reached: set[str]) -> None:
    """Warn of parameters that were to be fitted and that no step reached: they stay as they were built.

    Parameters
    ----------
    model : nn.Module
        The model being fitted.
    reached : set of str
        Names of parameters that got a gradient in some step of the epoch.

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

    Parameters
    ----------
    model : nn.Module
        The model being fitted, examined for the cause.
    epoch : int
        Epoch, counted from 0.
    at_once : bool
        Examine each step as it comes.

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
        """Take a scalar (a loss, a gradient norm) of the present step.

        Raises
        ------
        FitDivergedError
            When it is not finite and steps are examined as they come.
        """
        if not self._at_once:
            self._seen.append((value.detach(), what, self.batch, batch.keys))
        elif not bool(torch.isfinite(value)):
            raise self._error(what, value, self.batch, batch.keys, likely_cause(self._model, batch, pred))

    def finish(self) -> None:
        """Examine what was not examined yet, at the end of the epoch.

        Raises
        ------
        FitDivergedError
            At the first step with a number that is not finite.
        """
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
        return FitDivergedError(
            f"the {what} became {float(value.detach())} in {where}: {cause}. "
            "The best weights so far are back in the model, the epochs so far in fitter.history",
            epoch=self._epoch,
            batch=batch,
            clips=clips or None,
        )


def _listed(clips: tuple[int, ...]) -> str:
    return ", ".join(str(clip) for clip in clips)


def likely_cause(model: nn.Module, batch: Batch | None = None, pred: Tensor | None = None) -> str:
    """Return one sentence on the most likely reason why a step's loss or gradient is not finite.

    Parameters
    ----------
    model : nn.Module
        The model, its parameters as they were in that step (or after it).
    batch : Batch, optional
        The batch of the step, where it is still at hand.
    pred : Tensor, shape (B, N, 1, T), optional
        What the model made of it.

    Returns
    -------
    str
        Cause and mend.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(float("inf"))
    >>> likely_cause(layer)
    "the parameter 'weight' is no longer finite: lower the learning rate (a tenth of it, say) or pass
    grad_clip=1.0"
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

    Parameters
    ----------
    key : str
        The monitored key.
    value : float or Tensor, shape (N,)
        Its value in this epoch.
    epoch : int
        The epoch.
    record : dict
        The epoch's record, examined for the cause.

    Returns
    -------
    float
        Mean over the neurons that have a score.

    Raises
    ------
    FitDivergedError
        When every neuron's score is NaN, or the mean is infinite.

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
        f"the monitored score {key} is {score.mean} for all {n} value(s) in epoch {epoch}: {cause}. "
        "The best weights so far are back in the model, the epochs so far in fitter.history",
        epoch=epoch,
    )
