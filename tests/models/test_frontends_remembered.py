"""Filters that a front-end keeps between calls while it does not learn: they must follow every change."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from deepSTRF.models.backbones.lmu import LMUCell
from deepSTRF.models.wav2spec import (
    CausalGammatone,
    CausalLEAF,
    CausalMelSpectrogram,
    EarlierGammatone,
    EarlierLEAF,
    Gammatonegram,
    SincNet,
)

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
    torch._dynamo.reset()  # a function is compiled for so many modules of a process only
    compiled = torch.compile(front_end, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    step = torch.compile(front_end.step, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        frames, _ = step(x[..., :80], front_end.init_state(1))
    torch.testing.assert_close(frames, expected[..., :1], rtol=1e-5, atol=1e-5)


# ---- What is no value of its own must not be remembered, and what is must follow the tensors that are there

EVERY_FRONT_END = {
    **FRONT_ENDS,
    "mel": lambda: CausalMelSpectrogram(16000, n_mels=4),
    "earlier-gammatone": lambda: EarlierGammatone(16000, n_filters=4),
    "earlier-leaf": lambda: EarlierLEAF(16000, n_filters=4),
}


def moved(front_end: nn.Module, seed: int) -> nn.Module:
    """The front-end at other values of its parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in front_end.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return front_end


@pytest.mark.parametrize("kind", EVERY_FRONT_END)
def test_ensembles_and_single_models_in_any_order(kind: str) -> None:
    members = [moved(EVERY_FRONT_END[kind]().eval(), seed) for seed in range(3)]
    x = torch.randn(2, 1, 12 * 80)
    with torch.no_grad():
        truth = torch.stack([copy.deepcopy(member)(x) for member in members])
        parameters, constants = stack_module_state(members)
        base = copy.deepcopy(members[1])
        for _ in range(2):
            outs = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, constants)
            torch.testing.assert_close(outs, truth, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(vmap(base)(x[None])[0], truth[1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(base(x), truth[1], rtol=1e-4, atol=1e-5)
            other = functional_call(base, dict(members[2].named_parameters()), (x,))
            torch.testing.assert_close(other, truth[2], rtol=1e-4, atol=1e-5)


# torch's own forward mode compiles its decompositions at the first use
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["leaf", "sincnet", "sincnet-signed"])
def test_derivatives_see_the_filters_after_they_were_remembered(kind: str) -> None:
    front_end, x = moved(FRONT_ENDS[kind]().double().eval(), 0), torch.randn(1, 1, 960, dtype=torch.float64)
    values = {name: p.detach() for name, p in front_end.named_parameters()}
    tangents = {name: torch.ones_like(value) for name, value in values.items()}

    def at(step: float) -> torch.Tensor:
        shifted = {name: value + step for name, value in values.items()}
        return functional_call(front_end, shifted, (x,))

    with torch.no_grad():
        front_end(x)
        expected = (at(1e-5) - at(-1e-5)) / 2e-5
        assert float(expected.abs().max()) > 1e-3
        _, slope = jvp(lambda p: functional_call(front_end, p, (x,)), (values,), (tangents,))
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)
        front_end(x)
        with forward_ad.dual_level():
            pairs = {name: forward_ad.make_dual(value, tangents[name]) for name, value in values.items()}
            slope = forward_ad.unpack_dual(functional_call(front_end, pairs, (x,))).tangent
            torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)
        slopes = grad(lambda p: functional_call(front_end, p, (x,)).sum())(values)
        torch.testing.assert_close(
            sum(s.sum() for s in slopes.values()), expected.sum(), rtol=1e-5, atol=1e-7
        )
        slope_of_sound = grad(lambda probe: front_end(probe).sum())(x)
    torch.testing.assert_close(front_end(x).detach(), at(0.0).detach())
    probe = x.clone().requires_grad_()
    torch.testing.assert_close(slope_of_sound, torch.autograd.grad(front_end(probe).sum(), probe)[0])


@pytest.mark.parametrize("kind", EVERY_FRONT_END)
def test_replicas_follow_their_own_buffers(kind: str) -> None:
    """As DataParallel copies modules: parameters become attributes; the meta device stands for another."""
    front_end, x = EVERY_FRONT_END[kind]().eval(), torch.randn(1, 1, 960)
    with torch.no_grad():
        expected = front_end(x)

    def replicate(module: nn.Module, device: str, scale: float) -> nn.Module:
        replica = module._replicate_for_data_parallel()
        replica._buffers = {name: b if b is None else b.to(device) for name, b in module._buffers.items()}
        for name, parameter in module._parameters.items():
            setattr(replica, name, (scale * parameter).to(device))
        for name, child in module._modules.items():
            if child is not None:
                replica._modules[name] = replicate(child, device, scale)
        return replica

    with torch.no_grad():
        assert replicate(front_end, "meta", 1.0)(x.to("meta")).device.type == "meta"
        assert torch.equal(replicate(front_end, "cpu", 1.0)(x), expected)
        assert torch.equal(front_end(x), expected)
    if front_end.is_learnable:
        replicate(front_end, "cpu", 2.0)(x).sum().backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in front_end.parameters())


@pytest.mark.parametrize("kind", ["gammatone", "gammatone-cut", "gammatonegram"])
def test_constants_that_are_written_to(kind: str) -> None:
    front_end, x = FRONT_ENDS[kind]().eval(), torch.randn(1, 1, 960)
    expected = front_end(x)
    constants = {name: buffer.clone() for name, buffer in front_end.named_buffers()}
    for buffer in front_end.buffers():
        buffer.zero_()
    assert not torch.equal(front_end(x), expected)
    for name, buffer in front_end.named_buffers():
        buffer.copy_(constants[name])
    assert torch.equal(front_end(x), expected)


@pytest.mark.parametrize("kind", EVERY_FRONT_END)
@pytest.mark.parametrize("assign", [False, True])
def test_from_the_meta_device(kind: str, assign: bool) -> None:
    front_end, x = moved(EVERY_FRONT_END[kind]().eval(), 0), torch.randn(1, 1, 960)
    with torch.no_grad():
        expected = front_end(x)
    with torch.device("meta"):
        built = EVERY_FRONT_END[kind]().eval()
    assert {t.device.type for t in [*built.parameters(), *built.buffers()]} == {"meta"}
    for twin in (built, EVERY_FRONT_END[kind]().eval().to("meta")):
        if not assign:
            twin.to_empty(device="cpu")
            for buffer in twin.buffers():  # what fresh memory may hold
                buffer.fill_(7)
        twin.load_state_dict(front_end.state_dict(), assign=assign)
        with torch.no_grad():
            assert torch.equal(twin(x), expected)
            twin.double()
            torch.testing.assert_close(twin(x.double()), copy.deepcopy(front_end).double()(x.double()))


def test_constants_of_a_backbone_from_the_meta_device() -> None:
    cell = LMUCell(3, 4, 5, 6.0, False)
    with torch.device("meta"):
        twin = LMUCell(3, 4, 5, 6.0, False)
    twin.to_empty(device="cpu").load_state_dict(cell.state_dict())
    for name, buffer in cell.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name))


@pytest.mark.parametrize("kind", EVERY_FRONT_END)
def test_pickles_after_compile(kind: str) -> None:
    front_end, x = EVERY_FRONT_END[kind]().eval(), torch.randn(1, 1, 960)
    front_end.compile(backend="eager")
    with torch.no_grad():
        expected = front_end(x)
        for twin in (pickle.loads(pickle.dumps(front_end)), copy.deepcopy(front_end)):
            torch.testing.assert_close(twin(x), expected)
    torch.save(front_end, io.BytesIO())
