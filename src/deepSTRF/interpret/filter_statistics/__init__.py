"""Statistics of dynamic STRFs: complexity, gain change, temporal hold, shape change, patterns, subspaces.

Every statistic takes filters as a tensor or array (T, N, L, F), a ``.npy`` file or a result of `dstrf`.
Filters of another shape raise a ValueError or TypeError.
"""

from deepSTRF.interpret.filter_statistics.complexity import (
    complexity,
    gain_change,
    gain_variation,
    singular_spectrum,
)
from deepSTRF.interpret.filter_statistics.events import event_locked
from deepSTRF.interpret.filter_statistics.nonlinearity import nonlinearities
from deepSTRF.interpret.filter_statistics.patterns import filter_patterns, pattern_scores
from deepSTRF.interpret.filter_statistics.shape_change import align_filters, find_shifts, shape_change
from deepSTRF.interpret.filter_statistics.subspace import active_subspace, tuning_surface
from deepSTRF.interpret.filter_statistics.temporal_hold import hold_statistics, temporal_hold

__all__ = [
    "active_subspace",
    "align_filters",
    "complexity",
    "event_locked",
    "filter_patterns",
    "find_shifts",
    "gain_change",
    "gain_variation",
    "hold_statistics",
    "nonlinearities",
    "pattern_scores",
    "shape_change",
    "singular_spectrum",
    "temporal_hold",
    "tuning_surface",
]
