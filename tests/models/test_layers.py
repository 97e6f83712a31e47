"""CausalSTRFConv, readouts, layer norm: formulas, shapes, causality, streams, bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.models import CausalLayerNorm, CausalSTRFConv, LinearReadout, STRFReadout
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram


def separable(c_in: int, c_out: int, bands: int, frames: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, (bands, 1)), nn.Conv2d(c_out, c_out, (1, frames), groups=c_out)
    )


# ------------------------------ the convolution


def test_formula_with_the_newest_frame_last() -> None:
    conv = CausalSTRFConv(F=3, T=4, C_in=2, C_out=5).double()
    x = torch.randn(2, 2, 3, 10, dtype=torch.float64)
    weight, bias = conv.kernel.weight.detach(), conv.kernel.bias.detach()
    expected = torch.zeros(2, 5, 1, 10, dtype=torch.float64)
    for t in range(10):
        for j in range(4):
            if t - 3 + j >= 0:
                expected[:, :, 0, t] += torch.einsum("bif,cif->bc", x[..., t - 3 + j], weight[..., j])
    torch.testing.assert_close(conv(x).detach(), expected + bias.view(1, 5, 1, 1))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frames", [1, 3, 40])
def test_the_fast_product_equals_the_library_convolution(batch: int, bias: bool, frames: int) -> None:
    conv = CausalSTRFConv(F=6, T=5, C_in=2, C_out=7, bias=bias).double()
    x = torch.randn(batch, 2, 6, frames, dtype=torch.float64, requires_grad=True)
    padded = functional.pad(x, (4, 0))
    assert conv._product_is_faster(padded, frames)
    ours, theirs = conv(x), conv.kernel(padded)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    sources = (x, *conv.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, sources, upstream),
        torch.autograd.grad(theirs, sources, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_hooks_parametrisations_and_long_recordings_go_through_the_module() -> None:
    conv = CausalSTRFConv(F=6, T=5, C_in=1, C_out=2)
    padded = torch.zeros(1, 1, 6, 14)
    long = torch.zeros(1, 1, 6, 1).expand(1, 1, 6, 2**20)
    assert not conv._product_is_faster(long, long.shape[-1] - 4)
    calls = []
    handle = conv.kernel.register_forward_hook(lambda *_: calls.append(1))
    conv(torch.zeros(1, 1, 6, 10))
    assert calls == [1]
    handle.remove()
    assert conv._product_is_faster(padded, 10)
    nn.utils.parametrizations.weight_norm(conv.kernel)
    assert not conv._product_is_faster(padded, 10)
    assert conv(torch.zeros(1, 1, 6, 10)).shape == (1, 2, 1, 10)


def test_gradgradcheck() -> None:
    conv = CausalSTRFConv(F=2, T=2, C_in=1, C_out=2).double()
    x = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (x,))
    assert torch.autograd.gradgradcheck(conv, (x,))


def test_custom_kernels() -> None:
    conv = CausalSTRFConv(4, 3, 1, 2, kernel=separable(1, 2, 4, 3))
    assert conv(torch.zeros(1, 1, 4, 9)).shape == (1, 2, 1, 9)
    weight = conv.STRF_weight()
    assert weight.shape == (2, 1, 4, 3)
    torch.testing.assert_close(
        weight[1, 0], conv.kernel[0].weight[1, 0] * conv.kernel[1].weight[1, 0], check_stride=False
    )

    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2, :1, 2:]

    silent = CausalSTRFConv(4, 3, 2, 2, kernel=Silent())
    assert silent(torch.zeros(1, 2, 4, 9)).shape == (1, 2, 1, 9)
    with pytest.raises(NotImplementedError, match=r"build_kernel"):
        silent.STRF_weight()
    with pytest.raises(ValueError, match="must map"):
        CausalSTRFConv(4, 3, 2, 5, kernel=Silent())(torch.zeros(1, 2, 4, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [1, 4, 11])
def test_convolution_streams(assert_streams: Callable[..., None], frames: int, dtype: torch.dtype) -> None:
    conv = CausalSTRFConv(5, frames, 2, 3).to(dtype)
    assert_streams(conv, torch.randn(2, 2, 5, 20, dtype=dtype))


def test_bad_convolution_input() -> None:
    conv = CausalSTRFConv(5, 3, 1, 2)
    for shape in [(1, 5, 9), (1, 1, 4, 9), (1, 2, 5, 9), (1, 1, 5, 0)]:
        with pytest.raises(ValueError, match=r"\(B, 1, 5, T\)"):
            conv(torch.zeros(shape))
    for name, options in {"F": {"F": 0}, "T": {"T": -1}, "C_in": {"C_in": 0}}.items():
        with pytest.raises(ValueError, match=name):
            CausalSTRFConv(**{"F": 5, "T": 3, "C_in": 1, "C_out": 2, **options})
    with pytest.raises(TypeError, match="kernel"):
        CausalSTRFConv(5, 3, 1, 2, kernel="full")  # type: ignore[arg-type]


# ------------------------------ STRF readout


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("neurons", [1, 4])
def test_readout_shapes_and_counts(norm: str, neurons: int) -> None:
    readout = STRFReadout(6, 3, 2, neurons, norm=norm)
    expected = neurons * 2 * 6 * 3 + neurons + (2 * neurons if norm == "batch" else 0)
    assert sum(p.numel() for p in readout.parameters()) == expected
    for frames in (2, 25):
        assert readout(torch.randn(3, 2, 6, frames)).shape == (3, neurons, 1, frames)
    assert readout.eval()(torch.randn(1, 2, 6, 1)).shape == (1, neurons, 1, 1)


def test_train_mode_on_a_single_frame_is_a_clear_error() -> None:
    readout = STRFReadout(6, 3, 1, 4)
    with pytest.raises(ValueError, match=r"norm='none'"):
        readout(torch.randn(1, 1, 6, 1))
    assert STRFReadout(6, 3, 1, 4, norm="none")(torch.randn(1, 1, 6, 1)).shape == (1, 4, 1, 1)
    assert readout(torch.randn(2, 1, 6, 1)).shape == (2, 4, 1, 1)


def test_folded_weights_are_the_eval_mode_map() -> None:
    readout = STRFReadout(6, 3, 1, 4).double()
    for _ in range(5):
        readout(3 + 2 * torch.randn(1, 1, 6, 50, dtype=torch.float64))
    readout.eval()
    folded = readout.STRF_weight(folded=True)
    x = torch.randn(1, 1, 6, 20, dtype=torch.float64)
    zero = torch.zeros_like(x)
    linear_part = (readout(x) - readout(zero)).detach()
    torch.testing.assert_close(functional.conv2d(functional.pad(x, (2, 0)), folded), linear_part)
    assert not torch.allclose(folded, readout.STRF_weight())


def test_polarity() -> None:
    readout = STRFReadout(6, 3, 2, 4)
    weight = readout.STRF_weight()
    assert weight.shape == (4, 2, 6, 3)
    assert not weight.requires_grad
    for polarity in ("ON", "On", "on", 0):
        assert torch.equal(readout.STRF_weight(polarity), weight[:, 0])
    for polarity in ("OFF", "off", 1):
        assert torch.equal(readout.STRF_weight(polarity), weight[:, 1])
    for polarity in ("left", 2, -1):
        with pytest.raises(ValueError, match="polarity"):
            readout.STRF_weight(polarity)
    with pytest.raises(ValueError, match="1 channel"):
        STRFReadout(6, 3, 1, 4).STRF_weight("OFF")


def test_activation_sees_neurons_on_the_last_axis() -> None:
    class Slope(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] == 4
            return x * torch.arange(4.0)

    readout = STRFReadout(6, 3, 1, 4, activation=Slope())
    y = readout(torch.randn(2, 1, 6, 9))
    assert y.shape == (2, 4, 1, 9)
    assert float(y[:, 0].detach().abs().max()) == 0
    with pytest.raises(TypeError, match="activation"):
        STRFReadout(6, 3, 1, 4, activation=torch.relu)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm"):
        STRFReadout(6, 3, 1, 4, norm="layer")


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_readout_streams(assert_streams: Callable[..., None], norm: str, dtype: torch.dtype) -> None:
    readout = STRFReadout(6, 3, 1, 4, activation=nn.Sequential(nn.Tanh(), nn.Softplus()), norm=norm).to(dtype)
    readout(torch.randn(2, 1, 6, 50, dtype=dtype))
    assert_streams(readout.eval(), torch.randn(2, 1, 6, 20, dtype=dtype))


def test_an_activation_without_step_is_named_by_streams_only() -> None:
    class Memory(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    readout = STRFReadout(6, 3, 1, 4, activation=Memory()).eval()
    assert readout(torch.randn(1, 1, 6, 9)).shape == (1, 4, 1, 9)
    with pytest.raises(TypeError, match=r"slot 'activation' \(Memory\)"):
        readout.init_state(1)


# ------------------------------ linear readout


@pytest.mark.parametrize("hidden", [None, 3])
def test_linear_readout(hidden: int | None, assert_streams: Callable[..., None]) -> None:
    readout = LinearReadout(5, 2, hidden=hidden, activation=nn.Softplus())
    count = 5 * 2 + 2 if hidden is None else 5 * 3 + 3 + 3 * 2 + 2
    assert sum(p.numel() for p in readout.parameters()) == count
    x = torch.randn(2, 5, 20)
    y = readout(x)
    assert y.shape == (2, 2, 1, 20)
    assert torch.equal(readout(x.unsqueeze(2)), y)
    assert_streams(readout.eval(), x)
    names = (
        {"fc.weight", "fc.bias"}
        if hidden is None
        else {f"fc.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
    )
    assert set(readout.state_dict()) == names


def test_linear_readout_refuses_other_shapes() -> None:
    readout = LinearReadout(5, 2)
    for shape in [(5, 20), (1, 5, 2, 20), (1, 4, 20), (1, 1, 5, 1, 20)]:
        with pytest.raises(ValueError, match=r"\(B, 5, T\)"):
            readout(torch.zeros(shape))


# ------------------------------ layer norm


@pytest.mark.parametrize("dim", [1, -2, 2])
def test_layer_norm_formula(dim: int, assert_causal: Callable[..., None]) -> None:
    x = torch.randn(2, 6, 6, 9)
    norm = CausalLayerNorm(6, dim=dim)
    axis = dim % 4
    expected = (x - x.mean(axis, keepdim=True)) / torch.sqrt(x.var(axis, unbiased=False, keepdim=True) + 1e-5)
    torch.testing.assert_close(norm(x), expected)
    assert set(norm.state_dict()) == {"ln.weight", "ln.bias"}
    assert not CausalLayerNorm(6, elementwise_affine=False).state_dict()

    class Weighted(nn.Module):  # a plain sum over a normalised axis is constant: weigh the entries
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return norm(x) * torch.linspace(1, 2, 36).reshape(6, 6, 1)

    assert_causal(Weighted(), x, 4)


def test_layer_norm_over_time_is_refused() -> None:
    with pytest.raises(ValueError, match="time"):
        CausalLayerNorm(6, dim=-1)
    with pytest.raises(ValueError, match="time"):
        CausalLayerNorm(6, dim=2)(torch.zeros(1, 6, 6))


def test_numpy_integers_are_integers() -> None:
    readout = copy.deepcopy(STRFReadout(np.int64(6), np.int32(3), 1, np.int16(4)))
    assert readout(torch.zeros(1, 1, 6, 5)).shape == (1, 4, 1, 5)


def test_gain_control_refuses_levels_of_either_sign() -> None:
    gain_control = {"prefiltering": "pcen", "dt": 5.0}
    Linear(34, 9, 2, prefiltering=gain_control, wav2spec=CausalMelSpectrogram(16000, compression="none"))
    with pytest.raises(ValueError, match="standardize=False"):
        Linear(34, 9, 2, prefiltering=gain_control, standardize=True)
    with pytest.raises(ValueError, match="compression='none'"):
        Linear(34, 9, 2, prefiltering=gain_control, wav2spec=CausalMelSpectrogram(16000))
