"""
Sound, raster, PSTH and prediction
==================================

A clip that the fit has not heard: its spectrogram, the spikes of every repeat, their mean, and the rate
that a ridge STRF predicts.
"""

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.plots import plot_stim_with_response

ds = SyntheticDataset(n_neurons=4, n_clips=25, n_repeats=20)
split = parse_split(ds, "16/4/5")
train, validation, test = split.apply(ds)
fit = fit_ridge(train, validation, n_lags=9)

clip, neuron = 4, 1
rates = fit.model.predict(test)[clip]  # (N, T)
figure, axes = plot_stim_with_response(
    test.stims[clip],
    test.response_block(clip)[neuron],
    rates[neuron],
    dt_ms=ds.dt,
    frequencies_hz=ds.frequencies_hz,
    response_label="spikes per bin",
)
figure
