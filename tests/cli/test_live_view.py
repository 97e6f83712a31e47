"""The view of rates in a terminal: fits into 80 columns, shows what it is given, redraws in one write."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from deepSTRF.cli.live_view import BLOCKS, CELL_MS, PLAIN, RateView

LONG = [
    (0, "exp57_L4x8/P06-SH_En_C.Lsh3/cluster.05.data"),
    (17, "日本語のとても長い名前の神経細胞番号"),
    (3, "a\x1b[31mb"),
]


class Terminal(io.StringIO):
    """A terminal that remembers each write."""

    def __init__(self, encoding="utf-8"):
        super().__init__()
        self._encoding, self.writes = encoding, []

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return True

    def write(self, text):
        self.writes.append(text)
        return super().write(text)


def drawn(
    neurons, rates, width=80, height=24, encoding="utf-8", footer="5x real time | no overruns", dt_ms=5.0
):
    """Lines of the last picture, and the terminal."""
    terminal = Terminal(encoding)
    console = Console(file=terminal, force_terminal=True, width=width, height=height, color_system=None)
    with RateView(console, "runs/mel hears USB microphone", neurons, dt_ms, "spikes per bin") as view:
        for part in np.array_split(rates, 5, axis=1):
            view.add(part)
            view.show(part.shape[1], lambda: footer)
        before = len(terminal.writes)
        view._live.refresh()
        last = terminal.writes[before:]
    assert len([text for text in last if text]) == 1  # one write a picture: nothing half-drawn is seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", last[0])
    return text.split("\n"), terminal


def ramp(n_neurons, n_bins):
    return np.outer(np.arange(1, n_neurons + 1), np.linspace(0, 1, n_bins))


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_no_line_is_wider_than_the_terminal(width, encoding):
    lines, _ = drawn(LONG, ramp(3, 4000), width=width, encoding=encoding, footer="x" * 300)
    assert len(lines) == 7
    assert max(map(cell_len, lines)) <= width
    if encoding != "utf-8":
        used = set("".join(lines)) - set(LONG[1][1])
        assert all(letter.isascii() for letter in used)


def test_a_line_shows_the_rates_of_its_neuron():
    n_cells = 40
    per_cell = round(CELL_MS / 5.0)
    values = np.array([[0.0, 1.0, 2.0, 4.0, 8.0] * 8, [8.0] * n_cells, [-1.0] * 20 + [0.0] * 20])
    lines, _ = drawn([(4, "one"), (12, "two"), (0, "below zero")], np.repeat(values, per_cell, axis=1))
    assert lines[0].startswith("runs/mel hears USB microphone  1:20.0")
    first, second, third = lines[2:5]
    assert first.startswith(" 4 one")
    assert first.rstrip().endswith("8")
    wanted = "".join(BLOCKS[level] for level in (0, 1, 2, 4, 8)) * 8
    assert wanted in first
    assert BLOCKS[8] * n_cells in second
    assert BLOCKS[0] * 20 + BLOCKS[8] * 20 in third
    assert third.rstrip().endswith("0")
    assert "spikes per bin" in lines[5]
    assert lines[6].startswith("5x real time")


def test_it_scrolls():
    """Only the latest cells are shown, the newest at the right."""
    values = np.repeat(np.arange(300.0)[None], 10, axis=1)
    lines, _ = drawn([(0, "n")], values)
    bars = lines[2][4:-10]
    levels = [BLOCKS.index(letter) for letter in bars]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (round((299 - len(bars) + 1) / 299 * 8), 8)


def test_rates_before_the_first_cell_and_rates_that_are_no_numbers():
    lines, _ = drawn([(0, "n")], np.zeros((1, 3)))
    assert lines[2].startswith("0 n")
    lines, _ = drawn([(0, "n")], np.full((1, 100), np.nan))
    assert lines[2].rstrip().endswith("nan")
    assert PLAIN[0] == BLOCKS[0] == " "


def test_more_neurons_than_lines_are_counted():
    lines, _ = drawn([(k, f"cell {k}") for k in range(119)], ramp(119, 400), height=24)
    assert len(lines) <= 24
    assert "100 more neurons (--neurons chooses)" in lines[-2]


def test_pictures_are_few(monkeypatch):
    """A fast file does not flood the terminal: twelve pictures a second."""
    now = [0.0]
    monkeypatch.setattr("deepSTRF.cli.live_view.time.monotonic", lambda: now[0])
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=80, height=24, color_system=None)
    asked = []
    with RateView(console, "t", [(0, "n")], 5.0, "u") as view:
        before = len(terminal.writes)
        for _ in range(1000):
            now[0] += 0.001
            view.add(np.ones((1, 2)))
            view.show(now[0], lambda: asked.append(0) or "footer")
        pictures = len([text for text in terminal.writes[before:] if text])
    assert pictures == len(asked) == 12
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is back
