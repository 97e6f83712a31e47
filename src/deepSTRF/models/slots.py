"""What may be put into a model's slots: a module, a dictionary that names one, or nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from deepSTRF.models.parametric import ParametricSTRF
from deepSTRF.models.separable import SeparableSTRF
from deepSTRF.registry import Registry

__all__ = ["KERNELS", "PREFILTERS", "resolve_slot"]

#: Parameterised kernels by name, built as ``cls(F=, T=, C_in=, C_out=, **options)``.
KERNELS: Registry[Any] = Registry("kernel")
KERNELS.register("separable")(SeparableSTRF)
KERNELS.register("parametric")(ParametricSTRF)
KERNELS.register("dcls")(ParametricSTRF)  # the name that the models page uses
#: Prefilters by name, built as ``factory(n_frequency_bands=, **options)``.
PREFILTERS: Registry[Any] = Registry("prefilter")


def resolve_slot(
    slot: str, given: nn.Module | Mapping[str, Any] | None, registry: Registry[Any], **sizes: Any
) -> nn.Module | None:
    """Turn what a user gave for a slot into a module.

    Parameters
    ----------
    slot : str
        Name of the constructor argument; also the dictionary key that names the class (``"type"`` works too).
    given : nn.Module, mapping or None
        A module is taken as it is, None stays None, ``{slot: name, **options}`` is looked up and built.
    registry : Registry
        Where names are looked up.
    **sizes
        Sizes that the model knows and passes on.

    Returns
    -------
    nn.Module or None
        What goes into the slot.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For a dictionary without a name, or with an unknown one, and for options that the class does not take
        or lacks; the text lists the legal ones.

    Examples
    --------
    >>> resolve_slot("kernel", nn.Identity(), KERNELS)
    Identity()
    """
    if given is None or isinstance(given, nn.Module):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{slot} must be an nn.Module, a dictionary or None, got {type(given).__name__}")
    options = dict(given)
    keys = [key for key in (slot, "type") if key in options]
    if len(keys) != 1:
        raise ValueError(
            f"a {slot} dictionary names its class under one key, {slot!r} or 'type', got the keys "
            f"{sorted(options)}"
        )
    name = options.pop(keys[0])
    if not len(registry):
        raise ValueError(
            f"no {registry.what} can be named yet, got {name!r}: pass an nn.Module to {slot}= instead"
        )
    build = registry.get(name)
    signature = inspect.signature(build)
    try:
        signature.bind(**sizes, **options)
    except TypeError as error:
        takes = ", ".join(key for key in signature.parameters if key not in sizes) or "nothing"
        raise ValueError(
            f"the {slot} dictionary does not fit {name!r}: {error}; besides its name it takes {takes}"
        ) from None
    return build(**sizes, **options)  # type: ignore[no-any-return]
