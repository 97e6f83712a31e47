"""Statistics of changing filters: their definitions, ensembles whose truth is known, and broken data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.interpret.dstrf import dstrf, switches
from deepSTRF.interpret.filter_statistics import (
    align_filters,
    complexity,
    find_shifts,
    gain_change,
    gain_variation,
    hold_statistics,
    nonlinearities,
    shape_change,
    singular_spectrum,
    temporal_hold,
)
from deepSTRF.interpret.filter_statistics.temporal_hold import _tested  # inner: tested by itself
from deepSTRF.models.audio import Linear

T, L, F = 240, 30, 6


def blob(lag: int, band: int) -> torch.Tensor:
    """An event of three lags and one band, of norm 1, at ``lag`` bins before now."""
    pattern = torch.zeros(L, F, dtype=torch.float64)
    pattern[L - 2 - lag : L + 1 - lag, band] = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
    return pattern / pattern.norm()


def ensemble(kind: str, held: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if kind == "linear":
        filters = [blob(6, 2)] * T
    elif kind == "gain":
        gains = 0.5 + torch.rand(T, generator=draw).double()
        filters = [gain * blob(6, 2) for gain in gains]
    elif kind == "hold":
        # from one event to the next the lag jumps so far that neither standing still nor following finds it
        starts = (2, 2 + held + 5)
        filters = [blob(starts[t // (held + 1) % 2] + t % (held + 1), 2) for t in range(T)]
    else:  # other bands at the same lag, in no order
        filters = [blob(6, int(band)) for band in torch.randint(F, (T,), generator=draw)]
    return torch.stack(filters).unsqueeze(1)


# ---------------------------------------------------------------------- 4, 5: known truth


@pytest.mark.parametrize(
    ("kind", "gain", "hold", "shape"),
    [
        ("linear", False, 0, False),
        ("gain", True, 0, False),
        ("hold", False, 4, False),
        ("shape", False, 0, True),
    ],
)
def test_each_kind_of_change_moves_its_own_statistic_alone(kind, gain, hold, shape) -> None:
    table = nonlinearities(ensemble(kind), "mean", max_delay=9, corrected=True)
    assert (float(table["gain change"][0]) > 0.1) == gain
    assert float(table["temporal hold"][0]) == hold
    assert float(table["temporal hold (blocks)"][0]) == hold
    assert (float(table["shape change"][0]) > 2.0) == shape
    if not gain:
        assert float(table["gain change"][0]) < 1e-12
        assert float(table["gain variation"][0]) < 1e-12
    if not shape:
        assert float(table["shape change"][0]) == pytest.approx(1.0, abs=1e-9)
    assert (float(table["complexity"][0]) > 1.5) == (kind in ("hold", "shape"))


@pytest.mark.parametrize("held", [1, 3, 7])
def test_an_event_held_for_n_bins_has_a_hold_of_n(held: int) -> None:
    assert temporal_hold(ensemble("hold", held), max_delay=9).tolist() == [held]
    assert hold_statistics(ensemble("hold", held), max_delay=9).hold.tolist() == [held]


def test_a_linear_model_has_nothing_of_it() -> None:
    torch.manual_seed(0)
    model = Linear(F, 8, 3).double()
    result = dstrf(model, torch.randn(F, 150, dtype=torch.float64), edge="drop")
    table = nonlinearities(result, "mean")
    torch.testing.assert_close(table["complexity"], torch.ones(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(table["gain change"], torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert table["temporal hold"].tolist() == [0, 0, 0]
    torch.testing.assert_close(table["shape change"], torch.ones(3).double(), atol=1e-9, rtol=0)


# ---------------------------------------------------------------------- definitions, written out


def random_filters(n: int = 2, bins: int = 60) -> torch.Tensor:
    """Smooth in time, so that shifts and holds mean something."""
    noise = torch.randn(bins + 6, n, L, F, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return sum(noise[k : k + bins] for k in range(6))


def test_complexity_is_the_nuclear_norm_over_the_spectral_norm() -> None:
    filters = random_filters()
    for n in range(2):
        s = np.linalg.svd(filters[:, n].flatten(1).numpy(), compute_uv=False)
        assert float(complexity(filters)[n]) == pytest.approx(s.sum() / s[0], rel=1e-9)
        spectrum = singular_spectrum(filters)
        share = s / s.sum()
        assert float(spectrum.effective_rank[n]) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert float(spectrum.participation_ratio[n]) == pytest.approx((s**2).sum() ** 2 / (s**4).sum())
    assert complexity(filters, centred=True).tolist() != complexity(filters).tolist()


def test_gain_change_is_the_spread_of_the_norm() -> None:
    filters = random_filters()
    norms = np.sqrt((filters.numpy() ** 2).sum((2, 3)))
    np.testing.assert_allclose(gain_change(filters), norms.std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(gain_variation(filters), norms.std(0, ddof=1) / norms.mean(0), rtol=1e-12)


def test_temporal_hold_as_it_is_written() -> None:
    filters, ahead = random_filters(), 7
    statistics = hold_statistics(filters, ahead, null="wilcoxon")
    for n in range(2):
        padded = functional.pad(filters[:, n], (0, 0, 0, ahead)).numpy()
        for delay in range(1, ahead + 1):
            now, later = padded[: 60 - ahead], padded[delay : 60 - ahead + delay]
            moved = np.roll(later, delay, axis=1)
            r0, r1 = (
                [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(now, other, strict=True)]
                for other in (later, moved)
            )
            wanted = scipy.stats.wilcoxon(r0, r1, alternative="less").pvalue
            assert float(statistics.p_value[delay - 1, n]) == pytest.approx(wanted, rel=1e-6)
            assert float(statistics.effect[delay - 1, n]) == pytest.approx(
                np.median(np.subtract(r1, r0)), rel=1e-9
            )


def brute_shifts(filters: np.ndarray, reference: np.ndarray, farthest: int) -> list[int]:
    """Every shifted copy, and Pearson's r of each."""
    found = []
    for one in filters:
        r = [
            np.corrcoef(np.roll(one, k, axis=0).ravel(), reference.ravel())[0, 1]
            for k in range(-farthest, farthest + 1)
        ]
        found.append(int(np.argmax(r)) - farthest)
    return found


@pytest.mark.parametrize("length", [20, 21])
def test_shifts_equal_brute_force(length: int) -> None:
    draw = torch.Generator().manual_seed(2)
    filters = torch.randn(40, length, F, dtype=torch.float64, generator=draw)
    reference = filters.mean(0)
    for farthest in (3, 9):
        assert find_shifts(filters, reference, farthest).tolist() == brute_shifts(
            filters.numpy(), reference.numpy(), farthest
        )
    assert find_shifts(torch.ones(2, length, F), reference.float(), 4).tolist() == [0, 0]


def brute_alignment(filters: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """The rounds as they are written."""
    lags = filters.shape[1]
    x = np.pad(filters, ((0, 0), (room, room), (0, 0)))
    length = x.shape[1]
    for rounds in range(1, 101):  # noqa: B007
        steps = brute_shifts(x, x.mean(0), lags // 2 + room)
        x = np.stack([np.roll(one, k, axis=0) for one, k in zip(x, steps, strict=True)])
        profile = np.abs(x).mean((0, 2))
        smooth = [np.mean([profile[(i + k) % length] for k in range(-4, 5)]) for i in range(length)]
        x = np.roll(x, length // 2 - int(np.argmax(smooth)), axis=1)
        if not any(steps):
            break
    common = sorted(range(-room, room + 1), key=abs)
    profile = np.abs(x).mean((0, 2))
    best = max(common, key=lambda c: np.roll(profile, c)[room : room + lags].sum())
    return np.roll(x, best, axis=1)[:, room : room + lags], rounds


def test_alignment_and_shape_change_as_they_are_written() -> None:
    filters = random_filters(1, 40)
    wanted, rounds = brute_alignment(filters[:, 0].numpy(), 6)
    (found,) = align_filters(filters, span=6)
    assert found.iterations == rounds
    assert found.converged == (rounds < 100)
    np.testing.assert_allclose(found.filters, wanted, atol=1e-12)
    s = np.linalg.svd(wanted.reshape(40, -1), compute_uv=False)
    assert float(shape_change(filters, span=6)[0]) == pytest.approx(s.sum() / s[0], rel=1e-9)


def test_shifts_tell_how_filters_were_moved() -> None:
    filters = ensemble("hold")
    (found,) = align_filters(filters, span=9)
    moved = [one.roll(int(k), 0) for one, k in zip(filters[:, 0], found.shifts, strict=True)]
    torch.testing.assert_close(torch.stack(moved), found.filters, atol=0, rtol=0)


# ---------------------------------------------------------------------- what the published test does not see


def test_the_block_null_is_not_fooled_by_smooth_noise() -> None:
    """A gain by following that drifts slowly around zero: its bins are not independent."""
    false_alarms = {"wilcoxon": 0, "blocks": 0}
    for seed in range(30):
        draw = np.random.default_rng(seed)
        drift = np.convolve(draw.normal(size=400 + 60), np.hanning(61), "valid")  # r1 - r0, without a mean
        for null in false_alarms:
            false_alarms[null] += _tested(0.1 * drift, null, seed)[0] < 0.01
    assert false_alarms["wilcoxon"] >= 6
    assert false_alarms["blocks"] <= 3


def test_broken_bins_are_left_out_and_counted() -> None:
    whole = torch.cat([ensemble("hold"), ensemble("gain")], dim=1)
    broken = whole.clone()
    broken[17, 0, 3, 2] = torch.nan
    spectrum = singular_spectrum(broken)
    assert spectrum.excluded.tolist() == [1, 0]
    rest = torch.cat([whole[:17], whole[18:]])
    torch.testing.assert_close(spectrum.complexity[0], complexity(rest)[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(gain_change(broken)[1], gain_change(whole)[1])
    statistics = hold_statistics(broken, 9)
    assert statistics.hold.tolist() == [4, 0]
    assert statistics.excluded[0].tolist() == [2, 0]
    assert align_filters(broken, span=9)[0].excluded == 1


def test_a_neuron_of_zeros_is_nan_not_a_maximum() -> None:
    table = nonlinearities(torch.zeros(60, 1, L, F))
    assert all(torch.isnan(table[name]).all() for name in ("complexity", "temporal hold", "shape change"))
    assert table["gain change"].tolist() == [[0.0]]
    assert torch.isnan(gain_variation(torch.zeros(5, 1, 2, 2))).all()


def test_files_clips_and_reductions(tmp_path) -> None:
    clips = [ensemble("hold"), ensemble("gain"), torch.zeros(60, 1, L, F)]
    np.save(tmp_path / "hold.npy", clips[0].numpy().astype(np.float16))
    table = nonlinearities([tmp_path / "hold.npy", clips[1].numpy(), clips[2]], max_delay=9)
    assert table["temporal hold"].shape == (1, 3)
    assert table["temporal hold"][0, :2].tolist() == [4, 0]
    every = nonlinearities([*clips, clips[0]], "median", max_delay=9)
    assert every["temporal hold"].tolist() == [4]
    with pytest.raises(ValueError, match="reduction must be one of"):
        nonlinearities(clips, "sum")
    with pytest.raises(ValueError, match="clips differ in neurons"):
        nonlinearities([clips[0], torch.cat([clips[0]] * 2, dim=1)], max_delay=9)
    with pytest.raises(ValueError, match=r"dstrfs must be \(T, N, L, F\)"):
        complexity(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="of several sinks pass one"):
        complexity([torch.zeros(1, 1, 1, 1)])
    with pytest.raises(ValueError, match="too few for a max_delay of 20"):
        temporal_hold(torch.zeros(10, 1, L, F))


# ---------------------------------------------------------------------- switches


class Net(nn.Module):
    receptive_field = 5

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(F, 4, 3), nn.Conv1d(4, 3, 3)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x):
        self.h = self.first(functional.pad(x[:, 0], (4, 0)))
        self.g = self.second(torch.relu(self.h))
        return self.act(self.g).unsqueeze(2)


def test_switches_are_changes_of_side() -> None:
    net, x = Net(), torch.randn(F, 50)
    found = switches(net, x)
    with torch.no_grad():
        net(x.view(1, 1, F, -1))
    sides = torch.cat([net.h[0, :, 2:], net.g[0]]) > 0
    assert found.units == 7
    assert found.per_step.tolist() == (sides[:, 1:] != sides[:, :-1]).sum(0).tolist()
    assert found.mean == pytest.approx(float(found.per_step.float().mean()))
    with pytest.raises(ValueError, match="nothing switches"):
        switches(Linear(F, 3), x)
