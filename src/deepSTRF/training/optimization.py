"""The optimizer and the learning rate schedule of a fit: the user's, checked, or the default."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["adamw", "make_optimizer", "make_scheduler", "optimizer_facts"]

#: Settings of the optimizer used when none is given.
DEFAULT_LEARNING_RATE = 1e-3
DEFAULT_WEIGHT_DECAY = 1e-4


def adamw(
    model: nn.Module,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    weight_decay: float = DEFAULT_WEIGHT_DECAY,
    *,
    fused: bool | None = True,
) -> Optimizer:
    """Return AdamW over a model's trainable parameters, in the groups that the model states.

    A model with a learnable front-end gives it a rate of its own (``param_groups``); a group that states no
    weight decay has none. ``fused`` is one kernel per step instead of a dozen small ones per parameter.
    """
    grouped = getattr(model, "param_groups", None)
    groups: list[dict[str, Any]] = (
        grouped(learning_rate, weight_decay=weight_decay)
        if callable(grouped)
        else [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    )
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=fused)


def make_optimizer(optimizer: Any, model: nn.Module) -> Optimizer:
    """Return an optimizer that holds parameters of this model; a callable is called with the model first."""
    if optimizer is None:
        return adamw(model)
    if callable(optimizer) and not isinstance(optimizer, Optimizer):
        optimizer = optimizer(model)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer or a function that makes one from the model, got "
            f"{type(optimizer).__name__}; for example torch.optim.AdamW(model.parameters(), lr=1e-3)"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held & {id(parameter) for parameter in model.parameters() if parameter.requires_grad}:
        raise ValueError(
            "optimizer holds none of this model's trainable parameters, so nothing would be learned; build "
            "it with torch.optim.AdamW(model.parameters(), ...) from the model you pass"
        )
    return optimizer


def make_scheduler(scheduler: Any, optimizer: Optimizer, mode: str) -> Any:
    """Return a scheduler of this optimizer; a callable is called with the optimizer first."""
    if scheduler is None:
        return None
    if isinstance(scheduler, type) or not hasattr(scheduler, "step"):
        if not callable(scheduler):
            raise TypeError(
                "scheduler must be a torch.optim.lr_scheduler object or a function that makes one from the "
                f"optimizer, got {type(scheduler).__name__}"
            )
        scheduler = scheduler(optimizer)
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "scheduler belongs to another optimizer; build it from the one you pass, or pass a function: "
            "scheduler=lambda optimizer: StepLR(optimizer, 10)"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != mode:
        raise ValueError(
            f"ReduceLROnPlateau has mode={scheduler.mode!r}, the fit has mode={mode!r}: the rate would drop "
            f"while the score improves; build it with mode={mode!r}"
        )
    return scheduler


def optimizer_facts(optimizer: Optimizer) -> str:
    """Return an optimizer's class and settings as text, as they are before the first step."""
    groups = []
    for group in optimizer.param_groups:
        facts = [
            f"{key}={value}" for key, value in sorted(group.items()) if key not in ("params", "initial_lr")
        ]
        groups.append(f"({len(group['params'])} tensors, {', '.join(facts)})")
    return type(optimizer).__name__ + "".join(groups)
