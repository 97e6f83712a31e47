"""Checks of a Fitter's arguments: one function per kind of mistake, each text with its mend."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deepSTRF.protocols import DatasetLike

__all__ = [
    "NeuronSelection",
    "as_numbers",
    "check_choice",
    "check_count",
    "check_device",
    "check_differentiable",
    "check_dropout",
    "check_dtype",
    "check_flag",
    "check_loader",
    "check_monitor_key",
    "check_non_negative",
    "check_not_empty",
    "check_positive_int",
    "check_positive_number",
    "check_precision",
    "check_share",
    "check_tensor",
    "check_trainable",
    "first_names",
    "neuron_indices",
    "polarity_channel",
]

# ------------------------------------------------------------------------------
# Checks of constructor arguments that several modules share: one text per kind of mistake.


_POLARITIES = {"on": 0, "off": 1}


def check_positive_int(name: str, value: object) -> int:
    """Return ``value`` as a Python int of at least 1 (numpy integers welcome, booleans not)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of at least 1, got {value!r} ({type(value).__name__})")
    number = int(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def check_positive_number(name: str, value: object) -> float:
    """Return ``value`` as a finite float above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number above 0, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {number}")
    return number


def check_share(name: str, value: Any) -> float:
    """Return a number above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    return float(value)


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


def check_choice(name: str, value: object, legal: Sequence[str | None]) -> None:
    """Raise a ValueError that lists the legal values unless ``value`` is one of them."""
    if value not in legal:
        choices = ", ".join(repr(choice) for choice in legal)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def check_dropout(dropout: object) -> float:
    """Return a dropout probability as a float."""
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
    """Return the channel of an ON/OFF prefilter: ``"ON"`` (any case) or 0, ``"OFF"`` or 1."""
    channel = _POLARITIES.get(polarity.lower()) if isinstance(polarity, str) else int(polarity)
    if channel is None or not 0 <= channel < n_channels:
        raise ValueError(
            f"polarity must be None, 'ON' (0) or 'OFF' (1) and these receptive fields have {n_channels} "
            f"channel(s); got {polarity!r}"
        )
    return channel


def check_differentiable(y: Tensor) -> None:
    """Raise an error for a prediction that carries no gradient.

    Examples
    --------
    >>> check_differentiable(torch.ones(2, requires_grad=True).sum())
    """
    if not y.requires_grad:
        raise ValueError(
            "the prediction carries no gradient back to the stimulus: something in the model detaches it, "
            "works under torch.no_grad(), or leaves torch (numpy)"
        )


# ------------------------------------------------------------------------------
# Which neurons a call is about.


#: One neuron, several in any order (negative numbers count from the end), or None for all.
NeuronSelection: TypeAlias = int | slice | Sequence[int] | Tensor | None


def neuron_indices(
    neurons: NeuronSelection,
    n_neurons: int,
    *,
    name: str = "neurons",
    what: str = "neuron",
    owner: str = "model",
) -> list[int]:
    """Return which of N neurons (or other items of an owner, by the argument ``name``) are meant, from 0.

    Examples
    --------
    >>> neuron_indices([2, -1], 5), neuron_indices(slice(0, 2), 5), neuron_indices(None, 2)
    ([2, 4], [0, 1], [0, 1])
    """
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


# ------------------------------------------------------------------------------

#: Number types a fit can compute in; float32 is the reference.
PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def check_count(name: str, value: Any) -> int:
    """Return a whole number >= 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if int(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {int(value)}")
    return int(value)


def check_non_negative(name: str, value: float) -> float:
    """Return a finite number >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return float(value)


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


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the number type of a precision that the device can fit in."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision='fp16' needs a CUDA device (its gradients are scaled there), got device {device}; "
            "use 'bf16'"
        )
    return PRECISIONS[precision]


def check_not_empty(name: str, dataset: DatasetLike) -> None:
    """Raise ValueError for a recording without neurons, whose clips nobody heard, or without clips."""
    if dataset.N_neurons == 0:
        raise ValueError(
            f"{name} has no neurons (and clips that no neuron heard are left out); check the selection: "
            "select(neurons=None) takes all"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} has no clips; check the split or the selection")


def check_loader(name: str, loader: Any) -> DataLoader[Any]:
    """Return a DataLoader that has batches, as far as it can tell."""
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"{name} must be a DataLoader, got {type(loader).__name__}; make one with "
            "make_loaders(view) or DataLoader(view, collate_fn=neural_collate)"
        )
    try:
        empty = len(loader) == 0
    except TypeError:  # a loader over a stream has no length
        empty = False
    if empty:
        raise ValueError(
            f"{name} has no batches: its data set or sampler is empty; check the split or the selection"
        )
    return loader


def check_trainable(model: Any) -> nn.Module:
    """Return a module with something to fit."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter; set requires_grad=True on what is to be "
            "fitted, or score it as it is with score_model(model, dataset)"
        )
    return model


def check_monitor_key(monitor: str, names: Sequence[str], *, with_train: bool, per_cell: bool) -> None:
    """Raise a KeyError that lists the keys an epoch will have, unless ``monitor`` is one of them."""
    if per_cell and monitor.endswith("_loss"):
        raise ValueError(
            f"track_per_cell_best needs a per-cell monitor with one score per neuron, and {monitor!r} is a "
            "single number; monitor 'val_cc' or 'val_cc_norm'"
        )
    known = ["train_loss", "val_loss", *(f"val_{name}" for name in names)]
    if with_train:
        known += [f"train_{name}" for name in names]
    if monitor not in known:
        raise KeyError(f"monitor={monitor!r} is no key of an epoch; choose one of {', '.join(sorted(known))}")


#: So many names are listed before the rest is only counted.
MOST_NAMED = 8


def first_names(names: Sequence[str]) -> str:
    """Return the first few names of a list in one line, and how many more there are.

    Examples
    --------
    >>> first_names(["a", "b"])
    'a, b'
    """
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
