"""Docstrings of exported names follow numpydoc."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

SOURCE = Path(__file__).resolve().parents[2] / "src"
FACES = [
    ".".join(path.parent.relative_to(SOURCE).parts)
    for path in sorted((SOURCE / "deepSTRF").rglob("__init__.py"))
    if path.parent.name != "deepSTRF"
]
#: Checked faults: missing summary or docstring, parameters missing, unknown or in another order, parameters
#: without a type, no returned value, sections in another order, no example.
CODES = {"GL07", "GL08", "SS01", "SS06", "PR01", "PR02", "PR03", "PR04", "PR07", "RT01", "EX01"}


def exported() -> dict[str, object]:
    found: dict[str, object] = {}
    for face in FACES:
        module = importlib.import_module(face)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and value not in found.values():
                found[f"{face}.{name}"] = value
    return found


EXPORTED = exported()


@pytest.mark.parametrize("name", EXPORTED)
def test_docstring_follows_numpydoc(name):
    value = EXPORTED[name]
    faults = {code: text for code, text in validate(get_doc_object(value))["errors"] if code in CODES}
    if inspect.isclass(value):
        protocol = getattr(value, "_is_protocol", False)
        if issubclass(value, Exception) or protocol:
            faults.pop("EX01", None)
        has_fields = hasattr(value, "__dataclass_fields__") or hasattr(value, "_fields")
        documents_fields = has_fields and "Attributes\n" in (inspect.getdoc(value) or "")
        if documents_fields or protocol or "__init__" not in vars(value):
            faults.pop("PR01", None)
    assert not faults, f"{name}: {faults}"
