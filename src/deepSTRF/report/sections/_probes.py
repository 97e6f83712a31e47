"""What probe sounds found, and what was left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.plots import plot_probe_curves, plot_response_areas
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.parts import Note, ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render
from deepSTRF.report.sections._tuning import cell

__all__ = ["left_out", "probes"]

#: Inches; two such figures stand side by side.
HALF_PAGE = (5.2, 3.1)
#: Figures of one parameter: keys of x and y in probes.npz, axes ("*" is the unit of rates), log x, title, and
#: what the vertical axis must hold.
CURVES: tuple[tuple[str, str, str, str, bool, str, tuple[float, ...]], ...] = (
    ("noise_levels_db", "noise_rate_level", "level (dB re 1)", "evoked rate (*)", False, "noise", (0,)),
    ("clicks_levels_db", "clicks_latency_ms", "click peak (dB re 1)", "latency (ms)", False, "clicks", (0,)),
    ("am_rates_hz", "am_modulation", "modulation rate (Hz)", "modulation (*)", True, "AM noise", (0,)),
    ("gaps_gaps_ms", "gaps_change", "gap (ms)", "largest change (*)", True, "gaps in noise", (0,)),
    ("sweeps_speeds_oct_s", "sweeps_direction_index", "speed (octaves/s)", "direction index, 1 is up", True,
     "frequency sweeps", (-1, 1)),
    ("masking_delays_ms", "masking_recovery", "delay after the masker (ms)", "share of the response", True,
     "forward masking", (0, 1)),
)  # fmt: skip
#: Columns of the table: key in probes.csv, heading, meaning, digits.
COLUMNS = (
    ("tone_best_khz", "best kHz", "tone with the strongest response", 2),
    ("tone_lowest_threshold_db", "threshold dB", "level at which the most sensitive tone is answered", 0),
    ("tone_q10", "Q10", "frequency over bandwidth, 10 dB above threshold", 1),
    ("noise_monotonicity", "monotonic", "response to the loudest noise over the strongest", 2),
    ("noise_onset_index", "onset", "1 is phasic, 0 tonic", 2),
    ("am_best_rate_hz", "AM Hz", "modulation that is followed most", 0),
    ("gap_threshold_ms", "gap ms", "gap that changes half as much as the longest", 1),
    ("masking_recovery_ms", "recovery ms", "delay after a masker at which half the response is back", 0),
    ("common_ssa_index", "SSA", "above 0: a rare tone is answered more strongly than a common one", 2),
    ("context_window_ms", "window ms", "integration window, by swapping the context of segments", 0),
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
    body = figure_html(figure, alt, caption) + _curves(found, arrays, parts.response_unit) + _table(found)
    lead = (
        "The model as an animal in a hearing laboratory. Levels are relative to full scale: the model knows "
        "no sound pressure. Sounds far from those it was fitted on ask it to extrapolate."
    )
    level = found.facts.get("clip_level_db")
    if level is not None:
        lead += f" The test clips themselves have a level of {number(level, 0)} dB (median)."
    return Section("probes", "Probe sounds", body, lead)


def _curves(found: Explanation, arrays: Any, unit: str) -> str:
    figures = []
    for x, y, xlabel, ylabel, log_x, title, include in CURVES:
        if y in arrays and np.isfinite(arrays[y]).any():
            ylabel = ylabel.replace("*", unit)
            options: dict[str, Any] = {"log_x": log_x, "include": include, "title": title}
            figure, _ = plot_probe_curves(
                arrays[x], arrays[y], xlabel, ylabel, found.labels, **options, figsize=HALF_PAGE
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
    ) + render("meanings.html.j2", columns=heads[2:])


def left_out(parts: ReportParts) -> Section | None:
    """Make the list of what an explanation skipped, and why."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or not found.skipped:
        return None
    notes = [
        Note("info", f"{part[:1].upper()}{part[1:]}: {reason.rstrip('.')}.") for part, reason in found.skipped
    ]
    return Section("left-out", "Left out", render("notes.html.j2", notes=notes))
