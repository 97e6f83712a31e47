"""The contract of a dataset: attributes, items, errors."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import LoadReport, NeuralDataset, neural_collate
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.protocols import DatasetLike


def test_items_have_the_documented_keys_and_shapes(ds):
    item = ds[1]
    assert list(item) == ["stims", "responses", "valid_mask", "stim_meta"]
    assert item["stims"].shape == (1, 6, 40)
    assert item["stims"].dtype == torch.float32
    assert isinstance(item["responses"], list)
    assert [tuple(r.shape) for r in item["responses"]] == [(5, 40)] * 4
    assert item["valid_mask"].dtype == torch.bool
    assert item["valid_mask"].tolist() == [True] * 4
    assert item["stim_meta"] == {"name": "clip001"}


def test_a_dataset_is_what_other_rooms_ask_for(ds):
    assert isinstance(ds, DatasetLike)
    assert isinstance(ds, torch.utils.data.Dataset)


def test_slices_and_lists_give_lists(ds):
    for index in (slice(0, 2), [0, 1], (0, 1), range(2), np.array([0, 1]), torch.tensor([0, 1])):
        several = ds[index]
        assert len(several["stims"]) == 2
        assert torch.equal(several["stims"][1], ds.stims[1])
    assert ds[[]] == {"stims": [], "responses": [], "valid_mask": [], "stim_meta": []}
    assert [m["name"] for m in ds[::-1]["stim_meta"]] == ["clip002", "clip001", "clip000"]


@pytest.mark.parametrize(
    "index", [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1), -2, np.int8(-2)]
)
def test_every_integer_is_an_integer(ds, index):
    """Weakness 28: numpy and torch integers were refused."""
    assert ds[index]["stim_meta"]["name"] == "clip001"


@pytest.mark.parametrize("index", [True, np.True_, torch.tensor(True), 1.0, "1", None, torch.tensor(1.0)])
def test_other_indices_are_type_errors(ds, index):
    """Weakness 28: True was taken as clip 1."""
    with pytest.raises(TypeError, match="integer"):
        ds[index]


def test_an_index_past_the_end_names_the_length(ds):
    with pytest.raises(IndexError, match="there are 3"):
        ds[3]
    with pytest.raises(IndexError, match="there are 2"):
        ds.select(clips=[0, 1])[2]
    with pytest.raises(IndexError, match="there are 0"):
        ds.select(clips=[])[0]


def test_cost_of_an_item_does_not_depend_on_the_number_of_clips(make):
    """Weakness 27: every item searched all S x N pairs."""

    def seconds(ds):
        ds[0]
        times = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(20):
                ds[0]
            times.append(time.perf_counter() - start)
        return min(times)

    few, many = (
        make(n_neurons=20, bins=(50,) * 3),
        make(n_neurons=20, bins=(50,) * 900, check_alignment=False),
    )
    assert seconds(many) < 5 * seconds(few)


def test_response_block_equals_the_grid(sparse):
    for view in (sparse, sparse.smoothed(), sparse.normalized("zscore")):
        for clip in range(len(view)):
            block = view.response_block(clip)
            assert block.dtype == torch.float32
            assert block.shape[0] == 3
            assert block.shape[2] == view.n_bins(clip) == view.stims[clip].shape[-1]
            for neuron in range(3):
                response = view.responses[clip][neuron]
                item = view[clip]["responses"][neuron]
                assert torch.equal(torch.nan_to_num(response, -1.0), torch.nan_to_num(item, -1.0))
                if view.nrn_masks[clip, neuron]:
                    r, t = response.shape
                    torch.testing.assert_close(block[neuron, :r, :t], response, equal_nan=True)
                    assert block[neuron, r:].isnan().all()
                else:
                    assert response.shape == (1, 1)
                    assert block[neuron].isnan().all()


def test_grid_is_a_sequence_of_sequences(sparse):
    grid = sparse.responses
    assert len(grid) == 3
    assert len(grid[0]) == 3
    assert [tuple(r.shape) for r in grid[-1]] == [(1, 5), (2, 5), (4, 5)]
    assert len(grid[:2]) == 2
    assert len(grid[0][1:]) == 2
    with pytest.raises(IndexError, match="neuron 3"):
        grid[0][3]
    with pytest.raises(IndexError, match="clip 7"):
        grid[7]
    assert "2 of 3" in repr(grid[0])
    assert "3 neurons to 3 clips" in repr(grid)


def test_a_loader_that_fills_the_attributes_works(loader):
    stims = [torch.rand(1, 4, 10), torch.rand(1, 4, 8)]
    ds = loader(
        stims, [[torch.ones(3, 10), torch.full((1, 1), torch.nan)], np.ones((2, 5, 8), dtype=np.int8)], 2
    )
    assert ds.shared_stimulus(0) is stims[0]
    assert ds.nrn_masks.tolist() == [[True, False], [True, True]]
    assert ds.path == "somewhere"
    assert ds.I is None
    assert ds.S_sel is None
    assert ds.stim_normalization is None
    assert ds.response_normalization is None


def test_a_loader_may_smooth_by_default(loader):
    ds = loader([torch.rand(1, 4, 5)], [np.array([[[0, 0, 4, 0, 0]]])], 1)
    ds.smoothing_ms = 21.0
    assert ds.responses[0][0].tolist() == [[0.0, 1.0, 2.0, 1.0, 0.0]]
    assert ds.smoothed(None).responses[0][0].tolist() == [[0.0, 0.0, 4.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("stims", "responses", "n", "words"),
    [
        ([torch.rand(1, 4, 10)], [[torch.ones(1, 9)]], 1, "clip 0.*10 bins.*neuron 0.*9"),
        ([torch.rand(1, 4, 10)], [[torch.ones(1, 9), torch.ones(1, 12)]], 2, "neuron 1"),
        ([torch.rand(1, 4, 10)] * 2, [[torch.ones(1, 10)] * 2, [torch.ones(1, 10)]], 2, "clip 1 hold 1"),
        ([torch.rand(1, 4, 10)], [[torch.ones(1, 10)]], 2, "N_neurons is 2"),
        ([torch.rand(1, 4, 10)], [[torch.ones(1, 10)]] * 2, 1, "one entry per clip"),
        ([torch.full((1, 4, 10), torch.nan)], [[torch.ones(1, 10)]], 1, "clip 0: 40 of 40 values are NaN"),
        ([torch.tensor([[[0.0, torch.inf]]])], [[torch.ones(1, 2)]], 1, "first at \\(0, 0, 1\\)"),
        ([torch.zeros(1, 4, 0)], [[None]], 1, "not empty"),
    ],
)
def test_validate_names_what_is_wrong(loader, stims, responses, n, words):
    """Weaknesses 29 and 30: asserts that vanish under -O; rows, lengths and finite stimuli never checked."""
    with pytest.raises(ValueError, match=words):
        loader(stims, responses, n)


def test_float64_stimuli_of_a_loader_are_refused_with_the_mend(loader):
    with pytest.raises(TypeError, match=r"float32.*\.float\(\)"):
        loader([torch.rand(1, 4, 10, dtype=torch.float64)], [[torch.ones(1, 10)]], 1)


def test_metadata_must_be_dictionaries(loader):
    with pytest.raises(TypeError, match=r"stim_meta\[0\]"):
        loader([torch.rand(1, 4, 10)], [[torch.ones(1, 10)]], 1, stim_meta=["speech"])


@pytest.mark.parametrize("dt", [0, -5.0, float("nan"), float("inf")])
def test_a_bin_width_is_positive(dt):
    with pytest.raises(ValueError, match="dt_ms"):
        NeuralDataset(None, dt)


@pytest.mark.parametrize("dt", ["5", None, True, [5.0]])
def test_a_bin_width_is_a_number(dt):
    with pytest.raises(TypeError, match="dt_ms"):
        NeuralDataset(None, dt)


def test_numpy_bin_widths_become_floats():
    assert type(NeuralDataset(None, np.float32(5)).dt) is float
    assert NeuralDataset(None, torch.tensor(5)).dt == 5.0


def test_a_path_is_a_path(tmp_path):
    assert NeuralDataset(tmp_path, 5.0).path == str(tmp_path)
    assert NeuralDataset(None, 5.0).path == ""
    with pytest.raises(TypeError, match="path"):
        NeuralDataset(3, 5.0)


def test_datasets_travel_through_pickle_and_deepcopy(sparse):
    for again in (pickle.loads(pickle.dumps(sparse)), copy.deepcopy(sparse)):
        assert repr(again) == repr(sparse)
        for clip in range(3):
            torch.testing.assert_close(
                again.response_block(clip), sparse.response_block(clip), equal_nan=True
            )
        assert again.fingerprint(0) == sparse.fingerprint(0)
    item = pickle.loads(pickle.dumps(sparse[0]))
    assert item["responses"].is_untouched()


def test_loaders_subsets_and_workers(ds):
    loader = DataLoader(Subset(ds, [2, 0]), batch_size=2, collate_fn=neural_collate, num_workers=1)
    (batch,) = list(loader)
    assert batch["stims"].shape == (2, 1, 6, 60)
    torch.testing.assert_close(batch["responses"][0], ds.response_block(2))
    assert batch["responses"][1, :, :, 50:].isnan().all()


def test_fingerprints_are_of_the_content(make):
    a, b = make(seed=1), make(seed=1)
    assert a.fingerprint(0) == b.fingerprint(0)
    assert a.fingerprint(0) != a.fingerprint(1)
    assert len(a.fingerprint(0)) == 64
    z = a.standardized()
    assert z.fingerprint(0) != a.fingerprint(0)
    assert z.source_fingerprint(0) == a.source_fingerprint(0) == a.fingerprint(0)
    assert a.smoothed().fingerprint(0) == a.fingerprint(0)
    with pytest.raises(IndexError, match="there are 3"):
        a.fingerprint(3)


def test_fingerprint_is_fixed_for_all_time():
    ds = NeuralDataset.from_arrays([np.arange(6).reshape(2, 3)], [[[0, 0, 0]]], 5.0)
    assert ds.fingerprint(0) == "a03e82ccd4214eb19e48bedbffa66dd50c28962387755d2d873b7c2d90c83e06"


def test_describe_has_the_facts_of_a_protocol_card(sparse, ds):
    facts = sparse.smoothed().describe()
    assert facts["n_clips"] == 3
    assert facts["n_neurons"] == 3
    assert facts["repeats_min"] == 1
    assert facts["repeats_max"] == 4
    assert facts["missing_pairs"] == 2
    assert facts["smoothing_ms"] == 21.0
    assert facts["duration_s"] == pytest.approx(12 * 5 / 1000)
    assert facts["F"] is None
    assert ds.describe()["F"] == 6
    assert ds.describe()["audio_fs"] is None
    sparse.facts["binning"] = "half-open"
    assert sparse.select([0]).describe()["binning"] == "half-open"


def test_describe_of_an_empty_view(ds):
    facts = ds.select(neurons=[]).describe()
    assert facts["n_neurons"] == facts["n_clips"] == facts["repeats_max"] == 0


def test_repr_says_what_it_is(ds):
    assert repr(ds) == "AudioNeuralDataset(N_neurons=4, n_clips=3, dt_ms=5)"
    named = NeuralDataset.from_arrays([torch.rand(1, 3)], [[[0, 0, 0]]], 2.5, name="mine")
    named = named.smoothed()
    assert repr(named) == "NeuralDataset('mine', N_neurons=1, n_clips=1, dt_ms=2.5, smoothing_ms=21)"
    assert "view" in repr(ds.select(clips=[0]))


def test_load_report_counts_and_names():
    report = LoadReport()
    report.keep("a")
    for i in range(12):
        report.skip(f"b{i}", "broken")
    assert str(report).startswith("kept 1, skipped 12: b0 (broken)")
    assert str(report).endswith("and 2 more")
    assert str(LoadReport(["a"])) == "kept 1, skipped 0"


def test_adding_something_else_is_a_type_error(ds):
    with pytest.raises(TypeError):
        ds + 3


def test_audio_attributes(ds):
    assert isinstance(ds, AudioNeuralDataset)
    assert ds.F == 6
    assert ds.audio_fs is None
    assert ds.hop is None
    assert ds.return_waveform is False
