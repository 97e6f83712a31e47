"""Gabor filters and the smooth maps that keep learned values legal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepSTRF.dsp import Hz_to_mel
from deepSTRF.dsp.filters import gabor_taps, gaussian_mass  # inner: parts of the front-ends
from deepSTRF.dsp.scales import bounded_shift, mel_distance, shift_in_mel  # inner: parts of the front-ends


def test_taps_are_the_formula() -> None:
    n = torch.arange(-40.0, 41.0, dtype=torch.float64)
    real, imaginary = gabor_taps(torch.tensor(0.7), torch.tensor(9.5), n)
    expected = np.exp(-0.5 * (n.numpy() / 9.5) ** 2) * np.exp(0.7j * n.numpy())
    np.testing.assert_allclose(real.numpy(), expected.real, atol=1e-7)
    np.testing.assert_allclose(imaginary.numpy(), expected.imag, atol=1e-7)


def test_passband_is_a_gaussian_of_the_promised_width() -> None:
    n = torch.arange(-400.0, 401.0, dtype=torch.float64)
    sigma = torch.tensor(50.0, dtype=torch.float64)
    real, imaginary = gabor_taps(torch.tensor(1.0, dtype=torch.float64), sigma, n)
    taps = (real + 1j * imaginary).numpy() / float(gaussian_mass(sigma, torch.tensor(400), torch.tensor(400)))
    for detune in (0.0, 1 / 50, 2 / 50):
        gain = abs(np.sum(taps * np.exp(-1j * (1.0 + detune) * n.numpy())))
        assert gain == pytest.approx(math.exp(-0.5 * (50 * detune) ** 2), abs=1e-9)


@pytest.mark.parametrize("sigma", [1.5, 3.1, 60.0])
@pytest.mark.parametrize(("before", "after"), [(200, 200), (90, 300), (5, 7)])
def test_mass_is_the_sum(sigma: float, before: int, after: int) -> None:
    n = torch.arange(-before, after + 1, dtype=torch.float64)
    exact = torch.exp(-0.5 * (n / sigma) ** 2).sum()
    closed = gaussian_mass(
        torch.tensor(sigma, dtype=torch.float64), torch.tensor(before), torch.tensor(after)
    )
    assert float(closed / exact) == pytest.approx(1.0, abs=2e-3)


def test_no_subnormal_tap() -> None:
    real, imaginary = gabor_taps(torch.tensor(0.3), torch.tensor(3.1), torch.arange(-360.0, 361.0))
    for taps in (real, imaginary):
        small = taps[(taps != 0) & (taps.abs() < 1e-37)]
        assert small.numel() == 0


def test_bounded_shift() -> None:
    u = torch.linspace(-1e3, 1e3, 20001, dtype=torch.float64, requires_grad=True)
    y = bounded_shift(u, 0.5, 3.0)
    assert bool((y > -0.5).all())
    assert bool((y < 3.0).all())
    assert bool((y.diff() > 0).all())
    (slope,) = torch.autograd.grad(y.sum(), u)
    assert bool((slope > 0).all())
    assert float(slope[10000]) == 1.0
    # far outside the limits there is still a way back
    far = torch.tensor([-100.0, 100.0], requires_grad=True)
    bounded_shift(far, 0.5, 3.0).sum().backward()
    assert bool((far.grad > 1e-8).all())


def test_bounded_shift_is_smooth_at_zero() -> None:
    u = torch.tensor([-1e-3, -1e-9, 1e-9, 1e-3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bounded_shift(u, 0.1, 10.0).sum(), u, create_graph=True)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0, atol=2e-4)
    assert torch.autograd.gradcheck(
        lambda v: bounded_shift(v, 0.1, 10.0), torch.tensor([-0.3, 0.4]).double().requires_grad_()
    )


def test_mel_shifts_agree_with_the_scale() -> None:
    f = torch.tensor([60.0, 500.0, 8000.0], dtype=torch.float64)
    moved = shift_in_mel(f, torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(
        Hz_to_mel(moved) - Hz_to_mel(f), torch.full((3,), 259.5 / math.log(10)).double()
    )
    torch.testing.assert_close(mel_distance(f, moved), torch.full((3,), 0.1).double())
    assert torch.equal(shift_in_mel(f.float(), torch.zeros(3)), f.float())
