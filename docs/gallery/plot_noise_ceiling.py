"""
Scores against the noise ceiling
================================

Each neuron's correlation with the mean of its repeats, and the highest correlation that any model could
reach with as few of them. cc_norm is the one divided by the other: the distance to the line is what the
model misses.
"""

import numpy as np

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.plots import plot_noise_ceiling
from deepSTRF.training import score_model

ds = SyntheticDataset(n_neurons=24, n_clips=24, n_repeats=10)
train, validation, test = parse_split(ds, "16/4/4").apply(ds)
scores = score_model(fit_ridge(train, validation, n_lags=9).model, test).columns

figure, ax = plot_noise_ceiling(
    scores["cc"],
    scores["ccmax"],
    np.stack([scores["ccmax_low"], scores["ccmax_high"]], axis=1),
    title=f"mean cc {np.nanmean(scores['cc']):.2f}, mean cc_norm {np.nanmean(scores['cc_norm']):.2f}",
)
figure
