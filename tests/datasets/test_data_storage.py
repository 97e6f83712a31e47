"""Storage: what is recorded, how it is packed, what it costs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepSTRF.datasets import NeuralDataset, windows
from deepSTRF.datasets.responses import encode, pack_clip, pack_responses  # inner: tested by itself

quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.one_of(
            st.integers(-200, 40_000).map(float), st.floats(-1e6, 1e6, width=32), st.just(np.nan)
        ),
    )
)
def test_any_block_is_read_back_as_it_was_given(block):
    clip = pack_clip(block, len(block), "clip 0", copy=True)
    for neuron, rows in enumerate(block):
        read = clip.neuron(neuron)
        if np.isnan(rows).all():
            assert read is None
        else:
            np.testing.assert_array_equal(read, rows.astype(np.float32))


@quick
@given(
    st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 6))), min_size=1, max_size=6)
)
def test_any_ragged_list_is_read_back_padded_with_nan(shapes):
    rng = np.random.default_rng(0)
    entry = [None if shape is None else rng.poisson(1.0, size=shape) for shape in shapes]
    clip = pack_clip(entry, len(entry), "clip 0", copy=True)
    n_bins = max((shape[1] for shape in shapes if shape), default=0)
    assert clip.heard.tolist() == [n for n, shape in enumerate(shapes) if shape]
    for neuron, rows in enumerate(entry):
        if rows is not None:
            read = clip.neuron(neuron)
            assert read.shape == (len(rows), n_bins)
            np.testing.assert_array_equal(read[:, : rows.shape[1]], rows)
            assert np.isnan(read[:, rows.shape[1] :]).all()
    values = clip.values()
    assert values.shape == (clip.heard.size, clip.max_repeats, n_bins)
    for row, neuron in zip(values, clip.heard, strict=True):
        np.testing.assert_array_equal(row[: len(entry[neuron])], clip.neuron(int(neuron)))
        assert np.isnan(row[len(entry[neuron]) :]).all()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 127], np.int8),
        ([-127, 5], np.int8),
        ([128, 0], np.int16),
        ([-128, 0], np.int16),
        ([32767, 1], np.int16),
        ([32768, 1], np.float32),
        ([0.5, 1.0], np.float32),
        ([1.0, np.nan, 3.0], np.int8),
        ([True, False], np.int8),
    ],
)
def test_counts_take_the_smallest_integers(values, dtype):
    data, has_missing = encode(np.array([values]), "x", copy=True)
    assert data.dtype == dtype
    assert has_missing == bool(np.isnan(np.array(values, dtype=float)).any())


def test_int8_blocks_of_a_loader_are_kept_without_a_copy():
    block = np.zeros((3, 4, 10), dtype=np.int8)
    assert np.shares_memory(pack_responses([block], copy=False).clips[0].data, block)
    assert not np.shares_memory(pack_responses([block], copy=True).clips[0].data, block)


def test_reading_gives_copies_so_the_recording_cannot_be_written(ds):
    before = ds.response_block(0).clone()
    ds.response_block(0).fill_(7)
    ds.responses[0][1].fill_(7)
    ds[0]["responses"][2].fill_(7)
    assert torch.equal(ds.response_block(0), before)


def test_from_arrays_does_not_alias_the_callers_arrays():
    counts = np.zeros((2, 3, 10), dtype=np.int8)
    stimulus = np.zeros((4, 10), dtype=np.float32)
    ds = NeuralDataset.from_arrays([stimulus], [counts], dt_ms=5.0)
    counts[:] = 5
    stimulus[:] = 5
    assert float(ds.response_block(0).max()) == 0 == float(ds.stims[0].max())


def test_2000_neurons_and_600_clips_cost_what_was_recorded():
    """Weaknesses 36 and 44: no million small tensors, masks without a Python loop over pairs."""
    n_neurons, n_clips, heard, repeats, bins = 2000, 600, 10, 4, 100
    rng = np.random.default_rng(0)
    responses = []
    for _ in range(n_clips):
        chosen = rng.choice(n_neurons, heard, replace=False)
        responses.append({int(n): rng.poisson(0.2, (repeats, bins)).astype(np.int8) for n in chosen})
    stims = [torch.rand(1, 4, bins) for _ in range(n_clips)]
    tracemalloc.start()
    ds = NeuralDataset.from_arrays(
        stims, responses, 5.0, nrn_meta=[{} for _ in range(n_neurons)], check_alignment=False
    )
    masks = ds.nrn_masks
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    recorded = n_clips * heard * repeats * bins
    assert ds.response_storage.nbytes < 1.2 * recorded
    assert size < 3 * recorded + 8_000_000  # numpy's share, metadata and masks; dense float32 would be 1.9 GB
    assert peak < 4 * recorded + 16_000_000
    assert masks.shape == (n_clips, n_neurons)
    assert int(masks.sum()) == n_clips * heard
    assert ds.response_block(3).shape == (n_neurons, repeats, bins)


def test_masks_follow_new_responses_and_are_computed_once(loader):
    """Weakness 31: the old mask cache went stale."""
    ds = loader([torch.rand(1, 2, 4)], [[torch.ones(1, 4), None]], 2)
    first = ds.nrn_masks
    assert ds.nrn_masks is first
    ds.responses = [[None, torch.ones(1, 4)]]
    assert ds.nrn_masks.tolist() == [[False, True]]


def test_a_partly_missing_response_is_real_data(sparse):
    """Weakness 24: one NaN bin hid the whole pair."""
    assert sparse.nrn_masks.tolist() == [[True, True, False], [False, True, True], [True, True, True]]
    assert sparse.responses[0][1].isnan().sum() == 1
    assert sparse[0]["valid_mask"].tolist() == [True, True, False]


def test_missing_pairs_are_separate_sentinels(sparse):
    """Weakness 35: all missing pairs were one and the same tensor."""
    item = sparse.select(neurons=[2, 2], clips=[0, 2], keep_unheard=True)[0]
    first, second = item["responses"]
    assert first.shape == second.shape == (1, 1)
    first.fill_(3.0)
    assert second.isnan().all()


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ([["a", "b"], [1, 2]], TypeError, "clip 0, neuron 0"),
        ([[[1j, 0]], [1, 2]], TypeError, "real numbers"),
        ([np.zeros((1, 1, 2)), [1, 2]], ValueError, "neuron 0"),
        ([[0.0, np.inf], [1, 2]], ValueError, "infinite"),
        ([[0.0, 1e300], [1, 2]], ValueError, "float32"),
        (np.zeros((2, 1, 1, 3)), ValueError, "clip 0"),
        ([[1, 2]], ValueError, "clip 0 hold 1 neurons"),
        ({5: [1, 2]}, ValueError, "neuron 5"),
    ],
)
def test_bad_responses_are_refused_with_clip_and_neuron(entry, error, words):
    with pytest.raises(error, match=words):
        pack_responses([entry, np.zeros((2, 1, 2))], n_neurons=2, copy=True)


def test_large_integers_keep_their_value_up_to_float32():
    ds = NeuralDataset.from_arrays([torch.rand(1, 3)], [np.array([[2**24, 0, -(2**24)]])], 5.0)
    assert ds.responses[0][0].tolist() == [[2.0**24, 0.0, -(2.0**24)]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.uint8, np.int64, bool])
def test_any_real_dtype_is_accepted(kind):
    block = np.array([[[0, 1, 1]]]).astype(kind)
    ds = NeuralDataset.from_arrays([torch.rand(1, 3)], [block], 5.0)
    assert ds.responses[0][0].dtype == torch.float32
    assert ds.responses[0][0].tolist() == [[0.0, 1.0, 1.0]]


def test_bfloat16_tensors_are_accepted():
    ds = NeuralDataset.from_arrays([torch.rand(1, 2)], [torch.ones(1, 1, 2, dtype=torch.bfloat16)], 5.0)
    assert ds.responses[0][0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("view", ["whole", "normalized", "smooth", "neurons", "windows"])
def test_stacks_of_clips_hold_what_is_read_one_by_one(view):
    rng = np.random.default_rng(0)
    lengths = [30, 30, 20, 30, 20, 30, 40]
    responses = [rng.poisson(0.5, (3, 2, n)).astype(float) for n in lengths]
    responses[1][0, 1, 5:] = np.nan  # a repeat that ended early
    responses[3] += 300.0  # needs 16 bits
    responses[5][1] = np.nan  # a neuron that was not recorded
    ds = NeuralDataset.from_arrays([np.ones((2, n), np.float32) for n in lengths], responses, 5.0)
    views = {
        "whole": lambda: ds,
        "normalized": lambda: ds.normalized("zscore"),
        "smooth": lambda: ds.smoothed(25.0),
        "neurons": lambda: ds.select(neurons=[2, 0]),
        "windows": lambda: windows(ds, length_s=0.05, context_ms=25.0),
    }
    ds = views[view]()
    known = [clip for clip in range(len(ds)) if ds.has_all_bins(clip)]
    assert not any(ds.response_block(clip).isnan().all(1).any() for clip in known)
    assert bool(known) == (view != "normalized")
    seen = {}
    for clips, block in ds.response_stacks(range(len(ds))):
        seen |= dict(zip(clips, block, strict=True))
    assert sorted(seen) == ([0, 1, 2, 3, 4, 6] if view in ("whole", "normalized", "smooth") else [])
    for clip, block in seen.items():
        assert torch.equal(block.nan_to_num(-1.0), ds.response_block(clip).nan_to_num(-1.0))
