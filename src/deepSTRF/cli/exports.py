"""``deepstrf export``: graphs of a fitted model for programs without this package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from deepSTRF.cli.console import stdout_console
from deepSTRF.cli.errors import say, usage
from deepSTRF.cli.fitted import load_fitted

__all__ = ["export_and_print"]


def export_and_print(
    run: str,
    path: Path | None,
    format: str,
    graphs: str | None,
    precision: str,
    seed: int | None,
    *,
    quiet: bool,
) -> None:
    """Write graphs of a model, and list the files."""
    model = load_fitted(run, seed)
    words = [word for word in Path(run).parts if word.strip("./\\")]
    folder = path or Path(f"{'-'.join(words[-2:]) or 'model'}-{format}")
    chosen: dict[str, Any] = {"format": format, "precision": precision}
    if graphs is not None:
        chosen["graphs"] = [word.strip() for word in graphs.split(",") if word.strip()]
    if not quiet:
        chosen["progress"] = _Stages()
    with usage():
        written = model.export(folder, **chosen)
    console = stdout_console()
    for file in sorted(written.iterdir()):
        console.print(f"  {file.name:<16s} {file.stat().st_size / 1e6:8.2f} MB")
    console.print(f"\nFolder  {written.resolve()}", soft_wrap=True)


class _Stages:
    """Lines of an export on stderr, each with the seconds since the first."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, line: str) -> None:
        say(f"  {time.perf_counter() - self.start:5.0f} s  {line}", err=True)
