"""Dynamic STRFs: the linear filter that a model is at each moment, and how that filter changes.

`dstrf` computes the filters of any model; sinks take them where they shall go; the statistics say how
they vary: complexity, gain change, temporal hold, shape change.
"""

from deepSTRF.datasets.folds import Fold, FoldManifest
from deepSTRF.interpret.dynamic.estimate import dstrf
from deepSTRF.interpret.dynamic.events import EventLocked, event_locked
from deepSTRF.interpret.dynamic.folded import dstrf_folds
from deepSTRF.interpret.dynamic.hold import TemporalHold, hold_statistics, temporal_hold
from deepSTRF.interpret.dynamic.jackknife import JackknifedSTRF, jackknife_error, jackknifed_dstrf
from deepSTRF.interpret.dynamic.nonlinearity import nonlinearities
from deepSTRF.interpret.dynamic.patterns import (
    FilterPatterns,
    PatternScores,
    filter_patterns,
    pattern_scores,
)
from deepSTRF.interpret.dynamic.reach import ReceptiveFieldError, measure_receptive_field, measure_window
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.second_order import Curvature, curvature
from deepSTRF.interpret.dynamic.shape import Alignment, align_filters, find_shifts, shape_change
from deepSTRF.interpret.dynamic.sinks import (
    ArraySink,
    CallbackSink,
    FileSink,
    Moments,
    MomentSink,
    Sink,
    SinkSet,
)
from deepSTRF.interpret.dynamic.subspace import (
    ActiveSubspace,
    TuningSurface,
    active_subspace,
    tuning_surface,
)
from deepSTRF.interpret.dynamic.switching import Switches, switches
from deepSTRF.interpret.dynamic.taps import TapError, stimulus_frames
from deepSTRF.interpret.dynamic.variety import (
    Spectrum,
    complexity,
    gain_change,
    gain_variation,
    singular_spectrum,
)

__all__ = [
    "ActiveSubspace",
    "Alignment",
    "ArraySink",
    "CallbackSink",
    "Curvature",
    "DynamicSTRF",
    "EventLocked",
    "FileSink",
    "FilterPatterns",
    "Fold",
    "FoldManifest",
    "JackknifedSTRF",
    "MomentSink",
    "Moments",
    "PatternScores",
    "ReceptiveFieldError",
    "Sink",
    "SinkSet",
    "Spectrum",
    "Switches",
    "TapError",
    "TemporalHold",
    "TuningSurface",
    "active_subspace",
    "align_filters",
    "complexity",
    "curvature",
    "dstrf",
    "dstrf_folds",
    "event_locked",
    "filter_patterns",
    "find_shifts",
    "gain_change",
    "gain_variation",
    "hold_statistics",
    "jackknife_error",
    "jackknifed_dstrf",
    "measure_receptive_field",
    "measure_window",
    "nonlinearities",
    "pattern_scores",
    "shape_change",
    "singular_spectrum",
    "stimulus_frames",
    "switches",
    "temporal_hold",
    "tuning_surface",
]
