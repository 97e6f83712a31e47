"""The fast ways: a closed form for linear models, an adjoint sweep for chains of convolutions.

One pass through the clip notes the slope of every unit at every frame. A dynamic STRF is then the product of
the weights with these slopes between them, taken from the output down, on the few lags that a dilated stack
really uses: no graph is built, and nothing is computed for frames that a response does not see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import cast

import torch
from torch import Tensor

from deepSTRF.interpret.dstrf.chain import Convolution, Link, Padding
from deepSTRF.interpret.dstrf.estimators import Estimator
from deepSTRF.interpret.dstrf.target import Subject
from deepSTRF.interpret.dstrf.verification import agree

__all__ = [
    "Adjoint",
    "Ascent",
    "ClosedForm",
    "Sweep",
    "Walk",
    "Walker",
    "cheapest_meeting",
    "grid_below",
    "walk",
]

# ------------------------------------------------------------------------------
# A clip's way through a chain of convolutions: the slope of every unit at every frame.


@dataclass(frozen=True)
class Walk:
    """A clip's way through a chain.

    Attributes
    ----------
    links : list of Convolution or Tensor
        From input to output: convolutions, and between them slopes (T + before, C), where ``before`` is how
        many frames that layer holds before the clip.
    before : list of int
        Those frames, for each link; of a convolution, those that it returns.
    output : Tensor (N, T)
        The responses.
    first : int
        Frame of the clip that frame 0 of the way is.

    Examples
    --------
    >>> walk([Convolution(torch.ones(2, 3, 5), None, 1)], torch.zeros(3, 5)) is None  # shorter than the clip
    True
    """

    links: list[Convolution | Tensor]
    before: list[int]
    output: Tensor
    first: int = 0


def walk(chain: list[Link], features: Tensor) -> Walk | None:
    """Send a clip through a chain and note the slopes.

    Shapes: features (F, T).

    Examples
    --------
    >>> from deepSTRF.interpret.dstrf.chain import Pointwise
    >>> chain = [Padding(4, 0), Convolution(torch.ones(2, 3, 5), None, 1), Pointwise(torch.relu)]
    >>> walk(chain, torch.ones(3, 20)).output[:, 0].tolist()
    [3.0, 3.0]
    """
    z, length = features, features.shape[1]
    before = after = 0
    links: list[Convolution | Tensor] = []
    offsets: list[int] = []
    for link in chain:
        if isinstance(link, Convolution):
            span = (link.weight.shape[-1] - 1) * link.dilation
            if z.shape[1] <= span:
                return None
            before -= span
            links.append(link)
            offsets.append(before)
        elif isinstance(link, Padding):
            before, after = before + link.left, after + link.right
            if link.left > 0:
                # what stands before the padding does not reach the padded frames
                mask = z.new_ones(z.shape[1] + link.left, 1)
                mask[: link.left] = 0
                links.append(mask)
                offsets.append(before)
        else:
            with torch.enable_grad():
                inside = z.detach().requires_grad_()
                out = link(inside)
                (slope,) = torch.autograd.grad(out.sum(), inside)
            links.append(slope.T.contiguous())
            offsets.append(before)
        z = link(z).detach()
    if before != 0 or after != 0 or z.shape[1] != length:
        return None
    return Walk(links, offsets, z)


class Walker:
    """Walks through a clip piece by piece, so that a long clip takes no more memory than a short one.

    Shapes: features (F, T).

    Examples
    --------
    >>> chain = [Padding(4, 0), Convolution(torch.ones(2, 3, 5), None, 1)]
    >>> walker = Walker(chain, torch.ones(3, 20), budget=2**20)
    >>> walker.agrees(torch.full((2, 20), 15.0)), walker.reach  # no: the first frames see the padding
    (False, 5)
    """

    def __init__(self, chain: list[Link], features: Tensor, budget: int) -> None:
        self.chain, self.features = chain, features
        convolutions = [link for link in chain if isinstance(link, Convolution)]
        #: Frames that a response depends on, its own included.
        self.reach = 1 + sum((link.weight.shape[-1] - 1) * link.dilation for link in convolutions)
        self.piece = features.shape[1]
        if len(convolutions) > 1:
            # slopes, and as much again while they are made
            widths = [link.weight.shape[0] for link in convolutions]
            per_frame = 2 * features.element_size() * (sum(widths) + features.shape[0])
            self.piece = max(2 * self.reach, budget // per_frame)
        self.way: Walk | None = None

    def to(self, first: int, last: int) -> Walk | None:
        """Return a way that holds what responses at some times depend on."""
        start = max(0, first - self.reach + 1)
        if self.way is None or start < self.way.first or last >= self.way.first + self.way.output.shape[1]:
            self.way = None  # its memory, before the next takes as much
            stop = max(last + 1, start + self.piece)
            found = walk(self.chain, self.features[:, start:stop])
            self.way = None if found is None else replace(found, first=start)
        return self.way

    def agrees(self, output: Tensor) -> bool:
        """Say whether the chain returns a model's responses, by the first piece of the clip and the last.

        Links treat all frames alike but for those at the ends, so that the pieces between need no look.

        Shapes: output (N, T).
        """
        last = output.shape[1] - 1
        walked, wanted = [], []
        for time in (last, 0) if self.piece <= last else (0,):  # the first last: it is where a run begins
            way = self.to(time, time)
            if way is None or way.output.shape[0] != output.shape[0]:
                return False
            valid = 0 if way.first == 0 else self.reach - 1
            walked.append(way.output[:, valid:])
            wanted.append(output[:, way.first + valid :][:, : walked[-1].shape[1]])
        if any(ours.shape != theirs.shape for ours, theirs in zip(walked, wanted, strict=True)):
            return False
        return agree(torch.cat(walked, dim=1), torch.cat(wanted, dim=1))


# ------------------------------------------------------------------------------
# An adjoint on the lags that a dilated stack uses, stored so that a layer takes few, large products.


@dataclass(frozen=True)
class Adjoint:
    """How much some responses depend on each unit of a layer, lag by lag.

    Lags are ``spacing`` frames apart. They lie in m = ``len(phases)`` stretches: lag number p, counted from
    the oldest, is entry ``p // m`` of stretch ``p % m``. Below a dilated convolution a tap leads to every
    second lag, say; in this order its product with all of them is one matrix product and not one for each,
    and ten responses at a time keep a processor as busy as a hundred.

    Attributes
    ----------
    phases : list of Tensor (P', R, C)
        R responses, C units; the stretches differ in length by 1 at most.
    spacing : int
        Frames between lags; 0 where there is one lag only.

    Examples
    --------
    >>> top = Adjoint([torch.ones(2, 1, 3)], spacing=2)  # two lags, two frames apart
    >>> below = top.through(torch.ones(2, 3, 4), dilation=1)  # two taps
    >>> below.n_lags, below.spacing, [len(phase) for phase in below.phases]
    (4, 1, [2, 2])
    """

    phases: list[Tensor]
    spacing: int

    @property
    def n_lags(self) -> int:
        """Number of lags, P."""
        return sum(len(phase) for phase in self.phases)

    @property
    def step(self) -> int:
        """Frames between lags, at least 1."""
        return max(1, self.spacing)

    def stretches(self) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Yield stretches and, for each, the ages of its lags in frames.

        Shapes: yields (P', R, C).
        """
        count, oldest = len(self.phases), (self.n_lags - 1) * self.step
        for number, phase in enumerate(self.phases):
            first = oldest - number * self.step
            yield phase, range(first, first - count * self.step * len(phase), -count * self.step)

    def through(self, taps: Tensor, dilation: int) -> Adjoint:
        """Pull it back through a convolution.

        Shapes: taps (K, C, C_in).
        """
        below, spacing, a, b = grid_below(self.n_lags, self.spacing, len(taps), dilation)
        (_, rows, _), bands = self.phases[0].shape, taps.shape[2]
        count, above = len(self.phases) * a, len(self.phases)
        lengths = [max(0, -(-(below - number) // count)) for number in range(count)]
        # added up in place: products of all taps would take K times the memory
        out = [taps.new_zeros(length, rows, bands) for length in lengths]
        for number, phase in enumerate(self.phases):
            flat = phase.view(-1, phase.shape[2])
            for tap in range(len(taps)):
                # lag q * above + number, tap k: lag (q * above + number) * a + k * b below
                first, into = divmod(number * a + tap * b, above * a)
                target = out[into][first : first + len(phase)]
                target.view(-1, bands).addmm_(flat, taps[tap])
        return Adjoint([phase for phase in out if len(phase)] if below < count else out, spacing)

    def times_slopes(self, slopes: Tensor, before: int, times: Sequence[int]) -> None:
        """Multiply with the slopes of a nonlinearity, in place.

        Shapes: slopes (T', C).
        """
        for phase, ages in self.stretches():
            lags, rows, channels = phase.shape
            seen = _at(slopes, before, times, ages)
            phase.view(lags, len(times), rows // len(times), channels).mul_(seen.unsqueeze(2))

    def dense(self, times: Sequence[int], n_lags: int) -> Tensor:
        """Return (B, N, L, F): every lag, zero where there is none or the clip has not begun."""
        _, rows, bands = self.phases[0].shape
        count = len(times)
        block = self.phases[0].new_zeros(count, rows // count, n_lags, bands)
        apart = len(self.phases) * self.step
        for phase, ages in self.stretches():
            first = n_lags - 1 - ages[0]
            unwanted = max(0, -(first // apart))  # older than what is wanted
            part = phase[unwanted:].view(-1, count, rows // count, bands).permute(1, 2, 0, 3)
            block[:, :, first + unwanted * apart :: apart][:, :, : part.shape[2]] = part
        if min(times) < n_lags - 1:
            exists = torch.as_tensor(times).unsqueeze(1) >= torch.arange(n_lags - 1, -1, -1)
            block *= exists.view(count, 1, n_lags, 1).to(block.device)
        return block


def grid_below(lags: int, spacing: int, taps: int, dilation: int) -> tuple[int, int, int, int]:
    """Return the lags that a convolution needs of its input, and how its own lags and taps fall on them.

    Examples
    --------
    >>> grid_below(lags=5, spacing=8, taps=5, dilation=4)
    (13, 4, 2, 1)
    """
    if lags == 1:
        return taps, dilation, 1, 1
    if taps == 1:
        return lags, spacing, 1, 1
    step = gcd(spacing, dilation)
    a, b = spacing // step, dilation // step
    return (lags - 1) * a + (taps - 1) * b + 1, step, a, b


def _at(slopes: Tensor, before: int, times: Sequence[int], ages: Sequence[int]) -> Tensor:
    """Slopes (P', B, C) at the frames that given ages of each time point to."""
    first, channels = times[0] + before - ages[0], slopes.shape[1]
    if first >= 0 and times[-1] - times[0] + 1 == len(times):
        # consecutive times: a view, nothing is copied
        apart = ages[0] - ages[1] if len(ages) > 1 else 1
        size = (len(ages), len(times), channels)
        return slopes.as_strided(size, (apart * channels, channels, 1), first * channels)
    at = torch.as_tensor(times, device=slopes.device) + before
    frame = at.unsqueeze(0) - torch.as_tensor(ages, device=slopes.device).unsqueeze(1)
    # frames before what a layer holds are before the clip: nothing depends on them
    return slopes[frame.clamp_min(0)] * (frame >= 0).unsqueeze(-1)


# ------------------------------------------------------------------------------
# Filters of hidden units: with many outputs it pays to climb part of the way from the input.
#
# The filter of a hidden unit at one frame is the same for every response that sees it. A sweep from the
# outputs
# computes it anew for each; where there are many outputs, filters of a middle layer are computed once per
# frame instead, from the input up, and the sweep meets them there.


class Ascent:
    """Filters (C, R, F) of the units that one convolution returns, at frames asked for in ascending order.

    Examples
    --------
    >>> ascent = Ascent([Convolution(torch.ones(2, 3, 5), None, 1)], [0])
    >>> len(ascent.filters(0, 4)), ascent.filters(0, 4)[0].shape  # 4 frames, 2 units, 5 lags of 3 bands
    (4, torch.Size([2, 15]))
    """

    def __init__(self, links: Sequence[Convolution | Tensor], before: Sequence[int]) -> None:
        *below, top = links
        if not isinstance(top, Convolution):
            raise TypeError("an ascent ends at a convolution")
        last = max((i for i, link in enumerate(below) if isinstance(link, Convolution)), default=-1)
        # what stands between the convolution below and this one
        self.slopes = [
            (link, offset)
            for link, offset in zip(below[last + 1 :], before[last + 1 : -1], strict=True)
            if isinstance(link, Tensor)
        ]
        self.below = Ascent(links[: last + 1], before[: last + 1]) if last >= 0 else None
        self.taps = top.weight.permute(2, 0, 1).contiguous()
        self.dilation = top.dilation
        self.span = (len(self.taps) - 1) * self.dilation
        self.reach: int = self.span + (self.below.reach if self.below else 1)
        self.bands: int = self.below.bands if self.below else int(top.weight.shape[1])
        #: Filters by frame; and those of the layer below, times the slopes between.
        self._held: dict[int, Tensor] = {}
        self._inner: dict[int, Tensor] = {}

    def filters(self, first: int, stop: int) -> list[Tensor]:
        """Return the filters at frames ``first`` to ``stop``, each (C, R * F), lags oldest first."""
        self._held = {frame: kept for frame, kept in self._held.items() if frame >= first}
        missing = [frame for frame in range(first, stop) if frame not in self._held]
        if missing:
            compute = self._weights if self.below is None else self._products
            new = compute(missing[0], missing[-1] + 1)
            self._held.update(zip(range(missing[0], missing[-1] + 1), new, strict=True))
        return [self._held[frame] for frame in range(first, stop)]

    def _weights(self, first: int, stop: int) -> list[Tensor]:
        """The first convolution: its weights, times the slopes of the input."""
        taps, slope = self.taps, self._slope(first - self.span, stop)
        out = taps.new_zeros(stop - first, taps.shape[1], self.reach, self.bands)
        for tap in range(len(taps)):
            at = tap * self.dilation
            out[:, :, at] = taps[tap] * slope[at : at + stop - first].unsqueeze(1)
        return list(out.flatten(2))

    def _products(self, first: int, stop: int) -> list[Tensor]:
        """Another one: its weights times the filters below."""
        below = cast(Ascent, self.below)
        start, width = first - self.span, below.reach * self.bands
        self._inner = {frame: kept for frame, kept in self._inner.items() if frame >= start}
        new = max([start, *(frame + 1 for frame in self._inner)])
        if new < stop:
            slope = self._slope(new, stop).unsqueeze(-1)
            for frame, filters in enumerate(below.filters(new, stop)):
                self._inner[new + frame] = filters * slope[frame]
        found = []
        for frame in range(first, stop):
            out = self.taps.new_zeros(self.taps.shape[1], self.reach * self.bands)
            for tap in range(len(self.taps)):
                at = tap * self.dilation
                part = out[:, at * self.bands : at * self.bands + width]
                part.addmm_(self.taps[tap], self._inner[frame - self.span + at])
            found.append(out)
        return found

    def _slope(self, first: int, stop: int) -> Tensor:
        """Product of the slopes below, (frames, C_in); zero where a layer holds no such frame."""
        total = self.taps.new_ones(stop - first, self.taps.shape[2])
        for link, offset in self.slopes:
            at = torch.arange(first, stop, device=link.device) + offset
            exists = (at >= 0) & (at < len(link))
            total *= link[at.clamp(0, len(link) - 1)] * exists.unsqueeze(1)
        return total

    def held_bytes(self, frames: int) -> int:
        """Return the memory that filters of this layer and those below take."""
        own = self.taps.shape[1] * self.reach * self.bands * self.taps.element_size()
        if self.below is None:
            return own * frames
        inner = self.below.taps.shape[1] * self.below.reach * self.bands * self.taps.element_size()
        return own * frames + inner * (frames + self.span) + self.below.held_bytes(1)


def cheapest_meeting(
    links: Sequence[Convolution | Tensor], grids: dict[int, int], outputs: int
) -> int | None:
    """Return at which convolution sweep and ascent meet best.

    Examples
    --------
    >>> layers = [Convolution(torch.ones(64, 8, 5), None, 1), Convolution(torch.ones(64, 64, 5), None, 1)]
    >>> cheapest_meeting(layers, {0: 5, 1: 1}, outputs=1), cheapest_meeting(layers, {0: 5, 1: 1}, outputs=500)
    (None, 1)
    """
    convolutions = [(i, link) for i, link in enumerate(links) if isinstance(link, Convolution)]
    bands = convolutions[0][1].weight.shape[1]
    swept = {i: outputs * grids[i] * link.weight.numel() for i, link in convolutions}
    best: tuple[int, int | None] = (sum(swept.values()), None)
    climbed, reach = 0, 1
    for place, link in convolutions:
        if place != convolutions[0][0]:  # the first convolution's filters are its weights
            climbed += link.weight.numel() * reach * bands
        reach += (link.weight.shape[-1] - 1) * link.dilation
        met = outputs * grids[place] * link.weight.shape[0] * reach * bands
        above = sum(cost for i, cost in swept.items() if i > place)
        if place != convolutions[0][0]:
            best = min(best, (above + met + climbed, place), key=lambda pair: pair[0])
    return best[1]


# ------------------------------------------------------------------------------

#: Rows of a block: enough for a product to run at full speed, few enough that a layer stays in a processor's
#: cache (measured with 128 units: 128 to 480 rows are alike on one thread and two).
_ROWS = 240


class Sweep(Estimator):
    """The adjoint sweep.

    Examples
    --------
    >>> from torch import nn
    >>> from deepSTRF.interpret.dstrf.chain import chain_of
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
    >>> from deepSTRF.interpret.dstrf.chain import chain_of
    >>> from deepSTRF.models.audio import Linear
    >>> model, clip = Linear(8, 3).eval(), torch.randn(8, 50)
    >>> subject = Subject(model, clip, "spectrogram")
    >>> form = ClosedForm(subject, [0], 3, Walker(chain_of(model, subject.frames), clip, budget=2**20))
    >>> bool(torch.allclose(form.block([20])[0, 0].T, model.STRF_weight(folded=True)[0]))
    True
    """

    @staticmethod
    def suits(walker: Walker) -> bool:
        """Whether a chain has this form."""
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
