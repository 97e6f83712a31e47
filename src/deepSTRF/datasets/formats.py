"""File formats of recordings: what each format offers to the front door ``open_recording``.

A format is one file in `deepSTRF.datasets.audio` with one class and the decorator
``@FORMATS.register("name")``. The keyword arguments of its ``sessions`` are its hints: what a user must tell
because files do not say it. Names, types and help of hints come from that signature and its docstring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from deepSTRF.datasets.session import Session

__all__ = ["Findings", "Format", "MissingHintError"]


@dataclass(frozen=True)
class Findings:
    """What was found in a file without a full read, and what is to be told.

    ``found`` holds one line per finding ("2 units: 7, 3", "stimulus templates: A (16000 Hz), B"). ``hints``
    proposes values for hints, best first, each with the evidence in words; a hint with exactly one candidate
    that leaves no doubt is used where the user gives none. ``needed`` are the hints that must be told.
    """

    found: Sequence[str]
    hints: Mapping[str, Sequence[tuple[Any, str]]] = field(default_factory=dict)
    needed: Sequence[str] = ()


class MissingHintError(ValueError):
    """A recording cannot be read without a hint; the text says what was found and what must be told."""


class Format:
    """A file format of recordings.

    Parameters
    ----------
    path : Path
        The file or folder; it exists and `recognises` it, or the user has named the format.
    """

    #: Suffixes of files, lower case; the bytes decide where they can.
    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file or folder is of this format, by its first bytes or its members."""
        raise NotImplementedError

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """What the file holds and which hints are missing, given those the user has told."""
        raise NotImplementedError

    def sessions(self, **hints: Any) -> list[Session]:
        """The sessions in the file. Raises `MissingHintError`, or `DamagedFileError` naming the file."""
        raise NotImplementedError
