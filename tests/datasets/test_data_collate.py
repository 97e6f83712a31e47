"""neural_collate: the exact output, quick and plain path alike."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.datasets import NeuralDataset, neural_collate


def plain(item):
    return {**item, "responses": [r.clone() for r in item["responses"]]}


def test_keys_shapes_and_padding(sparse):
    batch = neural_collate([sparse[0], sparse[2]])
    assert list(batch) == ["stims", "responses", "valid_mask", "stim_meta"]
    assert batch["stims"].shape == (2, 1, 2, 5)
    assert (batch["stims"][0, :, :, 4:] == 0).all()
    assert torch.equal(batch["stims"][0, :, :, :4], sparse.stims[0])
    assert batch["responses"].shape == (2, 3, 4, 5)
    assert batch["responses"].dtype == batch["stims"].dtype
    assert batch["valid_mask"].dtype == torch.bool
    assert torch.equal(batch["valid_mask"], ~batch["responses"].isnan())
    assert [m["name"] for m in batch["stim_meta"]] == ["x", "z"]
    assert batch["valid_mask"].any(-1).any(-1).tolist() == [[True, True, False], [True, True, True]]


def test_repeats_and_bins_are_those_of_the_batch(sparse):
    assert neural_collate([sparse[0]])["responses"].shape == (1, 3, 2, 4)
    assert neural_collate([sparse[1]])["responses"].shape == (1, 3, 3, 3)


@pytest.mark.parametrize("clips", [[0], [0, 1, 2], [2, 0, 0]])
def test_quick_and_plain_path_agree(sparse, clips):
    """Weakness 36: only a double loop in Python; here one copy per item, with the same result."""
    for view in (sparse, sparse.select(neurons=[1, 0]), sparse.smoothed()):
        quick = neural_collate([view[c] for c in clips if c < len(view)])
        slow = neural_collate([plain(view[c]) for c in clips if c < len(view)])
        mixed = neural_collate([plain(view[c]) if c % 2 else view[c] for c in clips if c < len(view)])
        for other in (slow, mixed):
            torch.testing.assert_close(quick["responses"], other["responses"], equal_nan=True)
            assert torch.equal(quick["valid_mask"], other["valid_mask"])


def test_a_changed_list_is_believed(sparse):
    item = sparse[0]
    item["responses"][0] = torch.full((2, 4), 9.0)
    assert (neural_collate([item])["responses"][0, 0] == 9).all()
    item = sparse[0]
    item["responses"][0].fill_(8.0)
    assert (neural_collate([item])["responses"][0, 0] == 8).all()
    item = sparse[0]
    item["responses"].pop()
    assert neural_collate([item])["responses"].shape[1] == 2


def test_other_keys_become_lists(ds):
    items = [{**ds[i], "behav": i} for i in range(2)]
    assert neural_collate(items)["behav"] == [0, 1]


def test_waveforms_and_other_dtypes(ds):
    item = {**ds[0], "stims": torch.rand(1, 100, dtype=torch.float64)}
    batch = neural_collate([item, {**ds[1], "stims": torch.rand(1, 80, dtype=torch.float64)}])
    assert batch["stims"].shape == (2, 1, 100)
    assert batch["responses"].dtype == torch.float64


def test_different_populations_in_one_batch_are_an_error(ds):
    """Weakness 36: N was taken from the first item without a check."""
    with pytest.raises(ValueError, match=r"\[4, 2\] neurons"):
        neural_collate([ds[0], ds.select(neurons=[0, 1])[0]])


def test_different_bands_in_one_batch_are_an_error(ds, make):
    with pytest.raises(ValueError, match="last axis"):
        neural_collate([ds[0], make(n_bands=7)[0]])


def test_empty_batches_are_an_error():
    with pytest.raises(ValueError, match="at least one item"):
        neural_collate([])


def test_no_neurons_and_no_data(ds, sparse):
    batch = neural_collate([ds.select(neurons=[], keep_unheard=True)[0]])
    assert batch["responses"].shape[:2] == (1, 0)
    unheard = sparse.select(neurons=[2, 2], keep_unheard=True)[0]
    batch = neural_collate([unheard])
    assert batch["responses"].shape == (1, 2, 1, 4)
    assert not batch["valid_mask"].any()


def test_one_neuron_one_repeat_one_clip():
    ds = NeuralDataset.from_arrays([torch.rand(3, 7)], [torch.ones(1, 7)], 5.0)
    assert neural_collate([ds[0]])["responses"].shape == (1, 1, 1, 7)
