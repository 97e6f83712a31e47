"""Scores of resampled clips from weighted sums equal the scores of clips that come as often as drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepSTRF import metrics
from deepSTRF.metrics import ScoreStatistics
from deepSTRF.metrics.scores import score_columns

KINDS = ("dense", "ended early", "gaps", "fewer repeats", "missing pairs", "single repeat", "silent neuron")
CLOSE = {"rtol": 1e-9, "atol": 1e-11, "equal_nan": True}
DRAWS = torch.tensor([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 3, 1], [0, 4, 0, 0], [1, 0, 0, 3]])


def functions(pred: torch.Tensor, responses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores of clips by the one-shot functions, each (N,)."""
    found = {name: getattr(metrics, name)(pred, responses, reduction="none") for name in ("corrcoef", "fve")}
    found["mse"] = metrics.mse_loss(pred.double(), responses.double(), reduction="none")
    for centring in ("concat", "clip", "published"):
        found[centring] = metrics.normalized_corrcoef(pred, responses, reduction="none", centring=centring)
    for centring in ("concat", "clip"):
        found[f"signal {centring}"] = metrics.signal_power(responses, reduction="none", centring=centring)
    return found


def scores(statistics: ScoreStatistics) -> dict[str, torch.Tensor]:
    """The same from statistics."""
    found = {
        "corrcoef": statistics.correlation(),
        "fve": metrics.scores.ExplainedVariance.compute(statistics),
        "mse": metrics.scores.MeanSquaredError.compute(statistics),
    }
    found |= {centring: statistics.cc_norm(centring) for centring in ("concat", "clip", "published")}
    return found | {f"signal {c}": statistics.powers.powers(c)[0] for c in ("concat", "clip")}


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_numbers_of_draws(kind: str, offset: float, ref: Any) -> None:
    pred, responses = ref.make_case(kind, torch.float64)
    pred, responses = pred + offset, responses + offset
    resampled = scores(ScoreStatistics.of(pred, responses, None).resampled(DRAWS))
    for row, draws in enumerate(DRAWS):
        drawn = torch.arange(4).repeat_interleave(draws)
        for name, expected in functions(pred[drawn], responses[drawn]).items():
            # an offset of a million costs digits of the data itself
            close = CLOSE if not offset else {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
            torch.testing.assert_close(
                resampled[name][row], expected, **close, msg=lambda t, n=name: f"{n}: {t}"
            )


def test_every_row_of_ones_is_the_recording(ref: Any) -> None:
    pred, responses = ref.make_case("gaps", torch.float64)
    whole = ScoreStatistics.of(pred, responses, None)
    for name, expected in scores(whole).items():
        found = scores(whole.resampled(torch.ones(2, 4)))[name]
        torch.testing.assert_close(found, expected.expand(2, -1), **CLOSE)


def test_registered_columns_are_resampled(ref: Any) -> None:
    pred, responses = ref.make_case("dense", torch.float64)
    whole = ScoreStatistics.of(pred, responses, None)
    names = ("snr", "ccmax", "ccmax_low", "ccmax_high")
    given = {name: torch.ones(pred.shape[1]) for name in names}
    resampled = ScoreStatistics(whole.prediction, whole.clips, whole.powers, "clip", given).resampled(DRAWS)
    for name, column in score_columns(resampled).items():
        assert column.shape == ((pred.shape[1],) if name in names else (len(DRAWS), pred.shape[1]))
    torch.testing.assert_close(score_columns(resampled)["cc_norm"], resampled.cc_norm("clip"), **CLOSE)


def test_weights_choose_between_two_models(ref: Any) -> None:
    pred, responses = ref.make_case("fewer repeats", torch.float64)
    other = pred.flip(-1)
    both = ScoreStatistics.cat([ScoreStatistics.of(rates, responses, None) for rates in (pred, other)])
    swap = torch.tensor([True, False, False, True])
    weights = torch.cat([~swap, swap]).double()[None]
    expected = functions(torch.where(swap[:, None, None, None], other, pred), responses)
    for name, found in scores(both.resampled(weights)).items():
        torch.testing.assert_close(found[0], expected[name], **CLOSE)


def test_parts_with_different_numbers_of_repeats_are_joined(ref: Any) -> None:
    pred, responses = ref.make_case("dense", torch.float64)
    fewer = responses[2:, :, :2]
    parts = [ScoreStatistics.of(pred[:2], responses[:2], None), ScoreStatistics.of(pred[2:], fewer, None)]
    padded = responses.clone()
    padded[2:, :, 2:] = torch.nan
    for name, found in scores(ScoreStatistics.cat(parts)).items():
        torch.testing.assert_close(found, functions(pred, padded)[name], **CLOSE)


def test_wrong_weights(ref: Any) -> None:
    pred, responses = ref.make_case("dense")
    statistics = ScoreStatistics.of(pred, responses, None)
    for wrong in (torch.ones(4), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"one column per clip, \(B, 4\)"):
            statistics.resampled(wrong)
