"""Time live streams: `python benchmarks/bench_stream.py [NAME ...] [--seconds 60] [--hour]`.

60 s of noise at 48 kHz reach a `Stream` in chunks of 5 ms (240 samples, one bin), one push each, on one core; 34 bands, 119
neurons. A stream runs a model, and its exported graph. Wall-clock and processor time of every push are kept: the second
leaves out what other processes take. Asked: at least 10 times faster than real time, 99th percentile of at most 2 ms.
`--hour` pushes an hour of sound in chunks of random sizes up to 0.1 s and prints how the resident memory grew after the
first minute.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import GatedNet, Linear, StateNet, Transformer
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.streaming import ExportedModel, Stream

FS, BANDS, NEURONS, CHUNK = 48000, 34, 119, 240
WARM_UP = 50


def front_end(kind: str) -> torch.nn.Module:
    return make_wav2spec(kind, audio_fs=FS, dt_ms=5.0, n_filters=BANDS)


MODELS: dict[str, Callable[[], NeuralModel]] = {
    "leaf+linear": lambda: Linear(BANDS, 9, NEURONS, wav2spec=front_end("leaf")),
    "gammatone+gru": lambda: StateNet(BANDS, out_neurons=NEURONS, wav2spec=front_end("gammatone")),
    "gammatone+s4": lambda: StateNet(
        BANDS, out_neurons=NEURONS, rnn_type="S4", wav2spec=front_end("gammatone")
    ),
    "mel+transformer": lambda: Transformer(
        BANDS, out_neurons=NEURONS, context_window=60, wav2spec=front_end("mel")
    ),
    "gammatone+gatednet": lambda: GatedNet(BANDS, out_neurons=NEURONS, wav2spec=front_end("gammatone")),
}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def pushes(stream: Stream, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Wall-clock and processor time (ms) of every push of a chunk of 5 ms."""
    sound = 0.1 * np.random.default_rng(0).standard_normal(FS).astype(np.float32)
    chunks = sound.reshape(-1, CHUNK)
    for chunk in chunks[:WARM_UP]:
        stream.push(chunk)
    stream.reset()
    gc.collect()
    n = round(seconds * FS / CHUNK)
    wall, processor = np.empty(n), np.empty(n)
    for index in range(n):
        chunk = chunks[index % len(chunks)]
        a, b = time.perf_counter(), time.thread_time()
        stream.push(chunk)
        wall[index], processor[index] = time.perf_counter() - a, time.thread_time() - b
    return 1000.0 * wall, 1000.0 * processor


def hour(stream: Stream) -> tuple[float, float]:
    """Resident memory in MB after a minute of sound and after an hour, in chunks of random sizes."""
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.standard_normal(FS).astype(np.float32)
    marks, pushed, start = [60 * FS, 3600 * FS], 0, 0.0
    for mark in marks:
        while pushed < mark:
            size = int(rng.integers(0, FS // 10))
            stream.push(sound[:size])
            pushed += size
        gc.collect()
        start, end = (resident_mb(), 0.0) if mark == marks[0] else (start, resident_mb())
    return start, end


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(MODELS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of sound in chunks of 5 ms")
    parser.add_argument("--hour", action="store_true", help="push an hour of sound too, and watch the memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<20}{'processor time':^38}{'wall-clock time':^38}")
    titles = "".join(f"{name:>12}" for name in ("x real time", "median ms", "p99 ms"))
    print(f"{'':<20}{titles}  {titles}" + ("   MB after 1 min, 1 h" if options.hour else ""))
    for name in options.names or MODELS:
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        with tempfile.TemporaryDirectory() as folder:
            graph = ExportedModel(model.export(folder, graphs=["step"]))
        for title, runs in ((name, model), ("  its graph", graph)):
            stream = Stream(runs)
            cells = ""
            for times in reversed(pushes(stream, options.seconds)):
                factor = 1000.0 * options.seconds / times.sum()
                median, late = np.percentile(times, [50, 99])
                cells += f"{factor:>12.1f}{median:>12.3f}{late:>12.3f}  "
            memory = "   {:.1f}, {:.1f}".format(*hour(stream)) if options.hour else ""
            print(f"{title:<20}{cells}{memory}", flush=True)


if __name__ == "__main__":
    main()
