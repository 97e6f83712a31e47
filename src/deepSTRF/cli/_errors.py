"""Errors as one paragraph and an exit status; the traceback only when asked for."""

from __future__ import annotations

import errno
import functools
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer

__all__ = ["UsageProblem", "explain", "readable", "usage"]

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

    Parameters
    ----------
    *kinds : exception classes
        What counts as a refusal; by default all errors that the library's checks raise.

    Raises
    ------
    UsageProblem
        In place of them.

    Examples
    --------
    >>> with usage():
    ...     int("three")
    Traceback (most recent call last):
        ...
    deepSTRF.cli._errors.UsageProblem: invalid literal for int() with base 10: 'three'
    """
    refusals = kinds or REFUSALS
    try:
        yield
    except refusals as error:
        from deepSTRF.training.errors import DamagedFileError, StateMismatchError

        if isinstance(error, DamagedFileError | StateMismatchError):
            raise
        raise UsageProblem(_text_of(error)) from error


def _text_of(error: Exception) -> str:
    # str(KeyError("x")) is "'x'": its argument is the text
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


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
    'Error: --epochs must be at least 1'
    """
    text = " ".join(_text_of(error).split()) or type(error).__name__
    if isinstance(error, (*EXPECTED, UsageProblem)):
        from deepSTRF.cli._wording import in_words_of_the_command

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
