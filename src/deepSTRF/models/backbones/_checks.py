"""Checks that the sequence models share."""

from __future__ import annotations

import numbers

from torch import Tensor

__all__ = ["check_dropout", "check_sequence"]


def check_dropout(dropout: object) -> float:
    """Return a dropout probability as a float.

    Raises
    ------
    TypeError
        When it is no real number.
    ValueError
        When it is not in [0, 1).
    """
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real):
        raise TypeError(f"dropout must be a number of at least 0 and below 1, got {dropout!r}")
    share = float(dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {share}")
    return share


def check_sequence(x: Tensor, input_size: int) -> None:
    """Raise a ValueError unless ``x`` is (B, T, input_size) with at least one frame."""
    if x.ndim != 3 or x.shape[2] != input_size or x.shape[1] == 0:
        raise ValueError(
            f"expected a sequence (B, T, {input_size}) of at least one frame, got {tuple(x.shape)}"
        )
