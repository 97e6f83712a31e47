"""Scores of any weighted set of clips, from one pass over predictions and responses.

Every score is a function of sums over bins, and those add up over clips. `ClipSums` holds them clip by clip;
leaving a clip out, or drawing clips with replacement, is a matrix product with the clips' weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deepSTRF._validation import FloatArray, check_choice, check_non_negative
from deepSTRF.metrics import ScoreTracker
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.validate import check_prediction

__all__ = ["CENTRINGS", "CORRECTED", "SCORES", "ClipSums", "Sums", "check_predictions", "score_of"]

#: Scores that sums over clips give; of ``mse`` lower is better.
SCORES = ("cc_norm", "cc", "fve", "feve", "mse")
#: Scores that divide by the signal power.
CORRECTED = ("cc_norm", "feve")
CENTRINGS = ("concat", "clip")
#: Below this many roundings of its mean a standard deviation is that of a constant; and the share of the
#: total power below which a signal power is rounding error. As in the one-shot metrics.
ROUNDINGS, NEGLIGIBLE = 64.0 * float(np.finfo(np.float64).eps), 1e-12


def check_predictions(predictions: Sequence[Tensor], dataset: DatasetLike, name: str = "predictions") -> None:
    """Raise unless there is one (N, T) tensor per clip of the dataset."""
    if len(predictions) != len(dataset):
        raise ValueError(
            f"{name} holds {len(predictions)} clips, the dataset {len(dataset)}; it is the list that "
            "model.predict(dataset) or cross_validate(...).predictions returns for the same view"
        )
    for clip, rates in enumerate(predictions):
        if not isinstance(rates, Tensor) or rates.ndim != 2 or not rates.is_floating_point():
            found = f"{tuple(rates.shape)} {rates.dtype}" if isinstance(rates, Tensor) else type(rates).__name__
            raise TypeError(f"{name}[{clip}] is a floating-point tensor (N, T), got {found}")


def onset_bins(dataset: DatasetLike, warmup_ms: float) -> int:
    """Bins of the onset of every clip that are left out."""
    return math.ceil(check_non_negative("warmup_ms", warmup_ms) / dataset.dt - 1e-9)


def without_onset(dataset: DatasetLike, clip: int, rates: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """Prediction (N, T) and responses (N, R, T) of a clip without its first bins."""
    responses = dataset.response_block(clip)
    neurons, _, bins = responses.shape
    if bins <= skip:
        raise ValueError(
            f"warmup_ms covers {skip} bins, but clip {clip} has only {bins}: pass a shorter warmup_ms, or leave "
            "the clip out with dataset.select"
        )
    check_prediction(rates[None, :, None], batch=1, neurons=neurons, bins=bins)
    return rates.detach().cpu()[:, skip:], responses[..., skip:]


@dataclass(frozen=True)
class Sums:
    """Sums over bins of prediction x and PSTH y, both about fixed anchors; fields of one shape.

    ``n`` bins; ``x``, ``y``, ``xx``, ``yy``, ``xy`` the sums.
    """

    n: FloatArray
    x: FloatArray
    y: FloatArray
    xx: FloatArray
    yy: FloatArray
    xy: FloatArray

    def weighted(self, weights: FloatArray) -> Sums:
        """Sums (B, N) over clips (S, N) that count ``weights`` (B, S) times."""
        return Sums(*(weights @ field for field in vars(self).values()))

    def within(self) -> Sums:
        """The same about each clip's own means, so that every clip weighs as its bins (centring "clip")."""
        bins = np.maximum(self.n, 1.0)
        weight = self.n / np.maximum(self.n - 1.0, 1.0)
        none = np.zeros_like(self.n)
        squares = (self.xx - self.x**2 / bins, self.yy - self.y**2 / bins, self.xy - self.x * self.y / bins)
        return Sums(self.n, none, none, *(weight * part for part in squares))


def score_of(
    name: str, sums: Sums, anchors: tuple[FloatArray, FloatArray], signal: FloatArray | None, centring: str
) -> FloatArray:
    """The score from pooled sums; ``anchors`` of x and y (N,), ``signal`` the signal power; NaN where undefined.

    cc = cov / sqrt(var_x var_y)        cc_norm = cov / sqrt(var_x SP)
    fve = 1 - error / var_y             feve = (var_y - error) / SP = (2 cov - var_x - gap**2) / SP
    """
    n, bins = sums.n, np.maximum(sums.n, 1.0)
    mean_x, mean_y = sums.x / bins, sums.y / bins
    xx, yy, xy = sums.xx - sums.x * mean_x, sums.yy - sums.y * mean_y, sums.xy - sums.x * mean_y
    gap = np.zeros_like(n) if centring == "clip" else (anchors[0] - anchors[1]) + (mean_x - mean_y)
    freedom = bins if centring == "clip" else np.maximum(n - 1.0, 1.0)

    def varies(square: FloatArray, mean: FloatArray) -> FloatArray:
        return np.asarray((n > 1) & (square > bins * (ROUNDINGS * np.abs(mean)) ** 2))

    flat_x, flat_y = ~varies(xx, anchors[0] + mean_x), ~varies(yy, anchors[1] + mean_y)
    with np.errstate(divide="ignore", invalid="ignore"):
        if name == "mse":
            return np.where(n > 0, (xx + yy - 2 * xy) / bins + gap**2, np.nan)
        if name == "cc":
            # of the roots: the product of two tiny sums may underflow
            value = np.clip(xy / (np.sqrt(xx) * np.sqrt(yy)), -1.0, 1.0)
            return np.where(flat_x | flat_y, np.nan, value)
        explained = 2 * xy - xx - n * gap**2
        if name == "fve":
            return np.where(flat_y, np.nan, explained / yy)
        if signal is None:
            raise ValueError(f"{name} needs a signal power")
        if name == "cc_norm":
            return np.where(flat_x, np.nan, xy / freedom / (np.sqrt(xx / freedom) * np.sqrt(signal)))
        return np.where(n > 1, explained / freedom / signal, np.nan)


class ClipSums:
    """Per-clip sums of one model's predictions against a recording of S clips and N neurons.

    ``raw`` over all bins that count, ``paired`` over those with two repeats (weighed as the signal power is).
    """

    def __init__(self, predictions: Sequence[Tensor], dataset: DatasetLike, warmup_ms: float = 0.0) -> None:
        check_predictions(predictions, dataset)
        skip = onset_bins(dataset, warmup_ms)
        tracker = ScoreTracker(max_bytes=0)
        for clip, rates in enumerate(predictions):
            pred, responses = without_onset(dataset, clip, rates, skip)
            tracker.prepare(clip, responses)
            tracker.update([clip], pred[None, :, None])
        if not len(dataset):
            raise ValueError("the dataset holds no clip: nothing can be scored")
        statistics = tracker.statistics()
        raw = {name: value.double().cpu().numpy() for name, value in vars(statistics.prediction.raw).items()}
        pair = statistics.prediction
        clips = {name: value.double().cpu().numpy() for name, value in vars(statistics.clips).items()}
        self.n_clips, self.n_neurons = raw["count"].shape
        #: Which clips hold data of which neurons, (S, N).
        self.heard = raw["count"] > 0
        self.anchors = (_anchor(raw["count"], raw["mean_x"]), _anchor(raw["count"], raw["mean_y"]))
        self.raw = _sums(
            raw["count"], raw["mean_x"], raw["mean_y"], self.anchors, (raw["xx"], raw["yy"], raw["xy"])
        )
        bins, freedom = clips["n_bins"], np.maximum(clips["n_bins"] - 1.0, 0.0)
        mean, variance, covariance = (
            value.double().cpu().numpy() for value in (pair.pair_mean, pair.variance, pair.covariance)
        )
        psth = freedom * (clips["signal"] + clips["noise"] / np.maximum(clips["n_repeats"], 1.0))
        self.paired = _sums(
            bins, mean, clips["mean"], self.anchors, (freedom * variance, psth, freedom * covariance)
        )
        self._clips = clips
        self._gap = clips["mean"] - self.anchors[1]  # of the clip's mean from the anchor

    @property
    def single_repeat(self) -> FloatArray:
        """Neurons without a bin that was recorded twice, bool (N,)."""
        return np.asarray(self.paired.n.sum(0) == 0)

    def signal_power(self, weights: FloatArray, centring: str = "concat") -> FloatArray:
        """Signal power (B, N) of clips that count ``weights`` (B, S) times; NaN unless positive."""
        clips = self._clips
        bins = clips["n_bins"]
        if centring == "clip":
            weight = np.where(bins > 1, bins, 0.0)
            total = weights @ weight
            signal, noise = (weights @ (weight * clips[name]) for name in ("signal", "noise"))
            return _positive(signal, noise, total)
        freedom = np.maximum(bins - 1.0, 0.0)
        total = weights @ bins
        size = np.maximum(total, 1.0)
        between = weights @ (bins * self._gap**2) - (weights @ (bins * self._gap)) ** 2 / size
        drift = clips["drift"]
        shared = np.zeros_like(total)
        for repeat in range(drift.shape[-1]):  # one repeat at a time: (B, N, R) may not fit the memory
            shared += (weights @ (bins * drift[..., repeat])) ** 2
        spread = weights @ (bins * (drift**2).sum(-1)) - shared / size
        signal = weights @ (freedom * clips["signal"]) + between - spread
        return _positive(signal, weights @ (freedom * clips["noise"]), np.maximum(total - 1.0, 0.0))

    def score(self, name: str, weights: FloatArray, centring: str = "concat") -> FloatArray:
        """One score (B, N) of each set of clips that count ``weights`` (B, S) times."""
        check_choice("score", name, SCORES)
        check_choice("centring", centring, CENTRINGS)
        corrected = name in CORRECTED
        sums = self.paired if corrected else self.raw
        if centring == "clip":
            sums = sums.within()
        signal = self.signal_power(weights, centring) if corrected else None
        return score_of(name, sums.weighted(weights), self.anchors, signal, centring)

    def reasons(self, values: FloatArray, name: str) -> list[str]:
        """Why the score (N,) of a neuron on all clips is missing; "" where it is there."""
        whole = np.ones((1, self.n_clips))
        flat_y = np.isnan(self.score("fve", whole)[0])
        flat_x = np.isnan(self.score("cc", whole)[0]) & ~flat_y
        broken = ~np.isfinite(self.raw.x.sum(0))
        texts = []
        for neuron in range(self.n_neurons):
            if not np.isnan(values[neuron]):
                texts.append("")
            elif not self.heard[:, neuron].any():
                texts.append("no data in any clip")
            elif broken[neuron]:
                texts.append("a prediction is not finite in a bin that counts")
            elif flat_y[neuron]:
                texts.append("silent: the response never varies")
            elif name in CORRECTED and self.single_repeat[neuron]:
                texts.append(f"one repeat: {name} needs two, score='cc' does not")
            elif flat_x[neuron]:
                texts.append("the prediction never varies")
            else:
                texts.append("signal power is not positive: no response that repeats was found")
        return texts


def _anchor(count: FloatArray, mean: FloatArray) -> FloatArray:
    """Mean over all bins of a neuron, (N,), about which sums lose no digits."""
    return np.where(count > 0, count * mean, 0.0).sum(0) / np.maximum(count.sum(0), 1.0)


def _sums(
    n: FloatArray,
    mean_x: FloatArray,
    mean_y: FloatArray,
    anchors: tuple[FloatArray, FloatArray],
    centred: tuple[FloatArray, FloatArray, FloatArray],
) -> Sums:
    """Sums about the anchors from clip means and centred sums of squares (xx, yy, xy)."""
    x, y = np.where(n > 0, mean_x - anchors[0], 0.0), np.where(n > 0, mean_y - anchors[1], 0.0)
    xx, yy, xy = centred
    return Sums(n, n * x, n * y, xx + n * x * x, yy + n * y * y, xy + n * x * y)


def _positive(signal: FloatArray, noise: FloatArray, total: FloatArray) -> FloatArray:
    """``signal / total`` where it is positive beyond rounding, else NaN."""
    kept = (total > 0) & (signal > NEGLIGIBLE * (np.abs(signal) + noise))
    return np.where(kept, signal / np.where(total > 0, total, 1.0), np.nan)
