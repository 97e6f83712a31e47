"""Half-split ceilings accumulated clip by clip."""

from __future__ import annotations

import torch
from torch import Tensor

from ._groups import RepeatGroups
from ._moments import PairMoments, keep_where
from ._splits import mean_half_correlation, spearman_brown, split_moments


class SplitCeiling:
    """Half-split ceiling of N neurons; clips come one at a time and are not kept.

    ``centring="clip"``: a ceiling per clip, then their mean, weighing as the clips' bins; clips whose halves
    don't correlate positively are left out. ``"concat"``: the halves of all clips are concatenated, split by
    split.
    """

    def __init__(self, centring: str, n_splits: int, seed: int) -> None:
        self.centring = centring
        self.n_splits = n_splits
        self.seed = seed
        self._halves: PairMoments | None = None
        self._n_used: Tensor | None = None
        self._sums: list[Tensor] = []

    def add(self, groups: RepeatGroups) -> None:
        """Take in the repeats of one clip."""
        moments = split_moments(groups, self.n_splits, self.seed)
        bins = moments.halves.count.mean(1)
        if self.centring != "concat":
            clip_ceiling = spearman_brown(moments.reliability(), moments.ratio)
            # A NaN sample that a mask calls valid has to show; an unreliable clip is left out.
            poisoned = torch.isnan(moments.halves.xy).any(1)
            weight = torch.where(torch.isnan(clip_ceiling) & ~poisoned, 0.0, bins)
            self._accumulate([weight, torch.where(weight > 0, weight * clip_ceiling, 0.0)])
            return
        used = torch.where(bins > 0, moments.n_used, self.n_splits)
        self._n_used = used if self._n_used is None else torch.minimum(self._n_used, used)
        self._halves = moments.halves if self._halves is None else self._halves.merge(moments.halves)
        self._accumulate([bins, bins * moments.ratio])

    def _accumulate(self, values: list[Tensor]) -> None:
        self._sums = (
            [old + new for old, new in zip(self._sums, values, strict=True)] if self._sums else values
        )

    def value(self) -> Tensor:
        """The ceiling, (N,); NaN where there is none."""
        weight, weighted = self._sums
        mean = keep_where(weight > 0, weighted / torch.where(weight > 0, weight, 1.0))
        if self._halves is None or self._n_used is None:
            return mean
        return spearman_brown(mean_half_correlation(self._halves, self._n_used), mean)


def half_split_ceiling(
    responses: Tensor, valid: Tensor | None, centring: str, n_splits: int, seed: int
) -> Tensor:
    """Half-split ceiling (N,) of (B, N, R, T) responses."""
    sums = SplitCeiling(centring, n_splits, seed)
    for clip in range(len(responses)):
        sums.add(RepeatGroups.of(responses[clip], None if valid is None else valid[clip]))
    return sums.value()
