"""How a filterbank is cut into groups: which channels share a kernel length and a stride."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["FilterGroup", "FilterbankPlan", "largest_divisor", "plan_filterbank"]

# Cost model of one bin of one group, in nanoseconds of one core of a 2.5 GHz server processor, forward and
# backward, fitted to this engine (it explains 80 measurements within 20%). It only ranks plans: another
# machine gets the same plan and the same results.
_NS_PER_PRODUCT = 0.036
_NS_PER_COPIED_SAMPLE = 2.4
_NS_PER_OUTPUT = 11.0
_NS_PER_GROUP = 1450.0
_NS_PER_MATRIX_ENTRY = 0.014  # laid out once per clip of 1,000 bins
_NS_PER_STREAMED_ENTRY = 0.25  # read from the cache for every bin
_NARROW_COLUMNS = 16.0  # matrix products lose half their speed at this many columns


@dataclass(frozen=True)
class FilterGroup:
    """Neighbouring channels that are filtered together.

    Parameters
    ----------
    start, stop : int
        Channels ``start`` to ``stop - 1``.
    kernel_size : int
        Taps of every filter of the group.
    stride : int
        Every how many samples an output is kept; divides the hop.
    block : int
        Outputs computed from one row of sound; ``stride * block`` divides the hop.
    doublings : int
        0 for filters given by their taps. Above 0, ringing filters are computed from states that reach back
        ``2^doublings`` blocks (`deepSTRF.dsp.resonators`).

    Examples
    --------
    >>> FilterGroup(start=0, stop=4, kernel_size=801, stride=60, block=4).n_channels
    4
    """

    start: int
    stop: int
    kernel_size: int
    stride: int
    block: int
    doublings: int = 0

    @property
    def n_channels(self) -> int:
        """Number of channels of the group."""
        return self.stop - self.start


@dataclass(frozen=True)
class FilterbankPlan:
    """The groups of a filterbank, fixed when a front-end is built: shapes never depend on learned values.

    Parameters
    ----------
    hop : int
        Samples per bin.
    groups : tuple of FilterGroup
        In the order of the channels, without gaps.

    Examples
    --------
    >>> plan = plan_filterbank([801, 401, 101], [60, 30, 8], hop=240)
    >>> plan.n_filters, plan.max_kernel_size, plan.history
    (3, 801, 771)
    """

    hop: int
    groups: tuple[FilterGroup, ...]

    @property
    def n_filters(self) -> int:
        """Number of channels."""
        return self.groups[-1].stop

    @property
    def max_kernel_size(self) -> int:
        """Longest kernel of any group, in samples."""
        return max(group.kernel_size for group in self.groups)

    @property
    def history(self) -> int:
        """Samples of the past that the first bin needs."""
        return max(0, *(group.kernel_size - group.stride for group in self.groups))

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each channel, in samples."""
        return tuple(group.stride for group in self.groups for _ in range(group.n_channels))

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Kernel length of each channel, in samples."""
        return tuple(group.kernel_size for group in self.groups for _ in range(group.n_channels))

    @cached_property
    def for_streams(self) -> FilterbankPlan:
        """The same filters for one bin at a time: smaller matrices, which fit a processor cache."""
        groups = [
            group if group.doublings > 0 else _cheapest_block(group, self.hop, 2, _NS_PER_STREAMED_ENTRY)[1]
            for group in self.groups
        ]
        return FilterbankPlan(self.hop, tuple(groups))

    def products_per_bin(self, n_parts: int = 2) -> int:
        """Return how many multiplications one bin of filtering takes (``n_parts`` 2 for complex filters).

        Ringing filters are counted as if they were given by their taps.
        """
        return sum(
            (self.hop // group.stride) * _row_length(group.kernel_size, group.stride, group.block)
            * n_parts * group.n_channels
            for group in self.groups
        )  # fmt: skip

    @cached_property
    def tap_layout(self) -> tuple[Tensor, Tensor]:
        """Channel and age in samples of every tap of every group, in one flat row each.

        Learned filters are computed on this row at once, then cut by `split_taps`: a dozen operations instead
        of a dozen per group. Ages fall from the kernel length to 0 within each channel.
        """
        return self._layout([torch.arange(group.kernel_size - 1, -1, -1) for group in self.groups])

    def window_layout(self, n_bins: int) -> tuple[Tensor, Tensor]:
        """Return channel and age in samples of every weight of windows of ``n_bins`` bins, newest first."""
        return self._layout([torch.arange(0, n_bins * self.hop, group.stride) for group in self.groups])

    def _layout(self, ages: list[Tensor]) -> tuple[Tensor, Tensor]:
        channels = [
            torch.arange(group.start, group.stop).repeat_interleave(len(age))
            for group, age in zip(self.groups, ages, strict=True)
        ]
        rows = [age.repeat(group.n_channels) for group, age in zip(self.groups, ages, strict=True)]
        return torch.cat(channels), torch.cat(rows)

    def split_taps(self, flat: Tensor) -> list[Tensor]:
        """Cut (..., n_taps) values on `tap_layout` into one (..., F_g, K_g) tensor per group."""
        shapes = [(group.n_channels, group.kernel_size) for group in self.groups]
        return self._split(flat, shapes)

    def split_windows(self, flat: Tensor, n_bins: int) -> list[Tensor]:
        """Cut values on `window_layout` into one (..., F_g, n_bins * hop / stride) tensor per group."""
        shapes = [(group.n_channels, n_bins * self.hop // group.stride) for group in self.groups]
        return self._split(flat, shapes)

    @staticmethod
    def _split(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
        parts = torch.split(flat, [rows * columns for rows, columns in shapes], dim=-1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]


def largest_divisor(number: int, limit: float) -> int:
    """Return the largest divisor of ``number`` that does not exceed ``limit`` (1 when there is none).

    Parameters
    ----------
    number : int
        At least 1.
    limit : float
        Upper limit.

    Returns
    -------
    int
        The divisor.

    Examples
    --------
    >>> largest_divisor(240, 50.0)
    48
    """
    return next((d for d in range(max(1, min(number, math.floor(limit))), 1, -1) if number % d == 0), 1)


def plan_filterbank(
    kernel_sizes: Sequence[int],
    stride_limits: Sequence[float],
    hop: int,
    *,
    n_parts: int = 2,
    n_poles: int = 0,
) -> FilterbankPlan:
    """Group the channels of a filterbank so that the whole is cheap to compute.

    A group takes the longest kernel and the smallest stride limit of its channels; its stride is the largest
    divisor of the hop within that limit. The cuts minimise a cost model (products, copies, outputs, calls).

    Parameters
    ----------
    kernel_sizes : sequence of int
        Taps each channel needs, in the order of the channels.
    stride_limits : sequence of float
        Largest stride each channel allows, in samples; 1 or less asks for stride 1.
    hop : int
        Samples per bin.
    n_parts : int
        2 for complex filters, 1 for real ones.
    n_poles : int
        Above 0, all filters are real and ring with one complex pole each, of this multiplicity: groups are
        planned for `deepSTRF.dsp.resonators`, at stride 1.

    Returns
    -------
    FilterbankPlan
        The groups.

    Raises
    ------
    ValueError
        When there is no channel, when the two sequences differ in length, or a kernel is empty.

    Examples
    --------
    >>> plan = plan_filterbank([1200, 1100, 60, 50], [60, 55, 3, 2.5], hop=240)
    >>> [(group.start, group.stop, group.kernel_size, group.stride) for group in plan.groups]
    [(0, 2, 1200, 48), (2, 4, 60, 2)]
    """
    if not kernel_sizes or len(kernel_sizes) != len(stride_limits) or min(kernel_sizes) < 1:
        raise ValueError(
            "kernel_sizes and stride_limits need one positive entry per channel, got "
            f"{len(kernel_sizes)} and {len(stride_limits)} entries"
        )
    # shortest path over cuts: best[j] is the cheapest grouping of channels 0 .. j-1
    best: list[tuple[float, tuple[FilterGroup, ...]]] = [(0.0, ())]
    for stop in range(1, len(kernel_sizes) + 1):
        candidates = []
        for start in range(stop):
            longest = max(kernel_sizes[start:stop])
            if n_poles > 0:
                cost, group = _cheapest_resonators(start, stop, longest, hop, n_poles)
            else:
                stride = largest_divisor(hop, min(stride_limits[start:stop]))
                blank = FilterGroup(start, stop, longest, stride, block=1)
                cost, group = _cheapest_block(blank, hop, n_parts, _NS_PER_MATRIX_ENTRY)
            candidates.append((best[start][0] + cost, (*best[start][1], group)))
        best.append(min(candidates, key=lambda candidate: candidate[0]))
    return FilterbankPlan(hop, best[-1][1])


def _row_length(kernel_size: int, stride: int, block: int) -> int:
    return kernel_size + (block - 1) * stride


def _cheapest_block(
    group: FilterGroup, hop: int, n_parts: int, ns_per_entry: float
) -> tuple[float, FilterGroup]:
    """Return the cost per bin and the group with the best number of outputs per row."""
    steps, choices = hop // group.stride, []
    for block in (d for d in range(1, steps + 1) if steps % d == 0):
        row = _row_length(group.kernel_size, group.stride, block)
        columns = block * n_parts * group.n_channels
        products = steps * row * n_parts * group.n_channels * (1.0 + _NARROW_COLUMNS / columns)
        cost = (
            products * _NS_PER_PRODUCT
            + (steps // block) * row * _NS_PER_COPIED_SAMPLE
            + steps * group.n_channels * _NS_PER_OUTPUT
            + row * columns * ns_per_entry
            + _NS_PER_GROUP
        )
        choices.append((cost, replace(group, block=block)))
    return min(choices, key=lambda choice: choice[0])


def _cheapest_resonators(
    start: int, stop: int, kernel_size: int, hop: int, n_poles: int
) -> tuple[float, FilterGroup]:
    """Return the cost per bin and the group whose states reach over the kernel."""
    n_channels, choices = stop - start, []
    n_states = 2 * n_poles * n_channels
    for block in (d for d in range(1, hop + 1) if hop % d == 0):
        doublings = max(1, math.ceil(math.log2(max(2, kernel_size - 1) / block)))
        columns = block * n_channels
        products = (block + doublings * n_states) * n_states * (1.0 + _NARROW_COLUMNS / n_states)
        products += (block + n_states) * columns * (1.0 + _NARROW_COLUMNS / columns)
        cost = (
            (hop // block) * products * _NS_PER_PRODUCT
            + (hop // block) * (block + (1 + doublings) * n_states) * _NS_PER_COPIED_SAMPLE
            + hop * n_channels * _NS_PER_OUTPUT
            + (2**doublings * n_states + (block + n_states) * n_channels) * block * _NS_PER_MATRIX_ENTRY
            + _NS_PER_GROUP
        )
        memory = 2**doublings * block
        choices.append((cost, FilterGroup(start, stop, memory + 1, 1, block, doublings)))
    return min(choices, key=lambda choice: choice[0])
