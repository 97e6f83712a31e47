"""Filters as small panels, and one colour per pattern: what the figures of changing filters share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

__all__ = [
    "BANDS",
    "BLUE",
    "EMPTY",
    "GREEN",
    "GREY",
    "INK",
    "MAP_INCHES",
    "ORANGE",
    "PALETTE",
    "SKY",
    "VERMILLION",
    "FloatArray",
    "ResponseData",
    "as_array",
    "as_series",
    "as_spectrogram",
    "check_frequencies",
    "check_positive",
    "checked_maps",
    "draw_filter",
    "draw_panels",
    "draw_psth",
    "draw_spectrogram",
    "frequency_axis",
    "integer_ticks",
    "kilohertz_axis",
    "left_title",
    "nan_psth",
    "new_figure",
    "response_data",
    "symmetric_limit",
    "tidy",
]

# ------------------------------------------------------------------------------
# What every figure shares before anything is drawn: array conversion and checks. No matplotlib here.


#: Everything is drawn in double precision; it costs nothing next to the drawing itself.
FloatArray = NDArray[np.float64]


def as_array(values: Any, name: str) -> FloatArray:
    """Turn NumPy arrays, torch tensors (any device, with or without gradient) and lists into float64.

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
    """Return a one-dimensional series (T,); raises ValueError on any other rank or an empty one."""
    series = as_array(values, name)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(f"{name} must be one non-empty series of shape (T,), got shape {series.shape}")
    return series


def as_spectrogram(values: Any, name: str) -> FloatArray:
    """Return a (F, T) image; a leading axis of length 1, as in datasets, is dropped."""
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
    """Return centre frequencies (F,) in Hz, or None; raises ValueError when F is another one."""
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
    """Raise ValueError when there is not one title per panel, TypeError for one text instead of several."""
    if isinstance(titles, str):
        raise TypeError(f"titles must be a sequence of {n_panels} texts, got one text: [{titles!r}]?")
    if titles is not None and len(titles) != n_panels:
        raise ValueError(f"titles holds {len(titles)} texts for {n_panels} panels; pass one per panel")


def check_columns(ncols: Any, n_panels: int) -> int:
    """Return how many panels stand in a row; raises ValueError unless ncols is a whole number above 0."""
    if isinstance(ncols, bool) or not hasattr(ncols, "__index__") or int(ncols) < 1:
        raise ValueError(f"ncols must be a whole number of at least 1, got {ncols!r}")
    return min(int(ncols), n_panels)


# ------------------------------------------------------------------------------
# How figures look, in one place: colours, type sizes, axes in kHz and milliseconds.
#
# Every figure that deepSTRF makes itself is a plain `matplotlib.figure.Figure`: it belongs to whoever holds
# it,
# opens no window, and never touches the state of pyplot. On axes or figures that a caller hands in, only what
# was asked for is drawn; their layout is left alone.


# Okabe and Ito's colour-blind safe palette (Wong 2011, Nature Methods 8:441, doi:10.1038/nmeth.1618)
BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
SKY = "#56B4E9"
#: Measured responses and text.
INK = "#222222"
#: Guides: identity lines, zero lines, means.
GREY = "#8A8A8A"

LABEL_SIZE = 9.5
TICK_SIZE = 8.5
TITLE_SIZE = 10.5

#: What the rows of a spectrogram are called where nobody knows their frequencies.
BANDS = "frequency band"

#: Mantissas of "nice" frequencies; 1-2-5 steps are about an octave apart.
NICE_STEPS = (1.0, 2.0, 5.0)
MAX_FREQUENCY_TICKS = 6


def new_figure(figsize: tuple[float, float]) -> Figure:
    """Return a figure of our own: constrained layout, white paper, unknown to pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained", facecolor="white")


def own_or_given(ax: Axes | None, figsize: tuple[float, float]) -> tuple[Figure | SubFigure, Axes]:
    """Return the axes that were given and their figure, or new ones."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(figsize)
    return figure, figure.subplots()


def tidy(ax: Axes) -> None:
    """Apply the house's type sizes and drop the two spines that carry no scale."""
    ax.spines["top"].set_visible(False)
    ax.spines["right"].set_visible(False)
    for spine in ax.spines.values():
        spine.set_linewidth(0.8)
    ax.tick_params(labelsize=TICK_SIZE, width=0.8, length=3.5)
    ax.xaxis.label.set_fontsize(LABEL_SIZE)
    ax.yaxis.label.set_fontsize(LABEL_SIZE)


def left_title(ax: Axes, text: str | None, size: float = TITLE_SIZE) -> None:
    """Title an axis at its left edge, where reading starts."""
    if text:
        ax.set_title(text, loc="left", fontsize=size)


def integer_ticks(axis: Axis, most: int = 9) -> None:
    """Keep ticks at whole numbers: epochs, neurons and bands come in ones."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10]))


def symmetric_limit(image: FloatArray) -> float:
    """Return the largest finite magnitude, or 1 for an all-zero image, so that 0 is the neutral colour."""
    finite = np.abs(image[np.isfinite(image)])
    top = float(finite.max()) if finite.size else 0.0
    return top if top > 0 else 1.0


def _nice_frequencies(low_hz: float, high_hz: float) -> list[float]:
    decades = range(math.floor(math.log10(low_hz)), math.ceil(math.log10(high_hz)) + 1)
    nice = [step * 10.0**decade for decade in decades for step in NICE_STEPS]
    # one part in a thousand of slack: a bank from 500.0003 Hz still gets its 0.5 kHz tick
    inside = [hertz for hertz in nice if low_hz * 0.999 <= hertz <= high_hz * 1.001]
    while len(inside) > MAX_FREQUENCY_TICKS:
        inside = inside[::2]
    return inside


def _khz(hertz: float) -> str:
    return f"{hertz / 1000:.3g}"


def frequency_axis(
    ax: Axes, n_bands: int, frequencies_hz: FloatArray | None, label: bool = True, band_label: str = BANDS
) -> None:
    """Tick the y axis of an image whose row b spans b - 0.5 .. b + 0.5.

    Bands keep equal heights, as the model sees them; ticks stand at the interpolated positions of round
    frequencies. Where they are not monotonic (a learned bank) a few bands carry their own frequency.
    """
    if label:
        ax.set_ylabel(band_label if frequencies_hz is None else "frequency (kHz)")
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
    frequency_axis(ax, n_bands, frequencies_hz, band_label=band_label)
    return shown


# ------------------------------------------------------------------------------
# The three panels every response figure is made of: spectrogram, raster, and PSTH with prediction.


LINE_WIDTH = 1.2
#: A bin at this percentile of the active ones gets full ink: one rare burst must not fade single spikes.
INK_PERCENTILE = 75


@dataclass(frozen=True)
class ResponseData:
    """One clip and one neuron, checked: spectrogram (F, T), repeats (R, T), PSTH (T,), prediction (T,)."""

    spectrogram: FloatArray
    repeats: FloatArray
    psth: FloatArray
    prediction: FloatArray | None
    frequencies_hz: FloatArray | None
    dt_ms: float | None

    @property
    def edges(self) -> tuple[float, float]:
        """Outer edges of the first and the last bin: seconds, or bins when the bin width is unknown."""
        return time_edges(self.spectrogram.shape[1], self.dt_ms)

    @property
    def centres(self) -> FloatArray:
        """Bin centres on the same axis."""
        return bin_centres(self.spectrogram.shape[1], self.dt_ms)


def time_edges(n_bins: int, dt_ms: float | None) -> tuple[float, float]:
    """Return where the first bin begins and the last one ends."""
    return 0.0, n_bins * (dt_ms / 1000.0 if dt_ms else 1.0)


def bin_centres(n_bins: int, dt_ms: float | None) -> FloatArray:
    """Return the middle of every bin: a line drawn there sits on its pixels."""
    step = dt_ms / 1000.0 if dt_ms else 1.0
    return (np.arange(n_bins, dtype=np.float64) + 0.5) * step


def nan_psth(repeats: FloatArray) -> FloatArray:
    """Average (R, T) over the repeats that were recorded; a bin nobody recorded stays NaN."""
    with warnings.catch_warnings():
        # an all-NaN bin is data that is missing, and stays NaN: nothing to warn about
        warnings.simplefilter("ignore", RuntimeWarning)
        mean: FloatArray = np.nanmean(repeats, axis=0)
    return mean


def response_data(
    stim: Any, response: Any, pred: Any, dt_ms: float | None, frequencies_hz: Any
) -> ResponseData:
    """Check shapes against each other; raises ValueError naming the two that disagree."""
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
    return ResponseData(spectrogram, repeats, nan_psth(repeats), prediction, frequencies, dt_ms)


def draw_raster(ax: Axes, data: ResponseData, cmap: str) -> None:
    """Draw repeats as rows, the first at the top; bins that were not recorded stay white."""
    n_repeats = data.repeats.shape[0]
    finite = data.repeats[np.isfinite(data.repeats)]
    active = finite[finite > 0]
    top = float(np.percentile(active, INK_PERCENTILE)) if active.size else 1.0
    ax.imshow(
        data.repeats,
        origin="upper",
        aspect="auto",
        cmap=cmap,
        vmin=min(0.0, float(finite.min())) if finite.size else 0.0,
        vmax=top,
        # "antialiased" averages when bins are narrower than pixels, where "nearest" would drop spikes
        interpolation="antialiased",
        extent=(*data.edges, n_repeats + 0.5, 0.5),
    )
    ax.set_yticks([1, n_repeats])
    ax.set_ylabel("repeat")


def draw_psth(
    ax: Axes,
    x: FloatArray,
    target: FloatArray,
    prediction: FloatArray | None,
    target_label: str,
    prediction_label: str,
    legend: bool,
) -> None:
    """Draw the measured rate and, over it, the prediction."""
    ax.plot(x, target, color=INK, linewidth=LINE_WIDTH, label=target_label)
    if prediction is not None:
        ax.plot(x, prediction, color=VERMILLION, linewidth=LINE_WIDTH, label=prediction_label)
    if legend:
        # above the axes: a legend inside hides bins
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=2,
            frameon=False,
            fontsize=TICK_SIZE,
            borderaxespad=0.0,
            handlelength=1.4,
        )


def draw_panels(
    axes: list[Axes],
    data: ResponseData,
    spec_cmap: str,
    raster_cmap: str,
    response_label: str,
    legend: bool = True,
    band_label: str = BANDS,
) -> None:
    """Draw spectrogram, raster (when there are three axes) and PSTH on a shared time axis."""
    draw_spectrogram(axes[0], data.spectrogram, data.edges, data.frequencies_hz, band_label, cmap=spec_cmap)
    if len(axes) == 3:
        draw_raster(axes[1], data, raster_cmap)
    draw_psth(axes[-1], data.centres, data.psth, data.prediction, "measured", "predicted", legend)
    axes[-1].set_ylabel(response_label)
    axes[-1].set_xlabel("time (s)" if data.dt_ms else "time bin")
    for ax in axes:
        tidy(ax)
        ax.set_xlim(*data.edges)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)


# ------------------------------------------------------------------------------

#: One colour per pattern: what is left of Okabe and Ito's palette stands at the end.
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, SKY, "#CC79A7", "#B8A900", INK)
#: Paper where there is nothing to draw.
EMPTY = "#EFEFEF"
MAP_INCHES = 1.9


def draw_filter(
    ax: Axes,
    image: FloatArray,
    frequencies: FloatArray | None,
    dt_ms: float | None,
    limit: float | None,
    cmap: str = "RdBu_r",
) -> None:
    """One (L, F) map: frequency up, the current frame at the right."""
    own, edges = limit or symmetric_limit(image), (len(image) * (dt_ms or 1.0), 0.0)
    draw_spectrogram(ax, image.T, edges, frequencies, cmap=cmap, vmin=-own, vmax=own)
    ax.set_xlabel("ms before the response" if dt_ms else "bins before the response")
    tidy(ax)


def checked_maps(maps: Any, name: str, count: int | None) -> FloatArray:
    """Filters (K, L, F), of as many as are said or can be told apart."""
    fields = as_array(maps, name)
    if fields.ndim != 3 or 0 in fields.shape or (count is not None and len(fields) != count):
        wanted = "K" if count is None else str(count)
        raise ValueError(f"{name} must be ({wanted}, L, F), got {fields.shape}; take one neuron")
    if count is None and len(fields) > len(PALETTE):
        raise ValueError(
            f"{name} holds {len(fields)} patterns; more than {len(PALETTE)} cannot be told apart"
        )
    return fields
