"""The folder of a run: scores, histories, protocol, models and state; each file is whole or absent.

`RunScores` is the table of scores, ``scores.csv`` on disk. ``run.json`` is written last: a folder with it
holds a finished run, one without it a run to resume.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import DamagedFileError, json_safe, write_atomically, write_json
from deepSTRF._text import csv_table, read_csv
from deepSTRF.experiments.build import as_fitted
from deepSTRF.experiments.config import ExperimentConfig, NamesFields
from deepSTRF.experiments.examples import NeuronExample, examples_from_bytes, examples_to_bytes

__all__ = [
    "MAIN_SCORE",
    "Run",
    "RunScores",
    "ScoreRow",
    "folder_status",
    "prepare_folder",
    "write_run",
]

#: The score that ranks neurons and chooses among seeds.
MAIN_SCORE = "cc_norm"
#: Columns that describe the neuron rather than the fit.
KEYS = ("seed", "split", "neuron")

Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ScoreRow:
    """One line of a score table: a metric on one split, over neurons.

    ``mean``, ``sd`` and ``median`` are over the ``n`` neurons that have a score (each its mean over seeds),
    NaN when none has; ``n_nan`` neurons have none. ``per_seed`` is the mean over neurons for each seed.
    """

    split: str
    metric: str
    mean: float
    sd: float
    median: float
    n: int
    n_nan: int
    per_seed: tuple[float, ...] = ()


class RunScores:
    """Scores of all neurons on each split, for each seed: ``values[split][metric]`` is (n_seeds, N)."""

    def __init__(
        self,
        neurons: Sequence[str],
        seeds: Sequence[int],
        values: Mapping[str, Mapping[str, NDArray[np.float64]]],
    ) -> None:
        self.neurons = list(neurons)
        self.seeds = list(seeds)
        shape = (len(self.seeds), len(self.neurons))
        self.values: dict[str, dict[str, NDArray[np.float64]]] = {}
        for split, columns in values.items():
            self.values[split] = {
                name: np.asarray(column, dtype=np.float64) for name, column in columns.items()
            }
            for name, column in self.values[split].items():
                if column.shape != shape:
                    raise ValueError(
                        f"{split} {name} must have shape {shape} (seeds, neurons), got {column.shape}"
                    )

    @classmethod
    def from_tables(
        cls, neurons: Sequence[str], seeds: Sequence[int], tables: Mapping[str, Sequence[Columns]]
    ) -> RunScores:
        """Join the columns of each seed's table, in the order of ``seeds``."""
        joined = {
            split: {
                name: np.stack([np.asarray(one[name], dtype=np.float64) for one in per_seed])
                for name in per_seed[0]
            }
            for split, per_seed in tables.items()
        }
        return cls(neurons, seeds, joined)

    def per_neuron(self, split: str = "test") -> dict[str, NDArray[np.float64]]:
        """Return each metric per neuron, the mean over the seeds that have a score; NaN where none has."""
        return {name: _nan_mean(column, axis=0) for name, column in self.values.get(split, {}).items()}

    def summary(self) -> list[ScoreRow]:
        """Return one row per split and metric."""
        rows = []
        for split, columns in self.values.items():
            for name, column in columns.items():
                per_neuron = _nan_mean(column, axis=0)
                valid = per_neuron[np.isfinite(per_neuron)]
                row = ScoreRow(
                    split,
                    name,
                    mean=float(valid.mean()) if valid.size else math.nan,
                    sd=float(valid.std(ddof=1)) if valid.size > 1 else math.nan,
                    median=float(np.median(valid)) if valid.size else math.nan,
                    n=int(valid.size),
                    n_nan=int(per_neuron.size - valid.size),
                    per_seed=tuple(float(value) for value in _nan_mean(column, axis=1)),
                )
                rows.append(row)
        return rows

    def best_seed(self) -> int:
        """Return the seed with the highest mean validation score: the test scores choose nothing."""
        column = self.values.get("validation", {}).get(MAIN_SCORE)
        if column is None:
            return self.seeds[0]
        means = _nan_mean(column, axis=1)
        return self.seeds[int(np.nanargmax(means))] if np.isfinite(means).any() else self.seeds[0]

    def to_csv(self) -> str:
        """Return one line per seed, split and neuron; a missing score is an empty cell."""
        names = list(dict.fromkeys(name for columns in self.values.values() for name in columns))
        lines: list[list[Any]] = [[*KEYS, *names]]
        for (row, seed), (split, columns), (index, neuron) in itertools.product(
            enumerate(self.seeds), self.values.items(), enumerate(self.neurons)
        ):
            scores = [columns[name][row, index] if name in columns else math.nan for name in names]
            cells = ["" if math.isnan(score) else f"{score:.9g}" for score in scores]
            lines.append([seed, split, neuron, *cells])
        return csv_table(lines)

    @classmethod
    def from_csv(cls, text: str) -> RunScores:
        """Read what `to_csv` wrote."""
        rows = read_csv(text)
        if not rows or any(key not in rows[0] for key in KEYS):
            raise ValueError(
                f"a score file has the columns {', '.join(KEYS)} and one per metric; this one has not"
            )
        names = [name for name in rows[0] if name not in KEYS]
        neurons = list(dict.fromkeys(row["neuron"] for row in rows))
        seeds = list(dict.fromkeys(int(row["seed"]) for row in rows))
        splits = list(dict.fromkeys(row["split"] for row in rows))
        if len(rows) != len(neurons) * len(seeds) * len(splits):
            raise ValueError(
                f"{len(rows)} lines for {len(seeds)} seeds, {len(splits)} splits and {len(neurons)} neurons; "
                "a score file has one line for each"
            )
        where = {name: index for index, name in enumerate(neurons)}
        values = {s: {name: np.full((len(seeds), len(neurons)), np.nan) for name in names} for s in splits}
        for row in rows:
            for name in names:
                if row[name]:
                    at = seeds.index(int(row["seed"])), where[row["neuron"]]
                    values[row["split"]][name][at] = float(row[name])
        return cls(neurons, seeds, values)


def _nan_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean of the finite values; NaN, without a warning, where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    mean: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


# ---- Folder

CONFIG, RUN, PROTOCOL = "config.toml", "run.json", "protocol.json"
SCORES_CSV, SCORES_JSON = "scores.csv", "scores.json"
HISTORY_CSV, HISTORY_JSON = "history.csv", "history.json"
EXAMPLES, MODEL, STATE, REPORT = "examples.npz", "model", "state", "report.html"
SEED_MODELS = "models"
#: What `deepSTRF.report.explain_run` writes; it explains this very model, so it goes with it.
EXPLAIN = "explain"
FORMAT = 1

README = """Run folder of deepSTRF. Read it back with deepSTRF.experiments.Run.load(path).

report.html    the page to open first
config.toml    every choice; deepstrf fit --config config.toml repeats the run
scores.csv     one line per seed, split and neuron; scores.json has the means over neurons
history.csv    one line per seed and epoch; history.json the same
protocol.json  the protocol card: what must agree before two scores are compared
model/         weights and configuration (of the seed with the best validation score);
               NeuralModel.from_pretrained("model") loads it. models/seed<k>/ has every seed's
explain/       tables, arrays, sounds and a movie, when deepstrf explain was run
run.json       facts, notes, versions; written last, so its presence means the run is complete
state/         only while a fit runs: what it resumes from
"""


class RunExistsError(NamesFields, FileExistsError):
    """A folder holds a run of other choices."""


@dataclass(frozen=True)
class Run:
    """A finished run, in memory.

    Attributes
    ----------
    path : Path
        Its folder.
    config : ExperimentConfig
        All choices.
    protocol : list of (label, value)
        The protocol card.
    scores : RunScores
        Per seed, split and neuron.
    histories : dict of seed to list of dict
        One flat record per epoch: population means.
    best_epochs : dict of seed to int or None
        Epoch (from 0) whose weights were kept.
    facts : dict
        What else the report shows: titles, notes, frequencies, times.
    examples : list of NeuronExample
        Neurons that the report shows in full.

    Examples
    --------
    >>> Run.load("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no/such/folder is no folder; deepstrf fit writes run folders...
    """

    path: Path
    config: ExperimentConfig
    protocol: list[tuple[str, str]]
    scores: RunScores
    histories: dict[int, list[dict[str, Any]]]
    best_epochs: dict[int, int | None]
    facts: dict[str, Any] = field(default_factory=dict)
    examples: list[NeuronExample] = field(default_factory=list)

    @property
    def best_seed(self) -> int:
        """The seed with the best validation score; ``model/`` is its model."""
        return self.scores.best_seed()

    @property
    def report_path(self) -> Path:
        """Path of the HTML report, once it is written."""
        return self.path / REPORT

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run folder.

        Raises
        ------
        FileNotFoundError
            When there is no such folder, or the run in it is not complete.
        DamagedFileError
            When a file in it is damaged; the text names it.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; deepstrf fit writes run folders and says where")
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{folder} is no run folder: it has no {CONFIG}; deepstrf fit writes run folders"
            )
        if not (folder / RUN).is_file():
            raise FileNotFoundError(
                f"the run in {folder} is not complete; go on with: "
                f"deepstrf fit --config {folder / CONFIG} --out {folder}"
            )
        facts = _read_json(folder / RUN)
        histories = _read_json(folder / HISTORY_JSON)
        rows = _read_json(folder / SCORES_JSON)["rows"]
        with _whole(folder / SCORES_CSV):
            scores = RunScores.from_csv((folder / SCORES_CSV).read_bytes().decode())
            # a table cut off between two lines still reads: the other file has the numbers of neurons
            there = [(row.split, row.metric, row.n, row.n_nan) for row in scores.summary()]
            if there != [(row["split"], row["metric"], row["n"], row["n_nan"]) for row in rows]:
                raise ValueError(f"not the neurons of {SCORES_JSON}")
        examples: list[NeuronExample] = []
        if (folder / EXAMPLES).is_file():
            with _whole(folder / EXAMPLES):
                examples = examples_from_bytes((folder / EXAMPLES).read_bytes())
        return cls(
            path=folder,
            config=ExperimentConfig.from_toml(folder / CONFIG),
            protocol=[(str(label), str(value)) for label, value in _read_json(folder / PROTOCOL)["rows"]],
            scores=scores,
            histories={int(seed): rows for seed, rows in histories["seeds"].items()},
            best_epochs={int(seed): epoch for seed, epoch in histories["best_epochs"].items()},
            facts=facts,
            examples=examples,
        )

    def with_config(self, config: ExperimentConfig) -> Run:
        """Return this run under other choices, for instance another alignment of the same recording."""
        return replace(self, config=config)

    def check_seed(self, seed: int) -> None:
        """Raise ValueError when no model was fitted with that seed."""
        if seed not in self.scores.seeds:
            raise ValueError(f"seed {seed} was not fitted in {self.path}; it has {self.scores.seeds}")

    def load_model(self, seed: int | None = None) -> Any:
        """Return the fitted model, in eval mode; None is the best seed's.

        Raises
        ------
        ValueError
            When no such seed was fitted.
        """
        from deepSTRF.models.base import NeuralModel

        if seed is None:
            return NeuralModel.from_pretrained(self.path / MODEL)
        self.check_seed(seed)
        several = self.path / SEED_MODELS / f"seed{seed}"
        return NeuralModel.from_pretrained(several if several.is_dir() else self.path / MODEL)


def prepare_folder(folder: Path, config: ExperimentConfig, *, overwrite: bool = False) -> str:
    """Make a run folder ready and return its `folder_status`; a run to overwrite is removed."""
    status = folder_status(folder, config, overwrite=overwrite)
    if status == "new":
        if (folder / CONFIG).is_file():
            # run.json first: without it no part counts as a run; files of the user's own stay
            for name in (RUN, PROTOCOL, SCORES_CSV, SCORES_JSON, HISTORY_CSV, HISTORY_JSON, EXAMPLES, REPORT):
                (folder / name).unlink(missing_ok=True)
            (folder / CONFIG).unlink()
            for name in (MODEL, SEED_MODELS, STATE, EXPLAIN):
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
        write_atomically(folder / "README.txt", README.encode())
        write_atomically(folder / CONFIG, config.to_toml().encode())
    return status


def folder_status(folder: Path, config: ExperimentConfig, *, overwrite: bool = False) -> str:
    """Return what a folder holds, "new", "resume" or "finished", without touching anything.

    A file, a folder of something else or, unless ``overwrite``, of another run raises FileExistsError.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder with --out")
    known = (folder / CONFIG).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise FileExistsError(
            f"{folder} is not empty and holds no run of deepSTRF; name another folder with --out"
        )
    if not known or overwrite:
        return "new"
    present = ExperimentConfig.from_toml(folder / CONFIG)
    if present.model == config.model and present.model_options == config.model_options:
        present, config = as_fitted(present), as_fitted(config)  # earlier runs leave a model's default unsaid
    finished = (folder / RUN).is_file()
    pairs = config.differences(present)
    names = [f"{{{name}}}: {{{2 * i + 1}!r}}, not {{{2 * i + 2}!r}}" for i, name in enumerate(pairs)]
    if finished and (present.epochs, present.patience) != (config.epochs, config.patience):
        names.append(
            f"epochs/patience: {present.epochs}/{present.patience}, not {config.epochs}/{config.patience}"
        )
    if names:
        values = [value for pair in pairs.values() for value in pair]
        raise RunExistsError(
            f"{{0}} holds another run ({'; '.join(names)}). Name another folder with --out, or replace that "
            "run with --overwrite",
            folder,
            *values,
        )
    return "finished" if finished else "resume"


def write_run(run: Run, models: Mapping[int, Any]) -> None:
    """Write a finished run; ``run.json`` comes last and marks it complete."""
    folder = run.path
    summary = [vars(row) for row in run.scores.summary()]
    metadata = {"scores": json_safe(summary), "protocol": run.protocol, "neurons": run.scores.neurons}
    for seed, model in models.items():
        if len(models) > 1:
            model.save_pretrained(folder / SEED_MODELS / f"seed{seed}", metadata=metadata)
        if seed == run.best_seed:
            model.save_pretrained(folder / MODEL, metadata=metadata)
    histories = {"seeds": run.histories, "best_epochs": run.best_epochs}
    write_atomically(folder / CONFIG, run.config.to_toml().encode())
    write_atomically(folder / SCORES_CSV, run.scores.to_csv().encode())
    write_json(folder / SCORES_JSON, {"seeds": run.scores.seeds, "best_seed": run.best_seed, "rows": summary})
    write_atomically(folder / HISTORY_CSV, _history_csv(run.histories).encode())
    write_json(folder / HISTORY_JSON, histories)
    write_json(folder / PROTOCOL, {"rows": run.protocol, "card": run.facts.get("card", {})})
    write_atomically(folder / EXAMPLES, examples_to_bytes(run.examples))
    facts = {name: value for name, value in run.facts.items() if name != "card"}
    write_json(folder / RUN, {"format": FORMAT, **facts})
    shutil.rmtree(folder / STATE, ignore_errors=True)  # a leftover only costs space


def _history_csv(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    names = list(dict.fromkeys(name for rows in histories.values() for row in rows for name in row))
    cells = [[seed, *(row.get(name) for name in names)] for seed, rows in histories.items() for row in rows]
    return csv_table([["seed", *names], *cells])


def _read_json(path: Path) -> Any:
    with _whole(path):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what reading a broken file raises into a `DamagedFileError` that names it."""
    try:
        yield
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); fit again with --overwrite") from error
