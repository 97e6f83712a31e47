"""A model and one clip, seen as a function of frames: what every way to a dynamic STRF starts from."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepSTRF.interpret.dynamic.chain import Link, chain_of
from deepSTRF.interpret.dynamic.stimuli import (
    check_finite,
    check_hears_sounds,
    frames_of,
    front_end_of,
    has_halves,
    mono,
    one_spectrogram,
    placed,
    samples_per_frame,
    sound_of,
)
from deepSTRF.models._checks import check_choice
from deepSTRF.models.causal import State, is_streamable
from deepSTRF.models.gradients import NoFrontEndError

__all__ = ["UNDECLARED", "Subject", "replaced_output", "submodule"]

#: The model says nothing about its receptive field (None would say: unbounded).
UNDECLARED = -1
#: Differences of slopes below this share of them are rounding.
ROUNDING = 1e-3


class Subject:
    """One clip of frames (1, 1, F, T) and the function that maps such frames to responses.

    Frames are bins of a spectrogram or, with ``wrt="samples"``, the hop of samples of each bin as F "bands",
    so that everything else need not know the difference.

    Parameters
    ----------
    model : nn.Module
        Maps (B, 1, F, T), or (B, 1, T_audio) through a front-end, to (B, N, 1, T).
    stimulus : Tensor
        One clip, with or without leading axes of size 1.
    wrt : {"spectrogram", "samples"}
        What to differentiate by.

    Raises
    ------
    ValueError
        When model and stimulus do not fit each other.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, out_neurons=3).eval(), torch.randn(8, 50), "spectrogram")
    >>> subject.frames.shape, subject.respond(subject.frames).shape
    (torch.Size([1, 1, 8, 50]), torch.Size([1, 3, 50]))
    """

    #: Axes that were laid on one another as the bands of the frames: (C, F) or (F,) of a part's output.
    tap_shape: tuple[int, ...] | None = None

    def __init__(self, model: nn.Module, stimulus: Tensor, wrt: str) -> None:
        check_choice("wrt", wrt, ("spectrogram", "samples"))
        self.model: Any = model
        self.samples = wrt == "samples"
        self.behind_front_end = front_end_of(model) is not None and not self.samples
        if self.samples:
            check_hears_sounds(model)
        if self.behind_front_end and not has_halves(model):
            raise NoFrontEndError(
                f"this {type(model).__name__} keeps a wav2spec but cannot run without it, as models with "
                "spectrogram() and respond() do: derive it from NeuralModel, or use wrt='samples'"
            )
        given = placed(model, stimulus)
        self.hop = samples_per_frame(model, mono(given)) if self.samples else 1
        self.frames = self._as_frames(given)
        self._output: Tensor | None = None
        check_finite(self.frames)

    def _as_frames(self, given: Tensor) -> Tensor:
        if self.samples:
            return frames_of(mono(given), self.hop)
        if self.behind_front_end and given.numel() == given.shape[-1]:
            with torch.no_grad():
                tapped: Tensor = self.model.spectrogram(mono(given))
            return tapped.detach()
        return one_spectrogram(given)

    def with_frames(self, frames: Tensor) -> Self:
        """Return the same model with other frames (1, 1, F, T)."""
        other = copy.copy(self)
        other.frames, other._output = frames, None
        return other

    def output(self) -> Tensor:
        """Return the responses (N, T) to the whole clip."""
        if self._output is None:
            with torch.no_grad():
                self._output = self.respond(self.frames)[0]
        return self._output

    # ------------------------------------------------------------------ the function

    def respond(self, frames: Tensor) -> Tensor:
        """Return responses (B, N, T) to frames (B, 1, F, T)."""
        if self.behind_front_end:
            y = self.model.respond(frames)
        elif self.samples:
            y = self.model(sound_of(frames))
        else:
            y = self.model(frames)
        return self._checked(y, frames)

    def init_state(self, batch: int) -> State:
        """Return the state before the first frame."""
        state: State = self.model.init_state(batch)
        return state

    def step(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return responses (B, N, T') to the next frames and the state after them."""
        if self.behind_front_end:
            y, following = self.model._step_response(frames, state)
            following = {**state, **following}
        else:
            y, following = self.model.step(sound_of(frames) if self.samples else frames, state)
        return self._checked(y, frames), following

    @property
    def streamable(self) -> bool:
        """Whether the model runs chunk by chunk with carried state."""
        if not is_streamable(self.model):
            return False
        try:
            self.init_state(1)
        except (TypeError, ValueError):  # a part without step, or one whose memory has no bound
            return False
        return True

    @property
    def declared_reach(self) -> int | None:
        """Frames that the model says a response depends on; None is unbounded."""
        if self.samples and front_end_of(self.model) is not None:
            return None  # the memory of a front-end in frames is not stated by anyone
        if not hasattr(self.model, "receptive_field"):
            return UNDECLARED
        declared = self.model.receptive_field
        return None if declared is None else _checked_reach(declared)

    def chain(self, skip: nn.Module | None = None) -> list[Link] | None:
        """Return the function as a chain of links, without one part; None where it is none."""
        if self.samples:
            return None  # a front-end is no chain of plain convolutions
        return chain_of(self.model, self.frames, skip)

    def _checked(self, y: Tensor, frames: Tensor) -> Tensor:
        batch, length = frames.shape[0], frames.shape[-1]
        if isinstance(y, Tensor) and y.ndim == 4 and y.shape[2] == 1:
            y = y[:, :, 0]
        if not isinstance(y, Tensor) or y.ndim != 3 or y.shape[0] != batch or y.shape[-1] != length:
            found = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            taken = f"({batch}, 1, {length * self.hop}) samples" if self.samples else (
                f"({batch}, 1, F, {length}) frames"
            )  # fmt: skip
            raise ValueError(
                f"the model must map {taken} to ({batch}, N, 1, {length}), it returned {found}; "
                "wrap a model of other shapes in an nn.Module that maps them"
            )
        return y


def _checked_reach(declared: Any) -> int:
    """What a model says of its receptive field, as a number of frames."""
    try:
        frames = float(declared) if not isinstance(declared, str | bool) else 0.0
    except (TypeError, ValueError):
        frames = 0.0
    if frames < 1 or not frames.is_integer():
        raise ValueError(
            f"model.receptive_field must be a number of frames, 1 or more, or None (without a bound), got "
            f"{declared!r}; delete the attribute to have it measured"
        )
    return int(frames)


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a model that a dotted name points to.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        As in ``model.named_modules()``.

    Returns
    -------
    nn.Module
        The part.

    Raises
    ------
    KeyError
        For a name without a part; the text lists the names.

    Examples
    --------
    >>> submodule(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), "1")
    ReLU()
    """
    parts: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in parts:
        raise KeyError(f"the model has no part {name!r}; its parts are {', '.join(p for p in parts if p)}")
    return parts[name]


@contextlib.contextmanager
def replaced_output(part: nn.Module, slope: bool = False) -> Iterator[None]:
    """Let a part return its input, or its slope at that input, instead of its output.

    Parameters
    ----------
    part : nn.Module
        An elementwise nonlinearity.
    slope : bool
        Whether to return the derivative of its output by its input, element by element.

    Yields
    ------
    None
        Nothing; the part is as before at the end.

    Raises
    ------
    ValueError
        Inside, for the slope of a part that is no elementwise function.

    Examples
    --------
    >>> part = nn.Tanh()
    >>> with replaced_output(part, slope=True):
    ...     part(torch.zeros(2))
    tensor([1., 1.])
    """

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not slope:
            return inputs[0]
        with torch.enable_grad():
            z = inputs[0].detach().requires_grad_()
            return _slope_of(module, z, module.forward(z))

    handle = part.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _slope_of(part: nn.Module, z: Tensor, out: Tensor) -> Tensor:
    """Slope of an elementwise function, by which any change of its input is multiplied."""
    derivative = mixed = sign = torch.zeros_like(z)
    if out.shape == z.shape:
        sign = torch.randint(0, 2, z.shape, generator=torch.Generator().manual_seed(0)).to(z) * 2 - 1
        (derivative,) = torch.autograd.grad(out.sum(), z, retain_graph=True)
        (mixed,) = torch.autograd.grad((out * sign).sum(), z)
    if out.shape != z.shape or not torch.allclose(mixed, sign * derivative, rtol=ROUNDING):
        raise ValueError(
            f"before must name an elementwise function, such as 'readout.activation'; this "
            f"{type(part).__name__} mixes the entries of its input"
        )
    return derivative
