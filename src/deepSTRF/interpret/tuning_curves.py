"""Peaks, widths and crossings of sampled curves, between the samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Extent", "extent_above", "refined_peak"]

FloatArray = NDArray[np.float64]


class Extent(NamedTuple):
    """Where a curve stays above a level around its peak.

    Attributes
    ----------
    low, high : float
        Places of the crossings, in units of the axis; the end of the axis where there is none.
    closed : bool
        Whether the curve falls below the level on both sides, so that the width is known.

    Examples
    --------
    >>> Extent(1.0, 3.0, True).width
    2.0
    """

    low: float
    high: float
    closed: bool

    @property
    def width(self) -> float:
        """Distance between the crossings."""
        return self.high - self.low


def refined_peak(axis: FloatArray, curve: FloatArray, index: int) -> float:
    """Return the place of a maximum between samples, by the parabola through three of them.

    Parameters
    ----------
    axis : array (P,)
        Evenly spaced places.
    curve : array (P,)
        Values.
    index : int
        Sample of the maximum.

    Returns
    -------
    float
        Place; the sample's own at the ends of the axis.

    Examples
    --------
    >>> round(refined_peak(np.arange(5.0), 1 - (np.arange(5.0) - 2.3) ** 2, 2), 6)
    2.3
    """
    if not 0 < index < len(curve) - 1:
        return float(axis[index])
    before, here, after = (float(value) for value in curve[index - 1 : index + 2])
    bend = before - 2.0 * here + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return float(axis[index] + np.clip(shift, -0.5, 0.5) * (axis[index + 1] - axis[index]))


def extent_above(axis: FloatArray, curve: FloatArray, index: int, level: float) -> Extent:
    """Return where a curve crosses a level on either side of a sample, by straight lines between samples.

    Parameters
    ----------
    axis : array (P,)
        Ascending places.
    curve : array (P,)
        Values; NaN is below any level.
    index : int
        A sample at or above the level.
    level : float
        The level.

    Returns
    -------
    Extent
        Crossings.

    Examples
    --------
    >>> extent_above(np.arange(4.0), np.array([0.0, 1.0, 0.5, 0.5]), 1, 0.5)
    Extent(low=0.5, high=3.0, closed=False)
    """
    ends, closed = [], True
    for step in (-1, 1):
        here = index
        while 0 <= here + step < len(curve) and curve[here + step] >= level:
            here += step
        beyond = here + step
        if not 0 <= beyond < len(curve):
            ends.append(float(axis[here]))
            closed = False
            continue
        fall = curve[here] - curve[beyond]
        share = (curve[here] - level) / fall if np.isfinite(fall) and fall > 0 else 0.0
        ends.append(float(axis[here] + share * (axis[beyond] - axis[here])))
    return Extent(ends[0], ends[1], closed)
