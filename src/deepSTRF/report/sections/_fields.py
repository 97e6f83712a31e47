"""Receptive fields of the best neurons."""

from __future__ import annotations

from html import escape

from deepSTRF.plots import plot_strf_confidence, plot_strf_grid
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import figure_html, number, short_name
from deepSTRF.report.windows import shown_lags
from deepSTRF.training.receptive_fields import GRADIENT, WEIGHTS

__all__ = ["confidence", "receptive_fields"]

COLUMNS = 6
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
        ncols=COLUMNS,
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
