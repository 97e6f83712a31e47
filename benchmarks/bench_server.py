"""What one `Server` serves: `python benchmarks/bench_server.py [--clients 1 10 100] [--chunks 20 50] [--seconds 3]`.

Server and clients run in a process each, on one machine. Two tables:

- shared: processor time of one batched `Stream` for all clients against a `Stream` of its own for each, on the same
  chunks, interleaved in one process, without a network: why clients share a batch.
- served: the server beside an echo of the same library, which has no model and sends the same bytes back. Paced:
  every client sends in real time; latency from before sending a chunk to having its rates. Flat out: every client
  keeps a few chunks on the way; seconds of sound per second, of all clients together (streams x real-time factor),
  and processor time of the serving process per chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.streaming import ExportedModel, Server, ServerLimits, Stream

FS, DT_MS, BANDS, NEURONS = 48_000, 5.0, 34, 119
#: Chunks of one client that are on the way.
WINDOW = 4
ECHO = "echo"


def mel_linear() -> NeuralModel:
    front_end = make_wav2spec("mel", FS, DT_MS, n_filters=BANDS)
    return Linear(BANDS, 9, out_neurons=NEURONS, wav2spec=front_end)


def gammatone_gru() -> NeuralModel:
    front_end = make_wav2spec("gammatone", FS, DT_MS, n_filters=BANDS)
    return StateNet(BANDS, 9, out_neurons=NEURONS, wav2spec=front_end)


def graph_of(make: Callable[[], NeuralModel]) -> Callable[[], ExportedModel]:
    """The same model as its exported graph."""

    def exported() -> ExportedModel:
        with tempfile.TemporaryDirectory() as folder:
            return ExportedModel(make().export(folder, graphs=["step"]))

    return exported


MODELS: dict[str, Callable[[], NeuralModel | ExportedModel]] = {
    "mel+Linear": mel_linear,
    "  its graph": graph_of(mel_linear),
    "gammatone+StateNet": gammatone_gru,
    "   its graph": graph_of(gammatone_gru),
}


def chunk_of(ms: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(FS * ms // 1000).astype("<f4") * np.float32(0.1)


def shared(
    make: Callable[[], NeuralModel | ExportedModel], clients: int, ms: int, rounds: int = 5
) -> tuple[float, float]:
    """Processor ms per chunk: one batch, and one stream each."""
    model = make()
    batch, alone = Stream(model, clients), [Stream(model) for _ in range(clients)]
    chunks = np.stack([chunk_of(ms, seed) for seed in range(clients)])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        begin = time.process_time()
        batch.push(chunks)
        middle = time.process_time()
        for stream, chunk in zip(alone, chunks, strict=True):
            stream.push(chunk)
        times[0].append(middle - begin)
        times[1].append(time.process_time() - middle)
    together, apart = (1e3 * float(np.median(one)) / clients for one in times)
    return together, apart


# ---- the process that serves


@contextmanager
def echo() -> Iterator[str]:
    """Address of a server in a thread that sends back what it gets."""
    started: list[Any] = []
    ready = threading.Event()

    async def answer(connection: ServerConnection) -> None:
        await connection.send("{}")
        with suppress(ConnectionClosed):
            async for message in connection:
                await connection.send(message)

    async def run() -> None:
        async with serve_websocket(answer, "127.0.0.1", 0, compression=None) as server:
            stop = asyncio.Event()
            port = server.sockets[0].getsockname()[1]
            started.extend([asyncio.get_running_loop(), stop, f"ws://127.0.0.1:{port}"])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    yield started[2]
    started[0].call_soon_threadsafe(started[1].set)
    thread.join()


def serve(name: str, clients: int, pipe: Connection) -> None:
    """Serve until "end"; other words are answered with the processor time so far."""
    torch.set_num_threads(1)
    limits = ServerLimits(clients=clients, speed=1e4, messages_per_s=1e6)
    with echo() if name == ECHO else Server(MODELS[name](), limits=limits) as serving:
        pipe.send(serving if isinstance(serving, str) else serving.url)
        while pipe.recv() != "end":
            pipe.send(time.process_time())


# ---- the process of the clients


async def paced_client(url: str, ms: int, seconds: float, delays: list[float], start: float) -> None:
    """Send in real time, and read beside it."""
    chunk, count = chunk_of(ms).tobytes(), int(1000 * seconds / ms)
    sent: list[float] = []
    async with connect(url, compression=None, ping_interval=None) as stream:
        await stream.recv()

        async def read() -> None:
            for index in range(count):
                await stream.recv()
                delays.append(time.perf_counter() - sent[index])

        reading = asyncio.create_task(read())
        due = start + np.random.default_rng().uniform(0, ms / 1000)
        for index in range(count):
            await asyncio.sleep(max(0.0, due + index * ms / 1000 - time.perf_counter()))
            sent.append(time.perf_counter())
            await stream.send(chunk)
        await asyncio.wait_for(reading, 120)


async def eager_client(url: str, ms: int, until: float, answered: list[int]) -> None:
    """Keep `WINDOW` chunks on the way."""
    chunk = chunk_of(ms).tobytes()
    async with connect(url, compression=None, ping_interval=None) as stream:
        await stream.recv()
        for _ in range(WINDOW):
            await stream.send(chunk)
        while time.perf_counter() < until:
            await stream.recv()
            answered.append(ms)
            await stream.send(chunk)


async def paced(url: str, clients: int, ms: int, seconds: float) -> list[float]:
    delays: list[float] = []
    start = time.perf_counter() + 0.02 * clients
    await asyncio.gather(*(paced_client(url, ms, seconds, delays, start) for _ in range(clients)))
    return delays


async def flat_out(url: str, clients: int, ms: int, seconds: float) -> tuple[int, float]:
    """Chunks that were answered, and seconds that it took."""
    answered: list[int] = []
    start = time.perf_counter()
    await asyncio.gather(*(eager_client(url, ms, start + seconds, answered) for _ in range(clients)))
    return len(answered), time.perf_counter() - start


def served(name: str, clients: int, chunks: list[int], seconds: float) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(name, clients, theirs))
    process.start()
    url = ours.recv()

    def used() -> float:
        ours.send("time")
        return float(ours.recv())

    for ms in chunks:
        delays = asyncio.run(paced(url, clients, ms, seconds))
        median, late = np.percentile(delays, [50, 99]) * 1e3
        before = used()
        count, taken = asyncio.run(flat_out(url, clients, ms, seconds))
        cost = 1e3 * (used() - before) / count
        print(
            f"{name:20} {clients:4} clients {ms:3} ms  paced: median {median:7.1f} ms, 99 % {late:7.1f} ms; "
            f"flat out: {count * ms / 1000 / taken:6.1f} s of sound per s, {cost:.3f} ms of processor per chunk",
            flush=True,
        )
    ours.send("end")
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--chunks", type=int, nargs="+", default=[20, 50], help="in ms, whole bins of 5 ms")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, make in MODELS.items():
        for ms in (5, *options.chunks):
            together, apart = shared(make, max(options.clients), ms)
            print(
                f"{name:20} {max(options.clients):4} clients {ms:3} ms  one batch {together:.3f} ms of processor per "
                f"chunk, a stream each {apart:.3f}: {apart / together:.1f} times",
                flush=True,
            )
    for clients in options.clients:
        for name in (ECHO, *MODELS):
            served(name, clients, options.chunks, options.seconds)


if __name__ == "__main__":
    main()
