"""Tensors and arrays alike as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_numbers"]


def as_numbers(values: Any, name: str = "values") -> NDArray[np.float64]:
    """Return a tensor (on any device, with or without gradient) or anything array-like in float64.

    Examples
    --------
    >>> import torch
    >>> as_numbers(torch.tensor([1.0, 2.0], requires_grad=True))
    array([1., 2.])
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().resolve_conj().numpy() if values.is_complex() else _plain(values)
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64)
    except (ValueError, TypeError, RuntimeError):
        pass  # ragged lists: told below
    raise ValueError(
        f"{name} must be a tensor or array of real numbers, of one shape throughout; got "
        f"{type(values).__name__}"
    )


def _plain(values: Tensor) -> NDArray[np.float64]:
    # .double() before .numpy(): NumPy has no bfloat16
    return np.asarray(values.detach().cpu().double().numpy(), dtype=np.float64)
