"""Maximally exciting stimuli: gradient ascent of a response under an energy limit.

The stimulus stays on the sphere of the given energy; each step is a turn towards the gradient, halved until
the response rises, so that there is no step size to choose. Of a linear model the best stimulus is the STRF.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._validation import (
    FloatArray,
    NeuronSelection,
    as_numbers,
    check_choice,
    check_positive_int,
    check_positive_number,
    checked_but,
    neuron_indices,
)
from deepSTRF.interpret.sonify import sonify_spectrogram, write_wav
from deepSTRF.models.configurable import placement
from deepSTRF.models.gradients import NoFrontEndError
from deepSTRF.models.prediction import differentiating, evaluating

#: Frames searched in a model without a finite receptive field, as in its gradient maps.
UNBOUNDED_FRAMES = 60
#: Values of the stimuli that are searched together: a front-end's graph holds hundreds of times as much.
BATCH_VALUES = 2**18
#: A sound is limited in root mean square: -20 dB re full scale, an ordinary level.
SOUND_RMS = 0.1
#: A step turns the stimulus by at most this angle, towards its gradient; it is halved until the response
#: rises, so many times, and then the search for this stimulus ends.
LARGEST_TURN, HALVINGS = 0.5 * math.pi, 14


@dataclass(frozen=True)
class ExcitingStimulus:
    """Stimuli that maximise the responses of K neurons, all of one energy.

    Attributes
    ----------
    neurons : list of int. Which neurons.
    stimulus : array (K, F, T) or (K, T_audio). The stimuli: deviations from the null stimulus, as
        spectrograms (times ``scale``) or as samples.
    null : array (F, T) or (T_audio,). The null stimulus they deviate from: what the model sees is the sum.
    energy : float. Sum of squares of each stimulus; of a spectrogram in the unit that was asked for.
    response : array (K,). Response to each stimulus, in the model's unit.
    null_response, start_response : array (K,). Response to the null stimulus, and the best of the starts
        before the search.
    n_steps : int array (K,). Steps that raised the response, in the best of the searches.
    converged : bool array (K,). Whether that search ended by itself, as no turn raised the response any more;
        else ``n_steps`` was too small.
    agreement : array (K,). Smallest cosine between the best stimulus and those of other starts that reached
        99 % of its gain: 1 when all found the same, low when there are several best stimuli. NaN with one
        such start.
    dt_ms : float or None. Bin in ms of a sound; spectrograms leave it to the caller.
    audio_fs : float or None. Samples per second of a sound.
    scale : array (F, 1) or (1, 1) or None. Of spectrograms: size of one unit of the stimulus in each band,
        the standard deviations of a fitted model or 1. What the model sees is ``null + scale * stimulus``.
    """

    neurons: list[int]
    stimulus: FloatArray
    null: FloatArray
    energy: float
    response: FloatArray
    null_response: FloatArray
    start_response: FloatArray
    n_steps: NDArray[np.int64]
    converged: NDArray[np.bool_]
    agreement: FloatArray
    dt_ms: float | None = None
    audio_fs: float | None = None
    scale: FloatArray | None = None

    def write_wav(
        self,
        path: str | Path,
        neuron: int,
        *,
        frequencies_hz: Any = None,
        dt_ms: float | None = None,
        audio_fs: float | None = None,
        scale: str = "amplitude",
    ) -> Path:
        """Write the stimulus of one neuron as a WAV file.

        Parameters
        ----------
        path : str or Path
            File.
        neuron : int
            One of `neurons`.
        frequencies_hz, dt_ms, audio_fs : optional
            Needed for a spectrogram: its bands, its bin, and the rate of the file.
        scale : {"amplitude", "ln"}
            What a spectrogram's values are, see `sonify_spectrogram`. With "ln" null and stimulus are added
            first; otherwise the sound is that of the positive part of the stimulus.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ValueError
            For a neuron that is not there, or a spectrogram without bands and rates.
        """
        if neuron not in self.neurons:
            raise ValueError(f"neuron must be one of {self.neurons}, those searched; got {neuron!r}")
        stimulus = self.stimulus[self.neurons.index(neuron)]
        if self.audio_fs is not None:
            return write_wav(path, stimulus, self.audio_fs)
        if frequencies_hz is None or dt_ms is None or audio_fs is None:
            raise ValueError("a spectrogram becomes sound with frequencies_hz=, dt_ms= and audio_fs=")
        size = 1.0 if self.scale is None else self.scale
        pattern = self.null + size * stimulus if scale == "ln" else stimulus
        sound = sonify_spectrogram(pattern, frequencies_hz, dt_ms, audio_fs, scale=scale)
        return write_wav(path, sound, audio_fs)


@checked_but("model", "neurons")
def exciting_spectrogram(
    model: Any,
    neurons: NeuronSelection = None,
    *,
    T: int | None = None,
    energy: float = 1.0,
    null: Any = None,
    reduce: str = "last",
    n_steps: int = 100,
    n_starts: int = 3,
    seed: int = 0,
    unit: str | None = None,
) -> ExcitingStimulus:
    """Search the spectrogram that maximises each neuron's response, at a given energy.

    The stimulus is a deviation from a null stimulus and stays on the sphere of the given energy. Each step
    turns it towards the gradient, by the largest angle (of up to a quarter turn, halved until it fits) that
    raises the response. For a linear model one step suffices: the stimulus has the shape of the STRF.

    Parameters
    ----------
    model : AudioEncodingModel
        Any model on spectrograms (``respond``), or any module that maps (B, 1, F, T) to (B, N, 1, T) and has
        ``F``; a front-end is bypassed.
    neurons : int, slice or sequence of int, optional
        Which neurons; negative numbers count from the end. None is all.
    T : int, optional
        Frames. None is ``receptive_field`` where that is finite, else 60; and those that the model looks
        ahead.
    energy : float
        Sum of squares of the deviation, in ``unit``; choose it as large as that of clips: about F * T per
        standard deviation, ``((clip - clip.mean()) ** 2).sum()`` over T frames in raw units.
    null : float, array (F,) or (F, T), optional
        The null stimulus. None is 0, or each band's mean in a model that standardises its input.
    reduce : {"last", "mean"}
        Which response: in the last frame, or its mean over the T frames.
    n_steps : int
        Most steps of a search.
    n_starts : int
        Searches per neuron: the first starts at the gradient at the null stimulus, the others at random.
    seed : int
        Of the random starts.
    unit : {None, "sd", "raw"}
        In which deviations of different bands are compared: standard deviations of the training sounds, so
        that a band that hardly varied takes little of the energy (none without variance), or units of the
        spectrogram. None is "sd" for a fitted model, else "raw".

    Returns
    -------
    ExcitingStimulus
        The best stimulus of each neuron in ``unit``, the current frame last.

    References
    ----------
    Walker et al. 2019, doi 10.1038/s41593-019-0517-x; for the linear case the matched filter.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(8, 5, 2, norm="none")
    >>> found = exciting_spectrogram(model, neurons=[1], energy=4.0)
    >>> strf = model.STRFs()[1].numpy()
    >>> bool(np.allclose(found.stimulus[0], 2.0 * strf / np.linalg.norm(strf), atol=1e-5))
    True
    """
    check_choice("reduce", reduce, ("last", "mean"))
    if not isinstance(model, nn.Module) or not hasattr(model, "F"):
        raise TypeError(
            f"model must be an nn.Module with F, its number of bands, got {type(model).__name__}; wrap a "
            "function in a module whose forward maps (B, 1, F, T) to (B, N, 1, T)"
        )
    device, dtype = placement(model)
    ahead = int(getattr(model, "lookahead_frames", 0))
    if T is None:
        T = (getattr(model, "receptive_field", None) or UNBOUNDED_FRAMES) + ahead
    frames = check_positive_int("T", T)
    base = _null(model, null, frames).to(device, dtype)
    respond: Callable[[Tensor], Tensor] = getattr(model, "respond", model)
    check_choice("unit", unit, (None, "sd", "raw"))
    std = None if unit == "raw" else getattr(model, "band_std", None)
    if unit == "sd" and std is None:
        raise ValueError("unit='sd' needs a fitted model, which knows the standard deviations of its bands")
    scale = torch.ones(1, 1).to(base) if std is None else std.to(base).unsqueeze(1)

    def responses(x: Tensor) -> Tensor:
        return _reduced(respond((base + scale * x).unsqueeze(1)), reduce, ahead)

    found = _search(
        model, responses, base, neurons, check_positive_number("energy", energy), n_steps, n_starts, seed
    )
    return replace(found, scale=as_numbers(scale))


@checked_but("model", "neurons")
def exciting_sound(
    model: Any,
    neurons: NeuronSelection = None,
    *,
    duration_ms: float = 200.0,
    rms: float = SOUND_RMS,
    reduce: str = "last",
    n_steps: int = 100,
    n_starts: int = 3,
    seed: int = 0,
) -> ExcitingStimulus:
    """Search the sound that maximises each neuron's response, at a given root mean square.

    As `exciting_spectrogram`, through the front-end down to the samples. Many sounds are equally good where
    the front-end drops phase, which `agreement` then shows.

    Parameters
    ----------
    model : AudioEncodingModel, or Stream of one
        A model with a front-end; of a stream its model, from rest. What has no gradient is searched by
        `search_sound`.
    neurons : int, slice or sequence of int, optional
        Which neurons; negative numbers count from the end. None is all.
    duration_ms : float
        Length, rounded up to whole bins; what comes before is silence.
    rms : float
        Root mean square of the sound.
    reduce : {"last", "mean"}
        Which response: in the last bin, or its mean over the sound.
    n_steps, n_starts, seed : int
        See `exciting_spectrogram`. All starts are weak noise: silence has no gradient in many front-ends.

    Returns
    -------
    ExcitingStimulus
        The best sound of each neuron.

    Raises
    ------
    NoFrontEndError, ValueError, TypeError, IndexError
        For a model without a front-end, or an illegal argument.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, 2, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8))
    >>> found = exciting_sound(model, neurons=0, duration_ms=20.0, n_steps=5, n_starts=1)
    >>> found.stimulus.shape, bool(found.response[0] >= found.start_response[0])
    ((1, 320), True)
    """
    if not isinstance(model, nn.Module):
        streamed = getattr(model, "model", None)
        if not isinstance(streamed, nn.Module):
            raise TypeError(
                f"model must be an nn.Module, or a stream of one, got {type(model).__name__}; search_sound "
                "needs no gradient"
            )
        model = streamed
    if isinstance(getattr(model, "wav2spec", nn.Identity()), nn.Identity):
        raise NoFrontEndError(
            f"this {type(model).__name__} has no front-end: use exciting_spectrogram, whose result can "
            "be written as sound"
        )
    check_choice("reduce", reduce, ("last", "mean"))
    device, dtype = placement(model)
    ahead = int(getattr(model, "lookahead_frames", 0))
    fs, hop = float(model.wav2spec.audio_fs), int(model.wav2spec.hop)
    n_bins = max(1, math.ceil(check_positive_number("duration_ms", duration_ms) * fs / 1000.0 / hop - 1e-9))
    null = torch.zeros(n_bins * hop, device=device, dtype=dtype)

    def responses(x: Tensor) -> Tensor:
        return _reduced(model(x.unsqueeze(1)), reduce, ahead)

    energy = null.numel() * check_positive_number("rms", rms) ** 2
    found = _search(model, responses, null, neurons, energy, n_steps, n_starts, seed, from_null=False)
    return ExcitingStimulus(**{**found.__dict__, "dt_ms": 1000.0 * hop / fs, "audio_fs": fs})


def _reduced(rates: Tensor, reduce: str, ahead: int) -> Tensor:
    """Responses (B, N) of rates (B, N, 1, T): the mean, or the last whose frames ahead are inside."""
    last = -1 - min(ahead, rates.shape[-1] - 1)
    return rates[:, :, 0, last] if reduce == "last" else rates[:, :, 0].mean(-1)


def _null(model: Any, null: Any, frames: int) -> Tensor:
    """The null stimulus (F, T): the one given, else 0, or the means of a model that standardises."""
    standardizer = getattr(model, "standardizer", None)
    if null is None:
        null = 0.0 if standardizer is None else standardizer.mean.detach()
    values = torch.from_numpy(as_numbers(null, "null"))
    if values.ndim == 1:
        values = values.unsqueeze(1)
    if values.ndim > 2 or values.shape[:1] not in ((), (1,), (model.F,)) or values.shape[1:] not in (
        (), (1,), (frames,),
    ):  # fmt: skip
        raise ValueError(
            f"null must be a number, ({model.F},) or ({model.F}, {frames}), got {tuple(values.shape)}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError("null must be finite, it holds NaN or infinity")
    return values.expand(model.F, frames).clone()


def _search(
    model: Any,
    responses: Callable[[Tensor], Tensor],
    null: Tensor,
    neurons: NeuronSelection,
    energy: float,
    n_steps: int,
    n_starts: int,
    seed: int,
    from_null: bool = True,
) -> ExcitingStimulus:
    """Best stimuli of several starts: ``responses`` maps deviations (B, ...) from ``null`` to (B, N)."""
    n_steps, n_starts = check_positive_int("n_steps", n_steps), check_positive_int("n_starts", n_starts)
    radius = math.sqrt(energy)
    with evaluating(model):
        at_null = responses(torch.zeros_like(null).unsqueeze(0))[0]
    wanted = neuron_indices(neurons, len(at_null))
    if not wanted:
        raise ValueError("neurons must name at least one neuron; None is all")
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, BATCH_VALUES // null.numel())
    found = []
    with differentiating(model):
        for start in range(n_starts):
            draws = torch.randn((len(wanted), *null.shape), generator=generator, dtype=torch.float64)
            parts = []
            for first in range(0, len(wanted), at_once):
                some, x = wanted[first : first + at_once], draws[first : first + at_once].to(null)
                if start == 0 and from_null:
                    slope = _values_and_slopes(responses, torch.zeros_like(x), some)[1]
                    x = torch.where(_norms(slope) > 0, slope, x)
                parts.append(_ascend(responses, radius * x / _norms(x), some, radius, n_steps))
            found.append([torch.cat(part) for part in zip(*parts, strict=True)])
    return _best_of(found, wanted, null, energy, at_null[wanted])


def _best_of(
    found: list[list[Tensor]], wanted: list[int], null: Tensor, energy: float, at_null: Tensor
) -> ExcitingStimulus:
    """The best of the searches of each neuron, and how far others as good agree with it."""
    stimuli, values, starts, steps, ended = (torch.stack(part) for part in zip(*found, strict=True))
    best, rows = values.argmax(0), torch.arange(len(wanted), device=values.device)
    chosen, top = stimuli[best, rows], values[best, rows]
    flat = stimuli.flatten(2)
    cosine = (flat * chosen.flatten(1)).sum(-1) / energy
    as_good = values - at_null >= 0.99 * (top - at_null)
    as_good[best, rows] = False
    agreement = torch.where(as_good, cosine, torch.inf).amin(0)
    return ExcitingStimulus(
        neurons=wanted,
        stimulus=as_numbers(chosen),
        null=as_numbers(null),
        energy=energy,
        response=as_numbers(top),
        null_response=as_numbers(at_null),
        start_response=as_numbers(starts.amax(0)),
        n_steps=steps[best, rows].cpu().numpy().astype(np.int64),
        converged=ended[best, rows].cpu().numpy(),
        agreement=as_numbers(torch.where(agreement.isinf(), torch.nan, agreement)),
    )


def _ascend(
    responses: Callable[[Tensor], Tensor], x: Tensor, wanted: list[int], radius: float, n_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn each stimulus towards its gradient until nothing raises its response.

    Returns stimuli, their responses, those of the starts, steps that raised it, whether it ended by itself.
    """
    values, slopes = _values_and_slopes(responses, x, wanted)
    first = values.clone()
    steps = torch.zeros(len(wanted), dtype=torch.long, device=x.device)
    active = torch.ones(len(wanted), dtype=torch.bool, device=x.device)
    largest = torch.full_like(values, LARGEST_TURN)
    # within this angle of the gradient the search ends: what is left to gain is below the rounding
    least_angle = math.sqrt(torch.finfo(x.dtype).eps)
    for _ in range(n_steps):
        unit = x / radius
        aside = slopes - _dot(slopes, unit) * unit
        size = _norms(aside)
        # the angle to the gradient: for a linear response the maximum lies there exactly
        angle = torch.atan2(size, _dot(slopes, unit)).flatten(1)[:, 0]
        active &= angle > least_angle
        if not bool(active.any()):
            break
        direction = aside / torch.where(size > 0, size, torch.ones_like(size))
        turn = torch.minimum(angle, largest)
        better = torch.zeros_like(active)
        for _ in range(HALVINGS):
            theta = _like(turn, x)
            candidate = radius * (torch.cos(theta) * unit + torch.sin(theta) * direction)
            with torch.no_grad():
                response = responses(candidate)[range(len(wanted)), wanted]
            rises = active & ~better & (response > values)
            x = torch.where(_like(rises, x), candidate, x)
            better |= rises
            if bool((better | ~active).all()):
                break
            turn = torch.where(better, turn, 0.5 * turn)
        active &= better
        steps += better
        largest = torch.clamp(2.0 * turn, max=LARGEST_TURN)
        values, slopes = _values_and_slopes(responses, x, wanted)
    return x, values, first, steps, ~active


def _values_and_slopes(
    responses: Callable[[Tensor], Tensor], x: Tensor, wanted: list[int]
) -> tuple[Tensor, Tensor]:
    """Response (K,) of each neuron to its own stimulus, and the gradient (K, ...)."""
    x = x.detach().requires_grad_()
    own = responses(x)[range(len(wanted)), wanted]
    (slopes,) = torch.autograd.grad(own.sum(), x)
    return own.detach(), torch.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each item of two batches, broadcastable to them."""
    return _like((a * b).flatten(1).sum(1), a)


def _norms(x: Tensor) -> Tensor:
    """Euclidean norm of each item of a batch, broadcastable to it."""
    return _like(x.flatten(1).norm(dim=1), x)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Values (K,) with singleton axes up to those of a batch (K, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
