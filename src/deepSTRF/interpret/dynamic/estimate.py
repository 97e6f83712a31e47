"""Dynamic STRFs: the linear filter that a model is, at each moment of a clip."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from torch import Tensor, nn

from deepSTRF.interpret.dynamic.filling import as_sink
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.run import BUDGET, open_run
from deepSTRF.interpret.dynamic.sinks import Sink
from deepSTRF.models.neuron_selection import NeuronSelection

__all__ = ["dstrf"]


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
            before=before, method=method, edge=edge, path=path, baseline=baseline, check=check,
            budget_bytes=budget_bytes,
        )  # fmt: skip
        return run.result(run.into(as_sink(sink)), wrt)
