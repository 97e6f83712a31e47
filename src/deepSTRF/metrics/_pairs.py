"""Covariances between pairs of distinct repeats on the bins both hold: the path for ragged repeats.

A block is (K, R, T): K rows, each one neuron in one clip. All pairs of all rows come from a few batched
matrix products with the masks, so repeats may end early, start late or have gaps, each in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._masking import accumulator_dtype
from ._moments import is_constant

MIN_COMMON_BINS = 2  # a covariance needs two bins


@dataclass(frozen=True)
class PairBlock:
    """The repeats of K rows, and what is known about their pairs before any product is formed.

    ``responses`` (K, R, T) in the caller's dtype and ``mask`` bool (K, R, T); ``offset`` (K, R) the mean of
    each repeat, taken off first so that no product cancels;
    ``common`` (K, R, R) bins two repeats share; ``sums`` (K, R, R) sum of repeat r over the bins it shares
    with s; ``pairs`` (K, R, R) bool, True for two distinct repeats that share enough bins. The float64
    factors are made when needed: kept for every clip of a recording they would not fit in memory.
    """

    responses: Tensor
    mask: Tensor
    offset: Tensor
    common: Tensor
    sums: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, responses: Tensor, mask: Tensor) -> PairBlock:
        """Prepare (K, R, T) responses with the bool (K, R, T) of the samples that count."""
        dtype = accumulator_dtype(responses.device)
        ones = mask.to(dtype)
        zero = torch.zeros((), dtype=dtype, device=responses.device)
        offset = torch.where(mask, responses.to(dtype), zero).sum(-1) / ones.sum(-1).clamp(min=1)
        values = torch.where(mask, responses.to(dtype) - offset.unsqueeze(-1), zero)
        common = ones @ ones.mT
        distinct = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        return cls(responses, mask, offset, common, values @ ones.mT, distinct & (common >= MIN_COMMON_BINS))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Deviations from the offset (zero where masked) and the mask as 0 and 1, both (K, R, T) float64."""
        ones = self.mask.to(self.common.dtype)
        zero = torch.zeros((), dtype=ones.dtype, device=ones.device)
        values = self.responses.to(ones.dtype) - self.offset.unsqueeze(-1)
        return torch.where(self.mask, values, zero), ones

    def centred(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Turn sums of products over common bins into unbiased covariances, zero where there is no pair."""
        centred = products - left * right / self.common.clamp(min=1)
        return torch.where(self.pairs, centred / (self.common - 1).clamp(min=1), torch.zeros_like(products))

    def covariance(self) -> Tensor:
        """(K, R, R) covariance of two repeats on their common bins; their mean is the signal power."""
        values, _ = self.factors()
        return self.centred(values @ values.mT, self.sums, self.sums.mT)

    def variance(self) -> Tensor:
        """(K, R, R) variance of repeat r on the bins it shares with s; exactly 0 for a constant one."""
        values, ones = self.factors()
        variance = self.centred(values.square() @ ones.mT, self.sums, self.sums).clamp(min=0)
        flat = is_constant(variance, self.offset.unsqueeze(-1), torch.ones_like(variance))
        return torch.where(flat, torch.zeros_like(variance), variance)

    def covariance_and_noise(self) -> tuple[Tensor, Tensor]:
        """(K, R, R) covariance, and half the variance of the difference, whose mean is the noise power."""
        covariance, variance = self.covariance(), self.variance()
        return covariance, (variance + variance.mT) / 2 - covariance

    def mean(self, matrix: Tensor) -> Tensor:
        """Mean over pairs of distinct repeats, (K,); 0 for a row without any pair."""
        return (matrix * self.pairs).sum((-2, -1)) / self.pairs.sum((-2, -1)).clamp(min=1)

    def prediction_moments(self, pred: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of a (K, T) prediction and covariance with the repeats, averaged like the signal power.

        The same pairs, on the same bins: a noiseless perfect prediction then has variance, covariance and
        signal power equal, whatever is missing.
        """
        values, ones = self.factors()
        zero = torch.zeros((), dtype=ones.dtype, device=ones.device)
        masked = torch.where(self.mask, pred.unsqueeze(1), zero)
        level = masked.sum(-1, keepdim=True) / ones.sum(-1, keepdim=True).clamp(min=1)
        masked = torch.where(self.mask, masked - level, zero)
        sums = masked @ ones.mT
        variance = self.centred(masked @ masked.mT, sums, sums.mT)
        covariance = self.centred(masked @ values.mT, sums, self.sums.mT)
        return self.mean(variance), self.mean(covariance)
