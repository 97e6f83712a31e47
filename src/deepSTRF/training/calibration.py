"""Predictions in the unit of the responses: each neuron's output gain and offset, fitted after training.

A fit that is stopped by a correlation ends with the right shape and an arbitrary scale: batch normalisation
starts at a gain of 1 where responses are a tenth of a spike per bin, and nothing in the score asks for more
(NS1, linear model: a variance explained of -26 beside a correlation of 0.46). The last stage of such a model
is one gain and one offset per neuron. Setting them by least squares on the training clips changes no
correlation, and makes rates, errors and explained variance mean something (0.2 in that example).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["calibrate_output"]


def calibrate_output(model: nn.Module, dataset: Any, *, warmup_ms: float = 0.0) -> int:
    """Fit the output gain and offset of every neuron by least squares, where the model ends in such a stage.

    That is the case when its readout ends in batch normalisation without an activation after it. A neuron
    whose prediction does not correlate positively with its training responses keeps its gain, so that no
    correlation changes sign; its offset is set to its mean.

    Parameters
    ----------
    model : NeuralModel
        A fitted model; changed in place.
    dataset : NeuralDataset
        Training clips.
    warmup_ms : float
        Onset of each clip left out, as in the fit.

    Returns
    -------
    int
        How many neurons were given a gain; 0 when the model has no such stage.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=3, clip_seconds=0.5)
    >>> calibrate_output(Linear(ds.F, 3, 2, norm="none"), ds)
    0
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


def _sums(model: Any, dataset: Any, warmup_ms: float) -> tuple[Tensor, ...]:
    """Count, sums and products (N,) of prediction and PSTH over the recorded bins, in float64."""
    skip = math.ceil(warmup_ms / dataset.dt - 1e-9)
    totals = torch.zeros(5, dataset.N_neurons, dtype=torch.float64)
    for clip in range(len(dataset)):
        pred = model.predict(dataset, clips=[clip])[0][:, skip:].double()
        psth = dataset.response_block(clip)[..., skip:].double().nanmean(dim=1)
        recorded = ~psth.isnan()
        p, y = torch.where(recorded, pred, 0.0), torch.where(recorded, psth, 0.0)
        totals += torch.stack([recorded.double(), p, y, p * p, p * y]).sum(dim=-1)
    return tuple(totals)
