"""The command ``deepstrf``: a few calls of the library per command, and errors that one can read.

Heavy packages are imported by the command that needs them, so ``deepstrf --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


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

    app(args=None if arguments is None else list(arguments), prog_name="deepstrf")
