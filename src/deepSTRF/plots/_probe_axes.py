"""Axes of probes: tones on a log axis, cells around values, stacks of curves. No figure here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray, as_array, as_series
from deepSTRF.plots._style import kilohertz_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ascending", "cell_edges", "log_edges", "stacked", "tone_axis", "tones_of"]


def ascending(values: Any, name: str) -> FloatArray:
    """Return an ascending finite series."""
    series = as_series(values, name)
    if (np.diff(series) <= 0).any() or not np.isfinite(series).all():
        raise ValueError(f"{name} must ascend, got {series}")
    return series


def tones_of(frequencies_khz: Any) -> FloatArray:
    """Return tones in kHz, above 0, for a log axis."""
    tones = ascending(frequencies_khz, "frequencies_khz")
    if tones[0] <= 0:
        raise ValueError(f"frequencies_khz must be above 0, the axis is logarithmic; got {tones[0]:g}")
    return tones


def stacked(values: Any, name: str, shape: tuple[int, ...], single: bool = False) -> FloatArray:
    """Return an array with a leading axis of neurons."""
    array = as_array(values, name)
    array = array[None] if array.ndim == len(shape) else array
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or (single and len(array) != 1):
        wanted = str(shape) if single else f"{shape}, or a stack of such, one per neuron"
        raise ValueError(f"{name} must have shape {wanted}, got {np.shape(values)}")
    return array


def cell_edges(centres: FloatArray) -> FloatArray:
    """Return the edges (P + 1,) of cells around ascending centres."""
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def log_edges(centres: FloatArray) -> FloatArray:
    """Return the edges of cells that are even on a log axis."""
    return np.asarray(2.0 ** cell_edges(np.log2(centres)))


def tone_axis(ax: Axes, tones: FloatArray) -> None:
    """Make the x axis one of tones in kHz."""
    edges = log_edges(tones)
    kilohertz_axis(ax, "x", 1000.0 * float(edges[0]), 1000.0 * float(edges[-1]))
