"""Checks of what probes play: a sound that cannot be played as described would give a misleading number."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepSTRF._validation import FloatArray, as_numbers, check_positive_number


def ascending(name: str, values: Any, above: float | None = None) -> FloatArray:
    """Return one ascending finite series (P,)."""
    series = as_numbers(values, name)
    legal = series.ndim == 1 and series.size > 0 and np.isfinite(series).all() and (np.diff(series) > 0).all()
    if not legal or (above is not None and series[0] <= above):
        extra = "" if above is None else f" above {above:g}"
        raise ValueError(f"{name} must be one ascending series of finite numbers{extra}, got {series}")
    return series


def one_per_neuron(name: str, values: Any, n_neurons: int) -> FloatArray:
    """Return one number per neuron (K,), from one for all or from a sequence."""
    array = as_numbers(values, name)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_neurons) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a number or {n_neurons} numbers, one per neuron, all finite; got {values!r}. A "
            "neuron without a best frequency is left out with Presentation(..., neurons=[...])"
        )
    return np.broadcast_to(array, (n_neurons,)).copy()


def check_audible(name: str, hertz: Any, audio_fs: float | None) -> None:
    """Check that frequencies can be played: above 0, and below half the audio rate, where they fold back."""
    values = np.ravel(as_numbers(hertz, name))
    top = math.inf if not audio_fs else 0.5 * audio_fs
    wrong = values[~((values > 0) & (values < top))]
    if wrong.size:
        raise ValueError(
            f"{name} must lie above 0 and below {top:g} Hz, half of the {audio_fs or 0:g} samples per "
            f"second; got {wrong[0]:g} Hz"
        )


def two_frequencies(name: str, range_hz: Any, audio_fs: float | None) -> tuple[float, float]:
    """Return two ascending audible frequencies."""
    values = as_numbers(range_hz, name)
    if values.shape != (2,) or not 0 < values[0] < values[1]:
        raise ValueError(f"{name} must be two ascending positive numbers, got {range_hz!r}")
    check_audible(name, values, audio_fs)
    return float(values[0]), float(values[1])


def check_lengths(**lengths_ms: Any) -> None:
    """Check lengths in ms: those of tails are 0 or more, all others above 0."""
    for name, value in lengths_ms.items():
        if name == "tail_ms" and isinstance(value, numbers.Real) and value == 0:
            continue
        check_positive_number(name, value)


def check_levels(**levels_db: Any) -> None:
    """Check single finite numbers: levels in dB."""
    for name, value in levels_db.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def modulation_rates(usual: Sequence[float], rates_hz: Any, dt_ms: float) -> FloatArray:
    """Return modulation rates (R,) that bins of this length show; of the usual ones where None are given."""
    shown = 500.0 / dt_ms
    if rates_hz is None:
        rates_hz = [rate for rate in usual if rate < shown]
    rates = ascending("rates_hz", rates_hz, above=0.0)
    if rates[-1] >= shown:
        raise ValueError(f"bins of {dt_ms:g} ms show rates below {shown:g} Hz, got {rates[-1]:g}")
    return rates


def check_periods(name: str, rates_hz: FloatArray, measured_ms: float) -> None:
    """Check that a whole period of each rate (R,) lies in the stretch that is measured."""
    if rates_hz[0] * measured_ms < 1000.0 * (1.0 - 1e-9):
        raise ValueError(
            f"{name} must be {1000.0 / measured_ms:.3g} Hz or more for a whole period to lie in the "
            f"{measured_ms:g} ms that are measured, got {rates_hz[0]:g}; or lengthen duration_ms"
        )
