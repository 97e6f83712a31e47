"""A report about a fitted model: one self-contained HTML page, and the computations that explain the model.

``write_report(run)`` writes ``report.html`` into the folder of a run. Each section of the page is one
function from `ReportParts` to `Section`; `SECTIONS` lists them in order. ``explain_run(run)`` computes
tuning, dynamic STRFs and responses to probe sounds, which the report then shows, too. ``compare_runs(runs)``
compares models on the clips that all of them were tested with; ``write_comparison`` makes a page of it.
"""

from deepSTRF.report.comparison import RunComparison, compare_runs, find_runs, write_comparison
from deepSTRF.report.explain.run import explain_run
from deepSTRF.report.gather import write_report
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import figure_html
from deepSTRF.report.sections import SECTIONS

__all__ = [
    "SECTIONS",
    "ReportParts",
    "RunComparison",
    "Section",
    "compare_runs",
    "explain_run",
    "figure_html",
    "find_runs",
    "write_comparison",
    "write_report",
]
