"""Views: selection, standardisation, normalisation, smoothing; the source never changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepSTRF.datasets import NeuralDataset

quick = settings(max_examples=40, deadline=None, derandomize=True)


def snapshot(ds):
    return (
        repr(ds),
        [s.clone() for s in ds.stims],
        [ds.response_block(i).nan_to_num(-1.0) for i in range(len(ds))],
        [dict(m) for m in ds.nrn_meta],
        [dict(m) for m in ds.stim_meta],
        ds.nrn_masks.clone(),
        ds.I,
        ds.S_sel,
        ds.smoothing_ms,
    )


def assert_same(a, b):
    for left, right in zip(a, b, strict=True):
        if isinstance(left, list) and left and isinstance(left[0], torch.Tensor):
            assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right


def test_views_never_touch_their_source(sparse):
    """Weaknesses 25 and 32: selections and transforms changed the one shared object."""
    before = snapshot(sparse)
    view = sparse.select(neurons=[2, 0], clips=[1, 2]).smoothed().standardized()
    view = view.normalized("zscore")
    view.nrn_meta[0]["area"] = "changed"
    view.stim_meta[0]["name"] = "changed"
    view.facts["x"] = 1
    _ = [view[i] for i in range(len(view))]
    assert_same(before, snapshot(sparse))
    assert sparse.facts == {}


def test_a_view_is_a_dataset_of_the_same_class_that_shares_the_recording(ds):
    view = ds.select(neurons=[3, 1], clips=[2, 0])
    assert type(view) is type(ds)
    assert view.N_neurons == 2
    assert len(view) == len(view.stims) == len(view.responses) == len(view.stim_meta) == 2
    assert [m["cell_id"] for m in view.nrn_meta] == ["neuron003", "neuron001"]
    assert view.nrn_masks.shape == (2, 2)
    assert view.shared_stimulus(0) is ds.shared_stimulus(2)
    assert view.response_storage.clips[0].data is ds.response_storage.clips[2].data
    assert torch.equal(view.response_block(1), ds.response_block(0)[[3, 1]])
    assert view.n_bins(0) == 60


def test_an_empty_selection_means_nothing(ds):
    """Weakness 22: an empty list of neurons selected everybody."""
    nobody = ds.select(neurons=[])
    assert nobody.N_neurons == 0
    assert len(nobody) == 0
    assert nobody.nrn_meta == []
    nothing = ds.select(clips=[])
    assert len(nothing) == 0
    assert nothing.N_neurons == 4
    assert nothing.nrn_masks.shape == (0, 4)
    assert ds.select(neurons={"cell_id": "no such"}).N_neurons == 0
    kept = ds.select(neurons=[], keep_unheard=True)
    assert len(kept) == 3
    assert kept[0]["responses"] == []


def test_none_means_all(ds):
    view = ds.select()
    assert view is not ds
    assert (view.N_neurons, len(view), view.I, view.S_sel) == (4, 3, None, None)


def test_order_and_duplicates_are_kept(ds):
    """Weakness 28: select_stims([2, 0, 2]) iterated 0, 2."""
    view = ds.select(clips=[2, 0, 2], neurons=[1, 1])
    assert [m["name"] for m in view.stim_meta] == ["clip002", "clip000", "clip002"]
    assert view.S_sel == [2, 0, 2]
    assert view.I == [1, 1]
    assert torch.equal(view.response_block(0)[0], view.response_block(0)[1])


def test_selecting_clips_never_changes_the_neurons(sparse):
    """Weakness 25: N of a batch depended on the chosen clips."""
    for clips in ([0], [1], [2], []):
        assert sparse.select(clips=clips).N_neurons == 3


def test_selecting_neurons_leaves_out_clips_none_of_them_heard(sparse):
    view = sparse.select(neurons=[2])
    assert view.S_sel == [1, 2]
    assert [m["name"] for m in view.stim_meta] == ["y", "z"]
    kept = sparse.select(neurons=[2], keep_unheard=True)
    assert len(kept) == 3
    assert kept.S_sel is None
    assert not kept[0]["valid_mask"].any()
    assert kept.response_block(0).shape == (1, 1, 4)
    chosen = sparse.select(neurons=[2], clips=[2, 0, 1])
    assert chosen.S_sel == [2, 1]


@quick
@given(st.data())
def test_views_of_views_point_at_the_root(data):
    rng = np.random.default_rng(0)
    blocks = [rng.poisson(1.0, (5, 2, 7 + clip)).astype(float) for clip in range(4)]
    root = NeuralDataset.from_arrays([np.zeros((2, b.shape[-1])) for b in blocks], blocks, 5.0)
    view, neurons, clips = root, list(range(5)), list(range(4))
    for _ in range(3):
        n = data.draw(st.lists(st.integers(0, len(neurons) - 1), min_size=1, max_size=6))
        c = data.draw(st.lists(st.integers(0, len(clips) - 1), min_size=1, max_size=5))
        view = view.select(neurons=n, clips=c)
        neurons, clips = [neurons[i] for i in n], [clips[i] for i in c]
    assert neurons == view.I
    assert view.S_sel == clips
    assert [m["cell_id"] for m in view.nrn_meta] == [f"neuron{i:03d}" for i in neurons]
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(view.response_block(i).numpy(), blocks[clip][neurons])


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        (2, [2]),
        (np.int32(2), [2]),
        (torch.tensor(1), [1]),
        (-1, [3]),
        ((0, 2), [0, 2]),
        (range(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (np.array([3, 1]), [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
        ([np.int64(1), torch.tensor(2)], [1, 2]),
        ([True, False, False, True], [0, 3]),
        (np.array([False, True, False, False]), [1]),
        (torch.tensor([False, False, False, False]), []),
        (np.array([], dtype=float), []),
        ({"cell_id": "neuron002"}, [2]),
        ({"cell_id": ["neuron003", "neuron000"]}, [0, 3]),
        (lambda meta: meta["cell_id"] > "neuron001", [2, 3]),
    ],
)
def test_what_selects(ds, selector, chosen):
    view = ds.select(neurons=selector)
    assert chosen == view.I


@pytest.mark.parametrize(
    ("selector", "error", "words"),
    [
        (4, IndexError, "neuron 4 .*4"),
        ([0, -5], IndexError, "neuron -5"),
        (True, TypeError, "True"),
        ([True, 1, 0, 0], TypeError, "boolean"),
        ([True, False], ValueError, r"\(4\), got 2"),
        ("neuron001", TypeError, "metadata"),
        (1.0, TypeError, "integer"),
        ([0.0], TypeError, "integer"),
        ({"aera": "A1"}, KeyError, "cell_id"),
        ({1, 2}, TypeError, "integer"),
    ],
)
def test_what_does_not_select(ds, selector, error, words):
    with pytest.raises(error, match=words):
        ds.select(neurons=selector)


def test_errors_in_a_predicate_come_out(ds):
    """Weakness 23: a typo in a predicate selected nothing, hence everything."""
    with pytest.raises(KeyError, match="aera") as caught:
        ds.select(neurons=lambda meta: meta["aera"] == "A1")
    assert "neuron 0" in caught.value.__notes__[0]
    with pytest.raises(TypeError):
        ds.select(clips=lambda meta: meta["name"] > 3)


def test_metadata_that_only_some_have(sparse):
    assert sparse.select(clips={"type": "speech"}).S_sel == [0]
    assert sparse.select(neurons={"area": ["A1", "PEG"], "cell_id": ["b", "c"]}).I == [1, 2]


def test_metadata_of_a_selection_match_its_numbers(sparse):
    """Weakness 26: get_nrn_meta() returned [] for "all"."""
    view = sparse.select(neurons={"area": "A1"})
    assert len(view.nrn_meta) == view.N_neurons == view.nrn_masks.shape[1] == len(view[0]["responses"])


# ---- standardisation


def test_standardize_per_band_with_statistics_of_the_training_clips(ds):
    view = ds.standardized(stim_indices=[0, 1])
    train = torch.cat([view.stims[0], view.stims[1]], dim=-1)[0]
    torch.testing.assert_close(train.mean(dim=1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(dim=1), torch.ones(6))  # unbiased
    raw = torch.cat([ds.stims[0], ds.stims[1]], dim=-1)[0]
    expected = (ds.stims[2] - raw.mean(dim=1)[:, None]) / raw.std(dim=1)[:, None]
    torch.testing.assert_close(view.stims[2], expected)
    record = view.stim_normalization
    assert record["stim_indices"] == [0, 1]
    assert record["per_band"] is True
    assert record["mean"].shape == record["std"].shape == (6, 1)
    assert ds.stim_normalization is None
    assert view[2]["stims"].dtype == torch.float32


def test_standardize_over_everything(ds):
    view = ds.standardized(per_band=False)
    values = torch.cat([s.ravel() for s in view.stims])
    assert float(values.mean()) == pytest.approx(0, abs=1e-6)
    assert float(values.std()) == pytest.approx(1, abs=1e-5)


def test_standardize_and_normalize_twice_are_once(ds):
    """Weakness 32: not idempotent."""
    once, twice = ds.standardized(), ds.standardized().standardized()
    assert torch.equal(once.stims[1], twice.stims[1])
    once, twice = ds.normalized(), ds.normalized().normalized()
    assert torch.equal(once.response_block(1), twice.response_block(1))
    once, twice = ds.smoothed(), ds.smoothed().smoothed()
    assert torch.equal(once.response_block(1), twice.response_block(1))


def test_standardisation_of_large_offsets_is_exact():
    stims = [1e4 + np.random.default_rng(i).normal(size=(3, 500)) for i in range(3)]
    ds = NeuralDataset.from_arrays(stims, [np.zeros((1, 500))] * 3, 5.0)
    joined = np.concatenate([s.astype(np.float32).astype(float) for s in stims], axis=1)
    record = ds.standardized().stim_normalization
    np.testing.assert_allclose(record["mean"][:, 0], joined.mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose(record["std"][:, 0], joined.std(axis=1, ddof=1), rtol=1e-6)


def test_a_band_that_never_varied_is_not_blown_up():
    """Weakness 33, for stimuli: a constant band was divided by 1e-8."""
    quiet, loud = np.zeros((2, 50)), np.ones((2, 50))
    quiet[0] = np.arange(50)
    ds = NeuralDataset.from_arrays([quiet, loud], [np.zeros((1, 50))] * 2, 5.0)
    assert float(ds.standardized([0]).stims[1].abs().max()) < 5


def test_standardize_needs_clips(ds):
    with pytest.raises(ValueError, match="at least one clip"):
        ds.standardized([])


# ---- normalisation


def test_max_and_zscore_against_numpy(sparse):
    values = [
        np.concatenate([sparse.responses[s][n].ravel().numpy() for s in range(3) if sparse.nrn_masks[s, n]])
        for n in range(3)
    ]
    record = sparse.normalized("max").response_normalization
    np.testing.assert_allclose(record["scale"], [np.nanmax(np.abs(v)) for v in values])
    np.testing.assert_allclose(record["offset"], 0)
    record = sparse.normalized("zscore").response_normalization
    np.testing.assert_allclose(record["scale"], [np.nanstd(v, ddof=1) for v in values], rtol=1e-6)
    np.testing.assert_allclose(record["offset"], [np.nanmean(v) for v in values], rtol=1e-6)
    view = sparse.normalized("zscore")
    expected = (sparse.responses[0][0] - record["offset"][0]) / record["scale"][0]
    torch.testing.assert_close(view.responses[0][0], expected)
    assert view.nrn_masks.tolist() == sparse.nrn_masks.tolist()


def test_a_neuron_silent_in_the_reference_clips_keeps_its_scale():
    """Weakness 33: it was divided by 1e-8."""
    silent, active = np.zeros((2, 3, 20)), np.ones((2, 3, 20)) * 4
    silent[1] = 2
    ds = NeuralDataset.from_arrays([np.zeros((1, 20))] * 2, [silent, active], 5.0, check_alignment=False)
    for method in ("max", "zscore"):
        view = ds.normalized(method, stim_indices=[0])
        assert float(view.response_block(1)[0].max()) == 4.0
        assert float(view.response_normalization["scale"][0]) == 1.0


def test_a_neuron_without_values_in_the_reference_clips_is_left_alone(sparse):
    view = sparse.normalized("zscore", stim_indices=[0])
    assert float(view.response_normalization["scale"][2]) == 1.0
    assert float(view.response_normalization["offset"][2]) == 0.0


def test_normalisation_follows_a_selection(ds):
    view = ds.normalized("zscore")
    picked = view.select(neurons=[3, 0])
    torch.testing.assert_close(picked.response_block(1), view.response_block(1)[[3, 0]])
    assert torch.equal(picked.response_normalization["scale"], view.response_normalization["scale"][[3, 0]])


def test_unknown_method(ds):
    with pytest.raises(ValueError, match="'max', 'zscore'"):
        ds.normalized("minmax")


# ---- smoothing


def test_smoothing_reaches_responses_with_missing_bins(sparse):
    """Weakness 24: a response holding one NaN was not smoothed at all."""
    view = sparse.smoothed(21.0)
    before, after = sparse.responses[2][0][0], view.responses[2][0][0]
    assert after.isnan().tolist() == before.isnan().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(after[3], torch.tensor((2.5 * 2 + 1.5 + 0.0) / 4))
    torch.testing.assert_close(after[2], torch.tensor((1.5 * 2 + 2.5) / 3))


def test_smoothing_keeps_the_unit(ds):
    """Weakness 13: the published kernel has gain 2 at 5 ms."""
    raw = torch.cat([ds.response_block(i).flatten(2) for i in range(3)], dim=-1).mean()
    smooth = torch.cat([ds.smoothed().response_block(i).flatten(2) for i in range(3)], dim=-1).mean()
    assert float(smooth) == pytest.approx(float(raw), rel=0.02)


def test_smoothing_can_be_changed_and_taken_off(ds):
    view = ds.smoothed(21.0)
    assert view.smoothing_ms == 21.0
    wide = view.smoothed(41.0)
    assert torch.equal(wide.response_block(0), ds.smoothed(41.0).response_block(0))
    assert torch.equal(view.smoothed(None).response_block(0), ds.response_block(0))


def test_smoothing_after_normalising_is_refused_with_the_order(ds):
    with pytest.raises(ValueError, match="smooth first"):
        ds.normalized().smoothed()
    assert ds.smoothed().normalized().smoothing_ms == 21.0


@pytest.mark.parametrize("window", [0, -1.0, float("nan")])
def test_bad_windows_are_refused_at_once(ds, window):
    with pytest.raises(ValueError, match="window_ms"):
        ds.smoothed(window)


@pytest.mark.parametrize(
    ("earlier", "arguments", "new"),
    [
        ("standardize_stims", ([0],), r"ds = ds\.standardized\("),
        ("normalize_responses", ("max",), r"ds = ds\.normalized\("),
        ("smooth_responses", (21.0,), r"ds = ds\.smoothed\("),
    ],
)
def test_calls_that_worked_in_place_show_the_view(ds, earlier, arguments, new):
    with pytest.raises(AttributeError, match=new):
        getattr(ds, earlier)(*arguments)
    assert not hasattr(ds, earlier)
