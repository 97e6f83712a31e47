"""Scores of a run: per seed, split and neuron, and what is said of them in one line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAIN_SCORE", "SPLITS", "RunScores", "ScoreRow"]

#: The score that ranks neurons and chooses among seeds.
MAIN_SCORE = "cc_norm"
SPLITS = ("test", "validation")
#: Columns that describe the neuron rather than the fit.
KEYS = ("seed", "split", "neuron")

Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ScoreRow:
    """One line of a score table: a metric on one split, over neurons.

    Attributes
    ----------
    split : str
        "test" or "validation".
    metric : str
        Column name.
    mean, sd, median : float
        Over the neurons that have a score (each its mean over seeds); NaN when none has.
    n, n_nan : int
        How many neurons have a score and how many have none.
    per_seed : tuple of float
        The mean over neurons for each seed.

    Examples
    --------
    >>> ScoreRow("test", "cc", 0.5, 0.1, 0.5, 119, 0, (0.5,)).n
    119
    """

    split: str
    metric: str
    mean: float
    sd: float
    median: float
    n: int
    n_nan: int
    per_seed: tuple[float, ...] = ()


class RunScores:
    """Scores of all neurons on each split, for each seed.

    Parameters
    ----------
    neurons : sequence of str
        Names of the N neurons.
    seeds : sequence of int
        Seeds, in order.
    values : mapping of split to (mapping of metric to array (n_seeds, N))
        The scores.

    Raises
    ------
    ValueError
        When an array has another shape.

    Examples
    --------
    >>> scores = RunScores(["a", "b"], [0], {"test": {"cc": np.array([[0.2, np.nan]])}})
    >>> row = scores.summary()[0]
    >>> row.mean, row.n, row.n_nan
    (0.2, 1, 1)
    """

    def __init__(
        self,
        neurons: Sequence[str],
        seeds: Sequence[int],
        values: Mapping[str, Mapping[str, NDArray[np.float64]]],
    ) -> None:
        self.neurons = list(neurons)
        self.seeds = list(seeds)
        shape = (len(self.seeds), len(self.neurons))
        self.values: dict[str, dict[str, NDArray[np.float64]]] = {}
        for split, columns in values.items():
            self.values[split] = {
                name: np.asarray(column, dtype=np.float64) for name, column in columns.items()
            }
            for name, column in self.values[split].items():
                if column.shape != shape:
                    raise ValueError(
                        f"{split} {name} must have shape {shape} (seeds, neurons), got {column.shape}"
                    )

    @classmethod
    def from_tables(
        cls, neurons: Sequence[str], seeds: Sequence[int], tables: Mapping[str, Sequence[Columns]]
    ) -> RunScores:
        """Join the columns of each seed's table, in the order of ``seeds``."""
        joined = {
            split: {
                name: np.stack([np.asarray(one[name], dtype=np.float64) for one in per_seed])
                for name in per_seed[0]
            }
            for split, per_seed in tables.items()
        }
        return cls(neurons, seeds, joined)

    def per_neuron(self, split: str = "test") -> dict[str, NDArray[np.float64]]:
        """Return each metric per neuron, the mean over the seeds that have a score; NaN where none has."""
        return {name: _nan_mean(column, axis=0) for name, column in self.values.get(split, {}).items()}

    def summary(self) -> list[ScoreRow]:
        """Return one row per split and metric."""
        return [
            _row(split, name, column)
            for split, columns in self.values.items()
            for name, column in columns.items()
        ]

    def best_seed(self) -> int:
        """Return the seed with the highest mean validation score: the test scores choose nothing."""
        column = self.values.get("validation", {}).get(MAIN_SCORE)
        if column is None:
            return self.seeds[0]
        means = _nan_mean(column, axis=1)
        return self.seeds[int(np.nanargmax(means))] if np.isfinite(means).any() else self.seeds[0]

    def to_csv(self) -> str:
        """Return one line per seed, split and neuron; a missing score is an empty cell."""
        names = list(dict.fromkeys(name for columns in self.values.values() for name in columns))
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*KEYS, *names])
        for seed, split, neuron in self._keys():
            cells = [
                self.values[split][name][seed, neuron] if name in self.values[split] else math.nan
                for name in names
            ]
            writer.writerow([self.seeds[seed], split, self.neurons[neuron], *map(_cell, cells)])
        return buffer.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> RunScores:
        """Read what `to_csv` wrote."""
        rows = list(csv.DictReader(io.StringIO(text)))
        if not rows or any(key not in rows[0] for key in KEYS):
            raise ValueError(
                f"a score file has the columns {', '.join(KEYS)} and one per metric; this one has not"
            )
        names = [name for name in rows[0] if name not in KEYS]
        neurons = list(dict.fromkeys(row["neuron"] for row in rows))
        seeds = list(dict.fromkeys(int(row["seed"]) for row in rows))
        splits = list(dict.fromkeys(row["split"] for row in rows))
        if len(rows) != len(neurons) * len(seeds) * len(splits):
            raise ValueError(
                f"{len(rows)} lines for {len(seeds)} seeds, {len(splits)} splits and {len(neurons)} neurons; "
                "a score file has one line for each"
            )
        where = {name: index for index, name in enumerate(neurons)}
        values = {s: {name: np.full((len(seeds), len(neurons)), np.nan) for name in names} for s in splits}
        for row in rows:
            for name in names:
                if row[name]:
                    at = seeds.index(int(row["seed"])), where[row["neuron"]]
                    values[row["split"]][name][at] = float(row[name])
        return cls(neurons, seeds, values)

    def _keys(self) -> Iterator[tuple[int, str, int]]:
        for seed in range(len(self.seeds)):
            for split in self.values:
                for neuron in range(len(self.neurons)):
                    yield seed, split, neuron


def _row(split: str, name: str, column: NDArray[np.float64]) -> ScoreRow:
    per_neuron = _nan_mean(column, axis=0)
    valid = per_neuron[np.isfinite(per_neuron)]
    n = int(valid.size)
    return ScoreRow(
        split,
        name,
        float(valid.mean()) if n else math.nan,
        float(valid.std(ddof=1)) if n > 1 else math.nan,
        float(np.median(valid)) if n else math.nan,
        n,
        int(per_neuron.size - n),
        tuple(float(value) for value in _nan_mean(column, axis=1)),
    )


def _nan_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean of the finite values; NaN, without a warning, where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    mean: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"
