"""What a first user gets wrong, and what the error says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import neural_collate
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, score_model, score_predictions


@pytest.fixture(scope="module")
def ds():
    return SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=4, clip_seconds=0.5)


@pytest.mark.parametrize("batch_size", [1, 2, None])
@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_a_forgotten_collate_function(ds, batch_size, subset, fast):
    loader = DataLoader(Subset(ds, [0, 1]) if subset else ds, batch_size=batch_size)
    fitter = Fitter(Linear(ds.F, 5, 3), loader, loader, max_epochs=1, progress=False, fast=fast)
    with pytest.raises(TypeError, match="collate_fn=neural_collate"):
        fitter.fit()


def test_a_collate_function_that_makes_lists(ds):
    def lists(items):
        return {key: [item[key] for item in items] for key in items[0]}

    loader = DataLoader(ds, collate_fn=lists)
    with pytest.raises(TypeError, match="collate_fn=neural_collate"):
        Fitter(Linear(ds.F, 5, 3), loader, loader, max_epochs=1, progress=False).fit()
    good = DataLoader(ds, collate_fn=neural_collate)
    assert len(Fitter(Linear(ds.F, 5, 3), good, good, max_epochs=1, progress=False).fit()) == 1


@pytest.mark.parametrize("kind", [lambda s: s, lambda s: s.numpy(), lambda s: s[None]])
def test_predict_of_a_sound(ds, kind):
    with pytest.raises(TypeError, match=r"predict takes a dataset, got .*call model\("):
        Linear(ds.F, 5, 3).predict(kind(ds.stims[0]))


def test_scores_of_predictions_from_elsewhere(ds):
    model = Linear(ds.F, 5, 3).eval()
    rates = model.predict(ds)
    ours, theirs = (
        score_model(model, ds, n_bootstrap=0),
        score_predictions(rates.__getitem__, ds, n_bootstrap=0),
    )
    for name in ours.columns:
        np.testing.assert_array_equal(ours[name], theirs[name])
    psths = [ds.response_block(clip).mean(dim=1) for clip in range(len(ds))]
    table = score_predictions(lambda clip: psths[clip], ds, n_bootstrap=0)
    expected = [np.corrcoef(row, row)[0, 1] for row in torch.cat(psths, dim=1).numpy()]
    np.testing.assert_allclose(table["cc"], expected, atol=1e-9)
