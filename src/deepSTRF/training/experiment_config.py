"""The description of one experiment: a few plain values, from a TOML file, from flags, or from Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deepSTRF.training._config_fields import (
    NONE_WORD,
    check_fields,
    closest,
    flatten_toml,
    plain,
    seed_tuple,
    toml_text,
    toml_value,
)

__all__ = ["FLAGS", "ExperimentConfig", "closest", "parse_options", "parse_seeds"]

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

    Parameters
    ----------
    pairs : iterable of str
        Texts like ``smooth=false``, ``dt_ms=5``, ``path=/data/NS1``.
    flag : str
        Named in the error.

    Returns
    -------
    dict
        Names to values.

    Raises
    ------
    ValueError
        When a text has no ``=`` or no name before it.

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

    Parameters
    ----------
    text : str
        What was written.

    Returns
    -------
    tuple of int
        The seeds in order.

    Raises
    ------
    ValueError
        When it is none of the three.

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
