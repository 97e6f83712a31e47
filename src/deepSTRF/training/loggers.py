"""Training curves for Weights & Biases, one run per seed. The package is imported when a logger is made."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepSTRF._optional import require
from deepSTRF.training.callbacks import Callback, FitterLike
from deepSTRF.training.history import SUMMARY_QUANTILES, json_safe, summarise
from deepSTRF.training.objective import mean_score
from deepSTRF.training.optimization import make_optimizer, make_scheduler
from deepSTRF.training.protocol import model_facts, software_versions

__all__ = [
    "Record",
    "SeedLogger",
    "TensorBoardSeedLogger",
    "WandbSeedLogger",
    "auto_config",
    "make_tensorboard_logger_factory",
    "make_wandb_logger_factory",
    "path_safe",
    "run_name",
    "slug_from_config",
]

# ------------------------------------------------------------------------------
# A fit's settings as plain values, for a logger or a JSON file, and a short name made from them.


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
#: Characters of the digest that tells two cut names apart.
DIGEST = 8
Plain = bool | int | float | str | None


def auto_config(
    model: nn.Module,
    fitter_kwargs: Mapping[str, Any] | None = None,
    dataset_name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a fit is made of as values that JSON can hold.

    Facts about the model and the software are those of `ProtocolCard`. Nothing in the result depends on
    memory addresses, so equal fits have equal configurations.

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
        'front_end', 'latency_ms', 'settings', the classes of 'prefiltering', 'core', 'readout',
        'output_activation', 'readout.kernel', 'readout.activation' (each where the model has it), the
        fitter's arguments, 'optimizer' and 'scheduler' as dictionaries with 'class', and 'versions'.

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
    """Return a text as the name of one file or folder.

    Examples
    --------
    >>> path_safe("../a: b"), path_safe("..")
    ('_a_b', '_')
    """
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
            scheduler = make_scheduler(scheduler, optimizer, str(arguments.get("mode", "max")))
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


# ------------------------------------------------------------------------------
# What the loggers of `fit_multi_seed` share: names of runs, and scores as numbers and histograms.


class Record(NamedTuple):
    """One record of a fit, sorted by what a logger can draw.

    Attributes
    ----------
    numbers : dict of str to float
        Single numbers; a vector ``k`` over neurons as its mean ``k`` and quantiles ``k/p10``, ``k/p50``,
        ``k/p90``, and ``k/n_nan`` where values are missing.
    vectors : dict of str to ndarray
        The finite values of each vector, where there are any.
    texts : dict of str to str
        Everything else.

    Examples
    --------
    >>> record = Record.of({"loss": 0.5, "cc": torch.tensor([0.0, 1.0, float("nan")]), "note": "seen"})
    >>> record.numbers
    {'loss': 0.5, 'cc': 0.5, 'cc/p10': 0.1, 'cc/p50': 0.5, 'cc/p90': 0.9, 'cc/n_nan': 1.0}
    >>> record.vectors, record.texts
    ({'cc': array([0., 1.])}, {'note': 'seen'})
    """

    numbers: dict[str, float]
    vectors: dict[str, np.ndarray]
    texts: dict[str, str]

    @classmethod
    def of(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """Sort a record's values; every name gets the prefix."""
        record = cls({}, {}, {})
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, np.ndarray | np.generic):
                value = torch.as_tensor(value)
            if isinstance(value, Tensor) and value.dim() > 0:
                record._add_vector(name, value)
            elif isinstance(value, bool | int | float | Tensor):
                record.numbers[name] = float(value)
            else:
                record.texts[name] = str(value)
        return record

    def _add_vector(self, name: str, value: Tensor) -> None:
        score = mean_score(value)
        quantiles = summarise(value)
        self.numbers[name] = score.mean
        if score.n:
            self.numbers.update({f"{name}/{key}": _number(quantiles[key]) for key in SUMMARY_QUANTILES})
        if score.n_nan:
            self.numbers[f"{name}/n_nan"] = float(score.n_nan)
        flat = value.detach().flatten().double()
        finite = flat[flat.isfinite()]
        if finite.numel():
            self.vectors[name] = finite.cpu().numpy()


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def run_name(seed: int, group: str | None, name: str | None) -> str:
    """Return ``<name or group>-seed<k>``, or ``seed<k>``, as the name of one folder."""
    stem = name or group
    return path_safe(f"{stem}-seed{seed}" if stem else f"seed{seed}")


class SeedLogger(Callback, ABC):
    """A logger of one seed, as `fit_multi_seed` uses it: called with each epoch, `finalize`, `close`.

    Also a callback of a `Fitter`, and a context manager, which closes however the block ends.

    Examples
    --------
    >>> class Lines(SeedLogger):
    ...     def write(self, record, step):
    ...         print(step, record.numbers)
    ...     def write_final(self, record):
    ...         print("final", record.numbers)
    ...     def end(self):
    ...         print("complete:", self.complete)
    >>> with Lines(0) as logger:
    ...     logger({"epoch": 3, "train_loss": 0.5})
    ...     logger.finalize({"test": {"loss": 0.25}})
    3 {'train_loss': 0.5}
    final {'final/test_loss': 0.25}
    complete: True
    """

    def __init__(self, seed: int, config: Mapping[str, Any] | None = None) -> None:
        self.seed = int(seed)
        self.config: dict[str, Any] = {**(config or {}), "seed": self.seed}
        self.complete = False
        self.closed = False

    @abstractmethod
    def write(self, record: Record, step: int) -> None:
        """Write one epoch."""

    @abstractmethod
    def write_final(self, record: Record) -> None:
        """Write the scores of the fitted model."""

    @abstractmethod
    def end(self) -> None:
        """Let go of files and processes; called once."""

    def __call__(self, epoch_record: Mapping[str, Any]) -> None:
        """Write one epoch's record, as `Fitter` hands it to its ``log_fn``."""
        self._check_open()
        values = {key: value for key, value in epoch_record.items() if key != "epoch"}
        self.write(Record.of(values), int(epoch_record["epoch"]))

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Write one epoch's record."""
        self(record)

    def finalize(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the fitted model's scores ``{'val': ..., 'test': ...}`` as ``final/<split>_<score>``."""
        self._check_open()
        merged = Record({}, {}, {})
        for split, scores in results.items():
            record = Record.of(scores, f"final/{split}_")
            merged.numbers.update(record.numbers)
            merged.vectors.update(record.vectors)
            merged.texts.update(record.texts)
        self.write_final(merged)
        self.complete = True

    def close(self) -> None:
        """End the run, which counts as unfinished without `finalize`; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.complete = self.complete or kind is None
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(
                f"the logger of seed {self.seed} is closed; make a new one, or give fit_multi_seed a "
                "logger_factory, which makes one per seed"
            )


# ------------------------------------------------------------------------------
# Training curves for TensorBoard, one run per seed. The package is imported when a logger is made.


EXTRA = "log"
#: Folder of runs that belong to no group.
NO_GROUP = "default"


class TensorBoardSeedLogger(SeedLogger):
    """Writes a seed's curves, final scores and settings as a TensorBoard run.

    A score per neuron is drawn as its mean ``k``, the quantiles ``k/p10``, ``k/p50``, ``k/p90`` and the
    histogram ``k/hist``; NaN are left out and counted in ``k/n_nan``. The final scores stand at step 0 under
    ``final/<split>_<score>``, the settings under ``config`` (a table) and ``hparams/<key>``. The file is
    opened with the first record; a fit that goes on, or starts anew, in the same folder replaces the epochs
    it repeats.

    Parameters
    ----------
    seed : int
        The seed.
    log_dir : path
        Folder of all runs; ``tensorboard --logdir`` takes it.
    group : str, optional
        Runs that belong together: a folder within it, "default" without.
    name : str, optional
        Name of the run; with the seed, ``<name or group>-seed<k>``.
    config : mapping, optional
        Settings, see `auto_config`.

    Attributes
    ----------
    path : Path
        Folder of this run.

    Raises
    ------
    ImportError
        When tensorboard is not installed; the text holds the command that installs it.

    Examples
    --------
    >>> import contextlib, tempfile
    >>> with contextlib.suppress(ImportError), tempfile.TemporaryDirectory() as folder:  # where not installed
    ...     with TensorBoardSeedLogger(0, log_dir=folder, group="linear") as logger:
    ...         logger({"epoch": 0, "train_loss": 0.5})  # a Fitter does so with log_fn=logger
    ...         logger.finalize({"test": {"loss": 0.25}})
    """

    def __init__(
        self,
        seed: int,
        *,
        log_dir: str | os.PathLike[str] = "tb_logs",
        group: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(seed, config)
        self._make_writer = _summary_writer()
        self._writer: Any = None
        self.path = Path(log_dir) / path_safe(group or NO_GROUP) / run_name(seed, group, name)

    def write(self, record: Record, step: int) -> None:
        """Write one epoch."""
        self._add(self._opened(step), record, step)

    def write_final(self, record: Record) -> None:
        """Write the scores of the fitted model, at step 0."""
        self._add(self._opened(None), record, 0)

    def end(self) -> None:
        """Flush and close the file, if there is one."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self, first_step: int | None) -> Any:
        if self._writer is None:
            # Points of an earlier run in this folder are hidden from the first step on.
            self._writer = self._make_writer(str(self.path), purge_step=first_step)
            self._add_config(self._writer)
        return self._writer

    def _add_config(self, writer: Any) -> None:
        rows = list(_flat(json_safe(self.config)))
        lines = [f"| {key} | {_cell(value)} |" for key, value in rows]
        writer.add_text("config", "\n".join(["| setting | value |", "|---|---|", *lines]), 0)
        for key, value in rows:
            if isinstance(value, int | float):
                writer.add_scalar(f"hparams/{key}", float(value), 0)
            else:
                writer.add_text(f"hparams/{key}", _cell(value), 0)

    @staticmethod
    def _add(writer: Any, record: Record, step: int) -> None:
        for key, number in record.numbers.items():
            writer.add_scalar(key, number, step)
        for key, values in record.vectors.items():
            writer.add_histogram(f"{key}/hist", values, step)
        for key, text in record.texts.items():
            writer.add_text(key, text, step)


def make_tensorboard_logger_factory(**options: Any) -> Callable[[int], TensorBoardSeedLogger]:
    """Return a ``logger_factory`` for `fit_multi_seed`.

    Parameters
    ----------
    **options
        Arguments of `TensorBoardSeedLogger` other than the seed.

    Returns
    -------
    callable
        Seed to logger.

    Raises
    ------
    TypeError
        At once, for an argument that `TensorBoardSeedLogger` does not have.
    ImportError
        At once, when tensorboard is not installed.

    Examples
    --------
    >>> make_tensorboard_logger_factory(logdir="tb_logs")
    Traceback (most recent call last):
        ...
    TypeError: got an unexpected keyword argument 'logdir'
    """
    inspect.signature(TensorBoardSeedLogger).bind(0, **options)
    _summary_writer()
    return lambda seed: TensorBoardSeedLogger(seed, **options)


def _summary_writer() -> Any:
    require("tensorboard", extra=EXTRA)
    return require("torch.utils.tensorboard", extra=EXTRA).SummaryWriter


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested dictionaries, their keys joined by slashes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


# ------------------------------------------------------------------------------

#: Nothing leaves the machine unless somebody says so.
MODE_UNLESS_SAID = "offline"
MODE_VARIABLE = "WANDB_MODE"
#: The mode that writes nothing.
DISABLED = "disabled"
#: Exit code under which an unfinished run is listed as failed.
FAILED = 1


class WandbSeedLogger(SeedLogger):
    """Writes a seed's curves, final scores and settings as a Weights & Biases run.

    A score per neuron is logged as its mean ``k``, the quantiles ``k/p10``, ``k/p50``, ``k/p90`` and the
    histogram ``k/hist``; NaN are left out and counted in ``k/n_nan``. `finalize` puts the final scores into
    the run's summary under ``final/<split>_<score>``. A run that is closed without it (an error, a diverged
    fit) is marked as failed. Each logger has a run of its own, also while another one is open. No environment
    variable is changed.

    Parameters
    ----------
    seed : int
        The seed; also in the run's config.
    project, entity, group : str, optional
        As in ``wandb.init``.
    name : str, optional
        Name of the run; with the seed, ``<name or group>-seed<k>``.
    dir : path, optional
        Folder for the run's files; made if need be.
    mode : {'online', 'offline', 'disabled'}, optional
        By default what the variable WANDB_MODE says, else 'offline'. 'disabled' writes nothing.
    config : mapping, optional
        Settings, see `auto_config`.
    **wandb_init_kwargs
        Further arguments of ``wandb.init``.

    Attributes
    ----------
    run : wandb Run
        The run.

    Raises
    ------
    ImportError
        When wandb is not installed; the text holds the command that installs it.

    Examples
    --------
    >>> import contextlib
    >>> with contextlib.suppress(ImportError):  # where wandb is not installed
    ...     with WandbSeedLogger(0, project="strf", group="linear", mode="disabled") as logger:
    ...         logger({"epoch": 0, "train_loss": 0.5})  # a Fitter does so with log_fn=logger
    ...         logger.finalize({"test": {"loss": 0.25}})
    """

    def __init__(
        self,
        seed: int,
        *,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        dir: str | os.PathLike[str] | None = None,
        mode: str | None = None,
        config: Mapping[str, Any] | None = None,
        **wandb_init_kwargs: Any,
    ) -> None:
        super().__init__(seed, config)
        wandb = require("wandb", extra=EXTRA)
        self._histogram = wandb.Histogram
        if mode is None and not os.environ.get(MODE_VARIABLE):
            mode = MODE_UNLESS_SAID
        if (mode or os.environ.get(MODE_VARIABLE)) == DISABLED:
            dir = None  # wandb makes the folder even then
        if dir is not None:
            Path(dir).mkdir(parents=True, exist_ok=True)  # else wandb takes a temporary folder
        options = {"reinit": "create_new"} | wandb_init_kwargs
        self.run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            name=run_name(seed, group, name),
            dir=None if dir is None else os.fspath(dir),
            mode=mode,
            config=json_safe(self.config),
            **options,
        )

    def write(self, record: Record, step: int) -> None:
        """Write one epoch."""
        self.run.log(self._values(record), step=step)

    def write_final(self, record: Record) -> None:
        """Write the scores of the fitted model into the run's summary."""
        self.run.summary.update(self._values(record))

    def end(self) -> None:
        """Finish the run."""
        self.run.finish(exit_code=0 if self.complete else FAILED)

    def _values(self, record: Record) -> dict[str, Any]:
        histograms = {f"{key}/hist": self._histogram(values) for key, values in record.vectors.items()}
        return {**record.numbers, **record.texts, **histograms}


def make_wandb_logger_factory(**options: Any) -> Callable[[int], WandbSeedLogger]:
    """Return a ``logger_factory`` for `fit_multi_seed`.

    Parameters
    ----------
    **options
        Arguments of `WandbSeedLogger` other than the seed.

    Returns
    -------
    callable
        Seed to logger.

    Raises
    ------
    ImportError
        At once, when wandb is not installed.

    Examples
    --------
    >>> make_wandb_logger_factory(seed=1)
    Traceback (most recent call last):
        ...
    TypeError: seed is given by fit_multi_seed, one logger each; leave it out
    """
    if "seed" in options:
        raise TypeError("seed is given by fit_multi_seed, one logger each; leave it out")
    require("wandb", extra=EXTRA)
    return lambda seed: WandbSeedLogger(seed, **options)
