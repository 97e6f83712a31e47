"""Recurring patterns: k-means of a neuron's unit-norm filters, with dwell times and transitions.

k-means takes Lloyd's rounds from k-means++ starts (Arthur & Vassilvitskii 2007, doi
10.5555/1283383.1283494); silhouettes (Rousseeuw 1987, doi 10.1016/0377-0427(87)90125-7) compare numbers of
patterns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepSTRF._validation import check_flag, check_positive_int, checked
from deepSTRF.interpret.filter_statistics.ensembles import Filters, clips_of, neurons_of
from deepSTRF.interpret.filter_statistics.shape_change import align_filters

#: Squared distances of unit filters below this are rounding (of single precision): such filters are one.
ONE_FILTER = 1e-10
#: Bins on which the starts of k-means are tried, and rounds of each; the best then goes on with all bins.
MOST_TRIED, FIRST_ROUNDS = 1000, 30
#: Pattern of a bin with a broken filter, and of the time before and after a clip.
UNKNOWN = -2
#: Bins of a silhouette, which compares all of them with each other.
MOST_COMPARED = 2000
ITERATIONS, RESTARTS = 100, 10


@dataclass(frozen=True)
class FilterPatterns:
    """The recurring filters of one neuron.

    Attributes
    ----------
    centres : Tensor (K, L, F). Mean of the unit-norm filters of each pattern, in falling order of their
        share: a norm near 1 means that its filters are alike. NaN for a pattern without any bin.
    labels : Tensor (T,). Pattern of each bin, all clips end to end; -1 is a bin left out: broken, or without
        a filter.
    lengths : list of int. Bins of each clip: ``labels.split(lengths)`` takes them apart.
    share : Tensor (K,). Share of the labelled bins.
    dwell : list of K Tensor. Lengths, in bins, of all stays in each pattern that begin and end within the
        clip: with another pattern, or with the filter gone.
    cut : list of K Tensor. Lengths of the stays that an end of a clip, or a broken bin, cuts short. They are
        not in `dwell`.
    transitions : Tensor (K, K). From row to column: probability of the pattern of the next bin, where it has
        one. The diagonal is staying; NaN for a pattern that nothing follows.
    explained : float. Share of the squared norm of the unit filters that their centres hold: 1 where each
        filter is the centre of its pattern.
    excluded : int. Bins left out because they hold NaN, are cut off, or hold only zeros, which have no
        direction.
    shifts : Tensor (T,) or None. With ``aligned``: by how many lags each filter was moved, positive towards
        the present.
    """

    centres: Tensor
    labels: Tensor
    lengths: list[int]
    share: Tensor
    dwell: list[Tensor]
    cut: list[Tensor]
    transitions: Tensor
    explained: float
    excluded: int
    shifts: Tensor | None = None

    @property
    def dwell_mean(self) -> Tensor:
        """Mean of the stays that are whole, in bins (K,); NaN without any."""
        return torch.stack([stays.double().mean() for stays in self.dwell])


@dataclass(frozen=True)
class PatternScores:
    """Scores of several numbers of patterns.

    Attributes
    ----------
    counts : Tensor (C,). Numbers of patterns, K.
    explained : Tensor (C, N). Share of the squared norm of the unit filters that K centres hold. It never
        falls with K, to rounding and luck of the restarts; with 1 it is the squared norm of the mean unit
        filter, which for a neuron of one filter (times any gain) is 1: such a neuron needs no second pattern.
    silhouette : Tensor (C, N). Mean over bins of ``(b - a) / max(a, b)``, a being the mean distance to the
        bins of the same pattern and b to those of the next best one: from -1 to 1, higher where patterns are
        apart. NaN for K = 1.
    """

    counts: Tensor
    explained: Tensor
    silhouette: Tensor

    @property
    def best(self) -> Tensor:
        """K of the highest silhouette (N,); 1 where there is none, as where all filters are one."""
        known = torch.nan_to_num(self.silhouette, nan=-torch.inf)
        return torch.where(known.isfinite().any(0), self.counts[known.argmax(0)], 1)


@checked
def filter_patterns(
    dstrfs: Filters | Sequence[Filters],
    n_patterns: int,
    *,
    aligned: bool = False,
    span: int | None = None,
    restarts: int = RESTARTS,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> list[FilterPatterns]:
    """Recurring patterns of each neuron's filters, regardless of their gain.

    Every filter is divided by its norm; k-means (Lloyd's rounds from a k-means++ start, the best of several)
    finds centres that leave the least squared distance. Starts are tried on at most 1000 bins, the best goes
    on with all. The same arguments give the same patterns.

    Parameters
    ----------
    dstrfs : filters of one clip, or a sequence of such
        Tensors or arrays (T, N, L, F), paths of ``.npy`` files, or results of `dstrf`. All filters of one
        neuron are in memory at a time, in double precision.
    n_patterns : int
        Patterns, K; `pattern_scores` helps to choose.
    aligned : bool
        Whether to move filters along the lag axis first, as `align_filters` with ``fill="zero"`` does: a
        filter that stays on a receding event is then one pattern.
    span : int, optional
        Span of the alignment, see `align_filters`.
    restarts, iterations : int
        Starts of k-means, and most rounds of each.
    seed : int
        Seed of the starts.

    Returns
    -------
    list of FilterPatterns
        One per neuron. Bins with NaN or only zeros are left out and counted.

    Raises
    ------
    ValueError, TypeError
        For filters of another shape, or a neuron with fewer usable bins than patterns.

    References
    ----------
    Arthur & Vassilvitskii 2007, k-means++, doi 10.5555/1283383.1283494.

    Examples
    --------
    >>> pair = torch.eye(6).view(6, 1, 2, 3)[[0, 0, 0, 1, 1] * 4]
    >>> (found,) = filter_patterns(pair, 2)
    >>> found.share.tolist(), found.labels[:6].tolist()
    ([0.6, 0.4], [0, 0, 0, 1, 1, 0])
    """
    wanted = check_positive_int("n_patterns", n_patterns)
    tries, rounds = check_positive_int("restarts", restarts), check_positive_int("iterations", iterations)
    clips, lengths = clips_of(dstrfs)
    found = []
    for neuron, joined in enumerate(_joined(clips)):
        units = _Units(joined, check_flag("aligned", aligned), span)
        if len(units.rows) < wanted:
            raise ValueError(
                f"neuron {neuron} has {len(units.rows)} bins with a filter, fewer than n_patterns={wanted}"
            )
        labels, centres, left = _k_means(units.rows, wanted, tries, rounds, seed)
        found.append(_described(units, labels, centres, left, lengths))
    return found


@checked
def pattern_scores(
    dstrfs: Filters | Sequence[Filters],
    counts: Sequence[int] = (1, 2, 3, 4, 5, 6),
    *,
    aligned: bool = False,
    span: int | None = None,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> PatternScores:
    """Explained share and silhouette for several numbers of patterns.

    Take the number of the highest silhouette (``best``) where ``explained`` has not come close to 1 before
    it. The silhouette always prefers some division, also of a continuum of filters: look at the centres.

    Parameters
    ----------
    dstrfs : filters of one clip, or a sequence of such
        As for `filter_patterns`.
    counts : sequence of int
        Numbers of patterns.
    aligned, span, restarts, seed : bool, int, int, int
        As for `filter_patterns`.

    Returns
    -------
    PatternScores
        NaN where a neuron has fewer usable bins than patterns. Silhouettes are taken over at most 2000 bins.

    References
    ----------
    Rousseeuw 1987, Silhouettes, doi 10.1016/0377-0427(87)90125-7.

    Examples
    --------
    >>> one = torch.rand(50, 1, 1, 1) * torch.ones(1, 1, 2, 3)  # one filter, many gains
    >>> pattern_scores(one, [1, 2]).explained.round(decimals=6).flatten().tolist()
    [1.0, 1.0]
    """
    named = [check_positive_int("counts", count) for count in counts]
    if not named:
        raise ValueError("counts must hold at least one number of patterns, such as counts=(2, 3, 4)")
    tries, (clips, _) = check_positive_int("restarts", restarts), clips_of(dstrfs)
    columns = []
    for joined in _joined(clips):
        units = _Units(joined, check_flag("aligned", aligned), span)
        some = _some_rows(torch.arange(len(units.rows)), MOST_COMPARED)
        apart = _distances(units.rows[some], units.rows[some]).sqrt()
        column = []
        for count in named:
            if len(units.rows) < count:
                column.append([torch.nan, torch.nan])
                continue
            labels, _, left = _k_means(units.rows, count, tries, ITERATIONS, seed)
            column.append([1 - left, _silhouette(apart, labels[some], count)])
        columns.append(column)
    explained, apartness = torch.tensor(columns, dtype=torch.float64).permute(2, 1, 0)
    return PatternScores(torch.tensor(named), explained, apartness)


class _Units:
    """One neuron's filters, those that have a direction, as rows of norm 1."""

    def __init__(self, joined: tuple[Tensor, Tensor], aligned: bool, span: int | None) -> None:
        filters, valid = joined
        self.shape = filters.shape[1:]
        self.shifts: Tensor | None = None
        if aligned:
            (moved,) = align_filters(filters.unsqueeze(1), span=span, fill="zero")
            filters, self.shifts = moved.filters, moved.shifts
        size = filters.flatten(1).norm(dim=1)
        self.valid, self.kept = valid, valid & (size > 0)
        self.rows = filters.flatten(1)[self.kept] / size[self.kept].unsqueeze(1)


def _joined(clips: list[Filters]) -> Iterator[tuple[Tensor, Tensor]]:
    """Filters (T, L, F) and valid bins (T,) of each neuron, all clips end to end."""
    for parts in neurons_of(clips):
        filters, valid = zip(*parts, strict=True)
        yield torch.cat(filters), torch.cat(valid)


def _described(
    units: _Units, labels: Tensor, centres: Tensor, left: float, lengths: list[int]
) -> FilterPatterns:
    """Shares, dwell times and transitions of labelled filters."""
    k = len(centres)
    every = torch.full((len(units.kept),), -1)
    every[units.kept.cpu()] = labels.cpu()
    dwell: list[list[int]] = [[] for _ in range(k)]
    cut: list[list[int]] = [[] for _ in range(k)]
    steps = torch.zeros(k, k, dtype=torch.float64)
    # a neuron without a filter is known to be in no pattern, one with a broken filter may be in any
    known = torch.where(units.valid.cpu(), every, UNKNOWN)
    for clip in torch.split(known, lengths):
        for label, stay, whole in _stays(clip):
            (dwell if whole else cut)[label].append(stay)
        now, following = clip[:-1], clip[1:]
        both = (now >= 0) & (following >= 0)
        ones = torch.ones(int(both.sum()), dtype=torch.float64)
        steps.index_put_((now[both], following[both]), ones, accumulate=True)
    return FilterPatterns(
        centres=centres.view(k, *units.shape).cpu(),
        labels=every,
        lengths=lengths,
        share=torch.bincount(labels, minlength=k).cpu().double() / len(labels),
        dwell=[torch.tensor(stays, dtype=torch.long) for stays in dwell],
        cut=[torch.tensor(stays, dtype=torch.long) for stays in cut],
        transitions=steps / steps.sum(1, keepdim=True),
        explained=1 - left,
        excluded=int((every < 0).sum()),
        shifts=None if units.shifts is None else units.shifts.cpu(),
    )


def _stays(labels: Tensor) -> list[tuple[int, int, bool]]:
    """Pattern, length and wholeness of each stay in one clip; bins left out belong to none."""
    named, lengths = torch.unique_consecutive(labels, return_counts=True)
    names = named.tolist()
    around = zip([UNKNOWN, *names[:-1]], names, [*names[1:], UNKNOWN], lengths.tolist(), strict=True)
    return [(name, n, UNKNOWN not in (before, after)) for before, name, after, n in around if name >= 0]


def _k_means(rows: Tensor, k: int, tries: int, rounds: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Labels (T,), centres (K, D) and mean squared distance of rows (T, D) of norm 1 in K groups.

    Groups are numbered by falling size.
    """
    draw = torch.Generator().manual_seed(seed)
    few = _some_rows(rows, MOST_TRIED)
    best: tuple[float, Tensor] | None = None
    for _ in range(tries):
        labels, left = _lloyd(few, _start(few, k, draw), FIRST_ROUNDS)
        # the first of equally good ones: rounding must not choose
        if best is None or left < best[0] - ONE_FILTER:
            best = left, labels
    _, labels = cast(tuple[float, Tensor], best)
    centres = torch.nan_to_num(_means(few, labels, int(labels.max()) + 1))
    labels, left = _lloyd(rows, centres, rounds)
    first = {int(name): place for place, name in reversed(list(enumerate(labels.tolist())))}
    counts = torch.bincount(labels, minlength=k).tolist()
    order = sorted(first, key=lambda name: (-counts[name], first[name]))
    ranked = torch.zeros(k, dtype=torch.long, device=rows.device)
    ranked[order] = torch.arange(len(order), device=rows.device)
    labels = ranked[labels]
    return labels, _means(rows, labels, k), left


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (T, K) of rows (T, D) of norm 1 from centres (K, D), without rounding."""
    squares = 1 + centres.square().sum(1) - 2 * (rows @ centres.T)
    return torch.where(squares > ONE_FILTER, squares, 0.0)


def _silhouette(apart: Tensor, labels: Tensor, k: int) -> float:
    """Mean silhouette ``(b - a) / max(a, b)`` of bins at distances ``apart`` (T, T) from each other."""
    member = torch.nn.functional.one_hot(labels, k).to(apart)
    size = member.sum(0)
    if int((size > 0).sum()) < 2:
        return torch.nan
    summed = apart @ member
    own = summed.gather(1, labels.unsqueeze(1))[:, 0] / (size[labels] - 1)
    others = torch.where((size > 0) & (member == 0), summed / size, torch.inf).amin(1)
    score = (others - own) / torch.maximum(own, others)
    # by definition 0 for a pattern of one bin (0 / 0 above), and where nothing lies apart
    return float(torch.nan_to_num(score, nan=0.0).mean())


def _some_rows(rows: Tensor, most: int) -> Tensor:
    """Some rows in order, always the same; drawn at random, for evenly spaced ones would miss a period."""
    if len(rows) <= most:
        return rows
    draw = torch.Generator().manual_seed(len(rows))
    return rows[torch.randperm(len(rows), generator=draw)[:most].sort().values.to(rows.device)]


def _start(rows: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Centres (K', L * F) by k-means++: far ones are likely. Fewer than K where there are no more filters."""
    centres = rows[torch.randint(len(rows), (1,), generator=draw).to(rows.device)]
    while len(centres) < k:
        nearest = _distances(rows, centres).amin(1)
        if not bool((nearest > 0).any()):
            break
        far = nearest.cpu().cumsum(0)
        point = torch.rand(1, generator=draw, dtype=torch.float64) * far[-1]
        chosen = int(torch.searchsorted(far, point, right=True).clamp(max=len(rows) - 1))
        centres = torch.cat([centres, rows[chosen : chosen + 1]])
    return centres


def _lloyd(rows: Tensor, centres: Tensor, rounds: int) -> tuple[Tensor, float]:
    """Labels and mean squared distance once nothing moves, or after so many rounds."""
    labels = torch.full((len(rows),), -1, device=rows.device)
    for _ in range(rounds):
        distance, nearest = _distances(rows, centres).min(1)
        for empty in (torch.bincount(nearest, minlength=len(centres)) == 0).nonzero()[:, 0].tolist():
            farthest = int(distance.argmax())
            if distance[farthest] > 0:  # a pattern that lost its bins begins anew where the others fit worst
                nearest[farthest], distance[farthest] = empty, 0.0
        if bool((nearest == labels).all()):
            break
        labels = nearest
        centres = torch.nan_to_num(_means(rows, labels, len(centres)))
    return labels, float((rows - centres[labels]).square().sum(1).mean())


def _means(rows: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mean row of each label; NaN for one without rows."""
    total = rows.new_zeros(k, rows.shape[1]).index_add_(0, labels, rows)
    return total / torch.bincount(labels, minlength=k).unsqueeze(1)
