"""Where recordings and caches live, and downloads that survive a bad connection.

A download is resumed where it stopped, retried with growing pauses, checked (length, SHA-256, the file's own
integrity), and appears under its final name only when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deepSTRF.datasets._transfer import TransientError, attempt, etag_file, progress_bar, size_of
from deepSTRF.datasets.unpack import unpack_zip

__all__ = ["cache_dir", "data_dir", "download_file", "osf_url", "unpack_zip"]

DATA_DIR_VARIABLE = "DEEPSTRF_DATA_DIR"
CACHE_DIR_VARIABLE = "DEEPSTRF_CACHE_DIR"
OSF_BASE_URL = "https://osf.io/download"
#: A server may ask for a pause of any length; no pause is longer than this.
MAX_PAUSE_S = 60.0


def data_dir(name: str) -> Path:
    """Return the folder of one recording: ``$DEEPSTRF_DATA_DIR/name``, else in the user's cache folder.

    Parameters
    ----------
    name : str
        Short name of the recording, for example ``"NS1"``.

    Returns
    -------
    Path
        The folder, which need not exist. The user's cache folder follows the platform's conventions
        (``~/.cache/deepSTRF`` on Linux, ``$XDG_CACHE_HOME`` respected).

    Examples
    --------
    >>> data_dir("NS1").name
    'NS1'
    """
    return _folder(DATA_DIR_VARIABLE) / name


def cache_dir(name: str) -> Path:
    """Return the folder for parsed copies of one recording: ``$DEEPSTRF_CACHE_DIR/name``, else the user's.

    It is never the recording's own folder, which may be read-only.

    Parameters
    ----------
    name : str
        Short name of the recording.

    Returns
    -------
    Path
        The folder, which need not exist. Everything in it can be deleted at any time.

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

    Parameters
    ----------
    guid : str
        The five-character identifier of the file on osf.io.
    base_url : str
        Where to ask; another address serves mirrors and tests.

    Returns
    -------
    str
        The address.

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

    Parameters
    ----------
    url : str
        Address of the file.
    dest : path
        Where the file shall lie; missing folders are made.
    sha256 : str, optional
        Expected hash, hexadecimal.
    size : int, optional
        Expected size in bytes.
    check : callable, optional
        Called with the path of the complete but not yet renamed file; raises ValueError when it is damaged.
    retries : int
        Attempts in a row that may bring no new byte before giving up.
    pause_s : float
        Pause before the second attempt in seconds; it doubles each time. A server's Retry-After is respected.
    timeout_s : float
        Longest silence of the server in seconds.
    progress : bool, optional
        Show a progress bar on stderr. Default: only when stderr is a terminal.

    Returns
    -------
    Path
        ``dest``.

    Raises
    ------
    ConnectionError
        When the file cannot be fetched; what has arrived is kept for the next call.
    ValueError
        When size, hash or ``check`` disagree. A damaged download is deleted; a file that was there before
        this call is left alone.
    OSError
        When the disk has no room.

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
