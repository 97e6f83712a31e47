"""Dynamic STRFs: the linear filter that a model is, at each moment of a clip."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dynamic.choosing import METHODS, method_name
from deepSTRF.interpret.dynamic.estimators import Estimator, windows_of
from deepSTRF.interpret.dynamic.request import Request, time_indices
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.sinks import ArraySink, Sink, SinkSet
from deepSTRF.interpret.dynamic.subject import Subject, replaced_output, submodule
from deepSTRF.interpret.dynamic.taps import Tapped, subject_of
from deepSTRF.models._checks import check_choice, check_positive_int
from deepSTRF.models.gradients import differentiating
from deepSTRF.models.neuron_selection import NeuronSelection

__all__ = ["as_sink", "dstrf", "time_indices"]

#: Working memory beyond the result, unless said otherwise: small beside any result worth streaming.
BUDGET = 2**26
EDGES = ("zero", "keep", "drop")


def dstrf(
    model: nn.Module,
    stimulus: Tensor,
    *,
    lags: int | None = None,
    lookahead: int = 0,
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
    before : str, optional
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
        Filters (T, N, L + lookahead, F), responses, intercepts, and how they were made.

    Raises
    ------
    ReceptiveFieldError
        When a declared receptive field is shorter than the real one, or the model looks further ahead than
        ``lookahead``; the text names the true one.
    TapError, NoFrontEndError
        When the model cannot be differentiated by ``wrt``.
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
        subject = subject_of(model, stimulus, wrt)
        slope = None if part is None else _slope(subject, part)
        if part is not None:
            stack.enter_context(replaced_output(part))
        request = Request(subject, part, lags, lookahead, neurons, times, edge, budget)
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
        lookahead=request.lookahead,
        tap_shape=subject.tap_shape if wrt != "spectrogram" else None,
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


class _Run:
    """Takes the blocks of a plan to the sink, and sums up what they explain."""

    def __init__(self, request: Request, ways: list[tuple[float, Estimator]], start: Tensor | None) -> None:
        self.request, self.ways, self.start = request, ways, start
        frames = request.subject.frames
        size = (len(request.times), len(request.neurons))
        self.explained, self.memory, self.moved = (frames.new_zeros(size) for _ in range(3))

    def into(self, sink: Sink) -> Any:
        """Fill a sink; returns what it made."""
        request, frames = self.request, self.request.subject.frames
        bands = 1 if request.subject.samples else frames.shape[2]
        shape = (len(request.times), len(request.neurons), request.window * request.subject.hop, bands)
        sink.open(shape, frames.dtype, frames.device)
        row_of = {t: row for row, t in enumerate(request.times)}
        try:
            for part in self.ways[0][1].plan(request.times):
                rows = torch.tensor([row_of[t] for t in part], device=frames.device)
                block = self._block(part)
                self._account(block, part, rows)
                sink.write(rows, block[:, :, -request.window :].reshape(len(part), *shape[1:]))
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


# ---------------------------------------------------------------------- pieces


def _applied(block: Tensor, frames: Tensor, times: list[int], ahead: int) -> Tensor:
    """Filters (B, N, L, F) times the windows that end some frames after given times, by lag: (B, N, L)."""
    lags = block.shape[2]
    around = functional.pad(frames, (lags - 1, ahead))
    windows = windows_of(around, [t + ahead + lags - 1 for t in times], lags)
    return torch.einsum("bnlf,bfl->bnl", block, windows[:, 0])


def _slope(subject: Subject, part: nn.Module) -> Tensor:
    """Slope (T, N) of an output nonlinearity along the clip."""
    if isinstance(subject, Tapped):
        subject.check_comes_after(part)
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
