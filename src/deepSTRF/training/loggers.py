"""Training curves for TensorBoard and Weights & Biases, one run per seed.

A logger is a callback of one fit; `fit_multi_seed` makes one per seed and adds the final scores. The package
that it writes with is imported when the logger is made.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from deepSTRF._files import json_safe
from deepSTRF._optional import require
from deepSTRF._text import markdown
from deepSTRF._validation import checked
from deepSTRF.training.callbacks import Callback, FitterLike
from deepSTRF.training.objective import SUMMARY_QUANTILES, mean_score, summarise
from deepSTRF.training.run_config import path_safe

__all__ = [
    "Record",
    "SeedLogger",
    "TensorBoardSeedLogger",
    "WandbSeedLogger",
    "make_tensorboard_logger_factory",
    "make_wandb_logger_factory",
    "run_name",
]

#: Extra that installs the packages.
EXTRA = "log"


# ---- what loggers share


class Record(NamedTuple):
    """One record of a fit, sorted by what a logger can draw."""

    # a vector ``k`` as mean ``k``, quantiles ``k/p10``, ``/p50``, ``/p90``, and ``k/n_nan``
    numbers: dict[str, float]
    vectors: dict[str, np.ndarray]  # the finite values of each vector, where there are any
    texts: dict[str, str]  # everything else

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
            for key in SUMMARY_QUANTILES:
                quantile = quantiles[key]
                self.numbers[f"{name}/{key}"] = math.nan if quantile is None else quantile
        if score.n_nan:
            self.numbers[f"{name}/n_nan"] = float(score.n_nan)
        flat = value.detach().flatten().double()
        finite = flat[flat.isfinite()]
        if finite.numel():
            self.vectors[name] = finite.cpu().numpy()


def run_name(seed: int, group: str | None, name: str | None) -> str:
    """Return ``<name or group>-seed<k>``, or ``seed<k>``, as the name of one folder."""
    stem = name or group
    return path_safe(f"{stem}-seed{seed}" if stem else f"seed{seed}")


class SeedLogger(Callback, ABC):
    """Logger of one seed, called with each epoch; also a callback and a context manager that closes."""

    @checked
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
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.complete = self.complete or kind is None
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(
                f"the logger of seed {self.seed} is closed; make a new one, or give fit_multi_seed a "
                "logger_factory, which makes one per seed"
            )


# ---- TensorBoard


#: Folder of runs that belong to no group.
NO_GROUP = "default"


class TensorBoardSeedLogger(SeedLogger):
    """Writes a seed's curves, final scores and settings as a TensorBoard run.

    A score per neuron is drawn as its mean ``k``, the quantiles ``k/p10``, ``k/p50``, ``k/p90`` and the
    histogram ``k/hist``; NaN are left out and counted in ``k/n_nan``. The final scores stand at step 0 under
    ``final/<split>_<score>``, the settings under ``config`` (a table) and ``hparams/<key>``. The file is
    opened with the first record, or at the end without one; a fit that goes on, or starts anew, in the same
    folder replaces the epochs it repeats.

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

    @checked
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
        """Flush and close the file; a run without any record leaves its settings."""
        self._opened(None).close()

    def _opened(self, first_step: int | None) -> Any:
        if self._writer is None:
            # Points of an earlier run in this folder are hidden from the first step on.
            self._writer = self._make_writer(str(self.path), purge_step=first_step)
            self._add_config(self._writer)
        return self._writer

    def _add_config(self, writer: Any) -> None:
        rows = list(_flat(json_safe(self.config)))
        lines = [f"| {markdown(key)} | {_cell(value)} |" for key, value in rows]
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
    return markdown(text) if isinstance(value, str) or '"' in text else text  # numbers need no escapes


# ---- Weights & Biases


#: Nothing leaves the machine by default.
DEFAULT_MODE = "offline"
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

    @checked
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
            mode = DEFAULT_MODE
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
