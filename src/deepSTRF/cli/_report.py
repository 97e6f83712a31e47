"""``deepstrf report``: write the page of a run again."""

from __future__ import annotations

from pathlib import Path

from deepSTRF.cli._errors import UsageProblem, usage
from deepSTRF.cli._tables import print_run
from deepSTRF.report import write_report
from deepSTRF.training.run_folder import Run

__all__ = ["write_and_print"]


def write_and_print(folder: Path, out: Path | None) -> None:
    """Write the report of a run and print its scores.

    Parameters
    ----------
    folder : Path
        Run folder.
    out : Path or None
        HTML file; None is ``report.html`` in the folder.

    Raises
    ------
    UsageProblem
        When there is no run, or ``out`` is a folder.
    """
    if out is not None and out.is_dir():
        raise UsageProblem(f"--out {out} is a folder; name a file in it: --out {out / 'report.html'}")
    with usage():
        run = Run.load(folder)
    print_run(run, write_report(run, out))
