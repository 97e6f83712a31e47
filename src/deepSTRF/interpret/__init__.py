"""What a model has learned, as numbers: its front-end's channels, its receptive field in the sound itself.

`front_end_response` measures what each channel of a front-end hears, `compare_wav2spec` holds its output
against a reference spectrogram, `waveform_field` finds which samples drove a response, `dstrf` says what
linear filter a model is at each moment (`deepSTRF.interpret.dynamic` holds the rest of it). Figures are in
`deepSTRF.plots`; the gradients themselves are methods of the models (``STRF_gradmap``, ``waveform_gradmap``).
"""

from deepSTRF.interpret.compare_wav2spec import (
    Wav2specComparison,
    compare_wav2spec,
    compare_wav2spec_to_groundtruth,
)
from deepSTRF.interpret.confidence import StrfConfidence, strf_confidence
from deepSTRF.interpret.duration import rf_duration_ms
from deepSTRF.interpret.dynamic import DynamicSTRF, dstrf, measure_receptive_field
from deepSTRF.interpret.frontend import FrontEndResponse, front_end_response, initial_front_end
from deepSTRF.interpret.sonify import sonify_spectrogram, sonify_strf, write_field_wav, write_wav
from deepSTRF.interpret.waveform_field import WaveformField, waveform_field, waveform_fields

__all__ = [
    "DynamicSTRF",
    "FrontEndResponse",
    "StrfConfidence",
    "Wav2specComparison",
    "WaveformField",
    "compare_wav2spec",
    "compare_wav2spec_to_groundtruth",
    "dstrf",
    "front_end_response",
    "initial_front_end",
    "measure_receptive_field",
    "rf_duration_ms",
    "sonify_spectrogram",
    "sonify_strf",
    "strf_confidence",
    "waveform_field",
    "waveform_fields",
    "write_field_wav",
    "write_wav",
]
