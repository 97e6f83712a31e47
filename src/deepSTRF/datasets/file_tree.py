"""The files of a recording by relative name: of a folder, or of a zip or tar archive that is read in place.

Nothing is extracted: members are read one by one, with limits, and names that would lie outside are refused.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, check_regular, naming_damage
from deepSTRF._validation import memory_bytes
from deepSTRF.datasets.session import Sound
from deepSTRF.datasets.sounds import natural

__all__ = ["FileTree", "decoded", "is_archive"]

#: More files are no recording, and no folder of one is nested deeper.
_MOST_FILES, _DEEPEST = 200_000, 12
#: An archive that unpacks to more than this many times its size, and to more than these bytes, is a trap.
_MOST_RATIO, _ANY_SIZE = 200, 1 << 30
_BLOCK = 1 << 20
#: Compressed tar files, by their first bytes: gzip, bzip2, xz.
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
_REMEDY = "fetch or copy it again"


def decoded(content: bytes, where: str) -> tuple[str, str]:
    """Text of a file and its encoding: by byte order mark, else UTF-8, else Windows-1252; no null bytes."""
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
    ):  # fmt: skip
        if content.startswith(mark):
            with naming_damage(where, "save it as UTF-8 text"):
                return content.decode(encoding), encoding
    if b"\0" in content:
        raise DamagedFileError(f"{where} is no text: it holds a null byte; save it as UTF-8 text")
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace"), "cp1252"


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, by its bytes (.npz and office files are none)."""
    if not path.is_file() or path.suffix.lower() in (".npz", ".docx", ".xlsx", ".pt"):
        return False
    with open(path, "rb") as stream:
        start = stream.read(512)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return True
    return start[257:262] == b"ustar" or (start.startswith(tuple(_PACKED)) and ".t" in path.name.lower())


class FileTree:
    """Regular files below a folder or in an archive; one outer folder around all of them is left out.

    Parameters
    ----------
    root : Path
        Folder or archive.

    Attributes
    ----------
    names : tuple of str
        Relative names with "/", in natural order. Hidden files and those of file managers are left out.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._close = contextlib.ExitStack()
        weakref.finalize(self, self._close.close)
        self._zip: zipfile.ZipFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, Any] = {}
        self.cache: dict[str, Any] = {}  # what was read of a file, for those who read it twice
        if root.is_dir():
            found = {name: name for name in _below(root)}
        else:
            check_regular(root)
            with naming_damage(root, _REMEDY):
                found = self._zip_names() if zipfile.is_zipfile(root) else self._tar_names()
        names = [name for name in found if not _is_hidden(name)]
        self._prefix = _common_folder(names)
        self._at = {name[len(self._prefix) :]: found[name] for name in names}
        self.names: tuple[str, ...] = tuple(sorted(self._at, key=natural))

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def close(self) -> None:
        """Close an archive."""
        self._close.close()

    def where(self, name: str) -> str:
        """A file as messages name it."""
        return f"{self.root}/{self._prefix}{name}"

    def size(self, name: str) -> int:
        """Bytes of a file, as the archive states them."""
        member = self._at[name]
        if self._zip is not None:
            return self._zip.getinfo(member).file_size
        if self._tar is not None:
            return int(self._members[member].size)
        return (self.root / member).stat().st_size

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Content of a file of at most ``limit`` bytes."""
        if name not in self._at:
            raise FileNotFoundError(f"there is no file {self.where(name)}")
        limit = int(memory_bytes() // 4) if limit is None else limit
        if self.size(name) > limit:
            raise DamagedFileError(
                f"{self.where(name)} has {self.size(name):,} bytes, none of its kind more than {limit:,}"
            )
        member = self._at[name]
        if self._zip is None and self._tar is None:
            check_regular(self.root / member)
            with open(self.root / member, "rb") as stream:
                return stream.read()
        with naming_damage(self.where(name), _REMEDY), self._opened(member) as stream:
            content = _at_most(stream, self.size(name) + 1)
        if len(content) != self.size(name):
            raise DamagedFileError(
                f"{self.where(name)} states {self.size(name):,} bytes and holds another number; {_REMEDY}"
            )
        return content

    def text(self, name: str, limit: int = 256_000_000) -> str:
        """Text of a file in UTF-8, UTF-16 or Windows-1252."""
        return decoded(self.read(name, limit), self.where(name))[0]

    def local(self, name: str) -> Path:
        """A path to a file: itself, or a private copy of a member, which goes when the tree is closed."""
        if self._zip is None and self._tar is None:
            check_regular(self.root / self._at[name])
            return self.root / str(self._at[name])
        folder = self._close.enter_context(tempfile.TemporaryDirectory(prefix="deepstrf-"))
        copy = Path(folder) / Path(name).name
        with (
            naming_damage(self.where(name), _REMEDY),
            self._opened(self._at[name]) as stream,
            open(copy, "wb") as out,
        ):
            shutil.copyfileobj(stream, out, _BLOCK)
        return copy

    def sound(self, name: str, fs: float | Fraction | None = None) -> Sound:
        """A sound file, read when it is needed; ``fs`` is its rate where its header rounds it."""
        import soundfile

        def opened() -> Any:
            return io.BytesIO(self.read(name)) if self._zip or self._tar else os.fspath(self.local(name))

        def read() -> npt.NDArray[Any]:
            with naming_damage(self.where(name), _REMEDY):
                return np.asarray(soundfile.read(opened(), dtype="float64", always_2d=False)[0])

        with naming_damage(self.where(name), _REMEDY):
            facts = soundfile.info(opened())
        return Sound(read, facts.samplerate if fs is None else fs, int(facts.frames), self.where(name))

    # ---- archives

    def _opened(self, member: Any) -> IO[bytes]:
        if self._zip is not None:
            return self._zip.open(member)
        stream = self._tar.extractfile(self._members[member]) if self._tar is not None else None
        if stream is None:
            raise ValueError("it is no regular file")
        return stream

    def _zip_names(self) -> dict[str, str]:
        self._zip = self._close.enter_context(zipfile.ZipFile(self.root))
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        self._check_size(sum(entry.file_size for entry in entries), len(entries))
        found: dict[str, str] = {}
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if entry.flag_bits & 1:
                raise ValueError(f"{entry.filename!r} is encrypted; unpack it with its password first")
            if kind not in (0, stat.S_IFREG):
                continue  # a link
            if _safe(entry.filename) in found:
                raise ValueError(f"it holds two members {entry.filename!r}")
            found[_safe(entry.filename)] = entry.filename
        return found

    def _tar_names(self) -> dict[str, str]:
        stream: IO[bytes] = self._close.enter_context(self.root.open("rb"))
        if stream.read(6).startswith(tuple(_PACKED)):
            stream = self._unpacked()
        stream.seek(0)
        self._tar = self._close.enter_context(tarfile.open(fileobj=stream, mode="r:"))  # noqa: SIM115
        found: dict[str, str] = {}
        for member in self._tar:
            if member.isreg():
                name = _safe(member.name)
                if name in found:
                    raise ValueError(f"it holds two members {member.name!r}")
                found[name], self._members[name] = name, member
            self._check_size(0, len(found))
        return found

    def _unpacked(self) -> IO[bytes]:
        """A compressed tar file, unpacked into a private temporary file: members are then found at once."""
        out: IO[bytes] = self._close.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        done = 0
        with open(self.root, "rb") as stream:
            start = stream.read(6)
        module = next(name for mark, name in _PACKED.items() if start.startswith(mark))
        with importlib.import_module(module).open(self.root, "rb") as packed:
            while block := packed.read(_BLOCK):
                done += len(block)
                self._check_size(done, 0)
                out.write(block)
        return out

    def _check_size(self, n_bytes: int, n_files: int) -> None:
        if n_files > _MOST_FILES:
            raise ValueError(f"it holds more than {_MOST_FILES:,} files")
        if n_bytes > max(_ANY_SIZE, _MOST_RATIO * self.root.stat().st_size):
            raise ValueError(
                f"it unpacks to more than {_MOST_RATIO} times its size; unpack it yourself if you trust it"
            )


def _at_most(stream: IO[bytes], n_bytes: int) -> bytes:
    """What a stream holds, block by block: tar members take the memory that they are asked for at once."""
    blocks = []
    while n_bytes > 0 and (block := stream.read(min(n_bytes, _BLOCK))):
        blocks.append(block)
        n_bytes -= len(block)
    return b"".join(blocks)


def _below(root: Path) -> Iterator[str]:
    """Regular files below a folder (links to files count, links to folders are not followed)."""
    count = 0
    for folder, inner, files in os.walk(root):
        depth = Path(folder).relative_to(root).parts
        inner[:] = [name for name in inner if not name.startswith(".")] if len(depth) < _DEEPEST else []
        for name in files:
            path = Path(folder) / name
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError:  # a link to nothing, or to itself
                continue
            if regular:
                count += 1
                if count > _MOST_FILES:
                    raise ValueError(
                        f"{root} holds more than {_MOST_FILES:,} files; name the folder of the recording"
                    )
                yield path.relative_to(root).as_posix()


def _safe(name: str) -> str:
    """A member's name; ValueError for one that would lie elsewhere when extracted."""
    parts = name.removeprefix("./").split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) or re.match(
        r"[A-Za-z]:", name
    ):
        raise ValueError(f"its member {name!r} is no plain relative name, as archives made to harm have them")
    return "/".join(parts)


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return (
        parts[0] == "__MACOSX"
        or any(part.startswith(".") for part in parts)
        or parts[-1] in ("Thumbs.db", "desktop.ini")
    )


def _common_folder(names: Sequence[str]) -> str:
    """The folders around all files, with "/" at the end."""
    prefix = ""
    while names and all("/" in name[len(prefix) :] for name in names):
        first = names[0][len(prefix) :].split("/")[0] + "/"
        if not all(name.startswith(prefix + first) for name in names):
            break
        prefix += first
    return prefix
