"""The few filters that a neuron goes through: their shapes, their order, how long, and what follows what."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray, as_array, as_series, check_frequencies, check_positive
from deepSTRF.plots._filters import EMPTY, MAP_INCHES, PALETTE, checked_maps, draw_filter
from deepSTRF.plots._panels import time_edges
from deepSTRF.plots._style import INK, LABEL_SIZE, TICK_SIZE, left_title, new_figure, symmetric_limit, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_filter_patterns"]

LETTERS = "ABCDEFGH"


def plot_filter_patterns(
    centres: Any,
    labels: Any,
    dwell: Sequence[Any],
    transitions: Any,
    dt_ms: float | None = None,
    *,
    window: tuple[int, int] | None = None,
    cmap: str = "RdBu_r",
    title: str | None = None,
    frequencies_hz: Any = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw the recurring filters of one neuron: their shapes, order in time, stays, and what follows what.

    Patterns are called A, B, .. in the order given. Each carries one colour throughout.

    Parameters
    ----------
    centres : array (K, L, F)
        Of one neuron of `deepSTRF.interpret.dynamic.filter_patterns`, at most eight patterns.
    labels : array (T,)
        Pattern of each bin, of all clips: their shares are counted here. -1, a bin left out, stays grey.
    dwell : sequence of K arrays
        Lengths of the stays in each pattern, in bins.
    transitions : array (K, K)
        Probability of the next bin's pattern, from row to column.
    dt_ms : float, optional
        Bin in ms; axes are then in ms and seconds, else in bins.
    window : (int, int), optional
        First bin whose pattern is shown, and the one after the last; None is all.
    cmap : str
        A diverging colour map for the patterns; all share limits, symmetric about 0.
    title : str, optional
        Title, top left.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One per pattern, then the order in time, the stays, and the transitions.

    Raises
    ------
    ValueError
        For shapes that do not fit each other.

    Examples
    --------
    >>> labels = [0, 0, 0, 1, 1] * 4
    >>> figure, axes = plot_filter_patterns(np.ones((2, 4, 8)), labels, [[3] * 4, [2] * 3], np.eye(2))
    >>> [ax.get_title(loc="left") for ax in axes[:2]]
    ['A: 60% of bins', 'B: 40% of bins']
    """
    maps = checked_maps(centres, "centres", None)
    names, stays, steps = _checked_patterns(labels, dwell, transitions, len(maps))
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, maps.shape[2])
    count, shown = len(maps), slice(*(window or (0, names.size)))
    if names[shown].size == 0:
        raise ValueError(f"window must be two bins, first < last, within 0 .. {names.size}, got {window}")
    if figure is None:
        figure = new_figure(figsize or (max(6.4, (MAP_INCHES - 0.2) * count + 0.9), 4.9 + 0.2 * bool(title)))
    outer = figure.add_gridspec(3, 1, height_ratios=(1.7, 0.5 if count < 5 else 0.8, 1.6))
    top, low = outer[0].subgridspec(1, count), outer[2].subgridspec(1, 2, width_ratios=(1.6, 1))
    axes: list[Axes] = [figure.add_subplot(top[column]) for column in range(count)]
    limit = symmetric_limit(maps)
    known = max(1, int((names >= 0).sum()))
    for column, (ax, image) in enumerate(zip(axes, maps, strict=True)):
        draw_filter(ax, image, frequencies, dt_ms, limit, cmap)
        share = 100 * float((names == column).sum()) / known
        left_title(ax, f"{LETTERS[column]}: {share:.0f}% of bins", LABEL_SIZE)
        ax.spines["left"].set(color=PALETTE[column], linewidth=3.0)
        if column:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if column != count // 2:
            ax.set_xlabel("")
    rest = [figure.add_subplot(outer[1]), figure.add_subplot(low[0]), figure.add_subplot(low[1])]
    _draw_order(rest[0], names, shown, count, dt_ms)
    _draw_stays(rest[1], stays, dt_ms)
    _draw_transitions(rest[2], steps)
    if title:
        figure.suptitle(title, fontsize=LABEL_SIZE + 1.5, x=0.01, ha="left")
    return figure, [*axes, *rest]


def _draw_order(ax: Axes, names: FloatArray, shown: slice, count: int, dt_ms: float | None) -> None:
    """Which pattern when: a row and a colour each, so that it also reads without colours."""
    step = time_edges(1, dt_ms)[1]
    first, last, _ = shown.indices(names.size)
    changes = np.flatnonzero(np.diff(names[first:last])) + first + 1
    borders = [first, *changes.tolist(), last]
    for start, end in itertools.pairwise(borders):
        name = int(names[start])
        if name < 0:
            ax.axvspan(start * step, end * step, color=EMPTY, linewidth=0)
        else:
            ax.broken_barh([(start * step, (end - start) * step)], (name - 0.4, 0.8), color=PALETTE[name])
    ax.set_ylim(count - 0.5, -0.5)
    ax.set_yticks(range(count), list(LETTERS[:count]))
    ax.set_xlim(first * step, last * step)
    ax.set_xlabel("time (s)" if dt_ms else "time bin")
    tidy(ax)


def _draw_stays(ax: Axes, stays: list[FloatArray], dt_ms: float | None) -> None:
    """Share of the stays that last at least so long."""
    step, unit = dt_ms or 1.0, "ms" if dt_ms else "bins"
    for column, lengths in enumerate(stays):
        at = np.arange(1, int(lengths.max(initial=0)) + 2) if lengths.size else np.arange(0)
        lasting = [100 * float((lengths >= length).mean()) for length in at]
        text = f"{LETTERS[column]}: no whole stay"
        if lengths.size:
            text = f"{LETTERS[column]}: mean {lengths.mean() * step:.3g} {unit}, n = {lengths.size}"
        # a stay of n bins lasts to the end of the n-th: the step down stands there
        ax.step(np.r_[0, at] * step, [100.0, *lasting], where="pre", color=PALETTE[column], label=text)
    ax.legend(frameon=False, fontsize=TICK_SIZE - 0.5, handlelength=1.2, loc="upper right")
    ax.set_xlim(left=0.0)
    ax.set_ylim(0.0, 104.0)
    ax.set_xlabel(f"stay of at least ({unit})")
    ax.set_ylabel("% of stays")
    tidy(ax)


def _draw_transitions(ax: Axes, steps: FloatArray) -> None:
    ax.imshow(np.ma.masked_invalid(steps), cmap="Greys", vmin=0.0, vmax=1.0, aspect="equal")
    ax.set_facecolor(EMPTY)
    for (row, column), value in np.ndenumerate(steps):
        text = f"{100 * value:.0f}" if np.isfinite(value) else "–"
        colour = "white" if value > 0.55 else INK
        ax.text(column, row, text, ha="center", va="center", fontsize=TICK_SIZE, color=colour)
    letters = list(LETTERS[: len(steps)])
    ax.set_xticks(range(len(steps)), letters)
    ax.set_yticks(range(len(steps)), letters)
    ax.set_xlabel("next bin (%)")
    ax.set_ylabel("this bin")
    tidy(ax)


def _checked_patterns(
    labels: Any, dwell: Sequence[Any], transitions: Any, count: int
) -> tuple[FloatArray, list[FloatArray], FloatArray]:
    names, steps = as_series(labels, "labels"), as_array(transitions, "transitions")
    if not np.isin(names, np.arange(-1, count)).all():
        raise ValueError(f"labels must be whole numbers from -1 to {count - 1}, the patterns of centres")
    if len(dwell) != count or steps.shape != (count, count):
        raise ValueError(
            f"dwell must hold {count} series and transitions be ({count}, {count}) as centres say, got "
            f"{len(dwell)} and {steps.shape}"
        )
    return names, [as_array(stays, "dwell").reshape(-1) for stays in dwell], steps
