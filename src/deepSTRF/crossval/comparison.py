"""Is one model better than another? Paired differences of scores, with intervals and permutation tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student
from torch import Tensor

from deepSTRF._validation import FloatArray, check_choice, check_positive_int, checked, first_names
from deepSTRF.crossval.clip_scores import ClipScores, PredictedPart, Statistic, score_names
from deepSTRF.crossval.intervals import (
    CONFIDENCE,
    METHODS,
    MIN_CLIPS,
    N_BOOTSTRAP,
    Interval,
    check_confidence,
    interval_of,
    jackknife_values,
    with_population,
)
from deepSTRF.crossval.nulls import ALPHA, CORRECTIONS, FOLDS_SHARE, TIE, add_one, fdr
from deepSTRF.crossval.tables import ResultTable, text_table
from deepSTRF.metrics.scores import metric_named
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.evaluation import neuron_names

__all__ = ["Comparison", "ModelComparison", "compare_models", "holm"]

N_PERMUTATIONS = 9999
OVER = ("clips", "neurons")
#: Sign patterns are drawn so many at a time.
FLIP_ROWS = 1000

BoolArray = npt.NDArray[np.bool_]


def holm(p: FloatArray) -> FloatArray:
    """P-values (K,) adjusted for K tests by Holm's step-down rule; NaN stays NaN."""
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def sign_flip(
    values: FloatArray, used: BoolArray, n_permutations: int, seed: int, spread: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Two-sided p (K,) of means of (S, K) values under flipped signs, and the smallest p possible.

    Flipped means count ``spread`` times. All 2**(S - 1) patterns (a pattern and its opposite are one) where
    there are no more than asked for.
    """
    n_units = len(values)
    summed = np.where(used, values, 0.0)
    if n_units <= 30 and 2 ** (n_units - 1) - 1 <= n_permutations:
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=n_units - 1)))
        patterns = patterns.reshape(2 ** (n_units - 1), n_units - 1)
        flips = np.concatenate([np.ones((len(patterns), 1)), patterns], axis=1)[1:]
    else:
        flips = np.random.default_rng(seed).choice((1.0, -1.0), size=(n_permutations, n_units))
    null = [
        spread * np.abs(flips[start : start + FLIP_ROWS] @ summed)
        for start in range(0, len(flips), FLIP_ROWS)
    ]
    p = add_one(np.abs(summed.sum(0)), np.concatenate(null) if null else np.zeros((0, values.shape[1])))
    smallest = np.maximum(1.0 / (1 + len(flips)), 0.5 ** np.maximum(used.sum(0) - 1.0, 0.0))
    return p, smallest


@dataclass(frozen=True)
class Comparison:
    """One pair of models: what the first has more than the second.

    ``neurons``, ``population``: Interval of the difference per neuron (N,), and of mean and median (2,).
    ``p``, ``q``, ``smallest_p`` (N,); ``mean_p``, ``mean_p_holm``, ``mean_smallest_p`` of the mean. The
    smallest p is one over the number of patterns, which ``cross_validated=True`` does not reach in general:
    of 8 equal contributions, all of one sign, p is then 0.07 in place of 1/128.
    """

    first: str
    second: str
    neurons: Interval
    population: Interval
    p: FloatArray
    q: FloatArray
    smallest_p: FloatArray
    mean_p: float
    mean_p_holm: float
    mean_smallest_p: float
    mean_reason: str = ""


@checked
@dataclass(frozen=True)
class ModelComparison(ResultTable):
    """Models compared in pairs on the same clips and neurons.

    Attributes
    ----------
    models : tuple of str
        Their names.
    neurons : tuple of str
        Names of the N neurons.
    scores : dict of str to array (N,)
        The score of each model.
    pairs : tuple of Comparison
        One per pair: differences, intervals, p-values.
    facts : dict
        Score, method, ``over``, number of clips, neurons behind the means, notes.
    seed_means : dict of str to tuple of float
        Of each model the mean over neurons per seed.
    mean_intervals : dict of str to (float, float)
        Of each model the interval of that mean, NaN with too few clips.

    Examples
    --------
    >>> result = ModelComparison(("a",), ("n",), {"a": np.zeros(1)}, (), {"score": "cc"})
    >>> result.table()
    []
    """

    models: tuple[str, ...]
    neurons: tuple[str, ...]
    scores: dict[str, FloatArray]
    pairs: tuple[Comparison, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    seed_means: dict[str, tuple[float, ...]] = field(default_factory=dict)
    mean_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Return per pair one row for mean and median over neurons, then per pair one per neuron.

        ``p_corrected`` is Holm's over pairs for the mean, `fdr` over neurons for a neuron.
        """
        nan = float("nan")
        rows = []
        for pair in self.pairs:
            mean = (pair.mean_p, pair.mean_p_holm, pair.mean_smallest_p)
            for index, (name, tests) in enumerate((("mean", mean), ("median", (nan, nan, nan)))):
                row = _row("population", pair, name, pair.population, index, tests)
                row["reason"] = row["reason"] or (pair.mean_reason if name == "mean" else "")
                rows.append(row)
        for pair in self.pairs:
            for index, name in enumerate(self.neurons):
                tests = (float(pair.p[index]), float(pair.q[index]), float(pair.smallest_p[index]))
                rows.append(_row("neuron", pair, name, pair.neurons, index, tests))
        return rows

    def __str__(self) -> str:
        chosen = self.facts["chosen"]
        lines = [f"{self.facts['score']} of {len(chosen)} neurons, {self.facts['n_clips']} clips"]
        means = [
            {"model": name, "mean": float(np.mean(self.scores[name][chosen])) if chosen else float("nan")}
            for name in self.models
        ]
        lines += text_table(means, ("model", "mean"))
        rows = [row for row in self.table() if row["level"] == "population"]
        for row in rows:
            row["difference of"] = f"{row['first']} - {row['second']}"
        columns = ("difference of", "name", "difference", "low", "high", "p", "p_corrected", "reason")
        lines += text_table(rows, columns)
        for pair in self.pairs:
            better = [
                int(((pair.q <= ALPHA) & side).sum())
                for side in (pair.neurons.value > 0, pair.neurons.value < 0)
            ]
            tested = int((~np.isnan(pair.p)).sum())
            lines.append(
                f"{pair.first} - {pair.second}: larger in {better[0]}, smaller in {better[1]} of "
                f"{tested} neurons at a false discovery rate of {ALPHA:g}"
            )
        return "\n".join([*lines, *self._notes()])


def _row(
    level: str, pair: Comparison, name: str, part: Interval, index: int, tests: tuple[float, float, float]
) -> dict[str, Any]:
    return {
        "level": level,
        "first": pair.first,
        "second": pair.second,
        "name": name,
        "difference": float(part.value[index]),
        "low": float(part.low[index]),
        "high": float(part.high[index]),
        **dict(zip(("p", "p_corrected", "smallest_p"), tests, strict=True)),
        "n_clips": int(part.n_clips[index]),
        "reason": part.reasons[index],
    }


@checked
def compare_models(
    models: Mapping[str, Sequence[Tensor] | Sequence[Sequence[Tensor]]],
    ds: DatasetLike,
    *,
    score: str = "cc_norm",
    over: str = "clips",
    interval: str = "jackknife",
    confidence: float = CONFIDENCE,
    cross_validated: bool = False,
    n_permutations: int = N_PERMUTATIONS,
    n_bootstrap: int = N_BOOTSTRAP,
    correction: str = "bh",
    centring: str = "concat",
    warmup_ms: float = 0.0,
    seed: int = 0,
) -> ModelComparison:
    """Paired comparison of models on the same clips: differences, intervals, permutation tests.

    ``over="clips"``: would the difference stay with other sounds? Per neuron and for the mean over neurons.
    The difference of a score is split into one contribution per clip (its jackknife pseudo-value); when the
    models are equally good, the sign of a contribution is as likely to be either. The test flips signs, all
    2**(S - 1) patterns or random ones: S = 5 clips cannot give p < 1/16, so that 6 are needed.

    ``over="neurons"``: would the mean difference stay with other neurons, on these very clips? Signs of the
    neurons' differences are flipped. Neurons that share noise are no independent sample: p is then too small.

    Fits stay as they are: that another seed or training set would give other weights is in neither.

    Parameters
    ----------
    models : mapping of str to sequence of Tensor, shape (N, T)
        Two or more models' predictions, one tensor per clip of ``ds``, as ``model.predict(ds)`` returns. Of a
        model that was fitted with several seeds, one such sequence per seed: its score is their mean.
    ds : DatasetLike
        The recording.
    score : str
        "cc_norm", "cc", "fve", "feve", "mse" or a registered metric; the difference is first minus second,
        negative where the first has less error.
    over : {"clips", "neurons"}
        What is a random sample.
    interval : {"jackknife", "bootstrap", "bca"}
        As ``method`` of `score_intervals`; over neurons it is Student's t.
    confidence : float
        Of the intervals.
    cross_validated : bool
        Whether the predictions are of several fits, each trained on clips that another one predicts: null and
        intervals of differences over clips are then widened by the square root of 2, the most by which such
        scores vary more (Nadeau and Bengio 2003, 10.1023/A:1024068626366).
    n_permutations, n_bootstrap : int
        Random sign patterns; resamples of the bootstrap.
    correction : {"bh", "by"}
        Of p over neurons within a pair, see `fdr`; p of means is corrected over pairs (Holm).
    centring, warmup_ms : str, float
        As in `score_model`.
    seed : int
        Of all draws.

    Returns
    -------
    ModelComparison
        With ``.table()``, ``str()``, ``.to_csv()``, ``.to_json()``. Means are over the neurons that have a
        difference in every pair.

    Raises
    ------
    ValueError
        For fewer than two models, predictions of another number of clips, or an unknown name.
    TypeError
        When a prediction is no floating-point tensor (N, T).

    References
    ----------
    Holm (1979), A simple sequentially rejective multiple test procedure, Scand J Statist 6. Winkler et al.
    (2014), 10.1016/j.neuroimage.2014.01.060 (sign flips).

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=8, n_repeats=4)
    >>> true = list(ds.true_rates)
    >>> noise = torch.Generator().manual_seed(0)
    >>> noisy = [rate + rate.std() * torch.randn(rate.shape, generator=noise) for rate in true]
    >>> result = compare_models({"true": true, "noisy": noisy}, ds)
    >>> result.pairs[0].mean_p, bool(result.pairs[0].population.low[0] > 0)
    (0.0078125, True)
    """
    check_choice("score", score, score_names())
    check_choice("over", over, OVER)
    check_choice("interval", interval, METHODS)
    check_choice("correction", correction, CORRECTIONS)
    check_confidence(confidence)
    check_positive_int("n_permutations", n_permutations)
    check_positive_int("n_bootstrap", n_bootstrap)
    if len(models) < 2:
        raise ValueError(f"models holds {len(models)} models, a comparison needs two: {{'a': ..., 'b': ...}}")
    part, scored = _scored_models(models, ds, centring, warmup_ms)
    per_seed = {name: np.stack([one.of_all(score) for one in own]) for name, own in scored.items()}
    scores = {name: values.mean(0) for name, values in per_seed.items()}
    reasons = [
        next(filter(None, each), "")
        for each in zip(
            *(one.reasons(score, one.of_all(score)) for own in scored.values() for one in own), strict=True
        )
    ]
    heard = next(iter(scored.values()))[0].heard(score)
    options = (interval, confidence, n_bootstrap, seed)
    statistics = {name: _mean_over_seeds(own, score) for name, own in scored.items()}
    if over == "neurons":
        chosen = np.array([not reason for reason in reasons])
        found = [
            _over_neurons(pair, scores, chosen, heard, tuple(reasons), confidence, n_permutations, seed)
            for pair in itertools.combinations(scored, 2)
        ]
    else:
        spread = FOLDS_SHARE if cross_validated else 1.0
        found, chosen = _all_over_clips(
            statistics, scores, heard, reasons, options, n_permutations, correction, spread
        )
    corrected = holm(np.array([one.mean_p for one in found]))
    found = [replace(one, mean_p_holm=float(p)) for one, p in zip(found, corrected, strict=True)]
    facts = {
        "score": score,
        "over": over,
        "interval": interval if over == "clips" else "student",
        "confidence": confidence,
        "cross_validated": cross_validated,
        "n_clips": len(heard),
        "chosen": np.flatnonzero(chosen).tolist(),
        "correction": correction,
        "n_permutations": n_permutations,
        "n_bootstrap": n_bootstrap if over == "clips" and interval != "jackknife" else None,
        "centring": centring,
        "warmup_ms": warmup_ms,
        "seed": seed,
        "notes": [*part.notes, *_notes(score, chosen)],
    }
    return ModelComparison(
        tuple(scored),
        neuron_names(ds.nrn_meta),
        scores,
        tuple(found),
        facts,
        seed_means={name: _seed_means(values[:, chosen]) for name, values in per_seed.items()},
        mean_intervals={
            name: _mean_interval(statistics[name], scores[name], chosen, heard, options, over)
            for name in models
        },
    )


def _scored_models(
    models: Mapping[str, Any], ds: DatasetLike, centring: str, warmup_ms: float
) -> tuple[PredictedPart, dict[str, list[ClipScores]]]:
    """What all models predicted, and the scores of each model's seeds on it."""
    labels = {
        f"models[{name!r}]" + f"[{number}]" * (number > 0): (name, one)
        for name, given in models.items()
        for number, one in enumerate(_predictions_per_seed(name, given))
    }
    part = PredictedPart(ds, {label: one for label, (_, one) in labels.items()})
    scored: dict[str, list[ClipScores]] = {}
    for label, (name, _) in labels.items():
        own = ClipScores(part.models[label], part, centring=centring, warmup_ms=warmup_ms)
        scored.setdefault(name, []).append(own)
    return part, scored


def _predictions_per_seed(name: str, given: Any) -> Sequence[Sequence[Tensor]]:
    """One sequence of predictions per seed; predictions alone are those of one."""
    if not isinstance(given, Sequence):
        return [given]  # which is refused
    if not len(given):
        raise ValueError(f"models[{name!r}] is empty; give one (N, T) tensor per clip of ds")
    return [given] if isinstance(given[0], Tensor) else given


def _mean_over_seeds(scored: Sequence[ClipScores], score: str) -> Statistic:
    statistics = [one.statistic(score) for one in scored]
    return lambda weights: np.mean([one(weights) for one in statistics], axis=0)


def _mean_interval(
    statistic: Statistic,
    values: FloatArray,
    chosen: BoolArray,
    heard: BoolArray,
    options: tuple[str, float, int, int],
    over: str,
) -> tuple[float, float]:
    """Interval of the mean over the chosen neurons."""
    if not chosen.any():
        return float("nan"), float("nan")
    if over == "neurons":
        mean, width = float(values[chosen].mean()), _student_width(values[chosen], options[1])
        return mean - width, mean + width
    part = np.repeat(heard[:, chosen].any(1, keepdims=True), 2, axis=1)
    found = interval_of(with_population(statistic, chosen), part, *options)
    return float(found.low[0]), float(found.high[0])


def _seed_means(values: FloatArray) -> tuple[float, ...]:
    """Means of scores (n_seeds, n) over neurons, one per seed; none of no neuron."""
    return tuple(values.mean(1).tolist()) if values.size else ()


def _student_width(values: FloatArray, confidence: float) -> float:
    """Half the width of Student's interval of a mean; NaN of too few values."""
    count = values.size
    if count < MIN_CLIPS:
        return float("nan")
    return float(student.ppf((1 + confidence) / 2, count - 1) * values.std(ddof=1) / np.sqrt(count))


def _notes(score: str, chosen: BoolArray) -> list[str]:
    notes = []
    count = int(chosen.sum())
    if count < len(chosen):
        notes.append(
            f"means are those of {count} of {len(chosen)} neurons; .table() has a reason for the others"
        )
    if not metric_named(score).higher_is_better:
        notes.append(f"of {score} less is better")
    return notes


def _all_over_clips(
    models: Mapping[str, Statistic],
    scores: Mapping[str, FloatArray],
    heard: BoolArray,
    reasons: Sequence[str],
    options: tuple[str, float, int, int],
    n_permutations: int,
    correction: str,
    spread: float,
) -> tuple[list[Comparison], BoolArray]:
    """All pairs with clips as the sample, and the neurons behind their means."""
    pairs = list(itertools.combinations(models, 2))
    statistics = {pair: _difference(models[pair[0]], models[pair[1]]) for pair in pairs}
    differences = {pair: interval_of(statistics[pair], heard, *options) for pair in pairs}
    chosen = np.array(
        [not np.isnan([one.low[i] for one in differences.values()]).any() for i in range(len(reasons))]
    )
    if not chosen.any():  # too few clips for an interval: values are shown nevertheless
        chosen = np.array([not reason for reason in reasons])
    found = [
        _over_clips(
            *(pair, scores, statistics[pair], differences[pair], chosen, heard, reasons),
            *(options, n_permutations, correction, spread),
        )
        for pair in pairs
    ]
    return found, chosen


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda weights: first(weights) - second(weights)


def _over_clips(
    pair: tuple[str, str],
    scores: Mapping[str, FloatArray],
    statistic: Statistic,
    difference: Interval,
    chosen: BoolArray,
    heard: BoolArray,
    reasons: Sequence[str],
    options: tuple[str, float, int, int],
    n_permutations: int,
    correction: str,
    spread: float,
) -> Comparison:
    """The comparison of a pair with clips as the sample."""
    population = with_population(statistic, chosen)
    sizes = np.nan_to_num(np.maximum(*(np.abs(scores[name]) for name in pair)))
    typical = np.full(2, sizes[chosen].mean() if chosen.any() else 0.0)
    part = np.repeat(heard[:, chosen].any(1, keepdims=True), 2, axis=1)
    p, smallest = sign_flip(
        _pseudo_values(statistic, heard, sizes), heard, n_permutations, options[3], spread
    )
    mean_p, mean_smallest = sign_flip(
        _pseudo_values(population, part, typical), part, n_permutations, options[3], spread
    )
    texts = [first or second for first, second in zip(reasons, difference.reasons, strict=True)]
    texts = [
        text or (_unreachable(count, "clips", least) if least > ALPHA else "")
        for text, count, least in zip(texts, difference.n_clips, smallest, strict=True)
    ]
    p = np.where((smallest > ALPHA) | np.isnan(difference.value), np.nan, p)
    whole = replace(_wider(difference, spread), reasons=tuple(texts))
    reason = ""
    if not chosen.any():
        reason = f"no neuron has a difference: {first_names(sorted({text for text in texts if text}))}"
    elif mean_smallest[0] > ALPHA:
        reason = _unreachable(int(part[:, 0].sum()), "clips", mean_smallest[0])
    return Comparison(
        *pair,
        whole,
        _wider(interval_of(population, part, *options), spread),
        p,
        fdr(p, correction),
        smallest,
        float("nan") if reason else float(mean_p[0]),
        float("nan"),
        float(mean_smallest[0]),
        reason,
    )


def _wider(part: Interval, spread: float) -> Interval:
    """The same with ends ``spread`` times as far from the value."""
    value = part.value
    return replace(part, low=value + spread * (part.low - value), high=value + spread * (part.high - value))


def _pseudo_values(statistic: Statistic, heard: BoolArray, sizes: FloatArray) -> FloatArray:
    """Contributions (S, K) of clips, ``n value - (n - 1) value without the clip``.

    0 where they are the rounding of scores of these sizes (K,): the same model twice has no sign.
    """
    value, left_out = jackknife_values(statistic, heard)
    n = heard.sum(0)
    contributions = n * value - (n - 1) * left_out
    return np.where(np.abs(contributions) <= TIE * n * sizes, 0.0, contributions)


def _unreachable(count: int, what: str, smallest: float) -> str:
    return f"{count} {what}: the smallest p is {smallest:.2g}, nothing can be concluded from it"


def _over_neurons(
    pair: tuple[str, str],
    scores: Mapping[str, FloatArray],
    chosen: BoolArray,
    heard: BoolArray,
    reasons: tuple[str, ...],
    confidence: float,
    n_permutations: int,
    seed: int,
) -> Comparison:
    """The comparison of a pair with neurons as the sample: the mean only, no neuron has an interval."""
    difference = scores[pair[0]] - scores[pair[1]]
    values = difference[chosen]
    count = values.size
    nothing, clips = np.full(difference.shape, np.nan), heard.sum(0)
    p, smallest = (
        sign_flip(values[:, None], np.ones((count, 1), dtype=bool), n_permutations, seed)
        if count
        else (np.array([np.nan]), np.array([1.0]))
    )
    mean = float(values.mean()) if count else float("nan")
    width = _student_width(values, confidence)
    reason = _unreachable(count, "neurons", float(smallest[0])) if smallest[0] > ALPHA else ""
    middle = float(np.median(values)) if count else float("nan")
    population = Interval(
        np.array([mean, middle]),
        np.array([mean - width, np.nan]),
        np.array([mean + width, np.nan]),
        np.full(2, len(heard)),
        (
            "" if count >= MIN_CLIPS else f"{count} neurons: an interval needs {MIN_CLIPS}",
            "over neurons only the mean has an interval",
        ),
    )
    per_neuron = Interval(
        difference,
        nothing,
        nothing,
        clips,
        tuple(text or "over neurons: only their mean is tested" for text in reasons),
    )
    mean_p = float("nan") if reason else float(p[0])
    return Comparison(
        *pair, per_neuron, population, nothing, nothing, nothing, mean_p, mean_p, float(smallest[0]), reason
    )
