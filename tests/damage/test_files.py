"""The artefact format: replaced whole or not at all, verified on reading, nothing touched outside."""

from __future__ import annotations

import os
import random
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from deepSTRF import _files as files
from deepSTRF._files import DamagedFileError

OLD = [("a.txt", b"old a"), ("only old.txt", b"gone"), ("deep/b.bin", b"old b" * 99)]
NEW = [("a.txt", b"new a"), ("deep/b.bin", b"new b" * 50), ("deeper/still/c.bin", b"new c")]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> dict[str, bytes]:
    artefact = files.read_folder(folder, "run", "fit again")
    return {name: artefact.read(name) for name in artefact.files}


def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new(tmp_path, every_kill):
    folder = tmp_path / "run"

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        files.replace_folder(folder, OLD, "run", later=["later.html"])
        (folder / "mine.txt").write_text("the user's own")
        (folder / "later.html").write_text("made later")

    seen, kills = set(), 0
    for _ in every_kill(lambda: files.replace_folder(folder, NEW, "run"), tmp_path, prepare):
        kills += 1
        found = content(folder)
        seen.add(found["a.txt"])
        assert found in (dict(OLD), dict(NEW))
        assert (folder / "mine.txt").read_text() == "the user's own"
        files.replace_folder(folder, NEW, "run")  # the same call again: as if nothing had happened
        assert tree(folder) == {**dict(NEW), "mine.txt": b"the user's own", files.MANIFEST: manifest_of(NEW)}
    assert seen == {b"old a", b"new a"}
    assert kills > 15


def manifest_of(contents) -> bytes:
    return dict(files.adding_manifest(contents, "run"))[files.MANIFEST]


def test_a_kill_in_a_new_folder_leaves_nothing_that_counts(tmp_path, every_kill):
    folder = tmp_path / "above" / "run"
    for _ in every_kill(
        lambda: files.replace_folder(folder, NEW, "run"),
        tmp_path,
        lambda: shutil.rmtree(tmp_path / "above", ignore_errors=True),
    ):
        if folder.is_dir() and (artefact := files.read_folder(folder, "run", "")).files is not None:
            assert {name: artefact.read(name) for name in artefact.files} == dict(NEW)
        files.replace_folder(folder, NEW, "run")
        assert content(folder) == dict(NEW)


@pytest.mark.parametrize("number", range(4))
def test_a_write_that_fails_leaves_the_old_and_names_the_file(tmp_path, monkeypatch, number):
    folder = tmp_path / "run"
    files.replace_folder(folder, OLD, "run")
    before, write, calls = tree(folder), files._write_durably, []

    def full(path, data):
        calls.append(path)
        if len(calls) > number:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(files, "_write_durably", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.replace_folder(folder, NEW, "run")
    assert Path(caught.value.filename).parent.is_relative_to(folder)
    assert ".deepSTRF" not in caught.value.filename
    assert tree(folder) == before
    with pytest.raises(OSError, match="No space"):
        files.replace_folder(tmp_path / "new" / "one", NEW, "run")
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_or_removed_through_links(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "b.bin").write_bytes(b"precious")
    (outside / "a.txt").write_bytes(b"precious")
    folder.mkdir()
    (folder / "a.txt").symlink_to(outside / "a.txt")
    files.replace_folder(folder, [("a.txt", b"new")], "run")  # a link is replaced, not followed
    assert (outside / "a.txt").read_bytes() == b"precious"
    assert not (folder / "a.txt").is_symlink()
    (folder / "deep").symlink_to(outside)
    for call in (
        lambda: files.replace_folder(folder, NEW, "run"),
        lambda: files.check_place(folder, "deep/x"),
    ):
        with pytest.raises(FileExistsError, match="deep is a link"):
            call()
    assert content(folder) == {"a.txt": b"new"}
    (folder / "deep").unlink()
    files.replace_folder(folder, NEW, "run")
    shutil.rmtree(folder / "deep")
    (folder / "deep").symlink_to(outside)
    files.remove_folder(folder)
    assert (outside / "b.bin").read_bytes() == b"precious"
    link = tmp_path / "link"
    link.symlink_to(outside)
    files.remove_folder(link)
    assert sorted(os.listdir(outside)) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a//b", ".", "a/./b", "a\\b", "c:x", "a\0"])
def test_names_that_could_lie_elsewhere(tmp_path, name):
    with pytest.raises(ValueError, match="no plain relative file name"):
        files.replace_folder(tmp_path / "run", [(name, b"")], "run")
    assert os.listdir(tmp_path) == []
    facts = {"format": 1, "kind": "run", "complete": True, "later": [name], "files": {}}
    files.write_sealed_json(tmp_path / files.MANIFEST, facts)
    with pytest.raises(DamagedFileError, match=r"manifest\.json is damaged .* no plain relative file name"):
        files.read_folder(tmp_path, "run", "fit again")


def test_removal_takes_what_is_listed_and_unchanged(tmp_path):
    folder = tmp_path / "run"
    files.replace_folder(folder, OLD, "run")
    (folder / "a.txt").write_bytes(b"my own notes, in its place")
    (folder / "deep" / "mine").write_bytes(b"mine")
    files.remove_folder(folder)
    assert tree(folder) == {"a.txt": b"my own notes, in its place", "deep/mine": b"mine"}
    files.replace_folder(folder / "other", OLD, "run")
    files.remove_folder(folder / "other")
    assert not (folder / "other").exists()
    files.remove_folder(tmp_path / "none")


@pytest.mark.parametrize("name", ["a.txt", "deep/b.bin", files.MANIFEST])
def test_damage_to_a_folder_is_named(tmp_path, name):
    folder, whole = tmp_path / "run", random.Random(0)
    files.replace_folder(folder, NEW, "run")
    path = folder / name
    before = path.read_bytes()
    for number in range(60):
        data = bytearray(before)
        if number % 3:
            data[whole.randrange(len(data))] ^= 1 << whole.randrange(8)
        else:
            del data[whole.randrange(len(data)) :]
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match="fit again") as caught:
            content(folder)
        assert str(path) in str(caught.value)
    path.unlink()
    if name == files.MANIFEST:
        assert files.read_folder(folder, "run", "fit again").files is None
    else:
        with pytest.raises(DamagedFileError, match="the file is missing"):
            content(folder)


def test_sealed_zip_files_load_elsewhere_and_no_damage_passes(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "none": np.zeros((0, 4)), "text": np.array("é")}
    path, rng = tmp_path / "x.npz", random.Random(1)
    files.write_sealed_zip(path, files.npz_bytes(arrays), "dataset")
    with np.load(path) as stored:  # any reader of zip files takes it
        assert np.array_equal(stored["a"], arrays["a"])
    assert files.check_zip_seal(path, "dataset", "save again")
    loaded = files.load_npz(path)
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    with pytest.raises(DamagedFileError, match="it is a dataset, not a cache"):
        files.check_zip_seal(path, "cache", "")
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 3)] + [whole + b"x", whole[1:], b""]
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match=r"x\.npz is damaged .*save again"):
            files.check_zip_seal(path, "dataset", "save again")
    path.write_bytes(files.npz_bytes(arrays))
    assert not files.check_zip_seal(path, "dataset", "")  # of an earlier version


def test_sealed_tensors(tmp_path):
    path, rng = tmp_path / "x.pt", random.Random(2)
    files.save_tensors(path, {"a": torch.arange(5.0)}, "fit state")
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(5.0))
    whole = path.read_bytes()
    for kind in ("fit state", None):
        path.write_bytes(whole)
        assert torch.equal(files.load_tensors(path, kind)["a"], torch.arange(5.0))
        length = len(whole) if kind else whole.rfind(b"PK\x05\x06")  # any kind: that word may change
        for _ in range(100):
            data = bytearray(whole)
            data[rng.randrange(length)] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            with pytest.raises(DamagedFileError, match=r"x\.pt"):
                files.load_tensors(path, kind)
    torch.save({"a": torch.arange(5.0)}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.load_tensors(path)
    with pytest.warns(UserWarning, match="earlier version of deepSTRF and holds no checksums"):
        files.load_tensors(path, "fit state")


def test_sealed_json(tmp_path):
    path, rng = tmp_path / "x.json", random.Random(3)
    files.write_sealed_json(path, {"numbers": [1.5, 1e-300, float("nan")], "name": "é"})
    assert files.read_json(path, "") == {"numbers": [1.5, 1e-300, None], "name": "é"}
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = files.read_json(path, "", sealed=True)
        except DamagedFileError as error:
            assert str(path) in str(error)  # noqa: PT017  (most, but not all, must fail)
        else:  # a space between two values, say
            assert found == {"numbers": [1.5, 1e-300, None], "name": "é"}


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b'{"a": 1', "{}".encode("utf-16"), b"nul", b"1" * 5000],
    ids=["empty", "cut", "deep", "latin", "cut later", "utf-16", "word", "digits"],
)
def test_text_that_is_none(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(DamagedFileError, match=r"x\.json is damaged or not of deepSTRF .*; fetch it again"):
        files.read_json(path, "fetch it again")


def test_arrays_that_claim_more_than_the_file_holds(tmp_path):
    import io
    import zipfile

    def npz(header: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(
                "a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8
            )
        return buffer.getvalue()

    for shape, descr, message in (
        ("(1000000000000,)", "<f8", "states the shape"),
        ("(1,)", "|O", "Python objects"),
        ("(-1,)", "<f8", "x is damaged"),
        ("(1,", "<f8", "x is damaged"),
        ("('a',)", "<f8", "x is damaged"),
    ):
        header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        with pytest.raises(DamagedFileError, match=message), files.naming_damage("x", "fetch it"):
            files.load_npz(npz(header))


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "folder", "nothing", "dangling link"])
def test_special_files_are_refused_before_they_are_opened(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "gone")
    for read in (
        files.read_bytes,
        files.read_text,
        lambda p: files.check_zip_seal(p, "", ""),
        files.load_tensors,
    ):
        with pytest.raises((DamagedFileError, OSError), match=str(path)):
            read(path)


def test_nothing_is_moved_out_of_a_folder_elsewhere(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    files.replace_folder(folder, OLD, "run")
    files.replace_folder(elsewhere, NEW, "run")
    (folder / files._STAGED).symlink_to(elsewhere)
    assert content(folder) == dict(OLD)
    (folder / files._STAGED).unlink()
    (folder / files._STAGED).mkdir()
    shutil.copy(elsewhere / files.MANIFEST, folder / files._STAGED)
    (folder / files._STAGED / "deep").symlink_to(elsewhere / "deep")
    with pytest.raises(FileExistsError, match="link"):
        content(folder)
    assert content(elsewhere) == dict(NEW)


@pytest.mark.parametrize("text", [b'// ours\n{"name": "an app"}', b"\xff\xfe{\0}\0", b"NAME=1"])
def test_a_manifest_that_is_no_json_may_be_somebody_elses(tmp_path, text):
    (tmp_path / files.MANIFEST).write_bytes(text)
    with pytest.raises(FileExistsError, match="not of deepSTRF"):
        files.replace_folder(tmp_path, NEW, "run")
    assert tree(tmp_path) == {files.MANIFEST: text}


def test_writers_at_once_leave_one_whole_version(tmp_path):
    folder, failed = tmp_path / "run", []

    def write(version):
        try:
            for _ in range(30):
                files.replace_folder(folder, version, "run")
        except Exception as error:  # noqa: BLE001  (handed to the test)
            failed.append(error)

    other = [(name, data[::-1]) for name, data in NEW]
    writers = [threading.Thread(target=write, args=[version]) for version in (other, NEW)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert failed == []
    assert content(folder) in (dict(other), dict(NEW))


def test_a_folder_that_cannot_be_finished_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    files.replace_folder(folder, OLD, "run")
    staged = folder / files._STAGED
    staged.mkdir()
    for name, data in files.adding_manifest(NEW, "run"):
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_bytes(data)

    def refuse(*_):
        raise PermissionError(13, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError, match="a finished save was interrupted"):
            content(folder)
    assert content(folder) == dict(NEW)
    assert not staged.exists()
