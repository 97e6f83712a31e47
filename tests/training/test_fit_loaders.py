"""Which clips a DataLoader would serve, read without fetching one and with the same random draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
)

from deepSTRF.datasets import NeuralDataset, neural_collate
from deepSTRF.training import make_loaders

# how a loader is understood shows in no result
from deepSTRF.training.data import ClipLoader, generators_of, read_loader


def served(loader):
    return [tuple(meta["clip"] for meta in batch["stim_meta"]) for batch in loader]


@pytest.fixture(scope="module")
def numbered(kit):
    dataset = kit.spectrogram_recording()
    for clip, meta in enumerate(dataset.stim_meta):
        meta["clip"] = clip
    return dataset


def loaders_of_all_kinds(dataset):
    options = {"collate_fn": neural_collate}
    subset = Subset(Subset(dataset, [5, 4, 3, 2, 1, 0]), np.array([0, 2, 4, 1]))
    yield DataLoader(subset, batch_size=2, **options)
    yield DataLoader(subset, batch_size=3, shuffle=True, **options)
    yield DataLoader(dataset, batch_size=4, shuffle=True, drop_last=True, **options)
    yield DataLoader(dataset, shuffle=True, generator=torch.Generator().manual_seed(3), **options)
    yield DataLoader(dataset, sampler=SubsetRandomSampler([1, 3, 5]), **options)
    yield DataLoader(dataset, sampler=RandomSampler(dataset, replacement=True, num_samples=9), **options)
    yield DataLoader(
        dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 2, drop_last=True), **options
    )
    yield DataLoader(dataset.select(clips=[4, 2]), **options)
    yield DataLoader(Subset(dataset, range(-3, 0)), **options)


@pytest.mark.parametrize("number", range(9))
def test_the_same_clips_in_the_same_order_with_the_same_draws(numbered, number):
    def fresh():
        torch.manual_seed(5)
        return list(loaders_of_all_kinds(numbered))[number]

    loader = fresh()
    wanted = [served(loader) for _ in range(3)] + [float(torch.rand(()))]
    loader = fresh()
    found = read_loader(loader)
    assert isinstance(found, ClipLoader)
    names = [meta["clip"] for meta in found.dataset.stim_meta]
    got = [[tuple(names[clip] for clip in batch) for batch in found] for _ in range(3)]
    assert [*got, float(torch.rand(()))] == wanted


def test_looking_at_a_pass_draws_nothing(numbered):
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(numbered, shuffle=True, generator=generator, collate_fn=neural_collate)
    before = torch.get_rng_state(), generator.get_state()
    assert read_loader(loader).one_pass() == (0, 1, 2, 3, 4, 5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())


class OwnItems(NeuralDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class OwnLoader(DataLoader):
    pass


def test_what_only_iterating_tells(numbered):
    def reason(*args, **kwargs):
        kwargs.setdefault("collate_fn", neural_collate)
        return read_loader(DataLoader(*args, **kwargs))

    assert "collate_fn" in reason(numbered, collate_fn=lambda items: neural_collate(items))
    assert "worker" in reason(numbered, num_workers=1)
    assert "batch_size=None" in reason(numbered, batch_size=None)
    assert "only be iterated" in reason(Stream())
    assert "no NeuralDataset" in reason([numbered[0]])
    assert "OwnLoader" in read_loader(OwnLoader(numbered, collate_fn=neural_collate))
    own = OwnItems.from_arrays([torch.rand(2, 9)], [torch.ones(1, 2, 9)], dt_ms=5.0)
    assert "__getitem__" in reason(own)


def test_a_subset_beyond_the_recording(numbered):
    with pytest.raises(IndexError, match="holds clip 6, but the data set has 6"):
        read_loader(DataLoader(Subset(numbered, [6]), collate_fn=neural_collate))


def test_make_loaders_shuffles_the_first_only(numbered):
    train, val, test = make_loaders(
        numbered.select(clips=[0, 1, 2, 3]), numbered.select(clips=[4]), numbered.select(clips=[5]), seed=1
    )
    orders = {tuple(served(train)) for _ in range(10)}
    assert len(orders) > 1
    assert served(val) == [(4,)]
    assert served(test) == [(5,)]
    again = make_loaders(numbered.select(clips=[0, 1, 2, 3]), seed=1)[0]
    first = make_loaders(numbered.select(clips=[0, 1, 2, 3]), seed=1)[0]
    torch.manual_seed(99)
    assert [served(again) for _ in range(3)] == [served(first) for _ in range(3)]


def test_make_loaders_refuses_nothing(numbered):
    with pytest.raises(ValueError, match="at least one view"):
        make_loaders()
    with pytest.raises(ValueError, match="view 1 has no clips"):
        make_loaders(numbered, numbered.select(clips=[]))
    for nobody in (numbered.select(neurons=[]), numbered.select(neurons=[], keep_unheard=True)):
        with pytest.raises(ValueError, match=r"view 0 has no neurons.*select\(neurons=None\)"):
            make_loaders(nobody)


def test_generators_are_found_once():
    generator = torch.Generator()
    a = DataLoader([1, 2], shuffle=True, generator=generator)
    b = DataLoader([1, 2], sampler=RandomSampler([1, 2], generator=generator))
    assert generators_of(a, b) == [generator]
    assert generators_of(DataLoader([1])) == []
