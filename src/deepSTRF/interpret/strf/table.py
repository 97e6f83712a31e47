"""A table of numbers per neuron: one row per neuron, one column per number, NaN where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import write_atomically
from deepSTRF._text import csv_table
from deepSTRF._validation import FloatArray, checked


@checked
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

    @checked
    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the table as CSV (six significant digits, empty where NaN), and write it when given a path.

        Parameters
        ----------
        path : str or Path, optional
            File.

        Returns
        -------
        str
            The text.
        """
        cells = [[_cell(value) for value in row.values()] for row in self.rows()]
        text = csv_table([["neuron", *self.columns], *cells])
        if path is not None:
            write_atomically(path, text.encode())
        return text


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def row_names(neurons: Sequence[Any] | None, n_neurons: int) -> tuple[Any, ...]:
    """Return names of the rows: those given, else numbers from 0."""
    if neurons is None:
        return tuple(range(n_neurons))
    if isinstance(neurons, str) or not hasattr(neurons, "__len__"):
        raise TypeError(f"neurons must be a sequence of {n_neurons} names, got {neurons!r}")
    if len(neurons) != n_neurons:
        raise ValueError(f"neurons names {len(neurons)} neurons, there are {n_neurons}")
    return tuple(neurons)


def ratio(part: FloatArray, whole: FloatArray, least: FloatArray | float = 0.0) -> FloatArray:
    """Return ``part / whole`` where the whole is above a least value (of 0 or more), else NaN."""
    return np.where(whole > least, part / np.where(whole > least, whole, 1.0), np.nan)


def contrast(first: FloatArray, second: FloatArray, least: FloatArray | float = 0.0) -> FloatArray:
    """Return ``(first - second) / (first + second)`` where the sum is above a least value, else NaN."""
    return ratio(first - second, first + second, least)
