"""Scores of linear estimates on clips, from second moments of features and responses.

Mean and variance of a linear prediction and its covariance with a PSTH are linear and quadratic forms of its
weights: sums of features, their Gram matrix, and their products with the PSTH over the bins that count. So
many penalties and neurons are scored without their time courses. The Gram matrix of lagged features is
block Toeplitz but for the ends of clips: its quadratic form is a sum over frequencies (Parseval), less that
of a few rows. Where repeats of a neuron differ in their bins, or the prediction hardly varies about its
mean, the time course is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepSTRF.baselines.lagged import (
    BinParts,
    ClipFeatures,
    group_alike,
    lagged_rows,
    row_chunks,
)
from deepSTRF.metrics._statistics import (
    ClipPowers,
    PairMoments,
    PooledPowers,
    RepeatSummary,
)
from deepSTRF.metrics.score_statistics import PredictionMoments, ScoreStatistics
from deepSTRF.registry import METRICS

__all__ = ["SCORES", "HeldOut", "PooledScores"]

#: Scores by which a penalty can be chosen.
SCORES = ("cc_norm", "cc")
#: Share of the variance in the mean square below which differences of sums lose too many digits.
LEAST_SHARE = 1e-6
#: Weights of which a form is taken together, so that they stay in a cache.
AT_ONCE = 128
#: Bins of a neuron in a clip: none, of single repeats, of repeats that share their bins, of others.
UNHEARD, SINGLE, PAIRED, RAGGED = range(4)


@dataclass(frozen=True)
class ClipSummary:
    """What scores need of the responses to one clip, (N,); ``ragged`` of the neurons ``rows`` alone."""

    kind: Tensor
    count: Tensor
    mean: Tensor
    square: Tensor
    powers: ClipPowers
    rows: Tensor
    ragged: RepeatSummary | None

    @classmethod
    def of(cls, responses: Tensor) -> ClipSummary:
        """Summarise (N, R, T) responses."""
        whole = RepeatSummary.of(responses.unsqueeze(0), None)
        kind = torch.where(whole.powers.n_bins > 0, PAIRED, torch.where(whole.count > 0, SINGLE, UNHEARD))
        rows = torch.empty(0, dtype=torch.long) if whole.ragged is None else whole.ragged
        kind[rows] = RAGGED
        ragged = RepeatSummary.of(responses[rows].unsqueeze(0), None) if len(rows) else None
        return cls(kind, whole.count, whole.mean, whole.square, whole.powers, rows, ragged)


def _summary(clips: ClipFeatures, clip: int) -> ClipSummary:
    return ClipSummary.of(clips.responses(clip))


class QuadraticForm:
    """Sum of squared predictions ``sum of (x w)^2`` over bins of some clips, for many weights at once."""

    def __init__(
        self, clips: ClipFeatures, masks: Mapping[int, Tensor | None], lags: range, max_bytes: int
    ) -> None:
        self._n_lags = len(lags)
        parts = BinParts.of(clips, masks, lags, max_bytes)
        self._sums, n_weights = parts.sums, len(lags) * clips.n_features
        self._gram: Tensor | None = None
        self._rows: list[tuple[Tensor, float | Tensor]] = []
        self.columns = torch.zeros(n_weights, dtype=torch.float64)
        if self._sums is not None:
            self.columns += self._sums.columns().flatten()
        n_rows = parts.n_rows() + (0 if self._sums is None else 2 * len(parts.whole) * (len(lags) - 1))
        few = 2 * n_rows <= n_weights and n_weights > 2 * clips.n_features
        if not few:  # the matrix itself is cheaper
            empty = torch.zeros(n_weights, n_weights, dtype=torch.float64)
            self._gram = empty if self._sums is None else self._sums.gram()
        for rows, sign in parts.rows():
            self.columns += sign * rows.sum(0)
            if self._gram is None:
                self._rows.append((rows, sign))
            else:
                self._gram.addmm_(rows.T, rows, alpha=sign)
        if self._sums is not None and self._gram is None:
            self._rows.append(self._sums.end_rows())
            self._transform, self._even, self._odd = _spectral_density(self._sums.products)

    def __call__(self, weights: Tensor) -> Tensor:
        """Form (m,) of weights (m, P)."""
        if self._gram is not None:
            return (weights @ self._gram * weights).sum(1)
        return torch.cat([self._of(piece) for piece in torch.split(weights, AT_ONCE)])

    def _of(self, weights: Tensor) -> Tensor:
        total = weights.new_zeros(len(weights))
        if self._sums is not None:
            by_lag = weights.view(len(weights), self._n_lags, -1).transpose(0, 1)
            real, imaginary = (self._transform @ by_lag.reshape(self._n_lags, -1)).view(
                2, len(self._even), len(weights), -1
            )
            product = torch.bmm(real, self._even)
            product.baddbmm_(imaginary, self._odd, alpha=-2.0)
            total += (product * real).sum((0, 2))
            total += (torch.bmm(imaginary, self._even) * imaginary).sum((0, 2))
        for rows, sign in self._rows:
            total += ((weights @ rows.T).square_() * sign).sum(1)
        return total


def _spectral_density(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fourier matrix (2 K, L) of lags, and even and odd part (K, D, D) of the density of lagged products.

    The form of a block Toeplitz matrix is ``sum over frequencies of a' A a + b' A b - 2 a' B b`` where a + ib
    is the transform of the weights over lags; ``odd`` is B', as rows are multiplied from the right.
    """
    n_lags = len(products)
    size = 2 * n_lags
    frequencies = torch.arange(size // 2 + 1, dtype=torch.float64)
    angles = 2 * torch.pi / size * torch.outer(frequencies, torch.arange(n_lags, dtype=torch.float64))
    share = torch.full_like(frequencies, 2.0 / size)
    share[0] = share[-1] = 1.0 / size
    half = products.clone()
    half[0] /= 2  # met twice
    even = torch.einsum("kl,lde->kde", angles.cos(), half + half.mT)
    odd = torch.einsum("kl,lde->kde", angles.sin(), half - half.mT)
    transform = torch.cat([angles.cos(), -angles.sin()])
    share = share.view(-1, 1, 1)
    return transform, even * share, odd.mT.contiguous() * share


@dataclass(frozen=True)
class _Alike:
    """Neurons (n,) whose bins count alike: clips of each kind, the form of their bins, and their PSTHs.

    ``pooled`` holds kind, form, products (P, n) of features and PSTH, and moments (n,) of the PSTH as y.
    """

    neurons: Tensor
    clips: dict[int, list[int]]
    pooled: list[tuple[int, QuadraticForm, Tensor, PairMoments]]


class HeldOut:
    """Clips on which linear estimates are scored."""

    def __init__(self, clips: ClipFeatures, lags: range, max_bytes: int) -> None:
        self._clips, self._lags, self._max_bytes = clips, lags, max_bytes
        scored = [clips.scored(clip) for clip in range(len(clips))]
        # clips without a bin that counts take no part, unless there is no other
        self._used = [clip for clip, bins in enumerate(scored) if bins.start < bins.stop] or [0]
        self._summaries = {
            clip: clips.kept("summary", clip, functools.partial(_summary, clips, clip)) for clip in self._used
        }
        powers = [one.powers.unflatten(1, -1) for one in self._summaries.values()]
        self.powers = PooledPowers.of(ClipPowers.cat(powers))
        self._cross: dict[tuple[int, ...], Tensor] = {}
        self._alike = [self._prepare(neurons) for neurons in self._group()]

    def _group(self) -> list[Tensor]:
        marks = (
            [bytes([kind]) + name for name, kind in zip(names, summary.kind.tolist(), strict=True)]
            for clip, summary in self._summaries.items()
            for names in [self._clips.recorded(clip)[0]]
        )
        return [torch.tensor(neurons) for neurons in group_alike(self._clips.n_neurons, marks)]

    def _prepare(self, neurons: Tensor) -> _Alike:
        first = int(neurons[0])
        kinds = {clip: int(summary.kind[first]) for clip, summary in self._summaries.items()}
        by_kind = {
            kind: [clip for clip, its in kinds.items() if its == kind] for kind in (SINGLE, PAIRED, RAGGED)
        }
        pooled = []
        for kind in (SINGLE, PAIRED):
            chosen = by_kind[kind]
            if not chosen:
                continue
            masks = {}
            for clip in chosen:
                names, bins = self._clips.recorded(clip)
                masks[clip] = bins[names[first]]
            form = QuadraticForm(self._clips, masks, self._lags, self._max_bytes)
            # clips that were not heard add nothing
            silent = tuple(clip for clip, its in kinds.items() if its in (kind, UNHEARD))
            if silent not in self._cross:
                self._cross[silent] = self._clips.cross(self._lags, silent)[0]
            columns = (
                torch.stack([getattr(self._summaries[clip], name)[neurons] for clip in chosen])
                for name in ("count", "mean", "square")
            )
            count, mean, square = columns
            zero = torch.zeros_like(count)
            target = PairMoments(count, zero, mean, zero, square, zero).pool(0)
            pooled.append((kind, form, self._cross[silent][:, neurons], target))
        return _Alike(neurons, by_kind, pooled)

    def moments(self, weights: Tensor, biases: Tensor, neurons: Tensor) -> tuple[PairMoments, PairMoments]:
        """Moments (k, n) of predictions x and PSTHs y: over all bins, and over those of repeated responses.

        ``weights`` (k, n, P) and ``biases`` (k, n) of some neurons (n,).
        """
        raw, pair = _Running.zeros(biases), _Running.zeros(biases)
        place = torch.full((self._clips.n_neurons,), -1)
        place[neurons] = torch.arange(len(neurons))
        for alike in self._alike:
            at = place[alike.neurons]
            inside = at >= 0
            if not bool(inside.any()):
                continue
            at = at[inside]
            everyone = len(at) == len(neurons)
            own = weights if everyone else weights[:, at]
            timed = list(alike.clips[RAGGED])
            for kind, form, products, target in alike.pooled:
                found = _pooled_moments(own, biases[:, at], form, products[:, inside], _some(target, inside))
                if found is None:
                    timed += alike.clips[kind]
                    continue
                raw.add(found, at)
                if kind == PAIRED:
                    pair.add(found, at)
            for clip in timed:
                both = self._predicted(clip, own, biases[:, at], alike.neurons[inside])
                raw.add(both[0], at)
                pair.add(both[1], at)
        return raw.moments, pair.moments

    def _predicted(
        self, clip: int, weights: Tensor, biases: Tensor, neurons: Tensor
    ) -> tuple[PairMoments, PairMoments]:
        """Moments as in `moments` of one clip, from time courses."""
        summary, features = self._summaries[clip], self._clips.features(clip)
        if summary.ragged is not None and bool((summary.kind[neurons] == RAGGED).all()):
            responses = _some_rows(summary.ragged, torch.searchsorted(summary.rows, neurons))
        else:
            responses = RepeatSummary.of(self._clips.responses(clip)[neurons].unsqueeze(0), None)
        scored = self._clips.scored(clip)
        bins = torch.arange(scored.start, scored.stop)
        flat = weights.flatten(0, 1)
        parts = [
            flat @ lagged_rows(features, part, self._lags).T
            for part in row_chunks(bins, flat.shape[1], self._max_bytes)
        ]
        rates = torch.cat(parts, dim=1).view(len(weights), len(neurons), -1) + biases.unsqueeze(2)
        records = [PredictionMoments.of(one, responses) for one in rates]
        found = records[0].map(lambda *values: torch.stack(values), *records[1:])
        powers, zero = responses.powers, torch.zeros_like(found.variance)
        within = (powers.n_bins - 1).clamp(min=0)
        pair = PairMoments(
            powers.n_bins.expand_as(zero),
            torch.where(powers.n_bins > 0, found.pair_mean, zero),
            powers.mean.expand_as(zero),
            within * found.variance,
            zero,
            within * found.covariance,
        )
        return found.raw, pair


def _pooled_moments(
    weights: Tensor, biases: Tensor, form: QuadraticForm, products: Tensor, target: PairMoments
) -> PairMoments | None:
    """Moments (k, n) by forms of the weights (k, n, P); None where differences of sums lose too much."""
    flat = weights.flatten(0, 1)
    energy = form(flat).view_as(biases)
    level = (flat @ form.columns).view_as(biases)
    product = torch.einsum("knp,pn->kn", weights, products)
    mean = level / target.count
    square = energy - level * mean
    if bool((square < LEAST_SHARE * energy).any()):
        return None
    return PairMoments(
        target.count.expand_as(biases),
        mean + biases,
        target.mean_y.expand_as(biases),
        square,
        target.yy.expand_as(biases),
        product - level * target.mean_y,
    )


def _some(moments: PairMoments, neurons: Tensor) -> PairMoments:
    return moments.map(lambda values: values[neurons])


def _some_rows(summary: RepeatSummary, rows: Tensor) -> RepeatSummary:
    """Some rows of a summary of which all are ragged."""
    return RepeatSummary(
        summary.deviation[rows],
        None if summary.valid is None else summary.valid[rows],
        summary.count[rows],
        summary.mean[rows],
        summary.square[rows],
        summary.powers.map(lambda values: values[rows]),
        torch.arange(len(rows)),
        None if summary.weights is None else summary.weights.map(lambda values: values[rows]),
    )


@dataclass
class _Running:
    """Moments (k, N) to which those of some neurons are added."""

    moments: PairMoments

    @classmethod
    def zeros(cls, like: Tensor) -> _Running:
        return cls(PairMoments(*(torch.zeros_like(like) for _ in range(6))))

    def add(self, found: PairMoments, neurons: Tensor, penalties: slice = slice(None)) -> None:
        before = self.moments.map(lambda values: values[penalties][:, neurons])
        merged = before.merge(found)
        for whole, part in zip(vars(self.moments).values(), vars(merged).values(), strict=True):
            whole[penalties, neurons] = part


class PooledScores:
    """Scores (n_penalties, N) of predictions of any number of clips, each of a fit of its own or of one."""

    def __init__(self, n_penalties: int, n_neurons: int) -> None:
        like = torch.zeros(n_penalties, n_neurons, dtype=torch.float64)
        self._raw, self._pair = _Running.zeros(like), _Running.zeros(like)
        self._powers: PooledPowers | None = None

    def include(self, clips: HeldOut) -> None:
        """Count the responses to some clips, once."""
        self._powers = clips.powers if self._powers is None else self._powers.merge(clips.powers)

    def add(
        self,
        clips: HeldOut,
        weights: Tensor,
        biases: Tensor,
        neurons: Tensor,
        penalties: slice = slice(None),
    ) -> None:
        """Add predictions of included clips, of some penalties and neurons."""
        raw, pair = clips.moments(weights, biases, neurons)
        self._raw.add(raw, neurons, penalties)
        self._pair.add(pair, neurons, penalties)

    def merge(self, other: PooledScores) -> None:
        """Add all that another one holds, of other clips."""
        everyone = torch.arange(self._raw.moments.count.shape[1])
        self._raw.add(other._raw.moments, everyone)
        self._pair.add(other._pair.moments, everyone)
        if other._powers is not None:
            self._powers = other._powers if self._powers is None else self._powers.merge(other._powers)

    def compute(self, neurons: Tensor | None = None, penalties: slice = slice(None)) -> dict[str, Tensor]:
        """Scores ``cc_norm`` and ``cc`` of all, or of some penalties and neurons."""
        if self._powers is None:
            raise ValueError("no clip was included")
        chosen = torch.arange(self._raw.moments.count.shape[1]) if neurons is None else neurons
        raw, pair = (
            one.moments.map(lambda values: values[penalties][:, chosen]) for one in (self._raw, self._pair)
        )
        shape = raw.count.shape
        raw, pair = (one.map(lambda values: values.reshape(1, -1)) for one in (raw, pair))
        freedom = (pair.count - 1).clamp(min=1)
        prediction = PredictionMoments(raw, pair.mean_x, pair.xx / freedom, pair.xy / freedom)
        zero = torch.zeros_like(pair.count)
        clips = ClipPowers(pair.count, zero, pair.mean_y, zero, zero, zero.unsqueeze(-1))
        powers = self._powers.map(lambda values: values[chosen].repeat(shape[0], *[1] * (values.ndim - 1)))
        statistics = ScoreStatistics(prediction, clips, powers)
        return {name: METRICS.get(name).compute(statistics).view(shape) for name in SCORES}
