"""Live progress of a sweep: how many fits are done, and a table of scores that fills."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal

from deepSTRF._text import printable
from deepSTRF.experiments.sweep import PlannedFit
from deepSTRF.experiments.sweep_results import (
    CHOICE_NOTE,
    COLUMNS,
    DONE,
    FAILED,
    FitResult,
    group_of,
    group_row,
    shown,
)
from deepSTRF.training.callbacks import shows_progress

__all__ = ["SweepProgress", "results_table"]

#: Rows of the live table: the configurations that changed last.
MOST_ROWS = 20
REFRESHES_PER_SECOND = 4
#: Characters of an error in a line.
LONGEST_ERROR = 200

Group = tuple[tuple[str, str], ...]


class SweepProgress:
    """On a terminal a table that fills, elsewhere one line per fit; all on stderr."""

    def __init__(self, fits: Sequence[PlannedFit], progress: bool | Literal["auto"]) -> None:
        self._total, self._running = len(fits), 0
        self._groups: dict[Group, list[FitResult]] = {}
        self._counts = {DONE: 0, FAILED: 0}
        self._started, self._made = time.monotonic(), 0
        self._console: Any = None
        self._live: Any = None
        self._lock = Lock()
        if shows_progress(progress):
            self._console = _console()

    def begin(self, n: int) -> None:
        """Fits begin."""
        with self._lock:
            self._running += n
        self._show()

    def defer(self, n: int) -> None:
        """Fits that had begun are left to another process, or begin anew later."""
        with self._lock:
            self._running -= n

    def add(self, result: FitResult, *, was_running: bool = False) -> None:
        """A fit has ended, or was there before."""
        with self._lock:
            group = group_of(result)
            self._groups[group] = [*self._groups.pop(group, []), result]  # the last in the table
            self._counts[result.status] = self._counts.get(result.status, 0) + 1
            self._running -= was_running
            self._made += was_running
        if was_running and self._console is not None and not self._console.is_terminal:
            self._console.print(printable(self._line(result)), soft_wrap=True)

    def close(self) -> None:
        """Leave the last state of the table on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        if self._console is None or not self._console.is_terminal or self._live is not None:
            return
        from rich.live import Live

        self._live = Live(
            console=self._console, get_renderable=self._table, refresh_per_second=REFRESHES_PER_SECOND
        )
        self._live.start()

    def _line(self, result: FitResult) -> str:
        done = self._counts[DONE] + self._counts[FAILED]
        if result.status == FAILED:
            return f"{done}/{self._total}  {result.name}: failed, {result.error[:LONGEST_ERROR]}"
        scores = f"validation {shown(result.validation)}, test {shown(result.test)}"
        return f"{done}/{self._total}  {result.name}: {scores} ({result.seconds:.1f} s)"

    def _table(self) -> Any:
        with self._lock:
            groups = list(self._groups.items())[-MOST_ROWS:]
            counts, running, made = dict(self._counts), self._running, self._made
        seconds = time.monotonic() - self._started
        ended = counts[DONE] + counts[FAILED]
        left = (self._total - ended) * seconds / made if made else math.nan
        title = f"{counts[DONE]} of {self._total} fits done, {counts[FAILED]} failed, {running} running"
        title += f", {seconds / 60:.1f} min" + (f", {left / 60:.1f} min left" if made else "")
        axes = [axis for axis, _ in groups[0][0]] if groups else []
        rows = [group_row(dict(group), results) for group, results in groups]
        notes = {"caption": CHOICE_NOTE, "title_justify": "left", "caption_justify": "left"}
        return results_table(rows, axes, title=title, **notes)


def results_table(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], **options: Any) -> Any:
    """Rows of `SweepResults.summary` for a terminal; a narrow one folds words, but no number."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, collapse_padding=True, **options)
    short = [axis.rpartition(".")[2] for axis in axes]
    for axis, name in zip(axes, short, strict=True):
        table.add_column(Text(printable(name if short.count(name) == 1 else axis)), overflow="fold")
    for name in COLUMNS:
        cells = [len(shown(row[name])) for row in rows]
        table.add_column(Text(name), justify="right", overflow="fold", min_width=max(cells, default=0))
    for row in rows:
        table.add_row(*(Text(printable(shown(row[name]))) for name in (*axes, *COLUMNS)))
    return table


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)
