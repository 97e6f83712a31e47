"""Losses to train with, scores to report, and what the recording itself allows.

Every function takes predictions (B, N, 1, T) and responses (B, N, R, T), works on all neurons and clips at
once, skips what was not recorded (NaN), and returns one number per neuron or their mean. Losses are
differentiable. The classes in `deepSTRF.metrics.streaming` give the same values from one pass over data that
does not fit in memory. A `Metric` is a column of score tables. ``docs/metrics.md`` holds the formulas and
the purpose of each.
"""

from __future__ import annotations

from deepSTRF.metrics._statistics import psth
from deepSTRF.metrics.ceilings import ceiling, compute_CCmax, compute_TTRC
from deepSTRF.metrics.coherence import coherence, coherence_spectrum
from deepSTRF.metrics.correlation import corrcoef, fve, normalized_corrcoef, single_repeat_neurons
from deepSTRF.metrics.losses import gamma_loss, mse_loss, negative_binomial_loss, poisson_loss
from deepSTRF.metrics.power import fev, feve, noise_power, oracle, signal_power, snr
from deepSTRF.metrics.quality import neuron_quality, select_neurons
from deepSTRF.metrics.score_statistics import ScoreStatistics
from deepSTRF.metrics.scores import Metric
from deepSTRF.metrics.streaming import PairStatistics, RepeatStatistics, ScoreTracker

__all__ = [
    "Metric",
    "PairStatistics",
    "RepeatStatistics",
    "ScoreStatistics",
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
