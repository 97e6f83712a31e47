"""Rows of one clip grouped by how many repeats they hold, with the products of their repeats.

Half-splits, their bootstrap and the trial-to-trial correlation all are functions of the (R, R) matrix of
products of centred repeats, which costs one pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ._blocks import row_blocks
from ._masking import accumulator_dtype
from ._moments import is_constant


@dataclass(frozen=True)
class RepeatGroup:
    """Rows with R repeats each; repeats in which a row holds nothing are squeezed out.

    ``rows`` which of the K; ``responses`` (k, R, T) and ``samples`` bool (k, R, T), None when all count;
    ``product`` (k, R, R) sums of products of centred repeats, ``mean`` (k, R), ``count`` (k,) bins.
    ``ragged`` are those of the k whose repeats differ in their bins: for them the products mean nothing.
    """

    rows: Tensor | slice
    responses: Tensor
    samples: Tensor | None
    product: Tensor
    mean: Tensor
    count: Tensor
    ragged: Tensor | None


@dataclass(frozen=True)
class RepeatGroups:
    """All rows of one clip that hold two repeats or more, in groups."""

    n_rows: int
    dtype: torch.dtype
    device: torch.device
    groups: list[RepeatGroup]

    @classmethod
    def of(cls, rows: Tensor, valid: Tensor | None) -> RepeatGroups:
        """Group (K, R, T) rows; ``valid`` bool (K, R, T) are the samples that count, None: all."""
        groups = []
        for index, responses, samples in _by_number_of_repeats(rows, valid):
            if samples is None:
                groups.append(RepeatGroup(index, responses, None, *gram(responses, None), None))
                continue
            bins = samples.any(1)
            ragged = (samples.sum((1, 2)) != bins.sum(1) * samples.shape[1]).nonzero().squeeze(1)
            products = gram(responses, bins)
            groups.append(RepeatGroup(index, responses, samples, *products, ragged if len(ragged) else None))
        return cls(len(rows), accumulator_dtype(rows.device), rows.device, groups)


def _by_number_of_repeats(
    rows: Tensor, valid: Tensor | None
) -> Iterator[tuple[Tensor | slice, Tensor, Tensor | None]]:
    """Group rows that hold the same number of repeats, and squeeze out the repeats that hold nothing."""
    if valid is None:
        if rows.shape[1] > 1:
            yield slice(None), rows, None
        return
    recorded = valid.any(2)
    order = (~recorded).to(torch.uint8).argsort(dim=1, stable=True)
    for number in torch.unique(recorded.sum(1)).tolist():
        if number < 2:
            continue
        group = (recorded.sum(1) == number).nonzero().squeeze(1)
        index = order[group, :number].unsqueeze(2).expand(-1, -1, rows.shape[2])
        yield group, rows[group].gather(1, index), valid[group].gather(1, index)


def gram(responses: Tensor, bins: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of products of centred repeats (K, R, R), their means (K, R) and the number of bins (K,).

    ``bins`` bool (K, T) are those in which the repeats of a row were recorded. Constant repeats come out
    exactly 0.
    """
    dtype = accumulator_dtype(responses.device)
    products, means, counts = [], [], []
    for piece in row_blocks(responses):
        values = responses[piece].to(dtype, copy=True)
        n_bins = values.shape[2]
        if bins is None:
            count = torch.full((len(values),), n_bins, dtype=dtype, device=values.device)
            mean = values.mean(2)
            centred = values.sub_(mean.unsqueeze(2))
        else:
            chosen = bins[piece].unsqueeze(1)
            count = chosen.sum((1, 2)).to(dtype)
            zero = torch.zeros((), dtype=dtype, device=values.device)
            mean = torch.where(chosen, values, zero).sum(2) / count.clamp(min=1).unsqueeze(1)
            centred = torch.where(chosen, values - mean.unsqueeze(2), zero)
        product = centred @ centred.mT
        flat = is_constant(product.diagonal(dim1=1, dim2=2), mean, count.unsqueeze(1))
        product = torch.where(flat.unsqueeze(1) | flat.unsqueeze(2), 0.0, product)
        products.append(product)
        means.append(mean)
        counts.append(count)
    return torch.cat(products), torch.cat(means), torch.cat(counts)
