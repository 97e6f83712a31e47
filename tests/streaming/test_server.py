"""`Server`: a hundred streams at once, and clients that do everything wrong, over sockets on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.streaming import FramewiseMixin
from deepSTRF.models.wav2spec import make_wav2spec

websockets = pytest.importorskip("websockets")
from websockets.asyncio.client import connect as connect_async  # noqa: E402
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from deepSTRF.streaming import Server, ServerLimits  # noqa: E402
from deepSTRF.streaming import server as server_module  # noqa: E402

FS, HOP, N = 16_000, 80, 3
TOKEN = "a-token-of-this-test"
#: float32 noise of a model run chunk by chunk, relative to the range of its rates.
TOLERANCE = 1e-5


def mel_model(model=StateNet, **options):
    torch.manual_seed(0)
    front_end = make_wav2spec("mel", FS, 5.0, n_filters=8)
    return model(8, 5, out_neurons=N, wav2spec=front_end, **options).eval()


@pytest.fixture(scope="module")
def model():
    return mel_model()


@pytest.fixture(scope="module")
def server(model):
    """A server with short limits, shared by tests; each must leave it as it was."""
    limits = ServerLimits(clients=110, message_s=0.5, buffer_s=1.0, speed=1e3, stall_s=0.6, idle_s=60)
    with Server(model, limits=limits) as running:
        yield running


def noise(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype("<f4")


def offline(model, sound):
    """Rates (T, N) of a whole sound, filled up with silence."""
    filled = np.pad(sound, (0, -len(sound) % HOP))
    with torch.no_grad():
        return model(torch.from_numpy(filled)[None, None])[0, :, 0].T.numpy()


def decoded(answer, n=N):
    """Number of the first frame, and rates (frames, n)."""
    first, count = struct.unpack_from("<II", answer)
    rates = np.frombuffer(answer, "<f4", offset=8).reshape(-1, n)
    assert len(rates) == count
    return first, rates


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.ptp(expected)


def ask(stream, message):
    """The answer to one message."""
    stream.send(message)
    return stream.recv(timeout=20)


def hear(stream, sound, cut=400):
    """Rates of a sound that is sent in pieces and flushed."""
    parts = [decoded(ask(stream, sound[i : i + cut].tobytes())) for i in range(0, len(sound), cut)]
    parts.append(decoded(ask(stream, "flush")))
    firsts, rates = [first for first, _ in parts], [one for _, one in parts]
    assert firsts == [0, *np.cumsum([len(one) for one in rates])[:-1]]
    return np.concatenate(rates)


@contextlib.contextmanager
def opened(server, **options):
    """A connection whose hello was read."""
    with connect(server.url, **options) as stream:
        stream.recv(timeout=20)
        yield stream


def error_of(stream):
    """Code of the error and of the close of a connection that the server ends."""
    told = json.loads(stream.recv(timeout=20))
    assert told["type"] == "error"
    assert told["message"]
    with pytest.raises(ConnectionClosed) as closed:
        stream.recv(timeout=20)
    return told["code"], closed.value.rcvd.code


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- right numbers


async def one_of_many(url, seed, model):
    """A client with a sound and cuts of its own, which now and then starts again; sends without waiting."""
    rng = np.random.default_rng(seed)
    async with connect_async(url, compression=None) as stream:
        await stream.recv()
        for _ in range(int(rng.integers(1, 3))):
            sound = noise(int(rng.integers(1, 6000)), int(rng.integers(2**32)))
            sizes = rng.choice([0, 1, 7, HOP, 160, 333, 2000, 8000], 200)
            cuts = np.unique(np.minimum(np.cumsum(sizes), len(sound)))
            pieces = [*np.split(sound, cuts), sound[:0]]
            rng.shuffle(empty := [len(pieces)])
            sent = [piece.tobytes() for piece in pieces] + ["flush"] * len(empty)

            async def send(messages):
                for message in messages:
                    await stream.send(message)
                    if rng.random() < 0.2:
                        await asyncio.sleep(float(rng.uniform(0, 0.02)))

            sending = asyncio.create_task(send(sent))
            answers = [decoded(await stream.recv()) for _ in sent]
            await sending
            rates = np.concatenate([one for _, one in answers])
            assert [first for first, _ in answers] == [0, *np.cumsum([len(r) for _, r in answers])[:-1]]
            assert_same(rates, offline(model, sound))
            await stream.send("reset")
            assert json.loads(await stream.recv()) == {"type": "reset"}
    return 1


def test_a_hundred_streams_at_once_and_none_is_wrong(server, model):
    async def all_of_them():
        return await asyncio.gather(*(one_of_many(server.url, seed, model) for seed in range(100)))

    assert sum(asyncio.run(all_of_them())) == 100
    wait_for(lambda: server.n_clients == 0)


def test_each_message_has_one_answer(server, model):
    sound = noise(1000)
    with opened(server) as stream:
        assert len(decoded(ask(stream, b""))[1]) == 0
        assert len(decoded(ask(stream, "flush"))[1]) == 0  # no frame was begun
        assert len(decoded(ask(stream, sound[:79].tobytes()))[1]) == 0
        assert decoded(ask(stream, sound[79:80].tobytes()))[0] == 0
        first, rates = decoded(ask(stream, sound[80:].tobytes()))
        assert (first, len(rates)) == (1, 11)
        first, rates = decoded(ask(stream, "flush"))
        assert (first, len(rates)) == (12, 1)
        assert json.loads(ask(stream, "reset")) == {"type": "reset"}
        assert_same(hear(stream, sound), offline(model, sound))


def test_the_hello_describes_the_model(server):
    named = mel_model(Linear)
    named.fitted_on = FittedOn(neurons=("a", "ü", "<b>"), dt_ms=5.0, response_unit="spikes per bin")
    with Server(named, limits=ServerLimits(clients=2)) as other, connect(other.url) as stream:
        hello = json.loads(stream.recv())
    assert hello == json.loads(json.dumps(other.hello))
    assert hello["neurons"] == ["a", "ü", "<b>"]
    assert hello["response_unit"] == "spikes per bin"
    assert (hello["type"], hello["protocol"], hello["input"]) == ("hello", 1, "sound")
    assert (hello["audio_rate_hz"], hello["hop"], hello["dt_ms"], hello["n_neurons"]) == (FS, HOP, 5.0, N)
    assert hello["latency_ms"] == 5.0 + named.latency_ms
    assert hello["limits"]["message_samples"] == FS
    assert hello["limits"]["clients"] == 2
    assert server.hello["neurons"] == []
    assert server.hello["limits"]["message_samples"] == FS // 2


def test_a_model_on_spectrograms_and_one_in_double_precision():
    torch.manual_seed(0)
    plain = Linear(6, 4, out_neurons=2).double().eval()
    frames = np.random.default_rng(0).standard_normal((40, 6)).astype("<f4")
    with torch.no_grad():
        expected = plain(torch.from_numpy(frames.T.astype(float))[None, None])[0, :, 0].T.numpy()
    with Server(plain, limits=ServerLimits(clients=2)) as running, connect(running.url) as stream:
        hello = json.loads(stream.recv())
        assert (hello["input"], hello["n_bands"], hello["audio_rate_hz"]) == ("spectrogram", 6, None)
        assert hello["latency_ms"] is None  # the model does not know its bins
        rates = [decoded(ask(stream, frames[i : i + 7].tobytes()), 2)[1] for i in range(0, 40, 7)]
        assert_same(np.concatenate(rates), expected)
        stream.send(frames[0, :5].tobytes())
        assert error_of(stream) == ("bad_message", 1007)


def test_answers_of_many_neurons_may_wait_to_be_read():
    many = Linear(2, 3, out_neurons=3000).eval()  # 2.4 MB for 200 frames
    frames = np.ones((200, 2), "<f4")
    with Server(many, limits=ServerLimits(clients=1)) as running, opened(running, max_size=None) as stream:
        for _ in range(2):
            stream.send(frames.tobytes())
        time.sleep(0.3)  # the first answer does not fit into what the system buffers
        stream.send(frames[:1].tobytes())
        answers = [decoded(stream.recv(timeout=20), 3000) for _ in range(3)]
    assert [first for first, _ in answers] == [0, 200, 400]
    assert len(answers[2][1]) == 1


# ---- clients that do something wrong


def masked(opcode, payload, final=True):
    """One frame of a client, as bytes."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else (
        bytes([0xFE]) + struct.pack("!H", size) if size < 2**16 else bytes([0xFF]) + struct.pack("!Q", size)
    )  # fmt: skip
    return bytes([(0x80 if final else 0) | opcode]) + length + b"\0\0\0\0" + payload


def raw_socket(server, handshake=True, **options):
    """A TCP connection, after the handshake of websockets unless that is left out."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    for name, value in options.items():
        made.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    if handshake:
        key = base64.b64encode(os.urandom(16)).decode()
        made.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        reply = b""
        while b"\r\n\r\n" not in reply:
            reply += made.recv(4096)
        assert b" 101 " in reply.split(b"\r\n")[0]
    return made


@contextlib.contextmanager
def good_neighbour(server, model):
    """A client that streams during the block; its rates must be right, and it must not be held up."""
    sound, found, slowest, stop = noise(20 * HOP, 5), [], [0.0], threading.Event()

    def listen():
        try:
            with opened(server) as stream:
                while not stop.is_set() or not found:
                    ask(stream, "reset")
                    begin = time.monotonic()
                    found.append(hear(stream, sound))
                    slowest[0] = max(slowest[0], time.monotonic() - begin)
        except Exception as error:  # noqa: BLE001 - looked at in the test's own thread
            found.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        wait_for(lambda: found)
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    expected = offline(model, sound)
    for rates in found:
        assert isinstance(rates, np.ndarray), rates
        assert_same(rates, expected)
    assert slowest[0] < 10  # seconds for five messages; a stall of the loop or the model would show


@pytest.mark.parametrize(
    ("message", "code", "closed"),
    [
        (b"\0\0\0", "bad_message", 1007),
        ("", "bad_message", 1007),
        ('{"command": "reset"}', "bad_message", 1007),
        ("[" * 10_000, "bad_message", 1007),
        (np.full(100, np.nan, "<f4").tobytes(), "not_finite", 1007),
        (np.full(100, -np.inf, "<f4").tobytes(), "not_finite", 1007),
        (np.full(100, 1e38, "<f4").tobytes(), "not_finite", 1007),
        (np.zeros(FS // 2 + 1, "<f4").tobytes(), "too_large", 1009),
    ],
)
def test_wrong_messages_are_answered_with_a_code(server, message, code, closed):
    with opened(server) as stream:
        ask(stream, noise(100).tobytes())
        stream.send(message)
        assert error_of(stream) == (code, closed)


def test_wrong_messages_cost_only_their_sender(server, model):
    with good_neighbour(server, model):
        for message in (b"\0", "quit", np.full(9, np.nan, "<f4").tobytes()):
            for _ in range(3):
                with opened(server) as stream:
                    stream.send(message)
                    error_of(stream)
        with opened(server) as stream:  # far too large: closed while it arrives
            with contextlib.suppress(ConnectionClosed):
                stream.send(bytes(12 * FS))
            with pytest.raises(ConnectionClosed) as end:
                stream.recv(timeout=20)
            assert end.value.rcvd is None or end.value.rcvd.code == 1009
    wait_for(lambda: server.n_clients == 0)


def test_bytes_that_are_no_websocket(server, model):
    with good_neighbour(server, model):
        for garbage in (
            b"\x16\x03\x01" + os.urandom(200),
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET /" + b"a" * 20_000,
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        ):
            with raw_socket(server, handshake=False) as made:
                made.sendall(garbage)
                made.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while reply := made.recv(4096):
                        assert b" 101 " not in reply
        for frame in (
            b"\x82\x04abcd",  # not masked
            masked(0xB, b""),  # an opcode that does not exist
            masked(0x1, b"\xff\xfe"),  # no UTF-8
            masked(0x0, b"go on"),  # a continuation of nothing
            b"\x82\xff" + b"\xff" * 12,  # a length of 2^64
            masked(0x8, b"\x00"),  # a close frame of one byte
        ):
            with raw_socket(server) as made:
                made.sendall(frame)
                with contextlib.suppress(ConnectionError):
                    while made.recv(4096):
                        pass
    wait_for(lambda: server.n_clients == 0)


def test_values_that_overflow_end_their_stream_and_leave_no_trace_in_its_place(model):
    sound = noise(1200)
    with Server(model, limits=ServerLimits(clients=1)) as small:
        with opened(small) as stream:
            stream.send(np.full(4000, 3e38, "<f4").tobytes())
            answer = stream.recv(timeout=20)
            assert isinstance(answer, bytes) or json.loads(answer)["code"] in ("not_finite", "failed")
        wait_for(lambda: small.n_clients == 0)
        with opened(small) as stream:  # in the same place of the batch
            assert_same(hear(stream, sound), offline(model, sound))


class Picky(FramewiseMixin, nn.Module):
    """A prefilter of a user's own that fails for loud sounds, and may be slow."""

    pause = 0.0

    def forward(self, x):
        if not bool(x.isfinite().all()):
            raise RuntimeError("too loud for me")
        time.sleep(Picky.pause)
        return x


def test_a_model_that_fails_for_one_client_goes_on_for_the_others(monkeypatch):
    plain, picky = mel_model(Linear), mel_model(Linear)
    picky.prefiltering = Picky()
    with Server(picky, limits=ServerLimits(clients=4)) as running, good_neighbour(running, plain):
        monkeypatch.setattr(Picky, "pause", 0.01)  # both then wait for the same round
        for _ in range(5):
            with opened(running) as stream:
                stream.send(np.full(800, 1e20, "<f4").tobytes())
                told = json.loads(stream.recv(timeout=20))
                assert told["code"] == "failed"
                assert "too loud for me" in told["message"]


def test_the_network_never_waits_for_the_model(monkeypatch):
    slow = mel_model(Linear)
    slow.prefiltering = Picky()
    with Server(slow, limits=ServerLimits(clients=4)) as running, opened(running) as stream:
        monkeypatch.setattr(Picky, "pause", 3.0)
        stream.send(noise(HOP).tobytes())
        time.sleep(0.1)
        begin = time.monotonic()
        with opened(running) as other:
            assert other.ping().wait(10)
        taken = time.monotonic() - begin
        assert len(decoded(stream.recv(timeout=20))[1]) == 1
        whole = time.monotonic() - begin
        assert taken < whole / 2


# ---- slow, vanished, too many


@contextlib.contextmanager
def unread(model):
    """A server, and a client of it that has room for a few answers, beside one that behaves."""
    limits = ServerLimits(clients=4, messages_per_s=1e6, stall_s=0.6)
    with (
        Server(model, limits=limits) as running,
        good_neighbour(running, model),
        raw_socket(running, SO_RCVBUF=4096) as made,
    ):
        wait_for(lambda: running.n_clients == 2)
        yield running, made


def test_who_does_not_read_is_disconnected(model):
    with unread(model) as (running, made):
        made.settimeout(0.2)
        frames = masked(0x2, b"") * 1000
        end, sent = time.monotonic() + 20, 0
        while running.n_clients > 1:  # send on for ever, read nothing
            assert time.monotonic() < end
            assert all(len(client.waiting) <= 256 for client in list(running._clients))
            with contextlib.suppress(TimeoutError, ConnectionError):
                sent += made.send(frames[sent % len(frames) :])


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system does not tell")
def test_who_does_not_read_is_disconnected_also_when_only_the_system_knows(model):
    """A few answers fill the client's buffer, and not that of the server: no answer of the server waits."""
    with unread(model) as (running, made):
        for _ in range(300):
            made.sendall(masked(0x2, b"") * 10)
            time.sleep(0.001)
        wait_for(lambda: running.n_clients == 1)


def test_a_flood_of_pings_that_nobody_reads_back_ends(server, model):
    with good_neighbour(server, model), raw_socket(server, SO_RCVBUF=4096) as made:
        made.settimeout(0.2)
        flood = masked(0x9, b"x" * 100) * 200
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                made.send(flood)
            except TimeoutError:
                continue  # the server reads no more of it: that is as good
            except ConnectionError:
                break
    wait_for(lambda: server.n_clients == 0)


def test_who_vanishes_gives_the_place_back(server, model):
    with good_neighbour(server, model):
        for half in (b"", masked(0x2, bytes(4000))[:100], masked(0x2, noise(4000).tobytes())):
            made = raw_socket(server)
            made.sendall(half)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.close()  # with a reset, no goodbye
        wait_for(lambda: server.n_clients == 1)


def test_who_answers_no_ping_and_who_sends_nothing_is_disconnected(model, monkeypatch):
    monkeypatch.setattr(server_module, "PING_S", 0.3)
    monkeypatch.setattr(server_module, "PONG_S", 0.3)
    monkeypatch.setattr(server_module, "CLOSE_S", 0.3)
    limits = ServerLimits(clients=4, idle_s=1.5)
    with Server(model, limits=limits) as running:
        with raw_socket(running), good_neighbour(running, model):
            wait_for(lambda: running.n_clients == 1)  # who is there, but mute
        with opened(running) as stream:
            assert error_of(stream) == ("idle", 1008)


def test_half_a_handshake_ends(model, monkeypatch):
    monkeypatch.setattr(server_module, "OPEN_S", 0.3)
    monkeypatch.setattr(server_module, "SPARE_CONNECTIONS", 4)
    with Server(model, limits=ServerLimits(clients=2)) as running:
        made = [raw_socket(running, handshake=False) for _ in range(12)]
        for one in made:
            with contextlib.suppress(ConnectionError):
                one.sendall(b"GET / HTTP/1.1\r\nHost: ")
        wait_for(lambda: len(running._sockets) <= 6)
        for one in made:
            with contextlib.suppress(ConnectionError):
                assert one.recv(100) == b""
            one.close()
        with opened(running) as stream:
            assert_same(hear(stream, noise(500)), offline(model, noise(500)))


def test_one_client_too_many_is_told_so(model):
    with Server(model, limits=ServerLimits(clients=1)) as running:
        with opened(running) as first:
            with connect(running.url) as second:
                assert error_of(second) == ("busy", 1013)
            ask(first, b"")
        wait_for(lambda: running.n_clients == 0)
        with opened(running) as third:
            ask(third, b"")


def test_who_sends_too_fast_is_slowed_down(model):
    limits = ServerLimits(clients=4, message_s=0.5, buffer_s=0.5, speed=1.0)
    sound = noise(FS + FS // 2)  # 1.5 s: half a second at once, the rest at the speed of sound
    with Server(model, limits=limits) as running, opened(running) as others:
        with opened(running) as stream:
            begin = time.monotonic()
            for i in range(0, len(sound), 800):
                stream.send(sound[i : i + 800].tobytes())
            rates = [decoded(stream.recv(timeout=20))[1] for _ in range(0, len(sound), 800)]
            assert time.monotonic() - begin > 0.8
            assert_same(np.concatenate(rates), offline(model, sound))
        ask(others, noise(80).tobytes())


# ---- who may connect


def test_pages_of_websites_are_refused(model):
    own = "http://localhost:8000"
    with Server(model, origins=[own], limits=ServerLimits(clients=2)) as running:
        for origin in ("http://evil.example", "null", "http://localhost:8001", own + ".evil.example"):
            with pytest.raises(InvalidStatus) as refused:
                connect(running.url, origin=origin)
            assert refused.value.response.status_code == 403
        for origin in (own, None):
            with connect(running.url, origin=origin) as stream:
                assert json.loads(stream.recv())["type"] == "hello"
        with pytest.raises(InvalidStatus) as missing:
            connect(running.url + "/other")
        assert missing.value.response.status_code == 404


def test_a_token_opens_the_door(model):
    with Server(model, token=TOKEN, limits=ServerLimits(clients=2)) as running:
        header = {"Authorization": f"Bearer {TOKEN}"}
        wrong = [
            {},
            {"additional_headers": {"Authorization": "Bearer " + TOKEN[:-1]}},
            {"additional_headers": [*header.items(), *header.items()]},
            {"additional_headers": {"Authorization": "Bearer é"}},
        ]
        for options in wrong:
            with pytest.raises(InvalidStatus) as refused:
                connect(running.url, **options)
            assert refused.value.response.status_code == 401
        for url in ("/?token=x", f"/?token={TOKEN}&token=x", "/?token=%ff"):
            with pytest.raises(InvalidStatus):
                connect(running.url + url)
        assert TOKEN not in running.url
        for url, options in (
            (running.url, {"additional_headers": header}),
            (f"{running.url}/?token={TOKEN}", {}),
        ):
            with connect(url, **options) as stream:
                assert TOKEN not in stream.recv()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host": "0.0.0.0"}, "token"),
        ({"host": ""}, "token"),
        ({"host": "::"}, "token"),
        ({"host": "192.168.0.7"}, "token"),
        ({"host": "example.org"}, "token"),
        ({"token": "short"}, "at least 16"),
        ({"token": "with spaces in the middle"}, "at least 16"),
        ({"origins": ["*"]}, "origin"),
        ({"origins": ["null"]}, "origin"),
        ({"origins": ["http://localhost:8000/page"]}, "origin"),
        ({"port": 70_000}, "port"),
        ({"origins": np.array(["a"])}, "origins"),
    ],
)
def test_unsafe_choices_are_refused(model, options, text):
    with pytest.raises(ValueError, match=text) as refused:
        Server(model, **options)
    assert options.get("token", "with spaces in the middle") not in str(refused.value)


def test_limits_are_checked(model):
    with pytest.raises(TypeError, match="limits must be a ServerLimits"):
        Server(model, limits=model)
    with pytest.raises(ValueError, match="message_s"):
        ServerLimits(message_s=3.0)
    with pytest.raises(ValueError, match="speed"):
        ServerLimits(speed=0.0)
    with pytest.raises(ValueError, match="clients"):
        ServerLimits(clients=0)


# ---- start and end


def test_the_end_of_the_server(model):
    before = threading.active_count()
    running = Server(model, limits=ServerLimits(clients=4)).start()
    with pytest.raises(RuntimeError, match="started before"):
        running.start()
    with pytest.raises(OSError, match="address"):
        Server(model, port=running.port, limits=ServerLimits(clients=1)).start()
    with raw_socket(running), raw_socket(running, handshake=False), opened(running) as stream:
        ask(stream, noise(100).tobytes())
        begin = time.monotonic()
        running.close()
        assert (
            time.monotonic() - begin < 8
        )  # one does not answer the goodbye, one never finished its handshake
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(timeout=20)
        assert closed.value.rcvd.code == 1001
    running.close()
    wait_for(lambda: threading.active_count() <= before)
    with pytest.raises(OSError):
        connect(running.url)


def test_serving_until_another_thread_closes(model):
    running = Server(model, limits=ServerLimits(clients=1))
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    wait_for(lambda: running.port)
    with opened(running) as stream:
        ask(stream, b"")
    running.close()
    thread.join(10)
    assert not thread.is_alive()


def test_an_error_in_the_block_closes_the_server(model):
    with pytest.raises(KeyboardInterrupt), Server(model, limits=ServerLimits(clients=1)) as running:
        raise KeyboardInterrupt
    with pytest.raises(OSError):
        connect(running.url)


def test_the_model_is_not_touched():
    training = mel_model(Linear).train()
    with Server(training, limits=ServerLimits(clients=1)) as running, opened(running) as stream:
        rates = hear(stream, noise(400))
        assert training.training
        assert all(p.requires_grad for p in training.parameters())
    assert_same(rates, offline(training.eval(), noise(400)))


def test_an_old_websockets_is_named(model, monkeypatch):
    monkeypatch.setattr(websockets, "__version__", "13.1")
    with pytest.raises(ImportError, match="14 or later"):
        Server(model)
