"""Where recorded responses lie in memory: small integers, and nothing for what was not recorded.

A clip's responses are the rows of one (rows, T) array: row after row the repeats of the neurons that heard
the clip. Spike counts are int8 or int16 with a code for "not recorded", anything else is float32. Views and
concatenations share these arrays; only the small index beside them is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ClipResponses", "ResponseStorage"]

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClipResponses:
    """The responses of one clip, decoded when they are read.

    Attributes
    ----------
    data : ndarray (rows, T)
        Recorded rows: int8 or int16 counts (the lowest value of the type means "not recorded") or float32
        with NaN. Shared between views, never written.
    heard : int64 ndarray (H,)
        Neurons with at least one real value, ascending.
    starts, counts : int64 ndarray (H,)
        First row and number of repeats of each neuron in ``heard``.
    has_missing : bool
        Whether ``data`` holds any "not recorded" value.

    Examples
    --------
    >>> data = np.array([[0, 2, 1], [1, 0, -128]], dtype=np.int8)
    >>> one = np.array([1])
    >>> clip = ClipResponses(data, heard=one, starts=np.array([0]), counts=np.array([2]), has_missing=True)
    >>> clip.neuron(1)
    array([[ 0.,  2.,  1.],
           [ 1.,  0., nan]], dtype=float32)
    >>> clip.neuron(0) is None
    True
    """

    data: npt.NDArray[np.generic]
    heard: Index
    starts: Index
    counts: Index
    has_missing: bool

    @property
    def n_bins(self) -> int:
        """Number of time bins T (0 when nothing at all was recorded)."""
        return int(self.data.shape[1])

    @property
    def max_repeats(self) -> int:
        """Largest number of repeats of any neuron that heard the clip (0 when none did)."""
        return int(self.counts.max()) if self.counts.size else 0

    @property
    def is_counts(self) -> bool:
        """Whether the rows are integers (spike counts)."""
        return self.data.dtype != np.float32

    def _decode(self, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        values = rows.astype(np.float32)  # always a copy, so that nobody can write into the recording
        if self.has_missing and self.is_counts:
            values[rows == np.iinfo(rows.dtype).min] = np.nan  # type: ignore[type-var]
        return values

    def neuron(self, neuron: int) -> npt.NDArray[np.float32] | None:
        """(R, T) float32 values of one neuron, None when it did not hear the clip."""
        at = int(np.searchsorted(self.heard, neuron))
        if at == self.heard.size or self.heard[at] != neuron:
            return None
        start = int(self.starts[at])
        return self._decode(self.data[start : start + int(self.counts[at])])

    def rows(self) -> npt.NDArray[np.generic]:
        """(sum of repeats, T) rows of the neurons in ``heard``, still encoded; may be `data` itself."""
        first = np.cumsum(self.counts) - self.counts
        total = int(self.counts.sum())
        if np.array_equal(self.starts, first) and total == len(self.data):
            return self.data
        return self.data[np.repeat(self.starts - first, self.counts) + np.arange(total)]

    def values(self) -> npt.NDArray[np.float32]:
        """(H, R, T) float32 values of the neurons in ``heard``; NaN for repeats a neuron does not have."""
        flat = self._decode(self.rows())
        repeats, n_heard = self.max_repeats, self.heard.size
        if n_heard == 0 or int(self.counts.min()) == repeats:
            return flat.reshape(n_heard, repeats, self.n_bins)
        block = np.full((n_heard, repeats, self.n_bins), np.nan, dtype=np.float32)
        first = np.cumsum(self.counts) - self.counts
        neuron = np.repeat(np.arange(n_heard), self.counts)
        block[neuron, np.arange(len(flat)) - first[neuron]] = flat
        return block

    def take(self, neurons: Index) -> ClipResponses:
        """The same rows seen by chosen neurons (order and duplicates kept), which become 0, 1, 2, ..."""
        if self.heard.size == 0:
            return self
        at = np.minimum(np.searchsorted(self.heard, neurons), self.heard.size - 1)
        hit = np.flatnonzero(self.heard[at] == neurons)
        at = at[hit]
        return ClipResponses(self.data, hit, self.starts[at], self.counts[at], self.has_missing)

    def cropped(self, n_bins: int) -> ClipResponses:
        """The first ``n_bins`` bins; a neuron left without any value is no longer in ``heard``."""
        data = self.data[:, :n_bins].copy()
        there = ~np.isnan(self._decode(data))
        total = np.concatenate([[0], np.cumsum(there.any(axis=1))])
        keep = total[self.starts + self.counts] > total[self.starts]
        missing = not bool(there.all())
        return ClipResponses(data, self.heard[keep], self.starts[keep], self.counts[keep], missing)

    def first_reaching(self, n_bins: int) -> int | None:
        """First neuron with a value in or behind bin ``n_bins``, None when there is none."""
        there = ~np.isnan(self._decode(self.data[:, n_bins:]))
        total = np.concatenate([[0], np.cumsum(there.any(axis=1))])
        found = np.flatnonzero(total[self.starts + self.counts] > total[self.starts])
        return int(self.heard[found[0]]) if found.size else None

    def shifted(self, first_neuron: int) -> ClipResponses:
        """The same rows with neuron 0 renamed to ``first_neuron`` (for concatenation)."""
        heard = self.heard + first_neuron
        return ClipResponses(self.data, heard, self.starts, self.counts, self.has_missing)


class ResponseStorage:
    """All responses of a recording or of a view of it: one `ClipResponses` per clip.

    Parameters
    ----------
    clips : sequence of ClipResponses
        One per clip.
    n_neurons : int
        Number of neurons N that the indices in ``heard`` count.

    Examples
    --------
    >>> data = np.zeros((2, 4), dtype=np.int8)
    >>> clip = ClipResponses(data, np.array([0, 2]), np.array([0, 1]), np.array([1, 1]), has_missing=False)
    >>> storage = ResponseStorage([clip], n_neurons=3)
    >>> storage.masks
    tensor([[ True, False,  True]])
    >>> storage.take(neurons=np.array([2, 1]), clips=None).masks
    tensor([[ True, False]])
    """

    def __init__(self, clips: Sequence[ClipResponses], n_neurons: int) -> None:
        self.clips = list(clips)
        self.n_neurons = n_neurons
        self._masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def masks(self) -> Tensor:
        """(S, N) bool: True where a neuron has at least one real value for a clip. Computed once."""
        if self._masks is None:
            masks = np.zeros((len(self.clips), self.n_neurons), dtype=bool)
            for row, clip in zip(masks, self.clips, strict=True):
                row[clip.heard] = True
            self._masks = torch.from_numpy(masks)
        return self._masks

    @property
    def nbytes(self) -> int:
        """Bytes of recorded data and index, arrays shared between clips counted once."""
        arrays = {id(clip.data): clip.data.nbytes for clip in self.clips}
        index = sum(clip.heard.nbytes + clip.starts.nbytes + clip.counts.nbytes for clip in self.clips)
        return sum(arrays.values()) + index

    def take(self, neurons: Index | None, clips: Index | None) -> ResponseStorage:
        """A storage of the chosen neurons and clips that shares the recorded rows; None takes all."""
        chosen = self.clips if clips is None else [self.clips[clip] for clip in clips]
        if neurons is None:
            return ResponseStorage(chosen, self.n_neurons)
        return ResponseStorage([clip.take(neurons) for clip in chosen], len(neurons))
