"""Figures of front-ends: the channels' tuning and delays, and a front-end's output beside a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked
from deepSTRF.plots._style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    FloatArray,
    as_array,
    as_series,
    as_spectrogram,
    check_frequencies,
    check_positive,
    colour_bar,
    draw_spectrogram,
    figure_title,
    kilohertz_axis,
    left_title,
    legend_above,
    new_figure,
    shades,
    symmetric_limit,
    tidy,
    time_edges,
    time_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FIGSIZE = (9.0, 6.4)
SPECTROGRAM_FIGSIZE = (9.0, 5.6)
#: Lowest gain drawn.
FLOOR_DB = -40.0
#: Smallest half range of the axis of shifts, in octaves: the precision of measured centres.
LEAST_SHIFT = 0.02
#: Centre frequencies this close (relative) are one axis: less than a hundredth of a band.
SAME_FREQUENCY = 1e-3


@checked
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
    """Draw the tuning curves of a front-end's channels, their centre frequencies and their delays.

    Values before learning, where given, are drawn in grey.

    Parameters
    ----------
    frequencies_hz : array (P,)
        Tones in Hz, all positive.
    gain_db : array (F, P)
        Tuning curves in dB, 0 at each channel's best tone; a channel of NaN is left out.
    centre_hz, latency_ms : array (F,), optional
        Centre frequency in Hz and delay in ms of every channel; each adds a panel, the delays only with the
        centres.
    initial_gain_db, initial_centre_hz, initial_latency_ms : arrays, optional
        The same before learning; with its centres, the panel of centres shows by how much each changed.
    stated_latency_ms : array (F,), optional
        The delays that the front-end states, as a dashed line.
    suptitle : str, optional
        Title of the figure.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of one to three axes)

    Examples
    --------
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
    layout: Any = [["curves", "curves"], ["centres", "delays" if delays is not None else "centres"]]
    panels = figure.subplot_mosaic(layout if centres is not None else [["curves"]])
    _draw_curves(panels["curves"], tones, curves, before)
    if centres is not None:
        _draw_centres(panels["centres"], centres, old_centres)
    if centres is not None and delays is not None:
        _draw_delays(panels["delays"], centres, delays, old_centres, old_delays, stated)
    axes = [panels[name] for name in ("curves", "centres", "delays") if name in panels]
    for ax in axes:
        tidy(ax)
    figure_title(figure, suptitle)
    return figure, axes


def _draw_curves(ax: Axes, tones: FloatArray, curves: FloatArray, before: FloatArray | None) -> None:
    """Draw the tuning curves (F, P), those before learning in grey behind them."""
    for curve in before if before is not None else ():
        ax.plot(tones / 1000.0, curve, color=GREY, linewidth=0.8, alpha=0.7)
    for curve, colour in zip(curves, shades(len(curves)), strict=True):
        ax.plot(tones / 1000.0, curve, color=colour, linewidth=1.2)
    ax.set_ylim(FLOOR_DB, 2.0)
    ax.set_ylabel("gain (dB)")
    tuned = np.isfinite(curves).all(axis=1)
    shown = tones[(curves[tuned] > FLOOR_DB).any(axis=0)] if tuned.any() else tones
    kilohertz_axis(ax, "x", float(shown[0]), float(shown[-1]))
    ax.set_xlabel("frequency (kHz)")
    text = f"tuning of {int(tuned.sum())} channels"
    left_title(ax, f"{text}: learned (colour), before learning (grey)" if before is not None else text)


def _draw_centres(ax: Axes, centres: FloatArray, before: FloatArray | None) -> None:
    """Draw the centres, or their shift in octaves by learning, which an axis of three decades would hide."""
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
    # rounding errors of unchanged channels are not drawn large
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
    """Draw the delay of each channel over its centre frequency."""
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
        legend_above(ax, ncols=3)


def _kilohertz_range(ax: Axes, hertz: FloatArray, which: str) -> None:
    """Set a kilohertz axis around the finite frequencies."""
    finite = hertz[np.isfinite(hertz) & (hertz > 0)]
    if finite.size:
        kilohertz_axis(ax, which, 0.85 * float(finite.min()), 1.18 * float(finite.max()))


def _curves(values: Any, name: str, n_tones: int) -> FloatArray:
    """Tuning curves (F, P)."""
    curves = as_array(values, name)
    if curves.ndim != 2 or curves.shape[1] != n_tones or len(curves) == 0:
        raise ValueError(f"{name} must have shape (F, {n_tones}), one column per tone, got {curves.shape}")
    return curves


def _per_channel(values: Any, name: str, n_channels: int) -> FloatArray | None:
    """One value per channel (F,), or None."""
    if values is None:
        return None
    series = as_series(values, name)
    if series.size != n_channels:
        raise ValueError(f"{name} holds {series.size} values for {n_channels} channels; pass one per channel")
    return series


@checked
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
    """Draw a front-end's output, a reference, and their difference, with the correlation in the title.

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
        Unit of the values, for the colour bars.
    difference : bool
        Whether to draw the difference and print the correlation; both need the same bands in the two.
    suptitle : str, optional
        Title of the figure.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of three axes, or two without the difference)

    Examples
    --------
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
    if figure is None:
        height = SPECTROGRAM_FIGSIZE[1] if difference else 0.7 * SPECTROGRAM_FIGSIZE[1]
        figure = new_figure(figsize or (SPECTROGRAM_FIGSIZE[0], height))
    axes: list[Axes] = list(figure.subplots(3 if difference else 2, 1))
    edges = time_edges(output.shape[1], dt_ms)
    remainder = output - reference
    limit = symmetric_limit(remainder)
    low, high = min(output.min(), reference.min()), max(output.max(), reference.max())
    shared, around_zero = (
        {"cmap": "magma", "vmin": low, "vmax": high},
        {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit},
    )
    agreement = f" (r = {_pearson(output, reference):.3f} with the reference)" if difference else ""
    panels: tuple[tuple[FloatArray, FloatArray | None, str, dict[str, Any]], ...] = (
        (output, own, f"front-end{agreement}", shared),
        (reference, theirs, "reference", shared),
        (remainder, own if agree else None, "difference", around_zero),
    )
    for ax, (image, hertz, name, scale) in zip(axes, panels, strict=False):
        shown = draw_spectrogram(ax, image, edges, hertz, **scale)
        left_title(ax, name)
        tidy(ax)
        colour_bar(shown, ax, unit, pad=0.01)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)
    time_label(axes[-1], dt_ms)
    figure_title(figure, suptitle)
    return figure, axes


def _pearson(first: Any, second: Any) -> float:
    """Correlation over all bins; NaN when either image is constant."""
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else float("nan")
