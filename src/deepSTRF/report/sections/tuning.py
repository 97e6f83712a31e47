"""What a front-end hears, and a receptive field to listen to."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from deepSTRF.experiments.examples import GRADIENT, WEIGHTS
from deepSTRF.metrics.scores import metric_named
from deepSTRF.plots import (
    plot_filterbank,
    plot_modulation_transfer,
    plot_strf_confidence,
    plot_strf_grid,
    plot_waveform_field,
)
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.front_end import FRONT_END, WAVEFORM_FIELD, FrontEndParts, HeardField
from deepSTRF.report.parts import ReportParts, Section, shown_lags
from deepSTRF.report.rendering import figure_html, file_data_uri, number, render, short_name, wav_data_uri

__all__ = ["cell", "confidence", "front_end", "listening", "receptive_fields", "tuning", "waveform_field"]

# ------------------------------------------------------------------------------
# Tuning in numbers, the ripples that pass, and receptive fields to listen to.


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


# ------------------------------------------------------------------------------
# Receptive fields of the best neurons.


FIELD_COLUMNS = 6
#: Four rows fit on one screen; the table of neurons has a small picture of every field.
MOST_SHOWN = 24
#: Titles of the figure, by what it shows.
TITLES = {WEIGHTS: "STRF weights", GRADIENT: "Gradient maps around the null stimulus"}


def receptive_fields(parts: ReportParts) -> Section | None:
    """Make the grid of receptive fields, best neurons first."""
    if parts.strfs is None or not len(parts.strfs):
        return None
    ranked = parts.ranked()
    # those without a score come last, where there is room
    rest = sorted(set(range(len(parts.strfs))) - {int(neuron) for neuron in ranked})
    shown = [*(int(neuron) for neuron in ranked), *rest][:MOST_SHOWN]
    scores = parts.columns.get(parts.main_score)
    titles = [
        short_name(parts.neurons[neuron], neuron)
        if scores is None
        else f"{short_name(parts.neurons[neuron], neuron)}   {number(float(scores[neuron]), 2)}"
        for neuron in shown
    ]
    lags = shown_lags(parts.strfs[shown])
    figure, _ = plot_strf_grid(
        parts.strfs[shown][..., -lags:],
        titles,
        parts.dt_ms,
        ncols=FIELD_COLUMNS,
        frequencies_hz=parts.frequencies_hz,
        band_label=parts.band_label,
        suptitle=TITLES[parts.strf_kind],
    )
    n_bands, n_lags = parts.strfs.shape[1:]
    reach = f", reaching {n_lags * parts.dt_ms:g} ms back" if parts.dt_ms else ""
    alt = f"Receptive fields of {len(shown)} neurons, {n_bands} {parts.band_label}s by {n_lags} bins{reach}."
    caption = (
        f"The {len(shown)} neurons with the highest score, of {len(parts.strfs)}. "
        if len(shown) < len(parts.strfs)
        else ""
    ) + "Each panel has its own colour scale, symmetric about zero; the number is the neuron's score."
    if lags < n_lags:
        caption += f" Drawn are the last {lags} of {n_lags} bins; the rest holds under 1% of the energy."
    if len(parts.seeds) > 1:
        caption += " Fields are those of the seed with the best validation score."
    return Section("fields", "Receptive fields", figure_html(figure, alt, caption), _lead(parts))


def _lead(parts: ReportParts) -> str:
    if parts.latent:
        return (
            "Red: activity of that channel raises the prediction. Blue: it lowers it. Time runs to the "
            "response at the right. Channels belong to the front-end's learned output and have no order of "
            "frequency; what a neuron hears is its receptive field in the sound."
        )
    lead = (
        "Red: sound there raises the prediction. Blue: it lowers it. Time runs to the response at the right."
    )
    if parts.strf_kind == GRADIENT:
        lead += (
            " This model is not linear: these are its slopes at the null stimulus, what a little sound "
            "out of silence does. Its filters in the midst of a sound are its dynamic STRFs."
        )
    return lead


def confidence(parts: ReportParts) -> Section | None:
    """Make the receptive fields of the chosen neurons with their confidence bands."""
    found: Explanation | None = parts.extras.get(EXPLANATION)
    if found is None or "confidence" not in found.arrays:
        return None
    arrays = found.arrays["confidence"]
    body = ""
    for k, label in enumerate(found.labels):
        figure, _ = plot_strf_confidence(
            arrays["estimate"][k],
            arrays["low"][k],
            arrays["high"][k],
            parts.dt_ms,
            suptitle=f"neuron {label}",
            frequencies_hz=parts.frequencies_hz,
        )
        body += figure_html(figure, f"Receptive field of neuron {label} with its 95% confidence band.")
    for reason in found.facts.get("without_band", []):
        body += f"<p>No band for {escape(str(reason))}.</p>"
    lead = (
        f"From {found.facts.get('refits')} fits, one training clip left out at a time. Pale: weights whose "
        "95% band holds zero. The bands are pointwise, and say how much the estimate would vary with other "
        "clips, not how far the penalty has pulled it from the truth."
    )
    return Section("confidence", "How sure they are", body, lead)


# ------------------------------------------------------------------------------

#: A field that takes this share of the sound there was may have been cut by its start.
NEARLY_ALL = 0.95


def front_end(parts: ReportParts) -> Section | None:
    """Make the tuning of the front-end's channels, before and after learning."""
    shown: FrontEndParts | None = parts.extras.get(FRONT_END)
    if shown is None:
        return None
    now, before = shown.learned, shown.initial
    initial: dict[str, Any] = {} if before is None else {
        "initial_gain_db": before.gain_db,
        "initial_centre_hz": before.centre_hz,
        "initial_latency_ms": before.click_latency_ms,
    }  # fmt: skip
    figure, _ = plot_filterbank(
        now.frequencies_hz,
        now.gain_db,
        centre_hz=now.centre_hz,
        latency_ms=now.click_latency_ms,
        stated_latency_ms=now.stated_latency_ms,
        **initial,
    )
    span = _khz_span(now.centre_hz)
    alt = f"Tuning curves, centre frequencies and click latencies of {len(now.gain_db)} channels, {span}."
    lead = (
        f"What the channels of {shown.name} hear, measured from outside with tones and clicks. Gain: by how "
        "much a channel's best tone must be lowered to be answered like this tone."
    )
    return Section("front-end", "Front-end", figure_html(figure, alt, _facts(shown)), lead)


def _facts(shown: FrontEndParts) -> str:
    now, before = shown.learned, shown.initial
    facts = []
    if before is None:
        facts.append("Nothing in this front-end was learned.")
    else:
        shift = np.abs(np.log2(now.centre_hz / before.centre_hz))
        shift = shift[np.isfinite(shift)]
        if shift.size:
            facts.append(
                f"Learning moved the centre frequencies by {number(float(np.median(shift)), 2)} octaves in "
                f"the median, by {number(float(shift.max()), 2)} at most."
            )
    deaf = int(np.isnan(now.gain_db).any(axis=1).sum())
    if deaf:
        facts.append(f"{deaf} channel{'s answer' if deaf > 1 else ' answers'} no tone.")
    delays = now.click_latency_ms[np.isfinite(now.click_latency_ms)]
    if delays.size:
        low, high = number(float(delays.min()), 1), number(float(delays.max()), 1)
        ms = f"{low} ms" if low == high else f"{low} to {high} ms"
        facts.append(f"A click is answered most {ms} later than by an ideal detector.")
    if now.stated_latency_ms is not None:
        facts.append(
            "Dashed: the delay the front-end states, the mean age of what a frame holds; in a window with a "
            "long tail it comes after the peak."
        )
    return " ".join(facts)


def waveform_field(parts: ReportParts) -> Section | None:
    """Make the receptive field in the waveform, with players."""
    shown: HeardField | None = parts.extras.get(WAVEFORM_FIELD)
    if shown is None:
        return None
    field = shown.field
    figure, _ = plot_waveform_field(
        field.gradmap, field.audio_fs, duration_ms=field.duration_ms, stim=field.stim
    )
    ms = f"{field.duration_ms:.0f} ms"
    alt = f"Gradient of the prediction for neuron {shown.neuron} over the last {ms} of sound, and that sound."
    caption = (
        f"Neuron {shown.neuron}, the {shown.role} ({metric_named(parts.main_score).label} "
        f"{number(shown.score)}), before its strongest predicted response in clip {shown.clip}. 99% of the "
        f"absolute gradient lies in the shaded {ms}.{_memory(parts, field.duration_ms, field.response_bin)}"
    )
    seconds = len(field.stim) / field.audio_fs
    players = [
        ("The sound before the response", wav_data_uri(field.stim, field.audio_fs)),
        ("The receptive field", wav_data_uri(field.gradmap, field.audio_fs)),
    ]
    body = figure_html(figure, alt, caption) + render(
        "players.html.j2", players=players, seconds=f"{seconds:.1f}"
    )
    lead = (
        "The gradient of the prediction with respect to every sample: a receptive field that is a sound "
        "itself. Adding a little of it to the sound raises the prediction most."
    )
    return Section("waveform", "Receptive field in the sound", body, lead)


def _memory(parts: ReportParts, duration_ms: float, response_bin: int) -> str:
    """Name what looks further back than the weights of a linear readout do."""
    if parts.strfs is None or not parts.dt_ms or parts.strf_kind != WEIGHTS:
        return ""
    if duration_ms > NEARLY_ALL * (response_bin + 1) * parts.dt_ms:
        return " That is nearly all the sound before this response: the field may reach further back."
    window_ms = parts.strfs.shape[-1] * parts.dt_ms
    if duration_ms <= window_ms:
        return ""
    return f" The readout looks back {window_ms:g} ms; the rest is the front-end's own window and memory."


def _khz_span(centre_hz: np.ndarray) -> str:
    finite = centre_hz[np.isfinite(centre_hz)]
    if not finite.size:
        return "none of which answers a tone"
    return f"{finite.min() / 1000:.2g} to {finite.max() / 1000:.2g} kHz"
