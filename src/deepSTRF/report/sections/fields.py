"""Sections on receptive fields: maps, confidence bands, tuning, sounds, and front-ends."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from deepSTRF.experiments.examples import GRADIENT, WEIGHTS
from deepSTRF.metrics.scores import metric_named
from deepSTRF.plots import (
    plot_feature_fields,
    plot_filterbank,
    plot_modulation_transfer,
    plot_strf_confidence,
    plot_strf_grid,
    plot_waveform_field,
)
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.parts import UNITS, FrontEndParts, ReportParts, Section, shown_lags
from deepSTRF.report.rendering import (
    cell,
    figure_html,
    file_data_uri,
    number,
    render,
    short_name,
    sortable_table,
    wav_data_uri,
)

FIELD_COLUMNS, FEATURE_COLUMNS = 6, 4
#: Four rows fit on one screen; the table of neurons has a small image of every field.
MOST_SHOWN = 24
#: Titles of the figure by kind of receptive field.
TITLES = {WEIGHTS: "STRF weights", GRADIENT: "Gradient maps around the null stimulus"}
#: Columns of the table of tuning: key in tuning.csv, heading, meaning, factor, digits.
COLUMNS: tuple[tuple[str, str, str, float, int], ...] = (
    ("best_frequency_hz", "best kHz", "frequency of the largest positive weight", 1e-3, 2),
    ("bandwidth_octaves", "width oct", "width at half height; ≥ where it reaches an edge", 1.0, 2),
    ("latency_ms", "latency ms", "lag of the largest positive weight", 1.0, 1),
    ("duration_ms", "length ms", "duration at half height; ≥ where it reaches an edge", 1.0, 1),
    ("rf_duration_ms", "99% ms", "lag within which 99% of the absolute weight lies", 1.0, 0),
    ("separability", "separable", "1 for a product of a frequency and a time profile", 1.0, 2),
    ("ei_balance", "E/I", "excitation minus inhibition, over their sum", 1.0, 2),
    ("best_rate_hz", "rate Hz", "temporal modulation that passes best", 1.0, 1),
    ("best_scale_cyc_oct", "scale", "spectral modulation that passes best, cycles per octave", 1.0, 2),
    ("direction_index", "upward", "above 0: ripples that move up pass better", 1.0, 2),
)
#: A width that runs into the edge of the map is a lower bound.
BOUNDS = {"bandwidth_octaves": "bandwidth_known", "duration_ms": "duration_known"}
#: Largest modulation rate drawn (Hz), above those that cortical neurons follow.
HIGHEST_RATE_HZ = 60.0
#: A field that covers this share of the sound before the response may be cut by the start of the clip.
NEARLY_ALL = 0.95


def receptive_fields(parts: ReportParts) -> Section | None:
    """Grid of receptive fields, best neurons first."""
    if parts.strfs is None or not len(parts.strfs):
        return None
    ranked = parts.ranked()
    # those without a score come last
    rest = sorted(set(range(len(parts.strfs))) - {int(neuron) for neuron in ranked})
    shown = [*(int(neuron) for neuron in ranked), *rest][:MOST_SHOWN]
    scores = parts.columns.get(parts.main_score)
    titles = [
        short_name(parts.neurons[neuron], neuron)
        + ("" if scores is None else f"   {number(float(scores[neuron]), 2)}")
        for neuron in shown
    ]
    lags = shown_lags(parts.strfs[shown])
    maps, heading = parts.strfs[shown][..., -lags:], TITLES[parts.strf_kind]
    figure: Any
    if parts.features:
        figure, _ = plot_feature_fields(
            maps,
            parts.features,
            titles,
            parts.dt_ms,
            ncols=FEATURE_COLUMNS,
            frequencies_hz=parts.feature_frequencies,
            suptitle=f"{heading}\n{UNITS[parts.strf_unit]}",
            unit=parts.strf_unit,
            first_lag=parts.first_lag,
        )
    else:
        figure, _ = plot_strf_grid(
            maps,
            titles,
            parts.dt_ms,
            ncols=FIELD_COLUMNS,
            frequencies_hz=parts.frequencies_hz,
            band_label=parts.band_label,
            suptitle=f"{heading}\n{UNITS[parts.strf_unit]}",  # two lines fit over one panel
            first_lag=parts.first_lag,
        )
    n_bands, n_lags = parts.strfs.shape[1:]
    size = f"{n_bands} {parts.band_label}s by {n_lags} bins"
    if parts.features:
        size = f"{', '.join(f'{name} ({rows})' for name, rows in parts.features.items())} by {n_lags} bins"
    size += f", {n_lags * parts.dt_ms:g} ms long" if parts.dt_ms else ""
    alt = f"Receptive fields of {len(shown)} neurons, {size}."
    caption = ""
    if len(shown) < len(parts.strfs):
        caption = f"The {len(shown)} neurons with the highest score, of {len(parts.strfs)}. "
    caption += "Each panel has its own colour scale, symmetric about zero; the number is the neuron's score."
    if lags < n_lags:
        caption += f" The last {lags} of {n_lags} bins are drawn; the others hold less than 1% of the energy."
    if parts.first_lag < 0:
        after = f"{-parts.first_lag * parts.dt_ms:g} ms" if parts.dt_ms else f"{-parts.first_lag} bins"
        caption += f" The model is not causal: it looks {after} ahead, right of the dashed line."
    caption += _unit(parts.strf_unit, parts.left_out)
    if len(parts.seeds) > 1:
        caption += " Fields are those of the seed with the best validation score."
    return Section("fields", "Receptive fields", figure_html(figure, alt, caption), _lead(parts))


def _unit(unit: str, left_out: str) -> str:
    """A sentence on the unit of receptive fields, and on bands without one."""
    if unit == "raw":
        return " Weights are per unit of the spectrogram: those of bands that vary little are large."
    sentence = " Weights are per standard deviation of each band over the training sounds."
    return sentence + (f" Left out, as they never vary there: {left_out}." if left_out else "")


def _lead(parts: ReportParts) -> str:
    """How to read the figure."""
    if parts.latent:
        return (
            "Red: activity of that channel raises the prediction. Blue: it lowers it. Time runs to the "
            "response at the right. Channels belong to the front-end's learned output and have no order of "
            "frequency; the receptive field in the waveform shows the effect of the sound itself."
        )
    lead = (
        "Red: energy there raises the prediction. Blue: it lowers it. Time runs to the response at the right."
    )
    if parts.first_lag < 0:
        lead = lead.replace("at the right.", "at the dashed line, and on to what follows it.")
    if parts.features:
        lead += " Each feature of the stimulus has a panel; one of a single row is a curve, above 0 where it "
        lead += "raises the prediction."
    if parts.strf_kind == GRADIENT:
        lead += (
            " This model is not linear: these are its slopes at the null stimulus, the effect of a small "
            f"change from it. The null stimulus is {parts.null_stimulus}. The filters during a sound are the "
            "dynamic STRFs."
        )
    return lead


def confidence(parts: ReportParts) -> Section | None:
    """Receptive fields of the chosen neurons with their confidence bands."""
    found = parts.explanation
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
            unit=found.unit,
            first_lag=parts.first_lag,
        )
        body += figure_html(figure, f"Receptive field of neuron {label} with its 95% confidence band.")
    for reason in found.facts.get("without_band", []):
        body += f"<p>No band for {escape(str(reason))}.</p>"
    lead = (
        f"From {found.facts.get('refits')} fits, one training clip left out at a time. Pale: weights whose "
        "95% band holds zero. The bands are pointwise; they measure how much the estimate varies with the "
        "clips, not its bias by the penalty."
    )
    if len(parts.features) > 1:
        owners = [name for name, rows in parts.features.items() for _ in range(rows)]
        places = (
            f"{name} from {owners.index(name)}" if rows > 1 else f"{name} {owners.index(name)}"
            for name, rows in parts.features.items()
        )
        lead += f" Bands are the rows of the features one below the other: {escape(', '.join(places))}."
    return Section("confidence", "Confidence bands", body, lead)


def tuning(parts: ReportParts) -> Section | None:
    """Table of the tuning of all neurons, and the modulation transfer of those chosen."""
    found = parts.explanation
    if found is None or "tuning" not in found.tables:
        return None
    rows = {int(row["index"]): row for row in found.tables["tuning"]}
    ranked = [int(neuron) for neuron in parts.ranked()]
    order = [neuron for neuron in ranked if neuron in rows] + sorted(set(rows) - set(ranked))
    body = sortable_table(
        "Tuning of every neuron",
        [(head, meaning) for _, head, meaning, _, _ in COLUMNS],
        [(neuron, rows[neuron]["neuron"], _tuning_cells(rows[neuron])) for neuron in order],
        meanings=True,
    )
    fields = "receptive fields" if found.of_seed else "the receptive fields above"
    lead = (
        f"Computed from {fields}, best neurons first; a dash where a neuron has no such value. A field that "
        "is noise has values, too: look at the field first. tuning.csv in the folder explain has more "
        f"columns.{found.of_seed}{_unit(found.unit, str(found.facts.get('left_out', '')))}"
    )
    return Section("tuning", "Tuning", body + _modulation(found), lead)


def _tuning_cells(row: dict[str, str]) -> list[dict[str, Any]]:
    """Cells of one neuron; a width that runs into the edge of the map is a lower bound."""
    cells = []
    for key, _, _, factor, digits in COLUMNS:
        bound = "≥ " if row.get(BOUNDS.get(key, ""), "True") == "False" else ""
        cells.append(cell(float(row.get(key) or "nan") * factor, digits, bound))
    return cells


def _modulation(found: Explanation) -> str:
    """Figure of the modulation transfer functions of the chosen neurons."""
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
        "Modulation transfer functions: the magnitude at which the receptive field passes moving ripples. "
        "Ripples of positive rate move up in frequency. Each panel has its own scale, from 0."
    )
    return figure_html(figure, alt, caption)


def listening(parts: ReportParts) -> Section | None:
    """Players of the receptive fields as sounds."""
    found = parts.explanation
    if found is None or not found.sounds:
        return None
    sounds = [(label, file_data_uri(path)) for label, path in found.sounds]
    if found.facts.get("sound_kind") == "field":
        lead = (
            "The gradient of each neuron's strongest predicted response with respect to the samples before "
            "it: of all small changes of the sound, adding this one raises the response most."
        )
    else:
        lead = (
            "The excitatory part of each receptive field, as noise with its envelopes: a spectrogram has no "
            "phases, so this is one of many sounds with this pattern."
        )
    body = render("sounds.html.j2", sounds=sounds, suffix="")
    return Section("listening", "Receptive fields as sounds", body, lead)


def waveform_field(parts: ReportParts) -> Section | None:
    """Receptive field in the waveform, with players."""
    if parts.waveform_field is None:
        return None
    example, field = parts.waveform_field
    figure, _ = plot_waveform_field(
        field.gradmap, field.audio_fs, duration_ms=field.duration_ms, stim=field.stim
    )
    ms = f"{field.duration_ms:.0f} ms"
    neuron = example.neuron
    alt = f"Gradient of the prediction for neuron {neuron} over the last {ms} of sound, and that sound."
    caption = (
        f"Neuron {neuron}, the {example.role} ({metric_named(parts.main_score).label} "
        f"{number(example.score)}), before its strongest predicted response in clip {example.clip}. 99% of "
        f"the absolute gradient lies in the shaded {ms}."
        f"{_memory(parts, field.duration_ms, field.response_bin)}"
    )
    sounds = [
        ("The sound before the response", wav_data_uri(field.stim, field.audio_fs)),
        ("The receptive field", wav_data_uri(field.gradmap, field.audio_fs)),
    ]
    seconds = f", {len(field.stim) / field.audio_fs:.1f} s"
    body = figure_html(figure, alt, caption) + render("sounds.html.j2", sounds=sounds, suffix=seconds)
    lead = (
        "The gradient of the prediction with respect to every sample, a receptive field in the sound itself: "
        "of all small changes of the sound, adding this one raises the prediction most."
    )
    return Section("waveform", "Receptive field in the waveform", body, lead)


def _memory(parts: ReportParts, duration_ms: float, response_bin: int) -> str:
    """A sentence on the part of the field that is longer than the window of a linear readout."""
    if parts.strfs is None or not parts.dt_ms or parts.strf_kind != WEIGHTS:
        return ""
    if duration_ms > NEARLY_ALL * (response_bin + 1) * parts.dt_ms:
        return " That is nearly all of the sound before this response: the field may be longer."
    window_ms = parts.strfs.shape[-1] * parts.dt_ms
    if duration_ms <= window_ms:
        return ""
    return f" The readout covers {window_ms:g} ms; the rest is the front-end's own window and memory."


def front_end(parts: ReportParts) -> Section | None:
    """Tuning of the front-end's channels, before and after learning."""
    shown = parts.front_end
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
    finite = now.centre_hz[np.isfinite(now.centre_hz)]
    span = "none of which responds to a tone"
    if finite.size:
        span = f"{finite.min() / 1000:.2g} to {finite.max() / 1000:.2g} kHz"
    alt = f"Tuning curves, centre frequencies and click latencies of {len(now.gain_db)} channels, {span}."
    lead = (
        f"Channels of {shown.name}, measured with tones and clicks. Gain: by how much a channel's best tone "
        "must be attenuated to evoke the same output as this tone."
    )
    return Section("front-end", "Front-end", figure_html(figure, alt, _facts(shown)), lead)


def _facts(shown: FrontEndParts) -> str:
    """Caption: effect of learning, channels without response, and delays."""
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
    silent = int(np.isnan(now.gain_db).any(axis=1).sum())
    if silent:
        facts.append(f"{silent} channel{'s respond' if silent > 1 else ' responds'} to no tone.")
    delays = now.click_latency_ms[np.isfinite(now.click_latency_ms)]
    if delays.size:
        low, high = number(float(delays.min()), 1), number(float(delays.max()), 1)
        ms = f"{low} ms" if low == high else f"{low} to {high} ms"
        facts.append(f"The response to a click peaks {ms} later than that of an ideal detector.")
    if now.stated_latency_ms is not None:
        facts.append(
            "Dashed: the delay that the front-end states, the mean age of the sound in a frame; for a window "
            "with a long tail it is larger than that of the peak."
        )
    return " ".join(facts)
