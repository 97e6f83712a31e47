"""A front-end's output beside a reference spectrogram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    TICK_SIZE,
    TITLE_SIZE,
    FloatArray,
    as_array,
    as_series,
    as_spectrogram,
    check_frequencies,
    check_positive,
    draw_spectrogram,
    kilohertz_axis,
    left_title,
    new_figure,
    symmetric_limit,
    tidy,
    time_edges,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_filterbank", "plot_wav2spec_comparison"]

# ------------------------------------------------------------------------------
# The channels of a front-end: what they hear, how far training moved them, how late they are.


FIGSIZE = (9.0, 6.4)
#: The lowest level drawn: what a tone must lack to be told from the best one hardly matters below.
FLOOR_DB = -40.0
#: Part of the colour map that stays visible on white paper.
DARKEST, LIGHTEST = 0.0, 0.85
#: Smallest half range of the axis of shifts, in octaves: a quarter of a semitone, what can be measured.
LEAST_SHIFT = 0.02


def plot_filterbank(
    frequencies_hz: Any,
    gain_db: Any,
    *,
    centre_hz: Any = None,
    latency_ms: Any = None,
    initial_gain_db: Any = None,
    initial_centre_hz: Any = None,
    initial_latency_ms: Any = None,
    stated_latency_ms: Any = None,
    suptitle: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw what the channels of a front-end hear, their centres and their delays, before and after learning.

    Parameters
    ----------
    frequencies_hz : array (P,)
        Tones in Hz, all positive.
    gain_db : array (F, P)
        Tuning curves in dB, 0 at each channel's best tone; a channel of NaN is left out.
    centre_hz, latency_ms : array (F,), optional
        Centre frequency in Hz and delay in ms of every channel; each adds a panel, the delays only together
        with the centres.
    initial_gain_db, initial_centre_hz, initial_latency_ms : arrays, optional
        The same before learning, drawn in grey; with its centres, the panel of centres shows how far each
        moved.
    stated_latency_ms : array (F,), optional
        The delays that the front-end states of itself, as a dashed line.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of one to three axes)

    Raises
    ------
    ValueError
        For shapes that do not fit each other, frequencies that are not positive, or delays without centres.

    Examples
    --------
    >>> import numpy as np
    >>> tones, centres = np.geomspace(100, 8000, 50), np.array([500.0, 2000.0])
    >>> curves = -12 * np.abs(np.log2(tones / centres[:, None]))
    >>> figure, axes = plot_filterbank(tones, curves, centre_hz=centres, latency_ms=[2.5, 2.5])
    >>> [ax.get_ylabel() for ax in axes]
    ['gain (dB)', 'centre frequency (kHz)', 'click latency (ms)']
    """
    tones = as_series(frequencies_hz, "frequencies_hz")
    if not (tones > 0).all():
        raise ValueError("frequencies_hz must all be positive: the axis is logarithmic")
    curves = _curves(gain_db, "gain_db", tones.size)
    n_channels = len(curves)
    before = None if initial_gain_db is None else _curves(initial_gain_db, "initial_gain_db", tones.size)
    centres = _per_channel(centre_hz, "centre_hz", n_channels)
    delays = _per_channel(latency_ms, "latency_ms", n_channels)
    old_centres = _per_channel(initial_centre_hz, "initial_centre_hz", n_channels)
    old_delays = _per_channel(initial_latency_ms, "initial_latency_ms", n_channels)
    stated = _per_channel(stated_latency_ms, "stated_latency_ms", n_channels)
    if delays is not None and centres is None:
        raise ValueError("latency_ms is drawn over centre_hz, which is missing; pass both")
    if figure is None:
        figure = new_figure(figsize or (FIGSIZE if centres is not None else (FIGSIZE[0], 0.5 * FIGSIZE[1])))
    axes = _layout(figure, centres is not None, delays is not None)
    _draw_curves(axes[0], tones, curves, before)
    if centres is not None:
        _draw_centres(axes[1], centres, old_centres)
    if centres is not None and delays is not None:
        _draw_delays(axes[2], centres, delays, old_centres, old_delays, stated)
    for ax in axes:
        tidy(ax)
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, axes


def _layout(figure: Figure | SubFigure, with_centres: bool, with_delays: bool) -> list[Axes]:
    if not with_centres:
        return [figure.subplots(1, 1)]
    names: Any = [["curves", "curves"], ["centres", "delays" if with_delays else "centres"]]
    panels = figure.subplot_mosaic(names)
    return [panels[name] for name in ("curves", "centres", "delays") if name in panels]


def _draw_curves(ax: Axes, tones: FloatArray, curves: FloatArray, before: FloatArray | None) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(DARKEST, LIGHTEST, len(curves)))
    for curve in before if before is not None else ():
        ax.plot(tones / 1000.0, curve, color=GREY, linewidth=0.8, alpha=0.7)
    for curve, colour in zip(curves, colours, strict=True):
        ax.plot(tones / 1000.0, curve, color=colour, linewidth=1.2)
    ax.set_ylim(FLOOR_DB, 2.0)
    ax.set_ylabel("gain (dB)")
    heard = np.isfinite(curves).all(axis=1)
    reach = (curves[heard] > FLOOR_DB).any(axis=0) if heard.any() else np.ones(tones.size, dtype=bool)
    shown = tones[reach]
    kilohertz_axis(ax, "x", float(shown[0]), float(shown[-1]))
    ax.set_xlabel("frequency (kHz)")
    text = f"tuning of {int(heard.sum())} channels"
    left_title(ax, f"{text}: learned (colour), before learning (grey)" if before is not None else text)


def _draw_centres(ax: Axes, centres: FloatArray, before: FloatArray | None) -> None:
    """Draw the centres, or, when there is something to compare with, how far they moved: over three decades a
    shift of a tenth of an octave would not show."""
    if before is None:
        ax.plot(np.arange(len(centres)), centres / 1000.0, "o", color=BLUE, markersize=3.5)
        _kilohertz_range(ax, centres, "y")
        ax.set_xlabel("channel")
        ax.set_ylabel("centre frequency (kHz)")
        return
    shift = np.log2(centres / before)
    ax.vlines(before / 1000.0, 0.0, shift, color=BLUE, linewidth=1.0, alpha=0.6)
    ax.plot(before / 1000.0, shift, "o", color=BLUE, markersize=3.5)
    ax.axhline(0.0, color=INK, linewidth=0.5)
    # channels that did not move should not look as if they had
    limit = max(LEAST_SHIFT, 1.1 * float(np.nanmax(np.abs(shift), initial=0.0)))
    ax.set_ylim(-limit, limit)
    _kilohertz_range(ax, before, "x")
    ax.set_xlabel("centre frequency before learning (kHz)")
    ax.set_ylabel("moved by (octaves)")


def _draw_delays(
    ax: Axes,
    centres: FloatArray,
    delays: FloatArray,
    old_centres: FloatArray | None,
    old_delays: FloatArray | None,
    stated: FloatArray | None,
) -> None:
    before = old_centres is not None and old_delays is not None
    if old_centres is not None and old_delays is not None:
        ax.plot(
            old_centres / 1000.0, old_delays, "o", color=GREY, markersize=4, fillstyle="none", label="before"
        )
    ax.plot(
        centres / 1000.0, delays, "o", color=BLUE, markersize=3.5, label="learned" if before else "measured"
    )
    if stated is not None:
        order = np.argsort(centres)
        ax.plot(centres[order] / 1000.0, stated[order], "--", color=ORANGE, linewidth=1.2, label="stated")
    both = centres if old_centres is None else np.concatenate([centres, old_centres])
    _kilohertz_range(ax, both, "x")
    ax.axhline(0.0, color=INK, linewidth=0.5)
    ax.set_xlabel("centre frequency (kHz)")
    ax.set_ylabel("click latency (ms)")
    if before or stated is not None:
        # above the axes: a legend inside hides channels
        options: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3}
        ax.legend(**options, frameon=False, fontsize=TICK_SIZE, borderaxespad=0.0, handlelength=1.4)


def _kilohertz_range(ax: Axes, hertz: FloatArray, which: str) -> None:
    finite = hertz[np.isfinite(hertz) & (hertz > 0)]
    if finite.size:
        kilohertz_axis(ax, which, 0.85 * float(finite.min()), 1.18 * float(finite.max()))


def _curves(values: Any, name: str, n_tones: int) -> FloatArray:
    curves = as_array(values, name)
    if curves.ndim != 2 or curves.shape[1] != n_tones or len(curves) == 0:
        raise ValueError(f"{name} must have shape (F, {n_tones}), one column per tone, got {curves.shape}")
    return curves


def _per_channel(values: Any, name: str, n_channels: int) -> FloatArray | None:
    if values is None:
        return None
    series = as_series(values, name)
    if series.size != n_channels:
        raise ValueError(f"{name} holds {series.size} values for {n_channels} channels; pass one per channel")
    return series


# ------------------------------------------------------------------------------

SPECTROGRAM_FIGSIZE = (9.0, 5.6)
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
        height = SPECTROGRAM_FIGSIZE[1] if difference else 0.7 * SPECTROGRAM_FIGSIZE[1]
        figure = new_figure(figsize or (SPECTROGRAM_FIGSIZE[0], height))
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
