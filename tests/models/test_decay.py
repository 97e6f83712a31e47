"""Leaky units: the recursion against a loop, time constants, streams, the leaky readout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

# the leaky units of DNet are checked by themselves
from deepSTRF.models.audio.dnet import LeakyReadout, LearnableExponentialDecay


def loop(x: np.ndarray, d: np.ndarray, decay_input: bool) -> np.ndarray:
    """The recursion in float64 as the paper writes it; before the clip its first frame lasts for ever."""
    tau = 1 + d**2
    gain = 1 / tau if decay_input else np.ones_like(tau)
    y, before = np.empty_like(x), x[..., 0] * gain * tau
    for t in range(x.shape[-1]):
        before = (1 - 1 / tau) * before + gain * x[..., t]
        y[..., t] = before
    return y


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 200])
def test_is_the_recursion(decay_input: bool, frames: int) -> None:
    decay = LearnableExponentialDecay(5, 30.0, decay_input).double()
    x = torch.randn(3, 5, 1, frames, dtype=torch.float64)
    expected = loop(x[:, :, 0].numpy(), decay.d.detach().numpy(), decay_input)
    assert np.abs(decay(x)[:, :, 0].detach().numpy() - expected).max() < 1e-11
    assert torch.equal(decay(x[:, :, 0]), decay(x)[:, :, 0])


def test_agrees_with_a_long_kernel_but_not_with_the_published_one() -> None:
    """The published kernel stops at 7 time constants of the starting value; a slow unit outlives it."""
    decay = LearnableExponentialDecay(1).double().requires_grad_(False)
    decay.d.fill_(19**0.5)  # tau = 20 bins
    x = torch.randn(1, 1, 1, 300, dtype=torch.float64)
    errors = []
    for taps in (14, 400):
        lags = torch.arange(taps - 1, -1, -1, dtype=torch.float64)
        kernel = ((1 - 1 / 20) ** lags / 20).view(1, 1, -1)
        padded = nn.functional.pad(x[:, :, 0], (taps - 1, 0), mode="replicate")
        errors.append(float((nn.functional.conv1d(padded, kernel) - decay(x)[:, :, 0]).abs().max()))
    assert errors[0] > 0.05
    assert errors[1] < 1e-7


def test_a_constant_stays() -> None:
    x = torch.full((1, 4, 1, 50), 0.3)
    assert torch.equal(LearnableExponentialDecay(4)(x), x)
    summed = LearnableExponentialDecay(4, decay_input=False)
    torch.testing.assert_close(summed(x), 0.3 * summed.tau().view(1, 4, 1, 1).expand_as(x))


def test_starting_time_constants() -> None:
    decay = LearnableExponentialDecay(20_000, init_tau=3.0)
    assert set(decay.state_dict()) == {"d"}
    assert float(decay.d.detach().mean()) == pytest.approx(
        2**0.5, rel=0.03
    )  # exponential, mean sqrt(tau - 1)
    assert float(decay.d.detach().std()) == pytest.approx(2**0.5, rel=0.03)
    assert torch.equal(decay.tau(), 1 + decay.d**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams(dtype: torch.dtype, assert_streams: Callable[..., None]) -> None:
    assert_streams(LearnableExponentialDecay(5, 20.0).to(dtype), torch.randn(2, 5, 1, 70, dtype=dtype))
    assert_streams(LeakyReadout(6, 5, 20.0).to(dtype), torch.randn(2, 6, 1, 70, dtype=dtype))


def test_causal(assert_causal: Callable[..., None]) -> None:
    assert_causal(LearnableExponentialDecay(5, 20.0), torch.randn(1, 5, 1, 70), 40)


def test_gradients() -> None:
    decay = LearnableExponentialDecay(3).double()
    x = torch.randn(2, 3, 1, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decay, (x,))
    decay(x).square().sum().backward()
    assert bool((decay.d.grad != 0).all())


def test_leaky_readout_smooths_the_drive_before_the_activation() -> None:
    readout = LeakyReadout(6, 5, activation=nn.ReLU())
    x = torch.randn(2, 6, 1, 40)
    drive = readout.fc(x.squeeze(2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(readout(x), readout.decay(drive).relu().unsqueeze(2))


def test_bad_arguments_and_input() -> None:
    for bad in (1.0, 0.5, -2.0, float("nan")):
        with pytest.raises(ValueError, match="init_tau"):
            LearnableExponentialDecay(3, bad)
    with pytest.raises(TypeError, match="init_tau"):
        LearnableExponentialDecay(3, "slow")
    with pytest.raises(ValueError, match="input_size"):
        LearnableExponentialDecay(0)
    with pytest.raises(TypeError, match="decay_input"):
        LearnableExponentialDecay(3, 2.0, 1)
    for shape in ((2, 4, 1, 9), (2, 3, 2, 9), (3, 9), (2, 3, 1, 0)):
        with pytest.raises(ValueError, match=r"\(B, 3, 1, T\)"):
            LearnableExponentialDecay(3)(torch.zeros(shape))
