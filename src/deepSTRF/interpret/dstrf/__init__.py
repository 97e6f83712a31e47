"""Dynamic STRFs: the linear filter that a model is at each time of a clip.

`dstrf` computes the filters of any model, sinks store them; `deepSTRF.interpret.filter_statistics` measures
how they vary.
"""

from deepSTRF.interpret.dstrf.curvature import curvature
from deepSTRF.interpret.dstrf.estimate import dstrf, stimulus_frames
from deepSTRF.interpret.dstrf.jackknife import dstrf_folds, jackknifed_dstrf
from deepSTRF.interpret.dstrf.receptive_field import (
    ReceptiveFieldError,
    measure_receptive_field,
    measure_window,
)
from deepSTRF.interpret.dstrf.result import DynamicSTRF
from deepSTRF.interpret.dstrf.sinks import ArraySink, CallbackSink, FileSink, MomentSink
from deepSTRF.interpret.dstrf.switching import switches

__all__ = [
    "ArraySink",
    "CallbackSink",
    "DynamicSTRF",
    "FileSink",
    "MomentSink",
    "ReceptiveFieldError",
    "curvature",
    "dstrf",
    "dstrf_folds",
    "jackknifed_dstrf",
    "measure_receptive_field",
    "measure_window",
    "stimulus_frames",
    "switches",
]
