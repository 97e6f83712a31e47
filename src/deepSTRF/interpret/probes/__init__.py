"""Experiments on fitted models: the sounds of a hearing laboratory, played to a model instead of an animal.

`Presentation` says how a model hears; every probe takes one (or a model with a front-end), plays its sounds in
batches, each after silence, and returns arrays, axes in ms, kHz and dB, summary numbers, and ``table()``.
"""

from deepSTRF.interpret.probes.adaptation import (
    ContextSwap,
    LevelStepResponse,
    OddballResponse,
    context_swap,
    level_step_responses,
    oddball_responses,
)
from deepSTRF.interpret.probes.battery import PROBES, ProbeBattery, probe_battery
from deepSTRF.interpret.probes.broadband import NoiseResponse, noise_responses
from deepSTRF.interpret.probes.clicks import ClickResponse, GapResponse, click_responses, gap_responses
from deepSTRF.interpret.probes.modulation import (
    AmResponse,
    RippleResponse,
    SweepResponse,
    am_responses,
    ripple_pattern,
    ripple_responses,
    sweep_responses,
)
from deepSTRF.interpret.probes.presentation import (
    Presentation,
    as_presentation,
    dataset_cochleagram,
    plain_cochleagram,
)
from deepSTRF.interpret.probes.tones import (
    FrequencyResponseArea,
    MaskingResponse,
    TwoToneResponse,
    forward_masking,
    tone_responses,
    two_tone_responses,
)

__all__ = [
    "PROBES",
    "AmResponse",
    "ClickResponse",
    "ContextSwap",
    "FrequencyResponseArea",
    "GapResponse",
    "LevelStepResponse",
    "MaskingResponse",
    "NoiseResponse",
    "OddballResponse",
    "Presentation",
    "ProbeBattery",
    "RippleResponse",
    "SweepResponse",
    "TwoToneResponse",
    "am_responses",
    "as_presentation",
    "click_responses",
    "context_swap",
    "dataset_cochleagram",
    "forward_masking",
    "gap_responses",
    "level_step_responses",
    "noise_responses",
    "oddball_responses",
    "plain_cochleagram",
    "probe_battery",
    "ripple_pattern",
    "ripple_responses",
    "sweep_responses",
    "tone_responses",
    "two_tone_responses",
]
