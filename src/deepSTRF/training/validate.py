"""Rules that a model keeps to be fitted, and a trial of them on one short clip before a long run.

Each rule has an exception class of its own. `validate_model` tries them all; a fit raises the same classes
when a prediction breaks a rule. All are ``ValueError``: the model given does not suit the data given.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_not_empty, checked, checked_but, outside_level
from deepSTRF.dsp.pcen import PCEN_EPS
from deepSTRF.models.configurable import placement
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.prediction import evaluating, parts_left_in_eval, predict_clips, start_training
from deepSTRF.models.wav2spec.base import level_range
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.seeds import preserved_random_state

__all__ = [
    "BatchDependenceError",
    "DeviceError",
    "DtypeError",
    "ForwardError",
    "ModelCheck",
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
    "check_level",
    "check_prediction",
    "left_as_found",
    "validate_model",
    "with_standardizer",
]

_Model = TypeVar("_Model", bound=nn.Module)

#: Bins of the excerpt, unless the model's receptive field needs more: 0.5 s at 5 ms.
EXCERPT_BINS = 100
#: Two outputs count as equal when they differ by less than this part of the output's range: single precision
#: with another order of summation (or an FFT) stays below, a real dependence does not.
TOLERANCE = 1e-4
#: Clips whose level is looked at, and how much of each.
LEVEL_CLIPS, LEVEL_MS = 8, 1000.0
#: Lower end of the range of levels above which a floor was raised on purpose.
HIGHEST_DEFAULT = 0.011
#: Share of a spectrogram on its floor from which on there is a warning. Measured in bins with sound, default
#: front-ends: NS1 0.00 (mel) and 0.11 (gammatone), the synthetic recording 0.09 and 0.22.
MOST_ON_FLOOR = 1.0 / 3.0


# ---- the rules


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
    """Return the prediction (B, N, 1, T), or raise the error of the rule that it breaks."""
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
        change = (
            "insert the repeat axis with .unsqueeze(2)" if len(shape) == 3 else "reshape the readout's output"
        )
        raise OutputRankError(f"{start}: it has {len(shape)} axes and must have 4; {change}")
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
    """How many values of a prediction (B, N, 1, T) are not finite, and where the first one is."""
    bad = ~torch.isfinite(values)
    where = bad.nonzero()[0].tolist()
    return f"{int(bad.sum())} of {bad.numel()} values, the first at neuron {where[1]}, bin {where[3]}"


# ---- level of the sounds


def check_level(model: nn.Module, dataset: Any) -> None:
    """Warn when a front-end works outside the range of levels that it states, or mostly on its floor.

    Looks at a second of up to eight clips. Silent bins are left out: a floor is where they belong. Front-ends
    without `expected_level` (a user's own) are not checked, nor those whose floor was raised above the
    default, nor spectrograms.
    """
    front_end = getattr(model, "wav2spec", None)
    expected = getattr(front_end, "expected_level", None)
    if expected is None and getattr(getattr(model, "prefiltering", None), "needs_energy", False):
        expected = level_range("pcen", PCEN_EPS)
    stims: Any = getattr(dataset, "stims", ())
    if expected is None or expected[0] > HIGHEST_DEFAULT:  # somebody chose a threshold
        return
    if not isinstance(front_end, nn.Module) or not len(stims) or stims[0].ndim != 2:
        return
    hop = int(getattr(front_end, "hop", 1))
    bins = max(1, round(LEVEL_MS / 1000.0 * float(getattr(front_end, "audio_fs", hop)) / hop))
    sounds = [_middle(stims[clip], hop, bins) for clip in _spread(len(stims))]
    samples = torch.cat([sound.flatten() for sound in sounds]).double()
    samples = samples[samples != 0]
    if not samples.numel():
        return
    name, rms = type(front_end).__name__, float(samples.square().mean().sqrt())
    level = getattr(dataset, "level", None)
    spl = f" Pa ({20.0 * math.log10(rms / 20e-6):.0f} dB SPL)" if level == "pascal" else ""
    advice = "set its floor (log_floor) to them"
    if level not in ("rms", "peak"):
        advice = (
            "bring the recording to a known level by one factor, AudioNeuralDataset.from_arrays(..., "
            f"level='rms'), or {advice}"
        )
    share, constant = _share_on_floor(front_end, sounds, 1.0)
    if not expected[0] <= rms <= expected[1]:
        limits = f"{expected[0]:g}" + (" or more" if math.isinf(expected[1]) else f" to {expected[1]:g}")
        floor = f", and {share:.0%} of the spectrogram lies on its floor" if share else ""
        text = f"{name} is made for a level of {limits}{floor}"
    elif share > MOST_ON_FLOOR:
        text = f"{share:.0%} of the spectrogram of {name} lies on its floor"
        if _share_on_floor(front_end, sounds, 1.0 / rms)[0] > MOST_ON_FLOOR:
            advice = "lower its floor (log_floor), or give it bands in which the sounds have power"
    elif constant:
        text = f"the spectrogram of {name} is constant"
    else:
        return
    warnings.warn(
        f"the rms of the sounds is {rms:.2g}{spl}, and {text}: scores depend on the level then; {advice}",
        UserWarning,
        stacklevel=outside_level(),
    )


def _spread(n_clips: int) -> list[int]:
    """Clips, evenly spread."""
    return sorted({round(i * (n_clips - 1) / (LEVEL_CLIPS - 1)) for i in range(LEVEL_CLIPS)})


def _middle(sound: Tensor, hop: int, bins: int) -> Tensor:
    """The middle bins (1, n * hop) of a sound."""
    total = sound.shape[-1] // hop
    bins = min(total, bins)
    start = (total - bins) // 2 * hop
    return sound[..., start : start + bins * hop]


def _share_on_floor(front_end: nn.Module, sounds: list[Tensor], gain: float) -> tuple[float, bool]:
    """Share of values on the floor in bins with any sound, and whether all values are the same."""
    device, dtype = placement(front_end)
    hop, floor = int(getattr(front_end, "hop", 1)), getattr(front_end, "output_floor", None)
    values = []
    with evaluating(front_end), left_as_found(front_end):
        for sound in sounds:
            frames = front_end((gain * sound).unsqueeze(0).to(device, dtype))[0, 0].cpu()
            values.append(frames[:, (sound.reshape(-1, hop) != 0).any(1)])
    heard = torch.cat(values, dim=1)
    if not heard.numel():
        return 0.0, False
    share = 0.0 if floor is None else float((heard <= floor + 1e-5 * abs(floor)).double().mean())
    return share, bool(heard.max() == heard.min())


# ---- the whole trial


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put buffers, mode flags and random states back."""
    flags = [(part, part.training) for part in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with preserved_random_state():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if buffer.shape == before.shape:
                    buffer.copy_(before)
        for part, flag in flags:
            part.training = flag


@checked
@dataclass(frozen=True)
class ModelCheck:
    """Result of `validate_model` for a model that keeps all rules.

    Attributes
    ----------
    model : str
        Class name.
    n_parameters : int
        Trainable parameters.
    clip : int
        Clip the model was tried on.
    n_bins : int
        Bins of the excerpt.
    passed : tuple of str
        The rules, in words.
    untrained : tuple of str
        Trainable parameters that no gradient reaches: legal, yet often a mistake.
    seconds : float
        Duration of the check.

    Examples
    --------
    >>> print(ModelCheck("Linear", 10, 0, 100, ("output (B, N, 1, T)",), (), 0.01))
    Linear: 10 trainable parameters, tried on 100 bins of clip 0 in 0.01 s
      ok: output (B, N, 1, T)
    """

    model: str
    n_parameters: int
    clip: int
    n_bins: int
    passed: tuple[str, ...]
    untrained: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.n_parameters:,} trainable parameters, tried on {self.n_bins} bins of clip "
            f"{self.clip} in {self.seconds:.2f} s"
        ]
        lines += [f"  ok: {rule}" for rule in self.passed]
        lines += [f"  note: no gradient reaches {name}" for name in self.untrained]
        return "\n".join(lines)


@checked_but("model")
def validate_model(model: nn.Module, dataset: DatasetLike, *, clip: int | None = None) -> ModelCheck:
    """Check that a model can be fitted to a data set: shapes, numbers, gradients, causality.

    The model is run a few times on a short excerpt of one clip. Its parameters, buffers, gradients, mode
    flags and the random states are as before when it returns or raises.

    Parameters
    ----------
    model : nn.Module
        Any module that maps stimuli (B, 1, F, T) or (B, 1, T_audio) to predictions (B, N, 1, T).
    dataset : DatasetLike
        The recording it is meant for.
    clip : int, optional
        Which clip; None takes the first one that a neuron heard.

    Returns
    -------
    ModelCheck
        What was checked; ``print`` it.

    Raises
    ------
    TypeError
        When ``model`` is no ``nn.Module``.
    ModelRuleError
        One subclass per rule (see `deepSTRF.training.validate`); the text names a remedy.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    >>> validate_model(Linear(ds.F, 9, out_neurons=3), ds).untrained
    ()
    >>> validate_model(Linear(ds.F, 9, out_neurons=7), ds)
    Traceback (most recent call last):
        ...
    deepSTRF.training.validate.NeuronCountError: the model returned a tensor of shape (1, 7, 1, 100), ...
    """
    start = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_not_empty("dataset", dataset)
    _check_parameters(model)
    chosen = _first_heard(dataset) if clip is None else int(clip)
    excerpt = _excerpt(model, dataset, chosen)
    model = with_standardizer(model, dataset, chosen)
    check_level(model, dataset)
    with left_as_found(model):
        pred = _check_output(model, dataset, excerpt)
        _check_rates(model, dataset, excerpt)
        _check_repeatable(model, excerpt, pred)
        _check_causal(model, excerpt, pred)
        _check_batch(model, excerpt, pred)
        untrained = _check_gradients(model, excerpt)
    return ModelCheck(
        model=type(model).__name__,
        n_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        clip=chosen,
        n_bins=excerpt.n_bins,
        passed=(
            "parameters on one device, of one floating type",
            f"output (B, N, 1, T) with N = {dataset.N_neurons} and one value per bin, all finite",
            "the same output twice in eval mode",
            "no bin depends on later sound, nor on how long the clip is"
            if not _ahead(model)
            else f"no bin depends on sound more than the {_ahead(model)} bins after it that the model states",
            "no clip depends on the others in its batch (eval mode)",
            "finite gradients",
        ),
        untrained=untrained,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Excerpt:
    """The first bins of a clip, as the model takes them."""

    stimulus: Tensor  # (1, 1, F, T) or (1, 1, T_audio)
    n_bins: int
    hop: int  # samples (or frames) per bin

    def half(self) -> int:
        return max(1, self.n_bins // 2)


def with_standardizer(model: _Model, dataset: DatasetLike, clip: int) -> _Model:
    """The model, or a copy with its input standardisation measured here while that waits for the fit."""
    standardizer = getattr(model, "standardizer", None)
    if not isinstance(standardizer, nn.Module) or getattr(standardizer, "fitted", True):
        return model
    model = copy.deepcopy(model)
    model.fit_standardization([dataset.stims[clip]])  # type: ignore[operator]
    return model


def _first_heard(dataset: DatasetLike) -> int:
    for clip in range(len(dataset)):
        if not bool(dataset.response_block(clip).isnan().all()):
            return clip
    raise ValueError("no neuron of the dataset has a recorded response; check the selection")


def _excerpt(model: nn.Module, dataset: DatasetLike, clip: int) -> _Excerpt:
    device, dtype = placement(model)
    stimulus = dataset.stims[clip]
    total = dataset.response_block(clip).shape[-1]
    hop = max(1, stimulus.shape[-1] // total)
    field = getattr(model, "receptive_field", None)
    field = field + _ahead(model) if isinstance(field, int) else 0
    n_bins = min(total, max(EXCERPT_BINS, 2 * field))
    return _Excerpt(stimulus[..., : n_bins * hop].unsqueeze(0).to(device, dtype), n_bins, hop)


def _check_parameters(model: nn.Module) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    places = {str(tensor.device): name for name, tensor in tensors.items()}
    if len(places) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise DeviceError(
            f"the model's tensors lie on several devices ({listed}); call model.to(device) once"
        )
    types = {tensor.dtype: name for name, tensor in tensors.items() if tensor.is_floating_point()}
    if len(types) > 1:
        listed = ", ".join(f"{name} is {dtype}" for dtype, name in types.items())
        raise DtypeError(f"the model mixes floating types ({listed}); call model.float() (or .double()) once")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NoGradientError(
            f"{type(model).__name__} has no trainable parameter: register layers in __init__ (as attributes, "
            "or in nn.ModuleList, not in a plain list) and leave requires_grad=True"
        )


def _run(model: nn.Module, stimulus: Tensor, what: str) -> Any:
    try:
        return model(stimulus)
    except Exception as error:
        raise ForwardError(
            f"{type(model).__name__} raised {type(error).__name__} on {what} of shape "
            f"{tuple(stimulus.shape)}: {error}"
        ) from error


def _check_output(model: nn.Module, dataset: DatasetLike, excerpt: _Excerpt) -> Tensor:
    with evaluating(model):
        output = _run(model, excerpt.stimulus, "a stimulus of this dataset")
    fitted = getattr(model, "fitted_on", None)
    neurons = dataset.N_neurons
    if isinstance(fitted, FittedOn) and fitted.match(dataset) and fitted.neurons:
        neurons = len(fitted.neurons)  # which may be more
    pred = check_prediction(output, batch=1, neurons=neurons, bins=excerpt.n_bins)
    if pred.device != excerpt.stimulus.device:
        raise DeviceError(
            f"the input is on {excerpt.stimulus.device}, the output on {pred.device}; create tensors in "
            "forward with device=x.device"
        )
    if pred.dtype != excerpt.stimulus.dtype:
        raise DtypeError(
            f"the input is {excerpt.stimulus.dtype}, the output {pred.dtype}; create tensors in forward with "
            "dtype=x.dtype"
        )
    if not bool(torch.isfinite(pred).all()):
        raise NonFiniteOutputError(
            f"the prediction is not finite ({first_non_finite(pred)}) although the stimulus is: look "
            "for a logarithm or a division without a floor, or initial weights that are too large"
        )
    return pred


def _check_rates(model: nn.Module, dataset: DatasetLike, excerpt: _Excerpt) -> None:
    """A front-end for another sample rate may run all the same; prediction compares the two rates."""
    facts = {name: getattr(dataset, name, None) for name in ("dt", "audio_fs", "hop")}
    try:
        predict_clips(model, SimpleNamespace(stims=[excerpt.stimulus[0]], **facts))
    except ValueError as error:
        raise ForwardError(str(error)) from error


def _tolerance(pred: Tensor) -> float:
    return TOLERANCE * max(
        float(pred.max() - pred.min()), float(pred.abs().max()), torch.finfo(pred.dtype).tiny
    )


def _check_repeatable(model: nn.Module, excerpt: _Excerpt, pred: Tensor) -> None:
    with evaluating(model):
        again = _run(model, excerpt.stimulus, "the same stimulus again")
    if not bool(((again - pred).abs() <= _tolerance(pred)).all()):
        raise NonDeterministicError(
            "two calls with the same stimulus differ in eval mode: switch noise and dropout off there (use "
            "nn.Dropout, or look at self.training), and reset a state kept between calls"
        )


def _perturbed_future(excerpt: _Excerpt) -> Tensor:
    """The stimulus with its second half changed by as much as it spans."""
    changed = excerpt.stimulus.clone()
    start = excerpt.half() * excerpt.hop
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(changed[..., start:].shape, generator=generator).to(changed)
    changed[..., start:] += (1 + excerpt.stimulus.abs().max()) * (noise + 0.5)
    return changed


def _ahead(model: nn.Module) -> int:
    """Bins after its own that a model states that a prediction depends on."""
    return int(getattr(model, "lookahead_frames", 0))


def _check_causal(model: nn.Module, excerpt: _Excerpt, pred: Tensor) -> None:
    half = excerpt.half()
    known = half - _ahead(model)  # predictions before the change that must stay
    if half >= excerpt.n_bins or known < 1:
        return
    with evaluating(model):
        other = _run(model, _perturbed_future(excerpt), "a stimulus with another ending")
        short = _run(model, excerpt.stimulus[..., : half * excerpt.hop], "a shorter stimulus")
    moved = ((other - pred).abs() > _tolerance(pred))[0, :, 0, :known].any(dim=0).nonzero()
    if moved.numel():
        first = int(moved[0])
        raise NonCausalError(
            f"only the sound from bin {half} on was changed, yet the prediction for bin {first} changed: the "
            f"model looks {half - first} bins or more ahead. Pad convolutions on the left only (kernel "
            "length - 1), use no bidirectional layer, and do not normalise over time"
        )
    if tuple(short.shape) != (1, pred.shape[1], 1, half):
        raise TimeAxisError(
            f"a clip of {half} bins gives an output of shape {tuple(short.shape)}, wanted "
            f"{(1, pred.shape[1], 1, half)}: the model must take clips of any length"
        )
    if not bool(((short - pred[..., :half]).abs() <= _tolerance(pred))[..., :known].all()):
        raise NonCausalError(
            "the prediction for a bin depends on how long the clip is: do not normalise, pool or attend over "
            "the whole time axis"
        )


def _check_batch(model: nn.Module, excerpt: _Excerpt, pred: Tensor) -> None:
    changed = _perturbed_future(excerpt)
    pair = torch.cat([excerpt.stimulus, changed])
    with evaluating(model):
        alone = torch.cat([pred, _run(model, changed, "a stimulus with another ending")])
        both = check_prediction(
            _run(model, pair, "a batch of two clips"), batch=2, neurons=pred.shape[1], bins=excerpt.n_bins
        )
    if not bool(((both - alone).abs() <= _tolerance(alone)).all()):
        raise BatchDependenceError(
            "in eval mode the prediction for a clip depends on the other clip in its batch: keep axis 0 "
            "apart everywhere, and let normalisation use running statistics in eval mode"
        )


def _check_gradients(model: nn.Module, excerpt: _Excerpt) -> tuple[str, ...]:
    start_training(model, parts_left_in_eval(model))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    with torch.enable_grad():
        pred = _run(model, excerpt.stimulus, "a stimulus in train mode")
        if not bool(torch.isfinite(pred).all()):
            raise NonFiniteOutputError(
                f"in train mode the prediction is not finite ({first_non_finite(pred)}), in eval mode "
                "it is: look at dropout, noise and batch statistics"
            )
        if not pred.requires_grad:
            raise NoGradientError(
                "the prediction does not depend on any trainable parameter: forward detaches its result, "
                "runs under torch.no_grad(), or goes through NumPy"
            )
        # A random direction: a plain sum would be constant behind a normalisation.
        direction = torch.rand(pred.shape, generator=torch.Generator().manual_seed(0)).to(pred)
        loss = (pred * direction).mean()
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    reached = {name: g for (name, _), g in zip(named, gradients, strict=True) if g is not None}
    for name, gradient in reached.items():
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteOutputError(
                f"the gradient of {name} is not finite although the prediction is: a square root, logarithm "
                "or norm has no slope at zero; add a small constant inside it"
            )
    if not any(bool(gradient.any()) for gradient in reached.values()):
        raise NoGradientError(
            "every gradient is exactly zero: the output activation is saturated (a ReLU that is never "
            "positive). Start with a smoother activation or other initial weights"
        )
    return tuple(name for name, _ in named if name not in reached)
