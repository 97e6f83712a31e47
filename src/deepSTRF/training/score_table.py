"""Scores of a model, one row per neuron, and means that say what they rest on."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF.training.files import write_atomically
from deepSTRF.training.history import MeanScore, json_safe

__all__ = ["ScoreTable", "neuron_names"]

Column = npt.NDArray[np.float64]

#: What each column is, for headings and reports.
LABELS = {
    "cc": "correlation with the PSTH",
    "cc_norm": "noise-corrected correlation",
    "cc_norm_published": "noise-corrected correlation, published form",
    "fve": "fraction of the PSTH's variance explained",
    "mse": "mean squared error",
    "snr": "signal-to-noise ratio of the responses",
    "ccmax": "noise ceiling of cc",
    "ccmax_low": "noise ceiling of cc, lower bound (95 %)",
    "ccmax_high": "noise ceiling of cc, upper bound (95 %)",
}


@dataclass(frozen=True)
class ScoreTable:
    """Scores per neuron; a neuron without a score has NaN there, and the table says why.

    Attributes
    ----------
    neurons : tuple of str
        Names of the N neurons, all different.
    columns : mapping of str to array (N,)
        The scores by name.
    reasons : tuple of str
        Per neuron why a value is missing; empty where none is.
    facts : dict
        How the table was made (centring, clips, onset left out, smoothing, bin).

    Raises
    ------
    ValueError
        When a column has another length.

    Examples
    --------
    >>> table = ScoreTable(("a", "b"), {"cc": np.array([0.5, np.nan])}, ("", "silent"))
    >>> table.mean("cc")
    MeanScore(mean=0.5, n=1, n_nan=1)
    >>> print(table.to_csv())
    neuron,cc,reason
    a,0.5,
    b,,silent
    <BLANKLINE>
    """

    neurons: tuple[str, ...]
    columns: Mapping[str, Column]
    reasons: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if column.shape != (len(self.neurons),):
                raise ValueError(f"column {name!r} must be ({len(self.neurons)},), got {column.shape}")
        if self.reasons and len(self.reasons) != len(self.neurons):
            raise ValueError(f"reasons must name {len(self.neurons)} neurons, got {len(self.reasons)}")

    def __len__(self) -> int:
        return len(self.neurons)

    def __getitem__(self, name: str) -> Column:
        if name not in self.columns:
            raise KeyError(f"no score {name!r}; this table has {', '.join(self.columns)}")
        return self.columns[name]

    def mean(self, name: str) -> MeanScore:
        """Return mean, number of neurons in it and number of NaN neurons left out."""
        values = self[name]
        numbers = values[~np.isnan(values)]
        mean = float(numbers.mean()) if numbers.size else math.nan
        return MeanScore(mean, int(numbers.size), int(values.size - numbers.size))

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return one row per score: name, label, mean, median, lower and upper decile, n, n_nan."""
        rows = []
        for name, values in self.columns.items():
            numbers = values[~np.isnan(values)]
            deciles = np.quantile(numbers, [0.1, 0.5, 0.9]).tolist() if numbers.size else [math.nan] * 3
            mean, n, n_nan = self.mean(name)
            rows.append(
                {
                    "score": name,
                    "label": LABELS.get(name, name),
                    "mean": mean,
                    "median": deciles[1],
                    "p10": deciles[0],
                    "p90": deciles[2],
                    "n": n,
                    "n_nan": n_nan,
                }
            )
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per neuron."""
        reasons = self.reasons or ("",) * len(self)
        return [
            {
                "neuron": neuron,
                **{name: float(column[index]) for name, column in self.columns.items()},
                "reason": reasons[index],
            }
            for index, neuron in enumerate(self.neurons)
        ]

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the table as CSV, and write it when a path is given; a missing score is an empty cell."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["neuron", *self.columns, "reason"])
        for row in self.rows():
            writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row.values()])
        return _written(buffer.getvalue(), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return facts, summary and rows as JSON, and write it when a path is given; NaN is null."""
        content = {"facts": self.facts, "summary": self.summary_rows(), "neurons": self.rows()}
        return _written(json.dumps(json_safe(content), indent=1, allow_nan=False), path)

    def __str__(self) -> str:
        lines = [f"{'score':<20}{'mean':>9}{'median':>9}{'p10':>9}{'p90':>9}{'n':>6}{'NaN':>5}"]
        for row in self.summary_rows():
            numbers = "".join(f"{row[key]:>9.4g}" for key in ("mean", "median", "p10", "p90"))
            lines.append(f"{row['score']:<20}{numbers}{row['n']:>6}{row['n_nan']:>5}")
        return "\n".join(lines)


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        write_atomically(Path(path), text.encode("utf-8"))
    return text


def neuron_names(metadata: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return one name per neuron, all different: the recording's own where it has them, else the index.

    Parameters
    ----------
    metadata : sequence of mappings
        ``dataset.nrn_meta``.

    Returns
    -------
    tuple of str
        N names.

    Examples
    --------
    >>> neuron_names([{"cell_id": "a"}, {"cell_id": "a"}, {}])
    ('a', 'a (1)', '2')
    """
    names: dict[str, None] = {}
    for index, meta in enumerate(metadata):
        name = str(meta.get("cell_id", meta.get("name", index)))
        while name in names:  # a recording may itself name a neuron "a (2)"
            name = f"{name} ({index})"
        names[name] = None
    return tuple(names)
