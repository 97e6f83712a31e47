"""Presentation of sounds to a fitted model or in a closed loop: their conversion, the silence before them.

A model with a front-end takes samples. One on spectrograms needs a cochleagram, a function from sounds
(B, T_audio) to spectrograms (B, F, T): that of its recording (`dataset_cochleagram`) or `plain_cochleagram`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    FloatArray,
    NeuronSelection,
    as_numbers,
    check_choice,
    check_positive_int,
    check_positive_number,
    checked,
    checked_but,
    neuron_indices,
    to_tensor,
)
from deepSTRF.datasets.audio.ns1 import NS1_WAV_NATIVE_FS
from deepSTRF.dsp.cochleagram import FFT_LENGTH_FACTOR, RAHMAN_LOG_FLOOR, rahman_cochleagram
from deepSTRF.dsp.filters import samples_per_bin, triangular_filterbank
from deepSTRF.interpret.closed_loop import ClosedLoop, as_loop
from deepSTRF.models.configurable import placement
from deepSTRF.models.fitted_on import matching_outputs
from deepSTRF.models.prediction import evaluating

#: Silence before every sound: longer than the memory of fixed front-ends and most prefilters.
LEAD_MS = 300.0
#: The longest silence, whatever memory a model states.
LONGEST_LEAD_MS = 5000.0
#: The baseline is the mean rate in the last part of that silence.
BASELINE_SHARE = 0.25
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
#: A recorder's own rate need not hold whole bins (48828.125 Hz: 244.14 samples in 5 ms). Rounding by less
#: than this share shifts the end of a probe of two seconds by less than half a bin of 5 ms.
HOP_SLACK = 1e-3


class Presentation:
    """Presentation of sounds to a model: each after silence, with the rates of chosen neurons in return.

    A model with a front-end takes the samples. One on spectrograms needs the function that makes them from
    sound: a ``cochleagram`` with its ``audio_fs`` and ``dt_ms``; `Presentation.for_dataset` takes them from
    the recording, and `plain_cochleagram` makes one where nothing else is known. Without one only
    spectrograms can be presented (`show`).

    The model runs where it is and in its own precision, in eval mode and without gradients. A stream, or
    anything else in a `ClosedLoop`, is played one sound after another, chunk by chunk.

    Parameters
    ----------
    model : nn.Module, Stream or ClosedLoop
        A module maps (B, 1, T_audio) or (B, 1, F, T) to (B, N, 1, T).
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
        Silence before each sound. None is 300 ms, or longer where the model states a longer memory, so that
        it has settled where the baseline is read.
    batch_samples : int
        Samples that one batch may hold.
    range_hz : (float, float), optional
        Frequencies between which probes choose their tones; None is the range of the bands.

    Attributes
    ----------
    audio_fs, dt_ms : float
        Rates; ``audio_fs`` is None where no sounds can be played.
    hop : int
        Samples per bin.
    lead_bins : int
        Bins of silence.
    neurons : list of int
        Which neurons are read.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit the model; the text names what is missing.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, 4, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8))
    >>> presentation = Presentation(model, neurons=[0, -1], lead_ms=50.0)
    >>> presentation.play([np.zeros(800)]).shape, presentation.lead_bins, presentation.neurons
    ((1, 2, 20), 10, [0, 3])
    """

    @checked_but("model", "cochleagram", "neurons")
    def __init__(
        self,
        model: Any,
        *,
        cochleagram: Callable[[Tensor], Tensor] | None = None,
        audio_fs: float | None = None,
        dt_ms: float | None = None,
        frequencies_hz: Any = None,
        neurons: NeuronSelection = None,
        lead_ms: float | None = None,
        batch_samples: int = BATCH_SAMPLES,
        range_hz: tuple[float, float] | None = None,
    ) -> None:
        self.loop: ClosedLoop | None = None
        if not isinstance(model, nn.Module):
            if not (callable(model) or isinstance(model, ClosedLoop) or hasattr(model, "push")):
                raise TypeError(
                    "model must be an nn.Module, or what answers chunk by chunk: a Stream, a ClosedLoop or a "
                    f"function of samples; got {type(model).__name__}"
                )
            self.loop = as_loop(model, audio_fs=None if cochleagram else audio_fs, dt_ms=dt_ms)
            model = self.loop.model  # what is known of the neurons, nothing of a real one
        front_end: Any = getattr(model, "wav2spec", None)
        live_fs = None if self.loop is None else self.loop.audio_fs
        self.takes_samples = live_fs is not None or hasattr(front_end, "hop")
        if self.takes_samples:
            if cochleagram is not None:
                raise ValueError("this model has a front-end and takes samples: leave cochleagram out")
            audio_fs = float(front_end.audio_fs) if live_fs is None else live_fs
            dt_ms = 1000.0 * int(front_end.hop) / audio_fs if self.loop is None else self.loop.dt_ms
            if frequencies_hz is None:
                frequencies_hz = getattr(front_end, "frequencies_hz", None)
        elif self.loop is not None:
            dt_ms = self.loop.dt_ms
        if dt_ms is None:
            raise ValueError(
                "this model takes spectrograms: give dt_ms, and cochleagram with audio_fs to play sounds, or "
                "use Presentation.for_dataset(model, dataset)"
            )
        if cochleagram is not None and not callable(cochleagram):
            raise TypeError(f"cochleagram must be callable, got {type(cochleagram).__name__}")
        if not self.takes_samples and (cochleagram is None) != (audio_fs is None):
            raise ValueError("cochleagram and audio_fs belong together: give both or neither")
        self.model: Any = model
        self.cochleagram = cochleagram
        self.audio_fs = None if audio_fs is None else check_positive_number("audio_fs", audio_fs)
        self.dt_ms = check_positive_number("dt_ms", dt_ms)
        self.hop = 0
        if self.audio_fs is not None:
            exact = self.audio_fs * self.dt_ms / 1000.0
            near = round(exact)  # of 244.14 samples 244
            whole = near and abs(exact - near) < HOP_SLACK * exact
            self.hop = near if whole else samples_per_bin(self.audio_fs, self.dt_ms)
        self.frequencies_hz = (
            None if frequencies_hz is None else _checked_bands(frequencies_hz, getattr(model, "F", None))
        )
        self.range_hz = None if range_hz is None else two_frequencies("range_hz", range_hz, self.audio_fs)
        lead_ms = (
            _settling_ms(model, self.dt_ms) if lead_ms is None else check_positive_number("lead_ms", lead_ms)
        )
        self.lead_bins = math.ceil(lead_ms / self.dt_ms - 1e-9)
        # in a closed loop one sound follows the other
        self.batch_samples = 1 if self.loop else check_positive_int("batch_samples", batch_samples)
        n_neurons = getattr(model, "O", None)
        if not isinstance(n_neurons, int):
            self.neurons: Any = slice(None)  # a first response shows how many there are
            n_neurons = self.play([np.zeros(self._playable_hop())]).shape[
                1
            ]  # and costs a closed loop a trial
        self.neurons = neuron_indices(neurons, n_neurons)
        if not self.neurons:
            raise ValueError("neurons must name at least one neuron to read; None is all")

    @classmethod
    @checked_but("model")
    def for_dataset(cls, model: Any, dataset: Any, **options: Any) -> Presentation:
        """Return a presentation in which sounds reach the model as the recording's stimuli were made.

        Parameters
        ----------
        model : nn.Module, or Stream of one
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
            When it is not known how the recording's spectrograms were made, or the model was fitted on
            another recording.
        """
        fitted = model if isinstance(model, nn.Module) else getattr(model, "model", None)
        if fitted is not None:
            matching_outputs(fitted, dataset)
        if hasattr(getattr(fitted, "wav2spec", None), "hop"):
            return cls(model, **options)
        cochleagram, audio_fs = dataset_cochleagram(dataset)
        made: dict[str, Any] = {"cochleagram": cochleagram, "audio_fs": audio_fs, "dt_ms": dataset.dt}
        return cls(model, **made, frequencies_hz=getattr(dataset, "frequencies_hz", None), **options)

    # ---- time and frequency

    @checked
    def samples(self, duration_ms: float) -> int:
        """Return the samples of a duration, as whole bins, at least one."""
        return self.bins(duration_ms) * self._playable_hop()

    @checked
    def bins(self, duration_ms: float) -> int:
        """Return the whole bins that hold a duration, at least one."""
        if duration_ms != 0:
            check_positive_number("a duration in ms", duration_ms)
        return max(1, math.ceil(duration_ms / self.dt_ms - 1e-9))

    @checked
    def time_ms(self, n_bins: int) -> FloatArray:
        """Return the middles of bins after the onset of the sound (n_bins,)."""
        return np.asarray((np.arange(n_bins) + 0.5) * self.dt_ms, dtype=np.float64)

    @property
    def fs(self) -> float:
        """Samples per second; an error where no sounds can be played."""
        self._playable_hop()
        return cast(float, self.audio_fs)

    def frequency_range(self) -> tuple[float, float]:
        """Return the lowest and the highest frequency that probes use by default, in Hz.

        They are ``range_hz`` where that was given, else those of the bands that varied in the training
        sounds: what a model does with sound in a band that no fit has heard is arbitrary.
        """
        top = math.inf if self.audio_fs is None else HIGHEST_SHARE * self.audio_fs
        low, high = DEFAULT_RANGE_HZ if self.range_hz is None else self.range_hz
        if self.range_hz is None and self.frequencies_hz is not None:
            std = getattr(self.model, "band_std", None)
            varies = np.ones(len(self.frequencies_hz), bool) if std is None else as_numbers(std) > 0
            heard = self.frequencies_hz[varies] if varies.any() else self.frequencies_hz
            low, high = float(heard.min()), float(heard.max())
        return low, min(high, top)

    def band_scale(self, unit: str | None) -> FloatArray:
        """Return the size (F, 1) of one unit in each band; of None that of "sd" where it is known."""
        check_choice("unit", unit, (None, "sd", "raw"))
        std = getattr(self.model, "band_std", None)
        if unit == "sd" and std is None:
            raise ValueError("unit='sd' needs a fitted model, which knows the deviations of its bands")
        return np.ones((1, 1)) if std is None or unit == "raw" else as_numbers(std)[:, None]

    # ---- playing

    @checked
    def play(self, sounds: Iterable[Any]) -> FloatArray:
        """Play sounds, each after silence, and return the rates.

        Parameters
        ----------
        sounds : iterable of array (T_audio,)
            Sounds of one length, a multiple of `hop`.

        Returns
        -------
        array (B, K, lead_bins + T)
            Rates of the K chosen neurons, in the unit of the responses it was fitted to.
        """
        hop = self._playable_hop()
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

        return self._rates(prepared(), self._respond_to_sounds)

    @checked
    def show(self, patterns: Iterable[Any], silence: Any = 0.0) -> FloatArray:
        """Present spectrograms to the part of the model behind its front-end, each after a constant one.

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
        """

        def prepared() -> Iterator[FloatArray]:
            for pattern in patterns:
                image = as_numbers(pattern, "patterns")
                if image.ndim != 2 or image.size == 0 or not np.isfinite(image).all():
                    raise ValueError(f"patterns must be finite and (F, T), got shape {image.shape}")
                quiet = np.broadcast_to(np.asarray(silence, dtype=np.float64), (len(image),))
                yield np.concatenate([np.repeat(quiet[:, None], self.lead_bins, axis=1), image], axis=1)

        return self._rates(prepared(), self._respond_to_patterns)

    @checked
    def baseline(self, rates: FloatArray) -> FloatArray:
        """Return the mean rate at the end of the silence, (..., K) for rates (..., K, lead_bins + T)."""
        n_bins = max(1, round(BASELINE_SHARE * self.lead_bins))
        end = max(1, self.lead_bins - LOOK_AHEAD_BINS)
        return np.asarray(rates[..., max(0, end - n_bins) : end].mean(axis=-1))

    @checked
    def evoked(self, rates: FloatArray, silence: Any = None) -> FloatArray:
        """Return what sounds evoke, (..., K, T): rates after their onset less those of a trial of silence.

        A trial, as a model may drift in silence for seconds: state-space backbones do. Differences below a
        millionth of the rate are rounding and count as 0.

        Parameters
        ----------
        rates : array (..., K, lead_bins + T)
            From `play` or `show`.
        silence : float or array (F,), optional
            The spectrogram of silence of patterns that were shown; None is silence as a sound, where sounds
            can be played, else 0.
        """
        n_bins = rates.shape[-1] - self.lead_bins
        if silence is None and self.audio_fs is not None:
            quiet = self.play([np.zeros(n_bins * self.hop)])[0]
        else:
            bands = np.zeros(getattr(self.model, "F", None) or np.size(as_numbers(self.frequencies_hz)))
            flat = bands + as_numbers(0.0 if silence is None else silence)
            quiet = self.show([np.repeat(flat[:, None], n_bins, axis=1)], flat)[0]
        after = rates[..., self.lead_bins :]
        added = after - quiet[..., self.lead_bins :]
        rounding = ROUNDING * np.abs(after).max(axis=-1, keepdims=True, initial=0.0)
        return np.asarray(np.where(np.abs(added) <= rounding, 0.0, added))

    @checked
    def evoke(
        self, sounds: Iterable[FloatArray], *shape: int, tail_ms: float | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Play a grid of sounds, each with silence after it, and return what they evoke.

        Parameters
        ----------
        sounds : iterable of array (T_audio,)
            Sounds in C order of the grid.
        *shape : int
            Sizes of the axes of the grid, for instance levels and tokens.
        tail_ms : float, optional
            Silence after each sound, at least a bin; None is none.

        Returns
        -------
        array (K, ..., T), array (K,)
            Rates on the grid of ``shape`` less those of a trial of silence, and the rates at the end of the
            silence before.
        """
        tail = np.zeros(0 if tail_ms is None else self.samples(tail_ms))
        rates = self.play(np.concatenate([sound, tail]) for sound in sounds)
        evoked = self.evoked(rates)
        return np.moveaxis(evoked.reshape(*shape, *evoked.shape[1:]), -2, 0), self.baseline(rates)[0]

    # ---- the model

    def _playable_hop(self) -> int:
        if self.audio_fs is None:
            raise ValueError(
                "this model takes spectrograms and no cochleagram was given: use Presentation.for_dataset("
                "model, dataset), or Presentation(model, cochleagram=plain_cochleagram(frequencies_hz, "
                "audio_fs, dt_ms), audio_fs=..., dt_ms=...)"
            )
        return self.hop

    def _rates(self, items: Iterator[FloatArray], respond: Callable[[FloatArray], Tensor]) -> FloatArray:
        """Rates (B, K, T) of the chosen neurons, in batches of at most ``batch_samples`` values."""
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

        with contextlib.nullcontext() if self.loop else evaluating(self.model):
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

    def _respond_to_sounds(self, sounds: FloatArray) -> Tensor:
        samples = torch.from_numpy(sounds)
        if self.cochleagram is None:
            return self._answers(samples, self.model)
        spectrograms = to_tensor(self.cochleagram(samples))
        n_bins = sounds.shape[1] // self.hop
        if spectrograms.ndim == 4:
            spectrograms = spectrograms.squeeze(1)
        if spectrograms.ndim != 3 or spectrograms.shape[0] != len(sounds) or spectrograms.shape[2] != n_bins:
            raise ValueError(
                f"the cochleagram must map ({len(sounds)}, {sounds.shape[1]}) samples to ({len(sounds)}, F, "
                f"{n_bins}), got {tuple(spectrograms.shape)}"
            )
        return self._answers(spectrograms, self.model)

    def _respond_to_patterns(self, patterns: FloatArray) -> Tensor:
        if self.loop and self.takes_samples:
            raise ValueError(
                "spectrograms cannot be shown in this closed loop, which takes samples: play sounds"
            )
        respond: Any = self.model.respond if self.takes_samples else self.model
        return self._answers(torch.from_numpy(patterns), respond)

    def _answers(self, stimuli: Tensor, respond: Any) -> Tensor:
        """Rates (B, N, 1, T) for samples (B, T_audio) or spectrograms (B, F, T)."""
        if self.loop:
            return torch.from_numpy(np.stack([self.loop.mean(one.numpy()) for one in stimuli])).unsqueeze(2)
        device, dtype = placement(self.model)
        return cast(Tensor, respond(stimuli.unsqueeze(1).to(device, dtype)))


def as_presentation(model: Any) -> Presentation:
    """Return a presentation as it is, or one for a model with a front-end, a stream or a closed loop."""
    return model if isinstance(model, Presentation) else Presentation(model)


def _checked_bands(frequencies_hz: Any, n_bands: Any) -> FloatArray:
    """Centres of bands (F,) in the order of the model's bands; those of a learned bank need not ascend."""
    hertz = as_numbers(frequencies_hz, "frequencies_hz")
    wrong_count = isinstance(n_bands, int) and hertz.shape != (n_bands,)
    if hertz.ndim != 1 or not hertz.size or wrong_count or not (np.isfinite(hertz) & (hertz > 0)).all():
        count = f"{n_bands} " if isinstance(n_bands, int) else ""
        raise ValueError(
            f"frequencies_hz must be {count}positive finite numbers, one per band, got shape {hertz.shape}"
        )
    return hertz


def _settling_ms(model: Any, dt_ms: float) -> float:
    """Silence after which a model has settled, as far as it states its memory."""
    front_end: Any = getattr(model, "wav2spec", None)
    n_frames = getattr(model, "receptive_field", None)
    memory_ms = dt_ms * n_frames if isinstance(n_frames, int) else 0.0
    n_samples = getattr(front_end, "receptive_field_samples", None)
    if isinstance(n_samples, int):
        memory_ms += 1000.0 * n_samples / float(front_end.audio_fs)
    return min(LONGEST_LEAD_MS, max(LEAD_MS, memory_ms / (1.0 - BASELINE_SHARE)))


def dataset_cochleagram(dataset: Any) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return the function (B, T_audio) -> (B, F, T) that made a recording's spectrograms, and its audio rate.

    Frames of a native NS1 cochleagram look one bin ahead, as the recording's own do.
    """
    facts = getattr(dataset, "facts", None) or {}
    hertz = getattr(dataset, "frequencies_hz", None)
    made, alignment = facts.get("spectrogram"), facts.get("alignment")
    above_floor = made == "cochleagram above its floor"
    if hertz is None or alignment is None or not (above_floor or made in ("recomputed", "shipped")):
        raise ValueError(
            f"the dataset {getattr(dataset, 'name', '?')!r} does not state how its spectrograms were made: "
            "give Presentation(model, cochleagram=..., audio_fs=..., dt_ms=dataset.dt) a function from "
            "sounds (B, T_audio) to spectrograms (B, F, T)"
        )
    audio_fs = float(facts["made_at_hz"]) if above_floor else float(NS1_WAV_NATIVE_FS)
    options = {
        "dt_ms": float(dataset.dt), "alignment": alignment, "n_filters": len(hertz),
        "f_min": float(hertz[0]), "f_max": float(hertz[-1]),
    }  # fmt: skip
    floor = math.log(RAHMAN_LOG_FLOOR) if above_floor else 0.0
    return functools.partial(_cochleagram, audio_fs=audio_fs, floor=floor, options=options), audio_fs


def _cochleagram(sounds: Tensor, audio_fs: float, floor: float, options: dict[str, Any]) -> Tensor:
    hop = round(audio_fs * options["dt_ms"] / 1000.0)
    return rahman_cochleagram(sounds, audio_fs, n_bins=sounds.shape[-1] // hop, **options) - floor


@checked
def plain_cochleagram(
    frequencies_hz: Any, audio_fs: float, dt_ms: float, *, floor: float = RAHMAN_LOG_FLOOR
) -> Callable[[Tensor], Tensor]:
    """Return a causal cochleagram with any bands, for models whose own spectrograms cannot be made again.

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
    >>> cochleagram = plain_cochleagram([500.0, 1000.0, 2000.0], 16000, 5.0)
    >>> cochleagram(torch.zeros(1, 800)).shape
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


# ---- Checks of what probes play: a sound that cannot be played as described would give a misleading number


def ascending(name: str, values: Any, above: float | None = None) -> FloatArray:
    """Return one ascending finite series (P,)."""
    series = as_numbers(values, name)
    legal = series.ndim == 1 and series.size > 0 and np.isfinite(series).all() and (np.diff(series) > 0).all()
    if not legal or (above is not None and series[0] <= above):
        extra = "" if above is None else f" above {above:g}"
        raise ValueError(f"{name} must be one ascending series of finite numbers{extra}, got {series}")
    return series


def one_per_neuron(name: str, values: Any, n_neurons: int) -> FloatArray:
    """Return one number per neuron (K,), from one for all or from a sequence."""
    array = as_numbers(values, name)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_neurons) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a number or {n_neurons} numbers, one per neuron, all finite; got {values!r}. A "
            "neuron without a best frequency is left out with Presentation(..., neurons=[...])"
        )
    return np.broadcast_to(array, (n_neurons,)).copy()


def check_audible(name: str, hertz: Any, audio_fs: float | None) -> None:
    """Check that frequencies can be played: above 0, and below half the audio rate, where they fold back."""
    values = np.ravel(as_numbers(hertz, name))
    top = math.inf if not audio_fs else 0.5 * audio_fs
    wrong = values[~((values > 0) & (values < top))]
    if wrong.size:
        raise ValueError(
            f"{name} must lie above 0 and below {top:g} Hz, half of the {audio_fs or 0:g} samples per "
            f"second; got {wrong[0]:g} Hz"
        )


def two_frequencies(name: str, range_hz: Any, audio_fs: float | None) -> tuple[float, float]:
    """Return two ascending audible frequencies."""
    values = as_numbers(range_hz, name)
    if values.shape != (2,) or not 0 < values[0] < values[1]:
        raise ValueError(f"{name} must be two ascending positive numbers, got {range_hz!r}")
    check_audible(name, values, audio_fs)
    return float(values[0]), float(values[1])


def check_lengths(**lengths_ms: Any) -> None:
    """Check lengths in ms: those of tails are 0 or more, all others above 0."""
    for name, value in lengths_ms.items():
        if name == "tail_ms" and isinstance(value, numbers.Real) and value == 0:
            continue
        check_positive_number(name, value)


def check_levels(**levels_db: Any) -> None:
    """Check single finite numbers: levels in dB."""
    for name, value in levels_db.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def modulation_rates(usual: Sequence[float], rates_hz: Any, dt_ms: float) -> FloatArray:
    """Return modulation rates (R,) that bins of this length show; of the usual ones where None are given."""
    shown = 500.0 / dt_ms
    if rates_hz is None:
        rates_hz = [rate for rate in usual if rate < shown]
        if not rates_hz:
            raise ValueError(
                f"bins of {dt_ms:g} ms show modulation below {shown:g} Hz, and this probe starts at "
                f"{min(usual):g} Hz; give slower rates_hz"
            )
    rates = ascending("rates_hz", rates_hz, above=0.0)
    if rates[-1] >= shown:
        raise ValueError(f"bins of {dt_ms:g} ms show rates below {shown:g} Hz, got {rates[-1]:g}")
    return rates


def check_periods(name: str, rates_hz: FloatArray, measured_ms: float) -> None:
    """Check that a whole period of each rate (R,) lies in the stretch that is measured."""
    if rates_hz[0] * measured_ms < 1000.0 * (1.0 - 1e-9):
        raise ValueError(
            f"{name} must be {1000.0 / measured_ms:.3g} Hz or more for a whole period to lie in the "
            f"{measured_ms:g} ms that are measured, got {rates_hz[0]:g}; or lengthen duration_ms"
        )
