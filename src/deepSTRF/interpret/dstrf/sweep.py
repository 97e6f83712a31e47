"""Adjoint sweep: dynamic STRFs of chains of convolutions, from the output down through stored slopes.

A dynamic STRF of a linearized chain is the product of its weights with the slopes between them, taken from
the output down, on the few lags that a dilated stack really uses: no graph is built, and nothing is computed
for frames that a response does not depend on. With many outputs sweep and ascent meet in between: the filters
of a hidden layer at one frame are the same for every response that depends on it, so they are computed once
per frame from the input up (`Ascent`), and the sweep ends at that layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import cast

import torch
from torch import Tensor

from deepSTRF.interpret.dstrf.linearization import Convolution, Linearization, Linearizer
from deepSTRF.interpret.dstrf.target import Estimator, Target

#: Rows of a block: enough for a product to run at full speed, few enough that a layer stays in a processor's
#: cache (measured with 128 units: 128 to 480 rows are alike on one thread and two).
_ROWS = 240


class Sweep(Estimator):
    """Adjoint sweep through a chain of convolutions."""

    name = "sweep"

    def __init__(
        self, target: Target, neurons: list[int], lags: int, linearizer: Linearizer, budget: int = 2**28
    ) -> None:
        super().__init__(target, neurons, lags, linearizer.receptive_field, budget)
        self.linearizer = linearizer
        # newest tap last, each a matrix from outputs to inputs
        self.taps = [
            link.weight.permute(2, 0, 1).contiguous() if isinstance(link, Convolution) else None
            for link in linearizer.covering([0]).links
        ]
        self.meeting: int | None = None
        self.ascent: tuple[int, Ascent] | None = None

    def prepare(self, times: Sequence[int]) -> None:
        """Set how many times fit the budget and a processor's cache, and where to meet."""
        rows = self.budget // max(1, self._bytes_per_time(times))
        if self.target.frames.device.type == "cpu":
            rows = min(rows, _ROWS // len(self.neurons))
        rows = max(1, rows)
        self._set_meeting(times, rows)
        blocks = -(-len(times) // rows)
        self.size = -(-len(times) // blocks)  # blocks of one size

    def _bytes_per_time(self, times: Sequence[int]) -> int:
        """Working memory of one time: two neighbouring layers on their lags, and the result."""
        widest, lags, spacing = 0, 1, 0
        for link in reversed(self.linearizer.covering(times[:1]).links):
            if isinstance(link, Convolution):
                c_out, c_in, taps = link.weight.shape
                above, (lags, spacing, *_) = lags * c_out, grid_below(lags, spacing, taps, link.dilation)
                widest = max(widest, above + lags * c_in)
        return len(self.neurons) * widest * self.target.frames.element_size() + 2 * self.row_bytes()

    def _set_meeting(self, times: Sequence[int], rows: int) -> None:
        """Ascend from the input where that saves work, times are consecutive, and memory allows."""
        self.meeting = self.ascent = None
        if times[-1] - times[0] + 1 != len(times):
            return
        piece = self.linearizer.covering(times[:1])
        grids, lags, spacing = {}, 1, 0
        for place in reversed(range(len(piece.links))):
            link = piece.links[place]
            if isinstance(link, Convolution):
                grids[place] = lags
                lags, spacing, *_ = grid_below(lags, spacing, link.weight.shape[-1], link.dilation)
        meeting = cheapest_meeting(piece.links, grids, len(self.neurons))
        if meeting is None:
            return
        ascent = Ascent(piece.links[: meeting + 1], piece.before[: meeting + 1])
        if ascent.held_bytes(self.linearizer.receptive_field - ascent.n_lags + rows) <= self.budget:
            self.meeting = meeting

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks."""
        # far apart, two times would need the slopes of everything between them
        farthest = max(self.size, self.linearizer.receptive_field)
        blocks: list[list[int]] = []
        for time in times:
            if not blocks or len(blocks[-1]) == self.size or time - blocks[-1][0] > farthest:
                blocks.append([])
            blocks[-1].append(time)
        return blocks

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        piece, adjoint = self.linearizer.covering(times), None
        times = [time - piece.first for time in times]
        links = list(zip(piece.links, piece.before, self.taps, strict=True))
        for place in reversed(range(len(links))):
            link, before, taps = links[place]
            if place == self.meeting and adjoint is not None:
                return self._met(piece, adjoint, times)
            if isinstance(link, Convolution):
                if adjoint is None or taps is None:  # the topmost weights, the same for all times
                    weight = link.weight[self.neurons].permute(2, 0, 1).unsqueeze(1)  # (K, 1, N, C)
                    adjoint = Adjoint([weight.repeat(1, len(times), 1, 1).flatten(1, 2)], link.dilation)
                else:
                    adjoint = adjoint.through(taps, link.dilation)
            elif adjoint is None:
                adjoint = Adjoint([self._output_slope(link, times)], 0)
            else:
                adjoint.times_slopes(link, before, times)
        if adjoint is None:
            raise ValueError("an empty chain has no dynamic STRF")
        return adjoint.dense(times, self.lags)

    def _output_slope(self, link: Tensor, times: Sequence[int]) -> Tensor:
        """A nonlinearity on top: its slope at each time, as weights from a neuron to itself."""
        at = torch.as_tensor(times, device=self.target.frames.device)
        slope = link[at]  # (B, C); a padding's mask has one column
        if slope.shape[1] == 1:
            slope = slope.expand(-1, self.target.output().shape[0])
        rows = slope.new_zeros(len(at), len(self.neurons), slope.shape[1])
        index = torch.arange(len(self.neurons), device=at.device)
        rows[:, index, self.neurons] = slope[:, self.neurons]
        return rows.flatten(0, 1).unsqueeze(0)

    def _met(self, piece: Linearization, adjoint: Adjoint, times: Sequence[int]) -> Tensor:
        """Weights of the hidden units times their filters: (B, N, L, F)."""
        if self.ascent is None or self.ascent[0] != piece.first:  # else with the filters of the block before
            top = cast(int, self.meeting) + 1
            self.ascent = piece.first, Ascent(piece.links[:top], piece.before[:top])
        ascent = self.ascent[1]
        n, bands, n_lags = len(self.neurons), ascent.bands, self.linearizer.receptive_field
        first = times[0] - (adjoint.n_lags - 1) * adjoint.step
        filters = ascent.filters(first, times[-1] + 1)
        block = self.target.frames.new_zeros(len(times), n, n_lags * bands)
        for phase, ages in adjoint.stretches():
            for units, age in zip(phase, ages, strict=True):
                place = (n_lags - age - ascent.n_lags) * bands
                for row, time in enumerate(times):
                    part = block[row, :, place : place + ascent.n_lags * bands]
                    part.addmm_(units[row * n : (row + 1) * n], filters[time - age - first])
        rows = block.view(len(times), n, n_lags, bands).permute(2, 0, 1, 3).flatten(1, 2)
        return Adjoint([rows], 1).dense(times, self.lags)


@dataclass(frozen=True)
class Adjoint:
    """How much some responses depend on each unit of a layer, lag by lag.

    Lags are ``spacing`` frames apart, stored in m = ``len(phases)`` stretches: lag number p, counted from the
    oldest, is entry ``p // m`` of stretch ``p % m``. Below a dilated convolution a tap leads to every second
    lag, for instance; in this order its product with all of them is one matrix product instead of many, and
    ten responses at a time keep a processor as busy as a hundred.

    ``phases`` holds the stretches (P', R, C) of R responses and C units, whose lengths differ by 1 at most;
    ``spacing`` is the frames between lags, 0 where there is one lag only.
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
        """Yield stretches (P', R, C) and, for each, the ages of its lags in frames."""
        count, oldest = len(self.phases), (self.n_lags - 1) * self.step
        for number, phase in enumerate(self.phases):
            first = oldest - number * self.step
            yield phase, range(first, first - count * self.step * len(phase), -count * self.step)

    def through(self, taps: Tensor, dilation: int) -> Adjoint:
        """Return the adjoint below a convolution with taps (K, C, C_in)."""
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
        """Multiply with the slopes (T', C) of a nonlinearity, in place."""
        for phase, ages in self.stretches():
            lags, rows, channels = phase.shape
            passed = _at(slopes, before, times, ages)
            phase.view(lags, len(times), rows // len(times), channels).mul_(passed.unsqueeze(2))

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
    """Return number and spacing of the lags that a convolution needs of its input, and its own steps there.

    Lag q of the output and tap k meet lag ``q * a + k * b`` of the input; returned are (lags, spacing, a, b).
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


class Ascent:
    """Filters of the units that one convolution returns, at frames requested in ascending order."""

    def __init__(self, links: Sequence[Convolution | Tensor], before: Sequence[int]) -> None:
        *below, top = links
        if not isinstance(top, Convolution):
            raise TypeError("an ascent ends at a convolution")
        last = max((i for i, link in enumerate(below) if isinstance(link, Convolution)), default=-1)
        # slopes between the convolution below and this one
        self.slopes = [
            (link, offset)
            for link, offset in zip(below[last + 1 :], before[last + 1 : -1], strict=True)
            if isinstance(link, Tensor)
        ]
        self.below = Ascent(links[: last + 1], before[: last + 1]) if last >= 0 else None
        self.taps = top.weight.permute(2, 0, 1).contiguous()
        self.dilation = top.dilation
        self.span = top.span
        self.n_lags: int = self.span + (self.below.n_lags if self.below else 1)
        self.bands: int = self.below.bands if self.below else int(top.weight.shape[1])
        #: Filters by frame; and those of the layer below, times the slopes between.
        self._held: dict[int, Tensor] = {}
        self._inner: dict[int, Tensor] = {}

    def filters(self, first: int, stop: int) -> list[Tensor]:
        """Return the filters at frames ``first`` to ``stop``, each (C, n_lags * F), lags oldest first."""
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
        out = taps.new_zeros(stop - first, taps.shape[1], self.n_lags, self.bands)
        for tap in range(len(taps)):
            at = tap * self.dilation
            out[:, :, at] = taps[tap] * slope[at : at + stop - first].unsqueeze(1)
        return list(out.flatten(2))

    def _products(self, first: int, stop: int) -> list[Tensor]:
        """Another one: its weights times the filters below."""
        below = cast(Ascent, self.below)
        start, width = first - self.span, below.n_lags * self.bands
        self._inner = {frame: kept for frame, kept in self._inner.items() if frame >= start}
        new = max([start, *(frame + 1 for frame in self._inner)])
        if new < stop:
            slope = self._slope(new, stop).unsqueeze(-1)
            for frame, filters in enumerate(below.filters(new, stop)):
                self._inner[new + frame] = filters * slope[frame]
        found = []
        for frame in range(first, stop):
            out = self.taps.new_zeros(self.taps.shape[1], self.n_lags * self.bands)
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
        own = self.taps.shape[1] * self.n_lags * self.bands * self.taps.element_size()
        if self.below is None:
            return own * frames
        inner = self.below.taps.shape[1] * self.below.n_lags * self.bands * self.taps.element_size()
        return own * frames + inner * (frames + self.span) + self.below.held_bytes(1)


def cheapest_meeting(
    links: Sequence[Convolution | Tensor], grids: dict[int, int], outputs: int
) -> int | None:
    """Return the convolution at which sweep and ascent meet with the fewest products; None for no ascent."""
    convolutions = [(i, link) for i, link in enumerate(links) if isinstance(link, Convolution)]
    bands = convolutions[0][1].weight.shape[1]
    swept = {i: outputs * grids[i] * link.weight.numel() for i, link in convolutions}
    best: tuple[int, int | None] = (sum(swept.values()), None)
    ascended, n_lags = 0, 1
    for place, link in convolutions:
        if place != convolutions[0][0]:  # the first convolution's filters are its weights
            ascended += link.weight.numel() * n_lags * bands
        n_lags += link.span
        met = outputs * grids[place] * link.weight.shape[0] * n_lags * bands
        above = sum(cost for i, cost in swept.items() if i > place)
        if place != convolutions[0][0]:
            best = min(best, (above + met + ascended, place), key=lambda pair: pair[0])
    return best[1]
