"""Stacks of clips of about one length: what costs the same for one clip and for a hundred is paid once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["STACK_BYTES", "Stack", "stacks"]

Key = TypeVar("Key")

#: Bytes of responses that are worked on at once, and that wait until there are enough of about one length.
STACK_BYTES, WAITING_BYTES = 8 * 2**20, 64 * 2**20
#: Clips meet whose lengths, rounded up to so many steps per octave, are equal: on average 5% is padding.
STEPS_PER_OCTAVE = 8


class Stack(NamedTuple):
    """Clips one after the other along a new first axis, padded on the right to one length.

    Responses without a gap are padded with zeros and have ``lengths`` (B,), others with NaN; whatever else
    comes beside them is padded with zeros.
    """

    keys: list[Any]
    tensors: list[Tensor]
    lengths: Tensor | None


def stacks(clips: Iterable[tuple[Key, tuple[Tensor, ...]]]) -> Iterator[Stack]:
    """Stack the tensors of clips, responses (N, R, T) first, with their keys: a few MB at once."""
    waiting: dict[Any, tuple[list[Key], list[tuple[Tensor, ...]]]] = {}
    total, sizes = 0, {}  # type: int, dict[Any, int]
    for key, tensors in clips:
        bins = _rounded_up(tensors[0].shape[-1])
        shape = (bins, *((values.shape[:-1], values.dtype) for values in tensors))
        keys, held = waiting.setdefault(shape, ([], []))
        keys.append(key)
        held.append(tensors)
        size = tensors[0].numel() * tensors[0].element_size()
        sizes[shape] = sizes.get(shape, 0) + size
        total += size
        full = (
            [shape] if sizes[shape] + size > STACK_BYTES else list(waiting) if total > WAITING_BYTES else []
        )
        for one in full:
            total -= sizes.pop(one)
            yield _stacked(*waiting.pop(one))
    for keys, held in waiting.values():
        yield _stacked(keys, held)


def _rounded_up(bins: int) -> int:
    step = max(1, (1 << bins.bit_length() - 1) // STEPS_PER_OCTAVE) if bins else 1
    return math.ceil(bins / step) * step


def _stacked(keys: list[Key], held: list[tuple[Tensor, ...]]) -> Stack:
    if len(held) == 1:
        return Stack(keys, [values.unsqueeze(0) for values in held[0]], None)
    columns = list(zip(*held, strict=True))
    if len({values.shape[-1] for values in columns[0]}) == 1:
        return Stack(keys, [torch.stack(column) for column in columns], None)
    responses, *others = (_padded(column) for column in columns)
    lengths = torch.tensor([values.shape[-1] for values in columns[0]], device=responses.device)
    if bool(torch.isfinite(responses.sum())):
        return Stack(keys, [responses, *others], lengths)
    outside = torch.arange(responses.shape[-1], device=responses.device) >= lengths.unsqueeze(1)
    return Stack(keys, [responses.masked_fill_(outside[:, None, None], torch.nan), *others], None)


def _padded(parts: tuple[Tensor, ...]) -> Tensor:
    longest = max(part.shape[-1] for part in parts)
    out = parts[0].new_zeros(len(parts), *parts[0].shape[:-1], longest)
    rows: Iterable[Any] = out.unbind()
    pieces: Iterable[Any] = parts
    if out.device.type == "cpu" and out.dtype in (torch.float32, torch.float64):  # NumPy is quicker
        rows, pieces = iter(out.numpy()), [part.detach().numpy() for part in parts]
    for row, piece in zip(rows, pieces, strict=True):
        row[..., : piece.shape[-1]] = piece
    return out
