"""How NS1 is divided for training, validation and test, and how the scores of a division are put together.

`PROTOCOLS` are for records. `choice_splits` are for choices: five folds over clips 0-16, of which only the validation
scores are looked at, so that the test clips 17-19 of 14/3/3 choose nothing.

Of the 20 clips, 0-11 are one source of the recording (0 and 19 water, 3 a ferret, 6 insects, 8-11 speech) and 12-19
another. In every protocol 14 clips train, so that differences between protocols are differences of the test clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from deepSTRF.datasets.audio.ns1 import NS1_RAHMAN_TEST_INDICES
from deepSTRF.metrics import ScoreTracker

N_CLIPS, N_FOLDS = 20, 5
#: Clips 0-16 in five folds; each validates once, the others train.
CHOICE_FOLDS = ((14, 15, 16), (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10), (3, 7, 11))
#: Never looked at while choosing. A run folder has to have test clips; their scores are not read.
KEPT_OUT = (17, 18, 19)
CONFIDENCE = 0.95


def index_text(train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> str:
    """A split of given clips as `parse_split` reads it."""
    return "/".join(",".join(map(str, part)) for part in (train, val, test))


def _rest(clips: Sequence[int], *taken: Sequence[int]) -> list[int]:
    return [clip for clip in clips if all(clip not in part for part in taken)]


def choice_splits() -> list[str]:
    """Splits of the folds that choices are made on."""
    clips = sorted(clip for fold in CHOICE_FOLDS for clip in fold)
    return [index_text(_rest(clips, fold), fold, KEPT_OUT) for fold in CHOICE_FOLDS]


def fold_splits() -> list[str]:
    """Splits of the five-fold protocol: clip i is tested in fold ``i % 5``, two clips of the next fold validate.

    Each fold so tests two or three clips of either source and one of speech (none in fold 2, for there are four).
    """
    splits = []
    for fold in range(N_FOLDS):
        test = range(fold, N_CLIPS, N_FOLDS)
        following = (fold + 1) % N_FOLDS
        val = (following + N_FOLDS, following + 2 * N_FOLDS)
        splits.append(index_text(_rest(range(N_CLIPS), test, val), val, test))
    return splits


#: Clips that the published 16/4 splits hold out.
HELD_OUT = tuple(NS1_RAHMAN_TEST_INDICES)
#: Of the other 16: one of speech, and one of the second source.
HELD_OUT_VALIDATION = (10, 15)
#: Name of a protocol -> its splits.
PROTOCOLS: dict[str, list[str]] = {
    "14/3/3": ["14/3/3"],
    "16/4": [index_text(_rest(range(N_CLIPS), HELD_OUT, HELD_OUT_VALIDATION), HELD_OUT_VALIDATION, HELD_OUT)],
    "five-fold": fold_splits(),
}


def published_units(metadata: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the 73 units of the literature: single units (or perhaps) of known depth.

    The rule that is often quoted, a noise ratio below 40, is met by all 119.
    """
    return [
        index
        for index, unit in enumerate(metadata)
        if unit["single_t"] in ("Yes", "Maybe") and unit["depth_um"] >= 0
    ]


# ---- Scores


@dataclass(frozen=True)
class Score:
    """Noise-corrected correlation of one or more seeds on the test clips of a protocol.

    Attributes
    ----------
    per_seed : list of float
        Mean over neurons.
    median : float
        Median over neurons, mean over seeds.
    interval : list of two floats
        See `clip_interval`.
    n, n_nan : int
        Neurons with a score, and without.
    """

    per_seed: list[float]
    median: float
    interval: list[float]
    n: int
    n_nan: int


class ClipScores:
    """Scores on some clips of a dataset, whose responses are summarised once."""

    def __init__(self, dataset: Any, clips: Sequence[int]) -> None:
        self.clips = list(clips)
        self._tracker = ScoreTracker()
        for clip in self.clips:
            self._tracker.prepare(clip, dataset.response_block(clip))

    def values(
        self, predictions: Mapping[int, Tensor], clips: Sequence[int], centring: str = "concat"
    ) -> dict[str, np.ndarray]:
        """Scores (N,) of predictions (N, T) on some of the clips, concatenated."""
        self._tracker.reset()
        for clip in clips:
            self._tracker.update([clip], predictions[clip][None, :, None])
        return {name: np.asarray(column) for name, column in self._tracker.compute(centring).items()}

    def score(self, seeds: Sequence[Mapping[int, Tensor]], neurons: Sequence[int] | None = None) -> Score:
        """The score of one or more seeds; of all neurons or some."""
        chosen = slice(None) if neurons is None else list(neurons)

        def per_neuron(clips: Sequence[int]) -> np.ndarray:
            return np.stack([self.values(one, clips)["cc_norm"][chosen] for one in seeds])

        whole = per_neuron(self.clips)
        scored = np.isfinite(whole).all(0)
        left_out = [
            float(np.nanmean(per_neuron(_rest(self.clips, [clip]))[:, scored])) for clip in self.clips
        ]
        return Score(
            per_seed=np.nanmean(whole, axis=1).tolist(),
            median=float(np.nanmedian(whole, axis=1).mean()),
            interval=clip_interval(float(np.nanmean(whole[:, scored])), left_out),
            n=int(scored.sum()),
            n_nan=int((~scored).sum()),
        )


def clip_interval(value: float, left_out: Sequence[float], confidence: float = CONFIDENCE) -> list[float]:
    """Jackknife interval of a score over test clips: where it would lie had other clips been played.

    ``value`` is the score on all clips, ``left_out`` that without each one. The models are not fitted anew, and
    Student's t with one degree of freedom less than clips makes it as wide as three or four clips deserve.
    """
    n = len(left_out)
    if n < 2:
        return [float("nan"), float("nan")]
    error = np.sqrt((n - 1) / n * np.square(np.asarray(left_out) - np.mean(left_out)).sum())
    width = float(student.ppf((1 + confidence) / 2, n - 1) * error)
    return [value - width, value + width]


def averaged(seeds: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """Predictions averaged over seeds."""
    return {clip: torch.stack([one[clip] for one in seeds]).mean(0) for clip in seeds[0]}
