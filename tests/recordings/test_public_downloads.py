"""Downloads of public recordings from a server of the tests' own: verified, unpacked, nothing asked twice."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from public_makers import SPIKES

from deepSTRF.datasets.audio import PUBLIC_RECORDINGS, load_public, public

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Server:
    """Files by path; those below /crcns/ for who posts the right form."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.page_type = "text/html"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(outer.files.get(self.path), "application/octet-stream")

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                good = form.get("username") == ["me"] and form.get("password") == ["secret"]
                content = outer.files.get(self.path) if good and form["submit"] == ["Login"] else None
                if good and self.path.endswith(form["fn"][0]) and content is not None:
                    self.send(content, "application/octet-stream")
                else:  # a failed login is a page with status 200
                    self.send(PAGE, outer.page_type)

            def send(self, content: bytes | None, kind: str) -> None:
                outer.asked.append(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setattr(
        public,
        "HOSTS",
        {
            "zenodo": (f"{running.url}/z/{{record}}", f"{running.url}/z/{{record}}/{{name}}"),
            "figshare": (f"{running.url}/f/{{record}}", ""),
            "crcns": ("", f"{running.url}/crcns/{{record}}/{{name}}"),
        },
    )
    yield running
    running.http.shutdown()
    running.http.server_close()


def archive_of(folder: Path, name: str, inside: Path | None = None) -> bytes:
    """A folder as a zip or packed tar file."""
    content = io.BytesIO()
    inside = folder if inside is None else inside
    files = sorted(path for path in inside.rglob("*") if path.is_file())
    if name.endswith(".zip"):
        with zipfile.ZipFile(content, "w") as out:
            for path in files:
                out.write(path, path.relative_to(folder))
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as out:
            for path in files:
                out.add(path, path.relative_to(folder))
    return content.getvalue()


def offer(server: Server, key: str, files: dict[str, bytes]) -> None:
    """Put files on the server in the shape of their host."""
    record = PUBLIC_RECORDINGS[key]
    listed = []
    for name, content in files.items():
        place = {"zenodo": "z", "figshare": "f", "crcns": "crcns"}[record.host]
        path = f"/{place}/{record.record}/{name}"
        server.files[path] = content
        md5 = hashlib.md5(content).hexdigest()
        listed.append(
            {"key": name, "size": len(content), "checksum": f"md5:{md5}"}
            if record.host == "zenodo"
            else {
                "name": name, "size": len(content), "computed_md5": md5, "download_url": server.url + path,
            }
        )  # fmt: skip
    if record.host in ("zenodo", "figshare"):
        place = "z" if record.host == "zenodo" else "f"
        server.files[f"/{place}/{record.record}"] = json.dumps({"files": listed}).encode()


def published(key: str, source: Path) -> dict[str, bytes]:
    """The files of a made recording as its host offers them."""
    SPIKES[key](source)
    files = {}
    for file in PUBLIC_RECORDINGS[key].files:
        if file.holds is None:
            files[file.name] = (source / file.name).read_bytes()
            continue
        (place,) = sorted(source.rglob(file.holds), key=lambda path: len(path.parts))[:1] or [source]
        files[file.name] = archive_of(source, file.name, place if place.is_dir() else place.parent)
    return files


@pytest.mark.parametrize("key", ["nat4-a1", "espejo-vmn", "wingert2026", "le2025", "downer2025"])
def test_a_recording_arrives_verified_and_loads(server, tmp_path, key):
    files = published(key, tmp_path / "source")
    if key in ("le2025", "downer2025"):  # one archive holds everything
        (name,) = files
        files[name] = archive_of(tmp_path / "source", name)
    offer(server, key, files)
    root = tmp_path / "root"
    ds = load_public(key, root, download=True, dt_ms=10.0)
    assert len(ds) == 4
    assert not [path.name for path in root.iterdir() if path.name.endswith((".part", ".unpacking"))]
    record = PUBLIC_RECORDINGS[key]
    assert json.loads((root / f"{record.host}-{record.record}.json").read_text())["files"]
    before = list(server.asked)
    assert not any(name.name.endswith("wav.zip") for name in root.iterdir())
    again = load_public(key, root, download=True, dt_ms=10.0)
    assert server.asked == before  # what is there costs no request
    assert [row["name"] for row in again.stim_meta] == [row["name"] for row in ds.stim_meta]


def test_waveforms_are_fetched_when_they_are_asked_for(server, tmp_path):
    offer(server, "nat4-a1", published("nat4-a1", tmp_path / "source"))
    root = tmp_path / "root"
    load_public("nat4-a1", root, download=True)
    assert not (root / "wav").exists()
    ds = load_public("nat4-a1", root, download=True, return_waveform=True)
    assert ds.audio_fs == 44100


@pytest.mark.parametrize("key", ["crcns-aa1", "crcns-aa2", "crcns-aa4"])
def test_an_account_opens_crcns(server, tmp_path, key, monkeypatch):
    files = published(key, tmp_path / "source")
    if key == "crcns-aa1":
        files = dict.fromkeys(files, archive_of(tmp_path / "source", "x.zip"))
    offer(server, key, files)
    root = tmp_path / "root"
    monkeypatch.delenv("CRCNS_USERNAME", raising=False)
    with pytest.raises(ValueError, match="CRCNS_USERNAME and CRCNS_PASSWORD"):
        load_public(key, root, download=True)
    with pytest.raises(ConnectionError, match="web page") as error:
        load_public(key, root, download=True, username="me", password="guessed")
    assert "guessed" not in str(error.value)
    server.page_type = "application/octet-stream"
    with pytest.raises(ValueError, match="web page: is the account right") as error:
        load_public(key, root, download=True, username="me", password="guessed")
    assert "guessed" not in str(error.value)
    monkeypatch.setenv("CRCNS_USERNAME", "me")
    monkeypatch.setenv("CRCNS_PASSWORD", "secret")
    assert len(load_public(key, root, download=True, dt_ms=10.0)) == 4


def test_another_file_than_listed_is_refused(server, tmp_path):
    files = published("wingert2026", tmp_path / "source")
    offer(server, "wingert2026", files)
    path = f"/z/{PUBLIC_RECORDINGS['wingert2026'].record}/recordings.zip"
    changed = bytearray(files["recordings.zip"])
    changed[len(changed) // 2] ^= 1
    server.files[path] = bytes(changed)
    root = tmp_path / "root"
    with pytest.raises(ValueError, match="MD5"):
        load_public("wingert2026", root, download=True)
    assert not (root / "recordings").exists()
    server.files[path] = files["recordings.zip"] + b"more"
    with pytest.raises(ValueError, match=r"bytes, expected|offers"):
        load_public("wingert2026", root, download=True)
    server.files[path] = files["recordings.zip"]
    assert len(load_public("wingert2026", root, download=True)) == 4


def test_a_record_that_has_changed_is_named(server, tmp_path):
    offer(server, "wingert2026", {"cell_list.csv": b"cellid\n"})
    with pytest.raises(ValueError, match=r"recordings\.zip.*has changed"):
        load_public("wingert2026", tmp_path / "root", download=True)
    server.files[f"/z/{PUBLIC_RECORDINGS['nat4-a1'].record}"] = b'{"files": [{"size": 3}]}'
    with pytest.raises(ValueError, match="no list of files"):
        load_public("nat4-a1", tmp_path / "other", download=True)


def test_unsafe_archives_write_nothing(server, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        out.writestr("../escaped.txt", "x")
    offer(server, "le2025", {"zebf-auditory-restoration-1.zip": content.getvalue()})
    with pytest.raises(ValueError, match="not safe to unpack"):
        load_public("le2025", tmp_path / "root", download=True)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as out:
        link = tarfile.TarInfo("VMN/x.tgz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    offer(server, "espejo-vmn", {"A1_voc_mod_noise.tgz": tar.getvalue()})
    with pytest.raises(ValueError, match="not safe to unpack"):
        load_public("espejo-vmn", tmp_path / "root2", download=True)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list(tmp_path.rglob("VMN"))


def test_an_archive_that_was_left_half_unpacked_is_unpacked_again(server, tmp_path):
    files = published("wingert2026", tmp_path / "source")
    offer(server, "wingert2026", files)
    root = tmp_path / "root"
    root.mkdir()
    (root / "recordings").mkdir()
    (root / "recordings.zip").write_bytes(files["recordings.zip"])
    (root / ".recordings.zip.unpacking").touch()
    assert len(load_public("wingert2026", root, download=True)) == 4
    assert (root / "recordings.zip").exists()  # it was the user's


def test_files_got_by_hand_are_verified_and_unpacked(tmp_path):
    root = tmp_path / "alice"
    with pytest.raises(FileNotFoundError, match=r"stimuli\.zip.*by hand|get stimuli\.zip"):
        load_public("alice-eeg", root, download=True)
    root.mkdir()
    for file in PUBLIC_RECORDINGS["alice-eeg"].files:
        (root / file.name).write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match="MD5"):
        load_public("alice-eeg", root, download=True)


def test_nothing_is_downloaded_by_default(server, tmp_path):
    offer(server, "wingert2026", published("wingert2026", tmp_path / "source"))
    with pytest.raises(FileNotFoundError, match="download=True"):
        load_public("wingert2026", tmp_path / "root")
    assert server.asked == []
