"""Pure signal-processing functions: no modules, no state.

Frequency scales, windows, framing, filterbanks, resampling and the NS1 cochleagram: what front-ends,
datasets and metrics share.
"""

from deepSTRF.dsp.cochleagram import rahman_cochleagram, rahman_frequencies
from deepSTRF.dsp.framing import causal_frames, samples_per_bin
from deepSTRF.dsp.resample import rate_ratio, resample_exact
from deepSTRF.dsp.scales import (
    ERB_bandwidth,
    ERB_to_Hz,
    Greenwood,
    Hz_to_bark,
    Hz_to_ERB,
    Hz_to_mel,
    bark_to_Hz,
    inverse_Greenwood,
    mel_to_Hz,
)
from deepSTRF.dsp.spacing import SCALES, FrequencyScale, frequency_scale
from deepSTRF.dsp.triangular import triangle_corners, triangular_filterbank
from deepSTRF.dsp.windows import WINDOWS, symmetric_window

__all__ = [
    "SCALES",
    "WINDOWS",
    "ERB_bandwidth",
    "ERB_to_Hz",
    "FrequencyScale",
    "Greenwood",
    "Hz_to_ERB",
    "Hz_to_bark",
    "Hz_to_mel",
    "bark_to_Hz",
    "causal_frames",
    "frequency_scale",
    "inverse_Greenwood",
    "mel_to_Hz",
    "rahman_cochleagram",
    "rahman_frequencies",
    "rate_ratio",
    "resample_exact",
    "samples_per_bin",
    "symmetric_window",
    "triangle_corners",
    "triangular_filterbank",
]
