"""What a report shows of a model that hears waveforms: its channels, and a field one can listen to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepSTRF.interpret import WaveformField, front_end_response, initial_front_end, waveform_field
from deepSTRF.interpret.front_ends import FrontEndResponse

__all__ = ["FRONT_END", "WAVEFORM_FIELD", "FrontEndParts", "HeardField", "front_end_extras"]

#: Keys of `ReportParts.extras` under which the two sections look for their parts.
FRONT_END, WAVEFORM_FIELD = "front_end", "waveform_field"


@dataclass(frozen=True)
class FrontEndParts:
    """A front-end's channels, as it is and as it was.

    Attributes
    ----------
    name : str
        Its class.
    learned : FrontEndResponse
        Measured as it is.
    initial : FrontEndResponse or None
        Measured before learning; None when nothing in it was learned.

    Examples
    --------
    >>> FrontEndParts("CausalMelSpectrogram", None, None).name
    'CausalMelSpectrogram'
    """

    name: str
    learned: FrontEndResponse
    initial: FrontEndResponse | None


@dataclass(frozen=True)
class HeardField:
    """A neuron's receptive field in the waveform, with what the reader wants to know about it.

    Attributes
    ----------
    neuron : str
        Its name.
    role : str
        Why it is shown: "best".
    score : float
        Its test score.
    clip : str
        Name of the clip.
    field : WaveformField
        The field and the sound before the response.

    Examples
    --------
    >>> HeardField("A1-3", "best", 0.8, "clip 17", None).neuron
    'A1-3'
    """

    neuron: str
    role: str
    score: float
    clip: str
    field: WaveformField


def front_end_extras(model: Any, examples: Sequence[Any] = (), neurons: Sequence[str] = ()) -> dict[str, Any]:
    """Measure a model's front-end, and its receptive field in the sound of the first example that has one.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> front_end_extras(Linear(8, 3))
    {}
    """
    front_end = getattr(model, "wav2spec", None)
    if front_end is None or isinstance(front_end, nn.Identity):
        return {}
    extras: dict[str, Any] = {}
    if _states_frequencies(front_end):
        initial = initial_front_end(front_end)
        extras[FRONT_END] = FrontEndParts(
            name=type(front_end).__name__,
            learned=front_end_response(front_end),
            initial=None if initial is None else front_end_response(initial),
        )
    heard = next((one for one in examples if getattr(one, "sound", None) is not None), None)
    if heard is not None and heard.neuron in neurons:
        index = list(neurons).index(heard.neuron)
        field = waveform_field(model, torch.from_numpy(heard.sound), index)
        if field.duration_ms > 0 and math.isfinite(field.duration_ms):
            extras[WAVEFORM_FIELD] = HeardField(heard.neuron, heard.role, heard.score, heard.clip, field)
    return extras


def _states_frequencies(front_end: nn.Module) -> bool:
    """Whether its channels have frequencies; those of a deep encoder have none, and cost minutes to probe."""
    try:
        return getattr(front_end, "frequencies_hz", None) is not None
    except NotImplementedError:
        return False
