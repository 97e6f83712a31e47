"""How neurons depart from one linear filter: gain change, temporal hold, shape change, complexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._style import (
    BLUE,
    GREY,
    LABEL_SIZE,
    TICK_SIZE,
    TITLE_SIZE,
    FloatArray,
    as_array,
    as_series,
    as_spectrogram,
    bin_centres,
    check_frequencies,
    check_positive,
    draw_psth,
    draw_spectrogram,
    left_title,
    nan_psth,
    new_figure,
    tidy,
    time_edges,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "LIMIT_QUANTILE",
    "choose_moments",
    "filter_limit",
    "lag_edges",
    "plot_dstrf_panel",
    "plot_nonlinearity_scatter",
    "plot_nonlinearity_table",
]

# ------------------------------------------------------------------------------
# A filter that changes: stimulus, response, and the dynamic STRF at chosen moments.


FIGSIZE = (9.6, 6.4)
HEIGHTS = (1.6, 1.3, 0.9, 2.0)
#: Moments shown when none are named: as many small panels as are legible side by side.
MOMENTS = 6
#: Colour limits are this quantile over time of each filter's largest weight, as in the DSTRF toolbox
#: (Keshishian et al. 2020, doi 10.7554/eLife.53445): one outburst must not fade all other moments.
LIMIT_QUANTILE = 0.9


def plot_dstrf_panel(
    stim: Any,
    dstrf: Any,
    pred: Any,
    response: Any = None,
    dt_ms: float | None = None,
    *,
    moments: Sequence[int] | None = None,
    lookahead: int = 0,
    shared_clim: bool = True,
    cmap: str = "RdBu_r",
    start_s: float = 0.0,
    title: str | None = None,
    frequencies_hz: Any = None,
    response_label: str = "response",
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw how one neuron's filter changes along a clip: sound, response, the filter's size, the filter.

    Thin lines mark the moments whose filters stand in the lowest row, in order. In them, as in
    `plot_strf_grid`, the current frame is at the right, and red is where sound excites.

    Parameters
    ----------
    stim : array (F, T) or (1, F, T)
        Spectrogram.
    dstrf : array (T, L, F)
        One filter per bin, the lag axis from the oldest frame to the current one: ``weights[:, neuron]`` of
        `deepSTRF.interpret.dstrf`.
    pred : array (T,)
        Prediction.
    response : array (R, T) or (T,), optional
        What was recorded; repeats are averaged.
    dt_ms : float, optional
        Bin in ms; axes are then in seconds and milliseconds, else in bins.
    moments : sequence of int, optional
        Bins whose filters are drawn; None is `choose_moments`.
    lookahead : int
        Frames of the filters after the current one, ``result.lookahead``: they stand right of 0.
    shared_clim : bool
        One colour scale for all moments, with a colour bar; else one each.
    cmap : str
        A diverging colour map; limits are symmetric about 0.
    start_s : float
        Time of the first bin on the axis, for an excerpt of a clip.
    title : str, optional
        Title, top left.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    response_label : str
        Label of the response axis.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of axes)
        Spectrogram, response, size of the filter, then one per moment.

    Raises
    ------
    ValueError
        For shapes that do not fit each other, or moments outside the clip.

    Examples
    --------
    >>> stim, filters = np.zeros((8, 50)), np.zeros((50, 5, 8))
    >>> figure, axes = plot_dstrf_panel(stim, filters, np.zeros(50), dt_ms=5.0, moments=[10, 40])
    >>> [ax.get_title(loc="left") for ax in axes[3:]]
    ['0.05 s', '0.20 s']
    """
    spectrogram = as_spectrogram(stim, "stim")
    filters = _checked_filters(dstrf, spectrogram)
    prediction, recorded = _checked_series(pred, response, spectrogram.shape[1])
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, len(spectrogram))
    size = np.sqrt((filters**2).sum(axis=(1, 2)))
    chosen = _checked_moments(moments, prediction)
    if figure is None:
        figure = new_figure(figsize or FIGSIZE)
    axes, row = _layout(figure, len(chosen))
    edges = tuple(edge + start_s for edge in time_edges(len(prediction), dt_ms))
    x = bin_centres(len(prediction), dt_ms) + start_s
    draw_spectrogram(axes[0], spectrogram, (edges[0], edges[1]), frequencies, cmap="magma")
    if recorded is None:
        draw_psth(axes[1], x, prediction, None, "predicted", "", legend=False)
    else:
        draw_psth(axes[1], x, recorded, prediction, "measured", "predicted", legend=True)
    axes[1].set_ylabel(response_label)
    axes[2].plot(x, size, color=BLUE, linewidth=1.2)
    axes[2].set_ylim(bottom=0.0)
    axes[2].set_ylabel("filter\nsize")
    axes[2].set_xlabel("time (s)" if dt_ms else "time bin")
    for ax in axes:
        tidy(ax)
        ax.set_xlim(edges[0], edges[1])
        for moment in chosen:
            ax.axvline(x[moment], color="white" if ax is axes[0] else GREY, linewidth=0.8, zorder=0.5)
        if ax is not axes[2]:
            ax.tick_params(labelbottom=False)
    left_title(axes[0], title)
    names = [f"{x[moment]:.2f} s" if dt_ms else f"bin {x[moment] - 0.5:.0f}" for moment in chosen]
    # an outburst between the moments must not fade all of them, nor one of them the others
    limit = min(filter_limit(filters), filter_limit(filters[chosen])) if shared_clim else None
    edges = lag_edges(filters.shape[1], lookahead, dt_ms)
    _draw_filters(row, filters[chosen], names, frequencies, edges, limit, cmap)
    row[len(row) // 2].set_xlabel("ms before each moment" if dt_ms else "bins before each moment")
    return figure, [*axes, *row]


def choose_moments(pred: Any, count: int = MOMENTS) -> list[int]:
    """Return the bins of the strongest prediction in each of several equal parts of a clip.

    Parameters
    ----------
    pred : array (T,)
        Prediction.
    count : int
        Parts.

    Returns
    -------
    list of int
        Ascending; fewer in a clip with fewer bins.

    Examples
    --------
    >>> choose_moments([0.0, 1.0, 0.0, 0.0, 0.0, 2.0], 2)
    [1, 5]
    """
    if isinstance(count, bool) or not hasattr(count, "__index__") or count < 1:
        raise ValueError(f"count must be a whole number of at least 1, got {count!r}")
    series = np.nan_to_num(as_series(pred, "pred"), nan=-np.inf)
    parts = np.array_split(np.arange(series.size), min(count, series.size))
    return [int(part[series[part].argmax()]) for part in parts]


def filter_limit(filters: Any, quantile: float = LIMIT_QUANTILE) -> float:
    """Return one colour limit for filters over time: a quantile of their largest weights.

    Parameters
    ----------
    filters : array (T, ...)
        Filters.
    quantile : float
        Which, 0 to 1.

    Returns
    -------
    float
        Above 0, also where all filters are 0.

    Examples
    --------
    >>> filter_limit(np.ones((4, 2, 3)))
    1.0
    """
    values = np.abs(as_array(filters, "filters"))
    if not 0.0 < quantile <= 1.0 or values.size == 0:
        raise ValueError(
            f"quantile must be above 0 and at most 1 and filters not empty, got {quantile!r} and shape "
            f"{values.shape}"
        )
    peaks = np.nan_to_num(values).reshape(len(values), -1).max(axis=1)
    limit = float(np.quantile(peaks, quantile)) or float(peaks.max())
    return limit or 1.0


def lag_edges(n_lags: int, lookahead: int, dt_ms: float | None) -> tuple[float, float]:
    """Return where a filter begins and ends, in ms (or bins) before the response.

    Examples
    --------
    >>> lag_edges(7, 3, 5.0)
    (20.0, -15.0)
    """
    if isinstance(lookahead, bool) or not hasattr(lookahead, "__index__") or not 0 <= lookahead < n_lags:
        raise ValueError(
            f"lookahead must lie in 0 .. {n_lags - 1}, filters have {n_lags} frames, got {lookahead!r}"
        )
    width = dt_ms or 1.0
    return (n_lags - lookahead) * width, 0.0 - lookahead * width


def _checked_filters(dstrf: Any, spectrogram: FloatArray) -> FloatArray:
    filters = as_array(dstrf, "dstrf")
    n_bands, n_bins = spectrogram.shape
    if filters.ndim != 3 or filters.shape[0] != n_bins or filters.shape[2] != n_bands:
        raise ValueError(
            f"dstrf must have shape (T, L, F) with T={n_bins} and F={n_bands} like stim, got "
            f"{filters.shape}; one neuron is dstrf(...).weights[:, neuron]"
        )
    return filters


def _checked_series(pred: Any, response: Any, n_bins: int) -> tuple[FloatArray, FloatArray | None]:
    prediction = as_series(pred, "pred")
    recorded = None if response is None else as_array(response, "response")
    if recorded is not None:
        recorded = nan_psth(recorded) if recorded.ndim == 2 else recorded
    for name, series in (("pred", prediction), ("response", recorded)):
        if series is not None and series.shape != (n_bins,):
            raise ValueError(f"{name} must cover the {n_bins} bins of stim, got shape {series.shape}")
    return prediction, recorded


def _checked_moments(moments: Sequence[int] | None, prediction: FloatArray) -> list[int]:
    if moments is None:
        return choose_moments(prediction)
    whole = all(hasattr(moment, "__index__") and 0 <= moment < prediction.size for moment in moments)
    chosen = [int(moment) for moment in moments]
    if not chosen or not whole:
        raise ValueError(f"moments must be bins from 0 to {prediction.size - 1}, at least one, got {moments}")
    return chosen


def _layout(figure: Figure | SubFigure, n_moments: int) -> tuple[list[Axes], list[Axes]]:
    grid = figure.add_gridspec(4, n_moments, height_ratios=HEIGHTS)
    first = figure.add_subplot(grid[0, :])
    others = [figure.add_subplot(grid[row, :], sharex=first) for row in (1, 2)]
    return [first, *others], [figure.add_subplot(grid[3, column]) for column in range(n_moments)]


def _draw_filters(
    row: list[Axes],
    filters: FloatArray,
    names: list[str],
    frequencies: FloatArray | None,
    edges: tuple[float, float],
    limit: float | None,
    cmap: str,
) -> None:
    for column, (ax, image, name) in enumerate(zip(row, filters, names, strict=True)):
        own = limit or filter_limit(image[None])
        shown = draw_spectrogram(ax, image.T, edges, frequencies, cmap=cmap, vmin=-own, vmax=own)
        tidy(ax)
        left_title(ax, name, LABEL_SIZE)
        ax.xaxis.label.set_fontsize(TICK_SIZE)
        if column:
            ax.set_ylabel("")
            ax.set_yticks([])
    if limit is not None:
        bar = row[0].figure.colorbar(shown, ax=row, shrink=0.9, aspect=14, pad=0.01)
        bar.set_label("weight", fontsize=TICK_SIZE)
        bar.ax.tick_params(labelsize=TICK_SIZE)


# ------------------------------------------------------------------------------

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
        Measures by the names that go on the axes, e.g. `deepSTRF.interpret.dstrf.nonlinearities` with a
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
