"""Filter times sound, filters of noisy copies, and occlusion, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.interpret import contributions, dstrf, occlusion, smooth_dstrf
from deepSTRF.interpret.dstrf import ArraySink, FileSink, stimulus_frames
from deepSTRF.models.audio import DeepEncoder, Linear, NetworkReceptiveField, StateNet
from deepSTRF.models.wav2spec import CausalMelSpectrogram

L, F, T = 5, 8, 60


def clip(frames: int = T) -> torch.Tensor:
    return torch.randn(F, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def windows(x: torch.Tensor, lags: int = L) -> torch.Tensor:
    """(T, L, F), oldest frame first."""
    return nn.functional.pad(x, (lags - 1, 0)).unfold(1, lags, 1).permute(1, 2, 0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return NetworkReceptiveField(F, L, out_neurons=2).double()


# ---------------------------------------------------------------------- filter times sound


@pytest.mark.parametrize("options", [{}, {"times": [3, 20, 59]}, {"edge": "drop"}, {"lags": 3}, {"lags": 9}])
def test_contributions_sum_to_what_the_filters_explain(options) -> None:
    result = dstrf(network(), clip(), **options)
    parts = contributions(result, clip().unsqueeze(0))
    assert parts.shape == result.weights.shape
    wanted = result.response - result.intercept - result.memory
    torch.testing.assert_close(parts.sum((2, 3)), wanted)
    by_hand = result.weights * windows(clip(), result.lags)[result.times].unsqueeze(1)
    torch.testing.assert_close(parts, by_hand)


def test_on_a_path_they_are_integrated_gradients() -> None:
    model, start = network(), torch.linspace(-0.5, 0.5, F).double()
    result = dstrf(model, clip(), n_steps=16, baseline=start, edge="drop")
    parts = contributions(result, clip(), baseline=start)
    with torch.no_grad():
        silent = model(start.view(1, 1, F, 1).expand(1, 1, F, T))[0, :, 0].T[result.times]
    torch.testing.assert_close(parts.sum((2, 3)), result.response - silent - result.completeness)
    assert float(result.completeness.abs().max()) < 1e-3
    at_baseline = contributions(result, start.view(F, 1).expand(F, T), baseline=start)
    assert not at_baseline.any()


def test_recurrent_models_keep_their_memory_apart() -> None:
    torch.manual_seed(0)
    result = dstrf(StateNet(10, out_neurons=2).double(), torch.randn(10, 40).double(), lags=6)
    torch.manual_seed(0)
    StateNet(10, out_neurons=2)
    parts = contributions(result, torch.randn(10, 40).double())
    torch.testing.assert_close(parts.sum((2, 3)), result.response - result.intercept - result.memory)


def test_sounds_and_spectrograms_of_models_with_a_front_end(tmp_path) -> None:
    torch.manual_seed(0)
    model = Linear(F, 3, 2, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=F)).double()
    sound = torch.randn(16 * 100).double()
    by_sample = dstrf(model, sound, wrt="samples", lags=6)
    parts = contributions(by_sample, sound)
    assert parts.shape == by_sample.weights.shape
    torch.testing.assert_close(parts.sum((2, 3)), by_sample.response - by_sample.intercept - by_sample.memory)
    by_band = dstrf(model, sound, sink=FileSink(tmp_path / "filters.npy"))
    spectrogram = stimulus_frames(model, sound)
    path = contributions(by_band, spectrogram, sink=FileSink(tmp_path / "parts.npy"))
    torch.testing.assert_close(
        torch.from_numpy(np.load(path)).sum((2, 3)), by_band.response - by_band.intercept
    )
    with pytest.raises(ValueError, match="stimulus_frames"):
        contributions(by_band, sound)


def test_named_parts_and_models_that_look_ahead() -> None:
    torch.manual_seed(0)
    model = Linear(F, 3, 2, prefiltering={"prefiltering": "adaptrans", "dt": 5.0}, norm="none").double()
    result = dstrf(model, clip(), wrt="prefiltering")
    frames = stimulus_frames(model, clip(), wrt="prefiltering")
    parts = contributions(result, frames)
    assert parts.shape[-1] == 2 * F, "ON and OFF"
    torch.testing.assert_close(parts.sum((2, 3)), result.response - result.intercept)
    single = occlusion(model, clip(), wrt="prefiltering", times=[20, 40])
    torch.testing.assert_close(single.change, parts[[20, 40]])
    with pytest.raises(ValueError, match="is inside it"):
        smooth_dstrf(model, clip(), wrt="prefiltering")
    ahead = nn.Sequential(nn.Conv2d(1, 2, (F, 5), padding=(0, 2)), nn.Tanh()).double()
    both = dstrf(ahead, clip(), lookahead=2, lags=3)
    torch.testing.assert_close(contributions(both, clip()).sum((2, 3)), both.response - both.intercept)


def test_contributions_refuse_another_clip_and_clean_up(tmp_path) -> None:
    result = dstrf(network(), clip())
    with pytest.raises(ValueError, match="8 bands by 60 frames"):
        contributions(result, clip(50))
    with pytest.raises(ValueError, match="baseline must be"):
        contributions(result, clip(), baseline=torch.zeros(3))
    dropped = dstrf(network(), clip(), sink=[ArraySink(), ArraySink()])
    with pytest.raises(TypeError, match="of several sinks pass one"):
        contributions(dropped, clip())

    class Full(FileSink):
        def write(self, rows, block):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        contributions(result, clip(), sink=Full(tmp_path / "a.npy"))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- noisy copies


def test_smoothing_a_linear_model_changes_nothing() -> None:
    model = Linear(F, L, 2, norm="none").double()
    smoothed = smooth_dstrf(model, clip(), n_samples=4, noise=0.5)
    torch.testing.assert_close(smoothed.weights, dstrf(model, clip()).weights)
    assert float(smoothed.spread.abs().max()) < 1e-12
    torch.testing.assert_close(smoothed.clean, dstrf(model, clip()).response)


def test_a_kink_is_smoothed_into_a_normal_curve() -> None:
    class Rectified(nn.Module):
        receptive_field = 1

        def forward(self, x):
            return torch.relu(x[:, :, :1])

    x = torch.linspace(-1, 1, 41).double().repeat(2, 1)
    smoothed = smooth_dstrf(Rectified(), x, n_samples=400, noise=0.4, seed=1)
    slope, sd = smoothed.weights[:, 0, 0, 0].double(), smoothed.noise_sd
    assert sd == pytest.approx(0.4 * float(x.std()))
    # the share of copies on the active side, and its standard deviation
    wanted = torch.special.ndtr(x[0] / sd)
    torch.testing.assert_close(slope, wanted, atol=0.1, rtol=0)
    spread = (wanted * (1 - wanted)).sqrt()
    torch.testing.assert_close(smoothed.spread[:, 0, 0, 0].double(), spread, atol=0.1, rtol=0)
    assert not smoothed.weights[..., 1].any()


def test_mean_and_spread_are_those_of_the_copies() -> None:
    torch.manual_seed(0)
    model = DeepEncoder(F, n_hidden=4, out_neurons=2).double()
    smoothed = smooth_dstrf(model, clip(30), n_samples=3, noise=0.2, seed=5, neurons=[1], times=[20, 29])
    draw, sd = torch.Generator().manual_seed(5), 0.2 * float(clip(30).std())
    copies = [clip(30) + sd * torch.randn(1, 1, F, 30, generator=draw).double() for _ in range(3)]
    each = torch.stack([dstrf(model, one, neurons=[1], times=[20, 29]).weights for one in copies])
    torch.testing.assert_close(smoothed.weights, each.mean(0))
    torch.testing.assert_close(smoothed.spread, each.std(0))
    assert smoothed.response.shape == (2, 1)
    assert smoothed.times.tolist() == [20, 29]
    again = smooth_dstrf(model, clip(30), n_samples=3, noise=0.2, seed=5, neurons=[1], times=[20, 29])
    assert torch.equal(again.weights, smoothed.weights)
    alone = smooth_dstrf(model, clip(30), n_samples=1, times=[29])
    assert torch.isnan(alone.spread).all()


def test_smoothing_takes_sounds_and_unbounded_models() -> None:
    torch.manual_seed(0)
    model = Linear(F, 3, 2, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=F))
    sound = torch.randn(16 * 100)
    assert smooth_dstrf(model, sound, n_samples=2).weights.shape == dstrf(model, sound).weights.shape
    by_sample = smooth_dstrf(model, sound, n_samples=2, wrt="samples", lags=4)
    assert by_sample.weights.shape == (20, 2, 4 * 80, 1)
    recurrent = StateNet(10, out_neurons=1)
    x = torch.randn(10, 40)
    assert smooth_dstrf(recurrent, x, n_samples=2, times=[39]).lags == dstrf(recurrent, x, times=[39]).lags
    with pytest.raises(TypeError, match="keeps its filters in memory"):
        smooth_dstrf(model, sound, sink=ArraySink())
    with pytest.raises(ValueError, match="noise must be a finite number above 0"):
        smooth_dstrf(model, sound, noise=0.0)
    with pytest.raises(ValueError, match="does not vary"):
        smooth_dstrf(network(), torch.ones(F, 30))


# ---------------------------------------------------------------------- occlusion


def test_single_bins_of_a_linear_model_are_kernel_times_sound() -> None:
    model = Linear(F, L, 3, norm="none").double().train()
    found = occlusion(model, clip(), times=[0, 2, 30, 59], neurons=[2, 0])
    result = dstrf(model, clip(), times=[0, 2, 30, 59], neurons=[2, 0])
    torch.testing.assert_close(found.change, contributions(result, clip()))
    torch.testing.assert_close(found.per_bin(), found.change)
    torch.testing.assert_close(found.response, result.response)
    assert model.training


def test_patches_of_a_linear_model_sum_their_bins() -> None:
    model = Linear(F, L, 3, norm="none").double()
    mean = clip().mean(-1)
    found = occlusion(model, clip(), patch=(3, 2), baseline=mean, times=[1, 30])
    assert found.lag_edges.tolist() == [0, 1, 3, 5], "the oldest is narrow"
    assert found.band_edges.tolist() == [0, 3, 6, 8]
    result = dstrf(model, clip(), times=[1, 30])
    parts = contributions(result, clip(), baseline=mean)
    for p in range(3):
        for q in range(3):
            lags = slice(*found.lag_edges[p : p + 2].tolist())
            bands = slice(*found.band_edges[q : q + 2].tolist())
            wanted = parts[:, :, lags, bands].sum((2, 3))
            torch.testing.assert_close(found.change[:, :, p, q], wanted)
            torch.testing.assert_close(found.per_bin()[:, :, lags, bands].sum((2, 3)), wanted)
    assert not found.change[0, :, 0].any(), "a patch before the clip"


def test_a_nonlinear_model_run_by_hand_in_any_memory() -> None:
    torch.manual_seed(0)
    for model, lags in ((network(), None), (StateNet(F, kernel_size=5, out_neurons=2).double(), 6)):
        found = occlusion(model, clip(), patch=(4, 3), baseline=0.7, times=[25], lags=lags)
        small = occlusion(model, clip(), patch=(4, 3), baseline=0.7, times=[25], lags=lags, budget_bytes=1)
        torch.testing.assert_close(found.change, small.change)
        model.eval()
        for p, q in ((0, 0), (1, 1)):
            changed = clip()
            first = 26 - int(found.lag_edges[-1])
            rows = slice(*found.band_edges[q : q + 2].tolist())
            changed[rows, first + int(found.lag_edges[p]) : first + int(found.lag_edges[p + 1])] = 0.7
            with torch.no_grad():
                before, after = (model(x.view(1, 1, F, T))[0, :, 0, 25] for x in (clip(), changed))
            torch.testing.assert_close(found.change[0, :, p, q], before - after)


def test_occlusion_needs_no_gradient_and_says_what_it_cannot() -> None:
    class Counting(nn.Module):
        receptive_field = 2

        def forward(self, x):
            loud = (x > 0).to(x).sum(2, keepdim=True)
            return loud + nn.functional.pad(loud, (1, 0))[..., :-1]

    found = occlusion(Counting(), clip(), times=[9], baseline=-1.0)
    assert torch.equal(found.change[0, 0], (clip()[:, 8:10].T > 0).double())
    model = network()
    with pytest.raises(ValueError, match=r"patch must be \(bands, frames\)"):
        occlusion(model, clip(), patch=3)
    with pytest.raises(ValueError, match="no bound: say how many frames"):
        occlusion(StateNet(F, kernel_size=5), clip().float())
    with pytest.raises(ValueError, match="nothing to do"):
        occlusion(model, clip(), neurons=[])
    with pytest.raises(ValueError, match="baseline must be"):
        occlusion(model, clip(), baseline=torch.zeros(F + 1))
