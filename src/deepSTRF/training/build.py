"""One builder for fits that are made in numbers: seeds, folds and experiments put every fit together here.

Each fit of a series has its own model, and so its own optimizer, schedule and callbacks: they are given as
functions that make them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn
from torch.utils.data import DataLoader

from deepSTRF.datasets import NeuralDataset
from deepSTRF.training.callbacks import Callback
from deepSTRF.training.data import make_loaders
from deepSTRF.training.fitter import Fitter

__all__ = ["CallbackFactory", "build_fit", "check_callback_factory", "check_fitter_arguments"]

#: ``factory(seed)`` returns the callbacks of the fit with that seed, new ones for each.
CallbackFactory: TypeAlias = Callable[[int], Sequence[Callback]]


def build_fit(
    model: nn.Module,
    train: NeuralDataset | DataLoader[Any],
    val: NeuralDataset | DataLoader[Any],
    *,
    seed: int,
    batch_size: int = 1,
    callbacks: CallbackFactory | None = None,
    more: Sequence[Callback] = (),
    seeds_itself: bool = False,
    **arguments: Any,
) -> Fitter:
    """Return the `Fitter` of one fit of a series; views become loaders shuffled by ``seed``.

    ``seeds_itself`` is for a caller that has not seeded the process. ``more`` are the caller's own callbacks,
    called before those that ``callbacks(seed)`` makes; the other arguments are those of `Fitter`.
    """
    if isinstance(train, NeuralDataset) and isinstance(val, NeuralDataset):
        train, val = make_loaders(train, val, batch_size=batch_size, seed=seed)
    made = () if callbacks is None else callbacks(seed)
    if not isinstance(made, Sequence):
        raise TypeError(
            f"callbacks must return a list of Callback instances for a seed, got {made!r}; for example "
            "lambda seed: [MyCallback()]"
        )
    own_seed = {"seed": seed} if seeds_itself else {}
    return Fitter(model, train, val, callbacks=[*more, *made], **arguments, **own_seed)  # type: ignore[arg-type]


def check_callback_factory(name: str, callbacks: Any) -> None:
    """Raise TypeError unless ``callbacks`` is None or a function of the seed."""
    if callbacks is not None and (not callable(callbacks) or isinstance(callbacks, Callback)):
        raise TypeError(
            f"{name} must be a function of the seed, since each fit has callbacks of its own: "
            f"lambda seed: [MyCallback()]; got {callbacks!r}"
        )


def check_fitter_arguments(arguments: Mapping[str, Any], managed: Sequence[str], caller: str) -> None:
    """Raise an error for ``fitter_kwargs`` that no fit of a series can take, before anything is trained."""
    taken = [name for name in managed if name in arguments]
    if taken:
        raise ValueError(f"fitter_kwargs: {', '.join(taken)} is managed by {caller}; leave it out")
    known = [name for name in inspect.signature(Fitter).parameters if name not in managed]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise TypeError(f"fitter_kwargs: a Fitter has no {unknown[0]!r}; it has {', '.join(known)}")
    for name, example in (("optimizer", "lambda model: AdamW(model.parameters())"),
                          ("scheduler", "lambda optimizer: StepLR(optimizer, 10)")):  # fmt: skip
        given = arguments.get(name)
        ready = hasattr(given, "step") and not isinstance(given, type)
        if given is not None and (ready or not callable(given)):
            raise ValueError(
                f"fitter_kwargs[{name!r}] must be a function, since each fit has its own model: "
                f"{name}={example}"
            )
    check_callback_factory("fitter_kwargs['callbacks']", arguments.get("callbacks"))
