"""A few responses differentiated the plain way, over a longer past: what every fast way is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.interpret.dstrf.estimators import Estimator, full_gradient
from deepSTRF.interpret.dstrf.receptive_field import not_causal, probe_reach, probe_window
from deepSTRF.interpret.dstrf.target import Subject

__all__ = ["Evidence", "Finding", "agree", "gather_evidence", "gather_evidence_ahead"]

#: Responses looked at: few where the receptive field is known, more where its length is to be found.
KNOWN, UNKNOWN = 3, 8
#: Past that is looked at where the receptive field is known, in receptive fields.
PAST = 2
#: Share of the squared gradient that a window holds where the memory has no bound.
ENERGY = 0.99
#: Differences that are rounding, relative to the largest entry, by bytes of the type.
ROUNDING = {2: 5e-2, 4: 2e-3, 8: 1e-9}


@dataclass(frozen=True)
class Finding:
    """What became of one comparison.

    Attributes
    ----------
    passed : bool
        Whether a way agrees.
    error : float
        Largest difference from automatic differentiation, relative to the largest entry.
    outside : float
        Share of the squared gradient outside the window.
    beyond : bool
        Whether there is any gradient before the receptive field.

    Examples
    --------
    >>> Finding(True, 0.0, 0.0, False).passed
    True
    """

    passed: bool
    error: float
    outside: float
    beyond: bool


@dataclass(frozen=True)
class Evidence:
    """Gradients of a few responses.

    Attributes
    ----------
    subject : Subject
        Model and clip.
    cases : list of (int, int, Tensor)
        Time, column among the wanted neurons, gradient (T', F) up to the last frame of the window.
    reach : int or None
        The frames up to there that a response is believed to depend on.
    drift : float
        Largest difference of those responses from the ones to the whole clip, relative to their size.
    lookahead : int
        Frames of the window after the response.
    later : float
        Squared gradient after the window.
    further : int or None
        Frames after its own that a response depends on, where they are more than the window has and there
        should be none.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3).eval(), torch.randn(8, 50), "spectrogram")
    >>> len(gather_evidence(subject, range(50), [0], 3).cases)
    3
    """

    subject: Subject
    cases: list[tuple[int, int, Tensor]]
    reach: int | None
    drift: float
    lookahead: int = 0
    later: float = 0.0
    further: int | None = None

    def window_length(self) -> int:
        """Return how many frames up to the response hold 99% of the squared gradient over all cases."""
        longest = max(len(gradient) for _, _, gradient in self.cases)
        energy = sum(_padded(gradient, longest).double().square().sum(1) for _, _, gradient in self.cases)
        summed = torch.as_tensor(energy).flip(0).cumsum(0)
        return max(1, int((summed < ENERGY * summed[-1]).sum()) + 1 - self.lookahead)

    def outside(self, lags: int) -> float:
        """Return the share of the squared gradient outside a window."""
        total = sum(float(g.double().square().sum()) for _, _, g in self.cases) + self.later
        inside = sum(float(g[-lags:].double().square().sum()) for _, _, g in self.cases)
        return max(0.0, 1.0 - inside / total) if total > 0 else float("nan")

    def _is_random(self) -> bool:
        frames = self.subject.frames
        with torch.no_grad():
            return not agree(self.subject.respond(frames), self.subject.respond(frames))

    def against(self, way: Estimator, lags: int) -> Finding:
        """Compare a way with the evidence."""
        largest = max(float(gradient.abs().max()) for _, _, gradient in self.cases) or 1.0
        errors, beyond = [], False
        # a plan may take times in another order
        found = {
            time: rows
            for part in way.plan([time for time, _, _ in self.cases])
            for time, rows in zip(part, way.block(part), strict=True)
        }
        for time, column, gradient in self.cases:
            row = found[time][column]
            errors.append(float((row - _padded(gradient, way.lags)).abs().max()) / largest)
            if self.reach is not None and len(gradient) > self.reach:
                beyond |= bool((gradient[: -self.reach] != 0).any())
        tolerance = ROUNDING[gradient.element_size()]
        worst = sorted(errors)[-1 if gradient.element_size() == 8 or len(errors) < 3 else -2]
        passed = worst <= tolerance and self.drift <= tolerance and not beyond and self.further is None
        return Finding(passed, max(errors), self.outside(lags), beyond)

    def complaint(self, finding: Finding, name: str) -> str:
        """Return what to tell the user when no way agrees."""
        if self._is_random():
            return (
                "the model responds differently each time it hears the same clip: something in it is random "
                "in eval mode too, such as functional.dropout without training=self.training, or noise"
            )
        if self.further is not None:
            return not_causal(self.further, self.lookahead)
        if self.lookahead == 0 and self.drift > ROUNDING[self.subject.frames.element_size()]:
            with torch.no_grad():
                ahead = probe_window(self.subject.respond, self.subject.frames)[1]
            if ahead != 0:
                return not_causal(ahead)
            return (
                "a response is another when the clip ends with it: the model makes up for later frames at "
                "the end of a clip. Filters are taken from whole clips with dstrf(..., lookahead=1)"
            )
        if self.lookahead and self.reach is not None and finding.beyond:
            return (
                f"the receptive field was measured to be {self.reach - self.lookahead} frames up to the "
                "current one, but a response also depends on earlier ones. The filters themselves are still "
                "right with method='jacobian', check=False"
            )
        if self.reach is not None and finding.beyond:
            with torch.no_grad():
                measured = probe_reach(self.subject.respond, self.subject.frames)
            if measured is None or measured != self.reach:
                found = "without a bound" if measured is None else f"{measured} frames"
                return (
                    f"the receptive field is taken to be {self.reach} frames, but a response also depends on "
                    f"earlier ones: measured, it is {found}. Set model.receptive_field to that (None for "
                    "unbounded), or delete the attribute to have it measured"
                )
        return (
            f"method={name!r} differs from automatic differentiation by {finding.error:.1e} of the largest "
            f"entry: the model treats a part of a clip otherwise than the "
            "whole. Use method='auto' or method='jacobian'"
        )


def gather_evidence(subject: Subject, times: object, neurons: list[int], reach: int | None) -> Evidence:
    """Differentiate a few responses spread over times and neurons, the plain way.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3).eval(), torch.randn(8, 50), "spectrogram")
    >>> gather_evidence(subject, range(50), [0], None).window_length() <= 3
    True
    """
    whole = subject.output()
    pairs = _drawn(times, neurons, KNOWN if reach is not None else UNKNOWN)
    if reach is not None:
        found = _differentiated(subject, pairs, neurons, whole, reach)
        if found.drift <= ROUNDING[whole.element_size()]:
            return found
    # the model knows where in a clip it is, or looks further back than believed: its whole past says which
    return _differentiated(subject, pairs, neurons, whole, None, reach)


def gather_evidence_ahead(
    subject: Subject,
    times: object,
    neurons: list[int],
    window: tuple[int | None, int | None],
    lookahead: int,
) -> Evidence:
    """Differentiate a few responses by the whole clip, for windows that also hold later frames.

    Examples
    --------
    >>> subject = Subject(torch.nn.Conv2d(1, 2, (8, 3), padding=(0, 1)), torch.randn(8, 50), "spectrogram")
    >>> gather_evidence_ahead(subject, range(50), [0], (2, 1), 1).further is None
    True
    """
    back, ahead = window
    x = subject.frames.clone().requires_grad_()
    y = subject.respond(x)[0]
    cases, later, furthest = [], 0.0, 0
    for time, column in _drawn(times, neurons, UNKNOWN, distinct=True):  # one pass forward serves them all
        gradient = torch.zeros_like(x)
        if y.requires_grad:
            (gradient,) = torch.autograd.grad(y[neurons[column], time], x, retain_graph=True)
        whole = functional.pad(gradient[0, 0].T, (0, 0, 0, lookahead))  # frames after the clip do not exist
        end = time + 1 + lookahead
        later += float(whole[end:].double().square().sum())
        felt = whole[time + 1 :].any(1).nonzero()
        furthest = max(furthest, int(felt.max()) + 1 if len(felt) else 0)
        cases.append((time, column, whole[:end]))
    reach = None if back is None else back + lookahead
    further = furthest if ahead is not None and furthest > lookahead else None
    return Evidence(subject, cases, reach, 0.0, lookahead, later, further)


def _drawn(times: object, neurons: list[int], count: int, distinct: bool = False) -> list[tuple[int, int]]:
    """Up to so many pairs of a time, the last among them, and the column of a neuron."""
    every = list(times)  # type: ignore[call-overload]
    draw = torch.Generator().manual_seed(0)
    last = len(every) - 1
    if distinct:
        some = torch.randperm(last, generator=draw)[: count - 1].tolist()
    else:
        some = torch.randint(len(every), (count - 1,), generator=draw).tolist()
    rows = sorted({last, *some})
    columns = torch.randint(len(neurons), (len(rows),), generator=draw).tolist()
    return [(every[row], column) for row, column in zip(rows, columns, strict=True)]


def _differentiated(
    subject: Subject,
    pairs: list[tuple[int, int]],
    neurons: list[int],
    whole: Tensor,
    past: int | None,
    reach: int | None = None,
) -> Evidence:
    """Gradients of responses (time, column) over twice the past, or from the start of the clip."""
    cases, drift = [], 0.0
    scale = float(whole.abs().max()) or 1.0
    for time, column in pairs:
        first = 0 if past is None else max(0, time + 1 - PAST * past)
        gradient, response = full_gradient(subject, time, neurons[column], first)
        drift = max(drift, abs(response - float(whole[neurons[column], time])) / scale)
        cases.append((time, column, gradient))
    return Evidence(subject, cases, past or reach, drift)


def agree(one: Tensor, other: Tensor) -> bool:
    """Say whether two responses are the same but for rounding.

    Examples
    --------
    >>> agree(torch.ones(2), torch.ones(2) + 1e-6), agree(torch.ones(2), torch.zeros(2))
    (True, False)
    """
    scale = float(other.abs().max()) or 1.0
    return float((one - other).abs().max()) <= ROUNDING[other.element_size()] * scale


def _padded(gradient: Tensor, lags: int) -> Tensor:
    """The last frames of (T', F), with zeros where there are fewer."""
    return functional.pad(gradient[-lags:], (0, 0, max(0, lags - len(gradient)), 0))
