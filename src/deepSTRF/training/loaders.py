"""Loaders in, clips out: DataLoaders for views of a recording, and which clips a DataLoader serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from deepSTRF.datasets import NeuralDataset, neural_collate
from deepSTRF.training._checks import check_not_empty
from deepSTRF.training.seeds import make_generator, preserved_random_state

__all__ = ["ClipLoader", "generators_of", "make_loaders", "read_loader"]

Loader = DataLoader[Any]


def make_loaders(
    *views: NeuralDataset, batch_size: int = 1, seed: int | None = None, shuffle: bool = True
) -> tuple[Loader, ...]:
    """Return one DataLoader per view: the first one shuffled (training), the others in order.

    Parameters
    ----------
    *views : NeuralDataset
        Usually ``split.apply(dataset)``: training, validation and test view.
    batch_size : int
        Clips per batch, >= 1.
    seed : int, optional
        Seed of the training loader's own generator; None draws from ``torch.manual_seed``'s stream.
    shuffle : bool
        Whether the first loader shuffles.

    Returns
    -------
    tuple of DataLoader
        With `neural_collate`, in the order of the views.

    Raises
    ------
    ValueError
        When no view is given, or one has no clips or no neurons.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=2)
    >>> train, val = make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)
    >>> len(train), len(val)
    (3, 1)
    """
    if not views:
        raise ValueError("give at least one view, for example make_loaders(*split.apply(dataset))")
    for number, view in enumerate(views):
        check_not_empty(f"view {number}", view)
    return tuple(
        DataLoader(
            view,
            batch_size=batch_size,
            shuffle=shuffle and number == 0,
            collate_fn=neural_collate,
            generator=make_generator(seed) if number == 0 else None,
        )
        for number, view in enumerate(views)
    )


class _Positions(Dataset[int]):
    """0, 1, 2, ...: lets a DataLoader tell which items it would fetch, without fetching them."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return int(index)


@dataclass(frozen=True)
class ClipLoader:
    """A DataLoader understood: the recording behind it and, batch by batch, the clips it would serve.

    Attributes
    ----------
    dataset : NeuralDataset
        The data set at the bottom of the (nested) subsets.
    clips : tuple of int
        Clip of ``dataset`` for each position of the loader's own data set.
    loader : DataLoader
        The loader as given.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=2)
    >>> found = read_loader(DataLoader(Subset(ds, [3, 1]), collate_fn=neural_collate))
    >>> list(found)
    [(3,), (1,)]
    """

    dataset: NeuralDataset
    clips: tuple[int, ...]
    loader: Loader

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        # A loader over bare positions with the same batch sampler and generator makes the same random draws.
        positions = DataLoader(
            _Positions(len(self.clips)),
            batch_sampler=self.loader.batch_sampler,
            generator=self.loader.generator,
            collate_fn=tuple,
        )
        for batch in positions:
            yield tuple(self.clips[position] for position in batch)

    def one_pass(self) -> tuple[int, ...]:
        """Return the distinct clips of one pass, in ascending order, leaving every random state as it was."""
        with preserved_random_state(generators_of(self.loader)):
            return tuple(sorted({clip for batch in self for clip in batch}))


def read_loader(loader: Loader) -> ClipLoader | str:
    """Find the recording and the clips behind a DataLoader, or say why only iterating it will tell.

    Parameters
    ----------
    loader : DataLoader
        Any loader.

    Returns
    -------
    ClipLoader or str
        The loader understood, or the reason why it was not: a custom collate function, worker processes, a
        data set that is no `NeuralDataset` or has its own ``__getitem__``, items with further keys.

    Examples
    --------
    >>> read_loader(DataLoader([1, 2, 3]))
    'its collate_fn is not neural_collate'
    """
    if type(loader) is not DataLoader:
        return f"it is a {type(loader).__name__}, not a plain DataLoader"
    if loader.collate_fn is not neural_collate:
        return "its collate_fn is not neural_collate"
    if loader.num_workers:
        return "it uses worker processes"
    if loader.batch_sampler is None:
        return "it has no batches (batch_size=None)"
    if isinstance(loader.dataset, IterableDataset):
        return "its data set can only be iterated"
    dataset: Any = loader.dataset
    clips: Sequence[int] | None = None
    while type(dataset) is Subset:
        inner = [int(index) for index in dataset.indices]
        clips = inner if clips is None else [inner[position] for position in clips]
        dataset = dataset.dataset
    if not isinstance(dataset, NeuralDataset):
        return f"its data set is a {type(dataset).__name__}, no NeuralDataset"
    if not type(dataset).__getitem__.__module__.startswith("deepSTRF."):
        return f"{type(dataset).__name__} has its own __getitem__"
    clips = range(len(dataset)) if clips is None else clips
    return ClipLoader(dataset, tuple(_non_negative(clip, len(dataset)) for clip in clips), loader)


def _non_negative(clip: int, n_clips: int) -> int:
    if not -n_clips <= clip < n_clips:
        raise IndexError(
            f"a Subset asks for clip {clip}, but the data set has {n_clips} clips (0 .. {n_clips - 1})"
        )
    return clip % n_clips


def generators_of(*loaders: Loader) -> list[torch.Generator]:
    """Return the random generators that loaders and their samplers own, each once.

    Parameters
    ----------
    *loaders : DataLoader
        Loaders.

    Returns
    -------
    list of torch.Generator
        In a fixed order.

    Examples
    --------
    >>> len(generators_of(DataLoader([1, 2], shuffle=True, generator=torch.Generator())))
    1
    """
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        pending = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        pending.append(getattr(pending[2], "sampler", None))
        for owner in pending:
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
    return list(found.values())
