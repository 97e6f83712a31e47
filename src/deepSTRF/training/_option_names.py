"""Which options a registered class or function takes from a user, and what is said of those it does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from deepSTRF.datasets import NeuralDataset
from deepSTRF.training._config_fields import closest

__all__ = ["check_options", "option_names", "parameters_of"]

#: Arguments that are filled in from the data and the other choices.
FILLED_IN = ("n_frequency_bands", "out_neurons", "wav2spec", "standardize", "audio_fs", "dt_ms", "hop_ms")
#: The same of a fit in closed form, whose own default decides whether bands are standardised.
FILLED_IN_SOLVER = ("train", "validation", "wav2spec", "warmup_ms")
#: Arguments of a recording that have a flag of their own.
HANDLED = ("download",)


def option_names(cls: Callable[..., Any]) -> list[str]:
    """Return the options a class takes on the command line: its constructor's arguments less those filled in.

    Parameters
    ----------
    cls : type or function
        A registered class, or a fit in closed form.

    Returns
    -------
    list of str
        Argument names in order. Sizes of a model and a front-end come from the data; a recording has its own.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> option_names(Linear)[:2]
    ['temporal_window_size', 'output_activation']
    """
    if not isinstance(cls, type):
        hidden: tuple[str, ...] = FILLED_IN_SOLVER
    else:
        hidden = HANDLED if issubclass(cls, NeuralDataset) else FILLED_IN
    return [name for name in parameters_of(cls) if name not in hidden]


def parameters_of(cls: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a class or function by name."""
    return inspect.signature(cls).parameters


def check_options(
    cls: Callable[..., Any], options: Mapping[str, Any], what: str, also: tuple[str, ...] = ()
) -> None:
    """Raise ValueError for the first option the constructor does not have."""
    legal = [*option_names(cls), *also]
    everything = parameters_of(cls)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in everything.values()):
        return
    for name in options:
        if name not in everything and name not in also:
            raise ValueError(
                f"{what} has no option {name!r}; it takes {', '.join(legal)}.{closest(name, legal)}"
            )
