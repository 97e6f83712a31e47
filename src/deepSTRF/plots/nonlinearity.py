"""How neurons depart from one linear filter: gain change, temporal hold, shape change, complexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray, as_series
from deepSTRF.plots._style import (
    BLUE,
    GREY,
    LABEL_SIZE,
    TICK_SIZE,
    TITLE_SIZE,
    left_title,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_nonlinearity_scatter", "plot_nonlinearity_table"]

PANEL_INCHES = (2.9, 2.9)
ROW_INCHES, COLUMN_INCHES, NAME_INCHES = 0.3, 1.75, 1.2
#: With more neurons than this, names would cover the dots.
MOST_NAMED = 8
#: Names of dots within these shares of the two axes would lie over each other.
NEAR = (0.3, 0.06)
#: Share of the axis kept free around the outermost dots.
MARGIN = 0.12
#: Values that differ by less are one value.
ALIKE = 1e-3


def plot_nonlinearity_scatter(
    measures: Mapping[str, Any],
    against: str = "complexity",
    *,
    names: Sequence[str] | None = None,
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw one measure of nonlinearity against each of the others, a dot per neuron.

    Parameters
    ----------
    measures : mapping of str to array (N,)
        Measures by the names that go on the axes, e.g. `deepSTRF.interpret.dynamic.nonlinearities` with a
        reduction. A neuron with a NaN in either measure is counted in the panel's title, not drawn.
    against : str
        The measure on the vertical axes.
    names : sequence of str, optional
        One per neuron; written beside the dots of up to eight neurons.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One per other measure.

    Raises
    ------
    ValueError, KeyError
        For measures of unequal length, fewer than two of them, or an unknown one.

    Examples
    --------
    >>> figure, axes = plot_nonlinearity_scatter(
    ...     {"complexity": [1.0, 2.5], "gain change": [0.0, 0.4], "temporal hold (ms)": [0.0, 15.0]})
    >>> [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes]
    [('gain change', 'complexity'), ('temporal hold (ms)', '')]
    """
    columns = _checked(measures, names)
    if against not in columns:
        raise KeyError(f"against must be one of the measures {', '.join(columns)}, got {against!r}")
    others = [name for name in columns if name != against]
    if not others:
        raise ValueError("measures holds one measure only; a scatter needs at least two")
    if figure is None:
        width, height = PANEL_INCHES
        figure = new_figure(figsize or (width * len(others) + 0.3, height + 0.3 * bool(suptitle)))
    axes: list[Axes] = list(figure.subplots(1, len(others), squeeze=False, sharey=True)[0])
    for column, (ax, name) in enumerate(zip(axes, others, strict=True)):
        both = np.isfinite(columns[name]) & np.isfinite(columns[against])
        x, y = columns[name][both], columns[against][both]
        ax.scatter(x, y, s=24, color=BLUE, alpha=0.75, linewidth=0)
        ax.margins(MARGIN)
        for values, limits, ticks in ((x, ax.set_xlim, ax.set_xticks), (y, ax.set_ylim, ax.set_yticks)):
            if values.size and np.ptp(values) < ALIKE:
                # an axis in thousandths around them would mislead
                limits(float(values[0]) - 0.5, float(values[0]) + 0.5)
                ticks([round(float(values[0]), 3)])
        missing = int((~both).sum())
        left_title(ax, f"n = {int(both.sum())}" + (f", {missing} NaN" if missing else ""), TICK_SIZE)
        if names is not None and both.size <= MOST_NAMED:
            _name_dots(ax, x, y, [str(name_of_dot) for name_of_dot in np.asarray(names)[both]])
        ax.set_xlabel(name)
        ax.set_ylabel("" if column else against)
        tidy(ax)
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _name_dots(ax: Axes, x: FloatArray, y: FloatArray, names: list[str]) -> None:
    """Write each name beside its dot; of two dots that are close, the lower one has its name below it."""
    wide, high = float(np.ptp(ax.get_xlim())), float(np.ptp(ax.get_ylim()))
    for at, name in enumerate(names):
        near = (np.abs(x - x[at]) < NEAR[0] * wide) & (np.abs(y - y[at]) < NEAR[1] * high)
        # among equals the later one counts as lower
        lower = near & ((y > y[at]) | ((y == y[at]) & (np.arange(y.size) < at)))
        offset = (4, -10) if lower.any() else (4, 4)
        ax.annotate(name, (x[at], y[at]), offset, textcoords="offset points", fontsize=TICK_SIZE - 1)


def plot_nonlinearity_table(
    measures: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    linear: Mapping[str, float] | None = None,
    decimals: int = 2,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw measures of nonlinearity as a table: a row per neuron, a bar and its number per measure.

    Parameters
    ----------
    measures : mapping of str to array (N,)
        Measures by the names that go above the columns; a NaN is a dash.
    names : sequence of str, optional
        One per neuron; None numbers them.
    linear : mapping of str to float, optional
        What a linear neuron has: bars start there. 0 where a measure is not named; complexity and shape
        change start at 1 unless said otherwise.
    decimals : int
        Digits after the point.
    title : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One per measure.

    Raises
    ------
    ValueError
        For measures of unequal length, or another number of names.

    Examples
    --------
    >>> figure, axes = plot_nonlinearity_table({"complexity": [1.0, 2.5]}, ["a", "b"])
    >>> [text.get_text() for text in axes[0].texts], [float(bar.get_width()) for bar in axes[0].patches]
    (['1.00', '2.50'], [0.0, 1.5])
    """
    columns = _checked(measures, names)
    n_neurons = next(iter(columns.values())).size
    starts = {"complexity": 1.0, "shape change": 1.0, **(linear or {})}
    if figure is None:
        size = (NAME_INCHES + COLUMN_INCHES * len(columns), 0.6 + ROW_INCHES * n_neurons + 0.3 * bool(title))
        figure = new_figure(figsize or size)
    axes: list[Axes] = list(figure.subplots(1, len(columns), squeeze=False, sharey=True)[0])
    rows = np.arange(n_neurons)
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        _draw_column(ax, rows, values, starts.get(name, 0.0), decimals)
        left_title(ax, name, LABEL_SIZE)
    axes[0].set_yticks(rows, [str(name) for name in (names if names is not None else rows)])
    axes[0].set_ylim(n_neurons - 0.5, -0.5)
    if title:
        figure.suptitle(title, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _draw_column(ax: Axes, rows: Any, values: FloatArray, start: float, decimals: int) -> None:
    finite = np.isfinite(values)
    ax.barh(rows, np.where(finite, values - start, 0.0), left=start, color=BLUE, alpha=0.55, height=0.62)
    # a bar whose number reads as the start is none: rounding errors are not drawn large
    reach = max(float(np.max(np.abs(values[finite] - start), initial=0.0)), 10.0**-decimals)
    lowest = float(np.min(values[finite], initial=start))
    # the numbers stand to the right of all bars, in line
    edge = start + 1.08 * reach
    for row, value in zip(rows, values, strict=True):
        text = f"{value:.{decimals}f}" if np.isfinite(value) else "–"
        ax.text(edge, row, text, va="center", ha="left", fontsize=TICK_SIZE)
    ax.axvline(start, color=GREY, linewidth=0.8)
    ax.set_xlim(min(start - 0.02 * reach, lowest), start + 1.65 * reach)
    tidy(ax)
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)


def _checked(measures: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, FloatArray]:
    columns = {str(name): as_series(values, str(name)) for name, values in measures.items()}
    sizes = {name: column.size for name, column in columns.items()}
    if not columns or len(set(sizes.values())) > 1:
        raise ValueError(f"measures must hold at least one, all of the same neurons; got lengths {sizes}")
    if names is not None and len(names) != next(iter(sizes.values())):
        raise ValueError(f"names holds {len(names)} names for {next(iter(sizes.values()))} neurons")
    return columns
