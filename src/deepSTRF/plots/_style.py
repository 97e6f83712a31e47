"""How figures look, in one place: colours, type sizes, axes in kHz and milliseconds.

Every figure that deepSTRF makes itself is a plain `matplotlib.figure.Figure`: it belongs to whoever holds it,
opens no window, and never touches the state of pyplot. On axes or figures that a caller hands in, only what
was asked for is drawn; their layout is left alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

__all__ = [
    "BANDS",
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "SKY",
    "VERMILLION",
    "draw_spectrogram",
    "frequency_axis",
    "integer_ticks",
    "kilohertz_axis",
    "left_title",
    "new_figure",
    "symmetric_limit",
    "tidy",
]

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
