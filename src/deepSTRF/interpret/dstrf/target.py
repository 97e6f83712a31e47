"""A model and one clip, seen as a function of frames: what every way to a dynamic STRF starts from."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_choice, check_positive_int
from deepSTRF.interpret.dstrf.chain import Link, chain_of
from deepSTRF.models.gradients import NoFrontEndError
from deepSTRF.models.streaming import State, is_streamable, placement

__all__ = [
    "UNDECLARED",
    "Subject",
    "check_finite",
    "check_hears_sounds",
    "check_model",
    "frames_of",
    "front_end_of",
    "has_halves",
    "mono",
    "one_spectrogram",
    "placed",
    "replaced_output",
    "samples_per_frame",
    "sound_of",
    "submodule",
    "whole_frames",
]

# ------------------------------------------------------------------------------
# One clip as a model takes it: a spectrogram, or a sound whose samples make up frames.


#: How many times the sound is repeated at most to tell whether a number of samples per frame holds.
REPEATS = 32


def front_end_of(model: nn.Module) -> nn.Module | None:
    """Return the part of a model that hears sounds, ``wav2spec``, or None.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> front_end_of(Linear(8, 3)) is None
    True
    """
    part = getattr(model, "wav2spec", None)
    return None if isinstance(part, nn.Identity) else part


def has_halves(model: nn.Module) -> bool:
    """Say whether a model offers its front-end, and what follows that, by themselves: as ours do.

    Examples
    --------
    >>> has_halves(nn.Linear(1, 1))
    False
    """
    return callable(getattr(model, "spectrogram", None)) and callable(getattr(model, "respond", None))


def check_hears_sounds(model: nn.Module) -> None:
    """Raise an error for a model of this package without a front-end.

    Examples
    --------
    >>> check_hears_sounds(nn.Conv1d(1, 2, 160, 160))
    """
    if hasattr(model, "wav2spec") and front_end_of(model) is None:
        raise NoFrontEndError(
            f"wrt='samples' needs a model with a front-end (wav2spec=...); this {type(model).__name__} "
            "hears spectrograms, so leave wrt='spectrogram'"
        )


def check_model(model: object) -> None:
    """Raise an error for something that is no model, or one without weights.

    Examples
    --------
    >>> check_model(nn.Linear(1, 1))
    """
    if not isinstance(model, nn.Module):
        if isinstance(model, Mapping):
            how = "load weights into one with model.load_state_dict(...)"
        elif isinstance(model, list | tuple):
            how = "several fits are for jackknifed_dstrf(models, stimulus)"
        elif callable(model):
            how = "let an nn.Module call the function in its forward"
        else:
            how = "load one with deepSTRF.models.NeuralModel.from_pretrained(folder)"
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: {how}")
    if placement(model)[0].type == "meta":
        raise ValueError(
            f"this {type(model).__name__} is on the meta device, without weights: build it on another, e.g. "
            "model.to_empty(device='cpu'), and load them"
        )


def placed(model: nn.Module, stimulus: Tensor) -> Tensor:
    """Return a stimulus on the device and in the type of a model, without its history.

    Examples
    --------
    >>> placed(nn.Linear(1, 1).double(), torch.zeros(2)).dtype
    torch.float64
    """
    device, dtype = placement(model)
    given = torch.as_tensor(stimulus).detach()
    if given.is_meta:
        raise ValueError("stimulus is on the meta device: it has a shape but no values")
    return given.to(device, dtype)


def check_finite(frames: Tensor) -> None:
    """Raise an error for frames with values that are not finite.

    Examples
    --------
    >>> check_finite(torch.zeros(3))
    """
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("stimulus holds values that are not finite: mend or cut the clip first")


def one_spectrogram(given: Tensor) -> Tensor:
    """Return one spectrogram as (1, 1, F, T).

    Shapes: given (F, T).

    Examples
    --------
    >>> one_spectrogram(torch.zeros(8, 50)).shape
    torch.Size([1, 1, 8, 50])
    """
    if given.ndim not in (2, 3, 4) or given.numel() != given.shape[-2:].numel() or not given.numel():
        raise ValueError(
            f"stimulus must be one spectrogram (F, T), (1, F, T) or (1, 1, F, T), got {tuple(given.shape)}; "
            "take one clip at a time, e.g. dataset.stims[0] (a model of your own that takes sounds wants "
            "wrt='samples')"
        )
    return given.reshape(1, 1, *given.shape[-2:])


def mono(given: Tensor) -> Tensor:
    """Return one sound as (1, 1, T_audio).

    Shapes: given (T_audio,).

    Examples
    --------
    >>> mono(torch.zeros(50)).shape
    torch.Size([1, 1, 50])
    """
    if given.ndim < 1 or given.numel() != given.shape[-1] or not given.numel():
        raise ValueError(
            f"stimulus must be one mono sound (T_audio,), (1, T_audio) or (1, 1, T_audio), got "
            f"{tuple(given.shape)}; mix channels with stimulus.mean(0)"
        )
    return given.reshape(1, 1, -1)


def whole_frames(sound: Tensor, hop: int) -> Tensor:
    """Return a sound (1, 1, T_audio) without the samples after its last whole frame.

    Shapes: sound (1, 1, T_audio).

    Examples
    --------
    >>> whole_frames(torch.zeros(1, 1, 50), 20).shape
    torch.Size([1, 1, 40])
    """
    whole = sound.shape[-1] // hop
    if whole == 0:
        raise ValueError(f"the sound has {sound.shape[-1]} samples, less than one bin of {hop}")
    return sound[..., : whole * hop]


def frames_of(sound: Tensor, hop: int) -> Tensor:
    """Return the hops of a sound (1, 1, T_audio) as frames (1, 1, hop, T): samples in the place of bands.

    Shapes: sound (1, 1, T_audio).

    Examples
    --------
    >>> frames_of(torch.arange(7.0).view(1, 1, -1), 3)[0, 0].tolist()
    [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    return whole_frames(sound, hop).reshape(1, 1, -1, hop).transpose(2, 3).contiguous()


def sound_of(frames: Tensor) -> Tensor:
    """Return frames of samples (B, 1, hop, T) as the sounds (B, 1, T_audio) that they are.

    Shapes: frames (B, 1, hop, T).

    Examples
    --------
    >>> sound_of(frames_of(torch.arange(6.0).view(1, 1, -1), 3)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    return frames.transpose(2, 3).reshape(frames.shape[0], 1, -1)


def samples_per_frame(model: Any, sound: Tensor) -> int:
    """Return how many samples of a sound make one frame of a model's response.

    The attribute ``hop`` of the front-end or of the model says it; without one it follows from the number of
    frames that the model returns, which must be in proportion to that of samples.

    Shapes: model (B, 1, T_audio); sound (1, 1, T_audio).

    Examples
    --------
    >>> samples_per_frame(nn.Conv1d(1, 2, kernel_size=160, stride=160), torch.zeros(1, 1, 1600))
    160
    """
    for owner in (front_end_of(model), model):
        stated = getattr(owner, "hop", None)
        if stated is not None:
            return check_positive_int("hop", int(stated) if float(stated).is_integer() else stated)
    samples = sound.shape[-1]
    with torch.no_grad():
        frames = _n_frames(model, sound)
        hop, rest = divmod(samples, frames)
        # a hop that is short by little shows once it has added up to a frame
        repeats = min(REPEATS, hop // frames + 2)
        again = repeats * frames if rest else _n_frames(model, sound.repeat(1, 1, repeats))
    if rest or again != repeats * frames:
        found = f"{samples} samples gave {frames} frames"
        found += "" if rest else f", {repeats} times as many {again}"
        raise ValueError(
            f"samples per frame must be an integer, but {found}: state them as the model's attribute hop "
            "(model.hop = 160), cut the sound to whole frames, or let the model return one frame per hop"
        )
    return hop


def _n_frames(model: Any, sound: Tensor) -> int:
    name, shape = type(model).__name__, tuple(sound.shape)
    try:
        y = model(sound)
    except Exception as error:
        raise NoFrontEndError(
            f"wrt='samples' needs a model that takes sounds, and this {name} fails on samples {shape} "
            f"({error}): if it hears spectrograms, leave wrt='spectrogram'"
        ) from error
    if not isinstance(y, Tensor) or y.ndim not in (3, 4) or y.shape[0] != 1 or not y.shape[-1]:
        raise ValueError(
            f"the model must map samples {shape} to (1, N, 1, T), it returned "
            f"{tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__}"
        )
    return int(y.shape[-1])


# ------------------------------------------------------------------------------

#: The model says nothing about its receptive field (None would say: unbounded).
UNDECLARED = -1
#: Differences of slopes below this share of them are rounding.
ROUNDING = 1e-3


class Subject:
    """One clip of frames (1, 1, F, T) and the function that maps such frames to responses.

    Frames are bins of a spectrogram or, with ``wrt="samples"``, the hop of samples of each bin as F "bands",
    so that everything else need not know the difference.

    Shapes: model (B, 1, F, T).

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, out_neurons=3).eval(), torch.randn(8, 50), "spectrogram")
    >>> subject.frames.shape, subject.respond(subject.frames).shape
    (torch.Size([1, 1, 8, 50]), torch.Size([1, 3, 50]))
    """

    #: Axes that were laid on one another as the bands of the frames: (C, F) or (F,) of a part's output.
    layer_shape: tuple[int, ...] | None = None

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
            f"skip_nonlinearity must name an elementwise function, such as 'readout.activation'; this "
            f"{type(part).__name__} mixes the entries of its input"
        )
    return derivative
