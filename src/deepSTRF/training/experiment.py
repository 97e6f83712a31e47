"""One experiment from its description to a run folder: load, split, check, fit each seed, score, write."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.splits import ClipSplit, parse_split
from deepSTRF.training.building import (
    build_loss,
    build_model,
    check_buildable,
    load_dataset,
    resolve_device,
)
from deepSTRF.training.calibration import calibrate_output, has_output_stage, start_output
from deepSTRF.training.closed_form import ClosedFormFit, is_closed_form, solve
from deepSTRF.training.count_fitter import CountFitter, predicts_counts
from deepSTRF.training.evaluation import score_model
from deepSTRF.training.examples import choose_examples
from deepSTRF.training.experiment_config import ExperimentConfig
from deepSTRF.training.fitter import Fitter
from deepSTRF.training.history import history_rows
from deepSTRF.training.loaders import make_loaders
from deepSTRF.training.protocol import ProtocolCard
from deepSTRF.training.receptive_fields import model_fields
from deepSTRF.training.ridge_start import fit_start
from deepSTRF.training.run_folder import STATE, Run, folder_status, prepare_folder, write_run
from deepSTRF.training.run_notes import collect_notes
from deepSTRF.training.run_scores import MAIN_SCORE, RunScores
from deepSTRF.training.seeds import seeded
from deepSTRF.training.validate import validate_model

__all__ = ["ExperimentConfig", "Run", "evaluate_run", "model_fields", "run_experiment", "split_of"]

#: Split of a recording that states none of its own.
DEFAULT_SPLIT = "random:0.7/0.15/0.15:seed=0"

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Fitted:
    """What one seed leaves behind."""

    model: Any
    history: list[dict[str, Any]]
    best_epoch: int | None
    seconds: float
    closed_form: ClosedFormFit | None = None


def run_experiment(
    config: ExperimentConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    download: bool = False,
    progress: bool | Literal["auto"] = "auto",
    say: Say | None = None,
) -> Run:
    """Run an experiment and write its folder; a run that was interrupted goes on where it stopped.

    Parameters
    ----------
    config : ExperimentConfig
        All choices.
    out : path, optional
        Run folder; None takes ``config.out``, else a folder under ``runs/`` named after the choices.
    overwrite : bool
        Replace another run that lies there.
    download : bool
        Let the recording fetch missing files.
    progress : bool or 'auto'
        Progress bar, as in `Fitter`.
    say : callable, optional
        Called with one sentence per step.

    Returns
    -------
    Run
        The run as it lies on disk; the HTML report is written by `deepSTRF.report.write_report`.

    Raises
    ------
    ValueError, TypeError
        For choices that do not go together, or a model that breaks a rule.
    FileNotFoundError
        When files of the recording are missing.
    FileExistsError
        When the folder holds another run.
    FitDivergedError
        When a loss or score is not finite.

    Examples
    --------
    >>> import tempfile
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, epochs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = run_experiment(config, folder + "/run", progress=False)
    ...     run.scores.seeds, len(run.histories[0]), sorted(run.scores.values)
    ([0], 2, ['test', 'validation'])
    """
    tell = say or _quiet
    folder = Path(out or config.out or config.default_folder())
    status = folder_status(folder, config, overwrite=overwrite)
    if status == "finished":
        tell(f"This run is complete in {folder}; reading it (--overwrite fits anew)")
        return Run.load(folder)
    if status == "resume":
        tell(f"Going on with the unfinished run in {folder}")
    dataset = load_dataset(config, download=download)
    split = split_of(config, dataset)
    views = split.apply(dataset)
    check_buildable(config, views[0])
    prepare_folder(folder, config, overwrite=overwrite)  # only now: a wrong choice costs no earlier run
    tell(_describe(dataset, split))
    fitted = {seed: _fit_seed(config, seed, views, folder, progress, tell) for seed in config.seeds}
    tell("Scoring")
    run = _collect(config, folder, dataset, split, views, fitted)
    write_run(run, {seed: one.model for seed, one in fitted.items()})
    return Run.load(folder)


def evaluate_run(
    run: Run,
    dataset: NeuralDataset | None = None,
    *,
    clips: str = "test",
    seed: int | None = None,
    download: bool = False,
) -> RunScores:
    """Score the model of a run again: on its own recording, or on another one of the same neurons.

    Parameters
    ----------
    run : Run
        The run.
    dataset : NeuralDataset, optional
        Another recording with the same neurons in the same order, all of whose clips are scored; None loads
        the run's own.
    clips : str
        Which clips of its own recording: "test", "validation", "train" or "all".
    seed : int, optional
        Which seed's model; None is the best one.
    download : bool
        Let the recording fetch missing files.

    Returns
    -------
    RunScores
        One split, named after the clips.

    Raises
    ------
    ValueError
        For unknown clips or seed, or a recording that does not fit the model.

    Examples
    --------
    >>> import tempfile
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = run_experiment(config, folder + "/run", progress=False)
    ...     list(evaluate_run(run, clips="all").values)
    ['all']
    """
    roles = ("train", "validation", "test", "all")
    if clips not in roles:
        raise ValueError(f"clips must be one of {', '.join(roles)}, got {clips!r}")
    model = run.load_model(seed)
    if dataset is None:
        own = load_dataset(run.config, download=download)
        parts: dict[str, NeuralDataset] = dict(
            zip(roles[:3], split_of(run.config, own).apply(own), strict=True)
        )
        dataset = own if clips == "all" else parts[clips]
    else:
        clips = "all"
    validate_model(model, dataset)
    table = score_model(model, dataset, warmup_ms=run.config.warmup_ms)
    chosen = run.best_seed if seed is None else seed
    return RunScores.from_tables(table.neurons, [chosen], {clips: [table.columns]})


def split_of(config: ExperimentConfig, dataset: Any) -> ClipSplit:
    """Return the split of an experiment: its own, else the recording's, else a random one.

    Parameters
    ----------
    config : ExperimentConfig
        The choices.
    dataset : NeuralDataset
        The recording.

    Returns
    -------
    ClipSplit
        Clips to train, validate and test.

    Examples
    --------
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 1, "n_clips": 5}, split="3/1/1")
    >>> split_of(config, load_dataset(config)).test
    (4,)
    """
    return parse_split(dataset, config.split or getattr(dataset, "default_split", None) or DEFAULT_SPLIT)


def _fit_seed(
    config: ExperimentConfig,
    seed: int,
    views: tuple[NeuralDataset, ...],
    folder: Path,
    progress: bool | Literal["auto"],
    tell: Say,
) -> _Fitted:
    train, val = views[0], views[1]
    if is_closed_form(config.model):
        return _solve(config, train, val, tell)
    with seeded(seed):
        model = build_model(config, train)
    validate_model(model, train)
    if seed == config.seeds[0]:
        tell(f"{type(model).__name__} with {_n_parameters(model):,} trainable parameters")
    if len(config.seeds) > 1:
        tell(f"Seed {seed} ({config.seeds.index(seed) + 1} of {len(config.seeds)})")
    if config.start == "ridge":
        fit_start(model, train, val, warmup_ms=config.warmup_ms)
    elif _is_calibrated(config):
        start_output(model, train, warmup_ms=config.warmup_ms)
    train_loader, val_loader = make_loaders(train, val, batch_size=config.batch_size, seed=seed)
    fitter_class = CountFitter if predicts_counts(model) else Fitter
    fitter = fitter_class(
        model,
        train_loader,
        val_loader,
        loss_fn=build_loss(config.loss),
        optimizer=_optimizer(model, config),
        device=resolve_device(config.device),
        max_epochs=config.epochs,
        patience=config.patience,
        monitor=f"val_{MAIN_SCORE}",
        state_path=folder / STATE / f"seed{seed}.pt",
        warmup_ms=config.warmup_ms,
        progress=progress,
        seed=seed,
    )
    started = time.monotonic()
    history = fitter.fit()
    seconds = time.monotonic() - started
    if _is_calibrated(config):
        calibrate_output(model, train, warmup_ms=config.warmup_ms)
    return _Fitted(model.cpu(), history_rows(history), fitter.best_epoch, seconds)


def _solve(config: ExperimentConfig, train: NeuralDataset, val: NeuralDataset, tell: Say) -> _Fitted:
    tell(f"Solving {config.model} in closed form")
    started = time.monotonic()
    solution = solve(config, train, val)
    validate_model(solution.model, train)
    return _Fitted(solution.model, [], None, time.monotonic() - started, solution)


def _is_calibrated(config: ExperimentConfig) -> bool:
    """A likelihood chose its own scale; only squared errors are calibrated by squared errors."""
    return config.calibrate and config.loss == "mse"


def _optimizer(model: nn.Module, config: ExperimentConfig) -> torch.optim.Optimizer:
    make_groups: Any = getattr(model, "param_groups", None)
    if make_groups is not None:
        groups = make_groups(config.learning_rate, weight_decay=config.weight_decay)
        # 0 is for groups that state none: a front-end's parameters are never decayed
        return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0)
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


def _collect(
    config: ExperimentConfig,
    folder: Path,
    dataset: NeuralDataset,
    split: ClipSplit,
    views: tuple[NeuralDataset, ...],
    fitted: dict[int, _Fitted],
) -> Run:
    """Score every seed and put together what the folder holds."""
    parts = {"test": views[2], "validation": views[1]}
    tables = {
        part: [score_model(one.model, view, warmup_ms=config.warmup_ms) for one in fitted.values()]
        for part, view in parts.items()
    }
    columns = {part: [table.columns for table in per_seed] for part, per_seed in tables.items()}
    names, reasons = tables["test"][0].neurons, tables["test"][0].reasons
    scores = RunScores.from_tables(names, list(fitted), columns)
    best = fitted[scores.best_seed()]
    card = ProtocolCard.collect(
        dataset,
        split=split,
        model=best.model,
        seeds=list(fitted),
        warmup_ms=config.warmup_ms,
        training=_training_facts(config, fitted),
    )
    run = Run(
        path=folder,
        config=replace(config, out=None),
        protocol=card.rows(),
        facts={"card": json.loads(card.to_json()), "reasons": list(reasons)},
        scores=scores,
        histories={seed: one.history for seed, one in fitted.items()},
        best_epochs={seed: one.best_epoch for seed, one in fitted.items()},
        examples=choose_examples(
            best.model, views[2], scores.per_neuron()[MAIN_SCORE], list(names), model_fields(best.model)
        ),
    )
    return replace(run, facts=_facts(run, dataset, split, best.model, fitted))


def _training_facts(config: ExperimentConfig, fitted: dict[int, _Fitted]) -> dict[str, Any]:
    """Facts about the fits for the protocol card."""
    first = next(iter(fitted.values()))
    if first.closed_form is not None:
        return first.closed_form.facts()
    return {
        "loss": "cross-entropy of spike counts" if predicts_counts(first.model) else config.loss,
        "start": config.start,
        "optimiser": f"AdamW, learning rate {config.learning_rate:g}, weight decay {config.weight_decay:g}",
        "batch_size": config.batch_size,
        "epochs": ", ".join(str(len(one.history)) for one in fitted.values()),
        "calibration": "output gain and offset by least squares on the training clips"
        if _is_calibrated(config) and has_output_stage(first.model)
        else "none",
        "stopped_by": f"best validation {MAIN_SCORE}, patience {config.patience}, at most {config.epochs}",
    }


def _facts(
    run: Run, dataset: Any, split: ClipSplit, model: Any, fitted: dict[int, _Fitted]
) -> dict[str, Any]:
    front_end = getattr(model, "wav2spec", None)
    frequencies = getattr(front_end, "frequencies_hz", None)
    if frequencies is None and not getattr(dataset, "return_waveform", False):
        frequencies = getattr(dataset, "frequencies_hz", None)
    return {
        **run.facts,
        "model": type(model).__name__,
        "wav2spec": type(front_end).__name__ if run.config.wav2spec else None,
        "dataset": str(dataset.describe()["name"]),
        "n_parameters": _n_parameters(model),
        "split": {
            "name": split.name,
            "hash": split.hash,
            "sizes": [len(split.train), len(split.val), len(split.test)],
        },
        "n_clips": len(dataset),
        "dt_ms": float(dataset.dt),
        "frequencies_hz": None if frequencies is None else [float(hertz) for hertz in frequencies],
        "response_unit": _response_unit(dataset),
        "seconds": sum(one.seconds for one in fitted.values()),
        "epochs": [len(one.history) for one in fitted.values()],
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "notes": collect_notes(dataset, run.scores, run.config, run.best_epochs, run.facts["reasons"])
        + [note for one in fitted.values() if one.closed_form for note in one.closed_form.notes()],
        "load_report": str(dataset.load_report),
    }


def _response_unit(dataset: Any) -> str:
    """Label of response axes: raw and smoothed responses are spikes per bin, normalised ones have no unit."""
    method = dataset.describe().get("response_normalization")
    return f"response ({method})" if method else "spikes per bin"


def _describe(dataset: Any, split: ClipSplit) -> str:
    facts = dataset.describe()
    return (
        f"{facts['name']}: {dataset.N_neurons} neurons, {len(dataset)} clips, bins of {dataset.dt:g} ms; "
        f"{len(split.train)} clips train, {len(split.val)} validate, {len(split.test)} test"
    )


def _n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _quiet(sentence: str) -> None:
    """Say nothing."""
