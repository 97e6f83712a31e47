"""Dynamic STRFs: filters along a clip, a movie, and how they change."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.plots import plot_dstrf_panel, plot_nonlinearity_scatter, plot_nonlinearity_table
from deepSTRF.report.embed import file_data_uri
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render
from deepSTRF.report.windows import shown_lags

__all__ = ["dynamics", "nonlinearity"]

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
        "Above, the sound; below it, each neuron's predicted (vermillion) and measured (grey) response; "
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
