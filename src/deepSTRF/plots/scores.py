"""Figures of scores: their distribution, one against another, noise ceilings, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    FloatArray,
    as_array,
    as_series,
    integer_ticks,
    left_title,
    new_figure,
    own_or_given,
    shown_text,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

HISTOGRAM_SIZE = (6.4, 3.0)
SQUARE_SIZE = (4.2, 4.2)
PANEL_SIZE = (4.4, 3.0)
#: Share of the range kept free around the outermost dot.
MARGIN = 0.05
#: Prefixes of the keys of learning curves.
TRAIN, VALIDATION = "train_", "val_"


@checked
def plot_score_histogram(
    scores: Any,
    *,
    xlabel: str = "noise-corrected correlation",
    bins: int = 24,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the distribution of a score over the neurons, with its mean and median.

    Parameters
    ----------
    scores : array (N,)
        One score per neuron. NaN is counted in the legend's title, not drawn.
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
    >>> figure, ax = plot_score_histogram([0.2, 0.5, 0.6, float("nan")])
    >>> ax.get_legend().get_title().get_text()
    'n = 3, 1 without a score (NaN)'
    """
    values = as_series(scores, "scores")
    if np.isinf(values).any():
        raise ValueError("scores must be finite or NaN; set infinite values to NaN first")
    valid = values[~np.isnan(values)]
    figure, ax = own_or_given(ax, figsize or HISTOGRAM_SIZE)
    if valid.size:
        ax.hist(valid, bins=bins, color=BLUE, alpha=0.75, edgecolor="white", linewidth=0.6)
        mean, median = float(valid.mean()), float(np.median(valid))
        ax.axvline(mean, color=VERMILION, linewidth=1.6, label=f"mean {mean:.3f}")
        ax.axvline(median, color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label=f"median {median:.3f}")
    style: dict[str, Any] = {"frameon": False, "fontsize": TICK_SIZE, "title_fontsize": TICK_SIZE}
    text = _n_text(valid.size, values.size - valid.size)
    ax.legend(*ax.get_legend_handles_labels(), title=text, **style)
    ax.set_xlabel(shown_text(xlabel), **PLAIN)
    ax.set_ylabel("neurons")
    integer_ticks(ax.yaxis, most=6)
    left_title(ax, title)
    tidy(ax)
    return figure, ax


@checked
def plot_score_scatter(
    x: Any,
    y: Any,
    xlabel: str,
    ylabel: str,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw one score against another, one dot per neuron, on equal axes with the line of equality.

    Parameters
    ----------
    x, y : array (N,)
        Scores of the same neurons in the same order; a neuron with a NaN in either is counted, not drawn.
    xlabel, ylabel : str
        Names of the scores.
    title : str, optional
        Title; None states how many neurons lie above the line.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_score_scatter([0.2, 0.5], [0.3, 0.4], "linear", "with gain control")
    >>> ax.get_title(loc="left")
    '1 of 2 neurons above the line'
    """
    first, second = as_series(x, "x"), as_series(y, "y")
    if first.size != second.size:
        raise ValueError(
            f"x holds {first.size} neurons, y holds {second.size}; both need the same neurons in order"
        )
    figure, ax = own_or_given(ax, figsize or SQUARE_SIZE)
    both = np.isfinite(first) & np.isfinite(second)
    _square(ax, np.concatenate([first[both], second[both]]))
    ax.scatter(first[both], second[both], s=18, color=BLUE, alpha=0.7, linewidth=0)
    above, shown = int((second[both] > first[both]).sum()), int(both.sum())
    missing = first.size - shown
    default = f"{above} of {shown} neurons above the line" + (f" ({missing} NaN)" if missing else "")
    left_title(ax, title or default, LABEL_SIZE)
    ax.set_xlabel(shown_text(xlabel), **PLAIN)
    ax.set_ylabel(shown_text(ylabel), **PLAIN)
    tidy(ax)
    return figure, ax


@checked
def plot_noise_ceiling(
    cc: Any,
    ccmax: Any,
    ccmax_interval: Any = None,
    *,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw each neuron's correlation against its noise ceiling; the distance to the line is unexplained.

    Parameters
    ----------
    cc : array (N,)
        Correlation of prediction and PSTH.
    ccmax : array (N,)
        Noise ceiling: the correlation of a perfect model with the mean of as many repeats.
    ccmax_interval : array (N, 2), optional
        Lower and upper end of the ceiling's confidence interval, drawn as a thin bar.
    title : str, optional
        Title.
    figsize, ax : (float, float), Axes, optional
        Inches of a figure made here; or axes to draw on.

    Returns
    -------
    (figure, axes)

    Examples
    --------
    >>> figure, ax = plot_noise_ceiling([0.3, 0.5], [0.6, 0.9], [[0.5, 0.7], [0.8, 0.95]])
    >>> ax.get_xlabel()
    'noise ceiling (highest correlation possible)'
    """
    score, ceiling = as_series(cc, "cc"), as_series(ccmax, "ccmax")
    if score.size != ceiling.size:
        raise ValueError(
            f"cc holds {score.size} neurons, ccmax holds {ceiling.size}; both need the same neurons"
        )
    interval = None if ccmax_interval is None else as_array(ccmax_interval, "ccmax_interval")
    if interval is not None and interval.shape != (score.size, 2):
        raise ValueError(f"ccmax_interval must have shape ({score.size}, 2), got {interval.shape}")
    figure, ax = own_or_given(ax, figsize or SQUARE_SIZE)
    both = np.isfinite(score) & np.isfinite(ceiling)
    n_shown = int(both.sum())
    _square(ax, np.concatenate([score[both], ceiling[both]]))
    if interval is not None:
        ax.hlines(score[both], interval[both, 0], interval[both, 1], color=GREY, linewidth=0.8, alpha=0.6)
    ax.scatter(ceiling[both], score[both], s=18, color=BLUE, alpha=0.8, linewidth=0, zorder=3)
    ax.set_xlabel("noise ceiling (highest correlation possible)")
    ax.set_ylabel("correlation with the PSTH")
    left_title(ax, title or _n_text(n_shown, score.size - n_shown), LABEL_SIZE)
    tidy(ax)
    return figure, ax


def _n_text(n_shown: int, n_missing: int) -> str:
    """Number of neurons drawn, and of those without a score."""
    return f"n = {n_shown}" + (f", {n_missing} without a score (NaN)" if n_missing else "")


def _square(ax: Axes, values: FloatArray) -> None:
    """Set equal limits on both axes around all values and 0, and draw the line of equality."""
    low = min(0.0, float(values.min())) if values.size else 0.0
    high = max(low + 0.1, float(values.max())) if values.size else 1.0
    margin = MARGIN * (high - low)
    limits = (low - margin if low < 0 else low, high + margin)
    ax.plot(limits, limits, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    ax.set_xlim(*limits)
    ax.set_ylim(*limits)
    ax.set_aspect("equal")


@checked
def plot_learning_curve(
    curves: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None = None,
    score: str = "cc_norm",
    score_label: str = "noise-corrected correlation",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw loss and score of every epoch; one fit in full colour, several seeds as thin lines and their mean.

    Parameters
    ----------
    curves : mapping of str to array (n_epochs,), or a sequence of them
        Keys ``train_loss``, ``val_loss`` and, where known, ``train_<score>``, ``val_<score>``: population
        means per epoch. Several mappings are several seeds, which may stop at different epochs.
    best_epoch : int, optional
        0-based epoch whose weights were kept, marked by a line; one fit only.
    score : str
        The score to draw in the second panel.
    score_label : str
        Its name on the axis.
    title : str, optional
        Title of the first panel.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One axis for the loss and, when the score is known, one for the score.

    Examples
    --------
    >>> curves = {"train_loss": [3.0, 2.0], "val_loss": [3.5, 2.5], "val_cc_norm": [0.1, 0.4]}
    >>> figure, axes = plot_learning_curve(curves, best_epoch=1)
    >>> [ax.get_ylabel() for ax in axes], axes[0].get_xlabel()
    (['loss', 'noise-corrected correlation'], 'epoch')
    """
    given = [curves] if isinstance(curves, Mapping) else list(curves)
    if not given or not all(given):
        raise ValueError("curves is empty; pass what Fitter.fit() returned, as one series per key")
    seeds = [{key: as_series(values, key) for key, values in seed.items()} for seed in given]
    known = {key for seed in seeds for key in seed}
    panels = [
        (key, label)
        for key, label in (("loss", "loss"), (score, score_label))
        if known & {TRAIN + key, VALIDATION + key}
    ]
    if not panels:
        raise ValueError(
            f"curves has none of train_loss, val_loss, train_{score}, val_{score}; "
            f"its keys are {sorted(seeds[0])}"
        )
    longest = max(series.size for seed in seeds for series in seed.values())
    if best_epoch is not None and not 0 <= best_epoch < longest:
        raise ValueError(f"best_epoch must be a 0-based epoch below {longest}, got {best_epoch}")
    if figure is None:
        figure = new_figure(figsize or (PANEL_SIZE[0] * len(panels), PANEL_SIZE[1]))
    axes: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for ax, (key, label) in zip(axes, panels, strict=True):
        for colour, prefix, name in ((BLUE, TRAIN, "train"), (VERMILION, VALIDATION, "validation")):
            _draw_curve(ax, [seed[prefix + key] for seed in seeds if prefix + key in seed], colour, name)
        if best_epoch is not None and len(seeds) == 1:
            ax.axvline(best_epoch + 1, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)), label="weights kept")
        ax.set_xlabel("epoch")
        ax.set_ylabel(shown_text(label), **PLAIN)
        integer_ticks(ax.xaxis)
        ax.legend(frameon=False, fontsize=TICK_SIZE)
        tidy(ax)
    left_title(axes[0], title)
    return figure, axes


def _draw_curve(ax: Axes, series: list[FloatArray], colour: str, name: str) -> None:
    """Draw one line for one seed; thin lines and their mean, as far as all seeds run, for several."""
    if not series:
        return
    if len(series) == 1:
        marker = "o" if series[0].size == 1 else None  # a line of one epoch would not show
        epochs = np.arange(1, series[0].size + 1)
        ax.plot(epochs, series[0], color=colour, linewidth=1.5, marker=marker, label=name)
        return
    for one in series:
        ax.plot(np.arange(1, one.size + 1), one, color=colour, linewidth=0.7, alpha=0.4)
    shared = min(one.size for one in series)
    mean = np.mean([one[:shared] for one in series], axis=0)
    ax.plot(
        np.arange(1, shared + 1), mean, color=colour, linewidth=1.8, label=f"{name}, mean of {len(series)}"
    )


@checked
def plot_cross_validation(
    scores: Any,
    fold_scores: Any,
    candidates: Any = None,
    *,
    names: Sequence[str] | None = None,
    chosen: Any = None,
    label: str = "noise-corrected correlation",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    figure: Figure | SubFigure | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Draw the scores of a cross-validation: of every neuron, of every fold, and what the folds chose from.

    ``plot_cross_validation(**cv.arrays())`` draws the result of `deepSTRF.crossval.cross_validate`.

    Parameters
    ----------
    scores : array (N,)
        Score of each neuron over all folds together.
    fold_scores : array (n_folds, N)
        Scores on the test clips of each fold; a row of NaN for a fold that failed.
    candidates : array (n_folds, n_candidates), optional
        Mean score of each candidate inside each fold.
    names : sequence of str, optional
        Their names.
    chosen : array of int (n_folds,), optional
        Candidate that each fold chose, -1 for none.
    label : str
        Name of the score.
    title : str, optional
        Title of the first panel.
    figsize, figure : (float, float), Figure or SubFigure, optional
        Inches of a figure made here; or a figure to draw on, whose layout is left alone.

    Returns
    -------
    (figure, list of axes)
        Neurons, folds, and, where there was a choice, candidates.

    Raises
    ------
    ValueError
        When numbers of neurons, folds or candidates differ.

    Examples
    --------
    >>> figure, axes = plot_cross_validation([0.4, 0.6], [[0.3, 0.5], [0.5, 0.7]], [[0.4, 0.2], [0.5, 0.3]],
    ...                                      names=["weak", "strong"], chosen=[0, 0])
    >>> [ax.get_xlabel() for ax in axes]
    ['neuron, by score', 'fold', 'noise-corrected correlation inside the fold']
    """
    values, folds = as_series(scores, "scores"), as_array(fold_scores, "fold_scores")
    if folds.ndim != 2 or folds.shape[1] != values.size:
        raise ValueError(f"fold_scores must have shape (n_folds, {values.size}), got {folds.shape}")
    grid = None if candidates is None else as_array(candidates, "candidates")
    if grid is not None and (grid.ndim != 2 or len(grid) != len(folds)):
        raise ValueError(f"candidates must have shape ({len(folds)}, n_candidates), got {grid.shape}")
    if figure is None:
        n_panels = 2 if grid is None else 3
        figure = new_figure(figsize or (PANEL_SIZE[0] * n_panels, PANEL_SIZE[1]))
    axes: list[Axes] = list(figure.subplots(1, 2 if grid is None else 3, squeeze=False)[0])
    order = np.argsort(values)  # NaN last, where it is not drawn
    place = np.arange(values.size)
    axes[0].plot(place, folds[:, order].T, linestyle="", marker=".", markersize=3, color=GREY, alpha=0.6)
    axes[0].plot(place, values[order], linestyle="", marker="o", markersize=4, color=BLUE)
    axes[0].set_xlabel("neuron, by score")
    n_shown = int(np.isfinite(values).sum())
    left_title(axes[0], title or _n_text(n_shown, values.size - n_shown), LABEL_SIZE)
    known = [np.isfinite(row).any() for row in folds]
    means = [float(np.nanmean(row)) if some else np.nan for row, some in zip(folds, known, strict=True)]
    axes[1].plot(np.arange(len(folds)), means, linestyle="", marker="o", color=BLUE)
    if n_shown:
        axes[1].axhline(float(np.nanmean(values)), color=VERMILION, linewidth=1.2, label="all folds together")
        axes[1].legend(frameon=False, fontsize=TICK_SIZE)
    axes[1].set_xlabel("fold")
    for ax in axes[:2]:
        ax.set_ylabel(shown_text(label), **PLAIN)
        integer_ticks(ax.xaxis)
        tidy(ax)
    if grid is not None:
        _draw_candidates(axes[2], grid, names, chosen, label)
    return figure, axes


def _draw_candidates(
    ax: Axes, grid: FloatArray, names: Sequence[str] | None, chosen: Any, label: str
) -> None:
    """Draw one row per candidate: a dot per fold, filled where the fold chose it."""
    n_candidates = grid.shape[1]
    shown = [str(number) for number in range(n_candidates)] if names is None else list(names)
    if len(shown) != n_candidates:
        raise ValueError(f"names holds {len(shown)} names for {n_candidates} candidates")
    picked = np.full(len(grid), -1) if chosen is None else np.asarray(chosen)
    if picked.shape != (len(grid),) or (picked >= n_candidates).any():
        raise ValueError(
            f"chosen must hold one candidate below {n_candidates} for each of {len(grid)} folds, "
            f"got {chosen!r}"
        )
    rows = np.broadcast_to(np.arange(n_candidates), grid.shape)
    is_chosen = rows == picked[:, None]
    ax.scatter(grid[~is_chosen], rows[~is_chosen], s=22, facecolors="none", edgecolors=GREY)
    ax.scatter(grid[is_chosen], rows[is_chosen], s=22, color=VERMILION, zorder=3)
    ax.set_yticks(range(n_candidates), [shown_text(name) for name in shown], fontsize=TICK_SIZE, **PLAIN)
    ax.invert_yaxis()
    ax.set_xlabel(f"{shown_text(label)} inside the fold", **PLAIN)
    if is_chosen.any():
        left_title(ax, "filled: chosen by a fold", LABEL_SIZE)
    tidy(ax)
