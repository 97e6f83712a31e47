"""What the loggers of `fit_multi_seed` share: names of runs, and scores as numbers and histograms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from deepSTRF.training.history import SUMMARY_QUANTILES, mean_score, summarise
from deepSTRF.training.run_config import path_safe

__all__ = ["Record", "SeedLogger", "run_name"]


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


class SeedLogger(ABC):
    """A logger of one seed, as `fit_multi_seed` uses it: called with each epoch, `finalize`, `close`.

    Also a context manager, which closes however the block ends.

    Parameters
    ----------
    seed : int
        The seed.
    config : mapping, optional
        Settings to be kept with the run, see `auto_config`.

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
