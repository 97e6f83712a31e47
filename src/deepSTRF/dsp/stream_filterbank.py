"""The grouped filterbank for one bin or a few, where every call counts more than every product."""

from __future__ import annotations

import torch
from torch import Tensor

from deepSTRF.dsp.filterbank import COMPLEX_DETECTORS, Bank, detect, filter_sound, pool_detected
from deepSTRF.dsp.plan import FilterbankPlan
from deepSTRF.dsp.stagger import stagger_rows

__all__ = ["stream_bank", "stream_filterbank"]


def stream_bank(bank: Bank, n_parts: int) -> Bank:
    """Lay a bank out for `stream_filterbank`: real and imaginary parts side by side.

    Parameters
    ----------
    bank : sequence of tuple
        As `pooled_filterbank` takes it.
    n_parts : int
        2 for complex filters, 1 for real ones.

    Returns
    -------
    sequence of tuple
        The same filters and pooling.

    Examples
    --------
    >>> matrix = torch.arange(4.0).view(1, 4)  # real, real, imaginary, imaginary
    >>> stream_bank([(matrix, matrix)], n_parts=2)[0][0]
    tensor([[0., 2., 1., 3.]])
    """
    if n_parts == 1:
        return bank
    return [
        (filters.view(len(filters), n_parts, -1).transpose(1, 2).flatten(1), pooling)
        if isinstance(filters, Tensor)
        else (filters, pooling)
        for filters, pooling in bank
    ]


def stream_filterbank(audio: Tensor, bank: Bank, plan: FilterbankPlan, detector: str) -> Tensor:
    """Do what `pooled_filterbank` does, faster for one bin or a few, where every call counts.

    Parameters
    ----------
    audio : Tensor
        (B, plan.history + T * hop) waveform that starts with ``plan.history`` samples of the past.
    bank : sequence of tuple
        From `stream_bank`.
    plan : FilterbankPlan
        Groups of channels.
    detector : str
        As in `detect`.

    Returns
    -------
    Tensor
        (B, F, T + D - 1).

    Examples
    --------
    >>> from deepSTRF.dsp.plan import plan_filterbank
    >>> from deepSTRF.dsp.filterbank import prepare_bank
    >>> plan = plan_filterbank([3, 3], [2, 2], hop=4)
    >>> bank = stream_bank(prepare_bank([torch.ones(2, 2, 3)], [torch.ones(2, 4)], plan), n_parts=2)
    >>> stream_filterbank(torch.zeros(1, plan.history + 4), bank, plan, "power").shape
    torch.Size([1, 2, 2])
    """
    batch, n_parts = len(audio), 2 if detector in COMPLEX_DETECTORS else 1
    rows = [
        filter_sound(audio, filters, group, plan).view(batch, -1)
        for group, (filters, _) in zip(plan.groups, bank, strict=True)
    ]
    joined = torch.cat(rows, dim=-1).view(batch, -1, n_parts)
    sizes = [row.shape[-1] // n_parts for row in rows]
    detected = detect(joined.transpose(1, 2), detector).split_with_sizes(sizes, dim=-1)
    pooled = [
        pool_detected(samples, pooling, group.n_channels, plan.hop // group.stride)
        for samples, group, (_, pooling) in zip(detected, plan.groups, bank, strict=True)
    ]
    given = torch.cat(pooled, dim=2)
    return given.squeeze(1) if given.shape[1] == 1 else stagger_rows(given.permute(0, 2, 3, 1), 1).sum(-2)
