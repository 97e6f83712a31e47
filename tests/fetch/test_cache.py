"""The cache of parsed arrays: keyed by everything it depends on, rebuilt when damaged, never in the way."""

from __future__ import annotations

import hashlib
import io
import os

import numpy as np
import pytest

from deepSTRF._files import check_zip_seal, load_npz, sealed_zip  # inner: tested by itself
from deepSTRF.datasets import download as cache
from deepSTRF.datasets.download import cached_arrays, hash_files  # inner: tested by itself


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(tmp_path))
    return tmp_path / "demo"


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"x": np.arange(5000.0), "names": np.array(["a", "bc"]), "n": np.array(3)}


def get(make, **kwargs):
    return cached_arrays("demo", "thing", {"files": "abc", **kwargs}, make)


def test_made_once(folder):
    make = Maker()
    first, second = get(make), get(make)
    assert make.calls == 1
    for name, array in first.items():
        assert second[name].dtype == array.dtype
        np.testing.assert_array_equal(second[name], array)
    assert len(list(folder.iterdir())) == 1


def test_only_the_members_asked_for(folder):
    make = Maker()
    for _ in range(2):
        assert list(cached_arrays("demo", "thing", {}, make, members=["n"])) == ["n"]
    assert make.calls == 1


@pytest.mark.parametrize("change", [{"files": "abd"}, {"dt_ms": 5.0}])
def test_another_key_is_another_entry(folder, change):
    make = Maker()
    get(make)
    get(make, **change)
    assert make.calls == 2


def test_a_new_version_of_the_package_parses_again(folder, monkeypatch):
    make = Maker()
    get(make)
    monkeypatch.setattr("deepSTRF.__version__", "999")
    get(make)
    assert make.calls == 2


def test_every_flipped_byte_is_noticed_or_harmless(folder):
    make = Maker()
    truth = get(make)
    entry = next(folder.iterdir())
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    for at in [0, 30, 60, 130, len(whole) - 10, *rng.integers(0, len(whole), 60).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        entry.write_bytes(damaged)
        for name, array in get(make).items():
            np.testing.assert_array_equal(array, truth[name])


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_garbage_is_rebuilt(folder, content):
    make = Maker()
    get(make)
    entry = next(folder.iterdir())
    whole = entry.read_bytes()
    for damaged in (content, whole[: len(whole) // 2], whole[:-1]):
        entry.write_bytes(damaged)
        assert get(make)["n"] == 3
        assert entry.read_bytes()[:4] == whole[:4]
        assert len(entry.read_bytes()) == len(whole)
    assert make.calls == 4


def test_an_entry_of_another_key_under_this_name_is_not_trusted(folder):
    get(Maker())
    mine = next(folder.iterdir())
    cached_arrays("demo", "thing", {"files": "other"}, lambda: {"x": np.zeros(1)})
    other = next(path for path in folder.iterdir() if path != mine)
    mine.write_bytes(other.read_bytes())
    assert len(get(Maker())["x"]) == 5000


def test_pickles_are_not_read(folder):
    make = Maker()
    get(make)
    entry = next(folder.iterdir())
    key = cache._key("thing", {"files": "abc"})
    np.savez(entry.with_suffix(""), cache_key=np.array(key), x=np.array([{"evil": 1}], dtype=object))
    assert len(get(make)["x"]) == 5000
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be cached.*DEEPSTRF_CACHE_DIR.*cache=False"):
        assert get(Maker())["n"] == 3


def test_a_full_disk_leaves_no_half_entry(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert get(Maker())["n"] == 3
    assert list(folder.iterdir()) == []


def test_old_entries_go(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_ENTRIES", 3)
    for number in range(6):
        get(Maker(), number=number)
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    assert len(list(folder.iterdir())) <= 4


def test_not_used_when_not_wanted(folder):
    make = Maker()
    for _ in range(2):
        cached_arrays("demo", "thing", {}, make, enabled=False)
    assert make.calls == 2
    assert not folder.exists()


def test_hashes_follow_content_alone(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0" * 100_000)
    first = hash_files(tmp_path, ["a"])
    os.utime(path, ns=(11, 11))
    assert hash_files(tmp_path, ["a"]) == first
    changed = bytearray(path.read_bytes())
    changed[50_000] = 1
    path.write_bytes(changed)
    os.utime(path, ns=(11, 11))
    assert hash_files(tmp_path, ["a"]) != first
    with pytest.raises(FileNotFoundError):
        hash_files(tmp_path, ["none"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        hash_files(tmp_path, ["a", "pipe"])


def test_entries_are_sealed_and_a_seal_of_another_kind_does_not_count(folder):
    make = Maker()
    get(make)
    entry = next(folder.iterdir())
    assert check_zip_seal(entry, "cache", "")
    whole = entry.read_bytes()
    arrays = load_npz(entry)
    arrays["x"] = arrays["x"] + 1
    content = io.BytesIO()
    np.savez(content, **arrays)
    for forged in (content.getvalue(), sealed_zip(content.getvalue(), "dataset")):  # CRCs and key are right
        entry.write_bytes(forged)
        assert get(make)["x"][0] == 0
    assert entry.read_bytes()[-100:] == whole[-100:]
    assert make.calls == 3


@pytest.mark.parametrize("what", ["pipe", "linked pipe", "link", "folder"])
def test_special_files_in_the_place_of_an_entry(folder, tmp_path, what, recwarn):
    make = Maker()
    get(make)
    entry = next(folder.iterdir())
    entry.unlink()
    (tmp_path / "theirs").write_bytes(b"theirs")
    {
        "pipe": lambda: os.mkfifo(entry),
        "linked pipe": lambda: (os.mkfifo(tmp_path / "pipe"), entry.symlink_to(tmp_path / "pipe")),
        "link": lambda: entry.symlink_to(tmp_path / "theirs"),
        "folder": entry.mkdir,
    }[what]()
    for _ in range(2):
        assert get(make)["n"] == 3
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert make.calls == (3 if what == "folder" else 2)  # anything else is replaced itself
    assert len(recwarn) == (what == "folder")


@pytest.mark.parametrize("what", ["pipe", "endless", "file"])
def test_special_files_in_the_place_of_the_folder(folder, tmp_path, what):
    {
        "pipe": lambda: os.mkfifo(folder),
        "endless": lambda: folder.symlink_to("/dev/full"),
        "file": lambda: folder.write_text("mine"),
    }[what]()
    with pytest.warns(UserWarning, match="could not be cached") as caught:
        assert get(Maker())["n"] == 3
    assert len(caught) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_only_entries_are_removed_for_room(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_ENTRIES", 1)
    folder.mkdir()
    for name in ("mine.npz", "my-experiment-2024.npz", "notes.txt", ".killed.npz.0123abcd.tmp"):
        (folder / name).write_text("mine")
        os.utime(folder / name, (1, 1))
    for number in range(3):
        get(Maker(), number=number)
    assert len([path for path in folder.iterdir() if path.name.startswith("thing-")]) == 1
    assert len(list(folder.iterdir())) == 4


def test_digests_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(tmp_path / "cache"))
    path, hashed = tmp_path / "a", []
    whole = cache._sha256
    monkeypatch.setattr(cache, "_sha256", lambda file: hashed.append(file.name) or whole(file))

    def digest():
        return hash_files(tmp_path, ["a"], memory="recording")["a"]

    path.write_bytes(b"old content")
    first = digest()
    assert digest() == first == hashlib.sha256(b"old content").hexdigest()
    assert hashed == ["a", "a"]  # just written: it might change again within one tick of the clock
    monkeypatch.setattr(cache, "_COARSEST_CLOCK_NS", -(10**12))
    assert digest() == digest() == first
    assert hashed == ["a"] * 3
    before = path.stat()
    path.write_bytes(b"new content")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of modification can be set
    assert digest() == hashlib.sha256(b"new content").hexdigest()
    memory = next((tmp_path / "cache").rglob("sha256.json"))
    memory.write_text(memory.read_text().replace(digest()[:8], first[:8]))  # damaged: forgotten
    assert digest() == hashlib.sha256(b"new content").hexdigest()
