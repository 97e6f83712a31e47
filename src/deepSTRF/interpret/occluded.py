"""Occlusion: what a response loses when a patch of the sound before it is taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepSTRF.interpret.dynamic.moments import Moment, forward_bytes, window_length
from deepSTRF.interpret.dynamic.request import time_indices
from deepSTRF.interpret.dynamic.run import BUDGET, baseline_frames
from deepSTRF.interpret.dynamic.stimuli import check_model
from deepSTRF.interpret.dynamic.taps import subject_of
from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.neuron_selection import NeuronSelection, neuron_indices
from deepSTRF.models.prediction import evaluating

__all__ = ["Occlusion", "occlusion"]


@dataclass(frozen=True)
class Occlusion:
    """How responses change when patches of the sound before them are replaced.

    Attributes
    ----------
    change : Tensor (T, N, P, Q)
        Response less the response without the patch: positive where the sound in it raised the response. P
        patches along lags, from the oldest to the one that ends at the current frame, Q along bands, from the
        lowest; 0 where a patch lies before the clip.
    lag_edges : Tensor (P + 1,)
        Patch p covers lags ``lag_edges[p] : lag_edges[p + 1]`` of the window; the oldest may be narrower.
    band_edges : Tensor (Q + 1,)
        Patch q covers bands ``band_edges[q] : band_edges[q + 1]``; the highest may be narrower.
    response : Tensor (T, N)
        Responses to the clip as it is.
    times : list of int
        Frame of each row.
    neurons : list of int
        Neuron of each column.

    Examples
    --------
    >>> lags, bands = torch.tensor([0, 1, 3]), torch.tensor([0, 2])
    >>> made = Occlusion(torch.ones(1, 1, 2, 1), lags, bands, torch.ones(1, 1), [0], [0])
    >>> made.per_bin().squeeze().tolist()
    [[0.5, 0.5], [0.25, 0.25], [0.25, 0.25]]
    """

    change: Tensor
    lag_edges: Tensor
    band_edges: Tensor
    response: Tensor
    times: list[int]
    neurons: list[int]

    def per_bin(self) -> Tensor:
        """Return the changes as maps (T, N, L, F) like filters, each shared among the bins of its patch.

        Returns
        -------
        Tensor
            Sums over a patch are its change.
        """
        lags, bands = self.lag_edges.diff(), self.band_edges.diff()
        shared = self.change / (lags.unsqueeze(1) * bands).to(self.change)
        lags, bands = lags.to(shared.device), bands.to(shared.device)
        return shared.repeat_interleave(lags, dim=2).repeat_interleave(bands, dim=3)


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
    """Replace the sound before a response patch by patch, and return how the response changes.

    No gradients are taken: this says what finite changes do, also for models that have none. Each time costs
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
        What stands in their place. ``spectrogram.mean(-1)`` is each band's mean: of a spectrogram in decibels
        0 need not be silence.
    times : int, slice or sequence of int, optional
        Which frames; None is all.
    neurons : int, slice or sequence of int, optional
        Which; None is all.
    lags : int, optional
        Frames of the window, L; None is the receptive field, which must then be finite.
    wrt : str
        What patches are cut from, as for `dstrf`: the spectrogram behind the front-end, the output of a named
        part, or ``"samples"``, whose bands are the samples of each bin.
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
        subject = subject_of(model, stimulus, wrt)
        output = subject.output()
        wanted, named = neuron_indices(neurons, len(output)), time_indices(times, output.shape[1])
        if not wanted or not named:
            raise ValueError(f"nothing to do: {len(named)} times and {len(wanted)} neurons are left")
        length, bands = window_length(subject, lags), subject.frames.shape[2]
        silent = baseline_frames(baseline, subject.frames)
        # anchored at the current frame: its patch is never the narrow one
        lag_edges = torch.tensor([0, *range(length % width or width, length + 1, width)])
        band_edges = torch.tensor([*range(0, bands, height), bands])
        change = output.new_zeros(len(named), len(wanted), len(lag_edges) - 1, len(band_edges) - 1)
        for row, time in enumerate(named):
            moment = Moment(subject, time, length)
            at_once = max(1, budget // forward_bytes(model, moment))
            reference = moment.respond(moment.window)[0, wanted]
            quiet = silent[..., time + 1 - moment.window.shape[-1] : time + 1]
            for places, windows in _patched(moment, quiet, lag_edges, band_edges, at_once):
                p, q = torch.tensor(places).T
                change[row, :, p, q] = (reference - moment.respond(windows)[:, wanted]).T
    response = output[wanted][:, named].T
    return Occlusion(change, lag_edges, band_edges, response, named, wanted)


def _patched(
    moment: Moment, quiet: Tensor, lag_edges: Tensor, band_edges: Tensor, at_once: int
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Places of patches and windows (B, 1, F, L') without them, as many at once as are wanted."""
    lags, bands = lag_edges.sub(moment.missing).clamp_min(0).tolist(), band_edges.tolist()
    every = [(p, q) for p in range(len(lags) - 1) if lags[p + 1] for q in range(len(bands) - 1)]
    for first in range(0, len(every), at_once):
        places = every[first : first + at_once]
        windows = moment.window.repeat(len(places), 1, 1, 1)
        for window, (p, q) in zip(windows, places, strict=True):
            where = (slice(None), slice(bands[q], bands[q + 1]), slice(lags[p], lags[p + 1]))
            window[where] = quiet[0][where]
        yield places, windows
