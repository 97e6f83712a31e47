"""Adaptation: responses to steps of level, and to rare among common tones (oddball sequences)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import FloatArray, check_positive_int, check_positive_number, checked_but
from deepSTRF.interpret.probes.measures import ProbeResult, decay_time_constant, least_response, sharing
from deepSTRF.interpret.probes.presentation import (
    as_presentation,
    ascending,
    check_audible,
    check_lengths,
    check_levels,
    one_per_neuron,
    two_frequencies,
)
from deepSTRF.interpret.probes.sounds import RAMP_MS, noise, stepped, tone
from deepSTRF.interpret.strf.table import contrast

LEVELS_DB, HOLD_MS = (-60.0, -40.0, -20.0), 1000.0
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
#: The classic oddball protocol (Ulanovsky, Las & Nelken 2003), with tones half an octave apart.
APART_OCTAVES, RARE = 0.5, 0.1
TONE_MS, PERIOD_MS, N_TONES, TONE_DB = 50.0, 250.0, 100, -30.0
#: A rare tone never follows a rare one, nor opens the sequence.
FIRST_RARE = 2


@dataclass(frozen=True)
class LevelStepResponse(ProbeResult):
    """Responses of K neurons to S steps of level: up a staircase, and down again.

    Attributes
    ----------
    from_db, to_db : array (S,). Level before and after each step, dB re 1 (root mean square); first all steps
        up, then all down.
    time_ms : array (T,). Middle of each bin after the step.
    evoked : array (K, S, T). Rate after the step less the rate in silence, averaged over tokens, in the
        model's unit.
    baseline : array (K,). Rate in silence.
    before, onset, steady : array (K, S). Evoked rate at the end of the level before; furthest from that
        before the response settles; and its mean over the last quarter of the level. With several tokens the
        bin of the onset is found in one half of them and read in the other, so that noise does not make
        peaks.
    adaptation_index : array (K, S). ``(onset - steady) / (onset - before)``, the share of the first response
        that is gone at the end: 0 is none, 1 complete, more than 1 an end beyond the start. NaN where the
        step is not answered, or the neuron not driven: by tones (or a band) that evoke less than a hundredth
        of its best response to tones of the highest level.
    tau_ms : array (K, S). Time constant of the exponential from the onset on; NaN where there is none: less
        than a twentieth is gone, an exponential explains less than half of the course, or the response is not
        settled at the end.
    """

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

    def _summary(self) -> dict[str, FloatArray]:
        columns = {}
        for direction, steps in (("up", self.to_db > self.from_db), ("down", self.to_db < self.from_db)):
            for name, values in self._named("", "adaptation_index", "tau_ms").items():
                known = [row[np.isfinite(row)] for row in values[:, steps]]
                medians = [np.median(row) if row.size else np.nan for row in known]
                columns[f"level_{direction}_{name}"] = np.asarray(medians)
        return columns


@checked_but("model")
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
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    levels_db : sequence of float
        Two or more root mean squares, dB re 1, ascending. The first is held before the first step.
    tone_hz : float or sequence of float (K,), optional
        Play tones of these frequencies, one for all neurons or one each; None is noise.
    hold_ms : float
        How long each level lasts; time constants up to this can be found, up to a third of it well.
    n_tokens : int
        Noises that are averaged over; tones are played once.
    band_hz : (float, float), optional
        Edges of band-pass noise; None is white.
    seed : int
        Which noises.

    Returns
    -------
    LevelStepResponse
        Time courses, and per step the onset and steady response, adaptation index and time constant; the
        table holds medians over the steps up, and over those down.

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
    levels = ascending("levels_db", levels_db)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    check_lengths(hold_ms=hold_ms)
    if len(levels) < 2:
        raise ValueError(f"levels_db must hold two levels or more to step between, got {levels}")
    bins = presentation.bins(hold_ms)
    if bins < LEAST_BINS:
        raise ValueError(
            f"hold_ms gives {bins} bins of {presentation.dt_ms:g} ms; a level must last {LEAST_BINS} or "
            f"more: hold_ms={LEAST_BINS * presentation.dt_ms:g}"
        )
    if tone_hz is not None and band_hz is not None:
        raise ValueError("give tone_hz (tones) or band_hz (noise), not both")
    if band_hz is not None:
        two_frequencies("band_hz", band_hz, presentation.audio_fs)
    staircase = np.concatenate([levels, levels[-2::-1]])
    total, fs = len(staircase) * bins * presentation.samples(0.0), presentation.fs
    longer = total + presentation.samples(RAMP_MS)  # the ramp at the end of a carrier is cut off
    n_neurons = len(presentation.neurons)
    if tone_hz is None:
        rates = presentation.play(
            stepped(noise(longer, fs, band_hz=band_hz, seed=seed + token)[:total], staircase, fs)
            for token in range(n_tokens)
        )
    else:
        tones = one_per_neuron("tone_hz", tone_hz, n_neurons)
        check_audible("tone_hz", tones, presentation.audio_fs)
        rates = np.zeros((1, n_neurons, presentation.lead_bins + len(staircase) * bins))
        for hertz, own in sharing(tones):
            carrier = tone(float(hertz), longer, fs)[:total]
            rates[:, own] = presentation.play([stepped(carrier, staircase, fs)])[:, own]
    evoked = presentation.evoked(rates).reshape(len(rates), n_neurons, len(staircase), bins)
    time_ms = presentation.time_ms(bins)
    chosen = tone_hz is not None or band_hz is not None  # white noise drives every band
    least = least_response(presentation, levels[-1]) if chosen else np.zeros(n_neurons)
    return LevelStepResponse(
        presentation.neurons, staircase[:-1], staircase[1:], time_ms, evoked[:, :, 1:].mean(axis=0),
        presentation.baseline(rates).mean(axis=0), *_step_measures(time_ms, evoked, least),
    )  # fmt: skip


def _step_measures(time_ms: FloatArray, evoked: FloatArray, least: FloatArray) -> tuple[FloatArray, ...]:
    """Before, onset, steady, index and time constant (K, S) of courses (tokens, K, S + 1, T)."""
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
    answered &= largest > least[:, None]
    index = np.where(answered, gone / np.where(answered, change, 1.0), np.nan)
    taus = np.full(index.shape, np.nan)
    courses, starts = evoked[:, :, 1:].mean(axis=0), np.abs(departure.mean(axis=0)).argmax(axis=-1)
    for where in zip(*np.nonzero(index > LEAST_INDEX), strict=True):
        part = slice(int(starts[where]) + 1, None)  # the bin of the step holds its ramp
        tau, amplitude = decay_time_constant(time_ms[part], courses[where][part], LEAST_EXPLAINED)
        if amplitude * gone[where] > 0:  # it goes back, not on
            taus[where] = tau
    return before, before + change, steady, index, taus


@dataclass(frozen=True)
class OddballResponse(ProbeResult):
    """Responses of K neurons to two tones, each once common and once rare.

    Attributes
    ----------
    low_khz, high_khz : array (K,). The two tones of each neuron.
    time_ms : array (T,). Middle of each bin after a tone's onset, one period long.
    common, rare : array (K, 2, T). Mean evoked rate for the low and the high tone in either role, in the
        model's unit.
    ssa_index : array (K, 2). ``(rare - common) / (rare + common)`` per tone, of the rectified means over the
        period; NaN where both together evoke less than a hundredth of the neuron's best response to tones.
    common_ssa_index : array (K,). The same of the sums over both tones: above 0 is stimulus-specific
        adaptation.
    """

    low_khz: FloatArray
    high_khz: FloatArray
    time_ms: FloatArray
    common: FloatArray
    rare: FloatArray
    ssa_index: FloatArray
    common_ssa_index: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return {
            "ssa_index_low": self.ssa_index[:, 0],
            "ssa_index_high": self.ssa_index[:, 1],
            "common_ssa_index": self.common_ssa_index,
        }


@checked_but("model")
def oddball_responses(
    model: Any,
    centre_hz: float | Sequence[float] | FloatArray,
    *,
    apart_octaves: float = APART_OCTAVES,
    rare: float = RARE,
    n_tones: int = N_TONES,
    tone_ms: float = TONE_MS,
    period_ms: float = PERIOD_MS,
    level_db: float = TONE_DB,
    seed: int = 0,
) -> OddballResponse:
    """Play oddball sequences: a common and a rare tone, then the same order with the roles swapped.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
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
    centres = one_per_neuron("centre_hz", centre_hz, len(presentation.neurons))
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
    is_rare = _rare_tones(n_tones, rare, seed)
    settled = ~is_rare
    settled[:FIRST_RARE] = False  # the very first tones find the neuron rested
    bins, hop, fs = presentation.bins(period_ms), presentation.samples(0.0), presentation.fs
    length = min(presentation.samples(tone_ms), bins * hop)

    def sequences(low: FloatArray, high: FloatArray) -> Iterator[FloatArray]:
        """First the low tone is common, then the high one."""
        for common_tone, rare_tone in ((low, high), (high, low)):
            yield np.concatenate([rare_tone if other else common_tone for other in is_rare])

    common, rares = np.zeros((2, len(centres), 2, bins))
    for centre, own in sharing(centres):
        tones = np.zeros((2, bins * hop))
        for period, hertz in zip(tones, (float(centre) / half, float(centre) * half), strict=True):
            period[:length] = tone(hertz, length, fs, level_db)
        evoked, _ = presentation.evoke(sequences(*tones), 2)
        evoked = evoked[own].reshape(-1, 2, n_tones, bins)
        for low_or_high in (0, 1):
            common[own, low_or_high] = evoked[:, low_or_high, settled].mean(axis=1)
            rares[own, low_or_high] = evoked[:, 1 - low_or_high, is_rare].mean(axis=1)
    of_rare, of_common = (np.maximum(part.mean(axis=2), 0.0) for part in (rares, common))
    least = least_response(presentation, level_db, bins)
    return OddballResponse(
        presentation.neurons, centres / half / 1000.0, centres * half / 1000.0, presentation.time_ms(bins),
        common, rares, contrast(of_rare, of_common, least[:, None]),
        contrast(of_rare.sum(axis=1), of_common.sum(axis=1), least),
    )  # fmt: skip


def _rare_tones(n_tones: int, rare: float, seed: int) -> NDArray[np.bool_]:
    """Which tones are rare (n_tones,): spread at random, apart from each other where that is possible."""
    rng = np.random.default_rng(seed)
    n_rare = round(rare * n_tones)
    is_rare = np.zeros(n_tones, dtype=bool)
    n_places = n_tones - FIRST_RARE - (n_rare - 1)
    if n_places >= n_rare:  # places without neighbours: draw among fewer, then shift each one by its rank
        places = np.sort(rng.choice(n_places, n_rare, replace=False)) + np.arange(n_rare)
    else:
        places = rng.choice(n_tones - FIRST_RARE, n_rare, replace=False)
    is_rare[FIRST_RARE + places] = True
    return is_rare
