"""Feeding a fit: straight from memory where the loader is understood, else through the loader itself.

Both ways give the same batches in the same order, so a fit ends with the same weights. The direct way reads
each clip once, keeps its stimulus and its target on the device, and lets the front-end cache replace the
stimulus.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import NeuralDataset
from deepSTRF.metrics import psth
from deepSTRF.training.batches import Batch, BatchSource, valid_counts
from deepSTRF.training.caching import ByteBudget
from deepSTRF.training.front_end import FrontEndFeed
from deepSTRF.training.loaders import ClipLoader, read_loader
from deepSTRF.training.losses import LossTraits

__all__ = ["ClipStore", "DirectSource", "FeedSettings", "LoaderSource", "make_source", "warmup_bins"]

#: What a batch of `neural_collate` holds; an item with more needs its loader.
KNOWN_KEYS = {"stims", "responses", "valid_mask", "stim_meta"}


@dataclass(frozen=True)
class FeedSettings:
    """What a source needs to know of the fit.

    Attributes
    ----------
    device : torch.device
        Where the model is.
    dtype : torch.dtype
        Its floating type.
    traits : LossTraits
        What the loss needs.
    warmup_ms : float
        Onset of each clip that takes no part in loss and scores.

    Examples
    --------
    >>> FeedSettings(torch.device("cpu"), torch.float32, LossTraits(True, True, False), 0.0).warmup_ms
    0.0
    """

    device: torch.device
    dtype: torch.dtype
    traits: LossTraits
    warmup_ms: float


def warmup_bins(warmup_ms: float, loader: DataLoader[Any]) -> int:
    """Return how many bins the warm-up covers, rounded up, by the bin width of the loader's data set.

    Parameters
    ----------
    warmup_ms : float
        Length in ms.
    loader : DataLoader
        A loader over a data set (or subsets of one) with a bin width ``dt``.

    Returns
    -------
    int
        Bins.

    Raises
    ------
    ValueError
        When a warm-up is asked for and the data set has no ``dt``.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> warmup_bins(12.0, DataLoader(SyntheticDataset(n_neurons=1, n_clips=2, n_repeats=1, dt_ms=5.0)))
    3
    """
    if warmup_ms == 0:
        return 0
    dataset: Any = loader.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    dt = getattr(dataset, "dt", None)
    if dt is None:
        raise ValueError(
            f"warmup_ms={warmup_ms} needs the bin width, but the loader's {type(dataset).__name__} has no "
            "attribute dt (ms); set it, or cut the onset in your collate function"
        )
    return math.ceil(
        warmup_ms / float(dt) - 1e-9
    )  # 1e-9: 15 ms are exactly 3 bins of 5 ms whatever the rounding


def make_source(
    loader: DataLoader[Any],
    settings: FeedSettings,
    *,
    fast: bool,
    feed: FrontEndFeed | None,
    budget: ByteBudget,
) -> BatchSource:
    """Return the quickest source that serves what ``loader`` would.

    Parameters
    ----------
    loader : DataLoader
        The loader the user gave.
    settings : FeedSettings
        Device, type, loss and warm-up of the fit.
    fast : bool
        False always iterates the loader itself.
    feed : FrontEndFeed or None
        Cache of spectrograms; None always gives the stimuli.
    budget : ByteBudget
        Bytes of clips that may stay on the device.

    Returns
    -------
    BatchSource
        Iterable over batches, once per pass.

    Examples
    --------
    >>> from deepSTRF.datasets import neural_collate
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training.caching import FrontEndCache
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> source = make_source(
    ...     DataLoader(ds, collate_fn=neural_collate),
    ...     FeedSettings(torch.device("cpu"), torch.float32, LossTraits(True, True, False), 0.0), fast=True,
    ...     feed=FrontEndFeed(Linear(ds.F, 3, 2), FrontEndCache(), "cpu"), budget=ByteBudget(10**9))
    >>> [batch.keys for batch in source], next(iter(source)).targets.shape[:3]
    ([(0,), (1,), (2,)], torch.Size([1, 2, 1]))
    """
    skip = warmup_bins(settings.warmup_ms, loader)
    found = read_loader(loader) if fast else "fast=False"
    if isinstance(found, ClipLoader):
        extra = set(found.dataset[found.clips[0]]) - KNOWN_KEYS if found.clips else set()
        if not extra:
            return DirectSource(found, ClipStore(found.dataset, settings, skip, budget), feed)
        found = f"its items have further keys: {', '.join(sorted(extra))}"
    return LoaderSource(loader, settings, skip, found)


class ClipStore:
    """Clips of one recording as a fit needs them, read once and kept on the device while the budget lasts.

    Parameters
    ----------
    dataset : NeuralDataset
        The recording.
    settings : FeedSettings
        Device, type and loss of the fit.
    skip : int
        Bins of warm-up.
    budget : ByteBudget
        Bytes that may be kept.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> settings = FeedSettings(torch.device("cpu"), torch.float32, LossTraits(True, True, False), 0.0)
    >>> store = ClipStore(ds, settings, 0, ByteBudget(10**9))
    >>> target, weights = store.target(1)
    >>> tuple(target.shape) == (2, 1, ds.n_bins(1)), tuple(weights.shape)
    (True, (2,))
    """

    def __init__(self, dataset: NeuralDataset, settings: FeedSettings, skip: int, budget: ByteBudget) -> None:
        self.dataset = dataset
        self.skip = skip
        self._settings = settings
        self._budget = budget
        self._stims: dict[int, Tensor] = {}
        self._targets: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}
        self._last: tuple[int, Tensor] | None = None

    def stimulus_length(self, clip: int) -> int:
        """Frames or samples of a clip's stimulus."""
        if clip not in self._lengths:
            self._lengths[clip] = int(self.dataset.stims[clip].shape[-1])
        return self._lengths[clip]

    def read_stimulus(self, clip: int) -> Tensor:
        """(1, F, T) or (1, T_audio) on the device, read anew."""
        return self.dataset.stims[clip].to(self._settings.device, self._settings.dtype)

    def stimulus(self, clip: int) -> Tensor:
        """(1, F, T) or (1, T_audio) on the device, kept."""
        kept = self._stims.get(clip)
        if kept is None:
            kept = self.read_stimulus(clip)
            if self._budget.take(kept.numel() * kept.element_size()):
                self._stims[clip] = kept
        return kept

    def responses(self, clip: int) -> Tensor:
        """(N, R, T) on the device, without the warm-up; the clip read last costs nothing."""
        # Loss and scores ask for the same clip one after the other, and smoothing it takes a while.
        if self._last is None or self._last[0] != clip:
            block = self.dataset.response_block(clip)
            _check_something_left(block.shape[-1], self.skip, f"clip {clip}")
            block = block[..., self.skip :].to(self._settings.device, self._settings.dtype)
            self._last = (clip, block)
        return self._last[1]

    def target(self, clip: int) -> tuple[Tensor, Tensor]:
        """What the loss compares with, (N, 1 or R, T), and each neuron's number of valid bins (N,)."""
        kept = self._targets.get(clip)
        if kept is None:
            target = self.responses(clip)
            if self._settings.traits.accepts_psth:
                target = psth(target)
            weights = valid_counts(target.unsqueeze(0), counts_repeats=self._settings.traits.counts_repeats)
            kept = (target, weights)
            if self._budget.take(target.numel() * target.element_size()):
                self._targets[clip] = kept
        return kept

    def repeats(self, clip: int) -> Tensor:
        """(N, R, T) on the device: the kept target where that is what the loss uses, else read anew."""
        return self.responses(clip) if self._settings.traits.accepts_psth else self.target(clip)[0]


class DirectSource:
    """Batches made from a `ClipStore`, in the order and with the random draws of the loader.

    Parameters
    ----------
    clips : ClipLoader
        Which clips, batch by batch.
    store : ClipStore
        Where they are.
    feed : FrontEndFeed or None
        Cache of spectrograms.

    Examples
    --------
    >>> DirectSource.stable  # a clip has the same key in every pass
    True
    """

    stable = True
    note = "clips kept in memory"

    def __init__(self, clips: ClipLoader, store: ClipStore, feed: FrontEndFeed | None) -> None:
        self.clips = clips
        self.store = store
        self._feed = feed

    def __iter__(self) -> Iterator[Batch]:
        feed = self._feed
        if feed is not None:
            first = self.clips.clips[0]
            if not feed.begin_pass(lambda: self.store.read_stimulus(first).unsqueeze(0)):
                feed = None
        for clips in self.clips:
            yield self._batch(clips, feed)

    def _batch(self, clips: tuple[int, ...], feed: FrontEndFeed | None) -> Batch:
        targets, weights = zip(*[self.store.target(clip) for clip in clips], strict=True)
        return Batch(
            inputs=self._stimuli(clips) if feed is None else self._spectrograms(clips, feed),
            is_spectrogram=feed is not None,
            targets=_stack(targets, torch.nan),
            weights=weights[0] if len(weights) == 1 else torch.stack(weights).sum(dim=0),
            keys=clips,
            lengths=tuple(target.shape[-1] for target in targets),
            skip=self.store.skip,
            responses=lambda item: self.store.repeats(clips[item]),
            extras={"stim_meta": [self.store.dataset.stim_meta[clip] for clip in clips]},
        )

    def _stimuli(self, clips: tuple[int, ...]) -> Tensor:
        return _stack([self.store.stimulus(clip) for clip in clips], 0.0)

    def _spectrograms(self, clips: tuple[int, ...], feed: FrontEndFeed) -> Tensor:
        # The front-end sees the sound as padded in its batch: its last frames may reach into the padding.
        longest = max(self.store.stimulus_length(clip) for clip in clips)
        fingerprint = self.store.dataset.fingerprint
        return _stack(
            [
                feed.spectrogram(fingerprint(clip), longest, functools.partial(self._padded, clip, longest))
                for clip in clips
            ],
            0.0,
        )

    def _padded(self, clip: int, length: int) -> Tensor:
        stimulus = self.store.read_stimulus(clip)
        return torch.nn.functional.pad(stimulus, (0, length - stimulus.shape[-1]))


def _stack(parts: list[Tensor] | tuple[Tensor, ...], value: float) -> Tensor:
    """Stack tensors that may differ on the last two axes, padding on the right; one alone costs no copy."""
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    if all(part.shape == parts[0].shape for part in parts):
        return torch.stack(list(parts))
    shape = [max(part.shape[axis] for part in parts) for axis in range(parts[0].dim())]
    out = parts[0].new_full((len(parts), *shape), value)
    for item, part in enumerate(parts):
        out[item][tuple(slice(0, size) for size in part.shape)] = part
    return out


class LoaderSource:
    """Batches as the loader collates them, moved to the device.

    Parameters
    ----------
    loader : DataLoader
        Yields dictionaries with 'stims' and 'responses' (B, N, R, T).
    settings : FeedSettings
        Device, type and loss of the fit.
    skip : int
        Bins of warm-up.
    reason : str
        Why the loader is iterated.

    Examples
    --------
    >>> LoaderSource.stable
    False
    """

    stable = False

    def __init__(self, loader: DataLoader[Any], settings: FeedSettings, skip: int, reason: str) -> None:
        self._loader = loader
        self._settings = settings
        self._skip = skip
        self.note = f"loader iterated as it is: {reason}"

    def __iter__(self) -> Iterator[Batch]:
        served = 0
        for batch in self._loader:
            made = self._batch(batch, served)
            served += len(made.keys)
            yield made

    def _batch(self, batch: Any, served: int) -> Batch:
        if not isinstance(batch, Mapping) or not {"stims", "responses"} <= set(batch):
            got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(
                f"a loader must yield dictionaries with 'stims' and 'responses', got {got}; "
                "pass collate_fn=neural_collate to the DataLoader"
            )
        settings = self._settings
        responses = batch["responses"].to(settings.device, settings.dtype)
        if responses.dim() != 4:
            raise ValueError(f"batch['responses'] must be (B, N, R, T), got {tuple(responses.shape)}")
        _check_something_left(responses.shape[-1], self._skip, "a batch")
        responses = responses[..., self._skip :]
        targets = psth(responses) if settings.traits.accepts_psth else responses
        return Batch(
            inputs=batch["stims"].to(settings.device, settings.dtype),
            is_spectrogram=False,
            targets=targets,
            weights=valid_counts(targets, counts_repeats=settings.traits.counts_repeats),
            keys=tuple(("item", served + item) for item in range(responses.shape[0])),
            lengths=_recorded_lengths(responses),
            skip=self._skip,
            responses=lambda item: responses[item],
            extras={key: value for key, value in batch.items() if key not in ("stims", "responses")},
        )


def _recorded_lengths(responses: Tensor) -> tuple[int, ...]:
    """Bins up to the last one in which anything of an item (B, N, R, T) was recorded."""
    recorded = (~responses.isnan()).any(dim=2).any(dim=1)  # (B, T)
    bins = torch.arange(1, recorded.shape[1] + 1, device=recorded.device)
    return tuple((recorded * bins).amax(dim=1).tolist())


def _check_something_left(n_bins: int, skip: int, what: str) -> None:
    """Raise when the warm-up swallows a whole clip."""
    if n_bins <= skip:
        raise ValueError(
            f"warmup_ms covers {skip} bins, but {what} has only {n_bins}: nothing is left to fit or to "
            "score; pass a shorter warmup_ms, or leave the clip out with dataset.select"
        )
