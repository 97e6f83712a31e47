"""Statistics of predictions on a recording, clip by clip: what score tables and resamples are made of."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.registry import METRICS
from deepSTRF.training import score_predictions
from deepSTRF.training.evaluation import clip_statistics


def test_statistics_of_clips_hold_what_a_table_holds() -> None:
    ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=5)
    predictions = [rates.sqrt() for rates in ds.true_rates]
    statistics = clip_statistics(predictions, ds, warmup_ms=50.0)
    table = score_predictions(lambda clip: predictions[clip], ds, n_bootstrap=0, warmup_ms=50.0)
    torch.testing.assert_close(statistics.cc_norm(), torch.as_tensor(table["cc_norm"]))
    torch.testing.assert_close(statistics.correlation(), torch.as_tensor(table["cc"]))
    half = score_predictions(
        lambda clip: predictions[clip], ds.select(clips=[0, 1]), n_bootstrap=0, warmup_ms=50.0
    )
    resampled = statistics.resampled(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    for name in ("cc", "cc_norm", "cc_norm_published", "fve", "mse"):
        found = METRICS.get(name).compute(resampled)
        torch.testing.assert_close(found[0], torch.as_tensor(half[name]), equal_nan=True)


def test_as_many_predictions_as_clips() -> None:
    ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=5)
    with pytest.raises(ValueError, match=r"one tensor \(N, T\) per clip, 4 of them, got 3"):
        clip_statistics(ds.true_rates[:3], ds)
