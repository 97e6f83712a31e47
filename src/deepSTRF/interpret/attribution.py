"""Attribution of a response to the frames before it: contributions, SmoothGrad and occlusion.

- `contributions`: filter times stimulus; with the filters of ``dstrf(..., n_steps=16, baseline=...)`` these
  are integrated gradients;
- `smooth_dstrf`: filters averaged over noisy copies of a clip;
- `occlusion`: finite changes of the response when a patch of the stimulus is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import (
    NeuronSelection,
    check_positive_int,
    check_positive_number,
    checked_but,
    neuron_indices,
    to_tensor,
)
from deepSTRF.interpret.dstrf.estimate import BUDGET, baseline_frames, dstrf, target_of, time_indices
from deepSTRF.interpret.dstrf.result import DynamicSTRF
from deepSTRF.interpret.dstrf.sinks import CallbackSink, Sink, as_sink, opened
from deepSTRF.interpret.dstrf.target import check_model, mono, sound_frames, sound_of, windows_of
from deepSTRF.interpret.dstrf.window_response import WindowResponse, forward_bytes, noise_sd, window_length
from deepSTRF.interpret.filter_statistics.ensembles import as_filters
from deepSTRF.models.prediction import differentiating, evaluating


@dataclass(frozen=True)
class SmoothedSTRF:
    """Dynamic STRFs averaged over noisy copies of a clip.

    Attributes
    ----------
    weights : Tensor (T, N, L, F). Mean filters; every statistic of filters takes them, e.g.
        ``complexity(smoothed.weights)``.
    spread : Tensor (T, N, L, F). Standard deviation over the copies (n_samples - 1 in the denominator): large
        where the filter is one of many between which small changes of the stimulus switch. NaN for one copy.
    response : Tensor (T, N). Mean response to the copies.
    clean : Tensor (T, N). Response to the clip itself.
    noise_sd : float. Standard deviation of the noise, in stimulus units.
    n_samples : int. Copies.
    times : Tensor (T,). Frame of each row.
    neurons : list of int. Neuron of each column.
    lags : int. Frames of the window, L.
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


@checked_but("result", "baseline", "sink")
def contributions(
    result: DynamicSTRF,
    stimulus: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    sink: Sink | Sequence[Sink] | None = None,
) -> Any:
    """Contribution of each frame and band before a response: the filter times the stimulus.

    Over lags and bands these sum to ``result.response - result.intercept - result.memory``. The filters of
    ``dstrf(..., n_steps=16, baseline=b)`` make them integrated gradients when the same baseline is given
    here: they then sum to ``response - response_to_baseline - result.completeness``.

    Parameters
    ----------
    result : DynamicSTRF
        Filters in memory or in a file.
    stimulus : Tensor (F, T), (1, F, T) or (1, 1, F, T), or a sound
        The clip that the filters are of: what they were differentiated by, which ``stimulus_frames(model,
        clip, wrt=...)`` of `deepSTRF.interpret.dstrf` returns; with ``wrt="samples"`` also the sound.
    baseline : float or Tensor (F,) or (F, T)
        Stimulus that contributes nothing.
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
            "filters do not state their times"
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
    with opened(out, tuple(filters.shape), frames):
        for rows in torch.split(torch.arange(len(filters)), at_once):
            part = filters[int(rows[0]) : int(rows[-1]) + 1]
            block = to_tensor(part if isinstance(part, Tensor) else np.array(part)).detach().to(frames)
            ends = [int(t) + ahead + window - 1 for t in result.times[rows]]
            windows = windows_of(padded, ends, window)[:, 0].transpose(1, 2)  # (B, L, F)
            made = block.reshape(len(rows), -1, window, bands) * windows.unsqueeze(1)
            out.write(rows, made.view(block.shape))
        return out.close()


@checked_but("model")
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
    """SmoothGrad: dynamic STRFs averaged over noisy copies of a clip, and their spread over the copies.

    A network of rectified units has one filter per flat piece, and neighbouring pieces may differ a lot; the
    mean over a neighbourhood is the filter at that scale. Its memory is three tensors (T, N, L, F).

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
        For `dstrf`: ``neurons``, ``times``, ``skip_nonlinearity``, ``method``, ``edge``, ``check``,
        ``budget_bytes``, ``n_steps``, ``baseline``.

    Returns
    -------
    SmoothedSTRF
        Mean and spread.

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
        clip = target_of(model, stimulus, wrt)
    if clip.layer_shape is not None:
        raise ValueError(
            f"noise is added to the input of the model, and wrt={wrt!r} is inside it: use wrt='samples', or "
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
    given = to_tensor(stimulus).detach().to(result.response)
    hop = shape[2] // (result.lags + result.lookahead)
    if hop > 1 and given.numel() == given.shape[-1]:  # filters of samples, and a sound
        frames = sound_frames(mono(given), hop)
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


@dataclass(frozen=True)
class Occlusion:
    """Changes of responses when patches of the stimulus before them are replaced.

    Attributes
    ----------
    change : Tensor (T, N, P, Q). Response less the response without the patch: positive where the patch
        raised the response. P patches along lags, from the oldest to the one that ends at the current frame,
        Q along bands, from the lowest; 0 where a patch lies before the clip.
    lag_edges : Tensor (P + 1,). Patch p covers lags ``lag_edges[p] : lag_edges[p + 1]`` of the window; the
        oldest may be narrower.
    band_edges : Tensor (Q + 1,). Patch q covers bands ``band_edges[q] : band_edges[q + 1]``; the highest may
        be narrower.
    response : Tensor (T, N). Responses to the clip as it is.
    times : list of int. Frame of each row.
    neurons : list of int. Neuron of each column.
    """

    change: Tensor
    lag_edges: Tensor
    band_edges: Tensor
    response: Tensor
    times: list[int]
    neurons: list[int]

    def per_bin(self) -> Tensor:
        """Changes as maps (T, N, L, F) like filters, each shared among the bins of its patch.

        Returns
        -------
        Tensor
            Sums over a patch are its change.
        """
        lags, bands = self.lag_edges.diff(), self.band_edges.diff()
        shared = self.change / (lags.unsqueeze(1) * bands).to(self.change)
        lags, bands = lags.to(shared.device), bands.to(shared.device)
        return shared.repeat_interleave(lags, dim=2).repeat_interleave(bands, dim=3)


@checked_but("model", "patch", "baseline", "neurons")
def occlusion(
    model: nn.Module,
    stimulus: Tensor,
    *,
    patch: tuple[int, int] = (1, 1),
    baseline: float | Tensor = 0.0,
    times: int | slice | Sequence[int] | None = None,
    neurons: NeuronSelection = None,
    lags: int | None = None,
    wrt: str = "spectrogram",
    budget_bytes: int = BUDGET,
) -> Occlusion:
    """Change of a response when the stimulus before it is replaced patch by patch.

    No gradients are taken: these are finite changes, also of models that have no gradient. Each time costs
    a response per patch, and serves all neurons.

    Parameters
    ----------
    model : nn.Module
        As for `dstrf`.
    stimulus : Tensor
        One clip, as for `dstrf`.
    patch : (int, int)
        Bands and frames of a patch. Patches tile the window, from the current frame back and from the lowest
        band up.
    baseline : float or Tensor (F,) or (F, T)
        Values in their place. ``spectrogram.mean(-1)`` is each band's mean: of a spectrogram in decibels
        0 need not be silence.
    times : int, slice or sequence of int, optional
        Which frames; None is all.
    neurons : int, slice or sequence of int, optional
        Which; None is all.
    lags : int, optional
        Frames of the window, L; None is the receptive field, which must then be finite.
    wrt : str
        Frames that patches are cut from, as for `dstrf`: the spectrogram behind the front-end, the output of
        a named part, or ``"samples"``, whose bands are the samples of each bin.
    budget_bytes : int
        Working memory, roughly: so many patches run at once.

    Returns
    -------
    Occlusion
        Changes per time, neuron and patch.

    Raises
    ------
    ValueError, TypeError, IndexError
        For illegal arguments, or a model and clip that do not fit.

    References
    ----------
    Zeiler & Fergus 2014, doi 10.1007/978-3-319-10590-1_53.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> found = occlusion(Linear(8, 6, out_neurons=2), torch.randn(8, 50), patch=(4, 3), times=[20, 30])
    >>> found.change.shape, found.per_bin().shape
    (torch.Size([2, 2, 2, 2]), torch.Size([2, 2, 6, 8]))
    """
    if isinstance(patch, int) or len(patch) != 2:
        raise ValueError(f"patch must be (bands, frames), such as patch=(2, 4), got {patch!r}")
    height, width = check_positive_int("patch", patch[0]), check_positive_int("patch", patch[1])
    budget = check_positive_int("budget_bytes", budget_bytes)
    check_model(model)
    with evaluating(model):
        target = target_of(model, stimulus, wrt)
        output = target.output()
        wanted, named = neuron_indices(neurons, len(output)), time_indices(times, output.shape[1])
        if not wanted or not named:
            raise ValueError(f"nothing to do: {len(named)} times and {len(wanted)} neurons are left")
        length, bands = window_length(target, lags), target.frames.shape[2]
        start = baseline_frames(baseline, target.frames)
        # anchored at the current frame: its patch is never the narrow one
        lag_edges = torch.tensor([0, *range(length % width or width, length + 1, width)])
        band_edges = torch.tensor([*range(0, bands, height), bands])
        change = output.new_zeros(len(named), len(wanted), len(lag_edges) - 1, len(band_edges) - 1)
        for row, time in enumerate(named):
            at = WindowResponse(target, time, length)
            at_once = max(1, budget // forward_bytes(model, at))
            reference = at.respond(at.window)[0, wanted]
            replacement = start[..., time + 1 - at.window.shape[-1] : time + 1]
            for places, windows in _patched(at, replacement, lag_edges, band_edges, at_once):
                p, q = torch.tensor(places).T
                change[row, :, p, q] = (reference - at.respond(windows)[:, wanted]).T
    response = output[wanted][:, named].T
    return Occlusion(change, lag_edges, band_edges, response, named, wanted)


def _patched(
    at: WindowResponse, replacement: Tensor, lag_edges: Tensor, band_edges: Tensor, at_once: int
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Places of patches and windows (B, 1, F, L') without them, so many at once."""
    lags, bands = lag_edges.sub(at.missing).clamp_min(0).tolist(), band_edges.tolist()
    every = [(p, q) for p in range(len(lags) - 1) if lags[p + 1] for q in range(len(bands) - 1)]
    for first in range(0, len(every), at_once):
        places = every[first : first + at_once]
        windows = at.window.repeat(len(places), 1, 1, 1)
        for window, (p, q) in zip(windows, places, strict=True):
            where = (slice(None), slice(bands[q], bands[q + 1]), slice(lags[p], lags[p + 1]))
            window[where] = replacement[0][where]
        yield places, windows
