"""One fit per fold, saved in a folder: cross-validation, jackknife, or both.

An interrupted run goes on where it was, and jobs of a cluster may share the folder: a fit counts when it is
complete and carries the mark of the run. `dynamic_strf_settings` are the settings of Keshishian et al. 2020.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer, RAdam
from torch.optim.lr_scheduler import ExponentialLR

from deepSTRF._files import json_safe
from deepSTRF._validation import check_choice, check_positive_int, checked, checked_but
from deepSTRF.crossval.folder import claim_folder, folds_bar, save_fit, settled
from deepSTRF.crossval.predict import RUN, FoldFits
from deepSTRF.datasets import FoldManifest, NeuralDataset
from deepSTRF.datasets.splits import shuffled
from deepSTRF.metrics import mse_loss
from deepSTRF.models import NeuralModel
from deepSTRF.models.prediction import predict_clips
from deepSTRF.training.cache import FrontEndCache
from deepSTRF.training.callbacks import FitDivergedError, LastWeights
from deepSTRF.training.data import HASH_LENGTH
from deepSTRF.training.fitter import (
    CallbackFactory,
    build_fit,
    check_callback_factory,
    check_fitter_arguments,
)
from deepSTRF.training.objective import check_objective, choose_objective, history_rows, mode_of
from deepSTRF.training.optimization import (
    EpochSchedule,
    make_optimizer,
    make_scheduler,
    optimizer_facts,
    schedule_facts,
)
from deepSTRF.training.resume import function_name, model_signature
from deepSTRF.training.seeds import seeded
from deepSTRF.training.validate import check_prediction, with_standardizer

__all__ = ["dynamic_strf_settings", "fit_folds"]

#: Learning rate and weight decay of the two encoders of the dynamic STRF page.
OPTIMIZERS = {"deep": (0.003, 0.03), "linear": (0.03, 30.0)}
#: Factor on the learning rate after every epoch, largest norm of the gradient, epochs, trials per batch.
GAMMA, GRAD_CLIP, EPOCHS, BATCH_SIZE = 0.996, 10.0, 1000, 64
#: Arguments of the Fitter that each fold sets for itself.
MANAGED = (
    "model", "train_loader", "val_loader", "seed", "ckpt_path", "state_path", "log_fn", "progress",
    "callbacks",
)  # fmt: skip
#: Arguments that mean something only with validation clips.
VALIDATED = ("monitor", "mode", "patience", "min_delta", "track_per_cell_best")
#: Epochs of a Fitter by default.
DEFAULT_EPOCHS = 1000


@checked_but("model_factory", "manifest", "only", "callbacks")
def fit_folds(
    model_factory: Callable[[int], nn.Module],
    dataset: NeuralDataset,
    manifest: FoldManifest,
    out: str | os.PathLike[str],
    *,
    n_validation: int = 0,
    batch_size: int = 1,
    seed: int = 0,
    fitter_kwargs: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    n_jobs: int = 1,
    overwrite: bool = False,
    progress: bool | Literal["auto"] = "auto",
    callbacks: CallbackFactory | None = None,
) -> FoldFits:
    """Fit one model per fold of a manifest and save each; fits that are there already are not made again.

    Fold k is fitted with seed ``seed + k``, whatever the order, so that an interrupted run ends as it would
    have. The folder gets ``folds.json`` (trials, sounds, folds, settings) and per fold a folder as
    ``save_pretrained`` writes it (``model-003``, ``model-003_007``), with the trials it left out, those it
    stopped by and its history in ``metadata.json``. A fold appears when it is complete.

    Parameters
    ----------
    model_factory : callable
        ``model_factory(seed)`` returns a new model.
    dataset : NeuralDataset
        Holds all trials of the manifest; further clips take no part.
    manifest : FoldManifest
        From `plan_folds`.
    out : path
        The folder.
    n_validation : int
        Trials per fold, drawn from those it does not leave out, that choose the epoch and stop the fit; a
        trial that was left out never does. 0 trains for ``max_epochs`` epochs and keeps the last weights.
    batch_size : int
        Clips per batch.
    seed : int
        Seed of the first fold.
    fitter_kwargs : mapping, optional
        Further arguments of `Fitter`; optimizer and scheduler are given as functions. See
        `dynamic_strf_settings` for those of the dynamic STRF page.
    only : sequence of str, optional
        Names of the folds to fit now, for jobs of a cluster that share the folder; None is all.
    n_jobs : int
        Fits at a time, each in a process of its own; -1 is one per core.
    overwrite : bool
        Fit all anew where a run with other settings lies. Each of its fits stays until the new one is whole;
        when none of the new is made, ``folds.json`` of the run before comes back.
    progress : bool or 'auto'
        Bar over the folds on stderr; 'auto' draws it on a terminal.
    callbacks : callable, optional
        ``callbacks(seed)`` returns a list of new `Callback` instances for the fold with that seed; so does
        the entry of `deepSTRF.training.fit_settings`.

    Returns
    -------
    FoldFits
        The folder, for `predict_folds`, `score_folds` and `deepSTRF.interpret.dstrf.dstrf_folds`.

    Raises
    ------
    ValueError
        For a manifest of other clips, an argument that is managed here, or a folder with a run of other
        settings; the text says what differs.
    FileExistsError
        For a folder with fits of unknown origin.
    TypeError
        When the factory takes no seed or returns no `NeuralModel`, which could not be saved, or for an
        argument that the Fitter does not have.
    FitDivergedError
        When fits diverged; the others are saved.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.datasets import plan_folds
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=2, clip_seconds=0.2)
    >>> plan = plan_folds(ds, crossval=True, jackknife=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fits = fit_folds(lambda seed: Linear(ds.F, 5, 2), ds, plan, folder,
    ...                      fitter_kwargs={"max_epochs": 1})
    ...     len(fits.unseen(ds, 0))
    2
    """
    arguments = dict(fitter_kwargs or {})
    _check_arguments(arguments, n_validation)
    check_callback_factory("callbacks", callbacks)
    if n_jobs == 1:  # processes cannot share what a fixed front-end has computed
        arguments.setdefault("front_end_cache", FrontEndCache())
    if not isinstance(manifest, FoldManifest):
        raise TypeError(
            f"manifest must be a FoldManifest, got {type(manifest).__name__}: plan_folds(dataset, "
            "crossval=True) makes one"
        )
    manifest = manifest.bind(dataset)
    wanted, folder = _chosen_folds(manifest, only), Path(out)
    plan = _Plan(
        model_factory, dataset, manifest, folder, n_validation, check_positive_int("batch_size", batch_size),
        seed, arguments, callbacks,
    )  # fmt: skip
    _check_sizes(plan)
    facts = _facts(plan)
    before = claim_folder(folder, manifest, facts, overwrite)
    fits = FoldFits(folder)
    plan = dataclasses.replace(plan, run=fits.manifest.facts.get(RUN))
    with settled(fits, before):
        _fit_missing(plan, fits, wanted, n_jobs, progress)
    return fits


def _fit_missing(
    plan: _Plan, fits: FoldFits, wanted: list[int], n_jobs: int, progress: bool | Literal["auto"]
) -> None:
    manifest = plan.manifest
    missing = [number for number in wanted if not fits.has(manifest.folds[number].name)]
    failed: dict[str, tuple[str, int]] = {}
    with folds_bar(progress, len(wanted), len(wanted) - len(missing)) as advance:
        for name, cause in _run(plan, missing, n_jobs):
            advance()
            if cause is not None:
                failed[name] = cause
    if failed:
        name, (reason, epoch) = next(iter(failed.items()))
        raise FitDivergedError(
            f"{len(failed)} of {len(wanted)} fits diverged; the others are saved. {name}: {reason}",
            epoch=epoch,
        )


@checked
def dynamic_strf_settings(encoder: str = "deep", *, max_epochs: int = EPOCHS) -> dict[str, Any]:
    """Return the arguments with which `fit_folds` trains as the dynamic STRF page does.

    Mean squared error; RAdam with learning rate 0.003 and weight decay 0.03 (0.03 and 30 for the linear
    encoder), the rate times 0.996 after every epoch; gradients clipped at 10; up to 64 trials per batch; 1000
    epochs without validation, of which the last weights stay. The page computes in half precision, this in
    single precision; a batch weighs bins there trial by trial, here all alike.

    Parameters
    ----------
    encoder : {"deep", "linear"}
        Which of the page's encoders.
    max_epochs : int
        Epochs.

    Returns
    -------
    dict
        ``batch_size`` and ``fitter_kwargs`` for `fit_folds`.

    Raises
    ------
    ValueError
        For another encoder.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> settings = dynamic_strf_settings("linear", max_epochs=20)
    >>> settings["batch_size"], sorted(settings["fitter_kwargs"])
    (64, ['grad_clip', 'loss_fn', 'max_epochs', 'optimizer', 'scheduler'])
    """
    check_choice("encoder", encoder, tuple(OPTIMIZERS))
    rate, decay = OPTIMIZERS[encoder]
    fitter_kwargs = {
        "loss_fn": mse_loss,
        "optimizer": functools.partial(_radam, lr=rate, weight_decay=decay),
        "scheduler": functools.partial(ExponentialLR, gamma=GAMMA),
        "grad_clip": GRAD_CLIP,
        "max_epochs": max_epochs,
    }
    return {"batch_size": BATCH_SIZE, "fitter_kwargs": fitter_kwargs}


def _radam(model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    return RAdam(model.parameters(), lr=lr, weight_decay=weight_decay)


# ---- what is checked before the folder is claimed


def _check_arguments(arguments: dict[str, Any], n_validation: int) -> None:
    """Raise an error for arguments that no fold's `Fitter` can take."""
    check_fitter_arguments(arguments, MANAGED, "fit_folds")
    stopping = [name for name in VALIDATED if name in arguments]
    if n_validation == 0 and stopping:
        raise ValueError(
            f"fitter_kwargs: {', '.join(stopping)} needs trials to stop by; give n_validation of at least 1"
        )


def _chosen_folds(manifest: FoldManifest, only: Sequence[str] | None) -> list[int]:
    """Numbers of the folds to fit now."""
    if isinstance(only, str):
        raise TypeError(f"only must be a sequence of names, got {only!r}: only=[{only!r}]")
    names = [fold.name for fold in manifest.folds]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise ValueError(f"only: there is no fold {unknown[0]!r}; the manifest has {', '.join(names)}")
    return [number for number, name in enumerate(names) if only is None or name in only]


def _check_sizes(plan: _Plan) -> None:
    if isinstance(plan.n_validation, bool) or not isinstance(plan.n_validation, int) or plan.n_validation < 0:
        raise ValueError(f"n_validation must be a whole number >= 0, got {plan.n_validation!r}")
    left = min(len(plan.manifest.trials) - len(fold.left_out) for fold in plan.manifest.folds)
    if plan.n_validation >= left:
        raise ValueError(
            f"n_validation={plan.n_validation} leaves nothing to train on: a fold has {left} trials"
        )


def _first_model(
    factory: Callable[[int], nn.Module], seed: int, dataset: NeuralDataset, clips: Sequence[int]
) -> NeuralModel:
    """The first fold's model as it starts, after a trial of it on the shortest clip."""
    with suppress(ValueError):  # some callables have no signature: the call decides
        try:
            inspect.signature(factory).bind(seed)
        except TypeError as error:
            raise TypeError(
                f"model_factory is called with a seed ({error}): give lambda seed: MyModel(...)"
            ) from None
    with seeded(seed):
        model = factory(seed)
        if not isinstance(model, NeuralModel):
            raise TypeError(
                f"model_factory returned a {type(model).__name__}; fits are saved with save_pretrained, "
                "which a NeuralModel has: class MyModel(NeuralModel)"
            )
        shortest = min(clips, key=lambda clip: dataset.stims[clip].shape[-1])
        rates = predict_clips(with_standardizer(model, dataset, shortest), dataset, clips=[shortest])[0]
    neurons, _, bins = dataset.response_block(shortest).shape
    check_prediction(rates[None, :, None], batch=1, neurons=neurons, bins=bins)
    return model


# ---- one fold


@dataclass(frozen=True)
class _Plan:
    """All that a worker process needs for a fold."""

    factory: Callable[[int], nn.Module]
    dataset: NeuralDataset
    manifest: FoldManifest
    folder: Path
    n_validation: int
    batch_size: int
    seed: int
    arguments: dict[str, Any]
    callbacks: CallbackFactory | None
    run: str | None = None


def _run(plan: _Plan, missing: list[int], n_jobs: int) -> Iterator[tuple[str, tuple[str, int] | None]]:
    if n_jobs == 1 or len(missing) < 2:
        yield from (_fit_one(plan, number) for number in missing)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    yield from parallel(delayed(_fit_one)(plan, number) for number in missing)


def _fit_one(plan: _Plan, number: int) -> tuple[str, tuple[str, int] | None]:
    """Fit and save a fold; returns its name and why it has none."""
    fold, seed = plan.manifest.folds[number], plan.seed + number
    seen = [trial for trial in plan.manifest.trials if trial not in fold.left_out]
    order = [place for group in shuffled([[place] for place in range(len(seen))], seed) for place in group]
    stop = set(order[: plan.n_validation])
    training = tuple(trial for place, trial in enumerate(seen) if place not in stop)
    validation = tuple(trial for place, trial in enumerate(seen) if place in stop)
    train, val = (
        plan.dataset.select(clips=_clips(plan.dataset, plan.manifest, part))
        for part in (training, validation)
    )
    arguments = {"track_train_metrics": False, **plan.arguments, "progress": False}
    with seeded(seed):
        model = plan.factory(seed)
        last = len(val) == 0
        if last:  # a pass without validation still scores a clip, and nothing comes of it
            val = train.select(clips=[0])
            epochs = arguments.get("max_epochs", DEFAULT_EPOCHS)
            arguments |= {"monitor": "train_loss", "mode": "min", "patience": epochs}
        fitter = build_fit(
            model, train, val, seed=seed, batch_size=plan.batch_size, callbacks=plan.callbacks,
            more=[LastWeights()] if last else [], **arguments,
        )  # fmt: skip
        try:
            history = fitter.fit()
        except FitDivergedError as error:  # one fold that diverges leaves the others
            return fold.name, (str(error), error.epoch)
    rows = [
        {key: value for key, value in row.items() if not (last and key.startswith("val_"))}
        for row in history_rows(history)
    ]
    facts = {"fold": fold.name, "left_out": list(fold.left_out), "validation": list(validation), "seed": seed}
    facts |= {"best_epoch": None if last else fitter.best_epoch, "history": json_safe(rows)}
    save_fit(model, plan.folder / fold.name, facts, plan.run)
    return fold.name, None


def _clips(dataset: NeuralDataset, manifest: FoldManifest, trials: tuple[str, ...]) -> list[int]:
    """Clips of a dataset that hold the sounds of some trials, in the order of the trials."""
    by_sound: dict[str, list[int]] = {}
    for clip in range(len(dataset)):
        by_sound.setdefault(dataset.source_fingerprint(clip), []).append(clip)
    lost = [trial for trial in trials if manifest.sounds[trial] not in by_sound]
    if lost:
        raise ValueError(
            f"no clip of {dataset!r} holds the sound of trial {lost[0]!r}; fit on the dataset that the "
            "manifest was made from"
        )
    return [clip for trial in trials for clip in by_sound[manifest.sounds[trial]]]


def _facts(plan: _Plan) -> dict[str, Any]:
    """What must agree for fits of two runs to belong together."""
    arguments = plan.arguments
    clips = _clips(plan.dataset, plan.manifest, plan.manifest.trials)
    model = _first_model(plan.factory, plan.seed, plan.dataset, clips)
    optimizer = make_optimizer(arguments.get("optimizer"), model)
    facts = optimizer_facts(optimizer)
    objective = choose_objective(model, arguments.get("loss_fn"), arguments.get("objective", "auto"))
    check_objective(model, objective, plan.dataset)
    scheduler = make_scheduler(arguments.get("scheduler"), optimizer, mode_of(arguments))
    others = {
        key: function_name(value) if callable(value) else str(value)
        for key, value in sorted(arguments.items())
        if key not in ("optimizer", "scheduler", "loss_fn", "objective", "device", "front_end_cache")
    }
    describe = getattr(plan.callbacks, "describe", None)  # those of `fit_settings`
    callbacks = describe() if callable(describe) else ""
    return {
        "model": model_signature(model),
        "optimizer": facts,
        "scheduler": "None" if scheduler is None else _described(scheduler),
        "loss": function_name(objective),
        "seed": str(plan.seed),
        "n_validation": str(plan.n_validation),
        "batch_size": str(plan.batch_size),
        "responses": _hash_of(plan.dataset, plan.manifest),
        **others,
        **({"callbacks": callbacks} if callbacks else {}),  # runs of before have none
    }


def _described(scheduler: Any) -> str:
    """Class and numbers of a schedule."""
    if isinstance(scheduler, EpochSchedule):
        return schedule_facts(scheduler)
    plain = {key: value for key, value in vars(scheduler).items() if isinstance(value, int | float)}
    return (
        f"{type(scheduler).__name__}({', '.join(f'{key}={value}' for key, value in sorted(plain.items()))})"
    )


def _hash_of(dataset: NeuralDataset, manifest: FoldManifest) -> str:
    """A hash of stimuli and responses of all trials, whatever the order of the clips."""
    digests = []
    for clip in _clips(dataset, manifest, manifest.trials):
        digest = hashlib.sha256(dataset.fingerprint(clip).encode())
        block: Tensor = dataset.response_block(clip).contiguous()
        digest.update(f"{tuple(block.shape)}".encode())
        digest.update(block.numpy().tobytes())
        digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:HASH_LENGTH]
