"""Ceilings: half-splits, power, trial-to-trial correlation, intervals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.metrics import ceiling, compute_CCmax, compute_TTRC, corrcoef, normalized_corrcoef
from deepSTRF.metrics._statistics import RepeatSummary, valid_samples

# inner: the splits that compute_CCmax averages, and what reads a recording clip by clip
from deepSTRF.metrics.ceilings import CeilingBootstrap, RepeatGroups, half_splits


@pytest.mark.parametrize("n_repeats", [2, 3, 4, 5, 6])
def test_ccmax_equals_every_split_enumerated(n_repeats: int, ref: Any) -> None:
    signal = torch.randn(6, 1, 40, dtype=torch.float64)
    responses = signal + torch.randn(6, n_repeats, 40, dtype=torch.float64)
    expected = [ref.half_split_ceiling(row) for row in responses.numpy()]
    np.testing.assert_allclose(compute_CCmax(responses).numpy(), expected, rtol=1e-10)


def test_ccmax_with_ragged_missing_and_silent_repeats(ref: Any) -> None:
    responses = torch.randn(5, 1, 40, dtype=torch.float64) + torch.randn(5, 5, 40, dtype=torch.float64)
    responses[0, 3, 20:] = torch.nan  # ended early
    responses[1, 4] = torch.nan  # one repeat fewer
    responses[2, 0] = 0.0  # a silent trial
    responses[3, :, ::3] = torch.nan  # bins missing everywhere
    responses[4][torch.rand(5, 40) < 0.2] = torch.nan
    expected = [ref.half_split_ceiling(row) for row in responses.numpy()]
    np.testing.assert_allclose(compute_CCmax(responses).numpy(), expected, rtol=1e-10)


def test_random_splits_are_random_halves_that_use_every_repeat() -> None:
    for n_repeats in (9, 20, 21):
        splits = half_splits(n_repeats, 126, 0)
        half = n_repeats // 2
        assert splits.first.shape == (126, n_repeats)
        assert ((splits.first > 0).sum(1) == half).all()
        assert ((splits.second > 0).sum(1) == half).all()
        assert not ((splits.first > 0) & (splits.second > 0)).any()
        used = (splits.first > 0).sum(0)
        assert (used > 0).all()
        assert (used < 126).all()
        assert torch.equal(splits.first, half_splits(n_repeats, 126, 0).first)
        assert not torch.equal(splits.first, half_splits(n_repeats, 126, 1).first)


def test_all_splits_are_used_when_there_are_few() -> None:
    for n_repeats, distinct in ((2, 1), (3, 3), (4, 3), (5, 15), (6, 10), (10, 126)):
        splits = half_splits(n_repeats, 126, 0)
        halves = {
            tuple(sorted((tuple(a), tuple(b))))
            for a, b in zip(splits.first.tolist(), splits.second.tolist(), strict=True)
        }
        assert len(halves) == distinct
        assert splits.n_used % distinct == 0


def test_fewer_splits_than_distinct_ones() -> None:
    responses = torch.randn(2, 1, 300) + 0.1 * torch.randn(2, 6, 300)
    torch.testing.assert_close(
        compute_CCmax(responses, n_splits=3), compute_CCmax(responses), rtol=1e-2, atol=1e-2
    )
    with pytest.raises(ValueError, match="n_splits"):
        compute_CCmax(responses, n_splits=0)


def test_ccmax_edge_cases() -> None:
    assert compute_CCmax(torch.rand(2, 1, 30)).tolist() == [1.0, 1.0]
    single = torch.rand(1, 3, 30)
    single[0, 1:] = torch.nan
    assert compute_CCmax(single).tolist() == [1.0]
    assert torch.isnan(compute_CCmax(torch.zeros(1, 4, 30))).all()
    assert torch.isnan(compute_CCmax(torch.full((1, 4, 30), torch.nan))).all()
    opposed = torch.tensor([[[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]])
    assert torch.isnan(compute_CCmax(opposed)).all()
    assert compute_CCmax(torch.rand(0, 4, 30)).shape == (0,)
    with pytest.raises(ValueError, match=r"\(B, R, T\)"):
        compute_CCmax(torch.rand(4, 30))
    with pytest.raises(ValueError, match=r"\(B, R, T\)"):
        compute_TTRC(torch.rand(1, 2, 4, 30))


@pytest.mark.parametrize("n_repeats", [3, 7, 20, 31])
def test_ccmax_finds_the_true_ceiling(n_repeats: int) -> None:
    signal = torch.randn(60, 1, 2000)
    responses = signal + 2.0 * torch.randn(60, n_repeats, 2000)
    truth = math.sqrt(1 / (1 + 4.0 / n_repeats))
    assert compute_CCmax(responses).mean().item() == pytest.approx(truth, abs=0.003)


def test_ccmax_is_scale_free() -> None:
    responses = torch.randn(3, 1, 50, dtype=torch.float64) + torch.randn(3, 9, 50, dtype=torch.float64)
    for scale, shift in ((1e-8, 0.0), (1e8, 1e9), (1.0, 1e6)):
        torch.testing.assert_close(
            compute_CCmax(scale * responses + shift), compute_CCmax(responses), rtol=1e-6, atol=0
        )


def test_ttrc_against_pairs(ref: Any) -> None:
    responses = torch.randn(4, 1, 40, dtype=torch.float64) + torch.randn(4, 5, 40, dtype=torch.float64)
    responses[1, 2, 15:] = torch.nan
    responses[2, 3:] = torch.nan
    responses[3, 0] = 4.0  # constant: its pairs count as 0
    expected = []
    for row in responses.numpy():
        values = [ref.correlation(row[r][c], row[s][c]) for r, s, c in ref.pairs_of(row)]
        expected.append(np.mean([0.0 if np.isnan(v) else v for v in values]))
    np.testing.assert_allclose(compute_TTRC(responses).numpy(), expected, rtol=1e-10)
    assert compute_TTRC(torch.rand(2, 1, 9)).tolist() == [1.0, 1.0]
    assert torch.isnan(compute_TTRC(torch.zeros(1, 3, 9))).all()
    assert torch.isnan(compute_TTRC(torch.full((1, 3, 9), torch.nan))).all()


@pytest.mark.parametrize("centring", ["concat", "clip"])
@pytest.mark.parametrize("method", ["power", "split"])
def test_ceiling_finds_the_truth(method: str, centring: str) -> None:
    signal = torch.randn(6, 40, 1, 500) + torch.randn(6, 40, 1, 1)
    responses = signal + 2.0 * torch.randn(6, 40, 8, 500)
    if centring == "clip":
        truth = torch.full((40,), math.sqrt(1 / (1 + 4.0 / 8)), dtype=torch.float64)
    else:
        power = signal[:, :, 0].transpose(0, 1).flatten(1).var(1).double()
        truth = (power / (power + 4.0 / 8)).sqrt()
    found = ceiling(responses, method=method, centring=centring, n_bootstrap=200)
    assert (found.value - truth).abs().mean() < 0.01
    inside = (found.low <= truth) & (truth <= found.high)
    assert inside.double().mean() > 0.9
    assert ((found.low <= found.value) & (found.value <= found.high)).double().mean() > 0.9


def test_repeats_alone_cover_the_truth_of_these_clips() -> None:
    signal = torch.randn(8, 150, 1, 300)
    responses = signal + 3.0 * torch.randn(8, 150, 12, 300)
    signal_power = signal[:, :, 0].var(-1).mean(0).double()
    truth = (signal_power / (signal_power + 9.0 / 12)).sqrt()
    found = ceiling(responses, centring="clip", resample="repeats")
    coverage = ((found.low <= truth) & (truth <= found.high)).double().mean().item()
    assert 0.85 <= coverage <= 0.99


def test_ceiling_is_one_without_noise_whatever_is_missing() -> None:
    signal = torch.randn(4, 3, 1, 50, dtype=torch.float64) + 5 * torch.randn(4, 3, 1, 1, dtype=torch.float64)
    responses = signal.expand(4, 3, 6, 50).clone()
    responses[torch.rand(4, 3, 6, 50) < 0.2] = torch.nan
    responses[0, :, 4:] = torch.nan
    for centring in ("concat", "clip"):
        for method in ("power", "split"):
            found = ceiling(responses, centring=centring, method=method, n_bootstrap=50)
            for bound in (found.value, found.low, found.high):
                torch.testing.assert_close(bound, torch.ones(3, dtype=torch.float64))


def test_power_ceiling_is_what_links_raw_and_normalized_correlation() -> None:
    signal = torch.randn(3, 4, 1, 80, dtype=torch.float64)
    responses = signal + torch.randn(3, 4, 7, 80, dtype=torch.float64)
    pred = signal + torch.randn_like(signal)
    found = ceiling(responses, n_bootstrap=0)
    ratio = corrcoef(pred, responses, reduction="none") / found.value
    torch.testing.assert_close(normalized_corrcoef(pred, responses, reduction="none"), ratio)
    assert torch.isnan(found.low).all()


def test_ceiling_without_repeats_or_signal() -> None:
    responses = torch.randn(3, 4, 5, 40)
    responses[:, 0, 1:] = torch.nan  # one repeat
    responses[:, 1] = torch.nan  # no data
    responses[:, 2] = 0.0  # silent
    for method in ("power", "split"):
        for centring in ("concat", "clip"):
            found = ceiling(responses, method=method, centring=centring, n_bootstrap=20)
            assert torch.isnan(found.value[:3]).all()
            assert torch.isnan(found.low[:2]).all()


def test_intervals_are_reproducible_and_do_not_touch_the_global_generator() -> None:
    responses = torch.randn(3, 2, 1, 60) + torch.randn(3, 2, 6, 60)
    state = torch.get_rng_state()
    first = ceiling(responses)
    assert torch.equal(state, torch.get_rng_state())
    second, other = ceiling(responses), ceiling(responses, seed=1)
    assert torch.equal(first.low, second.low)
    assert not torch.equal(first.low, other.low)


def test_resampling_repeats_does_not_pair_a_repeat_with_its_copy() -> None:
    noise = torch.randn(1, 200, 10, 200)  # no signal at all: copies would look like one
    found = ceiling(noise, resample="repeats", centring="clip", n_bootstrap=100)
    assert (found.low == 0).double().mean() > 0.9


@pytest.mark.parametrize("resample", ["both", "repeats", "clips"])
def test_intervals_do_not_depend_on_which_clips_come_first(resample: str) -> None:
    clips = [
        torch.randn(2, 6, 60, dtype=torch.float64) + torch.randn(2, 1, 60, dtype=torch.float64) + 3.0 * clip
        for clip in range(5)
    ]
    clips[0][0] = clips[1][:, 4:] = clips[3][1, :2, 20:] = torch.nan  # a neuron, repeats, parts of repeats
    bounds = []
    for order in (range(5), reversed(range(5))):
        bootstrap = CeilingBootstrap(5, 50, resample, "concat", seed=0)
        for clip in order:
            responses = clips[clip].unsqueeze(0)
            powers = RepeatSummary.of(responses, None).powers.unflatten(1, 2)
            bootstrap.add(RepeatGroups.of(responses, valid_samples(responses, None)), powers, [clip])
        bounds.append(torch.stack(bootstrap.interval(0.95)))
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-9, atol=1e-9)


def test_bad_options() -> None:
    responses = torch.rand(2, 2, 3, 30)
    for options, text in (
        ({"method": "hsu"}, "method"),
        ({"centring": "published"}, "centring"),
        ({"resample": "neurons"}, "resample"),
        ({"confidence": 95.0}, "confidence"),
        ({"n_bootstrap": -1}, "n_bootstrap"),
    ):
        with pytest.raises(ValueError, match=text):
            ceiling(responses, **options)


def test_hsu_is_raw_over_half_split_ceiling(ref: Any) -> None:
    pred, responses = ref.make_case("one clip")
    found = normalized_corrcoef(pred, responses, "hsu", reduction="none")
    for n in range(5):
        p, y = pred[:, n, 0].numpy(), responses[:, n].numpy()
        expected = ref.correlation(*ref.series(p, y)) / ref.half_split_ceiling(y[0])
        assert float(found[n]) == pytest.approx(expected)
    clips = torch.cat([responses, responses + 1], 0)
    weights = normalized_corrcoef(
        torch.cat([pred, pred + 1]), clips, "hsu", reduction="none", centring="clip"
    )
    torch.testing.assert_close(weights, found)


def test_interval_holds_the_value_when_clips_differ_in_reliability() -> None:
    noise = torch.tensor([0.5, 1.0, 4.0, 8.0]).reshape(4, 1, 1, 1)
    responses = torch.randn(4, 50, 1, 400) + noise * torch.randn(4, 50, 10, 400)
    values = {}
    for method, centring in itertools.product(("power", "split"), ("clip", "concat")):
        found = ceiling(responses, method=method, centring=centring, n_bootstrap=200)
        assert ((found.low <= found.value) & (found.value <= found.high)).double().mean() > 0.95
        values[method, centring] = float(found.value.mean())
    assert values["split", "concat"] == pytest.approx(values["power", "concat"], abs=0.005)
    assert abs(values["split", "clip"] - values["power", "clip"]) > 0.1  # a mean of ceilings is another thing


def test_a_nan_called_valid_shows_in_the_half_splits() -> None:
    pred, responses = torch.randn(2, 3, 1, 40), torch.randn(2, 3, 4, 40)
    responses += pred
    responses[1, 2, :, 5] = torch.nan
    mask = torch.ones_like(responses, dtype=torch.bool)
    for centring in ("clip", "concat"):
        found = normalized_corrcoef(pred, responses, "hsu", mask=mask, reduction="none", centring=centring)
        assert torch.isnan(found).tolist() == [False, False, True]
