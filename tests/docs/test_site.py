"""The documentation site: every page has an example, is reached from a menu, and its links are followed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Pages without code that runs, and why.
NO_EXAMPLE = {
    "index": "its example runs, and the sections have theirs",
    "get-started": "a menu", "background": "a menu", "tutorials": "a menu", "how-to": "a menu",
    "zoo": "a menu", "from-other-tools": "a menu", "about": "a menu",
    "api": "a list; the examples of the names run as doctests",
    "benchmarks": "hours of fits, whose commands it names", "results": "stands in benchmarks/RESULTS.md",
    "changelog": "stands in CHANGELOG.md", "contributing": "stands in CONTRIBUTING.md",
    "differences": "statements, each with a test of its own",
}  # fmt: skip
PAGES = sorted(page.stem for page in DOCS.glob("*.md"))
RUNS = re.compile(r"(?<!<!-- no-run -->\n)^```(python|\{code-cell\}.*)$", flags=re.MULTILINE)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def load_checker():
    spec = importlib.util.spec_from_file_location("site_links", ROOT / "tools" / "site_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_an_example_that_runs_or_a_reason_for_none(page):
    assert RUNS.search(text_of(page)) or page in NO_EXAMPLE


def test_reasons_name_pages():
    assert set(NO_EXAMPLE) <= set(PAGES)


def test_every_page_is_in_one_menu():
    listed = [
        re.sub(r".*<(.*)>", r"\1", line)
        for page in PAGES
        for menu in TOCTREE.findall(text_of(page))
        for line in menu.splitlines()
        if line and not line.startswith(":")
    ]
    assert sorted([*listed, "index"]) == sorted([*PAGES, "auto_gallery/index"])


def test_links_are_followed(tmp_path):
    broken = load_checker().broken
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#here">b</a> <a href="#top">top</a> <a href="https://example.org">e</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html?q=1">a</a><img src="c.png">')
    (tmp_path / "c.png").write_bytes(b"")
    assert broken(tmp_path) == []
    (tmp_path / "b.html").write_text('<a href="d.html">d</a><script src="https://example.org/x.js"></script>')
    assert broken(tmp_path) == [
        "a.html: b.html#here has no such anchor",
        "b.html loads https://example.org/x.js from elsewhere",
        "b.html: d.html is not there",
    ]


def test_an_empty_site_is_an_error(tmp_path):
    assert load_checker().broken(tmp_path) == [f"no page in {tmp_path}"]
