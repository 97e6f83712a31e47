"""The result of `dstrf`: filters, responses, and how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepSTRF._validation import check_positive_number, checked


@checked
@dataclass(frozen=True)
class DynamicSTRF:
    """A model around one clip, as one linear filter per time and neuron.

    ``response = weights . window + memory + intercept`` holds exactly, as the intercept is what is left: the
    tangent plane at the stimulus. For piecewise linear models without any bias it is zero.

    Attributes
    ----------
    weights : Tensor (T, N, L, F), or what the sink made
        Filters, in response units per stimulus unit (with ``unit="sd"`` per standard deviation of the band,
        for which the equation above does not hold); the lag axis runs from the oldest frame to the current
        one and, with ``lookahead``, on to the frames after it, which makes it L + lookahead long. With
        ``wrt="samples"`` it has hop entries per frame, and F is 1. Lags outside the clip are zero.
    response : Tensor (T, N)
        The model's responses (with ``skip_nonlinearity``, those before the output nonlinearity).
    intercept : Tensor (T, N)
        ``response - weights . window - memory``.
    memory : Tensor (T, N)
        Contribution of frames before the window: through the state for ``method="windows"`` of a recurrent
        model, through the gradient at older frames where the window is shorter than a known
        receptive field; else zero.
    times : Tensor (T,)
        Frame of each row.
    neurons : list of int
        Neuron of each column.
    lags : int
        Frames of the window up to the current one, L: ``weights[:, :, lags - 1]`` is lag 0.
    receptive_field : int or None
        Frames up to the current one that a response depends on; None is unbounded.
    n_frames : int
        Frames of the clip.
    method : str
        How the filters were computed.
    outside : float or None
        Share of the squared gradient that lies outside the window, over the responses that were checked.
    check_error : float or None
        Largest difference between filters and plain automatic differentiation over the responses that were
        checked, in units of the largest entry there; None when the check was off.
    slope : Tensor (T, N) or None
        With ``skip_nonlinearity``: the slope of the output nonlinearity, so that the filters of the output
        are ``slope[..., None, None] * weights``.
    completeness : Tensor (T, N) or None
        Path-averaged form only: ``response - response_to_baseline - weights . (window - baseline)``, the
        error of the quadrature (and of what the window leaves out).
    lookahead : int
        Frames of the window after the current one: the last entries of the lag axis.
    layer_shape : tuple of int or None
        With a part for ``wrt``: the shape of its output without clips and time, (C, F') or (F',), for
        ``weights.unflatten(-1, layer_shape)``.
    edge : str
        Treatment of the ends of the clip, as given.

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
    lookahead: int = 0
    layer_shape: tuple[int, ...] | None = None
    edge: str = "zero"

    @property
    def lag_frames(self) -> Tensor:
        """Lag of each frame of the window, (L + lookahead,): L - 1 to 0, and negative for frames after it."""
        return torch.arange(self.lags - 1, -1 - self.lookahead, -1, device=self.times.device)

    def lags_ms(self, dt_ms: float) -> Tensor:
        """Time of each frame of the window before the response, in ms, (L + lookahead,).

        Parameters
        ----------
        dt_ms : float
            Width of a frame.

        Returns
        -------
        Tensor
            0 for the frame of the response, positive in the past and negative in the future.
        """
        return self.lag_frames * check_positive_number("dt_ms", dt_ms)

    def valid(self) -> Tensor:
        """Lags that exist at each time, (T, L + lookahead): those before and after the clip do not.

        Returns
        -------
        Tensor
            Booleans, lags in the order of `weights`.
        """
        frames = self.times.unsqueeze(1) - self.lag_frames
        return (frames >= 0) & (frames < self.n_frames)

    def cut(self) -> Tensor:
        """Bins whose filter an end of the clip cuts off, (T,).

        Statistics of how a filter changes leave these bins out: there it grows as the clip begins, that of
        a linear neuron too. With ``edge="keep"`` no filter is cut.

        Returns
        -------
        Tensor
            Booleans.
        """
        return cut_bins(self.times, self.lags, self.lookahead, self.n_frames, self.edge)

    def intercept_share(self) -> Tensor:
        """Variance of the intercept as a share of that of the response, (N,).

        Returns
        -------
        Tensor
            0 where the filters explain all variation of the response; it may exceed 1. NaN for a constant
            response.
        """
        return self.intercept.double().var(0) / _positive(self.response.double().var(0))

    def intercept_size(self) -> Tensor:
        """Mean size of the intercept as a share of that of the response, (N,).

        Returns
        -------
        Tensor
            ``sum |b| / sum |Y|`` over time; NaN for a silent neuron.
        """
        return self.intercept.abs().double().sum(0) / _positive(self.response.abs().double().sum(0))


def cut_bins(times: Tensor, lags: int, lookahead: int, n_frames: int, edge: str) -> Tensor:
    """Return whether an end of the clip cuts off the filter at each of some times (T,)."""
    if edge == "keep":
        return torch.zeros_like(times, dtype=torch.bool)
    return (times < lags - 1) | (times >= n_frames - lookahead)


def _positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.nan)
