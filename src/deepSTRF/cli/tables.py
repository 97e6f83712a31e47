"""Scores and protocol of a run on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from deepSTRF.experiments.run_folder import MAIN_SCORE, Run, ScoreRow
from deepSTRF.metrics.scores import metric_named, metric_order
from deepSTRF.report.gather import gather_parts
from deepSTRF.report.rendering import number

__all__ = ["print_run", "print_scores", "stdout_console"]

#: Without a terminal (a pipe, a log) lines are as wide as the table needs, up to this.
PIPE_WIDTH = 160


def stdout_console() -> Console:
    """Return a console on stdout whose tables keep their shape in a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_scores(rows: Iterable[ScoreRow], seeds: Sequence[int]) -> None:
    """Print the score table, and the main score of each seed when there are several."""
    rows = list(rows)
    shown = [row for row in rows if metric_named(row.metric).in_summary]
    shown.sort(key=lambda row: metric_order(row.metric))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name in ("mean", "± sd", "median", "neurons", "no score"):
        table.add_column(name, justify="right", no_wrap=True)
    for split in dict.fromkeys(row.split for row in rows):
        table.add_row(f"[bold]{split}[/]")
        for row in (row for row in shown if row.split == split):
            metric = metric_named(row.metric)
            cells = [number(value, metric.decimals) for value in (row.mean, row.sd, row.median)]
            style = "bold" if row.metric == MAIN_SCORE else None
            table.add_row(f"  {metric.label}", *cells, str(row.n), str(row.n_nan), style=style)
    console = stdout_console()
    console.print(table)
    if len(seeds) > 1:
        for row in (row for row in shown if row.metric == MAIN_SCORE):
            values = "  ".join(
                f"[dim]seed {seed}[/] {number(v)}" for seed, v in zip(seeds, row.per_seed, strict=True)
            )
            spread = f"mean {number(mean(row.per_seed))} ± {number(stdev(row.per_seed))} over seeds"
            console.print(f"\n{row.split}, {metric_named(MAIN_SCORE).label}: {spread}\n  {values}")


def print_run(run: Run, report: Path | None) -> None:
    """Print scores, protocol, notes and where things lie."""
    parts = gather_parts(run)
    console = stdout_console()
    console.print(f"\n[bold]{parts.title}[/]\n[dim]{parts.subtitle}[/]\n")
    print_scores(parts.score_rows, parts.seeds)
    if parts.protocol:
        console.print("\n[bold]Protocol[/]")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        for label, value in parts.protocol:
            grid.add_row(f"  {label}", value)
        console.print(grid)
    for level, text in parts.notes:
        colour = "yellow" if level == "warning" else "dim"
        console.print(f"\n[{colour}]{level.capitalize()}:[/] {text}")
    console.print(f"\nRun folder  {run.path}", soft_wrap=True)
    if report is not None:
        console.print(f"Report      {report.resolve()}", soft_wrap=True)
