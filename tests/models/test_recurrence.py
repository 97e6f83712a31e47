"""Gated recurrent units written out: against ``nn.GRU``, in values, gradients and gradients of gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepSTRF.models import BandFilters
from deepSTRF.models.backbones import GRU, ParallelGRU
from deepSTRF.models.backbones.recurrence import gru_recurrence  # inner: tested by itself


def arguments(T: int, G: int, B: int, H: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (T, G, B, 3 * H), (G, B, H), (G, H, 3 * H), (G, H)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("T", "G", "B", "H"), [(7, 2, 3, 4), (5, 1, 1, 3), (1, 3, 1, 2)])
def test_gradients(T: int, G: int, B: int, H: int) -> None:
    given = arguments(T, G, B, H)
    assert torch.autograd.gradcheck(gru_recurrence, given)
    assert torch.autograd.gradgradcheck(gru_recurrence, given)


def test_gradients_of_gradients_by_some_arguments() -> None:
    drive, *others = arguments(6, 1, 2, 3)
    given = [drive, *(tensor.detach() for tensor in others)]
    assert torch.autograd.gradgradcheck(gru_recurrence, given)


@pytest.mark.parametrize("size", [8, 70, 100, 131])  # above 96 the recurrent product is cut into blocks
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_as_torch(size: int, batch: int, layers: int) -> None:
    torch.manual_seed(0)
    ours = GRU(11, size, layers).double()
    theirs = nn.GRU(11, size, layers, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(batch, 40, 11, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(batch, 40, size, dtype=torch.float64)
    y, expected = ours(x), theirs(x)[0]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    ours_grad = torch.autograd.grad((y * weight).sum(), [x, *ours.parameters()])
    theirs_grad = torch.autograd.grad((expected * weight).sum(), [x, *theirs.parameters()])
    for one, other in zip(ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_states_carry_gradients() -> None:
    """Truncated back-propagation: the gradient by the first state equals that of torch."""
    torch.manual_seed(0)
    ours, theirs = GRU(4, 5), nn.GRU(4, 5, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x, h = torch.randn(2, 9, 4), torch.randn(1, 2, 5, requires_grad=True)
    y, state = ours.step(x, {"h": h})
    expected, last = theirs(x, h)
    torch.testing.assert_close(state["h"], last)
    mine = torch.autograd.grad(y.square().sum() + state["h"].sum(), h)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(expected.square().sum() + last.sum(), h)[0])


def test_extreme_inputs_saturate() -> None:
    rnn = GRU(3, 4)
    for value in (1e4, -1e4, 1e30):
        y = rnn(torch.full((1, 20, 3), value)).detach()
        assert bool(torch.isfinite(y).all())
        assert float(y.abs().max()) <= 1.0


def test_parallel_groups_are_separate_networks() -> None:
    torch.manual_seed(0)
    backbone, x = ParallelGRU(6, 12, n_groups=3), torch.randn(2, 30, 6)
    layer = backbone.layers[0]
    parts = []
    for g in range(3):
        one = nn.GRU(6, 4, batch_first=True)
        named = {
            f"{name}_l0": getattr(layer, name)[g] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        one.load_state_dict(named)
        parts.append(one(x)[0])
    torch.testing.assert_close(backbone(x), torch.cat(parts, dim=-1))
    cudnn = layer._by_cudnn(
        x, torch.zeros(3, 2, 4), tuple(layer.parameters())
    )  # the path of a GPU, on the CPU
    torch.testing.assert_close(cudnn, torch.cat(parts, dim=-1))


def test_groups_divide_the_units() -> None:
    with pytest.raises(ValueError, match="n_groups must divide the 10 units of the backbone, got 4"):
        ParallelGRU(6, 10, n_groups=4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch's own rules for forward derivatives
def test_a_forward_derivative_takes_the_plain_form() -> None:
    torch.manual_seed(0)
    backbone, x, direction = ParallelGRU(3, 4), torch.randn(1, 6, 3).double(), torch.randn(1, 6, 3).double()
    backbone = backbone.double()
    _, tangent = torch.func.jvp(backbone, (x,), (direction,))
    step = 1e-6
    with torch.no_grad():
        difference = (backbone(x + step * direction) - backbone(x - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("channels", [1, 2])
def test_band_filters_by_a_plain_loop(channels: int) -> None:
    """Every band by itself, with its neighbours and zeros beyond the edges, through one shared network."""
    torch.manual_seed(0)
    F, T, near = 7, 20, 2
    filters = BandFilters(F, n_filters=3, n_neighbours=near, in_channels=channels)
    plain = nn.GRU(channels * (2 * near + 1), 3, batch_first=True)
    plain.load_state_dict(filters.rnn.state_dict())
    x = torch.randn(2, channels, F, T)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (near, near), (0, 0)))
    for band in range(F):
        seen = padded[:, :, band : band + 2 * near + 1]  # (B, C, 2 near + 1, T)
        sequence = torch.from_numpy(seen.reshape(2, -1, T)).transpose(1, 2)
        torch.testing.assert_close(filters(x)[:, :, band], plain(sequence)[0].transpose(1, 2))


def test_band_filters_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected spectrograms \(B, 1, 7, T\).*BandFilters"):
        BandFilters(7)(torch.zeros(1, 1, 6, 4))


@pytest.mark.parametrize("backbone", [GRU(3, 4), ParallelGRU(3, 4)], ids=["GRU", "ParallelGRU"])
def test_a_state_of_other_streams_is_refused(backbone: nn.Module) -> None:
    for streams in (1, 2, 8):
        with pytest.raises(ValueError, match=f"of {streams} streams and the frames of 4"):
            backbone.step(torch.randn(4, 6, 3), backbone.init_state(streams))


@pytest.mark.parametrize("backbone", [GRU(3, 4), ParallelGRU(3, 4)], ids=["GRU", "ParallelGRU"])
def test_many_gradients_at_once(backbone: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 3)
    at_once = torch.autograd.functional.jacobian(backbone, x, vectorize=True)
    torch.testing.assert_close(at_once, torch.autograd.functional.jacobian(backbone, x))


def test_steps_of_several_streams_by_the_library() -> None:
    """The state that a step returns is what the next one takes, also where each group is a call of cuDNN."""
    torch.manual_seed(0)
    backbone, x = ParallelGRU(3, 4), torch.randn(2, 10, 3)
    layer = backbone.layers[0]
    _, state = layer.step(x[:, :5], layer.init_state(2))
    rest = layer._by_cudnn(x[:, 5:], state["h"], tuple(layer.parameters()))
    torch.testing.assert_close(rest, backbone(x)[:, 5:])
