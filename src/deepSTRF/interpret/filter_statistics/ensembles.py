"""Filters of one clip or several as the statistics read them: neuron by neuron, in double precision.

A bin is valid when its filter is finite and no end of the clip cuts it off.
"""

from __future__ import annotations

import functools
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepSTRF._files import damaged, file_facts, naming_damage, read_json

#: Entry of the note beside a file: the numbers of bins at its start and its end whose filters are cut off.
NOTE_OF_CUT = "cut"
#: Entry of the note with the size and SHA-256 of the file.
NOTE_OF_FILE = "file"
#: Files of `dstrf_folds`, which write a note beside each.
_NAME_OF_FOLDS = re.compile(r"dSTRF-\d{3,}\.npy")
_REMEDY = "make it anew, with dstrf_folds or FileSink"


class Weighted(Protocol):
    """A result that holds filters: of `dstrf`, `jackknifed_dstrf` or `smooth_dstrf`."""

    @property
    def weights(self) -> Any:
        """The filters (T, N, L, F), or what a sink made of them."""
        ...


#: A tensor, array, ``.npy`` or ``.pt`` file (read in pieces) or result of `dstrf`, of shape (T, N, L, F).
Filters: TypeAlias = Tensor | NDArray[Any] | str | os.PathLike[str] | Weighted


def as_filters(dstrfs: Filters) -> Tensor | NDArray[Any]:
    """Return dynamic STRFs as a tensor or array (T, N, L, F), a file unread."""
    found: Any = getattr(dstrfs, "weights", dstrfs)
    if isinstance(found, str | os.PathLike):
        found = _read(Path(found))
    if not isinstance(found, Tensor | np.ndarray):
        raise TypeError(
            f"dstrfs must be a tensor, an array, the path of a .npy file or a result of dstrf, got "
            f"{type(found).__name__}; of several sinks pass one result"
        )
    if found.ndim != 4 or 0 in found.shape:
        raise ValueError(
            f"dstrfs must be (T, N, L, F) with at least one of each, got {tuple(found.shape)}; for one "
            "neuron add the axis, weights[:, None]"
        )
    if found.is_complex() if isinstance(found, Tensor) else found.dtype.kind not in "fiub":
        raise TypeError(f"dstrfs must hold real numbers, got {found.dtype}")
    return found


def _read(path: Path) -> Any:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give its files, sorted(Path({str(path)!r}).glob('*.npy'))")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; FileSink and dstrf_folds write such files")
    with naming_damage(path, _REMEDY):
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = np.lib.format.open_memmap(path, mode="r")
        if found.offset + math.prod(found.shape) * found.dtype.itemsize != (size := os.path.getsize(path)):
            raise ValueError(f"it has {size:,} bytes, and an array of the shape {found.shape} has not")
    note_of(path)
    return found


def note_of(path: Path) -> dict[str, Any] | None:
    """The note beside a file of `dstrf_folds`, after both were verified; None where there is none of ours."""
    note = path.with_suffix(".json")
    if not os.path.lexists(note):
        return None
    tree = read_json(note, _REMEDY)
    if not isinstance(tree, dict) or NOTE_OF_CUT not in tree:
        if _NAME_OF_FOLDS.fullmatch(path.name):
            raise damaged(note, "it is no note of dstrf_folds", _REMEDY)
        return None  # somebody else's
    with naming_damage(note, _REMEDY):
        cut, facts = tree[NOTE_OF_CUT], tree.get(NOTE_OF_FILE)
        if len(cut) != 2 or any(type(bins) is not int or bins < 0 for bins in cut):
            raise ValueError(f"{NOTE_OF_CUT} is {cut!r:.80}")
        if facts is not None:
            stated, found = (int(facts["size"]), str(facts["sha256"])), os.stat(path)
            if _facts_of(path, found.st_size, found.st_mtime_ns, found.st_ino) != stated:
                raise damaged(path, f"its content is not the one that {note.name} states", _REMEDY)
    return tree


@functools.lru_cache(maxsize=256)
def _facts_of(path: Path, _size: int, _changed: int, _inode: int) -> tuple[int, str]:
    """Size and SHA-256 of a file, computed once while it stays as it is."""
    return file_facts(path)


def cut_off(dstrfs: Filters) -> Tensor:
    """Return which bins hold filters that an end of the clip cuts off, (T,), as far as that is known.

    A filter is zero at frames outside the clip, so that all filters, of linear neurons too, grow in the first
    L - 1 bins of a clip. Results of `dstrf` and `jackknifed_dstrf` state these bins, and so do the notes
    beside files of `dstrf_folds`; bare arrays are taken as they are.
    """
    stated = getattr(dstrfs, "cut", None)
    if callable(stated):
        return torch.as_tensor(stated()).cpu()
    cut = torch.zeros(len(as_filters(dstrfs)), dtype=torch.bool)
    if isinstance(dstrfs, str | os.PathLike):
        note = note_of(Path(dstrfs))
        if note is not None:
            first, last = note[NOTE_OF_CUT]
            if first + last > len(cut):
                raise damaged(dstrfs, f"its note cuts {first} + {last} of {len(cut)} bins", _REMEDY)
            cut[:first] = cut[len(cut) - last :] = True
        elif _NAME_OF_FOLDS.fullmatch(Path(dstrfs).name):
            warnings.warn(
                f"{os.fspath(dstrfs)} has the name of a file of dstrf_folds, and lacks its .json: bins "
                "that an end of the clip cuts off count too",
                UserWarning,
                stacklevel=2,
            )
    return cut


def ensembles(dstrfs: Filters) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each neuron's filters (T, L, F) in double precision, and its valid bins (T,); others are zero."""
    every, cut = as_filters(dstrfs), cut_off(dstrfs)
    for neuron in range(every.shape[1]):
        column = every[:, neuron]
        filters = (
            column.detach().double()
            if isinstance(column, Tensor)
            else torch.from_numpy(np.array(column, dtype=np.float64))
        )
        valid = torch.isfinite(filters).flatten(1).all(1) & ~cut.to(filters.device)
        yield torch.where(valid[:, None, None], filters, 0.0), valid


def as_clips(dstrfs: Filters | Iterable[Filters]) -> list[Filters]:
    """Return filters of one clip or of several as a list of clips, unread."""
    clips = list(dstrfs) if isinstance(dstrfs, list | tuple | Iterator) else [cast(Filters, dstrfs)]
    if not clips:
        raise ValueError("there is no clip: give the filters of at least one")
    return clips


def clips_of(dstrfs: Filters | Iterable[Filters]) -> tuple[list[Filters], list[int]]:
    """Return filters of one clip or of several as a list of clips that fit each other, and their bins."""
    clips = as_clips(dstrfs)
    shapes = [tuple(as_filters(clip).shape) for clip in clips]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(f"clips differ in filters: {shapes}; they must share neurons, lags and bands")
    return clips, [shape[0] for shape in shapes]


def neurons_of(clips: Sequence[Filters]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield, per neuron, its filters and valid bins clip by clip: one clip is in memory at a time."""
    streams = [ensembles(clip) for clip in clips]
    for _ in range(as_filters(clips[0]).shape[1]):
        yield (next(stream) for stream in streams)


def per_neuron(values: Sequence[float]) -> Tensor:
    """Return one number per neuron as a tensor (N,)."""
    return torch.tensor(list(values), dtype=torch.float64)
