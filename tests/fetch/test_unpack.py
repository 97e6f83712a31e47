"""Archives that mean harm, are damaged or interrupted: nothing outside the folder, nothing half-written."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from deepSTRF.datasets import download as unpack
from deepSTRF.datasets.download import unpack_zip  # inner: tested by itself


def archive(folder: Path, *members: str | zipfile.ZipInfo, content: bytes = b"x" * 1000) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for member in members:
            out.writestr(member, content)
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders_are_made_and_clutter_is_left_out(tmp_path):
    made = archive(tmp_path, "data/one", "data/sub/two", "__MACOSX/data/._one", "data/.DS_Store", "empty/")
    written = unpack_zip(made, tmp_path / "out" / "here")
    assert files(tmp_path / "out" / "here") == ["data/one", "data/sub/two"]
    assert [path.name for path in written] == ["one", "two"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["here"]


def test_what_is_there_is_replaced_and_what_is_not_in_the_archive_stays(tmp_path):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "one").write_bytes(b"half")
    (out / "data" / "mine").write_bytes(b"mine")
    unpack_zip(archive(tmp_path, "data/one"), out)
    assert (out / "data" / "one").read_bytes() == b"x" * 1000
    assert (out / "data" / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil", "leaves the folder"),
        ("good/../../evil", "leaves the folder"),
        ("..\\evil", "leaves the folder"),
        ("/etc/evil", "absolute"),
        ("C:/evil", "absolute"),
        ("C:evil", "absolute"),
    ],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name, why):
    made = archive(tmp_path, "good", name)
    with pytest.raises(ValueError, match=f"not safe to unpack.*{why}.*nothing written"):
        unpack_zip(made, tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ValueError, match="'link' is a link"):
        unpack_zip(archive(tmp_path, "good", link, content=b"/etc"), tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        made = archive(tmp_path, "one", "one")
    with pytest.raises(ValueError, match="appears twice"):
        unpack_zip(made, tmp_path / "out")


def test_an_encrypted_entry_is_refused(tmp_path):
    made = archive(tmp_path, "one")
    raw = bytearray(made.read_bytes())
    raw[6] |= 1  # the flag in the local header
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    made.write_bytes(raw)
    with pytest.raises(ValueError, match="is encrypted"):
        unpack_zip(made, tmp_path / "out")


def test_a_damaged_entry_leaves_nothing(tmp_path):
    made = archive(tmp_path, "one", "two", content=bytes(range(256)) * 20)
    raw = bytearray(made.read_bytes())
    raw[raw.index(b"two") + 20] ^= 0xFF
    made.write_bytes(raw)
    with pytest.raises(ValueError, match=r"damaged.*delete it and download it again"):
        unpack_zip(made, tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]


def test_no_archive_at_all(tmp_path):
    (tmp_path / "page.zip").write_text("<html>please log in</html>")
    with pytest.raises(ValueError, match=r"page\.zip is no zip file or is damaged"):
        unpack_zip(tmp_path / "page.zip", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no archive"):
        unpack_zip(tmp_path / "none.zip", tmp_path / "out")


def test_an_interrupted_extraction_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    made = archive(tmp_path, "one", "two", "three")
    copied: list[int] = []
    original = shutil.copyfileobj

    def killed(source, out, length):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(1)
        original(source, out, length)

    monkeypatch.setattr(unpack.shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack_zip(made, tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]


def test_a_disk_without_room_is_known_beforehand(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10))
    with pytest.raises(OSError, match="the disk has 0 MB left"):
        unpack_zip(archive(tmp_path, "one"), tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]
