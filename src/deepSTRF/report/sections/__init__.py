"""The sections of a report, in the order of the page.

A section is a function from `ReportParts` to `Section`, or to None to leave it out. To add one, write such a
function in a file of this folder and name it in `SECTIONS`, or pass a longer tuple to `write_report`.
"""

from __future__ import annotations

from collections.abc import Callable

from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.sections.dynamics import dynamics, left_out, nonlinearity, probes
from deepSTRF.report.sections.fields import (
    confidence,
    front_end,
    listening,
    receptive_fields,
    tuning,
    waveform_field,
)
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
from deepSTRF.report.sections.recording import rasters, recording

SectionMaker = Callable[[ReportParts], Section | None]

SECTIONS: tuple[SectionMaker, ...] = (
    notes,
    scores,
    protocol,
    recording,
    population,
    example_neurons,
    rasters,
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
