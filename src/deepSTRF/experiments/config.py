"""The description of one experiment: one table of fields, from which everything else about them follows.

Each field of `ExperimentConfig` is declared once, by `choice`: its default, its check, its help and where it
stands in a TOML file. Checks, reading and writing of TOML, the flags of ``deepstrf fit`` and their help, the
command that repeats a run and the table of flags in the documentation are made from these declarations. This
module imports nothing heavy, so that the command line can print its help at once.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import numbers
import operator
import os
import re
import shlex
import string
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from deepSTRF._text import check_name
from deepSTRF.registry import LOSSES

__all__ = [
    "FLAGS",
    "Choice",
    "ExperimentConfig",
    "FieldError",
    "NamesFields",
    "choice",
    "choice_of",
    "closest",
    "fields_of",
    "flag_of",
    "flags_table",
    "inline_toml",
    "parse_options",
    "parse_seeds",
    "parse_toml",
    "read_toml",
    "toml_tree",
    "values_in",
]

#: A seed must suit NumPy's legacy generator.
LARGEST_SEED = 2**32 - 1
#: More fits are a slip, such as a range of seeds with a digit too many; and no count comes near the other.
MOST_SEEDS, LARGEST_COUNT = 1_000, 1_000_000_000
#: What TOML holds of whole numbers and of tables in tables.
LARGEST_WHOLE, DEEPEST = 2**63 - 1, 20
#: No size of a model or front-end comes near this, no number of parts (``n_...``) and no time in ms near the
#: second one; whole numbers whose names end in these words are no sizes.
LARGEST_SIZE, LARGEST_PART, NO_SIZES = 100_000, 10_000, ("seed", "bytes", "_fs", "_hz")
#: Bytes of a configuration, which is a page of text.
LONGEST_FILE = 1_000_000
STARTS = ("default", "ridge")
RESPONSE_METHODS = ("max", "zscore")  # those of NeuralDataset.normalized
SCHEDULES = ("constant", "cosine", "wsd")  # those of deepSTRF.training.fit_settings
#: The loss of a fit that names none, of a model without one of its own.
DEFAULT_LOSS = "mse"
DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d+)?")
#: TOML has no null; options that are None are written as this word, on the command line too.
NONE_WORD = "none"
HASH_DIGITS = 6

# ---- Errors that name fields, in the words of Python and of the command line


class NamesFields(Exception):  # noqa: N818  (a base of errors)
    """An error whose text names fields of an experiment.

    In the template ``{epochs}`` is a field, ``{loss:poisson}`` a field with a value, ``{0}`` a value given.
    The text of the error has ``epochs`` and ``loss='poisson'``; `command_text` has ``--epochs`` and
    ``--loss poisson``.
    """

    def __init__(self, template: str, *values: object) -> None:
        super().__init__(string.Formatter().vformat(template, values, _Names(flags=False)))
        self.template, self.values = template, values

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the template, not from the text."""
        return type(self), (self.template, *self.values)

    def command_text(self) -> str:
        """Return the text with flags in place of fields."""
        return string.Formatter().vformat(self.template, self.values, _Names(flags=True))


class FieldError(NamesFields, ValueError):
    """A value of a field, or a combination of fields, that is impossible."""


class FieldTypeError(FieldError, TypeError):
    """A value of the wrong type."""


class _Names(dict[str, Any]):
    """Every name of a template is a field."""

    def __init__(self, *, flags: bool) -> None:
        super().__init__()
        self.flags = flags

    def __missing__(self, name: str) -> _Name:
        return _Name(name, FLAGS.get(name, _dashed(name)) if self.flags else None)


@dataclass(frozen=True)
class _Name:
    """A field in a template; its format specification is a value."""

    field: str
    flag: str | None

    def __format__(self, value: str) -> str:
        if self.flag is not None:
            return f"{self.flag} {value}" if value else self.flag
        return f"{self.field}={value!r}" if value else self.field


def closest(word: str, legal: Iterable[str]) -> str:
    """Return " Did you mean ...?" for a near miss, else nothing."""
    near = difflib.get_close_matches(word, list(legal), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# ---- Checks of a field: each takes its name and a value, and returns the value to keep


def _text(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise FieldTypeError("{" + name + "} must be a non-empty text, got {0!r}", value)
    return _writable(name, value)


def _optional_text(name: str, value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise FieldTypeError("{" + name + "} must be a non-empty text or left out, got {0!r}", value)
    return value if value is None else _writable(name, value)


def _writable(name: str, text: str) -> str:
    """A text that a file of choices can hold, and a path can be."""
    if "\0" in text:
        raise FieldError("{" + name + "} holds a null character: {0!r}", text)
    try:
        check_name("it", text)
    except ValueError as error:
        raise FieldError("{" + name + "} is no name ({0})", error) from None
    return text


def _switch(name: str, value: Any) -> Any:
    if not isinstance(value, bool):
        raise FieldTypeError("{" + name + "} must be true or false, got {0!r}", value)
    return value


def _path(name: str, value: Any) -> Any:
    return _text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)


def _whole(value: Any) -> Any:
    """A whole number of another library as Python's own; anything else as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def _count(name: str, value: Any) -> Any:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FieldError("{" + name + "} must be a whole number of at least 1, got {0!r}", value)
    if value > LARGEST_COUNT:
        raise FieldError("{" + name + "} must be at most {0:,}, got {1:.3g}", LARGEST_COUNT, _rounded(value))
    return value


def _rounded(value: float) -> float:
    """A whole number as a float, which its text is short of; infinity where it is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _amount(name: str, value: Any) -> Any:
    """A number as a float: 1 and 1.0 are the same choice."""
    value = _whole(value)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and isinstance(value, int):
        number = math.isfinite(_rounded(value))
    if not number or not math.isfinite(value) or value < 0:
        raise FieldError("{" + name + "} must be a number of at least 0, got {0!r}", value)
    return float(value)


def _positive(name: str, value: Any) -> Any:
    number = _amount(name, value)
    if number == 0:
        raise FieldError("{" + name + "} must be above 0, got 0: nothing would be learned")
    return number


def _decay(name: str, value: Any) -> Any:
    number = _amount(name, value)
    if number >= 1:
        raise FieldError("{" + name + "} must be below 1, got {0!r}: the share that each step keeps", value)
    return number


def _bands(name: str, value: Any) -> Any:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_PART:
        template = "{" + name + "} must be a whole number of bands, 0 to {0:,}, got {1!r}"
        raise FieldError(template, LARGEST_PART, value)
    return value


def _one_of(names: Callable[[], Iterable[str]]) -> Callable[[str, Any], Any]:
    """``names`` is called when a value is checked: a registry then imports the files that fill it."""

    def check(name: str, value: Any) -> Any:
        legal = list(names())
        if _text(name, value) not in legal:
            template = "{" + name + "} must be one of {0}, got {1!r}.{2}"
            raise FieldError(template, ", ".join(legal), value, closest(value, legal))
        return value

    return check


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _device(name: str, value: Any) -> Any:
    if not DEVICE.fullmatch(_text(name, value)):
        raise FieldError("{" + name + "} must be like 'cpu', 'cuda', 'cuda:1' or 'auto', got {0!r}", value)
    return value


def _seeds(name: str, seeds: Any) -> tuple[int, ...]:
    """Seeds as a tuple of distinct ints; an int is one seed."""
    listed = seeds = _whole(seeds)
    if isinstance(seeds, int):
        listed = [seeds]
    elif isinstance(seeds, Iterable):
        listed = list(itertools.islice(seeds, MOST_SEEDS + 1))
    if not isinstance(listed, list) or not listed:
        raise FieldError("{" + name + "} must be a whole number or a list of them, got {0!r}", seeds)
    if len(listed) > MOST_SEEDS:
        raise FieldError("{" + name + "} must be at most {0:,}, one fit each; these are more", MOST_SEEDS)
    for seed in listed:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed <= LARGEST_SEED:
            raise FieldError("a seed is a whole number in 0 .. {0}, got {1!r}", LARGEST_SEED, seed)
    whole = tuple(int(seed) for seed in listed)
    if len(set(whole)) < len(whole):
        raise FieldError("{" + name + "} must differ from each other, got {0}", list(whole))
    return whole


def _options(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise FieldTypeError("{" + name + "} must map names to values, got {0!r}", value)
    value = {key: os.fspath(item) if isinstance(item, os.PathLike) else item for key, item in value.items()}
    for key, item in value.items():
        _option(name, key, item)
    return value


def _option(name: str, key: str, value: Any, depth: int = 0) -> None:
    """Refuse a number or a text in an option that no model and no file takes."""
    problem = None
    is_part = key.startswith("n_") or key.endswith("_ms")
    largest = LARGEST_PART if is_part else LARGEST_SIZE if isinstance(value, int) else math.inf
    if name == "dataset_options" or key.endswith(NO_SIZES):
        largest = LARGEST_WHOLE
    if isinstance(value, str):
        _writable(name, value)
    elif isinstance(value, int | float) and math.isfinite(_rounded(value)) and abs(value) > largest:
        problem = f"must be at most {largest:,}, got {_rounded(value):.3g}"
    elif isinstance(value, int | float) and not math.isfinite(_rounded(value)):
        problem = f"must be finite, got {_rounded(value)}"
    elif depth > DEEPEST:
        problem = f"is nested more than {DEEPEST} levels deep"
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _option(name, key, item, depth + 1)
    if problem is not None:
        raise FieldError("{" + name + "}: {0} {1}", key, problem)


# ---- The table


@dataclass(frozen=True)
class Choice:
    """What is said of a field where it is declared; the rest follows from its name, type and default.

    ``toml`` is the table of the TOML file, or "table.key" where the key is not the field's name; ``flag`` is
    the flag where it is not the name with dashes; ``shown`` is what help gives as the default where the value
    itself says little. The ``identity`` of an experiment are the fields that make two runs different ones;
    one that came ``later`` is no part of it at its default, so that folders of earlier runs keep their names.
    """

    check: Callable[[str, Any], Any]
    toml: str
    help: str
    flag: str = ""
    short: str = ""
    metavar: str | None = None
    shown: str = ""
    identity: bool = True
    later: bool = False


def choice(default: Any, check: Callable[[str, Any], Any], toml: str, help: str, **more: Any) -> Any:
    """Return a dataclass field that is a choice of the user; ``more`` are further attributes of `Choice`."""
    metadata = {"choice": Choice(check, toml, help, **more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All choices behind one run; checked when it is made.

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
    deepSTRF.experiments.config.FieldError: epochs must be a whole number of at least 1, got 0
    """

    dataset: str = choice(
        "synthetic", _path, "dataset.name",
        "A name of `deepstrf datasets`, an .npz file, or a recording (a file or folder of its formats).",
        short="-d", metavar="NAME|FILE",
    )  # fmt: skip
    dataset_options: Mapping[str, Any] = choice(
        {}, _options, "dataset.options", "Option of the dataset, e.g. `alignment=causal`; repeat for more.",
        flag="--dataset-option", short="-o", metavar="KEY=VALUE",
    )  # fmt: skip
    split: str | None = choice(
        None, _optional_text, "dataset",
        "Clips to train/validate/test: `14/3/3`, `random:0.7/0.15/0.15`, `kfold:5:fold=0`; of one long "
        "recording pieces of 10 s: `cut:10:random:0.7/0.15/0.15`.",
        metavar="SPLIT", shown="of the recording, else random",
    )  # fmt: skip
    normalize_responses: str | None = choice(
        None, _optional(_one_of(lambda: RESPONSE_METHODS)), "dataset",
        "Scale the responses of each neuron by its training clips: `max` or `zscore`.", metavar="NAME",
        shown="as recorded", later=True,
    )  # fmt: skip
    model: str = choice(
        "linear", _text, "model.name", "A name of `deepstrf models`.", short="-m", metavar="NAME"
    )
    model_options: Mapping[str, Any] = choice(
        {}, _options, "model.options", "Option of the model, e.g. `norm=none`; repeat for more.",
        flag="--model-option", metavar="KEY=VALUE",
    )  # fmt: skip
    wav2spec: str | None = choice(
        None, _optional_text, "model", "Fit from the waveform through this front-end, e.g. `mel`.",
        short="-w", metavar="NAME",
    )  # fmt: skip
    wav2spec_options: Mapping[str, Any] = choice(
        {}, _options, "model", "Option of the front-end; repeat for more.",
        flag="--wav2spec-option", metavar="KEY=VALUE",
    )  # fmt: skip
    standardize: bool = choice(
        False, _switch, "model", "Standardise each frequency band on the training clips."
    )
    loss: str | None = choice(
        None, _optional(_one_of(LOSSES.names)), "training", "A loss of `deepstrf models`, e.g. `poisson`.",
        metavar="NAME", shown="the model's own, else mse",
    )  # fmt: skip
    epochs: int = choice(100, _count, "training", "Most epochs.", short="-e", identity=False)
    patience: int | None = choice(
        None, _optional(_count), "training", "Stop after so many epochs without a better validation score.",
        metavar="INTEGER", shown="30, with a rate that decays all epochs", identity=False,
    )  # fmt: skip
    learning_rate: float = choice(1e-3, _positive, "training", "Learning rate of AdamW.", flag="--lr")
    weight_decay: float = choice(0.0, _amount, "training", "Weight decay of AdamW.")
    schedule: str = choice(
        "constant", _one_of(lambda: SCHEDULES), "training",
        "Learning rate over the epochs: constant, cosine, or wsd (warm-up, stable, decay).", metavar="NAME",
        later=True,
    )  # fmt: skip
    grad_clip: float | None = choice(
        None, _optional(_positive), "training", "Largest norm of the gradient.", metavar="FLOAT",
        shown="none", later=True,
    )  # fmt: skip
    weight_average: float = choice(
        0.0, _decay, "training",
        "Validate and keep a running average of the weights with this decay per step, e.g. `0.99`; 0 is off.",
        later=True,
    )  # fmt: skip
    band_shift: int = choice(
        0, _bands, "training",
        "Shift the spectrogram of each training clip at random by up to so many bands; 0 is off.", later=True,
    )  # fmt: skip
    teachers: str | None = choice(
        None, _optional_text, "training",
        "Distillation: run folders or names of shipped models, separated by commas, whose mean prediction is "
        "half of the target, and all of it for as many synthetic clips.",
        metavar="RUN,RUN", later=True,
    )  # fmt: skip
    refit: bool = choice(
        False, _switch, "training",
        "After the choice of the epoch, fit anew on training and validation clips together.", later=True,
    )  # fmt: skip
    batch_size: int = choice(1, _count, "training", "Clips per step.")
    seeds: tuple[int, ...] = choice(
        (0,), _seeds, "training", "One fit per seed: `0`, `0,1,2` or `0-4`.", short="-s", metavar="SEEDS"
    )
    warmup_ms: float = choice(
        0.0, _amount, "training", "Onset of each clip left out of loss and scores, in ms."
    )
    start: str = choice(
        "default", _one_of(lambda: STARTS), "training",
        "default, or ridge: start STRFs from a ridge estimate.", metavar="NAME",
    )  # fmt: skip
    calibrate: bool = choice(
        True, _switch, "training",
        "After a fit with mse, set output gain and offset of each neuron on the training clips.",
    )  # fmt: skip
    device: str = choice(
        "cpu", _device, "training", "cpu, cuda, mps or auto.", metavar="NAME", identity=False
    )
    out: str | None = choice(
        None, _optional_text, "", "Run folder.",
        metavar="FOLDER", shown="one under runs/ named after the choices", identity=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for item in fields(self):
            value = choice_of(item).check(item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        if self.wav2spec_options and self.wav2spec is None:
            raise FieldError(
                "{wav2spec_options} are given but no {wav2spec}; name the front-end, "
                "for instance {wav2spec:mel}"
            )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **overrides: Any) -> ExperimentConfig:
        """Read a TOML file; keyword arguments that are not None win over it.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        ValueError
            When it is empty, not valid TOML in UTF-8, or holds an unknown table or key.
        """
        values = values_in(path, cls)
        values.update({key: value for key, value in overrides.items() if value is not None})
        return cls(**values)

    @classmethod
    def from_toml_text(cls, text: str, source: str = "config", **overrides: Any) -> ExperimentConfig:
        """Read TOML text; as `from_toml`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be TOML text, got {type(text).__name__}")
        values = _values_of(parse_toml(text, source), _toml_layout(cls), source)
        values.update({key: value for key, value in overrides.items() if value is not None})
        return cls(**values)

    @classmethod
    def recommended(cls, model: str, **choices: Any) -> ExperimentConfig:
        """Return a configuration with the choices that a model recommends, where none is given.

        Parameters
        ----------
        model : str
            A registered model with recommendations (its class attribute ``recommended``).
        **choices
            Fields; those given win.

        Raises
        ------
        ValueError
            When the model has none; the text names those that have.
        """
        from deepSTRF.registry import MODELS, SOLVERS

        recommending = [name for name, entry in MODELS.items() if getattr(entry, "recommended", None)]
        if model in SOLVERS or model.lower() not in recommending:
            if model not in SOLVERS:
                MODELS.get(model)  # an unknown name has an error of its own
            why = "is solved without epochs, which takes none" if model in SOLVERS else "has none"
            raise FieldError(
                "recommended choices of a fit: {model:{0}} " + why + "; models that have them: {1}",
                model,
                ", ".join(recommending) or "none",
            )
        entry: Any = MODELS.get(model)
        return cls(**{**entry.recommended, "model": model, **choices})

    def with_changes(self, **changes: Any) -> ExperimentConfig:
        """Return a copy in which the given fields that are not None are replaced."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})

    def to_toml(self) -> str:
        """Return the TOML text that `from_toml` reads back to an equal configuration; None is left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return tomli_w.dumps(toml_tree(values, type(self)))

    def differences(self, other: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
        """Return the fields that make another experiment of it: name to (other value, own value)."""
        mine, theirs = self.identity(), other.identity()
        return {
            name: (theirs.get(name), mine.get(name))
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        }

    def default_folder(self) -> str:
        """Return ``runs/<dataset>-<model>[-<front-end>]-<hash>``: the same choices give the same folder."""
        canonical = json.dumps(self.identity(), sort_keys=True, default=str)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:HASH_DIGITS]
        names = [Path(self.dataset).stem, self.model, *([self.wav2spec] if self.wav2spec else []), digest]
        return os.path.join("runs", "-".join(re.sub(r"[^\w.]+", "_", name) for name in names))

    def command(self) -> str:
        """Return the shortest ``deepstrf fit`` command that repeats the experiment."""
        default = type(self)()
        words = ["deepstrf", "fit"]
        for item in fields(self):
            value, flag = getattr(self, item.name), flag_of(item)
            if item.name == "out" or value == getattr(default, item.name):
                continue
            if isinstance(value, Mapping):
                words += [word for key, one in value.items() for word in (flag, f"{key}={_typed(one)}")]
            elif isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-"))
            else:
                words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)

    def identity(self) -> dict[str, Any]:
        """Return the choices that make two runs different ones, as plain values."""
        values = {
            item.name: _plain(getattr(self, item.name)) for item in fields(self) if choice_of(item).identity
        }
        values["loss"] = self.loss or DEFAULT_LOSS  # as runs of before that named no loss
        for item in fields(self):
            if choice_of(item).later and values[item.name] == item.default:
                del values[item.name]
        if self.schedule != "constant":
            values["epochs"] = self.epochs  # they decide the rate of every step
        return values


def choice_of(item: Field[Any]) -> Choice:
    """Return what was declared of a field."""
    declared: Choice = item.metadata["choice"]
    return declared


def flag_of(item: Field[Any]) -> str:
    """Return the flag of a field."""
    return choice_of(item).flag or _dashed(item.name)


def default_text(item: Field[Any]) -> str:
    """Return what help and tables give as the default of a field; empty where there is nothing to give."""
    if choice_of(item).shown or item.default in (None, MISSING):
        return choice_of(item).shown
    if isinstance(item.default, bool):
        return "yes" if item.default else "no"
    return ",".join(map(str, item.default)) if isinstance(item.default, tuple) else str(item.default)


def flags_table(config: type[ExperimentConfig] = ExperimentConfig) -> str:
    """Return the Markdown table of flags and TOML keys in ``docs/cli.md``."""
    lines = ["| flag | in a file | default | meaning |", "|---|---|---|---|"]
    for item in fields(config):
        table, _, key = choice_of(item).toml.partition(".")
        flags = ", ".join(f"`{flag}`" for flag in (flag_of(item), choice_of(item).short) if flag)
        place = f"`[{table}]` `{key or item.name}`" if table else f"`{key or item.name}`"
        lines.append(f"| {flags} | {place} | {default_text(item)} | {choice_of(item).help} |")
    return "\n".join(lines) + "\n"


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


#: Field to flag of ``deepstrf fit``; the run folder is no part of the experiment.
FLAGS = {item.name: flag_of(item) for item in fields(ExperimentConfig) if item.name != "out"}


def _attributes() -> str:
    """The numpydoc section on the fields."""
    types = get_type_hints(ExperimentConfig)
    lines = ["Attributes", "----------"]
    for item in fields(ExperimentConfig):
        kind = getattr(types[item.name], "__name__", str(types[item.name]))
        lines += [f"{item.name} : {kind}", f"    {choice_of(item).help}"]
    return textwrap.indent("\n".join(lines), "    ")


ExperimentConfig.__doc__ = (ExperimentConfig.__doc__ or "").replace(
    "    Raises\n", f"{_attributes()}\n\n    Raises\n", 1
)

# ---- TOML


def values_in(
    path: str | os.PathLike[str], config: type[ExperimentConfig] = ExperimentConfig
) -> dict[str, Any]:
    """Return the fields that a TOML file gives; errors as those of `ExperimentConfig.from_toml`."""
    return fields_of(read_toml(path), str(path), config)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tree of a TOML file of choices."""
    from deepSTRF._files import DamagedFileError, check_regular, read_text  # with PyTorch

    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be the path of a TOML file, got {path!r} ({type(path).__name__})")
    source = Path(path)
    if not os.path.lexists(source):
        raise FileNotFoundError(
            f"config file {source} does not exist; write one, or give the choices as flags"
        )
    try:
        check_regular(source, limit=LONGEST_FILE)
        text = read_text(source)
    except DamagedFileError as error:
        raise ValueError(f"config file {error}") from None
    except OSError as error:
        raise ValueError(f"config file {source} cannot be read ({error.strerror})") from error
    if not text.strip():
        raise ValueError(f"config file {source} is empty; write choices into it, or give them as flags")
    return parse_toml(text, str(source))


def fields_of(
    tree: Mapping[str, Any], source: str, config: type[ExperimentConfig] = ExperimentConfig
) -> dict[str, Any]:
    """Return the fields in a tree of TOML; an unknown table or key raises ValueError."""
    return _values_of(tree, _toml_layout(config), source)


def toml_tree(values: Mapping[str, Any], config: type[ExperimentConfig] = ExperimentConfig) -> dict[str, Any]:
    """Return fields as the tree of a TOML file, without those that are None or empty."""
    tree: dict[str, Any] = {}
    for table, keys in _toml_layout(config).items():
        given = {key: values.get(name) for key, name in keys.items()}
        written = {key: _saved(value) for key, value in given.items() if value not in (None, {})}
        tree.update({table: written} if table and written else written)
    return tree


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the tree of a TOML text."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers and nesting without an end
        raise ValueError(f"{source} is no valid TOML: {error}") from None


def _toml_layout(config: type[ExperimentConfig]) -> dict[str, dict[str, str]]:
    """Table to key to field; the table "" is the top of the file."""
    layout: dict[str, dict[str, str]] = {"": {}}
    for item in fields(config):
        table, _, key = choice_of(item).toml.partition(".")
        layout.setdefault(table, {})[key or item.name] = item.name
    return layout


def _values_of(
    tree: Mapping[str, Any], layout: Mapping[str, Mapping[str, str]], source: str
) -> dict[str, Any]:
    """Fields of a parsed TOML tree; an unknown table or key raises ValueError naming the nearest."""
    values: dict[str, Any] = {}
    tables = [table for table in layout if table]
    for key, value in tree.items():
        if key in layout[""]:
            values[layout[""][key]] = value
            continue
        if key not in tables or not isinstance(value, Mapping):
            legal = [*layout[""], *(f"[{table}]" for table in tables)]
            raise ValueError(
                f"{source}: {key!r} means nothing here; legal at the top are {', '.join(legal)}."
                f"{closest(key, [*layout[''], *tables])}"
            )
        for name, item in value.items():
            if name not in layout[key]:
                raise ValueError(
                    f"{source}: [{key}] has no key {name!r}; legal are {', '.join(layout[key])}."
                    f"{closest(name, layout[key])}"
                )
            values[layout[key][name]] = item
            if layout[key][name].endswith("_options"):
                if not isinstance(item, Mapping):
                    raise TypeError(f"{source}: [{key}.{name}] must be a table of options, got {item!r}")
                values[layout[key][name]] = {
                    option: None if chosen == NONE_WORD else chosen for option, chosen in item.items()
                }
    return values


def _saved(value: Any) -> Any:
    """A value as the TOML writer takes it, None as the word none."""
    if value is None:
        return NONE_WORD
    if isinstance(value, str | bool | float):
        return value
    if hasattr(value, "__index__"):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _saved(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_saved(item) for item in value]
    raise TypeError(
        f"an option must be a text, number, truth value, list or table to be saved, got {value!r}"
    )


def inline_toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        quoted = {tomli_w.dumps({str(key): 0}).removesuffix(" = 0\n"): item for key, item in value.items()}
        return "{" + ", ".join(f"{key} = {inline_toml(item)}" for key, item in quoted.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline_toml(item) for item in value) + "]"
    return tomli_w.dumps({"value": _saved(value)}).removeprefix("value = ").rstrip("\n")


def _plain(value: Any) -> Any:
    """A value with tuples as lists, mappings as dictionaries: equal choices compare equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# ---- Options and seeds as texts on the command line


def parse_options(pairs: Iterable[str], flag: str = "--dataset-option") -> dict[str, Any]:
    """Turn ``key=value`` texts into keyword arguments; values are read as TOML, else kept as text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = (part.strip() for part in pair.partition("="))
        if not sign or not name.isidentifier():
            raise ValueError(f"{flag} takes key=value, for instance {flag} smooth=false; got {pair!r}")
        if text.lower() in {"true", "false", NONE_WORD}:
            options[name] = {"true": True, "false": False}.get(text.lower())
            continue
        try:
            options[name] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            options[name] = text
    return options


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: "3", "0,1,2" or "0-4" (both ends included)."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise FieldError("{seeds} must look like 0, 0,1,2 or 0-4, got {0!r}", text)
        seeds += range(first, min(last, first + MOST_SEEDS) + 1)
    return _seeds("seeds", seeds)


def _typed(value: Any) -> str:
    """An option as `parse_options` reads it back."""
    return value if isinstance(value, str) else NONE_WORD if value is None else inline_toml(value)
