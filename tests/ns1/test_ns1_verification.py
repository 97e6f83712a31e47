"""Files of the recording are those that were published, or an error says which one is not."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets.audio import NS1Dataset, ns1  # inner: tested by itself
from deepSTRF.experiments.build import option_names  # inner: tested by itself

WAV = f"{ns1.NS1_WAV_DIR_NAME}/{ns1.NS1_WAV_FILENAMES[7]}"
MAT = "spikesandwav/exp45_1x32/P04-SH.En.C.D/cluster.03.data.mat"
NAMES = {"wav": WAV, "mat": MAT, "metadata": ns1.NS1_METADATA}


@pytest.fixture
def published(ns1_dir, tmp_path) -> Path:
    """A folder of links to the files of the real recording."""
    root = tmp_path / "NS1"
    for name in ns1.published_files():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(ns1_dir / name)
    return root


def alter(path: Path, at: float = 0.5, bit: int = 3, cut: int = 0) -> None:
    """Replace a link by a copy with one flipped bit, or cut short, and the same time of modification."""
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    path.unlink()
    path.write_bytes(content[: len(content) - cut])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def load(root: Path, **options: object) -> NS1Dataset:
    return NS1Dataset(root, **{"return_waveform": True, "audio_fs": 2000, **options})


@pytest.mark.ns1
def test_every_file_is_pinned(ns1_dir):
    known = ns1.published_files()
    there = {path.relative_to(ns1_dir).as_posix(): path for path in ns1_dir.rglob("*") if path.is_file()}
    assert {name for name in there if name != "test_data_5ms.mat"} == set(known)
    assert len([name for name in known if name.endswith(".mat")]) == 120
    assert {len(sha256) for sha256, _ in known.values()} == {64}
    for name, (_, size) in known.items():
        assert there[name].stat().st_size == size
    assert "verify" in option_names(NS1Dataset)


@pytest.mark.ns1
@pytest.mark.parametrize("kind", NAMES)
def test_no_flipped_bit_passes_parsed_before_or_not(published, kind, monkeypatch):
    assert load(published).describe()["files_verified"] is True  # the parsed copy is in the cache now
    for reader in ("load_mat", "read_waveforms"):
        monkeypatch.setattr(ns1, reader, lambda *args: pytest.fail("parsed before it was verified"))
    path = published / NAMES[kind]
    whole = path.read_bytes()
    for at, bit in ((0.0001, 0), (0.02, 7), (0.5, 3), (0.7, 1), (0.9999, 5)):
        alter(path, at, bit)
        words = rf"{re.escape(str(path))} is not the published file \(SHA-256 [0-9a-f]{{64}} .*delete it, "
        for options in ({}, {"return_waveform": False}, {"cache": kind != "metadata"}):
            with pytest.raises(DamagedFileError, match=words + r".*verify=False\) reads it"):
                load(published, **options)
        path.write_bytes(whole)
    assert load(published).N_neurons == 119


@pytest.mark.ns1
@pytest.mark.parametrize("kind", NAMES)
def test_a_cut_file_is_known_by_its_size(published, kind):
    alter(published / NAMES[kind], cut=1)
    with pytest.raises(
        DamagedFileError, match=r"is not the published file \([\d,]+ bytes instead of [\d,]+\)"
    ):
        load(published)


@pytest.mark.ns1
def test_an_altered_sound_is_read_on_request_and_never_from_the_cache_of_the_true_one(published):
    truth = load(published)
    alter(published / WAV, bit=6)
    ds = load(published, verify=False)
    assert ds.describe()["files_verified"] is False
    assert not torch.equal(ds.stims[7], truth.stims[7])
    assert torch.equal(ds.stims[6], truth.stims[6])
    assert ds.stim_meta[7]["source_sha256"] != truth.stim_meta[7]["source_sha256"]


@pytest.mark.ns1
def test_an_altered_unit_can_be_left_out(published):
    alter(published / MAT)
    ds = load(published, on_bad_file="skip")
    assert ds.N_neurons == 118
    ((name, why),) = ds.load_report.skipped
    assert MAT.endswith(f"{name}.mat")
    assert "not the published file" in why
    assert len(ds.drc_responses().cell_ids) == 118
    with pytest.raises(DamagedFileError, match="on_bad_file='skip' loads the others"):
        load(published)


@pytest.mark.ns1
def test_another_name_is_not_held_to_a_published_hash(published):
    (published / MAT).rename((published / MAT).with_name("cluster.03.data_1.mat"))
    assert load(published).N_neurons == 119


@pytest.mark.parametrize("what", ["pipe", "endless", "folder"])
@pytest.mark.parametrize("name", [WAV, "spikesandwav/exp1/cluster.02.data.mat", ns1.NS1_METADATA])
def test_special_files_are_refused_before_they_are_opened(small_ns1, name, what):
    path = small_ns1 / name
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/full"),
        "folder": path.mkdir,
    }[what]()
    with pytest.raises((DamagedFileError, IsADirectoryError), match=re.escape(str(path))):
        load(small_ns1)


def test_the_shipped_spectrogram_is_no_pipe(small_units):
    os.mkfifo(small_units / "test_data_5ms.mat")
    with pytest.raises(DamagedFileError, match=r"test_data_5ms\.mat is no regular file"):
        NS1Dataset(small_units, spectrogram="shipped")


def test_a_cache_that_cannot_be_used_is_one_warning(small_units, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    os.mkfifo(tmp_path / "cache" / "NS1")
    with pytest.warns(UserWarning, match="could not be cached in") as caught:
        assert load(small_units).N_neurons == 3
    assert len(caught) == 1


def test_verify_is_a_word_of_two_values(tmp_path):
    with pytest.raises(TypeError, match="verify must be True or False, got 'no'"):
        NS1Dataset(tmp_path, verify="no")


# ---- downloads


@pytest.fixture
def pinned(small_ns1, monkeypatch) -> None:
    """The files of the small recording as if they had been published."""
    paths = {path.relative_to(small_ns1).as_posix(): path for path in small_ns1.rglob("*") if path.is_file()}
    known = {
        name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for name, path in paths.items()
    }
    monkeypatch.setattr(ns1, "published_files", lambda: known)


def zipped(root: Path, change: str = "") -> bytes:
    with zipfile.ZipFile(root.parent / "made.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for file in sorted((root / "spikesandwav").rglob("*")):
            if file.is_file():
                content = bytearray(file.read_bytes())
                content[len(content) // 2] ^= 1 if file.name == change else 0
                out.writestr(file.relative_to(root).as_posix(), bytes(content))
    return (root.parent / "made.zip").read_bytes()


@pytest.mark.usefixtures("pinned")
def test_what_is_downloaded_is_what_was_published(server, small_ns1, tmp_path):
    def fetch(dest: Path, **options: object) -> Path:
        return ns1.download_ns1(dest, osf_base=server.url, github_base=server.url, **options)

    metadata = (small_ns1 / ns1.NS1_METADATA).read_bytes()
    server.files["/f3rtm/"] = b"{\\rtf1 read me}"
    server.files["/gdwyd/"], server.files["/5nxga/"] = metadata, zipped(small_ns1)
    assert load(fetch(tmp_path / "good")).N_neurons == 3
    server.files["/5nxga/"] = zipped(small_ns1, change="cluster.02.data.mat")
    with pytest.raises(ValueError, match=r"spikesandwav\.zip holds another .*cluster\.02\.data\.mat"):
        fetch(tmp_path / "bad")
    assert not (tmp_path / "bad" / "spikesandwav").exists()
    (tmp_path / "bad" / "spikesandwav.zip").write_bytes(server.files["/5nxga/"])  # brought by hand
    with pytest.raises(ValueError, match=r"holds another .*cluster\.02"):
        fetch(tmp_path / "bad")
    flipped = bytearray(metadata)
    flipped[-20] ^= 1
    server.files["/gdwyd/"] = bytes(flipped)
    with pytest.raises(ValueError, match=r"MetadataSHEnCneurons\.mat\.part has the SHA-256"):
        fetch(tmp_path / "other")
    assert not (tmp_path / "other" / ns1.NS1_METADATA).exists()
    assert fetch(tmp_path / "bad", verify=False).is_dir()


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ns1, "_LARGEST_FILE", 100_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros", np.zeros(200_000, dtype=np.int8).tobytes())
    with pytest.raises(ValueError, match=r"would unpack to 200,000 bytes"):
        ns1._check_zip(tmp_path / "a.zip", {})
