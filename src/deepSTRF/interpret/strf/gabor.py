"""Gabor patches fitted to STRFs: centre, extent, rate, scale, amplitude and phase.

Amplitude and phase follow from the other six numbers by linear least squares, so that only those are searched
(Qiu, Schreiner & Escabi 2003, doi 10.1152/jn.00851.2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepSTRF._validation import FloatArray, checked
from deepSTRF.interpret.strf.modulation import checked_strfs, modulation_transfer
from deepSTRF.interpret.strf.table import NeuronTable, row_names

#: Starts of rate and scale: none, and this many of the strongest of the modulation transfer function.
STARTS_FROM_TRANSFER = 2
#: Bounds of the two standard deviations: a third of a bin (narrower is a single weight) to the whole axis.
NARROWEST = 1.0 / 3.0
#: The fitted numbers, in the order in which they are stored.
_NUMBERS = ("frequency_hz", "latency_ms", "sd_octaves", "sd_ms", "rate_hz", "scale_cyc_oct", "amplitude",
            "phase", "r2")  # fmt: skip
#: Keeps the two amplitudes defined where one of the two patches vanishes (no rate, no scale).
RIDGE = 1e-9


@dataclass(frozen=True)
class GaborFit:
    """Gabor patches fitted to N STRFs.

    With x octaves and t milliseconds from the centre, t running forward, the patch is ``amplitude *
    exp(-x^2 / 2 sd_x^2 - t^2 / 2 sd_t^2) * cos(2 pi (rate t / 1000 - scale x) + phase)``.

    Attributes
    ----------
    frequency_hz, latency_ms : array (N,). Centre of the envelope.
    sd_octaves, sd_ms : array (N,). Its standard deviations.
    rate_hz, scale_cyc_oct : array (N,). Modulation; the scale is 0 or positive and a positive rate moves up
        in frequency.
    amplitude, phase : array (N,). Size (0 or positive) and phase at the centre in radians, -pi to pi: 0 is
        excitation, +-pi suppression.
    r2 : array (N,). Share of the STRF's energy that the patch explains.
    fitted : array (N, F, T). The patches. All numbers of a map of zeros are NaN, its patch is 0.
    """

    frequency_hz: FloatArray
    latency_ms: FloatArray
    sd_octaves: FloatArray
    sd_ms: FloatArray
    rate_hz: FloatArray
    scale_cyc_oct: FloatArray
    amplitude: FloatArray
    phase: FloatArray
    r2: FloatArray
    fitted: FloatArray

    def table(self, neurons: tuple[Any, ...] | None = None) -> NeuronTable:
        """Return the numbers, one row per neuron, as columns ``gabor_...``."""
        rows = row_names(neurons, len(self.r2))
        return NeuronTable(rows, {f"gabor_{name}": getattr(self, name) for name in _NUMBERS})


@checked
def fit_gabor(strfs: Any, frequencies_hz: Any, dt_ms: float) -> GaborFit:
    """Fit a Gabor patch to each STRF by least squares, from several starts.

    Parameters
    ----------
    strfs : Tensor or array (N, F, T), (N, 1, F, T) or (F, T)
        STRFs, the current frame last.
    frequencies_hz : array (F,)
        Centre of each band, ascending.
    dt_ms : float
        Frame in ms.

    Returns
    -------
    GaborFit
        Parameters, share of energy explained, and the patches.

    References
    ----------
    Qiu, Schreiner & Escabi 2003, doi 10.1152/jn.00851.2002.

    Examples
    --------
    >>> hertz, t = 500.0 * 2.0 ** (np.arange(13) / 6), 5.0 * np.arange(11)
    >>> bump = np.exp(-0.5 * (np.log2(hertz / 1000.0) / 0.3)[:, None] ** 2 - 0.5 * ((t - 30.0) / 8.0) ** 2)
    >>> fit = fit_gabor(bump, hertz, dt_ms=5.0)
    >>> round(fit.frequency_hz.item()), round(fit.latency_ms.item(), 1), round(fit.sd_ms.item(), 1)
    (1000, 20.0, 8.0)
    """
    maps, hertz, dt = checked_strfs(strfs, frequencies_hz, dt_ms)
    octaves = np.log2(hertz / hertz[0])
    ms = (np.arange(maps.shape[2]) - (maps.shape[2] - 1)) * dt  # 0 is the current frame
    numbers = np.full((len(maps), len(_NUMBERS)), np.nan)
    patches = np.zeros_like(maps)
    for index, image in enumerate(maps):
        if not image.any():
            continue
        size = float(np.abs(image).max())
        found = _fit_one(image / size, octaves, ms, _starts(image, octaves, ms, hertz, dt))
        patch, (cosine, sine) = _patch(found, image / size, octaves, ms)
        x, t, log_x, log_t, scale, rate = found
        patches[index] = size * patch
        explained = 1.0 - ((image - patches[index]) ** 2).sum() / (image**2).sum()
        if scale < 0:  # the same patch, with its phase turned
            scale, rate, sine = -scale, -rate, -sine
        numbers[index] = (
            hertz[0] * 2.0**x, -t, math.exp(log_x), math.exp(log_t), 1000.0 * rate, scale,
            size * math.hypot(cosine, sine), math.atan2(-sine, cosine), explained,
        )  # fmt: skip
    return GaborFit(**dict(zip(_NUMBERS, numbers.T, strict=True)), fitted=patches)


def _patch(
    values: FloatArray, image: FloatArray, octaves: FloatArray, ms: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The best patch with these six numbers, and its cosine and sine amplitudes."""
    x0, t0, log_x, log_t, scale, rate = values
    x, t = (octaves - x0)[:, None], (ms - t0)[None, :]
    envelope = np.exp(-0.5 * (x / math.exp(log_x)) ** 2 - 0.5 * (t / math.exp(log_t)) ** 2)
    angle = 2.0 * math.pi * (rate * t - scale * x)
    pair = np.stack([(envelope * np.cos(angle)).ravel(), (envelope * np.sin(angle)).ravel()])
    gram = pair @ pair.T
    gram += RIDGE * max(float(np.trace(gram)), RIDGE) * np.eye(2)
    amplitudes = np.linalg.solve(gram, pair @ image.ravel())
    return (amplitudes @ pair).reshape(image.shape), amplitudes


def _fit_one(image: FloatArray, octaves: FloatArray, ms: FloatArray, starts: list[FloatArray]) -> FloatArray:
    """The six numbers of the best patch: centre, log extents, scale (cycles/octave) and rate (cycles/ms)."""
    from scipy.optimize import least_squares

    band, dt = octaves[1] - octaves[0], (ms[1] - ms[0]) if len(ms) > 1 else 1.0
    wide, long = octaves[-1] - octaves[0] + band, ms[-1] - ms[0] + dt
    low = [octaves[0] - band, ms[0] - dt, math.log(NARROWEST * band), math.log(NARROWEST * dt),
           -0.5 / band, -0.5 / dt]  # fmt: skip
    high = [octaves[-1] + band, dt, math.log(wide), math.log(long), 0.5 / band, 0.5 / dt]
    bounds = (np.asarray(low), np.asarray(high))
    best: Any = None
    for start in starts:
        inside = np.clip(start, bounds[0] + 1e-6, bounds[1] - 1e-6)
        found = least_squares(
            lambda values: (_patch(values, image, octaves, ms)[0] - image).ravel(),
            inside, bounds=bounds, x_scale=[band, dt, 0.3, 0.3, 0.2 / wide, 0.2 / long],
        )  # fmt: skip
        if best is None or found.cost < best.cost:
            best = found
    return np.asarray(best.x, dtype=np.float64)


def _starts(
    image: FloatArray, octaves: FloatArray, ms: FloatArray, hertz: FloatArray, dt: float
) -> list[FloatArray]:
    """Centre and spread of the energy, with no modulation and with the strongest ones of the transfer."""
    energy = image**2 / (image**2).sum()
    by_band, by_time = energy.sum(1), energy.sum(0)
    x, t = float(by_band @ octaves), float(by_time @ ms)
    sd_x = math.sqrt(float(by_band @ (octaves - x) ** 2)) * math.sqrt(2.0)
    sd_t = math.sqrt(float(by_time @ (ms - t) ** 2)) * math.sqrt(2.0)
    widths = [math.log(max(sd_x, octaves[1] / 2)), math.log(max(sd_t, dt / 2))]
    transfer = modulation_transfer(image, hertz, dt, finer=2)
    strongest = np.argsort(transfer.power[0].ravel())[::-1][:STARTS_FROM_TRANSFER]
    scale_at, rate_at = np.unravel_index(strongest, transfer.power.shape[1:])
    modulations = [(0.0, 0.0)] + [
        (float(transfer.scales_cyc_oct[s]), float(transfer.rates_hz[r]) / 1000.0)
        for s, r in zip(scale_at, rate_at, strict=True)
    ]
    return [np.asarray([x, t, *widths, scale, rate]) for scale, rate in modulations]
