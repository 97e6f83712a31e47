"""Event-locked dynamic STRFs: filters averaged around onsets, words or changes of background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepSTRF._validation import check_positive_int, checked, to_tensor
from deepSTRF.interpret.filter_statistics.ensembles import Filters, as_clips, as_filters, cut_off

#: Resamples of the events, and the share of them between the bounds.
N_BOOTSTRAP, CONFIDENCE = 500, 0.95
#: Figures of each bin's filter besides the filter itself.
TRACES = ("norm", "excitation", "inhibition")


@dataclass(frozen=True)
class EventLocked:
    """Filters averaged around events, at K bins from before to after them.

    Attributes
    ----------
    offsets : Tensor (K,). Bins since the event.
    filters : Tensor (K, N, L, F). Mean filter at each offset.
    norm, excitation, inhibition : Tensor (3, K, N). Lower bound, mean and upper bound of the Frobenius norm
        of each bin's filter, of the sum of its positive and of its negative entries.
    count : Tensor (K, N). Events in each mean: those whose bin is inside the clip and holds a valid filter.
    """

    offsets: Tensor
    filters: Tensor
    norm: Tensor
    excitation: Tensor
    inhibition: Tensor
    count: Tensor


@checked
def event_locked(
    dstrfs: Filters | Sequence[Filters],
    events: Sequence[int] | Sequence[Sequence[int]],
    before: int = 0,
    after: int = 50,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> EventLocked:
    """Filters, their size and their excitation and inhibition, averaged around events.

    Parameters
    ----------
    dstrfs : filters of one clip, or a sequence of such
        Tensors or arrays (T, N, L, F), paths of ``.npy`` files, or results of `dstrf`.
    events : sequence of int, or one such sequence per clip
        Bins of the events.
    before, after : int
        Bins before and after each event.
    n_bootstrap : int
        Resamples of the events that make the bounds.
    confidence : float
        Share of the resamples between the bounds.
    seed : int
        Seed of the resampling.

    Returns
    -------
    EventLocked
        Means and bounds; NaN at offsets without any event. Bins outside the clip, filters with NaN, and those
        that the start of the clip cuts off, do not count.

    Raises
    ------
    ValueError, TypeError
        For no events, events outside their clip, or clips that do not fit each other.

    References
    ----------
    Mischler et al. 2023, NeuroImage 266:119819 (adaptation after a change of background).

    Examples
    --------
    >>> filters = torch.ones(100, 2, 5, 3)
    >>> filters[50:] *= 2
    >>> locked = event_locked(filters, [50], before=1, after=1)
    >>> locked.excitation[1, :, 0].tolist(), locked.filters.shape
    ([15.0, 30.0, 30.0], torch.Size([3, 2, 5, 3]))
    """
    clips = as_clips(dstrfs)
    offsets = torch.arange(-_check_bins("before", before), _check_bins("after", after) + 1)
    arrays = [as_filters(clip) for clip in clips]
    where = _check_events(events, [len(array) for array in arrays])
    if len({tuple(array.shape[1:]) for array in arrays}) > 1:
        raise ValueError(f"clips differ in filters: {[tuple(array.shape) for array in arrays]}")
    total = torch.zeros(len(offsets), *arrays[0].shape[1:], dtype=torch.float64)
    traces = []  # one (3, K, N) per event
    for clip, array, bins in zip(clips, arrays, where, strict=True):
        whole = ~cut_off(clip)
        for event in bins:
            rows = event + offsets
            inside = (rows >= 0) & (rows < len(array))
            part = slice(int(rows[inside][0]), int(rows[inside][-1]) + 1)
            filters, valid = _valid(array[part], whole[part])
            total[inside] += filters
            trace = torch.full((len(TRACES), len(offsets), total.shape[1]), torch.nan, dtype=torch.float64)
            flat = filters.flatten(2)
            measured = torch.stack([flat.norm(dim=2), flat.clamp_min(0).sum(2), flat.clamp_max(0).sum(2)])
            trace[:, inside] = torch.where(valid, measured, torch.nan)
            traces.append(trace)
    stacked = torch.stack(traces)
    count = torch.isfinite(stacked[:, 0]).sum(0)
    mean = torch.where((count > 0)[..., None, None], total / count.clamp(min=1)[..., None, None], torch.nan)
    bands = _bands(stacked, check_positive_int("n_bootstrap", n_bootstrap), confidence, seed)
    norm, excitation, inhibition = bands.unbind(1)
    return EventLocked(offsets, mean, norm, excitation, inhibition, count)


def _valid(part: Tensor | NDArray[Any], whole: Tensor) -> tuple[Tensor, Tensor]:
    """Filters (K, N, L, F) in double precision, and which are valid (K, N); the others are zero."""
    filters = to_tensor(part if isinstance(part, Tensor) else np.array(part)).detach().cpu().double()
    valid = torch.isfinite(filters).flatten(2).all(2) & whole.unsqueeze(1)
    return torch.where(valid[..., None, None], filters, 0.0), valid


def _bands(traces: Tensor, n_bootstrap: int, confidence: float, seed: int) -> Tensor:
    """Bounds and mean (3, trace, K, N) of traces (E, trace, K, N) over events."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(traces), (n_bootstrap, len(traces)), generator=draw)
    # how often each event is drawn; then each resample is one product
    weight = torch.nn.functional.one_hot(picks, len(traces)).sum(1).double()
    known = torch.isfinite(traces).double().flatten(1)
    sums = weight @ torch.nan_to_num(traces).flatten(1)
    means = (sums / (weight @ known)).view(n_bootstrap, *traces.shape[1:])
    tail = (1 - confidence) / 2
    low, high = means.nanquantile(torch.tensor([tail, 1 - tail]).double(), dim=0)
    return torch.stack([low, traces.nanmean(0), high])


def _check_bins(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of bins >= 0, got {value!r}")
    return value


def _check_events(events: Sequence[int] | Sequence[Sequence[int]], lengths: list[int]) -> list[list[int]]:
    """Events per clip."""
    given = list(events)
    nested = [given] if len(lengths) == 1 and not any(np.ndim(cast(Any, one)) for one in given) else given
    if len(nested) != len(lengths):
        raise ValueError(f"events must be one sequence per clip, {len(lengths)}, got {len(nested)}")
    if not all(np.ndim(cast(Any, bins)) == 1 for bins in nested):
        raise ValueError(f"events must be one sequence per clip, {len(lengths)}, got a number in its place")
    found: list[list[int]] = []
    for bins, length in zip(nested, lengths, strict=True):
        numbers: list[Any] = [
            one.item() if isinstance(one, Tensor | np.generic) else one for one in cast(Any, bins)
        ]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(
                    f"events must be bins, got {number!r}: of a time in ms that is int(time // dt_ms) of "
                    "the clip"
                )
            if not 0 <= number < length:
                raise ValueError(
                    f"events must lie in 0 .. {length - 1}, the bins of their clip, got {number}"
                )
        found.append(numbers)
    if not any(found):
        raise ValueError("there is no event")
    return found
