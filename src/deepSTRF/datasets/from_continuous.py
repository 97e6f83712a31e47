"""The constructor ``from_continuous``: signals such as EEG, with sounds or features as stimuli."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Self

import numpy as np

from deepSTRF._validation import as_numbers, checked_but, first_names
from deepSTRF.datasets import alignment
from deepSTRF.datasets.continuous import fill_from_signal
from deepSTRF.datasets.features import WORDS
from deepSTRF.datasets.session import Feature, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import exact_bin, exact_rate, sounds_of
from deepSTRF.datasets.tables import is_table, text_of, trials_of

__all__ = ["FromContinuous"]

#: Name of a stimulus that has none.
_SOLE = "clip000"


class FromContinuous:
    """The constructor ``from_continuous`` of audio datasets."""

    @classmethod
    @checked_but("stimuli", "signal", "fs", "trials", "dt_ms", "audio_fs", "pre_ms", "post_ms", "F", "bad_s")
    def from_continuous(
        cls,
        stimuli: Any = None,
        signal: Any = None,
        fs: Any = None,
        trials: Any = None,
        *,
        dt_ms: float | Fraction,
        audio_fs: float | None = None,
        features: Any = None,
        features_fs: Any = None,
        sounds_fs: Any = None,
        channel: int | str | None = None,
        channels: Any = None,
        start_s: float = 0.0,
        bad_s: Any = None,
        bad_channels: Sequence[str] = (),
        unit: str = "arbitrary units",
        response_kind: str = "trace",
        antialias: bool = True,
        pre_ms: float = 0.0,
        post_ms: float = 0.0,
        spectrogram: Mapping[str, Any] | None = None,
        unit_meta: Any = None,
        stim_meta: Any = None,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        species: str | None = None,
        hearing_range_hz: tuple[float, float] | None = None,
        F: int | None = None,
        check_alignment: bool = True,
        **choices: Any,
    ) -> Self:
        """Audio dataset of a continuous signal: EEG, ECoG, LFP, calcium, membrane potential.

        Sample k of the signal stands at ``start_s + k / fs``; the value of a bin is the mean over its stretch
        of time, and each presentation is cut from the original times, at any rational rate. A signal that is
        faster than the bins passes a low-pass of zero phase before, which looks ahead (``describe()`` says by
        how much under "signal_filter"); one that is slower is interpolated along straight lines.

        Parameters
        ----------
        stimuli : folder, dict or array
            Sounds as `from_trials` takes them; or features, ``{name: (F, T)}`` of one stimulus or
            ``{stimulus: {name: (F, T)}}``.
        signal : array (channels, T) or (T,)
            The signal: an array, a memory map (read piece by piece), or a table with one column per channel.
            NaN is "not recorded".
        fs : float or Fraction
            Its rate in Hz, such as 500, 30.03 or 24414.0625.
        trials : table, optional
            Presentations: stimulus, onset in s and optionally offset, condition, as `from_trials` takes them;
            repeats are those of one stimulus. None: one stimulus, which begins with the signal and is as
            long.
        dt_ms : float or Fraction
            Bin width in ms, such as 10 or 1000 / 64.
        audio_fs : float, optional
            Rate in Hz of the waveforms of the dataset; None is one that the bins allow.
        features : str, list or dict, optional
            Features in place of waveforms: words of what is computed from the sounds ("spectrogram",
            "envelope", "onsets"), features as in ``stimuli``, or a list of both. Given ones alone follow a
            spectrogram where there are sounds.
        features_fs : float or dict, optional
            Rate in Hz of given features, or by name; None: their frames are the bins.
        sounds_fs : float or dict, optional
            Rate in Hz of sounds that are arrays, or by name.
        channel : int or str, optional
            Channel of sounds with several, or "mean".
        channels : sequence of str, optional
            Names of the channels of the signal, the neurons of the dataset.
        start_s : float
            Time of the first sample in s, on the clock of the trials.
        bad_s : array (k, 2), optional
            Spans in s with artefacts: bins that touch them are NaN.
        bad_channels : sequence of str
            Channels without usable data: they stay as neurons that have none.
        unit : str
            Unit of the signal, such as "uV".
        response_kind : {"trace", "rate"}
            "rate" states that the signal is never negative.
        antialias : bool
            Low-pass before the mean. False: the mean of the samples in each bin, a sample that reaches into
            two counting by its share.
        pre_ms, post_ms : float
            Silence before and after each sound that belongs to its clip, in ms, whole bins.
        spectrogram : mapping, optional
            Arguments of `deepSTRF.datasets.spectrogram` for a computed one.
        unit_meta, stim_meta : mapping, optional
            Metadata by channel and by stimulus.
        columns : mapping, optional
            Columns of ``trials`` with unusual names: ``{"stimulus": "file"}``.
        name, species, hearing_range_hz, F, check_alignment
            As in `from_arrays`.
        **choices
            Those of `from_trials` that apply: ``clip``, ``by_condition``, ``level``, ``on_missing_sound``,
            ``on_overlap``, ``on_equal_sounds``, ``on_blank``.

        Returns
        -------
        AudioNeuralDataset
            The dataset; what was kept, skipped and noted is in ``load_report``.

        Raises
        ------
        TypeError, ValueError
            When something is not as described; the text names the argument and what is legal.

        Examples
        --------
        >>> import numpy as np
        >>> from deepSTRF.datasets.audio import AudioNeuralDataset
        >>> eeg = np.random.default_rng(0).normal(size=(2, 5000))  # 10 s at 500 Hz
        >>> speech = {"envelope": np.ones(640), "words": np.zeros(640)}  # 10 s at 64 Hz
        >>> ds = AudioNeuralDataset.from_continuous(speech, eeg, 500, dt_ms=1000 / 64, channels=["Cz", "Pz"])
        >>> tuple(ds.response_block(0).shape), ds.features
        ((2, 1, 640), {'envelope': 1, 'words': 1})
        """
        if signal is None or fs is None:
            raise TypeError("from_continuous needs signal=<(channels, T)> and fs=<its rate in Hz>")
        legal = [key for key in inspect.signature(fill_from_signal).parameters if key.startswith("on_")]
        legal += ["clip", "by_condition", "level"]
        unknown = [key for key in choices if key not in legal]
        if unknown:
            raise TypeError(f"from_continuous has no argument {unknown[0]!r}; choices are {', '.join(legal)}")
        kind: Any = cls
        ds = kind._blank(float(dt_ms) if isinstance(dt_ms, Fraction) else dt_ms)
        session, words = session_of_signal(
            stimuli, signal, fs, trials, dt_ms=dt_ms, features=features, features_fs=features_fs,
            sounds_fs=sounds_fs, channels=channels, start_s=start_s, bad_s=bad_s, bad_channels=bad_channels,
            unit=unit, unit_meta=unit_meta, stim_meta=stim_meta, columns=columns, name=name,
        )  # fmt: skip
        ds.F, ds.hearing_range_hz, ds.species = F or 0, hearing_range_hz, species
        ds.name = session.name
        fill_from_signal(
            ds, [session], dt_ms=dt_ms, audio_fs=audio_fs, channel=channel, pre_ms=pre_ms, post_ms=post_ms,
            antialias=antialias, response_kind=response_kind, features=words, spectrogram=spectrogram,
            **choices,
        )  # fmt: skip
        ds.validate()
        if check_alignment:
            alignment.check_alignment(ds, warn_unclear=False)
        return ds  # type: ignore[no-any-return]


def session_of_signal(
    stimuli: Any,
    signal: Any,
    fs: Any,
    trials: Any,
    *,
    dt_ms: Any,
    features: Any,
    features_fs: Any,
    sounds_fs: Any,
    channels: Any,
    start_s: float,
    bad_s: Any,
    bad_channels: Sequence[str],
    unit: str,
    unit_meta: Any,
    stim_meta: Any,
    columns: Mapping[str, str] | None,
    name: str | None,
) -> tuple[Session, tuple[str, ...]]:
    """A session of what ``from_continuous`` is given, and the words of features to be computed."""
    rate = exact_rate(fs, "fs")
    data, names = _signal(signal, channels)
    sounds, given, words = _stimuli(stimuli, features, features_fs, sounds_fs)
    known = list(sounds) or list(dict.fromkeys(one for by_name in given.values() for one in by_name))
    if not known:
        raise ValueError("there is no stimulus: give sounds or features")
    table = None if trials is None else trials_of(trials, columns)
    if given and sounds:
        _check_names(known, given)
    if table is None:
        if len(known) > 1:
            raise ValueError(
                f"stimuli are {first_names(known)}, and nothing says which was presented when; give "
                "trials={'stimulus': [...], 'onset': [...]} with onsets in s"
            )
        dt = exact_bin(dt_ms)
        length = _duration(known[0], sounds, given, dt)
        _check_turned(data, rate, channels, lambda seconds: abs(seconds - length) < dt / 1000)
        _check_length(data, rate, length, dt, is_binned=not sounds and features_fs is None)
        table = Trials(known, np.array([float(start_s)]))
    else:
        onsets = np.asarray(table.onset_s, dtype=np.float64)
        last = Fraction(float(np.nanmax(onsets, initial=0.0))) - Fraction(float(start_s))
        _check_turned(data, rate, channels, lambda seconds: seconds > last)
    spans = np.empty((0, 2)) if bad_s is None else as_numbers(bad_s, "bad_s").reshape(-1, 2)
    if isinstance(bad_channels, str):
        raise TypeError(f"bad_channels is a list of names, got the text {bad_channels!r}")
    session = Session(
        trials=table, sounds=sounds, features=given,
        signal=Signal(
            data, rate, names, float(start_s), unit, spans, [text_of(one) for one in bad_channels]
        ),
        unit_meta=_meta(unit_meta, names, "unit_meta"), stim_meta=_meta(stim_meta, known, "stim_meta"),
        name="recording" if name is None else name,
    )  # fmt: skip
    return session, words


def _signal(signal: Any, channels: Any) -> tuple[Any, list[str]]:
    """The signal as something with a shape that gives pieces, and the names of its channels."""
    if is_table(signal) and hasattr(signal, "to_numpy"):  # one column per channel
        channels = [str(column) for column in signal.columns] if channels is None else channels
        signal = signal.to_numpy().T
    if hasattr(signal, "detach"):
        signal = signal.detach().cpu().numpy()
    if not hasattr(signal, "shape") or not hasattr(signal, "dtype"):
        signal = as_numbers(signal, "signal")
    if np.dtype(signal.dtype).kind not in "iuf":
        raise TypeError(f"signal holds real numbers (channels, T), got {signal.dtype} of {signal.shape}")
    rows = 1 if len(signal.shape) == 1 else int(signal.shape[0])
    if channels is None:
        return signal, [f"neuron{index:03d}" for index in range(rows)]
    if isinstance(channels, str):
        channels = [channels]
    return signal, [text_of(channel) for channel in channels]


def _check_turned(data: Any, fs: Fraction, channels: Any, fits: Any) -> None:
    """Refuse (T, channels) where lengths say so."""
    if len(data.shape) != 2 or data.shape[0] == data.shape[1]:
        return
    named = channels is not None and len(channels) == data.shape[0]
    if not named and fits(data.shape[0] / fs) and not fits(data.shape[1] / fs):
        raise ValueError(
            f"signal of shape {tuple(data.shape)} seems to be (T, channels): along axis 0 it lasts "
            f"{float(data.shape[0] / fs):g} s, along axis 1 {float(data.shape[1] / fs):g} s; pass signal.T"
        )


def _duration(name: str, sounds: Mapping[str, Sound], given: Any, dt: Fraction) -> Fraction:
    """Length of a stimulus in s."""
    if sounds:
        sound = sounds[name]
        samples = len(sound.read()) if sound.n_samples is None else sound.n_samples
        return samples / exact_rate(sound.fs, f"the rate of {name!r}")
    lengths = [
        np.shape(stimuli[name].values)[-1]
        / (1000 / dt if stimuli[name].fs is None else exact_rate(stimuli[name].fs, "features_fs"))
        for stimuli in given.values()
    ]
    return Fraction(min(lengths))


def _check_length(data: Any, fs: Fraction, stimulus_s: Fraction, dt: Fraction, *, is_binned: bool) -> None:
    """Refuse a signal without trials that is not as long as the stimulus."""
    read = f" (features in bins of {float(dt):g} ms; samples of sounds need sounds_fs=<rate in Hz>)"
    seconds = data.shape[-1] / fs
    if abs(seconds - stimulus_s) >= max(dt / 1000, 1 / fs):
        raise ValueError(
            f"the signal lasts {float(seconds):.6g} s ({data.shape[-1]} samples at {float(fs):.9g} Hz) and "
            f"the stimulus {float(stimulus_s):.6g} s{read if is_binned else ''}; give trials={{'stimulus': "
            "[...], 'onset': [...]} that say where in the signal the stimulus begins (in s), or cut both to "
            "the same stretch"
        )


def _stimuli(
    stimuli: Any, features: Any, features_fs: Any, sounds_fs: Any
) -> tuple[dict[str, Sound], dict[str, dict[str, Feature]], tuple[str, ...]]:
    """Sounds by name, given features by feature and stimulus, and words of features to be computed."""
    sounds: dict[str, Sound] = {}
    tables: list[Mapping[Any, Any]] = []
    if isinstance(stimuli, Mapping) and _are_features(stimuli, sounds_fs):
        tables.append(stimuli)
    elif isinstance(stimuli, (str, os.PathLike, Mapping)):
        sounds = sounds_of(stimuli, sounds_fs)
    elif stimuli is not None:
        sounds = sounds_of({_SOLE: stimuli}, sounds_fs)
    words: list[str] = []
    wanted = [features] if isinstance(features, (str, Mapping)) else list(features or ())
    for one in wanted:
        if isinstance(one, str):
            words.append(one)
        elif isinstance(one, Mapping):
            tables.append(one)
        else:
            raise TypeError(
                f"features are words ({', '.join(map(repr, WORDS))}) or a mapping from names to arrays, got "
                f"{type(one).__name__}"
            )
    given: dict[str, dict[str, Feature]] = {}
    for table in tables:
        for stimulus, by_name in _by_stimulus(table, next(iter(sounds), _SOLE)).items():
            for feature, values in by_name.items():
                rate = features_fs.get(feature) if isinstance(features_fs, Mapping) else features_fs
                made = values if isinstance(values, Feature) else Feature(values, rate)
                if stimulus in given.setdefault(feature, {}):
                    raise ValueError(f"feature {feature!r} of stimulus {stimulus!r} is given twice")
                given[feature][stimulus] = made
    return sounds, given, tuple(words)


def _are_features(stimuli: Mapping[Any, Any], sounds_fs: Any) -> bool:
    """Whether a mapping is one of features: of mappings, or of arrays that have no rate of sounds."""
    values = list(stimuli.values())
    if any(isinstance(value, (Mapping, Feature)) for value in values):
        return True
    plain = all(not isinstance(value, (str, os.PathLike, tuple, Sound)) for value in values)
    return sounds_fs is None and plain


def _by_stimulus(table: Mapping[Any, Any], sole: str) -> dict[str, dict[str, Any]]:
    """{stimulus: {feature: values}} of that, or of {feature: values} of one stimulus."""
    nested = [isinstance(value, Mapping) for value in table.values()]
    if any(nested) and not all(nested):
        raise TypeError(
            "features are {name: array} of one stimulus, or {stimulus: {name: array}}; this mapping is both"
        )
    rows = table if any(nested) else {sole: table}
    return {text_of(key): {text_of(f): v for f, v in by_name.items()} for key, by_name in rows.items()}


def _check_names(known: Sequence[str], given: Mapping[str, Mapping[str, Feature]]) -> None:
    """Refuse features of stimuli that are no sounds."""
    for feature, stimuli in given.items():
        other = [name for name in stimuli if name not in known]
        if other:
            raise ValueError(
                f"feature {feature!r} is given for {first_names(other)}; the sounds are {first_names(known)}"
            )


def _meta(given: Any, names: Sequence[str], what: str) -> dict[str, dict[str, Any]]:
    """Metadata by name, of a mapping or of a list in the order of the names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        rows = list(given)
        if len(rows) != len(names) or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError(
                f"{what} is a mapping by name, or one dictionary for each of {first_names(names)}"
            )
        given = dict(zip(names, rows, strict=True))
    found = {text_of(name): dict(row) for name, row in given.items()}
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(f"{what} names {first_names(unknown)}, which is none of {first_names(names)}")
    return found
