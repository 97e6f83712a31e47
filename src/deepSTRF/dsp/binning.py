"""Means of sampled signals over bins of any rational width, without drift, and the low-pass before them.

Positions are counted in samples: sample j stands at j, and bin k covers ``[first + k * step, first + (k + 1)
* step)`` with exact fractions ``first`` and ``step``. Only offsets within a stretch are floats.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bin_edges", "held_means", "linear_means", "lowpass_reach", "lowpass_taps"]

Floats = npt.NDArray[np.float64]

#: The low-pass passes up to this share of the Nyquist frequency of the bins and stops what is above it.
PASS_SHARE = 0.6
#: Attenuation of what it stops in dB. Kaiser 1974; formulas as in Oppenheim & Schafer, Discrete-Time Signal
#: Processing, 7.6: beta = 0.1102 (A - 8.7), M = (A - 7.95) / (2.285 * transition width).
ATTENUATION_DB = 70.0
#: Nodes of the integral over the frequencies that pass: its cosines turn at most six times.
_NODES = 64


def bin_edges(first: Fraction, step: Fraction, start: int, stop: int) -> tuple[int, Floats]:
    """Edges of the bins ``start`` to ``stop``: a whole number of samples, and offsets (n + 1,) from it."""
    origin = first + start * step
    base = math.floor(origin)
    offsets: Floats = np.arange(stop - start + 1, dtype=np.float64) * float(step)
    return base, offsets + float(origin - base)


def held_means(values: npt.NDArray[Any], edges: Floats) -> Floats:
    """Means (..., n) of values (..., L) over bins, each value counting up to the next sample."""
    return _means(values, edges, linear=False)


def linear_means(values: npt.NDArray[Any], edges: Floats) -> Floats:
    """Means (..., n) over bins of the straight lines between samples (..., L), the last value held."""
    return _means(values, edges, linear=True)


def _means(values: npt.NDArray[Any], edges: Floats, *, linear: bool) -> Floats:
    """Differences of the integral at the edges; the mean of the values is taken out: sums are small."""
    x = np.asarray(values, dtype=np.float64)
    level = x.mean(axis=-1, keepdims=True)
    x = np.concatenate([x - level, x[..., -1:] - level], axis=-1)
    steps = np.diff(x, axis=-1) if linear else np.zeros_like(x[..., :-1])
    sums = np.zeros_like(x)
    np.cumsum(x[..., :-1] + 0.5 * steps, axis=-1, out=sums[..., 1:])
    at = np.minimum(np.floor(edges).astype(np.int64), x.shape[-1] - 2)
    part = edges - at
    integral = sums[..., at] + part * (x[..., at] + 0.5 * part * steps[..., at])
    means: Floats = np.diff(integral, axis=-1) / np.diff(edges) + level
    return means


def lowpass_reach(step: Fraction) -> int:
    """Samples to each side that the low-pass of bins of ``step`` samples sees; 0 where it does nothing."""
    if step <= 1:
        return 0
    width = math.pi * (1.0 - PASS_SHARE) / float(step)  # of the transition, in rad per sample
    return math.ceil((ATTENUATION_DB - 7.95) / (2.285 * width) / 2)


def lowpass_taps(step: Fraction, up: int = 1) -> Floats:
    """Taps (2 * reach + 1,) of a linear-phase low-pass before `linear_means`, stopping at half the bin rate.

    With ``up`` above 1 they are for a signal with ``up - 1`` zeros after each sample; a constant stays
    what it is exactly.

    What it passes comes out of the means at the centres of bins as it was, at 0 Hz exactly: the taps are the
    inverse transform of ``1 / (sinc(f)**2 sinc(f * step))``, which the lines and the means take off, in a
    Kaiser window.
    """
    reach = lowpass_reach(step)
    cutoff = (1.0 + PASS_SHARE) / 4.0 / float(step)  # in cycles per sample
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    f = 0.5 * cutoff * (nodes + 1.0)
    gain = weights / (np.sinc(f) ** 2 * np.sinc(f * float(step)))
    half = np.cos(2.0 * np.pi * np.outer(np.arange(reach + 1), f)) @ gain
    taps: Floats = np.concatenate([half[:0:-1], half])
    taps *= np.kaiser(2 * reach + 1, 0.1102 * (ATTENUATION_DB - 8.7))
    for phase in range(up):
        taps[phase::up] /= taps[phase::up].sum()
    return taps
