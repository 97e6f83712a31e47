"""Results of tests and intervals as rows, text, CSV and JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepSTRF._files import csv_of, json_of

__all__ = ["ResultTable", "text_table"]


class ResultTable:
    """A result with one row per population value and per neuron.

    Attributes
    ----------
    facts : dict
        How the result was made: method, number of clips, seed, ``notes`` (sentences on what limits it).
    """

    facts: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """Return one dictionary per row, all with the same keys; a missing number is NaN."""
        raise NotImplementedError("a result defines table()")

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the table as CSV, and write it when a path is given; a missing number is an empty cell."""
        return csv_of(self.table(), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return facts and rows as JSON, and write it when a path is given; NaN is null."""
        return json_of({"facts": self.facts, "rows": self.table()}, path)

    def _notes(self) -> list[str]:
        return [f"note: {note}" for note in self.facts.get("notes", [])]


def text_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> list[str]:
    """Lines of a table with aligned columns; numbers to four digits, a missing one is "-"."""
    names = list(columns)
    cells = [names, *([_shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
