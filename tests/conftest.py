"""Fixtures every test folder shares."""

from __future__ import annotations

import os
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
