"""Recorded responses in memory: packed rows, how arrays are packed, and how users index them.

The responses to a clip are the rows of one (rows, T) array: row after row the repeats of the neurons that
were recorded for it. Spike counts are int8 or int16 with a code for "not recorded", anything else is float32.
A missing (clip, neuron) pair takes no memory. Views and concatenations share these arrays; only the small
index beside them is new.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepSTRF.datasets.selection import as_index

__all__ = [
    "ClipResponses",
    "ItemResponses",
    "ResponseGrid",
    "ResponseRow",
    "ResponseStorage",
    "as_array",
    "check_outer",
    "encode",
    "pack_clip",
    "pack_responses",
    "stored_responses",
]

Index = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: Integer types for counts, smallest first; the lowest value of each is the code for "not recorded". Counts
#: beyond 16 bits go to float32, which holds integers to 2**24 and costs no more than 32-bit integers would.
COUNT_TYPES = (np.int8, np.int16)
#: Negative values of at most this share of the largest are rounding of what cannot be negative.
ROUNDING = 1e-6

# ---- storage


@dataclass(frozen=True, eq=False)
class ClipResponses:
    """The responses to one clip, decoded when they are read; shared between views, never written."""

    # (rows, T) int8 or int16 counts, lowest value "not recorded"; or float32 with NaN
    data: npt.NDArray[np.generic]
    heard: Index  # (H,) neurons with at least one real value, ascending
    starts: Index  # (H,) first row of each neuron in ``heard``
    counts: Index  # (H,) number of its repeats
    has_missing: bool  # whether ``data`` holds any "not recorded" value

    @property
    def n_bins(self) -> int:
        """Number of time bins T (0 when nothing at all was recorded)."""
        return int(self.data.shape[1])

    @property
    def max_repeats(self) -> int:
        """Largest number of repeats of any neuron (0 when none was recorded)."""
        return int(self.counts.max()) if self.counts.size else 0

    @property
    def is_counts(self) -> bool:
        """Whether the rows are integers (spike counts)."""
        return self.data.dtype != np.float32

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of neurons, repeats and values, whatever type of number they are stored in."""
        rows: npt.NDArray[Any] = self.rows()
        if rows.dtype == np.int16 and rows.size:
            missing, small = rows == np.iinfo(np.int16).min, np.iinfo(np.int8)
            if not ((rows < -small.max) & ~missing).any() and rows.max() <= small.max:
                rows = np.where(missing, small.min, rows).astype(np.int8)
        rows = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<"), copy=False))
        head = (rows.dtype.name, rows.shape, self.heard.tolist(), self.counts.tolist())
        digest = hashlib.sha256(repr(head).encode())
        digest.update(rows.data if rows.size else b"")
        return digest.hexdigest()

    def _decode(self, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        values = rows.astype(np.float32)  # always a copy: writing into it leaves the recording as it is
        if self.has_missing and self.is_counts:
            values[rows == np.iinfo(rows.dtype).min] = np.nan  # type: ignore[type-var]
        return values

    def neuron(self, neuron: int) -> npt.NDArray[np.float32] | None:
        """(R, T) float32 values of one neuron, None when it has none for the clip."""
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
        """The same rows for chosen neurons (order and duplicates kept), which become 0, 1, 2, ..."""
        if self.heard.size == 0:
            return self
        at = np.minimum(np.searchsorted(self.heard, neurons), self.heard.size - 1)
        hit = np.flatnonzero(self.heard[at] == neurons)
        at = at[hit]
        return ClipResponses(self.data, hit, self.starts[at], self.counts[at], self.has_missing)

    def cropped(self, stop: int | None, start: int = 0, *, copy: bool = True) -> ClipResponses:
        """Bins ``start`` up to ``stop``; a neuron left without any value is no longer in ``heard``."""
        data = self.data[:, start:stop]
        data = data.copy() if copy else data
        keep, complete = self._with_values(data)
        return ClipResponses(data, self.heard[keep], self.starts[keep], self.counts[keep], not complete)

    def first_reaching(self, n_bins: int) -> int | None:
        """First neuron with a value in or behind bin ``n_bins``, None when there is none."""
        found = np.flatnonzero(self._with_values(self.data[:, n_bins:])[0])
        return int(self.heard[found[0]]) if found.size else None

    def _with_values(self, data: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.bool_], bool]:
        """(H,) whether each neuron has a value in ``data`` (a part of the bins); whether all are values."""
        there = ~np.isnan(self._decode(data))
        total = np.concatenate([[0], np.cumsum(there.any(axis=1))])
        return total[self.starts + self.counts] > total[self.starts], bool(there.all())

    def shifted(self, first_neuron: int) -> ClipResponses:
        """The same rows with neuron 0 renamed to ``first_neuron`` (for concatenation)."""
        heard = self.heard + first_neuron
        return ClipResponses(self.data, heard, self.starts, self.counts, self.has_missing)


class ResponseStorage:
    """All responses of a recording or of a view of it: one `ClipResponses` per clip."""

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

    def kind(self) -> str:
        """Whole numbers of at least 0 are "counts", numbers of at least 0 a "rate", others a "trace"."""
        whole, data = True, None  # type: bool, Any
        for data, coded in {id(clip.data): (clip.data, clip.has_missing) for clip in self.clips}.values():
            if data.dtype.kind == "i" and data.size:
                missing = data == np.iinfo(data.dtype).min if coded else False
                if data.min() < 0 and bool(((data < 0) & ~np.asarray(missing)).any()):
                    return "trace"
            elif data.size:
                low, high = np.fmin.reduce(data, axis=None), np.fmax.reduce(data, axis=None)
                if np.isinf(low) or np.isinf(high):
                    raise ValueError("responses hold infinite values; use NaN where nothing was recorded")
                if low < -ROUNDING * max(high, -low):
                    return "trace"
                whole = whole and np.array_equal(data, np.round(data), equal_nan=True)
        return "counts" if whole else "rate"

    def take(self, neurons: Index | None, clips: Index | None) -> ResponseStorage:
        """A storage of the chosen neurons and clips that shares the recorded rows; None takes all."""
        chosen = self.clips if clips is None else [self.clips[clip] for clip in clips]
        if neurons is None:
            return ResponseStorage(chosen, self.n_neurons)
        return ResponseStorage([clip.take(neurons) for clip in chosen], len(neurons))


def stored_responses(rows: Array, heard: Array, counts: Array, n_neurons: int, where: str) -> ClipResponses:
    """The responses to one clip of a file; ValueError where its arrays do not fit each other."""
    if rows.ndim != 2 or rows.dtype not in (np.float32, *COUNT_TYPES):
        raise ValueError(f"{where}: the responses are {rows.dtype} of shape {rows.shape}")
    for what, index in (("neurons", heard), ("repeats", counts)):
        if index.dtype != np.int64 or index.shape != heard.shape or index.ndim != 1:
            raise ValueError(f"{where}: the {what} are {index.dtype} of shape {index.shape}")
    if heard.size and not (heard.min() >= 0 and heard.max() < n_neurons and (np.diff(heard) > 0).all()):
        raise ValueError(f"{where}: its neurons are not ascending indices of {n_neurons} neurons")
    if not ((counts >= 1) & (counts <= len(rows))).all() or counts.sum() != len(rows):
        raise ValueError(f"{where}: its repeats are not those of {len(rows)} rows")
    coded = rows.dtype != np.float32
    missing = bool((rows == np.iinfo(rows.dtype).min).any()) if coded else True
    clip = ClipResponses(rows, heard, np.cumsum(counts) - counts, counts, missing)
    if missing and heard.size:
        # a neuron with a value in the first bin is settled; only the others are looked through
        silent = clip.heard[~clip._with_values(rows[:, :1])[0]]
        empty = [n for n in silent.tolist() if np.isnan(clip.neuron(n)).all()]  # type: ignore[arg-type]
        if empty:
            raise ValueError(f"{where}: neuron {empty[0]} is listed without any value")
    return clip


# ---- packing of blocks, lists and dictionaries


def pack_responses(responses: Sequence[Any], n_neurons: int | None = None, *, copy: bool) -> ResponseStorage:
    """Pack one entry per clip (see `pack_clip`). ``copy=False`` may share blocks of int8 or int16."""
    check_outer(responses)
    counts = {clip: len(entry) for clip, entry in enumerate(responses) if not isinstance(entry, Mapping)}
    if n_neurons is None:
        named = [max(entry, default=-1) + 1 for entry in responses if isinstance(entry, Mapping)]
        n_neurons = next(iter(counts.values()), max(named, default=0))
    for clip, count in counts.items():
        if count != n_neurons:
            raise ValueError(
                f"responses of clip {clip} hold {count} neurons, other clips or nrn_meta say {n_neurons}; "
                "give every clip one entry per neuron (None where a neuron was not recorded)"
            )
    clips = [pack_clip(entry, n_neurons, f"clip {i}", copy=copy) for i, entry in enumerate(responses)]
    return ResponseStorage(clips, n_neurons)


def check_outer(responses: Any) -> None:
    """Refuse anything that is no sequence of clips."""
    if isinstance(responses, (str, Mapping)) or not hasattr(responses, "__len__"):
        raise TypeError(f"responses is a list with one entry per clip, got {type(responses).__name__}")


def pack_clip(entry: Any, n_neurons: int, where: str, *, copy: bool) -> ClipResponses:
    """Pack one clip: an (N, R, T) or (N, T) array, or entries by neuron (a list of N or a mapping).

    An entry is (R, T), (T,), a list of repeats of possibly different lengths, or None.
    """
    if isinstance(entry, (np.ndarray, torch.Tensor)):
        return _pack_block(as_array(entry, f"responses of {where}"), where, copy=copy)
    if isinstance(entry, Mapping):
        wrong = [key for key in entry if not 0 <= key < n_neurons]
        if wrong:
            raise ValueError(f"{where}: neuron {wrong[0]} is outside 0..{n_neurons - 1}; check nrn_meta")
        pairs = sorted(entry.items())
    else:
        pairs = list(enumerate(entry))
    kept = []
    for neuron, given in pairs:
        rows = None if given is None else _rows(given, f"{where}, neuron {neuron}")
        if rows is not None and rows.size and not (rows.dtype.kind == "f" and np.isnan(rows).all()):
            kept.append((neuron, rows))
    heard = np.array([neuron for neuron, _ in kept], dtype=np.int64)
    counts = np.array([len(rows) for _, rows in kept], dtype=np.int64)
    n_bins = max((rows.shape[1] for _, rows in kept), default=0)
    whole = [_padded(rows, n_bins) for _, rows in kept]
    flat = np.concatenate(whole) if whole else np.empty((0, n_bins), dtype=np.int8)
    data, has_missing = encode(flat, where, copy=False)  # concatenate has made the copy
    return ClipResponses(data, heard, np.cumsum(counts) - counts, counts, has_missing)


def as_array(values: Any, what: str) -> Array:
    """A real-valued numpy array of tensor, array or nested list; TypeError for anything else."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        values = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what}: rows of different lengths ({error}); give a list of 1-D arrays") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what}: real numbers are needed, got dtype {array.dtype}")
    return array


def _pack_block(block: Array, where: str, *, copy: bool) -> ClipResponses:
    if block.ndim == 2:
        block = block[:, None, :]
    if block.ndim != 3:
        raise ValueError(f"responses of {where}: (N, R, T) or (N, T) is needed, got shape {block.shape}")
    n_neurons, repeats, n_bins = block.shape
    if block.dtype.kind == "f" and block.size:
        heard = np.flatnonzero(~np.isnan(block).all(axis=(1, 2))).astype(np.int64)
    else:
        heard = np.arange(n_neurons if block.size else 0, dtype=np.int64)
    if heard.size != n_neurons:
        block = block[heard]
    data, has_missing = encode(block.reshape(heard.size * repeats, n_bins), where, copy=copy)
    counts = np.full(heard.size, repeats, dtype=np.int64)
    return ClipResponses(data, heard, np.arange(heard.size, dtype=np.int64) * repeats, counts, has_missing)


def _rows(entry: Any, where: str) -> Array:
    """(R, T) of one neuron; repeats of different lengths are padded with NaN."""
    if isinstance(entry, (list, tuple)) and entry and not np.isscalar(entry[0]):
        repeats = [as_array(row, f"{where}, repeat {r}") for r, row in enumerate(entry)]
        if all(row.ndim == 1 for row in repeats):
            n_bins = max(row.size for row in repeats)
            return np.concatenate([_padded(row[None], n_bins) for row in repeats])
    array = as_array(entry, where)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"{where}: responses are (R, T) or (T,), got shape {array.shape}")
    return array


def _padded(rows: Array, n_bins: int) -> Array:
    missing = n_bins - rows.shape[1]
    if missing == 0:
        return rows
    floats = rows if rows.dtype.kind == "f" else rows.astype(np.float64)
    return np.pad(floats, ((0, 0), (0, missing)), constant_values=np.nan)


def encode(rows: Array, where: str, *, copy: bool) -> tuple[Array, bool]:
    """Rows as int8 or int16 counts when they are small integers, else float32; and whether any is missing."""
    if rows.size == 0:
        return np.empty(rows.shape, dtype=np.int8), False
    if rows.dtype.kind == "f":
        return _encode_floats(rows, where)
    if rows.dtype.kind == "b":
        rows = rows.astype(np.int8)
    kind = _count_type(int(rows.min()), int(rows.max()))
    return np.array(rows, dtype=kind or np.float32, order="C", copy=copy or None), False


def _encode_floats(rows: Array, where: str) -> tuple[Array, bool]:
    missing = np.isnan(rows)
    has_missing = bool(missing.any())
    low, high = (np.nanmin(rows), np.nanmax(rows)) if has_missing else (rows.min(), rows.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"responses of {where} hold infinite values; use NaN where nothing was recorded")
    largest = max(abs(low), abs(high))
    if largest > np.finfo(np.float32).max:
        raise ValueError(f"responses of {where} reach {largest:g}, beyond float32; rescale them")
    kind = _count_type(int(np.floor(low)), int(np.ceil(high)))
    if kind is not None:
        coded = np.where(missing, np.iinfo(kind).min, rows) if has_missing else rows
        counts = coded.astype(kind)
        if np.array_equal(counts, coded):
            return counts, has_missing
    return rows.astype(np.float32, order="C"), has_missing


def _count_type(low: int, high: int) -> type[np.signedinteger[Any]] | None:
    """Smallest integer type for counts from ``low`` to ``high``, None when both are too small."""
    for kind in COUNT_TYPES:
        if np.iinfo(kind).min < low and high <= np.iinfo(kind).max:
            return kind
    return None


# ---- what users index


class ResponseReader(Protocol):
    """What `ResponseGrid` reads from: a dataset, which applies smoothing and normalisation."""

    @property
    def response_storage(self) -> ResponseStorage:
        """The packed rows."""
        ...

    def read_neuron(self, clip: int, neuron: int) -> Tensor:
        """(R, T) response of one neuron to one clip, or the (1, 1) NaN of a missing pair."""
        ...

    def read_item(self, clip: int) -> ItemResponses:
        """The N responses to one clip."""
        ...


class ResponseGrid(Sequence["ResponseRow"]):
    """All responses: ``grid[s][n]`` is the (R, T) float32 response of neuron n to clip s."""

    def __init__(self, dataset: ResponseReader) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset.response_storage)

    @overload
    def __getitem__(self, index: int) -> ResponseRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ResponseRow]: ...
    def __getitem__(self, index: int | slice) -> ResponseRow | list[ResponseRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return ResponseRow(self._dataset, as_index(index, len(self), "clip"))

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"responses is a read-only sequence without {name!r}: collect one entry per clip in a list and "
            "assign it, ds.responses = [...]"
        )

    def __repr__(self) -> str:
        return f"<responses of {self._dataset.response_storage.n_neurons} neurons to {len(self)} clips>"


class ResponseRow(Sequence[Tensor]):
    """The responses of all neurons to one clip: ``row[n]`` is (R, T), or a (1, 1) NaN where there is none."""

    def __init__(self, dataset: ResponseReader, clip: int) -> None:
        self._dataset = dataset
        self._clip = clip

    def __len__(self) -> int:
        return self._dataset.response_storage.n_neurons

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._dataset.read_neuron(self._clip, as_index(index, len(self), "neuron"))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._dataset.read_item(self._clip))

    def __repr__(self) -> str:
        heard = self._dataset.response_storage.clips[self._clip].heard.size
        return f"<responses of {heard} of {len(self)} neurons to clip {self._clip}>"


class ItemResponses(list[Tensor]):
    """The list of N responses in an item, with the block (H, R, T) they are slices of, for quick collation.

    Code that changes the list, or builds another from it, leaves the quick path and loses nothing else.
    """

    def __init__(
        self, n_neurons: int, heard: Tensor, values: Tensor, counts: Sequence[int], n_bins: int
    ) -> None:
        responses = [block[:count] for block, count in zip(values.unbind(), counts, strict=True)]
        n_missing = n_neurons - len(heard)
        if n_missing:
            is_heard = torch.zeros(n_neurons, dtype=torch.bool)
            is_heard[heard] = True
            sentinels = torch.full((n_missing, 1, 1), torch.nan, dtype=values.dtype).unbind()
            recorded, gaps = iter(responses), iter(sentinels)
            responses = [next(recorded) if there else next(gaps) for there in is_heard.tolist()]
        super().__init__(responses)
        self.heard, self.values, self.n_bins = heard, values, n_bins
        self._as_made = tuple(self)

    def is_untouched(self) -> bool:
        """Whether the list still holds the very tensors that `values` is made of."""
        made = self._as_made
        return len(self) == len(made) and all(a is b for a, b in zip(self, made, strict=True))
