"""Simulated neurons with known receptive fields: what they compute, and how many spikes they fire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepSTRF.dsp.recursion import exponential_moving_average

__all__ = ["NEURON_KINDS", "Neuron", "Population", "draw_neuron", "draw_spikes", "simulate"]

#: What a neuron does with the output of its linear kernel; neurons take the kinds in turn.
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
#: No neuron fires faster than this (refractoriness without which Poisson counts would be absurd).
MAX_RATE_HZ = 400.0
#: Poisson counts beyond this have probability below 1e-15 at the rates that occur (at most 400 Hz * 100 ms).
MOST_SPIKES_PER_BIN = 130

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Neuron:
    """Parameters of one simulated neuron.

    Attributes
    ----------
    kind : str
        One of `NEURON_KINDS`.
    best_frequency_hz, bandwidth_octaves, latency_ms : float
        Centre and width of the receptive field in frequency, time of its peak.
    suppression, sideband, off_weight : float
        Strength of delayed suppression, of side bands, and of the OFF channel.
    mean_rate_hz : float
        Mean rate over all clips.

    Examples
    --------
    >>> neuron = Neuron("strf", 2000.0, 0.3, 10.0, 0.4, 0.0, 0.5, 20.0)
    >>> kernel = neuron.kernel(np.array([1000.0, 2000.0, 4000.0]), n_lags=9, dt_ms=5.0)
    >>> [int(at) for at in np.unravel_index(kernel.argmax(), kernel.shape)]          # 2 kHz, 10 ms ago
    [1, 6]
    """

    kind: str
    best_frequency_hz: float
    bandwidth_octaves: float
    latency_ms: float
    suppression: float
    sideband: float
    off_weight: float
    mean_rate_hz: float

    def kernel(self, frequencies_hz: Array, n_lags: int, dt_ms: float) -> Array:
        """Return the (F, T) receptive field with a peak near 1; the last column is the current frame."""
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
    """Simulated truth of a whole population.

    Attributes
    ----------
    strfs, off_strfs : Tensor (N, F, T)
        Linear kernels on the spectrogram; for "onoff" neurons on the ON and the OFF channel.
    biases : Tensor (N,)
        Constant added to the linear drive.
    rates : list of Tensor (N, T)
        Expected spikes per bin of every clip.

    Examples
    --------
    >>> nobody = torch.zeros(0, 2, 9)
    >>> Population(nobody, nobody, torch.zeros(0), rates=[]).strfs.shape
    torch.Size([0, 2, 9])
    """

    strfs: Tensor
    off_strfs: Tensor
    biases: Tensor
    rates: list[Tensor]


def draw_neuron(number: int, frequencies_hz: Array, seed: int) -> Neuron:
    """Draw the parameters of neuron ``number``; they do not depend on how many others there are.

    Parameters
    ----------
    number : int
        Index of the neuron; it also decides its kind.
    frequencies_hz : float64 ndarray (F,)
        Centre frequencies of the bands; the best frequency lies inside the outermost ones.
    seed : int
        Which population.

    Returns
    -------
    Neuron
        The parameters.

    Examples
    --------
    >>> draw_neuron(1, np.array([500.0, 8000.0]), seed=0).kind
    'ln'
    """
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
    frequencies_hz: Array,
    n_lags: int,
    dt_ms: float,
) -> Population:
    """Compute the rates of all neurons; spectrograms are zero in silence.

    With S the spectrogram, ``w * S`` the causal correlation of kernel and spectrogram (zeros before the clip)
    and ``[x] = max(x, 0)``:

    - "strf": ``[b + w * S]``;
    - "ln": ``a / (1 + exp(-(b + w * S)))``;
    - "gain": ``[b + w * S] / (1 + 1.5 m)``, m the running mean (80 ms) of the level over all bands, divided
    by its
      overall mean;
    - "onoff": ``[b + w * [S - m] + v * [m - S]]``, m the running mean (60 ms) of each band.

    Kernels and biases carry the scale that gives each neuron its mean rate ("ln": a does). Rates are capped.

    Parameters
    ----------
    neurons : sequence of Neuron
        The N neurons.
    spectrograms : sequence of Tensor (F, T)
        One per clip.
    frequencies_hz : float64 ndarray (F,)
        Centre frequencies.
    n_lags : int
        Length of the kernels in bins.
    dt_ms : float
        Bin in ms.

    Returns
    -------
    Population
        Kernels, biases and rates.

    Examples
    --------
    >>> hz = np.geomspace(500.0, 8000.0, 6)
    >>> spectrogram = torch.linspace(0, 5, 600, dtype=torch.float64).reshape(6, 100)
    >>> simulate([draw_neuron(0, hz, seed=0)], [spectrogram], hz, n_lags=9, dt_ms=5.0).rates[0].shape
    torch.Size([1, 100])
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
    spread = everything.std(dim=1, unbiased=False).clamp_min(1e-12)  # constant sounds drive nobody
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
    """Return the (N, T) output of the linear stage."""
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
    """Return the divisor of "gain" neurons for each clip, (T,)."""
    decay = math.exp(-dt_ms / GAIN_TAU_MS)
    levels = [exponential_moving_average(clip.mean(dim=0), decay)[0] for clip in clips]
    overall = torch.cat(levels).mean().clamp_min(1e-12)
    return [1.0 + GAIN_STRENGTH * level / overall for level in levels]


def _rate(drive: Tensor, gain: Tensor, kinds: npt.NDArray[np.str_]) -> Tensor:
    """Apply each neuron's output nonlinearity to its (N, T) drive."""
    rectified = drive.clamp_min(0.0)
    rate = torch.where(torch.from_numpy(kinds == "ln")[:, None], torch.sigmoid(drive), rectified)
    return torch.where(torch.from_numpy(kinds == "gain")[:, None], rectified / gain, rate)


def draw_spikes(rate: Tensor, n_repeats: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Draw Poisson counts by inverting the distribution function: one uniform number per bin and repeat.

    Parameters
    ----------
    rate : Tensor (N, T)
        Expected spikes per bin.
    n_repeats : int
        Number of repeats R.
    rng : numpy.random.Generator
        Source of uniform numbers; the draws of a neuron do not depend on how many follow it.

    Returns
    -------
    int16 ndarray (N, R, T)
        Spike counts.

    Examples
    --------
    >>> draw_spikes(torch.zeros(1, 4), 2, np.random.default_rng(0))[0].tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0]]
    """
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
