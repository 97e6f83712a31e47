"""``deepstrf datasets`` and ``deepstrf models``: what there is, from the registries and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.padding import Padding

from deepSTRF.cli._tables import stdout_console
from deepSTRF.registry import DATASETS, MODELS, SOLVERS, WAV2SPEC, Registry
from deepSTRF.training.building import load_registered, option_names

__all__ = ["list_datasets", "list_models", "one_line", "options_text"]

INDENT = 4


def list_datasets() -> None:
    """Print every registered dataset with its options."""
    load_registered()
    console = stdout_console()
    _list(console, "Datasets", DATASETS)
    console.print("\nUse one:     deepstrf fit --dataset NAME -o KEY=VALUE")
    console.print('Your own:    save it with ds.save("mine.npz"), then deepstrf fit --dataset mine.npz')


def list_models() -> None:
    """Print every registered model, fit in closed form and front-end with its options."""
    load_registered()
    console = stdout_console()
    _list(console, "Models", MODELS)
    console.print()
    _list(console, "Fits in closed form (a name for --model)", SOLVERS)
    console.print()
    _list(console, "Front-ends (waveform to spectrogram)", WAV2SPEC)
    console.print("\nUse them:    deepstrf fit --model NAME --model-option KEY=VALUE --wav2spec NAME")


def one_line(cls: Callable[..., Any]) -> str:
    """Return the first sentence of a class's docstring.

    Parameters
    ----------
    cls : type
        The class.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> class Gain:
    ...     '''Multiply.
    ...
    ...     More.'''
    >>> one_line(Gain)
    'Multiply.'
    """
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def options_text(cls: Callable[..., Any]) -> str:
    """Return the options of a class as ``name=default`` words.

    Parameters
    ----------
    cls : type
        The class.

    Returns
    -------
    str
        Words separated by commas.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> options_text(Linear).split(", ")[0]
    'temporal_window_size=9'
    """
    parameters = inspect.signature(cls).parameters
    words = []
    for name in option_names(cls):
        default = parameters[name].default
        words.append(name if default is inspect.Parameter.empty else f"{name}={_plain(default)}")
    return ", ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _list(console: Console, title: str, registry: Registry[Any]) -> None:
    console.print(f"[bold]{title}[/]")
    for name, cls in registry.items():
        console.print(f"\n  [bold cyan]{name}[/]")
        console.print(Padding(one_line(cls), (0, 0, 0, INDENT)), markup=False)
        console.print(Padding(f"[dim]options: {options_text(cls)}[/]", (0, 0, 0, INDENT)))
