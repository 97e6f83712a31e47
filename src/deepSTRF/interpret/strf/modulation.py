"""Modulation transfer functions of STRFs: power of the two-dimensional Fourier transform by rate and scale.

Maps are read on an octave axis; positive rates move up in frequency (Depireux, Simon, Klein & Shamma 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepSTRF._validation import (
    FloatArray,
    as_numbers,
    ascending_frequencies,
    check_positive_int,
    check_positive_number,
    checked,
)
from deepSTRF.interpret.strf.table import contrast

#: The grid of rates and scales is this many times as fine as the STRF's own length and height give.
FINER = 4
#: Spacing of bands counts as even on a log axis when it varies by less than this share.
EVEN = 1e-3
#: No cochleagram ends below this; numbers that do are kilohertz.
LOWEST_TOP_HZ = 100.0


@dataclass(frozen=True)
class ModulationTransfer:
    """Power of STRFs by temporal rate and spectral scale.

    Attributes
    ----------
    rates_hz : array (R,). Ascending; positive rates are ripples that move up in frequency, negative ones move
        down.
    scales_cyc_oct : array (S,). Ascending from 0, cycles per octave.
    power : array (N, S, R). Squared magnitude of the two-dimensional Fourier transform.
    best_rate_hz, best_scale_cyc_oct : array (N,). Where the power, the mean of both directions, is largest,
        to the step of the axes. NaN for a map of zeros.
    direction_index : array (N,). ``(up - down) / (up + down)`` of the power at scales and rates other than 0.
    """

    rates_hz: FloatArray
    scales_cyc_oct: FloatArray
    power: FloatArray
    best_rate_hz: FloatArray
    best_scale_cyc_oct: FloatArray
    direction_index: FloatArray

    @property
    def temporal(self) -> FloatArray:
        """(N, R) power summed over scales."""
        return np.asarray(self.power.sum(axis=1))

    @property
    def spectral(self) -> FloatArray:
        """(N, S) power summed over rates."""
        return np.asarray(self.power.sum(axis=2))


@checked
def modulation_transfer(
    strfs: Any, frequencies_hz: Any, dt_ms: float, *, finer: int = FINER
) -> ModulationTransfer:
    """Return the modulation transfer functions of STRFs.

    The map is read on an octave axis (resampled there by straight lines when the bands are spaced otherwise)
    and padded with zeros, which interpolates the transform.

    Parameters
    ----------
    strfs : Tensor or array (N, F, T), (N, 1, F, T) or (F, T)
        STRFs, the current frame last.
    frequencies_hz : array (F,)
        Centre of each band, ascending.
    dt_ms : float
        Frame in ms.
    finer : int
        How many times finer than the natural grid the axes are.

    Returns
    -------
    ModulationTransfer
        Power and its summary.

    Raises
    ------
    ValueError, TypeError
        For arguments of another shape or range, or a single band.

    References
    ----------
    Depireux, Simon, Klein & Shamma 2001, doi 10.1152/jn.2001.85.3.1220; Singh & Theunissen 2003, doi
    10.1121/1.1624067.

    Examples
    --------
    >>> hertz, frames = 500.0 * 2.0 ** (np.arange(24) / 6), np.arange(40)
    >>> upward = np.cos(2 * np.pi * (0.05 * frames - 0.5 / 6 * np.arange(24)[:, None]))  # 10 Hz, 0.5/oct
    >>> transfer = modulation_transfer(upward, hertz, dt_ms=5.0)
    >>> abs(transfer.best_rate_hz.item() - 10) < 1, abs(transfer.best_scale_cyc_oct.item() - 0.5) < 0.05
    (True, True)
    >>> transfer.direction_index.item() > 0.8, transfer.power.shape, transfer.temporal.shape
    (True, (1, 49, 159), (1, 159))
    """
    maps, hertz, dt = checked_strfs(strfs, frequencies_hz, dt_ms)
    finer = check_positive_int("finer", finer)
    maps, step = _on_octaves(maps, hertz)
    n_scales, n_rates = (2 * ((finer * size + 1) // 2) for size in maps.shape[1:])
    spectrum = np.fft.fft2(maps, s=(n_scales, n_rates), axes=(1, 2))[:, : n_scales // 2 + 1]
    scales = np.arange(n_scales // 2 + 1) / (n_scales * step)
    # exp(-i w t) with w < 0 is the pattern whose frequency rises with time: that is our positive rate
    rates = 0.0 - np.asarray(np.fft.fftfreq(n_rates, dt / 1000.0), dtype=np.float64)  # no negative zero
    order = np.argsort(rates)
    rates, power = rates[order], np.abs(spectrum[:, :, order]) ** 2
    # the top rate and its negative are one and the same of an even transform: without a direction, left out
    rates, power = rates[:-1], power[:, :, :-1]
    zero = int(np.argmin(np.abs(rates)))
    up, down = power[:, :, zero:], power[:, :, zero::-1]
    both = 0.5 * (up + down)
    flat = both.reshape(len(maps), -1)
    scale_at, rate_at = np.unravel_index(flat.argmax(axis=1), both.shape[1:])
    some = flat.max(axis=1, initial=0.0) > 0
    summed_up, summed_down = up[:, 1:, 1:].sum(axis=(1, 2)), down[:, 1:, 1:].sum(axis=(1, 2))
    return ModulationTransfer(
        rates_hz=rates,
        scales_cyc_oct=scales,
        power=power,
        best_rate_hz=np.where(some, rates[zero:][rate_at], np.nan),
        best_scale_cyc_oct=np.where(some, scales[scale_at], np.nan),
        direction_index=contrast(summed_up, summed_down),
    )


def checked_strfs(
    strfs: Any, frequencies_hz: Any, dt_ms: float, *, axis: bool = True
) -> tuple[FloatArray, Any, float]:
    """Return STRFs (N, F, T), frequencies (F,) and the frame in ms, all as float64.

    ``axis``: an axis of at least two frequencies is needed; else one band will do, or None for its frequency.
    """
    maps, dt = checked_maps(strfs), check_positive_number("dt_ms", dt_ms)
    if frequencies_hz is None and not axis and maps.shape[1] == 1:
        return maps, None, dt
    hertz = ascending_frequencies(frequencies_hz, maps.shape[1])
    if len(hertz) < 2 and axis:
        raise ValueError("modulation and Gabor fits need at least 2 bands; strf_tuning takes one")
    if hertz[-1] < LOWEST_TOP_HZ:
        raise ValueError(
            f"frequencies_hz end at {hertz[-1]:g} Hz, below hearing: they look like kilohertz, give "
            "1000 * frequencies"
        )
    return maps, hertz, dt


def checked_maps(strfs: Any) -> FloatArray:
    """Return STRFs (N, F, T) as float64, from (N, F, T), (N, 1, F, T) or (F, T)."""
    maps = as_numbers(strfs, "strfs")
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(
            f"strfs must be (N, F, T), (N, 1, F, T) or (F, T), none of them 0, got shape {maps.shape}; of a "
            "model with two channels take one, or use model.STRF_gradmap()"
        )
    broken = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if broken.size:
        raise ValueError(
            f"strfs hold values that are not finite, in {broken.size} of {len(maps)} maps (first: "
            f"{broken[0]}); leave those out"
        )
    return maps


def _on_octaves(maps: FloatArray, hertz: FloatArray) -> tuple[FloatArray, float]:
    """Maps (N, F, T) on bands (F,) that are evenly spaced in octaves, and the spacing."""
    octaves = np.log2(hertz)
    even = np.linspace(octaves[0], octaves[-1], len(octaves))
    step = float(even[1] - even[0])
    if np.abs(octaves - even).max() <= EVEN * step:
        return maps, step
    right = np.clip(np.searchsorted(octaves, even), 1, len(octaves) - 1)
    share = (even - octaves[right - 1]) / (octaves[right] - octaves[right - 1])
    share = share[None, :, None]
    return maps[:, right - 1] * (1.0 - share) + maps[:, right] * share, step
