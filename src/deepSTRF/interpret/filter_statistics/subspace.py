"""Active subspace: the directions of stimulus space that span a neuron's filters, and tuning along them.

The directions are the eigenvectors of the mean over time of ``W_t W_t^T``, W_t being the dynamic STRF as a
vector (Constantine 2015, doi 10.1137/1.9781611973860).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepSTRF._validation import check_positive_int, checked, to_tensor
from deepSTRF.interpret.dstrf.result import DynamicSTRF
from deepSTRF.interpret.filter_statistics.ensembles import (
    Filters,
    as_filters,
    clips_of,
    neurons_of,
    per_neuron,
)

#: A mean projection below this share of the filters' size has no meaningful sign.
NO_SIGN = 1e-6


@dataclass(frozen=True)
class ActiveSubspace:
    """Directions in (lag, frequency) along which the stimulus changes each neuron's response.

    Attributes
    ----------
    directions : Tensor (N, K, L, F). Orthonormal, in falling order of their eigenvalues; each with the sign
        of the mean filter along it. NaN beyond the rank of a neuron's filters.
    eigenvalues : Tensor (N, M). Mean square over time of the filter along each direction, falling, M the
        smaller of the bins and of L * F. Their sum is the mean squared norm of the filter.
    share : Tensor (N, M). Eigenvalues over their sum; NaN for a neuron whose filters are all zero.
    count, excluded : Tensor (N,). Bins that count, and bins left out because they hold NaN or are cut off.
    """

    directions: Tensor
    eigenvalues: Tensor
    share: Tensor
    count: Tensor
    excluded: Tensor


@dataclass(frozen=True)
class TuningSurface:
    """Response as a function of the projections of the stimulus on D directions, D being 1 or 2.

    Attributes
    ----------
    edges : Tensor (N, D, B + 1). Edges of the bins, in units of the stimulus (directions have norm 1).
    mean, sd : Tensor (N, B) or (N, B, B). Mean and standard deviation of the response in each bin, the first
        direction along the first axis; NaN where there is nothing to average (for ``sd``, fewer than two).
    count : Tensor (N, B) or (N, B, B). Time bins of each.
    outside : Tensor (N,). Time bins left out because a projection lies beyond the outermost edges.
    excluded : Tensor (N,). Time bins left out because their window begins before the clip, or holds NaN, or
        the response is NaN.
    explained : Tensor (N,). Variance of the surface over that of the response, over the time bins it counts.
        A noise-free function of the directions comes close to 1 with fine bins; few time bins per cell make
        it too high.
    """

    edges: Tensor
    mean: Tensor
    sd: Tensor
    count: Tensor
    outside: Tensor
    excluded: Tensor
    explained: Tensor


@checked
def active_subspace(
    dstrfs: Filters | Sequence[Filters], n_dimensions: int = 2, *, centred: bool = False
) -> ActiveSubspace:
    """Eigenvectors of the mean outer product of each neuron's dynamic STRF with itself.

    A response that depends on the stimulus through k projections only has dynamic STRFs that lie in the span
    of those k filters at all times: then k eigenvalues are not zero, and their vectors span the filters.
    Eigenvectors are orthogonal, so of several filters they return the span, not the filters one by one.

    Parameters
    ----------
    dstrfs : filters of one clip, or a sequence of such
        Tensors or arrays (T, N, L, F), paths of ``.npy`` files, or results of `dstrf`. One clip of one neuron
        is in memory at a time, and a square matrix of the smaller of all bins and L * F. Filters at the start
        of a clip are cut off where the clip begins, which adds dimensions: results leave them out, for
        arrays take ``dstrf(..., edge="drop")``.
    n_dimensions : int
        Directions to return, K.
    centred : bool
        Whether to subtract the mean filter first: the directions are then those of change, and a linear
        neuron has none. They are the directions of curvature at the scale of the stimuli themselves.

    Returns
    -------
    ActiveSubspace
        Directions, eigenvalues and their shares. Bins with NaN are left out and counted.

    Raises
    ------
    ValueError, TypeError
        For filters of another shape, or more directions than there can be.

    References
    ----------
    Constantine 2015, Active Subspaces, doi 10.1137/1.9781611973860.

    Examples
    --------
    >>> pair = torch.eye(6).view(6, 1, 2, 3)[:2].repeat(10, 1, 1, 1)  # two filters that alternate
    >>> active_subspace(pair).share[0, :3].tolist()
    [0.5, 0.5, 0.0]
    """
    clips, lengths = clips_of(dstrfs)
    wanted = check_positive_int("n_dimensions", n_dimensions)
    n_neurons, lags, bands = as_filters(clips[0]).shape[1:]
    n_bins, size = sum(lengths), lags * bands
    most = min(n_bins, size)
    if wanted > most:
        raise ValueError(
            f"n_dimensions must be at most {most} ({n_bins} bins of {size} weights), got {wanted}"
        )
    directions = torch.full((n_neurons, wanted, size), torch.nan, dtype=torch.float64)
    eigenvalues = torch.zeros(n_neurons, most, dtype=torch.float64)
    counts = []
    for neuron, parts in enumerate(neurons_of(clips)):
        fewest = _few_bins if n_bins < size else _many_bins
        values, vectors, mean, count = fewest(parts, size, wanted, centred)
        known = min(wanted, len(values))
        eigenvalues[neuron, : len(values)] = values.cpu()
        directions[neuron, :known] = _signed(vectors[:known], mean).cpu()
        counts.append(count)
    counted = torch.tensor(counts)
    return ActiveSubspace(
        directions=directions.view(n_neurons, wanted, lags, bands),
        eigenvalues=eigenvalues,
        share=eigenvalues / eigenvalues.sum(1, keepdim=True),
        count=counted,
        excluded=n_bins - counted,
    )


@checked
def tuning_surface(
    subspace: ActiveSubspace | Tensor,
    stimulus: Tensor | Sequence[Tensor],
    response: DynamicSTRF | Tensor | Sequence[DynamicSTRF | Tensor],
    *,
    dimensions: int | tuple[int, ...] = (0, 1),
    n_bins: int = 12,
    coverage: float = 0.99,
) -> TuningSurface:
    """Response averaged in bins of the projections of the stimulus on one or two directions.

    Parameters
    ----------
    subspace : ActiveSubspace, or Tensor (N, K, L, F)
        Directions, lags from the oldest frame to the current one.
    stimulus : Tensor (F, T), (1, F, T) or (1, 1, F, T), or a sequence of such
        The clips as the filters apply to them: `stimulus_frames`.
    response : DynamicSTRF, Tensor (T, N), or a sequence of such
        One per clip: the model's responses, taken from the result of `dstrf` at its times, or recorded ones.
    dimensions : int or (int, int)
        Which directions, at most two.
    n_bins : int
        Bins per direction, B, of equal width.
    coverage : float
        Central share of the projections that the bins span, so that a few extreme stimuli do not make all
        bins wide. Values beyond are left out and counted; 1 leaves out nothing.

    Returns
    -------
    TuningSurface
        Means, spreads, counts.

    Raises
    ------
    ValueError, TypeError
        For clips, responses and directions that do not fit each other, or nothing to average.

    Examples
    --------
    >>> from deepSTRF.interpret.dstrf import dstrf
    >>> from deepSTRF.models.audio import Linear
    >>> model, sound = Linear(8, 3, out_neurons=2, norm="none"), torch.rand(8, 400)
    >>> result = dstrf(model, sound)
    >>> surface = tuning_surface(active_subspace(result, 1), sound, result, dimensions=0, n_bins=20)
    >>> surface.mean.shape, bool((surface.explained > 0.98).all())
    (torch.Size([2, 20]), True)
    """
    directions = _chosen(subspace, dimensions)
    bins = check_positive_int("n_bins", n_bins)
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be above 0 and at most 1, got {coverage!r}")
    pairs = _paired(stimulus, response, directions)
    found = [_projected(directions, frames, rates, times) for frames, rates, times in pairs]
    projections = torch.cat([one[0] for one in found], dim=2)  # (N, D, T)
    rates = torch.cat([one[1] for one in found], dim=1)  # (N, T)
    usable = torch.isfinite(projections).all(1) & torch.isfinite(rates)
    if not bool(usable.any()):
        raise ValueError(
            "nothing to average: no time bin has a whole window in its clip, a finite projection and a "
            f"finite response; windows have {directions.shape[2]} frames, and directions beyond the rank of "
            "a neuron's filters are NaN"
        )
    n_neurons, n_dimensions = projections.shape[:2]
    edges = torch.full((n_neurons, n_dimensions, bins + 1), torch.nan, dtype=torch.float64)
    tables = torch.full((3, n_neurons, bins**n_dimensions), torch.nan, dtype=torch.float64)
    outside, explained = [], []
    for n in range(n_neurons):
        at, rate = projections[n][:, usable[n]], rates[n, usable[n]]
        edges[n] = _edges(at, bins, coverage)
        cell, inside = _cells(at, edges[n])
        tables[:, n], share = _averaged(cell[inside], rate[inside], tables.shape[2])
        outside.append(int((~inside).sum()))
        explained.append(share)
    mean, sd, count = tables.view(3, n_neurons, *[bins] * n_dimensions)
    excluded = (~usable).sum(1)
    return TuningSurface(
        edges, mean, sd, count.long(), torch.tensor(outside), excluded, per_neuron(explained)
    )


def _many_bins(
    parts: Iterable[tuple[Tensor, Tensor]], size: int, wanted: int, centred: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Eigenvalues, leading vectors (K, L * F), mean filter and count, from sums over clips."""
    gram, total, count = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size).double(), 0
    for filters, valid in parts:
        rows = filters[valid].flatten(1)
        gram = gram.to(rows.device).addmm_(rows.T, rows)
        total = total.to(rows.device) + rows.sum(0)
        count += len(rows)
    mean = total / max(1, count)
    scale = float(gram.trace()) / max(1, count)
    square = gram / max(1, count) - (torch.outer(mean, mean) if centred else 0.0)
    values, vectors = _leading(square, wanted, scale * max(count, size))
    return values, vectors, mean, count


def _few_bins(
    parts: Iterable[tuple[Tensor, Tensor]], size: int, wanted: int, centred: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The same from products between bins, where these are fewer than the weights of a filter."""
    rows = torch.cat([filters[valid].flatten(1) for filters, valid in parts])
    count = len(rows)
    mean = rows.mean(0) if count else rows.new_zeros(size)
    scale = float(rows.square().sum()) / max(1, count)
    rows = rows - mean if centred else rows
    values, courses = _leading(rows @ rows.T / max(1, count), min(wanted, count), scale * size)
    return values, torch.nn.functional.normalize(courses @ rows, dim=1), mean, count


def _leading(square: Tensor, wanted: int, scale: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues above rounding of sums of this scale, falling, and the first vectors (K, size)."""
    size = len(square)
    if not size:
        return square.new_zeros(0), square.new_zeros(0, size)
    from scipy.linalg import eigh

    values: Tensor = torch.linalg.eigvalsh(square).flip(0)
    # a few vectors cost far less than all: a quarter of the time for 65 lags by 34 bands
    _, vectors = eigh(square.cpu().numpy(), subset_by_index=[size - wanted, size - 1])
    # what is below has no direction of its own
    values = values[values > scale * torch.finfo(values.dtype).eps]
    return values, torch.from_numpy(vectors.T[::-1][: len(values)].copy()).to(square)


def _signed(vectors: Tensor, mean: Tensor) -> Tensor:
    """Vectors with the sign of the mean filter along them, or else with a positive largest entry."""
    along, size = vectors @ mean, float(mean.norm())
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))[:, 0]
    sign = torch.where(along.abs() > NO_SIGN * size, along, largest).sign()
    return vectors * torch.where(sign == 0, 1.0, sign).unsqueeze(1)


def _chosen(subspace: ActiveSubspace | Tensor, dimensions: int | tuple[int, ...]) -> Tensor:
    every = subspace.directions if isinstance(subspace, ActiveSubspace) else to_tensor(subspace)
    if every.ndim != 4 or 0 in every.shape:
        raise ValueError(
            f"subspace must be an ActiveSubspace or directions (N, K, L, F), got {tuple(every.shape)}"
        )
    named = (dimensions,) if isinstance(dimensions, int) else tuple(dimensions)
    if len(named) not in (1, 2) or len(set(named)) < len(named):
        raise ValueError(f"dimensions must be one or two different directions, got {dimensions!r}")
    if not all(0 <= one < every.shape[1] for one in named):
        raise ValueError(
            f"dimensions must lie in 0 .. {every.shape[1] - 1}, got {dimensions!r}; for one direction pass "
            "dimensions=0, for more active_subspace(..., n_dimensions=2)"
        )
    return every[:, list(named)].detach().double().cpu()


def _paired(
    stimulus: Tensor | Sequence[Tensor],
    response: DynamicSTRF | Tensor | Sequence[DynamicSTRF | Tensor],
    directions: Tensor,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Frames (F, T), responses (K, N) and their times (K,) of each clip."""
    clips = list(stimulus) if isinstance(stimulus, list | tuple) else [cast(Tensor, stimulus)]
    found = list(response) if isinstance(response, list | tuple) else [cast(Tensor, response)]
    if len(clips) != len(found) or not clips:
        raise ValueError(f"give one response per clip: {len(clips)} clips and {len(found)} responses")
    n_neurons, bands = len(directions), directions.shape[3]
    pairs = []
    for clip, one in zip(clips, found, strict=True):
        given = to_tensor(clip).detach().double().cpu()
        frames = given.reshape(given.shape[-2:]) if given.numel() == given.shape[-2:].numel() else given
        if frames.ndim != 2 or frames.shape[0] != bands:
            raise ValueError(
                f"stimulus must be clips (F, T) with the {bands} bands of the directions, got "
                f"{tuple(given.shape)}; stimulus_frames(model, stimulus) returns them of a sound"
            )
        # last frame of each window
        ends = one.times.cpu() + one.lookahead if isinstance(one, DynamicSTRF) else None
        times = torch.arange(frames.shape[1]) if ends is None else ends
        rates = to_tensor(one.response if isinstance(one, DynamicSTRF) else one).detach().double().cpu()
        if rates.shape != (len(times), n_neurons):
            raise ValueError(
                f"response must be (T, N) = ({len(times)}, {n_neurons}) to fit clip and directions, got "
                f"{tuple(rates.shape)}; rates (N, T) of model.predict are passed as rates.T"
            )
        pairs.append((frames, rates, times))
    return pairs


def _projected(directions: Tensor, frames: Tensor, rates: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Projections (N, D, K) of windows that end at given times, NaN outside the clip, and rates (N, K)."""
    n_neurons, n_dimensions, lags = directions.shape[:3]
    n_frames = frames.shape[1]
    # as long again as a window: its end may lie after the clip
    every = torch.full((n_neurons * n_dimensions, n_frames + lags), torch.nan, dtype=torch.float64)
    if n_frames >= lags:
        kernels = directions.flatten(0, 1).transpose(1, 2)  # (N * D, F, L)
        every[:, lags - 1 : n_frames] = torch.nn.functional.conv1d(frames.unsqueeze(0), kernels)[0]
    return every.view(n_neurons, n_dimensions, -1)[..., times], rates.T


def _edges(at: Tensor, bins: int, coverage: float) -> Tensor:
    """Edges (D, B + 1) around the central projections (D, T); NaN without any."""
    if not at.shape[1]:
        return torch.full((len(at), bins + 1), torch.nan, dtype=torch.float64)
    tail = (1 - coverage) / 2
    # sorted by hand: torch.quantile refuses more than 16 million values
    ordered, last = at.sort(dim=1).values, at.shape[1] - 1
    low, high = ordered[:, round(tail * last)], ordered[:, round((1 - tail) * last)]
    steps = torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64)
    edges = low.unsqueeze(1) + (high - low).unsqueeze(1) * steps
    edges[:, -1] = high  # and not what rounding makes of it, which could leave the last bin out
    return edges


def _cells(at: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of each time bin, and whether it lies in one; the last edge belongs to the last cell."""
    bins = edges.shape[1] - 1
    cell = torch.zeros(at.shape[1], dtype=torch.long)
    inside = torch.ones(at.shape[1], dtype=torch.bool)
    for values, borders in zip(at.contiguous(), edges, strict=True):
        index = torch.bucketize(values, borders, right=True) - 1
        inside &= (values >= borders[0]) & (values <= borders[-1])
        cell = cell * bins + index.clamp(0, bins - 1)
    return cell, inside


def _averaged(cell: Tensor, rate: Tensor, n_cells: int) -> tuple[Tensor, float]:
    """Mean, standard deviation and count per cell (3, n_cells), and the share of variance they explain."""
    count = torch.bincount(cell, minlength=n_cells).double()
    mean = torch.bincount(cell, rate, n_cells) / count  # 0 / 0 is NaN: an empty cell has no mean
    rest = (rate - mean[cell]).square()
    sd = (torch.bincount(cell, rest, n_cells) / torch.where(count > 1, count - 1, torch.nan)).sqrt()
    total = float((rate - rate.mean()).square().sum()) if len(rate) else 0.0
    return torch.stack([mean, sd, count]), 1 - float(rest.sum()) / total if total > 0 else torch.nan
