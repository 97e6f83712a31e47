"""Likelihoods for responses that are not Poisson: over-dispersed counts, and positive continuous signals."""

from __future__ import annotations

import torch
from torch import Tensor

from ._loss_parts import (
    RATE_FLOOR,
    accepts_psth,
    at_least_float32,
    check_parameter,
    check_rates,
    checked_target,
    keep_valid,
    mean_over_bins,
    mean_over_repeats,
    per_neuron,
)
from ._validation import check_choice, check_eps

__all__ = ["gamma_loss", "negative_binomial_loss"]

RESPONSE_FLOOR = (
    1e-3  # in units of the response; below the resolution of calcium or rate signals scaled to about 1
)


@accepts_psth
def negative_binomial_loss(
    pred: Tensor,
    gt: Tensor,
    dispersion: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    log_input: bool = False,
    validate_input: bool = False,
    eps: float = RATE_FLOOR,
    weighting: str = "bins",
    full: bool = False,
) -> Tensor:
    """Negative binomial negative log-likelihood, for counts that vary more than Poisson.

    Mean ``mu`` and dispersion ``alpha`` (NB2: variance ``mu + alpha * mu**2``, SciPy's ``nbinom`` with
    ``n = 1 / alpha`` and ``p = 1 / (1 + alpha * mu)``). Per bin ``(y + 1/alpha) * log1p(alpha * mu) - y *
    log(mu)``; it tends to the Poisson loss as ``alpha`` goes to 0.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted mean counts per bin, or their logarithm with ``log_input=True``.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        Counts per bin or, with ``full=False``, their PSTH; NaN where nothing was recorded.
    dispersion : float or Tensor of shape () or (N,)
        ``alpha`` > 0, shared or one per neuron. To learn it, pass a positive tensor and ``full=True``.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T). Replaces the rule "not NaN".
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis; "none" returns shape (N,).
    log_input : bool
        Whether ``pred`` holds log means.
    validate_input : bool
        Whether to look for negative means at bins that count (costs a synchronisation on a GPU).
    eps : float
        Smallest mean inside the logarithm, in counts per bin.
    weighting : {"bins", "repeats"}
        Whether a bin weighs 1 or the number of repeats averaged in it.
    full : bool
        Whether to add the terms that depend on ``y`` and ``alpha`` alone. They are not linear in ``y``, so
        single repeats are then needed and a PSTH gives another value.

    Returns
    -------
    Tensor, shape () or (N,)
        The loss in nats per bin.

    Raises
    ------
    ValueError
        When shapes disagree, an option is unknown, ``dispersion`` is not positive or is learned without
        ``full``, or ``validate_input`` finds negative values.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Hilbe (2011), Negative Binomial Regression, 10.1017/CBO9780511973420.

    Examples
    --------
    >>> import torch
    >>> counts = torch.tensor([[[[0.0, 2.0]]]])
    >>> negative_binomial_loss(torch.ones(1, 1, 1, 2), counts, dispersion=0.5)
    tensor(1.2164)
    """
    check_eps(eps)
    target = checked_target(pred, gt, mask, reduction, weighting)
    check_parameter("dispersion", dispersion, pred.shape[1], full)
    counts = keep_valid(target.psth, target)
    signal = at_least_float32(pred)
    alpha = per_neuron(dispersion, signal)
    if log_input:
        log_mean = keep_valid(signal, target)
        growth = torch.nn.functional.softplus(log_mean + alpha.log())  # log1p(alpha * mu) without overflow
    else:
        if validate_input:
            check_rates(pred, target)
        mean = keep_valid(signal, target, fill=1.0).clamp(min=eps)
        log_mean = mean.log()
        growth = torch.log1p(alpha * mean)
    elementwise = keep_valid((counts + 1 / alpha) * growth - counts * log_mean, target)
    if full:
        single = torch.nan_to_num(gt).to(elementwise.dtype)
        constant = (
            (1 / alpha).lgamma()
            - (single + 1 / alpha).lgamma()
            + (single + 1).lgamma()
            - single * alpha.log()
        )
        elementwise = elementwise + mean_over_repeats(constant, gt, mask, target)
    return mean_over_bins(elementwise, target, weighting, reduction)


@accepts_psth
def gamma_loss(
    pred: Tensor,
    gt: Tensor,
    shape: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    log_input: bool = False,
    validate_input: bool = False,
    eps: float = RESPONSE_FLOOR,
    weighting: str = "bins",
    full: bool = False,
    zeros: str = "floor",
) -> Tensor:
    """Gamma negative log-likelihood, for positive continuous responses whose noise grows with their size.

    Mean ``mu`` and shape ``k`` (variance ``mu**2 / k``, SciPy's ``gamma`` with ``a = k`` and ``scale = mu /
    k``; the dispersion of a generalised linear model is ``1 / k``). Per bin ``k * (y / mu + log(mu))``. The
    density has no finite value at 0, so zeros (and negative values) are either raised to ``eps`` or left out.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted means, in the unit of the responses, or their logarithm with ``log_input=True``.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        Positive responses (calcium, rates), or with ``full=False`` their PSTH; NaN where nothing was
        recorded.
    shape : float or Tensor of shape () or (N,)
        ``k`` > 0, shared or one per neuron. To learn it, pass a positive tensor and ``full=True``.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T). Replaces the rule "not NaN".
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis; "none" returns shape (N,).
    log_input : bool
        Whether ``pred`` holds log means.
    validate_input : bool
        Whether to look for negative means at bins that count (costs a synchronisation on a GPU).
    eps : float
        Smallest mean, and with ``zeros="floor"`` smallest response, in the unit of the responses.
    weighting : {"bins", "repeats"}
        Whether a bin weighs 1 or the number of repeats averaged in it.
    full : bool
        Whether to add the terms that depend on ``y`` and ``k`` alone; needs single repeats, as they are not
        linear in ``y``.
    zeros : {"floor", "exclude"}
        "floor": responses below ``eps`` count as ``eps``. "exclude": bins whose (mean) response is not
        positive don't count, as in a zero-inflated model whose zeros are fitted elsewhere.

    Returns
    -------
    Tensor, shape () or (N,)
        The loss in nats per bin.

    Raises
    ------
    ValueError
        When shapes disagree, an option is unknown, ``shape`` is not positive or is learned without ``full``,
        or ``validate_input`` finds negative values.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    McCullagh and Nelder (1989), Generalized Linear Models, 10.1007/978-1-4899-3242-6.

    Examples
    --------
    >>> import torch
    >>> signal = torch.tensor([[[[0.0, 2.0]]]])
    >>> gamma_loss(torch.ones(1, 1, 1, 2), signal)
    tensor(1.0005)
    >>> gamma_loss(torch.ones(1, 1, 1, 2), signal, zeros="exclude")
    tensor(2.)
    """
    check_eps(eps)
    check_choice("zeros", zeros, ("floor", "exclude"))
    target = checked_target(pred, gt, mask, reduction, weighting)
    check_parameter("shape", shape, pred.shape[1], full)
    if zeros == "exclude":
        positive = ~(target.psth <= 0)  # keeps NaN that a mask calls valid, so that it shows
        target = target._replace(valid=positive if target.valid is None else target.valid & positive)
    signal = at_least_float32(pred)
    k = per_neuron(shape, signal)
    response = keep_valid(target.psth, target, fill=1.0).clamp(min=eps)
    if log_input:
        log_mean = keep_valid(signal, target)
        ratio = response * (-log_mean).exp()
    else:
        if validate_input:
            check_rates(pred, target)
        mean = keep_valid(signal, target, fill=1.0).clamp(min=eps)
        log_mean = mean.log()
        ratio = response / mean
    elementwise = keep_valid(k * (ratio + log_mean), target)
    if full:
        single = torch.nan_to_num(gt).to(elementwise.dtype).clamp(min=eps)
        constant = k.lgamma() - k * k.log() - (k - 1) * single.log()
        elementwise = elementwise + mean_over_repeats(constant, gt, mask, target)
    return mean_over_bins(elementwise, target, weighting, reduction)
