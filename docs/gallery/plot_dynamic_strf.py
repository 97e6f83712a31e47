"""
A dynamic STRF along a sound
============================

A nonlinear model is a linear filter at each moment, and another one at the next. The panel shows the sound,
the response, how large the filter is, and the filter at six moments of strong response.
"""

import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import dstrf
from deepSTRF.models.audio import DeepEncoder
from deepSTRF.plots import plot_dstrf_panel
from deepSTRF.training import Fitter, make_loaders, set_random_seed

ds = SyntheticDataset(n_neurons=4, n_clips=16, n_repeats=20)
train, validation = ds.select(clips=range(14)), ds.select(clips=range(14, 16))
set_random_seed(0)
model = DeepEncoder(ds.F, n_hidden=16, out_neurons=ds.N_neurons)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
Fitter(
    model, *make_loaders(train, validation, seed=0), optimizer=optimizer, max_epochs=20, progress=False
).fit()

neuron, sound = 2, validation.stims[0]
filters = dstrf(model, sound, neurons=[neuron])
figure, axes = plot_dstrf_panel(
    sound,
    filters.weights[:, 0, -13:],  # (T, L, F): the last 65 ms
    model.predict(validation, clips=[0])[0][neuron],
    validation.response_block(0)[neuron],
    dt_ms=ds.dt,
    frequencies_hz=ds.frequencies_hz,
)
figure
