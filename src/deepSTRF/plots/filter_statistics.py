"""Figures of how filters change over time: nonlinearity, tuning along directions, and filter patterns.

The statistics are those of `deepSTRF.interpret.filter_statistics`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked
from deepSTRF.plots._style import (
    BLUE,
    EMPTY,
    GREY,
    INK,
    LABEL_SIZE,
    PALETTE,
    PLAIN,
    TICK_SIZE,
    VERMILION,
    FloatArray,
    as_array,
    as_series,
    check_frequencies,
    check_positive,
    colour_bar,
    draw_field,
    draw_legend,
    figure_title,
    integer_ticks,
    left_title,
    line_label,
    new_figure,
    own_or_given,
    shown_name,
    shown_text,
    symmetric_limit,
    tidy,
    time_edges,
    time_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SCATTER_INCHES = (2.9, 2.9)
ROW_INCHES, COLUMN_INCHES, NAME_INCHES, LETTER_INCHES = 0.3, 1.75, 1.2, 0.08
SURFACE_INCHES = 3.4
MAP_INCHES = 1.9
#: With more neurons than this, names would cover the dots.
MOST_NAMED = 8
#: Names of dots within these shares of the two axes would lie over each other.
NEAR = (0.3, 0.06)
#: Share of the axis kept free around the outermost dots.
MARGIN = 0.12
#: Values that differ by less are drawn as equal.
ALIKE = 1e-3
#: Cells with fewer time bins are drawn at this share of their colour.
FEW, FEW_ALPHA = 5, 0.35
#: With more neurons than this, lines are thin and grey, and their median is drawn.
MOST_LINES = 6
#: Names of filter patterns.
LETTERS = "ABCDEFGH"


@checked
def plot_nonlinearity_scatter(
    measures: Mapping[str, Any],
    against: str = "complexity",
    *,
    names: Sequence[str] | None = None,
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw one measure of nonlinearity against each of the others, one dot per neuron.

    Parameters
    ----------
    measures : mapping of str to array (N,)
        Measures by their axis label, e.g. of `deepSTRF.interpret.filter_statistics.nonlinearities`. A neuron
        with a NaN in either measure is counted in the panel's title, not drawn.
    against : str
        The measure on the vertical axes.
    names : sequence of str, optional
        One per neuron; written beside the dots of up to eight neurons.
    suptitle : str, optional
        Title of the figure.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

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
    columns = _checked_measures(measures, names)
    if against not in columns:
        raise KeyError(f"against must be one of the measures {', '.join(columns)}, got {against!r}")
    others = [name for name in columns if name != against]
    if not others:
        raise ValueError("measures holds one measure only; a scatter needs at least two")
    if figure is None:
        width, height = SCATTER_INCHES
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
            _name_dots(
                ax,
                x,
                y,
                [shown_name(neuron) for neuron in np.asarray(names, dtype=object)[both]],
            )
        ax.set_xlabel(shown_text(name), **PLAIN)
        ax.set_ylabel("" if column else shown_text(against), **PLAIN)
        tidy(ax)
    figure_title(figure, suptitle)
    return figure, axes


def _name_dots(ax: Axes, x: FloatArray, y: FloatArray, names: list[str]) -> None:
    """Write each name beside its dot; of close dots, the lowest has its name below, others stack up."""
    wide, high = float(np.ptp(ax.get_xlim())), float(np.ptp(ax.get_ylim()))
    place = np.arange(y.size)
    for at, name in enumerate(names):
        near = (np.abs(x - x[at]) < NEAR[0] * wide) & (np.abs(y - y[at]) < NEAR[1] * high)
        # among equals the later one counts as lower
        n_higher = int((near & ((y > y[at]) | ((y == y[at]) & (place < at)))).sum())
        n_lower = int(near.sum()) - 1 - n_higher
        up = -10 if n_higher and not n_lower else 4 + 10 * max(n_lower - 1, 0)
        ax.annotate(
            name, (x[at], y[at]), (4, up), textcoords="offset points", fontsize=TICK_SIZE - 1, **PLAIN
        )


@checked
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
    """Draw measures of nonlinearity as a table: one row per neuron, a bar and its number per measure.

    Parameters
    ----------
    measures : mapping of str to array (N,)
        Measures by their column title; a NaN is a dash.
    names : sequence of str, optional
        One per neuron; None numbers them.
    linear : mapping of str to float, optional
        Values of a linear neuron, where bars start: 1 for complexity and shape change, 0 for others, unless
        given here.
    decimals : int
        Digits after the point.
    title : str, optional
        Title of the figure.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One per measure.

    Examples
    --------
    >>> figure, axes = plot_nonlinearity_table({"complexity": [1.0, 2.5]}, ["a", "b"])
    >>> [text.get_text() for text in axes[0].texts], [float(bar.get_width()) for bar in axes[0].patches]
    (['1.00', '2.50'], [0.0, 1.5])
    """
    columns = _checked_measures(measures, names)
    n_neurons = next(iter(columns.values())).size
    starts = {"complexity": 1.0, "shape change": 1.0, **(linear or {})}
    texts = [shown_name(name) for name in (names if names is not None else range(n_neurons))]
    if figure is None:
        width = max(NAME_INCHES, LETTER_INCHES * max(map(len, texts))) + COLUMN_INCHES * len(columns)
        more_lines = sum(shown_text(text).count("\n") for text in (title or "", max(columns, key=len)))
        size = (width, 0.6 + ROW_INCHES * (n_neurons + bool(title) + more_lines))
        figure = new_figure(figsize or size)
    axes: list[Axes] = list(figure.subplots(1, len(columns), squeeze=False, sharey=True)[0])
    rows = np.arange(n_neurons)
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        _draw_column(ax, rows, values, starts.get(name, 0.0), decimals)
        left_title(ax, name, LABEL_SIZE)
    axes[0].set_yticks(rows, texts, **PLAIN)
    axes[0].set_ylim(n_neurons - 0.5, -0.5)
    figure_title(figure, title)
    return figure, axes


def _draw_column(ax: Axes, rows: Any, values: FloatArray, start: float, decimals: int) -> None:
    """Draw one measure: bars from the value of a linear neuron, and their numbers in line at the right."""
    finite = np.isfinite(values)
    ax.barh(rows, np.where(finite, values - start, 0.0), left=start, color=BLUE, alpha=0.55, height=0.62)
    # a difference below the digits shown is not drawn large
    longest = max(float(np.max(np.abs(values[finite] - start), initial=0.0)), 10.0**-decimals)
    lowest = float(np.min(values[finite], initial=start))
    for row, value in zip(rows, values, strict=True):
        text = f"{value:.{decimals}f}" if np.isfinite(value) else "–"
        ax.text(start + 1.08 * longest, row, text, va="center", ha="left", fontsize=TICK_SIZE)
    ax.axvline(start, color=GREY, linewidth=0.8)
    ax.set_xlim(min(start - 0.02 * longest, lowest), start + 1.65 * longest)
    tidy(ax)
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)


def _checked_measures(measures: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, FloatArray]:
    """Measures (N,) by name, all of one length."""
    columns = {str(name): as_series(values, str(name)) for name, values in measures.items()}
    sizes = {name: column.size for name, column in columns.items()}
    if not columns or len(set(sizes.values())) > 1:
        raise ValueError(f"measures must hold at least one, all of the same neurons; got lengths {sizes}")
    if names is not None and len(names) != next(iter(sizes.values())):
        raise ValueError(f"names holds {len(names)} names for {next(iter(sizes.values()))} neurons")
    return columns


@checked
def plot_eigen_spectrum(
    eigenvalues: Any,
    *,
    n_shown: int = 10,
    names: Sequence[str] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw eigenvalues: of the active subspace as cumulative shares, of the curvature with their signs.

    Where none is negative, the share of their sum that the first 1, 2, .. directions hold: one line per
    neuron, or thin lines and their median for more than six. Where some are, dots: a stimulus of either sign
    along a direction raises the response where the dot is orange and lowers it where it is blue.

    Parameters
    ----------
    eigenvalues : array (N, M) or (M,)
        ``eigenvalues`` of `deepSTRF.interpret.filter_statistics.active_subspace`, or of ``curvature``.
    n_shown : int
        Largest number of directions shown.
    names : sequence of str, optional
        One per line, for up to six.
    title : str, optional
        Title, top left.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_eigen_spectrum([3.0, 1.0, 0.0])
    >>> ax.lines[0].get_ydata().tolist()
    [0.0, 75.0, 100.0, 100.0]
    """
    values = np.atleast_2d(as_array(eigenvalues, "eigenvalues"))
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"eigenvalues must be (N, M) or (M,), got {values.shape}")
    if names is not None and len(names) != len(values):
        raise ValueError(f"names holds {len(names)} names for {len(values)} rows of eigenvalues")
    if isinstance(n_shown, bool) or n_shown < 1:
        raise ValueError(f"n_shown must be at least 1, got {n_shown!r}")
    figure, ax = own_or_given(ax, figsize or (3.6, 2.9))
    count = min(int(n_shown), values.shape[1])
    if (values < 0).any():
        _draw_signed(ax, values[:, :count])
    else:
        _draw_shares(ax, values, count, names)
    integer_ticks(ax.xaxis)
    tidy(ax)
    left_title(ax, title)
    return figure, ax


def _draw_shares(ax: Axes, values: FloatArray, count: int, names: Sequence[str] | None) -> None:
    """Draw the cumulative share of the eigenvalues (N, M), one line per neuron."""
    with np.errstate(invalid="ignore"):
        shares = 100 * np.cumsum(values, axis=1) / values.sum(axis=1, keepdims=True)
    lines = np.c_[np.zeros(len(shares)), shares[:, :count]]
    at = np.arange(count + 1)
    many = len(lines) > MOST_LINES
    for row, line in enumerate(lines):
        style = {"color": GREY, "linewidth": 0.6, "alpha": 0.6} if many else {"color": PALETTE[row]}
        label = None if many or names is None else line_label(names[row])
        ax.plot(at, line, marker=None if many else "o", markersize=3.5, label=label, **style)
    known = lines[np.isfinite(lines).all(axis=1)]
    if many and len(known):
        ax.plot(
            at, np.median(known, axis=0), color=INK, linewidth=1.6, marker="o", markersize=3.5, label="median"
        )
    if (many and len(known)) or (names is not None and not many):
        draw_legend(ax, fontsize=TICK_SIZE, loc="lower right")
    ax.set_xlim(0, count + 0.3)
    ax.set_ylim(0.0, 104.0)
    ax.set_xlabel("directions")
    ax.set_ylabel("% of the squared filter")


def _draw_signed(ax: Axes, values: FloatArray) -> None:
    """Draw eigenvalues (N, M) of either sign as dots on stems."""
    at = np.broadcast_to(np.arange(1, values.shape[1] + 1), values.shape)
    for kept, colour in ((values > 0, VERMILION), (values < 0, BLUE)):
        ax.vlines(at[kept], 0.0, values[kept], color=colour, linewidth=1.0, alpha=0.35)
        ax.plot(at[kept], values[kept], "o", color=colour, markersize=4, alpha=0.8)
    ax.axhline(0.0, color=INK, linewidth=0.8)
    ax.set_xlim(0.4, values.shape[1] + 0.6)
    ax.set_xlabel("pattern")
    ax.set_ylabel("eigenvalue")


@checked
def plot_tuning_surface(
    mean: Any,
    edges: Any,
    count: Any = None,
    directions: Any = None,
    dt_ms: float | None = None,
    *,
    sd: Any = None,
    cmap: str = "viridis",
    response_label: str = "response",
    title: str | None = None,
    frequencies_hz: Any = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw one neuron's response as a function of the stimulus along one or two directions.

    One direction gives a curve, with the spread of the response shaded and the number of time bins below; two
    give a surface, pale where fewer than five time bins were averaged and grey where there were none. The
    colours span the other cells.

    Parameters
    ----------
    mean : array (B,) or (B, B)
        One neuron of `deepSTRF.interpret.filter_statistics.tuning_surface`, ``surface.mean[k]``; the first
        direction along the first axis.
    edges : array (D, B + 1)
        ``surface.edges[k]``.
    count : array of the shape of mean, optional
        ``surface.count[k]``.
    directions : array (D, L, F), optional
        The directions, lags from the oldest frame to the current one: drawn beside the surface.
    dt_ms : float, optional
        Bin in ms, for the directions.
    sd : array (B,), optional
        ``surface.sd[k]``, for a curve.
    cmap : str
        A sequential colour map.
    response_label : str
        Label of the response.
    title : str, optional
        Title of the surface.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of axes)
        The surface, or curve and counts; then one map per direction.

    Examples
    --------
    >>> edges = np.linspace(-2, 2, 6)
    >>> figure, axes = plot_tuning_surface(np.ones((5, 5)), [edges, edges], directions=np.ones((2, 4, 8)))
    >>> [ax.get_title(loc="left") for ax in axes[1:]], axes[0].get_xlabel()
    (['direction 1', 'direction 2'], 'sound along direction 1')
    """
    rates, borders, counts = _checked_surface(mean, edges, count)
    maps = None if directions is None else _checked_maps(directions, "directions", len(borders))
    check_positive(dt_ms, "dt_ms")
    frequencies = None if maps is None else check_frequencies(frequencies_hz, maps.shape[2])
    if figure is None:
        width = SURFACE_INCHES + 0.9 + (MAP_INCHES + 0.4) * (maps is not None)
        figure = new_figure(figsize or (width, SURFACE_INCHES))
    # maps in the left column, one above the other (one alone is not stretched); the surface at the right
    grid = figure.add_gridspec(1, 1 if maps is None else 2, width_ratios=None if maps is None else (1, 1.9))
    column = grid[0].subgridspec(2, 1, height_ratios=(1, 1) if len(borders) == 2 else (3, 1))
    axes: list[Axes]
    if rates.ndim == 2:
        axes = [figure.add_subplot(grid[0, -1])]
        _draw_surface(axes[0], rates, borders, counts, cmap, response_label)
    else:
        inner = grid[0, -1].subgridspec(2, 1, height_ratios=(3, 1), hspace=0.08)
        axes = [figure.add_subplot(inner[0])]
        axes.append(figure.add_subplot(inner[1], sharex=axes[0]))
        spread = None if sd is None else as_series(sd, "sd")
        _draw_curve(axes, rates, borders[0], counts, spread, response_label)
    left_title(axes[0], title)
    for row in range(0 if maps is None else len(borders)):
        axes.append(figure.add_subplot(column[row]))
        draw_field(axes[-1], maps[row].T, frequencies, dt_ms)  # type: ignore[index]
        left_title(axes[-1], f"direction {row + 1}", LABEL_SIZE)
        if row + 1 < len(borders):
            axes[-1].set_xlabel("")
            axes[-1].tick_params(labelbottom=False)
    return figure, axes


def _draw_surface(
    ax: Axes, rates: FloatArray, borders: FloatArray, counts: FloatArray | None, cmap: str, label: str
) -> None:
    """Draw the response (B, B) by colour, pale where few time bins were averaged."""
    from matplotlib.colors import ListedColormap

    ax.set_facecolor(EMPTY)
    # cells of few bins must not set the colour limits
    firm = rates[np.isfinite(rates) & (True if counts is None else counts >= FEW)]
    firm = firm if firm.size else rates[np.isfinite(rates)]
    low, high = (float(firm.min()), float(firm.max())) if firm.size else (0.0, 1.0)
    shown = np.ma.masked_invalid(rates).T
    mesh = ax.pcolormesh(borders[0], borders[1], shown, cmap=cmap, vmin=low, vmax=high)
    if counts is not None:
        if (counts[np.isfinite(rates)] < FEW).any():
            ax.set_title(f"pale: < {FEW} time bins", loc="right", fontsize=TICK_SIZE - 1, color=GREY)
        veil = np.ma.masked_where(counts >= FEW, np.zeros(counts.shape)).T
        ax.pcolormesh(borders[0], borders[1], veil, cmap=ListedColormap([EMPTY]), alpha=1 - FEW_ALPHA)
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = beyond[bool((shown < low).any()), bool((shown > high).any())]
    colour_bar(mesh, ax, label, shrink=0.9, aspect=16, pad=0.02, extend=extend)
    for line in (ax.axhline, ax.axvline):
        line(0.0, color=GREY, linewidth=0.6)
    ax.set_xlim(borders[0, 0], borders[0, -1])  # zero may lie far outside
    ax.set_ylim(borders[1, 0], borders[1, -1])
    ax.set_xlabel("sound along direction 1")
    ax.set_ylabel("sound along direction 2")
    tidy(ax)


def _draw_curve(
    axes: list[Axes],
    rates: FloatArray,
    border: FloatArray,
    counts: FloatArray | None,
    spread: FloatArray | None,
    label: str,
) -> None:
    """Draw the response (B,) as a curve with its spread, and the number of time bins below."""
    curve, below = axes
    centres = (border[1:] + border[:-1]) / 2
    if spread is not None:
        curve.fill_between(centres, rates - spread, rates + spread, color=BLUE, alpha=0.22, linewidth=0)
    curve.plot(centres, rates, color=BLUE, linewidth=1.4, marker="o", markersize=3)
    curve.set_ylabel(shown_text(label), **PLAIN)
    curve.tick_params(labelbottom=False)
    if counts is not None:
        below.bar(centres, counts, width=np.diff(border), color=GREY, linewidth=0)
        below.set_ylabel("bins")
        below.locator_params(axis="y", nbins=3)
    else:
        below.set_visible(False)
        curve.tick_params(labelbottom=True)
    (below if counts is not None else curve).set_xlabel("sound along the direction")
    for ax in axes:
        ax.axvline(0.0, color=GREY, linewidth=0.6, zorder=0.5)
        ax.set_xlim(border[0], border[-1])
        tidy(ax)


def _checked_surface(mean: Any, edges: Any, count: Any) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Mean (B,) or (B, B), edges (D, B + 1) and counts, checked against each other."""
    rates, borders = as_array(mean, "mean"), np.atleast_2d(as_array(edges, "edges"))
    counts = None if count is None else as_array(count, "count")
    if (
        rates.ndim not in (1, 2)
        or borders.shape != (rates.ndim, rates.shape[0] + 1)
        or len({*rates.shape}) > 1
    ):
        raise ValueError(
            f"mean must be (B,) or (B, B) and edges (1, B + 1) or (2, B + 1), got {rates.shape} and "
            f"{borders.shape}; of a TuningSurface take one neuron: surface.mean[k], surface.edges[k]"
        )
    if counts is not None and counts.shape != rates.shape:
        raise ValueError(f"count must have the shape of mean, {rates.shape}, got {counts.shape}")
    if not np.isfinite(borders).all():
        raise ValueError("edges are NaN: this neuron has no such direction, its filters are of a lower rank")
    return rates, borders, counts


@checked
def plot_filter_patterns(
    centres: Any,
    labels: Any,
    dwell: Sequence[Any],
    transitions: Any,
    dt_ms: float | None = None,
    *,
    window: tuple[int, int] | None = None,
    cmap: str = "RdBu_r",
    title: str | None = None,
    frequencies_hz: Any = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw the recurring filters of one neuron: shapes, order in time, dwell times and transitions.

    Patterns are named A, B, .. in the order given; each has one colour throughout.

    Parameters
    ----------
    centres : array (K, L, F)
        Of one neuron of `deepSTRF.interpret.filter_statistics.filter_patterns`, at most eight patterns.
    labels : array (T,)
        Pattern of each bin, of all clips: their shares are counted here. -1, a bin left out, stays grey.
    dwell : sequence of K arrays
        Dwell times in each pattern, in bins.
    transitions : array (K, K)
        Probability of the next bin's pattern, from row to column.
    dt_ms : float, optional
        Bin in ms; axes are then in ms and seconds, else in bins.
    window : (int, int), optional
        First bin whose pattern is shown, and the one after the last; None is all.
    cmap : str
        A diverging colour map for the patterns; all share limits, symmetric about 0.
    title : str, optional
        Title, top left.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One per pattern, then the order in time, the dwell times, and the transitions.

    Examples
    --------
    >>> labels = [0, 0, 0, 1, 1] * 4
    >>> figure, axes = plot_filter_patterns(np.ones((2, 4, 8)), labels, [[3] * 4, [2] * 3], np.eye(2))
    >>> [ax.get_title(loc="left") for ax in axes[:2]]
    ['A: 60% of bins', 'B: 40% of bins']
    """
    maps = _checked_maps(centres, "centres", None)
    names, stays, steps = _checked_patterns(labels, dwell, transitions, len(maps))
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, maps.shape[2])
    count, shown = len(maps), slice(*(window or (0, names.size)))
    if names[shown].size == 0:
        raise ValueError(f"window must be two bins, first < last, within 0 .. {names.size}, got {window}")
    if figure is None:
        figure = new_figure(figsize or (max(6.4, (MAP_INCHES - 0.2) * count + 0.9), 4.9 + 0.2 * bool(title)))
    outer = figure.add_gridspec(3, 1, height_ratios=(1.7, 0.5 if count < 5 else 0.8, 1.6))
    top, low = outer[0].subgridspec(1, count), outer[2].subgridspec(1, 2, width_ratios=(1.6, 1))
    axes: list[Axes] = [figure.add_subplot(top[column]) for column in range(count)]
    limit = symmetric_limit(maps)
    known = max(1, int((names >= 0).sum()))
    for column, (ax, image) in enumerate(zip(axes, maps, strict=True)):
        draw_field(ax, image.T, frequencies, dt_ms, limit=limit, cmap=cmap)
        share = 100 * float((names == column).sum()) / known
        left_title(ax, f"{LETTERS[column]}: {share:.0f}% of bins", LABEL_SIZE)
        ax.spines["left"].set(color=PALETTE[column], linewidth=3.0)
        if column:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if column != count // 2:
            ax.set_xlabel("")
    rest = [figure.add_subplot(outer[1]), figure.add_subplot(low[0]), figure.add_subplot(low[1])]
    _draw_order(rest[0], names, shown, count, dt_ms)
    _draw_stays(rest[1], stays, dt_ms)
    _draw_transitions(rest[2], steps)
    if title:
        figure.suptitle(shown_text(title), fontsize=LABEL_SIZE + 1.5, x=0.01, ha="left", **PLAIN)
    return figure, [*axes, *rest]


def _draw_order(ax: Axes, names: FloatArray, shown: slice, count: int, dt_ms: float | None) -> None:
    """Draw the pattern of each time bin: a row and a colour each, legible without colours, too."""
    step = time_edges(1, dt_ms)[1]
    first, last, _ = shown.indices(names.size)
    changes = np.flatnonzero(np.diff(names[first:last])) + first + 1
    borders = [first, *changes.tolist(), last]
    for start, end in itertools.pairwise(borders):
        name = int(names[start])
        if name < 0:
            ax.axvspan(start * step, end * step, color=EMPTY, linewidth=0)
        else:
            ax.broken_barh([(start * step, (end - start) * step)], (name - 0.4, 0.8), color=PALETTE[name])
    ax.set_ylim(count - 0.5, -0.5)
    ax.set_yticks(range(count), list(LETTERS[:count]))
    ax.set_xlim(first * step, last * step)
    time_label(ax, dt_ms)
    tidy(ax)


def _draw_stays(ax: Axes, stays: list[FloatArray], dt_ms: float | None) -> None:
    """Draw the share of stays that last at least so long."""
    step, unit = dt_ms or 1.0, "ms" if dt_ms else "bins"
    for column, lengths in enumerate(stays):
        at = np.arange(1, int(lengths.max(initial=0)) + 2) if lengths.size else np.arange(0)
        lasting = [100 * float((lengths >= length).mean()) for length in at]
        text = f"{LETTERS[column]}: no whole stay"
        if lengths.size:
            text = f"{LETTERS[column]}: mean {lengths.mean() * step:.3g} {unit}, n = {lengths.size}"
        # a stay of n bins lasts to the end of the n-th: the step down stands there
        ax.step(np.r_[0, at] * step, [100.0, *lasting], where="pre", color=PALETTE[column], label=text)
    ax.legend(frameon=False, fontsize=TICK_SIZE - 0.5, handlelength=1.2, loc="upper right")
    ax.set_xlim(left=0.0)
    ax.set_ylim(0.0, 104.0)
    ax.set_xlabel(f"stay of at least ({unit})")
    ax.set_ylabel("% of stays")
    tidy(ax)


def _draw_transitions(ax: Axes, steps: FloatArray) -> None:
    """Draw the probabilities (K, K) from row to column as a table in grey."""
    ax.imshow(np.ma.masked_invalid(steps), cmap="Greys", vmin=0.0, vmax=1.0, aspect="equal")
    ax.set_facecolor(EMPTY)
    for (row, column), value in np.ndenumerate(steps):
        text = f"{100 * value:.0f}" if np.isfinite(value) else "–"
        colour = "white" if value > 0.55 else INK
        ax.text(column, row, text, ha="center", va="center", fontsize=TICK_SIZE, color=colour)
    letters = list(LETTERS[: len(steps)])
    ax.set_xticks(range(len(steps)), letters)
    ax.set_yticks(range(len(steps)), letters)
    ax.set_xlabel("next bin (%)")
    ax.set_ylabel("this bin")
    tidy(ax)


def _checked_patterns(
    labels: Any, dwell: Sequence[Any], transitions: Any, count: int
) -> tuple[FloatArray, list[FloatArray], FloatArray]:
    """Labels (T,), dwell times of each pattern, and transitions (K, K), checked against each other."""
    names, steps = as_series(labels, "labels"), as_array(transitions, "transitions")
    if not np.isin(names, np.arange(-1, count)).all():
        raise ValueError(f"labels must be whole numbers from -1 to {count - 1}, the patterns of centres")
    if len(dwell) != count or steps.shape != (count, count):
        raise ValueError(
            f"dwell must hold {count} series and transitions be ({count}, {count}) as centres say, got "
            f"{len(dwell)} and {steps.shape}"
        )
    return names, [as_array(stays, "dwell").reshape(-1) for stays in dwell], steps


def _checked_maps(maps: Any, name: str, count: int | None) -> FloatArray:
    """Filters (K, L, F); K is ``count``, or at most as many as there are colours."""
    fields = as_array(maps, name)
    if fields.ndim != 3 or 0 in fields.shape or (count is not None and len(fields) != count):
        wanted = "K" if count is None else str(count)
        raise ValueError(f"{name} must be ({wanted}, L, F), got {fields.shape}; take one neuron")
    if count is None and len(fields) > len(PALETTE):
        raise ValueError(
            f"{name} holds {len(fields)} patterns; more than {len(PALETTE)} cannot be distinguished"
        )
    return fields
