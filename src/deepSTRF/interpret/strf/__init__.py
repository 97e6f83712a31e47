"""STRFs as numbers: tuning, Gabor fits, modulation transfer, confidence bands, fields in the waveform."""

from deepSTRF.interpret.strf.confidence import strf_confidence
from deepSTRF.interpret.strf.gabor import fit_gabor
from deepSTRF.interpret.strf.modulation import modulation_transfer
from deepSTRF.interpret.strf.table import NeuronTable
from deepSTRF.interpret.strf.tuning import separability_index, strf_tuning
from deepSTRF.interpret.strf.waveform_field import (
    WaveformField,
    rf_duration_ms,
    waveform_fields,
)

__all__ = [
    "NeuronTable",
    "WaveformField",
    "fit_gabor",
    "modulation_transfer",
    "rf_duration_ms",
    "separability_index",
    "strf_confidence",
    "strf_tuning",
    "waveform_fields",
]
