"""Two small tools that the fast convolutions share: staggered rows and the removal of subnormal taps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["stagger_rows", "zero_subnormal_taps"]


def stagger_rows(rows: Tensor, step: int) -> Tensor:
    """Shift row ``r`` to the right by ``r * step`` and fill the gaps with zeros.

    This turns copies of one filter into a Toeplitz matrix, and overlapping pieces of a sum into rows that can
    be added. It is one padding and one view: cheap, exact and differentiable to any order.

    Parameters
    ----------
    rows : Tensor
        (..., R, L).
    step : int
        Columns between successive rows, at least 0.

    Returns
    -------
    Tensor
        (..., R, L + (R - 1) * step).

    Raises
    ------
    ValueError
        When ``step`` is negative or ``rows`` has fewer than two axes.

    Examples
    --------
    >>> stagger_rows(torch.tensor([[1, 2], [3, 4], [5, 6]]), step=1)
    tensor([[1, 2, 0, 0],
            [0, 3, 4, 0],
            [0, 0, 5, 6]])
    """
    if rows.ndim < 2 or step < 0:
        raise ValueError(f"rows need two axes and step >= 0, got shape {tuple(rows.shape)} and step {step}")
    *lead, n_rows, length = rows.shape
    width = length + (n_rows - 1) * step
    # rows padded to width + step, laid end to end and cut every `width` values: each row starts `step` later
    flat = functional.pad(rows, (0, n_rows * step)).reshape(*lead, n_rows * (width + step))
    return flat[..., : n_rows * width].reshape(*lead, n_rows, width)


def zero_subnormal_taps(taps: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Set taps to zero whose products with ordinary samples would be subnormal numbers.

    Processors handle subnormal numbers up to a hundred times slower; a Gaussian or exponential tail is full
    of them. The threshold is the smallest normal number over the machine epsilon (1e-31 in float32).

    Parameters
    ----------
    taps : Tensor
        Filter taps or powers of a coefficient, any shape, real or complex.
    precision : torch.dtype, optional
        Precision in which they will be used; that of ``taps`` when left out.

    Returns
    -------
    Tensor
        Same shape; the gradient of a zeroed tap is zero.

    Examples
    --------
    >>> zero_subnormal_taps(torch.tensor([1.0, 1e-35]))
    tensor([1., 0.])
    """
    info = torch.finfo(precision or taps.dtype)
    # exact zeros stay as they are: they cost nothing and keep their gradient
    negligible = (taps.abs() < info.tiny / info.eps) & (taps != 0)
    return torch.where(negligible, torch.zeros_like(taps), taps)
