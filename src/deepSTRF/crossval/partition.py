"""What each feature explains: unique and shared variance of named features, from nested models."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from deepSTRF._validation import FloatArray, check_choice, check_positive_int, checked
from deepSTRF.crossval.clip_scores import FEVE, ClipScores, PredictedPart, Statistic
from deepSTRF.crossval.intervals import (
    CONFIDENCE,
    METHODS,
    N_BOOTSTRAP,
    Interval,
    check_confidence,
    interval_of,
    interval_rows,
    population_interval,
)
from deepSTRF.crossval.tables import ResultTable, text_table
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.evaluation import neuron_names

__all__ = ["VariancePartition", "partition_variance"]

#: Two sets have 3 parts and three have 7; the 15 of four need 15 fits and more clips than there are.
MOST_SETS = 3
TOTAL = "total"

Names = tuple[str, ...]


@checked
@dataclass(frozen=True)
class VariancePartition(ResultTable):
    """Explained variance, split into the unique and shared parts of named features.

    Attributes
    ----------
    parts : tuple of tuple of str
        The sets of features: ``("time",)`` is what only it explains, ``("time", "freq")`` what either of the
        two explains. The last, all features together, is followed by the total in `table`.
    neurons : tuple of str
        Names of the N neurons.
    values : dict of str to Interval
        Per part (``"time"``, ``"time & freq"``, ``"total"``) the share per neuron, (N,).
    population : dict of str to Interval
        Mean and median over neurons, (2,).
    facts : dict
        Unit of the shares, method, clips, notes.

    Examples
    --------
    >>> VariancePartition((), ("a",), {}, {}, {}).table()
    []
    """

    parts: tuple[Names, ...]
    neurons: tuple[str, ...]
    values: dict[str, Interval]
    population: dict[str, Interval]
    facts: dict[str, Any] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per part for mean and median, then one per part and neuron."""
        return interval_rows(self.population, self.neurons, self.values, "part", "share")

    def __str__(self) -> str:
        rows = [row for row in self.table() if row["level"] == "population"]
        facts = self.facts
        head = f"share of the {facts['unit']}, {facts['n_neurons']} neurons, {facts['n_clips']} clips"
        return "\n".join(
            [head, *text_table(rows, ("part", "name", "share", "low", "high", "reason")), *self._notes()]
        )


@checked
def partition_variance(
    models: Mapping[Names, Sequence[Tensor]],
    ds: DatasetLike,
    *,
    corrected: bool = True,
    method: str = "jackknife",
    confidence: float = CONFIDENCE,
    n_bootstrap: int = N_BOOTSTRAP,
    warmup_ms: float = 0.0,
    seed: int = 0,
) -> VariancePartition:
    """Unique and shared explained variance of two or three named feature sets (commonality analysis).

    With E(...) the variance that the model of these features explains on clips that it has not seen::

        unique to a    = E(a, b) - E(b)           shared by a and b = E(a) + E(b) - E(a, b)

    and for three sets by inclusion and exclusion; the parts add up to the variance that all features explain
    together. E is the variance of the PSTH less the mean squared error, over the signal power: noise in the
    PSTH is neither explained nor missing. A negative part is shown as it is: a unique one says that the
    feature made predictions of unseen clips worse, a shared one that features explain more together than the
    sum of each alone (suppression), or is noise, which the interval shows.

    Parameters
    ----------
    models : mapping of tuple of str to sequence of Tensor, shape (N, T)
        Predictions of the model of every combination, ``{("time",): ..., ("freq",): ..., ("time", "freq"):
        ...}``; the order of names in a key does not matter. All fitted alike, penalties chosen anew for each.
    ds : DatasetLike
        The recording.
    corrected : bool
        Shares of the signal power; False: of the variance of the PSTH, as for recordings of one repeat.
    method, confidence, n_bootstrap : str, float, int
        As in `score_intervals`.
    warmup_ms : float
        Onset of every clip that is left out.
    seed : int
        Of the bootstrap's draws.

    Returns
    -------
    VariancePartition
        With ``.table()``, ``str()``, ``.to_csv()``, ``.to_json()``.

    Raises
    ------
    ValueError
        When a combination is missing, features are fewer than two or more than three, or the predictions are
        of another number of clips.
    TypeError
        When a prediction is no floating-point tensor (N, T).

    References
    ----------
    Newton and Spurrell (1967), A development of multiple regression for the analysis of routine data, Appl
    Statist 16. de Heer et al. (2017), 10.1523/JNEUROSCI.3267-16.2017.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=6, n_repeats=4)
    >>> whole = list(ds.true_rates)
    >>> flat = [rate.mean(1, keepdim=True).expand(rate.shape) for rate in whole]
    >>> result = partition_variance({("a",): whole, ("b",): flat, ("a", "b"): whole}, ds)
    >>> shares = {row["part"]: row["share"] for row in result.table() if row["name"] == "mean"}
    >>> list(shares), bool(abs(shares["a"] + shares["b"] + shares["a & b"] - shares["total"]) < 1e-9)
    (['a', 'b', 'a & b', 'total'], True)
    """
    check_choice("method", method, METHODS)
    check_confidence(confidence)
    check_positive_int("n_bootstrap", n_bootstrap)
    named = _by_set(models)
    features = list(dict.fromkeys(name for key in models for name in key))
    parts = [part for size in range(1, len(features) + 1) for part in itertools.combinations(features, size)]
    score = FEVE if corrected else "fve"
    labels = {f"models[{tuple(sorted(key))!r}]": key for key in named}
    predicted = PredictedPart(ds, {label: named[key] for label, key in labels.items()})
    scored = {
        key: ClipScores(predicted.models[label], predicted, warmup_ms=warmup_ms)
        for label, key in labels.items()
    }
    everything = frozenset(features)
    statistics = {_label(part): _part(scored, score, frozenset(part), everything) for part in parts}
    statistics[TOTAL] = scored[everything].statistic(score)
    heard = scored[everything].heard(score)
    options = (method, confidence, n_bootstrap, seed)
    reasons = scored[everything].reasons(score, scored[everything].of_all(score))
    values = {}
    for part, statistic in statistics.items():
        found = interval_of(statistic, heard, *options)
        texts = tuple(
            first or second or ("a model's prediction is not finite" if np.isnan(value) else "")
            for first, second, value in zip(reasons, found.reasons, found.value, strict=True)
        )
        values[part] = Interval(found.value, found.low, found.high, found.n_clips, texts)
    chosen = np.all([~np.isnan(found.low) for found in values.values()], axis=0)
    if not chosen.any():
        chosen = np.all([~np.isnan(found.value) for found in values.values()], axis=0)
    population = {
        part: population_interval(statistic, chosen, heard, values[part].reasons, options)
        for part, statistic in statistics.items()
    }
    fewer = [
        f"mean and median are those of {chosen.sum()} of {len(chosen)} neurons; .table() has a reason for "
        "the others"
    ]
    facts = {
        "unit": "signal power" if corrected else "variance of the PSTH",
        "method": method,
        "confidence": confidence,
        "n_bootstrap": None if method == "jackknife" else n_bootstrap,
        "n_clips": len(heard),
        "n_neurons": int(chosen.sum()),
        "warmup_ms": warmup_ms,
        "seed": seed,
        "notes": [*predicted.notes, *([] if chosen.all() else fewer)],
    }
    return VariancePartition(tuple(parts), neuron_names(ds.nrn_meta), values, population, facts)


def _label(part: Names) -> str:
    return " & ".join(part)


def _by_set(models: Mapping[Names, Sequence[Tensor]]) -> dict[frozenset[str], Sequence[Tensor]]:
    """Predictions by the set of their features; raises unless all combinations of two or three are there."""
    named: dict[frozenset[str], Sequence[Tensor]] = {}
    for key, predictions in models.items():
        if not isinstance(key, tuple) or not key or not all(isinstance(name, str) for name in key):
            raise TypeError(
                f"keys of models are tuples of feature names such as ('time', 'freq'), got {key!r}"
            )
        if len(set(key)) != len(key) or frozenset(key) in named:
            raise ValueError(f"models holds the features {key!r} twice; one model per combination is needed")
        named[frozenset(key)] = predictions
    features = sorted({name for key in named for name in key})
    if not 2 <= len(features) <= MOST_SETS:
        raise ValueError(
            f"models names {len(features)} features {features}; 2 or {MOST_SETS} can be partitioned"
        )
    for size in range(1, len(features) + 1):
        for part in itertools.combinations(features, size):
            if frozenset(part) not in named:
                raise ValueError(
                    f"models lacks {part!r}: every combination of the features is needed, "
                    f"{2 ** len(features) - 1} models for {len(features)} features"
                )
    return named


def _part(
    scored: Mapping[frozenset[str], ClipScores], score: str, part: frozenset[str], everything: frozenset[str]
) -> Statistic:
    """Explained variance of exactly this set: ``sum (-1)**(|T| + 1) E(T or the rest)`` over its subsets T."""
    rest = everything - part
    terms = [
        ((-1.0) ** (size + 1), scored[frozenset(some) | rest])
        for size in range(len(part) + 1)
        for some in itertools.combinations(sorted(part), size)
        if frozenset(some) | rest
    ]

    def share(weights: FloatArray) -> FloatArray:
        return np.asarray(np.sum([sign * one.values(score, weights) for sign, one in terms], axis=0))

    return share
