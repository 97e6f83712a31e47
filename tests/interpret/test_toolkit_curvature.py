"""Second order: Hessians whose truth is known, exact and at a finite scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepSTRF.interpret import dstrf
from deepSTRF.interpret.dstrf import curvature
from deepSTRF.models.audio import Linear, NetworkReceptiveField, StateNet, Transformer

L, F = 5, 4


class Quadratic(nn.Module):
    """``a . x + sum_k sign_k (k_k . x)^2`` of the window x of L frames."""

    receptive_field = L

    def __init__(self, kernels: torch.Tensor, signs: list[float], lags: int = L, bands: int = F) -> None:
        super().__init__()
        self.receptive_field = lags
        self.lags, self.signs = lags, torch.tensor(signs).view(1, -1, 1)
        self.register_buffer("kernels", kernels.transpose(1, 2).contiguous())
        draw = torch.Generator().manual_seed(9)
        self.register_buffer("linear", torch.randn(1, bands, lags, generator=draw, dtype=kernels.dtype))

    def forward(self, x):
        past = functional.pad(x[:, 0], (self.lags - 1, 0))
        z = functional.conv1d(past, self.kernels)
        return (functional.conv1d(past, self.linear) + (self.signs * z.square()).sum(1, True)).unsqueeze(2)


def kernels(n: int, lags: int = L, bands: int = F, dtype=torch.float64) -> torch.Tensor:
    """Orthogonal kernels of norms n, n - 1, .. 1."""
    q, _ = torch.linalg.qr(
        torch.randn(lags * bands, n, dtype=dtype, generator=torch.Generator().manual_seed(4))
    )
    return (q * torch.arange(n, 0, -1)).T.reshape(n, lags, bands)


def hessian(model: nn.Module, clip: torch.Tensor, time: int, neuron: int, lags: int) -> torch.Tensor:
    """The plain way, over the last frames: (lags * F, lags * F), frames first."""
    past, window = clip[:, : time + 1 - lags], clip[:, time + 1 - lags : time + 1].T

    def response(flat):
        x = torch.cat([past, flat.view(lags, -1).T], 1)
        return model(x.view(1, 1, *x.shape)).reshape(-1, x.shape[-1])[neuron, -1]

    with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        return torch.autograd.functional.hessian(response, window.reshape(-1))


@pytest.mark.parametrize("method", ["exact", "secant"])
@pytest.mark.parametrize("lags", [L, 20])  # a matrix that is made, and iterations
def test_a_quadratic_neuron_is_its_kernels_at_any_time_and_scale(method, lags) -> None:
    true = kernels(3, lags)
    model = Quadratic(true, [1.0, -1.0, 1.0], lags)
    found = curvature(
        model, torch.randn(F, 60).double(), 0, [lags, 50], n_patterns=3, method=method, scale=2.0
    )
    # (k . x)^2 has the Hessian 2 k k^T: norms 3, 2, 1 give 18, -8, 2
    np.testing.assert_allclose(found.eigenvalues, [[18.0, -8.0, 2.0]] * 2, rtol=1e-9)
    for patterns in found.patterns:
        for pattern, kernel in zip(patterns, true, strict=True):
            overlap = float((pattern * kernel).sum() / kernel.norm())
            assert abs(overlap) == pytest.approx(1.0, abs=1e-9)
            assert float(pattern.flatten()[pattern.abs().argmax()]) > 0
    assert not found.flat.any()
    assert found.patterns.shape == (2, 3, lags, F)
    beyond = curvature(model, torch.randn(F, 60).double(), 0, [50], n_patterns=5, method=method)
    assert beyond.eigenvalues[0, 3:].abs().max() < 1e-9


def test_exact_is_the_plain_hessian_of_models_of_every_kind() -> None:
    bands = 10
    clip = torch.randn(bands, 24, dtype=torch.float64)
    models = {
        "convolution": (NetworkReceptiveField(bands, L, out_neurons=2), L),
        "gru": (StateNet(bands, out_neurons=2, rnn_type="GRU"), 4),
        "lstm": (StateNet(bands, out_neurons=2, rnn_type="LSTM"), 4),
        "attention": (Transformer(bands, out_neurons=2), 4),
    }
    for name, (model, lags) in models.items():
        model = model.double().eval()
        wanted = torch.linalg.eigvalsh(hessian(model, clip, 20, 1, lags)).numpy()
        wanted = wanted[np.argsort(-np.abs(wanted))][:3]
        found = curvature(model, clip, 1, [20], n_patterns=3, lags=lags)
        np.testing.assert_allclose(found.eigenvalues[0], wanted, rtol=1e-6, atol=1e-12, err_msg=name)
        torch.testing.assert_close(found.response[0], model(clip.view(1, 1, bands, -1))[0, 1, 0, 20])


def test_first_order_is_the_dynamic_strf_and_the_model_is_left_as_it_was() -> None:
    model = Quadratic(kernels(2), [1.0, -1.0]).train()
    clip = torch.randn(F, 40).double()
    found = curvature(model, clip, 0, [1, 30])
    strf = dstrf(model, clip, times=[1, 30])
    torch.testing.assert_close(found.filters, strf.weights[:, 0])
    torch.testing.assert_close(found.response, strf.response[:, 0])
    assert not found.patterns[0, :, : L - 2].any(), "lags before the clip"
    assert model.training
    d = 0.3 * torch.randn(L, F).double()
    moved = clip.clone()
    moved[:, 26:31] += d.T
    second = (found.eigenvalues[1] * (found.patterns[1] * d).sum((1, 2)).square()).sum() / 2
    predicted = found.response[1] + (found.filters[1] * d).sum() + second
    torch.testing.assert_close(predicted, model(moved.view(1, 1, F, -1))[0, 0, 0, 30])


def test_flat_pieces_are_an_error_that_names_what_helps() -> None:
    class Rectified(nn.Module):
        receptive_field = 1

        def forward(self, x):
            return torch.relu(x[:, :, :1]) + 0.5 * x[:, :, 1:2]

    clip = 0.2 * torch.randn(F, 30).double()
    clip[0, 12], clip[0, 13] = 0.01, 50.0
    for model in (Rectified(), Linear(F, 3).double()):
        with pytest.raises(ValueError, match=r"zero at all 2 times.*method='secant'"):
            curvature(model, clip, 0, [12, 13])
    # near its kink the rectifier's filters differ by its slope in band 0: that is the pattern
    found = curvature(
        Rectified(), clip, 0, [12, 13], n_patterns=2, method="secant", scale=0.05, n_directions=200
    )
    assert float(found.patterns[0, 0, 0, 0]) > 0.9
    assert float(found.eigenvalues[0, 0]) > 0.1
    assert found.flat.tolist() == [False, True], "far from it there is none"


def test_steps_add_up_over_sets_and_budgets() -> None:
    model, clip = NetworkReceptiveField(F, L).double(), torch.randn(F, 30).double()
    options = {"n_patterns": 3, "method": "secant", "scale": 0.3}
    one = curvature(model, clip, 0, [20], **options)
    again = curvature(model, clip, 0, [20], **options, budget_bytes=1)
    torch.testing.assert_close(one.eigenvalues, again.eigenvalues)
    more = curvature(model, clip, 0, [20], **options, n_directions=3 * L * F)
    assert float(more.eigenvalues[0, 0]) == pytest.approx(float(one.eigenvalues[0, 0]), rel=0.3)
    small = curvature(model, clip, 0, [20], n_patterns=3, method="secant", scale=1e-4)
    exact = curvature(model, clip, 0, [20], n_patterns=3)
    torch.testing.assert_close(small.eigenvalues, exact.eigenvalues, rtol=1e-4, atol=1e-8)


def test_single_precision_and_output_nonlinearities() -> None:
    true = kernels(2, 20, dtype=torch.float32)
    model = nn.Sequential(Quadratic(true, [1.0, 1.0], 20), nn.Softplus())
    model.receptive_field = 20
    clip = 0.1 * torch.randn(F, 40)
    inner = curvature(model, clip, 0, [30], n_patterns=2, skip_nonlinearity="1")
    np.testing.assert_allclose(inner.eigenvalues, [[8.0, 2.0]], rtol=1e-4)
    outer = curvature(model, clip, 0, [30], n_patterns=2)
    wanted = torch.linalg.eigvalsh(hessian(model, clip, 30, 0, 20).double())
    np.testing.assert_allclose(outer.eigenvalues[0, 0], wanted[wanted.abs().argmax()], rtol=1e-3)


def test_behind_a_named_part() -> None:
    model = nn.Sequential(nn.Softsign(), Quadratic(kernels(2), [1.0, -1.0]))
    model.receptive_field = L
    found = curvature(model, torch.randn(F, 40).double(), 0, [30], n_patterns=2, wrt="0")
    np.testing.assert_allclose(found.eigenvalues, [[8.0, -2.0]])


def test_refusals() -> None:
    model, clip = Quadratic(kernels(2), [1.0, -1.0]), torch.randn(F, 40).double()
    with pytest.raises(ValueError, match="neuron must be one neuron"):
        curvature(model, clip, [0, 0], [3])
    with pytest.raises(ValueError, match="no bound: say how many frames"):
        curvature(StateNet(10, out_neurons=2, rnn_type="GRU").double(), torch.zeros(10, 40), 0, [30])
    with pytest.raises(IndexError, match="there is no frame 40"):
        curvature(model, clip, 0, [40])
    with pytest.raises(ValueError, match="method must be one of"):
        curvature(model, clip, 0, [3], method="newton")

    class Peeking(nn.Module):
        receptive_field = 1

        def forward(self, x):
            return x.flip(-1).square().sum(2, keepdim=True)

    with pytest.raises(ValueError, match="the model is not causal"):
        curvature(Peeking(), clip, 0, [3])
