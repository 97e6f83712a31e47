"""``deepstrf datasets`` and ``deepstrf models``: what is registered, printed without importing it.

Names, summaries and options stand in ``listing.json``, which ``tools/docs_tables.py`` writes from the
registries. The registries themselves are read where the table may lack an entry: when files of the package
were added or taken away, and where models were imported before (a user's own entry needs that).
"""

from __future__ import annotations

import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from deepSTRF.cli.console import stdout_console
from deepSTRF.registry import (
    BACKBONES,
    DATASETS,
    FORMATS,
    KERNELS,
    LOSSES,
    MODELS,
    PREFILTERS,
    SOLVERS,
    WAV2SPEC,
    Registry,
)

__all__ = ["list_datasets", "list_models", "registered"]

INDENT = 4
TABLE = "listing.json"
#: Name in the table -> registry and options that are not shown.
REGISTRIES: dict[str, tuple[Registry[Any], tuple[str, ...]]] = {
    "datasets": (DATASETS, ()),
    "models": (MODELS, ()),
    "solvers": (SOLVERS, ()),
    "front-ends": (WAV2SPEC, ()),
    "prefilters": (PREFILTERS, ("n_frequency_bands",)),
    "kernels": (KERNELS, ("F", "T", "C_in", "C_out")),
    "backbones": (BACKBONES, ("input_size", "hidden_size")),
}

#: What is printed of an entry, under its name: text, and whether it is dim.
Lines = list[tuple[str, bool]]


def list_datasets() -> None:
    """Print every registered dataset with its options."""
    console, found = stdout_console(), _found()
    _section(console, "Datasets", found["datasets"])
    console.print("\nUse one:     deepstrf fit --dataset NAME -o KEY=VALUE")
    console.print()
    _section(console, "Formats of your own recordings", found["formats"])
    console.print("\nImport:      deepstrf import PATH --dt-ms MS --out mine.npz")
    console.print('Arrays:      ds.save("mine.npz") in Python')
    console.print("Then:        deepstrf fit --dataset mine.npz --wav2spec mel")


def list_models() -> None:
    """Print every registered model, fitted model that ships, fit in closed form, part of a model and loss."""
    console, found = stdout_console(), _found()
    for title, name in (
        ("Models", "models"),
        ("Fitted models (in Python: load_pretrained(NAME))", "fitted models"),
        ("Linear fits without epochs (a name for --model)", "solvers"),
        ("Front-ends (waveform to spectrogram)", "front-ends"),
        ("Prefilters (model option prefiltering)", "prefilters"),
        ("Kernels of receptive fields (model option kernel)", "kernels"),
        ("Backbones (statenet option rnn_type)", "backbones"),
    ):
        _section(console, title, found[name])
        console.print()
    console.print("Losses", style="bold")
    console.print(f"\n  {', '.join(found['losses'])}")
    console.print(
        "\nUse them:    deepstrf fit --model NAME --model-option KEY=VALUE --wav2spec NAME --loss NAME"
    )


def _section(console: Console, title: str, entries: dict[str, Lines]) -> None:
    console.print(title, style="bold")
    for name, lines in entries.items():
        console.print(f"\n  {name}", style="bold cyan")
        for text, dim in lines:
            console.print(Padding(text, (0, 0, 0, INDENT)), style="dim" if dim else "")


def _found() -> dict[str, Any]:
    """What the table holds, or the registries where that may be more."""
    data = None if "torch" in sys.modules else pkgutil.get_data(__package__, TABLE)
    table: dict[str, Any] = {} if data is None else json.loads(data)
    return table if table.get("files") == _files() else registered()


def registered() -> dict[str, Any]:
    """Every entry by registry and name with the lines that are printed of it, and the files they are in."""
    from deepSTRF.datasets.formats import hints_of
    from deepSTRF.models import pretrained_models

    found: dict[str, Any] = {"files": _files()}
    for what, (registry, hidden) in REGISTRIES.items():
        found[what] = {name: _lines(entry, hidden) for name, entry in registry.items()}
    found["formats"] = {
        name: [(_summary(entry), False), (f"hints: {', '.join(hints_of(entry)) or 'none'}", True)]
        for name, entry in FORMATS.items()
    }
    found["fitted models"] = {name: [(summary, False)] for name, summary in pretrained_models().items()}
    found["losses"] = list(LOSSES)
    return found


def _files() -> list[str]:
    """Module files of the packages whose files register entries, and the fitted models that ship."""
    root = Path(__file__).parent.parent
    packages = {package for registry, _ in REGISTRIES.values() for package in registry.packages}
    packages |= {*FORMATS.packages, *LOSSES.packages}
    folders = [root.joinpath(*package.split(".")[1:]) for package in sorted(packages)]
    modules = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    shipped = sorted(root.glob("pretrained/*/*"))
    return [path.relative_to(root).as_posix() for path in (*modules, *shipped)]


def _summary(entry: Any) -> str:
    return " ".join((inspect.getdoc(entry) or "").split("\n\n")[0].split())


def _lines(entry: Any, hidden: tuple[str, ...]) -> Lines:
    """First sentence of the docstring, ``option=default`` words, and what is recommended."""
    from deepSTRF.experiments.build import option_names

    arguments = inspect.signature(entry).parameters
    options = []
    for option in (option for option in option_names(entry) if option not in hidden):
        default = arguments[option].default
        if default is inspect.Parameter.empty:
            options.append(option)
        else:
            plain = str(default).lower() if default is None or isinstance(default, bool) else default
            options.append(f"{option}={plain}")
    lines = [(_summary(entry), False), (f"options: {', '.join(options)}", True)]
    if advised := getattr(entry, "recommended", None):
        lines.append((f"--recommended: {', '.join(f'{k}={v}' for k, v in advised.items())}", True))
    return lines
