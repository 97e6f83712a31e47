"""Modules that remember how they were built, so that a checkpoint can rebuild them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import nn

from deepSTRF.registry import MODULES

__all__ = ["Configurable"]

_PACKAGE = __name__.split(".")[0]


class Configurable:
    """Mixin that records the constructor arguments of an ``nn.Module``, defaults included.

    It works for every subclass, with or without an ``__init__`` of its own. Classes of this package are filed
    in the registry of rebuildable classes; a user's class is named when its checkpoint is loaded
    (``from_pretrained(..., modules={"MyModule": MyModule})``).

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
        """File classes of this package in the registry of rebuildable classes."""
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
        """Constructor arguments by name, defaults included; modules are the live ones."""
        return dict(self._init_arguments or {})


def _bind(
    cls: type, instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the arguments by name, or None when they do not fit (``__init__`` then says so itself)."""
    try:
        bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)  # type: ignore[misc]
    except TypeError:
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
    """Copy plain containers, so that a list changed later does not rewrite history; keep modules."""
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_freeze(item) for item in value)
    if isinstance(value, nn.Module):
        return value
    return value if isinstance(value, str | int | float | type(None)) else copy.copy(value)
