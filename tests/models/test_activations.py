"""Parametric output activations: formulas, initial ranges, counts, no NaN anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.models import ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus
from deepSTRF.models.audio import Linear, LinearNonlinear

N = 400
ALL = [ParametricSigmoid, ParametricDoubleExponential, ParametricSoftplus]


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(x))


@pytest.mark.parametrize(
    ("cls", "options", "per_neuron"),
    [
        (ParametricSigmoid, {}, 4),
        (ParametricSigmoid, {"bias": False}, 3),
        (ParametricDoubleExponential, {}, 4),
        (ParametricDoubleExponential, {"bias": False}, 3),
        (ParametricSoftplus, {}, 2),
        (ParametricSoftplus, {"non_negative_output": False}, 2),
    ],
)
def test_parameter_counts(cls: type[nn.Module], options: dict[str, bool], per_neuron: int) -> None:
    assert sum(p.numel() for p in cls(7, **options).parameters()) == 7 * per_neuron


@pytest.mark.parametrize(
    ("cls", "non_negative", "ranges"),
    [
        (ParametricSigmoid, True, {"c": (-0.5, 0.5), "d": (0.5, 1.5)}),
        (ParametricSigmoid, True, {"b": (0.501, 1.62), "a": (0.214, 0.931)}),
        (ParametricSigmoid, False, {"b": (0.5, 1.5), "a": (0.0, 1.0)}),
        (ParametricDoubleExponential, True, {"k": (-0.5, 0.5), "s": (0.5, 1.5), "a": (0.501, 1.62)}),
        (ParametricDoubleExponential, True, {"b": (0.214, 0.931)}),
        (ParametricDoubleExponential, False, {"a": (0.5, 1.5), "b": (0.0, 1.0)}),
        (ParametricSoftplus, True, {"beta": (5.006, 6.003), "b": (0.0067, 0.0487)}),
        (ParametricSoftplus, False, {"beta": (5.006, 6.003), "b": (-0.1, 0.1)}),
    ],
)
def test_initial_ranges(
    cls: type[nn.Module], non_negative: bool, ranges: dict[str, tuple[float, float]]
) -> None:
    activation = cls(N, non_negative_output=non_negative)
    for name, (low, high) in ranges.items():
        value = getattr(activation, name).detach()
        assert value.shape == (N,)
        assert float(value.min()) >= low - 1e-3
        assert float(value.max()) <= high + 1e-3
        assert float(value.max() - value.min()) > 0.9 * (high - low)


def test_formulas() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    sigmoid = ParametricSigmoid(3).double()
    expected = softplus(sigmoid._raw_b) * torch.sigmoid((x - sigmoid.c) / sigmoid.d) + softplus(
        sigmoid._raw_a
    )
    torch.testing.assert_close(sigmoid(x), expected)
    double = ParametricDoubleExponential(3).double()
    expected = softplus(double._raw_a) * torch.exp(-torch.exp(double.k * x - double.s)) + softplus(
        double._raw_b
    )
    torch.testing.assert_close(double(x), expected)
    plus = ParametricSoftplus(3).double()
    torch.testing.assert_close(plus(x), softplus(plus.beta * x) / plus.beta + softplus(plus._raw_b))
    start = ParametricSoftplus(N)(torch.zeros(N)).detach()
    assert 0.115 < float(start.min()) < float(start.max()) < 0.19


def test_baseline_is_none_without_bias() -> None:
    assert ParametricSigmoid(3, bias=False).a is None
    assert ParametricDoubleExponential(3, bias=False).b is None
    assert set(ParametricSigmoid(3).state_dict()) == {"_raw_a", "_raw_b", "c", "d"}
    assert set(ParametricDoubleExponential(3).state_dict()) == {"_raw_a", "_raw_b", "k", "s"}
    assert set(ParametricSoftplus(3).state_dict()) == {"_raw_beta", "_raw_b"}


@pytest.mark.parametrize("cls", ALL)
def test_outputs_are_rates(cls: type[nn.Module]) -> None:
    y = cls(N)(5 * torch.randn(50, N))
    assert bool((y >= 0).all())
    assert y.shape == (50, N)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("extreme", [0.0, 30.0, 88.0, 1e2, 1e3, 1e4])
def test_no_nan_forward_or_backward(cls: type[nn.Module], extreme: float) -> None:
    activation = cls(N)
    x = torch.stack([torch.full((N,), extreme), torch.full((N,), -extreme)]).requires_grad_()
    y = activation(x)
    y.sum().backward()
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(x.grad).all())
    for parameter in activation.parameters():
        assert bool(torch.isfinite(parameter.grad).all())


def test_a_width_that_crosses_zero_stays_finite() -> None:
    activation = ParametricSigmoid(3)
    with torch.no_grad():
        activation.d.copy_(torch.tensor([0.0, -1e-9, 1e-9]))
    x = torch.full((1, 3), 1e4, requires_grad=True)
    y = activation(x)
    y.sum().backward()
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(activation.d.grad).all())


@pytest.mark.parametrize("cls", ALL)
def test_state_dict_round_trip_and_float64(cls: type[nn.Module]) -> None:
    activation, twin = cls(5).double(), cls(5).double()
    twin.load_state_dict(activation.state_dict())
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(twin(x), activation(x))
    assert activation(x).dtype == torch.float64


@pytest.mark.parametrize("cls", ALL)
def test_bad_arguments(cls: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="num_features"):
        cls(0)
    with pytest.raises(TypeError, match="num_features"):
        cls(2.5)
    with pytest.raises(TypeError, match="non_negative_output"):
        cls(2, non_negative_output="yes")
    with pytest.raises(ValueError, match="3 neurons on the last axis"):
        cls(3)(torch.zeros(3, 7))
    assert cls(np.int64(2)).num_features == 2


@pytest.mark.parametrize("cls", ALL)
def test_framewise_stream(cls: type[nn.Module]) -> None:
    activation = cls(3)
    x = torch.randn(1, 4, 3)
    state = activation.init_state(1)
    assert state == {}
    y, state = activation.step(x, state)
    assert torch.equal(y, activation(x))


def test_models_take_output_nonlinearities_by_name() -> None:
    model = Linear(4, 2, 3, output_activation="softplus")
    assert isinstance(model.readout.activation, ParametricSoftplus)
    assert type(LinearNonlinear(4, 2, 3, output_activation="identity").readout.activation) is nn.Identity
    with pytest.raises(ValueError, match="softplus"):
        Linear(4, 2, 3, output_activation="softpuls")
    with pytest.raises(TypeError, match="a name or None"):
        Linear(4, 2, 3, output_activation=1)  # type: ignore[arg-type]
