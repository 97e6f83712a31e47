"""What a model must do to be fitted, one exception class per rule.

`validate_model` tries them all on one short clip; the fit itself raises the same classes when a prediction
breaks a rule. All are ``ValueError``: the model given does not suit the data given.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "BatchDependenceError",
    "DeviceError",
    "DtypeError",
    "ForwardError",
    "ModelRuleError",
    "NeuronCountError",
    "NoGradientError",
    "NonCausalError",
    "NonDeterministicError",
    "NonFiniteOutputError",
    "OutputRankError",
    "OutputShapeError",
    "OutputTypeError",
    "TimeAxisError",
    "check_prediction",
    "first_non_finite",
]


class ModelRuleError(ValueError):
    """A model breaks one of the rules of a fit; the subclass says which."""


class ForwardError(ModelRuleError):
    """The model raises when it is given one of the data set's clips."""


class OutputTypeError(ModelRuleError, TypeError):
    """The model returns something else than one tensor."""


class OutputRankError(ModelRuleError):
    """The prediction does not have four axes (B, N, 1, T)."""


class OutputShapeError(ModelRuleError):
    """The prediction's batch axis or its third axis (which is 1) is wrong."""


class NeuronCountError(OutputShapeError):
    """The model predicts another number of neurons than the data set holds."""


class TimeAxisError(OutputShapeError):
    """The model predicts another number of bins than the clip has."""


class DtypeError(ModelRuleError, TypeError):
    """The prediction, or a parameter, is of a type that cannot be fitted to the data."""


class DeviceError(ModelRuleError):
    """Parameters and buffers lie on several devices, or the output on another one than the input."""


class NonFiniteOutputError(ModelRuleError):
    """The prediction holds NaN or infinite values although the stimulus is finite."""


class NonDeterministicError(ModelRuleError):
    """Two calls in eval mode differ."""


class BatchDependenceError(ModelRuleError):
    """In eval mode the prediction for a clip depends on which other clips are in the batch."""


class NonCausalError(ModelRuleError):
    """The prediction for a bin depends on the stimulus after that bin."""


class NoGradientError(ModelRuleError):
    """No gradient reaches the model's trainable parameters, or there are none."""


def check_prediction(pred: object, *, batch: int, neurons: int, bins: int) -> Tensor:
    """Return the prediction, or raise the error of the rule it breaks.

    Parameters
    ----------
    pred : object
        What the model returned.
    batch, neurons, bins : int
        B, N and T that the data have.

    Returns
    -------
    Tensor, shape (B, N, 1, T)
        The prediction.

    Raises
    ------
    OutputTypeError, OutputRankError, NeuronCountError, TimeAxisError, OutputShapeError, DtypeError
        As their names say.

    Examples
    --------
    >>> check_prediction(torch.zeros(1, 3, 10), batch=1, neurons=3, bins=10)
    Traceback (most recent call last):
        ...
    deepSTRF.training.model_rules.OutputRankError: the model returned a tensor of shape (1, 3, 10), wanted ...
    """
    if not isinstance(pred, Tensor):
        raise OutputTypeError(
            f"the model returned a {type(pred).__name__}; forward must return one tensor (B, N, 1, T), "
            f"here ({batch}, {neurons}, 1, {bins})"
        )
    shape = tuple(pred.shape)
    if shape != (batch, neurons, 1, bins):
        _raise_shape(shape, batch, neurons, bins)
    if not pred.is_floating_point():
        raise DtypeError(f"the model returned {pred.dtype}; a prediction must be floating point (float32)")
    return pred


def _raise_shape(shape: tuple[int, ...], batch: int, neurons: int, bins: int) -> None:
    wanted = f"(B, N, 1, T) = ({batch}, {neurons}, 1, {bins})"
    start = f"the model returned a tensor of shape {shape}, wanted {wanted}"
    if len(shape) != 4:
        mend = (
            "insert the repeat axis with .unsqueeze(2)" if len(shape) == 3 else "reshape the readout's output"
        )
        raise OutputRankError(f"{start}: it has {len(shape)} axes and must have 4; {mend}")
    if sorted(shape) == sorted((batch, neurons, 1, bins)):
        raise OutputShapeError(f"{start}: the axes are in another order; permute the output")
    if shape[1] != neurons and shape[3] != neurons:
        raise NeuronCountError(
            f"{start}: build the model with out_neurons={neurons} (dataset.N_neurons), or select "
            f"{shape[1]} neurons with dataset.select(neurons=...)"
        )
    if shape[3] != bins:
        raise TimeAxisError(
            f"{start}: one prediction per bin is needed. Pad on the left by kernel length - 1 (never on the "
            "right, which looks into the future), and give a waveform front-end a hop of dataset.hop samples"
        )
    raise OutputShapeError(f"{start}: axis 0 is the batch, axis 2 is kept for repeats and has size 1")


def first_non_finite(values: Tensor) -> str:
    """Say how many values of a prediction are not finite and where the first one is.

    Parameters
    ----------
    values : Tensor, shape (B, N, 1, T)
        A prediction.

    Returns
    -------
    str
        Half a sentence.

    Examples
    --------
    >>> first_non_finite(torch.tensor([[[[0.0, float("nan")]]]]))
    '1 of 2 values, the first at neuron 0, bin 1'
    """
    bad = ~torch.isfinite(values)
    where = bad.nonzero()[0].tolist()
    return f"{int(bad.sum())} of {bad.numel()} values, the first at neuron {where[1]}, bin {where[3]}"
