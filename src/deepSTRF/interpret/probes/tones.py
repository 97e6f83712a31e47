"""Pure tones: the frequency-response area, suppression by a second tone, and forward masking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepSTRF._validation import FloatArray, check_choice, check_share, checked_but
from deepSTRF.interpret.probes.measures import (
    MEASURES,
    ProbeResult,
    first_crossing,
    least_response,
    mean_or_peak,
    sharing,
)
from deepSTRF.interpret.probes.presentation import (
    Presentation,
    as_presentation,
    ascending,
    check_audible,
    check_lengths,
    check_levels,
    one_per_neuron,
)
from deepSTRF.interpret.probes.sounds import tone
from deepSTRF.interpret.strf.table import ratio
from deepSTRF.interpret.strf.tuning import extent_above, is_even, refined_peak

#: Tones per octave by default, finer than the bands of usual cochleagrams (6 per octave).
TONES_PER_OCTAVE = 8
#: Down to where cochleagrams have their floor.
LEVELS_DB = tuple(float(level) for level in range(-110, 0, 10))
LEVEL_DB, DURATION_MS, TAIL_MS = -30.0, 100.0, 50.0
#: A tone is answered when it evokes this share of the strongest response, of either sign: a model has no
#: noise that a response would have to exceed.
CRITERION = 0.2
#: Bandwidths are read this far above threshold.
ABOVE_THRESHOLD_DB = 10.0
#: Forward masking: delays, lengths and levels, and the share of the unmasked response that is recovery.
DELAYS_MS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
MASKER_MS, PROBE_MS, MASKING_TAIL_MS = 200.0, 20.0, 60.0
MASKER_DB, PROBE_DB = -20.0, -30.0
RECOVERED = 0.5


@dataclass(frozen=True)
class FrequencyResponseArea(ProbeResult):
    """Responses of K neurons to tones of P frequencies at L levels.

    Attributes
    ----------
    frequencies_khz : array (P,). Tones.
    levels_db : array (L,). Root mean square of the tones, dB re 1 (full scale), ascending.
    response : array (K, L, P). Evoked rate: mean (or peak) over the window, less the baseline, in the model's
        unit.
    baseline : array (K,). Rate in silence.
    threshold_db : array (K, P). Lowest level at which a tone is answered, between levels; NaN where none is.
    width_octaves : array (K, L). Width at half height of the response over frequency, at each level; NaN
        where no tone excites, and where the response does not fall to half within the tones.
    best_khz : array (K,). Tone with the strongest response at any level, between tones.
    characteristic_khz, lowest_threshold_db : array (K,). Tone with the lowest threshold, and that threshold.
    bandwidth_octaves, q10 : array (K,). Width of the threshold curve 10 dB above its lowest point, and the
        characteristic frequency over that width in Hz; NaN where the curve is open there.
    """

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

    def _summary(self) -> dict[str, FloatArray]:
        names = ("best_khz", "characteristic_khz", "lowest_threshold_db", "bandwidth_octaves", "q10")
        return self._named("tone_", *names)


@checked_but("model")
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
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
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

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> area = tone_responses(model, [500, 1000, 2000], [-40, -20])
    >>> area.response.shape
    (1, 2, 3)
    """
    presentation = as_presentation(model)
    tones = _tones(presentation, frequencies_hz)
    check_audible("frequencies_hz", tones, presentation.audio_fs)
    levels = ascending("levels_db", levels_db)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    check_share("criterion", criterion)
    n_samples, fs = presentation.samples(duration_ms), presentation.fs
    sounds = (tone(hertz, n_samples, fs, level) for level in levels for hertz in tones)
    evoked, baseline = presentation.evoke(sounds, len(levels), len(tones), tail_ms=tail_ms)
    response = mean_or_peak(evoked[..., : presentation.bins(duration_ms + tail_ms)], measure)
    octaves = np.log2(tones)
    thresholds = np.stack([_thresholds(levels, area, criterion) for area in response])
    widths = np.asarray([[_half_width(octaves, row) for row in area] for area in response])
    numbers = np.asarray(
        [_summary(octaves, levels, *pair) for pair in zip(response, thresholds, strict=True)]
    )
    return FrequencyResponseArea(
        presentation.neurons, tones / 1000.0, levels, response, baseline, thresholds, widths, *numbers.T
    )


def _tones(presentation: Presentation, frequencies_hz: Any) -> FloatArray:
    """Tones (P,): those given, else eight per octave over the range of the bands."""
    if frequencies_hz is None:
        low, high = presentation.frequency_range()
        return np.geomspace(low, high, max(2, round(TONES_PER_OCTAVE * np.log2(high / low)) + 1))
    return ascending("frequencies_hz", frequencies_hz, above=0.0)


def _thresholds(levels: FloatArray, area: FloatArray, criterion: float) -> FloatArray:
    """Lowest answered level of each tone (P,)."""
    # of either sign: a little excitation in a neuron that tones suppress is no answer
    least = criterion * float(np.abs(area).max())
    if least <= 0 or area.max() < least:
        return np.full(area.shape[1], np.nan)
    return np.asarray([first_crossing(levels, curve, least) for curve in area.T])


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
    even = len(octaves) > 2 and is_even(octaves)
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


@dataclass(frozen=True)
class TwoToneResponse(ProbeResult):
    """Responses of K neurons to a probe tone with one of P second tones.

    Attributes
    ----------
    probe_khz : array (K,). Each neuron's probe.
    frequencies_khz : array (P,). Second tones.
    probe_alone : array (K,). Evoked rate of the probe by itself, in the model's unit.
    second_alone, both : array (K, P). Of the second tone by itself, and of the two together.
    suppression : array (K, P). ``1 - both / probe_alone``: 0 no effect, 1 complete, negative is facilitation;
        NaN where the probe evokes less than a hundredth of the neuron's best response to tones of its level.
    most : array (K,). Largest suppression.
    most_khz : array (K,). Second tone of the largest suppression.
    """

    probe_khz: FloatArray
    frequencies_khz: FloatArray
    probe_alone: FloatArray
    second_alone: FloatArray
    both: FloatArray
    suppression: FloatArray
    most: FloatArray
    most_khz: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return {"two_tone_suppression": self.most, "two_tone_suppressor_khz": self.most_khz}


@checked_but("model")
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
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    probe_hz : float or sequence of float (K,)
        Probe for all neurons, or one each: best frequencies of `tone_responses`. Neurons with the same probe
        share their sounds.
    frequencies_hz : sequence of float, optional
        Second tones, ascending; None is eight per octave over the bands.
    probe_level_db, second_level_db : float
        Root mean squares, dB re 1.
    duration_ms, tail_ms, measure : float, float, str
        See `tone_responses`.

    Returns
    -------
    TwoToneResponse
        Responses and suppression.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> two_tone_responses(model, 1000.0, [700.0, 1400.0]).suppression.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    probes = one_per_neuron("probe_hz", probe_hz, len(presentation.neurons))
    seconds = _tones(presentation, frequencies_hz)
    check_audible("probe_hz", probes, presentation.audio_fs)
    check_audible("frequencies_hz", seconds, presentation.audio_fs)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    check_levels(probe_level_db=probe_level_db, second_level_db=second_level_db)
    n_samples, fs = presentation.samples(duration_ms), presentation.fs
    window = presentation.bins(duration_ms + tail_ms)

    def responses(sounds: list[FloatArray]) -> FloatArray:
        """(K, sounds) responses."""
        evoked, _ = presentation.evoke(sounds, len(sounds), tail_ms=tail_ms)
        return mean_or_peak(evoked[..., :window], measure)

    others = [tone(hertz, n_samples, fs, second_level_db) for hertz in seconds]
    second_alone = responses(others)
    probe_alone, both = np.zeros(len(probes)), np.zeros((len(probes), len(seconds)))
    for hertz, own in sharing(probes):
        probe = tone(float(hertz), n_samples, fs, probe_level_db)
        answers = responses([probe, *(probe + other for other in others)])
        probe_alone[own], both[own] = answers[own, 0], answers[own, 1:]
    least = least_response(presentation, probe_level_db, window if measure == "mean" else 1)
    excited = probe_alone > least
    suppression = 1.0 - ratio(both, probe_alone[:, None], least[:, None])
    at = np.where(excited[:, None], suppression, -np.inf).argmax(axis=1)
    return TwoToneResponse(
        presentation.neurons, probes / 1000.0, seconds / 1000.0, probe_alone, second_alone, both, suppression,
        suppression[np.arange(len(at)), at], np.where(excited, seconds[at] / 1000.0, np.nan),
    )  # fmt: skip


@dataclass(frozen=True)
class MaskingResponse(ProbeResult):
    """Responses of K neurons to a probe after a masker, at D delays.

    Attributes
    ----------
    probe_khz, masker_khz : array (K,). Tones of each neuron.
    delays_ms : array (D,). From the end of the masker to the onset of the probe, in whole bins, ascending.
    probe_alone : array (K,). Response to the probe without masker, in the model's unit.
    masked : array (K, D). Response to the probe after the masker, what the masker alone leaves behind taken
        away.
    recovery : array (K, D). ``masked / probe_alone``: 1 is no masking; NaN where the probe evokes less than a
        hundredth of the neuron's best response to tones of its level.
    recovery_ms : array (K,). Delay at which half the response is back; NaN where it is not within the delays.
        The shortest delay where it is never lost.
    """

    probe_khz: FloatArray
    masker_khz: FloatArray
    delays_ms: FloatArray
    probe_alone: FloatArray
    masked: FloatArray
    recovery: FloatArray
    recovery_ms: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return {"masking_recovery_ms": self.recovery_ms, "masking_shortest_delay": self.recovery[:, 0]}


@checked_but("model")
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
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
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

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> forward_masking(model, 1000.0, [20.0, 40.0]).recovery.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    probes = one_per_neuron("probe_hz", probe_hz, len(presentation.neurons))
    maskers = probes if masker_hz is None else one_per_neuron("masker_hz", masker_hz, len(probes))
    delays = ascending("delays_ms", delays_ms, above=0.0)
    check_choice("measure", measure, MEASURES)
    check_audible("probe_hz", probes, presentation.audio_fs)
    check_audible("masker_hz", maskers, presentation.audio_fs)
    check_lengths(masker_ms=masker_ms, probe_ms=probe_ms, tail_ms=tail_ms)
    check_levels(masker_level_db=masker_level_db, probe_level_db=probe_level_db)
    hop, fs = presentation.samples(0.0), presentation.fs
    waits = [presentation.bins(delay) for delay in delays]
    n_masker, window = presentation.bins(masker_ms), presentation.bins(probe_ms + tail_ms)
    n_bins = n_masker + waits[-1] + window
    probe_alone, masked = np.zeros(len(probes)), np.zeros((len(probes), len(delays)))
    for (probe_tone, masker_tone), own in sharing(np.stack([probes, maskers], axis=1)):
        probe = tone(float(probe_tone), presentation.samples(probe_ms), fs, probe_level_db)
        masker = np.zeros(n_bins * hop)
        masker[: n_masker * hop] = tone(float(masker_tone), n_masker * hop, fs, masker_level_db)
        sounds = [np.zeros_like(masker), masker]
        for base in sounds[:2]:
            for wait in waits:
                at = (n_masker + wait) * hop
                sounds.append(base.copy())
                sounds[-1][at : at + probe.size] += probe
        rates = presentation.play(sounds)[:, own, presentation.lead_bins :]
        silent, after_masker = rates[:2]
        alone, both = rates[1 + len(waits)], rates[2 + len(waits) :]
        last = slice(n_masker + waits[-1], n_bins)
        probe_alone[own] = mean_or_peak(alone[:, last] - silent[:, last], measure)
        for index, wait in enumerate(waits):
            part = slice(n_masker + wait, n_masker + wait + window)
            masked[own, index] = mean_or_peak(both[index][:, part] - after_masker[:, part], measure)
    least = least_response(presentation, probe_level_db, window if measure == "mean" else 1)
    recovery = ratio(masked, probe_alone[:, None], least[:, None])
    exact = np.asarray(waits) * presentation.dt_ms
    back = np.asarray([first_crossing(exact, np.nan_to_num(row, nan=-np.inf), RECOVERED) for row in recovery])
    return MaskingResponse(
        presentation.neurons, probes / 1000.0, maskers / 1000.0, exact, probe_alone, masked, recovery, back
    )
