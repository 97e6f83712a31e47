"""Features and PSTHs of a recording, and sums over lagged features, without a design matrix.

``X`` are the features of each bin at ``L`` lags (0 is the bin itself, 3 three bins before it, -3 three bins
after it; zero outside the clip).

Along each diagonal the Gram matrix of lagged features repeats itself: the entry for lags (a + 1, b + 1) is
that for (a, b) less one product at the end of each clip and, for lags below 0, plus one at its start. So only
the products of the first lag with every lag are summed over time; only bins that some neurons lack are
subtracted row by row.

D = C F is the number of features of a bin, L of lags, P = L D of weights; everything is in double precision.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    "LEAST_LEFT",
    "BinParts",
    "ClipFeatures",
    "LaggedSums",
    "NeuronGroup",
    "cross_products",
    "group_alike",
    "group_neurons",
    "lagged_gram",
    "lagged_rows",
    "measure_bands",
    "mostly",
    "row_chunks",
]

#: Clips of a recording up to which sums of single ones are kept for all folds.
MOST_SINGLES = 200
#: Bins whose columns of the design matrix are made at once.
BINS_AT_ONCE = 256
#: Share of a sum of squares below which a difference has lost too many digits.
LEAST_LEFT = 1e-6
#: Pattern of a neuron that was recorded in every bin of a clip.
ALL_BINS = b""

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
    bands on one axis. They are computed once and kept in single precision; a standardisation without a
    prefilter behind it is applied in double precision. A very long clip counts as several: pieces with the
    bins around them that their lags extend to, in which the PSTH is NaN, so that sums over bins are those of
    the whole clip.
    """

    def __init__(self, model: Any, dataset: Any, warmup_ms: float = 0.0, lags: range = range(1)) -> None:
        self._dataset = dataset
        self._shift: Tensor | None = None
        self._scale: Tensor | None = None
        self._store: dict[tuple[str, int], Any] | None = None
        self._base, self._blocks = self, list[list[int]]()
        self.n_neurons = int(dataset.N_neurons)
        self.skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
        self._features: list[Tensor] = []
        self._pieces: list[_Piece] = []
        plain = isinstance(model.prefiltering, nn.Identity)
        for clip in range(len(dataset.stims)):
            parts = dataset.pieces(clip) if hasattr(dataset, "pieces") else [(0, 0)]
            if len(parts) > 1:
                self._features.append(_long_features(model, dataset, clip, parts, raw=plain))
                back, ahead, end = max(lags.stop - 1, 0), max(-lags.start, 0), parts[-1][1]
                self._pieces += [_Piece(clip, a, b, min(a, back), min(end - b, ahead)) for a, b in parts]
                continue
            with evaluating(model):
                self._features.append(_features(model, dataset.stims[clip], clip, raw=plain))
            self._pieces.append(_Piece(clip, 0, int(self._features[-1].shape[-1]), 0))
        self.lengths = [one.before + one.stop - one.start + one.after for one in self._pieces]
        self._places = list(range(len(self._pieces)))
        if plain and model.standardizer is not None:
            mean, std = model.standardizer.measured_moments()
            self._shift, self._scale = mean.unsqueeze(1), 1.0 / std.unsqueeze(1)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def n_features(self) -> int:
        """Features of a bin."""
        return int(self._features[0].shape[0])

    def raw(self, clip: int) -> Tensor:
        """Return (D, T) features as they are kept, in single precision."""
        one = self._pieces[clip]
        return self._features[one.clip][:, one.start - one.before : one.stop + one.after]

    def features(self, clip: int) -> Tensor:
        """Return (D, T) features in double precision."""
        return self._shifted(self.raw(clip).double())

    def scaled(self, scale: Tensor) -> Self:
        """Return the same recording with each of its features multiplied by a number, (D,)."""
        other = copy.copy(self)
        other._scale = scale.unsqueeze(1) if self._scale is None else self._scale * scale.unsqueeze(1)
        other._store = None
        return other

    def sharing(self, blocks: Iterable[Sequence[int]], mean: Tensor | None, std: Tensor | None) -> Self:
        """Return the same recording, which keeps what it sums for every one of its `part`s.

        Clips of one of the ``blocks`` always go together. ``mean`` and ``std`` (D,) of the whole recording
        are the level and unit in which sums are kept, where parts are standardised on their own.
        """
        other = copy.copy(self)
        other._store, other._base = {}, other
        if mean is not None and std is not None:
            other._shift, other._scale = mean.unsqueeze(1), 1.0 / std.unsqueeze(1)
        places: dict[int, list[int]] = {}
        for place, one in enumerate(self._pieces):
            places.setdefault(one.clip, []).append(place)
        other._blocks = [[place for clip in block for place in places[clip]] for block in blocks]
        return other

    def part(self, clips: Sequence[int], mean: Tensor | None = None, std: Tensor | None = None) -> Self:
        """Return some clips of a recording that shares its sums, standardised by ``mean`` and ``std`` (D,).

        A piece of a very long clip counts with its clip.
        """
        other = copy.copy(self)
        wanted = {clip: place for place, clip in enumerate(clips)}
        inside = [place for place, one in enumerate(self._pieces) if one.clip in wanted]
        inside.sort(key=lambda place: wanted[self._pieces[place].clip])
        other._pieces = [self._pieces[place] for place in inside]
        other.lengths = [self.lengths[place] for place in inside]
        other._places = inside
        if mean is not None and std is not None:
            other._shift, other._scale = mean.unsqueeze(1), 1.0 / std.unsqueeze(1)
        return other

    def kept(self, name: str, clip: int, make: Callable[[], Any]) -> Any:
        """Return what was made of a clip, made anew where nothing is shared."""
        if self._store is None:
            return make()
        key = (name, self._places[clip])
        if key not in self._store:
            self._store[key] = make()
        return self._store[key]

    def _levelled(self, clip: int) -> Tensor:
        """Features (D, T) in the level and unit of the whole recording, and a last row of ones."""
        features = self._base._shifted(self.raw(clip).double())
        return torch.cat([features, features.new_ones(1, features.shape[1])])

    def _shifted(self, features: Tensor) -> Tensor:
        if self._shift is not None:
            features = features - self._shift
        return features if self._scale is None else features * self._scale

    def _change(self) -> Tensor:
        """Matrix (D + 1, D) that takes shared features to those of this part."""
        ones = torch.ones(self.n_features, 1, dtype=torch.float64)
        (shift, scale), (own_shift, own_scale) = (
            (0 * ones if one._shift is None else one._shift, ones if one._scale is None else one._scale)
            for one in (self._base, self)
        )
        offset = (shift - own_shift) * own_scale
        return torch.cat([torch.diag((own_scale / scale).squeeze(1)), offset.T])

    def sums(self, clips: Sequence[int], lags: range) -> LaggedSums:
        """Return sums over all bins of some clips."""
        if self._store is None:
            return LaggedSums.pool(LaggedSums.of(self.features(clip), lags) for clip in clips)

        def make(block: list[int]) -> LaggedSums:
            return LaggedSums.pool(LaggedSums.of(self._levelled(clip), lags) for clip in block)

        return LaggedSums.pool(self._by_blocks("sums", clips, make)).changed(self._change())

    def cross(self, lags: range, clips: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return products (P, N) of lagged features and PSTH, and sums (N,) of the PSTH."""
        chosen = list(range(len(self))) if clips is None else list(clips)
        if self._store is None:
            pooled = _Cross.zeros(len(lags), self.n_features, self.n_neurons)
            for clip in chosen:
                pooled.add(self.features(clip), self.psth(clip), lags)
            return pooled.products.flatten(0, 1), pooled.sums

        def make(block: list[int]) -> _Cross:
            one = _Cross.zeros(len(lags), self.n_features + 1, self.n_neurons)
            for clip in block:
                one.add(self._levelled(clip), self.psth(clip), lags)
            return one

        pooled = _Cross.zeros(len(lags), self.n_features + 1, self.n_neurons)
        for part in self._by_blocks("cross", chosen, make):
            pooled.products.add_(part.products)
            pooled.sums.add_(part.sums)
        change = self._change()
        products = change.T.expand(len(lags), -1, -1).contiguous() @ pooled.products
        return products.flatten(0, 1), pooled.sums

    def _by_blocks(self, name: str, clips: Sequence[int], make: Callable[[list[int]], Any]) -> Iterator[Any]:
        """What was made of clips: of whole blocks and, where there are few, of single clips it is kept."""
        wanted = {self._places[clip]: clip for clip in clips}
        for block in self._blocks:
            inside = [wanted[place] for place in block if place in wanted]
            if not inside:
                continue
            if len(inside) == len(block):
                yield self.kept(f"{name} of block", inside[0], functools.partial(make, inside))
            elif len(self._base) > MOST_SINGLES:
                yield make(inside)
            else:
                yield from (self.kept(name, clip, functools.partial(make, [clip])) for clip in inside)

    def recorded(self, clip: int) -> tuple[list[bytes], dict[bytes, Tensor | None]]:
        """Return a pattern of recorded bins per neuron, and the bins (T,) of each pattern, None for all."""
        found: tuple[list[bytes], dict[bytes, Tensor | None]] = self.kept(
            "recorded", clip, lambda: self._patterns(clip)
        )
        return found

    def _patterns(self, clip: int) -> tuple[list[bytes], dict[bytes, Tensor | None]]:
        has_all_bins = getattr(self._dataset, "has_all_bins", None)
        if has_all_bins is None or not has_all_bins(self._pieces[clip].clip):
            return _patterns(~self.psth(clip).isnan())
        scored = torch.zeros(1, self.lengths[clip], dtype=torch.bool)
        scored[:, self.scored(clip)] = True
        names, bins = _patterns(scored)
        return names * self.n_neurons, bins

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
        copied = responses.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        mean = psth(copied)[:, 0]
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


def _long_features(
    model: Any, dataset: Any, clip: int, parts: Sequence[tuple[int, int]], *, raw: bool
) -> Tensor:
    """Features (D, T) of one very long stimulus, made piece by piece; ``raw`` before the standardisation."""
    features: Tensor | None = None
    pieces = input_pieces(model, dataset, clip, parts, raw=raw)
    for (start, stop), piece in zip(parts, pieces, strict=True):
        frames = piece[0].flatten(0, 1).cpu()
        if not bool(torch.isfinite(frames).all()):
            raise ValueError(f"the features of clip {clip} hold values that are not finite")
        if features is None:
            features = torch.empty(len(frames), parts[-1][1])
        features[:, start:stop] = frames
    return torch.empty(0, 0) if features is None else features


def _features(model: Any, stim: Tensor, clip: int, *, raw: bool) -> Tensor:
    """Features (D, T) of one stimulus, on the CPU; ``raw`` before the standardisation."""
    device, dtype = placement(model)
    spectrogram = model.spectrogram(stim.unsqueeze(0).to(device, dtype))
    if not raw:
        if model.standardizer is not None:
            spectrogram = model.standardizer(spectrogram)
        spectrogram = model.prefiltering(spectrogram)
    features: Tensor = spectrogram[0].flatten(0, 1).cpu()
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"the features of clip {clip} hold values that are not finite")
    return features


def _patterns(recorded: Tensor) -> tuple[list[bytes], dict[bytes, Tensor | None]]:
    """Pattern of each row of a bool (N, T), and the rows (T,) of the different ones, None for all bins."""
    if bool(recorded.all()):
        return [ALL_BINS] * len(recorded), {ALL_BINS: None}
    names = [row.tobytes() for row in np.packbits(recorded.numpy(), axis=1)]
    full = recorded.all(1).tolist()
    names = [ALL_BINS if whole else name for name, whole in zip(names, full, strict=True)]
    first = {name: neuron for neuron, name in reversed(list(enumerate(names)))}
    return names, {name: None if name == ALL_BINS else recorded[at].clone() for name, at in first.items()}


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
    patterns = [clips.recorded(clip) for clip in range(len(clips))]
    if all(set(masks) == {ALL_BINS} for _, masks in patterns):
        return [NeuronGroup(torch.arange(clips.n_neurons), [None] * len(clips))]
    alike = group_alike(clips.n_neurons, (names for names, _ in patterns))
    return [
        NeuronGroup(torch.tensor(neurons), [masks[names[neurons[0]]] for names, masks in patterns])
        for neurons in alike
    ]


def group_alike(n_neurons: int, marks: Iterable[Sequence[bytes]]) -> list[list[int]]:
    """Group neurons with equal marks in all clips, each of which has one mark per neuron."""
    hashes = [hashlib.sha256() for _ in range(n_neurons)]
    for of_clip in marks:
        for digest, mark in zip(hashes, of_clip, strict=True):
            digest.update(len(mark).to_bytes(8, "little") + mark)
    members: dict[bytes, list[int]] = {}
    for neuron, digest in enumerate(hashes):
        members.setdefault(digest.digest(), []).append(neuron)
    return list(members.values())


def lagged_rows(features: Tensor, bins: Tensor, lags: range) -> Tensor:
    """Rows (n_bins, n_lags D) of the design matrix: per bin, the features (D, T) at each lag before it."""
    before = max(lags.stop - 1, 0)
    padded = pad(features, (before, max(-lags.start, 0))).T
    when = bins.unsqueeze(1) + before - torch.arange(lags.start, lags.stop)
    return padded[when].flatten(1)


def lagged_columns(features: Tensor, first: int, last: int, lags: range) -> Tensor:
    """Columns (n_lags D, n_bins) of the design matrix: the features (D, T) at each lag before some bins."""
    length, low, high = features.shape[1], first - lags.stop + 1, last - lags.start
    start, stop = max(low, 0), min(high, length)
    if start >= stop:  # silence alone
        return features.new_zeros(len(lags) * len(features), last - first)
    inside = pad(features[:, start:stop], (start - low, high - stop))
    return inside.unfold(1, last - first, 1).transpose(0, 1).flip(0).flatten(0, 1)


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """Cut bins into spans whose columns of the design matrix stay in the cache."""
    return ((first, min(first + BINS_AT_ONCE, length)) for first in range(0, length, BINS_AT_ONCE))


def row_chunks(bins: Tensor, row_length: int, max_bytes: int) -> Iterator[Tensor]:
    """Cut bins into pieces whose rows of the design matrix stay within a number of bytes."""
    yield from torch.split(bins, max(1, max_bytes // (8 * row_length)))


# ---- Sums over bins


def cross_products(clips: ClipFeatures, lags: range) -> tuple[Tensor, Tensor]:
    """Products (P, N) of lagged features and PSTH, and sums (N,) of the PSTH, over each neuron's bins."""
    return clips.cross(lags)


@dataclass(frozen=True)
class _Cross:
    """Products (L, D, N) of lagged features and PSTH, and sums (N,) of the PSTH."""

    products: Tensor
    sums: Tensor

    @classmethod
    def zeros(cls, n_lags: int, n_features: int, n_neurons: int) -> _Cross:
        """Sums of no bin."""
        products = torch.zeros(n_lags, n_features, n_neurons, dtype=torch.float64)
        return cls(products, torch.zeros(n_neurons, dtype=torch.float64))

    def add(self, features: Tensor, psth: Tensor, lags: range) -> None:
        """Add a clip of features (D, T) and PSTHs (N, T), NaN where nothing was recorded, and then 0."""
        rates = psth.nan_to_num_(nan=0.0)
        self.sums.add_(rates.sum(1))
        products = self.products.flatten(0, 1)
        for first, last in _spans(features.shape[1]):
            products.addmm_(lagged_columns(features, first, last, lags), rates[:, first:last].T)


@dataclass(frozen=True)
class LaggedSums:
    """Sums over all bins of some clips, from which the Gram matrix of their lagged features follows.

    ``products`` (L, D, D) of the first lag with each, ``sums`` (D,) of features at the first lag. From
    lags (a, b) to (a + 1, b + 1) each clip loses the product of two frames and, for lags below 0, gains that
    of two others: ``last`` and ``first`` (L, clips, D) hold these frames, the newest first.
    """

    products: Tensor
    sums: Tensor
    last: Tensor
    first: Tensor | None

    @classmethod
    def of(cls, features: Tensor, lags: range) -> LaggedSums:
        """Sums of one clip, from its features (D, T)."""
        length, n_lags = features.shape[1], len(lags)
        # frames that the first lag meets inside the clip
        start, stop = min(max(-lags.start, 0), length), max(min(length, length - lags.start), 0)
        products = features.new_zeros(n_lags, len(features), len(features))
        for place in range(n_lags):
            begin = max(start, place)
            if begin < stop:
                torch.mm(
                    features[:, begin:stop], features[:, begin - place : stop - place].T, out=products[place]
                )
        last = _frames_back(features, length - 1 - lags.start, n_lags).unsqueeze(1)
        first = None if lags.start >= 0 else _frames_back(features, -1 - lags.start, n_lags).unsqueeze(1)
        return cls(products, features[:, start:stop].sum(1), last, first)

    @classmethod
    def pool(cls, parts: Iterable[LaggedSums]) -> LaggedSums:
        """Sums of several clips."""
        iterator = iter(parts)
        first = next(iterator)
        products, sums, lasts = first.products.clone(), first.sums.clone(), [first.last]
        firsts = [] if first.first is None else [first.first]
        for one in iterator:
            products += one.products
            sums += one.sums
            lasts.append(one.last)
            if one.first is not None:
                firsts.append(one.first)
        return cls(products, sums, torch.cat(lasts, dim=1), torch.cat(firsts, dim=1) if firsts else None)

    def changed(self, matrix: Tensor) -> LaggedSums:
        """Sums of the features (D',) that a matrix (D, D') makes of those here."""
        first = None if self.first is None else self.first @ matrix
        return LaggedSums(matrix.T @ self.products @ matrix, self.sums @ matrix, self.last @ matrix, first)

    def columns(self) -> Tensor:
        """Sums (L, D) of the lagged features."""
        return self._along_lags(self.sums, lambda frames: frames)

    def squares(self) -> Tensor:
        """Sums (L, D) of the squares of the lagged features: the diagonal of the Gram matrix."""
        return self._along_lags(self.products[0].diagonal(), torch.square)

    def _along_lags(self, at_first: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        sums = at_first.expand(len(self.products), -1).clone()
        sums[1:] -= of(self.last).sum(1)[:-1].cumsum(0)
        if self.first is not None:
            sums[1:] += of(self.first).sum(1)[:-1].cumsum(0)
        return sums

    def gram(self) -> Tensor:
        """Gram matrix (P, P) of the lagged features."""
        n_lags, n_features, _ = self.products.shape
        gram = self.products.new_empty(n_lags, n_features, n_lags, n_features)
        row = self.products
        for lag in range(n_lags):
            gram[lag, :, lag:] = row.transpose(0, 1)
            gram[lag:, :, lag] = row.mT
            row = row[:-1] - self.last[lag].T @ self.last[lag : n_lags - 1]
            if self.first is not None:
                row = row + self.first[lag].T @ self.first[lag : n_lags - 1]
        return gram.view(n_lags * n_features, -1)

    def end_rows(self) -> tuple[Tensor, Tensor]:
        """Rows (rows, P) and their signs by which the Gram matrix differs from a block Toeplitz one."""
        n_lags, n_clips, n_features = self.last.shape
        rows, signs = [], []
        for frames, sign in ((self.last, -1.0), (self.first, 1.0)):
            if frames is not None and n_lags > 1:
                shifted = frames.new_zeros(n_lags - 1, n_clips, n_lags, n_features)
                for shift in range(1, n_lags):
                    shifted[shift - 1, :, shift:] = frames[: n_lags - shift].transpose(0, 1)
                rows.append(shifted.view(-1, n_lags * n_features))
                signs.append(torch.full((len(rows[-1]),), sign, dtype=torch.float64))
        if not rows:
            return self.last.new_zeros(0, n_lags * n_features), self.last.new_zeros(0)
        return torch.cat(rows), torch.cat(signs)


def lagged_gram(
    clips: ClipFeatures, group: NeuronGroup, lags: range, *, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Gram matrix (P, P) and column sums (P,) of the lagged features over a group's bins."""
    parts = BinParts.of(clips, dict(enumerate(group.masks)), lags, max_bytes)
    if parts.sums is not None:
        gram, sums = parts.sums.gram(), parts.sums.columns().flatten()
    else:
        n_weights = len(lags) * clips.n_features
        gram = torch.zeros(n_weights, n_weights, dtype=torch.float64)
        sums = torch.zeros(n_weights, dtype=torch.float64)
    for rows, sign in parts.rows():
        gram.addmm_(rows.T, rows, alpha=sign)
        sums += sign * rows.sum(0)
    return gram, sums


@dataclass(frozen=True)
class BinParts:
    """Bins of some clips as all bins of ``whole`` ones, whose ``sums`` are at hand, and single rows.

    Clips of which most bins were recorded are whole ones less the missing bins, others are the recorded bins.
    Where hardly anything is left of what the missing bins take off, no digits would be either: then such
    clips are rows, too.
    """

    clips: ClipFeatures
    lags: range
    max_bytes: int
    whole: list[int]
    masks: Mapping[int, Tensor | None]
    sums: LaggedSums | None

    @classmethod
    def of(
        cls, clips: ClipFeatures, masks: Mapping[int, Tensor | None], lags: range, max_bytes: int
    ) -> BinParts:
        """Parts of the recorded bins ``masks`` (T,) of some clips, None for all bins."""
        whole = [clip for clip, mask in masks.items() if mask is None or mostly(mask)]
        sums = clips.sums(whole, lags) if whole else None
        parts = cls(clips, lags, max_bytes, whole, masks, sums)
        if sums is None or parts.n_rows(missing=True) == 0:
            return parts
        squares = sums.squares().flatten()
        left = squares.clone()
        for rows, sign in parts.rows():
            left += sign * rows.square().sum(0)
        if not bool((left < LEAST_LEFT * squares).any()):
            return parts
        whole = [clip for clip, mask in masks.items() if mask is None]
        return cls(clips, lags, max_bytes, whole, masks, clips.sums(whole, lags) if whole else None)

    def n_rows(self, *, missing: bool = False) -> int:
        """Number of single rows; ``missing``: of those that are taken off."""
        return sum(
            int((~mask if clip in self.whole else mask).sum())
            for clip, mask in self.masks.items()
            if mask is not None and (clip in self.whole or not missing)
        )

    def rows(self) -> Iterator[tuple[Tensor, float]]:
        """Rows (n, P) of the design that the sums hold in vain (sign -1) or lack (1)."""
        n_weights, whole = len(self.lags) * self.clips.n_features, set(self.whole)
        for clip, mask in self.masks.items():
            if mask is None:
                continue
            bins, sign = (~mask, -1.0) if clip in whole else (mask, 1.0)
            for piece in row_chunks(bins.nonzero().squeeze(1), n_weights, self.max_bytes):
                if len(piece):
                    yield lagged_rows(self.clips.features(clip), piece, self.lags), sign


def mostly(mask: Tensor) -> bool:
    """Whether most bins of a clip were recorded."""
    return 2 * int(mask.sum()) > len(mask)


def _frames_back(features: Tensor, newest: int, n_frames: int) -> Tensor:
    """Frames (n_frames, D) of features (D, T), the newest first; zero outside the clip."""
    places = newest - torch.arange(n_frames)
    inside = (places >= 0) & (places < features.shape[1])
    return features.T[places.clamp(0, features.shape[1] - 1)] * inside.unsqueeze(1)
