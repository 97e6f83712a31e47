"""What is checked before a folder is claimed for fits over folds: a mistake must not cost an earlier run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from deepSTRF.datasets import FoldManifest, NeuralDataset
from deepSTRF.models import NeuralModel
from deepSTRF.models.prediction import predict_clips
from deepSTRF.training.fitter import Fitter
from deepSTRF.training.model_rules import check_prediction
from deepSTRF.training.seeds import seeded

__all__ = ["check_fitter_arguments", "check_manifest", "chosen_folds", "first_model"]

#: Arguments of the Fitter that each fold sets for itself.
MANAGED = ("model", "train_loader", "val_loader", "seed", "ckpt_path", "state_path", "log_fn", "progress")
#: Arguments that mean something only with validation clips.
VALIDATED = ("monitor", "mode", "patience", "min_delta", "track_per_cell_best")


def check_fitter_arguments(arguments: Mapping[str, Any], n_validation: int) -> None:
    """Raise an error for arguments that no fold's `Fitter` can take.

    Parameters
    ----------
    arguments : mapping
        Further arguments of the Fitter.
    n_validation : int
        Trials per fold to stop by.

    Raises
    ------
    ValueError
        For arguments that each fold sets for itself, that need validation, or one optimiser for all.
    TypeError
        For arguments that the Fitter does not have.

    Examples
    --------
    >>> check_fitter_arguments({"max_epochs": 3}, n_validation=0)
    """
    managed = [name for name in MANAGED if name in arguments]
    if managed:
        raise ValueError(f"fitter_kwargs: {', '.join(managed)} is managed by fit_folds; leave it out")
    stopping = [name for name in VALIDATED if name in arguments]
    if n_validation == 0 and stopping:
        raise ValueError(
            f"fitter_kwargs: {', '.join(stopping)} needs trials to stop by; give n_validation of at least 1"
        )
    for name in ("optimizer", "scheduler"):
        given = arguments.get(name)
        if given is not None and (
            not callable(given) or (hasattr(given, "step") and not isinstance(given, type))
        ):
            raise ValueError(f"fitter_kwargs[{name!r}] must be a function, since each fold has its own model")
    known = [name for name in inspect.signature(Fitter).parameters if name not in MANAGED]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise TypeError(f"fitter_kwargs: a Fitter has no {unknown[0]!r}; it has {', '.join(known)}")


def check_manifest(manifest: object) -> FoldManifest:
    """Return a manifest, or raise an error for something else.

    Parameters
    ----------
    manifest : FoldManifest
        From `plan_folds`.

    Returns
    -------
    FoldManifest
        The same.

    Raises
    ------
    TypeError
        For something else.

    Examples
    --------
    >>> check_manifest(FoldManifest.plan(["a", "b"])).trials
    ('a', 'b')
    """
    if not isinstance(manifest, FoldManifest):
        raise TypeError(
            f"manifest must be a FoldManifest, got {type(manifest).__name__}: plan_folds(dataset, "
            "crossval=True) makes one"
        )
    return manifest


def chosen_folds(manifest: FoldManifest, only: Sequence[str] | None) -> list[int]:
    """Return which folds of a manifest are wanted.

    Parameters
    ----------
    manifest : FoldManifest
        The plan.
    only : sequence of str, optional
        Names; None is all.

    Returns
    -------
    list of int
        Their numbers.

    Raises
    ------
    ValueError
        For a name that is not in the manifest.
    TypeError
        For a single name.

    Examples
    --------
    >>> chosen_folds(FoldManifest.plan(["a", "b"], crossval=True), ["model-001"])
    [1]
    """
    if isinstance(only, str):
        raise TypeError(f"only must be a sequence of names, got {only!r}: only=[{only!r}]")
    names = [fold.name for fold in manifest.folds]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise ValueError(f"only: there is no fold {unknown[0]!r}; the manifest has {', '.join(names)}")
    return [number for number, name in enumerate(names) if only is None or name in only]


def first_model(
    factory: Callable[[int], nn.Module], seed: int, dataset: NeuralDataset, clips: Sequence[int]
) -> NeuralModel:
    """Return the first fold's model as it starts, once it has been seen to fit the recording.

    Parameters
    ----------
    factory : callable
        Takes a seed.
    seed : int
        Of the first fold.
    dataset : NeuralDataset
        The recording.
    clips : sequence of int
        Those that take part; the model hears the shortest.

    Returns
    -------
    NeuralModel
        New.

    Raises
    ------
    TypeError
        For a factory that takes no seed, or returns what cannot be saved.
    ValueError
        For a model of other bands or neurons than the recording has.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=2, clip_seconds=0.2)
    >>> first_model(lambda seed: Linear(ds.F, 5, 2), 0, ds, [0, 1]).T
    5
    """
    _check_takes_seed(factory, seed)
    with seeded(seed):
        model = factory(seed)
        if not isinstance(model, NeuralModel):
            raise TypeError(
                f"model_factory returned a {type(model).__name__}; fits are saved with save_pretrained, "
                "which a NeuralModel has: class MyModel(NeuralModel)"
            )
        shortest = min(clips, key=lambda clip: dataset.stims[clip].shape[-1])
        rates = predict_clips(model, dataset, clips=[shortest])[0]
    neurons, _, bins = dataset.response_block(shortest).shape
    check_prediction(rates[None, :, None], batch=1, neurons=neurons, bins=bins)
    return model


def _check_takes_seed(factory: Callable[[int], nn.Module], seed: int) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # no function, or one that does not say: the call will tell
        return
    try:
        signature.bind(seed)
    except TypeError as error:
        raise TypeError(
            f"model_factory is called with a seed ({error}): give lambda seed: MyModel(...)"
        ) from None
