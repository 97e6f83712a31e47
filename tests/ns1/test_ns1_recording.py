"""The real recording: what is in it, that no spike is lost, and that both modes agree."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from deepSTRF.datasets.audio import NS1Dataset, ns1

pytestmark = pytest.mark.ns1


def raw_times(ns1_dir, cell_id: str) -> list[list[np.ndarray]]:
    """Spike times in ms of one unit, sound by sound and repeat by repeat, straight from its file."""
    entries = loadmat(ns1_dir / "spikesandwav" / f"{cell_id}.mat")["data"]["set"][0, 0]["repeats"][0]
    return [[np.asarray(one, dtype=float).ravel() for one in entry["t"][0]] for entry in entries]


def published(times: np.ndarray) -> np.ndarray:
    """The rounding of earlier packages, spike by spike."""
    ticks = np.zeros(4995, dtype=int)
    for time in times:
        tick = int(np.round(time))
        if 0 <= tick < 4995:
            ticks[tick] = 1
    return ticks.reshape(999, 5).sum(1)


def test_what_the_user_documents_promise(load_ns1):
    wave, spec = load_ns1(return_waveform=True), load_ns1()
    assert (wave.N_neurons, len(wave), wave.audio_fs, wave.hop) == (119, 20, 48000, 240)
    assert tuple(wave.stims[0].shape) == (1, 239_760)
    assert tuple(spec.stims[0].shape) == (1, 34, 999)
    assert (spec.audio_fs, spec.hop, spec.F, wave.F) == (None, None, 34, 34)
    assert tuple(wave.hearing_range_hz) == (200.0, 40000.0)
    assert wave.species == "ferret"
    assert (wave.stim_meta[8]["type"], wave.stim_meta[0]["name"], wave.stim_meta[19]["name"]) == (
        "human_speech", "nat01", "nat20",
    )  # fmt: skip
    assert tuple(spec.responses[0][0].shape) == (20, 999)
    assert bool(spec.nrn_masks.all())
    assert spec.stims[0].dtype == torch.float32


def test_responses_do_not_depend_on_the_mode(load_ns1):
    wave, spec = load_ns1(return_waveform=True), load_ns1()
    for clip in range(20):
        assert torch.equal(wave.response_block(clip), spec.response_block(clip))
    assert spec.nrn_meta == wave.nrn_meta
    assert spec.stim_meta == wave.stim_meta


def test_metadata(load_ns1):
    ds = load_ns1()
    assert Counter(row["single_t"] for row in ds.nrn_meta) == {"Yes": 60, "No": 43, "Maybe": 16}
    assert Counter(row["single_n"] for row in ds.nrn_meta) == {2: 60, 0: 43, 1: 16}
    depths = [row["depth_um"] for row in ds.nrn_meta]
    assert (min(depths), max(depths), sum(depth < 0 for depth in depths)) == (-200, 1500, 6)
    noise = [row["noise_ratio"] for row in ds.nrn_meta]
    assert (round(min(noise), 2), round(max(noise), 1)) == (3.27, 39.7)
    assert len({row["cell_id"] for row in ds.nrn_meta}) == 119
    assert len({row["source_sha256"] for row in ds.stim_meta}) == 20
    assert [row["type"] for row in ds.stim_meta].count("human_speech") == 4
    subset = ds.select(neurons=lambda row: row["single_t"] in ("Yes", "Maybe") and row["depth_um"] >= 0)
    assert subset.N_neurons == 73
    assert ds.load_report.skipped == []
    assert len(ds.load_report.kept) == 119


def test_constants():
    assert ns1.NS1_RAHMAN_TEST_INDICES == [3, 6, 9, 19]
    assert sorted(ns1.NS1_RAHMAN_TRAINVAL_INDICES + ns1.NS1_RAHMAN_TEST_INDICES) == list(range(20))
    assert float(ns1.NS1_WAV_NATIVE_FS) == 48828.125
    assert ns1.NS1_OSF_FILES["spikesandwav.zip"] == "5nxga"
    assert len(set(ns1.NS1_WAV_FILENAMES)) == ns1.NS1_NAT_SOUNDS


@pytest.mark.parametrize("neuron", [0, 57, 118])
def test_every_spike_is_counted_in_its_bin(load_ns1, ns1_dir, neuron):
    ds = load_ns1(smooth=False)
    times = raw_times(ns1_dir, ds.nrn_meta[neuron]["cell_id"])
    for clip in range(20):
        counts = ds.responses[clip][neuron].numpy()
        for repeat in range(20):
            expected = np.bincount(np.floor(times[clip][repeat] / 5.0).astype(int), minlength=1100)[:999]
            np.testing.assert_array_equal(counts[repeat], expected)
            assert counts[repeat].sum() == ((times[clip][repeat] >= 0) & (times[clip][repeat] < 4995)).sum()


def test_the_published_rounding_and_what_it_loses(load_ns1, ns1_dir):
    ours, theirs = load_ns1(smooth=False), load_ns1(smooth=False, binning="published")
    neurons = range(0, 119, 6)
    times = raw_times(ns1_dir, ours.nrn_meta[6]["cell_id"])
    for clip in (0, 19):
        expected = np.stack([published(one) for one in times[clip]])
        np.testing.assert_array_equal(theirs.responses[clip][6].numpy(), expected)
    lost = total = 0.0
    for clip in range(20):
        a, b = ours.response_block(clip)[neurons], theirs.response_block(clip)[neurons]
        total += float(a.sum())
        lost += float(a.sum() - b.sum())
    assert 0.010 < lost / total < 0.022  # spec: 1.6 % on another choice of 20 units
    assert theirs.describe()["binning"] == "published"


def test_the_unit_stays_spikes_per_bin(load_ns1):
    raw, smooth = load_ns1(smooth=False), load_ns1()
    assert raw.response_storage.clips[0].data.dtype == np.int8
    assert float(smooth.response_block(4).mean()) == pytest.approx(
        float(raw.response_block(4).mean()), rel=2e-3
    )


def test_sounds_are_not_clipped(load_ns1):
    wave = load_ns1(return_waveform=True)
    assert max(float(stim.abs().max()) for stim in wave.stims) > 14.0
    assert float(np.median([float(stim.square().mean().sqrt()) for stim in wave.stims])) == pytest.approx(
        0.2, abs=0.01
    )


def test_other_rates(load_ns1):
    slow = load_ns1(return_waveform=True, audio_fs=16000)
    assert (slow.hop, tuple(slow.stims[0].shape)) == (80, (1, 79_920))
    assert torch.equal(slow.responses[7][3], load_ns1().responses[7][3])


def test_stimulus_and_responses_are_aligned(load_ns1):
    for ds in (load_ns1(), load_ns1(return_waveform=True)):
        ds.check_alignment()  # a warning is an error here


def test_random_chords(load_ns1, ns1_dir):
    ds = load_ns1()
    drc = ds.drc_responses()
    assert len(drc.responses) == 12
    assert [(row["set"], row["token"]) for row in drc.stim_meta][:5] == [
        (10, 0),
        (20, 0),
        (30, 0),
        (40, 0),
        (10, 1),
    ]
    times = raw_times(ns1_dir, ds.nrn_meta[11]["cell_id"])
    for number in (0, 11):
        for repeat in range(5):
            inside = (times[20 + number][repeat] < 4995).sum()
            assert drc.responses[number][11, repeat].sum() == inside


def test_a_finer_bin(ns1_dir):
    ds = NS1Dataset(ns1_dir, dt_ms=2.5, return_waveform=True)
    assert (ds.hop, tuple(ds.stims[0].shape), tuple(ds.responses[0][0].shape)) == (
        120,
        (1, 239_760),
        (20, 1998),
    )
