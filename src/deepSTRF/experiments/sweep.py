"""The description of a sweep: one experiment, and axes along which its choices vary.

A sweep is a table of `ExperimentConfig` fields and a grid: every combination of the values of its axes is a
fit of its own, with a key that is the hash of all that decides its result. The fits are run by
`deepSTRF.experiments.run_sweep`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from deepSTRF._files import file_facts
from deepSTRF._validation import checked
from deepSTRF.experiments.build import is_file, with_floats
from deepSTRF.experiments.config import (
    NONE_WORD,
    ExperimentConfig,
    closest,
    fields_of,
    inline_toml,
    parse_toml,
    read_toml,
    toml_tree,
)
from deepSTRF.registry import DATASETS, MODELS, SOLVERS, WAV2SPEC, Registry

__all__ = [
    "FOLD",
    "KEYS",
    "REPEATS",
    "SEARCH",
    "Axis",
    "Contents",
    "PlannedFit",
    "Sweep",
    "axis_of",
    "base_of",
    "fields_given",
    "flat_grid",
    "is_choice",
    "label_of",
    "lacks_fold",
    "none_words",
    "planned",
]

#: The axis that completes a split such as "kfold:5" by its fold.
FOLD = "fold"
#: Axes that repeat a configuration: scores are averaged over them.
REPEATS = ("seeds", FOLD, "split")
#: Tables of a sweep's TOML file beside those of an experiment; `SEARCH` is of `deepSTRF.experiments.search`,
#: and `KEYS` is written where a sweep is run: name of a fit to its key.
GRID, EXCLUDE, SEARCH, KEYS = "grid", "exclude", "search", "keys"
#: More fits than this are a slip.
MOST_FITS = 100_000
#: Characters of a label, and digits of a key in the name of a folder.
LONGEST_LABEL, KEY_DIGITS = 60, 12
#: Raised when fits of the same choices would have other results, so that none of before is taken for them.
KEY_FORMAT = 1
#: A field that names something, and the options that go with it.
_OPTIONS_OF = {"dataset": "dataset_options", "model": "model_options", "wav2spec": "wav2spec_options"}
#: Options of a recording with a name that say where its files are.
_PLACES = ("path", "root")
_FIELDS = {item.name: item for item in fields(ExperimentConfig) if item.name != "out"}

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class PlannedFit:
    """One fit of a sweep.

    ``choices`` maps each axis to the label of its value; ``key`` is the SHA-256 of all that decides the
    result: the choices, and the content of a recording in files.
    """

    name: str
    config: ExperimentConfig
    choices: Mapping[str, str]
    key: str

    @property
    def folder(self) -> str:
        """Name of its run folder: words for a reader, digits of the key for the rest."""
        words = Path(self.config.default_folder()).name.rpartition("-")[0]
        return f"{words[:100]}-{self.key[:KEY_DIGITS]}"


@dataclass(frozen=True)
class Axis:
    """Labels of an axis, and what each of its values changes: field, "options.key" or "fold" to value."""

    name: str
    labels: tuple[str, ...]
    changes: tuple[Changes, ...]


@checked
@dataclass(frozen=True)
class Sweep:
    """Models, front-ends, recordings, seeds, folds and options to be fitted in every combination.

    Parameters
    ----------
    base : ExperimentConfig or mapping
        Choices that all fits share; of a mapping, fields of `ExperimentConfig`.
    grid : mapping
        Axis to a list of values. An axis is a field ("model", "seeds", "learning_rate", ...), a single option
        ("model_options.n_lags"), "fold" (whole numbers that complete a split such as "kfold:5"), or any other
        word, whose values are tables of fields that change together, with a "name" each where one likes.
    exclude : sequence of mappings
        Combinations to leave out: axis or field to a value, or to a list of values; all must hold.
    name : str
        Name of the sweep.

    Raises
    ------
    ValueError, TypeError
        For an unknown axis or field, an impossible value, two fits with the same choices, an ``exclude`` that
        matches nothing; the text names the combination.

    Notes
    -----
    Where an axis names another model, recording or front-end than ``base``, the options in ``base`` of the
    earlier one are dropped, as by ``deepstrf fit``.

    Examples
    --------
    >>> sweep = Sweep(
    ...     {"dataset": "ns1", "split": "kfold:5", "epochs": 50},
    ...     {"model": ["linear", "dnet"], "wav2spec": [None, "mel"], "seeds": [0, 1, 2], "fold": range(5)},
    ...     exclude=[{"model": "dnet", "wav2spec": "mel"}],
    ... )
    >>> configs = sweep.configs()
    >>> len(configs), list(configs)[0]
    (45, 'model=linear, wav2spec=none, seeds=0, fold=0')
    >>> configs["model=dnet, wav2spec=none, seeds=2, fold=4"].split
    'kfold:5:fold=4'
    """

    base: ExperimentConfig | Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[Mapping[str, Any]] = ()
    name: str = "sweep"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name must be a non-empty text")
        for position, rule in enumerate(self.exclude):
            if not isinstance(rule, Mapping) or not rule:
                raise TypeError(f"exclude[{position}] must map axes or fields to values, got {rule!r}")
        self._plan(Contents(read=False))  # so that what is wrong is said at once

    @classmethod
    @checked
    def from_toml(cls, path: str | os.PathLike[str]) -> Sweep:
        """Read a TOML file: the tables of an experiment, ``[grid]`` and ``[[exclude]]``.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        ValueError, TypeError
            When it is not valid TOML, or holds an unknown table, key, axis or field.
        """
        return cls._from_tree(read_toml(path), str(path), Path(path).stem)

    @classmethod
    @checked
    def from_toml_text(cls, text: str, source: str = "sweep") -> Sweep:
        """Read TOML text; as `from_toml`. ``source`` names it in errors."""
        return cls._from_tree(parse_toml(text, source), source, source)

    @classmethod
    def _from_tree(cls, tree: Mapping[str, Any], source: str, name: str) -> Sweep:
        values = base_of(tree, source)
        grid = tree.get(GRID, {})
        if not isinstance(grid, Mapping):
            raise TypeError(f"{source}: [grid] must be a table of axes, got {grid!r}")
        exclude = tree.get(EXCLUDE, [])
        exclude = [exclude] if isinstance(exclude, Mapping) else exclude
        return cls(values, none_words(grid), tuple(exclude), str(tree.get("name", name)))

    def to_toml(self) -> str:
        """Return the TOML text from which `from_toml` makes the same fits."""
        tree = {"name": self.name, **toml_tree(self._base())}
        tree[GRID] = _written(flat_grid(self.grid))
        if self.exclude:
            tree[EXCLUDE] = [_written(rule) for rule in self.exclude]
        return tomli_w.dumps(tree)

    @property
    def axes(self) -> dict[str, list[str]]:
        """Axis to the labels of its values."""
        return {axis.name: list(axis.labels) for axis in self._axes()}

    def configs(self) -> dict[str, ExperimentConfig]:
        """Return the configuration of every fit by its name, in the order of the grid."""
        return {fit.name: fit.config for fit in self._plan(Contents(read=False))}

    @checked
    def fits(self, keys: Mapping[str, str] | None = None) -> list[PlannedFit]:
        """Return every fit: name, configuration, labels of its choices, key; reads recordings in files.

        ``keys`` are of an earlier call, by name: where they have all fits, nothing is read.
        """
        plan = self._plan(Contents(read=False))
        if keys and all(fit.name in keys for fit in plan):
            return [replace(fit, key=keys[fit.name]) for fit in plan]
        return self._plan(Contents())

    def _plan(self, contents: Contents) -> list[PlannedFit]:
        axes, base = self._axes(), self._base()
        total = math.prod(len(axis.labels) for axis in axes)
        if total > MOST_FITS:
            raise ValueError(f"the grid has {total:,} combinations, at most {MOST_FITS:,} are one sweep")
        found: dict[str, PlannedFit] = {}
        excluded = [0] * len(self.exclude)
        for places in itertools.product(*(range(len(axis.labels)) for axis in axes)):
            choices = {axis.name: axis.labels[place] for axis, place in zip(axes, places, strict=True)}
            changes = [axis.changes[place] for axis, place in zip(axes, places, strict=True)]
            name = ", ".join(f"{axis}={label}" for axis, label in choices.items()) or self.name
            fit = planned(name, choices, base, changes, contents)
            matched = [place for place, rule in enumerate(self.exclude) if _matches(rule, fit)]
            for place in matched:
                excluded[place] += 1
            if matched:
                continue
            same = found.get(fit.key)
            if same is not None:
                raise ValueError(
                    f"the fits {same.name!r} and {name!r} have the same choices; leave one out of the grid"
                )
            found[fit.key] = fit
        for rule, count in zip(self.exclude, excluded, strict=True):
            if not count:
                raise ValueError(f"exclude {dict(rule)} matches none of the {total} combinations of the grid")
        if not found:
            raise ValueError("exclude leaves no fit of the grid")
        return list(found.values())

    def _base(self) -> dict[str, Any]:
        return fields_given(self.base)

    def _axes(self) -> list[Axis]:
        return [axis_of(name, values) for name, values in flat_grid(self.grid).items()]


# ---- The grid


def base_of(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of `ExperimentConfig` in the file of a sweep or a search, beside the tables of its own."""
    own = ("name", GRID, EXCLUDE, SEARCH, KEYS)
    values = fields_of({key: value for key, value in tree.items() if key not in own}, source)
    values.pop("out", None)
    return values


def fields_given(base: ExperimentConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a base: those of a mapping, or where a configuration is not the default."""
    if isinstance(base, ExperimentConfig):
        plain = ExperimentConfig()
        given = {name: getattr(base, name) for name in _FIELDS}
        return {name: value for name, value in given.items() if value != getattr(plain, name)}
    for key in base:
        if key not in _FIELDS:
            raise ValueError(
                f"base: {key!r} is no field of ExperimentConfig.{closest(key, _FIELDS)} (the folder of the "
                "fits is an argument of its own)"
            )
    return _plain_values(base)


def flat_grid(grid: Mapping[str, Any]) -> dict[str, Any]:
    """Axes by name; a table of options is one axis per option."""
    found: dict[str, Any] = {}
    for name, values in grid.items():
        if name in _OPTIONS_OF.values() and isinstance(values, Mapping):
            found |= {f"{name}.{option}": listed for option, listed in values.items()}
        else:
            found[name] = values
    return found


def axis_of(name: str, given: Any) -> Axis:
    """Axis of a name and its list of values; errors say which is wrong."""
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise TypeError(f"grid: the axis {name!r} must be a list of values, got {given!r}")
    values: list[Any] = list(given)
    if not values:
        raise ValueError(f"grid: the axis {name!r} has no values")
    if is_choice(name):
        labels, changes = [label_of(value) for value in values], [{name: value} for value in values]
    else:
        if not all(isinstance(value, Mapping) for value in values):
            legal = [*_FIELDS, FOLD]
            raise ValueError(
                f"grid: {name!r} is no field of ExperimentConfig, so its values must be tables of fields "
                f"that change together, got {values[:3]!r}.{closest(name, legal)}"
            )
        labels, changes = [], []
        for value in values:
            own = _flat_changes(name, {key: item for key, item in value.items() if key != "name"})
            text = ", ".join(f"{key}={label_of(item)}" for key, item in own.items()) or "base"
            labels.append(label_of(value.get("name", text)))
            changes.append(own)
    if len(set(labels)) < len(labels):
        raise ValueError(f"grid: the axis {name!r} has equal values or names: {', '.join(labels)}")
    return Axis(name, tuple(labels), tuple(changes))


def is_choice(name: str) -> bool:
    """Whether a word is a field, an option of one, or "fold"."""
    table, dot, option = name.partition(".")
    return name == FOLD or name in _FIELDS or (table in _OPTIONS_OF.values() and bool(dot and option))


def _flat_changes(axis: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of one alternative; a table of options is one change per option."""
    changes = flat_grid(table)
    for key in changes:
        if not is_choice(key):
            raise ValueError(
                f"grid: {key!r} in the axis {axis!r} is no field of ExperimentConfig, no option such as "
                f"'model_options.n_lags', and not 'fold'.{closest(key, _FIELDS)}"
            )
    return changes


def label_of(value: Any) -> str:
    """A value in names and tables."""
    if isinstance(value, str):
        text = value
    elif value is None:
        text = NONE_WORD
    elif isinstance(value, Sequence) and value and all(isinstance(item, int) for item in value):
        text = ",".join(map(str, value))
    else:
        text = inline_toml(value)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def none_words(value: Any) -> Any:
    """The tree of a TOML file with None for the word none."""
    if isinstance(value, Mapping):
        return {key: none_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [none_words(item) for item in value]
    return None if value == NONE_WORD else value


def _written(value: Any) -> Any:
    """The opposite of `none_words`, in plain types: lists for tuples and ranges, Python's own numbers."""
    if isinstance(value, Mapping):
        return {str(key): _written(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range | np.ndarray):
        return [_written(item) for item in value]
    if value is None:
        return NONE_WORD
    if isinstance(value, str | bool):
        return value
    return int(value) if hasattr(value, "__index__") else float(value)


# ---- One combination


def planned(
    name: str,
    choices: Mapping[str, str],
    base: Mapping[str, Any],
    changes: Sequence[Changes],
    contents: Contents,
) -> PlannedFit:
    """Put a combination together; an error of its choices names it."""
    values = _plain_values(base)
    merged = {key: value for change in changes for key, value in change.items()}
    for named, options in _OPTIONS_OF.items():  # options of another model are not those of this one
        usual = getattr(ExperimentConfig, named)
        if merged.get(named, values.get(named, usual)) != values.get(named, usual):
            values.pop(options, None)
    try:
        for key, value in sorted(merged.items(), key=lambda item: item[0].count(".") + 2 * (item[0] == FOLD)):
            _set_choice(values, key, value)
        config = _with_whole_path(ExperimentConfig(**values))
    except (ValueError, TypeError) as error:
        error.add_note(f"The fit is {name!r}")
        raise
    return PlannedFit(name, config, choices, contents.key(config))


def _plain_values(base: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of fields in which options can be set."""
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}


def _set_choice(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a field, a single option ("model_options.n_lags"), or the fold of the split, in fields."""
    table, dot, option = key.partition(".")
    if key == FOLD:
        split = values.get("split")
        if split is None or not lacks_fold(split):
            raise ValueError(
                f"fold={value!r} completes a split such as 'kfold:5' or 'loo', and the split is {split!r}"
            )
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
            raise ValueError(f"fold must be a whole number of at least 0, got {value!r}")
        folds = re.search(r"kfold:(\d+)", split)
        if folds and value >= int(folds[1]):
            raise ValueError(f"fold={value!r}: the folds of {split!r} are 0 to {int(folds[1]) - 1}")
        values["split"] = f"{split}:fold={int(value)}"
    elif dot:
        values[table] = {**values.get(table, {}), option: value}
    else:
        values[key] = value


def lacks_fold(split: str | None) -> bool:
    """Whether a split is completed by a fold: "kfold:5", "cut:10:loo"."""
    words = (split or "").lower().split(":")
    kind = next((word for word in words[2 if words[0] == "cut" else 0 :]), "")
    return kind in ("kfold", "loo") and not any(word.strip().startswith("fold=") for word in words)


def _matches(rule: Mapping[str, Any], fit: PlannedFit) -> bool:
    """Whether all that a rule names holds for a fit."""
    for key, wanted in rule.items():
        if key in fit.choices:
            found = fit.choices[key]
        elif key in _FIELDS:
            found = label_of(getattr(fit.config, key))
        elif is_choice(key) and "." in key:
            table, _, option = key.partition(".")
            found = label_of(getattr(fit.config, table).get(option))
        else:
            raise ValueError(
                f"exclude: {key!r} is neither an axis nor a field.{closest(key, [*fit.choices, *_FIELDS])}"
            )
        listed = isinstance(wanted, list | tuple) and label_of(wanted) != found
        if found not in [label_of(value) for value in (wanted if listed else [wanted])]:
            return False
    return True


# ---- What decides a result


class Contents:
    """Keys of fits; each recording in files is read once, or left out of them (``read`` False)."""

    def __init__(self, *, read: bool = True) -> None:
        self._digests: dict[Path, str] = {}
        self._read = read

    def key(self, config: ExperimentConfig) -> str:
        """SHA-256 of the choices and of the recording, where it is in files: then wherever they are."""
        facts = {
            "format": KEY_FORMAT,
            **config.identity(),
            "epochs": config.epochs,
            "patience": config.patience,
        }
        for options, entry in _entries_of(config).items():
            facts[options] = with_floats(entry, facts[options])
        option, path = _files_of(config)
        if self._read and path is not None:
            if path not in self._digests:
                self._digests[path] = _digest_of_files(path)
            facts["content"] = self._digests[path]
            if option is None:
                del facts["dataset"]
            else:
                del facts["dataset_options"][option]
        return hashlib.sha256(json.dumps(_written(facts), sort_keys=True).encode()).hexdigest()


def _entries_of(config: ExperimentConfig) -> dict[str, Any]:
    """Field of options to the class or function that takes them, where that is known by a name."""
    models = SOLVERS if config.model in SOLVERS else MODELS
    found: dict[str, tuple[Registry[Any], Any]] = {
        "dataset_options": (DATASETS, config.dataset),
        "model_options": (models, config.model),
        "wav2spec_options": (WAV2SPEC, config.wav2spec),
    }
    return {options: registry.get(name) for options, (registry, name) in found.items() if name in registry}


def _files_of(config: ExperimentConfig) -> tuple[str | None, Path | None]:
    """File or folder of a recording that is there, and the option that names it; None for a known name."""
    option = next((name for name in _PLACES if isinstance(config.dataset_options.get(name), str)), None)
    if config.dataset not in DATASETS:
        option = None
    elif option is None:
        return None, None
    path = Path(config.dataset if option is None else config.dataset_options[option])
    try:
        is_there = path.exists() and (option is not None or is_file(config))
    except OSError:  # a name that no file can have
        is_there = False
    return option, path.absolute() if is_there else None


def _with_whole_path(config: ExperimentConfig) -> ExperimentConfig:
    """A configuration whose recording in files is found from any working folder: a worker has its own."""
    option, path = _files_of(config)
    if path is None:
        return config
    if option is None:
        return replace(config, dataset=os.fspath(path))
    return replace(config, dataset_options={**config.dataset_options, option: os.fspath(path)})


def _digest_of_files(path: Path) -> str:
    """SHA-256 of the content of a file or folder."""
    if path.is_file():
        return file_facts(path)[1]
    digest = hashlib.sha256()
    for inner in sorted(path.rglob("*")):
        if inner.is_file():
            digest.update(f"{inner.relative_to(path).as_posix()} {file_facts(inner)}\n".encode())
    return digest.hexdigest()
