"""Fixtures every test folder shares."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

NS1_SOURCE = (
    "the NS1 recording is not here: set DEEPSTRF_DATA_DIR to a folder that holds NS1/ "
    "(public source: osf.io/ayw2p, or NS1Dataset(download=True))"
)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Every test starts from the same random state, so the order of tests cannot matter."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As `make test` runs: with more threads, sums of float32 round otherwise by the size of a batch."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ns1_dir() -> Path:
    """Folder of the real NS1 recording, or a skip that says where it comes from."""
    root = os.environ.get("DEEPSTRF_DATA_DIR")
    folder = Path(root).expanduser() / "NS1" if root else None
    if folder is None or not (folder / "MetadataSHEnCneurons.mat").is_file():
        pytest.skip(NS1_SOURCE)
    return folder


def within(seconds: float, call: Callable[[], Any]) -> BaseException | None:
    """What a call raises; fails when it has not come back in time."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            raised.append(None)
        except Exception as error:  # noqa: BLE001  (handed to the test)
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, f"no answer after {seconds} s"
    return raised[0]


@pytest.fixture(name="within")
def _within() -> Callable[[float, Callable[[], Any]], BaseException | None]:
    """What a call that may hang raises, within some seconds."""
    return within


#: What `memory_growth` puts before a script: `mark()`, then `grown()` in MB. ru_maxrss would start at the
#: size of the parent process, and a peak never reset at what was built and freed before the mark.
MARKS = """
import ctypes, gc, pathlib

def mark():
    global marked
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    marked = resident("VmRSS")

def grown():
    return (resident("VmHWM") - marked) / 1024

def resident(which):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1])
"""


@pytest.fixture(scope="session")
def memory_growth() -> Callable[..., float]:
    """Growth in MB that a script prints, in a process of its own whose freed memory goes back to the system.

    The script calls ``mark()`` where the growth begins and ends with ``print(grown())``.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the peak of the resident memory cannot be reset here: {error}")

    def measure(script: str, *arguments: object) -> float:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", MARKS + script, *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=600,
            env=dict(os.environ, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_=str(1 << 16)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return float(done.stdout.split()[-1])

    return measure
