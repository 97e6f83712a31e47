"""Training curves for Weights & Biases, one run per seed. The package is imported when a logger is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepSTRF._optional import require
from deepSTRF.training._seed_logger import Record, SeedLogger, run_name
from deepSTRF.training.history import json_safe

__all__ = ["WandbSeedLogger", "make_wandb_logger_factory"]

EXTRA = "log"
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
