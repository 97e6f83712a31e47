"""Batches of clips of like lengths: each clip once an epoch, reproducible, resumable, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders


def ragged(n_clips: int = 37, seed: int = 0) -> NeuralDataset:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 400, n_clips)
    stims = [torch.from_numpy(rng.standard_normal((3, n))).float() for n in lengths]
    counts = [rng.poisson(0.5, (2, 3, n)) for n in lengths]
    return NeuralDataset.from_arrays(stims, counts, dt_ms=10.0, check_alignment=False)


def orders(loader, epochs: int) -> list[list[list[int]]]:
    return [[list(batch) for batch in loader.batch_sampler] for _ in range(epochs)]


def padding(ds: NeuralDataset, batches: list[list[int]]) -> float:
    held = [[ds.n_bins(clip) for clip in batch] for batch in batches]
    return sum(max(batch) * len(batch) for batch in held) / sum(map(sum, held))


def test_every_clip_once_per_epoch_in_new_batches_and_reproducible():
    ds = ragged()
    (loader,) = make_loaders(ds, batch_size=4, seed=3, bucket_by_length=True)
    (again,) = make_loaders(ds, batch_size=4, seed=3, bucket_by_length=True)
    (other,) = make_loaders(ds, batch_size=4, seed=4, bucket_by_length=True)
    first, second = orders(loader, 2)
    assert len(loader) == len(first) == 10
    for epoch in (first, second):
        assert sorted(clip for batch in epoch for clip in batch) == list(range(len(ds)))
        assert sorted(map(len, epoch)) == [1] + [4] * 9
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert orders(again, 2) == [first, second]
    assert orders(other, 1) != [first]
    global_stream = []
    for _ in range(2):
        torch.manual_seed(5)
        (without,) = make_loaders(ds, batch_size=4, bucket_by_length=True)
        global_stream.append(orders(without, 1))
    assert global_stream[0] == global_stream[1]


def test_little_is_padded_and_nothing_changes_without_the_option():
    ds = ragged(200)
    (plain,) = make_loaders(ds, batch_size=8, seed=0)
    (bucketed,) = make_loaders(ds, batch_size=8, seed=0, bucket_by_length=True)
    assert padding(ds, orders(plain, 1)[0]) > 1.4
    assert padding(ds, orders(bucketed, 1)[0]) < 1.15
    generator = torch.Generator()
    generator.manual_seed(0)
    assert type(plain.batch_sampler) is torch.utils.data.BatchSampler
    with pytest.raises(ValueError, match="shuffle"):
        make_loaders(ds, shuffle=False, bucket_by_length=True)


def test_a_fit_is_that_of_the_plain_loop_and_goes_on_where_it_was_killed(tmp_path):
    ds = ragged(12)
    train, val = ds.select(clips=range(9)), ds.select(clips=[9, 10, 11])

    def fit(epochs: int, **options) -> tuple[dict[str, torch.Tensor], list]:
        torch.manual_seed(1)
        model = Linear(3, 4, 2, norm="none")
        loaders = make_loaders(train, val, batch_size=2, seed=0, bucket_by_length=True)
        fitter = Fitter(model, *loaders, max_epochs=epochs, patience=9, progress=False, seed=2, **options)
        return dict(model.state_dict()), fitter.fit()

    weights, history = fit(4)
    plain, plain_history = fit(4, fast=False)
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in plain_history]
    fit(2, state_path=tmp_path / "state.pt")
    resumed, rest = fit(4, state_path=tmp_path / "state.pt")
    assert [row["train_loss"] for row in rest] == [row["train_loss"] for row in history]
    for name, value in weights.items():
        assert torch.equal(value, resumed[name])
        assert torch.equal(value, plain[name])
    loaders = make_loaders(train, val, batch_size=2, seed=0)
    options = {"max_epochs": 4, "patience": 9, "progress": False, "seed": 2}
    fitter = Fitter(Linear(3, 4, 2, norm="none"), *loaders, state_path=tmp_path / "state.pt", **options)
    with pytest.raises(ValueError, match="of like lengths"):
        fitter.fit()


def test_validation_by_length_pads_less_and_scores_the_same():
    ds = ragged(60)
    train, val = ds.select(clips=range(20)), ds.select(clips=range(20, 60))

    def fit(bucket_by_length: bool, **options) -> tuple[dict, list[tuple[int, ...]]]:
        served: list[tuple[int, ...]] = []

        class Watched(Fitter):
            def predict_batch(self, batch):
                if not self.model.training:
                    served.append(tuple(batch.lengths))
                return super().predict_batch(batch)

        torch.manual_seed(1)
        loaders = make_loaders(train, val, batch_size=8, seed=0, bucket_by_length=bucket_by_length)
        optimizer = torch.optim.SGD((model := Linear(3, 4, 2, norm="none")).parameters(), lr=0.0)
        fitter = Watched(
            model, *loaders, optimizer=optimizer, max_epochs=1, progress=False, seed=0, **options
        )
        return fitter.fit()[0], served

    plain, in_order = fit(False)
    for options in ({}, {"fast": False}):
        found, sorted_by_length = fit(True, **options)
        frames = [sum(max(batch) * len(batch) for batch in served) for served in (in_order, sorted_by_length)]
        assert frames[1] < 0.8 * frames[0]
        assert sorted(sum(sorted_by_length, ())) == sorted(sum(in_order, ()))
        for name in ("val_loss", "val_cc", "val_cc_norm"):
            torch.testing.assert_close(
                torch.as_tensor(found[name]), torch.as_tensor(plain[name]), rtol=1e-6, atol=1e-7
            )
