"""One pass over the training clips, one over clips to be scored: the two loops of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepSTRF.training.batches import Batch, BatchSource
from deepSTRF.training.guard import StepGuard, warn_of_untrained
from deepSTRF.training.losses import LossMeter, mean_over_neurons
from deepSTRF.training.model_rules import NoGradientError, check_prediction
from deepSTRF.training.scoring import PassScores

if TYPE_CHECKING:
    from deepSTRF.training.fitter import Fitter

__all__ = ["score_pass", "train_pass"]


def train_pass(
    fitter: Fitter, source: BatchSource, scores: PassScores | None, epoch: int
) -> dict[str, float | Tensor]:
    """Train on every batch once.

    Parameters
    ----------
    fitter : Fitter
        Model, optimiser, hooks.
    source : BatchSource
        Training batches.
    scores : PassScores or None
        Collector for the training predictions.
    epoch : int
        Epoch, for error texts.

    Returns
    -------
    dict
        'loss' and the scores.

    Raises
    ------
    FitDivergedError
        When a loss or gradient is not finite.
    """
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
    """Score every batch once, in eval mode and without gradients; the mode found is put back.

    Parameters
    ----------
    fitter : Fitter
        Model and hooks.
    source : BatchSource
        Batches to score.
    scores : PassScores
        Collector for the predictions.

    Returns
    -------
    dict
        'loss' and the scores.
    """
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
