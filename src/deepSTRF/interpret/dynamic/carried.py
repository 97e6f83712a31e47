"""Windows that start from the carried state of a recurrent model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepSTRF.interpret.dynamic.estimators import Windows, windows_of

__all__ = ["CarriedWindows"]


class CarriedWindows(Windows):
    """Windows of ``lags`` frames that start from the carried state: for models with unbounded memory.

    The state is held fixed, so that ``Y_t = W_t X_t + V_t h + b_t``; ``memory`` collects ``V_t h``, h the
    state before the window. Blocks must come in the order of time.

    Examples
    --------
    >>> from deepSTRF.interpret.dynamic.subject import Subject
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
