"""Rates of neurons in a terminal: one scrolling line per neuron, redrawn in place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from deepSTRF._text import printable

__all__ = ["RateView"]

#: One cell of a line is the mean of so many ms.
CELL_MS = 50.0
#: Pictures per second, and the cells that are kept: no terminal is wider.
FRAMES_PER_S, MOST_CELLS = 12.0, 500
#: Heights of a cell, for terminals that have them and for others.
BLOCKS, PLAIN = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", " .:-=+*#%@"
#: Widths of names and numbers, and the lines around those of the neurons.
WIDEST_NAME, VALUE, FRAME = 24, 9, 5


class RateView:
    """Scrolling lines of rates; `show` redraws at most twelve times a second.

    A line goes from the smallest rate so far, or 0 if that is smaller, to the largest so far of its neuron.
    """

    def __init__(
        self, console: Console, title: str, neurons: Sequence[tuple[int, str]], dt_ms: float, unit: str
    ) -> None:
        self._console, self._title, self._unit = console, title, unit
        self._neurons = list(neurons)
        self._per_cell = max(1, round(CELL_MS / dt_ms))
        self._dt_ms = dt_ms
        self._cells: deque[npt.NDArray[Any]] = deque(maxlen=MOST_CELLS)
        self._open: list[npt.NDArray[Any]] = []
        self._n_open = 0
        self._low, self._high = np.zeros(len(self._neurons)), np.zeros(len(self._neurons))
        self._seconds, self._footer, self._shown_at = 0.0, "", -1.0
        unicode = console.encoding.lower().startswith("utf")
        self._steps, self._dots = (BLOCKS, "\u2026") if unicode else (PLAIN, "~")
        self._live = Live(self, console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.refresh()
        self._live.stop()

    def add(self, rates: npt.NDArray[Any]) -> None:
        """Take the next bins (N, n) of the neurons."""
        while rates.shape[1]:
            part, rates = np.split(rates, [self._per_cell - self._n_open], axis=1)
            self._open.append(part)
            self._n_open += part.shape[1]
            if self._n_open == self._per_cell:
                cell = np.concatenate(self._open, axis=1).mean(axis=1)
                self._low, self._high = np.fmin(self._low, cell), np.fmax(self._high, cell)
                self._cells.append(cell)
                self._open, self._n_open = [], 0

    def show(self, seconds: float, footer: Callable[[], str]) -> None:
        """Redraw, unless that has just been done; the footer is asked for only then."""
        self._seconds = seconds
        now = time.monotonic()
        if now - self._shown_at >= 1 / FRAMES_PER_S:
            self._shown_at, self._footer = now, footer()
            self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        room = max(1, console.height - FRAME)
        shown = self._neurons[:room]
        hidden = len(self._neurons) - len(shown)
        digits = len(str(max((number for number, _ in shown), default=0)))
        names = [f"{number:>{digits}d} {printable(name)}" for number, name in shown]
        widest = min(max(map(cell_len, names), default=1), WIDEST_NAME, max(6, width // 3))
        n_cells = max(1, width - widest - VALUE - 2)
        yield _line([(self._title, "bold"), (f"  {_clock(self._seconds)}", "")], width, self._dots)
        yield Text()
        cells = np.array(list(self._cells)[-n_cells:]).reshape(-1, len(self._neurons)).T
        for row, name in enumerate(names):
            bars = self._bars(row, cells[row]).rjust(n_cells)
            value = f"{cells[row, -1]:.3g}" if cells.shape[1] else ""
            yield Text.assemble(
                set_cell_size(_short(name, widest, self._dots), widest), " ", (bars, "cyan"), " ",
                (value.rjust(VALUE), "bold"), no_wrap=True, overflow="crop",
            )  # fmt: skip
        span = f"the last {n_cells * self._per_cell * self._dt_ms / 1000:.1f} s; {self._unit}"
        if hidden:
            span += f"; {hidden} more neurons (--neurons chooses)"
        yield _line([(span, "dim")], width, self._dots)
        yield _line([(self._footer, "")], width, self._dots)

    def _bars(self, row: int, cells: npt.NDArray[Any]) -> str:
        low, high = self._low[row], self._high[row]
        if not high > low:
            return self._steps[0] * len(cells)
        top = len(self._steps) - 1
        levels = np.nan_to_num((cells - low) / (high - low)) * top
        return "".join(self._steps[min(top, round(float(level)))] for level in levels)


def _line(parts: list[tuple[str, str]], width: int, dots: str) -> Text:
    """One line that is never broken."""
    rest, shown = width, []
    for text, style in reversed(parts):  # what stands last is kept whole
        text = _short(printable(text), max(1, rest), dots)
        shown.append((text, style))
        rest -= cell_len(text)
    return Text.assemble(*reversed(shown), no_wrap=True, overflow="crop")


def _short(text: str, width: int, dots: str) -> str:
    """A text of up to so many cells, without its middle where it is longer."""
    if cell_len(text) <= width:
        return text
    head = set_cell_size(text, (width - 1) // 2)
    tail = text
    while cell_len(tail) > width - 1 - cell_len(head):
        tail = tail[1:]
    return head + dots + tail


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
