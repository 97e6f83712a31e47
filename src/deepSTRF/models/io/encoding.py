"""Constructor arguments to JSON and back.

A module is written as ``{"$module": class name, "kwargs": {...}}``, nested as deep as needed; classes of
``torch.nn`` are called ``"torch.nn.ReLU"``. Classes are looked up by name among those of this package
(`deepSTRF.registry.MODULES`), a list of ``torch.nn`` classes, and those that the caller gives; an unknown
name is an error, never an import.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF.models.configurable import Configurable
from deepSTRF.registry import MODULES

__all__ = ["UnknownClassError", "decode", "encode", "encode_module", "foreign_classes", "resolve_class"]

#: ``torch.nn`` classes that may sit inside a checkpoint. Their arguments are read from their attributes.
_TORCH_MODULES: dict[str, type[nn.Module]] = {
    f"torch.nn.{cls.__name__}": cls
    for cls in (
        nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
        nn.LogSigmoid, nn.Threshold, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.PReLU, nn.Dropout,
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d,
    )
}  # fmt: skip

_SEQUENTIAL = "torch.nn.Sequential"

#: Arguments of those classes that are no attributes: device and dtype (the weights have them), the start of
#: PReLU (the weights hold the value), and old spellings of Hardtanh's limits.
_NOT_ATTRIBUTES = {"device", "dtype", "init", "min_value", "max_value"}

#: Larger arrays belong in the weights, not in a text file.
_MAX_ARRAY_ELEMENTS = 1_000_000


def encode_module(module: nn.Module, where: str) -> dict[str, Any]:
    """Describe a module as ``{"$module": name, "kwargs": {...}}``."""
    name = type(module).__name__
    if isinstance(module, Configurable):
        if module._init_arguments is None:
            raise TypeError(
                f"{where} ({name}) does not know how it was built; create it by calling {name}(...)"
            )
        _check_name(module, where)
        return {
            "$module": name,
            "kwargs": {key: encode(value, f"{where}.{key}") for key, value in module.init_arguments.items()},
        }
    if type(module) is nn.Sequential:
        parts = {key: encode_module(part, f"{where}.{key}") for key, part in module.named_children()}
        return {"$module": _SEQUENTIAL, "kwargs": parts}
    if _TORCH_MODULES.get(f"torch.nn.{name}") is type(module):
        return {
            "$module": f"torch.nn.{name}",
            "kwargs": {k: encode(v, where) for k, v in _torch_arguments(module).items()},
        }
    raise TypeError(
        f"{where} is a {type(module).__module__}.{name}, which does not say how it was built. Derive it "
        "from (nn.Module, deepSTRF.models.Configurable) to make it part of a checkpoint"
    )


def _check_name(module: Configurable, where: str) -> None:
    """Refuse a user's class that is called like one of ours: it would be mistaken for it when loaded."""
    cls = type(module)
    if (
        cls.__name__ in MODULES
        and MODULES.get(cls.__name__) is not cls
        and MODULES.get(cls.__name__).__name__ == cls.__name__
    ):
        raise TypeError(
            f"{where} is a class of yours called {cls.__name__}, a name that deepSTRF uses itself; rename "
            "it before saving"
        )
    hidden = [key for key in module.init_arguments if key.startswith("_")]
    if hidden:
        raise TypeError(
            f"{where}: constructor arguments that start with an underscore cannot be saved: {hidden}"
        )


def _torch_arguments(module: nn.Module) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        free = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if name not in _NOT_ATTRIBUTES and not free:
            value = getattr(module, name)
            arguments[name] = value is not None if name == "bias" else value
    return arguments


def encode(value: Any, where: str) -> Any:
    """Turn one constructor argument into plain data for JSON."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, nn.Module):
        return encode_module(value, where)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else {"$float": repr(number)}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device | PurePath):
        return str(value)
    if isinstance(value, Tensor | np.ndarray):
        return _encode_array(value, where)
    if type(value) is list:
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(k, str) and not k.startswith("$") for k in value):
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"the argument {where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint "
        "cannot hold. Use numbers, strings, lists, dictionaries with string keys, arrays, or modules "
        "derived from (nn.Module, deepSTRF.models.Configurable)"
    )


def _encode_array(value: Any, where: str) -> dict[str, Any]:
    tensor = (
        value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    )
    if tensor.numel() > _MAX_ARRAY_ELEMENTS:
        raise TypeError(
            f"the argument {where} is an array of {tensor.numel()} values, too large for a configuration; "
            "keep it in a buffer or parameter"
        )
    values = encode(tensor.tolist(), where)
    kind = "$tensor" if isinstance(value, Tensor) else "$array"
    return {kind: values, "dtype": str(tensor.dtype).removeprefix("torch.")}


def decode(value: Any, modules: Mapping[str, type] | None = None) -> Any:
    """Turn plain data from `encode` back into the argument; modules are built anew."""
    if isinstance(value, list):
        return [decode(item, modules) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, modules) for key, item in value.items()}
    content = value[tag]
    if tag == "$module":
        if not isinstance(content, str) or not isinstance(value.get("kwargs", {}), dict):
            raise ValueError(f"a module is described as {str(value)[:100]}")
        arguments = {key: decode(item, modules) for key, item in value.get("kwargs", {}).items()}
        if content == _SEQUENTIAL:
            return nn.Sequential(OrderedDict(arguments))
        return resolve_class(content, modules)(**arguments)
    if tag == "$tuple":
        return tuple(decode(item, modules) for item in content)
    if tag == "$float":
        return float(content)
    if tag == "$dtype":
        return _dtype(content)
    if tag in ("$tensor", "$array"):
        tensor = torch.tensor(decode(content), dtype=_dtype(value["dtype"]))
        return tensor if tag == "$tensor" else tensor.numpy()
    raise ValueError(
        f"the configuration holds {tag!r}, which this version of deepSTRF does not know; upgrade deepSTRF"
    )


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if isinstance(dtype, torch.dtype):
        return dtype
    raise ValueError(f"unknown dtype {name!r} in the configuration")


class UnknownClassError(ValueError):
    """A class that a checkpoint names and that is neither of deepSTRF nor was given."""


def resolve_class(
    name: str, modules: Mapping[str, type] | None = None, where: object = "the checkpoint"
) -> type[Any]:
    """Return the class called ``name``; ``where`` is the file that names it."""
    if modules and name in modules:
        return modules[name]
    if name in _TORCH_MODULES:
        return _TORCH_MODULES[name]
    if name in MODULES and MODULES.get(name).__name__ == name:
        return MODULES.get(name)
    raise UnknownClassError(
        f"{where} names the class {name!r}, which deepSTRF does not know. If it is yours, pass it: "
        f'from_pretrained(..., modules={{"{name}": {name}}})'
    )


def foreign_classes(value: Any) -> list[str]:
    """Names of classes in plain data from `encode` that `resolve_class` does not know by itself."""
    if isinstance(value, list):
        inside = [name for item in value for name in foreign_classes(item)]
    elif isinstance(value, dict):
        name = value.get("$module")
        own = [name] if isinstance(name, str) and name != _SEQUENTIAL and not _is_known(name) else []
        inside = own + [found for item in value.values() for found in foreign_classes(item)]
    else:
        return []
    return list(dict.fromkeys(inside))


def _is_known(name: str) -> bool:
    try:
        resolve_class(name)
    except ValueError:
        return False
    return True
