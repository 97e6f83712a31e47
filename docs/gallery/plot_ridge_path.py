"""
The regularisation path of a ridge STRF
=======================================

The score of every neuron on the validation clips by the penalty, and what the penalty does to one receptive
field. Too little leaves the noise of the training clips in the STRF, too much flattens it.
"""

import numpy as np
from matplotlib.figure import Figure

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.plots import plot_probe_curves, plot_strf_grid

ds = SyntheticDataset(n_neurons=4, n_clips=10, n_repeats=6)
train, validation = ds.select(clips=range(7)), ds.select(clips=range(7, 10))
path = fit_ridge(train, validation, n_lags=12)
shown = path.grid[[0, 6, 11]].tolist()
fields = [fit_ridge(train, n_lags=12, lambdas=penalty).model.STRFs()[1] for penalty in shown]

figure = Figure(figsize=(8, 5.5), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1.3, 1))
plot_probe_curves(
    np.log10(path.grid),
    path.scores["cc_norm"].T,
    "log10 of the penalty",
    "cc_norm on validation clips",
    [f"neuron {index}" for index in range(4)],
    ax=above.subplots(),
)
plot_strf_grid(
    fields,
    titles=[f"penalty {penalty:.0f}" for penalty in shown],
    dt_ms=ds.dt,
    ncols=3,
    frequencies_hz=ds.frequencies_hz,
    figure=below,
)
figure
