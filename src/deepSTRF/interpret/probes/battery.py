"""A battery of probes with their default sounds, and one table of their summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepSTRF._validation import checked_but
from deepSTRF.interpret.probes.adaptation import APART_OCTAVES, level_step_responses, oddball_responses
from deepSTRF.interpret.probes.broadband import click_responses, gap_responses, noise_responses
from deepSTRF.interpret.probes.context import context_swap
from deepSTRF.interpret.probes.measures import ProbeResult
from deepSTRF.interpret.probes.modulation import am_responses, ripple_responses, sweep_responses
from deepSTRF.interpret.probes.presentation import HIGHEST_SHARE, as_presentation
from deepSTRF.interpret.probes.tones import (
    FrequencyResponseArea,
    forward_masking,
    tone_responses,
    two_tone_responses,
)
from deepSTRF.interpret.strf.table import NeuronTable

#: Probes that take a presentation only.
_GENERAL: dict[str, Callable[..., ProbeResult]] = {
    "tones": tone_responses, "clicks": click_responses, "noise": noise_responses, "am": am_responses,
    "sweeps": sweep_responses, "ripples": ripple_responses, "gaps": gap_responses,
    "levels": level_step_responses, "context": context_swap,
}  # fmt: skip
#: And those that are played at each neuron's own best tone.
_AT_BEST_TONE: dict[str, Callable[..., ProbeResult]] = {
    "two_tone": two_tone_responses, "masking": forward_masking, "oddball": oddball_responses,
}  # fmt: skip
#: All names, in the order in which they are played.
PROBES = (*_GENERAL, *_AT_BEST_TONE)


@dataclass(frozen=True)
class ProbeBattery:
    """Results of several probes on the same neurons.

    Attributes
    ----------
    results : mapping of str to result. By the names of `PROBES`.
    table : NeuronTable. All summaries, one row per neuron.
    """

    results: Mapping[str, Any]
    table: NeuronTable


@checked_but("model", "probes")
def probe_battery(
    model: Any, probes: Sequence[str] = PROBES, *, progress: Callable[[str], None] | None = None
) -> ProbeBattery:
    """Run probes with their default sounds.

    Probes at a neuron's own frequency take the tone, of those played, that excited it most; neurons with the
    same one share the sounds, and a neuron that no tone excites takes the middle of the range.

    Parameters
    ----------
    model : Presentation, nn.Module, Stream or ClosedLoop
        A presentation, or a model with a front-end, by itself or in a closed loop.
    probes : sequence of str
        Names out of `PROBES`. Tones are played in any case where another probe needs them.
    progress : callable, optional
        Called with the name of each probe before it is played.

    Returns
    -------
    ProbeBattery
        ``results`` by name, and a ``table`` of all summaries.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import CausalMelSpectrogram
    >>> model = Linear(8, 3, 2, wav2spec=CausalMelSpectrogram(audio_fs=16000, n_mels=8), norm="none")
    >>> battery = probe_battery(model, ["clicks", "gaps"])
    >>> list(battery.results), len(battery.table)
    (['clicks', 'gaps'], 2)
    """
    probes = () if probes is None else probes
    unknown = [name for name in probes if name not in PROBES]
    if unknown or len(set(probes)) != len(probes) or not probes or isinstance(probes, str):
        raise ValueError(f"probes must be different names out of {', '.join(PROBES)}; got {probes!r}")
    presentation = as_presentation(model)
    results: dict[str, Any] = {}
    area: FrequencyResponseArea | None = None
    for name in sorted(probes, key=PROBES.index):
        if progress is not None:
            progress(name)
        if name in _GENERAL:
            results[name] = _GENERAL[name](presentation)
            continue
        area = area or results.get("tones") or tone_responses(presentation)
        strongest = area.response.max(axis=1).argmax(axis=1)
        strongest = np.where(np.isnan(area.best_khz), len(area.frequencies_khz) // 2, strongest)
        best_hz = 1000.0 * area.frequencies_khz[strongest]
        if name == "oddball":  # its upper tone must be playable, too
            best_hz = np.minimum(best_hz, HIGHEST_SHARE * presentation.fs / 2.0 ** (0.5 * APART_OCTAVES))
        results[name] = _AT_BEST_TONE[name](presentation, best_hz)
    table = NeuronTable(tuple(presentation.neurons), {})
    return ProbeBattery(results, table.joined(*(result.table() for result in results.values())))
