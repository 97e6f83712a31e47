"""The sections of a report, in the order of the page.

A section is a function ``(ReportParts) -> Section | None``; None leaves it out. To add one, write such a
function in a file of this folder and name it in `SECTIONS`, or pass a longer tuple to `write_report`.
"""

from __future__ import annotations

from collections.abc import Callable

from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.sections._dynamics import dynamics, nonlinearity
from deepSTRF.report.sections._fields import confidence, receptive_fields
from deepSTRF.report.sections._front_end import front_end, waveform_field
from deepSTRF.report.sections._neurons import example_neurons, neuron_table
from deepSTRF.report.sections._overview import learning, notes, population, protocol, scores
from deepSTRF.report.sections._probes import left_out, probes
from deepSTRF.report.sections._reproduce import reproduce
from deepSTRF.report.sections._tuning import listening, tuning

__all__ = ["SECTIONS", "SectionMaker"]

#: Makes one section of the page, or None when its parts are missing.
SectionMaker = Callable[[ReportParts], Section | None]

SECTIONS: tuple[SectionMaker, ...] = (
    notes,
    scores,
    protocol,
    population,
    example_neurons,
    receptive_fields,
    confidence,
    tuning,
    listening,
    waveform_field,
    front_end,
    dynamics,
    nonlinearity,
    probes,
    left_out,
    learning,
    neuron_table,
    reproduce,
)
