"""The optimizer and the learning rate schedule of a fit: the user's, checked, or the default."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from deepSTRF._validation import check_choice, check_positive_int

__all__ = [
    "SCHEDULES",
    "EpochSchedule",
    "adamw",
    "learning_rate_schedule",
    "make_optimizer",
    "make_scheduler",
    "optimizer_facts",
    "schedule_facts",
]

#: Settings of the optimizer used when none is given.
DEFAULT_LEARNING_RATE = 1e-3
DEFAULT_WEIGHT_DECAY = 1e-4
#: Learning rates by name: as given; half a cosine from there to 0; warm-up, stable, decay.
SCHEDULES = ("constant", "cosine", "wsd")
#: Shares of the epochs in which "wsd" warms up (at least one epoch) and decays, in between the rate stays
#: (Haegele et al. 2024, doi 10.48550/arXiv.2405.18392).
WARMUP_SHARE, DECAY_SHARE = 0.03, 0.3


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


class EpochSchedule(LRScheduler):
    """A learning rate that follows a named schedule from epoch to epoch.

    "cosine": half a cosine, from the whole rate in the first epoch to almost 0 in the last. "wsd": a linear
    warm-up over `WARMUP_SHARE` of the epochs, the whole rate, and a linear decay over the last `DECAY_SHARE`
    of them; neither end is 0, so that every epoch trains. `restart` begins anew.
    """

    def __init__(self, optimizer: Optimizer, name: str, epochs: int) -> None:
        self.name, self.epochs = name, epochs
        super().__init__(optimizer)

    def restart(self) -> None:
        """Go back to the first epoch, wherever a fit before ended."""
        self.last_epoch = 0
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def share(self, epoch: int) -> float:
        """Rate of an epoch as a share of the whole one."""
        epoch %= self.epochs
        if self.name == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * epoch / self.epochs)
        rising, falling = max(1, round(WARMUP_SHARE * self.epochs)), round(DECAY_SHARE * self.epochs)
        up, down = (epoch + 1) / (rising + 1), (self.epochs - epoch) / (falling + 1)
        return min(up, 1.0, down)

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the present epoch, one per group of parameters."""
        return [rate * self.share(self.last_epoch) for rate in self.base_lrs]


def learning_rate_schedule(name: str, epochs: int) -> Callable[[Optimizer], LRScheduler] | None:
    """Return what ``Fitter(scheduler=...)`` takes for a schedule by name; None for "constant"."""
    check_choice("schedule", name, SCHEDULES)
    check_positive_int("epochs", epochs)
    return None if name == "constant" else functools.partial(EpochSchedule, name=name, epochs=epochs)


def schedule_facts(scheduler: Any) -> str:
    """Return a schedule's class, of a named one its name and epochs."""
    if isinstance(scheduler, EpochSchedule):
        return f"{scheduler.name} over {scheduler.epochs} epochs"
    return type(scheduler).__name__


def optimizer_facts(optimizer: Optimizer) -> str:
    """Return an optimizer's class and settings as text, as they are before the first step."""
    groups = []
    for group in optimizer.param_groups:
        facts = [
            f"{key}={value}" for key, value in sorted(group.items()) if key not in ("params", "initial_lr")
        ]
        groups.append(f"({len(group['params'])} tensors, {', '.join(facts)})")
    return type(optimizer).__name__ + "".join(groups)
