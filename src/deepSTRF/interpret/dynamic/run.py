"""Dynamic STRFs block by block: what one model and one clip come to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dynamic.checking import Finding
from deepSTRF.interpret.dynamic.choosing import METHODS, method_name
from deepSTRF.interpret.dynamic.estimators import Estimator, windows_of
from deepSTRF.interpret.dynamic.filling import filling
from deepSTRF.interpret.dynamic.request import Request
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.sinks import Sink
from deepSTRF.interpret.dynamic.stimuli import check_model
from deepSTRF.interpret.dynamic.subject import Subject, replaced_output, submodule
from deepSTRF.interpret.dynamic.taps import Tapped, subject_of
from deepSTRF.models._checks import check_choice, check_positive_int
from deepSTRF.models.gradients import differentiating
from deepSTRF.models.neuron_selection import NeuronSelection

__all__ = ["BUDGET", "Run", "baseline_frames", "open_run", "output_slope"]

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
    before: str | None = None,
    method: str = "auto",
    edge: str = "zero",
    path: int | None = None,
    baseline: float | Tensor = 0.0,
    check: bool = True,
    budget_bytes: int = BUDGET,
) -> Run:
    """Find a way to the dynamic STRF of a model along a clip, and check it.

    Parameters
    ----------
    stack : contextlib.ExitStack
        Holds the model as it must be until the blocks are made.
    model, stimulus
        See `deepSTRF.interpret.dstrf`.
    lags, lookahead, neurons, times, wrt, before, method, edge, path, baseline, check, budget_bytes
        See there.

    Returns
    -------
    Run
        Ready to make blocks.

    Raises
    ------
    ReceptiveFieldError, TapError, ValueError, TypeError, IndexError, KeyError
        See there.

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
    nodes = None if path is None else check_positive_int("path", path)
    if nodes is None and not (isinstance(baseline, int | float) and baseline == 0):
        raise ValueError("baseline is where a path begins, and there is none: give one, e.g. path=16")
    check_model(model)
    part = None if before is None else submodule(model, before)
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
            tap_shape=request.subject.tap_shape if wrt != "spectrogram" else None,
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

    Parameters
    ----------
    subject : Subject
        Model and clip.
    part : nn.Module
        The nonlinearity.

    Returns
    -------
    Tensor
        (T, N).

    Raises
    ------
    ValueError
        For a part that is not the last step of the model, or no elementwise function.

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
            f"before must name the last step of the model, an output nonlinearity such as "
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

    Parameters
    ----------
    baseline : float or Tensor (F,) or (F, T)
        Where it begins.
    frames : Tensor (1, 1, F, T)
        Where it ends.

    Returns
    -------
    Tensor (1, 1, F, T)
        A copy.

    Raises
    ------
    ValueError, TypeError
        For a baseline of another shape, or what is no number.

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
