"""Weights of public checkpoints, whose tensors have other names and units than ours.

A module whose public weights differ from its own defines ``convert_public_state(state, prefix)``, which
renames and converts its tensors in the state dict of a whole model (docs/checkpoints.md lists what changes);
`convert_public_state` calls it for every module. The learned front-ends kept hertz, radians per sample and
raw softplus values where ours keep shifts without units: `solve_shift` inverts the reading of a shift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "check_converted",
    "convert_public_state",
    "load_public_state_dict",
    "replace_tensors",
    "solve_shift",
]

Model = TypeVar("Model", bound=nn.Module)

#: Buffers of public front-ends that follow from their arguments, below ``wav2spec.``.
_DERIVED = ("_n", "_window", "_mel_fb", "_fc", "_kernels")
#: Shifts of our front-ends are searched between plus and minus this (their limits are reached before).
_FARTHEST_SHIFT = 1e4
#: Halvings of that range: down to rounding in float64.
_HALVINGS = 90
#: Largest relative error of a converted value; float32 has 6e-8.
_TOLERANCE = 1e-6


def load_public_state_dict(model: Model, state_dict: Mapping[str, Tensor]) -> Model:
    """Load the weights of a public checkpoint into a model that was built with its sizes.

    Parameters
    ----------
    model : nn.Module
        A model with the checkpoint's sizes, front-end, prefilter, kernel and activation.
    state_dict : mapping of str to Tensor
        The public tensors by their own names.

    Returns
    -------
    nn.Module
        ``model``, with the weights.

    Raises
    ------
    TypeError
        For values that are not tensors.
    ValueError
        When names or shapes do not fit, all of them listed; nothing is loaded then. Also for a value that the
        model cannot represent.

    Examples
    --------
    >>> from deepSTRF.models.audio import Transformer
    >>> model = Transformer(34, out_neurons=2)
    >>> public = {name.removeprefix("core."): value for name, value in model.state_dict().items()}
    >>> public["pos_encoding.div_term"] = torch.ones(24)
    >>> load_public_state_dict(model, public) is model
    True
    >>> load_public_state_dict(model, {"readout.fc.bias": torch.zeros(2)})
    Traceback (most recent call last):
        ...
    ValueError: the checkpoint does not fit Transformer: missing core.patchify.weight, core.patchify.bias...
    """
    converted = convert_public_state(model, state_dict)
    _check_fit(model, converted)
    model.load_state_dict(converted)
    return model


def convert_public_state(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and convert the tensors of a public checkpoint for ``model``, without loading them."""
    wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise TypeError(f"a state dict holds tensors only; these are none: {', '.join(map(repr, wrong))}")
    state = dict(state_dict)
    if not isinstance(getattr(model, "wav2spec", nn.Identity()), nn.Identity):
        for name in _DERIVED:
            state.pop(f"wav2spec.{name}", None)
    for name, module in model.named_modules():
        convert = getattr(module, "convert_public_state", None)
        if callable(convert):
            state = convert(state, f"{name}." if name else "")
    return state


def _check_fit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in ours if name not in theirs]
    unknown = [name for name in theirs if name not in ours]
    shapes = [
        f"{name} is {theirs[name]} and should be {shape}"
        for name, shape in ours.items()
        if theirs.get(name, shape) != shape
    ]
    faults = [
        f"{what} {', '.join(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("other shapes:", shapes))
        if names
    ]
    if faults:
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__}: {'; '.join(faults)}. Build the model with "
            "the checkpoint's sizes, front-end, prefilter, kernel and activation"
        )


def solve_shift(parameter: nn.Parameter, read: Callable[[], Tensor], target: Tensor) -> None:
    """Set each element so that ``read()``, monotone in it, returns ``target``: by bisection."""

    def read_at(value: Tensor) -> Tensor:
        parameter.copy_(value)
        return read().clone()

    with torch.no_grad():
        high = torch.full_like(parameter, _FARTHEST_SHIFT)
        low = -high
        rising = read_at(high) > read_at(low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            too_low = (read_at(middle) < target) == rising
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)


def check_converted(name: str, ours: Tensor, theirs: Tensor, hint: str) -> None:
    """Raise a ValueError that names the bands (F,) whose converted value is not the public one."""
    error = (ours.detach() - theirs).abs() / theirs.abs()
    bands = (error > _TOLERANCE).nonzero().flatten().tolist()
    if bands:
        raise ValueError(f"{name} cannot be held by our front-end in band(s) {bands}: {hint}")


def replace_tensors(
    state: Mapping[str, Tensor], old: Iterable[str], prefix: str, new: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the state without the names ``old`` and with the tensors ``new`` below ``prefix``."""
    gone = set(old)
    kept = {name: value for name, value in state.items() if name not in gone}
    return kept | {f"{prefix}{name}": value.detach() for name, value in new.items()}
