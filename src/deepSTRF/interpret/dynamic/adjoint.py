"""An adjoint on the lags that a dilated stack uses, stored so that a layer takes few, large products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

__all__ = ["Adjoint", "grid_below"]


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

        Yields
        ------
        tuple
            Tensor (P', R, C), and P' ages, oldest first.
        """
        count, oldest = len(self.phases), (self.n_lags - 1) * self.step
        for number, phase in enumerate(self.phases):
            first = oldest - number * self.step
            yield phase, range(first, first - count * self.step * len(phase), -count * self.step)

    def through(self, taps: Tensor, dilation: int) -> Adjoint:
        """Pull it back through a convolution.

        Parameters
        ----------
        taps : Tensor (K, C, C_in)
            Weights, newest tap last.
        dilation : int
            Frames between taps.

        Returns
        -------
        Adjoint
            That of the convolution's input, on its own lags.
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

        Parameters
        ----------
        slopes : Tensor (T', C) or (T', 1)
            Slope of each unit at each frame.
        before : int
            Frames that the layer holds before the clip.
        times : sequence of int
            The R = B * N responses are N neurons at these B times, times first.
        """
        for phase, ages in self.stretches():
            lags, rows, channels = phase.shape
            seen = _at(slopes, before, times, ages)
            phase.view(lags, len(times), rows // len(times), channels).mul_(seen.unsqueeze(2))

    def dense(self, times: Sequence[int], n_lags: int) -> Tensor:
        """Return (B, N, L, F): every lag, zero where there is none or the clip has not begun.

        Parameters
        ----------
        times : sequence of int
            The B times of the responses.
        n_lags : int
            Lags wanted, L.

        Returns
        -------
        Tensor
            Most recent lag last.
        """
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

    Parameters
    ----------
    lags, spacing : int
        Lags needed of its output, and frames between them.
    taps, dilation : int
        Its taps, and frames between them.

    Returns
    -------
    tuple of int
        Lags and spacing below; by how many of these one lag above, and one tap, advance.

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
