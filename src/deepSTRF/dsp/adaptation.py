"""Adaptation to the recent level: a leaky mean that starts at the first frame, and its time constants."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.dsp.recursion import first_order_recursion
from deepSTRF.dsp.scales import Frequencies, _apply

__all__ = ["TAU_DOMAIN_HZ", "a_to_tau", "freq_to_tau", "leaky_mean", "leaky_mean_state", "tau_to_a"]

# Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016: time constant in ms against log10 of the frequency
_TAU_AT_1_HZ, _TAU_SLOPE = 500.0, 105.0
#: Frequencies for which `freq_to_tau` follows the published line, 363 to 17 ms; the line itself has no ends
#: and falls below zero at 57.8 kHz. A choice: from the lowest audible sounds to the top of a ferret's
#: hearing.
TAU_DOMAIN_HZ = (20.0, 40_000.0)


def freq_to_tau(frequency: Frequencies) -> Frequencies:
    """Return the time constant of adaptation at a frequency: ``500 - 105 log10(f)`` ms.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Hertz, above 0. Outside `TAU_DOMAIN_HZ` the time constant is that of the domain's nearer end, and a
        warning says so.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Milliseconds; same kind and shape as the input.

    Raises
    ------
    ValueError
        For a frequency that is not above 0.

    References
    ----------
    Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016.

    Examples
    --------
    >>> round(freq_to_tau(500.0), 2), round(freq_to_tau(20_000.0), 2)
    (216.61, 48.39)
    """
    low, high = TAU_DOMAIN_HZ
    values = np.asarray(_plain(frequency))
    if not bool((values > 0).all()):
        raise ValueError(f"frequency must be above 0 Hz, got {float(values.min())}")
    if values.size and (values.min() < low or values.max() > high):
        warnings.warn(
            f"time constants of adaptation are known between {low:g} and {high:g} Hz; frequencies from "
            f"{values.min():g} to {values.max():g} Hz were asked for, and those outside get the time "
            "constant of the nearer end",
            UserWarning,
            stacklevel=2,
        )
    return _apply(frequency, lambda f, xp: _TAU_AT_1_HZ - _TAU_SLOPE * xp.log10(xp.clip(f, low, high)))


def tau_to_a(tau: Frequencies, dt: float = 1.0) -> Frequencies:
    """Return what a leaky mean with time constant ``tau`` keeps of itself in one bin: ``exp(-dt / tau)``.

    Parameters
    ----------
    tau : float, numpy.ndarray or Tensor
        Time constant in ms.
    dt : float
        Bin width in ms.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Between 0 and 1; same kind and shape as ``tau``.

    Raises
    ------
    ValueError
        For a time constant that is not above 0.

    Examples
    --------
    >>> round(tau_to_a(216.61, dt=5.0), 5)
    0.97718
    """
    values = np.asarray(_plain(tau))
    if not bool((values > 0).all()):
        raise ValueError(f"tau must be above 0 ms, got {float(values.min()):g}")
    return _apply(tau, lambda t, xp: xp.exp(-dt / t))


def a_to_tau(a: Frequencies, dt: float = 1.0) -> Frequencies:
    """Return the time constant of a leaky mean that keeps ``a`` of itself in one bin: ``-dt / ln(a)``.

    Parameters
    ----------
    a : float, numpy.ndarray or Tensor
        Decay factor per bin, between 0 and 1.
    dt : float
        Bin width in ms.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Milliseconds; same kind and shape as ``a``.

    Raises
    ------
    ValueError
        For a factor that is not between 0 and 1.

    Examples
    --------
    >>> round(a_to_tau(tau_to_a(80.0, dt=5.0), dt=5.0), 9)
    80.0
    """
    values = np.asarray(_plain(a))
    if not bool(((values > 0) & (values < 1)).all()):
        raise ValueError(
            f"a must be above 0 and below 1, got {float(values.min()):g} to {float(values.max()):g}; "
            "tau_to_a(tau_ms, dt) gives decay factors"
        )
    return _apply(a, lambda factor, xp: -dt / xp.log(factor))


def leaky_mean_state(
    batch: int,
    shape: tuple[int, ...],
    mean_shape: tuple[int, ...] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Return the state of `leaky_mean` before the first frame.

    Parameters
    ----------
    batch : int
        Number of parallel streams, B.
    shape : tuple of int
        Shape of one frame of the input, without the batch.
    mean_shape : tuple of int, optional
        Shape of one frame of the mean where several coefficients meet one input; None is ``shape``.
    device, dtype : optional
        Where and how.

    Returns
    -------
    dict
        ``"origin"`` (B, *shape): the first frame; ``"mean"`` (B, *mean_shape): the mean as a deviation from
        it; ``"started"`` (B, 1, ...): whether there was a first frame.

    Examples
    --------
    >>> leaky_mean_state(2, (34,))["started"].shape
    torch.Size([2, 1])
    """
    return {
        "origin": torch.zeros(batch, *shape, device=device, dtype=dtype),
        "mean": torch.zeros(batch, *(mean_shape or shape), device=device, dtype=dtype),
        "started": torch.zeros(batch, *(1 for _ in shape), device=device, dtype=torch.bool),
    }


def leaky_mean(
    x: Tensor, coefficient: Tensor, weight: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Average along the last axis as if the first frame had lasted for ever before: ``m[-1] = x[0]``.

    ``m[t] = a m[t - 1] + (1 - a) x[t]``. This is the infinitely long exponential kernel over an input whose
    first frame is repeated to the left. Everything is returned as the deviation from that frame: a constant
    input then has a mean that is exact, and small changes on a large level keep their digits.

    Parameters
    ----------
    x : Tensor
        (B, ..., T), T at least 1.
    coefficient : Tensor
        ``a``, broadcast against ``x.shape[:-1]``.
    weight : Tensor
        ``1 - a``, given apart because a caller may know it to more digits.
    state : dict
        From `leaky_mean_state` or the previous chunk.

    Returns
    -------
    origin : Tensor
        (B, ..., 1) the first frame of the stream.
    deviation : Tensor
        (B, ..., T) ``x - origin``.
    mean : Tensor
        (B, ..., T + 1) ``m - origin``, from the value before the first frame of ``x`` to that of the last.
    state : dict
        To be handed to the next chunk.

    Examples
    --------
    >>> x, a = torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor(0.5)
    >>> origin, _, mean, _ = leaky_mean(x, a, 1 - a, leaky_mean_state(1, ()))
    >>> (origin + mean).tolist()
    [[1.0, 1.0, 2.0, 2.5]]
    """
    origin = torch.where(state["started"], state["origin"], x[..., 0]).unsqueeze(-1)
    deviation = x - origin
    after, last = first_order_recursion(weight.unsqueeze(-1) * deviation, coefficient, state["mean"])
    mean = torch.cat([state["mean"].unsqueeze(-1), after], dim=-1)
    following = {"origin": origin[..., 0], "mean": last, "started": torch.ones_like(state["started"])}
    return origin, deviation, mean, following


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
