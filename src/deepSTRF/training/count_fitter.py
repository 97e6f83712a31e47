"""Fits of models that predict a probability for every spike count."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deepSTRF.training.batches import Batch
from deepSTRF.training.fitter import Fitter

__all__ = ["CountFitter", "predicts_counts"]


class CountFitter(Fitter):
    """A `Fitter` for models with a categorical head: the loss is the cross-entropy of the recorded counts.

    Scores compare the expected counts with the responses, as for any model; the loss sees the logits. The
    recording holds counts: load it with ``smooth=False``. Arguments are those of `Fitter`.

    Examples
    --------
    >>> from deepSTRF.models.audio import ICNet
    >>> predicts_counts(ICNet(8000, 3, head="categorical", n_filters=4, encoder_channels=6))
    True
    """

    def predict_batch(self, batch: Batch) -> Tensor:
        """Return the expected counts (B, N, 1, T) and keep the logits for the loss."""
        model: Any = self.model
        self._logits: Tensor = model.forward_params(batch.inputs)
        return model.expected_counts(self._logits)  # type: ignore[no-any-return]

    def compute_loss(self, pred: Tensor, responses: Tensor) -> Tensor:
        """Return the cross-entropy per neuron (N,); ``pred`` says how many bins the warm-up left."""
        model: Any = self.model
        return model.loss(self._logits[..., -pred.shape[-1] :], responses, reduction="none")  # type: ignore[no-any-return]


def predicts_counts(model: nn.Module) -> bool:
    """Say whether a model predicts a probability for every spike count.

    Parameters
    ----------
    model : nn.Module
        Any model.

    Returns
    -------
    bool
        Whether `CountFitter` fits it.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> predicts_counts(Linear(8, 3, 2))
    False
    """
    return getattr(getattr(model, "readout", None), "head", None) == "categorical"
