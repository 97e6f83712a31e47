"""Checks that the banks of models and front-ends share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

#: Streamed output may differ from the one-shot output by this share of its range, in float32.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def _stream(module: nn.Module, x: Tensor, pieces: list[int]) -> Tensor:
    state = module.init_state(x.shape[0], dtype=x.dtype)
    frames = []
    for chunk in x.split(pieces, dim=-1):
        before = _leaves(state)
        copies = [leaf.clone() for leaf in before]
        out, following = module.step(chunk, state)
        assert all(torch.equal(a, b) for a, b in zip(before, copies, strict=True)), (
            "step changed its argument"
        )
        shapes = [leaf.shape for leaf in _leaves(following)]
        assert shapes == [leaf.shape for leaf in before], "the state changed its shape"
        state = following
        frames.append(out)
    return torch.cat(frames, dim=-1)


def _leaves(state: object) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    assert isinstance(state, dict), f"a state is a tree of dictionaries and tensors, got {type(state)}"
    return [leaf for branch in state.values() for leaf in _leaves(branch)]


@pytest.fixture
def assert_streams() -> Callable[..., None]:
    """Assert that any cut of ``x`` into whole frames gives what one call gives."""

    def check(module: nn.Module, x: Tensor, hop: int = 1) -> None:
        n = x.shape[-1] // hop
        cuts = [[n], [1] * n, [1, n - 1], [n - 1, 1], [3, 1, n - 7, 2, 1]]
        with torch.no_grad():
            whole = module(x)
            span = float(whole.max() - whole.min()) or 1.0
            for cut in cuts:
                streamed = _stream(module, x, [hop * piece for piece in cut if piece])
                assert streamed.shape == whole.shape
                error = float((streamed - whole).abs().max()) / span
                assert error <= TOLERANCE[x.dtype], (cut, error)

    return check


@pytest.fixture
def assert_causal() -> Callable[..., None]:
    """Assert a zero Jacobian to the future, and a past that no change of the future touches."""

    def check(module: nn.Module, x: Tensor, frame: int, hop: int = 1, *, jacobian: bool = True) -> None:
        end = (frame + 1) * hop
        if jacobian:
            probe = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(module(probe)[..., frame].sum(), probe)
            assert float(gradient[..., end:].abs().max()) == 0.0
            assert float(gradient[..., :end].abs().max()) > 0.0
        with torch.no_grad():
            past = module(x)[..., : frame + 1]
            for value in (1e6, math.inf, math.nan):
                changed = x.clone()
                changed[..., end:] = value
                assert torch.equal(past, module(changed)[..., : frame + 1]), value

    return check
