"""From what users hand over (blocks, lists, None for missing) to the rows of `deepSTRF.datasets.storage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepSTRF.datasets.storage import ClipResponses, ResponseStorage

Array = npt.NDArray[Any]

#: Integer types for counts, smallest first; the lowest value of each is the code for "not recorded". Counts
#: beyond 16 bits go to float32, which holds integers to 2**24 and costs no more than 32-bit integers would.
COUNT_TYPES = (np.int8, np.int16)


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
    """Pack one clip: an (N, R, T) or (N, T) array, a list of N entries, or a mapping from neuron to entry.

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
    return _pack_pairs([(n, rows) for n, rows in pairs if rows is not None], where)


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


def _pack_pairs(pairs: Sequence[tuple[int, Any]], where: str) -> ClipResponses:
    blocks = [(neuron, _rows(entry, f"{where}, neuron {neuron}")) for neuron, entry in pairs]
    kept = [(neuron, rows) for neuron, rows in blocks if not _is_missing(rows)]
    heard = np.array([neuron for neuron, _ in kept], dtype=np.int64)
    counts = np.array([len(rows) for _, rows in kept], dtype=np.int64)
    n_bins = max((rows.shape[1] for _, rows in kept), default=0)
    whole = [_padded(rows, n_bins) for _, rows in kept]
    flat = np.concatenate(whole) if whole else np.empty((0, n_bins), dtype=np.int8)
    data, has_missing = encode(flat, where, copy=False)  # concatenate has made the copy
    return ClipResponses(data, heard, np.cumsum(counts) - counts, counts, has_missing)


def _rows(entry: Any, where: str) -> Array:
    """(R, T) of one neuron; repeats of different lengths are filled up with NaN."""
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


def _is_missing(rows: Array) -> bool:
    return rows.size == 0 or (rows.dtype.kind == "f" and bool(np.isnan(rows).all()))


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


def _count_type(low: int, high: int) -> type[np.signedinteger[Any]] | None:
    for kind in COUNT_TYPES:
        if np.iinfo(kind).min < low and high <= np.iinfo(kind).max:
            return kind
    return None


def _encode_floats(rows: Array, where: str) -> tuple[Array, bool]:
    missing = np.isnan(rows)
    has_missing = bool(missing.any())
    low, high = (np.nanmin(rows), np.nanmax(rows)) if has_missing else (rows.min(), rows.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"responses of {where} hold infinite values; use NaN where nothing was recorded")
    if max(abs(low), abs(high)) > np.finfo(np.float32).max:
        raise ValueError(
            f"responses of {where} reach {max(abs(low), abs(high)):g}, beyond float32; rescale them"
        )
    kind = _count_type(int(np.floor(low)), int(np.ceil(high)))
    if kind is not None:
        filled = np.where(missing, np.iinfo(kind).min, rows) if has_missing else rows
        counts = filled.astype(kind)
        if np.array_equal(counts, filled):
            return counts, has_missing
    return rows.astype(np.float32, order="C"), has_missing
