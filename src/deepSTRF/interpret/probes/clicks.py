"""Gaps in noise: the shortest silence that a neuron marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import check_positive_int
from deepSTRF.interpret.probes.checks import check_lengths, check_levels
from deepSTRF.interpret.probes.measures import check_ascending, first_crossing, peak_times
from deepSTRF.interpret.probes.presentation import as_presentation
from deepSTRF.interpret.probes.sounds import EDGE_MS, click, noise, ramped
from deepSTRF.interpret.strf.table import NeuronTable, extent_above

__all__ = ["ClickResponse", "GapResponse", "click_responses", "gap_responses"]

# ------------------------------------------------------------------------------
# Clicks: when a neuron answers, for how long, and how well it follows a train of them.


FloatArray = NDArray[np.float64]

LEVELS_DB = (-30.0, -20.0, -10.0)
WATCHED_MS = 200.0
#: Clicks are this long: at any audio rate the same energy per level.
WIDTH_MS = 0.1


@dataclass(frozen=True)
class ClickResponse:
    """Responses of K neurons to clicks at L levels.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    levels_db : array (L,)
        Peak of the click, dB re 1 (full scale).
    time_ms : array (T,)
        Middle of each bin after the click.
    evoked : array (K, L, T)
        Rate less the baseline, in the model's unit.
    baseline : array (K,)
        Rate in silence.
    latency_ms, duration_ms : array (K, L)
        When the evoked rate peaks, and how long it stays above half the peak; NaN where nothing is evoked.
    rebound : array (K, L)
        Deepest suppression after the peak as a share of the peak, 0 or positive.

    Examples
    --------
    >>> ClickResponse.__dataclass_fields__["rebound"].type
    'FloatArray'
    """

    neurons: list[int]
    levels_db: FloatArray
    time_ms: FloatArray
    evoked: FloatArray
    baseline: FloatArray
    latency_ms: FloatArray
    duration_ms: FloatArray
    rebound: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary at the highest level, one row per neuron."""
        names = ("latency_ms", "duration_ms", "rebound")
        return NeuronTable(tuple(self.neurons), {f"click_{n}": getattr(self, n)[:, -1] for n in names})


def click_responses(
    model: Any, levels_db: Sequence[float] = LEVELS_DB, *, watched_ms: float = WATCHED_MS
) -> ClickResponse:
    """Play clicks and return the responses.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
    levels_db : sequence of float
        Peaks of the 0.1 ms clicks, dB re 1, ascending.
    watched_ms : float
        How long after the click.

    Returns
    -------
    ClickResponse
        Time courses and summary.

    Raises
    ------
    ValueError
        For levels that do not ascend, or a presentation that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> click_responses(model, watched_ms=50.0).evoked.shape
    (1, 3, 10)
    """
    presentation = as_presentation(model)
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("levels_db", levels)
    check_lengths(watched_ms=watched_ms)
    n_samples = presentation.samples(watched_ms)
    width = max(1, round(WIDTH_MS * (presentation.audio_fs or 0.0) / 1000.0))
    rates = presentation.play(click(n_samples, level, width) for level in levels)
    evoked = presentation.evoked(rates).transpose(1, 0, 2)
    time_ms = presentation.time_ms(evoked.shape[-1])
    duration, rebound = np.full((2, *evoked.shape[:2]), np.nan)
    for where in np.ndindex(*evoked.shape[:2]):
        curve = evoked[where]
        peak = float(curve.max())
        if peak > 0:
            at = int(curve.argmax())
            duration[where] = extent_above(time_ms, curve, at, 0.5 * peak).width
            rebound[where] = max(0.0, -float(curve[at:].min())) / peak
    return ClickResponse(
        presentation.neurons, levels, time_ms, evoked, presentation.baseline(rates)[0],
        peak_times(time_ms, evoked), duration, rebound,
    )  # fmt: skip


# ------------------------------------------------------------------------------

GAPS_MS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
MARKER_MS, LEVEL_DB = 250.0, -20.0
#: A gap is marked when it changes the response by this share of what the longest gap changes.
CRITERION = 0.5
#: Responses count until this long after the gap.
AFTER_MS = 100.0


@dataclass(frozen=True)
class GapResponse:
    """Responses of K neurons to G gaps in noise.

    Attributes
    ----------
    neurons : list of int
        Which neurons.
    gaps_ms : array (G,)
        Ascending.
    time_ms : array (T,)
        Middle of each bin after the end of the gap; bins before it are negative.
    difference : array (K, G, T)
        Rate with the gap less the rate without, same noise, averaged over tokens, in the model's unit.
    after : array (K, G)
        Largest rise over the rate without gap in the 100 ms after the gap: the response to the sound's
        return.
    change : array (K, G)
        Largest absolute difference from the start of the gap until 100 ms after it.
    threshold_ms : array (K,)
        Gap whose ``change`` is half that of the longest, between gaps; NaN for a neuron that marks none.

    Examples
    --------
    >>> GapResponse.__dataclass_fields__["change"].type
    'FloatArray'
    """

    neurons: list[int]
    gaps_ms: FloatArray
    time_ms: FloatArray
    difference: FloatArray
    after: FloatArray
    change: FloatArray
    threshold_ms: FloatArray

    def table(self) -> NeuronTable:
        """Return the summary, one row per neuron."""
        return NeuronTable(tuple(self.neurons), {"gap_threshold_ms": self.threshold_ms})


def gap_responses(
    model: Any,
    gaps_ms: Sequence[float] = GAPS_MS,
    *,
    marker_ms: float = MARKER_MS,
    level_db: float = LEVEL_DB,
    n_tokens: int = 4,
    seed: int = 0,
) -> GapResponse:
    """Play noise with a gap in it, and without, and return the difference.

    All gaps end at the same moment, so that their responses line up.

    Parameters
    ----------
    model : Presentation or nn.Module
        A presentation, or a model with a front-end.
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

    Raises
    ------
    ValueError, TypeError
        For an illegal argument, or a presentation that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> gap_responses(model, [10.0, 50.0], n_tokens=1).change.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    gaps = np.asarray(gaps_ms, dtype=np.float64)
    check_ascending("gaps_ms", gaps, above=0.0)
    check_lengths(marker_ms=marker_ms)
    check_levels(level_db=level_db)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    end = presentation.bins(marker_ms + gaps[-1])
    n_bins, fs = end + presentation.bins(marker_ms), presentation.audio_fs or 0.0
    total = n_bins * presentation.samples(0.0)
    at = end * presentation.samples(0.0)
    carriers = [noise(total, fs, level_db, seed=seed + token) for token in range(n_tokens)]
    lengths = [0, *(max(1, round(gap * fs / 1000.0)) for gap in gaps)]
    rates = presentation.play(
        _with_gap(carrier, at, length, fs) for length in lengths for carrier in carriers
    )
    heard = rates[..., presentation.lead_bins :]
    heard = heard.reshape(len(lengths), n_tokens, *heard.shape[1:]).mean(axis=1)
    difference = (heard[1:] - heard[:1]).transpose(1, 0, 2)
    time_ms = presentation.time_ms(n_bins) - end * presentation.dt_ms
    near = time_ms <= AFTER_MS
    change = np.stack(
        [
            np.abs(difference[:, g][:, near & (time_ms > -gap - presentation.dt_ms)]).max(axis=1)
            for g, gap in enumerate(gaps)
        ],
        axis=1,
    )
    thresholds = [first_crossing(gaps, row, CRITERION * row[-1]) if row[-1] > 0 else np.nan for row in change]
    return GapResponse(
        presentation.neurons, gaps, time_ms, difference,
        np.maximum(difference[:, :, near & (time_ms > 0)].max(axis=2), 0.0), change, np.asarray(thresholds),
    )  # fmt: skip


def _with_gap(carrier: FloatArray, end: int, length: int, fs: float) -> FloatArray:
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
