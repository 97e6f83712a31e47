"""Measuring a model's input standardisation on the training clips, when nobody has done so before the fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from deepSTRF.training.batches import BatchSource
from deepSTRF.training.clip_source import DirectSource

__all__ = ["fit_standardizer"]


def fit_standardizer(model: nn.Module, source: BatchSource, loader: DataLoader[Any]) -> bool:
    """Measure the model's input standardisation on the training stimuli, if it has one that is not fitted.

    Parameters
    ----------
    model : nn.Module
        The model; one without a ``standardizer``, or with a fitted one, is left alone.
    source : BatchSource
        Training data.
    loader : DataLoader
        The training loader behind it.

    Returns
    -------
    bool
        Whether the standardisation was measured now.

    Raises
    ------
    ValueError
        When the training clips can only be had by iterating a stream.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import Fitter, make_loaders
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> train, val = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]))
    >>> model = Linear(ds.F, 3, 2, standardize=True)
    >>> history = Fitter(model, train, val, max_epochs=1, progress=False).fit()
    >>> model.standardizer.fitted
    True
    """
    standardizer = getattr(model, "standardizer", None)
    if not isinstance(standardizer, nn.Module) or getattr(standardizer, "fitted", True):
        return False
    model.fit_standardization(_training_stimuli(source, loader))  # type: ignore[operator]
    return True


def _training_stimuli(source: BatchSource, loader: DataLoader[Any]) -> Iterator[Tensor]:
    if isinstance(source, DirectSource):
        for clip in source.clips.one_pass():
            yield source.clips.dataset.stims[clip]
        return
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            "the model has standardize=True and the training data can only be iterated; measure the "
            "standardisation before the fit with model.fit_standardization(stimuli)"
        )
    for item in range(len(dataset)):
        yield dataset[item]["stims"]
