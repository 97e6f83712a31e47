"""Stacks of clips of one shape: what costs the same for one clip and for a hundred is paid once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["STACK_BYTES", "stacks"]

Key = TypeVar("Key")

#: Bytes of responses that are worked on at once, and that wait until there are enough of one shape.
STACK_BYTES, WAITING_BYTES = 8 * 2**20, 64 * 2**20


def stacks(clips: Iterable[tuple[Key, tuple[Tensor, ...]]]) -> Iterator[tuple[list[Key], list[Tensor]]]:
    """Stack the tensors of clips of one shape along a new first axis, with their keys: a few MB at once."""
    waiting: dict[Any, tuple[list[Key], list[tuple[Tensor, ...]]]] = {}
    total, sizes = 0, {}  # type: int, dict[Any, int]
    for key, tensors in clips:
        shape = tuple((values.shape, values.dtype) for values in tensors)
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


def _stacked(keys: list[Key], held: list[tuple[Tensor, ...]]) -> tuple[list[Key], list[Tensor]]:
    if len(held) == 1:
        return keys, [values.unsqueeze(0) for values in held[0]]
    return keys, [torch.stack(column) for column in zip(*held, strict=True)]
