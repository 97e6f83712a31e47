"""Dynamic STRFs: the linear filter that a model is, at each moment of a clip."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import NeuronSelection, check_choice, check_positive_int, neuron_indices
from deepSTRF.interpret.dstrf.estimators import Estimator, windows_of
from deepSTRF.interpret.dstrf.layer_target import Tapped, subject_of
from deepSTRF.interpret.dstrf.method_selection import METHODS, candidates, candidates_ahead, method_name
from deepSTRF.interpret.dstrf.receptive_field import (
    ReceptiveFieldError,
    not_causal,
    probe_reach,
    probe_window,
)
from deepSTRF.interpret.dstrf.result import DynamicSTRF
from deepSTRF.interpret.dstrf.sinks import Sink, as_sink, filling
from deepSTRF.interpret.dstrf.target import UNDECLARED, Subject, check_model, replaced_output, submodule
from deepSTRF.interpret.dstrf.verification import (
    Evidence,
    Finding,
    agree,
    gather_evidence,
    gather_evidence_ahead,
)
from deepSTRF.models.gradients import differentiating

__all__ = ["BUDGET", "Request", "Run", "baseline_frames", "dstrf", "open_run", "output_slope", "time_indices"]

# ------------------------------------------------------------------------------
# What is wanted of a dynamic STRF, with all defaults filled in, and the way to it.


class Request:
    """What is wanted, with all defaults filled in, and the way to it.

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


# ------------------------------------------------------------------------------
# Dynamic STRFs block by block: what one model and one clip come to.


#: Working memory beyond the result, unless said otherwise: small beside any result worth streaming.
BUDGET = 2**26
EDGES = ("zero", "keep", "drop")


def open_run(
    stack: contextlib.ExitStack,
    model: nn.Module,
    stimulus: Tensor,
    *,
    lags: int | None = None,
    lookahead: int = 0,
    neurons: NeuronSelection = None,
    times: int | slice | Sequence[int] | None = None,
    wrt: str = "spectrogram",
    skip_nonlinearity: str | None = None,
    method: str = "auto",
    edge: str = "zero",
    n_steps: int | None = None,
    baseline: float | Tensor = 0.0,
    check: bool = True,
    budget_bytes: int = BUDGET,
) -> Run:
    """Find a way to the dynamic STRF of a model along a clip, and check it.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> with contextlib.ExitStack() as stack:
    ...     run = open_run(stack, Linear(8, 3, out_neurons=2), torch.randn(8, 50), times=[20, 21])
    ...     run.rows([20, 21]).shape
    torch.Size([2, 2, 3, 8])
    """
    check_choice("method", method, ("auto", *METHODS))
    check_choice("edge", edge, EDGES)
    budget = check_positive_int("budget_bytes", budget_bytes)
    nodes = None if n_steps is None else check_positive_int("n_steps", n_steps)
    if nodes is None and not (isinstance(baseline, int | float) and baseline == 0):
        raise ValueError("baseline is where a path begins, and there is none: give one, e.g. n_steps=16")
    check_model(model)
    part = None if skip_nonlinearity is None else submodule(model, skip_nonlinearity)
    stack.enter_context(differentiating(model))
    subject = subject_of(model, stimulus, wrt)
    slope = None if part is None else output_slope(subject, part)
    if part is not None:
        stack.enter_context(replaced_output(part))
    request = Request(subject, part, lags, lookahead, neurons, times, edge, budget)
    way, found = request.choose(method, check)
    if nodes is None:
        return Run(request, [(1.0, way)], None, found, slope)
    start = baseline_frames(baseline, request.subject.frames)
    return Run(request, request.along(way, nodes, start), start, found, slope)


class Run:
    """Blocks of a dynamic STRF, and what they explain.

    Parameters
    ----------
    request : Request
        What is wanted.
    ways : list of (float, Estimator)
        Ways whose weighted sum it is: one, or one per node of a path.
    start : Tensor (1, 1, F, T) or None
        Where the path begins.
    found : Finding or None
        What became of the check.
    slope : Tensor (T, N) or None
        Slope of an output nonlinearity that is left out.

    Examples
    --------
    >>> Run.__name__
    'Run'
    """

    def __init__(
        self,
        request: Request,
        ways: list[tuple[float, Estimator]],
        start: Tensor | None,
        found: Finding | None,
        slope: Tensor | None,
    ) -> None:
        self.request, self.ways, self.start = request, ways, start
        self.found, self.slope = found, slope
        frames = request.subject.frames
        size = (len(request.times), len(request.neurons))
        self.explained, self.memory, self.moved = (frames.new_zeros(size) for _ in range(3))
        self.row_of = {t: row for row, t in enumerate(request.times)}
        for _, way in ways:
            way.prepare(request.times)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, neurons, lags and bands of the whole."""
        request = self.request
        bands = 1 if request.subject.samples else request.subject.frames.shape[2]
        return len(request.times), len(request.neurons), request.window * request.subject.hop, bands

    def rows(self, times: Sequence[int]) -> Tensor:
        """Return filters (B, N, L, F) at some of the times, which go forward from call to call.

        Parameters
        ----------
        times : sequence of int
            B of the times of the request, ascending.

        Returns
        -------
        Tensor
            Filters; what they explain is noted.
        """
        filled = self.request.subject.frames.new_empty(len(times), *self.shape[1:])
        place = {time: row for row, time in enumerate(times)}
        for part in self.ways[0][1].cut(times):
            filled[[place[time] for time in part]] = self._made(part)[1]
        return filled

    def into(self, sink: Sink) -> Any:
        """Fill a sink with the filters at all times; returns what it made.

        Parameters
        ----------
        sink : Sink
            Where they go.

        Returns
        -------
        object
            See the sink.
        """
        with filling(sink, self.shape, self.memory):
            for part in self.ways[0][1].cut(self.request.times):
                sink.write(*self._made(part))
            return sink.close()

    def result(self, weights: Any, wrt: str) -> DynamicSTRF:
        """Return filters with all that goes with them.

        Parameters
        ----------
        weights : object
            What the sink made.
        wrt : str
            What was differentiated by.

        Returns
        -------
        DynamicSTRF
            The result.
        """
        request, found, slope = self.request, self.found, self.slope
        here = torch.tensor(request.times, device=self.memory.device)
        times = here - request.shift
        response = request.output[times][:, request.neurons]
        completeness = None
        if self.start is not None:
            silent = request.subject.with_frames(self.start).output().T[here][:, request.neurons]
            completeness = response - silent - self.moved
        return DynamicSTRF(
            weights=weights,
            response=response,
            intercept=response - self.explained - self.memory,
            memory=self.memory,
            times=times,
            neurons=request.neurons,
            lags=request.lags,
            receptive_field=request.reach,
            n_frames=len(request.output),
            method=method_name(self.ways[0][1]),
            outside=found.outside if found else None,
            check_error=found.error if found else None,
            slope=None if slope is None else slope[times][:, request.neurons],
            completeness=completeness,
            lookahead=request.lookahead,
            layer_shape=request.subject.layer_shape if wrt != "spectrogram" else None,
            edge=request.edge,
        )

    def _made(self, part: list[int]) -> tuple[Tensor, Tensor]:
        """Rows (B,) of some times, and their filters."""
        rows = torch.tensor([self.row_of[t] for t in part], device=self.memory.device)
        block = self._block(part)
        self._account(block, part, rows)
        return rows, block[:, :, -self.request.window :].reshape(len(part), *self.shape[1:])

    def _block(self, part: list[int]) -> Tensor:
        total: Tensor | None = None
        for weight, way in self.ways:
            block = way.block(part)
            if self.start is not None:
                block = weight * block
            total = block if total is None else total.add_(block)
        return cast(Tensor, total).contiguous()

    def _account(self, block: Tensor, part: list[int], rows: Tensor) -> None:
        frames, window, ahead = self.request.subject.frames, self.request.window, self.request.lookahead
        by_lag = _applied(block, frames, part, ahead)
        self.explained[rows] = by_lag[..., -window:].sum(-1)
        if block.shape[2] > window:
            self.memory[rows] = by_lag[..., :-window].sum(-1)
        if self.start is not None:
            self.moved[rows] = _applied(block, frames - self.start, part, ahead)[..., -window:].sum(-1)
            return
        held = self.ways[0][1].memory
        for time, row in zip(part, rows.tolist(), strict=True):
            if time in held:
                self.memory[row] = held.pop(time)


def _applied(block: Tensor, frames: Tensor, times: list[int], ahead: int) -> Tensor:
    """Filters (B, N, L, F) times the windows that end some frames after given times, by lag: (B, N, L)."""
    lags = block.shape[2]
    around = functional.pad(frames, (lags - 1, ahead))
    windows = windows_of(around, [t + ahead + lags - 1 for t in times], lags)
    return torch.einsum("bnlf,bfl->bnl", block, windows[:, 0])


def output_slope(subject: Subject, part: nn.Module) -> Tensor:
    """Return the slope of an output nonlinearity along a clip.

    Shapes: returns (T, N).

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 2, (8, 1)), nn.Sigmoid())
    >>> output_slope(Subject(model, torch.randn(8, 50), "spectrogram"), model[1]).shape
    torch.Size([50, 2])
    """
    if isinstance(subject, Tapped):
        subject.check_comes_after(part)
    returned: list[Any] = []
    handle = part.register_forward_hook(lambda _part, _inputs, output: returned.append(output))
    try:
        response = subject.with_frames(subject.frames).output()
    finally:
        handle.remove()
    if len(returned) != 1 or not _same_values(returned[0], response):
        raise ValueError(
            f"skip_nonlinearity must name the last step of the model, an output nonlinearity such as "
            f"'readout.activation': what this {type(part).__name__} returns is not the response"
        )
    with replaced_output(part, slope=True):
        return subject.with_frames(subject.frames).output().T


def _same_values(one: Any, other: Tensor) -> bool:
    """Whether two tensors hold the same values, in whatever order of their axes."""
    if not isinstance(one, Tensor) or one.numel() != other.numel():
        return False
    return torch.equal(one.flatten().sort().values, other.flatten().sort().values)


def baseline_frames(baseline: float | Tensor, frames: Tensor) -> Tensor:
    """Return the start of a path as frames.

    Shapes: baseline (F,); frames (1, 1, F, T); returns (1, 1, F, T).

    Examples
    --------
    >>> baseline_frames(2.0, torch.zeros(1, 1, 3, 4)).shape
    torch.Size([1, 1, 3, 4])
    """
    try:
        start = torch.as_tensor(baseline).detach().to(frames)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"baseline must be a number or a tensor, got {baseline!r}") from None
    if start.ndim == 1:
        start = start.unsqueeze(-1)
    try:
        return start.expand(frames.shape).clone()
    except RuntimeError:
        raise ValueError(
            f"baseline must be a number, (F,) or (F, T) with F={frames.shape[2]} and T={frames.shape[3]}, "
            f"got {tuple(start.shape)}"
        ) from None


# ------------------------------------------------------------------------------


def dstrf(
    model: nn.Module,
    stimulus: Tensor,
    *,
    lags: int | None = None,
    lookahead: int = 0,
    neurons: NeuronSelection = None,
    times: int | slice | Sequence[int] | None = None,
    wrt: str = "spectrogram",
    skip_nonlinearity: str | None = None,
    method: str = "auto",
    edge: str = "zero",
    n_steps: int | None = None,
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
        Any module that maps (B, 1, F, T) to (B, N, 1, T), or sounds (B, 1, T_audio) to (B, N, 1, T). Its
        ``receptive_field`` (frames; None is unbounded) is believed after a check, and measured when there is
        none.
    stimulus : Tensor (F, T), (1, F, T), (1, 1, F, T) or a sound (T_audio,), (1, T_audio), (1, 1, T_audio)
        One clip. A model with a front-end takes a sound or, to be differentiated by, its spectrogram.
    lags : int, optional
        Frames of each filter up to the current one, L. None is the receptive field; where that is unbounded,
        as many as hold 99% of the squared gradient.
    lookahead : int
        Frames of each filter after the current one, for models that are not causal; see `measure_window`. A
        model that looks further ahead is an error, unless it has no bound there. The receptive field is then
        always measured.
    neurons : int, slice or sequence of int, optional
        Which; None is all.
    times : int, slice or sequence of int, optional
        Which frames of the clip; None is all.
    wrt : {"spectrogram", "samples"} or str
        Differentiate by the frames behind the front-end, by the samples of the sound, or by the output of a
        named part, such as ``"prefiltering"``: (B, C, F, T) or (B, F, T), and all that the model hears must
        pass through it. Its channels and bands are one axis of the filters; see `stimulus_frames`.
    skip_nonlinearity : str, optional
        Name of a part that is an elementwise output nonlinearity, such as ``"readout.activation"``: the
        filters are then those of its input, and ``slope`` is its slope there.
    method : {"auto", "closed", "sweep", "windows", "comb", "jacobian"}
        How: the kernel times a slope (linear models), a sweep back through stored slopes (convolutions),
        windows as a batch (finite receptive fields; recurrent models with carried state), combs of responses
        that do not overlap, or a pass per response. ``"auto"`` takes the first that suits and agrees with
        automatic differentiation. All give the same.
    edge : {"zero", "keep", "drop"}
        Lags before the clip, or after it: zero; the derivative by the zeros that stand there; or leave out
        such times.
    n_steps : int, optional
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
        Filters (T, N, L + lookahead, F), responses, intercepts, and how they were made.

    Raises
    ------
    ReceptiveFieldError
        When a declared receptive field is shorter than the real one, or the model looks further ahead than
        ``lookahead``; the text names the true one.
    LayerTargetError, NoFrontEndError
        When the model cannot be differentiated by ``wrt``.
    ValueError, TypeError, IndexError, KeyError
        For illegal arguments, or a model that the method does not suit.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(n_frequency_bands=8, temporal_window_size=3, out_neurons=5, norm="none")
    >>> result = dstrf(model, torch.randn(8, 100))
    >>> result.weights.shape, result.method
    (torch.Size([100, 5, 3, 8]), 'closed')
    """
    with contextlib.ExitStack() as stack:
        run = open_run(
            stack, model, stimulus, lags=lags, lookahead=lookahead, neurons=neurons, times=times, wrt=wrt,
            skip_nonlinearity=skip_nonlinearity, method=method, edge=edge, n_steps=n_steps, baseline=baseline,
            check=check, budget_bytes=budget_bytes,
        )  # fmt: skip
        return run.result(run.into(as_sink(sink)), wrt)
