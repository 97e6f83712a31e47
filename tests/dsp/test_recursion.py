"""First-order recursions against a plain loop."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.dsp.recursion import (  # inner: parts of the front-ends
    exponential_moving_average,
    first_order_recursion,
    leaky_mean,
    leaky_mean_state,
)


def loop(x: torch.Tensor, a: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """The definition, one step at a time."""
    steps, y = [], initial
    for t in range(x.shape[-1]):
        y = a * y + x[..., t]
        steps.append(y)
    return torch.stack(steps, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("n_steps", [1, 2, 31, 32, 33, 64, 999, 2500])
def test_agrees_with_the_loop(dtype: torch.dtype, n_steps: int) -> None:
    x = torch.randn(2, 5, n_steps, dtype=dtype)
    a = torch.tensor([0.999, 0.9, 0.5, 0.05, 1.0], dtype=dtype)
    if dtype.is_complex:
        a = a * torch.exp(1j * torch.randn(5, dtype=x.real.dtype)).to(dtype)
    start = torch.randn(2, 5, dtype=dtype)
    y, final = first_order_recursion(x, a, start)
    expected = loop(x, a, start)
    tolerance = 1e-12 if x.real.dtype == torch.float64 else 1e-5
    assert float((y - expected).abs().max() / expected.abs().max()) < tolerance
    assert torch.equal(final, y[..., -1])


@pytest.mark.parametrize("block_size", [2, 3, 16, 128])
def test_the_block_size_changes_nothing(block_size: int) -> None:
    x = torch.randn(3, 200, dtype=torch.float64)
    y, _ = first_order_recursion(x, 0.97, block_size=block_size)
    torch.testing.assert_close(y, first_order_recursion(x, 0.97)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("cuts", [[1] * 40, [7, 33], [39, 1]])
def test_any_cut_gives_the_same(dtype: torch.dtype, tolerance: float, cuts: list[int]) -> None:
    x, a = torch.randn(2, 4, 40, dtype=dtype), torch.tensor([0.1, 0.6, 0.95, 0.9999], dtype=dtype)
    whole, _ = first_order_recursion(x, a)
    state, pieces = None, []
    for chunk in x.split(cuts, -1):
        piece, state = first_order_recursion(chunk, a, state)
        pieces.append(piece)
    assert float((torch.cat(pieces, -1) - whole).abs().max()) < tolerance * float(whole.abs().max())


def test_gradients() -> None:
    x = torch.rand(2, 3, 7, dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    start = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)

    def solve(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return first_order_recursion(*arguments, block_size=3)

    assert torch.autograd.gradcheck(solve, (x, a, start))
    decaying = a.detach()[1:].requires_grad_()
    assert torch.autograd.gradgradcheck(solve, (x.detach()[:, 1:].requires_grad_(), decaying, start[:, 1:]))


def test_no_future_enters() -> None:
    x = torch.randn(100, requires_grad=True)
    y, _ = first_order_recursion(x, 0.9)
    (gradient,) = torch.autograd.grad(y[50], x)
    assert torch.equal(gradient[51:], torch.zeros(49))
    changed = x.detach().clone()
    changed[51:] = 1e30
    assert torch.equal(first_order_recursion(changed, 0.9)[0][:51], y.detach()[:51])


def test_fast_decay_makes_no_subnormal_numbers_and_no_overflow() -> None:
    x = torch.ones(1000)
    y, _ = first_order_recursion(x, torch.tensor(1e-3))
    torch.testing.assert_close(y[1:], torch.full((999,), 1.0 / (1 - 1e-3)))
    powers = torch.tensor(0.3) ** torch.arange(32)
    assert bool((powers > 0).all())


def test_moving_average() -> None:
    x = torch.rand(3, 50, dtype=torch.float64)
    m, last = exponential_moving_average(x, 0.8, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(m, loop(0.2 * x, torch.tensor(0.8).double(), torch.ones(3).double()))
    torch.testing.assert_close(
        exponential_moving_average(torch.full((9,), 2.0), 0.5, torch.tensor(2.0))[0], torch.full((9,), 2.0)
    )
    assert torch.equal(last, m[:, -1])


def test_refuses_an_empty_signal() -> None:
    with pytest.raises(ValueError, match="at least one time step"):
        first_order_recursion(torch.zeros(3, 0), 0.5)


def test_a_leaky_mean_starts_at_the_first_frame() -> None:
    x, a = torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor(0.5)
    origin, deviation, mean, state = leaky_mean(x, a, 1 - a, leaky_mean_state(1, ()))
    assert (origin + mean).tolist() == [[1.0, 1.0, 2.0, 2.5]]
    assert (origin + deviation).tolist() == x.tolist()
    assert leaky_mean(x, a, 1 - a, state)[0].tolist() == [[1.0]]
