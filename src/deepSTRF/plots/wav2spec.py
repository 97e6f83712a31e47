"""A front-end's output beside a reference spectrogram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import as_spectrogram, check_frequencies, check_positive
from deepSTRF.plots._panels import time_edges
from deepSTRF.plots._style import (
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

__all__ = ["plot_wav2spec_comparison"]

FIGSIZE = (9.0, 5.6)
#: Centre frequencies this close (relative) are one axis: less than a hundredth of a band.
SAME_FREQUENCY = 1e-3


def plot_wav2spec_comparison(
    pred: Any,
    truth: Any,
    dt_ms: float | None = None,
    *,
    frequencies_hz: Any = None,
    truth_frequencies_hz: Any = None,
    unit: str = "z-score",
    difference: bool = True,
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw a front-end's output, the reference, and their difference; the correlation stands in the title.

    Parameters
    ----------
    pred, truth : array (F, T)
        Output of the front-end and reference, on one grid; both share one colour scale.
    dt_ms : float, optional
        Bin width in ms.
    frequencies_hz, truth_frequencies_hz : array (F,), optional
        Centre frequencies in Hz of the front-end and of the reference. Where they differ, the difference is
        drawn by band.
    unit : str
        What the values are, for the colour bars.
    difference : bool
        Whether to draw the difference, and to say the correlation. Neither means much where the two do not
        hear in the same bands.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of three axes, or two without the difference)

    Raises
    ------
    ValueError
        When the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).normal(size=(8, 40))
    >>> figure, axes = plot_wav2spec_comparison(image, image, dt_ms=5.0)
    >>> axes[0].get_title(loc="left")
    'front-end (r = 1.000 with the reference)'
    """
    output, reference = as_spectrogram(pred, "pred"), as_spectrogram(truth, "truth")
    if output.shape != reference.shape:
        raise ValueError(f"pred has shape {output.shape}, truth {reference.shape}; crop both to one (F, T)")
    check_positive(dt_ms, "dt_ms")
    own = check_frequencies(frequencies_hz, output.shape[0])
    theirs = check_frequencies(truth_frequencies_hz, output.shape[0])
    agree = own is not None and theirs is not None and np.allclose(own, theirs, rtol=SAME_FREQUENCY)
    axes_hz = (own, theirs, own if agree else None)
    if figure is None:
        height = FIGSIZE[1] if difference else 0.7 * FIGSIZE[1]
        figure = new_figure(figsize or (FIGSIZE[0], height))
    axes: list[Axes] = list(figure.subplots(3 if difference else 2, 1))
    edges = time_edges(output.shape[1], dt_ms)
    low, high = min(output.min(), reference.min()), max(output.max(), reference.max())
    remainder = output - reference
    limit = symmetric_limit(remainder)
    scales: tuple[dict[str, Any], ...] = ({"cmap": "magma", "vmin": low, "vmax": high},) * 2
    scales += ({"cmap": "RdBu_r", "vmin": -limit, "vmax": limit},)
    names = (
        f"front-end (r = {_pearson(output, reference):.3f} with the reference)"
        if difference
        else "front-end",
        "reference",
        "difference",
    )
    images = (output, reference, remainder)
    for ax, image, hertz, name, scale in zip(axes, images, axes_hz, names, scales, strict=False):
        shown = draw_spectrogram(ax, image, edges, hertz, **scale)
        left_title(ax, name)
        tidy(ax)
        bar = figure.colorbar(shown, ax=ax, pad=0.01)
        bar.set_label(unit, fontsize=TICK_SIZE)
        bar.ax.tick_params(labelsize=TICK_SIZE)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)
    axes[-1].set_xlabel("time (s)" if dt_ms else "time bin")
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _pearson(first: Any, second: Any) -> float:
    """Correlation over all bins; NaN when either image is constant."""
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else float("nan")
