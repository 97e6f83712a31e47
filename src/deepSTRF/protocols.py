"""Typing protocol of a dataset, for subpackages that do not import `deepSTRF.datasets`.

`deepSTRF.metrics` and `deepSTRF.models` work on any object that has these members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["DatasetLike"]


@runtime_checkable
class DatasetLike(Protocol):
    """The part of a neural dataset that models, metrics and fits rely on.

    Clips are indexed ``0 .. len(ds) - 1`` and ``ds[i]`` always belongs to ``ds.stims[i]``.
    """

    dt: float
    N_neurons: int

    @property
    def stims(self) -> Sequence[Tensor]:
        """One stimulus per clip: (1, F, T) spectrograms or (1, T_audio) waveforms."""
        ...

    @property
    def stim_meta(self) -> Sequence[dict[str, Any]]:
        """One dictionary per clip."""
        ...

    @property
    def nrn_meta(self) -> Sequence[dict[str, Any]]:
        """One dictionary per neuron."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> dict[str, Any]: ...

    def response_block(self, clip: int) -> Tensor:
        """(N, R, T) float32 responses of one clip; NaN where nothing was recorded."""
        ...

    def fingerprint(self, clip: int) -> str:
        """Content hash (hex) of one stimulus."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for the protocol card and the report."""
        ...
