"""Windows that start from the carried state of a recurrent model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepSTRF._validation import check_differentiable
from deepSTRF.interpret.dstrf.target import Subject

__all__ = [
    "CarriedWindows",
    "Comb",
    "Estimator",
    "Jacobian",
    "Windows",
    "full_gradient",
    "recent",
    "windows_of",
]

# ------------------------------------------------------------------------------
# Ways to a dynamic STRF by automatic differentiation: windows, prefixes and combs.


@dataclass
class Estimator:
    """Computes blocks of a dynamic STRF: rows of times, all wanted neurons.

    Attributes
    ----------
    subject : Subject
        Model and clip.
    neurons : list of int
        Which, in which order.
    lags : int
        Frames of the filters, L.
    reach : int or None
        Frames that a response depends on, where that is known.
    budget : int
        Bytes of working memory.
    memory : dict
        What the past before the window contributes to a response, by time: Tensor (N,).
    size : int
        Times of a block.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> Windows(subject, [0, 1], lags=3, reach=3).block([10, 11, 12]).shape
    torch.Size([3, 2, 3, 8])
    """

    subject: Subject
    neurons: list[int]
    lags: int
    reach: int | None = None
    budget: int = 2**28
    memory: dict[int, Tensor] = field(default_factory=dict)
    size: int = 1

    def plan(self, times: Sequence[int]) -> list[list[int]]:
        """Prepare for some times, and cut them into blocks."""
        self.prepare(times)
        return self.cut(times)

    def prepare(self, times: Sequence[int]) -> None:
        """Settle how large blocks may be, and start at the first of some times."""
        self.size = max(1, self.budget // max(1, self.bytes_per_time(times)))

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks that fit the budget; further calls go forward in time."""
        return [list(times[first : first + self.size]) for first in range(0, len(times), self.size)]

    def bytes_per_time(self, times: Sequence[int]) -> int:
        """Working memory of one time, in bytes: its graph and its rows of the result."""
        frames = self._copy_of(times)
        held = _held_bytes(self.subject.respond, frames)
        return held + 2 * self.row_bytes()

    def row_bytes(self) -> int:
        """Bytes of one time's rows."""
        x = self.subject.frames
        return len(self.neurons) * self.lags * x.shape[2] * x.element_size()

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F) for B times, most recent lag last."""
        raise NotImplementedError

    def _copy_of(self, times: Sequence[int]) -> Tensor:
        """The frames (1, 1, F, T') that one time needs a copy of."""
        return self.subject.frames[..., : max(times) + 1]

    def _by_neuron(
        self, x: Tensor, outputs: Callable[[int], Tensor], take: Callable[[Tensor], Tensor], rows: int
    ) -> Tensor:
        """One pass back per neuron through a graph that was built once."""
        block = x.new_empty(rows, len(self.neurons), self.lags, x.shape[2])
        for index, neuron in enumerate(self.neurons):
            again = index + 1 < len(self.neurons)
            objective = outputs(neuron)
            check_differentiable(objective)
            (gradient,) = torch.autograd.grad(objective, x, retain_graph=again)
            block[:, index] = take(gradient)
        return block


class Jacobian(Estimator):
    """Every time on a copy of the clip up to it: works for any causal model, and sees the whole past.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> Jacobian(subject, [1], lags=5).block([0, 49]).shape
    torch.Size([2, 1, 5, 8])
    """

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        x = self._copy_of(times).repeat(len(times), 1, 1, 1).requires_grad_()
        y = self.subject.respond(x)
        each, at = torch.arange(len(times), device=x.device), torch.as_tensor(times, device=x.device)
        return self._by_neuron(
            x, lambda n: y[each, n, at].sum(), lambda g: recent(g[:, 0], at, self.lags), len(times)
        )


class Windows(Estimator):
    """All windows of ``reach`` frames as one batch, one pass back per neuron: for finite receptive fields.

    Times whose window would begin before the clip are taken on copies of its first frames.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> Windows(subject, [0, 1], lags=3, reach=3).plan(range(50))[0][:3]
    [0, 1, 2]
    """

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
        if self.reach is None:
            raise ValueError("windows need a finite receptive field")
        return self.reach

    def _copy_of(self, times: Sequence[int]) -> Tensor:
        return self.subject.frames[..., : self._span()]

    def _early(self, times: list[int]) -> Tensor:
        part = Jacobian(self.subject, self.neurons, self.lags)
        return part.block(times)

    def _full(self, times: list[int]) -> Tensor:
        span = self._span()
        x = windows_of(self.subject.frames, times, span).requires_grad_()
        y = self.subject.respond(x)[..., -1]
        return self._by_neuron(
            x, lambda n: y[:, n].sum(), lambda g: _fit(g[:, 0].transpose(1, 2), self.lags), len(times)
        )


class Comb(Estimator):
    """Responses ``reach`` frames apart see disjoint windows: one pass back serves them all.

    The clip is never cut, so it also suits models that know where in a clip they are (Curtis, Powell & Reid
    1974, doi 10.1093/imamat/13.1.117).

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> len(Comb(subject, [0, 1], lags=3, reach=3, budget=1).plan(range(50)))  # one comb per offset
    3
    """

    def prepare(self, times: Sequence[int]) -> None:
        """Settle how many combs a block may have."""
        longest = -(-len(times) // (self.reach or 1))
        per_comb = _held_bytes(self.subject.respond, self.subject.frames) + 2 * longest * self.row_bytes()
        self.size = max(1, self.budget // max(1, per_comb))

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Group times by their offset, several combs to a block where they fit."""
        reach = self.reach or 1
        offsets = sorted({t % reach for t in times})
        groups = [set(offsets[first : first + self.size]) for first in range(0, len(offsets), self.size)]
        return [[t for t in times if t % reach in group] for group in groups]

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        reach = self.reach or 1
        offsets = sorted({t % reach for t in times})
        comb = {offset: index for index, offset in enumerate(offsets)}
        x = self.subject.frames.repeat(len(offsets), 1, 1, 1).requires_grad_()
        y = self.subject.respond(x)
        which = torch.tensor([comb[t % reach] for t in times], device=x.device)
        at = torch.as_tensor(times, device=x.device)
        lags = min(self.lags, reach)  # beyond its reach a comb would see its neighbours
        return self._by_neuron(
            x,
            lambda n: y[which, n, at].sum(),
            lambda g: _fit(recent(g[:, 0], at, lags, which), self.lags),
            len(times),
        )


# ---------------------------------------------------------------------- pieces


def recent(gradient: Tensor, times: Tensor, lags: int, which: Tensor | None = None) -> Tensor:
    """Cut the last frames before given times out of gradients.

    Shapes: gradient (K, F, T); times (B,); which (B,); returns (B, L, F).

    Examples
    --------
    >>> recent(torch.arange(4.0).view(1, 1, 4), torch.tensor([1]), lags=3).flatten().tolist()
    [0.0, 0.0, 1.0]
    """
    which = torch.arange(len(times), device=gradient.device) if which is None else which
    frames = times.unsqueeze(1) + torch.arange(1 - lags, 1, device=gradient.device)
    cut = gradient[which.unsqueeze(1), :, frames.clamp_min(0)]
    return cut * (frames >= 0).unsqueeze(-1)


def windows_of(frames: Tensor, times: Sequence[int], length: int) -> Tensor:
    """Return the windows (B, 1, F, length) of frames (1, 1, F, T) that end at given times.

    Shapes: frames (1, 1, F, T).

    Examples
    --------
    >>> windows_of(torch.arange(4.0).view(1, 1, 1, 4), [2, 3], 2).flatten().tolist()
    [1.0, 2.0, 2.0, 3.0]
    """
    starts = torch.as_tensor(times, device=frames.device) - (length - 1)
    every = frames[0].unfold(-1, length, 1)  # (1, F, T - length + 1, length)
    return every[:, :, starts].permute(2, 0, 1, 3).contiguous()


def full_gradient(subject: Subject, time: int, neuron: int, first: int = 0) -> tuple[Tensor, float]:
    """Return the gradient (T', F) of one response by frames ``first`` to ``time``, and the response.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> full_gradient(subject, 9, 0)[0].shape
    torch.Size([10, 8])
    """
    x = subject.frames[..., first : time + 1].clone().requires_grad_()
    y = subject.respond(x)[0, neuron, -1]
    if not y.requires_grad:
        return torch.zeros_like(x)[0, 0].T, float(y)
    (gradient,) = torch.autograd.grad(y, x)
    return gradient[0, 0].T, float(y.detach())


def _fit(rows: Tensor, lags: int) -> Tensor:
    """Crop (B, L', F) to the most recent lags, or fill with zeros before them."""
    missing = lags - rows.shape[1]
    if missing <= 0:
        return rows[:, -lags:]
    return torch.nn.functional.pad(rows, (0, 0, missing, 0))


def _held_bytes(respond: Callable[[Tensor], Tensor], frames: Tensor) -> int:
    """What the graph of the responses to one copy of these frames holds, in bytes."""
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


# ------------------------------------------------------------------------------


class CarriedWindows(Windows):
    """Windows of ``lags`` frames that start from the carried state: for models with unbounded memory.

    The state is held fixed, so that ``Y_t = W_t X_t + V_t h + b_t``; ``memory`` collects ``V_t h``, h the
    state before the window. Blocks must come in the order of time.

    Examples
    --------
    >>> from deepSTRF.interpret.dstrf.target import Subject
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> CarriedWindows(subject, [0], lags=2).block([30]).shape
    torch.Size([1, 1, 2, 8])
    """

    def _span(self) -> int:
        return self.lags

    def prepare(self, times: Sequence[int]) -> None:
        """Settle how large blocks may be, and start from the beginning of the clip."""
        self._position, self._state = 0, self.subject.init_state(1)
        super().prepare(times)

    def _early(self, times: list[int]) -> Tensor:
        self.memory.update({t: self.subject.frames.new_zeros(len(self.neurons)) for t in times})
        return super()._early(times)

    def _full(self, times: list[int]) -> Tensor:
        axes = _batch_axes(self.subject.init_state(1), self.subject.init_state(2))
        state, leaves = _joined([self._state_before(t - self.lags + 1) for t in times], axes)
        x = windows_of(self.subject.frames, times, self.lags).requires_grad_()
        y = self.subject.step(x, state)[0][..., -1]
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
            self._position, self._state = 0, self.subject.init_state(1)
        if frame > self._position:
            with torch.no_grad():
                piece = self.subject.frames[..., self._position : frame]
                self._state = self.subject.step(piece, self._state)[1]
            self._position = frame
        return self._state


def _batch_axes(one: Any, two: Any) -> Any:
    """The axis of each leaf that holds the streams, from states of one and of two; None where they share."""
    if isinstance(one, dict):
        return {key: _batch_axes(one[key], two[key]) for key in one}
    differing = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
    return differing[0] if differing else None


def _joined(states: list[Any], axes: Any) -> tuple[Any, list[tuple[Tensor, int]]]:
    """Join the states of single streams into one batch; also its floating leaves, which want gradients."""
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
