"""Tables of registered names in the documentation: `python tools/docs_tables.py [--check] [PAGE ...]`.

Between ``<!-- table: models -->`` and ``<!-- end -->`` a page holds one row for each entry of a registry:
names, class or function, first line of its docstring. ``<!-- table: flags -->`` stands for the flags of
``deepstrf fit``, ``<!-- table: api -->`` for everything that the faces of the package export, ``<!-- table:
public recordings -->`` for `PUBLIC_RECORDINGS`, and ``<!-- table: moved modules -->`` (names, calls,
keywords) for what the earlier deepSTRF called otherwise. Without
``--check`` the rows are written; with it, pages that differ are named and the exit status is 1. All pages of
docs/ are the default, and then ``deepSTRF/cli/listing.json`` too: what ``deepstrf datasets|models`` print.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from deepSTRF import _moved, registry
from deepSTRF.cli.listing import TABLE, registered
from deepSTRF.datasets.audio import PUBLIC_RECORDINGS
from deepSTRF.experiments.config import flags_table
from deepSTRF.registry import Registry

DOCS = Path(__file__).resolve().parent.parent / "docs"
#: What ``deepstrf datasets`` and ``deepstrf models`` print.
LISTING = DOCS.parent / "src" / "deepSTRF" / "cli" / TABLE
#: Name of a table -> registry.
TABLES: dict[str, Registry[Any]] = {
    "models": registry.MODELS,
    "closed-form fits": registry.SOLVERS,
    "front-ends": registry.WAV2SPEC,
    "backbones": registry.BACKBONES,
    "prefilters": registry.PREFILTERS,
    "kernels": registry.KERNELS,
    "activations": registry.ACTIVATIONS,
    "datasets": registry.DATASETS,
    "losses": registry.LOSSES,
    "metrics": registry.METRICS,
}
FLAGS = "flags"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w -]+?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def table(entries: Registry[Any]) -> str:
    """Markdown rows of a registry; names of one and the same entry share a row."""
    names: dict[int, list[str]] = {}
    for name, entry in entries.items():
        names.setdefault(id(entry), []).append(name)
    rows = ["| name | built by | what it is |", "|---|---|---|"]
    for shared in names.values():
        entry = entries.get(shared[0])
        built_by = getattr(entry, "built_by", entry.__name__)
        rows.append(f"| {', '.join(f'`{name}`' for name in shared)} | `{built_by}` | {first_line(entry)} |")
    return "\n".join(rows) + "\n"


def first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").split("\n")[0].replace("``", "`").replace("|", "\\|")


def api() -> str:
    """One table per face: every exported name with the first line of its docstring."""
    source = DOCS.parent / "src"
    parts = []
    shown: dict[int, str] = {}
    for path in sorted((source / "deepSTRF").rglob("__init__.py"), key=lambda path: str(path.parent)):
        face = ".".join(path.parent.relative_to(source).parts)
        module = importlib.import_module(face)
        rows = []
        for name in sorted(getattr(module, "__all__", ()), key=str.lower):
            value = getattr(module, name)
            if inspect.ismodule(value) or face == "deepSTRF":
                continue
            documented = inspect.isclass(value) or inspect.isroutine(value)
            home = shown.setdefault(id(value), face)
            summary = first_line(value) if documented else f"constant, {type(value).__name__}"
            rows.append(f"| `{name}` | {summary if home == face else f'see `{home}`'} |")
        if rows:
            parts.append(
                f"## `{face}`\n\n{first_line(module)}\n\n| name | what it is |\n|---|---|\n" + "\n".join(rows)
            )
    return "\n" + "\n\n".join(parts) + "\n\n"


PUBLIC = "public recordings"


def public_recordings() -> str:
    """One row per public recording, and a section with its call, files, split and traps."""
    lines = ["| key | species, state | area | neurons | clips | repeats | licence | cite |", "|---" * 8 + "|"]
    parts = []
    for record in PUBLIC_RECORDINGS.values():
        cells = (
            f"[`{record.key}`](#{record.key})", f"{record.species}, {record.state}", record.area,
            record.neurons, record.clips, record.repeats, record.licence, record.citation,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
        dois = ", ".join(f"[{doi}](https://doi.org/{doi})" for doi in record.dois)
        page = f"[{record.page}]({record.page})"
        files = ", ".join(f"`{file.name}`" for file in record.files)
        account = " (free account needed)" if record.account else ""
        own = "".join(f", {name}={value!r}" for name, value in record.options.items())
        call = f'ds = load_public("{record.key}", root="{record.folder}"{own})'
        parts.append(
            f"## {record.key}\n\n{record.title}. Files from {page}{account}: {files}. "
            f"Bin {record.dt_ms:g} ms; responses in {record.signal}. Split: {record.split}.\n\n"
            f"<!-- no-run -->\n```python\n{call}\n```\n\n"
            f"{record.traps.strip()}\n\nCite {record.citation}: {dois}."
        )
        if record.fixes:
            parts[-1] += (
                " Faults that are dealt with and reported: "
                + "; ".join(f"{what} ({done})" for what, done in record.fixes)
                + "."
            )
    return "\n".join(lines) + "\n\n" + "\n\n".join(parts) + "\n\n"


WORKS, ERROR = "works, and warns", "error"


def moved(what: str) -> str:
    """What the earlier deepSTRF called otherwise: one row each, the new call, and what the old one does."""
    own = "deepSTRF."
    names = [(place, name, f"{new}.{name_now}") for (place, name), (new, name_now) in _moved.NAMES.items()]
    changed = [(place, name, call) for (place, name), call in _moved.CHANGED.items()]
    rows: list[tuple[str, str, str]] = []
    if what == "modules":
        rows = [(old, ", ".join(f"`{new}`" for new in places), "") for old, places in _moved.MODULES.items()]
    elif what == "names":
        rows = [(f"{place}.{name}", f"`{new}`", WORKS) for place, name, new in names]
        rows += [(f"{place}.{name}", call, ERROR) for place, name, call in changed if place != _moved.DATASET]
    elif what == "calls":
        rows = [(f"ds.{name}()", f"`{shown}`", WORKS) for name, (shown, _) in _moved.GETTERS.items()]
        rows += [(f"ds.{name}(...)", call, ERROR) for place, name, call in changed if place == _moved.DATASET]
    elif what == "keywords":
        for (call, name), new in _moved.KEYWORDS.items():
            works = new.isidentifier()
            shown = call.rpartition(".")[2]
            rows.append((f"{shown}({name}=)", f"`{new}=`" if works else new, WORKS if works else ERROR))
    lines = [f"| `{old.removeprefix(own)}` | {new} | {does} |" for old, new, does in sorted(rows)]
    head = "| earlier | here | the earlier one |\n|---|---|---|\n"
    if what == "modules":
        head, lines = (
            head.replace(" the earlier one |", "").replace("---|---|---", "---|---"),
            [line.removesuffix("  |") for line in lines],
        )
    return head + "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The text of a page with every marked table written anew."""

    def rows(found: re.Match[str]) -> str:
        if found["name"] == FLAGS:
            return found[1] + flags_table() + found[3]
        if found["name"] == PUBLIC:
            return found[1] + public_recordings() + found[3]
        if found["name"] == "api":
            return found[1] + api() + found[3]
        kind, _, what = found["name"].partition(" ")
        if kind == "moved":
            return found[1] + moved(what) + found[3]
        if found["name"] not in TABLES:
            raise ValueError(f"unknown table {found['name']!r}; legal names: {', '.join((*TABLES, FLAGS))}")
        return found[1] + table(TABLES[found["name"]]) + found[3]

    return MARKED.sub(rows, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files (default: all of docs/)")
    given = parser.parse_args()
    stale = []
    for page in given.pages or sorted(DOCS.glob("**/*.md")):
        text = page.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted != text:
            stale.append(page)
            if not given.check:
                page.write_text(wanted, encoding="utf-8")
    if not given.pages:
        wanted = json.dumps(registered(), indent=1) + "\n"
        if not LISTING.exists() or LISTING.read_text(encoding="utf-8") != wanted:
            stale.append(LISTING)
            if not given.check:
                LISTING.write_text(wanted, encoding="utf-8")
    for page in stale:
        print(f"{page}: {'differs from the package' if given.check else 'written'}")
    if stale and given.check:
        print("write the tables: python tools/docs_tables.py")
    return 1 if stale and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
