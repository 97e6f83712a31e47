"""The page: sections, style and script in one file that asks nothing of the network."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from deepSTRF import __version__
from deepSTRF.report.parts import ReportParts
from deepSTRF.report.rendering import render
from deepSTRF.report.sections import SECTIONS, SectionMaker
from deepSTRF.training.files import write_atomically

__all__ = ["render_report", "write_parts"]


def render_report(parts: ReportParts, sections: tuple[SectionMaker, ...] = SECTIONS) -> str:
    """Return the whole page as one HTML string.

    Parameters
    ----------
    parts : ReportParts
        What to show.
    sections : tuple of functions
        Sections in order; each may leave itself out.

    Returns
    -------
    str
        HTML with style, script and figures inside.

    Examples
    --------
    >>> page = render_report(ReportParts("Linear on NS1"))
    >>> "<h1>Linear on NS1</h1>" in page, "http" in page
    (True, False)
    """
    made = [section for section in (make(parts) for make in sections) if section is not None]
    return render(
        "report.html.j2",
        parts=parts,
        sections=made,
        version=__version__,
        style=_template_text("report.css"),
        script=_template_text("report.js"),
    )


def write_parts(
    parts: ReportParts, path: str | os.PathLike[str], sections: tuple[SectionMaker, ...] = SECTIONS
) -> Path:
    """Write the page to a file, completely or not at all.

    Parameters
    ----------
    parts : ReportParts
        What to show.
    path : path
        The HTML file; parent folders are made.
    sections : tuple of functions
        As in `render_report`.

    Returns
    -------
    pathlib.Path
        Where it lies.

    Raises
    ------
    OSError
        When it cannot be written; an earlier file is untouched then.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_parts(ReportParts("Linear on NS1"), pathlib.Path(folder) / "report.html").name
    'report.html'
    """
    target = Path(path)
    write_atomically(target, render_report(parts, sections).encode("utf-8"))
    return target


def _template_text(name: str) -> str:
    return resources.files("deepSTRF.report").joinpath("templates", name).read_text(encoding="utf-8")
