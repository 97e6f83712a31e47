"""Splits: who trains, who tests, and the hash of it (weakness 40: there were none)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepSTRF.datasets import (
    ClipSplit,
    NeuralDataset,
    index_split,
    k_fold,
    leave_one_clip_out,
    parse_split,
    random_split,
)

quick = settings(max_examples=30, deadline=None, derandomize=True)


def clips(n, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    stims = [rng.normal(size=(3, 12)).astype(np.float32) for _ in range(n)]
    return NeuralDataset.from_arrays(stims, [np.ones((2, 2, 12))] * n, 5.0, check_alignment=False, **kwargs)


def covers(split, n):
    return sorted([*split.train, *split.val, *split.test]) == list(range(n))


def test_index_split_and_apply():
    ds = clips(20)
    split = index_split(ds, range(14), slice(14, 17), np.arange(17, 20))
    assert isinstance(split, ClipSplit)
    assert split.name == "14/3/3"
    assert (split.train, split.val, split.test) == (tuple(range(14)), (14, 15, 16), (17, 18, 19))
    train, val, test = split.apply(ds)
    assert [len(part) for part in (train, val, test)] == [14, 3, 3]
    assert test.S_sel == [17, 18, 19]
    assert train.N_neurons == 2
    assert str(split).startswith("14/3/3 (14/3/3 clips, ")
    with pytest.raises(AttributeError):
        split.train = ()


def test_selectors_and_empty_parts():
    ds = clips(4, stim_meta=[{"type": t} for t in ("a", "b", "a", "c")])
    split = index_split(ds, {"type": "a"}, [], lambda meta: meta["type"] == "c")
    assert (split.train, split.val, split.test) == ((0, 2), (), (3,))
    assert len(split.apply(ds)[1]) == 0


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (([0, 1], [1], [2]), ValueError, "clip 1 is in both train and val"),
        (([0], [], [0]), ValueError, "both train and test"),
        (([], [1], [2]), ValueError, "at least one training clip"),
        (([0], [1], [9]), IndexError, "clip 9"),
        ((None, [1], [2]), TypeError, "train is None"),
    ],
)
def test_bad_splits(parts, error, words):
    with pytest.raises(error, match=words):
        index_split(clips(3), *parts)


def test_the_same_sound_on_both_sides_is_refused():
    same = torch.rand(3, 12)
    ds = NeuralDataset.from_arrays([same, torch.rand(3, 12), same], [np.ones((1, 12))] * 3, 5.0)
    with pytest.raises(ValueError, match=r"clip 2 \(test\) holds the same sound as clip 0 \(train\)"):
        index_split(ds, [0], [1], [2])
    assert index_split(ds, [0, 2], [], [1]).train == (0, 2)


# ---- the hash


def test_hash_is_of_content_roles_and_order():
    ds = clips(5)
    split = index_split(ds, [0, 1, 2], [3], [4])
    assert index_split(clips(5), [0, 1, 2], [3], [4]).hash == split.hash
    assert index_split(ds, [1, 0, 2], [3], [4]).hash != split.hash
    assert index_split(ds, [0, 1, 2], [4], [3]).hash != split.hash
    assert index_split(ds, [0, 1, 2, 3], [], [4]).hash != split.hash
    assert index_split(clips(5, seed=1), [0, 1, 2], [3], [4]).hash != split.hash
    turned = ds.select(clips=[4, 3, 2, 1, 0])
    assert index_split(turned, [4, 3, 2], [1], [0]).hash == split.hash


def test_hash_ignores_responses_neurons_smoothing_and_standardisation():
    ds = clips(5)
    split = index_split(ds, [0, 1, 2], [3], [4])
    for view in (
        ds.smoothed(),
        ds.select(neurons=[1]),
        ds.standardized(),
        ds.normalized(),
    ):
        assert index_split(view, [0, 1, 2], [3], [4]).hash == split.hash
        split.apply(view)


def test_hash_of_computed_stimuli_is_that_of_the_sound():
    meta = [{"source_sha256": f"{i:064x}"} for i in range(3)]
    one, two = clips(3, stim_meta=meta), clips(3, seed=9, stim_meta=meta)
    assert index_split(one, [0], [1], [2]).hash == index_split(two, [0], [1], [2]).hash


def test_hash_is_the_same_in_another_process():
    code = (
        "import numpy as np; from deepSTRF.datasets import NeuralDataset, k_fold;"
        "s = [np.arange(6, dtype=np.float32).reshape(2, 3) + i for i in range(4)];"
        "ds = NeuralDataset.from_arrays(s, [np.zeros((1, 3))] * 4, 5.0);"
        "split = k_fold(ds, 4, seed=3)[1];"
        "import sys; sys.stdout.write(f'{split.hash} {split.test}')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "ec0af74e616b886b13cc976df1a372c50c462b5715ffc857799ac7d06c8cff5c (2,)"


def test_apply_refuses_other_sounds():
    split = index_split(clips(5), [0, 1, 2], [3], [4])
    with pytest.raises(ValueError, match="other sounds"):
        split.apply(clips(5, seed=1))
    with pytest.raises(IndexError, match="there are 4"):
        split.apply(clips(4))
    assert len(split.apply(clips(5, seed=1), verify=False)[0]) == 3


# ---- folds


@quick
@given(st.integers(2, 9), st.integers(9, 25), st.integers(0, 99))
def test_k_fold_tests_every_clip_once(k, n, seed):
    ds = clips(n)
    splits = k_fold(ds, k, seed=seed)
    assert len(splits) == k
    assert sorted(c for s in splits for c in s.test) == list(range(n))
    assert all(covers(s, n) for s in splits)
    sizes = {len(s.test) for s in splits}
    assert max(sizes) - min(sizes) <= 1
    if k > 2:
        assert sorted(c for s in splits for c in s.val) == list(range(n))
    assert [s.hash for s in splits] == [s.hash for s in k_fold(ds, k, seed=seed)]
    assert len({s.hash for s in splits}) == k


def test_seeds_differ():
    ds = clips(12)
    assert k_fold(ds, 3, seed=0)[0].test != k_fold(ds, 3, seed=1)[0].test
    assert random_split(ds, seed=0).test != random_split(ds, seed=1).test
    assert k_fold(ds, 3, seed=np.int64(1))[0].test == k_fold(ds, 3, seed=1)[0].test
    with pytest.raises(TypeError, match="seed"):
        k_fold(ds, 3, seed=1.5)


def test_number_of_validation_clips():
    ds = clips(10)
    for split in k_fold(ds, 5, n_val=3):
        assert [len(p) for p in (split.train, split.val, split.test)] == [5, 3, 2]
        assert covers(split, 10)
    assert all(len(s.val) == 0 for s in k_fold(ds, 5, n_val=0))
    for bad in (8, -1, 1.5, True):
        with pytest.raises(ValueError, match="n_val"):
            k_fold(ds, 5, n_val=bad)


@pytest.mark.parametrize("k", [0, 1, 2.0, True, "3"])
def test_bad_numbers_of_folds(k):
    with pytest.raises(ValueError, match="k is the number of folds"):
        k_fold(clips(4), k)


def test_more_folds_than_clips():
    with pytest.raises(ValueError, match="k=5 folds need at least 5 clips, the dataset has 4"):
        k_fold(clips(4), 5)


def test_copies_of_a_sound_stay_together():
    base = [torch.rand(3, 12) for _ in range(4)]
    ds = NeuralDataset.from_arrays(base + base, [np.ones((1, 12))] * 8, 5.0)
    for split in k_fold(ds, 4):
        assert sorted(c % 4 for c in split.test) == [split.test[0] % 4] * 2
    with pytest.raises(ValueError, match="8 clips, but only 4 different sounds"):
        k_fold(ds, 5)
    assert len(leave_one_clip_out(ds)) == 4
    split = random_split(ds, (0.5, 0.25, 0.25))
    assert [len(p) for p in (split.train, split.val, split.test)] == [4, 2, 2]


def test_leave_one_clip_out():
    ds = clips(20)
    splits = leave_one_clip_out(ds)
    assert [s.test for s in splits] == [(i,) for i in range(20)]
    assert all(covers(s, 20) and len(s.val) == 3 for s in splits)
    assert all(len(s.val) == 0 for s in leave_one_clip_out(ds, n_val=0))
    two = leave_one_clip_out(clips(2))
    assert [(s.train, s.val, s.test) for s in two] == [((1,), (), (0,)), ((0,), (), (1,))]
    with pytest.raises(ValueError, match="at least 2 clips"):
        leave_one_clip_out(clips(1))


@quick
@given(
    st.integers(3, 40), st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (1.0, 0, 0), (0.34, 0.33, 0.33)])
)
def test_random_split_covers_and_respects_shares(n, fractions):
    split = random_split(clips(n), fractions, seed=1)
    parts = (split.train, split.val, split.test)
    assert covers(split, n)
    for part, share in zip(parts, fractions, strict=True):
        assert (len(part) > 0) == (share > 0)
        assert abs(len(part) - share * n) <= 2
        assert list(part) == sorted(part)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.2, 0.2), (0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="fractions"):
        random_split(clips(5), fractions)


def test_too_few_clips_for_the_roles():
    with pytest.raises(ValueError, match="2 different clips cannot fill 3 roles"):
        random_split(clips(2))


def test_the_draw_does_not_depend_on_the_content():
    assert random_split(clips(9)).test == random_split(clips(9, seed=5)).test


# ---- text


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("14/3/3", (14, 3, 3)),
        (" 18/0/2 ", (18, 0, 2)),
        ("0-13/14-16/17,18,19", (14, 3, 3)),
        ("0,2,4//1", (3, 0, 1)),
        ("random:0.7/0.15/0.15", (14, 3, 3)),
        ("random:0.7/0.15/0.15:seed=4", (14, 3, 3)),
        ("kfold:5:fold=0", (12, 4, 4)),
        ("KFOLD:5:fold=4:seed=2:n_val=2", (14, 2, 4)),
        ("loo:fold=19", (16, 3, 1)),
        ("loo:fold=0:n_val=0", (19, 0, 1)),
    ],
)
def test_text_makes_a_split_and_its_name_makes_it_again(text, sizes):
    ds = clips(20)
    split = parse_split(ds, text)
    assert tuple(len(p) for p in (split.train, split.val, split.test)) == sizes
    assert parse_split(ds, split.name) == split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("14/3", "is no split"),
        ("14/3/4", "21 clips, the dataset has 20"),
        ("a/b/c", "'a' in 'a/b/c'"),
        ("kfold:5", "names no fold"),
        ("kfold:x:fold=0", "'x'"),
        ("kfold", "is no whole number"),
        ("kfold:5:fold=5", "there are 5 folds"),
        ("kfold:5:fold=0:sed=1", "unknown option 'sed=1'"),
        ("random:0.7/x/0.1", "is no number"),
        ("random", "is no number|fractions"),
        ("", "is no split"),
        ("0-13/14-16/17-25", "clip 20"),
    ],
)
def test_bad_text(text, words):
    with pytest.raises((ValueError, IndexError), match=words):
        parse_split(clips(20), text)


def test_text_is_text():
    with pytest.raises(TypeError, match="string"):
        parse_split(clips(3), (1, 1, 1))
