"""Named taps: a clip as a part of the model returns it, to differentiate by that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF.interpret.dstrf.chain import Link, chain_of
from deepSTRF.interpret.dstrf.target import (
    UNDECLARED,
    Subject,
    check_finite,
    check_model,
    front_end_of,
    has_halves,
    mono,
    one_spectrogram,
    placed,
    samples_per_frame,
    whole_frames,
)
from deepSTRF.interpret.dstrf.verification import agree
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.gradients import differentiating
from deepSTRF.models.streaming import State, step_slot

__all__ = ["LayerTargetError", "Tapped", "stimulus_frames", "subject_of"]

#: Slots of our models that a tap may stand behind, and from which they run on chunk by chunk.
_SLOTS = ("prefiltering", "core", "readout")


class LayerTargetError(ValueError):
    """A part whose output is not what the rest of the model hears: it cannot be differentiated by."""


class Tapped(Subject):
    """The output of a named part as frames, and the function that maps such frames to responses.

    To respond to frames, the model runs on silence and the part returns the frames instead of its output.
    Channels and bands (C, F') are laid on one another as bands of the frames; ``layer_shape`` is their shape.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, (8, 1)))
    >>> tapped = Tapped(model, torch.randn(8, 50), "1")
    >>> tapped.layer_shape, tapped.frames.shape
    ((4, 8), torch.Size([1, 1, 32, 50]))
    """

    def __init__(self, model: nn.Module, stimulus: Tensor, name: str, whole: bool = False) -> None:
        self.model, self.name, self.part, self.whole = model, name, model.get_submodule(name), whole
        self.samples = self.behind_front_end = False
        self.hop = 1
        self._output: Tensor | None = None
        self._run: Callable[[Tensor], Tensor] = model
        given = placed(model, stimulus)
        with torch.no_grad():
            heard = self._heard(given)
            with self._held(None) as seen:
                y = self._run(heard)
            self.layer_shape, self.frames = self._as_tap(seen, y)
            check_finite(self.frames)
            self._check_all_passes(heard, self._checked(y, self.frames))
            self._shares = self._may_share()

    # ------------------------------------------------------------------ the function

    def respond(self, frames: Tensor) -> Tensor:
        """Return responses (B, N, T) to frames (B, 1, F, T)."""
        clips = 1 if self._shares else len(frames)
        return self._respond(frames, frames.new_zeros(clips, *self._silence(frames.shape[-1])))

    def _respond(self, frames: Tensor, heard: Tensor) -> Tensor:
        with self._held(frames):
            return self._checked(self._run(heard), frames)

    def chain(self, skip: nn.Module | None = None) -> list[Link] | None:
        """Return what follows the part as a chain of links; None where it is none."""
        rest = self._parts_after()
        if rest is None:
            return None
        return chain_of(nn.Sequential(*rest), self._unfolded(self.frames), skip)

    @property
    def streamable(self) -> bool:
        """Whether the rest of the model runs chunk by chunk with carried state: from a slot of our models."""
        return self._is_slot and super().streamable

    def step(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Return responses (B, N, T') to the next frames and the state after them."""
        following, chunk = dict(state), self._unfolded(frames)
        for slot in _SLOTS[_SLOTS.index(self.name) + 1 :]:
            chunk, following[slot] = step_slot(getattr(self.model, slot), slot, chunk, state[slot])
        return self._checked(chunk, frames), following

    @property
    def declared_reach(self) -> int | None:
        """Frames that the model says a response depends on; what follows a part may see fewer."""
        return super().declared_reach if self.whole else UNDECLARED

    @property
    def _is_slot(self) -> bool:
        return isinstance(self.model, NeuralModel) and self.name in _SLOTS

    def _parts_after(self) -> list[nn.Module] | None:
        if self._is_slot:
            return [getattr(self.model, slot) for slot in _SLOTS[_SLOTS.index(self.name) + 1 :]]
        if type(self.model) is nn.Sequential and "." not in self.name:
            children = dict(self.model.named_children())
            return list(children.values())[list(children).index(self.name) + 1 :]
        return None

    # ------------------------------------------------------------------ the tap

    def check_comes_after(self, part: nn.Module) -> None:
        """Raise an error for an output nonlinearity that runs before the part is done."""
        order: list[str] = []
        first = part.register_forward_pre_hook(lambda *_: order.append("nonlinearity"))
        last = self.part.register_forward_hook(lambda *_: order.append("tap"))
        try:
            with torch.no_grad():
                self.respond(self.frames)
        finally:
            first.remove()
            last.remove()
        if "nonlinearity" in order[: order.index("tap")]:
            raise ValueError(
                f"skip_nonlinearity must name a part that comes after wrt={self.name!r}; this "
                f"{type(part).__name__} runs before that is done"
            )

    def _heard(self, given: Tensor) -> Tensor:
        """The stimulus as the model takes it; also notes how to run the model, and the shape of silence."""
        model, has_front_end = self.model, front_end_of(self.model) is not None
        if has_front_end and has_halves(model) and not (self.name + ".").startswith("wav2spec."):
            self._run = model.respond
            flat = given.numel() == given.shape[-1]
            heard = model.spectrogram(mono(given)) if flat else one_spectrogram(given)
        elif has_front_end or (given.ndim == 1 and not hasattr(model, "wav2spec")):
            hop = samples_per_frame(model, mono(given))
            self._silence: Callable[[int], tuple[int, ...]] = lambda n: (1, n * hop)
            return whole_frames(mono(given), hop)
        else:
            heard = one_spectrogram(given)
        bands = heard.shape[2]
        self._silence = lambda n: (1, bands, n)
        return heard

    @contextlib.contextmanager
    def _held(self, frames: Tensor | None) -> Iterator[list[Any]]:
        """Let the part return frames (None: its own output); what it returned by itself is in the list."""
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

    def _as_tap(self, seen: list[Any], y: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """Shape of a tap (C, F') or (F',), and its frames (1, 1, C * F', T)."""
        what = f"the part {self.name!r} ({type(self.part).__name__})"
        if len(seen) != 1:
            raise LayerTargetError(
                f"{what} ran {len(seen)} times and not once: differentiate by another part"
            )
        (tap,) = seen
        length = y.shape[-1] if isinstance(y, Tensor) else None
        if not isinstance(tap, Tensor) or tap.ndim not in (3, 4) or len(tap) != 1 or tap.shape[-1] != length:
            found = tuple(tap.shape) if isinstance(tap, Tensor) else "no tensor"
            raise LayerTargetError(
                f"the output of {what} must be on the frame grid, (1, C, F, {length}) or (1, F, {length}), "
                f"it is {found}: differentiate by another part"
            )
        return tuple(tap.shape[1:-1]), tap.reshape(1, 1, -1, tap.shape[-1])

    def _check_all_passes(self, heard: Tensor, y: Tensor) -> None:
        """With its output held, another stimulus must not move the response."""
        noise = torch.rand(heard.shape, generator=torch.Generator().manual_seed(0)).to(heard)
        for other in (torch.zeros_like(heard), noise):
            found = self._respond(self.frames, other)
            if not agree(found, y):
                raise LayerTargetError(
                    f"not everything that the model hears passes through {self.name!r}: with its output "
                    "held, another stimulus still changes the response. Differentiate by a part before the "
                    "branches, or by wrt='spectrogram'"
                )

    def _may_share(self) -> bool:
        """Whether one silent clip serves many clips of frames: what comes before the part is then cheap."""
        two = self.frames.repeat(2, 1, 1, 1)
        two[1] *= 0.5
        heard = two.new_zeros(2, *self._silence(two.shape[-1]))
        try:
            found = self._respond(two, heard[:1])
        except Exception:  # noqa: BLE001  (the model looks at the number of clips it heard: any error says so)
            return False
        return torch.equal(found, self._respond(two, heard))


def subject_of(model: nn.Module, stimulus: Tensor, wrt: str) -> Subject:
    """Return a model and a clip as a function of what shall be differentiated by.

    Examples
    --------
    >>> type(subject_of(nn.Conv2d(1, 2, (8, 1)), torch.randn(8, 50), "spectrogram")).__name__
    'Subject'
    """
    ours = has_halves(model)
    if wrt == "spectrogram" and front_end_of(model) is not None and not ours:
        return Tapped(model, stimulus, "wav2spec", whole=True)  # a front-end of the user's own kind
    if wrt in ("spectrogram", "samples") or (wrt == "wav2spec" and ours):
        return Subject(model, stimulus, "samples" if wrt == "samples" else "spectrogram")
    parts = [name for name, _ in model.named_modules() if name]
    if wrt not in parts:
        raise ValueError(
            f"wrt must be one of 'spectrogram', 'samples' or a part of the model ({', '.join(parts)}); got "
            f"{wrt!r}"
        )
    return Tapped(model, stimulus, wrt)


def stimulus_frames(model: nn.Module, stimulus: Tensor, *, wrt: str = "spectrogram") -> Tensor:
    """Return the frames (F, T) that the filters of `dstrf` apply to.

    Parameters
    ----------
    model : nn.Module
        As for `dstrf`.
    stimulus : Tensor
        One clip, as for `dstrf`.
    wrt : str
        As for `dstrf`: ``"spectrogram"``; ``"samples"``, whose frames are the samples of each bin; or the
        name of a part, whose channels and bands (C, F') are laid on one another: ``.unflatten(0, (C, F'))``.

    Returns
    -------
    Tensor
        (F, T).

    Raises
    ------
    ValueError
        As `dstrf`.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(8, 3, prefiltering={"prefiltering": "adaptrans", "dt": 5.0})
    >>> stimulus_frames(model, torch.randn(8, 50), wrt="prefiltering").shape  # ON and OFF
    torch.Size([16, 50])
    """
    check_model(model)
    with differentiating(model):
        return subject_of(model, stimulus, wrt).frames[0, 0]
