"""The tables of registered names in the documentation are those of the registries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "docs_tables.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: pages that run here register entries too."""
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False
    )


def test_the_tables_are_up_to_date() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_table_is_named_and_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n\n<!-- table: backbones -->\n| old |\n<!-- end -->\n\nAfter\n")
    assert run("--check", str(page)).returncode == 1
    assert "| old |" in page.read_text()
    assert run(str(page)).returncode == 0
    text = page.read_text()
    assert "| `gru` | `GRU` | Gated recurrent unit. |" in text
    assert text.startswith("Before\n\n<!-- table")
    assert text.endswith("<!-- end -->\n\nAfter\n")
    assert run("--check", str(page)).returncode == 0


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: nothing -->\n<!-- end -->\n")
    done = run("--check", str(page))
    assert done.returncode != 0
    assert "legal names: models" in done.stderr


def test_every_earlier_name_stands_on_its_page() -> None:
    from deepSTRF import _moved  # inner: the other tests run the tool in a process of its own

    page = (TOOL.parents[1] / "docs" / "coming-from-other-tools.md").read_text(encoding="utf-8")
    for name in (*_moved.MODULES, *(".".join(key) for key in _moved.NAMES)):
        assert f"`{name.removeprefix('deepSTRF.')}`" in page
    for (_, name), new in (*_moved.CHANGED.items(), *_moved.KEYWORDS.items()):
        assert name in page
        assert new in page
