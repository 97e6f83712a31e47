"""
Learning curves of three seeds
==============================

Loss and score, epoch by epoch. Thin lines are seeds, thick ones their mean: solid where the model learns,
and where it is watched.
"""

import numpy as np

from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import LinearNonlinear
from deepSTRF.plots import plot_learning_curve
from deepSTRF.training import fit_multi_seed, make_loaders

ds = SyntheticDataset(n_neurons=4, n_clips=12, n_repeats=10, clip_seconds=1.0)
views = parse_split(ds, "8/2/2").apply(ds)
result = fit_multi_seed(
    lambda seed: LinearNonlinear(ds.F, 9, ds.N_neurons),
    lambda seed: make_loaders(*views, seed=seed),
    n_seeds=3,
    fitter_kwargs={"max_epochs": 25, "patience": 25, "progress": False},
)

drawn = ("train_loss", "val_loss", "val_cc_norm")
curves = [
    {
        name: np.array([float(np.nanmean(epoch[name])) for epoch in history])
        for name in ("train_loss", "val_loss", "val_cc_norm")
    }
    for history in result["per_seed_histories"]
]
figure, axes = plot_learning_curve(curves)
figure
