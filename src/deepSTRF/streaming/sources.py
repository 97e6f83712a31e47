"""Sound in pieces for a stream: of a sound file, of a device (microphone, line in), of raw samples in a pipe.

A source is iterated once and gives chunks of one channel at the rate of a model, float32, one after another
without gaps. Its level is never changed: integers are divided by their full scale, as `open_recording` reads
them, and floats stay as they are. Another rate is resampled by the filter that datasets are resampled with,
so that the chunks are the samples of the whole sound; what that costs is ``delay_ms``.

**When the model is slower than the sound.** A file is read, and a pipe emptied, only when the next chunk is
asked for: nothing is lost, and who writes into the pipe waits. A device does not wait. Between its callback
and the model stands a queue of ``queue_ms``; when it is full, samples are dropped, and silence of the same
length comes in their place, so that the time of all later samples stays right. ``overruns`` counts this.
``overrun="stop"`` ends with an error instead.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import queue
import threading
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from deepSTRF._optional import require
from deepSTRF._text import printable
from deepSTRF._validation import (
    check_choice,
    check_positive_int,
    check_positive_number,
    checked,
    outside_level,
)
from deepSTRF.datasets.from_arrays import from_full_scale
from deepSTRF.datasets.sounds import exact_rate, mono, sound_blocks, sound_header
from deepSTRF.dsp.resample import SOXR_QUALITY, TAIL_SAMPLES, rate_ratio
from deepSTRF.models.fitted_on import FittedOn

__all__ = ["DeviceSource", "FileSource", "Overruns", "RawSource", "SoundSource", "sound_devices"]

Floats = npt.NDArray[np.float64]
#: The loudest second of a stream and the sounds of the fit may differ by so much (dB) without a warning.
LEVEL_RANGE_DB = 20.0
#: Silence in place of lost samples comes in pieces of up to so many seconds; a longer gap is a wrong clock.
LONGEST_GAP_S = 10.0
#: How often a waiting source looks whether its device runs, and after how long without sound it is lost.
POLL_S, LOST_AFTER_S = 0.1, 3.0
#: Little-endian formats of raw samples.
FORMATS = {"float32": "<f4", "int16": "<i2"}
#: Raw samples are read in pieces of up to so many ms, and files, too.
PIECE_MS = 100.0


@dataclass(frozen=True)
class Overruns:
    """Samples that were lost because nobody took them in time.

    Attributes
    ----------
    count : int
        How often samples were lost.
    seconds : float
        Their length, which is silence in the stream.
    unknown : int
        How often the device lost samples and did not state how many: there time is no longer exact.

    Examples
    --------
    >>> str(Overruns(2, 0.03)), str(Overruns())
    ('2 overruns, 30 ms replaced by silence', 'no overruns')
    """

    count: int = 0
    seconds: float = 0.0
    unknown: int = 0

    def __str__(self) -> str:
        if not self.count:
            return "no overruns"
        text = (
            f"{self.count} overrun{'s' * (self.count > 1)}, {1000 * self.seconds:.0f} ms replaced by silence"
        )
        return text + (f", {self.unknown} of unknown length" if self.unknown else "")


class SoundSource:
    """Chunks of one channel of sound at the rate of a model; the base of all sources.

    A source is iterated once. Used in a ``with`` block it is closed at its end.

    Attributes
    ----------
    name : str
        What is heard, in words.
    rate_in, rate : Fraction
        Sample rates in Hz of the sound and of the chunks.
    chunk_ms : float
        Length of the pieces that are read, in ms.
    delay_ms : float
        How much later than its sound a chunk comes at most, beside its own length: what resampling holds
        back, and the buffers of a device. 0 for a file or pipe at the rate of the model.
    overruns : Overruns
        What was lost so far.
    rms : float
        Root mean square of the loudest second so far; NaN before the first sample.
    seconds : float
        Length of the chunks that were given so far.

    Examples
    --------
    >>> import io
    >>> with RawSource(io.BytesIO(np.full(480, 0.5, "<f4").tobytes()), 48000, 48000) as source:
    ...     chunks = list(source)
    >>> len(chunks[0]), chunks[0].dtype.name, source.rms, source.seconds
    (480, 'float32', 0.5, 0.01)
    """

    def __init__(
        self, name: str, rate_in: Fraction, rate: Any, channel: int | str | None, seconds: float | None
    ) -> None:
        self.name, self.rate_in, self.rate = name, rate_in, exact_rate(rate, "rate")
        self._channel = channel
        length = None if seconds is None else check_positive_number("seconds", seconds)
        self._most = None if length is None else max(1, round(Fraction(length) * self.rate))
        self._resampler = None if self.rate_in == self.rate else _Resampler(self.rate_in, self.rate)
        self._meter = _Meter(max(1, round(self.rate)))
        self._n_given = 0
        self._started, self._closed = False, False
        self._reading: Generator[Floats, None, None] | None = None
        self.chunk_ms = 0.0

    @property
    def delay_ms(self) -> float:
        """How much later than its sound a chunk comes at most, in ms."""
        return 0.0 if self._resampler is None else 1000 * self._resampler.delay_s

    @property
    def overruns(self) -> Overruns:
        """What was lost so far."""
        return Overruns()

    @property
    def rms(self) -> float:
        """Root mean square of the loudest second so far."""
        return self._meter.loudest

    @property
    def seconds(self) -> float:
        """Length of the chunks so far."""
        return float(self._n_given / self.rate)

    def level_db(self, fitted_on: FittedOn | None) -> float:
        """Return the level of the loudest second, in dB above that of the sounds that a model was fitted on.

        Parameters
        ----------
        fitted_on : FittedOn or None
            ``model.fitted_on``.

        Returns
        -------
        float
            NaN where the model does not know the level of its sounds, or nothing has been heard.
        """
        known = None if fitted_on is None else fitted_on.rms
        if known is None and fitted_on is not None and fitted_on.level == "rms":
            known = 1.0  # the recording was brought to it
        if not known or math.isnan(self.rms):
            return math.nan
        return 20 * math.log10(self.rms / known) if self.rms > 0 else -math.inf

    def warn_of_level(self, fitted_on: FittedOn | None) -> bool:
        """Warn where the loudest second is far from the level of the sounds that a model was fitted on.

        Nothing is changed: what the right level is only the laboratory knows.

        Parameters
        ----------
        fitted_on : FittedOn or None
            ``model.fitted_on``.

        Returns
        -------
        bool
            Whether there was a warning: for a difference of more than 20 dB.

        Warns
        -----
        UserWarning
            With the difference in dB.
        """
        above = self.level_db(fitted_on)
        if math.isnan(above) or abs(above) <= LEVEL_RANGE_DB:
            return False
        if math.isinf(above):
            text = f"{self.name} is silent"
        else:
            side = "above" if above > 0 else "below"
            text = f"the loudest second of {self.name} is {abs(above):.0f} dB {side} the sounds of the fit"
        kind = (
            "" if fitted_on is None or fitted_on.level in (None, "raw") else f" (level={fitted_on.level!r})"
        )
        warnings.warn(
            f"{text}{kind}: the rates may mean nothing. The level of a stream is never changed; bring the "
            "sound to that of the recording, with the gain of the device or in the file",
            UserWarning,
            stacklevel=outside_level(),
        )
        return True

    def close(self) -> None:
        """Release the file or device; the iteration ends."""
        self._closed = True
        if self._reading is not None:
            with contextlib.suppress(ValueError):  # another thread waits in it, and will see
                self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        if self._started:
            raise ValueError(f"{self.name} has been heard already: make another source")
        self._started = True
        self._reading = self._blocks()
        with contextlib.closing(self._reading):  # a file is closed however the iteration ends
            for block in self._reading:
                if self._closed:
                    return
                chunk = block if self._resampler is None else self._resampler.push(block)
                chunk = chunk if self._most is None else chunk[: self._most - self._n_given]
                if chunk.size:
                    yield self._counted(chunk)
                if self._n_given == self._most:
                    return
        if self._resampler is not None and not self._closed:
            rest = self._resampler.finish()
            rest = rest if self._most is None else rest[: self._most - self._n_given]
            if rest.size:
                yield self._counted(rest)

    def _samples_of(self, chunk_ms: float) -> int:
        """Samples of a piece."""
        n_samples = max(1, round(Fraction(check_positive_number("chunk_ms", chunk_ms)) * self.rate_in / 1000))
        self.chunk_ms = float(1000 * n_samples / self.rate_in)
        return n_samples

    def _counted(self, chunk: Floats) -> npt.NDArray[np.float32]:
        self._meter.add(chunk)
        self._n_given += chunk.size
        return chunk.astype(np.float32)

    def _blocks(self) -> Generator[Floats, None, None]:
        """One channel at the rate of the sound, in pieces of any length."""
        raise NotImplementedError


class _Resampler:
    """`resample_exact` of a sound that comes in pieces: the same filter, samples and length."""

    def __init__(self, rate_in: Fraction, rate_out: Fraction) -> None:
        import soxr

        self.ratio = rate_ratio(rate_in, rate_out)
        terms = self.ratio.denominator, self.ratio.numerator
        self._soxr = soxr.ResampleStream(*terms, 1, dtype="float64", quality=SOXR_QUALITY)
        self._n_in = self._n_out = 0
        self.delay_s = self._measure(rate_in, rate_out)

    def push(self, samples: Floats) -> Floats:
        self._n_in += samples.size
        made: Floats = self._soxr.resample_chunk(np.ascontiguousarray(samples, dtype=np.float64))
        self._n_out += made.size
        return made

    def finish(self) -> Floats:
        """The samples that are still inside, as if silence followed."""
        n_rest = math.ceil(self._n_in * self.ratio) - self._n_out
        tail = np.zeros(math.ceil(TAIL_SAMPLES / self.ratio))
        made: Floats = self._soxr.resample_chunk(tail, last=True)[:n_rest]
        return made

    def _measure(self, rate_in: Fraction, rate_out: Fraction) -> float:
        """Longest time for which a sample is held back, measured with half a second in pieces of 1 ms."""
        piece, longest = np.zeros(max(1, int(rate_in / 1000))), Fraction(0)
        for _ in range(500):
            longest = max(longest, self._n_in * self.ratio - self._n_out)
            self.push(piece)
        self._soxr.clear()
        self._n_in = self._n_out = 0
        return float(longest / rate_out)


class _Meter:
    """Root mean square of the loudest second; of less than a second of that."""

    def __init__(self, n_second: int) -> None:
        self._n_second = n_second
        self._sum, self._n = 0.0, 0
        self._loudest: float | None = None

    def add(self, samples: Floats) -> None:
        while samples.size:
            part, samples = np.split(samples, [self._n_second - self._n])
            self._sum, self._n = self._sum + float(np.square(part).sum()), self._n + part.size
            if self._n == self._n_second:
                self._loudest = max(self._loudest or 0.0, math.sqrt(self._sum / self._n))
                self._sum, self._n = 0.0, 0

    @property
    def loudest(self) -> float:
        if self._loudest is not None:
            return self._loudest
        return math.sqrt(self._sum / self._n) if self._n else math.nan


# ---- files and pipes


@checked
class FileSource(SoundSource):
    """Chunks of a sound file, of any rate and number of channels, read as they are asked for.

    Parameters
    ----------
    path : path
        WAV, FLAC, MP3, OGG, AIFF and what else soundfile reads.
    rate : float
        Sample rate in Hz of the chunks: ``model.wav2spec.audio_fs``.
    channel : int, "mean" or None
        Which channel of several; with one it is that.
    chunk_ms : float
        Length of a chunk in ms.
    seconds : float, optional
        End after so much.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is damaged, holds no sound, or has several channels and none is chosen.

    Examples
    --------
    >>> import soundfile, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "tone.wav"
    >>> soundfile.write(path, 0.1 * np.sin(np.arange(44100) / 10), 44100)
    >>> source = FileSource(path, 48000)
    >>> sum(len(chunk) for chunk in source), 5 < source.delay_ms < 50
    (48000, True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rate: float | Fraction,
        *,
        channel: int | str | None = None,
        chunk_ms: float = PIECE_MS,
        seconds: float | None = None,
    ) -> None:
        self._path = Path(path)
        header = sound_header(self._path)
        if not header.frames:
            raise ValueError(f"{self._path} holds no samples")
        rate_in = exact_rate(header.samplerate, f"the rate of {self._path}")
        super().__init__(str(self._path), rate_in, rate, channel, seconds)
        mono(np.zeros((1, header.channels)), channel, self.name)  # before anything is computed
        self._n_block = self._samples_of(chunk_ms)

    def _blocks(self) -> Generator[Floats, None, None]:
        for block in sound_blocks(self._path, self._n_block):
            if len(block):
                yield mono(block, self._channel, self.name)


@checked
class RawSource(SoundSource):
    """Chunks of raw samples that come through a pipe, as ``sox`` and ``ffmpeg`` write them.

    Parameters
    ----------
    stream : binary file
        ``sys.stdin.buffer``, or any open binary file. It stays open.
    rate_in, rate : float
        Sample rates in Hz of the samples and of the chunks.
    format : {"float32", "int16"}
        Of the samples, little endian; int16 is divided by 32768.
    n_channels : int
        Channels that take turns in the samples.
    channel : int, "mean" or None
        Which channel of several; with one it is that.
    chunk_ms : float
        Longest chunk in ms: what is there is given at once.
    seconds : float, optional
        End after so much.

    Raises
    ------
    ValueError
        For samples that cannot be of that format.

    Warns
    -----
    UserWarning
        When the pipe ends within a sample.

    Examples
    --------
    >>> import io
    >>> pairs = np.array([[16384, 0], [-16384, 1]], "<i2")
    >>> source = RawSource(io.BytesIO(pairs.tobytes()), 8000, 8000, format="int16", n_channels=2, channel=0)
    >>> next(iter(source))
    array([ 0.5, -0.5], dtype=float32)
    """

    def __init__(
        self,
        stream: BinaryIO,
        rate_in: float | Fraction,
        rate: float | Fraction,
        *,
        format: str = "float32",
        n_channels: int = 1,
        channel: int | str | None = None,
        chunk_ms: float = PIECE_MS,
        seconds: float | None = None,
    ) -> None:
        check_choice("format", format, tuple(FORMATS))
        given: object = stream
        if not hasattr(given, "read") or isinstance(given, io.TextIOBase):
            raise TypeError(
                f"stream is an open binary file, such as sys.stdin.buffer, got {type(stream).__name__}"
            )
        super().__init__("the pipe", exact_rate(rate_in, "rate_in"), rate, channel, seconds)
        check_positive_int("n_channels", n_channels)
        mono(np.zeros((1, n_channels)), channel, self.name)
        self._stream, self._format, self._n_channels = stream, format, n_channels
        self._n_block = self._samples_of(chunk_ms)

    def _blocks(self) -> Generator[Floats, None, None]:
        kind = np.dtype(FORMATS[self._format])
        size = kind.itemsize * self._n_channels
        # what is there, instead of waiting until a whole piece is
        read = getattr(self._stream, "read1", self._stream.read)
        held, is_first = b"", True
        while data := read(self._n_block * size):
            held += data
            n_whole = len(held) // size * size
            if not n_whole:
                continue
            if is_first and held[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM"):
                raise ValueError(
                    f"the pipe begins with {held[:4].decode()}, as a sound file does, and raw samples are "
                    "wanted: sox FILE -t f32 -, or ffmpeg -i FILE -f f32le - (a file itself is for --wav)"
                )
            samples = np.frombuffer(held[:n_whole], dtype=kind).reshape(-1, self._n_channels)
            held, is_first = held[n_whole:], False
            yield self._read(samples)
        if held:
            warnings.warn(
                f"the pipe ended within a sample: {len(held)} of {size} bytes are there. Is it "
                f"{self._format} with {self._n_channels} channel(s)?",
                UserWarning,
                stacklevel=outside_level(),
            )

    def _read(self, samples: npt.NDArray[Any]) -> Floats:
        if samples.dtype.kind == "i":
            return mono(from_full_scale(samples, self.name), self._channel, self.name)
        try:
            with np.errstate(invalid="ignore"):  # what is no number is said below
                return mono(samples.astype(np.float64), self._channel, self.name)
        except ValueError as error:
            raise ValueError(f"{error}. Samples of another format look so: is it {self._format}?") from None


# ---- devices


def _sounddevice() -> Any:
    """The optional package, whose own error does not say where PortAudio comes from."""
    try:
        return require("sounddevice", "live")
    except OSError as error:
        raise ImportError(
            f"the package sounddevice is there, and the library that it uses is not ({error}): install it "
            "with: sudo apt install libportaudio2 (Debian, Ubuntu), sudo dnf install portaudio (Fedora), "
            "brew install portaudio, or conda install -c conda-forge portaudio"
        ) from error


def sound_devices() -> list[tuple[int, str, int, float]]:
    """Return the devices that sound can be recorded from (extra ``live``).

    Returns
    -------
    list of (int, str, int, float)
        Index, name, number of input channels and usual rate in Hz of each.

    Raises
    ------
    ImportError
        Where the package sounddevice or the library PortAudio is missing; the text says what to install.

    Examples
    --------
    >>> try:
    ...     found = sound_devices()
    ... except ImportError:
    ...     found = []
    >>> all(n_channels > 0 for _, _, n_channels, _ in found)
    True
    """
    return [
        (number, str(found["name"]), int(found["max_input_channels"]), float(found["default_samplerate"]))
        for number, found in enumerate(_sounddevice().query_devices())
        if found["max_input_channels"] > 0
    ]


@checked
class DeviceSource(SoundSource):
    """Chunks of what a microphone or another input hears, through PortAudio (extra ``live``).

    The device runs at the rate of the model where it can, else at its usual rate, and is resampled. It is
    opened at once and starts with the iteration, which ends with an error when the device is unplugged.

    Parameters
    ----------
    device : str, int or None
        Name, part of a name, or index of `sound_devices`; None is the usual input of the system.
    rate : float
        Sample rate in Hz of the chunks: ``model.wav2spec.audio_fs``.
    rate_in : float, optional
        Sample rate in Hz of the device.
    channel : int, "mean" or None
        Which channel; None opens the device with one.
    chunk_ms : float
        Length of a chunk in ms.
    queue_ms : float
        Sound that may wait for the model.
    overrun : {"silence", "stop"}
        What happens when more waits: samples are dropped and silence comes in their place, or an error ends
        the stream.
    seconds : float, optional
        End after so much.

    Raises
    ------
    ImportError
        Where the package sounddevice or the library PortAudio is missing; the text says what to install.
    ValueError
        For an unknown device, or a rate or number of channels that it does not have.
    OSError
        While it is iterated, when the device gives no more sound.
    RuntimeError
        While it is iterated, for an overrun with ``overrun="stop"``.

    Examples
    --------
    >>> try:
    ...     DeviceSource("no such microphone", 48000)
    ... except (ValueError, ImportError) as error:
    ...     print("PortAudio" in str(error) or "no such microphone" in str(error) or "live" in str(error))
    True
    """

    def __init__(
        self,
        device: str | int | None,
        rate: float | Fraction,
        *,
        rate_in: float | Fraction | None = None,
        channel: int | str | None = None,
        chunk_ms: float = 10.0,
        queue_ms: float = 1000.0,
        overrun: str = "silence",
        seconds: float | None = None,
    ) -> None:
        check_choice("overrun", overrun, ("silence", "stop"))
        portaudio = _sounddevice()
        found = _find_device(portaudio, device)
        self._n_channels = _n_channels(found, channel)
        wanted = {"device": found["index"], "channels": self._n_channels, "dtype": "float32"}
        used = _rate_of_device(portaudio, found, wanted, rate, rate_in)
        super().__init__(
            printable(found["name"]), used, rate, channel if self._n_channels > 1 else 0, seconds
        )
        self._n_block = self._samples_of(chunk_ms)
        n_waiting = max(
            2, math.ceil(check_positive_number("queue_ms", queue_ms) / 1000 * used / self._n_block)
        )
        self._queue: queue.Queue[tuple[int, Floats]] = queue.Queue(n_waiting)
        self._stops, self._fell_behind = overrun == "stop", False
        self._n_missed, self._n_lost, self._count, self._unknown = 0, 0, 0, 0
        self._expected = math.nan
        self._ended = threading.Event()
        try:
            self._device = portaudio.InputStream(
                samplerate=float(used), blocksize=self._n_block, latency="low", callback=self._hear,
                finished_callback=self._ended.set, **wanted,
            )  # fmt: skip
        except portaudio.PortAudioError as error:
            raise OSError(f"the device {self.name} could not be opened: {error}") from error

    @property
    def delay_ms(self) -> float:
        """How much later than its sound a chunk comes at most, in ms; the queue is not counted."""
        return super().delay_ms + 1000 * float(self._device.latency)

    @property
    def overruns(self) -> Overruns:
        """What was lost so far."""
        return Overruns(self._count, float(self._n_lost / self.rate_in), self._unknown)

    def close(self) -> None:
        """Stop the device."""
        if not self._closed:
            super().close()
            self._device.close(ignore_errors=True)

    def _hear(self, samples: Any, n_samples: int, time: Any, status: Any) -> None:
        """Take a block from PortAudio, in its own thread: nothing here waits or raises."""
        if self._fell_behind:
            return
        if getattr(status, "input_overflow", False):
            self._count += 1
            self._note_gap(time)
        start = getattr(time, "inputBufferAdcTime", 0.0)
        self._expected = start + n_samples / self.rate_in if start > 0 else math.nan
        try:
            self._queue.put_nowait((self._n_missed, np.array(samples, dtype=np.float64)))
            self._n_missed = 0
        except queue.Full:
            if self._stops:
                self._fell_behind = True
                return
            # one overrun is a row of lost blocks
            self._count += self._n_missed == 0
            self._n_missed += n_samples
            self._n_lost += n_samples

    def _note_gap(self, time: Any) -> None:
        """Samples that PortAudio lost before the callback, by the clock of the device."""
        gap = getattr(time, "inputBufferAdcTime", 0.0) - self._expected
        if not 0 < gap < LONGEST_GAP_S:  # also NaN: the device gives no times
            self._unknown += 1
            return
        lost = round(gap * self.rate_in)
        self._n_missed += lost
        self._n_lost += lost

    def _blocks(self) -> Generator[Floats, None, None]:
        self._device.start()
        waited = 0.0
        while True:
            try:
                n_missed, block = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if self._closed:
                    return
                waited += POLL_S
                self._check_runs(waited)
            else:
                waited = 0.0
                yield from self._with_silence(n_missed, block)

    def _with_silence(self, n_missed: int, block: Floats) -> Iterator[Floats]:
        """A block after the silence that stands for what was lost before it."""
        while n_missed:
            n_silent = min(n_missed, self._n_block)
            n_missed -= n_silent
            yield np.zeros(n_silent)
        yield mono(block, self._channel, self.name)

    def _check_runs(self, waited: float) -> None:
        """Raise an error where an empty queue stays empty."""
        ended = self._ended.is_set() or not self._device.active
        if not self._queue.empty():
            return
        if self._fell_behind:
            raise RuntimeError(
                f"the model fell behind {self.name}: more than {self._queue.maxsize} blocks waited. A "
                "smaller model, longer chunks or a longer queue may help; overrun='silence' goes on with gaps"
            )
        if ended or waited >= LOST_AFTER_S:
            what = "has stopped" if waited < LOST_AFTER_S else f"has given no sound for {LOST_AFTER_S:g} s"
            raise OSError(f"the device {self.name} {what}: is it unplugged, or taken by another program?")


def _find_device(portaudio: Any, device: str | int | None) -> dict[str, Any]:
    """What PortAudio knows of an input."""
    wanted = int(device) if isinstance(device, str) and device.isdecimal() else device
    try:
        found = dict(portaudio.query_devices(wanted, "input"))
    except (ValueError, portaudio.PortAudioError) as error:
        names = [name for _, name, _, _ in sound_devices()]
        there = "; there are " + ", ".join(map(repr, names)) if names else "; no input is connected"
        raise ValueError(
            f"no input device {'is set' if device is None else repr(device)} ({error}){there}. "
            "sound_devices() and deepstrf stream --list-devices list them"
        ) from error
    if not found.get("max_input_channels", 0):
        raise ValueError(f"the device {found['name']!r} has no input: sound_devices() lists those that have")
    return found


def _n_channels(found: dict[str, Any], channel: int | str | None) -> int:
    """Channels that the device is opened with."""
    most = int(found["max_input_channels"])
    if channel is None:
        return 1
    mono(np.zeros((1, most)), channel, found["name"])
    return most if isinstance(channel, str) else channel + 1


def _rate_of_device(
    portaudio: Any, found: dict[str, Any], wanted: dict[str, Any], rate: Any, own: Any
) -> Fraction:
    """Rate of a device: the one asked for, that of the model where the device has it, else its usual."""
    usual = exact_rate(found["default_samplerate"], "the usual rate of the device")
    tried = [exact_rate(rate, "rate"), usual] if own is None else [exact_rate(own, "rate_in")]
    for one in tried:
        try:
            portaudio.check_input_settings(samplerate=float(one), **wanted)
        except portaudio.PortAudioError as error:
            problem = error
        else:
            return one
    rates = " and ".join(f"{float(one):g} Hz" for one in dict.fromkeys(tried))
    raise ValueError(
        f"the device {found['name']!r} does not run at {rates} with {wanted['channels']} channel(s) "
        f"({problem}). It has {found['max_input_channels']} channels and the usual rate {float(usual):g} Hz: "
        "choose with rate_in and channel"
    )
