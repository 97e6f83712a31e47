"""``deepstrf explain``: what the neurons of a run listen to."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from deepSTRF.cli._errors import usage
from deepSTRF.cli._tables import stdout_console
from deepSTRF.report import explain_run, write_report
from deepSTRF.report.explaining import choose_neurons
from deepSTRF.report.explanation import Explanation
from deepSTRF.training.run_folder import Run

__all__ = ["explain_and_print"]

#: What the files are, in the order in which a reader wants them.
CONTENTS = {
    "tuning.csv": "tuning of every neuron",
    "nonlinearity.csv": "how the filters of the chosen neurons change",
    "probes.csv": "their answers to probe sounds, summarised",
    "dstrf.gif": "movie of their dynamic STRFs",
    "fields.npz": "receptive fields of every neuron",
    "confidence.npz": "confidence bands of the chosen neurons",
    "modulation.npz": "modulation transfer functions",
    "dstrf.npz": "dynamic STRFs, the sound, responses and predictions",
    "probes.npz": "responses to probe sounds",
    "*.wav": "receptive fields as sounds",
}


def explain_and_print(
    folder: Path, neurons: str | None, seed: int | None, *, overwrite: bool, download: bool, quiet: bool
) -> None:
    """Explain the model of a run, write its report again, and print what there is.

    Parameters
    ----------
    folder : Path
        Run folder.
    neurons : str or None
        Names or indices with commas; None is the best ones.
    seed : int or None
        Which seed's model.
    overwrite : bool
        Replace another explanation.
    download : bool
        Let the recording fetch missing files.
    quiet : bool
        No progress.

    Raises
    ------
    UsageProblem
        For no run, neurons or a seed that the run does not have, or another explanation there.
    """
    named = None if neurons is None else [word.strip() for word in neurons.split(",") if word.strip()]
    with usage():
        run = Run.load(folder)
        choose_neurons(run, named)
        if seed is not None:
            run.check_seed(seed)
    with usage(FileExistsError):
        found = explain_run(
            run,
            named,
            seed=seed,
            overwrite=overwrite,
            download=download,
            progress=False if quiet else "auto",
        )
    if not quiet:
        typer.echo("Writing the report", err=True)
    _print(found, write_report(run))


def _print(found: Explanation, report: Path) -> None:
    console = stdout_console()
    console.print(f"\n[bold]Explained[/] {', '.join(found.names)}\n", soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for pattern, meaning in CONTENTS.items():
        files = sorted(found.folder.glob(pattern))
        if files:
            name = pattern if len(files) > 1 else files[0].name
            table.add_row(f"  {name}", f"[dim]{meaning}[/]")
    console.print(table)
    for part, reason in found.skipped:
        typer.echo(f"\nSkipped {part}: {reason}")
    console.print(f"\nFolder  {found.folder}", soft_wrap=True)
    console.print(f"Report  {report.resolve()}", soft_wrap=True)
