"""A running average of the weights: what is validated and kept, while the raw weights go on training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.training.callbacks import Callback, FitterLike
from deepSTRF.training.data import Batch

__all__ = ["WeightAveraging"]

#: The average reaches back over at most about one ninth of the steps so far: (1 + n) / (RAMP + n) after n.
RAMP = 10


class WeightAveraging(Callback):
    """Exponential moving average of the weights, updated after every step of the optimizer.

    The average is in the model in every validation pass, so that scores, early stopping and the best weights
    are its own, and the fit ends with it; the raw weights go on training in the next epoch. It removes the
    noise of single steps, which a small recording has much of.

    After n earlier steps the decay is ``min(decay, (1 + n) / (10 + n))``: the initial weights are forgotten
    within a few steps (a constant decay would validate them for the first 1 / (1 - decay) steps, and a plain
    mean of all steps so far would hold on to the worst ones).

    Trainable parameters are averaged. Frozen ones and buffers, such as the statistics of batch normalisation,
    are taken as they are. Training losses and scores are those of the raw weights.

    Parameters
    ----------
    decay : float
        Share of the average that each step keeps, between 0 and 1: it reaches back over about
        ``1 / (1 - decay)`` steps.

    Raises
    ------
    ValueError
        For another decay, or a second average in the same fit.

    References
    ----------
    Polyak & Juditsky 1992, doi 10.1137/0330046; with exponential weights Tarvainen & Valpola 2017,
    doi 10.48550/arXiv.1703.01780.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import Fitter, make_loaders
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> train, val = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), seed=0)
    >>> model = Linear(ds.F, 3, 2)
    >>> fitter = Fitter(model, train, val, max_epochs=2, callbacks=[WeightAveraging(0.9)])
    >>> history = fitter.fit()
    >>> fitter.evaluate(val)["loss"] == history[fitter.best_epoch]["val_loss"]
    True
    """

    @checked
    def __init__(self, decay: float = 0.99) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, both excluded, got {decay}; 0.99 is usual")
        self.decay = float(decay)
        self._parameters: list[Tensor] = []
        # the average while training, the raw weights while the average is in the model
        self._other: list[Tensor] = []
        self._shown = False
        self._steps = 0

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Begin at the present weights; a fit before is forgotten."""
        if sum(isinstance(callback, WeightAveraging) for callback in fitter.callbacks) > 1:
            raise ValueError("a fit takes one WeightAveraging: leave the others out of its callbacks")
        self._parameters = [one for one in fitter.model.parameters() if one.requires_grad]
        self._other = [parameter.detach().clone() for parameter in self._parameters]
        self._shown, self._steps = False, 0

    def on_batch_end(self, fitter: FitterLike, batch: Batch, prediction: Tensor, loss: Tensor) -> None:
        """Move the average towards the weights."""
        decay = min(self.decay, (1 + self._steps) / (RAMP + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_(self._other, self._parameters, 1.0 - decay)
        self._steps += 1

    def on_train_pass_end(self, fitter: FitterLike, epoch: int) -> None:
        """Put the average into the model."""
        self._exchange()

    def on_epoch_start(self, fitter: FitterLike, epoch: int) -> None:
        """Go on with the raw weights."""
        if self._shown:
            self._exchange()

    def on_fit_end(self, fitter: FitterLike) -> None:
        """Let go of the weights; the best average is back in the model."""
        self._parameters, self._other = [], []

    def _exchange(self) -> None:
        with torch.no_grad():
            inside = [parameter.clone() for parameter in self._parameters]
            torch._foreach_copy_(self._parameters, self._other)
        self._other, self._shown = inside, not self._shown

    def state_dict(self) -> dict[str, Any]:
        """The raw weights, which stand beside the average in the model, and the number of steps."""
        return {"raw": self._other, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the raw weights of the earlier run; the average is in the model."""
        raw, shapes = state["raw"], [parameter.shape for parameter in self._parameters]
        if [getattr(value, "shape", None) for value in raw] != shapes:
            raise ValueError(f"the raw weights have other shapes than the trainable parameters, {shapes}")
        pairs = zip(raw, self._parameters, strict=True)
        self._other = [value.to(device=own.device, dtype=own.dtype) for value, own in pairs]
        self._shown, self._steps = True, int(state["steps"])

    def describe(self) -> str:
        """Name and decay."""
        return f"WeightAveraging(decay={self.decay:g})"
