"""``deepstrf compare`` and ``deepstrf bench``: fitted models side by side, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from deepSTRF._text import printable
from deepSTRF.cli.console import stdout_console
from deepSTRF.cli.errors import FAILED, say, usage
from deepSTRF.cli.sweeps import print_results
from deepSTRF.experiments import run_sweep
from deepSTRF.experiments.bench import BENCH_TABLES, bench_sweep
from deepSTRF.experiments.config import parse_options, parse_seeds
from deepSTRF.report.comparison import RunComparison, compare_runs, find_runs, write_comparison

__all__ = ["bench_and_print", "compare_and_print", "list_tables"]

PAGE, JSON = "comparison.html", "comparison.json"


def compare_and_print(
    folders: Sequence[Path], out: Path | None, score: str, over: str, csv: Path | None, json: Path | None
) -> None:
    """Compare runs, print scores and pairs, write the page."""
    with usage():
        result = compare_runs(find_runs(*folders), score=score, over=over)
    _print(result, out or Path(PAGE), f"{score} on the same clips")
    if csv is not None:
        result.to_csv(csv)
    if json is not None:
        result.to_json(json)


def _print(result: RunComparison, page: Path, title: str) -> None:
    say(printable(str(result), keep="\n"))
    for _, text in result.notes:
        say(f"Note: {printable(text)}")
    written = write_comparison(result, page, title=title)
    stdout_console().print(f"\nPage  {written.resolve()}", soft_wrap=True)


def list_tables() -> None:
    """Print the named tables and their rows."""
    for name, rows in BENCH_TABLES.items():
        say(f"{name:12s} {', '.join(rows)}")


def bench_and_print(
    dataset: str,
    table: str,
    rows: str | None,
    seeds: str,
    split: str | None,
    options: Sequence[str],
    choices: Mapping[str, Any],
    out: Path | None,
    jobs: int,
    scheduler: str | None,
    *,
    retry_failed: bool,
    download: bool,
    quiet: bool,
) -> None:
    """Fit a table, print it, and write page and JSON beside the fits."""
    chosen = {name: value for name, value in choices.items() if value is not None}
    with usage():
        sweep = bench_sweep(
            dataset,
            table,
            rows=None if rows is None else [row.strip() for row in rows.split(",")],
            seeds=parse_seeds(seeds),
            split=split,
            dataset_options=parse_options(options),
            **chosen,
        )
        folder = out or Path("runs") / f"bench-{Path(dataset).stem}-{table}"
        results = run_sweep(
            sweep,
            folder,
            n_jobs=jobs,
            scheduler=scheduler,
            progress=False if quiet else "auto",
            retry_failed=retry_failed,
            together=False,  # the command of a row repeats it to the last digit
            download=download,
        )
    print_results(results)
    finished = any(not row["failed"] for row in results.summary())
    runs = find_runs(folder) if finished else {}
    if len(runs) < 2:
        say(f"\nNo page: it compares rows that are finished, and {len(runs) or 'none'} is.")
    else:
        result = compare_runs(runs)
        _print(result, folder / PAGE, f"{table} on {Path(dataset).name}")
        result.to_json(folder / JSON)
        stdout_console().print(f"JSON  {(folder / JSON).resolve()}", soft_wrap=True)
    if results.failed:
        raise typer.Exit(FAILED)
