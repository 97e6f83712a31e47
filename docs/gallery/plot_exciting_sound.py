"""
The stimulus that excites a neuron most
=======================================

Gradient ascent on a spectrogram of given energy. Of a linear neuron it is the receptive field itself; of
others it shows what they wait for. Beside each stimulus is the linear STRF of the same neuron.
"""

import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import exciting_spectrogram
from deepSTRF.models.audio import DeepEncoder
from deepSTRF.plots import plot_strf_grid
from deepSTRF.training import Fitter, make_loaders, set_random_seed

ds = SyntheticDataset(n_neurons=4, n_clips=16, n_repeats=20)
train, validation = ds.select(clips=range(14)), ds.select(clips=range(14, 16))
linear = fit_ridge(train, validation, n_lags=20).model
set_random_seed(0)
model = DeepEncoder(ds.F, n_hidden=16, out_neurons=ds.N_neurons)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
Fitter(
    model, *make_loaders(train, validation, seed=0), optimizer=optimizer, max_epochs=20, progress=False
).fit()

found = exciting_spectrogram(model, T=20, energy=2000.0)
figure, axes = plot_strf_grid(
    [*linear.STRFs(), *found.stimulus],
    titles=[f"{what} {index}" for what in ("STRF of neuron", "stimulus for neuron") for index in range(4)],
    dt_ms=ds.dt,
    frequencies_hz=ds.frequencies_hz,
)
figure
