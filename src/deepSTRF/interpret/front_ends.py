"""Front-ends measured from outside: tuning and delay of their channels, and comparison with a reference.

Tones and clicks are played to the front-end, so that the measures hold for any, learned or not, and include
what filter shapes alone do not show: pooling, compression and adaptation.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._validation import FloatArray, checked_but, outside_level, to_tensor
from deepSTRF.interpret.strf.tuning import extent_above
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Range of the tuning curves, and the steps in which the reference tone is made softer. Between steps the
#: level is interpolated, which for a power law errs by less than 0.2 dB.
RANGE_DB, LEVEL_STEP_DB = 60.0, 3.0
#: Tones: log-spaced, long enough for a filter of 60 Hz to settle, with an onset that does not splatter. Their
#: last part is averaged under a Hann window, which evens out the ripple of low tones.
N_TONES, LOWEST_HZ, TONE_MS, ONSET_MS, AVERAGED_MS = 200, 20.0, 250.0, 20.0, 160.0
#: Clicks: the step in which they are moved through a bin, and how long after them the output is watched.
CLICK_STEP_MS, WATCHED_MS = 0.25, 60.0
#: Silence before a click, so that nothing depends on where the clip began.
CLICK_LEAD_MS = 100.0
#: Half-power edges of a band.
EDGE_DB = -10.0 * math.log10(2.0)
#: The top of a click response is where it exceeds this share of its largest excursion; a flat top has no
#: single peak.
TOP_SHARE = 0.95
#: Samples that one batch of probe sounds may hold.
BATCH_SAMPLES = 2**18
#: Size of the figure of a comparison, in inches.
FIGSIZE = (9.0, 5.6)


@dataclass(frozen=True)
class FrontEndResponse:
    """Tuning and timing of the F channels of a front-end.

    Attributes
    ----------
    frequencies_hz : array (P,). Tones.
    gain_db : array (F, P). For each channel and tone, by how much its best tone must be lowered for the same
        output: 0 is the best tone, -60 what lies below the measured range. NaN for a channel whose output no
        tone changes.
    centre_hz, bandwidth_hz : array (F,). Geometric middle and width of the band within 3 dB of the best tone.
    lag_ms : array (L,). Age of a click at the end of a bin.
    click : array (F, L). Change of the channel's output by a click of that age, as a share of its largest
        change.
    click_latency_ms : array (F,). Age of the click at the top of that response less half a bin: the delay
        behind an ideal detector. NaN for a channel whose output no click changes.
    stated_latency_ms : array (F,) or None. What the front-end itself states: ``channel_latency_ms``, or
        ``latency_ms`` for all.
    """

    frequencies_hz: FloatArray
    gain_db: FloatArray
    centre_hz: FloatArray
    bandwidth_hz: FloatArray
    lag_ms: FloatArray
    click: FloatArray
    click_latency_ms: FloatArray
    stated_latency_ms: FloatArray | None


@checked_but("wav2spec")
def front_end_response(
    wav2spec: nn.Module,
    *,
    n_tones: int = N_TONES,
    amplitude: float = 1.0,
    lowest_hz: float = LOWEST_HZ,
) -> FrontEndResponse:
    """Measure the tuning and the delay of a front-end's channels, with tones and clicks.

    A tuning curve is measured as in an experiment, at equal response: the output for a tone is looked up
    among the outputs for the channel's best tone at many levels. So compression drops out, whatever its form.
    The module runs where it is, in eval mode and without gradients.

    Parameters
    ----------
    wav2spec : nn.Module
        Maps (B, 1, T_audio) to (B, 1, F, T) and states ``hop`` and ``audio_fs``.
    n_tones : int
        Tones between ``lowest_hz`` and half the sample rate, in equal logarithmic steps.
    amplitude : float
        Amplitude of tones and clicks.
    lowest_hz : float
        Lowest tone.

    Returns
    -------
    FrontEndResponse
        The measurements.

    Raises
    ------
    TypeError
        When ``wav2spec`` is no module.
    ValueError
        When it lacks ``hop`` or ``audio_fs``, makes no spectrogram, or ``n_tones`` is below 8.

    Examples
    --------
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> mel = CausalMelSpectrogram(audio_fs=16000, n_mels=6, f_min=200.0)
    >>> measured = front_end_response(mel, n_tones=150)
    >>> measured.gain_db.shape, measured.stated_latency_ms[0].item()
    ((6, 150), 2.5)
    >>> bool((abs(measured.centre_hz / mel.frequencies_hz.numpy() - 1) < 0.05).all())
    True
    """
    player = _Player(wav2spec, amplitude)
    if n_tones < 8:
        raise ValueError(f"n_tones must be at least 8, got {n_tones}")
    if not 0 < lowest_hz < player.fs / 2:
        raise ValueError(f"lowest_hz must lie between 0 and {player.fs / 2:g}, got {lowest_hz!r}")
    # the highest tone stays clear of half the rate, where the samples of a tone may all be zero
    tones = np.geomspace(lowest_hz, 0.49 * player.fs, n_tones)
    gain = _equal_response_levels(player, tones)
    octaves, edges = np.log2(tones), np.full((2, len(gain)), np.nan)
    for channel, curve in enumerate(gain):
        if not np.isnan(curve).any():
            edges[:, channel] = extent_above(octaves, curve, int(curve.argmax()), EDGE_DB)[:2]
    low, high = 2.0**edges
    lag_ms, click = _click_response(player)
    stated = getattr(wav2spec, "channel_latency_ms", None)
    if stated is None:
        stated = getattr(wav2spec, "latency_ms", None)
    if stated is not None:
        stated = torch.as_tensor(stated, dtype=torch.float64).detach().cpu().numpy()
        stated = np.broadcast_to(stated, (len(gain),)).copy()
    return FrontEndResponse(
        frequencies_hz=tones,
        gain_db=gain,
        centre_hz=np.sqrt(low * high),
        bandwidth_hz=high - low,
        lag_ms=lag_ms,
        click=click,
        click_latency_ms=_top_of(lag_ms, click) - 0.5 * player.bin_ms,
        stated_latency_ms=stated,
    )


class _Player:
    """Plays sounds to a front-end, a batch at a time, and returns its frames."""

    def __init__(self, wav2spec: nn.Module, amplitude: float) -> None:
        if not isinstance(wav2spec, nn.Module):
            raise TypeError(
                f"wav2spec must be an nn.Module, got {type(wav2spec).__name__}; pass model.wav2spec"
            )
        missing = [name for name in ("hop", "audio_fs") if not hasattr(wav2spec, name)]
        if missing:
            raise ValueError(f"{type(wav2spec).__name__} lacks {', '.join(missing)}: it is no front-end")
        if not (math.isfinite(amplitude) and amplitude > 0):
            raise ValueError(f"amplitude must be a positive number, got {amplitude!r}")
        self.module, self.amplitude = wav2spec, float(amplitude)
        self.fs, self.hop = float(wav2spec.audio_fs), int(wav2spec.hop)  # type: ignore[arg-type]
        self.bin_ms = 1000.0 * self.hop / self.fs

    def bins(self, duration_ms: float) -> int:
        """Whole bins that hold a duration."""
        return math.ceil(duration_ms / self.bin_ms)

    def play(self, sounds: FloatArray) -> FloatArray:
        """Frames (B, F, T) for sounds (B, T_audio)."""
        device, dtype = placement(self.module)
        frames = []
        with evaluating(self.module):
            for batch in _batches(len(sounds), sounds.shape[1]):
                part = torch.from_numpy(sounds[batch]).unsqueeze(1).to(device, dtype)
                output: Tensor = self.module(part)
                if output.ndim != 4 or output.shape[:2] != (len(part), 1):
                    raise ValueError(
                        "the front-end must map (B, 1, T_audio) to (B, 1, F, T), it mapped "
                        f"{tuple(part.shape)} to {tuple(output.shape)}"
                    )
                frames.append(output[:, 0].cpu().double().numpy())
        return np.concatenate(frames)

    def tone_strength(self, hertz: FloatArray, level_db: FloatArray, oscillates: bool) -> FloatArray:
        """One number per tone and channel (B, F): the settled output, as rms where it oscillates around 0."""
        n_samples = self.bins(TONE_MS) * self.hop
        seconds = np.arange(n_samples) / self.fs
        onset = np.sin(0.5 * math.pi * np.clip(1000.0 * seconds / ONSET_MS, 0.0, 1.0)) ** 2
        n_averaged = self.bins(AVERAGED_MS)
        weights = np.sin(math.pi * (np.arange(n_averaged) + 0.5) / n_averaged) ** 2
        weights /= weights.sum()
        strength = []
        for batch in _batches(len(hertz), n_samples):
            gain = self.amplitude * 10.0 ** (level_db[batch, None] / 20.0) * onset
            phase = 2.0 * math.pi * hertz[batch, None] * seconds
            settled = self.play(gain * np.sin(phase))[..., -n_averaged:]
            if oscillates:  # sampled once per bin, a tone may look constant: its other phase shows it
                other = self.play(gain * np.cos(phase))[..., -n_averaged:]
                strength.append(np.sqrt((settled**2 + other**2) @ weights))
            else:
                strength.append(settled @ weights)
        return np.concatenate(strength)

    def oscillates(self) -> bool:
        """Whether the output is filtered sound: turned upside down with the input, as no detector's is."""
        noise = np.random.default_rng(0).normal(size=(1, self.bins(TONE_MS) * self.hop)) * self.amplitude
        upright, inverted = self.play(np.concatenate([noise, -noise]))
        return bool(np.abs(upright + inverted).max() <= 1e-3 * np.abs(upright).max())


def _batches(n_sounds: int, n_samples: int) -> Iterator[slice]:
    """Slices of a batch of sounds that hold ``BATCH_SAMPLES`` at most (one sound at least)."""
    at_once = max(1, BATCH_SAMPLES // n_samples)
    for first in range(0, n_sounds, at_once):
        yield slice(first, first + at_once)


def _equal_response_levels(player: _Player, tones: FloatArray) -> FloatArray:
    """Level of each channel's best tone that gives the same output as each tone: (F, P) dB, 0 at most."""
    oscillates = player.oscillates()
    strength = player.tone_strength(tones, np.zeros_like(tones), oscillates)  # (P, F)
    best = strength.argmax(0)
    levels = np.arange(-RANGE_DB, 0.5 * LEVEL_STEP_DB, LEVEL_STEP_DB)
    n_channels = strength.shape[1]
    every = player.tone_strength(np.repeat(tones[best], levels.size), np.tile(levels, n_channels), oscillates)
    reference = every.reshape(n_channels, levels.size, n_channels)
    gain = np.full((n_channels, tones.size), np.nan)
    for channel in range(n_channels):
        curve = np.maximum.accumulate(reference[channel, :, channel])
        # below a floor the output is independent of the level: the last level before it rises stands for all
        above = int(np.searchsorted(curve, curve[0], side="right")) - 1
        if curve[-1] > curve[0]:
            gain[channel] = np.interp(strength[:, channel], curve[above:], levels[above:], left=-RANGE_DB)
    return gain


def _click_response(player: _Player) -> tuple[FloatArray, FloatArray]:
    """Ages (L,) in ms and normalised changes (F, L): a click moved through one bin in small steps."""
    step = max(1, round(CLICK_STEP_MS * player.fs / 1000.0))
    offsets = np.arange(0, player.hop, step)
    lead, watched = player.bins(CLICK_LEAD_MS), player.bins(WATCHED_MS)
    sounds = np.zeros((offsets.size + 1, (lead + watched) * player.hop))
    sounds[np.arange(offsets.size), lead * player.hop + offsets] = player.amplitude
    frames = player.play(sounds)
    change = (frames[:-1] - frames[-1])[..., lead:]  # the last sound is silence; (offset, F, watched)
    ends = np.arange(1, watched + 1) * player.hop
    ages: FloatArray = (ends[None, :] - offsets[:, None]).ravel() / player.fs
    order = np.argsort(ages)
    click = change.transpose(1, 0, 2).reshape(change.shape[1], -1)[:, order]
    largest = np.abs(click).max(axis=1, keepdims=True)
    return 1000.0 * ages[order], click / np.where(largest > 0, largest, 1.0)


def _top_of(lag_ms: FloatArray, click: FloatArray) -> FloatArray:
    """Middle of the stretch around the largest change in which it stays near it; NaN for no change."""
    tops = np.full(len(click), np.nan)
    for channel, change in enumerate(np.abs(click)):
        if change.max() == 0:
            continue
        low = high = int(change.argmax())
        while low > 0 and change[low - 1] >= TOP_SHARE:
            low -= 1
        while high + 1 < change.size and change[high + 1] >= TOP_SHARE:
            high += 1
        tops[channel] = 0.5 * (lag_ms[low] + lag_ms[high])
    return tops


@checked_but("wav2spec")
def initial_front_end(wav2spec: nn.Module) -> nn.Module | None:
    """Return a front-end as it was before training, built again from its own arguments.

    Parameters
    ----------
    wav2spec : nn.Module
        A front-end; a user's own derives from `Configurable` (or `WaveformFrontEnd`) to be known.

    Returns
    -------
    nn.Module or None
        A fresh one, in eval mode and on the CPU; None for a module that does not remember its arguments, or
        that is still as it was built.

    Examples
    --------
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> initial_front_end(CausalMelSpectrogram(audio_fs=16000)) is None  # nothing in it is learned
    True
    """
    arguments: dict[str, Any] | None = getattr(wav2spec, "init_arguments", None)
    if not arguments:
        return None
    with torch.random.fork_rng(devices=[]):
        fresh: nn.Module = type(wav2spec)(**arguments)
    before, now = fresh.state_dict(), wav2spec.state_dict()
    if all(torch.equal(value, now[name].cpu().to(value.dtype)) for name, value in before.items()):
        return None
    return fresh.eval()


class Wav2specComparison(NamedTuple):
    """A front-end's output and a reference on one grid.

    Attributes
    ----------
    pred, truth : float32 array (F, T). Output and reference, cropped to their common bins.
    r : float. Pearson correlation over all of them; NaN when either is constant.
    """

    pred: NDArray[np.float32]
    truth: NDArray[np.float32]
    r: float


@checked_but("wav2spec")
def compare_wav2spec(
    waveform: Tensor, wav2spec: nn.Module, truth: Any, *, z_score: bool = True
) -> Wav2specComparison:
    """Run a front-end on a waveform and correlate its output with a reference spectrogram.

    The front-end runs where its parameters are, in eval mode and without gradients; its training flags are as
    before afterwards.

    Parameters
    ----------
    waveform : Tensor (T_audio,), (1, T_audio) or (1, 1, T_audio)
        Mono sound at the front-end's sample rate.
    wav2spec : nn.Module
        Maps (1, 1, T_audio) to (1, 1, F, T).
    truth : Tensor or array (F, T) or (1, F, T)
        The reference.
    z_score : bool
        Bring both to mean 0 and standard deviation 1 over all bands and bins: scales then compare.

    Returns
    -------
    Wav2specComparison
        Output, reference and their correlation.

    Raises
    ------
    TypeError
        When ``wav2spec`` is no module.
    ValueError
        For a waveform or reference of another shape, an output that is no spectrogram, or unequal bands.

    Warns
    -----
    UserWarning
        When one has more bins than the other; the longer is cut at its end.

    Examples
    --------
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> mel = CausalMelSpectrogram(audio_fs=16000, n_mels=8)
    >>> sound = torch.sin(torch.arange(1600) * 0.5)
    >>> same = mel.eval()(sound[None, None])[0]
    >>> round(compare_wav2spec(sound, mel, same).r, 3)
    1.0
    """
    if not isinstance(wav2spec, nn.Module):
        raise TypeError(f"wav2spec must be an nn.Module, got {type(wav2spec).__name__}; pass model.wav2spec")
    sound = to_tensor(waveform)
    if sound.ndim < 1 or math.prod(sound.shape[:-1]) != 1:
        raise ValueError(f"waveform must be mono, (T_audio,) or (1, T_audio), got {tuple(sound.shape)}")
    device, dtype = placement(wav2spec)
    with evaluating(wav2spec):
        output = wav2spec(sound.reshape(1, 1, -1).to(device, dtype))
    pred = _image(output, "the output of wav2spec")
    reference = _image(to_tensor(truth), "the reference spectrogram")
    if pred.shape[0] != reference.shape[0]:
        raise ValueError(
            f"wav2spec makes {pred.shape[0]} bands, the reference has {reference.shape[0]}; "
            "build the front-end with as many filters as the reference has bands"
        )
    n_bins = min(pred.shape[1], reference.shape[1])
    if pred.shape[1] != reference.shape[1]:
        warnings.warn(
            f"wav2spec makes {pred.shape[1]} bins, the reference has {reference.shape[1]}; "
            f"comparing the first {n_bins}. Equal hops (audio_fs * dt / 1000) give equal bins",
            UserWarning,
            stacklevel=outside_level(),
        )
    pred, reference = pred[:, :n_bins], reference[:, :n_bins]
    scored = _z_scored(pred), _z_scored(reference)
    constant = pred.std() == 0.0 or reference.std() == 0.0
    r = math.nan if constant else float((scored[0] * scored[1]).mean())
    pred, reference = scored if z_score else (pred, reference)
    return Wav2specComparison(pred.astype(np.float32), reference.astype(np.float32), r)


@checked_but("wav2spec")
def compare_wav2spec_to_groundtruth(
    ds: Any,
    wav2spec: nn.Module,
    stim_idx: int = 0,
    *,
    ground_truth_stims: Sequence[Any] | None = None,
    z_score: bool = True,
    figsize: tuple[float, float] | None = None,
    suptitle: str | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Figure]:
    """Compare a front-end with the reference spectrogram of one clip, as numbers and as a figure.

    The figure is made through pyplot, unlike those of `deepSTRF.plots`, because notebooks call this function
    and then ``plt.show()`` or ``plt.close(fig)``: close it when you make many.

    Parameters
    ----------
    ds : AudioNeuralDataset
        Recording in waveform mode.
    wav2spec : nn.Module
        Front-end for its sample rate and bin.
    stim_idx : int
        Clip.
    ground_truth_stims : sequence of (F, T) or (1, F, T)
        Reference spectrograms, one per clip: ``stims`` of the same recording in spectrogram mode.
    z_score : bool
        As in `compare_wav2spec`.
    figsize : (float, float), optional
        Inches.
    suptitle : str, optional
        Title of the figure.

    Returns
    -------
    pred, truth : float32 array (F, T)
        Output of the front-end and reference.
    fig : matplotlib Figure
        Output, reference and difference; the correlation stands in the first title.

    Raises
    ------
    ValueError
        When the dataset is not in waveform mode, no reference is given, there are too few, or the shapes do
        not fit.
    TypeError, IndexError
        When ``stim_idx`` is no integer or no clip.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import matplotlib.pyplot as plt
    >>> from types import SimpleNamespace
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> ds = SimpleNamespace(stims=[torch.rand(1, 1600)], dt=5.0, return_waveform=True, audio_fs=16000)
    >>> pred, truth, fig = compare_wav2spec_to_groundtruth(
    ...     ds, CausalMelSpectrogram(audio_fs=16000, n_mels=8), ground_truth_stims=[torch.rand(1, 8, 20)]
    ... )
    >>> pred.shape, len(fig.axes)
    ((8, 20), 6)
    >>> plt.close(fig)
    """
    try:
        clip, n_clips = operator.index(stim_idx), len(ds.stims)
    except TypeError:
        raise TypeError(f"stim_idx must be an integer, got {type(stim_idx).__name__}") from None
    if not -n_clips <= clip < n_clips:
        raise IndexError(f"stim_idx={clip} is no clip: the dataset has {n_clips} (0 .. {n_clips - 1})")
    if not getattr(ds, "return_waveform", False):
        raise ValueError(
            "ds holds spectrograms; a front-end needs waveforms: load the recording with return_waveform=True"
        )
    theirs, ours = getattr(wav2spec, "audio_fs", None), getattr(ds, "audio_fs", None)
    if theirs is not None and ours is not None and int(theirs) != int(ours):
        raise ValueError(
            f"wav2spec was built for {theirs} Hz, the dataset's waveforms are at {ours} Hz; "
            f"build it with audio_fs={ours} (ds.audio_fs)"
        )
    if ground_truth_stims is None:
        raise ValueError(
            "ground_truth_stims is missing: pass the reference spectrograms, the stims of the same recording "
            "in spectrogram mode, for instance ground_truth_stims=NS1Dataset().stims"
        )
    if len(ground_truth_stims) != n_clips:
        raise ValueError(
            f"ground_truth_stims holds {len(ground_truth_stims)} clips, the dataset {n_clips}; "
            "take both from one recording and one selection"
        )
    clip %= n_clips
    compared = compare_wav2spec(ds.stims[clip], wav2spec, ground_truth_stims[clip], z_score=z_score)

    import matplotlib.pyplot as plt

    from deepSTRF.plots import plot_wav2spec_comparison

    figure = plt.figure(figsize=figsize or FIGSIZE, layout="constrained")
    plot_wav2spec_comparison(
        compared.pred,
        compared.truth,
        ds.dt,
        frequencies_hz=_frequencies(wav2spec, compared.pred.shape[0]),
        truth_frequencies_hz=_frequencies(ds, compared.truth.shape[0]),
        unit="z-score" if z_score else "value",
        suptitle=suptitle,
        figure=figure,
    )
    return compared.pred, compared.truth, figure


def _frequencies(owner: Any, n_bands: int) -> Any:
    """Centre frequencies of a front-end's or a recording's bands, where it states them."""
    frequencies = getattr(owner, "frequencies_hz", None)
    return frequencies if frequencies is not None and len(frequencies) == n_bands else None


def _image(values: Tensor, what: str) -> NDArray[np.float64]:
    if values.ndim < 2 or math.prod(values.shape[:-2]) != 1:
        raise ValueError(f"{what} must be one spectrogram (F, T), got shape {tuple(values.shape)}")
    image: NDArray[np.float64] = values.detach().reshape(values.shape[-2:]).cpu().double().numpy()
    return image


def _z_scored(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and standard deviation 1 over everything; a constant image has no scale and is only centred."""
    scored: NDArray[np.float64] = (image - image.mean()) / (float(image.std()) or 1.0)
    return scored
