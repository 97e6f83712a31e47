"""One batch as the fit sees it, whichever way it was made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "BatchSource", "valid_counts"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the fit's device, the warm-up already cut from its targets.

    Attributes
    ----------
    inputs : Tensor
        Stimuli (B, 1, F, T) or (B, 1, T_audio); or, where ``is_spectrogram``, what the model's front-end
        makes of them.
    is_spectrogram : bool
        ``inputs`` have been through the front-end (they come from the cache) and go to ``model.respond``.
    targets : Tensor
        What the loss compares with: the PSTH (B, N, 1, T) or the repeats (B, N, R, T), NaN where nothing was
        recorded.
    weights : Tensor
        (N,) valid bins (or bins and repeats) of each neuron in this batch.
    keys : tuple
        One key per item, the same in every epoch where ``stable``: the clip's number in the data set.
    lengths : tuple of int
        Bins per item that belong to the clip (the rest is padding).
    skip : int
        Bins of warm-up that the targets lack and that are cut from the prediction.
    responses : callable
        ``responses(i)`` gives item i's (N, R, T) repeats, read only where a metric needs them.
    extras : mapping
        What else the loader's batch holds: 'stim_meta' (a list of dictionaries), and with a collate function
        of your own whatever it adds.

    Examples
    --------
    >>> batch = Batch(torch.zeros(1, 1, 4, 9), False, torch.zeros(1, 2, 1, 9), torch.full((2,), 9.0),
    ...               (0,), (9,), 0, lambda item: torch.zeros(2, 5, 9))
    >>> batch.responses(0).shape
    torch.Size([2, 5, 9])
    """

    inputs: Tensor
    is_spectrogram: bool
    targets: Tensor
    weights: Tensor
    keys: tuple[Hashable, ...]
    lengths: tuple[int, ...]
    skip: int
    responses: Callable[[int], Tensor]
    extras: Mapping[str, Any] = field(default_factory=dict)


class BatchSource(Protocol):
    """Where a pass over the data gets its batches."""

    #: True when a clip has the same key in every pass, so that what depends on it alone can be kept.
    stable: bool
    #: One phrase on how the data are fed, for people who wonder about speed.
    note: str

    def __iter__(self) -> Iterator[Batch]: ...


def valid_counts(targets: Tensor, *, counts_repeats: bool) -> Tensor:
    """Return how many values of each neuron the loss will average over.

    Parameters
    ----------
    targets : Tensor, shape (B, N, R, T)
        Responses or PSTH, NaN where nothing was recorded.
    counts_repeats : bool
        Count every repeat's bins; otherwise a bin counts once when any repeat has it.

    Returns
    -------
    Tensor, shape (N,)
        Counts, as float.

    Examples
    --------
    >>> targets = torch.tensor([[[[1.0, float("nan")], [2.0, float("nan")]]]])
    >>> valid_counts(targets, counts_repeats=False), valid_counts(targets, counts_repeats=True)
    (tensor([1.]), tensor([2.]))
    """
    valid = ~targets.isnan()
    if not counts_repeats and valid.shape[2] > 1:
        valid = valid.any(dim=2, keepdim=True)
    return valid.sum(dim=(0, 2, 3)).to(torch.float32)
