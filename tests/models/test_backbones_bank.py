"""One bank for every registered backbone.

A new backbone is checked with its default options; cases with other options go into CASES.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepSTRF.models import Configurable
from deepSTRF.models.io.encoding import decode, encode  # inner: tested by itself
from deepSTRF.registry import BACKBONES

WIDTH = 6

#: Registry name -> options beside input_size, hidden_size, num_layers and dropout.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gru", {}),
    ("parallelgru", {"n_groups": 4}),
    ("lstm", {}),
    ("rnn", {}),
    ("vanilla", {"nonlinearity": "relu"}),
    ("lmu", {"memory_size": 12, "theta": 20.0}),
    ("lmu", {"memory_size": 7, "theta": 9.5, "feedback": False}),
    ("mamba", {"d_state": 4}),
    ("s4", {"state_size": 8}),
    ("s4d", {"state_size": 8}),
    ("s4d", {"state_size": 6, "init": "lin"}),
]
CASES += [(name, {}) for name in BACKBONES if name not in dict(CASES)]
#: Parameters of one layer of 70 features, from the published layouts.
COUNTS = {
    "gru": 29_820,
    "parallelgru": 3 * 70 * (70 + 35 + 2),
    "lstm": 39_760,
    "rnn": 9_940,
    "lmu": 19_028,
    "mamba": 38_500,
    "s4": 28_000,
    "s4d": 23_520,
}


class TimeLast(nn.Module):
    """A backbone as the shared checks want it: time on the last axis."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x.transpose(1, 2)).transpose(1, 2)

    def init_state(self, batch: int, **where: Any) -> dict[str, Any]:
        return self.backbone.init_state(batch, **where)

    def step(self, chunk: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        y, state = self.backbone.step(chunk.transpose(1, 2), state)
        return y.transpose(1, 2), state


@pytest.fixture(params=range(len(CASES)), ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return CASES[request.param]


def build(case: tuple[str, dict[str, Any]], **more: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"input_size": WIDTH, "hidden_size": WIDTH + 2}
    return BACKBONES.get(case[0])(**{**sizes, **case[1], **more})


def test_every_backbone_has_a_case() -> None:
    ours = {name for name, cls in BACKBONES.items() if cls.__module__.startswith("deepSTRF.")}
    assert {name for name, _ in CASES} == ours  # a page of the documentation adds one of its own
    assert BACKBONES.get("vanilla") is BACKBONES.get("rnn")


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name: str) -> None:
    backbone = BACKBONES.get(name)(70, 70)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == COUNTS[name]


def test_parallel_memory_has_its_own_count() -> None:
    backbone = BACKBONES.get("lmu")(70, 70, feedback=False)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 70 + 70 * 70 + 70 * 128


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 64, 100])
def test_shape(case: tuple[str, dict[str, Any]], frames: int, layers: int) -> None:
    backbone = build(case, num_layers=layers)
    assert backbone(torch.randn(2, frames, WIDTH)).shape == (2, frames, WIDTH + 2)
    assert (backbone.input_size, backbone.hidden_size, backbone.num_layers) == (WIDTH, WIDTH + 2, layers)


@pytest.mark.parametrize("frame", [0, 31, 64, 98])
def test_strictly_causal(
    case: tuple[str, dict[str, Any]], assert_causal: Callable[..., None], frame: int
) -> None:
    """Both in eval and in train mode: there is no statistic over time."""
    for mode in (True, False):
        assert_causal(TimeLast(build(case)).train(mode), torch.randn(2, WIDTH, 100), frame)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2])
def test_streams(
    case: tuple[str, dict[str, Any]], assert_streams: Callable[..., None], dtype: torch.dtype, layers: int
) -> None:
    backbone = TimeLast(build(case, num_layers=layers)).to(dtype).eval()
    assert_streams(backbone, torch.randn(2, WIDTH, 80, dtype=dtype))


@pytest.mark.parametrize("name", ["gru", "parallelgru", "lmu", "mamba", "s4", "s4d"])
def test_streams_at_full_size(name: str, assert_streams: Callable[..., None]) -> None:
    """Untrained feedback magnifies rounding; at the default sizes it must not show either."""
    torch.manual_seed(0)
    assert_streams(TimeLast(BACKBONES.get(name)(70, 70)).eval(), torch.randn(1, 70, 100))


def test_float64_is_precise(case: tuple[str, dict[str, Any]]) -> None:
    """A module moved to float64 and one built there agree to float64: constants are not rounded for good."""
    moved, x = build(case).double(), torch.randn(1, 80, WIDTH, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        native = build(case)
    finally:
        torch.set_default_dtype(torch.float32)
    native.load_state_dict(moved.state_dict())
    torch.testing.assert_close(moved(x), native(x), rtol=1e-12, atol=1e-12)


def test_forward_writes_nothing(case: tuple[str, dict[str, Any]]) -> None:
    backbone = build(case)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    attributes = set(vars(backbone))
    for frames in (10, 200, 3):
        backbone(torch.randn(1, frames, WIDTH)).sum().backward()
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(vars(backbone)) == attributes


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_everything(case: tuple[str, dict[str, Any]], training: bool) -> None:
    backbone = build(case, num_layers=2).train(training)
    x = torch.randn(2, 70, WIDTH, requires_grad=True)
    (backbone(x) * torch.randn(2, 70, WIDTH + 2)).sum().backward()
    for name, tensor in [("x", x), *backbone.named_parameters()]:
        assert tensor.grad is not None, name
        assert bool(torch.isfinite(tensor.grad).all()), name
        assert float(tensor.grad.abs().max()) > 0, name


def test_gradient_is_that_of_finite_differences(case: tuple[str, dict[str, Any]]) -> None:
    if case[1].get("nonlinearity") == "relu":
        pytest.skip("a kink has no derivative to compare")
    backbone = build(case).double()
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(backbone, (x,), fast_mode=True)


def test_huge_and_silent_inputs_stay_finite(case: tuple[str, dict[str, Any]]) -> None:
    backbone = build(case)
    for x in (
        torch.zeros(1, 300, WIDTH),
        1e4 * torch.randn(1, 300, WIDTH),
        torch.full((1, 300, WIDTH), 1e-30),
    ):
        probe = x.clone().requires_grad_()
        y = backbone(probe)
        y.sum().backward()
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(probe.grad).all())


def test_dropout_acts_between_layers_while_training(case: tuple[str, dict[str, Any]]) -> None:
    x = torch.randn(1, 40, WIDTH)
    single = build(case, dropout=0.5).train()
    assert torch.equal(single(x), single(x)), "one layer has nothing between"
    stack = build(case, num_layers=2, dropout=0.5).train()
    assert not torch.equal(stack(x), stack(x))
    assert torch.equal(stack.eval()(x), stack(x))
    plain = build(case, num_layers=2)
    plain.load_state_dict(stack.state_dict())
    torch.testing.assert_close(plain(x), stack(x))


def test_compiles(case: tuple[str, dict[str, Any]]) -> None:
    backbone = build(case).eval()
    x = torch.randn(2, 5, WIDTH, requires_grad=True)  # loops are written out: longer ones compile for longer
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend="aot_eager")
    y, expected = compiled(x), backbone(x)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0])


def test_copies_and_configuration(case: tuple[str, dict[str, Any]]) -> None:
    backbone = build(case, num_layers=2).eval()
    x = torch.randn(1, 30, WIDTH)
    assert isinstance(backbone, Configurable)
    rebuilt = decode(encode(backbone, "backbone"), {})
    rebuilt.load_state_dict(backbone.state_dict())
    for twin in (rebuilt.eval(), copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(twin(x), backbone(x))


def test_bad_arguments(case: tuple[str, dict[str, Any]]) -> None:
    for name in ("input_size", "hidden_size", "num_layers"):
        with pytest.raises(ValueError, match=name):
            build(case, **{name: 0})
        with pytest.raises(TypeError, match=name):
            build(case, **{name: 2.0})
    for dropout in (-0.1, 1.0, 7):
        with pytest.raises(ValueError, match="dropout must be"):
            build(case, dropout=dropout)
    with pytest.raises(TypeError, match="dropout must be"):
        build(case, dropout="half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(case, dropout=0.3)  # torch warns here; StateNet has other places for it


def test_bad_input(case: tuple[str, dict[str, Any]]) -> None:
    backbone = build(case)
    for shape in ((2, 10), (2, 10, WIDTH + 1), (2, 0, WIDTH), (1, 2, 3, WIDTH)):
        with pytest.raises(ValueError, match=rf"\(B, T, {WIDTH}\)"):
            backbone(torch.zeros(shape))


def test_bad_options() -> None:
    for name, options, text in [
        ("rnn", {"nonlinearity": "sin"}, "nonlinearity must be one of 'tanh', 'relu'"),
        ("lmu", {"memory_size": 0}, "memory_size"),
        ("lmu", {"theta": 0.0}, "theta"),
        ("mamba", {"d_state": 0}, "d_state"),
        ("mamba", {"d_conv": 0}, "d_conv"),
        ("s4", {"state_size": 7}, "state_size must be even.*try 8"),
        ("s4d", {"init": "fourier"}, "init must be one of 'legs', 'lin'"),
    ]:
        with pytest.raises(ValueError, match=text):
            BACKBONES.get(name)(4, 4, **options)
    with pytest.raises(TypeError, match="feedback"):
        BACKBONES.get("lmu")(4, 4, feedback=1)


def test_names_of_gated_weights_are_those_of_torch() -> None:
    for name, cls in (("gru", nn.GRU), ("lstm", nn.LSTM), ("rnn", nn.RNN)):
        ours = BACKBONES.get(name)(4, 6, num_layers=2)
        theirs = cls(4, 6, num_layers=2, batch_first=True)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 20, 4)
        torch.testing.assert_close(ours(x), theirs(x)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: cuDNN")
def test_eval_mode_gradients_on_a_gpu() -> None:
    for name in BACKBONES.names():
        backbone = BACKBONES.get(name)(4, 6).cuda().eval()
        x = torch.randn(2, 200, 4, device="cuda", requires_grad=True)
        y = backbone(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        probe = x.detach().cpu().requires_grad_()
        expected = backbone.cpu()(probe)
        torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)
        (on_cpu,) = torch.autograd.grad(expected.sum(), probe)
        torch.testing.assert_close(gradient.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
