"""Modulated sounds: amplitude modulation, frequency sweeps, and ripples (moving sinusoidal spectra)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import (
    FloatArray,
    check_choice,
    check_positive_int,
    check_share,
    checked,
    checked_but,
)
from deepSTRF.interpret.probes.measures import (
    LEAST_SHARE,
    ProbeResult,
    last_periods,
    least_response,
    mean_or_peak,
)
from deepSTRF.interpret.probes.presentation import (
    Presentation,
    as_presentation,
    ascending,
    check_audible,
    check_lengths,
    check_levels,
    check_periods,
    modulation_rates,
    two_frequencies,
)
from deepSTRF.interpret.probes.sounds import amplitude_of, noise, ramped, sweep
from deepSTRF.interpret.strf.table import contrast, ratio

LEVEL_DB = -20.0
AM_RATES_HZ = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
#: Left out at the start of AM (of short sounds half) and of ripples: the onset response.
AM_MS, AM_ONSET_MS = 1500.0, 500.0
SPEEDS_OCT_S = (5.0, 10.0, 20.0, 40.0, 80.0)
TAIL_MS = 100.0
RATES_HZ = (2.0, 4.0, 8.0, 16.0, 32.0)
SCALES_CYC_OCT = (0.0, 0.25, 0.5, 1.0, 2.0)
RIPPLE_MS, RIPPLE_ONSET_MS = 1250.0, 250.0
DEPTH = 0.9
#: Tones that carry a ripple in sound.
TONES_PER_OCTAVE = 20


@dataclass(frozen=True)
class AmResponse(ProbeResult):
    """Responses of K neurons to amplitude-modulated sound at R rates.

    Attributes
    ----------
    rates_hz : array (R,). Modulation rates, ascending.
    mean : array (K, R). Evoked rate, mean over whole periods after the first half second, in the model's
        unit.
    modulation : array (K, R). Amplitude of the response's component at the modulation rate.
    phase : array (K, R). Its phase in radians relative to the envelope; later is negative.
    vector_strength : array (K, R). Synchrony of the (rectified) rate, 0 to 1; NaN for a neuron that is
        silent.
    best_rate_hz : array (K,). Modulation rate that is followed most strongly (largest ``modulation``).
    """

    rates_hz: FloatArray
    mean: FloatArray
    modulation: FloatArray
    phase: FloatArray
    vector_strength: FloatArray
    best_rate_hz: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return self._named("am_", "best_rate_hz")


@checked_but("model")
def am_responses(
    model: Any,
    rates_hz: Sequence[float] | FloatArray | None = None,
    *,
    carrier_hz: float | None = None,
    depth: float = 1.0,
    level_db: float = LEVEL_DB,
    duration_ms: float = AM_MS,
    n_tokens: int = 2,
    seed: int = 0,
) -> AmResponse:
    """Play sinusoidally amplitude-modulated noise or tones and return how they are followed.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    rates_hz : sequence of float, optional
        Modulation rates, ascending, below half the rate of bins; None is octaves from 2 to 64 Hz, as far as
        the bins show them.
    carrier_hz : float, optional
        Tone that carries; None is white noise.
    depth : float
        Modulation depth, above 0 and at most 1.
    level_db : float
        Root mean square of the carrier, dB re 1.
    duration_ms : float
        Length; the first half second is left out of the measures.
    n_tokens : int
        Noises that are averaged over.
    seed : int
        Which noises.

    Returns
    -------
    AmResponse
        Modulation transfer of the neuron.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> am_responses(model, [4.0, 8.0], n_tokens=1).modulation.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    modulations = modulation_rates(AM_RATES_HZ, rates_hz, presentation.dt_ms)
    check_share("depth", depth)
    check_lengths(duration_ms=duration_ms)
    check_levels(level_db=level_db)
    n_bins = presentation.bins(duration_ms)
    n_measured = n_bins - min(presentation.bins(AM_ONSET_MS), n_bins // 2)
    check_periods("rates_hz", modulations, presentation.dt_ms * n_measured)
    n_tokens = check_positive_int("n_tokens", n_tokens)
    if carrier_hz is not None:
        check_audible("carrier_hz", carrier_hz, presentation.audio_fs)
        n_tokens = 1
    n_samples, fs = presentation.samples(duration_ms), presentation.fs
    seconds = np.arange(n_samples) / fs
    if carrier_hz is None:
        carriers = [
            noise(n_samples, fs, level_db, seed=seed + token, ramp_ms=0.0) for token in range(n_tokens)
        ]
    else:
        wave = np.sin(2.0 * np.pi * carrier_hz * np.arange(n_samples) / fs)
        carriers = [np.sqrt(2.0) * amplitude_of(level_db) * wave]
    # a cosine trough at the onset: no click on top of the ramp
    sounds = (
        ramped(carrier * (1.0 - depth * np.cos(2.0 * np.pi * rate * seconds)), fs)
        for rate in modulations
        for carrier in carriers
    )
    evoked, baseline = presentation.evoke(sounds, len(modulations), n_tokens)
    evoked = evoked.mean(axis=2)
    mean, synchrony = np.zeros((2, len(evoked), len(modulations)))
    least = LEAST_SHARE * np.abs(evoked).max(axis=(1, 2))
    if carrier_hz is not None:  # white noise drives every band
        least = np.maximum(least, least_response(presentation, level_db))
    component = np.zeros(mean.shape, dtype=np.complex128)
    for index, rate in enumerate(modulations):
        part, turning = last_periods(presentation, evoked[:, index], float(rate), n_measured)
        mean[:, index] = part.mean(axis=1)
        # the envelope is 1 - cos: a response in step with it has phase 0
        component[:, index] = 2.0 * ((part - mean[:, index, None]) * -turning).mean(axis=1)
        spikes = np.maximum(part + baseline[:, None], 0.0)
        spikes[spikes.max(axis=1) <= least] = 0.0
        synchrony[:, index] = ratio(np.abs((spikes * -turning).sum(axis=1)), spikes.sum(axis=1))
    modulation = np.abs(component)
    return AmResponse(
        presentation.neurons, modulations, mean, modulation, np.angle(component), synchrony,
        np.where(modulation.max(axis=1) > least, modulations[modulation.argmax(axis=1)], np.nan),
    )  # fmt: skip


@dataclass(frozen=True)
class SweepResponse(ProbeResult):
    """Responses of K neurons to exponential frequency sweeps at V speeds.

    Attributes
    ----------
    speeds_oct_s : array (V,). Octaves per second, ascending.
    up, down : array (K, V). Evoked rate, peak (or mean over bins) during the sweep and its tail, in the
        model's unit.
    direction_index : array (K, V). ``(up - down) / (up + down)`` of the rectified responses; NaN where
        both together evoke less than a hundredth of the neuron's best response to sweeps across all bands.
    best_speed_oct_s, best_direction_index : array (K,). Speed of the strongest response to either direction,
        and the index there.
    """

    speeds_oct_s: FloatArray
    up: FloatArray
    down: FloatArray
    direction_index: FloatArray
    best_speed_oct_s: FloatArray
    best_direction_index: FloatArray

    def _summary(self) -> dict[str, FloatArray]:
        return {
            "sweep_best_speed_oct_s": self.best_speed_oct_s,
            "sweep_direction_index": self.best_direction_index,
        }


@checked_but("model")
def sweep_responses(
    model: Any,
    speeds_oct_s: Sequence[float] = SPEEDS_OCT_S,
    *,
    range_hz: tuple[float, float] | None = None,
    level_db: float = LEVEL_DB,
    tail_ms: float = TAIL_MS,
    measure: str = "peak",
) -> SweepResponse:
    """Play upward and downward frequency sweeps and return which are preferred.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    speeds_oct_s : sequence of float
        Octaves per second, ascending.
    range_hz : (float, float), optional
        Lowest and highest frequency; None is the range of the bands.
    level_db : float
        Root mean square, dB re 1.
    tail_ms : float
        How long after a sweep responses still count.
    measure : {"peak", "mean"}
        Peak of the evoked rate, or its mean over sweep and tail.

    Returns
    -------
    SweepResponse
        Responses to both directions.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> sweep_responses(model, [20.0, 40.0]).up.shape
    (1, 2)
    """
    presentation = as_presentation(model)
    speeds = ascending("speeds_oct_s", speeds_oct_s, above=0.0)
    check_lengths(tail_ms=tail_ms)
    check_levels(level_db=level_db)
    if range_hz is None:
        range_hz = presentation.frequency_range()
    low, high = two_frequencies("range_hz", range_hz, presentation.audio_fs)
    responses, windows = [], []
    for speed in speeds:
        duration_ms = 1000.0 * np.log2(high / low) / speed
        n_samples, fs = presentation.samples(duration_ms), presentation.fs
        pair = (sweep(*ends, n_samples, fs, level_db) for ends in ((low, high), (high, low)))
        evoked, _ = presentation.evoke(pair, 2, tail_ms=tail_ms)
        windows.append(presentation.bins(duration_ms + tail_ms))
        responses.append(mean_or_peak(evoked[..., : windows[-1]], measure))
    windows = windows if measure == "mean" else [1]
    least = np.stack([least_response(presentation, level_db, window) for window in windows], axis=-1)
    up, down = np.stack(responses, axis=-1).transpose(1, 0, 2)
    rising, falling = np.maximum(up, 0.0), np.maximum(down, 0.0)
    index = contrast(rising, falling, least)
    best = np.maximum(rising, falling).argmax(axis=1)
    some = np.isfinite(index).any(axis=1)
    return SweepResponse(
        presentation.neurons, speeds, up, down, index,
        np.where(some, speeds[best], np.nan), np.where(some, index[np.arange(len(best)), best], np.nan),
    )  # fmt: skip


@dataclass(frozen=True)
class RippleResponse(ProbeResult):
    """Responses of K neurons to ripples of S scales and R rates in both directions.

    Attributes
    ----------
    rates_hz : array (2 R,). Ascending; positive ripples move up in frequency, negative ones down.
    scales_cyc_oct : array (S,). Ascending, cycles per octave.
    component : complex array (K, S, 2 R). The response's component at the ripple's rate: amplitude and phase
        relative to the ripple at the lowest band.
    mean : array (K, S, 2 R). Mean evoked rate, in the model's unit.
    best_rate_hz, best_scale_cyc_oct : array (K,). Where the amplitude, the mean of both directions, is
        largest (the rate without its sign).
    direction_index : array (K,). ``(up - down) / (up + down)`` of the squared amplitudes at scales above 0;
        NaN for a neuron that follows none by a hundredth of its largest mean response.
    """

    rates_hz: FloatArray
    scales_cyc_oct: FloatArray
    component: NDArray[np.complex128]
    mean: FloatArray
    best_rate_hz: FloatArray
    best_scale_cyc_oct: FloatArray
    direction_index: FloatArray

    @property
    def amplitude(self) -> FloatArray:
        """(K, S, 2 R) amplitude of the component: the modulation transfer function."""
        return np.abs(self.component)

    def _summary(self) -> dict[str, FloatArray]:
        return self._named("ripple_", "best_rate_hz", "best_scale_cyc_oct", "direction_index")


@checked_but("model")
def ripple_responses(
    model: Any,
    rates_hz: Sequence[float] | FloatArray | None = None,
    scales_cyc_oct: Sequence[float] = SCALES_CYC_OCT,
    *,
    domain: str = "sound",
    depth: float = DEPTH,
    level_db: float = LEVEL_DB,
    mean: float = 1.0,
    duration_ms: float = RIPPLE_MS,
    seed: int = 0,
    unit: str | None = None,
) -> RippleResponse:
    """Play (or show) ripples and return the measured modulation transfer function.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    rates_hz : sequence of float, optional
        Rates above 0, ascending, below half the rate of bins; None is octaves from 2 to 32 Hz. Each is used
        upward and downward. Whole multiples of ``1000 / (duration_ms - 250)`` are measured without leakage.
    scales_cyc_oct : sequence of float
        Scales of 0 and more, ascending.
    domain : {"sound", "spectrogram"}
        Ripples as sound (log-spaced tones under moving envelopes), or drawn into the spectrogram itself,
        where the front-end plays no part and a linear model answers with the Fourier transform of its STRF.
    depth : float
        Modulation depth, above 0 and at most 1.
    level_db : float
        Root mean square of the sound, dB re 1.
    mean : float
        Mean of a drawn spectrogram, in ``unit``; its amplitude is ``mean * depth``.
    duration_ms : float
        Length; the first 250 ms are left out of the measures.
    seed : int
        Phases of the tones.
    unit : {None, "sd", "raw"}
        Unit of drawn spectrograms: standard deviations of each band of the training sounds, or the model's
        own. None is "sd" for a fitted model, else "raw".

    Returns
    -------
    RippleResponse
        Transfer function and summary.

    References
    ----------
    Depireux, Simon, Klein & Shamma 2001, doi 10.1152/jn.2001.85.3.1220.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> bands = 500 * 2 ** (np.arange(12) / 4)
    >>> presentation = Presentation(Linear(12, 9, norm="none"), dt_ms=5.0, frequencies_hz=bands)
    >>> ripple_responses(presentation, [4.0, 8.0], [0.0, 0.5], domain="spectrogram").amplitude.shape
    (1, 2, 4)
    """
    presentation = as_presentation(model)
    rates = modulation_rates(RATES_HZ, rates_hz, presentation.dt_ms)
    scales = ascending("scales_cyc_oct", scales_cyc_oct)
    check_choice("domain", domain, ("sound", "spectrogram"))
    _check_scales(presentation, scales, domain)
    check_share("depth", depth)
    check_lengths(duration_ms=duration_ms)
    check_levels(level_db=level_db, mean=mean)
    n_bins = presentation.bins(duration_ms)
    n_measured = max(1, n_bins - presentation.bins(RIPPLE_ONSET_MS))
    check_periods("rates_hz", rates, n_measured * presentation.dt_ms)
    signed = np.concatenate([-rates[::-1], rates])
    grid = [(float(scale), float(rate)) for scale in scales for rate in signed]
    if domain == "spectrogram":
        bands, time_ms = np.asarray(presentation.frequencies_hz), presentation.time_ms(n_bins)
        level = mean * presentation.band_scale(unit)
        patterns = (level * ripple_pattern(bands, time_ms, rate, scale, depth) for scale, rate in grid)
        evoked = presentation.evoked(presentation.show(patterns), silence=0.0)
    else:
        sounds = _ripple_sounds(presentation, grid, n_bins, depth, level_db, seed)
        evoked = presentation.evoked(presentation.play(sounds))
    averages, components = [], []
    for answer, (_, rate) in zip(evoked, grid, strict=True):
        part, turning = last_periods(presentation, answer, rate, n_measured)
        averages.append(part.mean(axis=1))
        components.append(2.0 * ((part - averages[-1][:, None]) * turning).mean(axis=1))
    component = np.stack(components, axis=1).reshape(-1, len(scales), len(signed))
    average = np.stack(averages, axis=1).reshape(component.shape)
    power = np.abs(component) ** 2
    up, down = power[:, :, len(rates) :], power[:, :, len(rates) - 1 :: -1]
    both = (np.sqrt(up) + np.sqrt(down)).reshape(len(power), -1)
    scale_at, rate_at = np.unravel_index(both.argmax(axis=1), (len(scales), len(rates)))
    least = LEAST_SHARE * np.abs(average).max(axis=(1, 2))
    moving, some = scales > 0, both.max(axis=1) > least
    return RippleResponse(
        presentation.neurons, signed, scales, component, average,
        np.where(some, rates[rate_at], np.nan), np.where(some, scales[scale_at], np.nan),
        contrast(up[:, moving].sum(axis=(1, 2)), down[:, moving].sum(axis=(1, 2)), least**2),
    )  # fmt: skip


@checked
def ripple_pattern(
    frequencies_hz: Any, time_ms: Any, rate_hz: float, scale_cyc_oct: float, depth: float = 1.0
) -> FloatArray:
    """Spectrogram of a ripple: ``1 + depth * cos(2 pi (rate t - scale x))``, x in octaves.

    x counts from the lowest band.

    Parameters
    ----------
    frequencies_hz : array (F,)
        Bands.
    time_ms : array (T,)
        Times.
    rate_hz : float
        Positive moves up in frequency.
    scale_cyc_oct : float
        Cycles per octave.
    depth : float
        Modulation depth.

    Returns
    -------
    array (F, T)
        The pattern, mean 1.

    Examples
    --------
    >>> ripple_pattern([500.0, 1000.0], [0.0, 250.0], rate_hz=2.0, scale_cyc_oct=0.5)
    array([[2., 0.],
           [0., 2.]])
    """
    x = np.log2(np.asarray(frequencies_hz, dtype=np.float64))[:, None]
    t = np.asarray(time_ms, dtype=np.float64)[None] / 1000.0
    return np.asarray(1.0 + depth * np.cos(2.0 * np.pi * (rate_hz * t - scale_cyc_oct * (x - x.min()))))


def _ripple_sounds(
    presentation: Presentation,
    grid: list[tuple[float, float]],
    n_bins: int,
    depth: float,
    level_db: float,
    seed: int,
) -> Iterator[FloatArray]:
    """One sound (T_audio,) per scale and rate: tones in log-spaced frequencies under moving envelopes."""
    fs, (low, high) = presentation.fs, presentation.frequency_range()
    seconds = np.arange(n_bins * presentation.hop) / fs
    tones = np.geomspace(low, high, max(2, round(TONES_PER_OCTAVE * np.log2(high / low)) + 1))
    phases = np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, len(tones))
    carriers = np.stack(
        [np.sin(2.0 * np.pi * hertz * seconds + phase) for hertz, phase in zip(tones, phases, strict=True)]
    )
    steady = carriers.sum(axis=0)
    for scale, pairs in itertools.groupby(grid, key=lambda pair: pair[0]):
        # cos(a - b) = cos a cos b + sin a sin b: the tones of a scale are added up once for all rates
        angle = 2.0 * np.pi * scale * np.log2(tones / low)
        cosines, sines = np.cos(angle) @ carriers, np.sin(angle) @ carriers
        for _, rate in pairs:
            moved = 2.0 * np.pi * rate * seconds
            sound = steady + depth * (np.cos(moved) * cosines + np.sin(moved) * sines)
            size = float(np.sqrt(np.mean(sound**2)))
            yield ramped(sound * (amplitude_of(level_db) / size), fs)


def _check_scales(presentation: Presentation, scales: FloatArray, domain: str) -> None:
    """Refuse negative scales, and ripples so dense that bands or carrier tones show another one."""
    if scales[0] < 0:
        raise ValueError(f"scales_cyc_oct must be 0 or more (the direction is the rate's), got {scales[0]:g}")
    spacing = 1.0 / TONES_PER_OCTAVE
    if domain == "spectrogram":
        if presentation.frequencies_hz is None:
            raise ValueError(
                "ripples in the spectrogram need the bands: Presentation(..., frequencies_hz=...)"
            )
        spacing = float(np.diff(np.log2(np.sort(presentation.frequencies_hz))).min(initial=np.inf))
    if scales[-1] * spacing > 0.5 + 1e-9:
        raise ValueError(
            f"scales_cyc_oct must be at most {0.5 / spacing:.3g}: ripples are drawn every {spacing:.3g} "
            f"octaves, got {scales[-1]:g}"
        )
