"""Frequency scales by name, and equally spaced points on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.dsp.scales import (
    ERB_to_Hz,
    Greenwood,
    Hz_to_bark,
    Hz_to_ERB,
    Hz_to_mel,
    bark_to_Hz,
    inverse_Greenwood,
    mel_to_Hz,
)

__all__ = ["SCALES", "FrequencyScale", "frequency_scale"]


@dataclass(frozen=True)
class FrequencyScale:
    """A map between hertz and the units of a scale, and back.

    Attributes
    ----------
    name : str
        Name in `SCALES`.
    from_hz, to_hz : callable
        The map and its exact inverse; floats, numpy arrays and tensors.

    Examples
    --------
    >>> scale = frequency_scale("erb")
    >>> [round(f) for f in scale.points(500.0, 8000.0, 4).tolist()]
    [500, 1406, 3439, 8000]
    """

    name: str
    from_hz: Callable[[Any], Any]
    to_hz: Callable[[Any], Any]

    def points(self, f_min: float, f_max: float, n: int) -> Tensor:
        """Return ``n`` frequencies in hertz (float64), equally spaced on this scale, both ends exact."""
        first, last = self.from_hz(torch.tensor([f_min, f_max], dtype=torch.float64)).tolist()
        positions = torch.linspace(first, last, n, dtype=torch.float64)
        points: Tensor = self.to_hz(positions)
        points[0] = f_min
        if n > 1:
            points[-1] = f_max
        return points


def _hz_to_octaves(frequency: Any) -> Any:
    return torch.log2(frequency) if isinstance(frequency, Tensor) else np.log2(frequency)


def _octaves_to_hz(octaves: Any) -> Any:
    return torch.exp2(octaves) if isinstance(octaves, Tensor) else np.exp2(octaves)


def _same(frequency: Any) -> Any:
    return frequency


#: Scales by name. ``"log"`` counts octaves; ``"greenwood"`` is the human cochlear position.
SCALES: Mapping[str, FrequencyScale] = MappingProxyType(
    {
        scale.name: scale
        for scale in (
            FrequencyScale("htk", Hz_to_mel, mel_to_Hz),
            FrequencyScale("slaney", lambda f: Hz_to_mel(f, "slaney"), lambda m: mel_to_Hz(m, "slaney")),
            FrequencyScale("erb", Hz_to_ERB, ERB_to_Hz),
            FrequencyScale("bark", Hz_to_bark, bark_to_Hz),
            FrequencyScale("greenwood", inverse_Greenwood, Greenwood),
            FrequencyScale("log", _hz_to_octaves, _octaves_to_hz),
            FrequencyScale("linear", _same, _same),
        )
    }
)


def frequency_scale(name: str) -> FrequencyScale:
    """Return the scale called ``name``; ``"mel"`` is the HTK form.

    Parameters
    ----------
    name : {"htk", "mel", "slaney", "erb", "bark", "greenwood", "log", "linear"}
        Which scale, in any case.

    Returns
    -------
    FrequencyScale
        The map and its inverse.

    Raises
    ------
    ValueError
        For another name; the text lists the legal ones.

    Examples
    --------
    >>> frequency_scale("mel").name
    'htk'
    """
    key = str(name).lower()
    key = "htk" if key == "mel" else key
    if key not in SCALES:
        legal = ", ".join(repr(known) for known in ("mel", *SCALES))
        raise ValueError(f"unknown frequency scale {name!r}; legal names: {legal}")
    return SCALES[key]
