"""Kill a process before each of its file operations in turn: what is on the disk then must be usable."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the banks of this folder are programs of their own too

#: Audit events of Python that change files; reading is among them through "open".
EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.chmod",
}
KILLED = 77


def kill_before(n: int, act: Callable[[], Any], within: Path) -> bool:
    """Run ``act`` in a forked process that dies before its n-th file operation within a folder.

    Returns whether it died: False means that it had fewer operations and came to its end.
    """
    child = os.fork()
    if child == 0:
        left = [n]
        root = os.path.realpath(within)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
                return
            if os.path.abspath(os.fsdecode(arguments[0])).startswith(root):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(KILLED)

        sys.addaudithook(watch)
        try:
            act()
        except BaseException:  # noqa: BLE001  (the child has nowhere to raise it)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, KILLED):
        raise AssertionError(f"the process ended with {status} before its {n}-th file operation")
    return status == KILLED


def every_kill(
    act: Callable[[], Any], within: Path, prepare: Callable[[], Any], step: int = 1
) -> Iterator[int]:
    """Yield n after ``act`` was killed before its n-th operation on what ``prepare`` makes anew."""
    n = 1
    prepare()
    while kill_before(n, act, within):
        yield n
        n += step
        prepare()


@pytest.fixture(name="every_kill")
def _every_kill() -> Callable[..., Iterator[int]]:
    return every_kill
