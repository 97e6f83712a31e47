"""Estimation of the dynamic STRFs of a model along a clip.

`dstrf` is the public call. A `Request` fills in defaults: the window, the times, the receptive field. The
methods that suit the target are tried, fastest first (`methods_for`); the first that agrees with plain
automatic differentiation of a few responses (`Reference`) is used. A `DynamicRun` then computes the filters
block by block, together with what they explain of the responses.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import (
    NeuronSelection,
    check_choice,
    check_positive_int,
    checked_but,
    neuron_indices,
    to_tensor,
)
from deepSTRF.interpret.dstrf.autodiff import (
    Comb,
    Delayed,
    Jacobian,
    LookingAhead,
    StatefulWindows,
    ToTheEnd,
    Windows,
)
from deepSTRF.interpret.dstrf.layer_target import LayerTarget
from deepSTRF.interpret.dstrf.linearization import ClosedForm, Linearizer, Padding, chain_of
from deepSTRF.interpret.dstrf.receptive_field import (
    ReceptiveFieldError,
    not_causal,
    probe_receptive_field,
    probe_window,
)
from deepSTRF.interpret.dstrf.result import DynamicSTRF
from deepSTRF.interpret.dstrf.sinks import Sink, as_sink, opened
from deepSTRF.interpret.dstrf.sweep import Sweep
from deepSTRF.interpret.dstrf.target import (
    ROUNDING,
    UNDECLARED,
    Estimator,
    Target,
    agree,
    check_model,
    front_end_of,
    has_halves,
    replaced_output,
    submodule,
    windows_of,
)
from deepSTRF.models.prediction import differentiating

#: Working memory beyond the result, unless set otherwise: small beside any result worth streaming.
BUDGET = 2**26
METHODS = ("closed", "sweep", "windows", "comb", "jacobian")
EDGES = ("zero", "keep", "drop")
#: One part in this many of the working memory is for the slopes along a piece of the clip.
SHARE_OF_SLOPES = 2
#: Responses that are checked: few where the receptive field is known, more where its length is to be found.
KNOWN, UNKNOWN = 3, 8
#: Length of the past of a checked response, in known receptive fields.
PAST = 2
#: Share of the squared gradient that a window holds where the memory has no bound.
ENERGY = 0.99


@checked_but("model", "lookahead", "neurons", "baseline", "sink")
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
    unit: str = "raw",
) -> DynamicSTRF:
    """Dynamic STRF of a model: the gradient of each response by the stimulus before it, at each time.

    For a model of rectified units without biases the filter applied to the stimulus is the response; for any
    other it is the tangent plane, and the intercept is the rest. The model is left as it was (flags,
    gradients, training mode); it runs in eval mode, on its own device and in its own type.

    Parameters
    ----------
    model : nn.Module
        Any module that maps (B, 1, F, T) to (B, N, 1, T), or sounds (B, 1, T_audio) to (B, N, 1, T). Its
        ``receptive_field`` (frames; None is unbounded) is checked, and measured when there is none.
    stimulus : Tensor (F, T), (1, F, T), (1, 1, F, T) or a sound (T_audio,), (1, T_audio), (1, 1, T_audio)
        One clip. A model with a front-end takes a sound or, to be differentiated by, its spectrogram.
    lags : int, optional
        Frames of each filter up to the current one, L. None is the receptive field; where that is unbounded,
        as many as hold 99% of the squared gradient.
    lookahead : int
        Frames of each filter after the current one, for models that are not causal; see `measure_window`. A
        model that states its own (``lookahead_frames``) has at least those; one that looks further is an
        error, unless it has no bound there. The receptive field is then always measured.
    neurons : int, slice or sequence of int, optional
        Which; None is all.
    times : int, slice or sequence of int, optional
        Which frames of the clip; None is all.
    wrt : {"spectrogram", "samples"} or str
        Differentiate by the frames behind the front-end, by the samples of the sound, or by the output of a
        named part, such as ``"prefiltering"``: (B, C, F, T) or (B, F, T), and everything that the
        response depends on must pass through it. Its channels and bands are one axis of the filters; see
        `stimulus_frames`.
    skip_nonlinearity : str, optional
        Name of a part that is an elementwise output nonlinearity, such as ``"readout.activation"``: the
        filters are then those of its input, and ``slope`` is its slope there.
    method : {"auto", "closed", "sweep", "windows", "comb", "jacobian"}
        The kernel times a slope (linear models), a sweep back through stored slopes (convolutions), windows
        as a batch (finite receptive fields; recurrent models from their state before), combs of responses
        that do not overlap, or a pass per response. ``"auto"`` takes the first that suits and agrees with
        automatic differentiation. All give the same.
    edge : {"zero", "keep", "drop"}
        Lags before the clip, or after it: zero; the derivative by the zeros that stand there; or leave out
        such times.
    n_steps : int, optional
        Integrated gradients (Sundararajan et al. 2017): average the filters over this many Gauss-Legendre
        nodes on the straight path from ``baseline`` to the stimulus. Filter times ``stimulus - baseline`` is
        then the difference of the responses, for any smooth model. 16 nodes suit saturating outputs,
        networks of rectified units with biases need more.
    baseline : float or Tensor (F,) or (F, T)
        Where the path begins.
    check : bool
        Whether to compare a few responses with plain automatic differentiation over a longer past.
    budget_bytes : int
        Working memory beyond result and stimulus, roughly; a single time may need more.
    sink : Sink or sequence of Sink, optional
        Where the filters go; None is a tensor in memory. See `ArraySink`, `FileSink`, `MomentSink`,
        `CallbackSink`.
    unit : {"raw", "sd"}
        Per unit of the frames, so that filter times stimulus gives the response; or per standard deviation of
        each band of the training sounds, to compare bands in pictures and statistics (a fitted model, by its
        spectrogram; a band without variance has 0).

    Returns
    -------
    DynamicSTRF
        Filters (T, N, L + lookahead, F), responses, intercepts, and how they were made.

    Raises
    ------
    ReceptiveFieldError
        When a declared receptive field is shorter than the real one, or the model looks further ahead than
        ``lookahead``; the text names the true one.
    ValueError
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
            check=check, budget_bytes=budget_bytes, unit=unit,
        )  # fmt: skip
        return run.result(run.into(as_sink(sink)), wrt)


@checked_but("model")
def stimulus_frames(model: nn.Module, stimulus: Tensor, *, wrt: str = "spectrogram") -> Tensor:
    """Return the frames (F, T) that the filters of `dstrf` apply to.

    Parameters
    ----------
    model : nn.Module
        As for `dstrf`.
    stimulus : Tensor
        One clip, as for `dstrf`.
    wrt : str
        As for `dstrf`: ``"spectrogram"``; ``"samples"``, whose frames are the samples of each bin; or the
        name of a part, whose channels and bands (C, F') are laid on one another: ``.unflatten(0, (C, F'))``.

    Returns
    -------
    Tensor
        (F, T).

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(8, 3, prefiltering={"prefiltering": "adaptrans", "dt": 5.0})
    >>> stimulus_frames(model, torch.randn(8, 50), wrt="prefiltering").shape  # ON and OFF
    torch.Size([16, 50])
    """
    check_model(model)
    with differentiating(model):
        return target_of(model, stimulus, wrt).frames[0, 0]


def target_of(model: nn.Module, stimulus: Tensor, wrt: str) -> Target:
    """Return a model and a clip as a function of what it is differentiated by."""
    ours = has_halves(model)
    if wrt == "spectrogram" and front_end_of(model) is not None and not ours:
        return LayerTarget(model, stimulus, "wav2spec", whole=True)  # a front-end of the user's own kind
    if wrt in ("spectrogram", "samples") or (wrt == "wav2spec" and ours):
        return Target(model, stimulus, "samples" if wrt == "samples" else "spectrogram")
    parts = [name for name, _ in model.named_modules() if name]
    if wrt not in parts:
        raise ValueError(
            f"wrt must be one of 'spectrogram', 'samples' or a part of the model ({', '.join(parts)}); got "
            f"{wrt!r}"
        )
    return LayerTarget(model, stimulus, wrt)


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
    unit: str = "raw",
) -> DynamicRun:
    """Return a run of `dstrf` with a checked method; until the stack closes, the model is prepared for it."""
    check_choice("method", method, ("auto", *METHODS))
    check_choice("edge", edge, EDGES)
    budget = check_positive_int("budget_bytes", budget_bytes)
    steps = None if n_steps is None else check_positive_int("n_steps", n_steps)
    if steps is None and not (isinstance(baseline, int | float) and baseline == 0):
        raise ValueError("baseline is where a path begins, and there is none: give one, e.g. n_steps=16")
    check_model(model)
    scale = _band_scale(model, wrt, unit)
    part = None if skip_nonlinearity is None else submodule(model, skip_nonlinearity)
    stack.enter_context(differentiating(model))
    target = target_of(model, stimulus, wrt)
    slope = None if part is None else output_slope(target, part)
    if part is not None:
        stack.enter_context(replaced_output(part))
    request = Request(target, part, lags, lookahead, neurons, times, edge, budget)
    estimator, checked = request.select(method, check)
    if steps is None:
        return DynamicRun(request, [(1.0, estimator)], None, checked, slope, scale)
    start = baseline_frames(baseline, request.target.frames)
    return DynamicRun(request, request.along_path(estimator, steps, start), start, checked, slope, scale)


def _band_scale(model: Any, wrt: str, unit: str) -> Tensor | None:
    """Factors (F,) of filters per standard deviation; None of raw ones."""
    check_choice("unit", unit, ("raw", "sd"))
    std: Tensor | None = getattr(model, "band_std", None)
    if unit == "sd" and (std is None or wrt not in ("spectrogram", "wav2spec")):
        raise ValueError("unit='sd' needs a fitted model, which knows its bands, and wrt='spectrogram'")
    return None if unit == "raw" else std


class DynamicRun:
    """Blocks of a dynamic STRF, and what they explain.

    The filters are the weighted sum of ``estimators``: one, or one per node of a path that begins at
    ``start`` (1, 1, F, T). ``checked`` is the result of the check, ``slope`` (T, N) that of an output
    nonlinearity that is left out, ``scale`` (F,) what the filters are multiplied by.
    """

    def __init__(
        self,
        request: Request,
        estimators: list[tuple[float, Estimator]],
        start: Tensor | None,
        checked: CheckResult | None,
        slope: Tensor | None,
        scale: Tensor | None = None,
    ) -> None:
        self.request, self.estimators, self.start = request, estimators, start
        self.checked, self.slope, self.scale = checked, slope, scale
        frames = request.target.frames
        size = (len(request.times), len(request.neurons))
        self.explained, self.memory, self.moved = (frames.new_zeros(size) for _ in range(3))
        self.row_of = {t: row for row, t in enumerate(request.times)}
        for _, estimator in estimators:
            estimator.prepare(request.times)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, neurons, lags and bands of the whole."""
        request = self.request
        bands = 1 if request.target.samples else request.target.frames.shape[2]
        return len(request.times), len(request.neurons), request.window * request.target.hop, bands

    def rows(self, times: Sequence[int]) -> Tensor:
        """Return filters (B, N, L, F) at B ascending times of the request, which go forward over calls."""
        rows = self.request.target.frames.new_empty(len(times), *self.shape[1:])
        place = {time: row for row, time in enumerate(times)}
        for part in self.estimators[0][1].cut(times):
            rows[[place[time] for time in part]] = self._filters(part)[1]
        return rows

    def into(self, sink: Sink) -> Any:
        """Write the filters at all times into a sink; returns what it made of them."""
        with opened(sink, self.shape, self.memory):
            for part in self.estimators[0][1].cut(self.request.times):
                sink.write(*self._filters(part))
            return sink.close()

    def _filters(self, part: list[int]) -> tuple[Tensor, Tensor]:
        """Rows (B,) of some times, and their filters; what these explain is added up."""
        rows = torch.tensor([self.row_of[t] for t in part], device=self.memory.device)
        total: Tensor | None = None
        for weight, estimator in self.estimators:
            block = estimator.block(part)
            if self.start is not None:
                block = weight * block
            total = block if total is None else total.add_(block)
        block = cast(Tensor, total).contiguous()
        self._explain(block, part, rows)
        filters = block[:, :, -self.request.window :].reshape(len(part), *self.shape[1:])
        return rows, filters if self.scale is None else filters * self.scale.to(filters)

    def _explain(self, block: Tensor, part: list[int], rows: Tensor) -> None:
        """Add up filters times stimulus, within the window and before it."""
        frames, window, ahead = self.request.target.frames, self.request.window, self.request.lookahead
        by_lag = _applied(block, frames, part, ahead)
        self.explained[rows] = by_lag[..., -window:].sum(-1)
        if block.shape[2] > window:
            self.memory[rows] = by_lag[..., :-window].sum(-1)
        if self.start is not None:
            self.moved[rows] = _applied(block, frames - self.start, part, ahead)[..., -window:].sum(-1)
            return
        memory = self.estimators[0][1].memory
        for time, row in zip(part, rows.tolist(), strict=True):
            if time in memory:
                self.memory[row] = memory.pop(time)

    def result(self, weights: Any, wrt: str) -> DynamicSTRF:
        """Return filters, as a sink made them, with everything that belongs to them."""
        request, checked, slope = self.request, self.checked, self.slope
        here = torch.tensor(request.times, device=self.memory.device)
        times = here - request.shift
        response = request.output[times][:, request.neurons]
        completeness = None
        if self.start is not None:
            at_start = request.target.with_frames(self.start).output().T[here][:, request.neurons]
            completeness = response - at_start - self.moved
        return DynamicSTRF(
            weights=weights,
            response=response,
            intercept=response - self.explained - self.memory,
            memory=self.memory,
            times=times,
            neurons=request.neurons,
            lags=request.lags,
            receptive_field=request.receptive_field,
            n_frames=len(request.output),
            method=self.estimators[0][1].name,
            outside=checked.outside if checked else None,
            check_error=checked.error if checked else None,
            slope=None if slope is None else slope[times][:, request.neurons],
            completeness=completeness,
            lookahead=request.lookahead,
            layer_shape=request.target.layer_shape if wrt != "spectrogram" else None,
            edge=request.edge,
        )


def _applied(block: Tensor, frames: Tensor, times: list[int], ahead: int) -> Tensor:
    """Filters (B, N, L, F) times the windows that end some frames after given times, by lag: (B, N, L)."""
    lags = block.shape[2]
    around = functional.pad(frames, (lags - 1, ahead))
    windows = windows_of(around, [t + ahead + lags - 1 for t in times], lags)
    return torch.einsum("bnlf,bfl->bnl", block, windows[:, 0])


class Request:
    """The window, times and neurons of a dynamic STRF, with all defaults filled in."""

    def __init__(
        self,
        target: Target,
        part: nn.Module | None,
        lags: int | None,
        lookahead: int,
        neurons: NeuronSelection,
        times: int | slice | Sequence[int] | None,
        edge: str,
        budget: int,
    ) -> None:
        self.lookahead = max(_checked_lookahead(lookahead), int(getattr(target.model, "lookahead_frames", 0)))
        self.output = _responses(target).T  # (T, N)
        self.part, self.budget, self.edge, self.shift = part, budget, edge, 0
        _refuse_mask("neurons", neurons)
        self.neurons = neuron_indices(neurons, self.output.shape[1])
        self.times = time_indices(times, len(self.output))
        self._refuse_nothing("")
        #: Frames back and ahead that a response depends on; None is without a bound.
        self.receptive_field, self.ahead = _extent(target, self.lookahead)
        self.reference: Reference | None = None
        if lags is not None:
            self.lags = check_positive_int("lags", lags)
        elif self.receptive_field is not None:
            self.lags = self.receptive_field
        else:
            self.reference = self._differentiate(target)
            self.lags = self.reference.window_length()
        # a window shorter than a known receptive field is cut from the whole, so that the rest is known too
        self.width = max(self.lags, self.receptive_field or 0)
        if edge == "drop":
            end = len(self.output) - self.lookahead
            self.times = [t for t in self.times if self.lags - 1 <= t < end]
            last = f" and the last {self.lookahead}" if self.lookahead else ""
            self._refuse_nothing(f", and edge='drop' leaves out the first {self.lags - 1}{last}")
        self.target = self._after_zeros(target) if edge == "keep" else target

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

    def _after_zeros(self, target: Target) -> Target:
        """The clip with zero frames around it, for derivatives by frames outside the clip."""
        self.shift, self.reference = self.width - 1, None
        longer = target.with_frames(functional.pad(target.frames, (self.shift, self.lookahead)))
        if not agree(longer.output().T[self.shift :][: len(self.output)], self.output):
            what = "past or future" if self.lookahead else "past"
            raise ValueError(
                f"edge='keep' needs a model to which a {what} of zeros is none at all; this one responds "
                "otherwise (padding inside it, a bias, a standardised input, a memory): use edge='zero'"
            )
        self.times = [t + self.shift for t in self.times]
        return longer

    def select(self, method: str, check: bool) -> tuple[Estimator, CheckResult | None]:
        """Return the first method that suits and, with a check, agrees with automatic differentiation."""
        estimators = self._methods(self.target, method)
        if not check:
            return next(estimators), None
        reference = self.reference or self._differentiate(self.target)
        for estimator in estimators:
            result = reference.compare(estimator, self.window)
            if result.passed:
                return estimator, result
        raise ReceptiveFieldError(reference.failure(result, estimator.name))

    def along_path(self, estimator: Estimator, steps: int, start: Tensor) -> list[tuple[float, Estimator]]:
        """Return the same method at the nodes of a path from ``start`` to the clip, with their weights."""
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        # a chain that has a closed form at one node need not have it at another
        name = "sweep" if estimator.name == "closed" else estimator.name
        made = []
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            between = self.target.with_frames(start + float(node) * (self.target.frames - start))
            made.append((float(weight), next(self._methods(between, name))))
        return made

    def _methods(self, target: Target, method: str) -> Iterator[Estimator]:
        field = self.receptive_field
        if not self.lookahead:
            return methods_for(target, method, self.neurons, self.width, field, self.budget, self.part)
        return _methods_ahead(target, method, self)

    def _differentiate(self, target: Target) -> Reference:
        if not self.lookahead:
            return Reference.of_past(target, self.times, self.neurons, self.receptive_field)
        extent = (self.receptive_field, self.ahead)
        return Reference.of_clip(target, self.times, self.neurons, extent, self.lookahead)


def _checked_lookahead(lookahead: object) -> int:
    if isinstance(lookahead, bool) or not isinstance(lookahead, numbers.Integral) or lookahead < 0:
        raise ValueError(
            f"lookahead must be a number of frames, 0 or more, got {lookahead!r}; measure_window(model, "
            "n_frequency_bands) returns how many a model depends on"
        )
    return int(lookahead)


def _extent(target: Target, lookahead: int) -> tuple[int | None, int | None]:
    """Frames back and ahead that a response depends on; None is without a bound."""
    if lookahead == 0:
        declared = target.declared_receptive_field
        if declared != UNDECLARED:
            return declared, 0
    with torch.no_grad():
        if lookahead == 0:
            return probe_receptive_field(target.respond, target.frames), 0
        # a declared receptive field does not state where in it the current frame is
        extent = probe_window(target.respond, target.frames)
    if extent[1] is not None and extent[1] > lookahead:
        raise ReceptiveFieldError(not_causal(extent[1], lookahead))
    return extent


def _responses(target: Target) -> Tensor:
    """Responses (N, T) to the clip; the error of a model that cannot run on it is explained."""
    try:
        return target.output()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        shape, name = tuple(target.frames.shape), type(target.model).__name__
        taken = f"a sound (1, 1, {shape[2] * shape[3]})" if target.samples else f"frames {shape}"
        raise ValueError(
            f"this {name} cannot run on {taken}: {error}. Models map (B, 1, F, T), or sounds "
            "(B, 1, T_audio), to (B, N, 1, T); wrap one of other shapes in an nn.Module that maps them"
        ) from error


def time_indices(times: int | slice | Sequence[int] | None, n_frames: int) -> list[int]:
    """Return frames of a clip, from 0, in ascending order without duplicates: blocks go forward in time."""
    _refuse_mask("times", times)
    named = neuron_indices(times, n_frames, name="times", what="frame", owner="clip")
    if sorted(set(named)) != named:
        raise ValueError(f"times must ascend, without duplicates, got {times!r}")
    return named


def _refuse_mask(name: str, given: object) -> None:
    # a mask has one entry per frame or neuron: to print it would hide the mistake
    if str(getattr(given, "dtype", "")).endswith("bool"):
        raise TypeError(f"{name} must be numbers, got a mask: {name}={name}.nonzero()[0] of a numpy mask")


def baseline_frames(baseline: float | Tensor, frames: Tensor) -> Tensor:
    """Return a baseline, a number, (F,) or (F, T), in the shape of frames (1, 1, F, T)."""
    try:
        start = to_tensor(baseline).detach().to(frames)
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


def output_slope(target: Target, part: nn.Module) -> Tensor:
    """Return the slope (T, N) of an output nonlinearity along a clip."""
    if isinstance(target, LayerTarget):
        target.check_comes_after(part)
    returned: list[Any] = []
    handle = part.register_forward_hook(lambda _part, _inputs, output: returned.append(output))
    try:
        response = target.with_frames(target.frames).output()
    finally:
        handle.remove()
    found = returned[0] if len(returned) == 1 else None
    if not isinstance(found, Tensor) or found.numel() != response.numel() or not torch.equal(
        found.flatten().sort().values, response.flatten().sort().values  # in any order of the axes
    ):  # fmt: skip
        raise ValueError(
            f"skip_nonlinearity must name the last step of the model, an output nonlinearity such as "
            f"'readout.activation': what this {type(part).__name__} returns is not the response"
        )
    with replaced_output(part, slope=True):
        return target.with_frames(target.frames).output().T


# ---- method selection

_WHY_NOT = {
    "closed": "the model is not one convolution with elementwise functions around it",
    "sweep": "the model is not a plain chain of convolutions over time and elementwise functions",
    "windows": "the receptive field has no bound and the model has no init_state/step to keep its state",
    "comb": "the receptive field has no bound",
}


def methods_for(
    target: Target,
    method: str,
    neurons: list[int],
    lags: int,
    receptive_field: int | None,
    budget: int,
    skip: nn.Module | None = None,
) -> Iterator[Estimator]:
    """Yield the methods that suit a target (those of one name unless ``"auto"``), fastest first."""
    linearizer = _linearizer(target, skip, budget) if method in ("auto", "closed", "sweep") else None
    suiting = False
    for name in METHODS if method == "auto" else (method,):
        made: Estimator | None = None
        if name == "closed" and linearizer is not None and ClosedForm.suits(linearizer):
            made = ClosedForm(target, neurons, lags, linearizer, budget)
        elif name == "sweep" and linearizer is not None:
            made = Sweep(target, neurons, lags, linearizer, budget)
        elif name == "windows" and receptive_field is not None:
            made = Windows(target, neurons, lags, receptive_field, budget)
        elif name == "windows" and target.streamable:
            made = StatefulWindows(target, neurons, lags, None, budget)
        elif name == "comb" and receptive_field is not None:
            made = Comb(target, neurons, lags, receptive_field, budget)
        elif name == "jacobian":
            made = Jacobian(target, neurons, lags, receptive_field, budget)
        if made is not None:
            suiting = True
            yield made
    if not suiting:
        raise ValueError(f"method={method!r} does not suit this model: {_WHY_NOT[method]}; use method='auto'")


def _linearizer(target: Target, skip: nn.Module | None, budget: int) -> Linearizer | None:
    """The linearizer of a target that is a chain of convolutions and elementwise functions."""
    chain = chain_of(target, skip)
    if chain is None:
        return None
    after = 0
    for link in chain:
        if isinstance(link, Padding):
            if link.right > 0 > after:
                return None  # zeros in the place of frames that were cut off at the end of the clip
            after += link.right
    linearizer = Linearizer(chain, target.frames[0, 0], budget // SHARE_OF_SLOPES)
    return linearizer if linearizer.agrees(target.output()) else None


def _methods_ahead(target: Target, method: str, request: Request) -> Iterator[Estimator]:
    """Yield the methods that suit a target which may look ahead, fastest first."""
    back, ahead, neurons = request.receptive_field, request.ahead, request.neurons
    lookahead, budget = request.lookahead, request.budget
    whole = ToTheEnd(target, neurons, request.width + lookahead, lookahead, budget=budget)
    if ahead is None and method not in ("auto", "jacobian"):
        raise ValueError(
            f"method={method!r} does not suit this model: it looks ahead without a bound; use "
            "method='jacobian'"
        )
    if ahead is None or ahead >= target.frames.shape[-1]:
        yield whole  # every response depends on frames after the clip
        return
    delayed = Delayed(target, ahead) if ahead else target
    field = None if back is None else back + ahead
    for inner in methods_for(delayed, method, neurons, request.width + ahead, field, budget, request.part):
        # the plain method takes the whole clip: nothing then depends on where it is cut
        yield whole if type(inner) is Jacobian else LookingAhead(target, inner, ahead, lookahead)


@dataclass(frozen=True)
class CheckResult:
    """Comparison of a method with automatic differentiation."""

    passed: bool
    error: float  # largest difference relative to the largest entry
    outside: float  # share of the squared gradient outside the window
    beyond: bool  # whether there is any gradient before the receptive field


@dataclass(frozen=True)
class Reference:
    """Gradients of a few responses by plain automatic differentiation, over a longer past than the window."""

    target: Target
    #: Time, column among the wanted neurons, and gradient (T', F) up to the last frame of the window.
    cases: list[tuple[int, int, Tensor]]
    receptive_field: int | None  # frames up to there that a response is expected to depend on
    drift: float  # largest difference of the responses from those to the whole clip, relative to their size
    lookahead: int = 0
    later: float = 0.0  # squared gradient after the window
    further: int | None = None  # frames after its own that a response depends on, where the window has fewer

    @classmethod
    def of_past(
        cls, target: Target, times: Sequence[int], neurons: list[int], receptive_field: int | None
    ) -> Reference:
        """Differentiate a few responses spread over times and neurons by the frames up to them."""
        whole = target.output()
        pairs = _drawn(times, neurons, KNOWN if receptive_field is not None else UNKNOWN)
        scale = float(whole.abs().max()) or 1.0
        # whole pasts where responses depend on the place in the clip, or on an older past than expected
        for past in (receptive_field, None) if receptive_field is not None else (None,):
            cases, drift = [], 0.0
            for time, column in pairs:
                first = 0 if past is None else max(0, time + 1 - PAST * past)
                gradient, response = _gradient(target, time, neurons[column], first)
                drift = max(drift, abs(response - float(whole[neurons[column], time])) / scale)
                cases.append((time, column, gradient))
            if past is not None and drift <= ROUNDING[whole.element_size()]:
                break
        return cls(target, cases, receptive_field, drift)

    @classmethod
    def of_clip(
        cls,
        target: Target,
        times: Sequence[int],
        neurons: list[int],
        extent: tuple[int | None, int | None],
        lookahead: int,
    ) -> Reference:
        """Differentiate a few responses by the whole clip, for windows that also hold later frames."""
        back, ahead = extent
        x = target.frames.clone().requires_grad_()
        y = target.respond(x)[0]
        cases, later, furthest = [], 0.0, 0
        for time, column in _drawn(times, neurons, UNKNOWN, distinct=True):  # one pass forward serves all
            gradient = torch.zeros_like(x)
            if y.requires_grad:
                (gradient,) = torch.autograd.grad(y[neurons[column], time], x, retain_graph=True)
            whole = functional.pad(gradient[0, 0].T, (0, 0, 0, lookahead))  # no frames follow the clip
            end = time + 1 + lookahead
            later += float(whole[end:].double().square().sum())
            after = whole[time + 1 :].any(1).nonzero()
            furthest = max(furthest, int(after.max()) + 1 if len(after) else 0)
            cases.append((time, column, whole[:end]))
        field = None if back is None else back + lookahead
        further = furthest if ahead is not None and furthest > lookahead else None
        return cls(target, cases, field, 0.0, lookahead, later, further)

    def window_length(self) -> int:
        """Return how many frames up to the response hold 99% of the squared gradient over all cases."""
        longest = max(len(gradient) for _, _, gradient in self.cases)
        energy = sum(_padded(gradient, longest).double().square().sum(1) for _, _, gradient in self.cases)
        summed = torch.as_tensor(energy).flip(0).cumsum(0)
        return max(1, int((summed < ENERGY * summed[-1]).sum()) + 1 - self.lookahead)

    def compare(self, estimator: Estimator, lags: int) -> CheckResult:
        """Compare a method with the reference."""
        largest = max(float(gradient.abs().max()) for _, _, gradient in self.cases) or 1.0
        errors, beyond = [], False
        times = [time for time, _, _ in self.cases]
        estimator.prepare(times)
        # blocks may take times in another order
        found = {
            time: rows
            for part in estimator.cut(times)
            for time, rows in zip(part, estimator.block(part), strict=True)
        }
        for time, column, gradient in self.cases:
            row = found[time][column]
            errors.append(float((row - _padded(gradient, estimator.lags)).abs().max()) / largest)
            if self.receptive_field is not None and len(gradient) > self.receptive_field:
                beyond |= bool((gradient[: -self.receptive_field] != 0).any())
        tolerance = ROUNDING[self.cases[-1][2].element_size()]
        worst = sorted(errors)[-1 if self.cases[-1][2].element_size() == 8 or len(errors) < 3 else -2]
        passed = worst <= tolerance and self.drift <= tolerance and not beyond and self.further is None
        total = sum(float(g.double().square().sum()) for _, _, g in self.cases) + self.later
        inside = sum(float(g[-lags:].double().square().sum()) for _, _, g in self.cases)
        outside = max(0.0, 1.0 - inside / total) if total > 0 else float("nan")
        return CheckResult(passed, max(errors), outside, beyond)

    @torch.no_grad()
    def failure(self, result: CheckResult, method: str) -> str:
        """Return the error text for a target on which no method agrees."""
        frames, respond, field = self.target.frames, self.target.respond, self.receptive_field
        if not agree(respond(frames), respond(frames)):
            return (
                "the model responds differently each time it is given the same clip: something in it is "
                "random in eval mode too, such as functional.dropout without training=self.training, or noise"
            )
        if self.further is not None:
            return not_causal(self.further, self.lookahead)
        if self.lookahead == 0 and self.drift > ROUNDING[frames.element_size()]:
            ahead = probe_window(respond, frames)[1]
            if ahead != 0:
                return not_causal(ahead)
            return (
                "a response is another when the clip ends with it: the model makes up for later frames at "
                "the end of a clip. Filters are taken from whole clips with dstrf(..., lookahead=1)"
            )
        if self.lookahead and field is not None and result.beyond:
            return (
                f"the receptive field was measured to be {field - self.lookahead} frames up to the "
                "current one, but a response also depends on earlier ones. The filters themselves are still "
                "right with method='jacobian', check=False"
            )
        if field is not None and result.beyond:
            measured = probe_receptive_field(respond, frames)
            if measured is None or measured != field:
                found = "without a bound" if measured is None else f"{measured} frames"
                return (
                    f"the receptive field is taken to be {field} frames, but a response also depends on "
                    f"earlier ones: measured, it is {found}. Set model.receptive_field to that (None for "
                    "unbounded), or delete the attribute to have it measured"
                )
        return (
            f"method={method!r} differs from automatic differentiation by {result.error:.1e} of the largest "
            "entry: the model treats a part of a clip otherwise than the whole. Use method='auto' or "
            "method='jacobian'"
        )


def _drawn(
    times: Sequence[int], neurons: list[int], count: int, distinct: bool = False
) -> list[tuple[int, int]]:
    """Up to so many pairs of a time, the last among them, and the column of a neuron."""
    draw = torch.Generator().manual_seed(0)
    last = len(times) - 1
    if distinct:
        some = torch.randperm(last, generator=draw)[: count - 1].tolist()
    else:
        some = torch.randint(len(times), (count - 1,), generator=draw).tolist()
    rows = sorted({last, *some})
    columns = torch.randint(len(neurons), (len(rows),), generator=draw).tolist()
    return [(times[row], column) for row, column in zip(rows, columns, strict=True)]


def _gradient(target: Target, time: int, neuron: int, first: int) -> tuple[Tensor, float]:
    """Gradient (T', F) of one response by frames ``first`` to ``time``, and the response."""
    x = target.frames[..., first : time + 1].clone().requires_grad_()
    y = target.respond(x)[0, neuron, -1]
    if not y.requires_grad:
        return torch.zeros_like(x)[0, 0].T, float(y)
    (gradient,) = torch.autograd.grad(y, x)
    return gradient[0, 0].T, float(y.detach())


def _padded(gradient: Tensor, lags: int) -> Tensor:
    """The last frames of (T', F), with zeros where there are fewer."""
    return functional.pad(gradient[-lags:], (0, 0, max(0, lags - len(gradient)), 0))
