"""Predictions in the unit of the responses: each neuron's output gain and offset, before and after a fit.

A fit that is stopped by a correlation ends with the right shape and an arbitrary scale: batch normalisation
starts at a gain of 1 where responses are a tenth of a spike per bin, and nothing in the score depends on it
(NS1, linear model: a variance explained of -26 beside a correlation of 0.46). The last stage of such a model
is one gain and one offset per neuron. Setting them by least squares on the training clips changes no
correlation, and makes rates, errors and explained variance meaningful (0.2 in that example).

Before the fit, a gain of 1 does harm where neurons share what is learned (a learnable front-end or
prefilter): the gradients of all neurons then make the shared stage's output smaller instead of better. On NS1
LEAF stopped improving after five epochs that way (validation cc_norm 0.67) and goes on for a hundred (0.75)
when the gains start at the size of the responses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["calibrate_output", "has_output_stage", "start_output"]

#: Correlation a prediction is expected to reach; least squares gives it that share of a neuron's deviation.
EXPECTED_CORRELATION = 0.5


def has_output_stage(model: nn.Module) -> bool:
    """Whether a model ends in a gain and an offset per neuron, which `calibrate_output` sets."""
    return _output_stage(model) is not None


def start_output(model: nn.Module, dataset: Any, *, warmup_ms: float = 0.0) -> bool:
    """Start the output gain and offset at the size of the responses, where neurons share what is learned.

    That is the case when the readout ends in batch normalisation without an activation after it and some
    trained parameter lies outside the readout. The gain becomes half the standard deviation of a neuron's
    PSTH, what least squares gives to a prediction that correlates 0.5 with it, and the offset its mean.
    """
    stage = _output_stage(model)
    if stage is None or not _shares_parameters(model):
        return False
    totals = torch.zeros(3, dataset.N_neurons, dtype=torch.float64)
    for recorded, psth in _psths(dataset, warmup_ms):
        totals += torch.stack([recorded.double(), psth, psth**2]).sum(dim=-1)
    n, total, squares = totals
    mean = total / n.clamp(min=1)
    deviation = (squares / n.clamp(min=1) - mean**2).clamp(min=0).sqrt()
    with torch.no_grad():
        gain = torch.where(deviation > 0, EXPECTED_CORRELATION * deviation, 1.0)
        stage.weight.copy_(gain.to(stage.weight))
        stage.bias.copy_(mean.to(stage.bias))
    return True


def calibrate_output(model: nn.Module, dataset: Any, *, warmup_ms: float = 0.0) -> int:
    """Fit the output gain and offset of every neuron by least squares, where the model ends in such a stage.

    That is the case when its readout ends in batch normalisation without an activation after it. A neuron
    whose prediction does not correlate positively with its training responses keeps its gain, so that no
    correlation changes sign; its offset is set to its mean.
    """
    stage = _output_stage(model)
    if stage is None:
        return 0
    n, sum_p, sum_y, sum_pp, sum_py = _sums(model, dataset, warmup_ms)
    count = n.clamp(min=1)
    mean_p, mean_y = sum_p / count, sum_y / count
    variance, covariance = sum_pp / count - mean_p**2, sum_py / count - mean_p * mean_y
    # relative to the mean square: rounding leaves a little variance in a constant prediction
    varies = variance > torch.finfo(torch.float32).eps * (sum_pp / count)
    usable = varies & (covariance > 0) & (n > 1)
    gain = torch.where(usable, covariance / variance.clamp(min=torch.finfo(variance.dtype).tiny), 1.0)
    offset = torch.where(n > 0, mean_y - gain * mean_p, 0.0)
    with torch.no_grad():
        gain, offset = gain.to(stage.weight), offset.to(stage.bias)
        stage.weight.mul_(gain)
        stage.bias.mul_(gain).add_(offset)
    return int(usable.sum())


def _output_stage(model: nn.Module) -> nn.BatchNorm1d | None:
    """The batch normalisation a model ends in, one gain and offset per neuron."""
    readout = getattr(model, "readout", None)
    stage = getattr(readout, "bn", None)
    if (
        not isinstance(stage, nn.BatchNorm1d)
        or not stage.affine
        or stage.num_features != getattr(model, "O", None)
    ):
        return None
    return stage if isinstance(getattr(readout, "activation", None), nn.Identity) else None


def _shares_parameters(model: Any) -> bool:
    """Whether anything before the readout is trained."""
    own = {id(parameter) for parameter in model.readout.parameters()}
    return any(parameter.requires_grad and id(parameter) not in own for parameter in model.parameters())


def _psths(dataset: Any, warmup_ms: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Per clip, which bins were recorded and the PSTH with zeros elsewhere, both (N, T), in float64."""
    skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
    for clip in range(len(dataset)):
        psth = dataset.response_block(clip)[..., skip:].double().nanmean(dim=1)
        recorded = ~psth.isnan()
        yield recorded, torch.where(recorded, psth, 0.0)


def _sums(model: Any, dataset: Any, warmup_ms: float) -> tuple[Tensor, ...]:
    """Count, sums and products (N,) of prediction and PSTH over the recorded bins, in float64."""
    skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
    totals = torch.zeros(5, dataset.N_neurons, dtype=torch.float64)
    for clip, (recorded, y) in enumerate(_psths(dataset, warmup_ms)):
        pred = model.predict(dataset, clips=[clip])[0][:, skip:].double()
        p = torch.where(recorded, pred, 0.0)
        totals += torch.stack([recorded.double(), p, y, p * p, p * y]).sum(dim=-1)
    return tuple(totals)
