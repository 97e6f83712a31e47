"""
Receptive fields of a population
================================

The STRFs of eight neurons, each on its own colour scale: red excites, blue suppresses, the response stands
at 0 ms.
"""

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.plots import plot_strf_grid

ds = SyntheticDataset(n_neurons=8, n_clips=24, n_repeats=20)
fit = fit_ridge(ds.select(clips=range(20)), ds.select(clips=range(20, 24)), n_lags=9)

figure, axes = plot_strf_grid(
    fit.model.STRFs(),
    titles=[f"{neuron['cell_id']} ({neuron['kind']})" for neuron in ds.nrn_meta],
    dt_ms=ds.dt,
    frequencies_hz=ds.frequencies_hz,
    unit="sd",
)
figure
