"""Switches: the number of rectified units that turn on or off from one bin to the next.

In a network of rectified units the filter changes only where units switch (Keshishian et al. 2020, doi
10.7554/eLife.53445).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deepSTRF._validation import checked_but
from deepSTRF.interpret.dstrf.target import Target, check_model
from deepSTRF.models.prediction import differentiating

#: Functions with kinks, by name, and the places of the kinks.
KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0.0,), "relu_": (0.0,), "leaky_relu": (0.0,), "leaky_relu_": (0.0,), "prelu": (0.0,),
    "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Switches:
    """Switches along a clip.

    Attributes
    ----------
    per_step : Tensor (T - 1,). Units that change sides from each bin to the next.
    units : int. Units with a kink.
    """

    per_step: Tensor
    units: int

    @property
    def mean(self) -> float:
        """Mean over steps; NaN for a clip of one bin."""
        return float(self.per_step.double().mean())


@checked_but("model")
def switches(model: nn.Module, stimulus: Tensor, *, wrt: str = "spectrogram") -> Switches:
    """Number of rectified units of a network that switch on or off from each bin to the next.

    Parameters
    ----------
    model : nn.Module
        As for `dstrf`; its rectifiers (ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh) are found while it runs.
    stimulus : Tensor
        One clip, as for `dstrf`.
    wrt : {"spectrogram", "samples"}
        ``"samples"`` also counts units of the front-end that have one value per bin.

    Returns
    -------
    Switches
        Counts per step, and the number of units.

    Raises
    ------
    ValueError
        When there is no rectifier with one value per bin.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> class Rectified(nn.Module):
    ...     def forward(self, x):
    ...         return torch.relu(x.sum(2, keepdim=True))
    >>> switches(Rectified(), torch.tensor([[1.0, -1.0, -2.0, 3.0]])).per_step.tolist()
    [1, 0, 1]
    """
    check_model(model)
    with differentiating(model), torch.no_grad():
        target = Target(model, stimulus, wrt)
        watch = _Watch(target.frames.shape[-1])
        with watch:
            target.respond(target.frames)
    if not watch.sides:
        raise ValueError(
            f"{type(model).__name__} has no rectifier with one value per bin, so nothing switches: its "
            "filters change smoothly"
        )
    per_step = torch.stack([(s[:, 1:] != s[:, :-1]).sum(0) for s in watch.sides]).sum(0)
    return Switches(per_step, sum(len(s) for s in watch.sides))


class _Watch(TorchFunctionMode):
    """Records on which side of its kinks every unit is, while a model runs."""

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.n_frames, self.sides = n_frames, list[Tensor]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kinks = KINKS.get(getattr(func, "__name__", ""))
        if kinks is not None and args and isinstance(args[0], Tensor):
            self._note(args[0], kinks)
        return func(*args, **(kwargs or {}))

    def _note(self, z: Tensor, kinks: tuple[float, ...]) -> None:
        # time is the last axis, or the one before where neurons are last; a padded layer begins earlier
        for axis in (-1, -2):
            if z.ndim >= -axis and self.n_frames <= z.shape[axis] < 2 * self.n_frames:
                recent = z.movedim(axis, -1)[..., -self.n_frames :].reshape(-1, self.n_frames)
                self.sides.append(torch.stack([recent > kink for kink in kinks]).sum(0))
                return
