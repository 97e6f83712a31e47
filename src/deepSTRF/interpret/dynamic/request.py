"""What is wanted of a dynamic STRF, with all defaults filled in, and the way to it."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dynamic.ahead import candidates_ahead
from deepSTRF.interpret.dynamic.checking import (
    Evidence,
    Finding,
    agree,
    gather_evidence,
    gather_evidence_ahead,
)
from deepSTRF.interpret.dynamic.choosing import candidates, method_name
from deepSTRF.interpret.dynamic.estimators import Estimator
from deepSTRF.interpret.dynamic.reach import ReceptiveFieldError, not_causal, probe_reach, probe_window
from deepSTRF.interpret.dynamic.subject import UNDECLARED, Subject
from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.neuron_selection import NeuronSelection, neuron_indices

__all__ = ["Request", "time_indices"]


class Request:
    """What is wanted, with all defaults filled in, and the way to it.

    Parameters
    ----------
    subject : Subject
        Model and clip.
    part : nn.Module or None
        An output nonlinearity that returns its input.
    lags, lookahead, neurons, times, edge
        As for `dstrf`.
    budget : int
        Bytes of working memory.

    Raises
    ------
    ReceptiveFieldError
        When a response depends on later frames than ``lookahead`` says.
    ValueError, TypeError, IndexError
        For illegal arguments.

    Examples
    --------
    >>> subject = Subject(nn.Conv2d(1, 2, (8, 5), padding=(0, 2)), torch.randn(8, 50), "spectrogram")
    >>> request = Request(subject, None, None, 2, None, None, "zero", 2**20)
    >>> request.lags, request.window
    (3, 5)
    """

    def __init__(
        self,
        subject: Subject,
        part: nn.Module | None,
        lags: int | None,
        lookahead: int,
        neurons: NeuronSelection,
        times: int | slice | Sequence[int] | None,
        edge: str,
        budget: int,
    ) -> None:
        self.lookahead = _checked_lookahead(lookahead)
        self.output = _responses(subject).T  # (T, N)
        self.part, self.budget, self.edge, self.shift = part, budget, edge, 0
        _refuse_mask("neurons", neurons)
        self.neurons = neuron_indices(neurons, self.output.shape[1])
        self.times = time_indices(times, len(self.output))
        self._refuse_nothing("")
        self.reach, self.ahead = _window_of(subject, self.lookahead)
        self.evidence: Evidence | None = None
        if lags is not None:
            self.lags = check_positive_int("lags", lags)
        elif self.reach is not None:
            self.lags = self.reach
        else:
            self.evidence = self._gather(subject)
            self.lags = self.evidence.window_length()
        # a window shorter than a known receptive field is cut from the whole, so that the rest is known too
        self.width = max(self.lags, self.reach or 0)
        if edge == "drop":
            end = len(self.output) - self.lookahead
            self.times = [t for t in self.times if self.lags - 1 <= t < end]
            last = f" and the last {self.lookahead}" if self.lookahead else ""
            self._refuse_nothing(f", and edge='drop' leaves out the first {self.lags - 1}{last}")
        self.subject = self._after_zeros(subject) if edge == "keep" else subject

    @property
    def window(self) -> int:
        """Frames of the filters, those after the response among them."""
        return self.lags + self.lookahead

    def _refuse_nothing(self, why: str) -> None:
        if not self.times or not self.neurons:
            raise ValueError(
                f"nothing to do: {len(self.times)} times and {len(self.neurons)} neurons are left; the clip "
                f"has {len(self.output)} frames{why}"
            )

    def _after_zeros(self, subject: Subject) -> Subject:
        """The clip with zero frames around it, for derivatives by frames that were never there."""
        self.shift, self.evidence = self.width - 1, None
        longer = subject.with_frames(functional.pad(subject.frames, (self.shift, self.lookahead)))
        if not agree(longer.output().T[self.shift :][: len(self.output)], self.output):
            what = "past or future" if self.lookahead else "past"
            raise ValueError(
                f"edge='keep' needs a model to which a {what} of zeros is none at all; this one responds "
                "otherwise (padding inside it, a bias, a standardised input, a memory): use edge='zero'"
            )
        self.times = [t + self.shift for t in self.times]
        return longer

    def choose(self, method: str, check: bool) -> tuple[Estimator, Finding | None]:
        """Return the first way that suits and, with a check, agrees with automatic differentiation."""
        ways = self._candidates(self.subject, method)
        if not check:
            return ways[0], None
        evidence = self.evidence or self._gather(self.subject)
        for way in ways:
            found = evidence.against(way, self.window)
            if found.passed:
                return way, found
        raise ReceptiveFieldError(evidence.complaint(found, method_name(way)))

    def along(self, way: Estimator, path: int, start: Tensor) -> list[tuple[float, Estimator]]:
        """Return the same way at the nodes of a path, with their weights."""
        nodes, weights = np.polynomial.legendre.leggauss(path)
        made = []
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            between = self.subject.with_frames(start + float(node) * (self.subject.frames - start))
            # a chain that has a closed form at one node need not have it at another
            name = "sweep" if method_name(way) == "closed" else method_name(way)
            made.append((float(weight), self._candidates(between, name)[-1]))
        return made

    def _candidates(self, subject: Subject, method: str) -> list[Estimator]:
        if not self.lookahead:
            return candidates(subject, method, self.neurons, self.width, self.reach, self.budget, self.part)
        window, rest = (self.reach, self.ahead), (self.lookahead, self.budget, self.part)
        return candidates_ahead(subject, method, self.neurons, self.width, window, *rest)

    def _gather(self, subject: Subject) -> Evidence:
        if not self.lookahead:
            return gather_evidence(subject, self.times, self.neurons, self.reach)
        window = (self.reach, self.ahead)
        return gather_evidence_ahead(subject, self.times, self.neurons, window, self.lookahead)


def time_indices(times: int | slice | Sequence[int] | None, n_frames: int) -> list[int]:
    """Return frames in ascending order, each once: blocks go forward in time.

    Parameters
    ----------
    times : int, slice or sequence of int, optional
        Which; None is all.
    n_frames : int
        Frames of the clip.

    Returns
    -------
    list of int
        Numbers from 0.

    Raises
    ------
    ValueError, TypeError, IndexError
        For frames that do not exist, or out of order.

    Examples
    --------
    >>> time_indices([0, -1], 20)
    [0, 19]
    """
    _refuse_mask("times", times)
    try:
        named = neuron_indices(times, n_frames)
    except (TypeError, IndexError) as error:
        text = str(error).replace("neurons", "times").replace("neuron", "frame").replace("model", "clip")
        raise type(error)(text) from None
    if sorted(set(named)) != named:
        raise ValueError(f"times must ascend, without duplicates, got {times!r}")
    return named


def _refuse_mask(name: str, given: object) -> None:
    """A mask has one entry per frame or neuron: to print it would hide what is wrong."""
    if str(getattr(given, "dtype", "")).endswith("bool"):
        raise TypeError(f"{name} must be numbers, got a mask: {name}={name}.nonzero()[0] of a numpy mask")


def _responses(subject: Subject) -> Tensor:
    """Responses (N, T) to the clip; what a model cannot run on is told in words."""
    try:
        return subject.output()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        shape, name = tuple(subject.frames.shape), type(subject.model).__name__
        taken = f"a sound (1, 1, {shape[2] * shape[3]})" if subject.samples else f"frames {shape}"
        raise ValueError(
            f"this {name} cannot run on {taken}: {error}. Models map (B, 1, F, T), or sounds "
            "(B, 1, T_audio), to (B, N, 1, T); wrap one of other shapes in an nn.Module that maps them"
        ) from error


def _checked_lookahead(lookahead: object) -> int:
    if isinstance(lookahead, bool) or not isinstance(lookahead, numbers.Integral) or lookahead < 0:
        raise ValueError(
            f"lookahead must be a number of frames, 0 or more, got {lookahead!r}; measure_window(model, "
            "n_frequency_bands) says how many a model looks at"
        )
    return int(lookahead)


def _window_of(subject: Subject, lookahead: int) -> tuple[int | None, int | None]:
    """Frames back and ahead that a response depends on; None is without a bound."""
    if lookahead == 0:
        declared = subject.declared_reach
        if declared != UNDECLARED:
            return declared, 0
    with torch.no_grad():
        if lookahead == 0:
            return probe_reach(subject.respond, subject.frames), 0
        # what a model states as its receptive field does not say where in it the current frame is
        window = probe_window(subject.respond, subject.frames)
    if window[1] is not None and window[1] > lookahead:
        raise ReceptiveFieldError(not_causal(window[1], lookahead))
    return window
