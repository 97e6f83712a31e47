"""What each piece of sound contributes to a response: filter times sound, and filters of noisy copies.

Integrated gradients have no function of their own: ``dstrf(model, stimulus, path=16, baseline=...)`` averages
the filters along the path, and `contributions` multiplies them with the sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dynamic.ensembles import as_filters
from deepSTRF.interpret.dynamic.estimate import dstrf
from deepSTRF.interpret.dynamic.estimators import windows_of
from deepSTRF.interpret.dynamic.filling import as_sink, filling
from deepSTRF.interpret.dynamic.moments import noise_sd
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.run import BUDGET, baseline_frames
from deepSTRF.interpret.dynamic.sinks import CallbackSink, Sink
from deepSTRF.interpret.dynamic.stimuli import check_model, frames_of, mono, sound_of
from deepSTRF.interpret.dynamic.taps import subject_of
from deepSTRF.models._checks import check_positive_int, check_positive_number
from deepSTRF.models.gradients import differentiating

__all__ = ["SmoothedSTRF", "contributions", "smooth_dstrf"]


@dataclass(frozen=True)
class SmoothedSTRF:
    """Dynamic STRFs averaged over noisy copies of a clip.

    Attributes
    ----------
    weights : Tensor (T, N, L, F)
        Mean filters; every statistic of filters takes them, e.g. ``complexity(smoothed.weights)``.
    spread : Tensor (T, N, L, F)
        Standard deviation over the copies (n_samples - 1 in the denominator): large where the filter is one
        of many that small changes of the sound switch between. NaN for one copy.
    response : Tensor (T, N)
        Mean response to the copies.
    clean : Tensor (T, N)
        Response to the clip itself.
    noise_sd : float
        Standard deviation of the noise, in stimulus units.
    n_samples : int
        Copies.
    times : Tensor (T,)
        Frame of each row.
    neurons : list of int
        Neuron of each column.
    lags : int
        Frames of the window, L.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> SmoothedSTRF(one, one, one, one, 0.1, 20, torch.arange(1), [0], 1).n_samples
    20
    """

    weights: Tensor
    spread: Tensor
    response: Tensor
    clean: Tensor
    noise_sd: float
    n_samples: int
    times: Tensor
    neurons: list[int]
    lags: int


def contributions(
    result: DynamicSTRF,
    stimulus: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    sink: Sink | Sequence[Sink] | None = None,
) -> Any:
    """Return what each frame and band before a response contributes to it: the filter times the sound.

    Over lags and bands these sum to ``result.response - result.intercept - result.memory``. The filters of
    ``dstrf(..., path=16, baseline=b)`` make them integrated gradients when the same baseline is given here:
    they then sum to ``response - response_to_baseline - result.completeness``.

    Parameters
    ----------
    result : DynamicSTRF
        Filters in memory or in a file.
    stimulus : Tensor (F, T), (1, F, T) or (1, 1, F, T), or a sound
        The clip that the filters are of: what they were differentiated by, which ``stimulus_frames(model,
        clip, wrt=...)`` of `deepSTRF.interpret.dynamic` returns; with ``wrt="samples"`` also the sound.
    baseline : float or Tensor (F,) or (F, T)
        Sound that contributes nothing.
    sink : Sink or sequence of Sink, optional
        Where they go, as for `dstrf`; None is a tensor in memory.

    Returns
    -------
    Tensor (T, N, L, F), or what the sink made
        In units of the response; lags from the oldest frame to the current one, zero before the clip.

    Raises
    ------
    ValueError, TypeError
        For a stimulus that does not fit the filters, or filters that were not kept.

    References
    ----------
    Shrikumar et al. 2016, arXiv 1605.01713; integrated gradients: Sundararajan et al. 2017, arXiv 1703.01365.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model, sound = Linear(8, 3, out_neurons=2, norm="none"), torch.randn(8, 50)
    >>> result = dstrf(model, sound)
    >>> parts = contributions(result, sound)
    >>> bool(torch.allclose(parts.sum((2, 3)), result.response - result.intercept, atol=1e-5))
    True
    """
    if not all(hasattr(result, name) for name in ("weights", "response", "n_frames")):
        raise TypeError(
            f"result must be what dstrf or jackknifed_dstrf returns, got {type(result).__name__}: bare "
            "filters do not say at which times they are"
        )
    filters = as_filters(result)
    frames = _frames_of(result, filters.shape, stimulus)
    frames = frames - baseline_frames(baseline, frames)
    bands = frames.shape[2]
    out = as_sink(sink)
    ahead, window = result.lookahead, result.lags + result.lookahead
    padded = functional.pad(frames, (window - 1, ahead))
    # the block, its windows and their product
    at_once = max(1, BUDGET // (3 * frames.element_size() * math.prod(filters.shape[1:])))
    with filling(out, tuple(filters.shape), frames):
        for rows in torch.split(torch.arange(len(filters)), at_once):
            part = filters[int(rows[0]) : int(rows[-1]) + 1]
            block = torch.as_tensor(part if isinstance(part, Tensor) else np.array(part)).detach().to(frames)
            ends = [int(t) + ahead + window - 1 for t in result.times[rows]]
            windows = windows_of(padded, ends, window)[:, 0].transpose(1, 2)  # (B, L, F)
            made = block.reshape(len(rows), -1, window, bands) * windows.unsqueeze(1)
            out.write(rows, made.view(block.shape))
        return out.close()


def smooth_dstrf(
    model: nn.Module,
    stimulus: Tensor,
    *,
    n_samples: int = 20,
    noise: float = 0.1,
    seed: int = 0,
    wrt: str = "spectrogram",
    lags: int | None = None,
    **options: Any,
) -> SmoothedSTRF:
    """Return dynamic STRFs averaged over noisy copies of a clip, and how much they differ between copies.

    A network of rectified units has one filter per flat piece, and neighbouring pieces may differ a lot; the
    mean over a neighbourhood is what the filter is at that scale. Its memory is three tensors (T, N, L, F).

    Parameters
    ----------
    model : nn.Module
        As for `dstrf`.
    stimulus : Tensor
        One clip, as for `dstrf`. With a front-end, noise is added to what the filters are of: the
        spectrogram, or with ``wrt="samples"`` the sound.
    n_samples : int
        Copies.
    noise : float
        Standard deviation of the Gaussian noise, as a share of the stimulus's.
    seed : int
        Of the noise.
    wrt : {"spectrogram", "samples"}
        As for `dstrf`.
    lags : int, optional
        Frames of each filter; None is what `dstrf` takes for the clip.
    **options
        For `dstrf`: ``neurons``, ``times``, ``before``, ``method``, ``edge``, ``check``, ``budget_bytes``,
        ``path``, ``baseline``.

    Returns
    -------
    SmoothedSTRF
        Mean and spread.

    Raises
    ------
    ValueError, TypeError
        For illegal arguments, and as `dstrf` raises.

    References
    ----------
    Smilkov et al. 2017, SmoothGrad, arXiv 1706.03825.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> smoothed = smooth_dstrf(Linear(8, 3), torch.randn(8, 50), n_samples=3)
    >>> smoothed.weights.shape, float(smoothed.spread.max()) < 1e-6  # one filter everywhere
    (torch.Size([50, 1, 3, 8]), True)
    """
    check_model(model)
    copies, share = check_positive_int("n_samples", n_samples), check_positive_number("noise", noise)
    if "sink" in options:
        raise TypeError(
            "smooth_dstrf keeps its filters in memory: take fewer times= or neurons= instead of sink"
        )
    with differentiating(model):
        clip = subject_of(model, stimulus, wrt)
    if clip.tap_shape is not None:
        raise ValueError(
            f"noise is added to what the model hears, and wrt={wrt!r} is inside it: use wrt='samples', or "
            "average dstrf over clips that you made noisy"
        )
    sd = noise_sd(clip.frames, share)
    # the clip itself, for its window and method, which all copies then share; its filters are not kept
    plain = dstrf(model, stimulus, wrt=wrt, lags=lags, sink=CallbackSink(lambda rows, block: None), **options)
    options |= {"method": plain.method, "check": False}
    draw = torch.Generator().manual_seed(seed)
    response = torch.zeros_like(plain.response)
    mean, squares = response, response  # of the filters' own shape from the first copy on
    for copy in range(1, copies + 1):
        noisy = clip.frames + sd * torch.randn(clip.frames.shape, generator=draw).to(clip.frames)
        sound = sound_of(noisy) if clip.samples else noisy
        one = dstrf(model, sound, wrt=wrt, lags=plain.lags, **options)
        if copy == 1:
            mean, squares = torch.zeros_like(one.weights), torch.zeros_like(one.weights)
        away = one.weights.sub_(mean)
        mean += away / copy
        squares += away.square_().mul_((copy - 1) / copy)
        response += (one.response - response) / copy
    spread = (squares / (copies - 1 if copies > 1 else torch.nan)).sqrt()
    return SmoothedSTRF(
        mean, spread, response, plain.response, sd, copies, plain.times, plain.neurons, plain.lags
    )


def _frames_of(result: DynamicSTRF, shape: Sequence[int], stimulus: Tensor) -> Tensor:
    """The frames (1, 1, F, T) that the filters of a result apply to."""
    given = torch.as_tensor(stimulus).detach().to(result.response)
    hop = shape[2] // (result.lags + result.lookahead)
    if hop > 1 and given.numel() == given.shape[-1]:  # filters of samples, and a sound
        frames = frames_of(mono(given), hop)
    elif given.ndim in (2, 3, 4) and given.numel() == given.shape[-2:].numel():
        frames = given.reshape(1, 1, *given.shape[-2:])
    else:
        frames = given.reshape(1, 1, 1, -1)
    bands = hop * shape[3]
    if frames.shape[2] != bands or frames.shape[3] != result.n_frames:
        raise ValueError(
            f"stimulus must be the clip of these filters, {bands} bands by {result.n_frames} frames, got "
            f"{tuple(given.shape)}; stimulus_frames(model, stimulus, wrt=...) returns what they apply to"
        )
    return frames
