"""
How nonlinear is each neuron?
=============================

Two measures of how the dynamic STRF of a neuron changes along the sounds: of how many filters it is made,
and how many remain when shifts in time are taken out. A linear neuron has 1, where the bars start. Here
even the simulated linear one ("strf") has more: a network fitted to half a minute of sound has learned
noise, too.
"""

import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import dstrf
from deepSTRF.interpret.filter_statistics import nonlinearities
from deepSTRF.models.audio import DeepEncoder
from deepSTRF.plots import plot_nonlinearity_table
from deepSTRF.training import Fitter, make_loaders, set_random_seed

ds = SyntheticDataset(n_neurons=4, n_clips=16, n_repeats=20)
train, validation = ds.select(clips=range(14)), ds.select(clips=range(14, 16))
set_random_seed(0)
model = DeepEncoder(ds.F, n_hidden=16, out_neurons=ds.N_neurons)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
Fitter(
    model, *make_loaders(train, validation, seed=0), optimizer=optimizer, max_epochs=20, progress=False
).fit()

filters = [dstrf(model, sound, edge="drop") for sound in validation.stims]
measures = nonlinearities(filters, reduction="mean")
figure, axes = plot_nonlinearity_table(
    {name: measures[name] for name in ("complexity", "shape change")},
    [f"{neuron['cell_id']} ({neuron['kind']})" for neuron in ds.nrn_meta],
)
figure
