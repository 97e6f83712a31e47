"""Parsed copies of a recording: arrays in one file each, written atomically, checked when read, no pickle.

A cache entry is named after everything it depends on: the package version, the parameters, and the files it
was made from. An entry that is damaged or belongs to something else is rebuilt, and losing the whole folder
costs nothing but time.
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
from typing import IO, Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "TransientError",
    "attempt",
    "cache_dir",
    "cached_arrays",
    "data_dir",
    "download_file",
    "etag_file",
    "fingerprint_files",
    "osf_url",
    "progress_bar",
    "size_of",
    "unpack_zip",
]

# ------------------------------------------------------------------------------
# One attempt at a download: ask for what is missing, append it, say what went wrong.


#: Called with the bytes that are here and the bytes of the whole file (None: unknown).
Advance = Callable[[int, int | None], None]

#: Statuses that a second try may cure (request timeout, too early, too many requests, server faults).
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
CONNECT_TIMEOUT_S = 30.0
#: What a broken connection can cost at most: a chunk that is not complete is lost.
CHUNK_BYTES = 1 << 14


class TransientError(Exception):
    """A failed attempt that may be repeated."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


def attempt(url: str, part: Path, size: int | None, timeout_s: float, advance: Advance) -> None:
    """Ask once for what is missing and append it to ``part``."""
    import requests  # comes with pooch

    have = size_of(part)
    try:
        with requests.get(
            url, headers=_headers(part, have), stream=True, timeout=(CONNECT_TIMEOUT_S, timeout_s)
        ) as answer:
            if answer.status_code == 416 and _total(answer) == have:
                return  # everything had arrived before the last run was stopped
            start = _start_of_body(answer, have)
            total = _total(answer)
            if start == 0:
                etag_file(part).write_text(answer.headers.get("ETag", ""), encoding="utf-8")
            if size is not None and total is not None and total != size:
                raise ValueError(f"{url} offers {total} bytes, expected {size}: the source has changed")
            _check_room(part, None if total is None else total - start)
            with open(part, "ab" if start else "wb") as out:
                _copy(answer, out, start, total, advance)
    except requests.RequestException as error:
        inner = error.args[0] if error.args else error
        raise TransientError(f"{type(error).__name__}: {getattr(inner, 'reason', inner)}") from error
    if total is not None and size_of(part) != total:
        raise TransientError(f"the connection ended after {size_of(part)} of {total} bytes")


def _headers(part: Path, have: int) -> dict[str, str]:
    from deepSTRF import __version__

    headers = {"User-Agent": f"deepSTRF/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        recorded = etag_file(part)
        etag = recorded.read_text(encoding="utf-8") if recorded.is_file() else ""
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    return headers


def _start_of_body(answer: Any, have: int) -> int:
    """Return the position in the file at which the body of this answer begins, or raise."""
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
        raise TransientError(
            f"the server answered {status} {answer.reason}", float(after) if after.isdigit() else 0.0
        )
    if status == 416:
        raise ConnectionError(
            f"{answer.url} has fewer bytes than are here already: the source has changed; "
            "delete the .part file"
        )
    raise ConnectionError(f"{answer.url} answered {status} {answer.reason}; is the address right?")


def _total(answer: Any) -> int | None:
    """Return the size of the whole file as far as the server tells."""
    whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.status_code == 200 and length.isdigit() else None


def _copy(answer: Any, out: IO[bytes], start: int, total: int | None, advance: Advance) -> None:
    done = start
    advance(done, total)
    for block in answer.iter_content(CHUNK_BYTES):
        out.write(block)
        done += len(block)
        advance(done, total)


def _check_room(part: Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed is not None and needed > free:
        raise OSError(f"{part} needs {needed / 1e6:.0f} MB more, the disk has {free / 1e6:.0f} MB left")


def size_of(path: Path) -> int:
    """Size of a file in bytes, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def etag_file(part: Path) -> Path:
    """File beside a partial download that holds its entity tag."""
    return part.with_name(part.name + ".etag")


@contextlib.contextmanager
def progress_bar(name: str, shown: bool) -> Iterator[Advance]:
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


# ------------------------------------------------------------------------------
# Safe unpacking: no path leaves the folder, no links, a partial extraction is never taken for a whole.


#: Entries a Mac adds to an archive; they are no part of a recording.
CLUTTER_FOLDERS = {"__MACOSX"}
CLUTTER_FILES = {".DS_Store", "Thumbs.db"}
COPY_BLOCK = 1 << 20


def unpack_zip(archive: str | os.PathLike[str], dest: str | os.PathLike[str]) -> list[Path]:
    """Unpack a zip file into a folder, checking every entry first.

    Entries are checked before anything is written, extracted into a hidden folder beside ``dest``, verified
    by their CRC, and only then moved in, each by one atomic rename. A run that is killed half-way leaves no
    truncated file under ``dest``. Files that are there already are replaced by those of the archive.

    Examples
    --------
    >>> import tempfile, zipfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> archive = Path(folder.name, "a.zip")
    >>> with zipfile.ZipFile(archive, "w") as out:
    ...     out.writestr("sub/one.txt", "hello")
    >>> [path.name for path in unpack_zip(archive, Path(folder.name, "out"))]
    ['one.txt']
    >>> folder.cleanup()
    """
    archive, dest = Path(archive), Path(dest)
    if not archive.is_file():
        raise FileNotFoundError(f"there is no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked_entries(opened, archive)
            _check_space_to_unpack(dest, sum(entry.file_size for entry, _ in entries))
            return _extract(opened, entries, archive, dest)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{archive} is no zip file or is damaged ({error}); delete it and download it again"
        ) from error


def _checked_entries(opened: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the file entries with their safe relative paths; folders and clutter are left out."""
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
    """Say what is wrong with one entry, or None."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not path.parts or "\0" in name:
        return "has no legal name"
    if path.is_absolute() or ":" in path.parts[0]:
        return "has an absolute path"
    if ".." in path.parts:
        return "climbs out of the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    return None


def _check_space_to_unpack(dest: Path, needed: int) -> None:
    folder = dest.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"unpacking into {dest} needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left"
        )


def _extract(
    opened: zipfile.ZipFile,
    entries: list[tuple[zipfile.ZipInfo, PurePosixPath]],
    archive: Path,
    dest: Path,
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


# ------------------------------------------------------------------------------
# Where recordings and caches live, and downloads that survive a bad connection.
#
# A download is resumed where it stopped, retried with growing pauses, checked (length, SHA-256, the file's
# own integrity), and appears under its final name only when it is whole.


DATA_DIR_VARIABLE = "DEEPSTRF_DATA_DIR"
CACHE_DIR_VARIABLE = "DEEPSTRF_CACHE_DIR"
OSF_BASE_URL = "https://osf.io/download"
#: A server may ask for a pause of any length; no pause is longer than this.
MAX_PAUSE_S = 60.0


def data_dir(name: str) -> Path:
    """Return the folder of one recording: ``$DEEPSTRF_DATA_DIR/name``, else in the user's cache folder.

    Examples
    --------
    >>> data_dir("NS1").name
    'NS1'
    """
    return _folder(DATA_DIR_VARIABLE) / name


def cache_dir(name: str) -> Path:
    """Return the folder for parsed copies of one recording: ``$DEEPSTRF_CACHE_DIR/name``, else the user's.

    It is never the recording's own folder, which may be read-only.

    Examples
    --------
    >>> cache_dir("NS1") == data_dir("NS1")
    False
    """
    if os.environ.get(CACHE_DIR_VARIABLE):
        return _folder(CACHE_DIR_VARIABLE) / name
    return _folder(CACHE_DIR_VARIABLE) / "parsed" / name


def osf_url(guid: str, base_url: str = OSF_BASE_URL) -> str:
    """Return the download address of a public OSF file.

    Examples
    --------
    >>> osf_url("gdwyd")
    'https://osf.io/download/gdwyd/'
    """
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
    """Fetch a file, resuming and retrying, and put it in place only when it is whole and verified.

    A file that is there already is returned after its size and hash are checked against those given; the
    network is not touched. The body goes to ``dest`` + ``.part``, which a later call resumes (HTTP Range,
    guarded by the server's ETag). Two processes that ask for the same file on one machine wait for each
    other. When ``sha256`` is not known, the observed hash is written to ``dest`` + ``.sha256`` in the format
    of ``sha256sum``.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> there = Path(folder.name, "a.bin")
    >>> there.write_bytes(b"abc")
    3
    >>> download_file("http://localhost:9/never-asked", there, size=3).name
    'a.bin'
    >>> folder.cleanup()
    """
    dest = Path(dest)
    if dest.is_file():
        _verify(dest, sha256, size, None, cure="delete it and ask again")
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    with _lock(dest):
        if dest.is_file():  # another process fetched it while we waited
            return dest
        shown = sys.stderr.isatty() if progress is None else progress
        _fetch_with_retries(url, part, size, retries, pause_s, timeout_s, shown)
        try:
            _verify(part, sha256, size, check, cure="the download is deleted; ask again")
        except ValueError:
            part.unlink()
            raise
        finally:
            etag_file(part).unlink(missing_ok=True)
        if sha256 is None:
            _record_hash(part, dest)
        os.replace(part, dest)
    return dest


def _folder(variable: str) -> Path:
    """Return the folder an environment variable names, else the user's cache folder."""
    named = os.environ.get(variable)
    if named:
        return Path(named).expanduser()
    import pooch

    return Path(pooch.os_cache("deepSTRF"))


def _fetch_with_retries(
    url: str, part: Path, size: int | None, retries: int, pause_s: float, timeout_s: float, shown: bool
) -> None:
    """Repeat attempts until the body is complete; attempts that bring new bytes do not count."""
    fruitless = 0
    while True:
        before = size_of(part)
        try:
            with progress_bar(part.name.removesuffix(".part"), shown) as advance:
                attempt(url, part, size, timeout_s, advance)
            return
        except TransientError as error:
            fruitless = 0 if size_of(part) > before else fruitless + 1
            if fruitless >= retries:
                kept = (
                    f"; {size_of(part)} bytes are kept in {part} and the next call resumes there"
                    if size_of(part)
                    else ""
                )
                raise ConnectionError(
                    f"could not fetch {url}: {error} ({retries} attempts in a row brought nothing){kept}. "
                    f"You may also fetch it by hand and put it at {part.with_suffix('')}"
                ) from None  # the chain of a network library's errors says less than this
            time.sleep(min(MAX_PAUSE_S, max(error.pause_s, pause_s * 2.0 ** max(0, fruitless - 1))))


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


def _record_hash(part: Path, dest: Path) -> None:
    dest.with_name(dest.name + ".sha256").write_text(f"{_sha256(part)}  {dest.name}\n", encoding="utf-8")


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


# ------------------------------------------------------------------------------

Arrays = dict[str, npt.NDArray[Any]]

#: Raise it when the meaning of a stored array changes without a change of the package version.
CACHE_FORMAT = 1
#: Bytes of the beginning and of the end of a file that enter its fingerprint, beside its size and its time
#: stamp.
SAMPLED_BYTES = 4096
#: Entries of one recording beyond this number are removed, oldest first, so that a sweep over bins cannot
#: fill a disk.
MAX_ENTRIES = 24
#: Everything that reading a damaged .npz file can raise.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_KEY_MEMBER = "cache_key"


def fingerprint_files(root: str | os.PathLike[str], names: Iterable[str]) -> str:
    """Return a hash that changes when one of the files does, without reading all of them.

    Each file enters with its name, size, time of modification, and its first and last 4 KiB.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> Path(folder.name, "a").write_bytes(b"1")
    1
    >>> before = fingerprint_files(folder.name, ["a"])
    >>> Path(folder.name, "a").write_bytes(b"2")
    1
    >>> fingerprint_files(folder.name, ["a"]) == before
    False
    >>> folder.cleanup()
    """
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
    """Return the arrays ``build()`` makes, from the cache when an intact entry is there.

    Examples
    --------
    >>> arrays = cached_arrays("demo", "squares", {"n": 3}, lambda: {"x": np.arange(3) ** 2}, enabled=False)
    >>> arrays["x"]
    array([0, 1, 4])
    """
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
    """Return the arrays of an entry, None when it is absent, damaged or of another key."""
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
    """Return one array of an .npz file; reading the whole member first checks its CRC, header included."""
    content = io.BytesIO(entry.read(f"{name}.npy"))
    array: npt.NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    return array


def _write(path: Path, key: str, arrays: Arrays) -> None:
    """Write an entry under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as out:
            np.savez(out, allow_pickle=False, **{_KEY_MEMBER: np.array(key)}, **arrays)
        os.replace(temporary, path)
        _prune(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        warnings.warn(
            f"the parsed recording could not be cached at {path} ({error}), so the next load takes as long "
            f"as this one; set {CACHE_DIR_VARIABLE} to a folder with room, or pass cache=False",
            stacklevel=4,
        )


def _prune(folder: Path) -> None:
    """Remove the oldest entries beyond `MAX_ENTRIES`."""
    entries = sorted(folder.glob("*.npz"), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in entries[MAX_ENTRIES:]:
        entry.unlink(missing_ok=True)
