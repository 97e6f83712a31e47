"""Two names that notebooks import from here; their homes are `deepSTRF.datasets` and `deepSTRF.interpret`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepSTRF._moved import find_moved

if TYPE_CHECKING:
    from deepSTRF.datasets import neural_collate
    from deepSTRF.interpret import compare_wav2spec_to_groundtruth

__all__ = ["compare_wav2spec_to_groundtruth", "neural_collate"]

_HOMES = {
    "compare_wav2spec_to_groundtruth": "deepSTRF.interpret",
    "neural_collate": "deepSTRF.datasets",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return find_moved(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
