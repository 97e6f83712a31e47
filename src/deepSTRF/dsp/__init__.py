"""Pure signal-processing functions: no modules, no state.

Frequency scales, windows, framing, filterbanks, resampling and the NS1 cochleagram: what front-ends,
datasets and metrics share.
"""

from deepSTRF.dsp.adaptation import (
    TAU_DOMAIN_HZ,
    a_to_tau,
    freq_to_tau,
    leaky_mean,
    leaky_mean_state,
    tau_to_a,
)
from deepSTRF.dsp.bounded import bounded_shift, mel_distance, shift_in_mel
from deepSTRF.dsp.cochleagram import rahman_cochleagram, rahman_frequencies
from deepSTRF.dsp.cube_root import smooth_cube_root
from deepSTRF.dsp.filterbank import DETECTORS, detect, pooled_filterbank, prepare_bank
from deepSTRF.dsp.framing import causal_frames, samples_per_bin
from deepSTRF.dsp.gabor import gabor_taps, gaussian_mass
from deepSTRF.dsp.gammatone import (
    gammatone_bandwidth,
    gammatone_length,
    gammatone_resonators,
    gammatone_taps,
    recursive_gammatone,
)
from deepSTRF.dsp.pcen import PCEN_STARTS, pcen, pcen_initial_state
from deepSTRF.dsp.plan import FilterbankPlan, FilterGroup, largest_divisor, plan_filterbank
from deepSTRF.dsp.recursion import exponential_moving_average, first_order_recursion
from deepSTRF.dsp.resample import rate_ratio, resample_exact
from deepSTRF.dsp.resonators import ResonatorMatrices, filter_resonators, resonator_matrices
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
from deepSTRF.dsp.scan import linear_scan
from deepSTRF.dsp.sinc import sinc_bandpass
from deepSTRF.dsp.slaney import slaney_centers, slaney_impulse_responses, slaney_length, slaney_resonators
from deepSTRF.dsp.spacing import SCALES, FrequencyScale, frequency_scale
from deepSTRF.dsp.stagger import stagger_rows, zero_subnormal_taps
from deepSTRF.dsp.stream_filterbank import stream_bank, stream_filterbank
from deepSTRF.dsp.triangular import triangle_corners, triangular_filterbank
from deepSTRF.dsp.windows import WINDOWS, symmetric_window

__all__ = [
    "DETECTORS",
    "PCEN_STARTS",
    "SCALES",
    "TAU_DOMAIN_HZ",
    "WINDOWS",
    "ERB_bandwidth",
    "ERB_to_Hz",
    "FilterGroup",
    "FilterbankPlan",
    "FrequencyScale",
    "Greenwood",
    "Hz_to_ERB",
    "Hz_to_bark",
    "Hz_to_mel",
    "ResonatorMatrices",
    "a_to_tau",
    "bark_to_Hz",
    "bounded_shift",
    "causal_frames",
    "detect",
    "exponential_moving_average",
    "filter_resonators",
    "first_order_recursion",
    "freq_to_tau",
    "frequency_scale",
    "gabor_taps",
    "gammatone_bandwidth",
    "gammatone_length",
    "gammatone_resonators",
    "gammatone_taps",
    "gaussian_mass",
    "inverse_Greenwood",
    "largest_divisor",
    "leaky_mean",
    "leaky_mean_state",
    "linear_scan",
    "mel_distance",
    "mel_to_Hz",
    "pcen",
    "pcen_initial_state",
    "plan_filterbank",
    "pooled_filterbank",
    "prepare_bank",
    "rahman_cochleagram",
    "rahman_frequencies",
    "rate_ratio",
    "recursive_gammatone",
    "resample_exact",
    "resonator_matrices",
    "samples_per_bin",
    "shift_in_mel",
    "sinc_bandpass",
    "slaney_centers",
    "slaney_impulse_responses",
    "slaney_length",
    "slaney_resonators",
    "smooth_cube_root",
    "stagger_rows",
    "stream_bank",
    "stream_filterbank",
    "symmetric_window",
    "tau_to_a",
    "triangle_corners",
    "triangular_filterbank",
    "zero_subnormal_taps",
]
