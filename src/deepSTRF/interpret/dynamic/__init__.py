"""Dynamic STRFs: the linear filter that a model is at each moment, and how that filter changes.

`dstrf` computes the filters of any causal model; sinks take them where they shall go; the statistics say how
they vary: complexity, gain change, temporal hold, shape change.
"""

from deepSTRF.interpret.dynamic.estimate import dstrf
from deepSTRF.interpret.dynamic.reach import ReceptiveFieldError, measure_receptive_field
from deepSTRF.interpret.dynamic.result import DynamicSTRF
from deepSTRF.interpret.dynamic.sinks import (
    ArraySink,
    CallbackSink,
    FileSink,
    Moments,
    MomentSink,
    Sink,
    SinkSet,
)

__all__ = [
    "ArraySink",
    "CallbackSink",
    "DynamicSTRF",
    "FileSink",
    "MomentSink",
    "Moments",
    "ReceptiveFieldError",
    "Sink",
    "SinkSet",
    "dstrf",
    "measure_receptive_field",
]
