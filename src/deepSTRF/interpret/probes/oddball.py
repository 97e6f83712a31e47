"""Oddball sequences: is a rare tone answered more strongly than the same tone when it is common?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.probes.checks import check_audible, check_lengths, check_levels
from deepSTRF.interpret.probes.listener import Listener, as_listener
from deepSTRF.interpret.probes.measures import values_per_neuron
from deepSTRF.interpret.probes.sounds import tone
from deepSTRF.interpret.tuning_table import NeuronTable
from deepSTRF.models._checks import check_positive_int, check_positive_number

__all__ = ["OddballResponse", "oddball_responses"]

FloatArray = NDArray[np.float64]

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
    model : Listener or nn.Module
        A listener, or a model with a front-end.
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
        For an illegal argument, or a listener that cannot be played sounds.

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
    listener = as_listener(model)
    centres = values_per_neuron("centre_hz", centre_hz, len(listener.neurons))
    n_tones = check_positive_int("n_tones", n_tones)
    check_positive_number("apart_octaves", apart_octaves)
    if not 0.0 < rare <= 0.5 or round(rare * n_tones) < 1 or n_tones < 2 * FIRST_RARE:
        raise ValueError(f"rare={rare!r} of n_tones={n_tones} must give 1 rare tone or more, at most half")
    check_lengths(tone_ms=tone_ms, period_ms=period_ms)
    check_levels(level_db=level_db)
    if tone_ms > period_ms:
        raise ValueError(f"tone_ms={tone_ms!r} must fit into period_ms={period_ms!r}")
    half = 2.0 ** (0.5 * apart_octaves)
    check_audible("centre_hz, half of apart_octaves higher,", centres * half, listener.audio_fs)
    order = _order(n_tones, rare, seed)
    bins = listener.bins(period_ms)
    common, rares = np.zeros((2, len(centres), 2, bins))
    for centre in np.unique(centres):
        own = centres == centre
        pair = (float(centre) / half, float(centre) * half)
        # first the low tone is common, then the high one
        rates = listener.play(_sequences(listener, pair, order, tone_ms, bins, level_db))
        evoked = listener.evoked(rates)[:, own].reshape(2, int(own.sum()), n_tones, bins)
        for low_or_high in (0, 1):
            as_common, as_rare = evoked[low_or_high], evoked[1 - low_or_high]
            settled = ~order
            settled[:FIRST_RARE] = False  # the very first tones find the neuron rested
            common[own, low_or_high] = as_common[:, settled].mean(axis=1)
            rares[own, low_or_high] = as_rare[:, order].mean(axis=1)
    answered = [np.maximum(part.mean(axis=2), 0.0) for part in (rares, common)]
    return OddballResponse(
        listener.neurons, centres / half / 1000.0, centres * half / 1000.0, listener.time_ms(bins),
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
    listener: Listener,
    pair: tuple[float, float],
    order: NDArray[np.bool_],
    tone_ms: float,
    bins: int,
    level_db: float,
) -> list[FloatArray]:
    fs, hop = listener.audio_fs or 0.0, listener.samples(0.0)
    length = min(listener.samples(tone_ms), bins * hop)
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
