"""Layer targets: the output of a named layer as frames, and the function from there to the responses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF.interpret.dstrf.target import (
    UNDECLARED,
    Target,
    agree,
    check_finite,
    front_end_of,
    has_halves,
    mono,
    one_spectrogram,
    placed,
    samples_per_frame,
    whole_frames,
)
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.streaming import State, step_slot

#: Slots of our models after which a layer target may begin, and from which they run on chunk by chunk.
_SLOTS = ("prefiltering", "core", "readout")


class LayerTargetError(ValueError):
    """A layer that the response does not depend on through its output alone, frame by frame."""


class LayerTarget(Target):
    """The output of a named layer as frames, and the function that maps such frames to responses.

    To respond to frames, the model runs on zeros and the layer returns the frames instead of its output.
    Channels and bands (C, F') are flattened into bands of the frames; ``layer_shape`` is their shape. With
    ``whole`` the layer is a front-end, and the declared receptive field is that of what follows it.
    """

    def __init__(self, model: nn.Module, stimulus: Tensor, name: str, whole: bool = False) -> None:
        self.model, self.name, self.part, self.whole = model, name, model.get_submodule(name), whole
        self.samples = self.behind_front_end = False
        self.hop = 1
        self._output: Tensor | None = None
        self._run: Callable[[Tensor], Tensor] = model
        given = placed(model, stimulus)
        with torch.no_grad():
            entered = self._input(given)
            with self._held(None) as seen:
                y = self._run(entered)
            self.layer_shape, self.frames = self._as_frames(seen, y)
            check_finite(self.frames)
            self._check_all_passes(entered, self._checked(y, self.frames))
            self._shares = self._may_share()

    def respond(self, frames: Tensor) -> Tensor:
        """Return responses (B, N, T) to frames (B, 1, F, T)."""
        clips = 1 if self._shares else len(frames)
        return self._respond(frames, frames.new_zeros(clips, *self._input_shape(frames.shape[-1])))

    def _respond(self, frames: Tensor, entered: Tensor) -> Tensor:
        with self._held(frames):
            return self._checked(self._run(entered), frames)

    def sequence(self) -> tuple[list[nn.Module], Tensor] | None:
        """Return the modules after the layer, and their input; None where they are no sequence."""
        if self._is_slot:
            slots = _SLOTS[_SLOTS.index(self.name) + 1 :]
            return [getattr(self.model, slot) for slot in slots], self._unfolded(self.frames)
        if type(self.model) is nn.Sequential and "." not in self.name:
            children = dict(self.model.named_children())
            return list(children.values())[list(children).index(self.name) + 1 :], self._unfolded(self.frames)
        return None

    @property
    def streamable(self) -> bool:
        """Whether the rest of the model runs chunk by chunk: from a slot of our models."""
        return self._is_slot and super().streamable

    def step(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return responses (B, N, T') to the next frames and the state after them."""
        following, chunk = dict(state), self._unfolded(frames)
        for slot in _SLOTS[_SLOTS.index(self.name) + 1 :]:
            chunk, following[slot] = step_slot(getattr(self.model, slot), slot, chunk, state[slot])
        return self._checked(chunk, frames), following

    @property
    def declared_receptive_field(self) -> int | None:
        """Frames that the model declares a response to depend on; what follows a layer may need fewer."""
        return super().declared_receptive_field if self.whole else UNDECLARED

    @property
    def _is_slot(self) -> bool:
        return isinstance(self.model, NeuralModel) and self.name in _SLOTS

    def check_comes_after(self, part: nn.Module) -> None:
        """Raise an error for an output nonlinearity that runs before the part is done."""
        order: list[str] = []
        first = part.register_forward_pre_hook(lambda *_: order.append("nonlinearity"))
        last = self.part.register_forward_hook(lambda *_: order.append("layer"))
        try:
            with torch.no_grad():
                self.respond(self.frames)
        finally:
            first.remove()
            last.remove()
        if "nonlinearity" in order[: order.index("layer")]:
            raise ValueError(
                f"skip_nonlinearity must name a part that comes after wrt={self.name!r}; this "
                f"{type(part).__name__} runs before that is done"
            )

    def _input(self, given: Tensor) -> Tensor:
        """The stimulus as the model takes it; also sets how the model runs, and the shape of its input."""
        model, has_front_end = self.model, front_end_of(self.model) is not None
        if has_front_end and has_halves(model) and not (self.name + ".").startswith("wav2spec."):
            self._run = model.respond
            flat = given.numel() == given.shape[-1]
            entered = model.spectrogram(mono(given)) if flat else one_spectrogram(given)
        elif has_front_end or (given.ndim == 1 and not hasattr(model, "wav2spec")):
            hop = samples_per_frame(model, mono(given))
            self._input_shape: Callable[[int], tuple[int, ...]] = lambda n: (1, n * hop)
            return whole_frames(mono(given), hop)
        else:
            entered = one_spectrogram(given)
        bands = entered.shape[2]
        self._input_shape = lambda n: (1, bands, n)
        return entered

    @contextlib.contextmanager
    def _held(self, frames: Tensor | None) -> Iterator[list[Any]]:
        """Let the layer return frames (None: its own output); what it returned by itself is in the list."""
        seen: list[Any] = []

        def hook(part: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            # a copy, because the next part may work in place
            seen.append(output.clone() if frames is None and isinstance(output, Tensor) else None)
            return None if frames is None else self._unfolded(frames).clone()

        handle = self.part.register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def _unfolded(self, frames: Tensor) -> Tensor:
        return frames.reshape(len(frames), *(self.layer_shape or ()), frames.shape[-1])

    def _as_frames(self, seen: list[Any], y: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """Shape (C, F') or (F',) of the layer's output, and its frames (1, 1, C * F', T)."""
        what = f"the part {self.name!r} ({type(self.part).__name__})"
        if len(seen) != 1:
            raise LayerTargetError(
                f"{what} ran {len(seen)} times and not once: differentiate by another part"
            )
        (out,) = seen
        length = y.shape[-1] if isinstance(y, Tensor) else None
        if not isinstance(out, Tensor) or out.ndim not in (3, 4) or len(out) != 1 or out.shape[-1] != length:
            found = tuple(out.shape) if isinstance(out, Tensor) else "no tensor"
            raise LayerTargetError(
                f"the output of {what} must be on the frame grid, (1, C, F, {length}) or (1, F, {length}), "
                f"it is {found}: differentiate by another part"
            )
        return tuple(out.shape[1:-1]), out.reshape(1, 1, -1, out.shape[-1])

    def _check_all_passes(self, entered: Tensor, y: Tensor) -> None:
        """With the layer's output held, another stimulus must not change the response."""
        noise = torch.rand(entered.shape, generator=torch.Generator().manual_seed(0)).to(entered)
        for other in (torch.zeros_like(entered), noise):
            found = self._respond(self.frames, other)
            if not agree(found, y):
                raise LayerTargetError(
                    f"not everything that the response depends on passes through {self.name!r}: with its "
                    "output held, another stimulus still changes the response. Differentiate by a part "
                    "before the branches, or by wrt='spectrogram'"
                )

    def _may_share(self) -> bool:
        """Whether one clip of zeros serves many clips of frames: the layers before are then cheap."""
        two = self.frames.repeat(2, 1, 1, 1)
        two[1] *= 0.5
        zeros = two.new_zeros(2, *self._input_shape(two.shape[-1]))
        try:
            found = self._respond(two, zeros[:1])
        except Exception:  # noqa: BLE001  (a model that counts its clips may raise anything)
            return False
        return torch.equal(found, self._respond(two, zeros))
