"""Filters around events, and alignment with zeros moving in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.interpret.filter_statistics import align_filters, event_locked, shape_change

T, N, L, F = 60, 2, 4, 3


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((T + 10 * k, N, L, F)) for k in range(2)]


def test_means_are_those_of_a_loop(tmp_path) -> None:
    filters, events = clips(), [[5, 20, 58], [0, 33]]
    filters[1][30, 1] = np.nan
    np.save(tmp_path / "clip.npy", filters[1])
    locked = event_locked([torch.from_numpy(filters[0]), tmp_path / "clip.npy"], events, before=4, after=3)
    assert locked.offsets.tolist() == list(range(-4, 4))
    for place, offset in enumerate(range(-4, 4)):
        for neuron in range(N):
            found = [
                array[event + offset, neuron]
                for array, bins in zip(filters, events, strict=True)
                for event in bins
                if 0 <= event + offset < len(array)
            ]
            found = [one for one in found if np.isfinite(one).all()]
            assert locked.count[place, neuron] == len(found)
            np.testing.assert_allclose(locked.filters[place, neuron], np.mean(found, 0), atol=1e-12)
            for trace, values in (
                (locked.norm, [np.sqrt((one**2).sum()) for one in found]),
                (locked.excitation, [one[one > 0].sum() for one in found]),
                (locked.inhibition, [one[one < 0].sum() for one in found]),
            ):
                low, mean, high = trace[:, place, neuron].tolist()
                assert mean == pytest.approx(np.mean(values), abs=1e-12)
                assert min(values) - 1e-12 <= low <= mean <= high <= max(values) + 1e-12


def test_bands_hold_the_truth_as_often_as_they_say() -> None:
    held, rng = 0, np.random.default_rng(0)
    events = list(range(0, 400, 10))
    for _ in range(60):
        filters = np.zeros((400, 1, 1, 1))
        filters[events, 0, 0, 0] = 5 + rng.standard_normal(40)
        low, _, high = event_locked(filters, events, 0, 0, n_bootstrap=300).norm[:, 0, 0]
        held += int(low <= 5 <= high)
    assert 50 <= held <= 60


def test_illegal_events_are_told() -> None:
    filters = clips()
    with pytest.raises(ValueError, match=r"events must lie in 0 .. 59"):
        event_locked(filters[0], [60])
    with pytest.raises(ValueError, match="one sequence per clip, 2, got 1"):
        event_locked(filters, [[3]])
    with pytest.raises(ValueError, match="there is no event"):
        event_locked(filters, [[], []])
    with pytest.raises(ValueError, match="before must be"):
        event_locked(filters[0], [3], before=-1)
    with pytest.raises(ValueError, match="confidence must lie"):
        event_locked(filters[0], [3], confidence=1.0)
    with pytest.raises(ValueError, match="clips differ in filters"):
        event_locked([filters[0], filters[1][:, :1]], [[3], [3]])


def moved(pattern: torch.Tensor, shift: int) -> torch.Tensor:
    out = torch.zeros_like(pattern)
    for lag in range(len(pattern)):
        if 0 <= lag + shift < len(pattern):
            out[lag + shift] = pattern[lag]
    return out


def test_filters_that_only_move_are_one_shape_with_zeros_too() -> None:
    pattern = torch.zeros(12, 3, dtype=torch.float64)
    pattern[5:8] = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([0, 2, -3, 4, -5, 1, 0])
    filters = torch.stack([moved(pattern, int(shift)) for shift in shifts]).unsqueeze(1)
    (one,) = align_filters(filters, span=6, fill="zero")
    assert one.converged
    assert len(set((one.shifts + shifts).tolist())) == 1
    for got in one.filters:
        torch.testing.assert_close(got, one.filters[0])
    assert float(shape_change(filters, span=6, fill="zero")[0]) == pytest.approx(1.0, abs=1e-9)


def test_nothing_comes_back_at_the_other_end() -> None:
    """Aligned filters are the given ones moved by the shifts that are told, cut to the window."""
    draw = torch.Generator().manual_seed(2)
    filters = torch.randn(40, 1, 9, 3, dtype=torch.float64, generator=draw)
    (one,) = align_filters(filters, span=3, fill="zero")
    for given, got, shift in zip(filters[:, 0], one.filters, one.shifts.tolist(), strict=True):
        torch.testing.assert_close(got, moved(given, shift))
    assert int(one.shifts.abs().max()) <= 9 // 2 + 3 + 3
    with pytest.raises(ValueError, match="fill must be one of 'wrap', 'zero'"):
        align_filters(filters, fill="edge")
