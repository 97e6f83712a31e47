"""Recorded responses in memory: packed rows, how arrays are packed, and how users index them.

The responses to a clip are the rows of one (rows, T) array: row after row the repeats of the neurons that
were recorded for it. Spike counts are int8 or int16 with a code for "not recorded", anything else is float32.
A missing (clip, neuron) pair takes no memory. Views and concatenations share these arrays; only the small
index beside them is new. An array may lie in a file (`FileArray`); what needs all values reads it in pieces.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepSTRF.datasets.selection import as_index
from deepSTRF.datasets.stored import FileArray, blocks, row_pieces

__all__ = [
    "ClipResponses",
    "ItemResponses",
    "ResponseGrid",
    "ResponseRow",
    "ResponseStorage",
    "as_array",
    "bytes_of",
    "check_outer",
    "encode",
    "pack_clip",
    "pack_responses",
    "stored_responses",
    "type_name",
]

Index = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: Integer types for counts, smallest first; the lowest value of each is the code for "not recorded". Counts
#: beyond 16 bits go to float32, which holds integers to 2**24 and costs no more than 32-bit integers would.
COUNT_TYPES = (np.int8, np.int16)
#: Negative values of at most this share of the largest are rounding of what cannot be negative.
ROUNDING = 1e-6

#: In memory, rows of up to this many bytes are worked on at once.
SMALL_BYTES = 1 << 24

# ---- storage


@functools.cache
def type_name(kind: np.dtype[Any]) -> str:
    """Name of a type of number, which numpy looks up anew each time."""
    return kind.name


def bytes_of(values: Array) -> memoryview | bytes:
    """The values in C order, lowest byte first, as hashes take them."""
    if values.dtype.itemsize > 1:
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(values).data if values.size else b""


def _part(
    data: Array | FileArray, rows: slice | Index = slice(None), start: int = 0, stop: int | None = None
) -> Array:
    """Rows and bins of a (rows, T) array: of one in memory a view where numpy gives one."""
    if isinstance(data, FileArray):
        return data.read(rows, start, stop)
    part = data[:, start:stop] if (start, stop) != (0, None) else data
    return part if isinstance(rows, slice) and rows == slice(None) else part[rows]


def _crop(data: Array | FileArray, start: int, stop: int | None) -> Array | FileArray:
    return data.crop(start, stop) if isinstance(data, FileArray) else data[:, start:stop]


def _is_small(data: Array | FileArray) -> bool:
    return isinstance(data, np.ndarray) and data.nbytes <= SMALL_BYTES


@dataclass(frozen=True, eq=False)
class ClipResponses:
    """The responses to one clip, decoded when they are read; shared between views, never written."""

    # (rows, T) int8 or int16 counts, lowest value "not recorded"; or float32 with NaN
    data: Array | FileArray
    heard: Index  # (H,) neurons with at least one real value, ascending
    starts: Index  # (H,) first row of each neuron in ``heard``
    counts: Index  # (H,) number of its repeats
    has_missing: bool  # whether ``data`` holds any "not recorded" value
    context: int = 0  # leading bins that read as "not recorded": a window's past, heard and not scored
    whole: Array | FileArray | None = None  # rows of the clip that a window shows bins ``first`` .. of
    first: int = 0

    @property
    def n_bins(self) -> int:
        """Number of time bins T (0 when nothing at all was recorded)."""
        return int(self.data.shape[1])

    @property
    def max_repeats(self) -> int:
        """Largest number of repeats of any neuron (0 when none was recorded)."""
        if self.is_block:
            return len(self.data) // self.heard.size
        return int(self.counts.max()) if self.counts.size else 0

    @property
    def is_counts(self) -> bool:
        """Whether the rows are integers (spike counts)."""
        return self.data.dtype != np.float32

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of neurons, repeats and values, whatever type of number they are stored in."""
        kind, small = self.data.dtype, np.iinfo(np.int8)
        if kind == np.int16 and self._n_rows and self.n_bins:
            wide = False
            for _, _, rows in self._pieces():
                missing = rows == np.iinfo(np.int16).min
                wide = wide or rows.max() > small.max or bool(((rows < -small.max) & ~missing).any())
            kind = kind if wide else np.dtype(np.int8)
        head = (type_name(kind), (self._n_rows, self.n_bins), self.heard.tolist(), self.counts.tolist())
        digest = hashlib.sha256(repr(head).encode())
        for _, _, rows in self._pieces():
            if kind != rows.dtype:
                rows = np.where(rows == np.iinfo(np.int16).min, small.min, rows).astype(np.int8)
            digest.update(bytes_of(rows))
        return digest.hexdigest()

    @functools.cached_property
    def is_block(self) -> bool:
        """Whether `data`, in memory, is the (H * R, T) rows of H neurons with R repeats, none hidden."""
        if (
            not isinstance(self.data, np.ndarray)
            or not self.heard.size
            or self.context
            or self.whole is not None
        ):
            return False
        repeats, rest = divmod(len(self.data), self.heard.size)
        counts, starts = self.counts.tolist(), self.starts.tolist()  # of few rows quicker than arrays
        evenly = list(range(0, len(self.data), max(1, repeats)))
        return not rest and counts.count(repeats) == len(counts) and starts == evenly

    def _decode(self, rows: Array) -> npt.NDArray[np.float32]:
        values = rows.astype(np.float32)  # always a copy: writing into it leaves the recording as it is
        if self.has_missing and self.is_counts:
            values[rows == np.iinfo(rows.dtype).min] = np.nan
        return values

    def neuron(self, neuron: int) -> npt.NDArray[np.float32] | None:
        """(R, T) float32 values of one neuron, None when it has none for the clip."""
        at = int(np.searchsorted(self.heard, neuron))
        if at == self.heard.size or self.heard[at] != neuron:
            return None
        start = int(self.starts[at])
        values = self._decode(_part(self.data, slice(start, start + int(self.counts[at]))))
        values[:, : self.context] = np.nan
        return values

    @property
    def _n_rows(self) -> int:
        """Number of rows of the neurons in ``heard``."""
        return len(self.data) if self.is_block else int(self.counts.sum())

    def _index(self) -> slice | Index:
        """Rows of the neurons in ``heard``, in their order."""
        if self.is_block:
            return slice(None)
        first = np.cumsum(self.counts) - self.counts
        total = self._n_rows
        if np.array_equal(self.starts, first):
            return slice(None) if total == len(self.data) else slice(0, total)
        return np.repeat(self.starts - first, self.counts) + np.arange(total)

    def _masked(self, rows: Array, start: int = 0) -> Array:
        """Encoded rows from bin ``start`` on, the context as "not recorded"."""
        hidden = max(0, min(self.context - start, rows.shape[1]))
        if hidden:
            rows = rows.copy()
            rows[:, :hidden] = np.iinfo(rows.dtype).min if self.is_counts else np.nan
        return rows

    def rows(self, start: int = 0, stop: int | None = None) -> Array:
        """(sum of repeats, T) rows of the neurons in ``heard``, still encoded; may be `data` itself."""
        return self._masked(_part(self.data, self._index(), start, stop), start)

    def encoded(self) -> tuple[tuple[int, int], np.dtype[Any], Iterator[Array]]:
        """Shape, type and pieces of `rows`."""
        shape = (self._n_rows, self.n_bins)
        return shape, self.data.dtype, (rows for _, _, rows in self._pieces())

    def stored_in(self, data: FileArray) -> ClipResponses:
        """The same responses read from a file that holds what `encoded` gave."""
        starts = np.cumsum(self.counts) - self.counts
        stored = ClipResponses(data, self.heard, starts, self.counts, self.has_missing)
        stored.__dict__["digest"] = self.digest  # as if it had been computed
        return stored

    def _pieces(self) -> Iterator[tuple[slice, slice, Array]]:
        """The same in pieces of a few bytes that follow each other in C order, with their rows and bins."""
        index, total = self._index(), self._n_rows
        if _is_small(self.data):
            yield slice(0, total), slice(0, self.n_bins), self.rows()
            return
        lines = np.arange(total) if isinstance(index, slice) else index
        for rows, bins in blocks(total, self.n_bins, self.data.dtype.itemsize):
            piece = lines[rows]
            wanted = slice(int(piece[0]), int(piece[-1]) + 1) if isinstance(index, slice) else piece
            yield rows, bins, self._masked(_part(self.data, wanted, bins.start, bins.stop), bins.start)

    def values(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """(H, R, T) float32 values of the neurons in ``heard``; NaN for repeats a neuron does not have."""
        flat = self._decode(_part(self.data, self._index(), start, stop))
        flat[:, : max(0, self.context - start)] = np.nan
        return self._block(flat)

    def around(self, start: int, stop: int, margin: int) -> tuple[npt.NDArray[np.float32], int]:
        """`values` with up to ``margin`` more bins on both sides (of a window's clip); how many before.

        The context is not hidden: this is what is smoothed, before bins are left out.
        """
        data, shift = (self.data, 0) if self.whole is None else (self.whole, self.first)
        low = max(0, start + shift - margin)
        flat = self._decode(_part(data, self._index(), low, min(stop + shift + margin, data.shape[1])))
        return self._block(flat), start + shift - low

    def _block(self, flat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        repeats, n_heard, n_bins = self.max_repeats, self.heard.size, flat.shape[1]
        if n_heard == 0 or int(self.counts.min()) == repeats:
            return flat.reshape(n_heard, repeats, n_bins)
        block = np.full((n_heard, repeats, n_bins), np.nan, dtype=np.float32)
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
        return replace(self, heard=hit, starts=self.starts[at], counts=self.counts[at])

    def cropped(self, stop: int | None, start: int = 0, *, copy: bool = True) -> ClipResponses:
        """Bins ``start`` up to ``stop``; a neuron left without any value is no longer in ``heard``."""
        data = _crop(self.data, start, stop)
        if isinstance(data, np.ndarray) and copy:
            data = data.copy()
        return self._restricted(data, max(0, self.context - start))

    def window(self, start: int, stop: int, context: int) -> ClipResponses:
        """Bins ``start`` up to ``stop``, the first ``context`` of them read as not recorded; shared."""
        data = _crop(self.data, start, stop)
        return replace(self._restricted(data, context), whole=self.data, first=start)

    def _restricted(self, data: Array | FileArray, context: int) -> ClipResponses:
        keep, complete = self._with_values(data, context)
        return ClipResponses(
            data, self.heard[keep], self.starts[keep], self.counts[keep], not complete, context
        )

    def first_reaching(self, n_bins: int) -> int | None:
        """First neuron with a value in or behind bin ``n_bins``, None when there is none."""
        found = np.flatnonzero(self._with_values(_crop(self.data, n_bins, None))[0])
        return int(self.heard[found[0]]) if found.size else None

    def _with_values(self, data: Array | FileArray, context: int = 0) -> tuple[npt.NDArray[np.bool_], bool]:
        """(H,) whether each neuron has a value in ``data`` (a part of the bins); whether all are values.

        The first ``context`` bins do not count, for the neurons.
        """
        n_rows, bins = data.shape
        if self.is_counts and not self.has_missing:
            return np.full(self.heard.size, bins > context), True
        found, complete = np.zeros(n_rows, dtype=bool), True
        small = [(slice(0, n_rows), slice(0, bins))] if _is_small(data) else None
        for rows, part in small or blocks(n_rows, bins, 4 * data.dtype.itemsize):
            there = ~np.isnan(self._decode(_part(data, rows, part.start, part.stop)))
            found[rows] |= there[:, max(0, context - part.start) :].any(axis=1)
            complete = complete and bool(there.all())
        total = np.concatenate([[0], np.cumsum(found)])
        return total[self.starts + self.counts] > total[self.starts], complete

    def shifted(self, first_neuron: int) -> ClipResponses:
        """The same rows with neuron 0 renamed to ``first_neuron`` (for concatenation)."""
        return replace(self, heard=self.heard + first_neuron)


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
            if not data.size:
                continue
            low, high = np.inf, -np.inf
            for piece in [data] if _is_small(data) else row_pieces(data):
                if data.dtype.kind == "i":
                    missing = piece == np.iinfo(data.dtype).min if coded else False
                    if piece.min() < 0 and bool(((piece < 0) & ~np.asarray(missing)).any()):
                        return "trace"
                    continue
                low = np.fmin(low, np.fmin.reduce(piece, axis=None))
                high = np.fmax(high, np.fmax.reduce(piece, axis=None))
                whole = whole and np.array_equal(piece, np.round(piece), equal_nan=True)
            if data.dtype.kind == "i":
                continue
            if low == -np.inf or high == np.inf:
                raise ValueError("responses hold infinite values; use NaN where nothing was recorded")
            if low < -ROUNDING * max(high, -low):
                return "trace"
        return "counts" if whole else "rate"

    def take(self, neurons: Index | None, clips: Index | None) -> ResponseStorage:
        """A storage of the chosen neurons and clips that shares the recorded rows; None takes all."""
        chosen = self.clips if clips is None else [self.clips[clip] for clip in clips]
        if neurons is None:
            return ResponseStorage(chosen, self.n_neurons)
        return ResponseStorage([clip.take(neurons) for clip in chosen], len(neurons))


def stored_responses(
    rows: Array | FileArray, heard: Array, counts: Array, n_neurons: int, where: str
) -> ClipResponses:
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
    missing = any((part == np.iinfo(rows.dtype).min).any() for part in row_pieces(rows)) if coded else True
    clip = ClipResponses(rows, heard, np.cumsum(counts) - counts, counts, missing)
    if missing and heard.size:
        # a neuron with a value in the first bin is settled; only the others are looked through
        silent = clip.heard[~clip._with_values(_part(rows, slice(None), 0, 1))[0]]
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
