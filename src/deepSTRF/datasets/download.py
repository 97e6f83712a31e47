"""Files of public recordings: folders, downloads, safe unpacking, and a cache of parsed arrays.

A download is resumed where it stopped, retried with growing pauses, verified (length, SHA-256, the file's own
integrity), and gets its final name only when it is complete. Archives are checked entry by entry before
anything is written. A cache entry is named after everything it depends on: package version, parameters, and
the files it was made from; a damaged one is rebuilt, and the folder can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "cache_dir",
    "cached_arrays",
    "data_dir",
    "download_file",
    "fingerprint_files",
    "osf_url",
    "unpack_zip",
]

#: Called with the bytes that are here and the bytes of the whole file (None: unknown).
Advance = Callable[[int, int | None], None]
Arrays = dict[str, npt.NDArray[Any]]

# ---- folders

DATA_DIR_VARIABLE = "DEEPSTRF_DATA_DIR"
CACHE_DIR_VARIABLE = "DEEPSTRF_CACHE_DIR"


def data_dir(name: str) -> Path:
    """The folder of one recording: ``$DEEPSTRF_DATA_DIR/name``, else in the user's cache folder."""
    return _folder(DATA_DIR_VARIABLE) / name


def cache_dir(name: str) -> Path:
    """Folder of parsed copies of a recording, never its own: ``$DEEPSTRF_CACHE_DIR/name`` or the user's."""
    if os.environ.get(CACHE_DIR_VARIABLE):
        return _folder(CACHE_DIR_VARIABLE) / name
    return _folder(CACHE_DIR_VARIABLE) / "parsed" / name


def _folder(variable: str) -> Path:
    """The folder that an environment variable names, else the user's cache folder."""
    named = os.environ.get(variable)
    if named:
        return Path(named).expanduser()
    import pooch

    return Path(pooch.os_cache("deepSTRF"))


# ---- download

OSF_BASE_URL = "https://osf.io/download"
#: Statuses that a second attempt may cure (request timeout, too early, too many requests, server faults).
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
CONNECT_TIMEOUT_S = 30.0
#: Upper limit of the pause that a server may request.
MAX_PAUSE_S = 60.0
#: A broken connection costs at most this: a chunk that is not complete is lost.
CHUNK_BYTES = 1 << 14


def osf_url(guid: str, base_url: str = OSF_BASE_URL) -> str:
    """The download address of a public OSF file."""
    return f"{base_url.rstrip('/')}/{guid}/"


def download_file(
    url: str,
    dest: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    check: Callable[[Path], None] | None = None,
    retries: int = 5,
    pause_s: float = 1.0,
    timeout_s: float = 60.0,
    progress: bool | None = None,
) -> Path:
    """Fetch a file, resuming and retrying, and give it its name only when it is complete and verified.

    A file that is there already is checked against size and hash without touching the network. The body goes
    to ``dest`` + ``.part``, which a later call resumes (HTTP Range, guarded by the server's ETag); two
    processes that fetch the same file wait for each other. Without ``sha256`` the observed hash is written to
    ``dest`` + ``.sha256`` in the format of ``sha256sum``.
    """
    dest = Path(dest)
    if dest.is_file():
        _verify(dest, sha256, size, None, cure="delete it and download it again")
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    with _lock(dest):
        if dest.is_file():  # another process fetched it while we waited
            return dest
        shown = sys.stderr.isatty() if progress is None else progress
        _fetch_with_retries(url, part, size, retries, pause_s, timeout_s, shown)
        try:
            _verify(part, sha256, size, check, cure="the download is deleted; try again")
        except ValueError:
            part.unlink()
            raise
        finally:
            _etag_file(part).unlink(missing_ok=True)
        if sha256 is None:
            line = f"{_sha256(part)}  {dest.name}\n"
            dest.with_name(dest.name + ".sha256").write_text(line, encoding="utf-8")
        os.replace(part, dest)
    return dest


def _fetch_with_retries(
    url: str, part: Path, size: int | None, retries: int, pause_s: float, timeout_s: float, shown: bool
) -> None:
    """Repeat attempts until the body is complete; attempts that bring new bytes do not count."""
    fruitless = 0
    while True:
        before = _size_of(part)
        try:
            with _progress_bar(part.name.removesuffix(".part"), shown) as advance:
                _attempt(url, part, size, timeout_s, advance)
            return
        except _TransientError as error:
            fruitless = 0 if _size_of(part) > before else fruitless + 1
            if fruitless >= retries:
                kept = (
                    f"; {_size_of(part)} bytes are kept in {part} and the next call resumes there"
                    if _size_of(part)
                    else ""
                )
                raise ConnectionError(
                    f"could not fetch {url}: {error} ({retries} attempts in a row brought nothing){kept}. "
                    f"You may also fetch it by hand and put it at {part.with_suffix('')}"
                ) from None  # the chain of a network library's errors is less clear than this
            time.sleep(min(MAX_PAUSE_S, max(error.pause_s, pause_s * 2.0 ** max(0, fruitless - 1))))


class _TransientError(Exception):
    """A failed attempt that may be repeated."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


def _attempt(url: str, part: Path, size: int | None, timeout_s: float, advance: Advance) -> None:
    """Request what is missing once and append it to ``part``."""
    import requests  # comes with pooch

    have = _size_of(part)
    try:
        with requests.get(
            url, headers=_headers(part, have), stream=True, timeout=(CONNECT_TIMEOUT_S, timeout_s)
        ) as answer:
            if answer.status_code == 416 and _total(answer) == have:
                return  # everything had arrived before the last run was stopped
            start = _start_of_body(answer, have)
            total = _total(answer)
            if start == 0:
                _etag_file(part).write_text(answer.headers.get("ETag", ""), encoding="utf-8")
            if size is not None and total is not None and total != size:
                raise ValueError(f"{url} offers {total} bytes, expected {size}: the source has changed")
            if total is not None:
                needed = total - start
                _check_free_space(part.parent, needed, f"{part} needs {needed / 1e6:.0f} MB more")
            done = start
            advance(done, total)
            with open(part, "ab" if start else "wb") as out:
                for block in answer.iter_content(CHUNK_BYTES):
                    out.write(block)
                    done += len(block)
                    advance(done, total)
    except requests.RequestException as error:
        inner = error.args[0] if error.args else error
        raise _TransientError(f"{type(error).__name__}: {getattr(inner, 'reason', inner)}") from error
    if total is not None and _size_of(part) != total:
        raise _TransientError(f"the connection ended after {_size_of(part)} of {total} bytes")


def _headers(part: Path, have: int) -> dict[str, str]:
    from deepSTRF import __version__

    headers = {"User-Agent": f"deepSTRF/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        recorded = _etag_file(part)
        etag = recorded.read_text(encoding="utf-8") if recorded.is_file() else ""
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    return headers


def _start_of_body(answer: Any, have: int) -> int:
    """Position in the file at which the body of an answer begins; raises when there is no usable body."""
    status = int(answer.status_code)
    if status == 200:
        return 0
    if status == 206:
        span = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
        if span == str(have):
            return have
        raise ConnectionError(
            f"{answer.url} answered another range than asked for ({span!r} instead of {have})"
        )
    if status in TRANSIENT_STATUSES:
        after = answer.headers.get("Retry-After", "")
        raise _TransientError(
            f"the server answered {status} {answer.reason}", float(after) if after.isdigit() else 0.0
        )
    if status == 416:
        raise ConnectionError(
            f"{answer.url} has fewer bytes than are here already: the source has changed; "
            "delete the .part file"
        )
    raise ConnectionError(f"{answer.url} answered {status} {answer.reason}; is the address right?")


def _total(answer: Any) -> int | None:
    """Size of the whole file in bytes, None when the server does not give it."""
    whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.status_code == 200 and length.isdigit() else None


def _verify(
    path: Path, sha256: str | None, size: int | None, check: Callable[[Path], None] | None, *, cure: str
) -> None:
    if size is not None and path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {size}; {cure}")
    if sha256 is not None:
        seen = _sha256(path)
        if seen != sha256.lower():
            raise ValueError(f"{path} has the SHA-256 {seen}, expected {sha256.lower()}; {cure}")
    if check is not None:
        check(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _size_of(path: Path) -> int:
    """Size of a file in bytes, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def _etag_file(part: Path) -> Path:
    """File beside a partial download that holds its entity tag."""
    return part.with_name(part.name + ".etag")


@contextlib.contextmanager
def _progress_bar(name: str, shown: bool) -> Iterator[Advance]:
    """Yield ``advance(done, total)``, which draws a bar on stderr when ``shown``."""
    if not shown:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"fetching {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _lock(dest: Path) -> Iterator[None]:
    """Let one process of this machine at a time fetch ``dest`` (where the system offers file locks)."""
    try:
        import fcntl
    except ImportError:  # Windows: two simultaneous first downloads are the user's to avoid
        yield
        return
    name = hashlib.sha256(f"{os.getuid()} {dest.absolute()}".encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir(), f"deepSTRF-{name}.lock"), "a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# ---- unpacking

#: Entries that macOS adds to an archive; they are no part of a recording.
CLUTTER_FOLDERS = {"__MACOSX"}
CLUTTER_FILES = {".DS_Store", "Thumbs.db"}
COPY_BLOCK = 1 << 20


def unpack_zip(archive: str | os.PathLike[str], dest: str | os.PathLike[str]) -> list[Path]:
    """Unpack a zip file into a folder, replacing files that are there already.

    All entries are checked before anything is written, extracted into a hidden folder beside ``dest``,
    verified by their CRC, and then moved in by atomic renames: a run that is killed leaves no truncated file
    under ``dest``.
    """
    archive, dest = Path(archive), Path(dest)
    if not archive.is_file():
        raise FileNotFoundError(f"there is no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked_entries(opened, archive)
            needed = sum(entry.file_size for entry, _ in entries)
            folder = next(parent for parent in (dest.absolute(), *dest.absolute().parents) if parent.exists())
            _check_free_space(folder, needed, f"unpacking into {dest} needs {needed / 1e6:.0f} MB")
            return _extract(opened, entries, archive, dest)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{archive} is no zip file or is damaged ({error}); delete it and download it again"
        ) from error


def _checked_entries(opened: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """File entries with their safe relative paths; folders and clutter are left out."""
    entries: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    seen: set[PurePosixPath] = set()
    for entry in opened.infolist():
        name = entry.filename.replace("\\", "/")
        path = PurePosixPath(name)
        fault = _fault(entry, name, path)
        if fault is None and path in seen and not entry.is_dir():
            fault = "appears twice"
        if fault is not None:
            raise ValueError(
                f"{archive} is not safe to unpack: its entry {entry.filename!r} {fault}; nothing written"
            )
        if entry.is_dir() or CLUTTER_FOLDERS & set(path.parts) or path.name in CLUTTER_FILES:
            continue
        seen.add(path)
        entries.append((entry, path))
    return entries


def _fault(entry: zipfile.ZipInfo, name: str, path: PurePosixPath) -> str | None:
    """Reason why an entry is unsafe, None when it is safe."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not path.parts or "\0" in name:
        return "has no legal name"
    if path.is_absolute() or ":" in path.parts[0]:
        return "has an absolute path"
    if ".." in path.parts:
        return "leaves the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    return None


def _extract(
    opened: zipfile.ZipFile, entries: list[tuple[zipfile.ZipInfo, PurePosixPath]], archive: Path, dest: Path
) -> list[Path]:
    """Extract into a hidden neighbour of ``dest``, then move file by file."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.unpacking-", dir=dest.parent) as hidden:
        for entry, path in entries:
            target = Path(hidden, *path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with opened.open(entry) as source, open(target, "wb") as out:
                    shutil.copyfileobj(source, out, COPY_BLOCK)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise ValueError(
                    f"{archive} is damaged at its entry {entry.filename!r} ({error}); "
                    "delete it and download it again"
                ) from error
        for _, path in entries:
            final = dest.joinpath(*path.parts)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(hidden, *path.parts), final)
            written.append(final)
    return written


def _check_free_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{what}, the disk has {free / 1e6:.0f} MB left")


# ---- cache of parsed arrays

#: Raise it when the meaning of a stored array changes without a change of the package version.
CACHE_FORMAT = 1
#: Bytes of the beginning and of the end of a file that enter its fingerprint, beside size and time stamp.
SAMPLED_BYTES = 4096
#: Entries of one recording beyond this number are removed, oldest first, to bound the disk space of a sweep.
MAX_ENTRIES = 24
#: Everything that reading a damaged .npz file can raise.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_KEY_MEMBER = "cache_key"


def fingerprint_files(root: str | os.PathLike[str], names: Iterable[str]) -> str:
    """Hash of each file's name, size, time of modification, and first and last 4 KiB."""
    digest = hashlib.sha256()
    for name in names:
        with open(Path(root, name), "rb") as source:
            facts = os.fstat(source.fileno())
            digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
            digest.update(source.read(SAMPLED_BYTES))
            source.seek(max(0, facts.st_size - SAMPLED_BYTES))
            digest.update(source.read(SAMPLED_BYTES))
    return digest.hexdigest()


def cached_arrays(
    name: str,
    product: str,
    depends_on: Mapping[str, Any],
    build: Callable[[], Arrays],
    *,
    members: Iterable[str] | None = None,
    enabled: bool = True,
) -> Arrays:
    """The arrays of ``build()``, from the cache when an intact entry is there."""
    if not enabled:
        return build()
    key = _key(product, depends_on)
    path = cache_dir(name) / f"{product}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
    wanted = None if members is None else list(members)
    stored = _read(path, key, wanted)
    if stored is not None:
        return stored
    arrays = build()
    _write(path, key, arrays)
    return arrays if wanted is None else {member: arrays[member] for member in wanted}


def _key(product: str, depends_on: Mapping[str, Any]) -> str:
    from deepSTRF import __version__

    facts = {"format": CACHE_FORMAT, "version": __version__, "product": product, **depends_on}
    return json.dumps(facts, sort_keys=True)


def _read(path: Path, key: str, wanted: list[str] | None) -> Arrays | None:
    """Arrays of an entry, None when it is absent, damaged or of another key."""
    try:
        with zipfile.ZipFile(path) as entry:
            if str(_member(entry, _KEY_MEMBER)) != key:
                return None
            stored = [name.removesuffix(".npy") for name in entry.namelist()]
            names = [name for name in stored if name != _KEY_MEMBER] if wanted is None else wanted
            return {name: _member(entry, name) for name in names}
    except DAMAGE:
        return None


def _member(entry: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One array of an .npz file; reading the whole member first checks its CRC, header included."""
    content = io.BytesIO(entry.read(f"{name}.npy"))
    array: npt.NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    return array


def _write(path: Path, key: str, arrays: Arrays) -> None:
    """Write an entry under a temporary name, rename it, and remove the oldest beyond `MAX_ENTRIES`."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as out:
            np.savez(out, allow_pickle=False, **{_KEY_MEMBER: np.array(key)}, **arrays)
        os.replace(temporary, path)
        entries = sorted(path.parent.glob("*.npz"), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries[MAX_ENTRIES:]:
            entry.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        warnings.warn(
            f"the parsed recording could not be cached at {path} ({error}), so the next load takes as long "
            f"as this one; set {CACHE_DIR_VARIABLE} to a folder with free space, or pass cache=False",
            stacklevel=4,
        )
