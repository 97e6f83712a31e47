"""The command ``deepstrf``: a few calls of the library per command, and errors that one can read.

Heavy packages are imported by the command that needs them, so ``deepstrf --help`` answers at once.
"""

from __future__ import annotations

import codecs
import sys
import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from deepSTRF._text import printable

__all__ = ["main"]

#: Name of the handler of characters that an output cannot encode, and what it writes for some.
_PLAIN = "deepSTRF-plain"
#: A paragraph wider than this is hard to read.
WIDTH = 100
_IN_ASCII = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "--", "\u2010": "-", "\u2011": "-", "\u2026": "...",
        "\u00b1": "+-", "\u00d7": "x", "\u00b7": "-", "\u2022": "*", "\u2192": "->", "\u2264": "<=",
        "\u2265": ">=", "\u2248": "~", "\u03bc": "u", "\u00b5": "u", "\u03bb": "lambda", "\u03c3": "sigma",
        "\u0394": "D", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00df": "ss",
    }
)  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """ASCII in place of what a stream cannot encode: minus as a hyphen, letters without accents, else "?"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = unicodedata.normalize("NFKD", error.object[error.start : error.end].translate(_IN_ASCII))
    kept = "".join(char if char.isascii() else "?" for char in text if not unicodedata.combining(char))
    return kept, error.end


def _never_fail_to_print() -> None:
    """Let output to a file or pipe in a legacy encoding (cp1252, cp437) replace what it cannot hold."""
    codecs.register_error(_PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)


def _one_paragraph(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as one paragraph, without the line of code, in which nothing acts on the terminal."""
    return textwrap.fill(f"Warning: {printable(' '.join(str(message).split()))}", WIDTH) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 it failed, 2 it was called wrongly, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words after ``deepstrf``; None takes those of the process.

    Raises
    ------
    SystemExit
        Always; its code is the exit status.

    Examples
    --------
    >>> try:
    ...     main(["--version"])
    ... except SystemExit as end:
    ...     end.code
    deepSTRF ...
    0
    """
    from deepSTRF.cli.app import app

    _never_fail_to_print()
    usual, warnings.formatwarning = warnings.formatwarning, _one_paragraph
    try:
        app(args=None if arguments is None else list(arguments), prog_name="deepstrf")
    finally:
        warnings.formatwarning = usual
