"""Settings of a fit as plain values, for a logger or a JSON file, and a short name made from them.

Facts about the model and the software are those of `ProtocolCard`. Nothing depends on memory addresses, so
equal fits have equal settings.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from deepSTRF._files import json_safe
from deepSTRF._validation import checked, checked_but
from deepSTRF.training.objective import mode_of
from deepSTRF.training.optimization import make_optimizer, make_scheduler
from deepSTRF.training.protocol import model_facts, software_versions

__all__ = ["auto_config", "path_safe", "slug_from_config"]

#: Slots of a model whose class is recorded.
SLOTS = ("prefiltering", "core", "readout", "output_activation")
#: Attributes of a model that are recorded, by the name of the constructor argument.
SIZES = {"n_frequency_bands": "F", "temporal_window_size": "T", "out_neurons": "O"}
#: Entries of the name of a run, each with how it is written there.
SLUG_FIELDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("model", lambda value: str(value).lower()),
    ("dataset", lambda value: str(value).lower()),
    ("temporal_window_size", lambda value: f"T{value}"),
    ("n_frequency_bands", lambda value: f"F{value}"),
)
#: A longer repr of an object says little more.
LONGEST_REPR = 60
#: Bytes of a name: file systems take 255, and a suffix such as "-seed0" or ".json" is still to come.
LONGEST_NAME = 120
#: Characters of the digest that keeps two cut names apart.
DIGEST = 8
Plain = bool | int | float | str | None


@checked_but("model")
def auto_config(
    model: nn.Module,
    fitter_kwargs: Mapping[str, Any] | None = None,
    dataset_name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a fit is made of as values that JSON can hold.

    Parameters
    ----------
    model : nn.Module
        The model.
    fitter_kwargs : mapping, optional
        Arguments of the `Fitter`, as given to `fit_multi_seed`. The optimiser (the one given, made by the
        function given, or the default) is recorded with its hyper-parameters; a function is called once with
        ``model`` for that. What JSON cannot hold is recorded by name, else as its ``repr``, cut.
    dataset_name : str, optional
        Name of the recording.
    extra : mapping, optional
        Further entries; they replace equal keys.

    Returns
    -------
    dict
        'model', 'dataset', 'n_frequency_bands', 'temporal_window_size', 'out_neurons', 'n_parameters',
        'front_end', 'latency_ms', 'settings', with a front-end its 'front_end_bands', 'front_end_hz' and
        'front_end_settings', the classes of 'prefiltering', 'core', 'readout', 'output_activation',
        'readout.kernel', 'readout.activation' (each where the model has it), the fitter's arguments,
        'optimizer' and 'scheduler' as dictionaries with 'class', and 'versions'.

    Raises
    ------
    TypeError, ValueError
        When the optimiser is one that `Fitter` refuses.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> config = auto_config(Linear(34, 9, 4), {"max_epochs": 50}, dataset_name="NS1")
    >>> config["max_epochs"], config["optimizer"]["class"], config["optimizer"]["lr"]
    (50, 'AdamW', 0.001)
    >>> slug_from_config(config)
    'linear-ns1-T9-F34'
    """
    facts = model_facts(model)
    config: dict[str, Any] = {"model": facts.pop("class")}
    if dataset_name is not None:
        config["dataset"] = str(dataset_name)
    config |= _sizes(model) | facts | _slots(model)
    if fitter_kwargs is not None:
        for name, value in _fit_facts(model, fitter_kwargs).items():
            config.setdefault(name, value)
    config["versions"] = software_versions()
    config |= {key: _plain(value) for key, value in (extra or {}).items()}
    return config


@checked
def slug_from_config(
    config: Mapping[str, Any], fields: Sequence[tuple[str, Callable[[Any], str]]] | None = None
) -> str:
    """Return a short name for a folder or a run, such as 'linear-ns1-T9-F34'.

    Parameters
    ----------
    config : mapping
        As `auto_config` returns it.
    fields : sequence of (key, function), optional
        Which entries, each with the function that writes it; entries that are missing or None are skipped.
        By default model and dataset in lower case, ``T<window>`` and ``F<bands>``.

    Returns
    -------
    str
        The parts joined by dashes; one name on every file system, never a path (see `path_safe`).

    Raises
    ------
    ValueError
        When ``config`` has none of the fields: an empty name would stand for the parent folder.

    Examples
    --------
    >>> slug_from_config({"model": "Linear", "dataset": "my/data"})
    'linear-my_data'
    >>> slug_from_config({"model": "Linear", "lr": 0.01}, [("model", str), ("lr", "lr{:g}".format)])
    'Linear-lr0.01'
    """
    chosen = SLUG_FIELDS if fields is None else fields
    parts = [write(config[key]) for key, write in chosen if config.get(key) is not None]
    if not parts:
        raise ValueError(
            f"config has none of the fields {[key for key, _ in chosen]}, only {sorted(config)}: pass "
            "fields=[(key, str), ...] with keys that it has"
        )
    return path_safe("-".join(str(part) for part in parts))


def path_safe(text: str) -> str:
    """Return a text as the name of one file or folder."""
    name = re.sub(r"[^\w.+=-]+", "_", text).strip(".") or "_"
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
    return f"{encoded[: LONGEST_NAME - DIGEST - 1].decode(errors='ignore')}-{digest}"


def _sizes(model: nn.Module) -> dict[str, Plain]:
    found = {name: getattr(model, field) for name, field in SIZES.items() if hasattr(model, field)}
    return {name: _plain(value) for name, value in found.items() if _is_plain(value)}


def _slots(model: nn.Module) -> dict[str, str]:
    readout = getattr(model, "readout", None)
    strf = getattr(readout, "strf", None)  # a readout of STRFs holds its kernel there
    found = {name: getattr(model, name, None) for name in SLOTS} | {
        "readout.kernel": getattr(readout, "kernel", getattr(strf, "kernel", None)),
        "readout.activation": getattr(readout, "activation", None),
    }
    return {name: type(value).__name__ for name, value in found.items() if isinstance(value, nn.Module)}


def _fit_facts(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        name: _plain(value) for name, value in arguments.items() if name not in ("optimizer", "scheduler")
    }
    given, scheduler = arguments.get("optimizer"), arguments.get("scheduler")
    if given is None and not any(parameter.requires_grad for parameter in model.parameters()):
        return facts
    optimizer = make_optimizer(given, model)
    facts["optimizer"] = _optimizer_facts(optimizer)
    if scheduler is not None:
        # A schedule rewrites its optimiser's rates: it is made only for one that nobody else uses.
        if not isinstance(given, Optimizer):
            scheduler = make_scheduler(scheduler, optimizer, mode_of(arguments))
        facts["scheduler"] = _scheduler_facts(scheduler)
    return facts


def _optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """Hyper-parameters common to all groups at the top, what differs under 'groups'."""
    groups = [  # entries of None are switches left at their default
        {key: _plain(value) for key, value in group.items() if key != "params" and value is not None}
        for group in optimizer.param_groups
    ]
    shared = {
        key: value
        for key, value in groups[0].items()
        if all(key in group and group[key] == value for group in groups)
    }
    facts = {"class": type(optimizer).__name__, **shared}
    if len(groups) > 1:
        facts["groups"] = [
            {key: value for key, value in group.items() if key not in shared}
            | {"n_parameters": sum(parameter.numel() for parameter in given["params"])}
            for group, given in zip(groups, optimizer.param_groups, strict=True)
        ]
    return facts


def _scheduler_facts(scheduler: Any) -> Any:
    state = getattr(scheduler, "state_dict", None)
    if not callable(state) or isinstance(scheduler, type):
        return _plain(scheduler)
    kept = {
        key: _plain(value)
        for key, value in state().items()
        if not key.startswith("_") and _is_plain(value) and value is not None
    }
    return {"class": type(scheduler).__name__, **kept}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset | range):
        return all(_is_plain(item) for item in value)
    number = hasattr(value, "tolist") and getattr(value, "ndim", None) == 0  # of NumPy or torch
    return number or isinstance(value, Plain)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; what it cannot is named, without addresses, which differ between runs."""
    if isinstance(value, functools.partial):
        return {"function": _plain(value.func), **{key: _plain(item) for key, item in value.keywords.items()}}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if _is_plain(value):
        return json_safe(value)
    if isinstance(value, os.PathLike | torch.device | torch.dtype):
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))[:LONGEST_REPR]
