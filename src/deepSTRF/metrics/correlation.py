"""How well a prediction follows the PSTH: Pearson correlation and fraction of variance explained."""

from __future__ import annotations

from torch import Tensor

from ._moments import PairMoments
from ._reduction import reduce_neurons
from ._scoring import clip_series, explained_variance, total_squared_error
from ._validation import check_mask, check_pair, check_reduction

__all__ = ["corrcoef", "fve"]


def corrcoef(pred: Tensor, gt: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Pearson correlation between prediction and PSTH, over all bins of all clips together.

    Does not change when either side is shifted or scaled, however large the shift or small the scale.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates; any unit.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        A PSTH, or single repeats to be averaged; NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T). Replaces the rule "not NaN".
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).

    Returns
    -------
    Tensor, shape () or (N,)
        Correlation in [-1, 1], float64; NaN with fewer than two bins or when a side is constant.

    Raises
    ------
    ValueError
        When shapes disagree or ``reduction`` is unknown.
    TypeError
        When ``mask`` is not bool.

    Examples
    --------
    >>> import torch
    >>> psth = torch.tensor([[[[0.0, 1.0, torch.nan, 2.0]]]])
    >>> round(corrcoef(1e-8 * psth.nan_to_num(9.0), psth).item(), 6)  # the masked bin does not matter
    1.0
    """
    check_pair(pred, gt)
    check_mask(mask, gt)
    check_reduction(reduction)
    return reduce_neurons(PairMoments.of(*clip_series(pred, gt, mask)).pool(0).correlation(), reduction)


def fve(pred: Tensor, gt: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Fraction of the PSTH's variance that the prediction explains (R squared).

    ``1 - sum (pred - psth)**2 / sum (psth - mean)**2`` over all bins of all clips together. Unlike the
    correlation it asks for the right mean and scale, and a bad prediction makes it negative. Noise left in
    the PSTH counts against the model; `feve` corrects for that.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates, in the unit of the responses.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        A PSTH, or single repeats to be averaged; NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T). Replaces the rule "not NaN".
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).

    Returns
    -------
    Tensor, shape () or (N,)
        At most 1, float64; NaN with fewer than two bins or a constant PSTH.

    Raises
    ------
    ValueError
        When shapes disagree or ``reduction`` is unknown.
    TypeError
        When ``mask`` is not bool.

    Examples
    --------
    >>> import torch
    >>> psth = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    >>> fve(psth, psth), fve(torch.ones_like(psth), psth)
    (tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    check_pair(pred, gt)
    check_mask(mask, gt)
    check_reduction(reduction)
    series = clip_series(pred, gt, mask)
    moments = PairMoments.of(*series).pool(0)
    error = total_squared_error(*series)
    return reduce_neurons(explained_variance(error, moments.yy, moments.mean_y, moments.count), reduction)
