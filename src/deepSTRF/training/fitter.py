"""The fitting loop: train a model on a recording, keep the best weights, stop when nothing gets better.

One epoch is one pass over the training clips and one over the validation clips. What watches the fit is a
`Callback`; the arguments of `Fitter` build the usual ones. `build_fit` makes the fits of a series.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from deepSTRF._validation import check_device, check_non_negative, check_positive_int, checked_but
from deepSTRF.datasets import NeuralDataset
from deepSTRF.models.fitted_on import FittedOn, check_views, remember_fit
from deepSTRF.models.prediction import evaluating, parts_left_in_eval, start_training
from deepSTRF.training.cache import FrontEndCache, FrontEndFeed
from deepSTRF.training.callbacks import (
    BestWeights,
    Callback,
    DomainGuard,
    EarlyStopping,
    FitterLike,
    LogFunction,
    NonFiniteGuard,
    OutputStart,
    PerNeuronBest,
    ProgressBar,
    Standardization,
    UntrainedParameters,
    check_batch,
    check_callbacks,
    check_monitor,
    learns_spectrogram,
    measure_bands,
    shows_progress,
)
from deepSTRF.training.data import (
    Batch,
    BatchSource,
    ByteBudget,
    FeedSettings,
    make_loaders,
    make_source,
    recording_behind,
    scored_by_length,
)
from deepSTRF.training.objective import (
    LossMeter,
    LossTraits,
    Metric,
    adds_up_over_rows,
    check_objective,
    choose_objective,
    loss_traits,
    monitor_mode,
    owns_loss,
)
from deepSTRF.training.optimization import EpochSchedule, make_optimizer, make_scheduler
from deepSTRF.training.parallel import check_bare, processes_of
from deepSTRF.training.pass_scores import PassScores, make_scores
from deepSTRF.training.resume import ResumeState
from deepSTRF.training.seeds import seeded
from deepSTRF.training.validate import NoGradientError, check_level, check_prediction

__all__ = [
    "CallbackFactory",
    "Fitter",
    "build_fit",
    "check_callback_factory",
    "check_fitter_arguments",
    "made_by",
]

#: Clips (stimuli and targets) that may stay on the device; all of NS1 takes 12 MB, as waveforms 29 MB.
DEFAULT_CLIP_BYTES = 512 * 2**20
#: Number types a fit can compute in; float32 is the reference.
PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Fitter:
    """Fit a model to a recording: train, validate, stop early, end with the best weights.

    Each epoch runs once over the training clips and once over the validation clips. The epoch with the best
    monitored score is remembered, and its weights are back in the model when `fit` returns, fails or is
    interrupted.

    Frozen parts (``requires_grad_(False)``) that are in eval mode stay in it: no dropout, and statistics of
    batch normalisation as they are. So do all parts in eval mode of a model that is in train mode.

    ``train_loss`` and ``val_loss`` are the same quantity: the mean over neurons of each neuron's mean loss
    over all its valid bins of the pass. Training scores are those of the predictions made while training.

    Parameters
    ----------
    model : nn.Module
        Maps stimuli (B, 1, F, T) or (B, 1, T_audio) to predictions (B, N, 1, T). Moved to ``device``.
    train_loader, val_loader : DataLoader
        Yield what `neural_collate` makes; `make_loaders` builds them from views.
    loss_fn : callable, optional
        ``loss_fn(pred, responses)``: a scalar, or one value per neuron (N,). A loss marked ``accepts_psth =
        True`` is given the PSTH (B, N, 1, T), any other the repeats (B, N, R, T). None is the model's own
        loss where it has one (`NeuralModel.own_loss`), else `mse_loss`. A likelihood of counts refuses models
        whose output may be negative (`NeuralModel.prediction_domain`) and negative responses.
    val_metrics : mapping of str to callable, optional
        ``metric(pred, responses)`` on the concatenated pass, one value per neuron (N,) or a scalar. None
        gives ``cc`` and ``cc_norm`` (Schoppe's, centred on the concatenated clips).
    optimizer : torch.optim.Optimizer or callable, optional
        None is AdamW with learning rate 1e-3 and weight decay 1e-4. A function is called with the model and
        returns one.
    device : str or torch.device
        Where to fit.
    max_epochs : int
        Largest number of epochs.
    patience : int
        Stop after this many epochs in a row without a better score.
    monitor : str
        Key of the score to follow, such as 'val_cc_norm' or 'val_loss'; a vector over neurons counts by its
        mean.
    mode : {"max", "min"}, optional
        Whether a larger or a smaller score is better. None is as the monitored score has it: losses get
        smaller, registered metrics and functions with an attribute ``higher_is_better`` state theirs, other
        functions of your own get larger. A contradiction is an error.
    ckpt_path : path, optional
        Where to write the best ``state_dict`` whenever there is a better one. Output only: replaced in one
        step, never read.
    log_fn : callable, optional
        Called with the record of each epoch; giving one silences the progress bar.
    track_train_metrics : bool
        Score the training predictions too.
    track_per_cell_best : bool
        End with each neuron's readout from that neuron's own best epoch (see `PerNeuronBest`).
    min_delta : float
        Smallest change of the score that counts as better.
    scheduler : lr_scheduler or callable, optional
        Stepped once per epoch; ``ReduceLROnPlateau`` is given the monitored score. A function is called with
        the optimiser and returns one.
    grad_clip : float, optional
        Largest norm of the gradient of the loss in a unit of its own size (`OutputStart`).
    precision : str
        'float32', 'bf16' or (CUDA only) 'fp16': type of the forward pass; parameters and loss stay in
        float32.
    state_path : path, optional
        Full state of the fit, written after every epoch. A fit that was killed and is started again with the
        same file goes on where it was and ends with the same weights.
    warmup_ms : float
        Onset of every clip that is left out of loss and scores alike.
    progress : bool or 'auto'
        Progress bar on stderr: 'auto' draws it on a terminal when no ``log_fn`` is given.
    seed : int, optional
        Seed of everything random during `fit`; the states before are put back afterwards. None draws from the
        process's own streams, as a plain loop would.
    fast : bool
        Keep clips on the device and front-end outputs in a cache where the loaders are understood; the
        results are those of the plain loop. False iterates the loaders as they are.
    front_end_cache : FrontEndCache, optional
        Cache to share between fits; None makes one.
    clip_bytes : int
        Bytes of clips (targets, and stimuli that are not the recording's own tensors) that may stay on the
        device; what does not fit is read again each epoch. Beside them a fit holds one batch with its
        prediction and gradient, and about 200 bytes per recorded pair of a clip and a neuron.
    callbacks : sequence of Callback or callable
        Further callbacks, called after the fitter's own. A function is called with the seed (0 where there
        is none) and returns them.
    objective : {"auto", "loss_fn"}
        "auto": a model that has its own loss is trained on it, and giving ``loss_fn`` is an error. "loss_fn":
        it is trained on ``loss_fn`` all the same.
    fabric : lightning_fabric.Fabric, optional
        Processes, device and precision of the fit (extra ``distributed``), launched before. Each of n
        processes takes every n-th batch of the loaders, and all take one step together: the fit is that of
        one process with batches n times as large, statistics of batch normalisation included. All build the
        same fitter and call the same methods; the first one's weights and random states count, and only it
        writes files, logs and shows progress. Each draws dropout and augmentation for its own clips.

    Attributes
    ----------
    history : list of dict
        Records of the epochs so far.
    best_epoch : int or None
        Epoch whose weights the model ends with.
    best_score : float or None
        Its monitored score.
    batch : Batch or None
        The batch in work, for hooks that need more than prediction and responses.
    callbacks : list of Callback
        All callbacks in the order of their calls, the fitter's own among them.
    should_stop : bool
        Set it to end the fit before the next epoch.
    data_path : dict
        How the training and validation clips are fed.

    Raises
    ------
    TypeError, ValueError
        When an argument is illegal; the text says what is legal.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import make_loaders
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=5)
    >>> train, val = make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)
    >>> fitter = Fitter(Linear(ds.F, 9, ds.N_neurons), train, val, max_epochs=2, progress=False)
    >>> history = fitter.fit()
    >>> sorted(history[0])
    ['epoch', 'train_cc', 'train_cc_norm', 'train_loss', 'val_cc', 'val_cc_norm', 'val_loss']
    >>> fitter.evaluate(val)["cc_norm"].shape
    torch.Size([3])
    """

    batch: Batch | None = None
    _params: Tensor | None = None

    @checked_but("model", "loss_fn", "callbacks")
    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        *,
        loss_fn: Callable[..., Tensor] | None = None,
        val_metrics: Mapping[str, Metric] | None = None,
        optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
        device: str | torch.device = "cpu",
        max_epochs: int = 1000,
        patience: int = 10,
        monitor: str = "val_cc_norm",
        mode: Literal["max", "min"] | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        log_fn: Callable[[dict[str, Any]], Any] | None = None,
        track_train_metrics: bool = True,
        track_per_cell_best: bool = False,
        min_delta: float = 0.0,
        scheduler: Any = None,
        grad_clip: float | None = None,
        precision: str = "float32",
        state_path: str | os.PathLike[str] | None = None,
        warmup_ms: float = 0.0,
        progress: bool | Literal["auto"] = "auto",
        seed: int | None = None,
        fast: bool = True,
        front_end_cache: FrontEndCache | None = None,
        clip_bytes: int = DEFAULT_CLIP_BYTES,
        callbacks: Sequence[Callback] | Callable[[int], Sequence[Callback]] = (),
        objective: Literal["auto", "loss_fn"] = "auto",
        fabric: Any = None,
    ) -> None:
        check_bare(model=model, train_loader=train_loader, val_loader=val_loader, optimizer=optimizer)
        self.processes, device, precision = processes_of(fabric, device, precision)
        self.device = check_device(device)
        self.model = self.processes.converted(_check_trainable(model)).to(self.device)
        self.train_loader = _check_loader("train_loader", train_loader)
        self.val_loader = _check_loader("val_loader", val_loader)
        views = [recording_behind(loader)[0] for loader in (self.train_loader, self.val_loader)]
        check_views(views, ("train_loader", "val_loader"))
        self.loss_fn = choose_objective(self.model, loss_fn, objective)
        self.val_metrics = val_metrics
        self.max_epochs = check_positive_int("max_epochs", max_epochs)
        self.monitor, self.mode = monitor, monitor_mode(monitor, mode, val_metrics)
        self.track_train_metrics, self.precision = track_train_metrics, precision
        self.grad_clip = None if grad_clip is None else check_non_negative("grad_clip", grad_clip)
        self.warmup_ms = check_non_negative("warmup_ms", warmup_ms)
        self.seed, self.fast, self.should_stop, self.loss_factor = seed, fast, False, 1.0
        self.history: list[dict[str, Any]] = []
        self.data_path: dict[str, str] = {}
        self._own_loss = objective == "auto" and owns_loss(self.model)
        self._autocast_dtype = _check_precision(precision, self.device)
        self._cache = FrontEndCache() if front_end_cache is None else front_end_cache
        self._clip_bytes = clip_bytes
        self.stopping = EarlyStopping(self.mode, check_positive_int("patience", patience), min_delta)
        self.optimizer = make_optimizer(optimizer, self.model)
        self.scheduler = make_scheduler(scheduler, self.optimizer, self.mode)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        if not self.processes.writes:
            ckpt_path, log_fn, progress = None, None, False
        self.best_weights = BestWeights(ckpt_path)
        self.per_neuron = PerNeuronBest(self.model, self.mode) if track_per_cell_best else None
        bar = shows_progress(progress) and not (progress == "auto" and log_fn is not None)
        self._resume = None if state_path is None else ResumeState(state_path, self)
        self.callbacks: list[Callback] = [
            DomainGuard(self._guarded_loss()),
            Standardization(),
            OutputStart(),
            UntrainedParameters(),
            NonFiniteGuard(),
            self.stopping,
            self.best_weights,
            *([] if self.per_neuron is None else [self.per_neuron]),
            _SubclassHook(),
            *check_callbacks(self._made(callbacks)),
            *([] if log_fn is None else [LogFunction(log_fn)]),
            *([ProgressBar()] if bar else []),
            *([] if self._resume is None else [self._resume]),
        ]

    def _made(self, callbacks: Any) -> Sequence[Callback]:
        """The user's callbacks, made by a function or given."""
        if callable(callbacks) and not isinstance(callbacks, Callback | type):
            return made_by(callbacks, self.seed or 0)
        return callbacks  # type: ignore[no-any-return]

    # ---- what a subclass may override

    def predict_batch(self, batch: Batch) -> Tensor:
        """Return the model's output (B, N, 1, T) for a batch; override it for models with further inputs.

        Parameters
        ----------
        batch : Batch
            ``batch.inputs`` are the stimuli, ``batch.extras`` holds what else the loader gave.

        Returns
        -------
        Tensor, shape (B, N, 1, T)
            Prediction, the warm-up included.
        """
        model: Any = self.model
        if self._own_loss:
            self._params = model.forward_params(batch.inputs)
            return model.expected_counts(self._params)  # type: ignore[no-any-return]
        # From the cache come spectrograms: what is left of a NeuralModel is the part behind its front-end.
        _check_ends_are_seen(model, batch)
        return (model.respond if batch.is_spectrogram else model)(batch.inputs)  # type: ignore[no-any-return]

    def compute_loss(self, pred: Tensor, responses: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar or one value per neuron (N,).

        Parameters
        ----------
        pred : Tensor, shape (B, N, 1, T)
            Prediction, without the warm-up.
        responses : Tensor, shape (B, N, R, T)
            Repeats, NaN where nothing was recorded; their PSTH (R = 1) for a loss that accepts it. A subclass
            that overrides this method always gets the repeats.

        Returns
        -------
        Tensor
            Differentiable loss; neurons without data in the batch may be NaN in a vector.

        Raises
        ------
        ValueError
            When a model with its own loss is fitted by a subclass with its own `predict_batch` only.
        """
        if self._own_loss:
            if self._params is None:
                raise ValueError(
                    f"{type(self.model).__name__} is trained on its own loss, which needs what "
                    "model.forward_params returns: a subclass that overrides predict_batch overrides "
                    "compute_loss too, or passes objective='loss_fn'"
                )
            params = self._params[..., -pred.shape[-1] :].to(pred.dtype)  # without the warm-up
            return self.loss_fn(params, responses, reduction="none")
        if self.traits.per_neuron:
            return self.loss_fn(pred, responses, reduction="none")
        return self.loss_fn(pred, responses)

    def on_epoch_end(self, epoch: int, record: dict[str, Any]) -> None:
        """Do nothing; a subclass may look at the record of each finished epoch, or add to it.

        With a ``state_path``, what is added comes back in a resumed fit: numbers, text and tensors as they
        are, anything else as text.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.
        record : dict
            Losses and scores, the last entry of ``history``.
        """

    # ---- what a user calls

    def fit(self) -> list[dict[str, Any]]:
        """Train until ``max_epochs`` or until nothing got better for ``patience`` epochs.

        Returns
        -------
        list of dict
            One record per epoch: 'epoch' (from 0), 'train_loss', 'train_<score>', 'val_loss', 'val_<score>'.
            Scores per neuron are CPU tensors (N,), NaN where a neuron has none. The model is left in eval
            mode.

        Raises
        ------
        KeyError
            When ``monitor`` is no key of an epoch (before the first one starts).
        FitDivergedError
            When loss, gradient or monitored score is not finite; the text names epoch, batch, clip and likely
            cause.
        StateMismatchError
            When ``state_path`` holds the state of another fit.
        """
        self.history, self.should_stop = [], False
        if isinstance(self.scheduler, EpochSchedule):
            self.scheduler.restart()
        self._left_in_eval = parts_left_in_eval(self.model)
        train_scores, val_scores = self._open_data()
        (train, clips), (val, val_clips) = map(recording_behind, (self.train_loader, self.val_loader))
        remember_fit(self.model, train, val, clips=clips, validation_clips=val_clips)
        check_level(self.model, train)
        started: list[Callback] = []
        self.processes.join(self.model, [self.train_loader, self.val_loader])
        try:
            for callback in self.callbacks:
                callback.on_fit_start(self)
                started.append(callback)
            with contextlib.nullcontext() if self.seed is None else seeded(self.seed):
                if self._resume is not None:
                    self._resume.resume(self)
                for epoch in range(len(self.history), self.max_epochs):
                    for callback in self.callbacks:
                        callback.on_epoch_start(self, epoch)
                    if self.processes.any(self.should_stop):
                        break
                    record: dict[str, Any] = {"epoch": epoch}
                    for name, value in self._train_pass(epoch, train_scores).items():
                        record[f"train_{name}"] = value
                    for name, value in self._score_pass(self.val_source, val_scores).items():
                        record[f"val_{name}"] = value
                    record = self.processes.agree(record)
                    score = check_monitor(self.monitor, record[self.monitor], epoch, record)
                    if isinstance(self.scheduler, ReduceLROnPlateau):
                        self.scheduler.step(score)
                    elif self.scheduler is not None:
                        self.scheduler.step()
                    self.history.append(record)
                    for callback in self.callbacks:
                        callback.on_epoch_end(self, epoch, record)
        finally:
            self.processes.leave()
            self.batch = self._params = None
            self.optimizer.zero_grad(set_to_none=True)
            self.model.eval()
            with contextlib.ExitStack() as stack:  # one that fails keeps no other from its end
                for callback in reversed(started):
                    stack.callback(callback.on_fit_end, self)
        if learns_spectrogram(self.model):  # its bands are those of the weights that are kept
            measure_bands(self.model, self.train_source)
        return self.history

    def evaluate(self, loader: DataLoader[Any]) -> dict[str, Any]:
        """Score the model, as it is now, on other clips.

        Parameters
        ----------
        loader : DataLoader
            As those of the fit.

        Returns
        -------
        dict
            'loss' (a number), and each score: a CPU tensor (N,) per neuron, or a number.
        """
        fitted = getattr(self.model, "fitted_on", None)
        if isinstance(fitted, FittedOn):
            fitted.check_same(recording_behind(_check_loader("loader", loader))[0], "the loader", "the fit")
        source = self._source(_check_loader("loader", loader), ByteBudget(0))  # one pass: nothing to keep
        return self._score_pass(source, make_scores(self.val_metrics, stable=source.stable))

    @property
    def best_epoch(self) -> int | None:
        """Epoch with the best monitored score, None before the first."""
        return self.stopping.best_epoch

    @property
    def best_score(self) -> float | None:
        """The monitored score of that epoch."""
        return self.stopping.best_score

    # ---- the two passes of an epoch

    def _train_pass(self, epoch: int, scores: PassScores | None) -> dict[str, float | Tensor]:
        """Train on every batch once; returns the loss of the pass and its scores."""
        start_training(self.model, self._left_in_eval)
        meter = LossMeter()
        if scores is not None:
            scores.begin()
        for given in self.train_source:
            batch = given
            for callback in self.callbacks:
                batch = check_batch(callback, callback.on_batch_start(self, batch))
            pred, loss = self._step(batch)
            meter.add(*batch.by_neuron(loss))
            if scores is not None and batch.keys:
                scores.add(batch, pred, as_given=batch.targets is given.targets)
            for callback in self.callbacks:
                callback.on_batch_end(self, batch, pred, loss)
        self.processes.merge(meter, scores)
        if meter.empty:
            raise ValueError("train_loader gave no batches; check the split, the sampler or drop_last")
        for callback in self.callbacks:
            callback.on_train_pass_end(self, epoch)
        return {"loss": meter.result(), **({} if scores is None else scores.result())}

    def _score_pass(self, source: BatchSource, scores: PassScores) -> dict[str, float | Tensor]:
        """Score every batch once, in eval mode and without gradients; the mode found is put back."""
        meter = LossMeter()
        scores.begin()
        with evaluating(self.model):
            for batch in source:
                if not batch.keys:
                    continue
                pred = self._predict(batch)
                meter.add(*batch.by_neuron(self.compute_loss(pred, batch.targets)))
                scores.add(batch, pred)
        self.processes.merge(meter, scores)
        if meter.empty:
            raise ValueError("the loader to be scored gave no batches; check the split or the sampler")
        return {"loss": meter.result(), **scores.result()}

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; returns the detached prediction and the loss before averaging."""
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.begin_step(batch)
        pred = self._predict(batch)
        loss = self.compute_loss(pred, batch.targets)
        total = self.processes.mean_loss(loss, batch, pred)
        for callback in self.callbacks:
            callback.on_loss(self, batch, pred, total)
        if not total.requires_grad:
            raise NoGradientError(
                "the loss does not depend on any trainable parameter: forward (or compute_loss) detaches its "
                "result, runs under torch.no_grad(), or goes through NumPy"
            )
        self.scaler.scale(self.loss_factor * total).backward()  # type: ignore[no-untyped-call]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.processes.sum_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        if self.grad_clip is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        for callback in self.callbacks:
            callback.on_gradient(self, batch, pred, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        detach = getattr(self.model, "detach", None)
        if callable(detach):  # a state kept between clips
            detach()
        return pred.detach(), loss.detach()

    def _predict(self, batch: Batch) -> Tensor:
        """Prediction (B, N, 1, T) of a batch, checked, in the parameters' type and without the warm-up."""
        self.batch, self._params = batch, None
        size, neurons, _, bins = batch.targets.shape
        if batch.pairs is not None:
            size, neurons = len(batch.keys), batch.pairs.n_neurons
        reduced = self.precision != "float32"
        with torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=reduced):
            output = self.predict_batch(batch)
        pred = check_prediction(output, batch=size, neurons=neurons, bins=bins + batch.skip)
        if reduced:
            pred = pred.to(batch.targets.dtype)
        pred = pred[..., batch.skip :] if batch.skip else pred
        return pred if batch.pairs is None else batch.pairs.of(pred)

    # ---- where batches and scores come from

    def _open_data(self) -> tuple[PassScores | None, PassScores]:
        """Open the sources of both passes; returns what scores them."""
        budget = ByteBudget(self._clip_bytes)
        self.train_source = self._source(self.train_loader, budget)
        self.val_source = self._source(scored_by_length(self.val_loader, self.train_loader), budget)
        self.data_path = {"train": self.train_source.note, "val": self.val_source.note}
        train = make_scores(self.val_metrics, stable=self.train_source.stable)
        val = make_scores(self.val_metrics, stable=self.val_source.stable)
        self._check_monitor(val.names)
        return (train if self.track_train_metrics else None), val

    def _source(self, loader: DataLoader[Any], budget: ByteBudget) -> BatchSource:
        self.traits = self._read_traits()
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        settings = FeedSettings(
            self.device, dtype, self.traits.accepts_psth, self.traits.counts_repeats, self.warmup_ms,
            self.processes.share, takes_pairs=self._takes_pairs(),
        )  # fmt: skip
        front_end = getattr(self.model, "wav2spec", nn.Identity())
        own_forward = type(self).predict_batch is not Fitter.predict_batch  # it expects stimuli
        feed = None
        if not (own_forward or self._own_loss or isinstance(front_end, nn.Identity)):
            feed = FrontEndFeed(self.model, self._cache, f"{self.device} {dtype} {self.precision}")
        return make_source(loader, settings, fast=self.fast, feed=feed, budget=budget)

    def _takes_pairs(self) -> bool:
        """Whether batches may hold recorded pairs only: nothing of the user's own looks at (B, N, R, T)."""
        if self._own_loss or self.val_metrics is not None or self.processes.share.size > 1:
            return False
        if not adds_up_over_rows(self.loss_fn):
            return False
        hooks = ("on_batch_start", "on_loss", "on_gradient", "on_batch_end")
        methods = [getattr(type(callback), hook) for callback in self.callbacks for hook in hooks]
        methods += [type(self).predict_batch, type(self).compute_loss]
        return all(str(method.__module__).startswith("deepSTRF.") for method in methods)

    def _read_traits(self) -> LossTraits:
        if self._own_loss:
            return LossTraits(accepts_psth=False, per_neuron=True, counts_repeats=False)
        traits = loss_traits(self.loss_fn)
        if type(self).compute_loss is not Fitter.compute_loss:  # somebody's own loss: give it all there is
            traits = dataclasses.replace(traits, accepts_psth=False, unit_degree=None)
        return traits

    def _guarded_loss(self) -> Callable[..., Tensor] | None:
        """The loss, checked against the model's output; None where a subclass computes its own."""
        if type(self).compute_loss is not Fitter.compute_loss:
            return None
        own_forward = type(self).predict_batch is not Fitter.predict_batch
        check_objective(None if own_forward else self.model, self.loss_fn)
        return self.loss_fn

    def _check_monitor(self, names: Sequence[str]) -> None:
        """Raise a KeyError that lists the keys an epoch will have, unless ``monitor`` is one of them."""
        if self.per_neuron is not None and self.monitor.endswith("_loss"):
            raise ValueError(
                f"track_per_cell_best needs a per-cell monitor with one score per neuron, and "
                f"{self.monitor!r} is a single number; monitor 'val_cc' or 'val_cc_norm'"
            )
        known = ["train_loss", "val_loss", *(f"val_{name}" for name in names)]
        if self.track_train_metrics:
            known += [f"train_{name}" for name in names]
        if self.monitor not in known:
            raise KeyError(
                f"monitor={self.monitor!r} is no key of an epoch; choose one of {', '.join(sorted(known))}"
            )


class _SubclassHook(Callback):
    """Call of `Fitter.on_epoch_end`, after the fitter's own callbacks and before the user's."""

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Call the hook of the subclass."""
        fitter.on_epoch_end(epoch, record)


def _check_loader(name: str, loader: Any) -> DataLoader[Any]:
    """Return a DataLoader that has batches."""
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"{name} must be a DataLoader, got {type(loader).__name__}; make one with "
            "make_loaders(view) or DataLoader(view, collate_fn=neural_collate)"
        )
    try:
        empty = len(loader) == 0
    except TypeError:  # a loader over a stream has no length
        empty = False
    if empty:
        raise ValueError(
            f"{name} has no batches: its data set or sampler is empty; check the split or the selection"
        )
    return loader


def _check_trainable(model: Any) -> nn.Module:
    """Return a module with something to fit."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter; set requires_grad=True on what is to be "
            "fitted, or score it as it is with score_model(model, dataset)"
        )
    return model


def _check_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the number type of a precision that the device can fit in."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision='fp16' needs a CUDA device (its gradients are scaled there), got device {device}; "
            "use 'bf16'"
        )
    return PRECISIONS[precision]


# ---- Series of fits: seeds, folds and experiments build every fit here. Each has its own model, and so its
# own optimizer, schedule and callbacks: they are given as functions that make them.

#: ``factory(seed)`` returns the callbacks of the fit with that seed, new ones for each.
CallbackFactory: TypeAlias = Callable[[int], Sequence[Callback]]


def build_fit(
    model: nn.Module,
    train: NeuralDataset | DataLoader[Any],
    val: NeuralDataset | DataLoader[Any],
    *,
    seed: int,
    batch_size: int = 1,
    callbacks: CallbackFactory | None = None,
    more: Sequence[Callback] = (),
    seeds_itself: bool = False,
    **arguments: Any,
) -> Fitter:
    """Return the `Fitter` of one fit of a series; views become loaders shuffled by ``seed``.

    ``seeds_itself``: the caller has not seeded the process. ``more``: callbacks called before
    ``callbacks(seed)``.
    """
    if isinstance(train, NeuralDataset) and isinstance(val, NeuralDataset):
        train, val = make_loaders(train, val, batch_size=batch_size, seed=seed)
    every = [*more, *made_by(callbacks, seed)]
    own_seed = {"seed": seed} if seeds_itself else {}
    return Fitter(model, train, val, callbacks=every, **arguments, **own_seed)  # type: ignore[arg-type]


def made_by(callbacks: CallbackFactory | None, seed: int) -> Sequence[Callback]:
    """Return what a function of the seed makes, or raise TypeError where that is no list."""
    made = () if callbacks is None else callbacks(seed)
    if not isinstance(made, Sequence):
        raise TypeError(
            f"callbacks must return a list of Callback instances for a seed, got {made!r}; for example "
            "lambda seed: [MyCallback()]"
        )
    return made


def check_callback_factory(name: str, callbacks: Any) -> None:
    """Raise TypeError unless ``callbacks`` is None or a function of the seed."""
    if callbacks is not None and (not callable(callbacks) or isinstance(callbacks, Callback)):
        raise TypeError(
            f"{name} must be a function of the seed, since each fit has callbacks of its own: "
            f"lambda seed: [MyCallback()]; got {callbacks!r}"
        )


def check_fitter_arguments(arguments: Mapping[str, Any], managed: Sequence[str], caller: str) -> None:
    """Raise an error for ``fitter_kwargs`` that no fit of a series can take, before anything is trained."""
    taken = [name for name in managed if name in arguments]
    if taken:
        raise ValueError(f"fitter_kwargs: {', '.join(taken)} is managed by {caller}; leave it out")
    known = [name for name in inspect.signature(Fitter).parameters if name not in managed]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise TypeError(f"fitter_kwargs: a Fitter has no {unknown[0]!r}; it has {', '.join(known)}")
    for name, example in (("optimizer", "lambda model: AdamW(model.parameters())"),
                          ("scheduler", "lambda optimizer: StepLR(optimizer, 10)")):  # fmt: skip
        given = arguments.get(name)
        ready = hasattr(given, "step") and not isinstance(given, type)
        if given is not None and (ready or not callable(given)):
            raise ValueError(
                f"fitter_kwargs[{name!r}] must be a function, since each fit has its own model: "
                f"{name}={example}"
            )
    check_callback_factory("fitter_kwargs['callbacks']", arguments.get("callbacks"))


def _check_ends_are_seen(model: Any, batch: Batch) -> None:
    """Raise ValueError where a model that looks ahead would see a batch's padding as sound after a clip."""
    ahead = getattr(model, "lookahead_frames", 0)
    if ahead and len(set(batch.lengths)) > 1 and isinstance(batch.keys[0], int):
        raise ValueError(
            f"the model looks {ahead} bins ahead, and this batch pads clips of {min(batch.lengths)} to "
            f"{max(batch.lengths)} bins: the ends of the shorter ones would see the padding. Use "
            "batch_size=1, or clips of one length (dataset.cut(...))"
        )
