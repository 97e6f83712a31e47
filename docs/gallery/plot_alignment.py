"""
Do sound and responses belong together?
=======================================

The cross-correlogram of sounds and responses: a peak some milliseconds after 0 is a recording in order. A
peak before 0, or none, is a clock that was read wrongly, and worth a look before any model is fitted.
"""

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.plots import plot_alignment

ds = SyntheticDataset(n_neurons=8, n_clips=12, n_repeats=10)
report = ds.check_alignment()
print(report.message)

figure, ax = plot_alignment(report.lags_ms, report.strengths, report.lag_ms)
ax.set_xlim(-200, 300)
figure
