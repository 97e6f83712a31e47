"""The receptive field in the sound itself: which samples before a response drove it, and how far back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF.models.causal import placement
from deepSTRF.models.gradients import NoFrontEndError
from deepSTRF.models.neuron_selection import neuron_indices
from deepSTRF.models.prediction import evaluating

__all__ = ["WaveformField", "rf_duration_ms", "waveform_field"]

#: What is kept of a field: a little more than it lasts, long enough to be heard, short enough for a page.
MARGIN, SHORTEST_S, LONGEST_S = 1.3, 0.3, 2.0


@dataclass(frozen=True)
class WaveformField:
    """The receptive field of one neuron in the waveform, at the moment of its strongest predicted response.

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


def waveform_field(model: Any, stim: Tensor, neuron: int) -> WaveformField:
    """Return a neuron's receptive field in the waveform, where a sound drives it most.

    Parameters
    ----------
    model : AudioEncodingModel
        A model with a front-end.
    stim : Tensor (T_audio,), (1, T_audio) or (1, 1, T_audio)
        The sound.
    neuron : int
        Which neuron; negative numbers count from the end.

    Returns
    -------
    WaveformField
        The field, cropped to 1.3 times its duration, within 0.3 to 2 seconds. Responses in the first 0.3
        seconds of the clip are passed over, as their past is missing.

    Raises
    ------
    ValueError, IndexError
        As `deepSTRF.models.gradients.waveform_gradmap`.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8))
    >>> field = waveform_field(model, torch.randn(16000), neuron=0)
    >>> field.duration_ms <= 3 * 5 + 5  # three frames, and a window that is one bin longer than a bin
    True
    """
    if isinstance(model.wav2spec, nn.Identity):
        raise NoFrontEndError(f"this {type(model).__name__} has no front-end; use model.STRF_gradmap()")
    sound, (device, dtype) = torch.as_tensor(stim), placement(model)
    with evaluating(model):
        rates = model(sound.reshape(1, 1, -1).to(device, dtype))[0, :, 0]
    (number,) = neuron_indices(neuron, len(rates))
    fs, hop = float(model.wav2spec.audio_fs), int(model.wav2spec.hop)
    # a field needs a past: the onset of the clip is left out where there is more
    first = min(round(SHORTEST_S * fs / hop), rates.shape[1] - 1)
    response_bin = first + int(rates[number, first:].argmax())
    heard = sound.reshape(-1)[: (response_bin + 1) * hop]
    field = model.waveform_gradmap(heard, neuron=number).cpu().float().numpy()
    duration_ms = rf_duration_ms(field, fs)
    length = round(fs * min(LONGEST_S, max(SHORTEST_S, MARGIN * duration_ms / 1000.0)))
    past = heard.cpu().float().numpy()
    return WaveformField(number, field[-length:], past[-length:], fs, duration_ms, response_bin)


def rf_duration_ms(gradmap: Any, audio_fs: float, mass: float = 0.99) -> float:
    """Return how far back from its end a share of a gradient map lies: the length of a receptive field.

    Parameters
    ----------
    gradmap : Tensor or array (T_audio,)
        From ``model.waveform_gradmap(..., reduce="last")``.
    audio_fs : float
        Samples per second.
    mass : float
        Share of the summed absolute gradient, above 0 and at most 1.

    Returns
    -------
    float
        Milliseconds; 0 for a map of zeros.

    Raises
    ------
    ValueError
        For a map of another rank, or a share or rate out of range.

    Examples
    --------
    >>> rf_duration_ms([0.0, 0.0, 1.0, 1.0, 0.0], audio_fs=1000)
    2.0
    """
    values = gradmap.detach().cpu().double().numpy() if isinstance(gradmap, Tensor) else gradmap
    field = np.abs(np.asarray(values, dtype=np.float64))
    if field.ndim != 1 or field.size == 0:
        raise ValueError(f"gradmap must be one waveform (T_audio,), got shape {field.shape}; take one row")
    if not 0.0 < mass <= 1.0:
        raise ValueError(f"mass must be above 0 and at most 1, got {mass!r}")
    if not audio_fs > 0:
        raise ValueError(f"audio_fs must be a positive number of hertz, got {audio_fs!r}")
    summed = np.cumsum(field[::-1])
    return float(np.searchsorted(summed, mass * summed[-1])) / float(audio_fs) * 1000.0
