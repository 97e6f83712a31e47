"""A fitted model as a subject: it is played sounds, or shown spectrograms, and its rates are read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._validation import (
    NeuronSelection,
    as_numbers,
    check_positive_int,
    check_positive_number,
    neuron_indices,
)
from deepSTRF.datasets.audio.ns1 import NS1_WAV_NATIVE_FS
from deepSTRF.dsp.cochleagram import FFT_LENGTH_FACTOR, RAHMAN_LOG_FLOOR, rahman_cochleagram
from deepSTRF.dsp.filters import samples_per_bin, triangular_filterbank
from deepSTRF.interpret.probes.checks import (
    BASELINE_SHARE,
    check_bands,
    check_rates,
    samples_per_probe_bin,
    settling_ms,
)
from deepSTRF.models.prediction import evaluating
from deepSTRF.models.streaming import placement

__all__ = ["Presentation", "as_presentation", "dataset_cochleagram", "plain_cochleagram"]

# ------------------------------------------------------------------------------
# How a recording turned its sounds into spectrograms, as a function for new sounds.


def dataset_cochleagram(dataset: Any) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return the function that made a recording's spectrograms, and the audio rate it takes.

    Parameters
    ----------
    dataset : AudioNeuralDataset
        NS1 or a synthetic recording, in spectrogram mode, or a selection of one.

    Returns
    -------
    callable, float
        Maps sounds (B, T_audio) to (B, F, T), one frame per bin; and samples per second. Frames of a native
        NS1 cochleagram look one bin ahead, as the recording's own do.

    Raises
    ------
    ValueError
        When the recording does not say how its spectrograms were made.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.2)
    >>> cochleagram, audio_fs = dataset_cochleagram(ds)
    >>> cochleagram(torch.zeros(2, 800)).shape, audio_fs
    (torch.Size([2, 24, 10]), 16000.0)
    """
    facts = getattr(dataset, "facts", None) or {}
    hertz = getattr(dataset, "frequencies_hz", None)
    made, alignment = facts.get("spectrogram"), facts.get("alignment")
    above_floor = made == "cochleagram above its floor"
    if hertz is None or alignment is None or not (above_floor or made in ("recomputed", "shipped")):
        raise ValueError(
            f"the dataset {getattr(dataset, 'name', '?')!r} does not say how its spectrograms were made: "
            "give Presentation(model, cochleagram=..., audio_fs=..., dt_ms=dataset.dt) a function from sounds "
            "(B, T_audio) to spectrograms (B, F, T)"
        )
    audio_fs = float(facts["made_at_hz"]) if above_floor else float(NS1_WAV_NATIVE_FS)
    options = {
        "dt_ms": float(dataset.dt), "alignment": alignment, "n_filters": len(hertz),
        "f_min": float(hertz[0]), "f_max": float(hertz[-1]),
    }  # fmt: skip
    floor = math.log(RAHMAN_LOG_FLOOR) if above_floor else 0.0
    return functools.partial(_cochleagram, audio_fs=audio_fs, floor=floor, options=options), audio_fs


def plain_cochleagram(
    frequencies_hz: Any, audio_fs: float, dt_ms: float, *, floor: float = RAHMAN_LOG_FLOOR
) -> Callable[[Tensor], Tensor]:
    """Return a causal cochleagram with any bands, for models whose spectrograms nobody can make again.

    Windows of two bins (the current and the one before), Fourier amplitudes under triangles between
    neighbouring bands, ``ln(max(x, floor)) - ln(floor)``: 0 in silence. What a model answers then depends on
    how near this is to what it was fitted on, in shape and in scale.

    Parameters
    ----------
    frequencies_hz : array (F,)
        Centres of at least two bands, ascending.
    audio_fs : float
        Samples per second; a bin must be a whole number of samples.
    dt_ms : float
        Bin in ms.
    floor : float
        Amplitude that counts as silence.

    Returns
    -------
    callable
        Maps sounds (B, T_audio) to (B, F, T).

    Raises
    ------
    ValueError
        For bands that do not ascend or lie too close for windows of this length.

    Examples
    --------
    >>> hear = plain_cochleagram([500.0, 1000.0, 2000.0], 16000, 5.0)
    >>> hear(torch.zeros(1, 800)).shape
    torch.Size([1, 3, 10])
    """
    hertz = torch.tensor(np.asarray(frequencies_hz, dtype=np.float64).tolist(), dtype=torch.float64)
    hop = samples_per_bin(audio_fs, dt_ms)
    check_positive_number("floor", floor)
    if hertz.ndim != 1 or len(hertz) < 2 or not bool((hertz.diff() > 0).all()) or not float(hertz[0]) > 0:
        raise ValueError(
            f"frequencies_hz must be two or more ascending positive numbers, got {frequencies_hz!r}"
        )
    if float(hertz[-1]) >= 0.5 * audio_fs:
        raise ValueError(
            f"frequencies_hz must lie below {0.5 * audio_fs:g} Hz, half of audio_fs, got {float(hertz[-1]):g}"
        )
    corners = torch.cat([hertz[:1] ** 2 / hertz[1:2], hertz, hertz[-1:] ** 2 / hertz[-2:-1]])
    n_fft = FFT_LENGTH_FACTOR * 2 * hop
    bank = triangular_filterbank(
        corners, torch.arange(n_fft // 2 + 1) * (audio_fs / n_fft), axis="log", norm="sum"
    )
    empty = (bank.sum(0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"the band at {float(hertz[empty[0]]):.0f} Hz holds no Fourier bin: windows of {2 * dt_ms:g} ms "
            f"resolve {audio_fs / n_fft:.1f} Hz, up to {audio_fs / 2:g} Hz"
        )
    return functools.partial(_plain, bank=bank, hop=hop, floor=floor)


def _plain(sounds: Tensor, bank: Tensor, hop: int, floor: float) -> Tensor:
    frames = torch.nn.functional.pad(sounds.double(), (hop, 0)).unfold(-1, 2 * hop, hop)
    taper = torch.hann_window(2 * hop, dtype=torch.float64)
    amplitude: Tensor = torch.fft.rfft(frames * taper, n=2 * (len(bank) - 1)).abs() @ bank
    return (amplitude.clamp_min(floor).log() - math.log(floor)).transpose(-1, -2)


def _cochleagram(sounds: Tensor, audio_fs: float, floor: float, options: dict[str, Any]) -> Tensor:
    hop = round(audio_fs * options["dt_ms"] / 1000.0)
    return rahman_cochleagram(sounds, audio_fs, n_bins=sounds.shape[-1] // hop, **options) - floor


# ------------------------------------------------------------------------------

FloatArray = NDArray[np.float64]

#: Left out of the baseline at the very end: cochleagrams in native alignment (NS1) look one bin ahead.
LOOK_AHEAD_BINS = 1
#: Rates that differ by less than this share of themselves differ by the rounding of single precision.
ROUNDING = 1e-6
#: Samples (or spectrogram values) that one batch may hold.
BATCH_SAMPLES = 2**18
#: Tones stay below this share of the audio rate.
HIGHEST_SHARE = 0.45
#: Range of frequencies where neither model nor caller state the bands.
DEFAULT_RANGE_HZ = (200.0, 16000.0)


class Presentation:
    """A model that listens: silence, then a sound, and the rates of chosen neurons.

    A model with a front-end hears the samples. One on spectrograms needs to be told how a sound becomes its
    spectrogram: a ``cochleagram`` with its ``audio_fs`` and ``dt_ms``; `Presentation.for_dataset` takes them from
    the recording, and `plain_cochleagram` makes one where nothing else is known. Without one a presentation can
    only be shown spectrograms (`show`).

    The model runs where it is and in its own precision, in eval mode and without gradients.

    Parameters
    ----------
    model : nn.Module
        Maps (B, 1, T_audio) or (B, 1, F, T) to (B, N, 1, T).
    cochleagram : callable, optional
        Maps sounds, a Tensor (B, T_audio), to spectrograms (B, F, T) with T = T_audio / hop.
    audio_fs : float, optional
        Samples per second of the sounds for the cochleagram. A front-end brings its own.
    dt_ms : float, optional
        Bin in ms. A front-end brings its own.
    frequencies_hz : array (F,), optional
        Centres of the bands, from which probes choose their tones; a front-end may bring its own.
    neurons : int, slice or sequence of int, optional
        Which neurons are read; negative numbers count from the end. None is all.
    lead_ms : float, optional
        Silence before each sound. None is 300 ms, or longer where the model states that it remembers more, so
        that it has settled where the baseline is read.
    batch_samples : int
        Samples that one batch may hold.

    Attributes
    ----------
    audio_fs, dt_ms : float
        Rates; ``audio_fs`` is None for a presentation without sounds.
    hop : int
        Samples per bin.
    lead_bins : int
        Bins of silence.
    neurons : list of int
        Which neurons are read.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit the model; the text says what is missing.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, 4, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8))
    >>> presentation = Presentation(model, neurons=[0, -1], lead_ms=50.0)
    >>> presentation.play([np.zeros(800)]).shape, presentation.lead_bins, presentation.neurons
    ((1, 2, 20), 10, [0, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cochleagram: Callable[[Tensor], Tensor] | None = None,
        audio_fs: float | None = None,
        dt_ms: float | None = None,
        frequencies_hz: Any = None,
        neurons: NeuronSelection = None,
        lead_ms: float | None = None,
        batch_samples: int = BATCH_SAMPLES,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        self.model = model
        front_end = getattr(model, "wav2spec", None)
        self.hears_samples = hasattr(front_end, "hop")
        if self.hears_samples:
            if cochleagram is not None:
                raise ValueError("this model has a front-end and hears samples: leave cochleagram out")
            audio_fs = float(front_end.audio_fs)  # type: ignore[union-attr]
            dt_ms = 1000.0 * int(front_end.hop) / audio_fs  # type: ignore[union-attr]
            frequencies_hz = frequencies_hz if frequencies_hz is not None else _bands_of(front_end)
        check_rates(self.hears_samples, cochleagram, audio_fs, dt_ms)
        self.cochleagram = cochleagram
        self.audio_fs = None if audio_fs is None else check_positive_number("audio_fs", audio_fs)
        self.dt_ms = check_positive_number("dt_ms", dt_ms)
        self.hop = 0 if self.audio_fs is None else samples_per_probe_bin(self.audio_fs, self.dt_ms)
        self.frequencies_hz = (
            None if frequencies_hz is None else check_bands(frequencies_hz, getattr(model, "F", None))
        )
        lead_ms = (
            settling_ms(model, self.dt_ms) if lead_ms is None else check_positive_number("lead_ms", lead_ms)
        )
        self.lead_bins = math.ceil(lead_ms / self.dt_ms - 1e-9)
        self.batch_samples = check_positive_int("batch_samples", batch_samples)
        self.neurons = self._count() if neurons is None else neuron_indices(neurons, len(self._count()))
        if not self.neurons:
            raise ValueError("neurons must name at least one neuron to read; None is all")

    @classmethod
    def for_dataset(cls, model: nn.Module, dataset: Any, **options: Any) -> Presentation:
        """Return a presentation that hears as the recording's stimuli were made.

        Parameters
        ----------
        model : nn.Module
            A model fitted on the recording.
        dataset : AudioNeuralDataset
            The recording; one with waveforms needs a model with a front-end.
        **options
            Further arguments of `Presentation`.

        Returns
        -------
        Presentation
            With the recording's cochleagram, where the model has no front-end.

        Raises
        ------
        ValueError
            When it is not known how the recording's spectrograms were made.
        """
        if hasattr(getattr(model, "wav2spec", None), "hop"):
            return cls(model, **options)
        cochleagram, audio_fs = dataset_cochleagram(dataset)
        bands = getattr(dataset, "frequencies_hz", None)
        return cls(
            model,
            cochleagram=cochleagram,
            audio_fs=audio_fs,
            dt_ms=dataset.dt,
            frequencies_hz=bands,
            **options,
        )

    # ------------------------------------------------------------------ time and frequency

    def samples(self, duration_ms: float) -> int:
        """Return the samples of a duration, as whole bins, at least one."""
        return self.bins(duration_ms) * self._sounding()

    def bins(self, duration_ms: float) -> int:
        """Return the whole bins that hold a duration, at least one.

        Raises
        ------
        ValueError, TypeError
            For a duration that is no number, negative or not finite.
        """
        if duration_ms != 0:
            check_positive_number("a duration in ms", duration_ms)
        return max(1, math.ceil(duration_ms / self.dt_ms - 1e-9))

    def time_ms(self, n_bins: int) -> FloatArray:
        """Return the middles of bins after the onset of the sound (n_bins,)."""
        return np.asarray((np.arange(n_bins) + 0.5) * self.dt_ms, dtype=np.float64)

    def frequency_range(self) -> tuple[float, float]:
        """Return the lowest and the highest frequency that probes use by default, in Hz."""
        top = math.inf if self.audio_fs is None else HIGHEST_SHARE * self.audio_fs
        if self.frequencies_hz is not None:
            return float(self.frequencies_hz.min()), min(float(self.frequencies_hz.max()), top)
        return DEFAULT_RANGE_HZ[0], min(DEFAULT_RANGE_HZ[1], top)

    # ------------------------------------------------------------------ playing

    def play(self, sounds: Iterable[Any]) -> FloatArray:
        """Play sounds, each after silence, and return the rates.

        Parameters
        ----------
        sounds : iterable of array (T_audio,)
            Sounds of one length, a multiple of `hop`.

        Returns
        -------
        array (B, K, lead_bins + T)
            Rates of the K chosen neurons, in the model's unit (spikes per bin).

        Raises
        ------
        ValueError
            For a presentation without sounds, or sounds of illegal length.
        """
        hop = self._sounding()
        lead = np.zeros(self.lead_bins * hop)

        def prepared() -> Iterator[FloatArray]:
            for sound in sounds:
                samples = as_numbers(sound, "sounds")
                if not np.isfinite(samples).all():
                    raise ValueError("sounds must be finite, one holds NaN or infinity")
                if samples.ndim != 1 or samples.size == 0 or samples.size % hop:
                    raise ValueError(
                        f"sounds must be (T_audio,) with T_audio a multiple of {hop} samples (one bin), got "
                        f"{samples.shape}; presentation.samples(duration_ms) is a legal length"
                    )
                yield np.concatenate([lead, samples])

        return self._run(prepared(), self._hear)

    def show(self, patterns: Iterable[Any], silence: Any = 0.0) -> FloatArray:
        """Show spectrograms to the part of the model behind its front-end, each after a constant one.

        Parameters
        ----------
        patterns : iterable of array (F, T)
            Spectrograms of one length, in the model's unit.
        silence : float or array (F,)
            The spectrogram of silence: the frames before each pattern.

        Returns
        -------
        array (B, K, lead_bins + T)
            Rates of the K chosen neurons.

        Raises
        ------
        ValueError
            For patterns that are no spectrograms.
        """

        def prepared() -> Iterator[FloatArray]:
            for pattern in patterns:
                image = as_numbers(pattern, "patterns")
                if image.ndim != 2 or image.size == 0 or not np.isfinite(image).all():
                    raise ValueError(f"patterns must be finite and (F, T), got shape {image.shape}")
                quiet = np.broadcast_to(np.asarray(silence, dtype=np.float64), (len(image),))
                yield np.concatenate([np.repeat(quiet[:, None], self.lead_bins, axis=1), image], axis=1)

        return self._run(prepared(), self._see)

    def baseline(self, rates: FloatArray) -> FloatArray:
        """Return the mean rate at the end of the silence, (..., K) for rates (..., K, lead_bins + T)."""
        part, end = (
            max(1, round(BASELINE_SHARE * self.lead_bins)),
            max(1, self.lead_bins - LOOK_AHEAD_BINS),
        )
        return np.asarray(rates[..., max(0, end - part) : end].mean(axis=-1))

    def evoked(self, rates: FloatArray, silence: Any = None) -> FloatArray:
        """Return what sounds evoke, (..., K, T): rates after their onset less those of a trial of silence.

        A trial, as a model may drift in silence for seconds: state-space backbones do. Differences below a
        millionth of the rate are rounding and count as 0.

        Parameters
        ----------
        rates : array (..., K, lead_bins + T)
            From `play` or `show`.
        silence : float or array (F,), optional
            The spectrogram of silence of patterns that were shown; None is silence as a sound, where the
            presentation hears sounds, else 0.
        """
        n_bins = rates.shape[-1] - self.lead_bins
        if silence is None and self.audio_fs is not None:
            quiet = self.play([np.zeros(n_bins * self.hop)])[0]
        else:
            bands = np.zeros(getattr(self.model, "F", None) or np.size(as_numbers(self.frequencies_hz)))
            flat = bands + as_numbers(0.0 if silence is None else silence)
            quiet = self.show([np.repeat(flat[:, None], n_bins, axis=1)], flat)[0]
        heard = rates[..., self.lead_bins :]
        added = heard - quiet[..., self.lead_bins :]
        rounding = ROUNDING * np.abs(heard).max(axis=-1, keepdims=True, initial=0.0)
        return np.asarray(np.where(np.abs(added) <= rounding, 0.0, added))

    # ------------------------------------------------------------------ inside

    def _sounding(self) -> int:
        if self.audio_fs is None:
            raise ValueError(
                "this presentation's model takes spectrograms and has no cochleagram: use Presentation.for_dataset("
                "model, dataset), or Presentation(model, cochleagram=plain_cochleagram(frequencies_hz, audio_fs, "
                "dt_ms), audio_fs=..., dt_ms=...)"
            )
        return self.hop

    def _run(self, items: Iterator[FloatArray], respond: Callable[[FloatArray], Tensor]) -> FloatArray:
        rates: list[FloatArray] = []
        batch: list[FloatArray] = []

        def flush() -> None:
            if batch:
                output = respond(np.stack(batch))
                if output.ndim != 4 or output.shape[0] != len(batch) or output.shape[2] != 1:
                    raise ValueError(
                        f"the model must return ({len(batch)}, N, 1, T), got {tuple(output.shape)}"
                    )
                rates.append(output[:, self.neurons, 0].cpu().double().numpy())
                batch.clear()

        with evaluating(self.model):
            for item in items:
                if batch and item.shape != batch[0].shape:
                    raise ValueError(f"all must have one length, got {item.shape} after {batch[0].shape}")
                batch.append(item)
                if len(batch) * item.size >= self.batch_samples:
                    flush()
            flush()
        if not rates:
            raise ValueError("nothing to play: give at least one")
        return np.concatenate(rates)

    def _hear(self, sounds: FloatArray) -> Tensor:
        device, dtype = placement(self.model)
        samples = torch.from_numpy(sounds)
        if self.cochleagram is None:
            return cast(Tensor, self.model(samples.unsqueeze(1).to(device, dtype)))
        spectrograms = torch.as_tensor(self.cochleagram(samples))
        n_bins = sounds.shape[1] // self.hop
        if spectrograms.ndim == 4:
            spectrograms = spectrograms.squeeze(1)
        if spectrograms.ndim != 3 or spectrograms.shape[0] != len(sounds) or spectrograms.shape[2] != n_bins:
            raise ValueError(
                f"the cochleagram must map ({len(sounds)}, {sounds.shape[1]}) samples to ({len(sounds)}, F, "
                f"{n_bins}), got {tuple(spectrograms.shape)}"
            )
        return cast(Tensor, self.model(spectrograms.unsqueeze(1).to(device, dtype)))

    def _see(self, patterns: FloatArray) -> Tensor:
        device, dtype = placement(self.model)
        x = torch.from_numpy(patterns).unsqueeze(1).to(device, dtype)
        respond: Any = self.model.respond if self.hears_samples else self.model
        output: Tensor = respond(x)
        return output

    def _count(self) -> list[int]:
        """All neurons, by the model's word or by a first response."""
        stated = getattr(self.model, "O", None)
        if isinstance(stated, int):
            return list(range(stated))
        self.neurons = slice(None)  # type: ignore[assignment]  # while nobody knows how many there are
        return list(range(self.play([np.zeros(self._sounding())]).shape[1]))


def as_presentation(model: Any) -> Presentation:
    """Return a presentation as it is, or one for a model with a front-end.

    Parameters
    ----------
    model : Presentation or nn.Module
        What a probe was given.

    Returns
    -------
    Presentation
        The presentation.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> as_presentation(Linear(8, 3, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8))).dt_ms
    5.0
    """
    return model if isinstance(model, Presentation) else Presentation(model)


def _bands_of(front_end: Any) -> Any:
    bands = getattr(front_end, "frequencies_hz", None)
    return None if bands is None else as_numbers(bands)
