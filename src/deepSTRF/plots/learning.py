"""How a fit went: loss and score per epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import FloatArray, as_series
from deepSTRF.plots._style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    TICK_SIZE,
    VERMILLION,
    integer_ticks,
    left_title,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_learning_curve"]

PANEL_SIZE = (4.4, 3.0)
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, INK)
TRAIN, VALIDATION = "train_", "val_"


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
        Its name in words.
    title : str, optional
        Title of the first panel.
    figsize : (float, float), optional
        Inches, for a figure made here.
    figure : matplotlib Figure or SubFigure, optional
        Draw here; its layout is left alone.

    Returns
    -------
    (figure, list of axes)
        One axis for the loss and, when the score is known, one for the score.

    Raises
    ------
    ValueError
        No curves, none of the known keys, or best_epoch outside the fit.

    Examples
    --------
    >>> curves = {"train_loss": [3.0, 2.0], "val_loss": [3.5, 2.5], "val_cc_norm": [0.1, 0.4]}
    >>> figure, axes = plot_learning_curve(curves, best_epoch=1)
    >>> [ax.get_ylabel() for ax in axes], axes[0].get_xlabel()
    (['loss', 'noise-corrected correlation'], 'epoch')
    """
    seeds = _as_seeds(curves)
    panels = [(key, label) for key, label in (("loss", "loss"), (score, score_label)) if _known(seeds, key)]
    if not panels:
        raise ValueError(
            f"curves has none of train_loss, val_loss, train_{score}, val_{score}; "
            f"its keys are {sorted(seeds[0])}"
        )
    _check_best_epoch(best_epoch, seeds)
    if figure is None:
        figure = new_figure(figsize or (PANEL_SIZE[0] * len(panels), PANEL_SIZE[1]))
    axes: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for ax, (key, label) in zip(axes, panels, strict=True):
        for colour, prefix, name in ((BLUE, TRAIN, "train"), (VERMILLION, VALIDATION, "validation")):
            _draw_curve(ax, [seed[prefix + key] for seed in seeds if prefix + key in seed], colour, name)
        if best_epoch is not None and len(seeds) == 1:
            ax.axvline(best_epoch + 1, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)), label="weights kept")
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        integer_ticks(ax.xaxis)
        ax.legend(frameon=False, fontsize=TICK_SIZE)
        tidy(ax)
    left_title(axes[0], title)
    return figure, axes


def _as_seeds(curves: Any) -> list[dict[str, FloatArray]]:
    seeds = [curves] if isinstance(curves, Mapping) else list(curves)
    if not seeds or not all(seeds):
        raise ValueError("curves is empty; pass what Fitter.fit() returned, as one series per key")
    return [{key: as_series(values, key) for key, values in seed.items()} for seed in seeds]


def _known(seeds: list[dict[str, FloatArray]], key: str) -> bool:
    return any(prefix + key in seed for seed in seeds for prefix in (TRAIN, VALIDATION))


def _check_best_epoch(best_epoch: int | None, seeds: list[dict[str, FloatArray]]) -> None:
    longest = max(series.size for seed in seeds for series in seed.values())
    if best_epoch is not None and not 0 <= best_epoch < longest:
        raise ValueError(f"best_epoch must be a 0-based epoch below {longest}, got {best_epoch}")


def _draw_curve(ax: Axes, series: list[FloatArray], colour: str, name: str) -> None:
    """One line for one seed; thin lines and their mean (over the seeds still running) for several."""
    if not series:
        return
    if len(series) == 1:
        marker = "o" if series[0].size == 1 else None  # a line of one epoch would not show
        epochs = np.arange(1, series[0].size + 1)
        ax.plot(epochs, series[0], color=colour, linewidth=1.5, marker=marker, label=name)
        return
    for one in series:
        ax.plot(np.arange(1, one.size + 1), one, color=colour, linewidth=0.7, alpha=0.4)
    shared = min(one.size for one in series)  # beyond it the mean would be over fewer seeds each epoch
    mean = np.mean([one[:shared] for one in series], axis=0)
    ax.plot(
        np.arange(1, shared + 1), mean, color=colour, linewidth=1.8, label=f"{name}, mean of {len(series)}"
    )
