"""Dynamic STRFs that several fits of one model agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF.interpret.dynamic.estimate import BUDGET, as_sink, dstrf, time_indices
from deepSTRF.interpret.dynamic.sinks import Sink

__all__ = ["JackknifedSTRF", "jackknife_error", "jackknifed_dstrf", "sign_consistent"]


@dataclass(frozen=True)
class JackknifedSTRF:
    """The mean dynamic STRF of several fits.

    Attributes
    ----------
    weights : Tensor (T, N, L, F), or what the sink made
        Mean filters; zero where fits disagree about the sign, when that was asked for.
    response : Tensor (T, N)
        Mean response of the fits, which the unmasked mean filters and the mean intercept reproduce.
    intercept : Tensor (T, N)
        Mean intercept and memory.
    kept : float
        Share of entries that fits agree on; 1 without a mask.
    times : Tensor (T,)
        Frame of each row.
    neurons : list of int
        Neuron of each column.
    lags : int
        Frames of the window, L.
    error : Tensor (T, N, L, F), or what its sink made
        Jackknife standard errors, when they were asked for, else None.

    Examples
    --------
    >>> one = torch.ones(2, 1)
    >>> JackknifedSTRF(one, one, one, 1.0, torch.arange(2), [0], 1).kept
    1.0
    """

    weights: Any
    response: Tensor
    intercept: Tensor
    kept: float
    times: Tensor
    neurons: list[int]
    lags: int
    error: Any = None

    def t_map(self) -> Tensor:
        """Return weights over standard errors (T, N, L, F): how many errors each entry is away from zero.

        Entries are 0 where the weight is 0, masked ones among them.

        Returns
        -------
        Tensor
            With J - 1 degrees of freedom, J being the number of fits.

        Raises
        ------
        TypeError
            When weights and errors are not both tensors in memory.
        """
        if not isinstance(self.weights, Tensor) or not isinstance(self.error, Tensor):
            raise TypeError(
                "a t-map needs weights and errors in memory: jackknifed_dstrf(..., error=ArraySink())"
            )
        return torch.where(self.weights == 0, 0.0, self.weights / self.error)


def jackknifed_dstrf(
    models: Sequence[nn.Module],
    stimulus: Tensor,
    *,
    agreement: float | None = None,
    lags: int | None = None,
    times: int | slice | Sequence[int] | None = None,
    sink: Sink | Sequence[Sink] | None = None,
    error: Sink | Sequence[Sink] | None = None,
    budget_bytes: int = BUDGET,
    **options: Any,
) -> JackknifedSTRF:
    """Return the mean dynamic STRF of several fits, without the entries whose sign they disagree about.

    All fits are taken through a few bins at a time, so memory does not grow with the clip.

    Parameters
    ----------
    models : sequence of nn.Module
        Fits of one model to different trials, or with different seeds.
    stimulus : Tensor
        One clip, as for `dstrf`.
    agreement : float, optional
        Quantile q, above 0.5 and at most 1: an entry becomes 0 where the q-quantile over fits is positive
        and the (1 - q)-quantile negative, so that it stays when about a fraction q of the fits share its
        sign. None keeps all.
    lags : int, optional
        Frames of each filter; None is what `dstrf` takes for the first fit.
    times : int, slice or sequence of int, optional
        Which frames; None is all.
    sink : Sink or sequence of Sink, optional
        Where the filters go; None is a tensor in memory.
    error : Sink or sequence of Sink, optional
        Where standard errors go, such as ``ArraySink()``; None computes none. See `jackknife_error`.
    budget_bytes : int
        Memory for the filters of all fits at once, and again for the work on each.
    **options
        For `dstrf`: ``neurons``, ``wrt``, ``before``, ``method``, ``path``, ``baseline``, ``check``.

    Returns
    -------
    JackknifedSTRF
        Mean filters and responses.

    Raises
    ------
    ValueError, TypeError
        For no models, an agreement out of range, or what `dstrf` raises.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445 (0.95 there).

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> fits = [Linear(n_frequency_bands=8, temporal_window_size=3) for _ in range(5)]
    >>> result = jackknifed_dstrf(fits, torch.randn(8, 40), agreement=0.75)
    >>> result.weights.shape, 0.0 < result.kept < 1.0
    (torch.Size([40, 1, 3, 8]), True)
    """
    if not models:
        raise ValueError("models is empty: give at least one fit")
    if agreement is not None and not 0.5 < agreement <= 1.0:
        raise ValueError(f"agreement must be above 0.5 and at most 1, or None, got {agreement!r}")
    if "edge" in options:
        raise ValueError("edge is 'zero' here: choose times to leave out the start of the clip")
    probe = dstrf(models[0], stimulus, lags=lags, times=[0], budget_bytes=budget_bytes, **options)
    shape = tuple(probe.weights.shape[1:])
    wanted = time_indices(times, probe.n_frames)
    targets = [as_sink(sink)] if error is None else [as_sink(sink), as_sink(error)]
    at_once = max(1, budget_bytes // (len(models) * probe.weights.numel() * probe.weights.element_size()))
    kept, responses, intercepts = 0, [], []
    opened: list[Sink] = []
    try:
        for target in targets:
            target.open((len(wanted), *shape), probe.weights.dtype, probe.weights.device)
            opened.append(target)
        for first in range(0, len(wanted), at_once):
            part = wanted[first : first + at_once]
            fits = [
                dstrf(model, stimulus, lags=probe.lags, times=part, budget_bytes=budget_bytes, **options)
                for model in models
            ]
            stacked, rows = torch.stack([fit.weights for fit in fits]), torch.arange(first, first + len(part))
            weights, agreed = sign_consistent(stacked, agreement)
            kept += agreed
            targets[0].write(rows, weights)
            if error is not None:
                targets[1].write(rows, jackknife_error(stacked))
            responses.append(_mean([fit.response for fit in fits]))
            intercepts.append(_mean([fit.intercept + fit.memory for fit in fits]))
        made = [target.close() for target in targets]
    except BaseException:
        for target in opened:
            target.abort()
        raise
    share = kept / (len(wanted) * probe.weights.numel())
    return JackknifedSTRF(
        made[0],
        torch.cat(responses),
        torch.cat(intercepts),
        share,
        torch.tensor(wanted),
        probe.neurons,
        probe.lags,
        None if error is None else made[1],
    )


def sign_consistent(filters: Tensor, agreement: float | None) -> tuple[Tensor, int]:
    """Return the mean over fits, zero where their signs disagree, and how many entries were kept.

    Parameters
    ----------
    filters : Tensor (J, ...)
        The same entries of J fits.
    agreement : float or None
        Quantile, see `jackknifed_dstrf`.

    Returns
    -------
    tuple
        Mean (...) and the number of entries that were not masked.

    Examples
    --------
    >>> sign_consistent(torch.tensor([[1.0, 1.0], [3.0, -2.0], [2.0, 3.0]]), 0.9)[0].tolist()
    [2.0, 0.0]
    """
    mean = filters.mean(0)
    if agreement is None:
        return mean, mean.numel()
    rising = filters.sort(0).values
    # linear interpolation between order statistics; torch.quantile refuses more than 16 million entries
    place = agreement * (len(filters) - 1)
    low = min(int(place), max(len(filters) - 2, 0))
    weight = place - low
    upper = torch.lerp(rising[low], rising[min(low + 1, len(rising) - 1)], weight)
    lower = torch.lerp(rising[-1 - low], rising[max(-2 - low, -len(rising))], weight)
    split = (upper > 0) & (lower < 0)
    return mean.masked_fill(split, 0.0), int((~split).sum())


def jackknife_error(filters: Tensor) -> Tensor:
    """Return the jackknife standard error of the mean filter.

    ``sqrt((J - 1) / J * sum over j of (W_j - mean)^2)`` for J fits that left out one part of the data each.
    Fits that also start from different weights differ by that as well, which is counted J - 1 times too: let
    the factory of `deepSTRF.training.fit_folds` begin with ``torch.manual_seed(0)`` to start all alike.

    Parameters
    ----------
    filters : Tensor (J, ...)
        The same entries of J fits.

    Returns
    -------
    Tensor
        Standard errors (...); NaN for a single fit.

    References
    ----------
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, equation 11.5.

    Examples
    --------
    >>> jackknife_error(torch.tensor([1.0, 2.0, 3.0]))
    tensor(1.1547)
    """
    fits = len(filters)
    if fits < 2:
        return torch.full_like(filters[0], torch.nan)
    spread: Tensor = (filters - filters.mean(0)).square().sum(0)
    return (spread * (fits - 1) / fits).sqrt()


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)
