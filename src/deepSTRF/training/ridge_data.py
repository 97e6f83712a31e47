"""What a closed-form fit reads of a recording: features and PSTHs by clip, neurons grouped by their bins."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.metrics import psth
from deepSTRF.models.causal import placement
from deepSTRF.models.prediction import evaluating

__all__ = ["ClipFeatures", "NeuronGroup", "group_neurons", "lagged_rows", "row_chunks"]


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons that were recorded in the same bins, so that one decomposition serves them all.

    Attributes
    ----------
    neurons : Tensor
        Their indices, int64.
    masks : list of Tensor or None
        Per clip the (T,) bins they have; None stands for all bins of the clip.

    Examples
    --------
    >>> NeuronGroup(torch.tensor([0]), [None, torch.tensor([True, False])]).n_bins([3, 2])
    4
    """

    neurons: Tensor
    masks: list[Tensor | None]

    def n_bins(self, lengths: list[int]) -> int:
        """Return the number of bins, given the length of each clip."""
        return sum(
            length if mask is None else int(mask.sum())
            for length, mask in zip(lengths, self.masks, strict=True)
        )


class ClipFeatures:
    """Features and PSTHs of a recording, one clip at a time.

    Features are what the model's STRFs see: after front-end, standardisation and prefilter, channels and
    bands on one axis. They are made once and kept in single precision; everything computed from them is in
    double precision.

    Parameters
    ----------
    model : AudioEncodingModel
        Whose front-end, standardisation and prefilter are applied, as they are now, in eval mode.
    dataset : DatasetLike
        The recording.
    warmup_ms : float
        Onset of each clip whose responses are left out (its sound still counts as history).

    Raises
    ------
    ValueError
        When features are not finite, or do not have one frame per bin.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4, clip_seconds=0.5)
    >>> clips = ClipFeatures(Linear(ds.F, 5, 3), ds)
    >>> len(clips), tuple(clips.features(0).shape), tuple(clips.psth(0).shape)
    (2, (24, 100), (3, 100))
    """

    def __init__(self, model: Any, dataset: Any, warmup_ms: float = 0.0) -> None:
        self._dataset = dataset
        self.n_neurons = int(dataset.N_neurons)
        self.skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
        with evaluating(model):
            self._features = [_features(model, stim, clip) for clip, stim in enumerate(dataset.stims)]
        self.lengths = [int(one.shape[-1]) for one in self._features]

    def __len__(self) -> int:
        return len(self._features)

    def features(self, clip: int) -> Tensor:
        """Return (C * F, T) in double precision."""
        return self._features[clip].double()

    def psth(self, clip: int) -> Tensor:
        """Return the mean over repeats (N, T) in double precision; NaN where nothing counts.

        Each bin is the plain mean of the repeats it has: a bin with many repeats weighs as one with few.
        """
        responses = self._dataset.response_block(clip)
        if responses.shape[-1] != self.lengths[clip]:
            raise ValueError(
                f"clip {clip} has {self.lengths[clip]} frames and {responses.shape[-1]} response bins; build "
                "the front-end with hop_ms=dataset.dt"
            )
        mean = psth(responses.double())[:, 0].clone()
        mean[:, : self.skip] = torch.nan
        return mean


def group_neurons(clips: ClipFeatures) -> list[NeuronGroup]:
    """Group neurons by the bins they were recorded in.

    Parameters
    ----------
    clips : ClipFeatures
        The recording.

    Returns
    -------
    list of NeuronGroup
        In the order of their first neuron. Neurons without any bin form a group too.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = NeuralDataset.from_arrays([torch.rand(4, 6)], [[[0, 1, 0, 0, 2, 0], None]], dt_ms=5.0)
    >>> [group.neurons.tolist() for group in group_neurons(ClipFeatures(Linear(4, 2, 2), ds))]
    [[0], [1]]
    """
    names = [hashlib.sha256() for _ in range(clips.n_neurons)]
    for clip in range(len(clips)):
        for name, row in zip(names, np.packbits(_valid(clips, clip).numpy(), axis=1), strict=True):
            name.update(row.tobytes())
    members: dict[bytes, list[int]] = {}
    for neuron, name in enumerate(names):
        members.setdefault(name.digest(), []).append(neuron)
    groups = [NeuronGroup(torch.tensor(neurons), []) for neurons in members.values()]
    for clip in range(len(clips)):
        valid = _valid(clips, clip)
        for group in groups:
            row = valid[group.neurons[0]]
            group.masks.append(None if bool(row.all()) else row.clone())
    return groups


def lagged_rows(features: Tensor, bins: Tensor, lags: range) -> Tensor:
    """Return rows of the design matrix: for each bin the features of the bins before it.

    Parameters
    ----------
    features : Tensor, shape (D, T)
        Features of one clip; before its start they are zero.
    bins : Tensor, shape (n,)
        Which bins.
    lags : range
        Which lags, 0 being the bin itself.

    Returns
    -------
    Tensor, shape (n, len(lags) * D)
        Lag by lag.

    Examples
    --------
    >>> lagged_rows(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 2]), range(2)).tolist()
    [[1.0, 0.0], [3.0, 2.0]]
    """
    padded = torch.nn.functional.pad(features, (lags.stop - 1, 0)).T
    when = bins.unsqueeze(1) + (lags.stop - 1) - torch.arange(lags.start, lags.stop)
    return padded[when].flatten(1)


def row_chunks(bins: Tensor, row_length: int, max_bytes: int) -> Iterator[Tensor]:
    """Cut bins into pieces whose rows of the design matrix stay within a number of bytes.

    Parameters
    ----------
    bins : Tensor, shape (n,)
        The bins.
    row_length : int
        Numbers per row.
    max_bytes : int
        Most bytes of double-precision rows at once.

    Yields
    ------
    Tensor
        Consecutive bins; at least one.

    Examples
    --------
    >>> [piece.tolist() for piece in row_chunks(torch.arange(3), row_length=10, max_bytes=160)]
    [[0, 1], [2]]
    """
    yield from torch.split(bins, max(1, max_bytes // (8 * row_length)))


def _valid(clips: ClipFeatures, clip: int) -> Tensor:
    return ~clips.psth(clip).isnan()


def _features(model: Any, stim: Tensor, clip: int) -> Tensor:
    """(C * F, T) features of one stimulus."""
    device, dtype = placement(model)
    spectrogram = model.spectrogram(stim.unsqueeze(0).to(device, dtype))
    if model.standardizer is not None:
        spectrogram = model.standardizer(spectrogram)
    features: Tensor = model.prefiltering(spectrogram)[0].flatten(0, 1).cpu()
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"the features of clip {clip} hold values that are not finite")
    return features
