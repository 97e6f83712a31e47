"""Registered losses and scores: one decorated class or function is all that a new one takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.metrics import (
    Metric,
    ScoreStatistics,
    ScoreTracker,
    corrcoef,
    fve,
    mse_loss,
    normalized_corrcoef,
)
from deepSTRF.registry import LOSSES, METRICS
from deepSTRF.training.evaluation import score_predictions  # inner: predictions without a model


@pytest.fixture
def rate_bias() -> Iterator[type[Metric]]:
    @METRICS.register("rate_bias")
    class RateBias(Metric):
        """Mean of the prediction minus mean of the PSTH.."""

        label, per_epoch = "bias of the rate", True

        @staticmethod
        def compute(statistics: ScoreStatistics) -> Tensor:
            return statistics.pooled.mean_x - statistics.pooled.mean_y

    yield RateBias
    METRICS._entries.pop("rate_bias")  # a registry offers no removal: only a test needs one


def test_a_registered_metric_is_a_column_and_a_score_per_epoch(rate_bias: type[Metric]) -> None:
    assert rate_bias.meaning == "Mean of the prediction minus mean of the PSTH."
    ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    table = score_predictions(lambda clip: ds.response_block(clip).mean(1) + 0.5, ds, n_bootstrap=0)
    assert list(table.columns)[-1] == "rate_bias"
    assert table["rate_bias"] == pytest.approx(0.5)
    row = next(row for row in table.summary_rows() if row["score"] == "rate_bias")
    assert row["label"] == "bias of the rate"

    tracker = ScoreTracker()
    tracker.prepare(0, ds.response_block(0))
    tracker.update([0], ds.response_block(0).mean(1)[None, :, None])
    assert sorted(tracker.compute()) == ["cc", "cc_norm", "rate_bias"]


def test_registered_scores_equal_the_functions() -> None:
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(3, 4, 1, 60, generator=generator)
    responses = pred + torch.rand(3, 4, 5, 60, generator=generator)
    tracker = ScoreTracker()
    for clip in range(3):
        tracker.prepare(clip, responses[clip])
    tracker.update([0, 1, 2], pred)
    statistics = tracker.statistics()
    expected = {
        "cc": corrcoef(pred, responses, reduction="none"),
        "cc_norm": normalized_corrcoef(pred, responses, reduction="none"),
        "cc_norm_published": normalized_corrcoef(pred, responses, reduction="none", centring="published"),
        "fve": fve(pred, responses, reduction="none"),
        "mse": mse_loss(pred, responses, reduction="none").double(),
    }
    for name, values in expected.items():
        torch.testing.assert_close(METRICS.get(name).compute(statistics), values, rtol=1e-6, atol=1e-9)


def test_scores_stay_within_their_limits() -> None:
    ds = SyntheticDataset(n_neurons=4, n_clips=3, n_repeats=4)
    table = score_predictions(lambda clip: ds.response_block(clip)[:, 0] ** 2, ds, n_bootstrap=10)
    for name, values in table.columns.items():
        low, high = METRICS.get(name).limits
        known = values[~np.isnan(values)]
        assert known.size
        assert ((known >= low) & (known <= high)).all(), name


@pytest.mark.parametrize("name", METRICS.names())
def test_a_metric_says_what_tables_show(name: str) -> None:
    metric = METRICS.get(name)
    assert metric.label
    assert metric.meaning
    assert metric.limits[0] < metric.limits[1]


def test_losses_are_registered_under_the_name_before_their_suffix() -> None:
    ours = ["gamma", "mse", "negative_binomial", "poisson"]
    assert set(ours) <= set(LOSSES)
    assert all(LOSSES.get(name).__name__ == f"{name}_loss" and LOSSES.get(name).__doc__ for name in ours)


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_is_a_number_with_a_gradient(name: str) -> None:
    pred = (torch.rand(2, 3, 1, 20) + 0.1).requires_grad_()
    value = LOSSES.get(name)(pred, torch.poisson(torch.rand(2, 3, 4, 20) + 0.5))
    value.backward()
    assert value.ndim == 0
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(pred.grad).all())
    assert float(pred.grad.abs().max()) > 0
