"""Sections on nonlinear responses: dynamic STRFs, how they change, probe sounds, and skipped analyses."""

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
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.parts import UNITS, ReportParts, Section, shown_lags
from deepSTRF.report.rendering import cell, figure_html, file_data_uri, number, render, sortable_table

#: Columns of nonlinearity.csv and their names in figures.
MEASURES = {
    "complexity": "complexity",
    "gain_variation": "gain variation",
    "temporal_hold_ms_blocks": "temporal hold (ms)",
    "shape_change": "shape change",
}
#: Fewest neurons for a scatter.
FEWEST_DOTS = 3
#: Complexities that differ by less are one dot over another.
ALIKE = 1e-3
MOVIE_WIDTH_PX = 740
#: Inches; two such figures stand side by side.
HALF_PAGE = (5.2, 3.1)
#: Figures of one parameter: keys of x and y in probes.npz, axes ("*" is the unit of rates), log x, title, and
#: values that the vertical axis must cover.
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
    ("tone_lowest_threshold_db", "threshold dB", "lowest level at which a tone evokes a response", 0),
    ("tone_q10", "Q10", "frequency over bandwidth, 10 dB above threshold", 1),
    ("noise_monotonicity", "monotonic", "response to the loudest noise over the strongest", 2),
    ("noise_onset_index", "onset", "1 is phasic, 0 tonic", 2),
    ("am_best_rate_hz", "AM Hz", "modulation rate with the largest modulation of the response", 0),
    ("gap_threshold_ms", "gap ms", "gap that changes half as much as the longest", 1),
    (
        "masking_recovery_ms",
        "recovery ms",
        "delay after a masker at which the response is back to half",
        0,
    ),
    ("common_ssa_index", "SSA", "above 0: a rare tone evokes a stronger response than a common one", 2),
    ("context_window_ms", "window ms", "integration window, by swapping the context of segments", 0),
)


def dynamics(parts: ReportParts) -> Section | None:
    """Movie and panels of dynamic STRFs."""
    found = parts.explanation
    if found is None or "dstrf" not in found.arrays:
        return None
    lead = (
        "A nonlinear model is a different linear filter in each time bin: the gradient of its response with "
        "respect to the sound just before."
    )
    if found.facts.get("constant"):
        body = (
            "<p>The filters of this model are the same in all time bins: it is linear in its spectrogram.</p>"
        )
        return Section("dynamics", "Dynamic STRFs", body, lead)
    lags, outside = found.facts.get("lags"), found.facts.get("outside")
    if lags and parts.dt_ms:
        lead += f" Filters are {lags * parts.dt_ms:g} ms long"
        if outside is not None and outside > 0.0005:
            lead += f"; {100 * outside:.1f}% of the squared gradient lies at longer lags"
        lead += "."
    body = _movie(found) + "".join(_panel(parts, found, k, name) for k, name in enumerate(found.names))
    return Section("dynamics", "Dynamic STRFs", body, lead + found.of_seed)


def _movie(found: Explanation) -> str:
    """The movie, which can be hidden."""
    if found.movie is None:
        return ""
    caption = (
        "Top: spectrogram. Middle: each neuron's predicted (vermilion) and measured (grey) response. "
        "Bottom: its filter in the time bin of the line."
    )
    alt = f"Movie of the dynamic STRFs of {len(found.names)} neurons along one second of sound."
    uri = file_data_uri(found.movie)
    figure = render("figure.html.j2", uri=uri, alt=alt, caption=caption, wide=True, width_px=MOVIE_WIDTH_PX)
    return f"<details open><summary>Movie</summary>{figure}</details>"


def _panel(parts: ReportParts, found: Explanation, k: int, name: str) -> str:
    """Panel of the k-th chosen neuron."""
    arrays, hertz = found.arrays["dstrf"], parts.frequencies_hz
    response, filters = arrays["response"][:, k], arrays["weights"][:, k] * arrays.get("band_std", 1.0)
    filters = filters[:, -shown_lags(filters.transpose(0, 2, 1)) :]
    figure, _ = plot_dstrf_panel(
        arrays["stim"],
        filters,
        arrays["pred"][:, k],
        response if np.isfinite(response).any() else None,
        parts.dt_ms,
        start_s=float(arrays["start_s"]),
        title=f"neuron {name} (#{found.facts['neurons'][k]})",
        frequencies_hz=hertz if hertz is not None and len(hertz) == len(arrays["stim"]) else None,
        response_label=parts.response_unit,
    )
    alt = f"Spectrogram, response, size of the filter, and the filter of neuron {name} in six time bins."
    caption = (
        f"Neuron {name}, clip {found.facts.get('clip')}. Filters at the strongest prediction in each sixth "
        "of the excerpt, on one colour scale; lines mark their time bins. Filters are "
        f"{UNITS['sd' if 'band_std' in arrays else 'raw']}."
    )
    return figure_html(figure, alt, caption)


def nonlinearity(parts: ReportParts) -> Section | None:
    """Table and scatter of the measures of nonlinearity."""
    found = parts.explanation
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
    caption = "Bars start at the values of a linear neuron: 1, 0, 0 ms and 1."
    if len(clips) > 1:
        spreads = [float(row["complexity_sd"]) for row in rows if row.get("complexity_sd")]
        caption += f" Clips: {', '.join(map(str, clips))}."
        if spreads:
            caption += (
                f" Between clips the complexity of a neuron has a standard deviation of up to "
                f"{number(max(spreads), 2)}; nonlinearity.csv has those of all measures."
            )
    if shares:
        low, high = number(min(shares), 2), number(max(shares), 2)
        caption += (
            f" The variance of the intercept, which the filters do not explain, is {low} to {high} times "
            "that of the response."
        )
    body = figure_html(figure, alt, caption)
    several = sum(bool(np.isfinite(values).all()) for values in zip(*measures.values(), strict=True))
    if several >= FEWEST_DOTS and float(np.ptp(np.nan_to_num(measures["complexity"]))) > ALIKE:
        figure, _ = plot_nonlinearity_scatter(measures, names=found.labels)
        body += figure_html(figure, "Complexity against each of the other measures, one dot per neuron.")
    lead = (
        f"Change of the filters {where}. Complexity: the effective number of filters. Gain variation: change "
        "of their size. Temporal hold: how long filters stay aligned to an event in the sound (significance "
        "by whole blocks of bins). Shape change: complexity after filters are aligned in time."
    )
    return Section("nonlinearity", "Nonlinearity", body, lead)


def probes(parts: ReportParts) -> Section | None:
    """Figures and summary of the responses to probe sounds."""
    found = parts.explanation
    if found is None or "probes" not in found.arrays:
        return None
    arrays = found.arrays["probes"]
    if not any(np.nan_to_num(arrays[name]).any() for name in ("tones_response", "noise_rate_level")):
        text = "<p>None of these neurons responds to a tone or a noise.</p>"
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
        "Pure tones by frequency and level. Red: above the response in silence, blue: below; each panel has "
        "its own scale. Line: threshold, the lowest level that evokes a response."
    )
    body = figure_html(figure, alt, caption) + _curves(found, parts.response_unit) + _table(found)
    lead = (
        "Responses of the model to the sounds of neurophysiological experiments. Levels are relative to full "
        "scale: the model has no sound pressure. Sounds unlike those it was fitted on require extrapolation."
    )
    level = found.facts.get("clip_level_db")
    if level is not None:
        lead += f" The test clips themselves have a level of {number(level, 0)} dB (median)."
    return Section("probes", "Probe sounds", body, lead)


def _curves(found: Explanation, unit: str) -> str:
    """Figures of responses as functions of one parameter, two in a row."""
    arrays, figures, evoked = found.arrays["probes"], [], "evoked rate"
    if unit.startswith("response ("):  # a trace has no rate
        evoked, unit = "evoked response", unit[len("response (") : -1]
    for x, y, xlabel, ylabel, log_x, title, include in CURVES:
        if y in arrays and np.isfinite(arrays[y]).any():
            ylabel = ylabel.replace("evoked rate", evoked)
            ylabel = ylabel.replace("*", unit)
            options: dict[str, Any] = {"log_x": log_x, "include": include, "title": title}
            figure, _ = plot_probe_curves(
                arrays[x], arrays[y], xlabel, ylabel, found.labels, **options, figsize=HALF_PAGE
            )
            figures.append(figure_html(figure, f"{title}: {ylabel} over {xlabel}.", wide=False))
    return f'<div class="columns">{"".join(figures)}</div>' if figures else ""


def _table(found: Explanation) -> str:
    """Table of the summaries of the probes."""
    rows = found.tables.get("probes", [])
    known = [column for column in COLUMNS if rows and column[0] in rows[0]]
    if not known:
        return ""
    columns = [(head, meaning) for _, head, meaning, _ in known]
    made = []
    for row in rows:
        cells = [cell(float(row[key] or "nan"), digits) for key, _, _, digits in known]
        made.append((row["index"], row["neuron"], cells))
    return sortable_table("Summary of the probes", columns, made, meanings=True)


def left_out(parts: ReportParts) -> Section | None:
    """List of the analyses that an explanation skipped, with the reasons."""
    found = parts.explanation
    if found is None or not found.skipped:
        return None
    notes = [
        ("info", f"{part[:1].upper()}{part[1:]}: {reason.rstrip('.')}.") for part, reason in found.skipped
    ]
    return Section("left-out", "Skipped analyses", render("notes.html.j2", notes=notes))
