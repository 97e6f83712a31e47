"""Fits of models that predict a probability for every spike count."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from deepSTRF._files import save_or_warn, save_tensors
from deepSTRF._validation import (
    check_count,
    check_device,
    check_loader,
    check_monitor_key,
    check_non_negative,
    check_precision,
    check_trainable,
)
from deepSTRF.metrics import mse_loss
from deepSTRF.training.cache import ByteBudget, FrontEndCache, FrontEndFeed
from deepSTRF.training.callbacks import (
    BestWeights,
    EarlyStopping,
    FitDisplay,
    PerNeuronBest,
    StepGuard,
    check_monitor,
    fit_standardizer,
    open_display,
    warn_of_untrained,
)
from deepSTRF.training.data import (
    Batch,
    BatchSource,
    FeedSettings,
    make_source,
)
from deepSTRF.training.evaluation import Metric, PassScores, make_scores
from deepSTRF.training.objective import LossMeter, LossTraits, loss_traits, mean_over_neurons
from deepSTRF.training.optimization import make_optimizer, make_scheduler, optimizer_facts
from deepSTRF.training.resume import FitStateFile, apply_state, collect_state, fit_signature
from deepSTRF.training.seeds import seeded
from deepSTRF.training.validate import NoGradientError, check_prediction

__all__ = ["CountFitter", "Fitter", "predicts_counts", "score_pass", "step_scheduler", "train_pass"]


def step_scheduler(scheduler: Any, score: float) -> None:
    """Move a schedule on by one epoch; one that waits for a plateau is given the monitored score."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(score)
    elif scheduler is not None:
        scheduler.step()


# ------------------------------------------------------------------------------
# One pass over the training clips, one over clips to be scored: the two loops of a fit.


def train_pass(
    fitter: Fitter, source: BatchSource, scores: PassScores | None, epoch: int
) -> dict[str, float | Tensor]:
    """Train on every batch once."""
    fitter.model.train()
    meter = LossMeter()
    guard = StepGuard(fitter.model, epoch, at_once=fitter.device.type == "cpu")
    if scores is not None:
        scores.begin()
    reached: set[str] = set()
    for batch in source:
        pred, loss = _training_step(fitter, batch, guard)
        if epoch == 0:  # later ones would say the same
            reached |= {n for n, p in fitter.model.named_parameters() if p.grad is not None}
        meter.add(loss, batch.weights)
        if scores is not None:
            scores.add(batch, pred)
        guard.batch += 1
    if guard.batch == 0:
        raise ValueError("train_loader gave no batches; check the split, the sampler or drop_last")
    guard.finish()
    if epoch == 0:
        warn_of_untrained(fitter.model, reached)
    result: dict[str, float | Tensor] = {"loss": meter.result()}
    if scores is not None:
        result.update(scores.result())
    return result


def score_pass(fitter: Fitter, source: BatchSource, scores: PassScores) -> dict[str, float | Tensor]:
    """Score every batch once, in eval mode and without gradients; the mode found is put back."""
    was_training = fitter.model.training
    fitter.model.eval()
    meter = LossMeter()
    scores.begin()
    served = 0
    try:
        with torch.no_grad():
            for batch in source:
                pred = _predict(fitter, batch)
                meter.add(fitter.compute_loss(pred, batch.targets), batch.weights)
                scores.add(batch, pred)
                served += 1
    finally:
        fitter.model.train(was_training)
    if served == 0:
        raise ValueError("the loader to be scored gave no batches; check the split or the sampler")
    return {"loss": meter.result(), **scores.result()}


def _predict(fitter: Fitter, batch: Batch) -> Tensor:
    """Prediction (B, N, 1, T) of a batch, checked, in the parameters' type and without the warm-up."""
    fitter.batch = batch
    size, neurons, _, bins = batch.targets.shape
    reduced = fitter.precision != "float32"
    with torch.autocast(fitter.device.type, dtype=fitter.autocast_dtype, enabled=reduced):
        output = fitter.predict_batch(batch)
    pred = check_prediction(output, batch=size, neurons=neurons, bins=bins + batch.skip)
    if reduced:
        pred = pred.to(batch.targets.dtype)
    return pred[..., batch.skip :] if batch.skip else pred


def _training_step(fitter: Fitter, batch: Batch, guard: StepGuard) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; returns the detached prediction and the loss before averaging."""
    fitter.optimizer.zero_grad(set_to_none=True)
    pred = _predict(fitter, batch)
    loss = fitter.compute_loss(pred, batch.targets)
    total = mean_over_neurons(loss, batch.weights)
    guard.watch(total, batch, pred, "loss")
    if not total.requires_grad:
        raise NoGradientError(
            "the loss does not depend on any trainable parameter: forward (or compute_loss) detaches its "
            "result, runs under torch.no_grad(), or goes through NumPy"
        )
    scaler = fitter.scaler
    scaler.scale(total).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(fitter.optimizer)
    limit = fitter.grad_clip if fitter.grad_clip is not None else torch.inf
    parameters = [parameter for group in fitter.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if not scaler.is_enabled():  # scaled gradients may overflow: the scaler skips such steps
        guard.watch(norm, batch, pred, "gradient norm")
    scaler.step(fitter.optimizer)
    scaler.update()
    detach = getattr(fitter.model, "detach", None)
    if callable(detach):
        detach()
    return pred.detach(), loss.detach()


# ------------------------------------------------------------------------------
# `Fitter`: train a model on a recording, keep the best weights, stop when nothing gets better.


#: Clips (stimuli and targets) that may stay on the device; all of NS1 takes 12 MB, as waveforms 29 MB.
DEFAULT_CLIP_BYTES = 512 * 2**20


class Fitter:
    """Fit a model to a recording: train, validate, stop early, end with the best weights.

    Each epoch runs once over the training clips and once over the validation clips. The epoch with the best
    monitored score is remembered, and its weights are back in the model when `fit` returns, fails or is
    interrupted.

    ``train_loss`` and ``val_loss`` are the same quantity: the mean over neurons of each neuron's mean loss
    over all its valid bins of the pass. Training scores are those of the predictions made while training.

    Parameters
    ----------
    model : nn.Module
        Maps stimuli (B, 1, F, T) or (B, 1, T_audio) to predictions (B, N, 1, T). Moved to ``device``.
    train_loader, val_loader : DataLoader
        Yield what `neural_collate` makes; `make_loaders` builds them from views.
    loss_fn : callable
        ``loss_fn(pred, responses)``: a scalar, or one value per neuron (N,). A loss marked ``accepts_psth =
        True`` is given the PSTH (B, N, 1, T), any other the repeats (B, N, R, T).
    val_metrics : mapping of str to callable, optional
        ``metric(pred, responses)`` on the concatenated pass, one value per neuron (N,) or a scalar. None
        gives ``cc`` and ``cc_norm`` (Schoppe's, centred on the concatenated clips).
    optimizer : torch.optim.Optimizer or callable, optional
        None is AdamW with learning rate 1e-3 and weight decay 1e-4. A function is called with the model and
        returns one.
    device : str or torch.device
        Where to fit.
    max_epochs : int
        Most epochs.
    patience : int
        Stop after this many epochs in a row without a better score.
    monitor : str
        Key of the score to follow, such as 'val_cc_norm' or 'val_loss'; a vector over neurons counts by its
        mean.
    mode : str
        'max' or 'min': which way is better.
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
        Largest norm of the gradient.
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
        Bytes of clips that may stay on the device; what does not fit is read again each epoch.

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

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        *,
        loss_fn: Callable[..., Tensor] = mse_loss,
        val_metrics: Mapping[str, Metric] | None = None,
        optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
        device: str | torch.device = "cpu",
        max_epochs: int = 1000,
        patience: int = 10,
        monitor: str = "val_cc_norm",
        mode: str = "max",
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
    ) -> None:
        self.device = check_device(device)
        self.model = check_trainable(model).to(self.device)
        self.train_loader = check_loader("train_loader", train_loader)
        self.val_loader = check_loader("val_loader", val_loader)
        self.loss_fn, self.val_metrics = loss_fn, val_metrics
        self.max_epochs = check_count("max_epochs", max_epochs)
        self.stopping = EarlyStopping(mode, check_count("patience", patience), min_delta)
        self.monitor, self.mode = monitor, mode
        self.ckpt_path, self.state_path = ckpt_path, state_path
        self.log_fn, self.progress = log_fn, progress
        self.track_train_metrics = track_train_metrics
        self.precision = precision
        self.autocast_dtype = check_precision(precision, self.device)
        self.grad_clip = None if grad_clip is None else check_non_negative("grad_clip", grad_clip)
        self.warmup_ms = check_non_negative("warmup_ms", warmup_ms)
        self.seed, self.fast = seed, fast
        self.optimizer = make_optimizer(optimizer, self.model)
        self.scheduler = make_scheduler(scheduler, self.optimizer, mode)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.per_cell = PerNeuronBest(self.model, mode) if track_per_cell_best else None
        self._cache = FrontEndCache() if front_end_cache is None else front_end_cache
        self._clip_bytes = clip_bytes
        self.history: list[dict[str, Any]] = []
        self.batch: Batch | None = None
        self.data_path: dict[str, str] = {}
        self._optimizer_facts = optimizer_facts(self.optimizer)
        self._traits = self._read_traits()
        self._state: FitStateFile | None = None
        self._best = BestWeights(self.model)
        self._checkpoint_pending = False

    # ------------------------------------------------------------------ what a subclass may override

    def predict_batch(self, batch: Batch) -> Tensor:
        """Return the model's output (B, N, 1, T) for a batch; override it for models with further inputs.

        ``batch.extras`` holds what else the loader gave.
        """
        # From the cache come spectrograms: what is left of a NeuralModel is the part behind its front-end.
        forward = self.model.respond if batch.is_spectrogram else self.model
        return forward(batch.inputs)  # type: ignore[no-any-return, operator]

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
        """
        if self._traits.per_neuron:
            return self.loss_fn(pred, responses, reduction="none")
        return self.loss_fn(pred, responses)

    def on_epoch_end(self, epoch: int, record: dict[str, Any]) -> None:
        """Do nothing; a subclass may look at the record of each finished epoch, or add to it.

        With a ``state_path``, what is added comes back in a resumed fit: numbers, text and tensors as they
        are, anything else as text.
        """

    # ------------------------------------------------------------------ what a user calls

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
        budget = ByteBudget(self._clip_bytes)
        train, val = self._source(self.train_loader, budget), self._source(self.val_loader, budget)
        self.data_path = {"train": train.note, "val": val.note}
        train_scores = (
            make_scores(self.val_metrics, stable=train.stable) if self.track_train_metrics else None
        )
        val_scores = make_scores(self.val_metrics, stable=val.stable)
        check_monitor_key(
            self.monitor,
            val_scores.names,
            with_train=self.track_train_metrics,
            per_cell=self.per_cell is not None,
        )
        fit_standardizer(self.model, train, self.train_loader)
        self._start(train, val)
        display = open_display(self.progress, self.log_fn, max_epochs=self.max_epochs, monitor=self.monitor)
        try:
            with self._seeded(), display:
                self._resume()
                for epoch in range(len(self.history), self.max_epochs):
                    if self.stopping.exhausted:
                        break
                    record: dict[str, Any] = {"epoch": epoch}
                    for name, value in train_pass(self, train, train_scores, epoch).items():
                        record[f"train_{name}"] = value
                    for name, value in score_pass(self, val, val_scores).items():
                        record[f"val_{name}"] = value
                    self._finish_epoch(epoch, record, display)
        finally:
            self._end()
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
        loader = check_loader("loader", loader)
        source = self._source(loader, ByteBudget(0))  # one pass: nothing to keep
        return score_pass(self, source, make_scores(self.val_metrics, stable=source.stable))

    @property
    def best_epoch(self) -> int | None:
        """Epoch with the best monitored score, None before the first."""
        return self.stopping.best_epoch

    @property
    def best_score(self) -> float | None:
        """The monitored score of that epoch."""
        return self.stopping.best_score

    # ------------------------------------------------------------------ the parts of a fit

    def _read_traits(self) -> LossTraits:
        traits = loss_traits(self.loss_fn)
        if type(self).compute_loss is not Fitter.compute_loss:  # somebody's own loss: give it all there is
            traits = dataclasses.replace(traits, accepts_psth=False)
        return traits

    def _source(self, loader: DataLoader[Any], budget: ByteBudget) -> BatchSource:
        self._traits = self._read_traits()
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        settings = FeedSettings(self.device, dtype, self._traits, self.warmup_ms)
        own_forward = type(self).predict_batch is not Fitter.predict_batch  # it expects stimuli
        setting = f"{self.device} {dtype} {self.precision}"
        feed = None if own_forward else FrontEndFeed(self.model, self._cache, setting)
        return make_source(loader, settings, fast=self.fast, feed=feed, budget=budget)

    def _seeded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.seed is None else seeded(self.seed)

    def _start(self, train: BatchSource, val: BatchSource) -> None:
        """Begin a fit of its own: a second call of `fit` starts from the present weights."""
        self.history = []
        self.stopping = EarlyStopping(self.mode, self.stopping.patience, self.stopping.min_delta)
        self.per_cell = None if self.per_cell is None else PerNeuronBest(self.model, self.mode)
        self._best = BestWeights(self.model)
        self._state = None
        if self.state_path is not None:
            self._state = FitStateFile(
                self.state_path, fit_signature(self, self._optimizer_facts, train, val)
            )

    def _resume(self) -> None:
        stored = self._state.load() if self._state is not None else None
        if stored is not None:
            apply_state(self, self._best, stored)

    def _finish_epoch(self, epoch: int, record: dict[str, Any], display: FitDisplay) -> None:
        score = check_monitor(self.monitor, record[self.monitor], epoch, record)
        if self.stopping.update(epoch, score):
            self._best.take(self.model)
            self._write_checkpoint()
        if self.per_cell is not None:
            self.per_cell.update(self.model, record[self.monitor])
        step_scheduler(self.scheduler, score)
        self.history.append(record)
        self.on_epoch_end(epoch, record)
        display.show(record, self.best_epoch, self.best_score)
        if self._state is not None:
            state = self._state
            save_or_warn("state_path", state.path, lambda: state.save(collect_state(self, self._best)))

    def _end(self) -> None:
        """Leave the model as its best epoch had it, however the fit ended."""
        self.batch = None
        self._best.restore(self.model)
        if self.per_cell is not None:
            self.per_cell.overlay(self.model)
            self._best.take(self.model)
            self._checkpoint_pending |= self.best_epoch is not None
        if self._checkpoint_pending:  # what the disk refused, or what the overlay changed
            self._write_checkpoint()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()

    def _write_checkpoint(self) -> None:
        path = self.ckpt_path
        if path is not None:
            saved = save_or_warn("ckpt_path", path, lambda: save_tensors(path, self._best.state))
            self._checkpoint_pending = not saved


# ------------------------------------------------------------------------------


class CountFitter(Fitter):
    """A `Fitter` for models with a categorical head: the loss is the cross-entropy of the recorded counts.

    Scores compare the expected counts with the responses, as for any model; the loss sees the logits. The
    recording holds counts: load it with ``smooth=False``. Arguments are those of `Fitter`.

    Examples
    --------
    >>> from deepSTRF.models.audio import ICNet
    >>> predicts_counts(ICNet(8000, 3, head="categorical", n_filters=4, encoder_channels=6))
    True
    """

    def predict_batch(self, batch: Batch) -> Tensor:
        """Return the expected counts (B, N, 1, T) and keep the logits for the loss."""
        model: Any = self.model
        self._logits: Tensor = model.forward_params(batch.inputs)
        return model.expected_counts(self._logits)  # type: ignore[no-any-return]

    def compute_loss(self, pred: Tensor, responses: Tensor) -> Tensor:
        """Return the cross-entropy per neuron (N,); ``pred`` says how many bins the warm-up left."""
        model: Any = self.model
        return model.loss(self._logits[..., -pred.shape[-1] :], responses, reduction="none")  # type: ignore[no-any-return]


def predicts_counts(model: nn.Module) -> bool:
    """Say whether a model predicts a probability for every spike count.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> predicts_counts(Linear(8, 3, 2))
    False
    """
    return getattr(getattr(model, "readout", None), "head", None) == "categorical"
