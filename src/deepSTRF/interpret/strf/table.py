"""Peaks, widths and crossings of sampled curves, between the samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Extent", "NeuronTable", "extent_above", "named", "refined_peak"]

# ------------------------------------------------------------------------------
# A small table: one row per neuron, one column per number, written as CSV.


@dataclass(frozen=True)
class NeuronTable:
    """One row per neuron.

    Attributes
    ----------
    neurons : tuple of int or str
        Which neuron each row is.
    columns : mapping of str to array (N,)
        Numbers or flags by name; units are part of the names. NaN is what a neuron does not have.

    Raises
    ------
    ValueError
        When a column has another length.

    Examples
    --------
    >>> table = NeuronTable((3, 5), {"latency_ms": np.array([10.0, np.nan])})
    >>> print(table.to_csv())
    neuron,latency_ms
    3,10
    5,
    <BLANKLINE>
    """

    neurons: tuple[Any, ...]
    columns: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if np.shape(column) != (len(self.neurons),):
                raise ValueError(f"column {name!r} must be ({len(self.neurons)},), got {np.shape(column)}")

    def __len__(self) -> int:
        return len(self.neurons)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; this table has {', '.join(self.columns)}")
        return self.columns[name]

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per neuron, of Python numbers, the neuron first."""
        values = {name: np.asarray(column).tolist() for name, column in self.columns.items()}
        return [
            {"neuron": neuron, **{name: column[row] for name, column in values.items()}}
            for row, neuron in enumerate(self.neurons)
        ]

    def joined(self, *others: NeuronTable) -> NeuronTable:
        """Return a table with the columns of others on the same neurons beside these.

        Raises
        ------
        ValueError, TypeError
            For other neurons, a column that is there already, or something else than a table.
        """
        columns = dict(self.columns)
        for other in others:
            if not isinstance(other, NeuronTable):
                raise TypeError(f"a NeuronTable is joined with others, got {type(other).__name__}")
            if other.neurons != self.neurons:
                raise ValueError(
                    "tables of different neurons cannot be joined; select the same neurons first"
                )
            twice = sorted(set(columns) & set(other.columns))
            if twice:
                raise ValueError(f"both tables have the column(s) {', '.join(twice)}")
            columns |= dict(other.columns)
        return NeuronTable(self.neurons, columns)

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the table as CSV (six significant digits, empty where NaN), and write it when given a path.

        Parameters
        ----------
        path : str or Path, optional
            File; its folder must exist.

        Returns
        -------
        str
            The text.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["neuron", *self.columns])
        for row in self.rows():
            writer.writerow([_cell(value) for value in row.values()])
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()


def named(neurons: Sequence[Any] | None, n_neurons: int) -> tuple[Any, ...]:
    """Return names of the rows: those given, else numbers from 0.

    Examples
    --------
    >>> named(None, 2), named(["a"], 1)
    ((0, 1), ('a',))
    """
    if neurons is None:
        return tuple(range(n_neurons))
    if isinstance(neurons, str) or not hasattr(neurons, "__len__"):
        raise TypeError(f"neurons must be a sequence of {n_neurons} names, got {neurons!r}")
    if len(neurons) != n_neurons:
        raise ValueError(f"neurons names {len(neurons)} neurons, there are {n_neurons}")
    return tuple(neurons)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


# ------------------------------------------------------------------------------

FloatArray = NDArray[np.float64]


class Extent(NamedTuple):
    """Where a curve stays above a level around its peak.

    Attributes
    ----------
    low, high : float
        Places of the crossings, in units of the axis; the end of the axis where there is none.
    closed : bool
        Whether the curve falls below the level on both sides, so that the width is known.

    Examples
    --------
    >>> Extent(1.0, 3.0, True).width
    2.0
    """

    low: float
    high: float
    closed: bool

    @property
    def width(self) -> float:
        """Distance between the crossings."""
        return self.high - self.low


def refined_peak(axis: FloatArray, curve: FloatArray, index: int) -> float:
    """Return the place of a maximum between samples, by the parabola through three of them.

    Shapes: axis (P,); curve (P,).

    Examples
    --------
    >>> round(refined_peak(np.arange(5.0), 1 - (np.arange(5.0) - 2.3) ** 2, 2), 6)
    2.3
    """
    if not 0 < index < len(curve) - 1:
        return float(axis[index])
    before, here, after = (float(value) for value in curve[index - 1 : index + 2])
    bend = before - 2.0 * here + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return float(axis[index] + np.clip(shift, -0.5, 0.5) * (axis[index + 1] - axis[index]))


def extent_above(axis: FloatArray, curve: FloatArray, index: int, level: float) -> Extent:
    """Return where a curve crosses a level on either side of a sample, by straight lines between samples.

    Shapes: axis (P,); curve (P,).

    Examples
    --------
    >>> extent_above(np.arange(4.0), np.array([0.0, 1.0, 0.5, 0.5]), 1, 0.5)
    Extent(low=0.5, high=3.0, closed=False)
    """
    ends, closed = [], True
    for step in (-1, 1):
        here = index
        while 0 <= here + step < len(curve) and curve[here + step] >= level:
            here += step
        beyond = here + step
        if not 0 <= beyond < len(curve):
            ends.append(float(axis[here]))
            closed = False
            continue
        fall = curve[here] - curve[beyond]
        share = (curve[here] - level) / fall if np.isfinite(fall) and fall > 0 else 0.0
        ends.append(float(axis[here] + share * (axis[beyond] - axis[here])))
    return Extent(ends[0], ends[1], closed)
