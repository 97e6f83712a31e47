"""`neural_collate`: from items of a dataset to one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepSTRF.datasets.grid import ItemResponses

__all__ = ["neural_collate"]


def neural_collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items into a batch; pass it to a ``DataLoader`` as ``collate_fn``.

    Parameters
    ----------
    batch : sequence of dict
        Items ``ds[i]`` of datasets with the same neurons.

    Returns
    -------
    dict
        In this order: ``'stims'`` (B, ..., T_max), zero padded at the end of the last axis; ``'responses'``
        (B, N, R_max, T_max), dtype and device of the stimuli, NaN padded; ``'valid_mask'`` bool of the same
        shape, true where a response is a number; ``'stim_meta'`` list of B dictionaries; any other key of the
        first item as a list of B values.

    Raises
    ------
    ValueError
        When the batch is empty, items have different numbers of neurons, or stimuli differ in an axis other
        than time.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> ds = NeuralDataset.from_arrays(
    ...     [torch.rand(4, 6), torch.rand(4, 9)], [torch.ones(2, 3, 6), torch.ones(2, 5, 9)], dt_ms=5.0
    ... )
    >>> batch = neural_collate([ds[0], ds[1]])
    >>> tuple(batch["stims"].shape), tuple(batch["responses"].shape)
    ((2, 1, 4, 9), (2, 2, 5, 9))
    """
    if len(batch) == 0:
        raise ValueError("a batch needs at least one item")
    stims = _stack_stimuli([item["stims"] for item in batch])
    responses = _stack_responses([item["responses"] for item in batch], stims)
    out: dict[str, Any] = {
        "stims": stims,
        "responses": responses,
        "valid_mask": ~torch.isnan(responses),
        "stim_meta": [item["stim_meta"] for item in batch],
    }
    for key in batch[0]:
        if key not in out:
            out[key] = [item[key] for item in batch]
    return out


def _stack_stimuli(stims: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(stimulus.shape[:-1]) for stimulus in stims}
    if len(shapes) > 1:
        raise ValueError(
            f"stimuli of a batch may differ in the last axis only, got leading axes {sorted(shapes)}"
        )
    lengths = [int(stimulus.shape[-1]) for stimulus in stims]
    if len(set(lengths)) == 1:
        return torch.stack(list(stims))
    out = stims[0].new_zeros((len(stims), *stims[0].shape[:-1], max(lengths)))
    for row, stimulus, length in zip(out, stims, lengths, strict=True):
        row[..., :length] = stimulus
    return out


def _stack_responses(items: Sequence[Sequence[Tensor]], like: Tensor) -> Tensor:
    counts = [len(item) for item in items]
    if len(set(counts)) > 1:
        raise ValueError(
            f"items of one batch must have the same neurons, got {counts} neurons; make both from one view "
            "(ds.select(neurons=...)) or join recordings with concat_neural_datasets"
        )
    quick = [item if isinstance(item, ItemResponses) and item.is_untouched() else None for item in items]
    repeats, bins = 1, 1
    for item, block in zip(items, quick, strict=True):
        if block is not None:
            repeats, bins = max(repeats, block.values.shape[1]), max(bins, block.n_bins)
        else:
            repeats = max([repeats, *(response.shape[0] for response in item)])
            bins = max([bins, *(response.shape[1] for response in item)])
    shape = (len(items), counts[0], repeats, bins)
    out = torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)
    for slab, item, block in zip(out, items, quick, strict=True):
        if block is not None:
            _, r, t = block.values.shape
            index = slice(None) if len(block.heard) == len(block) else block.heard.to(like.device)
            slab[index, :r, :t] = block.values.to(like)
            continue
        for row, response in zip(slab, item, strict=True):
            row[: response.shape[0], : response.shape[1]] = response
    return out
