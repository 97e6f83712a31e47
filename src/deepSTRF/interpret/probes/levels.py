"""Steps of level: what a neuron says first, where it settles, and how fast it gets there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.checks import check_audible, check_lengths, check_range
from deepSTRF.interpret.probes.listener import Listener, as_listener
from deepSTRF.interpret.probes.measures import check_ascending, decay_time_constant, values_per_neuron
from deepSTRF.interpret.probes.sounds import RAMP_MS, noise, stepped, tone
from deepSTRF.interpret.tuning_table import NeuronTable
from deepSTRF.models._checks import check_positive_int

__all__ = ["LevelStepResponse", "level_step_responses"]

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
    model : Listener or nn.Module
        A listener, or a model with a front-end.
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
        For an illegal argument, or a listener that cannot be played sounds.

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
    listener = as_listener(model)
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("levels_db", levels)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    check_lengths(hold_ms=hold_ms)
    bins = listener.bins(hold_ms)
    _check_steps(listener, levels, bins, tone_hz, band_hz)
    staircase = np.concatenate([levels, levels[-2::-1]])
    total, fs = len(staircase) * bins * listener.samples(0.0), listener.audio_fs or 0.0
    longer = total + listener.samples(RAMP_MS)  # the ramp at the end of a carrier is cut off
    n_neurons = len(listener.neurons)
    if tone_hz is None:
        rates = listener.play(
            stepped(noise(longer, fs, band_hz=band_hz, seed=seed + token)[:total], staircase, fs)
            for token in range(n_tokens)
        )
    else:
        tones = values_per_neuron("tone_hz", tone_hz, n_neurons)
        check_audible("tone_hz", tones, listener.audio_fs)
        rates = np.zeros((1, n_neurons, listener.lead_bins + len(staircase) * bins))
        for hertz in np.unique(tones):
            own = tones == hertz
            carrier = tone(float(hertz), longer, fs)[:total]
            rates[:, own] = listener.play([stepped(carrier, staircase, fs)])[:, own]
    evoked = listener.evoked(rates).reshape(len(rates), n_neurons, len(staircase), bins)
    time_ms = listener.time_ms(bins)
    return LevelStepResponse(
        listener.neurons, staircase[:-1], staircase[1:], time_ms, evoked[:, :, 1:].mean(axis=0),
        listener.baseline(rates).mean(axis=0), *_measures(time_ms, evoked),
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


def _check_steps(listener: Listener, levels: FloatArray, bins: int, tone_hz: Any, band_hz: Any) -> None:
    if len(levels) < 2:
        raise ValueError(f"levels_db must hold two levels or more to step between, got {levels}")
    if bins < LEAST_BINS:
        raise ValueError(
            f"hold_ms gives {bins} bins of {listener.dt_ms:g} ms; a level must last {LEAST_BINS} or more: "
            f"hold_ms={LEAST_BINS * listener.dt_ms:g}"
        )
    if tone_hz is not None and band_hz is not None:
        raise ValueError("give tone_hz (tones) or band_hz (noise), not both")
    if band_hz is not None:
        check_range("band_hz", band_hz, listener.audio_fs)
