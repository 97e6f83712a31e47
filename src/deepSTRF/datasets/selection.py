"""Selectors of clips and neurons: indices, slices, masks, metadata values, predicates."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["as_index", "resolve_selection"]

Index = npt.NDArray[np.int64]


def _is_boolean(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype == torch.bool
    return isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) == np.bool_


def as_index(value: Any, length: int, what: str) -> int:
    """``value`` as a non-negative index below ``length``."""
    if _is_boolean(value):
        raise TypeError(f"a {what} index is an integer, got the boolean {value!r}")
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"a {what} index is an integer, got {type(value).__name__}") from None
    if not -length <= index < length:
        legal = f"there are {length} (0..{length - 1})" if length else "there are 0"
        raise IndexError(f"{what} {index} is out of range: {legal}")
    return index % length


def resolve_selection(selector: Any, meta: Sequence[Mapping[str, Any]], what: str) -> Index:
    """Indices that a selector chooses among the rows of ``meta``, order and duplicates kept."""
    length = len(meta)
    if selector is None:
        return np.arange(length, dtype=np.int64)
    if isinstance(selector, slice):
        return np.arange(length, dtype=np.int64)[selector]
    if isinstance(selector, Mapping):
        return _matching(selector, meta, what)
    if callable(selector):
        return _accepted(selector, meta, what)
    if isinstance(selector, str) or (_is_boolean(selector) and np.ndim(selector) == 0):
        raise TypeError(f"{selector!r} selects no {what}; give indices, or {{'key': value}} for metadata")
    if isinstance(selector, (torch.Tensor, np.ndarray)) and np.ndim(selector) == 1 and len(selector) == 0:
        return np.empty(0, dtype=np.int64)
    if not hasattr(selector, "__len__") or np.ndim(selector) == 0:
        return np.array([as_index(selector, length, what)], dtype=np.int64)
    items = list(selector)
    if items and all(_is_boolean(item) for item in items):
        if len(items) != length:
            raise ValueError(f"a {what} mask needs one entry per {what} ({length}), got {len(items)}")
        return np.flatnonzero([bool(item) for item in items]).astype(np.int64)
    return np.array([as_index(item, length, what) for item in items], dtype=np.int64)


def _matching(wanted: Mapping[str, Any], meta: Sequence[Mapping[str, Any]], what: str) -> Index:
    keep = np.ones(len(meta), dtype=bool)
    for key, value in wanted.items():
        if meta and not any(key in row for row in meta):
            known = sorted({str(name) for row in meta for name in row})
            raise KeyError(f"no {what} has metadata {key!r}; known keys: {', '.join(known) or 'none'}")
        accepted = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        keep &= np.array([key in row and row[key] in accepted for row in meta], dtype=bool)
    return np.flatnonzero(keep).astype(np.int64)


def _accepted(predicate: Callable[[Any], Any], meta: Sequence[Mapping[str, Any]], what: str) -> Index:
    chosen = []
    for index, row in enumerate(meta):
        try:
            if predicate(row):
                chosen.append(index)
        except Exception as error:
            error.add_note(
                f"raised by the selection predicate for {what} {index} with metadata {dict(row)!r}"
            )
            raise
    return np.array(chosen, dtype=np.int64)
