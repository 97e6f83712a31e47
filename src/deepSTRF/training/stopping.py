"""Early stopping: which epoch was best, and when to give up waiting for a better one."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Follow one score over the epochs: is it a new best, and has it stood still for too long?

    An epoch is a new best when it beats the best so far by more than ``min_delta``. After ``patience`` epochs
    in a row without a new best, `exhausted` is True; a score that never changes thus ends after ``patience +
    1`` epochs.

    Parameters
    ----------
    mode : str
        'max' when larger is better, 'min' when smaller is.
    patience : int
        Epochs without improvement to wait for, >= 1.
    min_delta : float
        Smallest change that counts as an improvement, in units of the score, >= 0.

    Raises
    ------
    ValueError
        When ``mode`` is neither, ``patience`` < 1 or ``min_delta`` is negative or not finite.

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
