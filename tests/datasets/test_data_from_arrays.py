"""Datasets from plain arrays, spectrograms and waveforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import AudioNeuralDataset


@pytest.mark.parametrize("shape", [(6, 20), (1, 6, 20)])
@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.float64, torch.float32, np.int16])
def test_spectrograms_of_any_kind(shape, kind):
    stimulus = torch.ones(shape, dtype=kind) if isinstance(kind, torch.dtype) else np.ones(shape, dtype=kind)
    ds = AudioNeuralDataset.from_arrays([stimulus], [np.zeros((2, 3, 20))], dt_ms=5.0)
    assert ds.stims[0].shape == (1, 6, 20)
    assert ds.stims[0].dtype == torch.float32
    assert ds.F == 6


@pytest.mark.parametrize(
    ("entry", "shapes"),
    [
        (np.zeros((2, 3, 4)), [(3, 4), (3, 4)]),
        (np.zeros((2, 4)), [(1, 4), (1, 4)]),
        (torch.zeros(2, 3, 4), [(3, 4), (3, 4)]),
        ([np.zeros((3, 4)), np.zeros((5, 4))], [(3, 4), (5, 4)]),
        ([np.zeros(4), None], [(1, 4), (1, 1)]),
        ([[0, 1, 0, 2], [[0, 1, 0, 2], [1, 1, 1, 1]]], [(1, 4), (2, 4)]),
        ([[np.zeros(4), np.zeros(2)], torch.zeros(4)], [(2, 4), (1, 4)]),
        ([np.full((2, 4), np.nan), np.zeros((2, 4))], [(1, 1), (2, 4)]),
    ],
)
def test_responses_of_any_kind(entry, shapes):
    ds = NeuralDataset.from_arrays([np.zeros((2, 4))], [entry], dt_ms=5.0)
    assert [tuple(r.shape) for r in ds.responses[0]] == shapes


def test_a_repeat_that_ended_early_is_nan_at_its_end():
    ds = NeuralDataset.from_arrays([np.zeros((2, 4))], [[[[1, 2, 3, 4], [5, 6]]]], dt_ms=5.0)
    second = ds.responses[0][0][1]
    assert second[:2].tolist() == [5.0, 6.0]
    assert second[2:].isnan().all()


def test_clips_padded_with_nan_to_one_length_are_cut_to_their_stimulus():
    block = np.full((2, 3, 10), np.nan)
    block[:, :, :6] = 1
    ds = NeuralDataset.from_arrays([np.zeros((2, 6)), np.zeros((2, 10))], [block, np.ones((2, 3, 10))], 5.0)
    assert ds.response_block(0).shape == (2, 3, 6)
    assert ds.stims[0].shape == (1, 2, 6)


def test_default_and_given_metadata():
    ds = NeuralDataset.from_arrays([np.zeros((2, 4))], [np.zeros((2, 4))], 5.0, name="mine")
    assert ds.nrn_meta == [{"cell_id": "neuron000"}, {"cell_id": "neuron001"}]
    assert ds.stim_meta == [{"name": "clip000"}]
    assert ds.name == "mine"
    meta = [{"cell_id": "a"}, {"cell_id": "b"}]
    ds = NeuralDataset.from_arrays([np.zeros((2, 4))], [np.zeros((2, 4))], 5.0, nrn_meta=meta)
    ds.nrn_meta[0]["x"] = 1
    assert meta == [{"cell_id": "a"}, {"cell_id": "b"}]
    with pytest.raises(ValueError, match="nrn_meta"):
        NeuralDataset.from_arrays([np.zeros((2, 4))], [np.zeros((2, 4))], 5.0, nrn_meta=meta[:1])
    with pytest.raises(ValueError, match="stim_meta has 2 entries for 1 clips"):
        NeuralDataset.from_arrays([np.zeros((2, 4))], [np.zeros((2, 4))], 5.0, stim_meta=meta)


def test_responses_longer_than_stimuli_name_lengths_and_mend():
    arrays = ([np.zeros((2, 10))], [np.zeros((1, 3, 12))])
    with pytest.raises(ValueError, match=r"clip 0.*12 bins.*neuron 0.*longer.*10 bins.*trim") as caught:
        NeuralDataset.from_arrays(*arrays, 5.0)
    assert "on_length_mismatch='trim'" in str(caught.value)
    ds = NeuralDataset.from_arrays(*arrays, 5.0, on_length_mismatch="trim")
    assert ds.response_block(0).shape == (1, 3, 10)
    assert ds.load_report.kept == ["neuron000"]
    cut = ("clip 0", "the last 2 bins of its responses cut by on_length_mismatch='trim'")
    assert ds.load_report.skipped == [cut]


def test_a_transposed_spectrogram_is_not_called_too_short():
    with pytest.raises(ValueError, match=r"12 bins.*longer.*2 bins.*\(F, T\): is it transposed\?"):
        NeuralDataset.from_arrays([np.zeros((12, 2))], [np.zeros((1, 3, 12))], 5.0)


def test_the_neuron_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="neuron 1"):
        NeuralDataset.from_arrays([np.zeros((2, 3))], [[[0, 0, 0], [0, 0, 0, 0]]], 5.0)


def test_responses_shorter_than_stimuli():
    arrays = ([np.zeros((2, 10))], [np.zeros((1, 3, 8))])
    with pytest.raises(ValueError, match=r"8 bins.*shorter.*10 bins"):
        NeuralDataset.from_arrays(*arrays, 5.0)
    ds = NeuralDataset.from_arrays(*arrays, 5.0, on_length_mismatch="trim")
    assert ds.stims[0].shape == (1, 2, 8)
    cut = ("clip 0", "the last 2 frames of its stimulus cut by on_length_mismatch='trim'")
    assert ds.load_report.skipped == [cut]


def test_trimming_forgets_neurons_whose_values_are_gone():
    late = np.full((1, 5), np.nan)
    late[0, 4] = 1.0
    ds = NeuralDataset.from_arrays(
        [np.zeros((2, 4))], [[np.zeros((1, 5)), late]], 5.0, on_length_mismatch="trim"
    )
    assert ds.nrn_masks.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("stims", "responses", "error", "words"),
    [
        ([], [], ValueError, "at least one"),
        ([np.zeros((2, 4))], [], ValueError, "got 1 and 0"),
        ([np.zeros(4)], [np.zeros((1, 4))], ValueError, "audio_fs"),
        ([np.full((2, 4), np.nan)], [np.zeros((1, 4))], ValueError, "clip 0: 8 of 8"),
        ([np.zeros((2, 4), dtype=complex)], [np.zeros((1, 4))], TypeError, "stimulus of clip 0"),
        ([[[0.0, 1.0], [2.0]]], [np.zeros((1, 2))], ValueError, "different lengths"),
        ([np.zeros((2, 4))], "spikes", TypeError, "one entry per clip"),
        ([np.zeros((2, 4))], {0: np.zeros((1, 4))}, TypeError, "one entry per clip"),
    ],
)
def test_bad_arrays(stims, responses, error, words):
    with pytest.raises(error, match=words):
        NeuralDataset.from_arrays(stims, responses, 5.0)


def test_unknown_policy():
    with pytest.raises(ValueError, match="'error' or 'trim'"):
        NeuralDataset.from_arrays([np.zeros((2, 4))], [np.zeros((1, 4))], 5.0, on_length_mismatch="pad")


def test_videos_keep_their_axes():
    ds = NeuralDataset.from_arrays([np.zeros((1, 5, 4, 7))], [np.zeros((1, 7))], 10.0)
    assert ds.stims[0].shape == (1, 5, 4, 7)


def test_negative_and_continuous_values_are_data():
    vm = np.linspace(-70, -50, 8)[None, None]
    ds = NeuralDataset.from_arrays([np.zeros((2, 8))], [vm], 5.0)
    np.testing.assert_allclose(ds.response_block(0).numpy(), vm, rtol=1e-6)


def test_mapping_entries_need_only_the_recorded_pairs():
    ds = NeuralDataset.from_arrays(
        [np.zeros((2, 4))] * 2, [{3: np.ones((2, 4))}, {0: np.ones(4)}], 5.0, nrn_meta=[{}] * 5
    )
    assert ds.N_neurons == 5
    assert ds.nrn_masks.nonzero().tolist() == [[0, 3], [1, 0]]
    assert NeuralDataset.from_arrays([np.zeros((2, 4))], [{3: np.ones((2, 4))}], 5.0).N_neurons == 4


# ---- audio


def test_spectrograms_must_have_one_number_of_bands():
    with pytest.raises(ValueError, match=r"clip 1.*F=4"):
        AudioNeuralDataset.from_arrays([np.zeros((4, 9)), np.zeros((5, 9))], [np.zeros((1, 9))] * 2, 5.0)


def test_frequencies_belong_to_bands():
    facts = {"hearing_range_hz": (50, 1e4), "species": "ferret"}
    ds = AudioNeuralDataset.from_arrays(
        [np.zeros((3, 9))], [np.zeros((1, 9))], 5.0, frequencies_hz=[100, 200, 400], **facts
    )
    assert ds.frequencies_hz.tolist() == [100.0, 200.0, 400.0]
    assert ds.describe()["species"] == "ferret"
    with pytest.raises(ValueError, match="F=2"):
        AudioNeuralDataset.from_arrays([np.zeros((3, 9))], [np.zeros((1, 9))], 5.0, frequencies_hz=[1, 2])
    with pytest.raises(ValueError, match="0 < low < high"):
        AudioNeuralDataset.from_arrays([np.zeros((3, 9))], [np.zeros((1, 9))], 5.0, hearing_range_hz=(5, 1))


@pytest.mark.parametrize("shape", [(16000,), (1, 16000)])
def test_waveforms(shape):
    ds = AudioNeuralDataset.from_arrays([np.zeros(shape)], [np.zeros((2, 3, 200))], 5.0, 16000)
    assert ds.return_waveform
    assert ds.hop == 80
    assert ds.F == 34
    assert ds.stims[0].shape == (1, 16000)
    assert ds.n_bins(0) == 200
    assert ds.select(clips=[0]).hop == 80
    assert ds.describe()["stimuli"] == "waveform"
    assert ds.describe()["audio_fs"] == 16000


def test_numpy_sample_rates():
    ds = AudioNeuralDataset.from_arrays([np.zeros(160)], [np.zeros((1, 2))], 5.0, np.int64(16000), F=20)
    assert type(ds.audio_fs) is int
    assert ds.F == 20


def test_audio_grid_an_integer_number_of_samples():
    with pytest.raises(ValueError, match="must be a whole number") as caught:
        AudioNeuralDataset.from_arrays([np.zeros(44100)], [np.zeros((1, 200))], 5.0, audio_fs=44100)
    assert "220.5" in str(caught.value)
    ds = AudioNeuralDataset.from_arrays([np.zeros(44100)], [np.zeros((1, 100))], 10.0, audio_fs=44100)
    assert ds.hop == 441


def test_audio_grid_mono():
    with pytest.raises(ValueError, match=r"\(1, T_audio\)"):
        AudioNeuralDataset.from_arrays([np.zeros((2, 800))], [np.zeros((1, 10))], 5.0, audio_fs=16000)


def test_audio_grid_whole_bins():
    arrays = ([np.zeros(850)], [np.zeros((1, 10))])
    with pytest.raises(ValueError, match=r"multiple of.*80.*trim"):
        AudioNeuralDataset.from_arrays(*arrays, 5.0, audio_fs=16000)
    ds = AudioNeuralDataset.from_arrays(*arrays, 5.0, audio_fs=16000, on_length_mismatch="trim")
    assert ds.stims[0].shape == (1, 800)


def test_audio_grid_as_long_as_the_responses():
    with pytest.raises(ValueError, match=r"neural responses .11 bins"):
        AudioNeuralDataset.from_arrays([np.zeros(800)], [np.zeros((1, 11))], 5.0, audio_fs=16000)


class WaveLoader(AudioNeuralDataset):
    """A loader in waveform mode, to reach the checks of validate()."""

    def __init__(self, stimulus, bins, audio_fs):
        super().__init__(None, 5.0)
        self.F, self.audio_fs, self.return_waveform = 34, audio_fs, True
        self.stims, self.responses = [stimulus], [np.zeros((1, 1, bins))]
        self.stim_meta, self.nrn_meta, self.N_neurons = [{}], [{}], 1
        self.validate()


@pytest.mark.parametrize(
    ("stimulus", "bins", "audio_fs", "error", "words"),
    [
        (torch.zeros(1, 800), 10, 44100, ValueError, "must be a whole number"),
        (torch.zeros(2, 800), 10, 16000, ValueError, r"\(1, T_audio\)"),
        (torch.zeros(1, 1, 800), 10, 16000, ValueError, r"\(1, T_audio\)"),
        (torch.zeros(1, 801), 10, 16000, ValueError, "multiple of"),
        (torch.zeros(1, 800), 11, 16000, ValueError, "neural"),
        (torch.zeros(1, 800), 11, np.int64(16000), ValueError, "neural"),
        (torch.zeros(1, 800), 10, 16000.0, TypeError, "positive integer"),
        (torch.zeros(1, 800), 10, None, TypeError, "audio_fs"),
        (torch.zeros(1, 800), 10, True, TypeError, "audio_fs"),
    ],
)
def test_the_grid_lock_of_a_loader(stimulus, bins, audio_fs, error, words):
    """Weakness 29: these were asserts."""
    with pytest.raises(error, match=words):
        WaveLoader(stimulus, bins, audio_fs)


def test_unheard_clips_are_on_the_grid_too():
    ds = AudioNeuralDataset.from_arrays([np.zeros(800)], [[None]], 5.0, 16000)
    assert ds.n_bins(0) == 10
    assert ds.response_block(0).shape == (1, 1, 10)


@pytest.mark.parametrize("bands", [0, -1, 3.0, True])
def test_number_of_bands(bands):
    with pytest.raises(TypeError, match="F is the number of frequency bands"):
        AudioNeuralDataset.from_arrays([np.zeros(160)], [np.zeros((1, 2))], 5.0, 16000, F=bands)
