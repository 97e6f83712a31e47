"""Ridge regression on lagged features: Gram matrices from the lag structure, one decomposition per group.

Along each diagonal the Gram matrix of lagged features repeats itself: the entry for lags (a + 1, b + 1) is
that for (a, b) less one product at the end of each clip. So only the products of lag 0 with every lag are
summed over time, and no design matrix is built; only bins that some neurons miss are taken off row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepSTRF.training.ridge_data import ClipFeatures, NeuronGroup, lagged_rows, row_chunks

__all__ = ["CrossProducts", "GroupSolution", "cross_products", "lagged_gram", "solve_group"]


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

    Parameters
    ----------
    clips : ClipFeatures
        Training clips.
    n_lags : int
        Lags, L, 0 included.

    Returns
    -------
    CrossProducts
        The sums.

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

    Parameters
    ----------
    clips : ClipFeatures
        Training clips.
    group : NeuronGroup
        Neurons with the same bins, at least one bin.
    cross : CrossProducts
        From `cross_products`.
    n_lags : int
        Lags, L, 0 included.
    lambdas : Tensor, shape (n_lambdas,)
        Penalties on the sum of squared weights, beside the sum of squared errors; above 0.
    max_bytes : int
        Most bytes of the design matrix held at once.

    Returns
    -------
    GroupSolution
        Estimates.

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

    Parameters
    ----------
    clips, group, n_lags, max_bytes
        As in `solve_group`.

    Returns
    -------
    tuple of Tensor
        (L D, L D) and (L D,), lag by lag, not centred.

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
