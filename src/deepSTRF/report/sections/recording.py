"""Sections on the recording: what its load kept and noted, the lags of its responses, and rasters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepSTRF.plots import plot_alignment, plot_rasters
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render, short_name

#: Rows of the table of what was skipped or noted, and rasters on one figure.
MOST_ROWS, PER_PAGE = 40, 12


def recording(parts: ReportParts) -> Section | None:
    """What the load of the recording kept, skipped and noted; lags of the responses behind the sound."""
    facts = parts.recording
    if not facts:
        return None
    skipped, noted = facts.get("skipped") or [], facts.get("notes") or []
    rows = [("left out", f"{name}: {reason}", "") for name, reason in skipped]
    rows += [(topic, text, count) for topic, text, count in noted]
    body = render(
        "recording.html.j2", rows=rows[:MOST_ROWS], n_more=max(0, len(rows) - MOST_ROWS)
    ) + _alignment(facts.get("alignment") or {})
    lead = (
        f"The load kept {facts.get('n_kept', 0)}, left out {len(skipped)}, and noted {len(noted)} "
        f"{'thing' if len(noted) == 1 else 'things'} about the recording."
    )
    return Section("recording", "Recording", body, lead)


def _alignment(found: Mapping[str, Any]) -> str:
    """Cross-correlogram of stimulus and responses, with the sentence that says what was found."""
    lags, strengths = found.get("lags_ms") or [], found.get("strengths") or []
    message = str(found.get("message", "")).rstrip(".")
    if not lags or len(lags) != len(strengths):
        return render("paragraph.html.j2", text=f"Alignment: {message}.") if message else ""
    figure, _ = plot_alignment(lags, strengths, found.get("lag_ms"))
    caption = (
        f"Relation of stimulus level and population response by lag, whitened: {message}. Responses that "
        "follow their stimulus have their peak to the right of 0; chance stays below about 4."
    )
    return figure_html(figure, f"Cross-correlogram of stimulus and responses: {message}.", caption)


def rasters(parts: ReportParts) -> Section | None:
    """Pages of rasters: repeats of neurons over the range of scores."""
    if not parts.rasters:
        return None
    pages = [parts.rasters[first : first + PER_PAGE] for first in range(0, len(parts.rasters), PER_PAGE)]
    body = "".join(_page(parts, page) for page in pages)
    lead = (
        "Every repeat of neurons evenly spaced by test score, the best first, each on the test clip where "
        "its mean response varies most. Rows that differ from all others, gaps and drifts show here."
    )
    return Section("rasters", "Rasters", body, lead)


def _page(parts: ReportParts, page: Sequence[Any]) -> str:
    names = list(parts.neurons)
    titles = []
    for one in page:
        known = one.neuron in names
        name = short_name(one.neuron, names.index(one.neuron)) if known else one.neuron
        titles.append(f"{name}  ({number(one.score, 2)})" if math.isfinite(one.score) else name)
    figure, _ = plot_rasters([one.response for one in page], parts.dt_ms, titles=titles)
    clips = sorted({one.clip for one in page})
    shown = ", ".join(clips[:6]) + (f" and {len(clips) - 6} more" if len(clips) > 6 else "")
    caption = f"Neuron and its test score above each panel. Clips: {shown}."
    return figure_html(figure, f"Rasters of {len(page)} neurons.", caption)
