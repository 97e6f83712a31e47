"""Dynamic STRFs by automatic differentiation: one pass back per neuron, over copies, windows or combs.

- `Jacobian`: every time on a copy of the clip up to it, for any causal model;
- `Windows`: all windows as one batch, for finite receptive fields;
- `StatefulWindows`: windows that start from the state of a recurrent model;
- `Comb`: responses that depend on disjoint windows share one pass (Curtis, Powell & Reid 1974, doi
  10.1093/imamat/13.1.117);
- `LookingAhead`: models that look ahead, as a delayed target (`Delayed`) and its last responses (`ToTheEnd`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_differentiable
from deepSTRF.interpret.dstrf.target import Estimator, Target, windows_of


class Jacobian(Estimator):
    """Every time on a copy of the clip up to it: for any causal model, over its whole past."""

    name = "jacobian"

    def prepare(self, times: Sequence[int]) -> None:
        """Set the size of blocks by the graph of one time and its rows of the result."""
        self.size = max(1, self.budget // max(1, self.bytes_per_time(times)))

    def bytes_per_time(self, times: Sequence[int]) -> int:
        """Return the working memory of one time, in bytes."""
        return _held_bytes(self.target.respond, self._copy_of(times)) + 2 * self.row_bytes()

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        x = self._copy_of(times).repeat(len(times), 1, 1, 1).requires_grad_()
        y = self.target.respond(x)
        each, at = torch.arange(len(times), device=x.device), torch.as_tensor(times, device=x.device)
        return self._by_neuron(
            x, lambda n: y[each, n, at].sum(), lambda g: recent(g[:, 0], at, self.lags), len(times)
        )

    def _copy_of(self, times: Sequence[int]) -> Tensor:
        """The frames (1, 1, F, T') that one time needs a copy of."""
        return self.target.frames[..., : max(times) + 1]

    def _by_neuron(
        self, x: Tensor, outputs: Callable[[int], Tensor], take: Callable[[Tensor], Tensor], rows: int
    ) -> Tensor:
        """One pass back per neuron through a graph that was built once."""
        block = x.new_empty(rows, len(self.neurons), self.lags, x.shape[2])
        for index, neuron in enumerate(self.neurons):
            objective = outputs(neuron)
            check_differentiable(objective)
            (gradient,) = torch.autograd.grad(objective, x, retain_graph=index + 1 < len(self.neurons))
            block[:, index] = take(gradient)
        return block


class Windows(Jacobian):
    """All windows of a receptive field's length as one batch: for finite receptive fields.

    Times whose window would begin before the clip are taken on copies of its first frames.
    """

    name = "windows"

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        span = self._span()
        early = [t for t in times if t < span - 1]
        full = [t for t in times if t >= span - 1]
        if not (early and full):
            return self._early(early) if early else self._full(full)
        order = {t: row for row, t in enumerate([*early, *full])}
        return torch.cat([self._early(early), self._full(full)])[[order[t] for t in times]]

    def _span(self) -> int:
        if self.receptive_field is None:
            raise ValueError("windows need a finite receptive field")
        return self.receptive_field

    def _copy_of(self, times: Sequence[int]) -> Tensor:
        return self.target.frames[..., : self._span()]

    def _early(self, times: list[int]) -> Tensor:
        return Jacobian(self.target, self.neurons, self.lags).block(times)

    def _full(self, times: list[int]) -> Tensor:
        x = windows_of(self.target.frames, times, self._span()).requires_grad_()
        y = self.target.respond(x)[..., -1]
        return self._by_neuron(
            x, lambda n: y[:, n].sum(), lambda g: _fit(g[:, 0].transpose(1, 2), self.lags), len(times)
        )


class StatefulWindows(Windows):
    """Windows of ``lags`` frames that start from the model's state before them: for unbounded memory.

    The state h before the window is held fixed, so that ``Y_t = W_t X_t + V_t h + b_t``; ``memory`` collects
    ``V_t h``. Blocks must come in the order of time.
    """

    def prepare(self, times: Sequence[int]) -> None:
        """Set the size of blocks, and start from the beginning of the clip."""
        self._position, self._state = 0, self.target.init_state(1)
        super().prepare(times)

    def _span(self) -> int:
        return self.lags

    def _early(self, times: list[int]) -> Tensor:
        self.memory.update({t: self.target.frames.new_zeros(len(self.neurons)) for t in times})
        return super()._early(times)

    def _full(self, times: list[int]) -> Tensor:
        axes = _batch_axes(self.target.init_state(1), self.target.init_state(2))
        state, leaves = _joined([self._state_before(t - self.lags + 1) for t in times], axes)
        x = windows_of(self.target.frames, times, self.lags).requires_grad_()
        y = self.target.step(x, state)[0][..., -1]
        block = x.new_empty(len(times), len(self.neurons), self.lags, x.shape[2])
        memory = x.new_zeros(len(times), len(self.neurons))
        for index, neuron in enumerate(self.neurons):
            again = index + 1 < len(self.neurons)
            gradient, *others = torch.autograd.grad(
                y[:, neuron].sum(), [x, *(leaf for leaf, _ in leaves)], retain_graph=again, allow_unused=True
            )
            block[:, index] = gradient[:, 0].transpose(1, 2)
            for (leaf, axis), slope in zip(leaves, others, strict=True):
                if slope is not None:
                    memory[:, index] += (slope * leaf.detach()).movedim(axis, 0).flatten(1).sum(1)
        self.memory.update(zip(times, memory, strict=True))
        return block

    def _state_before(self, frame: int) -> Any:
        if not hasattr(self, "_state") or frame < self._position:
            self._position, self._state = 0, self.target.init_state(1)
        if frame > self._position:
            with torch.no_grad():
                piece = self.target.frames[..., self._position : frame]
                self._state = self.target.step(piece, self._state)[1]
            self._position = frame
        return self._state


class Comb(Jacobian):
    """Responses a receptive field apart depend on disjoint windows: one pass back serves them all.

    The clip is never cut, so it also suits models whose response depends on the place in the clip.
    """

    name = "comb"

    def prepare(self, times: Sequence[int]) -> None:
        """Set how many combs a block may have."""
        longest = -(-len(times) // (self.receptive_field or 1))
        per_comb = _held_bytes(self.target.respond, self.target.frames) + 2 * longest * self.row_bytes()
        self.size = max(1, self.budget // max(1, per_comb))

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Group times by their offset, several combs to a block where they fit."""
        apart = self.receptive_field or 1
        offsets = sorted({t % apart for t in times})
        groups = [set(offsets[first : first + self.size]) for first in range(0, len(offsets), self.size)]
        return [[t for t in times if t % apart in group] for group in groups]

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        apart = self.receptive_field or 1
        offsets = sorted({t % apart for t in times})
        comb = {offset: index for index, offset in enumerate(offsets)}
        x = self.target.frames.repeat(len(offsets), 1, 1, 1).requires_grad_()
        y = self.target.respond(x)
        which = torch.tensor([comb[t % apart] for t in times], device=x.device)
        at = torch.as_tensor(times, device=x.device)
        lags = min(self.lags, apart)  # older frames belong to the window of the response before
        return self._by_neuron(
            x,
            lambda n: y[which, n, at].sum(),
            lambda g: _fit(recent(g[:, 0], at, lags, which), self.lags),
            len(times),
        )


def recent(gradient: Tensor, times: Tensor, lags: int, which: Tensor | None = None) -> Tensor:
    """Return the last frames (B, L, F) before given times (B,) of gradients (K, F, T), zero before the clip.

    ``which`` (B,) is the gradient that each time belongs to; None is one per time.
    """
    which = torch.arange(len(times), device=gradient.device) if which is None else which
    frames = times.unsqueeze(1) + torch.arange(1 - lags, 1, device=gradient.device)
    cut = gradient[which.unsqueeze(1), :, frames.clamp_min(0)]
    return cut * (frames >= 0).unsqueeze(-1)


def _fit(rows: Tensor, lags: int) -> Tensor:
    """Crop (B, L', F) to the most recent lags, or put zeros before them."""
    missing = lags - rows.shape[1]
    return rows[:, -lags:] if missing <= 0 else functional.pad(rows, (0, 0, missing, 0))


def _held_bytes(respond: Callable[[Tensor], Tensor], frames: Tensor) -> int:
    """Bytes that the graph of the responses to one copy of these frames holds."""
    held = [0, 0]
    for clips in (1, 2):

        def count(tensor: Tensor, clips: int = clips) -> Tensor:
            held[clips - 1] += tensor.numel() * tensor.element_size()
            return tensor

        x = frames.repeat(clips, 1, 1, 1).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            y = respond(x)
    # the second clip's share, for weights are saved once; what is not saved is about as much again
    return 2 * max(0, held[1] - held[0]) + (2 * frames.numel() + y.numel()) * x.element_size()


def _batch_axes(one: Any, two: Any) -> Any:
    """The axis of each leaf that holds the streams, from states of one and of two; None where they share."""
    if isinstance(one, dict):
        return {key: _batch_axes(one[key], two[key]) for key in one}
    differing = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
    return differing[0] if differing else None


def _joined(states: list[Any], axes: Any) -> tuple[Any, list[tuple[Tensor, int]]]:
    """Join the states of single streams into one batch; also its floating leaves, which need gradients."""
    leaves: list[tuple[Tensor, int]] = []

    def join(branches: list[Any], axis: Any) -> Any:
        if isinstance(branches[0], dict):
            return {key: join([branch[key] for branch in branches], axis[key]) for key in branches[0]}
        if axis is None:
            return branches[0]
        leaf = torch.cat(branches, axis)
        if leaf.is_floating_point():
            leaves.append((leaf.requires_grad_(), axis))
        return leaf

    return join(states, axes), leaves


# ---- Models that look ahead: with its responses delayed, such a model is causal, and every method suits it.
# Only the responses at the end of a clip, which depend on frames after it, need a method of their own.


class Delayed(Target):
    """A target whose responses come some frames late, so that they depend on no later frame.

    The last responses of a clip are cut off, and the first ones are zero.
    """

    def __init__(self, inner: Target, delay: int) -> None:
        # everything but the responses is as there
        self.__dict__.update(inner.__dict__)
        self.inner, self.delay = inner, delay
        self._output = None

    def with_frames(self, frames: Tensor) -> Delayed:
        """Return the same function with other frames (1, 1, F, T)."""
        return Delayed(self.inner.with_frames(frames), self.delay)

    def respond(self, frames: Tensor) -> Tensor:
        """Return responses (B, N, T) to frames (B, 1, F, T)."""
        return functional.pad(self.inner.respond(frames), (self.delay, 0))[..., : frames.shape[-1]]

    @property
    def streamable(self) -> bool:
        """Whether the function runs chunk by chunk; one that looks ahead does not."""
        return False

    def sequence(self) -> tuple[list[nn.Module], Tensor] | None:
        """Return the modules of the function without the delay, and their input."""
        return self.inner.sequence()


class ToTheEnd(Jacobian):
    """Every time on a copy of the clip to its end: for responses that depend on frames after it."""

    def __init__(
        self, target: Target, neurons: list[int], lags: int, ahead: int, first: int = 0, budget: int = 2**28
    ) -> None:
        super().__init__(target, neurons, lags, None, budget)
        self.ahead, self.first = ahead, first

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        x = self._copy_of(times).repeat(len(times), 1, 1, 1).requires_grad_()
        y = self.target.respond(x)
        each, at = torch.arange(len(times), device=x.device), torch.as_tensor(times, device=x.device)
        at = at - self.first

        def take(gradient: Tensor) -> Tensor:
            return recent(functional.pad(gradient[:, 0], (0, self.ahead)), at + self.ahead, self.lags)

        return self._by_neuron(x, lambda n: y[each, n, at].sum(), take, len(times))

    def _copy_of(self, times: Sequence[int]) -> Tensor:
        return self.target.frames[..., self.first :]


class LookingAhead(Estimator):
    """A method for causal models, applied to delayed responses; those at the end of the clip separately."""

    def __init__(self, target: Target, inner: Estimator, ahead: int, lookahead: int) -> None:
        self.beyond = lookahead - ahead
        lags = inner.lags + self.beyond
        super().__init__(target, inner.neurons, lags, inner.receptive_field, inner.budget)
        self.name = inner.name
        self.inner, self.ahead = inner, ahead
        #: Times that depend on no frame after the clip.
        self.n_inside = max(0, target.frames.shape[-1] - ahead)
        # a model whose response may depend on the place in the clip takes all of it
        cut = inner.receptive_field is not None and inner.name not in ("comb", "jacobian")
        first = max(0, self.n_inside - (inner.receptive_field or 0)) if cut else 0
        self.rest = ToTheEnd(target, inner.neurons, lags, lookahead, first, inner.budget)

    def prepare(self, times: Sequence[int]) -> None:
        """Prepare the method and that of the last times."""
        for estimator, part in zip((self.inner, self.rest), self._parted(times), strict=True):
            if part:
                estimator.prepare(part)

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks that fit the budget."""
        inside, end = self._parted(times)
        blocks = self.inner.cut(inside) if inside else []
        return [[t - self.ahead for t in block] for block in blocks] + (self.rest.cut(end) if end else [])

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        inside, end = self._parted(times)
        blocks = []
        if inside:
            block = self.inner.block(inside)
            blocks.append(functional.pad(block, (0, 0, 0, self.beyond)) if self.beyond else block)
            self.memory.update({t - self.ahead: self.inner.memory.pop(t) for t in list(self.inner.memory)})
        if end:
            blocks.append(self.rest.block(end))
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    def _parted(self, times: Sequence[int]) -> tuple[list[int], list[int]]:
        """Times of the delayed responses, and times at the end of the clip."""
        inside = [t + self.ahead for t in times if t < self.n_inside]
        return inside, list(times[len(inside) :])
