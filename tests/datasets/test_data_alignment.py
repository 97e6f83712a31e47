"""The alignment check: it finds shifts, and gives no false alarm."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import AudioNeuralDataset

MARGIN = 100


def population(kind="onset", shift=0, seed=0, n_clips=6, n_bins=500, n_neurons=10, repeats=4, rate=0.4):
    """Poisson responses that lag their stimulus by two bins, then moved by ``shift`` bins (more: earlier)."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(n_neurons, 8, 6))
    stims, responses = [], []
    for _ in range(n_clips):
        total = n_bins + 2 * MARGIN
        shared = np.convolve(rng.normal(size=total), np.exp(-np.arange(60) / 15), "same")
        bands = np.stack([shared + np.convolve(rng.normal(size=total), np.ones(5), "same") for _ in range(8)])
        if kind == "onset":  # adapting: excited by a rise, suppressed after it
            drive = np.convolve(bands.mean(axis=0), [0, 0, 1, 0.5, -0.4, -0.6, -0.4])[:total]
            drive = np.tile(drive, (n_neurons, 1))
        elif kind == "strf":  # excitation and inhibition in balance, over neurons as well
            late = [
                [np.convolve(band, [0, 0, *w])[:total] for band, w in zip(bands, ws, strict=True)]
                for ws in weights
            ]
            drive = np.sum(late, axis=1)
        else:
            drive = np.zeros((n_neurons, total))
        spread = drive.std(axis=1, keepdims=True)
        lam = rate * np.exp(0.8 * np.divide(drive, spread, out=np.zeros_like(drive), where=spread > 0))
        counts = rng.poisson(lam[:, None], size=(n_neurons, repeats, total))
        stims.append(bands[:, MARGIN : MARGIN + n_bins])
        responses.append(counts[..., MARGIN + shift : MARGIN + shift + n_bins])
    return stims, responses


def built(stims, responses, dt=5.0):
    return NeuralDataset.from_arrays(stims, responses, dt, check_alignment=False)


@pytest.mark.parametrize("kind", ["onset", "strf"])
@pytest.mark.parametrize("shift", [0, -3, 2])
def test_normal_lags_are_found_and_pass(kind, shift):
    report = built(*population(kind, shift)).check_alignment()
    assert report.status == "aligned"
    assert 2 - shift - 1 <= report.lag_bins <= 2 - shift + 4
    assert report.lag_ms == 5.0 * report.lag_bins
    assert report.strength > 6


@pytest.mark.parametrize("kind", ["onset", "strf"])
@pytest.mark.parametrize("seed", [0, 1])
def test_responses_that_lead_raise_a_warning_with_numbers_and_mend(kind, seed):
    stims, responses = population(kind, shift=20, seed=seed)
    with pytest.warns(UserWarning, match=r"before their stimulus.*-\d+ ms.*Remove the first 1[5-8] bins"):
        ds = NeuralDataset.from_arrays(stims, responses, 5.0)
    with pytest.warns(UserWarning, match="before their stimulus"):
        report = ds.check_alignment()
    assert report.status == "early"
    mended = built([s[:, -report.lag_bins :] for s in stims], [r[..., : report.lag_bins] for r in responses])
    assert mended.check_alignment().status == "aligned"


def test_responses_that_come_far_too_late():
    ds = built(*population(shift=-80))
    with pytest.warns(UserWarning, match=r"implausibly late.*\+410 ms"):
        assert ds.check_alignment().status == "late"
    assert ds.check_alignment(max_latency_ms=500).status == "aligned"


@pytest.mark.parametrize("kind", ["onset", "strf"])
@pytest.mark.parametrize("baseline_ms", [60, 100, 150, 200, 250])
def test_a_baseline_before_the_stimulus_is_named_and_placed(kind, baseline_ms):
    stims, responses = population(kind)
    n_before = baseline_ms // 5
    rng = np.random.default_rng(1)
    early = [rng.poisson(0.4, (*r.shape[:2], n_before)) for r in responses]
    late = [rng.poisson(0.4, (*r.shape[:2], 7 * clip)) for clip, r in enumerate(responses)]
    with_baseline = [np.concatenate(parts, axis=-1) for parts in zip(early, responses, strict=True)]
    with pytest.raises(ValueError, match=rf"clip 0.*baseline of {baseline_ms} ms.*pre_ms={baseline_ms}\)"):
        NeuralDataset.from_arrays(stims, with_baseline, 5.0)
    with pytest.warns(UserWarning, match=rf"late.*{baseline_ms} ms longer.*baseline.*pre_ms={baseline_ms}\)"):
        NeuralDataset.from_arrays(stims, with_baseline, 5.0, on_length_mismatch="trim")
    longer = [np.concatenate(parts, axis=-1) for parts in zip(with_baseline, late, strict=True)]
    for blocks in (with_baseline, longer):  # what was recorded after the stimulus differs between clips
        ds = NeuralDataset.from_arrays(stims, blocks, 5.0, pre_ms=baseline_ms)
        assert ds.check_alignment().status == "aligned"
        for clip, expected in enumerate(responses):
            np.testing.assert_array_equal(ds.response_block(clip), expected)
            np.testing.assert_array_equal(ds.stims[clip][0], stims[clip].astype(np.float32))
    assert f"the {n_before} bins before the stimulus" in ds.load_report.skipped[0][1]
    # the same responses without the excess that gives them away, as long as their stimuli
    if baseline_ms > 100:
        cut = [block[..., : s.shape[1]] for s, block in zip(stims, with_baseline, strict=True)]
        with pytest.warns(UserWarning, match=r"late.*10 to 50 ms.*baseline before the stimulus.*pre_ms"):
            NeuralDataset.from_arrays(stims, cut, 5.0)


def test_a_baseline_before_sounds():
    rng = np.random.default_rng(0)
    sounds, counts, padded = [], [], []
    for _ in range(4):
        envelope = np.repeat(np.abs(rng.normal(size=120)), 5)
        sounds.append(rng.normal(size=600 * 80) * np.repeat(envelope, 80))
        counts.append(rng.poisson(0.5 * np.roll(envelope, 3), (4, 6, 600)))
        padded.append(np.concatenate([rng.poisson(0.3, (4, 6, 40)), counts[-1]], axis=-1))
    with pytest.warns(UserWarning, match=r"200 ms longer.*pre_ms=200\)"):
        AudioNeuralDataset.from_arrays(sounds, padded, 5.0, 16000, on_length_mismatch="trim")
    ds = AudioNeuralDataset.from_arrays(sounds, padded, 5.0, 16000, pre_ms=200)
    for clip, expected in enumerate(counts):
        np.testing.assert_array_equal(ds.response_block(clip), expected)
    assert ds.check_alignment().lag_bins == 3


@pytest.mark.parametrize(
    ("pre_ms", "error", "text"),
    [
        (12.0, ValueError, "pre_ms=12 is 2.4 bins of 5 ms"),
        (-5.0, ValueError, "pre_ms"),
        ("200", TypeError, "pre_ms must be a number"),
        (45.0, ValueError, r"clip 0.*\(9 bins\).*\(14 bins\) would end before the stimulus \(10 bins\)"),
    ],
)
def test_a_baseline_that_cannot_be(pre_ms, error, text):
    with pytest.raises(error, match=text):
        NeuralDataset.from_arrays([np.ones((2, 10))], [np.ones((1, 3, 14))], 5.0, pre_ms=pre_ms)


@pytest.mark.parametrize("dt", [5.0, 10.0])
@pytest.mark.parametrize("cut_ms", [0, 200])
def test_no_false_alarm_on_slow_responses(dt, cut_ms):
    """Potentials with peaks at 50, 100 and 200 ms, also when recorded for longer than the sound."""
    lags = np.arange(0, 400, dt)
    peaks = ((0.4, 50, 12), (-1.0, 100, 25), (0.9, 200, 40))
    kernel = sum(size * np.exp(-(((lags - at) / width) ** 2) / 2) for size, at, width in peaks)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        stims, traces, n_bins = [], [], int(20_000 / dt)
        for _ in range(6):
            level = np.abs(np.convolve(rng.normal(size=n_bins), np.exp(-np.arange(40) / 10), "same"))
            drive = np.convolve(level - level.mean(), kernel)[: n_bins + int(cut_ms / dt)]
            drive /= drive.std()
            traces.append(drive + 2.0 * rng.normal(size=(6, 3, drive.size)))
            stims.append(level[None])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            NeuralDataset.from_arrays(stims, traces, dt, on_length_mismatch="trim")


def test_no_false_alarm_on_calcium():
    for rise, decay, dt in ((50, 400, 33.0), (100, 1000, 33.0), (80, 500, 66.0)):
        rng = np.random.default_rng(0)
        t = np.arange(0, 3000, dt)
        kernel = (1 - np.exp(-t / rise)) * np.exp(-t / decay)
        stims, traces, n_bins = [], [], int(60_000 / dt)
        for _ in range(5):
            level = np.abs(np.convolve(rng.normal(size=n_bins), np.exp(-np.arange(40) / 10), "same"))
            spikes = rng.poisson(0.3 * np.roll(level, 1), size=(12, 3, n_bins))
            slow = np.apply_along_axis(lambda row, k=kernel, n=n_bins: np.convolve(row, k)[:n], -1, spikes)
            stims.append(level[None])
            traces.append(slow + 0.3 * np.abs(rng.normal(size=slow.shape)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert NeuralDataset.from_arrays(stims, traces, dt).check_alignment().status == "aligned"


def test_clips_in_another_order():
    stims, responses = population("onset")
    ds = built(stims, responses[::-1])
    with pytest.warns(UserWarning, match="different orders"):
        assert ds.check_alignment().status == "unclear"
    NeuralDataset.from_arrays(stims, responses[::-1], 5.0)  # not proof enough to warn unasked


@pytest.mark.parametrize("seed", range(12))
def test_no_false_alarm_on_random_data(seed):
    rng = np.random.default_rng(seed)
    n_clips, n_neurons, repeats, bins = (
        rng.integers(1, 6),
        rng.integers(1, 5),
        rng.integers(1, 4),
        rng.integers(5, 900),
    )
    make = (
        lambda: rng.normal(size=(4, bins)),
        lambda: np.abs(rng.standard_cauchy((4, bins))),  # a few huge values
        lambda: (rng.random((4, bins)) < 0.01) * 1.0,  # sparse clicks
    )[seed % 3]
    rate = (0.005, 0.1, 3.0, 50.0)[seed % 4]
    responses = [rng.poisson(rate, (n_neurons, repeats, bins)) for _ in range(n_clips)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = built([make() for _ in range(n_clips)], responses).check_alignment()
    assert report.status in ("unclear", "too short")
    assert report.lag_bins is None


@pytest.mark.parametrize("seed", range(12))
def test_no_false_alarm_on_rare_events_that_repeat(seed):
    """Few loud sounds and few long bursts, the same in all repeats: strong chance meetings prove nothing."""
    rng = np.random.default_rng(seed)
    bins = int(rng.integers(300, 1400))
    stims = [(rng.random((4, bins)) < 0.01) * 1.0 if seed % 2 else np.abs(rng.standard_cauchy((4, bins)))]
    bursts = np.repeat(rng.random(bins // 20 + 1) < 0.05, 20)[:bins]
    counts = [rng.poisson(1e-3 + 20.0 * bursts, (2, 3, bins))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert built(stims, counts).check_alignment(warn_unclear=False).status == "unclear"


@pytest.mark.parametrize("responses", [np.zeros, np.ones])
def test_silent_and_constant_responses(responses):
    ds = built([np.random.default_rng(0).normal(size=(4, 800))], [responses((2, 3, 800))])
    assert ds.check_alignment().status == "unclear"


def test_constant_stimuli():
    counts = np.random.default_rng(0).poisson(0.3, (2, 3, 800))
    assert built([np.zeros((4, 800))], [counts]).check_alignment().status == "unclear"


def test_one_click_and_one_spike_prove_nothing():
    stimulus, spikes = np.zeros((1, 1000)), np.zeros((1, 1, 1000))
    stimulus[0, 500], spikes[0, 0, 450] = 1, 1
    assert NeuralDataset.from_arrays([stimulus], [spikes], 5.0).check_alignment().status == "unclear"


def test_a_periodic_sound_does_not_confuse():
    """A peak one period early is no better than the true one."""
    rng = np.random.default_rng(0)
    clicks = np.zeros(4000)
    clicks[::40] = 1
    rate = 0.05 + 2.0 * np.roll(clicks, 3)
    counts = rng.poisson(rate, (5, 5, 4000))
    assert NeuralDataset.from_arrays([clicks[None]], [counts], 5.0).check_alignment().lag_bins == 3


def test_too_short_to_tell():
    report = built(*population(n_clips=1, n_bins=60)).check_alignment()
    assert report.status == "too short"
    assert built(*population(n_clips=2)).select(clips=[]).check_alignment().status == "too short"
    assert (
        built(*population(n_clips=2)).select(neurons=[], keep_unheard=True).check_alignment().lag_ms is None
    )


def test_waveforms():
    rng = np.random.default_rng(0)
    envelope = np.repeat(np.abs(rng.normal(size=800)), 5)
    sound = rng.normal(size=4000 * 80) * np.repeat(envelope, 80)
    counts = rng.poisson(0.5 * np.roll(envelope, 3), (4, 3, 4000))
    ds = AudioNeuralDataset.from_arrays([sound], [counts], 5.0, 16000)
    assert ds.check_alignment().lag_bins == 3
    with pytest.warns(UserWarning, match="before their stimulus"):
        AudioNeuralDataset.from_arrays([sound[: -20 * 80]], [counts[..., 20:]], 5.0, 16000)


def test_ragged_and_missing_data():
    stims, responses = population("onset", n_clips=5)
    lists = []
    for clip, block in enumerate(responses):
        rows = [block[n, : 1 + (n + clip) % 4].astype(float) for n in range(len(block))]
        rows[clip][:, 50:60] = np.nan
        lists.append([None if (n + clip) % 5 == 0 else rows[n] for n in range(len(block))])
    ds = NeuralDataset.from_arrays(stims, lists, 5.0)
    assert ds.check_alignment().status == "aligned"
    assert ds.select(neurons=[3]).check_alignment(warn_unclear=False).status in ("aligned", "unclear")


def test_long_recordings_are_sampled():
    stims, responses = population("onset", n_clips=3, n_bins=40_000, n_neurons=2, repeats=1)
    assert built(stims, responses).check_alignment().lag_bins == 2


def test_the_embedded_recording_is_aligned():
    """Its sounds are of several kinds that drive different neurons."""
    from deepSTRF.datasets.audio import SyntheticDataset

    assert 1 <= SyntheticDataset().check_alignment().lag_bins <= 5


@pytest.mark.ns1
def test_the_real_recording_is_aligned(ns1_dir):
    from deepSTRF.datasets.audio import NS1Dataset

    ds = NS1Dataset(path=ns1_dir)
    report = ds.check_alignment()
    assert report.status == "aligned"
    assert 1 <= report.lag_bins <= 4
    subset = ds.select(neurons=lambda meta: meta["single_t"] in ("Yes", "Maybe") and meta["depth_um"] >= 0)
    assert subset.N_neurons == 73  # weakness 20: this subset could not be expressed
    assert len(subset) == 20
