"""Figures of receptive fields: maps, confidence bands, modulation transfer, and fields in the waveform."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked, checked_but
from deepSTRF.plots._style import (
    BANDS,
    BLUE,
    GREY,
    INK,
    LABEL_SIZE,
    TICK_SIZE,
    VERMILION,
    FloatArray,
    as_array,
    as_ascending,
    as_series,
    check_columns,
    check_frequencies,
    check_positive,
    check_titles,
    draw_field,
    field_edges,
    figure_title,
    frequency_axis,
    lag_label,
    left_title,
    mark_response,
    new_figure,
    panel_grid,
    shown_text,
    symmetric_limit,
    tick_text,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FIELD_INCHES = (1.9, 1.65)
CONFIDENCE_SIZE = (9.6, 3.1)
MODULATION_INCHES = (2.3, 2.1)
WAVEFORM_SIZE = (9.0, 2.9)
#: Height of one more row for the sound.
SOUND_INCHES = 1.7
#: Characters of the title type that fit above a panel.
TITLE_CHARACTERS = 22
#: Weights whose band holds zero are drawn at this share of their colour.
UNSURE_ALPHA = 0.3
#: Ticks of the narrow panel, whose labels have many digits.
MOST_WEIGHTS = 3
#: A line of more points is drawn as the range within each of half as many steps, like an oscilloscope's: it
#: looks the same, and keeps a five-second sound at 48 kHz out of the figure's file.
MOST_POINTS = 3000
#: The enlarged part holds this many times the field's duration.
MARGIN = 1.3


@checked_but("ncols", "titles")
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
    unit: str | None = None,
    first_lag: int = 0,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw receptive fields in panels, red where sound excites and blue where it suppresses.

    The last column of a receptive field is the current bin. It is drawn at the right, where the axis reads 0;
    the column of lag k spans k*dt_ms to (k+1)*dt_ms before the end of the response bin. Lags below 0, sound
    after the response, are right of a dashed line at 0.

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
        Label of rows that have no frequencies, e.g. "channel" for a learned output.
    figure : matplotlib Figure or SubFigure, optional
        Draw here (its layout is left alone), for instance ``plt.figure(layout="constrained")``.
    unit : {None, "sd", "raw"}
        Unit of the weights, for the label of the colour bar; None does not name it.
    first_lag : int
        Lag of the last column in bins, ``model.first_lag``; below 0 it lies after the response.

    Returns
    -------
    (figure, list of K axes)

    Examples
    --------
    >>> strf = np.zeros((34, 9)); strf[20, 6] = 1.0
    >>> figure, (panel,) = plot_strf_grid([strf], titles=["neuron 0"], dt_ms=5.0)
    >>> [float(edge) for edge in panel.get_xlim()], panel.get_xlabel()
    ([45.0, 0.0], 'ms before the response')
    """
    fields = _stack_fields(strfs)
    n_fields, n_bands, _ = fields.shape
    check_titles(titles, n_fields)
    check_positive(dt_ms, "dt_ms")
    label = _weight_label(unit)
    frequencies = check_frequencies(frequencies_hz, n_bands)
    columns = check_columns(ncols, n_fields)
    if figure is None:
        width, height = FIELD_INCHES
        rows = math.ceil(n_fields / columns)
        size = (max(width * columns + 0.6, 3.2), height * rows + 0.6 + 0.3 * (suptitle is not None))
        figure = new_figure(figsize or size)
    axes = panel_grid(figure, n_fields, columns)
    limit = symmetric_limit(fields) if shared_clim else None
    for panel, ax in enumerate(axes):
        shown = draw_field(
            ax,
            fields[panel],
            frequencies,
            dt_ms,
            limit=limit,
            first_lag=first_lag,
            band_label=band_label,
            cmap=cmap,
        )
        # long titles break into lines as wide as the panel
        left_title(
            ax, textwrap.fill(shown_text(titles[panel]), TITLE_CHARACTERS) if titles else None, LABEL_SIZE
        )
        ax.xaxis.label.set_fontsize(TICK_SIZE)
        # labels and ticks only where no other panel below or to the left has them (ticks cost time)
        if panel % columns:
            ax.set_ylabel("")
            ax.set_yticks([])
        if panel + columns < n_fields:
            ax.set_xlabel("")
            ax.set_xticks([])
    if shared_clim:
        figure.colorbar(shown, ax=axes, shrink=0.8, label=label)
    figure_title(figure, suptitle)
    return figure, axes


#: Height of a feature of one row, and of one of several, in inches.
CURVE_INCHES, MAP_INCHES = 0.75, 1.45


@checked_but("ncols", "titles")
def plot_feature_fields(
    strfs: Any,
    features: Mapping[str, int],
    titles: Sequence[str] | None = None,
    dt_ms: float | None = None,
    ncols: int = 4,
    cmap: str = "RdBu_r",
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    *,
    frequencies_hz: Mapping[str, Any] | None = None,
    figure: Figure | SubFigure | None = None,
    unit: str | None = None,
    first_lag: int = 0,
) -> tuple[Figure | SubFigure, list[dict[str, Axes]]]:
    """Draw receptive fields on several named features, one panel per feature above one axis of lags.

    A feature of several rows is a map, red where it excites and blue where it suppresses, with limits of its
    own; a feature of one row is a curve. Lags below 0, stimulus after the response, are right of a dashed
    line at 0.

    Parameters
    ----------
    strfs : array (K, F, T) or list of (F, T)
        Receptive fields, most recent lag last; the rows of the features stand one below the other.
    features : mapping of str to int
        Names and numbers of rows in their order, ``dataset.features``.
    titles : sequence of str, optional
        One per receptive field.
    dt_ms : float, optional
        Bin width in ms; without it the axis counts bins.
    ncols : int
        Receptive fields per row.
    cmap : str
        A diverging colour map.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches; used only for a figure made here.
    frequencies_hz : mapping of str to array, optional
        Centre frequencies in Hz of the rows of features that have them, ``dataset.feature_frequencies``.
    figure : matplotlib Figure or SubFigure, optional
        Draw here (its layout is left alone).
    unit : {None, "sd", "raw"}
        Unit of the weights, for the label of curves; None does not name it.
    first_lag : int
        Lag of the last column in bins, ``model.first_lag``.

    Returns
    -------
    (figure, list of K dictionaries from feature to axes)

    Examples
    --------
    >>> strf = np.zeros((9, 12)); strf[3, 6] = 1.0; strf[8] = np.hanning(12)
    >>> sizes = {"spectrogram": 8, "onsets": 1}
    >>> figure, (panels,) = plot_feature_fields([strf], sizes, dt_ms=10.0, first_lag=-3)
    >>> [float(edge) for edge in panels["onsets"].get_xlim()], len(panels["spectrogram"].images)
    ([90.0, -30.0], 1)
    """
    fields = _stack_fields(strfs)
    n_fields, n_rows, n_lags = fields.shape
    sizes = {str(name): int(rows) for name, rows in features.items()}
    if not sizes or sum(sizes.values()) != n_rows or min(sizes.values()) < 1:
        raise ValueError(f"features must name all {n_rows} rows of the receptive fields, got {sizes}")
    check_titles(titles, n_fields)
    check_positive(dt_ms, "dt_ms")
    _weight_label(unit)
    label = {"sd": "per SD", "raw": "per unit"}.get(str(unit), "weight")  # a curve is 0.75 inches high
    known = {name: check_frequencies((frequencies_hz or {}).get(name), rows) for name, rows in sizes.items()}
    columns = check_columns(ncols, n_fields)
    lines = math.ceil(n_fields / columns)
    heights = [CURVE_INCHES if rows == 1 else MAP_INCHES for rows in sizes.values()]
    if figure is None:
        size = (max(FIELD_INCHES[0] * columns + 0.6, 3.2), lines * (sum(heights) + 0.25) + 0.6)
        figure = new_figure(figsize or size)
    grid = figure.subplots(
        lines * len(sizes), columns, squeeze=False, gridspec_kw={"height_ratios": heights * lines}
    )
    edges, drawn = field_edges(n_lags, dt_ms, first_lag), []
    for place in range(lines * columns):
        line, column = divmod(place, columns)
        panels = dict(zip(sizes, grid[line * len(sizes) : (line + 1) * len(sizes), column], strict=True))
        if place >= n_fields:
            for ax in panels.values():
                ax.set_visible(False)
            continue
        first = 0
        for name, ax in panels.items():
            rows = fields[place, first : first + sizes[name]]
            first += sizes[name]
            if len(rows) == 1:
                _draw_curve(ax, rows[0], edges, dt_ms)
                ax.set_ylabel(label)
            else:
                draw_field(ax, rows, known[name], dt_ms, first_lag=first_lag, band_label="row", cmap=cmap)
            ax.xaxis.label.set_fontsize(TICK_SIZE)
            ax.yaxis.label.set_fontsize(TICK_SIZE)
            if column:
                ax.set_ylabel("")
            left_title(ax, name, TICK_SIZE)
            if name != list(sizes)[-1]:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
        if titles is not None:
            top, begins = (
                panels[next(iter(sizes))],
                textwrap.fill(shown_text(titles[place]), TITLE_CHARACTERS),
            )
            left_title(top, f"{begins}\n{shown_text(next(iter(sizes)))}", LABEL_SIZE)
        drawn.append(panels)
    figure_title(figure, suptitle)
    return figure, drawn


def _draw_curve(ax: Axes, weights: FloatArray, edges: tuple[float, float], dt_ms: float | None) -> None:
    """Draw the weights (T,) of one row over lags, most recent last."""
    step = dt_ms or 1.0
    lags = edges[1] + (np.arange(weights.size, 0, -1, dtype=np.float64) - 0.5) * step
    ax.axhline(0.0, color=INK, linewidth=0.5)
    ax.plot(lags, weights, color=BLUE, linewidth=1.4)
    ax.set_xlim(*edges)
    mark_response(ax, edges)
    lag_label(ax, dt_ms)
    tidy(ax)


#: Labels of weights by their unit.
WEIGHT_LABELS = {None: "weight", "sd": "weight per SD", "raw": "weight per unit"}


def _weight_label(unit: str | None) -> str:
    """Label of weights in a unit."""
    if unit not in WEIGHT_LABELS:
        raise ValueError(f"unit must be one of None, 'sd', 'raw'; got {unit!r}")
    return WEIGHT_LABELS[unit]


def _stack_fields(strfs: Any) -> FloatArray:
    """Receptive fields (K, F, T) of one shape."""
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


@checked
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
    unit: str | None = None,
    first_lag: int = 0,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw one STRF with its confidence band: the map, and the profiles through its peak.

    In the map, weights whose band holds zero are pale. The profiles run through the largest weight, over
    frequency and over time, with the band shaded. The band is pointwise: of 100 weights that are truly zero,
    a 95% band excludes zero for about five.

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
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.
    unit : {None, "sd", "raw"}
        Unit of the weights, for the labels of axes; None does not name it.
    first_lag : int
        Lag of the last column in bins, ``model.first_lag``.

    Returns
    -------
    (figure, list of three axes)
        Map, profile over time, profile over frequency.

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
    label = _weight_label(unit)
    n_bands, n_lags = field.shape
    frequencies = check_frequencies(frequencies_hz, n_bands)
    if figure is None:
        figure = new_figure(figsize or CONFIDENCE_SIZE)
    axes: list[Axes] = list(figure.subplots(1, 3, width_ratios=(1.0, 1.1, 0.8)))
    whole, over_time, over_bands = axes

    sure, has_band = (bottom > 0) | (top < 0), bool(np.isfinite(bottom).any())
    alpha = np.where(sure | (not has_band), 1.0, UNSURE_ALPHA)
    draw_field(whole, field, frequencies, dt_ms, first_lag=first_lag, cmap=cmap, alpha=alpha)
    known = f"{int(np.sum(sure))} of {field.size} weights are sure" if has_band else "no band: too few clips"
    left_title(whole, known, LABEL_SIZE)

    band, lag = np.unravel_index(int(np.nanargmax(np.abs(np.nan_to_num(field)))), field.shape)
    step = dt_ms or 1.0
    edges = field_edges(n_lags, dt_ms, first_lag)
    ages = edges[1] + (np.arange(n_lags, 0, -1, dtype=np.float64) - 0.5) * step
    over_time.fill_between(ages, bottom[band], top[band], color=BLUE, alpha=0.25, linewidth=0)
    over_time.plot(ages, field[band], color=BLUE, linewidth=1.4)
    over_time.axhline(0.0, color=INK, linewidth=0.5)
    over_time.set_xlim(*edges)
    mark_response(over_time, edges)
    over_time.set_ylabel(label)
    lag_label(over_time, dt_ms)
    at = f"{frequencies[band] / 1000:.3g} kHz" if frequencies is not None else f"band {band}"
    left_title(over_time, f"at {at}", LABEL_SIZE)

    bands = np.arange(n_bands)
    over_bands.fill_betweenx(bands, bottom[:, lag], top[:, lag], color=BLUE, alpha=0.25, linewidth=0)
    over_bands.plot(field[:, lag], bands, color=BLUE, linewidth=1.4)
    over_bands.axvline(0.0, color=INK, linewidth=0.5)
    over_bands.set_ylim(-0.5, n_bands - 0.5)
    frequency_axis(over_bands, n_bands, frequencies)
    over_bands.locator_params(axis="x", nbins=MOST_WEIGHTS)
    over_bands.set_xlabel(label)
    back = n_lags - 1 - lag + first_lag  # a column spans a whole bin
    span = f"{back * step:g} to {(back + 1) * step:g} ms back" if dt_ms else f"at lag {back}"
    left_title(over_bands, span, LABEL_SIZE)
    for ax in axes:
        tidy(ax)
    figure_title(figure, suptitle)
    return figure, axes


@checked_but("ncols", "titles")
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
        Of `deepSTRF.interpret.modulation_transfer`, or squared amplitudes of `ripple_responses`.
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
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of K axes)

    Examples
    --------
    >>> figure, (panel,) = plot_modulation_transfer(np.ones((3, 5)), [-20, -10, 0, 10, 20], [0.0, 0.5, 1.0])
    >>> panel.get_xlabel(), panel.get_ylabel(), [float(edge) for edge in panel.get_xlim()]
    ('rate (Hz)', 'scale (cycles/octave)', [-25.0, 25.0])
    """
    rates, scales = as_ascending(rates_hz, "rates_hz"), as_ascending(scales_cyc_oct, "scales_cyc_oct")
    magnitude = _magnitudes(power, scales.size, rates.size)
    check_titles(titles, len(magnitude))
    columns = check_columns(ncols, len(magnitude))
    check_positive(max_rate_hz, "max_rate_hz")
    if figure is None:
        width, height = MODULATION_INCHES
        size = (max(3.2, width * columns + 0.6), height * math.ceil(len(magnitude) / columns) + 0.4)
        figure = new_figure(figsize or size)
    axes = panel_grid(figure, len(magnitude), columns)
    for panel, ax in enumerate(axes):
        highest = float((magnitude if shared_clim else magnitude[panel]).max()) or 1.0
        shown = _draw_modulation(ax, magnitude[panel], rates, scales, max_rate_hz, cmap=cmap, vmax=highest)
        ax.set_xlabel("rate (Hz)" if panel + columns >= len(magnitude) else "")
        ax.set_ylabel("" if panel % columns else "scale (cycles/octave)")
        ax.tick_params(labelleft=panel % columns == 0)
        left_title(ax, titles[panel] if titles is not None else None, LABEL_SIZE)
        tidy(ax)
    if shared_clim:
        bar = figure.colorbar(shown, ax=axes, shrink=0.85)
        bar.set_label("magnitude", fontsize=TICK_SIZE)
    figure_title(figure, suptitle)
    return figure, axes


def _magnitudes(power: Any, n_scales: int, n_rates: int) -> FloatArray:
    """Magnitudes (K, S, R): square roots of the power."""
    values = as_array(power, "power")
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] != (n_scales, n_rates) or not len(values):
        raise ValueError(
            f"power must have shape (K, S, R) or (S, R) with S={n_scales} and R={n_rates}, got {values.shape}"
        )
    if (values < 0).any() or not np.isfinite(values).all():
        raise ValueError("power must be finite and not negative; pass squared magnitudes")
    return np.asarray(np.sqrt(values))


def _draw_modulation(
    ax: Axes,
    image: FloatArray,
    rates: FloatArray,
    scales: FloatArray,
    max_rate_hz: float | None,
    **colours: Any,
) -> Any:
    """Draw one panel (S, R); unevenly spaced rates or scales, as of ripples, get equal cells."""
    if max_rate_hz is not None and not _even(rates):
        kept = np.abs(rates) <= max_rate_hz
        image, rates = image[:, kept], rates[kept]
    x_edges, y_edges = _edges(rates), _edges(scales)
    place: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": (*x_edges, *y_edges)}
    shown = ax.imshow(image, interpolation="nearest", vmin=0.0, **place, **colours)
    for values, set_ticks in ((rates, ax.set_xticks), (scales, ax.set_yticks)):
        if not _even(values):
            set_ticks(np.arange(values.size), [tick_text(value) for value in values])
    ax.axvline(0.0 if _even(rates) else float((rates < 0).sum()) - 0.5, color=GREY, linewidth=0.6)
    if max_rate_hz is not None and _even(rates):
        ax.set_xlim(max(-max_rate_hz, x_edges[0]), min(max_rate_hz, x_edges[1]))
    if _even(scales):
        ax.set_ylim(max(0.0, y_edges[0]), y_edges[1])
    return shown


def _even(values: FloatArray) -> bool:
    """Whether values are evenly spaced."""
    steps = np.diff(values)
    return values.size > 1 and bool(np.allclose(steps, steps[0], rtol=1e-3))


def _edges(centres: FloatArray) -> tuple[float, float]:
    """Outer edges of the first and the last cell; cells are numbered where values are not evenly spaced."""
    if not _even(centres):
        return -0.5, centres.size - 0.5
    half = 0.5 * float(centres[1] - centres[0])
    return float(centres[0]) - half, float(centres[-1]) + half


@checked
def plot_waveform_field(
    gradmap: Any,
    audio_fs: float,
    *,
    duration_ms: float | None = None,
    zoom_ms: float | None = None,
    stim: Any = None,
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw a receptive field in the waveform, in ms before the response: the whole, and its most recent part.

    Parameters
    ----------
    gradmap : array (T_audio,)
        Gradient of a response with respect to the samples before it; the last one is the end of its bin.
    audio_fs : float
        Samples per second.
    duration_ms : float, optional
        Duration of the field (`deepSTRF.interpret.rf_duration_ms`); it is shaded.
    zoom_ms : float, optional
        Length of the most recent part; None is 1.3 times ``duration_ms`` where that is at most half of the
        whole, else a tenth of the whole.
    stim : array (T_audio,), optional
        The sound before the same response, drawn below.
    suptitle : str, optional
        Title of the figure.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of two axes, or four with the sound)

    Examples
    --------
    >>> field = np.concatenate([np.zeros(4000), np.hanning(800)])
    >>> figure, axes = plot_waveform_field(field, audio_fs=16000, duration_ms=45.0)
    >>> [[float(edge) for edge in ax.get_xlim()] for ax in axes]
    [[300.0, 0.0], [58.5, 0.0]]
    """
    field = as_series(gradmap, "gradmap")
    if field.size < 2:
        raise ValueError("gradmap must hold at least two samples")
    for value, name in ((audio_fs, "audio_fs"), (duration_ms, "duration_ms"), (zoom_ms, "zoom_ms")):
        check_positive(value, name)
    sound = None if stim is None else as_series(stim, "stim")
    if sound is not None and sound.size != field.size:
        raise ValueError(
            f"stim has {sound.size} samples, gradmap {field.size}; pass the same stretch of both"
        )
    whole_ms = 1000.0 * field.size / audio_fs
    if zoom_ms is None:
        # the field where it is a small part of the whole, else a part in which single cycles are visible
        field_ms = MARGIN * duration_ms if duration_ms else whole_ms
        zoom_ms = field_ms if field_ms <= 0.5 * whole_ms else 0.1 * whole_ms
    zoom_ms = min(whole_ms, zoom_ms)
    rows = 1 if sound is None else 2
    if figure is None:
        figure = new_figure(figsize or (WAVEFORM_SIZE[0], WAVEFORM_SIZE[1] + SOUND_INCHES * (rows - 1)))
    grid = figure.subplots(rows, 2, squeeze=False, sharex="col")
    series = ((field, VERMILION, "gradient"), (sound, BLUE, "sound"))
    for row, (values, colour, label) in zip(grid, series, strict=False):
        if values is not None:
            _draw_row(row, values, audio_fs, (whole_ms, zoom_ms), colour, duration_ms)
            row[0].set_ylabel(label)
    shaded = f" (shaded: {_duration(duration_ms)})" if duration_ms else ""
    left_title(grid[0, 0], f"receptive field{shaded}")
    left_title(grid[0, 1], f"its last {_duration(zoom_ms)}")
    for ax in grid[-1]:
        ax.set_xlabel("ms before the end of the response bin")
    figure_title(figure, suptitle)
    return figure, list(grid.flat)


def _draw_row(
    row: Any,
    values: FloatArray,
    audio_fs: float,
    spans_ms: tuple[float, float],
    colour: str,
    duration_ms: float | None,
) -> None:
    """Draw a series (T_audio,) twice, over two time spans, its last ``duration_ms`` shaded."""
    limit = 1.08 * symmetric_limit(values)
    for ax, span_ms in zip(row, spans_ms, strict=True):
        if duration_ms:
            ax.axvspan(min(duration_ms, span_ms), 0.0, color=GREY, alpha=0.18, linewidth=0)
        _draw_line(ax, values, audio_fs, span_ms, colour)
        ax.axhline(0.0, color=INK, linewidth=0.5)
        ax.set_xlim(span_ms, 0.0)
        ax.set_ylim(-limit, limit)
        tidy(ax)
    row[1].tick_params(labelleft=False)


def _draw_line(ax: Axes, values: FloatArray, audio_fs: float, span_ms: float, colour: str) -> None:
    """Draw the end of a series, sample by sample or as the range within small steps."""
    shown = values[-max(2, round(span_ms * audio_fs / 1000.0)) :]
    # the middle of each sample, counted back from the end of the last one
    ages_ms = (np.arange(shown.size, 0, -1) - 0.5) * 1000.0 / audio_fs
    if shown.size <= MOST_POINTS:
        ax.plot(ages_ms, shown, color=colour, linewidth=0.8)
        return
    starts = np.linspace(0, shown.size, MOST_POINTS // 2, endpoint=False).astype(int)
    low, high = np.minimum.reduceat(shown, starts), np.maximum.reduceat(shown, starts)
    ax.fill_between(ages_ms[starts], low, high, color=colour, linewidth=0.3)


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.3g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"
