"""Errors as one paragraph and an exit status; the traceback only on request."""

from __future__ import annotations

import errno
import functools
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer

from deepSTRF._text import printable
from deepSTRF.cli import WIDTH
from deepSTRF.experiments.config import NamesFields

__all__ = ["UsageProblem", "explain", "readable", "say", "usage"]

#: Characters of an error that are shown; a longer one repeats what was typed.
LONGEST = 1_000
#: Exit statuses; 130 is what shells report after Ctrl-C.
FAILED, MISUSED, INTERRUPTED = 1, 2, 130
#: Errors whose text was written for the user; any other is a fault of the package.
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
#: Errors by which the library refuses an argument; a missing file was named wrongly.
REFUSALS = (
    ValueError, TypeError, KeyError, IndexError, FileNotFoundError, FileExistsError, NotADirectoryError,
)  # fmt: skip
#: No space, quota used up, larger than a file may be.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Command = TypeVar("Command", bound=Callable[..., Any])


def say(text: object, *, err: bool = False) -> None:
    """Print a text in which nothing acts on the terminal."""
    typer.echo(printable(text, keep="\n\t"), err=err)


class UsageProblem(Exception):  # noqa: N818  (shown to the user as a problem of the call, not as an error)
    """The command was called in a way that cannot work; exit status 2."""


@contextmanager
def usage(*kinds: type[Exception]) -> Iterator[None]:
    """Turn refusals by the library into problems of the call.

    Damaged files and saved states of another fit are none: the same call may work with other files.
    """
    refusals = kinds or REFUSALS
    try:
        yield
    except refusals as error:
        from deepSTRF._files import DamagedFileError
        from deepSTRF.training import StateMismatchError

        if isinstance(error, DamagedFileError | StateMismatchError):
            raise
        # notes on a refusal are advice on the call
        raise UsageProblem(". ".join([_text_of(error), *getattr(error, "__notes__", ())])) from error


def _text_of(error: Exception) -> str:
    """The text of an error with flags in place of fields, without advice for callers in Python."""
    if isinstance(error, NamesFields):
        return error.command_text()
    if hasattr(error, "summary"):
        return str(error.summary)
    # str(KeyError("x")) is "'x'"
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def readable(command: Command) -> Command:
    """Wrap a command so that an error becomes one paragraph on stderr and an exit status."""

    @functools.wraps(command)
    def run(*words: Any, **options: Any) -> Any:
        try:
            return command(*words, **options)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say("Interrupted. The same command goes on where it stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001  (the outermost frame: every error gets its paragraph)
            if options.get("debug"):
                say(traceback.format_exc(), err=True)
            say(explain(error, debug=bool(options.get("debug"))), err=True)
            raise typer.Exit(MISUSED if isinstance(error, UsageProblem) else FAILED) from None

    return run  # type: ignore[return-value]


def explain(error: Exception, *, debug: bool = False) -> str:
    """Return one paragraph about an error: what happened and what to do."""
    text = printable(" ".join(_text_of(error).split()), longest=LONGEST) or type(error).__name__
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        text += (
            ". Nothing saved before is lost: free some space and run the same command, it goes on from there"
        )
    if isinstance(error, UsageProblem) or debug:
        hint = ""
    else:
        hint = " (--debug shows where)" if isinstance(error, EXPECTED) else " with what --debug prints"
    if not isinstance(error, (*EXPECTED, UsageProblem)):
        text = f"{type(error).__name__}: {text}. This is a fault of deepSTRF; please report it"
    return textwrap.fill(f"Error: {text}{hint}", WIDTH, break_long_words=False, break_on_hyphens=False)
