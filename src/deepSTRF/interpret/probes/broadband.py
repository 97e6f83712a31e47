"""Broadband sounds: clicks, noise bursts and gaps in noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepSTRF._validation import FloatArray, check_positive_int, checked_but
from deepSTRF.interpret.probes.measures import (
    LEAST_SHARE,
    ProbeResult,
    first_crossing,
    least_response,
    peak_times,
)
from deepSTRF.interpret.probes.presentation import (
    as_presentation,
    ascending,
    check_lengths,
    check_levels,
    two_frequencies,
)
from deepSTRF.interpret.probes.sounds import EDGE_MS, click, noise, ramped
from deepSTRF.interpret.probes.tones import CRITERION, LEVELS_DB
from deepSTRF.interpret.strf.table import contrast, ratio
from deepSTRF.interpret.strf.tuning import extent_above

CLICK_LEVELS_DB, WATCHED_MS = (-30.0, -20.0, -10.0), 200.0
#: Clicks are this long: at any audio rate the same energy per level.
CLICK_MS = 0.1
DURATION_MS, TAIL_MS = 200.0, 100.0
#: Onset and sustained response: the first 50 ms, and the last half of the burst.
ONSET_MS, SUSTAINED_SHARE = 50.0, 0.5
GAPS_MS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
MARKER_MS, GAP_LEVEL_DB = 250.0, -20.0
#: A gap is detected when it changes the response by this share of what the longest gap changes.
GAP_CRITERION = 0.5
#: Responses count until this long after the gap.
AFTER_GAP_MS = 100.0


@dataclass(frozen=True)
class ClickResponse(ProbeResult):
    """Responses of K neurons to clicks at L levels.

    Attributes
    ----------
    levels_db : array (L,). Peak of the click, dB re 1 (full scale).
    time_ms : array (T,). Middle of each bin after the click.
    evoked : array (K, L, T). Rate less the baseline, in the model's unit.
    baseline : array (K,). Rate in silence.
    latency_ms, duration_ms : array (K, L). When the evoked rate peaks, and how long it stays above half the
        peak; NaN where no rise, or less than a hundredth of the fall, is evoked.
    rebound : array (K, L). Deepest suppression after the peak as a share of the peak, 0 or positive.
    """

    levels_db: FloatArray
    time_ms: FloatArray
    evoked: FloatArray
    baseline: FloatArray
    latency_ms: FloatArray
    duration_ms: FloatArray
    rebound: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        columns = self._named("click_", "latency_ms", "duration_ms", "rebound")
        return {name: values[:, -1] for name, values in columns.items()}  # at the highest level


@checked_but("model")
def click_responses(
    model: Any, levels_db: Sequence[float] = CLICK_LEVELS_DB, *, watched_ms: float = WATCHED_MS
) -> ClickResponse:
    """Play clicks and return the responses.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    levels_db : sequence of float
        Peaks of the 0.1 ms clicks, dB re 1, ascending.
    watched_ms : float
        How long after the click.

    Returns
    -------
    ClickResponse
        Time courses, and a summary at the highest level.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> click_responses(model, watched_ms=50.0).evoked.shape
    (1, 3, 10)
    """
    presentation = as_presentation(model)
    levels = ascending("levels_db", levels_db)
    check_lengths(watched_ms=watched_ms)
    n_samples = presentation.samples(watched_ms)
    width = max(1, round(CLICK_MS * presentation.fs / 1000.0))
    evoked, baseline = presentation.evoke((click(n_samples, level, width) for level in levels), len(levels))
    time_ms = presentation.time_ms(evoked.shape[-1])
    duration, rebound = np.full((2, *evoked.shape[:2]), np.nan)
    for where in np.ndindex(*evoked.shape[:2]):
        curve = evoked[where]
        peak = float(curve.max())
        if peak > LEAST_SHARE * float(np.abs(curve).max()):
            at = int(curve.argmax())
            duration[where] = extent_above(time_ms, curve, at, 0.5 * peak).width
            rebound[where] = max(0.0, -float(curve[at:].min())) / peak
    latency = peak_times(time_ms, evoked)
    return ClickResponse(presentation.neurons, levels, time_ms, evoked, baseline, latency, duration, rebound)


@dataclass(frozen=True)
class NoiseResponse(ProbeResult):
    """Responses of K neurons to noise bursts at L levels, averaged over tokens of noise.

    Attributes
    ----------
    levels_db : array (L,). Root mean square of the noise, dB re 1 (full scale), ascending.
    time_ms : array (T,). Middle of each bin after the onset.
    evoked : array (K, L, T). Rate less the baseline, in the model's unit.
    baseline : array (K,). Rate in silence.
    rate_level : array (K, L). Mean evoked rate during the burst.
    threshold_db : array (K,). Level that evokes a fifth of the strongest response; NaN where none does.
    best_level_db : array (K,). Level of the strongest response.
    monotonicity : array (K,). Response at the highest level over the strongest: 1 is monotonic, below 0.5
        clearly is not. As the other measures NaN where the strongest is less than a hundredth of the largest
        change of either sign, or (of band-pass noise) of the best response to tones.
    latency_ms : array (K,). When the response to the highest level peaks.
    onset_index : array (K,). ``(onset - sustained) / (onset + sustained)`` at the highest level, of the
        rectified peak in the first 50 ms and mean in the last half: 1 is purely phasic, 0 purely tonic.
    offset_index : array (K,). Largest evoked rate in the tail as a share of the largest in the burst; 0 where
        the tail is empty, NaN where the burst evokes less than a hundredth of the largest change.
    """

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

    def _summary(self) -> dict[str, FloatArray]:
        names = ("threshold_db", "best_level_db", "monotonicity", "latency_ms", "onset_index", "offset_index")
        return self._named("noise_", *names)


@checked_but("model")
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
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
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

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> noise_responses(model, [-40.0, -20.0], n_tokens=1).rate_level.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    levels = ascending("levels_db", levels_db)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    band_hz = None if band_hz is None else two_frequencies("band_hz", band_hz, presentation.audio_fs)
    n_samples, fs = presentation.samples(duration_ms), presentation.fs
    bursts = (
        noise(n_samples, fs, level, band_hz=band_hz, seed=seed + token)
        for level in levels
        for token in range(n_tokens)
    )
    evoked, baseline = presentation.evoke(bursts, len(levels), n_tokens, tail_ms=tail_ms)
    evoked = evoked.mean(axis=2)
    n_bins, time_ms = presentation.bins(duration_ms), presentation.time_ms(evoked.shape[-1])
    rate_level = evoked[:, :, :n_bins].mean(axis=-1)
    strongest, least = rate_level.max(axis=1), LEAST_SHARE * np.abs(rate_level).max(axis=1)
    change = LEAST_SHARE * np.abs(evoked[:, -1]).max(axis=1)
    if band_hz is not None:  # white noise drives every band
        least = np.maximum(least, least_response(presentation, levels[-1], n_bins))
        change = np.maximum(change, least_response(presentation, levels[-1]))
    excited = strongest > least
    loudest = evoked[:, -1]
    rectified = np.maximum(loudest, 0.0)
    onset = rectified[:, : min(n_bins, presentation.bins(ONSET_MS))].max(axis=1)
    last_half = slice(n_bins - max(1, round(SUSTAINED_SHARE * n_bins)), n_bins)
    thresholds = [
        first_crossing(levels, curve, CRITERION * curve.max()) if some else np.nan
        for curve, some in zip(rate_level, excited, strict=True)
    ]
    return NoiseResponse(
        neurons=presentation.neurons,
        levels_db=levels,
        time_ms=time_ms,
        evoked=evoked,
        baseline=baseline,
        rate_level=rate_level,
        threshold_db=np.asarray(thresholds),
        best_level_db=np.where(excited, levels[rate_level.argmax(axis=1)], np.nan),
        monotonicity=ratio(rate_level[:, -1], strongest, least),
        latency_ms=peak_times(time_ms[:n_bins], loudest[:, :n_bins]),
        onset_index=contrast(onset, np.maximum(loudest[:, last_half].mean(axis=1), 0.0), change),
        offset_index=ratio(rectified[:, n_bins:].max(axis=1), rectified[:, :n_bins].max(axis=1), change),
    )


@dataclass(frozen=True)
class GapResponse(ProbeResult):
    """Responses of K neurons to G gaps in noise.

    Attributes
    ----------
    gaps_ms : array (G,). Ascending.
    time_ms : array (T,). Middle of each bin after the end of the gap; bins before it are negative.
    difference : array (K, G, T). Rate with the gap less the rate without, same noise, averaged over tokens,
        in the model's unit.
    after : array (K, G). Largest rise over the rate without gap in the 100 ms after the gap: the response to
        the sound's return.
    change : array (K, G). Largest absolute difference from the start of the gap until 100 ms after it.
    threshold_ms : array (K,). Gap whose ``change`` is half that of the longest, between gaps; NaN for a
        neuron that detects none.
    """

    gaps_ms: FloatArray
    time_ms: FloatArray
    difference: FloatArray
    after: FloatArray
    change: FloatArray
    threshold_ms: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return self._named("gap_", "threshold_ms")


@checked_but("model")
def gap_responses(
    model: Any,
    gaps_ms: Sequence[float] = GAPS_MS,
    *,
    marker_ms: float = MARKER_MS,
    level_db: float = GAP_LEVEL_DB,
    n_tokens: int = 4,
    seed: int = 0,
) -> GapResponse:
    """Play noise with a gap in it, and without, and return the difference.

    All gaps end at the same time, so that their responses line up.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    gaps_ms : sequence of float
        Gaps, ascending.
    marker_ms : float
        Noise before the longest gap, and after each.
    level_db : float
        Root mean square of the noise, dB re 1.
    n_tokens : int
        Noises that are averaged over.
    seed : int
        Which noises.

    Returns
    -------
    GapResponse
        Differences and the gap threshold.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> gap_responses(model, [10.0, 50.0], n_tokens=1).change.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    gaps = ascending("gaps_ms", gaps_ms, above=0.0)
    check_lengths(marker_ms=marker_ms)
    check_levels(level_db=level_db)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    end = presentation.bins(marker_ms + gaps[-1])
    n_bins, hop, fs = end + presentation.bins(marker_ms), presentation.samples(0.0), presentation.fs
    carriers = [noise(n_bins * hop, fs, level_db, seed=seed + token) for token in range(n_tokens)]
    lengths = [0, *(max(1, round(gap * fs / 1000.0)) for gap in gaps)]
    rates = presentation.play(
        _with_gap(carrier, end * hop, length, fs) for length in lengths for carrier in carriers
    )[..., presentation.lead_bins :]
    rates = rates.reshape(len(lengths), n_tokens, *rates.shape[1:]).mean(axis=1)
    difference = (rates[1:] - rates[:1]).transpose(1, 0, 2)
    time_ms = presentation.time_ms(n_bins) - end * presentation.dt_ms
    near = time_ms <= AFTER_GAP_MS
    since_gap = [near & (time_ms > -gap - presentation.dt_ms) for gap in gaps]
    change = np.stack(
        [np.abs(difference[:, g][:, counted]).max(axis=1) for g, counted in enumerate(since_gap)], axis=1
    )
    thresholds = [
        first_crossing(gaps, row, GAP_CRITERION * row[-1]) if row[-1] > 0 else np.nan for row in change
    ]
    after = np.maximum(difference[:, :, near & (time_ms > 0)].max(axis=2), 0.0)
    return GapResponse(presentation.neurons, gaps, time_ms, difference, after, change, np.asarray(thresholds))


def _with_gap(carrier: FloatArray, end: int, length: int, fs: float) -> FloatArray:
    """A carrier (T_audio,) with silence in the ``length`` samples before ``end``."""
    if length == 0:
        return carrier
    edge = min(round(EDGE_MS * fs / 1000.0), length)
    opened = carrier.copy()
    opened[end - length : end] = 0.0
    # the ramps lie outside the gap, which keeps its length
    fall = ramped(np.ones(2 * edge), fs, EDGE_MS)[edge:] if edge else np.ones(0)
    opened[end - length - edge : end - length] *= fall
    opened[end : end + edge] *= fall[::-1]
    return opened
