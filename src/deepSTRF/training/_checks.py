"""Checks of a Fitter's arguments: one function per kind of mistake, each text with its mend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from deepSTRF.protocols import DatasetLike

__all__ = [
    "check_count", "check_device", "check_loader", "check_monitor_key", "check_non_negative",
    "check_not_empty", "check_precision", "check_trainable",
]  # fmt: skip

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
