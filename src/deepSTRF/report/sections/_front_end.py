"""What a front-end hears, and a receptive field to listen to."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.plots import plot_filterbank, plot_waveform_field
from deepSTRF.report.audio import wav_data_uri
from deepSTRF.report.front_end import FRONT_END, WAVEFORM_FIELD, FrontEndParts, HeardField
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, render
from deepSTRF.report.sections._overview import metric_of
from deepSTRF.training.receptive_fields import WEIGHTS

__all__ = ["front_end", "waveform_field"]

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
        f"Neuron {shown.neuron}, the {shown.role} ({metric_of(parts.main_score).label} "
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
