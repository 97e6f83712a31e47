"""Joining recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset, concat_neural_datasets
from deepSTRF.datasets.audio import AudioNeuralDataset


@pytest.fixture
def two(make):
    return make(n_neurons=3, bins=(20, 30), name="left"), make(n_neurons=2, bins=(25,), seed=1, name="right")


def test_block_diagonal_with_missing_pairs(two):
    a, b = two
    both = a + b
    assert type(both) is AudioNeuralDataset
    assert (both.N_neurons, len(both)) == (5, 3)
    assert both.nrn_masks.tolist() == [[True] * 3 + [False] * 2] * 2 + [[False] * 3 + [True] * 2]
    torch.testing.assert_close(both.response_block(1)[:3], a.response_block(1))
    torch.testing.assert_close(both.response_block(2)[3:], b.response_block(0))
    assert both.response_block(2)[:3].isnan().all()
    assert both.shared_stimulus(2) is b.shared_stimulus(0)
    assert [m["dataset"] for m in both.nrn_meta] == ["left"] * 3 + ["right"] * 2
    assert [m["dataset"] for m in both.stim_meta] == ["left", "left", "right"]
    assert "dataset" not in a.nrn_meta[0]
    assert both.name == "left+right"
    assert both.I is None
    assert both.S_sel is None


def test_recorded_data_are_shared(two):
    a, b = two
    both = a + b
    assert both.response_storage.clips[0].data is a.response_storage.clips[0].data


def test_names_replace_the_default(two):
    both = concat_neural_datasets(two, names=["x", "y"])
    assert [m["dataset"] for m in both.stim_meta] == ["x", "x", "y"]
    with pytest.raises(ValueError, match="names has 1 entries for 2"):
        concat_neural_datasets(two, names=["x"])


def test_one_dataset_comes_back_as_a_view(two):
    """Weakness 35: the very same object came back."""
    a = two[0]
    alone = concat_neural_datasets([a])
    assert alone is not a
    assert alone.nrn_meta == a.nrn_meta
    tagged = concat_neural_datasets([a], names=["x"])
    assert tagged.nrn_meta[0]["dataset"] == "x"


def test_empty_and_foreign_lists():
    with pytest.raises(ValueError, match="at least one"):
        concat_neural_datasets([])
    with pytest.raises(TypeError, match="entry 0"):
        concat_neural_datasets(["ds"])


def test_views_join_with_order_and_duplicates(two):
    a, b = two
    view = a.select(neurons=[2, 2, 0], clips=[1])
    with pytest.warns(UserWarning, match="'neuron002' of 'left'"):
        both = concat_neural_datasets([view, b])
    torch.testing.assert_close(both.response_block(0)[:3], a.response_block(1)[[2, 2, 0]])


def test_three_at_once(make):
    parts = [make(n_neurons=n, bins=(20,), seed=n, name=f"d{n}") for n in (1, 2, 3)]
    joined = concat_neural_datasets(parts)
    assert joined.nrn_masks.sum(dim=1).tolist() == [1, 2, 3]
    torch.testing.assert_close(joined.response_block(2)[3:], parts[2].response_block(0))
    again = (parts[0] + parts[1]) + parts[2]
    assert torch.equal(again.nrn_masks, joined.nrn_masks)
    assert again.nrn_meta == joined.nrn_meta


def wave(audio_fs=16000, dt=5.0, n=1, species="ferret", **kwargs):
    hop = round(audio_fs * dt / 1000)
    sound = np.random.default_rng(n).normal(size=20 * hop)
    return AudioNeuralDataset.from_arrays(
        [sound], [np.ones((n, 2, 20))], dt, audio_fs, species=species, name=f"w{n}", **kwargs
    )


def test_waveform_mode_species_and_facts_are_kept():
    """Weakness 35: return_waveform, species and normalisation records were lost."""
    a, b = wave(n=1, hearing_range_hz=(200.0, 40000.0)), wave(n=2, hearing_range_hz=(200.0, 40000.0))
    a.facts, b.facts = {"alignment": "native", "binning": "x"}, {"alignment": "native", "binning": "y"}
    both = a + b
    assert both.return_waveform
    assert (both.audio_fs, both.hop, both.F, both.species) == (16000, 80, 34, "ferret")
    assert both.hearing_range_hz == (200.0, 40000.0)
    assert both.facts == {"alignment": "native", "binning": "x+y"}
    other = a + wave(n=2, species="cat")
    assert other.species == "ferret+cat"
    assert other.hearing_range_hz is None


@pytest.mark.parametrize(
    ("make_other", "words"),
    [
        (lambda: wave(dt=10.0, n=2), "^dt mismatch"),
        (lambda: wave(audio_fs=32000, n=2), "^audio_fs mismatch"),
        (lambda: wave(n=2, F=20), "^F mismatch"),
        (lambda: wave(n=2).smoothed(), "^smoothing mismatch"),
        (lambda: wave(n=2).normalized(), "^normalisation mismatch"),
        (lambda: wave(n=2).standardized(), "^standardisation mismatch"),
        (
            lambda: AudioNeuralDataset.from_arrays([np.zeros((34, 9))], [np.zeros((1, 9))], 5.0),
            "^return_waveform",
        ),
        (lambda: NeuralDataset.from_arrays([np.zeros((34, 9))], [np.zeros((1, 9))], 5.0), "^kind mismatch"),
    ],
)
def test_what_does_not_fit_is_named(make_other, words):
    with pytest.raises(ValueError, match=words):
        _ = wave(n=1) + make_other()


def test_all_pairs_are_compared():
    """Weakness 35: only the first dataset was compared with each other one."""
    parts = [wave(n=1), wave(n=2), wave(n=3)]
    parts[1].dt, parts[2].dt = 5.0 * (1 + 0.9e-9), 5.0 * (1 - 0.9e-9)  # each within tolerance of the first
    with pytest.raises(ValueError, match=r"dt mismatch: 'b' \(dataset 1\).*'c' \(dataset 2\)"):
        concat_neural_datasets(parts, names=["a", "b", "c"])


def test_bin_widths_within_rounding_are_equal():
    """Weakness 35: exact float equality of dt."""
    a = NeuralDataset.from_arrays([np.zeros((2, 9))], [np.zeros((1, 9))], 0.1 + 0.2, name="a")
    b = NeuralDataset.from_arrays([np.zeros((2, 9))], [np.zeros((1, 9))], 0.3, name="b")
    assert (a + b).N_neurons == 2


def test_transforms_of_the_sources_stay(two):
    a, b = (ds.smoothed().normalized("zscore").standardized() for ds in two)
    both = a + b
    torch.testing.assert_close(both.response_block(2)[3:], b.response_block(0))
    assert torch.equal(both.stims[0], a.stims[0])
    assert torch.equal(both.stims[2], b.stims[0])
    assert both.smoothing_ms == 21.0
    assert both.response_normalization["scale"].shape == (5,)
    assert both.response_normalization["stim_indices"] == [0, 1, 2]
    assert len(both.stim_normalization["datasets"]) == 2


def test_twice_the_same_cell_is_reported(two):
    a, _ = two
    with pytest.warns(UserWarning, match=r"3 neurons.*'neuron000' of 'left'.*names"):
        joined = a + a
    assert joined.N_neurons == 6
    concat_neural_datasets([a, a], names=["first", "second"])


class Loader(AudioNeuralDataset):
    """A loader with attributes of its own."""

    def __init__(self, alignment, n):
        super().__init__("folder", 5.0)
        self.alignment = alignment
        self.extra = [torch.zeros(n)]
        self.F = 4
        self.stims, self.responses = [torch.rand(1, 4, 9)], [np.zeros((n, 1, 9))]
        self.stim_meta, self.nrn_meta, self.N_neurons = [{}], [{"cell_id": f"{n}-{i}"} for i in range(n)], n
        self.validate()

    def describe(self):
        return {**super().describe(), "alignment": self.alignment}


def test_a_loaders_own_attributes_survive_where_they_agree():
    both = Loader("native", 1) + Loader("native", 2)
    assert type(both) is Loader
    assert both.describe()["alignment"] == "native"
    assert both.extra is None
    assert both.path == "folder+folder"
    assert (Loader("native", 1) + Loader("causal", 2)).alignment == "native+causal"


def test_nearest_common_class(make):
    mixed = Loader("native", 1) + make(n_bands=4)
    assert type(mixed) is AudioNeuralDataset


def test_reports_join(two):
    a, b = two
    a.load_report.skip("cell9", "empty file")
    both = (a + b).load_report
    assert both.kept == a.load_report.kept + b.load_report.kept == [*names_of(a), *names_of(b)]
    assert str(both) == f"kept {a.N_neurons + b.N_neurons}, skipped 1: cell9 (empty file)"


def names_of(ds):
    return [row["cell_id"] for row in ds.nrn_meta]
