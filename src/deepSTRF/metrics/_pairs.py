"""Covariances between pairs of distinct repeats on the bins both hold: the path for ragged repeats.

A block is (K, R, T): K rows, each one neuron in one clip. All pairs of all rows come from a few batched
matrix products with the masks, so repeats may end early, start late or have gaps, each in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ._masking import accumulator_dtype
from ._moments import is_constant

MIN_COMMON_BINS = 2  # a covariance needs two bins


@dataclass(frozen=True)
class PairBlock:
    """The repeats of K rows as factors of matrix products.

    ``values`` (K, R, T) deviations from ``offset`` (K, R), the mean of each repeat, taken off first so that
    no product cancels; ``valid`` (K, R, T) as 0 and 1; ``common`` (K, R, R) bins two repeats share; ``sums``
    (K, R, R) sum of repeat r over the bins it shares with s; ``pairs`` (K, R, R) bool, True for two distinct
    repeats that share enough bins.
    """

    values: Tensor
    valid: Tensor
    offset: Tensor
    common: Tensor
    sums: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, responses: Tensor, mask: Tensor) -> Self:
        """Prepare (K, R, T) responses with the bool (K, R, T) of the samples that count."""
        valid = mask.to(accumulator_dtype(responses.device))
        zero = torch.zeros((), dtype=valid.dtype, device=valid.device)
        values = torch.where(mask, responses.to(valid.dtype), zero)
        offset = values.sum(-1) / valid.sum(-1).clamp(min=1)
        values = torch.where(mask, values - offset.unsqueeze(-1), zero)
        common = valid @ valid.mT
        distinct = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        return cls(values, valid, offset, common, values @ valid.mT, distinct & (common >= MIN_COMMON_BINS))

    def _centred(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Turn sums of products over common bins into unbiased covariances, zero where there is no pair."""
        centred = products - left * right / self.common.clamp(min=1)
        return torch.where(self.pairs, centred / (self.common - 1).clamp(min=1), torch.zeros_like(products))

    def covariance(self) -> Tensor:
        """(K, R, R) covariance of two repeats on their common bins; their mean is the signal power."""
        return self._centred(self.values @ self.values.mT, self.sums, self.sums.mT)

    def variance(self) -> Tensor:
        """(K, R, R) variance of repeat r on the bins it shares with s; exactly 0 for a constant one."""
        variance = self._centred(self.values.square() @ self.valid.mT, self.sums, self.sums).clamp(min=0)
        flat = is_constant(variance, self.offset.unsqueeze(-1), torch.ones_like(variance))
        return torch.where(flat, torch.zeros_like(variance), variance)

    def covariance_and_noise(self) -> tuple[Tensor, Tensor]:
        """(K, R, R) covariance, and half the variance of the difference, whose mean is the noise power."""
        covariance, variance = self.covariance(), self.variance()
        return covariance, (variance + variance.mT) / 2 - covariance

    def mean(self, matrix: Tensor) -> Tensor:
        """Mean over pairs of distinct repeats, (K,); 0 for a row without any pair."""
        return (matrix * self.pairs).sum((-2, -1)) / self.pairs.sum((-2, -1)).clamp(min=1)

    def weights(self) -> PairWeights:
        """What is needed to average a prediction's moments over the same pairs."""
        chosen = self.pairs.to(self.values.dtype)
        share = chosen / chosen.sum((-2, -1), keepdim=True).clamp(min=1)
        share = share / (self.common - 1).clamp(min=1)
        partners = share @ self.valid
        return PairWeights(
            mask=self.valid.bool(),
            square=(partners * self.valid).sum(1),
            product=(partners * self.values).sum(1),
            squared_sum=share / self.common.clamp(min=1),
            summed_product=share * self.sums.mT / self.common.clamp(min=1),
        )


@dataclass(frozen=True)
class PairWeights:
    """Variance and covariance of a prediction, averaged over pairs of repeats like the signal power.

    The mean over pairs of ``sum p**2 - (sum p)**2 / n`` over common bins, each over ``n - 1``, is a weighted
    sum of ``p**2`` (``square`` (K, T)) minus one of squared sums (``squared_sum`` (K, R, R)); the covariance
    with the repeats likewise (``product``, ``summed_product``). ``mask`` bool (K, R, T) is all that is kept
    per repeat.
    """

    mask: Tensor
    square: Tensor
    product: Tensor
    squared_sum: Tensor
    summed_product: Tensor

    @classmethod
    def cat(cls, records: list[Self]) -> Self:
        """Join the rows of several blocks."""
        return cls(
            **{
                field.name: torch.cat([getattr(record, field.name) for record in records])
                for field in fields(cls)
            }
        )

    def moments(self, pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of a (K, T) prediction over bins with two repeats; its variance; covariance with the repeats.

        On the same pairs and bins as the signal power: a noiseless perfect prediction has variance,
        covariance and signal power equal, whatever is missing.
        """
        zero = torch.zeros((), dtype=pred.dtype, device=pred.device)
        repeats = self.mask.sum(1)
        bins = repeats > 1
        mean = torch.where(bins, pred, zero).sum(-1) / bins.sum(-1).clamp(min=1)
        centred = torch.where(repeats > 0, pred - mean.unsqueeze(-1), zero)
        valid = self.mask.to(pred.dtype)
        sums = (centred.unsqueeze(1) * valid) @ valid.mT
        variance = (self.square * centred * centred).sum(-1) - (self.squared_sum * sums * sums).sum((-2, -1))
        covariance = (self.product * centred).sum(-1) - (self.summed_product * sums).sum((-2, -1))
        return mean, variance.clamp(min=0), covariance
