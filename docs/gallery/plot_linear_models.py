"""
One receptive field by five linear methods
==========================================

The same neuron of the simulated recording by ridge, Tikhonov, boosting and the evidence, beside the field
that made its responses. Ridge keeps noise in every weight, Tikhonov smooths it, boosting leaves most weights
at zero, and the evidence finds smoothness and place by itself.
"""

from matplotlib.figure import Figure

from deepSTRF.baselines import fit_boosting, fit_evidence, fit_ridge, fit_tikhonov
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.plots import plot_strf_grid

ds = SyntheticDataset(n_neurons=4, n_clips=10, n_repeats=6)
train, validation = ds.select(clips=range(7)), ds.select(clips=range(7, 10))
fits = {
    "ridge": fit_ridge(train, validation, n_lags=9),
    "Tikhonov": fit_tikhonov(train, validation, n_lags=9),
    "boosting": fit_boosting(train, validation, n_lags=9),
    "evidence, smooth": fit_evidence(train, n_lags=9),
    "evidence, smooth and local": fit_evidence(train, n_lags=9, prior="smooth+local"),
}
fields = [fit.model.STRFs(folded=True)[1] for fit in fits.values()]

figure = Figure(figsize=(9, 5), layout="constrained")
plot_strf_grid(
    [ds.true_strfs[1], *fields],
    titles=["true", *fits],
    dt_ms=ds.dt,
    ncols=3,
    frequencies_hz=ds.frequencies_hz,
    figure=figure,
)
figure
