"""The page on the recordings runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def run(blocks: list[str], capsys) -> None:
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    promises = re.findall(r"print\(.*?\)\s+# (.*)", "\n".join(blocks))
    assert promises
    for promised in promises:
        assert promised in printed


def test_the_synthetic_part(capsys):
    run([block for block in BLOCKS if "NS1" not in block and "ds_spec" not in block], capsys)


@pytest.mark.ns1
def test_the_ns1_part(ns1_dir, capsys, monkeypatch):
    monkeypatch.setenv("DEEPSTRF_DATA_DIR", str(ns1_dir.parent))
    run([block for block in BLOCKS if "NS1" in block or "ds_spec" in block], capsys)
