"""The folder of a run: all that is needed to read, compare, show and resume it; each file whole or absent."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deepSTRF.training.errors import DamagedFileError
from deepSTRF.training.examples import NeuronExample, examples_from_bytes, examples_to_bytes
from deepSTRF.training.experiment_config import ExperimentConfig
from deepSTRF.training.files import write_atomically
from deepSTRF.training.history import json_safe
from deepSTRF.training.run_scores import RunScores

__all__ = ["Run", "folder_status", "prepare_folder", "write_run"]

CONFIG, RUN, PROTOCOL = "config.toml", "run.json", "protocol.json"
SCORES_CSV, SCORES_JSON = "scores.csv", "scores.json"
HISTORY_CSV, HISTORY_JSON = "history.csv", "history.json"
EXAMPLES, MODEL, STATE, REPORT = "examples.npz", "model", "state", "report.html"
SEED_MODELS = "models"
#: What `deepSTRF.report.explain_run` writes; it explains this very model, so it goes with it.
EXPLAIN = "explain"
FORMAT = 1
#: What scores.json says of each row that scores.csv must agree with.
_COUNTS = ("split", "metric", "n", "n_nan")

README = """Run folder of deepSTRF. Read it back with deepSTRF.training.run_folder.Run.load(path).

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
        What else the report says: titles, notes, versions, frequencies, times.
    examples : list of NeuronExample
        Neurons shown in full.

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
        """Where the HTML report lies, once it is written."""
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
        _check_complete(folder)
        facts = _read_json(folder / RUN)
        histories = _read_json(folder / HISTORY_JSON)
        examples = folder / EXAMPLES
        return cls(
            path=folder,
            config=ExperimentConfig.from_toml(folder / CONFIG),
            protocol=[(str(label), str(value)) for label, value in _read_json(folder / PROTOCOL)["rows"]],
            scores=_read_scores(folder),
            histories={int(seed): rows for seed, rows in histories["seeds"].items()},
            best_epochs={int(seed): epoch for seed, epoch in histories["best_epochs"].items()},
            facts=facts,
            examples=_read_examples(examples) if examples.is_file() else [],
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
    """Make a run folder ready and say what it holds: "new", "resume" (an unfinished run) or "finished".

    Parameters
    ----------
    folder : Path
        Where the run goes.
    config : ExperimentConfig
        The run.
    overwrite : bool
        Remove what an earlier run left there.

    Returns
    -------
    str
        "new", "resume" or "finished".

    Raises
    ------
    FileExistsError
        When the folder holds something else than this very run, or something that is no run at all.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     folder, config = Path(root) / "run", ExperimentConfig()
    ...     first = prepare_folder(folder, config)
    ...     first, prepare_folder(folder, config)
    ('new', 'resume')
    """
    status = folder_status(folder, config, overwrite=overwrite)
    if status == "new":
        if (folder / CONFIG).is_file():
            _remove_run(folder)
        write_atomically(folder / "README.txt", README.encode())
        write_atomically(folder / CONFIG, config.to_toml().encode())
    return status


def folder_status(folder: Path, config: ExperimentConfig, *, overwrite: bool = False) -> str:
    """Say what `prepare_folder` would, and refuse what it would, without touching anything.

    Parameters
    ----------
    folder : Path
        Where the run goes.
    config : ExperimentConfig
        The run.
    overwrite : bool
        Whether what an earlier run left there is to be removed.

    Returns
    -------
    str
        "new", "resume" or "finished".

    Raises
    ------
    FileExistsError
        As `prepare_folder`.

    Examples
    --------
    >>> folder_status(Path("no/such/folder"), ExperimentConfig())
    'new'
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder with --out")
    known = (folder / CONFIG).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise FileExistsError(
            f"{folder} is not empty and holds no run of deepSTRF; name another folder with --out"
        )
    return _compare_with(folder, config) if known and not overwrite else "new"


def write_run(run: Run, models: Mapping[int, Any]) -> None:
    """Write a finished run; ``run.json`` comes last and marks it complete.

    Parameters
    ----------
    run : Run
        What to write.
    models : mapping of seed to NeuralModel
        The fitted models.

    Raises
    ------
    OSError
        When something cannot be written; the fit's state is kept, so the same command goes on from there.

    Examples
    --------
    >>> import tempfile
    >>> scores = RunScores(["a"], [0], {})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_run(Run(Path(folder), ExperimentConfig(), [], scores, {0: []}, {0: None}), {})
    ...     sorted(path.name for path in Path(folder).iterdir())[:3]
    ['config.toml', 'examples.npz', 'history.csv']
    """
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
    _write_json(
        folder / SCORES_JSON, {"seeds": run.scores.seeds, "best_seed": run.best_seed, "rows": summary}
    )
    write_atomically(folder / HISTORY_CSV, _history_csv(run.histories).encode())
    _write_json(folder / HISTORY_JSON, histories)
    _write_json(folder / PROTOCOL, {"rows": run.protocol, "card": run.facts.get("card", {})})
    write_atomically(folder / EXAMPLES, examples_to_bytes(run.examples))
    facts = {name: value for name, value in run.facts.items() if name != "card"}
    _write_json(folder / RUN, {"format": FORMAT, **facts})
    shutil.rmtree(folder / STATE, ignore_errors=True)  # a leftover only costs space


def _history_csv(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    names = list(dict.fromkeys(name for rows in histories.values() for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["seed", *names], restval="", lineterminator="\n")
    writer.writeheader()
    for seed, rows in histories.items():
        writer.writerows({"seed": seed, **row} for row in rows)
    return buffer.getvalue()


def _check_complete(folder: Path) -> None:
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


def _compare_with(folder: Path, config: ExperimentConfig) -> str:
    there = ExperimentConfig.from_toml(folder / CONFIG)
    finished = (folder / RUN).is_file()
    differences = config.differences(there)
    if finished and (there.epochs, there.patience) != (config.epochs, config.patience):
        differences.append(
            f"epochs/patience: {there.epochs}/{there.patience}, not {config.epochs}/{config.patience}"
        )
    if differences:
        raise FileExistsError(
            f"{folder} holds another run ({'; '.join(differences)}). "
            "Name another folder with --out, or replace that run with --overwrite"
        )
    return "finished" if finished else "resume"


def _remove_run(folder: Path) -> None:
    """Remove what runs write, run.json first; files of the user's own stay."""
    (folder / RUN).unlink(missing_ok=True)
    for name in (PROTOCOL, SCORES_CSV, SCORES_JSON, HISTORY_CSV, HISTORY_JSON, EXAMPLES, REPORT, CONFIG):
        (folder / name).unlink(missing_ok=True)
    for name in (MODEL, SEED_MODELS, STATE, EXPLAIN):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def _read_scores(folder: Path) -> RunScores:
    path = folder / SCORES_CSV
    try:
        scores = RunScores.from_csv(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); fit again with --overwrite") from error
    # A table cut off between two lines still reads: the other file knows how many neurons there were.
    there = [(row.split, row.metric, row.n, row.n_nan) for row in scores.summary()]
    written = [tuple(row[key] for key in _COUNTS) for row in _read_json(folder / SCORES_JSON)["rows"]]
    if there != written:
        raise DamagedFileError(
            f"{path} is damaged (not the neurons of {SCORES_JSON}); fit again with --overwrite"
        )
    return scores


def _read_examples(path: Path) -> list[NeuronExample]:
    try:
        return examples_from_bytes(path.read_bytes())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); fit again with --overwrite") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DamagedFileError(f"{path} is damaged ({error}); fit again with --overwrite") from error


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(json_safe(value), indent=1) + "\n").encode())
