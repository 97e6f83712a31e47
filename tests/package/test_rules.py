"""The rules hold in src/, and each rule still catches what it is there for."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("rules", ROOT / "tools" / "rules.py")
rules = importlib.util.module_from_spec(spec)
sys.modules["rules"] = rules
spec.loader.exec_module(rules)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_in_the_source(rule):
    broken = [
        f"{path.relative_to(ROOT)}:{line}: {message}"
        for path in sorted((ROOT / "src" / "deepSTRF").rglob("*.py"))
        for path, line, message in rule(path, ast.parse(path.read_text()), path.read_text())
    ]
    assert not broken, "\n".join(broken)


BAD = {
    "check_lengths": "def f():\n" + "    x = 1\n" * 81,
    "check_forbidden": "assert True\nprint(1)\n",
    "check_docstrings": '"""Module."""\ndef Hz_to_mel(side: float) -> float:\n    """One line."""\n',
    "check_argument_names": "class Bank:\n    def __init__(self, k):\n        pass\n",
    "check_arrows": "def late():\n    from deepSTRF.training import Fitter\n",
    "check_light_imports": "import matplotlib.pyplot as plt\n",
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_rule_catches_its_fault(name):
    path = rules.SOURCE / "dsp" / "bad_example.py"
    text = BAD[name]
    assert list(getattr(rules, name)(path, ast.parse(text), text))
