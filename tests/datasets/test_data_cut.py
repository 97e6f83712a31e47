"""Pieces of long clips: bins, samples, repeats, identities, and splits of them."""

import numpy as np
import pytest
import torch

from deepSTRF.datasets import (
    NeuralDataset,
    index_split,
    k_fold,
    leave_one_clip_out,
    parse_split,
    random_split,
)
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment

DT, HOP, T = 5.0, 40, 1013
rng = np.random.default_rng(0)
SOUND = rng.normal(size=T * HOP) * 0.1
COUNTS = rng.poisson(0.4, (3, 4, T)).astype(float)
COUNTS[1, 2, 100:130] = np.nan
COUNTS[2, :, 500:] = np.nan  # the last neuron was lost halfway


def recording(**options):
    return AudioNeuralDataset.from_arrays(
        [SOUND], [COUNTS], DT, audio_fs=8000, check_alignment=False, name="hour", **options
    )


def test_pieces_hold_their_bins_samples_and_repeats():
    ds = recording(stim_meta=[{"name": "walk", "place": "field"}])
    pieces = ds.cut(length_ms=1000.0, gap_ms=250.0)  # 200 bins, 50 left out
    assert (len(pieces), pieces.N_neurons, pieces.audio_fs, pieces.hop) == (4, 3, 8000, HOP)
    for index, start in enumerate((0, 250, 500, 750)):
        stop = start + 200
        np.testing.assert_array_equal(
            pieces.stims[index][0].numpy(), np.float32(SOUND[start * HOP : stop * HOP])
        )
        block = pieces.response_block(index).numpy()
        expected = COUNTS[..., start:stop]
        np.testing.assert_array_equal(block, expected)
        meta = pieces.stim_meta[index]
        assert (meta["cut_from"], meta["start_ms"], meta["place"]) == ("walk", start * DT, "field")
    assert pieces.nrn_masks.tolist() == [[True] * 3] * 2 + [[True, True, False]] * 2
    assert pieces.load_report.skipped == [("walk", "its last 13 bins are too short for a piece")]
    facts = pieces.describe()
    assert (facts["cut_ms"], facts["cut_gap_ms"], facts["n_clips"]) == (1000.0, 250.0, 4)
    assert len(ds) == 1
    assert ds.n_bins(0) == T


def test_a_last_piece_of_half_the_length_is_kept():
    assert [recording().cut(2500.0).n_bins(i) for i in range(2)] == [500, 500]  # 13 bins are left out
    pieces = recording().cut(3000.0)
    assert [pieces.n_bins(i) for i in range(len(pieces))] == [600, 413]


def test_pieces_share_the_recorded_data():
    ds = recording()
    pieces = ds.cut(1000.0)
    assert np.shares_memory(pieces.response_storage.clips[1].data, ds.response_storage.clips[0].data)
    assert pieces.shared_stimulus(1).data_ptr() == ds.shared_stimulus(0).data_ptr() + 200 * HOP * 4


def test_pieces_have_identities_of_their_own_and_equal_stretches_are_equal():
    both = AudioNeuralDataset.from_arrays(
        [SOUND, SOUND], [COUNTS, COUNTS], DT, audio_fs=8000, check_alignment=False
    )
    pieces = both.cut(1000.0)
    prints = [pieces.source_fingerprint(i) for i in range(len(pieces))]
    assert len(pieces) == 10
    assert len(set(prints)) == 5
    assert prints[:5] == prints[5:]
    assert pieces.fingerprint(0) != pieces.fingerprint(1)
    train, test = set(random_split(pieces).train), set(random_split(pieces).test)
    assert all((i + 5) % 10 in train for i in train)
    assert all((i + 5) % 10 in test for i in test)
    assert prints != [both.cut(500.0).source_fingerprint(i) for i in range(10)]


def test_views_and_selection_come_along(tmp_path):
    ds = recording().select(neurons=[2, 0]).smoothed(21.0)
    pieces = ds.cut(1000.0)
    assert pieces.I == [2, 0]
    assert pieces.S_sel is None
    assert pieces.smoothing_ms == 21.0
    raw = recording().select(neurons=[2, 0]).cut(1000.0).smoothed(21.0)
    assert torch.equal(pieces.response_block(1), raw.response_block(1))  # smoothed within each piece
    again = AudioNeuralDataset.load(pieces.save(tmp_path / "pieces.npz"))
    assert [row["start_ms"] for row in again.stim_meta] == [row["start_ms"] for row in pieces.stim_meta]
    assert torch.equal(again.response_block(2).nan_to_num(-1), pieces.response_block(2).nan_to_num(-1))
    assert again.response_kind == pieces.response_kind
    assert again.describe()["cut_ms"] == 1000.0


def test_pieces_of_a_loader_are_plain_datasets():
    whole = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=2, clip_seconds=2.0)
    pieces = whole.cut(500.0)
    assert type(pieces) is AudioNeuralDataset  # what the loader knows of whole clips does not fit pieces
    assert pieces.facts["spikes"] == "Poisson"
    assert {row["cut_from"] for row in pieces.stim_meta} == {row["name"] for row in whole.stim_meta}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"length_ms": 1.0}, ValueError, "less than one bin"),
        ({"length_ms": float("nan")}, ValueError, "length_ms"),
        ({"length_ms": "10 s"}, TypeError, "milliseconds"),
        ({"length_ms": 100.0, "gap_ms": -5.0}, ValueError, "gap_ms"),
        ({"length_ms": 20000.0}, ValueError, "cut shorter pieces"),
    ],
)
def test_impossible_pieces_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        recording().cut(**options)


@pytest.mark.parametrize("view", [lambda ds: ds.standardized(), lambda ds: ds.normalized()])
def test_statistics_of_test_pieces_are_not_kept(view):
    with pytest.raises(ValueError, match="cut first"):
        view(recording()).cut(1000.0)


# ---- splits


def test_one_clip_is_split_after_the_cut_that_errors_name():
    for split in (random_split, lambda ds: k_fold(ds, 5), lambda ds: parse_split(ds, "random:0.7/0.15/0.15")):
        with pytest.raises(ValueError, match=r"ds\.cut\(length_ms=\.\.\.\)"):
            split(recording())
    parts = random_split(recording().cut(500.0)).apply(recording().cut(500.0))
    assert all(len(part) for part in parts)
    starts = [row["start_ms"] for part in parts for row in part.stim_meta]
    assert len(set(starts)) == len(starts) == 10
    with pytest.raises(ValueError, match=r"call ds\.cut"):
        parse_split(recording(), "cut:1:random:0.7/0.15/0.15")


def songs(n=6):
    stims = [rng.random((4, 100)) for _ in range(n)]
    return NeuralDataset.from_arrays(
        stims, [rng.poisson(1, (2, 100)) for _ in range(n)], DT, check_alignment=False
    ).cut(100.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda ds, group: [random_split(ds, seed=1, group=group)],
        lambda ds, group: k_fold(ds, 3, group=group),
        lambda ds, group: leave_one_clip_out(ds, group=group),
        lambda ds, group: [parse_split(ds, "random:0.5/0.25/0.25" + (f":group={group}" if group else ""))],
    ],
)
def test_a_song_stays_on_one_side_with_group_and_may_be_divided_without(make):
    ds = songs()

    def divided(split):
        sides = [{ds.stim_meta[i]["cut_from"] for i in part} for part in (split.train, split.val, split.test)]
        return any(a & b for k, a in enumerate(sides) for b in sides[k + 1 :])

    whole = make(ds, "cut_from")
    assert not any(map(divided, whole))
    assert all(map(divided, make(ds, None)))
    assert all(":group=cut_from" in split.name for split in whole)
    assert parse_split(ds, whole[0].name).hash == whole[0].hash
    with pytest.raises(KeyError, match="no 'bird'"):
        make(ds, "bird")


def test_groups_join_through_equal_sounds():
    sound = [rng.random((4, 50)) for _ in range(3)]
    ds = NeuralDataset.from_arrays(
        [sound[0], sound[1], sound[0], sound[2], sound[1]], [np.ones((1, 50))] * 5, DT,
        stim_meta=[{"bird": bird} for bird in "aabcc"], check_alignment=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="1 different clips"):  # a-a, a=b by sound 0, a=c by sound 1
        random_split(ds, (0.5, 0.0, 0.5), group="bird")
    assert index_split(ds, [0, 2], [1, 4], [3]).test == (3,)


def test_from_the_command_line(tmp_path):
    recording().cut(5000.0).save(tmp_path / "one.npz")
    config = ExperimentConfig(
        dataset=str(tmp_path / "one.npz"), model="ridge", model_options={"n_lags": 4},
        wav2spec="mel", split="cut:0.5+0.1:random:0.6/0.2/0.2:seed=3",
    )  # fmt: skip
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert run.facts["split"]["sizes"] == [5, 2, 1]
    with pytest.raises(ValueError, match="no length of pieces"):
        run_experiment(config.with_changes(split="cut:ten:random:1/0/0"), tmp_path / "other", progress=False)
