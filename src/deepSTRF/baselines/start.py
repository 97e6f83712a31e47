"""Start of a linear model from a ridge estimate: kernel, biases, batch normalisation and output activation.

Behind a softplus, gain and offset of the drive are found by quadrature and bisection, so that the output has
the estimate's mean and slope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import checked
from deepSTRF.baselines.linear_fit import LinearFit
from deepSTRF.baselines.ridge import fit_ridge
from deepSTRF.models.activations import ParametricSoftplus
from deepSTRF.models.audio.linear import Linear
from deepSTRF.models.configurable import placement
from deepSTRF.models.norms import BandStandardizer
from deepSTRF.models.prediction import evaluating

__all__ = ["fit_start", "start_from_ridge"]

#: Most of the mean response that the baseline of a softplus may be at the start: the rest is for the drive.
BASELINE_SHARE = 0.25
#: Quadrature over a normal distribution, and halvings of an interval: both beyond single precision.
N_NODES, N_HALVINGS = 64, 50


@checked
def start_from_ridge(model: Linear, fit: LinearFit, train: Any = None) -> Linear:
    """Start a linear model from a ridge estimate, as closely as its kernel can represent it.

    A full kernel gets the STRFs themselves, a separable one their singular value decomposition, a parametric
    one Gaussians fitted to them (the kernel's ``init_from``). Biases follow, and batch
    normalisation starts with the statistics, gain and offset under which the model predicts in the unit of
    the responses. Train it with a `Fitter` as any other model.

    Parameters
    ----------
    model : Linear
        Changed in place. Bands, window, channels and neurons must be those of the estimate.
    fit : LinearFit
        From `fit_ridge`, or another linear fit, with ``n_lags`` equal to the model's window, and the same
        prefilter and front-end.
    train : NeuralDataset, optional
        Training clips, on which the statistics of batch normalisation are measured for the kernel as it is;
        None takes those of the ridge estimate, which a kernel of few parameters only approximates.

    Returns
    -------
    Linear
        The model.

    Raises
    ------
    TypeError
        For a kernel that has no ``init_from``.
    ValueError
        When sizes differ, neurons, bins or bands of ``train``, or standardisations in front of a prefilter.

    Notes
    -----
    A model that does not standardise has raw zeros before a clip where the estimate has the mean level: its
    first ``T - 1`` predictions differ. In front of the softplus of `LinearNonlinear`, whose knee is wider
    than most rates, the drive is scaled and moved, so that predictions begin with the estimate's mean and
    with slope 1 over it. Any other output activation comes on top of the estimate as it is.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.baselines.ridge import fit_ridge
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> fit = fit_ridge(ds, n_lags=9, lambdas=100.0)
    >>> model = Linear(ds.F, 9, 3, kernel={"kernel": "separable", "rank": 9}, standardize=True)
    >>> rates = start_from_ridge(model, fit, ds).eval().predict(ds)[0]
    >>> torch.allclose(rates, fit.model.predict(ds)[0], atol=1e-4)
    True
    """
    _check_sizes(model, fit)
    if train is not None and fit.model.fitted_on is not None:
        fit.model.fitted_on.check_same(train, "train", "the ridge estimate")
    weight, bias = _in_units_of(model, fit)
    if train is not None:
        model.measure_bands(train.stims)
    elif fit.model.band_std is not None:
        device, dtype = placement(model)
        model.band_std = fit.model.band_std.to(device, dtype)
    gain, offset = _before_activation(model, fit)
    if model.readout.norm == "none":
        weight = weight * gain[:, None, None, None]
        bias = gain * (bias - fit.drive_mean) + offset
    convolution = model.readout.strf
    kernel: Any = convolution.kernel
    if isinstance(kernel, nn.Conv2d):
        with torch.no_grad():
            kernel.weight.copy_(weight)
    elif callable(getattr(kernel, "init_from", None)):
        kernel.init_from(weight)
    else:
        raise TypeError(
            f"the kernel {type(kernel).__name__} cannot start from an estimate: give it a method "
            "init_from(weight) that takes (C_out, C_in, F, T)"
        )
    if getattr(kernel, "bias", None) is not None:
        with torch.no_grad():
            kernel.bias.copy_(bias)
    if model.readout.norm == "batch":
        _start_norm(model, fit, train, gain, offset)
    model.fitted_on = fit.model.fitted_on
    model.output_scale.start()  # the estimate is in the unit of the responses
    return model


def fit_start(model: nn.Module, train: Any, validation: Any, *, warmup_ms: float = 0.0) -> None:
    """Fit a ridge estimate with a model's own window, front-end and prefilter; start the model from it."""
    if not isinstance(model, Linear):
        raise TypeError(
            f"start='ridge' is for models of one STRF per neuron (linear, linear_nonlinear), not for "
            f"{type(model).__name__}; leave it out"
        )
    front_end = None if isinstance(model.wav2spec, nn.Identity) else model.wav2spec
    prefilter = None if isinstance(model.prefiltering, nn.Identity) else model.prefiltering
    ends = (model.first_lag * train.dt, (model.first_lag + model.T - 1) * train.dt)
    fit = fit_ridge(
        train,
        validation,
        n_lags=model.T,
        lags_ms=ends if model.first_lag else None,
        wav2spec=front_end,
        prefiltering=prefilter,
        standardize=prefilter is None or model.standardizer is not None,
        warmup_ms=warmup_ms,
    )
    start_from_ridge(model, fit, train)


def _check_sizes(model: Linear, fit: LinearFit) -> None:
    has = (model.O, model.C_in, model.F, model.T)
    if has != tuple(fit.weight.shape):
        raise ValueError(
            f"the model has (neurons, channels, bands, frames) = {has} and the ridge estimate "
            f"{tuple(fit.weight.shape)}; fit it with n_lags={model.T} on the same recording, prefilter and "
            "front-end"
        )
    if model.first_lag != fit.model.first_lag:
        raise ValueError(
            f"the lags of the model begin at {model.first_lag} bins, those of the ridge estimate at "
            f"{fit.model.first_lag}: build both with the same lags_ms"
        )


def _in_units_of(model: Linear, fit: LinearFit) -> tuple[Tensor, Tensor]:
    """Weights (N, C, F, T) and biases (N,) on the model's own input, in double precision."""
    source, target = fit.model.standardizer, model.standardizer
    if target is not None and not target.fitted and source is not None:
        target.load_state_dict(source.state_dict())
    elif target is not None and not target.fitted:
        raise ValueError(
            "the model standardises its bands and neither it nor the ridge estimate has measured them: call "
            "model.fit_standardization(stimuli) first, or fit_ridge(..., standardize=True)"
        )
    (mean_in, std_in), (mean_out, std_out) = _moments(source, model.F), _moments(target, model.F)
    if torch.equal(mean_in, mean_out) and torch.equal(std_in, std_out):
        return fit.weight, fit.bias
    prefiltered = not isinstance(model.prefiltering, nn.Identity)
    if prefiltered:
        raise ValueError(
            "model and ridge estimate standardise their bands differently, in front of a prefilter; build "
            f"the model with standardize={source is not None}"
        )
    # w . (x - m) / s = (w s' / s) . (x - m') / s' + w . (m' - m) / s
    shift = torch.einsum("ncft,f->n", fit.weight, (mean_out - mean_in) / std_in)
    return fit.weight * (std_out / std_in)[:, None], fit.bias + shift


def _moments(standardizer: BandStandardizer | None, n_bands: int) -> tuple[Tensor, Tensor]:
    if standardizer is None:
        return torch.zeros(n_bands, dtype=torch.float64), torch.ones(n_bands, dtype=torch.float64)
    return standardizer.mean.detach().cpu().double(), standardizer.std.detach().cpu().double()


def _before_activation(model: Linear, fit: LinearFit) -> tuple[Tensor, Tensor]:
    """Gain (N,) around the mean drive, and the new mean (N,), with which the output is the estimate's.

    The estimate's drive is taken as normally distributed. Behind a softplus, ``offset + gain (drive - mean)``
    then has outputs of the drive's own mean and of slope 1 over it. Neurons without a drive, or with a mean
    that no softplus can have, are left as they are.
    """
    mean, deviation = fit.drive_mean.clone(), fit.drive_variance.clamp(min=0).sqrt()
    activation = model.readout.activation
    possible = (mean > 0) & (deviation > 0)
    if not isinstance(activation, ParametricSoftplus) or not bool(possible.any()):
        return torch.ones_like(mean), mean
    with torch.no_grad():
        lowest = BASELINE_SHARE * mean.to(activation.b)
        activation.lower_baseline(torch.where(possible.to(lowest.device), lowest, torch.inf))
        beta, baseline = activation.beta.double().cpu(), activation.b.double().cpu()
    wanted = torch.where(possible, mean - baseline, 1.0)
    spread = torch.where(possible, deviation, 1.0)
    nodes, weights = (torch.from_numpy(one) for one in np.polynomial.hermite_e.hermegauss(N_NODES))
    weights = weights / weights.sum()

    def rates(scale: Tensor, shift: Tensor) -> Tensor:
        drive = shift[:, None] + scale[:, None] * nodes
        return functional.softplus(beta[:, None] * drive) / beta[:, None]

    def shift_of(scale: Tensor) -> Tensor:
        margin = 60.0 / beta + 10.0 * scale + beta * scale**2
        return _bisect(
            lambda shift: (rates(scale, shift) * weights).sum(1) < wanted, -margin, wanted + margin
        )

    def too_flat(scale: Tensor) -> Tensor:
        return (rates(scale, shift_of(scale)) * weights * nodes).sum(1) < spread

    scale = _bisect(too_flat, torch.zeros_like(spread), 4.0 * spread * (1.0 + 1.0 / (beta * wanted)))
    offset = shift_of(scale)
    return torch.where(possible, scale / spread, 1.0), torch.where(possible, offset, mean)


def _bisect(is_low: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where an increasing function, one per neuron, stops being too low."""
    for _ in range(N_HALVINGS):
        middle = 0.5 * (low + high)
        below = is_low(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def _start_norm(model: Linear, fit: LinearFit, train: Any, gain: Tensor, offset: Tensor) -> None:
    """Set statistics, gain and offset of batch normalisation so that its output is the drive wanted."""
    norm = model.readout.bn
    mean, variance = (fit.drive_mean, fit.drive_variance) if train is None else _drive_moments(model, train)
    variance = torch.where(variance > 0, variance, 1.0)  # a neuron without data: any scale will do
    with torch.no_grad():
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt() * gain)
        norm.bias.copy_(offset)  # that of the mean response, whatever the kernel's approximation lost


def _drive_moments(model: Linear, train: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance (N,) of the kernel's output over all training bins."""
    seen: list[Tensor] = []
    handle = model.readout.strf.register_forward_hook(lambda _, __, drive: seen.append(drive.detach()))
    try:
        with evaluating(model):
            model.predict(train)
    finally:
        handle.remove()
    drive = torch.cat([one[0, :, 0].cpu().double() for one in seen], dim=1)
    return drive.mean(1), drive.var(1, correction=0)
