"""Thousands of fits of one architecture together: one model per neuron, or one per seed.

`fit_many` stacks the models (`stacking`) and trains all of them in one pass over the clips, each with its own
optimizer state, schedule, early stopping and best weights. The result is that of separate `Fitter` fits
within rounding. Models that cannot be stacked are fitted one after another, and a warning says so.
"""

from __future__ import annotations

import copy
import math
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepSTRF._validation import check_choice, check_positive_int, checked, checked_but, outside_level
from deepSTRF.datasets import NeuralDataset
from deepSTRF.models.fitted_on import check_views, remember_fit
from deepSTRF.models.prediction import evaluating, parts_left_in_eval, start_training
from deepSTRF.training.cache import FrontEndCache, FrontEndFeed
from deepSTRF.training.callbacks import FitDivergedError, Standardization, psth_moments, start_from
from deepSTRF.training.data import (
    Batch,
    ByteBudget,
    ClipLoader,
    DirectSource,
    FeedSettings,
    make_loaders,
    make_source,
    read_loader,
)
from deepSTRF.training.fitter import Fitter, build_fit, check_fitter_arguments, made_by
from deepSTRF.training.objective import check_batch_domains, check_objective
from deepSTRF.training.seeds import seeded
from deepSTRF.training.stacking import (
    ModelStack,
    StackedAdamW,
    StackedLoss,
    StackedScores,
    adamw_only,
    fails_when_stacked,
    tensors_of,
    why_not_stacked,
)

__all__ = ["ManyFits", "fit_many"]

#: Arguments of the Fitter that `fit_many` sets, or that belong to one fit alone.
MANAGED = (
    "model", "train_loader", "val_loader", "seed", "ckpt_path", "state_path", "log_fn", "progress", "fabric",
    "device", "fast", "front_end_cache",
)  # fmt: skip
#: Options that the stack has no form of, with the values that it takes them for.
PLAIN = {
    "val_metrics": None, "track_per_cell_best": False, "precision": "float32", "objective": "auto",
}  # fmt: skip
#: Values of predictions, targets and moments that a stack of models may hold at once.
STACK_BYTES = 256 * 2**20
#: Bytes that a step of a stack may keep for its gradient.
STEP_BYTES = 2**30
#: Models of one stack: as many as keep the tensors of a step in a processor's cache, and its overhead small.
MOST_STACKED = 256


@checked_but("model_factory")
def fit_many(
    model_factory: Callable[[int], nn.Module],
    train: NeuralDataset,
    val: NeuralDataset,
    *,
    per: str = "neuron",
    seeds: int | Sequence[int] = 0,
    batch_size: int = 1,
    fitter_kwargs: Mapping[str, Any] | None = None,
    chunk_size: int | None = None,
) -> ManyFits:
    """Fit many models of one architecture together: one per neuron, or one per seed on the whole population.

    Model k is what this gives, within rounding, in a fraction of the time::

        with seeded(seed):
            model = model_factory(seed)
            loaders = make_loaders(train_k, val_k, batch_size=batch_size, seed=seed)
            Fitter(model, *loaders, **fitter_kwargs).fit()

    where ``train_k`` and ``val_k`` are ``train.select(neurons=[k])`` and ``val.select(neurons=[k])`` with
    ``per="neuron"`` (clips that the neuron has not heard are left out), or the views themselves. Each model
    has its own start of the output, optimizer state, schedule, limit of the gradient, early stopping and best
    weights; one that has stopped, or diverged, no longer costs anything. The order of the clips is that of
    the seed, so neurons with one seed that heard the same clips share every batch: that is where it is
    fastest.

    Parameters
    ----------
    model_factory : callable
        ``model_factory(seed)`` returns a new model: with one output for ``per="neuron"``, with one per neuron
        for ``per="seed"``.
    train, val : NeuralDataset
        Training and validation clips of the same neurons.
    per : {"neuron", "seed"}
        What there is one model of.
    seeds : int or sequence of int
        Of initial weights and order of clips: for ``per="neuron"`` one for all or one each, for
        ``per="seed"`` one per model.
    batch_size : int
        Clips per step.
    fitter_kwargs : mapping, optional
        Further arguments of `Fitter`, such as what `fit_settings` returns: optimizer (AdamW) and scheduler as
        functions. Progress, files and logs of single fits are left out.
    chunk_size : int, optional
        Most models at a time, which bounds the memory; None is by the length of the recording.

    Returns
    -------
    ManyFits
        Models, best epochs, scores and histories, in the order of the neurons or seeds.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, or a model with another number of outputs.

    Warns
    -----
    UserWarning
        When the models cannot be stacked and are fitted one after another (recurrent layers of PyTorch,
        dropout, another optimizer than AdamW, callbacks, metrics of your own): the text says why.
    RuntimeWarning
        When fits diverged or had no score; they are listed in ``failed``.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=5, n_clips=4, n_repeats=5)
    >>> train, val = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    >>> fits = fit_many(lambda seed: Linear(ds.F, 9, 1), train, val, fitter_kwargs={"max_epochs": 3})
    >>> len(fits), fits.scores["val_cc_norm"].shape, fits.models[2].fitted_on.neurons
    (5, torch.Size([5, 1]), ('sim002',))
    >>> [record["epoch"] for record in fits.histories[0]]
    [0, 1, 2]
    """
    if isinstance(model_factory, nn.Module) or not callable(model_factory):
        raise TypeError(
            "model_factory is called with a seed and returns a new model, got "
            f"{type(model_factory).__name__}; give lambda seed: MyModel(...)"
        )
    check_choice("per", per, ("neuron", "seed"))
    check_views((train, val), ("train", "val"))
    arguments = dict(fitter_kwargs or {})
    check_fitter_arguments(arguments, MANAGED, "fit_many")
    job = _Job(model_factory, train, val, per, _checked_seeds(seeds, per, train), batch_size, arguments)
    size = chunk_size if chunk_size is None else check_positive_int("chunk_size", chunk_size)
    fits = ManyFits(job, per)
    reason = job.why_not_stacked() or _fit_stacked(job, fits, size)
    if reason:
        warnings.warn(
            f"{reason}: the {len(job)} models are fitted one after another",
            UserWarning,
            stacklevel=outside_level(),
        )
        fits.clear()
        for index in range(len(job)):
            _fit_alone(job, index, fits)
    fits.stacked = not reason
    if fits.failed:
        index, text = next(iter(fits.failed.items()))
        warnings.warn(
            f"{len(fits.failed)} of {len(job)} fits have no result (see .failed); {job.name(index)}: {text}",
            RuntimeWarning,
            stacklevel=outside_level(),
        )
    return fits


def fit_seeds_stacked(
    model_factory: Callable[[int], nn.Module],
    train: NeuralDataset,
    val: NeuralDataset,
    *,
    seeds: Sequence[int],
    batch_size: int,
    fitter_kwargs: Mapping[str, Any],
) -> ManyFits | None:
    """Return the fits of all seeds where they can be stacked, two at least at a time; else None."""
    job = _Job(model_factory, train, val, "seed", list(seeds), batch_size, dict(fitter_kwargs))
    fits = ManyFits(job, "seed")
    cannot = job.why_not_stacked() or job.most_at_once() < 2 or _fit_stacked(job, fits, None)
    return None if cannot else fits


def _fit_stacked(job: _Job, fits: ManyFits, size: int | None) -> str:
    """Make all fits in stacks; returns why they cannot be, found by trying, else an empty text."""
    for chunk in job.chunks(size):
        with seeded(job.seeds[chunk[0]]):  # leaves the random numbers of the process as they are
            stacked = _StackedFit(job, chunk)
            if reason := stacked.start():
                return reason
            stacked.fit(fits)
    return ""


def _checked_seeds(seeds: int | Sequence[int], per: str, train: NeuralDataset) -> list[int]:
    """One seed per model."""
    if isinstance(seeds, int | np.integer):
        return [int(seeds)] * (train.N_neurons if per == "neuron" else 1)
    chosen = [int(seed) for seed in seeds]
    if per == "neuron" and len(chosen) != train.N_neurons:
        raise ValueError(
            f"seeds: with per='neuron' one for all, or one for each of the {train.N_neurons} neurons; got "
            f"{len(chosen)}"
        )
    if not chosen or (per == "seed" and len(set(chosen)) != len(chosen)):
        raise ValueError(f"seeds must be at least one, and all differ with per='seed'; got {chosen[:8]}")
    return chosen


@dataclass(frozen=True)
class _Job:
    """What is to be fitted."""

    factory: Callable[[int], nn.Module]
    train: NeuralDataset
    val: NeuralDataset
    per: str
    seeds: list[int]
    batch_size: int
    arguments: dict[str, Any]

    def __len__(self) -> int:
        return len(self.seeds)

    def name(self, index: int) -> str:
        """The neuron or the seed of a model."""
        if self.per == "seed":
            return f"seed {self.seeds[index]}"
        names = self.train.nrn_meta[index]
        return str(names.get("cell_id", names.get("name", f"neuron {index}")))

    def model(self, index: int) -> nn.Module:
        """A new model; the caller has seeded the process."""
        model = self.factory(self.seeds[index])
        if not isinstance(model, nn.Module):
            raise TypeError(f"model_factory must return a torch.nn.Module, got {type(model).__name__}")
        outputs, wanted = getattr(model, "O", None), 1 if self.per == "neuron" else self.train.N_neurons
        if isinstance(outputs, int) and outputs != wanted:
            raise ValueError(
                f"model_factory returned a model of {outputs} outputs, and per={self.per!r} needs "
                f"out_neurons={wanted}"
            )
        return model

    def views(self, index: int) -> tuple[NeuralDataset, NeuralDataset]:
        """Training and validation clips of one model."""
        if self.per == "seed":
            return self.train, self.val
        return self.train.select(neurons=[index]), self.val.select(neurons=[index])

    def fitter(self, index: int) -> Fitter:
        """The fit of one model; the caller has seeded the process."""
        return build_fit(
            self.model(index), *self.views(index), seed=self.seeds[index], batch_size=self.batch_size,
            progress=False, **self.arguments,
        )  # fmt: skip

    def why_not_stacked(self) -> str:
        """Why the models cannot be stacked, as far as the arguments say; else empty."""
        for name, plain in PLAIN.items():
            if self.arguments.get(name, plain) != plain:
                return f"fitter_kwargs[{name!r}] has no form for many models at once"
        callbacks = self.arguments.get("callbacks")
        if callbacks is not None and made_by(callbacks, self.seeds[0]):
            return "callbacks watch one fit at a time"
        with seeded(self.seeds[0]):
            return why_not_stacked(self.model(0))

    def _held(self) -> int:
        """Bytes that a step of one model on the longest clips keeps for its gradient, at least 1."""
        with seeded(self.seeds[0]):
            model = self.model(0)
        longest = max(range(len(self.train)), key=self.train.n_bins)
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        clips = min(self.batch_size, len(self.train))
        stimulus = self.train.stims[longest].to(kind).expand(clips, *self.train.stims[longest].shape)
        clip = types.SimpleNamespace(stimuli=lambda: [stimulus[:1]], spectrograms=lambda: None)
        Standardization().on_fit_start(types.SimpleNamespace(model=model, train_source=clip))
        held: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with evaluating(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, _as_is):
            model(stimulus)
        return max(1, sum(held.values()))

    def chunks(self, size: int | None) -> Iterator[list[int]]:
        """Models that are fitted together: neurons that heard the same clips beside each other."""
        order = list(range(len(self)))
        if self.per == "neuron":
            heard = _heard(self.train)
            order.sort(key=lambda index: (heard[index].tolist(), self.seeds[index], index))
        n_chunks = math.ceil(len(order) / (self.most_at_once() if size is None else size))
        for part in np.array_split(np.array(order), n_chunks):  # of like sizes
            yield sorted(part.tolist())

    def most_at_once(self) -> int:
        """Models that memory, and a processor's cache, hold at once."""
        bins = sum(view.n_bins(clip) for view in (self.train, self.val) for clip in range(len(view)))
        neurons = 1 if self.per == "neuron" else self.train.N_neurons
        size = min(MOST_STACKED, STACK_BYTES // max(1, 16 * bins * neurons), STEP_BYTES // self._held())
        return max(1, size)


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _heard(ds: NeuralDataset) -> Any:
    """Which neurons heard which clips, bool (N, S)."""
    found = np.zeros((ds.N_neurons, len(ds)), dtype=bool)
    for clip, responses in enumerate(ds.response_storage.clips):
        found[responses.heard, clip] = True
    return found


# ---- the result


class ManyFits:
    """What `fit_many` found, in the order of the neurons or seeds.

    Parameters
    ----------
    job : object
        What `fit_many` was given; only `fit_many` makes one.
    per : {"neuron", "seed"}
        What there is one model of.

    Attributes
    ----------
    models : sequence of nn.Module
        Built when they are asked for, each with its best weights and ``fitted_on``, in eval mode.
    histories : sequence of list of dict
        As ``Fitter.fit`` returns them.
    best_epochs : Tensor of int, shape (M,)
        -1 for a fit that has none.
    best_scores : Tensor, shape (M,)
        The monitored score of that epoch.
    scores : dict of str to Tensor
        Scores of that epoch by the keys of a history: losses (M,), others (M, N) with N outputs per model.
    failed : dict of int to str
        Fits that diverged or had no score, and why; their models hold the best weights before that.
    seeds : list of int
        Seed of each model.
    stacked : bool
        Whether the models were fitted together.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> views = ds.select(clips=[0, 1]), ds.select(clips=[2])
    >>> fits = fit_many(lambda seed: Linear(ds.F, 5, 2), *views, per="seed", seeds=[3, 4],
    ...                 fitter_kwargs={"max_epochs": 2})
    >>> fits.seeds, fits.scores["val_cc"].shape, fits.models[1].predict(views[1])[0].shape[0]
    ([3, 4], torch.Size([2, 2]), 2)
    """

    def __init__(self, job: _Job, per: str) -> None:
        self.per, self.seeds, self.stacked = per, list(job.seeds), True
        self._job = job
        self.clear()

    def clear(self) -> None:
        """Forget all fits."""
        self.failed: dict[int, str] = {}
        self.best_epochs = torch.full((len(self._job),), -1)
        self.best_scores = torch.full((len(self._job),), torch.nan, dtype=torch.float64)
        self._states: dict[int, tuple[nn.Module, ModelStack | None, int]] = {}
        self._records: dict[int, tuple[list[dict[str, Tensor]], int]] = {}
        self._lengths: dict[int, int] = {}
        self._given: dict[int, list[dict[str, Any]]] = {}  # of fits that were not stacked

    def __len__(self) -> int:
        return len(self._job)

    def __repr__(self) -> str:
        how = "stacked" if self.stacked else "one after another"
        return f"ManyFits: {len(self)} fits, one per {self.per}, {how}; {len(self.failed)} failed"

    @property
    def models(self) -> Sequence[nn.Module]:
        """The fitted models, each built when it is asked for."""
        return _Lazily(len(self), self._model)

    @property
    def histories(self) -> Sequence[list[dict[str, Any]]]:
        """The records of the epochs of each fit."""
        return _Lazily(len(self), self._history)

    @property
    def scores(self) -> dict[str, Tensor]:
        """Losses and scores of the best epoch of each fit."""
        found: dict[str, Tensor] = {}
        for index in self._records:
            epochs, row = self._records[index]
            best = int(self.best_epochs[index])
            for key, value in epochs[max(best, 0)].items() if epochs else ():
                if key not in found:
                    found[key] = torch.full((len(self), *value.shape[1:]), torch.nan, dtype=torch.float64)
                if best >= 0:
                    found[key][index] = value[row]
        return found

    @checked
    def predict(self, dataset: NeuralDataset) -> list[Tensor]:
        """Predict the responses to the clips of a dataset with all models together.

        Parameters
        ----------
        dataset : NeuralDataset
            Clips of the neurons of the fits, in their order.

        Returns
        -------
        list of Tensor
            One per clip, on the CPU: (N, T) of one model per neuron, (M, N, T) of one per seed.

        Raises
        ------
        ValueError
            For other neurons, bins or bands than those of the fits.

        Examples
        --------
        >>> from deepSTRF.datasets.audio import SyntheticDataset
        >>> from deepSTRF.models.audio import Linear
        >>> ds = SyntheticDataset(n_neurons=3, n_clips=3, n_repeats=4)
        >>> views = ds.select(clips=[0, 1]), ds.select(clips=[2])
        >>> fits = fit_many(lambda seed: Linear(ds.F, 5, 1), *views, fitter_kwargs={"max_epochs": 1})
        >>> fits.predict(views[1])[0].shape == (3, ds.n_bins(2))
        True
        """
        check_views((self._job.train, dataset), ("train", "dataset"))
        stacks: dict[int, tuple[nn.Module, ModelStack | None, list[int]]] = {}
        for index, (base, stack, _) in self._states.items():
            stacks.setdefault(id(stack or base), (base, stack, []))[2].append(index)
        found: list[Tensor] = []
        for clip in range(len(dataset)):
            rows: dict[int, Tensor] = {}
            for base, stack, indices in stacks.values():
                kind = next(p.dtype for p in base.parameters() if p.is_floating_point())
                stimulus = dataset.stims[clip].unsqueeze(0).to(kind)
                with evaluating(base):
                    made = (
                        base(stimulus).unsqueeze(0) if stack is None else stack.run(stimulus, stack.leaves())
                    )
                for index in indices:
                    rows[index] = made[self._states[index][2], 0, :, 0]
            every = torch.stack([rows[index] for index in range(len(self))])
            found.append(every[:, 0] if self.per == "neuron" else every)
        return found

    def _model(self, index: int) -> nn.Module:
        base, stack, row = self._states[index]
        if stack is None:
            return base
        model = stack.load(row, copy.deepcopy(base))
        remember_fit(model, *self._job.views(index))
        return model.eval()

    def _history(self, index: int) -> list[dict[str, Any]]:
        if index in self._given:
            return self._given[index]
        epochs, row = self._records[index]
        return [
            {"epoch": epoch, **{key: _entry(value[row]) for key, value in record.items()}}
            for epoch, record in enumerate(epochs[: self._lengths[index]])
        ]


def _entry(value: Tensor) -> float | Tensor:
    return float(value) if value.dim() == 0 else value.clone()


class _Lazily(Sequence[Any]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, length: int, make: Callable[[int], Any]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(place) for place in range(self._length)[index]]
        return self._make(range(self._length)[index])


# ---- one after another


def _fit_alone(job: _Job, index: int, fits: ManyFits) -> None:
    """Fit one model by its own `Fitter`."""
    with seeded(job.seeds[index]):
        fitter = job.fitter(index)
        try:
            fitter.fit()
        except FitDivergedError as error:
            fits.failed[index] = error.summary
    model, history = fitter.model, fitter.history
    rows = [
        {key: torch.as_tensor(value, dtype=torch.float64).unsqueeze(0) for key, value in record.items()}
        for record in history
    ]
    for record in rows:
        record.pop("epoch", None)
    fits._states[index], fits._given[index] = (model.eval(), None, 0), history
    fits._records[index], fits._lengths[index] = (rows, 0), len(rows)
    if fitter.best_epoch is not None:
        fits.best_epochs[index] = fitter.best_epoch
        fits.best_scores[index] = torch.as_tensor(fitter.best_score)


# ---- together


@dataclass
class _Stopping:
    """Early stopping of M fits, each as `EarlyStopping` decides."""

    sign: float
    patience: int
    min_delta: float
    best: Tensor
    epoch: Tensor
    waited: Tensor

    @classmethod
    def of(cls, fitter: Fitter, n: int) -> _Stopping:
        """Before the first epoch."""
        stopping = fitter.stopping
        sign = 1.0 if stopping.mode == "max" else -1.0
        never = torch.full((n,), -torch.inf, dtype=torch.float64)
        return cls(sign, stopping.patience, stopping.min_delta, never, torch.full((n,), -1), torch.zeros(n))

    def update(self, epoch: int, score: Tensor) -> Tensor:
        """Take the scores (M,) of an epoch; return where they are the best so far."""
        better = self.sign * score - self.best > self.min_delta
        self.best = torch.where(better, self.sign * score, self.best)
        self.epoch = torch.where(better, epoch, self.epoch)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        return better

    def take(self, rows: Tensor) -> _Stopping:
        """Those of some fits."""
        return _Stopping(
            self.sign, self.patience, self.min_delta, self.best[rows], self.epoch[rows], self.waited[rows]
        )


@dataclass
class _Group:
    """Fits with one order of clips: one seed, the same clips."""

    clips: tuple[int, ...]  # of the chunk's training view
    loader: ClipLoader
    rows: list[int] = field(default_factory=list)  # of the models in the stack that are left

    def order(self) -> list[tuple[int, ...]]:
        """Batches of the next epoch."""
        return [tuple(self.clips[clip] for clip in batch) for batch in self.loader]


class _StackedFit:
    """The fits of one chunk of models."""

    def __init__(self, job: _Job, chunk: list[int]) -> None:
        self.job = job
        self.chunk = chunk  # models of the job
        self.alone = job.per == "neuron"
        self.failed: dict[int, str] = {}
        self.cache = FrontEndCache()

    # ---- before the first epoch

    def start(self) -> str:
        """Build and start all models; returns why they cannot be stacked, else an empty text."""
        job, first = self.job, self.chunk[0]
        views = (job.train, job.val)
        if self.alone:
            heard = [_heard(view)[self.chunk] for view in views]
            for row, index in enumerate(self.chunk):
                for found, what in zip(heard, ("training", "validation"), strict=True):
                    if not found[row].any():
                        self.failed.setdefault(index, f"no {what} clip has data of this neuron")
            if len(self.failed) == len(self.chunk):
                return ""
            every = [view.select(neurons=self.chunk, keep_unheard=True) for view in views]
            views = (every[0], every[1])
            first = next(index for index in self.chunk if index not in self.failed)
        with seeded(job.seeds[first]):
            self.template = job.fitter(first)
        fitter, self.built = self.template, self.template.model
        self.budget = ByteBudget(fitter._clip_bytes)
        if reason := adamw_only(fitter.optimizer):
            return reason
        check_objective(fitter.model, fitter.loss_fn, *views)
        fitter.traits = fitter._read_traits()
        if not fitter.traits.per_neuron:
            return "a loss that does not separate neurons has no form for many models at once"
        scores = {f"{part}_{name}" for part in ("train", "val") for name in ("loss", "cc", "cc_norm")}
        if fitter.monitor not in scores or not (
            fitter.track_train_metrics or "train_cc" not in fitter.monitor
        ):
            fitter._check_monitor(("cc", "cc_norm"))
        self.train_view = views[0]
        loaders = make_loaders(*views, batch_size=job.batch_size, seed=job.seeds[first])
        self.train_source, self.val_source = (self._source(loader) for loader in loaders)
        if not isinstance(self.train_source, DirectSource) or not isinstance(self.val_source, DirectSource):
            return f"the recording is fed clip by clip ({self.train_source.note})"
        self._start_models(heard[0] if self.alone else None)
        start_training(fitter.model, self.left_in_eval)
        front_end = [v for name, v in self.stack.fixed.items() if name.startswith("wav2spec.")]
        if any(not torch.equal(value, value[:1].expand_as(value)) for value in front_end):
            return "frozen front-ends that differ from model to model have no form for many models at once"
        serve = self.train_source.open_pass()
        return fails_when_stacked(self.stack, serve(self.groups[0].clips[: job.batch_size]))

    def _source(self, loader: Any) -> Any:
        fitter = self.template
        dtype = next(p.dtype for p in fitter.model.parameters() if p.is_floating_point())
        settings = FeedSettings(
            fitter.device, dtype, fitter.traits.accepts_psth, fitter.traits.counts_repeats, fitter.warmup_ms
        )
        feed = None
        if not isinstance(getattr(fitter.model, "wav2spec", nn.Identity()), nn.Identity):
            feed = FrontEndFeed(fitter.model, self.cache, f"{fitter.device} {dtype} float32")
        return make_source(loader, settings, fast=True, feed=feed, budget=self.budget)

    def _start_models(self, heard: Any) -> None:
        """Group the models by their order of clips, and start each as its own fit would."""
        job = self.job
        groups: dict[tuple[int, tuple[int, ...]], _Group] = {}
        moments = psth_moments(self.train_source.psths())
        started: list[dict[str, Tensor]] = []
        self.factors = torch.ones(len(self.chunk), dtype=torch.float64)
        built: dict[tuple[int, tuple[int, ...]], tuple[nn.Module, dict[str, Tensor]]] = {}
        self.rows = torch.tensor(
            [row for row, index in enumerate(self.chunk) if index not in self.failed], dtype=torch.long
        )
        every = tuple(range(len(self.train_view)))
        for place, row in enumerate(self.rows.tolist()):
            index = self.chunk[row]
            clips = every if heard is None else tuple(np.flatnonzero(heard[row]).tolist())
            key = (job.seeds[index], clips)
            if key not in groups:
                groups[key] = _Group(clips, self._order_of(key))
                with seeded(job.seeds[index]):
                    model = self._prepared(job.model(index), clips)
                built[key] = model, tensors_of(model)
            groups[key].rows.append(place)
            model, fresh = built[key]
            with torch.no_grad():
                for name, value in tensors_of(model, clone=False).items():
                    value.copy_(fresh[name])
            if moments is not None and self.template.traits.unit_degree is not None:
                own = moments if heard is None else [part[row : row + 1] for part in moments]
                self.factors[row] = start_from(model, self.template.traits, *own)
            started.append(tensors_of(model))
        self.groups = list(groups.values())
        self.base = self.template.model = next(iter(built.values()))[0]
        self.left_in_eval = parts_left_in_eval(self.base)
        self.stack = ModelStack(self.base, started)
        self.factors = self.factors[self.rows]

    def _order_of(self, key: tuple[int, tuple[int, ...]]) -> ClipLoader:
        """The order of clips of the loader that a separate fit has."""
        seed, clips = key
        loader = make_loaders(
            self.train_view.select(clips=list(clips)), batch_size=self.job.batch_size, seed=seed
        )[0]
        found = read_loader(loader)
        if not isinstance(found, ClipLoader):
            raise TypeError(f"the training clips cannot be read: {found}")
        return found

    def _prepared(self, model: nn.Module, clips: tuple[int, ...]) -> nn.Module:
        """A model that knows the bands of its training clips."""
        model = model.to(self.template.device)
        if len(clips) == len(self.train_view):
            source = self.train_source
        else:
            view = self.train_view.select(clips=list(clips))
            source = self._source(make_loaders(view, batch_size=self.job.batch_size)[0])
        Standardization().on_fit_start(types.SimpleNamespace(model=model, train_source=source))
        return model

    # ---- epochs

    def fit(self, fits: ManyFits) -> None:
        """Train all models and hand over what they end with."""
        fitter, n = self.template, len(self.chunk)
        records: list[dict[str, Tensor]] = []
        for row, index in enumerate(self.chunk):  # those that never started
            fits._records[index], fits._lengths[index] = (records, row), 0
            if index in self.failed:
                with seeded(self.job.seeds[index]):
                    fits._states[index] = (self.job.model(index).eval(), None, 0)
        fits.failed.update(self.failed)
        if len(self.failed) == n:
            return
        self.optimizer = StackedAdamW(fitter.optimizer, self.built, self.stack)
        self._make_schedules()
        self.stopping = _Stopping.of(fitter, len(self.stack))
        self.best = self.stack.take(torch.arange(len(self.stack)))
        every = torch.arange(len(self.rows))
        neurons = torch.arange(self.train_view.N_neurons)
        self.outputs = every.unsqueeze(1) if self.alone else neurons.expand(len(every), -1)
        self.scores = {part: StackedScores(self.outputs) for part in ("train", "val")}
        for epoch in range(fitter.max_epochs):
            record = self._epoch()
            wide = {}
            for key, value in record.items():
                wide[key] = torch.full((n, *value.shape[1:]), torch.nan, dtype=torch.float64)
                wide[key][self.rows] = value
            records.append(wide)
            if not self._end_epoch(epoch, record, fits):
                break
        self._hand_over(torch.arange(len(self.rows)), fits, len(records))

    def _epoch(self) -> dict[str, Tensor]:
        """Both passes; returns losses (M,) and scores (M, N)."""
        record: dict[str, Tensor] = {}
        start_training(self.base, self.left_in_eval)
        loss = StackedLoss(len(self.rows), self.outputs.shape[1])
        scores = self.scores["train"] if self.template.track_train_metrics else None
        if scores is not None:
            scores.begin()
        serve = self.train_source.open_pass()
        plans = [(group, group.order()) for group in self.groups]
        self.bad = torch.zeros(len(self.rows), dtype=torch.bool)
        for step in range(max(len(plan) for _, plan in plans)):
            parts: dict[tuple[int, ...], list[int]] = {}
            for group, plan in plans:
                if step < len(plan):
                    parts.setdefault(plan[step], []).extend(group.rows)
            for batches, rows in self._together(parts, serve):
                self._step(batches, torch.tensor(rows), loss, scores)
        record["train_loss"] = loss.result()
        if scores is not None:
            record.update({f"train_{name}": value for name, value in scores.result().items()})
        loss, scores = StackedLoss(len(self.rows), self.outputs.shape[1]), self.scores["val"]
        scores.begin()
        every = torch.arange(len(self.rows))
        with evaluating(self.base):
            for batch in self.val_source:
                pred = self.stack.predict([batch], self.stack.leaves())
                loss.add(*self._losses(pred, [batch], every), every)
                scores.prepare(batch, self._neurons())
                scores.add(batch, pred, every)
        record["val_loss"] = loss.result()
        record.update({f"val_{name}": value for name, value in scores.result().items()})
        return record

    def _neurons(self) -> Tensor | None:
        """Neurons of the chunk whose models are left; None is all."""
        return None if not self.alone or len(self.rows) == len(self.chunk) else self.rows

    def _together(
        self, parts: Mapping[tuple[int, ...], list[int]], serve: Callable[[Sequence[int]], Batch]
    ) -> list[tuple[list[Batch], list[int]]]:
        """Steps that models take at once: one batch for all of them, or one for each, of one shape."""
        if self.alone or len(parts) == 1:
            return [([serve(clips)], sorted(rows)) for clips, rows in parts.items()]
        by_row = sorted((row, clips) for clips, rows in parts.items() for row in rows)
        served = {clips: serve(clips) for clips in parts}
        shapes: dict[Any, tuple[list[Batch], list[int]]] = {}
        for row, clips in by_row:
            batch = served[clips]
            batches, rows = shapes.setdefault((batch.inputs.shape, batch.targets.shape), ([], []))
            batches.append(batch)
            rows.append(row)
        return list(shapes.values())

    def _losses(self, pred: Tensor, batches: Sequence[Batch], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and valid bins (m, N) of predictions (m, B, N, 1, T) for one batch, or for one each."""
        fitter, count, batch = self.template, len(rows), batches[0]
        flat = pred.transpose(0, 1).flatten(1, 2)  # (B, m * N, 1, T)
        if self.alone:
            neurons = self.rows[rows]
            whole = len(neurons) == len(self.chunk)
            targets = batch.targets if whole else batch.targets.index_select(1, neurons)
            weights = (batch.weights if whole else batch.weights[neurons]).unsqueeze(1)
        else:
            every = list(batches) * (count // len(batches))
            targets = torch.cat([one.targets for one in every], dim=1)
            weights = torch.stack([one.weights for one in every])
        loss = fitter.loss_fn(flat, targets, reduction="none")
        if flat.requires_grad:
            check_batch_domains(fitter.loss_fn, flat, targets)
        return loss.view(count, -1), weights

    def _step(
        self, batches: Sequence[Batch], rows: Tensor, meter: StackedLoss, scores: StackedScores | None
    ) -> None:
        """One step of the optimizer for some models, on one batch or on one each."""
        whole = len(rows) == len(self.rows)
        stack = self.stack if whole else self.stack.take(rows)
        optimizer = self.optimizer if whole else self.optimizer.take(rows)
        leaves = stack.leaves()
        pred = stack.predict(batches, leaves)
        loss, weights = self._losses(pred, batches, rows)
        heard = weights > 0
        mean = torch.where(heard, loss, 0.0).sum(1) / heard.sum(1).clamp(min=1)
        total = (mean * self.factors[rows].to(mean.dtype)).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        gradient, unused = self._flat(leaves, found)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        if self.template.grad_clip is not None:
            gradient *= (self.template.grad_clip / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        self.bad[rows] |= ~(mean.detach().isfinite() & norm.isfinite())
        optimizer.step(stack.weights, gradient, self.rates[rows], unused)
        if not whole:
            self.stack.put(rows, stack)
            self.optimizer.put(rows, optimizer)
        meter.add(loss, weights, rows)
        if scores is None:
            return
        for place, batch in enumerate(batches):
            scores.prepare(batch, self._neurons())
            chosen = slice(None) if len(batches) == 1 else slice(place, place + 1)
            scores.add(batch, pred[chosen], rows[chosen])

    def _flat(self, leaves: Mapping[str, Tensor], found: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Gradients as one matrix (m, P), and the columns (P,) that none has reached."""
        parts, unused = [], []
        for leaf, gradient in zip(leaves.values(), found, strict=True):
            flat = torch.zeros_like(leaf) if gradient is None else gradient
            parts.append(flat.reshape(len(flat), -1))  # also of a parameter that is one number
            unused.append(torch.full((parts[-1].shape[1],), gradient is None))
        return torch.cat(parts, dim=1), torch.cat(unused)

    # ---- rates, stopping

    def _make_schedules(self) -> None:
        """A schedule for each model, on an optimizer of its own; without one the rates stay."""
        fitter, chosen = self.template, self.job.arguments.get("scheduler")
        groups = [float(group.get("initial_lr", group["lr"])) for group in fitter.optimizer.param_groups]
        self.rates = torch.tensor(groups, dtype=torch.float64).repeat(len(self.stack), 1)
        self.schedules: list[Any] = []
        if chosen is None:
            return
        copies = len(self.stack) if isinstance(fitter.scheduler, ReduceLROnPlateau) else 1
        for _ in range(copies):
            optimizer = torch.optim.AdamW(
                [{"params": [nn.Parameter(torch.zeros(()))], "lr": rate} for rate in groups]
            )
            self.schedules.append(chosen(optimizer))
            optimizer.step()  # a schedule warns of an optimizer that has not stepped
        self._read_rates()

    def _read_rates(self) -> None:
        read = [[float(group["lr"]) for group in s.optimizer.param_groups] for s in self.schedules]
        rates = torch.tensor(read, dtype=torch.float64)
        self.rates = rates if len(read) == len(self.rows) else rates[:1].repeat(len(self.rows), 1)

    def _end_epoch(self, epoch: int, record: dict[str, Tensor], fits: ManyFits) -> bool:
        """Keep the best weights, move the rates, drop the fits that end here; returns whether any is left."""
        score = record[self.template.monitor]
        score = score.nanmean(1) if score.dim() > 1 else score
        failed = self.bad | ~score.isfinite()
        better = self.stopping.update(epoch, torch.where(failed, torch.nan, score))
        if bool(better.any()):
            rows = better.nonzero().squeeze(1)
            self.best.put(rows, self.stack.take(rows))
        for place, schedule in enumerate(self.schedules):
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(float(score[place]))
            else:
                schedule.step()
        if self.schedules:
            self._read_rates()
        for place in failed.nonzero().squeeze(1).tolist():
            what = "loss or gradient" if bool(self.bad[place]) else f"score {self.template.monitor}"
            fits.failed[self.chunk[int(self.rows[place])]] = f"its {what} is not finite in epoch {epoch}"
        ended = failed | (self.stopping.waited >= self.stopping.patience)
        if bool(ended.any()):
            self._drop(ended, epoch, failed, fits)
        return len(self.rows) > 0

    def _drop(self, ended: Tensor, epoch: int, failed: Tensor, fits: ManyFits) -> None:
        """Hand over fits that have ended, and move the others together."""
        rows = ended.nonzero().squeeze(1)
        self._hand_over(rows, fits, epoch + 1)
        for row in rows[failed[rows]].tolist():
            fits._lengths[self.chunk[int(self.rows[row])]] = epoch  # the epoch that failed is no record
        left = (~ended).nonzero().squeeze(1)
        place = torch.full((len(self.rows),), -1)
        place[left] = torch.arange(len(left))
        for group in self.groups:
            group.rows = [row for row in place[group.rows].tolist() if row >= 0]
        self.groups = [group for group in self.groups if group.rows]
        if len(self.schedules) == len(self.rows):
            self.schedules = [self.schedules[row] for row in left.tolist()]
        self.scores = {part: scores.take(left) for part, scores in self.scores.items()}
        self.stack, self.best = self.stack.take(left), self.best.take(left)
        self.optimizer, self.stopping = self.optimizer.take(left), self.stopping.take(left)
        self.rates, self.factors = self.rates[left], self.factors[left]
        self.outputs, self.rows = self.scores["val"].outputs, self.rows[left]

    def _hand_over(self, rows: Tensor, fits: ManyFits, epochs: int) -> None:
        """Give the result of some models to the caller."""
        if not len(rows):
            return
        kept = self.best.take(rows)
        for place, row in enumerate(rows.tolist()):
            index = self.chunk[int(self.rows[row])]
            fits._states[index] = (self.base, kept, place)
            fits._lengths[index] = epochs
            fits.best_epochs[index] = self.stopping.epoch[row]
            if int(self.stopping.epoch[row]) >= 0:
                fits.best_scores[index] = self.stopping.sign * self.stopping.best[row]
