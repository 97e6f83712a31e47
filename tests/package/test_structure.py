"""Limits of the structure: no circles of imports, short faces, few files per call."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("structure", ROOT / "tools" / "structure.py")
structure = importlib.util.module_from_spec(spec)
sys.modules["structure"] = structure
spec.loader.exec_module(structure)


def test_no_circle_of_imports():
    assert structure.circles(ROOT / "src") == []


def test_a_circle_is_found_also_inside_functions_and_under_type_checking(tmp_path):
    package = tmp_path / "deepSTRF"
    package.mkdir()
    (package / "a.py").write_text("def f():\n    from deepSTRF.b import g\n")
    (package / "b.py").write_text("if TYPE_CHECKING:\n    from deepSTRF import c\n")
    (package / "c.py").write_text("import deepSTRF.a\n")
    assert structure.circles(tmp_path) == [["deepSTRF.a", "deepSTRF.b", "deepSTRF.c"]]


def test_the_faces_are_short():
    assert len(structure.public_names(ROOT / "src")) <= structure.MAX_PUBLIC_NAMES


@pytest.fixture(scope="module")
def crossed():
    return structure.files_crossed(ROOT / "src")


@pytest.mark.parametrize("call", structure.MAX_FILES_CROSSED)
def test_a_call_crosses_few_files(crossed, call):
    assert 0 < len(crossed[call]) <= structure.MAX_FILES_CROSSED[call], crossed[call]
