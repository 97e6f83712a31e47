"""Dynamic STRFs: the linear filter that a model is at each moment, and how that filter changes.

`dstrf` computes the filters of any model; sinks take them where they shall go.
`deepSTRF.interpret.filter_statistics` says how they vary.
"""

from deepSTRF.datasets.folds import Fold, FoldManifest
from deepSTRF.interpret.dstrf.curvature import Curvature, curvature
from deepSTRF.interpret.dstrf.estimate import dstrf
from deepSTRF.interpret.dstrf.jackknife import JackknifedSTRF, dstrf_folds, jackknife_error, jackknifed_dstrf
from deepSTRF.interpret.dstrf.layer_target import LayerTargetError, stimulus_frames
from deepSTRF.interpret.dstrf.receptive_field import (
    ReceptiveFieldError,
    measure_receptive_field,
    measure_window,
)
from deepSTRF.interpret.dstrf.result import DynamicSTRF
from deepSTRF.interpret.dstrf.sinks import (
    ArraySink,
    CallbackSink,
    FileSink,
    Moments,
    MomentSink,
    Sink,
    SinkSet,
)
from deepSTRF.interpret.dstrf.switching import Switches, switches

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
    "LayerTargetError",
    "MomentSink",
    "Moments",
    "PatternScores",
    "ReceptiveFieldError",
    "Sink",
    "SinkSet",
    "Spectrum",
    "Switches",
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
