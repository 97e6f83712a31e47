"""`download=True` against a server of our own that stands in for OSF and GitHub; never the real ones."""

from __future__ import annotations

import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.datasets.audio.ns1 import download_ns1  # inner: tested by itself


def zipped(root: Path, prefix: str) -> bytes:
    path = root.parent / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for file in sorted((root / "spikesandwav").rglob("*")):
            if file.is_file():
                out.write(file, prefix + file.relative_to(root / "spikesandwav").as_posix())
    return path.read_bytes()


@pytest.fixture
def source(server, small_ns1):
    """Put the small recording on the server and give its folder away."""
    server.files["/gdwyd/"] = (small_ns1 / "MetadataSHEnCneurons.mat").read_bytes()
    server.files["/f3rtm/"] = b"{\\rtf1 read me}"
    server.files["/5nxga/"] = zipped(small_ns1, "spikesandwav/")
    return server


def fetch(server, dest: Path, **options) -> Path:
    return download_ns1(dest, osf_base=server.url, github_base=server.url, **options)


def files(root: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.endswith((".sha256", ".rtf"))}


def test_everything_is_fetched_once(source, small_ns1, tmp_path):
    dest = fetch(source, tmp_path / "new" / "NS1")
    assert files(dest) == files(small_ns1)
    assert sorted(path for path, _ in source.log) == ["/5nxga/", "/f3rtm/", "/gdwyd/"]
    assert not (dest / "spikesandwav.zip").exists()
    assert NS1Dataset(dest, return_waveform=True, audio_fs=2000).N_neurons == 3
    fetch(source, dest)
    assert len(source.log) == 3


def test_an_archive_without_the_folder(source, small_ns1, tmp_path):
    source.files["/5nxga/"] = zipped(small_ns1, "")
    assert files(fetch(source, tmp_path / "new")) == files(small_ns1)


def test_only_what_is_missing_is_fetched(source, small_ns1):
    whole = files(small_ns1)
    (small_ns1 / "spikesandwav" / "exp1" / "cluster.01.data.mat").unlink()
    fetch(source, small_ns1)
    assert files(small_ns1) == whole
    assert "/gdwyd/" not in [path for path, _ in source.log]


def test_a_broken_transfer_is_resumed_and_a_page_instead_of_a_file_is_refused(source, small_ns1, tmp_path):
    source.faults["/5nxga/"] = ["stop 200000"]
    assert files(fetch(source, tmp_path / "one")) == files(small_ns1)
    source.files["/5nxga/"] = b"<html>please log in</html>"
    with pytest.raises(ValueError, match=r"spikesandwav\.zip is no intact zip archive"):
        fetch(source, tmp_path / "two")
    assert not (tmp_path / "two" / "spikesandwav.zip").exists()
    source.files["/gdwyd/"] = b"<html>please log in</html>"
    with pytest.raises(ValueError, match=r"MetadataSHEnCneurons\.mat is no MATLAB file"):
        fetch(source, tmp_path / "three")
    assert not (tmp_path / "three" / "MetadataSHEnCneurons.mat").exists()


def test_an_archive_brought_by_hand_is_used_and_kept(source, small_ns1):
    whole = files(small_ns1)
    shutil.rmtree(small_ns1 / "spikesandwav")
    (small_ns1 / "spikesandwav.zip").write_bytes(source.files["/5nxga/"])
    fetch(source, small_ns1)
    assert (small_ns1 / "spikesandwav.zip").is_file()
    (small_ns1 / "spikesandwav.zip").unlink()
    assert files(small_ns1) == whole
    assert "/5nxga/" not in [path for path, _ in source.log]


def test_the_shipped_spectrogram_comes_only_when_asked_for(source, small_ns1, tmp_path):
    path = tmp_path / "test_data_5ms.mat"
    savemat(path, {"X_nfht": np.zeros((20, 34, 1, 999))})
    source.files["/monzilur/DNet/master/test_data_5ms.mat"] = path.read_bytes()
    fetch(source, small_ns1)
    assert source.log == []
    fetch(source, small_ns1, spectrogram=True)
    assert len(source.log) == 1
    assert NS1Dataset(small_ns1, spectrogram="shipped").describe()["spectrogram"] == "shipped"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_whole_recording_asks_nobody(small_units, no_network):
    assert NS1Dataset(small_units, download=True, return_waveform=True, audio_fs=2000).N_neurons == 3
    assert NS1Dataset(small_units, download=True).N_neurons == 3


@pytest.mark.ns1
def test_the_real_recording_asks_nobody(ns1_dir, no_network):
    assert NS1Dataset(ns1_dir, download=True).N_neurons == 119
