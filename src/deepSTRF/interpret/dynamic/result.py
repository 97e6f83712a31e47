"""What `dstrf` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["DynamicSTRF"]


@dataclass(frozen=True)
class DynamicSTRF:
    """A model around one clip, as one linear filter per time and neuron.

    ``response = weights . window + memory + intercept`` holds exactly, as the intercept is what is left: the
    tangent plane at the stimulus. For piecewise linear models without any bias it is zero.

    Attributes
    ----------
    weights : Tensor (T, N, L, F), or what the sink made
        Filters, in response units per stimulus unit; the lag axis runs from the oldest frame to the current
        one. With ``wrt="samples"`` it is (T, N, L * hop, 1). Lags before the clip are zero.
    response : Tensor (T, N)
        The model's own responses (with ``before``, those before the output nonlinearity).
    intercept : Tensor (T, N)
        ``response - weights . window - memory``.
    memory : Tensor (T, N)
        What sound before the window contributes: through the carried state for ``method="windows"`` of a
        recurrent model, through the gradient at older frames where the window is shorter than a known
        receptive field; else zero.
    times : Tensor (T,)
        Frame of each row.
    neurons : list of int
        Neuron of each column.
    lags : int
        Frames of the window, L.
    receptive_field : int or None
        Frames that a response depends on; None is unbounded.
    n_frames : int
        Frames of the clip.
    method : str
        How the filters were computed.
    outside : float or None
        Share of the squared gradient that lies before the window, over the responses that were checked.
    check_error : float or None
        Largest difference between filters and plain automatic differentiation over the responses that were
        checked, in units of the largest entry there; None when the check was off.
    slope : Tensor (T, N) or None
        With ``before``: the slope of the output nonlinearity, so that the filters of the output are
        ``slope[..., None, None] * weights``.
    completeness : Tensor (T, N) or None
        Path-averaged form only: ``response - response_to_baseline - weights . (window - baseline)``, the
        error of the quadrature (and what the window leaves out).

    Examples
    --------
    >>> one = torch.ones(4, 1)
    >>> made = DynamicSTRF(None, one, 0 * one, 0 * one, torch.arange(4), [0], 3, 3, 4, "sweep")
    >>> made.valid()[0].tolist()
    [False, False, True]
    """

    weights: Any
    response: Tensor
    intercept: Tensor
    memory: Tensor
    times: Tensor
    neurons: list[int]
    lags: int
    receptive_field: int | None
    n_frames: int
    method: str
    outside: float | None = None
    check_error: float | None = None
    slope: Tensor | None = None
    completeness: Tensor | None = None

    def valid(self) -> Tensor:
        """Return which lags exist at which time, (T, L): those before the clip do not.

        Returns
        -------
        Tensor
            Booleans, lags in the order of `weights`.
        """
        age = torch.arange(self.lags - 1, -1, -1, device=self.times.device)
        return self.times.unsqueeze(1) >= age

    def intercept_share(self) -> Tensor:
        """Return the variance of the intercept as a share of that of the response, (N,).

        Returns
        -------
        Tensor
            0 where the filters tell everything about how the response moves; it may exceed 1. NaN for a
            response that does not move.
        """
        return self.intercept.double().var(0) / _positive(self.response.double().var(0))

    def intercept_size(self) -> Tensor:
        """Return the mean size of the intercept as a share of that of the response, (N,).

        Returns
        -------
        Tensor
            ``sum |b| / sum |Y|`` over time; NaN for a silent neuron.
        """
        return self.intercept.abs().double().sum(0) / _positive(self.response.abs().double().sum(0))


def _positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.nan)
