"""``deepstrf fit``: from flags and file to a configuration, then the run, its report and its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from deepSTRF.cli._errors import usage
from deepSTRF.cli._tables import print_run
from deepSTRF.report import write_report
from deepSTRF.training.building import check_choices
from deepSTRF.training.experiment import run_experiment
from deepSTRF.training.experiment_config import ExperimentConfig, parse_options, parse_seeds

__all__ = ["fit_and_report", "read_config"]


def fit_and_report(
    config_file: Path | None,
    given: Mapping[str, Any],
    options: Mapping[str, Sequence[str] | None],
    seeds: str | None,
    *,
    overwrite: bool,
    download: bool,
    quiet: bool,
) -> None:
    """Run the experiment that file and flags describe; print its scores and where its report lies.

    Parameters
    ----------
    config_file : Path or None
        TOML file.
    given : mapping of field to value
        Flags; None where a flag was not given.
    options : mapping of "dataset", "model", "wav2spec" to key=value texts
        Options of each.
    seeds : str or None
        Seeds as written.
    overwrite, download, quiet : bool
        As the flags of the same names.

    Raises
    ------
    UsageProblem
        When the choices cannot work, alone or with the recording.
    """
    config = read_config(config_file, given, options, seeds)
    with usage():
        run = run_experiment(
            config,
            overwrite=overwrite,
            download=download,
            progress=False if quiet else "auto",
            say=None if quiet else _say,
        )
    print_run(run, write_report(run))


def read_config(
    config_file: Path | None,
    given: Mapping[str, Any],
    options: Mapping[str, Sequence[str] | None],
    seeds: str | None,
) -> ExperimentConfig:
    """Return the configuration; a flag wins over the file, an option over the same option of the file.

    Parameters
    ----------
    config_file, given, options, seeds
        As in `fit_and_report`.

    Returns
    -------
    ExperimentConfig
        Checked, names included.

    Raises
    ------
    UsageProblem
        When a value or name is illegal.

    Examples
    --------
    >>> read_config(None, {"epochs": 3}, {"dataset": ["n_clips=5"]}, "0-1").seeds
    (0, 1)
    """
    with usage():
        base = ExperimentConfig() if config_file is None else ExperimentConfig.from_toml(config_file)
        changes = dict(given)
        if seeds is not None:
            changes["seeds"] = parse_seeds(seeds)
        for name, pairs in options.items():
            field = f"{name}_options"
            another = given.get(name) not in (None, getattr(base, name))
            kept = {} if another else getattr(base, field)  # another dataset or model has other options
            changes[field] = {**kept, **parse_options(pairs or (), f"--{name}-option")}
        config = base.with_changes(**changes)
        check_choices(config)
    return config


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)
