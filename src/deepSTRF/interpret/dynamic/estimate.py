"""Dynamic STRFs: the linear filter that a model is, at each moment of a clip."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dynamic.checking import Evidence, Finding, agree, gather_evidence
from deepSTRF.interpret.dynamic.choosing import METHODS, candidates, method_name
from deepSTRF.interpret.dynamic.estimators import Estimator, windows_of
from deepSTRF.interpret.dynamic.reach import ReceptiveFieldError, probe_reach
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.sinks import ArraySink, Sink, SinkSet
from deepSTRF.interpret.dynamic.subject import UNDECLARED, Subject, replaced_output, submodule
from deepSTRF.interpret.dynamic.sweep import ClosedForm
from deepSTRF.models._checks import check_choice, check_positive_int
from deepSTRF.models.gradients import differentiating
from deepSTRF.models.neuron_selection import NeuronSelection, neuron_indices

__all__ = ["as_sink", "dstrf", "time_indices"]

#: Working memory beyond the result, unless said otherwise: small beside any result worth streaming.
BUDGET = 2**26
EDGES = ("zero", "keep", "drop")


def dstrf(
    model: nn.Module,
    stimulus: Tensor,
    *,
    lags: int | None = None,
    neurons: NeuronSelection = None,
    times: int | slice | Sequence[int] | None = None,
    wrt: str = "spectrogram",
    before: str | None = None,
    method: str = "auto",
    edge: str = "zero",
    path: int | None = None,
    baseline: float | Tensor = 0.0,
    check: bool = True,
    budget_bytes: int = BUDGET,
    sink: Sink | Sequence[Sink] | None = None,
) -> DynamicSTRF:
    """Return a model's dynamic STRF: the gradient of each response by the sound before it, at each time.

    For a model of rectified units without biases the filter applied to the stimulus is the response; for any
    other it is the tangent plane, and the intercept says what it leaves out. The model is left as it was
    (flags, gradients, training mode); it runs in eval mode, on its own device and in its own type.

    Parameters
    ----------
    model : nn.Module
        Any causal module that maps (B, 1, F, T) to (B, N, 1, T), or sounds (B, 1, T_audio) through a
        ``wav2spec``. Its ``receptive_field`` (frames; None is unbounded) is believed after a check, and
        measured when there is none.
    stimulus : Tensor (F, T), (1, F, T), (1, 1, F, T) or a sound (T_audio,), (1, T_audio), (1, 1, T_audio)
        One clip. A model with a front-end takes a sound or, to be differentiated by, its spectrogram.
    lags : int, optional
        Frames of each filter, L. None is the receptive field; where that is unbounded, as many as hold 99%
        of the squared gradient.
    neurons : int, slice or sequence of int, optional
        Which; None is all.
    times : int, slice or sequence of int, optional
        Which frames of the clip; None is all.
    wrt : {"spectrogram", "samples"}
        Differentiate by the frames behind the front-end, or by the samples of the sound.
    before : str, optional
        Name of a part that is an elementwise output nonlinearity, such as ``"readout.activation"``: the
        filters are then those of its input, and ``slope`` is its slope there.
    method : {"auto", "closed", "sweep", "windows", "comb", "jacobian"}
        How: the kernel times a slope (linear models), a sweep back through stored slopes (convolutions),
        windows as a batch (finite receptive fields; recurrent models with carried state), combs of responses
        that do not overlap, or a pass per response. ``"auto"`` takes the first that suits and agrees with
        automatic differentiation. All give the same.
    edge : {"zero", "keep", "drop"}
        Lags before the clip: zero; the derivative by the zeros that stand there; or leave out such times.
    path : int, optional
        Average the filters over this many Gauss-Legendre nodes on the straight path from ``baseline`` to
        the stimulus (integrated gradients, Sundararajan et al. 2017): then filter times ``stimulus -
        baseline`` is the difference of the responses, for any smooth model. 16 nodes suit saturating
        outputs, networks of rectified units with biases want more.
    baseline : float or Tensor (F,) or (F, T)
        Where the path begins.
    check : bool
        Whether to hold a few responses against plain automatic differentiation over a longer past.
    budget_bytes : int
        Working memory beyond result and stimulus, roughly; a single time may need more.
    sink : Sink or sequence of Sink, optional
        Where the filters go; None is a tensor in memory. See `ArraySink`, `FileSink`, `MomentSink`,
        `CallbackSink`.

    Returns
    -------
    DynamicSTRF
        Filters (T, N, L, F), responses, intercepts, and how they were made.

    Raises
    ------
    ReceptiveFieldError
        When a declared receptive field is shorter than the real one, or the model is not causal.
    ValueError, TypeError, IndexError, KeyError
        For illegal arguments, or a model that the method does not suit.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(n_frequency_bands=8, temporal_window_size=3, out_neurons=5, norm="none")
    >>> result = dstrf(model, torch.randn(8, 100))
    >>> result.weights.shape, result.method
    (torch.Size([100, 5, 3, 8]), 'closed')
    """
    check_choice("method", method, ("auto", *METHODS))
    check_choice("edge", edge, EDGES)
    budget = check_positive_int("budget_bytes", budget_bytes)
    nodes = None if path is None else check_positive_int("path", path)
    part = None if before is None else submodule(model, before)
    with contextlib.ExitStack() as stack:
        stack.enter_context(differentiating(model))
        subject = Subject(model, stimulus, wrt)
        slope = None if part is None else _slope(subject, part)
        if part is not None:
            stack.enter_context(replaced_output(part))
        request = _Request(subject, part, lags, neurons, times, edge, budget)
        way, found = request.choose(method, check)
        start = None if nodes is None else _baseline(baseline, request.subject.frames)
        ways = [(1.0, way)] if start is None or nodes is None else request.along(way, nodes, start)
        run = _Run(request, ways, start)
        weights = run.into(as_sink(sink))
        here = torch.tensor(request.times, device=run.memory.device)
        times_of_clip = here - request.shift
        response = request.output[times_of_clip][:, request.neurons]
        completeness = None
        if start is not None:
            silent = subject.with_frames(start).output().T[here][:, request.neurons]
            completeness = response - silent - run.moved
    return DynamicSTRF(
        weights=weights,
        response=response,
        intercept=response - run.explained - run.memory,
        memory=run.memory,
        times=times_of_clip,
        neurons=request.neurons,
        lags=request.lags,
        receptive_field=request.reach,
        n_frames=len(request.output),
        method=method_name(way),
        outside=found.outside if found else None,
        check_error=found.error if found else None,
        slope=None if slope is None else slope[times_of_clip][:, request.neurons],
        completeness=completeness,
    )


def as_sink(sink: Sink | Sequence[Sink] | None) -> Sink:
    """Return what was given for a sink as one.

    Parameters
    ----------
    sink : Sink, sequence of Sink or None
        None is memory.

    Returns
    -------
    Sink
        One sink.

    Examples
    --------
    >>> type(as_sink(None)).__name__
    'ArraySink'
    """
    if sink is None:
        return ArraySink()
    return SinkSet(sink) if isinstance(sink, Sequence) else sink


class _Request:
    """What is wanted, with all defaults filled in, and the way to it."""

    def __init__(
        self,
        subject: Subject,
        part: nn.Module | None,
        lags: int | None,
        neurons: NeuronSelection,
        times: int | slice | Sequence[int] | None,
        edge: str,
        budget: int,
    ) -> None:
        self.output = subject.output().T  # (T, N)
        self.part, self.budget, self.shift = part, budget, 0
        self.neurons = neuron_indices(neurons, self.output.shape[1])
        self.times = time_indices(times, len(self.output))
        self._refuse_nothing("")
        self.reach = _reach_of(subject)
        self.evidence: Evidence | None = None
        if lags is not None:
            self.lags = check_positive_int("lags", lags)
        elif self.reach is not None:
            self.lags = self.reach
        else:
            self.evidence = gather_evidence(subject, self.times, self.neurons, None)
            self.lags = self.evidence.window_length()
        # a window shorter than a known receptive field is cut from the whole, so that the rest is known too
        self.width = max(self.lags, self.reach or 0)
        if edge == "drop":
            self.times = [t for t in self.times if t >= self.lags - 1]
            self._refuse_nothing(f", and edge='drop' leaves out the first {self.lags - 1}")
        self.subject = self._after_zeros(subject) if edge == "keep" else subject

    def _refuse_nothing(self, why: str) -> None:
        if not self.times or not self.neurons:
            raise ValueError(
                f"nothing to do: {len(self.times)} times and {len(self.neurons)} neurons are left; the clip "
                f"has {len(self.output)} frames{why}"
            )

    def _after_zeros(self, subject: Subject) -> Subject:
        """The clip with zero frames before it, for derivatives by frames that were never there."""
        self.shift, self.evidence = self.width - 1, None
        longer = subject.with_frames(functional.pad(subject.frames, (self.shift, 0)))
        if not agree(longer.output().T[self.shift :], self.output):
            raise ValueError(
                "edge='keep' needs a model to which a past of zeros is no past at all; this one responds "
                "otherwise (padding inside it, a bias, a standardised input, a memory): use edge='zero'"
            )
        self.times = [t + self.shift for t in self.times]
        return longer

    def choose(self, method: str, check: bool) -> tuple[Estimator, Finding | None]:
        """The first way that suits and, where a check is wanted, agrees with automatic differentiation."""
        ways = self._candidates(self.subject, method)
        if not check:
            return ways[0], None
        evidence = self.evidence or gather_evidence(self.subject, self.times, self.neurons, self.reach)
        for way in ways:
            found = evidence.against(way, self.lags)
            if found.passed:
                return way, found
        raise ReceptiveFieldError(evidence.complaint(found, method_name(way)))

    def along(self, way: Estimator, path: int, start: Tensor) -> list[tuple[float, Estimator]]:
        """The same way at the nodes of a path, with their weights."""
        nodes, weights = np.polynomial.legendre.leggauss(path)
        made = []
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            between = self.subject.with_frames(start + float(node) * (self.subject.frames - start))
            # a chain that has a closed form at one node need not have it at another
            name = "sweep" if isinstance(way, ClosedForm) else method_name(way)
            made.append((float(weight), self._candidates(between, name)[-1]))
        return made

    def _candidates(self, subject: Subject, method: str) -> list[Estimator]:
        return candidates(subject, method, self.neurons, self.width, self.reach, self.budget, self.part)


class _Run:
    """Takes the blocks of a plan to the sink, and sums up what they explain."""

    def __init__(self, request: _Request, ways: list[tuple[float, Estimator]], start: Tensor | None) -> None:
        self.request, self.ways, self.start = request, ways, start
        frames = request.subject.frames
        size = (len(request.times), len(request.neurons))
        self.explained, self.memory, self.moved = (frames.new_zeros(size) for _ in range(3))

    def into(self, sink: Sink) -> Any:
        """Fill a sink; returns what it made."""
        request, frames = self.request, self.request.subject.frames
        bands = 1 if request.subject.samples else frames.shape[2]
        shape = (len(request.times), len(request.neurons), request.lags * request.subject.hop, bands)
        sink.open(shape, frames.dtype, frames.device)
        row_of = {t: row for row, t in enumerate(request.times)}
        try:
            for part in self.ways[0][1].plan(request.times):
                rows = torch.tensor([row_of[t] for t in part], device=frames.device)
                block = self._block(part)
                self._account(block, part, rows)
                sink.write(rows, block[:, :, -request.lags :].reshape(len(part), *shape[1:]))
            return sink.close()
        except BaseException:
            sink.abort()
            raise

    def _block(self, part: list[int]) -> Tensor:
        total: Tensor | None = None
        for weight, way in self.ways:
            block = way.block(part)
            if self.start is not None:
                block = weight * block
            total = block if total is None else total.add_(block)
        return cast(Tensor, total).contiguous()

    def _account(self, block: Tensor, part: list[int], rows: Tensor) -> None:
        frames, lags = self.request.subject.frames, self.request.lags
        by_lag = _applied(block, frames, part)
        self.explained[rows] = by_lag[..., -lags:].sum(-1)
        if block.shape[2] > lags:
            self.memory[rows] = by_lag[..., :-lags].sum(-1)
        if self.start is not None:
            self.moved[rows] = _applied(block, frames - self.start, part)[..., -lags:].sum(-1)
            return
        held = self.ways[0][1].memory
        for time, row in zip(part, rows.tolist(), strict=True):
            if time in held:
                self.memory[row] = held.pop(time)


# ---------------------------------------------------------------------- pieces


def _applied(block: Tensor, frames: Tensor, times: list[int]) -> Tensor:
    """Filters (B, N, L, F) times the windows that end at given times, by lag: (B, N, L)."""
    lags = block.shape[2]
    windows = windows_of(functional.pad(frames, (lags - 1, 0)), [t + lags - 1 for t in times], lags)
    return torch.einsum("bnlf,bfl->bnl", block, windows[:, 0])


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
    try:
        named = neuron_indices(times, n_frames)
    except (TypeError, IndexError) as error:
        text = str(error).replace("neurons", "times").replace("neuron", "frame").replace("model", "clip")
        raise type(error)(text) from None
    if sorted(set(named)) != named:
        raise ValueError(f"times must ascend, without duplicates, got {times!r}")
    return named


def _reach_of(subject: Subject) -> int | None:
    declared = subject.declared_reach
    if declared != UNDECLARED:
        return declared
    with torch.no_grad():
        return probe_reach(subject.respond, subject.frames)


def _slope(subject: Subject, part: nn.Module) -> Tensor:
    """Slope (T, N) of an output nonlinearity along the clip."""
    with replaced_output(part, slope=True):
        return subject.with_frames(subject.frames).output().T


def _baseline(baseline: float | Tensor, frames: Tensor) -> Tensor:
    """The start of a path as frames (1, 1, F, T)."""
    start = torch.as_tensor(baseline).detach().to(frames)
    if start.ndim == 1:
        start = start.unsqueeze(-1)
    try:
        return start.expand(frames.shape).clone()
    except RuntimeError:
        raise ValueError(
            f"baseline must be a number, (F,) or (F, T) with F={frames.shape[2]} and T={frames.shape[3]}, "
            f"got {tuple(start.shape)}"
        ) from None
