"""Modulation transfer functions: which ripples a receptive field lets through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import (
    FloatArray,
    as_array,
    as_series,
    check_columns,
    check_positive,
    check_titles,
)
from deepSTRF.plots._style import GREY, LABEL_SIZE, TICK_SIZE, TITLE_SIZE, left_title, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_modulation_transfer"]

PANEL_INCHES = (2.3, 2.1)


def plot_modulation_transfer(
    power: Any,
    rates_hz: Any,
    scales_cyc_oct: Any,
    titles: Sequence[str] | None = None,
    ncols: int = 4,
    *,
    shared_clim: bool = False,
    max_rate_hz: float | None = None,
    cmap: str = "viridis",
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw modulation transfer functions: the magnitude (square root of power) by rate and scale.

    Parameters
    ----------
    power : array (K, S, R) or (S, R)
        From `deepSTRF.interpret.modulation_transfer`, or squared amplitudes of `ripple_responses`.
    rates_hz : array (R,)
        Ascending; positive rates move up in frequency.
    scales_cyc_oct : array (S,)
        Ascending, cycles per octave. Rates or scales that are not evenly spaced get cells of one size, each
        with its value.
    titles : sequence of str, optional
        One per panel.
    ncols : int
        Panels per row.
    shared_clim : bool
        One colour scale for all panels, with a colour bar; else each from 0 to its own largest.
    max_rate_hz : float, optional
        Show rates up to this (above 0), of either sign; None shows all.
    cmap : str
        A sequential colour map.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of K axes)

    Raises
    ------
    ValueError
        For shapes that do not fit each other, axes that do not ascend, or power below 0.

    Examples
    --------
    >>> figure, (panel,) = plot_modulation_transfer(np.ones((3, 5)), [-20, -10, 0, 10, 20], [0.0, 0.5, 1.0])
    >>> panel.get_xlabel(), panel.get_ylabel(), [float(edge) for edge in panel.get_xlim()]
    ('rate (Hz)', 'scale (cycles/octave)', [-25.0, 25.0])
    """
    rates, scales = as_series(rates_hz, "rates_hz"), as_series(scales_cyc_oct, "scales_cyc_oct")
    magnitude = _magnitudes(power, scales.size, rates.size)
    check_titles(titles, len(magnitude))
    _check_ascending(rates, "rates_hz")
    _check_ascending(scales, "scales_cyc_oct")
    columns = check_columns(ncols, len(magnitude))
    check_positive(max_rate_hz, "max_rate_hz")
    rows = math.ceil(len(magnitude) / columns)
    if figure is None:
        width, height = PANEL_INCHES
        figure = new_figure(figsize or (max(3.2, width * columns + 0.6), height * rows + 0.4))
    grid = figure.subplots(rows, columns, squeeze=False)
    top = float(magnitude.max()) or 1.0
    axes: list[Axes] = []
    for panel, ax in enumerate(grid.flat):
        if panel >= len(magnitude):
            ax.set_visible(False)
            continue
        highest = top if shared_clim else float(magnitude[panel].max()) or 1.0
        shown = _draw(ax, magnitude[panel], rates, scales, max_rate_hz, {"cmap": cmap, "vmax": highest})
        ax.set_xlabel("rate (Hz)" if panel + columns >= len(magnitude) else "")
        ax.set_ylabel("" if panel % columns else "scale (cycles/octave)")
        ax.tick_params(labelleft=panel % columns == 0)
        left_title(ax, titles[panel] if titles is not None else None, LABEL_SIZE)
        tidy(ax)
        axes.append(ax)
    if shared_clim:
        bar = figure.colorbar(shown, ax=axes, shrink=0.85)
        bar.set_label("magnitude", fontsize=TICK_SIZE)
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _magnitudes(power: Any, n_scales: int, n_rates: int) -> FloatArray:
    values = as_array(power, "power")
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] != (n_scales, n_rates) or not len(values):
        raise ValueError(
            f"power must have shape (K, S, R) or (S, R) with S={n_scales} and R={n_rates}, got {values.shape}"
        )
    if (values < 0).any() or not np.isfinite(values).all():
        raise ValueError("power must be finite and not negative; pass squared magnitudes")
    return np.asarray(np.sqrt(values))


def _draw(
    ax: Axes,
    image: FloatArray,
    rates: FloatArray,
    scales: FloatArray,
    max_rate_hz: float | None,
    colours: dict[str, Any],
) -> Any:
    """Draw one panel; places that are not evenly spaced, as those of played ripples, get equal cells."""
    if max_rate_hz is not None and not _even(rates):
        kept = np.abs(rates) <= max_rate_hz
        image, rates = image[:, kept], rates[kept]
    x_edges, y_edges = _edges(rates), _edges(scales)
    shown = ax.imshow(
        image, origin="lower", aspect="auto", interpolation="nearest", extent=(*x_edges, *y_edges), vmin=0.0,
        **colours,
    )  # fmt: skip
    for values, set_ticks in ((rates, ax.set_xticks), (scales, ax.set_yticks)):
        if not _even(values):
            set_ticks(
                np.arange(values.size), [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in values]
            )
    ax.axvline(0.0 if _even(rates) else float((rates < 0).sum()) - 0.5, color=GREY, linewidth=0.6)
    if max_rate_hz is not None and _even(rates):
        ax.set_xlim(max(-max_rate_hz, x_edges[0]), min(max_rate_hz, x_edges[1]))
    if _even(scales):
        ax.set_ylim(max(0.0, y_edges[0]), y_edges[1])
    return shown


def _even(values: FloatArray) -> bool:
    steps = np.diff(values)
    return values.size > 1 and bool(np.allclose(steps, steps[0], rtol=1e-3))


def _edges(centres: FloatArray) -> tuple[float, float]:
    """Outer edges of the first and the last cell; of cells that count, where values are not evenly spaced."""
    if not _even(centres):
        return -0.5, centres.size - 0.5
    half = 0.5 * float(centres[1] - centres[0])
    return float(centres[0]) - half, float(centres[-1]) + half


def _check_ascending(values: FloatArray, name: str) -> None:
    if not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise ValueError(f"{name} must be ascending finite values, got {values}")
