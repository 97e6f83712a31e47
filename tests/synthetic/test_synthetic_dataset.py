"""The simulated recording: the same on every run and in both modes, and true to what it says of itself."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from deepSTRF.datasets import concat_neural_datasets
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.dsp import rahman_cochleagram
from deepSTRF.dsp.recursion import exponential_moving_average  # inner: parts of the front-ends
from deepSTRF.registry import DATASETS

KNOWN_SAMPLES = [0.0381, -0.0312, 0.0, 0.0081, 0.0]
KNOWN_SPIKES = [312, 318, 257, 300, 317, 361]
KNOWN_FREQUENCIES = [4859, 4398, 4766, 4868]
SMALL = {"n_neurons": 8, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}


@pytest.fixture(scope="module")
def default() -> SyntheticDataset:
    return SyntheticDataset()


def same(a: SyntheticDataset, b: SyntheticDataset) -> bool:
    stims = all(torch.equal(x, y) for x, y in zip(a.stims, b.stims, strict=True))
    return stims and all(torch.equal(a.response_block(i), b.response_block(i)) for i in range(len(a)))


def test_registered():
    assert DATASETS.get("synthetic") is SyntheticDataset


def test_the_seed_decides_everything():
    first = SyntheticDataset(**SMALL, seed=3)
    assert same(first, SyntheticDataset(**SMALL, seed=3))
    assert not same(first, SyntheticDataset(**SMALL, seed=4))
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002 (the global state is what must not matter)
    assert same(first, SyntheticDataset(**SMALL, seed=3))


def test_known_values():
    """Recorded once: another machine or release must make the same recording."""
    ds = SyntheticDataset(**SMALL, return_waveform=True)
    heads = [round(float(ds.stims[clip][0, 400]), 4) for clip in range(5)]
    assert heads == KNOWN_SAMPLES
    assert [int(ds.response_block(clip).sum()) for clip in range(6)] == KNOWN_SPIKES
    assert [round(row["best_frequency_hz"]) for row in ds.nrn_meta[:4]] == KNOWN_FREQUENCIES


def test_shapes_and_facts(default):
    assert (default.N_neurons, len(default), default.F, default.dt) == (24, 24, 24, 5.0)
    assert tuple(default.stims[0].shape) == (1, 24, 400)
    assert tuple(default.response_block(0).shape) == (24, 10, 400)
    assert bool(default.nrn_masks.all())
    assert default.response_storage.clips[0].data.dtype == np.int8
    assert default.describe()["alignment"] == "causal"
    assert {row["type"] for row in default.stim_meta} == {
        "modulated_noise", "harmonic_stack", "chirps", "tone_pips", "sequence",
    }  # fmt: skip
    np.testing.assert_allclose(default.frequencies_hz, 500.0 * 2.0 ** (np.arange(24) / 6))


def test_both_modes_carry_the_same_responses():
    spec, wave = SyntheticDataset(**SMALL), SyntheticDataset(**SMALL, return_waveform=True)
    assert (wave.audio_fs, wave.hop, wave.F, spec.audio_fs) == (16000, 80, 24, None)
    assert tuple(wave.stims[0].shape) == (1, 8000)
    for clip in range(len(spec)):
        assert torch.equal(spec.response_block(clip), wave.response_block(clip))
        assert spec.source_fingerprint(clip) == wave.source_fingerprint(clip)
        again = rahman_cochleagram(
            wave.stims[clip], 16000, alignment="causal", n_filters=24, f_max=float(spec.frequencies_hz[-1])
        )
        torch.testing.assert_close(spec.stims[clip], again - np.log(1e-4).astype(np.float32))


def test_48_khz_has_the_bands_of_ns1():
    ds = SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=2, clip_seconds=0.3, audio_fs=48000)
    assert ds.F == 34
    np.testing.assert_allclose(ds.frequencies_hz, 500.0 * 2.0 ** (np.arange(34) / 6))


def test_sounds_stay_below_one_and_silence_is_zero(default):
    wave = SyntheticDataset(n_neurons=1, n_clips=10, n_repeats=1, return_waveform=True)
    assert max(float(stim.abs().max()) for stim in wave.stims) < 1.0
    assert min(float(stim.square().mean().sqrt()) for stim in wave.stims) > 0.01
    assert min(float(stim.min()) for stim in default.stims) == 0.0
    sequences = [i for i, row in enumerate(default.stim_meta) if row["type"] == "sequence"]
    assert all((default.stims[i] == 0).all(dim=1).float().mean() > 0.05 for i in sequences)


def test_the_spectrogram_is_causal():
    wave = SyntheticDataset(**SMALL, return_waveform=True).stims[0].clone()
    options = {"alignment": "causal", "n_filters": 24, "f_max": 7000.0}
    before = rahman_cochleagram(wave, 16000, **options)
    wave[0, 50 * 80 :] = 1e3
    assert torch.equal(rahman_cochleagram(wave, 16000, **options)[..., :50], before[..., :50])


def test_rates_follow_the_documented_formulas(default):
    """A transcription of `simulate`'s docstring from the published kernels, neuron by neuron."""
    level = [exponential_moving_average(s[0].double().mean(0), np.exp(-5 / 80))[0] for s in default.stims]
    overall = torch.cat(level).mean()
    rates = [default.true_rates[clip] for clip in range(3)]
    scale = {}
    for clip in range(3):
        spec = default.stims[clip][0].double()
        mean = exponential_moving_average(spec, np.exp(-5 / 60))[0]
        for neuron in range(8):
            kernel = default.true_strfs[neuron].double()
            bias = float(default.true_biases[neuron])
            linear = correlate(spec, kernel) + bias
            kind = default.nrn_meta[neuron]["kind"]
            if kind == "strf":
                expected = linear.clamp_min(0)
            elif kind == "gain":
                expected = linear.clamp_min(0) / (1 + 1.5 * level[clip] / overall)
            elif kind == "ln":
                expected = torch.sigmoid(linear)
                scale.setdefault(neuron, float(rates[0][neuron].max() / expected.max()))
                expected = expected * scale[neuron]
            else:
                on = correlate((spec - mean).clamp_min(0), kernel)
                off = correlate((mean - spec).clamp_min(0), default.true_off_strfs[neuron].double())
                expected = (bias + on + off).clamp_min(0)
            expected = expected.clamp_max(400 * 0.005)
            torch.testing.assert_close(rates[clip][neuron].double(), expected, rtol=1e-4, atol=1e-6)


def correlate(spec: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    lags = kernel.shape[1]
    padded = torch.nn.functional.pad(spec, (lags - 1, 0))
    return torch.stack([(padded[:, t : t + lags] * kernel).sum() for t in range(spec.shape[1])])


def test_mean_rates_and_spikes(default):
    rate = torch.cat(default.true_rates, dim=1).double()
    hertz = rate.mean(1) * 200
    wanted = torch.tensor([row["mean_rate_hz"] for row in default.nrn_meta], dtype=torch.float64)
    torch.testing.assert_close(hertz, wanted, rtol=0.02, atol=0)  # the cap at 400 Hz takes a little
    counts = torch.cat([default.response_block(clip) for clip in range(24)], dim=2).double()
    expected = rate.sum(1) * 10
    assert bool(((counts.sum((1, 2)) - expected).abs() < 4.5 * expected.sqrt()).all())
    assert float(((counts - rate[:, None]) ** 2).mean() / rate.mean()) == pytest.approx(1.0, abs=0.02)


def test_the_ceiling_is_what_the_true_rate_scores(default):
    rate = torch.cat(default.true_rates, dim=1)
    psth = torch.cat([default.response_block(clip).mean(1) for clip in range(24)], dim=1)
    scores = np.array([np.corrcoef(rate[n], psth[n])[0, 1] for n in range(24)])
    np.testing.assert_allclose(scores, default.true_ceiling.numpy(), atol=0.03)
    assert abs(float(scores.mean() - default.true_ceiling.mean())) < 0.005
    assert 0.6 < float(default.true_ceiling.mean()) < 0.9


def test_powers_agree_with_the_classical_estimates(default):
    """Sahani & Linden: signal power from the variance of the sum and the sum of the variances."""
    counts = torch.cat([default.response_block(clip) for clip in range(24)], dim=2).double()
    repeats = counts.shape[1]
    of_mean = counts.mean(1).var(1, unbiased=False)
    single = counts.var(2, unbiased=False).mean(1)
    signal = (repeats * of_mean - single) / (repeats - 1)
    torch.testing.assert_close(signal, default.true_signal_power.double(), rtol=0.15, atol=1e-4)
    torch.testing.assert_close(single - signal, default.true_noise_power.double(), rtol=0.05, atol=1e-4)


def test_a_linear_model_recovers_the_receptive_fields(default):
    lags = default.true_strfs.shape[-1]
    rows = [
        torch.nn.functional.pad(stim[0], (lags - 1, 0)).unfold(1, lags, 1).permute(1, 0, 2).reshape(400, -1)
        for stim in default.stims
    ]
    x = torch.cat(rows).double()
    x = x - x.mean(0)
    target = torch.cat([default.response_block(clip).mean(1) for clip in range(24)], dim=1).double().T
    ridge = x.T @ x + 1e4 * torch.eye(x.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(ridge, x.T @ (target - target.mean(0))).T
    truth = default.true_strfs.flatten(1).double()
    match = torch.nn.functional.cosine_similarity(found, truth, dim=1)
    kinds = np.array([row["kind"] for row in default.nrn_meta])
    assert float(match[kinds == "strf"].mean()) > 0.78
    assert float(match.min()) > 0.3
    shuffled = torch.nn.functional.cosine_similarity(found, truth.roll(5, 0), dim=1)
    assert float(match.mean()) > float(shuffled.mean()) + 0.3
    best = (x @ found.T)[:, kinds == "strf"]
    rate = torch.cat(default.true_rates, dim=1).double().T[:, kinds == "strf"]
    scores = [np.corrcoef(best[:, k], rate[:, k])[0, 1] for k in range(best.shape[1])]
    assert np.mean(scores) > 0.93


def test_kernels_point_at_the_best_frequency_and_latency(default):
    for row, kernel in zip(default.nrn_meta, default.true_strfs, strict=True):
        band, lag = np.unravel_index(int(kernel.argmax()), kernel.shape)
        octaves = abs(np.log2(default.frequencies_hz[band] / row["best_frequency_hz"]))
        assert octaves <= 1 / 12 + 1e-6
        assert abs((8 - lag) * 5.0 - row["latency_ms"]) <= 5.0
        assert (row["kind"] == "onoff") == bool(default.true_off_strfs[default.nrn_meta.index(row)].any())


def test_truth_follows_selections(default):
    view = default.select(neurons=[5, 2], clips=[7, 0, 3])
    assert torch.equal(view.true_strfs, default.true_strfs[[5, 2]])
    assert torch.equal(view.true_biases, default.true_biases[[5, 2]])
    assert [tuple(rate.shape) for rate in view.true_rates] == [(2, 400)] * 3
    assert torch.equal(view.true_rates[1], default.true_rates[0][[5, 2]])
    whole = default.select(neurons=[5, 2])
    torch.testing.assert_close(whole.true_ceiling, default.true_ceiling[[5, 2]])
    again = view.select(neurons=[1], clips=[2])
    assert torch.equal(again.true_rates[0], default.true_rates[3][[2]])
    assert bool(default.select(clips=[]).true_ceiling.isnan().all())


def test_joined_recordings_have_no_truth():
    one, two = SyntheticDataset(**SMALL), SyntheticDataset(**SMALL, seed=1)
    both = concat_neural_datasets([one, two], names=["a", "b"])
    with pytest.raises(ValueError, match="true parameters of this dataset are unknown"):
        _ = both.true_strfs
    assert both.N_neurons == 16


def test_ragged_clips():
    ds = SyntheticDataset(**SMALL, ragged=True)
    bins = [ds.n_bins(clip) for clip in range(len(ds))]
    assert len(set(bins)) > 2
    assert min(bins) >= 50
    assert max(bins) <= 100
    assert [stim.shape[-1] for stim in ds.stims] == bins
    assert [rate.shape[-1] for rate in ds.true_rates] == bins
    wave = SyntheticDataset(**SMALL, ragged=True, return_waveform=True)
    assert [stim.shape[-1] for stim in wave.stims] == [80 * n for n in bins]


def test_missing_pairs():
    ds = SyntheticDataset(**{**SMALL, "n_neurons": 30, "n_clips": 12}, missing_fraction=0.5)
    masks = ds.nrn_masks
    assert 0.35 < float(masks.float().mean()) < 0.65
    assert bool(masks.any(0).all())
    assert bool(masks.any(1).all())
    clip, neuron = (~masks).nonzero()[0].tolist()
    assert bool(ds.responses[clip][neuron].isnan().all())
    rate = torch.cat([r[3] for r, heard in zip(ds.true_rates, masks[:, 3], strict=True) if heard]).double()
    power = rate.var(unbiased=False)
    assert float(ds.true_signal_power[3]) == pytest.approx(float(power), rel=1e-5)
    assert float(ds.true_ceiling[3]) == pytest.approx(
        float((power / (power + rate.mean() / 4)).sqrt()), rel=1e-5
    )
    full = SyntheticDataset(**{**SMALL, "n_neurons": 30, "n_clips": 12})
    assert torch.equal(ds.responses[0][0] if masks[0, 0] else full.responses[0][0], full.responses[0][0])


def test_the_smallest_recording():
    ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.05, missing_fraction=0.9)
    assert tuple(ds.response_block(0).shape) == (1, 1, 10)
    assert bool(ds.nrn_masks.all())


def test_first_clips_and_neurons_do_not_depend_on_how_many_follow():
    few, many = SyntheticDataset(**SMALL), SyntheticDataset(**{**SMALL, "n_neurons": 9, "n_clips": 8})
    assert all(torch.equal(a, b) for a, b in zip(few.stims, many.stims, strict=False))
    assert few.nrn_meta == many.nrn_meta[:8]


@pytest.mark.parametrize(
    ("dt_ms", "audio_fs"), [(10.0, 16000), (2.5, 16000), (5.0, 22050 * 2 + 300), (4, 8000)]
)
def test_other_bins_and_rates(dt_ms, audio_fs):
    ds = SyntheticDataset(
        n_neurons=4, n_clips=2, n_repeats=2, clip_seconds=0.4, dt_ms=dt_ms, audio_fs=audio_fs
    )
    assert ds.n_bins(0) == round(400 / dt_ms)
    hertz = torch.cat(ds.true_rates, 1).mean(1) * 1000 / dt_ms
    assert bool(((hertz > 5) & (hertz < 60)).all())


def test_no_alignment_warning(default):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default.check_alignment()


def test_numpy_numbers_are_numbers():
    ds = SyntheticDataset(
        n_neurons=np.int64(2), n_clips=np.int32(2), n_repeats=np.uint8(2), audio_fs=np.int64(16000),
        clip_seconds=np.float32(0.5), return_waveform=True,
    )  # fmt: skip
    assert type(ds.audio_fs) is int
    assert type(ds.N_neurons) is int


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_neurons": 0}, ValueError, "n_neurons must be at least 1"),
        ({"n_clips": 2.0}, TypeError, "n_clips is an integer"),
        ({"n_repeats": True}, TypeError, "n_repeats is an integer"),
        ({"seed": -1}, ValueError, "seed must be 0 or more"),
        ({"audio_fs": 44100}, ValueError, "must be a whole number"),
        ({"audio_fs": 1000}, ValueError, "use 4000 or more"),
        ({"clip_seconds": 0.001}, ValueError, "fewer than two bins"),
        ({"clip_seconds": float("nan")}, ValueError, "fewer than two bins"),
        ({"missing_fraction": 1.0}, ValueError, r"missing_fraction lies in \[0, 1\)"),
        ({"dt_ms": 0}, ValueError, "dt_ms"),
    ],
)
def test_bad_arguments(options, error, text):
    with pytest.raises(error, match=text):
        SyntheticDataset(**options)
