"""The face of the package: what `import deepSTRF as ds` reaches, what it costs, and where old names lead."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepSTRF as ds
from deepSTRF import _moved

ROOT = Path(__file__).resolve().parents[2]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_name_of_the_face_loads():
    for name in ds.__all__:
        assert getattr(ds, name) is not None
    assert ds.Fitter is importlib.import_module("deepSTRF.training").Fitter
    assert callable(ds.dstrf)


def test_the_face_is_short():
    names = [name for name in ds.__all__ if not isinstance(getattr(ds, name), type(sys))]
    assert 15 <= len(names) <= 32


def test_the_import_loads_neither_torch_nor_numpy():
    assert run("import sys, deepSTRF; print([m for m in ('torch', 'numpy') if m in sys.modules])") == "[]\n"


def test_sub_rooms_are_reached_through_the_face():
    code = "import deepSTRF as ds; print(ds.models.audio.Linear, ds.datasets.audio, ds.interpret.probes)"
    assert "Linear" in run(code)


def test_old_names_warn_once_and_are_the_new_ones():
    code = (
        "import importlib, warnings\n"
        "from deepSTRF import _moved\n"
        "warnings.simplefilter('ignore')\n"
        "for (face, name), (new_face, new_name) in _moved.NAMES.items():\n"
        "    importlib.import_module(face)\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        values = [getattr(importlib.import_module(face), name) for _ in range(2)]\n"
        "    new = getattr(importlib.import_module(new_face), new_name)\n"
        "    kinds = [w.category.__name__ for w in caught]\n"
        "    right = f'from {new_face} import {new_name}' in str(caught[0].message)\n"
        "    print(kinds, right, all(value is new for value in values))"
    )
    lines = run(code).splitlines()
    assert len(lines) == len(_moved.NAMES) > 5
    assert set(lines) == {"['DeprecationWarning'] True True"}


def test_old_modules_warn_once_and_hold_the_new_names():
    code = (
        "import importlib, warnings\n"
        "from deepSTRF import _moved\n"
        "for old, places in _moved.MODULES.items():\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        modules = [importlib.import_module(old) for _ in range(2)]\n"
        "    new = importlib.import_module(places[0])\n"
        "    held = all(getattr(modules[0], name) is getattr(new, name) for name in new.__all__)\n"
        "    print(sum(w.category is DeprecationWarning for w in caught), held, modules[0] is modules[1])"
    )
    lines = run(code).splitlines()
    assert len(lines) == len(_moved.MODULES) > 3
    assert set(lines) == {"1 True True"}


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        importlib.import_module("deepSTRF.training").nonsense  # noqa: B018


def test_nothing_in_the_package_uses_an_old_place():
    old = re.compile("|".join(rf"{re.escape(name)}\b" for name in _moved.MODULES))
    for path in (ROOT / "src" / "deepSTRF").rglob("*.py"):
        if path.name != "_moved.py":
            assert not old.search(path.read_text(encoding="utf-8")), path
