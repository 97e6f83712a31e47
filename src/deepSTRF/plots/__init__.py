"""Figures of recordings, predictions, receptive fields and scores.

Every function takes arrays (NumPy, lists, or torch tensors on any device), draws, and returns
``(figure, axes)``; none runs a model, opens a window or calls ``show``. Figures made here are plain
matplotlib figures, unknown to pyplot: display ``figure`` in a notebook cell, or
``figure.savefig("name.svg")``. To let pyplot manage one, pass it:
``plot_strf_grid(strfs, figure=plt.figure(layout="constrained"))``. Arguments of another shape or range than
documented raise a ValueError that names them.
Only numpy and matplotlib are needed; matplotlib is imported when the first figure is drawn.
"""

from deepSTRF.plots.dstrf import plot_dstrf_panel
from deepSTRF.plots.filter_statistics import (
    plot_eigen_spectrum,
    plot_filter_patterns,
    plot_nonlinearity_scatter,
    plot_nonlinearity_table,
    plot_tuning_surface,
)
from deepSTRF.plots.front_ends import plot_filterbank, plot_wav2spec_comparison
from deepSTRF.plots.inference import plot_model_comparison, plot_null_distribution
from deepSTRF.plots.movies import save_dstrf_movie
from deepSTRF.plots.probes import (
    plot_probe_courses,
    plot_probe_curves,
    plot_response_areas,
    plot_tuning_curves,
)
from deepSTRF.plots.responses import (
    plot_alignment,
    plot_neuron_panel,
    plot_psth_vs_pred,
    plot_rasters,
    plot_stim_with_response,
)
from deepSTRF.plots.scores import (
    plot_cross_validation,
    plot_learning_curve,
    plot_noise_ceiling,
    plot_score_histogram,
    plot_score_scatter,
)
from deepSTRF.plots.strf import (
    plot_feature_fields,
    plot_modulation_transfer,
    plot_strf_confidence,
    plot_strf_grid,
    plot_waveform_field,
)

__all__ = [
    "plot_alignment",
    "plot_cross_validation",
    "plot_dstrf_panel",
    "plot_eigen_spectrum",
    "plot_feature_fields",
    "plot_filter_patterns",
    "plot_filterbank",
    "plot_learning_curve",
    "plot_model_comparison",
    "plot_modulation_transfer",
    "plot_neuron_panel",
    "plot_noise_ceiling",
    "plot_nonlinearity_scatter",
    "plot_nonlinearity_table",
    "plot_null_distribution",
    "plot_probe_courses",
    "plot_probe_curves",
    "plot_psth_vs_pred",
    "plot_rasters",
    "plot_response_areas",
    "plot_score_histogram",
    "plot_score_scatter",
    "plot_stim_with_response",
    "plot_strf_confidence",
    "plot_strf_grid",
    "plot_tuning_curves",
    "plot_tuning_surface",
    "plot_wav2spec_comparison",
    "plot_waveform_field",
    "save_dstrf_movie",
]
