"""Features of sounds on the bins of a dataset: envelope, onsets, spectrogram, and impulses at events.

Bin k of a feature depends on nothing after it. Named features of a dataset are rows one below the other; see
`NeuralDataset.from_arrays`, ``from_continuous`` and ``from_trials``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepSTRF._text import printable
from deepSTRF._validation import as_numbers, check_choice, check_positive_int, checked_but
from deepSTRF.datasets.recording import check_bin_width
from deepSTRF.datasets.session import Feature, Session, sound_hash
from deepSTRF.datasets.sounds import (
    bins_of,
    choose_rate,
    exact_bin,
    exact_rate,
    mono,
    place,
    resampled,
    sounds_of,
)
from deepSTRF.dsp.binning import bin_edges, held_means, linear_means
from deepSTRF.registry import WAV2SPEC

__all__ = [
    "WORDS",
    "ComputedFeatures",
    "StimulusFeatures",
    "binned",
    "envelope",
    "onsets",
    "spectrogram",
    "word_onsets",
]

Floats = npt.NDArray[np.float64]

#: Features that are computed from sounds where their name is given in place of values.
WORDS = ("spectrogram", "envelope", "onsets")
#: Bins of an envelope that are made at once.
_BINS = 1 << 14
#: An event this close below an edge (s) belongs to the bin that begins there, as a spike does.
_TOLERANCE_S = 1e-6


@checked_but("sound")
def envelope(sound: Any, fs: float | Fraction, dt_ms: float) -> Floats:
    """Broadband envelope: the root mean square of a sound in each bin.

    Parameters
    ----------
    sound : array (T_audio,)
        Samples of one channel; integers count by their full scale.
    fs : float or Fraction
        Sample rate in Hz, any: where a bin ends within a sample, that sample counts by its share.
    dt_ms : float
        Bin width in ms.

    Returns
    -------
    ndarray (1, T)
        Root mean square, in the unit of the sound; the whole bins of the sound.

    Raises
    ------
    TypeError, ValueError
        When the sound has several channels or samples that are no numbers, or a number is not legal.

    Examples
    --------
    >>> import numpy as np
    >>> envelope(np.array([3.0, -3.0, 0.0, 2.0, 1.0]), fs=200, dt_ms=10.0).round(3)
    array([[3.   , 1.414]])
    """
    samples, rate, dt = _sound(sound, fs, dt_ms)
    return _envelope(samples, rate, dt, bins_of(len(samples), rate, dt))


def _sound(sound: Any, fs: Any, dt_ms: Any) -> tuple[Floats, Fraction, Fraction]:
    check_bin_width(dt_ms)
    rate = exact_rate(fs, "fs")
    samples = mono(sounds_of({"sound": sound}, rate)["sound"].read(), None, "sound")
    return np.asarray(samples, dtype=np.float64), rate, exact_bin(dt_ms)


def _envelope(samples: Floats, fs: Fraction, dt: Fraction, n_bins: int) -> Floats:
    power = binned(samples[None] ** 2, fs * dt / 1000, n_bins)
    rms: Floats = np.sqrt(np.maximum(power, 0.0))
    return rms


def binned(values: npt.NDArray[Any], step: Fraction, n_bins: int) -> Floats:
    """Means (F, n_bins) of values (F, L) over bins of ``step`` samples; below one, along straight lines.

    What a last bin lacks is taken as the last value where it is less than a sample, else it is not given.
    """
    out = np.empty((len(values), n_bins))
    for start in range(0, n_bins, _BINS):
        stop = min(start + _BINS, n_bins)
        base, edges = bin_edges(Fraction(0), step, start, stop)
        piece = values[:, base : base + int(np.ceil(edges[-1])) + 1]
        if step < 1:
            out[:, start:stop] = linear_means(piece, edges)
        else:
            out[:, start:stop] = held_means(piece, edges)
    return out


@checked_but("values")
def onsets(values: Any, *, before: float | None = 0.0) -> Floats:
    """Onsets of an envelope or spectrogram: its increments from bin to bin, the decrements set to 0.

    Parameters
    ----------
    values : array (F, T) or (T,)
        Levels by bin.
    before : float or None
        Level before the first bin: 0 is silence of an envelope or amplitude. None is for a piece that begins
        amid a sound: its first bin holds no onset.

    Returns
    -------
    ndarray (F, T)
        ``max(x[t] - x[t - 1], 0)``; bin t depends on nothing after it.

    Raises
    ------
    TypeError, ValueError
        When the values are no numbers, or have more axes.

    Examples
    --------
    >>> onsets([0.0, 2.0, 5.0, 1.0]).tolist()
    [[0.0, 2.0, 3.0, 0.0]]
    """
    levels = as_numbers(values, "values")
    levels = levels[None] if levels.ndim == 1 else levels
    if levels.ndim != 2 or not levels.size:
        raise ValueError(f"values is (F, T) or (T,) and not empty, got {levels.shape}")
    first = levels[:, :1] if before is None else np.full((len(levels), 1), float(before))
    rises: Floats = np.maximum(np.diff(levels, axis=1, prepend=first), 0.0)
    return rises


@checked_but("times_s", "values")
def word_onsets(times_s: Any, n_bins: int, dt_ms: float, values: Any = None) -> Floats:
    """Impulses at events, such as the onsets of words: one bin per event, zeros elsewhere.

    Parameters
    ----------
    times_s : array (K,)
        Times in s from the onset of the stimulus. One that lies less than a microsecond below an edge belongs
        to the bin that begins there.
    n_bins : int
        Length of the stimulus in bins.
    dt_ms : float
        Bin width in ms.
    values : array (K,), optional
        Height of each impulse, such as a word's surprisal; 1 by default. Impulses in one bin add up.

    Returns
    -------
    ndarray (1, T)
        The impulses.

    Raises
    ------
    ValueError
        When a time lies outside the stimulus or is no number, or ``values`` are not as many.

    Examples
    --------
    >>> word_onsets([0.0, 0.03, 0.031], n_bins=5, dt_ms=10.0).tolist()
    [[1.0, 0.0, 0.0, 2.0, 0.0]]
    """
    times = as_numbers(times_s, "times_s").reshape(-1)
    heights = np.ones(len(times)) if values is None else as_numbers(values, "values").reshape(-1)
    if len(heights) != len(times):
        raise ValueError(f"values has {len(heights)} entries for {len(times)} times")
    n_bins = check_positive_int("n_bins", n_bins)
    dt = exact_bin(check_bin_width(dt_ms))
    if not np.isfinite(times).all() or not np.isfinite(heights).all():
        raise ValueError("times_s and values hold what is no finite number; leave those events out")
    at = np.floor((times + _TOLERANCE_S) / float(dt / 1000)).astype(np.int64)
    outside = (at < 0) | (at >= n_bins)
    if outside.any():
        raise ValueError(
            f"times_s: {int(outside.sum())} of {len(times)} events lie outside the stimulus of "
            f"{float(n_bins * dt) / 1000:g} s, the first at {times[outside][0]:g} s; times are seconds from "
            "its onset"
        )
    out = np.zeros((1, n_bins))
    np.add.at(out[0], at, heights)
    return out


@checked_but("sound")
def spectrogram(
    sound: Any, fs: float | Fraction, dt_ms: float, wav2spec: str = "gammatonegram", **options: Any
) -> Floats:
    """Spectrogram of a sound by one of the front-ends of the package, causal.

    Parameters
    ----------
    sound : array (T_audio,)
        Samples of one channel; integers count by their full scale.
    fs : float or Fraction
        Sample rate in Hz. The sound is resampled where the bins are no whole number of samples.
    dt_ms : float
        Bin width in ms.
    wav2spec : str
        Name of the front-end (`deepSTRF.models.wav2spec`), taken with its initial parameters.
    **options
        Its arguments, such as ``n_filters``, ``f_min`` in Hz, ``compression``.

    Returns
    -------
    ndarray (F, T)
        Levels of bands by bin.

    Raises
    ------
    TypeError, ValueError
        When the sound is none, or an argument of the front-end is not legal.

    Examples
    --------
    >>> import numpy as np
    >>> tone = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000)
    >>> levels = spectrogram(tone, 16000, 10.0, n_filters=16, f_min=200.0)
    >>> levels.shape, bool(levels[:, 50].argmax() > levels[:, 50].argmin())
    ((16, 100), True)
    """
    samples, rate, dt = _sound(sound, fs, dt_ms)
    n_bins = bins_of(len(samples), rate, dt)
    return _Spectrogram(rate, dt, wav2spec, options).of(samples, 0, n_bins)


class _Spectrogram:
    """A front-end made once, for all sounds of one rate."""

    def __init__(self, fs: Fraction, dt: Fraction, wav2spec: str, options: Mapping[str, Any]) -> None:
        self.fs = fs
        self.rate, dt, self.hop = choose_rate([fs], dt)
        audio_fs = int(self.rate) if self.rate.denominator == 1 else float(self.rate)
        taken = {"audio_fs", "hop_ms"} & set(options)
        if taken:
            raise TypeError(f"{taken.pop()} follows from fs and dt_ms; leave it out of the options")
        make: Any = WAV2SPEC.get(wav2spec)
        self.front_end = make(audio_fs=audio_fs, hop_ms=float(dt), **options).eval()
        hertz = getattr(self.front_end, "frequencies_hz", None)
        self.frequencies_hz = None if hertz is None else hertz.detach().double().numpy()

    def of(self, samples: Floats, n_before: int, n_bins: int) -> Floats:
        """(F, n_bins) of a sound after ``n_before`` silent bins, and silence up to the end."""
        sound = resampled(samples, self.fs, self.rate)
        whole = place(sound, n_before * self.hop, n_bins * self.hop)
        with torch.no_grad():
            levels = self.front_end(torch.from_numpy(whole)[None, None])
        return np.asarray(levels[0, 0].double().numpy()[:, :n_bins])


class ComputedFeatures:
    """Features of sounds by their words (`WORDS`); ``frequencies_hz`` is set with the first spectrogram."""

    def __init__(self, words: Sequence[str], dt: Fraction, options: Mapping[str, Any] | None = None) -> None:
        for word in words:
            check_choice("features", word, WORDS)
        if len(set(words)) < len(words):
            raise ValueError(f"features names one twice: {list(words)}")
        self.words, self.dt, self.options = list(words), dt, dict(options or {})
        self.front_ends: dict[Fraction, _Spectrogram] = {}
        self.frequencies_hz: Floats | None = None

    def of(self, samples: Floats, fs: Fraction, n_before: int, n_bins: int) -> dict[str, Floats]:
        """(F, n_bins) by word, of a sound after ``n_before`` silent bins and with silence up to the end."""
        found: dict[str, Floats] = {}
        level = np.zeros((1, n_bins))
        if set(self.words) - {"spectrogram"}:
            own = min(bins_of(len(samples), fs, self.dt), n_bins - n_before)
            level[:, n_before : n_before + own] = _envelope(samples, fs, self.dt, own)
        for word in self.words:
            if word == "spectrogram":
                found[word] = self._front_end(fs).of(samples, n_before, n_bins)
            else:
                found[word] = level if word == "envelope" else onsets(level)
        return found

    def _front_end(self, fs: Fraction) -> _Spectrogram:
        if fs not in self.front_ends:
            options = {"wav2spec": "gammatonegram", **self.options}
            self.front_ends[fs] = _Spectrogram(fs, self.dt, options.pop("wav2spec"), options)
            hertz = self.front_ends[fs].frequencies_hz
            first = next(iter(self.front_ends.values())).frequencies_hz
            if hertz is not None and first is not None and not np.allclose(hertz, first):
                raise ValueError(
                    f"sounds of {len(self.front_ends)} rates give spectrograms of different bands; state the "
                    "range, such as spectrogram={'f_min': 200.0, 'f_max': 7000.0}"
                )
            self.frequencies_hz = hertz
        return self.front_ends[fs]


class StimulusFeatures:
    """All named features of one stimulus of a session: computed from its sound, then those that are given.

    ``note`` takes topic, text and count of what is worth a note.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        computed: ComputedFeatures,
        channel: int | str | None,
        note: Callable[[str, str, int], None],
    ) -> None:
        self.name, self.computed = name, computed
        self.given, self.frequencies = _given(session.features, name, computed.dt, note)
        bins = [values.shape[1] for values in self.given.values()]
        self.samples, self.fs = np.empty(0), Fraction(1)
        hashes = []
        if computed.words:
            sound = session.sounds[name]
            self.fs = exact_rate(sound.fs, f"the rate of {name!r}")
            self.samples = mono(sound.read(), channel, name)
            hashes.append(sound_hash(self.samples, self.fs))
            bins.append(bins_of(len(self.samples), self.fs, computed.dt))
            if max(bins) - min(bins) > 1:
                raise ValueError(
                    f"stimulus {name!r}: its sound has {bins[-1]} bins of {float(computed.dt):g} ms, its "
                    f"features {', '.join(self.given)} have {bins[0]}"
                )
        if self.given:
            stack = np.concatenate(list(self.given.values()))
            hashes.append(sound_hash(stack, 1000 / computed.dt))
        self.n_bins = min(bins)
        whole = len(self.samples) / self.fs if computed.words else self.n_bins * computed.dt / 1000
        self.duration_s = Fraction(whole)
        joined = hashlib.sha256("".join(hashes).encode()).hexdigest()
        self.digest = hashes[0] if len(hashes) == 1 else joined

    def put(self, ds: Any, n_before: int, n_bins: int) -> npt.NDArray[np.float32]:
        """(F, n_bins) of a clip; names and rows are set on the dataset, or compared with those it has."""
        rows = self.computed.of(self.samples, self.fs, n_before, n_bins) if self.computed.words else {}
        twice = set(rows) & set(self.given)
        if twice:
            raise ValueError(f"feature {twice.pop()!r} is given and computed: rename what is given")
        rows |= {feature: values[:, :n_bins] for feature, values in self.given.items()}
        counts = {feature: len(values) for feature, values in rows.items()}
        if ds.features and list(ds.features.items()) != list(counts.items()):
            raise ValueError(
                f"stimulus {self.name!r} has features with the rows {counts}, earlier ones {ds.features}"
            )
        ds.features, known = counts, dict(self.frequencies)
        if self.computed.frequencies_hz is not None:
            known["spectrogram"] = self.computed.frequencies_hz
        ds.feature_frequencies |= known
        return np.concatenate(list(rows.values())).astype(np.float32)


def _given(
    features: Mapping[str, Mapping[str, Feature]],
    stimulus: str,
    dt: Fraction,
    note: Callable[[str, str, int], None],
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Values (F, T) on the bins and frequencies, by feature, of one stimulus."""
    rows: dict[str, Floats] = {}
    for feature, stimuli in features.items():
        what = f"feature {printable(feature)!r} of stimulus {printable(stimulus)!r}"
        if stimulus not in stimuli:
            raise ValueError(f"{what} is not there; every stimulus needs all features")
        given = stimuli[stimulus]
        values = as_numbers(given.values, what)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or not values.size:
            raise ValueError(f"{what} is (F, T) or (T,) and not empty, got {np.shape(given.values)}")
        if not np.isfinite(values).all():
            raise ValueError(
                f"{what} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite"
            )
        step = Fraction(1) if given.fs is None else exact_rate(given.fs, f"the rate of {what}") * dt / 1000
        if step != 1:
            n_bins = int((values.shape[1] + Fraction(1, 10**6)) / step)
            if n_bins < 1:
                raise ValueError(f"{what} is shorter than a bin of {float(dt):g} ms")
            how = "mean over each bin" if step > 1 else "along straight lines, which look ahead"
            note("resampled features", f"{what}, {how}", 1)
            values = binned(values, step, n_bins)
        rows[feature] = values
    lengths = {feature: values.shape[1] for feature, values in rows.items()}
    shortest = min(lengths.values(), default=0)
    if rows and max(lengths.values()) - shortest > 1:
        raise ValueError(f"the features of stimulus {stimulus!r} differ in length (bins: {lengths})")
    hertz = {feature: stimuli[stimulus].frequencies_hz for feature, stimuli in features.items()}
    known = {feature: np.asarray(value, float) for feature, value in hertz.items() if value is not None}
    return {feature: values[:, :shortest] for feature, values in rows.items()}, known
