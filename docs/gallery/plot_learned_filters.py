"""
The filters of LEAF, before and after learning
==============================================

A waveform model learns its filters together with the receptive fields behind them. Grey is the start,
colour the end of a short fit: in a real one, on more sounds, they move further.
"""

import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import front_end_response, initial_front_end
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.plots import plot_filterbank
from deepSTRF.training import Fitter, make_loaders

ds = SyntheticDataset(n_neurons=4, n_clips=6, n_repeats=10, clip_seconds=1.0, return_waveform=True)
leaf = make_wav2spec("leaf", audio_fs=ds.audio_fs, dt_ms=ds.dt)
model = Linear(leaf.out_channels, 9, ds.N_neurons, wav2spec=leaf)
loaders = make_loaders(ds.select(clips=range(5)), ds.select(clips=[5]), seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
Fitter(model, *loaders, optimizer=optimizer, max_epochs=8, progress=False).fit()

start, end = front_end_response(initial_front_end(leaf)), front_end_response(leaf)
figure, axes = plot_filterbank(
    end.frequencies_hz,
    end.gain_db,
    centre_hz=end.centre_hz,
    latency_ms=end.click_latency_ms,
    initial_gain_db=start.gain_db,
    initial_centre_hz=start.centre_hz,
    initial_latency_ms=start.click_latency_ms,
)
figure
