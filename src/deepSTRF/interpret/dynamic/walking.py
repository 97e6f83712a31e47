"""A clip's way through a chain of convolutions: the slope of every unit at every frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepSTRF.interpret.dynamic.chain import Convolution, Link, Padding
from deepSTRF.interpret.dynamic.checking import agree

__all__ = ["Walk", "Walker", "walk"]


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

    Parameters
    ----------
    chain : list of Link
        From `chain_of`.
    features : Tensor (F, T)
        The clip.
    budget : int
        Bytes that the slopes of a piece may take; a single response may need more. A chain of one
        convolution walks in one piece: its slopes are small beside any result.

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
        """Return a way that holds what responses at some times depend on.

        Parameters
        ----------
        first, last : int
            First and last of the times.

        Returns
        -------
        Walk or None
            None when the chain does not return as many frames as it was given, aligned with them.
        """
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

        Parameters
        ----------
        output : Tensor (N, T)
            Responses to the whole clip.

        Returns
        -------
        bool
            Whether they are the same but for rounding.
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
