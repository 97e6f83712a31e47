"""The receptive field in the waveform: the gradient of a response with respect to the samples before it.

Also the duration of any receptive field: how far back a share of its absolute mass lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._validation import (
    FloatArray,
    NeuronSelection,
    as_numbers,
    check_positive_number,
    check_share,
    checked,
    checked_but,
    neuron_indices,
    to_tensor,
)
from deepSTRF.interpret.sonify import write_wav
from deepSTRF.models.configurable import placement
from deepSTRF.models.gradients import NoFrontEndError
from deepSTRF.models.prediction import evaluating

#: What is kept of a field: a little more than its duration, within bounds for listening and plotting.
MARGIN, SHORTEST_S, LONGEST_S = 1.3, 0.3, 2.0


@checked
def rf_duration_ms(
    gradmap: Any, audio_fs: float | None = None, mass: float = 0.99, *, dt_ms: float | None = None
) -> float | FloatArray:
    """Return how far back from its end a share of a gradient map lies: the length of a receptive field.

    Give the rate of the last axis: ``audio_fs`` for one map over samples, ``dt_ms`` for maps over frames.

    Parameters
    ----------
    gradmap : Tensor or array (T_audio,), or (..., F, T)
        From ``model.waveform_gradmap(..., reduce="last")``; or with ``dt_ms`` from ``model.STRF_gradmap()``,
        the most recent frame last.
    audio_fs : float, optional
        Samples per second.
    mass : float
        Share of the summed absolute gradient, above 0 and at most 1.
    dt_ms : float, optional
        Milliseconds per frame.

    Returns
    -------
    float or array
        Milliseconds, 0 for a map of zeros. Over samples one number: the age of the sample at which the share
        is reached. Over frames, which count whole, one number per map, (N,) for maps (N, 1, F, T) or (N, F,
        T).

    Raises
    ------
    ValueError, TypeError
        For a map of another rank or with NaN, a share or rate out of range, or none or both of the rates.

    Examples
    --------
    >>> rf_duration_ms([0.0, 0.0, 1.0, 1.0, 0.0], audio_fs=1000)
    2.0
    >>> rf_duration_ms([[[0.0, 2.0, 1.0]], [[0.0, 0.0, 1.0]]], dt_ms=5.0)
    array([10.,  5.])
    """
    field = np.abs(as_numbers(gradmap, "gradmap"))
    if not np.isfinite(field).all():
        raise ValueError("gradmap holds values that are not finite; leave such maps out")
    check_share("mass", mass)
    if (audio_fs is None) == (dt_ms is None):
        raise ValueError(
            "give the rate of the last axis: audio_fs (hertz) for samples or dt_ms (ms) for frames, not both"
        )
    if dt_ms is not None:
        if field.ndim < 2 or field.size == 0:
            raise ValueError(f"gradmap must be spectro-temporal (..., F, T), got shape {field.shape}")
        frame_ms = check_positive_number("dt_ms", dt_ms)
        if field.ndim > 3:  # (N, 1, F, T): channels share the map
            field = field.sum(axis=tuple(range(1, field.ndim - 2)))
        summed = np.cumsum(field.sum(axis=-2)[..., ::-1], axis=-1)
        total = summed[..., -1:]
        short = (summed < mass * total).sum(axis=-1)
        frames: FloatArray = np.where(total[..., 0] > 0, short + 1.0, 0.0) * frame_ms
        return frames
    if field.ndim != 1 or field.size == 0:
        raise ValueError(f"gradmap must be one waveform (T_audio,), got shape {field.shape}; take one row")
    rate = check_positive_number("audio_fs", audio_fs)
    summed = np.cumsum(field[::-1])
    return float(np.searchsorted(summed, mass * summed[-1])) / rate * 1000.0


@checked
@dataclass(frozen=True)
class WaveformField:
    """The receptive field of one neuron in the waveform, in the bin of its strongest predicted response.

    Attributes
    ----------
    neuron : int
        Which.
    gradmap : float32 array (T_audio,)
        Gradient of that response with respect to the samples before it; the last is the end of its bin.
    stim : float32 array (T_audio,)
        The sound in the same stretch.
    audio_fs : float
        Samples per second.
    duration_ms : float
        How far back 99% of the absolute gradient lies, over the whole sound before the response.
    response_bin : int
        The bin of that response in the clip.

    Examples
    --------
    >>> WaveformField(0, np.zeros(8), np.zeros(8), 16000.0, 0.5, 12).neuron
    0
    """

    neuron: int
    gradmap: NDArray[np.float32]
    stim: NDArray[np.float32]
    audio_fs: float
    duration_ms: float
    response_bin: int

    @checked
    def write_wav(self, path: str | Path, **options: Any) -> Path:
        """Write the field as a WAV file: the sound that, added to the stimulus, raises the response most.

        Parameters
        ----------
        path : str or Path
            File.
        **options
            See `deepSTRF.interpret.write_wav`.

        Returns
        -------
        Path
            The file.
        """
        return write_wav(path, self.gradmap, self.audio_fs, **options)


@checked_but("model", "neurons")
def waveform_fields(model: Any, stim: Tensor, neurons: NeuronSelection = None) -> list[WaveformField]:
    """Return the receptive fields in the waveform of neurons, each where the sound drives it most.

    Parameters
    ----------
    model : AudioEncodingModel
        A model with a front-end.
    stim : Tensor (T_audio,), (1, T_audio) or (1, 1, T_audio)
        The sound.
    neurons : int, slice or sequence of int, optional
        Which neurons, in which order; negative numbers count from the end. None is all.

    Returns
    -------
    list of WaveformField
        One per neuron, cropped to 1.3 times its duration, within 0.3 to 2 seconds. Responses in the first 0.3
        seconds of the clip (or in the length of the memory that the model states) are passed over, as their
        past is missing.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, 4, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8))
    >>> fields = waveform_fields(model, torch.randn(16000), [2, -1])
    >>> [field.neuron for field in fields]
    [2, 3]
    >>> fields[0].duration_ms <= 3 * 5 + 5  # three frames, and a window that is one bin longer than a bin
    True
    """
    if isinstance(model.wav2spec, nn.Identity):
        raise NoFrontEndError(f"this {type(model).__name__} has no front-end; use model.STRF_gradmap()")
    if getattr(model, "lookahead_frames", 0):
        raise ValueError(
            f"this {type(model).__name__} looks {model.lookahead_frames} frames ahead, and a field ends with "
            "the response: take dstrf(model, stim, wrt='samples'), whose filters hold what comes after it"
        )
    sound = to_tensor(stim)
    if sound.numel() == 0 or sound.numel() != sound.shape[-1]:
        raise ValueError(
            f"stim must be one sound (T_audio,), (1, T_audio) or (1, 1, T_audio), got {tuple(sound.shape)}; "
            "take one clip, one channel"
        )
    if not bool(sound.isfinite().all()):
        raise ValueError("stim must be finite, it holds NaN or infinity")
    sound, (device, dtype) = sound.reshape(-1), placement(model)
    with evaluating(model):
        rates = model(sound[None, None].to(device, dtype))[0, :, 0]
    return [_field(model, sound, rates[n], n) for n in neuron_indices(neurons, len(rates))]


def _field(model: Any, sound: Tensor, rate: Tensor, number: int) -> WaveformField:
    """The field of one neuron, from its rate (T,) to a sound (T_audio,)."""
    fs, hop = float(model.wav2spec.audio_fs), int(model.wav2spec.hop)
    # a field needs a past: the onset of the clip is left out where it can be, for the length of the memory
    memory = getattr(model.wav2spec, "receptive_field_samples", 0) + hop * (model.receptive_field or 0)
    first = min(math.ceil(max(SHORTEST_S * fs, memory) / hop), len(rate) - 1)
    response_bin = first + int(rate[first:].argmax())
    past = sound[: (response_bin + 1) * hop]
    field = model.waveform_gradmap(past, neuron=number).cpu().float().numpy()
    duration_ms = float(rf_duration_ms(field, fs))
    length = round(fs * min(LONGEST_S, max(SHORTEST_S, MARGIN * duration_ms / 1000.0)))
    stim = past.cpu().float().numpy()[-length:]
    return WaveformField(number, field[-length:], stim, fs, duration_ms, response_bin)
