"""Windowed-sinc filters and their quadrature partners."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.dsp import sinc_bandpass


def offsets(size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


@pytest.mark.parametrize("size", [1, 101, 64])
def test_formula(size: int) -> None:
    n = offsets(size)
    real, imaginary = sinc_bandpass(torch.tensor(0.03).double(), torch.tensor(0.11).double(), n)
    expected = 2 * 0.11 * np.sinc(2 * 0.11 * n.numpy()) - 2 * 0.03 * np.sinc(2 * 0.03 * n.numpy())
    np.testing.assert_allclose(real.numpy(), expected, atol=1e-8)
    with np.errstate(invalid="ignore", divide="ignore"):
        partner = (np.cos(2 * np.pi * 0.03 * n.numpy()) - np.cos(2 * np.pi * 0.11 * n.numpy())) / (
            np.pi * n.numpy()
        )
    np.testing.assert_allclose(imaginary.numpy(), np.nan_to_num(partner), atol=1e-8)


def test_pair_is_analytic_with_gain_2_in_the_band() -> None:
    n = offsets(1501)
    window = torch.hamming_window(1501, periodic=False, dtype=torch.float64)
    real, imaginary = sinc_bandpass(torch.tensor(0.05).double(), torch.tensor(0.1).double(), n)
    taps = ((real + 1j * imaginary) * window).numpy()

    def gain(nu: float) -> float:
        return float(abs(np.sum(taps * np.exp(-2j * np.pi * nu * n.numpy()))))

    assert gain(0.075) == pytest.approx(2.0, abs=1e-2)
    assert max(gain(-0.075), gain(0.12), gain(0.03)) < 5e-3
    assert gain(0.05) == pytest.approx(1.0, abs=2e-2)


def test_gradients_are_cosines_and_finite_everywhere() -> None:
    low = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    high = torch.tensor(0.12, dtype=torch.float64, requires_grad=True)
    n = offsets(9)
    jacobian = torch.autograd.functional.jacobian(lambda a, b: sinc_bandpass(a, b, n)[0], (low, high))
    torch.testing.assert_close(jacobian[0], -2 * torch.cos(2 * torch.pi * low.detach() * n))
    torch.testing.assert_close(jacobian[1], 2 * torch.cos(2 * torch.pi * high.detach() * n))
    assert torch.autograd.gradcheck(lambda a, b: sinc_bandpass(a, b, n), (low, high))
