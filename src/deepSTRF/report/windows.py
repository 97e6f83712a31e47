"""How many lags of a receptive field to draw: recurrent models have long windows, mostly empty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["shown_lags"]

#: Lags are drawn as far back as this share of the squared weights of nearly all maps lies.
ENERGY, MAPS = 0.99, 0.9
#: And a little further, so that one sees that it ends there.
MARGIN = 1.25
#: Only a window that is mostly empty is cut; below this gain it stays whole.
WORTH_IT = 2.0


def shown_lags(maps: Any) -> int:
    """Return how many of the most recent lags of some receptive fields are worth drawing.

    Parameters
    ----------
    maps : array (K, F, T)
        Most recent lag last.

    Returns
    -------
    int
        T, unless at least half of the window is empty.

    Examples
    --------
    >>> field = np.zeros((1, 4, 60)); field[..., -6:] = 1.0
    >>> shown_lags(field), shown_lags(np.ones((1, 4, 9)))
    (8, 9)
    """
    energy = np.asarray(maps, dtype=np.float64) ** 2
    n_lags = int(energy.shape[-1])
    summed = np.cumsum(energy.sum(axis=1)[:, ::-1], axis=1)
    alive = summed[:, -1] > 0
    if not alive.any():
        return n_lags
    needed = (summed[alive] < ENERGY * summed[alive, -1:]).sum(axis=1) + 1
    enough = math.ceil(MARGIN * float(np.quantile(needed, MAPS)))
    return enough if WORTH_IT * enough <= n_lags else n_lags
