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
    assert 15 <= len(names) <= 30


def test_the_import_loads_neither_torch_nor_numpy():
    assert run("import sys, deepSTRF; print([m for m in ('torch', 'numpy') if m in sys.modules])") == "[]\n"


def test_sub_rooms_are_reached_through_the_face():
    code = "import deepSTRF as ds; print(ds.models.audio.Linear, ds.datasets.audio, ds.interpret.probes)"
    assert "Linear" in run(code)


@pytest.mark.parametrize(("old", "new"), _moved.NAMES.items())
def test_an_old_name_warns_once_and_is_the_new_one(old, new):
    face, name = old
    code = (
        "import importlib, warnings\n"
        "warnings.simplefilter('always')\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        f"    from {face} import {name}\n"
        f"    from {face} import {name} as again\n"
        f"new = importlib.import_module({new[0]!r}).{new[1]}\n"
        "kinds = [w.category.__name__ for w in caught]\n"
        f"print(kinds, {name} is new, again is new, str(caught[0].message))"
    )
    out = run(code)
    assert out.startswith("['DeprecationWarning'] True True")
    assert f"from {new[0]} import {new[1]}" in out


@pytest.mark.parametrize("old", _moved.MODULES)
def test_an_old_module_warns_once_and_holds_the_new_names(old):
    code = (
        "import importlib, warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    module = importlib.import_module({old!r})\n"
        f"    importlib.import_module({old!r})\n"
        "print(sum(w.category is DeprecationWarning for w in caught), len(vars(module)) > 8)"
    )
    assert run(code) == "1 True\n"


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        importlib.import_module("deepSTRF.training").nonsense  # noqa: B018


def test_nothing_in_the_package_uses_an_old_place():
    old = re.compile("|".join(rf"{re.escape(name)}\b" for name in _moved.MODULES))
    for path in (ROOT / "src" / "deepSTRF").rglob("*.py"):
        if path.name != "_moved.py":
            assert not old.search(path.read_text(encoding="utf-8")), path
