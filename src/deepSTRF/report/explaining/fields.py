"""Receptive fields: the maps, their tuning, and how they sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deepSTRF.interpret import (
    modulation_transfer,
    sonify_strf,
    strf_tuning,
    waveform_fields,
    write_field_wav,
    write_wav,
)
from deepSTRF.interpret.tuning_table import NeuronTable
from deepSTRF.report.explaining.subject import Subject
from deepSTRF.training.files import write_atomically

__all__ = ["explain_fields", "explain_sounds", "explain_tuning"]

#: Audio rate of sonified STRFs, above twice any hearing range in use.
SONIFIED_FS = 48000.0


def explain_fields(subject: Subject) -> dict[str, Any]:
    """Keep the receptive fields of all neurons (``fields.npz``).

    Parameters
    ----------
    subject : Subject
        What is explained.

    Returns
    -------
    dict
        ``field_kind``.

    Raises
    ------
    Skipped
        When the model has none.

    Examples
    --------
    >>> explain_fields(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explaining.subject.Skipped: the model has no STRF weights and no finite gradient
    """
    fields = subject.needs_fields()
    arrays: dict[str, Any] = {"fields": fields.maps.astype(np.float32), "dt_ms": subject.dt_ms}
    if subject.frequencies_hz is not None:
        arrays["frequencies_hz"] = subject.frequencies_hz
    subject.write("fields", arrays)
    return {"field_kind": fields.kind}


def explain_tuning(subject: Subject) -> dict[str, Any]:
    """Write the tuning of all neurons (``tuning.csv``) and the modulation transfer of those chosen.

    Parameters
    ----------
    subject : Subject
        What is explained.

    Returns
    -------
    dict
        Nothing more.

    Raises
    ------
    Skipped
        Without receptive fields or frequencies.
    ValueError
        From the measures themselves.

    Examples
    --------
    >>> explain_tuning(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explaining.subject.Skipped: the model has no STRF weights and no finite gradient
    """
    maps, hertz = subject.needs_fields().maps, subject.needs_frequencies()
    count = subject.begin("tuning", len(maps))
    rows = []
    for neuron, field in enumerate(maps):
        rows.append(strf_tuning(field, hertz, subject.dt_ms, neurons=[subject.all_names[neuron]]).rows()[0])
        count(1)
    columns = {name: np.asarray([row[name] for row in rows]) for name in rows[0] if name != "neuron"}
    table = NeuronTable(tuple(subject.all_names), {"index": np.arange(len(maps)), **columns})
    write_atomically(subject.folder / "tuning.csv", table.to_csv().encode())
    transfer = modulation_transfer(maps[subject.neurons], hertz, subject.dt_ms)
    subject.write(
        "modulation",
        {
            "power": transfer.power.astype(np.float32),
            "rates_hz": transfer.rates_hz,
            "scales_cyc_oct": transfer.scales_cyc_oct,
        },
    )
    return {}


def explain_sounds(subject: Subject) -> dict[str, Any]:
    """Write receptive fields as sounds: the waveform gradient, or the excitatory part of the STRF as noise.

    Parameters
    ----------
    subject : Subject
        What is explained.

    Returns
    -------
    dict
        ``sounds``: pairs of a file name and a label.

    Raises
    ------
    Skipped
        Without a recording (waveform models) or frequencies (others).
    ValueError
        From the gradients themselves.

    Examples
    --------
    >>> explain_sounds(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explaining.subject.Skipped: the model has no STRF weights and no finite gradient
    """
    count = subject.begin("sounds", len(subject.neurons))
    sounds: list[tuple[str, str]] = []
    if subject.hears_samples():
        stim = torch.as_tensor(subject.needs_excerpt().stim)
        for neuron, name in zip(subject.neurons, subject.labels, strict=True):
            (field,) = waveform_fields(subject.model, stim, [neuron])
            if not field.duration_ms > 0:  # a response without a slope: nothing to hear
                count(1)
                continue
            file = f"field-{neuron}.wav"
            write_field_wav(subject.folder / file, field)
            sounds.append((file, f"{name}: gradient by the samples, {field.duration_ms:.0f} ms"))
            count(1)
        return {"sounds": sounds, "sound_kind": "field"}
    maps, hertz = subject.needs_fields().maps, subject.needs_frequencies()
    fs = SONIFIED_FS if 2.0 * hertz[-1] < SONIFIED_FS else float(2 * round(1.2 * hertz[-1]))
    for neuron, name in zip(subject.neurons, subject.labels, strict=True):
        if not (maps[neuron] > 0).any():
            count(1)
            continue
        file = f"strf-{neuron}.wav"
        write_wav(subject.folder / file, sonify_strf(maps[neuron], hertz, subject.dt_ms, fs), fs)
        sounds.append((file, f"{name}: what excites it, as noise"))
        count(1)
    return {"sounds": sounds, "sound_kind": "strf"}
