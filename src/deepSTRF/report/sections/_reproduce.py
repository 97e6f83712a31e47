"""How to get the same numbers again."""

from __future__ import annotations

from deepSTRF.report.parts import ReportParts, Section
from deepSTRF.report.rendering import render

__all__ = ["reproduce"]


def reproduce(parts: ReportParts) -> Section | None:
    """Make the section with the command, the configuration and the versions."""
    if not (parts.command or parts.config or parts.versions):
        return None
    body = render("reproduce.html.j2", command=parts.command, config=parts.config, versions=parts.versions)
    return Section("reproduce", "How to reproduce", body)
