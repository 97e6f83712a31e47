"""Sums over lagged features and the ridge solution for every penalty, without a design matrix.

With ``X`` the features of each bin and of the ``L - 1`` bins before it, centred, and ``Y`` the PSTHs, the
weights are ``(X'X + lambda I)^-1 X'Y``: one eigendecomposition of the Gram matrix serves all penalties and
all neurons that were recorded in the same bins. Where there are fewer bins than weights, the same problem is
solved by the Gram matrix of bins, ``X'(XX' + lambda I)^-1 Y``.

Along each diagonal the Gram matrix of lagged features repeats itself: the entry for lags (a + 1, b + 1) is
that for (a, b) less one product at the end of each clip. So only the products of lag 0 with every lag are
summed over time; only bins that some neurons lack are subtracted row by row.

D = C F is the number of features of a bin, L of lags, P = L D of weights; everything is in double precision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from deepSTRF.metrics import psth
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating

__all__ = [
    "ClipFeatures",
    "GroupSolution",
    "NeuronGroup",
    "cross_products",
    "group_neurons",
    "lagged_gram",
    "lagged_rows",
    "row_chunks",
    "solve_group",
]

# ---- Features and PSTHs of a recording


class ClipFeatures:
    """Features and PSTHs of a recording, one clip at a time.

    Features are the input of the model's STRFs: after front-end, standardisation and prefilter, channels and
    bands on one axis. They are computed once and kept in single precision.
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
        """Return (D, T) features."""
        return self._features[clip].double()

    def psth(self, clip: int) -> Tensor:
        """Return the mean over repeats (N, T), NaN in the onset and where nothing was recorded.

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


def _features(model: Any, stim: Tensor, clip: int) -> Tensor:
    """Features (D, T) of one stimulus, on the CPU."""
    device, dtype = placement(model)
    spectrogram = model.spectrogram(stim.unsqueeze(0).to(device, dtype))
    if model.standardizer is not None:
        spectrogram = model.standardizer(spectrogram)
    features: Tensor = model.prefiltering(spectrogram)[0].flatten(0, 1).cpu()
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"the features of clip {clip} hold values that are not finite")
    return features


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons that were recorded in the same bins, so that one decomposition serves them all.

    ``masks`` holds, per clip, the (T,) bins they have; None stands for all bins of the clip.
    """

    neurons: Tensor
    masks: list[Tensor | None]

    def n_bins(self, lengths: list[int]) -> int:
        """Return the number of bins, given the length of each clip."""
        return sum(
            length if mask is None else int(mask.sum())
            for length, mask in zip(lengths, self.masks, strict=True)
        )


def group_neurons(clips: ClipFeatures) -> list[NeuronGroup]:
    """Group neurons by the bins they were recorded in."""
    hashes = [hashlib.sha256() for _ in range(clips.n_neurons)]
    for clip in range(len(clips)):
        recorded = ~clips.psth(clip).isnan()
        for digest, row in zip(hashes, np.packbits(recorded.numpy(), axis=1), strict=True):
            digest.update(row.tobytes())
    members: dict[bytes, list[int]] = {}
    for neuron, digest in enumerate(hashes):
        members.setdefault(digest.digest(), []).append(neuron)
    groups = [NeuronGroup(torch.tensor(neurons), []) for neurons in members.values()]
    for clip in range(len(clips)):
        recorded = ~clips.psth(clip).isnan()
        for group in groups:
            row = recorded[group.neurons[0]]
            group.masks.append(None if bool(row.all()) else row.clone())
    return groups


def lagged_rows(features: Tensor, bins: Tensor, lags: range) -> Tensor:
    """Rows (n_bins, n_lags D) of the design matrix: per bin, the features (D, T) of the bins before it."""
    padded = pad(features, (lags.stop - 1, 0)).T
    when = bins.unsqueeze(1) + (lags.stop - 1) - torch.arange(lags.start, lags.stop)
    return padded[when].flatten(1)


def row_chunks(bins: Tensor, row_length: int, max_bytes: int) -> Iterator[Tensor]:
    """Cut bins into pieces whose rows of the design matrix stay within a number of bytes."""
    yield from torch.split(bins, max(1, max_bytes // (8 * row_length)))


# ---- Sums over bins


def cross_products(clips: ClipFeatures, n_lags: int) -> tuple[Tensor, Tensor]:
    """Products (P, N) of lagged features and PSTH, and sums (N,) of the PSTH, over each neuron's bins."""
    n_features = clips.features(0).shape[0]
    xy = torch.zeros(n_lags, n_features, clips.n_neurons, dtype=torch.float64)
    sums = torch.zeros(clips.n_neurons, dtype=torch.float64)
    for clip in range(len(clips)):
        features, rates = clips.features(clip), clips.psth(clip).nan_to_num(nan=0.0)
        sums += rates.sum(1)
        for lag in range(min(n_lags, features.shape[1])):
            xy[lag].addmm_(features[:, : features.shape[1] - lag], rates[:, lag:].T)
    return xy.flatten(0, 1), sums


def lagged_gram(
    clips: ClipFeatures, group: NeuronGroup, n_lags: int, *, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Gram matrix (P, P) and column sums (P,) of the lagged features over a group's bins."""
    n_features = clips.features(0).shape[0]
    products = torch.zeros(n_lags, n_features, n_features, dtype=torch.float64)
    sums = torch.zeros(n_lags, n_features, dtype=torch.float64)
    by_rows = torch.zeros(n_lags * n_features, n_lags * n_features, dtype=torch.float64)
    ends = []
    for clip, mask in enumerate(group.masks):
        features = clips.features(clip)
        # most bins recorded: all of them by structure, less the missing ones; else the recorded ones by rows
        by_structure = mask is None or 2 * int(mask.sum()) > len(mask)
        if by_structure:
            end = pad(features, (n_lags, 0))[:, -n_lags:].flip(1).T  # (L, D), the very last frame first
            ends.append(end)
            for lag in range(min(n_lags, features.shape[1])):
                products[lag].addmm_(features[:, lag:], features[:, : features.shape[1] - lag].T)
            sums += features.sum(1)
            sums[1:] -= end[:-1].cumsum(0)  # what is within lag b of the end is never b bins ago
        if mask is None:
            continue
        bins, sign = (~mask, -1.0) if by_structure else (mask, 1.0)
        for piece in row_chunks(bins.nonzero().squeeze(1), len(by_rows), max_bytes):
            rows = lagged_rows(features, piece, range(n_lags))
            by_rows.addmm_(rows.T, rows, alpha=sign)
            sums += sign * rows.sum(0).view_as(sums)
    return _assemble(products, ends).add_(by_rows), sums.flatten()


def _assemble(products: Tensor, ends: list[Tensor]) -> Tensor:
    """Gram matrix (P, P) from the products (L, D, D) of lag 0 with each lag and the clips' last frames."""
    n_lags, n_features, _ = products.shape
    gram = products.new_zeros(n_lags, n_features, n_lags, n_features)
    if not ends:
        return gram.view(n_lags * n_features, -1)
    last = torch.stack(ends, dim=1)  # (L, clips, D)
    row = products
    for lag in range(n_lags):
        gram[lag, :, lag:] = row.transpose(0, 1)
        gram[lag:, :, lag] = row.mT
        row = row[:-1] - last[lag].T @ last[lag : n_lags - 1]
    return gram.view(n_lags * n_features, -1)


# ---- Solution


@dataclass(frozen=True)
class GroupSolution:
    """Ridge estimates of a group of n neurons for every penalty.

    Shapes: weights (n_lambdas, n, L, D); biases and variances, of the prediction over the training bins,
    (n_lambdas, n); means, of the response, (n,). ``form`` is "primal" (by weights) or "dual" (by bins).
    """

    weights: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    form: str


def solve_group(
    clips: ClipFeatures,
    group: NeuronGroup,
    cross: tuple[Tensor, Tensor],
    n_lags: int,
    lambdas: Tensor,
    *,
    max_bytes: int,
) -> GroupSolution:
    """Solve for all neurons of a group and all penalties by one eigendecomposition.

    The intercept is not penalised: features and responses are centred on the group's own bins.
    """
    xy, sums = (values[..., group.neurons] for values in cross)
    n_bins = group.n_bins(clips.lengths)
    means = sums / n_bins
    if n_bins >= len(xy):
        form = "primal"
        weights, squares, centre = _solve_primal(clips, group, xy, sums, n_lags, lambdas, max_bytes)
    else:
        form = "dual"
        weights, squares, centre = _solve_dual(clips, group, len(xy), n_lags, lambdas, max_bytes)
    biases = means - torch.einsum("p,lpn->ln", centre, weights)
    shape = (len(lambdas), -1, n_lags, len(xy) // n_lags)
    return GroupSolution(weights.mT.reshape(shape), biases, squares / n_bins, means, form)


def _solve_primal(
    clips: ClipFeatures,
    group: NeuronGroup,
    xy: Tensor,
    sums: Tensor,
    n_lags: int,
    lambdas: Tensor,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n_lambdas, P, n), summed squares of predictions (n_lambdas, n), feature means (P,)."""
    gram, feature_sums = lagged_gram(clips, group, n_lags, max_bytes=max_bytes)
    centre = feature_sums / group.n_bins(clips.lengths)
    gram.addr_(feature_sums, centre, alpha=-1.0)
    sizes, directions = torch.linalg.eigh(gram)
    sizes = sizes.clamp(min=0.0)  # rounding leaves tiny negative ones
    shrunk = directions.T @ (xy - torch.outer(centre, sums)) / (sizes + lambdas.unsqueeze(1)).unsqueeze(2)
    return directions @ shrunk, (sizes.unsqueeze(1) * shrunk**2).sum(1), centre


def _solve_dual(
    clips: ClipFeatures, group: NeuronGroup, n_weights: int, n_lags: int, lambdas: Tensor, max_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_solve_primal`, by the Gram matrix of bins: columns of the design are made a few lags at a time."""
    n_bins = group.n_bins(clips.lengths)
    at_once = max(1, max_bytes // (8 * n_bins * (n_weights // n_lags)))
    pieces = [range(first, min(first + at_once, n_lags)) for first in range(0, n_lags, at_once)]
    kernel = torch.zeros(n_bins, n_bins, dtype=torch.float64)
    for lags in pieces:
        columns = _centred_columns(clips, group, lags)[0]
        kernel.addmm_(columns, columns.T)
    rates = [clips.psth(clip)[group.neurons].T for clip in range(len(clips))]
    recorded = torch.cat([y if mask is None else y[mask] for y, mask in zip(rates, group.masks, strict=True)])
    sizes, directions = torch.linalg.eigh(kernel)
    sizes = sizes.clamp(min=0.0)
    shrunk = directions.T @ (recorded - recorded.mean(0)) / (sizes + lambdas.unsqueeze(1)).unsqueeze(2)
    shares = directions @ shrunk
    weights, centres = [], []
    for lags in pieces:
        columns, centre = _centred_columns(clips, group, lags)
        weights.append(columns.T @ shares)
        centres.append(centre)
    squares = (sizes.unsqueeze(1) ** 2 * shrunk**2).sum(1)
    return torch.cat(weights, dim=1), squares, torch.cat(centres)


def _centred_columns(clips: ClipFeatures, group: NeuronGroup, lags: range) -> tuple[Tensor, Tensor]:
    """Columns of some lags over the group's bins, without their means, and the means."""
    rows = []
    for clip, mask in enumerate(group.masks):
        bins = torch.arange(clips.lengths[clip]) if mask is None else mask.nonzero().squeeze(1)
        rows.append(lagged_rows(clips.features(clip), bins, lags))
    columns = torch.cat(rows)
    centre = columns.mean(0)
    return columns - centre, centre
