"""Dynamic STRFs of several clips, for statistics that take all clips together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor

from deepSTRF.interpret.dynamic.ensembles import Filters, as_filters, ensembles

__all__ = ["as_clips", "clip_lengths", "clips_of", "neurons_of"]


def as_clips(dstrfs: Filters | Iterable[Filters]) -> list[Filters]:
    """Return filters of one clip or of several as a list of clips, unread.

    Parameters
    ----------
    dstrfs : filters of one clip, or several of such
        Tensors or arrays (T, N, L, F), paths, or results of `dstrf`, in a sequence or iterator.

    Returns
    -------
    list of Filters
        At least one.

    Raises
    ------
    ValueError
        For no clip.

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

    Parameters
    ----------
    dstrfs : filters of one clip, or a sequence of such
        Tensors or arrays (T, N, L, F), paths of ``.npy`` files, or results of `dstrf`.

    Returns
    -------
    list of Filters
        At least one; files stay files.

    Raises
    ------
    ValueError, TypeError
        For no clip, filters of another shape, or clips that differ in neurons, lags or bands.

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

    Parameters
    ----------
    clips : sequence of Filters
        As `clips_of` returns them.

    Returns
    -------
    list of int
        T of each.

    Examples
    --------
    >>> import torch
    >>> clip_lengths([torch.zeros(10, 2, 5, 3), torch.zeros(7, 2, 5, 3)])
    [10, 7]
    """
    return [len(as_filters(clip)) for clip in clips]


def neurons_of(clips: Sequence[Filters]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield, per neuron, its filters and sound bins clip by clip: one clip is in memory at a time.

    Parameters
    ----------
    clips : sequence of Filters
        As `clips_of` returns them.

    Yields
    ------
    iterator
        Over clips, of what `ensembles` yields: use it up before the next neuron.

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
