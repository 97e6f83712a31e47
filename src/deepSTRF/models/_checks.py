"""Checks of constructor arguments that several modules share: one text per kind of mistake."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_differentiable",
    "check_dropout",
    "check_dtype",
    "check_flag",
    "check_positive_int",
    "check_positive_number",
    "check_tensor",
    "polarity_channel",
]

_POLARITIES = {"on": 0, "off": 1}


def check_positive_int(name: str, value: object) -> int:
    """Return ``value`` as a Python int of at least 1 (numpy integers welcome, booleans not).

    Raises
    ------
    TypeError
        When the value is no integer.
    ValueError
        When it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of at least 1, got {value!r} ({type(value).__name__})")
    number = int(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def check_positive_number(name: str, value: object) -> float:
    """Return ``value`` as a finite float above zero.

    Raises
    ------
    TypeError
        When the value is no real number.
    ValueError
        When it is zero, negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number above 0, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {number}")
    return number


def check_choice(name: str, value: object, legal: Sequence[str | None]) -> None:
    """Raise a ValueError that lists the legal values unless ``value`` is one of them."""
    if value not in legal:
        choices = ", ".join(repr(choice) for choice in legal)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def check_dropout(dropout: object) -> float:
    """Return a dropout probability as a float.

    Raises
    ------
    TypeError
        When it is no real number.
    ValueError
        When it is not in [0, 1).
    """
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real):
        raise TypeError(f"dropout must be a number of at least 0 and below 1, got {dropout!r}")
    share = float(dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {share}")
    return share


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` when it is a bool, else raise a TypeError that names the argument."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def check_tensor(x: object) -> None:
    """Raise a TypeError unless a stimulus is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a Tensor, got {type(x).__name__}: torch.as_tensor(x, dtype=torch.float32) makes one"
        )


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Raise a TypeError unless a stimulus has the precision of the model's weights.

    Under autocast layers convert what they get.
    """
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"the stimulus is {x.dtype} and the model {dtype}: pass x.to({dtype})"
            + (", or call model.double() first" if x.dtype == torch.float64 else "")
        )


def polarity_channel(polarity: str | int, n_channels: int) -> int:
    """Return the channel of an ON/OFF prefilter: ``"ON"`` (any case) or 0, ``"OFF"`` or 1.

    Raises
    ------
    ValueError
        For another polarity, or one without a channel.
    """
    channel = _POLARITIES.get(polarity.lower()) if isinstance(polarity, str) else int(polarity)
    if channel is None or not 0 <= channel < n_channels:
        raise ValueError(
            f"polarity must be None, 'ON' (0) or 'OFF' (1) and these receptive fields have {n_channels} "
            f"channel(s); got {polarity!r}"
        )
    return channel


def check_differentiable(y: Tensor) -> None:
    """Raise an error for a prediction that carries no gradient.

    Parameters
    ----------
    y : Tensor
        The prediction, or a part of it.

    Raises
    ------
    ValueError
        When nothing leads back from it.

    Examples
    --------
    >>> check_differentiable(torch.ones(2, requires_grad=True).sum())
    """
    if not y.requires_grad:
        raise ValueError(
            "the prediction carries no gradient back to the stimulus: something in the model detaches it, "
            "works under torch.no_grad(), or leaves torch (numpy)"
        )
