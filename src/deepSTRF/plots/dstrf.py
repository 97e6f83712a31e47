"""Dynamic STRF of one neuron along a clip: spectrogram, response, size of the filter, and single filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked
from deepSTRF.plots._style import (
    BLUE,
    GREY,
    LABEL_SIZE,
    PLAIN,
    TICK_SIZE,
    FloatArray,
    as_array,
    as_series,
    as_spectrogram,
    bin_centres,
    check_frequencies,
    check_positive,
    colour_bar,
    draw_field,
    draw_psth,
    draw_spectrogram,
    lag_label,
    left_title,
    mean_over_repeats,
    new_figure,
    shown_text,
    tidy,
    time_edges,
    time_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FIGSIZE = (9.6, 6.4)
HEIGHTS = (1.6, 1.3, 0.9, 2.0)
#: Filters shown when no bins are named: as many small panels as are legible side by side.
N_FILTERS = 6
#: Colour limits are this quantile over time of each filter's largest weight, as in the DSTRF toolbox
#: (Keshishian et al. 2020, doi 10.7554/eLife.53445): one large filter must not fade all others.
LIMIT_QUANTILE = 0.9


@checked
def plot_dstrf_panel(
    stim: Any,
    dstrf: Any,
    pred: Any,
    response: Any = None,
    dt_ms: float | None = None,
    *,
    bins: Sequence[int] | None = None,
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
    """Draw one neuron's dynamic STRF along a clip: spectrogram, response, size of the filter, the filter.

    Thin lines mark the time bins whose filters stand in the lowest row, in order. In them, as in
    `plot_strf_grid`, the current frame is at the right, and red marks excitation.

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
        Recorded response; repeats are averaged.
    dt_ms : float, optional
        Bin in ms; axes are then in seconds and milliseconds, else in bins.
    bins : sequence of int, optional
        Time bins whose filters are drawn; None is the bin of the strongest prediction in each sixth of the
        clip.
    lookahead : int
        Frames of the filters after the current one, ``result.lookahead``: they stand right of 0.
    shared_clim : bool
        One colour scale for all filters, with a colour bar; else one each.
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
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of axes)
        Spectrogram, response, size of the filter, then one per filter.

    Examples
    --------
    >>> stim, filters = np.zeros((8, 50)), np.zeros((50, 5, 8))
    >>> figure, axes = plot_dstrf_panel(stim, filters, np.zeros(50), dt_ms=5.0, bins=[10, 40])
    >>> [ax.get_title(loc="left") for ax in axes[3:]]
    ['0.05 s', '0.20 s']
    """
    spectrogram = as_spectrogram(stim, "stim")
    n_bands, n_bins = spectrogram.shape
    filters = as_array(dstrf, "dstrf")
    if filters.ndim != 3 or filters.shape[0] != n_bins or filters.shape[2] != n_bands:
        raise ValueError(
            f"dstrf must have shape (T, L, F) with T={n_bins} and F={n_bands} like stim, got "
            f"{filters.shape}; one neuron is dstrf(...).weights[:, neuron]"
        )
    prediction, recorded = _checked_series(pred, response, n_bins)
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, n_bands)
    chosen = _checked_bins(bins, prediction)
    if figure is None:
        figure = new_figure(figsize or FIGSIZE)
    grid = figure.add_gridspec(4, len(chosen), height_ratios=HEIGHTS)
    first = figure.add_subplot(grid[0, :])
    axes = [first, *(figure.add_subplot(grid[row, :], sharex=first) for row in (1, 2))]
    edges, x = time_edges(n_bins, dt_ms, start_s), bin_centres(n_bins, dt_ms, start_s)
    draw_spectrogram(axes[0], spectrogram, edges, frequencies, cmap="magma")
    if recorded is None:
        draw_psth(axes[1], x, prediction, None, "predicted", "", legend=False)
    else:
        draw_psth(axes[1], x, recorded, prediction, "measured", "predicted", legend=True)
    axes[1].set_ylabel(shown_text(response_label), **PLAIN)
    axes[2].plot(x, np.sqrt((filters**2).sum(axis=(1, 2))), color=BLUE, linewidth=1.2)
    axes[2].set_ylim(bottom=0.0)
    axes[2].set_ylabel("filter\nsize")
    time_label(axes[2], dt_ms)
    for ax in axes:
        tidy(ax)
        ax.set_xlim(*edges)
        for t in chosen:
            ax.axvline(x[t], color="white" if ax is axes[0] else GREY, linewidth=0.8, zorder=0.5)
        if ax is not axes[2]:
            ax.tick_params(labelbottom=False)
    left_title(axes[0], title)
    row = [figure.add_subplot(grid[3, column]) for column in range(len(chosen))]
    # a large filter between the chosen bins must not fade all of them, nor one of them the others
    limit = min(filter_limit(filters), filter_limit(filters[chosen])) if shared_clim else None
    for column, (ax, t) in enumerate(zip(row, chosen, strict=True)):
        shown = draw_field(ax, filters[t].T, frequencies, dt_ms, limit=limit, lookahead=lookahead, cmap=cmap)
        left_title(ax, f"{x[t]:.2f} s" if dt_ms else f"bin {x[t] - 0.5:.0f}", LABEL_SIZE)
        ax.set_xlabel("", fontsize=TICK_SIZE)
        if column:
            ax.set_ylabel("")
            ax.set_yticks([])
    if limit is not None:
        colour_bar(shown, row, "weight", shrink=0.9, aspect=14, pad=0.01)
    lag_label(row[len(row) // 2], dt_ms, "before each time bin")
    return figure, [*axes, *row]


def strongest_bins(pred: Any, count: int = N_FILTERS) -> list[int]:
    """Ascending bins of the strongest prediction (T,) in each of ``count`` equal parts of a clip."""
    if isinstance(count, bool) or not hasattr(count, "__index__") or count < 1:
        raise ValueError(f"count must be a whole number of at least 1, got {count!r}")
    series = np.nan_to_num(as_series(pred, "pred"), nan=-np.inf)
    parts = np.array_split(np.arange(series.size), min(count, series.size))
    return [int(part[series[part].argmax()]) for part in parts]


def filter_limit(filters: FloatArray, quantile: float = LIMIT_QUANTILE) -> float:
    """Colour limit of filters (T, ...): a quantile over time of their largest weights, above 0."""
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must be above 0 and at most 1, got {quantile!r}")
    peaks = np.nan_to_num(np.abs(filters)).reshape(len(filters), -1).max(axis=1)
    limit = float(np.quantile(peaks, quantile)) or float(peaks.max())
    return limit or 1.0


def _checked_series(pred: Any, response: Any, n_bins: int) -> tuple[FloatArray, FloatArray | None]:
    """Prediction (T,) and recorded response (T,), its repeats averaged."""
    prediction = as_series(pred, "pred")
    recorded = None if response is None else as_array(response, "response")
    if recorded is not None:
        recorded = mean_over_repeats(recorded) if recorded.ndim == 2 else recorded
    for name, series in (("pred", prediction), ("response", recorded)):
        if series is not None and series.shape != (n_bins,):
            raise ValueError(f"{name} must cover the {n_bins} bins of stim, got shape {series.shape}")
    return prediction, recorded


def _checked_bins(bins: Sequence[int] | None, prediction: FloatArray) -> list[int]:
    """Time bins whose filters are drawn."""
    if bins is None:
        return strongest_bins(prediction)
    whole = all(hasattr(t, "__index__") and 0 <= t < prediction.size for t in bins)
    chosen = [int(t) for t in bins]
    if not chosen or not whole:
        raise ValueError(f"bins must be time bins from 0 to {prediction.size - 1}, at least one, got {bins}")
    return chosen
