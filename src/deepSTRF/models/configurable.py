"""What modules share: recorded constructor arguments, exact constants, learning rates, device and dtype."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from deepSTRF._moved import refuse_keywords
from deepSTRF.registry import MODULES

__all__ = [
    "HALF_PRECISION",
    "Configurable",
    "ExactConstants",
    "ScaleFreeParameters",
    "TooLargeError",
    "bounded_build",
    "check_has_values",
    "designed_on_cpu",
    "first_parameter",
    "placement",
]

#: Precisions in which sums over time, powers and logarithms lose too much: those are computed in float32.
HALF_PRECISION = (torch.float16, torch.bfloat16)

_Module = TypeVar("_Module", bound=nn.Module)
_Arguments = ParamSpec("_Arguments")
_PACKAGE = __name__.split(".")[0]


class Configurable:
    """Mixin that records the constructor arguments of an ``nn.Module``, so that a checkpoint can rebuild it.

    It works for every subclass, with or without an ``__init__`` of its own. Classes of this package are
    registered by name (`deepSTRF.registry.MODULES`); a user's class is named when its checkpoint is loaded:
    ``from_pretrained(..., modules={"MyModule": MyModule})``.

    Attributes
    ----------
    init_arguments : dict
        Constructor arguments by name, defaults included.

    Examples
    --------
    >>> class Scale(nn.Module, Configurable):
    ...     def __init__(self, factor, offset=0.0):
    ...         super().__init__()
    >>> class SameScale(Scale): ...
    >>> SameScale(2.0).init_arguments
    {'factor': 2.0, 'offset': 0.0}
    """

    _init_arguments: dict[str, Any] | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register classes of this package as rebuildable."""
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == _PACKAGE:
            MODULES.register(cls.__name__)(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create the instance and note its constructor arguments before ``__init__`` sees them."""
        instance = super().__new__(cls)
        # object.__setattr__, because nn.Module.__setattr__ needs nn.Module.__init__ first
        object.__setattr__(instance, "_init_arguments", _bind(cls, instance, args, kwargs))
        return instance

    @property
    def init_arguments(self) -> dict[str, Any]:
        """Constructor arguments by name, defaults included; modules are those in use."""
        return dict(self._init_arguments or {})


def _bind(
    cls: type, instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the arguments by name, or None when they do not fit (``__init__`` then raises)."""
    try:
        bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)  # type: ignore[misc]
    except TypeError:
        refuse_keywords(cls.__name__, kwargs)
        for name in ("lags", "lags_ms"):
            if name in kwargs and name not in inspect.signature(cls.__init__).parameters:  # type: ignore[misc]
                raise TypeError(
                    f"{cls.__name__} takes no {name}: lags that begin after the current frame, or before "
                    "it, are for Linear(..., lags_ms=(-100, 400), dt_ms=dt) and fit_ridge(..., "
                    "lags_ms=(-100, 400))"
                ) from None
        return None  # a wrong call, or a copy or unpickling, which restores the arguments afterwards
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update({key: _freeze(item) for key, item in value.items()})
        elif kind is not inspect.Parameter.VAR_POSITIONAL or value:
            arguments[name] = _freeze(value)
    return arguments


def _freeze(value: Any) -> Any:
    """Copy plain containers, which the caller may change later; keep modules."""
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_freeze(item) for item in value)
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, str | int | float | type(None)):
        return value
    try:
        return copy.copy(value)
    except TypeError:  # nothing that a module can be built from: its constructor says so
        return value


class ExactConstants(nn.Module):
    """Module whose constants are built once in float64 and rounded to the precision of the module.

    ``.double()`` rounds the float64 original again, where a float32 buffer would keep 7 digits. The constants
    follow ``.to(device)``; the constructor arguments determine them, so no ``state_dict`` holds them, and
    whatever empties them (``to_empty``, a load into a module on the meta device) has them written anew.
    """

    #: Whether constants stay in float32 in a module made half precise, as its computation does.
    float32_at_least = False

    _exact: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._exact = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Keep ``value`` (float64 or integers, CPU) and register its rounded form as the buffer ``name``."""
        floating = value.is_floating_point()
        self._exact[name] = value.detach().to("cpu", torch.float64 if floating else torch.int64)
        rounded = self._exact[name].to(torch.get_default_dtype() if floating else torch.int64, copy=True)
        self.register_buffer(name, rounded, persistent=False)

    def _write_constants(self, from_meta_to: torch.device | None = None) -> None:
        """Write all constants anew, where their buffers are (or, from the meta device, to another)."""
        for name, exact in self._exact.items():
            held = self._buffers[name]
            if held is not None:
                where = from_meta_to if from_meta_to is not None and held.is_meta else held.device
                half = self.float32_at_least and held.dtype in HALF_PRECISION
                self._buffers[name] = exact.to(torch.float32 if half else held.dtype).to(where, copy=True)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._write_constants()
        return module

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        assigned = local_metadata.get("assign_to_params_buffers", False)
        devices = (value.device for value in state_dict.values() if isinstance(value, Tensor))
        self._write_constants(next(devices, torch.device("cpu")) if assigned else None)


def designed_on_cpu(
    design: Callable[Concatenate[_Module, _Arguments], None],
) -> Callable[Concatenate[_Module, _Arguments], None]:
    """Decorator of the part of a constructor that computes constants: on the CPU, then moved.

    Under ``with torch.device("meta")`` (or a GPU) filters are designed all the same.
    """

    @functools.wraps(design)
    def run(self: _Module, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        destination = torch.get_default_device()
        with torch.device("cpu"):
            design(self, *args, **kwargs)
        if destination.type != "cpu":
            self.to(destination)

    return run


#: Calls that make a tensor of given sizes, which are the first argument or all of them; and others.
_OF_SIZES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)
_OF_RANGES = (torch.arange, torch.linspace, torch.logspace, torch.eye)


class TooLargeError(ValueError):
    """A module would have more values, or more parts, than a bound."""


#: Draws in place; below so many values, they cost nothing and go on consuming the random numbers they did.
_MANY_VALUES = 1_000_000
_RANDOM = (
    torch.Tensor.uniform_, torch.Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.trunc_normal_,
)  # fmt: skip


class _CountingValues(TorchFunctionMode):
    """Refuses the call that would bring the values of all tensors made inside above a bound."""

    def __init__(self, most: int, draws: bool) -> None:
        super().__init__()
        self.most, self.made, self.draws = most, 0, draws

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in _RANDOM and not self.draws:
            tensor = args[0] if args else options["tensor"]
            if tensor.numel() >= _MANY_VALUES:
                tensor.detach().zero_()
                return tensor
        if func in _OF_SIZES:
            sizes = options.get("size", args if func is not torch.full else args[:1])
            sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
            self._add(math.prod(size for size in sizes if isinstance(size, int)))
        elif func in _OF_RANGES:
            self._add(func(*args, **{**options, "device": "meta"}).numel())
        elif func is torch.Tensor.repeat:
            repeats = args[1] if isinstance(args[1], tuple | list) else args[1:]
            self._add(args[0].numel() * math.prod(repeats))
        return func(*args, **options)

    def _add(self, values: int) -> None:
        self.made += values
        if self.made > self.most:
            raise TooLargeError(f"its tensors have more than {self.most:,} values")


@contextlib.contextmanager
def bounded_build(most_values: int, most_parts: int, *, draws: bool = True) -> Iterator[None]:
    """Raise `TooLargeError` in a constructor before it makes more values, or parts (modules), than a bound.

    Sizes that come from a file or a command line may be absurd: they are refused before they are allocated,
    or fill the memory with a loop. Only modules that are made in this thread count. Without ``draws``, large
    tensors start at zero: where weights replace all of them, drawing is most of the time of a load.
    """
    thread, n_parts = threading.get_ident(), itertools.count(1)

    def count(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        if threading.get_ident() == thread and next(n_parts) > most_parts:
            raise TooLargeError(f"it has more than {most_parts:,} parts")

    hook = register_module_module_registration_hook(count)
    try:
        with _CountingValues(most_values, draws):
            yield
    finally:
        hook.remove()


class ScaleFreeParameters(nn.Module):
    """Mixin of modules whose parameters are shifts in units of their own range (channels, logs, log-odds).

    A shift of 1 is a large change, a readout weight a small number: such a module learns at
    ``learning_rate_factor`` times the rate of the model, and its shifts are never decayed towards the start.
    """

    learning_rate_factor: float = 10.0

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimiser groups of the trained parameters, for a model that learns at rate ``lr``."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            return []
        return [{"params": trained, "lr": lr * self.learning_rate_factor, "weight_decay": 0.0}]


def first_parameter(module: nn.Module) -> Tensor | None:
    """First floating-point parameter of a module; ``parameters()`` costs as much as a layer, per frame."""
    for value in module._parameters.values():
        if value is not None and value.is_floating_point():
            return value
    for part in module._modules.values():
        found = None if part is None else first_parameter(part)
        if found is not None:
            return found
    return None


def placement(
    module: nn.Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype: those given, else those of a module's first floating parameter or buffer."""
    where, kind = torch.device("cpu"), torch.get_default_dtype()
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            where, kind = tensor.device, tensor.dtype
            break
    return torch.device(device or where), dtype or kind


def check_has_values(module: nn.Module) -> None:
    """Raise ValueError for a module on the meta device, whose parameters have shapes only."""
    if any(tensor.is_meta for tensor in itertools.chain(module.parameters(), module.buffers())):
        raise ValueError(
            f"{type(module).__name__} is on the meta device, where parameters have no values: load them "
            "first, e.g. with NeuralModel.from_pretrained(folder)"
        )
