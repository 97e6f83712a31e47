"""Scores and protocol on a terminal."""

from __future__ import annotations

import errno
import functools
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from deepSTRF.experiments.run_folder import Run, ScoreRow

__all__ = [
    "UsageProblem",
    "explain",
    "print_run",
    "print_scores",
    "readable",
    "stdout_console",
    "usage",
]

# ------------------------------------------------------------------------------
# Errors as one paragraph and an exit status; the traceback only when asked for.


#: Exit statuses; 130 is what shells report after Ctrl-C.
FAILED, MISUSED, INTERRUPTED = 1, 2, 130
#: A paragraph wider than this is hard to read.
WIDTH = 100
#: Errors whose text was written for the user; any other is a fault of ours.
EXPECTED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OSError,
    ArithmeticError,
    ImportError,
    MemoryError,
    RuntimeError,
)

#: How the library refuses what it was given; a file that is not there was named wrongly.
REFUSALS = (
    ValueError, TypeError, KeyError, IndexError, FileNotFoundError, FileExistsError, NotADirectoryError,
)  # fmt: skip

#: No space, quota used up, larger than a file may be: all mended by space.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Command = TypeVar("Command", bound=Callable[..., Any])


class UsageProblem(Exception):  # noqa: N818  (shown to the user as a problem of the call, not as an error)
    """The command was called in a way that cannot work; exit status 2.

    Examples
    --------
    >>> str(UsageProblem("epochs must be at least 1"))
    'epochs must be at least 1'
    """


@contextmanager
def usage(*kinds: type[Exception]) -> Iterator[None]:
    """Make refusals by the library problems of the call: names, options, values, files that are not there.

    Files that broke and saved states of another fit are none: the same words may work with better files.

    Examples
    --------
    >>> with usage():
    ...     int("three")
    Traceback (most recent call last):
        ...
    deepSTRF.cli.tables.UsageProblem: invalid literal for int() with base 10: 'three'
    """
    refusals = kinds or REFUSALS
    try:
        yield
    except refusals as error:
        from deepSTRF._files import DamagedFileError
        from deepSTRF.training.resume import StateMismatchError

        if isinstance(error, DamagedFileError | StateMismatchError):
            raise
        raise UsageProblem(_text_of(error)) from error


def _text_of(error: Exception) -> str:
    # str(KeyError("x")) is "'x'": its argument is the text
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def readable(command: Command) -> Command:
    """Wrap a command so that an error becomes one paragraph on stderr and an exit status.

    Examples
    --------
    >>> @readable
    ... def fails(debug=False):
    ...     raise UsageProblem("no such model")
    >>> try:
    ...     fails()
    ... except typer.Exit as end:
    ...     end.exit_code
    2
    """

    @functools.wraps(command)
    def run(*words: Any, **options: Any) -> Any:
        try:
            return command(*words, **options)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            typer.echo("Interrupted. The same command goes on where it stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001  (the outermost frame: every error gets its paragraph)
            if options.get("debug"):
                traceback.print_exc(file=sys.stderr)
            typer.echo(explain(error, debug=bool(options.get("debug"))), err=True)
            raise typer.Exit(MISUSED if isinstance(error, UsageProblem) else FAILED) from None

    return run  # type: ignore[return-value]


def explain(error: Exception, *, debug: bool = False) -> str:
    """Return one paragraph about an error: what happened and what to do.

    Examples
    --------
    >>> explain(ValueError("epochs must be at least 1"), debug=True)
    'Error: --epochs must be at least 1'
    """
    text = " ".join(_text_of(error).split()) or type(error).__name__
    if isinstance(error, (*EXPECTED, UsageProblem)):
        from deepSTRF.cli.wording import in_words_of_the_command

        text = in_words_of_the_command(text)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        text += (
            ". Nothing saved before is lost: free some space and run the same command, it goes on from there"
        )
    hint = "" if debug else " (--debug shows where)"
    if isinstance(error, UsageProblem):
        hint = ""
    elif not isinstance(error, EXPECTED):
        text = f"{type(error).__name__}: {text}. This is a fault of deepSTRF; please report it"
        hint = hint and " with what --debug prints"
    return textwrap.fill(f"Error: {text}{hint}", WIDTH, break_long_words=False, break_on_hyphens=False)


# ------------------------------------------------------------------------------

#: Without a terminal (a pipe, a log) lines are as wide as the table needs, up to this.
PIPE_WIDTH = 160


def stdout_console() -> Console:
    """Return a console on stdout whose tables keep their shape in a pipe.

    Examples
    --------
    >>> stdout_console().width > 0
    True
    """
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_scores(rows: Iterable[ScoreRow], seeds: Sequence[int]) -> None:
    """Print the score table, and the main score of each seed when there are several.

    Examples
    --------
    >>> from deepSTRF.experiments.run_folder import ScoreRow
    >>> print_scores([ScoreRow("test", "cc", 0.5, 0.1, 0.6, 3, 1, (0.5,))], [0])
                     mean ...
    """
    from deepSTRF.experiments.run_folder import MAIN_SCORE
    from deepSTRF.metrics.scores import metric_named, metric_order
    from deepSTRF.report.rendering import number

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
    from deepSTRF.report import gather_parts

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
    for note in parts.notes:
        colour = "yellow" if note.level == "warning" else "dim"
        console.print(f"\n[{colour}]{note.level.capitalize()}:[/] {note.text}")
    console.print(f"\nRun folder  {run.path}", soft_wrap=True)
    if report is not None:
        console.print(f"Report      {report.resolve()}", soft_wrap=True)
