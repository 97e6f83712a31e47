"""Search for good choices with Optuna: each trial is a fit, judged by its validation score, pruned early.

Trials are kept in a file on disk and each fit has a run folder, so that a search that was killed goes on
where it stopped. No test score is looked at.
"""

from __future__ import annotations

import functools
import json
import math
import numbers
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np

from deepSTRF._files import check_target, held_lock, json_safe, write_atomically
from deepSTRF._optional import require
from deepSTRF._text import csv_table, printable
from deepSTRF._validation import check_positive_int, checked_but
from deepSTRF.experiments.build import check_choices
from deepSTRF.experiments.config import ExperimentConfig, read_toml
from deepSTRF.experiments.run_folder import abandon
from deepSTRF.experiments.sweep import (
    FOLD,
    SEARCH,
    Axis,
    Contents,
    PlannedFit,
    axis_of,
    base_of,
    fields_given,
    flat_grid,
    is_choice,
    label_of,
    lacks_fold,
    none_words,
    planned,
)
from deepSTRF.experiments.sweep_fits import AGAIN_SECONDS, BUSY, SEARCH_LOCK, Job, check_folder, fit_planned
from deepSTRF.experiments.sweep_results import DONE, FAILED, FITS, SWEEP_FILE, read_result, shown
from deepSTRF.training.callbacks import Callback, FitterLike, shows_progress
from deepSTRF.training.objective import mean_score

__all__ = ["SearchResults", "Trial", "search", "search_from_toml"]

PRUNED, RUNNING = "pruned", "running"
#: Epochs of a fit, and finished trials, before the first is pruned.
WARMUP_EPOCHS, STARTUP_TRIALS = 3, 5
STUDY, DATABASE = "deepSTRF", "search.db"
TRIALS_CSV, TRIALS_JSON = "trials.csv", "trials.json"
#: Seconds between two looks at the lock of a search, and in which another process leaves its database.
LOCK_SECONDS, DATABASE_SECONDS = 0.05, 60
_RANGE = ("low", "high", "log", "step")
_TABLE = ("space", "n_trials", "folds", "pruner", "seed")


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes
    ----------
    number : int
        From 0.
    choices : mapping of str to str, int or float
        What was tried.
    status : str
        "done", "pruned", "failed" or "running".
    validation : float
        Mean validation score over folds and seeds; of a pruned trial the last one that it reported.
    error : str
        Of a failed trial.
    paths : list of Path
        Its run folders, one per fold; those of a pruned trial are removed.
    """

    number: int
    choices: Mapping[str, Any]
    status: str
    validation: float = math.nan
    error: str = ""
    paths: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        texts = {n: f"{v:.4g}" if isinstance(v, float) else str(v) for n, v in self.choices.items()}
        named = ", ".join(f"{name}={text}" for name, text in texts.items())
        error = f": {self.error}" if self.error else ""
        return f"trial {self.number}, {self.status}: validation {shown(self.validation)} ({named}){error}"


@dataclass(frozen=True)
class SearchResults:
    """All trials of a search.

    Attributes
    ----------
    out : Path
        Its folder.
    base : mapping
        The choices that all trials share.
    trials : list of Trial
        In order.
    best_config : ExperimentConfig
        The choices of the best trial, with the split of ``base``.

    Examples
    --------
    >>> results = SearchResults(Path("runs/search"), [
    ...     Trial(0, {"epochs": 3}, "done", 0.2), Trial(1, {"epochs": 9}, "done", 0.4),
    ...     Trial(2, {"epochs": 5}, "pruned", 0.5)], ExperimentConfig(epochs=9))
    >>> results.best.choices, results.best_config.epochs
    ({'epochs': 9}, 9)
    """

    out: Path
    trials: list[Trial]
    best_config: ExperimentConfig | None = None

    @property
    def best(self) -> Trial:
        """The finished trial with the highest validation score."""
        return best_of(self.trials)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per trial: number, status, validation score, choices, error."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.choices)
        return [
            {
                "trial": trial.number,
                "status": trial.status,
                "validation": trial.validation,
                **{name: trial.choices.get(name) for name in names},
                "error": trial.error,
            }
            for trial in self.trials
        ]

    def to_csv(self) -> str:
        """Return `table` as CSV; a missing number is an empty cell."""
        rows = self.table()
        cells = [[None if value != value else value for value in row.values()] for row in rows]
        return csv_table([list(rows[0]) if rows else ["trial"], *cells])

    def to_json(self) -> str:
        """Return the trials and the best configuration as JSON; a missing number is null."""
        best = None if self.best_config is None else self.best_config.to_toml()
        tree = {
            "trials": self.table(),
            "best": best,
            "folders": [list(map(str, t.paths)) for t in self.trials],
        }
        return json.dumps(json_safe(tree), indent=1, allow_nan=False) + "\n"

    def __str__(self) -> str:
        lines = [str(trial) for trial in self.trials]
        done = [trial for trial in self.trials if trial.status == DONE]
        return "\n".join([*lines, f"Best: {self.best}" if done else "No trial has ended well."])


def best_of(trials: Sequence[Trial]) -> Trial:
    """The finished trial with the highest validation score; the first of equal ones."""
    done = [trial for trial in trials if trial.status == DONE and math.isfinite(trial.validation)]
    if not done:
        errors = next((f" ({trial.error})" for trial in trials if trial.error), "")
        raise ValueError(f"none of the {len(trials)} trials has ended well{errors}")
    return max(done, key=lambda trial: trial.validation)


# ---- What is searched


@dataclass(frozen=True)
class _Dimension:
    """One choice of a search: its distribution, and what a drawn value changes."""

    name: str
    distribution: Any
    axis: Axis | None

    def draw(self, trial: Any) -> Any:
        """The value of a trial; that which it has, where it has one."""
        one = self.distribution
        if self.axis is not None:
            return trial.suggest_categorical(self.name, one.choices)
        suggest = trial.suggest_int if isinstance(one.low, int) else trial.suggest_float
        return suggest(self.name, one.low, one.high, step=one.step, log=one.log)

    def changes(self, value: Any) -> Mapping[str, Any]:
        """What a value changes: fields and options to values."""
        if self.axis is None:
            return {self.name: value}
        return self.axis.changes[self.axis.labels.index(value)]


def _dimensions(space: Mapping[str, Any]) -> list[_Dimension]:
    optuna = require("optuna", "hpo")
    if not space:
        raise ValueError("space is empty: name choices with a list of values, or {'low': ..., 'high': ...}")
    found = []
    for name, given in flat_grid(space).items():
        if name == FOLD:
            raise ValueError(
                "space: folds are no choice; give folds=[0, 1, ...], over which scores are averaged"
            )
        if not isinstance(given, Mapping):
            axis = axis_of(name, given)
            found.append(_Dimension(name, optuna.distributions.CategoricalDistribution(axis.labels), axis))
            continue
        ends = [_number(given.get(end)) for end in ("low", "high")]
        if not is_choice(name) or set(given) - set(_RANGE) or None in ends:
            raise ValueError(
                f"space: {name!r} must be a field of ExperimentConfig or an option such as "
                "'model_options.n_lags', with a list of values or a range {'low': ..., 'high': ..., "
                f"'log': true, 'step': ...}}; got {dict(given)!r}"
            )
        whole = all(isinstance(end, int) for end in ends)
        kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
        more: dict[str, Any] = {"log": bool(given.get("log", False))}
        if "step" in given:
            more["step"] = _number(given["step"])
            if not isinstance(more["step"], int if whole else int | float) or more["step"] <= 0:
                kind_of = "whole number" if whole else "number"
                raise ValueError(f"space: {name!r}: step must be a {kind_of} above 0, got {given['step']!r}")
        try:
            found.append(_Dimension(name, kind(*ends, **more), None))
        except ValueError as error:
            raise ValueError(f"space: {name!r}: {error}") from None
    return found


def _number(value: Any) -> int | float | None:
    """An end of a range as Python's own number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


# ---- The search


@checked_but("base", "pruner", "storage")
def search(
    space: Mapping[str, Any],
    base: ExperimentConfig | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    n_trials: int = 50,
    folds: Sequence[int] = (),
    storage: Any = None,
    pruner: Any = "median",
    seed: int = 0,
    progress: bool | Literal["auto"] = "auto",
    download: bool = False,
) -> SearchResults:
    """Search for choices with a high validation score, by Optuna's TPE sampler.

    Each trial fits an experiment (one per fold), and reports its best validation score so far at every epoch;
    a pruner ends trials that fall behind. The same call goes on with an interrupted search: the trial that
    was at work resumes at its last epoch, finished ones are not repeated, and the draws are those that an
    uninterrupted search makes. Several processes that share the folder may run the same search at a time.

    Parameters
    ----------
    space : mapping
        Field of `ExperimentConfig`, or single option ("model_options.n_lags"), to a list of values or a range
        ``{"low": 1e-4, "high": 1e-2, "log": True}`` (whole numbers where both ends are; ``step``); another
        word to a list of tables of fields that change together, as an axis of `Sweep`.
    base : ExperimentConfig or mapping
        All other choices. Its ``seeds`` are fitted in every trial and averaged.
    out : path
        Folder: run folders under ``fits/``, ``search.db``, ``trials.csv``, ``trials.json``.
    n_trials : int
        Trials in all, also those of earlier calls.
    folds : sequence of int
        Folds of a split such as "kfold:5", whose scores are averaged.
    storage : str, path or optuna storage, optional
        File of the trials (SQLite), or the address of a database; None is ``search.db`` in ``out``.
    pruner : {'median', 'hyperband', 'none'} or optuna.pruners.BasePruner
        What ends a trial early. 'median': one whose score is below the median of the earlier trials at that
        epoch, after 5 trials and 3 epochs.
    seed : int
        Of the sampler.
    progress : bool or 'auto'
        One line per trial on stderr; 'auto' where that is a terminal.
    download : bool
        Let the recording fetch missing files.

    Returns
    -------
    SearchResults
        All trials, and the best by validation.

    Raises
    ------
    ImportError
        Without the extra ``hpo``.
    ValueError, TypeError
        For an impossible space or base; when the storage holds another search, or trials on a recording that
        has changed since; when it is no database.

    Notes
    -----
    Test scores take no part. They are in the run folders (`Run.load`); look at that of the best trial, once.
    The best of many validation scores is too good by the luck of those clips: report a score of others.

    References
    ----------
    Akiba et al. (2019), Optuna, KDD, doi:10.1145/3292500.3330701.
    Bergstra et al. (2011), Algorithms for hyper-parameter optimization, NeurIPS 24 (the sampler).

    Examples
    --------
    >>> import tempfile
    >>> data = {"n_neurons": 2, "n_clips": 5, "n_repeats": 4}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = search({"model_options.n_lags": {"low": 1, "high": 12}},
    ...                      {"dataset_options": data, "model": "ridge"}, folder, n_trials=3, progress=False)
    >>> [trial.status for trial in results.trials], 1 <= results.best.choices["model_options.n_lags"] <= 12
    (['done', 'done', 'done'], True)
    """
    optuna = require("optuna", "hpo")
    n_trials = check_positive_int("n_trials", n_trials)
    folder = Path(out)
    check_folder(folder, (DATABASE, TRIALS_JSON, SWEEP_FILE))
    one = _Search(space, fields_given(base), folder.absolute(), tuple(folds), seed, download)
    with _quiet(optuna):
        study = one.open_study(optuna, storage, pruner)
        while (number := one.step(optuna, study, n_trials)) is not None:
            if shows_progress(progress):
                _say(one.read(study.trials[number]), n_trials)
        trials = [one.read(trial) for trial in study.trials]
    done = [trial for trial in trials if trial.status == DONE]
    results = SearchResults(folder, trials, one.config(best_of(done).choices) if done else None)
    write_atomically(folder / TRIALS_CSV, results.to_csv().encode())
    write_atomically(folder / TRIALS_JSON, results.to_json().encode())
    return results


class _Search:
    """One search: its space, and its trials in the storage of Optuna."""

    def __init__(
        self,
        space: Mapping[str, Any],
        base: Mapping[str, Any],
        folder: Path,
        folds: tuple[int, ...],
        seed: int,
        download: bool,
    ) -> None:
        self.dimensions, self.base, self.folder = _dimensions(space), base, folder
        self.folds: tuple[int | None, ...] = folds or (None,)
        self.seed, self.job = seed, Job(folder, False, download)
        self.contents = Contents()
        self.description = json.dumps(
            json_safe({"base": base, "space": space, "folds": folds, "seed": seed}), sort_keys=True
        )
        if len(set(folds)) < len(folds):
            raise ValueError(f"folds must differ from each other, got {list(folds)}")
        first = {d.name: d.axis.labels[0] if d.axis else d.distribution.low for d in self.dimensions}
        for fit in self._fits(first):
            check_choices(fit.config)
            if lacks_fold(fit.config.split):
                raise ValueError(f"the split {fit.config.split!r} names no fold; give folds=[0, 1, ...]")
        ends = [d.distribution.high for d in self.dimensions if d.name == "epochs" and d.axis is None]
        self.most_epochs = max([fit.config.epochs, *ends])

    def _fits(self, choices: Mapping[str, Any]) -> list[PlannedFit]:
        """The fits of a trial, one per fold."""
        changes = [dimension.changes(choices[dimension.name]) for dimension in self.dimensions]
        labels = {name: label_of(value) for name, value in choices.items()}
        found = []
        for fold in self.folds:
            more = [*changes, *([] if fold is None else [{FOLD: fold}])]
            own = labels if fold is None else {**labels, FOLD: str(fold)}
            name = ", ".join(f"{key}={label}" for key, label in own.items())
            found.append(planned(name, own, self.base, more, self.contents))
        return found

    def config(self, choices: Mapping[str, Any]) -> ExperimentConfig:
        """The configuration of a trial, of no fold."""
        changes = [dimension.changes(choices[dimension.name]) for dimension in self.dimensions]
        return planned("best", {}, self.base, changes, self.contents).config

    def open_study(self, optuna: Any, storage: Any, pruner: Any) -> Any:
        """The study in the storage; ValueError where it is another search."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if storage is None:
            storage = self.folder / DATABASE
        with self._alone():  # two that begin together would both make the tables
            study = optuna.create_study(
                storage=_opened(optuna, storage),
                study_name=STUDY,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(optuna, pruner),
            )
            held = study.user_attrs.get("description")
            if held is None:
                study.set_user_attr("description", self.description)
        if held not in (None, self.description):
            raise ValueError(
                "the storage holds another search (space, base, folds or seed differ); name another folder "
                f"or storage. It holds {held[:300]}"
            )
        self._check_recordings(study)
        return study

    def _check_recordings(self, study: Any) -> None:
        """Raise ValueError when a recording in files is not that of the trials that are there."""
        for trial in study.trials:
            folders = trial.user_attrs.get("folders")
            if folders and folders != [fit.folder for fit in self._fits(trial.params)]:
                raise ValueError(
                    "the recording has changed since the trials of this search: their scores and new ones do "
                    "not compare. Name another folder (and storage), or bring the recording back as it was"
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A block in which no other process makes a trial."""
        while True:
            with held_lock(self.folder / SEARCH_LOCK) as mine:
                if mine:
                    yield
                    return
            time.sleep(LOCK_SECONDS)

    def _abandoned(self, study: Any) -> int | None:
        """A trial at which a process was at work that is no more."""
        for trial in study.trials:
            if trial.state.name == "RUNNING":
                with held_lock(self._lock(trial.number)) as mine:
                    # asked again: another process may have finished it since the trials were read
                    if mine and study.trials[trial.number].state.name == "RUNNING":
                        return int(trial.number)
        return None

    def _lock(self, number: int) -> Path:
        return self.folder / f"trial-{number}.lock"

    def step(self, optuna: Any, study: Any, n_trials: int) -> int | None:
        """Go on with an abandoned trial, or make a new one; None when there are enough."""
        with ExitStack() as held:
            with self._alone():
                number = self._abandoned(study)
                if number is not None:
                    trial = optuna.trial.Trial(study, study.trials[number]._trial_id)
                elif len(study.trials) < n_trials:
                    trial = study.ask()
                else:
                    return None
                number = int(trial.number)
                held.enter_context(held_lock(self._lock(number)))
            # a sampler of its own for each trial: an interrupted search draws what an uninterrupted one draws
            state = np.random.SeedSequence([self.seed, number]).generate_state(1)
            study.sampler = optuna.samplers.TPESampler(seed=int(state[0]))
            self._run(optuna, study, trial)
        return number

    def _run(self, optuna: Any, study: Any, trial: Any) -> None:
        """Fit what a trial draws, and tell the study."""
        choices = {dimension.name: dimension.draw(trial) for dimension in self.dimensions}
        states, fits = optuna.trial.TrialState, []
        reported = set(study.trials[trial.number].intermediate_values)
        progress = _Progress(trial, reported, self.most_epochs)
        try:
            fits = self._fits(choices)
            trial.set_user_attr("folders", [fit.folder for fit in fits])
            for place, fit in enumerate(fits):
                watch = functools.partial(_watching, progress)
                while fit_planned(fit, self.job, watch) == BUSY:  # another trial with the same choices
                    time.sleep(AGAIN_SECONDS)
                result = read_result(self.folder, fit)
                if result.status != DONE:
                    raise RuntimeError(result.error)
                n = len(fit.config.seeds)
                progress.finished = [*progress.finished[: place * n], *[result.validation] * n]
        except _PrunedError:
            for fit in fits:
                abandon(self.folder / FITS / fit.folder, [self.folder / FITS / fit.folder])
            study.tell(trial.number, state=states.PRUNED)
        except Exception as error:  # noqa: BLE001  (of this trial; the search goes on)
            trial.set_user_attr("error", f"{error}"[:1000])
            study.tell(trial.number, state=states.FAIL)
        else:
            score = mean(progress.finished)
            if math.isnan(score):
                trial.set_user_attr("error", "no neuron has a score on the validation clips")
                study.tell(trial.number, state=states.FAIL)
            else:
                study.tell(trial.number, score)

    def read(self, trial: Any) -> Trial:
        """A trial as it is in the storage."""
        status = {"COMPLETE": DONE, "PRUNED": PRUNED, "FAIL": FAILED}.get(trial.state.name, RUNNING)
        value = trial.value
        if value is None and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        folders = trial.user_attrs.get("folders", ()) if status == DONE else ()
        return Trial(
            int(trial.number),
            dict(trial.params),
            status,
            math.nan if value is None else float(value),
            str(trial.user_attrs.get("error", "")),
            [self.folder / FITS / name for name in folders],
        )


def _opened(optuna: Any, storage: Any) -> Any:
    """A storage of Optuna; a path is a file of SQLite."""
    if not isinstance(storage, str | os.PathLike | optuna.storages.BaseStorage):
        raise TypeError(
            "storage must be a path, the address of a database or a storage of Optuna, got "
            f"{type(storage).__name__}"
        )
    address, options = storage, {}
    if isinstance(storage, os.PathLike) or (isinstance(storage, str) and "://" not in storage):
        check_target(storage)
        Path(storage).absolute().parent.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{Path(storage).absolute()}"
    if not isinstance(address, str):
        return storage
    if address.startswith("sqlite:"):
        options = {"connect_args": {"timeout": DATABASE_SECONDS}}
    try:
        return optuna.storages.RDBStorage(address, engine_kwargs=options)
    except Exception as error:  # of SQLAlchemy, or of the driver of a database
        text = " ".join(str(error).split("\n")[0].split())
        raise ValueError(
            f"storage={os.fspath(storage)!r} is no database of Optuna, or does not answer ({text})"
        ) from error


def _pruner(optuna: Any, pruner: Any) -> Any:
    if isinstance(pruner, optuna.pruners.BasePruner):
        return pruner
    if pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS)
    if pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=WARMUP_EPOCHS)
    if pruner == "none":
        return optuna.pruners.NopPruner()
    raise ValueError(
        "pruner must be 'median', 'hyperband', 'none' or an instance of optuna.pruners.BasePruner, got "
        f"{pruner!r}"
    )


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """A block in which Optuna says only what is wrong."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


# ---- Pruning


class _PrunedError(BaseException):
    """The pruner has ended a trial; no failure of its fit."""


class _Progress:
    """Validation scores of one trial on their way to Optuna.

    What is reported at an epoch is the mean over its fits, finished ones and the best of the one at work; its
    step counts the epochs of all fits, each taken for the longest.
    """

    def __init__(self, trial: Any, reported: set[int], most_epochs: int) -> None:
        self.trial, self.reported, self.most_epochs = trial, reported, most_epochs
        self.finished: list[float] = []

    def report(self, epoch: int, best: float) -> None:
        """Report an epoch, once."""
        step = len(self.finished) * self.most_epochs + epoch
        if step not in self.reported:
            self.reported.add(step)
            self.trial.report(mean([*self.finished, best]), step)

    def check(self) -> None:
        """Raise when the trial has fallen behind."""
        if self.reported and self.trial.should_prune():
            raise _PrunedError


class _Pruning(Callback):
    """Pruning of a trial by the validation score of each epoch."""

    def __init__(self, progress: _Progress) -> None:
        self._progress, self._best = progress, math.nan

    def on_epoch_start(self, fitter: FitterLike, epoch: int) -> None:
        """Make up for epochs before an interruption."""
        self._report(fitter)

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Report an epoch."""
        self._report(fitter)

    def on_fit_end(self, fitter: FitterLike) -> None:
        """The next fit of the trial counts on from this one, also from one that was finished before."""
        if fitter.history:
            self._report(fitter)
            self._progress.finished.append(self._best)

    def _report(self, fitter: FitterLike) -> None:
        self._best = -math.inf
        for epoch, record in enumerate(fitter.history):
            self._best = max(self._best, mean_score(record[fitter.monitor]).mean)
            self._progress.report(epoch, self._best)
        self._progress.check()


def _watching(progress: _Progress, seed: int) -> list[Callback]:
    """The callback of a seed's fit."""
    return [_Pruning(progress)]


# ---- From a file, to a terminal


def search_from_toml(
    path: str | os.PathLike[str], out: str | os.PathLike[str], **overrides: Any
) -> SearchResults:
    """Run the search of a TOML file: the tables of an experiment, ``[search]`` and ``[search.space]``.

    Keyword arguments of `search` that are not None win over the file.
    """
    tree, source = read_toml(path), str(path)
    table = none_words(tree.get(SEARCH))
    if not isinstance(table, Mapping) or not isinstance(table.get("space"), Mapping):
        raise TypeError(f"{source}: a search needs a table [search.space], with a list or a range per choice")
    for key in table:
        if key not in _TABLE:
            raise ValueError(f"{source}: [search] has no key {key!r}; legal are {', '.join(_TABLE)}")
    given = {**{key: value for key, value in table.items() if key != "space"}}
    given |= {key: value for key, value in overrides.items() if value is not None}
    return search(table["space"], base_of(tree, source), out, **given)


def _say(trial: Trial, n_trials: int) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    console.print(printable(f"{trial.number + 1}/{n_trials}  {trial}"), soft_wrap=True)
