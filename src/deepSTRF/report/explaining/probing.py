"""Probe sounds, played to a fitted model."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepSTRF.interpret.probes import PROBES, Listener, probe_battery
from deepSTRF.interpret.tuning_table import NeuronTable
from deepSTRF.report.explaining.subject import Skipped, Subject
from deepSTRF.training.files import write_atomically

__all__ = ["explain_probes"]


def explain_probes(subject: Subject) -> dict[str, Any]:
    """Play the sounds of a hearing laboratory to the neurons chosen (``probes.npz``, ``probes.csv``).

    Parameters
    ----------
    subject : Subject
        What is explained.

    Returns
    -------
    dict
        ``response_of_probes``.

    Raises
    ------
    Skipped
        When nobody knows how sounds become the model's spectrograms.
    ValueError
        From the probes themselves.

    Examples
    --------
    >>> explain_probes(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explaining.subject.Skipped: it needs the recording
    """
    if subject.hears_samples():
        listener = Listener(subject.model, neurons=subject.neurons)
    elif subject.dataset is None:
        raise Skipped(subject.missing)
    else:
        try:
            listener = Listener.for_dataset(subject.model, subject.dataset, neurons=subject.neurons)
        except ValueError as error:
            raise Skipped(f"sounds cannot be played to this model: {error}") from error
    count = subject.begin("probes", len(PROBES))
    begun: list[str] = []

    def progress(name: str) -> None:
        count(int(bool(begun)))
        begun.append(name)

    battery = probe_battery(listener, PROBES, progress=progress)
    arrays: dict[str, Any] = {}
    for probe, result in battery.results.items():
        for name in result.__dataclass_fields__:
            value = np.asarray(getattr(result, name))
            if name != "neurons" and value.dtype.kind in "fi":
                arrays[f"{probe}_{name}"] = value
    subject.write("probes", arrays)
    table = NeuronTable(tuple(subject.names), {"index": np.asarray(subject.neurons), **battery.table.columns})
    write_atomically(subject.folder / "probes.csv", table.to_csv().encode())
    return _clip_level(subject)


def _clip_level(subject: Subject) -> dict[str, Any]:
    """Level of the test clips in the unit of the probes, where they are sounds."""
    if subject.dataset is None or not getattr(subject.dataset, "return_waveform", False):
        return {}
    sounds = (np.asarray(stim, dtype=np.float64) for stim in subject.dataset.stims)
    sizes = [float(np.sqrt(np.mean(sound**2))) for sound in sounds]
    levels = [20.0 * np.log10(size) for size in sizes if size > 0]
    return {"clip_level_db": float(np.median(levels))} if levels else {}
