"""Separable and parametric kernels: formulas, counts, starts, life at the edges of the grid, streams."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from deepSTRF.models import CausalSTRFConv, NeuralModel, ParametricSTRF, SeparableSTRF
from deepSTRF.models.audio import Linear
from deepSTRF.models.kernels import convolve_full, fit_gaussians  # inner: tested by itself

SIZES = {"F": 6, "T": 5, "C_in": 2, "C_out": 3}
KERNELS = {
    "separable": lambda **more: SeparableSTRF(**{**SIZES, "rank": 2, **more}),
    "parametric": lambda **more: ParametricSTRF(**{**SIZES, "num_gaussians": 2, **more}),
}


@pytest.fixture(params=sorted(KERNELS))
def make(request):
    return KERNELS[request.param]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------ what the kernel is


def test_separable_formula():
    kernel = SeparableSTRF(**SIZES, rank=2).double()
    u, v = kernel.weight_f.detach().numpy(), kernel.weight_t.detach().numpy()
    expected = np.zeros((3, 2, 6, 5))
    for c, i, f, j in np.ndindex(expected.shape):
        expected[c, i, f, j] = sum(u[c, i, f, r] * v[c, i, r, j] for r in range(2))
    np.testing.assert_allclose(kernel.build_kernel().detach().numpy(), expected, rtol=1e-12)


def test_parametric_formula():
    kernel = ParametricSTRF(**SIZES, num_gaussians=2).double()
    with torch.no_grad():
        kernel.SIG.copy_(torch.randn(kernel.SIG.shape))
    place, sig, weight = (p.detach().numpy() for p in (kernel.P, kernel.SIG, kernel.weight))
    expected = np.zeros((3, 2, 6, 5))
    f, j = np.mgrid[:6, :5]
    for c, i, g in np.ndindex(weight.shape):
        sigma = np.abs(sig[:, c, i, g]) + 0.27
        bump = np.exp(
            -0.5 * (((f - place[0, c, i, g]) / sigma[0]) ** 2 + ((j - place[1, c, i, g]) / sigma[1]) ** 2)
        )
        expected[c, i] += weight[c, i, g] * bump / (bump.sum() + 1e-7)
    np.testing.assert_allclose(kernel.build_kernel().detach().numpy(), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("T", "kernel", "expected"),
    [
        (15, {"kernel": "separable"}, 6_188),
        (15, {"kernel": "parametric", "num_gaussians": 8}, 5_117),
        (9, {"kernel": "separable"}, 5_474),
        (9, {"type": "parametric", "num_gaussians": 4}, 2_737),
    ],
)
def test_counts_of_linear(T, kernel, expected):
    assert Linear(34, T, 119, kernel=kernel).count_trainable_params() == expected


def test_counts_with_rank_and_channels():
    assert count(SeparableSTRF(**SIZES, rank=3)) == 3 * 2 * 3 * (6 + 5) + 3
    assert count(SeparableSTRF(**SIZES, rank=3, bias=False)) == 3 * 2 * 3 * (6 + 5)
    assert count(ParametricSTRF(**SIZES, num_gaussians=4)) == 5 * 3 * 2 * 4 + 3


def test_convolution_is_that_of_the_full_kernel(make):
    kernel = make().double()
    full = CausalSTRFConv(**SIZES).double()
    with torch.no_grad():
        full.kernel.weight.copy_(kernel.build_kernel())
        full.kernel.bias.copy_(kernel.bias)
    ours = CausalSTRFConv(**SIZES, kernel=kernel)
    x = torch.randn(2, 2, 6, 20, dtype=torch.float64)
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.STRF_weight(), full.STRF_weight())
    state, pieces = ours.init_state(2), []
    for piece in x.split([1, 7, 12], dim=-1):
        y, state = ours.step(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), ours(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_long_and_short_recordings_take_the_same_convolution(bias, batch, monkeypatch):
    x = torch.randn(batch, 2, 6, 30, dtype=torch.float64)
    weight, offset = torch.randn(3, 2, 6, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    short = convolve_full(x, weight, offset if bias else None)
    monkeypatch.setattr("deepSTRF.models.kernels._MAX_UNFOLDED_ELEMENTS", 0)
    torch.testing.assert_close(convolve_full(x, weight, offset if bias else None), short)


# ------------------------------ starting


def test_default_kernels_are_of_the_size_of_a_full_one():
    torch.manual_seed(0)
    sizes = {"F": 34, "T": 15, "C_in": 1, "C_out": 200}
    full = CausalSTRFConv(**sizes).kernel
    for rank in (1, 3):
        kernel = SeparableSTRF(**sizes, rank=rank)
        assert kernel.build_kernel().std().item() == pytest.approx(full.weight.std().item(), rel=0.1)
        assert kernel.bias.abs().max() <= full.bias.abs().max() * 1.1
    assert ParametricSTRF(**sizes).bias.abs().max() <= full.bias.abs().max() * 1.1


def test_separable_starts_from_the_best_low_rank_kernel():
    weight = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    for rank in (1, 3, 5):
        built = SeparableSTRF(**SIZES, rank=rank).double().init_from(weight).build_kernel()
        for c, i in np.ndindex(3, 2):
            u, s, v = np.linalg.svd(weight[c, i].numpy())
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            np.testing.assert_allclose(built[c, i].detach().numpy(), best, atol=1e-12)


def test_parametric_finds_gaussians_again():
    torch.manual_seed(3)
    truth = ParametricSTRF(F=12, T=10, C_in=1, C_out=6, num_gaussians=2)
    weight = truth.build_kernel().detach()
    found = ParametricSTRF(F=12, T=10, C_in=1, C_out=6, num_gaussians=2).init_from(weight)
    error = (found.build_kernel() - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert error.max() < 0.15
    assert (found.centres()[0] >= 0).all()
    assert (found.centres()[0] <= 11).all()


def test_more_gaussians_approximate_better_and_scale_does_not_matter():
    weight = torch.randn(4, 8, 6, generator=torch.manual_seed(1), dtype=torch.float64)
    errors = [(fit_gaussians(weight, g).kernels(8, 6) - weight).norm().item() for g in (1, 3, 8)]
    assert errors == sorted(errors, reverse=True)
    small = fit_gaussians(weight * 1e-6, 3).kernels(8, 6) * 1e6
    torch.testing.assert_close(small, fit_gaussians(weight, 3).kernels(8, 6), rtol=1e-4, atol=1e-6)


def test_a_kernel_of_zeros_can_be_started_from(make):
    kernel = make().init_from(torch.zeros(3, 2, 6, 5))
    assert torch.isfinite(kernel.build_kernel()).all()
    assert kernel.build_kernel().abs().max() < 1e-12


# ------------------------------ life at the edges


def test_centres_stay_on_the_grid_and_keep_their_gradient():
    kernel = ParametricSTRF(F=6, T=5, C_in=1, C_out=4, num_gaussians=3)
    with torch.no_grad():
        kernel.P.uniform_(-40, 40)
    centres = kernel.centres()
    assert (centres >= 0).all()
    assert (centres[0] <= 5).all()
    assert (centres[1] <= 4).all()
    (slope,) = torch.autograd.grad(centres.sum(), kernel.P)
    assert (slope.abs() == 1).all()
    assert kernel.build_kernel().abs().flatten(1).max(dim=1).values.min() > 1e-3


def test_a_gaussian_pushed_out_comes_back():
    kernel = ParametricSTRF(F=9, T=7, C_in=1, C_out=1)
    goal = torch.zeros(1, 1, 9, 7)
    goal[0, 0, 6, 4] = 1.0
    with torch.no_grad():
        kernel.P.fill_(-3.0)  # three grid points outside
        kernel.weight.fill_(1.0)
        kernel.SIG.fill_(2.0)
    optimizer = torch.optim.Adam(kernel.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (kernel.build_kernel() - goal).square().sum().backward()
        optimizer.step()
    assert (kernel.centres().flatten() - torch.tensor([6.0, 4.0])).abs().max() < 0.2


@pytest.mark.parametrize(("bands", "frames"), [(1, 5), (5, 1), (1, 1)])
def test_one_band_or_one_frame(bands, frames):
    kernel = ParametricSTRF(F=bands, T=frames, C_in=1, C_out=2)
    assert kernel(torch.randn(1, 1, bands, frames + 3)).shape == (1, 2, 1, 4)
    kernel.init_from(torch.randn(2, 1, bands, frames))
    assert torch.isfinite(kernel.build_kernel()).all()


def test_gradients_reach_every_parameter(make):
    kernel = make()
    kernel(torch.randn(1, 2, 6, 12)).square().sum().backward()
    assert all(parameter.grad.abs().min() > 0 for parameter in kernel.parameters())


def test_gradcheck(make):
    kernel = make().double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in kernel.named_parameters()]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in kernel.parameters())
    call = lambda x, *values: torch.func.functional_call(kernel, dict(zip(names, values, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *values))


# ------------------------------ inside a model


@pytest.mark.parametrize(
    "kernel", [{"kernel": "separable", "rank": 2}, {"kernel": "parametric", "num_gaussians": 3}]
)
def test_saved_and_loaded(kernel, tmp_path):
    model = Linear(6, 5, 3, kernel=kernel).eval()
    loaded = NeuralModel.from_pretrained(model.save_pretrained(tmp_path))
    x = torch.randn(1, 1, 6, 20)
    assert torch.equal(loaded(x), model(x))
    assert loaded.STRFs().shape == (3, 6, 5)
    torch.testing.assert_close(copy.deepcopy(model).STRF_gradmap()[:, 0], model.STRFs(folded=True))


def test_bad_input(make):
    kernel = make()
    with pytest.raises(ValueError, match=r"kernel has shape .*\(3, 2, 6, 5\).* \(3, 2, 6, 4\)"):
        kernel.init_from(torch.zeros(3, 2, 6, 4))
    with pytest.raises(ValueError, match="not finite"):
        kernel.init_from(torch.full((3, 2, 6, 5), torch.nan))
    with pytest.raises(TypeError, match="must be a Tensor"):
        kernel.init_from([[1.0]])
    with pytest.raises(ValueError, match="F must be at least 1"):
        make(F=0)
    with pytest.raises(TypeError, match="C_out must be an integer"):
        make(C_out=1.5)


def test_bad_rank_and_name():
    with pytest.raises(ValueError, match=r"rank=6 is more than .* use rank=5 or less"):
        SeparableSTRF(**SIZES, rank=6)
    with pytest.raises(ValueError, match="num_gaussians must be at least 1"):
        ParametricSTRF(**SIZES, num_gaussians=0)
    with pytest.raises(ValueError, match="'parametric', 'separable'"):
        Linear(6, 5, 3, kernel={"kernel": "gauss"})
