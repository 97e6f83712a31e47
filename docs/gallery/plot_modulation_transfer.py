"""
Modulation transfer functions
=============================

The Fourier transform of a receptive field: which rates of modulation, and which spacings of ripples over
frequency, drive the neuron. Positive rates move up in frequency.
"""

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import modulation_transfer
from deepSTRF.plots import plot_modulation_transfer

ds = SyntheticDataset(n_neurons=4, n_clips=24, n_repeats=20)
fit = fit_ridge(ds.select(clips=range(20)), ds.select(clips=range(20, 24)), n_lags=12)
transfer = modulation_transfer(fit.model.STRFs(), ds.frequencies_hz, ds.dt)

figure, axes = plot_modulation_transfer(
    transfer.power,
    transfer.rates_hz,
    transfer.scales_cyc_oct,
    titles=[f"{neuron['best_frequency_hz']:.0f} Hz" for neuron in ds.nrn_meta],
    max_rate_hz=60,
)
figure
