"""Small recordings for the tests of the datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import AudioNeuralDataset


def poisson_dataset(
    n_neurons: int = 4,
    bins: tuple[int, ...] = (50, 40, 60),
    n_repeats: int = 5,
    n_bands: int = 6,
    seed: int = 0,
    **kwargs: Any,
) -> AudioNeuralDataset:
    """Random spectrograms and Poisson counts, every neuron heard every clip."""
    rng = np.random.default_rng(seed)
    stims = [rng.normal(size=(n_bands, n)) for n in bins]
    counts = [rng.poisson(0.5, size=(n_neurons, n_repeats, n)) for n in bins]
    return AudioNeuralDataset.from_arrays(stims, counts, dt_ms=5.0, **kwargs)


class ListLoader(NeuralDataset):
    """A loader as a user writes it: fills the attributes, then validates."""

    def __init__(
        self,
        stims: list[torch.Tensor],
        responses: list[Any],
        n_neurons: int,
        dt_ms: float = 5.0,
        stim_meta: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__("somewhere", dt_ms)
        self.stims = stims
        self.responses = responses
        self.stim_meta = [{"name": f"s{i}"} for i in range(len(stims))] if stim_meta is None else stim_meta
        self.nrn_meta = [{"cell_id": f"c{i}"} for i in range(n_neurons)]
        self.N_neurons = n_neurons
        self.validate()


@pytest.fixture
def make() -> Callable[..., AudioNeuralDataset]:
    return poisson_dataset


@pytest.fixture
def loader() -> type[ListLoader]:
    return ListLoader


@pytest.fixture
def ds() -> AudioNeuralDataset:
    return poisson_dataset()


@pytest.fixture
def sparse() -> NeuralDataset:
    """3 clips x 3 neurons: ragged repeats, two missing pairs, single missing bins."""
    nan = np.nan
    return NeuralDataset.from_arrays(
        [torch.rand(2, 4), torch.rand(2, 3), torch.rand(2, 5)],
        [
            [[[1, 0, 2, 0], [0, 1, 0, 0]], [3, 0, 0, nan], None],
            [None, [[1, 1, 1]], [[0, 2, 0], [1, 0, 1], [0, 0, 1]]],
            [[0.5, nan, 1.5, 2.5, 0.0], np.zeros((2, 5)), np.ones((4, 5))],
        ],
        dt_ms=5.0,
        nrn_meta=[
            {"cell_id": "a", "area": "A1"},
            {"cell_id": "b", "area": "PEG"},
            {"cell_id": "c", "area": "A1"},
        ],
        stim_meta=[{"name": "x", "type": "speech"}, {"name": "y"}, {"name": "z", "type": "noise"}],
    )
