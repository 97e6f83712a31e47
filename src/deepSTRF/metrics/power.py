"""How much of a response is stimulus-driven: signal power, noise power, their ratio."""

from __future__ import annotations

from torch import Tensor

from ._reduction import reduce_neurons
from ._totals import repeat_totals, signal_to_noise
from ._validation import check_centring, check_mask, check_reduction, check_responses

__all__ = ["noise_power", "signal_power", "snr"]


def _checked(responses: Tensor, mask: Tensor | None, reduction: str, centring: str) -> None:
    check_responses(responses)
    check_mask(mask, responses)
    check_reduction(reduction)
    check_centring(centring)


def signal_power(
    responses: Tensor, mask: Tensor | None = None, reduction: str = "mean", *, centring: str = "clip"
) -> Tensor:
    """Variance of the stimulus-driven part of a response: the mean covariance over pairs of distinct repeats.

    Unbiased, so it may come out negative for a neuron that does not respond. Repeats that were recorded in
    different bins are compared on their common bins. Clips with a single repeat have no say.

    Parameters
    ----------
    responses : Tensor, shape (B, N, R, T)
        One clip per batch entry, NaN where nothing was recorded. Smoothing the repeats beforehand lowers the
        noise power and leaves the signal power about as it was: say which was used.
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
    _checked(responses, mask, reduction, centring)
    return reduce_neurons(repeat_totals(responses, mask).powers(centring)[0], reduction)


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
    _checked(responses, mask, reduction, centring)
    return reduce_neurons(repeat_totals(responses, mask).powers(centring)[1], reduction)


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
    _checked(responses, mask, reduction, centring)
    return reduce_neurons(signal_to_noise(*repeat_totals(responses, mask).powers(centring)), reduction)
