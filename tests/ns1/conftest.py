"""A cache folder of the tests' own, and a recording in the NS1 layout that is small and made up."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.io import savemat

from deepSTRF.datasets.audio import (
    NS1Dataset,
    ns1,  # inner: tested by itself
)
from deepSTRF.datasets.audio.ns1 import NS1_WAV_DIR_NAME, NS1_WAV_FILENAMES  # inner: tested by itself

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, which are no package

_SPEC = importlib.util.spec_from_file_location(
    "fetch_test_server", Path(__file__).parents[1] / "fetch" / "conftest.py"
)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
server = _MODULE.server  # the misbehaving server of tests/fetch

N_SAMPLES = 244_140
UNITS = ("exp1/cluster.01.data.mat", "exp1/cluster.02.data.mat", "exp2/cluster.03.data.mat")


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory) -> Path:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("ns1-cache")
    shared = tmp_path_factory.getbasetemp().parent / "ns1-cache"  # of this session: its workers parse once
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(autouse=True)
def _own_cache(cache_folder, monkeypatch) -> None:
    """Parse the real files once a session, and never write into the user's cache."""
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(cache_folder))


@pytest.fixture(scope="session")
def load_ns1(ns1_dir, cache_folder) -> Callable[..., NS1Dataset]:
    """Load the real recording once per set of options."""
    loaded: dict[tuple[tuple[str, object], ...], NS1Dataset] = {}

    def load(**options: object) -> NS1Dataset:
        key = tuple(sorted(options.items()))
        if key not in loaded:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DEEPSTRF_CACHE_DIR", str(cache_folder))
                loaded[key] = NS1Dataset(ns1_dir, **options)
        return loaded[key]

    return load


def write_unit(path: Path, seed: int) -> None:
    """Write one spike file: 20 natural entries of 20 repeats, 12 chord entries of 5."""
    rng = np.random.default_rng(seed)
    entries = np.empty((1, 32), dtype=[("repeats", object), ("length_signal_ms", object)])
    for number in range(32):
        repeats = np.empty((1, 20 if number < 20 else 5), dtype=[("t", object), ("repeat_id", object)])
        for repeat in range(repeats.shape[1]):
            times = rng.uniform(0.0, 5200.0, rng.integers(0, 30))
            repeats[0, repeat] = (times.reshape(1, -1), np.full((1, times.size), repeat + 1, dtype=np.uint8))
        entries[0, number] = (repeats, 5200.0)
    data = np.empty((1, 1), dtype=[("set", object)])
    data[0, 0] = (entries,)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"data": data})


@pytest.fixture(scope="session")
def _small_original(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small") / "NS1"
    fields = ("path", "NrOfElectrodes", "ElectrodeNumber", "depth", "NoiseRatio", "singleT", "singleN")
    neuron = np.empty((1, len(UNITS)), dtype=[(field, object) for field in fields])
    for number, file in enumerate(UNITS):
        neuron[0, number] = (
            file,
            32,
            number + 1,
            100 * number - 100,
            3.5,
            ("Yes", "Maybe", "No")[number],
            2 - number,
        )
        write_unit(root / "spikesandwav" / file, number)
    savemat(root / "MetadataSHEnCneurons.mat", {"neuron": neuron})
    sounds = root / NS1_WAV_DIR_NAME
    sounds.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    for number, name in enumerate(NS1_WAV_FILENAMES):
        samples = np.resize(
            np.roll(noise, number), N_SAMPLES
        )  # a short period: the archive of it stays small
        with open(sounds / name, "wb") as handle:
            soundfile.write(handle, samples, 48828, format="WAV", subtype="FLOAT")
    return root


@pytest.fixture
def _nothing_published(monkeypatch) -> None:
    """The small recording has the names of published files, and other content."""
    monkeypatch.setattr(ns1, "published_files", dict)


@pytest.fixture
def small_ns1(_small_original, _nothing_published, tmp_path) -> Path:
    """A writable copy: three units and twenty sounds."""
    return Path(shutil.copytree(_small_original, tmp_path / "NS1"))


@pytest.fixture
def small_units(_small_original, _nothing_published, tmp_path) -> Path:
    """As above with links to the sounds, for tests that only touch the spike files."""
    root = tmp_path / "NS1"
    shutil.copytree(_small_original, root, ignore=shutil.ignore_patterns("SH.En.C"))
    (root / NS1_WAV_DIR_NAME).symlink_to(_small_original / NS1_WAV_DIR_NAME)
    return root
