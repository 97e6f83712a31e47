"""(placeholder)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepSTRF.datasets.base import NeuralDataset


@dataclass(frozen=True)
class AlignmentReport:
    """(being built)"""

    status: str = "unknown"


def check_alignment(
    ds: NeuralDataset, *, warn_unclear: bool = True, max_latency_ms: float = 300.0
) -> AlignmentReport:
    """(being built)"""
    return AlignmentReport()
