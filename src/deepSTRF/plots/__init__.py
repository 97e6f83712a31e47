"""Figures of recordings, predictions, receptive fields and scores.

Every function takes arrays (NumPy, lists, or torch tensors on any device), draws, and returns
``(figure, axes)``; none runs a model, opens a window or calls ``show``. Figures made here are plain
matplotlib figures, unknown to pyplot: display ``figure`` in a notebook cell, or
``figure.savefig("name.svg")``. To have pyplot manage one, hand it in:
``plot_strf_grid(strfs, figure=plt.figure(layout="constrained"))``.
Needs numpy and matplotlib only, and imports matplotlib when the first figure is drawn.
"""

from deepSTRF.plots.filterbank import plot_filterbank
from deepSTRF.plots.learning import plot_learning_curve
from deepSTRF.plots.responses import plot_neuron_panel, plot_psth_vs_pred, plot_stim_with_response
from deepSTRF.plots.scores import plot_noise_ceiling, plot_score_histogram, plot_score_scatter
from deepSTRF.plots.strf import plot_strf_grid
from deepSTRF.plots.wav2spec import plot_wav2spec_comparison
from deepSTRF.plots.waveform import plot_waveform_field

__all__ = [
    "plot_filterbank",
    "plot_learning_curve",
    "plot_neuron_panel",
    "plot_noise_ceiling",
    "plot_psth_vs_pred",
    "plot_score_histogram",
    "plot_score_scatter",
    "plot_stim_with_response",
    "plot_strf_grid",
    "plot_wav2spec_comparison",
    "plot_waveform_field",
]
