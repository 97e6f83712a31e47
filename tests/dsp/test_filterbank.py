"""The grouped engine against direct convolution written with numpy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.dsp.filterbank import (  # inner: parts of the front-ends
    COMPLEX_DETECTORS,
    DETECTORS,
    FilterbankPlan,
    FilterGroup,
    detect,
    largest_divisor,
    plan_filterbank,
    pooled_filterbank,
    prepare_bank,
    stream_bank,
    stream_filterbank,
)
from deepSTRF.dsp.recursion import stagger_rows, zero_subnormal_taps  # inner: parts of the front-ends

HOP = 12
#: (kernel sizes, stride limits): one group, many, kernels shorter and longer than the hop, stride above the
#: kernel.
BANKS = [
    ([5], [1]),
    ([31, 29, 11, 9, 4], [6, 5, 4, 3, 1]),
    ([3, 50, 7, 7], [12, 2, 12, 1]),
    ([2, 2], [12, 12]),
]


def random_bank(
    plan: FilterbankPlan, n_parts: int, n_bins: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    taps = [torch.randn(n_parts, g.n_channels, g.kernel_size, dtype=torch.float64) for g in plan.groups]
    windows = [
        torch.rand(g.n_channels, n_bins * plan.hop // g.stride, dtype=torch.float64) for g in plan.groups
    ]
    return taps, windows


def direct(
    sound: np.ndarray, plan: FilterbankPlan, taps: list[np.ndarray], windows: list[np.ndarray], detector: str
) -> np.ndarray:
    """(F, T): every output from its definition; ``sound`` starts at the first sample of the first bin."""
    n_bins = len(sound) // plan.hop
    out = np.zeros((plan.n_filters, n_bins))
    for group, tap, window in zip(plan.groups, taps, windows, strict=True):
        for channel in range(group.n_channels):
            responses = [np.convolve(sound, part[channel][::-1])[: len(sound)] for part in tap]
            if detector in ("magnitude", "power"):
                level = responses[0] ** 2 + responses[1] ** 2
                level = np.sqrt(level + 1e-9) if detector == "magnitude" else level
            else:
                real = responses[0]
                level = {
                    "halfwave": np.maximum(real, 0), "full": np.abs(real), "square": real**2, "none": real
                }[detector]  # fmt: skip
            for t in range(n_bins):
                for j, weight in enumerate(window[channel]):
                    at = (t + 1) * plan.hop - 1 - j * group.stride
                    if at >= 0:
                        out[group.start + channel, t] += weight * level[at]
    return out


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("pooled_bins", [1, 3])
def test_agrees_with_direct_convolution(
    detector: str, bank: tuple[list[int], list[int]], pooled_bins: int
) -> None:
    parts = 2 if detector in ("magnitude", "power") else 1
    plan = plan_filterbank(*bank, HOP, n_parts=parts)
    taps, windows = random_bank(plan, parts, pooled_bins)
    sound = torch.randn(2, 7 * HOP, dtype=torch.float64)
    padded = torch.nn.functional.pad(sound, (plan.history, 0))
    pooled = pooled_filterbank(padded, prepare_bank(taps, windows, plan), plan, detector)
    assert pooled.shape == (2, len(bank[0]), 7 + pooled_bins - 1)
    for clip in range(2):
        expected = direct(
            sound[clip].numpy(), plan, [t.numpy() for t in taps], [w.numpy() for w in windows], detector
        )
        np.testing.assert_allclose(pooled[clip, :, :7].numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 2, 3, 6])
def test_the_block_changes_nothing(block: int) -> None:
    taps, windows = [torch.randn(2, 3, 17, dtype=torch.float64)], [torch.rand(3, 2 * 6, dtype=torch.float64)]
    audio = torch.randn(1, 15 + 5 * HOP, dtype=torch.float64)
    results = []
    for size in (block, 1):
        plan = FilterbankPlan(HOP, (FilterGroup(0, 3, 17, 2, size),))
        results.append(pooled_filterbank(audio, prepare_bank(taps, windows, plan), plan, "power"))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("n_bins", [1, 2, 5])
def test_the_layout_for_streams_changes_nothing(detector: str, n_bins: int) -> None:
    parts = 2 if detector in COMPLEX_DETECTORS else 1
    plan = plan_filterbank([31, 29, 11, 4], [6, 5, 2, 1], HOP, n_parts=parts)
    assert [(g.start, g.kernel_size, g.stride) for g in plan.for_streams.groups] == [
        (g.start, g.kernel_size, g.stride) for g in plan.groups
    ]
    taps, windows = random_bank(plan, parts, 3)
    audio = torch.randn(2, plan.history + n_bins * HOP, dtype=torch.float64)
    bank = stream_bank(prepare_bank(taps, windows, plan.for_streams), parts)
    expected = pooled_filterbank(audio, prepare_bank(taps, windows, plan), plan, detector)
    streamed = stream_filterbank(audio, bank, plan.for_streams, detector)
    torch.testing.assert_close(streamed, expected, rtol=1e-12, atol=1e-12)


def test_unfinished_bins_are_what_a_stream_needs() -> None:
    plan = plan_filterbank([9, 5], [3, 1], HOP)
    taps, windows = random_bank(plan, 2, 4)
    bank = prepare_bank(taps, windows, plan)
    audio = torch.randn(1, plan.history + 10 * HOP, dtype=torch.float64)
    whole = pooled_filterbank(audio, bank, plan, "power")
    first = pooled_filterbank(audio[:, : plan.history + 6 * HOP], bank, plan, "power")
    second = pooled_filterbank(audio[:, 6 * HOP :], bank, plan, "power")
    joined = torch.zeros_like(whole)
    joined[..., :9] += first
    joined[..., 6:] += second
    torch.testing.assert_close(joined, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("detector", ["magnitude", "halfwave"])
def test_the_future_is_invisible_in_every_bin(detector: str) -> None:
    parts = 2 if detector == "magnitude" else 1
    plan = plan_filterbank([31, 29, 11, 4], [6, 5, 2, 1], HOP, n_parts=parts)
    taps, windows = random_bank(plan, parts, 2)
    bank = prepare_bank(taps, windows, plan)
    audio = torch.randn(1, plan.history + 6 * HOP, dtype=torch.float64)
    for t in range(5):
        probe = audio.clone().requires_grad_()
        out = pooled_filterbank(probe, bank, plan, detector)
        (gradient,) = torch.autograd.grad(out[..., t].sum(), probe)
        end = plan.history + (t + 1) * HOP
        assert bool((gradient[:, end:] == 0).all())
        assert bool((gradient[:, end - HOP : end] != 0).any())
        changed = audio.clone()
        changed[:, end:] = 1e200
        assert torch.equal(
            pooled_filterbank(changed, bank, plan, detector)[..., : t + 1], out[..., : t + 1].detach()
        )


# torch.func.jvp of torch 2.13 still loads its own torch.jit.script decompositions
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradients_of_the_magnitude() -> None:
    z = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: detect(value, "magnitude"), z)
    assert torch.autograd.gradgradcheck(lambda value: detect(value, "magnitude"), z)
    silent = torch.zeros(1, 2, 1, requires_grad=True)
    detect(silent, "magnitude").sum().backward()
    assert torch.equal(silent.grad, torch.zeros(1, 2, 1))
    per_example = torch.func.vmap(torch.func.grad(lambda value: detect(value, "magnitude").sum()))(z.detach())
    (expected,) = torch.autograd.grad(detect(z, "magnitude").sum(), z)
    torch.testing.assert_close(per_example, expected)
    direction = torch.randn(3, 2, 4, dtype=torch.float64)
    _, forward_mode = torch.func.jvp(
        lambda value: detect(value, "magnitude").sum(), (z.detach(),), (direction,)
    )
    torch.testing.assert_close(forward_mode, (expected * direction).sum())


def test_gradients_of_taps_and_windows() -> None:
    plan = plan_filterbank([5, 3], [2, 1], 4)
    taps, windows = random_bank(plan, 2, 2)
    audio = torch.randn(1, plan.history + 8, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (*taps, *windows)]

    def run(*values: torch.Tensor) -> torch.Tensor:
        half = len(values) // 2
        return pooled_filterbank(audio, prepare_bank(values[:half], values[half:], plan), plan, "magnitude")

    assert torch.autograd.gradcheck(run, leaves)


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="magnitude"):
        detect(torch.zeros(1, 1), "abs")


# --------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("n_parts", [1, 2])
def test_plans_respect_their_limits(n_parts: int) -> None:
    generator = np.random.default_rng(0)
    for hop in (1, 7, 80, 240):
        sizes = sorted(generator.integers(1, 900, 20).tolist(), reverse=True)
        limits = [size / 10 for size in sizes]
        plan = plan_filterbank(sizes, limits, hop, n_parts=n_parts)
        assert [group.start for group in plan.groups[1:]] == [group.stop for group in plan.groups[:-1]]
        assert (plan.groups[0].start, plan.n_filters) == (0, 20)
        for size, limit, kernel, stride in zip(sizes, limits, plan.kernel_sizes, plan.strides, strict=True):
            assert kernel >= size
            assert stride <= max(1, limit)
        for group in plan.groups:
            assert hop % (group.stride * group.block) == 0
        assert plan.products_per_bin(n_parts) >= sum(
            n_parts * hop // stride * kernel
            for kernel, stride in zip(plan.kernel_sizes, plan.strides, strict=True)
        )


def test_grouping_is_worth_it() -> None:
    sizes = [2 ** (11 - k // 3) for k in range(30)]
    plan = plan_filterbank(sizes, [size / 16 for size in sizes], 240)
    stride_1 = sum(2 * 240 * max(sizes) for _ in sizes)
    assert plan.products_per_bin() < stride_1 / 20
    assert 3 <= len(plan.groups) <= 12


def test_layouts_cover_every_tap_once() -> None:
    plan = plan_filterbank([31, 29, 5], [6, 5, 2], HOP)
    channel, age = plan.tap_layout
    taps = plan.split_taps(torch.stack([channel, age]))
    for group, rows in zip(plan.groups, taps, strict=True):
        assert rows.shape == (2, group.n_channels, group.kernel_size)
        assert torch.equal(rows[1, 0], torch.arange(group.kernel_size - 1, -1, -1))
        assert torch.equal(rows[0, :, 0], torch.arange(group.start, group.stop))
    channel, age = plan.window_layout(2)
    for group, rows in zip(plan.groups, plan.split_windows(torch.stack([channel, age]), 2), strict=True):
        assert torch.equal(rows[1, 0], torch.arange(0, 2 * HOP, group.stride))


def test_plan_refuses() -> None:
    for sizes, limits in (([], []), ([3], [1, 2]), ([0], [1])):
        with pytest.raises(ValueError, match="one positive entry per channel"):
            plan_filterbank(sizes, limits, 10)


def test_largest_divisor() -> None:
    assert [largest_divisor(240, limit) for limit in (0.2, 1, 7, 7.99, 8, 239, 240, 1e9)] == [
        1,
        1,
        6,
        6,
        8,
        120,
        240,
        240,
    ]
    assert largest_divisor(7, 6.9) == 1


def test_stagger() -> None:
    rows = torch.arange(1, 7).reshape(2, 3)
    assert stagger_rows(rows, 0).tolist() == rows.tolist()
    assert stagger_rows(rows, 2).tolist() == [[1, 2, 3, 0, 0], [0, 0, 4, 5, 6]]
    with pytest.raises(ValueError, match="step"):
        stagger_rows(rows, -1)


def test_no_tap_makes_subnormal_numbers() -> None:
    for dtype in (torch.float32, torch.float64):
        tiny = torch.finfo(dtype).tiny
        taps = torch.tensor([1.0, tiny, tiny * 1e9, 0.0], dtype=dtype, requires_grad=True)
        kept = zero_subnormal_taps(taps)
        assert kept.tolist() == [1.0, 0.0, taps[2].item() if dtype == torch.float32 else 0.0, 0.0]
        kept.sum().backward()
        assert taps.grad.tolist()[0] == 1.0
        assert taps.grad.tolist()[3] == 1.0
