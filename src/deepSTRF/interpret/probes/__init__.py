"""Probes of fitted models: experiments with synthetic sounds, as on a neuron in a hearing laboratory.

A `Presentation` states how sounds are played to a model. Every probe takes one (or a model with a front-end),
plays its sounds in batches, each after silence, and returns a result: arrays over neurons, axes in ms, kHz
and dB, summary numbers, and ``table()``. `probe_battery` runs them all. Illegal arguments, and models to
which no sounds can be played, raise a ValueError or TypeError.

A new probe is a function that calls `Presentation.evoke`, a `measures.ProbeResult` that names the columns of
its table, and a line in `battery`.
"""

from deepSTRF.interpret.probes.adaptation import level_step_responses, oddball_responses
from deepSTRF.interpret.probes.battery import PROBES, probe_battery
from deepSTRF.interpret.probes.broadband import click_responses, gap_responses, noise_responses
from deepSTRF.interpret.probes.context import context_swap
from deepSTRF.interpret.probes.modulation import (
    am_responses,
    ripple_pattern,
    ripple_responses,
    sweep_responses,
)
from deepSTRF.interpret.probes.presentation import Presentation, plain_cochleagram
from deepSTRF.interpret.probes.tones import forward_masking, tone_responses, two_tone_responses

__all__ = [
    "PROBES",
    "Presentation",
    "am_responses",
    "click_responses",
    "context_swap",
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
