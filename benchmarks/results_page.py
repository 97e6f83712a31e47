"""`benchmarks/RESULTS.md`, section by section: each benchmark rewrites its own and leaves the others alone."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path

import torch

PAGE = Path(__file__).with_name("RESULTS.md")
HEAD = """# Results

Every figure on this page was written by the command that stands above it; nobody typed one in. Speeds are ratios
against a plain yardstick timed in the same process, medians of several rounds, because machines differ and are shared.
"""


def machine() -> str:
    """The machine in one line, without a name that only its owner knows."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {date.today().isoformat()}"
    )


def write_section(name: str, title: str, body: str, path: Path = PAGE) -> None:
    """Put ``body`` under ``title`` between the markers of ``name``, in place or at the end of a page."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{start}\n## {title}\n\n{body.strip()}\n\n{end}"
    page = path.read_text(encoding="utf-8") if path.exists() else HEAD
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        page = pattern.sub(lambda _: section, page)
    else:
        page = page.rstrip() + "\n\n" + section + "\n"
    path.write_text(page, encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
