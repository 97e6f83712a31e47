"""What a running fit shows: a bar on a terminal, a call per epoch for a user's function, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from deepSTRF.training.history import mean_score

__all__ = ["FitDisplay", "epoch_line", "is_wanted", "open_display"]


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

    Parameters
    ----------
    record : dict
        One entry of a fit's history.
    monitor : str
        Key of the monitored score.

    Returns
    -------
    str
        For example ``epoch 3  train_loss 0.021  val_loss 0.025  val_cc_norm 0.512 (2 of 119 NaN)``.

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

    Parameters
    ----------
    progress : bool or 'auto'
        True draws the bar, False does not; 'auto' draws it when no ``log_fn`` is given and stderr is a
        terminal.
    log_fn : callable or None
        Called with the record of each epoch.
    max_epochs : int
        Length of the bar.
    monitor : str
        Score shown beside the bar.

    Returns
    -------
    FitDisplay
        A context manager with a method ``show``.

    Raises
    ------
    ValueError
        When ``progress`` is none of the three.

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

    Parameters
    ----------
    progress : bool or 'auto'
        The choice.

    Returns
    -------
    bool
        The answer.

    Raises
    ------
    ValueError
        When it is none of the three.

    Examples
    --------
    >>> is_wanted(False)
    False
    """
    if progress not in (True, False, "auto"):
        raise ValueError(f"progress must be True, False or 'auto', got {progress!r}")
    return sys.stderr.isatty() if progress == "auto" else bool(progress)
