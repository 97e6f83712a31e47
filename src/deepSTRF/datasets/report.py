"""What a loader kept, what it skipped, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LoadReport"]

#: How many skipped entries the printed form names before it only counts.
_SHOWN = 10


@dataclass
class LoadReport:
    """What a loader kept and skipped: nothing is dropped silently.

    Attributes
    ----------
    kept : list of str
        Names of what is in the dataset (neurons, files, clips: the loader says which).
    skipped : list of (str, str)
        Name and reason of everything that was left out.

    Examples
    --------
    >>> report = LoadReport(kept=["cell_a"])
    >>> report.skip("cell_b", "the spike file is truncated")
    >>> str(report)
    'kept 1, skipped 1: cell_b (the spike file is truncated)'
    """

    kept: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def keep(self, name: str) -> None:
        """Note that ``name`` is in the dataset."""
        self.kept.append(str(name))

    def skip(self, name: str, reason: str) -> None:
        """Note that ``name`` was left out, and why."""
        self.skipped.append((str(name), str(reason)))

    def __str__(self) -> str:
        text = f"kept {len(self.kept)}, skipped {len(self.skipped)}"
        if not self.skipped:
            return text
        named = "; ".join(f"{name} ({reason})" for name, reason in self.skipped[:_SHOWN])
        more = len(self.skipped) - _SHOWN
        return f"{text}: {named}" + (f"; and {more} more" if more > 0 else "")
