"""Stimuli of a dataset: tensors shared between views, standardised when read, with content hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from deepSTRF.datasets.selection import as_index
from deepSTRF.datasets.transforms import StimulusStandardization

__all__ = ["Stimulus", "StimulusList"]


class StimulusList(Sequence[Tensor]):
    """The stimuli of a dataset or view: a read-only sequence of tensors, each with its transform or None."""

    def __init__(
        self, stimuli: Sequence[Stimulus], transforms: Sequence[StimulusStandardization | None]
    ) -> None:
        self.stimuli = list(stimuli)
        self.transforms = list(transforms)
        self._digests: dict[int, str] = {}

    @classmethod
    def of(cls, values: Sequence[Any]) -> StimulusList:
        """Wrap tensors or arrays, without transforms."""
        tensors = [v if isinstance(v, Tensor) else torch.as_tensor(np.asarray(v)) for v in values]
        return cls([Stimulus(tensor) for tensor in tensors], [None] * len(tensors))

    def __len__(self) -> int:
        return len(self.stimuli)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        clip = as_index(index, len(self), "clip")
        transform, values = self.transforms[clip], self.stimuli[clip].values
        return values if transform is None else transform(values)

    def raw(self) -> list[Tensor]:
        """The stimuli as they were loaded."""
        return [stimulus.values for stimulus in self.stimuli]

    def take(self, clips: Sequence[int] | None) -> StimulusList:
        """The chosen clips (None: all); tensors and hashes are shared."""
        if clips is None:
            return StimulusList(self.stimuli, self.transforms)
        return StimulusList([self.stimuli[i] for i in clips], [self.transforms[i] for i in clips])

    def standardized(self, transform: StimulusStandardization) -> StimulusList:
        """The loaded stimuli under ``transform``, which replaces any earlier one."""
        return StimulusList(self.stimuli, [transform] * len(self.stimuli))

    def fingerprint(self, clip: int) -> str:
        """Content hash of what ``[clip]`` returns."""
        if self.transforms[clip] is None:
            return self.stimuli[clip].fingerprint()
        if clip not in self._digests:
            self._digests[clip] = _hash_tensor(self[clip])
        return self._digests[clip]

    def __repr__(self) -> str:
        shape = f", first {tuple(self.stimuli[0].values.shape)}" if self.stimuli else ""
        return f"<{len(self)} stimuli{shape}>"


class Stimulus:
    """One stimulus (..., T) as it was loaded; its content hash is computed at most once."""

    __slots__ = ("_digest", "values")

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._digest: str | None = None

    def fingerprint(self) -> str:
        """SHA-256 (hex) over dtype, shape and bytes."""
        if self._digest is None:
            self._digest = _hash_tensor(self.values)
        return self._digest


def _hash_tensor(values: Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and little-endian bytes of a tensor."""
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{array.dtype.name}:{tuple(values.shape)}:".encode())
    digest.update(array.data if array.size else b"")
    return digest.hexdigest()
