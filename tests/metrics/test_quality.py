"""Neuron quality streams a recording; the inclusion rule says who is left out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF import metrics
from deepSTRF.datasets import NeuralDataset
from deepSTRF.metrics import neuron_quality, select_neurons
from deepSTRF.metrics.quality import Inclusion  # a result class that users never construct
from deepSTRF.training.evaluation import score_predictions  # inner: scores of any predictions


class Recording:
    """The least a dataset must offer."""

    dt = 5.0

    def __init__(self, responses: list[torch.Tensor], smoothing_ms: float | None = None) -> None:
        self.responses = responses
        self.N_neurons = len(responses[0]) if responses else 0
        self.smoothing_ms = smoothing_ms
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.responses)

    def response_block(self, clip: int) -> torch.Tensor:
        self.read.append(clip)
        return self.responses[clip]

    def describe(self) -> dict[str, Any]:
        return {"smoothing_ms": self.smoothing_ms}


@pytest.mark.parametrize("centring", ["clip", "concat"])
def test_equals_the_metric_functions(centring: str, ref: Any) -> None:
    for kind in ref.kinds:
        _, responses = ref.make_case(kind)
        recording = Recording(list(responses))
        quality = neuron_quality(recording, centring=centring, n_bootstrap=20)
        assert recording.read == list(range(len(responses)))  # every clip once
        options = {"reduction": "none", "centring": centring}
        for name in ("signal_power", "noise_power", "snr"):
            torch.testing.assert_close(
                getattr(quality, name), getattr(metrics, name)(responses, **options), equal_nan=True
            )
        found = metrics.ceiling(responses, method="split", centring=centring, n_bootstrap=20)
        known = ~metrics.single_repeat_neurons(responses)
        torch.testing.assert_close(quality.ccmax[known], found.value[known], equal_nan=True)
        assert torch.isnan(quality.ccmax[~known]).all()
        both = known & ~torch.isnan(found.value)
        torch.testing.assert_close(quality.ccmax_low[both], found.low[both])
        torch.testing.assert_close(quality.ccmax_high[both], found.high[both])


def test_counts_and_reasons() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(3, 7, 1, 80, generator=generator)
    responses = signal + 0.3 * torch.randn(3, 7, 4, 80, generator=generator)
    responses[:, 1] = torch.nan
    responses[:, 2, 1:] = torch.nan
    responses[:, 3] = 0.0
    responses[:, 4, 0, ::2] = torch.nan
    responses[:, 4, 1, 1::2] = torch.nan
    responses[:, 4, 2:] = torch.nan  # two repeats that never overlap
    responses[:, 5] = (
        torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * responses[:, 5, :1]
    )  # repeats oppose each other
    responses[0, 6] = torch.nan
    responses[1, 6, 2:] = torch.nan
    quality = neuron_quality(Recording(list(responses), smoothing_ms=21.0))
    assert len(quality) == 7
    assert quality.smoothing_ms == 21.0
    assert quality.dt_ms == 5.0
    assert quality.n_clips.tolist() == [3, 0, 3, 3, 3, 3, 2]
    assert quality.n_repeats_min.tolist() == [4, 0, 1, 4, 2, 4, 2]
    assert quality.n_repeats_max.tolist() == [4, 0, 1, 4, 2, 4, 4]
    assert quality.n_bins.tolist() == [240, 0, 240, 240, 240, 240, 160]
    words = ("", "no data", "once", "no two repeats", "silent", "no positive signal power", "")
    order = (0, 1, 2, 4, 3, 5, 6)
    for neuron, word in zip(order, words, strict=True):
        reason = quality.reasons[neuron]
        assert (reason == "") == (word == "")
        assert word in reason
    for neuron in (1, 2, 3, 4):
        assert torch.isnan(quality.snr[neuron])
        assert torch.isnan(quality.ccmax[neuron])
    assert quality.mean_response[3] == 0.0
    assert quality.ccmax[0] > 0.9
    assert quality.ccmax_low[0] <= quality.ccmax[0] <= quality.ccmax_high[0]


def test_clips_of_different_length_and_repeats() -> None:
    signal = torch.randn(2, 1, 300)
    long, short = signal[..., :200] + torch.randn(2, 6, 200), signal[..., 200:] + torch.randn(2, 3, 100)
    quality = neuron_quality(Recording([long, short]))
    padded = torch.full((2, 2, 6, 200), torch.nan)
    padded[0], padded[1, :, :3, :100] = long, short
    torch.testing.assert_close(quality.snr, metrics.snr(padded, reduction="none"))
    assert quality.n_repeats_min.tolist() == [3, 3]
    assert quality.n_bins.tolist() == [300, 300]


def test_table_as_rows_and_csv(tmp_path: Path) -> None:
    quality = neuron_quality(Recording([torch.rand(3, 4, 50)]))
    rows = quality.rows()
    assert rows[1]["neuron"] == 1
    assert isinstance(rows[1]["n_repeats_max"], int)
    with quality.to_csv(tmp_path / "quality.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == 3
    assert float(read[2]["snr"]) == rows[2]["snr"]


def test_errors() -> None:
    nobody, nothing = Recording([]), Recording([])
    nothing.N_neurons = 2
    with pytest.raises(ValueError, match="no clips"):
        neuron_quality(nothing)
    with pytest.raises(ValueError, match="no neurons"):
        neuron_quality(nobody)
    with pytest.raises(ValueError, match=r"\(N, R, T\)"):
        neuron_quality(Recording([torch.rand(4, 50)]))
    with pytest.raises(ValueError, match="centring"):
        neuron_quality(Recording([torch.rand(1, 4, 50)]), centring="published")
    with pytest.raises(TypeError, match="neuron_quality"):
        select_neurons([1.0, 2.0], min_snr=0.1)
    quality = neuron_quality(Recording([torch.rand(2, 4, 50)]))
    with pytest.raises(TypeError, match="snr"):
        select_neurons(quality, min_snr="high")


def test_a_silent_neuron_is_silent_however_often_it_was_recorded() -> None:
    responses = torch.rand(2, 4, 3, 50)
    responses[:, :3, 1:] = torch.nan  # recorded once
    responses[:, 0, 0] = 0.0
    responses[:, 1, 0] = 0.0
    responses[1, 1, 0, 7] = 1.0  # one spike
    responses[0, 2, 0], responses[1, 2, 0] = 2.0, 0.0  # another constant in each clip
    responses[:, 3] = 0.0
    reasons = neuron_quality(Recording(list(responses))).reasons
    assert reasons[0] == reasons[3] == "silent: the response never varies"
    assert reasons[1] == reasons[2] == "recorded once: no repeats to compare"


def test_inclusion_reports_who_is_left_out_and_why() -> None:
    signal = torch.randn(4, 4, 1, 200)
    responses = signal + torch.tensor([0.3, 8.0, 0.3, 0.3])[:, None, None] * torch.randn(4, 4, 6, 200)
    responses[:, 2, 1:] = torch.nan
    responses[:, 3, 4:] = torch.nan
    quality = neuron_quality(Recording(list(responses)))
    everybody = select_neurons(quality)
    assert everybody.kept == (0, 1, 2, 3)
    assert everybody.left_out == ()
    assert everybody.rule == "no threshold"
    chosen = select_neurons(quality, min_snr=1 / 2, min_repeats=5)
    assert chosen.kept == (0,)
    reasons = dict(chosen.left_out)
    assert set(reasons) == {1, 2, 3}
    assert reasons[1].startswith("snr")
    assert "n_repeats_min 1 < 5" in reasons[2]
    assert "recorded once" in reasons[2]
    assert "n_repeats_min 4 < 5" in reasons[3]
    assert "snr >= 0.5" in chosen.rule
    assert "1 of 4 neurons kept" in str(chosen)
    assert "neuron 2" in str(chosen)
    assert len(chosen) == 1
    nan_fails = select_neurons(quality, min_ccmax=0.0)
    assert 2 not in nan_fails.kept
    assert isinstance(nan_fails, Inclusion)


def test_smoothing_repeats_changes_noise_power_and_the_table_says_which_was_used() -> None:
    signal = torch.randn(6, 1, 1, 400).cumsum(-1) / 5
    raw = signal + 2 * torch.randn(6, 1, 8, 400)
    kernel = torch.tensor([0.25, 0.5, 0.25])
    smooth = torch.nn.functional.conv1d(raw.reshape(-1, 1, 400), kernel.reshape(1, 1, 3), padding=1).reshape(
        raw.shape
    )
    plain = neuron_quality(Recording(list(raw)))
    smoothed = neuron_quality(Recording(list(smooth), smoothing_ms=21.0))
    assert smoothed.noise_power < 0.5 * plain.noise_power
    assert abs(smoothed.signal_power / plain.signal_power - 1) < 0.05
    assert smoothed.snr > 2 * plain.snr
    assert plain.smoothing_ms is None
    assert smoothed.smoothing_ms == 21.0


def test_the_ceiling_is_the_one_of_scores_and_reports() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = []
    for level in (0.1, 0.5, 1.5, 3.0):  # clips that differ in their mean response
        rate = level * (1 + 0.3 * torch.randn(2, 1, 400, generator=generator).clamp(-2, 2))
        blocks.append(torch.poisson(rate.expand(2, 8, 400), generator=generator).numpy())
    stims = [torch.rand(3, 400, generator=generator).numpy() for _ in blocks]
    ds = NeuralDataset.from_arrays(stims, blocks, 5.0, check_alignment=False)
    quality = neuron_quality(ds, n_bootstrap=0)
    assert (quality.centring, quality.ccmax_centring) == ("clip", "concat")
    table = score_predictions(lambda clip: torch.rand(2, 400), ds, n_bootstrap=0)
    np.testing.assert_allclose(quality.ccmax, table.columns["ccmax"], rtol=1e-12)
    # the ceiling by signal power, written out: mean covariance of distinct repeats over variance of the PSTH
    joined = np.concatenate(blocks, axis=-1)
    for neuron in range(2):
        covariance = np.cov(joined[neuron], bias=True)
        signal = covariance[~np.eye(8, dtype=bool)].mean()
        expected = np.sqrt(signal / joined[neuron].mean(0).var())
        assert quality.ccmax[neuron].item() == pytest.approx(expected, abs=0.01)
    within = neuron_quality(ds, centring="clip", n_bootstrap=0)
    assert within.ccmax_centring == "clip"
    assert bool((quality.ccmax - within.ccmax > 0.2).all())
