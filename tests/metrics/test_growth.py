"""Scores of large recordings: digits behind an offset, memory, stacks of many clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset
from deepSTRF.metrics import ScoreTracker, corrcoef, feve, fve, neuron_quality
from deepSTRF.metrics._statistics import pooled_moments
from deepSTRF.metrics.quality import COLUMNS
from deepSTRF.metrics.stacks import stacks
from deepSTRF.training.evaluation import score_predictions


def recording(dtype: torch.dtype, holes: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and repeats with a mean of a million and a standard deviation of 1."""
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(3, 4, 1, 500, generator=generator, dtype=torch.float64)
    responses = pred + torch.randn(3, 4, 7, 500, generator=generator, dtype=torch.float64)
    if holes != "none":
        responses[:, 1:, 5:] = torch.nan
        responses[0, 2, :, 100:] = torch.nan
    if holes == "gaps":
        responses[torch.rand(responses.shape, generator=generator) < 0.2] = torch.nan
    return (pred + 1e6).to(dtype), (responses + 1e6).to(dtype)


def brute_force(pred: torch.Tensor, responses: torch.Tensor, valid: np.ndarray | None) -> np.ndarray:
    """Correlation and explained variance, (N, 2), in float64 by the formulas as they are in textbooks."""
    p, y = pred.double().numpy()[:, :, 0], responses.double().numpy()
    found = []
    for neuron in range(p.shape[1]):
        rates, averages = [], []
        for clip in range(p.shape[0]):
            for t in range(p.shape[2]):
                known = ~np.isnan(y[clip, neuron, :, t])
                if valid is not None:
                    known &= valid[clip, neuron, :, t]
                if known.any():
                    rates.append(p[clip, neuron, t])
                    averages.append(y[clip, neuron, known, t].mean())
        x, z = np.array(rates), np.array(averages)
        explained = 1 - ((x - z) ** 2).sum() / ((z - z.mean()) ** 2).sum()
        found.append((np.corrcoef(x, z)[0, 1], explained))
    return np.array(found)


@pytest.mark.parametrize("holes", ["none", "fewer repeats", "gaps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_digit_is_lost_behind_an_offset(dtype: torch.dtype, holes: str) -> None:
    pred, responses = recording(dtype, holes)
    expected = brute_force(pred, responses, None)
    np.testing.assert_allclose(corrcoef(pred, responses, reduction="none"), expected[:, 0], rtol=1e-8)
    np.testing.assert_allclose(fve(pred, responses, reduction="none"), expected[:, 1], rtol=1e-8)
    mask = torch.rand(responses.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    mask &= ~responses.isnan()
    expected = brute_force(pred, responses, mask.numpy())
    np.testing.assert_allclose(corrcoef(pred, responses, mask, reduction="none"), expected[:, 0], rtol=1e-8)
    np.testing.assert_allclose(fve(pred, responses, mask, reduction="none"), expected[:, 1], rtol=1e-8)


def test_more_repeats_than_a_byte_counts() -> None:
    responses = torch.ones(1, 1, 300, 4)
    responses[..., 0, 1] = torch.nan
    responses[..., 1:, 2] = torch.nan
    responses[..., 2] *= 3
    moments, _ = pooled_moments(torch.arange(4.0).reshape(1, 1, 1, 4), responses, None)
    assert moments.count.item() == 4
    assert moments.mean_y.item() == pytest.approx(1.5, abs=1e-15)


class LargestCopy(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most elements of a float64 tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
                self.elements = max(self.elements, made.untyped_storage().nbytes() // 8)
        return out


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("function", [corrcoef, fve, feve])
def test_repeats_are_never_copied_to_float64(function: object, holes: bool) -> None:
    torch.manual_seed(0)
    pred, responses = torch.rand(4, 30, 1, 1000), torch.rand(4, 30, 20, 1000)
    if holes:
        responses[:, :, 15:] = torch.nan
        responses[:, 3, :, 500:] = torch.nan
    with LargestCopy() as made:
        function(pred, responses)  # type: ignore[operator]
    assert made.elements <= 300_000, made.elements  # a block of 2 MiB; the repeats are 2.4 million values


def test_what_a_tracker_keeps_is_bounded() -> None:
    """PSTHs of float32 responses are kept as float32, up to the limit; scores do not depend on it."""
    torch.manual_seed(0)
    responses, pred = torch.rand(6, 4, 3, 200), torch.rand(6, 4, 1, 200)
    clip_bytes = 4 * 200 * 4
    found = []
    for limit in (None, 3 * clip_bytes, 0):
        tracker = ScoreTracker(max_bytes=limit)
        for _ in range(2):  # passes
            tracker.reset()
            for first in (0, 2, 4):
                keys = [first, first + 1]
                new = [key for key in keys if key not in tracker]
                if new:
                    tracker.prepare_stack(new, responses[new])
                tracker.update(keys, pred[keys])
            kept = [key for key in range(6) if key in tracker]
            assert len(kept) == {None: 6, 3 * clip_bytes: 3, 0: 0}[limit]
        assert sum(summary.n_bytes for summary in tracker._clips.values()) == len(kept) * clip_bytes
        found.append(tracker.compute())
    for other in found[1:]:
        for name, scores in found[0].items():
            torch.testing.assert_close(other[name], scores, rtol=1e-7, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(
        found[2]["cc"], corrcoef(pred, responses, reduction="none"), rtol=1e-12, atol=0
    )


class Recording:
    """Clips of several lengths and numbers of repeats, some of them with holes."""

    dt, N_neurons = 5.0, 4

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.blocks = []
        for clip in range(30):
            signal = torch.randn(4, 1, 40 + 10 * (clip % 3), generator=generator)
            block = signal + torch.randn(4, 2 + clip % 4, signal.shape[2], generator=generator)
            if clip % 5 == 4:
                block[1, 1:] = torch.nan
                block[2, 0, :7] = torch.nan
            self.blocks.append(block)

    def __len__(self) -> int:
        return len(self.blocks)

    def response_block(self, clip: int) -> torch.Tensor:
        return self.blocks[clip]

    def describe(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("centring", ["concat", "clip"])
def test_stacks_of_clips_give_what_single_clips_give(centring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"centring": centring, "n_bootstrap": 20}
    stacked = neuron_quality(Recording(), **options)  # type: ignore[arg-type]
    monkeypatch.setattr("deepSTRF.metrics.stacks.STACK_BYTES", 0)
    single = neuron_quality(Recording(), **options)  # type: ignore[arg-type]
    assert stacked.reasons == single.reasons
    for name in COLUMNS:
        torch.testing.assert_close(
            getattr(stacked, name), getattr(single, name), rtol=1e-9, atol=1e-12, equal_nan=True
        )


def test_stacks_hold_every_clip_once_within_their_bytes() -> None:
    clips = [(number, (torch.full((2, 3, 50 + number % 2), float(number)),)) for number in range(9)]
    seen: list[int] = []
    for numbers, (stack,), _ in stacks(iter(clips)):
        assert stack.shape[0] == len(numbers)
        assert [int(one) for one in stack[:, 0, 0, 0]] == numbers
        seen += numbers
    assert sorted(seen) == list(range(9))


@pytest.mark.parametrize("missing", ["nothing", "bins", "repeats"])
def test_predictions_of_clips_of_many_lengths_score_as_one_by_one(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(50, 150, 60)
    responses = [random.poisson(0.5, (5, 3, n)).astype(float) for n in lengths]
    for clip in range(0, 60, 7):
        if missing == "bins":
            responses[clip][:, :, -9:] = np.nan
        if missing == "repeats":
            responses[clip][2, 1:] = np.nan
    ds = NeuralDataset.from_arrays(
        [np.ones((2, n), np.float32) for n in lengths], responses, 5.0, check_alignment=False
    )
    rates = [torch.rand(5, int(n), generator=torch.manual_seed(int(n))) for n in lengths]
    number = 0 if missing == "repeats" else 20  # draws of repeats depend on which clips meet
    together = score_predictions(rates.__getitem__, ds, n_bootstrap=number)
    monkeypatch.setattr("deepSTRF.metrics.stacks.STACK_BYTES", 0)
    single = score_predictions(rates.__getitem__, ds, n_bootstrap=number)
    assert together.reasons == single.reasons
    for name, column in single.columns.items():
        np.testing.assert_allclose(together[name], column, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_stack_of_two_lengths_is_padded_with_zeros_where_nothing_is_missing() -> None:
    clips = [(0, (torch.ones(2, 3, 100),)), (1, (torch.ones(2, 3, 99),))]
    ((keys, (stack,), lengths),) = stacks(iter(clips))
    assert keys == [0, 1]
    assert lengths is not None
    assert lengths.tolist() == [100, 99]
    assert float(stack.sum()) == 2 * 3 * 199
    clips[0][1][0][0, 0, 7] = torch.nan
    ((_, (stack,), lengths),) = stacks(iter(clips))
    assert lengths is None
    assert int(stack.isnan().sum()) == 1 + 2 * 3
