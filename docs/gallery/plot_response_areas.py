"""
Tones played to a model
=======================

Frequency-response areas, as on a neuron in the laboratory: pure tones of many frequencies and levels, and
the rate that each evokes from the fitted model. The line is the threshold.
"""

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret.probes import Presentation, tone_responses
from deepSTRF.plots import plot_response_areas

ds = SyntheticDataset(n_neurons=4, n_clips=20, n_repeats=20)
model = fit_ridge(ds.select(clips=range(16)), ds.select(clips=range(16, 20)), n_lags=9).model
levels_db = [-80.0, -65.0, -50.0, -35.0, -20.0]
area = tone_responses(Presentation.for_dataset(model, ds), levels_db=levels_db, measure="peak")

figure, axes = plot_response_areas(
    area.response,
    area.frequencies_khz,
    area.levels_db,
    area.threshold_db,
    titles=[f"simulated at {neuron['best_frequency_hz'] / 1000:.1f} kHz" for neuron in ds.nrn_meta],
)
figure
