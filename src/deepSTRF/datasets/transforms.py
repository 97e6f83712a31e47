"""Standardisation of stimuli and normalisation of responses, fitted on some clips and applied when read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "METHODS",
    "ResponseNormalization",
    "StimulusStandardization",
    "fit_normalization",
    "fit_standardization",
    "given_normalization",
]

#: Legal methods of normalising responses.
METHODS = ("max", "zscore")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StimulusStandardization:
    """``(x - mean) / std`` with statistics of chosen clips."""

    mean: Tensor  # (F, 1), or () for all bands; with named features (F, 1) in both cases
    std: Tensor  # the same; 1 for a band that never varied in the chosen clips
    per_band: bool
    stim_indices: tuple[int, ...]  # clips the statistics come from

    def __call__(self, stimulus: Tensor) -> Tensor:
        """Standardised copy of one stimulus (..., F, T)."""
        return (stimulus - self.mean) / self.std

    def rows(self, index: slice | list[int]) -> StimulusStandardization:
        """The standardisation of chosen rows."""
        return StimulusStandardization(self.mean[index], self.std[index], self.per_band, self.stim_indices)

    def record(self) -> dict[str, Any]:
        """The dictionary ``stim_normalization``."""
        return {
            "mean": self.mean.clone(),
            "std": self.std.clone(),
            "per_band": self.per_band,
            "stim_indices": list(self.stim_indices),
        }


@dataclass(frozen=True, eq=False)
class ResponseNormalization:
    """``(y - offset) / scale`` per neuron."""

    method: str  # "max" or "zscore"
    scale: Tensor  # (N,), 1 for a neuron without anything to scale by
    offset: Tensor  # (N,), 0 for such a neuron
    stim_indices: tuple[int, ...]  # clips the statistics come from

    def __call__(self, values: Tensor, neurons: npt.NDArray[np.int64]) -> Tensor:
        """Normalised copy of (H, R, T) values of ``neurons`` (H,)."""
        index = torch.from_numpy(np.asarray(neurons))
        return (values - self.offset[index, None, None]) / self.scale[index, None, None]

    def take(self, neurons: npt.NDArray[np.int64]) -> ResponseNormalization:
        """The normalisation of a selection of neurons."""
        index = torch.from_numpy(np.asarray(neurons))
        return ResponseNormalization(self.method, self.scale[index], self.offset[index], self.stim_indices)

    def record(self) -> dict[str, Any]:
        """The dictionary ``response_normalization``."""
        return {
            "method": self.method,
            "scale": self.scale.clone(),
            "offset": self.offset.clone(),
            "stim_indices": list(self.stim_indices),
        }


class _Moments:
    """Running count, mean and sum of squared deviations of groups, in float64 (Chan's pairwise update)."""

    def __init__(self, n_groups: int) -> None:
        self.count: Floats = np.zeros(n_groups)
        self.mean: Floats = np.zeros(n_groups)
        self.squares: Floats = np.zeros(n_groups)

    def add(self, values: Floats, groups: npt.NDArray[np.int64]) -> None:
        """Add (G, n) values, NaN for nothing, of the groups ``groups``."""
        missing = np.isnan(values)
        if not missing.any():
            count = np.full(len(values), values.shape[1])
            mean = values.mean(axis=1)
            squares = ((values - mean[:, None]) ** 2).sum(axis=1)
        else:
            count = np.count_nonzero(~missing, axis=1)
            mean = np.where(missing, 0.0, values).sum(axis=1) / np.maximum(count, 1)
            squares = np.where(missing, 0.0, (values - mean[:, None]) ** 2).sum(axis=1)
        before, total = self.count[groups], np.maximum(self.count[groups] + count, 1)
        step = mean - self.mean[groups]
        self.squares[groups] += np.where(count > 0, squares + step**2 * before * count / total, 0.0)
        self.mean[groups] += np.where(count > 0, step * count / total, 0.0)
        self.count[groups] += count

    def std(self) -> Floats:
        """Unbiased standard deviation; 0 with fewer than two values."""
        spread: Floats = np.sqrt(self.squares / np.maximum(self.count - 1, 1))
        return spread


def fit_standardization(
    stims: Callable[[], Iterable[Tensor]],
    indices: Sequence[int],
    per_band: bool,
    eps: float,
    features: Mapping[str, int] | None = None,
) -> StimulusStandardization:
    """Fit mean and unbiased standard deviation of stimuli (..., F, T), over time and channels.

    ``stims`` gives those of the clips ``indices``, a long one maybe in pieces.
    ``features``: rows of each feature; without ``per_band`` each has a mean and deviation of its own.
    """
    if features and not per_band:
        return _per_feature(stims, indices, eps, list(features.values()))
    if len(indices) == 0:
        raise ValueError("standardized needs at least one clip in stim_indices; None takes all clips")
    moments: _Moments | None = None
    largest = np.zeros(1)
    for stimulus in stims():
        values = stimulus.detach().cpu().numpy().astype(np.float64)
        n_bands = values.shape[-2] if per_band else 1
        rows = np.moveaxis(values, -2, 0).reshape(n_bands, -1) if per_band else values.reshape(1, -1)
        moments = moments or _Moments(n_bands)
        moments.add(rows, np.arange(n_bands))
        largest = np.maximum(largest, np.abs(rows).max(axis=1))
    moments = moments or _Moments(1)
    spread = moments.std()
    shape = (-1, 1) if per_band else ()
    mean = torch.from_numpy(moments.mean).float().reshape(shape)
    std = torch.from_numpy(np.where(spread > eps * largest, spread, 1.0)).float().reshape(shape)
    return StimulusStandardization(mean, std, per_band, tuple(int(i) for i in indices))


def _per_feature(
    stims: Callable[[], Iterable[Tensor]], indices: Sequence[int], eps: float, counts: Sequence[int]
) -> StimulusStandardization:
    """One mean and deviation for all rows of a feature, as (F, 1) of all features."""

    def fit(rows: slice) -> StimulusStandardization:
        return fit_standardization(lambda: (one[..., rows, :] for one in stims()), indices, False, eps)

    ends = np.cumsum(counts).tolist()
    fits = [fit(slice(end - count, end)) for count, end in zip(counts, ends, strict=True)]
    repeats = torch.tensor(counts)
    mean, std = (torch.stack([getattr(fit, part) for fit in fits]) for part in ("mean", "std"))
    mean, std = (part.repeat_interleave(repeats)[:, None] for part in (mean, std))
    return StimulusStandardization(mean, std, False, fits[0].stim_indices)


def fit_normalization(
    blocks: Iterable[tuple[npt.NDArray[np.int64], Tensor]],
    n_neurons: int,
    *,
    method: str,
    stim_indices: Sequence[int],
    eps: float,
) -> ResponseNormalization:
    """Fit a scale and an offset per neuron on blocks of neurons (H,) and values (H, R, T)."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; legal methods: 'max', 'zscore'")
    moments, largest = _Moments(n_neurons), np.zeros(n_neurons)
    for neurons, values in blocks:
        flat = values.reshape(len(neurons), -1).numpy().astype(np.float64)
        if flat.size == 0:
            continue
        moments.add(flat, neurons)
        largest[neurons] = np.fmax(largest[neurons], np.fmax.reduce(np.abs(flat), axis=1))
    scale = largest if method == "max" else moments.std()
    usable = (moments.count >= 2) & (scale > eps * largest)  # relative: EEG in volts is no silence
    offset = np.where(moments.count >= 2, moments.mean, 0.0) if method == "zscore" else np.zeros(n_neurons)
    return ResponseNormalization(
        method,
        torch.from_numpy(np.where(usable, scale, 1.0)).float(),
        torch.from_numpy(offset).float(),
        tuple(int(i) for i in stim_indices),
    )


def given_normalization(statistics: Mapping[str, Any], n_neurons: int) -> ResponseNormalization:
    """A normalisation from its record, checked."""
    scale, offset = (torch.as_tensor(statistics[key], dtype=torch.float32) for key in ("scale", "offset"))
    if statistics["method"] not in METHODS or scale.shape != offset.shape or scale.shape != (n_neurons,):
        raise ValueError(
            f"statistics is the response_normalization of {n_neurons} neurons, with a method in {METHODS}; "
            f"got {statistics['method']!r} of {scale.numel()}"
        )
    return ResponseNormalization(
        str(statistics["method"]), scale, offset, tuple(statistics.get("stim_indices", ()))
    )
