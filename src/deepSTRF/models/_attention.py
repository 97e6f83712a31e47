"""What the attention modules share: checks of their sizes, and the angles of position codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepSTRF.models._checks import check_positive_int

__all__ = [
    "check_even",
    "check_heads",
    "check_window",
    "first_frame",
    "forbidden_keys",
    "frame_angles",
    "turn_pairs",
]

#: Longest wavelength of the position codes is 2 pi times this (Vaswani et al. 2017, section 3.5).
_BASE = 10_000.0


def check_window(context_window: int) -> int:
    """Return ``context_window`` after checking that it is an integer of at least 1."""
    try:
        return check_positive_int("context_window", context_window)
    except ValueError as error:
        raise ValueError(
            f"{error}: it counts the frames that a layer sees, the current one included (e.g. 60), and None "
            "is all of the past"
        ) from None


def check_even(name: str, value: int) -> int:
    """Return ``value`` after checking that it is an even positive integer."""
    number = check_positive_int(name, value)
    if number % 2:
        raise ValueError(
            f"{name} must be even for a position code (a sine and a cosine per pair), got {number}; "
            f"{' or '.join(str(n) for n in (number - 1, number + 1) if n)} would work"
        )
    return number


def check_heads(n_heads: int, embed_dim: int) -> int:
    """Return ``n_heads`` after checking that it divides ``embed_dim``."""
    heads = check_positive_int("n_heads", n_heads)
    if embed_dim % heads:
        legal = [number for number in range(1, embed_dim + 1) if embed_dim % number == 0]
        raise ValueError(f"n_heads must divide the width {embed_dim}, got {heads}; these do: {legal}")
    return heads


def first_frame(x: Tensor) -> Tensor:
    """Number of the first frame of a whole clip, for all clips of a batch: (1,), zero."""
    return torch.zeros(1, dtype=torch.int64, device=x.device)


def frame_angles(first: Tensor, n_frames: int, width: int) -> Tensor:
    """Angles (B, T, width / 2) of the frames from number ``first`` (B,) on.

    In float64, so that a stream of days has the angles that it would have had in one pass; Apple's GPU has no
    float64.
    """
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    index = torch.arange(0, width, 2, device=first.device, dtype=dtype)
    number = first.unsqueeze(-1) + torch.arange(n_frames, device=first.device)
    return number.unsqueeze(-1).to(dtype) * torch.exp(index * (-math.log(_BASE) / width))


def turn_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its angle."""
    real, imaginary = x[..., 0::2], x[..., 1::2]
    pairs = [real * cosine - imaginary * sine, real * sine + imaginary * cosine]
    return torch.stack(pairs, dim=-1).flatten(-2)


def forbidden_keys(first: Tensor, n_blocks: int, block: int, window: int) -> Tensor:
    """Which keys of a block no query may see, (B, 1, n_blocks, block, block + window - 1).

    Key c of a block is ``window - 1 - c`` frames older than the block's first query.
    """
    column = torch.arange(block + window - 1, device=first.device)
    age = torch.arange(block, device=first.device).unsqueeze(1) + (window - 1) - column
    start = torch.arange(n_blocks, device=first.device) * block - (window - 1)
    number = first.view(-1, 1, 1) + start.unsqueeze(1) + column  # (B, n_blocks, span)
    unseen = (age < 0) | (age >= window)
    return (unseen | (number < 0).unsqueeze(-2)).unsqueeze(1)
