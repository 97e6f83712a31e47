"""The target of a dynamic STRF: a model and one clip, as a function of frames.

`Target` maps frames (1, 1, F, T) to responses; `deepSTRF.interpret.dstrf.layer_target.LayerTarget` does the
same from the output of a named layer on. `Estimator` is the base of every method that differentiates one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_choice, check_positive_int, to_tensor
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.configurable import placement
from deepSTRF.models.gradients import NoFrontEndError
from deepSTRF.models.streaming import State, is_streamable

#: The model declares no receptive field (None would be: unbounded).
UNDECLARED = -1
#: Largest difference between equal responses, relative to the largest one, by bytes of the type.
ROUNDING = {2: 5e-2, 4: 2e-3, 8: 1e-9}
#: The same between slopes of an elementwise function.
SLOPE_ROUNDING = 1e-3
#: Largest number of copies of a sound by which a number of samples per frame is verified.
REPEATS = 32


class Target:
    """One clip of frames (1, 1, F, T) and the function that maps such frames to responses (B, N, T).

    Frames are bins of a spectrogram or, with ``wrt="samples"``, the hop of samples of each bin as F "bands",
    so that everything else treats both alike.
    """

    #: Axes (C, F') or (F',) of a layer's output that were flattened into the bands of the frames.
    layer_shape: tuple[int, ...] | None = None
    #: Frames by which responses are delayed, see `deepSTRF.interpret.dstrf.autodiff.Delayed`.
    delay = 0

    def __init__(self, model: nn.Module, stimulus: Tensor, wrt: str) -> None:
        check_choice("wrt", wrt, ("spectrogram", "samples"))
        self.model: Any = model
        self.samples = wrt == "samples"
        self.behind_front_end = front_end_of(model) is not None and not self.samples
        if self.samples and hasattr(model, "wav2spec") and front_end_of(model) is None:
            raise NoFrontEndError(
                f"wrt='samples' needs a model with a front-end (wav2spec=...); this {type(model).__name__} "
                "takes spectrograms, so leave wrt='spectrogram'"
            )
        if self.behind_front_end and not has_halves(model):
            raise NoFrontEndError(
                f"this {type(model).__name__} keeps a wav2spec but cannot run without it, as models with "
                "spectrogram() and respond() do: derive it from NeuralModel, or use wrt='samples'"
            )
        given = placed(model, stimulus)
        self.hop = 1
        if self.samples:
            self.hop = samples_per_frame(model, mono(given))
            self.frames = sound_frames(mono(given), self.hop)
        elif self.behind_front_end and given.numel() == given.shape[-1]:
            spectrogram: Any = model.spectrogram
            with torch.no_grad():
                self.frames = spectrogram(mono(given)).detach()
        else:
            self.frames = one_spectrogram(given)
        self._output: Tensor | None = None
        check_finite(self.frames)

    def with_frames(self, frames: Tensor) -> Self:
        """Return the same function with other frames (1, 1, F, T)."""
        other = copy.copy(self)
        other.frames, other._output = frames, None
        return other

    def output(self) -> Tensor:
        """Return the responses (N, T) to the whole clip."""
        if self._output is None:
            with torch.no_grad():
                self._output = self.respond(self.frames)[0]
        return self._output

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
        """Whether the function runs chunk by chunk, from one state to the next."""
        if not is_streamable(self.model):
            return False
        try:
            self.init_state(1)
        except (TypeError, ValueError):  # a layer without step, or one whose memory has no bound
            return False
        return True

    @property
    def declared_receptive_field(self) -> int | None:
        """Frames that the model declares a response to depend on; None is unbounded, see `UNDECLARED`."""
        if self.samples and front_end_of(self.model) is not None:
            return None  # no front-end states its memory in frames
        if not hasattr(self.model, "receptive_field"):
            return UNDECLARED
        declared = self.model.receptive_field
        if declared is None:
            return None
        try:
            frames = float(declared) if not isinstance(declared, str | bool) else 0.0
        except (TypeError, ValueError):
            frames = 0.0
        if frames < 1 or not frames.is_integer():
            raise ValueError(
                f"model.receptive_field must be a number of frames, 1 or more, or None (without a bound), "
                f"got {declared!r}; delete the attribute to have it measured"
            )
        return int(frames)

    def sequence(self) -> tuple[list[nn.Module], Tensor] | None:
        """Return the modules that the function runs in turn, and their input; None where samples enter."""
        if self.samples:
            return None  # a front-end is no chain of plain convolutions
        model = self.model
        if not isinstance(model, NeuralModel):
            return [model], self.frames
        slots = (model.prefiltering, model.core, model.readout, model.output_scale)
        standardizer = getattr(model, "standardizer", None)
        return [*([] if standardizer is None else [standardizer]), *slots], self.frames

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


@dataclass
class Estimator:
    """Base of the methods: computes a dynamic STRF in blocks of times, for all neurons in question.

    Blocks (B, N, L, F) have the most recent lag last. ``receptive_field`` is the number of frames that a
    response depends on, where that is known; ``budget`` bytes of working memory bound ``size``, the times of
    a block; ``memory`` collects what frames before the window contribute to a response, (N,) by time.
    """

    target: Target
    neurons: list[int]
    lags: int
    receptive_field: int | None = None
    budget: int = 2**28
    memory: dict[int, Tensor] = field(default_factory=dict)
    size: int = 1
    name = ""

    def prepare(self, times: Sequence[int]) -> None:
        """Set the size of blocks, and start at the first of some times."""
        raise NotImplementedError

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks that fit the budget; further calls go forward in time."""
        return [list(times[first : first + self.size]) for first in range(0, len(times), self.size)]

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F) for B times."""
        raise NotImplementedError

    def row_bytes(self) -> int:
        """Return the bytes of one time's rows of the result."""
        x = self.target.frames
        return len(self.neurons) * self.lags * x.shape[2] * x.element_size()


def front_end_of(model: nn.Module) -> nn.Module | None:
    """Return the part of a model that takes sounds, ``wav2spec``, or None."""
    part = getattr(model, "wav2spec", None)
    return None if isinstance(part, nn.Identity) else part


def has_halves(model: nn.Module) -> bool:
    """Return whether a model offers its front-end, and what follows that, separately, as ours do."""
    return callable(getattr(model, "spectrogram", None)) and callable(getattr(model, "respond", None))


def check_model(model: object) -> None:
    """Raise an error for an object that is no model, or one without weights."""
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


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a model that a dotted name points to."""
    parts: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in parts:
        raise KeyError(f"the model has no part {name!r}; its parts are {', '.join(p for p in parts if p)}")
    return parts[name]


@contextlib.contextmanager
def replaced_output(part: nn.Module, slope: bool = False) -> Iterator[None]:
    """Let a part return its input, or its slope at that input, instead of its output."""

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
    if out.shape != z.shape or not torch.allclose(mixed, sign * derivative, rtol=SLOPE_ROUNDING):
        raise ValueError(
            f"skip_nonlinearity must name an elementwise function, such as 'readout.activation'; this "
            f"{type(part).__name__} mixes the entries of its input"
        )
    return derivative


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two responses are the same but for rounding."""
    scale = float(other.abs().max()) or 1.0
    return float((one - other).abs().max()) <= ROUNDING[other.element_size()] * scale


def placed(model: nn.Module, stimulus: Tensor) -> Tensor:
    """Return a stimulus on the device and in the type of a model, without its history."""
    device, dtype = placement(model)
    given = to_tensor(stimulus).detach()
    if given.is_meta:
        raise ValueError("stimulus is on the meta device: it has a shape but no values")
    return given.to(device, dtype)


def check_finite(frames: Tensor) -> None:
    """Raise an error for frames with values that are not finite."""
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("stimulus holds values that are not finite: repair or cut the clip first")


def one_spectrogram(given: Tensor) -> Tensor:
    """Return one spectrogram, (F, T) with or without leading ones, as (1, 1, F, T)."""
    if given.ndim not in (2, 3, 4) or given.numel() != given.shape[-2:].numel() or not given.numel():
        raise ValueError(
            f"stimulus must be one spectrogram (F, T), (1, F, T) or (1, 1, F, T), got {tuple(given.shape)}; "
            "take one clip at a time, e.g. dataset.stims[0] (a model of your own that takes sounds needs "
            "wrt='samples')"
        )
    return given.reshape(1, 1, *given.shape[-2:])


def mono(given: Tensor) -> Tensor:
    """Return one sound, (T_audio,) with or without leading ones, as (1, 1, T_audio)."""
    if given.ndim < 1 or given.numel() != given.shape[-1] or not given.numel():
        raise ValueError(
            f"stimulus must be one mono sound (T_audio,), (1, T_audio) or (1, 1, T_audio), got "
            f"{tuple(given.shape)}; mix channels with stimulus.mean(0)"
        )
    return given.reshape(1, 1, -1)


def whole_frames(sound: Tensor, hop: int) -> Tensor:
    """Return a sound (1, 1, T_audio) without the samples after its last whole frame."""
    whole = sound.shape[-1] // hop
    if whole == 0:
        raise ValueError(f"the sound has {sound.shape[-1]} samples, less than one bin of {hop}")
    return sound[..., : whole * hop]


def sound_frames(sound: Tensor, hop: int) -> Tensor:
    """Return the hops of a sound (1, 1, T_audio) as frames (1, 1, hop, T): samples in the place of bands."""
    return whole_frames(sound, hop).reshape(1, 1, -1, hop).transpose(2, 3).contiguous()


def sound_of(frames: Tensor) -> Tensor:
    """Return frames of samples (B, 1, hop, T) as the sounds (B, 1, T_audio) that they are."""
    return frames.transpose(2, 3).reshape(frames.shape[0], 1, -1)


def windows_of(frames: Tensor, times: Sequence[int], length: int) -> Tensor:
    """Return the windows (B, 1, F, length) of frames (1, 1, F, T) that end at given times."""
    starts = torch.as_tensor(times, device=frames.device) - (length - 1)
    every = frames[0].unfold(-1, length, 1)  # (1, F, T - length + 1, length)
    return every[:, :, starts].permute(2, 0, 1, 3).contiguous()


def samples_per_frame(model: Any, sound: Tensor) -> int:
    """Return the number of samples of a sound (1, 1, T_audio) that make one frame of a model's response.

    It is the attribute ``hop`` of the front-end or of the model; without one it follows from the number of
    frames that the model returns, which must be in proportion to that of samples.
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
            f"({error}): if it takes spectrograms, leave wrt='spectrogram'"
        ) from error
    if not isinstance(y, Tensor) or y.ndim not in (3, 4) or y.shape[0] != 1 or not y.shape[-1]:
        raise ValueError(
            f"the model must map samples {shape} to (1, N, 1, T), it returned "
            f"{tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__}"
        )
    return int(y.shape[-1])
