"""What a model has learned, as numbers: its front-end's channels, its receptive fields, what it is tuned to.

`front_end_response` measures what each channel of a front-end hears, `compare_wav2spec` holds its output
against a reference spectrogram, `waveform_field` finds which samples drove a response, `dstrf` says what
linear filter a model is at each moment (`deepSTRF.interpret.dstrf` holds the rest of it). `strf_tuning`
summarises STRFs in a table, `strf_confidence` puts bands on them, `exciting_spectrogram` and `exciting_sound`
search what a neuron wants most, `write_wav` and its kin make it audible; `deepSTRF.interpret.probes` plays a
model the sounds of a hearing laboratory. Figures are in `deepSTRF.plots`; the gradients themselves are
methods of the models (``STRF_gradmap``, ``waveform_gradmap``).
"""

from deepSTRF.interpret import filter_statistics, probes
from deepSTRF.interpret.attribution import Occlusion, SmoothedSTRF, contributions, occlusion, smooth_dstrf
from deepSTRF.interpret.dstrf import (
    DynamicSTRF,
    dstrf,
    measure_receptive_field,
    measure_window,
    stimulus_frames,
)
from deepSTRF.interpret.exciting import ExcitingStimulus, exciting_sound, exciting_spectrogram
from deepSTRF.interpret.front_ends import (
    FrontEndResponse,
    Wav2specComparison,
    compare_wav2spec,
    compare_wav2spec_to_groundtruth,
    front_end_response,
    initial_front_end,
)
from deepSTRF.interpret.sonify import sonify_spectrogram, sonify_strf, write_field_wav, write_wav
from deepSTRF.interpret.strf.confidence import StrfConfidence, strf_confidence
from deepSTRF.interpret.strf.gabor import GaborFit, fit_gabor
from deepSTRF.interpret.strf.modulation import ModulationTransfer, modulation_transfer
from deepSTRF.interpret.strf.table import NeuronTable
from deepSTRF.interpret.strf.tuning import separability_index, strf_tuning
from deepSTRF.interpret.strf.waveform_field import (
    WaveformField,
    rf_duration_ms,
    waveform_field,
    waveform_fields,
)

__all__ = [
    "DynamicSTRF",
    "ExcitingStimulus",
    "FrontEndResponse",
    "GaborFit",
    "ModulationTransfer",
    "NeuronTable",
    "Occlusion",
    "SmoothedSTRF",
    "StrfConfidence",
    "Wav2specComparison",
    "WaveformField",
    "compare_wav2spec",
    "compare_wav2spec_to_groundtruth",
    "contributions",
    "dstrf",
    "exciting_sound",
    "exciting_spectrogram",
    "filter_statistics",
    "fit_gabor",
    "front_end_response",
    "initial_front_end",
    "measure_receptive_field",
    "measure_window",
    "modulation_transfer",
    "occlusion",
    "probes",
    "rf_duration_ms",
    "separability_index",
    "smooth_dstrf",
    "sonify_spectrogram",
    "sonify_strf",
    "stimulus_frames",
    "strf_confidence",
    "strf_tuning",
    "waveform_field",
    "waveform_fields",
    "write_field_wav",
    "write_wav",
]
