"""One test per scientific fault of the earlier package that concerns metrics.

Each fails under the behaviour described there.
"""

from __future__ import annotations

import itertools
import time
import tracemalloc
from typing import Any

import pytest
import torch

from deepSTRF import metrics
from deepSTRF.metrics.ceilings import half_splits  # inner: the splits that compute_CCmax averages


def noiseless(n_clips: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """A perfect prediction of repeats without noise whose mean differs between clips."""
    rate = torch.randn(n_clips, 4, 1, 60, dtype=dtype) + 4 * torch.randn(n_clips, 4, 1, 1, dtype=dtype)
    return rate, rate.expand(n_clips, 4, 5, 60).clone()


@pytest.mark.parametrize("method", ["schoppe", "hsu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_1_perfect_prediction_scores_one_when_clip_means_differ(method: str, dtype: torch.dtype) -> None:
    rate, responses = noiseless(dtype=dtype)
    for centring in ("concat", "clip"):
        found = metrics.normalized_corrcoef(rate, responses, method, reduction="none", centring=centring)
        torch.testing.assert_close(found, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    published = metrics.normalized_corrcoef(rate, responses, reduction="none", centring="published")
    assert (published > 1.5).all()


def test_1_holds_with_ragged_repeats_too() -> None:
    rate, responses = noiseless()
    responses[0, :, 2:] = torch.nan  # clips with fewer repeats
    responses[1, 0, 3, 20:] = torch.nan  # a repeat that ended early
    responses[2, 1][torch.rand(5, 60) < 0.3] = torch.nan
    responses[2, 2, 1:] = torch.nan  # a clip recorded once
    for method, centring in itertools.product(("schoppe", "hsu"), ("concat", "clip")):
        found = metrics.normalized_corrcoef(rate, responses, method, reduction="none", centring=centring)
        torch.testing.assert_close(found, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.isinf(metrics.snr(responses, reduction="none")).all()


def test_1_noise_in_clip_means_is_no_signal() -> None:
    responses = torch.randn(6, 300, 4, 5)  # short clips: their means differ by noise alone
    power = metrics.signal_power(responses, centring="concat", reduction="none")
    assert abs(power.mean()) < 4 * power.std() / 300**0.5
    responses[:3, :, 2:] = torch.nan  # clips with different numbers of repeats
    responses[4][torch.rand(300, 4, 5) < 0.2] = torch.nan
    for centring in ("concat", "clip"):
        power = metrics.signal_power(responses, centring=centring, reduction="none")
        assert abs(torch.nanmean(power)) < 4 * power[~torch.isnan(power)].std() / 300**0.5


def test_1_estimates_the_truth_under_noise_and_raggedness() -> None:
    signal = torch.randn(6, 200, 1, 100) + torch.randn(6, 200, 1, 1)
    responses = signal + 1.5 * torch.randn(6, 200, 6, 100)
    responses[0, :, 3:] = torch.nan
    responses[1, :, 2, 40:] = torch.nan
    pred = signal + torch.randn_like(signal)
    for centring, variance in (("concat", 2.0), ("clip", 1.0)):
        truth = variance / ((variance + 1) * variance) ** 0.5
        found = metrics.normalized_corrcoef(pred, responses, reduction="median", centring=centring)
        assert float(found) == pytest.approx(truth, abs=0.02)


def test_2_a_repeat_that_ends_early_does_not_destroy_the_neuron(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    complete = metrics.snr(responses, reduction="none")
    responses[0, :, 1, 15:] = torch.nan
    for function in (metrics.signal_power, metrics.noise_power, metrics.snr):
        assert torch.isfinite(function(responses, reduction="none")).all()
    for method in ("schoppe", "hsu"):
        assert torch.isfinite(metrics.normalized_corrcoef(pred, responses, method, reduction="none")).all()
    assert (metrics.snr(responses, reduction="none") / complete - 1).abs().max() < 0.3


def test_3_half_splits_are_random() -> None:
    splits = half_splits(20, 126, seed=0)
    in_all = ((splits.first > 0).sum(0) == 126) | ((splits.second > 0).sum(0) == 126)
    assert not in_all.any()  # the first 126 subsets in lexicographic order all hold repeats 0 to 6
    together = ((splits.first > 0).double().T @ (splits.first > 0).double()) / 126
    assert together.max() < 0.7  # no repeat is nearly always in the same half, no two nearly always together
    odd = half_splits(5, 126, seed=0)
    used = (odd.first > 0).sum(0) + (odd.second > 0).sum(0)
    assert (used > 0).all()  # with an odd number the last repeat was always dropped


def test_4_ceiling_of_many_repeats_takes_no_memory_or_time() -> None:
    responses = torch.randn(1, 1, 200) + torch.randn(1, 40, 200)  # C(40, 20) subsets: 1.4e11
    tracemalloc.start()
    begin = time.perf_counter()
    assert torch.isfinite(metrics.compute_CCmax(responses)).all()
    assert time.perf_counter() - begin < 10
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_5_a_silent_half_does_not_make_the_ceiling_nan() -> None:
    responses = torch.zeros(1, 1, 6, 80)
    responses[0, 0, :3, 10::20] = 1.0  # three of six repeats fire: some halves are silent
    responses[0, 0, 3, 10] = 1.0
    for centring in ("clip", "concat"):
        found = metrics.ceiling(responses, method="split", centring=centring, n_bootstrap=0).value
        assert 0 < found < 1
    assert 0 < metrics.compute_CCmax(responses[0]) < 1
    with_good_clip = torch.cat([torch.zeros(1, 1, 6, 80), responses])
    assert torch.isfinite(metrics.ceiling(with_good_clip, method="split", n_bootstrap=0).value).all()


def test_6_fallback_is_per_neuron(ref: Any) -> None:
    pred, responses = ref.make_case("single repeat")  # neuron 0 recorded once, in a batch of five repeats
    raw = metrics.corrcoef(pred, responses, reduction="none")
    for method, centring in itertools.product(("schoppe", "hsu"), ("concat", "clip", "published")):
        found = metrics.normalized_corrcoef(pred, responses, method, reduction="none", centring=centring)
        assert torch.isclose(found[0], raw[0])
        assert torch.isfinite(found).all()
        if centring == "concat":
            assert (found[1:] > raw[1:]).all()  # the others are corrected
    assert metrics.single_repeat_neurons(responses).tolist() == [True, False, False, False, False]
    once = responses[:, :, :1]
    torch.testing.assert_close(
        metrics.normalized_corrcoef(pred, once, reduction="none"),
        metrics.corrcoef(pred, once, reduction="none"),
    )


def test_7_mask_reaches_the_signal_power() -> None:
    rate, responses = noiseless()
    responses[:, :, 0, :20] += 50 * torch.randn(3, 4, 20, dtype=torch.float64)  # an artefact in the warm-up
    mask = torch.arange(60) >= 20
    found = metrics.normalized_corrcoef(rate, responses, mask=mask, reduction="none")
    torch.testing.assert_close(found, torch.ones(4, dtype=torch.float64))
    assert torch.isinf(metrics.snr(responses, mask=mask, reduction="none")).all()


def test_8_method_is_checked_first() -> None:
    rate, responses = noiseless()
    for given in (responses, responses[:, :, :1]):
        with pytest.raises(ValueError, match="'schoppe', 'hsu'"):
            metrics.normalized_corrcoef(rate, given, "shoppe")
        with pytest.raises(ValueError, match="centring"):
            metrics.normalized_corrcoef(rate, given, centring="both")


def test_9_thresholds_are_relative_and_offsets_keep_their_digits() -> None:
    rate, responses = noiseless()
    for scale in (1e-8, 1e-30, 1e12):
        assert metrics.corrcoef(scale * rate, responses) == pytest.approx(1.0)
        assert metrics.normalized_corrcoef(scale * rate, scale * responses) == pytest.approx(1.0)
        assert metrics.fve(scale * rate, scale * responses) == pytest.approx(1.0)
    low = (torch.rand(1, 1, 1, 5000) + 4096).float()  # float32 sums of squares would lose all digits
    other = low + torch.rand(1, 1, 1, 5000)
    exact = torch.corrcoef(torch.stack([low.double().flatten(), other.double().flatten()]))[0, 1]
    assert float(metrics.corrcoef(low, other)) == pytest.approx(float(exact), abs=1e-12)
    for constant in (0.0, 0.1, 1e-8, 1e8):
        flat = torch.full_like(rate, constant)
        assert torch.isnan(metrics.corrcoef(flat, responses, reduction="none")).all()
        assert torch.isnan(metrics.corrcoef(rate, flat, reduction="none")).all()
        assert torch.isnan(metrics.normalized_corrcoef(flat, responses, reduction="none")).all()
        assert torch.isnan(metrics.fve(rate, flat, reduction="none")).all()


def test_10_coherence_of_unrelated_short_signals_is_low() -> None:
    first, second = torch.randn(2, 30, 4, 1, 100).unbind()
    assert metrics.coherence(first[:1], second[:1], 5.0) < 0.6
    assert metrics.coherence(first, second, 5.0) < 0.1
    with pytest.warns(UserWarning, match="too short"):
        assert torch.isnan(metrics.coherence(first[..., :20], second[..., :20], 5.0))


def test_11_snr_without_noise_is_infinite() -> None:
    _, responses = noiseless()
    for given in (responses, responses.float(), 1e-8 * responses, responses[:, :, :3]):
        assert torch.isinf(metrics.snr(given, reduction="none")).all()
        assert (metrics.snr(given, reduction="none", centring="concat") > 0).all()
    assert torch.isnan(metrics.snr(torch.zeros(2, 3, 4, 50), reduction="none")).all()
    assert torch.isnan(metrics.snr(responses[:, :, :1], reduction="none")).all()


def test_21_bins_can_weigh_as_their_repeats() -> None:
    responses = torch.zeros(1, 1, 20, 2)
    responses[0, 0, 1:, 1] = torch.nan  # bin 0: 20 repeats, bin 1: one
    responses[..., 1] += 1.0
    zero = torch.zeros(1, 1, 1, 2)
    assert float(metrics.mse_loss(zero, responses)) == pytest.approx(1 / 2)
    assert float(metrics.mse_loss(zero, responses, weighting="repeats")) == pytest.approx(1 / 21)


def test_37_the_mask_of_the_collate_function_is_usable(ref: Any) -> None:
    pred, responses = ref.make_case("gaps", torch.float32)
    valid_mask = ~torch.isnan(responses)  # (B, N, R, T), as neural_collate returns it
    for function in (metrics.mse_loss, metrics.poisson_loss, metrics.corrcoef, metrics.fve):
        torch.testing.assert_close(function(pred, responses, mask=valid_mask), function(pred, responses))
    torch.testing.assert_close(
        metrics.mse_loss(pred, metrics.psth(responses), mask=valid_mask), metrics.mse_loss(pred, responses)
    )


def test_43_no_loop_over_neurons() -> None:
    """A hundred times the neurons must not take anything like a hundred times the calls into torch."""
    counts = []
    for n_neurons in (2, 200):
        responses = torch.rand(2, n_neurons, 4, 50)
        pred = torch.rand(2, n_neurons, 1, 50)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            metrics.corrcoef(pred, responses)
            metrics.normalized_corrcoef(pred, responses)
            metrics.normalized_corrcoef(pred, responses, "hsu")
        counts.append(sum(event.count for event in profile.key_averages()))
    assert counts[1] < 1.5 * counts[0]


def test_45_responses_are_boiled_down_once() -> None:
    responses = torch.randn(3, 1, 60) + torch.randn(3, 5, 60)
    tracker = metrics.ScoreTracker()
    tracker.prepare(0, responses)
    pred = responses.mean(1, keepdim=True)
    responses[:] = torch.nan  # nothing of them is read again
    tracker.update([0], pred.unsqueeze(0))
    assert torch.isfinite(tracker.compute()["cc_norm"]).all()


def test_59_overflow_at_a_masked_bin_leaves_the_gradient_alone() -> None:
    log_rate = torch.tensor([[[[0.5, 1e4, -1.0]]]], requires_grad=True)
    counts = torch.tensor([[[[1.0, torch.nan, 0.0]]]])
    metrics.poisson_loss(log_rate, counts, log_input=True).backward()
    assert log_rate.grad is not None
    assert torch.isfinite(log_rate.grad).all()
    assert log_rate.grad[0, 0, 0, 1] == 0


def test_59_eps_is_added_once() -> None:
    rate, counts = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert float(metrics.poisson_loss(rate, counts, eps=1e-4)) == pytest.approx(
        -torch.tensor(1e-4).log().item()
    )
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert float(metrics.poisson_loss(one, one, eps=1e-2)) == 1.0
