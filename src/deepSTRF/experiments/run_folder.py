"""The folder of a run: an artefact of scores, histories, protocol and models, written at once and verified.

`RunScores` is the table of scores, ``scores.csv`` on disk. A folder is a run by its ``manifest.json``, which
is "complete" once the run is finished; what a running fit needs to go on stands in ``config.toml`` and
``state/``. A run that replaces another is fitted in the hidden folder `NEXT` inside it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import (
    MANIFEST,
    Artefact,
    adding_manifest,
    check_place,
    check_zip_seal,
    damaged,
    json_safe,
    naming_damage,
    read_folder,
    read_json,
    read_text,
    remove_abandoned,
    remove_folder,
    replace_folder,
    sealed_json,
    warn_unsealed,
)
from deepSTRF._text import csv_table, read_csv
from deepSTRF._validation import checked
from deepSTRF.experiments.build import as_fitted
from deepSTRF.experiments.config import ExperimentConfig, NamesFields
from deepSTRF.experiments.examples import (
    NeuronExample,
    Raster,
    examples_from_bytes,
    examples_to_bytes,
    rasters_from_bytes,
)
from deepSTRF.models.io.checkpoint import CONFIG_FILE, checkpoint_files
from deepSTRF.training.settings import patience_of

__all__ = [
    "MAIN_SCORE",
    "Run",
    "RunExistsError",
    "RunScores",
    "ScoreRow",
    "abandon",
    "finish",
    "folder_status",
    "model_folder",
    "open_fitted",
    "prepare_folder",
    "write_run",
]

#: The score that ranks neurons and chooses among seeds.
MAIN_SCORE = "cc_norm"
#: Columns that describe the neuron rather than the fit.
KEYS = ("seed", "split", "neuron")
#: What an earlier table begins with, which a new one may replace.
START_OF_CSV = ",".join(KEYS).encode()

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
    """Scores of all neurons on each split, for each seed: ``values[split][metric]`` is (n_seeds, N).

    ``recording`` is the fingerprint of what was scored (``dataset.content_fingerprint()``), where known.
    """

    def __init__(
        self,
        neurons: Sequence[str],
        seeds: Sequence[int],
        values: Mapping[str, Mapping[str, NDArray[np.float64]]],
        recording: str | None = None,
    ) -> None:
        self.recording = recording
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
        cls,
        neurons: Sequence[str],
        seeds: Sequence[int],
        tables: Mapping[str, Sequence[Columns]],
        recording: str | None = None,
    ) -> RunScores:
        """Join the columns of each seed's table, in the order of ``seeds``."""
        joined = {
            split: {
                name: np.stack([np.asarray(one[name], dtype=np.float64) for one in per_seed])
                for name in per_seed[0]
            }
            for split, per_seed in tables.items()
        }
        return cls(neurons, seeds, joined, recording)

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
        if len({(row["seed"], row["split"], row["neuron"]) for row in rows}) < len(rows):
            raise ValueError("two lines of a score file are of the same seed, split and neuron")
        where = {name: index for index, name in enumerate(neurons)}
        values = {s: {name: np.full((len(seeds), len(neurons)), np.nan) for name in names} for s in splits}
        for row in rows:
            for name in names:
                if row[name]:
                    at = seeds.index(int(row["seed"])), where[row["neuron"]]
                    values[row["split"]][name][at] = score = float(row[name])
                    if not math.isfinite(score):
                        raise ValueError(f"{name} of {row['neuron']} is {row[name]!r}; no score is that")
        return cls(neurons, seeds, values)


def _nan_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean of the finite values; NaN, without a warning, where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    mean: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


# ---- Folder

CONFIG, RUN, PROTOCOL, README_FILE = "config.toml", "run.json", "protocol.json", "README.txt"
SCORES_CSV, SCORES_JSON = "scores.csv", "scores.json"
HISTORY_CSV, HISTORY_JSON = "history.csv", "history.json"
EXAMPLES, MODEL, STATE, REPORT = "examples.npz", "model", "state", "report.html"
SEED_MODELS = "models"
#: What `deepSTRF.report.explain_run` writes; it explains this very model, so it goes with it.
EXPLAIN = "explain"
#: Where a fit that is to replace the run works until it is finished.
NEXT = ".deepSTRF-next"
#: The recording that a state belongs to.
RECORDING = f"{STATE}/recording.json"
#: Hidden files and folders of ours start like this.
OURS = ".deepSTRF-"
#: Of the first format, run folders had no manifest.
FORMAT = 2
KIND, EXPLANATION = "run", "explanation"
_REFIT = "fit again with --overwrite"
_ELSEWHERE = "delete the folder, or name another one with --out"

README = """Run folder of deepSTRF. Read it back with deepSTRF.experiments.Run.load(path).

report.html    the page to open first
config.toml    every choice; deepstrf fit --config config.toml repeats the run
scores.csv     one line per seed, split and neuron; scores.json has the means over neurons
history.csv    one line per seed and epoch; history.json the same
protocol.json  the protocol card: what must agree before two scores are compared
model/         weights and configuration (of the seed with the best validation score);
               NeuralModel.from_pretrained("model") loads it. models/seed<k>/ has every seed's
explain/       tables, arrays, sounds and a movie, when deepstrf explain was run
run.json       facts, notes, versions, fingerprint of the recording
manifest.json  names, sizes and SHA-256 of these files, verified when the run is read: change none of them.
               --overwrite replaces or removes only what it lists; files of your own stay
state/         only while a fit runs: what it resumes from
"""


class RunExistsError(NamesFields, FileExistsError):
    """A folder holds a run of other choices, or of another recording."""


@checked
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
        What else the report shows: titles, notes, frequencies, times; ``recording`` is the fingerprint of
        the recording (``dataset.content_fingerprint()``).
    examples : list of NeuronExample
        Neurons that the report shows in full.
    rasters : list of Raster
        Neurons whose repeats it shows.

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
    _files: Artefact | None = field(default=None, repr=False, compare=False)
    rasters: list[Raster] = field(default_factory=list)

    @property
    def best_seed(self) -> int:
        """The seed with the best validation score; ``model/`` is its model."""
        return self.scores.best_seed()

    @property
    def report_path(self) -> Path:
        """Path of the HTML report, once it is written."""
        return self.path / REPORT

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run folder; every file of it is verified when it is read.

        Raises
        ------
        FileNotFoundError
            When there is no such folder, or the run in it is not complete.
        DamagedFileError
            When a file in it is damaged, changed or missing; the text names it.

        Warns
        -----
        UserWarning
            For a run of an earlier version, which holds no checksums.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; deepstrf fit writes run folders and says where")
        files = _read_manifest(folder)
        if files is None:
            raise FileNotFoundError(
                f"{folder} is no run folder: it has no {MANIFEST}; deepstrf fit writes run folders"
            )
        if not files.complete:
            raise FileNotFoundError(
                f"the run in {folder} is not complete; go on with: "
                f"deepstrf fit --config {folder / CONFIG} --out {folder}"
            )
        if files.files is None:
            warn_unsealed(folder, f"{_REFIT} into another folder to have them")
        files.check_there()
        facts = _facts_of(files)
        with naming_damage(folder / SCORES_CSV, _REFIT):
            scores = RunScores.from_csv(files.text(SCORES_CSV))
            scores.recording = facts.get("recording")
        rows = files.json(SCORES_JSON)
        with naming_damage(folder / SCORES_JSON, _REFIT):
            wanted = [(row["split"], row["metric"], row["n"], row["n_nan"]) for row in rows["rows"]]
        if [(row.split, row.metric, row.n, row.n_nan) for row in scores.summary()] != wanted:
            # a table of an earlier version that was cut off between two lines still reads
            raise damaged(folder / SCORES_CSV, f"not the neurons of {SCORES_JSON}", _REFIT)
        examples: list[NeuronExample] = []
        rasters: list[Raster] = []
        if files.has(EXAMPLES):
            with naming_damage(folder / EXAMPLES, _REFIT):
                content = files.read(EXAMPLES)
                examples, rasters = examples_from_bytes(content), rasters_from_bytes(content)
        with naming_damage(folder / CONFIG, _REFIT):
            config = ExperimentConfig.from_toml_text(files.text(CONFIG), str(folder / CONFIG))
        protocol = files.json(PROTOCOL)
        with naming_damage(folder / PROTOCOL, _REFIT):
            card = [(str(label), str(value)) for label, value in protocol["rows"][:]]
        histories = _histories_of(files, scores)
        return cls(folder, config, card, scores, *histories, facts, examples, files, rasters)

    def with_config(self, config: ExperimentConfig) -> Run:
        """Return this run under other choices, for instance another alignment of the same recording."""
        return replace(self, config=config)

    def check_seed(self, seed: int) -> None:
        """Raise ValueError when no model was fitted with that seed."""
        if seed not in self.scores.seeds:
            raise ValueError(f"seed {seed} was not fitted in {self.path}; it has {self.scores.seeds}")

    @checked
    def load_model(self, seed: int | None = None) -> Any:
        """Return the fitted model, in eval mode; None is the best seed's.

        Raises
        ------
        ValueError
            When no such seed was fitted.
        DamagedFileError
            When the model is damaged, or not the one of this run.
        """
        from deepSTRF.models.base import NeuralModel

        files, name = self._manifest(), model_folder(self, seed)
        sealed = files.has(f"{name}/{MANIFEST}")
        for part in (MANIFEST,) if sealed else ("config.json", "model.safetensors"):
            files.path(f"{name}/{part}")
        with warnings.catch_warnings():
            if files.files is None:  # of an earlier version, as `load` has said
                warnings.filterwarnings("ignore", message=".*holds no checksums")
            return NeuralModel.from_pretrained(self.path / name)

    def model_fingerprint(self, seed: int | None = None) -> str:
        """SHA-256 (hex) of the checkpoint of a seed: of its manifest, which lists the others."""
        files, name = self._manifest(), model_folder(self, seed)
        for file in (f"{name}/{MANIFEST}", f"{name}/model.safetensors"):
            if files.files is not None and file in files.files:
                return files.files[file][1]
        return hashlib.sha256(files.read(f"{name}/model.safetensors")).hexdigest()

    def _manifest(self) -> Artefact:
        found = self._files or _read_manifest(self.path)
        if found is None:
            raise FileNotFoundError(f"the run in {self.path} is no longer there: it has no {MANIFEST}")
        return found


def open_fitted(name: str) -> Any:
    """Return the run in a folder, or the model of a checkpoint or, where no folder is, of one that ships."""
    from deepSTRF.models.base import NeuralModel
    from deepSTRF.models.pretrained import load_pretrained, pretrained_models

    folder = Path(name)
    if not folder.is_dir():
        if name in pretrained_models():
            return load_pretrained(name)
        raise FileNotFoundError(
            f"{name} is no run folder, no checkpoint (a folder with {CONFIG_FILE}) and no model that "
            f"ships; those are {', '.join(pretrained_models())}"
        )
    return NeuralModel.from_pretrained(folder) if (folder / CONFIG_FILE).is_file() else Run.load(folder)


def model_folder(run: Run, seed: int | None = None) -> str:
    """Name of the folder, in that of the run, with the model of a seed; None is the best one's."""
    if seed is None:
        return MODEL
    run.check_seed(seed)
    return f"{SEED_MODELS}/seed{seed}" if len(run.scores.seeds) > 1 else MODEL


# ---- Reading: what a folder holds


def _read_manifest(folder: Path) -> Artefact | None:
    """What a run folder lists; None for a folder that is none of ours.

    Without a manifest it is a run of an earlier version, or damaged.
    """
    found = replace(read_folder(folder, KIND, _ELSEWHERE), remedy=_REFIT)
    if found.files is not None:
        return found
    if not (folder / CONFIG).is_file():
        return None
    if not os.path.lexists(folder / RUN):
        readme = folder / README_FILE
        is_ours = readme.is_file() and read_text(readme, _ELSEWHERE).startswith(README.partition(".")[0])
        return replace(found, complete=False) if is_ours else None
    facts = read_json(folder / RUN, _ELSEWHERE)
    if not isinstance(facts, dict) or facts.get("format") != 1:
        raise damaged(folder / MANIFEST, "the file is missing", _ELSEWHERE)
    return found


def _facts_of(files: Artefact) -> dict[str, Any]:
    """What ``run.json`` holds, with the types that the report relies on."""
    path, facts = files.folder / RUN, files.json(RUN)
    numbers, text = int | float, str | None
    kinds: dict[str, Any] = {
        "notes": list, "callbacks": list, "dt_ms": numbers, "frequencies_hz": list | None, "split": dict,
        "seconds": numbers, "finished": str, "n_parameters": int, "response_unit": str, "reasons": list,
        "response_normalization": dict | None, "recording": text, "model": str, "wav2spec": text,
        "versions": list, "dataset": str, "epochs": list,
    }  # fmt: skip
    with naming_damage(path, _REFIT):
        if not isinstance(facts, dict) or facts["format"] not in (1, FORMAT):
            raise ValueError("it is of another format; install a newer deepSTRF")
        for name, kind in kinds.items():
            if name in facts and not isinstance(facts[name], kind):
                raise ValueError(f"{name} is {str(facts[name])[:40]!r}")
        for pair in (*facts.get("notes", ()), *facts.get("versions", ())):
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError(f"{str(pair)[:40]!r} is no pair")
        for hertz in facts.get("frequencies_hz") or ():
            if not isinstance(hertz, numbers) or not math.isfinite(hertz):
                raise ValueError(f"{str(hertz)[:40]!r} is no frequency")
        normalized = facts.get("response_normalization")
        if normalized is not None:
            sizes = {len(normalized[name]) for name in ("scale", "offset")}
            if len(sizes) > 1 or not isinstance(normalized["method"], str):
                raise ValueError(
                    "response_normalization has scales and offsets of different numbers of neurons"
                )
        if "dt_ms" in facts and not 0 < facts["dt_ms"] < math.inf:
            raise ValueError(f"dt_ms is {facts['dt_ms']!r}")
    plain: dict[str, Any] = facts
    return plain


def _histories_of(
    files: Artefact, scores: RunScores
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, int | None]]:
    """What ``history.json`` holds."""
    tree = files.json(HISTORY_JSON)
    with naming_damage(files.folder / HISTORY_JSON, _REFIT):
        histories = {int(seed): rows for seed, rows in tree["seeds"].items()}
        best = {int(seed): epoch for seed, epoch in tree["best_epochs"].items()}
        if set(histories) != set(scores.seeds) or set(best) != set(scores.seeds):
            raise ValueError(f"it is of the seeds {sorted(histories)}, the scores are of {scores.seeds}")
        for row in (row for rows in histories.values() for row in rows):
            for name, value in row.items():
                if name.startswith(("train_", "val_")) and not isinstance(value, int | float | None):
                    raise ValueError(f"{name} is {str(value)[:40]!r}")
        if not all(epoch is None or isinstance(epoch, int) for epoch in best.values()):
            raise ValueError(f"the best epochs are {best}")
    return histories, best


def folder_status(
    folder: Path, config: ExperimentConfig, *, overwrite: bool = False, recording: str | None = None
) -> str:
    """Return what is to be done with a folder, without touching anything.

    "new": there is no run in it; "resume": an interrupted fit of these choices; "finished": the run itself;
    "replace" (with ``overwrite``): another run. A file, a folder of something else or, unless ``overwrite``,
    of another run raises FileExistsError. ``recording``: its fingerprint, once it is known.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder with --out")
    files = _read_manifest(folder) if folder.is_dir() else None
    if files is None:
        if folder.is_dir() and any(not path.name.startswith(OURS) for path in folder.iterdir()):
            raise FileExistsError(
                f"{folder} is not empty and holds no run of deepSTRF; name another folder with --out"
            )
        return "new"
    if overwrite and files.files is None:
        raise FileExistsError(
            f"{folder} holds a run of an earlier version of deepSTRF, without the {MANIFEST} that says which "
            f"files are its own; {_ELSEWHERE}"
        )
    if overwrite:
        return "resume" if not files.complete and _goes_on(folder, config, recording) else "replace"
    pairs, names = _differences(files, config)
    if names:
        values = [value for pair in pairs.values() for value in pair]
        raise RunExistsError(
            f"{{0}} holds another run ({'; '.join(names)}). Name another folder with --out, or replace that "
            "run with --overwrite",
            folder,
            *values,
        )
    if recording is not None and _held_recording(files) not in (None, recording):
        raise changed_recording(folder, "fit")
    return "finished" if files.complete else "resume"


def changed_recording(folder: Path, what: str) -> RunExistsError:
    """The error for a run whose recording is another one now."""
    return RunExistsError(
        "the recording has changed since the {1} in {0}: its sounds, responses or neurons are others. Bring "
        "the file back as it was, name another folder with --out, or fit anew with --overwrite",
        folder,
        what,
    )


def _differences(files: Artefact, config: ExperimentConfig) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Choices of a folder that are others: name to (its own, the ones given), and a template on each."""
    with naming_damage(files.folder / CONFIG, files.remedy):
        present = ExperimentConfig.from_toml_text(files.text(CONFIG), str(files.folder / CONFIG))
    if present.model == config.model and present.model_options == config.model_options:
        present, config = as_fitted(present), as_fitted(config)  # earlier runs leave a model's default unsaid
    pairs = config.differences(present)
    names = [f"{{{name}}}: {{{2 * i + 1}!r}}, not {{{2 * i + 2}!r}}" for i, name in enumerate(pairs)]
    before, now = (
        (one.epochs, patience_of(one.patience, one.schedule, one.epochs)) for one in (present, config)
    )
    if files.complete and before != now:
        names.append(f"epochs/patience: {before[0]}/{before[1]}, not {now[0]}/{now[1]}")
    return pairs, names


def _held_recording(files: Artefact) -> str | None:
    """Fingerprint of the recording of an interrupted fit."""
    if files.complete or files.files is None or RECORDING not in files.files:
        return None
    tree = read_json(files.path(RECORDING), files.remedy, sealed=True)
    return str(tree["recording"]) if isinstance(tree, dict) and tree.get("recording") else None


# ---- Writing


def prepare_folder(
    folder: Path, config: ExperimentConfig, *, overwrite: bool = False, recording: str | None = None
) -> Path:
    """Make a run folder ready, and return the folder to fit in; an earlier run stays as it is.

    That is the folder itself, or `NEXT` inside it where another run is to be replaced.
    """
    status = folder_status(folder, config, overwrite=overwrite, recording=recording)
    if folder.is_dir():
        _check_places(folder, config)
    work = folder / NEXT if status == "replace" else folder
    if status == "replace" and (work.is_symlink() or not _goes_on(work, config, recording)):
        _discard(work)
        if os.path.lexists(work):
            raise FileExistsError(f"{work} holds files that are not of a fit; delete it, then go on")
        status = "new"
    _remove_temporaries(work / STATE)
    manifest = _read_manifest(work) if work.is_dir() else None
    if status == "new" or manifest is None or manifest.files is None:  # the last: of an earlier version
        files = {
            README_FILE: README.encode(),
            CONFIG: config.to_toml().encode(),
            RECORDING: sealed_json({"recording": recording}),
        }
        replace_folder(work, files.items(), KIND, complete=False, later=_states(config))
    for name in _states(config):
        check_place(work, name)
        state = work / name
        if state.is_symlink() or (state.exists() and not state.is_file()):
            raise FileExistsError(f"{state} is a link, pipe or device; remove it first")
    return work


def _states(config: ExperimentConfig) -> list[str]:
    """States of the fits of a run, which are gone when it is finished."""
    parts = ("", "-refit") if config.refit else ("",)
    return [f"{STATE}/seed{seed}{part}.pt" for seed in config.seeds for part in parts]


def _goes_on(work: Path, config: ExperimentConfig, recording: str | None) -> bool:
    """Whether a folder holds an undamaged interrupted fit of the same choices and recording (None: any)."""
    if not work.is_dir():
        return False
    with suppress(OSError, ValueError):
        files = _read_manifest(work)
        if files is not None and files.files is not None and not files.complete:
            for state in (work / STATE).glob("seed*.pt"):
                check_zip_seal(state, None, "")
            same = recording is None or _held_recording(files) == recording
            return same and not _differences(files, config)[1]
    return False


def _discard(work: Path) -> None:
    """Remove an unfinished fit from a folder: what its manifest lists, and interrupted writes."""
    with suppress(OSError, ValueError):  # not readable: not to be removed
        files = None if work.is_symlink() or not work.is_dir() else _read_manifest(work)
        if files is not None and files.files is not None and not files.complete:
            _remove_temporaries(work / STATE)
            remove_folder(work)


def _remove_temporaries(folder: Path) -> None:
    """Remove what killed processes were writing in a folder of ours."""
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.glob(".*.tmp"):
            remove_abandoned(folder, f"{path.name.rsplit('.', 2)[0]}.")


def _check_places(folder: Path, config: ExperimentConfig) -> None:
    """Raise FileExistsError where a file of the run would meet a link, a folder or a user's own file."""
    files = _read_manifest(folder)
    listed = {*((files.files or ()) if files else ()), *(files.later if files else ())}
    seeds = config.seeds if len(config.seeds) > 1 else ()
    models = [MODEL, *(f"{SEED_MODELS}/seed{seed}" for seed in seeds)]
    single = (CONFIG, RUN, PROTOCOL, SCORES_CSV, SCORES_JSON, HISTORY_CSV, HISTORY_JSON, EXAMPLES)
    parts = ("config.json", "model.safetensors", "README.md", "metadata.json", MANIFEST)
    for name in (*single, *(f"{model}/{part}" for model in models for part in parts)):
        check_place(folder, name)
        known = files is None or files.files is None or name in listed
        if not known and os.path.lexists(folder / name):
            raise FileExistsError(
                f"{folder / name} is not of the run in that folder, and a file of the new one is to be "
                "written there; move it elsewhere, or name another folder with --out"
            )


def write_run(run: Run, models: Mapping[int, Any]) -> None:
    """Write a finished run in place of what its folder holds: all of it, or nothing."""
    replace_folder(run.path, _contents(run, models), KIND, later=(REPORT,))


def _contents(run: Run, models: Mapping[int, Any]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of a run."""
    summary = [vars(row) for row in run.scores.summary()]
    metadata = {"scores": json_safe(summary), "protocol": run.protocol, "neurons": run.scores.neurons}
    for seed, model in models.items():
        folders = [f"{SEED_MODELS}/seed{seed}"] if len(models) > 1 else []
        for folder in [*folders, *([MODEL] if seed == run.best_seed else [])]:
            files = checkpoint_files(model, metadata=metadata, source=folder)
            for name, content in adding_manifest(files, "checkpoint"):
                yield f"{folder}/{name}", content
    histories = {"seeds": run.histories, "best_epochs": run.best_epochs}
    table = {"seeds": run.scores.seeds, "best_seed": run.best_seed, "rows": summary}
    facts = {name: value for name, value in run.facts.items() if name != "card"}
    yield README_FILE, README.encode()
    yield CONFIG, run.config.to_toml().encode()
    yield SCORES_CSV, run.scores.to_csv().encode()
    yield SCORES_JSON, _json({"recording": run.facts.get("recording"), **table})
    yield HISTORY_CSV, _history_csv(run.histories).encode()
    yield HISTORY_JSON, _json(histories)
    yield PROTOCOL, _json({"rows": run.protocol, "card": run.facts.get("card", {})})
    yield EXAMPLES, examples_to_bytes(run.examples, run.rasters)
    yield RUN, _json({"format": FORMAT, **facts})


def _json(value: Any) -> bytes:
    return (json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n").encode()


def finish(folder: Path) -> None:
    """Remove what a finished fit leaves behind: working folder, states, the explanation of another model."""
    _remove_temporaries(folder / STATE)
    with suppress(OSError):
        (folder / STATE).rmdir()
    _discard(folder / NEXT)
    explained = folder / EXPLAIN
    if explained.is_dir() and not explained.is_symlink():
        with suppress(ValueError, OSError):
            if read_folder(explained, EXPLANATION, "").files is not None:
                remove_folder(explained)


def abandon(work: Path, made: Sequence[Path]) -> None:
    """Remove a working folder of a fit that came to nothing, and the folders that were made for it."""
    _discard(work)
    for path in made:
        with suppress(OSError):  # holds something else
            path.rmdir()


def _history_csv(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    names = list(dict.fromkeys(name for rows in histories.values() for row in rows for name in row))
    cells = [[seed, *(row.get(name) for name in names)] for seed, rows in histories.items() for row in rows]
    return csv_table([["seed", *names], *cells])
