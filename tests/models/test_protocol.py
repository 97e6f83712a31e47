"""The small machinery: streaming protocol, captured arguments, exact constants, slots, the model card."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF.models import CausalSTRFConv, Configurable
from deepSTRF.models.audio import Linear
from deepSTRF.models.base import resolve_slot  # inner: tested by itself
from deepSTRF.models.configurable import ExactConstants, placement  # inner: tested by itself
from deepSTRF.models.streaming import init_slot_state, is_streamable, step_slot  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.registry import KERNELS, MODULES, Registry

# ------------------------------ streaming


def test_sequences_of_causal_parts_stream(assert_streams: Any) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(
                CausalSTRFConv(4, 3, 1, 4), nn.Tanh(), nn.Sequential(nn.Identity(), nn.ReLU())
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts(x)

        def init_state(self, batch: int, **place: Any) -> dict[str, Any]:
            return init_slot_state(self.parts, "parts", batch, **{"device": None, "dtype": None, **place})

        def step(self, chunk: torch.Tensor, state: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
            return step_slot(self.parts, "parts", chunk, state)

    assert_streams(Chain(), torch.randn(2, 1, 4, 20))


def test_the_slot_without_step_is_named() -> None:
    chain = nn.Sequential(nn.ReLU(), nn.LSTM(2, 2))
    assert not is_streamable(chain)
    with pytest.raises(TypeError, match=r"slot 'core\.1' \(LSTM\).*init_state"):
        init_slot_state(chain, "core", 1, device=None, dtype=None)
    with pytest.raises(TypeError, match=r"slot 'core' \(LSTM\)"):
        step_slot(nn.LSTM(2, 2), "core", torch.zeros(1), {})


def test_state_follows_device_and_dtype() -> None:
    model = Linear(4, 3, 2, wav2spec=CausalMelSpectrogram(16000, n_mels=4)).double().eval()
    state = model.init_state(3)
    assert state["wav2spec"]["history"].shape == (3, 1, 80)
    assert state["readout"]["strf"]["history"].shape == (3, 1, 4, 2)
    assert state["readout"]["strf"]["history"].dtype == torch.float64
    assert model.init_state(1, dtype=torch.float32)["wav2spec"]["history"].dtype == torch.float32
    assert model.init_state(1, device="meta")["wav2spec"]["history"].device.type == "meta"
    assert placement(nn.ReLU()) == (torch.device("cpu"), torch.float32)


def test_every_tensor_is_made_where_the_model_is() -> None:
    """The meta device stands in for a GPU: a tensor made on the CPU along the way would raise."""
    mel = CausalMelSpectrogram(16000, n_mels=4)
    model = Linear(4, 3, 2, wav2spec=mel, standardize=True, output_activation=nn.Softplus())
    model.fit_standardization([torch.randn(1, 800)])
    model = model.eval().to("meta")
    assert model(torch.randn(1, 1, 800, device="meta")).shape == (1, 2, 1, 10)
    y, _ = model.step(torch.randn(1, 1, 80, device="meta"), model.init_state(1))
    assert y.device.type == "meta"


def test_a_state_that_is_none_of_the_models_is_named_with_the_call_that_makes_one() -> None:
    model, frames = Linear(4, 3, 2).eval(), torch.zeros(1, 1, 4, 1)
    with pytest.raises(ValueError, match=r"Linear: it lacks 'wav2spec', .*'readout'.*init_state\(batch\)"):
        model.step(frames, {})
    state = model.init_state(1)
    with pytest.raises(ValueError, match=r"lacks 'readout\.strf\.history'\."):
        model.step(frames, {**state, "readout": {**state["readout"], "strf": {}}})
    for wrong in (None, []):
        with pytest.raises(TypeError, match=r"must be a dictionary.*init_state"):
            model.step(frames, wrong)

    class Faulty(nn.ReLU):
        def init_state(self, batch: int, **place: Any) -> dict[str, Any]:
            return {}

        def step(self, chunk: torch.Tensor, state: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
            raise KeyError("of the module itself")

    model.prefiltering = Faulty()
    with pytest.raises(KeyError, match="of the module itself"):
        model.step(frames, model.init_state(1))


def test_a_step_of_no_whole_frame_is_an_error() -> None:
    model = Linear(4, 3, 2).eval()
    with pytest.raises(ValueError, match="T of at least 1"):
        model.step(torch.zeros(1, 1, 4, 0), model.init_state(1))


def test_forward_compiles_to_one_graph() -> None:
    mel = CausalMelSpectrogram(16000, n_mels=4)
    model = Linear(4, 3, 2, wav2spec=mel, norm="none").eval()
    x = torch.randn(1, 1, 800)
    explanation = torch._dynamo.explain(model)(x)
    assert explanation.graph_break_count == 0, explanation.break_reasons


# ------------------------------ captured arguments


class Base(nn.Module, Configurable):
    """A module of a user's."""

    def __init__(self, width: int, *, names: list[str] | None = None, **more: Any) -> None:
        super().__init__()
        self.width = width


class Child(Base):
    """No constructor of its own."""


def test_arguments_are_captured_with_defaults_and_frozen() -> None:
    names = ["a"]
    child = Child(3, names=names, colour="red")
    names.append("b")
    assert child.init_arguments == {"width": 3, "names": ["a"], "colour": "red"}
    assert Child(width=4).init_arguments == {"width": 4, "names": None}
    for twin in (copy.deepcopy(child), pickle.loads(pickle.dumps(child)), copy.copy(child)):
        assert twin.init_arguments == child.init_arguments


def test_a_wrong_call_gets_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="width"):
        Child()


def test_modules_among_the_arguments_stay_themselves() -> None:
    front_end = CausalMelSpectrogram(16000, n_mels=4)
    model = Linear(4, 3, 2, wav2spec=front_end)
    assert model.init_arguments["wav2spec"] is front_end
    twin = copy.deepcopy(model)
    assert twin.init_arguments["wav2spec"] is twin.wav2spec


def test_our_classes_are_registered_and_users_are_not() -> None:
    assert MODULES.get("CausalSTRFConv") is CausalSTRFConv
    assert "Child" not in MODULES
    signature = inspect.signature(Linear)
    assert list(signature.parameters)[:3] == ["n_frequency_bands", "temporal_window_size", "out_neurons"]


# ------------------------------ exact constants


def test_constants_follow_precision_without_loss() -> None:
    class Third(ExactConstants):
        def __init__(self) -> None:
            super().__init__()
            self.register_constant("third", torch.tensor([1 / 3], dtype=torch.float64))

    module = Third()
    assert module.third.dtype == torch.float32
    assert float(module.double().third) == 1 / 3
    assert float(module.half().double().third) == 1 / 3
    assert module.state_dict() == {}
    holder = nn.Sequential(Third()).double()
    assert float(holder[0].third) == 1 / 3
    assert float(copy.deepcopy(holder)[0].third) == 1 / 3


# ------------------------------ slots


def test_a_dictionary_names_a_class_and_its_options() -> None:
    registry: Registry[Any] = Registry("kernel")

    @registry.register("Scaled")
    class Scaled(nn.Module):
        def __init__(self, F: int, factor: float = 1.0) -> None:
            super().__init__()
            self.F, self.factor = F, factor

    for given in ({"kernel": "scaled", "factor": 2.0}, {"type": "SCALED", "factor": 2.0}):
        before = dict(given)
        module = resolve_slot("kernel", given, registry, F=7)
        assert isinstance(module, Scaled)
        assert (module.F, module.factor) == (7, 2.0)
        assert given == before
    assert resolve_slot("kernel", None, registry) is None
    with pytest.raises(ValueError, match=r"unknown kernel 'other'.*'scaled'"):
        resolve_slot("kernel", {"kernel": "other"}, registry)
    for bad in ({}, {"factor": 1.0}, {"kernel": "scaled", "type": "scaled"}):
        with pytest.raises(ValueError, match="one key"):
            resolve_slot("kernel", bad, registry)
    with pytest.raises(TypeError, match="dictionary"):
        resolve_slot("kernel", "scaled", registry)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pass an nn\.Module"):
        resolve_slot("kernel", {"kernel": "scaled"}, Registry("kernel"))
    assert KERNELS.what == "kernel"
