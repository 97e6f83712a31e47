"""Running statistics equal the one-shot values, however the data is cut, ordered and merged."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepSTRF import metrics
from deepSTRF.metrics import PairStatistics, RepeatStatistics, ScoreTracker

CLOSE = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
RAGGED = ("dense", "ended early", "gaps", "fewer repeats", "missing pairs", "single repeat", "silent neuron")


@st.composite
def cut_recordings(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[slice], list[int]]:
    """A recording with holes and a large offset, pieces of its clips, and an order of clips."""
    seed = draw(st.integers(0, 10_000))
    n_clips, n_neurons, n_repeats, n_bins = (draw(st.integers(1, high)) for high in (4, 3, 4, 12))
    offset = draw(st.sampled_from([0.0, 1e6, -3e4]))
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randn(n_clips, n_neurons, n_repeats, n_bins, generator=generator, dtype=torch.float64)
    responses += offset + torch.randn(n_clips, n_neurons, 1, n_bins, generator=generator)
    holes = draw(st.sampled_from([0.0, 0.3, 0.9]))
    responses[torch.rand(responses.shape, generator=generator) < holes] = torch.nan
    pred = torch.randn(n_clips, n_neurons, 1, n_bins, generator=generator, dtype=torch.float64) + offset
    edges = sorted(draw(st.sets(st.integers(1, n_bins), max_size=3)) | {0, n_bins})
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return pred, responses, pieces, draw(st.permutations(range(n_clips)))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cut_recordings(), st.integers(0, 20))
def test_pair_statistics_are_invariant_to_cuts(case: Any, first: int) -> None:
    pred, responses, pieces, order = case
    instances = PairStatistics(), PairStatistics()
    for number, (clip, piece) in enumerate((clip, piece) for clip in order for piece in pieces):
        running = instances[number < first]
        running.update(pred[clip : clip + 1, ..., piece], responses[clip : clip + 1, ..., piece])
    one, other = instances
    merged = one.merge(other)
    for name in ("corrcoef", "fve"):
        expected = getattr(metrics, name)(pred, responses, reduction="none")
        torch.testing.assert_close(getattr(merged, name)(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    expected = metrics.mse_loss(pred, responses, reduction="none")
    torch.testing.assert_close(merged.mse(), expected, **CLOSE)
    assert torch.equal(merged.n_bins, (~torch.isnan(responses)).any(2).sum((0, 2)).double())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cut_recordings(), st.integers(0, 4))
def test_repeat_statistics_are_invariant_to_grouping(case: Any, first: int) -> None:
    _, responses, _, order = case
    instances = RepeatStatistics(), RepeatStatistics()
    for number, clip in enumerate(order):
        recorded = ~torch.isnan(responses[clip]).all(2).all(0)
        n_repeats = int(recorded.nonzero().max()) + 1 if recorded.any() else 1
        instances[number < first].update(responses[clip : clip + 1, :, :n_repeats])  # clips differ in repeats
    merged = instances[0].merge(instances[1])
    for centring in ("clip", "concat"):
        for name in ("signal_power", "noise_power"):
            expected = getattr(metrics, name)(responses, reduction="none", centring=centring)
            found = getattr(merged, name)(centring)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert (merged.snr() == merged.snr()).tolist() == (
        metrics.snr(responses, reduction="none") == metrics.snr(responses, reduction="none")
    ).tolist()


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tracker_equals_one_shot(kind: str, dtype: torch.dtype, ref: Any) -> None:
    pred, responses = ref.make_case(kind, dtype)
    mask = torch.arange(responses.shape[-1]) >= 4
    # PSTHs of float32 responses are kept as float32
    close = CLOSE if dtype == torch.float64 else {"rtol": 1e-7, "atol": 1e-7, "equal_nan": True}
    for given_mask in (None, mask):
        tracker = ScoreTracker()
        for clip in range(len(pred)):
            tracker.prepare(f"clip {clip}", responses[clip], given_mask)
        for _ in range(2):  # epochs
            tracker.reset()
            tracker.update(["clip 3", "clip 0"], pred[[3, 0]])
            tracker.update(["clip 1"], pred[[1]])
            tracker.update(["clip 2"], torch.nn.functional.pad(pred[[2]], (0, 9), value=torch.nan))
        scores = tracker.compute()
        assert set(scores) == {"cc", "cc_norm"}
        torch.testing.assert_close(
            scores["cc"], metrics.corrcoef(pred, responses, mask=given_mask, reduction="none"), **close
        )
        for centring in ("concat", "clip", "published"):
            expected = metrics.normalized_corrcoef(
                pred, responses, mask=given_mask, reduction="none", centring=centring
            )
            torch.testing.assert_close(tracker.compute(centring)["cc_norm"], expected, **close)
        report = tracker.report()
        torch.testing.assert_close(
            report["fve"], metrics.fve(pred, responses, mask=given_mask, reduction="none"), **close
        )
        torch.testing.assert_close(
            report["mse"],
            metrics.mse_loss(pred.double(), responses.double(), mask=given_mask, reduction="none"),
            **close,
        )
        assert torch.equal(report["single_repeat"], metrics.single_repeat_neurons(responses, given_mask))


def test_tracker_counts_a_clip_as_often_as_it_comes(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    tracker = ScoreTracker()
    for clip in range(4):
        tracker.prepare(clip, responses[clip])
    order = [0, 2, 2, 3]
    tracker.update(order, pred[order])
    torch.testing.assert_close(
        tracker.compute()["cc_norm"],
        metrics.normalized_corrcoef(pred[order], responses[order], reduction="none"),
        **CLOSE,
    )


def test_tracker_takes_a_subset_and_clips_of_any_length(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    tracker = ScoreTracker("clip")
    tracker.prepare("long", responses[0])
    tracker.prepare("short", responses[1, :, :3, :25])
    tracker.prepare("unused", responses[2])
    tracker.update(["short", "long"], pred[[1, 0]])
    padded = responses[:2].clone()
    padded[1, :, 3:] = torch.nan
    padded[1, ..., 25:] = torch.nan
    torch.testing.assert_close(
        tracker.compute()["cc_norm"],
        metrics.normalized_corrcoef(pred[:2], padded, reduction="none", centring="clip"),
        **CLOSE,
    )
    assert "short" in tracker
    assert "other" not in tracker


def test_tracker_errors(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    with pytest.raises(ValueError, match="centring"):
        ScoreTracker("other")
    tracker = ScoreTracker()
    with pytest.raises(ValueError, match="update before compute"):
        tracker.compute()
    tracker.prepare(0, responses[0])
    with pytest.raises(KeyError, match="prepare"):
        tracker.update([1], pred[:1])
    with pytest.raises(ValueError, match="shape"):
        tracker.update([0], pred[:1, ..., :30])
    with pytest.raises(ValueError, match="shape"):
        tracker.update([0], pred[:2])
    with pytest.raises(ValueError, match="same neurons"):
        tracker.prepare(1, responses[1, :3])
    with pytest.raises(ValueError, match="shape"):
        tracker.prepare(1, responses[:1])


def test_tracker_sees_a_diverged_prediction(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    tracker = ScoreTracker()
    tracker.prepare(0, responses[0])
    pred[0, 1, 0, 3] = torch.nan
    tracker.update([0], pred[:1])
    assert torch.isnan(tracker.compute()["cc"]).tolist() == [False, True, False, False, False]
    assert torch.isnan(tracker.compute()["cc_norm"]).tolist() == [False, True, False, False, False]


def test_running_statistics_errors(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    for running in (PairStatistics(), RepeatStatistics()):
        result = running.corrcoef if isinstance(running, PairStatistics) else running.snr
        with pytest.raises(ValueError, match="update"):
            result()
    pairs = PairStatistics()
    pairs.update(pred, responses)
    with pytest.raises(ValueError, match="same neurons"):
        pairs.update(pred[:, :2], responses[:, :2])
    pairs.reset()
    pairs.update(pred[:, :2], responses[:, :2])
    assert pairs.merge(PairStatistics()).corrcoef().shape == (2,)
    repeats = RepeatStatistics()
    repeats.update(responses)
    with pytest.raises(ValueError, match="centring"):
        repeats.snr("published")
    torch.testing.assert_close(
        repeats.ceiling(), metrics.ceiling(responses, n_bootstrap=0).value, rtol=1e-9, atol=1e-9
    )
