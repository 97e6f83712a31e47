"""Importing the package is cheap and pulls in nothing optional."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "matplotlib",
    "jinja2",
    "typer",
    "rich",
    "soundfile",
    "soxr",
    "pooch",
    "joblib",
    "scipy.signal",
    "wandb",
    "h5py",
    "pynwb",
    "mne",
    "pandas",
    "pyarrow",
)


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_does_not_even_import_torch():
    assert "torch" not in modules_after("import deepSTRF")


@pytest.mark.parametrize(
    "folder",
    [
        "datasets",
        "datasets.audio",
        "models",
        "models.audio",
        "models.wav2spec",
        "metrics",
        "streaming",
        "training",
        "utils",
    ],
)
def test_importing_a_room_pulls_in_nothing_heavy(folder):
    loaded = modules_after("import torch, deepSTRF." + folder)
    assert not [name for name in HEAVY if name in loaded]


def test_the_formats_are_listed_without_the_packages_that_read_them():
    names = (
        "from deepSTRF.datasets import open_recording; from deepSTRF.registry import FORMATS; list(FORMATS)"
    )
    loaded = modules_after(names)
    assert not [name for name in HEAVY if name in loaded]


def test_version_comes_from_one_place():
    from importlib.metadata import version

    import deepSTRF

    assert deepSTRF.__version__ == version("deepstrf-toolkit")


def test_a_missing_package_is_installed_from_the_source_not_by_a_name_that_another_package_has():
    from deepSTRF._optional import require  # inner: tested by itself

    with pytest.raises(ImportError, match=r'pip install -e "\.\[log\]" in the folder') as caught:
        require("no_such_package", extra="log")
    assert "install deepSTRF" not in str(caught.value)
    assert 'install "deepSTRF' not in str(caught.value)
