"""Recursions with coefficients that change with time: against a loop, in blocks, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from deepSTRF.dsp import linear_scan
from deepSTRF.dsp import recursion as scan


def by_hand(x: torch.Tensor, a: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    y, frames = start.numpy().copy(), []
    for t in range(x.shape[1]):
        y = a[:, t].numpy() * y + x[:, t].numpy()
        frames.append(y)
    return torch.from_numpy(np.stack(frames, axis=1))


def draw(frames: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    x, start = torch.randn(2, frames, 3, 4, dtype=dtype), torch.randn(2, 3, 4, dtype=dtype)
    return x, torch.rand(2, frames, 3, 4, dtype=dtype), start


@pytest.mark.parametrize("frames", [1, 2, 31, 32, 33, 200])
def test_equals_a_loop(frames: int) -> None:
    x, a, start = draw(frames)
    torch.testing.assert_close(linear_scan(x, a, start), by_hand(x, a, start), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(linear_scan(x, a), by_hand(x, a, 0 * start), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("frames", [2, 32, 33, 200])
def test_blocks_equal_steps(frames: int) -> None:
    """What accelerators and compilers run."""
    x, a, start = draw(frames)
    torch.testing.assert_close(
        scan._solve_in_blocks(x, a, start), scan._solve(x, a, start), rtol=1e-13, atol=1e-13
    )


def test_carries_its_state() -> None:
    x, a, start = draw(50)
    head = linear_scan(x[:, :20], a[:, :20], start)
    tail = linear_scan(x[:, 20:], a[:, 20:], head[:, -1])
    assert torch.equal(torch.cat([head, tail], 1), linear_scan(x, a, start))


def test_zeros_and_underflow_are_exact() -> None:
    """Forms that divide by products of coefficients fail here."""
    x, a, start = draw(100, torch.float32)
    a[:, 40] = 0.0
    a[:, 50:60] = 1e-30
    for solve in (linear_scan, scan._solve_in_blocks):
        y = solve(x, a, start)
        assert bool(torch.isfinite(y).all())
        torch.testing.assert_close(y, by_hand(x, a, start), rtol=1e-5, atol=1e-5)
        counted = solve(torch.ones(1, 64, 1), torch.ones(1, 64, 1), torch.zeros(1, 1))
        assert torch.equal(counted.flatten(), torch.arange(1.0, 65.0))


def test_first_and_second_derivatives() -> None:
    x, a, start = (part.requires_grad_() for part in draw(5))
    assert gradcheck(linear_scan, (x, a, start))
    assert gradgradcheck(linear_scan, (x, a, start))


def test_gradient_in_blocks() -> None:
    """The accelerators' way to the gradient."""
    x, a, start = draw(70)
    later = torch.cat([torch.zeros_like(a[:, :1]), a.flip(1)[:, :-1]], dim=1)
    blocks = scan._solve_in_blocks(x.flip(1), later, 0 * start).flip(1)
    torch.testing.assert_close(blocks, scan._solve_backwards(x, a), rtol=1e-13, atol=1e-13)


def test_function_transforms() -> None:
    x, a, start = draw(6)
    batched = torch.func.vmap(lambda one: linear_scan(one, a, start))(torch.stack([x, 2 * x]))
    assert torch.equal(batched[1], linear_scan(2 * x, a, start))
    one = torch.func.grad(lambda value: linear_scan(value, a, start).square().sum())(x)
    probe = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(linear_scan(probe, a, start).square().sum(), probe)
    torch.testing.assert_close(one, plain)


def test_errors() -> None:
    x, a, start = draw(4)
    with pytest.raises(ValueError, match="one shape"):
        linear_scan(x, a[:, :3])
    with pytest.raises(ValueError, match="time step"):
        linear_scan(x[:, :0], a[:, :0])
    with pytest.raises(ValueError, match="initial must be"):
        linear_scan(x, a, start[:1])
