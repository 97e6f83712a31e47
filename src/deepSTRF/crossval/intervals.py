"""Confidence intervals of scores over clips, on predictions that are there: jackknife and bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import t as student
from torch import Tensor

from deepSTRF._validation import FloatArray, check_choice, check_positive_int, checked, first_names
from deepSTRF.crossval.clip_scores import CORRECTED, ClipScores, PredictedPart, Statistic, score_names
from deepSTRF.crossval.tables import ResultTable, text_table
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.evaluation import neuron_names

__all__ = [
    "CONFIDENCE",
    "METHODS",
    "MIN_CLIPS",
    "N_BOOTSTRAP",
    "POPULATION",
    "Interval",
    "IntervalTable",
    "check_confidence",
    "interval_of",
    "jackknife_values",
    "population_interval",
    "score_intervals",
    "with_population",
]

METHODS = ("jackknife", "bootstrap", "bca")
CONFIDENCE = 0.95
#: The width of an interval of fewer clips is itself unknown: Student's t at 3 degrees of freedom is 3.2, and
#: intervals of 5 simulated clips already miss the truth twice as often as they say (docs, statistics).
MIN_CLIPS = 5
N_BOOTSTRAP = 2000
#: Largest share of resamples in which a score may be undefined.
MOST_UNDEFINED = 0.01
#: Summaries over neurons that stand beside the neurons.
POPULATION = ("mean", "median")
SCORES = ("cc_norm", "cc", "fve")
MIN_FREEDOM = 2.0
#: Beyond it the acceleration of few, very skewed clips reaches the outermost draw.
SMALLEST_STRETCH = 1e-3

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """Values and intervals of K quantities: ``value``, ``low``, ``high``, ``n_clips`` (K,), ``reasons``."""

    value: FloatArray
    low: FloatArray
    high: FloatArray
    n_clips: npt.NDArray[np.int64]
    reasons: tuple[str, ...]


def jackknife_values(statistic: Statistic, heard: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Values (K,) on all clips and (S, K) with each clip left out; NaN where a clip has no part."""
    n_clips = len(heard)
    everything = statistic(np.ones((1, n_clips)))[0]
    left_out = statistic(1.0 - np.eye(n_clips))
    return everything, np.where(heard, left_out, np.nan)


def interval_of(
    statistic: Statistic, heard: BoolArray, method: str, confidence: float, n_bootstrap: int, seed: int
) -> Interval:
    """Intervals of K quantities over S clips, of which ``heard`` (S, K) have a part in each."""
    value, left_out = jackknife_values(statistic, heard)
    n = heard.sum(0)
    contributions = np.where(heard, (n - 1) * (_column_means(left_out, heard) - left_out), 0.0)
    if method == "jackknife":
        low, high = _jackknife(value, contributions, n, confidence)
        undefined = np.isnan(contributions).any(0)
        rare = "without one of the clips the score is undefined"
    else:
        low, high, undefined = _bootstrap(
            statistic, value, contributions, n, confidence, n_bootstrap, seed, corrected=method == "bca"
        )
        rare = f"undefined in more than {MOST_UNDEFINED:.0%} of the resamples"
    few = n < MIN_CLIPS
    missing = np.isnan(value) | few | undefined
    reasons = [
        ""
        if not gone or np.isnan(number)
        else (f"{count} clips: an interval needs {MIN_CLIPS}, nothing can be concluded" if scarce else rare)
        for gone, number, count, scarce in zip(missing, value, n, few, strict=True)
    ]
    return Interval(value, np.where(missing, np.nan, low), np.where(missing, np.nan, high), n, tuple(reasons))


def _column_means(values: FloatArray, heard: BoolArray) -> FloatArray:
    return np.asarray(np.where(heard, values, 0.0).sum(0) / np.maximum(heard.sum(0), 1))


def _jackknife(
    value: FloatArray, contributions: FloatArray, n: npt.NDArray[Any], confidence: float
) -> tuple[FloatArray, FloatArray]:
    """Student's t times the jackknife error (Tukey 1958).

    ``contributions`` are pseudo-values about their mean. Where few clips carry the score their variance is
    uncertain: its degrees of freedom are ``2 n / (kurtosis - 1)``, from 2 to n - 1 (Satterthwaite 1946).
    """
    count = np.maximum(n, 2)
    squares = (contributions**2).sum(0)
    error = np.sqrt(squares / (count * (count - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = count * (contributions**4).sum(0) / squares**2
        freedom = 2 * count / (kurtosis - 1)
    freedom = np.clip(np.nan_to_num(freedom, nan=np.inf), MIN_FREEDOM, count - 1.0)
    width = student.ppf((1 + confidence) / 2, np.maximum(freedom, 1.0)) * error
    return value - width, value + width


def _bootstrap(
    statistic: Statistic,
    value: FloatArray,
    contributions: FloatArray,
    n: npt.NDArray[Any],
    confidence: float,
    n_bootstrap: int,
    seed: int,
    *,
    corrected: bool,
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Percentiles of scores of clips drawn with replacement; ``corrected``: BCa (Efron 1987).

    The levels are those of Student's t (expanded percentiles, Hesterberg 2015): plain ones of 20 clips are
    too narrow by sqrt(19 / 20) and by the error of the variance.
    """
    n_clips = len(contributions)
    draws = np.random.default_rng(seed).multinomial(n_clips, np.full(n_clips, 1 / n_clips), size=n_bootstrap)
    drawn = np.sort(statistic(draws.astype(np.float64)), axis=0)  # NaN comes last
    defined = (~np.isnan(drawn)).sum(0)
    count = np.maximum(n, 2)
    wide = np.sqrt(count / (count - 1)) * student.ppf((1 + confidence) / 2, count - 1)
    levels = [ndtr(-wide), ndtr(wide)]
    if corrected:
        with np.errstate(divide="ignore", invalid="ignore"):
            below = ((drawn < value).sum(0) + (drawn == value).sum(0) / 2) / np.maximum(defined, 1)
            shift = ndtri(np.clip(below, 1 / (n_bootstrap + 1), n_bootstrap / (n_bootstrap + 1)))
            skew = (contributions**3).sum(0) / (6 * (contributions**2).sum(0) ** 1.5)
            skew = np.nan_to_num(skew)
            levels = [
                ndtr(shift + (shift + z) / np.maximum(1 - skew * (shift + z), SMALLEST_STRETCH))
                for z in (-wide, wide)
            ]
    low, high = (_quantiles(drawn, defined, level) for level in levels)
    return low, high, defined < (1 - MOST_UNDEFINED) * n_bootstrap


def _quantiles(ordered: FloatArray, defined: npt.NDArray[Any], level: FloatArray) -> FloatArray:
    """Quantile of each column of (B, K) sorted values, at a level of its own."""
    position = np.clip(level, 0, 1) * np.maximum(defined - 1, 0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(defined - 1, 0))
    columns = np.arange(ordered.shape[1])
    share = position - below
    return np.asarray((1 - share) * ordered[below, columns] + share * ordered[above, columns])


def with_population(statistic: Statistic, chosen: BoolArray) -> Statistic:
    """Mean and median (B, 2) over the chosen neurons of a statistic (B, N); NaN when one of them is."""

    def population(weights: FloatArray) -> FloatArray:
        values = statistic(weights)[:, chosen]
        if not values.shape[1]:
            return np.full((len(values), 2), np.nan)
        return np.stack([values.mean(1), np.median(values, axis=1)], axis=1)

    return population


def population_interval(
    statistic: Statistic,
    chosen: BoolArray,
    heard: BoolArray,
    reasons: Sequence[str],
    options: tuple[str, float, int, int],
) -> Interval:
    """Interval (2,) of mean and median over the chosen neurons, over the clips that one of them heard.

    Where no neuron has a value, for ``reasons``, it says so.
    """
    part = np.repeat(heard[:, chosen].any(1, keepdims=True), len(POPULATION), axis=1)
    found = interval_of(with_population(statistic, chosen), part, *options)
    if chosen.any():
        return found
    why = f"no neuron has a value: {first_names(sorted({text for text in reasons if text}))}"
    return replace(found, reasons=(why,) * len(POPULATION))


def check_confidence(confidence: float) -> None:
    """Raise unless the confidence lies between 0.5 and 1."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be at least 0.5 and below 1, such as 0.95; got {confidence!r}")


def interval_rows(
    population: Mapping[str, Interval],
    neurons: Sequence[str],
    of_neurons: Mapping[str, Interval],
    kind: str,
    quantity: str,
) -> list[dict[str, Any]]:
    """One row per kind (score, part) for mean and median, then one per kind and neuron."""
    return [
        {
            "level": level,
            "name": name,
            kind: key,
            quantity: float(found.value[index]),
            "low": float(found.low[index]),
            "high": float(found.high[index]),
            "n_clips": int(found.n_clips[index]),
            "reason": found.reasons[index],
        }
        for level, names, kinds in (
            ("population", POPULATION, population),
            ("neuron", neurons, of_neurons),
        )
        for key, found in kinds.items()
        for index, name in enumerate(names)
    ]


@checked
@dataclass(frozen=True)
class IntervalTable(ResultTable):
    """Scores with confidence intervals, of the population and of each neuron.

    Attributes
    ----------
    neurons : tuple of str
        Names of the N neurons.
    intervals : dict of str to Interval
        Per score ``value``, ``low``, ``high``, ``n_clips`` of shape (N,), and ``reasons``.
    population : dict of str to Interval
        Per score the same of the mean and the median over the neurons that have an interval, shape (2,).
    facts : dict
        Method, confidence, clips, ``n_neurons`` behind the population values per score, notes.

    Examples
    --------
    >>> import numpy as np
    >>> one = Interval(np.array([0.5]), np.array([0.4]), np.array([0.6]), np.array([8]), ("",))
    >>> both = Interval(*(np.repeat(v, 2) for v in (one.value, one.low, one.high, one.n_clips)), ("", ""))
    >>> result = IntervalTable(("a",), {"cc": one}, {"cc": both}, {"n_neurons": {"cc": 1}})
    >>> result.table()[0]["low"], result.table()[2]["name"]
    (0.4, 'a')
    """

    neurons: tuple[str, ...]
    intervals: dict[str, Interval]
    population: dict[str, Interval]
    facts: dict[str, Any] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per score and population value, then one per score and neuron."""
        return interval_rows(self.population, self.neurons, self.intervals, "score", "value")

    def __str__(self) -> str:
        rows = [row for row in self.table() if row["level"] == "population"]
        for row in rows:
            row["neurons"] = self.facts["n_neurons"][row["score"]]
        columns = ("score", "name", "value", "low", "high", "neurons", "n_clips", "reason")
        return "\n".join([*text_table(rows, columns), *self._notes()])


@checked
def score_intervals(
    predictions: Sequence[Tensor],
    ds: DatasetLike,
    *,
    scores: str | Sequence[str] = SCORES,
    method: str = "jackknife",
    confidence: float = CONFIDENCE,
    n_bootstrap: int = N_BOOTSTRAP,
    centring: str = "concat",
    warmup_ms: float = 0.0,
    seed: int = 0,
) -> IntervalTable:
    """Confidence intervals of scores over clips, per neuron and for their mean and median.

    Where the score would lie had other clips of the same kind been played, with as many repeats. The models
    stay as they are: nothing is fitted again, and the neurons are those at hand. Clips are the unit that is
    drawn (bins within a clip depend on each other); they must be drawn independently: pieces of one sound,
    or repeats of one sound under several names, are not.

    Parameters
    ----------
    predictions : sequence of Tensor, shape (N, T)
        One per clip of ``ds``, as ``model.predict(ds)`` returns.
    ds : DatasetLike
        The recording; neurons may have heard different clips.
    scores : str or sequence of str
        Any of "cc_norm", "cc_norm_published", "cc", "fve", "feve", "mse" and registered metrics.
    method : {"jackknife", "bootstrap", "bca"}
        Jackknife with Student's t (Tukey), expanded percentiles of the bootstrap (Hesterberg), or
        bias-corrected and accelerated (Efron). The jackknife needs one resample per clip and holds its level
        best.
    confidence : float
        Share of intervals that should hold the truth.
    n_bootstrap : int
        Resamples of the bootstrap.
    centring : {"concat", "clip", "published"}
        Of ``cc_norm``, as in `score_model`.
    warmup_ms : float
        Onset of every clip that is left out.
    seed : int
        Of the bootstrap's draws.

    Returns
    -------
    IntervalTable
        With ``.table()``, ``str()``, ``.to_csv()``, ``.to_json()``. A neuron of fewer than 5 clips has NaN
        for an interval, and the reason.

    Raises
    ------
    ValueError
        When the predictions are of another number of clips, or a name is unknown.
    TypeError
        When a prediction is no floating-point tensor (N, T).

    References
    ----------
    Efron and Tibshirani (1993), 10.1201/9780429246593. Hesterberg (2015), 10.1080/00031305.2015.1089789.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=8, n_repeats=4)
    >>> result = score_intervals(list(ds.true_rates), ds, scores="cc_norm")
    >>> mean = result.table()[0]
    >>> mean["name"], mean["low"] < 1 < mean["high"]
    ('mean', True)
    >>> result = score_intervals(list(ds.true_rates)[:3], ds.select(clips=[0, 1, 2]), scores="cc")
    >>> result.table()[0]["reason"]
    '3 clips: an interval needs 5, nothing can be concluded'
    """
    check_choice("method", method, METHODS)
    check_confidence(confidence)
    check_positive_int("n_bootstrap", n_bootstrap)
    wanted = (scores,) if isinstance(scores, str) else tuple(scores)
    for score in wanted:
        check_choice("scores", score, score_names())
    part = PredictedPart(ds, {"predictions": predictions})
    clips = ClipScores(part.models["predictions"], part, centring=centring, warmup_ms=warmup_ms)
    intervals, population, n_neurons = {}, {}, {}
    for score in wanted:
        statistic, heard = clips.statistic(score), clips.heard(score)
        found = interval_of(statistic, heard, method, confidence, n_bootstrap, seed)
        reasons = tuple(
            first or second
            for first, second in zip(clips.reasons(score, found.value), found.reasons, strict=True)
        )
        intervals[score] = Interval(found.value, found.low, found.high, found.n_clips, reasons)
        chosen = _populated(found)
        n_neurons[score] = int(chosen.sum())
        options = (method, confidence, n_bootstrap, seed)
        population[score] = population_interval(statistic, chosen, heard, reasons, options)
    facts = {
        "method": method,
        "confidence": confidence,
        "n_clips": clips.n_clips,
        "n_neurons": n_neurons,
        "n_bootstrap": None if method == "jackknife" else n_bootstrap,
        "centring": centring,
        "warmup_ms": warmup_ms,
        "seed": seed,
        "notes": [*part.notes, *_interval_notes(clips.n_neurons, n_neurons)],
    }
    return IntervalTable(neuron_names(ds.nrn_meta), intervals, population, facts)


def _populated(found: Interval) -> BoolArray:
    """Neurons behind population values: those with an interval, or a value where there are too few clips."""
    defined = ~np.isnan(found.low)
    return np.asarray(defined if defined.any() else ~np.isnan(found.value))


def _interval_notes(n_neurons: int, behind: dict[str, int]) -> list[str]:
    return [
        f"{score}: mean and median are those of {count} of {n_neurons} neurons; .table() has a reason for "
        "each of the others" + (", whose scores are often low" if score in CORRECTED else "")
        for score, count in behind.items()
        if count < n_neurons
    ]
