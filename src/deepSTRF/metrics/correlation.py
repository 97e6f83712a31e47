"""How well a prediction follows the PSTH: correlation, noise-corrected correlation, variance explained.

The noise-corrected correlation is ``Cov(pred, psth) / sqrt(Var(pred) SP)`` with the signal power SP of the
repeats (Schoppe et al. 2016, 10.3389/fncom.2016.00010); its final step is `ScoreStatistics.cc_norm`, which
`ScoreTracker` shares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepSTRF._moved import earlier_keywords
from deepSTRF._validation import check_choice, check_n_splits, checked
from deepSTRF.metrics._statistics import (
    check_centring,
    check_pair,
    check_responses,
    pooled_moments,
    reduce_neurons,
    valid_samples,
)
from deepSTRF.metrics.ceilings import N_SPLITS, half_split_ceiling
from deepSTRF.metrics.score_statistics import ScoreStatistics

__all__ = ["corrcoef", "fve", "normalized_corrcoef", "single_repeat_neurons"]

METHODS = ("schoppe", "hsu")


@checked
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
    check_pair(pred, gt, mask, reduction)
    moments, _ = pooled_moments(pred, gt, mask)
    return reduce_neurons(moments.correlation(), reduction)


@checked
def fve(pred: Tensor, gt: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Fraction of the PSTH's variance that the prediction explains (R squared).

    ``1 - sum (pred - psth)**2 / sum (psth - mean)**2`` over all bins of all clips together. Unlike the
    correlation it depends on mean and scale, and a bad prediction makes it negative. Noise left in
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
    check_pair(pred, gt, mask, reduction)
    moments, error = pooled_moments(pred, gt, mask)
    return reduce_neurons(moments.explained_variance(error), reduction)


@earlier_keywords
@checked
def normalized_corrcoef(
    pred: Tensor,
    responses: Tensor,
    method: str = "schoppe",
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    centring: str = "concat",
    n_splits: int = N_SPLITS,
    seed: int = 0,
) -> Tensor:
    """Correlation with the PSTH, corrected for the noise that the average over repeats leaves in it.

    ``method="schoppe"``: ``Cov(pred, psth) / sqrt(Var(pred) * SP)`` with the signal power SP of
    `signal_power`. ``method="hsu"``: ``corrcoef(pred, psth) / CCmax`` with the half-split ceiling.

    All parts use the same bins (those with two repeats or more) and the same mask. A neuron that was never
    recorded twice in a bin gets its raw correlation; `single_repeat_neurons` names those.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates, one clip per batch entry; any unit.
    responses : Tensor, shape (B, N, R, T)
        Single repeats, NaN where nothing was recorded.
    method : {"schoppe", "hsu"}
        Which correction.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).
    centring : {"concat", "clip", "published"}
        "concat": covariance, variance and signal power on the concatenated clips. "clip": each clip's own
        means removed first, clips weigh as their bins. "published": covariance and variance on the
        concatenated clips but signal power within clips, as the earlier package did; not bounded by 1 when
        mean rates differ between clips, and here only to compare with numbers printed under it.
    n_splits : int
        Number of half-splits ("hsu" only).
    seed : int
        Seed of the random splits ("hsu" only).

    Returns
    -------
    Tensor, shape () or (N,)
        Float64; 1 for a perfect prediction up to sampling error, NaN where the signal power is not positive
        or the prediction is constant.

    Raises
    ------
    ValueError
        When shapes disagree (also the R-axis of ``pred``), or ``method``, ``centring`` or ``reduction`` is
        unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Schoppe et al. (2016), 10.3389/fncom.2016.00010.
    Hsu, Borst and Theunissen (2004), 10.1088/0954-898X_15_2_002.

    Examples
    --------
    >>> import torch
    >>> rate = torch.rand(3, 1, 1, 500, generator=torch.manual_seed(0))
    >>> repeats = (rate + 0.5 * torch.randn(3, 1, 10, 500)).float()
    >>> round(normalized_corrcoef(rate, repeats).item(), 1)
    1.0
    >>> round(normalized_corrcoef(rate, rate.expand(3, 1, 4, 500)).item(), 6)
    1.0
    """
    check_choice("method", method, METHODS)
    check_centring(centring, published=True)
    check_n_splits(n_splits)
    check_pair(pred, responses, mask, reduction, "responses")
    statistics = ScoreStatistics.of(pred, responses, mask)
    if method == "schoppe":
        return reduce_neurons(statistics.cc_norm(centring), reduction)
    samples = responses.detach()
    ceiling = half_split_ceiling(samples, valid_samples(samples, mask), centring, n_splits, seed)
    corrected = statistics.correlation(centring) / ceiling
    return reduce_neurons(
        torch.where(statistics.single_repeat, statistics.correlation(), corrected), reduction
    )


@checked
def single_repeat_neurons(responses: Tensor, mask: Tensor | None = None) -> Tensor:
    """Neurons whose correlation cannot be corrected for noise: none of their bins holds two repeats.

    `normalized_corrcoef` and `ScoreTracker` give their raw correlation.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        Single repeats, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).

    Returns
    -------
    Tensor of bool, shape (N,)
        True for such a neuron; also for one without any data.

    Raises
    ------
    ValueError
        When the shape is wrong.
    TypeError
        When ``mask`` is not bool.

    Examples
    --------
    >>> import torch
    >>> responses = torch.rand(1, 2, 3, 5)
    >>> responses[:, 1, 1:] = torch.nan
    >>> single_repeat_neurons(responses)
    tensor([False,  True])
    """
    check_responses(responses, mask)
    valid = valid_samples(responses, mask)
    if valid is None:
        return torch.full((responses.shape[1],), responses.shape[2] < 2, device=responses.device)
    return (valid.sum(2) < 2).all(-1).all(0)
