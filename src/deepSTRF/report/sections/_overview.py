"""How good the model is, under which protocol, and how the fit went."""

from __future__ import annotations

import numpy as np

from deepSTRF.plots import plot_learning_curve, plot_noise_ceiling, plot_score_histogram
from deepSTRF.report.parts import METRICS, Metric, ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render

__all__ = ["learning", "metric_of", "notes", "population", "protocol", "scores"]

#: Inches; two such figures stand side by side.
HALF_PAGE = (5.2, 4.2)


def metric_of(name: str) -> Metric:
    """Return how a column is called; an unknown one keeps its own name."""
    return METRICS.get(name, Metric(name, ""))


def notes(parts: ReportParts) -> Section | None:
    """Make the warnings and remarks: first on the page, or absent."""
    if not parts.notes:
        return None
    ordered = sorted(parts.notes, key=lambda note: note.level != "warning")
    return Section("notes", "Read this first", render("notes.html.j2", notes=ordered))


def scores(parts: ReportParts) -> Section | None:
    """Make the score table: test first, validation below, one column per seed when there are several."""
    if not parts.score_rows:
        return None
    names = list(dict.fromkeys(row.metric for row in parts.score_rows))
    splits = [
        (split, [(row, metric_of(row.metric)) for row in parts.score_rows if row.split == split])
        for split in dict.fromkeys(row.split for row in parts.score_rows)
    ]
    several = len(parts.seeds) > 1
    body = render(
        "scores.html.j2",
        splits=[(split.capitalize(), rows) for split, rows in splits],
        seeds=list(parts.seeds) if several else [],
        main_score=parts.main_score,
        meanings=[(name, METRICS[name]) for name in names if name in METRICS],
    )
    lead = "Means, standard deviations and medians are over neurons; those without a score are only counted."
    if several:
        lead += " Each neuron's score is its mean over seeds."
    return Section("scores", "Scores", body, lead)


def protocol(parts: ReportParts) -> Section | None:
    """Make the protocol card: what must agree before two scores are compared."""
    if not parts.protocol:
        return None
    lead = "Scores compare only where all of this agrees."
    return Section("protocol", "Protocol", render("definitions.html.j2", rows=parts.protocol), lead)


def population(parts: ReportParts) -> Section | None:
    """Make the spread over neurons, and the scores against the noise ceiling."""
    values = parts.columns.get(parts.main_score)
    if values is None or not np.isfinite(values).any():
        return None
    metric = metric_of(parts.main_score)
    figure, _ = plot_score_histogram(values, xlabel=metric.label, figsize=HALF_PAGE)
    valid = values[np.isfinite(values)]
    alt = (
        f"Histogram of {metric.label} over {valid.size} neurons: mean {number(float(valid.mean()))}, "
        f"from {number(float(valid.min()))} to {number(float(valid.max()))}."
    )
    figures = [figure_html(figure, alt, wide=False)]
    cc, ccmax = parts.columns.get("cc"), parts.columns.get("ccmax")
    if cc is not None and ccmax is not None and np.isfinite(ccmax).any():
        figure, _ = plot_noise_ceiling(cc, ccmax, parts.ceiling_interval, figsize=HALF_PAGE)
        text = "Correlation of every neuron against its noise ceiling; dots lie below the line of equality."
        figures.append(figure_html(figure, text, wide=False))
    lead = "On the test clips. What a dot lacks to the dashed line is what the model leaves unexplained."
    body = f'<div class="columns">{"".join(figures)}</div>'
    return Section("population", "Population", body, lead if len(figures) > 1 else "")


def learning(parts: ReportParts) -> Section | None:
    """Make the learning curve."""
    if not parts.curves:
        return None
    label = metric_of(parts.main_score).label
    figure, axes = plot_learning_curve(
        parts.curves, best_epoch=parts.best_epoch, score=parts.main_score, score_label=label
    )
    epochs = [max(len(series) for series in curves.values()) for curves in parts.curves]
    trained = (
        f"{epochs[0]} epochs"
        if len(epochs) == 1
        else f"{len(epochs)} seeds of {min(epochs)} to {max(epochs)} epochs"
    )
    shown = " and ".join(ax.get_ylabel() for ax in axes)
    alt = f"Learning curve over {trained}: {shown} on training and validation clips."
    caption = "The weights kept are those of the epoch with the best validation score."
    return Section("learning", "Learning curve", figure_html(figure, alt, caption))
