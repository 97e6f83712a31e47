"""Tuning of STRFs as a table of numbers, and peaks and widths of sampled curves, between the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import FloatArray, check_choice, check_flag, checked, checked_but
from deepSTRF.interpret.strf.gabor import fit_gabor
from deepSTRF.interpret.strf.modulation import checked_maps, checked_strfs, modulation_transfer
from deepSTRF.interpret.strf.table import NeuronTable, contrast, ratio, row_names
from deepSTRF.interpret.strf.waveform_field import rf_duration_ms

PEAKS = ("excitatory", "largest")
#: Maps whose modulation transfer is held in memory at once.
AT_ONCE = 64


@checked_but("neurons")
def strf_tuning(
    strfs: Any,
    frequencies_hz: Any,
    dt_ms: float,
    *,
    peak: str = "excitatory",
    gabor: bool = False,
    neurons: Sequence[Any] | None = None,
    first_lag: int = 0,
) -> NeuronTable:
    """Summarise the tuning of STRFs.

    Peaks can be compared between bands when weights are per standard deviation of each band, as fitted
    models return them: per unit of the spectrogram, a band that hardly varies has the largest weight. Peaks
    and half heights are found between bands and frames (a parabola on the octave axis where bands are evenly
    spaced there, straight lines), from the profiles through the peak of the map.

    Parameters
    ----------
    strfs : Tensor or array (N, F, T), (N, 1, F, T) or (F, T)
        STRFs, the current frame last: ``model.STRFs(folded=True)`` or ``model.STRF_gradmap()``; with
        ``unit="raw"`` there, the tuning is per unit of the spectrogram.
    frequencies_hz : array (F,) or None
        Centre of each band, ascending. Of one band, whose frequency may be None, columns that need an axis of
        frequencies are NaN.
    dt_ms : float
        Frame in ms.
    peak : {"excitatory", "largest"}
        The largest positive weight, or the largest of either sign.
    gabor : bool
        Whether to add the columns of `fit_gabor` (slower).
    neurons : sequence, optional
        Names of the rows; None counts from 0.
    first_lag : int
        Lag of the last frame, where that is not the current one (``model.first_lag``): ``latency_ms`` and
        ``rf_duration_ms`` count from the response, and are negative after it.

    Returns
    -------
    NeuronTable
        Columns: ``best_frequency_hz``, ``latency_ms`` (lag of the peak, 0 is the current frame),
        ``bandwidth_octaves`` and ``duration_ms`` (widths at half height), ``bandwidth_known`` and
        ``duration_known`` (False where the profile does not fall to half height inside the map: the width
        then reaches to its edge and is a lower bound), ``rf_duration_ms`` (99 % of the mass),
        ``peak_weight``, ``separability`` (see `separability_index`), ``excitation`` and ``inhibition`` (sums
        of positive and of negative weights, both positive numbers), ``ei_balance`` (their difference by their
        sum), ``best_rate_hz``, ``best_scale_cyc_oct``, ``direction_index`` (of `modulation_transfer`;
        positive is upward). What a neuron lacks is NaN: one without a positive weight has no excitatory peak.

    Examples
    --------
    >>> hertz = 500.0 * 2.0 ** (np.arange(13) / 6)
    >>> bump = np.exp(-0.5 * (np.log2(hertz / 1000.0) / 0.3)[:, None] ** 2) * np.array([0, 0, 1, 2, 1, 0])
    >>> table = strf_tuning(bump, hertz, dt_ms=5.0)
    >>> [round(table[name].item(), 3) for name in ("best_frequency_hz", "latency_ms", "duration_ms")]
    [1000.0, 10.0, 10.0]
    """
    maps, hertz, dt = checked_strfs(strfs, frequencies_hz, dt_ms, axis=False)
    check_choice("peak", peak, PEAKS)
    names = row_names(neurons, len(maps))
    profiles = [_peak_tuning(image, hertz, dt, peak) for image in maps]
    excitation = np.maximum(maps, 0.0).sum(axis=(1, 2))
    inhibition = np.maximum(-maps, 0.0).sum(axis=(1, 2))
    columns: dict[str, NDArray[Any]] = {
        name: np.asarray([profile[name] for profile in profiles]) for name in _WITHOUT_PEAK
    }
    columns["latency_ms"] = columns["latency_ms"] + first_lag * dt
    columns |= {
        "rf_duration_ms": np.asarray(rf_duration_ms(maps, dt_ms=dt)) + first_lag * dt,
        "separability": separability_index(maps),
        "excitation": excitation,
        "inhibition": inhibition,
        "ei_balance": contrast(excitation, inhibition),
    }
    columns |= _modulation(maps, hertz, dt)
    table = NeuronTable(names, columns)
    return table.joined(fit_gabor(maps, hertz, dt).table(names)) if check_flag("gabor", gabor) else table


def _modulation(maps: FloatArray, hertz: FloatArray | None, dt: float) -> dict[str, FloatArray]:
    """Columns of the modulation transfer functions; of one band the rate only."""
    names = ("best_rate_hz", "best_scale_cyc_oct", "direction_index")
    unknown = np.full(len(maps), np.nan)
    if maps.shape[1] == 1:  # the same map in two bands: its rates at scale 0
        transfer = modulation_transfer(np.repeat(maps, 2, axis=1), [1000.0, 2000.0], dt)
        still = transfer.power[:, 0]
        best = np.abs(transfer.rates_hz)[still.argmax(axis=1)]
        return {names[0]: np.where(still.any(axis=1), best, np.nan), names[1]: unknown, names[2]: unknown}
    # in blocks: the transforms are a hundred times as large as the maps
    blocks = [
        modulation_transfer(maps[first : first + AT_ONCE], hertz, dt)
        for first in range(0, len(maps), AT_ONCE)
    ]
    return {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}


@checked
def separability_index(strfs: Any) -> FloatArray:
    """Return how nearly each STRF is one spectral profile times one temporal profile.

    Parameters
    ----------
    strfs : Tensor or array (N, F, T), (N, 1, F, T) or (F, T)
        STRFs.

    Returns
    -------
    array (N,)
        Squared first singular value over the sum of all squares: 1 is separable; NaN for a map of zeros.

    Raises
    ------
    ValueError
        For maps of another shape, or that are not finite.

    References
    ----------
    Depireux, Simon, Klein & Shamma 2001, doi 10.1152/jn.2001.85.3.1220.

    Examples
    --------
    >>> separability_index(np.outer([1.0, 2.0], [3.0, 4.0, 5.0])).round(6), separability_index(np.eye(2))
    (array([1.]), array([0.5]))
    """
    power = np.asarray(np.linalg.svd(checked_maps(strfs), compute_uv=False), dtype=np.float64) ** 2
    return ratio(power[:, 0], power.sum(axis=-1))


#: Columns that depend on a peak, and their values without one.
_WITHOUT_PEAK: dict[str, Any] = {
    "best_frequency_hz": np.nan, "latency_ms": np.nan, "bandwidth_octaves": np.nan, "bandwidth_known": False,
    "duration_ms": np.nan, "duration_known": False, "peak_weight": np.nan,
}  # fmt: skip


def _peak_tuning(image: FloatArray, hertz: FloatArray | None, dt: float, peak: str) -> dict[str, Any]:
    """Columns of one map (F, T) that depend on its peak."""
    band, frame = np.unravel_index(
        int((image if peak == "excitatory" else np.abs(image)).argmax()), image.shape
    )
    weight = float(image[band, frame])
    if weight == 0 or (peak == "excitatory" and weight < 0):
        return _WITHOUT_PEAK
    upright = image * np.sign(weight)
    ms = (np.arange(image.shape[1]) - (image.shape[1] - 1)) * dt
    spectral, temporal = upright[:, frame], upright[band]
    length = extent_above(ms, temporal, int(frame), 0.5 * abs(weight))
    found = {
        **_WITHOUT_PEAK,
        "latency_ms": -refined_peak(ms, temporal, int(frame)) + 0.0,
        "duration_ms": length.width,
        "duration_known": length.closed,
        "peak_weight": weight,
    }
    if hertz is None or len(hertz) == 1:
        return found if hertz is None else {**found, "best_frequency_hz": float(hertz[0])}
    octaves = np.log2(hertz)
    width = extent_above(octaves, spectral, int(band), 0.5 * abs(weight))
    centre = refined_peak(octaves, spectral, int(band)) if is_even(octaves) else float(octaves[band])
    return {
        **found,
        "best_frequency_hz": 2.0**centre,
        "bandwidth_octaves": width.width,
        "bandwidth_known": width.closed,
    }


class Extent(NamedTuple):
    """Where a curve stays above a level around its peak, in units of the axis.

    An open end (not ``closed``) is the end of the axis: the width is a lower bound.
    """

    low: float
    high: float
    closed: bool

    @property
    def width(self) -> float:
        """Distance between the crossings."""
        return self.high - self.low


def is_even(axis: FloatArray) -> bool:
    """Whether an axis (P,) of two samples or more is evenly spaced, so that a parabola finds its peaks."""
    return np.allclose(np.diff(axis), axis[1] - axis[0], rtol=1e-3)


def refined_peak(axis: FloatArray, curve: FloatArray, index: int) -> float:
    """Return the place of a maximum of a curve (P,) between samples, by the parabola through three of them.

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
    """Return where a curve (P,) crosses a level on either side of a sample, between samples.

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
