"""Dynamic STRFs of several clips, for statistics that take all clips together."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "NOTE_OF_CUT",
    "Filters",
    "as_clips",
    "as_filters",
    "clip_lengths",
    "clips_of",
    "cut_off",
    "ensembles",
    "neurons_of",
]

# ------------------------------------------------------------------------------
# Dynamic STRFs as the statistics read them: neuron by neuron, in double precision, broken bins set apart.


#: Entry of the note beside a file: how many bins at its start and its end hold filters that are cut off.
NOTE_OF_CUT = "cut"


class Weighted(Protocol):
    """What holds filters: a result of `dstrf`, `jackknifed_dstrf` or `smooth_dstrf`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> as_filters(SimpleNamespace(weights=torch.zeros(10, 2, 5, 3))).shape
    torch.Size([10, 2, 5, 3])
    """

    @property
    def weights(self) -> Any:
        """The filters (T, N, L, F), or what a sink made of them."""
        ...


#: A tensor, array, ``.npy`` or ``.pt`` file (read in pieces) or result of `dstrf`, of shape (T, N, L, F).
Filters: TypeAlias = Tensor | NDArray[Any] | str | os.PathLike[str] | Weighted


def as_filters(dstrfs: Filters) -> Tensor | NDArray[Any]:
    """Return dynamic STRFs as something that can be sliced, (T, N, L, F).

    Examples
    --------
    >>> as_filters(torch.zeros(10, 2, 5, 3)).shape
    torch.Size([10, 2, 5, 3])
    """
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
    return found


def cut_off(dstrfs: Filters) -> Tensor:
    """Return which bins hold filters that an end of the clip cuts off, (T,): as far as that is known.

    A filter has zeros where there is no sound, so that all filters, of linear neurons too, grow in the first
    L - 1 bins of a clip. Results of `dstrf` and `jackknifed_dstrf` know these bins, and so do the notes
    beside files of `dstrf_folds`; bare arrays are taken as they are.

    Examples
    --------
    >>> cut_off(torch.zeros(4, 2, 5, 3)).any()
    tensor(False)
    """
    known = getattr(dstrfs, "cut", None)
    if callable(known):
        return torch.as_tensor(known()).cpu()
    cut = torch.zeros(len(as_filters(dstrfs)), dtype=torch.bool)
    if isinstance(dstrfs, str | os.PathLike):
        first, last = _noted(Path(dstrfs).with_suffix(".json"))
        cut[:first] = cut[len(cut) - last :] = True
    return cut


def _noted(note: Path) -> tuple[int, int]:
    """Bins that are cut off at the start and at the end, from the note beside a file; none without a note."""
    try:
        first, last = json.loads(note.read_text(encoding="utf-8"))[NOTE_OF_CUT]
        return int(first), int(last)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0


def _read(path: Path) -> Any:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give its files, sorted(Path({str(path)!r}).glob('*.npy'))")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; FileSink and dstrf_folds write such files")
    try:
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} holds no array of filters ({error}); make it anew") from error


def ensembles(dstrfs: Filters) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each neuron's filters (T, L, F) in double precision and which bins are sound (T,).

    Examples
    --------
    >>> [filters.shape for filters, sound in ensembles(torch.zeros(10, 2, 5, 3))]
    [torch.Size([10, 5, 3]), torch.Size([10, 5, 3])]
    """
    every, cut = as_filters(dstrfs), cut_off(dstrfs)
    for neuron in range(every.shape[1]):
        column = every[:, neuron]
        filters = (
            torch.as_tensor(column if isinstance(column, Tensor) else np.array(column)).detach().double()
        )
        sound = torch.isfinite(filters).flatten(1).all(1) & ~cut.to(filters.device)
        yield torch.where(sound[:, None, None], filters, 0.0), sound


def per_neuron(values: Sequence[float]) -> Tensor:
    """Return one number per neuron as a tensor (N,).

    Examples
    --------
    >>> per_neuron([1.0])
    tensor([1.], dtype=torch.float64)
    """
    return torch.tensor(list(values), dtype=torch.float64)


# ------------------------------------------------------------------------------


def as_clips(dstrfs: Filters | Iterable[Filters]) -> list[Filters]:
    """Return filters of one clip or of several as a list of clips, unread.

    Shapes: dstrfs (T, N, L, F).

    Examples
    --------
    >>> from pathlib import Path
    >>> as_clips(Path(name) for name in ("a.npy", "b.npy"))[0].name
    'a.npy'
    """
    clips = list(dstrfs) if isinstance(dstrfs, list | tuple | Iterator) else [cast(Filters, dstrfs)]
    if not clips:
        raise ValueError("there is no clip: give the filters of at least one")
    return clips


def clips_of(dstrfs: Filters | Iterable[Filters]) -> list[Filters]:
    """Return filters of one clip or of several as a list of clips.

    Shapes: dstrfs (T, N, L, F).

    Examples
    --------
    >>> import torch
    >>> len(clips_of(torch.zeros(10, 2, 5, 3))), len(clips_of([torch.zeros(10, 2, 5, 3)] * 4))
    (1, 4)
    """
    clips = as_clips(dstrfs)
    shapes = [tuple(as_filters(clip).shape) for clip in clips]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(f"clips differ in filters: {shapes}; they must share neurons, lags and bands")
    return clips


def clip_lengths(clips: Sequence[Filters]) -> list[int]:
    """Return the bins of each clip.

    Examples
    --------
    >>> import torch
    >>> clip_lengths([torch.zeros(10, 2, 5, 3), torch.zeros(7, 2, 5, 3)])
    [10, 7]
    """
    return [len(as_filters(clip)) for clip in clips]


def neurons_of(clips: Sequence[Filters]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield, per neuron, its filters and sound bins clip by clip: one clip is in memory at a time.

    Examples
    --------
    >>> import torch
    >>> clips = [torch.zeros(10, 2, 5, 3), torch.zeros(7, 2, 5, 3)]
    >>> [[len(filters) for filters, sound in neuron] for neuron in neurons_of(clips)]
    [[10, 7], [10, 7]]
    """
    streams = [ensembles(clip) for clip in clips]
    for _ in range(as_filters(clips[0]).shape[1]):
        yield (next(stream) for stream in streams)
