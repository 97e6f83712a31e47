"""A recording that needs no file: natural-like sounds and simulated neurons with known receptive fields."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.datasets import _validation
from deepSTRF.datasets.audio.base import AudioNeuralDataset
from deepSTRF.datasets.audio.synthetic_neurons import Population, draw_neuron, draw_spikes, simulate
from deepSTRF.datasets.audio.synthetic_sounds import SOUND_KINDS, make_sound
from deepSTRF.dsp.cochleagram import (
    RAHMAN_F_MAX_HZ,
    RAHMAN_F_MIN_HZ,
    RAHMAN_LOG_FLOOR,
    rahman_cochleagram,
    rahman_frequencies,
)
from deepSTRF.registry import DATASETS

__all__ = ["SyntheticDataset"]

#: Bands lie where NS1's do, six per octave from 500 Hz, as many as fit below this fraction of the Nyquist
#: frequency.
BANDS_PER_OCTAVE = 6
HIGHEST_BAND = 0.95
#: Ragged clips last between this fraction of ``clip_seconds`` and all of it.
SHORTEST_CLIP = 0.5


@dataclass(frozen=True, eq=False)
class _Truth:
    population: Population
    heard: Tensor  # (S, N) bool
    n_repeats: int


@DATASETS.register("synthetic")
class SyntheticDataset(AudioNeuralDataset):
    """Simulated neurons that hear natural-like sounds; receptive fields, rates and noise ceiling are known.

    Sounds take turns: modulated noise, harmonic stacks, chirps, tone pips with sharp onsets, sequences with
    silences. The spectrogram is the causal cochleagram of NS1 (`deepSTRF.dsp.cochleagram.rahman_cochleagram`,
    six bands an octave) measured from its floor, ``ln(max(x, 1e-4)) - ln(1e-4)``, so that silence, and the
    zeros with which models and batches are padded, are 0. The neurons are driven by exactly this spectrogram,
    so a linear model on it can recover the receptive fields. Spikes are Poisson. The same seed gives the same
    data on every machine, and the first clips and neurons do not depend on how many follow (their rates do,
    through the scale).

    Parameters
    ----------
    n_neurons, n_clips, n_repeats : int
        Size of the recording.
    dt_ms : float
        Bin in ms.
    audio_fs : int
        Sampling rate in Hz at which the sounds are made, in both modes; a bin must be a whole number of
        samples. It also decides the number of bands: 24 at 16 kHz, 34 at 48 kHz.
    return_waveform : bool
        Stimuli are (1, T_audio) waveforms instead of (1, F, T) spectrograms. Responses are the same.
    clip_seconds : float
        Length of a clip, cut to whole bins.
    n_lags : int
        Length of the receptive fields in bins.
    ragged : bool
        Clips of different lengths, between half of ``clip_seconds`` and all of it.
    missing_fraction : float
        Fraction of the (clip, neuron) pairs that were not recorded; every neuron and every clip keeps one.
    seed : int
        Which recording.

    Attributes
    ----------
    nrn_meta : list of dict
        ``cell_id``, ``area``, ``kind`` ("strf", "ln", "gain", "onoff": see `simulate` in
        `deepSTRF.datasets.audio.synthetic_neurons`), ``best_frequency_hz``, ``bandwidth_octaves``,
        ``latency_ms``, ``suppression``, ``sideband``, ``off_weight``, ``mean_rate_hz``.
    stim_meta : list of dict
        ``name``, ``type`` (kind of sound), ``source_sha256``.

    Raises
    ------
    ValueError, TypeError
        When an argument is not legal.

    Examples
    --------
    >>> ds = SyntheticDataset(n_neurons=4, n_clips=2, n_repeats=5, clip_seconds=0.5)
    >>> tuple(ds.stims[0].shape), tuple(ds.response_block(0).shape), tuple(ds.true_strfs.shape)
    ((1, 24, 100), (4, 5, 100), (4, 24, 9))
    >>> [neuron["kind"] for neuron in ds.nrn_meta]
    ['strf', 'ln', 'gain', 'onoff']
    """

    _truth: _Truth | None = None

    def __init__(
        self,
        n_neurons: int = 24,
        n_clips: int = 24,
        n_repeats: int = 10,
        dt_ms: float = 5.0,
        audio_fs: int = 16000,
        return_waveform: bool = False,
        *,
        clip_seconds: float = 2.0,
        n_lags: int = 9,
        ragged: bool = False,
        missing_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(None, dt_ms)
        n_neurons, n_clips, n_repeats, n_lags, audio_fs, seed = _integers(
            n_neurons=n_neurons,
            n_clips=n_clips,
            n_repeats=n_repeats,
            n_lags=n_lags,
            audio_fs=audio_fs,
            seed=seed,
        )
        hop = _validation.check_hop(audio_fs, self.dt)
        bins = _clip_bins(n_clips, clip_seconds, self.dt, ragged, seed)
        frequencies = _frequencies(audio_fs)
        heard = _heard(n_clips, n_neurons, missing_fraction, seed)
        sounds = [
            torch.from_numpy(_sound(clip, length * hop, audio_fs, seed))[None]
            for clip, length in enumerate(bins)
        ]
        spectrograms = [_spectrogram(sound, audio_fs, self.dt, frequencies) for sound in sounds]
        hz = frequencies.numpy()
        neurons = [draw_neuron(number, hz, seed) for number in range(n_neurons)]
        population = simulate(neurons, [s[0] for s in spectrograms], hz, n_lags, self.dt)
        self.name, self.species = "synthetic", "simulated"
        self.return_waveform, self.audio_fs = bool(return_waveform), audio_fs if return_waveform else None
        self.F, self.frequencies_hz = len(frequencies), hz
        self.N_neurons = n_neurons
        self.stims = sounds if return_waveform else spectrograms
        self.responses = [
            _responses(rate, clip, n_repeats, heard[clip], seed) for clip, rate in enumerate(population.rates)
        ]
        self.nrn_meta = [
            {"cell_id": f"sim{number:03d}", "area": "model", **dataclasses.asdict(neuron)}
            for number, neuron in enumerate(neurons)
        ]
        self.stim_meta = [_clip_meta(clip, sound) for clip, sound in enumerate(sounds)]
        self._truth = _Truth(population, heard, n_repeats)
        self.facts = {"seed": seed, "made_at_hz": audio_fs, "spikes": "Poisson"}
        if not return_waveform:
            self.facts |= {
                "spectrogram": "cochleagram above its floor",
                "alignment": "causal",
                "look_ahead_ms": 0.0,
            }
        self.validate()

    @property
    def true_strfs(self) -> Tensor:
        """(N, F, T) receptive fields: kernels on the spectrogram, the last column is the current frame.

        For "strf" and "gain" neurons in spikes per bin per unit of the spectrogram, for "ln" neurons in the
        unit of the sigmoid's argument, for "onoff" neurons the kernel on the ON channel.
        """
        return self._known.population.strfs[self._neurons]

    @property
    def true_off_strfs(self) -> Tensor:
        """(N, F, T) kernels on the OFF channel; zero for all but "onoff" neurons."""
        return self._known.population.off_strfs[self._neurons]

    @property
    def true_biases(self) -> Tensor:
        """(N,) constants added to the output of the kernels."""
        return self._known.population.biases[self._neurons]

    @property
    def true_rates(self) -> list[Tensor]:
        """Expected spikes per bin of every clip, (N, T) each, also for pairs that were not recorded."""
        rates = self._known.population.rates
        return [rates[clip][self._neurons] for clip in self._clips]

    @property
    def true_signal_power(self) -> Tensor:
        """(N,) variance over time of the true rate; the clips each neuron heard are joined end to end."""
        return self._powers()[0]

    @property
    def true_noise_power(self) -> Tensor:
        """(N,) variance of one repeat about the true rate: the mean rate in spikes per bin (Poisson)."""
        return self._powers()[1]

    @property
    def true_ceiling(self) -> Tensor:
        """(N,) expected correlation of the true rate with the mean of R repeats.

        It is ``sqrt(SP / (SP + NP / R))`` with `true_signal_power` SP and `true_noise_power` NP, over the
        clips each neuron heard, joined end to end, not smoothed. A model that predicts the true rate scores
        this correlation up to the chance of one finite draw.
        """
        signal, noise = self._powers()
        return torch.sqrt(signal / (signal + noise / self._known.n_repeats)).float()

    @property
    def _known(self) -> _Truth:
        if self._truth is None:
            raise ValueError(
                "this dataset does not know its truth: only SyntheticDataset(...) and its views do, not a "
                "concatenated, loaded or assembled one"
            )
        return self._truth

    @property
    def _neurons(self) -> list[int]:
        return list(range(self._known.population.strfs.shape[0])) if self.I is None else self.I

    @property
    def _clips(self) -> list[int]:
        return list(range(len(self._known.population.rates))) if self.S_sel is None else self.S_sel

    def _powers(self) -> tuple[Tensor, Tensor]:
        """Return signal and noise power over the heard clips of this view."""
        if not self._clips:
            nothing = torch.full((self.N_neurons,), torch.nan)
            return nothing, nothing
        rates = torch.cat(self.true_rates, dim=1).double()
        heard = torch.cat(
            [
                self._known.heard[clip, self._neurons][:, None].expand(-1, rate.shape[1])
                for clip, rate in zip(self._clips, self.true_rates, strict=True)
            ],
            dim=1,
        ).double()
        count = heard.sum(dim=1)
        mean = (rates * heard).sum(dim=1) / count
        signal = ((rates - mean[:, None]) ** 2 * heard).sum(dim=1) / count
        return signal.float(), mean.float()


def _integers(**sizes: Any) -> list[int]:
    """Return the arguments as Python integers; all but the seed must be positive."""
    whole = []
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} is an integer, got {value!r}")
        if value < (0 if name == "seed" else 1):
            raise ValueError(f"{name} must be {'0 or more' if name == 'seed' else 'at least 1'}, got {value}")
        whole.append(int(value))
    return whole


def _clip_bins(n_clips: int, clip_seconds: float, dt_ms: float, ragged: bool, seed: int) -> list[int]:
    """Return the number of bins of each clip."""
    longest = math.floor(clip_seconds * 1000.0 / dt_ms + 1e-9) if math.isfinite(clip_seconds) else 0
    if longest < 2:
        raise ValueError(
            f"clip_seconds={clip_seconds} holds fewer than two bins of {dt_ms:g} ms; make it longer"
        )
    if not ragged:
        return [longest] * n_clips
    shortest = max(2, math.ceil(SHORTEST_CLIP * longest))
    return [
        int(np.random.default_rng([seed, 3, clip]).integers(shortest, longest + 1)) for clip in range(n_clips)
    ]


def _frequencies(audio_fs: int) -> Tensor:
    top = min(RAHMAN_F_MAX_HZ, HIGHEST_BAND * audio_fs / 2)
    if top < 2 * RAHMAN_F_MIN_HZ:
        raise ValueError(
            f"audio_fs={audio_fs} Hz leaves no octave above {RAHMAN_F_MIN_HZ:g} Hz; use 4000 or more"
        )
    steps = math.floor(BANDS_PER_OCTAVE * math.log2(top / RAHMAN_F_MIN_HZ) + 1e-9)
    return rahman_frequencies(steps + 1, RAHMAN_F_MIN_HZ, RAHMAN_F_MIN_HZ * 2.0 ** (steps / BANDS_PER_OCTAVE))


def _heard(n_clips: int, n_neurons: int, missing_fraction: float, seed: int) -> Tensor:
    """Return the (S, N) table of recorded pairs."""
    if not 0.0 <= missing_fraction < 1.0:
        raise ValueError(f"missing_fraction lies in [0, 1), got {missing_fraction}")
    table = np.random.default_rng([seed, 4]).random((n_clips, n_neurons)) >= missing_fraction
    for neuron in range(n_neurons):  # every neuron keeps a clip, every clip a neuron
        table[neuron % n_clips, neuron] |= not table[:, neuron].any()
    for clip in range(n_clips):
        table[clip, clip % n_neurons] |= not table[clip].any()
    return torch.from_numpy(table)


def _sound(clip: int, n_samples: int, audio_fs: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return make_sound(
        SOUND_KINDS[clip % len(SOUND_KINDS)], n_samples, audio_fs, np.random.default_rng([seed, 0, clip])
    )


def _spectrogram(sound: Tensor, audio_fs: int, dt_ms: float, frequencies: Tensor) -> Tensor:
    """Return the (1, F, T) causal cochleagram, 0 where it is at its floor."""
    log_amplitude = rahman_cochleagram(
        sound, audio_fs, dt_ms, alignment="causal", n_filters=len(frequencies),
        f_min=float(frequencies[0]), f_max=float(frequencies[-1]),
    )  # fmt: skip
    return log_amplitude - math.log(RAHMAN_LOG_FLOOR)


def _responses(rate: Tensor, clip: int, n_repeats: int, heard: Tensor, seed: int) -> Any:
    """Return the (N, R, T) counts of one clip, or a list with None for pairs that were not recorded."""
    counts = draw_spikes(rate, n_repeats, np.random.default_rng([seed, 2, clip]))
    if bool(heard.all()):
        return counts
    return [rows if there else None for rows, there in zip(counts, heard.tolist(), strict=True)]


def _clip_meta(clip: int, sound: Tensor) -> dict[str, Any]:
    kind = SOUND_KINDS[clip % len(SOUND_KINDS)]
    digest = hashlib.sha256(sound.numpy().astype("<f4").tobytes()).hexdigest()
    return {"name": f"{kind}_{clip:02d}", "type": kind, "source_sha256": digest}
