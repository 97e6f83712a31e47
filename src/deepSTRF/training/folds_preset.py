"""The settings of the dynamic STRF page as arguments, to be passed or changed in plain sight."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.optim import Optimizer, RAdam
from torch.optim.lr_scheduler import ExponentialLR

from deepSTRF.metrics import mse_loss
from deepSTRF.models._checks import check_choice

__all__ = ["dynamic_strf_settings"]

#: Learning rate and weight decay of the page's two encoders.
OPTIMIZERS = {"deep": (0.003, 0.03), "linear": (0.03, 30.0)}
#: Factor on the learning rate after every epoch, largest norm of the gradient, epochs, trials per batch.
GAMMA, GRAD_CLIP, EPOCHS, BATCH_SIZE = 0.996, 10.0, 1000, 64


def dynamic_strf_settings(encoder: str = "deep", *, max_epochs: int = EPOCHS) -> dict[str, Any]:
    """Return the arguments with which `fit_folds` trains as the dynamic STRF page does.

    Mean squared error; RAdam with learning rate 0.003 and weight decay 0.03 (0.03 and 30 for the linear
    encoder), the rate times 0.996 after every epoch; gradients clipped at 10; up to 64 trials per batch; 1000
    epochs without validation, of which the last weights stay. The page computes in half precision, this in
    single precision; a batch weighs bins there trial by trial, here all alike.

    Parameters
    ----------
    encoder : {"deep", "linear"}
        Which of the page's encoders.
    max_epochs : int
        Epochs.

    Returns
    -------
    dict
        ``batch_size`` and ``fitter_kwargs`` for `fit_folds`.

    Raises
    ------
    ValueError
        For another encoder.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> settings = dynamic_strf_settings("linear", max_epochs=20)
    >>> settings["batch_size"], sorted(settings["fitter_kwargs"])
    (64, ['grad_clip', 'loss_fn', 'max_epochs', 'optimizer', 'scheduler'])
    """
    check_choice("encoder", encoder, tuple(OPTIMIZERS))
    rate, decay = OPTIMIZERS[encoder]
    fitter_kwargs = {
        "loss_fn": mse_loss,
        "optimizer": functools.partial(_radam, lr=rate, weight_decay=decay),
        "scheduler": functools.partial(ExponentialLR, gamma=GAMMA),
        "grad_clip": GRAD_CLIP,
        "max_epochs": max_epochs,
    }
    return {"batch_size": BATCH_SIZE, "fitter_kwargs": fitter_kwargs}


def _radam(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    return RAdam(model.parameters(), lr=lr, weight_decay=weight_decay)
