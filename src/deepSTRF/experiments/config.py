"""The description of one experiment: a few plain values, from a TOML file, from flags, or from Python."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deepSTRF.datasets import NeuralDataset
from deepSTRF.registry import LOSSES

__all__ = [
    "FLAGS",
    "TOML_LAYOUT",
    "ExperimentConfig",
    "check_fields",
    "check_options",
    "closest",
    "flatten_toml",
    "option_names",
    "parameters_of",
    "parse_options",
    "parse_seeds",
    "plain",
    "seed_tuple",
    "toml_text",
    "toml_value",
]

# ------------------------------------------------------------------------------
# Checks of an experiment's fields, and TOML in and out; `ExperimentConfig` is made of these.


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
#: TOML has no null; options that are None are written as this word, on the command line too.
NONE_WORD = "none"


def closest(word: str, legal: Iterable[str]) -> str:
    """Return " Did you mean ...?" for a near miss, else nothing.

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


# ------------------------------------------------------------------------------
# Which options a registered class or function takes from a user, and what is said of those it does not.


#: Arguments that are filled in from the data and the other choices.
FILLED_IN = ("n_frequency_bands", "out_neurons", "wav2spec", "standardize", "audio_fs", "dt_ms", "hop_ms")
#: The same of a fit in closed form, whose own default decides whether bands are standardised.
FILLED_IN_SOLVER = ("train", "validation", "wav2spec", "warmup_ms")
#: Arguments of a recording that have a flag of their own.
HANDLED = ("download",)


def option_names(cls: Callable[..., Any]) -> list[str]:
    """Return the options a class takes on the command line: its constructor's arguments less those filled in.

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


# ------------------------------------------------------------------------------

#: Fields that may change between a run and its continuation without making it another experiment.
FREE_FIELDS = ("out", "device", "epochs", "patience")
HASH_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All choices behind one run; checked when it is made.

    Attributes
    ----------
    dataset : str
        A registered name ("synthetic", "ns1") or the path of an .npz file written by ``NeuralDataset.save``.
    dataset_options : dict
        Keyword arguments of the dataset's constructor.
    split : str, optional
        How clips are divided: ``"14/3/3"``, ``"random:0.7/0.15/0.15:seed=0"`` or ``"kfold:5:fold=0"``. None
        takes the dataset's own split where it has one, else the random one.
    model, wav2spec : str
        Registered names of the model (or of a fit in closed form, "ridge") and, to fit from the waveform, of
        the front-end.
    model_options, wav2spec_options : dict
        Keyword arguments of their constructors; sizes the data dictate are filled in.
    standardize : bool
        Standardise every band by its mean and deviation over the training clips, inside the model.
    loss : str
        "mse", "poisson", "negative_binomial" or "gamma".
    epochs, patience : int
        Most epochs, and epochs without a better validation score before it stops.
    learning_rate, weight_decay : float
        Of AdamW.
    batch_size : int
        Clips per step.
    seeds : tuple of int
        One fit per seed.
    warmup_ms : float
        Onset left out of loss and scores, in ms.
    start : str
        "default", or "ridge": a model of one STRF per neuron starts from a ridge estimate.
    calibrate : bool
        After a fit with the mean squared error, set each neuron's output gain and offset by least squares on
        the training clips, where the model ends in such a stage: predictions are then in the unit of the
        responses, and correlations do not change. Where neurons share a learned stage (a front-end), they
        also start at that size, without which such a stage is not learned well.
    device : str
        "cpu", "cuda", "mps" or "auto".
    out : str, optional
        Run folder; None names one under ``runs/``.

    Raises
    ------
    ValueError, TypeError
        When a value is impossible; the text names the field and what is legal.

    Examples
    --------
    >>> config = ExperimentConfig(dataset="ns1", wav2spec="mel", seeds=(0, 1))
    >>> ExperimentConfig.from_toml_text(config.to_toml()) == config
    True
    >>> ExperimentConfig(epochs=0)
    Traceback (most recent call last):
        ...
    ValueError: epochs must be a whole number of at least 1, got 0
    """

    dataset: str = "synthetic"
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    model: str = "linear"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    wav2spec: str | None = None
    wav2spec_options: Mapping[str, Any] = field(default_factory=dict)
    standardize: bool = False
    loss: str = "mse"
    epochs: int = 100
    patience: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 1
    seeds: tuple[int, ...] = (0,)
    warmup_ms: float = 0.0
    start: str = "default"
    calibrate: bool = True
    device: str = "cpu"
    out: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", seed_tuple(self.seeds))
        check_fields(self)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **overrides: Any) -> ExperimentConfig:
        """Read a TOML file; keyword arguments that are not None win over it.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        ValueError
            When it is no TOML, or holds a table or key that means nothing here.
        """
        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(
                f"config file {source} does not exist; write one, or give the choices as flags"
            )
        return cls.from_toml_text(source.read_text(encoding="utf-8"), str(source), **overrides)

    @classmethod
    def from_toml_text(cls, text: str, source: str = "config", **overrides: Any) -> ExperimentConfig:
        """Read TOML text; as `from_toml`."""
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{source} is no valid TOML: {error}") from None
        values = flatten_toml(tree, source)
        values.update({key: value for key, value in overrides.items() if value is not None})
        return cls(**values)

    def with_changes(self, **changes: Any) -> ExperimentConfig:
        """Return a copy in which the given fields that are not None are replaced."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})

    def to_toml(self) -> str:
        """Return the TOML text that `from_toml` reads back to an equal configuration."""
        return toml_text(self)

    def differences(self, other: ExperimentConfig) -> list[str]:
        """Return the fields, as "name: mine, not theirs", that make another experiment of it."""
        mine, theirs = self._identity(), other._identity()
        return [f"{key}: {theirs[key]!r}, not {mine[key]!r}" for key in mine if mine[key] != theirs[key]]

    def default_folder(self) -> str:
        """Return ``runs/<dataset>-<model>[-<front-end>]-<hash>``: the same choices give the same folder."""
        canonical = json.dumps(self._identity(), sort_keys=True, default=str)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:HASH_DIGITS]
        names = [Path(self.dataset).stem, self.model, *([self.wav2spec] if self.wav2spec else []), digest]
        return os.path.join("runs", "-".join(re.sub(r"[^\w.]+", "_", name) for name in names))

    def command(self) -> str:
        """Return the shortest ``deepstrf fit`` command that repeats the experiment."""
        default = ExperimentConfig()
        words = ["deepstrf", "fit"]
        for name, flag in FLAGS.items():
            value = getattr(self, name)
            if value == getattr(default, name):
                continue
            if name.endswith("_options"):
                words += [
                    word for key, item in value.items() for word in (flag, f"{key}={_option_text(item)}")
                ]
            elif isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-"))
            else:
                words += [flag, ",".join(map(str, value)) if name == "seeds" else str(value)]
        return shlex.join(words)

    def _identity(self) -> dict[str, Any]:
        return {
            item.name: plain(getattr(self, item.name))
            for item in fields(self)
            if item.name not in FREE_FIELDS
        }


#: Field to command-line flag; the command line is built from the same names.
FLAGS: dict[str, str] = {
    "dataset": "--dataset",
    "dataset_options": "--dataset-option",
    "split": "--split",
    "model": "--model",
    "model_options": "--model-option",
    "wav2spec": "--wav2spec",
    "wav2spec_options": "--wav2spec-option",
    "standardize": "--standardize",
    "loss": "--loss",
    "epochs": "--epochs",
    "patience": "--patience",
    "learning_rate": "--lr",
    "weight_decay": "--weight-decay",
    "batch_size": "--batch-size",
    "seeds": "--seeds",
    "warmup_ms": "--warmup-ms",
    "start": "--start",
    "calibrate": "--calibrate",
    "device": "--device",
}


def parse_options(pairs: Iterable[str], flag: str = "--dataset-option") -> dict[str, Any]:
    """Turn ``key=value`` texts into keyword arguments; values are read as TOML, else kept as text.

    Examples
    --------
    >>> parse_options(["smooth=false", "dt_ms=5", "binning=half-open", "f_max=none"])
    {'smooth': False, 'dt_ms': 5, 'binning': 'half-open', 'f_max': None}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.strip().isidentifier():
            raise ValueError(f"{flag} takes key=value, for instance {flag} smooth=false; got {pair!r}")
        options[name.strip()] = _read_value(text.strip())
    return options


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: "3", "0,1,2" or "0-4" (both ends included).

    Examples
    --------
    >>> parse_seeds("0-2,7")
    (0, 1, 2, 7)
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f"seeds must look like 0, 0,1,2 or 0-4, got {text!r}")
        seeds += range(first, last + 1)
    return seed_tuple(seeds)


def _read_value(text: str) -> Any:
    if text.lower() in {"true", "false", NONE_WORD}:
        return {"true": True, "false": False}.get(text.lower())
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _option_text(value: Any) -> str:
    return value if isinstance(value, str) else NONE_WORD if value is None else toml_value(value)
