"""Complexity and gain change: the number of filters of a neuron, and the spread of their size.

Complexity is ``sum(s) / s[0]`` of the singular values s of a neuron's filters over time; gain change is the
standard deviation of the norm of its filters (Keshishian et al. 2020, doi 10.7554/eLife.53445).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.interpret.filter_statistics.ensembles import Filters, ensembles, per_neuron


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the filters over time, and the figures made of them.

    Attributes
    ----------
    values : list of Tensor. Singular values of each neuron, falling.
    complexity : Tensor (N,). Their sum over the largest: 1 for a linear neuron.
    effective_rank : Tensor (N,). Exponential of the entropy of their shares (Roy & Vetterli 2007).
    participation_ratio : Tensor (N,). ``(sum s^2)^2 / sum s^4``: how many patterns share the variance.
    excluded : Tensor (N,). Bins left out because they hold NaN, or are cut off by the start of the clip
        (`cut_off`).
    """

    values: list[Tensor]
    complexity: Tensor
    effective_rank: Tensor
    participation_ratio: Tensor
    excluded: Tensor


@checked
def complexity(dstrfs: Filters, *, centred: bool = False) -> Tensor:
    """Complexity of each neuron: the number of filters that describe it.

    The sum of the singular values of its filters over time (rows of a matrix, not centred) over the largest.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters.
    centred : bool
        Whether to subtract the mean filter first, which leaves the patterns of change alone.

    Returns
    -------
    Tensor
        (N,), from 1 (a linear neuron) to the smaller of T and L * F; NaN for a neuron whose filters are all
        zero. Bins with NaN are left out, `singular_spectrum` counts them.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> complexity(torch.eye(4).view(4, 1, 2, 2))
    tensor([4.], dtype=torch.float64)
    """
    return singular_spectrum(dstrfs, centred=centred).complexity


@checked
def singular_spectrum(dstrfs: Filters, *, centred: bool = False) -> Spectrum:
    """Singular values of each neuron's filters over time, and all figures made of them.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters.
    centred : bool
        Whether to subtract the mean filter first.

    Returns
    -------
    Spectrum
        Values and figures; NaN for a neuron whose filters are all zero.

    Examples
    --------
    >>> singular_spectrum(torch.eye(4).view(4, 1, 2, 2)).effective_rank
    tensor([4.], dtype=torch.float64)
    """
    values, excluded = [], []
    for filters, valid in ensembles(dstrfs):
        rows = filters[valid].flatten(1)
        values.append(_singular_values(rows - rows.mean(0) if centred else rows))
        excluded.append(int((~valid).sum()))
    ranks, ratios, sums = [], [], []
    for s in values:
        share = s / s.sum()
        sums.append(float(s.sum() / s[0]) if len(s) else torch.nan)
        ranks.append(float(torch.exp(-torch.special.xlogy(share, share).sum())) if len(s) else torch.nan)
        ratios.append(float(s.square().sum().square() / s.pow(4).sum()) if len(s) else torch.nan)
    return Spectrum(values, per_neuron(sums), per_neuron(ranks), per_neuron(ratios), torch.tensor(excluded))


@checked
def gain_change(dstrfs: Filters) -> Tensor:
    """Gain change of each neuron: the standard deviation over time of the norm of its filter.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters.

    Returns
    -------
    Tensor
        (N,), in the units of the filters (T - 1 in the denominator); NaN for a single bin. Bins with NaN are
        left out.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> gain_change(torch.ones(10, 2, 5, 3))
    tensor([0., 0.], dtype=torch.float64)
    """
    return per_neuron([_spread(norm) for norm in _norms(dstrfs)])


@checked
def gain_variation(dstrfs: Filters) -> Tensor:
    """Gain change of each neuron relative to the mean norm of its filter: a number without units.

    `gain_change` grows with the response; this one compares neurons and models.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters.

    Returns
    -------
    Tensor
        (N,), the coefficient of variation of the norm; NaN for a neuron whose filters are all zero.

    Examples
    --------
    >>> gain = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    >>> gain_variation(gain * torch.ones(2, 1, 5, 3)), gain_variation(9 * gain * torch.ones(2, 1, 5, 3))
    (tensor([0.7071], dtype=torch.float64), tensor([0.7071], dtype=torch.float64))
    """
    return per_neuron([_spread(n) / float(n.mean()) if bool(n.any()) else torch.nan for n in _norms(dstrfs)])


def _norms(dstrfs: Filters) -> list[Tensor]:
    return [filters[valid].flatten(1).norm(dim=1) for filters, valid in ensembles(dstrfs)]


def _spread(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else torch.nan


def _singular_values(rows: Tensor) -> Tensor:
    """Singular values above rounding, falling, from the smaller Gram matrix; none for a matrix of zeros."""
    if not bool(rows.any()):
        return rows.new_zeros(0)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    squares: Tensor = torch.linalg.eigvalsh(gram).flip(0)
    # squaring has halved the digits: what is below this is rounding, of which there would be many
    floor = squares[0] * len(squares) * torch.finfo(squares.dtype).eps
    return squares[squares > floor].sqrt()
