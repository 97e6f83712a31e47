"""Values that modules keep while their parameters do not change, and copies whose values are fixed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from deepSTRF.models import make_prefiltering
from deepSTRF.models.audio import StateNet
from deepSTRF.models.backbones import GRU, LMU, LSTM, RNN, S4, S4D, Mamba, ParallelGRU
from deepSTRF.models.derived import KeepsDerived, frozen
from deepSTRF.models.kernels import ParametricSTRF, SeparableSTRF
from deepSTRF.models.wav2spec import PCEN, CausalLEAF, CausalMelSpectrogram


class Squares(KeepsDerived):
    """Counts how often it derives the squares of its parameter, plus its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("offset", torch.zeros(2))
        self.built = 0

    def build(self) -> tuple[Tensor, dict[str, Tensor]]:
        self.built += 1
        return self.weight.square() + self.offset, {"double": 2 * self.weight}

    def forward(self, x: Tensor) -> Tensor:
        return self._derived("squares", self.build)[0] * x

    def fix_derived(self) -> None:
        self._derived("squares", self.build)


def test_is_computed_once_and_follows_every_change() -> None:
    module, x = Squares(), torch.ones(2)
    with torch.no_grad():
        for _ in range(3):
            assert module(x).tolist() == [1.0, 4.0]
        assert module.built == 1
        module.weight.data[0] = 3.0  # no version counter sees it
        assert module(x).tolist() == [9.0, 4.0]
        module.offset += 1.0
        assert module(x).tolist() == [10.0, 5.0]
        module.offset = torch.zeros(2)
        assert module(x).tolist() == [9.0, 4.0]
        module.weight = nn.Parameter(torch.tensor([3.0, 1.0]))
        assert module(x).tolist() == [9.0, 1.0]
        module.load_state_dict({"weight": torch.ones(2), "offset": torch.ones(2)}, assign=True)
        assert module(x).tolist() == [2.0, 2.0]
        assert module.built == 6
        assert module.double()(x.double()).dtype == torch.float64
        assert module.built == 7


def test_nothing_is_kept_while_learning_or_within_a_transform() -> None:
    module, x = Squares(), torch.ones(2)
    for _ in range(2):
        module(x).sum().backward()
    assert module.weight.grad.tolist() == [4.0, 8.0]  # 2 w, twice
    assert module._kept is None
    with torch.no_grad():
        assert functional_call(module, {"weight": torch.tensor([5.0, 0.0])}, (x,)).tolist() == [25.0, 0.0]
        assert module(x).tolist() == [1.0, 4.0]
        parameters, buffers = stack_module_state([module, Squares()])
        base = copy.deepcopy(module)
        many = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
        assert many.tolist() == [[1.0, 4.0], [1.0, 4.0]]
        assert base._kept is None or base(x).tolist() == [1.0, 4.0]
    module.requires_grad_(False)
    with torch.inference_mode():
        module(x)
    probe = x.clone().requires_grad_()
    module(probe).sum().backward()  # what was kept in inference mode serves a later backward pass
    assert probe.grad.tolist() == [1.0, 4.0]


def test_constants_made_in_inference_mode_are_followed_too() -> None:
    with torch.inference_mode():  # their tensors count no versions
        module, x = Squares(), torch.ones(2)
        assert module(x).tolist() == [1.0, 4.0]
        module.offset += 1.0
        assert module(x).tolist() == [2.0, 5.0]
        module.weight.data[0] = 3.0
        assert module(x).tolist() == [10.0, 5.0]
        built = module.built
        assert module(x).tolist() == [10.0, 5.0]
        assert module.built == built


def test_copies_and_pickles_hold_no_values() -> None:
    module, x = Squares(), torch.ones(2)
    with torch.no_grad():
        module(x)
        assert module._kept
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert twin._kept is None
            twin.weight.mul_(2.0)
            assert twin(x).tolist() == [4.0, 16.0]
        assert module(x).tolist() == [1.0, 4.0]
        assert list(module.state_dict()) == ["weight", "offset"]


def test_a_frozen_copy_is_fixed_and_the_model_stays_as_it_was() -> None:
    module = nn.Sequential(Squares(), nn.Dropout(0.5)).train()
    fixed, x = frozen(module), torch.ones(2)
    assert module.training
    assert not fixed.training
    assert module[0].weight.requires_grad
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    built = fixed[0].built
    fixed[0].weight.fill_(7.0)
    assert fixed(x).tolist() == [1.0, 4.0]
    assert fixed[0].built == built
    moved = copy.deepcopy(fixed).double()  # what is moved is computed anew, and fixed again
    assert moved(x.double()).tolist() == [49.0, 49.0]
    with torch.no_grad():
        moved[0].weight.fill_(1.0)
    assert moved(x.double()).tolist() == [49.0, 49.0]
    assert pickle.loads(pickle.dumps(fixed))(x).tolist() == [49.0, 49.0]
    assert frozen(fixed)(x).tolist() == [49.0, 49.0]


@pytest.mark.parametrize("name", ["separable", "parametric", "adaptrans", "pcen", "lmu", "mamba", "s4"])
def test_what_was_computed_under_autocast_serves_no_call_without_it(name: str) -> None:
    build, shape = KEEPERS[name]
    module, x = build().eval(), torch.rand(shape)
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(x)
        assert torch.equal(module(x), fresh(x))


BACKBONES = {
    "gru": lambda: GRU(6, 5, num_layers=2),
    "lstm": lambda: LSTM(6, 5, num_layers=2),
    "tanh": lambda: RNN(6, 5, num_layers=2),
    "relu": lambda: RNN(6, 5, nonlinearity="relu"),
    "parallelgru": lambda: ParallelGRU(6, 6, n_groups=2),
    "s4": lambda: S4(6, 5, state_size=8, num_layers=2),
    "s4d": lambda: S4D(6, 5, state_size=8),
    # as many features as parts of a complex number
    "s4 of two": lambda: S4(2, 2, state_size=8),
    "s4d of two": lambda: S4D(2, 2, state_size=2),
}


KEEPERS = {
    "separable": (lambda: SeparableSTRF(F=6, T=3, C_in=1, C_out=2), (2, 1, 6, 12)),
    "parametric": (lambda: ParametricSTRF(F=6, T=3, C_in=1, C_out=2, num_gaussians=2), (2, 1, 6, 12)),
    "adaptrans": (lambda: make_prefiltering("adaptrans", 6, 5.0), (2, 1, 6, 12)),
    "pcen": (lambda: PCEN(6, 5.0), (2, 1, 6, 12)),
    "lmu": (lambda: LMU(6, 5, memory_size=4, theta=6.0), (2, 12, 6)),
    "lmu in parallel": (lambda: LMU(6, 5, memory_size=4, theta=6.0, feedback=False), (2, 12, 6)),
    "mamba": (lambda: Mamba(6, 5, d_state=4), (2, 12, 6)),
    "s4": (lambda: S4(6, 5, state_size=8), (2, 12, 6)),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_modules_follow_their_parameters(name: str) -> None:
    torch.manual_seed(0)
    build, shape = KEEPERS[name]
    module, x = build().eval(), torch.rand(shape)
    fixed = frozen(module)
    with torch.no_grad():
        before = module(x)
        assert torch.equal(fixed(x), before)
        for parameter in (*module.parameters(), *fixed.parameters()):
            parameter.data.add_(0.3)
        moved = module(x)
        assert not torch.equal(moved, before)
        assert torch.equal(moved, copy.deepcopy(module)(x))
    learned = module(x)
    assert torch.equal(learned, moved)
    learned.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("start", ["debiased", "zero", "first"])
def test_states_of_gain_control_start_at_zero(start: str) -> None:
    """Graphs take states as differences from their start."""
    state = PCEN(4, 5.0, start=start).init_state(2)
    assert not any(bool(part.any()) for part in state.values())


@pytest.mark.parametrize("magnitude", ["amplitude", "power"])
def test_mel_is_exported_without_a_fourier_transform(magnitude: str) -> None:
    mel = CausalMelSpectrogram(16000, n_mels=8, magnitude=magnitude, n_fft_mult=2).double()
    x = 0.1 * torch.randn(2, 1, 12 * 80, dtype=torch.float64)
    program = torch.export.export(frozen(mel), (x,))
    assert "fft" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), mel(x), rtol=1e-11, atol=1e-11)


class Step(nn.Module):
    """One frame, with the state in and out as a tree."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, state: dict[str, object]) -> tuple[Tensor, dict[str, object]]:
        return self.module.step(x, state)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_frame_of_a_backbone_is_exported(name: str) -> None:
    """Real numbers only, any batch, and the values of the live backbone over 20 frames."""
    torch.manual_seed(0)
    module = BACKBONES[name]().double().eval()
    x = torch.randn(3, 20, module.input_size, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        example = (x[:2, :1], module.init_state(2))
        program = torch.export.export(Step(frozen(module)), example, dynamic_shapes=_batches(module))
        graph = program.module()
        state, outputs = module.init_state(3), []
        for t in range(20):
            y, state = graph(x[:, t : t + 1], state)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-10, atol=1e-12)
    kinds = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert not any(value.is_complex() for value in kinds)


def _batches(module: nn.Module) -> tuple[object, object]:
    """Dynamic axes of a frame and of a state: the batch, wherever it lies."""

    def places(two: dict[str, object], three: dict[str, object]) -> dict[str, object]:
        axes: dict[str, object] = {}
        for key, part in two.items():
            if isinstance(part, dict):
                axes[key] = places(part, three[key])
                continue
            grown = [i for i, (a, b) in enumerate(zip(part.shape, three[key].shape, strict=True)) if a != b]
            axes[key] = {grown[0]: torch.export.Dim.DYNAMIC}
        return axes

    return {0: torch.export.Dim.DYNAMIC}, places(module.init_state(2), module.init_state(3))


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_streams_of_chunks_follow_the_parameters(name: str) -> None:
    torch.manual_seed(0)
    module = BACKBONES[name]().double().eval()
    x = torch.randn(2, 30, 6, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            expected, state, parts = module(x), module.init_state(2), []
            for chunk in x.split([1, 1, 3, 8, 1, 16], dim=1):
                y, state = module.step(chunk, state)
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-10, atol=1e-12)
            for parameter in module.parameters():
                parameter.data.mul_(0.9)


def test_a_frozen_model_is_the_model() -> None:
    torch.manual_seed(0)
    leaf = CausalLEAF(16000, n_filters=12)
    model = StateNet(
        12, kernel_size=4, stride=2, hidden_channels=3, rnn_type="S4", out_neurons=3, wav2spec=leaf
    )
    fixed, sound = frozen(model), torch.randn(2, 1, 20 * 80)
    model.eval()
    with torch.no_grad():
        assert torch.equal(fixed(sound), model(sound))
        y, _ = fixed.step(sound[..., :80], fixed.init_state(2))
        assert torch.equal(y, model.step(sound[..., :80], model.init_state(2))[0])
