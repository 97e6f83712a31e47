"""Scores of predictions on any weighted set of clips: what intervals and tests over clips are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepSTRF._validation import FloatArray, check_choice, check_non_negative
from deepSTRF.metrics import ScoreStatistics
from deepSTRF.metrics.scores import metric_named
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import METRICS
from deepSTRF.training.evaluation import clip_statistics

__all__ = [
    "CENTRINGS",
    "FEVE",
    "ClipScores",
    "PredictedPart",
    "Statistic",
    "feve_of",
    "onset_bins",
    "score_names",
]

BoolArray = npt.NDArray[np.bool_]
#: Scores (B, K) of resamples in which the S clips count ``weights`` (B, S) times.
Statistic = Callable[[FloatArray], FloatArray]
CENTRINGS = ("concat", "clip", "published")
#: Share of the signal power that is explained, `deepSTRF.metrics.feve`; no column of score tables.
FEVE = "feve"
#: Scores that divide by the signal power: two repeats are needed.
CORRECTED = ("cc_norm", "cc_norm_published", FEVE)
#: Columns of score tables that do not depend on predictions.
RELIABILITY = ("ccmax", "ccmax_low", "ccmax_high", "snr")
#: Resamples are scored so many at a time: about 20 arrays of (rows, neurons) are held at once.
BLOCK_VALUES = 400_000


def score_names() -> tuple[str, ...]:
    """Scores that intervals and comparisons may be asked for: those that predictions have a part in."""
    return (*(name for name in METRICS if name not in RELIABILITY), FEVE)


def check_clips(predictions: Sequence[Tensor], dataset: DatasetLike, name: str = "predictions") -> None:
    """Raise unless there is one floating-point tensor (N, T) per clip of the dataset."""
    if not isinstance(predictions, Sequence):
        raise TypeError(
            f"{name} must be a list of tensors (N, T), one per clip, as model.predict(dataset) returns and "
            f"cross_validate(...).predictions holds; got {type(predictions).__name__}"
        )
    if len(predictions) != len(dataset):
        raise ValueError(
            f"{name} holds {len(predictions)} clips, the dataset {len(dataset)}; it is the list that "
            "model.predict(dataset) returns for the same view"
        )
    if not len(dataset):
        raise ValueError("the dataset holds no clip: nothing can be scored")
    for clip, rates in enumerate(predictions):
        if not isinstance(rates, Tensor) or rates.ndim != 2 or not rates.is_floating_point():
            found = (
                f"{tuple(rates.shape)} of {rates.dtype}"
                if isinstance(rates, Tensor)
                else type(rates).__name__
            )
            raise TypeError(f"{name}[{clip}] must be a floating-point tensor (N, T), got {found}")


class PredictedPart:
    """A dataset without clips and bins that some model did not predict: failed folds, gaps of blocks.

    Not predicted is what is NaN for all neurons. ``models`` holds the predictions of the clips that are left,
    by length and sum of responses, so that random draws do not depend on their order in the dataset;
    ``notes`` says what is missing.
    """

    def __init__(self, dataset: DatasetLike, models: Mapping[str, Sequence[Tensor]]) -> None:
        for name, predictions in models.items():
            check_clips(predictions, dataset, name)
        self._dataset, self.dt, self.N_neurons = dataset, dataset.dt, dataset.N_neurons
        found: dict[int, Tensor] = {}
        n_hidden = n_bins = 0
        for clip in range(len(dataset)):
            hidden = [torch.isnan(rates[clip]).all(0).cpu() for rates in models.values()]
            if any(one.shape != hidden[0].shape for one in hidden):
                lengths = ", ".join(f"{name} {one.numel()}" for name, one in zip(models, hidden, strict=True))
                raise ValueError(f"clip {clip} has predictions of different numbers of bins: {lengths}")
            either = torch.stack(hidden).any(0)
            n_bins += either.numel()
            n_hidden += int(either.sum())
            if not bool(either.all()):
                found[clip] = either
        self._clips = sorted(found, key=self._key)
        self._hidden = [found[clip] for clip in self._clips]
        if not self._clips:
            raise ValueError(f"{next(iter(models))} holds NaN only: no clip was predicted")
        self.models = {name: [rates[clip] for clip in self._clips] for name, rates in models.items()}
        n_gone = len(dataset) - len(self._clips)
        self.notes = [
            f"{n_gone} of {len(dataset)} clips ({n_hidden / n_bins:.0%} of the bins) were not predicted "
            "(NaN): left out"
        ] * (n_hidden > 0)

    def __len__(self) -> int:
        return len(self._clips)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def _key(self, clip: int) -> tuple[int, float]:
        block = self._dataset.response_block(clip)
        return block.shape[-1], float(block.nansum(dtype=torch.float64))

    def response_block(self, clip: int) -> Tensor:
        """(N, R, T), NaN also where nothing was predicted."""
        block, hidden = self._dataset.response_block(self._clips[clip]), self._hidden[clip]
        if not bool(hidden.any()) or hidden.numel() != block.shape[-1]:
            return block
        return torch.where(hidden, torch.nan, block.double())


def onset_bins(dataset: DatasetLike, warmup_ms: float) -> int:
    """Bins at the onset of every clip that ``warmup_ms`` leaves out."""
    return math.ceil(check_non_negative("warmup_ms", warmup_ms) / dataset.dt - 1e-9)


def feve_of(statistics: ScoreStatistics) -> Tensor:
    """Explained share of the signal power, ``(2 cov - var - gap**2) / SP``; NaN without signal power.

    Variance of the PSTH less the error, over the bins and pairs of repeats of the signal power SP; ``gap`` is
    that between the means of prediction and PSTH.
    """
    moments = statistics.repeated()
    signal, _ = statistics.powers.powers("concat")
    gap = moments.mean_x - moments.mean_y
    explained = 2 * moments.xy - moments.xx - moments.count * gap * gap
    value = explained / (moments.count - 1).clamp(min=1) / signal
    return torch.where(signal > 0, value, torch.full_like(value, torch.nan))


class ClipScores:
    """The scores of one model on S clips of N neurons, from one pass over predictions and responses."""

    def __init__(
        self,
        predictions: Sequence[Tensor],
        dataset: PredictedPart,
        *,
        centring: str = "concat",
        warmup_ms: float = 0.0,
    ) -> None:
        check_choice("centring", centring, CENTRINGS)
        on_cpu = [rates.detach().cpu() for rates in predictions]
        self.statistics = clip_statistics(
            on_cpu, cast(DatasetLike, dataset), centring=centring, warmup_ms=warmup_ms
        )
        self.n_clips, self.n_neurons = self.statistics.prediction.raw.count.shape

    def heard(self, score: str) -> BoolArray:
        """Which clips have a part in a neuron's score, bool (S, N)."""
        bins = self.statistics.clips.n_bins if score in CORRECTED else self.statistics.prediction.raw.count
        return np.asarray(bins.cpu().numpy() > 0)

    def values(self, score: str, weights: FloatArray) -> FloatArray:
        """The score (B, N) of B resamples of the clips; NaN where undefined."""
        check_choice("score", score, score_names())
        rows = max(1, BLOCK_VALUES // max(1, self.n_neurons))
        blocks = [
            self._block(score, torch.from_numpy(np.ascontiguousarray(weights[start : start + rows])))
            for start in range(0, len(weights), rows)
        ]
        return np.concatenate(blocks)

    def _block(self, score: str, weights: Tensor) -> FloatArray:
        resampled = self.statistics.resampled(weights)
        if score == FEVE:
            return np.asarray(feve_of(resampled).cpu().double())
        values: Tensor = metric_named(score).compute(resampled)
        if score in CORRECTED:  # a table of scores shows the raw correlation there
            values = torch.where(resampled.single_repeat, torch.nan, values)
        return np.asarray(values.cpu().double())

    def of_all(self, score: str) -> FloatArray:
        """The score (N,) on all clips."""
        return np.asarray(self.values(score, np.ones((1, self.n_clips)))[0])

    def statistic(self, score: str) -> Statistic:
        """The score as a function of the clips' weights."""
        return lambda weights: self.values(score, weights)

    def reasons(self, score: str, values: FloatArray) -> list[str]:
        """Why the score of a neuron on all clips is missing, "" where it is there."""
        pooled = replace(self.statistics, weights=None).pooled
        silent = np.asarray(torch.isnan(pooled.explained_variance(torch.zeros_like(pooled.xx))).cpu())
        finite = np.asarray(torch.isfinite(pooled.mean_x + pooled.xx).cpu())
        flat = np.asarray(torch.isnan(pooled.correlation()).cpu())
        once = np.asarray(self.statistics.single_repeat.cpu())
        data = np.asarray(pooled.count.cpu() > 0)
        texts = []
        for neuron, value in enumerate(values):
            if not np.isnan(value):
                texts.append("")
            elif not data[neuron]:
                texts.append("no data in any clip")
            elif not finite[neuron]:
                texts.append("the prediction is not finite in a bin that counts")
            elif silent[neuron]:
                texts.append("silent: the response never varies")
            elif score in CORRECTED and once[neuron]:
                texts.append(f"recorded once: {score} needs two repeats, 'cc' does not")
            elif flat[neuron]:
                texts.append("the prediction never varies")
            else:
                texts.append("the signal power is not positive: no response that repeats was found")
        return texts
