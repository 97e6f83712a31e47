"""Feeding a fit: straight from memory where the loader is understood, else through the loader itself.

Both ways give the same batches in the same order, so a fit ends with the same weights. The direct way reads
each clip once, keeps its stimulus and its target on the device, and lets the front-end cache replace the
stimulus.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from deepSTRF._validation import check_not_empty
from deepSTRF.datasets import NeuralDataset, neural_collate
from deepSTRF.metrics import psth
from deepSTRF.models import NeuralModel
from deepSTRF.models.configurable import Configurable
from deepSTRF.training.seeds import make_generator, preserved_random_state

__all__ = [
    "Batch",
    "BatchSource",
    "ByteBudget",
    "ClipLoader",
    "ClipStore",
    "DirectSource",
    "FeedSettings",
    "FrontEndCache",
    "FrontEndFeed",
    "LoaderSource",
    "LossMeter",
    "LossTraits",
    "front_end_key",
    "generators_of",
    "gives_the_same_twice",
    "loss_traits",
    "make_loaders",
    "make_source",
    "mean_over_neurons",
    "read_loader",
    "valid_counts",
    "warmup_bins",
]

# ------------------------------------------------------------------------------
# One batch as the fit sees it, whichever way it was made.


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the fit's device, the warm-up already cut from its targets.

    Attributes
    ----------
    inputs : Tensor
        Stimuli (B, 1, F, T) or (B, 1, T_audio); or, where ``is_spectrogram``, what the model's front-end
        makes of them.
    is_spectrogram : bool
        ``inputs`` have been through the front-end (they come from the cache) and go to ``model.respond``.
    targets : Tensor
        What the loss compares with: the PSTH (B, N, 1, T) or the repeats (B, N, R, T), NaN where nothing was
        recorded.
    weights : Tensor
        (N,) valid bins (or bins and repeats) of each neuron in this batch.
    keys : tuple
        One key per item, the same in every epoch where ``stable``: the clip's number in the data set.
    lengths : tuple of int
        Bins per item that belong to the clip (the rest is padding).
    skip : int
        Bins of warm-up that the targets lack and that are cut from the prediction.
    responses : callable
        ``responses(i)`` gives item i's (N, R, T) repeats, read only where a metric needs them.
    extras : mapping
        What else the loader's batch holds: 'stim_meta' (a list of dictionaries), and with a collate function
        of your own whatever it adds.

    Examples
    --------
    >>> batch = Batch(torch.zeros(1, 1, 4, 9), False, torch.zeros(1, 2, 1, 9), torch.full((2,), 9.0),
    ...               (0,), (9,), 0, lambda item: torch.zeros(2, 5, 9))
    >>> batch.responses(0).shape
    torch.Size([2, 5, 9])
    """

    inputs: Tensor
    is_spectrogram: bool
    targets: Tensor
    weights: Tensor
    keys: tuple[Hashable, ...]
    lengths: tuple[int, ...]
    skip: int
    responses: Callable[[int], Tensor]
    extras: Mapping[str, Any] = field(default_factory=dict)


class BatchSource(Protocol):
    """Where a pass over the data gets its batches."""

    #: True when a clip has the same key in every pass, so that what depends on it alone can be kept.
    stable: bool
    #: One phrase on how the data are fed, for people who wonder about speed.
    note: str

    def __iter__(self) -> Iterator[Batch]: ...


def valid_counts(targets: Tensor, *, counts_repeats: bool) -> Tensor:
    """Return how many values of each neuron the loss will average over.

    Shapes: targets (B, N, R, T); returns (N,).

    Examples
    --------
    >>> targets = torch.tensor([[[[1.0, float("nan")], [2.0, float("nan")]]]])
    >>> valid_counts(targets, counts_repeats=False), valid_counts(targets, counts_repeats=True)
    (tensor([1.]), tensor([2.]))
    """
    valid = ~targets.isnan()
    if not counts_repeats and valid.shape[2] > 1:
        valid = valid.any(dim=2, keepdim=True)
    return valid.sum(dim=(0, 2, 3)).to(torch.float32)


# ------------------------------------------------------------------------------
# How a fit calls a loss function, and how it sums the loss over batches of unequal size.
#
# ``train_loss`` and ``val_loss`` are the same quantity: the mean over neurons of each neuron's mean loss over
# all its valid bins of the pass, as if the pass were one long recording. (A mean of batch means would weigh a
# short clip like a long one.)


@dataclass(frozen=True)
class LossTraits:
    """What a fit may assume about a loss function.

    Attributes
    ----------
    accepts_psth : bool
        The loss gives the same value on a PSTH (B, N, 1, T) as on the repeats (B, N, R, T) behind it, so the
        PSTH is computed once and kept.
    per_neuron : bool
        ``reduction="none"`` gives one value per neuron, (N,).
    counts_repeats : bool
        A neuron's loss is a mean over bins and repeats, not over bins.

    Examples
    --------
    >>> LossTraits(accepts_psth=True, per_neuron=True, counts_repeats=False).per_neuron
    True
    """

    accepts_psth: bool
    per_neuron: bool
    counts_repeats: bool


def loss_traits(loss_fn: Callable[..., Tensor]) -> LossTraits:
    """Read a loss function's traits from its attributes and arguments.

    The losses of `deepSTRF.metrics` carry the attribute ``accepts_psth`` and take ``reduction``. A function
    of your own is called as ``loss_fn(pred, responses)`` and returns a scalar or one value per neuron (N,);
    set ``my_loss.accepts_psth = True`` on it when the PSTH is all it needs.

    Examples
    --------
    >>> def my_loss(pred, responses):
    ...     return (pred - responses).square().mean()
    >>> loss_traits(my_loss)
    LossTraits(accepts_psth=False, per_neuron=False, counts_repeats=False)
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(pred, responses), got {type(loss_fn).__name__}")
    base: Any = loss_fn
    keywords: dict[str, Any] = {}
    while isinstance(base, functools.partial):
        keywords = {**base.keywords, **keywords}
        base = base.func
    declared = getattr(loss_fn, "accepts_psth", getattr(base, "accepts_psth", None))
    by_repeats = keywords.get("weighting", "bins") == "repeats"
    # With its constant term a likelihood is a function of single repeats, not of their mean.
    needs_repeats = by_repeats or bool(keywords.get("full"))
    takes_reduction = "reduction" in _parameter_names(base) and "reduction" not in keywords
    return LossTraits(
        accepts_psth=bool(declared) and not needs_repeats,
        # Only the losses that declare themselves are known to give (N,): torch's own give one value per bin.
        per_neuron=declared is not None and takes_reduction,
        counts_repeats=by_repeats,
    )


def _parameter_names(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-ins have no signature
        return set()


def mean_over_neurons(loss: Tensor, weights: Tensor) -> Tensor:
    """Return the scalar to differentiate: the mean over the neurons that have data in this batch.

    Shapes: loss (N,); weights (N,).

    Examples
    --------
    >>> import torch
    >>> mean_over_neurons(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([10.0, 10.0, 0.0]))
    tensor(2.)
    """
    if loss.dim() == 0:
        return loss
    if loss.shape != weights.shape:
        raise ValueError(
            f"the loss must be a scalar or one value per neuron ({weights.numel()},), got "
            f"{tuple(loss.shape)}; reduce it in loss_fn or compute_loss"
        )
    heard = weights > 0
    return torch.where(heard, loss, 0.0).sum() / heard.sum().clamp(min=1)


class LossMeter:
    """Sum a loss over the batches of a pass, on the device, without waiting for it.

    Examples
    --------
    >>> import torch
    >>> meter = LossMeter()
    >>> meter.add(torch.tensor([1.0, 5.0]), torch.tensor([100.0, 0.0]))
    >>> meter.add(torch.tensor([4.0, 2.0]), torch.tensor([50.0, 50.0]))
    >>> meter.result()
    2.0
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, loss: Tensor, weights: Tensor) -> None:
        """Add a batch: its loss, () or (N,), and each neuron's number of valid bins (N,)."""
        # Sums in double precision, which Apple's devices lack.
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        loss, weights = loss.detach().to(exact), weights.to(exact)
        weight = weights if loss.dim() else weights.sum()
        part = torch.where(weight > 0, loss * weight, 0.0)
        self._total = part if self._total is None else self._total + part
        self._weight = weight if self._weight is None else self._weight + weight

    def result(self) -> float:
        """Return the pass's loss; NaN when no neuron had data."""
        if self._total is None or self._weight is None:
            return math.nan
        heard = self._weight > 0
        if not bool(heard.any()):
            return math.nan
        return float((self._total[heard] / self._weight[heard]).mean())


# ------------------------------------------------------------------------------
# Outputs of front-ends that do not learn, computed once per sound and kept by content.
#
# The key of an entry is what determines it: the bytes of the stimulus, the length it was padded to, and the
# front-end's class, settings, parameters and buffers. A changed filterbank or a changed sound therefore never
# meets an old entry, and a cache may be shared by several fits.


#: Default size of a cache: 20 minutes of 34 bands at 5 ms take 33 MB.
DEFAULT_CACHE_BYTES = 512 * 2**20
#: Attributes that every torch module has: bookkeeping, no setting.
_BOOKKEEPING = frozenset(vars(nn.Module()))


class ByteBudget:
    """An allowance of bytes that is spent until nothing is left.

    Examples
    --------
    >>> budget = ByteBudget(10)
    >>> budget.take(8), budget.take(8), budget.take(2)
    (True, False, True)
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {max_bytes}")
        self.max_bytes = int(max_bytes)
        self.used = 0

    def take(self, n_bytes: int) -> bool:
        """Spend ``n_bytes`` and return True, or return False when they are not there."""
        if self.used + n_bytes > self.max_bytes:
            return False
        self.used += n_bytes
        return True


class FrontEndCache:
    """Spectrograms by content, up to a number of bytes; when it is full, further ones are computed each time.

    Pass one to several fits to share it (``fit_multi_seed`` does so by itself).

    Parameters
    ----------
    max_bytes : int
        Most bytes to hold.

    Attributes
    ----------
    hits, misses : int
        How often an entry was found, and how often it was not.

    Examples
    --------
    >>> import torch
    >>> cache = FrontEndCache(max_bytes=1000)
    >>> cache.get_or_compute("sound 1", lambda: torch.ones(2)).sum()
    tensor(2.)
    >>> cache.get_or_compute("sound 1", lambda: torch.zeros(2)).sum()
    tensor(2.)
    >>> cache.hits, cache.misses, cache.n_bytes
    (1, 1, 8)
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._budget = ByteBudget(max_bytes)
        self._entries: dict[Hashable, Tensor] = {}
        self.hits = 0
        self.misses = 0

    def get_or_compute(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the entry of ``key``; on a miss compute it, and keep it where there is room."""
        found = self._entries.get(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        value = compute()
        if self._budget.take(value.numel() * value.element_size()):
            self._entries[key] = value
        return value

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self._budget.used

    def clear(self) -> None:
        """Drop every entry and the counts."""
        self._entries.clear()
        self._budget = ByteBudget(self._budget.max_bytes)
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)


def front_end_key(module: nn.Module) -> tuple[Hashable, ...]:
    """Return a key that is equal for two front-ends only when they compute the same thing.

    It digests, for the module and everything in it, the class, the plain attributes, and the bytes of
    parameters and buffers. A module of a foreign class with an attribute that cannot be digested (a function,
    say) stands for itself alone: the key then holds the module, and another instance has another key.

    Examples
    --------
    >>> front_end_key(nn.Conv1d(1, 1, 3)) == front_end_key(nn.Conv1d(1, 1, 3))
    False
    >>> front_end_key(nn.Hardtanh(0, 1)) == front_end_key(nn.Hardtanh(0, 1))
    True
    """
    digest = hashlib.sha256()
    strangers: list[nn.Module] = []
    for name, part in module.named_modules():
        digest.update(f"|{name}:{type(part).__module__}.{type(part).__qualname__}".encode())
        complete = True
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _BOOKKEEPING:
                digest.update(f"|{attribute}=".encode())
                complete &= _digest(digest, value)
        if not complete and not isinstance(part, Configurable):
            strangers.append(part)
        tensors = itertools.chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
        for tensor_name, tensor in tensors:
            digest.update(f"|{tensor_name}=".encode())
            _digest(digest, tensor)
    return (digest.hexdigest(), *strangers)


def _digest(digest: Any, value: Any) -> bool:
    """Add a value to the digest; False when it is of a kind whose content cannot be read.

    Containers are digested to their end (``min``, not ``all``, which would stop at the first stranger).
    """
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.dtype | torch.device
    ):
        digest.update(repr(value).encode())
        return True
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        return True
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        return True
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda pair: repr(pair[0]))
        return min((_digest(digest, key) & _digest(digest, item) for key, item in items), default=True)
    if isinstance(value, list | tuple | set | frozenset):
        members = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return min((_digest(digest, item) for item in members), default=True)
    return False


def gives_the_same_twice(module: nn.Module, function: Callable[[Tensor], Tensor], sample: Tensor) -> bool:
    """Try whether a front-end gives the same output each time, in train mode as in eval mode.

    Dropout, added noise or a running normalisation answer no. Random states, mode flags and buffers are put
    back.

    Shapes: sample (B, 1, T_audio).

    Examples
    --------
    >>> dropout = nn.Dropout(0.5)
    >>> gives_the_same_twice(dropout, dropout, torch.ones(1, 1, 100))
    False
    >>> gives_the_same_twice(nn.ReLU(), nn.ReLU(), torch.ones(1, 1, 100))
    True
    """
    flags = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    outputs: list[Tensor] = []
    try:
        with torch.no_grad(), preserved_random_state():
            for mode in (True, True, False):
                module.train(mode)
                outputs.append(function(sample))
    finally:
        with torch.no_grad():
            for part, flag in flags:
                part.training = flag
            for buffer, before in buffers:
                if buffer.shape == before.shape:
                    buffer.copy_(before)
    return all(torch.equal(outputs[0], other) for other in outputs[1:])


# ------------------------------------------------------------------------------
# Loaders in, clips out: DataLoaders for views of a recording, and which clips a DataLoader serves.


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


# ------------------------------------------------------------------------------
# Whether a model's front-end may be computed once per sound, and the one place that does so.


class FrontEndFeed:
    """Serve a model's spectrograms from a cache, as long as its front-end does not learn.

    Kept out of the cache, and computed in every step as in a plain loop: front-ends with trainable
    parameters, those whose output differs from call to call (dropout in train mode, noise), modules with an
    attribute ``cacheable = False``, and models that are no `NeuralModel` or override ``forward`` or
    ``spectrogram``.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> feed = FrontEndFeed(Linear(n_frequency_bands=4, temporal_window_size=2), FrontEndCache(), "cpu")
    >>> feed.begin_pass(lambda: torch.zeros(1, 1, 4, 9))  # there is no front-end to save
    False
    """

    def __init__(self, model: nn.Module, cache: FrontEndCache, setting: str) -> None:
        self._model = model
        self._cache = cache
        self._setting = setting
        self._verdicts: dict[Hashable, bool] = {}
        self._key: Hashable = None

    def begin_pass(self, sample: Callable[[], Tensor]) -> bool:
        """Look at the front-end as it is now; return True when this pass may use the cache.

        ``sample`` gives a stimulus (1, 1, T_audio) to try it on, once.
        """
        if not _may_be_cached(self._model):
            return False
        model: NeuralModel = self._model  # type: ignore[assignment]
        key = self._present_key(model)
        if key not in self._verdicts:
            verdict = gives_the_same_twice(model.wav2spec, model.spectrogram, sample())
            key = self._present_key(model)  # a front-end may fill its buffers in its first call
            self._verdicts[key] = verdict
        self._key = key
        return self._verdicts[key]

    def _present_key(self, model: NeuralModel) -> tuple[Hashable, ...]:
        return (self._setting, *front_end_key(model.wav2spec))

    def spectrogram(self, fingerprint: str, n_samples: int, stimulus: Callable[[], Tensor]) -> Tensor:
        """Return the spectrogram (1, F, T) of one sound padded to ``n_samples`` samples.

        ``stimulus`` gives the padded sound (1, T_audio), called only on a miss.
        """

        def compute() -> Tensor:
            with torch.no_grad():
                spectrogram: Tensor = self._model.spectrogram(stimulus().unsqueeze(0))[0]  # type: ignore[operator]
            return spectrogram

        return self._cache.get_or_compute((self._key, fingerprint, n_samples), compute)


def _may_be_cached(model: nn.Module) -> bool:
    if not isinstance(model, NeuralModel) or isinstance(model.wav2spec, nn.Identity):
        return False
    cls = type(model)
    if cls.forward is not NeuralModel.forward or not cls.spectrogram.__module__.startswith("deepSTRF."):
        return False
    if model._forward_hooks or model._forward_pre_hooks:  # a hook expects to see the waveform
        return False
    parts = list(model.wav2spec.modules())
    if any(not getattr(part, "cacheable", True) for part in parts):
        return False
    return not any(parameter.requires_grad for parameter in model.wav2spec.parameters())


# ------------------------------------------------------------------------------

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

    Examples
    --------
    >>> from deepSTRF.datasets import neural_collate
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training.data import FrontEndCache
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

    Shapes: loader (B, N, R, T).

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
