"""Receptive fields of a fitted model: maps, tuning, sounds, and confidence bands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from deepSTRF._files import write_atomically
from deepSTRF.experiments.build import is_closed_form, solve
from deepSTRF.interpret import (
    NeuronTable,
    modulation_transfer,
    sonify_strf,
    strf_confidence,
    strf_tuning,
    waveform_fields,
    write_wav,
)
from deepSTRF.interpret.strf.confidence import StrfConfidence
from deepSTRF.report.explain.target import Skipped, Target

#: Audio rate of sonified STRFs, above twice the largest frequency of most recordings.
SONIFIED_FS = 48000.0


def explain_fields(target: Target) -> dict[str, Any]:
    """Write the receptive fields of all neurons (``fields.npz``)."""
    fields = target.needs_fields()
    arrays: dict[str, Any] = {"fields": fields.maps.astype(np.float32), "dt_ms": target.dt_ms}
    if target.frequencies_hz is not None:
        arrays["frequencies_hz"] = target.frequencies_hz
    target.write("fields", arrays)
    return {"field_kind": fields.kind}


def explain_tuning(target: Target) -> dict[str, Any]:
    """Write the tuning of all neurons (``tuning.csv``), and ``modulation.npz`` of those chosen."""
    maps, hertz = target.needs_fields().maps, target.needs_frequencies()
    count = target.begin("tuning", len(maps))
    rows = []
    for neuron, field in enumerate(maps):
        rows.append(strf_tuning(field, hertz, target.dt_ms, neurons=[target.all_names[neuron]]).rows()[0])
        count(1)
    columns = {name: np.asarray([row[name] for row in rows]) for name in rows[0] if name != "neuron"}
    table = NeuronTable(tuple(target.all_names), {"index": np.arange(len(maps)), **columns})
    write_atomically(target.folder / "tuning.csv", table.to_csv().encode())
    transfer = modulation_transfer(maps[target.neurons], hertz, target.dt_ms)
    target.write(
        "modulation",
        {
            "power": transfer.power.astype(np.float32),
            "rates_hz": transfer.rates_hz,
            "scales_cyc_oct": transfer.scales_cyc_oct,
        },
    )
    return {}


def explain_sounds(target: Target) -> dict[str, Any]:
    """Write receptive fields as sounds: waveform gradients, or the excitatory parts of STRFs as noise."""
    count = target.begin("sounds", len(target.neurons))
    kind = "field" if target.takes_waveform else "strf"
    sounds: list[tuple[str, str]] = []
    if kind == "field":
        stim = torch.as_tensor(target.needs_excerpt().stim)
    else:
        maps, hertz = target.needs_fields().maps, target.needs_frequencies()
        fs = SONIFIED_FS if 2.0 * hertz[-1] < SONIFIED_FS else float(2 * round(1.2 * hertz[-1]))
    for neuron, name in zip(target.neurons, target.labels, strict=True):
        file = f"{kind}-{neuron}.wav"
        if kind == "field":
            (field,) = waveform_fields(target.model, stim, [neuron])
            if field.duration_ms > 0:  # a constant response has no field
                field.write_wav(target.folder / file)
                sounds.append((file, f"{name}: gradient by the samples, {field.duration_ms:.0f} ms"))
        elif (maps[neuron] > 0).any():
            write_wav(target.folder / file, sonify_strf(maps[neuron], hertz, target.dt_ms, fs), fs)
            sounds.append((file, f"{name}: excitatory part, as noise"))
        count(1)
    return {"sounds": sounds, "sound_kind": kind}


def explain_confidence(target: Target) -> dict[str, Any]:
    """Write confidence bands from refits with one training clip left out at a time (``confidence.npz``).

    Each neuron keeps the penalty selected on the validation clips: selecting it again in each refit would
    count as uncertainty of the neuron. Only models that are fitted in closed form have bands.
    """
    config = target.config
    if config is None or not is_closed_form(config.model):
        return {}
    target.needs_excerpt()
    train, validation, _ = target.views
    n_fits = len(train) + 1
    count = target.begin("confidence", len(target.neurons) * (n_fits + 1))
    bands: list[StrfConfidence | None] = []
    reasons = []
    for neuron in target.neurons:
        alone, check = train.select(neurons=[neuron]), validation.select(neurons=[neuron])
        try:
            chosen: Any = solve(config, alone, check)
        except ValueError as error:  # too few clips of this neuron: the others have their bands
            reasons.append(f"{target.all_names[neuron]}: {error}")
            bands.append(None)
            count(n_fits + 1)
            continue
        count(1)
        options = {**config.model_options, "lambdas": float(chosen.lambdas[0])}
        fixed = replace(config, model_options=options)

        def refit(clips: Any, fixed: Any = fixed) -> Any:
            count(1)
            return solve(fixed, clips, None)

        if len(alone) < 2:
            reasons.append(f"{target.all_names[neuron]}: it has one training clip")
            bands.append(None)
            count(n_fits)
            continue
        bands.append(strf_confidence(alone, refit))
    if not any(bands):
        raise Skipped("; ".join(reasons))
    known = {"estimate": target.needs_fields().maps[list(target.neurons)].astype(np.float32)}
    known |= {name: np.full_like(known["estimate"], np.nan) for name in ("low", "high")}
    for row, band in enumerate(bands):
        if band is not None:
            for name, values in known.items():
                values[row] = getattr(band, name)[0]
    target.write("confidence", known)
    return {"refits": n_fits, "without_band": reasons}
