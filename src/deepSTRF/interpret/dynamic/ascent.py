"""Filters of hidden units: with many outputs it pays to climb part of the way from the input.

The filter of a hidden unit at one frame is the same for every response that sees it. A sweep from the outputs
computes it anew for each; where there are many outputs, filters of a middle layer are computed once per frame
instead, from the input up, and the sweep meets them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from deepSTRF.interpret.dynamic.chain import Convolution

__all__ = ["Ascent", "cheapest_meeting"]


class Ascent:
    """Filters (C, R, F) of the units that one convolution returns, at frames asked for in ascending order.

    Parameters
    ----------
    links : list of Convolution or Tensor
        As in `Walk`: from the input to that convolution.
    before : list of int
        Frames that each of them holds before the clip.

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
        """Return the filters at frames ``first`` to ``stop``, each (C, R * F), lags oldest first.

        Parameters
        ----------
        first, stop : int
            Frames of the clip; negative ones are before it.

        Returns
        -------
        list of Tensor
            Those before ``first`` are forgotten, those after it kept for the next call.
        """
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
        """Return the memory that filters of this layer and those below take.

        Parameters
        ----------
        frames : int
            Frames that are asked for at once.

        Returns
        -------
        int
            Bytes.
        """
        own = self.taps.shape[1] * self.reach * self.bands * self.taps.element_size()
        if self.below is None:
            return own * frames
        inner = self.below.taps.shape[1] * self.below.reach * self.bands * self.taps.element_size()
        return own * frames + inner * (frames + self.span) + self.below.held_bytes(1)


def cheapest_meeting(
    links: Sequence[Convolution | Tensor], grids: dict[int, int], outputs: int
) -> int | None:
    """Return at which convolution sweep and ascent meet best.

    Parameters
    ----------
    links : sequence of Convolution or Tensor
        From input to output.
    grids : dict
        For each convolution, on how many lags the sweep needs its output.
    outputs : int
        Neurons.

    Returns
    -------
    int or None
        Place of the convolution in ``links``; None where sweeping all the way costs least.

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
