"""Data of a fit: loaders of a recording, the clips that they serve, and the batches of a pass.

`make_source` turns a DataLoader into a source of batches. Where the loader is understood (a plain one over a
recording) the clips come straight from memory: each is read once, its stimulus and its target stay on the
device, and the front-end cache may replace the stimulus. Any other loader is iterated as it is. Both give the
same batches in the same order, so a fit ends with the same weights.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    default_collate,
    default_convert,
)

from deepSTRF._validation import check_memory, check_not_empty, checked
from deepSTRF.datasets import NeuralDataset, neural_collate
from deepSTRF.metrics import psth
from deepSTRF.models.fitted_on import check_views
from deepSTRF.training.cache import FrontEndFeed
from deepSTRF.training.seeds import make_generator, preserved_random_state

__all__ = [
    "HASH_LENGTH",
    "Batch",
    "BatchSource",
    "ByteBudget",
    "ClipLoader",
    "ClipStore",
    "DirectSource",
    "FeedSettings",
    "LoaderSource",
    "Pairs",
    "Share",
    "batches_of",
    "generators_of",
    "make_loaders",
    "make_source",
    "read_loader",
    "recording_behind",
    "scored_by_length",
    "stack_padded",
    "stand_in",
    "valid_counts",
    "warmup_bins",
]

Loader = DataLoader[Any]

#: Batches of like lengths: share by which lengths are changed at random, so that batches differ.
LENGTH_NOISE = 0.1
#: Batches hold recorded pairs alone where these are less than this share of all (clip, neuron) pairs: below
#: it, picking rows costs less than computing with missing ones.
SPARSE_SHARE = 0.5
#: Responses of so many values are never read in pieces.
SURELY_WHOLE = 1 << 20
#: Recorded values of clips that are read together where all are read once.
VALUES_TOGETHER = 1 << 18
#: Characters of a hash that stand for it in a text.
HASH_LENGTH = 12
#: What a batch of `neural_collate` holds; an item with more needs its loader.
KNOWN_KEYS = {"stims", "responses", "valid_mask", "stim_meta"}


# ---- loaders, and their clips


@checked
def make_loaders(
    *views: NeuralDataset,
    batch_size: int = 1,
    seed: int | None = None,
    shuffle: bool = True,
    bucket_by_length: bool = False,
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
    bucket_by_length : bool
        Batches of clips of about the same length, so that little is padded: recurrent and convolutional
        models on clips of many lengths train faster. In each epoch clips are sorted by their length, give or
        take a tenth, and the batches shuffled: each clip once, other draws than without. Needs ``shuffle``;
        the other loaders keep their order, but `Fitter` validates by length too: scores do not depend on it.

    Returns
    -------
    tuple of DataLoader
        With `neural_collate`, in the order of the views.

    Raises
    ------
    ValueError
        When no view is given, one has no clips or no neurons, views differ in neurons, their order, bins,
        bands or sample rate, or ``bucket_by_length`` meets ``shuffle=False``.

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
    check_views(views, [f"view {number}" for number in range(len(views))])
    loaders = [
        DataLoader(
            view,
            batch_size=batch_size,
            shuffle=shuffle and number == 0,
            collate_fn=neural_collate,
            generator=make_generator(seed) if number == 0 else None,
        )
        for number, view in enumerate(views)
    ]
    if bucket_by_length and not shuffle:
        raise ValueError("bucket_by_length=True sorts and shuffles clips: leave shuffle=True")
    if bucket_by_length:
        lengths = [views[0].stimulus_bins(clip) for clip in range(len(views[0]))]
        sampler = _LengthBatches(lengths, batch_size, loaders[0].generator)
        loaders[0] = DataLoader(
            views[0], batch_sampler=sampler, collate_fn=neural_collate, generator=loaders[0].generator
        )
    return tuple(loaders)


class _LengthBatches(Sampler[list[int]]):
    """Every item once, in batches of about one length, or from the shortest to the longest."""

    drop_last = False

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        generator: torch.Generator | None,
        *,
        shuffle: bool = True,
    ) -> None:
        self.batch_size, self.generator, self._shuffle = batch_size, generator, shuffle
        self._lengths = torch.tensor(lengths, dtype=torch.float64)

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self._shuffle:
            in_order = torch.split(self._lengths.argsort(stable=True), self.batch_size)
            yield from (some.tolist() for some in in_order)
            return
        noise = torch.rand(len(self._lengths), generator=self.generator, dtype=torch.float64)
        order = (self._lengths * (1.0 + LENGTH_NOISE * (2.0 * noise - 1.0))).argsort()
        batches = torch.split(order, self.batch_size)
        for place in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[place].tolist()


def scored_by_length(loader: Loader, trained: Loader) -> Loader:
    """Return a loader to score from: by length where training has `bucket_by_length`, else ``loader`` itself.

    Waveforms keep their batches: the last frames of a front-end may depend on the padding after a sound.
    """
    found = read_loader(loader) if isinstance(trained.batch_sampler, _LengthBatches) else ""
    if isinstance(found, str) or found.dataset.samples_per_bin > 1:
        return loader
    plain = type(loader.batch_sampler) is BatchSampler and type(loader.sampler) is SequentialSampler
    if not plain or loader.drop_last or loader.batch_size is None:
        return loader
    lengths = [found.dataset.stimulus_bins(clip) for clip in found.clips]
    batches = _LengthBatches(lengths, loader.batch_size, None, shuffle=False)
    return DataLoader(loader.dataset, batch_sampler=batches, collate_fn=neural_collate)


def batches_of(loader: Loader) -> str:
    """Size of a loader's batches, and how they are made where lengths decide."""
    if isinstance(loader.batch_sampler, _LengthBatches):
        return f"{loader.batch_sampler.batch_size} of like lengths"
    return str(loader.batch_size)


class _Positions(Dataset[int]):
    """The numbers 0, 1, 2, ...: a DataLoader over them gives its order of items without fetching any."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return int(index)


@dataclass(frozen=True)
class ClipLoader:
    """A DataLoader understood: the recording behind it and, batch by batch, the clips it would serve."""

    dataset: NeuralDataset  # at the bottom of the (nested) subsets
    clips: tuple[int, ...]  # of ``dataset`` for each position of the loader's own data set
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
        batches, sampler = self.loader.batch_sampler, self.loader.sampler
        whole = type(sampler) is SequentialSampler or (
            isinstance(sampler, RandomSampler)
            and not sampler.replacement
            and sampler.num_samples == len(self.clips)
        )
        # every clip: nothing is drawn to find that out
        if whole and type(batches) is BatchSampler and batches.sampler is sampler and not batches.drop_last:
            return tuple(sorted(set(self.clips)))
        with preserved_random_state(generators_of(self.loader)):
            return tuple(sorted({clip for batch in self for clip in batch}))


def read_loader(loader: Loader) -> ClipLoader | str:
    """Return the recording and the clips behind a DataLoader, or why it has to be iterated."""
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
    n_clips = len(dataset)
    clips = range(n_clips) if clips is None else clips
    for clip in clips:
        if not -n_clips <= clip < n_clips:
            raise IndexError(
                f"a Subset holds clip {clip}, but the data set has {n_clips} clips (0 .. {n_clips - 1})"
            )
    found = ClipLoader(dataset, tuple(clip % n_clips for clip in clips), loader)
    extra = set(dataset[found.clips[0]]) - KNOWN_KEYS if found.clips else set()
    return f"its items have further keys: {', '.join(sorted(extra))}" if extra else found


def recording_behind(loader: Loader) -> tuple[Any, Sequence[int] | None]:
    """Return the data set below a loader's subsets, and which of its clips they hold; None is all."""
    dataset: Any = loader.dataset
    clips: Sequence[int] | None = None
    while isinstance(dataset, Subset):
        inner = [int(index) for index in dataset.indices]
        clips = inner if clips is None else [inner[position] for position in clips]
        dataset = dataset.dataset
    return dataset, clips


def generators_of(*loaders: Loader) -> list[torch.Generator]:
    """Return the random generators that loaders and their samplers own, each once."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        for owner in [*owners, getattr(owners[2], "sampler", None)]:
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
    return list(found.values())


# ---- batches


@dataclass(frozen=True, slots=True)
class Pairs:
    """Recorded pairs of a clip and a neuron, clip after clip, where a batch holds nothing of the others."""

    items: Tensor  # (P,) places in the batch
    neurons: Tensor  # (P,)
    n_neurons: int

    def of(self, values: Tensor) -> Tensor:
        """The rows (1, P, 1, T) of predictions (B, N, 1, T)."""
        if values.shape[0] == 1:
            return values.index_select(1, self.neurons)
        rows = values.flatten(0, 1).index_select(0, self.items * self.n_neurons + self.neurons)
        return rows.unsqueeze(0)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the fit's device, the warm-up already cut from its targets.

    Where most pairs of a clip and a neuron were not recorded, and nothing of the user's own looks at batches,
    ``pairs`` is given: ``targets`` are then (1, P, R, T) and ``weights`` (P,), one row per recorded pair, and
    ``responses`` gives the (H, R, T) of the neurons that heard the clip.
    """

    inputs: Tensor  # (B, 1, F, T) or (B, 1, T_audio), or the front-end's output for ``model.respond``
    is_spectrogram: bool  # ``inputs`` have been through the front-end (they come from the cache)
    targets: Tensor  # the PSTH (B, N, 1, T) or the repeats (B, N, R, T), NaN where nothing was recorded
    weights: Tensor  # (N,) valid bins (or bins and repeats) of each neuron in this batch
    # one per item, the same in every epoch of a ``stable`` source: the clip's number
    keys: tuple[Hashable, ...]
    lengths: tuple[int, ...]  # bins per item that belong to the clip (the rest is padding)
    skip: int  # bins of warm-up that the targets lack and that are cut from the prediction
    responses: Callable[[int], Tensor]  # item i's (N, R, T) repeats, for metrics
    # bins per item, after the warm-up, that are heard and not scored; empty where none are
    contexts: tuple[int, ...] = ()
    # 'stim_meta' and what else a collate function adds
    extras: Mapping[str, Any] = field(default_factory=dict)
    pairs: Pairs | None = None

    def by_neuron(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the batch and its `weights`: those of pairs as one value per neuron, (N,)."""
        if self.pairs is None:
            return loss, self.weights
        neurons = self.pairs.neurons
        nothing = loss.new_zeros(self.pairs.n_neurons)
        part = torch.where(self.weights > 0, loss * self.weights, 0.0)
        weights = nothing.index_add(0, neurons, self.weights.to(loss.dtype))
        return nothing.index_add(0, neurons, part) / weights.clamp(min=1), weights


@dataclass(frozen=True)
class Share:
    """One process's part of a pass: batch ``rank`` of every ``size`` consecutive ones."""

    rank: int = 0
    size: int = 1

    def of(self, batches: Iterable[Any]) -> Iterator[tuple[Any, list[Any]]]:
        """Own batch and those of all processes, step by step; None where the last step has none left."""
        left = iter(batches)
        while joint := list(itertools.islice(left, self.size)):
            yield (joint[self.rank] if self.rank < len(joint) else None), joint


@dataclass(frozen=True)
class FeedSettings:
    """What a source needs to know of the fit."""

    device: torch.device
    dtype: torch.dtype
    psth_targets: bool  # the loss takes the PSTH in place of the repeats
    counts_repeats: bool  # the loss is a mean over bins and repeats, not over bins
    warmup_ms: float  # onset of each clip that takes no part in loss and scores
    share: Share = Share()  # of this process
    # whether batches may hold recorded pairs only: loss and scores are sums over rows, and nobody else looks
    takes_pairs: bool = False


class BatchSource(Protocol):
    """Where a pass over the data gets its batches."""

    #: True when a clip has the same key in every pass, so that what depends on it alone can be kept.
    stable: bool
    #: One phrase on how the data are fed.
    note: str

    def __iter__(self) -> Iterator[Batch]: ...

    def stimuli(self) -> Iterator[Tensor]:
        """Every clip's stimulus once, (1, F, T) or (1, T_audio)."""
        ...

    def spectrograms(self) -> Iterator[Tensor] | None:
        """Spectrograms (1, F, T) of `stimuli` from a cache; None where there is none."""
        ...

    def psths(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Every clip's PSTH once, (H, 1, T) without the warm-up, and its neurons (H,); None is all of them.

        NaN where nothing was recorded.
        """
        ...

    def describe(self) -> str:
        """Number of clips and a hash of their stimuli and targets, where they can be read."""
        ...


def make_source(
    loader: Loader, settings: FeedSettings, *, fast: bool, feed: FrontEndFeed | None, budget: ByteBudget
) -> BatchSource:
    """Return the quickest source that serves what ``loader`` would."""
    skip = warmup_bins(settings.warmup_ms, loader)
    dataset: Any = loader.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if loader.collate_fn in (default_collate, default_convert) and isinstance(dataset, NeuralDataset):
        raise TypeError(
            "a DataLoader over a dataset needs collate_fn=neural_collate (from deepSTRF.datasets); "
            "make_loaders(view) makes such a loader"
        )
    found = read_loader(loader) if fast else "fast=False"
    if isinstance(found, ClipLoader):
        return DirectSource(found, ClipStore(found.dataset, settings, skip, budget), feed, settings.share)
    return LoaderSource(loader, settings, skip, found)


def warmup_bins(warmup_ms: float, loader: Loader) -> int:
    """Return how many bins the warm-up covers, rounded up, by the bin width of the loader's data set."""
    if warmup_ms == 0:
        return 0
    dataset, _ = recording_behind(loader)
    dt = getattr(dataset, "dt", None)
    if dt is None:
        raise ValueError(
            f"warmup_ms={warmup_ms} needs the bin width, but the loader's {type(dataset).__name__} has no "
            "attribute dt (ms); set it, or cut the onset in your collate function"
        )
    return math.ceil(warmup_ms / float(dt) - 1e-9)  # 15 ms are exactly 3 bins of 5 ms whatever the rounding


def valid_counts(targets: Tensor, *, counts_repeats: bool) -> Tensor:
    """Return how many values of each neuron the loss averages over: targets (B, N, R, T) to (N,)."""
    valid = ~targets.isnan()
    if not counts_repeats and valid.shape[2] > 1:
        valid = valid.any(dim=2, keepdim=True)
    return valid.sum(dim=(0, 2, 3)).to(torch.float32)


def stack_padded(parts: Sequence[Tensor], value: float, least: int = 0) -> Tensor:
    """Stack tensors of unequal sizes, padding on the right with ``value``; one alone costs no copy.

    ``least``: shortest last axis of the result.
    """
    shapes = {part.shape for part in parts}
    if len(shapes) == 1 and parts[0].shape[-1] >= least:
        return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(list(parts))
    shape = [max(sizes) for sizes in zip(*shapes, strict=True)]
    shape[-1] = max(shape[-1], least)
    out = parts[0].new_full((len(parts), *shape), value)
    for item, part in enumerate(parts):
        out[item][tuple(slice(0, size) for size in part.shape)] = part
    return out


def stand_in(batch: Batch) -> Batch:
    """A batch of which nothing counts, for a process that has none in a step that others take."""
    return replace(
        batch,
        targets=torch.full_like(batch.targets, torch.nan),
        weights=torch.zeros_like(batch.weights),
        keys=(),
        lengths=(),
    )


def cat_padded(parts: Sequence[Tensor], value: float) -> Tensor:
    """Join rows (H, R, T) of unequal R and T to (1, P, R, T), padding on the right with ``value``."""
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts)).unsqueeze(0)
    repeats, bins = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    out = parts[0].new_full((1, sum(len(part) for part in parts), repeats, bins), value)
    start = 0
    for part in parts:
        out[0, start : start + len(part), : part.shape[1], : part.shape[2]] = part
        start += len(part)
    return out


def _check_something_left(n_bins: int, skip: int, what: str) -> None:
    """Raise when the warm-up covers a whole clip."""
    if n_bins <= skip:
        raise ValueError(
            f"warmup_ms covers {skip} bins, but {what} has only {n_bins}: nothing is left to fit or to "
            "score; pass a shorter warmup_ms, or leave the clip out with dataset.select"
        )


# ---- clips kept in memory


class ByteBudget:
    """An allowance of bytes that is spent until nothing is left."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {max_bytes}")
        self.left = int(max_bytes)

    def take(self, tensor: Tensor) -> bool:
        """Spend the size of a tensor and return True, or return False when that much is not left."""
        n_bytes = tensor.numel() * tensor.element_size()
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True


class ClipStore:
    """Clips of one recording as a fit needs them, read once and kept on the device while the budget lasts."""

    def __init__(self, dataset: NeuralDataset, settings: FeedSettings, skip: int, budget: ByteBudget) -> None:
        self.dataset = dataset
        self.skip = skip
        self._settings = settings
        self._budget = budget
        self._stims: dict[int, Tensor] = {}
        # the target, and where bins are missing each row's number of valid ones
        self._targets: dict[int, tuple[Tensor, Tensor | None]] = {}
        # of the clips in work: responses, and targets that are not kept
        self._read: dict[int, Tensor] = {}
        self._working: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._shares: bool | None = None  # stimuli are those of the dataset itself: keeping them is free
        n_pairs = sum(clip.heard.size for clip in dataset.response_storage.clips)
        most = len(dataset) * dataset.N_neurons
        self.has_pairs = settings.takes_pairs and n_pairs < SPARSE_SHARE * most

    def stimulus_length(self, clip: int) -> int:
        """Frames or samples of a clip's stimulus."""
        return self.dataset.stimulus_bins(clip) * self.dataset.samples_per_bin

    def read_stimulus(self, clip: int) -> Tensor:
        """(1, F, T) or (1, T_audio) on the device, read anew."""
        return self.dataset.shared_stimulus(clip).to(self._settings.device, self._settings.dtype)

    def stimulus(self, clip: int) -> Tensor:
        """(1, F, T) or (1, T_audio) on the device, kept."""
        kept = self._stims.get(clip)
        if kept is None:
            kept = self.read_stimulus(clip)
            if self._shares is None:
                self._shares = kept is self.dataset.shared_stimulus(clip)
            free = self._shares and kept is self.dataset.shared_stimulus(clip)
            if free or self._budget.take(kept):
                self._stims[clip] = kept
        return kept

    def work_on(self, clips: Sequence[int]) -> None:
        """Let go of the responses of all other clips; read the targets of short ones at once."""
        self._read = {clip: self._read[clip] for clip in clips if clip in self._read}
        self._working = {clip: self._working[clip] for clip in clips if clip in self._working}
        if self.has_pairs:
            return
        new = [clip for clip in dict.fromkeys(clips) if clip not in self._targets]
        new = [clip for clip in new if clip not in self._working and clip not in self._read]
        for some, block in self.dataset.response_stacks(new) if len(new) > 1 else ():
            _check_something_left(block.shape[-1], self.skip, f"clip {some[0]}")
            values = block[..., self.skip :].to(self._settings.device, self._settings.dtype)
            self._read.update(zip(some, values.unbind(), strict=True))
            targets = psth(values) if self._settings.psth_targets else values
            kept = self._targets if self._budget.take(targets) else self._working
            if kept is self._targets and targets.untyped_storage().nbytes() > targets.nbytes:
                targets = targets.clone()
            complete = self._is_complete(targets)
            for clip, target in zip(some, targets.unbind(), strict=True):
                kept[clip] = (target, None if complete else self._counts(target))

    def neurons(self, clip: int) -> Tensor:
        """(H,) neurons that were recorded for a clip, the rows of its responses where there are pairs."""
        return torch.from_numpy(self.dataset.response_storage.clips[clip].heard).to(self._settings.device)

    def responses(self, clip: int) -> Tensor:
        """(N, R, T), or (H, R, T) of pairs, on the device, without the warm-up; held until `work_on`."""
        # Loss and scores need the same clip one after the other, and smoothing it takes a while.
        found = self._read.get(clip)
        if found is None:
            if self._may_be_long(clip) and len(self.dataset.pieces(clip)) > 1:
                # block, target, prediction and its gradient
                values = self.dataset.n_bins(clip) * self.dataset.N_neurons * 4.0
                check_memory(
                    4 * values,
                    f"one batch of clip {clip} ({self.dataset.n_bins(clip):,} bins; "
                    "deepSTRF.datasets.windows(ds, length_s=..., context_ms=...) makes shorter ones)",
                )
            dataset = self.dataset
            block = dataset.recorded_block(clip)[1] if self.has_pairs else dataset.response_block(clip)
            _check_something_left(block.shape[-1], self.skip, f"clip {clip}")
            found = block[..., self.skip :].to(self._settings.device, self._settings.dtype)
            self._read[clip] = found
        return found

    def _may_be_long(self, clip: int) -> bool:
        responses = self.dataset.response_storage.clips[clip]
        return responses.n_bins * responses.max_repeats * self.dataset.N_neurons > SURELY_WHOLE

    def target(self, clip: int) -> tuple[Tensor, Tensor | None]:
        """What the loss compares with, (N, 1 or R, T), or (H, 1 or R, T) of pairs, and its `valid_counts`.

        No counts where no bin is missing.
        """
        kept = self._targets.get(clip) or self._working.get(clip)
        if kept is None:
            target = self.responses(clip)
            if self._settings.psth_targets:
                target = psth(target)
            kept = (target, None if self._is_complete(target) else self._counts(target))
            if self._budget.take(target):
                # a crop would keep the whole block alive
                whole = target.untyped_storage().nbytes() == target.nbytes
                kept = kept if whole else (target.clone(), kept[1])
                self._targets[clip] = kept
        return kept

    def _is_complete(self, target: Tensor) -> bool:
        """Whether it is known that no bin is missing: on a GPU the question would stall the queue."""
        return target.device.type == "cpu" and bool(torch.isfinite(target.sum()))

    def _counts(self, target: Tensor) -> Tensor:
        return valid_counts(target.unsqueeze(0), counts_repeats=self._settings.counts_repeats)

    def weights(self, targets: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Number of valid bins of the targets of a batch: of each neuron (N,), or of each pair (P,)."""
        first = targets[0][0]

        def complete(target: Tensor) -> int:
            return target.shape[-1] * (target.shape[1] if self._settings.counts_repeats else 1)

        if not self.has_pairs and all(counts is None for _, counts in targets):
            total = sum(complete(target) for target, _ in targets)
            return first.new_full((first.shape[0],), total, dtype=torch.float32)
        every = [
            target.new_full((target.shape[0],), complete(target), dtype=torch.float32)
            if counts is None
            else counts
            for target, counts in targets
        ]
        if self.has_pairs:
            return torch.cat(every)
        return every[0] if len(every) == 1 else torch.stack(every).sum(dim=0)

    def contexts(self, clips: Sequence[int]) -> tuple[int, ...]:
        """Bins of each clip after the warm-up that belong to the window before; empty where none do."""
        storage = self.dataset.response_storage.clips
        found = tuple(max(0, storage[clip].context - self.skip) for clip in clips)
        return found if any(found) else ()

    def repeats(self, clip: int) -> Tensor:
        """(N, R, T) or (H, R, T): the kept target where that is what there is to read, else read anew."""
        once = self.dataset.response_storage.clips[clip].max_repeats <= 1
        if clip not in self._read and (once or not self._settings.psth_targets):
            return self.target(clip)[0]
        return self.responses(clip)


class DirectSource:
    """Batches made from a `ClipStore`, in the order and with the random draws of the loader."""

    stable = True
    note = "clips kept in memory"

    def __init__(
        self, clips: ClipLoader, store: ClipStore, feed: FrontEndFeed | None, share: Share | None = None
    ) -> None:
        self._clips = clips
        self._store = store
        self._feed = feed
        self._share = share or Share()

    def __iter__(self) -> Iterator[Batch]:
        feed = self._open_feed()
        for own, joint in self._share.of(self._clips):
            together = [clip for clips in joint for clip in clips]
            batch = self._batch(together[:1] if own is None else own, feed, together)
            yield batch if own is not None else stand_in(batch)

    def open_pass(self) -> Callable[[Sequence[int]], Batch]:
        """Begin a pass in an order of one's own; the function returns the batch of some clips."""
        feed = self._open_feed()
        return lambda clips: self._batch(clips, feed, clips)

    def _open_feed(self) -> FrontEndFeed | None:
        """The cache, where this pass may use it."""
        if self._feed is None:
            return None
        first = self._clips.clips[0]
        usable = self._feed.begin_pass(lambda: self._store.read_stimulus(first).unsqueeze(0))
        return self._feed if usable else None

    def _batch(self, clips: Sequence[int], feed: FrontEndFeed | None, together: Sequence[int]) -> Batch:
        """Batch of some clips, as long as the longest of those that are trained on ``together``."""
        store = self._store
        store.work_on(clips)
        found = [store.target(clip) for clip in clips]
        targets = [target for target, _ in found]
        pairs = None
        if store.has_pairs:
            heard = [store.neurons(clip) for clip in clips]
            items = torch.arange(len(clips)).repeat_interleave(torch.tensor([len(one) for one in heard]))
            pairs = Pairs(items.to(heard[0].device), torch.cat(heard), store.dataset.N_neurons)
        padded = len(together) > len(clips)  # beyond the longest of its own
        longest = max(store.stimulus_length(clip) for clip in together) if padded else 0
        if feed is None:
            inputs = stack_padded([store.stimulus(clip) for clip in clips], 0.0, longest)
        else:
            inputs = self._spectrograms(clips, feed, longest)
        bins = max(store.dataset.n_bins(clip) for clip in together) - store.skip if padded else 0
        return Batch(
            inputs=inputs,
            is_spectrogram=feed is not None,
            targets=stack_padded(targets, torch.nan, bins)
            if pairs is None
            else cat_padded(targets, torch.nan),
            weights=store.weights(found),
            keys=tuple(clips),
            lengths=tuple(target.shape[-1] for target in targets),
            skip=store.skip,
            responses=lambda item: store.repeats(clips[item]),
            contexts=store.contexts(clips),
            extras={"stim_meta": [store.dataset.stim_meta[clip] for clip in clips]},
            pairs=pairs,
        )

    def _spectrograms(self, clips: Sequence[int], feed: FrontEndFeed, longest: int = 0) -> Tensor:
        # The front-end is given the sound as padded in its batch: its last frames may depend on the padding.
        store = self._store
        longest = max(longest, *(store.stimulus_length(clip) for clip in clips))

        def padded(clip: int) -> Tensor:
            stimulus = store.read_stimulus(clip)
            return functional.pad(stimulus, (0, longest - stimulus.shape[-1]))

        parts = []
        for clip in clips:
            fingerprint = store.dataset.fingerprint(clip)
            parts.append(feed.spectrogram(fingerprint, longest, lambda clip=clip: padded(clip)))  # type: ignore[misc]
        return stack_padded(parts, 0.0)

    def stimuli(self) -> Iterator[Tensor]:
        """Every clip's stimulus once, of spectrograms without the context of windows."""
        dataset, clips = self._store.dataset, self._clips.one_pass()
        if any(dataset.context_bins(clip) for clip in clips) and dataset.samples_per_bin > 1:
            return (dataset.stims[clip] for clip in clips)
        return dataset.scored_stimuli(clips)

    def spectrograms(self) -> Iterator[Tensor] | None:
        """Spectrograms of `stimuli` from the front-end's cache; None where batches pad clips in it."""
        feed = self._open_feed() if self._clips.loader.batch_size == 1 else None
        return (
            None
            if feed is None
            else (
                self._spectrograms((clip,), feed)[..., self._store.dataset.context_bins(clip) :]
                for clip in self._clips.one_pass()
            )
        )

    def psths(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Every clip's PSTH once."""
        store = self._store
        for clip in self._read_once():
            target = store.target(clip)[0]
            average = target if target.shape[1] == 1 else psth(target)
            yield average, store.neurons(clip) if store.has_pairs else None

    def _read_once(self) -> Iterator[int]:
        """The clips of one pass, which the store works on a few together."""
        window: list[int] = []
        values = 0
        for clip in (clips := self._clips.one_pass()):
            window.append(clip)
            values += self._store.dataset.response_storage.clips[clip].data.size
            if values >= VALUES_TOGETHER or clip == clips[-1]:
                self._store.work_on(window)
                yield from window
                window, values = [], 0

    def describe(self) -> str:
        """Number of clips and a hash of their stimuli and targets."""
        digest, store = hashlib.sha256(), self._store
        clips = self._clips.one_pass()
        for clip in self._read_once():
            digest.update(store.dataset.fingerprint(clip).encode())
            target = store.target(clip)[0].detach()
            if store.has_pairs:  # the hash is that of all neurons, however batches hold them
                every = target.new_full((store.dataset.N_neurons, *target.shape[1:]), torch.nan)
                target = every.index_copy(0, store.neurons(clip), target)
            target = target.cpu().contiguous()
            digest.update(str(tuple(target.shape)).encode())
            digest.update(target.flatten().view(torch.uint8).numpy().tobytes())
        return f"{len(clips)} clips [{digest.hexdigest()[:HASH_LENGTH]}]"


# ---- a loader iterated as it is


class LoaderSource:
    """Batches as the loader collates them, moved to the device."""

    stable = False

    def __init__(self, loader: Loader, settings: FeedSettings, skip: int, reason: str) -> None:
        self._loader = loader
        self._settings = settings
        self._skip = skip
        self.note = f"loader iterated as it is: {reason}"

    def __iter__(self) -> Iterator[Batch]:
        served = 0
        for own, joint in self._settings.share.of(self._loader):
            if len(joint) == 1 and own is not None:
                made = self._batch(own, served)
                served += len(made.keys)
                yield made
                continue
            batches = []
            for batch in joint:
                batches.append(self._batch(batch, served))
                served += len(batches[-1].keys)
            made = batches[self._settings.share.rank if own is not None else 0]
            longest, bins = (
                max(getattr(batch, name).shape[-1] for batch in batches) for name in ("inputs", "targets")
            )
            made = replace(
                made,
                inputs=functional.pad(made.inputs, (0, longest - made.inputs.shape[-1])),
                targets=functional.pad(made.targets, (0, bins - made.targets.shape[-1]), value=torch.nan),
            )
            yield made if own is not None else stand_in(made)

    def _batch(self, batch: Any, served: int) -> Batch:
        if not isinstance(batch, Mapping) or not {"stims", "responses"} <= set(batch):
            got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(
                f"a loader must yield dictionaries with 'stims' and 'responses', got {got}; "
                "pass collate_fn=neural_collate to the DataLoader"
            )
        settings = self._settings
        if not (isinstance(batch["responses"], Tensor) and isinstance(batch["stims"], Tensor)):
            raise TypeError(
                "a batch must hold tensors 'stims' and 'responses' (B, N, R, T), got "
                f"{type(batch['responses']).__name__}; pass collate_fn=neural_collate to the DataLoader"
            )
        responses = batch["responses"].to(settings.device, settings.dtype)
        if responses.dim() != 4:
            raise ValueError(f"batch['responses'] must be (B, N, R, T), got {tuple(responses.shape)}")
        _check_something_left(responses.shape[-1], self._skip, "a batch")
        responses = responses[..., self._skip :]
        targets = psth(responses) if settings.psth_targets else responses
        recorded = (~responses.isnan()).any(dim=2).any(dim=1)  # (B, T)
        bins = torch.arange(1, recorded.shape[1] + 1, device=recorded.device)
        return Batch(
            inputs=batch["stims"].to(settings.device, settings.dtype),
            is_spectrogram=False,
            targets=targets,
            weights=valid_counts(targets, counts_repeats=settings.counts_repeats),
            keys=tuple(("item", served + item) for item in range(responses.shape[0])),
            lengths=tuple((recorded * bins).amax(dim=1).tolist()),  # up to the last recorded bin
            skip=self._skip,
            responses=lambda item: responses[item],
            extras={key: value for key, value in batch.items() if key not in ("stims", "responses")},
        )

    def stimuli(self) -> Iterator[Tensor]:
        """Every item's stimulus once, read from the loader's data set."""
        dataset: Any = self._loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                "the model has standardize=True and the training data can only be iterated; measure the "
                "standardisation before the fit with model.fit_standardization(stimuli)"
            )
        recording, clips = recording_behind(self._loader)
        hidden = 0
        if isinstance(recording, NeuralDataset) and recording.samples_per_bin == 1:  # context of windows
            order = range(len(recording)) if clips is None else clips
            hidden = max(recording.context_bins(clip) for clip in order)
        if not hidden:
            return (item["stims"] for item in self._items(dataset))
        pairs = zip(order, self._items(dataset), strict=True)
        return (item["stims"][..., recording.context_bins(clip) :] for clip, item in pairs)

    def _items(self, dataset: Any) -> Iterator[Any]:
        """Every item once; a data set of the user's own may draw random numbers for it."""
        for index in range(len(dataset)):
            with preserved_random_state(generators_of(self._loader)):
                item = dataset[index]
            yield item

    def spectrograms(self) -> None:
        """None: nothing is kept."""

    def psths(self) -> Iterator[tuple[Tensor, None]]:
        """Every item's PSTH once, read from the loader's data set; none where it can only be iterated."""
        dataset: Any = self._loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            return
        for item in self._items(dataset):
            if not isinstance(item, Mapping) or "responses" not in item:
                return
            responses = neural_collate([dict(item)])["responses"][0, :, :, self._skip :]
            yield psth(responses.to(self._settings.device, self._settings.dtype)), None

    def describe(self) -> str:
        """Nothing can be read without iterating the loader."""
        return "clips of a loader"
