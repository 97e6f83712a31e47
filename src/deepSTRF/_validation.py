"""Checks of arguments that are shared: one function, and one text, per kind of mistake.

Each raises a ValueError, TypeError or IndexError that names the argument, what it was, and what is legal.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepSTRF._text import printable
from deepSTRF.protocols import DatasetLike

__all__ = [
    "LARGEST_COUNT",
    "MOST_LAYERS",
    "MOST_NAMED",
    "FloatArray",
    "NeuronSelection",
    "as_numbers",
    "ascending_frequencies",
    "check_choice",
    "check_device",
    "check_differentiable",
    "check_dropout",
    "check_dtype",
    "check_flag",
    "check_n_splits",
    "check_non_negative",
    "check_not_empty",
    "check_positive_int",
    "check_positive_number",
    "check_share",
    "check_tensor",
    "first_names",
    "neuron_indices",
    "polarity_channel",
]

FloatArray: TypeAlias = NDArray[np.float64]
#: One neuron, several in any order (negative numbers count from the end), or None for all.
NeuronSelection: TypeAlias = int | slice | Sequence[int] | Tensor | None
#: So many names are listed before the rest is only counted.
MOST_NAMED = 8
#: No count of anything comes near this; a larger one would never end, or not fit the memory.
LARGEST_COUNT = 2**31 - 1
#: Layers and the like, which a constructor makes one by one.
MOST_LAYERS = 1_000
#: So many characters of a name are shown in a message.
LONGEST_SHOWN = 80
#: Up to so many frequencies are printed in an error.
MOST_PRINTED = 40


# ---- numbers, choices, flags


def check_positive_int(name: str, value: object, most: int = LARGEST_COUNT) -> int:
    """Return ``value`` as a Python int from 1 to ``most`` (numpy integers welcome, booleans not)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of at least 1, got {value!r} ({type(value).__name__})")
    number = int(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    if number > most:
        found = number if number < 10**30 else f"a number of {number.bit_length()} bits"
        raise ValueError(f"{name} must be at most {most:,}, got {found}")
    return number


def check_positive_number(name: str, value: object) -> float:
    """Return ``value`` as a finite float above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number above 0, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {number}")
    return number


def check_non_negative(name: str, value: object) -> float:
    """Return a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number >= 0, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return number


def check_share(name: str, value: Any) -> float:
    """Return a number above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    return float(value)


def check_dropout(dropout: object) -> float:
    """Return a dropout probability as a float."""
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real):
        raise TypeError(f"dropout must be a number of at least 0 and below 1, got {dropout!r}")
    share = float(dropout)
    if not 0 <= share < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {share}")
    return share


def check_choice(name: str, value: object, legal: Sequence[str | None]) -> None:
    """Raise a ValueError that lists the legal values unless ``value`` is one of them."""
    if value not in legal:
        choices = ", ".join(repr(choice) for choice in legal)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` when it is a bool, else raise a TypeError that names the argument."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


# ---- arrays, tensors


def as_numbers(values: Any, name: str = "values") -> NDArray[np.float64]:
    """Return a tensor (on any device, with or without gradient) or anything array-like in float64."""
    if isinstance(values, Tensor):
        plain = values.detach().cpu()
        # .double() before .numpy(): NumPy has no bfloat16
        values = plain.resolve_conj().numpy() if plain.is_complex() else plain.double().numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64)
    except (ValueError, TypeError, RuntimeError):
        pass  # ragged lists: the error below
    raise ValueError(
        f"{name} must be a tensor or array of real numbers, of one shape throughout; got "
        f"{type(values).__name__}"
    )


def ascending_frequencies(frequencies_hz: Any, n_bands: int) -> NDArray[np.float64]:
    """Return ascending centres (F,) of bands in Hz, as float64."""
    hertz = np.asarray([]) if frequencies_hz is None else as_numbers(frequencies_hz, "frequencies_hz")
    legal = hertz.shape == (n_bands,) and np.isfinite(hertz).all()
    if not legal or (np.diff(hertz) <= 0).any() or (hertz <= 0).any():
        numbers = ", ".join(f"{value:g}" for value in hertz.ravel()) if hertz.size <= MOST_PRINTED else ""
        raise ValueError(
            f"frequencies_hz must be {n_bands} ascending positive numbers, one per band, got shape "
            f"{hertz.shape}{': ' if numbers else ''}{numbers}; datasets and front-ends have them as "
            ".frequencies_hz"
        )
    return hertz


def check_tensor(x: object) -> None:
    """Raise a TypeError unless a stimulus is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a Tensor, got {type(x).__name__}: torch.as_tensor(x, dtype=torch.float32) makes one"
        )


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Raise a TypeError unless a stimulus has the model's precision (under autocast layers convert)."""
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"the stimulus is {x.dtype} and the model {dtype}: pass x.to({dtype})"
            + (", or call model.double() first" if x.dtype == torch.float64 else "")
        )


def check_differentiable(y: Tensor) -> None:
    """Raise a ValueError for a prediction that carries no gradient."""
    if not y.requires_grad:
        raise ValueError(
            "the prediction carries no gradient back to the stimulus: something in the model detaches it, "
            "works under torch.no_grad(), or leaves torch (numpy)"
        )


# ---- neurons, recordings and devices


def neuron_indices(
    neurons: NeuronSelection,
    n_neurons: int,
    *,
    name: str = "neurons",
    what: str = "neuron",
    owner: str = "model",
) -> list[int]:
    """Return which of N neurons (or other items of an owner, by the argument ``name``) are meant, from 0."""
    if neurons is None:
        return list(range(n_neurons))
    if isinstance(neurons, slice):
        return list(range(n_neurons))[neurons]
    named = _as_list(neurons)
    if named is None or any(isinstance(n, bool) or not isinstance(n, numbers.Integral) for n in named):
        raise TypeError(
            f"{name} must be an integer, a slice, a sequence of integers or None, got {neurons!r}"
        )
    for n in named:
        if not -n_neurons <= n < n_neurons:
            raise IndexError(f"there is no {what} {n}: the {owner} has {n_neurons} (0 to {n_neurons - 1})")
    return [int(n) % n_neurons for n in named]


def _as_list(neurons: Any) -> list[Any] | None:
    """Integers, arrays, tensors and sequences as a list; None for anything else."""
    if isinstance(neurons, numbers.Integral):
        return [neurons]
    if hasattr(neurons, "tolist"):  # arrays and tensors of any library
        neurons = neurons.tolist()
    if isinstance(neurons, int):  # an array without axes
        return [neurons]
    return list(neurons) if isinstance(neurons, Sequence) and not isinstance(neurons, str) else None


def polarity_channel(polarity: str | int, n_channels: int) -> int:
    """Return the channel of an ON/OFF prefilter: ``"ON"`` (any case) or 0, ``"OFF"`` or 1."""
    channel = {"on": 0, "off": 1}.get(polarity.lower()) if isinstance(polarity, str) else int(polarity)
    if channel is None or not 0 <= channel < n_channels:
        raise ValueError(
            f"polarity must be None, 'ON' (0) or 'OFF' (1) and these receptive fields have {n_channels} "
            f"channel(s); got {polarity!r}"
        )
    return channel


def check_not_empty(name: str, dataset: DatasetLike) -> None:
    """Raise ValueError for a recording without neurons, whose clips nobody heard, or without clips."""
    if dataset.N_neurons == 0:
        raise ValueError(
            f"{name} has no neurons (and clips that no neuron heard are left out); check the selection: "
            "select(neurons=None) takes all"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} has no clips; check the split or the selection")


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that this machine has."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be like 'cpu', 'cuda' or 'cuda:1', got {device!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r}, but PyTorch sees {torch.cuda.device_count()} CUDA device(s) here; use "
            "device='cpu', or install a CUDA build of PyTorch"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but PyTorch sees no Apple GPU here; use device='cpu'")
    return found


def first_names(names: Sequence[str]) -> str:
    """Return the first few names of a list in one line, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(printable(name, longest=LONGEST_SHOWN) for name in names[:MOST_NAMED]) + more


def check_n_splits(n_splits: int) -> None:
    """Raise ValueError unless there is at least one half-split."""
    if n_splits < 1:
        raise ValueError(f"n_splits is a whole number >= 1, got {n_splits!r}; the default is 126")
