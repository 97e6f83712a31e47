"""Two tones at once: does a second tone take away what the first one evokes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.checks import check_audible, check_lengths, check_levels
from deepSTRF.interpret.probes.listener import as_listener
from deepSTRF.interpret.probes.measures import check_ascending, strength, values_per_neuron
from deepSTRF.interpret.probes.sounds import tone
from deepSTRF.interpret.probes.tones import DURATION_MS, TAIL_MS, default_tones
from deepSTRF.interpret.tuning_table import NeuronTable

__all__ = ["TwoToneResponse", "two_tone_responses"]

FloatArray = NDArray[np.float64]

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
    model : Listener or nn.Module
        A listener, or a model with a front-end.
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
        For an illegal argument, or a listener that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> two_tone_responses(model, 1000.0, [700.0, 1400.0]).suppression.shape
    (1, 2)
    """
    listener = as_listener(model)
    probes = values_per_neuron("probe_hz", probe_hz, len(listener.neurons))
    seconds = (
        default_tones(listener) if frequencies_hz is None else np.asarray(frequencies_hz, dtype=np.float64)
    )
    check_ascending("frequencies_hz", seconds, above=0.0)
    for name, hertz in (("probe_hz", probes), ("frequencies_hz", seconds)):
        check_audible(name, hertz, listener.audio_fs)
    check_lengths(duration_ms=duration_ms, tail_ms=tail_ms)
    check_levels(probe_level_db=probe_level_db, second_level_db=second_level_db)
    n_on, fs = listener.samples(duration_ms), listener.audio_fs or 0.0
    quiet = np.zeros(listener.samples(tail_ms))

    def answers(sounds: list[FloatArray]) -> FloatArray:
        rates = listener.play(np.concatenate([sound, quiet]) for sound in sounds)
        return strength(listener, rates, duration_ms + tail_ms, measure)

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
        listener.neurons, probes / 1000.0, seconds / 1000.0, probe_alone, second_alone, both, suppression,
        suppression[np.arange(len(at)), at], np.where(excited, seconds[at] / 1000.0, np.nan),
    )  # fmt: skip
