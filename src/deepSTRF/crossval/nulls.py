"""Null distributions of scores by circular shifts and by permuted clips, and false discovery rates.

Both compare responses with predictions that belong elsewhere, all neurons alike, so that what neurons share
stays. All shifts of a clip come from one cross-correlation, all pairs of clips from one matrix product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import fft
from scipy.stats import false_discovery_control
from torch import Tensor

from deepSTRF._validation import FloatArray, check_choice, check_positive_int, checked
from deepSTRF.crossval.clip_scores import FEVE, ClipScores, PredictedPart, onset_bins
from deepSTRF.crossval.tables import ResultTable, text_table
from deepSTRF.metrics._statistics import PairMoments
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.evaluation import neuron_names

__all__ = ["ALPHA", "CORRECTIONS", "FOLDS_SHARE", "TIE", "NullTable", "add_one", "fdr", "score_null"]

METHODS = ("shift", "permute-clips")
CORRECTIONS = ("bh", "by")
SCORES = ("cc_norm", "cc", "fve", FEVE, "mse")
N_NULL = 1000
#: A test that cannot reach this p says that nothing can be concluded.
ALPHA = 0.05
#: Differences below this share of a score's size are rounding: they count as ties, against the model.
TIE = 1e-9
#: Fewest independent bins (bins over the correlation time), for shifts: of a clip on average, of all clips.
#: With fewer, the clip's mean and the seam of a shift tell: at 12 a clip 6.6 % of tests at 5 % reject noise.
MIN_INDEPENDENT_PER_CLIP, MIN_INDEPENDENT = 20.0, 40.0
#: Spread of a score of cross-validated noise, in spreads of its null: each pair of clips enters twice, as
#: each trains what the other tests (Nadeau and Bengio 2003, 10.1023/A:1024068626366).
FOLDS_SHARE = math.sqrt(2.0)
#: Bytes of one block of neurons.
BLOCK_BYTES = 64 * 2**20

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
#: Sums of products of a response and a prediction (None: of ones), as observed and in all null pairings.
Products = Callable[[FloatArray, FloatArray | None], FloatArray]


# ---- many tests at once


@checked
def fdr(p: FloatArray | Sequence[float] | Tensor, method: str = "bh") -> FloatArray:
    """Adjusted p-values that bound the false discovery rate over neurons.

    Those at most q are a set of which a share q is expected to be false.

    Parameters
    ----------
    p : array, shape (N,)
        One p-value per neuron; NaN (not tested) stays NaN and does not count as a test.
    method : {"bh", "by"}
        Benjamini-Hochberg, for independent or positively dependent tests (neurons that share clips); or
        Benjamini-Yekutieli, for any dependence, which costs a factor of about ``log(N)``.

    Returns
    -------
    array, shape (N,)
        Adjusted p-values.

    Raises
    ------
    ValueError
        When a p-value lies outside of [0, 1].

    References
    ----------
    Benjamini and Hochberg (1995), 10.1111/j.2517-6161.1995.tb02031.x. Benjamini and Yekutieli (2001),
    10.1214/aos/1013699998.

    Examples
    --------
    >>> fdr([0.01, 0.02, float("nan"), 0.5]).round(3).tolist()
    [0.03, 0.03, nan, 0.5]
    """
    check_choice("method", method, CORRECTIONS)
    values = np.asarray(p.detach().cpu() if isinstance(p, Tensor) else p, dtype=np.float64)
    tested = ~np.isnan(values)
    if ((values[tested] < 0) | (values[tested] > 1)).any():
        raise ValueError("p must lie between 0 and 1 (or be NaN); these are p-values, not scores")
    adjusted = np.full(values.shape, np.nan)
    if tested.any():
        adjusted[tested] = false_discovery_control(values[tested], method=method)
    return adjusted


def add_one(observed: FloatArray, null: FloatArray) -> FloatArray:
    """Share (K,) of (B, K) null values at least as large as the observed, which counts as one of them.

    ``(1 + b) / (1 + B)``: never 0, and exact for random draws (Phipson and Smyth 2010,
    10.2202/1544-6115.1585).
    """
    size = np.maximum(np.abs(observed), np.nanmax(np.abs(null), axis=0, initial=0.0))
    reached = np.isnan(null) | (null >= observed - TIE * size)
    return np.where(np.isnan(observed), np.nan, (1 + reached.sum(0)) / (1 + len(null)))


# ---- predictions and PSTHs as arrays


class Clip(NamedTuple):
    """Prediction and PSTH (N, T) about the neuron's means, zero where there is none; and where there is."""

    pred: FloatArray
    psth: FloatArray
    predicted: BoolArray
    recorded: BoolArray


def _read(
    predictions: Sequence[Tensor],
    dataset: PredictedPart,
    skip: int,
    fewest: int,
    means: tuple[FloatArray, FloatArray],
) -> list[Clip]:
    """All clips; bins of fewer than ``fewest`` repeats do not count as recorded."""
    clips = []
    for clip, rates in enumerate(predictions):
        block = dataset.response_block(clip)[..., skip:].double()
        valid = ~torch.isnan(block)
        count = valid.sum(1)
        psth = np.asarray(torch.where(valid, block, 0.0).sum(1) / count.clamp(min=1))
        recorded = np.asarray(count >= fewest)
        pred = np.asarray(rates.detach().cpu().double())[:, skip:] - means[0][:, None]
        predicted = np.repeat(~np.isnan(pred).all(0, keepdims=True), len(pred), axis=0)
        pred = np.where(predicted, np.where(np.isfinite(pred), pred, np.nan), 0.0)
        pred[~recorded.any(1)] = 0.0  # of a clip that the neuron did not hear
        clips.append(Clip(pred, np.where(recorded, psth - means[1][:, None], 0.0), predicted, recorded))
    return clips


class _Moments:
    """Sums over clips of (N, B + 1) moments of shifted or exchanged predictions; column 0 is as observed."""

    def __init__(self, n_neurons: int, n_columns: int) -> None:
        self.sums = [np.zeros((n_neurons, n_columns)) for _ in range(6)]

    def add(self, rows: slice | IntArray, part: Clip, products: Products) -> None:
        """Add ``products(of response, of prediction)`` of some neurons: n, x, y, xx, yy, xy."""
        pred, psth, recorded = part.pred, part.psth, part.recorded.astype(np.float64)
        everywhere = None if bool(part.predicted.all()) else part.predicted.astype(np.float64)
        pairs = (
            (recorded, everywhere),
            (recorded, pred),
            (psth, everywhere),
            (recorded, pred**2),
            (psth**2, everywhere),
            (psth, pred),
        )
        for total, (response, prediction) in zip(self.sums, pairs, strict=True):
            total[rows] += products(response, prediction)

    def pairs(self, means: tuple[FloatArray, FloatArray]) -> PairMoments:
        """Centred moments, in which the neurons' means are added again."""
        n, sum_x, sum_y, xx, yy, xy = self.sums
        count = np.maximum(n, 1.0)
        x, y = sum_x / count, sum_y / count
        parts = (
            n,
            x + means[0][:, None],
            y + means[1][:, None],
            np.maximum(xx - sum_x * x, 0.0),
            np.maximum(yy - sum_y * y, 0.0),
            xy - sum_x * y,
        )
        return PairMoments(*map(torch.from_numpy, parts))


def _scores(score: str, moments: PairMoments, signal: FloatArray) -> FloatArray:
    """The score (B + 1, N), where larger is better."""
    gap = moments.mean_x - moments.mean_y
    error = (moments.xx + moments.yy - 2 * moments.xy).clamp(min=0) + moments.count * gap * gap
    if score == "cc":
        values = moments.correlation()
    elif score == "fve":
        values = moments.explained_variance(error)
    elif score == "mse":
        values = torch.where(moments.count > 0, -error / moments.count.clamp(min=1), torch.nan)
    else:
        freedom = (moments.count - 1).clamp(min=1)
        power = torch.from_numpy(np.where(signal > 0, signal, np.nan))[:, None]
        if score == FEVE:
            values = (moments.yy - error) / freedom / power
        else:  # the correlation times a factor of the responses alone
            values = moments.correlation() * (moments.yy / freedom / power).sqrt()
    return np.ascontiguousarray(values.numpy().T)


# ---- circular shifts


def _shifted(clips: Sequence[Clip], n_null: int, seed: int) -> tuple[_Moments, FloatArray, FloatArray]:
    """Moments under shifts; per clip and neuron the independent bins (S, N); the smallest p (N,).

    A shift k of a clip pairs the response of bin t with the prediction of bin t + k, beyond the end from the
    start; each clip has its own, from 0 to T - 1, alike for all neurons.
    """
    lengths = [clip.pred.shape[1] for clip in clips]
    n_neurons = len(clips[0].pred)
    distinct = math.prod(lengths)
    if distinct - 1 <= n_null:
        draws = np.array(list(itertools.product(*map(range, lengths))), dtype=np.int64)
    else:
        rng = np.random.default_rng(seed)
        drawn = [rng.integers(length, size=n_null) for length in lengths]
        draws = np.concatenate([np.zeros((1, len(clips)), dtype=np.int64), np.stack(drawn, axis=1)])
    moments = _Moments(n_neurons, len(draws))
    independent = np.zeros((len(clips), n_neurons))
    for index, clip in enumerate(clips):
        rows = max(1, BLOCK_BYTES // (8 * 6 * max(lengths[index], len(draws))))
        for start in range(0, n_neurons, rows):
            some = slice(start, start + rows)
            part = Clip(clip.pred[some], clip.psth[some], clip.predicted[some], clip.recorded[some])
            moments.add(some, part, _at_shifts(draws[:, index]))
            independent[index, some] = _independent_bins(part)
    return moments, independent, np.full(n_neurons, 1 / len(draws))


def _at_shifts(shifts: IntArray) -> Products:
    """Sums over bins t of ``response[t] prediction[t + shift]`` (n, B + 1); a prediction of None is 1."""

    def products(response: FloatArray, prediction: FloatArray | None) -> FloatArray:
        if prediction is None:
            return np.asarray(response.sum(1, keepdims=True))
        if (response == 1.0).all():
            return np.asarray(prediction.sum(1, keepdims=True))
        spectrum = fft.rfft(response).conj() * fft.rfft(prediction)
        return np.asarray(fft.irfft(spectrum, response.shape[1])[:, shifts])

    return products


def _independent_bins(clip: Clip) -> FloatArray:
    """Bins over the correlation time, (n,): the sum over lags of the product of both autocorrelations."""
    length = clip.pred.shape[1]
    power_x, power_y = (np.abs(fft.rfft(part)) ** 2 for part in (clip.pred, clip.psth))
    weight = np.full(power_x.shape[1], 2.0)
    weight[0] = 0.0  # without the means
    if length % 2 == 0:
        weight[-1] = 1.0
    both = (weight * power_x * power_y).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bins = (weight * power_x).sum(1) * (weight * power_y).sum(1) / both
    return np.where(both > 0, np.minimum(bins, length), 0.0)


def _too_few_bins(independent: FloatArray, heard: BoolArray) -> list[str]:
    """Why shifts cannot be trusted, per neuron, by its own clips and by the median neuron's.

    The median keeps out neurons whose slow noise looks fast by chance: just those are rejected too often.
    """
    total = np.where(heard, independent, 0.0).sum(0)
    each = total / np.maximum(heard.sum(0), 1)
    varies = each > 0
    if varies.any():
        each = np.where(varies, np.minimum(each, np.median(each[varies])), each)
    texts = []
    for per_clip, all_clips in zip(each, total, strict=True):
        if per_clip < MIN_INDEPENDENT_PER_CLIP:
            texts.append(
                f"clips of {per_clip:.0f} correlation times, shifts need {MIN_INDEPENDENT_PER_CLIP:g}: "
                "nothing can be concluded; method='permute-clips' does not depend on them"
            )
        elif all_clips < MIN_INDEPENDENT:
            texts.append(
                f"{all_clips:.0f} independent bins, shifts need {MIN_INDEPENDENT:g}: nothing can be concluded"
            )
        else:
            texts.append("")
    return texts


# ---- permuted clips


def _permuted(
    clips: Sequence[Clip], heard: BoolArray, n_null: int, seed: int
) -> tuple[_Moments, FloatArray, float]:
    """Moments under permutations; the smallest p of each neuron; the share of bins that were cut off.

    Each neuron's clips are exchanged among those that it heard, all cut to the shortest of them.
    """
    n_clips, n_neurons = heard.shape
    patterns, group = np.unique(heard, axis=1, return_inverse=True)
    few = math.factorial(min(n_clips, 12)) - 1 <= n_null
    if few and patterns.shape[1] == 1 and heard.all():
        orders = np.array(list(itertools.permutations(range(n_clips))), dtype=np.float64)
    else:
        orders = np.random.default_rng(seed).random((n_null, n_clips)).argsort(1).astype(np.float64)
        orders = np.concatenate([np.arange(n_clips, dtype=np.float64)[None], orders])
    moments = _Moments(n_neurons, len(orders))
    smallest, cut, whole = np.ones(n_neurons), 0, 0
    for number, pattern in enumerate(patterns.T):
        neurons, chosen = np.flatnonzero(group.reshape(-1) == number), np.flatnonzero(pattern).tolist()
        if not chosen:
            continue
        length = min(clips[clip].pred.shape[1] for clip in chosen)
        bins = sum(clips[clip].pred.shape[1] for clip in chosen)
        cut, whole = cut + neurons.size * (bins - length * len(chosen)), whole + neurons.size * bins
        exchanged = orders[:, chosen].argsort(1).argsort(1)
        smallest[neurons] = max(1 / len(orders), 1 / math.factorial(min(len(chosen), 20)))
        size = 8 * (5 * len(chosen) * length + 3 * len(chosen) ** 2 + 4 * len(orders))
        rows = max(1, BLOCK_BYTES // size)
        for start in range(0, neurons.size, rows):
            _add_permuted(
                moments, neurons[start : start + rows], [clips[clip] for clip in chosen], length, exchanged
            )
    return moments, smallest, cut / max(1, whole)


def _add_permuted(
    moments: _Moments, neurons: IntArray, clips: Sequence[Clip], length: int, orders: IntArray
) -> None:
    """Add some neurons' clips, each beside the prediction of another: ``orders`` (B + 1, S)."""

    def products(response: FloatArray, prediction: FloatArray | None) -> FloatArray:
        if prediction is None:
            return np.asarray(response.sum((1, 2))[:, None])
        of_pairs = response @ prediction.transpose(0, 2, 1)  # (n, S responses, S predictions)
        found = np.zeros((len(neurons), len(orders)))
        for clip in range(len(clips)):
            found += of_pairs[:, clip, orders[:, clip]]
        return found

    def stacked(fields: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.stack([field[neurons, :length] for field in fields], axis=1)

    pred, psth, predicted, recorded = (stacked(fields) for fields in zip(*clips, strict=True))
    moments.add(neurons, Clip(pred, psth, predicted, recorded), products)  # fields (n, S, T)


# ---- the test


@checked
@dataclass(frozen=True)
class NullTable(ResultTable):
    """Scores beside their null distribution, of the population's mean and of each neuron.

    Attributes
    ----------
    neurons : tuple of str
        Names of the N neurons.
    observed : array (N,)
        The score; with permuted clips that on the clips as they were cut.
    p, q : array (N,)
        P-value, and that adjusted over neurons by `fdr`; NaN with a reason where there is none.
    smallest_p : array (N,)
        One over the number of null scores and the observed one: no p is smaller. With
        ``cross_validated=True`` the null is wider, and what a perfect model reaches may be larger.
    reasons : tuple of str
        Per neuron why there is no p.
    null : array (B, N)
        Scores under the null hypothesis.
    mean_observed, mean_p, mean_smallest_p : float
        The same for the mean over neurons.
    mean_null : array (B,)
        Its null distribution.
    facts : dict
        Score, method, number of null scores, seed, number of neurons and those with q <= 0.05, notes.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.array([0.5])
    >>> neuron = (one, one / 10, one / 10, one / 50, ("",), np.zeros((99, 1)))
    >>> result = NullTable(("a",), *neuron, 0.5, 0.05, 0.01, np.zeros(99))
    >>> result.table()[1]["name"], result.table()[1]["p"]
    ('a', 0.05)
    """

    neurons: tuple[str, ...]
    observed: FloatArray
    p: FloatArray
    q: FloatArray
    smallest_p: FloatArray
    reasons: tuple[str, ...]
    null: FloatArray
    mean_observed: float
    mean_p: float
    mean_smallest_p: float
    mean_null: FloatArray
    facts: dict[str, Any] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Return one row for the population's mean, then one per neuron."""
        with np.errstate(invalid="ignore"):
            middle = _mean_of(self.null, axis=0)
        keys = ("level", "name", "score", "null_mean", "p", "q", "smallest_p", "reason")
        reason = "" if not np.isnan(self.mean_p) else self.facts.get("mean_reason", "")
        population = (
            *("population", "mean", self.mean_observed, float(_mean_of(self.mean_null[:, None], axis=0)[0])),
            *(self.mean_p, self.mean_p, self.mean_smallest_p, reason),
        )
        rows = [
            ("neuron", name, *map(float, numbers), reason)
            for name, reason, *numbers in zip(
                self.neurons,
                self.reasons,
                *(self.observed, middle, self.p, self.q, self.smallest_p),
                strict=True,
            )
        ]
        return [dict(zip(keys, row, strict=True)) for row in (population, *rows)]

    def __str__(self) -> str:
        row = self.table()[0]
        shown = text_table([row], ("name", "score", "null_mean", "p", "smallest_p", "reason"))
        tested = int((~np.isnan(self.p)).sum())
        count = int((self.q <= ALPHA).sum())
        line = f"{count} of {tested} neurons above chance at a false discovery rate of {ALPHA:g}"
        return "\n".join([*shown, line, *self._notes()])


def _mean_of(values: FloatArray, axis: int) -> FloatArray:
    """Mean without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis)
    return np.where(known.any(axis), total / np.maximum(known.sum(axis), 1), np.nan)


@checked
def score_null(
    predictions: Sequence[Tensor],
    ds: DatasetLike,
    *,
    method: str = "shift",
    score: str = "cc_norm",
    n_null: int = N_NULL,
    cross_validated: bool = False,
    correction: str = "bh",
    warmup_ms: float = 0.0,
    seed: int = 0,
) -> NullTable:
    """Test of scores against chance, per neuron and for their mean, on predictions that are there.

    One-sided: is the score larger (``mse``: smaller) than predictions without relation would give?

    "shift": within each clip the responses are shifted in a circle against the predictions, by 0 to T - 1
    bins (the clips by different shifts, all neurons by the same). Exchangeable are the shifts of a response
    that has no relation to the prediction and is stationary within clips, whatever its autocorrelation as
    long as clips are long beside it (20 correlation times, else there is no p). Rejected is "no relation in
    time", also where model and neuron share only the response to the onset. Clip means are not moved: their
    agreement is no evidence. Short shifts are drawn like all others: without them the test rejects too often.

    "permute-clips": the predictions of clips are exchanged. Exchangeable are clips of one kind whose sounds
    and responses are independent of each other; autocorrelation and onsets do not matter. Rejected is "the
    prediction fits another clip as well". Clips are cut to the shortest. S clips have S! orders: 3 clips
    cannot give p < 1/6, so that 4 are needed.

    Both are for fits that have seen none of these responses. In a cross-validation a fit tested on one clip
    was trained on others, which are tested by fits that were trained on it: the scores of noise then vary
    more than the null shows, up to the square root of 2 times. ``cross_validated=True`` widens it by that.

    Parameters
    ----------
    predictions : sequence of Tensor, shape (N, T)
        One per clip of ``ds``, as ``model.predict(ds)`` returns; NaN where nothing was predicted.
    ds : DatasetLike
        The recording.
    method : {"shift", "permute-clips"}
        How predictions are put beside responses to which they do not belong.
    score : {"cc_norm", "cc", "fve", "feve", "mse"}
        What is tested. Per neuron "cc_norm" is "cc" times a number of the responses alone and has the same p;
        it lacks neurons without signal power or with one repeat, for which "cc" is.
    n_null : int
        Random shifts or orders; all of them where there are no more.
    cross_validated : bool
        Whether the predictions are of several fits, each trained on clips that another one predicts.
    correction : {"bh", "by"}
        Of p over neurons, see `fdr`.
    warmup_ms : float
        Onset of every clip that is left out.
    seed : int
        Of the draws.

    Returns
    -------
    NullTable
        With p (``(1 + b) / (1 + n_null)``, never 0), adjusted ``q``, the null scores, and ``.table()``,
        ``str()``, ``.to_csv()``, ``.to_json()``.

    Raises
    ------
    ValueError
        When the predictions are of another number of clips, or a name is unknown.
    TypeError
        When a prediction is no floating-point tensor (N, T).

    References
    ----------
    Phipson and Smyth (2010), 10.2202/1544-6115.1585. Harris (2020), Nonsense correlations in neuroscience,
    10.1101/2020.11.29.402719.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=6, n_repeats=4)
    >>> result = score_null(list(ds.true_rates), ds, score="cc", n_null=99)
    >>> result.mean_p, result.p.round(2).tolist()
    (0.01, [0.01, 0.01, 0.01])
    >>> elsewhere = list(ds.true_rates)[::-1]
    >>> score_null(elsewhere, ds, method="permute-clips", score="cc").mean_p > 0.05
    True
    """
    check_choice("method", method, METHODS)
    check_choice("score", score, SCORES)
    check_choice("correction", correction, CORRECTIONS)
    check_positive_int("n_null", n_null)
    predicted = PredictedPart(ds, {"predictions": predictions})
    kept = predicted.models["predictions"]
    scored = ClipScores(kept, predicted, warmup_ms=warmup_ms)
    corrected = score in ("cc_norm", FEVE)
    means = _means(scored, corrected)
    clips = _read(kept, predicted, onset_bins(ds, warmup_ms), 2 if corrected else 1, means)
    heard = np.stack([clip.recorded.any(1) for clip in clips])
    signal = scored.statistics.powers.powers("concat")[0].cpu().double().numpy()
    notes = list(predicted.notes)
    if method == "shift":
        moments, independent, smallest = _shifted(clips, n_null, seed)
        refused = _too_few_bins(independent, heard)
    else:
        moments, smallest, cut = _permuted(clips, heard, n_null, seed)
        refused = [
            f"{count} clips: the smallest p is {least:.2g}, nothing can be concluded" if least > ALPHA else ""
            for count, least in zip(heard.sum(0), smallest, strict=True)
        ]
        if cut > 0:
            notes.append(f"clips were cut to the shortest: {cut:.0%} of the bins are left out")
    values = _scores(score, moments.pairs(means), signal)
    values[:, scored.heard(score).sum(0) == 0] = np.nan
    observed, null = values[0], values[1:]
    if cross_validated:
        null = widened(null)
    p = add_one(observed, null)
    reasons = [
        first or second for first, second in zip(scored.reasons(score, observed), refused, strict=True)
    ]
    tested = np.array([not reason for reason in reasons])
    p[~tested] = np.nan
    mean_null = _mean_of(null[:, tested], axis=1) if tested.any() else np.full(len(null), np.nan)
    mean_observed = float(observed[tested].mean()) if tested.any() else math.nan
    mean_p = float(add_one(np.array([mean_observed]), mean_null[:, None])[0])
    sign = -1.0 if score == "mse" else 1.0
    facts = {
        "score": score,
        "method": method,
        "n_null": len(null),
        "n_clips": scored.n_clips,
        "cross_validated": cross_validated,
        "n_neurons": int(tested.sum()),
        "mean_reason": next((reason for reason in reasons if reason), "") if not tested.any() else "",
        "correction": correction,
        "warmup_ms": warmup_ms,
        "seed": seed,
        "notes": [*notes, *_notes_on_mean(tested)],
    }
    return NullTable(
        neuron_names(ds.nrn_meta),
        sign * observed,
        p,
        fdr(p, correction),
        smallest,
        tuple(reasons),
        sign * null,
        sign * mean_observed,
        mean_p,
        1 / (1 + len(null)) if not tested.any() else float(smallest[tested].min()),
        sign * mean_null,
        facts,
    )


def _notes_on_mean(tested: BoolArray) -> list[str]:
    count = int(tested.sum())
    if count in (0, tested.size):
        return []
    return [f"the mean is that of {count} of {tested.size} neurons; .table() has a reason for the others"]


def widened(null: FloatArray) -> FloatArray:
    """Null scores (B, N) of cross-validated predictions: `FOLDS_SHARE` times as far from their mean."""
    middle = _mean_of(null, axis=0)
    return middle + FOLDS_SHARE * (null - middle)


def _means(scored: ClipScores, corrected: bool) -> tuple[FloatArray, FloatArray]:
    """Means of prediction and PSTH of each neuron, about which sums lose no digits."""
    pooled = scored.statistics.pooled
    mean_x, mean_y = (np.nan_to_num(part.cpu().double().numpy()) for part in (pooled.mean_x, pooled.mean_y))
    return mean_x, mean_y
