"""Models that look ahead: with its responses delayed, such a model is causal, and every method suits it.

Only the responses at the end of a clip, which depend on frames after it, need a method of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dstrf.autodiff import Jacobian, recent
from deepSTRF.interpret.dstrf.target import Estimator, Target


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
