"""The sections of a report, in the order of the page.

A section is a function ``(ReportParts) -> Section | None``; None leaves it out. To add one, write such a
function in a file of this folder and name it in `SECTIONS`, or pass a longer tuple to `write_report`.
"""

from __future__ import annotations

from collections.abc import Callable

from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.sections.dynamics import dynamics, left_out, nonlinearity, probes
from deepSTRF.report.sections.overview import (
    example_neurons,
    learning,
    neuron_table,
    notes,
    population,
    protocol,
    reproduce,
    scores,
)
from deepSTRF.report.sections.tuning import (
    confidence,
    front_end,
    listening,
    receptive_fields,
    tuning,
    waveform_field,
)

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
