"""
Models compared, with seeds
===========================

Three models on the same clips: a bar is the mean over neurons and seeds, a dot is one seed. On so little
data a model with more freedom need not win.
"""

import numpy as np
from matplotlib.figure import Figure

from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import DeepEncoder, Linear, LinearNonlinear
from deepSTRF.training import fit_multi_seed, make_loaders

ds = SyntheticDataset(n_neurons=4, n_clips=24, n_repeats=10, clip_seconds=1.0)
views = parse_split(ds, "16/4/4").apply(ds)
factories = {
    "Linear": lambda seed: Linear(ds.F, 9, ds.N_neurons),
    "LinearNonlinear": lambda seed: LinearNonlinear(ds.F, 9, ds.N_neurons),
    "DeepEncoder": lambda seed: DeepEncoder(ds.F, n_hidden=16, out_neurons=ds.N_neurons),
}

scores = {}
for name, factory in factories.items():
    result = fit_multi_seed(
        factory,
        lambda seed: make_loaders(*views, seed=seed),
        n_seeds=3,
        fitter_kwargs={"max_epochs": 20, "progress": False},
    )
    scores[name] = np.nanmean(result["per_seed_test_cc_norm"], axis=1)  # one per seed

figure = Figure(figsize=(6, 3.6), layout="constrained")
ax = figure.subplots()
ax.bar(list(scores), [value.mean() for value in scores.values()], color="#56B4E9", width=0.6)
for place, value in enumerate(scores.values()):
    ax.plot(np.full(len(value), place), value, "o", color="#222222", ms=4)
ax.set(ylabel="cc_norm on test clips", ylim=(0, 1))
ax.spines[["top", "right"]].set_visible(False)
figure
