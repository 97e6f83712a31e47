"""Models that look ahead: with its responses delayed, such a model is causal, and every way suits it.

Only the responses at the end of a clip, which look beyond it, want a way of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dstrf.chain import Link, Padding
from deepSTRF.interpret.dstrf.estimators import CarriedWindows, Comb, Estimator, Jacobian, Windows, recent
from deepSTRF.interpret.dstrf.sweep import ClosedForm, Sweep, Walker
from deepSTRF.interpret.dstrf.target import Subject

__all__ = ["METHODS", "Delayed", "LookingAhead", "ToTheEnd", "candidates", "candidates_ahead", "method_name"]

# ------------------------------------------------------------------------------
# Which ways to a dynamic STRF suit a model, in the order of their speed.


#: One part in this many of the working memory is for the slopes along a piece of the clip.
SHARE_OF_SLOPES = 2
METHODS = ("closed", "sweep", "windows", "comb", "jacobian")
#: More special kinds first.
_NAMES: dict[type[Estimator], str] = {
    ClosedForm: "closed",
    Sweep: "sweep",
    Windows: "windows",
    CarriedWindows: "windows",
    Comb: "comb",
    Jacobian: "jacobian",
}
_WHY_NOT = {
    "closed": "the model is not one convolution with elementwise functions around it",
    "sweep": "the model is not a plain chain of convolutions over time and elementwise functions",
    "windows": "the receptive field has no bound and the model has no init_state/step to carry its state",
    "comb": "the receptive field has no bound",
}


def candidates(
    subject: Subject,
    method: str,
    neurons: list[int],
    lags: int,
    reach: int | None,
    budget: int,
    skip: nn.Module | None = None,
) -> list[Estimator]:
    """Return the ways that suit a model, fastest first.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3).eval(), torch.randn(8, 50), "spectrogram")
    >>> [method_name(way) for way in candidates(subject, "auto", [0], 3, 3, 2**20)]
    ['closed', 'sweep', 'windows', 'comb', 'jacobian']
    """
    ways: list[Estimator] = []
    if method in ("auto", "closed", "sweep"):
        walker = _walker(subject, skip, budget)
        if walker is not None and ClosedForm.suits(walker):
            ways.append(ClosedForm(subject, neurons, lags, walker, budget))
        if walker is not None:
            ways.append(Sweep(subject, neurons, lags, walker, budget))
    if reach is not None:
        ways += [kind(subject, neurons, lags, reach, budget) for kind in (Windows, Comb)]
    elif subject.streamable:
        ways.append(CarriedWindows(subject, neurons, lags, None, budget))
    ways.append(Jacobian(subject, neurons, lags, reach, budget))
    chosen = [way for way in ways if method in ("auto", method_name(way))]
    if not chosen:
        raise ValueError(f"method={method!r} does not suit this model: {_WHY_NOT[method]}; use method='auto'")
    return chosen


def method_name(way: Estimator) -> str:
    """Return the name of a way.

    Examples
    --------
    >>> METHODS[-1]
    'jacobian'
    """
    inner = getattr(way, "way", None)  # of delayed responses; a sweep's way is no estimator
    kind = type(inner if isinstance(inner, Estimator) else way)
    return next(name for known, name in _NAMES.items() if issubclass(kind, known))


def _pads_what_was_cut(chain: list[Link]) -> bool:
    """Whether zeros take the place of frames at the end of the clip: what stands there is then no frame."""
    after = 0
    for link in chain:
        if isinstance(link, Padding):
            if link.right > 0 > after:
                return True
            after += link.right
    return False


def _walker(subject: Subject, skip: nn.Module | None, budget: int) -> Walker | None:
    chain = subject.chain(skip)
    if chain is None or _pads_what_was_cut(chain):
        return None
    walker = Walker(chain, subject.frames[0, 0], budget // SHARE_OF_SLOPES)
    return walker if walker.agrees(subject.output()) else None


# ------------------------------------------------------------------------------


class Delayed(Subject):
    """A model whose responses come some frames late, so that they look at no later frame.

    The last responses of a clip are cut off, and the first ones are zero.

    Examples
    --------
    >>> inner = Subject(nn.Conv2d(1, 2, (8, 3), padding=(0, 1)), torch.randn(8, 50), "spectrogram")
    >>> bool((Delayed(inner, 1).output()[:, 1:] == inner.output()[:, :-1]).all())
    True
    """

    def __init__(self, inner: Subject, delay: int) -> None:
        # everything but the responses is as there
        self.__dict__.update(inner.__dict__)
        self.inner, self.delay = inner, delay
        self._output = None

    def with_frames(self, frames: Tensor) -> Delayed:
        """Return the same model with other frames (1, 1, F, T)."""
        return Delayed(self.inner.with_frames(frames), self.delay)

    def respond(self, frames: Tensor) -> Tensor:
        """Return responses (B, N, T) to frames (B, 1, F, T)."""
        return functional.pad(self.inner.respond(frames), (self.delay, 0))[..., : frames.shape[-1]]

    @property
    def streamable(self) -> bool:
        """Whether the model runs chunk by chunk; one that looks ahead does not."""
        return False

    def chain(self, skip: nn.Module | None = None) -> list[Link] | None:
        """Return the function as a chain; without padding on the right, the last responses are missing."""
        links = self.inner.chain(skip)
        if links is None:
            return None
        cut: list[Link] = [Padding(link.left, 0) if isinstance(link, Padding) else link for link in links]
        return [*cut, Padding(self.delay, 0)]


class ToTheEnd(Jacobian):
    """Every time on a copy of the clip to its end: for responses that look beyond it, or ahead without bound.

    Examples
    --------
    >>> subject = Subject(nn.Conv2d(1, 2, (8, 3), padding=(0, 1)), torch.randn(8, 50), "spectrogram")
    >>> bool(ToTheEnd(subject, [0], lags=3, ahead=1).block([49])[..., -1, :].any())  # there is no frame 50
    False
    """

    def __init__(
        self,
        subject: Subject,
        neurons: list[int],
        lags: int,
        ahead: int,
        first: int = 0,
        budget: int = 2**28,
    ) -> None:
        super().__init__(subject, neurons, lags, None, budget)
        self.ahead, self.first = ahead, first

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        x = self._copy_of(times).repeat(len(times), 1, 1, 1).requires_grad_()
        y = self.subject.respond(x)
        each, at = torch.arange(len(times), device=x.device), torch.as_tensor(times, device=x.device)
        at = at - self.first

        def take(gradient: Tensor) -> Tensor:
            return recent(functional.pad(gradient[:, 0], (0, self.ahead)), at + self.ahead, self.lags)

        return self._by_neuron(x, lambda n: y[each, n, at].sum(), take, len(times))

    def _copy_of(self, times: Sequence[int]) -> Tensor:
        return self.subject.frames[..., self.first :]


class LookingAhead(Estimator):
    """A way for causal models, applied to delayed responses; those at the end of the clip by themselves.

    Examples
    --------
    >>> from deepSTRF.interpret.dstrf.estimators import Windows
    >>> subject = Subject(nn.Conv2d(1, 2, (8, 3), padding=(0, 1)), torch.randn(8, 50), "spectrogram")
    >>> windows = Windows(Delayed(subject, 1), [0], lags=3, reach=3)
    >>> LookingAhead(subject, windows, ahead=1, lookahead=4).block([48, 49]).shape
    torch.Size([2, 1, 6, 8])
    """

    def __init__(self, subject: Subject, way: Estimator, ahead: int, lookahead: int) -> None:
        self.beyond = lookahead - ahead
        super().__init__(subject, way.neurons, way.lags + self.beyond, way.reach, way.budget)
        self.way, self.ahead = way, ahead
        self.n_inside = max(0, subject.frames.shape[-1] - ahead)  # times that look at no frame after the clip
        # a model that may know where in the clip it is sees all of it
        cut = way.reach is not None and method_name(way) not in ("comb", "jacobian")
        first = max(0, self.n_inside - (way.reach or 0)) if cut else 0
        self.rest = ToTheEnd(subject, way.neurons, self.lags, lookahead, first, way.budget)

    def prepare(self, times: Sequence[int]) -> None:
        """Prepare both ways."""
        for way, part in zip((self.way, self.rest), self._parted(times), strict=True):
            if part:
                way.prepare(part)

    def cut(self, times: Sequence[int]) -> list[list[int]]:
        """Cut some of the times into blocks that fit the budget."""
        inside, end = self._parted(times)
        blocks = self.way.cut(inside) if inside else []
        return [[t - self.ahead for t in block] for block in blocks] + (self.rest.cut(end) if end else [])

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        inside, end = self._parted(times)
        blocks = []
        if inside:
            block = self.way.block(inside)
            blocks.append(functional.pad(block, (0, 0, 0, self.beyond)) if self.beyond else block)
            self.memory.update({t - self.ahead: self.way.memory.pop(t) for t in list(self.way.memory)})
        if end:
            blocks.append(self.rest.block(end))
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    def _parted(self, times: Sequence[int]) -> tuple[list[int], list[int]]:
        """Times of the delayed responses, and times at the end of the clip."""
        inside = [t + self.ahead for t in times if t < self.n_inside]
        return inside, list(times[len(inside) :])


def candidates_ahead(
    subject: Subject,
    method: str,
    neurons: list[int],
    lags: int,
    window: tuple[int | None, int | None],
    lookahead: int,
    budget: int,
    skip: nn.Module | None = None,
) -> list[Estimator]:
    """Return the ways that suit a model which may look ahead, fastest first.

    Examples
    --------
    >>> subject = Subject(nn.Conv2d(1, 2, (8, 3), padding=(0, 1)), torch.randn(8, 50), "spectrogram")
    >>> [method_name(way) for way in candidates_ahead(subject, "auto", [0], 2, (2, 1), 1, 2**20)]
    ['closed', 'sweep', 'windows', 'comb', 'jacobian']
    """
    back, ahead = window
    whole = ToTheEnd(subject, neurons, lags + lookahead, lookahead, budget=budget)
    if ahead is None:
        if method not in ("auto", "jacobian"):
            raise ValueError(
                f"method={method!r} does not suit this model: it looks ahead without a bound; use "
                "method='jacobian'"
            )
        return [whole]
    if ahead >= subject.frames.shape[-1]:
        return [whole]  # every response looks beyond the clip, and there is nothing to share
    delayed = Delayed(subject, ahead) if ahead else subject
    reach = None if back is None else back + ahead
    ways = candidates(delayed, method, neurons, lags + ahead, reach, budget, skip)
    # the plain way sees all of the clip: nothing then hangs on where it ends
    return [whole if type(way) is Jacobian else LookingAhead(subject, way, ahead, lookahead) for way in ways]
