"""A cube root that can be learned through."""

from __future__ import annotations

from torch import Tensor

__all__ = ["smooth_cube_root"]

#: Keeps the slope finite at silence; shifts the value by at most 1e-6.
_EPSILON = 1e-18


def smooth_cube_root(energy: Tensor) -> Tensor:
    """Return ``(x + 1e-18)^(1/3) - 1e-6``, exactly 0 at 0 and with a finite slope there.

    Parameters
    ----------
    energy : Tensor
        Any shape, not negative.

    Returns
    -------
    Tensor
        Same shape.

    Examples
    --------
    >>> import torch
    >>> smooth_cube_root(torch.tensor([0.0, 1e-3, 8.0]))
    tensor([0.0000, 0.1000, 2.0000])
    """
    offset: float = _EPSILON ** (1.0 / 3.0)
    root = (energy + _EPSILON) ** (1.0 / 3.0)
    # the difference of the two roots without cancellation: (a - b) = (a^3 - b^3) / (a^2 + a b + b^2)
    return energy / (root * (root + offset) + offset**2)
