"""Context swap: integration windows from the same segments among other neighbours.

A response that integrates over less than a segment does not depend on the segment's neighbours, so that its
responses in two orders of the segments correlate (Norman-Haignere et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import FloatArray, as_numbers, check_positive_number, checked_but
from deepSTRF.interpret.probes.measures import ProbeResult, first_crossing
from deepSTRF.interpret.probes.presentation import Presentation, as_presentation, ascending, check_lengths
from deepSTRF.interpret.probes.sounds import EDGE_MS, patchwork_noise, ramped

IntArray = NDArray[np.intp]

#: Half-octave steps: between them a straight line is near enough to how correlation grows with duration.
DURATIONS_MS = (10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 160.0, 240.0, 320.0)
SOUND_S, LEVEL_DB = 20.0, -20.0
#: The share by which integration windows are compared (Norman-Haignere et al. 2022).
CRITERION = 0.75
#: The centre is read where the correlation is above this share of its peak.
NEAR_PEAK = 0.5
#: A correlation over fewer segments is meaningless.
LEAST_SEGMENTS = 8
#: Rates that vary by less than this share of their size between segments do so by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class ContextSwap(ProbeResult):
    """How far the responses of K neurons to segments of D durations depend on the segments' neighbours.

    Attributes
    ----------
    durations_ms : array (D,). Segments, in whole bins, ascending.
    n_segments : array (D,). How many of them were played, in either context.
    lag_ms : array (T,). Middle of each bin after the onset of the segment.
    correlation : array (K, D, T). Pearson correlation over segments, at each lag, of the responses in the two
        contexts: 1 where the response depends on the segment alone, around 0 where it depends on its
        neighbours alone. NaN where the response does not vary. A model has no noise, so there is no ceiling
        to divide by.
    peak : array (K, D). Highest correlation of each duration.
    window_ms : array (K,). Integration window: the shortest segment whose ``peak`` attains the criterion,
        between durations. The shortest duration where all attain it, NaN where none does. Of a linear model
        and sounds without memory this is the shortest interval that holds that share (three quarters) of the
        energy of its kernel.
    centre_ms : array (K,). Middle of that window: how long after a sound it comes, by the middle of the
        correlation's peak at the first duration that attains the criterion. 0 is the current bin.
    """

    durations_ms: FloatArray
    n_segments: IntArray
    lag_ms: FloatArray
    correlation: FloatArray
    peak: FloatArray
    window_ms: FloatArray
    centre_ms: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return self._named("context_", "window_ms", "centre_ms")


@checked_but("model")
def context_swap(
    model: Any,
    durations_ms: Sequence[float] | FloatArray = DURATIONS_MS,
    *,
    sounds: Sequence[Any] | None = None,
    sound_s: float = SOUND_S,
    max_lag_ms: float | None = None,
    criterion: float = CRITERION,
    seed: int = 0,
) -> ContextSwap:
    """Play the same segments in two orders and return how well the responses agree: the integration window.

    The sounds are cut into segments of each duration; all segments are played in a random order, and in
    another in which each follows another one. The window is read off directly, at the duration where the
    correlation attains the criterion; no shape of window is fitted. For linear models of known kernels the
    default sounds give it to within 12%. It depends on the statistics of the sounds: redundant sounds attain
    the criterion earlier.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    durations_ms : sequence of float
        Lengths of segments, ascending, rounded up to whole bins; those that become equal count once.
    sounds : sequence of array (T_audio,), optional
        Recorded sounds at the presentation's audio rate, to be cut. None is noise in patches of half an
        octave and a bin, each of its own level: sounds without memory, as far as their bands allow.
    sound_s : float
        How many seconds of that noise. More make the correlations more certain.
    max_lag_ms : float, optional
        Until when after its onset responses to a segment are followed; None is the longest duration.
    criterion : float
        Correlation at which the window is read, above 0 and below 1.
    seed : int
        Which noise, and which orders.

    Returns
    -------
    ContextSwap
        Correlations by duration and lag, and the window; NaN for neurons that do not respond.

    Raises
    ------
    ValueError
        For an illegal argument, sounds too short to give eight segments of the longest duration, or a
        model to which no sounds can be played.

    References
    ----------
    Norman-Haignere et al. 2022, doi 10.1038/s41562-021-01261-y.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> found = context_swap(model, [20.0, 40.0, 80.0], sound_s=1.0)
    >>> found.correlation.shape, found.n_segments.tolist()
    ((1, 3, 16), [50, 25, 12])
    """
    presentation = as_presentation(model)
    durations = ascending("durations_ms", durations_ms, above=0.0)
    if not 0.0 < criterion < 1.0:
        raise ValueError(f"criterion must lie between 0 and 1, both left out, got {criterion!r}")
    lengths = np.unique([presentation.bins(duration) for duration in durations])
    if max_lag_ms is not None:
        check_lengths(max_lag_ms=max_lag_ms)
    n_lags = int(lengths[-1]) if max_lag_ms is None else presentation.bins(max_lag_ms)
    pieces = _pieces(presentation, sounds, check_positive_number("sound_s", sound_s), seed)
    rng = np.random.default_rng(seed)
    exact = lengths * presentation.dt_ms
    correlation = np.zeros((len(presentation.neurons), len(lengths), n_lags))
    n_segments = np.zeros(len(lengths), dtype=np.intp)
    for index, length in enumerate(lengths):
        size = int(length) * presentation.samples(0.0)
        whole = [piece[: piece.size // size * size].reshape(-1, size) for piece in pieces]
        segments = ramped(np.concatenate([np.zeros((0, size)), *whole]), presentation.fs, EDGE_MS)
        n_segments[index] = len(segments)
        if len(segments) < LEAST_SEGMENTS:
            raise ValueError(
                f"the sounds give {len(segments)} segments of {exact[index]:g} ms, and a correlation needs "
                f"{LEAST_SEGMENTS} or more: give longer sounds (sound_s=, sounds=) or shorter durations_ms"
            )
        # neighbours on both sides: remembered at the first segment, followed after the last
        around = (math.ceil(lengths[-1] / length), math.ceil(n_lags / length))
        correlation[:, index] = _agreement(presentation, segments, int(length), n_lags, around, rng)
    peak = np.where(np.isnan(correlation), -np.inf, correlation).max(axis=-1)
    peak = np.where(np.isfinite(peak), peak, np.nan)
    known = [np.isfinite(row) for row in peak]  # durations whose responses vary between segments
    window = [first_crossing(exact[own], row[own], criterion) for row, own in zip(peak, known, strict=True)]
    lag_ms = presentation.time_ms(n_lags)
    centre = [
        _centre(lag_ms, rows, heights, exact, criterion)
        for rows, heights in zip(correlation, peak, strict=True)
    ]
    return ContextSwap(
        presentation.neurons, exact, n_segments, lag_ms, correlation, peak, np.asarray(window),
        np.asarray(centre),
    )  # fmt: skip


def _pieces(
    presentation: Presentation, sounds: Sequence[Any] | None, sound_s: float, seed: int
) -> list[FloatArray]:
    """Sounds (T_audio,) to be cut."""
    if sounds is None:
        hop, total = presentation.samples(0.0), presentation.samples(1000.0 * sound_s)
        range_hz = presentation.frequency_range()
        return [patchwork_noise(total, presentation.fs, range_hz, hop, LEVEL_DB, seed=seed)]
    pieces = [as_numbers(sound, "sounds") for sound in sounds]
    for piece in pieces:
        if piece.ndim != 1 or not np.isfinite(piece).all():
            raise ValueError(
                f"sounds must be a sequence of finite arrays (T_audio,), got one of shape {piece.shape}; one "
                "sound is sounds=[sound]"
            )
    return pieces


def _agreement(
    presentation: Presentation,
    segments: FloatArray,
    length: int,
    n_lags: int,
    around: tuple[int, int],
    rng: np.random.Generator,
) -> FloatArray:
    """(K, n_lags) correlation of the responses to segments (S, samples) in two orders."""
    n_segments, (head, tail) = len(segments), around
    orders = _two_orders(n_segments, rng)
    rings = [order[np.arange(-head, n_segments + tail) % n_segments] for order in orders]
    rates = presentation.play(segments[ring].reshape(-1) for ring in rings)
    # where each segment starts, in either order
    starts = np.argsort(orders, axis=1) * length + head * length + presentation.lead_bins
    found = np.zeros((rates.shape[1], n_lags))
    for lag in range(n_lags):
        first, second = (rates[context][:, starts[context] + lag] for context in (0, 1))
        found[:, lag] = _pearson(first, second)
    return found


def _pearson(first: FloatArray, second: FloatArray) -> FloatArray:
    """(K,) correlation over segments of (K, S); NaN where either does not vary."""
    least = ROUNDING * np.maximum(np.abs(first).max(axis=1), np.abs(second).max(axis=1))
    first, second = (part - part.mean(axis=1, keepdims=True) for part in (first, second))
    sizes = [np.sqrt((part**2).mean(axis=1)) for part in (first, second)]
    varies = (sizes[0] > least) & (sizes[1] > least)
    product = np.where(varies, sizes[0] * sizes[1], 1.0)
    return np.where(varies, (first * second).mean(axis=1) / product, np.nan)


def _two_orders(n_segments: int, rng: np.random.Generator) -> IntArray:
    """(2, S) random orders in a ring, in which no segment follows the same one twice."""
    first = rng.permutation(n_segments)
    before = np.empty((2, n_segments), dtype=np.intp)
    before[0, first] = np.roll(first, 1)
    while True:  # more than one in four random orders will do; the first one reversed has the same neighbours
        second = rng.permutation(n_segments)
        before[1, second] = np.roll(second, 1)
        if (before[0] != before[1]).all():
            return np.stack([first, second])


def _centre(
    lag_ms: FloatArray, correlation: FloatArray, peak: FloatArray, durations: FloatArray, criterion: float
) -> float:
    """Middle of the correlation's peak (D, T) at the first duration that attains the criterion."""
    attained = np.flatnonzero(np.nan_to_num(peak, nan=-np.inf) >= criterion)
    if attained.size == 0:
        return float("nan")
    at = int(attained[0])
    weights = np.nan_to_num(correlation[at])
    weights = np.where(weights >= NEAR_PEAK * peak[at], weights, 0.0)
    return float((weights * lag_ms).sum() / weights.sum() - 0.5 * durations[at])
