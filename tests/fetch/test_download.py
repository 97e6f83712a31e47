"""Downloads against a server of our own: resumed, repeated, verified, never half a file in place."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import threading
import time
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.datasets import download as fetch
from deepSTRF.datasets.download import (  # inner: tested by itself
    CHUNK_BYTES,
    cache_dir,
    data_dir,
    download_file,
    osf_url,
)

BODY = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def offer(server):
    server.files["/a.bin"] = BODY
    return f"{server.url}/a.bin"


def get(url: str, dest: Path, **kwargs) -> Path:
    return download_file(url, dest, **{"pause_s": 0.001, "progress": False, **kwargs})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_its_hash_is_recorded(offer, tmp_path):
    path = get(offer, tmp_path / "new" / "a.bin")
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["a.bin", "a.bin.sha256"]
    assert (path.parent / "a.bin.sha256").read_text() == f"{DIGEST}  a.bin\n"


def test_a_known_hash_is_checked_and_not_recorded(offer, tmp_path):
    get(offer, tmp_path / "a.bin", sha256=DIGEST.upper(), size=len(BODY))
    assert names(tmp_path) == ["a.bin"]


def test_a_file_that_is_there_costs_no_request(offer, server, tmp_path):
    get(offer, tmp_path / "a.bin")
    asked = len(server.log)
    get(offer, tmp_path / "a.bin", sha256=DIGEST)
    assert len(server.log) == asked


def test_a_file_that_is_there_and_wrong_is_refused_and_left_alone(offer, server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.bin has the SHA-256 .* delete it and download it again"):
        get(offer, tmp_path / "a.bin", sha256=DIGEST)
    with pytest.raises(ValueError, match="has 4 bytes, expected 300000"):
        get(offer, tmp_path / "a.bin", size=len(BODY))
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert server.log == []


def test_a_broken_connection_is_resumed_where_it_stopped(offer, server, tmp_path):
    server.faults["/a.bin"] = ["stop 100000", "stop 50000"]
    assert get(offer, tmp_path / "a.bin", sha256=DIGEST).read_bytes() == BODY
    starts = [int(asked[6:-1]) for _, asked in server.log if asked]
    assert len(starts) == 2
    assert 100_000 - CHUNK_BYTES < starts[0] <= 100_000  # less than one chunk is lost
    assert starts[0] + 50_000 - CHUNK_BYTES < starts[1] <= 150_000


def test_a_later_call_resumes_what_an_earlier_one_left(offer, server, tmp_path):
    server.faults["/a.bin"] = ["stop 100000"] + ["status 503"] * 3
    with pytest.raises(
        ConnectionError, match=r"\d+ bytes are kept in .*a\.bin\.part and the next call resumes"
    ):
        get(offer, tmp_path / "a.bin", retries=3)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.etag"]
    assert get(offer, tmp_path / "a.bin", sha256=DIGEST).read_bytes() == BODY
    assert int(server.log[-1][1][6:-1]) > 100_000 - CHUNK_BYTES
    assert names(tmp_path) == ["a.bin"]


def test_a_file_that_changed_meanwhile_is_not_spliced(offer, server, tmp_path):
    server.faults["/a.bin"] = ["stop 100000"] + ["status 503"] * 3
    with pytest.raises(ConnectionError):
        get(offer, tmp_path / "a.bin", retries=3)
    server.files["/a.bin"], server.etag = BODY[::-1], '"second"'
    assert get(offer, tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_a_server_without_ranges_starts_over(offer, server, tmp_path):
    server.ranges = False
    server.faults["/a.bin"] = ["stop 100000"]
    assert get(offer, tmp_path / "a.bin", sha256=DIGEST).read_bytes() == BODY


def test_a_complete_part_needs_no_more_bytes(offer, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert get(offer, tmp_path / "a.bin", sha256=DIGEST).read_bytes() == BODY


def test_a_part_longer_than_the_file_says_so(offer, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    with pytest.raises(ConnectionError, match=r"fewer bytes than are here already.*delete the \.part file"):
        get(offer, tmp_path / "a.bin")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(offer, server, tmp_path, status):
    server.faults["/a.bin"] = [f"status {status}"] * 2
    get(offer, tmp_path / "a.bin", sha256=DIGEST)
    assert len(server.log) == 3


def test_pauses_grow_and_the_server_may_ask_for_longer_ones(offer, server, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    server.faults["/a.bin"] = ["status 503", "status 503", "status 503 7", "status 503 9999"]
    get(offer, tmp_path / "a.bin", pause_s=1.0)
    assert pauses == [1.0, 2.0, 7.0, fetch.MAX_PAUSE_S]


def test_a_wrong_address_is_not_repeated(server, tmp_path):
    with pytest.raises(ConnectionError, match="answered 404"):
        get(f"{server.url}/nowhere", tmp_path / "a.bin")
    assert len(server.log) == 1


def test_nobody_there(server, tmp_path):
    server.close()
    with pytest.raises(ConnectionError, match=r"2 attempts in a row brought nothing.*put it at .*a\.bin"):
        get(f"{server.url}/a.bin", tmp_path / "a.bin", retries=2)


def test_a_wrong_hash_leaves_nothing_behind(offer, tmp_path):
    with pytest.raises(ValueError, match=r"SHA-256.*the download is deleted; try again"):
        get(offer, tmp_path / "a.bin", sha256="0" * 64)
    assert names(tmp_path) == []


def test_a_wrong_size_is_known_before_the_body_comes(offer, tmp_path):
    with pytest.raises(ValueError, match="offers 300000 bytes, expected 5: the source has changed"):
        get(offer, tmp_path / "a.bin", size=5)
    assert not (tmp_path / "a.bin").exists()


def test_a_check_of_the_content_decides(offer, tmp_path):
    def refuse(path: Path) -> None:
        raise ValueError(f"{path.name} is not what it should be")

    with pytest.raises(ValueError, match=r"a\.bin\.part is not what it should be"):
        get(offer, tmp_path / "a.bin", check=refuse)
    assert names(tmp_path) == []


def test_a_full_disk_is_known_before_the_body_comes(offer, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(OSError, match="needs 0 MB more, the disk has 0 MB left"):
        get(offer, tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_two_at_once_fetch_it_once(offer, server, tmp_path):
    threads = [threading.Thread(target=get, args=(offer, tmp_path / "a.bin")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert len(server.log) == 1


def test_the_bar_is_drawn_only_where_somebody_looks(offer, tmp_path, capfd):
    download_file(offer, tmp_path / "quiet.bin")
    assert capfd.readouterr() == ("", "")
    download_file(offer, tmp_path / "seen.bin", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching seen.bin" in err


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DEEPSTRF_DATA_DIR", raising=False)
    monkeypatch.delenv("DEEPSTRF_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_dir("NS1").parts[-2:] == ("deepSTRF", "NS1")
    assert cache_dir("NS1") != data_dir("NS1")
    assert data_dir("NS1") not in cache_dir("NS1").parents
    monkeypatch.setenv("DEEPSTRF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(tmp_path / "cache"))
    assert data_dir("NS1") == tmp_path / "data" / "NS1"
    assert cache_dir("NS1") == tmp_path / "cache" / "NS1"
    monkeypatch.setenv("DEEPSTRF_DATA_DIR", "~/recordings")
    assert data_dir("NS1") == Path.home() / "recordings" / "NS1"


def test_osf_addresses():
    assert osf_url("5nxga", "http://localhost:1/") == "http://localhost:1/5nxga/"


# ---- servers and files that mean harm


class Odd:
    """A server that writes the very bytes of a test, slowly where it is told so."""

    def __init__(self, *pieces: bytes, pause_s: float = 0.0, repeat: int = 1) -> None:
        self.asked = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/a.bin"
        self.ending = threading.Event()
        threading.Thread(target=self._serve, args=(pieces, pause_s, repeat), daemon=True).start()

    def _serve(self, pieces: tuple[bytes, ...], pause_s: float, repeat: int) -> None:
        while not self.ending.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self.listener.accept()
                self.asked += 1
                threading.Thread(
                    target=self._answer, args=(connection, pieces, pause_s, repeat), daemon=True
                ).start()

    def _answer(
        self, connection: socket.socket, pieces: tuple[bytes, ...], pause_s: float, repeat: int
    ) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(pieces[0])
            for _ in range(repeat):
                for piece in pieces[1:]:
                    if self.ending.wait(pause_s):
                        return
                    connection.sendall(piece)

    def close(self) -> None:
        self.ending.set()
        self.listener.close()


@pytest.fixture
def odd():
    made = []

    def start(*pieces: bytes, **kwargs) -> Odd:
        made.append(Odd(*pieces, **kwargs))
        return made[-1]

    yield start
    for server in made:
        server.close()


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *lines, "", ""]).encode()


def failing(
    server: Odd, dest: Path, match: str, error=(ValueError, ConnectionError, OSError), **kwargs
) -> None:
    """A download that ends with a named error, in a time that a test can wait."""
    before = time.monotonic()
    with pytest.raises(error, match=match):
        get(server.url, dest, **{"retries": 2, "timeout_s": 0.4, **kwargs})
    assert time.monotonic() - before < 30
    assert not dest.exists()


def test_a_body_without_an_end_is_cut_off(odd, tmp_path):
    endless = odd(head(), b"x" * 65536, repeat=10_000)
    failing(endless, tmp_path / "a.bin", "sends more than 1,000,000 bytes", limit=1_000_000)
    assert names(tmp_path) == []
    failing(endless, tmp_path / "a.bin", "sends more than 5,000 bytes", size=5000)
    chunked = odd(head("Transfer-Encoding: chunked"), b"10000\r\n" + b"x" * 65536 + b"\r\n", repeat=10_000)
    failing(chunked, tmp_path / "a.bin", "sends more than 1,000,000 bytes", limit=1_000_000)


def test_stated_lengths_are_bounded(odd, tmp_path):
    for length in ("2000000", "9" * 18):
        failing(
            odd(head(f"Content-Length: {length}")),
            tmp_path / "a.bin",
            "offers .* bytes, more than",
            limit=10**6,
        )
    for length in ("9" * 5000, "-5", "²", "1e9"):
        failing(odd(head(f"Content-Length: {length}"), b"x", repeat=2000), tmp_path / "a.bin",
                "sends more than 1,000 bytes|could not fetch", limit=1000)  # fmt: skip
    partial = odd(
        head("Content-Range: bytes 0-9/10", "Content-Length: 2000", status="206 Partial Content"), b"y" * 2000
    )
    failing(partial, tmp_path / "a.bin", "sends more than 10 bytes")


def test_servers_that_send_next_to_nothing_are_given_up(odd, tmp_path):
    silent = odd(head("Content-Length: 1000"), b"x", pause_s=60.0)
    failing(silent, tmp_path / "silent.bin", "could not fetch")
    trickling = odd(head("Content-Length: 100000"), b"x", pause_s=0.05, repeat=100_000)
    failing(trickling, tmp_path / "trickling.bin", r"only \d+ bytes came within")
    headers = odd(b"HTTP/1.1 200 OK\r\n", b"X-a: b\r\n", pause_s=0.05, repeat=100_000)
    failing(headers, tmp_path / "headers.bin", "no complete answer came within 1 s|100 headers")


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/a", "gopher://x"])
def test_redirects_lead_only_to_web_addresses(odd, tmp_path, address):
    server = odd(head(f"Location: {address}", "Content-Length: 0", status="302 Found"))
    failing(server, tmp_path / "a.bin", "leads to an address that is not of http", ConnectionError)
    assert server.asked == 1
    with pytest.raises(ValueError, match="address of http or https"):
        get("file:///etc/hostname", tmp_path / "a.bin")


def test_redirects_in_circles_end(odd, tmp_path):
    server = odd(head("Location: /a.bin", "Content-Length: 0", status="302 Found"))
    failing(server, tmp_path / "a.bin", "leads in circles", ConnectionError, timeout_s=10.0)


def test_a_page_instead_of_a_file(odd, tmp_path):
    page = odd(head("Content-Type: text/html; charset=utf-8", "Content-Length: 6"), b"<html>")
    failing(page, tmp_path / "a.bin", "web page instead of the file", ConnectionError)
    assert get(page.url, tmp_path / "a.html").read_bytes() == b"<html>"
    known = hashlib.sha256(b"<html>").hexdigest()  # the hash decides where there is one
    assert get(page.url, tmp_path / "b.bin", sha256=known).read_bytes() == b"<html>"


def test_a_packed_body_is_not_unpacked(odd, tmp_path):
    bomb = zlib.compress(bytes(10**6))
    server = odd(head("Content-Encoding: deflate", f"Content-Length: {len(bomb)}"), bomb)
    failing(server, tmp_path / "a.bin", "in the encoding 'deflate', unasked", ConnectionError)


def test_a_server_that_ignores_the_tag_does_not_splice(odd, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"12345")
    (tmp_path / "a.bin.part.etag").write_text('"first"')
    server = odd(
        head(
            "Content-Range: bytes 5-9/10", "Content-Length: 5", 'ETag: "second"', status="206 Partial Content"
        ),
        b"67890",
    )
    failing(server, tmp_path / "a.bin", "changed meanwhile|another range")


def test_one_byte_per_attempt_is_no_progress(odd, tmp_path):
    server = odd(head("Content-Length: 5", 'ETag: "a"'), b"x")
    failing(server, tmp_path / "a.bin", "2 attempts in a row brought nothing")
    assert server.asked <= 3


@pytest.mark.parametrize("suffix", ["", ".part", ".part.etag", ".sha256", ".lock"])
@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
def test_nothing_is_written_through_links_and_pipes(offer, server, tmp_path, suffix, what):
    (tmp_path / "theirs").write_bytes(b"theirs")
    path = tmp_path / ("here/.a.bin.lock" if suffix == ".lock" else f"here/a.bin{suffix}")
    path.parent.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "theirs" if suffix else tmp_path / "nowhere")
    with pytest.raises(OSError, match=f"{re.escape(str(path))} is a link or no regular file"):
        get(offer, tmp_path / "here" / "a.bin")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (tmp_path / "nowhere").exists()
    assert server.log == []


def test_the_lock_lies_beside_the_file_and_waiting_ends(offer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fetch, "_attempt", lambda *args: seen.extend(names(tmp_path)) or args[1].write_bytes(b"1")
    )
    get(offer, tmp_path / "a.bin")
    assert seen == [".a.bin.lock"]
    assert names(tmp_path) == ["a.bin", "a.bin.sha256"]
    monkeypatch.setattr(fetch, "LOCK_WAIT_S", 0.3)
    with open(tmp_path / ".b.bin.lock", "w", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            TimeoutError, match=r"another process has been fetching .*b\.bin .*delete .*\.b\.bin\.lock"
        ):
            get(offer, tmp_path / "b.bin")
    assert get(offer, tmp_path / "b.bin").read_bytes() == b"1"  # what a killed process left does not matter
    assert names(tmp_path) == ["a.bin", "a.bin.sha256", "b.bin", "b.bin.sha256"]
