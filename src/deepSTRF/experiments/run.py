"""One experiment from its description to a run folder: load, split, check, fit each seed, score, write.

`evaluate_run` scores the model of a finished run again.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._text import check_encodable, printable
from deepSTRF._validation import MOST_NAMED, checked, checked_but, first_names, outside_level
from deepSTRF.baselines.start import fit_start
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.splits import ClipSplit, parse_split, read_cut
from deepSTRF.experiments.build import (
    ClosedFormFit,
    as_fitted,
    build_model,
    check_buildable,
    is_closed_form,
    load_dataset,
    naming_split,
    resolve_device,
    solve,
)
from deepSTRF.experiments.config import DEFAULT_LOSS, ExperimentConfig, FieldError
from deepSTRF.experiments.examples import choose_examples, choose_rasters
from deepSTRF.experiments.run_folder import (
    MAIN_SCORE,
    NEXT,
    STATE,
    Run,
    RunScores,
    abandon,
    changed_recording,
    finish,
    folder_status,
    open_fitted,
    prepare_folder,
    write_run,
)
from deepSTRF.models.fitted_on import matching_outputs
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.readouts import OutputScale
from deepSTRF.training.callbacks import Callback, FitDivergedError, LastWeights
from deepSTRF.training.distillation import check_teacher, distilled
from deepSTRF.training.evaluation import neuron_names, scale_note, score_model
from deepSTRF.training.fit_many import fit_seeds_stacked
from deepSTRF.training.fitter import CallbackFactory, Fitter, build_fit, check_callback_factory, made_by
from deepSTRF.training.objective import history_rows, owns_loss
from deepSTRF.training.protocol import ProtocolCard
from deepSTRF.training.seeds import seeded
from deepSTRF.training.settings import fit_settings, patience_of
from deepSTRF.training.validate import validate_model

__all__ = [
    "SeedFits",
    "evaluate_run",
    "fit_once",
    "fit_seeds",
    "may_share_fits",
    "normalized_as_fitted",
    "run_experiment",
    "split_of",
]

#: Split of a recording that states none of its own.
DEFAULT_SPLIT = "random:0.7/0.15/0.15:seed=0"
#: Most neurons of a model whose seeds are fitted together.
MOST_NEURONS = 64
#: Clips that `evaluate_run` scores.
TRAIN, VALIDATION, TEST, ALL = "train", "validation", "test", "all"

Log = Callable[[str], None]


@checked_but("callbacks")
def run_experiment(
    config: ExperimentConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    download: bool = False,
    progress: bool | Literal["auto"] = "auto",
    log: Log | None = None,
    callbacks: CallbackFactory | None = None,
) -> Run:
    """Run an experiment and write its folder; an interrupted run is resumed where it stopped.

    Parameters
    ----------
    config : ExperimentConfig
        All choices.
    out : path, optional
        Run folder; None takes ``config.out``, else a folder under ``runs/`` named after the choices.
    overwrite : bool
        Replace another run in that folder.
    download : bool
        Let the recording fetch missing files.
    progress : bool or 'auto'
        Progress bar, as in `Fitter`.
    log : callable, optional
        Called with one sentence per step.
    callbacks : callable, optional
        ``callbacks(seed)`` returns a list of new `deepSTRF.training.Callback` instances for a seed's fit.

    Returns
    -------
    Run
        The run as it is on disk; the HTML report is written by `deepSTRF.report.write_report`.

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
    check_callback_factory("callbacks", callbacks)
    log = log or (lambda sentence: None)
    folder = Path(out or config.out or config.default_folder())
    config = as_fitted(config)
    status = folder_status(folder, config, overwrite=overwrite)
    if status == "finished":
        run = Run.load(folder)
        _check_recording(run, config, log)
        if bool(run.facts.get("callbacks")) != (callbacks is not None):
            held = ", ".join(run.facts.get("callbacks") or ()) or "none"
            raise FileExistsError(
                f"{folder} holds this run fitted with other callbacks ({held}); name another folder "
                "with out, or replace that run with overwrite=True"
            )
        log(f"This run is complete in {folder}; reading it (--overwrite fits anew)")
        if (folder / NEXT).is_dir():
            log("A fit that is to replace it was interrupted; this command with --overwrite goes on")
        return run
    if status == "resume":
        log(f"Going on with the unfinished run in {folder}")
    data = _open(config, download=download)
    teachers = _load_teachers(config, data.dataset, data.split)

    def fit(states: Path) -> dict[int, _Fit]:
        dataset, split = data.dataset, data.split
        log(
            f"{dataset.describe()['name']}: {dataset.N_neurons} neurons, {len(dataset)} clips, bins of "
            f"{dataset.dt:g} ms; {len(split.train)} clips train, {len(split.val)} validate, "
            f"{len(split.test)} test"
        )
        both = dataset.select(clips=[*split.train, *split.val])
        fits = {
            s: _fit_seed(config, s, data.views, both, teachers, states, progress, log, callbacks)
            for s in config.seeds
        }
        log("Scoring")
        return fits

    return _write(config, folder, data, fit, overwrite=overwrite)


@dataclass(frozen=True)
class _Data:
    """The recording of an experiment, and its parts as they are fitted and scored."""

    whole: NeuralDataset  # as it was loaded
    recording: str  # fingerprint of its sounds and responses
    dataset: NeuralDataset  # with normalised responses, where they are asked for
    split: ClipSplit
    views: tuple[NeuralDataset, ...]


def _open(config: ExperimentConfig, *, download: bool) -> _Data:
    """Load and split a recording, and raise what a fit of it would raise."""
    whole = dataset = load_dataset(config, download=download)
    split = split_of(config, dataset)
    if config.normalize_responses is not None:
        dataset = dataset.normalized(config.normalize_responses, stim_indices=list(split.train))
    views = split.apply(dataset)
    _check_views(config, views)
    check_buildable(config, views[0])
    return _Data(whole, whole.content_fingerprint(), dataset, split, views)


def _write(
    config: ExperimentConfig,
    folder: Path,
    data: _Data,
    fit: Callable[[Path], dict[int, _Fit]],
    *,
    overwrite: bool,
) -> Run:
    """Make a run folder of fits; ``fit`` is called with the folder of their states."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    # only now, and beside what is there: a wrong choice or a fit that fails costs no earlier run
    work = prepare_folder(folder, config, overwrite=overwrite, recording=data.recording)
    try:
        fits = fit(work / STATE)
        run = _collect(config, folder, data.dataset, data.split, data.views, fits)
        run.facts["recording"] = data.recording
        run.facts["sounds"] = data.whole.content_fingerprint(source=True)
        write_run(run, {seed: fit.model for seed, fit in fits.items()})
    except Exception as error:
        # an interrupted fit keeps its state; one that can only fail again, or has none, keeps nothing
        if isinstance(error, FitDivergedError) or not any((work / STATE).glob("seed*.pt")):
            abandon(work, made)
        raise
    finish(folder)
    return Run.load(folder)


def _check_views(config: ExperimentConfig, views: tuple[NeuralDataset, ...]) -> None:
    """Raise what training or scoring would raise of clips and names, before a fit begins."""
    for part, view in zip((TRAIN, VALIDATION, TEST), views, strict=True):
        if not len(view):
            raise FieldError(
                "{split} leaves no clip for the part {0}: each of training, validation and test needs one",
                part,
            )
        skip = math.ceil(config.warmup_ms / view.dt - 1e-9)
        shortest = min(view.n_bins(clip) for clip in range(len(view)))
        if shortest <= skip:
            raise FieldError(
                "{warmup_ms} covers {0} bins, and a clip of the part {1} has only {2}: nothing is left to "
                "fit or score; give a shorter onset", skip, part, shortest,
            )  # fmt: skip
    for name in (
        *neuron_names(views[0].nrn_meta),
        *(str(row.get("name", "")) for v in views for row in v.stim_meta),
    ):
        check_encodable("the name of a neuron or clip", name)


def _load_teachers(config: ExperimentConfig, dataset: NeuralDataset, split: ClipSplit) -> list[Any]:
    """Models that distillation averages; FieldError where one has heard clips that judge the student."""
    teachers: list[Any] = []
    for name in filter(None, map(str.strip, (config.teachers or "").split(","))):
        found = open_fitted(name)
        teachers += [found.load_model(s) for s in found.config.seeds] if isinstance(found, Run) else [found]
    for teacher in teachers:
        fitted = getattr(teacher, "fitted_on", None)
        if fitted is None:
            raise FieldError(
                "a model of {teachers} does not state what it was fitted on: fit it with deepSTRF"
            )
        try:
            check_teacher(teacher, dataset)
        except ValueError as error:
            raise FieldError("a model of {teachers} is of another recording: {0}", error) from None
        trained, chosen = set(fitted.sounds), {*fitted.sounds, *fitted.validation_sounds}
        for part, clips, heard in ((VALIDATION, split.val, trained), (TEST, split.test, chosen)):
            shared = sum(dataset.source_fingerprint(clip) in heard for clip in clips)
            if shared:
                raise FieldError(
                    "{0} of {1} {2} clips took part in the fit of a model of {teachers}: what it learned "
                    "of them would reach the student. Fit the teachers on the same {split}, without {refit}",
                    shared, len(clips), part,
                )  # fmt: skip
    return teachers


def _check_recording(run: Run, config: ExperimentConfig, log: Log) -> None:
    """Raise `RunExistsError` when the recording of a finished run is another one now."""
    known = run.facts.get("recording")
    if known is None:
        return  # of an earlier version
    try:
        dataset = load_dataset(config)
    except FileNotFoundError:
        log("The recording is not there, so it was not compared with the one of the fit")
        return
    if dataset.content_fingerprint() == known:
        return
    if Path(config.dataset).is_file() or dataset.content_fingerprint(source=True) != run.facts.get("sounds"):
        raise changed_recording(run.path, "fit")
    log("Sounds and responses are those of the fit; what is made of the sounds differs (version or machine)")


@checked
def evaluate_run(
    run: Run,
    dataset: NeuralDataset | None = None,
    *,
    clips: str | None = None,
    seed: int | None = None,
    download: bool = False,
    log: Log | None = None,
) -> RunScores:
    """Score the model of a run again: on its own recording, or on another one of the same neurons.

    Neurons are matched by name. Sounds that took part in the fit are scored only where ``clips`` says so.

    Parameters
    ----------
    run : Run
        The run.
    dataset : NeuralDataset, optional
        Another recording of some or all of the neurons; None loads the run's own.
    clips : str, optional
        Which clips of its own recording: "test" (None), "validation", "train" or "all". Of another recording
        None is the clips whose sounds took no part in the fit, "all" is all of them.
    seed : int, optional
        Which seed's model; None is the best one.
    download : bool
        Let the recording fetch missing files.
    log : callable, optional
        Called with notes: on sounds that are left out or took part in the fit, on a recording that is not
        the one of the fit.

    Returns
    -------
    RunScores
        One split, named after the clips ("all" of another recording); neurons are those of the recording, in
        its order.

    Raises
    ------
    ValueError
        For unknown clips or seed; for a recording that does not fit the model: other neurons, bins, bands or
        rates; when every sound took part in the fit.

    Warns
    -----
    UserWarning
        Without ``log``, when sounds took part in the fit and are left out, or when the run's own recording
        has changed since.

    Examples
    --------
    >>> import tempfile
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = run_experiment(config, folder + "/run", progress=False)
    ...     list(evaluate_run(run, clips="all").values)
    ['all']
    """
    parts = (TRAIN, VALIDATION, TEST)
    legal = parts if dataset is None else (TEST,)
    if clips not in (None, *legal, ALL):
        whose = "" if dataset is None else " of another recording"
        raise FieldError("{clips}{0} must be one of {1}, got {2!r}", whose, ", ".join((*legal, ALL)), clips)
    model = run.load_model(seed)
    other = dataset is not None
    dataset = load_dataset(run.config, download=download) if dataset is None else dataset
    _compare_recording(run, dataset, other, log)
    dataset = normalized_as_fitted(run, dataset)
    part = clips or TEST
    if not other and part != ALL:
        dataset = split_of(run.config, dataset).apply(dataset)[parts.index(part)]
    n_fitted = len(run.scores.neurons)
    if model.fitted_on is None and dataset.N_neurons != n_fitted:
        raise ValueError(
            f"the recording has {dataset.N_neurons} neurons, and the run has {n_fitted} neurons: give a "
            "recording of the same ones, or fit a model to this one"
        )
    if part in (VALIDATION, TEST):
        dataset = _new_sounds(model, dataset, part, log)
    validate_model(model, dataset)
    table = score_model(model, dataset, warmup_ms=run.config.warmup_ms)
    if log is not None:
        for note in table.facts["notes"]:
            log(note)
        if trained := table.facts["trained_on"]:
            log(
                f"{trained} of {len(dataset)} clips hold sounds that took part in the fit: their scores do "
                "not tell how the model predicts other sounds"
            )
    scored = run.best_seed if seed is None else seed
    split = ALL if other else part
    return RunScores.from_tables(table.neurons, [scored], {split: [table.columns]}, table.facts["recording"])


def normalized_as_fitted(run: Run, dataset: NeuralDataset) -> NeuralDataset:
    """A recording with the scale and offset per neuron that the fit gave to its responses, where it did."""
    fitted = run.facts.get("response_normalization")
    if fitted is None or dataset.response_normalization is not None:
        return dataset
    names, known = neuron_names(dataset.nrn_meta), list(run.scores.neurons)
    if set(names) <= set(known):
        order = [known.index(name) for name in names]
    elif len(names) == len(known):
        order = list(range(len(names)))
    else:
        raise ValueError(
            "the responses of this run were normalised neuron by neuron, and the recording has other "
            "neurons: give one of the same neurons"
        )
    taken = {key: [fitted[key][neuron] for neuron in order] for key in ("scale", "offset")}
    return dataset.normalized(statistics={"method": fitted["method"], **taken})


def _compare_recording(run: Run, dataset: NeuralDataset, other: bool, log: Log | None) -> None:
    """Say when a recording is not the one of the fit; a warning where a run's own has changed unnoticed."""
    known = run.facts.get("recording")
    if known is None or dataset.content_fingerprint() == known:
        return
    if log is not None:
        log("The recording is another one than that of the fit")
    elif not other and run.config == Run.load(run.path).config:
        warnings.warn(
            "the recording of this run has changed since the fit: these scores are of the one that is there "
            "now (a log= takes this note)", UserWarning, stacklevel=outside_level(),
        )  # fmt: skip


def _new_sounds(model: Any, dataset: NeuralDataset, clips: str, log: Log | None) -> NeuralDataset:
    """Return the clips whose sounds took no part in the fit; says so, and ValueError where there is none."""
    fitted = model.fitted_on
    if fitted is None:
        return dataset
    used = set(fitted.sounds) if clips == VALIDATION else {*fitted.sounds, *fitted.validation_sounds}
    new = [clip for clip in range(len(dataset)) if dataset.source_fingerprint(clip) not in used]
    if len(new) == len(dataset):
        return dataset
    if not new:
        matching_outputs(model, dataset)  # that it is of other neurons comes first
        raise FieldError(
            "all {0} clips hold sounds that took part in the fit: scores of them do not tell how the model "
            "predicts other sounds. Give a recording with other sounds, or ask for these with {clips:all}",
            len(dataset),
        )
    note = f"{len(dataset) - len(new)} of {len(dataset)} clips hold sounds that took part in the fit and "
    note += f"are left out: {len(new)} are scored; 'all' clips are scored on request"
    if log is None:
        warnings.warn(note, UserWarning, stacklevel=outside_level())
    else:
        log(note)
    return dataset.select(clips=new)


def split_of(config: ExperimentConfig, dataset: Any) -> ClipSplit:
    """Return the split of an experiment: its own, else the recording's, else a random one."""
    with naming_split(config):
        asked = None if config.split is None else read_cut(config.split)[1]
        return parse_split(dataset, asked or getattr(dataset, "default_split", None) or DEFAULT_SPLIT)


# ---- Fit of one seed


@dataclass(frozen=True)
class _Fit:
    """Result of one seed."""

    model: Any
    history: list[dict[str, Any]]
    best_epoch: int | None
    seconds: float
    closed_form: ClosedFormFit | None = None
    callbacks: tuple[str, ...] = ()  # classes of the user's own
    # the model of the first fit, where ``model`` was fitted anew on its validation clips too
    chosen: Any = None
    together: bool = False  # with other seeds, by `fit_seeds`


def _fit_seed(
    config: ExperimentConfig,
    seed: int,
    views: tuple[NeuralDataset, ...],
    both: NeuralDataset,
    teachers: Sequence[Any],
    states: Path,
    progress: bool | Literal["auto"],
    log: Log,
    callbacks: CallbackFactory | None,
) -> _Fit:
    train, val = views[0], views[1]
    if is_closed_form(config.model):
        log(f"Solving {config.model}, without epochs")
        started = time.monotonic()
        solution = solve(config, train, val)
        validate_model(solution.model, train)
        return _Fit(solution.model, [], None, time.monotonic() - started, solution)
    if len(config.seeds) > 1:
        log(f"Seed {seed} ({config.seeds.index(seed) + 1} of {len(config.seeds)})")
    own = made_by(callbacks, seed)
    started = time.monotonic()
    if teachers:
        train = distilled(train, teachers, seed=seed)
    state = states / f"seed{seed}.pt"
    fitter = fit_once(config, seed, train, val, state=state, progress=progress, log=log, own=own)
    history, best, chosen = history_rows(fitter.history), fitter.best_epoch, None
    if config.refit:
        decays = config.schedule != "constant"  # its best epochs are the last
        epochs = config.epochs if decays or best is None else best + 1
        log(f"Fitting anew on training and validation clips, {epochs} epochs")
        chosen, again = fitter.model.cpu(), replace(config, epochs=epochs, patience=epochs)
        state = states / f"seed{seed}-refit.pt"
        anew = made_by(callbacks, seed)
        both = distilled(both, teachers, seed=seed) if teachers else both
        fitter = fit_once(again, seed, both, None, state=state, progress=progress, log=log, own=anew)
        fitted: Any = fitter.model
        fitted.fitted_on = replace(fitted.fitted_on, validation_sounds=())  # all of them trained it
    seconds = time.monotonic() - started
    names = tuple(type(callback).__name__ for callback in own)
    return _Fit(fitter.model.cpu(), history, best, seconds, callbacks=names, chosen=chosen)


def fit_once(
    config: ExperimentConfig,
    seed: int,
    train: NeuralDataset,
    val: NeuralDataset | None,
    *,
    state: Path | None = None,
    progress: bool | Literal["auto"] = False,
    log: Log = lambda sentence: None,
    own: Sequence[Callback] = (),
) -> Fitter:
    """One fit; without validation clips it ends with the weights of its last epoch."""
    with seeded(seed):
        model = build_model(config, train)
    validate_model(model, train)
    if val is not None and seed == config.seeds[0]:
        log(f"{type(model).__name__} with {_n_parameters(model):,} trainable parameters")
    if config.start == "ridge":
        fit_start(model, train, val, warmup_ms=config.warmup_ms)
    chooses = val is not None
    fitter = build_fit(
        model,
        train,
        val if val is not None else train.select(clips=[0]),  # an epoch scores a clip; nothing comes of it
        seed=seed,
        seeds_itself=True,
        batch_size=config.batch_size,
        more=[] if chooses else [LastWeights()],
        **_fitter_arguments(config, own),
        device=resolve_device(config.device),
        monitor=f"val_{MAIN_SCORE}" if chooses else "train_loss",
        state_path=state,
        progress=progress,
    )
    fitter.fit()
    if _is_calibrated(config, model):
        calibrate_output(model, train, warmup_ms=config.warmup_ms)
    return fitter


def _fitter_arguments(config: ExperimentConfig, own: Sequence[Callback] = ()) -> dict[str, Any]:
    """What the choices of an experiment are for a `Fitter`, wherever it is run."""
    settings = fit_settings(
        loss=config.loss,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        epochs=config.epochs,
        patience=config.patience,
        schedule=config.schedule,
        grad_clip=config.grad_clip,
        weight_average=config.weight_average,
        band_shift=config.band_shift,
        callbacks=lambda seed: own,
    )
    return {**settings, "warmup_ms": config.warmup_ms}


# ---- All seeds of one choice at once, for sweeps


class SeedFits:
    """Fits of one configuration with many seeds, made together, each to be written into its run folder."""

    def __init__(self, data: _Data, fits: dict[int, _Fit]) -> None:
        self._data, self._fits = data, fits

    def has(self, config: ExperimentConfig) -> bool:
        """Whether every seed of a configuration has a fit: one that diverged has none."""
        return set(config.seeds) <= set(self._fits)

    def write(self, config: ExperimentConfig, folder: Path) -> Run:
        """Score the fits of a configuration and write its run folder."""
        fits = {seed: self._fits[seed] for seed in config.seeds}
        return _write(as_fitted(config), folder, self._data, lambda states: fits, overwrite=True)


def may_share_fits(config: ExperimentConfig) -> bool:
    """Whether the choices alone let seeds be fitted together by `fit_seeds`."""
    own = config.start != "default" or config.teachers or config.refit or config.weight_average
    return not (own or config.band_shift or is_closed_form(config.model)) and (
        resolve_device(config.device) == "cpu"
    )


def fit_seeds(configs: Sequence[ExperimentConfig], *, download: bool = False) -> SeedFits | None:
    """Fit configurations that differ in their seeds alone, all seeds at once; None where that is no faster.

    Scores are those of `run_experiment` within rounding.
    """
    config = as_fitted(configs[0])
    if not may_share_fits(config):
        return None  # of this machine: a worker may have a GPU where the process of the sweep has none
    data = _open(config, download=download)
    train, val = data.views[:2]
    seeds = list(dict.fromkeys(seed for one in configs for seed in one.seeds))
    with seeded(seeds[0]):
        model = build_model(config, train)
    if not _gains_together(model, train):
        return None
    validate_model(model, train)
    started = time.monotonic()
    found = fit_seeds_stacked(
        lambda seed: build_model(config, train),
        train,
        val,
        seeds=seeds,
        batch_size=config.batch_size,
        fitter_kwargs={**_fitter_arguments(config), "monitor": f"val_{MAIN_SCORE}"},
    )
    if found is None:
        return None
    seconds = (time.monotonic() - started) / len(seeds)
    fits = {}
    for index, seed in enumerate(seeds):
        if index in found.failed:
            continue  # fitted alone, it says why
        model, best = found.models[index], int(found.best_epochs[index])
        if _is_calibrated(config, model):
            calibrate_output(model, train, warmup_ms=config.warmup_ms)
        fits[seed] = _Fit(model, history_rows(found.histories[index]), best, seconds, together=True)
    return SeedFits(data, fits)


def _gains_together(model: nn.Module, dataset: NeuralDataset) -> bool:
    """Whether a stack of such models is faster than one after another.

    Eight models of up to 50 neurons take 0.3 to 0.6 of the time, those of 300 all of it: each fills a
    processor by itself. Convolutions take longer in a stack, other than STRFs, which are matrix products;
    a front-end that learns has many of them.
    """
    strfs = {part for strf in model.modules() if isinstance(strf, CausalSTRFConv) for part in strf.modules()}
    convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in {*model.modules()} - strfs)
    front_end = getattr(model, "wav2spec", None)
    learns = front_end is not None and any(p.requires_grad for p in front_end.parameters())
    return not convolves and not learns and dataset.N_neurons <= MOST_NEURONS


def _is_calibrated(config: ExperimentConfig, model: nn.Module) -> bool:
    """A likelihood chose its own scale; only squared errors are calibrated by squared errors."""
    return config.calibrate and config.loss in (None, DEFAULT_LOSS) and not owns_loss(model)


def _n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# ---- Predictions in the unit of the responses: each neuron's output scale and offset after a fit
#
# A fit that is stopped by a correlation ends with the right shape and an arbitrary scale, on which nothing in
# the score depends (NS1, linear model: a variance explained of -26 beside a correlation of 0.46). Scale and
# offset by least squares on the training clips change no correlation, and make rates, errors and explained
# variance meaningful (0.2 in that example).


def _output_stage(model: nn.Module) -> OutputScale | None:
    """The scale and offset that a model without an output nonlinearity ends in."""
    activation = getattr(getattr(model, "readout", None), "activation", None)
    return getattr(model, "output_scale", None) if type(activation) is nn.Identity else None


def calibrate_output(model: Any, dataset: Any, *, warmup_ms: float = 0.0) -> int:
    """Fit the output gain and offset of every neuron by least squares, where the model ends in such a stage.

    That is the case when its readout has no output activation. A neuron whose prediction does not correlate
    positively with its training responses keeps its scale, so that no correlation changes sign; its offset is
    set to its mean.
    """
    stage = _output_stage(model)
    if stage is None:
        return 0
    totals = torch.zeros(5, dataset.N_neurons, dtype=torch.float64)
    for clip, (recorded, y) in enumerate(_psths(dataset, warmup_ms)):
        rates = model.predict(dataset, clips=[clip])[0].double()
        p = torch.where(recorded, rates[:, rates.shape[1] - y.shape[1] :], 0.0)
        totals += torch.stack([recorded.double(), p, y, p * p, p * y]).sum(dim=-1)
    n, sum_p, sum_y, sum_pp, sum_py = totals
    count = n.clamp(min=1)
    mean_p, mean_y = sum_p / count, sum_y / count
    variance, covariance = sum_pp / count - mean_p**2, sum_py / count - mean_p * mean_y
    # relative to the mean square: rounding leaves a little variance in a constant prediction
    varies = variance > torch.finfo(torch.float32).eps * (sum_pp / count)
    usable = varies & (covariance > 0) & (n > 1)
    gain = torch.where(usable, covariance / variance.clamp(min=torch.finfo(variance.dtype).tiny), 1.0)
    offset = torch.where(n > 0, mean_y - gain * mean_p, 0.0)
    gain, offset = gain.to(stage.scale), offset.to(stage.offset)
    stage.start(gain * stage.scale, gain * stage.offset + offset)
    return int(usable.sum())


def _psths(dataset: Any, warmup_ms: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Per clip, without the onset: bins that were recorded and the PSTH with zeros elsewhere, both (N, T)."""
    skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
    for clip in range(len(dataset)):
        psth = dataset.response_block(clip)[..., skip:].double().nanmean(dim=1)
        recorded = ~psth.isnan()
        yield recorded, torch.where(recorded, psth, 0.0)


# ---- Content of the run folder


def _collect(
    config: ExperimentConfig,
    folder: Path,
    dataset: NeuralDataset,
    split: ClipSplit,
    views: tuple[NeuralDataset, ...],
    fits: dict[int, _Fit],
) -> Run:
    """Score every seed and put together what the folder holds."""
    validated = [fit.chosen or fit.model for fit in fits.values()]  # those that had not heard the clips
    tables = {
        part: [score_model(model, view, warmup_ms=config.warmup_ms) for model in models]
        for part, view, models in (
            (TEST, views[2], [fit.model for fit in fits.values()]),
            (VALIDATION, views[1], validated),
        )
    }
    names, reasons = tables[TEST][0].neurons, tables[TEST][0].reasons
    columns = {part: [table.columns for table in per_seed] for part, per_seed in tables.items()}
    scores = RunScores.from_tables(names, list(fits), columns)
    best = fits[scores.best_seed()]
    card = ProtocolCard.collect(
        dataset,
        split=split,
        model=best.model,
        seeds=list(fits),
        warmup_ms=config.warmup_ms,
        training=_training_facts(config, fits),
    )
    best_epochs = {seed: fit.best_epoch for seed, fit in fits.items()}
    notes = collect_notes(dataset, scores, config, best_epochs, reasons)
    notes += [note for fit in fits.values() if fit.closed_form for note in fit.closed_form.notes()]
    ahead = getattr(best.model, "lookahead_frames", 0) * float(dataset.dt)
    if ahead:
        text = f"The model is not causal: its prediction looks {ahead:g} ms ahead in the stimulus."
        notes.append(("info", text))
    facts = {
        "card": json.loads(card.to_json()),
        "reasons": list(reasons),
        **_facts(config, dataset, split, best.model),
        "seconds": sum(fit.seconds for fit in fits.values()),
        "epochs": [len(fit.history) for fit in fits.values()],
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "notes": notes,
        "callbacks": list(best.callbacks),
        "load_report": str(dataset.load_report),
        "import": _import_facts(dataset),
    }
    ranking = scores.per_neuron()[MAIN_SCORE]
    return Run(
        path=folder,
        config=replace(config, out=None),
        protocol=card.rows(),
        facts=facts,
        scores=scores,
        histories={seed: fit.history for seed, fit in fits.items()},
        best_epochs=best_epochs,
        examples=choose_examples(best.model, views[2], ranking, list(names)),
        rasters=choose_rasters(views[2], ranking, list(names)),
    )


def _import_facts(dataset: NeuralDataset) -> dict[str, Any]:
    """What the recording's load kept, skipped and noted, and the lags of its responses, for the report."""
    report = dataset.load_report
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report says it
        alignment = dataset.check_alignment(warn_unclear=False)
    return {
        "n_kept": len(report.kept),
        "skipped": [list(entry) for entry in report.skipped],
        "notes": [list(entry) for entry in report.notes],
        "alignment": vars(alignment),
    }


def _training_facts(config: ExperimentConfig, fits: dict[int, _Fit]) -> dict[str, Any]:
    """Facts about the fits for the protocol card."""
    first = next(iter(fits.values()))
    if first.closed_form is not None:
        return first.closed_form.facts()
    patience = patience_of(config.patience, config.schedule, config.epochs)
    return {
        "loss": first.model.own_loss if owns_loss(first.model) else config.loss or DEFAULT_LOSS,
        "start": config.start,
        "optimiser": f"AdamW, learning rate {config.learning_rate:g}, weight decay {config.weight_decay:g}",
        "batch_size": config.batch_size,
        "epochs": ", ".join(str(len(fit.history)) for fit in fits.values()),
        "calibration": "output gain and offset by least squares on the training clips"
        if _is_calibrated(config, first.model) and _output_stage(first.model) is not None
        else "none",
        **_options_of_the_fit(config),
        **({"together": "with other seeds of the same choices (fit_many)"} if first.together else {}),
        "stopped_by": f"best validation {MAIN_SCORE}, patience {patience}, at most {config.epochs}"
        + (f"; callbacks {', '.join(first.callbacks)} may stop earlier" if first.callbacks else ""),
    }


def _options_of_the_fit(config: ExperimentConfig) -> dict[str, str]:
    """Options that most fits leave at their default, where they are not."""
    said = {
        "schedule": (config.schedule != "constant", f"{config.schedule} over {config.epochs} epochs"),
        "grad_clip": (config.grad_clip, f"gradients clipped at a norm of {config.grad_clip}"),
        "weight_average": (config.weight_average, f"of all steps, decay {config.weight_average:g}"),
        "band_shift": (config.band_shift, f"training clips by up to {config.band_shift} band(s) at random"),
        "distillation": (config.teachers, f"half of the targets from the mean of {config.teachers}"),
        "refit": (config.refit, "on training and validation clips, after the choice of the epoch"),
    }
    return {name: text for name, (chosen, text) in said.items() if chosen}


def _facts(config: ExperimentConfig, dataset: Any, split: ClipSplit, model: Any) -> dict[str, Any]:
    """Facts about model and recording for the report."""
    described = dataset.describe()
    front_end = getattr(model, "wav2spec", None)
    frequencies = getattr(front_end, "frequencies_hz", None)
    if frequencies is None and not getattr(dataset, "return_waveform", False):
        frequencies = getattr(dataset, "frequencies_hz", None)
    normalization = dataset.response_normalization
    return {
        "model": type(model).__name__,
        "wav2spec": type(front_end).__name__ if config.wav2spec else None,
        "dataset": str(described["name"]),
        "n_parameters": _n_parameters(model),
        "split": {
            "name": split.name,
            "hash": split.hash,
            "sizes": [len(split.train), len(split.val), len(split.test)],
        },
        "n_clips": len(dataset),
        "dt_ms": float(dataset.dt),
        "frequencies_hz": None if frequencies is None else [float(hertz) for hertz in frequencies],
        **_feature_facts(dataset),
        "response_kind": dataset.response_kind,
        "response_unit": response_label(dataset),
        "response_normalization": None
        if normalization is None
        else {
            "method": normalization["method"],
            "scale": normalization["scale"].tolist(),
            "offset": normalization["offset"].tolist(),
        },
    }


def _feature_facts(dataset: Any) -> dict[str, Any]:
    """Named features of the stimuli, where there are any."""
    sizes = getattr(dataset, "features", None)
    known = getattr(dataset, "feature_frequencies", None) or {}
    if not sizes:
        return {}
    hertz = {name: [float(one) for one in values] for name, values in known.items()}
    return {"features": dict(sizes), "feature_frequencies": hertz}


def response_label(dataset: Any) -> str:
    """Label of response axes: a unit per bin or second says what it is, another one is one of a response."""
    unit = str(dataset.response_unit)
    per = dataset.response_kind != "trace" and re.search(r"\bper\b|/", unit) is not None
    return unit if per else f"response ({unit})"


# ---- Notes that a reader of the scores needs, as (level, sentence) pairs of level "warning" or "info"


def collect_notes(
    dataset: Any,
    scores: RunScores,
    config: ExperimentConfig,
    best_epochs: Mapping[int, int | None],
    reasons: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """Return notes on recording, scores and fits."""
    facts = dataset.describe()
    notes: list[tuple[str, str]] = []
    ahead = float(facts.get("look_ahead_ms") or 0.0)
    if ahead > 0:
        text = (
            f"The spectrogram is not causal: each frame looks {ahead:g} ms ahead (alignment "
            f"{facts.get('alignment', 'native')!r}), as in the published scores. "
            "alignment='causal' gives one that does not."
        )
        notes.append(("warning", text))
    skipped = list(dataset.load_report.skipped)
    if skipped:
        named = "; ".join(f"{printable(name)}: {printable(reason)}" for name, reason in skipped[:MOST_NAMED])
        more = f"; and {len(skipped) - MOST_NAMED} more" if len(skipped) > MOST_NAMED else ""
        notes.append(("warning", f"{len(skipped)} entries of the recording were left out ({named}{more})."))
    notes += _notes_on_scores(scores, reasons)
    late = [seed for seed, epoch in best_epochs.items() if epoch is not None and epoch == config.epochs - 1]
    if late and config.schedule == "constant":  # a rate that decays makes its last epochs the best
        which = f"The fits of seeds {', '.join(map(str, late))} were"
        if len(late) == 1:
            which = "The fit was" if len(best_epochs) == 1 else f"The fit of seed {late[0]} was"
        text = f"{which} still improving at the last epoch ({config.epochs}); more epochs may help."
        notes.append(("info", text))
    return notes


def _notes_on_scores(scores: RunScores, reasons: Sequence[str]) -> list[tuple[str, str]]:
    columns = scores.per_neuron(TEST)
    column = columns.get(MAIN_SCORE)
    if column is None:
        return []
    note = scale_note(columns, scores.neurons)
    notes = [("warning", note)] if note else []
    missing = [int(index) for index in np.flatnonzero(~np.isfinite(column))]
    if missing:
        why = {index: f" ({reasons[index]})" for index in missing if index < len(reasons) and reasons[index]}
        named = first_names([scores.neurons[index] + why.get(index, "") for index in missing])
        text = (
            f"{len(missing)} of {column.size} neurons {'has' if len(missing) == 1 else 'have'} no "
            f"{MAIN_SCORE} on the test clips: {named}."
        )
        notes.append(("warning", text))
    snr = columns.get("snr")
    if snr is not None:
        # neurons of a single repeat: the score in that column is not noise-corrected
        raw = [scores.neurons[index] for index in np.flatnonzero(np.isfinite(column) & np.isnan(snr))]
        have, their = ("has", "its") if len(raw) == 1 else ("have", "their")
        text = (
            f"{len(raw)} of {column.size} neurons {have} no repeats to compare on the test clips: {their} "
            f"{MAIN_SCORE} is the plain correlation, not corrected for noise ({first_names(raw)})."
        )
        notes += [("warning", text)] if raw else []
    above = int((column > 1.0).sum())
    if above:
        text = (
            f"{above} {'neuron scores' if above == 1 else 'neurons score'} above 1: the noise ceiling is "
            "an estimate, uncertain where few repeats carry little signal."
        )
        notes.append(("info", text))
    return notes
