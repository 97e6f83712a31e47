"""Filters that a front-end keeps between calls while it does not learn: they must follow every change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deepSTRF.models.wav2spec import CausalGammatone, CausalLEAF, Gammatonegram, SincNet

FRONT_ENDS: dict[str, Callable[[], nn.Module]] = {
    "leaf": lambda: CausalLEAF(16000, n_filters=4),
    "sincnet": lambda: SincNet(16000, n_filters=4, kernel_size=81, envelope=True),
    "sincnet-signed": lambda: SincNet(16000, n_filters=4, kernel_size=81),
    "gammatone": lambda: CausalGammatone(16000, n_filters=4),
    "gammatone-cut": lambda: CausalGammatone(16000, n_filters=4, kernel_ms=10.0),
    "gammatone-analytic": lambda: CausalGammatone(16000, n_filters=4, rectify="analytic"),
    "gammatonegram": lambda: Gammatonegram(16000, n_filters=4),
}


@pytest.fixture(params=FRONT_ENDS)
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


def everything(front_end: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """One call, and a stream of single bins, of a few, and of many: each has its own remembered layout."""
    outs = [front_end(x)]
    for n_bins in (1, 3, 12):
        state, frames = front_end.init_state(len(x), dtype=x.dtype), []
        for chunk in x.split(n_bins * front_end.hop, dim=-1):
            piece, state = front_end.step(chunk, state)
            frames.append(piece)
        outs.append(torch.cat(frames, dim=-1))
    return outs


def assert_same(front_end: nn.Module, twin: nn.Module, x: torch.Tensor) -> None:
    for ours, theirs in zip(everything(front_end, x), everything(twin, x), strict=True):
        assert torch.equal(ours, theirs)


def test_copies_and_precisions(name: str) -> None:
    front_end, x = FRONT_ENDS[name]().eval(), torch.randn(2, 1, 12 * 80)
    keys = list(front_end.state_dict())
    with torch.inference_mode():
        everything(front_end, x)
    with torch.no_grad():
        fresh = FRONT_ENDS[name]().eval()
        for twin in (front_end, copy.deepcopy(front_end), pickle.loads(pickle.dumps(front_end))):
            assert_same(twin, fresh, x)
        everything(front_end, x.double())  # more precise sound than filters, without a trace
        assert_same(front_end, fresh, x)
        assert_same(front_end.double(), fresh.double(), x.double())
        assert_same(front_end.float(), FRONT_ENDS[name]().eval(), x)
    assert list(front_end.state_dict()) == keys


def test_updates(name: str) -> None:
    front_end, x = FRONT_ENDS[name]().eval(), torch.randn(1, 1, 12 * 80)
    if not front_end.is_learnable:
        pytest.skip("a fixed front-end: nothing to update")
    optimizer = torch.optim.Adam(front_end.parameters(), lr=0.1)
    for _ in range(2):
        with torch.no_grad():
            before = everything(front_end, x)
        optimizer.zero_grad()
        frames, _ = front_end.step(x[..., :80], front_end.init_state(1))
        (frames.sum() + front_end(x).sum()).backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in front_end.parameters())
        optimizer.step()
        twin = FRONT_ENDS[name]().eval()
        twin.load_state_dict(front_end.state_dict())
        with torch.no_grad():
            assert_same(front_end, twin, x)
            assert not torch.equal(front_end(x), before[0])
    replaced = {key: value + 0.5 for key, value in front_end.state_dict().items()}
    front_end.load_state_dict(replaced, assign=True)
    twin.load_state_dict(replaced)
    with torch.no_grad():
        assert_same(front_end, twin, x)


def test_gradients_to_the_sound_of_a_stream(name: str) -> None:
    front_end, x = FRONT_ENDS[name]().double().eval(), torch.randn(1, 1, 3 * 80, dtype=torch.float64)
    for parameter in front_end.parameters():
        parameter.requires_grad_(False)
    gradients = []
    for run in (lambda probe: front_end(probe), lambda probe: everything(front_end, probe)[1]):
        probe = x.clone().requires_grad_()
        weight = torch.linspace(1.0, 2.0, 12, dtype=torch.float64).view(1, 1, 4, 3)
        gradients.append(torch.autograd.grad((run(probe) * weight).sum(), probe)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gammatone", "gammatonegram", "leaf"])
def test_compiles_in_one_piece(name: str) -> None:
    front_end, x = FRONT_ENDS[name]().eval(), torch.randn(1, 1, 40 * 80)
    expected = everything(front_end, x)[0].detach()
    compiled = torch.compile(front_end, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    step = torch.compile(front_end.step, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        frames, _ = step(x[..., :80], front_end.init_state(1))
    torch.testing.assert_close(frames, expected[..., :1], rtol=1e-5, atol=1e-5)
