"""Gradient maps: the gradient of a prediction with respect to a spectrogram or a waveform.

A positive value is excitatory: more sound there raises the prediction. Maps are taken in eval mode, by
``torch.autograd.grad`` with respect to the stimulus alone; training flags, ``requires_grad`` and ``.grad`` of
the model are afterwards as they were.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._moved import earlier_keywords
from deepSTRF._validation import (
    NeuronSelection,
    check_choice,
    check_differentiable,
    check_positive_int,
    checked_but,
    neuron_indices,
    to_tensor,
)
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import differentiating

__all__ = ["UNBOUNDED_WINDOW", "GradientMaps", "NoFrontEndError"]

#: Frames of a map of a model without a finite receptive field (300 ms of 5 ms bins): a choice that shows the
#: onset and the first suppression. Give ``T`` for another one.
UNBOUNDED_WINDOW = 60
#: What the graph of one chunk of neurons may hold, and the largest chunk: more gives no more speed.
_GRAPH_BYTES = 2**28
_LARGEST_CHUNK = 128


class NoFrontEndError(ValueError, RuntimeError):
    """The model takes spectrograms, so no gradient reaches a waveform."""


class GradientMaps:
    """Mixin of audio models: gradients of the prediction with respect to spectrogram and waveform."""

    @checked_but("neurons")
    def STRF_gradmap(
        self,
        T: int | None = None,
        *,
        stimulus: Tensor | None = None,
        reduce: str = "last",
        neurons: NeuronSelection = None,
        chunk: int | None = None,
        unit: str | None = None,
    ) -> Tensor:
        """Return the gradient of the prediction with respect to the spectrogram (F, T'): (N, 1, F, T).

        The front-end is bypassed, prefilter and standardisation are not: with ``unit="raw"`` the map is in
        prediction per unit of the spectrogram, the kernel of a linear model (Rançon, Masquelier & Cottereau
        2025, doi 10.1038/s42003-025-08858-3). ``unit="sd"`` is per standard deviation of each band of the
        training sounds, as peaks of bands of different variance cannot be compared otherwise; a band without
        variance has 0. None is "sd" for a fitted model, "raw" where no fit has measured the bands.
        """
        model: Any = self
        check_choice("unit", unit, (None, "sd", "raw"))
        check_choice("reduce", reduce, ("last", "mean"))
        if chunk is not None:
            chunk = check_positive_int("chunk", chunk)
        ahead = int(getattr(model, "lookahead_frames", 0))
        around, frames = _expansion_point(model, T, stimulus)
        with differentiating(model):
            if reduce == "last":
                around = _cropped(model, around, frames)
            n_neurons, graph_bytes = _measured_response(model, around)
            wanted = neuron_indices(neurons, n_neurons)
            at_once = chunk or max(1, min(_LARGEST_CHUNK, _GRAPH_BYTES // max(1, graph_bytes)))
            maps = around.new_empty(len(wanted), *around.shape[1:3], frames)
            for first in range(0, len(wanted), at_once):
                part = wanted[first : first + at_once]
                # one copy of the stimulus per neuron: clips are independent in eval mode, so the gradient of
                # the summed objectives holds every neuron's own, and nothing of size N x N is made
                x = around.repeat(len(part), 1, 1, 1).requires_grad_()
                own = model.respond(x)[range(len(part)), part, 0]
                own = own[:, : own.shape[1] - ahead] if reduce == "last" else own
                objective = own[:, -1].sum() if reduce == "last" else own.mean(-1).sum()
                (gradient,) = torch.autograd.grad(objective, x)
                maps[first : first + at_once] = gradient[..., -frames:]
        in_unit = getattr(model, "_in_unit", None)
        return maps if in_unit is None else in_unit(maps, unit)

    @earlier_keywords
    @checked_but("neuron")
    def waveform_gradmap(self, stim: Tensor, neuron: NeuronSelection = None, reduce: str = "last") -> Tensor:
        """Return the gradient of the prediction with respect to the samples of a sound, both (T_audio,)."""
        model: Any = self
        if isinstance(model.wav2spec, nn.Identity):
            raise NoFrontEndError(
                f"this {type(model).__name__} has no front-end, so no gradient reaches a waveform: build it "
                "with wav2spec=make_wav2spec('mel', audio_fs, dt_ms) or another front-end, or use "
                "STRF_gradmap()"
            )
        check_choice("reduce", reduce, ("last", "peak", "sum"))
        device, dtype = placement(model)
        with differentiating(model):
            sound = _mono(stim).to(device, dtype).clone().requires_grad_()
            rates = _checked_output(model(sound), sound)[0, :, 0]
            alone = neuron is None or isinstance(neuron, numbers.Integral)
            series = (
                [rates.sum(0)] if neuron is None else [rates[n] for n in neuron_indices(neuron, len(rates))]
            )
            maps = sound.new_empty(len(series), sound.shape[-1])
            for index, one in enumerate(series):
                again = index + 1 < len(series)
                (gradient,) = torch.autograd.grad(_over_time(one, reduce), sound, retain_graph=again)
                maps[index] = gradient[0, 0]
        _check_finite(model, maps)
        return maps[0] if alone else maps


def _expansion_point(model: Any, T: int | None, stimulus: Tensor | None) -> tuple[Tensor, int]:
    """The spectrogram (1, 1, F, T') to differentiate around, and how many of its last frames are wanted."""
    device, dtype = placement(model)
    field = getattr(model, "receptive_field", None)
    frames = check_positive_int("T", T) if T is not None else _window(model, field)
    if stimulus is None:
        standardizer = getattr(model, "standardizer", None)
        null = torch.zeros(model.F) if standardizer is None else standardizer.mean
        return null.detach().to(device, dtype).view(1, 1, -1, 1).repeat(1, 1, 1, frames), frames
    given = to_tensor(stimulus).detach()
    if given.ndim not in (2, 3, 4) or given.numel() != given.shape[-2:].numel() or given.shape[-2] != model.F:
        raise ValueError(
            f"stimulus must be one spectrogram ({model.F}, T), got {tuple(given.shape)}; for a waveform pass "
            "stimulus=model.spectrogram(waveform), with the waveform (1, 1, T_audio)"
        )
    available = given.shape[-1]
    if available < 1 or (T is not None and frames > available):
        raise ValueError(
            f"stimulus has {available} frames, fewer than T={frames}; lower T or give more of it"
        )
    around = given.to(device, dtype).reshape(1, 1, model.F, available)
    return around.clone(), min(frames, available)


def _window(model: Any, field: int | None) -> int:
    """Frames of a map: those that a prediction depends on, the ones after it included."""
    return int(field or UNBOUNDED_WINDOW) + int(getattr(model, "lookahead_frames", 0))


def _cropped(model: Any, around: Tensor, frames: int) -> Tensor:
    """Crop a long stimulus to the receptive field of its last frame, if the response there stays the same."""
    field = getattr(model, "receptive_field", None)
    if field is None or around.shape[-1] <= max(frames, _window(model, field)):
        return around
    recent = around[..., -max(frames, _window(model, field)) :].contiguous()
    last = -1 - int(getattr(model, "lookahead_frames", 0))
    with torch.no_grad():
        whole, part = model.respond(around)[..., last], model.respond(recent)[..., last]
    return recent if torch.allclose(whole, part, rtol=1e-5, atol=1e-6) else around


def _measured_response(model: Any, around: Tensor) -> tuple[int, int]:
    """Respond once and return the number of neurons and the bytes that a graph keeps per clip."""
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    x = around.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = _checked_output(model.respond(x), x)
    return y.shape[1], held + (x.numel() + y.numel()) * x.element_size()


def _checked_output(y: Tensor, x: Tensor) -> Tensor:
    if y.ndim != 4 or y.shape[0] != x.shape[0] or y.shape[2] != 1:
        raise ValueError(f"the model must return ({x.shape[0]}, N, 1, T), it returned {tuple(y.shape)}")
    check_differentiable(y)
    return y


def _mono(stim: Tensor) -> Tensor:
    sound = to_tensor(stim).detach()
    if sound.ndim not in (1, 2, 3) or sound.shape[-1] == 0 or sound.numel() != sound.shape[-1]:
        raise ValueError(
            "stim must be one mono sound (T_audio,), (1, T_audio) or (1, 1, T_audio), got "
            f"{tuple(sound.shape)}; take one clip at a time, and mix channels with stim.mean(0)"
        )
    return sound.reshape(1, 1, -1)


def _over_time(series: Tensor, reduce: str) -> Tensor:
    """Reduce one neuron's response (T,) to the number that is differentiated."""
    if reduce == "last":
        return series[-1]
    # the first of equal maxima: the gradient of max() would be shared among them
    return series[series.argmax()] if reduce == "peak" else series.sum()


def _check_finite(model: Any, maps: Tensor) -> None:
    broken = int((~torch.isfinite(maps)).any(0).sum()) if len(maps) else 0
    if broken:
        raise ValueError(
            f"the gradient is not finite at {broken} of {maps.shape[-1]} samples: "
            f"{type(model.wav2spec).__name__} has no slope there, as sqrt and log have none at digital "
            "silence; give it one, e.g. torch.sqrt(power + 1e-9)"
        )
