"""Synthetic recordings: natural-like sounds and simulated neurons with known receptive fields.

Sounds come from random numbers, neurons are linear kernels on a spectrogram with one of four nonlinearities,
and spikes are Poisson; receptive fields, rates and noise ceiling are known exactly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepSTRF._validation import LARGEST_COUNT, check_flag, check_memory, checked_but
from deepSTRF.datasets.dataset import AudioNeuralDataset, check_hop
from deepSTRF.dsp.cochleagram import (
    RAHMAN_F_MAX_HZ,
    RAHMAN_F_MIN_HZ,
    RAHMAN_LOG_FLOOR,
    rahman_cochleagram,
    rahman_frequencies,
)
from deepSTRF.dsp.recursion import exponential_moving_average
from deepSTRF.registry import DATASETS

__all__ = [
    "NEURON_KINDS",
    "SOUND_KINDS",
    "Neuron",
    "Population",
    "SyntheticDataset",
    "draw_neuron",
    "draw_spikes",
    "make_sound",
    "simulate",
]

Floats = npt.NDArray[np.float64]

# ---- sounds

#: Lowest frequency with energy, and the highest as a fraction of the sampling rate.
LOWEST_HZ = 300.0
HIGHEST_FRACTION = 0.45
#: Raised-cosine onset and offset of tones and syllables.
RAMP_S = 0.005
#: Root mean square of a sound before its level is drawn from -9 .. +3 dB; peaks stay below 1.
RMS = 0.1
LEVEL_RANGE_DB = (-9.0, 3.0)
#: Bands of independent modulation in the noise, and the range of modulation rates (of natural sounds,
#: Singh & Theunissen 2003, 10.1121/1.1624067).
NOISE_BANDS = 6
MODULATION_HZ = (2.0, 25.0)
MOST_HARMONICS = 30


def make_sound(kind: str, n_samples: int, audio_fs: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """One sound (n_samples,) of a kind of `SOUND_KINDS`."""
    if kind not in SOUND_KINDS:
        raise ValueError(f"kind is one of {', '.join(map(repr, SOUND_KINDS))}, got {kind!r}")
    sound = _MAKERS[kind](n_samples, audio_fs, rng)
    level = 10.0 ** (rng.uniform(*LEVEL_RANGE_DB) / 20.0)
    return _at_level(sound, RMS * level).astype(np.float32)


def _at_level(sound: Floats, rms: float) -> Floats:
    """Scale to a root mean square, or less where the peak would reach 1."""
    size = math.sqrt(float(np.mean(sound**2)))
    if size == 0.0:
        return sound
    scaled = sound * (rms / size)
    return scaled * min(1.0, 0.99 / float(np.abs(scaled).max()))


def _random_frequency(audio_fs: int, rng: np.random.Generator, size: int | None = None) -> Floats:
    """Draw frequencies evenly on a log axis."""
    low, high = math.log(LOWEST_HZ), math.log(HIGHEST_FRACTION * audio_fs)
    return np.exp(rng.uniform(low, high, size=size))


def _slow_curve(n_samples: int, audio_fs: int, rate_hz: float, rng: np.random.Generator) -> Floats:
    """A smooth random curve of unit variance with about ``rate_hz`` knots a second."""
    knots = max(4, math.ceil(n_samples / audio_fs * rate_hz) + 2)
    values = rng.standard_normal(knots)
    position = np.linspace(0.0, knots - 1.001, n_samples)
    left = position.astype(np.int64)
    mix = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return values[left] * (1.0 - mix) + values[left + 1] * mix


def _ramped(sound: Floats, audio_fs: int) -> Floats:
    """Fade a piece in and out."""
    ramp = min(round(RAMP_S * audio_fs), len(sound) // 2)
    if ramp:
        edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
        sound[:ramp] *= edge
        sound[-ramp:] *= edge[::-1]
    return sound


def _modulated_noise(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Floats:
    """Pink noise whose bands wax and wane independently."""
    n_fft = 1 << max(1, math.ceil(math.log2(max(n_samples, 2))))  # a round length: the FFT of a prime is slow
    spectrum = rng.standard_normal((2, n_fft // 2 + 1)).T @ np.array([1.0, 1.0j])
    hz = np.arange(n_fft // 2 + 1) * (audio_fs / n_fft)
    spectrum = np.where(hz >= LOWEST_HZ, spectrum / np.sqrt(np.maximum(hz, LOWEST_HZ)), 0.0)
    edges = np.geomspace(LOWEST_HZ, HIGHEST_FRACTION * audio_fs, NOISE_BANDS + 1)
    sound = np.zeros(n_samples)
    for low, high in itertools.pairwise(edges):
        band = np.fft.irfft(np.where((hz >= low) & (hz < high), spectrum, 0.0), n_fft)[:n_samples]
        sound += band * np.exp(1.2 * _slow_curve(n_samples, audio_fs, rng.uniform(*MODULATION_HZ), rng))
    return sound


def _harmonic_stack(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Floats:
    """A voice: harmonics of a gliding fundamental under two formants, in syllables."""
    pitch = rng.uniform(120.0, 500.0) * np.exp2(0.35 * _slow_curve(n_samples, audio_fs, 3.0, rng))
    rotation = np.exp(2.0j * np.pi * np.cumsum(pitch) / audio_fs)
    formants = np.sort(_random_frequency(audio_fs, rng, 2))
    top = HIGHEST_FRACTION * audio_fs
    sound, turned = np.zeros(n_samples), np.ones(n_samples, dtype=np.complex128)
    for harmonic in range(1, min(MOST_HARMONICS, int(top / pitch.min())) + 1):
        hz = harmonic * float(pitch.mean())
        weight = sum(math.exp(-0.5 * (math.log2(hz / formant) / 0.6) ** 2) for formant in formants) + 0.05
        turned *= rotation  # the phase of this harmonic, without a sine per harmonic
        start = np.exp(2.0j * np.pi * rng.random())
        sound += np.where(harmonic * pitch < top, weight, 0.0) * (turned * start).imag
    syllables = np.exp(1.2 * _slow_curve(n_samples, audio_fs, rng.uniform(4.0, 10.0), rng))
    return sound * syllables


def _chirps(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Floats:
    """Overlapping sweeps, up and down, exponential in frequency."""
    sound = np.zeros(n_samples)
    for _ in range(max(1, round(n_samples / audio_fs * 8.0))):
        length = min(n_samples, round(rng.uniform(0.05, 0.3) * audio_fs))
        start = int(rng.integers(0, max(1, n_samples - length)))
        first, last = _random_frequency(audio_fs, rng, 2)
        hz = first * (last / first) ** (np.arange(length) / max(length, 1))
        sweep = np.sin(2.0 * np.pi * np.cumsum(hz) / audio_fs)
        sound[start : start + length] += 10.0 ** (rng.uniform(-20.0, 0.0) / 20.0) * _ramped(sweep, audio_fs)
    return sound


def _tone_pips(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Floats:
    """Short tones with sharp onsets, at random times, frequencies and levels."""
    sound = np.zeros(n_samples)
    for _ in range(max(1, round(n_samples / audio_fs * 20.0))):
        length = min(n_samples, round(rng.uniform(0.02, 0.1) * audio_fs))
        start = int(rng.integers(0, max(1, n_samples - length)))
        tone = np.sin(2.0 * np.pi * float(_random_frequency(audio_fs, rng)) / audio_fs * np.arange(length))
        sound[start : start + length] += 10.0 ** (rng.uniform(-30.0, 0.0) / 20.0) * _ramped(tone, audio_fs)
    return sound


def _sequence(n_samples: int, audio_fs: int, rng: np.random.Generator) -> Floats:
    """Pieces of the other kinds at different levels, with silences between them."""
    sound = np.zeros(n_samples)
    position = 0
    while position < n_samples:
        length = min(n_samples - position, round(rng.uniform(0.1, 0.4) * audio_fs))
        maker = _PIECES[int(rng.integers(len(_PIECES)))]
        piece = _at_level(
            _ramped(maker(max(length, 1), audio_fs, rng), audio_fs), 10.0 ** rng.uniform(-1.0, 0.0)
        )
        sound[position : position + length] = piece[:length]
        position += length + round(rng.uniform(0.05, 0.2) * audio_fs)
    return sound


_PIECES: tuple[Callable[[int, int, np.random.Generator], Floats], ...] = (
    _modulated_noise, _harmonic_stack, _chirps, _tone_pips,
)  # fmt: skip
_MAKERS: dict[str, Callable[[int, int, np.random.Generator], Floats]] = {
    "modulated_noise": _modulated_noise,
    "harmonic_stack": _harmonic_stack,
    "chirps": _chirps,
    "tone_pips": _tone_pips,
    "sequence": _sequence,
}
#: Names of the sounds, in the order in which clips take them.
SOUND_KINDS = tuple(_MAKERS)

# ---- neurons

#: Nonlinearity after the linear kernel, see `simulate`; neurons take the kinds in turn.
NEURON_KINDS = ("strf", "ln", "gain", "onoff")
#: Ranges the parameters are drawn from (evenly; frequency and rate evenly on a log axis).
LATENCY_MS = (8.0, 20.0)
BANDWIDTH_OCTAVES = (0.2, 0.5)
MEAN_RATE_HZ = (12.0, 40.0)
#: Excitation lasts about 10 ms, suppression follows 12 ms later, is twice as long and 20-60 % as strong.
EXCITATION_SD_MS, SUPPRESSION_DELAY_MS, SUPPRESSION_SD_MS = 4.0, 12.0, 8.0
SUPPRESSION_STRENGTH = (0.2, 0.6)
#: Suppression beside the best frequency, at twice the bandwidth, for a random half of the neurons.
SIDEBAND_STRENGTH = (0.1, 0.4)
#: Drive in standard deviations above the threshold at rest: about a quarter of the bins fall below it.
RESTING_DRIVE = 0.7
#: "ln": a sigmoid whose half-maximum lies one standard deviation above the mean drive.
SIGMOID_SLOPE, SIGMOID_MIDPOINT = 2.0, 1.0
#: "gain": divided by 1 + strength * (recent sound level relative to its mean), time constant of the average.
GAIN_STRENGTH, GAIN_TAU_MS = 1.5, 80.0
#: "onoff": time constant of the adaptation in each band, and the weight of OFF relative to ON.
ADAPTATION_TAU_MS, OFF_WEIGHT = 60.0, (0.3, 0.9)
#: Upper limit of the rate, in the place of a refractory period.
MAX_RATE_HZ = 400.0
#: Poisson counts beyond this have probability below 1e-15 at the rates that occur (at most 400 Hz * 100 ms).
MOST_SPIKES_PER_BIN = 130


@dataclass(frozen=True)
class Neuron:
    """Parameters of one simulated neuron."""

    kind: str  # one of `NEURON_KINDS`
    best_frequency_hz: float
    bandwidth_octaves: float
    latency_ms: float  # time of the receptive field's peak
    # strength of delayed suppression, as the two below of side bands and of the OFF channel
    suppression: float
    sideband: float
    off_weight: float
    mean_rate_hz: float  # over all clips

    def kernel(self, frequencies_hz: Floats, n_lags: int, dt_ms: float) -> Floats:
        """(F, T) receptive field with a peak near 1; the last column is the current frame."""
        octaves = np.log2(frequencies_hz / self.best_frequency_hz)
        narrow = np.exp(-0.5 * (octaves / self.bandwidth_octaves) ** 2)
        broad = np.exp(-0.5 * (octaves / (2.0 * self.bandwidth_octaves)) ** 2)
        lags = np.arange(n_lags)[::-1] * dt_ms
        late = self.latency_ms + SUPPRESSION_DELAY_MS
        excitation = np.exp(-0.5 * ((lags - self.latency_ms) / EXCITATION_SD_MS) ** 2)
        suppression = np.exp(-0.5 * ((lags - late) / SUPPRESSION_SD_MS) ** 2)
        tuning = narrow - self.sideband * (broad - narrow)
        return np.outer(tuning, excitation - self.suppression * suppression)


@dataclass(frozen=True, eq=False)
class Population:
    """Simulated truth of a whole population."""

    strfs: Tensor  # (N, F, T) linear kernels on the spectrogram; for "onoff" neurons on the ON channel
    off_strfs: Tensor  # (N, F, T) those on the OFF channel
    biases: Tensor  # (N,) constant added to the linear drive
    rates: list[Tensor]  # (N, T) expected spikes per bin of every clip


def draw_neuron(number: int, frequencies_hz: Floats, seed: int) -> Neuron:
    """Random parameters of neuron ``number``, whatever the number of neurons; frequencies_hz (F,)."""
    rng = np.random.default_rng([seed, 1, number])
    low, high = (
        np.log(frequencies_hz[[1, -2]]) if len(frequencies_hz) > 3 else np.log(frequencies_hz[[0, -1]])
    )
    return Neuron(
        kind=NEURON_KINDS[number % len(NEURON_KINDS)],
        best_frequency_hz=float(np.exp(rng.uniform(low, high))),
        bandwidth_octaves=float(rng.uniform(*BANDWIDTH_OCTAVES)),
        latency_ms=float(rng.uniform(*LATENCY_MS)),
        suppression=float(rng.uniform(*SUPPRESSION_STRENGTH)),
        sideband=float(rng.uniform(*SIDEBAND_STRENGTH) * rng.integers(2)),
        off_weight=float(rng.uniform(*OFF_WEIGHT)),
        mean_rate_hz=float(np.exp(rng.uniform(*np.log(MEAN_RATE_HZ)))),
    )


def simulate(
    neurons: Sequence[Neuron],
    spectrograms: Sequence[Tensor],
    frequencies_hz: Floats,
    n_lags: int,
    dt_ms: float,
) -> Population:
    """Kernels, biases and rates of neurons for spectrograms (F, T), which are zero in silence.

    With S the spectrogram, ``w * S`` the causal correlation of kernel and spectrogram (zeros before the clip)
    and ``[x] = max(x, 0)``:

    - "strf": ``[b + w * S]``;
    - "ln": ``a / (1 + exp(-(b + w * S)))``;
    - "gain": ``[b + w * S] / (1 + 1.5 m)``, m the running mean (80 ms) of the level over all bands, divided
      by its overall mean;
    - "onoff": ``[b + w * [S - m] + v * [m - S]]``, m the running mean (60 ms) of each band.

    Kernels and biases include the scale that gives each neuron its mean rate (for "ln", a does). Rates are
    capped.
    """
    clips = [spectrogram.double() for spectrogram in spectrograms]
    kernels = torch.from_numpy(np.stack([neuron.kernel(frequencies_hz, n_lags, dt_ms) for neuron in neurons]))
    off_weights = torch.tensor(
        [n.off_weight if n.kind == "onoff" else 0.0 for n in neurons], dtype=torch.float64
    )
    off_kernels = kernels * off_weights[:, None, None]
    is_onoff = torch.tensor([neuron.kind == "onoff" for neuron in neurons])
    drives = [_drive(clip, kernels, off_kernels, is_onoff, dt_ms) for clip in clips]
    everything = torch.cat(drives, dim=1)
    spread = everything.std(dim=1, unbiased=False).clamp_min(1e-12)  # constant sounds have no spread
    centre = everything.mean(dim=1)
    kinds = np.array([neuron.kind for neuron in neurons])
    slope = torch.from_numpy(np.where(kinds == "ln", SIGMOID_SLOPE, 1.0)) / spread
    rest = torch.from_numpy(np.where(kinds == "ln", -SIGMOID_SLOPE * SIGMOID_MIDPOINT, RESTING_DRIVE))
    biases = rest - slope * centre
    gains = _gains(clips, dt_ms)
    rates = [
        _rate(slope[:, None] * drive + biases[:, None], gain, kinds)
        for drive, gain in zip(drives, gains, strict=True)
    ]
    mean_rate = torch.cat(rates, dim=1).mean(dim=1).clamp_min(1e-12)
    target = torch.tensor([neuron.mean_rate_hz for neuron in neurons], dtype=torch.float64) * (dt_ms / 1000.0)
    scale = target / mean_rate
    cap = MAX_RATE_HZ * dt_ms / 1000.0
    # the linear stage of a rectified neuron takes the scale, so that its kernel is in spikes per bin
    inside = torch.where(torch.from_numpy(kinds == "ln"), 1.0, scale)
    return Population(
        strfs=(kernels * (slope * inside)[:, None, None]).float(),
        off_strfs=(off_kernels * (slope * inside)[:, None, None]).float(),
        biases=(biases * inside).float(),
        rates=[(rate * scale[:, None]).clamp_max(cap).float() for rate in rates],
    )


def _drive(clip: Tensor, kernels: Tensor, off_kernels: Tensor, is_onoff: Tensor, dt_ms: float) -> Tensor:
    """(N, T) output of the linear stage."""
    mean, _ = exponential_moving_average(clip, math.exp(-dt_ms / ADAPTATION_TAU_MS))
    plain = _correlate(clip, kernels)
    onset = _correlate((clip - mean).clamp_min(0.0), kernels)
    offset = _correlate((mean - clip).clamp_min(0.0), off_kernels)
    return torch.where(is_onoff[:, None], onset + offset, plain)


def _correlate(clip: Tensor, kernels: Tensor) -> Tensor:
    """Correlate (F, T) with (N, F, lags), the last lag being the current frame; zeros before the clip."""
    padded = torch.nn.functional.pad(clip, (kernels.shape[-1] - 1, 0))
    return torch.nn.functional.conv1d(padded[None], kernels)[0]


def _gains(clips: Sequence[Tensor], dt_ms: float) -> list[Tensor]:
    """Divisor (T,) of "gain" neurons for each clip."""
    decay = math.exp(-dt_ms / GAIN_TAU_MS)
    levels = [exponential_moving_average(clip.mean(dim=0), decay)[0] for clip in clips]
    overall = torch.cat(levels).mean().clamp_min(1e-12)
    return [1.0 + GAIN_STRENGTH * level / overall for level in levels]


def _rate(drive: Tensor, gain: Tensor, kinds: npt.NDArray[np.str_]) -> Tensor:
    """(N, T) drive after the output nonlinearity of each neuron."""
    rectified = drive.clamp_min(0.0)
    rate = torch.where(torch.from_numpy(kinds == "ln")[:, None], torch.sigmoid(drive), rectified)
    return torch.where(torch.from_numpy(kinds == "gain")[:, None], rectified / gain, rate)


def draw_spikes(rate: Tensor, n_repeats: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """(N, R, T) Poisson counts at rates (N, T), from one uniform number per bin and repeat."""
    expected = rate.numpy().astype(np.float64)[:, None, :]
    uniform = rng.random((rate.shape[0], n_repeats, rate.shape[1]))
    counts = np.zeros(uniform.shape, dtype=np.int16)
    probability = np.exp(-expected)
    cumulated = probability.copy()
    for spikes in range(1, MOST_SPIKES_PER_BIN + 1):
        more = uniform >= cumulated
        if not more.any():
            break
        counts += more
        probability = probability * expected / spikes
        cumulated = cumulated + probability
    return counts


# ---- the dataset

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
    """Simulated neurons and natural-like sounds; receptive fields, rates and noise ceiling are known.

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
        Seed of the recording.

    Attributes
    ----------
    nrn_meta : list of dict
        ``cell_id``, ``area``, ``kind`` ("strf", "ln", "gain", "onoff": see `simulate` in
        `deepSTRF.datasets.audio.synthetic`), ``best_frequency_hz``, ``bandwidth_octaves``,
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

    @checked_but("n_neurons", "n_clips", "n_repeats", "seed", "audio_fs")
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
        for name, flag in (("return_waveform", return_waveform), ("ragged", ragged)):
            check_flag(name, bool(flag) if isinstance(flag, int | np.bool_) else flag)
        hop = check_hop(audio_fs, self.dt)
        _check_size(n_neurons, n_clips, n_repeats, n_lags, clip_seconds, self.dt, audio_fs)
        bins = _clip_bins(n_clips, clip_seconds, self.dt, ragged, seed)
        frequencies = _frequencies(audio_fs)
        heard = _heard(n_clips, n_neurons, missing_fraction, seed)
        kinds = [SOUND_KINDS[clip % len(SOUND_KINDS)] for clip in range(n_clips)]
        sounds = []
        for clip, (kind, length) in enumerate(zip(kinds, bins, strict=True)):
            sound = make_sound(kind, length * hop, audio_fs, np.random.default_rng([seed, 0, clip]))
            sounds.append(torch.from_numpy(sound)[None])
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
        self.stim_meta = [
            {
                "name": f"{kind}_{clip:02d}",
                "type": kind,
                "source_sha256": hashlib.sha256(sound.numpy().astype("<f4").tobytes()).hexdigest(),
            }
            for clip, (kind, sound) in enumerate(zip(kinds, sounds, strict=True))
        ]
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
                "the true parameters of this dataset are unknown: only SyntheticDataset(...) and its views "
                "have them, not a concatenated, loaded or assembled one"
            )
        return self._truth

    @property
    def _neurons(self) -> list[int]:
        return list(range(self._known.population.strfs.shape[0])) if self.I is None else self.I

    @property
    def _clips(self) -> list[int]:
        return list(range(len(self._known.population.rates))) if self.S_sel is None else self.S_sel

    def _powers(self) -> tuple[Tensor, Tensor]:
        """Signal and noise power (N,) over the recorded clips of this view."""
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
    """The arguments as Python integers; all but the seed must be positive."""
    whole = []
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} is an integer, got {value!r}")
        if value < (0 if name == "seed" else 1):
            raise ValueError(f"{name} must be {'0 or more' if name == 'seed' else 'at least 1'}, got {value}")
        if name != "seed" and value > LARGEST_COUNT:
            raise ValueError(f"{name} must be at most {LARGEST_COUNT:,}, got {value}")
        whole.append(int(value))
    return whole


def _check_size(
    n_neurons: int,
    n_clips: int,
    n_repeats: int,
    n_lags: int,
    clip_seconds: float,
    dt_ms: float,
    audio_fs: int,
) -> None:
    """Refuse a recording that does not fit into memory, before any of it is made."""
    if isinstance(clip_seconds, bool) or not isinstance(clip_seconds, int | float | np.number):
        raise TypeError(f"clip_seconds is a number of seconds, got {clip_seconds!r}")
    seconds = abs(clip_seconds) if math.isfinite(clip_seconds) else 0.0
    values = n_clips * (float(n_neurons) * n_repeats * seconds * 1000.0 / dt_ms + seconds * audio_fs)
    values += 2.0 * n_neurons * n_lags * BANDS_PER_OCTAVE + float(n_clips) * n_neurons
    what = f"{n_neurons=}, {n_clips=}, {n_repeats=}, {n_lags=}, {clip_seconds=}, {dt_ms=}, {audio_fs=}"
    check_memory(8.0 * values, what)


def _clip_bins(n_clips: int, clip_seconds: float, dt_ms: float, ragged: bool, seed: int) -> list[int]:
    """Number of bins of each clip."""
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
    """(S, N) table of recorded pairs."""
    if not isinstance(missing_fraction, int | float | np.number) or not 0.0 <= missing_fraction < 1.0:
        raise ValueError(f"missing_fraction lies in [0, 1), got {missing_fraction!r}")
    table = np.random.default_rng([seed, 4]).random((n_clips, n_neurons)) >= missing_fraction
    for neuron in range(n_neurons):  # every neuron keeps a clip, every clip a neuron
        table[neuron % n_clips, neuron] |= not table[:, neuron].any()
    for clip in range(n_clips):
        table[clip, clip % n_neurons] |= not table[clip].any()
    return torch.from_numpy(table)


def _spectrogram(sound: Tensor, audio_fs: int, dt_ms: float, frequencies: Tensor) -> Tensor:
    """(1, F, T) causal cochleagram, 0 where it is at its floor."""
    log_amplitude = rahman_cochleagram(
        sound, audio_fs, dt_ms, alignment="causal", n_filters=len(frequencies),
        f_min=float(frequencies[0]), f_max=float(frequencies[-1]),
    )  # fmt: skip
    return log_amplitude - math.log(RAHMAN_LOG_FLOOR)


def _responses(rate: Tensor, clip: int, n_repeats: int, heard: Tensor, seed: int) -> Any:
    """(N, R, T) counts of one clip, or a list with None for pairs that were not recorded."""
    counts = draw_spikes(rate, n_repeats, np.random.default_rng([seed, 2, clip]))
    if bool(heard.all()):
        return counts
    return [rows if there else None for rows, there in zip(counts, heard.tolist(), strict=True)]
