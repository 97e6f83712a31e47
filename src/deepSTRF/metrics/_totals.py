"""Pooling clips: signal and noise power under each centring, in any order and grouping of clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._moments import PairMoments, keep_where
from ._repeats import ClipParts, clip_target

# Powers are differences of sums in float64; below this fraction of the total they are rounding error.
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class RepeatTotals:
    """Sums over clips, one value per neuron (N,), ``drift*`` (N, R).

    ``between`` moments of the clip means, each weighing as its bins; ``within_*`` powers times (bins - 1);
    ``clip_*`` powers times bins, over the ``clip_bins`` of clips with two bins or more; ``*_psth_noise`` the
    noise left in the PSTH (noise power over repeats), summed alike; ``spread*`` the noise that clip means
    carry; ``drift*`` what of it all clips of a repeat share.
    """

    between: PairMoments
    clip_bins: Tensor
    clip_signal: Tensor
    clip_noise: Tensor
    within_signal: Tensor
    within_noise: Tensor
    clip_psth_noise: Tensor
    within_psth_noise: Tensor
    spread: Tensor
    spread_noise: Tensor
    drift: Tensor
    drift_noise: Tensor

    @classmethod
    def of(cls, parts: ClipParts) -> Self:
        """Pool the parts of S clips, fields (S, N)."""
        bins, repeats = parts.n_bins, parts.n_repeats
        nothing = torch.zeros_like(bins)
        weight = torch.where(bins > 1, bins, nothing)
        freedom = (bins - 1).clamp(min=0)
        psth_noise = parts.noise / repeats.clamp(min=1)
        squared_drift = parts.drift.square().sum(-1)
        return cls(
            between=PairMoments(bins, parts.mean, nothing, nothing, nothing, nothing).pool(0),
            clip_bins=weight.sum(0),
            clip_signal=(weight * parts.signal).sum(0),
            clip_noise=(weight * parts.noise).sum(0),
            within_signal=(freedom * parts.signal).sum(0),
            within_noise=(freedom * parts.noise).sum(0),
            clip_psth_noise=(weight * psth_noise).sum(0),
            within_psth_noise=(freedom * psth_noise).sum(0),
            spread=(bins * squared_drift).sum(0),
            spread_noise=(bins * repeats * squared_drift).sum(0),
            drift=(bins.unsqueeze(-1) * parts.drift).sum(0),
            drift_noise=((bins * repeats.sqrt()).unsqueeze(-1) * parts.drift).sum(0),
        )

    def merge(self, other: Self) -> Self:
        """Totals of both sets of clips."""
        n_repeats = max(self.drift.shape[-1], other.drift.shape[-1])
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in (
                "clip_bins",
                "clip_signal",
                "clip_noise",
                "within_signal",
                "within_noise",
                "clip_psth_noise",
                "within_psth_noise",
                "spread",
                "spread_noise",
            )
        }
        for name in ("drift", "drift_noise"):
            mine, theirs = getattr(self, name), getattr(other, name)
            sums[name] = pad(mine, (0, n_repeats - mine.shape[-1])) + pad(
                theirs, (0, n_repeats - theirs.shape[-1])
            )
        return type(self)(between=self.between.merge(other.between), **sums)

    @property
    def bins(self) -> Tensor:
        """Bins with at least two repeats, (N,)."""
        return self.between.count

    def powers(self, centring: str) -> tuple[Tensor, Tensor]:
        """Signal and noise power (N,), NaN without a clip to estimate them on.

        "clip" (and "published"): bin-weighted mean of the clips' own. "concat": on the concatenated clips;
        what the clip means owe to noise is taken off, from the pairs of distinct repeats as within a clip.
        """
        if centring != "concat":
            known = self.clip_bins > 0
            bins = self.clip_bins.clamp(min=1)
            return keep_where(known, self.clip_signal / bins), keep_where(known, self.clip_noise / bins)
        bins = self.bins.clamp(min=1)
        freedom = (bins - 1).clamp(min=1)
        mean_noise = self.spread - self.drift.square().sum(-1) / bins
        signal = (self.within_signal + self.between.xx - mean_noise) / freedom
        drift_noise = (self.spread_noise - self.drift_noise.square().sum(-1) / bins).clamp(min=0)
        noise = (self.within_noise + drift_noise) / freedom
        known = self.bins > 1
        return keep_where(known, signal), keep_where(known, noise)

    def ceiling(self, centring: str) -> Tensor:
        """Square root of the signal's share in the variance of the PSTH, (N,); NaN without signal."""
        signal, noise = self.powers(centring)
        if centring == "concat":
            within = self.within_signal + self.within_psth_noise
            variance = (within + self.between.xx) / (self.bins - 1).clamp(min=1)
        else:
            variance = (self.clip_signal + self.clip_psth_noise) / self.clip_bins.clamp(min=1)
        reliable = is_reliable(signal, noise)
        share = signal / torch.where(reliable, variance, torch.ones_like(variance))
        return keep_where(reliable, share.clamp(min=0).sqrt())


def repeat_totals(responses: Tensor, mask: Tensor | None) -> RepeatTotals:
    """Pool the clips of a (B, N, R, T) tensor."""
    target = clip_target(responses, mask)
    return RepeatTotals.of(target.parts.unflatten(responses.shape[0], responses.shape[1]))


def signal_to_noise(signal: Tensor, noise: Tensor) -> Tensor:
    """Ratio of the powers: infinite without noise, NaN without any variance at all."""
    total = signal.abs() + noise
    noiseless = noise <= NEGLIGIBLE * total
    ratio = signal / torch.where(noiseless, torch.ones_like(noise), noise)
    limit = torch.where(signal > 0, torch.full_like(ratio, torch.inf), torch.full_like(ratio, torch.nan))
    return torch.where(noiseless, limit, ratio)


def is_reliable(signal: Tensor, noise: Tensor) -> Tensor:
    """Return where the signal power is positive beyond rounding error."""
    return signal > NEGLIGIBLE * (signal.abs() + noise)
