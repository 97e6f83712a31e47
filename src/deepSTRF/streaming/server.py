"""A websocket service of live streams for stimulus programs: sound in, rates out, one stream per connection.

The protocol, version 1 (numbers in binary messages are little-endian)::

    connect   ws://127.0.0.1:PORT/, with a header "Authorization: Bearer TOKEN" or "?token=TOKEN" where needed
    <- text   {"type": "hello", "protocol": 1, "input": "sound", "audio_rate_hz": 48000, "hop": 240,
               "dt_ms": 5.0, "n_neurons": 2, "neurons": ["a", "b"], "response_unit": "spikes per bin",
               "latency_ms": 7.5, "limits": {"message_samples": 48000, "clients": 128, ...}}
    -> binary float32 samples, any number of them (also none) up to limits.message_samples
    <- binary uint32 number of the first frame since the start or reset, uint32 n of frames,
              float32 rates of n x N: the N neurons of the first frame, those of the next, ...
    -> text   flush: silence until the current frame is complete
    <- binary as for samples
    -> text   reset: forget all sound, begin at frame 0
    <- text   {"type": "reset"}
    <- text   {"type": "error", "code": "...", "message": "..."}, then the server closes the connection

Each message is answered by one message, in order; n is 0 where no frame was completed. A client may send on
without waiting: the server reads no more of it while limits.buffer_s of sound wait, so ``send`` then blocks.
For a model on spectrograms ``input`` is "spectrogram" and samples are frames of ``n_bands`` values, one frame
after the other.

Error codes: ``busy`` (all places taken), ``bad_message``, ``too_large``, ``not_finite``, ``idle``,
``too_slow`` (answers are not read), ``failed`` (the model raised an error). Messages of over twice the
largest size close the connection with code 1009 and no text.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hmac
import ipaddress
import json
import logging
import math
import re
import socket
import struct
import threading
import urllib.parse
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from deepSTRF._optional import require
from deepSTRF._validation import check_positive_int, check_positive_number, checked
from deepSTRF.models import NeuralModel
from deepSTRF.streaming.exported import ExportedModel
from deepSTRF.streaming.pool import Answer, Job, StreamPool
from deepSTRF.streaming.stream import Stream

__all__ = ["Server", "ServerLimits"]

PROTOCOL = 1
HEADER = struct.Struct("<II")
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,}")
ORIGIN = re.compile(r"https?://[^/?#\s]+")
#: Close codes of RFC 6455 for each error.
CLOSE_CODES = {
    "busy": 1013, "bad_message": 1007, "too_large": 1009, "not_finite": 1007, "idle": 1008, "too_slow": 1008,
    "failed": 1011,
}  # fmt: skip
#: Bin width that limits in seconds assume where a model on spectrograms does not know its own.
ASSUMED_DT_MS = 5.0
#: Messages of one client that may wait for their answers.
MOST_WAITING = 256
#: Bytes for one client in the send buffer of the system; beyond, its next answer waits.
SEND_BUFFER = 2**16
#: Answers to pings, in bytes, that a client may leave unread.
UNREAD_PONGS = 2**20
#: Bytes read from a connection at a time: thousands of tiny frames in one read would hold up everyone.
READ_SIZE = 2**14
#: Seconds for the handshakes, between pings, and until a ping must be answered: Python inside of another
#: program (MATLAB, Bonsai) may answer only when it is called next.
OPEN_S, CLOSE_S, PING_S, PONG_S = 10.0, 2.0, 10.0, 60.0
#: Seconds that a client which did something wrong has to read why.
REFUSAL_S = 1.0
#: Connections beyond those served: handshakes, and refusals that are being read.
SPARE_CONNECTIONS = 64

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # else what clients do wrong is printed on stderr


@checked
@dataclass(frozen=True)
class ServerLimits:
    """Limits of what the clients of a `Server` may take; each holds for one connection.

    Attributes
    ----------
    clients : int
        Connections at a time.
    message_s : float
        Longest message, in seconds of sound.
    buffer_s : float
        Sound of a client that waits for its rates; beyond it the server reads no more of the client.
    speed : float
        Seconds of sound per second, on average; a client that sends faster is slowed down.
    messages_per_s : float
        Messages per second, on average; a client that sends more is slowed down.
    stall_s : float
        A client that has not read an answer for so long is disconnected.
    idle_s : float
        A client that has sent nothing for so long is disconnected.

    Raises
    ------
    ValueError
        For a limit that is not above 0, or a message longer than the buffer.

    Examples
    --------
    >>> ServerLimits(clients=8, speed=1.5).message_s
    1.0
    """

    clients: int = 128
    message_s: float = 1.0
    buffer_s: float = 2.0
    speed: float = 20.0
    messages_per_s: float = 2000.0
    stall_s: float = 10.0
    idle_s: float = 600.0

    def __post_init__(self) -> None:
        check_positive_int("clients", self.clients)
        for item in fields(self)[1:]:
            check_positive_number(item.name, getattr(self, item.name))
        if self.message_s > self.buffer_s:
            raise ValueError(
                f"message_s={self.message_s:g} must be at most buffer_s={self.buffer_s:g}: a message has to "
                "fit into the buffer"
            )


@checked
class Server:
    """Websocket service of live streams: a stimulus program sends sound, and gets the rates of a model.

    Every connection is a stream of its own that starts at silence. The protocol (a JSON text, then float32 in
    both directions) is on the page "Closed loop". Needs the package ``websockets`` (the extra ``live``).

    All connections share one batched `Stream` in one thread, another serves the network: neither waits for
    the other, and a slow, vanished or hostile client costs only itself. The server listens on this machine
    alone unless ``host`` says otherwise. Websites that the user visits could reach it even so; connections
    from web pages are refused unless ``origins`` names the page's origin.

    Parameters
    ----------
    model : NeuralModel or ExportedModel
        Any causal model whose parts have ``init_state`` and ``step``, of which the server runs a copy; or its
        exported graph, which is faster.
    host : str
        Address to listen on. Another one than loopback needs a ``token``; the traffic is not encrypted.
    port : int
        Port; 0 takes a free one.
    token : str, optional
        Secret that clients must send, of at least 16 letters, digits or ``-_.~``.
    origins : sequence of str
        Origins of web pages that may connect, such as ``"http://localhost:8000"``.
    limits : ServerLimits, optional
        What a client may take.

    Attributes
    ----------
    url : str
        Address for clients, without the token; while the server runs.
    hello : dict
        What each client is told first.
    n_clients : int
        Clients that are connected now.

    Raises
    ------
    ImportError
        Without ``websockets``, or with one before version 14.
    ValueError
        For an address that is not loopback without a token, a token or origin of another form, or a model
        that cannot stream.
    OSError
        When the address or port is not free.

    Examples
    --------
    >>> import json, struct
    >>> import numpy as np
    >>> from websockets.sync.client import connect
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import make_wav2spec
    >>> model = Linear(8, 5, out_neurons=3, wav2spec=make_wav2spec("mel", 16000, 5.0, n_filters=8))
    >>> with Server(model) as server, connect(server.url) as stream:
    ...     hello = json.loads(stream.recv())
    ...     stream.send(np.zeros(100, "<f4").tobytes())
    ...     answer = stream.recv()
    >>> hello["hop"], hello["n_neurons"], struct.unpack_from("<II", answer)
    (80, 3, (0, 1))
    >>> np.frombuffer(answer, "<f4", offset=8).reshape(1, 3).shape
    (1, 3)
    """

    def __init__(
        self,
        model: NeuralModel | ExportedModel,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        origins: Sequence[str] = (),
        limits: ServerLimits | None = None,
    ) -> None:
        self._asyncio, self._closed_error = _websockets()
        self.host, self.port = _checked_host(host, token), _checked_port(port)
        self._token, self._origins = _checked_token(token), _checked_origins(origins)
        self.limits = _checked_limits(limits)
        stream = Stream(model, self.limits.clients)
        self._bands: int | None = getattr(model, "F", None) if stream.audio_fs is None else None
        per_second = stream.audio_fs or 1000.0 / (stream.dt_ms or ASSUMED_DT_MS)
        self._per_second = float(per_second)
        self._longest = max(1, math.floor(self.limits.message_s * per_second))
        self._most_unsent = UNREAD_PONGS + 4 * stream.n_neurons * (self._longest // stream.hop + 2)
        self.hello = self._description(model, stream)
        self._largest = stream.largest
        self._pool = StreamPool(stream, self._bands, self._deliver)
        self._clients: set[_Client] = set()
        self._sockets: set[Any] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event
        self._thread: threading.Thread | None = None
        # not the thread's own join: Ctrl-C within it makes Python take the thread for ended
        self._ended = threading.Event()

    def _description(self, model: NeuralModel | ExportedModel, stream: Stream) -> dict[str, Any]:
        fitted = model.fitted_on
        sound = self._bands is None
        return {
            "type": "hello",
            "protocol": PROTOCOL,
            "input": "sound" if sound else "spectrogram",
            "audio_rate_hz": stream.audio_fs,
            "n_bands": self._bands,
            "hop": stream.hop,
            "dt_ms": stream.dt_ms,
            "n_neurons": stream.n_neurons,
            "neurons": list(stream.neurons),
            "response_unit": None if fitted is None else fitted.response_unit,
            "latency_ms": None if math.isnan(stream.latency_ms) else stream.latency_ms,
            "limits": {
                "message_samples" if sound else "message_frames": self._longest,
                **asdict(self.limits),
            },
        }

    # ---- what the owner calls

    @property
    def url(self) -> str:
        """Address for clients, without the token."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"ws://[{host}]:{self.port}" if ":" in host else f"ws://{host}:{self.port}"

    @property
    def n_clients(self) -> int:
        """Clients that are connected now."""
        return len(self._clients)

    def start(self) -> Self:
        """Start to listen; returns the server, which then runs in threads of its own.

        Returns
        -------
        Server
            The server itself.

        Raises
        ------
        RuntimeError
            When it was started before.
        OSError
            When the address or port is not free.
        """
        if self._thread is not None:
            raise RuntimeError("this server was started before; make another one with Server(model)")
        ready: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._serve_in_thread, args=(ready,), name="deepSTRF-server", daemon=True
        )
        self._thread.start()
        self.port = ready.result()
        return self

    def close(self) -> None:
        """Disconnect all clients (code 1001) and stop; returns when both threads have ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # where the loop has ended
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._ended.wait()

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close the server."""
        self.close()

    def serve_forever(self) -> None:
        """Serve until Ctrl-C (which is raised on when the server is closed), or `close` in another thread."""
        if self._thread is None:
            self.start()
        try:
            while not self._ended.wait(0.5):  # without a limit, Windows would not see Ctrl-C
                pass
        finally:
            self.close()

    # ---- the thread of the network

    def _serve_in_thread(self, ready: concurrent.futures.Future[int]) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:
            if ready.done():
                logger.exception("the server has stopped")
            else:
                ready.set_exception(error)
        finally:
            self._pool.close()  # also where the loop ended in an error: its thread holds the model
            self._ended.set()

    async def _serve(self, ready: concurrent.futures.Future[int]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listening = self._asyncio.serve(
            self._handle,
            self.host,
            self.port,
            origins=[None, *self._origins],
            process_request=self._admit,
            create_connection=_guarded(self._asyncio.ServerConnection, self),
            compression=None,  # no bombs, and it would cost more than the model
            server_header=None,
            open_timeout=OPEN_S,
            close_timeout=CLOSE_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            max_size=2 * self._longest * 4 * (self._bands or 1) + 1024,
            max_queue=(8, 2),
            write_limit=0,  # an answer that the system does not take is one that the client does not read
            logger=logger,
        )
        async with listening as found:
            self._pool.start()
            watching = asyncio.create_task(self._watch())
            try:
                ready.set_result(int(found.sockets[0].getsockname()[1]))
                await self._stop.wait()
            finally:
                watching.cancel()
                for connection in list(self._sockets):
                    if (
                        connection.protocol.state.name == "CONNECTING"
                    ):  # else the end would wait for its handshake
                        connection.transport.abort()

    def _admit(self, connection: Any, request: Any) -> Any:
        """The HTTP answer for a request that is refused, or None; origins are checked by websockets."""
        asked = urllib.parse.urlsplit(request.path)
        if asked.path != "/":
            return connection.respond(404, "deepSTRF serves streams at /.\n")
        if self._token is None:
            return None
        given = [
            *(value.removeprefix("Bearer ") for value in request.headers.get_all("Authorization")),
            *urllib.parse.parse_qs(asked.query).get("token", ()),
        ]
        if len(given) == 1 and hmac.compare_digest(given[0].encode(errors="replace"), self._token.encode()):
            return None
        return connection.respond(
            401, "This server needs its token: Authorization: Bearer TOKEN, or ?token=TOKEN.\n"
        )

    async def _handle(self, connection: Any) -> None:
        """Serve one client from its hello to its end."""
        if len(self._clients) >= self.limits.clients:
            await self._refuse(
                connection, _Refusal("busy", f"all {self.limits.clients} places are taken; try again later")
            )
            return
        client = _Client(connection, self.limits)
        client.stream = self._pool.open(client)
        self._clients.add(client)
        try:
            work = [asyncio.create_task(self._read(client)), asyncio.create_task(self._write(client))]
            try:
                await asyncio.wait([*work, client.ended], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in work:
                    task.cancel()
                ends = await asyncio.gather(*work, return_exceptions=True)
            if client.ended.done():
                ends.insert(0, client.ended.exception())
        finally:
            self._clients.discard(client)
            self._pool.release(client.stream)
        for end in ends:
            if isinstance(end, _Refusal):
                await self._refuse(connection, end)
                return
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, self._closed_error):
                raise end

    async def _refuse(self, connection: Any, refusal: _Refusal) -> None:
        """Send an error and close."""
        message = {"type": "error", "code": refusal.code, "message": refusal.text}
        try:
            async with asyncio.timeout(REFUSAL_S):
                await connection.send(json.dumps(message))
            await connection.close(CLOSE_CODES[refusal.code], refusal.code)
        except TimeoutError:
            connection.transport.abort()
        except self._closed_error:
            pass

    async def _read(self, client: _Client) -> None:
        """Take the messages of a client, no faster than its limits allow and its answers leave."""
        loop = asyncio.get_running_loop()
        async for message in client.connection:
            client.heard = now = loop.time()
            job = self._job(message)
            seconds = 0.0 if isinstance(job, str) else len(job) / self._per_second
            delay = max(client.messages.delay(1.0, now), client.sound.delay(seconds, now))
            if delay > 0:
                await asyncio.sleep(delay)
            while client.is_full(seconds, self.limits.buffer_s):
                client.room.clear()
                await client.room.wait()
            client.waiting.append(seconds)
            client.waiting_s += seconds
            self._pool.submit(client.stream, job)

    def _job(self, message: str | bytes) -> Job:
        if isinstance(message, str):
            if message == "reset":
                return "reset"
            if message == "flush":
                return "flush"
            raise _Refusal(
                "bad_message", "text messages are reset or flush; samples are sent as binary float32"
            )
        size = 4 * (self._bands or 1)
        if len(message) % size:
            raise _Refusal(
                "bad_message", f"{len(message)} bytes are no whole number of float32 values"
                if self._bands is None
                else f"{len(message)} bytes are no whole number of frames of {self._bands} float32 values",
            )  # fmt: skip
        if len(message) > self._longest * size:
            raise _Refusal(
                "too_large",
                f"{len(message) // size} samples in one message, at most {self._longest} are legal: cut it",
            )
        samples = np.frombuffer(message, "<f4").astype(np.float32, copy=False)
        if not float(np.abs(samples).max(initial=0.0)) <= self._largest:  # also NaN
            most = f"of at most {self._largest:.2g}"
            raise _Refusal("not_finite", f"samples must be finite numbers {most}, little-endian float32")
        return samples if self._bands is None else samples.reshape(-1, self._bands)

    async def _write(self, client: _Client) -> None:
        """Send a client its hello and its answers."""
        loop = asyncio.get_running_loop()
        client.sending_since = loop.time()
        await client.connection.send(json.dumps(self.hello))
        while True:
            client.sending_since = None
            answer = await client.answers.get()
            if answer.error is not None:
                raise _Refusal(*answer.error)
            client.sending_since = loop.time()
            await client.connection.send(_encoded(answer))
            client.waiting_s -= client.waiting.popleft()
            client.room.set()

    async def _watch(self) -> None:
        """End connections that are idle or do not read."""
        loop = asyncio.get_running_loop()
        limits = self.limits
        while True:
            await asyncio.sleep(min(1.0, limits.stall_s / 4, limits.idle_s / 4))
            now = loop.time()
            for client in list(self._clients):
                if client.ended.done():
                    continue
                if client.sending_since is not None and now - client.sending_since > limits.stall_s:
                    client.ended.set_exception(
                        _Refusal("too_slow", f"no answer was read for {limits.stall_s:g} s")
                    )
                elif not client.waiting and now - client.heard > limits.idle_s:
                    client.ended.set_exception(_Refusal("idle", f"nothing was sent for {limits.idle_s:g} s"))

    def _deliver(self, answers: list[Answer]) -> None:
        """Hand answers from the thread of the model to that of the network."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # where the loop has ended, nobody waits for them
                self._loop.call_soon_threadsafe(_hand_out, answers)


def _hand_out(answers: list[Answer]) -> None:
    for answer in answers:
        answer.stream.owner.answers.put_nowait(answer)


def _encoded(answer: Answer) -> str | bytes:
    if answer.rates is None:
        return '{"type": "reset"}'
    header = HEADER.pack(answer.frame % 2**32, len(answer.rates))
    return header + answer.rates.astype("<f4", copy=False).tobytes()


# ---- one client


class _Refusal(Exception):  # noqa: N818 - not an error of the server, but what a client is told
    """Why a client is disconnected."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class _Client:
    """What the thread of the network knows of one client."""

    def __init__(self, connection: Any, limits: ServerLimits) -> None:
        loop = asyncio.get_running_loop()
        self.connection = connection
        self.stream: Any = None
        #: Seconds of sound in each message that is not answered yet.
        self.waiting: deque[float] = deque()
        self.waiting_s = 0.0
        self.room = asyncio.Event()
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.messages = _Pace(limits.messages_per_s, limits.messages_per_s / 4)
        self.sound = _Pace(limits.speed, limits.buffer_s)
        self.heard = loop.time()
        self.sending_since: float | None = None
        self.ended: asyncio.Future[None] = loop.create_future()

    def is_full(self, seconds: float, buffer_s: float) -> bool:
        """Whether a message of so many seconds must wait until others are answered."""
        if len(self.waiting) >= MOST_WAITING:
            return True
        return bool(self.waiting) and self.waiting_s + seconds > buffer_s


class _Pace:
    """A mean rate, in units per second, that may be exceeded by a burst of so many units."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.ahead_s = rate, burst / rate
        self.due = -math.inf

    def delay(self, amount: float, now: float) -> float:
        """Count an amount; return for how many seconds to wait now."""
        self.due = max(self.due, now - self.ahead_s) + amount / self.rate
        return self.due - now


def _guarded(base: type[Any], server: Server) -> type[Any]:
    """Class of connections that can neither fill the memory nor hold the loop."""

    class Guarded(base):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            server._sockets.add(self)
            self.n_frames = 0
            self.pace = _Pace(server.limits.messages_per_s, server.limits.messages_per_s / 4)
            if hasattr(transport, "max_size"):
                transport.max_size = READ_SIZE
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            # A client whose buffer is full may not hear that its messages came: both sides then wait, with
            # answers in the system's buffer that nobody reads. Twice: what the server knows, it ends itself.
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                most = min(2000 * server.limits.stall_s, 2**31 - 1)
                own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(most))
            super().connection_made(transport)
            if len(server._sockets) > server.limits.clients + SPARE_CONNECTIONS:
                transport.abort()

        def connection_lost(self, error: Exception | None) -> None:
            server._sockets.discard(self)
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            before = self.n_frames
            super().data_received(data)
            if self.transport.get_write_buffer_size() > server._most_unsent:
                self.transport.abort()
            delay = self.pace.delay(self.n_frames - before, self.loop.time())
            if delay > 0:
                self.transport.pause_reading()
                self.loop.call_later(delay, self.go_on)

        def process_event(self, event: Any) -> None:
            self.n_frames += 1  # also fragments and pings, which cost as much as messages
            super().process_event(event)

        def go_on(self) -> None:
            if not self.recv_messages.paused and not self.transport.is_closing():
                self.transport.resume_reading()

    return Guarded


# ---- arguments


def _websockets() -> tuple[ModuleType, type[Exception]]:
    """The server of the package, and what its connections raise when they are closed."""
    package = require("websockets", extra="live")
    if int(package.__version__.split(".")[0]) < 14:
        raise ImportError(
            f"the server needs websockets 14 or later, found {package.__version__}: pip install -U websockets"
        )
    return require("websockets.asyncio.server", extra="live"), package.exceptions.ConnectionClosed


def _checked_host(host: str, token: str | None) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and token is None:
        raise ValueError(
            f"host={host!r} is reached from other machines, and then clients need a secret: give a "
            "token, such as secrets.token_urlsafe(), or leave host out to serve this machine alone"
        )
    return host


def _checked_limits(limits: ServerLimits | None) -> ServerLimits:
    if limits is None:
        return ServerLimits()
    if not isinstance(limits, ServerLimits):
        raise TypeError(f"limits must be a ServerLimits or None, got {type(limits).__name__}")
    return limits


def _checked_port(port: int) -> int:
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 (a free one) to 65535, got {port}")
    return port


def _checked_token(token: str | None) -> str | None:
    if token is not None and not TOKEN.fullmatch(token):
        raise ValueError(  # the token itself stays out of the text
            "token must have at least 16 letters, digits or -_.~, as secrets.token_urlsafe() gives; "
            f"this one has {len(token)} characters"
        )
    return token


def _checked_origins(origins: Sequence[str]) -> list[str]:
    given = [origins] if isinstance(origins, str) else list(origins)
    for origin in given:
        if not ORIGIN.fullmatch(origin):
            raise ValueError(
                f"origins must hold schemes and hosts, such as 'http://localhost:8000', got {origin!r}; "
                "'null' and '*' would admit any website: serve your page from an address of its own "
                "(python -m http.server)"
            )
    return given
