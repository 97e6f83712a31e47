"""The protocol of modules that run chunk by chunk: ``init_state`` and ``step``.

``init_state(batch)`` returns the state before the first frame: a plain tree (nested dictionaries of tensors)
of fixed shapes, in each of which one axis holds the streams of the batch one after another (`stream_axes`).
``step(chunk, state)`` takes one or more whole frames and returns the frames out and the next state; it
changes neither argument. In eval mode ``forward(x)`` equals ``step`` over any cut of ``x``. Streams, export,
long recordings and truncated back-propagation use it. A user's module without ``step`` works everywhere but
there, where an error names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from deepSTRF.models.fitted_on import bin_width_ms

__all__ = [
    "DType",
    "Device",
    "FramewiseMixin",
    "State",
    "StreamAxis",
    "Streamable",
    "algorithmic_latency_ms",
    "check_state",
    "init_slot_state",
    "is_streamable",
    "map_state",
    "merge_streams",
    "split_streams",
    "state_of",
    "state_tensors",
    "step_slot",
    "stream_axes",
]

#: A plain tree of tensors: dictionaries whose values are tensors or such dictionaries.
State: TypeAlias = dict[str, Any]
#: Where and in which precision a state is made; None is as the module.
Device: TypeAlias = torch.device | str | None
DType: TypeAlias = torch.dtype | None

#: Modules of ``torch.nn`` that act on every frame by itself, so that a stream needs no memory for them.
_FRAMEWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid,
    nn.Threshold, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.PReLU, nn.Dropout,
)  # fmt: skip


@runtime_checkable
class Streamable(Protocol):
    """Protocol of a module that runs chunk by chunk.

    Examples
    --------
    >>> from deepSTRF.models.kernels import CausalSTRFConv
    >>> isinstance(CausalSTRFConv(F=4, T=3, C_in=1, C_out=2), Streamable)
    True
    """

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame, for ``batch`` parallel streams.

        Parameters
        ----------
        batch : int
            Number of streams, B.
        device, dtype : optional
            Where and how; None is as the module.

        Returns
        -------
        dict
            A tree of tensors of fixed shapes.
        """
        ...

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Process the next frames.

        Parameters
        ----------
        chunk : Tensor
            One or more whole frames, (B, ..., n).
        state : dict
            From `init_state` or the previous step; it is not changed.

        Returns
        -------
        tuple
            The frames out and the next state.
        """
        ...


class FramewiseMixin:
    """``init_state`` and ``step`` of a module that treats every frame by itself and has no state.

    Examples
    --------
    >>> class Halve(FramewiseMixin, nn.Module):
    ...     def forward(self, x):
    ...         return x / 2
    >>> halve = Halve()
    >>> halve.step(torch.ones(1), halve.init_state(batch=1))
    (tensor([0.5000]), {})
    """

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return an empty state."""
        return {}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the module applied to the chunk, and the (empty) state."""
        return self(chunk), state  # type: ignore[operator]


def is_streamable(module: nn.Module) -> bool:
    """Whether a module (or every part of an ``nn.Sequential``) can run chunk by chunk."""
    if type(module) in _FRAMEWISE or _has_step(module):
        return True
    return type(module) is nn.Sequential and all(is_streamable(part) for part in module)


def init_slot_state(
    module: nn.Module, slot: str, batch: int, *, device: torch.device | str | None, dtype: torch.dtype | None
) -> State:
    """Start state of the module in ``slot``, the name that an error gives it."""
    if type(module) in _FRAMEWISE:
        return {}
    if _has_step(module):
        return module.init_state(batch, device=device, dtype=dtype)
    if type(module) is nn.Sequential:
        return {
            name: init_slot_state(part, f"{slot}.{name}", batch, device=device, dtype=dtype)
            for name, part in module.named_children()
        }
    raise TypeError(_no_step(module, slot))


def step_slot(module: nn.Module, slot: str, chunk: Tensor, state: State) -> tuple[Tensor, State]:
    """Run one chunk through the module in ``slot``; return the frames out and the next state."""
    if type(module) in _FRAMEWISE:
        return module(chunk), state
    if _has_step(module):
        return module.step(chunk, state)
    if type(module) is nn.Sequential:
        following: State = {}
        for name, part in module.named_children():
            chunk, following[name] = step_slot(part, f"{slot}.{name}", chunk, state[name])
        return chunk, following
    raise TypeError(_no_step(module, slot))


class StreamAxis(NamedTuple):
    """Where the streams of a batch lie in one tensor of a state."""

    #: Axis that grows with the batch.
    axis: int
    #: Entries of that axis per stream; those of one stream follow each other.
    entries: int


def stream_axes(module: Streamable) -> State:
    """Return a tree like the state of ``module``, with a `StreamAxis` in the place of each tensor."""
    return _stream_axes(module.init_state(2), module.init_state(3), "")


def split_streams(state: State, axes: State) -> State:
    """Return a state with the streams in front: every tensor is (B, ...), whatever its module made of it."""

    def split(place: StreamAxis, part: Tensor) -> Tensor:
        part = part.movedim(place.axis, 0)
        return part if place.entries == 1 else part.unflatten(0, (-1, place.entries))  # type: ignore[no-untyped-call]

    return map_state(split, axes, state)


def merge_streams(state: State, axes: State) -> State:
    """Return the state of the module from one with the streams in front: `split_streams` undone."""

    def merge(place: StreamAxis, part: Tensor) -> Tensor:
        return (part if place.entries == 1 else part.flatten(0, 1)).movedim(0, place.axis)

    return map_state(merge, axes, state)


def map_state(function: Callable[..., Tensor], form: State, *states: State) -> State:
    """Return the tree of ``function(leaf of form, tensor of each state)``; ``form`` says what there is."""
    return {
        name: map_state(function, leaf, *(state[name] for state in states))
        if isinstance(leaf, dict)
        else function(leaf, *(state[name] for state in states))
        for name, leaf in form.items()
    }


def state_tensors(state: State, path: str = "") -> dict[str, Tensor]:
    """Return the tensors of a state by their paths, ``"readout.strf.history"``."""
    found: dict[str, Tensor] = {}
    for name, part in state.items():
        found.update(state_tensors(part, f"{path}{name}.") if isinstance(part, dict) else {path + name: part})
    return found


def state_of(tensors: Mapping[str, Tensor], form: State, path: str = "") -> State:
    """Return the state of a form from its tensors by paths: `state_tensors` undone."""
    return {
        name: state_of(tensors, leaf, f"{path}{name}.") if isinstance(leaf, dict) else tensors[path + name]
        for name, leaf in form.items()
    }


def _stream_axes(two: State, three: State, path: str) -> State:
    axes: State = {}
    for name, part in two.items():
        if isinstance(part, dict):
            axes[name] = _stream_axes(part, three[name], f"{path}{name}.")
            continue
        sizes = list(zip(part.shape, three[name].shape, strict=True))
        grown = [axis for axis, (small, large) in enumerate(sizes) if small != large]
        if len(grown) != 1 or 3 * sizes[grown[0]][0] != 2 * sizes[grown[0]][1]:
            raise ValueError(
                f"one axis of {path}{name} must grow with the number of streams: {tuple(part.shape)} for "
                f"2 and {tuple(three[name].shape)} for 3: change init_state(batch) of that module"
            )
        axes[name] = StreamAxis(grown[0], sizes[grown[0]][0] // 2)
    return axes


def check_state(module: Streamable, state: Any) -> None:
    """Raise an error when a state lacks a part of what a module keeps between steps."""
    call = (
        "Start with state = model.init_state(batch), and give each step the state that the last one returned"
    )
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dictionary, got {type(state).__name__}. {call}")
    missing = list(_missing(module.init_state(1), state))
    if missing:
        raise ValueError(
            f"this state is not one of {type(module).__name__}: it lacks {', '.join(missing)}. {call}"
        )


def _missing(expected: State, state: Any, path: str = "") -> Iterator[str]:
    """Paths of the parts of one tree that another lacks, each at the first branch that is missing."""
    for name, part in expected.items():
        if not isinstance(state, dict) or name not in state:
            yield repr(path + name)
        elif isinstance(part, dict):
            yield from _missing(part, state[name], f"{path}{name}.")


def _has_step(module: object) -> TypeGuard[Streamable]:
    """``isinstance(module, Streamable)`` at a fraction of its cost, paid per slot and frame of a stream."""
    return callable(getattr(module, "step", None)) and callable(getattr(module, "init_state", None))


def _no_step(module: nn.Module, slot: str) -> str:
    return (
        f"the module in slot {slot!r} ({type(module).__name__}) cannot run chunk by chunk: it has no "
        "init_state(batch, *, device, dtype) and step(chunk, state). Add both to it, or call the model on "
        "whole clips"
    )


def algorithmic_latency_ms(model: Any) -> float:
    """How old sound is in ms, at most, when the rate that it moves can be there; NaN for unknown bins.

    One bin, which must be complete, the bins that the model looks ahead, and the delay of its front-end.
    """
    width = bin_width_ms(model)
    return math.nan if width is None else width * (1 + model.lookahead_frames) + float(model.latency_ms)
