"""Training losses: differentiable, blind to what was not recorded, and free of host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._loss_parts import (
    RATE_FLOOR,
    accepts_psth,
    at_least_float32,
    check_rates,
    checked_target,
    keep_valid,
    mean_over_bins,
)
from ._validation import check_eps

__all__ = ["mse_loss", "poisson_loss"]


@accepts_psth
def mse_loss(
    pred: Tensor,
    gt: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    weighting: str = "bins",
) -> Tensor:
    """Mean squared error between a prediction and the PSTH.

    Per neuron the mean of ``(pred - psth)**2`` over the bins that count, then the reduction over neurons.
    Neurons without any data in this batch are left out. The gradient is exactly zero at bins that don't
    count.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates, in the unit of the responses (spikes per bin).
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        A PSTH, or single repeats to be averaged; NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T). Replaces the rule "not NaN".
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis; "none" returns shape (N,).
    weighting : {"bins", "repeats"}
        "bins": every bin weighs the same. "repeats": every bin weighs as many repeats as were averaged in it,
        which makes the loss, up to a constant, the likelihood of the single repeats.

    Returns
    -------
    Tensor, shape () or (N,)
        The loss; NaN for a neuron without data, and for the mean when no neuron has data.

    Raises
    ------
    ValueError
        When shapes disagree, or ``reduction`` or ``weighting`` is unknown.
    TypeError
        When ``mask`` is not bool.

    Examples
    --------
    >>> import torch
    >>> responses = torch.tensor([[[[1.0, 3.0], [3.0, torch.nan]]]])
    >>> mse_loss(torch.zeros(1, 1, 1, 2), responses)
    tensor(6.5000)
    >>> mse_loss(torch.zeros(1, 1, 1, 2), responses, weighting="repeats")
    tensor(5.6667)
    """
    target = checked_target(pred, gt, mask, reduction, weighting)
    if target.valid is None and target.repeats is None and reduction == "mean":
        return torch.nn.functional.mse_loss(at_least_float32(pred), target.psth)  # one fused kernel
    error = keep_valid(at_least_float32(pred) - target.psth, target)
    return mean_over_bins(error * error, target, weighting, reduction)


@accepts_psth
def poisson_loss(
    pred: Tensor,
    gt: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    log_input: bool = False,
    validate_input: bool = False,
    eps: float = RATE_FLOOR,
    weighting: str = "bins",
) -> Tensor:
    """Poisson negative log-likelihood, without the term that does not depend on the prediction.

    ``log_input=False``: mean of ``rate - y * log(max(rate, eps))``, for models with non-negative output.
    ``log_input=True``: mean of ``exp(eta) - y * eta``, for models that predict the log rate ``eta``. Both are
    linear in ``y``, so a PSTH gives the same value as its repeats.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates (spikes per bin), or log rates with ``log_input=True``.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        Spike counts per bin, or their PSTH; NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T). Replaces the rule "not NaN".
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis; "none" returns shape (N,).
    log_input : bool
        Whether ``pred`` holds log rates.
    validate_input : bool
        Whether to look for negative rates at bins that count (costs a synchronisation on a GPU).
    eps : float
        Smallest rate inside the logarithm, in spikes per bin.
    weighting : {"bins", "repeats"}
        Whether a bin weighs 1 or the number of repeats averaged in it (the likelihood of the single repeats).

    Returns
    -------
    Tensor, shape () or (N,)
        The loss in nats per bin.

    Raises
    ------
    ValueError
        When shapes disagree, an option is unknown, or ``validate_input`` finds negative values.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    McCullagh and Nelder (1989), Generalized Linear Models, 10.1007/978-1-4899-3242-6.

    Examples
    --------
    >>> import torch
    >>> counts = torch.tensor([[[[0.0, 2.0]]]])
    >>> rate = torch.tensor([[[[1.0, 2.0]]]])
    >>> poisson_loss(rate, counts)
    tensor(0.8069)
    >>> torch.isclose(poisson_loss(rate.log(), counts, log_input=True), poisson_loss(rate, counts))
    tensor(True)
    """
    check_eps(eps)
    target = checked_target(pred, gt, mask, reduction, weighting)
    counts = keep_valid(target.psth, target)
    if log_input:
        log_rate = keep_valid(at_least_float32(pred), target)  # before exp, which may overflow where masked
        elementwise = keep_valid(log_rate.exp() - counts * log_rate, target)
        return mean_over_bins(elementwise, target, weighting, reduction)
    if validate_input:
        check_rates(pred, target)
    rate = keep_valid(at_least_float32(pred), target)
    # threshold is clamp(min=eps) with a faster gradient; it hides NaN, which the first term shows
    elementwise = rate - counts * torch.nn.functional.threshold(rate, eps, eps).log()
    return mean_over_bins(elementwise, target, weighting, reduction)
