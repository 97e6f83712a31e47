"""The results of a sweep: what each fit came to, the table of all, and the choice by validation.

A result is read from the run folder of its fit, so that a table can be made at any time, also while the sweep
runs elsewhere.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tomli_w

from deepSTRF._files import (
    DamagedFileError,
    json_safe,
    naming_damage,
    read_json,
    read_text,
    write_atomically,
)
from deepSTRF._text import csv_table
from deepSTRF._validation import checked, first_names
from deepSTRF.experiments.config import parse_toml
from deepSTRF.experiments.run_folder import MAIN_SCORE, Run
from deepSTRF.experiments.sweep import KEYS, REPEATS, PlannedFit, Sweep

__all__ = [
    "COLUMNS",
    "DONE",
    "FAILED",
    "FITS",
    "LOG",
    "MISSING",
    "SWEEP_FILE",
    "FitResult",
    "SweepResults",
    "failure_path",
    "group_of",
    "group_row",
    "read_result",
    "shown",
    "table_text",
    "write_plan",
]

#: Files and folders of a sweep.
FITS, LOG, SWEEP_FILE, TABLE_CSV, RESULTS_JSON = (
    "fits",
    "log.jsonl",
    "sweep.toml",
    "table.csv",
    "results.json",
)
DONE, FAILED, MISSING = "done", "failed", "missing"
VALIDATION, TEST = "validation", "test"
#: What tables say of the choice.
CHOICE_NOTE = "Choose by the validation score; the test score of what was chosen is the one to report."
#: What to do with a damaged result.
_REMEDY = "fit it again with retry_failed=True (--retry-failed)"


@dataclass(frozen=True)
class FitResult:
    """What a fit of a sweep came to.

    Attributes
    ----------
    name : str
        Name of the fit: its choices.
    choices : mapping of str to str
        Axis to label.
    config : ExperimentConfig
        All choices.
    status : str
        "done", "failed", or "missing" when it is not there yet.
    path : Path
        Its run folder.
    scores : mapping of str to mapping of str to float
        "validation" and "test" to metric to its mean over the neurons that have one (and over the seeds of
        the fit, where it has several).
    n_neurons, n_nan : int
        Neurons with and without a score on the test clips.
    seconds : float
        Time of the fit.
    n_parameters : int
        Trainable parameters.
    recording : str
        Fingerprint of sounds and responses, whatever is made of the sounds.
    error, traceback : str
        Of a failed fit.
    """

    name: str
    choices: Mapping[str, str]
    config: Any
    status: str
    path: Path
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    n_neurons: int = 0
    n_nan: int = 0
    seconds: float = math.nan
    n_parameters: int = 0
    recording: str = ""
    error: str = ""
    traceback: str = ""

    @property
    def validation(self) -> float:
        """Mean noise-corrected correlation on the validation clips; NaN where there is none."""
        return self.scores.get(VALIDATION, {}).get(MAIN_SCORE, math.nan)

    @property
    def test(self) -> float:
        """Mean noise-corrected correlation on the test clips; NaN where there is none."""
        return self.scores.get(TEST, {}).get(MAIN_SCORE, math.nan)


def failure_path(out: Path, fit: PlannedFit) -> Path:
    """File in which a failed fit is reported, beside its run folder."""
    return out / FITS / f"{fit.folder}.failed.json"


def read_result(out: Path, fit: PlannedFit) -> FitResult:
    """What the folder of a sweep holds of a fit."""
    path, failed = out / FITS / fit.folder, failure_path(out, fit)
    if not path.is_dir() and not failed.is_file():
        return FitResult(fit.name, fit.choices, fit.config, MISSING, path)
    try:
        run = Run.load(path)
    except DamagedFileError as error:
        text = str(error)
        return FitResult(fit.name, fit.choices, fit.config, FAILED, path, error=text, traceback=text)
    except FileNotFoundError:  # not complete
        if not failed.is_file():
            return FitResult(fit.name, fit.choices, fit.config, MISSING, path)
        text, trace = _read_failure(failed)
        return FitResult(fit.name, fit.choices, fit.config, FAILED, path, error=text, traceback=trace)
    rows = run.scores.summary()
    tests = [row for row in rows if row.split == TEST and row.metric == MAIN_SCORE]
    return FitResult(
        fit.name,
        fit.choices,
        fit.config,
        DONE,
        path,
        scores={
            split: {row.metric: row.mean for row in rows if row.split == split}
            for split in (VALIDATION, TEST)
        },
        n_neurons=sum(row.n for row in tests),
        n_nan=sum(row.n_nan for row in tests),
        seconds=float(run.facts.get("seconds", math.nan)),
        n_parameters=int(run.facts.get("n_parameters", 0)),
        recording=str(run.facts.get("sounds", "")),
    )


def _read_failure(path: Path) -> tuple[str, str]:
    """Error and traceback of a failed fit."""
    try:
        tree = read_json(path, _REMEDY, sealed=True)
        with naming_damage(path, _REMEDY):
            return str(tree["error"]), "\n".join(map(str, tree["traceback"]))
    except DamagedFileError as error:
        return str(error), str(error)


@dataclass(frozen=True)
class SweepResults:
    """All results of a sweep, in the order of its grid.

    Attributes
    ----------
    sweep : Sweep
        The sweep.
    out : Path
        Its folder.
    fits : list of FitResult
        One per fit: its choices, ``status`` ("done", "failed", "missing"), run folder ``path``, ``scores``,
        and of a failed one ``error`` and ``traceback``.
    fitted, read : tuple of str
        Names of the fits that this call has made, and of those that were finished before.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.experiments import run_sweep
    >>> sweep = Sweep({"dataset_options": {"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, "model": "ridge"},
    ...               {"model_options.n_lags": [1, 10]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = run_sweep(sweep, folder, progress=False)
    ...     again = run_sweep(sweep, folder, progress=False)
    >>> len(results.fitted), len(again.fitted), len(again.read)
    (2, 0, 2)
    >>> results.best()["model_options.n_lags"]
    '10'
    """

    sweep: Sweep
    out: Path
    fits: list[FitResult]
    fitted: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    @classmethod
    @checked
    def load(cls, out: str | os.PathLike[str]) -> SweepResults:
        """Read the results that the folder of a sweep holds now; nothing is fitted.

        Raises
        ------
        FileNotFoundError
            When the folder holds no sweep.
        """
        folder = Path(out)
        if not (folder / SWEEP_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {SWEEP_FILE}; run_sweep(sweep, out) and deepstrf sweep write it"
            )
        text, source = read_text(folder / SWEEP_FILE), str(folder / SWEEP_FILE)
        sweep, tree = Sweep.from_toml_text(text, source), parse_toml(text, source)
        fits = [read_result(folder, fit) for fit in sweep.fits(tree.get(KEYS))]
        return cls(sweep, folder, fits, read=tuple(fit.name for fit in fits if fit.status == DONE))

    @property
    def failed(self) -> list[FitResult]:
        """The fits that failed, with ``error`` and ``traceback``."""
        return [fit for fit in self.fits if fit.status == FAILED]

    @property
    def missing(self) -> list[FitResult]:
        """The fits that are not there yet."""
        return [fit for fit in self.fits if fit.status == MISSING]

    @checked
    def run(self, name: str) -> Run:
        """Return the run of a fit: models, scores per neuron, protocol.

        Raises
        ------
        KeyError
            For an unknown name.
        FileNotFoundError
            When that fit is not done.
        """
        known = {fit.name: fit for fit in self.fits}
        if name not in known:
            raise KeyError(f"no fit {name!r}; this sweep has {first_names(list(known))}")
        if known[name].status != DONE:
            raise FileNotFoundError(f"the fit {name!r} is {known[name].status}: {known[name].error}")
        return Run.load(known[name].path)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per fit: name, choices, status, scores, neurons, time, parameters, folder, error.

        Scores are means over neurons: "validation" and "test" are the noise-corrected correlation, other
        metrics have columns such as "validation_cc". Test scores stand beside; they choose nothing.
        """
        metrics = dict.fromkeys(
            f"{split}_{metric}"
            for split in (VALIDATION, TEST)
            for fit in self.fits
            for metric in fit.scores.get(split, {})
            if metric != MAIN_SCORE
        )
        rows = []
        for fit in self.fits:
            others = {name: _score(fit, name) for name in metrics}
            rows.append(
                {
                    "name": fit.name,
                    **fit.choices,
                    "status": fit.status,
                    VALIDATION: fit.validation,
                    TEST: fit.test,
                    "neurons": fit.n_neurons,
                    "no score": fit.n_nan,
                    "seconds": fit.seconds,
                    "parameters": fit.n_parameters,
                    **others,
                    "folder": os.fspath(fit.path),
                    "error": fit.error,
                }
            )
        return rows

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per configuration: mean and spread over its seeds, folds and splits.

        Columns are the axes, "fits" (how many are in the means), "failed", "missing", "validation" and "test"
        (means over fits of the mean over neurons), "validation sd" and "test sd" (over fits; NaN of one),
        "neurons" and "no score" (of the first fit), "seconds" (of all fits) and "names" of the fits.
        """
        return [group_row(choices, fits) for choices, fits in self._groups()]

    def _groups(self) -> list[tuple[dict[str, str], list[FitResult]]]:
        groups: dict[tuple[tuple[str, str], ...], list[FitResult]] = {}
        for fit in self.fits:
            groups.setdefault(group_of(fit), []).append(fit)
        return [(dict(own), fits) for own, fits in groups.items()]

    @checked
    def best(self, score: str = VALIDATION, **choices: str) -> dict[str, Any]:
        """Return the row of `summary` with the highest validation score.

        Only configurations all of whose fits are done take part: one that lost its hardest folds would look
        better than it is.

        Parameters
        ----------
        score : str
            "validation" (noise-corrected correlation), or another metric where higher is better, such as
            "validation_cc". Test scores choose nothing.
        **choices : str
            Axes and labels: only among these, for instance ``dataset="ns1"``.

        Returns
        -------
        dict
            The row, and "score": the mean over its fits of what was asked for.

        Raises
        ------
        ValueError
            For a test score; for an unknown score, axis or label; when no configuration is complete; when
            what is left is of several recordings, whose scores do not compare.
        """
        if score.partition("_")[0] != VALIDATION:
            raise ValueError(
                f"score={score!r}: a configuration is chosen by its validation score ('{VALIDATION}', "
                f"'{VALIDATION}_cc'), never by its test score, which then says nothing about new sounds"
            )
        for axis, label in choices.items():
            legal = self.sweep.axes.get(axis)
            if legal is None or axis in REPEATS or label not in legal:
                raise ValueError(
                    f"{axis}={label!r}: axes and labels are "
                    f"{ {name: labels for name, labels in self.sweep.axes.items() if name not in REPEATS} }"
                )
        complete = []
        for own, fits in self._groups():
            if any(own.get(axis) != label for axis, label in choices.items()):
                continue
            values = [_score(fit, score) for fit in fits if fit.status == DONE]
            if len(values) == len(fits) and all(math.isfinite(value) for value in values):
                complete.append((mean(values), own, fits))
        if not complete:
            raise ValueError(
                f"no configuration has all its fits and a finite {score!r} score: {len(self.failed)} fits "
                f"failed, {len(self.missing)} are missing"
            )
        recordings = {fit.recording: _recording(fit) for _, _, fits in complete for fit in fits}
        if len(recordings) > 1:
            named = first_names(list(recordings.values()))
            raise ValueError(f"scores of several recordings do not compare ({named}): name one in best(...)")
        value, own, fits = max(complete, key=lambda entry: entry[0])
        return {**group_row(own, fits), "score": value}

    def notes(self) -> list[str]:
        """Return sentences that a reader of the table needs."""
        notes = [CHOICE_NOTE]
        left_out = sum(any(fit.status != DONE for fit in fits) for _, fits in self._groups())
        if left_out:
            notes.append(f"{left_out} configurations lack fits; `best` leaves them out.")
        prints: dict[str, set[str]] = {}
        for fit in self.fits:
            if fit.status == DONE:
                prints.setdefault(_recording(fit), set()).add(fit.recording)
        changed = [name for name, found in prints.items() if len(found) > 1]
        if changed:
            notes.append(
                "The recording has changed between fits (sounds, responses or neurons are others): "
                f"{first_names(changed)}. Their scores do not compare."
            )
        return notes

    def to_csv(self) -> str:
        """Return `table` as CSV; a missing number is an empty cell."""
        rows = self.table()
        return csv_table([list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)])

    def to_json(self) -> str:
        """Return fits, summary and notes as JSON; a missing number is null."""
        tree = {
            "name": self.sweep.name,
            "axes": self.sweep.axes,
            "fits": [
                {**row, "config": fit.config.to_toml(), "traceback": fit.traceback}
                for row, fit in zip(self.table(), self.fits, strict=True)
            ],
            "summary": self.summary(),
            "notes": self.notes(),
        }
        return json.dumps(json_safe(tree), indent=1, allow_nan=False) + "\n"

    def write(self) -> None:
        """Write the table into the folder of the sweep: ``table.csv`` and ``results.json``."""
        write_new(self.out / TABLE_CSV, self.to_csv().encode())
        write_new(self.out / RESULTS_JSON, self.to_json().encode())

    def __str__(self) -> str:
        rows = self.summary()
        axes = [axis for axis in self.sweep.axes if axis not in REPEATS]
        return "\n".join([table_text(rows, axes), *self.notes()])


def write_plan(out: Path, sweep: Sweep, fits: Sequence[PlannedFit]) -> None:
    """Write the sweep, with the keys of its fits for readers where its recordings are not."""
    keys = {fit.name: fit.key for fit in fits}
    write_new(out / SWEEP_FILE, f"{sweep.to_toml()}\n{tomli_w.dumps({KEYS: keys})}".encode())


def write_new(path: Path, content: bytes) -> None:
    """Write a file unless its content is there already: a finished sweep is read on a read-only disk, too."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_atomically(path, content)


def group_of(fit: PlannedFit | FitResult) -> tuple[tuple[str, str], ...]:
    """Axes and labels of the configuration that a fit belongs to."""
    return tuple((axis, label) for axis, label in fit.choices.items() if axis not in REPEATS)


def group_row(choices: Mapping[str, str], fits: Sequence[FitResult]) -> dict[str, Any]:
    """One row of `SweepResults.summary`."""
    done = [fit for fit in fits if fit.status == DONE]
    row: dict[str, Any] = dict(choices)
    row["fits"] = len(done)
    row["failed"] = sum(fit.status == FAILED for fit in fits)
    row["missing"] = sum(fit.status == MISSING for fit in fits)
    for split in (VALIDATION, TEST):
        values = [value for fit in done if math.isfinite(value := _score(fit, split))]
        row[split] = mean(values) if values else math.nan
        row[f"{split} sd"] = stdev(values) if len(values) > 1 else math.nan
    row["neurons"] = done[0].n_neurons if done else 0
    row["no score"] = done[0].n_nan if done else 0
    row["seconds"] = math.fsum(fit.seconds for fit in done)
    row["names"] = [fit.name for fit in fits]
    return row


def _score(fit: FitResult, name: str) -> float:
    """A score by the name of its column."""
    split, _, metric = name.partition("_")
    return fit.scores.get(split, {}).get(metric or MAIN_SCORE, math.nan)


def _recording(fit: FitResult) -> str:
    """The recording of a fit, in words; sounds and responses are the same where the words are."""
    config = fit.config
    options = ", ".join(f"{key}={value}" for key, value in sorted(config.dataset_options.items()))
    cut = f", {config.split.rpartition(':')[0]}" if (config.split or "").startswith("cut:") else ""
    return f"{config.dataset}{f' ({options})' if options else ''}{cut}"


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


#: Columns of the table for readers, after those of the axes.
COLUMNS = ("fits", "failed", "missing", VALIDATION, "validation sd", TEST, "test sd", "no score")


def table_text(rows: Sequence[Mapping[str, Any]], axes: Iterable[str]) -> str:
    """Rows of `SweepResults.summary` as lines of text."""
    names = [*axes, *COLUMNS]
    cells = [names, *([shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def shown(value: Any) -> str:
    """A value in a table for readers."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return str(value)
