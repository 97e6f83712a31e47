"""`deepstrf info`: versions and machine for a report of a problem, and an installation that cannot work."""

from __future__ import annotations

import importlib.metadata
import platform

import numpy
import pytest

import deepSTRF
from deepSTRF.cli import info, main  # inner: what it finds is tested by itself


def lines_of_info(capsys) -> dict[str, str]:
    with pytest.raises(SystemExit) as end:
        main(["info"])
    assert not end.value.code
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_it_says_what_is_installed_and_where_it_runs(capsys, monkeypatch):
    monkeypatch.setenv("DEEPSTRF_DATA_DIR", "/recordings")
    lines = lines_of_info(capsys)
    assert lines["deepSTRF"].startswith(f"{deepSTRF.__version__} in ")
    assert lines["python"].startswith(platform.python_version())
    assert f"numpy {numpy.__version__}" in lines["packages"].split(", ")
    assert lines["devices"].startswith("cpu (")
    assert lines["DEEPSTRF_DATA_DIR"].replace("\\", "/") == "/recordings"
    assert "WARNING" not in lines


def test_a_home_folder_is_not_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("DEEPSTRF_DATA_DIR", str(tmp_path / "recordings"))
    assert lines_of_info(capsys)["DEEPSTRF_DATA_DIR"].replace("\\", "/") == "~/recordings"


def test_optional_packages_that_are_missing_are_named(capsys, monkeypatch):
    declared = ["here>=1", "there>=2; extra == 'hub'", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(info, "requires", lambda name: declared)

    def version(name: str) -> str:
        if name == "here":
            return "1.5"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info, "version", version)
    lines = lines_of_info(capsys)
    assert lines["packages"] == "here 1.5"
    assert lines["not installed (optional)"] == "there"


def test_a_package_with_the_same_import_name_is_named(capsys, monkeypatch):
    owners = {"deepSTRF": ["deepstrf_toolkit", "another"]}
    monkeypatch.setattr(info, "packages_distributions", lambda: owners)
    assert "'another'" in lines_of_info(capsys)["WARNING"]


def test_a_folder_that_was_never_installed_still_answers(capsys, monkeypatch):
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info, "requires", requires)
    assert lines_of_info(capsys)["packages"] == ""
