"""Symmetric analysis windows, built in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["WINDOWS", "symmetric_window"]

#: Cosine-sum windows ``a0 - a1 cos(2 pi n / (L - 1))`` by name: (a0, a1). Harris 1978, doi
#: 10.1109/PROC.1978.10837.
WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"hann": (0.5, 0.5), "hamming": (0.54, 0.46), "boxcar": (1.0, 0.0)}
)


def symmetric_window(name: str, length: int) -> Tensor:
    """Return a symmetric window: its first and last values are equal.

    Parameters
    ----------
    name : {"hann", "hamming", "boxcar"}
        Which window.
    length : int
        Number of samples, at least 1.

    Returns
    -------
    Tensor
        (length,) float64 on the CPU.

    Raises
    ------
    ValueError
        For an unknown name or a length below 1.

    References
    ----------
    Harris 1978, doi 10.1109/PROC.1978.10837.

    Examples
    --------
    >>> symmetric_window("hann", 5)
    tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if name not in WINDOWS:
        raise ValueError(f"unknown window {name!r}; legal names: {', '.join(map(repr, WINDOWS))}")
    if length < 1:
        raise ValueError(f"the length of a window must be at least 1, got {length}")
    if length == 1:
        return torch.ones(1, dtype=torch.float64)
    constant, cosine = WINDOWS[name]
    phase = 2.0 * math.pi / (length - 1) * torch.arange(length, dtype=torch.float64)
    return constant - cosine * torch.cos(phase)
