"""Modules whose parameters ask for a learning rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["ScaleFreeParameters"]


class ScaleFreeParameters(nn.Module):
    """Mixin of modules whose parameters are shifts in units of their own range (channels, logs, log-odds).

    A shift of 1 is a large change and a weight of a readout is a small number, so such a module learns at
    ``learning_rate_factor`` times the rate of the model, and its shifts are never decayed towards the start.

    Attributes
    ----------
    learning_rate_factor : float
        Rate relative to the rest of the model.

    Examples
    --------
    >>> import torch
    >>> class Gain(ScaleFreeParameters):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.log_gain = nn.Parameter(torch.zeros(3))
    >>> [(group["lr"], group["weight_decay"]) for group in Gain().param_groups(lr=1e-3)]
    [(0.01, 0.0)]
    """

    learning_rate_factor: float = 10.0

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimiser groups of the trained parameters, for a model that learns at rate ``lr``."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            return []
        return [{"params": trained, "lr": lr * self.learning_rate_factor, "weight_decay": 0.0}]
