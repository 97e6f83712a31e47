"""Weights of public checkpoints, whose tensors have other names and units than ours.

A module whose public weights differ from its own defines ``convert_public_state(state, prefix)``, which
renames and converts its tensors in the state dict of a whole model (docs/checkpoints.md lists what changes);
`convert_public_state` calls it for every module. One that computes something else from the same quantities
says so in ``public_difference(stored)``, and is refused unless the caller means to fit it again. The learned
front-ends kept hertz, radians per sample and raw softplus values where ours keep shifts without units:
`solve_shift` inverts the reading of a shift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from deepSTRF._validation import checked

__all__ = [
    "check_converted",
    "check_fit",
    "convert_public_state",
    "load_public_state_dict",
    "replace_tensors",
    "solve_shift",
]

Model = TypeVar("Model", bound=nn.Module)

#: Part of a public tensor's name -> the argument that builds the module it belongs to.
_BUILT_BY = {
    "wav2spec.low_hz_": 'wav2spec=SincNet(..., rectify="abs", norm="unit")',
    "wav2spec.center_freq_": "wav2spec=CausalLEAF(...)",
    "wav2spec._mel_fb": "wav2spec=CausalMelSpectrogram(...)",
    "wav2spec._kernels": "wav2spec=CausalGammatone(...)",
    "wav2spec.a_coeffs": "wav2spec=Gammatonegram(...)",
    "prefiltering.d_on": 'prefiltering={"type": "adaptrans", "dt": dt_ms}',
    "prefiltering.a": 'prefiltering={"type": "icadaptation", "dt": dt_ms}',
    ".kernel.weight_f": 'kernel={"type": "separable"}',
    ".kernel.SIG": 'kernel={"type": "parametric", "num_gaussians": G}',
    "conv.10.": "DeepEncoder(F, n_hidden, N)",
    "conv.": 'Linear(F, T, N, norm="none")',
}
#: Shifts of our front-ends are searched between plus and minus this (their limits are reached before).
_FARTHEST_SHIFT = 1e4
#: Halvings of that range: down to rounding in float64.
_HALVINGS = 90
#: Largest relative error of a converted value; float32 has 6e-8.
_TOLERANCE = 1e-6


@checked
def load_public_state_dict(
    model: Model, state_dict: Mapping[str, Tensor], *, refit_required: bool = False
) -> Model:
    """Load the weights of a public checkpoint into a model that was built with its sizes.

    Read are checkpoints of the earlier package, and files ``model-*.pt`` of the dynamic STRF toolbox into
    `DeepEncoder` and ``Linear(..., norm="none")``.

    Parameters
    ----------
    model : nn.Module
        A model with the checkpoint's sizes, front-end, prefilter, kernel and activation.
    state_dict : mapping of str to Tensor
        The public tensors by their own names.
    refit_required : bool
        Load also where a part of ours computes something else from the same values (the gammatone and LEAF
        filters): a start for a new fit, no model to predict with.

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
        model cannot represent, and, without ``refit_required``, for a model that would predict something
        else; the text says why.

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
    converted = convert_public_state(model, state_dict, refit_required=refit_required)
    check_fit(model, converted)
    model.load_state_dict(converted)
    return model


def convert_public_state(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, refit_required: bool = False
) -> dict[str, Tensor]:
    """Rename and convert the tensors of a public checkpoint for ``model``, without loading them."""
    wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise TypeError(f"a state dict holds tensors only; these are none: {', '.join(map(repr, wrong))}")
    state = dict(state_dict)
    reasons: list[str] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        differ = getattr(module, "public_difference", None)
        convert = getattr(module, "convert_public_state", None)
        if callable(differ):
            stored = {
                key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
            }
            reasons += [f"{name}: {reason}" if name else reason for reason in differ(stored)]
        if callable(convert):
            state = convert(state, prefix)
    if reasons and not refit_required:
        check_fit(model, state)  # what does not fit at all comes first
        raise ValueError(
            f"with these weights {type(model).__name__} would not predict what the earlier model did. "
            f"{'; '.join(reasons)}. To load them as the start of a new fit give refit_required=True"
        )
    return state


def check_fit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that lists all names and shapes of converted tensors that do not fit."""
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
        parts = [how for part, how in _BUILT_BY.items() if any(part in f".{name}" for name in unknown)]
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__}: {'; '.join(faults)}. Build the model with "
            "the checkpoint's sizes, front-end, prefilter, kernel and activation"
            + (f"; such tensors belong to {', '.join(parts[:1])}" if parts else "")
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
    gone = list(old)
    kept = {name: value for name, value in state.items() if name not in gone}
    dtype = state[gone[0]].dtype if gone else torch.get_default_dtype()  # solved in float64, kept as it was
    return kept | {f"{prefix}{name}": value.detach().to(dtype) for name, value in new.items()}
