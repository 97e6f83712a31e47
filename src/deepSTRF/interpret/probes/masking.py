"""Forward masking: how long a sound dulls the response to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.checks import check_audible, check_lengths, check_levels
from deepSTRF.interpret.probes.listener import as_listener
from deepSTRF.interpret.probes.measures import check_ascending, first_crossing, values_per_neuron
from deepSTRF.interpret.probes.sounds import tone
from deepSTRF.interpret.tuning_table import NeuronTable
from deepSTRF.models._checks import check_choice

__all__ = ["MaskingResponse", "forward_masking"]

FloatArray = NDArray[np.float64]

DELAYS_MS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
MASKER_MS, PROBE_MS, TAIL_MS = 200.0, 20.0, 60.0
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
    tail_ms: float = TAIL_MS,
    measure: str = "mean",
) -> MaskingResponse:
    """Play a probe tone at several delays after a masker.

    The probe's response is the difference between masker with probe and masker alone, so that a linear model
    behind its spectrogram shows no masking but that of the front-end.

    Parameters
    ----------
    model : Listener or nn.Module
        A listener, or a model with a front-end.
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
        For an illegal argument, or a listener that cannot be played sounds.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> forward_masking(model, 1000.0, [20.0, 40.0]).recovery.shape
    (1, 2)
    """
    listener = as_listener(model)
    probes = values_per_neuron("probe_hz", probe_hz, len(listener.neurons))
    maskers = probes if masker_hz is None else values_per_neuron("masker_hz", masker_hz, len(probes))
    delays = np.asarray(delays_ms, dtype=np.float64)
    check_ascending("delays_ms", delays, above=0.0)
    check_choice("measure", measure, ("mean", "peak"))
    for name, hertz in (("probe_hz", probes), ("masker_hz", maskers)):
        check_audible(name, hertz, listener.audio_fs)
    check_lengths(masker_ms=masker_ms, probe_ms=probe_ms, tail_ms=tail_ms)
    check_levels(masker_level_db=masker_level_db, probe_level_db=probe_level_db)
    fs, hop = listener.audio_fs or 0.0, listener.samples(0.0)
    waits = [listener.bins(delay) for delay in delays]
    n_masker, window = listener.bins(masker_ms), listener.bins(probe_ms + tail_ms)
    n_bins = n_masker + waits[-1] + window
    alone, masked = np.zeros(len(probes)), np.zeros((len(probes), len(delays)))
    for pair in np.unique(np.stack([probes, maskers], axis=1), axis=0):
        own = (probes == pair[0]) & (maskers == pair[1])
        probe = tone(float(pair[0]), listener.samples(probe_ms), fs, probe_level_db)
        masker = np.zeros(n_bins * hop)
        masker[: n_masker * hop] = tone(float(pair[1]), n_masker * hop, fs, masker_level_db)
        sounds = [np.zeros_like(masker), masker]
        for base in sounds[:2]:
            for wait in waits:
                at = (n_masker + wait) * hop
                sounds.append(base.copy())
                sounds[-1][at : at + probe.size] += probe
        heard = listener.play(sounds)[:, own, listener.lead_bins :]
        for index, wait in enumerate(waits):
            part = slice(n_masker + wait, n_masker + wait + window)
            masked[own, index] = _size(heard[2 + len(waits) + index, :, part] - heard[1, :, part], measure)
        last = slice(n_masker + waits[-1], n_bins)
        alone[own] = _size(heard[1 + len(waits), :, last] - heard[0, :, last], measure)
    excited = alone > 0
    recovery = np.where(excited[:, None], masked / np.where(excited, alone, 1.0)[:, None], np.nan)
    exact = np.asarray(waits) * listener.dt_ms
    back = np.asarray([first_crossing(exact, np.nan_to_num(row, nan=-np.inf), RECOVERED) for row in recovery])
    return MaskingResponse(
        listener.neurons, probes / 1000.0, maskers / 1000.0, exact, alone, masked, recovery, back
    )


def _size(difference: FloatArray, measure: str) -> FloatArray:
    return np.asarray(difference.mean(axis=-1) if measure == "mean" else difference.max(axis=-1))
