"""What probes share behind the playing: the base of their results, and measures of evoked rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import FloatArray, check_choice
from deepSTRF.interpret.probes.presentation import Presentation
from deepSTRF.interpret.probes.sounds import sweep
from deepSTRF.interpret.strf.table import NeuronTable
from deepSTRF.interpret.strf.tuning import refined_peak

MEASURES = ("mean", "peak")
#: A sound that evokes less than this share of a neuron's best response evokes nothing: at -40 dB spectral
#: leakage, the ramps of tones and rounding remain, and an index with that as denominator means nothing.
LEAST_SHARE = 0.01
#: Length of the sweeps that find the best response, and of the silence after them.
SWEEP_MS, SWEEP_TAIL_MS = 1000.0, 200.0
#: Time constants tried per round of the search; each round searches closer around the best of the last.
N_TRIED, N_ROUNDS = 61, 3
#: Fewer samples than this do not determine a time constant.
LEAST_SAMPLES = 4


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe: arrays over the neurons that were read, and their summary.

    Attributes
    ----------
    neurons : list of int. Which neurons; K of them are the first axis of all arrays over neurons.
    """

    neurons: list[int]

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        return NeuronTable(tuple(self.neurons), self._summary())

    def _summary(self) -> Mapping[str, FloatArray]:
        """Columns (K,) of the table by name."""
        raise NotImplementedError

    def _named(self, prefix: str, *names: str) -> dict[str, FloatArray]:
        """Attributes as columns, with a prefix before their names."""
        return {prefix + name: getattr(self, name) for name in names}


def sharing(values: FloatArray) -> Iterator[tuple[Any, NDArray[np.bool_]]]:
    """Yield each value (or row) of (K,) or (K, D), and which neurons (K,) share it, hence their sounds."""
    for value in np.unique(values, axis=0):
        own = values == value
        yield value, own if own.ndim == 1 else own.all(axis=1)


def mean_or_peak(rates: FloatArray, measure: str) -> FloatArray:
    """Return the mean or the peak (...) of rates (..., T) over time."""
    check_choice("measure", measure, MEASURES)
    return np.asarray(rates.mean(axis=-1) if measure == "mean" else rates.max(axis=-1))


def least_response(presentation: Presentation, level_db: float, n_bins: int = 1) -> FloatArray:
    """Rate (K,) below which a sound evokes nothing: `LEAST_SHARE` of the neuron's best at that level.

    The best is the largest mean over ``n_bins``, of either sign, while tones sweep up and down across all
    bands; so it does not depend on which sounds a probe was given.
    """
    low, high = presentation.frequency_range()
    n_samples = presentation.samples(SWEEP_MS)
    both = [sweep(*ends, n_samples, presentation.fs, level_db) for ends in ((low, high), (high, low))]
    evoked, _ = presentation.evoke(both, 2, tail_ms=SWEEP_TAIL_MS)
    sums = np.pad(evoked, ((0, 0), (0, 0), (n_bins, n_bins - 1))).cumsum(axis=-1)
    means = (sums[..., n_bins:] - sums[..., :-n_bins]) / n_bins
    return np.asarray(LEAST_SHARE * np.abs(means).max(axis=(1, 2)))


def peak_times(time_ms: FloatArray, evoked: FloatArray) -> FloatArray:
    """Return when evoked rates (..., T) are highest, between bins; NaN where nothing is evoked."""
    flat = evoked.reshape(-1, evoked.shape[-1])
    times = [
        refined_peak(time_ms, curve, int(curve.argmax())) if curve.max(initial=0.0) > 0 else np.nan
        for curve in flat
    ]
    return np.asarray(times, dtype=np.float64).reshape(evoked.shape[:-1])


def first_crossing(axis: FloatArray, curve: FloatArray, level: float) -> float:
    """Return where a curve (P,) first attains a level, by straight lines between samples; NaN if never."""
    above = np.flatnonzero(curve >= level)
    if above.size == 0:
        return float("nan")
    at = int(above[0])
    if at == 0:
        return float(axis[0])
    share = (level - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(axis[at - 1] + share * (axis[at] - axis[at - 1]))


def last_periods(
    presentation: Presentation, evoked: FloatArray, rate_hz: float, n_bins: int
) -> tuple[FloatArray, NDArray[np.complex128]]:
    """Return the last whole periods (K, P) of rates (K, T) within ``n_bins``, and ``exp(-2 pi i rate t)``."""
    period = 1000.0 / (abs(rate_hz) * presentation.dt_ms)  # bins
    n_bins = min(n_bins, max(1, round(max(1, int(n_bins / period + 1e-9)) * period)))
    seconds = presentation.time_ms(evoked.shape[1])[-n_bins:] / 1000.0
    return evoked[:, -n_bins:], np.exp(-2j * np.pi * rate_hz * seconds)


def decay_time_constant(
    time_ms: FloatArray, curve: FloatArray, least_explained: float
) -> tuple[float, float]:
    """Return time constant and amplitude of the exponential nearest to a curve (P,); NaN where none fits.

    The curve is ``steady + amplitude * exp(-t / tau)``. Of each time constant the best steady value and
    amplitude are known in closed form (least squares), so that only the time constant is searched.
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
