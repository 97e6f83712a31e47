"""Progress of long work: a bar per step on a terminal, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from deepSTRF.training.progress import is_wanted

__all__ = ["Begin", "open_bars", "silent"]

#: Begins a step: takes its title and how many pieces it has, returns a function that counts pieces done.
Begin: TypeAlias = Callable[[str, int], Callable[[int], None]]


def silent(title: str, total: int) -> Callable[[int], None]:
    """Begin a step that nobody watches.

    Parameters
    ----------
    title : str
        What is done.
    total : int
        Pieces.

    Returns
    -------
    callable
        Takes the number of pieces done, and does nothing.

    Examples
    --------
    >>> silent("probes", 4)(1)
    """

    def nothing(done: int) -> None:
        """Count nothing."""

    return nothing


@contextmanager
def open_bars(progress: bool | Literal["auto"] = "auto") -> Iterator[Begin]:
    """Open a display with one bar per step, on stderr.

    Parameters
    ----------
    progress : bool or 'auto'
        Whether to draw; 'auto' draws when stderr is a terminal.

    Yields
    ------
    callable
        Begins a step, see `Begin`; the step before it is complete then.

    Raises
    ------
    ValueError
        When ``progress`` is none of the three.

    Examples
    --------
    >>> with open_bars(False) as begin:
    ...     count = begin("dynamic STRF", 100)
    ...     count(40)
    """
    if not is_wanted(progress):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        running: list[tuple[TaskID, int]] = []

        def finish() -> None:
            for task, total in running:
                bars.update(task, completed=total)
            running.clear()

        def begin(title: str, total: int) -> Callable[[int], None]:
            finish()
            task = bars.add_task(title, total=total)
            running.append((task, total))
            return lambda done: bars.advance(task, done)

        yield begin
        finish()
