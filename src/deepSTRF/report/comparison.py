"""Fitted models side by side: scores of several runs on the same test clips, and paired tests between them.

Models are compared on what all of them were tested with: clips of the same sound, neurons of the same name,
responses of one recording. Seeds of a model count by the mean of their scores, folds are scored together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepSTRF._files import check_target, csv_of, json_of, write_atomically
from deepSTRF._validation import checked, checked_but, first_names
from deepSTRF.crossval import ModelComparison, compare_models
from deepSTRF.datasets import NeuralDataset
from deepSTRF.experiments.build import load_dataset
from deepSTRF.experiments.run import normalized_as_fitted, split_of
from deepSTRF.experiments.run_folder import Run
from deepSTRF.experiments.sweep_results import SWEEP_FILE, SweepResults
from deepSTRF.metrics.scores import metric_named
from deepSTRF.plots import plot_model_comparison
from deepSTRF.report.gather import START_OF_PAGE, render_report
from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import cell, figure_html, number, render, sortable_table
from deepSTRF.report.sections import overview
from deepSTRF.training.evaluation import neuron_names

__all__ = ["RunComparison", "compare_runs", "find_runs", "write_comparison"]

FloatArray = NDArray[np.float64]
#: P-values from this value on are called significant in figures.
ALPHA = 0.05
#: Rows of a protocol card that belong to the model: they may differ between models that are compared.
OF_THE_MODEL = ("model", "parameters", "fit:", "training", "seed", "front-end", "stimul", "input")


@checked
@dataclass(frozen=True)
class RunComparison:
    """Models compared on the clips that all of them were tested with.

    Attributes
    ----------
    runs : mapping of str to tuple of Run
        The runs of each model, by name.
    comparison : ModelComparison
        Scores per neuron and paired tests.
    rows : list of dict
        One per model: name, mean and median over the neurons that all models have a score for, interval of
        the mean over clips, spread over seeds, validation score, parameters, seconds of a fit, command.
    notes : list of (level, sentence)
        What a reader must know.

    Examples
    --------
    >>> from deepSTRF.crossval import ModelComparison
    >>> nothing = ModelComparison(("a",), ("n",), {"a": np.zeros(1)}, (), {"score": "cc", "chosen": []})
    >>> RunComparison({}, nothing, [{"model": "a", "mean": 0.5}]).to_csv()
    'model,mean\\na,0.5\\n'
    """

    runs: Mapping[str, tuple[Run, ...]]
    comparison: ModelComparison
    rows: list[dict[str, Any]]
    notes: list[tuple[str, str]] = field(default_factory=list)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per model."""
        return self.rows

    @checked
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the rows as CSV, and write them when a path is given; a missing number is an empty cell."""
        return csv_of(self.rows, path)

    @checked
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return rows, pairs, protocol cards and commands as JSON, and write it when a path is given."""
        content = {
            "models": self.rows,
            "pairs": [row for row in self.comparison.table() if row["level"] == "population"],
            "facts": self.comparison.facts,
            "notes": [text for _, text in self.notes],
            "cards": {name: runs[0].protocol for name, runs in self.runs.items()},
            "fits": {name: [_fit_facts(run) for run in runs] for name, runs in self.runs.items()},
        }
        return json_of(content, path)

    def __str__(self) -> str:
        return str(self.comparison)


def _fit_facts(run: Run) -> dict[str, Any]:
    return {
        "seeds": run.scores.seeds,
        "split": run.facts.get("split"),
        "recording": run.facts.get("recording"),
        "seconds": run.facts.get("seconds"),
        "command": run.config.command(),
    }


# ---- Which runs


@checked
def find_runs(*folders: str | os.PathLike[str]) -> dict[str, tuple[Run, ...]]:
    """Read run folders, and the finished fits of sweep folders, by the name of the model they are of.

    Parameters
    ----------
    *folders : path
        Run folders, each a model with the name of the folder; folders of a sweep, whose configurations are
        models each and whose seeds and folds belong together.

    Returns
    -------
    dict of str to tuple of Run
        For `compare_runs`.

    Raises
    ------
    FileNotFoundError
        When a folder holds neither; when no fit of a sweep is finished.

    Examples
    --------
    >>> find_runs("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no/such/folder is no folder; deepstrf fit writes run folders...
    """
    paths = [Path(folder) for folder in folders]
    found: dict[str, tuple[Run, ...]] = {}
    for path in paths:
        if (path / SWEEP_FILE).is_file():
            several = len(paths) > 1
            for name, runs in _runs_of_sweep(path):
                found[_free_name(found, f"{path.name}: {name}" if several else name, path)] = runs
        else:
            found[_free_name(found, path.resolve().name, path)] = (Run.load(path),)
    return found


def _free_name(taken: Mapping[str, Any], name: str, path: Path) -> str:
    """The name, or a longer one where another folder has it."""
    return name if name not in taken else f"{os.fspath(path)}: {name}"


def _runs_of_sweep(path: Path) -> Iterator[tuple[str, tuple[Run, ...]]]:
    results = SweepResults.load(path)
    folders = {fit.name: fit.path for fit in results.fits}
    done = False
    for row in results.summary():
        if row["failed"] or row["missing"]:
            continue  # without its hardest folds a model would look better than it is
        done = True
        axes = [f"{axis}={row[axis]}" for axis in results.sweep.axes if axis in row]
        yield _sweep_name(axes), tuple(Run.load(folders[name]) for name in row["names"])
    if not done:
        raise FileNotFoundError(
            f"{path}: no configuration of this sweep is finished; go on with deepstrf sweep"
        )


def _sweep_name(axes: Sequence[str]) -> str:
    """``row=leaf`` alone is ``leaf``."""
    return axes[0].partition("=")[2] if len(axes) == 1 else ", ".join(axes)


# ---- Predictions of the same clips and neurons


@dataclass(frozen=True)
class _Tested:
    """Predictions of the runs of a model: per seed, sound of the clip to (N, T) in the recorded unit."""

    dataset: NeuralDataset
    clips: dict[str, int]
    by_seed: dict[int, dict[str, Tensor]]


def _tested(name: str, runs: Sequence[Run]) -> _Tested:
    by_seed: dict[int, dict[str, Tensor]] = {}
    clips: dict[str, int] = {}
    dataset = load_dataset(runs[0].config)
    for run in runs:
        dataset = (
            dataset
            if run.config.dataset_options == runs[0].config.dataset_options
            else load_dataset(run.config)
        )
        fitted = normalized_as_fitted(run, dataset)
        test = list(split_of(run.config, dataset).test)
        keys = _clip_keys(dataset)
        clips |= {keys[clip]: clip for clip in test}
        for seed in run.scores.seeds:
            rates = run.load_model(seed).predict(fitted, clips=test)
            raw = [_raw_unit(one, fitted.response_normalization) for one in rates]
            own = by_seed.setdefault(seed, {})
            twice = [clip for clip in test if keys[clip] in own]
            if twice:
                raise ValueError(
                    f"{name}: two of its runs with seed {seed} were tested with clip {twice[0]}; runs of one "
                    "model differ in seed or fold"
                )
            own |= {keys[clip]: one for clip, one in zip(test, raw, strict=True)}
    whole = {seed: own for seed, own in by_seed.items() if len(own) == len(clips)}
    if not whole:
        raise ValueError(f"{name}: no seed was fitted on all of its {len(runs)} folds")
    return _Tested(dataset, clips, whole)


def _clip_keys(dataset: NeuralDataset) -> list[str]:
    """One key per clip: its sound, and how many clips before it have the same."""
    sounds = [dataset.source_fingerprint(clip) for clip in range(len(dataset))]
    return [f"{sound} {sounds[:clip].count(sound)}" for clip, sound in enumerate(sounds)]


def _raw_unit(rates: Tensor, normalization: Mapping[str, Any] | None) -> Tensor:
    """Predictions of normalised responses in the unit of the recorded ones."""
    if normalization is None:
        return rates
    scale, offset = (
        torch.as_tensor(normalization[key]).to(rates).unsqueeze(1) for key in ("scale", "offset")
    )
    return rates * scale + offset


def _common(tested: Mapping[str, _Tested], notes: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Sounds and neurons that all models have, in the order of the first."""
    first = next(iter(tested.values()))
    sounds = [key for key in first.clips if all(key in one.clips for one in tested.values())]
    names = {key: neuron_names(one.dataset.nrn_meta) for key, one in tested.items()}
    neurons = [name for name in next(iter(names.values())) if all(name in own for own in names.values())]
    if not sounds:
        raise ValueError("no clip is a test clip of all models: fit them with the same split")
    if not neurons:
        raise ValueError("the models have no neuron in common: neurons are matched by name")
    fewer = [key for key, one in tested.items() if len(one.clips) > len(sounds)]
    if fewer:
        text = (
            f"Compared on {len(sounds)} clips, the test clips of all models: {first_names(fewer)} had more."
        )
        notes.append(("warning", text))
    if any(len(own) > len(neurons) for own in names.values()):
        notes.append(("warning", f"Compared on {len(neurons)} neurons, those of all models."))
    return sounds, neurons


# ---- The comparison


@checked_but("runs")
def compare_runs(
    runs: Mapping[str, Run | Sequence[Run]],
    *,
    score: str = "cc_norm",
    **options: Any,
) -> RunComparison:
    """Compare fitted models on the clips that all of them were tested with: scores, intervals, paired tests.

    Several seeds of a model count by the mean of their scores; several folds are scored together. Predictions
    are made anew by the saved models, so the recording has to be there.

    Parameters
    ----------
    runs : mapping of str to Run or sequence of Run
        Two or more models by name, each with its runs: one, or one per seed and fold. See `find_runs`.
    score : str
        "cc_norm", "cc", "fve", "mse" or another registered metric.
    **options
        Of `deepSTRF.crossval.compare_models`: ``over``, ``interval``, ``confidence``, ``n_permutations``, ...
        ``cross_validated`` is set where the runs of a model are of several folds.

    Returns
    -------
    RunComparison
        ``str()`` prints it, `write_comparison` makes a page.

    Raises
    ------
    ValueError
        For fewer than two models; for runs of other recordings, of other onsets left out, or without a
        test clip or neuron in common; for two runs of a model that were tested with the same clip.
    FileNotFoundError
        When files of the recording are missing.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.experiments import ExperimentConfig, run_experiment
    >>> data = {"n_neurons": 3, "n_clips": 12, "n_repeats": 4, "clip_seconds": 0.5}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = {}
    ...     for lags in (1, 20):
    ...         config = ExperimentConfig(dataset_options=data, model="ridge", split="random:0.4/0.1/0.5",
    ...                                   model_options={"n_lags": lags})
    ...         runs[f"{lags} lags"] = run_experiment(config, f"{folder}/{lags}", progress=False)
    ...     result = compare_runs(runs)
    >>> result.rows[1]["mean"] > result.rows[0]["mean"], result.comparison.pairs[0].mean_p < 0.05
    (True, True)
    """
    groups = {name: (one,) if isinstance(one, Run) else tuple(one) for name, one in runs.items()}
    if len(groups) < 2:
        raise ValueError(f"runs holds {len(groups)} models, a comparison needs two: {{'a': run, 'b': run}}")
    notes = _check_comparable(groups)
    tested = {name: _tested(name, group) for name, group in groups.items()}
    for name, group in groups.items():
        if partial := sorted(set(_seeds(group)) - set(tested[name].by_seed)):
            text = f"{name}: left out are its seeds without all folds: {', '.join(map(str, partial))}."
            notes.append(("warning", text))
    sounds, neurons = _common(tested, notes)
    reference = next(iter(tested.values()))
    view = reference.dataset.select(
        neurons=_indices(reference.dataset, neurons), clips=[reference.clips[key] for key in sounds]
    )
    predictions = {}
    for name, one in tested.items():
        rows = _indices(one.dataset, neurons)
        predictions[name] = [[own[key][rows] for key in sounds] for own in one.by_seed.values()]
    onset = next(iter(groups.values()))[0].config.warmup_ms
    # fits of several folds trained on each other's test clips: their scores vary more
    folds = any(len({run.config.split for run in group}) > 1 for group in groups.values())
    options.setdefault("cross_validated", folds and options.get("over", "clips") == "clips")
    comparison = compare_models(predictions, view, score=score, warmup_ms=onset, **options)
    table = [_row(name, group, comparison) for name, group in groups.items()]
    return RunComparison(groups, comparison, table, notes)


def _indices(dataset: NeuralDataset, neurons: Sequence[str]) -> list[int]:
    names = {name: index for index, name in enumerate(neuron_names(dataset.nrn_meta))}
    return [names[name] for name in neurons]


def _check_comparable(groups: Mapping[str, Sequence[Run]]) -> list[tuple[str, str]]:
    """Notes on what differs between models; ValueError for what must not."""
    every = [(name, run) for name, group in groups.items() for run in group]
    if not all(groups.values()):
        raise ValueError(f"runs: {next(name for name, group in groups.items() if not group)!r} has no run")
    first_name, first = every[0]
    for name, run in every[1:]:
        for what, value, own in (
            ("recording (sounds and responses)", first.facts.get("sounds"), run.facts.get("sounds")),
            ("onset that is left out", first.config.warmup_ms, run.config.warmup_ms),
        ):
            if value != own:
                raise ValueError(
                    f"{name!r} has another {what} than {first_name!r}: scores of the two do not compare. "
                    "Fit both on the same recording with the same warmup_ms"
                )
    cards = [_card_entries(group) for group in groups.values()]
    shared = set.intersection(*(set(card) for card in cards))
    differing = sorted(label for label in shared if any(card[label] != cards[0][label] for card in cards))
    notes: list[tuple[str, str]] = []
    if differing:
        text = f"Entries of the protocol cards that differ between models: {', '.join(differing)}."
        notes.append(("info", text))
    unequal = {name: len(_seeds(group)) for name, group in groups.items()}
    if len(set(unequal.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in unequal.items())
        notes.append(("info", f"Models have different numbers of seeds: {counts}."))
    return notes


def _card_entries(group: Sequence[Run]) -> dict[str, set[str]]:
    """Entries of the protocol cards of a model's runs that are not about the model."""
    entries: dict[str, set[str]] = {}
    for run in group:
        for label, value in run.protocol:
            if not any(word in label.lower() for word in OF_THE_MODEL):
                entries.setdefault(label, set()).add(value)
    return entries


def _seeds(group: Sequence[Run]) -> list[int]:
    return sorted({seed for run in group for seed in run.scores.seeds})


def _row(name: str, group: Sequence[Run], comparison: ModelComparison) -> dict[str, Any]:
    """One line of the table of models."""
    values = comparison.scores[name][comparison.facts["chosen"]]
    low, high = comparison.mean_intervals[name]
    per_seed = comparison.seed_means[name]
    validation = [
        value
        for run in group
        for row in run.scores.summary()
        if row.split == "validation" and row.metric == "cc_norm"
        for value in row.per_seed
    ]
    seconds = [float(run.facts["seconds"]) / len(run.scores.seeds) for run in group if "seconds" in run.facts]
    return {
        "model": name,
        "mean": float(np.mean(values)) if values.size else float("nan"),
        "low": low,
        "high": high,
        "median": float(np.median(values)) if values.size else float("nan"),
        "seeds": len(_seeds(group)),
        "sd over seeds": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else float("nan"),
        "validation": float(np.mean(validation)) if validation else float("nan"),
        "parameters": int(group[0].facts.get("n_parameters", 0)),
        "seconds": float(np.mean(seconds)) if seconds else float("nan"),
        "command": group[0].config.command(),
    }


# ---- The page


@checked_but("result")
def write_comparison(
    result: RunComparison, path: str | os.PathLike[str], *, title: str = "Models compared"
) -> Path:
    """Write a comparison as one HTML file, which loads nothing from the network.

    Parameters
    ----------
    result : RunComparison
        From `compare_runs`.
    path : path
        The HTML file.
    title : str
        Heading.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    OSError
        When it cannot be written, or the file is no page of ours.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.experiments import ExperimentConfig, run_experiment
    >>> data = {"n_neurons": 2, "n_clips": 12, "n_repeats": 4, "clip_seconds": 0.5}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = {}
    ...     for lags in (1, 20):
    ...         config = ExperimentConfig(dataset_options=data, model="ridge", split="random:0.4/0.1/0.5",
    ...                                   model_options={"n_lags": lags})
    ...         runs[f"{lags} lags"] = run_experiment(config, f"{folder}/{lags}", progress=False)
    ...     page = write_comparison(compare_runs(runs), f"{folder}/comparison.html")
    ...     page.read_text().count("20 lags") > 2
    True
    """
    check_target(path, START_OF_PAGE)
    comparison = result.comparison
    metric = metric_named(comparison.facts["score"])
    chosen = len(comparison.facts["chosen"])
    parts = ReportParts(
        title=title,
        subtitle=f"{len(result.runs)} models, {chosen} neurons, {comparison.facts['n_clips']} test clips; "
        f"{metric.label} ({comparison.facts['score']})",
        headline=[(number(row["mean"]), row["model"]) for row in result.rows]
        if len(result.rows) <= 6
        else [],
        notes=[
            *result.notes,
            *(("info", f"{text[:1].upper()}{text[1:]}.") for text in comparison.facts["notes"]),
        ],
    )
    sections = [
        _scores_section(result),
        _pairs_section(result),
        _neurons_section(result),
        _cards_section(result),
    ]
    made = [lambda parts, one=one: one for one in sections]
    page = render_report(parts, (overview.notes, *made))
    write_atomically(Path(path), page.encode("utf-8"))
    return Path(path)


def _scores_section(result: RunComparison) -> Section:
    comparison = result.comparison
    metric = metric_named(comparison.facts["score"])
    names = list(result.runs)
    rows = [
        {
            "name": row["model"],
            "cells": [
                number(row["mean"], metric.decimals),
                _interval(row["low"], row["high"], metric.decimals),
                number(row["median"], metric.decimals),
                f"{number(row['sd over seeds'], metric.decimals)} ({row['seeds']})",
                number(row["validation"]),
                f"{row['parameters']:,}",
                number(row["seconds"], 1),
            ],
        }
        for row in result.rows
    ]
    confidence = f"{100 * comparison.facts['confidence']:g} %"
    columns = [
        "mean",
        f"{confidence} interval",
        "median",
        "sd over seeds (seeds)",
        "validation cc_norm",
        "parameters",
        "s per fit",
    ]
    table = render("table.html.j2", columns=columns, rows=rows, first="model")
    figure, _ = plot_model_comparison(
        np.stack([comparison.scores[name][comparison.facts["chosen"]] for name in names]),
        names,
        intervals=np.array([comparison.mean_intervals[name] for name in names]),
        ylabel=metric.label,
    )
    alt = f"{metric.label} of every neuron with each model, and the means with their intervals."
    lead = (
        "Means and medians over the neurons that all models have a score for; the interval says how the mean "
        "would vary with other clips, the spread over seeds with another start of the fit. Validation scores "
        "may choose a model, test scores may not."
    )
    return Section("scores", "Scores", table + figure_html(figure, alt, wide=False), lead)


def _interval(low: float, high: float, decimals: int) -> str:
    return (
        "–"
        if not (np.isfinite(low) and np.isfinite(high))
        else f"{number(low, decimals)} to {number(high, decimals)}"
    )


def _pairs_section(result: RunComparison) -> Section:
    comparison = result.comparison
    decimals = metric_named(comparison.facts["score"]).decimals
    rows = []
    for pair in comparison.pairs:
        significant = pair.q <= ALPHA
        larger, smaller = (
            int((significant & side).sum()) for side in (pair.neurons.value > 0, pair.neurons.value < 0)
        )
        p = "–" if np.isnan(pair.mean_p) else f"{pair.mean_p:.2g}"
        corrected = "–" if np.isnan(pair.mean_p_holm) else f"{pair.mean_p_holm:.2g}"
        rows.append(
            {
                "name": f"{pair.first} − {pair.second}",
                "cells": [
                    number(float(pair.population.value[0]), decimals),
                    _interval(float(pair.population.low[0]), float(pair.population.high[0]), decimals),
                    p,
                    corrected,
                    f"{larger} / {smaller} of {int((~np.isnan(pair.p)).sum())}",
                ],
            }
        )
    columns = ["difference of means", "interval", "p", "p (Holm)", "neurons larger / smaller"]
    body = render("table.html.j2", columns=columns, rows=rows, first="pair")
    reasons = list(dict.fromkeys(pair.mean_reason for pair in comparison.pairs if pair.mean_reason))
    if reasons:
        body += render(
            "notes.html.j2", notes=[("warning", f"{reason[:1].upper()}{reason[1:]}.") for reason in reasons]
        )
    lead = (
        "Paired tests over clips: signs of the clips' contributions to the difference are flipped. p of the "
        "mean is corrected over pairs by Holm's rule; neurons are counted at a false discovery rate of "
        f"{100 * ALPHA:g} %."
    )
    return Section("pairs", "Pairs", body, lead)


def _neurons_section(result: RunComparison) -> Section:
    comparison = result.comparison
    metric = metric_named(comparison.facts["score"])
    names = list(result.runs)
    columns = [(name, f"{metric.label} of {name}") for name in names]
    rows = [
        (index, neuron, [cell(float(comparison.scores[name][index]), metric.decimals) for name in names])
        for index, neuron in enumerate(comparison.neurons)
    ]
    order = np.argsort(-comparison.scores[names[0]], kind="stable")  # NaN last
    rows = [rows[index] for index in order]
    table = sortable_table("Scores per neuron", columns, rows, sorted_by=names[0])
    return Section("neurons", "Neurons", table, "Every neuron with each model.")


def _cards_section(result: RunComparison) -> Section:
    body = []
    for name, runs in result.runs.items():
        commands = "\n".join(dict.fromkeys(run.config.command() for run in runs))
        body.append(
            render("model_card.html.j2", name=name, rows=runs[0].protocol, commands=commands, n=len(runs))
        )
    lead = "What was fitted and scored, and the commands that repeat it."
    return Section("protocols", "Protocols and commands", "\n".join(body), lead)
