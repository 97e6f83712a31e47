"""Noise bursts at many levels: the rate-level function, onset and sustained response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import check_positive_int
from deepSTRF.interpret.probes.checks import check_lengths, check_range
from deepSTRF.interpret.probes.measures import check_ascending, first_crossing, peak_times
from deepSTRF.interpret.probes.presentation import as_presentation
from deepSTRF.interpret.probes.sounds import noise
from deepSTRF.interpret.probes.tones import CRITERION, LEVELS_DB
from deepSTRF.interpret.strf.table import NeuronTable

__all__ = ["NoiseResponse", "noise_responses"]

FloatArray = NDArray[np.float64]

DURATION_MS, TAIL_MS = 200.0, 100.0
#: Onset and sustained response: the first 50 ms, and the last half of the burst.
ONSET_MS, SUSTAINED_SHARE = 50.0, 0.5


@dataclass(frozen=True)
class NoiseResponse:
    """Responses of K neurons to noise bursts at L levels, averaged over tokens of noise.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    levels_db : array (L,)
        Root mean square of the noise, dB re 1 (full scale), ascending.
    time_ms : array (T,)
        Middle of each bin after the onset.
    evoked : array (K, L, T)
        Rate less the baseline, in the model's unit.
    baseline : array (K,)
        Rate in silence.
    rate_level : array (K, L)
        Mean evoked rate during the burst.
    threshold_db : array (K,)
        Level that evokes a fifth of the strongest response; NaN where none does.
    best_level_db : array (K,)
        Level of the strongest response.
    monotonicity : array (K,)
        Response at the highest level over the strongest: 1 is monotonic, below 0.5 clearly is not.
    latency_ms : array (K,)
        When the response to the highest level peaks.
    onset_index : array (K,)
        ``(onset - sustained) / (onset + sustained)`` at the highest level, of the rectified peak in the first
        50 ms and mean in the last half: 1 is purely phasic, 0 purely tonic.
    offset_index : array (K,)
        Largest evoked rate in the tail as a share of the largest in the burst; 0 where the tail is empty.

    Examples
    --------
    >>> NoiseResponse.__dataclass_fields__["monotonicity"].type
    'FloatArray'
    """

    neurons: list[int]
    levels_db: FloatArray
    time_ms: FloatArray
    evoked: FloatArray
    baseline: FloatArray
    rate_level: FloatArray
    threshold_db: FloatArray
    best_level_db: FloatArray
    monotonicity: FloatArray
    latency_ms: FloatArray
    onset_index: FloatArray
    offset_index: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        names = ("threshold_db", "best_level_db", "monotonicity", "latency_ms", "onset_index", "offset_index")
        return NeuronTable(tuple(self.neurons), {f"noise_{name}": getattr(self, name) for name in names})


def noise_responses(
    model: Any,
    levels_db: Sequence[float] = LEVELS_DB,
    *,
    duration_ms: float = DURATION_MS,
    tail_ms: float = TAIL_MS,
    n_tokens: int = 4,
    band_hz: tuple[float, float] | None = None,
    seed: int = 0,
) -> NoiseResponse:
    """Play noise bursts and return the rate-level function and the time course.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    levels_db : sequence of float
        Root mean squares, dB re 1, ascending.
    duration_ms, tail_ms : float
        Length of the burst, and of the silence watched after it (offset responses).
    n_tokens : int
        Different noises that are averaged over, the same at all levels.
    band_hz : (float, float), optional
        Edges of band-pass noise; None is white.
    seed : int
        Which noises.

    Returns
    -------
    NoiseResponse
        Time courses and summary; NaN for neurons that no level excites.

    Raises
    ------
    ValueError, TypeError
        For an illegal argument, or a presentation that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> noise_responses(model, [-40.0, -20.0], n_tokens=1).rate_level.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("levels_db", levels)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    band_hz = None if band_hz is None else check_range("band_hz", band_hz, presentation.audio_fs)
    n_on, fs = presentation.samples(duration_ms), presentation.audio_fs or 0.0
    quiet = np.zeros(presentation.samples(tail_ms))
    rates = presentation.play(
        np.concatenate([noise(n_on, fs, level, band_hz=band_hz, seed=seed + token), quiet])
        for level in levels
        for token in range(n_tokens)
    )
    evoked = presentation.evoked(rates)
    evoked = evoked.reshape(len(levels), n_tokens, *evoked.shape[1:]).mean(axis=1).transpose(1, 0, 2)
    on = presentation.bins(duration_ms)
    rate_level, time_ms = evoked[:, :, :on].mean(axis=-1), presentation.time_ms(evoked.shape[-1])
    strongest = rate_level.max(axis=1)
    excited = strongest > 0
    loud = np.maximum(evoked[:, -1], 0.0)
    onset = loud[:, : min(on, presentation.bins(ONSET_MS))].max(axis=1)
    sustained = np.maximum(evoked[:, -1, on - max(1, round(SUSTAINED_SHARE * on)) : on].mean(axis=1), 0.0)
    during = loud[:, :on].max(axis=1)
    return NoiseResponse(
        neurons=presentation.neurons,
        levels_db=levels,
        time_ms=time_ms,
        evoked=evoked,
        baseline=presentation.baseline(rates)[0],
        rate_level=rate_level,
        threshold_db=np.asarray(
            [
                first_crossing(levels, c, CRITERION * t) if t > 0 else np.nan
                for c, t in zip(rate_level, strongest, strict=True)
            ]
        ),
        best_level_db=np.where(excited, levels[rate_level.argmax(axis=1)], np.nan),
        monotonicity=_share(rate_level[:, -1], np.where(excited, strongest, 0.0)),
        latency_ms=peak_times(time_ms[:on], evoked[:, -1, :on]),
        onset_index=_share(onset - sustained, onset + sustained),
        offset_index=_share(loud[:, on:].max(axis=1), during),
    )


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
