"""Errors as one paragraph and an exit status; the traceback only when asked for."""

from __future__ import annotations

import errno
import functools
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import typer

__all__ = ["UsageProblem", "explain", "readable"]

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


def readable(command: Command) -> Command:
    """Wrap a command so that an error becomes one paragraph on stderr and an exit status.

    Parameters
    ----------
    command : callable
        The command; its keyword ``debug`` lets the traceback through.

    Returns
    -------
    callable
        The wrapped command, with the same signature.

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

    Parameters
    ----------
    error : Exception
        The error.
    debug : bool
        Whether the traceback was shown already.

    Returns
    -------
    str
        Lines of at most 100 characters.

    Examples
    --------
    >>> explain(ValueError("epochs must be at least 1"), debug=True)
    'Error: epochs must be at least 1'
    """
    # str(KeyError("x")) is "'x'": its argument is the text
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split()) or type(error).__name__
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
