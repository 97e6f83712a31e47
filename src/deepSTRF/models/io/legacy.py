"""Weights of public checkpoints, which have other names and units than ours, into our models.

Most names agree. What differs: the Transformer's and StateNet's layers lie in our ``core``; ICNet's decoder
was stored twice; buffers that follow from the constructor's arguments are not stored here; and the learned
front-ends kept hertz, radians per sample and raw softplus values where ours keep shifts without units
(docs/checkpoints.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.models.audio.icnet import ICNet, convert_icnet_state
from deepSTRF.models.audio.statenet import StateNet, convert_statenet_state
from deepSTRF.models.audio.transformer import Transformer
from deepSTRF.models.kernels import ParametricSTRF
from deepSTRF.models.wav2spec.leaf import CausalLEAF
from deepSTRF.models.wav2spec.sincnet import SincNet

__all__ = ["convert_public_state", "load_public_state_dict"]

Model = TypeVar("Model", bound=nn.Module)
State = dict[str, Tensor]

#: Buffers of public front-ends that follow from their arguments, below ``wav2spec.``.
_DERIVED = ("_n", "_window", "_mel_fb", "_fc", "_kernels")
#: Shifts of our front-ends are searched between plus and minus this (their limits are reached before).
_FARTHEST_SHIFT = 1e4
#: Halvings of that range: down to rounding in float64.
_HALVINGS = 90
#: Largest relative error of a converted value; float32 has 6e-8.
_TOLERANCE = 1e-6
#: Centre and width of a band at the edge of hearing depend on each other a little: solved in turns.
_TURNS = 4
#: Parameters of the public LEAF: the shift that holds each here, and what says its value in the same units.
_LEAF = {
    "center_freq_": ("center_shift", "center_freq_"),
    "gabor_sigma_raw": ("bandwidth_shift", "gabor_sigma"),
    "pool_sigma_raw": ("pooling_shift", "pool_sigma"),
    "pcen_alpha_raw": ("pcen.alpha_shift", "pcen.alpha"),
    "pcen_delta_raw": ("pcen.delta_shift", "pcen.delta"),
    "pcen_root_raw": ("pcen.root_shift", "pcen.root"),
    "pcen_s_logit": ("pcen.tau_shift", "pcen.tau_ms"),
}
#: Least values that the public LEAF lets act: radians per sample; samples, samples, exponent.
_LEAST_CENTER = 0.01
_LEAST = {"gabor_sigma_raw": 1.0, "pool_sigma_raw": 0.5, "pcen_root_raw": 1e-3}


def load_public_state_dict(model: Model, state_dict: Mapping[str, Tensor]) -> Model:
    """Load the weights of a public checkpoint into a model of ours that was built for it.

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


def convert_public_state(model: nn.Module, state_dict: Mapping[str, Tensor]) -> State:
    """Rename and convert the tensors of a public checkpoint for ``model``, without loading them.

    Examples
    --------
    >>> from deepSTRF.models.audio import Transformer
    >>> list(convert_public_state(Transformer(34), {"tsfm.layers.0.norm1.bias": torch.zeros(48)}))
    ['core.tsfm.layers.0.norm1.bias']
    """
    wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise TypeError(f"a state dict holds tensors only; these are none: {', '.join(map(repr, wrong))}")
    state = dict(state_dict)
    if isinstance(model, ICNet):
        state = convert_icnet_state(state)
    elif isinstance(model, StateNet):
        state = convert_statenet_state(state)
    elif isinstance(model, Transformer):
        state = _convert_transformer(model, state)
    if not isinstance(getattr(model, "wav2spec", nn.Identity()), nn.Identity):
        for name in _DERIVED:
            state.pop(f"wav2spec.{name}", None)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, SincNet):
            state = _convert_sincnet(module, prefix, state)
        elif isinstance(module, CausalLEAF):
            state = _convert_leaf(module, prefix, state)
        elif isinstance(module, ParametricSTRF):
            _check_on_grid(module, prefix, state)
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


def _convert_transformer(model: Transformer, state: State) -> State:
    if "pos_encoding.div_term" in state and model.core.pos_encoding is None:
        raise ValueError(
            "the checkpoint was fitted with a sinusoidal position code: build the Transformer with "
            "positional='sinusoidal'"
        )
    return {
        f"core.{name}" if name.startswith(("patchify.", "tsfm.")) else name: tensor
        for name, tensor in state.items()
        if name != "pos_encoding.div_term"  # follows from the width
    }


def _convert_sincnet(module: SincNet, prefix: str, state: State) -> State:
    """Cutoffs in hertz to shifts of centre and width; as they are for ``parameterization="hertz"``."""
    raw = [f"{prefix}{name}" for name in ("low_hz_", "band_hz_")]
    if module.parameterization == "hertz" or not all(_is_per_band(state, name, module) for name in raw):
        return state
    low, band = (state[name].double().abs() for name in raw)
    nyquist = float(module.audio_fs) / 2.0
    f1 = low.clamp(1.0, nyquist - 1.0)  # the cutoffs that these values stood for
    f2 = (f1 + band).clamp_max(nyquist)
    twin = copy.deepcopy(module).double()
    for _ in range(_TURNS):
        _solve(twin.width_shift, lambda: twin.f2 - twin.f1, f2 - f1)
        _solve(twin.center_shift, lambda: twin.center_hz, (f1 + f2) / 2.0)
    hint = f'build it with parameterization="hertz", f_min={f1.min():g} and f_max={f2.max():g}'
    _check_reached(f"the lower cutoffs {raw[0]}", twin.f1, f1, hint)
    _check_reached(f"the bands {raw[1]}", twin.f2, f2, hint)
    return _replace(state, raw, prefix, {"center_shift": twin.center_shift, "width_shift": twin.width_shift})


def _convert_leaf(module: CausalLEAF, prefix: str, state: State) -> State:
    """Radians per sample, and samples and gain control behind a softplus, to shifts from our start."""
    twin = copy.deepcopy(module).double()
    found = {
        name: entry
        for name, entry in _LEAF.items()
        if _is_per_band(state, f"{prefix}{name}", module)
        and (twin.pcen is not None or not name.startswith("pcen_"))
    }
    for name, (shift, reading) in found.items():
        target = _leaf_value(name, state[f"{prefix}{name}"], twin.hop_ms)
        _solve(twin.get_parameter(shift), partial(attrgetter(reading), twin), target)
        hint = "it lies further from the start than learning may go here (bandwidth_range, limits of PCEN)"
        _check_reached(f"{prefix}{name}", attrgetter(reading)(twin), target, hint)
    ours = {shift: twin.get_parameter(shift) for shift, _ in found.values()}
    return _replace(state, [f"{prefix}{name}" for name in found], prefix, ours)


def _is_per_band(state: Mapping[str, Tensor], name: str, module: SincNet | CausalLEAF) -> bool:
    return name in state and state[name].shape == (module.n_filters,)


def _leaf_value(name: str, raw: Tensor, hop_ms: float) -> Tensor:
    """Return the quantity that a public LEAF parameter stands for, in the units of our reading."""
    value = raw.double()
    if name == "center_freq_":
        return value.clamp(_LEAST_CENTER, math.pi)
    if name == "pcen_s_logit":
        # a running mean that takes the share s of each frame forgets with exp(-hop / tau) = 1 - s
        return -hop_ms / functional.logsigmoid(-value)
    return functional.softplus(value).clamp_min(_LEAST.get(name, 0.0))


def _solve(parameter: nn.Parameter, read: Callable[[], Tensor], target: Tensor) -> None:
    """Set each element so that what ``read`` returns is ``target``: by halving, for any monotone reading."""
    with torch.no_grad():
        high = torch.full_like(parameter, _FARTHEST_SHIFT)
        low = -high
        rising = _read_at(parameter, high, read) > _read_at(parameter, low, read)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            too_low = (_read_at(parameter, middle, read) < target) == rising
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)


def _read_at(parameter: nn.Parameter, value: Tensor, read: Callable[[], Tensor]) -> Tensor:
    parameter.copy_(value)
    return read().clone()


def _check_reached(name: str, ours: Tensor, theirs: Tensor, hint: str) -> None:
    error = (ours.detach() - theirs).abs() / theirs.abs()
    bands = (error > _TOLERANCE).nonzero().flatten().tolist()
    if bands:
        raise ValueError(f"{name} cannot be held by our front-end in band(s) {bands}: {hint}")


def _replace(state: State, old: Iterable[str], prefix: str, new: Mapping[str, Tensor]) -> State:
    gone = set(old)
    kept = {name: value for name, value in state.items() if name not in gone}
    return kept | {f"{prefix}{name}": value.detach() for name, value in new.items()}


def _check_on_grid(module: ParametricSTRF, prefix: str, state: Mapping[str, Tensor]) -> None:
    """Public Gaussians beyond the edge were cut off; ours come back, so such a kernel would be another."""
    centres = state.get(f"{prefix}P")
    if centres is None or centres.shape != module.P.shape:
        return
    for axis, size in enumerate((module.F, module.T)):
        outside = int(((centres[axis] < 0) | (centres[axis] > size - 1)).sum())
        if outside:
            raise ValueError(
                f"{prefix}P has {outside} centre(s) outside 0 .. {size - 1}, where the public kernel was cut "
                "off and ours is mirrored; move them onto the grid, or rebuild the kernel as a full one"
            )
