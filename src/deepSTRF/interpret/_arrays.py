"""Tensors and arrays alike as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_numbers"]


def as_numbers(values: Any) -> NDArray[np.float64]:
    """Return a tensor (on any device, with or without gradient) or anything array-like in float64.

    Parameters
    ----------
    values : Tensor or array_like
        Numbers of any shape.

    Returns
    -------
    array
        Same shape, on the CPU.

    Examples
    --------
    >>> import torch
    >>> as_numbers(torch.tensor([1.0, 2.0], requires_grad=True))
    array([1., 2.])
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
