"""One experiment from its description to a run folder: load, split, check, fit each seed, score, write."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepSTRF.baselines.start import fit_start
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.splits import ClipSplit, parse_split
from deepSTRF.experiments.build import (
    ClosedFormFit,
    build_model,
    check_buildable,
    is_closed_form,
    load_dataset,
    resolve_device,
    solve,
)
from deepSTRF.experiments.config import ExperimentConfig
from deepSTRF.experiments.examples import choose_examples, model_fields
from deepSTRF.experiments.run_folder import (
    MAIN_SCORE,
    STATE,
    Run,
    RunScores,
    collect_notes,
    folder_status,
    prepare_folder,
    write_run,
)
from deepSTRF.registry import LOSSES
from deepSTRF.training.data import make_loaders
from deepSTRF.training.evaluation import score_model
from deepSTRF.training.fitter import CountFitter, Fitter, predicts_counts
from deepSTRF.training.history import history_rows
from deepSTRF.training.protocol import ProtocolCard
from deepSTRF.training.seeds import seeded
from deepSTRF.training.validate import validate_model

__all__ = [
    "ExperimentConfig",
    "Run",
    "calibrate_output",
    "evaluate_run",
    "has_output_stage",
    "model_fields",
    "run_experiment",
    "split_of",
    "start_output",
]

# ------------------------------------------------------------------------------
# Predictions in the unit of the responses: each neuron's output gain and offset, before and after a fit.
#
# A fit that is stopped by a correlation ends with the right shape and an arbitrary scale: batch normalisation
# starts at a gain of 1 where responses are a tenth of a spike per bin, and nothing in the score asks for more
# (NS1, linear model: a variance explained of -26 beside a correlation of 0.46). The last stage of such a
# model is one gain and one offset per neuron. Setting them by least squares on the training clips changes no
# correlation, and makes rates, errors and explained variance mean something (0.2 in that example).
#
# Before the fit, a gain of 1 does harm where neurons share what is learned (a learnable front-end or
# prefilter): all of them then ask the shared stage, with one voice, for a smaller output instead of a better
# one. On NS1 LEAF stopped improving after five epochs that way (validation cc_norm 0.67) and goes on for a
# hundred (0.75) when the gains start at the size of the responses.


#: Correlation a prediction is expected to reach; least squares gives it that share of a neuron's deviation.
EXPECTED_CORRELATION = 0.5


def has_output_stage(model: nn.Module) -> bool:
    """Say whether a model ends in a gain and an offset per neuron, which `calibrate_output` sets.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear, LinearNonlinear
    >>> has_output_stage(Linear(8, 3, 2)), has_output_stage(LinearNonlinear(8, 3, 2))
    (True, False)
    """
    return _output_stage(model) is not None


def start_output(model: nn.Module, dataset: Any, *, warmup_ms: float = 0.0) -> bool:
    """Start the output gain and offset at the size of the responses, where neurons share what is learned.

    That is the case when the readout ends in batch normalisation without an activation after it and some
    trained parameter lies outside the readout. The gain becomes half the standard deviation of a neuron's
    PSTH, what least squares gives to a prediction that correlates 0.5 with it, and the offset its mean.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=3, clip_seconds=0.5)
    >>> start_output(Linear(ds.F, 3, 2), ds)  # nothing is shared here
    False
    """
    stage = _output_stage(model)
    if stage is None or not _shares_parameters(model):
        return False
    totals = torch.zeros(3, dataset.N_neurons, dtype=torch.float64)
    for recorded, psth in _psths(dataset, warmup_ms):
        totals += torch.stack([recorded.double(), psth, psth**2]).sum(dim=-1)
    n, total, squares = totals
    mean = total / n.clamp(min=1)
    deviation = (squares / n.clamp(min=1) - mean**2).clamp(min=0).sqrt()
    with torch.no_grad():
        gain = torch.where(deviation > 0, EXPECTED_CORRELATION * deviation, 1.0)
        stage.weight.copy_(gain.to(stage.weight))
        stage.bias.copy_(mean.to(stage.bias))
    return True


def calibrate_output(model: nn.Module, dataset: Any, *, warmup_ms: float = 0.0) -> int:
    """Fit the output gain and offset of every neuron by least squares, where the model ends in such a stage.

    That is the case when its readout ends in batch normalisation without an activation after it. A neuron
    whose prediction does not correlate positively with its training responses keeps its gain, so that no
    correlation changes sign; its offset is set to its mean.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=3, clip_seconds=0.5)
    >>> calibrate_output(Linear(ds.F, 3, 2, norm="none"), ds)
    0
    """
    stage = _output_stage(model)
    if stage is None:
        return 0
    n, sum_p, sum_y, sum_pp, sum_py = _sums(model, dataset, warmup_ms)
    count = n.clamp(min=1)
    mean_p, mean_y = sum_p / count, sum_y / count
    variance, covariance = sum_pp / count - mean_p**2, sum_py / count - mean_p * mean_y
    # relative to the mean square: rounding leaves a little variance in a constant prediction
    varies = variance > torch.finfo(torch.float32).eps * (sum_pp / count)
    usable = varies & (covariance > 0) & (n > 1)
    gain = torch.where(usable, covariance / variance.clamp(min=torch.finfo(variance.dtype).tiny), 1.0)
    offset = torch.where(n > 0, mean_y - gain * mean_p, 0.0)
    with torch.no_grad():
        gain, offset = gain.to(stage.weight), offset.to(stage.bias)
        stage.weight.mul_(gain)
        stage.bias.mul_(gain).add_(offset)
    return int(usable.sum())


def _output_stage(model: nn.Module) -> nn.BatchNorm1d | None:
    """The batch normalisation a model ends in, one gain and offset per neuron."""
    readout = getattr(model, "readout", None)
    stage = getattr(readout, "bn", None)
    if (
        not isinstance(stage, nn.BatchNorm1d)
        or not stage.affine
        or stage.num_features != getattr(model, "O", None)
    ):
        return None
    return stage if isinstance(getattr(readout, "activation", None), nn.Identity) else None


def _shares_parameters(model: Any) -> bool:
    """Whether anything before the readout is trained."""
    own = {id(parameter) for parameter in model.readout.parameters()}
    return any(parameter.requires_grad and id(parameter) not in own for parameter in model.parameters())


def _psths(dataset: Any, warmup_ms: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Per clip, which bins were recorded and the PSTH with zeros elsewhere, both (N, T), in float64."""
    skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
    for clip in range(len(dataset)):
        psth = dataset.response_block(clip)[..., skip:].double().nanmean(dim=1)
        recorded = ~psth.isnan()
        yield recorded, torch.where(recorded, psth, 0.0)


def _sums(model: Any, dataset: Any, warmup_ms: float) -> tuple[Tensor, ...]:
    """Count, sums and products (N,) of prediction and PSTH over the recorded bins, in float64."""
    skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
    totals = torch.zeros(5, dataset.N_neurons, dtype=torch.float64)
    for clip, (recorded, y) in enumerate(_psths(dataset, warmup_ms)):
        pred = model.predict(dataset, clips=[clip])[0][:, skip:].double()
        p = torch.where(recorded, pred, 0.0)
        totals += torch.stack([recorded.double(), p, y, p * p, p * y]).sum(dim=-1)
    return tuple(totals)


# ------------------------------------------------------------------------------

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
        loss_fn=LOSSES.get(config.loss),
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
