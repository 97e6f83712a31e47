"""Files that are written whole or not at all, and verified when they are read again.

A crash, a kill or a full disk leaves the version that was there before. What the package writes and reads
again is an artefact of one of two forms, both with a kind, sizes and SHA-256:

- a folder (checkpoint, run, explanation) with a ``manifest.json``: `replace_folder`, `read_folder`;
- one file with a seal inside: zip files (.npz, .pt) in their comment, where every reader of zip files
  ignores it (`write_sealed_zip`, `check_zip_seal`), JSON in the key ``sha256`` (`write_sealed_json`,
  `read_json`).

Files of earlier versions have neither; they load with one warning (`warn_unsealed`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import socket
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from deepSTRF._text import csv_table
from deepSTRF._validation import memory_bytes

__all__ = [
    "MANIFEST",
    "Artefact",
    "DamagedFileError",
    "adding_manifest",
    "append_line",
    "check_kind",
    "check_place",
    "check_regular",
    "check_target",
    "check_zip_seal",
    "file_facts",
    "held_lock",
    "json_safe",
    "load_npy",
    "load_npz",
    "load_sealed_npz",
    "load_tensors",
    "naming_damage",
    "npz_bytes",
    "read_bytes",
    "read_folder",
    "read_json",
    "read_text",
    "remove_abandoned",
    "remove_folder",
    "replace_file",
    "replace_folder",
    "save_or_warn",
    "save_tensors",
    "scratch_name",
    "sealed_json",
    "sealed_zip",
    "warn_unsealed",
    "write_atomically",
    "write_json",
    "write_sealed_json",
]

#: Content of a file, whole or in pieces.
Content = bytes | Iterable[bytes]
ContentT = TypeVar("ContentT", bound=Content)

#: No text file that the package reads comes near this size in bytes.
TEXT_LIMIT = 256_000_000
_CHUNK = 1 << 20
#: Blocks of an array that is read from a zip file.
_BLOCK = 1 << 18
#: Below this size, an array is read at once.
_SMALL = 16_000_000
#: The most that a byte of a deflated stream can become.
_MOST_INFLATION = 1032


class DamagedFileError(ValueError):
    """A file that the package wrote is damaged, or is not of the package: no argument is wrong, it is."""


@contextlib.contextmanager
def naming_damage(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Turn what parsing a broken file raises into a `DamagedFileError` that names it, and what to do."""
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:  # parsers raise every class: TokenError, OSError without a name
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise damaged(path, f"{type(error).__name__}: {error}"[:300], remedy) from error


def damaged(path: str | os.PathLike[str], what: object, remedy: str) -> DamagedFileError:
    """The error for a file that cannot be trusted, in one sentence."""
    reason = " ".join(str(what).split())  # on one line
    return DamagedFileError(f"{os.fspath(path)} is damaged or not of deepSTRF ({reason}); {remedy}")


def warn_unsealed(path: str | os.PathLike[str], remedy: str) -> None:
    """Warn once that a file of an earlier version holds no checksums."""
    warnings.warn(
        f"{os.fspath(path)} is of an earlier version of deepSTRF and holds no checksums, so damage to it "
        f"would not be found; {remedy}",
        UserWarning,
        stacklevel=3,
    )


# ---- reading


def check_regular(path: str | os.PathLike[str], *, limit: int | None = None) -> os.stat_result:
    """Facts of a regular file of at most ``limit`` bytes; links are followed, for reading only.

    A pipe, socket or device would block or never end, so it is refused before it is opened.
    """
    facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; a file is needed", os.fspath(path))
    if not stat.S_ISREG(facts.st_mode):
        raise DamagedFileError(
            f"{os.fspath(path)} is no regular file but a pipe, socket or device; name a file, or copy its "
            "content into one"
        )
    if limit is not None and facts.st_size > limit:
        raise DamagedFileError(
            f"{os.fspath(path)} has {facts.st_size:,} bytes, none of its kind more than {limit:,}; "
            "name the file that was meant"
        )
    return facts


def read_bytes(path: str | os.PathLike[str], *, limit: int | None = None) -> bytes:
    """Content of a regular file."""
    check_regular(path, limit=limit)
    with open(path, "rb") as stream:
        return stream.read()


def read_text(path: str | os.PathLike[str], remedy: str = "save it as UTF-8 text") -> str:
    """Text of a regular UTF-8 file; a byte order mark of UTF-8 is skipped."""
    content = read_bytes(path, limit=TEXT_LIMIT)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(
            path, f"no UTF-8 text: byte {error.start} is {content[error.start]:#04x}", remedy
        ) from error


def read_json(path: str | os.PathLike[str], remedy: str, *, sealed: bool = False) -> Any:
    """What a JSON file holds; a seal (see `write_sealed_json`) is verified and left out.

    ``sealed``: a file without a seal is an error, not of an earlier version.
    """
    text = read_text(path, remedy)
    with naming_damage(path, remedy):
        tree = json.loads(text)
    if isinstance(tree, dict) and _SEAL in tree:
        seal = tree.pop(_SEAL)
        if seal != _json_digest(tree):
            raise damaged(
                path, "its checksum is of another content: it was changed since it was written", remedy
            )
    elif sealed:
        raise damaged(path, "it has lost its checksum", remedy)
    return tree


def load_npy(path: str | os.PathLike[str], remedy: str = "save it again with numpy.save") -> NDArray[Any]:
    """The array in an .npy file, never a pickle; no header makes it allocate more than the file holds."""
    size = check_regular(path).st_size
    with naming_damage(path, remedy), open(path, "rb") as stream:
        return _read_array(stream, Path(path).name, size)


def load_npz(
    source: str | os.PathLike[str] | bytes, members: Sequence[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file, without pickles; no header makes it allocate more than the file holds."""
    if not isinstance(source, bytes):
        check_regular(source)
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()] if members is None else members
        entries = {name: archive.getinfo(f"{name}.npy") for name in names}
        sizes = {n: min(e.file_size, e.compress_size * _MOST_INFLATION + _BLOCK) for n, e in entries.items()}
        if sum(sizes.values()) > memory_bytes():
            raise ValueError(
                f"its arrays take {sum(sizes.values()):,} bytes, more than the memory of this machine"
            )
        for name, entry in entries.items():
            with archive.open(entry) as stream:
                arrays[name] = _read_array(stream, name, sizes[name])
    return arrays


def load_sealed_npz(
    path: str | os.PathLike[str], kind: str, remedy: str, members: Sequence[str] | None = None
) -> tuple[dict[str, NDArray[Any]], bool]:
    """Arrays of an .npz file, and whether it has a seal, which another thread verifies meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        seal = pool.submit(check_zip_seal, path, kind, remedy)
        try:
            arrays = load_npz(path, members)
        finally:
            sealed = seal.result()  # what is wrong with the seal is said first
    return arrays, sealed


def _read_array(stream: IO[bytes], name: str, most: int) -> NDArray[Any]:
    """One .npy member of at most ``most`` bytes, read to its end, which checks its CRC."""
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"the array {name!r} is of version {version} of the .npy format")
    shape, fortran_order, dtype = read_header[version](stream)
    if dtype.hasobject:
        raise ValueError(f"the array {name!r} holds Python objects, which are not loaded")
    size, done = math.prod(shape) * dtype.itemsize, 0
    if min(shape, default=0) < 0 or size > most:
        raise ValueError(f"the array {name!r} states the shape {shape} and holds at most {most} bytes")
    content = np.empty(size, dtype=np.uint8)
    # blocks stay in the processor's cache; a small file at once lets the C library keep its pages for reuse
    while block := stream.read(_BLOCK if size > _SMALL else _SMALL):
        if done + len(block) > size:
            raise ValueError(f"the array {name!r} states the shape {shape} and holds more")
        content[done : done + len(block)] = np.frombuffer(block, dtype=np.uint8)
        done += len(block)
    if done != size:
        raise ValueError(f"the array {name!r} states the shape {shape} and holds {done} bytes")
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    return np.ndarray(shape, dtype=dtype, buffer=content.data, order=order)


# ---- writing


def check_target(path: str | os.PathLike[str], start: bytes | None = None) -> None:
    """Raise OSError where no file can be written: before the work whose result is to go there.

    ``start``: what is there may be replaced when it begins like that, is empty, and in no manifest beside it.
    """
    target, name = Path(os.path.realpath(path)), os.fspath(path)
    _check_replaceable(target, path)
    if start is not None and target.is_file():
        with open(target, "rb") as stream:
            held = stream.read(len(start))
        if held not in (b"", start) or _is_listed(target):
            what = "it holds something else, which would be lost; name another file, or remove it first"
            raise FileExistsError(errno.EEXIST, what, name)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file in it", name)
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder; name another file", name)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no right to write into {folder}; name another file", name)


def _is_listed(target: Path) -> bool:
    """Whether a manifest in the folder of a file lists it."""
    with contextlib.suppress(OSError, ValueError):
        return target.name in (_parse_manifest(target.parent, target.parent / MANIFEST, None, "").files or ())
    return False


def _check_replaceable(target: Path, path: str | os.PathLike[str]) -> None:
    """Raise FileExistsError where a file would take the place of a pipe or device."""
    if target.exists() and not target.is_file() and not target.is_dir():
        what = "it is no regular file but a pipe, socket or device; name a file"
        raise FileExistsError(errno.EEXIST, what, os.fspath(path))


def write_atomically(path: str | os.PathLike[str], data: bytes, *, follow_links: bool = True) -> None:
    """Write a file whole or not at all: the old content stays until the new one is safely on the disk.

    A link that the user named stays a link, and a pipe or device is refused. ``follow_links`` False is for
    files that are only ours: whatever stands there, but a folder, is replaced itself.
    """
    with replace_file(path, follow_links=follow_links) as temporary:
        _write_durably(temporary, data)


def csv_of(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str] | None = None, columns: Sequence[str] = ()
) -> str:
    """Rows with the same keys as CSV, also written when a path is given; a missing value is an empty cell.

    ``columns`` are the head where there are no rows.
    """
    cells = [["" if _is_missing(value) else value for value in row.values()] for row in rows]
    return _also_written(csv_table([list(rows[0] if rows else columns), *cells]), path)


def json_of(content: Any, path: str | os.PathLike[str] | None = None) -> str:
    """A tree as JSON, also written when a path is given; NaN is null."""
    return _also_written(json.dumps(json_safe(content), indent=1, allow_nan=False), path)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _also_written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        write_atomically(path, text.encode("utf-8"))
    return text


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str], *, follow_links: bool = True) -> Iterator[Path]:
    """Yield the path of a file to be written, which takes the place of ``path`` when the block ends well.

    For what a library writes by itself; see `write_atomically`.
    """
    target = Path(os.path.realpath(path) if follow_links else os.path.abspath(path))
    if follow_links:
        _check_replaceable(target, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file lies beside the target: os.replace is atomic only within one file system.
    hidden = f".{target.name[:100]}."  # so that the longest legal name stays legal
    remove_abandoned(target.parent, hidden)
    temporary = target.with_name(f"{hidden}{scratch_name()}")
    try:
        yield temporary
        if target.is_file() and (follow_links or not target.is_symlink()):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(target)  # a failed write names no file, the temporary one helps nobody
        raise


def _write_durably(path: Path, data: Content) -> None:
    with open(path, "xb") as stream:
        stream.writelines((data,) if isinstance(data, bytes) else data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Return arrays as the content of a compressed .npz file."""
    buffer = io.BytesIO()
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez_compressed(buffer, **plain)  # type: ignore[arg-type]
    return buffer.getvalue()


def json_safe(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: NaN and infinities become None, tensors become lists."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, NumPy arrays and NumPy numbers
        return json_safe(value.tolist())
    if isinstance(value, Iterable):
        return [json_safe(item) for item in value]
    return repr(value)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON that every reader accepts; see `json_safe`."""
    write_atomically(path, (json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n").encode())


def append_line(path: str | os.PathLike[str], value: Any) -> None:
    """Add a value as one line of JSON to a log; lines of several processes do not mix on a local disk."""
    line = json.dumps(json_safe(value), allow_nan=False) + "\n"
    with open(path, "ab", buffering=0) as stream:
        stream.write(line.encode())


def save_or_warn(name: str, path: str | os.PathLike[str], save: Callable[[], None]) -> bool:
    """Save a file of a running fit; when the disk refuses, warn and let the fit go on."""
    try:
        save()
    except OSError as error:
        warnings.warn(
            f"{name}={os.fspath(path)} could not be written ({error}). The fit goes on and keeps its best "
            "weights in memory; the file is as it was before. Free some space or name another path",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


# ---- locks

#: What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def held_lock(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold a lock file for a block: True, or False where another process or thread holds it.

    The lock is the operating system's, so that it ends with its process, however that ends; the file is
    removed with it. Where the file system has no locks, a warning says so and the block goes on.
    """
    handle = _take_lock(Path(path))
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):  # on Windows, an open file cannot be removed
                os.unlink(path)
            os.close(handle)


def _take_lock(path: Path) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock_at_once(handle)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    return None
                raise
            warnings.warn(
                f"the file system of {path.parent} has no locks ({error.strerror}): run no two processes "
                "that write there at the same time",
                UserWarning,
                stacklevel=4,
            )
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # whoever held it has removed the file since it was opened


def _lock_at_once(handle: int) -> None:
    """Lock an open file, or raise OSError when it is locked."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- seals in single files

#: Key of the checksum in a JSON file.
_SEAL = "sha256"
#: Start and signature of the last record of a zip file, and its length without a comment.
_ZIP_END, _ZIP_END_LENGTH = b"PK\x05\x06", 22
#: What the comment of a sealed zip file starts with.
_ZIP_SEAL = b'{"deepSTRF": '
_MOST_COMMENT = 65_535


def write_sealed_json(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
    """Write a dictionary as JSON with the SHA-256 of its content, which `read_json` verifies."""
    write_atomically(path, sealed_json(tree))


def sealed_json(tree: Mapping[str, Any]) -> bytes:
    """A dictionary as JSON text with the SHA-256 of its content as the last key."""
    plain = json_safe(tree)
    return (json.dumps({**plain, _SEAL: _json_digest(plain)}, indent=1, allow_nan=False) + "\n").encode()


def _json_digest(tree: Any) -> str:
    """SHA-256 of a JSON value, whatever its layout and the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed_zip(content: bytes, kind: str) -> bytes:
    """A zip file (.npz, .pt) with its kind, size and SHA-256 in its comment."""
    if content[-_ZIP_END_LENGTH:][:4] != _ZIP_END or content[-2:] != b"\0\0":
        raise ValueError("content must be a zip file without a comment")
    facts = {"kind": kind, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    comment = _ZIP_SEAL + json.dumps(facts).encode() + b"}"
    return b"".join((memoryview(content)[:-2], len(comment).to_bytes(2, "little"), comment))


def check_zip_seal(path: str | os.PathLike[str], kind: str | None, remedy: str) -> bool:
    """Verify a file of `sealed_zip`; False for a zip file without a seal. ``kind`` None is any.

    Raises
    ------
    DamagedFileError
        When the content is not the one that was sealed, is of another kind, or is no zip file.
    """
    size = check_regular(path).st_size
    with open(path, "rb") as stream:
        stream.seek(max(0, size - _ZIP_END_LENGTH - _MOST_COMMENT))
        tail = stream.read()
        at = tail.rfind(_ZIP_END, 0, max(0, len(tail) - _ZIP_END_LENGTH + 4))
        while at >= 0 and tail[at + 20 : at + 22] != (len(tail) - at - _ZIP_END_LENGTH).to_bytes(2, "little"):
            at = tail.rfind(_ZIP_END, 0, at)  # a comment may hold these four bytes too
        if at < 0:
            raise damaged(path, "it is no complete zip file", remedy)
        comment = tail[at + _ZIP_END_LENGTH :]
        if not comment:
            return False
        with naming_damage(path, remedy):
            if not comment.startswith(_ZIP_SEAL):
                raise ValueError("its seal is unreadable")
            facts = json.loads(comment)["deepSTRF"]
            length = size - len(comment)
            if kind not in (None, facts["kind"]):
                raise ValueError(f"it is a {facts['kind']}, not a {kind}")
            if facts["size"] != length:
                raise ValueError(f"it has {length:,} bytes, {facts['size']:,} were written")
            stream.seek(0)
            digest = _digest(stream, length - 2)
            digest.update(b"\0\0")
            if facts["sha256"] != digest.hexdigest():
                raise ValueError("its content is not the one that was written")
    return True


def _digest(stream: IO[bytes], length: int) -> Any:
    """SHA-256 of the next ``length`` bytes."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_CHUNK))
    while length > 0 and (n := stream.readinto(block[: min(_CHUNK, length)])):  # type: ignore[attr-defined]
        digest.update(block[:n])
        length -= n
    return digest


def file_facts(path: str | os.PathLike[str]) -> tuple[int, str]:
    """Size and SHA-256 of a file, which is read in pieces."""
    size = check_regular(path).st_size
    with open(path, "rb") as stream:
        return size, _digest(stream, size).hexdigest()


def write_sealed_zip(path: str | os.PathLike[str], content: bytes, kind: str) -> None:
    """Write the content of a zip file with its seal, atomically."""
    write_atomically(path, sealed_zip(content, kind))


def save_tensors(path: str | os.PathLike[str], tree: Any, kind: str = "tensors") -> None:
    """Save a tree of tensors and plain values with ``torch.save`` and a seal, atomically."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    write_sealed_zip(path, buffer.getvalue(), kind)


def load_tensors(path: str | os.PathLike[str], kind: str | None = None) -> Any:
    """Load what `save_tensors` or ``torch.save`` wrote, onto the CPU, executing nothing from the file.

    A seal is verified. With a ``kind``, a file without one is of an earlier version: it loads with a warning.
    """
    remedy = "delete it or name another path"
    check_regular(path)
    with open(path, "rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"  # else weights that an early version of torch wrote
    if (kind is not None or is_zip) and not check_zip_seal(path, kind, remedy) and kind is not None:
        warn_unsealed(path, "the next save adds them")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises every class, OSError without a name too
        reason = f"no readable file of tensors, {type(error).__name__}: {error}"[:300]
        raise damaged(path, reason, remedy) from error


# ---- folders with a manifest

#: Name of the list of files, sizes and SHA-256 of a folder artefact.
MANIFEST = "manifest.json"
#: Layout of the manifest.
MANIFEST_FORMAT = 1
#: A new version that is complete and on its way into its place; see `replace_folder`.
_STAGED = ".deepSTRF-staged"
#: Versions of other processes that one waits for at most.
_MOST_RACES = 100
#: A new version that is being written; see `scratch_name`.
_WRITING = ".deepSTRF-writing-"


@dataclass(frozen=True)
class Artefact:
    """A folder artefact and its manifest.

    Attributes
    ----------
    folder : Path
        The folder.
    kind : str
        "checkpoint", "run" or "explanation".
    files : mapping of str to (size, sha256), or None
        What the manifest lists; None for a folder of an earlier version, without a manifest.
    complete : bool
        False while what the folder is for is still being made.
    later : tuple of str
        Files that may be made later, which belong to the artefact and are not verified.
    remedy : str
        What to do with a damaged file, for error messages.
    """

    folder: Path
    kind: str
    files: Mapping[str, tuple[int, str]] | None
    complete: bool
    later: tuple[str, ...]
    remedy: str

    def has(self, name: str) -> bool:
        """Whether a file is listed, or, without a manifest, is there."""
        return (self.folder / name).is_file() if self.files is None else name in self.files

    def check_there(self) -> None:
        """Raise DamagedFileError unless all listed files are there with their sizes, a README with any."""
        for name, (size, _) in (self.files or {}).items():
            self._check_size(name, None if Path(name).stem == "README" else size)

    def _check_size(self, name: str, size: int | None) -> None:
        path = self.folder / name
        if not path.exists():
            raise damaged(path, "the file is missing", self.remedy)
        found = check_regular(path).st_size
        if size not in (None, found):
            raise damaged(path, f"it has {found:,} bytes, {size:,} were written", self.remedy)

    def path(self, name: str) -> Path:
        """Path of a file, after its size and SHA-256 were verified."""
        path = self.folder / name
        if self.files is None:
            return path
        if name not in self.files:
            raise damaged(path, f"{MANIFEST} does not list it", self.remedy)
        size, sha256 = self.files[name]
        self._check_size(name, size)
        with open(path, "rb") as stream:
            if _digest(stream, size).hexdigest() != sha256:
                raise damaged(path, "its content is not the one that was written", self.remedy)
        return path

    def read(self, name: str) -> bytes:
        """Verified content of a file."""
        return read_bytes(self.path(name))

    def text(self, name: str) -> str:
        """Verified text of a file."""
        return read_text(self.path(name), self.remedy)

    def json(self, name: str) -> Any:
        """Verified content of a JSON file; its own keys may have any name."""
        with naming_damage(self.folder / name, self.remedy):
            return json.loads(self.text(name))


def read_folder(folder: str | os.PathLike[str], kind: str, remedy: str) -> Artefact:
    """Read the manifest of a folder, after an interrupted `replace_folder` was finished.

    Files are verified one by one when they are read through the `Artefact`. Without a manifest,
    ``Artefact.files`` is None: the caller decides whether that is an earlier version or damage.
    """
    root = Path(folder)
    _finish_staged(root)
    if not (root / MANIFEST).exists():
        return Artefact(root, kind, None, True, (), remedy)
    return _parse_manifest(root, root / MANIFEST, kind, remedy)


def _parse_manifest(root: Path, path: Path, kind: str | None, remedy: str) -> Artefact:
    tree = read_json(path, remedy, sealed=True)
    with naming_damage(path, remedy):
        if tree["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {tree['format']!r}: install a newer deepSTRF")
        if kind is not None and tree["kind"] != kind:
            raise ValueError(f"it is of a {tree['kind']}, not of a {kind}")
        files = {
            _plain(name): (int(facts["size"]), str(facts["sha256"])) for name, facts in tree["files"].items()
        }
        later = tuple(_plain(name) for name in tree["later"])
        return Artefact(root, str(tree["kind"]), files, bool(tree["complete"]), later, remedy)


def _plain(name: str) -> str:
    """A relative file name without ``..``; ValueError for others, which could lie anywhere."""
    parts = name.split("/")
    if any(
        part in ("", ".", "..") or part != part.strip("\0") or "\\" in part or ":" in part for part in parts
    ):
        raise ValueError(f"{name!r} is no plain relative file name")
    return name


class _Counted:
    """A content in pieces, and its size and SHA-256 once it has been taken."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.size, self._digest = 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.size += len(piece)
            self._digest.update(piece)
            yield piece

    def facts(self) -> dict[str, Any]:
        """What the manifest lists."""
        return {"size": self.size, "sha256": self._digest.hexdigest()}


def adding_manifest(
    files: Iterable[tuple[str, ContentT]], kind: str, *, complete: bool = True, later: Iterable[str] = ()
) -> Iterator[tuple[str, ContentT | Any]]:
    """Yield names and contents as they come, and last the manifest that lists them.

    A content in pieces is taken, to its end, before the next name.
    """
    listed = {}
    for name, content in files:
        plain = _plain(name)
        if isinstance(content, bytes):
            listed[plain] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            yield name, content
        else:
            counted = _Counted(content)
            yield name, counted
            listed[plain] = counted.facts()
    facts = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "complete": complete,
        "later": [_plain(n) for n in later],
    }
    yield MANIFEST, sealed_json({**facts, "files": listed})


def replace_folder(
    folder: str | os.PathLike[str],
    files: Iterable[tuple[str, Content]],
    kind: str,
    *,
    complete: bool = True,
    later: Iterable[str] = (),
) -> None:
    """Write a folder artefact in place of an earlier one, whose files stay until the new ones are whole.

    The files are written into a hidden folder inside, which is renamed when all are on the disk: from then
    on the new version counts, and moving the files to their places is finished by the next reader or writer
    if this process is killed. Files that only the earlier manifest lists are removed; others stay.

    Parameters
    ----------
    folder : path
        Made when it is not there; a failing call removes what it has made.
    files : iterable of (name, bytes)
        Names relative to the folder, with ``/``; may be a generator, so that one content is held at a time,
        and a content may be an iterable of pieces of it.
    kind, complete, later
        See `Artefact`.

    Raises
    ------
    FileExistsError
        When a link or a folder stands where a file should go: nothing is written through links. Also when
        the folder holds an artefact of another kind, or somebody else's ``manifest.json``.
    OSError
        When the disk is full; the text names the file, and the earlier version is as it was.
    """
    root = Path(folder)
    check_kind(root, kind)
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        remove_abandoned(root, _WRITING)
        _finish_staged(root)
        writing = root / f"{_WRITING}{scratch_name()}"
        try:
            writing.mkdir()
            for name, content in adding_manifest(files, kind, complete=complete, later=later):
                check_place(root, name)
                target = writing / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    _write_durably(target, content)
                except OSError as error:
                    error.filename = os.fspath(root / name)
                    raise
            for inner in {path.parent for path in writing.rglob("*")}:
                _sync_folder(inner)
            _stage(writing, root)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        _sync_folder(root)
        _finish_staged(root)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # holds something: of another process, or the new version
                path.rmdir()
        raise


def check_kind(root: Path, kind: str) -> None:
    """Raise FileExistsError for a folder whose manifest is of another kind, or not ours."""
    if not os.path.lexists(root / MANIFEST):
        return
    content = b""
    try:
        content = read_bytes(root / MANIFEST, limit=TEXT_LIMIT)
        tree = json.loads(content)
    except (OSError, ValueError, RecursionError):
        if not content or b'"format"' in content or b'"files"' in content:  # ours, damaged: to be replaced
            return
        tree = None
    found = tree.get("kind") if isinstance(tree, dict) and "files" in tree else None
    if found != kind:
        what = f"is of kind {found!r}" if found else "is not of deepSTRF"
        raise FileExistsError(
            f"{root / MANIFEST} {what}, and files of kind {kind!r} would replace its own; give another folder"
        )


def check_place(root: Path, name: str) -> None:
    """Raise FileExistsError where writing ``root/name`` would go through a link or meet a folder."""
    path = root
    for part in Path(_plain(name)).parts[:-1]:
        path = path / part
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            what = "a link" if path.is_symlink() else "no folder"
            raise FileExistsError(f"{path} is {what}, and {name} is to be written there; remove it first")
    if (root / name).is_dir() and not (root / name).is_symlink():
        raise FileExistsError(
            f"{root / name} is a folder, and a file is to be written there; remove it first"
        )


def _stage(writing: Path, root: Path) -> None:
    """Let a written version count, after those that other processes have staged meanwhile."""
    staged = root / _STAGED
    if staged.is_symlink():
        staged.unlink()
    for attempt in range(_MOST_RACES):
        try:
            os.rename(writing, staged)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _MOST_RACES - 1:
                raise
            _finish_staged(root)
        else:
            return


def _finish_staged(root: Path) -> None:
    """Move a complete new version to its place; safe to repeat, and to do in two processes at once."""
    staged = root / _STAGED
    if staged.is_symlink() or not staged.is_dir():  # nothing is moved out of a folder elsewhere
        return
    try:
        if (staged / MANIFEST).is_file():
            new = _parse_manifest(staged, staged / MANIFEST, None, f"delete {staged}")
            for name in new.files or ():
                check_place(staged, name)
                if (staged / name).exists():
                    check_place(root, name)
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # another process was faster
                        os.replace(staged / name, root / name)
            _remove_listed(root, kept=new.files or ())
            with contextlib.suppress(FileNotFoundError):
                os.replace(staged / MANIFEST, root / MANIFEST)
        _sync_folder(root)
    except FileNotFoundError:  # another process has finished it
        return
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            "a finished save was interrupted before its files were in place; open it once with the right to "
            "write there",
            os.fspath(root),
        ) from error
    shutil.rmtree(staged, ignore_errors=True)


def _remove_listed(root: Path, kept: Iterable[str] = ()) -> None:
    """Remove the files that the manifest in ``root`` lists, unless they were changed since."""
    if not (root / MANIFEST).is_file():
        return
    try:
        old = _parse_manifest(root, root / MANIFEST, None, "")
    except DamagedFileError:  # what it listed stays, rather than that something else goes
        return
    gone = {*(old.files or ()), *old.later} - set(kept)
    for name in sorted(gone):
        with contextlib.suppress(OSError, ValueError):
            check_place(root, name)
            if name in (old.files or ()):
                old.path(name)
            (root / name).unlink()
    for folder in sorted({parent for name in gone for parent in Path(name).parents[:-1]}, reverse=True):
        with contextlib.suppress(OSError):  # holds something else
            (root / folder).rmdir()


def remove_folder(folder: str | os.PathLike[str]) -> None:
    """Remove a folder artefact: unchanged files that its manifest lists, and the folder once empty."""
    root = Path(folder)
    if root.is_symlink() or not root.is_dir():
        return
    remove_abandoned(root, _WRITING)
    _finish_staged(root)
    _remove_listed(root)
    with contextlib.suppress(OSError):
        (root / MANIFEST).unlink(missing_ok=True)
        root.rmdir()


def scratch_name() -> str:
    """End of the name of what this process is writing: machine, process and a random word."""
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f"{machine}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_abandoned(folder: Path, start: str) -> None:
    """Remove what processes of this machine, killed since, were writing."""
    machine = scratch_name().split("-")[0]
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            parts = entry.name.removeprefix(start).split("-")
            if not entry.name.startswith(start) or len(parts) != 3 or not parts[2].endswith(".tmp"):
                continue
            if parts[0] == machine and parts[1].isdigit() and not _is_running(int(parts[1])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _is_running(process: int) -> bool:
    if process == os.getpid() or os.name == "nt":  # on Windows, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
