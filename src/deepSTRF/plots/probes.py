"""Figures of responses to probe sounds: response areas, tuning, functions of a parameter, time courses.

The responses are those of `deepSTRF.interpret.probes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked, checked_but
from deepSTRF.plots._style import (
    INK,
    LABEL_SIZE,
    PALETTE,
    PLAIN,
    TICK_SIZE,
    FloatArray,
    as_array,
    as_ascending,
    check_columns,
    check_titles,
    draw_legend,
    figure_title,
    kilohertz_axis,
    left_title,
    line_label,
    new_figure,
    own_or_given,
    panel_grid,
    shades,
    shown_text,
    symmetric_limit,
    tick_text,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

AREA_INCHES = (2.5, 2.2)
CURVE_SIZE = (4.6, 3.2)
#: More lines than this get the shades of one map instead of a colour each.
MOST_COLOURS = 6
#: Up to so many values are ticked one by one.
MOST_TICKS = 8


@checked_but("ncols", "titles")
def plot_response_areas(
    response: Any,
    frequencies_khz: Any,
    levels_db: Any,
    threshold_db: Any = None,
    titles: Sequence[str] | None = None,
    ncols: int = 4,
    *,
    shared_clim: bool = False,
    cmap: str = "RdBu_r",
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw frequency-response areas: the evoked rate by tone frequency and level, with the threshold.

    Parameters
    ----------
    response : array (K, L, P) or (L, P)
        Evoked rate of `deepSTRF.interpret.probes.tone_responses`; red above the rate in silence, blue below.
    frequencies_khz : array (P,)
        Tones, ascending, evenly spaced on a log axis.
    levels_db : array (L,)
        Levels, ascending.
    threshold_db : array (K, P) or (P,), optional
        Drawn as a line; NaN where no level evokes a response.
    titles : sequence of str, optional
        One per panel.
    ncols : int
        Panels per row.
    shared_clim : bool
        One colour scale for all panels, with a colour bar.
    cmap : str
        A diverging colour map; limits are symmetric about 0.
    suptitle : str, optional
        Title of the figure.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of K axes)

    Examples
    --------
    >>> figure, (panel,) = plot_response_areas(np.ones((2, 3)), [0.5, 1.0, 2.0], [-40.0, -20.0])
    >>> panel.get_xlabel(), panel.get_xscale(), panel.get_ylabel()
    ('tone (kHz)', 'log', 'level (dB re 1)')
    """
    tones, levels = _tones(frequencies_khz), as_ascending(levels_db, "levels_db")
    areas = _stacked(response, "response", (levels.size, tones.size))
    thresholds = None if threshold_db is None else _stacked(threshold_db, "threshold_db", (tones.size,))
    if thresholds is not None and len(thresholds) != len(areas):
        raise ValueError(f"threshold_db holds {len(thresholds)} neurons, response {len(areas)}")
    check_titles(titles, len(areas))
    columns = check_columns(ncols, len(areas))
    if figure is None:
        width, height = AREA_INCHES
        size = (max(3.4, width * columns + 0.6), height * math.ceil(len(areas) / columns) + 0.4)
        figure = new_figure(figsize or size)
    axes = panel_grid(figure, len(areas), columns)
    for panel, ax in enumerate(axes):
        limit = symmetric_limit(areas if shared_clim else areas[panel])
        shown = ax.pcolormesh(
            _log_edges(tones),
            _cell_edges(levels),
            areas[panel],
            cmap=cmap,
            vmin=-limit,
            vmax=limit,
            rasterized=True,
        )
        if thresholds is not None:
            ax.plot(tones, thresholds[panel], color=INK, linewidth=1.2)
        _tone_axis(ax, tones)
        if panel + columns < len(areas):
            ax.set_xlabel("")
        ax.set_ylabel("" if panel % columns else "level (dB re 1)")
        left_title(ax, titles[panel] if titles is not None else None, LABEL_SIZE)
        tidy(ax)
    if shared_clim:
        figure.colorbar(shown, ax=axes, shrink=0.85, label="evoked rate")
    figure_title(figure, suptitle)
    return figure, axes


@checked
def plot_tuning_curves(
    response: Any,
    frequencies_khz: Any,
    levels_db: Any,
    *,
    best_khz: float | None = None,
    title: str | None = None,
    ylabel: str = "evoked rate",
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw one neuron's tuning curves: the evoked rate over tone frequency, one line per level.

    Parameters
    ----------
    response : array (L, P)
        Evoked rates.
    frequencies_khz : array (P,)
        Tones, ascending.
    levels_db : array (L,)
        Levels, ascending; louder is lighter.
    best_khz : float, optional
        Best frequency, marked by a dashed line.
    title, ylabel : str, optional
        Title, and label of the rate axis.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_tuning_curves(np.ones((2, 3)), [0.5, 1.0, 2.0], [-40.0, -20.0])
    >>> [line.get_label() for line in ax.lines[:2]]
    ['-40 dB', '-20 dB']
    """
    tones, levels = _tones(frequencies_khz), as_ascending(levels_db, "levels_db")
    (curves,) = _stacked(response, "response", (levels.size, tones.size), single=True)
    figure, ax = own_or_given(ax, figsize or CURVE_SIZE)
    for level, curve, colour in zip(levels, curves, shades(levels.size), strict=True):
        ax.plot(tones, curve, color=colour, linewidth=1.4, label=f"{level:g} dB")
    ax.axhline(0.0, color=INK, linewidth=0.5)
    if best_khz is not None and np.isfinite(best_khz):
        ax.axvline(best_khz, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    _tone_axis(ax, tones)
    ax.set_ylabel(shown_text(ylabel), **PLAIN)
    _legend_beside(ax, TICK_SIZE - 0.5)
    left_title(ax, title)
    tidy(ax)
    return figure, ax


@checked
def plot_probe_curves(
    x: Any,
    curves: Any,
    xlabel: str,
    ylabel: str,
    labels: Sequence[str] | None = None,
    *,
    log_x: bool = False,
    include: Sequence[float] = (),
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw a function of one sound parameter, one line per neuron: rate-level, latency, modulation, recovery.

    Parameters
    ----------
    x : array (P,)
        The parameter, ascending: ``NoiseResponse.levels_db``, ``AmResponse.rates_hz``, ...
    curves : array (K, P) or (P,)
        ``rate_level``, ``latency_ms``, ``modulation``, ``recovery``, ...; NaN leaves a gap.
    xlabel, ylabel : str
        Labels of the axes, with units.
    labels : sequence of str, optional
        One per neuron, for the legend.
    log_x : bool
        Whether the parameter is on a log axis.
    include : sequence of float
        Values that the vertical axis covers in any case, such as 0 and 1 for a share, so that rounding errors
        are not drawn large.
    title : str, optional
        Title.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_probe_curves([-60, -40, -20], [0.0, 0.5, 1.0], "level (dB re 1)", "evoked rate")
    >>> ax.get_xlabel(), len(ax.lines[0].get_xdata())
    ('level (dB re 1)', 3)
    """
    places = as_ascending(x, "x")
    if log_x and places[0] <= 0:
        raise ValueError(f"with log_x all of x must be above 0, got {places[0]:g}")
    lines = _stacked(curves, "curves", (places.size,))
    check_titles(labels, len(lines))
    colours: Any = PALETTE[:MOST_COLOURS] if len(lines) <= MOST_COLOURS else shades(len(lines))
    figure, ax = own_or_given(ax, figsize or CURVE_SIZE)
    for index, line in enumerate(lines):
        label = line_label(labels[index]) if labels is not None else None
        ax.plot(
            places,
            line,
            "o-",
            color=colours[index],
            linewidth=1.3,
            markersize=3.2,
            label=label,
        )
    if log_x:
        ax.set_xscale("log")
        ax.minorticks_off()
    if log_x or places.size <= MOST_TICKS:
        ax.set_xticks(places, [tick_text(place) for place in places])
    if len(include):
        ax.update_datalim([(float(places[0]), float(value)) for value in include])
        ax.autoscale_view()
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.set_xlabel(shown_text(xlabel), **PLAIN)
    ax.set_ylabel(shown_text(ylabel), **PLAIN)
    if labels is not None:
        _legend_beside(ax, TICK_SIZE)
    left_title(ax, title)
    tidy(ax)
    return figure, ax


@checked
def plot_probe_courses(
    time_ms: Any,
    courses: Any,
    labels: Sequence[str] | None = None,
    *,
    xlabel: str = "time after onset (ms)",
    ylabel: str = "evoked rate",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw one neuron's time courses, one line per sound: steps of level, clicks, context-swap correlations.

    Parameters
    ----------
    time_ms : array (T,)
        Middles of the bins, ascending; 0, where it lies within, is marked.
    courses : array (P, T) or (T,)
        ``LevelStepResponse.evoked[k]``, ``ClickResponse.evoked[k]``, ``ContextSwap.correlation[k]``, ...; NaN
        leaves a gap. Later sounds are lighter.
    labels : sequence of str, optional
        One per sound, for the legend.
    xlabel, ylabel : str
        Labels of the axes, with units.
    title : str, optional
        Title.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_probe_courses([2.5, 7.5, 12.5], np.ones((2, 3)), ["-40 to -20 dB", "-20 to -40 dB"])
    >>> ax.get_xlabel(), [line.get_label() for line in ax.lines[:2]]
    ('time after onset (ms)', ['-40 to -20 dB', '-20 to -40 dB'])
    """
    times = as_ascending(time_ms, "time_ms")
    lines = _stacked(courses, "courses", (times.size,))
    check_titles(labels, len(lines))
    figure, ax = own_or_given(ax, figsize or CURVE_SIZE)
    for index, (line, colour) in enumerate(zip(lines, shades(len(lines)), strict=True)):
        label = line_label(labels[index]) if labels is not None else None
        ax.plot(times, line, color=colour, linewidth=1.3, label=label)
    ax.axhline(0.0, color=INK, linewidth=0.5)
    if times[0] < 0.0 < times[-1]:
        ax.axvline(0.0, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    ax.set_xlabel(shown_text(xlabel), **PLAIN)
    ax.set_ylabel(shown_text(ylabel), **PLAIN)
    if labels is not None:
        _legend_beside(ax, TICK_SIZE - 0.5)
    left_title(ax, title)
    tidy(ax)
    return figure, ax


def _tones(frequencies_khz: Any) -> FloatArray:
    """Tones in kHz, ascending and above 0, for a log axis."""
    tones = as_ascending(frequencies_khz, "frequencies_khz")
    if tones[0] <= 0:
        raise ValueError(f"frequencies_khz must be above 0, the axis is logarithmic; got {tones[0]:g}")
    return tones


def _stacked(values: Any, name: str, shape: tuple[int, ...], single: bool = False) -> FloatArray:
    """Array with a leading axis of neurons; of one neuron only, where ``single``."""
    array = as_array(values, name)
    array = array[None] if array.ndim == len(shape) else array
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or (single and len(array) != 1):
        wanted = str(shape) if single else f"{shape}, or a stack of such, one per neuron"
        raise ValueError(f"{name} must have shape {wanted}, got {np.shape(values)}")
    return array


def _cell_edges(centres: FloatArray) -> FloatArray:
    """Edges (P + 1,) of cells around ascending centres (P,)."""
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _log_edges(centres: FloatArray) -> FloatArray:
    """Edges (P + 1,) of cells that are even on a log axis."""
    return np.asarray(2.0 ** _cell_edges(np.log2(centres)))


def _tone_axis(ax: Axes, tones: FloatArray) -> None:
    """Set the x axis to tones in kHz."""
    edges = _log_edges(tones)
    kilohertz_axis(ax, "x", 1000.0 * float(edges[0]), 1000.0 * float(edges[-1]))
    ax.set_xlabel("tone (kHz)")


def _legend_beside(ax: Axes, size: float) -> None:
    """Draw the legend beside the axes: inside it would hide lines."""
    draw_legend(ax, fontsize=size, loc="upper left", bbox_to_anchor=(1.0, 1.0))
