"""What several probes measure on rates: windows, peaks and when they come, thresholds on a curve."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.listener import Listener
from deepSTRF.interpret.tuning_curves import refined_peak
from deepSTRF.models._checks import check_choice

__all__ = ["check_ascending", "first_crossing", "peak_times", "strength", "values_per_neuron"]

FloatArray = NDArray[np.float64]

MEASURES = ("mean", "peak")


def strength(listener: Listener, rates: FloatArray, window_ms: float, measure: str = "mean") -> FloatArray:
    """Return one number per sound and neuron: mean or peak of the evoked rate in the window after the onset.

    Parameters
    ----------
    listener : Listener
        Who heard the sounds.
    rates : array (..., K, lead_bins + T)
        From ``listener.play``.
    window_ms : float
        Window from the onset.
    measure : {"mean", "peak"}
        Mean over the window, or its largest value.

    Returns
    -------
    array (..., K)
        In the model's unit (spikes per bin), baseline subtracted.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> ear = SimpleNamespace(evoked=lambda rates: rates - 1.0, bins=lambda ms: int(ms // 5))
    >>> strength(ear, np.array([[1.0, 2.0, 4.0, 9.0]]), 15.0)
    array([1.33333333])
    """
    check_choice("measure", measure, MEASURES)
    part = listener.evoked(rates)[..., : listener.bins(window_ms)]
    return np.asarray(part.mean(axis=-1) if measure == "mean" else part.max(axis=-1))


def peak_times(time_ms: FloatArray, evoked: FloatArray) -> FloatArray:
    """Return when evoked rates are highest, between bins.

    Parameters
    ----------
    time_ms : array (T,)
        Middles of the bins.
    evoked : array (..., T)
        Rates less the baseline.

    Returns
    -------
    array (...)
        Times in ms; NaN where nothing rises above 0.

    Examples
    --------
    >>> peak_times(np.array([2.5, 7.5, 12.5]), np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
    array([7.5, nan])
    """
    flat = evoked.reshape(-1, evoked.shape[-1])
    times = [
        refined_peak(time_ms, curve, int(curve.argmax())) if curve.max(initial=0.0) > 0 else np.nan
        for curve in flat
    ]
    return np.asarray(times, dtype=np.float64).reshape(evoked.shape[:-1])


def first_crossing(axis: FloatArray, curve: FloatArray, level: float) -> float:
    """Return where a curve first reaches a level, by straight lines between samples; NaN when it never does.

    Parameters
    ----------
    axis, curve : array (P,)
        Ascending places and values.
    level : float
        The level.

    Returns
    -------
    float
        The place; the first sample's where the curve starts at or above the level.

    Examples
    --------
    >>> first_crossing(np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 3.0]), 2.0)
    15.0
    """
    above = np.flatnonzero(curve >= level)
    if above.size == 0:
        return float("nan")
    at = int(above[0])
    if at == 0:
        return float(axis[0])
    share = (level - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(axis[at - 1] + share * (axis[at] - axis[at - 1]))


def values_per_neuron(name: str, values: Any, n_neurons: int) -> FloatArray:
    """Return one number per neuron from one for all, or from a sequence.

    Parameters
    ----------
    name : str
        The argument, for the error text.
    values : float or sequence of float (K,)
        What was given.
    n_neurons : int
        K.

    Returns
    -------
    array (K,)
        One each.

    Raises
    ------
    ValueError
        For another number of values, or values that are not finite.

    Examples
    --------
    >>> values_per_neuron("probe_hz", 1000.0, 2)
    array([1000., 1000.])
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_neurons) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a number or {n_neurons} numbers, one per neuron, all finite; got {values!r}. A "
            "neuron without a best frequency is left out with Listener(..., neurons=[...])"
        )
    return np.broadcast_to(array, (n_neurons,)).astype(np.float64)


def check_ascending(name: str, values: FloatArray, above: float | None = None) -> None:
    """Check that values are one ascending finite series.

    Parameters
    ----------
    name : str
        The argument, for the error text.
    values : array (P,)
        What was given.
    above : float, optional
        All must lie above this.

    Raises
    ------
    ValueError
        When they are not.

    Examples
    --------
    >>> check_ascending("levels_db", np.array([-20.0, -10.0]))
    """
    legal = values.ndim == 1 and values.size > 0 and np.isfinite(values).all() and (np.diff(values) > 0).all()
    if not legal or (above is not None and values[0] <= above):
        extra = "" if above is None else f" above {above:g}"
        raise ValueError(f"{name} must be one ascending series of finite numbers{extra}, got {values}")
