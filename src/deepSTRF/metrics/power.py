"""Signal power, noise power, and scores relative to what can be explained.

With y_r the repeats of a clip (Sahani and Linden 2003, NIPS 15)::

    SP = mean over pairs r != s of Cov(y_r, y_s)         NP = mean over pairs of Var(y_r - y_s) / 2
    snr = SP / NP        fev = SP / (SP + NP)            feve = fve / (SP / Var(psth))
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.metrics._statistics import (
    PairMoments,
    PooledPowers,
    accumulator_dtype,
    check_centring,
    check_pair,
    check_responses,
    keep_where,
    pooled_moments,
    reduce_neurons,
    row_blocks,
    signal_to_noise,
    valid_samples,
)

__all__ = ["fev", "feve", "noise_power", "oracle", "signal_power", "snr"]


def _powers(responses: Tensor, mask: Tensor | None, reduction: str, centring: str) -> tuple[Tensor, Tensor]:
    """Signal and noise power (N,) of checked arguments."""
    check_responses(responses, mask, reduction)
    check_centring(centring)
    return PooledPowers.of_responses(responses, mask).powers(centring)


@checked
def signal_power(
    responses: Tensor, mask: Tensor | None = None, reduction: str = "mean", *, centring: str = "clip"
) -> Tensor:
    """Variance of the stimulus-driven part of a response: the mean covariance over pairs of distinct repeats.

    Unbiased, so it may come out negative for a neuron that does not respond. Repeats that were recorded in
    different bins are compared on their common bins. Clips with a single repeat do not enter.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        One clip per batch entry, NaN where nothing was recorded. Smoothing the repeats beforehand lowers the
        noise power and leaves the signal power about as it was: state which was used.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).
    centring : {"clip", "concat"}
        "clip" (Sahani and Linden): variance around each clip's own mean, clips weigh as their bins. "concat":
        on the concatenated clips, so that differences between clip means count as signal.

    Returns
    -------
    Tensor, shape () or (N,)
        Signal power in squared units of the responses; NaN without a clip of two repeats.

    Raises
    ------
    ValueError
        When the shape is wrong, or ``reduction`` or ``centring`` is unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Sahani and Linden (2003), How linear are auditory cortical responses?, NIPS 15.
    Schoppe et al. (2016), 10.3389/fncom.2016.00010.

    Examples
    --------
    >>> import torch
    >>> signal = torch.tensor([0.0, 2.0, 0.0, 2.0])
    >>> noise = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])
    >>> signal_power(torch.stack([signal, signal]).reshape(1, 1, 2, 4))
    tensor(1.3333, dtype=torch.float64)
    """
    signal, _ = _powers(responses, mask, reduction, centring)
    return reduce_neurons(signal, reduction)


@checked
def noise_power(
    responses: Tensor, mask: Tensor | None = None, reduction: str = "mean", *, centring: str = "clip"
) -> Tensor:
    """Variance of the part of a single repeat that other repeats don't share.

    Half the variance of the difference of two distinct repeats on their common bins, averaged over pairs;
    equal to the total power minus the signal power. Never negative, exactly 0 when repeats are identical.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        One clip per batch entry, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).
    centring : {"clip", "concat"}
        As in `signal_power`.

    Returns
    -------
    Tensor, shape () or (N,)
        Noise power in squared units of the responses; NaN without a clip of two repeats.

    Raises
    ------
    ValueError
        When the shape is wrong, or ``reduction`` or ``centring`` is unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Sahani and Linden (2003), How linear are auditory cortical responses?, NIPS 15.

    Examples
    --------
    >>> import torch
    >>> repeats = torch.tensor([[1.0, 3.0, -1.0, 1.0], [-1.0, 1.0, 1.0, 3.0]])
    >>> noise_power(repeats.reshape(1, 1, 2, 4))
    tensor(2.6667, dtype=torch.float64)
    """
    _, noise = _powers(responses, mask, reduction, centring)
    return reduce_neurons(noise, reduction)


@checked
def snr(
    responses: Tensor, mask: Tensor | None = None, reduction: str = "mean", *, centring: str = "clip"
) -> Tensor:
    """Signal-to-noise ratio of a single repeat: signal power over noise power.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        One clip per batch entry, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).
    centring : {"clip", "concat"}
        As in `signal_power`.

    Returns
    -------
    Tensor, shape () or (N,)
        The ratio; +inf when repeats are identical, NaN for a silent neuron or one without two repeats.

    Raises
    ------
    ValueError
        When the shape is wrong, or ``reduction`` or ``centring`` is unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Sahani and Linden (2003), How linear are auditory cortical responses?, NIPS 15.

    Examples
    --------
    >>> import torch
    >>> snr(torch.tensor([0.0, 1.0, 0.0, 2.0]).expand(1, 1, 3, 4))
    tensor(inf, dtype=torch.float64)
    """
    return reduce_neurons(signal_to_noise(*_powers(responses, mask, reduction, centring)), reduction)


@checked
def fev(
    responses: Tensor, mask: Tensor | None = None, reduction: str = "mean", *, centring: str = "clip"
) -> Tensor:
    """Fraction of the variance of a single repeat that a model of the stimulus could explain.

    ``SP / (SP + NP)``, the signal-to-noise ratio on a scale from 0 to 1.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        One clip per batch entry, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).
    centring : {"clip", "concat"}
        As in `signal_power`.

    Returns
    -------
    Tensor, shape () or (N,)
        At most 1; may come out negative for an unreliable neuron; NaN for a silent one or without two
        repeats.

    Raises
    ------
    ValueError
        When the shape is wrong, or ``reduction`` or ``centring`` is unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Cadena et al. (2019), 10.1371/journal.pcbi.1006897.

    Examples
    --------
    >>> import torch
    >>> fev(torch.tensor([0.0, 1.0, 0.0, 2.0]).expand(1, 1, 3, 4))
    tensor(1., dtype=torch.float64)
    """
    signal, noise = _powers(responses, mask, reduction, centring)
    total = signal + noise
    known = (total > 0) & ~torch.isnan(signal_to_noise(signal, noise))
    return reduce_neurons(keep_where(known, signal / torch.where(known, total, 1.0)), reduction)


@checked
def feve(pred: Tensor, responses: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Fraction of the explainable variance that a prediction explains.

    `fve` divided by the share of signal in the variance of the PSTH: the noise left in the PSTH counts
    neither as error nor as something to explain. On the concatenated clips, over the bins with two repeats or
    more.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates, in the unit of the responses.
    responses : Tensor, shape (B, N, R, T)
        Single repeats, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).

    Returns
    -------
    Tensor, shape () or (N,)
        1 for a perfect prediction up to sampling error; NaN without two repeats or without positive signal
        power.

    Raises
    ------
    ValueError
        When shapes disagree or ``reduction`` is unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Cadena et al. (2019), 10.1371/journal.pcbi.1006897.

    Examples
    --------
    >>> import torch
    >>> rate = torch.tensor([0.0, 1.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    >>> round(feve(rate, rate.expand(1, 1, 3, 4)).item(), 6)
    1.0
    """
    check_pair(pred, responses, mask, reduction, "responses")
    valid = valid_samples(responses, mask)
    share = PooledPowers.of_responses(responses, valid).ceiling("concat").square()
    repeated = None if valid is None else valid & (valid.sum(2, keepdim=True) > 1)
    moments, error = pooled_moments(pred, responses, repeated)
    return reduce_neurons(moments.explained_variance(error) / share, reduction)


@checked
def oracle(responses: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Leave-one-repeat-out oracle: how well the other repeats predict a repeat.

    The correlation between every repeat and the mean of the others, all repeats, bins and clips taken as one
    long series. A model can beat it when there are few repeats: the mean of the others is noisy.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        Single repeats, NaN where nothing was recorded.
    mask : Tensor of bool, optional
        True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).

    Returns
    -------
    Tensor, shape () or (N,)
        Correlation in [-1, 1]; NaN without two repeats or for a silent neuron.

    Raises
    ------
    ValueError
        When the shape is wrong or ``reduction`` is unknown.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Walker et al. (2019), 10.1038/s41593-019-0517-x.

    Examples
    --------
    >>> import torch
    >>> round(oracle(torch.tensor([0.0, 1.0, 0.0, 2.0]).expand(1, 1, 3, 4)).item(), 6)
    1.0
    """
    check_responses(responses, mask, reduction)
    valid = valid_samples(responses, mask)
    rows = responses.detach().flatten(0, 1)
    row_mask = None if valid is None else valid.flatten(0, 1)
    first, *others = (
        _left_out(rows[piece], None if row_mask is None else row_mask[piece]) for piece in row_blocks(rows)
    )
    moments = first.map(lambda *values: torch.cat(values), *others).unflatten(*responses.shape[:2])
    return reduce_neurons(moments.pool(0).correlation(), reduction)


def _left_out(responses: Tensor, valid: Tensor | None) -> PairMoments:
    """Moments (K,) of every repeat against the mean of the others, for a block of (K, R, T) rows."""
    values = responses.to(accumulator_dtype(responses.device))
    if valid is None:
        number = torch.tensor(values.shape[1] - 1, dtype=values.dtype, device=values.device)
        repeated = None if values.shape[1] > 1 else torch.zeros_like(values, dtype=torch.bool)
    else:
        values = torch.where(valid, values, torch.zeros((), dtype=values.dtype, device=values.device))
        number = valid.sum(1, keepdim=True).to(values.dtype) - 1
        repeated = valid & (number > 0)
    others = (values.sum(1, keepdim=True) - values) / number.clamp(min=1)
    return PairMoments.of(
        values.flatten(1), others.flatten(1), None if repeated is None else repeated.flatten(1)
    )
