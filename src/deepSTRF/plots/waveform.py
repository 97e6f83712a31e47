"""A receptive field that is itself a waveform: all of it, and its last stretch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray, as_series, check_positive
from deepSTRF.plots._style import (
    BLUE,
    GREY,
    INK,
    TITLE_SIZE,
    VERMILLION,
    left_title,
    new_figure,
    symmetric_limit,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_waveform_field"]

FIGSIZE = (9.0, 2.9)
#: Height of one more row for the sound.
SOUND_INCHES = 1.7
#: A line of more points than this is drawn as the range within each of half as many steps, like an
#: oscilloscope's: it looks the same, and keeps a five-second sound at 48 kHz out of the figure's file.
MOST_POINTS = 3000
#: The last stretch holds this many times the field's duration.
MARGIN = 1.3


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
    """Draw a receptive field in the waveform, in ms before the response: all of it, and its last stretch.

    Parameters
    ----------
    gradmap : array (T_audio,)
        Gradient of a response with respect to the samples before it; the last one is the end of its bin.
    audio_fs : float
        Samples per second.
    duration_ms : float, optional
        How far back the field reaches (`deepSTRF.interpret.rf_duration_ms`); it is shaded.
    zoom_ms : float, optional
        Length of the last stretch; None is 1.3 times ``duration_ms`` where that is at most half of the whole,
        else a tenth of the whole.
    stim : array (T_audio,), optional
        The sound in the same stretch, drawn below.
    suptitle : str, optional
        Title of the figure.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of two axes, or four with the sound)

    Raises
    ------
    ValueError
        For a map that is no series of at least two samples, a sound of another length, or a duration or rate
        that is not positive.

    Examples
    --------
    >>> import numpy as np
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
    zoom = min(whole_ms, zoom_ms or _zoom(whole_ms, duration_ms))
    rows = 1 if sound is None else 2
    if figure is None:
        figure = new_figure(figsize or (FIGSIZE[0], FIGSIZE[1] + SOUND_INCHES * (rows - 1)))
    grid = figure.subplots(rows, 2, squeeze=False, sharex="col")
    series = ((field, VERMILLION, "gradient"), (sound, BLUE, "sound"))
    for row, (values, colour, label) in zip(grid, series, strict=False):
        if values is not None:
            _draw_row(row, values, audio_fs, (whole_ms, zoom), colour, label, duration_ms)
    shaded = f" (shaded: {_duration(duration_ms)})" if duration_ms else ""
    left_title(grid[0, 0], f"receptive field{shaded}")
    left_title(grid[0, 1], f"its last {_duration(zoom)}")
    for ax in grid[-1]:
        ax.set_xlabel("ms before the end of the response bin")
    if suptitle:
        figure.suptitle(suptitle, fontsize=TITLE_SIZE + 1)
    return figure, [ax for row in grid for ax in row]


def _draw_row(
    row: Any,
    values: FloatArray,
    audio_fs: float,
    reaches_ms: tuple[float, float],
    colour: str,
    label: str,
    duration_ms: float | None,
) -> None:
    limit = 1.08 * symmetric_limit(values)
    for ax, reach_ms in zip(row, reaches_ms, strict=True):
        if duration_ms:
            ax.axvspan(min(duration_ms, reach_ms), 0.0, color=GREY, alpha=0.18, linewidth=0)
        _draw_line(ax, values, audio_fs, reach_ms, colour)
        ax.axhline(0.0, color=INK, linewidth=0.5)
        ax.set_xlim(reach_ms, 0.0)
        ax.set_ylim(-limit, limit)
        tidy(ax)
    row[0].set_ylabel(label)
    row[1].tick_params(labelleft=False)


def _draw_line(ax: Axes, values: FloatArray, audio_fs: float, reach_ms: float, colour: str) -> None:
    """Draw the last stretch of a series, sample by sample or as the range within small steps."""
    shown = values[-max(2, round(reach_ms * audio_fs / 1000.0)) :]
    # the middle of each sample, counted back from the end of the last one
    ages_ms = (np.arange(shown.size, 0, -1) - 0.5) * 1000.0 / audio_fs
    if shown.size <= MOST_POINTS:
        ax.plot(ages_ms, shown, color=colour, linewidth=0.8)
        return
    starts = np.linspace(0, shown.size, MOST_POINTS // 2, endpoint=False).astype(int)
    low, high = np.minimum.reduceat(shown, starts), np.maximum.reduceat(shown, starts)
    ax.fill_between(ages_ms[starts], low, high, color=colour, linewidth=0.3)


def _zoom(whole_ms: float, duration_ms: float | None) -> float:
    """The whole field where it is a small part of the sound, else a stretch in which single waves show."""
    field_ms = MARGIN * duration_ms if duration_ms else whole_ms
    return field_ms if field_ms <= 0.5 * whole_ms else 0.1 * whole_ms


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.3g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"
