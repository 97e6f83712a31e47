"""Figures of responses: spectrogram, raster, and PSTH with prediction on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked
from deepSTRF.plots._style import (
    BANDS,
    GREY,
    INK,
    LABEL_SIZE,
    PLAIN,
    VERMILION,
    FloatArray,
    as_array,
    as_ascending,
    as_series,
    as_spectrogram,
    bin_centres,
    check_frequencies,
    check_positive,
    check_titles,
    draw_field,
    draw_psth,
    draw_spectrogram,
    left_title,
    mean_over_repeats,
    new_figure,
    own_or_given,
    shown_text,
    tidy,
    time_edges,
    time_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

#: Heights and figure sizes (inches) of spectrogram, raster and PSTH (3), and of spectrogram and PSTH (2).
HEIGHTS = {3: (2.0, 2.0, 1.0), 2: (2.0, 1.0)}
SIZES = {3: (9.0, 5.5), 2: (9.0, 4.0)}
PSTH_SIZE = (9.0, 2.2)
#: Inches of one raster among several.
RASTER_SIZE = (3.4, 1.5)
#: Height over width of the receptive field beside a neuron's panels.
FIELD_ASPECT = 1.1
#: Rows of the image of a raster: more than it has pixels.
RASTER_ROWS = 600
#: A bin at this percentile of the active ones is darkest: one rare burst must not fade single spikes.
INK_PERCENTILE = 75


@checked
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

    Examples
    --------
    >>> spikes = np.random.default_rng(0).poisson(0.2, size=(5, 100))
    >>> figure, axes = plot_stim_with_response(np.zeros((8, 100)), spikes, dt_ms=5.0)
    >>> len(axes), [float(edge) for edge in axes[0].get_xlim()]
    (3, [0.0, 0.5])
    """
    data = _response_data(stim, response, pred, dt_ms, frequencies_hz)
    n_panels = 3 if data.repeats.shape[0] > 1 else 2
    figure: Figure | SubFigure
    if axes is None:
        figure = new_figure(figsize or SIZES[n_panels])
        panels = list(figure.subplots(n_panels, 1, height_ratios=HEIGHTS[n_panels]))
    else:
        panels = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(panels) != n_panels:
            raise ValueError(
                f"axes must hold {n_panels} axes for {data.repeats.shape[0]} repeat(s), got {len(panels)}; "
                "or pass axes=None and a figure is made"
            )
        figure = panels[0].figure
    _draw_panels(panels, data, spec_cmap, raster_cmap, response_label)
    left_title(panels[0], title)
    return figure, panels


@checked
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
    """Draw a measured PSTH (dark grey) and a prediction (vermilion) on one axis.

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
    figure, ax = own_or_given(ax, PSTH_SIZE)
    draw_psth(ax, bin_centres(measured.size, dt_ms), measured, predicted, target_label, pred_label, legend)
    ax.set_xlim(*time_edges(measured.size, dt_ms))
    time_label(ax, dt_ms)
    ax.set_ylabel(shown_text(ylabel), **PLAIN)
    left_title(ax, title)
    tidy(ax)
    return figure, ax


@checked
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
    first_lag: int = 0,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw one neuron: spectrogram, raster, PSTH with prediction, and its receptive field.

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
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.
    first_lag : int
        Lag of the last column of ``strf`` in bins, ``model.first_lag``.

    Returns
    -------
    (figure, list of axes)
        The receptive field, when there is one, is the last.

    Examples
    --------
    >>> stim, spikes, strf = np.zeros((8, 50)), np.zeros((4, 50)), np.zeros((8, 9))
    >>> figure, axes = plot_neuron_panel(stim, spikes, np.zeros(50), strf=strf)
    >>> [ax.get_ylabel() for ax in axes]
    ['frequency band', 'repeat', 'response', 'frequency band']
    """
    data = _response_data(stim, response, pred, dt_ms, frequencies_hz)
    field = None if strf is None else as_array(strf, "strf")
    if field is not None and (field.ndim != 2 or field.shape[0] != data.spectrogram.shape[0]):
        raise ValueError(
            f"strf must have shape (F, T_lags) like stim (F={data.spectrogram.shape[0]}), got {field.shape}"
        )
    rows = 3 if data.repeats.shape[0] > 1 else 2
    if figure is None:
        width, height = SIZES[rows]
        figure = new_figure(figsize or (width + (1.8 if field is not None else 0.0), height))
    columns, widths = (1, (1.0,)) if field is None else (2, (5.0, 1.0))
    grid = figure.add_gridspec(rows, columns, height_ratios=HEIGHTS[rows], width_ratios=widths)
    panels = [figure.add_subplot(grid[row, 0]) for row in range(rows)]
    _draw_panels(panels, data, "magma", "Greys", response_label, band_label)
    left_title(panels[0], title)
    if field is not None:
        # spans two rows, so that its axis label takes no height from the spectrogram's row
        beside = figure.add_subplot(grid[:2, 1], box_aspect=FIELD_ASPECT, anchor="N")
        draw_field(beside, field, data.frequencies_hz, dt_ms, first_lag=first_lag, band_label=band_label)
        left_title(beside, "receptive field", LABEL_SIZE)
        panels.append(beside)
    return figure, panels


@dataclass(frozen=True)
class _ResponseData:
    """One clip and one neuron: spectrogram (F, T), repeats (R, T), PSTH (T,), prediction (T,)."""

    spectrogram: FloatArray
    repeats: FloatArray
    psth: FloatArray
    prediction: FloatArray | None
    frequencies_hz: FloatArray | None
    dt_ms: float | None


@checked
def plot_rasters(
    responses: Sequence[Any],
    dt_ms: float | None = None,
    titles: Sequence[str] | None = None,
    ncols: int = 3,
    *,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw the repeats of several neurons, one panel each.

    Parameters
    ----------
    responses : sequence of array (R, T) or (T,)
        Repeats as rows, the first at the top; bins that were not recorded (NaN) stay white.
    dt_ms : float, optional
        Bin width in ms; the time axis is then in seconds, else in bins.
    titles : sequence of str, optional
        One per panel.
    ncols : int
        Panels per row.
    figure : Figure, optional
        Drawn on; None makes one.

    Returns
    -------
    (figure, list of axes)

    Raises
    ------
    ValueError
        For no panels, arrays of another shape, or titles of another number.

    Examples
    --------
    >>> spikes = np.random.default_rng(0).poisson(0.2, size=(5, 100))
    >>> figure, axes = plot_rasters([spikes, spikes[:2]], dt_ms=5.0, titles=["a", "b"])
    >>> len(axes), axes[1].get_title(loc="left")
    (2, 'b')
    """
    blocks = [np.atleast_2d(as_array(values, f"responses[{n}]")) for n, values in enumerate(responses)]
    if not blocks or any(block.ndim != 2 or 0 in block.shape for block in blocks):
        raise ValueError(f"responses holds arrays (R, T), got shapes {[block.shape for block in blocks]}")
    check_positive(dt_ms, "dt_ms")
    check_titles(titles, len(blocks))
    if ncols < 1:
        raise ValueError(f"ncols is a number of panels per row, at least 1, got {ncols}")
    ncols = min(ncols, len(blocks))
    nrows = -(-len(blocks) // ncols)
    made = new_figure((RASTER_SIZE[0] * ncols, RASTER_SIZE[1] * nrows)) if figure is None else figure
    panels = [made.add_subplot(nrows, ncols, at + 1) for at in range(len(blocks))]
    for at, (ax, block) in enumerate(zip(panels, blocks, strict=True)):
        edges = time_edges(block.shape[1], dt_ms)
        _draw_raster(ax, block, edges, "Greys")
        ax.set_xlim(*edges)
        left_title(ax, titles[at] if titles is not None else None, LABEL_SIZE)
        if at % ncols:
            ax.set_ylabel("")
        if at + ncols >= len(blocks):
            time_label(ax, dt_ms)
        tidy(ax)
    return made, panels


@checked
def plot_alignment(
    lags_ms: Any, strengths: Any, lag_ms: float | None = None, *, ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the cross-correlogram of stimulus and responses.

    Parameters
    ----------
    lags_ms, strengths : array (L,)
        ``lags_ms`` and ``strengths`` of ``dataset.check_alignment()``: lags of the responses behind the
        stimulus in ms, and correlations in units of their spread by chance.
    lag_ms : float, optional
        The lag found, drawn as a line.
    ax : matplotlib Axes, optional
        Drawn on; None makes a figure.

    Returns
    -------
    (figure, axes)

    Raises
    ------
    ValueError
        For series of different lengths.

    Examples
    --------
    >>> figure, ax = plot_alignment([-10.0, 0.0, 10.0, 20.0], [0.5, 1.0, 9.0, 2.0], lag_ms=10.0)
    >>> ax.get_xlabel()
    'lag of the response behind the sound (ms)'
    """
    lags, values = as_ascending(lags_ms, "lags_ms"), as_series(strengths, "strengths")
    if lags.size != values.size:
        raise ValueError(f"lags_ms has {lags.size} values and strengths {values.size}; give one per lag")
    figure, panel = own_or_given(ax, PSTH_SIZE)
    panel.axvline(0.0, color=GREY, linewidth=0.8, linestyle="--")
    panel.plot(lags, values, color=INK, linewidth=1.2)
    if lag_ms is not None:
        panel.axvline(lag_ms, color=VERMILION, linewidth=1.2)
        panel.annotate(
            f"{lag_ms:+g} ms", (lag_ms, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -4),
            textcoords="offset points", va="top", color=VERMILION, fontsize=LABEL_SIZE,
        )  # fmt: skip
    panel.set_xlim(lags[0], lags[-1])
    panel.set_ylim(bottom=0.0)
    panel.set_xlabel("lag of the response behind the sound (ms)")
    panel.set_ylabel("correlation\n(in units of chance)")
    tidy(panel)
    return figure, panel


def _response_data(
    stim: Any, response: Any, pred: Any, dt_ms: float | None, frequencies_hz: Any
) -> _ResponseData:
    """Check the shapes against each other."""
    spectrogram = as_spectrogram(stim, "stim")
    n_bands, n_bins = spectrogram.shape
    repeats = as_array(response, "response")
    if repeats.ndim == 1:
        repeats = repeats[None]
    if repeats.ndim != 2 or 0 in repeats.shape:
        raise ValueError(f"response must have shape (R, T), (1, T) or (T,), got {repeats.shape}")
    if repeats.shape[1] != n_bins:
        raise ValueError(
            f"stim has {n_bins} time bins, response has {repeats.shape[1]}; both must be on one grid of bins"
        )
    prediction = None if pred is None else as_series(pred, "pred")
    if prediction is not None and prediction.size != n_bins:
        raise ValueError(f"pred must have shape ({n_bins},) like stim and response, got ({prediction.size},)")
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, n_bands)
    return _ResponseData(spectrogram, repeats, mean_over_repeats(repeats), prediction, frequencies, dt_ms)


def _draw_panels(
    axes: list[Axes],
    data: _ResponseData,
    spec_cmap: str,
    raster_cmap: str,
    response_label: str,
    band_label: str = BANDS,
) -> None:
    """Draw spectrogram, raster (when there are three axes) and PSTH on a shared time axis."""
    n_bins = data.spectrogram.shape[1]
    edges, centres = time_edges(n_bins, data.dt_ms), bin_centres(n_bins, data.dt_ms)
    draw_spectrogram(axes[0], data.spectrogram, edges, data.frequencies_hz, band_label, cmap=spec_cmap)
    if len(axes) == 3:
        _draw_raster(axes[1], data.repeats, edges, raster_cmap)
    legend = data.prediction is not None
    draw_psth(axes[-1], centres, data.psth, data.prediction, "measured", "predicted", legend)
    axes[-1].set_ylabel(shown_text(response_label), **PLAIN)
    time_label(axes[-1], data.dt_ms)
    for ax in axes:
        tidy(ax)
        ax.set_xlim(*edges)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)


def _draw_raster(ax: Axes, repeats: FloatArray, edges: tuple[float, float], cmap: str) -> None:
    """Draw repeats (R, T) as rows, the first at the top; bins that were not recorded stay white."""
    finite = repeats[np.isfinite(repeats)]
    signed = bool((finite < 0).any())  # a trace such as a membrane potential
    active = finite if signed else finite[finite > 0]
    ax.imshow(
        # a row of many equal ones, so that what averages bins leaves neighbouring repeats apart
        np.repeat(repeats, -(-RASTER_ROWS // len(repeats)), axis=0),
        origin="upper",
        aspect="auto",
        cmap=cmap,
        vmin=float(finite.min()) if signed else 0.0,
        vmax=float(np.percentile(active, INK_PERCENTILE)) if active.size else 1.0,
        # "antialiased" averages when bins are narrower than pixels, where "nearest" would drop spikes
        interpolation="antialiased",
        extent=(*edges, len(repeats) + 0.5, 0.5),
    )
    ax.set_yticks([1, len(repeats)])
    ax.set_ylabel("repeat")
