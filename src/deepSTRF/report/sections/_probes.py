"""What probe sounds found, and what was left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.plots import plot_probe_curves, plot_response_areas
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.parts import Note, ReportParts, Section
from deepSTRF.report.rendering import figure_html, render
from deepSTRF.report.sections._tuning import cell

__all__ = ["left_out", "probes"]

#: Inches; two such figures stand side by side.
HALF_PAGE = (5.2, 3.1)
#: Beyond this many lines in one figure the legend would cover them.
MOST_LABELLED = 6
#: Figures of one parameter: keys of x and y in probes.npz, axes, log x, title.
CURVES = (
    ("noise_levels_db", "noise_rate_level", "level (dB re 1)", "evoked rate", False, "noise bursts"),
    ("clicks_levels_db", "clicks_latency_ms", "click peak (dB re 1)", "latency (ms)", False, "clicks"),
    ("am_rates_hz", "am_modulation", "modulation rate (Hz)", "modulation of the rate", True, "AM noise"),
)
#: Columns of the table: key in probes.csv, heading, meaning, digits.
COLUMNS = (
    ("tone_best_khz", "best kHz", "tone with the strongest response", 2),
    ("tone_lowest_threshold_db", "threshold dB", "level at which the most sensitive tone is answered", 0),
    ("tone_q10", "Q10", "frequency over bandwidth, 10 dB above threshold", 1),
    ("noise_monotonicity", "monotonicity", "response to the loudest noise over the strongest", 2),
    ("noise_latency_ms", "noise latency ms", "peak of the response to the loudest noise", 1),
    ("noise_onset_index", "onset index", "1 is phasic, 0 tonic", 2),
    ("am_best_rate_hz", "AM rate Hz", "modulation that is followed most", 0),
)


def probes(parts: ReportParts) -> Section | None:
    """Make the figures of probes: tones by level, noise, clicks, amplitude modulation; and their table."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or "probes" not in found.arrays:
        return None
    arrays = found.arrays["probes"]
    if not any(np.nan_to_num(arrays[name]).any() for name in ("tones_response", "noise_rate_level")):
        text = "<p>None of these neurons answers a tone or a noise.</p>"
        return Section("probes", "Probe sounds", text)
    figure, _ = plot_response_areas(
        arrays["tones_response"],
        arrays["tones_frequencies_khz"],
        arrays["tones_levels_db"],
        arrays["tones_threshold_db"],
        found.labels,
    )
    alt = f"Frequency-response areas of {len(found.names)} neurons."
    caption = (
        "Pure tones by frequency and level. Red: above the rate in silence, blue: below; each panel has its "
        "own scale. Line: the lowest level that is answered."
    )
    body = figure_html(figure, alt, caption) + _curves(found, arrays) + _table(found)
    lead = (
        "The model as an animal in a hearing laboratory. Levels are relative to full scale: the model knows "
        "no sound pressure. Sounds far from those it was fitted on ask it to extrapolate."
    )
    return Section("probes", "Probe sounds", body, lead)


def _curves(found: Explanation, arrays: Any) -> str:
    figures = []
    labels = found.labels if len(found.names) <= MOST_LABELLED else None
    for x, y, xlabel, ylabel, log_x, title in CURVES:
        if y in arrays and np.isfinite(arrays[y]).any():
            figure, _ = plot_probe_curves(
                arrays[x], arrays[y], xlabel, ylabel, labels, log_x=log_x, title=title, figsize=HALF_PAGE
            )
            figures.append(figure_html(figure, f"{title}: {ylabel} over {xlabel}.", wide=False))
    return f'<div class="columns">{"".join(figures)}</div>' if figures else ""


def _table(found: Explanation) -> str:
    rows = found.tables.get("probes", [])
    known = [column for column in COLUMNS if rows and column[0] in rows[0]]
    if not known:
        return ""
    heads: list[dict[str, Any]] = [
        {"name": "#", "title": "index in the recording, from 0", "numeric": True, "sorted": None},
        {"name": "neuron", "title": "its name", "numeric": False, "sorted": None},
        *({"name": head, "title": text, "numeric": True, "sorted": None} for _, head, text, _ in known),
    ]
    made = [
        {
            "name": row["neuron"],
            "cells": [
                {"text": row["index"], "value": row["index"], "bar": None},
                {"text": row["neuron"], "value": None, "bar": None},
                *(cell(row[key], 1.0, digits) for key, _, _, digits in known),
            ],
            "thumbnail": None,
        }
        for row in rows
    ]
    return render(
        "neurons.html.j2", columns=heads, rows=made, has_fields=False, label="Summary of the probes"
    )


def left_out(parts: ReportParts) -> Section | None:
    """Make the list of what an explanation skipped, and why."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or not found.skipped:
        return None
    notes = [
        Note("info", f"{part[:1].upper()}{part[1:]}: {reason.rstrip('.')}.") for part, reason in found.skipped
    ]
    return Section("left-out", "Left out", render("notes.html.j2", notes=notes))
