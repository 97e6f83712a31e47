"""k-means of unit filters, and how far apart its groups lie."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

__all__ = ["distances", "k_means", "silhouette", "some_rows"]

#: Squared distances of unit filters below this are rounding (of single precision): such filters are one.
ONE_FILTER = 1e-10
#: Bins on which the starts of k-means are tried, and rounds of each; the best then goes on with all bins.
MOST_TRIED, FIRST_ROUNDS = 1000, 30


def k_means(rows: Tensor, k: int, tries: int, rounds: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Sort rows of norm 1 into K groups, by Lloyd's rounds from k-means++ starts.

    Parameters
    ----------
    rows : Tensor (T, D)
        Rows of norm 1, at least one.
    k : int
        Groups.
    tries : int
        Starts, tried on at most 1000 rows for at most 30 rounds; the best goes on with all rows.
    rounds : int
        Most rounds with all rows.
    seed : int
        Of the starts.

    Returns
    -------
    tuple
        Labels (T,), the largest group first; centres (K, D), NaN where there are fewer different rows than
        groups; and the mean squared distance of rows from their centres.

    Examples
    --------
    >>> k_means(torch.eye(3)[[0, 1, 1, 0, 1]].double(), 2, tries=3, rounds=10, seed=0)[0].tolist()
    [1, 0, 0, 1, 0]
    """
    draw = torch.Generator().manual_seed(seed)
    few = some_rows(rows, MOST_TRIED)
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


def distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances of rows of norm 1 from centres, rounding taken away.

    Parameters
    ----------
    rows : Tensor (T, D)
        Rows of norm 1.
    centres : Tensor (K, D)
        Of any norm.

    Returns
    -------
    Tensor
        (T, K); below 1e-10, which is rounding of single precision, 0.

    Examples
    --------
    >>> distances(torch.eye(2), torch.eye(2)).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    squares = 1 + centres.square().sum(1) - 2 * (rows @ centres.T)
    return torch.where(squares > ONE_FILTER, squares, 0.0)


def silhouette(apart: Tensor, labels: Tensor, k: int) -> float:
    """Return the mean silhouette.

    Parameters
    ----------
    apart : Tensor (T, T)
        Distances between all rows.
    labels : Tensor (T,)
        Their groups.
    k : int
        Groups.

    Returns
    -------
    float
        From -1 to 1; NaN where all carry one label.

    References
    ----------
    Rousseeuw 1987, doi 10.1016/0377-0427(87)90125-7.

    Examples
    --------
    >>> apart = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    >>> silhouette(apart, torch.tensor([0, 0, 1]), 2)  # the one alone counts as 0
    0.6666666865348816
    """
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


def some_rows(rows: Tensor, most: int) -> Tensor:
    """Return some rows, drawn at random, in order, always the same ones.

    Evenly spaced ones would miss what has a period.

    Parameters
    ----------
    rows : Tensor (T, ...)
        Rows.
    most : int
        How many to keep at most.

    Returns
    -------
    Tensor
        All, where there are no more.

    Examples
    --------
    >>> len(some_rows(torch.zeros(10, 3), 4))
    4
    """
    if len(rows) <= most:
        return rows
    draw = torch.Generator().manual_seed(len(rows))
    return rows[torch.randperm(len(rows), generator=draw)[:most].sort().values.to(rows.device)]


def _start(rows: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Centres (K', L * F) by k-means++: far ones are likely. Fewer than K where there are no more filters."""
    centres = rows[torch.randint(len(rows), (1,), generator=draw).to(rows.device)]
    while len(centres) < k:
        nearest = distances(rows, centres).amin(1)
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
        distance, nearest = distances(rows, centres).min(1)
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
