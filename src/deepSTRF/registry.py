"""Named registries: the one place a new model, front-end or dataset is announced.

A registry maps a short lower-case name to a class. Factories, the command line, the docs tables and the
parametrised test banks all read it, so a new thing is one new file and one ``@REGISTRY.register(name)``.
This module is a leaf: it imports nothing else of the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["BACKBONES", "DATASETS", "MODELS", "MODULES", "SOLVERS", "WAV2SPEC", "Registry"]

Entry = TypeVar("Entry")
Registered = TypeVar("Registered")


class Registry(Generic[Entry]):
    """A table of named classes or functions with helpful errors.

    Examples
    --------
    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes.get("Square") is Square
    True
    >>> shapes.get("sqare")
    Traceback (most recent call last):
        ...
    ValueError: unknown shape 'sqare'; legal names: 'square'. Did you mean 'square'?
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that files a class or function under ``name`` (stored in lower case)."""
        key = name.lower()

        def file_entry(entry: Registered) -> Registered:
            known = self._entries.get(key)
            if known is not None and known is not entry and _home(known) != _home(entry):
                raise ValueError(f"{self.what} {name!r} is already taken by {known!r}; choose another name")
            self._entries[key] = entry  # type: ignore[assignment]
            return entry

        return file_entry

    def get(self, name: str) -> Entry:
        """Return the entry called ``name`` (any case)."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a {self.what} is a string, got {type(name).__name__}")
        try:
            return self._entries[name.lower()]
        except KeyError:
            legal = ", ".join(repr(known) for known in self.names())
            near = difflib.get_close_matches(name.lower(), self.names(), n=1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {self.what} {name!r}; legal names: {legal}{hint}") from None

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(self._entries)

    def items(self) -> list[tuple[str, Entry]]:
        """Return (name, entry) pairs in alphabetical order."""
        return [(name, self._entries[name]) for name in self.names()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)


def _home(entry: object) -> tuple[str, str] | None:
    """Where a class or function was defined; a module that is run again (autoreload) may file it anew."""
    module, name = getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
    return None if module is None or name is None or "<locals>" in name else (module, name)


#: Encoding models (``deepSTRF.models.audio``), by command-line name.
MODELS: Registry[type] = Registry("model")
#: Waveform front-ends (``deepSTRF.models.wav2spec``), by factory name.
WAV2SPEC: Registry[type] = Registry("front-end")
#: Sequence models (``deepSTRF.models.backbones``), by the name that ``StateNet(rnn_type=...)`` takes.
BACKBONES: Registry[type] = Registry("backbone")
#: Recordings (``deepSTRF.datasets``), by command-line name.
DATASETS: Registry[type] = Registry("dataset")
#: Every module class a checkpoint may name, by class name in lower case (models, front-ends, readouts, ...).
MODULES: Registry[type] = Registry("module class")
#: Fits in closed form (``deepSTRF.experiments.build``), by the name that stands in a model's place.
SOLVERS: Registry[Callable[..., Any]] = Registry("closed-form fit")
