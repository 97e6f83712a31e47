"""Intervals, nulls, comparisons and partitions: against brute force, closed forms and simulated noise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal, stats
from torch import Tensor

from deepSTRF.crossval import (
    compare_models,
    cross_validate,
    fdr,
    partition_variance,
    score_intervals,
    score_null,
)
from deepSTRF.crossval.comparison import holm
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.metrics import ScoreTracker, feve
from deepSTRF.registry import METRICS
from deepSTRF.training import score_predictions

Recording = tuple[list[Tensor], Any]


def recording(predictions: list[np.ndarray], responses: list[np.ndarray]) -> Recording:
    """Predictions (N, T) and a dataset of responses (N, R, T), clip by clip."""
    sounds = [torch.rand(2, one.shape[-1]) for one in responses]
    ds = AudioNeuralDataset.from_arrays(sounds, [torch.from_numpy(one).double() for one in responses], 5.0)
    return [torch.from_numpy(one) for one in predictions], ds


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...], bins: float) -> np.ndarray:
    """Gaussian noise of unit variance whose correlation falls to 1/e in so many bins."""
    keep = math.exp(-1 / bins)
    drive = rng.standard_normal(shape) * math.sqrt(1 - keep * keep)
    drive[..., 0] = rng.standard_normal(shape[:-1])
    return np.asarray(signal.lfilter([1.0], [1.0, -keep], drive, axis=-1))


def driven(
    n_clips: int = 8, n_neurons: int = 3, n_bins: int = 80, n_repeats: int = 3, seed: int = 0
) -> Recording:
    """Neurons that follow their predictions, with noise."""
    rng = np.random.default_rng(0)
    rates = [rng.standard_normal((n_neurons, n_bins)) for _ in range(n_clips)]
    responses = [
        rate[:, None]
        + rng.standard_normal((n_neurons, n_repeats, n_bins))
        + rng.standard_normal((n_neurons, 1, 1))
        for rate in rates
    ]
    return [torch.from_numpy(rate + 0.7 * rng.standard_normal(rate.shape)) for rate in rates], recording(
        rates, responses
    )[1]


@pytest.fixture
def ragged() -> Recording:
    """Clips of different lengths, missing pairs, missing bins, a silent neuron, one of a single clip."""
    rng = np.random.default_rng(3)
    predictions, responses = [], []
    for clip in range(9):
        bins = 150 + 10 * clip
        rate = rng.standard_normal((6, bins))
        block = rate[:, None] + rng.standard_normal((6, 3, bins))
        if clip in (2, 5):
            block[0] = np.nan  # missing pair
        block[1, 0, 20:] = np.nan  # a repeat that ends early
        block[1, :, 5:9] = np.nan  # bins that nobody recorded
        block[2] = 4.0  # silent
        block[3, 1:] = np.nan  # one repeat
        if clip:
            block[4] = np.nan  # one clip
        predictions.append(rate + rng.standard_normal(rate.shape))
        responses.append(block)
    return recording(predictions, responses)


# ---- corrections for many tests


@pytest.mark.parametrize("method", ["bh", "by"])
def test_fdr_is_the_step_up_rule(method: str) -> None:
    p = np.array([0.001, 0.2, np.nan, 0.04, 0.012, 0.04, 1.0])
    known = p[~np.isnan(p)]
    factor = sum(1 / k for k in range(1, known.size + 1)) if method == "by" else 1.0
    adjusted = fdr(p, method)
    for value, own in zip(p, adjusted, strict=True):
        if np.isnan(value):
            assert np.isnan(own)
            continue
        larger = [q * known.size * factor / (known <= q).sum() for q in known if q >= value]
        assert own == pytest.approx(min(1.0, *larger))
    np.testing.assert_allclose(fdr(torch.tensor([0.01, 0.2])), [0.02, 0.2], rtol=1e-6)
    assert np.isnan(fdr([float("nan")])).all()
    with pytest.raises(ValueError, match="p must lie between 0 and 1"):
        fdr([0.1, 1.2])


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    adjusted = holm(np.array([0.04, 0.01, np.nan, 0.03]))
    np.testing.assert_allclose(adjusted, [0.06, 0.03, np.nan, 0.06])


# ---- intervals


def test_jackknife_equals_scoring_without_each_clip(ragged: Recording) -> None:
    predictions, ds = ragged
    result = score_intervals(predictions, ds, scores=("cc_norm", "cc", "fve"))

    def table(clips: list[int]) -> Any:
        tracker = ScoreTracker()
        for clip in clips:
            tracker.prepare(clip, ds.response_block(clip))
            tracker.update([clip], predictions[clip][None, :, None])
        return {name: METRICS.get(name).compute(tracker.statistics()) for name in ("cc_norm", "cc", "fve")}

    whole = table(list(range(9)))
    left_out = [table([clip for clip in range(9) if clip != out]) for out in range(9)]
    for score, found in result.intervals.items():
        for neuron, clips in ((0, [0, 1, 3, 4, 6, 7, 8]), (1, list(range(9))), (5, list(range(9)))):
            without = np.array([float(left_out[out][score][neuron]) for out in clips])
            n = len(clips)
            gaps = without - without.mean()
            kurtosis = n * (gaps**4).sum() / (gaps**2).sum() ** 2
            freedom = min(n - 1, max(2.0, 2 * n / (kurtosis - 1)))
            width = stats.t.ppf(0.975, freedom) * np.sqrt((n - 1) / n * (gaps**2).sum())
            assert found.value[neuron] == pytest.approx(float(whole[score][neuron]))
            assert found.high[neuron] - found.value[neuron] == pytest.approx(width)
            assert found.n_clips[neuron] == n
    chosen = result.intervals["cc_norm"]
    assert "silent" in chosen.reasons[2]
    assert "recorded once" in chosen.reasons[3]
    assert chosen.reasons[4] == "1 clips: an interval needs 5, nothing can be concluded"
    assert not np.isnan(result.intervals["cc"].low[3])
    assert result.facts["n_neurons"] == {"cc_norm": 3, "cc": 4, "fve": 4}


def test_interval_of_a_mean_is_students() -> None:
    predictions, ds = driven(n_clips=12)
    found = score_intervals(predictions, ds, scores="mse").intervals["mse"]
    psth = [ds.response_block(clip).double().mean(1) for clip in range(12)]
    errors = np.stack([((a - b) ** 2).mean(1).numpy() for a, b in zip(predictions, psth, strict=True)])
    usual = stats.t.interval(0.95, 11, errors.mean(0), stats.sem(errors))
    uneven = 12 * ((errors - errors.mean(0)) ** 4).sum(0) / ((errors - errors.mean(0)) ** 2).sum(0) ** 2
    same = 24 / (uneven - 1) >= 11
    assert same.any()
    np.testing.assert_allclose(found.low[same], usual[0][same])
    assert (found.low[~same] < usual[0][~same]).all()


@pytest.mark.parametrize("method", ["bootstrap", "bca"])
def test_bootstrap_of_many_clips_is_near_the_usual_interval(method: str) -> None:
    predictions, ds = driven(n_clips=60, n_bins=40)
    one = score_intervals(predictions, ds, scores="cc")
    other = score_intervals(predictions, ds, scores="cc", method=method, n_bootstrap=4000)
    again = score_intervals(predictions, ds, scores="cc", method=method, n_bootstrap=4000)
    width = one.intervals["cc"].high - one.intervals["cc"].low
    for end in ("low", "high"):
        gap = getattr(one.intervals["cc"], end) - getattr(other.intervals["cc"], end)
        assert (np.abs(gap) < 0.2 * width).all()
    assert other.table() == again.table()


def test_population_interval_is_that_of_the_mean_over_neurons() -> None:
    predictions, ds = driven(n_clips=7, n_neurons=4)
    result = score_intervals(predictions, ds, scores="cc")
    without = np.stack(
        [
            score_predictions(
                lambda clip, keep=keep: predictions[keep[clip]], ds.select(clips=keep), n_bootstrap=0
            )["cc"]
            for keep in ([c for c in range(7) if c != out] for out in range(7))
        ]
    )
    error = {
        name: np.sqrt(6 / 7 * ((v - v.mean()) ** 2).sum())
        for name, v in (("mean", without.mean(1)), ("median", np.median(without, axis=1)))
    }
    for row in result.table()[:2]:
        assert (row["high"] - row["value"]) / error[row["name"]] >= stats.t.ppf(0.975, 6) - 1e-9


@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
def test_intervals_of_simulated_scores_hold_the_truth(method: str) -> None:
    rng = np.random.default_rng(11)  # 400 neurons as 400 repetitions of an experiment of 20 clips
    rate = rng.standard_normal((20, 400, 60)) * np.exp(0.2 * rng.standard_normal((20, 400, 1)))
    prediction = rate + rng.standard_normal(rate.shape)
    responses = rate[:, :, None] + rng.standard_normal((20, 400, 4, 60))
    predictions, ds = recording(list(prediction), list(responses))
    power = math.exp(2 * 0.2**2)
    truth = {
        "cc": power / math.sqrt((power + 1) * (power + 0.25)),
        "cc_norm": math.sqrt(power / (power + 1)),
        "feve": (2 * power - power - 1) / power,
    }
    found = score_intervals(predictions, ds, scores=tuple(truth), method=method, n_bootstrap=500).intervals
    for score, value in truth.items():
        held = ((found[score].low <= value) & (value <= found[score].high)).mean()
        assert 0.92 <= held <= 0.98, (score, held)


def test_few_clips_conclude_nothing() -> None:
    predictions, ds = driven(n_clips=4)
    for method in ("jackknife", "bootstrap", "bca"):
        result = score_intervals(predictions, ds, method=method)
        assert all(math.isnan(row["low"]) and "needs 5" in row["reason"] for row in result.table())
        assert all(math.isfinite(row["value"]) for row in result.table())
    alone = score_intervals([predictions[0][1:2]], ds.select(clips=[0], neurons=[1]))
    assert alone.table()[0]["n_clips"] == 1
    assert "nothing can be concluded" in str(alone)


def test_a_population_of_no_neuron_says_why() -> None:
    predictions, ds = driven(n_repeats=1)
    text = "no neuron has a value: recorded once: "
    for row in score_intervals(predictions, ds, scores="cc_norm").table()[:2]:
        assert row["reason"].startswith(text)
        assert math.isnan(row["value"])
    models = {("a",): predictions, ("b",): predictions, ("a", "b"): predictions}
    assert all(row["reason"].startswith(text) for row in partition_variance(models, ds).table()[:8])


def test_results_are_written_as_csv_and_json(tmp_path: Any) -> None:
    predictions, ds = driven(n_clips=4)
    result = score_intervals(predictions, ds, scores="cc")
    text = result.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == text
    assert text.splitlines()[0] == "level,name,score,value,low,high,n_clips,reason"
    assert len(text.splitlines()) == 6
    content = json.loads(result.to_json(tmp_path / "table.json"))
    assert content["rows"][0]["low"] is None
    assert content["facts"]["n_clips"] == 4


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_prediction_that_is_not_finite_has_no_score_and_says_so(value: float) -> None:
    predictions, ds = driven()
    wrong = [rates.clone() for rates in predictions]
    wrong[2][1, 3] = value
    reason = "the prediction is not finite in a bin that counts"
    for method in ("shift", "permute-clips"):
        right = score_null(predictions, ds, method=method, score="cc", n_null=99)
        found = score_null(wrong, ds, method=method, score="cc", n_null=99)
        assert found.reasons == ("", reason, "")
        np.testing.assert_allclose(found.p[[0, 2]], right.p[[0, 2]])
        assert np.isnan([found.p[1], found.q[1], found.observed[1]]).all()
    assert score_intervals(wrong, ds, scores="cc").intervals["cc"].reasons == ("", reason, "")
    pair = compare_models({"a": predictions, "b": wrong}, ds, score="cc").pairs[0]
    assert np.isnan(pair.p).tolist() == [False, True, False]


def test_a_cross_validation_in_the_place_of_its_predictions_is_refused() -> None:
    predictions, ds = driven()
    cv = cross_validate("ridge", ds, folds=4, options={"n_lags": 2, "lambdas": 10.0})
    text = r"cross_validate\(\.\.\.\)\.predictions holds; got CrossValidation"
    for call in (
        lambda: compare_models({"a": predictions, "b": cv}, ds),
        lambda: partition_variance({("a",): predictions, ("b",): cv, ("a", "b"): predictions}, ds),
        lambda: score_null(cv, ds),
        lambda: score_intervals(cv, ds),
    ):
        with pytest.raises(TypeError, match=text):
            call()
    assert score_intervals(cv.predictions, ds).facts["n_clips"] == 8


def test_mistakes_name_the_argument() -> None:
    predictions, ds = driven(n_clips=3)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: score_intervals(predictions[:2], ds), "predictions holds 2 clips, the dataset 3"),
        (lambda: score_intervals(predictions, ds, scores="ccmax"), "scores must be one of"),
        (lambda: score_intervals(predictions, ds, confidence=95.0), "confidence must be"),
        (lambda: score_null(predictions, ds, method="roll"), "method must be one of"),
        (lambda: score_null(predictions, ds, score="snr"), "score must be one of"),
        (lambda: score_null(predictions, ds, correction="holm"), "correction must be one of"),
        (
            lambda: compare_models({"a": predictions, "b": predictions}, ds, correction="holm"),
            "correction must be one of",
        ),
        (lambda: compare_models({"a": predictions}, ds), "a comparison needs two"),
        (
            lambda: compare_models({"a": predictions, "b": predictions[:1]}, ds),
            r"models\['b'\] holds 1 clips",
        ),
        (
            lambda: partition_variance({("a",): predictions, ("b",): predictions}, ds),
            r"models lacks \('a', 'b'\)",
        ),
        (lambda: score_intervals(predictions, ds, warmup_ms=1e6), "warmup_ms covers"),
    ]
    for call, text in calls:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match=r"predictions\[1\] must be a floating-point tensor"):
        score_intervals([predictions[0], predictions[1][0], predictions[2]], ds)


# ---- null distributions


def test_all_shifts_of_one_clip_equal_numpy_roll() -> None:
    rng = np.random.default_rng(5)
    prediction, responses = rng.standard_normal((2, 90)), rng.standard_normal((2, 2, 90)) * 3 + 50
    responses[1, :, 30:41] = np.nan
    predictions, ds = recording([prediction], [responses])
    psth = ds.response_block(0).double().numpy().mean(1)
    result = score_null(predictions, ds, score="cc", n_null=500)
    assert result.null.shape == (89, 2)
    for neuron in range(2):
        valid = ~np.isnan(psth[neuron])
        expected = [
            np.corrcoef(np.roll(prediction[neuron], -shift)[valid], psth[neuron][valid])[0, 1]
            for shift in range(90)
        ]
        assert result.observed[neuron] == pytest.approx(expected[0])
        np.testing.assert_allclose(result.null[:, neuron], expected[1:], atol=1e-10)
        assert result.p[neuron] == pytest.approx((np.array(expected) >= expected[0]).mean())
    other = score_null(predictions, ds, score="fve", n_null=500)
    rolled = np.roll(prediction[0], -7)
    assert other.null[6, 0] == pytest.approx(
        1 - ((rolled - psth[0]) ** 2).sum() / ((psth[0] - psth[0].mean()) ** 2).sum()
    )


def test_all_orders_of_four_clips_equal_brute_force() -> None:
    rng = np.random.default_rng(6)
    lengths = (50, 41, 60, 44)
    prediction = [rng.standard_normal((2, bins)) for bins in lengths]
    responses = [rng.standard_normal((2, 2, bins)) for bins in lengths]
    responses[2][1, :, :5] = np.nan
    predictions, ds = recording(prediction, responses)
    psth = [ds.response_block(clip).double().numpy().mean(1)[:, :41] for clip in range(4)]
    result = score_null(predictions, ds, method="permute-clips", score="cc")
    for neuron in range(2):
        expected = []
        for order in itertools.permutations(range(4)):
            x = np.concatenate([prediction[clip][neuron, :41] for clip in order])
            y = np.concatenate([one[neuron] for one in psth])
            valid = ~np.isnan(y)
            expected.append(np.corrcoef(x[valid], y[valid])[0, 1])
        assert result.observed[neuron] == pytest.approx(expected[0])
        np.testing.assert_allclose(np.sort(result.null[:, neuron]), np.sort(expected[1:]), atol=1e-10)
        assert result.p[neuron] == pytest.approx((np.array(expected) >= expected[0]).mean())
    assert result.smallest_p.tolist() == [1 / 24, 1 / 24]
    assert "16%" in result.facts["notes"][0]


@pytest.mark.parametrize("method", ["shift", "permute-clips"])
@pytest.mark.parametrize("bins", [0.3, 6.0])
def test_noise_is_rejected_as_often_as_stated(method: str, bins: float) -> None:
    rng = np.random.default_rng([int(10 * bins), len(method)])
    prediction, responses = (
        autocorrelated(rng, (12, 500, 150), bins),
        autocorrelated(rng, (12, 500, 2, 150), bins),
    )
    predictions, ds = recording(list(prediction), list(responses))
    result = score_null(predictions, ds, method=method, score="cc", n_null=399)
    low, high = stats.binom.interval(0.99, 500, 0.05)
    assert low <= (result.p <= 0.05).sum() <= high
    assert stats.kstest(result.p, "uniform").pvalue > 1e-3
    assert (result.q <= 0.05).sum() <= 2
    assert result.mean_p > 0.01


@pytest.mark.parametrize("method", ["shift", "permute-clips"])
def test_what_is_there_is_found_in_any_unit(method: str) -> None:
    predictions, ds = driven(n_clips=8, n_bins=120)
    for score in ("cc_norm", "cc", "fve", "feve", "mse"):
        result = score_null(predictions, ds, method=method, score=score, n_null=199)
        assert [*result.p, result.mean_p] == [1 / 200] * 4, score
    table = score_predictions(lambda clip: predictions[clip], ds, n_bootstrap=0)
    found = score_null(predictions, ds, method=method, score="cc_norm", n_null=99)
    np.testing.assert_allclose(found.observed, table["cc_norm"], rtol=1e-9)
    elsewhere = [rates[:, torch.randperm(rates.shape[1])] for rates in predictions]
    one = score_null(elsewhere, ds, method=method, score="cc", n_null=199)
    scaled = [1e6 * rates + 1e8 for rates in elsewhere]
    assert score_null(scaled, ds, method=method, score="cc", n_null=199).p.tolist() == one.p.tolist()


def test_neurons_without_a_test_say_why(ragged: Recording) -> None:
    predictions, ds = ragged
    predictions[3][5, 7] = torch.nan
    for method in ("shift", "permute-clips"):
        result = score_null(predictions, ds, method=method, n_null=99)
        assert not np.isnan(result.p[:2]).any()
        assert np.isnan(result.p[[2, 3, 5]]).all()
        assert np.isnan(result.q[[2, 3, 5]]).all()
        assert "silent" in result.reasons[2]
        assert "recorded once" in result.reasons[3]
        assert "not finite" in result.reasons[5]
        assert result.facts["n_neurons"] == (3 if method == "shift" else 2)  # one clip has many shifts
        assert math.isfinite(result.mean_p)
        assert len(result.to_csv().splitlines()) == 8
    assert "1 clips: the smallest p is 1" in score_null(predictions, ds, method="permute-clips").reasons[4]
    assert not np.isnan(score_null(predictions, ds, score="cc", n_null=99).p[3])


def test_too_little_data_for_a_test() -> None:
    rng = np.random.default_rng(8)
    slow = recording(
        list(autocorrelated(rng, (6, 2, 100), 60.0)), list(autocorrelated(rng, (6, 2, 1, 100), 60.0))
    )
    result = score_null(*slow, score="cc", n_null=99)
    assert np.isnan(result.p).all()
    assert math.isnan(result.mean_p)
    assert "correlation times" in result.reasons[0]
    assert "permute-clips" in str(result)
    predictions, ds = driven(n_clips=3)
    result = score_null(predictions, ds, method="permute-clips")
    assert np.isnan(result.p).all()
    assert "3 clips: the smallest p is 0.17" in str(result)


# ---- comparison


def test_sign_flips_equal_those_of_scipy() -> None:
    predictions, ds = driven(n_clips=9)
    worse = [rates + 0.3 * torch.randn(rates.shape) for rates in predictions]
    result = compare_models({"a": predictions, "b": worse}, ds, score="mse")
    psth = [ds.response_block(clip).double().mean(1) for clip in range(9)]
    gaps = np.stack(
        [
            ((a - y) ** 2 - (b - y) ** 2).mean(1).numpy()
            for a, b, y in zip(predictions, worse, psth, strict=True)
        ]
    )
    pair = result.pairs[0]
    options: dict[str, Any] = {"permutation_type": "samples", "n_resamples": np.inf}
    for neuron in range(3):
        expected = stats.permutation_test((gaps[:, neuron],), np.mean, **options).pvalue
        assert pair.p[neuron] == pytest.approx(expected)
    assert pair.mean_p == pytest.approx(stats.permutation_test((gaps.mean(1),), np.mean, **options).pvalue)
    np.testing.assert_allclose(pair.neurons.value, gaps.mean(0))
    assert pair.smallest_p.tolist() == [1 / 256] * 3
    assert "less is better" in str(result)
    turned = compare_models({"b": worse, "a": predictions}, ds, score="mse").pairs[0]
    np.testing.assert_allclose(turned.neurons.low, -pair.neurons.high)
    assert turned.p.tolist() == pair.p.tolist()


def test_three_models_are_corrected_over_pairs() -> None:
    predictions, ds = driven(n_clips=10)
    models = {
        "good": predictions,
        "same": [2 * rates + 1 for rates in predictions],
        "poor": [rates + torch.randn(rates.shape) for rates in predictions],
    }
    result = compare_models(models, ds)
    good_same, good_poor, same_poor = result.pairs
    assert good_same.mean_p == 1
    assert good_same.p.tolist() == [1.0] * 3
    assert good_poor.mean_p == pytest.approx(2**-9)
    assert good_poor.mean_p_holm == pytest.approx(3 * 2**-9)
    np.testing.assert_allclose(same_poor.neurons.low, good_poor.neurons.low)
    rows = result.table()
    assert len(rows) == 3 * 2 + 3 * 3
    assert rows[2]["p_corrected"] == good_poor.mean_p_holm
    assert "good - poor" in str(result)
    assert len(result.to_csv().splitlines()) == 16
    assert json.loads(result.to_json())["facts"]["score"] == "cc_norm"


def test_equal_models_of_noise_differ_as_often_as_stated() -> None:
    rng = np.random.default_rng(12)
    responses = autocorrelated(rng, (12, 500, 2, 100), 4.0)
    models = {name: list(autocorrelated(rng, (12, 500, 100), 4.0)) for name in "ab"}
    first, ds = recording(models["a"], list(responses))
    result = compare_models({"a": first, "b": recording(models["b"], list(responses))[0]}, ds, score="cc")
    low, high = stats.binom.interval(0.99, 500, 0.05)
    pair = result.pairs[0]
    assert low <= (pair.p <= 0.05).sum() <= high
    assert low <= ((pair.neurons.low > 0) | (pair.neurons.high < 0)).sum() <= high
    over = compare_models({"a": first, "b": first}, ds, score="cc", over="neurons")
    assert over.pairs[0].mean_p == 1
    assert np.isnan(over.pairs[0].p).all()


def test_over_neurons_is_the_test_of_their_differences() -> None:
    predictions, ds = driven(n_clips=4, n_neurons=8)
    worse = [rates + 0.4 * torch.randn(rates.shape) for rates in predictions]
    result = compare_models({"a": predictions, "b": worse}, ds, score="cc", over="neurons")
    gaps = result.scores["a"] - result.scores["b"]
    expected = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert result.pairs[0].mean_p == pytest.approx(expected)
    low, high = stats.t.interval(0.95, 7, gaps.mean(), stats.sem(gaps))
    assert result.table()[0]["low"] == pytest.approx(low)
    assert result.table()[0]["high"] == pytest.approx(high)


def test_few_clips_compare_nothing(ragged: Recording) -> None:
    predictions, ds = driven(n_clips=5)
    result = compare_models({"a": predictions, "b": [rates + 1 for rates in predictions]}, ds, score="cc")
    assert math.isnan(result.pairs[0].mean_p)
    assert "5 clips: the smallest p is 0.062" in str(result)
    predictions, ds = ragged
    result = compare_models({"a": predictions, "b": [rates.flip(1) for rates in predictions]}, ds)
    assert np.isnan(result.pairs[0].p[2:5]).all()
    assert not np.isnan(result.pairs[0].p[[0, 1, 5]]).any()
    assert result.facts["chosen"] == [0, 1, 5]


# ---- variance partitioning


def test_shares_of_two_features_are_the_truth_and_add_up() -> None:
    rng = np.random.default_rng(20)
    parts = rng.standard_normal((3, 10, 4, 300)) * np.array([1.0, 0.7, 0.5])[:, None, None, None]
    only_a, only_b, common = parts
    rate = only_a + only_b + common
    responses = rate[:, :, None] + rng.standard_normal((10, 4, 5, 300))
    models = {("b",): only_b + common, ("a",): only_a + common, ("b", "a"): rate}
    ds = recording(list(rate), list(responses))[1]
    result = partition_variance(
        {key: [torch.from_numpy(one) for one in value] for key, value in models.items()}, ds
    )
    shares = {row["part"]: row for row in result.table() if row["name"] == "mean"}
    total = 1 + 0.49 + 0.25
    for part, share in (("a", 1.0), ("b", 0.49), ("b & a", 0.25), ("total", total)):
        assert shares[part]["low"] < share / total < shares[part]["high"], part
        assert shares[part]["high"] - shares[part]["low"] < 0.15
    stack = torch.stack([ds.response_block(clip) for clip in range(10)]).double()
    scores = {
        key: feve(torch.from_numpy(value)[:, :, None], stack, reduction="none")
        for key, value in models.items()
    }
    np.testing.assert_allclose(result.values["a"].value, scores[("b", "a")] - scores[("b",)], rtol=1e-6)
    added = sum(result.values[part].value for part in ("a", "b", "b & a"))
    np.testing.assert_allclose(added, result.values["total"].value)


def test_shares_of_three_features_add_up_and_may_be_negative() -> None:
    rng = np.random.default_rng(21)
    names = ("a", "b", "c")
    venn = {
        part: rng.standard_normal((8, 2, 400)) * (0.5 + 0.25 * index)
        for index, part in enumerate(p for size in (1, 2, 3) for p in itertools.combinations(names, size))
    }
    models = {
        key: sum(values for part, values in venn.items() if set(part) & set(key))
        for size in (1, 2, 3)
        for key in itertools.combinations(names, size)
    }
    rate = models[names]
    ds = recording(list(rate), list(rate[:, :, None] + 0.3 * rng.standard_normal((8, 2, 4, 400))))[1]
    tensors = {key: [torch.from_numpy(one) for one in value] for key, value in models.items()}
    result = partition_variance(tensors, ds, method="bootstrap", n_bootstrap=300)
    power = sum((0.5 + 0.25 * index) ** 2 for index in range(7))
    for index, part in enumerate(venn):
        assert result.values[" & ".join(part)].value == pytest.approx(
            (0.5 + 0.25 * index) ** 2 / power, abs=0.05
        )
    bad = {**tensors, names: [0.2 * one for one in tensors[names]]}
    assert (partition_variance(bad, ds).values["a"].value < -0.1).all()
    plain = partition_variance(tensors, ds, corrected=False)
    assert plain.facts["unit"] == "variance of the PSTH"
    assert len(plain.to_csv().splitlines()) == 1 + 8 * 4


def test_partition_of_single_repeats_needs_plain_shares(ragged: Recording) -> None:
    predictions, ds = ragged
    models = {("a",): predictions, ("b",): [rates.flip(1) for rates in predictions], ("a", "b"): predictions}
    result = partition_variance(models, ds)
    assert "recorded once" in result.values["a"].reasons[3]
    assert np.isnan(result.values["a"].value[3])
    assert not np.isnan(partition_variance(models, ds, corrected=False).values["a"].low[3])
    with pytest.raises(ValueError, match="names 1 features"):
        partition_variance({("a",): predictions}, ds)
    with pytest.raises(TypeError, match="keys of models are tuples"):
        partition_variance({"a": predictions}, ds)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="twice"):
        partition_variance({**models, ("b", "a"): predictions}, ds)


# ---- what was not predicted


def test_clips_and_bins_that_were_not_predicted_are_left_out() -> None:
    predictions, ds = driven(n_clips=8, n_bins=120)
    gaps = [rates.clone() for rates in predictions]
    gaps[3][:] = torch.nan
    gaps[5][:, 40:47] = torch.nan
    kept = [0, 1, 2, 4, 5, 6, 7]
    result = score_intervals(gaps, ds, scores="cc")
    assert result.facts["n_clips"] == 7
    assert "1 of 8 clips (13% of the bins)" in str(result)
    psth = [ds.response_block(clip).double().mean(1) for clip in kept]
    x, y = (torch.cat(parts, dim=1).numpy() for parts in ([gaps[clip] for clip in kept], psth))
    seen = ~np.isnan(x[0])
    expected = [np.corrcoef(x[neuron, seen], y[neuron, seen])[0, 1] for neuron in range(3)]
    np.testing.assert_allclose(result.intervals["cc"].value, expected)
    for method in ("shift", "permute-clips"):
        null = score_null(gaps, ds, method=method, score="cc", n_null=199)
        np.testing.assert_allclose(null.observed, expected)
        assert null.p.tolist() == [1 / 200] * 3
    pair = compare_models({"gaps": gaps, "whole": predictions}, ds).pairs[0]
    assert pair.p.tolist() == [1.0] * 3  # on what both predicted
    with pytest.raises(ValueError, match="predictions holds NaN only"):
        score_null([rates * torch.nan for rates in predictions], ds)


def test_shifts_over_a_gap_equal_numpy_roll() -> None:
    rng = np.random.default_rng(9)
    prediction, responses = rng.standard_normal((2, 95)), rng.standard_normal((2, 1, 95))
    prediction[:, 20:29] = np.nan
    responses[0, 0, 70:75] = np.nan
    result = score_null(*recording([prediction], [responses]), score="cc", n_null=200)
    for neuron in range(2):
        recorded = ~np.isnan(responses[neuron, 0])
        recorded[20:29] = False
        for shift in (0, 7, 50):
            moved = np.roll(prediction[neuron], -shift)
            both = recorded & ~np.isnan(moved)
            expected = np.corrcoef(moved[both], responses[neuron, 0, both])[0, 1]
            found = result.null[shift - 1, neuron] if shift else result.observed[neuron]
            assert found == pytest.approx(expected)


# ---- predictions of cross-validated fits


def test_cross_validated_noise_needs_the_wider_null() -> None:
    rng = np.random.default_rng(30)
    sound, responses = rng.standard_normal((15, 40, 100)), rng.standard_normal((15, 400, 1, 100))
    psth = responses[:, :, 0]
    gram, cross = sound @ sound.transpose(0, 2, 1), sound @ psth.transpose(0, 2, 1)
    weights = np.linalg.solve(gram.sum(0) - gram + np.eye(40), cross.sum(0) - cross)  # leave one clip out
    predictions, ds = recording(list(weights.transpose(0, 2, 1) @ sound), list(responses))
    plain = score_null(predictions, ds, score="cc", n_null=199)
    wide = score_null(predictions, ds, score="cc", n_null=199, cross_validated=True)
    assert (plain.p <= 0.05).mean() > 0.07  # what the null would say of fits that share no clips
    assert (wide.p <= 0.05).mean() < 0.06
    np.testing.assert_allclose(wide.null.std(0), math.sqrt(2) * plain.null.std(0))
    np.testing.assert_allclose(wide.null.mean(0), plain.null.mean(0), atol=1e-12)


def test_cross_validated_comparisons_are_wider() -> None:
    predictions, ds = driven(n_clips=9)
    models = {"a": predictions, "b": [rates + 0.3 * torch.randn(rates.shape) for rates in predictions]}
    plain, wide = (compare_models(models, ds, cross_validated=known).pairs[0] for known in (False, True))
    for part in ("neurons", "population"):
        one, other = getattr(plain, part), getattr(wide, part)
        np.testing.assert_allclose(other.high - other.low, math.sqrt(2) * (one.high - one.low))
        np.testing.assert_allclose(other.value, one.value)
    assert (wide.p >= plain.p).all()


def test_a_comparison_of_no_neuron_says_why() -> None:
    ds = SyntheticDataset(n_neurons=2, n_clips=7, n_repeats=1)
    models = {"a": list(ds.true_rates), "b": [rate + 0.1 * rate**2 for rate in ds.true_rates]}
    result = compare_models(models, ds)
    assert "no neuron has a difference: recorded once" in str(result)
    assert result.pairs[0].mean_reason.startswith("no neuron")
    null = score_null(models["a"], ds, n_null=19)
    assert np.isnan(null.mean_p)
    assert "recorded once" in str(null)


def test_a_null_says_whose_mean_it_is() -> None:
    ds = SyntheticDataset(n_neurons=2, n_clips=6, n_repeats=2)
    rates = [torch.stack([rate[0], torch.zeros_like(rate[0])]) for rate in ds.true_rates]
    null = score_null(rates, ds, score="cc", n_null=19)
    assert "note: the mean is that of 1 of 2 neurons" in str(null)


def test_random_draws_do_not_depend_on_the_order_of_clips_or_neurons(ragged: Recording) -> None:
    predictions, ds = ragged
    rng = np.random.default_rng(1)
    worse = [rates + 0.3 * torch.from_numpy(rng.standard_normal(rates.shape)) for rates in predictions]
    clips, neurons = rng.permutation(9), rng.permutation(6)
    turned = ds.select(clips=clips.tolist(), neurons=neurons.tolist())

    def numbers(first: list[Tensor], second: list[Tensor], where: Any) -> list[np.ndarray]:
        found = []
        for method in ("shift", "permute-clips"):
            null = score_null(first, where, method=method, score="cc", n_null=99)
            found += [null.p, null.q, null.null.mean(0)]
        for method in ("bootstrap", "bca"):
            interval = score_intervals(first, where, scores="cc", method=method, n_bootstrap=99).intervals[
                "cc"
            ]
            found += [interval.low, interval.high]
        pair = compare_models({"a": first, "b": second}, where, score="cc", n_permutations=99).pairs[0]
        return [*found, pair.p]

    there = [[one[clip][neurons.tolist()] for clip in clips] for one in (predictions, worse)]
    for here, other in zip(numbers(predictions, worse, ds), numbers(*there, turned), strict=True):
        np.testing.assert_allclose(other, here[neurons], atol=1e-12)
