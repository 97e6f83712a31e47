"""The fast ways: a closed form for linear models, an adjoint sweep for chains of convolutions.

One pass through the clip notes the slope of every unit at every frame. A dynamic STRF is then the product of
the weights with these slopes between them, taken from the output down, on the few lags that a dilated stack
really uses: no graph is built, and nothing is computed for frames that a response does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import cast

import torch
from torch import Tensor

from deepSTRF.interpret.dynamic.ascent import Ascent, cheapest_meeting
from deepSTRF.interpret.dynamic.chain import Convolution, Link, Padding
from deepSTRF.interpret.dynamic.estimators import Estimator
from deepSTRF.interpret.dynamic.subject import Subject

__all__ = ["ClosedForm", "Sweep", "Walk", "walk"]

#: Rows of a block: enough for a product to run at full speed, few enough that a layer stays in a processor's
#: cache (measured with 128 units: 256 to 480 rows are alike, fewer and more are slower).
_ROWS = 480


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
    reach : int
        Frames that a response depends on.

    Examples
    --------
    >>> walk([Convolution(torch.ones(2, 3, 5), None, 1)], torch.zeros(3, 5)) is None  # shorter than the clip
    True
    """

    links: list[Convolution | Tensor]
    before: list[int]
    output: Tensor
    reach: int


def walk(chain: list[Link], features: Tensor) -> Walk | None:
    """Send a clip through a chain and note the slopes.

    Parameters
    ----------
    chain : list of Link
        From `chain_of`.
    features : Tensor (F, T)
        The clip.

    Returns
    -------
    Walk or None
        None when the chain does not return as many frames as it was given, aligned with them.

    Examples
    --------
    >>> from deepSTRF.interpret.dynamic.chain import Pointwise
    >>> chain = [Padding(4, 0), Convolution(torch.ones(2, 3, 5), None, 1), Pointwise(torch.relu)]
    >>> walk(chain, torch.ones(3, 20)).output[:, 0].tolist()
    [3.0, 3.0]
    """
    z, length = features, features.shape[1]
    before = after = 0
    reach = 1
    links: list[Convolution | Tensor] = []
    offsets: list[int] = []
    for link in chain:
        if isinstance(link, Convolution):
            span = (link.weight.shape[-1] - 1) * link.dilation
            if z.shape[1] <= span:
                return None
            before, reach = before - span, reach + span
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
    return Walk(links, offsets, z, reach)


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
    way : Walk
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
    >>> sweep = Sweep(subject, [0], 3, walk(chain_of(model, subject.frames), clip))
    >>> sweep.block([20, 21]).shape
    torch.Size([2, 1, 3, 8])
    """

    def __init__(
        self, subject: Subject, neurons: list[int], lags: int, way: Walk, budget: int = 2**28
    ) -> None:
        super().__init__(subject, neurons, lags, way.reach, budget)
        self.way = way
        # newest tap last, each a matrix from outputs to inputs
        self.taps = [
            link.weight.permute(2, 0, 1).contiguous() if isinstance(link, Convolution) else None
            for link in way.links
        ]
        self.meeting: int | None = None
        self.ascent: Ascent | None = None

    def bytes_per_time(self, times: Sequence[int]) -> int:
        """Working memory of one time: two neighbouring layers on their lags, and the result."""
        widest, lags, spacing = 0, 1, 0
        for link in reversed(self.way.links):
            if isinstance(link, Convolution):
                c_out, c_in, taps = link.weight.shape
                above, (lags, spacing, *_) = lags * c_out, _grid(lags, spacing, taps, link.dilation)
                widest = max(widest, above + lags * c_in)
        return len(self.neurons) * widest * self.subject.frames.element_size() + 2 * self.row_bytes()

    def plan(self, times: Sequence[int]) -> list[list[int]]:
        """Cut times into blocks that fit the budget and a processor's cache; choose where to meet."""
        rows = self.budget // max(1, self.bytes_per_time(times))
        if self.subject.frames.device.type == "cpu":
            rows = min(rows, _ROWS // len(self.neurons))
        self._choose_meeting(times, max(1, rows))
        blocks = -(-len(times) // max(1, rows))
        size = -(-len(times) // blocks)  # blocks of one size
        return [list(times[first : first + size]) for first in range(0, len(times), size)]

    def _choose_meeting(self, times: Sequence[int], rows: int) -> None:
        """Climb from the input where that saves work, bins follow each other, and memory allows."""
        self.meeting = self.ascent = None
        if times[-1] - times[0] + 1 != len(times):
            return
        grids, lags, spacing = {}, 1, 0
        for place in reversed(range(len(self.way.links))):
            link = self.way.links[place]
            if isinstance(link, Convolution):
                grids[place] = lags
                lags, spacing, *_ = _grid(lags, spacing, link.weight.shape[-1], link.dilation)
        meeting = cheapest_meeting(self.way.links, grids, len(self.neurons))
        if meeting is None:
            return
        ascent = Ascent(self.way.links[: meeting + 1], self.way.before[: meeting + 1])
        if ascent.held_bytes(self.way.reach - ascent.reach + rows) <= self.budget:
            self.meeting, self.ascent = meeting, ascent

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        adjoint: Tensor | None = None  # (P, B * N, C): P lags, oldest first, ``spacing`` frames apart
        spacing, n = 0, len(self.neurons)
        at = torch.as_tensor(times, device=self.subject.frames.device)
        way = reversed(list(zip(self.way.links, self.way.before, self.taps, strict=True)))
        for place, (link, before, taps) in zip(reversed(range(len(self.taps))), way, strict=True):
            if place == self.meeting and adjoint is not None:
                return self._met(adjoint, max(1, spacing), times)
            if isinstance(link, Convolution):
                if adjoint is None or taps is None:
                    adjoint = self._first(link, len(times))
                    spacing = link.dilation
                else:
                    adjoint, spacing = _back_through(taps, link.dilation, adjoint, spacing)
            elif adjoint is None:
                adjoint = self._output_slope(link, at)
            else:
                lags, rows, channels = adjoint.shape
                slope = _slopes(link, before, times, lags, max(1, spacing))
                adjoint.view(lags, rows // n, n, channels).mul_(slope.unsqueeze(2))
        if adjoint is None:
            raise ValueError("an empty chain has no dynamic STRF")
        return self._dense(adjoint, max(1, spacing), at)

    def _met(self, adjoint: Tensor, spacing: int, times: Sequence[int]) -> Tensor:
        """Weights of the hidden units (P, B * N, C) times their filters: (B, N, L, F)."""
        ascent = cast(Ascent, self.ascent)
        n, bands, reach = len(self.neurons), ascent.bands, self.way.reach
        ages = range((len(adjoint) - 1) * spacing, -1, -spacing)
        first = times[0] - ages[0]
        filters = ascent.filters(first, times[-1] + 1)
        block = adjoint.new_zeros(len(times), n, reach * bands)
        for row, time in enumerate(times):
            for units, age in zip(adjoint, ages, strict=True):
                place = (reach - age - ascent.reach) * bands
                part = block[row, :, place : place + ascent.reach * bands]
                part.addmm_(units[row * n : (row + 1) * n], filters[time - age - first])
        rows = block.view(len(times), n, reach, bands).permute(2, 0, 1, 3).flatten(1, 2)
        return self._dense(rows, 1, torch.as_tensor(times, device=block.device))

    def _first(self, link: Convolution, n_times: int) -> Tensor:
        """The topmost weights, the same for all times."""
        weight = link.weight[self.neurons]  # (N, C, K)
        return weight.permute(2, 0, 1).unsqueeze(1).repeat(1, n_times, 1, 1).flatten(1, 2)

    def _output_slope(self, link: Tensor, at: Tensor) -> Tensor:
        """A nonlinearity on top: its slope at each time, as weights from a neuron to itself."""
        slope = link[at]  # (B, C); a padding's mask has one column
        if slope.shape[1] == 1:
            slope = slope.expand(-1, self.way.output.shape[0])
        rows = slope.new_zeros(len(at), len(self.neurons), slope.shape[1])
        index = torch.arange(len(self.neurons), device=at.device)
        rows[:, index, self.neurons] = slope[:, self.neurons]
        return rows.flatten(0, 1).unsqueeze(0)

    def _dense(self, adjoint: Tensor, spacing: int, at: Tensor) -> Tensor:
        """(P, B * N, F) on its grid -> (B, N, L, F); lags before the clip are zero."""
        lags, _, bands = adjoint.shape
        rows = adjoint.view(lags, len(at), len(self.neurons), bands).permute(1, 2, 0, 3)
        age = torch.arange(lags - 1, -1, -1, device=at.device) * spacing
        exists = at.unsqueeze(1) >= age
        if not bool(exists.all()):
            rows = rows * exists.view(len(at), 1, lags, 1)
        kept = age < self.lags
        if spacing == 1 and lags == self.lags:
            return rows
        block = rows.new_zeros(len(at), len(self.neurons), self.lags, bands)
        block[:, :, self.lags - 1 - age[kept]] = rows[:, :, kept]
        return block


class ClosedForm(Sweep):
    """One convolution and elementwise functions around it: the kernel, times the slope at each time.

    Nothing is differentiated anew for a time when the slopes before the kernel are the same at all of them.

    Examples
    --------
    >>> from deepSTRF.interpret.dynamic.chain import chain_of
    >>> from deepSTRF.models.audio import Linear
    >>> model, clip = Linear(8, 3).eval(), torch.randn(8, 50)
    >>> subject = Subject(model, clip, "spectrogram")
    >>> form = ClosedForm(subject, [0], 3, walk(chain_of(model, subject.frames), clip))
    >>> bool(torch.allclose(form.block([20])[0, 0].T, model.STRF_weight(folded=True)[0]))
    True
    """

    @staticmethod
    def suits(way: Walk) -> bool:
        """Whether a chain has this form.

        Parameters
        ----------
        way : Walk
            A clip's way.

        Returns
        -------
        bool
            Whether there is one convolution, and constant slopes before it.
        """
        kinds = [isinstance(link, Convolution) for link in way.links]
        if sum(kinds) != 1:
            return False
        below = way.links[: kinds.index(True)]
        return all(_constant(link) for link in below if isinstance(link, Tensor) and link.shape[1] > 1)

    def plan(self, times: Sequence[int]) -> list[list[int]]:
        """Cut times into blocks that fit the budget."""
        size = max(1, self.budget // max(1, 2 * self.row_bytes()))
        return [list(times[first : first + size]) for first in range(0, len(times), size)]

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
        for link, before in zip(self.way.links, self.way.before, strict=True):
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


def _grid(lags: int, spacing: int, taps: int, dilation: int) -> tuple[int, int, int, int]:
    """Lags and spacing below a convolution, and by how many of them lags and taps advance."""
    if lags == 1:
        return taps, dilation, 1, 1
    if taps == 1:
        return lags, spacing, 1, 1
    step = gcd(spacing, dilation)
    a, b = spacing // step, dilation // step
    return (lags - 1) * a + (taps - 1) * b + 1, step, a, b


def _back_through(taps: Tensor, dilation: int, adjoint: Tensor, spacing: int) -> tuple[Tensor, int]:
    """Pull (P, R, C_out) back through a convolution (K, C_out, C_in): (P', R, C_in) on its own grid."""
    lags, rows, _ = adjoint.shape
    below, step, a, b = _grid(lags, spacing, len(taps), dilation)
    out = adjoint.new_empty(below, rows, taps.shape[2])
    for place in range(below):
        # the taps that lead here from a lag of the layer above
        sources = [
            ((place - tap * b) // a, tap)
            for tap in range(len(taps))
            if (place - tap * b) % a == 0 and 0 <= (place - tap * b) // a < lags
        ]
        if not sources:
            out[place] = 0
        for index, (lag, tap) in enumerate(sources):
            # added up in place: products of all taps would take K times the memory
            out[place].addmm_(adjoint[lag], taps[tap], beta=float(index > 0))
    return out, step


def _slopes(link: Tensor, before: int, times: Sequence[int], lags: int, spacing: int) -> Tensor:
    """Slopes (P, B, C) at the frames that the lags of each time point to, oldest lag first."""
    first = times[0] + before - (lags - 1) * spacing
    channels = link.shape[1]
    if first >= 0 and times[-1] - times[0] + 1 == len(times):
        # consecutive times: a view, nothing is copied
        return link.as_strided(
            (lags, len(times), channels), (spacing * channels, channels, 1), first * channels
        )
    at = torch.as_tensor(times, device=link.device) + before
    age = torch.arange(lags - 1, -1, -1, device=link.device) * spacing
    frame = at.unsqueeze(0) - age.unsqueeze(1)
    # frames before what a layer holds are before the clip: nothing depends on them
    return link[frame.clamp_min(0)] * (frame >= 0).unsqueeze(-1)
