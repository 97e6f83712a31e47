"""ConvNet2D: its layers one by one, names of public checkpoints, exact linearity without bias, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.models.audio import ConvNet2D


def test_formula() -> None:
    model = ConvNet2D(12, (3, 4), c_hidden=5, n_hidden=6, out_neurons=3).double().eval()
    w = model.state_dict()
    y = functional.pad(torch.randn(2, 1, 12, 30, dtype=torch.float64), (9, 0))
    x = y[..., 9:]
    for conv, norm in ((1, 2), (4, 5), (7, 8)):
        y = functional.conv2d(y, w[f"core.{conv}.weight"], w[f"core.{conv}.bias"])
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        gain, offset = (w[f"core.{norm}.ln.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        y = functional.leaky_relu(gain * y + offset, 0.1)
    features = y.reshape(2, 5 * 6, 30).transpose(1, 2)  # channel by channel, bands within
    hidden = functional.linear(features, w["readout.fc.0.weight"], w["readout.fc.0.bias"])
    drive = functional.linear(
        functional.leaky_relu(hidden, 0.1), w["readout.fc.2.weight"], w["readout.fc.2.bias"]
    )
    rate = model.readout.activation(drive).transpose(1, 2)
    torch.testing.assert_close(model(x).squeeze(2), rate)


def test_names_of_public_checkpoints() -> None:
    assert set(ConvNet2D().state_dict()) == {
        *(f"core.{index}.{part}" for index in (1, 4, 7) for part in ("weight", "bias")),
        *(f"core.{index}.ln.{part}" for index in (2, 5, 8) for part in ("weight", "bias")),
        *(f"readout.fc.{index}.{part}" for index in (0, 2) for part in ("weight", "bias")),
        "readout.activation._raw_beta", "readout.activation._raw_b",
        "output_scale.scale", "output_scale.offset", "output_scale._started",
    }  # fmt: skip


def test_attributes() -> None:
    model = ConvNet2D(34, [3, 9], c_hidden=10, n_hidden=20)
    assert (model.K, model.C, model.H, model.T, model.receptive_field) == ((3, 9), 10, 20, 25, 25)
    assert ConvNet2D(kernel_size=(1, 1)).receptive_field == 1
    assert not hasattr(model, "STRFs")  # there is no explicit kernel


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_without_bias_and_norm_a_prediction_is_its_gradient_times_the_sound(activation: str) -> None:
    model = ConvNet2D(
        12, (3, 4), 5, 6, 3, nn.Identity(), norm=None, bias=False, activation=activation
    ).double()
    x = torch.randn(1, 1, 12, 30, dtype=torch.float64, requires_grad=True)
    y = model(x)[0, :, 0]
    for neuron, frame in ((0, 29), (2, 15), (1, 3)):
        (gradient,) = torch.autograd.grad(y[neuron, frame], x, retain_graph=True)
        torch.testing.assert_close((gradient * x).sum(), y[neuron, frame])
    torch.testing.assert_close(model(3.7 * x), 3.7 * model(x))
    assert not bool(model(torch.zeros_like(x)).any())
    assert isinstance(model.core[3], nn.ReLU if activation == "relu" else nn.LeakyReLU)


def test_a_stream_keeps_gradients_of_its_start() -> None:
    """The past of the later layers depends on the weights: a stream must give their gradient too."""
    model = ConvNet2D(12, (3, 4), 5, 6, 3).double()
    x = torch.randn(1, 1, 12, 6, dtype=torch.float64)
    parameters = list(model.parameters())
    whole = torch.autograd.grad(model(x).square().sum(), parameters)
    state, loss = model.init_state(1), torch.zeros((), dtype=torch.float64)
    for chunk in x.split(2, -1):
        y, state = model.step(chunk, state)
        loss = loss + y.square().sum()
    for a, b in zip(whole, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"n_frequency_bands=34.*kernel_size=\(12, \.\.\.\).*37 bands"):
        ConvNet2D(34, (13, 9))
    assert ConvNet2D(34, (12, 9)).core.out_features == 10
    for bad in (3, (3,), (3, 9, 2), "39"):
        with pytest.raises(ValueError, match="kernel_size"):
            ConvNet2D(34, bad)
    with pytest.raises(ValueError, match="kernel_size"):
        ConvNet2D(34, (0, 9))
    with pytest.raises(TypeError, match="kernel_size"):
        ConvNet2D(34, (3.0, 9))
    with pytest.raises(ValueError, match=r"c_hidden of at least 2.*norm='none'"):
        ConvNet2D(c_hidden=1)
    with pytest.raises(ValueError, match="norm"):
        ConvNet2D(norm="batch")
    with pytest.raises(ValueError, match="activation"):
        ConvNet2D(activation="tanh")
    with pytest.raises(TypeError, match="bias"):
        ConvNet2D(bias=0)
