"""The console that commands print tables on."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from deepSTRF._text import printable

__all__ = ["stdout_console"]

#: Without a terminal (a pipe, a log) lines are as wide as the table needs, up to this.
PIPE_WIDTH = 160


class _PlainConsole(Console):
    """A console that prints texts as they are: no markup, no emoji, nothing that acts on the terminal."""

    def render_str(self, text: str, **style: Any) -> Text:
        """Return what is printed of a text."""
        return super().render_str(printable(text, keep="\n\t"), **style)


def stdout_console() -> Console:
    """Return a console on stdout whose tables keep their shape in a pipe."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return _PlainConsole(highlight=False, markup=False, emoji=False, width=width)
