"""Context swap: the same segments among other neighbours, and how much the neighbours change the response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import as_numbers, check_positive_int, check_positive_number
from deepSTRF.interpret.probes.checks import check_audible, check_lengths, check_levels, check_range
from deepSTRF.interpret.probes.measures import (
    check_ascending,
    decay_time_constant,
    first_crossing,
    values_per_neuron,
)
from deepSTRF.interpret.probes.presentation import Presentation, as_presentation
from deepSTRF.interpret.probes.sounds import EDGE_MS, RAMP_MS, noise, patchwork_noise, ramped, stepped, tone
from deepSTRF.interpret.strf.table import NeuronTable

__all__ = [
    "ContextSwap",
    "LevelStepResponse",
    "OddballResponse",
    "context_swap",
    "level_step_responses",
    "oddball_responses",
]

# ------------------------------------------------------------------------------
# Steps of level: what a neuron says first, where it settles, and how fast it gets there.


FloatArray = NDArray[np.float64]

LEVELS_DB = (-60.0, -40.0, -20.0)
HOLD_MS = 1000.0
#: The last part of each level, in which the response counts as settled.
SETTLED_SHARE = 0.25
#: A level must last this many bins, or there is nothing to fit.
LEAST_BINS = 8
#: A decay has a time constant when it takes back this share of the first response, and when an exponential
#: explains this share of its variance.
LEAST_INDEX, LEAST_EXPLAINED = 0.05, 0.5
#: A step is answered when the change exceeds this share of the largest response (rounding does not), and this
#: many standard errors over tokens.
LEAST_CHANGE, STANDARD_ERRORS = 1e-4, 2.0


@dataclass(frozen=True)
class LevelStepResponse:
    """Responses of K neurons to S steps of level: up a staircase, and down again.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    from_db, to_db : array (S,)
        Level before and after each step, dB re 1 (root mean square); first all steps up, then all down.
    time_ms : array (T,)
        Middle of each bin after the step.
    evoked : array (K, S, T)
        Rate after the step less the rate in silence, averaged over tokens, in the model's unit.
    baseline : array (K,)
        Rate in silence.
    before, onset, steady : array (K, S)
        Evoked rate at the end of the level before; furthest from that before the response settles; and its
        mean over the last quarter of the level. With several tokens the moment of the onset is found in one
        half of them and read in the other, so that noise does not make peaks.
    adaptation_index : array (K, S)
        ``(onset - steady) / (onset - before)``, the share of the first response that is gone at the end: 0 is
        none, 1 complete, more than 1 an end beyond the start. NaN where the step is not answered.
    tau_ms : array (K, S)
        Time constant of the exponential from the onset on; NaN where there is none: less than a twentieth is
        gone, an exponential explains less than half of the course, or the response is not settled at the end.

    Examples
    --------
    >>> LevelStepResponse.__dataclass_fields__["tau_ms"].type
    'FloatArray'
    """

    neurons: list[int]
    from_db: FloatArray
    to_db: FloatArray
    time_ms: FloatArray
    evoked: FloatArray
    baseline: FloatArray
    before: FloatArray
    onset: FloatArray
    steady: FloatArray
    adaptation_index: FloatArray
    tau_ms: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron: medians over the steps up, and over those down."""
        columns = {}
        for way, own in (("up", self.to_db > self.from_db), ("down", self.to_db < self.from_db)):
            for name in ("adaptation_index", "tau_ms"):
                columns[f"level_{way}_{name}"] = _medians(getattr(self, name)[:, own])
        return NeuronTable(tuple(self.neurons), columns)


def level_step_responses(
    model: Any,
    levels_db: Sequence[float] | FloatArray = LEVELS_DB,
    *,
    tone_hz: float | Sequence[float] | FloatArray | None = None,
    hold_ms: float = HOLD_MS,
    n_tokens: int = 8,
    band_hz: tuple[float, float] | None = None,
    seed: int = 0,
) -> LevelStepResponse:
    """Play noise, or a tone, whose level climbs a staircase and comes down again.

    A model without memory beyond a few bins only follows the level. What adapts overshoots and settles. A
    linear model whose STRF has inhibition after excitation overshoots as well: by the same amount up and
    down, and for no longer than its STRF.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    levels_db : sequence of float
        Two or more root mean squares, dB re 1, ascending. The first is held before the first step.
    tone_hz : float or sequence of float (K,), optional
        Play tones of these frequencies, one for all neurons or one each; None is noise.
    hold_ms : float
        How long each level lasts; time constants up to this can be told, up to a third of it well.
    n_tokens : int
        Noises that are averaged over; tones are played once.
    band_hz : (float, float), optional
        Edges of band-pass noise; None is white.
    seed : int
        Which noises.

    Returns
    -------
    LevelStepResponse
        Time courses, and per step the onset and steady response, adaptation index and time constant.

    Raises
    ------
    ValueError, TypeError
        For an illegal argument, or a presentation that cannot be played sounds.

    References
    ----------
    Dean, Harper & McAlpine 2005, doi 10.1038/nn1541.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> found = level_step_responses(model, [-60.0, -40.0, -20.0], hold_ms=50.0, n_tokens=1)
    >>> found.to_db.tolist(), found.evoked.shape
    ([-40.0, -20.0, -40.0, -60.0], (1, 4, 10))
    """
    presentation = as_presentation(model)
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("levels_db", levels)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    check_lengths(hold_ms=hold_ms)
    bins = presentation.bins(hold_ms)
    _check_steps(presentation, levels, bins, tone_hz, band_hz)
    staircase = np.concatenate([levels, levels[-2::-1]])
    total, fs = len(staircase) * bins * presentation.samples(0.0), presentation.audio_fs or 0.0
    longer = total + presentation.samples(RAMP_MS)  # the ramp at the end of a carrier is cut off
    n_neurons = len(presentation.neurons)
    if tone_hz is None:
        rates = presentation.play(
            stepped(noise(longer, fs, band_hz=band_hz, seed=seed + token)[:total], staircase, fs)
            for token in range(n_tokens)
        )
    else:
        tones = values_per_neuron("tone_hz", tone_hz, n_neurons)
        check_audible("tone_hz", tones, presentation.audio_fs)
        rates = np.zeros((1, n_neurons, presentation.lead_bins + len(staircase) * bins))
        for hertz in np.unique(tones):
            own = tones == hertz
            carrier = tone(float(hertz), longer, fs)[:total]
            rates[:, own] = presentation.play([stepped(carrier, staircase, fs)])[:, own]
    evoked = presentation.evoked(rates).reshape(len(rates), n_neurons, len(staircase), bins)
    time_ms = presentation.time_ms(bins)
    return LevelStepResponse(
        presentation.neurons, staircase[:-1], staircase[1:], time_ms, evoked[:, :, 1:].mean(axis=0),
        presentation.baseline(rates).mean(axis=0), *_measures(time_ms, evoked),
    )  # fmt: skip


def _measures(time_ms: FloatArray, evoked: FloatArray) -> tuple[FloatArray, ...]:
    """Return before, onset, steady, index and time constant (K, S) of courses (tokens, K, S + 1, T)."""
    settles = evoked.shape[-1] - max(1, round(SETTLED_SHARE * evoked.shape[-1]))
    ends = evoked[..., settles:].mean(axis=-1)
    before, steady = ends[:, :, :-1], ends[:, :, 1:]
    departure = evoked[:, :, 1:, :settles] - before[..., None]
    at = np.abs(departure).argmax(axis=-1)[..., None]
    if len(evoked) > 1:  # found in one half of the tokens, read in the other: peaks of their noise differ
        odd, even = departure[1::2].mean(axis=0), departure[::2].mean(axis=0)
        halves = np.abs(np.stack([odd, even])).argmax(axis=-1)[..., None]
        at = halves[np.arange(len(evoked)) % 2]
    change = np.take_along_axis(departure, at, axis=-1)[..., 0]
    gone = (change + before - steady).mean(axis=0)
    error = change.std(axis=0, ddof=1) / len(evoked) ** 0.5 if len(evoked) > 1 else 0.0
    before, steady, change = before.mean(axis=0), steady.mean(axis=0), change.mean(axis=0)
    largest = np.abs(evoked.mean(axis=0)).max(axis=(1, 2))[:, None]
    answered = np.abs(change) > np.maximum(LEAST_CHANGE * largest, STANDARD_ERRORS * error)
    index = np.where(answered, gone / np.where(answered, change, 1.0), np.nan)
    taus = np.full(index.shape, np.nan)
    courses, starts = evoked[:, :, 1:].mean(axis=0), np.abs(departure.mean(axis=0)).argmax(axis=-1)
    for where in zip(*np.nonzero(index > LEAST_INDEX), strict=True):
        part = slice(int(starts[where]) + 1, None)  # the bin of the step holds its ramp
        tau, amplitude = decay_time_constant(time_ms[part], courses[where][part], LEAST_EXPLAINED)
        if amplitude * gone[where] > 0:  # it goes back, not on
            taus[where] = tau
    return before, before + change, steady, index, taus


def _medians(values: FloatArray) -> FloatArray:
    """(K,) medians over steps, of those that are numbers; NaN where none is."""
    return np.asarray(
        [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values]
    )


def _check_steps(
    presentation: Presentation, levels: FloatArray, bins: int, tone_hz: Any, band_hz: Any
) -> None:
    if len(levels) < 2:
        raise ValueError(f"levels_db must hold two levels or more to step between, got {levels}")
    if bins < LEAST_BINS:
        raise ValueError(
            f"hold_ms gives {bins} bins of {presentation.dt_ms:g} ms; a level must last {LEAST_BINS} or more: "
            f"hold_ms={LEAST_BINS * presentation.dt_ms:g}"
        )
    if tone_hz is not None and band_hz is not None:
        raise ValueError("give tone_hz (tones) or band_hz (noise), not both")
    if band_hz is not None:
        check_range("band_hz", band_hz, presentation.audio_fs)


# ------------------------------------------------------------------------------
# Oddball sequences: is a rare tone answered more strongly than the same tone when it is common?


#: The classic protocol (Ulanovsky, Las & Nelken 2003), with tones half an octave apart.
APART_OCTAVES, RARE = 0.5, 0.1
TONE_MS, PERIOD_MS, N_TONES, LEVEL_DB = 50.0, 250.0, 100, -30.0
#: A rare tone never follows a rare one, nor opens the sequence.
FIRST_RARE = 2


@dataclass(frozen=True)
class OddballResponse:
    """Responses of K neurons to two tones, each once common and once rare.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    low_khz, high_khz : array (K,)
        The two tones of each neuron.
    time_ms : array (T,)
        Middle of each bin after a tone's onset, one period long.
    common, rare : array (K, 2, T)
        Mean evoked rate for the low and the high tone in either role, in the model's unit.
    ssa_index : array (K, 2)
        ``(rare - common) / (rare + common)`` per tone, of the rectified means over the period; NaN where
        neither evokes anything.
    common_ssa_index : array (K,)
        The same of the sums over both tones: above 0 is stimulus-specific adaptation.

    Examples
    --------
    >>> OddballResponse.__dataclass_fields__["ssa_index"].type
    'FloatArray'
    """

    neurons: list[int]
    low_khz: FloatArray
    high_khz: FloatArray
    time_ms: FloatArray
    common: FloatArray
    rare: FloatArray
    ssa_index: FloatArray
    common_ssa_index: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        columns = {
            "ssa_index_low": self.ssa_index[:, 0],
            "ssa_index_high": self.ssa_index[:, 1],
            "common_ssa_index": self.common_ssa_index,
        }
        return NeuronTable(tuple(self.neurons), columns)


def oddball_responses(
    model: Any,
    centre_hz: float | Sequence[float] | FloatArray,
    *,
    apart_octaves: float = APART_OCTAVES,
    rare: float = RARE,
    n_tones: int = N_TONES,
    tone_ms: float = TONE_MS,
    period_ms: float = PERIOD_MS,
    level_db: float = LEVEL_DB,
    seed: int = 0,
) -> OddballResponse:
    """Play oddball sequences: a common and a rare tone, then the same order with the roles swapped.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    centre_hz : float or sequence of float (K,)
        Middle of the two tones on a log axis, for all neurons or one each. Neurons with the same centre share
        their sequences.
    apart_octaves : float
        Distance of the two tones.
    rare : float
        Share of rare tones, above 0 and at most 0.5.
    n_tones : int
        Tones of a sequence.
    tone_ms, period_ms : float
        Length of a tone, and from onset to onset.
    level_db : float
        Root mean square, dB re 1.
    seed : int
        Order of the tones; rare ones never follow each other directly (where ``rare`` allows).

    Returns
    -------
    OddballResponse
        Time courses and indices of stimulus-specific adaptation.

    Raises
    ------
    ValueError, TypeError
        For an illegal argument, or a presentation that cannot be played sounds.

    References
    ----------
    Ulanovsky, Las & Nelken 2003, doi 10.1038/nn1032.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> oddball_responses(model, 1000.0, n_tones=10).rare.shape
    (1, 2, 50)
    """
    presentation = as_presentation(model)
    centres = values_per_neuron("centre_hz", centre_hz, len(presentation.neurons))
    n_tones = check_positive_int("n_tones", n_tones)
    check_positive_number("apart_octaves", apart_octaves)
    if not 0.0 < rare <= 0.5 or round(rare * n_tones) < 1 or n_tones < 2 * FIRST_RARE:
        raise ValueError(f"rare={rare!r} of n_tones={n_tones} must give 1 rare tone or more, at most half")
    check_lengths(tone_ms=tone_ms, period_ms=period_ms)
    check_levels(level_db=level_db)
    if tone_ms > period_ms:
        raise ValueError(f"tone_ms={tone_ms!r} must fit into period_ms={period_ms!r}")
    half = 2.0 ** (0.5 * apart_octaves)
    check_audible("centre_hz, half of apart_octaves higher,", centres * half, presentation.audio_fs)
    order = _order(n_tones, rare, seed)
    bins = presentation.bins(period_ms)
    common, rares = np.zeros((2, len(centres), 2, bins))
    for centre in np.unique(centres):
        own = centres == centre
        pair = (float(centre) / half, float(centre) * half)
        # first the low tone is common, then the high one
        rates = presentation.play(_sequences(presentation, pair, order, tone_ms, bins, level_db))
        evoked = presentation.evoked(rates)[:, own].reshape(2, int(own.sum()), n_tones, bins)
        for low_or_high in (0, 1):
            as_common, as_rare = evoked[low_or_high], evoked[1 - low_or_high]
            settled = ~order
            settled[:FIRST_RARE] = False  # the very first tones find the neuron rested
            common[own, low_or_high] = as_common[:, settled].mean(axis=1)
            rares[own, low_or_high] = as_rare[:, order].mean(axis=1)
    answered = [np.maximum(part.mean(axis=2), 0.0) for part in (rares, common)]
    return OddballResponse(
        presentation.neurons, centres / half / 1000.0, centres * half / 1000.0, presentation.time_ms(bins),
        common, rares, _index(*answered), _index(*(part.sum(axis=1) for part in answered)),
    )  # fmt: skip


def _order(n_tones: int, rare: float, seed: int) -> NDArray[np.bool_]:
    """(n_tones,) which tones are rare: spread at random, apart from each other where there is room."""
    rng = np.random.default_rng(seed)
    n_rare = round(rare * n_tones)
    order = np.zeros(n_tones, dtype=bool)
    room = n_tones - FIRST_RARE - (n_rare - 1)
    if room >= n_rare:  # places without neighbours: draw among fewer, then move each one on by its rank
        places = np.sort(rng.choice(room, n_rare, replace=False)) + np.arange(n_rare)
    else:
        places = rng.choice(n_tones - FIRST_RARE, n_rare, replace=False)
    order[FIRST_RARE + places] = True
    return order


def _sequences(
    presentation: Presentation,
    pair: tuple[float, float],
    order: NDArray[np.bool_],
    tone_ms: float,
    bins: int,
    level_db: float,
) -> list[FloatArray]:
    fs, hop = presentation.audio_fs or 0.0, presentation.samples(0.0)
    length = min(presentation.samples(tone_ms), bins * hop)
    pips = []
    for hertz in pair:
        pip = np.zeros(bins * hop)
        pip[:length] = tone(hertz, length, fs, level_db)
        pips.append(pip)
    low, high = pips
    return [np.concatenate([b if is_rare else a for is_rare in order]) for a, b in ((low, high), (high, low))]


def _index(rare: FloatArray, common: FloatArray) -> FloatArray:
    total = rare + common
    return np.where(total > 0, (rare - common) / np.where(total > 0, total, 1.0), np.nan)


# ------------------------------------------------------------------------------

IntArray = NDArray[np.intp]

#: Half-octave steps: between them a straight line is near enough to how correlation grows with duration.
DURATIONS_MS = (10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 160.0, 240.0, 320.0)
SOUND_S, CONTEXT_LEVEL_DB = 20.0, -20.0
#: The share by which integration windows are compared (Norman-Haignere et al. 2022).
CRITERION = 0.75
#: The centre is read where the correlation is above this share of its peak.
NEAR_PEAK = 0.5
#: A correlation over fewer segments says nothing.
LEAST_SEGMENTS = 8
#: Rates that vary by less than this share of their size between segments do so by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class ContextSwap:
    """How far the responses of K neurons to segments of D durations depend on the segments' neighbours.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    durations_ms : array (D,)
        Segments, in whole bins, ascending.
    n_segments : array (D,)
        How many of them were played, in either context.
    lag_ms : array (T,)
        Middle of each bin after the onset of the segment.
    correlation : array (K, D, T)
        Pearson correlation over segments, at each lag, of the responses in the two contexts: 1 where the
        response depends on the segment alone, around 0 where it depends on its neighbours alone. NaN where
        the response does not vary. A model has no noise, so there is no ceiling to divide by.
    peak : array (K, D)
        Highest correlation of each duration.
    window_ms : array (K,)
        Integration window: the shortest segment whose ``peak`` reaches the criterion, between durations. The
        shortest duration where all reach it, NaN where none does. Of a linear model and sounds without
        memory this is the shortest interval that holds that share (three quarters) of the energy of its
        kernel.
    centre_ms : array (K,)
        Middle of that window: how long after a sound it comes, by the middle of the correlation's peak at the
        first duration that reaches the criterion. 0 is the current bin.

    Examples
    --------
    >>> ContextSwap.__dataclass_fields__["window_ms"].type
    'FloatArray'
    """

    neurons: list[int]
    durations_ms: FloatArray
    n_segments: IntArray
    lag_ms: FloatArray
    correlation: FloatArray
    peak: FloatArray
    window_ms: FloatArray
    centre_ms: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        columns = {"context_window_ms": self.window_ms, "context_centre_ms": self.centre_ms}
        return NeuronTable(tuple(self.neurons), columns)


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
    another in which each follows another one. A response that integrates over less than a segment does not
    notice. The window is read off directly, at the duration where the correlation reaches the criterion; no
    shape of window is fitted. For linear models of known kernels the default sounds give it to within 12%.
    The statistics of the sounds are part of the answer: redundant sounds reach the criterion earlier.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    durations_ms : sequence of float
        Lengths of segments, ascending, rounded up to whole bins; those that become equal count once.
    sounds : sequence of array (T_audio,), optional
        Recorded sounds at the presentation's audio rate, to be cut. None is noise in patches of half an octave
        and a bin, each of its own level: sounds without memory, as far as their bands allow.
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
        presentation that cannot be played sounds.

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
    durations = np.asarray(durations_ms, dtype=np.float64)
    check_ascending("durations_ms", durations, above=0.0)
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
        segments = _cut(pieces, int(length) * presentation.samples(0.0), presentation.audio_fs or 0.0)
        _check_segments(len(segments), float(exact[index]))
        n_segments[index] = len(segments)
        # neighbours on both sides: remembered at the first segment, followed after the last
        around = (math.ceil(lengths[-1] / length), math.ceil(n_lags / length))
        correlation[:, index] = _agreement(presentation, segments, int(length), n_lags, around, rng)
    peak = _highest(correlation)
    known = [np.isfinite(row) for row in peak]  # durations whose responses vary between segments
    window = [first_crossing(exact[own], row[own], criterion) for row, own in zip(peak, known, strict=True)]
    lag_ms = presentation.time_ms(n_lags)
    centre = [
        _centre(lag_ms, rows, heights, exact, criterion)
        for rows, heights in zip(correlation, peak, strict=True)
    ]
    return ContextSwap(
        presentation.neurons,
        exact,
        n_segments,
        lag_ms,
        correlation,
        peak,
        np.asarray(window),
        np.asarray(centre),
    )


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
    """(2, S) orders in a ring, in which no segment follows the same one twice.

    The second is random too: in the first one reversed, say, a segment would have the same two neighbours.
    """
    first = rng.permutation(n_segments)
    before = np.empty((2, n_segments), dtype=np.intp)
    before[0, first] = np.roll(first, 1)
    while True:  # more than one in four random orders will do
        second = rng.permutation(n_segments)
        before[1, second] = np.roll(second, 1)
        if (before[0] != before[1]).all():
            return np.stack([first, second])


def _pieces(
    presentation: Presentation, sounds: Sequence[Any] | None, sound_s: float, seed: int
) -> list[FloatArray]:
    """Sounds to be cut."""
    if sounds is None:
        hop, fs = presentation.samples(0.0), presentation.audio_fs or 0.0
        total = presentation.samples(1000.0 * sound_s)
        return [patchwork_noise(total, fs, presentation.frequency_range(), hop, CONTEXT_LEVEL_DB, seed=seed)]
    pieces = [as_numbers(sound, "sounds") for sound in sounds]
    for piece in pieces:
        if piece.ndim != 1 or not np.isfinite(piece).all():
            raise ValueError(
                f"sounds must be a sequence of finite arrays (T_audio,), got one of shape {piece.shape}; one "
                "sound is sounds=[sound]"
            )
    return pieces


def _cut(pieces: list[FloatArray], length: int, fs: float) -> FloatArray:
    """(S, length) segments one after the other out of each sound, with short ramps; the rest is left out."""
    whole = [piece[: piece.size // length * length].reshape(-1, length) for piece in pieces]
    return ramped(np.concatenate([np.zeros((0, length)), *whole]), fs, EDGE_MS)


def _check_segments(n_segments: int, duration_ms: float) -> None:
    if n_segments < LEAST_SEGMENTS:
        raise ValueError(
            f"the sounds give {n_segments} segments of {duration_ms:g} ms, and a correlation needs "
            f"{LEAST_SEGMENTS} or more: give longer sounds (sound_s=, sounds=) or shorter durations_ms"
        )


def _highest(correlation: FloatArray) -> FloatArray:
    """(K, D) peaks over lags; NaN where all are."""
    peak = np.where(np.isnan(correlation), -np.inf, correlation).max(axis=-1)
    return np.where(np.isfinite(peak), peak, np.nan)


def _centre(
    lag_ms: FloatArray, correlation: FloatArray, peak: FloatArray, durations: FloatArray, criterion: float
) -> float:
    reached = np.flatnonzero(np.nan_to_num(peak, nan=-np.inf) >= criterion)
    if reached.size == 0:
        return float("nan")
    at = int(reached[0])
    weights = np.nan_to_num(correlation[at])
    weights = np.where(weights >= NEAR_PEAK * peak[at], weights, 0.0)
    return float((weights * lag_ms).sum() / weights.sum() - 0.5 * durations[at])
