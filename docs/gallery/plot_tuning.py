"""
Tuning of a population
======================

Best frequency, latency and bandwidth of every neuron, read from its receptive field; crosses are read from
the receptive fields with which the neurons were simulated.
"""

from matplotlib.figure import Figure

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import strf_tuning

ds = SyntheticDataset(n_neurons=16, n_clips=24, n_repeats=20)
fit = fit_ridge(ds.select(clips=range(20)), ds.select(clips=range(20, 24)), n_lags=9)
found = list(strf_tuning(fit.model.STRFs(), ds.frequencies_hz, ds.dt).rows())
true = list(strf_tuning(ds.true_strfs, ds.frequencies_hz, ds.dt).rows())

figure = Figure(figsize=(8, 3.6), layout="constrained")
for ax, name, label in zip(
    figure.subplots(1, 2),
    ["latency_ms", "bandwidth_octaves"],
    ["latency (ms)", "bandwidth (octaves)"],
    strict=True,
):
    for rows, style in ((true, {"marker": "x", "color": "#8A8A8A"}), (found, {"color": "#0072B2"})):
        ax.scatter([row["best_frequency_hz"] / 1000 for row in rows], [row[name] for row in rows], **style)
    ax.set(xscale="log", xlabel="best frequency (kHz)", ylabel=label, ylim=(0, None))
    ax.minorticks_off()
    ax.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    ax.spines[["top", "right"]].set_visible(False)
figure.legend(["simulated", "found"], loc="outside upper left", ncols=2, frameon=False)
figure
