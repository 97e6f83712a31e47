"""Ringing filters from carried states, against convolution with their impulse response."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.dsp import gammatone_taps
from deepSTRF.dsp.filterbank import (  # inner: parts of the front-ends
    FilterGroup,
    filter_resonators,
    plan_filterbank,
    resonator_matrices,
)
from deepSTRF.dsp.gammatone import (  # inner: parts of the front-ends
    gammatone_length,
    gammatone_resonators,
    slaney_centers,
    slaney_impulse_responses,
    slaney_resonators,
)

FS = 8000.0
CENTERS = torch.tensor([120.0, 700.0, 3900.0], dtype=torch.float64)
GROUP = FilterGroup(0, 3, kernel_size=2**6 * 20 + 1, stride=1, block=20, doublings=6)


def convolved(sound: np.ndarray, taps: torch.Tensor) -> np.ndarray:
    """(F, samples)."""
    return np.stack([np.convolve(sound, row)[: len(sound)] for row in taps.numpy()])


def filtered(
    sound: torch.Tensor, group: FilterGroup, pole: torch.Tensor, level: torch.Tensor
) -> torch.Tensor:
    """(B, F, samples)."""
    matrices = resonator_matrices(pole, level, group).to(sound.dtype)
    padded = torch.nn.functional.pad(sound, (group.kernel_size - 1, 0))
    out = filter_resonators(padded, matrices, group, hop=2 * group.block)
    assert out.shape == (len(sound), sound.shape[-1] // group.block, 1, group.block * group.n_channels)
    return out.reshape(len(sound), -1, group.n_channels).transpose(1, 2)


@pytest.mark.parametrize("order", [1, 2, 4, 5])
@pytest.mark.parametrize("n_bins", [1, 3, 40])  # few: one product with the past; many: doubling
def test_agrees_with_convolution(order: int, n_bins: int) -> None:
    sound = torch.randn(2, n_bins * 40, dtype=torch.float64)
    pole, level = gammatone_resonators(CENTERS, FS, 1500, order)
    # beyond the memory of the group they are cut, where 1e-12 is left
    taps = gammatone_taps(CENTERS, FS, 1500, order).real
    out = filtered(sound, GROUP, pole, level)
    for clip in range(2):
        np.testing.assert_allclose(out[clip].numpy(), convolved(sound[clip].numpy(), taps), atol=1e-9)
    single = filtered(sound.float(), GROUP, pole, level)
    assert single.dtype == torch.float32
    assert float((single - out).abs().max()) < 2e-6 * float(out.abs().max())


def test_any_polynomial_times_an_oscillation() -> None:
    pole = torch.tensor([0.9 * np.exp(0.3j), 0.8 + 0j])
    level = torch.randn(2, 3, dtype=torch.complex128)
    group = FilterGroup(0, 2, kernel_size=2**5 * 10 + 1, stride=1, block=10, doublings=5)
    t = torch.arange(300)
    age = -t * pole.abs().log().unsqueeze(-1)
    taps = (sum(level[:, k, None] * age**k for k in range(3)) * pole.unsqueeze(-1) ** t).real
    sound = torch.randn(1, 300, dtype=torch.float64)
    np.testing.assert_allclose(
        filtered(sound, group, pole, level)[0].numpy(), convolved(sound[0].numpy(), taps), atol=1e-9
    )


@pytest.mark.parametrize("fs", [16000.0, 48000.0])
def test_slaneys_cascade_is_one(fs: float) -> None:
    centers = slaney_centers(300.0, fs / 2, 5)
    n_taps = max(gammatone_length(centers, fs, tail=1e-12))
    pole, level = slaney_resonators(centers, fs, n_taps)
    t = torch.arange(n_taps)
    age = -t * pole.abs().log().unsqueeze(-1)
    taps = (sum(level[:, k, None] * age**k for k in range(4)) * torch.exp(pole.log().unsqueeze(-1) * t)).real
    expected = slaney_impulse_responses(centers, fs, n_taps)
    torch.testing.assert_close(taps, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_bins", [2, 30])
def test_the_future_is_invisible_in_every_block(n_bins: int) -> None:
    matrices = resonator_matrices(*gammatone_resonators(CENTERS, FS, 1500), GROUP)
    audio = torch.randn(1, GROUP.kernel_size - 1 + n_bins * 40, dtype=torch.float64)
    for block in (0, 1, 2 * n_bins - 2):
        probe = audio.clone().requires_grad_()
        out = filter_resonators(probe, matrices, GROUP, hop=40)
        (gradient,) = torch.autograd.grad(out[:, block].sum(), probe)
        end = GROUP.kernel_size - 1 + (block + 1) * 20
        assert bool((gradient[:, end:] == 0).all())
        assert bool((gradient[:, end - 1280 : end - 1] != 0).all())
        changed = audio.clone()
        changed[:, end:] = 1e200
        assert torch.equal(
            filter_resonators(changed, matrices, GROUP, hop=40)[:, : block + 1], out[:, : block + 1]
        )


def test_gradients_to_the_sound() -> None:
    group = FilterGroup(0, 1, kernel_size=17, stride=1, block=4, doublings=2)
    matrices = resonator_matrices(torch.tensor([0.6 + 0.3j]), torch.ones(1, 2) + 0j, group)
    for n_bins in (1, 30):
        sound = torch.randn(1, 16 + n_bins * 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: filter_resonators(x, matrices, group, hop=4), sound)


def test_silence_is_exactly_silent_after_the_memory() -> None:
    pole, level = gammatone_resonators(CENTERS, FS, 1500)
    sound = torch.zeros(1, 40 * 80)
    sound[:, :40] = 1.0
    out = filtered(sound, GROUP, pole, level)
    assert bool((out[..., 40 + 1280 + 20 :] == 0).all())


def test_plans_cover_every_kernel_and_divide_the_hop() -> None:
    for hop, fs in ((240, 48000), (80, 16000), (7, 1400), (1, 48000)):
        centers = torch.linspace(100.0, fs / 2.5, 12, dtype=torch.float64)
        sizes = gammatone_length(centers, fs)
        plan = plan_filterbank(sizes, [1.0] * 12, hop, n_parts=1, n_poles=4)
        assert [group.start for group in plan.groups[1:]] == [group.stop for group in plan.groups[:-1]]
        assert (plan.groups[0].start, plan.n_filters) == (0, 12)
        for group in plan.groups:
            assert group.stride == 1
            assert hop % group.block == 0
            assert group.kernel_size == 2**group.doublings * group.block + 1
            assert group.kernel_size >= max(sizes[group.start : group.stop])
    assert plan.for_streams == plan
