"""Receptive fields as a grid of panels: frequency in kHz against milliseconds before the response."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import (
    FloatArray,
    as_array,
    check_columns,
    check_frequencies,
    check_positive,
    check_titles,
)
from deepSTRF.plots._style import (
    BANDS,
    LABEL_SIZE,
    TICK_SIZE,
    TITLE_SIZE,
    draw_spectrogram,
    left_title,
    new_figure,
    symmetric_limit,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_strf_grid"]

PANEL_INCHES = (1.9, 1.65)
#: Characters of the title type that fit above a panel.
TITLE_CHARACTERS = 22


def plot_strf_grid(
    strfs: Any,
    titles: Sequence[str] | None = None,
    dt_ms: float | None = None,
    ncols: int = 4,
    cmap: str = "RdBu_r",
    shared_clim: bool = False,
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    *,
    frequencies_hz: Any = None,
    band_label: str = BANDS,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw receptive fields, red where sound excites and blue where it suppresses.

    The last column of a receptive field is the current bin. It is drawn at the right, where the axis reads 0;
    the column of lag k spans k*dt_ms to (k+1)*dt_ms before the end of the response bin.

    Parameters
    ----------
    strfs : array (K, F, T) or list of (F, T)
        Receptive fields, most recent lag last, lowest band first.
    titles : sequence of str, optional
        One per panel.
    dt_ms : float, optional
        Bin width in ms; without it the axis counts bins.
    ncols : int
        Panels per row.
    cmap : str
        A diverging colour map; limits are symmetric about 0.
    shared_clim : bool
        One colour scale for all panels, with a colour bar, instead of one per panel.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches; used only for a figure made here.
    frequencies_hz : array (F,), optional
        Centre frequency of every band in Hz; without it bands are numbered.
    band_label : str
        What the rows are where they have no frequencies: "channel" for a learned latent, say.
    figure : matplotlib Figure or SubFigure, optional
        Draw here (its layout is left alone), for instance ``plt.figure(layout="constrained")``.

    Returns
    -------
    (figure, list of K axes)

    Raises
    ------
    ValueError
        No receptive field, unequal shapes, another number of titles or frequencies, ncols below 1.

    Examples
    --------
    >>> import numpy as np
    >>> strf = np.zeros((34, 9)); strf[20, 6] = 1.0
    >>> figure, (panel,) = plot_strf_grid([strf], titles=["neuron 0"], dt_ms=5.0)
    >>> [float(edge) for edge in panel.get_xlim()], panel.get_xlabel()
    ([45.0, 0.0], 'ms before the response')
    """
    fields = _stack_fields(strfs)
    n_fields, n_bands, n_lags = fields.shape
    check_titles(titles, n_fields)
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, n_bands)
    columns = check_columns(ncols, n_fields)
    rows = math.ceil(n_fields / columns)
    if figure is None:
        figure = new_figure(figsize or _grid_size(rows, columns, suptitle is not None))
    grid = figure.subplots(rows, columns, squeeze=False)
    shared_limit = symmetric_limit(fields)
    axes: list[Axes] = []
    for panel, ax in enumerate(grid.flat):
        if panel >= n_fields:
            ax.set_visible(False)
            continue
        limit = shared_limit if shared_clim else symmetric_limit(fields[panel])
        edges = (n_lags * (dt_ms or 1.0), 0.0)
        shown = draw_spectrogram(
            ax, fields[panel], edges, frequencies, band_label, cmap=cmap, vmin=-limit, vmax=limit
        )
        ax.set_xlabel("ms before the response" if dt_ms else "bins before the response")
        left_title(ax, _wrapped(titles[panel]) if titles is not None else None, LABEL_SIZE)
        _only_outer_labels(ax, panel, columns, n_fields)
        axes.append(ax)
    if shared_clim:
        figure.colorbar(shown, ax=axes, shrink=0.8, label="weight")
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _stack_fields(strfs: Any) -> FloatArray:
    if isinstance(strfs, list | tuple):
        shapes = {tuple(np.shape(as_array(field, "strfs"))) for field in strfs}
        if len(shapes) > 1:
            raise ValueError(
                f"strfs must all have one shape (F, T), got {sorted(shapes)}; plot them in separate grids"
            )
    fields = as_array(strfs, "strfs")
    if fields.ndim != 3 or 0 in fields.shape:
        raise ValueError(
            f"strfs must be a non-empty (K, F, T) array or a list of (F, T), got shape {fields.shape}; "
            "one receptive field is drawn by plot_strf_grid([strf])"
        )
    return fields


def _wrapped(title: str) -> str:
    """Break a long title into lines as wide as its panel, so that neighbours do not run into each other."""
    return textwrap.fill(str(title), TITLE_CHARACTERS)


def _grid_size(rows: int, columns: int, has_suptitle: bool) -> tuple[float, float]:
    width, height = PANEL_INCHES
    return max(width * columns + 0.6, 3.2), height * rows + 0.6 + 0.3 * has_suptitle


def _only_outer_labels(ax: Axes, panel: int, columns: int, n_panels: int) -> None:
    """Keep labels and ticks where no other panel below or to the left carries them (ticks cost time)."""
    tidy(ax)
    ax.xaxis.label.set_fontsize(TICK_SIZE)
    if panel % columns:
        ax.set_ylabel("")
        ax.set_yticks([])
    if panel + columns < n_panels:
        ax.set_xlabel("")
        ax.set_xticks([])
