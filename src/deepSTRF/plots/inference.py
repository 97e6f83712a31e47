"""Figures of tests: a score beside its null distribution, and models compared neuron by neuron."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF._validation import checked
from deepSTRF.plots._style import (
    BLUE,
    GREY,
    INK,
    LABEL_SIZE,
    PLAIN,
    TICK_SIZE,
    VERMILION,
    as_array,
    as_series,
    left_title,
    own_or_given,
    shown_text,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

HISTOGRAM_SIZE = (5.2, 3.0)
#: Inches of a comparison: for each model, and for the axis.
MODEL_WIDTH, AXIS_WIDTH, HEIGHT = 1.1, 1.0, 3.4
#: Letters of a name that fit beside the next one, those of a line of a turned name, and inches of a letter.
MODEL_LETTERS, TURNED_LETTERS, LETTER = 16, 32, 0.075


@checked
def plot_null_distribution(
    null: Any,
    observed: float,
    *,
    p: float | None = None,
    xlabel: str = "mean score",
    bins: int = 40,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the histogram of a null distribution and the observed score as a line.

    Parameters
    ----------
    null : array (B,)
        Scores under the null hypothesis, such as ``score_null(...).mean_null``; NaN is left out.
    observed : float
        The score, such as ``score_null(...).mean_observed``.
    p : float, optional
        P-value for the legend.
    xlabel : str
        Name of the score.
    bins : int
        Number of bins.
    title : str, optional
        Title.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_null_distribution([-0.1, 0.0, 0.05, 0.1], 0.4, p=0.2)
    >>> ax.get_legend().get_texts()[1].get_text()
    'observed 0.400 (p = 0.2)'
    """
    values = as_series(null, "null")
    values = values[np.isfinite(values)]
    figure, ax = own_or_given(ax, figsize or HISTOGRAM_SIZE)
    if values.size:
        label = f"{values.size} null scores"
        ax.hist(values, bins=bins, color=GREY, alpha=0.75, edgecolor="white", linewidth=0.5, label=label)
    if np.isfinite(observed):
        text = f"observed {observed:.3f}" + ("" if p is None else f" (p = {p:.2g})")
        ax.axvline(observed, color=VERMILION, linewidth=1.8, label=text)
    ax.legend(frameon=False, fontsize=TICK_SIZE)
    ax.set_xlabel(shown_text(xlabel), **PLAIN)
    ax.set_ylabel("draws")
    left_title(ax, title)
    tidy(ax)
    return figure, ax


@checked
def plot_model_comparison(
    scores: Any,
    names: Sequence[str],
    *,
    intervals: Any = None,
    different: Any = None,
    ylabel: str = "noise-corrected correlation",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the scores of several models, one line per neuron, and their means over the same neurons.

    Parameters
    ----------
    scores : array (M, N)
        Scores of M models for the same N neurons; a neuron with a NaN in any model is counted, not drawn.
    names : sequence of str
        Names of the M models.
    intervals : array (M, 2), optional
        Lower and upper end of each mean's confidence interval.
    different : array of bool (N,), optional
        Neurons whose line is drawn in colour, such as those with an adjusted p of at most 0.05.
    ylabel : str
        Name of the score.
    title : str, optional
        Title; None states the number of neurons.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_model_comparison([[0.2, 0.5, 0.4], [0.3, 0.6, float("nan")]], ["linear", "conv"])
    >>> ax.get_title(loc="left")
    '2 neurons, 1 without a score (NaN)'
    """
    values = as_array(scores, "scores")
    if values.ndim != 2 or len(values) != len(names):
        raise ValueError(
            f"scores must be (M, N) with one row for each of the {len(names)} names, got shape {values.shape}"
        )
    ends = None if intervals is None else as_array(intervals, "intervals")
    if ends is not None and ends.shape != (len(names), 2):
        raise ValueError(f"intervals must have shape ({len(names)}, 2), got {ends.shape}")
    coloured = (
        np.zeros(values.shape[1], dtype=bool) if different is None else np.asarray(different, dtype=bool)
    )
    if coloured.shape != (values.shape[1],):
        raise ValueError(f"different must have shape ({values.shape[1]},), got {coloured.shape}")
    labels = [shown_text(name) for name in names]
    upright = max(map(len, labels), default=0) <= MODEL_LETTERS
    labels = labels if upright else [textwrap.fill(label, TURNED_LETTERS) for label in labels]
    below = 0.0 if upright else LETTER * max(len(line) for label in labels for line in label.splitlines())
    figure, ax = own_or_given(ax, figsize or (AXIS_WIDTH + MODEL_WIDTH * len(names), HEIGHT + below))
    shown = np.isfinite(values).all(0)
    places = np.arange(len(names))
    for chosen, colour, alpha in ((shown & ~coloured, GREY, 0.45), (shown & coloured, BLUE, 0.6)):
        if chosen.any():
            ax.plot(
                places,
                values[:, chosen],
                color=colour,
                alpha=alpha,
                linewidth=0.8,
                marker="o",
                markersize=2.5,
            )
    if shown.any():
        means = values[:, shown].mean(1)
        ax.plot(places, means, color=INK, linewidth=1.8, marker="o", markersize=5.5, zorder=4)
        if ends is not None:
            ax.vlines(places, ends[:, 0], ends[:, 1], color=INK, linewidth=1.8, zorder=4)
    ax.set_xticks(places, labels, rotation=0 if upright else 90, **PLAIN)
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_ylabel(shown_text(ylabel), **PLAIN)
    missing = int((~shown).sum())
    default = f"{int(shown.sum())} neurons" + (f", {missing} without a score (NaN)" if missing else "")
    left_title(ax, title or default, LABEL_SIZE)
    tidy(ax)
    return figure, ax
