"""Checks of an experiment's fields, and TOML in and out; `ExperimentConfig` is made of these."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepSTRF.training.experiment_config import ExperimentConfig

__all__ = [
    "TOML_LAYOUT",
    "check_fields",
    "closest",
    "flatten_toml",
    "plain",
    "seed_tuple",
    "toml_text",
    "toml_value",
]

#: Where each field stands in a TOML file.
TOML_LAYOUT: dict[str, dict[str, str]] = {
    "": {"out": "out"},
    "dataset": {"name": "dataset", "split": "split", "options": "dataset_options"},
    "model": {
        "name": "model",
        "wav2spec": "wav2spec",
        "standardize": "standardize",
        "options": "model_options",
        "wav2spec_options": "wav2spec_options",
    },
    "training": {
        "loss": "loss",
        "epochs": "epochs",
        "patience": "patience",
        "learning_rate": "learning_rate",
        "weight_decay": "weight_decay",
        "batch_size": "batch_size",
        "seeds": "seeds",
        "warmup_ms": "warmup_ms",
        "start": "start",
        "calibrate": "calibrate",
        "device": "device",
    },
}
#: A seed must suit NumPy's legacy generator.
LARGEST_SEED = 2**32 - 1
STARTS = ("default", "ridge")
LOSSES = ("mse", "poisson", "negative_binomial", "gamma")
#: TOML has no null; options that are None are written as this word, on the command line too.
NONE_WORD = "none"


def closest(word: str, legal: Iterable[str]) -> str:
    """Return " Did you mean ...?" for a near miss, else nothing.

    Parameters
    ----------
    word : str
        What was written.
    legal : iterable of str
        What may be written.

    Returns
    -------
    str
        A sentence with a leading space, or "".

    Examples
    --------
    >>> closest("smoth", ["smooth", "binning"])
    " Did you mean 'smooth'?"
    """
    near = difflib.get_close_matches(word, list(legal), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def seed_tuple(seeds: Any) -> tuple[int, ...]:
    """Return seeds as a tuple of distinct ints; an int is one seed."""
    listed = [seeds] if isinstance(seeds, int) else list(seeds) if isinstance(seeds, Iterable) else seeds
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"seeds must be a whole number or a list of them, got {seeds!r}")
    for seed in listed:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"a seed is a whole number in 0 .. {LARGEST_SEED}, got {seed!r}")
    whole = tuple(int(seed) for seed in listed)
    if len(set(whole)) < len(whole):
        raise ValueError(f"seeds must differ from each other, got {list(whole)}")
    return whole


def check_fields(config: ExperimentConfig) -> None:
    """Raise ValueError or TypeError for the first field that is impossible."""
    for name in ("dataset", "model", "loss", "device"):
        value = getattr(config, name)
        if not isinstance(value, str) or not value.strip():
            raise TypeError(f"{name} must be a non-empty text, got {value!r}")
    for name in ("split", "wav2spec", "out"):
        value = getattr(config, name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise TypeError(f"{name} must be a non-empty text or left out, got {value!r}")
    for name in ("standardize", "calibrate"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name} must be true or false, got {getattr(config, name)!r}")
    if config.loss not in LOSSES:
        raise ValueError(
            f"loss must be one of {', '.join(LOSSES)}, got {config.loss!r}.{closest(config.loss, LOSSES)}"
        )
    if config.start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {config.start!r}")
    _check_numbers(config)
    for name in ("dataset_options", "model_options", "wav2spec_options"):
        options = getattr(config, name)
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise TypeError(f"{name} must map names to values, got {options!r}")
    if config.wav2spec_options and config.wav2spec is None:
        raise ValueError(
            "wav2spec_options are given but no wav2spec; name the front-end, for instance wav2spec='mel'"
        )


def _check_numbers(config: ExperimentConfig) -> None:
    for name in ("epochs", "patience", "batch_size"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    for name in ("learning_rate", "weight_decay", "warmup_ms"):
        value = getattr(config, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if config.learning_rate == 0:
        raise ValueError("learning_rate must be above 0, got 0: nothing would be learned")


def flatten_toml(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Turn a parsed TOML tree into fields; an unknown table or key raises ValueError naming the nearest."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key in TOML_LAYOUT[""]:
            values[TOML_LAYOUT[""][key]] = value
            continue
        legal = [*TOML_LAYOUT[""], *(f"[{table}]" for table in TOML_LAYOUT if table)]
        if key not in TOML_LAYOUT or not isinstance(value, Mapping):
            hint = closest(key, [*TOML_LAYOUT[""], *(table for table in TOML_LAYOUT if table)])
            raise ValueError(
                f"{source}: {key!r} means nothing here; legal at the top are {', '.join(legal)}.{hint}"
            )
        for name, item in value.items():
            if name not in TOML_LAYOUT[key]:
                raise ValueError(
                    f"{source}: [{key}] has no key {name!r}; legal are {', '.join(TOML_LAYOUT[key])}."
                    f"{closest(name, TOML_LAYOUT[key])}"
                )
            is_options = TOML_LAYOUT[key][name].endswith("_options")
            values[TOML_LAYOUT[key][name]] = (
                _with_nones(item, f"{source}: [{key}.{name}]") if is_options else item
            )
    return values


def _with_nones(options: Any, where: str) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise TypeError(f"{where} must be a table of options, got {options!r}")
    return {name: None if value == NONE_WORD else value for name, value in options.items()}


def toml_text(config: ExperimentConfig) -> str:
    """Return the TOML text of a configuration; what is None is left out."""
    blocks: list[list[str]] = []
    for table, keys in TOML_LAYOUT.items():
        block = [f"[{table}]"] if table else []
        nested: list[list[str]] = []
        for key, name in keys.items():
            value = getattr(config, name)
            if name.endswith("_options"):
                lines = [f"{_toml_key(option)} = {toml_value(item)}" for option, item in value.items()]
                nested += [[f"[{table}.{key}]", *lines]] if lines else []
            elif value is not None:
                block.append(f"{key} = {toml_value(value)}")
        blocks += [block, *nested]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def toml_value(value: Any) -> str:
    """Return a value as TOML: texts, numbers, truth values, lists, tables; None as the word none."""
    if value is None:
        return json.dumps(NONE_WORD)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML basic strings escape as JSON does
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _toml_float(value)
    if hasattr(value, "__index__"):
        return str(int(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(str(k))} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise TypeError(
        f"an option must be a text, number, truth value, list or table to be saved, got {value!r}"
    )


def _toml_float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(float(value))


def plain(value: Any) -> Any:
    """Return a value with tuples as lists, mappings as dictionaries: equal choices compare equal."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
