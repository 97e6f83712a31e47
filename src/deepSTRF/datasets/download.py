"""Files of public recordings: folders, downloads, safe unpacking, and a cache of parsed arrays.

A download is bounded in bytes and time, resumed where it stopped, retried with growing pauses, verified
(length, SHA-256, the file's own integrity), and gets its final name only when it is complete. Archives are
checked entry by entry before anything is written. A cache entry is named after everything it depends on:
package version, parameters, and the content of the files it was made from; one whose seal is not intact is
rebuilt, and the folder can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import queue
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from deepSTRF._files import (
    DamagedFileError,
    check_regular,
    load_sealed_npz,
    naming_damage,
    read_json,
    sealed_json,
    sealed_zip,
    write_atomically,
)
from deepSTRF._text import printable
from deepSTRF._validation import outside_level

__all__ = [
    "cache_dir",
    "cached_arrays",
    "data_dir",
    "download_file",
    "hash_files",
    "osf_url",
    "unpack_tar",
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
    with warnings.catch_warnings():
        # tqdm, which pooch imports for bars that are not used here, asks notebooks to install ipywidgets
        warnings.filterwarnings("ignore", message="IProgress not found")
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
#: A server that sends less per second is given up.
SLOWEST_BYTES_PER_S = 256
#: The most bytes of a download for which the caller states no ``limit``.
MOST_BYTES = 1 << 36
#: Who waits for another process gives up when its download has not grown for so long.
LOCK_WAIT_S = 600.0
LOCK_POLL_S = 0.05


def osf_url(guid: str, base_url: str = OSF_BASE_URL) -> str:
    """The download address of a public OSF file."""
    return f"{base_url.rstrip('/')}/{guid}/"


def download_file(
    url: str,
    dest: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    limit: int = MOST_BYTES,
    check: Callable[[Path], None] | None = None,
    form: Mapping[str, str] | None = None,
    retries: int = 5,
    pause_s: float = 1.0,
    timeout_s: float = 60.0,
    progress: bool | None = None,
) -> Path:
    """Fetch a file, resuming and retrying, and give it its name only when it is complete and verified.

    A file that is there already is checked against size and hash without touching the network. The body goes
    to ``dest`` + ``.part``, which a later call resumes (HTTP Range, guarded by the server's ETag); two
    processes that fetch the same file wait for each other. Without ``sha256`` the observed hash is written to
    ``dest`` + ``.sha256`` in the format of ``sha256sum``. No more than ``size`` bytes are fetched, or
    ``limit`` where nobody states a size; a server that sends next to nothing for ``timeout_s`` is given up.
    ``form`` are the fields of a login form that the server answers with the file.
    """
    dest = Path(dest)
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"url is an address of http or https, got {url!r:.200}")
    if dest.is_file():
        _verify(dest, sha256, size, None, cure="delete it and download it again")
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    part, recorded = dest.with_name(dest.name + ".part"), dest.with_name(dest.name + ".sha256")
    with _lock(dest, part):
        if dest.is_file():  # another process fetched it while we waited
            return dest
        for path in (dest, part, _etag_file(part), recorded):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise FileExistsError(f"{path} is a link or no regular file; remove it, then download again")
        shown = sys.stderr.isatty() if progress is None else progress
        most = limit if size is None else min(size, limit)
        is_known = sha256 is not None
        _fetch_with_retries(url, part, size, most, is_known, retries, pause_s, timeout_s, shown, form)
        try:
            _verify(part, sha256, size, check, cure="the download is deleted; try again")
        except ValueError:
            part.unlink()
            raise
        finally:
            _etag_file(part).unlink(missing_ok=True)
        if sha256 is None:
            recorded.write_text(f"{_sha256(part)}  {dest.name}\n", encoding="utf-8")
        os.replace(part, dest)
    return dest


def _fetch_with_retries(
    url: str, part: Path, size: int | None, most: int, is_known: bool, retries: int, pause_s: float,
    timeout_s: float, shown: bool, form: Mapping[str, str] | None,
) -> None:  # fmt: skip
    """Repeat attempts until the body is complete; attempts that bring new bytes do not count."""
    fruitless, best = 0, _size_of(part)
    while True:
        try:
            with _progress_bar(part.name.removesuffix(".part"), shown) as advance:
                _attempt(url, part, size, most, is_known, timeout_s, advance, form)
            return
        except _TransientError as error:
            grown = _size_of(part) >= best + CHUNK_BYTES  # else one byte per attempt would never end
            fruitless, best = (0 if grown else fruitless + 1), max(best, _size_of(part))
            if fruitless >= retries:
                kept = (
                    f"; {_size_of(part)} bytes are kept in {part} and the next call resumes there"
                    if _size_of(part)
                    else ""
                )
                raise ConnectionError(
                    f"could not fetch {url}: {error} ({retries} attempts in a row brought nothing){kept}. "
                    f"Fetched by other means, put it at {part.with_suffix('')}"
                ) from None  # the chain of a network library's errors is less clear than this
            time.sleep(min(MAX_PAUSE_S, max(error.pause_s, pause_s * 2.0 ** max(0, fruitless - 1))))


class _TransientError(Exception):
    """A failed attempt that may be repeated."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


def _attempt(
    url: str, part: Path, size: int | None, most: int, is_known: bool, timeout_s: float, advance: Advance,
    form: Mapping[str, str] | None,
) -> None:  # fmt: skip
    """Request what is missing once and append it to ``part``."""
    import requests  # comes with pooch
    from urllib3.exceptions import HTTPError  # comes with requests

    have, total = _size_of(part), None
    try:
        with _answer(url, _headers(part, have), timeout_s, form) as answer:
            if answer.status_code == 416 and _total(answer) == have:
                return  # everything had arrived before the last run was stopped
            start = _start_of_body(answer, have, part)
            _check_kind(answer, url, part, is_known)
            total = _total(answer)
            if size is not None and total is not None and total != size:
                raise ValueError(f"{url} offers {total} bytes, expected {size}: the source has changed")
            if total is not None and total > most:
                raise ValueError(f"{url} offers {total:,} bytes, more than {most:,}; is the address right?")
            if total is not None:
                needed = total - start
                _check_free_space(part.parent, needed, f"{part} needs {needed / 1e6:.0f} MB more")
            if start == 0:
                _etag_file(part).write_text(_validator(answer), encoding="utf-8")
            ceiling, done = most if total is None else total, start
            advance(done, total)
            with open(part, "ab" if start else "wb") as out:
                for block in _blocks(answer, timeout_s):
                    done += len(block)
                    if done > ceiling:
                        break
                    out.write(block)
                    advance(done, total)
            if done > ceiling:
                part.unlink()
                _etag_file(part).unlink(missing_ok=True)
                raise ValueError(f"{url} sends more than {ceiling:,} bytes; the download is deleted")
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise ConnectionError(f"{url} leads to an address that is not of http or https ({error})") from None
    except requests.exceptions.TooManyRedirects as error:
        raise ConnectionError(f"{url} leads in circles ({error}); is the address right?") from None
    except (requests.RequestException, HTTPError) as error:
        inner = error.args[0] if error.args else error
        raise _TransientError(f"{type(error).__name__}: {getattr(inner, 'reason', inner)}") from error
    if total is not None and _size_of(part) != total:
        raise _TransientError(f"the connection ended after {_size_of(part)} of {total} bytes")


def _answer(
    url: str, headers: dict[str, str], timeout_s: float, form: Mapping[str, str] | None = None
) -> Any:
    """The answer to a request, with its headers in time; a thread that waits longer is left to itself."""
    import requests

    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            timeout = (CONNECT_TIMEOUT_S, timeout_s)
            method = "GET" if form is None else "POST"
            arrived.put(
                requests.request(method, url, headers=headers, data=form, stream=True, timeout=timeout)
            )
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            arrived.put(error)

    threading.Thread(target=ask, daemon=True).start()
    longest = min(CONNECT_TIMEOUT_S, timeout_s) + timeout_s
    try:
        answer = arrived.get(timeout=longest)
    except queue.Empty:
        raise _TransientError(f"no complete answer came within {longest:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _blocks(answer: Any, timeout_s: float) -> Iterator[bytes]:
    """The body as it comes in; a server that sends next to nothing for ``timeout_s`` is given up."""
    read = getattr(answer.raw, "read1", answer.raw.read)  # urllib3 before 2.1 waits for a whole block
    since, received = time.monotonic(), 0
    while block := read(CHUNK_BYTES, decode_content=False):
        yield block
        received += len(block)
        passed = time.monotonic() - since
        if passed > timeout_s:
            if received < SLOWEST_BYTES_PER_S * passed:
                raise _TransientError(f"only {received} bytes came within {passed:.0f} s")
            since, received = time.monotonic(), 0


def _check_kind(answer: Any, url: str, part: Path, is_known: bool) -> None:
    """Refuse a body that cannot be the file: a page, an unencrypted detour, another encoding."""
    if url.startswith("https:") and any(step.url.startswith("http:") for step in (*answer.history, answer)):
        raise ConnectionError(f"{url} leads to {answer.url}, which is not encrypted; is the address right?")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ConnectionError(f"{answer.url} sends the file in the encoding {encoding!r}, unasked")
    is_page = answer.headers.get("Content-Type", "").strip().lower().startswith("text/html")
    if is_page and not is_known and not part.name.endswith((".html.part", ".htm.part")):
        raise ConnectionError(
            f"{answer.url} answers with a web page instead of the file; is the address right, does it need a "
            "login?"
        )


def _validator(answer: Any) -> str:
    """What tells whether a file on a server is still the same one: its strong entity tag, else its date."""
    tag = str(answer.headers.get("ETag", ""))
    return str(answer.headers.get("Last-Modified", "")) if not tag or tag.startswith("W/") else tag


def _headers(part: Path, have: int) -> dict[str, str]:
    from deepSTRF import __version__

    headers = {"User-Agent": f"deepSTRF/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        recorded = _etag_file(part)
        validator = recorded.read_text(encoding="utf-8") if recorded.is_file() else ""
        if validator and validator.isascii() and validator.isprintable():
            headers["If-Range"] = validator
    return headers


def _start_of_body(answer: Any, have: int, part: Path) -> int:
    """Position in the file at which the body of an answer begins; raises when there is no usable body."""
    status = int(answer.status_code)
    if status == 200:
        return 0
    if status == 206:
        span = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
        if span == str(have):
            recorded = _etag_file(part).read_text(encoding="utf-8") if _etag_file(part).is_file() else ""
            if recorded and _validator(answer) not in ("", recorded):
                part.unlink()  # a server that ignores If-Range
                raise _TransientError("the file on the server has changed meanwhile")
            return have
        raise ConnectionError(
            f"{answer.url} answered another range than asked for ({span!r} instead of {have})"
        )
    if status in TRANSIENT_STATUSES:
        after = answer.headers.get("Retry-After", "")
        raise _TransientError(f"the server answered {status} {answer.reason}", float(_number(after) or 0))
    if status == 416:
        raise ConnectionError(
            f"{answer.url} has fewer bytes than are here already: the source has changed; "
            "delete the .part file"
        )
    raise ConnectionError(f"{answer.url} answered {status} {answer.reason}; is the address right?")


def _total(answer: Any) -> int | None:
    """Size of the whole file in bytes, None when the server does not give it."""
    whole = _number(answer.headers.get("Content-Range", "").rpartition("/")[2])
    if whole is not None:
        return whole
    return _number(answer.headers.get("Content-Length", "")) if answer.status_code == 200 else None


def _number(text: str) -> int | None:
    """The whole number that a header holds, None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


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
    check_regular(path)
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"fetching {printable(name)}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _lock(dest: Path, part: Path) -> Iterator[None]:
    """Let one process at a time fetch ``dest`` (where the system offers file locks)."""
    try:
        import fcntl
    except ImportError:  # Windows: two simultaneous first downloads are the user's to avoid
        yield
        return
    # beside the file: in a shared temporary folder, another user could put a link under its name
    path = dest.with_name(f".{dest.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    size, since = -1, time.monotonic()
    while True:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise FileExistsError(f"{path} is a link or no regular file; remove it, then download again")
        handle = os.open(path, flags, 0o666)
        try:
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(path), os.fstat(handle)):  # else it was removed meanwhile
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)  # before it is released: who waits makes a new one
                    return
        finally:
            os.close(handle)
        if _size_of(part) != size:
            size, since = _size_of(part), time.monotonic()
        elif time.monotonic() - since > LOCK_WAIT_S:
            raise TimeoutError(
                f"another process has been fetching {dest} without progress for {LOCK_WAIT_S:.0f} s; end it, "
                f"or delete {path} if there is none"
            )
        time.sleep(LOCK_POLL_S)


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
    if not archive.exists():
        raise FileNotFoundError(f"there is no archive {archive}")
    check_regular(archive)
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
        return _moved_in(Path(hidden), [path for _, path in entries], dest)


def unpack_tar(archive: str | os.PathLike[str], dest: str | os.PathLike[str]) -> list[Path]:
    """Unpack a tar file, packed or not, as `unpack_zip` does a zip file: only folders and regular files."""
    archive, dest = Path(archive), Path(dest)
    check_regular(archive)
    try:
        with tarfile.open(archive) as opened:
            paths = _checked_members(opened, archive)
            needed = sum(member.size for member, _ in paths)
            folder = next(parent for parent in (dest.absolute(), *dest.absolute().parents) if parent.exists())
            _check_free_space(folder, needed, f"unpacking into {dest} needs {needed / 1e6:.0f} MB")
            dest.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{dest.name}.unpacking-", dir=dest.parent) as hidden:
                for member, path in paths:
                    target = Path(hidden, *path.parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = opened.extractfile(member)
                    with open(target, "wb") as out:
                        if source is not None:
                            shutil.copyfileobj(source, out, COPY_BLOCK)
                return _moved_in(Path(hidden), [path for _, path in paths], dest)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{archive} is no tar file or is damaged ({error}); delete it and download it again"
        ) from error


def _checked_members(opened: tarfile.TarFile, archive: Path) -> list[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Regular files with their safe relative paths; folders and clutter are left out."""
    members: list[tuple[tarfile.TarInfo, PurePosixPath]] = []
    seen: set[PurePosixPath] = set()
    for member in opened:
        path = PurePosixPath(member.name.replace("\\", "/"))
        fault = None
        if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
            fault = "leaves the folder"
        elif not member.isreg() and not member.isdir():
            fault = "is a link or a special file"
        elif path in seen and member.isreg():
            fault = "appears twice"
        if fault is not None:
            raise ValueError(
                f"{archive} is not safe to unpack: its entry {member.name!r} {fault}; nothing written"
            )
        clutter = path.name in CLUTTER_FILES or path.name.startswith("._")
        if member.isdir() or clutter or CLUTTER_FOLDERS & set(path.parts):
            continue
        seen.add(path)
        members.append((member, path))
    return members


def _moved_in(hidden: Path, paths: Iterable[PurePosixPath], dest: Path) -> list[Path]:
    """Move extracted files into a folder by atomic renames."""
    written = []
    for path in paths:
        final = dest.joinpath(*path.parts)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(hidden.joinpath(*path.parts), final)
        written.append(final)
    return written


def _check_free_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{what}, the disk has {free / 1e6:.0f} MB left")


# ---- cache of parsed arrays

#: Raise it when the meaning of a stored array changes without a change of the package version.
CACHE_FORMAT = 2
#: Entries of one recording beyond this number are removed, oldest first, to bound the disk space of a sweep.
MAX_ENTRIES = 24
#: Names of entries: only files that are called so are ever removed.
_ENTRY_NAME = re.compile(r".+-[0-9a-f]{20}\.npz")
#: What a killed process was writing is removed after this time.
_DAY_S = 86_400
#: What a sealed entry says it is.
_KIND = "cache"
_KEY_MEMBER = "cache_key"


#: Digests of the files of a recording, in its cache folder.
_DIGESTS, _MOST_DIGESTS = "sha256.json", 4096
#: A file changed so shortly before it was hashed may change again without another time stamp.
_COARSEST_CLOCK_NS = 2_000_000_000


def hash_files(
    root: str | os.PathLike[str], names: Iterable[str], *, memory: str | None = None
) -> dict[str, str]:
    """SHA-256 of each file, several at a time.

    With ``memory``, the name of a cache, digests are kept there and hold while size, inode and the times of
    the last change stay: no program can set the time of the change of an inode (on Windows there is none).
    """
    facts = {name: check_regular(Path(root, name)) for name in names}
    path = None if memory is None or os.name == "nt" else cache_dir(memory) / _DIGESTS
    known = {} if path is None else _known_digests(path)
    places = [os.path.abspath(Path(root, name)) for name in facts]
    keys = {  # what changes with the content
        name: "\0".join(map(str, (place, one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns)))
        for (name, one), place in zip(facts.items(), places, strict=True)
    }
    found = {name: known[key] for name, key in keys.items() if key in known}
    missing = [name for name in facts if name not in found]
    if missing:
        settled = time.time_ns() - _COARSEST_CLOCK_NS
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            found |= zip(missing, pool.map(lambda name: _sha256(Path(root, name)), missing), strict=True)
        new = {
            keys[name]: found[name]
            for name in missing
            if max(facts[name].st_mtime_ns, facts[name].st_ctime_ns) < settled
        }
        if path is not None and new:
            kept = dict(list({**known, **new}.items())[-_MOST_DIGESTS:])
            with contextlib.suppress(OSError):  # the next load hashes again
                write_atomically(path, sealed_json({"files": kept}), follow_links=False)
    return {name: found[name] for name in facts}


def _known_digests(path: Path) -> dict[str, str]:
    try:
        files = read_json(path, "it is made again", sealed=True)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(key): str(sha256) for key, sha256 in files.items()} if isinstance(files, dict) else {}


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
    """Arrays of an entry, None when it is absent, of another key, or not as it was written."""
    members = None if wanted is None else [_KEY_MEMBER, *wanted]
    try:
        with naming_damage(path, "it is made again"):
            arrays, sealed = load_sealed_npz(path, _KIND, "it is made again", members)
            return arrays if sealed and str(arrays.pop(_KEY_MEMBER)) == key else None
    except (OSError, DamagedFileError):
        return None


def _write(path: Path, key: str, arrays: Arrays) -> None:
    """Write an entry whole or not at all, and remove the oldest beyond `MAX_ENTRIES`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{_KEY_MEMBER: np.array(key)}, **arrays)
        write_atomically(path, sealed_zip(content.getvalue(), _KIND), follow_links=False)
        entries = [entry for entry in path.parent.iterdir() if _ENTRY_NAME.fullmatch(entry.name)]
        entries.sort(key=lambda entry: entry.lstat().st_mtime, reverse=True)
        abandoned = [
            left for left in path.parent.glob(".*.npz.*.tmp") if time.time() - left.lstat().st_mtime > _DAY_S
        ]
        for entry in entries[MAX_ENTRIES:] + abandoned:
            entry.unlink(missing_ok=True)
    except OSError as error:
        _warn_uncached(path.parent, error.strerror or str(error))


@functools.cache  # one warning per folder and reason, however many arrays a recording has
def _warn_uncached(folder: Path, reason: str) -> None:
    warnings.warn(
        f"the parsed recording could not be cached in {folder} ({reason}), so the next load takes as long as "
        f"this one; set {CACHE_DIR_VARIABLE} to a folder with free space, or pass cache=False",
        stacklevel=outside_level(),
    )
