"""Every Python block of the documentation runs as it is printed.

The blocks of a page share their names and run in order, in an empty folder, with warnings as errors. A block
after the line ``<!-- no-run -->`` is not run; one that loads NS1, or uses what such a block made, runs only
where the recording is. Where a block prints and says ``# what``, that must be what it printed.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest

from deepSTRF import registry

ROOT = Path(__file__).resolve().parents[2]
#: Pages with a test of their own, which also reads what they print.
ELSEWHERE = {
    "docs/data.md": "tests/datasets/test_data_docs.py",
    "docs/training.md": "tests/training/test_fit_docs.py",
}
PAGES = sorted(
    page  # notebooks are run by test_tutorials.py
    for page in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    if "```{code-cell}" not in page.read_text(encoding="utf-8")
)
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n+```python\n(?P<code>.*?)^```", flags=re.DOTALL | re.MULTILINE)
NO_RUN = "<!-- no-run -->"
NEEDS_NS1 = re.compile(r"NS1Dataset\(|[\"']ns1[\"']")
PROMISE = re.compile(r"^\s*print\(.*\)\s+# (?P<text>[^:]+)(:.*)?$")


@dataclass(frozen=True)
class Block:
    """One block of code and where it stands."""

    code: str
    line: int
    run: bool

    @property
    def needs_ns1(self) -> bool:
        return NEEDS_NS1.search(re.sub(r"#.*", "", self.code)) is not None  # a remark needs nothing

    def names(self, kind: type[ast.expr_context]) -> set[str]:
        """Names that the block sets (`ast.Store`) or reads (`ast.Load`)."""
        nodes = ast.walk(ast.parse(self.code))
        return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}


def blocks_of(text: str) -> list[Block]:
    """Python blocks of a page, in order."""
    return [
        Block(
            found["code"], text[: found.start("code") - 1].count("\n") + 1, found["before"].strip() != NO_RUN
        )
        for found in BLOCK.finditer("\n" + text)  # a page may begin with code
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def ns1_is_here() -> bool:
    root = os.environ.get("DEEPSTRF_DATA_DIR")
    return bool(root) and (Path(root).expanduser() / "NS1" / "MetadataSHEnCneurons.mat").is_file()


@pytest.mark.parametrize("page", [p for p in PAGES if name_of(p) not in ELSEWHERE], ids=name_of)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    blocks = [block for block in blocks_of(page.read_text(encoding="utf-8")) if block.run]
    if not blocks:
        pytest.skip(f"{name_of(page)} has no Python to run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mpl.rcParams, "backend", "Agg")
    for table in vars(registry).values():
        if isinstance(table, registry.Registry):
            table.names()  # what a page registers goes into a copy of the full table
            monkeypatch.setattr(table, "_entries", dict(table.items()))
    names: dict[str, object] = {"__name__": "documentation"}
    left_out: set[str] = set()
    for block in blocks:
        if not ns1_is_here() and (block.needs_ns1 or block.names(ast.Load) & left_out - names.keys()):
            left_out |= block.names(ast.Store)
            continue
        # blank lines in front: a traceback then names the line of the page
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, name_of(page), "exec"), names)
        printed = capsys.readouterr().out
        for promise in filter(None, map(PROMISE.match, block.code.splitlines())):
            assert promise["text"].strip() in printed, (
                f"{name_of(page)} line {block.line}: prints {printed!r}"
            )


@pytest.mark.parametrize("page", sorted(ELSEWHERE))
def test_pages_left_to_other_tests_are_tested_there(page):
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")


def test_only_code_needs_the_recording():
    assert Block('ds = load("ns1")', 1, True).needs_ns1
    assert not Block("ds = SyntheticDataset()  # or NS1Dataset()", 1, True).needs_ns1


def test_code_that_uses_what_was_left_out_is_found():
    block = Block("b = a + f(b)\n", 1, True)
    assert block.names(ast.Load) == {"a", "b", "f"}
    assert block.names(ast.Store) == {"b"}


def test_blocks_are_found_marked_and_counted():
    text = "# A\n\n```python\na = 1\n```\n\n<!-- no-run -->\n```python\nNS1Dataset()\n```\n```bash\nls\n```\n"
    first, second = blocks_of(text)
    assert (first.code, first.line, first.run, first.needs_ns1) == ("a = 1\n", 4, True, False)
    assert (second.run, second.needs_ns1) == (False, True)


def test_no_page_hides_all_its_code():
    for page in PAGES:
        blocks = blocks_of(page.read_text(encoding="utf-8"))
        assert not blocks or any(block.run for block in blocks), f"{name_of(page)} has only {NO_RUN} blocks"
