"""Clicks: when a neuron answers, for how long, and how well it follows a train of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.checks import check_lengths
from deepSTRF.interpret.probes.listener import as_listener
from deepSTRF.interpret.probes.measures import check_ascending, peak_times
from deepSTRF.interpret.probes.sounds import click
from deepSTRF.interpret.tuning_curves import extent_above
from deepSTRF.interpret.tuning_table import NeuronTable

__all__ = ["ClickResponse", "click_responses"]

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
    model : Listener or nn.Module
        A listener, or a model with a front-end.
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
        For levels that do not ascend, or a listener that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> click_responses(model, watched_ms=50.0).evoked.shape
    (1, 3, 10)
    """
    listener = as_listener(model)
    levels = np.asarray(levels_db, dtype=np.float64)
    check_ascending("levels_db", levels)
    check_lengths(watched_ms=watched_ms)
    n_samples = listener.samples(watched_ms)
    width = max(1, round(WIDTH_MS * (listener.audio_fs or 0.0) / 1000.0))
    rates = listener.play(click(n_samples, level, width) for level in levels)
    evoked = listener.evoked(rates).transpose(1, 0, 2)
    time_ms = listener.time_ms(evoked.shape[-1])
    duration, rebound = np.full((2, *evoked.shape[:2]), np.nan)
    for where in np.ndindex(*evoked.shape[:2]):
        curve = evoked[where]
        peak = float(curve.max())
        if peak > 0:
            at = int(curve.argmax())
            duration[where] = extent_above(time_ms, curve, at, 0.5 * peak).width
            rebound[where] = max(0.0, -float(curve[at:].min())) / peak
    return ClickResponse(
        listener.neurons, levels, time_ms, evoked, listener.baseline(rates)[0],
        peak_times(time_ms, evoked), duration, rebound,
    )  # fmt: skip
