"""Tuning in numbers, the ripples that pass, and receptive fields to listen to."""

from __future__ import annotations

import math
from typing import Any

from deepSTRF.plots import plot_modulation_transfer
from deepSTRF.report.embed import file_data_uri
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render

__all__ = ["cell", "listening", "tuning"]

#: Columns of the table: key in tuning.csv, heading, what it means, factor, digits.
COLUMNS: tuple[tuple[str, str, str, float, int], ...] = (
    ("best_frequency_hz", "best kHz", "frequency of the largest positive weight", 1e-3, 2),
    ("bandwidth_octaves", "width oct", "width at half height; with ≥ it reaches an edge", 1.0, 2),
    ("latency_ms", "latency ms", "lag of the largest positive weight", 1.0, 1),
    ("duration_ms", "length ms", "duration at half height; with ≥ it reaches an edge", 1.0, 1),
    ("rf_duration_ms", "99% ms", "how far back 99% of the absolute weight lies", 1.0, 0),
    ("separability", "separable", "1 is frequency profile times time profile", 1.0, 2),
    ("ei_balance", "E/I", "excitation minus inhibition, over their sum", 1.0, 2),
    ("best_rate_hz", "rate Hz", "temporal modulation that passes best", 1.0, 1),
    ("best_scale_cyc_oct", "scale", "spectral modulation that passes best, cycles per octave", 1.0, 2),
    ("direction_index", "upward", "above 0: ripples that move up pass better", 1.0, 2),
)
#: A width that runs into the edge of the map is a lower bound.
BOUNDS = {"bandwidth_octaves": "bandwidth_known", "duration_ms": "duration_known"}
#: Modulation rates beyond this (Hz) pass no cortical neuron; the axis ends there.
HIGHEST_RATE_HZ = 60.0


def tuning(parts: ReportParts) -> Section | None:
    """Make the table of tuning of all neurons, and the modulation transfer of those chosen."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or "tuning" not in found.tables:
        return None
    rows = {int(row["index"]): row for row in found.tables["tuning"]}
    ranked = [int(neuron) for neuron in parts.ranked()]
    order = [neuron for neuron in ranked if neuron in rows] + sorted(set(rows) - set(ranked))
    heads: list[dict[str, Any]] = [
        {"name": "#", "title": "index in the recording, from 0", "numeric": True, "sorted": None},
        {"name": "neuron", "title": "its name", "numeric": False, "sorted": None},
        *({"name": head, "title": text, "numeric": True, "sorted": None} for _, head, text, _, _ in COLUMNS),
    ]
    body = render(
        "neurons.html.j2",
        columns=heads,
        rows=[_row(rows[neuron]) for neuron in order],
        has_fields=False,
        label="Tuning of every neuron",
    ) + render("meanings.html.j2", columns=heads[2:])
    lead = (
        "Read from the receptive fields above, best neurons first; a dash is what a neuron does not have. A "
        "field that is noise has numbers, too: look at it first. tuning.csv in the folder explain has more "
        "columns."
    )
    if found.of_seed:
        lead = lead.replace("the receptive fields above", "receptive fields") + found.of_seed
    return Section("tuning", "Tuning", body + _modulation(found), lead)


def _row(row: dict[str, str]) -> dict[str, Any]:
    cells: list[dict[str, Any]] = [
        {"text": row["index"], "value": row["index"], "bar": None},
        {"text": row["neuron"], "value": None, "bar": None},
    ]
    for key, _, _, factor, digits in COLUMNS:
        bound = "≥ " if row.get(BOUNDS.get(key, ""), "True") == "False" else ""
        cells.append(cell(row.get(key, ""), factor, digits, bound))
    return {"name": row["neuron"], "cells": cells, "thumbnail": None}


def cell(text: str, factor: float = 1.0, digits: int = 2, before: str = "") -> dict[str, Any]:
    """Return one cell of a sortable table from the text of a CSV file.

    Parameters
    ----------
    text : str
        A number, or nothing.
    factor : float
        Its unit in the table.
    digits : int
        Digits after the point.
    before : str
        What stands before it, such as "≥ ".

    Returns
    -------
    dict
        Text, value to sort by, and no bar.

    Examples
    --------
    >>> cell("1500", 1e-3, 1)["text"], cell("")["text"]
    ('1.5', '–')
    """
    value = float(text) * factor if text else math.nan
    finite = math.isfinite(value)
    shown = number(value, digits)
    return {
        "text": before + shown if finite else shown,
        "value": f"{value:.6g}" if finite else "",
        "bar": None,
    }


def _modulation(found: Explanation) -> str:
    arrays = found.arrays.get("modulation")
    if arrays is None:
        return ""
    figure, _ = plot_modulation_transfer(
        arrays["power"],
        arrays["rates_hz"],
        arrays["scales_cyc_oct"],
        found.labels,
        max_rate_hz=HIGHEST_RATE_HZ,
    )
    alt = f"Modulation transfer functions of {len(found.names)} neurons, by rate and scale."
    caption = (
        "Modulation transfer functions: which moving ripples the receptive field lets through. Positive "
        "rates move up in frequency. Each panel has its own scale, from 0."
    )
    return figure_html(figure, alt, caption)


def listening(parts: ReportParts) -> Section | None:
    """Make the players of receptive fields as sounds."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or not found.sounds:
        return None
    players = [(label, file_data_uri(path)) for label, path in found.sounds]
    if found.facts.get("sound_kind") == "field":
        lead = (
            "The gradient of each neuron's strongest predicted response by the samples before it. Added to "
            "the sound, a little of it raises the response most."
        )
    else:
        lead = (
            "The excitatory part of each receptive field, as noise under its envelopes: a spectrogram has no "
            "phases, so this is one of many sounds with this pattern."
        )
    return Section("listening", "What they listen to", render("sounds.html.j2", sounds=players), lead)
