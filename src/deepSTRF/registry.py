"""Named registries of models, front-ends, backbones, prefilters, kernels, datasets, losses and metrics.

A registry maps a short lower-case name to a class or function. It knows the packages whose files register
entries and imports them at the first look-up, so a new entry is one new file with one decorator:

    @MODELS.register("my_model")        # in src/deepSTRF/models/audio/my_model.py
    class MyModel(AudioEncodingModel): ...

Factories, the command line, the tables of the documentation and the parametrised tests all read the
registries. This module imports nothing else of the package.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

__all__ = [
    "ACTIVATIONS",
    "BACKBONES",
    "DATASETS",
    "ESTIMATORS",
    "FORMATS",
    "KERNELS",
    "LOSSES",
    "METRICS",
    "MODELS",
    "MODULES",
    "PREFILTERS",
    "SOLVERS",
    "WAV2SPEC",
    "Registry",
    "entries_of_users",
    "register_again",
]

Entry = TypeVar("Entry")
Registered = TypeVar("Registered")

_PACKAGE = __name__.split(".")[0]
_REGISTRIES: list[Registry[Any]] = []


class Registry(Generic[Entry]):
    """A table of named classes or functions that imports the files which fill it.

    Parameters
    ----------
    what : str
        What the entries are, as error messages name them: ``"front-end"``.
    *packages : str
        Packages whose module files (not their subpackages) register entries. They are imported at the first
        look-up that needs them.

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

    def __init__(self, what: str, *packages: str) -> None:
        self.what = what
        self.packages = packages
        self._entries: dict[str, Entry] = {}
        self._lock = threading.RLock()
        self._scan_is_due = bool(packages)
        _REGISTRIES.append(self)

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that registers a class or function as ``name`` (stored in lower case)."""
        key = name.lower()
        if sys._getframe(1).f_globals.get("__name__", "").split(".")[0] != _PACKAGE:
            self._scan()  # a user's entry may not take a name of ours whose file is not imported yet

        def add(entry: Registered) -> Registered:
            known = self._entries.get(key)
            if known is not None and known is not entry and _definition(known) != _definition(entry):
                raise ValueError(f"{self.what} {name!r} is already taken by {known!r}; choose another name")
            self._entries[key] = entry  # type: ignore[assignment]
            return entry

        return add

    def get(self, name: str, *, hint: str = "") -> Entry:
        """Return the entry called ``name`` (any case); ``hint`` ends the error: what else is legal."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a {self.what} is a string, got {type(name).__name__}")
        if name in self:
            return self._entries[name.lower()]
        legal = ", ".join(repr(known) for known in self.names())
        near = difflib.get_close_matches(name.lower(), self.names(), n=1)
        guess = f". Did you mean {near[0]!r}?" if near else ""
        more = f"{'' if near else '.'} {hint}" if hint else ""
        raise ValueError(f"unknown {self.what} {name!r}; legal names: {legal}{guess}{more}")

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        self._scan()
        return sorted(self._entries)

    def items(self) -> list[tuple[str, Entry]]:
        """Return (name, entry) pairs in alphabetical order."""
        return [(name, self._entries[name]) for name in self.names()]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name.lower() not in self._entries:
            self._scan()
        return name.lower() in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def _scan(self) -> None:
        """Import every module file of the packages, once; look-ups during the scan see what is there."""
        with self._lock:
            if not self._scan_is_due:
                return
            self._scan_is_due = False
            try:
                for package in self.packages:
                    folders = importlib.import_module(package).__path__
                    for module in pkgutil.iter_modules(folders, f"{package}."):
                        if not module.ispkg:
                            _import(module.name, self.what)
            except BaseException:
                self._scan_is_due = True
                raise


def entries_of_users() -> list[tuple[str, str, Any]]:
    """Entries that are not of this package, to be registered in another process: (what, name, entry)."""
    return [
        (registry.what, name, entry)
        for registry in _REGISTRIES
        for name, entry in registry._entries.items()
        if str(getattr(entry, "__module__", _PACKAGE)).partition(".")[0] != _PACKAGE
    ]


def register_again(what: str, name: str, entry: Any) -> None:
    """Register an entry of `entries_of_users` in this process, where the last one of a name counts."""
    next(registry for registry in _REGISTRIES if registry.what == what)._entries[name] = entry


def _import(module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        spec = importlib.util.find_spec(module)
        raise ImportError(
            f"{spec.origin if spec else module} cannot be imported, so the names of every {what} are not "
            f"known: {type(error).__name__}: {error}",
            name=module,
        ) from error


def _definition(entry: object) -> tuple[str, str] | None:
    """Where a class or function is defined; a module that is run again (autoreload) may register it anew."""
    module, name = getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
    return None if module is None or name is None or "<locals>" in name else (module, name)


#: Encoding models, by command-line name.
MODELS: Registry[type] = Registry("model", "deepSTRF.models.audio")
#: Waveform front-ends, by factory name; built as ``cls(audio_fs=, hop_ms=, **options)``.
WAV2SPEC: Registry[type] = Registry("front-end", "deepSTRF.models.wav2spec")
#: Sequence models, by the name that ``StateNet(rnn_type=...)`` takes.
BACKBONES: Registry[type] = Registry("backbone", "deepSTRF.models.backbones")
#: Prefilters, built as ``factory(n_frequency_bands=, **options)``.
PREFILTERS: Registry[Callable[..., Any]] = Registry(
    "prefilter", "deepSTRF.models", "deepSTRF.models.wav2spec"
)
#: Parameterised kernels of receptive fields, built as ``cls(F=, T=, C_in=, C_out=, **options)``.
KERNELS: Registry[Callable[..., Any]] = Registry("kernel", "deepSTRF.models")
#: Output nonlinearities, built as ``cls(num_features)``.
ACTIVATIONS: Registry[Callable[..., Any]] = Registry("output activation", "deepSTRF.models")
#: Every module class that a checkpoint may name, by class name (models, front-ends, readouts, ...).
MODULES: Registry[type] = Registry(
    "module class",
    "deepSTRF.models",
    "deepSTRF.models.audio",
    "deepSTRF.models.wav2spec",
    "deepSTRF.models.backbones",
)
#: Recordings, by command-line name.
DATASETS: Registry[type] = Registry("dataset", "deepSTRF.datasets.audio")
#: File formats of recordings, by the name that ``open_recording(format=...)`` takes.
FORMATS: Registry[Any] = Registry("recording format", "deepSTRF.datasets.audio")
#: Losses, by the name that ``loss=`` of a fit takes.
LOSSES: Registry[Callable[..., Any]] = Registry("loss", "deepSTRF.metrics")
#: Scores of predictions, by column name: subclasses of `deepSTRF.metrics.Metric`.
METRICS: Registry[Any] = Registry("metric", "deepSTRF.metrics")
#: Fits in closed form, by the name that stands in a model's place.
SOLVERS: Registry[Callable[..., Any]] = Registry("closed-form fit", "deepSTRF.baselines")
#: Kinds of estimators that `deepSTRF.crossval.cross_validate` takes beside solvers and functions, by the name
#: of their class; ``entry(given)`` returns a `deepSTRF.crossval.estimators.Estimator`.
ESTIMATORS: Registry[Callable[[Any], Any]] = Registry("kind of estimator", "deepSTRF.experiments")
