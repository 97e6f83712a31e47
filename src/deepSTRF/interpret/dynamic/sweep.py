"""The fast ways: a closed form for linear models, an adjoint sweep for chains of convolutions.

One pass through the clip notes the slope of every unit at every frame. A dynamic STRF is then the product of
the weights with these slopes between them, taken from the output down, on the few lags that a dilated stack
really uses: no graph is built, and nothing is computed for frames that a response does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from deepSTRF.interpret.dynamic.adjoint import Adjoint, grid_below
from deepSTRF.interpret.dynamic.ascent import Ascent, cheapest_meeting
from deepSTRF.interpret.dynamic.chain import Convolution
from deepSTRF.interpret.dynamic.estimators import Estimator
from deepSTRF.interpret.dynamic.subject import Subject
from deepSTRF.interpret.dynamic.walking import Walk, Walker

__all__ = ["ClosedForm", "Sweep"]

#: Rows of a block: enough for a product to run at full speed, few enough that a layer stays in a processor's
#: cache (measured with 128 units: 128 to 480 rows are alike on one thread and two).
_ROWS = 240


class Sweep(Estimator):
    """The adjoint sweep.

    Parameters
    ----------
    subject : Subject
        Model and clip.
    neurons : list of int
        Which, in which order.
    lags : int
        Frames of the filters, L.
    walker : Walker
        The clip's way through the model.
    budget : int
        Bytes of working memory.

    Examples
    --------
    >>> from torch import nn
    >>> from deepSTRF.interpret.dynamic.chain import chain_of
    >>> from deepSTRF.models.audio import Linear
    >>> model, clip = Linear(8, 3, output_activation=nn.ReLU()).eval(), torch.randn(8, 50)
    >>> subject = Subject(model, clip, "spectrogram")
    >>> sweep = Sweep(subject, [0], 3, Walker(chain_of(model, subject.frames), clip, budget=2**20))
    >>> sweep.block([20, 21]).shape
    torch.Size([2, 1, 3, 8])
    """

    def __init__(
        self, subject: Subject, neurons: list[int], lags: int, walker: Walker, budget: int = 2**28
    ) -> None:
        super().__init__(subject, neurons, lags, walker.reach, budget)
        self.walker = walker
        # newest tap last, each a matrix from outputs to inputs
        self.taps = [
            link.weight.permute(2, 0, 1).contiguous() if isinstance(link, Convolution) else None
            for link in self._way([0]).links
        ]
        self.meeting: int | None = None
        self.ascent: tuple[int, Ascent] | None = None

    def _way(self, times: Sequence[int]) -> Walk:
        """The piece of the clip's way that holds some times and what they depend on."""
        way = self.walker.to(min(times), max(times))
        if way is None:
            raise ValueError("the chain does not return as many frames as it was given")
        return way

    def bytes_per_time(self, times: Sequence[int]) -> int:
        """Working memory of one time: two neighbouring layers on their lags, and the result."""
        widest, lags, spacing = 0, 1, 0
        for link in reversed(self._way(times[:1]).links):
            if isinstance(link, Convolution):
                c_out, c_in, taps = link.weight.shape
                above, (lags, spacing, *_) = lags * c_out, grid_below(lags, spacing, taps, link.dilation)
                widest = max(widest, above + lags * c_in)
        return len(self.neurons) * widest * self.subject.frames.element_size() + 2 * self.row_bytes()

    def prepare(self, times: Sequence[int]) -> None:
        """Settle how many times fit the budget and a processor's cache, and where to meet."""
        rows = self.budget // max(1, self.bytes_per_time(times))
        if self.subject.frames.device.type == "cpu":
            rows = min(rows, _ROWS // len(self.neurons))
        self._choose_meeting(times, max(1, rows))
        blocks = -(-len(times) // max(1, rows))
        self.size = -(-len(times) // blocks)  # blocks of one size

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks."""
        plan: list[list[int]] = []
        for time in times:
            # far apart, two times would need the slopes of all that is between them
            if not plan or len(plan[-1]) == self.size or time - plan[-1][0] > max(self.size, self.reach or 0):
                plan.append([])
            plan[-1].append(time)
        return plan

    def _choose_meeting(self, times: Sequence[int], rows: int) -> None:
        """Climb from the input where that saves work, bins follow each other, and memory allows."""
        self.meeting = self.ascent = None
        if times[-1] - times[0] + 1 != len(times):
            return
        way = self._way(times[:1])
        grids, lags, spacing = {}, 1, 0
        for place in reversed(range(len(way.links))):
            link = way.links[place]
            if isinstance(link, Convolution):
                grids[place] = lags
                lags, spacing, *_ = grid_below(lags, spacing, link.weight.shape[-1], link.dilation)
        meeting = cheapest_meeting(way.links, grids, len(self.neurons))
        if meeting is None:
            return
        ascent = Ascent(way.links[: meeting + 1], way.before[: meeting + 1])
        if ascent.held_bytes(self.walker.reach - ascent.reach + rows) <= self.budget:
            self.meeting = meeting

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        way, adjoint = self._way(times), None
        times = [time - way.first for time in times]
        at = torch.as_tensor(times, device=self.subject.frames.device)
        links = list(zip(way.links, way.before, self.taps, strict=True))
        for place in reversed(range(len(links))):
            link, before, taps = links[place]
            if place == self.meeting and adjoint is not None:
                return self._met(way, adjoint, times)
            if isinstance(link, Convolution):
                if adjoint is None or taps is None:
                    adjoint = Adjoint([self._first(link, len(times))], link.dilation)
                else:
                    adjoint = adjoint.through(taps, link.dilation)
            elif adjoint is None:
                adjoint = Adjoint([self._output_slope(link, at)], 0)
            else:
                adjoint.times_slopes(link, before, times)
        if adjoint is None:
            raise ValueError("an empty chain has no dynamic STRF")
        return adjoint.dense(times, self.lags)

    def _met(self, way: Walk, adjoint: Adjoint, times: Sequence[int]) -> Tensor:
        """Weights of the hidden units times their filters: (B, N, L, F)."""
        ascent = self._climb(way)
        n, bands, reach = len(self.neurons), ascent.bands, self.walker.reach
        first = times[0] - (adjoint.n_lags - 1) * adjoint.step
        filters = ascent.filters(first, times[-1] + 1)
        block = self.subject.frames.new_zeros(len(times), n, reach * bands)
        for phase, ages in adjoint.stretches():
            for units, age in zip(phase, ages, strict=True):
                place = (reach - age - ascent.reach) * bands
                for row, time in enumerate(times):
                    part = block[row, :, place : place + ascent.reach * bands]
                    part.addmm_(units[row * n : (row + 1) * n], filters[time - age - first])
        rows = block.view(len(times), n, reach, bands).permute(2, 0, 1, 3).flatten(1, 2)
        return Adjoint([rows], 1).dense(times, self.lags)

    def _climb(self, way: Walk) -> Ascent:
        """The ascent on a piece, with the filters that the block before has computed."""
        if self.ascent is None or self.ascent[0] != way.first:
            top = cast(int, self.meeting) + 1
            self.ascent = way.first, Ascent(way.links[:top], way.before[:top])
        return self.ascent[1]

    def _first(self, link: Convolution, n_times: int) -> Tensor:
        """The topmost weights, the same for all times."""
        weight = link.weight[self.neurons]  # (N, C, K)
        return weight.permute(2, 0, 1).unsqueeze(1).repeat(1, n_times, 1, 1).flatten(1, 2)

    def _output_slope(self, link: Tensor, at: Tensor) -> Tensor:
        """A nonlinearity on top: its slope at each time, as weights from a neuron to itself."""
        slope = link[at]  # (B, C); a padding's mask has one column
        if slope.shape[1] == 1:
            slope = slope.expand(-1, self.subject.output().shape[0])
        rows = slope.new_zeros(len(at), len(self.neurons), slope.shape[1])
        index = torch.arange(len(self.neurons), device=at.device)
        rows[:, index, self.neurons] = slope[:, self.neurons]
        return rows.flatten(0, 1).unsqueeze(0)


class ClosedForm(Sweep):
    """One convolution and elementwise functions around it: the kernel, times the slope at each time.

    Nothing is differentiated anew for a time when the slopes before the kernel are the same at all of them.

    Examples
    --------
    >>> from deepSTRF.interpret.dynamic.chain import chain_of
    >>> from deepSTRF.models.audio import Linear
    >>> model, clip = Linear(8, 3).eval(), torch.randn(8, 50)
    >>> subject = Subject(model, clip, "spectrogram")
    >>> form = ClosedForm(subject, [0], 3, Walker(chain_of(model, subject.frames), clip, budget=2**20))
    >>> bool(torch.allclose(form.block([20])[0, 0].T, model.STRF_weight(folded=True)[0]))
    True
    """

    @staticmethod
    def suits(walker: Walker) -> bool:
        """Whether a chain has this form.

        Parameters
        ----------
        walker : Walker
            A clip's way.

        Returns
        -------
        bool
            Whether there is one convolution, and constant slopes before it.
        """
        way = walker.to(0, 0)
        if way is None:
            return False
        kinds = [isinstance(link, Convolution) for link in way.links]
        if sum(kinds) != 1:
            return False
        below = way.links[: kinds.index(True)]
        return all(_constant(link) for link in below if isinstance(link, Tensor) and link.shape[1] > 1)

    def prepare(self, times: Sequence[int]) -> None:
        """Settle how large blocks may be."""
        self.size = max(1, self.budget // max(1, 2 * self.row_bytes()))

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks, however far apart they are: the slopes of all are at hand."""
        return Estimator.cut(self, times)

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        at = torch.as_tensor(times, device=self.subject.frames.device)
        kernel, slope = self._parts(at)
        block = slope[:, :, None, None] * kernel
        age = torch.arange(self.lags - 1, -1, -1, device=at.device)
        exists = at.unsqueeze(1) >= age
        if not bool(exists.all()):
            block = block * exists.view(len(at), 1, -1, 1)
        return block

    def _parts(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel (N, L, F), with what stands before it, and the slope (B, N) after it."""
        kernel: Tensor | None = None
        slope = self.subject.frames.new_ones(len(at), len(self.neurons))
        way = self._way([0])  # the whole clip: there is one convolution
        for link, before in zip(way.links, way.before, strict=True):
            if isinstance(link, Convolution):
                taps = link.weight.shape[-1]
                lags = (taps - 1) * link.dilation + 1
                full = link.weight.new_zeros(len(self.neurons), max(lags, self.lags), link.weight.shape[1])
                full[:, full.shape[1] - lags :: link.dilation] = link.weight[self.neurons].transpose(1, 2)
                kernel = full[:, -self.lags :] if kernel is None else full[:, -self.lags :] * kernel
            elif kernel is not None and kernel.ndim == 3:
                slope = slope * link[at + before][:, self.neurons if link.shape[1] > 1 else [0]]
            elif link.shape[1] > 1:  # a padding's mask only marks what is before the clip
                gain = link[-1]
                kernel = gain if kernel is None else kernel * gain
        if kernel is None:
            raise ValueError("a chain without a convolution has no closed form")
        return kernel, slope


def _constant(slope: Tensor) -> bool:
    return bool((slope == slope[-1:]).all())
