"""One attempt at a download: ask for what is missing, append it, say what went wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["TransientError", "attempt", "etag_file", "progress_bar", "size_of"]

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
    return path.stat().st_size if path.is_file() else 0


def etag_file(part: Path) -> Path:
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
