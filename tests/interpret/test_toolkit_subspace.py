"""Active subspaces and tuning surfaces: neurons whose dimensions are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.interpret import dstrf
from deepSTRF.interpret.dstrf import FileSink
from deepSTRF.interpret.filter_statistics import active_subspace, tuning_surface
from deepSTRF.models.audio import Linear

L, F, T = 6, 5, 900


class Neurons(nn.Module):
    """``nonlinearity`` of the projections (B, K, T) on K kernels (K, L, F)."""

    receptive_field = L

    def __init__(self, kernels: torch.Tensor, nonlinearity) -> None:
        super().__init__()
        self.register_buffer("kernels", kernels.transpose(1, 2).contiguous())
        self.nonlinearity = nonlinearity

    def forward(self, x):
        z = functional.conv1d(functional.pad(x[:, 0], (L - 1, 0)), self.kernels)
        return self.nonlinearity(z).unsqueeze(2)


def quadrature() -> torch.Tensor:
    """Two orthogonal filters of norm 1, a quarter of a period apart."""
    lag, band = torch.meshgrid(torch.arange(L).double(), torch.arange(F).double(), indexing="ij")
    phase = 2 * torch.pi * (lag / L + band / F)
    pair = torch.stack([torch.cos(phase), torch.sin(phase)])
    return pair / pair.flatten(1).norm(dim=1).view(2, 1, 1)


def energy() -> Neurons:
    return Neurons(quadrature(), lambda z: z.square().sum(1, keepdim=True))


def sound(seed: int = 0, frames: int = T) -> torch.Tensor:
    return torch.randn(F, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_an_ln_neuron_has_one_dimension_its_strf_and_its_curve_is_its_nonlinearity() -> None:
    strf = torch.randn(1, L, F, dtype=torch.float64)
    strf /= strf.norm()
    model = Neurons(strf, lambda z: functional.softplus(3 * z))
    result = dstrf(model, sound(), edge="drop")
    found = active_subspace(result, 2)
    assert float(found.share[0, 0]) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(found.directions[0, 0], strf[0], atol=1e-6, rtol=0)
    curve = tuning_surface(found, sound(), result, dimensions=0, n_bins=30, coverage=1.0)
    centres = (curve.edges[0, 0, 1:] + curve.edges[0, 0, :-1]) / 2
    wanted = functional.softplus(3 * centres)
    full = curve.count[0] > 10
    torch.testing.assert_close(curve.mean[0, full], wanted[full], atol=0.1, rtol=0)  # half a bin of slope 3
    assert float(curve.explained) > 0.99
    assert int(curve.count.sum()) == len(result.times)


def test_a_linear_neuron_has_no_second_direction() -> None:
    model = Linear(F, L, 2, norm="none").double()
    found = active_subspace(dstrf(model, sound(), edge="drop"), 2)
    assert torch.isnan(found.directions[:, 1]).all()
    assert found.share[:, 0].tolist() == [1.0, 1.0]
    centred = active_subspace(dstrf(model, sound(), edge="drop"), 1, centred=True)
    assert torch.isnan(centred.directions).all(), "a linear neuron has no directions of change"


def test_an_energy_neuron_has_two_that_span_its_filters_and_its_surface_is_the_squared_radius() -> None:
    result = dstrf(energy(), sound(), edge="drop")
    found = active_subspace(result, 3)
    assert float(found.share[0, :2].sum()) == pytest.approx(1.0, abs=1e-9)
    assert torch.isnan(found.directions[0, 2]).all()
    plane, pair = found.directions[0, :2].flatten(1), quadrature().flatten(1)
    torch.testing.assert_close(plane.T @ plane @ pair.T, pair.T, atol=1e-9, rtol=0)
    # 4 z z^T with z of unit variance: eigenvalues near 4
    torch.testing.assert_close(found.eigenvalues[0, :2], torch.tensor([4.0, 4.0]).double(), atol=0.8, rtol=0)
    surface = tuning_surface(found, sound(), result, n_bins=10)
    x, y = ((e[1:] + e[:-1]) / 2 for e in surface.edges[0])
    radius = x.square().unsqueeze(1) + y.square()
    full = surface.count[0] >= 3
    assert int(full.sum()) > 40
    assert np.corrcoef(surface.mean[0][full], radius[full])[0, 1] > 0.98
    torch.testing.assert_close(surface.mean[0][full], radius[full], atol=1.2, rtol=0)
    assert torch.isnan(surface.mean[0][surface.count[0] == 0]).all()
    alone = tuning_surface(found, sound(), result, dimensions=0, n_bins=10)
    assert float(alone.explained) < 0.8 < 0.9 < float(surface.explained)


def test_eigenvectors_are_those_of_the_mean_outer_product_whichever_side_is_smaller() -> None:
    filters = torch.randn(20, 2, L, F, dtype=torch.float64)
    rows = filters[:, 1].flatten(1).numpy()
    values, vectors = np.linalg.eigh(rows.T @ rows / 20)
    few = active_subspace(filters, 3)
    many = active_subspace(torch.cat([filters] * 2), 3)
    for found in (few, many):
        np.testing.assert_allclose(found.eigenvalues[1, :20], values[::-1][:20], atol=1e-12)
        overlap = found.directions[1].flatten(1).numpy() @ vectors[:, ::-1][:, :3]
        np.testing.assert_allclose(np.abs(overlap), np.eye(3), atol=1e-9)
        assert bool((found.directions[1].flatten(1) @ filters[:, 1].mean(0).flatten() > 0).all())
    torch.testing.assert_close(few.directions, many.directions, atol=1e-9, rtol=0)
    assert few.eigenvalues.shape == (2, 20)
    assert many.eigenvalues.shape == (2, 30)
    centred = active_subspace(filters, 1, centred=True)
    wanted = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[-1]
    assert float(centred.eigenvalues[1, 0]) == pytest.approx(wanted)


def test_clips_add_up_files_are_read_and_broken_bins_counted(tmp_path) -> None:
    model, clips = energy(), [sound(1, 200), sound(2, 150)]
    results = [dstrf(model, clip, edge="drop") for clip in clips]
    paths = [
        dstrf(model, c, edge="drop", sink=FileSink(tmp_path / f"{i}.npy")).weights
        for i, c in enumerate(clips)
    ]
    whole = active_subspace(torch.cat([r.weights for r in results]))
    for given in (results, paths):
        torch.testing.assert_close(active_subspace(given).directions, whole.directions)
    broken = results[0].weights.clone()
    broken[17, 0, 2, 2] = torch.nan
    found = active_subspace([broken, results[1]])
    assert found.excluded.tolist() == [1]
    assert found.count.tolist() == [339]  # five frames are cut off each clip
    rest = active_subspace(torch.cat([broken[:17], broken[18:], results[1].weights]))
    torch.testing.assert_close(found.directions, rest.directions)

    rates = [dstrf(model, clip).response.clone() for clip in clips]
    rates[0][50:60] = torch.nan
    surface = tuning_surface(whole, clips, rates)
    assert surface.excluded.tolist() == [10 + 2 * (L - 1)], "NaN responses, and windows from before a clip"
    assert int(surface.count.sum()) + int(surface.outside) + int(surface.excluded) == 350
    some = dstrf(model, clips[0], times=[40, 80, 120])
    assert int(tuning_surface(whole, clips[0], some, coverage=1.0).count.sum()) == 3


def test_a_silent_neuron_is_nan() -> None:
    found = active_subspace(torch.zeros(10, 1, L, F))
    assert torch.isnan(found.directions).all()
    assert torch.isnan(found.share).all()
    assert not found.eigenvalues.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimensions": (0, 2)}, "dimensions must lie in 0 .. 1"),
        ({"dimensions": (0, 0)}, "one or two different"),
        ({"coverage": 0.0}, "coverage must be above 0"),
        ({"response": torch.zeros(1, T)}, "passed as rates.T"),
        ({"stimulus": torch.zeros(F + 1, T)}, "with the 5 bands"),
        ({"stimulus": [sound(), sound()]}, "one response per clip: 2 clips and 1"),
        ({"stimulus": torch.zeros(F, L - 1), "response": torch.zeros(L - 1, 1)}, "nothing to average"),
        ({"subspace": torch.zeros(2, L, F)}, "subspace must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, message) -> None:
    given = {"subspace": torch.ones(1, 2, L, F), "stimulus": sound(), "response": torch.zeros(T, 1)}
    with pytest.raises(ValueError, match=message):
        tuning_surface(**{**given, **change})


def test_refusals_of_subspaces() -> None:
    with pytest.raises(ValueError, match="n_dimensions must be at most 4"):
        active_subspace(torch.zeros(4, 1, L, F), 5)
    with pytest.raises(ValueError, match="clips differ in filters"):
        active_subspace([torch.zeros(4, 1, L, F), torch.zeros(4, 2, L, F)])
    with pytest.raises(ValueError, match="there is no clip"):
        active_subspace([])
