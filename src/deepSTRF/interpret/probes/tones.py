"""Forward masking: how long a sound dulls the response to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import check_choice
from deepSTRF.interpret.probes.checks import check_audible, check_lengths, check_levels
from deepSTRF.interpret.probes.measures import check_ascending, first_crossing, strength, values_per_neuron
from deepSTRF.interpret.probes.presentation import Presentation, as_presentation
from deepSTRF.interpret.probes.sounds import tone
from deepSTRF.interpret.strf.table import NeuronTable, extent_above, refined_peak

__all__ = [
    "FrequencyResponseArea",
    "MaskingResponse",
    "TwoToneResponse",
    "forward_masking",
    "tone_responses",
    "two_tone_responses",
]

# ------------------------------------------------------------------------------
# Pure tones at many frequencies and levels: the frequency-response area, threshold, sharpness.


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
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
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
        For frequencies or levels that do not ascend, tones at half the audio rate or above, or a presentation
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
    presentation = as_presentation(model)
    tones = (
        default_tones(presentation)
        if frequencies_hz is None
        else np.asarray(frequencies_hz, dtype=np.float64)
    )
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("frequencies_hz", tones, above=0.0)
    check_audible("frequencies_hz", tones, presentation.audio_fs)
    check_ascending("levels_db", levels)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    if not 0.0 < criterion <= 1.0:
        raise ValueError(f"criterion must be above 0 and at most 1, got {criterion!r}")
    n_on, fs = presentation.samples(duration_ms), presentation.audio_fs or 0.0
    quiet = np.zeros(presentation.samples(tail_ms))
    rates = presentation.play(
        np.concatenate([tone(hertz, n_on, fs, level), quiet]) for level in levels for hertz in tones
    )
    answers = strength(presentation, rates, duration_ms + tail_ms, measure)
    response = answers.reshape(len(levels), len(tones), -1).transpose(2, 0, 1)
    octaves = np.log2(tones)
    thresholds = np.stack([_thresholds(levels, area, criterion) for area in response])
    widths = np.asarray([[_half_width(octaves, row) for row in area] for area in response])
    numbers = np.asarray(
        [_summary(octaves, levels, *pair) for pair in zip(response, thresholds, strict=True)]
    )
    return FrequencyResponseArea(
        presentation.neurons, tones / 1000.0, levels, response, presentation.baseline(rates)[0], thresholds, widths,
        *(numbers[:, column] for column in range(5)),
    )  # fmt: skip


def default_tones(presentation: Presentation) -> FloatArray:
    """Return tones over the presentation's range, eight per octave.

    Shapes: returns (P,).

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> default_tones(SimpleNamespace(frequency_range=lambda: (500.0, 1000.0))).round().tolist()
    [500.0, 545.0, 595.0, 648.0, 707.0, 771.0, 841.0, 917.0, 1000.0]
    """
    low, high = presentation.frequency_range()
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


# ------------------------------------------------------------------------------
# Two tones at once: does a second tone take away what the first one evokes?


LEVEL_DB = -30.0


@dataclass(frozen=True)
class TwoToneResponse:
    """Responses of K neurons to a probe tone with one of P second tones.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    probe_khz : array (K,)
        Each neuron's probe.
    frequencies_khz : array (P,)
        Second tones.
    probe_alone : array (K,)
        Evoked rate of the probe by itself, in the model's unit.
    second_alone, both : array (K, P)
        Of the second tone by itself, and of the two together.
    suppression : array (K, P)
        ``1 - both / probe_alone``: 0 no effect, 1 complete, negative is facilitation; NaN where the probe
        evokes nothing.
    most : array (K,)
        Largest suppression.
    most_khz : array (K,)
        Second tone of the largest suppression.

    Examples
    --------
    >>> TwoToneResponse.__dataclass_fields__["most"].type
    'FloatArray'
    """

    neurons: list[int]
    probe_khz: FloatArray
    frequencies_khz: FloatArray
    probe_alone: FloatArray
    second_alone: FloatArray
    both: FloatArray
    suppression: FloatArray
    most: FloatArray
    most_khz: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        columns = {"two_tone_suppression": self.most, "two_tone_suppressor_khz": self.most_khz}
        return NeuronTable(tuple(self.neurons), columns)


def two_tone_responses(
    model: Any,
    probe_hz: float | Sequence[float] | FloatArray,
    frequencies_hz: Sequence[float] | FloatArray | None = None,
    *,
    probe_level_db: float = LEVEL_DB,
    second_level_db: float = LEVEL_DB,
    duration_ms: float = DURATION_MS,
    tail_ms: float = TAIL_MS,
    measure: str = "mean",
) -> TwoToneResponse:
    """Play a probe tone together with second tones.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    probe_hz : float or sequence of float (K,)
        Probe for all neurons, or one each: best frequencies of `tone_responses`. Neurons with the same probe
        share their sounds.
    frequencies_hz : sequence of float, optional
        Second tones, ascending; None is eight per octave over the bands.
    probe_level_db, second_level_db : float
        Root mean squares, dB re 1.
    duration_ms, tail_ms, measure
        See `tone_responses`.

    Returns
    -------
    TwoToneResponse
        Responses and suppression.

    Raises
    ------
    ValueError
        For an illegal argument, or a presentation that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> two_tone_responses(model, 1000.0, [700.0, 1400.0]).suppression.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    probes = values_per_neuron("probe_hz", probe_hz, len(presentation.neurons))
    seconds = (
        default_tones(presentation)
        if frequencies_hz is None
        else np.asarray(frequencies_hz, dtype=np.float64)
    )
    check_ascending("frequencies_hz", seconds, above=0.0)
    for name, hertz in (("probe_hz", probes), ("frequencies_hz", seconds)):
        check_audible(name, hertz, presentation.audio_fs)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    check_levels(probe_level_db=probe_level_db, second_level_db=second_level_db)
    n_on, fs = presentation.samples(duration_ms), presentation.audio_fs or 0.0
    quiet = np.zeros(presentation.samples(tail_ms))

    def answers(sounds: list[FloatArray]) -> FloatArray:
        rates = presentation.play(np.concatenate([sound, quiet]) for sound in sounds)
        return strength(presentation, rates, duration_ms + tail_ms, measure)

    others = [tone(hertz, n_on, fs, second_level_db) for hertz in seconds]
    second_alone = answers(others).T
    probe_alone, both = np.zeros(len(probes)), np.zeros((len(probes), len(seconds)))
    for hertz in np.unique(probes):
        probe = tone(float(hertz), n_on, fs, probe_level_db)
        heard, own = answers([probe, *(probe + other for other in others)]), probes == hertz
        probe_alone[own], both[own] = heard[0, own], heard[1:, own].T
    excited = probe_alone > 0
    share = both / np.where(excited, probe_alone, 1.0)[:, None]
    suppression = np.where(excited[:, None], 1.0 - share, np.nan)
    at = np.where(excited[:, None], suppression, -np.inf).argmax(axis=1)
    return TwoToneResponse(
        presentation.neurons, probes / 1000.0, seconds / 1000.0, probe_alone, second_alone, both, suppression,
        suppression[np.arange(len(at)), at], np.where(excited, seconds[at] / 1000.0, np.nan),
    )  # fmt: skip


# ------------------------------------------------------------------------------

DELAYS_MS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
MASKER_MS, PROBE_MS, MASKING_TAIL_MS = 200.0, 20.0, 60.0
MASKER_DB, PROBE_DB = -20.0, -30.0
#: The response has recovered when it reaches this share of that without masker.
RECOVERED = 0.5


@dataclass(frozen=True)
class MaskingResponse:
    """Responses of K neurons to a probe after a masker, at D delays.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    probe_khz, masker_khz : array (K,)
        Tones of each neuron.
    delays_ms : array (D,)
        From the end of the masker to the onset of the probe, in whole bins, ascending.
    probe_alone : array (K,)
        Response to the probe without masker, in the model's unit.
    masked : array (K, D)
        Response to the probe after the masker, what the masker alone leaves behind taken away.
    recovery : array (K, D)
        ``masked / probe_alone``: 1 is no masking; NaN where the probe evokes nothing.
    recovery_ms : array (K,)
        Delay at which half the response is back; NaN where it is not within the delays. The shortest delay
        where it is never lost.

    Examples
    --------
    >>> MaskingResponse.__dataclass_fields__["recovery"].type
    'FloatArray'
    """

    neurons: list[int]
    probe_khz: FloatArray
    masker_khz: FloatArray
    delays_ms: FloatArray
    probe_alone: FloatArray
    masked: FloatArray
    recovery: FloatArray
    recovery_ms: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        columns = {"masking_recovery_ms": self.recovery_ms, "masking_shortest_delay": self.recovery[:, 0]}
        return NeuronTable(tuple(self.neurons), columns)


def forward_masking(
    model: Any,
    probe_hz: float | Sequence[float] | FloatArray,
    delays_ms: Sequence[float] = DELAYS_MS,
    *,
    masker_hz: float | Sequence[float] | FloatArray | None = None,
    masker_level_db: float = MASKER_DB,
    probe_level_db: float = PROBE_DB,
    masker_ms: float = MASKER_MS,
    probe_ms: float = PROBE_MS,
    tail_ms: float = MASKING_TAIL_MS,
    measure: str = "mean",
) -> MaskingResponse:
    """Play a probe tone at several delays after a masker.

    The probe's response is the difference between masker with probe and masker alone, so that a linear model
    behind its spectrogram shows no masking but that of the front-end.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    probe_hz : float or sequence of float (K,)
        Probe for all neurons, or one each.
    delays_ms : sequence of float
        Silences between masker and probe, ascending, rounded up to whole bins.
    masker_hz : float or sequence of float (K,), optional
        Masker; None is the probe's frequency.
    masker_level_db, probe_level_db : float
        Root mean squares, dB re 1.
    masker_ms, probe_ms, tail_ms : float
        Lengths, and how long after the probe responses still count.
    measure : {"mean", "peak"}
        Mean or peak of the response.

    Returns
    -------
    MaskingResponse
        Responses and recovery.

    Raises
    ------
    ValueError
        For an illegal argument, or a presentation that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> forward_masking(model, 1000.0, [20.0, 40.0]).recovery.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    probes = values_per_neuron("probe_hz", probe_hz, len(presentation.neurons))
    maskers = probes if masker_hz is None else values_per_neuron("masker_hz", masker_hz, len(probes))
    delays = np.asarray(delays_ms, dtype=np.float64)
    check_ascending("delays_ms", delays, above=0.0)
    check_choice("measure", measure, ("mean", "peak"))
    for name, hertz in (("probe_hz", probes), ("masker_hz", maskers)):
        check_audible(name, hertz, presentation.audio_fs)
    check_lengths(masker_ms=masker_ms, probe_ms=probe_ms, tail_ms=tail_ms)
    check_levels(masker_level_db=masker_level_db, probe_level_db=probe_level_db)
    fs, hop = presentation.audio_fs or 0.0, presentation.samples(0.0)
    waits = [presentation.bins(delay) for delay in delays]
    n_masker, window = presentation.bins(masker_ms), presentation.bins(probe_ms + tail_ms)
    n_bins = n_masker + waits[-1] + window
    alone, masked = np.zeros(len(probes)), np.zeros((len(probes), len(delays)))
    for pair in np.unique(np.stack([probes, maskers], axis=1), axis=0):
        own = (probes == pair[0]) & (maskers == pair[1])
        probe = tone(float(pair[0]), presentation.samples(probe_ms), fs, probe_level_db)
        masker = np.zeros(n_bins * hop)
        masker[: n_masker * hop] = tone(float(pair[1]), n_masker * hop, fs, masker_level_db)
        sounds = [np.zeros_like(masker), masker]
        for base in sounds[:2]:
            for wait in waits:
                at = (n_masker + wait) * hop
                sounds.append(base.copy())
                sounds[-1][at : at + probe.size] += probe
        heard = presentation.play(sounds)[:, own, presentation.lead_bins :]
        for index, wait in enumerate(waits):
            part = slice(n_masker + wait, n_masker + wait + window)
            masked[own, index] = _size(heard[2 + len(waits) + index, :, part] - heard[1, :, part], measure)
        last = slice(n_masker + waits[-1], n_bins)
        alone[own] = _size(heard[1 + len(waits), :, last] - heard[0, :, last], measure)
    excited = alone > 0
    recovery = np.where(excited[:, None], masked / np.where(excited, alone, 1.0)[:, None], np.nan)
    exact = np.asarray(waits) * presentation.dt_ms
    back = np.asarray([first_crossing(exact, np.nan_to_num(row, nan=-np.inf), RECOVERED) for row in recovery])
    return MaskingResponse(
        presentation.neurons, probes / 1000.0, maskers / 1000.0, exact, alone, masked, recovery, back
    )


def _size(difference: FloatArray, measure: str) -> FloatArray:
    return np.asarray(difference.mean(axis=-1) if measure == "mean" else difference.max(axis=-1))
