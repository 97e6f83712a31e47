"""What each option of the loader does, on a small recording."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import savemat

from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.datasets.audio.ns1 import choose_spectrogram  # inner: tested by itself
from deepSTRF.registry import DATASETS

NOWHERE = "/nowhere/at/all"


def test_registered():
    assert DATASETS.get("ns1") is NS1Dataset


def test_an_impossible_rate_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"audio_fs=44100 .* must be a whole number"):
        NS1Dataset(NOWHERE, return_waveform=True, audio_fs=44100, download=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"spectrogram": "x"}, "spectrogram is one of 'auto', 'shipped', 'recomputed', got 'x'"),
        ({"alignment": "x"}, "alignment is one of 'native', 'causal', got 'x'"),
        ({"binning": "x"}, "binning is one of 'half-open', 'published', got 'x'"),
        ({"on_bad_file": "x"}, "on_bad_file is one of 'error', 'skip', got 'x'"),
        ({"dt_ms": 0}, "dt_ms"),
        ({"dt_ms": 6000.0}, "does not fit into 4995 ms"),
        ({"dt_ms": 2.5, "binning": "published"}, "whole number"),
        ({"dt_ms": 10.0, "spectrogram": "shipped"}, "use spectrogram='recomputed'"),
        ({"alignment": "causal", "spectrogram": "shipped"}, "native alignment only"),
        ({"return_waveform": True, "dt_ms": 0.3}, "must be a whole number"),
    ],
)
def test_options_are_checked_before_any_file(options, text):
    with pytest.raises(ValueError, match=text):
        NS1Dataset(NOWHERE, download=True, **options)


def test_waveforms_and_spectrograms_go_with_the_same_responses(small_units):
    spec, wave = (
        NS1Dataset(small_units),
        NS1Dataset(small_units, return_waveform=True, audio_fs=np.int64(16000)),
    )
    assert (spec.audio_fs, spec.hop, wave.audio_fs, wave.hop, wave.F) == (None, None, 16000, 80, 34)
    assert tuple(wave.stims[0].shape) == (1, 79920)
    assert tuple(spec.stims[0].shape) == (1, 34, 999)
    for clip in range(20):
        for a, b in zip(spec.responses[clip], wave.responses[clip], strict=True):
            assert torch.equal(a, b)
    assert [row["source_sha256"] for row in spec.stim_meta] == [
        row["source_sha256"] for row in wave.stim_meta
    ]
    assert spec.source_fingerprint(3) == wave.source_fingerprint(3)


def test_smoothing_is_a_way_of_reading(small_units):
    raw = NS1Dataset(small_units, return_waveform=True, audio_fs=2000, smooth=False)
    smooth = NS1Dataset(small_units, return_waveform=True, audio_fs=2000)
    assert smooth.smoothing_ms == 21.0
    counts = raw.response_block(0)
    assert torch.equal(counts, counts.round())
    assert raw.response_storage.clips[0].data.dtype == np.int8
    assert torch.equal(raw.smoothed(21.0).response_block(0), smooth.response_block(0))
    assert smooth.response_block(0).sum() == pytest.approx(float(counts.sum()), rel=0.01)
    expected = counts[..., 9:12] @ torch.tensor([0.25, 0.5, 0.25])
    torch.testing.assert_close(smooth.response_block(0)[..., 10], expected)


def test_other_bins_of_the_spectrogram(small_units):
    ds = NS1Dataset(small_units, dt_ms=10.0, smooth=False, alignment="causal")
    assert tuple(ds.stims[0].shape) == (1, 34, 499)
    assert tuple(ds.response_block(0).shape) == (3, 20, 499)
    assert ds.describe()["frame_grid"] == "exact"


@pytest.mark.parametrize(("dt_ms", "n_bins"), [(2.5, 1998), (10.0, 499), (4.0, 1248), (20, 249), (1.0, 4995)])
def test_other_bins_of_the_responses(small_units, dt_ms, n_bins):
    ds = NS1Dataset(small_units, return_waveform=True, audio_fs=2000, dt_ms=dt_ms, smooth=False)
    assert tuple(ds.stims[0].shape) == (1, round(n_bins * dt_ms * 2))
    fine = NS1Dataset(small_units, return_waveform=True, audio_fs=2000, dt_ms=0.5, smooth=False)
    end = round(n_bins * dt_ms / 0.5)
    assert ds.response_block(0).sum() == fine.response_block(0)[..., :end].sum()


def test_the_two_alignments_are_one_frame_apart(small_units):
    native, causal = NS1Dataset(small_units), NS1Dataset(small_units, alignment="causal")
    # another number of frames per FFT: equal but for the rounding of float32 log amplitudes
    torch.testing.assert_close(native.stims[2][..., :-1], causal.stims[2][..., 1:], rtol=0, atol=1e-5)
    assert (native.describe()["alignment"], native.describe()["look_ahead_ms"]) == ("native", 5.0)
    assert (causal.describe()["alignment"], causal.describe()["look_ahead_ms"]) == ("causal", 0.0)


@pytest.fixture
def shipped(small_units):
    """Write a file in the layout of the authors' spectrogram."""
    values = np.random.default_rng(1).standard_normal((20, 34, 1, 999))
    savemat(small_units / "test_data_5ms.mat", {"X_nfht": values, "y_nt": np.zeros((20, 999))})
    return values.astype(np.float32)


def test_the_shipped_spectrogram_is_taken_when_it_is_there(small_units, shipped):
    for spectrogram in ("auto", "shipped"):
        ds = NS1Dataset(small_units, spectrogram=spectrogram)
        assert ds.describe()["spectrogram"] == "shipped"
        np.testing.assert_array_equal(ds.stims[7][0].numpy(), shipped[7, :, 0])
    assert "source_sha256" in ds.stim_meta[0]
    assert choose_spectrogram(small_units, "auto", "native", 10.0) == "recomputed"
    assert choose_spectrogram(small_units, "auto", "causal", 5.0) == "recomputed"
    assert NS1Dataset(small_units, spectrogram="recomputed").describe()["spectrogram"] == "recomputed"


def test_the_shipped_spectrogram_needs_no_sounds(small_units, shipped):
    (small_units / "spikesandwav" / "SH.En.C").unlink()
    ds = NS1Dataset(small_units)
    np.testing.assert_array_equal(ds.stims[0][0].numpy(), shipped[0, :, 0])
    assert "source_sha256" not in ds.stim_meta[0]


def test_the_shipped_spectrogram_is_not_there(small_units):
    text = r"test_data_5ms\.mat is missing \(source: https://github\.com/monzilur/DNet\).*download=True"
    with pytest.raises(FileNotFoundError, match=text):
        NS1Dataset(small_units, spectrogram="shipped")


def test_the_shipped_spectrogram_is_damaged(small_units):
    path = small_units / "test_data_5ms.mat"
    savemat(path, {"X_nfht": np.zeros((20, 34, 999))})
    with pytest.raises(ValueError, match=r"X_nfht is \(20, 34, 999\), expected \(20, 34, 1, 999\)"):
        NS1Dataset(small_units)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"test_data_5ms\.mat is damaged"):
        NS1Dataset(small_units)


def test_chord_responses_follow_the_selection(small_units):
    ds = NS1Dataset(small_units, return_waveform=True, audio_fs=2000)
    drc = ds.drc_responses()
    assert len(drc.responses) == 12
    assert all(tuple(block.shape) == (3, 5, 999) for block in drc.responses)
    assert drc.stim_meta[5] == {
        "name": "drc06", "type": "random_chords", "set": 20, "token": 1, "level_db": 75,
    }  # fmt: skip
    some = ds.select(neurons=[2, 0]).drc_responses(duration_ms=5200)
    assert some.cell_ids == ["exp2/cluster.03.data", "exp1/cluster.01.data"]
    assert tuple(some.responses[0].shape) == (2, 5, 1040)
    assert torch.equal(some.responses[4][..., :999], drc.responses[4][[2, 0]])


def test_views_keep_the_class_and_the_facts(small_units):
    ds = NS1Dataset(small_units, return_waveform=True, audio_fs=2000)
    view = ds.select(neurons={"single_t": ["Yes", "Maybe"]}, clips={"type": "human_speech"})
    assert type(view) is NS1Dataset
    assert (view.N_neurons, len(view), view.hop) == (2, 4, 10)
    assert view.describe()["binning"] == "half-open"
    assert ds.N_neurons == 3
