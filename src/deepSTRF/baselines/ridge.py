"""The exact baseline: ridge STRFs of all neurons, for all penalties, by one eigendecomposition."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    check_choice,
    check_flag,
    check_non_negative,
    check_not_empty,
    check_positive_int,
    first_names,
)
from deepSTRF.metrics import ScoreTracker, psth
from deepSTRF.models.audio.linear import Linear
from deepSTRF.models.prediction import evaluating
from deepSTRF.models.streaming import placement
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS
from deepSTRF.training.evaluation import neuron_names

__all__ = [
    "ClipFeatures",
    "CrossProducts",
    "GroupSolution",
    "NeuronGroup",
    "RidgeFit",
    "check_recordings",
    "check_some_bins",
    "count_bands",
    "cross_products",
    "fit_ridge",
    "given_lambdas",
    "group_neurons",
    "lagged_gram",
    "lagged_rows",
    "row_chunks",
    "solve_group",
]

# ------------------------------------------------------------------------------
# What a closed-form fit reads of a recording: features and PSTHs by clip, neurons grouped by their bins.


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

    Shapes: features (D, T).

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


# ------------------------------------------------------------------------------
# Ridge regression on lagged features: Gram matrices from the lag structure, one decomposition per group.
#
# Along each diagonal the Gram matrix of lagged features repeats itself: the entry for lags (a + 1, b + 1) is
# that for (a, b) less one product at the end of each clip. So only the products of lag 0 with every lag are
# summed over time, and no design matrix is built; only bins that some neurons miss are taken off row by row.


@dataclass(frozen=True)
class CrossProducts:
    """What the responses contribute to the normal equations, for all N neurons; double precision.

    Attributes
    ----------
    xy : Tensor, shape (L D, N)
        Products of lagged features and PSTH, summed over the bins each neuron has.
    sums : Tensor, shape (N,)
        Sums of the PSTH.

    Examples
    --------
    >>> CrossProducts(torch.zeros(6, 2), torch.zeros(2)).xy.shape
    torch.Size([6, 2])
    """

    xy: Tensor
    sums: Tensor


@dataclass(frozen=True)
class GroupSolution:
    """Ridge estimates of a group of n neurons for every penalty; all in double precision.

    Attributes
    ----------
    weights : Tensor, shape (n_lambdas, n, L, D)
        Weight of each lag and feature.
    biases : Tensor, shape (n_lambdas, n)
        Intercepts.
    variances : Tensor, shape (n_lambdas, n)
        Variance of the prediction over the training bins.
    means : Tensor, shape (n,)
        Mean response.
    form : str
        "primal" (one row and column per weight) or "dual" (per bin).

    Examples
    --------
    >>> zero = torch.zeros(1, 2)
    >>> GroupSolution(torch.zeros(1, 2, 3, 4), zero, zero, zero[0], "primal").form
    'primal'
    """

    weights: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    form: str


def cross_products(clips: ClipFeatures, n_lags: int) -> CrossProducts:
    """Sum the products of lagged features and responses in one pass over the recording.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = NeuralDataset.from_arrays([torch.tensor([[1.0, 2.0, 3.0]])], [[[0.0, 1.0, 0.0]]], dt_ms=5.0)
    >>> cross_products(ClipFeatures(Linear(1, 2, 1), ds), 2).xy.flatten().tolist()
    [2.0, 1.0]
    """
    n_features = clips.features(0).shape[0]
    xy = torch.zeros(n_lags, n_features, clips.n_neurons, dtype=torch.float64)
    sums = torch.zeros(clips.n_neurons, dtype=torch.float64)
    for clip in range(len(clips)):
        features, psth = clips.features(clip), clips.psth(clip).nan_to_num(nan=0.0)
        sums += psth.sum(1)
        for lag in range(min(n_lags, features.shape[1])):
            xy[lag].addmm_(features[:, : features.shape[1] - lag], psth[:, lag:].T)
    return CrossProducts(xy.flatten(0, 1), sums)


def solve_group(
    clips: ClipFeatures,
    group: NeuronGroup,
    cross: CrossProducts,
    n_lags: int,
    lambdas: Tensor,
    *,
    max_bytes: int,
) -> GroupSolution:
    """Solve for all neurons of a group and all penalties by one eigendecomposition.

    The intercept is not penalised: features and responses are centred on the group's own bins. The Gram
    matrix is of size L D, or of the number of bins where those are fewer.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4, clip_seconds=0.5)
    >>> clips = ClipFeatures(Linear(ds.F, 5, 3), ds)
    >>> group, cross = NeuronGroup(torch.arange(3), [None, None]), cross_products(clips, 5)
    >>> one = torch.tensor([1.0]).double()
    >>> solve_group(clips, group, cross, 5, one, max_bytes=2**20).weights.shape
    torch.Size([1, 3, 5, 24])
    """
    n_bins = group.n_bins(clips.lengths)
    means = cross.sums[group.neurons] / n_bins
    form = "primal" if n_bins >= len(cross.xy) else "dual"
    solve = _solve_primal if form == "primal" else _solve_dual
    weights, variances, centre = solve(clips, group, cross, n_lags, lambdas, max_bytes)
    biases = means - torch.einsum("p,lpn->ln", centre, weights)
    n_features = len(cross.xy) // n_lags
    return GroupSolution(
        weights.mT.reshape(len(lambdas), -1, n_lags, n_features), biases, variances / n_bins, means, form
    )


def lagged_gram(
    clips: ClipFeatures, group: NeuronGroup, n_lags: int, *, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix and the column sums of the lagged features over a group's bins.

    Shapes: returns (L D, L D).

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = NeuralDataset.from_arrays([torch.tensor([[1.0, 2.0, 3.0]])], [[[0.0, 1.0, 0.0]]], dt_ms=5.0)
    >>> clips, all_bins = ClipFeatures(Linear(1, 2, 1), ds), NeuronGroup(torch.tensor([0]), [None])
    >>> lagged_gram(clips, all_bins, 2, max_bytes=1024)[0].tolist()
    [[14.0, 8.0], [8.0, 5.0]]
    """
    n_features = clips.features(0).shape[0]
    products = torch.zeros(n_lags, n_features, n_features, dtype=torch.float64)
    sums = torch.zeros(n_lags, n_features, dtype=torch.float64)
    by_rows = torch.zeros(n_lags * n_features, n_lags * n_features, dtype=torch.float64)
    ends = []
    for clip, mask in enumerate(group.masks):
        features = clips.features(clip)
        by_structure, bins, sign = _shortest_way(mask)
        if by_structure:
            end = _last_frames(features, n_lags)
            ends.append(end)
            for lag in range(min(n_lags, features.shape[1])):
                products[lag].addmm_(features[:, lag:], features[:, : features.shape[1] - lag].T)
            sums += features.sum(1)
            sums[1:] -= end[:-1].cumsum(0)  # what lies within lag b of the end is never b bins ago
        for piece in row_chunks(bins, len(by_rows), max_bytes):
            rows = lagged_rows(features, piece, range(n_lags))
            by_rows.addmm_(rows.T, rows, alpha=sign)
            sums += sign * rows.sum(0).view_as(sums)
    return _assemble(products, ends).add_(by_rows), sums.flatten()


def _shortest_way(mask: Tensor | None) -> tuple[bool, Tensor, float]:
    """Whether to take all bins of a clip by structure, and which to add (1) or take off (-1) row by row."""
    if mask is None:
        return True, torch.empty(0, dtype=torch.long), 1.0
    if 2 * int(mask.sum()) > len(mask):
        return True, (~mask).nonzero().squeeze(1), -1.0
    return False, mask.nonzero().squeeze(1), 1.0


def _last_frames(features: Tensor, n_lags: int) -> Tensor:
    """(L, D): the last frames of a clip, the very last first; zeros before the clip's start."""
    padded = torch.nn.functional.pad(features, (n_lags, 0))
    return padded[:, -n_lags:].flip(1).T


def _assemble(products: Tensor, ends: list[Tensor]) -> Tensor:
    """Gram matrix (L D, L D) from the products of lag 0 with each lag and the clips' last frames."""
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


def _solve_primal(
    clips: ClipFeatures,
    group: NeuronGroup,
    cross: CrossProducts,
    n_lags: int,
    lambdas: Tensor,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n_lambdas, P, n), summed squares of predictions (n_lambdas, n), feature means (P,)."""
    n_bins = group.n_bins(clips.lengths)
    gram, sums = lagged_gram(clips, group, n_lags, max_bytes=max_bytes)
    centre = sums / n_bins
    gram.addr_(sums, centre, alpha=-1.0)
    xy = cross.xy[:, group.neurons] - torch.outer(centre, cross.sums[group.neurons])
    sizes, directions = torch.linalg.eigh(gram)
    sizes = sizes.clamp(min=0.0)  # rounding leaves tiny negative ones
    shrunk = (directions.T @ xy) / (sizes + lambdas.unsqueeze(1)).unsqueeze(2)
    return directions @ shrunk, (sizes.unsqueeze(1) * shrunk**2).sum(1), centre


def _solve_dual(
    clips: ClipFeatures,
    group: NeuronGroup,
    cross: CrossProducts,
    n_lags: int,
    lambdas: Tensor,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_solve_primal`, by the Gram matrix of bins: columns of the design are made a few lags at a time."""
    n_bins, n_weights = group.n_bins(clips.lengths), len(cross.xy)
    at_once = max(1, max_bytes // (8 * n_bins * (n_weights // n_lags)))
    pieces = [range(first, min(first + at_once, n_lags)) for first in range(0, n_lags, at_once)]
    kernel = torch.zeros(n_bins, n_bins, dtype=torch.float64)
    for lags in pieces:
        columns = _centred_columns(clips, group, lags)[0]
        kernel.addmm_(columns, columns.T)
    psth = [clips.psth(clip)[group.neurons].T for clip in range(len(clips))]
    heard = torch.cat([y if mask is None else y[mask] for y, mask in zip(psth, group.masks, strict=True)])
    sizes, directions = torch.linalg.eigh(kernel)
    sizes = sizes.clamp(min=0.0)
    shrunk = (directions.T @ (heard - heard.mean(0))) / (sizes + lambdas.unsqueeze(1)).unsqueeze(2)
    shares = directions @ shrunk
    weights, centres = [], []
    for lags in pieces:
        columns, centre = _centred_columns(clips, group, lags)
        weights.append(columns.T @ shares)
        centres.append(centre)
    squares = (sizes.unsqueeze(1) ** 2 * shrunk**2).sum(1)
    return torch.cat(weights, dim=1), squares, torch.cat(centres)


def _centred_columns(clips: ClipFeatures, group: NeuronGroup, lags: range) -> tuple[Tensor, Tensor]:
    rows = []
    for clip, mask in enumerate(group.masks):
        bins = torch.arange(clips.lengths[clip]) if mask is None else mask.nonzero().squeeze(1)
        rows.append(lagged_rows(clips.features(clip), bins, lags))
    columns = torch.cat(rows)
    centre = columns.mean(0)
    return columns - centre, centre


# ------------------------------------------------------------------------------
# Checks of a ridge fit's arguments, each text with its mend.


def given_lambdas(lambdas: Sequence[float] | float) -> Tensor:
    """Return penalties as an ascending float64 tensor without duplicates."""
    try:
        values = torch.as_tensor(lambdas, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lambdas must be a number or a list of numbers, got {lambdas!r}") from error
    if not len(values) or not bool(torch.isfinite(values).all()) or bool((values <= 0).any()):
        raise ValueError(f"lambdas must be finite numbers above 0, at least one, got {values.tolist()}")
    return torch.tensor(sorted(set(values.tolist())), dtype=torch.float64)


def check_recordings(train: DatasetLike, validation: DatasetLike | None, n_lambdas: int | None) -> None:
    """Raise ValueError unless there are clips to fit, and something to choose the penalty by."""
    check_not_empty("train", train)
    if validation is None:
        if n_lambdas != 1:
            raise ValueError(
                "without validation clips nothing can choose among penalties: pass "
                "fit_ridge(train, validation, ...), or one penalty (lambdas=100.0)"
            )
        return
    check_not_empty("validation", validation)
    if validation.N_neurons != train.N_neurons:
        raise ValueError(
            f"train has {train.N_neurons} neurons and validation {validation.N_neurons}; make both from one "
            "recording: split.apply(dataset)"
        )
    if neuron_names(validation.nrn_meta) != neuron_names(train.nrn_meta):
        raise ValueError(
            "train and validation hold different neurons, or the same in another order; make both from one "
            "recording: split.apply(dataset)"
        )
    _check_different_sounds(train, validation)


def _check_different_sounds(train: DatasetLike, validation: DatasetLike) -> None:
    """Raise ValueError when a sound is in both: answered from memory, it would praise weak penalties."""
    sound_of = [getattr(part, "source_fingerprint", part.fingerprint) for part in (train, validation)]
    first = {sound_of[0](clip): clip for clip in reversed(range(len(train)))}
    both = [(clip, first.get(sound_of[1](clip))) for clip in range(len(validation))]
    shared = [(clip, other) for clip, other in both if other is not None]
    if shared:
        clip, other = shared[0]
        raise ValueError(
            f"{len(shared)} of {len(validation)} validation clips hold sounds of training clips (clip {clip} "
            f"of validation is clip {other} of train), so that validation cannot choose a penalty; give each "
            "sound one role, e.g. random_split(dataset).apply(dataset)"
        )


def check_some_bins(n_untrained: int, n_neurons: int, warmup_ms: float) -> None:
    """Raise ValueError when no neuron has training bins to fit."""
    if n_untrained == n_neurons:
        raise ValueError(
            "no neuron has responses to fit: check the selection of clips and neurons, and that "
            f"warmup_ms={warmup_ms:g} is shorter than the clips"
        )


def count_bands(train: DatasetLike, wav2spec: nn.Module | None) -> int:
    """Return the number of bands the STRFs see; ValueError for waveforms without a front-end."""
    bands: Any = getattr(wav2spec, "out_channels", None)
    if bands is not None:
        return int(bands)
    stim = train.stims[0]
    if stim.ndim != 3:
        raise ValueError(
            "these stimuli are waveforms: pass a front-end (wav2spec=make_wav2spec('mel', audio_fs="
            "dataset.audio_fs, dt_ms=dataset.dt)), or load spectrograms"
        )
    return int(stim.shape[-2])


# ------------------------------------------------------------------------------

#: Penalties tried, in units of the mean eigenvalue of the features' Gram matrix: from hardly any shrinkage to
#: far too much for recordings of minutes to hours.
RELATIVE_LAMBDAS = tuple(10.0**exponent for exponent in torch.linspace(-3.0, 1.4, 12).tolist())
#: Most bytes of the design matrix held at once.
MAX_BYTES = 2**28
#: Fewest bins that a neuron's STRF is estimated from.
FEWEST_BINS = 2


@dataclass(frozen=True)
class RidgeFit:
    """A ridge estimate and how it was chosen.

    Attributes
    ----------
    model : Linear
        An ordinary `Linear` with ``norm="none"``, in single precision: it predicts, streams and saves.
    weight : Tensor, shape (N, C, F, T)
        STRFs in double precision, newest frame last, on standardised bands where the model standardises.
    bias : Tensor, shape (N,)
        Intercepts in double precision.
    lambdas : Tensor, shape (N,)
        Penalty of each neuron.
    grid : Tensor, shape (n_lambdas,)
        Penalties tried, ascending.
    scores : dict of str to Tensor, shape (n_lambdas, N)
        Validation ``cc_norm`` and ``cc`` for each penalty; empty without validation clips.
    shared_lambda : float
        The penalty with the best mean validation score.
    per_neuron : bool
        Whether each neuron has its own.
    unvalidated, untrained : tuple of str
        Neurons without a validation score, which got the shared penalty; neurons without training bins, whose
        STRF is zero.
    drive_mean, drive_variance : Tensor, shape (N,)
        Mean and variance of the prediction over the training bins.
    forms : dict of str to int
        How many groups of neurons were solved in the "primal" and in the "dual" form.
    seconds : float
        Time the fit took.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> fit = fit_ridge(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=12)
    >>> fit.model.STRFs().shape, fit.lambdas.shape, fit.scores["cc_norm"].shape
    (torch.Size([3, 24, 12]), torch.Size([3]), torch.Size([12, 3]))
    """

    model: Linear
    weight: Tensor
    bias: Tensor
    lambdas: Tensor
    grid: Tensor
    scores: dict[str, Tensor]
    shared_lambda: float
    per_neuron: bool
    unvalidated: tuple[str, ...]
    untrained: tuple[str, ...]
    drive_mean: Tensor
    drive_variance: Tensor
    forms: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        low, middle, high = (float(self.lambdas.quantile(q)) for q in (0.0, 0.5, 1.0))
        chosen = f"{low:g}" if low == high else f"median {middle:.3g}, {low:.3g} to {high:.3g}"
        whose = "one per neuron" if self.per_neuron else "one for all neurons"
        best = "best validation score" if self.scores else "given"
        return {
            "method": "ridge regression in closed form: squared error of the mean over repeats, each bin "
            "weighing the same, unpenalised intercept, zero history at each clip's start",
            "lambda": f"{whose}, {best} of {len(self.grid)} from {self.grid[0]:.3g} to {self.grid[-1]:.3g}"
            if len(self.grid) > 1
            else f"{float(self.grid[0]):g} (given)",
            "lambdas_chosen": chosen,
        }

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = []
        if self.unvalidated:
            notes.append(("info", f"No validation score, shared lambda: {first_names(self.unvalidated)}."))
        if self.untrained:
            notes.append(("warning", f"No training data, STRF zero: {first_names(self.untrained)}."))
        edge = int(((self.lambdas == self.grid[0]) | (self.lambdas == self.grid[-1])).sum())
        if self.scores and len(self.grid) > 1 and 2 * edge > len(self.lambdas):
            notes.append(
                ("warning", f"{edge} neurons chose a lambda at an edge of the grid; give a wider one.")
            )
        return notes


@SOLVERS.register("ridge")
def fit_ridge(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    n_lags: int = 40,
    lambdas: Sequence[float] | float | None = None,
    per_neuron: bool = True,
    score: str = "cc_norm",
    prefiltering: nn.Module | Mapping[str, Any] | None = None,
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> RidgeFit:
    """Ridge STRFs in closed form: exact, for all neurons and penalties at once.

    Each neuron's weights minimise ``sum of (PSTH - prediction)^2 + lambda * sum of weights^2`` over its
    training bins. The intercept is not penalised, the past before a clip is zero (the mean level where bands
    are standardised), and each bin of the PSTH weighs the same however many repeats it holds. Missing data
    need no care: neurons that were recorded in the same bins share one eigendecomposition.

    Parameters
    ----------
    train : DatasetLike
        Training clips.
    validation : DatasetLike, optional
        Clips of other sounds, which choose the penalty; needed unless ``lambdas`` is a single number.
    n_lags : int
        Length of the STRFs in bins, the current one included.
    lambdas : float or sequence of float, optional
        Penalties, above 0; the unit is that of the sum of squared features, as scikit-learn's ``alpha``. None
        takes 12 from 0.001 to 25 times the mean eigenvalue of the Gram matrix.
    per_neuron : bool
        Whether each neuron takes the penalty that is best for it, or all the one that is best on average.
    score : {"cc_norm", "cc"}
        What is best; a neuron without ``cc_norm`` goes by its ``cc``.
    prefiltering, wav2spec : optional
        As in `Linear`; applied as they are, nothing in them is learned.
    standardize : bool
        Whether each band is z-scored on the training clips (kept in the model).
    warmup_ms : float
        Onset of each clip that is left out of fit and scores.
    max_bytes : int
        Most bytes of the design matrix held at once.

    Returns
    -------
    RidgeFit
        The model and how it was chosen.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, recordings of different neurons, a sound in both of them, or no responses to
        fit.

    References
    ----------
    Hoerl & Kennard 1970, doi 10.1080/00401706.1970.10488634; for STRFs Machens, Wehr & Zador 2004, doi
    10.1523/JNEUROSCI.4445-03.2004.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> train, validation = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    >>> fit = fit_ridge(train, validation, n_lags=12)
    >>> [tuple(rates.shape) for rates in fit.model.predict(validation)]
    [(3, 400)]
    """
    started = time.monotonic()
    options = _Options(check_positive_int("n_lags", n_lags), per_neuron, score, warmup_ms, max_bytes)
    given = None if lambdas is None else given_lambdas(lambdas)
    check_recordings(train, validation, None if given is None else len(given))
    model = Linear(
        n_frequency_bands=count_bands(train, wav2spec),
        temporal_window_size=options.n_lags,
        out_neurons=train.N_neurons,
        prefiltering=prefiltering,
        wav2spec=wav2spec,
        norm="none",
        standardize=standardize,
    )
    if standardize:
        model.fit_standardization(train.stims)
    clips = ClipFeatures(model, train, options.warmup_ms)
    grid = _default_lambdas(clips) if given is None else given
    estimates = _solve(clips, grid, options)
    check_some_bins(len(estimates.untrained), clips.n_neurons, options.warmup_ms)
    scores = {} if validation is None else _validate(estimates, model, validation, options)
    names = neuron_names(train.nrn_meta)
    choice = _choose(scores, options, len(names))
    _write(model, choice.pick(estimates.weights), choice.pick(estimates.biases))
    return RidgeFit(
        model=model,
        weight=_as_strf(choice.pick(estimates.weights), model.F),
        bias=choice.pick(estimates.biases),
        lambdas=grid[choice.index],
        grid=grid,
        scores=scores,
        shared_lambda=float(grid[choice.shared]),
        per_neuron=per_neuron,
        unvalidated=tuple(name for name, lacks in zip(names, choice.lacks.tolist(), strict=True) if lacks),
        untrained=tuple(names[neuron] for neuron in estimates.untrained),
        drive_mean=estimates.means,
        drive_variance=choice.pick(estimates.variances),
        forms=estimates.forms,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Options:
    """Arguments of `fit_ridge` that several steps need, checked."""

    n_lags: int
    per_neuron: bool
    score: str
    warmup_ms: float
    max_bytes: int

    def __post_init__(self) -> None:
        check_flag("per_neuron", self.per_neuron)
        check_choice("score", self.score, ("cc_norm", "cc"))
        check_non_negative("warmup_ms", self.warmup_ms)
        check_positive_int("max_bytes", self.max_bytes)


@dataclass(frozen=True)
class _Estimates:
    """Estimates of all N neurons for every penalty: (n_lambdas, N, ...); double precision."""

    weights: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    untrained: list[int]
    forms: dict[str, int]


@dataclass(frozen=True)
class _Choice:
    """Which penalty each neuron takes."""

    index: Tensor
    shared: int
    lacks: Tensor

    def pick(self, values: Tensor) -> Tensor:
        """(n_lambdas, N, ...) -> (N, ...)."""
        return values[self.index, torch.arange(len(self.index))]


def _solve(clips: ClipFeatures, grid: Tensor, options: _Options) -> _Estimates:
    n_neurons, n_features = clips.n_neurons, clips.features(0).shape[0]
    weights = torch.zeros(len(grid), n_neurons, options.n_lags, n_features, dtype=torch.float64)
    biases, variances = (torch.zeros(len(grid), n_neurons, dtype=torch.float64) for _ in range(2))
    means = torch.zeros(n_neurons, dtype=torch.float64)
    untrained: list[int] = []
    forms: dict[str, int] = {}
    cross = cross_products(clips, options.n_lags)
    for group in group_neurons(clips):
        neurons = group.neurons
        if group.n_bins(clips.lengths) < FEWEST_BINS:
            untrained += neurons.tolist()
            continue
        one = solve_group(clips, group, cross, options.n_lags, grid, max_bytes=options.max_bytes)
        weights[:, neurons], biases[:, neurons] = one.weights, one.biases
        variances[:, neurons], means[neurons] = one.variances, one.means
        forms[one.form] = forms.get(one.form, 0) + 1
    return _Estimates(weights, biases, variances, means, sorted(untrained), forms)


def _validate(
    estimates: _Estimates, model: Linear, validation: DatasetLike, options: _Options
) -> dict[str, Tensor]:
    """Scores (n_lambdas, N) of every penalty on the validation clips."""
    clips = ClipFeatures(model, validation, options.warmup_ms)
    tracker = ScoreTracker()
    for clip in range(len(clips)):
        tracker.prepare(clip, validation.response_block(clip)[..., clips.skip :])
    columns: dict[str, list[Tensor]] = {"cc_norm": [], "cc": []}
    for weights, biases in zip(estimates.weights, estimates.biases, strict=True):
        tracker.reset()
        for clip in range(len(clips)):
            rates = _predict(clips, clip, weights, biases, options.max_bytes)
            tracker.update([clip], rates[None, :, None, clips.skip :])
        found = tracker.compute()
        for name, column in columns.items():
            column.append(found[name])
    return {name: torch.stack(column) for name, column in columns.items()}


def _predict(clips: ClipFeatures, clip: int, weights: Tensor, biases: Tensor, max_bytes: int) -> Tensor:
    """(N, T) rates of one clip from (N, L, D) weights."""
    flat, bins = weights.flatten(1), torch.arange(clips.lengths[clip])
    pieces = [
        flat @ lagged_rows(clips.features(clip), piece, range(weights.shape[1])).T
        for piece in row_chunks(bins, flat.shape[1], max_bytes)
    ]
    return torch.cat(pieces, dim=1) + biases.unsqueeze(1)


def _choose(scores: dict[str, Tensor], options: _Options, n_neurons: int) -> _Choice:
    """The best penalty of every neuron, and the one that is best on average."""
    if not scores:
        return _Choice(torch.zeros(n_neurons, dtype=torch.long), 0, torch.zeros(n_neurons, dtype=torch.bool))
    wanted = scores[options.score]
    values = torch.where(wanted.isnan().all(0), scores["cc"], wanted)
    lacks = values.isnan().all(0)
    # a prediction that never varies has no correlation: the worst there can be
    ranked = values.nan_to_num(nan=-torch.inf)
    judged = ranked[:, ~lacks].clamp(min=-1.0)
    shared = int(judged.mean(1).argmax()) if judged.numel() else len(values) // 2
    index = torch.full((n_neurons,), shared)
    if options.per_neuron:
        index = torch.where(lacks, index, ranked.argmax(0))
    return _Choice(index, shared, lacks)


def _as_strf(weights: Tensor, n_bands: int) -> Tensor:
    """(N, L, C * F), lag 0 first -> (N, C, F, T), newest frame last."""
    return weights.flip(1).unflatten(2, (-1, n_bands)).permute(0, 2, 3, 1).contiguous()  # type: ignore[no-untyped-call, no-any-return]


@torch.no_grad()
def _write(model: Linear, weights: Tensor, biases: Tensor) -> None:
    kernel: Any = model.readout.strf.kernel
    kernel.weight.copy_(_as_strf(weights, model.F))
    kernel.bias.copy_(biases)
    model.eval()


def _default_lambdas(clips: ClipFeatures) -> Tensor:
    """Penalties in units of the Gram matrix's mean eigenvalue, which is bins times mean feature variance."""
    frames = torch.cat([clips.features(clip) for clip in range(len(clips))], dim=1)
    scale = float(frames.var(dim=1, correction=0).mean()) * frames.shape[1]
    return torch.tensor(RELATIVE_LAMBDAS, dtype=torch.float64) * (scale or 1.0)
