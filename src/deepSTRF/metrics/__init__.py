"""Losses to train with, scores to report, and what the recording itself allows.

Every function takes predictions (B, N, 1, T) and responses (B, N, R, T), works on all neurons and clips at
once, skips what was not recorded (NaN), and returns one number per neuron or their mean. Losses are
differentiable. The classes in `deepSTRF.metrics.streaming` give the same values from one pass over data that
does not fit in memory. ``docs/metrics.md`` holds the formulas, and says when to use which.
"""

from __future__ import annotations

from ._masking import psth
from .ceilings import Ceiling, ceiling, compute_CCmax, compute_TTRC
from .correlation import corrcoef, fve
from .explainable import fev, feve, oracle
from .inclusion import Inclusion, select_neurons
from .likelihoods import gamma_loss, negative_binomial_loss
from .losses import mse_loss, poisson_loss
from .normalized import normalized_corrcoef, single_repeat_neurons
from .power import noise_power, signal_power, snr
from .quality import NeuronQuality, neuron_quality
from .spectral import CoherenceSpectrum, coherence, coherence_spectrum
from .streaming import PairStatistics, RepeatStatistics, ScoreTracker

__all__ = [
    "Ceiling",
    "CoherenceSpectrum",
    "Inclusion",
    "NeuronQuality",
    "PairStatistics",
    "RepeatStatistics",
    "ScoreTracker",
    "ceiling",
    "coherence",
    "coherence_spectrum",
    "compute_CCmax",
    "compute_TTRC",
    "corrcoef",
    "fev",
    "feve",
    "fve",
    "gamma_loss",
    "mse_loss",
    "negative_binomial_loss",
    "neuron_quality",
    "noise_power",
    "normalized_corrcoef",
    "oracle",
    "poisson_loss",
    "psth",
    "select_neurons",
    "signal_power",
    "single_repeat_neurons",
    "snr",
]
