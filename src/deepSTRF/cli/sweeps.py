"""``deepstrf sweep`` and ``deepstrf search``: the fits that a file describes, and a table of their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from deepSTRF._text import printable
from deepSTRF._validation import MOST_NAMED
from deepSTRF.cli.console import stdout_console
from deepSTRF.cli.errors import FAILED as FAILED_STATUS
from deepSTRF.cli.errors import say, usage
from deepSTRF.experiments import Sweep, SweepResults, run_sweep
from deepSTRF.experiments.optuna_search import search_from_toml
from deepSTRF.experiments.sweep import REPEATS
from deepSTRF.experiments.sweep_fits import check_fits
from deepSTRF.experiments.sweep_progress import results_table
from deepSTRF.experiments.sweep_results import read_result, shown

__all__ = ["print_results", "search_and_print", "sweep_and_print"]


def sweep_and_print(
    file: Path,
    out: Path | None,
    jobs: int,
    scheduler: str | None,
    *,
    retry_failed: bool,
    together: bool,
    dry_run: bool,
    download: bool,
    quiet: bool,
) -> None:
    """Run a sweep and print its table; the exit status is 1 when a fit has failed."""
    with usage():
        sweep = Sweep.from_toml(file)
    folder = out or Path("runs") / file.stem
    if dry_run:
        _print_plan(sweep, folder)
        return
    with usage():
        results = run_sweep(
            sweep,
            folder,
            n_jobs=jobs,
            scheduler=scheduler,
            progress=False if quiet else "auto",
            retry_failed=retry_failed,
            together=together,
            download=download,
        )
    print_results(results)
    if results.failed:
        raise typer.Exit(FAILED_STATUS)


def search_and_print(
    file: Path, out: Path | None, trials: int | None, *, download: bool, quiet: bool
) -> None:
    """Run a search and print its trials, the best last."""
    folder = out or Path("runs") / file.stem
    with usage():
        results = search_from_toml(
            file, folder, n_trials=trials, download=download, progress=False if quiet else "auto"
        )
    for trial in sorted(results.trials, key=lambda trial: _descending(trial.validation), reverse=True):
        say(trial)
    if results.best_config is None:
        say("\nNo trial has ended well.")
        raise typer.Exit(FAILED_STATUS)
    say(f"\nBest on validation: {results.best}")
    say("Fit it, and score it on clips that took no part in the choice:")
    say(f"  {results.best_config.command()}")
    stdout_console().print(f"\nFolder  {folder}", soft_wrap=True)


def _print_plan(sweep: Sweep, folder: Path) -> None:
    """Print name and state of every fit."""
    fits = sweep.fits()
    with usage():
        check_fits(fits)
    found = [read_result(folder, fit) for fit in fits]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("fit", "status", "folder"):
        table.add_column(name, overflow="fold")
    for result in found:
        table.add_row(*(Text(printable(cell)) for cell in (result.name, result.status, result.path.name)))
    stdout_console().print(table)
    counts = {status: sum(result.status == status for result in found) for status in ("done", "failed")}
    say(f"\n{len(found)} fits in {folder}: {counts['done']} done, {counts['failed']} failed")


def print_results(results: SweepResults) -> None:
    """Print the table of a sweep, its best configuration, what failed, and where things lie."""
    rows, console = results.summary(), stdout_console()
    axes = [axis for axis in results.sweep.axes if axis not in REPEATS]
    ordered = sorted(rows, key=lambda row: _descending(row["validation"]))
    console.print(results_table(ordered, axes, pad_edge=False, header_style="bold", padding=(0, 1)))
    say(f"\n{len(results.fitted)} fitted now, {len(results.read)} read, {len(results.failed)} failed.")
    _print_best(results, axes)
    for note in results.notes():
        say(f"Note: {note}")
    causes: dict[str, list[str]] = {}
    for fit in results.failed:
        causes.setdefault(fit.error, []).append(fit.name)
    for error, names in list(causes.items())[:MOST_NAMED]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(f"Failed: {names[0]}{more}: {printable(error, longest=300)}")
    if len(causes) > MOST_NAMED:
        say(f"... and of {len(causes) - MOST_NAMED} other causes")
    if results.failed:
        say("Tracebacks stand in fits/*.failed.json; --retry-failed fits these again.")
    console.print(f"\nSweep folder  {results.out}", soft_wrap=True)
    console.print(f"Table         {(results.out / 'table.csv').resolve()}", soft_wrap=True)


def _print_best(results: SweepResults, axes: Sequence[str]) -> None:
    if len(results.summary()) < 2:
        return
    try:
        best = results.best()
    except ValueError as error:
        say(f"No best configuration: {error}")
        return
    named = ", ".join(f"{axis}={best[axis]}" for axis in axes)
    say(f"Best on validation: {named} (validation {shown(best['validation'])}, test {shown(best['test'])})")


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value
