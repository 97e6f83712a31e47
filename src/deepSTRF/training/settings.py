"""The choices of a fit by name, in the words of `ExperimentConfig`, as the arguments of `Fitter`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deepSTRF._validation import check_choice, check_positive_int, checked_but
from deepSTRF.registry import LOSSES
from deepSTRF.training.augmentation import BandShift
from deepSTRF.training.callbacks import Callback, FitterLike
from deepSTRF.training.fitter import CallbackFactory, check_callback_factory, made_by
from deepSTRF.training.optimization import SCHEDULES, adamw, learning_rate_schedule
from deepSTRF.training.weight_averaging import WeightAveraging

__all__ = ["fit_settings", "patience_of"]

#: Epochs without a better validation score after which a fit ends, where the learning rate stays.
DEFAULT_PATIENCE = 30


@checked_but("loss", "callbacks")
def fit_settings(
    *,
    loss: str | Callable[..., Tensor] | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    epochs: int = 100,
    patience: int | None = None,
    schedule: str = "constant",
    grad_clip: float | None = None,
    weight_average: float = 0.0,
    band_shift: int = 0,
    standardize: bool = False,
    callbacks: CallbackFactory | None = None,
) -> dict[str, Any]:
    """Return the arguments of `Fitter` for the choices of a fit, which are those of ``deepstrf fit``.

    ``Fitter(model, train, val, seed=0, **fit_settings(...))`` is one fit; the dictionary also suits
    ``fit_multi_seed(..., fitter_kwargs=...)``, since all that belongs to one fit in it is a function that
    makes it. `fit_folds` takes the entry ``callbacks`` as its own argument. ``model.recommended`` holds the
    choices that a model recommends: ``fit_settings(**model.recommended)``.

    Parameters
    ----------
    loss : str or callable, optional
        Name of a registered loss such as 'poisson', or a loss function; None is the model's own, else the
        squared error.
    learning_rate, weight_decay : float
        Of AdamW, in the groups that the model states.
    epochs : int
        Most epochs.
    patience : int, optional
        Epochs without a better validation score after which the fit ends. None is 30 with a constant rate,
        and all epochs with a schedule that decays: its best epochs are the last.
    schedule : {"constant", "cosine", "wsd"}
        Learning rate from epoch to epoch (`learning_rate_schedule`).
    grad_clip : float, optional
        Largest norm of the gradient.
    weight_average : float
        Decay of `WeightAveraging`; 0 is none.
    band_shift : int
        Largest shift of `BandShift` in bands; 0 is none.
    standardize : bool
        Of the model, which is built with ``standardize=True``: a fit of one that is not is refused.
    callbacks : callable, optional
        ``callbacks(seed)`` returns further callbacks for a fit.

    Returns
    -------
    dict
        'loss_fn', 'optimizer', 'scheduler', 'grad_clip', 'max_epochs', 'patience', 'callbacks'; the last
        three kinds as functions of model, optimizer and seed.

    Raises
    ------
    ValueError, TypeError
        When a choice is illegal; the text says what is legal.

    Examples
    --------
    >>> settings = fit_settings(loss="poisson", epochs=60, schedule="wsd", weight_average=0.99)
    >>> settings["loss_fn"].__name__, settings["patience"], settings["callbacks"](0)[0].decay
    ('poisson_loss', 60, 0.99)
    >>> fit_settings()["patience"], fit_settings()["callbacks"](0)
    (30, [])
    """
    check_positive_int("epochs", epochs)
    check_choice("schedule", schedule, SCHEDULES)
    check_callback_factory("callbacks", callbacks)
    made = FitCallbacks(weight_average, band_shift, standardize, callbacks)
    made.own()  # an illegal decay or shift is known now
    return {
        "loss_fn": LOSSES.get(loss) if isinstance(loss, str) else loss,
        "optimizer": functools.partial(
            adamw, learning_rate=learning_rate, weight_decay=weight_decay, fused=None
        ),
        "scheduler": learning_rate_schedule(schedule, epochs),
        "grad_clip": grad_clip,
        "max_epochs": epochs,
        "patience": patience_of(patience, schedule, epochs),
        "callbacks": made,
    }


def patience_of(patience: int | None, schedule: str, epochs: int) -> int:
    """Return the patience meant by one that may be None."""
    if patience is not None:
        return check_positive_int("patience", patience)
    return DEFAULT_PATIENCE if schedule == "constant" else epochs


@dataclass(frozen=True)
class FitCallbacks:
    """The callbacks of each fit of a series, new ones for every seed."""

    weight_average: float
    band_shift: int
    standardize: bool
    more: CallbackFactory | None

    def own(self) -> list[Callback]:
        """What the named choices stand for."""
        return [
            *([WeightAveraging(self.weight_average)] if self.weight_average else []),
            *([BandShift(self.band_shift)] if self.band_shift else []),
            *([StandardizedModel()] if self.standardize else []),
        ]

    def __call__(self, seed: int) -> list[Callback]:
        return [*self.own(), *made_by(self.more, seed)]

    def describe(self) -> str:
        """What of them the weights of a fit depend on."""
        return ", ".join(text for callback in self.own() if (text := callback.describe()))


class StandardizedModel(Callback):
    """Refusal of a model that takes its bands as they are."""

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Look at the model."""
        if getattr(fitter.model, "standardizer", None) is None:
            name = type(fitter.model).__name__
            raise ValueError(
                f"standardize=True is a choice of the model, and this {name} takes its bands as they are: "
                f"build it with {name}(..., standardize=True), or leave standardize out of these choices"
            )
