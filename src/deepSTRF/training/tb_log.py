"""Training curves for TensorBoard, one run per seed. The package is imported when a logger is made."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepSTRF._optional import require
from deepSTRF.training._seed_logger import Record, SeedLogger, run_name
from deepSTRF.training.history import json_safe
from deepSTRF.training.run_config import path_safe

__all__ = ["TensorBoardSeedLogger", "make_tensorboard_logger_factory"]

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
