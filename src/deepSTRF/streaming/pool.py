"""Independent streams of many clients through one batched `Stream`, run by one thread in rounds.

In a round every client with whole frames takes part with up to `MOST_FRAMES` of them, rounded down to a power
of two: a client with much sound takes no more than its share, and few steps of the model serve all. What one
client does touches its own place in the batch only.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepSTRF.streaming.stream import Stream

__all__ = ["Answer", "PooledStream", "StreamPool"]

#: Most frames of one client in a round; a power of two.
MOST_FRAMES = 16

Samples: TypeAlias = NDArray[np.float32]
Job: TypeAlias = Samples | Literal["reset", "flush"]

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What one message of a client comes to: rates, or an error, the last answer; neither for a reset."""

    stream: PooledStream
    #: Number of the first frame of ``rates`` since the last reset.
    frame: int = 0
    #: (n_frames, N), n_frames of 0 where the message completed no frame.
    rates: Samples | None = None
    #: Code and text of an error.
    error: tuple[str, str] | None = None


@dataclass(eq=False)
class PooledStream:
    """One client's place in the pool; only the thread of the pool changes it."""

    owner: Any
    slot: int = -1
    #: Messages that wait.
    jobs: deque[Job] = field(default_factory=deque)
    #: Samples that were taken from messages and not computed yet.
    held: Samples = field(default_factory=lambda: np.empty(0, np.float32))
    #: Number of the frame with which each message in work is complete.
    ends: deque[int] = field(default_factory=deque)
    #: Samples taken, frames computed and frames answered since the last reset.
    samples: int = 0
    computed: int = 0
    answered: int = 0
    #: Rates that were computed and not answered yet, (n, N).
    ready: Samples | None = None
    failed: bool = False


class StreamPool:
    """Thread that runs one batched `Stream` for many clients.

    ``stream`` has a place for every client; ``n_bands`` is None for sound. ``deliver`` gets the answers of a
    round, in that thread. `open`, `submit` and `release` only write into an inbox and return at once.
    Each message is answered once, in order.
    """

    def __init__(self, stream: Stream, n_bands: int | None, deliver: Callable[[list[Answer]], None]) -> None:
        self._stream, self._deliver = stream, deliver
        self._hop, self._bands = stream.hop, n_bands
        self._free = list(range(stream.batch))
        self._open: dict[PooledStream, None] = {}
        self._active: dict[PooledStream, None] = {}
        self._inbox: list[tuple[PooledStream, Job | Literal["open", "release"]]] = []
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="deepSTRF-pool", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after the batch in work."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def open(self, owner: Any) -> PooledStream:
        """Return the place of a new client, of whom ``owner`` reminds the receiver of its answers."""
        stream = PooledStream(owner)
        self.submit(stream, "open")
        return stream

    def release(self, stream: PooledStream) -> None:
        """Give a place back."""
        self.submit(stream, "release")

    def submit(self, stream: PooledStream, job: Job | Literal["open", "release"]) -> None:
        """Put samples, (n,) or (n, F) frames, or a command in the queue of a client."""
        with self._condition:
            self._inbox.append((stream, job))
            self._condition.notify()

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._inbox or self._active or self._closing):
                    self._condition.wait()
                if self._closing:
                    return
                inbox, self._inbox = self._inbox, []
            try:
                self._sort(inbox)
                self._round()
            except Exception:
                # a fault of ours: without this, every client would wait for ever
                logger.exception("a round failed")
                self._deliver([self._fail(stream, "failed", "the server failed") for stream in self._open])

    def _sort(self, inbox: Sequence[tuple[PooledStream, Any]]) -> None:
        for stream, job in inbox:
            if isinstance(job, str) and job == "open":
                stream.slot = self._free.pop()
                self._open[stream] = None
                self._clear(stream)
            elif isinstance(job, str) and job == "release":
                self._active.pop(stream, None)
                if stream in self._open:
                    del self._open[stream]
                    self._free.append(stream.slot)
                stream.failed = True
            elif not stream.failed:
                stream.jobs.append(job)
                self._active[stream] = None

    def _clear(self, stream: PooledStream) -> None:
        self._stream.reset(streams=[stream.slot])
        shape = (0,) if self._bands is None else (0, self._bands)
        stream.held = np.empty(shape, np.float32)
        stream.samples = stream.computed = stream.answered = 0

    def _round(self) -> None:
        answers: list[Answer] = []
        batches: dict[int, list[PooledStream]] = {}
        for stream in list(self._active):
            n_frames = self._next_frames(stream, answers)
            if n_frames:
                batches.setdefault(n_frames, []).append(stream)
            else:
                del self._active[stream]
        for n_frames, streams in sorted(batches.items()):
            self._compute(n_frames, streams, answers)
        if answers:
            self._deliver(answers)

    def _next_frames(self, stream: PooledStream, answers: list[Answer]) -> int:
        """Take waiting messages of a client; return how many of its frames the round computes."""
        while True:
            while stream.jobs and len(stream.held) < MOST_FRAMES * self._hop:
                job = stream.jobs[0]
                if isinstance(job, str) and job == "reset":
                    if stream.ends:
                        break  # what came before is computed first
                    self._clear(stream)
                    answers.append(Answer(stream))
                elif isinstance(job, str):
                    missing = -stream.samples % self._hop
                    self._take(stream, np.zeros((missing, *stream.held.shape[1:]), np.float32))
                else:
                    self._take(stream, job)
                stream.jobs.popleft()
                self._answer(stream, answers)
            whole = len(stream.held) // self._hop
            if whole:
                return min(1 << (whole.bit_length() - 1), MOST_FRAMES)
            if not stream.jobs:
                return 0

    def _take(self, stream: PooledStream, samples: Samples) -> None:
        stream.held = np.concatenate([stream.held, samples])
        stream.samples += len(samples)
        stream.ends.append(stream.samples // self._hop)

    def _answer(self, stream: PooledStream, answers: list[Answer]) -> None:
        """Answer the messages all of whose frames are computed."""
        while stream.ends and stream.ends[0] <= stream.computed:
            n_frames = stream.ends.popleft() - stream.answered
            ready = np.empty((0, 0), np.float32) if stream.ready is None else stream.ready
            answers.append(Answer(stream, stream.answered, ready[:n_frames]))
            stream.ready = ready[n_frames:] if n_frames < len(ready) else None
            stream.answered += n_frames

    def _compute(self, n_frames: int, streams: list[PooledStream], answers: list[Answer]) -> None:
        """Run the model on so many frames of some clients; in step, which a `Stream` is fastest at."""
        n_samples = n_frames * self._hop
        chunk = np.stack([stream.held[:n_samples] for stream in streams])
        try:
            made = self._stream.push(
                chunk if self._bands is None else chunk.swapaxes(1, 2),
                streams=[stream.slot for stream in streams],
            )
        except Exception as error:  # whatever a model raises is the fault of one client's values
            if len(streams) > 1:  # nobody's state has changed
                for one in streams:
                    self._compute(n_frames, [one], answers)
            else:
                logger.info("the model failed for one client", exc_info=True)
                answers.append(self._fail(streams[0], "failed", f"the model failed: {error}"))
            return
        for stream, rates in zip(streams, made if len(streams) > 1 else [made], strict=True):
            rows = np.ascontiguousarray(rates.T, np.float32)
            if not np.isfinite(rows).all():
                answers.append(self._fail(stream, "not_finite", "the model's rates are not finite numbers"))
                continue
            stream.held = stream.held[n_samples:]
            stream.computed += n_frames
            stream.ready = rows if stream.ready is None else np.concatenate([stream.ready, rows])
            self._answer(stream, answers)

    def _fail(self, stream: PooledStream, code: str, text: str) -> Answer:
        stream.failed = True
        stream.jobs.clear()
        self._active.pop(stream, None)
        return Answer(stream, error=(code, text))
