"""Parametric output nonlinearities: one set of parameters per neuron, neurons on the last axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_flag, check_positive_int, checked
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.streaming import FramewiseMixin
from deepSTRF.registry import ACTIVATIONS

__all__ = ["ParametricDoubleExponential", "ParametricSigmoid", "ParametricSoftplus"]

ACTIVATIONS.register("identity")(nn.Identity)  # for models whose default is another one

#: Largest inner exponent: exp(-exp(30)) is already 0, and beyond 88 float32 overflows to NaN gradients.
_MAX_EXPONENT = 30.0
#: Smallest width of a sigmoid and sharpness of a softplus: divided by, they keep values and gradients finite
#: for |x| up to 1e4.
_MIN_WIDTH = 1e-2


def _uniform(size: int, low: float, high: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(size).uniform_(low, high))


class _GainAndBaseline(FramewiseMixin, nn.Module):
    """Gain and baseline of a saturating nonlinearity, optionally kept non-negative by a softplus."""

    @checked
    def __init__(self, num_features: int, bias: bool, non_negative_output: bool) -> None:
        super().__init__()
        self.num_features = check_positive_int("num_features", num_features)
        self.bias = check_flag("bias", bias)
        self.non_negative_output = check_flag("non_negative_output", non_negative_output)

    def _mapped(self, raw: Tensor) -> Tensor:
        return functional.softplus(raw) if self.non_negative_output else raw

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} expects {self.num_features} neurons on the last axis, got "
                f"{tuple(x.shape)}"
            )


@ACTIVATIONS.register("sigmoid")
class ParametricSigmoid(_GainAndBaseline, Configurable):
    """Four-parameter sigmoid ``b * sigmoid((x - c) / d) + a`` per neuron.

    Parameters
    ----------
    num_features : int
        Neurons, N.
    bias : bool
        Whether there is a baseline ``a``.
    non_negative_output : bool
        Whether gain and baseline pass through a softplus, so that the output is a rate.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    Notes
    -----
    The width ``d`` may change sign while training; its magnitude is held above 0.01, where the slope is
    defined.

    References
    ----------
    Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016.

    Examples
    --------
    >>> ParametricSigmoid(3)(torch.zeros(2, 10, 3)).shape
    torch.Size([2, 10, 3])
    """

    _raw_a: nn.Parameter | None

    @checked
    def __init__(self, num_features: int, bias: bool = True, non_negative_output: bool = True) -> None:
        super().__init__(num_features, bias, non_negative_output)
        gain, baseline = ((-0.43, 1.40), (-1.43, 0.43)) if non_negative_output else ((0.5, 1.5), (0.0, 1.0))
        self.c = _uniform(self.num_features, -0.5, 0.5)
        self.d = _uniform(self.num_features, 0.5, 1.5)
        self._raw_b = _uniform(self.num_features, *gain)
        self.register_parameter("_raw_a", _uniform(self.num_features, *baseline) if bias else None)

    @property
    def b(self) -> Tensor:
        """Gain (N,)."""
        return self._mapped(self._raw_b)

    @property
    def a(self) -> Tensor | None:
        """Baseline (N,), or None."""
        return None if self._raw_a is None else self._mapped(self._raw_a)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the sigmoid to (..., N)."""
        self._check(x)
        width = torch.where(self.d < 0, self.d.clamp(max=-_MIN_WIDTH), self.d.clamp(min=_MIN_WIDTH))
        y = self.b * torch.sigmoid((x - self.c) / width)
        return y if self.a is None else y + self.a


@ACTIVATIONS.register("double_exponential")
class ParametricDoubleExponential(_GainAndBaseline, Configurable):
    """Double exponential ``a * exp(-exp(k x - s)) + b`` per neuron, an asymmetric sigmoid.

    It falls with ``x`` where ``k > 0`` and rises where ``k < 0``; the sign of ``k`` is free at the start.

    Parameters
    ----------
    num_features : int
        Neurons, N.
    bias : bool
        Whether there is a baseline ``b``.
    non_negative_output : bool
        Whether gain and baseline pass through a softplus, so that the output is a rate.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    References
    ----------
    Thorson, Liénard & David 2015, doi 10.1371/journal.pcbi.1004628.

    Examples
    --------
    >>> ParametricDoubleExponential(3)(torch.zeros(2, 10, 3)).shape
    torch.Size([2, 10, 3])
    """

    _raw_b: nn.Parameter | None

    @checked
    def __init__(self, num_features: int, bias: bool = True, non_negative_output: bool = True) -> None:
        super().__init__(num_features, bias, non_negative_output)
        gain, baseline = ((-0.43, 1.40), (-1.43, 0.43)) if non_negative_output else ((0.5, 1.5), (0.0, 1.0))
        self.k = _uniform(self.num_features, -0.5, 0.5)
        self.s = _uniform(self.num_features, 0.5, 1.5)
        self._raw_a = _uniform(self.num_features, *gain)
        self.register_parameter("_raw_b", _uniform(self.num_features, *baseline) if bias else None)

    @property
    def a(self) -> Tensor:
        """Gain (N,)."""
        return self._mapped(self._raw_a)

    @property
    def b(self) -> Tensor | None:
        """Baseline (N,), or None."""
        return None if self._raw_b is None else self._mapped(self._raw_b)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the double exponential to (..., N)."""
        self._check(x)
        exponent = (self.k * x - self.s).clamp(max=_MAX_EXPONENT)
        y = self.a * torch.exp(-torch.exp(exponent))
        return y if self.b is None else y + self.b


@ACTIVATIONS.register("softplus")
class ParametricSoftplus(FramewiseMixin, nn.Module, Configurable):
    """Softplus with a learned sharpness and baseline per neuron: ``softplus(beta x) / beta + b``.

    Parameters
    ----------
    num_features : int
        Neurons, N.
    non_negative_output : bool
        Whether the baseline passes through a softplus, so that the output is a rate. The sharpness always
        does.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    Notes
    -----
    The sharpness starts near 5.5, which puts the output for zero drive at 0.12 to 0.19: a start near 0.7
    (``beta = 1``) lets fits of sparse responses collapse to the mean.

    Examples
    --------
    >>> ParametricSoftplus(3)(torch.zeros(2, 10, 3)).shape
    torch.Size([2, 10, 3])
    """

    @checked
    def __init__(self, num_features: int, non_negative_output: bool = True) -> None:
        super().__init__()
        self.num_features = check_positive_int("num_features", num_features)
        self.non_negative_output = check_flag("non_negative_output", non_negative_output)
        self._raw_beta = _uniform(self.num_features, 5.0, 6.0)
        self._raw_b = _uniform(self.num_features, *((-5.0, -3.0) if non_negative_output else (-0.1, 0.1)))

    @property
    def beta(self) -> Tensor:
        """Sharpness (N,)."""
        # the floor keeps 1 / beta finite when a fit drives the raw value far below zero
        return functional.softplus(self._raw_beta).clamp_min(_MIN_WIDTH)

    @property
    def b(self) -> Tensor:
        """Baseline (N,)."""
        return functional.softplus(self._raw_b) if self.non_negative_output else self._raw_b

    @torch.no_grad()
    def lower_baseline(self, highest: Tensor) -> None:
        """Lower baselines (N,) to at most these values, which must be positive; others stay as they are."""
        lower = highest < self.b
        # softplus inverted, without overflow: log(exp(y) - 1) = y + log(1 - exp(-y))
        raw = highest + torch.log(-torch.expm1(-highest)) if self.non_negative_output else highest
        self._raw_b.copy_(torch.where(lower, raw, self._raw_b))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the softplus to (..., N)."""
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"ParametricSoftplus expects {self.num_features} neurons on the last axis, got "
                f"{tuple(x.shape)}"
            )
        beta = self.beta
        return functional.softplus(beta * x) / beta + self.b
