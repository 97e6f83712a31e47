"""Where the fits of a sweep run: this process, worker processes of joblib, or the workers of Dask.

An engine starts one call after another and puts an `Answer` for each into a queue. A worker process that dies
takes only its own call with it: `RETRIES` times the call is started again by another one.
"""

from __future__ import annotations

import itertools
import queue
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from deepSTRF._optional import require

__all__ = ["RETRIES", "Answer", "DaskEngine", "Engine", "HereEngine", "ProcessEngine", "count_processes"]

#: A call during which its worker process died is started so many times again; Dask's own default
#: (distributed.scheduler.allowed-failures).
RETRIES = 3
#: Seconds after which a process without work ends: those of a driver that was killed, too.
IDLE_SECONDS = 60
#: Seconds in which a Dask scheduler that has been connected to says who it is.
SECONDS_TO_ANSWER = 5
#: Each fit has one thread, wherever it runs: sums of floats depend on their number.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)

Call = Callable[[], Any]


@dataclass(frozen=True)
class Answer:
    """What became of a call: its value, that its worker died, or that workers cannot run it at all."""

    name: str
    value: Any = None
    died: str = ""
    #: Whether the engine has started it again itself, and given up.
    for_good: bool = False
    impossible: str = ""
    #: Whether the call was lost with the connection, and is to be started again.
    lost: bool = False


class Engine(Protocol):
    """What starts calls."""

    answers: queue.SimpleQueue[Answer]

    def is_free(self) -> bool:
        """Whether another call may be started."""
        ...

    def start(self, name: str, call: Call) -> None:
        """Start a call; its answer comes through the queue."""
        ...

    def check(self) -> None:
        """Raise ConnectionError when no answer can come any more."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class HereEngine:
    """This process, one call at a time."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def is_free(self) -> bool:
        """Whether the last answer was taken."""
        return self.answers.empty()

    def start(self, name: str, call: Call) -> None:
        """Run a call."""
        self.answers.put(Answer(name, call()))

    def check(self) -> None:
        """Nothing can be lost."""

    def close(self) -> None:
        """Nothing is left."""


def count_processes(n_jobs: int) -> int:
    """Number of processes that ``n_jobs`` means: -1 is one per core, -2 all cores but one."""
    import joblib

    if n_jobs == 0:
        raise ValueError("n_jobs must be at least 1, or -1 for one process per core; got 0")
    return int(n_jobs) if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + int(n_jobs))


class ProcessEngine:
    """Worker processes of joblib, each with an executor of its own, so that one may die alone."""

    def __init__(self, n_processes: int) -> None:
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._idle = [_executor() for _ in range(n_processes)]
        self._busy: dict[str, Any] = {}

    def is_free(self) -> bool:
        """Whether a process is idle."""
        return bool(self._idle)

    def start(self, name: str, call: Call) -> None:
        """Hand a call to an idle process."""
        executor = self._idle.pop()
        self._busy[name] = executor
        executor.submit(call).add_done_callback(lambda future: self._ended(name, executor, future))

    def _ended(self, name: str, executor: Any, future: Any) -> None:
        """Called in a thread of the executor, whose process may have died."""
        from joblib.externals.loky import BrokenProcessPool

        if future.cancelled():
            return
        error = future.exception()
        self._busy.pop(name, None)
        if error is None:
            self._idle.append(executor)
            self.answers.put(Answer(name, future.result()))
            return
        self._idle.append(_executor())
        if isinstance(error, BrokenProcessPool):
            self.answers.put(Answer(name, died=_text(error)))
        else:
            self.answers.put(Answer(name, impossible=_text(error)))

    def check(self) -> None:
        """A process that dies is replaced."""

    def close(self) -> None:
        """End all processes, also those at work."""
        for executor in (*self._idle, *self._busy.values()):
            executor.shutdown(wait=True, kill_workers=True)


def _executor() -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(max_workers=1, timeout=IDLE_SECONDS, env=ONE_THREAD)


def _connected(distributed: Any, scheduler: Any) -> Any:
    """A client of a scheduler, within the time that Dask gives a connection.

    Dask itself waits for ever where something else listens at the address, hence the thread.
    """
    import dask

    seconds = dask.utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect", "30s"))
    found: Future[Any] = Future()

    def connect() -> None:
        try:
            client = distributed.Client(scheduler)
        except Exception as error:  # noqa: BLE001  (raised below)
            found.set_exception(error)
        else:
            found.set_result(client)

    try:
        if scheduler == "":
            raise ValueError("it is empty")
        threading.Thread(target=connect, daemon=True).start()
        return found.result(seconds + SECONDS_TO_ANSWER)
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error) or f"nothing of Dask answers within {seconds + SECONDS_TO_ANSWER:g} s"
        raise ConnectionError(
            f"no Dask scheduler answers at scheduler={scheduler!r} ({reason}); start one with: dask "
            "scheduler, and workers with: dask worker ADDRESS --nthreads 1"
        ) from error


class DaskEngine:
    """The workers of a Dask scheduler; all calls are handed over, and the scheduler distributes them."""

    def __init__(self, scheduler: Any) -> None:
        distributed = require("distributed", "distributed")
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._own = not isinstance(scheduler, distributed.Client)
        self._client = _connected(distributed, scheduler) if self._own else scheduler
        self._killed = distributed.KilledWorker
        self._session, self._count = secrets.token_hex(4), itertools.count()
        self._futures: dict[str, Any] = {}

    def is_free(self) -> bool:
        """The scheduler keeps what has to wait; without a connection nothing can be handed over."""
        return bool(self._client.status == "running")

    def start(self, name: str, call: Call) -> None:
        """Hand a call to the scheduler."""
        key = f"deepstrf-fit-{self._session}-{next(self._count)}"
        self._futures[name] = future = self._client.submit(call, key=key, pure=False)
        future.add_done_callback(lambda ended: self._ended(name, ended))

    def _ended(self, name: str, future: Any) -> None:
        """Called in a thread of the client; nothing is held of the call once its answer is there."""
        self._futures.pop(name, None)
        answer = Answer(name, lost=True)  # cancelled or lost: so are all when the connection is lost
        with suppress(Exception):  # the worker that holds the answer has gone: the same
            if future.status == "finished":
                answer = Answer(name, future.result())
            elif future.status == "error":
                error = future.exception()
                if isinstance(error, self._killed):
                    answer = Answer(name, died=_text(error), for_good=True)
                else:
                    text = f"{_text(error)} (workers need deepSTRF, of the same version as here)"
                    answer = Answer(name, impossible=text)
        self.answers.put(answer)

    def check(self) -> None:
        """Raise ConnectionError when the scheduler has gone."""
        if self._client.status not in ("running", "connecting"):
            raise ConnectionError(
                "the Dask scheduler has gone; what is finished is kept, and the same call goes on with it"
            )

    def close(self) -> None:
        """Cancel what waits; a client that was given stays open."""
        with suppress(Exception):  # of a scheduler that has gone
            self._client.cancel(list(self._futures.values()), force=True)
        if self._own:
            with suppress(Exception):
                self._client.close()
