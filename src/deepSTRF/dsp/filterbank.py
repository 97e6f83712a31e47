"""The grouped filterbank of the waveform front-ends: causal filters, a detector, and pooling to the bin rate.

Channels with similar filters share a group: one kernel length, one stride (`plan_filterbank`). Complex
(analytic) filters have an output without carrier, which may be kept only every few samples; real filters run
at stride 1. Within a group the convolution is one matrix product of overlapping rows of sound with a Toeplitz
matrix of the taps, three times faster on a processor than ``conv1d`` with its backward pass. Rows never reach
beyond the end of a bin, so no bin depends on later sound.

`pooled_filterbank` filters whole clips, `stream_filterbank` one bin or a few. Shapes: B batch, F_g channels
of a group, K_g taps, P parts (2 for complex filters, 1 for real ones), L block, D bins that a pooling window
covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.recursion import stagger_rows

__all__ = [
    "DETECTORS",
    "FilterGroup",
    "FilterbankPlan",
    "add_overlapping",
    "detect",
    "plan_filterbank",
    "pooled_filterbank",
    "prepare_bank",
    "stream_bank",
    "stream_filterbank",
]

#: Detectors by name; those of complex filters, then those of real ones.
COMPLEX_DETECTORS = ("magnitude", "power")
DETECTORS = (*COMPLEX_DETECTORS, "halfwave", "full", "square", "none")
#: Added to the squared magnitude: keeps the gradient finite in digital silence (an amplitude of 3e-5).
MAGNITUDE_FLOOR = 1e-9

# ---- The plan: which channels share a kernel length and a stride

# Cost model of one bin of one group, in nanoseconds of one core of a 2.5 GHz server processor, forward and
# backward, fitted to this engine (it explains 80 measurements within 20%). It only ranks plans: another
# machine gets the same plan and the same results.
_NS_PER_PRODUCT = 0.036
_NS_PER_COPIED_SAMPLE = 2.4
_NS_PER_OUTPUT = 11.0
_NS_PER_GROUP = 1450.0
_NS_PER_MATRIX_ENTRY = 0.014  # written once per clip of 1,000 bins
_NS_PER_STREAMED_ENTRY = 0.25  # read from the cache for every bin
_NARROW_COLUMNS = 16.0  # matrix products lose half their speed at this many columns


@dataclass(frozen=True)
class FilterGroup:
    """Neighbouring channels, ``start`` to ``stop - 1``, that are filtered together."""

    start: int
    stop: int
    kernel_size: int  # taps of every filter of the group
    stride: int  # samples from one kept output to the next; divides the hop
    block: int  # outputs computed from one row of sound; ``stride * block`` divides the hop

    @property
    def n_channels(self) -> int:
        """Number of channels of the group."""
        return self.stop - self.start

    @property
    def row_length(self) -> int:
        """Samples of sound behind one block of outputs."""
        return self.kernel_size + (self.block - 1) * self.stride


@dataclass(frozen=True)
class FilterbankPlan:
    """The groups of a filterbank, fixed when a front-end is built: shapes never depend on learned values."""

    hop: int  # samples per bin
    groups: tuple[FilterGroup, ...]  # in the order of the channels, without gaps

    @property
    def n_filters(self) -> int:
        """Number of channels."""
        return self.groups[-1].stop

    @property
    def max_kernel_size(self) -> int:
        """Longest kernel of any group, in samples."""
        return max(group.kernel_size for group in self.groups)

    @cached_property
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
        groups = (_cheapest_block(group, self.hop, 2, _NS_PER_STREAMED_ENTRY)[1] for group in self.groups)
        return FilterbankPlan(self.hop, tuple(groups))

    def products_per_bin(self, n_parts: int = 2) -> int:
        """Multiplications per bin (``n_parts`` 2: complex filters)."""
        return sum(
            (self.hop // group.stride) * group.row_length * n_parts * group.n_channels
            for group in self.groups
        )

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


def plan_filterbank(
    kernel_sizes: Sequence[int],
    stride_limits: Sequence[float],
    hop: int,
    *,
    n_parts: int = 2,
) -> FilterbankPlan:
    """Group the channels of a filterbank so that the whole is cheap to compute.

    ``kernel_sizes`` are the taps and ``stride_limits`` the largest stride that each channel allows. A group
    takes the longest kernel, and the largest divisor of the hop within the smallest limit. The cuts minimise
    a cost model (products, copies, outputs, calls).
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
            stride = largest_divisor(hop, min(stride_limits[start:stop]))
            blank = FilterGroup(start, stop, longest, stride, block=1)
            cost, group = _cheapest_block(blank, hop, n_parts, _NS_PER_MATRIX_ENTRY)
            candidates.append((best[start][0] + cost, (*best[start][1], group)))
        best.append(min(candidates, key=lambda candidate: candidate[0]))
    return FilterbankPlan(hop, best[-1][1])


def largest_divisor(number: int, limit: float) -> int:
    """Return the largest divisor of ``number`` that does not exceed ``limit`` (1 when there is none)."""
    return next((d for d in range(max(1, min(number, math.floor(limit))), 1, -1) if number % d == 0), 1)


def _cheapest_block(
    group: FilterGroup, hop: int, n_parts: int, ns_per_entry: float
) -> tuple[float, FilterGroup]:
    """Return the cost per bin and the group with the best number of outputs per row."""
    steps, choices = hop // group.stride, []
    for block in (d for d in range(1, steps + 1) if steps % d == 0):
        choice = replace(group, block=block)
        row = choice.row_length
        columns = block * n_parts * group.n_channels
        products = steps * row * n_parts * group.n_channels * (1.0 + _NARROW_COLUMNS / columns)
        cost = (
            products * _NS_PER_PRODUCT
            + (steps // block) * row * _NS_PER_COPIED_SAMPLE
            + steps * group.n_channels * _NS_PER_OUTPUT
            + row * columns * ns_per_entry
            + _NS_PER_GROUP
        )
        choices.append((cost, choice))
    return min(choices, key=lambda choice: choice[0])


# ---- Filters given by their taps


def filter_matrix(taps: Tensor, group: FilterGroup) -> Tensor:
    """Toeplitz matrix (K_g + (block - 1) stride, P block F_g) of taps (P, F_g, K_g), a column per output."""
    parts, n_channels, kernel_size = taps.shape
    shifted = stagger_rows(
        taps.unsqueeze(2).expand(parts, n_channels, group.block, kernel_size), group.stride
    )
    return shifted.permute(3, 0, 2, 1).reshape(shifted.shape[-1], -1)


def filter_sound(audio: Tensor, filters: Tensor, group: FilterGroup, plan: FilterbankPlan) -> Tensor:
    """Filter with one group: (B, plan.history + T hop) to (B, T hop / (stride block), P, block F_g)."""
    # copied once here: the product would copy overlapping rows itself, and again in the backward pass
    rows = _rows(audio, group, plan).contiguous()
    columns = group.block * group.n_channels
    return (rows.view(-1, filters.shape[0]) @ filters).view(*rows.shape[:2], -1, columns)


def _rows(audio: Tensor, group: FilterGroup, plan: FilterbankPlan) -> Tensor:
    """Sound behind every block of outputs, overlapping: (B, T hop / (stride block), row_length)."""
    early = plan.history - group.kernel_size + group.stride
    sound = audio[..., early:] if early else audio
    length, step = group.row_length, group.stride * group.block
    if not torch.compiler.is_compiling():
        return sound.unfold(-1, length, step)
    # graphs gather overlapping rows value by value; whole steps are copied at once
    n_steps, n_rows = -(-length // step), (sound.shape[-1] - length) // step + 1
    pieces = functional.pad(sound, (0, n_steps * step - length)).reshape(sound.shape[0], -1, step)
    order = torch.arange(n_rows, device=sound.device).unsqueeze(1)
    rows = pieces[:, order + torch.arange(n_steps, device=sound.device)].flatten(2)
    return rows[..., :length]


# ---- Detection and pooling; the whole filterbank

#: Filters and pooling matrix of each group, from `prepare_bank`.
Bank = Sequence[tuple[Tensor, Tensor]]


def prepare_bank(
    taps: Sequence[Tensor], windows: Sequence[Tensor], plan: FilterbankPlan
) -> list[tuple[Tensor, Tensor]]:
    """Matrices of all groups of a filterbank, from taps (P, F_g, K_g) and windows (F_g, D * hop / stride)."""
    return [
        (filter_matrix(group_taps, group), pooling_matrix(group_windows, plan.hop // group.stride))
        for group, group_taps, group_windows in zip(plan.groups, taps, windows, strict=True)
    ]


def pooled_filterbank(audio: Tensor, bank: Bank, plan: FilterbankPlan, detector: str) -> Tensor:
    """Filter, detect and pool (B, plan.history + T * hop) sound: (B, F, T + D - 1).

    The last D - 1 bins are unfinished: a stream adds them to its next chunk.
    """
    pooled = []
    for group, (filters, pooling) in zip(plan.groups, bank, strict=True):
        detected = detect(filter_sound(audio, filters, group, plan), detector)
        pooled.append(pool_detected(detected, pooling, group.n_channels, plan.hop // group.stride))
    return add_overlapping(torch.cat(pooled, dim=2))


def stream_bank(bank: Bank, n_parts: int) -> Bank:
    """The same bank for `stream_filterbank`: real and imaginary parts side by side."""
    if n_parts == 1:
        return bank
    return [
        (filters.view(len(filters), n_parts, -1).transpose(1, 2).flatten(1), pooling)
        for filters, pooling in bank
    ]


def stream_filterbank(audio: Tensor, bank: Bank, plan: FilterbankPlan, detector: str) -> Tensor:
    """`pooled_filterbank` for few bins, where calls cost more than products; bank of `stream_bank`."""
    batch, n_parts = audio.shape[0], 2 if detector in COMPLEX_DETECTORS else 1
    rows = [
        (_rows(audio, group, plan) @ filters).flatten(1)
        for group, (filters, _) in zip(plan.groups, bank, strict=True)
    ]
    joined = torch.cat(rows, dim=-1).view(batch, -1, n_parts)
    sizes = [row.shape[-1] // n_parts for row in rows]
    detected = detect(joined.transpose(1, 2), detector).split_with_sizes(sizes, dim=-1)
    pooled = [
        pool_detected(samples, pooling, group.n_channels, plan.hop // group.stride)
        for samples, group, (_, pooling) in zip(detected, plan.groups, bank, strict=True)
    ]
    return add_overlapping(torch.cat(pooled, dim=2))


def add_overlapping(given: Tensor) -> Tensor:
    """Add up what every bin gives to itself and the next ones: (B, T, F, D) to (B, F, T + D - 1)."""
    if given.shape[1] == 1:
        return given[:, 0]
    # what bin t gives to bin t + d stands in column t of row d: shift the rows
    return stagger_rows(given.permute(0, 2, 3, 1), 1).sum(-2)


def detect(filtered: Tensor, detector: str) -> Tensor:
    """Detect the level of filter outputs (..., P, M): (..., M).

    ``"magnitude"``: ``sqrt(re^2 + im^2 + 1e-9)``; ``"power"``: ``re^2 + im^2``; ``"halfwave"``: positive
    part; ``"full"``: absolute value; ``"square"``; ``"none"``: the signed output.
    """
    if detector == "magnitude":
        # a compiler fuses the plain form, and does not support custom forward-mode derivatives
        if torch.compiler.is_compiling() or not filtered.requires_grad:
            return _magnitude(filtered, MAGNITUDE_FLOOR)
        return _Magnitude.apply(filtered, MAGNITUDE_FLOOR)  # type: ignore[no-any-return, no-untyped-call]
    if detector == "power":
        return filtered.square().sum(-2)
    if detector == "halfwave":
        return functional.relu(filtered.squeeze(-2))
    if detector == "full":
        return filtered.squeeze(-2).abs()
    if detector == "square":
        return filtered.squeeze(-2).square()
    if detector == "none":
        return filtered.squeeze(-2)
    raise ValueError(f"unknown detector {detector!r}; legal names: {', '.join(map(repr, DETECTORS))}")


def _magnitude(z: Tensor, floor: float) -> Tensor:
    real, imaginary = z.unbind(-2)
    return torch.addcmul(real * real, imaginary, imaginary).add_(floor).sqrt_()


class _Magnitude(torch.autograd.Function):
    """Smoothed complex magnitude with a backward pass of two operations instead of nine."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, floor: float) -> Tensor:
        return _magnitude(z, floor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, magnitude = ctx.saved_tensors
        return z * (gradient / magnitude).unsqueeze(-2), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Any:
        z, magnitude = ctx.saved_tensors
        return (z * tangent).sum(-2) / magnitude


def pooling_matrix(windows: Tensor, steps_per_bin: int) -> Tensor:
    """Matrix (steps_per_bin F_g, F_g D) of pooling windows (F_g, D steps_per_bin), for `pool_detected`."""
    n_channels, length = windows.shape
    pieces = windows.reshape(n_channels, length // steps_per_bin, steps_per_bin).flip(-1)
    diagonal = torch.eye(n_channels, dtype=windows.dtype, device=windows.device)
    return torch.einsum("fdn,fg->nfgd", pieces, diagonal).reshape(steps_per_bin * n_channels, -1)


def pool_detected(
    detected: Tensor, matrix: Tensor, n_channels: int, steps_per_bin: int | None = None
) -> Tensor:
    """Weigh detected samples (B, rows, M) of every bin into this bin and the next ones: (B, T, F_g, D)."""
    samples = detected.reshape(-1, matrix.shape[0])
    recurrences = 1 if steps_per_bin is None else steps_per_bin * n_channels // matrix.shape[0]
    if recurrences > 1:
        samples = samples.view(-1, recurrences, matrix.shape[0]).sum(1)
    return (samples @ matrix).view(detected.shape[0], -1, n_channels, matrix.shape[1] // n_channels)
