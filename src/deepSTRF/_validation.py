"""Checks of arguments that are shared: one function, and one text, per kind of mistake.

Each raises a ValueError, TypeError or IndexError that names the argument, what it was, and what is legal. The
decorator `checked` does so for the types of all arguments of a public call, by its annotations. PyTorch is
imported by the checks that need it: figures do without.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import importlib
import inspect
import math
import numbers
import os
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepSTRF._text import printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deepSTRF.protocols import DatasetLike

__all__ = [
    "LARGEST_COUNT",
    "MOST_LAYERS",
    "MOST_NAMED",
    "FloatArray",
    "NeuronSelection",
    "as_numbers",
    "ascending_frequencies",
    "check_choice",
    "check_device",
    "check_differentiable",
    "check_dropout",
    "check_dtype",
    "check_flag",
    "check_memory",
    "check_n_splits",
    "check_non_negative",
    "check_not_empty",
    "check_positive_int",
    "check_positive_number",
    "check_share",
    "check_tensor",
    "checked",
    "checked_but",
    "first_names",
    "memory_bytes",
    "neuron_indices",
    "outside_level",
    "polarity_channel",
    "to_tensor",
]

FloatArray: TypeAlias = NDArray[np.float64]
#: One neuron, several in any order (negative numbers count from the end), or None for all.
NeuronSelection: TypeAlias = "int | slice | Sequence[int] | Tensor | None"
#: So many names are listed before the rest is only counted.
MOST_NAMED = 8
#: No count of anything comes near this; a larger one would never end, or not fit the memory.
LARGEST_COUNT = 2**31 - 1
#: Layers and the like, which a constructor makes one by one.
MOST_LAYERS = 1_000
#: So many characters of a name are shown in a message.
LONGEST_SHOWN = 80
#: Where Linux states the memory limit of a container.
CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")
#: Up to so many frequencies are printed in an error.
MOST_PRINTED = 40

_Call = TypeVar("_Call", bound=Callable[..., Any])


# ---- all arguments of a public call


def checked(target: _Call) -> _Call:
    """Decorator of a public function, method or class: refuses arguments of types that annotations forbid.

    A value of a plain type (numbers, strings, containers, functions, classes, arrays) that an annotation
    does not admit is a TypeError that names the argument, before the call; an empty path is a ValueError.
    When the call fails with an error that names none, the arguments are compared once more, elements and
    documented shapes included. Objects of other classes pass, and so does every error that names its
    argument. Of a class, the constructor is checked.
    """
    return _checked(target, frozenset())


def checked_but(*names: str) -> Callable[[_Call], _Call]:
    """Decorator `checked` for a function that itself refuses wrong types of some arguments."""
    return lambda target: _checked(target, frozenset(names))


def _checked(target: _Call, own: frozenset[str], whole: bool = False) -> _Call:
    if isinstance(target, type):
        # the fields of a dataclass are not looked at again: their elements are, now
        target.__init__ = _checked(target.__init__, own, is_dataclass(target))  # type: ignore[misc]
        return target
    made: list[_Rules] = []

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():
            return target(*args, **kwargs)
        if not made:
            made.append(_Rules(target, own, whole))
        rules = made[0]
        if rules.paths:
            rules.check_paths(args, kwargs)
        for legal, value in zip(rules.positional, args):  # noqa: B905 - too many are Python's to refuse
            if type(value) not in legal:
                rules.check(args, {})
                break
        for name, value in kwargs.items():
            if type(value) not in rules.named.get(name, ()):
                rules.check((), {name: value})
        try:
            return target(*args, **kwargs)
        except Exception as error:
            rules.explain(error, args, kwargs)
            raise

    return call  # type: ignore[return-value]


#: So many types per parameter are remembered as legal.
_MOST_SEEN = 30


class _Rules:
    """Annotations of one function, and the types of arguments that they were found to admit."""

    def __init__(self, function: Callable[..., Any], own: frozenset[str], whole: bool) -> None:
        self.parameters = _Parameters(function)
        self.own, self.whole = own, whole
        self.named: dict[str, set[type]] = {name: set() for name in self.parameters.signature.parameters}
        self.positional = [self.named[name] for name in self.parameters.positional]
        self.paths = {name for name, hint in self.parameters.hints.items() if "Path" in str(hint)}

    def check_paths(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise a ValueError for an empty path, which would stand for the current folder."""
        for name, value in (*zip(self.parameters.positional, args), *kwargs.items()):  # noqa: B905 - as above
            empty = isinstance(value, str) and not value and name in self.paths
            if empty and self.parameters.defaults[name] != value:
                raise ValueError(f"{name} must name a file or folder, got ''; this folder is '.'")

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise a TypeError for an argument of a type that its annotation forbids."""
        given = [*zip(self.parameters.positional, args), *kwargs.items()]  # noqa: B905 - as above
        for name, value in given:
            deep = self.whole and not isinstance(value, Mapping)
            refusal = None if name in self.own else self.parameters.refusal(name, value, deep)
            if refusal is not None:
                raise TypeError(refusal)
            seen = self.named.get(name)
            if seen is not None and len(seen) < _MOST_SEEN and self.parameters.by_type(name, value, deep):
                seen.add(type(value))

    def explain(self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise an error that names the argument at fault, where one is and the error names none."""
        own = type(error).__module__.startswith("deepSTRF")
        names = self.parameters.signature.parameters
        if own or isinstance(error, OSError | MemoryError | Warning) or _names_an_argument(error, names):
            return
        culprit = self.parameters.culprit(self.parameters.given(args, kwargs), error)
        if culprit is not None:
            kind = type(error) if type(error) in (ValueError, IndexError, KeyError) else TypeError
            raise kind(f"{culprit}: {error}") from error


def outside_level() -> int:
    """Return the ``stacklevel`` of a warning that points at the line of the user, outside of the package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("deepSTRF."):
        frame, level = frame.f_back, level + 1
    return level


# ---- numbers, choices, flags


def check_positive_int(name: str, value: object, most: int = LARGEST_COUNT) -> int:
    """Return ``value`` as a Python int from 1 to ``most`` (numpy integers welcome, booleans not)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of at least 1, got {value!r} ({type(value).__name__})")
    number = int(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    if number > most:
        found = number if number < 10**30 else f"a number of {number.bit_length()} bits"
        raise ValueError(f"{name} must be at most {most:,}, got {found}")
    return number


def check_positive_number(name: str, value: object) -> float:
    """Return ``value`` as a finite float above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number above 0, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {number}")
    return number


def check_non_negative(name: str, value: object) -> float:
    """Return a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number >= 0, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return number


def check_share(name: str, value: Any) -> float:
    """Return a number above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    return float(value)


def check_dropout(dropout: object) -> float:
    """Return a dropout probability as a float."""
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real):
        raise TypeError(f"dropout must be a number of at least 0 and below 1, got {dropout!r}")
    share = float(dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {share}")
    return share


def check_choice(name: str, value: object, legal: Sequence[str | None]) -> None:
    """Raise a ValueError that lists the legal values unless ``value`` is one of them."""
    if value not in legal:
        choices = ", ".join(repr(choice) for choice in legal)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` when it is a bool, else raise a TypeError that names the argument."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def memory_bytes() -> float:
    """Memory of this machine in bytes, or of the container; infinity where the system does not say."""
    try:
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip() if CONTAINER_LIMIT.is_file() else ""
    except (OSError, ValueError, AttributeError):  # no such function on Windows
        return math.inf
    return min(found, float(limit)) if limit.isdecimal() else found


def check_memory(needed: float, what: str) -> None:
    """Raise ValueError for what needs more bytes than this machine has; ``what`` names the arguments."""
    if needed > memory_bytes():
        raise ValueError(
            f"{what} would take {needed / 1e9:,.0f} GB of memory, and this machine has "
            f"{memory_bytes() / 1e9:,.0f} GB; choose less"
        )


# ---- arrays, tensors


def as_numbers(values: Any, name: str = "values") -> NDArray[np.float64]:
    """Return a tensor (on any device, with or without gradient) or anything array-like in float64."""
    if hasattr(values, "detach"):
        plain = values.detach().cpu()
        # .double() before .numpy(): NumPy has no bfloat16
        values = plain.resolve_conj().numpy() if plain.is_complex() else plain.double().numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64)
    except (ValueError, TypeError, RuntimeError):
        pass  # ragged lists: the error below
    raise ValueError(
        f"{name} must be a tensor or array of real numbers, of one shape throughout; got "
        f"{type(values).__name__}"
    )


def to_tensor(values: Any) -> Tensor:
    """Return a tensor of an array of any strides, byte order or writability, which torch itself refuses.

    Tensors, numbers and lists become what ``torch.as_tensor`` makes of them.
    """
    import torch

    if isinstance(values, list | tuple) and any(isinstance(value, np.ndarray) for value in values):
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufc":
        wide = values.dtype.itemsize > (16 if values.dtype.kind == "c" else 8)
        plain = np.dtype("c16" if values.dtype.kind == "c" else "f8") if wide else values.dtype
        # a reversed axis of length 1 counts as contiguous
        values = values.copy() if min(values.strides, default=0) < 0 else values
        values = np.require(values, plain.newbyteorder("="), ["C", "W"])
    return torch.as_tensor(values)


def ascending_frequencies(frequencies_hz: Any, n_bands: int) -> NDArray[np.float64]:
    """Return ascending centres (F,) of bands in Hz, as float64."""
    hertz = np.asarray([]) if frequencies_hz is None else as_numbers(frequencies_hz, "frequencies_hz")
    legal = hertz.shape == (n_bands,) and np.isfinite(hertz).all()
    if not legal or (np.diff(hertz) <= 0).any() or (hertz <= 0).any():
        numbers = ", ".join(f"{value:g}" for value in hertz.ravel()) if hertz.size <= MOST_PRINTED else ""
        raise ValueError(
            f"frequencies_hz must be {n_bands} ascending positive numbers, one per band, got shape "
            f"{hertz.shape}{': ' if numbers else ''}{numbers}; datasets and front-ends have them as "
            ".frequencies_hz"
        )
    return hertz


def check_tensor(x: object) -> None:
    """Raise a TypeError unless a stimulus is a tensor."""
    from torch import Tensor

    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a Tensor, got {type(x).__name__}: torch.as_tensor(x, dtype=torch.float32) makes one"
        )


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Raise a TypeError unless a stimulus has the model's precision (under autocast layers convert)."""
    import torch

    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"the stimulus is {x.dtype} and the model {dtype}: pass x.to({dtype})"
            + (", or call model.double() first" if x.dtype == torch.float64 else "")
        )


def check_differentiable(y: Tensor) -> None:
    """Raise a ValueError for a prediction that carries no gradient."""
    if not y.requires_grad:
        raise ValueError(
            "the prediction carries no gradient back to the stimulus: something in the model detaches it, "
            "works under torch.no_grad(), or leaves torch (numpy)"
        )


# ---- neurons, recordings and devices


def neuron_indices(
    neurons: NeuronSelection,
    n_neurons: int,
    *,
    name: str = "neurons",
    what: str = "neuron",
    owner: str = "model",
) -> list[int]:
    """Return which of N neurons (or other items of an owner, by the argument ``name``) are meant, from 0."""
    if neurons is None:
        return list(range(n_neurons))
    if isinstance(neurons, slice):
        return list(range(n_neurons))[neurons]
    named = _as_list(neurons)
    if named is None or any(isinstance(n, bool) or not isinstance(n, numbers.Integral) for n in named):
        raise TypeError(
            f"{name} must be an integer, a slice, a sequence of integers or None, got {neurons!r}"
        )
    for n in named:
        if not -n_neurons <= n < n_neurons:
            raise IndexError(f"there is no {what} {n}: the {owner} has {n_neurons} (0 to {n_neurons - 1})")
    return [int(n) % n_neurons for n in named]


def _as_list(neurons: Any) -> list[Any] | None:
    """Integers, arrays, tensors and sequences as a list; None for anything else."""
    if isinstance(neurons, numbers.Integral):
        return [neurons]
    if hasattr(neurons, "tolist"):  # arrays and tensors of any library
        neurons = neurons.tolist()
    if isinstance(neurons, int):  # an array without axes
        return [neurons]
    return list(neurons) if isinstance(neurons, Sequence) and not isinstance(neurons, str) else None


def polarity_channel(polarity: str | int, n_channels: int) -> int:
    """Return the channel of an ON/OFF prefilter: ``"ON"`` (any case) or 0, ``"OFF"`` or 1."""
    channel = {"on": 0, "off": 1}.get(polarity.lower()) if isinstance(polarity, str) else int(polarity)
    if channel is None or not 0 <= channel < n_channels:
        raise ValueError(
            f"polarity must be None, 'ON' (0) or 'OFF' (1) and these receptive fields have {n_channels} "
            f"channel(s); got {polarity!r}"
        )
    return channel


def check_not_empty(name: str, dataset: DatasetLike) -> None:
    """Raise ValueError for a recording without neurons, whose clips nobody heard, or without clips."""
    if dataset.N_neurons == 0:
        raise ValueError(
            f"{name} has no neurons (and clips that no neuron heard are left out); check the selection: "
            "select(neurons=None) takes all"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} has no clips; check the split or the selection")


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that this machine has."""
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be like 'cpu', 'cuda' or 'cuda:1', got {device!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r}, but PyTorch sees {torch.cuda.device_count()} CUDA device(s) here; use "
            "device='cpu', or install a CUDA build of PyTorch"
        )
    if found.type not in ("cpu", "cuda", "mps", "meta"):
        try:
            torch.empty(0, device=found)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ValueError(f"device={device!r} is not usable here ({error}); use device='cpu'") from error
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but PyTorch sees no Apple GPU here; use device='cpu'")
    return found


def first_names(names: Sequence[str]) -> str:
    """Return the first few names of a list in one line, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(printable(name, longest=LONGEST_SHOWN) for name in names[:MOST_NAMED]) + more


def check_n_splits(n_splits: int) -> None:
    """Raise ValueError unless there is at least one half-split."""
    if n_splits < 1:
        raise ValueError(f"n_splits is a whole number >= 1, got {n_splits!r}; the default is 126")


# ---- what the annotations of a function admit: the rules behind `checked`

#: A value is printed with at most so many characters.
_LONGEST = 80
#: So many elements of a sequence are looked at.
_MOST_ELEMENTS = 1000
#: Types by which nobody means an object that behaves like something else.
_PLAIN = (
    int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice, type,
    type(None), types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.GeneratorType,
    pathlib.PurePath,
)  # fmt: skip


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_plain(value: object) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor | torch.device | torch.dtype):
        return True
    return isinstance(value, _PLAIN) or type(value) is object or isinstance(value, np.ndarray)


def _n_values(value: Any) -> int:
    """Number of elements of an array or tensor."""
    return int(value.numel()) if _is_tensor(value) else int(value.size)


def _described(value: Any) -> str:
    """A value in an error: short, with its type; arrays by dtype and shape."""
    if _is_tensor(value) or isinstance(value, np.ndarray):
        kind = "tensor" if _is_tensor(value) else "array"
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'an' if dtype[0] in 'aeiou' else 'a'} {dtype} {kind} of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - a broken repr must not hide the error
        text = "an object"
    return f"{text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'} ({type(value).__name__})"


# ---- annotations, evaluated


class _Names(dict[str, Any]):
    """Names of annotations: those of a module, those it imports for type checkers only, and common ones."""

    def __init__(self, space: dict[str, Any]) -> None:
        super().__init__()
        self.space = space

    def __missing__(self, name: str) -> Any:
        for source in (self.space, vars(typing.cast(Any, sys.modules["builtins"]))):
            if name in source:
                return source[name]
        module = _typing_imports(self.space.get("__name__", "")).get(name)
        if module is not None:
            if module.split(".")[0] == __name__.split(".")[0]:
                importlib.import_module(module)
            if module in sys.modules:
                return getattr(sys.modules[module], name, Any)
            return type(
                name, (), {"__class_getitem__": classmethod(lambda cls, item: cls)}
            )  # not loaded here
        for common in (collections.abc, typing, pathlib, sys.modules.get("torch")):
            if common is not None and hasattr(common, name):
                return getattr(common, name)
        return Any


@functools.cache
def _typing_imports(module: str) -> dict[str, str]:
    """Name -> module of what a file imports under ``if TYPE_CHECKING``."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    guarded = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    imports = [one for node in guarded for one in node.body if isinstance(one, ast.ImportFrom) and one.module]
    return {alias.asname or alias.name: str(one.module) for one in imports for alias in one.names}


def _evaluated(hint: Any, space: dict[str, Any]) -> Any:
    """An annotation as an object; Any where it cannot be evaluated."""
    for _ in range(3):  # an alias may be a text itself
        if isinstance(hint, typing.ForwardRef):
            hint = hint.__forward_arg__
        if not isinstance(hint, str):
            return hint
        try:
            hint = eval(hint, {"__builtins__": {}}, _Names(space))  # the package's own annotations
        except Exception:  # noqa: BLE001 - an annotation for type checkers only
            return Any
    return Any


# ---- what an annotation admits


class _Annotations:
    """Whether a value fits an annotation.

    ``deep``: 0 by its outer type, 1 with elements and precision, 2 where arrays do not pass for tensors.
    """

    def __init__(self, space: dict[str, Any]) -> None:
        self.space = space

    def admits(self, hint: Any, value: Any, deep: int) -> bool:
        """Whether the annotation allows the value."""
        hint = _evaluated(hint, self.space)
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return any(self.admits(one, value, deep) for one in inner)
        if origin is typing.Annotated:
            return self.admits(inner[0], value, deep)
        if origin is typing.Literal:
            return value in inner if deep else any(self.admits(type(one), value, False) for one in inner)
        if isinstance(hint, typing.TypeVar):
            choices = hint.__constraints__ or ((hint.__bound__,) if hint.__bound__ is not None else ())
            return not choices or any(self.admits(one, value, deep) for one in choices)
        if isinstance(hint, typing.NewType):
            return self.admits(hint.__supertype__, value, deep)
        base = origin or hint
        if hint is None or base is type(None):
            return value is None
        if "ArrayLike" in str(hint) or "_SupportsArray" in str(hint):
            return self._array(value, deep) or (
                isinstance(value, int | float) and not isinstance(value, bool)
            )
        return self._class(base, inner, value, deep) if inspect.isclass(base) else True

    def _class(self, base: Any, inner: tuple[Any, ...], value: Any, deep: int) -> bool:
        if base in (object, Any):
            return True
        if base in (bool, int, float):
            return _number(base, value)
        if base is str:
            return isinstance(value, str) or not (_is_plain(value) or deep)
        if issubclass(base, os.PathLike):
            return isinstance(value, str | os.PathLike) or not (_is_plain(value) or deep)
        if issubclass(base, type):
            return isinstance(value, type)
        if base is collections.abc.Callable:
            return callable(value)
        if base.__name__ in ("Tensor", "ndarray"):
            strict = deep > 1 and base.__name__ == "Tensor" and not _is_tensor(value)
            return not strict and self._array(value, deep)
        if issubclass(base, collections.abc.Mapping) or typing.is_typeddict(base):
            return self._mapping(inner, value, deep)
        if issubclass(base, collections.abc.Iterable) and base.__module__ in ("collections.abc", "builtins"):
            return self._iterable(base, inner, value, deep)
        if issubclass(base, tuple):  # a named tuple
            return isinstance(value, tuple | list) or not _is_plain(value)
        if getattr(base, "_is_protocol", False):
            return not _is_plain(value) or _has_members(base, value)
        return not _is_plain(value) or isinstance(value, base)

    def _array(self, value: Any, deep: int) -> bool:
        """Arrays, tensors and lists; of real numbers where ``deep``."""
        if _is_tensor(value):
            return not deep or not value.is_complex()
        if isinstance(value, np.ndarray):
            return value.dtype.kind in "biuf" if deep else value.dtype.kind not in "SUmM"
        if isinstance(value, list | tuple | range):
            return not deep or _are_numbers(value)
        return not _is_plain(value)

    def _mapping(self, inner: tuple[Any, ...], value: Any, deep: int) -> bool:
        if not isinstance(value, Mapping):
            return not _is_plain(value) and not deep
        if not deep or len(inner) != 2:
            return True
        items = list(value.items())[:_MOST_ELEMENTS]
        return all(
            self.admits(inner[0], key, deep) and self.admits(inner[1], one, deep) for key, one in items
        )

    def _iterable(self, base: type, inner: tuple[Any, ...], value: Any, deep: int) -> bool:
        sequence = issubclass(base, collections.abc.Sequence)
        if isinstance(value, str | bytes | bytearray | types.ModuleType | type | slice) or value is None:
            return False
        if isinstance(value, dict):
            return not sequence
        if _is_tensor(value) or isinstance(value, np.ndarray):
            if value.ndim == 0 or not deep or not inner:
                return bool(value.ndim)
            return _n_values(value) == 0 or self.admits(inner[0], value[0], deep)
        if isinstance(value, set | frozenset | types.GeneratorType):
            return not (deep and sequence)
        if not isinstance(value, list | tuple | range):
            return not _is_plain(value) and not deep
        if not deep or not inner:
            return True
        if issubclass(base, tuple) and inner[-1] is not ...:
            return len(value) == len(inner) and all(
                self.admits(one, item, deep) for one, item in zip(inner, value, strict=True)
            )
        return all(self.admits(inner[0], item, deep) for item in value[:_MOST_ELEMENTS])

    def words(self, hint: Any) -> str:
        """An annotation in words."""
        hint = _evaluated(hint, self.space)
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if "ArrayLike" in str(hint) or "_SupportsArray" in str(hint):
            return "an array of numbers"
        if origin in (typing.Union, types.UnionType):
            return " or ".join(dict.fromkeys(self.words(one) for one in inner))
        if origin is typing.Literal:
            return " or ".join(repr(one) for one in inner)
        if isinstance(hint, typing.TypeVar):
            return " or ".join(self.words(one) for one in hint.__constraints__ or (hint.__bound__ or Any,))
        base: Any = origin or hint
        if hint is None or base is type(None):
            return "None"
        if base in _WORDS:
            return _WORDS[base]
        if base is collections.abc.Callable:
            return "callable"
        if not inspect.isclass(base) or base is Any:
            return "another object"
        if issubclass(base, os.PathLike):
            return "a path"
        if issubclass(base, collections.abc.Mapping) or typing.is_typeddict(base):
            return "a dictionary"
        if issubclass(base, tuple) and inner and inner[-1] is not ... and base is tuple:
            return f"({', '.join(self.words(one) for one in inner)})"
        if issubclass(base, collections.abc.Iterable) and base.__module__ in ("collections.abc", "builtins"):
            what = [one for one in inner if one not in (..., Any)][:1]
            return "a sequence" + "".join(f" of {self._plural(one)}" for one in what)
        name = _NAMES.get(base.__name__, base.__name__).replace("Tensor", "tensor")
        return name if " " in name else f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"

    def _plural(self, hint: Any) -> str:
        """The items of a sequence in words: "integers", "numbers or None"."""
        one, *more = self.words(hint).split(" or ")
        many = one.removeprefix("an ").removeprefix("a ")
        plural = many if one == many or " " in many or many.endswith("s") else many + "s"
        return " or ".join([plural, *more])


_WORDS: dict[type, str] = {
    int: "an integer", float: "a number", bool: "True or False", str: "a string", type: "a class",
    type(None): "None", object: "an object",
}  # fmt: skip

#: Names of classes as errors give them.
_NAMES = {"Any": "another object", "Module": "an nn.Module", "ndarray": "an array of numbers"}


def _number(base: type, value: Any) -> bool:
    """Whether a value serves as int, float or bool: NumPy's scalars and arrays of one value do."""
    if _is_tensor(value):
        whole = not value.is_floating_point() or base is not int
        return _n_values(value) == 1 and value.ndim <= 1 and not value.is_complex() and whole
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in ("biu" if base is int else "biuf")
    kind = type(value)
    if base is bool:
        return kind is bool or kind.__name__ in ("bool_", "bool") or (kind is int and value in (0, 1))
    if kind is bool or isinstance(value, complex) or kind.__name__ == "bool_":
        return False
    return hasattr(kind, "__index__") or (base is float and hasattr(kind, "__float__"))


def _are_numbers(values: Any) -> bool:
    """Whether nested lists hold nothing but numbers, arrays and tensors."""
    for value in values[:_MOST_ELEMENTS]:
        nested = isinstance(value, list | tuple | range)
        if nested and not _are_numbers(value):
            return False
        if not nested and (
            value is None or isinstance(value, complex) or not hasattr(type(value), "__float__")
        ):
            return False
    return True


def _has_members(protocol: type, value: object) -> bool:
    members = {name for one in protocol.__mro__ for name in getattr(one, "__protocol_attrs__", ())}
    members = members or {name for name in vars(protocol) if name == "__call__" or name[:1] != "_"}
    return all(hasattr(value, name) for name in members)


# ---- the parameters of one function


class _Parameters:
    """Names, annotations and documented shapes of one function's parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        bare: Any = inspect.unwrap(function)
        self.signature = inspect.signature(bare)
        self.function = bare
        self.rules = _Annotations(getattr(bare, "__globals__", {}))
        self.hints = {
            name: _evaluated(parameter.annotation, self.rules.space)
            for name, parameter in self.signature.parameters.items()
            if parameter.annotation is not parameter.empty
        }
        # the default is legal whatever the annotation says
        self.defaults = {name: one.default for name, one in self.signature.parameters.items()}

    @property
    def positional(self) -> list[str]:
        """Names of what may be passed by position, in order."""
        parameters = self.signature.parameters
        return [name for name, one in parameters.items() if one.kind <= one.POSITIONAL_OR_KEYWORD]

    def by_type(self, name: str, value: object, deep: int) -> bool:
        """Whether every value of this one's type is as legal for the parameter as this one is."""
        hint = self.hints.get(name)
        if hint is None:
            return name not in self.hints
        if isinstance(value, type) or not self.rules.admits(hint, value, deep=deep):
            return value is None  # a default that the annotation does not name
        if isinstance(value, int):  # 0 and 1 stand for a flag, other numbers do not
            return type(value) is bool or value not in (0, 1) or "bool" not in str(hint)
        if _is_tensor(value) or isinstance(value, np.ndarray):  # one value may stand for a number
            return _n_values(value) != 1
        return not (deep and isinstance(value, list | tuple | dict | set | frozenset))

    def refusal(self, name: str, value: object, deep: int = 0) -> str | None:
        """What is wrong with the type of an argument (``deep``: or of its elements), or None."""
        if name not in self.hints or value is self.defaults.get(name):
            return None
        if self.rules.admits(self.hints[name], value, deep):
            return None
        return f"{name} must be {self.rules.words(self.hints[name])}, got {_described(value)}"

    def culprit(self, arguments: Mapping[str, Any], error: BaseException) -> str | None:
        """The first argument that does not fit annotation and documentation, in a sentence; or None.

        Failing that, the one argument of the type that the error blames ("'float' object has no attribute").
        """
        documented = _documented(self.function)
        own = {name: one for name, one in arguments.items() if name not in ("self", "cls")}
        given = {name: value for name, value in own.items() if value is not self.defaults.get(name)}
        deep = 2 if isinstance(error, TypeError | AttributeError) else 1
        for name, value in given.items():
            if name in self.hints and not self.rules.admits(self.hints[name], value, deep):
                return f"{name} must be {self.rules.words(self.hints[name])}, got {_described(value)}"
            if name in documented and not _fits(documented[name], value):
                return f"{name} must be {documented[name]}, got {_described(value)}"
        blamed = [name for name, value in given.items() if _blames(error, value)]
        if len(blamed) != 1:
            return None
        legal = documented.get(blamed[0]) or self.rules.words(self.hints.get(blamed[0], Any))
        return f"{blamed[0]} must be {legal}, got {_described(given[blamed[0]])}"

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, ``*args`` and ``**kwargs`` left out; empty for a call that does not fit."""
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
        except TypeError:
            return {}
        loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {k: v for k, v in bound.items() if self.signature.parameters[k].kind not in loose}


def _blames(error: BaseException, value: object) -> bool:
    """Whether an error of Python, NumPy or PyTorch is about the type of a value."""
    kind = re.escape(type(value).__name__)
    phrases = (
        rf"'{kind}' object|type '{kind}'|not '?{kind}'?$|has type {kind}|type:? '?{kind}'?|dtype of {kind}"
    )
    return value is not None and re.search(phrases, str(error)) is not None


def _names_an_argument(error: BaseException, names: collections.abc.Iterable[str]) -> bool:
    """Whether the text of an error holds the name of a parameter as a word."""
    words = set(re.findall(r"\w+", str(error)))
    return any(name in words for name in names)


def _documented(function: Any) -> dict[str, str]:
    """Parameter -> type line of a numpydoc docstring (of the class, for a constructor)."""
    text = function.__doc__ or ""
    owner = function.__qualname__.rpartition(".")[0]
    if function.__name__ == "__init__" and "<locals>" not in owner:
        holder: Any = sys.modules.get(function.__module__)
        for part in owner.split("."):
            holder = getattr(holder, part, None)
        text = holder.__doc__ or "" if holder is not None else text
    section = re.search(r"\n *Parameters\n *-+\n(.*?)(?=\n *\w[\w ]*\n *---|\Z)", text, re.DOTALL)
    if section is None:
        return {}
    lines = inspect.cleandoc(section.group(1)).splitlines()
    found: dict[str, str] = {}
    for line in lines:
        head = re.match(r"(\*{0,2}\w+(?:, \w+)*) : (.+)", line)
        if head:
            found |= {name: head.group(2).split(", default")[0] for name in head.group(1).split(", ")}
    return found


def _fits(documented: str, value: Any) -> bool:
    """Whether a value fits the type line of a docstring: choices, number of axes, and a kind of array."""
    if value is None:
        return "None" in documented or "optional" in documented
    if isinstance(value, str) and documented.startswith("{"):
        choices = re.search(r"\{(.*?)\}", documented)
        return choices is not None and value in re.findall(r"[\"'](.*?)[\"']", choices.group(1))
    shapes = re.findall(r"\(((?:[\w. +*/-]+, *)*(?:[\w. +*/-]+)?,?)\)", documented.partition("shape")[2])
    loose = not shapes or "..." in documented or " or " in documented.partition("shape")[0]
    if _is_tensor(value) or isinstance(value, np.ndarray):
        numeric = not value.is_complex() if _is_tensor(value) else value.dtype.kind in "biuf"
        if not re.search(r"array|Tensor|shape", documented):
            return True
        axes = {len([one for one in shape.split(",") if one.strip()]) for shape in shapes}
        return numeric and (loose or value.ndim in axes)
    if re.match(r"(array|Tensor|numpy|ndarray)", documented) and not re.search(
        r" or |list|sequence", documented
    ):
        if isinstance(value, list | tuple):
            return _are_numbers(value)
        return not _is_plain(value) or type(value) in (int, float)
    return True
