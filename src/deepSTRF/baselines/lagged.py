"""Sums over lagged features and the ridge solution for every penalty, without a design matrix.

With ``X`` the features of each bin at ``L`` lags (0 is the bin itself, 3 three bins before it, -3 three bins
after it; zero outside the clip), centred, and ``Y`` the PSTHs, the weights are ``(X'X + lambda I)^-1 X'Y``:
one eigendecomposition of the Gram matrix serves all penalties and all neurons that were recorded in the same
bins. Where there are fewer bins than weights, the same problem is solved by the Gram matrix of bins,
``X'(XX' + lambda I)^-1 Y``.

Along each diagonal the Gram matrix of lagged features repeats itself: the entry for lags (a + 1, b + 1) is
that for (a, b) less one product at the end of each clip and, for lags below 0, plus one at its start. So only
the products of the first lag with every lag are summed over time; only bins that some neurons lack are
subtracted row by row.

D = C F is the number of features of a bin, L of lags, P = L D of weights; everything is in double precision.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deepSTRF.metrics import psth
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating, input_pieces

__all__ = [
    "ClipFeatures",
    "GroupSolution",
    "NeuronGroup",
    "cross_products",
    "group_neurons",
    "lagged_gram",
    "lagged_rows",
    "measure_bands",
    "row_chunks",
    "solve_group",
]

# ---- Features and PSTHs of a recording


@dataclass(frozen=True)
class _Piece:
    """Bins ``start`` to ``stop`` of a clip, and those ``before`` and ``after`` that their lags extend to."""

    clip: int
    start: int
    stop: int
    before: int
    after: int = 0


class ClipFeatures:
    """Features and PSTHs of a recording, one clip at a time.

    Features are the input of the model's STRFs: after front-end, standardisation and prefilter, channels and
    bands on one axis. They are computed once and kept in single precision. A very long clip counts as
    several: pieces with the bins around them that their lags extend to, in which the PSTH is NaN, so that
    sums over bins are those of the whole clip.
    """

    def __init__(self, model: Any, dataset: Any, warmup_ms: float = 0.0, lags: range = range(1)) -> None:
        self._dataset = dataset
        self._scale: Tensor | None = None
        self.n_neurons = int(dataset.N_neurons)
        self.skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
        self._features: list[Tensor] = []
        self._pieces: list[_Piece] = []
        for clip in range(len(dataset.stims)):
            parts = dataset.pieces(clip) if hasattr(dataset, "pieces") else [(0, 0)]
            if len(parts) > 1:
                self._features.append(_long_features(model, dataset, clip, parts))
                back, ahead, end = max(lags.stop - 1, 0), max(-lags.start, 0), parts[-1][1]
                self._pieces += [_Piece(clip, a, b, min(a, back), min(end - b, ahead)) for a, b in parts]
                continue
            with evaluating(model):
                self._features.append(_features(model, dataset.stims[clip], clip))
            self._pieces.append(_Piece(clip, 0, int(self._features[-1].shape[-1]), 0))
        self.lengths = [one.before + one.stop - one.start + one.after for one in self._pieces]

    def __len__(self) -> int:
        return len(self._pieces)

    def features(self, clip: int) -> Tensor:
        """Return (D, T) features."""
        one = self._pieces[clip]
        features = self._features[one.clip][:, one.start - one.before : one.stop + one.after].double()
        return features if self._scale is None else features * self._scale

    def scaled(self, scale: Tensor) -> Self:
        """Return the same recording with each of its features multiplied by a number, (D,)."""
        other = copy.copy(self)
        other._scale = scale.unsqueeze(1)
        return other

    def own(self, clip: int) -> slice:
        """Bins that belong to no other piece, nor to the context of a window."""
        context, one = getattr(self._dataset, "context_bins", None), self._pieces[clip]
        before = one.before + (0 if context is None else int(context(one.clip)))
        return slice(before, self.lengths[clip] - one.after)

    def scored(self, clip: int) -> slice:
        """Bins that belong to no other piece, nor to the onset."""
        one = self._pieces[clip]
        stop = self.lengths[clip] - one.after
        return slice(int(min(one.before + max(0, self.skip - one.start), stop)), stop)

    def responses(self, clip: int) -> Tensor:
        """Return the repeats (N, R, T) of the scored bins."""
        one = self._pieces[clip]
        if one.start == 0 and one.stop == self._features[one.clip].shape[-1]:
            return self._dataset.response_block(one.clip)[..., self.skip :]  # type: ignore[no-any-return]
        first = one.start - one.before + self.scored(clip).start
        return self._dataset.response_block(one.clip, first, one.stop)  # type: ignore[no-any-return]

    def psth(self, clip: int) -> Tensor:
        """Return the mean over repeats (N, T), NaN in the onset and where nothing was recorded.

        Each bin is the plain mean of the repeats it has: a bin with many repeats weighs as one with few.
        """
        one = self._pieces[clip]
        if one.start or one.stop < self._features[one.clip].shape[-1]:
            responses = self._dataset.response_block(one.clip, one.start - one.before, one.stop + one.after)
        else:
            responses = self._dataset.response_block(one.clip)
        if responses.shape[-1] != self.lengths[clip]:
            raise ValueError(
                f"clip {one.clip} has {self.lengths[clip]} frames and {responses.shape[-1]} response bins; "
                "build the front-end with hop_ms=dataset.dt"
            )
        mean = psth(responses.double())[:, 0].clone()
        mean[:, : self.scored(clip).start] = torch.nan
        mean[:, self.scored(clip).stop :] = torch.nan
        return mean


def measure_bands(model: Any, dataset: Any) -> None:
    """Measure the bands of a model on a recording: very long clips in pieces, without context of windows."""
    if not hasattr(dataset, "scored_stimuli"):
        model.measure_bands(dataset.stims)
    elif isinstance(model.wav2spec, nn.Identity):
        model.measure_bands(dataset.scored_stimuli(range(len(dataset))))
    else:
        parts = [(clip, part) for clip in range(len(dataset)) for part in dataset.pieces(clip)]
        context = [dataset.context_bins(clip) for clip in range(len(dataset))]
        if len(parts) == len(dataset) and not any(context):
            model.measure_bands(dataset.stims)
            return
        stims = (dataset.stimulus_part(clip, *part) for clip, part in parts)
        frames = (frames for clip in range(len(dataset)) for frames in _spectrograms(model, dataset, clip))
        model.measure_bands(stims, frames)


def _spectrograms(model: Any, dataset: Any, clip: int) -> Iterator[Tensor]:
    """Spectrograms of the pieces of a clip, without its context."""
    parts = dataset.pieces(clip)
    for (start, _), frames in zip(parts, input_pieces(model, dataset, clip, parts, raw=True), strict=True):
        yield frames[..., max(0, dataset.context_bins(clip) - start) :]


def _long_features(model: Any, dataset: Any, clip: int, parts: Sequence[tuple[int, int]]) -> Tensor:
    """Features (D, T) of one very long stimulus, made piece by piece."""
    features: Tensor | None = None
    pieces = input_pieces(model, dataset, clip, parts)
    for (start, stop), piece in zip(parts, pieces, strict=True):
        frames = piece[0].flatten(0, 1).cpu()
        if not bool(torch.isfinite(frames).all()):
            raise ValueError(f"the features of clip {clip} hold values that are not finite")
        if features is None:
            features = torch.empty(len(frames), parts[-1][1])
        features[:, start:stop] = frames
    return torch.empty(0, 0) if features is None else features


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
    """Rows (n_bins, n_lags D) of the design matrix: per bin, the features (D, T) at each lag before it."""
    before = max(lags.stop - 1, 0)
    padded = pad(features, (before, max(-lags.start, 0))).T
    when = bins.unsqueeze(1) + before - torch.arange(lags.start, lags.stop)
    return padded[when].flatten(1)


def row_chunks(bins: Tensor, row_length: int, max_bytes: int) -> Iterator[Tensor]:
    """Cut bins into pieces whose rows of the design matrix stay within a number of bytes."""
    yield from torch.split(bins, max(1, max_bytes // (8 * row_length)))


# ---- Sums over bins


def cross_products(clips: ClipFeatures, lags: range) -> tuple[Tensor, Tensor]:
    """Products (P, N) of lagged features and PSTH, and sums (N,) of the PSTH, over each neuron's bins."""
    n_features = clips.features(0).shape[0]
    xy = torch.zeros(len(lags), n_features, clips.n_neurons, dtype=torch.float64)
    sums = torch.zeros(clips.n_neurons, dtype=torch.float64)
    for clip in range(len(clips)):
        features, rates = clips.features(clip), clips.psth(clip).nan_to_num(nan=0.0)
        sums += rates.sum(1)
        length = features.shape[1]
        for place, lag in enumerate(lags):
            if abs(lag) < length:
                heard = features[:, max(-lag, 0) : length - max(lag, 0)]
                xy[place].addmm_(heard, rates[:, max(lag, 0) : length - max(-lag, 0)].T)
    return xy.flatten(0, 1), sums


def lagged_gram(
    clips: ClipFeatures, group: NeuronGroup, lags: range, *, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Gram matrix (P, P) and column sums (P,) of the lagged features over a group's bins."""
    n_lags, n_features = len(lags), clips.features(0).shape[0]
    products = torch.zeros(n_lags, n_features, n_features, dtype=torch.float64)
    sums = torch.zeros(n_lags, n_features, dtype=torch.float64)
    by_rows = torch.zeros(n_lags * n_features, n_lags * n_features, dtype=torch.float64)
    leaving, entering = [], []
    for clip, mask in enumerate(group.masks):
        features = clips.features(clip)
        # most bins recorded: all of them by structure, less the missing ones; else the recorded ones by rows
        by_structure = mask is None or 2 * int(mask.sum()) > len(mask)
        if by_structure:
            length = features.shape[1]
            # frames that the first lag meets inside the clip, and what the next lags lose and gain in turn
            start, stop = min(max(-lags.start, 0), length), max(min(length, length - lags.start), 0)
            for place in range(n_lags):
                first = max(start, place)
                if first < stop:
                    earlier = features[:, first - place : stop - place]
                    products[place].addmm_(features[:, first:stop], earlier.T)
            sums += features[:, start:stop].sum(1)
            leaving.append(_frames_back(features, length - 1 - lags.start, n_lags))
            sums[1:] -= leaving[-1][:-1].cumsum(0)
            if lags.start < 0:
                entering.append(_frames_back(features, -1 - lags.start, n_lags))
                sums[1:] += entering[-1][:-1].cumsum(0)
        if mask is None:
            continue
        bins, sign = (~mask, -1.0) if by_structure else (mask, 1.0)
        for piece in row_chunks(bins.nonzero().squeeze(1), len(by_rows), max_bytes):
            rows = lagged_rows(features, piece, lags)
            by_rows.addmm_(rows.T, rows, alpha=sign)
            sums += sign * rows.sum(0).view_as(sums)
    return _assemble(products, leaving, entering).add_(by_rows), sums.flatten()


def _frames_back(features: Tensor, newest: int, n_frames: int) -> Tensor:
    """Frames (n_frames, D) of features (D, T), the newest first; zero outside the clip."""
    places = newest - torch.arange(n_frames)
    inside = (places >= 0) & (places < features.shape[1])
    return features.T[places.clamp(0, features.shape[1] - 1)] * inside.unsqueeze(1)


def _assemble(products: Tensor, leaving: list[Tensor], entering: list[Tensor]) -> Tensor:
    """Gram matrix (P, P) from the products (L, D, D) of the first lag with each.

    From lags (a, b) to (a + 1, b + 1), each clip loses the product of two frames and, for lags below 0,
    gains that of two others; both lists hold (L, D) frames.
    """
    n_lags, n_features, _ = products.shape
    gram = products.new_zeros(n_lags, n_features, n_lags, n_features)
    if not leaving:
        return gram.view(n_lags * n_features, -1)
    last = torch.stack(leaving, dim=1)  # (L, clips, D)
    first = torch.stack(entering, dim=1) if entering else None
    row = products
    for lag in range(n_lags):
        gram[lag, :, lag:] = row.transpose(0, 1)
        gram[lag:, :, lag] = row.mT
        row = row[:-1] - last[lag].T @ last[lag : n_lags - 1]
        if first is not None:
            row = row + first[lag].T @ first[lag : n_lags - 1]
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
    lags: range,
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
        weights, squares, centre = _solve_primal(clips, group, xy, sums, lags, lambdas, max_bytes)
    else:
        form = "dual"
        weights, squares, centre = _solve_dual(clips, group, len(xy), lags, lambdas, max_bytes)
    biases = means - torch.einsum("p,lpn->ln", centre, weights)
    shape = (len(lambdas), -1, len(lags), len(xy) // len(lags))
    return GroupSolution(weights.mT.reshape(shape), biases, squares / n_bins, means, form)


def _solve_primal(
    clips: ClipFeatures,
    group: NeuronGroup,
    xy: Tensor,
    sums: Tensor,
    lags: range,
    lambdas: Tensor,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n_lambdas, P, n), summed squares of predictions (n_lambdas, n), feature means (P,)."""
    gram, feature_sums = lagged_gram(clips, group, lags, max_bytes=max_bytes)
    centre = feature_sums / group.n_bins(clips.lengths)
    gram.addr_(feature_sums, centre, alpha=-1.0)
    sizes, directions = torch.linalg.eigh(gram)
    sizes = sizes.clamp(min=0.0)  # rounding leaves tiny negative ones
    shrunk = directions.T @ (xy - torch.outer(centre, sums)) / (sizes + lambdas.unsqueeze(1)).unsqueeze(2)
    return directions @ shrunk, (sizes.unsqueeze(1) * shrunk**2).sum(1), centre


def _solve_dual(
    clips: ClipFeatures, group: NeuronGroup, n_weights: int, lags: range, lambdas: Tensor, max_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_solve_primal`, by the Gram matrix of bins: columns of the design are made a few lags at a time."""
    n_bins = group.n_bins(clips.lengths)
    at_once = max(1, max_bytes // (8 * n_bins * (n_weights // len(lags))))
    pieces = [lags[first : first + at_once] for first in range(0, len(lags), at_once)]
    kernel = torch.zeros(n_bins, n_bins, dtype=torch.float64)
    for piece in pieces:
        columns = _centred_columns(clips, group, piece)[0]
        kernel.addmm_(columns, columns.T)
    rates = [clips.psth(clip)[group.neurons].T for clip in range(len(clips))]
    recorded = torch.cat([y if mask is None else y[mask] for y, mask in zip(rates, group.masks, strict=True)])
    sizes, directions = torch.linalg.eigh(kernel)
    sizes = sizes.clamp(min=0.0)
    shrunk = directions.T @ (recorded - recorded.mean(0)) / (sizes + lambdas.unsqueeze(1)).unsqueeze(2)
    shares = directions @ shrunk
    weights, centres = [], []
    for piece in pieces:
        columns, centre = _centred_columns(clips, group, piece)
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
