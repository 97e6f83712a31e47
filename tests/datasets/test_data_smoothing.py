"""The Hanning kernel: gain, support, edges, missing bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepSTRF.dsp import hanning_smooth
from deepSTRF.dsp.smoothing import hanning_window  # inner: the weights of hanning_smooth

quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(st.floats(0.5, 300.0), st.floats(0.1, 100.0))
def test_gain_is_one_and_the_kernel_symmetric_at_every_bin_width(window, dt):
    weights = hanning_window(window, dt, dtype=torch.float64)
    assert len(weights) % 2 == 1
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(weights, weights.flip(0))
    assert float(weights.min()) > 0


@pytest.mark.parametrize(("dt", "length"), [(1.0, 21), (2.0, 11), (3.0, 7), (4.0, 5), (5.0, 5)])
def test_shape_is_numpys_hanning_of_the_nearest_odd_length(dt, length):
    reference = np.hanning(length)[1:-1]
    np.testing.assert_allclose(
        hanning_window(21.0, dt, torch.float64), reference / reference.sum(), rtol=1e-12
    )


def test_at_5_ms_the_published_shape_with_unit_gain():
    assert hanning_window(21.0, 5.0).tolist() == [0.25, 0.5, 0.25]


def test_at_10_ms_it_smooths():
    """Weakness 13: numpy.hanning(3) is (0, 1, 0), nothing was smoothed."""
    weights = hanning_window(21.0, 10.0, torch.float64)
    assert len(weights) == 3
    assert float(weights[0]) == pytest.approx(0.072, abs=5e-4)


@pytest.mark.parametrize("dt", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0])
def test_the_width_in_ms_hardly_depends_on_the_bin_width(dt):
    weights = hanning_window(21.0, dt, torch.float64).numpy()
    at = (np.arange(len(weights)) - len(weights) // 2) * dt
    sigma = np.sqrt((weights * at**2).sum())
    assert sigma == pytest.approx(21.0 * 0.18076, rel=0.26)  # the continuous window has 3.80 ms


def test_a_window_within_a_bin_changes_nothing():
    x = torch.rand(3, 9)
    out = hanning_smooth(x, 21.0, 25.0)
    assert torch.equal(out, x)
    assert out is not x


@quick
@given(st.integers(1, 40), st.sampled_from([1.0, 2.0, 5.0, 10.0]), st.floats(0, 0.9), st.integers(0, 5))
def test_constants_stay_constant_at_edges_and_gaps(n_bins, dt, share, seed):
    x = torch.full((2, n_bins), 3.0, dtype=torch.float64)
    hole = torch.rand(2, n_bins, generator=torch.Generator().manual_seed(seed)) < share
    x[hole] = torch.nan
    out = hanning_smooth(x, 21.0, dt)
    assert torch.equal(out.isnan(), hole)
    torch.testing.assert_close(out[~hole], torch.full_like(out[~hole], 3.0))


@quick
@given(st.integers(1, 60), st.sampled_from([1.0, 3.0, 5.0, 10.0]), st.integers(0, 9))
def test_against_a_plain_loop(n_bins, dt, seed):
    rng = np.random.default_rng(seed)
    x = rng.poisson(1.0, n_bins).astype(float)
    x[rng.random(n_bins) < 0.2] = np.nan
    weights = hanning_window(21.0, dt, torch.float64).numpy()
    half, expected = len(weights) // 2, np.full(n_bins, np.nan)
    for t in range(n_bins):
        if not np.isnan(x[t]):
            near = [
                (w, x[t + k])
                for k, w in zip(range(-half, half + 1), weights, strict=True)
                if 0 <= t + k < n_bins
            ]
            near = [(w, v) for w, v in near if not np.isnan(v)]
            expected[t] = sum(w * v for w, v in near) / sum(w for w, _ in near)
    out = hanning_smooth(torch.from_numpy(x), 21.0, dt)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_shape_and_source_are_kept(dtype):
    x = torch.rand(2, 3, 50, dtype=dtype)
    before = x.clone()
    out = hanning_smooth(x, 21.0, 5.0)
    assert out.dtype == dtype
    assert out.shape == x.shape
    assert torch.equal(x, before)


def test_integers_become_float32():
    out = hanning_smooth(torch.tensor([0, 4, 0]), 21.0, 5.0)
    assert out.dtype == torch.float32
    assert float(out[1]) == 2.0


def test_gradients_pass():
    x = torch.rand(1, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: hanning_smooth(v, 21.0, 5.0), x)


def test_all_missing_and_empty():
    assert hanning_smooth(torch.full((2, 4), torch.nan), 21.0, 5.0).isnan().all()
    assert hanning_smooth(torch.zeros(2, 0), 21.0, 5.0).shape == (2, 0)


@pytest.mark.parametrize(("window", "dt"), [(0, 5), (-1, 5), (21, 0), (21, float("nan")), ("21", 5)])
def test_bad_widths(window, dt):
    with pytest.raises(ValueError, match="positive number of milliseconds"):
        hanning_smooth(torch.zeros(3), window, dt)


def test_numpy_arrays_are_refused_with_the_mend():
    with pytest.raises(TypeError, match="as_tensor"):
        hanning_smooth(np.zeros(3), 21.0, 5.0)
