"""Checks of arguments, colours, type sizes and axes that the figures share.

Figures made here are plain `matplotlib.figure.Figure` objects, unknown to pyplot. On axes and figures that
the caller passes, only the content is drawn; their layout is left alone. Matplotlib is imported when the
first figure is drawn.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

FloatArray = NDArray[np.float64]

# colour-blind safe palette of Okabe and Ito (Wong 2011, Nature Methods 8:441, doi:10.1038/nmeth.1618)
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
SKY = "#56B4E9"
#: Measured responses and text.
INK = "#222222"
#: Guides: identity lines, zero lines, means.
GREY = "#8A8A8A"
#: Background where there is nothing to draw.
EMPTY = "#EFEFEF"
#: One colour per filter pattern.
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", "#B8A900", INK)
#: Part of the viridis map used for lines: its lightest end does not show on white.
DARKEST, LIGHTEST = 0.0, 0.85

LABEL_SIZE = 9.5
TICK_SIZE = 8.5
TITLE_SIZE = 10.5

#: Label of the rows of a spectrogram whose frequencies are unknown.
BANDS = "frequency band"

#: Mantissas of round frequencies; 1-2-5 steps are about an octave apart.
NICE_STEPS = (1.0, 2.0, 5.0)
MAX_FREQUENCY_TICKS = 6

#: Texts are drawn as they are: matplotlib would read "$" in the name of a neuron as mathematics.
PLAIN: dict[str, Any] = {"parse_math": False}
#: Warning of a name in a script that the font lacks; it is drawn as boxes.
NO_GLYPH = "Glyph .* missing from font"
#: A longer text is folded into lines and, beyond a few of them, cut: it would take the space of the axes, and
#: minutes. Names at ticks and in legends are cut at once.
LONGEST_LINE, TITLE_LINE, LABEL_LINE, MOST_FOLDED, LONGEST_NAME = 100, 50, 30, 4, 30


# ---- arguments


def as_array(values: Any, name: str) -> FloatArray:
    """Convert NumPy arrays, torch tensors (any device, with or without gradient) and lists to float64.

    Torch is recognised by its methods, so this module never imports it.
    """
    if hasattr(values, "detach"):
        # .double() before .numpy(): NumPy has no bfloat16
        values = values.detach().cpu().double().numpy()
    elif isinstance(values, list | tuple) and any(hasattr(value, "detach") for value in values):
        values = [as_array(value, name) for value in values]
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numeric with one shape throughout: {error}") from None


def as_series(values: Any, name: str) -> FloatArray:
    """Convert to a one-dimensional, non-empty series (T,)."""
    series = as_array(values, name)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(f"{name} must be one non-empty series of shape (T,), got shape {series.shape}")
    return series


def as_ascending(values: Any, name: str) -> FloatArray:
    """Convert to an ascending series (P,) of finite values."""
    series = as_series(values, name)
    if (np.diff(series) <= 0).any() or not np.isfinite(series).all():
        raise ValueError(f"{name} must ascend and be finite, got {series}")
    return series


def as_spectrogram(values: Any, name: str) -> FloatArray:
    """Convert to an image (F, T); a leading axis of length 1, as in datasets, is dropped."""
    image = as_array(values, name)
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(
            f"{name} must have shape (F, T) or (1, F, T), got {image.shape}; "
            "a waveform is shown through a front-end: model.spectrogram(stim) returns its spectrogram"
        )
    return image


def check_frequencies(frequencies_hz: Any, n_bands: int) -> FloatArray | None:
    """Centre frequencies (F,) in Hz, one per band, or None."""
    if frequencies_hz is None:
        return None
    frequencies = as_series(frequencies_hz, "frequencies_hz")
    if not np.isfinite(frequencies).all() or (frequencies < 0).any():
        raise ValueError(
            "frequencies_hz must be finite and not negative, in Hz; pass None to number the bands"
        )
    if frequencies.size != n_bands:
        raise ValueError(
            f"frequencies_hz holds {frequencies.size} frequencies, the spectrogram has {n_bands} bands; "
            "pass one frequency in Hz per band, or None to number the bands"
        )
    return frequencies


def check_positive(value: Any, name: str) -> None:
    """Raise ValueError unless the value is None or a positive finite number."""
    if value is None:
        return
    try:
        legal = not isinstance(value, str | bool) and 0.0 < float(value) < math.inf
    except (TypeError, ValueError):
        legal = False
    if not legal:
        raise ValueError(f"{name} must be a positive number or None, got {value!r}")


def check_titles(titles: Sequence[str] | None, n_panels: int) -> None:
    """Raise unless there is one title per panel."""
    if isinstance(titles, str):
        raise TypeError(f"titles must be a sequence of {n_panels} texts, got one text: [{titles!r}]?")
    if titles is not None and len(titles) != n_panels:
        raise ValueError(f"titles holds {len(titles)} texts for {n_panels} panels; pass one per panel")


def check_columns(ncols: Any, n_panels: int) -> int:
    """Number of panels in a row, at most all of them."""
    if isinstance(ncols, bool) or not hasattr(ncols, "__index__") or int(ncols) < 1:
        raise ValueError(f"ncols must be a whole number of at least 1, got {ncols!r}")
    return min(int(ncols), n_panels)


def mean_over_repeats(repeats: FloatArray) -> FloatArray:
    """Mean of (R, T) over the recorded repeats; a bin that no repeat covers stays NaN."""
    with warnings.catch_warnings():
        # an all-NaN bin is missing data: nothing to warn about
        warnings.simplefilter("ignore", RuntimeWarning)
        mean: FloatArray = np.nanmean(repeats, axis=0)
    return mean


# ---- figures and panels


def shown_text(text: object, line: int = LABEL_LINE) -> str:
    """Return a text of the caller's as a figure holds it: what cannot be drawn is spelled out."""
    shown = printable(text, keep="\n")
    return shown if len(shown) <= LONGEST_LINE else textwrap.fill(shown[: MOST_FOLDED * line - 1] + "…", line)


def shown_name(name: object) -> str:
    """Return a name as it stands at a tick, beside a dot or in a legend."""
    return printable(name, longest=LONGEST_NAME)


def line_label(label: object) -> str | None:
    """Return the label of a line; legends lack empty ones and those that begin with "_"."""
    if label is None:
        return None
    text = shown_name(label)
    return f" {text}" if not text or text.startswith("_") else text


def draw_legend(ax: Axes, *handles_and_labels: Any, **style: Any) -> None:
    """Draw a legend whose texts are no mathematics."""
    for text in ax.legend(*handles_and_labels, frameon=False, **style).get_texts():
        text.set_parse_math(False)


def new_figure(figsize: tuple[float, float]) -> Figure:
    """A white figure with constrained layout, unknown to pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained", facecolor="white")


def own_or_given(ax: Axes | None, figsize: tuple[float, float]) -> tuple[Figure | SubFigure, Axes]:
    """The given axes and their figure, or new ones."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(figsize)
    return figure, figure.subplots()


def panel_grid(figure: Figure | SubFigure, n_panels: int, columns: int) -> list[Axes]:
    """Axes of a grid of panels in reading order; cells beyond the last panel are hidden."""
    cells = list(figure.subplots(math.ceil(n_panels / columns), columns, squeeze=False).flat)
    for ax in cells[n_panels:]:
        ax.set_visible(False)
    return cells[:n_panels]


def tidy(ax: Axes) -> None:
    """Apply the type sizes, and hide the two spines that have no scale."""
    ax.spines["top"].set_visible(False)
    ax.spines["right"].set_visible(False)
    for spine in ax.spines.values():
        spine.set_linewidth(0.8)
    ax.tick_params(labelsize=TICK_SIZE, width=0.8, length=3.5)
    ax.xaxis.label.set_fontsize(LABEL_SIZE)
    ax.yaxis.label.set_fontsize(LABEL_SIZE)


def left_title(ax: Axes, text: str | None, size: float = TITLE_SIZE) -> None:
    """Set the title of a panel at its left edge."""
    if text:
        ax.set_title(shown_text(text), loc="left", fontsize=size, **PLAIN)


def figure_title(figure: Figure | SubFigure, text: str | None) -> None:
    """Set the title of a figure with several panels."""
    if text:
        figure.suptitle(shown_text(text, TITLE_LINE), fontsize=TITLE_SIZE + 1, **PLAIN)


def legend_above(ax: Axes, ncols: int) -> None:
    """Draw the legend above the axes: inside it would hide data."""
    draw_legend(
        ax,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=ncols,
        fontsize=TICK_SIZE,
        borderaxespad=0.0,
        handlelength=1.4,
    )


def colour_bar(shown: Any, axes: Any, label: str, **place: Any) -> Colorbar:
    """Draw a colour bar beside axes, in small type."""
    figure = (axes[0] if isinstance(axes, list) else axes).figure
    bar: Colorbar = figure.colorbar(shown, ax=axes, **place)
    bar.set_label(shown_text(label), fontsize=TICK_SIZE, **PLAIN)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    return bar


def shades(count: int) -> Any:
    """Colours (count, 4) from dark to light for lines in an order."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(DARKEST, LIGHTEST, count))


def symmetric_limit(image: FloatArray) -> float:
    """Largest finite magnitude, or 1 for an all-zero image, so that 0 is the neutral colour."""
    finite = np.abs(image[np.isfinite(image)])
    top = float(finite.max()) if finite.size else 0.0
    return top if top > 0 else 1.0


# ---- axes


def integer_ticks(axis: Axis, most: int = 9) -> None:
    """Set ticks at whole numbers, for epochs, neurons and bands."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10]))


def tick_text(value: float) -> str:
    """Text of a tick at one value, with a true minus sign."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def time_edges(n_bins: int, dt_ms: float | None, start_s: float = 0.0) -> tuple[float, float]:
    """Start of the first bin and end of the last one: seconds, or bins when the bin width is unknown."""
    return start_s, start_s + n_bins * (dt_ms / 1000.0 if dt_ms else 1.0)


def bin_centres(n_bins: int, dt_ms: float | None, start_s: float = 0.0) -> FloatArray:
    """Centres of the bins on the same axis."""
    step = dt_ms / 1000.0 if dt_ms else 1.0
    return (np.arange(n_bins, dtype=np.float64) + 0.5) * step + start_s


def time_label(ax: Axes, dt_ms: float | None, **style: Any) -> None:
    """Label a time axis in seconds, or in bins when the bin width is unknown."""
    ax.set_xlabel("time (s)" if dt_ms else "time bin", **style)


def lag_edges(n_lags: int, dt_ms: float | None, lookahead: int = 0) -> tuple[float, float]:
    """Start and end of a filter in ms (or bins) before the response; negative ends lie after it."""
    if isinstance(lookahead, bool) or not hasattr(lookahead, "__index__") or not 0 <= lookahead < n_lags:
        raise ValueError(
            f"lookahead must lie in 0 .. {n_lags - 1}, filters have {n_lags} frames, got {lookahead!r}"
        )
    return field_edges(n_lags, dt_ms, -lookahead)


def field_edges(n_lags: int, dt_ms: float | None, first_lag: int) -> tuple[float, float]:
    """Start and end of a field in ms (or bins) before the response whose last column is of ``first_lag``."""
    width = dt_ms or 1.0
    return (n_lags + first_lag) * width, 0.0 + first_lag * width


def mark_response(ax: Axes, edges: tuple[float, float]) -> None:
    """Draw a line at the response where a field goes on after it."""
    if edges[1] < 0 < edges[0]:
        ax.axvline(0.0, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))


def lag_label(ax: Axes, dt_ms: float | None, text: str = "before the response") -> None:
    """Label a lag axis in milliseconds, or in bins when the bin width is unknown."""
    ax.set_xlabel(f"{'ms' if dt_ms else 'bins'} {text}")


def frequency_axis(
    ax: Axes, n_bands: int, frequencies_hz: FloatArray | None, band_label: str = BANDS
) -> None:
    """Label and tick the y axis of an image whose row b spans b - 0.5 .. b + 0.5.

    Bands keep equal heights; ticks stand at the interpolated positions of round frequencies. Where
    frequencies are not monotonic (a learned bank), a few bands are labelled with their own.
    """
    ax.set_ylabel(shown_text(band_label) if frequencies_hz is None else "frequency (kHz)", **PLAIN)
    if frequencies_hz is None:
        integer_ticks(ax.yaxis, most=4)
        return
    bands = np.arange(n_bands, dtype=np.float64)
    steps = np.diff(frequencies_hz)
    monotonic = n_bands > 1 and bool(np.all(frequencies_hz > 0) and (np.all(steps > 0) or np.all(steps < 0)))
    nice = _nice_frequencies(float(frequencies_hz.min()), float(frequencies_hz.max())) if monotonic else []
    if len(nice) >= 2:
        order = np.argsort(frequencies_hz)
        positions = np.interp(np.log(nice), np.log(frequencies_hz[order]), bands[order])
        ax.set_yticks(positions, [_khz(hertz) for hertz in nice])
        return
    picked = np.unique(np.linspace(0, n_bands - 1, min(4, n_bands)).round().astype(int))
    ax.set_yticks(picked, [_khz(float(frequencies_hz[band])) for band in picked])


def kilohertz_axis(ax: Axes, which: str, low_hz: float, high_hz: float) -> None:
    """Make axis "x" or "y", whose data are kilohertz, logarithmic, with ticks at round frequencies."""
    from matplotlib.ticker import NullFormatter, NullLocator

    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    (ax.set_xlim if which == "x" else ax.set_ylim)(low_hz / 1000.0, high_hz / 1000.0)
    nice = _nice_frequencies(low_hz, high_hz)
    axis: Axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks([hertz / 1000.0 for hertz in nice], [_khz(hertz) for hertz in nice])
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _nice_frequencies(low_hz: float, high_hz: float) -> list[float]:
    """Round frequencies within a range, at most `MAX_FREQUENCY_TICKS`."""
    decades = range(math.floor(math.log10(low_hz)), math.ceil(math.log10(high_hz)) + 1)
    nice = [step * 10.0**decade for decade in decades for step in NICE_STEPS]
    # one part in a thousand of slack: a bank from 500.0003 Hz still gets its 0.5 kHz tick
    inside = [hertz for hertz in nice if low_hz * 0.999 <= hertz <= high_hz * 1.001]
    while len(inside) > MAX_FREQUENCY_TICKS:
        inside = inside[::2]
    return inside


def _khz(hertz: float) -> str:
    return f"{hertz / 1000:.3g}"


# ---- content


def draw_spectrogram(
    ax: Axes,
    image: FloatArray,
    x_edges: tuple[float, float],
    frequencies_hz: FloatArray | None,
    band_label: str = BANDS,
    **imshow: Any,
) -> AxesImage:
    """Draw (F, T) with low frequencies at the bottom; the outermost bin edges lie at ``x_edges``."""
    n_bands = image.shape[0]
    shown = ax.imshow(
        image,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(x_edges[0], x_edges[1], -0.5, n_bands - 0.5),
        **imshow,
    )
    frequency_axis(ax, n_bands, frequencies_hz, band_label)
    return shown


def draw_field(
    ax: Axes,
    field: FloatArray,
    frequencies_hz: FloatArray | None,
    dt_ms: float | None,
    *,
    limit: float | None = None,
    lookahead: int = 0,
    first_lag: int = 0,
    band_label: str = BANDS,
    cmap: str = "RdBu_r",
    **imshow: Any,
) -> AxesImage:
    """Draw a receptive field (F, L), its most recent lag at the right; colours are symmetric about 0.

    That lag is ``first_lag``, or ``lookahead`` frames after the response.
    """
    edges, top = lag_edges(field.shape[1], dt_ms, lookahead), limit or symmetric_limit(field)
    if first_lag:
        edges = field_edges(field.shape[1], dt_ms, first_lag)
    shown = draw_spectrogram(
        ax, field, edges, frequencies_hz, band_label, cmap=cmap, vmin=-top, vmax=top, **imshow
    )
    mark_response(ax, edges)
    lag_label(ax, dt_ms)
    tidy(ax)
    return shown


def draw_psth(
    ax: Axes,
    x: FloatArray,
    target: FloatArray,
    prediction: FloatArray | None,
    target_label: str,
    prediction_label: str,
    legend: bool,
) -> None:
    """Draw the measured rate (T,) and, over it, the prediction (T,)."""
    ax.plot(x, target, color=INK, linewidth=1.2, label=line_label(target_label))
    if prediction is not None:
        ax.plot(x, prediction, color=VERMILION, linewidth=1.2, label=line_label(prediction_label))
    if legend:
        legend_above(ax, ncols=2)
