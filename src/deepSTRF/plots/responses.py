"""Sound, spikes and prediction above one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._style import (
    BANDS,
    LABEL_SIZE,
    as_array,
    as_series,
    bin_centres,
    check_positive,
    draw_panels,
    draw_psth,
    draw_spectrogram,
    left_title,
    new_figure,
    response_data,
    symmetric_limit,
    tidy,
    time_edges,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_neuron_panel", "plot_psth_vs_pred", "plot_stim_with_response"]

#: Heights of spectrogram, raster and PSTH; and of spectrogram and PSTH alone.
HEIGHTS = {3: (2.0, 2.0, 1.0), 2: (2.0, 1.0)}
SIZES = {3: (9.0, 5.5), 2: (9.0, 4.0)}
PSTH_SIZE = (9.0, 2.2)
#: Height over width of the receptive field beside a neuron's panels.
FIELD_ASPECT = 1.1


def plot_stim_with_response(
    stim: Any,
    response: Any,
    pred: Any = None,
    dt_ms: float | None = None,
    title: str | None = None,
    spec_cmap: str = "magma",
    raster_cmap: str = "Greys",
    axes: Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    *,
    frequencies_hz: Any = None,
    response_label: str = "response",
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw a spectrogram, the raster of its repeats, and their PSTH with an optional prediction.

    Parameters
    ----------
    stim : array (F, T) or (1, F, T)
        Spectrogram, lowest band first.
    response : array (R, T), (1, T) or (T,)
        Repeats of one neuron; NaN where nothing was recorded. With R > 1 there are three panels, else two.
    pred : array (T,), optional
        Prediction, drawn over the PSTH.
    dt_ms : float, optional
        Bin width in ms; the time axis is then in seconds, else in bins. Bin t spans t*dt to (t+1)*dt exactly.
    title : str, optional
        Title of the top panel.
    spec_cmap, raster_cmap : str
        Colour maps.
    axes : sequence of matplotlib Axes, optional
        Three axes (two when R is 1) to draw on; their figure's layout is left alone.
    figsize : (float, float), optional
        Inches; 9 x 5.5 with a raster, 9 x 4 without.
    frequencies_hz : array (F,), optional
        Centre frequency of every band in Hz; the axis is then in kHz.
    response_label : str
        Label of the PSTH axis, for instance "spikes per bin".

    Returns
    -------
    (figure, list of axes)

    Raises
    ------
    ValueError
        A wrong shape, times that disagree, or another number of axes than panels.

    Examples
    --------
    >>> import numpy as np
    >>> spikes = np.random.default_rng(0).poisson(0.2, size=(5, 100))
    >>> figure, axes = plot_stim_with_response(np.zeros((8, 100)), spikes, dt_ms=5.0)
    >>> len(axes), [float(edge) for edge in axes[0].get_xlim()]
    (3, [0.0, 0.5])
    """
    data = response_data(stim, response, pred, dt_ms, frequencies_hz)
    n_panels = 3 if data.repeats.shape[0] > 1 else 2
    figure: Figure | SubFigure
    if axes is None:
        own = new_figure(figsize or SIZES[n_panels])
        panels = list(own.subplots(n_panels, 1, height_ratios=HEIGHTS[n_panels]))
        figure = own
    else:
        panels = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(panels) != n_panels:
            raise ValueError(
                f"axes must hold {n_panels} axes for {data.repeats.shape[0]} repeat(s), got {len(panels)}; "
                "or pass axes=None and a figure is made"
            )
        figure = panels[0].figure
    draw_panels(panels, data, spec_cmap, raster_cmap, response_label, legend=pred is not None)
    left_title(panels[0], title)
    return figure, panels


def plot_psth_vs_pred(
    target: Any,
    pred: Any,
    dt_ms: float | None = None,
    title: str | None = None,
    target_label: str = "PSTH (target)",
    pred_label: str = "model",
    ax: Axes | None = None,
    legend: bool = True,
    *,
    ylabel: str = "response",
) -> tuple[Figure | SubFigure, Axes]:
    """Draw a measured PSTH (dark grey) and a prediction (vermillion) on one axis.

    Parameters
    ----------
    target, pred : array (T,)
        Measured and predicted response of one neuron to one clip; NaN leaves a gap.
    dt_ms : float, optional
        Bin width in ms; the axis is then in seconds, else in bins. Values stand at the bin centres.
    title : str, optional
        Title.
    target_label, pred_label : str
        Legend texts.
    ax : matplotlib Axes, optional
        Draw here instead of on a new 9 x 2.2 inch figure.
    legend : bool
        Whether to draw the legend.
    ylabel : str
        Label of the response axis.

    Returns
    -------
    (figure, axes)

    Raises
    ------
    ValueError
        When the two are not series of one length.

    Examples
    --------
    >>> figure, ax = plot_psth_vs_pred([0.0, 1.0, 0.5], [0.1, 0.8, 0.6], dt_ms=5.0)
    >>> ax.get_xlabel(), [line.get_label() for line in ax.lines]
    ('time (s)', ['PSTH (target)', 'model'])
    """
    measured, predicted = as_series(target, "target"), as_series(pred, "pred")
    if measured.size != predicted.size:
        raise ValueError(
            f"target has {measured.size} bins, pred has {predicted.size}; both must be (T,) of one length"
        )
    check_positive(dt_ms, "dt_ms")
    figure: Figure | SubFigure
    if ax is None:
        figure = new_figure(PSTH_SIZE)
        ax = figure.subplots()
    else:
        figure = ax.figure
    draw_psth(ax, bin_centres(measured.size, dt_ms), measured, predicted, target_label, pred_label, legend)
    ax.set_xlim(*time_edges(measured.size, dt_ms))
    ax.set_xlabel("time (s)" if dt_ms else "time bin")
    ax.set_ylabel(ylabel)
    left_title(ax, title)
    tidy(ax)
    return figure, ax


def plot_neuron_panel(
    stim: Any,
    response: Any,
    pred: Any,
    dt_ms: float | None = None,
    *,
    strf: Any = None,
    title: str | None = None,
    frequencies_hz: Any = None,
    response_label: str = "response",
    band_label: str = BANDS,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw all there is to see of one neuron: spectrogram, raster, PSTH with prediction, receptive field.

    Parameters
    ----------
    stim : array (F, T) or (1, F, T)
        Spectrogram of the clip.
    response : array (R, T)
        Repeats; with a single one the raster is left out.
    pred : array (T,) or None
        Prediction for the same bins.
    dt_ms : float, optional
        Bin width in ms.
    strf : array (F, T_lags), optional
        The neuron's receptive field, most recent lag last; drawn beside the spectrogram, on the same bands.
    title : str, optional
        Title, top left.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    response_label : str
        Label of the PSTH axis.
    band_label : str
        What the rows of the spectrogram are where they have no frequencies.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of axes)
        The receptive field, when there is one, is the last.

    Raises
    ------
    ValueError
        Shapes that disagree.

    Examples
    --------
    >>> import numpy as np
    >>> stim, spikes, strf = np.zeros((8, 50)), np.zeros((4, 50)), np.zeros((8, 9))
    >>> figure, axes = plot_neuron_panel(stim, spikes, np.zeros(50), strf=strf)
    >>> [ax.get_ylabel() for ax in axes]
    ['frequency band', 'repeat', 'response', 'frequency band']
    """
    data = response_data(stim, response, pred, dt_ms, frequencies_hz)
    field = None if strf is None else as_array(strf, "strf")
    if field is not None and (field.ndim != 2 or field.shape[0] != data.spectrogram.shape[0]):
        raise ValueError(
            f"strf must have shape (F, T_lags) like stim (F={data.spectrogram.shape[0]}), got {field.shape}"
        )
    rows = 3 if data.repeats.shape[0] > 1 else 2
    if figure is None:
        width, height = SIZES[rows]
        figure = new_figure(figsize or (width + (1.8 if field is not None else 0.0), height))
    columns = 1 if field is None else 2
    grid = figure.add_gridspec(
        rows, columns, height_ratios=HEIGHTS[rows], width_ratios=(1.0,) if field is None else (5.0, 1.0)
    )
    panels = [figure.add_subplot(grid[row, 0]) for row in range(rows)]
    draw_panels(panels, data, "magma", "Greys", response_label, pred is not None, band_label)
    left_title(panels[0], title)
    if field is not None:
        # spans two rows, so that its axis label takes no height from the spectrogram's row
        beside = figure.add_subplot(grid[:2, 1], box_aspect=FIELD_ASPECT, anchor="N")
        limit = symmetric_limit(field)
        edges = (field.shape[1] * (dt_ms or 1.0), 0.0)
        scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        draw_spectrogram(beside, field, edges, data.frequencies_hz, band_label, **scale)
        beside.set_xlabel("ms before the response" if dt_ms else "bins before the response")
        tidy(beside)
        left_title(beside, "receptive field", LABEL_SIZE)
        panels.append(beside)
    return figure, panels
