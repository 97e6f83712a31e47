"""Per-channel energy normalisation against a plain float64 loop, and its three starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepSTRF.dsp import pcen
from deepSTRF.dsp.pcen import (  # inner: parts of the front-ends
    PCEN_STARTS,
    pcen_initial_state,
    smooth_cube_root,
)


def plain_pcen(
    energy: np.ndarray, decay: np.ndarray, alpha: np.ndarray, delta: np.ndarray, root: np.ndarray, start: str
) -> np.ndarray:
    """(F, T): the published formula, frame by frame, with extended precision where it cancels."""
    a = np.exp(-decay)
    out = np.zeros(energy.shape, dtype=np.longdouble)
    memory = (
        energy[:, 0].astype(np.longdouble) if start == "first" else np.zeros(len(energy), dtype=np.longdouble)
    )
    for t in range(energy.shape[1]):
        memory = a * memory + (1 - a) * energy[:, t]
        mean = memory / (1 - a.astype(np.longdouble) ** (t + 1)) if start == "debiased" else memory
        gained = energy[:, t] / (1e-6 + mean) ** alpha
        out[:, t] = (gained + delta) ** root - delta.astype(np.longdouble) ** root
    return out.astype(np.float64)


def bands(n_bands: int = 4, n_frames: int = 120) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(0)
    energy = generator.gamma(1.0, 1.0, (n_bands, n_frames)) * np.array([1e-7, 1e-3, 1.0, 1e3])[:, None]
    decay = np.array([0.01, 0.04, 0.2, 1.0])
    alpha, delta = np.array([0.96, 0.5, 0.99, 0.8]), np.array([2.0, 0.1, 10.0, 1.0])
    return energy, decay, alpha, delta, np.array([0.5, 0.2, 0.9, 0.1])


@pytest.mark.parametrize("start", PCEN_STARTS)
def test_agrees_with_the_plain_formula(start: str) -> None:
    energy, *values = bands()
    expected = plain_pcen(energy, *values, start=start)
    out, _ = pcen(torch.from_numpy(energy)[None], *map(torch.from_numpy, values), start=start)
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=1e-9)
    single, _ = pcen(
        torch.from_numpy(energy)[None].float(), *(torch.from_numpy(v).float() for v in values), start=start
    )
    np.testing.assert_allclose(single[0].numpy(), expected, rtol=2e-4)


def test_quiet_sound_keeps_its_digits_in_float32() -> None:
    energy = torch.full((1, 1, 3), 1e-8)
    out, _ = pcen(energy, 0.04, 0.0, 2.0, 0.5)
    torch.testing.assert_close(out, torch.full((1, 1, 3), 1e-8 * 0.5 * 2**-0.5), rtol=1e-5, atol=0)


def test_starts() -> None:
    steady = torch.ones(1, 1, 400)
    limit = float((3**0.5) - 2**0.5)
    for start in ("debiased", "first"):
        out, _ = pcen(steady, 0.04, 1.0, 2.0, 0.5, start=start)
        torch.testing.assert_close(out, torch.full_like(out, limit), rtol=1e-4, atol=0)
    out, _ = pcen(steady, 0.04, 1.0, 2.0, 0.5, start="zero")
    assert float(out[0, 0, 0]) > 5 * limit  # the onset that the old start made of every clip
    assert float(out[0, 0, -1]) == pytest.approx(limit, rel=1e-4)


def test_debiased_start_makes_no_onset_after_silence_at_the_first_frame() -> None:
    out, _ = pcen(torch.full((1, 1, 50), 3.0), 0.04, 0.96, 2.0, 0.5)
    assert float(out.max() - out.min()) < 1e-4


def test_the_memory_does_not_depend_on_the_bin_width() -> None:
    seconds = torch.arange(0, 4.0, 0.005, dtype=torch.float64)
    slow = (2.0 + torch.sin(2 * math.pi * 0.7 * seconds)).reshape(1, 1, -1)
    coarse = slow.reshape(1, 1, -1, 2).mean(-1)
    fine, _ = pcen(slow, 5.0 / 200.0, 0.98, 2.0, 0.5)
    wide, _ = pcen(coarse, 10.0 / 200.0, 0.98, 2.0, 0.5)
    torch.testing.assert_close(
        fine.reshape(1, 1, -1, 2).mean(-1)[..., 50:], wide[..., 50:], rtol=5e-3, atol=0
    )


@pytest.mark.parametrize("start", PCEN_STARTS)
@pytest.mark.parametrize("cuts", [[1] * 30, [29, 1], [4, 26]])
def test_streams(start: str, cuts: list[int]) -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        energy = torch.rand(2, 3, 30, dtype=dtype) + 0.1
        decay = torch.tensor([0.001, 0.05, 2.0], dtype=dtype)
        whole, _ = pcen(energy, decay, 0.96, 2.0, 0.5, start=start)
        state, pieces = pcen_initial_state(2, 3, start=start, dtype=dtype), []
        for chunk in energy.split(cuts, -1):
            piece, state = pcen(chunk, decay, 0.96, 2.0, 0.5, start=start, state=state)
            pieces.append(piece)
        scale = float(whole.abs().max())
        assert (
            float((torch.cat(pieces, -1) - whole).abs().max())
            < max(tolerance, 20 * torch.finfo(dtype).eps) * scale
        )


@pytest.mark.parametrize("start", PCEN_STARTS)
def test_finite_gradients_for_silence_and_extremes(start: str) -> None:
    for scale in (0.0, 1e-30, 1e-8, 1.0, 1e8):
        energy = (torch.rand(1, 2, 20) * scale).requires_grad_()
        values = [torch.tensor([v, v], requires_grad=True) for v in (0.04, 0.96, 2.0, 0.5)]
        out, _ = pcen(energy, *values, start=start)
        out.sum().backward()
        assert bool(torch.isfinite(out).all())
        assert all(bool(torch.isfinite(t.grad).all()) for t in (energy, *values))


def test_gradients_agree_with_differences() -> None:
    energy = (torch.rand(1, 2, 9, dtype=torch.float64) + 0.2).requires_grad_()
    values = [
        torch.tensor([v, 1.5 * v], dtype=torch.float64, requires_grad=True) for v in (0.3, 0.5, 1.0, 0.4)
    ]
    assert torch.autograd.gradcheck(lambda *a: pcen(*a)[0], (energy, *values))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="debiased"):
        pcen_initial_state(1, 1, start="ones")
    with pytest.raises(ValueError, match="B, F, T"):
        pcen(torch.ones(3, 4), 0.1, 1.0, 1.0, 0.5)


def test_the_smooth_cube_root_is_zero_at_zero_with_a_finite_slope() -> None:
    energy = torch.tensor([0.0, 1e-3, 8.0], requires_grad=True)
    root = smooth_cube_root(energy)
    assert root[0] == 0
    torch.testing.assert_close(root.detach(), torch.tensor([0.0, 0.1, 2.0]), rtol=1e-4, atol=0)
    assert bool(torch.isfinite(torch.autograd.grad(root.sum(), energy)[0]).all())
