"""Signal processing as pure functions: frequency scales, filters, resampling, and the NS1 cochleagram.

The building blocks of front-ends and datasets that are useful on their own. The others are imported from
their files: framing, windows and filter shapes (`filters`), the grouped filterbank (`filterbank`), adaptation
and linear recursions (`recursion`).
"""

from deepSTRF.dsp.cochleagram import rahman_cochleagram, rahman_frequencies
from deepSTRF.dsp.filters import samples_per_bin, sinc_bandpass
from deepSTRF.dsp.gammatone import gammatone_taps, recursive_gammatone
from deepSTRF.dsp.pcen import pcen
from deepSTRF.dsp.recursion import linear_scan
from deepSTRF.dsp.resample import resample_exact
from deepSTRF.dsp.scales import (
    ERB_bandwidth,
    ERB_to_Hz,
    Greenwood,
    Hz_to_bark,
    Hz_to_ERB,
    Hz_to_mel,
    bark_to_Hz,
    frequency_scale,
    inverse_Greenwood,
    mel_to_Hz,
)
from deepSTRF.dsp.smoothing import hanning_smooth

__all__ = [
    "ERB_bandwidth",
    "ERB_to_Hz",
    "Greenwood",
    "Hz_to_ERB",
    "Hz_to_bark",
    "Hz_to_mel",
    "bark_to_Hz",
    "frequency_scale",
    "gammatone_taps",
    "hanning_smooth",
    "inverse_Greenwood",
    "linear_scan",
    "mel_to_Hz",
    "pcen",
    "rahman_cochleagram",
    "rahman_frequencies",
    "recursive_gammatone",
    "resample_exact",
    "samples_per_bin",
    "sinc_bandpass",
]
