"""Which stretch of which test clip is looked at: the one to which the chosen neurons respond most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Excerpt", "choose_excerpts", "strongest_stretch"]

FloatArray = NDArray[np.float64]

#: Longer clips are looked at in part.
LONGEST_S = 5.0
#: Statistics rest on several clips: so many, and together so long, that they stay cheap.
MOST_CLIPS, MOST_S = 5, 15.0


@dataclass(frozen=True)
class Excerpt:
    """One clip, and the bins of it that are looked at.

    Attributes
    ----------
    clip : int
        Index among the test clips.
    name : str
        Its name.
    stim : Tensor
        The whole stimulus.
    psth : array (T, K)
        Responses of the chosen neurons to the whole clip, repeats averaged; NaN where nothing was recorded.
    start, stop : int
        First bin, and the one after the last.

    Examples
    --------
    >>> Excerpt(0, "a", None, np.zeros((5, 1)), 1, 4).stop
    4
    """

    clip: int
    name: str
    stim: Any
    psth: FloatArray
    start: int
    stop: int


def choose_excerpts(dataset: Any, neurons: Sequence[int]) -> list[Excerpt]:
    """Return the clips on which responses vary most, each neuron in units of its own largest variance.

    Parameters
    ----------
    dataset : NeuralDataset
        Test clips.
    neurons : sequence of int
        Whose responses count.

    Returns
    -------
    list of Excerpt
        The most varied first, at most five seconds of each; at most five clips, and 15 seconds of them
        together; at least one. Clips that none of the neurons
        heard are left out.

    Raises
    ------
    ValueError
        When none of the neurons heard any clip.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=8, n_repeats=2, clip_seconds=4.0)
    >>> len(choose_excerpts(ds, [1]))
    3
    """
    psths = [_psth(dataset, clip, neurons) for clip in range(len(dataset))]
    spread = np.stack([np.nan_to_num(psth).var(axis=0) for psth in psths])
    heard = np.stack([np.isfinite(psth).any(axis=0) for psth in psths])
    if not heard.any():
        raise ValueError("none of the chosen neurons heard any test clip; choose others with neurons=")
    largest = spread.max(axis=0)
    share = np.where(heard, spread / np.where(largest > 0, largest, 1.0), -1.0).mean(axis=1)
    ranked = [int(clip) for clip in np.argsort(-share, kind="stable") if heard[clip].any()]
    chosen: list[Excerpt] = []
    for clip in ranked[:MOST_CLIPS]:
        chosen.append(_excerpt(dataset, clip, psths[clip]))
        if sum(one.stop - one.start for one in chosen) * dataset.dt > 1000.0 * MOST_S * (1.0 + 1e-9):
            return chosen[: max(1, len(chosen) - 1)]
    return chosen


def _excerpt(dataset: Any, clip: int, psth: FloatArray) -> Excerpt:
    part = strongest_stretch(np.nan_to_num(psth).mean(axis=1), round(1000 * LONGEST_S / dataset.dt))
    meta = dataset.stim_meta[clip]
    name = str(meta.get("name", meta.get("stim_id", clip)))
    return Excerpt(clip, name, dataset.stims[clip], psth, *part.indices(len(psth))[:2])


def strongest_stretch(series: FloatArray, length: int) -> slice:
    """Return the stretch of a series in which it is largest in the mean.

    Parameters
    ----------
    series : array (T,)
        Values; NaN counts as 0.
    length : int
        Bins.

    Returns
    -------
    slice
        ``length`` bins, or all where there are fewer.

    Examples
    --------
    >>> strongest_stretch(np.array([0.0, 0.0, 1.0, 3.0, 0.0]), 2)
    slice(2, 4, None)
    """
    values = np.nan_to_num(np.asarray(series, dtype=np.float64))
    if values.size <= length:
        return slice(0, values.size)
    summed = np.concatenate([[0.0], np.cumsum(values)])
    start = int((summed[length:] - summed[:-length]).argmax())
    return slice(start, start + length)


def _psth(dataset: Any, clip: int, neurons: Sequence[int]) -> FloatArray:
    """(T, K) mean over the repeats that were recorded; NaN where there is none."""
    block = np.asarray(dataset.response_block(clip)[list(neurons)], dtype=np.float64)
    finite = np.isfinite(block)
    count = finite.sum(axis=1)
    total = np.where(finite, block, 0.0).sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan).T)
