"""Sections on the model as a whole: notes, scores, protocol, neurons, learning curve, and reproduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.experiments.examples import NeuronExample
from deepSTRF.metrics.scores import metric_named, metric_order
from deepSTRF.plots import plot_learning_curve, plot_neuron_panel, plot_noise_ceiling, plot_score_histogram
from deepSTRF.registry import METRICS
from deepSTRF.report.parts import ReportParts, Section, shown_lags
from deepSTRF.report.rendering import cell, field_thumbnail, figure_html, number, render, sortable_table

#: Inches; two such figures stand side by side.
HALF_PAGE = (5.2, 4.2)
#: With more neurons the table has no images: the page would become too large for a mail attachment.
MOST_THUMBNAILS = 1000


def notes(parts: ReportParts) -> Section | None:
    """Warnings and remarks, warnings first."""
    if not parts.notes:
        return None
    ordered = sorted(parts.notes, key=lambda note: note[0] != "warning")
    return Section("notes", "Notes", render("notes.html.j2", notes=ordered))


def scores(parts: ReportParts) -> Section | None:
    """Score table: test first, validation below, one column per seed when there are several."""
    if not parts.score_rows:
        return None
    names = list(dict.fromkeys(row.metric for row in parts.score_rows))
    splits = [
        (split, [(row, metric_named(row.metric)) for row in parts.score_rows if row.split == split])
        for split in dict.fromkeys(row.split for row in parts.score_rows)
    ]
    several = len(parts.seeds) > 1
    body = render(
        "scores.html.j2",
        splits=[(split.capitalize(), rows) for split, rows in splits],
        seeds=list(parts.seeds) if several else [],
        main_score=parts.main_score,
        meanings=[(name, metric_named(name)) for name in names if name in METRICS],
    )
    lead = "Means, standard deviations and medians over neurons; neurons without a score are only counted."
    if several:
        lead += " Each neuron's score is its mean over seeds."
    return Section("scores", "Scores", body, lead)


def protocol(parts: ReportParts) -> Section | None:
    """Protocol card: all that must agree before two scores are compared."""
    if not parts.protocol:
        return None
    lead = "Scores are comparable only where all of these entries agree."
    return Section("protocol", "Protocol", render("definitions.html.j2", rows=parts.protocol), lead)


def population(parts: ReportParts) -> Section | None:
    """Distribution of the score over neurons, and correlations against the noise ceiling."""
    values = parts.columns.get(parts.main_score)
    if values is None or not np.isfinite(values).any():
        return None
    metric = metric_named(parts.main_score)
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
    lead = "On the test clips. The distance of a dot to the dashed line is what the model leaves unexplained."
    body = f'<div class="columns">{"".join(figures)}</div>'
    return Section("population", "Population", body, lead if len(figures) > 1 else "")


def example_neurons(parts: ReportParts) -> Section | None:
    """Panels of the best, the median and the worst neuron."""
    if not parts.examples:
        return None
    body = "".join(_panel(parts, example) for example in parts.examples)
    lead = (
        "The best, the median and the worst by test score: the spectrogram at the input of the model's core, "
        "all repeats, and their mean with the prediction, for the test clip with the strongest response."
    )
    if parts.latent:
        lead += " Rows are channels of the front-end's learned output, in no order of frequency."
    if len(parts.seeds) > 1:
        lead += (
            " Scores are means over seeds; predictions are those of the seed with the best validation score."
        )
    return Section("neurons", "Example neurons", body, lead)


def _panel(parts: ReportParts, example: NeuronExample) -> str:
    """Figure of one example neuron."""
    known = example.neuron in parts.neurons
    index = f" (#{list(parts.neurons).index(example.neuron)})" if known else ""
    title = f"{example.role.capitalize()}: neuron {example.neuron}{index}"
    name = metric_named(parts.main_score).label
    feature, rows = parts.main_feature()
    strf = None if example.strf is None else example.strf[rows]
    figure, _ = plot_neuron_panel(
        example.stim[rows],
        example.response,
        example.pred,
        parts.dt_ms,
        strf=None if strf is None else strf[:, -shown_lags(strf[None]) :],
        title=title,
        frequencies_hz=parts.feature_frequencies.get(feature) if feature else parts.frequencies_hz,
        response_label=parts.response_unit,
        band_label=f"row of {feature}" if feature else parts.band_label,
        first_lag=parts.first_lag,
    )
    repeats = example.response.shape[0]
    caption = f"{title}. {name.capitalize()} {number(example.score)} on the test clips. Clip {example.clip}"
    if example.start_s:
        caption += f", from {example.start_s:.1f} s"
    caption += f"; {repeats} repeat{'s' if repeats != 1 else ''}."
    if feature and len(parts.features) > 1:
        caption += f" Of the features of the stimulus, {feature} is shown."
    panels = "repeats, mean response" if repeats > 1 else "response"
    field = " and receptive field" if example.strf is not None else ""
    alt = f"Spectrogram, {panels} with prediction{field} of the {example.role} neuron."
    return figure_html(figure, alt, caption)


def neuron_table(parts: ReportParts) -> Section | None:
    """Sortable table of all neurons, best first, those without a score last."""
    if not parts.n_neurons or not parts.columns:
        return None
    complete = [name for name, column in parts.columns.items() if len(column) == parts.n_neurons]
    names = sorted((name for name in complete if metric_named(name).in_neuron_table), key=metric_order)
    ranked = [int(neuron) for neuron in parts.ranked()]
    order = ranked + sorted(set(range(parts.n_neurons)) - set(ranked))
    thumbnails = None
    if parts.strfs is not None and parts.n_neurons <= MOST_THUMBNAILS:
        fields = parts.strfs[..., -shown_lags(parts.strfs) :]
        finite: Any = np.isfinite(parts.strfs).all(axis=(1, 2))
        thumbnails = [field_thumbnail(fields[neuron]) if finite[neuron] else None for neuron in order]

    def score_cell(name: str, neuron: int) -> dict[str, Any]:
        value = float(parts.columns[name][neuron])
        # the bar covers 0 .. 1, the range of correlations
        bar = round(100 * min(max(value, 0.0), 1.0), 1) if name == parts.main_score else None
        return cell(value, metric_named(name).decimals, bar=bar)

    body = sortable_table(
        "Scores of every neuron",
        [(name, metric_named(name).meaning) for name in names],
        [(neuron, parts.neurons[neuron], [score_cell(name, neuron) for name in names]) for neuron in order],
        sorted_by=parts.main_score,
        thumbnails=thumbnails,
    )
    lead = "Click a column to sort. All scores, per seed and split, are in scores.csv beside this page."
    return Section("table", "All neurons", body, lead)


def learning(parts: ReportParts) -> Section | None:
    """Learning curve."""
    if not parts.curves:
        return None
    label = metric_named(parts.main_score).label
    figure, axes = plot_learning_curve(
        parts.curves, best_epoch=parts.best_epoch, score=parts.main_score, score_label=label
    )
    epochs = [max(len(series) for series in curves.values()) for curves in parts.curves]
    trained = f"{epochs[0]} epochs"
    if len(epochs) > 1:
        trained = f"{len(epochs)} seeds of {min(epochs)} to {max(epochs)} epochs"
    shown = " and ".join(ax.get_ylabel() for ax in axes)
    alt = f"Learning curve over {trained}: {shown} on training and validation clips."
    caption = "The weights kept are those of the epoch with the best validation score."
    return Section("learning", "Learning curve", figure_html(figure, alt, caption))


def reproduce(parts: ReportParts) -> Section | None:
    """Command, configuration and versions that repeat the run."""
    if not (parts.command or parts.config or parts.versions):
        return None
    body = render("reproduce.html.j2", command=parts.command, config=parts.config, versions=parts.versions)
    return Section("reproduce", "How to reproduce", body)
