"""Errors a fit can end with: numbers that stopped being numbers, files of another fit, or broken ones."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["DamagedFileError", "FitDivergedError", "StateMismatchError"]


class DamagedFileError(ValueError):
    """A file that a run or a fit wrote cannot be read any more: no argument is wrong, the file is."""


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
    """

    def __init__(
        self, message: str, *, epoch: int, batch: int | None = None, clips: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.batch = batch
        self.clips = clips

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild with the keywords: fits that run in other processes send their errors pickled."""
        rebuild = functools.partial(type(self), epoch=self.epoch, batch=self.batch, clips=self.clips)
        return rebuild, self.args, self.__dict__


class StateMismatchError(ValueError):
    """The file given as ``state_path`` was written by a different fit and cannot be resumed by this one."""
