"""``deepstrf stream``: a model hears a file, a device or a pipe; its rates are drawn, printed, written."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table
from rich.text import Text

from deepSTRF._files import check_target, npz_bytes, replace_file, write_atomically
from deepSTRF._text import csv_table, printable
from deepSTRF._validation import check_choice, first_names, neuron_indices
from deepSTRF.cli.console import stdout_console
from deepSTRF.cli.errors import INTERRUPTED, REFUSALS, UsageProblem, say, usage
from deepSTRF.cli.fitted import load_for_streams
from deepSTRF.cli.live_view import RateView
from deepSTRF.models import NeuralModel
from deepSTRF.models.fitted_on import output_names
from deepSTRF.streaming import DeviceSource, ExportedModel, FileSource, RawSource, Stream, sound_devices
from deepSTRF.streaming.sources import SoundSource

__all__ = ["Request", "print_devices", "stream_and_print"]

Rates = npt.NDArray[Any]
#: Start of a CSV file of rates; another file is not replaced.
START_OF_CSV = b"time_s,"
START_OF_NPZ = b"PK\x03\x04"
#: Default length of a chunk in ms: a device is to be heard soon, files and pipes fast.
DEVICE_CHUNK_MS, CHUNK_MS = 10.0, 100.0
#: The level is compared with that of the fit after so much sound, else at the end.
LEVEL_AFTER_S = 5.0


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None where a flag was not given."""

    run: str | None
    wav: Path | None
    device: str | None
    stdin: bool
    rate: float | None
    sample_format: str | None
    n_channels: int | None
    channel: str | None
    neurons: str | None
    seconds: float | None
    chunk_ms: float | None
    queue_ms: float | None
    overrun: str | None
    out: Path | None
    seed: int | None
    real_time: bool
    rows: bool
    quiet: bool


def print_devices() -> None:
    """Print the devices that sound can be recorded from."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in ("device", "name", "channels", "usual rate"):
        table.add_column(name, justify="left" if name == "name" else "right", overflow="fold")
    found = sound_devices()
    for number, name, n_channels, rate in found:
        table.add_row(str(number), Text(printable(name)), str(n_channels), f"{rate:g} Hz")
    stdout_console().print(table if found else "No input device is connected.")


def stream_and_print(request: Request) -> None:
    """Run a model on a source until that ends; print a summary. Ctrl-C ends it, too."""
    run = _check_request(request)
    model = load_for_streams(run, request.seed)
    names = output_names(model)
    with usage():
        stream = _stream_of(model, run)
        chosen = _chosen_neurons(names, request.neurons)
        unit = _unit_of(model)
        source = _in_words_of_flags(request, stream.audio_fs)
    listener = _Listener(model, stream, source, chosen, real_time=request.real_time)
    with source:
        sinks = _sinks_of(request, listener, [names[k] for k in chosen], unit)
        listener.listen(sinks)
    _print_summary(listener, request.out, err=listener.prints_rows)
    if listener.problem is not None:
        raise listener.problem
    if listener.interrupted and request.wav is not None:  # what was asked for is not all there
        raise typer.Exit(INTERRUPTED)


# ---- what was asked for


def _check_request(request: Request) -> str:
    """Return what names the model, where the flags go together."""
    if request.run is None:
        raise UsageProblem(
            "name the model: a run folder, a checkpoint, an export, or one that ships, ns1/leaf-linear"
        )
    given = [request.wav is not None, request.device is not None, request.stdin]
    if sum(given) != 1:
        raise UsageProblem(
            f"say what the model hears: {'one of ' if any(given) else ''}--wav FILE, --device NAME (or "
            "--device default; --list-devices lists them) or --stdin"
        )
    if request.stdin and request.rate is None:
        raise UsageProblem("raw samples do not say their rate: --stdin needs --rate HZ")
    for flag, value, where in (
        ("--rate", request.rate, not request.wav),
        ("--sample-format", request.sample_format, request.stdin),
        ("--channels", request.n_channels, request.stdin),
        ("--queue-ms", request.queue_ms, request.device),
        ("--overrun", request.overrun, request.device),
        ("--real-time", request.real_time or None, request.wav),
    ):
        if value is not None and not where:
            kinds = {"--rate": "--device and --stdin", "--real-time": "--wav"}
            kind = kinds.get(flag, "--device" if flag in ("--queue-ms", "--overrun") else "--stdin")
            raise UsageProblem(f"{flag} is for {kind}: leave it out")
    with usage(*REFUSALS, OSError):
        check_choice("--overrun", request.overrun, (None, "silence", "stop"))
        check_choice("--sample-format", request.sample_format, (None, "float32", "int16"))
        if request.out is not None:
            starts = {".csv": START_OF_CSV, ".npz": START_OF_NPZ}
            if request.out.suffix.lower() not in starts:
                raise UsageProblem(f"--out {request.out}: rates are written as .csv or .npz")
            check_target(request.out, starts[request.out.suffix.lower()])
    return request.run


def _stream_of(model: NeuralModel | ExportedModel, run: str) -> Stream:
    stream = Stream(model)
    if stream.audio_fs is None:
        raise ValueError(
            f"{run} hears spectrograms, and streams are sound: take a model with a front-end, such as "
            "ns1/leaf-linear, or fit one: deepstrf fit --wav2spec mel"
        )
    return stream


def _chosen_neurons(names: list[str], text: str | None) -> list[int]:
    """Outputs by names or indices; None is all."""
    if text is None:
        return list(range(len(names)))
    chosen = []
    for word in filter(None, map(str.strip, text.split(","))):
        if word in names:
            chosen.append(names.index(word))
            continue
        try:
            chosen += neuron_indices(int(word), len(names))
        except ValueError:
            raise ValueError(
                f"there is no neuron {word!r}; the model has {len(names)}: {first_names(names)}. Give names, "
                f"or indices from 0 to {len(names) - 1}"
            ) from None
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"--neurons names different neurons, with commas, got {text!r}")
    return chosen


def _unit_of(model: NeuralModel | ExportedModel) -> str:
    return (None if model.fitted_on is None else model.fitted_on.response_unit) or "unit of the responses"


def _in_words_of_flags(request: Request, audio_fs: float | None) -> SoundSource:
    """The source; its errors name flags in place of arguments."""
    try:
        return _source_of(request, audio_fs)
    except ValueError as error:
        if type(error) is not ValueError:  # a damaged file
            raise
        text = re.sub(r"\b(channel|overrun)='?(\w+)'?", r"--\1 \2", str(error))
        for name, flag in (("rate_in", "--rate"), ("chunk_ms", "--chunk-ms"), ("n_channels", "--channels")):
            text = text.replace(name, flag)
        raise ValueError(text) from None


def _source_of(request: Request, audio_fs: float | None) -> SoundSource:
    rate = audio_fs or 0.0
    channel = request.channel
    usual_ms = DEVICE_CHUNK_MS if request.device is not None else CHUNK_MS
    common: dict[str, Any] = {
        "channel": int(channel) if channel is not None and channel.isdecimal() else channel,
        "chunk_ms": usual_ms if request.chunk_ms is None else request.chunk_ms,
        "seconds": request.seconds,
    }
    if request.wav is not None:
        return FileSource(request.wav, rate, **common)
    if request.stdin:
        return RawSource(
            sys.stdin.buffer, request.rate or 0.0, rate, format=request.sample_format or "float32",
            n_channels=1 if request.n_channels is None else request.n_channels, **common,
        )  # fmt: skip
    return DeviceSource(
        None if request.device == "default" else request.device, rate, rate_in=request.rate,
        queue_ms=1000.0 if request.queue_ms is None else request.queue_ms,
        overrun=request.overrun or "silence", **common,
    )  # fmt: skip


# ---- sound in, rates out


class _Sink(Protocol):
    """Where rates go."""

    def add(self, rates: Rates, first: int) -> None:
        """Take the next bins (N, n), the first of which has that number."""


class _Listener:
    """A model that hears a source to its end, or to Ctrl-C, or to a problem."""

    def __init__(
        self,
        model: NeuralModel | ExportedModel,
        stream: Stream,
        source: SoundSource,
        neurons: list[int],
        *,
        real_time: bool,
    ) -> None:
        self.stream, self.source, self.neurons = stream, source, neurons
        self.fitted_on = model.fitted_on
        self.dt_ms = stream.dt_ms or 1000 * stream.hop / float(source.rate)
        self.view: RateView | None = None
        self.prints_rows, self.interrupted = False, False
        self.problem: Exception | None = None
        self._real_time, self._level_is_known = real_time, False

    def listen(self, sinks: list[contextlib.AbstractContextManager[_Sink]]) -> None:
        """Push all chunks; sinks are closed well whatever ends it, so that what was heard is kept."""
        with contextlib.ExitStack() as stack:
            taking = [stack.enter_context(sink) for sink in sinks]
            with _Interrupts() as interrupts:
                try:
                    self._push_all(taking, interrupts)
                except KeyboardInterrupt:
                    self.interrupted = True
                except BrokenPipeError:  # ``| head``: who reads has enough
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                except (OSError, RuntimeError, ValueError) as error:
                    self.problem = error
            self._compare_level(at_the_end=True)

    def _push_all(self, sinks: list[_Sink], interrupts: _Interrupts) -> None:
        started, first = time.monotonic(), 0
        for chunk in self.source:
            with interrupts.held():
                rates = self.stream.push(chunk)[self.neurons]
                for sink in sinks:
                    sink.add(rates, first)
                first += rates.shape[1]
                self._compare_level()
                if self.view is not None:
                    self.view.show(self.source.seconds, self.status)
            if self._real_time:
                time.sleep(max(0.0, started + self.source.seconds - time.monotonic()))

    def _compare_level(self, *, at_the_end: bool = False) -> None:
        if not self._level_is_known and (at_the_end or self.source.seconds >= LEVEL_AFTER_S):
            self._level_is_known = self.source.warn_of_level(self.fitted_on) or self.source.seconds > 0

    def status(self) -> str:
        """One line on speed, level and overruns."""
        timing = self.stream.timing()
        level = self.source.level_db(self.fitted_on)
        parts = [f"{timing.real_time_factor:.3g}x real time", f"{timing.median_ms:.2g} ms a chunk"]
        parts += [] if np.isnan(level) else [f"level {level:+.0f} dB"]
        return " | ".join([*parts, str(self.source.overruns)])


class _Interrupts:
    """Ctrl-C between chunks at once, within one when that is done; the second one always at once."""

    def __init__(self) -> None:
        self._is_held, self._waits = False, False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_: object) -> None:
        if not self._is_held or self._waits:
            raise KeyboardInterrupt
        self._waits = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._waits:
            raise KeyboardInterrupt


# ---- where rates go


def _sinks_of(
    request: Request, listener: _Listener, names: list[str], unit: str
) -> list[contextlib.AbstractContextManager[Any]]:
    """The file, and the view or rows on stdout."""
    facts = {"dt_ms": listener.dt_ms, "unit": unit}
    sinks: list[contextlib.AbstractContextManager[Any]] = []
    if request.out is not None:
        is_csv = request.out.suffix.lower() == ".csv"
        sinks.append(
            _csv_file(request.out, names, listener.dt_ms) if is_csv else _npz_file(request.out, names, facts)
        )
    if request.quiet:
        return sinks
    console = stdout_console()
    if not request.rows and console.is_terminal and not console.is_dumb_terminal:
        title = f"{request.run} hears {listener.source.name}"
        numbered = list(zip(listener.neurons, names, strict=True))
        listener.view = RateView(console, title, numbered, listener.dt_ms, unit)
        sinks.append(_viewed(listener.view))
    elif request.rows or request.out is None:
        listener.prints_rows = True
        sinks.append(contextlib.nullcontext(_Rows(sys.stdout, names, listener.dt_ms)))
    return sinks


class _Rows:
    """Rates as rows of CSV: the start of the bin in seconds, and one column per neuron."""

    def __init__(self, file: IO[str], names: list[str], dt_ms: float) -> None:
        self._file, self._dt_s = file, dt_ms / 1000
        file.write(csv_table([["time_s", *map(printable, names)]]))
        file.flush()

    def add(self, rates: Rates, first: int) -> None:
        rows = (
            ",".join([f"{k * self._dt_s:.9g}", *(f"{value:.7g}" for value in column)])
            for k, column in enumerate(rates.T.tolist(), start=first)
        )
        self._file.write("".join(f"{row}\n" for row in rows))
        self._file.flush()


@contextlib.contextmanager
def _csv_file(path: Path, names: list[str], dt_ms: float) -> Iterator[_Sink]:
    with replace_file(path) as temporary, open(temporary, "x", encoding="utf-8", newline="") as file:
        yield _Rows(file, names, dt_ms)


class _Kept:
    """Rates in memory."""

    def __init__(self) -> None:
        self.parts: list[Rates] = []

    def add(self, rates: Rates, first: int) -> None:
        if rates.shape[1]:
            self.parts.append(rates)


@contextlib.contextmanager
def _npz_file(path: Path, names: list[str], facts: dict[str, Any]) -> Iterator[_Sink]:
    kept = _Kept()
    yield kept
    rates = np.concatenate(kept.parts, axis=1) if kept.parts else np.zeros((len(names), 0), np.float32)
    times = np.arange(rates.shape[1]) * facts["dt_ms"] / 1000
    arrays = {"rates": rates, "time_s": times, "neurons": np.array(names), **facts}
    write_atomically(path, npz_bytes(arrays))


class _Viewed:
    def __init__(self, view: RateView) -> None:
        self._view = view

    def add(self, rates: Rates, first: int) -> None:
        self._view.add(rates)


@contextlib.contextmanager
def _viewed(view: RateView) -> Iterator[_Sink]:
    with view:
        yield _Viewed(view)


# ---- the end


def _print_summary(listener: _Listener, out: Path | None, *, err: bool) -> None:
    """Print what was heard, how fast, how late, and what was lost."""
    stream, source, timing = listener.stream, listener.source, listener.stream.timing()
    n_bins = stream.frames[0]
    resampled = "" if source.rate_in == source.rate else f" at {float(source.rate_in):g} Hz, resampled"
    ended = ", until Ctrl-C" if listener.interrupted else ""
    lines = [
        f"Heard     {source.seconds:.2f} s of {printable(source.name)}{resampled}{ended}: {n_bins} bins of "
        f"{listener.dt_ms:g} ms",
    ]
    if n_bins:
        lines += [
            f"Speed     {timing.real_time_factor:.3g} times real time; {timing.chunks} chunks, median "
            f"{timing.median_ms:.3g} ms, 99th percentile {timing.p99_ms:.3g} ms",
            f"Latency   {stream.latency_ms + source.chunk_ms + source.delay_ms:.1f} ms: bin and front-end "
            f"{stream.latency_ms:.1f}, chunk {source.chunk_ms:.1f}, resampling and buffers "
            f"{source.delay_ms:.1f}",
        ]
    lines.append(f"Overruns  {str(source.overruns).removeprefix('no overruns') or 'none'}")
    if isinstance(source, DeviceSource) and timing.real_time_factor < 1:
        lines.append("The model is slower than the sound: it cannot keep up with a device on this machine.")
    for line in lines:
        say(line, err=err)
    if out is not None:
        say(f"Rates     {out.resolve()}", err=err)
