"""What probe sounds found, and what was left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.plots import (
    plot_dstrf_panel,
    plot_nonlinearity_scatter,
    plot_nonlinearity_table,
    plot_probe_curves,
    plot_response_areas,
)
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.parts import Note, ReportParts, Section, shown_lags
from deepSTRF.report.rendering import figure_html, file_data_uri, number, render
from deepSTRF.report.sections.tuning import cell

__all__ = ["dynamics", "left_out", "nonlinearity", "probes"]

# ------------------------------------------------------------------------------
# Dynamic STRFs: filters along a clip, a movie, and how they change.


#: Columns of nonlinearity.csv as they are called in figures.
MEASURES = {
    "complexity": "complexity",
    "gain_variation": "gain variation",
    "temporal_hold_ms_blocks": "temporal hold (ms)",
    "shape_change": "shape change",
}
#: Dots say something about a population from here on.
FEWEST_DOTS = 3
#: Complexities that differ by less are one dot over another.
ALIKE = 1e-3
MOVIE_WIDTH_PX = 740


def dynamics(parts: ReportParts) -> Section | None:
    """Make the movie and the panels of dynamic STRFs."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or "dstrf" not in found.arrays:
        return None
    arrays = found.arrays["dstrf"]
    lead = (
        "A nonlinear model is another linear filter at each moment of a sound: the gradient of its response "
        "by the sound just before."
    )
    if found.facts.get("constant"):
        body = (
            "<p>The filters of this model are the same at every moment: it is linear in its spectrogram.</p>"
        )
        return Section("dynamics", "Dynamic STRFs", body, lead)
    body = _movie(found) + "".join(
        _panel(parts, found, arrays, k, name) for k, name in enumerate(found.names)
    )
    return Section("dynamics", "Dynamic STRFs", body, lead + _window(parts, found) + found.of_seed)


def _window(parts: ReportParts, found: Explanation) -> str:
    lags, outside = found.facts.get("lags"), found.facts.get("outside")
    if not lags or not parts.dt_ms:
        return ""
    text = f" Filters are {lags * parts.dt_ms:g} ms long"
    if outside is not None and outside > 0.0005:
        text += f"; {100 * outside:.1f}% of the squared gradient lies further back"
    return text + "."


def _movie(found: Explanation) -> str:
    if found.movie is None:
        return ""
    caption = (
        "Above, the sound; below it, each neuron's predicted (vermilion) and measured (grey) response; "
        "below those, the filter it is at that moment."
    )
    alt = f"Movie of the dynamic STRFs of {len(found.names)} neurons along one second of sound."
    uri = file_data_uri(found.movie)
    figure = render("figure.html.j2", uri=uri, alt=alt, caption=caption, wide=True, width_px=MOVIE_WIDTH_PX)
    # what moves can be folded away
    return f"<details open><summary>Movie</summary>{figure}</details>"


def _panel(parts: ReportParts, found: Explanation, arrays: Any, k: int, name: str) -> str:
    response, filters = arrays["response"][:, k], arrays["weights"][:, k]
    filters = filters[:, -shown_lags(filters.transpose(0, 2, 1)) :]
    figure, _ = plot_dstrf_panel(
        arrays["stim"],
        filters,
        arrays["pred"][:, k],
        response if np.isfinite(response).any() else None,
        parts.dt_ms,
        start_s=float(arrays["start_s"]),
        title=f"neuron {name} (#{found.facts['neurons'][k]})",
        frequencies_hz=_bands(parts, arrays["stim"]),
        response_label=parts.response_unit,
    )
    alt = f"Spectrogram, response, size of the filter, and the filter of neuron {name} at six moments."
    caption = (
        f"Neuron {name}, clip {found.facts.get('clip')}. Filters at the strongest prediction in each sixth "
        "of the stretch, on one colour scale; lines mark the moments."
    )
    return figure_html(figure, alt, caption)


def _bands(parts: ReportParts, stim: Any) -> Any:
    hertz = parts.frequencies_hz
    return hertz if hertz is not None and len(hertz) == len(stim) else None


def nonlinearity(parts: ReportParts) -> Section | None:
    """Make the table and the scatter of how much filters change, and how."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or "nonlinearity" not in found.tables or found.facts.get("constant"):
        return None
    rows = found.tables["nonlinearity"]
    clips = found.facts.get("statistics_clips") or [found.facts.get("clip")]
    where = f"along {len(clips)} test clips (means over them)" if len(clips) > 1 else "along one test clip"
    measures = {
        title: [float(row[key]) if row.get(key) else float("nan") for row in rows]
        for key, title in MEASURES.items()
    }
    figure, _ = plot_nonlinearity_table(measures, found.labels)
    alt = f"Complexity, gain variation, temporal hold and shape change of {len(rows)} neurons."
    shares = [float(row["intercept_share"]) for row in rows if row.get("intercept_share")]
    caption = "Bars start at what a linear neuron has: 1, 0, 0 ms and 1."
    if len(clips) > 1:
        spreads = [float(row["complexity_sd"]) for row in rows if row.get("complexity_sd")]
        caption += f" Clips: {', '.join(map(str, clips))}."
        if spreads:
            caption += (
                f" Between them the complexity of a neuron has a standard deviation of up to "
                f"{number(max(spreads), 2)}; nonlinearity.csv has those of all measures."
            )
    if shares:
        low, high = number(min(shares), 2), number(max(shares), 2)
        caption += (
            f" What the filters leave unsaid, the intercept, varies {low} to {high} times as much as the "
            "response (variances)."
        )
    body = figure_html(figure, alt, caption)
    several = sum(bool(np.isfinite(values).all()) for values in zip(*measures.values(), strict=True))
    if several >= FEWEST_DOTS and float(np.ptp(np.nan_to_num(measures["complexity"]))) > ALIKE:
        figure, _ = plot_nonlinearity_scatter(measures, names=found.labels)
        body += figure_html(figure, "Complexity against each of the other measures, a dot per neuron.")
    lead = (
        f"How much filters change {where}, and how. Complexity: how many filters it takes. Gain "
        "variation: how they grow and shrink. Temporal hold: for how long they stay on an event that recedes "
        "(tested against whole stretches of bins). Shape change: complexity once filters are aligned in time."
    )
    return Section("nonlinearity", "How nonlinear", body, lead)


# ------------------------------------------------------------------------------

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
