"""One self-contained HTML page about a fit, for a colleague who was not there.

``write_report(run)`` writes ``report.html`` into the folder of a run. The page is made of sections, each one
function from `ReportParts` to `Section` (see `deepSTRF.report.sections`): a new section is one such function.
``explain_run(run)`` computes what a report then shows of the neurons: tuning, dynamic STRFs, probe sounds.
"""

from deepSTRF.report.explain import explain_run
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.gather import gather_parts, render_report, write_report
from deepSTRF.report.parts import NeuronExample, Note, ReportParts, ScoreRow, Section
from deepSTRF.report.rendering import figure_html, render
from deepSTRF.report.sections import SECTIONS

__all__ = [
    "SECTIONS",
    "Explanation",
    "NeuronExample",
    "Note",
    "ReportParts",
    "ScoreRow",
    "Section",
    "explain_run",
    "figure_html",
    "gather_parts",
    "render",
    "render_report",
    "write_report",
]
