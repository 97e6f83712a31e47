"""Checks that the sequence models share."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_sequence"]


def check_sequence(x: Tensor, input_size: int) -> None:
    """Raise a ValueError unless ``x`` is (B, T, input_size) with at least one frame."""
    if x.ndim != 3 or x.shape[2] != input_size or x.shape[1] == 0:
        raise ValueError(
            f"expected a sequence (B, T, {input_size}) of at least one frame, got {tuple(x.shape)}"
        )
