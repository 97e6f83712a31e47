"""The result of a cross-validation: predictions of unseen clips, scores, and what each fold chose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from deepSTRF._files import csv_of, json_of
from deepSTRF._validation import checked
from deepSTRF.crossval.predict import FoldFits
from deepSTRF.datasets import ClipSplit
from deepSTRF.metrics.scores import metric_named
from deepSTRF.training.evaluation import Column, ScoreTable

__all__ = ["CrossValidation", "InnerScores"]

#: Name of the rows that pool all folds.
ALL = "all"
#: So many folds are printed before the rest is only counted.
MOST_SHOWN = 30


@dataclass(frozen=True)
class InnerScores:
    """Scores of one candidate on the validation clips inside one fold, pooled over its inner folds."""

    fold: int
    candidate: str
    options: Mapping[str, Any]
    scores: Column  # (N,)
    mean: float  # by which the candidates are compared
    chosen: bool
    epochs: int | None = None


@checked
@dataclass(frozen=True)
class CrossValidation:
    """Predictions, scores and choices of a cross-validation; made by `cross_validate`.

    Attributes
    ----------
    folds : tuple of ClipSplit
        Clips (of blocked folds: blocks) that trained, validated and tested.
    predictions : list of Tensor, shape (N, T)
        One per clip of the dataset, each by the fit that never saw it, averaged over seeds; NaN where no fold
        tested, or its fit failed.
    scores : ScoreTable
        Scores per neuron over all predicted clips together, as of `score_folds`.
    fold_scores : list of ScoreTable or None
        Scores on the test clips of each fold alone; None where the fit failed.
    chosen : list of dict
        Options that each fold chose, and ``epochs`` where the validation clips inside it chose them.
    candidates : list of InnerScores
        Scores inside each fold of everything that it chose from; empty where there was nothing to choose.
    models : list of list
        The fitted models of each fold, one per seed.
    failed : dict of int to str
        Folds that failed, with their traceback.
    facts : dict
        How it was made.
    fits : FoldFits or None
        The folder, where there is one.

    Examples
    --------
    >>> from deepSTRF.crossval import cross_validate
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=3, clip_seconds=0.5)
    >>> cv = cross_validate("ridge", ds, folds=2, choices={"lambdas": [10.0, 1000.0]}, inner=2)
    >>> len(cv.table()), sorted(cv.chosen[0]), len(cv.candidates)
    (6, ['lambdas'], 4)
    """

    folds: tuple[ClipSplit, ...]
    predictions: list[Tensor]
    scores: ScoreTable
    fold_scores: list[ScoreTable | None]
    chosen: list[dict[str, Any]]
    candidates: list[InnerScores]
    models: list[list[Any]]
    failed: dict[int, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    fits: FoldFits | None = None

    def __len__(self) -> int:
        return len(self.folds)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per neuron over all folds (fold ``"all"``), then one per fold and neuron.

        Returns
        -------
        list of dict
            ``fold``, ``n_test`` (test clips or blocks), ``neuron``, the scores, ``reason`` of a missing one;
            of a fold what it chose for the neuron, as ``chosen_<option>``. ``pandas.DataFrame(cv.table())``
            takes it.
        """
        names = list(dict.fromkeys(key for one in self.chosen for key in one))
        tables: list[tuple[str, int, ScoreTable, dict[str, Any]]] = [
            (ALL, sum(len(split.test) for split in self.folds), self.scores, {})
        ]
        for number, table in enumerate(self.fold_scores):
            if table is not None:
                split = self.folds[number]
                tables.append((str(number), len(split.test), table, self.chosen[number]))
        return [
            {
                "fold": fold,
                "n_test": n_test,
                **row,
                **{f"chosen_{name}": _plain(own.get(name), neuron) for name in names},
            }
            for fold, n_test, table, own in tables
            for neuron, row in enumerate(table.rows())
        ]

    @checked
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return `table` as CSV, and write it when a path is given; a missing value is an empty cell."""
        return csv_of(self.table(), path)

    @checked
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return all but predictions and models as JSON, and write it when a path is given; NaN is null."""
        folds = [
            {
                "fold": number,
                "name": split.name,
                "hash": split.hash,
                "train": list(split.train),
                "val": list(split.val),
                "test": list(split.test),
                "chosen": {key: _plain(value) for key, value in self.chosen[number].items()},
                "failed": self.failed.get(number),
                "summary": [] if (table := self.fold_scores[number]) is None else table.summary_rows(),
            }
            for number, split in enumerate(self.folds)
        ]
        candidates = [
            {**vars(one), "options": {key: _plain(value) for key, value in one.options.items()},
             "scores": one.scores.tolist()}
            for one in self.candidates
        ]  # fmt: skip
        content = {
            "facts": self.facts,
            "summary": self.scores.summary_rows(),
            "neurons": self.scores.rows(),
            "folds": folds,
            "candidates": candidates,
        }
        return json_of(content, path)

    @checked
    def arrays(self, score: str | None = None) -> dict[str, Any]:
        """Return what `deepSTRF.plots.plot_cross_validation` draws, as its arguments.

        Parameters
        ----------
        score : str, optional
            A column of the scores; None is the one by which candidates were compared.

        Returns
        -------
        dict
            ``scores`` (N,), ``fold_scores`` (n_folds, N), and where there was a choice ``candidates``
            (n_folds, n_candidates) of mean scores inside the folds, ``names`` and ``chosen`` (n_folds,).

        Raises
        ------
        KeyError
            For a score that the tables do not have.
        """
        name = self.facts["score"] if score is None else score
        missing = np.full(len(self.scores), np.nan)
        found: dict[str, Any] = {
            "scores": self.scores[name],
            "fold_scores": np.stack([missing if one is None else one[name] for one in self.fold_scores]),
            "label": metric_named(name).label,
        }
        names = list(dict.fromkeys(one.candidate for one in self.candidates))
        if len(names) > 1:
            grid = np.full((len(self.folds), len(names)), np.nan)
            chosen = np.full(len(self.folds), -1)
            for one in self.candidates:
                grid[one.fold, names.index(one.candidate)] = one.mean
                if one.chosen:
                    chosen[one.fold] = names.index(one.candidate)
            found |= {"candidates": grid, "names": names, "chosen": chosen}
        return found

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"Cross-validation of {facts['estimator']}: {len(self.folds)} folds ({facts['folds']}), "
            f"{len(self.scores)} neurons, "
            f"{facts['n_predicted']} of {facts['n_parts']} {facts['parts']} predicted",
            str(self.scores),
            "",
            f"{'fold':>4} {'test':>5} {facts['score']:>9}  chosen",
        ]
        for number in range(min(len(self.folds), MOST_SHOWN)):
            table = self.fold_scores[number]
            mean = "failed" if table is None else f"{table.mean(facts['score']).mean:.4g}"
            own = ", ".join(f"{key}={_shown(value)}" for key, value in self.chosen[number].items())
            lines.append(f"{number:>4} {len(self.folds[number].test):>5} {mean:>9}  {own}".rstrip())
        if len(self.folds) > MOST_SHOWN:
            lines.append(f"and {len(self.folds) - MOST_SHOWN} more folds")
        for number, text in self.failed.items():
            lines.append(f"fold {number} failed: {text.strip().splitlines()[-1]}")
        notes = (*facts.get("notes", ()), *self.scores.facts.get("notes", ()))
        lines += [f"Note: {note}" for note in notes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def _plain(value: Any, neuron: int | None = None) -> Any:
    """A choice as plain data; of one value per neuron that of a neuron."""
    if hasattr(value, "tolist"):
        value = value.tolist()
        return value[neuron] if neuron is not None and isinstance(value, list) else value
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else repr(value)


def _shown(value: Any) -> str:
    """A choice in one line; of one value per neuron median and range."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1 and len(value) > 1:
        low, middle, high = np.quantile(np.asarray(value, dtype=float), [0.0, 0.5, 1.0])
        return f"{middle:.3g} ({low:.3g} to {high:.3g})" if low < high else f"{low:.3g}"
    return f"{value:g}" if isinstance(value, float) else str(_plain(value))
