"""Transfer of a fitted model to another population: what hears the sound is copied, the readout is new."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deepSTRF._validation import check_flag, check_positive_int
from deepSTRF.models.configurable import placement
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.io.encoding import decode, encode_module

__all__ = ["transfer_model"]

#: Parts that belong to the neurons; all others are shared by them.
OF_THE_NEURONS = ("readout", "output_scale")
#: Arguments of readouts' activations and kernels that hold the number of neurons.
SIZES = ("num_features", "C_out", "out_neurons")
#: Arguments of a model that make its readout, and may be modules built for its neurons.
READOUT_ARGUMENTS = ("output_activation", "kernel")


def transfer_model(model: Any, out_neurons: int, *, freeze: bool, output_activation: Any) -> Any:
    """Return a new model: all parts but the readout copied, the readout as its constructor makes it."""
    n = check_positive_int("out_neurons", out_neurons)
    check_flag("freeze", freeze)
    shared = {name: part for name, part in model._modules.items() if name not in OF_THE_NEURONS}
    _check_transferable(model, shared)
    name = type(model).__name__
    new = type(model)(**_arguments(model, shared, n, output_activation))
    copies = copy.deepcopy(shared)  # at once: parts that share a tensor go on sharing it
    for part, copied in copies.items():
        if copied is not None and _shapes(copied) != _shapes(new._modules[part]):
            raise ValueError(
                f"the part {part!r} of {name} has other sizes for {n} neurons: it belongs to the neurons, as "
                "only a readout may. Make it part of the readout"
            )
    device, dtype = placement(model.readout)
    new.to(device, dtype)
    new._modules.update(copies)
    if isinstance(getattr(model, "band_std", None), Tensor):
        new.band_std = model.band_std.clone()
    if isinstance(model.fitted_on, FittedOn):
        new.fitted_on = model.fitted_on.without_neurons()
    new.train()
    for copied in copies.values():
        if copied is not None:
            copied.requires_grad_(not freeze)
            copied.train(not freeze)
    return new


def _check_transferable(model: Any, shared: Mapping[str, nn.Module | None]) -> None:
    name = type(model).__name__
    if "out_neurons" not in model.init_arguments:
        raise TypeError(
            f"the constructor of {name} takes no out_neurons, so none can be built for another population: "
            "give it that argument"
        )
    own = [key for key, parameter in model._parameters.items() if parameter is not None]
    if own:
        raise TypeError(
            f"{name} keeps parameters outside of its parts ({', '.join(own)}), and nothing says whether they "
            "belong to the neurons: make them part of the core or of the readout"
        )
    if not any(True for part in shared.values() if part is not None for _ in part.parameters()):
        raise ValueError(
            f"this {name} has no core, and nothing in front of its readout was learned: there is nothing to "
            f"transfer. Build a new one, {name}(..., out_neurons=...), or fit_ridge(train, validation)"
        )


def _arguments(
    model: Any, shared: Mapping[str, nn.Module | None], n: int, output_activation: Any
) -> dict[str, Any]:
    """Constructor arguments for N neurons; parts that are given to it are copies, not those in use."""
    arguments = {key: copy.deepcopy(value) for key, value in model.init_arguments.items()}
    arguments["out_neurons"] = n
    if output_activation is not None:
        if "output_activation" not in arguments:
            raise TypeError(f"{type(model).__name__} takes no output_activation")
        arguments["output_activation"] = output_activation
    has_core = not isinstance(model.core, nn.Identity)  # then a kernel is the core's
    for key in READOUT_ARGUMENTS[: 1 if has_core else 2]:
        if isinstance(arguments.get(key), nn.Module) and arguments[key] is not output_activation:
            arguments[key] = _for_neurons(arguments[key], key, n)
    return arguments


def _for_neurons(part: nn.Module, key: str, n: int) -> nn.Module:
    """A part of a readout, built anew for N neurons."""
    classes = {type(inner).__name__: type(inner) for inner in part.modules()}
    with contextlib.suppress(TypeError, ValueError):
        return decode(_resized(encode_module(part, key), n), classes)  # type: ignore[no-any-return]
    if any(True for _ in part.parameters()):
        raise TypeError(
            f"{key} is a {type(part).__name__} with parameters, which does not say how it was built: derive "
            "it from (nn.Module, deepSTRF.models.Configurable), or pass transfer(..., output_activation=...)"
        )
    return copy.deepcopy(part)


def _resized(described: Any, n: int) -> Any:
    if isinstance(described, list):
        return [_resized(one, n) for one in described]
    if not isinstance(described, dict):
        return described
    return {key: n if key in SIZES else _resized(value, n) for key, value in described.items()}


def _shapes(part: nn.Module | None) -> dict[str, tuple[int, ...]]:
    tensors: Mapping[str, Tensor] = {} if part is None else part.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
