"""Fixtures every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

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
