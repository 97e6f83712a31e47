"""What several probes measure on rates: windows, peaks and when they come, thresholds on a curve."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import check_choice
from deepSTRF.interpret.probes.presentation import Presentation
from deepSTRF.interpret.strf.table import refined_peak

__all__ = [
    "check_ascending", "decay_time_constant", "first_crossing", "peak_times", "strength", "values_per_neuron",
]  # fmt: skip

FloatArray = NDArray[np.float64]

MEASURES = ("mean", "peak")
#: Time constants tried per round of the search; each round looks closer around the best of the last.
N_TRIED, N_ROUNDS = 61, 3
#: Fewer samples than this do not tell a time constant.
LEAST_SAMPLES = 4


def strength(
    presentation: Presentation, rates: FloatArray, window_ms: float, measure: str = "mean"
) -> FloatArray:
    """Return one number per sound and neuron: mean or peak of the evoked rate in the window after the onset.

    Shapes: rates (..., K, lead_bins + T); returns (..., K).

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> ear = SimpleNamespace(evoked=lambda rates: rates - 1.0, bins=lambda ms: int(ms // 5))
    >>> strength(ear, np.array([[1.0, 2.0, 4.0, 9.0]]), 15.0)
    array([1.33333333])
    """
    check_choice("measure", measure, MEASURES)
    part = presentation.evoked(rates)[..., : presentation.bins(window_ms)]
    return np.asarray(part.mean(axis=-1) if measure == "mean" else part.max(axis=-1))


def peak_times(time_ms: FloatArray, evoked: FloatArray) -> FloatArray:
    """Return when evoked rates are highest, between bins.

    Shapes: time_ms (T,); evoked (..., T).

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

    Shapes: axis, curve (P,).

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


def decay_time_constant(
    time_ms: FloatArray, curve: FloatArray, least_explained: float
) -> tuple[float, float]:
    """Return time constant and amplitude of the exponential nearest to a curve.

    The curve is ``steady + amplitude * exp(-t / tau)``. Of each time constant the best steady value and
    amplitude are known in closed form (least squares), so that only the time constant is searched.

    Shapes: time_ms (P,); curve (P,).

    Examples
    --------
    >>> time = np.arange(0.0, 300.0, 5.0)
    >>> tau, amplitude = decay_time_constant(time, 1.0 + 2.0 * np.exp(-time / 40.0), 0.5)
    >>> round(tau, 2), round(amplitude, 2)
    (40.0, 2.0)
    """
    nothing = (float("nan"), float("nan"))
    if len(curve) < LEAST_SAMPLES:
        return nothing
    since, centred = time_ms - time_ms[0], curve - curve.mean()
    total = float((centred**2).sum())
    lowest, highest = 0.5 * float(since[1]), float(since[-1])
    if total <= len(curve) * (1e-6 * float(np.abs(curve).max())) ** 2:  # flat but for rounding
        return nothing
    low, high = lowest, highest
    for _ in range(N_ROUNDS):
        taus = np.geomspace(low, high, N_TRIED)
        shapes = np.exp(-since / taus[:, None])
        shapes -= shapes.mean(axis=1, keepdims=True)
        along, sizes = shapes @ centred, (shapes**2).sum(axis=1)
        at = int((along**2 / sizes).argmax())
        low, high = float(taus[max(at - 1, 0)]), float(taus[min(at + 1, N_TRIED - 1)])
    tau = float(taus[at])
    at_edge = tau <= lowest * 1.001 or tau >= highest / 1.001
    if at_edge or along[at] ** 2 / sizes[at] < least_explained * total:
        return nothing
    return tau, float(along[at] / sizes[at])


def values_per_neuron(name: str, values: Any, n_neurons: int) -> FloatArray:
    """Return one number per neuron from one for all, or from a sequence.

    Shapes: values (K,); returns (K,).

    Examples
    --------
    >>> values_per_neuron("probe_hz", 1000.0, 2)
    array([1000., 1000.])
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_neurons) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a number or {n_neurons} numbers, one per neuron, all finite; got {values!r}. A "
            "neuron without a best frequency is left out with Presentation(..., neurons=[...])"
        )
    return np.broadcast_to(array, (n_neurons,)).astype(np.float64)


def check_ascending(name: str, values: FloatArray, above: float | None = None) -> None:
    """Check that values are one ascending finite series.

    Shapes: values (P,).

    Examples
    --------
    >>> check_ascending("levels_db", np.array([-20.0, -10.0]))
    """
    legal = values.ndim == 1 and values.size > 0 and np.isfinite(values).all() and (np.diff(values) > 0).all()
    if not legal or (above is not None and values[0] <= above):
        extra = "" if above is None else f" above {above:g}"
        raise ValueError(f"{name} must be one ascending series of finite numbers{extra}, got {values}")
