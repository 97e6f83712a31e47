"""One grouped filterbank for every front-end: causal filters, a detector, and pooling to the neural rate.

Channels with similar filters share a group: one kernel length, one stride. Complex (analytic) filters have an
output without carrier, which may be kept only every few samples; real filters run at stride 1. Inside a group
the convolution is one matrix product of overlapping rows of sound with a Toeplitz matrix of the taps, three
times faster on a processor than ``conv1d`` with its backward pass. Rows never reach over the end of a bin, so
every bin is blind to the future, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.plan import FilterbankPlan, FilterGroup
from deepSTRF.dsp.resonators import ResonatorMatrices, filter_resonators
from deepSTRF.dsp.stagger import stagger_rows

__all__ = [
    "COMPLEX_DETECTORS",
    "DETECTORS",
    "Bank",
    "detect",
    "filter_group",
    "filter_matrix",
    "filter_sound",
    "pool_detected",
    "pooled_filterbank",
    "pooling_matrix",
    "prepare_bank",
]

#: Detectors by name; the first two take complex filters, the others real ones.
DETECTORS = ("magnitude", "power", "halfwave", "full", "square", "none")
#: Detectors of complex filters.
COMPLEX_DETECTORS = ("magnitude", "power")
#: Filters and pooling matrix of each group: from `filter_matrix` (or, for ringing filters,
#: `deepSTRF.dsp.resonators.resonator_matrices`) and `pooling_matrix`.
Bank = Sequence[tuple[Tensor | ResonatorMatrices, Tensor]]
#: Added to the squared magnitude: keeps the gradient finite in digital silence (an amplitude of 3e-5).
MAGNITUDE_FLOOR = 1e-9


def filter_matrix(taps: Tensor, group: FilterGroup) -> Tensor:
    """Lay the taps of a group out for `filter_group`: one column per output of a row of sound.

    Parameters
    ----------
    taps : Tensor
        (P, F_g, K_g) taps in the order of the samples they meet: the last one meets the newest sample, so an
        impulse response is given reversed in time. P is 1 for real filters, 2 for real and imaginary parts.
    group : FilterGroup
        Stride and block of the group.

    Returns
    -------
    Tensor
        (K_g + (block - 1) * stride, P * block * F_g) Toeplitz matrix.

    Examples
    --------
    >>> from deepSTRF.dsp.plan import FilterGroup
    >>> filter_matrix(torch.tensor([[[1.0, 2.0]]]), FilterGroup(0, 1, kernel_size=2, stride=1, block=2))
    tensor([[1., 0.],
            [2., 1.],
            [0., 2.]])
    """
    parts, n_channels, kernel_size = taps.shape
    shifted = stagger_rows(
        taps.unsqueeze(2).expand(parts, n_channels, group.block, kernel_size), group.stride
    )
    return shifted.permute(3, 0, 2, 1).reshape(shifted.shape[-1], -1)


def pooling_matrix(windows: Tensor, steps_per_bin: int) -> Tensor:
    """Lay the pooling windows of a group out for `pool_detected`.

    Parameters
    ----------
    windows : Tensor
        (F_g, D * steps_per_bin) weights by age, newest first, in kept samples.
    steps_per_bin : int
        Kept samples per bin: ``hop / stride``.

    Returns
    -------
    Tensor
        (steps_per_bin * F_g, F_g * D): what the samples of one bin give to this bin and the D - 1 next ones.
        It is diagonal in channels; the zeros cost less than moving the channels outside.

    Examples
    --------
    >>> pooling_matrix(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), steps_per_bin=2)
    tensor([[2., 4.],
            [1., 3.]])
    """
    n_channels, length = windows.shape
    pieces = windows.reshape(n_channels, length // steps_per_bin, steps_per_bin).flip(-1)
    diagonal = torch.eye(n_channels, dtype=windows.dtype, device=windows.device)
    return torch.einsum("fdn,fg->nfgd", pieces, diagonal).reshape(steps_per_bin * n_channels, -1)


def prepare_bank(
    taps: Sequence[Tensor], windows: Sequence[Tensor], plan: FilterbankPlan
) -> list[tuple[Tensor, Tensor]]:
    """Lay out all groups of a filterbank; do it once when the filters are fixed.

    Parameters
    ----------
    taps : sequence of Tensor
        Per group (P, F_g, K_g), as `filter_matrix` takes them.
    windows : sequence of Tensor
        Per group (F_g, D * hop / stride), as `pooling_matrix` takes them; D the same for all groups.
    plan : FilterbankPlan
        The groups.

    Returns
    -------
    list of tuple
        Filter matrix and pooling matrix of each group.

    Examples
    --------
    >>> from deepSTRF.dsp.plan import plan_filterbank
    >>> plan = plan_filterbank([3, 3], [2, 2], hop=4)
    >>> len(prepare_bank([torch.ones(2, 2, 3)], [torch.ones(2, 4)], plan))
    1
    """
    return [
        (filter_matrix(group_taps, group), pooling_matrix(group_windows, plan.hop // group.stride))
        for group, group_taps, group_windows in zip(plan.groups, taps, windows, strict=True)
    ]


def filter_group(audio: Tensor, matrix: Tensor, group: FilterGroup, hop: int) -> Tensor:
    """Filter a waveform with the channels of one group, keeping every ``group.stride``-th sample.

    Parameters
    ----------
    audio : Tensor
        (B, H + T * hop) waveform that starts with H samples of the past, H at least ``kernel_size - stride``.
    matrix : Tensor
        From `filter_matrix`.
    group : FilterGroup
        Kernel length, stride and block of the group.
    hop : int
        Samples per bin.

    Returns
    -------
    Tensor
        (B, T * hop / (stride * block), P, block * F_g): successive rows hold successive stretches of time;
        inside a row the last axis runs over time steps, then channels. The last step of bin ``t`` sees
        samples up to ``(t + 1) * hop - 1``.

    Examples
    --------
    >>> from deepSTRF.dsp.plan import FilterGroup
    >>> group = FilterGroup(0, 1, kernel_size=2, stride=1, block=2)
    >>> moving_sum = filter_matrix(torch.ones(1, 1, 2), group)
    >>> filter_group(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), moving_sum, group, hop=2).flatten()
    tensor([1., 3., 5., 7.])
    """
    past = group.kernel_size - group.stride
    extra = (audio.shape[-1] - past) % hop
    sound = audio[..., extra:] if extra else audio
    # copied once here: the product would copy overlapping rows itself, and again in the backward pass
    rows = sound.unfold(-1, matrix.shape[0], group.stride * group.block).contiguous()
    n_columns = group.block * group.n_channels
    return (rows.view(-1, matrix.shape[0]) @ matrix).view(*rows.shape[:2], -1, n_columns)


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


def detect(filtered: Tensor, detector: str) -> Tensor:
    """Turn filter outputs into something that does not oscillate around zero.

    Parameters
    ----------
    filtered : Tensor
        (..., P, M) outputs; P is 2 for ``"magnitude"`` and ``"power"``, 1 for the others.
    detector : str
        ``"magnitude"``: ``sqrt(re^2 + im^2 + 1e-9)``; ``"power"``: ``re^2 + im^2``; ``"halfwave"``: positive
        part; ``"full"``: absolute value; ``"square"``; ``"none"``: the signed output.

    Returns
    -------
    Tensor
        (..., M).

    Raises
    ------
    ValueError
        For an unknown detector.

    Examples
    --------
    >>> detect(torch.tensor([[3.0], [4.0]]), "magnitude")
    tensor([5.])
    """
    if detector == "magnitude":
        # a compiler fuses the plain form, and does not know custom forward-mode derivatives
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


def pool_detected(
    detected: Tensor, matrix: Tensor, n_channels: int, steps_per_bin: int | None = None
) -> Tensor:
    """Weigh the detected samples of every bin into this bin and the next ones.

    Parameters
    ----------
    detected : Tensor
        (B, rows, M) as `detect` returns it from `filter_group`.
    matrix : Tensor
        From `pooling_matrix`.
    n_channels : int
        F_g.
    steps_per_bin : int, optional
        Samples per bin, when the matrix was made for fewer: it then holds weights that recur within the bin
        (a flat window needs one per bin), and the samples that share a weight are summed first.

    Returns
    -------
    Tensor
        (B, T, F_g, D): what each bin gives to itself and to the D - 1 next ones.

    Examples
    --------
    >>> detected = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    >>> windows = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    >>> pool_detected(detected, pooling_matrix(windows, steps_per_bin=2), n_channels=1)
    tensor([[[[3.0000, 1.5000]],
    <BLANKLINE>
             [[7.0000, 3.5000]]]])
    """
    samples = detected.reshape(-1, matrix.shape[0])
    recurrences = 1 if steps_per_bin is None else steps_per_bin * n_channels // matrix.shape[0]
    if recurrences > 1:
        samples = samples.view(-1, recurrences, matrix.shape[0]).sum(1)
    return (samples @ matrix).view(detected.shape[0], -1, n_channels, matrix.shape[1] // n_channels)


def filter_sound(
    audio: Tensor, filters: Tensor | ResonatorMatrices, group: FilterGroup, plan: FilterbankPlan
) -> Tensor:
    """Filter with one group of a plan, by its taps or from carried states.

    Parameters
    ----------
    audio : Tensor
        (B, plan.history + T * hop) waveform that starts with ``plan.history`` samples of the past.
    filters : Tensor or ResonatorMatrices
        Those of the group in a `Bank`.
    group : FilterGroup
        One of ``plan.groups``.
    plan : FilterbankPlan
        All groups.

    Returns
    -------
    Tensor
        As `filter_group` returns it.

    Examples
    --------
    >>> from deepSTRF.dsp.plan import plan_filterbank
    >>> plan = plan_filterbank([3], [1], hop=4, n_parts=1)
    >>> matrix = filter_matrix(torch.ones(1, 1, 3), plan.groups[0])
    >>> filter_sound(torch.ones(1, 2 + 4), matrix, plan.groups[0], plan).flatten()
    tensor([3., 3., 3., 3.])
    """
    early = plan.history - (group.kernel_size - group.stride)
    sound = audio[..., early:] if early else audio
    if isinstance(filters, ResonatorMatrices):
        return filter_resonators(sound, filters, group, plan.hop)
    return filter_group(sound, filters, group, plan.hop)


def pooled_filterbank(audio: Tensor, bank: Bank, plan: FilterbankPlan, detector: str) -> Tensor:
    """Filter, detect and pool: the body of a cochleagram.

    Parameters
    ----------
    audio : Tensor
        (B, plan.history + T * hop) waveform that starts with ``plan.history`` samples of the past.
    bank : sequence of tuple
        From `prepare_bank`, or such pairs with ringing filters.
    plan : FilterbankPlan
        Groups of channels.
    detector : str
        As in `detect`.

    Returns
    -------
    Tensor
        (B, F, T + D - 1): T bins, then the D - 1 unfinished bins that later sound would complete. A stream
        adds them to its next chunk.

    Examples
    --------
    >>> from deepSTRF.dsp.plan import plan_filterbank
    >>> plan = plan_filterbank([3, 3], [2, 2], hop=4)
    >>> bank = prepare_bank([torch.ones(2, 2, 3)], [torch.ones(2, 4)], plan)
    >>> pooled_filterbank(torch.zeros(1, plan.history + 8), bank, plan, "power").shape
    torch.Size([1, 2, 3])
    """
    pooled = []
    for group, (filters, pooling) in zip(plan.groups, bank, strict=True):
        detected = detect(filter_sound(audio, filters, group, plan), detector)
        pooled.append(pool_detected(detected, pooling, group.n_channels, plan.hop // group.stride))
    # what bin t gives to bin t + d stands in column t of row d: shift the rows and add them up
    return stagger_rows(torch.cat(pooled, dim=2).permute(0, 2, 3, 1), 1).sum(-2)
