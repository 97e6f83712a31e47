"""Bootstrap of the noise ceiling over repeats and clips, clip by clip and for all neurons at once.

A resampled set of repeats is a vector of counts c. Signal and noise power of the resample are means over
pairs of distinct *original* repeats, weighted by ``c_r * c_s``: a repeat drawn twice is never paired with
itself, which would pass its noise off as signal. Such means are linear in the matrices over pairs, so one
product serves all resamples of all neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._groups import RepeatGroup, RepeatGroups
from ._moments import keep_where
from ._pairs import PairBlock
from ._repeats import ClipParts

SEED_STRIDE = 1_000_003  # a prime: the seeds of different clips don't meet


@dataclass(frozen=True)
class PairMatrices:
    """Pairs of repeats, each (K, R, R): covariance, half the variance of the difference, whether usable."""

    covariance: Tensor
    noise: Tensor
    pairs: Tensor


def pair_matrices(group: RepeatGroup) -> PairMatrices:
    """Pairs of repeats of the rows of a group."""
    product, count = group.product, group.count
    covariance = product / (count - 1).clamp(min=1)[:, None, None]
    variance = covariance.diagonal(dim1=1, dim2=2)
    noise = (variance.unsqueeze(1) + variance.unsqueeze(2)) / 2 - covariance
    distinct = ~torch.eye(product.shape[1], dtype=torch.bool, device=product.device)
    pairs = distinct & (count > 1)[:, None, None]
    if group.ragged is not None and group.samples is not None:
        block = PairBlock.of(group.responses[group.ragged], group.samples[group.ragged])
        covariance[group.ragged], noise[group.ragged] = block.covariance_and_noise()
        pairs[group.ragged] = block.pairs
    return PairMatrices(covariance, noise, pairs)


class CeilingBootstrap:
    """Resampled ceilings of N neurons, accumulated over clips.

    ``resample``: "repeats" draws repeats with replacement within each clip, "clips" draws clips, "both" does
    both. All neurons share the draws, as they shared the trials. ``average_clips`` takes the ceiling clip by
    clip and averages (the half-split ceiling with ``centring="clip"``) instead of pooling the powers first.
    """

    def __init__(
        self,
        n_clips: int,
        n_bootstrap: int,
        resample: str,
        centring: str,
        seed: int,
        average_clips: bool = False,
    ) -> None:
        self.n_bootstrap = n_bootstrap
        self.resample = resample
        self.centring = centring
        self.seed = seed
        self.average_clips = average_clips
        weights = torch.ones(n_bootstrap, n_clips, dtype=torch.float64)
        if resample in ("clips", "both"):
            weights = self._draw(n_clips, torch.Generator().manual_seed(seed))
        self._weights = weights
        self._clip = 0
        self._reference: Tensor | None = None
        self._sums: list[Tensor] = []

    def _draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Counts (n_bootstrap, number) of draws with replacement."""
        draws = torch.randint(number, (self.n_bootstrap, number), generator=generator)
        counts = torch.zeros(self.n_bootstrap, number, dtype=torch.float64)
        return counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))

    def _counts(self, n_repeats: int, like: Tensor) -> Tensor:
        """Counts of repeats (n_bootstrap, R) for the current clip; all 1 when repeats are not resampled."""
        if self.resample == "clips":
            return torch.ones(1, n_repeats, dtype=like.dtype, device=like.device)
        generator = torch.Generator().manual_seed(self.seed + SEED_STRIDE * (1 + self._clip) + n_repeats)
        return self._draw(n_repeats, generator).to(like)

    def add(self, groups: RepeatGroups, parts: ClipParts) -> None:
        """Take in the next clip: its groups of repeats and its parts (N,)."""
        blank = torch.zeros(self.n_bootstrap, groups.n_rows, dtype=groups.dtype, device=groups.device)
        table = [blank.clone() for _ in range(6)]
        self._remember_reference(parts)
        for group in groups.groups:
            columns = self._group(pair_matrices(group), self._repeat_means(parts, group))
            for column, values in zip(table, columns, strict=True):
                column[:, group.rows] = values.expand(self.n_bootstrap, -1)
        known, signal, noise, mean, product, spread = table
        weight = self._weights[:, self._clip].to(known).unsqueeze(1) * known
        self._clip += 1
        bins, repeats = parts.n_bins, parts.n_repeats.clamp(min=1)
        if self.centring != "concat":
            factor = torch.where(bins > 1, bins, torch.zeros_like(bins)) * weight
            sums = [factor, factor * signal, factor * noise / repeats]
            if self.average_clips:
                reliable = factor * (signal > 0)
                sums = [factor, reliable, reliable * _share(signal, noise / repeats).sqrt()]
        else:
            factor, inner = bins * weight, (bins - 1).clamp(min=0) * weight
            sums = [
                factor,
                inner * signal + factor * product,
                inner * noise / repeats + factor * spread,
                factor * mean,
                factor * factor * (mean * mean - product),
                factor * factor * spread,
            ]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums

    def _remember_reference(self, parts: ClipParts) -> None:
        """Measure clip means from the first one a neuron has, so that an offset costs no digits."""
        known = parts.n_bins > 0
        first = torch.where(known, parts.mean, torch.full_like(parts.mean, torch.nan))
        self._reference = (
            first
            if self._reference is None
            else torch.where(torch.isnan(self._reference), first, self._reference)
        )

    def _repeat_means(self, parts: ClipParts, group: RepeatGroup) -> Tensor:
        """Means of the repeats in a group, (k, R), relative to the reference.

        For repeats that differ in their bins: the PSTH's mean plus what the repeat deviates on its own bins.
        """
        mean = group.mean
        reference = torch.zeros_like(parts.mean) if self._reference is None else self._reference
        if group.ragged is not None and group.samples is not None:
            samples = group.samples[group.ragged].to(mean)
            values = torch.where(group.samples[group.ragged], group.responses[group.ragged].to(mean), 0.0)
            psth = values.sum(1, keepdim=True) / samples.sum(1, keepdim=True).clamp(min=1)
            deviation = ((values - psth) * samples).sum(2) / samples.sum(2).clamp(min=1)
            mean = mean.index_copy(
                0, group.ragged, parts.mean[group.rows][group.ragged].unsqueeze(1) + deviation
            )
        return mean - torch.nan_to_num(reference[group.rows]).unsqueeze(1)

    def _group(self, matrices: PairMatrices, means: Tensor) -> list[Tensor]:
        """Resampled quantities of rows with one number of repeats, each (n_bootstrap or 1, K)."""
        counts = self._counts(means.shape[1], means)
        design = (counts.unsqueeze(2) * counts.unsqueeze(1)).flatten(1)
        weight = design @ matrices.pairs.to(means).flatten(1).mT
        safe = torch.where(weight > 0, weight, torch.ones_like(weight))

        def average(values: Tensor) -> Tensor:
            return design @ torch.where(matrices.pairs, values, 0.0).flatten(1).mT / safe

        product = means.unsqueeze(1) * means.unsqueeze(2)
        gap = (means.unsqueeze(1) - means.unsqueeze(2)).square() / (2 * means.shape[1])
        mean = counts @ means.mT / counts.sum(1, keepdim=True)
        known = (weight > 0).to(means)
        return [
            known,
            average(matrices.covariance),
            average(matrices.noise),
            mean,
            average(product),
            average(gap),
        ]

    def ceilings(self) -> Tensor:
        """Resampled ceilings (n_bootstrap, N): 0 where a resample has no signal, NaN where it has no data."""
        if self.centring != "concat":
            bins, signal, noise = self._sums
            if self.average_clips:
                weight, total = self._sums[1:]
                ceiling = torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0)
                return keep_where(bins > 0, ceiling)
        else:
            bins, signal, noise, level, level_noise, spread = self._sums
            total = bins.clamp(min=1)
            signal = signal - (level * level - level_noise) / total
            noise = noise - spread / total
        return keep_where(bins > 0, _share(signal, noise).sqrt())

    def interval(self, confidence: float) -> tuple[Tensor, Tensor]:
        """Lower and upper percentile bound, (N,) each."""
        ceilings = self.ceilings()
        tail = (1 - confidence) / 2
        bounds = torch.nanquantile(ceilings, torch.tensor([tail, 1 - tail]).to(ceilings), dim=0)
        return bounds[0], bounds[1]


def _share(signal: Tensor, noise: Tensor) -> Tensor:
    """Share of the signal in the variance of the PSTH; 0 without positive signal."""
    positive = signal > 0
    share = signal / torch.where(positive, signal + noise.clamp(min=0), torch.ones_like(signal))
    return torch.where(positive, share, torch.zeros_like(share))
