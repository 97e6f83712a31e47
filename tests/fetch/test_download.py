"""Downloads against a server of our own: resumed, repeated, verified, never half a file in place."""

from __future__ import annotations

import hashlib
import shutil
import threading
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
