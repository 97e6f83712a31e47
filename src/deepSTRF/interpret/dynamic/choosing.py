"""Which ways to a dynamic STRF suit a model, in the order of their speed."""

from __future__ import annotations

from torch import nn

from deepSTRF.interpret.dynamic.carried import CarriedWindows
from deepSTRF.interpret.dynamic.chain import Link, Padding
from deepSTRF.interpret.dynamic.estimators import Comb, Estimator, Jacobian, Windows
from deepSTRF.interpret.dynamic.subject import Subject
from deepSTRF.interpret.dynamic.sweep import ClosedForm, Sweep
from deepSTRF.interpret.dynamic.walking import Walker

__all__ = ["METHODS", "candidates", "method_name"]

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

    Parameters
    ----------
    subject : Subject
        Model and clip.
    method : str
        ``"auto"`` or one of `METHODS`.
    neurons : list of int
        Which.
    lags : int
        Frames of the filters.
    reach : int or None
        Receptive field in frames.
    budget : int
        Bytes of working memory.
    skip : nn.Module, optional
        A part that returns its input.

    Returns
    -------
    list of Estimator
        At least one.

    Raises
    ------
    ValueError
        For a method that does not suit the model; the text says why.

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

    Parameters
    ----------
    way : Estimator
        The way.

    Returns
    -------
    str
        One of `METHODS`.

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
