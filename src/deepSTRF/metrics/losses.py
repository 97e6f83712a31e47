"""Training losses: squared error and the likelihoods of counts and of positive continuous responses.

All share one target (the PSTH), one treatment of missing bins (they get a gradient of exactly zero) and one
average: over the bins that count per neuron, then over neurons. They are differentiable and need no
synchronisation with a GPU. ``@LOSSES.register(name)`` makes a loss available to ``loss=name`` of a fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from deepSTRF._validation import check_choice, checked
from deepSTRF.metrics._statistics import Target, check_pair, resolve_target, valid_samples
from deepSTRF.registry import LOSSES

__all__ = ["gamma_loss", "mse_loss", "negative_binomial_loss", "poisson_loss"]

LossFunction = TypeVar("LossFunction", bound=Callable[..., Tensor])

WEIGHTINGS = ("bins", "repeats")
TIME_AND_BATCH = (0, 2, 3)
RATE_FLOOR = 1e-8  # spikes per bin; one spike in 100 million bins, below any rate a recording can resolve
#: In units of the response; below the resolution of calcium or rate signals scaled to about 1.
RESPONSE_FLOOR = 1e-3


def training_loss(
    prediction: str, response: str, *, unit_degree: int
) -> Callable[[LossFunction], LossFunction]:
    """Mark a loss: the ranges that it needs, and that a PSTH computed beforehand gives the same value.

    ``prediction_domain`` and ``response_domain`` are "real", "non-negative" or "positive". They hold for
    default arguments: with ``log_input=True`` predictions may be any number. "positive" responses may be 0
    where the loss says what becomes of zeros. ``unit_degree`` is the power of the responses' unit with which
    the loss grows.
    """

    def mark(loss: LossFunction) -> LossFunction:
        loss.accepts_psth = True  # type: ignore[attr-defined]
        loss.prediction_domain, loss.response_domain = prediction, response  # type: ignore[attr-defined]
        loss.unit_degree = unit_degree  # type: ignore[attr-defined]
        return loss

    return mark


@LOSSES.register("mse")
@training_loss("real", "real", unit_degree=2)
@checked
def mse_loss(
    pred: Tensor, gt: Tensor, mask: Tensor | None = None, reduction: str = "mean", weighting: str = "bins"
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
    target = _target(pred, gt, mask, reduction, weighting)
    if target.valid is None and target.repeats is None and reduction == "mean":
        return torch.nn.functional.mse_loss(_at_least_float32(pred), target.psth)  # one fused kernel
    error = _keep_valid(_at_least_float32(pred) - target.psth, target)
    return _mean_over_bins(error * error, target, weighting, reduction)


@LOSSES.register("poisson")
@training_loss("non-negative", "non-negative", unit_degree=1)
@checked
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
        Whether to look for negative rates and responses at bins that count (costs a synchronisation on a
        GPU).
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
    _check_eps(eps)
    target = _target(pred, gt, mask, reduction, weighting)
    if validate_input:
        _check_signs(pred, gt, mask, target, log_input)
    counts = _keep_valid(target.psth, target)
    if log_input:
        log_rate = _keep_valid(_at_least_float32(pred), target)  # before exp, which may overflow where masked
        elementwise = _keep_valid(log_rate.exp() - counts * log_rate, target)
        return _mean_over_bins(elementwise, target, weighting, reduction)
    rate = _keep_valid(_at_least_float32(pred), target)
    # threshold is clamp(min=eps) with a faster gradient; it hides NaN, which the first term shows
    elementwise = rate - counts * torch.nn.functional.threshold(rate, eps, eps).log()
    return _mean_over_bins(elementwise, target, weighting, reduction)


@LOSSES.register("negative_binomial")
@training_loss("non-negative", "non-negative", unit_degree=1)
@checked
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
        Whether to look for negative means and responses at bins that count (costs a synchronisation on a
        GPU).
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
    _check_eps(eps)
    target = _target(pred, gt, mask, reduction, weighting)
    _check_parameter("dispersion", dispersion, pred.shape[1], full)
    if validate_input:
        _check_signs(pred, gt, mask, target, log_input)
    counts = _keep_valid(target.psth, target)
    signal = _at_least_float32(pred)
    alpha = _per_neuron(dispersion, signal)
    if log_input:
        log_mean = _keep_valid(signal, target)
        growth = torch.nn.functional.softplus(log_mean + alpha.log())  # log1p(alpha * mu) without overflow
    else:
        mean = _keep_valid(signal, target, fill=1.0).clamp(min=eps)
        log_mean = mean.log()
        growth = torch.log1p(alpha * mean)
    elementwise = _keep_valid((counts + 1 / alpha) * growth - counts * log_mean, target)
    if full:
        single = torch.nan_to_num(gt).to(elementwise.dtype)
        constant = (
            (1 / alpha).lgamma()
            - (single + 1 / alpha).lgamma()
            + (single + 1).lgamma()
            - single * alpha.log()
        )
        elementwise = elementwise + _mean_over_repeats(constant, gt, mask, target)
    return _mean_over_bins(elementwise, target, weighting, reduction)


@LOSSES.register("gamma")
@training_loss("positive", "positive", unit_degree=0)
@checked
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
        Whether to look for negative means and responses at bins that count (costs a synchronisation on a
        GPU).
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
    _check_eps(eps)
    check_choice("zeros", zeros, ("floor", "exclude"))
    target = _target(pred, gt, mask, reduction, weighting)
    _check_parameter("shape", shape, pred.shape[1], full)
    if validate_input:
        _check_signs(pred, gt, mask, target, log_input)
    if zeros == "exclude":
        positive = ~(target.psth <= 0)  # keeps NaN that a mask calls valid, so that it shows
        target = target._replace(valid=positive if target.valid is None else target.valid & positive)
    signal = _at_least_float32(pred)
    k = _per_neuron(shape, signal)
    response = _keep_valid(target.psth, target, fill=1.0).clamp(min=eps)
    if log_input:
        log_mean = _keep_valid(signal, target)
        ratio = response * (-log_mean).exp()
    else:
        mean = _keep_valid(signal, target, fill=1.0).clamp(min=eps)
        log_mean = mean.log()
        ratio = response / mean
    elementwise = _keep_valid(k * (ratio + log_mean), target)
    if full:
        single = torch.nan_to_num(gt).to(elementwise.dtype).clamp(min=eps)
        constant = k.lgamma() - k * k.log() - (k - 1) * single.log()
        elementwise = elementwise + _mean_over_repeats(constant, gt, mask, target)
    return _mean_over_bins(elementwise, target, weighting, reduction)


# ---- What the losses share: target, missing bins, average, checks


def _target(pred: Tensor, gt: Tensor, mask: Tensor | None, reduction: str, weighting: str) -> Target:
    """Check the arguments that every loss takes and average ``gt`` to its PSTH."""
    check_pair(pred, gt, mask, reduction)
    check_choice("weighting", weighting, WEIGHTINGS)
    return resolve_target(gt, mask, count_repeats=weighting == "repeats")


def _at_least_float32(pred: Tensor) -> Tensor:
    """Raise half precision to float32 (sums over a thousand bins need it); leave the rest."""
    return pred.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred


def _keep_valid(values: Tensor, target: Target, fill: float = 0.0) -> Tensor:
    """Replace what does not count by ``fill``; gradients there become exactly zero."""
    if target.valid is None:
        return values
    return torch.where(target.valid, values, torch.full((), fill, dtype=values.dtype, device=values.device))


def _mean_over_bins(elementwise: Tensor, target: Target, weighting: str, reduction: str) -> Tensor:
    """Average (B, N, 1, T) values, zero where they don't count, per neuron and then over neurons."""
    if target.valid is None and target.repeats is None:  # nothing is missing
        if reduction == "mean":
            return elementwise.mean()
        per_neuron = elementwise.mean(TIME_AND_BATCH)
        return _reduce(per_neuron, torch.ones_like(per_neuron, dtype=torch.bool), reduction)
    if weighting == "repeats" and target.repeats is not None:
        weights = _keep_valid(target.repeats.to(elementwise.dtype), target)
        elementwise = elementwise * weights
        weight = weights.sum(TIME_AND_BATCH)
    else:
        valid = torch.ones_like(elementwise, dtype=torch.bool) if target.valid is None else target.valid
        weight = valid.sum(TIME_AND_BATCH).to(elementwise.dtype)
    has_data = weight > 0
    per_neuron = elementwise.sum(TIME_AND_BATCH) / torch.where(has_data, weight, torch.ones_like(weight))
    return _reduce(per_neuron, has_data, reduction)


def _reduce(losses: Tensor, has_data: Tensor, reduction: str) -> Tensor:
    """Summarise (N,) losses over the neurons with data, keeping a NaN of those: divergence must show.

    The gradient towards a neuron without data is exactly zero.
    """
    if reduction in ("none", "median"):
        known = torch.where(has_data, losses, torch.full_like(losses, torch.nan))
        return known if reduction == "none" else torch.nanquantile(known, 0.5)
    total = torch.where(has_data, losses, torch.zeros_like(losses)).sum()
    return total if reduction == "sum" else total / has_data.sum()


def _mean_over_repeats(values: Tensor, gt: Tensor, mask: Tensor | None, target: Target) -> Tensor:
    """Average a function of single repeats over the repeats that count: (B, N, R, T) to (B, N, 1, T)."""
    valid = valid_samples(gt, mask)
    if valid is None:
        return _keep_valid(values.mean(2, keepdim=True), target)
    total = torch.where(valid, values, torch.zeros_like(values)).sum(2, keepdim=True)
    return _keep_valid(total / valid.sum(2, keepdim=True).clamp(min=1), target)


def _per_neuron(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a parameter as a (1, N or 1, 1, 1) tensor beside ``like``."""
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return tensor.reshape(1, -1, 1, 1)


def _check_eps(eps: float) -> None:
    """Raise ValueError unless the rate floor is positive."""
    if not eps > 0:
        raise ValueError(f"eps is a rate > 0 (spikes per bin), got {eps!r}; the default is 1e-8")


def _check_signs(pred: Tensor, gt: Tensor, mask: Tensor | None, target: Target, log_input: bool) -> None:
    """Raise ValueError when a response, or a prediction that is no logarithm, is negative where it counts."""
    if not log_input and bool((_keep_valid(pred.detach(), target) < 0).any()):
        raise ValueError(
            "pred holds negative values where the loss counts, and a rate cannot be negative; end the model "
            "in a non-negative activation (softplus), or let it predict log rates and pass log_input=True"
        )
    valid = valid_samples(gt, mask)
    if bool((gt < 0).any() if valid is None else ((gt < 0) & valid).any()):
        raise ValueError(
            "gt holds negative values where the loss counts, and this likelihood has none for negative "
            "responses: use mse_loss for traces such as LFP, dF/F or z-scores"
        )


def _check_parameter(name: str, value: float | Tensor, n_neurons: int, full: bool) -> None:
    """Raise unless a dispersion or shape is positive, scalar or (N,), and used with ``full`` if learned."""
    if not isinstance(value, Tensor):
        if not value > 0:
            raise ValueError(f"{name} is a number > 0, got {value!r}")
        return
    if value.numel() != 1 and tuple(value.shape) != (n_neurons,):
        raise ValueError(
            f"{name} is a scalar or has shape (N,) = ({n_neurons},), got shape {tuple(value.shape)}"
        )
    if value.requires_grad and not full:
        raise ValueError(
            f"{name} requires a gradient, but without full=True the loss leaves out terms that depend on it; "
            "pass full=True together with single repeats"
        )
    if not torch.compiler.is_compiling() and value.device.type == "cpu" and not bool((value > 0).all()):
        raise ValueError(f"{name} is > 0 for every neuron; map a free parameter through softplus or exp")
