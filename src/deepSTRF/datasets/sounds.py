"""Sounds of a laboratory: files and arrays of any rate and width, read when needed, on the grid of the bins.

Integers are divided by their full scale, floats stay as they are (peaks above 1 too), nothing is normalised.
Rates and bin widths are exact fractions: 24414.0625 Hz is 390625/16, a bin of 1000/60 ms is 50/3.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import check_regular, damaged
from deepSTRF._text import printable
from deepSTRF.datasets.from_arrays import from_full_scale
from deepSTRF.datasets.session import Sound
from deepSTRF.datasets.tables import text_of
from deepSTRF.dsp.resample import resample_exact

__all__ = [
    "bins_of",
    "choose_rate",
    "exact_bin",
    "exact_rate",
    "find_name",
    "mono",
    "natural",
    "place",
    "resampled",
    "sound_blocks",
    "sound_header",
    "sounds_of",
    "whole_bins",
]

#: Suffixes of sound files that soundfile reads.
SOUND_SUFFIXES = (
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".w64",
)  # fmt: skip
_REMEDY = "export the sound again, as WAV or FLAC"
#: A header may promise so many samples more than a compressed file holds.
_CODEC_SAMPLES = 2304
#: Sizes from here on are written where the size was not known.
_STREAMED = 0x7FFF0000
#: No sound has samples of this size; they would not fit into float32 when they are resampled.
_LOUDEST = 1e30
#: A hop this close to an integer (relative) is one, as in `deepSTRF.dsp.filters`: dt_ms=33.3333.
_HOP_TOLERANCE = Fraction(5, 1_000_000)
#: A float within so many units in the last place of a small fraction is that fraction.
_ULPS = 4


# ---- names


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts s2 before s10."""
    parts = re.findall(r"\d+|\D+", text.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [(2, 0, text)]


def without_suffix(name: str) -> str:
    """A name without the suffix of a sound file."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SOUND_SUFFIXES else name


@functools.lru_cache(maxsize=1 << 16)
def _forms(name: str) -> tuple[str, str, str]:
    """A name without suffix; that in lower case; that without folder."""
    stem = without_suffix(name)
    plain = unicodedata.normalize("NFC", stem).casefold().replace("\\", "/")
    return stem, plain, plain.rpartition("/")[2]


def find_name(name: str, known: Collection[str], what: str) -> str | None:
    """The known name that is meant: equal, or equal but for suffix, letter case and folder; None for none.

    Raises ValueError where several would do.
    """
    if name in known:
        return name
    for form, wanted in enumerate(_forms(name)):
        hits = [other for other in known if _forms(other)[form] == wanted]
        if len(hits) > 1:
            raise ValueError(
                f"{what} {printable(name)!r} may be {' or '.join(repr(printable(hit)) for hit in hits[:4])}; "
                "name it as the sound is named"
            )
        if hits:
            return hits[0]
    return None


# ---- reading


def sounds_of(given: Any, fs: Any = None, channel: int | str | None = None) -> dict[str, Sound]:
    """Sounds by name of a folder, or of a mapping from name to file, samples, (samples, fs) or `Sound`.

    ``fs`` is the rate of plain samples: a number, or a mapping from name to number. With a ``channel`` (see
    `mono`) the sounds have one; without it they have those of their files.
    """
    if isinstance(given, (str, os.PathLike)):
        found = _folder(Path(given))
    elif isinstance(given, Mapping):
        found = {}
        for key, value in given.items():
            name = key if isinstance(key, str) else text_of(key)
            if name in found:
                raise ValueError(f"sounds: two sounds have the name {name!r}")
            rate = fs.get(key, fs.get(name)) if isinstance(fs, Mapping) else fs
            found[name] = _sound(name, value, rate)
    else:
        raise TypeError(
            "sounds is a folder of sound files, or a dictionary from name to file, to samples (with "
            f"sounds_fs=<rate in Hz>) or to (samples, rate); got {type(given).__name__}"
        )
    if channel is None:
        return found
    return {name: _one_channel(name, sound, channel) for name, sound in found.items()}


def _one_channel(name: str, sound: Sound, channel: int | str) -> Sound:
    return Sound(lambda: mono(sound.read(), channel, name), sound.fs, sound.n_samples, sound.source)


def _folder(root: Path) -> dict[str, Sound]:
    """The sound files of a folder and its sub-folders: by stem, with the folder's name where stems repeat."""
    if not root.exists():
        raise FileNotFoundError(f"sounds: there is no folder {root}")
    if not root.is_dir():
        return {root.stem: _file(root)}
    paths = [
        Path(at) / file
        for at, folders, files in os.walk(root)
        for file in files
        if file.lower().endswith(SOUND_SUFFIXES) and not file.startswith(".")
    ]
    paths.sort(key=lambda path: natural(path.relative_to(root).as_posix()))
    if not paths:
        raise ValueError(
            f"sounds: the folder {root} holds no sound file ({', '.join(SOUND_SUFFIXES[:5])}, ...)"
        )
    stems = [path.stem for path in paths]
    inner = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    whole = [path.relative_to(root).as_posix() for path in paths]
    names = [a if stems.count(a) == 1 else b if inner.count(b) == 1 else c
             for a, b, c in zip(stems, inner, whole, strict=True)]  # fmt: skip
    return {name: _file(path) for name, path in zip(names, paths, strict=True)}


def _sound(name: str, value: Any, fs: Any) -> Sound:
    if isinstance(value, Sound):
        return value
    if isinstance(value, (str, os.PathLike)):
        return _file(Path(value))
    if isinstance(value, tuple) and len(value) == 2 and 1 in (np.ndim(value[0]) == 0, np.ndim(value[1]) == 0):
        samples, rate = (value[1], value[0]) if np.ndim(value[0]) == 0 else value
        if fs is not None and not _is_rate(fs, rate):
            raise ValueError(f"sound {name!r} has the rate {rate}, and sounds_fs says {fs}; give one")
        fs = rate
    else:
        samples = value
    if fs is None:
        raise ValueError(
            f"sound {name!r} is an array without a rate; give sounds_fs=<rate in Hz>, or (samples, rate)"
        )
    array = _samples(samples, f"sound {name!r}")
    return Sound(lambda: array, exact_rate(fs, f"the rate of sound {name!r}"), len(array), name)


def _is_rate(one: Any, other: Any) -> bool:
    return exact_rate(one, "sounds_fs") == exact_rate(other, "sounds_fs")


def _samples(values: Any, what: str) -> npt.NDArray[Any]:
    """(T_audio,) or (T_audio, channels) floats of an array; integers by their full scale."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T  # (channels, T_audio)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
        raise TypeError(
            f"{what}: samples are real numbers (T_audio,) or (T_audio, channels), got {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.dtype.kind in "iu":
        return from_full_scale(array, what)
    return array


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn the errors of the reader of sound files into one that names the file."""
    import soundfile

    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise damaged(path, error, _REMEDY) from error


def sound_header(path: Path) -> Any:
    """Header of a sound file, as soundfile gives it; an error where samples that it promises are missing."""
    import soundfile

    check_regular(path)
    with _naming_damage(path), open(path, "rb") as handle:
        info = soundfile.info(handle)
    # libsndfile shortens what was cut off and says so only in its log; streams have the largest size
    short = re.search(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)", info.extra_info)
    if short and int(short[2]) < int(short[1]) < _STREAMED:
        raise damaged(path, f"{short[2]} of {short[1]} bytes of samples are there", _REMEDY)
    return info


def sound_blocks(path: Path, n_frames: int = -1) -> Iterator[npt.NDArray[Any]]:
    """Samples (T_audio, channels) of a sound file in float64, in blocks of up to ``n_frames``; -1 is one."""
    import soundfile

    promised, n_read = sound_header(path).frames, 0
    with open(path, "rb") as handle:
        with _naming_damage(path):
            file = soundfile.SoundFile(handle)
        with file:
            while True:
                with _naming_damage(path):
                    block = file.read(n_frames, dtype="float64", always_2d=True)
                n_read += len(block)
                if len(block) < n_frames or n_frames < 0:  # the last one
                    if n_read < promised - _CODEC_SAMPLES:
                        raise damaged(path, f"{n_read} of {promised} samples are there", _REMEDY)
                    yield block
                    return
                yield block


def _file(path: Path) -> Sound:
    """A sound file, whose header is read now and whose samples when they are needed."""
    info = sound_header(path)

    def read() -> npt.NDArray[Any]:
        samples = next(sound_blocks(path))
        return samples[:, 0] if samples.shape[1] == 1 else samples

    return Sound(read, exact_rate(info.samplerate, f"the rate of {path}"), int(info.frames), str(path))


def mono(samples: npt.NDArray[Any], channel: int | str | None, name: str) -> npt.NDArray[Any]:
    """(T_audio,) of samples with one or more channels: the only one, a chosen one, or their mean."""
    array = np.asarray(samples)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.size:
        raise ValueError(f"sound {name!r} holds no samples: its shape is {np.shape(samples)}")
    n = array.shape[1]
    if isinstance(channel, (int, np.integer)) and not isinstance(channel, bool):
        if n > 1 and not 0 <= channel < n:
            raise ValueError(f"sound {name!r} has channels 0 to {n - 1}, channel={channel} is none of them")
        chosen = array[:, int(channel) if n > 1 else 0]
    elif channel == "mean":
        chosen = array.mean(axis=1)
    elif channel not in (None, "mono"):
        raise ValueError(
            f"channel is None, 'mono', 'mean' or the number of a channel from 0, got {channel!r}"
        )
    elif n > 1:
        raise ValueError(
            f"sound {name!r} has {n} channels (one may hold a trigger); say which: channel=0 "
            f"(to {n - 1}), or channel='mean'"
        )
    else:
        chosen = array[:, 0]
    if chosen.dtype == np.float16:  # too narrow for what is compared below
        chosen = chosen.astype(np.float32)
    if chosen.dtype.kind == "f" and not (np.abs(chosen) < _LOUDEST).all() and np.isfinite(chosen).all():
        raise ValueError(f"sound {name!r} holds samples up to {np.abs(chosen).max():.3g}: is it damaged?")
    if not np.isfinite(chosen).all():
        raise ValueError(
            f"sound {name!r} holds {int((~np.isfinite(chosen)).sum())} samples that are no numbers"
        )
    return np.ascontiguousarray(chosen)


# ---- rates and bins


def exact_rate(value: Any, what: str) -> Fraction:
    """A rate in Hz as a fraction; a float is taken at its binary value."""
    try:
        rate = Fraction(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{what} is a sample rate in Hz, such as 44100 or 24414.0625, got {value!r}"
        ) from None
    if rate <= 0:
        raise ValueError(f"{what} is a sample rate in Hz above 0, got {value!r}")
    return rate


def exact_bin(dt_ms: Any) -> Fraction:
    """A bin width in ms as a fraction: of a float the simplest that rounds to it."""
    if isinstance(dt_ms, Fraction):
        return dt_ms
    value = float(dt_ms)
    for digits in range(7):
        simple = Fraction(value).limit_denominator(10**digits)
        if abs(float(simple) - value) <= _ULPS * math.ulp(value):
            return simple
    return Fraction(value)


def whole_bins(name: str, milliseconds: Any, dt: Fraction) -> int:
    """The number of bins in a stretch, which must be whole."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float, np.number, Fraction)):
        raise TypeError(f"{name} is a number of milliseconds, got {type(milliseconds).__name__}")
    if not (math.isfinite(milliseconds) and milliseconds >= 0):
        raise ValueError(f"{name} is a number of milliseconds of at least 0, got {milliseconds!r}")
    bins = float(milliseconds) / float(dt)
    if abs(bins - round(bins)) > 1e-6 * max(1.0, bins):
        low, high = (float(dt * k) for k in (math.floor(bins), math.ceil(bins)))
        raise ValueError(
            f"{name}={float(milliseconds):g} is {bins:g} bins of {float(dt):g} ms, and must be whole bins: "
            f"{low:g} or {high:g}"
        )
    return round(bins)


def choose_rate(
    rates: Sequence[Fraction], dt: Fraction, audio_fs: Any = None
) -> tuple[Fraction, Fraction, int]:
    """Sample rate of a dataset, its exact bin width in ms and its hop, which is whole.

    The rate asked for; else the highest of the sounds; else the next above it that the bins allow. A bin
    width that misses a whole hop by its own rounding becomes exact.
    """
    rate = max(rates) if audio_fs is None else exact_rate(audio_fs, "audio_fs")
    hop = rate * dt / 1000
    near = round(hop)
    if near >= 1 and abs(hop - near) <= _HOP_TOLERANCE * near:
        return rate, near * 1000 / rate, near
    above = math.ceil(hop)
    if hop < 1 and audio_fs is None:
        raise ValueError(
            f"sounds at {float(rate):g} Hz have less than one sample per bin of {float(dt):g} ms: is that "
            "rate in kHz? It is in Hz, such as 44100"
        )
    if audio_fs is not None:
        legal = [float(k * 1000 / dt) for k in (above - 1, above) if k >= 1]
        raise ValueError(
            f"audio_fs={float(rate):g} Hz at dt_ms={float(dt):g} gives {float(hop):g} samples per bin, which "
            f"must be a whole number; take {' or '.join(f'{value:.10g}' for value in legal)} Hz, or "
            "audio_fs=None, which finds the nearest rate that keeps the sounds"
        )
    return above * 1000 / dt, dt, above


def bins_of(n_samples: int, fs: Fraction, dt: Fraction) -> int:
    """Whole bins of a sound; 12207 samples at 24414.0625 Hz are 0.5 s, less than one is missing."""
    per_bin = fs * dt / 1000
    bins = math.ceil((n_samples + 1) / per_bin)
    while bins and math.floor(bins * per_bin) > n_samples:
        bins -= 1
    return bins


def resampled(samples: npt.NDArray[Any], fs: Fraction, rate: Fraction) -> npt.NDArray[np.float32]:
    """(..., T) float32 at another rate, resampled in float64; unchanged where the rates are equal."""
    if fs == rate:
        return samples.astype(np.float32)
    return resample_exact(samples.astype(np.float64), fs, rate).astype(np.float32)


def place(values: npt.NDArray[np.float32], n_before: int, n_total: int) -> npt.NDArray[np.float32]:
    """(..., n_total): ``n_before`` zeros, the values, and zeros, or cut at the end."""
    out = np.zeros((*values.shape[:-1], n_total), dtype=np.float32)
    room = max(0, n_total - n_before)
    out[..., n_before : n_before + values.shape[-1]] = values[..., :room]
    return out
