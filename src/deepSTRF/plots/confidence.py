"""How sure an STRF is: its band of confidence along frequency and along time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray, as_array, check_frequencies, check_positive
from deepSTRF.plots._style import (
    BLUE,
    INK,
    LABEL_SIZE,
    TITLE_SIZE,
    draw_spectrogram,
    frequency_axis,
    left_title,
    new_figure,
    symmetric_limit,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_strf_confidence"]

FIGSIZE = (9.6, 3.1)
#: Weights whose band holds zero are drawn at this share of their ink.
UNSURE_ALPHA = 0.3
#: Ticks of the narrow panel, whose labels have many digits.
MOST_WEIGHTS = 3


def plot_strf_confidence(
    estimate: Any,
    low: Any,
    high: Any,
    dt_ms: float | None = None,
    *,
    cmap: str = "RdBu_r",
    suptitle: str | None = None,
    frequencies_hz: Any = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw one STRF with its confidence band: the map, and the profiles through its peak.

    In the map, weights whose band holds zero are pale. The profiles run through the largest weight, over
    frequency and over time, with the band shaded. The band is pointwise: of 100 weights that are nothing, a
    95% band leaves out zero for five.

    Parameters
    ----------
    estimate, low, high : array (F, T)
        One neuron of `deepSTRF.interpret.strf_confidence`; most recent lag last, lowest band first.
    dt_ms : float, optional
        Bin in ms; without it axes count bins.
    cmap : str
        A diverging colour map; limits are symmetric about 0.
    suptitle : str, optional
        Title of the figure.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of three axes)
        Map, profile over time, profile over frequency.

    Raises
    ------
    ValueError
        For arrays that are not one STRF and its band.

    Examples
    --------
    >>> strf = np.zeros((8, 5)); strf[3, 2] = 1.0
    >>> figure, axes = plot_strf_confidence(strf, strf - 0.2, strf + 0.2, dt_ms=5.0)
    >>> [ax.get_xlabel() for ax in axes]
    ['ms before the response', 'ms before the response', 'weight']
    """
    maps = [as_array(values, name) for values, name in ((estimate, "estimate"), (low, "low"), (high, "high"))]
    field, bottom, top = maps
    if field.ndim != 2 or 0 in field.shape or bottom.shape != field.shape or top.shape != field.shape:
        raise ValueError(
            "estimate, low and high must be one STRF (F, T) each, of one shape, got "
            f"{[one.shape for one in maps]}; of a StrfConfidence take .estimate[k], .low[k], .high[k]"
        )
    check_positive(dt_ms, "dt_ms")
    n_bands, n_lags = field.shape
    frequencies = check_frequencies(frequencies_hz, n_bands)
    if figure is None:
        figure = new_figure(figsize or FIGSIZE)
    axes: list[Axes] = list(figure.subplots(1, 3, width_ratios=(1.0, 1.1, 0.8)))
    step = dt_ms or 1.0
    _draw_map(axes[0], field, (bottom, top), n_lags * step, frequencies, cmap)
    band, lag = np.unravel_index(int(np.nanargmax(np.abs(np.nan_to_num(field)))), field.shape)
    ages = (np.arange(n_lags, 0, -1, dtype=np.float64) - 0.5) * step
    _draw_profiles(axes, maps, int(band), int(lag), ages)
    frequency_axis(axes[2], n_bands, frequencies)
    for ax in axes[:2]:
        ax.set_xlim(n_lags * step, 0.0)
        ax.set_xlabel("ms before the response" if dt_ms else "bins before the response")
    axes[2].locator_params(axis="x", nbins=MOST_WEIGHTS)
    axes[1].set_ylabel("weight")
    axes[2].set_xlabel("weight")
    at = f"{frequencies[band] / 1000:.3g} kHz" if frequencies is not None else f"band {band}"
    left_title(axes[1], f"at {at}", LABEL_SIZE)
    back = n_lags - 1 - lag  # a column spans a whole bin
    span = f"{back * step:g} to {(back + 1) * step:g} ms back" if dt_ms else f"at lag {back}"
    left_title(axes[2], span, LABEL_SIZE)
    for ax in axes:
        tidy(ax)
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _draw_map(
    ax: Axes,
    field: FloatArray,
    band: tuple[FloatArray, FloatArray],
    oldest: float,
    frequencies: FloatArray | None,
    cmap: str,
) -> None:
    limit = symmetric_limit(field)
    sure, has_band = (band[0] > 0) | (band[1] < 0), bool(np.isfinite(band[0]).any())
    alpha = np.where(sure | (not has_band), 1.0, UNSURE_ALPHA)
    draw_spectrogram(ax, field, (oldest, 0.0), frequencies, cmap=cmap, vmin=-limit, vmax=limit, alpha=alpha)
    known = f"{int(np.sum(sure))} of {field.size} weights are sure"
    known = known if has_band else "no band: too few clips"
    left_title(ax, known, LABEL_SIZE)


def _draw_profiles(axes: list[Axes], maps: list[FloatArray], band: int, lag: int, ages: FloatArray) -> None:
    (estimate, low, high), bands = maps, np.arange(len(maps[0]))
    axes[1].fill_between(ages, low[band], high[band], color=BLUE, alpha=0.25, linewidth=0)
    axes[1].plot(ages, estimate[band], color=BLUE, linewidth=1.4)
    axes[2].fill_betweenx(bands, low[:, lag], high[:, lag], color=BLUE, alpha=0.25, linewidth=0)
    axes[2].plot(estimate[:, lag], bands, color=BLUE, linewidth=1.4)
    axes[1].axhline(0.0, color=INK, linewidth=0.5)
    axes[2].axvline(0.0, color=INK, linewidth=0.5)
    axes[2].set_ylim(-0.5, len(bands) - 0.5)
