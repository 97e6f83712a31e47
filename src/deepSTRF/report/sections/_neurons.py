"""Single neurons: three of them in full, all of them in a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.plots import plot_neuron_panel
from deepSTRF.report.embed import field_thumbnail
from deepSTRF.report.parts import METRICS, NeuronExample, ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render
from deepSTRF.report.sections._overview import metric_of
from deepSTRF.report.windows import shown_lags

__all__ = ["example_neurons", "neuron_table"]

#: Beyond this the page would outgrow a mail attachment; the table then goes without pictures.
MOST_THUMBNAILS = 1000
#: Columns that would crowd the table; scores.csv has them.
LEFT_OUT = ("cc_norm_published", "mse")


def example_neurons(parts: ReportParts) -> Section | None:
    """Make the panels of the best, the median and the worst neuron."""
    if not parts.examples:
        return None
    body = "".join(_panel(parts, example) for example in parts.examples)
    lead = (
        "The best, the median and the worst by test score: what the model hears, every repeat, and their "
        "average under the prediction. The clip is the test clip with the strongest response."
    )
    if parts.latent:
        lead += " Rows are channels of the front-end's learned output, in no order of frequency."
    if len(parts.seeds) > 1:
        lead += (
            " Scores are means over seeds; predictions are those of the seed with the best validation score."
        )
    return Section("neurons", "Example neurons", body, lead)


def _panel(parts: ReportParts, example: NeuronExample) -> str:
    known = example.neuron in parts.neurons
    index = f" (#{list(parts.neurons).index(example.neuron)})" if known else ""
    title = f"{example.role.capitalize()}: neuron {example.neuron}{index}"
    name = metric_of(parts.main_score).label
    figure, _ = plot_neuron_panel(
        example.stim,
        example.response,
        example.pred,
        parts.dt_ms,
        strf=None if example.strf is None else example.strf[:, -shown_lags(example.strf[None]) :],
        title=title,
        frequencies_hz=parts.frequencies_hz,
        response_label=parts.response_unit,
        band_label=parts.band_label,
    )
    repeats = example.response.shape[0]
    caption = f"{title}. {name.capitalize()} {number(example.score)} on the test clips. Clip {example.clip}"
    if example.start_s:
        caption += f", from {example.start_s:.1f} s"
    caption += f"; {repeats} repeat{'s' if repeats != 1 else ''}."
    seen = (
        "Spectrogram, raster, PSTH with prediction"
        if repeats > 1
        else "Spectrogram, response with prediction"
    )
    alt = f"{seen}{' and receptive field' if example.strf is not None else ''} of the {example.role} neuron."
    return figure_html(figure, alt, caption)


def neuron_table(parts: ReportParts) -> Section | None:
    """Make the sortable table of all neurons, best first, those without a score last."""
    if not parts.n_neurons or not parts.columns:
        return None
    fits = [name for name, column in parts.columns.items() if len(column) == parts.n_neurons]
    names = [name for name in fits if name not in LEFT_OUT]
    names.sort(key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS))
    ranked = [int(neuron) for neuron in parts.ranked()]
    order = ranked + sorted(set(range(parts.n_neurons)) - set(ranked))
    with_fields = parts.strfs is not None and parts.n_neurons <= MOST_THUMBNAILS
    columns: list[dict[str, Any]] = [
        {"name": "#", "title": "index in the recording, from 0", "numeric": True, "sorted": None},
        {"name": "neuron", "title": "its name", "numeric": False, "sorted": None},
    ]
    for name in names:
        sorting = "descending" if name == parts.main_score else None
        columns.append({"name": name, "title": metric_of(name).meaning, "numeric": True, "sorted": sorting})
    lags = shown_lags(parts.strfs) if with_fields else 0
    rows = [_row(parts, neuron, names, lags) for neuron in order]
    body = render(
        "neurons.html.j2", columns=columns, rows=rows, has_fields=with_fields, label="Scores of every neuron"
    )
    lead = "Click a column to sort. Every score, per seed and split, is in scores.csv beside this page."
    return Section("table", "All neurons", body, lead)


def _row(parts: ReportParts, neuron: int, names: list[str], lags: int) -> dict[str, Any]:
    cells: list[dict[str, Any]] = [
        {"text": str(neuron), "value": str(neuron), "bar": None},
        {"text": parts.neurons[neuron], "value": None, "bar": None},
    ]
    for name in names:
        value = float(parts.columns[name][neuron])
        finite = np.isfinite(value)
        text = number(value, metric_of(name).decimals)
        # the bar shows 0 .. 1, where correlations live
        bar = round(100 * min(max(value, 0.0), 1.0), 1) if finite and name == parts.main_score else None
        cells.append({"text": text, "value": f"{value:.6g}" if finite else "", "bar": bar})
    thumbnail = None
    if lags and parts.strfs is not None and np.isfinite(parts.strfs[neuron]).all():
        thumbnail = field_thumbnail(parts.strfs[neuron][:, -lags:])
    return {"name": parts.neurons[neuron], "cells": cells, "thumbnail": thumbnail}
