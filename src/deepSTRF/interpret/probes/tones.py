"""Pure tones at many frequencies and levels: the frequency-response area, threshold, sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.checks import check_audible, check_lengths
from deepSTRF.interpret.probes.listener import Listener, as_listener
from deepSTRF.interpret.probes.measures import check_ascending, first_crossing, strength
from deepSTRF.interpret.probes.sounds import tone
from deepSTRF.interpret.tuning_curves import extent_above, refined_peak
from deepSTRF.interpret.tuning_table import NeuronTable

__all__ = ["FrequencyResponseArea", "tone_responses"]

FloatArray = NDArray[np.float64]

#: Tones per octave by default, finer than the bands of usual cochleagrams (6 per octave).
TONES_PER_OCTAVE = 8
#: Down to where cochleagrams have their floor.
LEVELS_DB = tuple(float(level) for level in range(-110, 0, 10))
DURATION_MS, TAIL_MS = 100.0, 50.0
#: A tone is answered when it evokes this share of the strongest response, of either sign: a model has no
#: noise to beat.
CRITERION = 0.2
#: Bandwidths are read this far above threshold.
ABOVE_THRESHOLD_DB = 10.0


@dataclass(frozen=True)
class FrequencyResponseArea:
    """Responses of K neurons to tones of P frequencies at L levels.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    frequencies_khz : array (P,)
        Tones.
    levels_db : array (L,)
        Root mean square of the tones, dB re 1 (full scale), ascending.
    response : array (K, L, P)
        Evoked rate: mean (or peak) over the window, less the baseline, in the model's unit.
    baseline : array (K,)
        Rate in silence.
    threshold_db : array (K, P)
        Lowest level at which a tone is answered, between levels; NaN where none is.
    width_octaves : array (K, L)
        Width at half height of the response over frequency, at each level; NaN where no tone excites, and
        where the response does not fall to half within the tones.
    best_khz : array (K,)
        Tone with the strongest response at any level, between tones.
    characteristic_khz, lowest_threshold_db : array (K,)
        Tone with the lowest threshold, and that threshold.
    bandwidth_octaves, q10 : array (K,)
        Width of the threshold curve 10 dB above its lowest point, and the characteristic frequency over that
        width in Hz; NaN where the curve is open there.

    Examples
    --------
    >>> FrequencyResponseArea.__dataclass_fields__["q10"].type
    'FloatArray'
    """

    neurons: list[int]
    frequencies_khz: FloatArray
    levels_db: FloatArray
    response: FloatArray
    baseline: FloatArray
    threshold_db: FloatArray
    width_octaves: FloatArray
    best_khz: FloatArray
    characteristic_khz: FloatArray
    lowest_threshold_db: FloatArray
    bandwidth_octaves: FloatArray
    q10: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        names = ("best_khz", "characteristic_khz", "lowest_threshold_db", "bandwidth_octaves", "q10")
        return NeuronTable(tuple(self.neurons), {f"tone_{name}": getattr(self, name) for name in names})


def tone_responses(
    model: Any,
    frequencies_hz: Sequence[float] | FloatArray | None = None,
    levels_db: Sequence[float] | FloatArray = LEVELS_DB,
    *,
    duration_ms: float = DURATION_MS,
    tail_ms: float = TAIL_MS,
    measure: str = "mean",
    criterion: float = CRITERION,
) -> FrequencyResponseArea:
    """Play pure tones and return the frequency-response area.

    Parameters
    ----------
    model : Listener or nn.Module
        A listener, or a model with a front-end.
    frequencies_hz : sequence of float, optional
        Tones, ascending; None is eight per octave over the bands.
    levels_db : sequence of float
        Root mean squares, dB re 1, ascending.
    duration_ms, tail_ms : float
        Length of a tone, and how long after it responses still count.
    measure : {"mean", "peak"}
        What counts as the response.
    criterion : float
        A tone is answered when it excites by this share of the neuron's strongest response of either sign.

    Returns
    -------
    FrequencyResponseArea
        Responses, thresholds and summary. Neurons that answer no tone (none excites them, or little beside
        how others suppress them) have NaN.

    Raises
    ------
    ValueError, TypeError
        For frequencies or levels that do not ascend, tones at half the audio rate or above, or a listener
        that cannot be played sounds.

    Examples
    --------
    >>> import torch
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> area = tone_responses(model, [500, 1000, 2000], [-40, -20])
    >>> area.response.shape
    (1, 2, 3)
    """
    listener = as_listener(model)
    tones = (
        default_tones(listener) if frequencies_hz is None else np.asarray(frequencies_hz, dtype=np.float64)
    )
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("frequencies_hz", tones, above=0.0)
    check_audible("frequencies_hz", tones, listener.audio_fs)
    check_ascending("levels_db", levels)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    if not 0.0 < criterion <= 1.0:
        raise ValueError(f"criterion must be above 0 and at most 1, got {criterion!r}")
    n_on, fs = listener.samples(duration_ms), listener.audio_fs or 0.0
    quiet = np.zeros(listener.samples(tail_ms))
    rates = listener.play(
        np.concatenate([tone(hertz, n_on, fs, level), quiet]) for level in levels for hertz in tones
    )
    answers = strength(listener, rates, duration_ms + tail_ms, measure)
    response = answers.reshape(len(levels), len(tones), -1).transpose(2, 0, 1)
    octaves = np.log2(tones)
    thresholds = np.stack([_thresholds(levels, area, criterion) for area in response])
    widths = np.asarray([[_half_width(octaves, row) for row in area] for area in response])
    numbers = np.asarray(
        [_summary(octaves, levels, *pair) for pair in zip(response, thresholds, strict=True)]
    )
    return FrequencyResponseArea(
        listener.neurons, tones / 1000.0, levels, response, listener.baseline(rates)[0], thresholds, widths,
        *(numbers[:, column] for column in range(5)),
    )  # fmt: skip


def default_tones(listener: Listener) -> FloatArray:
    """Return tones over the listener's range, eight per octave.

    Parameters
    ----------
    listener : Listener
        Whose bands.

    Returns
    -------
    array (P,)
        Frequencies in Hz, evenly spaced in octaves.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> default_tones(SimpleNamespace(frequency_range=lambda: (500.0, 1000.0))).round().tolist()
    [500.0, 545.0, 595.0, 648.0, 707.0, 771.0, 841.0, 917.0, 1000.0]
    """
    low, high = listener.frequency_range()
    n_tones = max(2, round(TONES_PER_OCTAVE * np.log2(high / low)) + 1)
    return np.geomspace(low, high, n_tones)


def _thresholds(levels: FloatArray, area: FloatArray, criterion: float) -> FloatArray:
    """Lowest answered level of each tone (P,)."""
    # of either sign: a whiff of excitation in a neuron that tones suppress is no answer
    wanted = criterion * float(np.abs(area).max())
    if wanted <= 0 or area.max() < wanted:
        return np.full(area.shape[1], np.nan)
    return np.asarray([first_crossing(levels, curve, wanted) for curve in area.T])


def _half_width(octaves: FloatArray, curve: FloatArray) -> float:
    peak = float(curve.max())
    extent = extent_above(octaves, curve, int(curve.argmax()), 0.5 * peak)
    return extent.width if peak > 0 and extent.closed else np.nan


def _summary(
    octaves: FloatArray, levels: FloatArray, area: FloatArray, thresholds: FloatArray
) -> list[float]:
    """Best and characteristic frequency (kHz), lowest threshold, bandwidth (octaves), Q10."""
    if np.isnan(thresholds).all():
        return [np.nan] * 5
    level, at = np.unravel_index(int(area.argmax()), area.shape)
    best = 2.0 ** refined_peak(octaves, area[level], int(at)) / 1000.0
    # the lowest threshold; among equals (all below the lowest level) the strongest response decides
    lowest = float(np.nanmin(thresholds))
    equal = np.flatnonzero(thresholds <= lowest + 1e-9)
    tip = int(equal[area[0, equal].argmax()])
    even = len(octaves) > 2 and np.allclose(np.diff(octaves), octaves[1] - octaves[0], rtol=1e-3)
    centre = (
        refined_peak(octaves, -thresholds, tip) if even and np.isfinite(thresholds).all() else octaves[tip]
    )
    characteristic = 2.0 ** float(centre)
    # a tone that is never answered has its threshold above the highest level
    curve = -np.where(np.isnan(thresholds), levels[-1] + ABOVE_THRESHOLD_DB, thresholds)
    width = extent_above(octaves, curve, tip, -(lowest + ABOVE_THRESHOLD_DB))
    known = (
        width.closed and lowest > levels[0] and lowest + ABOVE_THRESHOLD_DB <= levels[-1] and width.width > 0
    )
    hertz = 2.0**width.high - 2.0**width.low
    return [
        best, characteristic / 1000.0, lowest,
        width.width if known else np.nan, characteristic / hertz if known else np.nan,
    ]  # fmt: skip
